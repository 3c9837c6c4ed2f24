"""What whet says when something is wrong: one sentence with the value, the rule and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WhetError(ValueError):
    """The input cannot be used as it is; the message names the value, the rule and the remedy.

    The command line prints the message on stderr and exits with code 2.

    Examples
    --------
    >>> raise WhetError("2 rows: at least 4 are needed; add rows")
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: 2 rows: at least 4 are needed; add rows
    """


class WhetWarning(UserWarning):
    """The result is valid, but the person who reads it should know something about it.

    Examples
    --------
    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     warnings.warn("only 5 gold rows: the intervals are wide", WhetWarning, stacklevel=1)
    >>> str(caught[0].message)
    'only 5 gold rows: the intervals are wide'
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the nearest valid name as the end of an error sentence.

    Parameters
    ----------
    name : str
        What the user wrote.
    known : iterable of str
        What would have been valid.

    Returns
    -------
    str
        ``" (did you mean 'text'?)"``, or the list of valid names when none is near.

    Examples
    --------
    >>> did_you_mean("txt", ["text", "label"])
    " (did you mean 'text'?)"
    >>> did_you_mean("zzz", ["text", "label"])
    " (valid: 'text', 'label')"
    """
    choices = list(dict.fromkeys(known))
    by_folded = {choice.casefold(): choice for choice in choices}
    near = difflib.get_close_matches(name.casefold(), list(by_folded), n=1, cutoff=0.5)
    if near:
        return f" (did you mean {by_folded[near[0]]!r}?)"
    shown = ", ".join(repr(choice) for choice in choices[:20])
    return f" (valid: {shown}{', ...' if len(choices) > 20 else ''})"
