"""The published methods with the classifier that the paper has: a fine-tuned transformer."""

from __future__ import annotations

from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from whet.classify.classifier import pseudo_label_risk
from whet.classify.gold import GoldLedger
from whet.classify.labels import MISSING, Codes
from whet.classify.learner import RiskLearner
from whet.classify.model_folder import check_classes
from whet.classify.priors import set_shares
from whet.classify.risks import FloatArray
from whet.errors import WhetError
from whet.rounds import Progress
from whet.store import read_json, write_json

if TYPE_CHECKING:
    from whet.finetune.settings import Settings
    from whet.finetune.tokens import Tokens
    from whet.finetune.trainer import FineTuner, Tuned

#: What a folder holds beside the files of transformers and ``finetune.json``; written last.
FILE = "refiner.json"
FORMAT, FORMAT_VERSION = "whet-tuned-classifier", 1
#: How a model that is to be fine-tuned is named: ``hf:FOLDER`` or ``hf:HUB_ID``.
PREFIX = "hf:"


class TunedLearner(RiskLearner):
    """Fine-tunes a fresh model under a pseudo-label risk in each fit.

    Parameters
    ----------
    method, mode, budget, ledger, classes, seed
        As for :class:`whet.classify.learner.RiskLearner`.
    tuner : FineTuner
    folder : Path, optional
        Where tokens and checkpoints lie, so that a killed run goes on in mid-epoch.

    Attributes
    ----------
    tokens : Tokens
        Of the corpus; set by :meth:`encode`.

    Examples
    --------
    >>> import numpy as np
    >>> from whet.finetune.trainer import FineTuner
    >>> ledger = GoldLedger(np.array([0, 1, 1]), None, 0)
    >>> learner = TunedLearner("uu", "gold", 100, ledger, np.array([0, 1]), 0, FineTuner("m"))
    >>> learner.start_round(np.array([0, 1, 1]), 1)["gold_rows"]
    3
    """

    tokens: Tokens

    def __init__(
        self,
        method: str,
        mode: str,
        budget: int,
        ledger: GoldLedger,
        classes: NDArray[Any],
        seed: int,
        tuner: FineTuner,
        folder: Path | None = None,
    ) -> None:
        super().__init__(method, mode, budget, ledger, classes, seed)
        self.tuner, self.folder = tuner, folder
        self.progress: Progress | None = None

    def encode(self, texts: list[str]) -> None:
        """Cut the corpus into tokens, once a run."""
        self.tokens = self.tuner.encode(texts, self.folder, self.progress)

    def fit(self, rows: NDArray[np.int64], labels: Codes, number: int) -> Tuned:  # type: ignore[override]
        """Fine-tune on the labelled ones among ``rows``, from the model as it came."""
        ratios = self._estimate(labels, number)
        rows = rows[labels[rows] != MISSING]
        codes = labels[rows]
        risk = pseudo_label_risk(
            self.method,
            set_shares(codes, len(self.classes)),
            None if ratios is None else ratios.theta,
            None if ratios is None else ratios.prior,
        )
        self._drop_checkpoints(number)
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        return self.tuner.fit(
            self.tokens,
            rows,
            codes,
            risk,
            seed=seed,
            checkpoint=self._checkpoint(rows, number),
            progress=self.progress,
        )

    def propose(self, model: Tuned, rows: NDArray[np.int64]) -> FloatArray:
        """Return class probabilities of shape (len(rows), K)."""
        return tuned_probabilities(model, self.tokens, rows)

    def tuned(self, model: Tuned) -> Tuned:
        """Return the model for new texts: the last round's."""
        return model

    def _drop_checkpoints(self, number: int) -> None:
        """Remove those of earlier rounds: a stored round is not fitted again."""
        if self.folder is None or not self.tuner.processes.main:
            return
        for earlier in range(1, number):
            for file in self.folder.glob(f"checkpoint-{earlier:02d}-*.safetensors"):
                file.unlink(missing_ok=True)

    def _checkpoint(self, rows: NDArray[np.int64], number: int) -> Path | None:
        if self.folder is None:
            return None
        part = blake2b(rows.tobytes(), digest_size=4).hexdigest()
        return self.folder / f"checkpoint-{number:02d}-{part}.safetensors"


def tuned_probabilities(
    model: Tuned, tokens: Tokens, rows: NDArray[np.int64] | None = None
) -> FloatArray:
    """Return softmax scores of shape (n, K); not calibrated."""
    scores = model.logits(tokens, rows).astype(np.float64)
    probability: FloatArray = softmax(scores, axis=1)
    return probability


def save_tuned(
    folder: Path, model: Tuned, classes: list[Any], parameters: dict[str, Any], about: str
) -> None:
    """Write a folder that transformers loads too; what it does not hold goes to ``refiner.json``.

    Parameters
    ----------
    folder : Path
        Created if absent.
    model : Tuned
    classes : list
    parameters : dict
        Of the refiner.
    about : str
        A paragraph of the card.
    """
    if model.processes.main:
        (folder / FILE).unlink(missing_ok=True)
    model.save_pretrained(folder, classes=classes, about=about)
    known = {k: v for k, v in parameters.items() if isinstance(v, str | int)}
    settings: Settings | None = parameters["finetune"]
    if model.processes.main:
        write_json(
            folder / FILE,
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "classes": classes,
                "refiner": known,
                "finetune": None if settings is None else asdict(settings),
            },
        )


def tuned_folder(folder: Path) -> Path | None:
    """Return the folder of a fine-tuned refiner: this one, or the one in a run folder."""
    return next((p for p in (folder, folder / "model") if (p / FILE).is_file()), None)


def load_tuned(
    folder: Path, trust_remote_code: bool = False
) -> tuple[Tuned, list[Any], dict[str, Any]]:
    """Return the model, the classes and the refiner's parameters.

    Parameters
    ----------
    folder : Path
    trust_remote_code : bool
        Whether code that the folder brings may run; what its settings say of it does not count.

    Raises
    ------
    WhetError
        If a file is missing, damaged, or of another format.
    """
    from whet.finetune.settings import Settings
    from whet.finetune.trainer import Tuned

    about, file = read_json(folder / FILE), folder / FILE
    if about.get("format") != FORMAT or about.get("format_version") != FORMAT_VERSION:
        raise WhetError(
            f"{file} has format {about.get('format')!r} {about.get('format_version')!r}, this whet "
            f"reads {FORMAT!r} {FORMAT_VERSION}: use the whet version that wrote it"
        )
    classes, parameters = check_classes(about, file), about.get("refiner")
    settings = about.get("finetune")
    if not isinstance(parameters, dict) or not isinstance(settings, dict | None):
        raise WhetError(f"{file} lacks its settings: restore the folder")
    if settings is not None:
        settings = settings | {"trust_remote_code": trust_remote_code}
        parameters = parameters | {"finetune": Settings.from_dict(settings)}
    model = Tuned.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if model.network.n_classes != len(classes):
        raise WhetError(
            f"{file} names {len(classes)} classes and the model has {model.network.n_classes}: the "
            "folder is damaged; restore it"
        )
    return model, classes, parameters
