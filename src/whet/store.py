"""The run folder: every file is written to a temporary name and renamed, the manifest last.

    settings.json          first: what was asked for, and the SHA-256 of the input
    features.safetensors   the encoded corpus, until the run is complete; tokens.safetensors and
                           checkpoint-*.safetensors where a model is fine-tuned
    rounds/NN/             labels.parquet, then round.json; with round.json the round exists
    model/                 the classifier
    refined.parquet        the result
    summary.json           what the report shows, then report.html
    run.json               last: with it the run is complete

``docs/run-folder.md`` describes the files for readers.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from scipy import sparse

from whet.errors import WhetError
from whet.rounds import Round

#: Version of the run folder's format; a change that readers notice raises it.
FORMAT_VERSION = 1
#: What only an unfinished run needs.
_WORKING_FILES = ("features.safetensors", "encoder.safetensors", "tokens.safetensors")
#: A disk with fewer free bytes is full.
FULL = 2**20
#: Of each fit of a fine-tuned model.
_CHECKPOINTS = "checkpoint-*.safetensors"
#: What :func:`write_atomic` leaves when the process is killed.
_TEMPORARY = re.compile(r"\.[\w-]+\.(json|safetensors|parquet|md|svg|html)\.\d+\.tmp")


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that it is either whole under its name or not there at all.

    Parameters
    ----------
    path : Path
        Final name; its folder must exist.
    write : callable
        Given the open temporary file.

    Raises
    ------
    OSError
        If the disk is full or not writable; the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # a full disk names no file
        raise


@contextmanager
def full_disk_said(folder: Path) -> Iterator[None]:
    """Say in one sentence that a disk is full, which libraries report each in a way of its own.

    Examples
    --------
    >>> with full_disk_said(Path(".")):
    ...     pass
    """
    try:
        yield
    except (WhetError, OSError):
        raise
    except Exception as error:
        if shutil.disk_usage(folder).free >= FULL:
            raise
        raise WhetError(
            f"the disk of {folder} is full: free space and run the same command again, which goes "
            "on"
        ) from error


def sweep(path: Path) -> None:
    """Remove what killed processes left of a file that they were writing."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        owner = left.name.removesuffix(".tmp").rpartition(".")[2]
        if owner.isdecimal() and not _alive(int(owner)):
            left.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON atomically, numpy numbers and arrays included."""
    text = json.dumps(content, indent=2, default=_plain, ensure_ascii=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a Parquet file atomically; the same table gives the same bytes."""
    write_atomic(path, lambda file: pq.write_table(table, file, compression="zstd"))


def write_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Write a safetensors file atomically."""
    blob = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    write_atomic(path, lambda file: file.write(blob))


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read a safetensors file.

    Raises
    ------
    WhetError
        If it is missing, truncated or malformed.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise WhetError(f"{path} cannot be read as safetensors ({error}): restore it") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    WhetError
        If it is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WhetError(f"{path} does not exist: name a folder that whet wrote") from error
    except (OSError, ValueError, RecursionError) as error:
        raise WhetError(f"{path} cannot be read as JSON ({error}): restore it") from error
    if not isinstance(content, dict):
        raise WhetError(f"{path} holds no JSON object: restore it")
    return content


def difference(
    before: Mapping[str, Any], after: Mapping[str, Any], within: str = ""
) -> tuple[str, Any, Any] | None:
    """Return the first setting in which two trees of settings differ.

    Plain values of a level come before nested ones, by name each: a value of a section may follow
    from a plain one, as the seeds of sections do, and the plain one is what was written.

    Parameters
    ----------
    before, after : mapping
        As JSON holds them; what one of them lacks is None there.
    within : str, optional
        The name of both.

    Returns
    -------
    tuple of (str, object, object) or None
        Its name, with a dot for each level, its value before and its value after.

    Examples
    --------
    >>> difference({"seed": 0, "train": {"epochs": 1}}, {"seed": 0, "train": {"epochs": 2}})
    ('train.epochs', 1, 2)
    >>> difference({"dpo": {"seed": 0}, "seed": 0}, {"dpo": {"seed": 3}, "seed": 3})
    ('seed', 0, 3)
    """

    def nested(key: str) -> bool:
        return isinstance(before.get(key), dict) or isinstance(after.get(key), dict)

    for key in sorted(before.keys() | after.keys(), key=lambda key: (nested(key), key)):
        old, new = before.get(key), after.get(key)
        name = f"{within}.{key}" if within else key
        if isinstance(old, dict) and isinstance(new, dict):
            if found := difference(old, new, name):
                return found
        elif old != new:
            return name, old, new
    return None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, or of all files of a folder in the order of their names."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        if file != path:
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


class RunFolder:
    """A run on disk: nothing is created before the first artefact, and a resumed run goes on.

    Parameters
    ----------
    path : Path
        The output folder.
    settings : dict
        What decides the result: flags, seed, versions, hash of the input. A resumed run must
        have the same.
    resume : bool
        Go on with an unfinished run, if there is one.

    Raises
    ------
    WhetError
        If the folder holds a run and ``resume`` is False, holds other files, or its run was
        started with other settings.

    Examples
    --------
    >>> import tempfile
    >>> folder = RunFolder(Path(tempfile.mkdtemp()) / "run", {"seed": 0}, resume=False)
    >>> folder.complete
    False
    """

    def __init__(self, path: Path, settings: dict[str, Any], *, resume: bool) -> None:
        self.path = path
        self.settings = json.loads(json.dumps(settings, default=_plain))
        self._created = False
        self._resume = resume
        self._lock: int | None = None
        if resume and self.path.is_dir():
            self._acquire()
        try:
            self._check()
        except WhetError:
            self.close()
            raise

    @property
    def complete(self) -> bool:
        """Whether the manifest, written last, is there."""
        return (self.path / "run.json").is_file()

    def _check(self) -> None:
        path = self.path
        file = next((p for p in (path, *path.parents) if p.exists() and not p.is_dir()), None)
        if file is not None:
            raise WhetError(
                f"the output folder {path} cannot be: {file} is a file; choose another --out"
            )
        if not path.exists() or not any(path.iterdir()):
            return
        if not (path / "settings.json").is_file():
            if not all(_TEMPORARY.fullmatch(p.name) for p in path.iterdir()):
                raise WhetError(
                    f"the output folder {path} holds files that are not whet's: choose another "
                    "--out or empty it"
                )
            self._sweep()
            return
        if not self._resume:
            state = "a finished run" if self.complete else "an unfinished run"
            remedy = "" if self.complete else "add --resume to finish it, or "
            raise WhetError(f"the output folder {path} holds {state}: {remedy}choose another --out")
        before = read_json(path / "settings.json")
        if differing := difference(before, self.settings):
            key, old, new = differing
            raise WhetError(
                f"the run in {path} was started with {key} = {old!r}, not {new!r}: resume with "
                "the same input and settings, or choose another --out"
            )
        self._sweep()

    def open(self) -> None:
        """Create the folder and its settings if they are not there."""
        if self._lock is None:
            if not self.path.exists():
                self.path.mkdir(parents=True, exist_ok=True)
                self._created = True
            self._acquire()
            self._check()  # another run may have begun here since
        if not (self.path / "settings.json").is_file():
            write_json(self.path / "settings.json", self.settings)

    def close(self) -> None:
        """Let other processes write to the folder; a process that ends does so by itself."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _acquire(self) -> None:
        """Lock the folder against a second process; the lock dies with its process."""
        lock = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise WhetError(
                f"another process is writing to the output folder {self.path}: wait for it, or "
                "choose another --out"
            ) from None
        self._lock = lock

    def _sweep(self) -> None:
        """Remove what a killed run left: half-written files, and features that nobody needs."""
        for leftover in self.path.rglob(".*.tmp"):
            if _TEMPORARY.fullmatch(leftover.name):
                leftover.unlink(missing_ok=True)
        if self.complete:
            self._drop_working_files()

    def _drop_working_files(self) -> None:
        for name in _WORKING_FILES:
            (self.path / name).unlink(missing_ok=True)
        for file in self.path.glob(_CHECKPOINTS):
            file.unlink(missing_ok=True)

    def discard_if_empty(self) -> None:
        """Remove what this run wrote, unless rounds or steps are stored: worth resuming."""
        if self._lock is None or self.complete or (self.path / "rounds").is_dir():
            return
        if any(self.path.glob(_CHECKPOINTS)):
            return
        self._drop_working_files()
        (self.path / "settings.json").unlink(missing_ok=True)
        if self._created:
            self.path.rmdir()

    def load_features(self) -> Any:  # noqa: ANN401
        """Return the stored features, or None."""
        file = self.path / "features.safetensors"
        if not file.is_file():
            return None
        arrays = read_arrays(file)
        if "dense" in arrays:
            return arrays["dense"]
        parts = (arrays["data"], arrays["indices"], arrays["indptr"])
        return sparse.csr_array(parts, shape=tuple(arrays["shape"].tolist()))

    def save_features(self, features: Any, encoder: dict[str, NDArray[Any]]) -> None:  # noqa: ANN401
        """Store the features and what the encoder learned, for a resumed run."""
        arrays: dict[str, NDArray[Any]] = {"dense": features}
        if sparse.issparse(features):
            arrays = {
                "data": features.data,
                "indices": features.indices,
                "indptr": features.indptr,
                "shape": np.array(features.shape, dtype=np.int64),
            }
        if encoder:
            write_arrays(self.path / "encoder.safetensors", encoder)
        write_arrays(self.path / "features.safetensors", arrays)

    def load_encoder(self) -> dict[str, NDArray[Any]]:
        """Return what the encoder learned in the run that stored the features."""
        file = self.path / "encoder.safetensors"
        return read_arrays(file) if file.is_file() else {}

    def load_round(self, number: int) -> Round | None:
        """Return a round that is stored whole, or None."""
        folder = self._round_folder(number)
        if not (folder / "round.json").is_file():
            return None
        try:
            table = pq.read_table(folder / "labels.parquet")
        except (pa.ArrowException, OSError) as error:
            raise WhetError(
                f"{folder / 'labels.parquet'} is damaged: remove the folder {folder} and those of "
                "later rounds, and resume"
            ) from error
        columns = [c for c in table.column_names if c.startswith("p_")]
        proposals = np.column_stack([table[c].to_numpy() for c in columns])
        return Round(number, table["code"].to_numpy(), proposals, read_json(folder / "round.json"))

    def save_round(self, finished: Round) -> None:
        """Store the labels and probabilities of a round, then its record."""
        folder = self._round_folder(finished.number)
        folder.mkdir(parents=True, exist_ok=True)
        columns = {"code": pa.array(finished.labels)}
        for k in range(finished.proposals.shape[1]):
            columns[f"p_{k}"] = pa.array(finished.proposals[:, k])
        write_parquet(folder / "labels.parquet", pa.table(columns))
        write_json(folder / "round.json", finished.record)

    def save_result(self, table: pa.Table) -> None:
        """Write the refined labels."""
        write_parquet(self.path / "refined.parquet", table)

    def finish(self, manifest: dict[str, Any]) -> None:
        """Write the manifest, after which the run is complete; drop what only resuming needed."""
        write_json(self.path / "run.json", {"format_version": FORMAT_VERSION, **manifest})
        self._sweep()

    def _round_folder(self, number: int) -> Path:
        return self.path / "rounds" / f"{number:02d}"


class FollowedRun(RunFolder):
    """The run of another process that this one works for: it reads, the other writes.

    Parameters
    ----------
    path : Path
        The output folder.
    settings : dict

    Examples
    --------
    >>> FollowedRun(Path("no/folder"), {}).load_round(1) is None
    True
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        self._lock = None

    def open(self) -> None:
        """Do nothing."""

    def save_features(self, features: Any, encoder: dict[str, NDArray[Any]]) -> None:  # noqa: ANN401
        """Do nothing."""

    def save_round(self, finished: Round) -> None:
        """Do nothing."""

    def save_result(self, table: pa.Table) -> None:
        """Do nothing."""

    def finish(self, manifest: dict[str, Any]) -> None:
        """Do nothing."""


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Turn numpy values into what JSON knows."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
