"""Procrustes similarity: how far a rotation alone can carry one set of rows into the other."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int

from saelign.similarity.partners import Partners
from saelign.similarity.products import shuffled_products
from saelign.similarity.spectra import singular_values


def nuclear_norms(
    matrices: Float64[np.ndarray, "stack row column"],
) -> Float64[np.ndarray, "stack"]:
    """Sum of the singular values of each matrix."""
    return singular_values(matrices).sum(axis=1)


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

    def norms_y(
        self, permutations: Int[np.ndarray, "shuffle partner"]
    ) -> Float64[np.ndarray, "shuffle"]:
        """Frobenius norms of the centred rows of Y, each counted as often as it then stands."""
        if self.partners.is_one_to_one:
            return np.full(len(permutations), np.linalg.norm(self.y))
        counts = self.partners.counts.astype(np.float64)
        squares = np.einsum("rd,rd->r", self.y, self.y)
        norms = np.empty(len(permutations))
        for i, s in enumerate(permutations):
            weight = np.empty_like(counts)
            weight[s] = counts
            total = weight @ self.y
            norms[i] = np.sqrt(weight @ squares - total @ total / counts.sum())
        return norms

    def score(self) -> float:
        """The measure on the rows as they are matched."""
        return float(self.shuffled(np.arange(len(self.y))[None])[0])

    def shuffled(
        self, permutations: Int[np.ndarray, "shuffle partner"]
    ) -> Float64[np.ndarray, "shuffle"]:
        """The measure after each relabelling of the partners.

        One d_x x d_y product and its singular values each; nothing smaller holds their sum.
        """
        products = shuffled_products(self.x, self.y, permutations)
        norms = np.concatenate([np.zeros(0), *(nuclear_norms(stack) for stack in products)])
        return norms / (self.norm_x * self.norms_y(permutations))

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
