"""Gold labels behind a counter: nobody reads one without saying what for."""

from __future__ import annotations

from typing import Any

import numpy as np

from whet.classify.labels import MISSING, Codes


class GoldLedger:
    """The gold labels of a run, at most ``budget`` of them, and every use made of them.

    Parameters
    ----------
    codes : int array of shape (n,)
        Gold class of each row, -1 where unknown.
    budget : int or None
        Keep a random sample of this many rows; None keeps all (experiments only).
    seed : int
        Draws the sample.

    Examples
    --------
    >>> import numpy as np
    >>> ledger = GoldLedger(np.array([1, -1, 0, 1]), budget=2, seed=0)
    >>> labels = ledger.use("theta", round_number=1)
    >>> int((labels >= 0).sum()), ledger.report()["uses"]
    (2, [{'purpose': 'theta', 'round': 1, 'rows': 2}])
    """

    def __init__(self, codes: Codes, budget: int | None, seed: int) -> None:
        known = np.flatnonzero(codes != MISSING)
        self._given = codes
        self.given = len(known)
        self.budget = budget
        if budget is not None and self.given > budget:
            known = np.sort(np.random.default_rng(seed).choice(known, budget, replace=False))
        self.rows = known
        self._codes = np.full(len(codes), MISSING, dtype=np.int64)
        self._codes[known] = codes[known]
        self._uses: dict[tuple[str, int | None], int] = {}

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def whole(self) -> bool:
        """Whether every row has a gold label, so that shares are exact."""
        return len(self.rows) == len(self._codes)

    def use(self, purpose: str, round_number: int | None = None) -> Codes:
        """Return the gold codes, -1 where unknown, and record what they are used for."""
        self.note(purpose, round_number)
        return self._codes.copy()

    def all_given(self) -> Codes:
        """Return all gold codes, also those beyond the budget: to put them into the result."""
        self._uses[("gold rows keep their gold label", None)] = self.given
        return self._given.copy()

    def note(self, purpose: str, round_number: int | None) -> None:
        """Record a use, also one that a resumed run made before it was interrupted."""
        if len(self):
            self._uses[(purpose, round_number)] = len(self)

    def report(self) -> dict[str, Any]:
        """Return what was given, what the budget kept, which rows, and every use."""
        listed: Any = self.rows.tolist() if not self.whole else "all"
        return {
            "given": self.given,
            "budget": self.budget,
            "kept": len(self),
            "rows": listed,
            "uses": [
                {"purpose": purpose, "round": number, "rows": n}
                for (purpose, number), n in sorted(
                    self._uses.items(), key=lambda use: (use[0][1] or 10**9, use[0][0])
                )
            ],
        }
