"""LabelRefiner: texts, an annotator's labels and a few gold labels in; better labels out."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterable
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from whet import estimates
from whet.classify import model_folder
from whet.classify.account import GUARDS, Proposal, give_account, reasons
from whet.classify.classifier import METHODS as RISKS
from whet.classify.classifier import linear_probabilities
from whet.classify.features import (
    BuiltinEncoder,
    Encoder,
    Features,
    check_features,
    encoder_from_state,
    fit_features,
    make_encoder,
)
from whet.classify.gold import GoldLedger
from whet.classify.inputs import Inputs, annotator_names, check_confidence, check_inputs
from whet.classify.labels import MISSING, Codes, class_array
from whet.classify.learner import RiskLearner, relabel_all
from whet.classify.risks import FloatArray
from whet.classify.tsp import PURPOSE, Fitted, TspLearner, explain, margin_rule, proposals
from whet.classify.tuned import (
    FILE,
    PREFIX,
    TunedLearner,
    load_tuned,
    save_tuned,
    tuned_folder,
    tuned_probabilities,
)
from whet.corpus import check_texts
from whet.errors import WhetError, WhetWarning, did_you_mean
from whet.rounds import Outcome, Progress, Rule, run_rounds, split
from whet.store import RunFolder

if TYPE_CHECKING:
    from whet.classify.reward import RewardFunction
    from whet.finetune.settings import Settings
    from whet.finetune.trainer import FineTuner

#: The default, and the methods that minimise a risk of the pseudo-labels.
METHODS = ("tsp", *RISKS)
#: Where theta and the prior come from; see :mod:`whet.classify.priors`.
THETA_MODES = ("gold", "oracle", "released")


class LabelRefiner(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Refine an annotator's class labels in rounds, and say how good the result is.

    Parameters
    ----------
    method : {"tsp", "silr", "uu", "pn"}
        ``tsp``: two students and the annotator, pooled on the gold rows (:mod:`whet.classify.
        tsp`). The others fit a classifier to the pseudo-labels under a risk and relabel all rows:
        robust UU (Asano et al., NeurIPS 2025), unbiased UU (Lu et al., ICLR 2019), or the labels
        taken for the truth.
    encoder : str or encoder
        ``"tfidf"`` (nothing is downloaded), ``"embed:<folder or hub id>"``, ``"auto"`` (n-grams,
        and beside them the embeddings of a MiniLM where one is installed), ``"auto:<folder or hub
        id>"``, or an object with ``fit`` and ``transform``. ``"hf:<folder or hub id>"`` fine-tunes
        that model: with ``tsp`` two students on the annotator's labels, whose scores stand beside
        frozen features, and a model for new texts; with the other methods a model in each round.
    theta : {"gold", "oracle", "released"}
        Class ratios of the pseudo-labelled sets: estimated from the gold labels; from the truth
        of every row (experiments); or as the released code of SILR does it, defects included.
        ``tsp`` knows ``"gold"`` only.
    rounds : int, optional
        Rounds of fit, propose, decide, relabel; at least 1. None means 2 for ``tsp``, 1 for a
        fine-tuned model and 5 for the others, as the paper of SILR has.
    folds : int, optional
        0 fits on all rows and relabels all rows, as SILR is published; K >= 2 scores each row by
        a classifier that was not fitted on it. None means 5 for ``tsp``, which needs folds, and 0
        for the others.
    gold_budget : int
        At most this many gold rows are used, a random sample of those given.
    guard : {"safe", "mild", "off"}
        Keep the annotator's labels unless the refined ones are better on the gold rows
        (``safe``; ``tsp`` changes fewer labels the weaker that evidence is), only if they are
        worse (``mild``), or never (``off``, as published).
    random_state : int, RandomState or None
        Seed of folds and samples.
    finetune : Settings, optional
        How a model named ``"hf:..."`` is fine-tuned; see :class:`whet.finetune.settings.Settings`.
        None takes ``Settings()``, and with ``tsp`` ``whet.classify.tuned_tsp.STUDENT``.

    Attributes
    ----------
    classes_ : array of shape (K,)
        Distinct pseudo-labels, sorted.
    theta_ : float64 array of shape (K, K)
        P(y = ``classes_[j]`` | annotator says ``classes_[i]``).
    theta_interval_ : float64 array of shape (2, K, K)
        Ends of theta's 95 % interval.
    prior_ : float64 array of shape (K,)
        P(y = ``classes_[j]``).
    history_ : list of dict
        A record a round: theta with interval, prior, labels changed, accuracy with interval.
    estimate_ : dict of str to Estimate
        Accuracies ``annotator``, ``classifier``, ``filled`` and ``refined``, and ``gain``; see
        :class:`whet.classify.account.Account`. With ``tsp`` also ``new texts``: of the students
        without the annotator's label, which new texts lack; not with a fine-tuned model, which
        learns from labels that the gold rows had a part in. Empty without gold labels.
    labels_ : array of shape (n,)
        The refined labels; a gold row has its gold label.
    proba_ : float64 array of shape (n, K)
        The classifier's probabilities for the corpus (not calibrated).
    changed_ : bool array of shape (n,)
    pseudo_labels_ : list, length n
        The annotator's labels, None where it abstained; of several annotators the most frequent.
    suspicion_ : float64 array of shape (n,)
        Probability of the best class minus that of the annotator's label: which labels to look
        at first. 0 where they agree, for gold rows, and where the annotator abstained.
    reason_ : list of str
        Why each label is what it is.
    kept_annotator_ : bool
        Whether the guard kept the annotator's labels.
    margin_ : float or None
        By how much a new label had to be more probable than the annotator's; None where the
        annotator's labels are kept, 0 for a method other than ``tsp``.
    verdict_ : str
        One sentence: better by how much, or kept and why.
    gold_ : dict
        Gold rows given and kept, every use made of them, and the number of checked labels.
    class_counts_ : list of dict
        Labels of each class, ``annotator`` before and ``refined`` after.
    label_proba_ : float64 array of shape (n,)
        Probability of each refined label; 1 where it is a gold label.
    halted_ : str or None
        Why the rounds ended early.
    warnings_ : list of str
        What was warned of: few gold rows, a class that all but disappears.
    n_iter_ : int
        Rounds that were run.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> truth = rng.integers(0, 2, 400)
    >>> texts = [("goal match win team" if y else "bank stock price fund") + f" {i}"
    ...          for i, y in enumerate(truth)]
    >>> pseudo = np.where(rng.random(400) < 0.75, truth, 1 - truth)
    >>> gold = [int(y) if i < 50 else None for i, y in enumerate(truth)]
    >>> refiner = LabelRefiner(rounds=1, random_state=0)
    >>> refined = refiner.fit_refine(texts, pseudo, gold_labels=gold)
    >>> bool((refined == truth).mean() > (pseudo == truth).mean())
    True
    >>> refiner.predict(["the team and the match"]).tolist()
    [1]
    """

    def __init__(
        self,
        method: str = "tsp",
        *,
        encoder: str | Encoder = "tfidf",
        theta: str = "gold",
        rounds: int | None = None,
        folds: int | None = None,
        gold_budget: int = 100,
        guard: str = "safe",
        random_state: Any = 0,  # noqa: ANN401
        finetune: Settings | None = None,
    ) -> None:
        self.method = method
        self.encoder = encoder
        self.theta = theta
        self.rounds = rounds
        self.folds = folds
        self.gold_budget = gold_budget
        self.guard = guard
        self.random_state = random_state
        self.finetune = finetune

    def fit(
        self,
        texts: Iterable[str],
        pseudo_labels: Iterable[Any],
        gold_labels: Iterable[Any] | None = None,
    ) -> Self:
        """Run :meth:`fit_refine` and return the refiner."""
        self.fit_refine(texts, pseudo_labels, gold_labels)
        return self

    def fit_refine(
        self,
        texts: Iterable[str],
        pseudo_labels: Iterable[Any],
        gold_labels: Iterable[Any] | None = None,
        *,
        checked_labels: Iterable[Any] | None = None,
        confidence: Any = None,  # noqa: ANN401
        run: RunFolder | None = None,
        progress: Progress | None = None,
    ) -> NDArray[Any]:
        """Refine the labels of a corpus.

        Parameters
        ----------
        texts : iterable of str, length n
            Texts that occur more than once keep their own rows.
        pseudo_labels : iterable of str, int, bool or None, length n; or a table
            The annotator's labels; None, NaN and "" mean that it abstained. Several annotators
            give a table (dataframe, dict of columns, or 2-d array) with a column each.
        gold_labels : iterable, length n, optional
            True labels where they are known, for a random sample of rows; None elsewhere.
        checked_labels : iterable, length n, optional
            True labels of rows that are no random sample, such as the most doubtful ones; None
            elsewhere. They stand in the result and enter nothing else: no training, no estimate.
        confidence : array of shape (n,) or (n, m), optional
            The annotators' own confidence in each label, on any scale; ``tsp`` alone uses it.
        run : RunFolder, optional
            Where rounds are stored and found again.
        progress : callable, optional
            Called with (stage, done, total).

        Returns
        -------
        array of shape (n,)
            ``labels_``.

        Raises
        ------
        WhetError
            If the input cannot be refined; nothing has been written then.
        """
        began = time.perf_counter()
        self._check_parameters()
        self.warnings_: list[str] = []
        for fitted in ("tuned_", "coef_"):  # of a fit before, which may have had the other kind
            if hasattr(self, fitted):
                delattr(self, fitted)
        seed = _seed(self.random_state)
        inputs = check_inputs(
            texts,
            pseudo_labels,
            gold_labels,
            gold_classes=self.method == "tsp",
            checked_labels=checked_labels,
        )
        texts, pseudo, self.classes_ = inputs.texts, inputs.pseudo, inputs.classes
        ledger = self._open_ledger(inputs.gold, seed)
        groups = _text_numbers(texts, seed)
        names = annotator_names(pseudo_labels)
        learner = self._learner(inputs, confidence, names, ledger, groups, seed, run)
        learner.start_round(pseudo, 1)  # refuses a hopeless annotator before any work is done
        folds = 0 if self.method == "tsp" else (self.folds or 0)  # tsp solves all folds at once
        parts = split(len(texts), folds, groups, seed)
        if self._tunes():
            learner.progress = progress
            if run is not None:
                run.open()
            learner.encode(texts)
        else:
            learner.features = self._encode(texts, run, progress)
        encoded = time.perf_counter()
        outcome = run_rounds(
            pseudo,
            learner,
            self._rule(pseudo),
            n_rounds=self._n_rounds(),
            parts=parts,
            archive=run,
            progress=progress,
        )
        self.n_iter_ = len(outcome.rounds)
        model = outcome.model
        if model is None:  # cross-fitted, or the last round came from the run folder
            model = learner.fit(np.arange(len(texts)), outcome.before_last, self.n_iter_)
        if self._tunes():
            self.tuned_ = learner.tuned(model)
        else:
            coef, self.intercept_ = learner.classifier(model)
            self.coef_ = coef.astype(np.float32)
        self._conclude(pseudo, inputs.checked, ledger, outcome, model)
        self.seconds_ = {
            "encode": round(encoded - began, 3),
            "rounds": round(time.perf_counter() - encoded, 3),
        }
        return self.labels_

    def predict_proba(self, texts: Iterable[str]) -> FloatArray:
        """Return the classifier's probabilities for new texts, shape (n, K), rows sum to 1.

        They rank texts well but are not calibrated.
        """
        check_is_fitted(self, ["coef_", "tuned_"], all_or_any=any)
        checked = check_texts(texts)
        if not checked:
            return np.empty((0, len(self.classes_)))
        if hasattr(self, "tuned_"):
            return tuned_probabilities(self.tuned_, self.tuned_.encode(checked))
        features = self.encoder_.transform(checked)
        if not isinstance(self.encoder_, BuiltinEncoder):
            features = check_features(features, len(checked))
        if features.shape[1] != self.coef_.shape[1]:
            raise WhetError(
                f"the classifier's coef has shape {self.coef_.shape} and the encoder gives "
                f"{features.shape[1]} features: the model folder is damaged; restore it"
            )
        return linear_probabilities(features, self.coef_, self.intercept_)

    def predict(self, texts: Iterable[str]) -> NDArray[Any]:
        """Return ``classes_[argmax predict_proba]`` for new texts, shape (n,)."""
        best = self.predict_proba(texts).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def decision_function(self, texts: Iterable[str]) -> FloatArray:
        """Return the scores behind :meth:`predict_proba`.

        Returns
        -------
        float64 array of shape (n,) for two classes, else (n, K)
            Log-odds of ``classes_[1]``, above 0 where it is predicted; of K classes the
            logarithms of their probabilities. Between -708 and 708; NaN where the model gives NaN.
        """
        probability = self.predict_proba(texts)
        logs = np.log(np.maximum(probability, np.finfo(np.float64).tiny))
        # A softmax in float64: the difference is the model's logit to the last digits, since a
        # small probability is as precise as a large one.
        scores: FloatArray = logs[:, 1] - logs[:, 0] if logs.shape[1] == 2 else logs
        return scores

    def as_reward_func(self, target: Any = None) -> RewardFunction:  # noqa: ANN401
        """Return the classifier as a reward for GRPOTrainer and RLOOTrainer of TRL.

        Parameters
        ----------
        target : label, optional
            The class to reward; of two classes the second unless named.

        Returns
        -------
        RewardFunction
            Log-odds of the target for texts made of prompt and completion; see
            :mod:`whet.classify.reward`.

        Raises
        ------
        WhetError
            If there is no such class, or there are more than two and none is named.
        """
        from whet.classify.reward import RewardFunction

        check_is_fitted(self, ["coef_", "tuned_"], all_or_any=any)
        return RewardFunction(self, target)

    def save_pretrained(self, folder: Any) -> None:  # noqa: ANN401
        """Write the classifier as safetensors and JSON, with a card.

        Parameters
        ----------
        folder : path
            Created if absent.

        Raises
        ------
        WhetError
            If the encoder is an object of your own, which whet cannot save.
        """
        check_is_fitted(self, ["coef_", "tuned_"], all_or_any=any)
        if hasattr(self, "tuned_"):
            classes, parameters = self.classes_.tolist(), self.get_params(deep=False)
            save_tuned(Path(folder), self.tuned_, classes, parameters, self._about())
            return
        if not isinstance(self.encoder_, BuiltinEncoder):
            raise WhetError(
                f"the encoder {type(self.encoder_).__name__} is not one of whet's and cannot be "
                "saved: use 'tfidf' or 'embed:...', or keep coef_ and intercept_ yourself"
            )
        config = {
            "classes": self.classes_.tolist(),
            "encoder": self.encoder_.config(),
            "refiner": {
                key: value
                for key, value in self.get_params().items()
                if isinstance(value, str | int) and key != "encoder"
            },
        }
        card = {
            "classes": self.classes_.tolist(),
            "method": self.method,
            "rounds": getattr(self, "n_iter_", self.rounds),
            "verdict": getattr(self, "verdict_", ""),
            "estimate": {k: str(v) for k, v in getattr(self, "estimate_", {}).items()},
            "rows": len(getattr(self, "labels_", ())),
            "gold": getattr(self, "gold_", None),
        }
        arrays = {**self.encoder_.arrays(), "coef": self.coef_, "intercept": self.intercept_}
        (Path(folder) / FILE).unlink(missing_ok=True)  # of a fine-tuned one that was here
        model_folder.save(folder, config, arrays, card)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        token: str | None = None,
        revision: str | None = None,
    ) -> str:
        """Upload what :meth:`save_pretrained` writes to a hub, in one commit.

        Parameters
        ----------
        repo_id : str
            ``NAME`` or ``OWNER/NAME``; created if it does not exist.
        private : bool
            Whether only the owner may see it. A repository that is public already is refused.
        token : str, optional
            None takes that of the environment (``HF_TOKEN``), or of ``hf auth login``.
        revision : str, optional
            Branch; created if it does not exist.

        Returns
        -------
        str
            Address of the repository.

        Raises
        ------
        WhetError
            If the classifier cannot be saved, or the hub does not take it.
        """
        from whet.hub import upload

        with tempfile.TemporaryDirectory() as name:
            self.save_pretrained(name)
            return upload(Path(name), repo_id, private=private, token=token, revision=revision)

    @classmethod
    def from_pretrained(cls, folder: Any, *, trust_remote_code: bool = False) -> Self:  # noqa: ANN401
        """Load what :meth:`save_pretrained` wrote; only JSON and safetensors are read.

        Parameters
        ----------
        folder : path
            Model folder, or the run folder that holds it.
        trust_remote_code : bool
            Run code that a fine-tuned model brings; never implied by the folder's own settings.

        Raises
        ------
        WhetError
            If a file is missing, damaged, or of the wrong shape.
        """
        known = cls().get_params()
        if tuned := tuned_folder(Path(folder)):
            model, classes, parameters = load_tuned(tuned, trust_remote_code)
            refiner = cls(**{k: v for k, v in parameters.items() if k in known})
            refiner.classes_, refiner.tuned_ = class_array(classes), model
            return refiner
        config, arrays = model_folder.load(folder)
        refiner = cls(**{k: v for k, v in config["refiner"].items() if k in known})
        refiner.classes_ = class_array(config["classes"])
        refiner.encoder_ = encoder_from_state(config["encoder"], arrays)
        refiner.encoder = refiner.encoder_.spec
        refiner.coef_, refiner.intercept_ = arrays["coef"], arrays["intercept"]
        return refiner

    def _about(self) -> str:
        """Return what the card of a fine-tuned classifier says of its labels."""
        said = [f"Labels: of an annotator, refined by the method `{self.method}`."]
        if hasattr(self, "gold_"):
            purposes = dict.fromkeys(use["purpose"] for use in self.gold_["uses"])
            said.append(
                f"Texts: {len(self.labels_):,}. Rounds: {self.n_iter_}. "
                f"Gold rows: {self.gold_['kept']}, used for:"
            )
            said += [f"- {purpose}" for purpose in purposes]
            said.append(self.verdict_)
            said += [f"{name}: {value}" for name, value in self.estimate_.items()]
        return "\n\n".join(said)

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        return tags

    # --- checks -------------------------------------------------------------------------------

    def _check_parameters(self) -> None:
        for name, value, valid in (
            ("method", self.method, METHODS),
            ("theta", self.theta, THETA_MODES),
            ("guard", self.guard, GUARDS),
        ):
            if value not in valid:
                raise WhetError(f"unknown {name} {value!r}{did_you_mean(str(value), valid)}")
        for name, number, least in (
            ("rounds", self._n_rounds(), 1),
            ("gold_budget", self.gold_budget, 1),
            ("folds", 0 if self.folds is None else self.folds, 0),
        ):
            if not isinstance(number, int | np.integer) or number < least:
                raise WhetError(f"{name} = {number!r}: give a whole number of at least {least}")
        if self.finetune is not None and not self._tunes():
            raise WhetError(
                f"finetune is given, and encoder = {self.encoder!r} is not fine-tuned: name a "
                "model with 'hf:...', or leave it out"
            )
        if self.method == "tsp" and self.theta != "gold":
            raise WhetError(
                f"theta={self.theta!r} is for the methods {', '.join(RISKS)}, and method='tsp' has "
                "no theta to set: name one of those methods, or leave theta at 'gold'"
            )
        if self.method == "tsp" and self.folds in (0, 1):
            raise WhetError(
                f"folds = {self.folds}: method='tsp' scores each row by a student that did not "
                "see it; use 2 or more"
            )

    def _n_rounds(self) -> Any:  # noqa: ANN401 - checked by the caller
        if self.rounds is not None:
            return self.rounds
        if self.method == "tsp":
            return 2
        return 1 if self._tunes() else 5

    def _tunes(self) -> bool:
        return isinstance(self.encoder, str) and self.encoder.startswith(PREFIX)

    def _open_ledger(self, gold: Codes, seed: int) -> GoldLedger:
        """Put the gold labels behind their ledger; refuse or warn where there are too few."""
        missing = int((gold == MISSING).sum())
        if self.theta != "gold" and missing:
            raise WhetError(
                f"theta={self.theta!r} needs the gold label of every row, and {missing} of "
                f"{len(gold)} are missing: use theta='gold', which works from a sample"
            )
        ledger = GoldLedger(gold, self.gold_budget if self.theta == "gold" else None, seed)
        self._warn_about_gold(ledger, gold)
        return ledger

    def _warn(self, message: str) -> None:
        self.warnings_.append(message)
        warnings.warn(message, WhetWarning, stacklevel=4)

    def _warn_about_gold(self, ledger: GoldLedger, gold: Codes) -> None:
        if not len(ledger) and self.method not in ("tsp", "pn"):
            raise WhetError(
                f"there are no gold labels, and method={self.method!r} estimates theta from them: "
                "label about 50 random rows by hand and give them as gold labels"
            )
        if ledger.given > len(ledger):
            self._warn(
                f"{ledger.given} gold labels are given and a random {len(ledger)} are used, the "
                "others only keep their label: raise gold_budget to use more"
            )
        if not len(ledger):
            self._warn("there are no gold labels: nothing can be estimated, and the guard is blind")
        elif len({*gold[gold != MISSING].tolist()}) == 1:
            self._warn(
                f"all {len(ledger)} gold rows are {self.classes_.tolist()[gold.max()]!r}: they "
                "cannot show a gain for another class; are they a random sample of all rows?"
            )
        elif len(ledger) < 10:
            self._warn(
                f"only {len(ledger)} gold rows: the intervals are wide and the guard is nearly "
                "blind; label about 50 random rows"
            )

    # --- the work -----------------------------------------------------------------------------

    def _encode(
        self, texts: list[str], run: RunFolder | None, progress: Progress | None
    ) -> Features:
        """Features of the corpus: computed once a run, and found again by a resumed one."""
        self.encoder_ = make_encoder(self.encoder)
        if run is not None:
            run.open()
        built_in = isinstance(self.encoder_, BuiltinEncoder)
        stored = run.load_features() if run is not None and built_in else None
        if stored is not None and run is not None and isinstance(self.encoder_, BuiltinEncoder):
            self.encoder_ = encoder_from_state(self.encoder_.config(), run.load_encoder())
            return stored
        features = fit_features(
            self.encoder_, texts, None if progress is None else partial(progress, "encode")
        )
        if run is not None:
            learned = self.encoder_.arrays() if isinstance(self.encoder_, BuiltinEncoder) else {}
            run.save_features(features, learned)
        return features

    def _learner(
        self,
        inputs: Inputs,
        confidence: Any,  # noqa: ANN401
        names: list[Any] | None,
        ledger: GoldLedger,
        groups: NDArray[np.int64],
        seed: int,
        run: RunFolder | None,
    ) -> Any:  # noqa: ANN401 - four learners, told apart by method and encoder
        sure = check_confidence(confidence, inputs.votes, names)
        if self.method == "tsp":
            # Fewer distinct texts than folds: each text is a fold of its own.
            folds = min(5, int(groups.max()) + 1) if self.folds is None else self.folds
            data = (inputs.votes, inputs.pseudo, ledger, self.classes_, groups, folds, seed, sure)
            if not self._tunes():
                return TspLearner(*data)
            from whet.classify.tuned_tsp import STUDENT, TunedTspLearner

            return TunedTspLearner(*data, tuner=self._tuner(STUDENT), run=run)
        if inputs.votes.shape[1] > 1:
            raise WhetError(
                f"there are {inputs.votes.shape[1]} annotators, and method={self.method!r} learns "
                "from one: use method='tsp', or give one column of labels"
            )
        if sure is not None:
            raise WhetError(
                f"confidence is given, and method={self.method!r} does not use it: use "
                "method='tsp', or leave it out"
            )
        common = (self.method, self.theta, self.gold_budget, ledger, self.classes_, seed)
        if not self._tunes():
            return RiskLearner(*common)
        return TunedLearner(*common, self._tuner(None), None if run is None else run.path)

    def _tuner(self, settings: Settings | None) -> FineTuner:
        from whet.finetune.trainer import FineTuner

        return FineTuner(str(self.encoder).removeprefix(PREFIX), self.finetune or settings)

    def _purpose(self) -> str:
        return PURPOSE if self.method == "tsp" else f"theta and prior ({self.theta})"

    def _rule(self, pseudo: Codes) -> Rule:
        return margin_rule(pseudo) if self.method == "tsp" else relabel_all

    def _conclude(
        self,
        pseudo: Codes,
        checked: Codes,
        ledger: GoldLedger,
        outcome: Outcome,
        model: Any,  # noqa: ANN401
    ) -> None:
        """Judge the rounds on the gold rows and set the fitted attributes."""
        self.halted_ = outcome.halted
        self.history_ = [dict(stored.record) for stored in outcome.rounds]
        self.theta_, self.theta_interval_, self.prior_ = _first_ratios(self.history_[0])
        gold = ledger.use("accuracy estimates and guard")
        rows = ledger.rows
        for record, stored in zip(self.history_, outcome.rounds, strict=True):
            if record.get("gold_rows"):
                ledger.note(self._purpose(), record["round"])
            if len(rows):
                right = stored.labels[rows] == gold[rows]
                record["accuracy"] = estimates.share(right, whole=ledger.whole).as_dict()
        last = outcome.rounds[-1]
        if self.method == "tsp":
            proposed = proposals(pseudo, last.proposals, self.guard)
        else:
            proposed = [Proposal(last.labels)]
        account = give_account(
            pseudo,
            proposed,
            gold,
            self.guard,
            whole=ledger.whole,
            probability=last.proposals if self.method == "tsp" else None,
        )
        self.estimate_, self.verdict_ = account.estimate, account.verdict
        self.kept_annotator_ = account.kept_annotator
        self.margin_ = None if account.kept_annotator else account.proposal.margin
        if isinstance(model, Fitted) and len(rows) and not self._tunes():
            right = model.without_annotator == gold[rows]
            self.estimate_ = self.estimate_ | {"new texts": estimates.share(right)}
        self.proba_ = last.proposals
        refined = account.labels
        from_gold = np.zeros(len(pseudo), dtype=bool)
        if self.theta == "gold" and len(rows):  # the other modes are experiments on the rest
            given = ledger.all_given()
            from_gold = given != MISSING
            refined[from_gold] = given[from_gold]
        settled = checked != MISSING
        refined[settled] = checked[settled]  # judged by nothing: nobody drew these rows
        known = from_gold | settled
        self.labels_ = self.classes_[refined]
        self.changed_ = refined != pseudo
        self.pseudo_labels_ = [
            None if code == MISSING else label
            for code, label in zip(pseudo.tolist(), self.classes_[pseudo].tolist(), strict=True)
        ]
        lead = self.proba_.max(axis=1) - self.proba_[np.arange(len(pseudo)), pseudo]
        self.suspicion_ = np.where(known | (pseudo == MISSING), 0.0, lead)
        self.label_proba_ = np.where(known, 1.0, self.proba_[np.arange(len(refined)), refined])
        evidence = explain(model, pseudo, self.proba_) if isinstance(model, Fitted) else None
        self.reason_ = reasons(
            pseudo,
            account.proposal.labels,
            refined,
            self.proba_,
            {"gold label": from_gold, "checked label": settled},
            self.classes_,
            evidence,
        )
        self.gold_ = ledger.report() | {"checked": int(settled.sum())}
        self.class_counts_ = self._count_classes(pseudo, refined)

    def _count_classes(self, pseudo: Codes, refined: Codes) -> list[dict[str, int]]:
        """Labels of each class before and after; warns where a class all but disappears."""
        k = len(self.classes_)
        before = np.bincount(pseudo[pseudo != MISSING], minlength=k).tolist()
        after = np.bincount(refined, minlength=k).tolist()
        for name, was, now in zip(self.classes_.tolist(), before, after, strict=True):
            if was >= 10 and 4 * now < was:
                self._warn(
                    f"{was} labels were {name!r} and {now} of the refined ones are: accuracy says "
                    "little about a rare class; look at these rows before you use the labels"
                )
        return [{"annotator": was, "refined": now} for was, now in zip(before, after, strict=True)]


def _first_ratios(record: dict[str, Any]) -> tuple[FloatArray | None, ...]:
    """theta, its interval and the prior of the annotator's labels, None without gold rows."""
    if "theta" not in record:
        return None, None, None
    interval = np.array([record["theta_low"], record["theta_high"]])
    return np.array(record["theta"]), interval, np.array(record["prior"])


def _seed(random_state: Any) -> int:  # noqa: ANN401
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


def _text_numbers(texts: list[str], seed: int) -> NDArray[np.int64]:
    """Return the number of each text in a random order of the distinct texts."""
    salt = seed.to_bytes(8, "big", signed=True)
    keys = {text: blake2b(text.encode(), digest_size=8, salt=salt).digest() for text in texts}
    numbers = {text: number for number, text in enumerate(sorted(keys, key=keys.__getitem__))}
    return np.fromiter((numbers[text] for text in texts), dtype=np.int64, count=len(texts))
