"""The processes that a launcher started for one training: the first leads, the others follow."""

from __future__ import annotations

import atexit
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from whet.errors import WhetError, WhetWarning
from whet.extras import require
from whet.finetune.processes import _part, launched_rank
from whet.posttrain.models import PURPOSE, pick_device
from whet.store import FollowedRun, RunFolder

T = TypeVar("T")
#: How long a process waits for another. The first one may judge or evaluate for hours, and when a
#: process fails the launcher ends the others, so no wait needs an end of its own.
PATIENCE = timedelta(days=30)
#: Seconds that a process which follows leaves the first one to tell a fault that all have.
GRACE = 10.0
#: What a launcher tells each process.
LAUNCHED = ("WORLD_SIZE", "RANK", "LOCAL_RANK")


class LeaderStopped(WhetError):
    """The first process has stopped, and says why; those that follow it have nothing to add.

    Examples
    --------
    >>> raise LeaderStopped("the first process has stopped: read what it says")
    Traceback (most recent call last):
    ...
    whet.posttrain.ranks.LeaderStopped: the first process has stopped: read what it says
    """


class Ranks:
    """The processes of a training, as ``accelerate launch`` or ``torchrun`` started them.

    They talk through NCCL about what is on GPUs, and through gloo about the rest.

    Attributes
    ----------
    rank, size : int
        Number of this process, and how many there are.

    Examples
    --------
    >>> alone = Ranks()
    >>> alone.rank, alone.size, alone.lead(lambda: "done"), alone.gather(3)
    (0, 1, 'done', [3])
    """

    def __init__(self) -> None:
        self.rank, self.size = launched_rank(), int(os.environ.get("WORLD_SIZE", "1"))
        if self.size == 1:
            return
        torch = require("torch", PURPOSE)
        if not torch.distributed.is_initialized():
            if torch.cuda.is_available():
                torch.cuda.set_device(self.device)
            torch.distributed.init_process_group(timeout=PATIENCE)
            atexit.register(_part)

    @property
    def leads(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    @property
    def device(self) -> Any:  # noqa: ANN401
        """The torch device of this process: a CUDA device of its own where there are any."""
        devices = require("torch", PURPOSE).cuda.device_count()
        if self.size == 1 or not devices:
            return pick_device()
        # A launcher may hide the devices of other processes, and then there is one.
        return pick_device(f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % devices}")

    def lead(self, work: Callable[[], T]) -> T | None:
        """Let the first process do something, as if it were alone, while the others wait.

        Returns
        -------
        object or None
            What ``work`` returns; None in the others.

        Raises
        ------
        LeaderStopped
            In the others, if ``work`` fails.
        """
        if self.size == 1:
            return work()
        torch = require("torch", PURPOSE)
        done = torch.zeros(1)
        if self.leads:
            try:
                with _alone():
                    found = work()
                done += 1
                return found
            finally:
                torch.distributed.broadcast(done, 0)
        torch.distributed.broadcast(done, 0)
        if not done:
            raise LeaderStopped("the first process has stopped: read what it says")
        return None

    def gather(self, value: T) -> list[T]:
        """Return what each process gives, by rank, to all of them."""
        found = [value] * self.size
        if self.size > 1:
            require("torch", PURPOSE).distributed.all_gather_object(found, value)
        return found

    def folder(self, path: Path, settings: dict[str, Any]) -> RunFolder:
        """Return a run folder to go on with, which the first process locks, and others read."""
        led = self.lead(lambda: RunFolder(path, settings, resume=True))
        return FollowedRun(path, settings) if led is None else led


@contextmanager
def _alone() -> Iterator[None]:
    """Hide the launcher, whose other processes would be waited for in vain."""
    hidden = {name: os.environ.pop(name) for name in LAUNCHED if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def one_voice() -> Iterator[None]:
    """Let a command of several processes tell each fault once.

    Most faults are found by all processes. As soon as one has failed the launcher ends the others,
    so those that follow wait for that before they speak.

    Raises
    ------
    WhetError
        What the command raises, or that another process has ended.
    SystemExit
        Where the first process says it all.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    leads = launched_rank() == 0
    if not leads:
        warnings.simplefilter("ignore", WhetWarning)
    try:
        yield
    except LeaderStopped:
        raise SystemExit(0) from None
    except KeyboardInterrupt:
        if leads:
            raise
        raise SystemExit(130) from None
    except WhetError:
        time.sleep(0 if leads else GRACE)
        raise
    except RuntimeError as error:
        if not _is_parting(error):
            raise
        time.sleep(GRACE)
        raise WhetError(
            "another process of this training has ended: read what it said, and run the same "
            "command again to go on"
        ) from error


def _is_parting(error: RuntimeError) -> bool:
    """Whether an error says that another process is gone."""
    distributed = require("torch", PURPOSE).distributed
    return isinstance(error, distributed.DistError) or "gloo" in str(error)
