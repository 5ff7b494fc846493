"""Canonical correlations of principal components: pc1, svcca, svcca_r2, pwcca.

The K matched pairs are the samples. Each side keeps its leading principal components; the canonical
correlations between the two K x k bases are the singular values of their product. A shuffle leaves
both bases as they are, so the decompositions are done once and a shuffle costs one K x k1 x k2
product.
"""

from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float64, Int
from threadpoolctl import threadpool_limits

from saelign.correlation.threads import equal_parts, in_parts
from saelign.errors import DegenerateError
from saelign.nulls.moments import trace_moments
from saelign.similarity.partners import Partners
from saelign.similarity.products import projected, scatter_matrix, shuffled_products
from saelign.similarity.spectra import leading_eigenpairs, singular_values

Summary = Literal["mean", "mean_square", "projection_weighted"]

SHUFFLES_AT_ONCE = 256
"""Products of bases that are summarised together: of 20 components each, under a MiB."""


def default_n_components(n_pairs: int, d_x: int, d_y: int) -> int:
    """Components kept when none are asked for: min(20, K // 5), never more than the width."""
    return min(20, n_pairs // 5, d_x, d_y)


@dataclass(frozen=True, slots=True)
class Components:
    """The leading principal components of centred rows.

    Attributes:
        basis: Orthonormal, a column a component.
        directions: Where each component points, scaled so that `(rows - mean) @ directions` is the
            basis.
    """

    basis: Float64[np.ndarray, "row k"]
    directions: Float64[np.ndarray, "d k"]

    @property
    def loadings(self) -> Float64[np.ndarray, "k d"]:
        """What each column has of each component: `basis.T @ (rows - mean)`, rows once each."""
        return (self.directions / (self.directions**2).sum(axis=0)).T


def leading_components(
    rows: Float64[np.ndarray, "row d"],
    *,
    n_components: int | None = None,
    variance: float | None = None,
) -> Components:
    """The principal components of rows, through the smaller of the two Gram matrices.

    Args:
        rows: Not centred.
        n_components: How many components to keep, or
        variance: the fraction of the variance that they must hold at least.

    Raises:
        DegenerateError: The rows do not have so many components.
    """
    mean = rows.mean(axis=0)
    about: dict[str, Any] = {
        "n_components": n_components,
        "variance": variance,
        "rows": rows,
        "n_rows": len(rows),
    }
    if len(rows) < rows.shape[1]:  # few rows: they may be copied
        centred = rows - mean
        values, vectors = kept_eigenpairs(centred @ centred.T, **about)
        return Components(vectors, centred.T @ vectors / values)
    values, vectors = kept_eigenpairs(scatter_matrix(rows, mean), **about)
    directions = vectors / np.sqrt(values)
    return Components(projected(rows, mean, directions), directions)


def kept_eigenpairs(
    gram: Float64[np.ndarray, "d d"],
    n_components: int | None,
    variance: float | None,
    rows: Float64[np.ndarray, "row d_rows"],
    n_rows: int,
) -> tuple[Float64[np.ndarray, "k"], Float64[np.ndarray, "d k"]]:
    """Eigenpairs of a Gram matrix of `n_rows` rows: those of the components that are kept.

    Raises:
        DegenerateError: The rows do not have so many components.
    """
    values, vectors = leading_eigenpairs(gram, n_components)
    total = np.trace(gram)
    # Components beyond the rank are rounding; their directions would be noise.
    rank = int((values > len(gram) * np.finfo(np.float64).eps * total).sum())
    if n_components is None:
        n_components = n_holding(values[:rank], variance)
    check_rank(n_components, rank, rows, n_rows)
    return values[:n_components], vectors[:, :n_components]


class RelabelledRows:
    """Rows that repeat, and the components that they have after each relabelling of the partners.

    A relabelling changes how often each row stands. So the Gram matrix of rows that stand once each
    is made once, and what a relabelling adds is made of the rows that it lets stand more often,
    often a small part of them.

    Source: this package.
    """

    def __init__(self, partners: Partners) -> None:
        rows = partners.rows
        self.counts = partners.counts.astype(np.float64)
        self.rows = rows - rows.mean(axis=0)
        self.is_dual = len(rows) < rows.shape[1]
        if self.is_dual:
            self.gram = self.rows @ self.rows.T
        else:
            self.gram = scatter_matrix(self.rows, np.zeros(rows.shape[1]))
        self.repeating = np.flatnonzero(self.counts > 1)
        self.extra = self.counts[self.repeating] - 1

    def basis(
        self,
        permutation: Int[np.ndarray, "partner"],
        *,
        n_components: int | None,
        variance: float | None,
    ) -> Float64[np.ndarray, "partner k"]:
        """The components' basis when label i holds row `permutation[i]`.

        Orthonormal when each of its rows is counted as often as it stands.

        Raises:
            DegenerateError: The relabelled rows do not have so many components.
        """
        n_pairs = int(self.counts.sum())
        added = self.rows[permutation[self.repeating]]
        mean = self.extra @ added / n_pairs  # the rows themselves have the mean 0
        about: dict[str, Any] = {
            "n_components": n_components,
            "variance": variance,
            "rows": self.rows,
            "n_rows": n_pairs,
        }
        if self.is_dual:
            gram = self.gram[np.ix_(permutation, permutation)]
            with_mean = self.rows[permutation] @ mean
            gram -= with_mean[:, None] + with_mean[None, :] - mean @ mean
            root = np.sqrt(self.counts)
            _, vectors = kept_eigenpairs(gram * (root[:, None] * root[None, :]), **about)
            return vectors / root[:, None]
        added = added * np.sqrt(self.extra)[:, None]
        gram = self.gram + added.T @ added - n_pairs * np.outer(mean, mean)
        values, vectors = kept_eigenpairs(gram, **about)
        directions = vectors / np.sqrt(values)
        return (self.rows @ directions)[permutation] - mean @ directions


def n_holding(variances: Float64[np.ndarray, "component"], fraction: float | None) -> int:
    """How many components, largest first, hold that fraction of the variance; all if None."""
    if fraction is None or len(variances) == 0:
        return len(variances)
    held = np.cumsum(variances)
    return int(np.searchsorted(held, fraction * held[-1])) + 1


def check_choice(n_components: object = None, variance: object = None) -> None:
    """Refuse both ways of choosing components at once, and values that are no such choice."""
    for name, value, kind, told in (
        ("n_components", n_components, int, "a whole number"),
        ("variance", variance, float, "a number"),
    ):
        if value is not None and (not isinstance(value, kind | int) or isinstance(value, bool)):
            raise DegenerateError(f"{name} must be {told}, got {value!r}")
    if n_components is not None and variance is not None:
        raise DegenerateError(
            f"either n_components or variance must be given, got both ({n_components}, {variance})"
        )
    if isinstance(n_components, int) and n_components < 1:
        raise DegenerateError(f"n_components must be at least 1, got {n_components}")
    if isinstance(variance, float | int) and not 0 < variance <= 1:
        raise DegenerateError(f"variance must be a fraction in (0, 1], got {variance}")


def check_rank(
    n_components: int, rank: int, rows: Float64[np.ndarray, "row d"], n_pairs: int
) -> None:
    """Refuse components that the rows do not have."""
    if not 1 <= n_components <= rank:
        raise DegenerateError(
            f"n_components must lie between 1 and the rank of the matched rows, {rank}, got "
            f"{n_components} for {n_pairs} pairs ({len(rows)} distinct) of width {rows.shape[1]}: "
            "ask for fewer components or match more pairs"
        )


def check_surplus(k1: int, k2: int, n_pairs: int) -> None:
    """Refuse bases that must meet: k1 + k2 - (K - 1) correlations are 1 for any data."""
    if k1 + k2 > n_pairs - 1:
        raise DegenerateError(
            f"n_components of both sides must sum to at most n_pairs - 1 = {n_pairs - 1}, got "
            f"{k1} + {k2}: {k1 + k2 - n_pairs + 1} canonical correlations would be 1 for any data; "
            "ask for fewer components or match more pairs"
        )


def projection_weighted(
    overlap: Float64[np.ndarray, "k1 k2"], loadings: Float64[np.ndarray, "k1 d_x"]
) -> float:
    """Mean of the canonical correlations, weighted by what X's columns have of each direction."""
    left, r, _ = np.linalg.svd(overlap, full_matrices=False)
    weights = np.abs(left.T @ loadings).sum(axis=1)
    return float(weights @ np.minimum(r, 1.0) / weights.sum())


def summarise(
    overlaps: Float64[np.ndarray, "shuffle k1 k2"],
    summary: Summary,
    loadings: Float64[np.ndarray, "k1 d_x"],
) -> Float64[np.ndarray, "shuffle"]:
    """One number for the canonical correlations that each product of bases holds."""
    if summary == "mean_square":
        return (overlaps**2).sum(axis=(1, 2)) / min(overlaps.shape[1:])
    if summary == "projection_weighted":
        return np.array([projection_weighted(overlap, loadings) for overlap in overlaps])
    if overlaps.shape[1:] == (1, 1):
        return np.minimum(np.abs(overlaps[:, 0, 0]), 1.0)
    return np.minimum(singular_values(overlaps), 1.0).mean(axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class CanonicalComparison:
    """Matched rows with both bases at hand, ready to be shuffled.

    Attributes:
        x: Components of A's rows.
        basis_y: Basis of B's, a row a distinct partner.
        partners: Who holds which.
        relabelled: B's rows where they repeat: a shuffle changes their components.
        n_components: How many were asked for.
        variance: Or which fraction of the variance.
        summary: What is said of the canonical correlations.
    """

    x: Components
    basis_y: Float64[np.ndarray, "partner k2"]
    partners: Partners
    relabelled: RelabelledRows | None
    n_components: int | None
    variance: float | None
    summary: Summary

    @property
    def components(self) -> tuple[int, int]:
        """How many components each side keeps."""
        return self.x.basis.shape[1], self.basis_y.shape[1]

    def score(self) -> float:
        """The measure on the rows as they are matched."""
        return float(self.of_bases(self.basis_y, np.arange(len(self.basis_y))[None])[0])

    def of_bases(
        self,
        basis: Float64[np.ndarray, "partner k2"],
        permutations: Int[np.ndarray, "shuffle partner"],
    ) -> Float64[np.ndarray, "shuffle"]:
        """The measure on X's basis and shuffled rows of that one."""
        sums = self.partners.group_sums(self.x.basis)
        products = shuffled_products(sums, basis, permutations)
        loadings = self.x.loadings
        return np.concatenate([summarise(stack, self.summary, loadings) for stack in products])

    def shuffled(
        self, permutations: Int[np.ndarray, "shuffle partner"]
    ) -> Float64[np.ndarray, "shuffle"]:
        """The measure after each relabelling of the partners."""
        if self.relabelled is None:
            with threadpool_limits(1, user_api="blas"):  # a core a part is faster than all for one
                found = in_parts(
                    lambda part: self.of_bases(self.basis_y, permutations[part]),
                    equal_parts(len(permutations)),
                )
            return np.concatenate([np.zeros(0), *found])
        sums, loadings = self.partners.group_sums(self.x.basis), self.x.loadings
        basis = partial(
            self.relabelled.basis, n_components=self.n_components, variance=self.variance
        )
        overlaps = (sums.T @ basis(permutation) for permutation in permutations)
        # Components that hold a fraction of the variance are not as many each time.
        at_once = 1 if self.n_components is None else SHUFFLES_AT_ONCE
        stacks = iter(lambda: list(islice(overlaps, at_once)), [])
        found = [summarise(np.stack(stack), self.summary, loadings) for stack in stacks]
        return np.concatenate([np.zeros(0), *found])

    def exact_moments(self) -> tuple[float, float] | None:
        """Mean and standard deviation over all shuffles; only the mean square has them."""
        if self.summary != "mean_square" or self.relabelled is not None:
            return None
        return canonical_moments(self.x.basis, self.basis_y)  # in any order of the pairs


def canonical_moments(
    u: Float64[np.ndarray, "pair k1"], w: Float64[np.ndarray, "pair k2"]
) -> tuple[float, float] | None:
    """Exact mean and standard deviation of the mean squared canonical correlation."""
    k1, k2 = u.shape[1], w.shape[1]
    moments = trace_moments(
        len(u),
        (float(k1), float(k1), float(((u**2).sum(axis=1) ** 2).sum())),
        (float(k2), float(k2), float(((w**2).sum(axis=1) ** 2).sum())),
    )
    if moments is None:
        return None
    mean, variance = moments
    return mean / min(k1, k2), float(np.sqrt(variance)) / min(k1, k2)


def compare_canonically(
    x: Float64[np.ndarray, "pair d_x"],
    partners: Partners,
    *,
    summary: Summary,
    n_components: int | None = None,
    variance: float | None = None,
) -> CanonicalComparison:
    """Both sides' components, taken once.

    Raises:
        DegenerateError: Fewer components than asked for, both `n_components` and `variance` asked
            for, or so many that some correlations would be 1 for any data.
    """
    check_choice(n_components, variance)
    if n_components is None and variance is None:
        n_components = default_n_components(len(x), x.shape[1], partners.rows.shape[1])
    chosen: dict[str, Any] = {"n_components": n_components, "variance": variance}
    side_x = leading_components(x, **chosen)
    relabelled = None if partners.is_one_to_one else RelabelledRows(partners)
    if relabelled is None:
        basis_y = leading_components(partners.rows, **chosen).basis
    else:
        basis_y = relabelled.basis(np.arange(len(partners.rows)), **chosen)
    check_surplus(side_x.basis.shape[1], basis_y.shape[1], len(x))
    return CanonicalComparison(
        x=side_x,
        basis_y=basis_y,
        partners=partners,
        relabelled=relabelled,
        **chosen,
        summary=summary,
    )


def compare_pc1(x: Float64[np.ndarray, "pair d_x"], partners: Partners) -> CanonicalComparison:
    """Both sides' first component."""
    return compare_canonically(x, partners, summary="mean", n_components=1)


def leading_bases(
    x: Float64[np.ndarray, "pair d_x"],
    y: Float64[np.ndarray, "pair d_y"],
    *,
    n_components: int | None = None,
    variance: float | None = None,
) -> tuple[Float64[np.ndarray, "pair k1"], Float64[np.ndarray, "pair k2"]]:
    """Both sides' leading components by the definition, an SVD of the centred rows; orthonormal.

    Args:
        x: Matched rows of A.
        y: Matched rows of B.
        n_components: Components kept on either side, or
        variance: the fraction of variance that they must hold; min(20, K // 5) if neither.

    Raises:
        DegenerateError: As `compare_canonically`.
    """
    check_choice(n_components, variance)
    if n_components is None and variance is None:
        n_components = default_n_components(len(x), x.shape[1], y.shape[1])
    bases = []
    for rows in (x, y):
        u, s, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
        rank = int((s > max(rows.shape) * np.finfo(np.float64).eps * s[0]).sum())
        k = n_holding(s[:rank] ** 2, variance) if n_components is None else n_components
        check_rank(k, rank, rows, len(x))
        bases.append(u[:, :k])
    check_surplus(bases[0].shape[1], bases[1].shape[1], len(x))
    return bases[0], bases[1]


def canonical_correlations(
    x: Float64[np.ndarray, "pair d_x"],
    y: Float64[np.ndarray, "pair d_y"],
    *,
    n_components: int | None = None,
    variance: float | None = None,
) -> Float64[np.ndarray, "k"]:
    """Canonical correlations of the leading components; arguments as `leading_bases`.

    Source: Raghu et al. (2017), "SVCCA".
    """
    u, w = leading_bases(x, y, n_components=n_components, variance=variance)
    return np.minimum(np.linalg.svd(u.T @ w, compute_uv=False), 1.0)


def pc1(x: Float[np.ndarray, "pair d_x"], y: Float[np.ndarray, "pair d_y"]) -> float:
    """Absolute correlation of the two first principal components, in [0, 1].

    This is what both papers print as "SVCCA": their cut on variance keeps one component. Under its
    true name it reproduces the published numbers; it says little about a whole space.

    Source: Lan et al. (2024), code; named by this package.
    """
    return float(canonical_correlations(x, y, n_components=1)[0])


def svcca(
    x: Float[np.ndarray, "pair d_x"],
    y: Float[np.ndarray, "pair d_y"],
    *,
    n_components: int | None = None,
    variance: float | None = None,
) -> float:
    """Mean canonical correlation of the leading components, in [0, 1].

    Far above 0 for independent rows unless K is much larger than the components: read it beside its
    null, or calibrated.

    Source: Raghu et al. (2017), "SVCCA".
    """
    return float(canonical_correlations(x, y, n_components=n_components, variance=variance).mean())


def svcca_r2(
    x: Float[np.ndarray, "pair d_x"],
    y: Float[np.ndarray, "pair d_y"],
    *,
    n_components: int | None = None,
    variance: float | None = None,
) -> float:
    """Mean squared canonical correlation of the leading components, in [0, 1].

    Squared, it has an exact mean and variance over all shuffles.

    Source: Raghu et al. (2017), "SVCCA"; moments Kazi-Aoual et al. (1995).
    """
    r = canonical_correlations(x, y, n_components=n_components, variance=variance)
    return float((r**2).mean())


def pwcca(
    x: Float[np.ndarray, "pair d_x"],
    y: Float[np.ndarray, "pair d_y"],
    *,
    n_components: int | None = None,
    variance: float | None = None,
) -> float:
    """Projection-weighted mean canonical correlation of the leading components, in [0, 1].

    A direction counts for what X's columns have of it: with h_i its canonical variate and x_j the
    centred columns of X, all of them, the weight of correlation i is sum over j of abs(<h_i, x_j>).
    So the score is not symmetric, and since columns are coordinates it changes when X is rotated.
    The paper keeps every component; here they are those of `svcca`, refused where it refuses. X
    gives the weights; `score` takes A for X, or B where features of A alone repeat (one_to_many).
    Between correlations that are equal exactly the weights are not defined, nor is their split.

    Source: Morcos et al. (2018), "Insights on representational similarity in neural networks with
    canonical correlation".
    """
    u, w = leading_bases(x, y, n_components=n_components, variance=variance)
    left, r, _ = np.linalg.svd(u.T @ w, full_matrices=False)
    variates = u @ left
    weights = np.abs(variates.T @ (x - x.mean(axis=0))).sum(axis=1)
    return float(weights @ np.minimum(r, 1.0) / weights.sum())
