"""Final answers: found in a completion, brought to one form, compared."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from whet.ilr.tasks.protocol import check_lengths, values_of

#: Written as digits with commas between groups of three (or Indian groups), or without. The
#: lengths are bounded: a model may write a million digits.
_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{2,3}){0,9},[0-9]{3}|[0-9]{1,40})(?![0-9])"
_NUMBER = re.compile(
    rf"(?<![0-9.,])(?P<minus>-?)"
    rf"(?:(?P<mixed>{_WHOLE}) (?=[0-9]{{1,9}}/[1-9]))?"
    rf"(?:(?P<whole>{_WHOLE})|(?=\.[0-9]))"
    rf"(?: ?/ ?(?P<below>[1-9][0-9]{{0,17}}(?![0-9]))"
    rf"|(?:\.(?P<decimals>[0-9]{{1,60}}))?(?:[eE](?P<power>[-+]?[0-9]{{1,2}})(?![0-9]))?)"
)
#: Signs that look like a minus; and what stands between a minus and its number.
_PLAIN = str.maketrans({"−": "-", "–": "-"} | dict.fromkeys("$€£¥₹"))


def final_number(text: str, marker: str = "####") -> str | None:
    r"""Return the number that a completion ends with: the first one after the last marker.

    Parameters
    ----------
    text : str
    marker : str

    Returns
    -------
    str or None
        As :func:`number_in` gives it, of the marker's line; None where there is no marker.

    Examples
    --------
    >>> final_number("She pays 3 x 600. #### $1,800.00\nThat is a lot: 9 a day.")
    '1800'
    """
    _, found, rest = text.rpartition(marker)
    return number_in(rest.lstrip().partition("\n")[0]) if found else None


def number_in(text: str) -> str | None:
    """Return the first number in a text, in one form.

    Returns
    -------
    str or None
        The exact value, ``n`` or ``p/q`` in lowest terms. Commas between digits, currency signs,
        units, percent signs and a closing full stop do not count: ``$1,234.50``, ``1234.5
        dollars`` and ``2469/2`` are equal. None if there is no number of at most 40 digits.

    Examples
    --------
    >>> [number_in(x) for x in ("-5.", "50 %", "2 1/2 cups", ".50", "1/3", "$-1,000", "none")]
    ['-5', '50', '5/2', '1/2', '1/3', '-1000', None]
    """
    match = _NUMBER.search(text.translate(_PLAIN))
    if match is None:
        return None
    parts = {name: (part or "0").replace(",", "") for name, part in match.groupdict().items()}
    if match["below"]:
        value = int(parts["mixed"]) + Fraction(int(parts["whole"]), int(parts["below"]))
    else:
        value = Fraction(f"{parts['whole']}.{parts['decimals']}e{parts['power']}")
    return str(-value if match["minus"] else value)


def plain_text(text: str) -> str | None:
    """Return a text in lower case, with single spaces and no closing full stop; None if empty.

    Examples
    --------
    >>> plain_text(" The  Nile. ")
    'the nile'
    """
    return " ".join(text.casefold().split()).rstrip(". ") or None


class AnswerTask(ABC):
    """A task whose completions end in an answer: two agree if the answers are equal.

    Examples
    --------
    >>> import pyarrow as pa
    >>> class Sums(AnswerTask):
    ...     def answer(self, text):
    ...         return final_number(text)
    >>> table = pa.table({"row": [0, 1, 2], "reference": ["4", "6", None]})
    >>> Sums().agree(table, ["#### 4", "#### 6", "?"], ["2 + 2 #### 4.0", "#### 7", "?"]).tolist()
    [True, False, True]
    >>> Sums().score(table, ["#### 4", "six", "#### 8"]).tolist()
    [1.0, 0.0, nan]
    """

    @abstractmethod
    def answer(self, text: str) -> str | None:
        """Return a completion's answer in the form in which answers are compared."""

    def normal(self, answer: str) -> str | None:
        """Return an answer that stands alone, such as a reference, in that form."""
        return answer

    def agree(
        self, table: pa.Table, first: Sequence[str], second: Sequence[str]
    ) -> NDArray[np.bool_]:
        """Return whether completions have the same answer, or without one are the same text.

        Parameters
        ----------
        table : pyarrow.Table with n rows
        first, second : sequences of n str

        Returns
        -------
        boolean array of shape (n,)
        """
        check_lengths(table, first, second)
        same = [
            a == b or (self.answer(a) is not None and self.answer(a) == self.answer(b))
            for a, b in zip(first, second, strict=True)
        ]
        return np.array(same, dtype=np.bool_)

    def score(self, table: pa.Table, completions: Sequence[str]) -> NDArray[np.float64]:
        """Return 1 where a completion's answer is the ``reference``, 0 where not.

        Parameters
        ----------
        table : pyarrow.Table with n rows
            ``reference`` holds answers, as text or numbers; their form does not count.
        completions : sequence of n str

        Returns
        -------
        float64 array of shape (n,)
            NaN where the row has no reference, or none that is an answer.
        """
        check_lengths(table, completions)
        # A reference is a number where it comes from a CSV.
        wanted = [
            None if reference is None else self.normal(str(reference))
            for reference in values_of(table, "reference")
        ]
        scores = [
            np.nan if answer is None else float(self.answer(completion) == answer)
            for answer, completion in zip(wanted, completions, strict=True)
        ]
        return np.array(scores, dtype=np.float64)
