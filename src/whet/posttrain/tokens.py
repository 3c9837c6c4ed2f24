"""Prompts and completions as tokens: one convention for training, generating and scoring.

It is that of TRL's SFTTrainer and DPOTrainer. Text: prompt, completion and end mark are joined and
cut into tokens together, with what the tokenizer puts before a text by itself; a completion that
brings the end mark gets no second one. Messages: the tokenizer's chat template. The completion
starts where the tokens of the whole leave those of the prompt alone, so that where tokens merge
across the border, the merged one is learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from whet.errors import WhetError
from whet.hub import reason


class Encoded(NamedTuple):
    """A row's tokens.

    Attributes
    ----------
    ids : list of int
        Of prompt and completion.
    start : int
        Where the completion starts.
    prompt : int
        Tokens of the prompt alone; more than ``start`` where tokens merge across the border.

    Examples
    --------
    >>> Encoded([5, 6, 7, 1], 2, 2).ids[2:]
    [7, 1]
    """

    ids: list[int]
    start: int
    prompt: int


def encode_prompts(tokenizer: Any, prompts: Sequence[Any]) -> list[list[int]]:  # noqa: ANN401
    """Return the tokens of prompts, up to where a completion begins.

    Parameters
    ----------
    tokenizer : tokenizer of transformers
    prompts : sequence of str or of lists of messages

    Raises
    ------
    WhetError
        If there is no chat template for messages, or it refuses them.
    """
    return _tokens(tokenizer, prompts, add_generation_prompt=True)


def encode(
    tokenizer: Any,  # noqa: ANN401
    prompts: Sequence[Any],
    completions: Sequence[Any],
    finished: Sequence[bool] | None = None,
) -> list[Encoded]:
    """Return the tokens of prompts with completions.

    Parameters
    ----------
    tokenizer : tokenizer of transformers
    prompts, completions : sequences of str or of lists of messages
    finished : sequence of bool, optional
        Whether the end mark follows a completion that is text; None: all.

    Raises
    ------
    WhetError
        If there is no chat template for messages, or it refuses them.
    """
    end = tokenizer.eos_token
    wholes = []
    for k, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        whole = prompt + completion
        if isinstance(whole, str):
            ended = completion.endswith(end) or (finished is not None and not finished[k])
            whole += "" if ended else end
        wholes.append(whole)
    encoded = []
    heads = encode_prompts(tokenizer, prompts)
    for head, ids in zip(heads, _tokens(tokenizer, wholes), strict=True):
        start = next((k for k, (a, b) in enumerate(zip(head, ids, strict=False)) if a != b), None)
        encoded.append(
            Encoded(ids, min(len(head), len(ids)) if start is None else start, len(head))
        )
    return encoded


def _tokens(tokenizer: Any, wholes: Sequence[Any], **options: Any) -> list[list[int]]:  # noqa: ANN401
    if not wholes:
        return []
    if isinstance(wholes[0], str):
        found: list[list[int]] = tokenizer(list(wholes), verbose=False)["input_ids"]
        return found
    if not tokenizer.chat_template:
        raise WhetError(
            "the tokenizer has no chat template, which messages need: write prompts and "
            "completions as text, or add a template to the model's folder"
        )
    talks = [[{k: v for k, v in said.items() if v is not None} for said in w] for w in wholes]
    try:
        found = tokenizer.apply_chat_template(talks, tokenize=True, return_dict=True, **options)[
            "input_ids"
        ]
    except Exception as error:  # templates raise what they like
        raise WhetError(
            f"the chat template refuses the messages ({reason(error)}): mend the messages or the "
            "template"
        ) from error
    return found
