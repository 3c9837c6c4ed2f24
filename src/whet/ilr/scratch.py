"""Small language models with random weights: to try post-training without a download."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from whet.errors import WhetError
from whet.extras import require
from whet.finetune.model import quiet
from whet.ilr.tasks.tokenizer import save_tokenizer

#: Standard deviation of the weights. The usual 0.02 is for wide models: with it, one of width 64
#: has learned nothing in the steps in which it learns chains of three operations with this.
SPREAD = 0.1


def save_scratch(
    texts: Iterable[str],
    folder: Path,
    *,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    length: int = 256,
    seed: int = 0,
) -> str:
    """Write a model folder: a Llama with random weights, and a tokenizer of a corpus's words.

    Needs the extra ``[train]``.

    Parameters
    ----------
    texts : iterable of str
        All words that the model will read or write.
    folder : Path
        Made if absent.
    width, layers, heads : int
        Of the hidden states; the feed-forward layers are twice as wide. ``width`` is an even
        multiple of ``heads``.
    length : int
        Most tokens that it reads.
    seed : int

    Returns
    -------
    str
        The folder.

    Raises
    ------
    WhetError
        If the sizes do not fit.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     folder = save_scratch(["2 + 2 = 4"], Path(name), width=8, layers=1, heads=2)
    ...     (Path(folder) / "model.safetensors").is_file()
    True
    """
    torch = require("torch", "a model from scratch")
    transformers = require("transformers", "a model from scratch")
    if min(width, layers, heads, length) < 1 or width % (2 * heads):
        raise WhetError(
            f"width = {width}, heads = {heads}, layers = {layers}, length = {length}: give at "
            "least 1 of each, and a width that is an even multiple of heads"
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = save_tokenizer(texts, folder)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=length,
        initializer_range=SPREAD,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with quiet(), torch.random.fork_rng([]):
        torch.manual_seed(seed)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)
