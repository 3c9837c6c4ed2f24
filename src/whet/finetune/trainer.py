"""Fine-tuning under a pseudo-label risk: steps, epochs, checkpoints, logits.

**One step, one batch, however it is spread.** A loss is phi of sums over the batch's rows
(:mod:`whet.finetune.losses`), and phi needs the sums of the *whole* batch: of all processes and all
accumulated passes. The coefficients hold the sizes of the sets in the whole batch (or epoch)
already, because every process knows the whole plan of batches. What is missing is the slope of phi
at the whole sums. Where the slope is 1 everywhere (PN, UU, cross-entropy) it is known beforehand.
For the robust risk in several parts, the parts are first scored without gradients, K sums are added
up over the processes, and then each part adds its slopes times its own sums to the gradient. The
dropout of both passes is the same, since each part seeds its own generator. So the gradient is that
of one process with one pass, up to rounding (and dropout, whose masks are the part's). For that the
robust risk in several parts pays one more forward pass.

**Nothing waits for the device.** The risk of an epoch is added up on the device and read once an
epoch, where a risk that is not a number is noticed too.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from whet.errors import WhetError
from whet.extras import require
from whet.finetune import checkpoint as state
from whet.finetune import export
from whet.finetune.batches import Batches
from whet.finetune.losses import Loss, TensorLoss
from whet.finetune.memory import enough_memory
from whet.finetune.model import PURPOSE, Network, Weights, load_tokenizer, longest_of
from whet.finetune.processes import Processes
from whet.finetune.settings import Settings
from whet.finetune.tokens import Rows, Tokens
from whet.hub import find_folder, fingerprint
from whet.rounds import Progress

if TYPE_CHECKING:
    from torch import Tensor

#: Scoring keeps no activations: its batches hold this many times the tokens of a training step.
SCORING = 4
#: Tokens of a scoring batch, at least.
SCORING_TOKENS = 8192


class FineTuner:
    """Fine-tunes one model again and again: folds, rounds and reruns share the loaded weights.

    Parameters
    ----------
    model : str
        Folder or hub id of a sequence classifier or a causal model.
    settings : Settings
    device : str, optional
        As torch names it; None takes a CUDA device where there is one.

    Examples
    --------
    >>> import tempfile, transformers
    >>> from whet.classify.risks import Risk
    >>> folder = tempfile.mkdtemp()
    >>> config = transformers.LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=16,
    ...     num_hidden_layers=1, num_attention_heads=2, pad_token_id=0)
    >>> transformers.LlamaForCausalLM(config).save_pretrained(folder)
    >>> tokens = Tokens.from_lists([[3, 4], [5, 6]] * 32, pad=0)
    >>> sets = np.arange(64) % 2
    >>> settings = Settings(epochs=10, learning_rate=0.01, tune="full")
    >>> tuner = FineTuner(folder, settings, device="cpu")
    >>> tuned = tuner.fit(tokens, np.arange(64), sets, Risk.pn([0.5, 0.5]))
    >>> bool((tuned.logits(tokens).argmax(axis=1) == sets).all())
    True
    """

    def __init__(
        self,
        model: str,
        settings: Settings | None = None,
        *,
        device: str | None = None,
    ) -> None:
        self.model, self.settings = str(model), settings or Settings()
        self.processes = Processes(device)
        self._networks: dict[int, Network] = {}
        self._tokenizer: Any = None

    @property
    def tokenizer(self) -> Any:  # noqa: ANN401
        """The model's tokenizer, or None."""
        if self._networks:
            return next(iter(self._networks.values())).tokenizer
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._folder, self.settings.trust_remote_code)
        return self._tokenizer

    @cached_property
    def _folder(self) -> Path:
        return find_folder(self.model, PURPOSE, self.settings.trust_remote_code)

    def encode(
        self, texts: list[str], folder: Path | None = None, progress: Progress | None = None
    ) -> Tokens:
        """Cut texts into tokens of the model, at most ``max_length``, or what it reads.

        Parameters
        ----------
        texts : list of str
        folder : Path, optional
            Where they are stored and found again.
        progress : callable, optional
            Called with ("tokens", done, total).

        Raises
        ------
        WhetError
            If the model has no tokenizer.
        """
        shared = folder is not None  # one process makes the file, the others find it
        if shared and not self.processes.main:
            self.processes.wait()
        if self.tokenizer is None:
            raise WhetError(
                f"the model {self.model!r} has no tokenizer: name a folder that has its files"
            )
        trusted = self.settings.trust_remote_code
        longest = longest_of(self._folder, self.model, self.tokenizer, trusted)
        longest = min(self.settings.max_length, longest)
        tokens = Tokens.encode(texts, self.tokenizer, longest, folder, progress)
        if shared and self.processes.main:
            self.processes.wait()
        return tokens

    def network(self, n_classes: int) -> Network:
        """Return the loaded model for a number of classes."""
        if n_classes not in self._networks:
            device = self.processes.device
            self._networks[n_classes] = Network(self.model, n_classes, self.settings, device)
        return self._networks[n_classes]

    def embed(self, tokens: Tokens) -> NDArray[np.float32]:
        """Return what the model makes of texts before it is tuned.

        Parameters
        ----------
        tokens : Tokens
            Of n texts.

        Returns
        -------
        float32 array of shape (n, d)
            Mean of the last hidden states over a text's tokens, of unit length.
        """
        network = self.network(2)
        network.reset(self.settings.seed)
        found = _over_batches(network, self.processes, tokens, np.arange(len(tokens)), network.mean)
        length = np.linalg.norm(found, axis=1, keepdims=True)
        unit: NDArray[np.float32] = found / np.maximum(length, np.finfo(np.float32).tiny)
        return unit

    def fit(
        self,
        tokens: Tokens,
        rows: Rows,
        sets: NDArray[np.int64],
        loss: Loss,
        *,
        start: Tuned | None = None,
        groups: NDArray[np.int64] | None = None,
        seed: int | None = None,
        checkpoint: Path | None = None,
        save_every: int = 500,
        progress: Progress | None = None,
    ) -> Tuned:
        """Train a fresh head and fresh adapters, or all weights anew, on some rows.

        Parameters
        ----------
        tokens : Tokens
            Of the corpus.
        rows : int array of shape (n,)
            Numbers of the texts to train on.
        sets : int array of shape (n,)
            Pseudo-label of each of ``rows``; for ``SoftCrossEntropy`` the number of its row in
            ``target``.
        loss : Risk, SetCrossEntropy or SoftCrossEntropy
        start : Tuned, optional
            Begin with its weights, not with fresh ones.
        groups : int array of shape (n,), optional
            Rows with equal numbers, such as texts about one question, are all trained on or all
            held out for ``validation``, which is then a share of the groups.
        seed : int, optional
            Instead of ``settings.seed``, e.g. for a rerun.
        checkpoint : Path, optional
            File to resume from if it exists, and to write every ``save_every`` steps and at the end
            of each epoch. It stays, so that a finished fit is read and not run again.
        save_every : int
        progress : callable, optional
            Called with ("step", steps done, steps in all).

        Returns
        -------
        Tuned

        Raises
        ------
        WhetError
            If labels and loss do not fit, texts are too long for the model, the checkpoint is of
            another run, or the risk stops being a number.
        """
        torch = require("torch", "fine-tuning")
        rows, sets = np.asarray(rows, dtype=np.int64), np.asarray(sets, dtype=np.int64)
        tensor_loss = TensorLoss(loss)
        _check(tokens, rows, sets, tensor_loss)
        if groups is not None and len(groups) != len(rows):
            raise WhetError(f"{len(rows)} rows and {len(groups)} groups: give one group a row")
        settings = self.settings if seed is None else replace(self.settings, seed=seed)
        network = self.network(tensor_loss.n_classes)
        _check_lengths(tokens, rows, network)
        split = split_validation(tensor_loss.strata(sets), settings, groups)
        training = _Training(
            network, self.processes, settings, tokens, rows, sets, tensor_loss, split
        )
        devices = [self.processes.device] if self.processes.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            weights, history = training.run(
                None if start is None else start.weights, checkpoint, save_every, progress
            )
        return Tuned(network, self.processes, weights, history)


class Tuned:
    """A fine-tuned classifier: trained weights, and the model that they belong to.

    Several share one loaded model; each sets its own weights before it scores.

    Parameters
    ----------
    network : Network
    processes : Processes
    weights : dict of str to tensor
        What was trained.
    history : list of dict
        A record an epoch: ``epoch``, ``steps``, ``risk`` (mean over its batches) and
        ``validation_risk``.

    Examples
    --------
    >>> Tuned.from_pretrained("no/folder")
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: no/folder/finetune.json does not exist: name a folder that whet wrote
    """

    def __init__(
        self,
        network: Network,
        processes: Processes,
        weights: Weights,
        history: list[dict[str, Any]],
    ) -> None:
        self.network, self.processes = network, processes
        self.weights, self.history = weights, history

    def encode(self, texts: list[str]) -> Tokens:
        """Cut new texts into tokens as the corpus was."""
        network = self.network
        longest = min(network.settings.max_length, network.longest)
        return Tokens.encode(texts, network.tokenizer, longest)

    def logits(
        self, tokens: Tokens, rows: Rows | None = None, *, tokens_per_batch: int | None = None
    ) -> NDArray[np.float32]:
        """Score texts, longest first.

        Parameters
        ----------
        tokens : Tokens
        rows : int array of shape (n,), optional
            Numbers of the texts; None takes all.
        tokens_per_batch : int, optional

        Returns
        -------
        float32 array of shape (n, K)
            In the order of ``rows``. One logit g is given as (0, g).
        """
        rows = np.arange(len(tokens)) if rows is None else np.asarray(rows, dtype=np.int64)
        self.network.restore(self.weights)
        return _score(self.network, self.processes, tokens, rows, tokens_per_batch)

    def save_pretrained(
        self,
        folder: Any,  # noqa: ANN401
        *,
        merge: bool = True,
        classes: list[Any] | None = None,
        about: str = "",
    ) -> None:
        """Write a folder that transformers loads as a sequence classifier.

        Parameters
        ----------
        folder : path
            Created if absent.
        merge : bool
            Merge adapters into the model, so that the folder is whole. False writes the adapter
            alone, which needs the model that it was trained on and peft; it gives back the very
            same logits, merging rounds.
        classes : list, optional
            Names of the classes.
        about : str
            What the card says of the data and labels.
        """
        self.network.restore(self.weights)
        if self.processes.main:
            export.save(self.network, Path(folder), merge, classes, about, self.history)
        self.processes.wait()

    @classmethod
    def from_pretrained(
        cls,
        folder: Any,  # noqa: ANN401
        *,
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> Self:
        """Load what :meth:`save_pretrained` wrote.

        Parameters
        ----------
        folder : path
        device : str, optional
            As torch names it; None takes a CUDA device where there is one.
        trust_remote_code : bool
            Run code that the folder brings, if it brings any.

        Raises
        ------
        WhetError
            If the folder is none of these, damaged, or brings code unasked.
        """
        # Not shared with processes that were launched: as a reward, each scores texts of its own.
        processes = Processes(device, alone=True)
        trusted = trust_remote_code
        network, weights, history = export.load(Path(folder), processes.device, trusted)
        return cls(network, processes, weights, history)


class _Training:
    """One fit: its data, its optimizer, where it is."""

    def __init__(
        self,
        network: Network,
        processes: Processes,
        settings: Settings,
        tokens: Tokens,
        rows: Rows,
        sets: NDArray[np.int64],
        loss: TensorLoss,
        split: tuple[Rows, Rows],
    ) -> None:
        torch = require("torch", "fine-tuning")
        self.network, self.processes, self.settings = network, processes, settings
        self.tokens, self.loss, self.rows, self.sets = tokens, loss, rows, sets
        self.train, self.held = split
        self.coefficients = loss.coefficients(sets[self.train])
        self.batches = Batches(
            tokens.lengths[rows[self.train]],
            loss.strata(sets[self.train]),
            settings.batch_size,
            settings.tokens_per_batch,
            settings.stratified,
            settings.bucketed,
            settings.seed,
        )
        self.names = list(network.trained)
        self.optimizer = torch.optim.AdamW(
            list(network.trained.values()),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.progress = state.Progress()
        self.best: Weights | None = None
        self.risk: Any = torch.zeros((), device=processes.device)

    def run(
        self,
        start: Weights | None,
        checkpoint: Path | None,
        save_every: int,
        progress: Progress | None,
    ) -> tuple[Weights, list[dict[str, Any]]]:
        """Train, or go on, and return the weights of the epoch that counts."""
        belongs = "" if checkpoint is None else self._belongs(start)
        self.network.reset(self.settings.seed)
        if start is not None:
            self.network.restore(start)
        if checkpoint is not None:
            self._resume(checkpoint, belongs)
        self.network.holds = None
        here = self.progress
        self.forward = self.processes.wrap(self.network.forward)
        epochs = [len(self.batches.epoch(k)) for k in range(self.settings.epochs)]
        self.steps = sum(epochs)
        while not here.finished:
            plan = self.batches.epoch(here.epoch)
            self.network.module.train()
            while here.position < len(plan):
                batch = plan[here.position]
                longest = int(self.tokens.lengths[self.rows[self.train[batch]]].max())
                with enough_memory(len(batch), self._width or longest):
                    self._step(batch, len(plan))
                here.position += 1
                here.step += 1
                if checkpoint is not None and here.step % save_every == 0:
                    self._save(checkpoint, belongs)
                if progress is not None:
                    progress("step", here.step, self.steps)
            self._end_epoch(len(plan))
            if checkpoint is not None:
                self._save(checkpoint, belongs)
        self.processes.unwrap()
        weights = self.network.snapshot() if self.best is None else self.best
        self.network.module.eval()
        return weights, here.history

    def _step(self, batch: Rows, n_batches: int) -> None:
        """Make one step on a batch, given as positions in the training rows."""
        torch = require("torch", "fine-tuning")
        here, settings = self.progress, self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * schedule(here.step, self.steps, settings.warmup)
        if settings.set_means == "epoch":
            coefficients = self.loss.scaled(self.coefficients[batch], n_batches)
        else:
            coefficients = self.loss.coefficients(self.sets[self.train[batch]])
        rank, size, passes = self.processes.rank, self.processes.size, settings.accumulate
        parts = [
            (number, *self._inputs(batch, coefficients, rank + number * size, size * passes))
            for number in range(passes)
        ]
        slopes = None
        if size * passes > 1:
            slopes = self._whole_slopes(parts)
        totals: Any = 0.0
        for number, ids, mask, weight in parts:
            torch.manual_seed(_seed(settings.seed, here.step, rank, number))
            last = number + 1 == passes  # processes exchange gradients then
            with nullcontext() if last else self.processes.local(self.forward):
                sums = self.loss.sums(self.network.logits(ids, mask, self.forward), weight)
                part_slopes = self.loss.slopes(sums) if slopes is None else slopes
                # Gradients are averaged over processes; the risk is a sum over them.
                risk = (part_slopes * sums).sum() * size
                risk.backward()  # type: ignore[no-untyped-call]
            totals = totals + (part_slopes * sums).detach().sum()
        self.risk += totals
        if settings.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.network.trained.values(), settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def _width(self) -> int | None:
        """Tokens that every batch is padded to, if any."""
        most = min(self.settings.max_length, self.network.longest)
        return most if self.settings.pad_to_max else None

    def _whole_slopes(self, parts: list[tuple[int, Tensor, Tensor | None, Tensor]]) -> Tensor:
        """Return phi's slopes at the sums of the whole batch, of all processes and passes."""
        torch = require("torch", "fine-tuning")
        if self.loss.slope == 1.0:
            return torch.ones((), device=self.processes.device)  # type: ignore[no-any-return]
        totals: Any = 0.0
        for number, ids, mask, weight in parts:
            torch.manual_seed(
                _seed(self.settings.seed, self.progress.step, self.processes.rank, number)
            )
            with torch.no_grad():
                totals = totals + self.loss.sums(self.network.logits(ids, mask), weight)
        return self.loss.slopes(self.processes.sum(totals))

    def _inputs(
        self, batch: Rows, coefficients: NDArray[np.float64], first: int, parts: int
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return tokens, mask and coefficients of one part of a batch, on the device."""
        mine, weight = batch[first::parts], coefficients[first::parts]
        if not len(mine):  # a batch with fewer rows than parts: a row that counts for nothing
            mine, weight = batch[:1], np.zeros_like(coefficients[:1])
        length = self._width
        texts = self.rows[self.train[mine]]
        ids, mask = self.tokens.batch(texts, length=length, pad=self.network.pad)
        return (*_to_device(self.network, ids, mask), _send(self.network, weight))

    def _end_epoch(self, steps: int) -> None:
        """Read the epoch's risk, compare it with the epochs before, and go to the next."""
        here, settings = self.progress, self.settings
        record: dict[str, Any] = {"epoch": here.epoch + 1, "steps": steps}
        record["risk"] = float(self.processes.sum(self.risk)) / steps
        if not math.isfinite(record["risk"]):
            raise WhetError(
                f"the risk is {record['risk']} in epoch {here.epoch + 1}: lower the learning rate "
                f"({settings.learning_rate}) or train in fp32"
            )
        self.risk.zero_()
        if len(self.held):
            record["validation_risk"] = self._validation_risk()
            risks = [past["validation_risk"] for past in here.history]
            if not risks or record["validation_risk"] < min(risks):
                here.best_epoch = here.epoch + 1
                if settings.select_best:
                    self.best = self.network.snapshot()
        here.history.append(record)
        here.epoch, here.position = here.epoch + 1, 0
        stale = settings.patience is not None and here.best_epoch is not None
        if stale and here.epoch - (here.best_epoch or 0) >= (settings.patience or 0):
            here.finished = True
        here.finished |= here.epoch == settings.epochs

    def _validation_risk(self) -> float:
        """Return the risk of the held-out rows, whole or as a mean over batches."""
        rows, sets = self.rows[self.held], self.sets[self.held]
        length = self._width
        self.network.holds = None
        scores = _score(self.network, self.processes, self.tokens, rows, length=length)
        size = self.settings.validation_batch or len(rows)
        risks = [
            self.loss.value_of(scores[k : k + size].astype(np.float64), sets[k : k + size])
            for k in range(0, len(rows), size)
        ]
        return float(np.mean(risks))

    def _belongs(self, start: Weights | None) -> str:
        """Return a hash of all that decides the result."""
        whole = hashlib.blake2b(digest_size=16)
        settings = asdict(self.settings)
        whole.update(json.dumps(settings, sort_keys=True).encode())
        whole.update(fingerprint(self.network.folder).encode())
        whole.update(self.tokens.digest().encode())
        whole.update(repr((self.network.n_classes, self.loss.slope)).encode())
        all_of_it = self.loss.coefficients(self.sets)
        for array in (self.rows, self.sets, self.coefficients, all_of_it, self.held):
            whole.update(np.ascontiguousarray(array).tobytes())
        for name in sorted(start or {}):
            whole.update(name.encode() + (start or {})[name].numpy().tobytes())
        return whole.hexdigest()

    def _save(self, path: Path, belongs: str) -> None:
        risk = self.processes.sum(self.risk)  # one number for all processes
        if self.processes.main:
            tensors = {f"weights/{name}": p for name, p in self.network.trained.items()}
            tensors |= state.optimizer_tensors(self.optimizer, self.names)
            tensors |= {f"best/{name}": w for name, w in (self.best or {}).items()}
            state.save(path, belongs, self.progress, tensors | {"risk": risk})
        self.processes.wait()

    def _resume(self, path: Path, belongs: str) -> None:
        found = state.load(path, belongs)
        if found is None:
            return
        self.progress, tensors = found
        self.network.restore(state.part(tensors, "weights/"))
        state.load_optimizer(self.optimizer, self.names, tensors)
        self.best = state.part(tensors, "best/") or None
        if self.processes.main:
            self.risk.copy_(tensors["risk"])


def split_validation(
    strata: NDArray[np.int64], settings: Settings, groups: NDArray[np.int64] | None = None
) -> tuple[Rows, Rows]:
    """Return positions to train on and positions to hold out, a share of each pseudo-class.

    Without ``stratified`` it is a plain random share, and with ``groups`` one of whole groups. With
    too few rows or groups nothing is held out.

    Examples
    --------
    >>> train, held = split_validation(np.arange(40) % 2, Settings(validation=0.25))
    >>> len(train), (held % 2).sum().item()
    (30, 5)
    >>> groups = np.array([7, 8, 9, 7, 8, 9])
    >>> train, held = split_validation(np.zeros(6), Settings(validation=0.4), groups)
    >>> len(held), len(set(groups[held]))
    (2, 1)
    """
    number = np.arange(len(strata))
    if groups is not None:
        number = np.unique(groups, return_inverse=True)[1]
    n = int(number.max(initial=-1)) + 1
    if settings.validation is None or round(settings.validation * n) < 1:
        return np.arange(len(strata)), np.arange(0)
    seed = settings.seed if settings.split_seed is None else settings.split_seed
    order = np.random.default_rng([seed, n]).permutation(n)
    if settings.stratified and groups is None:
        order = order[np.argsort(strata[order], kind="stable")]
        share = settings.validation  # every 1 / share-th row of the order, class by class
        taken = np.floor(np.arange(1, n + 1) * share + 0.5) > np.floor(np.arange(n) * share + 0.5)
    else:
        taken = np.arange(n) < round(settings.validation * n)
    held = np.isin(number, order[taken])
    return np.flatnonzero(~held), np.flatnonzero(held)


def schedule(step: int, steps: int, warmup: float) -> float:
    """Return the share of the learning rate at a step: a line up, then a cosine down to 0.

    Examples
    --------
    >>> [round(schedule(step, 10, 0.2), 2) for step in (0, 1, 2, 6)]
    [0.0, 0.5, 1.0, 0.5]
    """
    rising = math.ceil(steps * warmup)
    if step < rising:
        return step / rising
    return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))


def _seed(seed: int, step: int, rank: int, part: int) -> int:
    """Return the seed of the dropout of one part of one step."""
    return int(np.random.SeedSequence([seed, step, rank, part]).generate_state(1, np.uint64)[0])


def _check(tokens: Tokens, rows: Rows, sets: NDArray[np.int64], loss: TensorLoss) -> None:
    if len(rows) != len(sets):
        raise WhetError(f"{len(rows)} rows and {len(sets)} labels: give one label a row")
    if len(rows) < 2:
        raise WhetError(f"{len(rows)} rows: at least 2 are needed to train on")
    if rows.min() < 0 or rows.max() >= len(tokens):
        raise WhetError(
            f"row {rows.max()}: there are {len(tokens)} texts, numbered from 0; name rows of them"
        )
    loss.check(sets)


def _check_lengths(tokens: Tokens, rows: Rows, network: Network) -> None:
    longest = int(tokens.lengths[rows].max()) if len(rows) else 0
    if longest > network.longest:
        raise WhetError(
            f"a text has {longest} tokens, the model {network.source!r} reads {network.longest}: "
            "lower max_length and encode again"
        )


def _score(
    network: Network,
    processes: Processes,
    tokens: Tokens,
    rows: Rows,
    tokens_per_batch: int | None = None,
    length: int | None = None,
) -> NDArray[np.float32]:
    """Return scores of shape (n, K) in the order of rows."""
    if not len(rows):
        return np.zeros((0, network.n_classes), dtype=np.float32)
    run = network.logits
    scores = _over_batches(network, processes, tokens, rows, run, tokens_per_batch, length)
    if scores.shape[1] > 1:
        return scores
    return np.concatenate([np.zeros_like(scores), scores], axis=1)


def _over_batches(
    network: Network,
    processes: Processes,
    tokens: Tokens,
    rows: Rows,
    run: Callable[[Tensor, Tensor | None], Tensor],
    tokens_per_batch: int | None = None,
    length: int | None = None,
) -> NDArray[np.float32]:
    """Return what ``run`` gives for tokens and mask of at least one row, in the order of rows."""
    torch = require("torch", "fine-tuning")
    _check_lengths(tokens, rows, network)
    settings = network.settings
    if tokens_per_batch is None:
        mean = float(tokens.lengths[rows].mean())
        step = settings.tokens_per_batch or settings.batch_size * mean
        tokens_per_batch = max(int(SCORING * step), SCORING_TOKENS)
    module = network.module
    training = module.training
    module.eval()
    found: Any = None
    with torch.inference_mode():
        for number, places in enumerate(_by_length(tokens.lengths[rows], tokens_per_batch)):
            if number % processes.size != processes.rank and found is not None:
                continue
            ids, mask = tokens.batch(rows[places], length=length, pad=network.pad)
            where = torch.from_numpy(places).to(processes.device, non_blocking=True)
            with enough_memory(*ids.shape):
                made = run(*_to_device(network, ids, mask))
            if found is None:  # the first batch shows every process the width
                found = torch.zeros((len(rows), made.shape[1]), device=processes.device)
            if number % processes.size == processes.rank:
                found[where] = made
        found = processes.sum(found)
    module.train(training)
    array: NDArray[np.float32] = found.cpu().numpy()
    return array


def _by_length(lengths: NDArray[np.int64], budget: int) -> Iterator[Rows]:
    """Yield positions, longest first, in batches of about ``budget`` tokens."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(budget // int(lengths[order[start]]), 1)
        yield order[start : start + size]
        start += size


def _to_device(
    network: Network, ids: NDArray[np.int64], mask: NDArray[np.bool_]
) -> tuple[Tensor, Tensor | None]:
    return _send(network, ids), _send(network, mask.astype(np.int64)) if network.masked else None


def _send(network: Network, array: NDArray[Any]) -> Tensor:
    """Copy an array to the device without waiting for it; floats become float32."""
    torch = require("torch", "fine-tuning")
    floats = np.issubdtype(array.dtype, np.floating)
    tensor: Tensor = torch.from_numpy(array.astype(np.float32) if floats else array)
    if network.device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(network.device, non_blocking=True)
