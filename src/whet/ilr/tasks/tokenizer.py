"""A tokenizer made of a corpus, for models so small that no pretrained one fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from whet.errors import WhetError
from whet.extras import require

#: Words, numbers, runs of #, other characters: each with the space before it; then white space. No
#: character is lost.
_PIECES = {"word": r" ?(?:\w+|#+|[^\w\s])|\s", "character": r"(?m)."}
PAD, UNKNOWN, END = "<pad>", "<unk>", "<eos>"


def save_tokenizer(
    texts: Iterable[str], folder: Path, level: Literal["word", "character"] = "word"
) -> Any:  # noqa: ANN401
    r"""Make a tokenizer whose tokens are the words or the characters of a corpus, and save it.

    Needs the extra ``[train]``. Decoding gives back the text, but for what the corpus lacks.

    Parameters
    ----------
    texts : iterable of str
        Prompts and completions. All their words or characters become tokens.
    folder : Path
        Made if absent.
    level : {"word", "character"}
        A number is a word, so a word that the corpus lacks is unknown; a character of it is not.

    Returns
    -------
    transformers.PreTrainedTokenizerFast
        With padding, unknown and end tokens (0, 1, 2), adding none by itself.

    Raises
    ------
    WhetError
        If the corpus is empty.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tokenizer = save_tokenizer(["2 + 2 = 4\n#### 4"], Path(folder))
    >>> tokenizer.decode(tokenizer("4 + 2\n####").input_ids)
    '<unk> + 2\n####'
    """
    library = require("transformers", "a tokenizer of one's own")
    tokenizers = require("tokenizers", "a tokenizer of one's own")
    pieces = tokenizers.pre_tokenizers.Split(tokenizers.Regex(_PIECES[level]), "isolated")
    counts = Counter(piece for text in texts for piece, _ in pieces.pre_tokenize_str(text))
    if not counts:
        raise WhetError("the corpus of the tokenizer is empty: give texts")
    words = [PAD, UNKNOWN, END, *sorted(counts, key=lambda word: (-counts[word], word))]
    vocabulary = {word: k for k, word in enumerate(dict.fromkeys(words))}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, UNKNOWN))
    model.pre_tokenizer = pieces
    model.decoder = tokenizers.decoders.Fuse()
    tokenizer = library.PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer
