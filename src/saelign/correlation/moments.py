"""Exact correlations from moments that add up over chunks of tokens.

Five sums are enough for Pearson, cosine and Euclidean similarity alike: per feature the number of
active tokens, the sum and the sum of squares, and between features the cross products. Each is
additive over tokens, so shards are read one at a time and the result does not depend on how the
tokens were cut.
"""

import functools
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float32, Float64, Int64, Integer

from saelign.correlation.feature_moments import FeatureMoments
from saelign.correlation.metrics import METRICS, check_metric, euclidean_from
from saelign.correlation.sparse import SparseCorrelation
from saelign.correlation.strongest import (
    BLOCK_BYTES,
    Listed,
    Strongest,
    listed_among,
    named,
    strongest_of_blocks,
)
from saelign.correlation.threads import in_parts, parts_of
from saelign.correlation.within_token import TokenSums, within_token_correlation
from saelign.errors import ActivationError, ShapeError, UnknownNameError

Activations = Any
"""Tokens x features: a scipy.sparse matrix or array, a numpy array, or a torch tensor."""

TokenIds = Any
"""One token id a row of activations: anything that numpy reads as an array of integers."""


def in_memory(acts: Activations) -> Any:
    """The activations as scipy.sparse or numpy holds them; torch is not imported for it."""
    if type(acts).__module__.split(".")[0] != "torch":
        return acts if sp.issparse(acts) else np.asarray(acts)
    tensor = acts.detach().cpu()
    tensor = tensor.float() if tensor.element_size() < 4 else tensor
    if str(tensor.layout) == "torch.strided":
        return tensor.numpy()
    tensor = tensor.to_sparse_coo().coalesce()
    return sp.coo_array((tensor.values().numpy(), tuple(tensor.indices().numpy())), tensor.shape)


def as_csr(acts: Activations, *, name: str = "activations") -> sp.csr_array:
    """The activations as a checked CSR array without explicit zeros.

    Args:
        acts: Tokens x features: scipy.sparse, numpy, or torch (dense or sparse, any device).
        name: What to call them in an error.

    Raises:
        ShapeError: They are not two-dimensional.
        ActivationError: An entry is NaN or infinite; says which.
    """
    matrix = in_memory(acts)
    if matrix.ndim != 2:
        raise ShapeError(
            f"{name} must be tokens x features, got the shape {tuple(matrix.shape)}: flatten "
            "documents and positions into one axis of tokens"
        )
    if matrix.dtype not in (np.float32, np.float64):  # integers, booleans, halves
        matrix = matrix.astype(np.float64)
    csr = sp.csr_array(matrix)
    finite = np.isfinite(csr.data)
    if not finite.all():
        entry = int(np.flatnonzero(~finite)[0])
        token = int(np.searchsorted(csr.indptr, entry, side="right")) - 1
        raise ActivationError(
            f"{name} must be finite, got {csr.data[entry]} at token {token}, "
            f"feature {int(csr.indices[entry])}: look at the model's dtype and that token"
        )
    if not csr.has_canonical_format:
        csr = csr.copy()
        csr.sum_duplicates()
    if (csr.data == 0).any():
        csr = csr.copy()
        csr.eliminate_zeros()
    return csr


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossMoments:
    """Everything that the correlations of A's features with B's need; additive over tokens."""

    a: FeatureMoments
    b: FeatureMoments
    products: Float64[np.ndarray, "feature_a feature_b"]

    @classmethod
    def of(cls, acts_a: Activations, acts_b: Activations) -> "CrossMoments":
        """The moments of one chunk: the same tokens, in the same order, on both sides."""
        return sum_moments([(acts_a, acts_b)])

    def __add__(self, other: "CrossMoments") -> "CrossMoments":
        """The moments of both chunks together."""
        return CrossMoments(
            a=self.a + other.a, b=self.b + other.b, products=self.products + other.products
        )


def add_products(
    acts_a: sp.csc_array, acts_b: sp.csr_array, products: Float64[np.ndarray, "feature_a feature_b"]
) -> None:
    """Add the cross products of a chunk to `products`, in place; A by column, B by row."""
    from saelign.correlation.kernel import add_cross_products  # numba: half a second

    starts_a, starts_b = acts_a.indptr.astype(np.int64), acts_b.indptr.astype(np.int64)
    begins, ends = starts_a[:-1], starts_a[1:]
    in_parts(
        lambda part: add_cross_products(
            begins[part], ends[part], acts_a.indices, acts_a.data,
            starts_b[:-1], starts_b[1:], acts_b.indices, acts_b.data, products[part],
        ),
        parts_of(ends - begins + 1),
    )  # fmt: skip


def sum_moments(chunks: Iterable[tuple[Activations, Activations]]) -> CrossMoments:
    """The moments of all chunks, accumulated in place: one dense A x B array and no more.

    Raises:
        ShapeError: The two sides of a chunk differ in tokens, chunks differ in features, or there
            is no chunk.
    """
    checked = [(as_csr(x, name="acts_a"), as_csr(y, name="acts_b")) for x, y in chunks]
    check_same_tokens(checked)
    products = np.zeros((checked[0][0].shape[1], checked[0][1].shape[1]))
    for csr_a, csr_b in checked:
        add_products(csr_a.tocsc(), csr_b, products)
    moments_a, moments_b = (
        functools.reduce(operator.add, (FeatureMoments.of(chunk[side]) for chunk in checked))
        for side in (0, 1)
    )
    return CrossMoments(a=moments_a, b=moments_b, products=products)


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
    """How alike each feature of A and each feature of B fire.

    Attributes:
        metric: What `similarity` holds: pearson, cosine, euclidean or within_token.
        pearson: Pearson correlation, in [-1, 1]; NaN where a feature is constant.
        similarity: The quantity to match by, larger is more alike; `pearson` itself by default. NaN
            in whole rows and columns: where a feature is constant or, within_token, has no variance
            left within tokens.
        n_active_a: Tokens on which each feature of A is active.
        n_active_b: The same for B.
        n_tokens: Tokens correlated over.
    """

    metric: str
    pearson: Float32[np.ndarray, "feature_a feature_b"] | Float64[np.ndarray, "feature_a feature_b"]
    similarity: (
        Float32[np.ndarray, "feature_a feature_b"] | Float64[np.ndarray, "feature_a feature_b"]
    )
    n_active_a: Int64[np.ndarray, "feature_a"]
    n_active_b: Int64[np.ndarray, "feature_b"]
    n_tokens: int

    def pairable_a(self, min_active_tokens: int) -> Bool[np.ndarray, "feature_a"]:
        """Which features of A are active often enough, and have a similarity, to be paired."""
        return (self.n_active_a >= min_active_tokens) & self._has_similarity(axis=1)

    def pairable_b(self, min_active_tokens: int) -> Bool[np.ndarray, "feature_b"]:
        """Which features of B are active often enough, and have a similarity, to be paired."""
        return (self.n_active_b >= min_active_tokens) & self._has_similarity(axis=0)

    def by_pearson(self) -> "Correlation":
        """The same, matched by Pearson correlation."""
        return replace(self, metric="pearson", similarity=self.pearson)

    def strongest(
        self,
        features_a: Int64[np.ndarray, "chosen_a"],
        features_b: Int64[np.ndarray, "chosen_b"],
        *,
        n_best_a: int,
        n_best_b: int = 1,
        offsets: Float64[np.ndarray, "chosen_b"] | None = None,
    ) -> Strongest:
        """The strongest partners that some features have, as `SparseCorrelation.strongest`."""
        blocks = self.blocks(features_a, features_b)
        lists = strongest_of_blocks(blocks, offsets, len(features_b), n_best_a, n_best_b)
        return named(lists, features_a, features_b, offsets)

    def listed(self, min_active_tokens: int, *, n_best_a: int) -> Listed:
        """The strongest partners of all features that may be paired."""
        return listed_among(
            self,
            np.flatnonzero(self.pairable_a(min_active_tokens)),
            np.flatnonzero(self.pairable_b(min_active_tokens)),
            n_best_a=n_best_a,
        )

    def blocks(
        self, features_a: Int64[np.ndarray, "chosen_a"], features_b: Int64[np.ndarray, "chosen_b"]
    ) -> Iterator[tuple[Int64[np.ndarray, "_"], np.ndarray]]:
        """Similarities between some features, a block of rows at a time."""
        n_rows = max(1, BLOCK_BYTES // (8 * max(1, len(features_b))))
        for start in range(0, len(features_a), n_rows):
            rows = features_a[start : start + n_rows]
            yield rows, self.similarity[np.ix_(rows, features_b)]

    def pearson_of_pairs(
        self, a: Int64[np.ndarray, "pair"], b: Int64[np.ndarray, "pair"]
    ) -> Float64[np.ndarray, "pair"]:
        """Pearson correlation of feature a[i] of A with b[i] of B; NaN where one is constant."""
        return self.pearson[a, b].astype(np.float64)

    def similarity_of_pairs(
        self, a: Int64[np.ndarray, "pair"], b: Int64[np.ndarray, "pair"]
    ) -> Float64[np.ndarray, "pair"]:
        """What is matched by, of feature a[i] of A and b[i] of B; NaN where there is none."""
        return self.similarity[a, b].astype(np.float64)

    def _has_similarity(self, *, axis: int) -> Bool[np.ndarray, "feature"]:
        undefined = np.asarray(np.isnan(self.pearson).all(axis=axis))
        if self.similarity is not self.pearson:
            undefined |= np.isnan(self.similarity).all(axis=axis)
        return ~undefined


def correlation_of(
    moments: CrossMoments,
    *,
    metric: str = "pearson",
    within: tuple[TokenSums, TokenSums] | None = None,
) -> Correlation:
    """The correlations that the moments stand for.

    Pearson is always computed, since the filter on correlation always uses it. Cosine leaves the
    means in. Euclidean is minus the distance between the two features' standardised activations,
    -sqrt(2 n (1 - r)): it orders partners as Pearson does. Within_token is the correlation that is
    left when each feature's mean given the current token is taken away.

    Args:
        moments: Of all tokens.
        metric: What to match by.
        within: A's and B's sums per token type over the same tokens; for within_token alone.

    Raises:
        UnknownNameError: No such metric.
        ShapeError: The metric is within_token and `within` is missing, or of other tokens.
    """
    check_metric(metric, within)
    a, b, n = moments.a, moments.b, moments.a.n_tokens
    pearson = np.outer(a.total / -n, b.total)
    pearson += moments.products
    # One side at a time: the product of the scales can leave the range of float64.
    pearson *= a.scale[:, None]
    pearson *= b.scale
    np.clip(pearson, -1, 1, out=pearson)
    if metric == "cosine":
        similarity = moments.products * a.cosine_scale[:, None]
        similarity *= b.cosine_scale
        np.clip(similarity, -1, 1, out=similarity)
    elif metric == "euclidean":
        similarity = euclidean_from(pearson, n)
    elif metric == "within_token" and within is not None:
        similarity = within_token_correlation(moments.products, a, b, *within)
    else:
        similarity = pearson
    return Correlation(
        metric=metric,
        pearson=pearson,
        similarity=similarity,
        n_active_a=a.n_active,
        n_active_b=b.n_active,
        n_tokens=n,
    )


def correlate(
    acts_a: Activations | list[Activations] | tuple[Activations, ...],
    acts_b: Activations | list[Activations] | tuple[Activations, ...],
    *,
    metric: str = "pearson",
    token_ids: TokenIds | list[TokenIds] | tuple[TokenIds, ...] | None = None,
    dense: bool = True,
) -> Correlation | SparseCorrelation:
    """Correlations of every feature of A with every feature of B over the same tokens.

    Exact: sparse in, float64 moments, no dense tokens x features array. Several chunks of tokens
    may be given as two lists; they count as one text.

    Args:
        acts_a: Tokens x features of A: scipy.sparse, numpy or torch; or a list of such chunks.
        acts_b: The same tokens through B.
        metric: What to match by: pearson, cosine, euclidean or within_token.
        token_ids: For within_token: the id of each token, or a list of such arrays, one a chunk.
        dense: Whether to give a matrix of all correlations, 8 bytes each. If not, they are computed
            from the activations as they are asked for: `match` works on either and gives the same,
            and features may be as many as they like.

    Raises:
        ShapeError: The two sides do not hold the same tokens, or the metric is within_token and
            `token_ids` does not hold one id a token.
        ActivationError: An activation is NaN or infinite.
        UnknownNameError: No such metric.

    Source: Lan et al. (2024), section 3; the exact sparse form is this package's.
    """
    if metric not in METRICS:
        raise UnknownNameError.of("metric", metric, METRICS)
    chunks_a = acts_a if isinstance(acts_a, list | tuple) else [acts_a]
    chunks_b = acts_b if isinstance(acts_b, list | tuple) else [acts_b]
    if len(chunks_a) != len(chunks_b):
        raise ShapeError(
            f"both sides must come in the same chunks, got {len(chunks_a)} and {len(chunks_b)}"
        )
    if metric == "within_token" and token_ids is None:
        raise ShapeError(
            "metric 'within_token' must have one id a token, got none: pass them as token_ids"
        )
    ids = token_ids if isinstance(acts_a, list | tuple) else [token_ids]
    if metric == "within_token" and (ids is None or len(ids) != len(chunks_a)):
        raise ShapeError(
            "token_ids must come in the same chunks as the activations, got "
            f"{0 if ids is None else len(ids)} and {len(chunks_a)}"
        )
    chunks = [
        (as_csr(x, name="acts_a"), as_csr(y, name="acts_b"))
        for x, y in zip(chunks_a, chunks_b, strict=True)
    ]
    within = None
    if metric == "within_token":
        check_same_tokens(chunks)
        sums_a, sums_b = (
            sum_token_sums((chunk[side] for chunk in chunks), map(as_token_ids, ids or ()))
            for side in (0, 1)
        )
        within = sums_a, sums_b
    if dense:
        return correlation_of(sum_moments(chunks), metric=metric, within=within)
    check_same_tokens(chunks)
    csr_a, csr_b = (
        chunks[0][side] if len(chunks) == 1 else sp.csr_array(sp.vstack([c[side] for c in chunks]))
        for side in (0, 1)
    )
    return SparseCorrelation.of(csr_a, csr_b, metric=metric, within=within)


def check_same_tokens(chunks: list[tuple[sp.csr_array, sp.csr_array]]) -> None:
    """Refuse chunks whose sides differ in tokens, or that differ in features.

    Raises:
        ShapeError: They do, or there is no token at all.
    """
    for csr_a, csr_b in chunks:
        if csr_a.shape[0] != csr_b.shape[0]:
            raise ShapeError(
                f"both sides must hold the same tokens, got {csr_a.shape[0]} and {csr_b.shape[0]}"
            )
        widths, first = (csr_a.shape[1], csr_b.shape[1]), chunks[0]
        if widths != (first[0].shape[1], first[1].shape[1]):
            raise ShapeError(
                "chunks must have the same features, got "
                f"{(first[0].shape[1], first[1].shape[1])} and then {widths}"
            )
    if not sum(csr_a.shape[0] for csr_a, _ in chunks):
        raise ShapeError("there must be at least one token to correlate over, got none")


def as_token_ids(token_ids: TokenIds) -> Integer[np.ndarray, "token"]:
    """The ids as a checked array.

    Raises:
        ShapeError: They are not integers along one axis.
    """
    ids = np.asarray(in_memory(token_ids))
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ShapeError(
            f"token_ids must be integers along one axis, one a token, got {ids.dtype} of shape "
            f"{ids.shape}"
        )
    return ids


def sum_token_sums(
    chunks: Iterable[sp.csr_array], token_ids: Iterable[Integer[np.ndarray, "_"]]
) -> TokenSums:
    """One side's sums per token type over all chunks, of which there is at least one."""
    return functools.reduce(operator.add, map(TokenSums.of, chunks, token_ids))
