"""Products of tall matrices, in blocks of rows, so that no second copy of either is made."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64, Int

BLOCK_BYTES = 2**26
"""Rows that are copied on the way to a product take at most so many bytes at once."""
GATHER_BYTES = 2**23
"""Shuffled rows of a narrow matrix, several shuffles together: they should stay in the cache."""


def row_blocks(n_rows: int, row_bytes: int, limit: int) -> Iterator[slice]:
    """Slices of rows that take at most `limit` bytes together, one row at least."""
    step = max(1, limit // max(1, row_bytes))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def scatter_matrix(
    rows: Float64[np.ndarray, "row d"],
    mean: Float64[np.ndarray, "d"],
    weight: Float64[np.ndarray, "row"] | None = None,
) -> Float64[np.ndarray, "d d"]:
    """Inner products of the columns of `rows - mean`, each row counted by its weight.

    The mean is taken away before the product: afterwards it would drown a spread that is small
    against it.
    """
    total = np.zeros((rows.shape[1], rows.shape[1]))
    for block in row_blocks(len(rows), rows[:1].nbytes, BLOCK_BYTES):
        centred = rows[block] - mean
        if weight is not None:
            centred *= np.sqrt(weight[block])[:, None]
        total += centred.T @ centred
    return total


def projected(
    rows: Float64[np.ndarray, "row d"],
    mean: Float64[np.ndarray, "d"],
    directions: Float64[np.ndarray, "d k"],
) -> Float64[np.ndarray, "row k"]:
    """The product `(rows - mean) @ directions`."""
    result = np.empty((len(rows), directions.shape[1]))
    for block in row_blocks(len(rows), rows[:1].nbytes, BLOCK_BYTES):
        result[block] = (rows[block] - mean) @ directions
    return result


def shuffled_products(
    left: Float64[np.ndarray, "row k1"],
    right: Float64[np.ndarray, "row k2"],
    permutations: Int[np.ndarray, "shuffle row"],
) -> Iterator[Float64[np.ndarray, "stack k1 k2"]]:
    """The product `left.T @ right[p]` of each permutation p, as many at once as fit the cache.

    A product does not depend on the others in its stack, to the last bit.
    """
    if right.nbytes <= GATHER_BYTES:
        for some in row_blocks(len(permutations), right.nbytes, GATHER_BYTES):
            yield left.T @ np.take(right, permutations[some], axis=0)
        return
    for p in permutations:
        total = np.zeros((1, left.shape[1], right.shape[1]))
        for block in row_blocks(len(left), right[:1].nbytes, BLOCK_BYTES):
            total[0] += left[block].T @ np.take(right, p[block], axis=0)
        yield total


def lower_strips(
    rows: Float64[np.ndarray, "row d"], n_rows: int
) -> Iterator[tuple[int, Float64[np.ndarray, "here until"]]]:
    """Inner products of rows: `n_rows` rows at a time, from `start`, with all up to the last."""
    for start in range(0, len(rows), n_rows):
        stop = min(start + n_rows, len(rows))
        yield start, rows[start:stop] @ rows[:stop].T


def mirror(matrix: np.ndarray, n_rows: int) -> None:
    """Write the lower triangle into the upper one, in place."""
    for start in range(0, len(matrix), n_rows):
        stop = min(start + n_rows, len(matrix))
        matrix[:start, start:stop] = matrix[start:stop, :start].T
        corner = matrix[start:stop, start:stop]
        upper = np.triu_indices(stop - start, 1)
        corner[upper] = corner.T[upper]
