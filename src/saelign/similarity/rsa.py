"""Representational similarity analysis: are features alike in A also alike in B?"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import scipy.stats
from jaxtyping import Float, Float64, Int

from saelign.errors import DegenerateError, UnknownNameError
from saelign.nulls.moments import mantel_moments
from saelign.similarity.partners import Partners, partners_of

Inner = Literal["cosine", "pearson", "euclidean"]
Outer = Literal["spearman", "pearson"]
ROUNDING = 1e-12
"""What is smaller than this, in proportion, is 0."""


def check_options(inner: object = "cosine", outer: object = "spearman") -> None:
    """Refuse names that are no inner or outer similarity."""
    if inner not in get_args(Inner):
        raise UnknownNameError.of("inner similarity of rsa", inner, get_args(Inner))
    if outer not in get_args(Outer):
        raise UnknownNameError.of("outer similarity of rsa", outer, get_args(Outer))


def unit_rows(rows: Float64[np.ndarray, "row d"], inner: Inner) -> Float64[np.ndarray, "row d"]:
    """Rows scaled to length 1; under `pearson` each row's mean over coordinates goes first.

    Raises:
        DegenerateError: A row has no direction (all zero, or constant under `pearson`).
    """
    given = np.linalg.norm(rows, axis=1, keepdims=True)
    if inner == "pearson":
        rows = rows - rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    undirected = norms <= ROUNDING * given  # the mean of a constant row is not quite the row
    if undirected.any():
        raise DegenerateError(
            f"every row must have a direction under {inner}, row "
            f"{int(undirected.argmax())} has none"
        )
    return rows / norms


def similarity_matrix(
    rows: Float64[np.ndarray, "row d"], inner: Inner
) -> Float64[np.ndarray, "row row"]:
    """How alike each two rows are, exactly symmetric, the diagonal exactly 1 (Euclidean: 0).

    Args:
        rows: Decoder rows.
        inner: `cosine`; `pearson`, which first takes each row's mean over coordinates away and so
            is not invariant to rotation (the published choice); `euclidean`, minus the distance.

    Raises:
        DegenerateError: A row has no direction (all zero, or constant under `pearson`).
    """
    if inner == "euclidean":
        rows = rows - rows[0]  # distances stay, what all rows share does not drown them
        squares = (rows**2).sum(axis=1)
        distances = squares[:, None] + squares[None, :] - 2 * (rows @ rows.T)
        alike = -np.sqrt(np.maximum(distances, 0))
        self_similarity = 0.0
    else:
        unit = unit_rows(rows, inner)
        alike = unit @ unit.T
        self_similarity = 1.0
    alike = (alike + alike.T) / 2
    np.fill_diagonal(alike, self_similarity)
    return alike


def standardised(
    alike: Float64[np.ndarray, "pair pair"], outer: Outer
) -> Float64[np.ndarray, "pair pair"]:
    """Off-diagonal entries (or their ranks) with mean 0 and variance 1; zero diagonal.

    Raises:
        DegenerateError: All entries are equal.
    """
    upper = np.triu_indices(len(alike), 1)
    values = alike[upper]
    # Ranks would blow up what is only rounding, as between orthonormal rows.
    if not np.ptp(values) > ROUNDING * np.abs(alike).max():
        raise DegenerateError(
            f"similarities must differ between pairs of rows, all {len(values)} are equal"
        )
    if outer == "spearman":
        values = scipy.stats.rankdata(values)
    result = np.zeros_like(alike)
    result[upper] = (values - values.mean()) / values.std()
    return result + result.T


@dataclass(frozen=True, slots=True, kw_only=True)
class RsaComparison:
    """Matched rows with the similarities of both sides ranked, ready to be shuffled.

    Attributes:
        x: Standardised similarities of the rows of X.
        y: Those of Y, pairs expanded.
        alike: Raw similarities between the distinct partners.
        partners: Who holds which.
        outer: How the two matrices are compared.
    """

    x: Float64[np.ndarray, "pair pair"]
    y: Float64[np.ndarray, "pair pair"]
    alike: Float64[np.ndarray, "partner partner"]
    partners: Partners
    outer: Outer

    @property
    def components(self) -> None:
        """RSA keeps every dimension."""
        return

    def score(self) -> float:
        """The measure on the rows as they are matched."""
        n = len(self.x)
        return float(np.vdot(self.x, self.y) / (n * (n - 1)))

    def shuffled(
        self, permutations: Int[np.ndarray, "shuffle partner"]
    ) -> Float64[np.ndarray, "shuffle"]:
        """The measure after each relabelling of the partners."""
        n = len(self.x)
        if self.partners.is_one_to_one:
            from saelign.similarity.pairwise import permuted_sums  # numba: half a second

            return permuted_sums(self.x, self.y, permutations) / (n * (n - 1))
        return self.relabelled(permutations)

    def relabelled(
        self, permutations: Int[np.ndarray, "shuffle partner"]
    ) -> Float64[np.ndarray, "shuffle"]:
        """The same with repeated partners, without ranking anew.

        The similarities of Y take the same distinct values after every relabelling, only how often
        each stands changes. So the distinct values are sorted once; ranks follow from their counts.
        """
        counts = self.partners.counts
        n_pairs = len(self.partners.held)
        total = n_pairs * (n_pairs - 1) / 2
        upper = np.triu_indices(len(counts))
        values, level = np.unique(self.alike[upper], return_inverse=True)
        grouped = self.partners.group_sums(self.partners.group_sums(self.x).T)
        on_diagonal = np.arange(len(counts))
        grouped[on_diagonal, on_diagonal] /= 2  # each two pairs of a group stand twice in it
        stands = np.outer(counts, counts)
        stands[on_diagonal, on_diagonal] = counts * (counts - 1) // 2
        level_of = np.empty((len(counts), len(counts)), dtype=np.int32)
        level_of[upper] = level
        level_of.T[upper] = level
        grouped, stands = grouped[upper], stands[upper]
        scores = np.empty(len(permutations))
        for i, s in enumerate(permutations):
            levels = level_of[s[upper[0]], s[upper[1]]]
            often = np.bincount(levels, weights=stands, minlength=len(values))
            midranks = np.cumsum(often) - (often - 1) / 2
            height = midranks if self.outer == "spearman" else values
            mean = often @ height / total
            spread = np.sqrt(often @ (height - mean) ** 2 / total)
            scores[i] = grouped @ height[levels] / (spread * total)
        return scores

    def exact_moments(self) -> tuple[float, float] | None:
        """Exact mean (0) and standard deviation over all shuffles; one-to-one only."""
        if not self.partners.is_one_to_one:
            return None
        return mantel_moments(self.x, self.y)


def compare_rsa(
    x: Float64[np.ndarray, "pair d_x"],
    partners: Partners,
    *,
    inner: Inner = "cosine",
    outer: Outer = "spearman",
) -> RsaComparison:
    """Both sides' similarities, computed and ranked once.

    Raises:
        UnknownNameError: No such inner or outer similarity.
        DegenerateError: A row without direction, or all similarities equal.
    """
    check_options(inner, outer)
    distinct_x = partners_of(x)
    alike_x = similarity_matrix(distinct_x.rows, inner)
    alike = similarity_matrix(partners.rows, inner)
    held, held_x = partners.held, distinct_x.held
    return RsaComparison(
        x=standardised(alike_x[np.ix_(held_x, held_x)], outer),
        y=standardised(alike[np.ix_(held, held)], outer),
        alike=alike,
        partners=partners,
        outer=outer,
    )


def rsa(
    x: Float[np.ndarray, "pair d_x"],
    y: Float[np.ndarray, "pair d_y"],
    *,
    inner: Inner = "cosine",
    outer: Outer = "spearman",
) -> float:
    """Correlation between the similarities of X's rows and those of Y's, in [-1, 1].

    Rows that are equal are alike exactly, not up to rounding, so that repeated partners tie.

    Args:
        x: Matched rows of A.
        y: Matched rows of B.
        inner: How alike two rows of one side are: `cosine`, `pearson` (published), `euclidean`.
        outer: How the two sets of similarities are compared: `spearman` or `pearson`.

    Raises:
        UnknownNameError: No such inner or outer similarity.
        DegenerateError: A row without direction, or all similarities equal.

    Source: Kriegeskorte et al. (2008), "Representational similarity analysis".
    """
    return compare_rsa(x, partners_of(y), inner=inner, outer=outer).score()
