"""Grade-school maths (GSM8K, Cobbe et al., arXiv 2110.14168): worked answers ending in a number."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa

from whet.ilr.tasks.answers import AnswerTask, final_number, number_in
from whet.ilr.tasks.protocol import as_prompt, demonstrations, read_split

#: How the models' solutions of the test split write their answer.
_THEIRS = re.compile(r"^A: ", re.MULTILINE)


class Gsm8k(AnswerTask):
    r"""GSM8K: ``question`` and ``answer``, which ends in ``#### number``.

    Answers are equal if the numbers after the last ``####`` are
    (:func:`whet.ilr.tasks.answers.final_number`); the paper's code compares the word after it.
    Columns ``llm_<model>``, solutions of models that end in ``A: number``, come along with
    ``####`` in place of ``A:``, so that they can be completions.

    Examples
    --------
    >>> import json, tempfile
    >>> row = {"question": "2 + 2?", "answer": "It is 2+2=<<2+2=4>>4.\n#### 4"}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "train.jsonl").write_text(json.dumps(row))
    ...     table = Gsm8k().load(Path(folder), "train")
    >>> table["prompt"].to_pylist(), table["reference"].to_pylist()
    (['USER:\n2 + 2?\n\nASSISTANT:\n'], ['4'])
    >>> Gsm8k().score(table, ["#### 4.0"]).tolist()
    [1.0]
    """

    name = "gsm8k"
    marker: str | None = "####"

    def answer(self, text: str) -> str | None:
        """Return the number after the last ``####``."""
        return final_number(text)

    def normal(self, answer: str) -> str | None:
        """Return the number of a reference, which may be a worked answer too."""
        return self.answer(answer) or number_in(answer)

    def load(self, folder: Path, split: str) -> pa.Table:
        """Return a split; see :meth:`whet.ilr.tasks.protocol.Task.load`."""
        table = read_split(folder, split, ("question", "answer"))
        answers = [str(answer) for answer in table["answer"].to_pylist()]
        solutions = {
            name: pa.array(
                [_THEIRS.sub("#### ", text or "") for text in table[name].to_pylist()], pa.string()
            )
            for name in table.column_names
            if name.startswith("llm_") and not name.startswith("llm_ok_")
        }
        return demonstrations(
            [as_prompt(str(question)) for question in table["question"].to_pylist()],
            answers,
            [self.answer(answer) for answer in answers],
            **solutions,
        )
