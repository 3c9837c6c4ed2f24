"""The default method with fine-tuned students: no gold label reaches them, so gold stays honest.

The rows fall into two halves, equal texts in one. A model is fine-tuned on the annotator's labels
of each half and scores the other half; the scores become columns beside frozen features (n-grams
and the model's own states before tuning), and everything of :mod:`whet.classify.tsp` runs on these
columns. So the folds, reruns without gold labels, and rounds cost what they cost with frozen
features, and two fits are all that fine-tuning adds, since its result does not depend on any gold
label. A third fit, on the pooled probabilities, gives the model for new texts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from whet.classify.features import EMBEDDING_SCALE, NgramEncoder, learn_directions, project
from whet.classify.labels import MISSING
from whet.classify.risks import SoftCrossEntropy
from whet.classify.solver import Floats
from whet.classify.tsp import Fitted, TspLearner
from whet.finetune.settings import Settings
from whet.rounds import Progress
from whet.store import RunFolder

if TYPE_CHECKING:
    from whet.finetune.tokens import Tokens
    from whet.finetune.trainer import FineTuner, Tuned

#: Standard deviation of the scores beside frozen features of length 1. Of 0.1, 0.3 and 1 the best
#: on tuning data; benchmarks/tuned_students.py.
SCORE_SCALE = np.float32(0.1)
#: How the students are fine-tuned unless one says otherwise; the same benchmark's settings.
STUDENT = Settings(epochs=2, learning_rate=5e-5, tune="full", validation=None)


class TunedTspLearner(TspLearner):
    """TSP on frozen features and the scores of students that were fine-tuned without gold.

    Parameters
    ----------
    votes, pseudo, ledger, classes, groups, folds, seed, confidence
        As for :class:`whet.classify.tsp.TspLearner`.
    tuner : FineTuner
    run : RunFolder, optional
        Where tokens, features and checkpoints lie, so that a killed run goes on in mid-epoch.

    Attributes
    ----------
    tokens : Tokens
        Of the corpus; set by :meth:`encode`.

    Examples
    --------
    >>> from whet.classify.gold import GoldLedger
    >>> from whet.finetune.trainer import FineTuner
    >>> labels, rows = np.array([0, 1, 1, 0]), np.arange(4)
    >>> ledger = GoldLedger(labels, None, 0)
    >>> learner = TunedTspLearner(
    ...     labels[:, None], labels, ledger, np.arange(2), rows, 2, 0, tuner=FineTuner("m"))
    >>> learner.half.tolist()
    [0, 1, 0, 1]
    """

    tokens: Tokens

    def __init__(
        self,
        *arguments: Any,  # noqa: ANN401
        tuner: FineTuner,
        run: RunFolder | None = None,
    ) -> None:
        super().__init__(*arguments)
        self.tuner, self.run = tuner, run
        self.progress: Progress | None = None
        self.half = self.groups % 2

    def encode(self, texts: list[str]) -> None:
        """Set the features: computed once a run, and found again by a resumed one."""
        folder = None if self.run is None else self.run.path
        self.tokens = self.tuner.encode(texts, folder, self.progress)
        stored = None if self.run is None else self.run.load_features()
        if stored is not None:
            self.features = stored
            return
        ngrams = NgramEncoder().fit_transform(texts)
        states = sparse.csr_array(EMBEDDING_SCALE * self.tuner.embed(self.tokens))
        frozen = sparse.csr_array(sparse.hstack([ngrams, states], format="csr", dtype=np.float32))
        dense = project(frozen, learn_directions(frozen, self.groups))
        self.features = np.hstack([dense, SCORE_SCALE * self._scores()])
        if self.run is not None:
            self.run.save_features(self.features, {})

    def tuned(self, fitted: Fitted) -> Tuned:
        """Fine-tune a model for new texts on the pooled probabilities and the gold labels."""
        target, weight = self.targets(fitted)
        rows = np.arange(len(target))
        return self._fit(rows, SoftCrossEntropy(target, weight), 2)

    def _scores(self) -> Floats:
        """Return scores of shape (n, K), each half's by the student of the other half."""
        k = len(self.classes)
        counts = np.stack([(self.votes == code).sum(axis=1) for code in range(k)], axis=1)
        answered = (self.votes != MISSING).any(axis=1)
        scores = np.empty((len(counts), k), dtype=np.float32)
        for part in (0, 1):
            rows = np.flatnonzero((self.half != part) & answered)
            target = counts[rows] / counts[rows].sum(axis=1, keepdims=True)
            student = self._fit(rows, SoftCrossEntropy(target, np.ones(len(rows))), part)
            held_out = np.flatnonzero(self.half == part)
            found = student.logits(self.tokens, held_out)
            # Two models: each half has an origin and a unit of its own.
            found -= found.mean(axis=1, keepdims=True)
            found -= found.mean(axis=0)
            scores[held_out] = found / (found.std() + np.float32(1e-6))
        return scores

    def _fit(self, rows: NDArray[np.int64], loss: SoftCrossEntropy, number: int) -> Tuned:
        checkpoint: Path | None = None
        if self.run is not None:
            checkpoint = self.run.path / f"checkpoint-{number:02d}.safetensors"
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        return self.tuner.fit(
            self.tokens,
            rows,
            np.arange(len(rows)),
            loss,
            seed=seed,
            checkpoint=checkpoint,
            progress=self.progress,
        )
