"""Linear centred kernel alignment."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int

from saelign.nulls.moments import trace_moments
from saelign.similarity.partners import Partners
from saelign.similarity.products import (
    BLOCK_BYTES,
    lower_strips,
    mirror,
    row_blocks,
    scatter_matrix,
    shuffled_products,
)

EXACT_PAIRS = 4096
"""Beyond so many rows a Gram matrix is kept in single precision."""
STRIP_ROWS = 512
"""Rows of a Gram matrix that are computed at once."""
PRODUCTS_PER_ENTRY = 40
"""Multiplications of a matrix product in the time in which one entry of B is looked up."""

Gram = Float64[np.ndarray, "row row"] | Float32[np.ndarray, "row row"]


def gram_matrix(rows: Float64[np.ndarray, "row d"]) -> Gram:
    """Inner products of rows, exactly symmetric; in single precision where there are many."""
    gram = np.empty((len(rows), len(rows)), np.float64 if len(rows) <= EXACT_PAIRS else np.float32)
    for start, strip in lower_strips(rows, STRIP_ROWS):
        gram[start : start + len(strip), : strip.shape[1]] = strip
    mirror(gram, STRIP_ROWS)
    return gram


def norm_of(rows: Float64[np.ndarray, "row d"], gram: Gram | None) -> float:
    """Frobenius norm of the Gram matrix of rows: of what is kept of it, if anything is."""
    if gram is None:
        smaller = rows if len(rows) > rows.shape[1] else rows.T
        return float(np.linalg.norm(smaller.T @ smaller))
    blocks = row_blocks(len(gram), 8 * len(gram), BLOCK_BYTES)
    return float(np.sqrt(sum(float((gram[b].astype(np.float64) ** 2).sum()) for b in blocks)))


@dataclass(frozen=True, slots=True, kw_only=True)
class CkaComparison:
    """Matched rows, centred, ready to be shuffled.

    The trace of both Gram matrices' product is a sum over pairs of pairs, looked up in the Gram
    matrices, or the squared norm of X'Y, a product of rows: whichever is less work. Rows are those
    of partners. Beyond `EXACT_PAIRS` of them Gram matrices have single precision, to 2^-24 of an
    entry; sums and norms are of the entries as kept, in float64. By Cauchy and Schwarz the score is
    then at most 2.4e-7 from the definition; some 1e-9 is usual. Shuffles use the same entries, so
    their comparison with the score is exact.

    Attributes:
        x: Sums of the centred rows of X over the pairs that hold each partner.
        y: The distinct partners' rows, less their mean.
        gram_x: Inner products of the rows of `x`; None if products of rows are less work.
        gram_y: Those of `y`.
        norm_x: Norm of the Gram matrix of X, pairs expanded.
        norm_y: Norm of that of `y`, rows once each; with repeated partners it is of no use.
        partners: Who holds which.
    """

    x: Float64[np.ndarray, "partner d_x"]
    y: Float64[np.ndarray, "partner d_y"]
    gram_x: Gram | None
    gram_y: Gram | None
    norm_x: float
    norm_y: float
    partners: Partners

    @property
    def components(self) -> None:
        """CKA keeps every dimension."""
        return

    def score(self) -> float:
        """The measure on the rows as they are matched."""
        return float(self.shuffled(np.arange(len(self.y))[None])[0])

    def shuffled(
        self, permutations: Int[np.ndarray, "shuffle partner"]
    ) -> Float64[np.ndarray, "shuffle"]:
        """The measure after each relabelling of the partners."""
        if self.gram_x is None or self.gram_y is None:
            return self.shuffled_rows(permutations)
        narrow = permutations.astype(np.uint32)
        if self.partners.is_one_to_one:
            from saelign.similarity.pairwise import permuted_sums  # numba: half a second

            return permuted_sums(self.gram_x, self.gram_y, narrow) / (self.norm_x * self.norm_y)
        from saelign.similarity.pairwise import weighted_sums

        # With repeated partners the mean of Y moves, and the norm of its Gram matrix with it. What
        # centring takes from Y is 0 in the product, as the rows of X's Gram matrix sum to 0.
        counts = self.partners.counts.astype(np.float64)
        n_pairs = counts.sum()
        overlap, total, square, by_row = weighted_sums(self.gram_x, self.gram_y, counts, narrow).T
        norm_y = np.sqrt(square - 2 * by_row / n_pairs + (total / n_pairs) ** 2)
        return overlap / (self.norm_x * norm_y)

    def shuffled_rows(
        self, permutations: Int[np.ndarray, "shuffle partner"]
    ) -> Float64[np.ndarray, "shuffle"]:
        """The same from products of rows."""
        products = shuffled_products(self.x, self.y, permutations)
        overlap = np.concatenate([np.zeros(0), *((p**2).sum(axis=(1, 2)) for p in products)])
        if self.partners.is_one_to_one:
            return overlap / (self.norm_x * self.norm_y)
        counts = self.partners.counts.astype(np.float64)
        norms = np.empty(len(permutations))
        for i, s in enumerate(permutations):
            weight = np.empty_like(counts)
            weight[s] = counts
            scatter = scatter_matrix(self.y, weight @ self.y / weight.sum(), weight)
            norms[i] = np.linalg.norm(scatter)
        return overlap / (self.norm_x * norms)

    def exact_moments(self) -> tuple[float, float] | None:
        """Exact mean and standard deviation over all shuffles; one-to-one only."""
        if not self.partners.is_one_to_one:
            return None
        sums = [
            (float(squares.sum()), norm**2, float((squares**2).sum()))
            for rows, norm in ((self.x, self.norm_x), (self.y, self.norm_y))
            for squares in (np.einsum("rd,rd->r", rows, rows),)
        ]
        moments = trace_moments(len(self.x), *sums)
        if moments is None:
            return None
        mean, variance = moments
        scale = self.norm_x * self.norm_y
        return mean / scale, float(np.sqrt(variance)) / scale


def trace_sums(gram: Float64[np.ndarray, "pair pair"]) -> tuple[float, float, float]:
    """Trace, trace of the square, and sum of squared diagonal entries."""
    diagonal = np.diagonal(gram)
    return float(diagonal.sum()), float(np.vdot(gram, gram)), float((diagonal**2).sum())


def compare_cka(x: Float64[np.ndarray, "pair d_x"], partners: Partners) -> CkaComparison:
    """Both sides' rows centred, and their Gram matrices computed where they are of use."""
    centred = x - x.mean(axis=0)
    grouped = partners.group_sums(centred)
    y = partners.rows - partners.rows.mean(axis=0)
    n, d_x, d_y = len(y), x.shape[1], y.shape[1]
    by_rows = n * d_x * d_y + (0 if partners.is_one_to_one else n * d_y * d_y)
    looked_up = n * n // (2 if partners.is_one_to_one else 1)
    grams = by_rows > PRODUCTS_PER_ENTRY * looked_up
    gram_x, gram_y = (gram_matrix(rows) if grams else None for rows in (grouped, y))
    return CkaComparison(
        x=grouped,
        y=y,
        gram_x=gram_x,
        gram_y=gram_y,
        norm_x=norm_of(centred, gram_x if partners.is_one_to_one else None),
        norm_y=norm_of(y, gram_y),
        partners=partners,
    )


def cka(x: Float[np.ndarray, "pair d_x"], y: Float[np.ndarray, "pair d_y"]) -> float:
    """Linear centred kernel alignment, in [0, 1].

    Works with the d_x by d_y cross-covariance, so it never builds a kernel over pairs.

    Source: Kornblith et al. (2019), "Similarity of Neural Network Representations Revisited".
    """
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    overlap = np.linalg.norm(x.T @ y) ** 2
    return float(overlap / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))
