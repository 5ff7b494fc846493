"""Activations of the tokens of a unit -> one row a unit."""

import numpy as np
import scipy.sparse as sp
from jaxtyping import Int

from saelign.errors import ShapeError, UnknownNameError

POOLINGS = ("last", "max", "mean")


def pooled(acts: sp.csr_array, counts: Int[np.ndarray, "unit"], how: str) -> sp.csr_array:
    """One row a unit: the last token's, or of each feature the largest or the mean of its tokens.

    Args:
        acts: A row a token, those of a unit one after the other.
        counts: How many tokens each unit has, at least one.
        how: One of `POOLINGS`.

    Raises:
        UnknownNameError: `how` is none of these.
        ShapeError: The units do not have as many tokens as there are rows.
    """
    if how not in POOLINGS:
        raise UnknownNameError.of("pooling", how, POOLINGS)
    n_tokens, d_sae = acts.shape
    if int(counts.sum()) != n_tokens or (counts < 1).any():
        raise ShapeError(
            f"units must have as many tokens as there are rows, got {int(counts.sum()):,} tokens "
            f"for {n_tokens:,} rows"
        )
    if how == "last":
        return acts[np.cumsum(counts) - 1]
    unit_of_row = np.repeat(np.arange(len(counts)), counts)
    unit = np.repeat(unit_of_row, np.diff(acts.indptr))
    order = np.lexsort((acts.indices, unit))
    unit, features, values = unit[order], acts.indices[order], acts.data[order]
    is_first = np.ones(len(unit), dtype=bool)
    is_first[1:] = (unit[1:] != unit[:-1]) | (features[1:] != features[:-1])
    starts = np.flatnonzero(is_first)
    if len(starts):
        reduce = np.maximum if how == "max" else np.add
        values = reduce.reduceat(values.astype(np.float64), starts)
    if how == "mean":
        values = values / counts[unit[starts]]
    indptr = np.zeros(len(counts) + 1, dtype=acts.indptr.dtype)
    np.cumsum(np.bincount(unit[starts], minlength=len(counts)), out=indptr[1:])
    matrix = sp.csr_array(
        (values.astype(np.float32), features[starts], indptr), shape=(len(counts), d_sae)
    )
    matrix.has_sorted_indices = True
    return matrix
