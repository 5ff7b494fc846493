"""Eigenvalues and singular values, as many as are wanted and no dearer than need be."""

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from jaxtyping import Float64

LANCZOS_WIDTH = 1024
"""From this width on a few leading eigenvectors are sought by Lanczos iteration."""
LANCZOS_FRACTION = 64
"""A few: at most the width over this."""
RESIDUAL = 1e-12
"""What Lanczos iteration may leave of an eigenpair, in proportion to the largest eigenvalue."""
TIE = 1e-10
"""Eigenvalues that differ by less, in proportion, are equal: which of them leads is open."""
NORM_ERROR = 1e-13
"""The error, in proportion, of a sum of singular values that are taken from a Gram matrix."""


def leading_eigenpairs(
    gram: Float64[np.ndarray, "d d"], n: int | None
) -> tuple[Float64[np.ndarray, "k"], Float64[np.ndarray, "d k"]]:
    """The largest n eigenvalues, falling, and their eigenvectors; all if there are none such.

    Args:
        gram: Symmetric.
        n: How many, or None.
    """
    width = len(gram)
    if n is None or not 1 <= n <= width:
        values, vectors = scipy.linalg.eigh(gram, driver="evd")
        return values[::-1], vectors[:, ::-1]
    if width >= LANCZOS_WIDTH and n <= width // LANCZOS_FRACTION:
        found = lanczos(gram, n)
        if found is not None:
            return found
    values, vectors = scipy.linalg.eigh(gram, subset_by_index=(width - n, width - 1))
    return values[::-1], vectors[:, ::-1]


def lanczos(
    gram: Float64[np.ndarray, "d d"], n: int
) -> tuple[Float64[np.ndarray, "k"], Float64[np.ndarray, "d k"]] | None:
    """The same by Lanczos iteration; None where that cannot be shown to be right.

    An eigenvector of every pair is checked, and then that no larger eigenvalue was missed, as one
    that repeats may be: with the found ones taken away, what is left of the matrix must lie under
    the least of them. A Cholesky decomposition says so.

    Source: Lehoucq et al. (1998), "ARPACK users' guide"; the proof by this package.
    """
    start = np.random.default_rng(0).normal(size=len(gram))  # the same on every call
    # Given as a matrix it would be multiplied by columns, several times slower than by vectors.
    operator = scipy.sparse.linalg.LinearOperator(
        gram.shape, matvec=lambda v: gram @ v.ravel(), dtype=gram.dtype
    )
    try:
        values, vectors = scipy.sparse.linalg.eigsh(operator, k=n, which="LA", v0=start, tol=0)
    except scipy.sparse.linalg.ArpackError:
        return None
    values, vectors = values[::-1], vectors[:, ::-1].copy()
    left = np.abs(gram @ vectors - vectors * values).max()
    skew = np.abs(vectors.T @ vectors - np.eye(n)).max()
    if not (values[-1] > 0 and left <= RESIDUAL * values[0] and skew <= RESIDUAL):
        return None
    rest = (vectors * values) @ vectors.T
    rest -= gram
    rest[np.diag_indices(len(rest))] += values[-1] * (1 + TIE)
    _, failed = scipy.linalg.lapack.dpotrf(rest.T, clean=0, overwrite_a=1)
    return None if failed else (values, vectors)


def singular_values(
    matrices: Float64[np.ndarray, "stack row column"],
) -> Float64[np.ndarray, "stack k"]:
    """Singular values of each matrix, in no order.

    From the eigenvalues of the smaller Gram matrix, in half the time of the singular values
    themselves or less. These are certain to eps times the largest, so the root of a small one is
    not; where that would move the sum, the singular values are computed after all.
    """
    if matrices.shape[1] > matrices.shape[2]:
        matrices = matrices.transpose(0, 2, 1)
    squares = np.linalg.eigvalsh(matrices @ matrices.transpose(0, 2, 1))
    certain = squares[:, :1].min(axis=1, initial=np.inf) > 0
    values = np.sqrt(np.maximum(squares, 0))
    error = np.zeros(len(values))
    error[certain] = (squares[certain, -1:] / values[certain]).sum(axis=1) / 2
    certain &= np.finfo(np.float64).eps * error <= NORM_ERROR * values.sum(axis=1)
    if not certain.all():
        values[~certain] = np.linalg.svd(matrices[~certain], compute_uv=False)
    return values
