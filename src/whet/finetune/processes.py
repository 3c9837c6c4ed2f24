"""Who else is training: nothing to know for one process, ``accelerate`` for several."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import warnings
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from whet.extras import require

if TYPE_CHECKING:
    from torch import Tensor


def launched_rank() -> int:
    """Return the number of this process among those of the launcher, 0 without one."""
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    return 0 if alone else int(os.environ.get("RANK", "0"))


class Processes:
    """The processes of a run, as ``accelerate launch`` or ``torchrun`` started them.

    On CPUs they talk through gloo: ``accelerate launch --multi_gpu --num_processes 2`` starts two
    there as well, while ``--cpu`` starts one unless MPI is set up.

    Parameters
    ----------
    device : str, optional
        As torch names it; None takes a CUDA device where there is one. With several processes each
        has the device that the launcher gives it, and ``"cpu"`` keeps all on the CPU.
    alone : bool
        Share no work with the others that were launched: each process has texts of its own.

    Attributes
    ----------
    rank, size : int
        Number of this process, and how many there are.
    device : torch.device

    Examples
    --------
    >>> alone = Processes("cpu")
    >>> alone.rank, alone.size, alone.device.type
    (0, 1, 'cpu')
    """

    def __init__(self, device: str | None = None, *, alone: bool = False) -> None:
        torch = require("torch", "fine-tuning")
        self._accelerator: Any = None
        self.rank, self.size = 0, 1
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not alone:
            accelerate = require("accelerate", "training in several processes")
            whole = accelerate.DistributedDataParallelKwargs(broadcast_buffers=False)
            self._accelerator = accelerate.Accelerator(
                cpu=True if device == "cpu" or not torch.cuda.is_available() else None,
                mixed_precision="no",
                kwargs_handlers=[whole],
            )
            atexit.register(_part)
            self.rank = int(self._accelerator.process_index)
            self.size = int(self._accelerator.num_processes)
            self.device = self._accelerator.device
        else:
            place = int(os.environ.get("LOCAL_RANK", "0")) if alone else 0
            devices = torch.cuda.device_count()  # 1 where the launcher hides those of others
            best = f"cuda:{place % devices}" if devices else "cpu"
            self.device = torch.device(device or best)

    @property
    def main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def wrap(self, module: Any) -> Any:  # noqa: ANN401
        """Return a module whose gradients are averaged over processes in the backward pass."""
        if self._accelerator is None:
            return module
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch, on accelerate's arguments
            return self._accelerator.prepare_model(module)

    def unwrap(self) -> None:
        """Forget wrapped modules."""
        if self._accelerator is not None:
            self._accelerator.free_memory()

    def local(self, module: Any) -> AbstractContextManager[Any]:  # noqa: ANN401
        """Return a context in which a wrapped module keeps its gradients to itself."""
        if self._accelerator is None:
            return contextlib.nullcontext()
        kept: AbstractContextManager[Any] = self._accelerator.no_sync(module)
        return kept

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all processes, on each of them."""
        if self._accelerator is None:
            return tensor
        total: Tensor = self._accelerator.reduce(tensor.clone(), "sum")
        return total

    def wait(self) -> None:
        """Return once all processes are here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()


def _part() -> None:
    """End the talk with other processes: its threads abort an interpreter that ends before them."""
    distributed = require("torch", "fine-tuning").distributed
    if distributed.is_initialized():
        gc.collect()  # wrapped modules, whose cycles hold the group
        distributed.destroy_process_group()
        gc.collect()
