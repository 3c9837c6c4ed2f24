"""Which rows train together, epoch by epoch, as a function of seed and epoch alone.

**Stratified.** Each pseudo-class is shuffled, its rows are spread evenly over the unit interval
(row r of n at (r + u) / n, with one random u for the class), and the classes are merged in that
order. Any stretch of the result holds every class in proportion, give or take a row; so does every
batch that is cut from it, as long as the class has rows enough.

**Buckets of equal length.** The merged order is cut into stretches of ``POOL`` batches. Within a
stretch each class is sorted by length, spread over the unit interval again and merged: now every
short stretch holds rows of about the same quantile of length *and* every class in proportion.
Batches are cut from that and shuffled. Where one class has longer texts than another, equal
quantiles are unequal lengths, and the batches hold more padding than a plain sort would leave.

**What this does to the risk.** phi acts on the sums of one batch, so it matters which rows share
one. Two statements hold for any of these samplers, because every row is in exactly one batch:

- with ``set_means="epoch"`` a row of set i counts W[i] * batches / (size of set i) in its batch.
  The mean of a batch's partial risks over the batches of an epoch is then *equal* to the whole
  corpus's, whatever the sampler does, batches of few long texts included;
- with ``set_means="batch"``, the paper's, each batch divides by its own number of rows of the set.
  The mean is then right only if batches hold equally many rows of each set, as stratified batches
  of a fixed size do but for rounding; a row in a small batch counts more, and where random batches
  of b rows miss a set of share q entirely, its part shrinks by the factor 1 - (1 - q)^b.

phi is convex for slopes below 1, so the mean of phi over batches is at least phi of the mean: a
batch's risk is the larger, on average, the more batches differ. Stratifying lowers that surplus,
sorting by length raises it where the loss depends on length; pools keep each batch a random
sample of its length. With slope 1 (PN, UU) phi changes nothing and the mean is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whet.finetune.tokens import MULTIPLE, Rows

#: Batches that are cut from one stretch of random rows, sorted by length.
POOL = 64


@dataclass(frozen=True)
class Batches:
    """The batches of each epoch.

    Parameters
    ----------
    lengths : int array of shape (n,)
        Tokens of each row.
    strata : int array of shape (n,)
        Pseudo-class of each row.
    batch_size : int
        Rows of a batch; not used with ``tokens_per_batch``.
    tokens_per_batch : int, optional
        Most tokens of a batch, padding included; a longer row has a batch of its own.
    stratified, bucketed : bool
        See the module. Both False gives the plain shuffle.
    seed : int

    Examples
    --------
    >>> batches = Batches(np.arange(1, 13), np.arange(12) % 2, batch_size=4)
    >>> [int((batch % 2).sum()) for batch in batches.epoch(0)]
    [2, 2, 2]
    """

    lengths: NDArray[np.int64]
    strata: NDArray[np.int64]
    batch_size: int = 16
    tokens_per_batch: int | None = None
    stratified: bool = True
    bucketed: bool = True
    seed: int = 0

    def epoch(self, number: int) -> list[Rows]:
        """Return the batches of an epoch, each an array of positions in ``lengths``.

        Every position occurs once. To go on in mid-epoch, leave out the batches that are done.
        """
        rng = np.random.default_rng([self.seed, number])
        order = self._spread(rng, rng.permutation(len(self.lengths)))
        if not self.bucketed:
            return self._cut(order)
        batches: list[Rows] = []
        pool = self._pool_rows()
        for stretch in np.array_split(order, max(round(len(order) / pool), 1)):
            by_length = stretch[np.argsort(self.lengths[stretch], kind="stable")]
            batches += self._cut(self._spread(rng, by_length))
        return [batches[k] for k in rng.permutation(len(batches))]

    def _pool_rows(self) -> int:
        if self.tokens_per_batch is None:
            return POOL * self.batch_size
        return max(int(POOL * self.tokens_per_batch / max(self.lengths.mean(), 1.0)), 1)

    def _spread(self, rng: np.random.Generator, rows: Rows) -> Rows:
        """Merge the classes so that each keeps its order and is spread evenly over the whole."""
        if not self.stratified:
            return rows
        place = np.empty(len(rows))
        strata = self.strata[rows]
        for stratum in np.unique(strata):
            members = np.flatnonzero(strata == stratum)
            place[members] = (np.arange(len(members)) + rng.random()) / len(members)
        return rows[np.argsort(place, kind="stable")]

    def _cut(self, rows: Rows) -> list[Rows]:
        if self.tokens_per_batch is not None:
            return self._cut_by_tokens(rows, self.tokens_per_batch)
        if self.stratified:  # all of nearly one size, so that none holds a handful
            return list(np.array_split(rows, max(-(-len(rows) // self.batch_size), 1)))
        return [rows[k : k + self.batch_size] for k in range(0, len(rows), self.batch_size)]

    def _cut_by_tokens(self, rows: Rows, budget: int) -> list[Rows]:
        """Cut into as few batches as the budget allows, then even out their tokens."""
        widths = -(-self.lengths[rows] // MULTIPLE) * MULTIPLE
        ends = _fill(widths, budget)
        low, high = int(widths.max()) - 1, budget
        while high - low > max(budget // 64, 1):
            middle = (low + high) // 2
            tried = _fill(widths, middle)
            if len(tried) > len(ends):
                low = middle
            else:
                high, ends = middle, tried
        return np.split(rows, ends[:-1])


def _fill(widths: NDArray[np.int64], budget: int) -> list[int]:
    """Return where batches end that take rows in order until rows x width exceeds the budget."""
    ends, start, widest = [], 0, 0
    for k, width in enumerate(widths.tolist()):
        wider = max(widest, width)
        if k > start and wider * (k - start + 1) > budget:
            ends.append(k)
            start, wider = k, width
        widest = wider
    return [*ends, len(widths)]
