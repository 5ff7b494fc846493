"""Compiled loops on all cores."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer
from threadpoolctl import threadpool_limits

PARTS_PER_THREAD = 4
"""Parts that work is cut into, so that a thread which meets more of it does not hold up others."""


def n_threads() -> int:
    """Threads that compiled loops run on."""
    import numba  # half a second

    return numba.get_num_threads()


@contextmanager
def one_core() -> Iterator[None]:
    """Work so small that handing it to several threads costs more than it does."""
    import numba  # half a second

    n = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        numba.set_num_threads(n)


def parts_of(work: Integer[np.ndarray, "row"]) -> Int64[np.ndarray, "boundary"]:
    """Bounds of consecutive parts of the rows that are about equally much work."""
    n_parts = max(1, min(PARTS_PER_THREAD * n_threads(), len(work)))
    done = np.cumsum(work)
    total = int(done[-1]) if len(done) else 0
    cuts = np.searchsorted(done, total * np.arange(1, n_parts) / n_parts)
    return np.concatenate([[0], cuts, [len(work)]]).astype(np.int64)


def equal_parts(n: int) -> Int64[np.ndarray, "boundary"]:
    """Bounds of parts of n rows that are all as much work."""
    n_parts = max(1, min(n_threads(), n))
    return np.arange(n_parts + 1, dtype=np.int64) * n // n_parts


def in_parts(call: Callable[[slice], Any], bounds: Int64[np.ndarray, "boundary"]) -> list[Any]:
    """What a call gives for each part, in order; the parts run at once where there are threads.

    The call must let go of the interpreter, as compiled loops do.
    """
    parts = [slice(int(start), int(stop)) for start, stop in pairwise(bounds)]
    if n_threads() == 1 or len(parts) == 1:
        return [call(part) for part in parts]
    with ThreadPoolExecutor(n_threads()) as pool:
        return list(pool.map(call, parts))
