"""The loops that have to be compiled: what is above its bound in a dense block, kept sparse."""

from typing import no_type_check

import numba
import numpy as np

# Run-time type checks, as the tests switch them on, cannot be compiled. Counting first and filling
# afterwards reads the block twice, which is still fifteen times faster than Boolean arrays and
# `nonzero`: both loops go at the speed of the memory and neither makes a temporary array.


@no_type_check
@numba.njit(parallel=True, cache=True, nogil=True)
def count_above(dense: np.ndarray, bounds: np.ndarray, counts: np.ndarray) -> None:
    """How many entries of each row are above the bound of their column; a NaN never is."""
    for row in numba.prange(dense.shape[0]):
        count = 0
        for column in range(dense.shape[1]):
            count += dense[row, column] > bounds[column]
        counts[row] = count


@no_type_check
@numba.njit(parallel=True, cache=True, nogil=True)
def fill_above(
    dense: np.ndarray,
    bounds: np.ndarray,
    stops: np.ndarray,
    columns: np.ndarray,
    values: np.ndarray,
) -> None:
    """Write these entries and their columns row by row; `stops` is the running sum of counts."""
    for row in numba.prange(dense.shape[0]):
        place = stops[row - 1] if row else 0
        for column in range(dense.shape[1]):
            value = dense[row, column]
            if value > bounds[column]:
                columns[place] = column
                values[place] = value
                place += 1
