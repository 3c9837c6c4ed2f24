"""A model that continues batches of prompts, token by token.

A row that is done leaves its batch, so that the rest goes faster. A token is drawn where a number
falls among the summed probabilities, and each row and sample has numbers of its own: which rows
share a batch decides nothing, up to rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet.errors import WhetError
from whet.extras import require
from whet.posttrain.models import PURPOSE, end_tokens, load_causal

#: A batch is packed anew when this share of its rows is done.
PACK = 0.25


class Speaker:
    """A loaded model that completes batches of tokens.

    Parameters
    ----------
    model : str
        Folder or hub id.
    tokenizer : tokenizer of transformers

    Raises
    ------
    WhetError
        If the model cannot be loaded, or keeps no keys and values that rows could leave.

    Examples
    --------
    >>> import tempfile, tokenizers, transformers
    >>> from whet.posttrain.models import load_tokenizer
    >>> folder = tempfile.mkdtemp()
    >>> config = transformers.LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8,
    ...     num_hidden_layers=1, num_attention_heads=2, eos_token_id=1)
    >>> transformers.LlamaForCausalLM(config).save_pretrained(folder)
    >>> words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "</s>": 1}, "a"))
    >>> fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
    >>> _ = fast.save_pretrained(folder)
    >>> speaker = Speaker(folder, load_tokenizer(folder))
    >>> said = speaker.complete([[0], [5, 6]], 1, temperature=0.0, top_p=1.0, draws=None)
    >>> [len(tokens) for tokens, ended in said]
    [1, 1]
    """

    def __init__(self, model: str, tokenizer: Any) -> None:  # noqa: ANN401
        self._torch = require("torch", PURPOSE)
        self._model = load_causal(model)
        self._device = self._model.device
        self._pad = tokenizer.pad_token_id
        self._ends = end_tokens(self._model.generation_config, tokenizer)
        self._keeps_logits = takes(self._model, "logits_to_keep")
        self._positions = takes(self._model, "position_ids")
        if not takes(self._model, "past_key_values"):
            raise WhetError(
                f"the model {model!r} keeps no keys and values, without which each token would "
                "cost a pass over all before: ask it through a server"
            )

    def complete(
        self,
        prompts: Sequence[list[int]],
        room: int,
        temperature: float,
        top_p: float,
        draws: NDArray[np.float64] | None,
    ) -> list[tuple[list[int], bool]]:
        """Return the new tokens of each prompt, and whether the last one is an end mark.

        Parameters
        ----------
        prompts : sequence of lists of int
        room : int
            Most new tokens.
        temperature, top_p : float
        draws : float64 array of shape (b, room) or None
            In [0, 1); None takes the most probable tokens.
        """
        with self._torch.inference_mode():
            said, lengths = self._said(prompts, room, temperature, top_p, draws)
        return [
            (tokens[: length + 1], length < room)
            for tokens, length in zip(said.tolist(), lengths.tolist(), strict=True)
        ]

    def _said(
        self,
        prompts: Sequence[list[int]],
        room: int,
        temperature: float,
        top_p: float,
        draws: NDArray[np.float64] | None,
    ) -> tuple[Any, Any]:
        """Return new tokens of shape (b, room), and how many of each row come before the end."""
        torch, device = self._torch, self._device
        width = max(map(len, prompts))
        ids = torch.tensor([[self._pad] * (width - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        places = (mask.cumsum(1) - 1).clamp(min=0)
        ends = torch.tensor(self._ends, device=device)
        numbers = None if draws is None else torch.tensor(draws, device=device)
        cache = require("transformers", PURPOSE).DynamicCache(config=self._model.config)
        rows = torch.arange(len(prompts), device=device)
        alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
        said = torch.full((len(prompts), room), self._pad, device=device)
        lengths = torch.full((len(prompts),), room, device=device)
        for step in range(room):
            logits = self._logits(ids, mask, places, cache)
            drawn = None if numbers is None else numbers[rows, step]
            token = _choose(torch, logits, temperature, top_p, drawn)
            said[rows, step] = token
            done = alive & torch.isin(token, ends)
            lengths[rows[done]] = step
            alive &= ~done
            left = int(alive.sum())
            if not left:
                break
            ids, places = token[:, None], places[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            if left <= (1 - PACK) * len(rows):
                kept = alive.nonzero().flatten()
                rows, ids, places, mask, alive = (
                    each[kept] for each in (rows, ids, places, mask, alive)
                )
                cache.reorder_cache(kept)
        return said, lengths

    def _logits(self, ids: Any, mask: Any, places: Any, cache: Any) -> Any:  # noqa: ANN401
        more: dict[str, Any] = {"position_ids": places} if self._positions else {}
        if self._keeps_logits:
            more["logits_to_keep"] = 1
        out = self._model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **more
        )
        return out.logits[:, -1].float()


def _choose(
    torch: Any,  # noqa: ANN401
    logits: Any,  # noqa: ANN401
    temperature: float,
    top_p: float,
    drawn: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Return a token for each row of logits, given a number in [0, 1) for each, or None."""
    if drawn is None:
        return logits.argmax(-1)
    shares = (logits / temperature).softmax(-1).double()
    order = None
    if top_p < 1:
        shares, order = shares.sort(dim=-1, descending=True, stable=True)
        shares[shares.cumsum(-1) - shares >= top_p] = 0.0
    sums = shares.cumsum(-1)
    token = torch.searchsorted(sums, (drawn * sums[:, -1])[:, None], right=True)
    return (token if order is None else order.gather(-1, token)).flatten()


def uniforms(seed: int, row: int, sample: int, n: int) -> NDArray[np.float64]:
    """Return the numbers in [0, 1) that a row's sample is drawn with.

    Examples
    --------
    >>> bool((uniforms(0, 3, 1, 4) == uniforms(0, 3, 1, 9)[:4]).all())
    True
    """
    return np.random.default_rng([seed, row % 2**64, sample]).random(n)


def takes(module: Any, argument: str) -> bool:  # noqa: ANN401
    """Whether a model's forward pass has an argument of this name."""
    return argument in inspect.signature(module.forward).parameters
