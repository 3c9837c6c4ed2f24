"""A trained judge: a sequence classifier that reads a question and two answers.

It reads the text of :func:`whet.ilr.llm_judge.pair_text`, and its one logit is for "accept the
change" (ILR, arXiv 2501.07886; the wording is ours). It is trained by
:class:`whet.finetune.trainer.FineTuner` on each comparison with either answer in first place.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import expit

from whet.classify.risks import SetCrossEntropy
from whet.errors import WhetError
from whet.estimates import Estimate, share
from whet.finetune.settings import Settings
from whet.finetune.tokens import CHARS_PER_TOKEN, Tokens
from whet.finetune.trainer import FineTuner, Tuned
from whet.hub import find_folder, fingerprint
from whet.ilr.comparisons import KINDS
from whet.ilr.feedback import Scores
from whet.ilr.halves import digest, halves
from whet.ilr.llm_judge import pair_text
from whet.rounds import Progress
from whet.store import read_json, write_json

#: One prompt in so many is held out, with all its comparisons, to measure the judge.
FOLDS = 10
#: As the authors train theirs, but without its early stopping, so that every row is trained on;
#: the presets have it.
EVALUATOR = Settings(
    tune="full",
    epochs=5,
    learning_rate=1e-6,
    batch_size=16,
    warmup=0.05,
    max_length=1024,
    validation=None,
)
FILE, FORMAT, FORMAT_VERSION = "evaluator.json", "whet-evaluator", 1
_CLASSES = ["reject", "accept"]


@dataclass(frozen=True)
class Report:
    """How good a judge is on comparisons that it was not trained on.

    Attributes
    ----------
    accuracy : Estimate
        Share of held-out comparisons in which the better answer wins, judged in both orders.
    by_kind : dict of str to Estimate
        The same for each kind.
    consistent : Estimate
        Share in which both orders name the same winner.
    trained, held_out : int
        Comparisons.
    too_long : int
        Of both, those whose text the model cannot read whole; they are left out.

    Notes
    -----
    The intervals take comparisons for independent. Those of one kind are of different rows; of all
    kinds together, two may be of one row.

    Examples
    --------
    >>> half = Estimate(0.5, 0.2, 0.8, 10)
    >>> Report(half, {}, half, trained=90, held_out=10, too_long=0).as_dict()["trained"]
    90
    """

    accuracy: Estimate
    by_kind: dict[str, Estimate]
    consistent: Estimate
    trained: int
    held_out: int
    too_long: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read what :meth:`as_dict` gave."""
        kinds = {kind: Estimate(**of_kind) for kind, of_kind in values["by_kind"].items()}
        two = {name: Estimate(**values[name]) for name in ("accuracy", "consistent")}
        return cls(**{**values, **two, "by_kind": kinds})


class Evaluator:
    """Compares answers with a fine-tuned classifier, through ``BothOrders``.

    Parameters
    ----------
    tuned : Tuned
        Two classes: reject, accept.
    report : Report, optional

    Examples
    --------
    >>> Evaluator.from_pretrained("no/folder")
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: no/folder/evaluator.json does not exist: name a folder that whet wrote
    """

    def __init__(self, tuned: Tuned, report: Report | None = None) -> None:
        self.tuned, self.report = tuned, report

    def accept(self, prompts: Sequence[Any], first: Sequence[Any], second: Sequence[Any]) -> Scores:
        """Return P(accept changing ``first`` to ``second``) for each prompt.

        Texts are scored in batches of about one length. A text that the model cannot read whole is
        a failure: cut, it would lack an answer.
        """
        texts = [pair_text(*pair) for pair in zip(prompts, first, second, strict=True)]
        network = self.tuned.network
        longest = min(network.settings.max_length, network.longest)
        tokens, whole = _encode(texts, network.tokenizer, longest)
        logits = self.tuned.logits(tokens, np.flatnonzero(whole)).astype(np.float64)
        values = np.full(len(texts), math.nan)
        values[whole] = expit(logits[:, 1] - logits[:, 0])
        why = f"more than the {longest:,} tokens that the evaluator reads"
        return Scores(values, dict.fromkeys(np.flatnonzero(~whole).tolist(), why))

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, device: str | None = None) -> Self:
        """Load what :func:`train_evaluator` wrote.

        Raises
        ------
        WhetError
            If the folder is none of these, unfinished, or damaged.
        """
        path = Path(folder) / FILE
        about = read_json(path)
        if (about.get("format"), about.get("format_version")) != (FORMAT, FORMAT_VERSION):
            raise WhetError(
                f"{path} has format {about.get('format')!r} {about.get('format_version')!r}, this "
                f"whet reads {FORMAT!r} {FORMAT_VERSION}: use the whet version that wrote it"
            )
        try:
            report = Report.from_dict(about["report"])
        except (KeyError, TypeError) as error:
            raise WhetError(f"{path} is damaged ({error}): restore it") from error
        return cls(Tuned.from_pretrained(folder, device=device), report)


def train_evaluator(
    pairs: pa.Table,
    model: str,
    out: Path,
    *,
    settings: Settings = EVALUATOR,
    device: str | None = None,
    progress: Progress | None = None,
) -> Evaluator:
    """Fine-tune a judge on comparisons, and measure it on those of held-out prompts.

    Parameters
    ----------
    pairs : pyarrow.Table
        From :func:`whet.ilr.comparisons.comparisons`: ``prompt``, ``better``, ``worse``,
        ``kind``. Each is trained in both orders.
    model : str
        Folder or hub id of a causal model or a sequence classifier.
    out : Path
        Folder of the evaluator, made if absent; ``evaluator.json`` is written last. A complete one
        of the same data, model and settings is loaded and not trained again; an unfinished one goes
        on from its last checkpoint.
    settings : Settings
        Of the fine-tuning. With ``validation``, that share of the prompts chooses the epoch, in
        both orders and with all their comparisons; those of the report are other ones.
    device : str, optional
    progress : callable, optional
        Called with ("step", steps done, steps in all).

    Returns
    -------
    Evaluator
        With its report.

    Raises
    ------
    WhetError
        If there are too few prompts or comparisons that fit into the model, or ``out`` holds an
        evaluator of other data, model or settings.
    """
    belongs = _belongs(pairs, model, settings)
    if (out / FILE).exists():
        if read_json(out / FILE).get("belongs") != belongs:
            raise WhetError(
                f"{out} holds an evaluator of other comparisons, model or settings: name another "
                "folder"
            )
        return Evaluator.from_pretrained(out, device=device)
    prompts = {digest(prompt) for prompt in pairs["prompt"].to_pylist()}
    if len(prompts) < FOLDS:
        raise WhetError(
            f"there are comparisons of {len(prompts):,} prompts: an evaluator needs {FOLDS}, one "
            "of which is held out to measure it; give more gold demonstrations"
        )
    train, held = halves(pairs["prompt"].to_pylist(), folds=FOLDS, seed=settings.seed)[0]
    tuner = FineTuner(model, settings, device=device)
    network = tuner.network(2)
    chosen = pairs.take(pa.array(train))
    texts = _both_orders(chosen)
    tokens, whole = _encode(texts, tuner.tokenizer, min(settings.max_length, network.longest))
    whole &= np.roll(whole, len(train))  # both orders of a comparison, or neither
    if whole.sum() < 4:
        raise WhetError(
            f"{int(whole.sum()) // 2} comparisons fit into the {network.longest:,} tokens that the "
            f"model reads (max_length = {settings.max_length}): at least 2 are needed"
        )
    accept = np.repeat([1, 0], len(train))  # the order of _both_orders
    rows = np.flatnonzero(whole)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / f"checkpoint-{belongs[:16]}.safetensors"
    loss = SetCrossEntropy(np.eye(2))
    asked = [digest(prompt) for prompt in chosen["prompt"].to_pylist()]
    groups = np.unique(asked, return_inverse=True)[1]
    tuned = tuner.fit(
        tokens,
        rows,
        accept[rows],
        loss,
        groups=np.tile(groups, 2)[rows],
        checkpoint=checkpoint,
        progress=progress,
    )
    judge = Evaluator(tuned)
    dropped = int((~whole).sum()) // 2
    judge.report = _measure(judge, pairs.take(pa.array(held)), len(train) - dropped, dropped)
    tuned.save_pretrained(out, classes=_CLASSES, about="It compares two answers to a question.")
    write_json(
        out / FILE,
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "belongs": belongs,
            "report": judge.report.as_dict(),
        },
    )
    for left in out.glob("checkpoint-*.safetensors"):  # also of a start with other settings
        left.unlink()
    return judge


def _both_orders(pairs: pa.Table) -> list[str]:
    """Return the texts with the worse answer in first place, then those with the better one."""
    prompts, better, worse = (pairs[c].to_pylist() for c in ("prompt", "better", "worse"))
    forth = [pair_text(*pair) for pair in zip(prompts, worse, better, strict=True)]
    return forth + [pair_text(*pair) for pair in zip(prompts, better, worse, strict=True)]


def _encode(
    texts: Sequence[str],
    tokenizer: Any,  # noqa: ANN401
    longest: int,
) -> tuple[Tokens, NDArray[np.bool_]]:
    """Return tokens, and which texts are whole; of the others the end is cut off."""
    if tokenizer is None:
        raise WhetError("the model has no tokenizer: name a folder that has its files")
    tokens = Tokens.encode(texts, tokenizer, longest + 1)
    fits = np.array([len(text) <= CHARS_PER_TOKEN * longest for text in texts], dtype=bool)
    return tokens, fits & (tokens.lengths <= longest)


def _measure(judge: Evaluator, pairs: pa.Table, trained: int, dropped: int) -> Report:
    prompts, better, worse = (pairs[c].to_pylist() for c in ("prompt", "better", "worse"))
    n = len(prompts)
    found = judge.accept([*prompts, *prompts], [*worse, *better], [*better, *worse]).values
    forth, back = found[:n], 1.0 - found[n:]
    judged = ~np.isnan(forth + back)
    if not judged.any():
        raise WhetError(
            f"none of the {n:,} held-out comparisons fits into the tokens that the model reads: "
            "raise max_length, or take a model that reads more"
        )
    wins, kinds = (forth + back) / 2 > 0.5, np.array(pairs["kind"].to_pylist())
    return Report(
        share(wins[judged]),
        {k: share(wins[judged & (kinds == k)]) for k in KINDS if (judged & (kinds == k)).any()},
        share(((forth > 0.5) == (back > 0.5))[judged]),
        *(trained, int(judged.sum()), dropped + int((~judged).sum())),
    )


def _belongs(pairs: pa.Table, model: str, settings: Settings) -> str:
    whole = hashlib.sha256(repr(sorted(asdict(settings).items())).encode())
    whole.update(fingerprint(find_folder(model, "the evaluator")).encode())
    for name in ("prompt", "better", "worse", "kind"):
        whole.update(repr(pairs[name].to_pylist()).encode())
    return whole.hexdigest()
