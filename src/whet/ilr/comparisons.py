"""What a judge is trained on: comparisons of gold with what a small model said on its way.

A small model is trained on gold demonstrations, and each of its checkpoints answers the same
questions; earlier ones make more mistakes (ILR, arXiv 2501.07886; sampled as in the authors' code).
A question gives at most two comparisons: gold over an answer that is right, and gold or a right
answer over a wrong one. The first kind teaches a judge to prefer gold over answers that are *as
right*: style, not correctness. ``rule="correctness"`` leaves it out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from whet.errors import WhetError, did_you_mean
from whet.ilr.halves import digest
from whet.ilr.samples import by_row

RULES = ("paper", "correctness")
#: What is compared: the better answer and the worse one.
KINDS = ("gold over right", "gold over wrong", "right over wrong")


def comparisons(
    table: pa.Table,
    samples: pa.Table,
    right: ArrayLike,
    *,
    rule: str = "paper",
    seed: int = 0,
) -> pa.Table:
    """Make the comparisons that a judge is trained on.

    Parameters
    ----------
    table : pyarrow.Table
        Gold demonstrations: ``row``, ``prompt``, ``completion``.
    samples : pyarrow.Table
        Answers of a small model: ``row`` (as in ``table``), ``checkpoint`` (int, in the order of
        training) and ``completion``.
    right : bool array of shape (samples,)
        Whether each sample is right.
    rule : {"paper", "correctness"}
        See the module.
    seed : int
        The draw for a row depends on it and the row's number alone.

    Returns
    -------
    pyarrow.Table
        ``row``, ``prompt``, ``better``, ``worse`` and ``kind`` (see ``KINDS``), in the order of
        ``table``, at most two for each of its rows.

    Notes
    -----
    Of C checkpoints, a sample of the c-th (from 0) is drawn with weight 2^(C - 1 - c): this is how
    we read "earlier checkpoints weighted 2^k". The better answer over a wrong one is drawn evenly
    from gold and the distinct right samples.

    Raises
    ------
    WhetError
        If lengths do not fit, a sample names no row, or there is nothing to compare.

    Examples
    --------
    >>> table = pa.table({"row": [0], "prompt": ["2 + 2?"], "completion": ["2 + 2 = 4"]})
    >>> samples = pa.table({"row": [0, 0], "checkpoint": [0, 1], "completion": ["5", "4"]})
    >>> comparisons(table, samples, [False, True], rule="correctness").num_rows
    1
    >>> comparisons(table, samples, [False, True])["kind"].to_pylist()[0]
    'gold over right'
    """
    if rule not in RULES:
        raise WhetError(f"rule = {rule!r}{did_you_mean(rule, RULES)}")
    flags = np.asarray(right, dtype=bool)
    if len(flags) != samples.num_rows:
        raise WhetError(f"{len(flags)} verdicts for {samples.num_rows} samples: give one each")
    stages = np.unique(samples["checkpoint"].to_numpy(), return_inverse=True)[1]
    weights = 2.0 ** (stages.max(initial=0) - stages)
    answers = pa.table(
        {
            **{name: samples[name] for name in ("row", "completion")},
            **{"right": flags, "weight": weights},
        }
    )
    found = [
        {"row": question["row"], "prompt": question["prompt"], **comparison}
        for question, said in zip(
            table.select(["row", "prompt", "completion"]).to_pylist(),
            by_row(table, answers),
            strict=True,
        )
        for comparison in _of_question(question, said, rule, seed)
    ]
    if not found:
        raise WhetError(
            "no answer differs from its demonstration as the rule needs it: draw samples from "
            "earlier checkpoints, or at a higher temperature"
        )
    text = table.schema.field("completion").type
    return pa.Table.from_pylist(
        found,
        schema=pa.schema(
            [
                *(table.schema.field("row"), table.schema.field("prompt")),
                *(pa.field("better", text), pa.field("worse", text), pa.field("kind", pa.string())),
            ]
        ),
    )


def _of_question(
    question: dict[str, Any], answers: list[dict[str, Any]], rule: str, seed: int
) -> list[dict[str, Any]]:
    """Return the comparisons of one question, each with better, worse and kind."""
    rng = np.random.default_rng(digest(seed, question["row"]))
    gold, found = question["completion"], []
    others = [answer for answer in answers if answer["completion"] != gold]
    rights = [answer for answer in others if answer["right"]]
    wrongs = [answer for answer in others if not answer["right"]]
    if rights and rule == "paper":
        found.append({"better": gold, "worse": _draw(rights, rng), "kind": KINDS[0]})
    if wrongs:
        pool = [gold]
        for answer in rights:
            if answer["completion"] not in pool:  # messages are lists, which no set holds
                pool.append(answer["completion"])
        choice = int(rng.integers(len(pool)))
        kind = KINDS[2 if choice else 1]
        found.append({"better": pool[choice], "worse": _draw(wrongs, rng), "kind": kind})
    return found


def _draw(answers: list[dict[str, Any]], rng: np.random.Generator) -> Any:  # noqa: ANN401
    weights = np.array([answer["weight"] for answer in answers])
    return answers[int(rng.choice(len(answers), p=weights / weights.sum()))]["completion"]
