"""Procrustes similarity: how far a rotation alone can carry one set of rows into the other."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int

from saelign.similarity.partners import Partners

SMALLEST_SQUARE = 1e-10
"""Squared singular values below this, in proportion, are not taken from a Gram matrix."""


def nuclear_norm(matrix: Float64[np.ndarray, "row column"]) -> float:
    """Sum of the singular values.

    From the eigenvalues of the smaller Gram matrix, in half the time of the singular values
    themselves (d = 128 x 256). These are certain to eps times the largest, so the root of a small
    one is not; where there is one the singular values are computed after all.
    """
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    squares = np.linalg.eigvalsh(matrix @ matrix.T)
    if squares[0] > SMALLEST_SQUARE * squares[-1]:
        return float(np.sqrt(squares).sum())
    return float(np.linalg.svd(matrix, compute_uv=False).sum())


def without_empty_dimensions(
    rows: Float64[np.ndarray, "row d"],
) -> Float64[np.ndarray, "row r"]:
    """The rows in coordinates of their own span where they are too few to fill every dimension.

    Inner products stay. Centred rows without one zero have no full rank either, hence `<=`.
    """
    if len(rows) > rows.shape[1]:
        return rows
    u, s, _ = np.linalg.svd(rows, full_matrices=False)
    return (u * s)[:, s >= max(rows.shape) * np.finfo(np.float64).eps * s[0]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcrustesComparison:
    """Matched rows, centred and without empty dimensions, ready to be shuffled.

    Attributes:
        x: Sums of the centred rows of X over the pairs that hold each partner.
        y: The distinct partners' rows, less their mean.
        norm_x: Frobenius norm of the centred rows of X.
        partners: Who holds which.
    """

    x: Float64[np.ndarray, "partner r_x"]
    y: Float64[np.ndarray, "partner r_y"]
    norm_x: float
    partners: Partners

    @property
    def components(self) -> None:
        """Procrustes keeps every dimension."""
        return

    def norm_y(self, y: Float64[np.ndarray, "partner r_y"]) -> float:
        """Frobenius norm of the centred rows of Y, each counted as often as it stands."""
        counts = self.partners.counts.astype(np.float64)
        centred = y - counts @ y / counts.sum()
        return float(np.sqrt(counts @ (centred**2).sum(axis=1)))

    def score(self) -> float:
        """The measure on the rows as they are matched."""
        return nuclear_norm(self.x.T @ self.y) / (self.norm_x * self.norm_y(self.y))

    def shuffled(
        self, permutations: Int[np.ndarray, "shuffle partner"]
    ) -> Float64[np.ndarray, "shuffle"]:
        """The measure after each relabelling of the partners.

        One d_x x d_y product and its singular values each; nothing smaller holds their sum.
        """
        norm_y = self.norm_y(self.y)
        scores = np.empty(len(permutations))
        for i, s in enumerate(permutations):
            y = self.y[s]
            if not self.partners.is_one_to_one:  # the mean of Y moves, and its norm with it
                norm_y = self.norm_y(y)
            scores[i] = nuclear_norm(self.x.T @ y) / (self.norm_x * norm_y)
        return scores

    def exact_moments(self) -> None:
        """The nuclear norm has none in closed form."""
        return


def compare_procrustes(
    x: Float64[np.ndarray, "pair d_x"], partners: Partners
) -> ProcrustesComparison:
    """Both sides centred and reduced once."""
    centred = x - x.mean(axis=0)
    return ProcrustesComparison(
        x=without_empty_dimensions(partners.group_sums(centred)),
        y=without_empty_dimensions(partners.rows - partners.rows.mean(axis=0)),
        norm_x=float(np.linalg.norm(centred)),
        partners=partners,
    )


def procrustes(x: Float[np.ndarray, "pair d_x"], y: Float[np.ndarray, "pair d_y"]) -> float:
    """Nuclear norm of X'Y over the product of both Frobenius norms, both centred, in [0, 1].

    The inner product of the two after the best rotation of one. In the terms of scipy's
    `procrustes`, whose disparity is a distance, 1 - score^2.

    Source: Schönemann (1966), "A generalized solution of the orthogonal Procrustes problem";
    normalised by this package.
    """
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return float(np.linalg.norm(x.T @ y, ord="nuc") / (np.linalg.norm(x) * np.linalg.norm(y)))
