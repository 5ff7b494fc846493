"""Correlations that are computed when they are asked for, from sparse activations.

What is asked of correlations is each feature's strongest partners and the values of some pairs.
Both follow from the activations without the matrix, which at the widths of large dictionaries does
not fit into memory, and at smaller ones takes longer to write and to read than to do without.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float64, Int, Int64

from saelign.correlation.feature_moments import FeatureMoments
from saelign.correlation.metrics import check_metric, euclidean_from
from saelign.correlation.strongest import (
    BLOCK_BYTES,
    Listed,
    Lists,
    Strongest,
    listed_among,
    merged,
    named,
    strongest_of_blocks,
)
from saelign.correlation.threads import equal_parts, in_parts, parts_of
from saelign.correlation.within_token import (
    Explained,
    TokenSums,
    within_token_of_pairs,
    within_token_scales,
)
from saelign.errors import ShapeError

SHARE_TOUCHED = 0.5
"""Co-firings of a feature, per feature of the other side, below which only those that it co-fires
with are searched for its partners."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenRows:
    """One side's activations by token.

    Attributes:
        starts: Where each token begins in `features` and `values`.
        stops: Where it ends.
        features: The features that fire, 16-bit where that is enough: the less has to be read the
            faster are the loops.
        values: Their activations.
        n_features: The width.
    """

    starts: Int64[np.ndarray, "token"]
    stops: Int64[np.ndarray, "token"]
    features: np.ndarray
    values: np.ndarray
    n_features: int

    @classmethod
    def of(cls, acts: sp.csr_array) -> "TokenRows":
        """Tokens x features by row; values are not copied."""
        width = int(acts.shape[1])
        narrow = np.uint16 if width <= 2**16 else np.int32
        starts = acts.indptr.astype(np.int64)  # always the same types: each is compiled for anew
        return cls(
            starts=starts[:-1],
            stops=starts[1:],
            features=acts.indices.astype(narrow, copy=False),
            values=acts.data,
            n_features=width,
        )

    def tokens(self, chosen: Any) -> "TokenRows":
        """Some tokens, or all in another order; nothing is copied but where they stand."""
        return replace(self, starts=self.starts[chosen], stops=self.stops[chosen])

    def some_features(self, features: Int[np.ndarray, "chosen"]) -> "TokenRows":
        """Some features alone, in the order given."""
        from saelign.correlation.kernel import select_features  # numba: half a second

        place = np.full(self.n_features, -1, dtype=np.int32)
        place[features] = np.arange(len(features))
        starts, kept, values = select_features(
            self.starts, self.stops, self.features, self.values, place
        )
        return TokenRows(
            starts=starts[:-1],
            stops=starts[1:],
            features=kept,
            values=values,
            n_features=len(features),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeatureColumns:
    """One side's activations by feature.

    Attributes:
        starts: Where each feature begins in `tokens` and `values`.
        stops: Where it ends.
        tokens: The tokens on which it fires.
        values: Its activations there.
        n_tokens: Tokens in all.
    """

    starts: Int64[np.ndarray, "feature"]
    stops: Int64[np.ndarray, "feature"]
    tokens: np.ndarray
    values: np.ndarray
    n_tokens: int

    @classmethod
    def of(cls, acts: sp.csc_array) -> "FeatureColumns":
        """Tokens x features by column; nothing is copied."""
        starts = acts.indptr.astype(np.int64)
        return cls(
            starts=starts[:-1],
            stops=starts[1:],
            tokens=acts.indices.astype(np.int32, copy=False),
            values=acts.data,
            n_tokens=int(acts.shape[0]),
        )


def in_columns(rows: TokenRows) -> tuple[FeatureColumns, FeatureMoments]:
    """Activations by token put in order by feature, and their sums."""
    from saelign.correlation.kernel import to_columns  # numba: half a second

    starts, tokens, values, total, squares = to_columns(
        rows.starts, rows.stops, rows.features, rows.values, rows.n_features
    )
    n_tokens = len(rows.starts)
    columns = FeatureColumns(
        starts=starts[:-1], stops=starts[1:], tokens=tokens, values=values, n_tokens=n_tokens
    )
    moments = FeatureMoments(
        n_tokens=n_tokens, n_active=np.diff(starts), total=total, squares=squares
    )
    return columns, moments


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SparseCorrelation:
    """How alike features of A and of B fire, computed from activations when it is asked for.

    Stands wherever a `Correlation` can that is not read as a matrix.

    Attributes:
        metric: What features are matched by: pearson, cosine, euclidean or within_token.
        columns_a: A's activations by feature.
        columns_b: B's.
        rows_b: B's by token, in the order of A's tokens.
        moments_a: A's sums over the tokens.
        moments_b: B's.
        order_b: Which of `columns_b`'s tokens stands at each of A's; None where it is the same one.
        within: Both sides' sums per token type; for within_token alone.
        engine: What finds the strongest, called as `strongest_of_products`, if not that itself.
    """

    metric: str
    columns_a: FeatureColumns
    columns_b: FeatureColumns
    rows_b: TokenRows
    moments_a: FeatureMoments
    moments_b: FeatureMoments
    order_b: Int64[np.ndarray, "token"] | None = None
    within: tuple[TokenSums, TokenSums] | None = None
    engine: Callable[..., Lists] | None = None
    _listed: dict[int, Listed] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        check_metric(self.metric, self.within)

    @classmethod
    def of(
        cls,
        acts_a: sp.csr_array,
        acts_b: sp.csr_array,
        *,
        metric: str = "pearson",
        within: tuple[TokenSums, TokenSums] | None = None,
    ) -> "SparseCorrelation":
        """Of two checked matrices of tokens x features over the same tokens.

        Raises:
            ShapeError: They do not hold the same tokens, or none.
        """
        if acts_a.shape[0] != acts_b.shape[0] or acts_a.shape[0] == 0:
            raise ShapeError(
                "both sides must hold the same tokens, and one at least, got "
                f"{acts_a.shape[0]} and {acts_b.shape[0]}"
            )
        rows = [TokenRows.of(acts) for acts in (acts_a, acts_b)]
        sides = in_parts(lambda part: in_columns(rows[part.start]), np.arange(3))
        (columns_a, moments_a), (columns_b, moments_b) = sides
        return cls(
            metric=metric,
            columns_a=columns_a,
            columns_b=columns_b,
            rows_b=rows[1],
            moments_a=moments_a,
            moments_b=moments_b,
            within=within,
        )

    @property
    def n_tokens(self) -> int:
        """Tokens correlated over."""
        return self.moments_a.n_tokens

    @property
    def n_active_a(self) -> Int64[np.ndarray, "feature_a"]:
        """Tokens on which each feature of A is active."""
        return self.moments_a.n_active

    @property
    def n_active_b(self) -> Int64[np.ndarray, "feature_b"]:
        """Tokens on which each feature of B is active."""
        return self.moments_b.n_active

    def among(
        self, features_a: Int64[np.ndarray, "chosen_a"], features_b: Int64[np.ndarray, "chosen_b"]
    ) -> "SparseCorrelation":
        """The correlations of some features of A with some of B alone, in the order given."""
        within = self.within
        if within is not None:
            within = (within[0].of_some(features_a), within[1].of_some(features_b))
        a, b = self.columns_a, self.columns_b
        return replace(
            self,
            columns_a=replace(a, starts=a.starts[features_a], stops=a.stops[features_a]),
            columns_b=replace(b, starts=b.starts[features_b], stops=b.stops[features_b]),
            rows_b=self.rows_b.some_features(features_b),
            moments_a=self.moments_a.of_some(features_a),
            moments_b=self.moments_b.of_some(features_b),
            within=within,
            _listed={},
        )

    def by_pearson(self) -> "SparseCorrelation":
        """The same activations, matched by Pearson correlation."""
        if self.metric == "pearson":
            return self
        return replace(self, metric="pearson", within=None, _listed={})

    def pairable_a(self, min_active_tokens: int) -> Bool[np.ndarray, "feature_a"]:
        """Which features of A are active often enough, and have a similarity, to be paired."""
        return (self.n_active_a >= min_active_tokens) & ~np.isnan(self.scales()[0])

    def pairable_b(self, min_active_tokens: int) -> Bool[np.ndarray, "feature_b"]:
        """Which features of B are active often enough, and have a similarity, to be paired."""
        return (self.n_active_b >= min_active_tokens) & ~np.isnan(self.scales()[1])

    def listed(self, min_active_tokens: int, *, n_best_a: int) -> Listed:
        """The strongest partners of all features that may be paired; found once.

        Args:
            min_active_tokens: Tokens a feature must be active on.
            n_best_a: Partners to list for each feature of A at least, if there are so many.
        """
        known = self._listed.get(min_active_tokens)
        if known is None or known.n_best_a < n_best_a:
            known = listed_among(
                self,
                np.flatnonzero(self.pairable_a(min_active_tokens)),
                np.flatnonzero(self.pairable_b(min_active_tokens)),
                n_best_a=n_best_a,
            )
            self._listed[min_active_tokens] = known
        return known

    def scales(self) -> tuple[Float64[np.ndarray, "feature_a"], Float64[np.ndarray, "feature_b"]]:
        """What centred products are multiplied with; NaN for a feature without similarity."""
        a, b = self.moments_a, self.moments_b
        if self.within is not None and self.metric == "within_token":
            return within_token_scales(a, b, *self.within)
        if self.metric == "cosine":
            return a.cosine_scale, b.cosine_scale
        return a.scale, b.scale

    def strongest(
        self,
        features_a: Int64[np.ndarray, "chosen_a"],
        features_b: Int64[np.ndarray, "chosen_b"],
        *,
        n_best_a: int,
        n_best_b: int = 1,
        offsets: Float64[np.ndarray, "chosen_b"] | None = None,
    ) -> Strongest:
        """The strongest partners that some features have among each other.

        Args:
            features_a: Features of A, rising.
            features_b: Features of B, rising.
            n_best_a: Partners to list for each of A's.
            n_best_b: Partners to list for each of B's.
            offsets: To be taken off the similarities with each feature of B before they are
                compared; those returned are as they were.
        """
        if self.metric == "within_token" or (self.metric == "euclidean" and offsets is not None):
            blocks = self.blocks(features_a, features_b)
            lists = strongest_of_blocks(blocks, offsets, len(features_b), n_best_a, n_best_b)
            return named(lists, features_a, features_b, offsets)
        scale_a, scale_b = self.scales()
        total_a, total_b = self.moments_a.total, self.moments_b.total
        if self.metric == "cosine":
            total_a, total_b = np.zeros_like(total_a), np.zeros_like(total_b)
        mean_a = total_a / self.n_tokens
        if 2 * len(features_b) < self.rows_b.n_features:  # less to read, and shorter rows
            rows_b, at = self.rows_b.some_features(features_b), np.arange(len(features_b))
        else:
            rows_b, at = self.rows_b, features_b
        wide_scale = np.full(rows_b.n_features, np.nan)
        wide_total = np.zeros(rows_b.n_features)
        wide_scale[at], wide_total[at] = scale_b[features_b], total_b[features_b]
        wide_offsets = None
        if offsets is not None:
            wide_offsets = np.zeros(rows_b.n_features)
            wide_offsets[at] = offsets
        find = self.engine or strongest_of_products
        best_a, value_a, best_b, value_b = find(
            features_a, self.columns_a, rows_b, mean_a, wide_total, scale_a, wide_scale,
            wide_offsets, n_best_a, n_best_b, SHARE_TOUCHED,
        )  # fmt: skip
        position = np.full(rows_b.n_features + 1, -1)
        position[at] = np.arange(len(at))
        row_of = np.full(len(mean_a) + 1, -1)
        row_of[features_a] = np.arange(len(features_a))
        lists = position[best_a], value_a, row_of[best_b[at]], value_b[at]
        found = named(lists, features_a, features_b, offsets)
        if self.metric != "euclidean":
            return found
        return replace(
            found,
            similarity_a=euclidean_from(found.similarity_a, self.n_tokens),
            similarity_b=euclidean_from(found.similarity_b, self.n_tokens),
        )

    def blocks(
        self, features_a: Int64[np.ndarray, "chosen_a"], features_b: Int64[np.ndarray, "chosen_b"]
    ) -> Iterator[tuple[Int64[np.ndarray, "_"], Float64[np.ndarray, "_ chosen_b"]]]:
        """Similarities between some features, a block of rows at a time."""
        from saelign.correlation.kernel import add_cross_products  # numba: half a second

        a, b = self.columns_a, self.rows_b.some_features(features_b)
        scale_a, scale_b = self.scales()
        explained = None
        if self.within is not None and self.metric == "within_token":
            explained = Explained.of(*self.within, features_a, features_b)
        n_rows = max(1, BLOCK_BYTES // (8 * max(1, len(features_b))))
        for start in range(0, len(features_a), n_rows):
            rows = features_a[start : start + n_rows]
            block = np.zeros((len(rows), len(features_b)))
            in_parts(
                lambda part, rows=rows, block=block: add_cross_products(
                    a.starts[rows[part]], a.stops[rows[part]], a.tokens, a.values,
                    b.starts, b.stops, b.features, b.values, block[part],
                ),
                parts_of(a.stops[rows] - a.starts[rows] + 1),
            )  # fmt: skip
            if explained is not None:
                explained.take_from(block, start)
            elif self.metric != "cosine":
                mean_a = self.moments_a.total[rows] / self.n_tokens
                block -= np.outer(mean_a, self.moments_b.total[features_b])
            block *= scale_a[rows, None]
            block *= scale_b[features_b]
            np.clip(block, -1, 1, out=block)
            if self.metric == "euclidean":
                block = euclidean_from(block, self.n_tokens)
            yield rows, block

    def products_of_pairs(
        self, a: Int64[np.ndarray, "pair"], b: Int64[np.ndarray, "pair"]
    ) -> Float64[np.ndarray, "pair"]:
        """Sum over tokens of the product of feature a[i] of A and b[i] of B."""
        from saelign.correlation.kernel import products_of_pairs  # numba: half a second

        x, y = self.columns_a, self.columns_b
        order = np.zeros(0, np.int64) if self.order_b is None else self.order_b
        found = in_parts(
            lambda part: products_of_pairs(
                a[part], b[part], x.starts, x.stops, x.tokens, x.values,
                y.starts, y.stops, y.tokens, y.values, order, y.n_tokens,
            ),
            equal_parts(len(a)),
        )  # fmt: skip
        return np.concatenate(found)

    def pearson_of_pairs(
        self, a: Int64[np.ndarray, "pair"], b: Int64[np.ndarray, "pair"]
    ) -> Float64[np.ndarray, "pair"]:
        """Pearson correlation of feature a[i] of A with b[i] of B; NaN where one is constant."""
        x, y = self.moments_a, self.moments_b
        centred = self.products_of_pairs(a, b) - x.total[a] / self.n_tokens * y.total[b]
        return np.clip(centred * x.scale[a] * y.scale[b], -1, 1)

    def similarity_of_pairs(
        self, a: Int64[np.ndarray, "pair"], b: Int64[np.ndarray, "pair"]
    ) -> Float64[np.ndarray, "pair"]:
        """What is matched by, of feature a[i] of A and b[i] of B; NaN where there is none."""
        if self.metric == "pearson":
            return self.pearson_of_pairs(a, b)
        if self.metric == "euclidean":
            return euclidean_from(self.pearson_of_pairs(a, b), self.n_tokens)
        products = self.products_of_pairs(a, b)
        if self.within is not None and self.metric == "within_token":
            return within_token_of_pairs(
                products, self.moments_a, self.moments_b, *self.within, a, b
            )
        scale_a, scale_b = self.scales()
        return np.clip(products * scale_a[a] * scale_b[b], -1, 1)


def strongest_of_products(
    features_a: Int64[np.ndarray, "chosen_a"],
    a: FeatureColumns,
    b: TokenRows,
    mean_a: Float64[np.ndarray, "feature_a"],
    total_b: Float64[np.ndarray, "feature_b"],
    scale_a: Float64[np.ndarray, "feature_a"],
    scale_b: Float64[np.ndarray, "feature_b"],
    offsets: Float64[np.ndarray, "feature_b"] | None,
    n_best_a: int,
    n_best_b: int,
    share_touched: float,
) -> Lists:
    """The kernel's lists over all its threads, columns that it may have missed searched again."""
    from saelign.correlation.kernel import strongest_partners  # numba: half a second

    by_column = np.zeros(0) if offsets is None else offsets
    found = in_parts(
        lambda part: strongest_partners(
            features_a[part], a.starts, a.stops, a.tokens, a.values,
            b.starts, b.stops, b.features, b.values,
            mean_a, total_b, scale_a, scale_b, by_column, n_best_a, n_best_b, float(share_touched),
        ),
        parts_of(a.stops[features_a] - a.starts[features_a] + 1),
    )  # fmt: skip
    best_a, value_a = (np.concatenate([of_part[i] for of_part in found]) for i in (0, 1))
    best_b, value_b = merged(*(np.stack([of_part[i] for of_part in found]) for i in (2, 3)))
    lowest, highest = min(of_part[4] for of_part in found), max(of_part[5] for of_part in found)
    if lowest <= highest:
        # Rows that were searched only where they co-fired had this at most with the rest.
        apart = total_b * scale_b
        missed = np.maximum(-lowest * apart, -highest * apart)
        unsure = np.flatnonzero(~(value_b[:, -1] > missed) & ~np.isnan(scale_b))
        if len(unsure):
            _, _, best_b[unsure], value_b[unsure] = strongest_of_products(
                features_a, a, b.some_features(unsure), mean_a, total_b[unsure], scale_a,
                scale_b[unsure], None, 1, n_best_b, 0.0,
            )  # fmt: skip
    return best_a, value_a, best_b, value_b
