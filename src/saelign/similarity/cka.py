"""Linear centred kernel alignment."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int

from saelign.nulls.moments import trace_moments
from saelign.similarity.partners import Partners


def centred_gram(rows: Float64[np.ndarray, "row d"]) -> Float64[np.ndarray, "row row"]:
    """Inner products of the centred rows."""
    centred = rows - rows.mean(axis=0)
    return centred @ centred.T


@dataclass(frozen=True, slots=True, kw_only=True)
class CkaComparison:
    """Matched rows with both Gram matrices at hand, ready to be shuffled.

    Attributes:
        x: Gram matrix of the centred rows of X.
        y: That of Y, pairs expanded.
        partners: Who holds which.
    """

    x: Float64[np.ndarray, "pair pair"]
    y: Float64[np.ndarray, "pair pair"]
    partners: Partners

    @property
    def components(self) -> None:
        """CKA keeps every dimension."""
        return

    @property
    def scale(self) -> float:
        """The product of both norms."""
        return float(np.linalg.norm(self.x) * np.linalg.norm(self.y))

    def score(self) -> float:
        """The measure on the rows as they are matched."""
        return float(np.vdot(self.x, self.y) / self.scale)

    def shuffled(
        self, permutations: Int[np.ndarray, "shuffle partner"]
    ) -> Float64[np.ndarray, "shuffle"]:
        """The measure after each relabelling of the partners."""
        if self.partners.is_one_to_one:
            from saelign.similarity.pairwise import permuted_sums  # numba: half a second

            return permuted_sums(self.x, self.y, permutations) / self.scale
        # With repeated partners the mean of Y moves, and the norm of its Gram matrix with it.
        counts = self.partners.counts.astype(np.float64)
        weight = counts / counts.sum()
        gram = self.partners.rows @ self.partners.rows.T
        grouped = self.partners.group_sums(self.partners.group_sums(self.x).T)
        norm_x = np.linalg.norm(self.x)
        scores = np.empty(len(permutations))
        for i, s in enumerate(permutations):
            y = gram[np.ix_(s, s)]
            means = y @ weight
            y = y - means[:, None] - means[None, :] + weight @ means
            norm_y = np.sqrt(counts @ y**2 @ counts)
            scores[i] = np.vdot(grouped, y) / (norm_x * norm_y)
        return scores

    def exact_moments(self) -> tuple[float, float] | None:
        """Exact mean and standard deviation over all shuffles; one-to-one only."""
        if not self.partners.is_one_to_one:
            return None
        moments = trace_moments(len(self.x), trace_sums(self.x), trace_sums(self.y))
        if moments is None:
            return None
        mean, variance = moments
        return mean / self.scale, float(np.sqrt(variance)) / self.scale


def trace_sums(gram: Float64[np.ndarray, "pair pair"]) -> tuple[float, float, float]:
    """Trace, trace of the square, and sum of squared diagonal entries."""
    diagonal = np.diagonal(gram)
    return float(diagonal.sum()), float(np.vdot(gram, gram)), float((diagonal**2).sum())


def compare_cka(x: Float64[np.ndarray, "pair d_x"], partners: Partners) -> CkaComparison:
    """Both sides' Gram matrices, computed once."""
    return CkaComparison(x=centred_gram(x), y=centred_gram(partners.y), partners=partners)


def cka(x: Float[np.ndarray, "pair d_x"], y: Float[np.ndarray, "pair d_y"]) -> float:
    """Linear centred kernel alignment, in [0, 1].

    Works with the d_x by d_y cross-covariance, so it never builds a kernel over pairs.

    Source: Kornblith et al. (2019), "Similarity of Neural Network Representations Revisited".
    """
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    overlap = np.linalg.norm(x.T @ y) ** 2
    return float(overlap / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))
