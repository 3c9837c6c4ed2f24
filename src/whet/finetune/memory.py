"""Where memory is too small: one sentence that says for what, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from whet.errors import WhetError
from whet.extras import require


@contextmanager
def enough_memory(rows: int, tokens: int) -> Iterator[None]:
    """Say how large a batch was if memory does not hold it, on a GPU or on the CPU.

    Parameters
    ----------
    rows, tokens : int
        Of the batch that is computed here: how many texts, and how many tokens each, padded.

    Raises
    ------
    WhetError
        Instead of torch's error.

    Examples
    --------
    >>> with enough_memory(16, 512):  # doctest: +ELLIPSIS
    ...     raise MemoryError
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: memory does not hold a batch of 16 rows x 512 tokens (8192): allow ...
    """
    torch = require("torch", "fine-tuning")
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and "DefaultCPUAllocator" not in str(error):  # torch has no class for that
            raise
        raise WhetError(
            f"memory does not hold a batch of {rows} rows x {tokens} tokens ({rows * tokens}): "
            "allow fewer with --tokens-per-batch or --max-length, keep frozen weights in 4 bits "
            "with --quantize nf4, or use Settings(gradient_checkpointing=True) in Python"
        ) from error
