"""The correlation that is left when each feature's mean given the current token is taken away.

Two models that do no more than look at the current token share every feature that is a function of
it, and so do untrained ones. Per token type (vocabulary entry) v, on which a feature sums to S_v
over n_v tokens, the cross products lose S_v S'_v / n_v and the sums of squares S_v^2 / n_v. That is
sparse, exact, and additive over chunks of tokens, since S_v and n_v are.

Source: this package.
"""

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float64, Integer

from saelign.correlation.feature_moments import FeatureMoments, inverse_roots
from saelign.correlation.threads import in_parts, parts_of
from saelign.errors import ShapeError

BLOCK = 1024
"""Pairs, features or dense rows of sums handled at once."""

DENSE_SHARE = 0.05
"""Share of non-zero products from which a dense product of two rows is the quicker one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenSums:
    """Sums of one side's activations per token type; additive over tokens.

    Attributes:
        token_ids: The token types that occur, ascending.
        counts: On how many tokens each occurs.
        sums: Token types x features: a feature's activations on the tokens of a type, summed.
    """

    token_ids: Integer[np.ndarray, "type"]
    counts: Integer[np.ndarray, "type"]
    sums: sp.csc_array

    @classmethod
    def of(cls, acts: sp.csr_array, token_ids: Integer[np.ndarray, "token"]) -> "TokenSums":
        """The sums of one chunk.

        Args:
            acts: Tokens x features.
            token_ids: The id of each of these tokens.

        Raises:
            ShapeError: There is not one id a token.
        """
        if len(token_ids) != acts.shape[0]:
            raise ShapeError(
                f"token_ids must hold one id a token, got {len(token_ids)} ids for "
                f"{acts.shape[0]} tokens"
            )
        types, type_of, counts = np.unique(token_ids, return_inverse=True, return_counts=True)
        return cls(
            token_ids=types, counts=counts, sums=summed_rows(acts, type_of, len(types)).tocsc()
        )

    def __add__(self, other: "TokenSums") -> "TokenSums":
        """The sums of both sets of tokens together; either may lack types of the other.

        Raises:
            ShapeError: They are not sums of the same features.
        """
        if self.sums.shape[1] != other.sums.shape[1]:
            raise ShapeError(
                f"chunks must have the same features, got {self.sums.shape[1]} "
                f"and then {other.sums.shape[1]}"
            )
        types, type_of = np.unique(
            np.concatenate([self.token_ids, other.token_ids]), return_inverse=True
        )
        counts = np.zeros(len(types), dtype=np.int64)
        np.add.at(counts, type_of, np.concatenate([self.counts, other.counts]))
        rows = sp.vstack([self.sums, other.sums], format="csr")
        return TokenSums(
            token_ids=types, counts=counts, sums=summed_rows(rows, type_of, len(types)).tocsc()
        )

    def of_some(self, features: Integer[np.ndarray, "chosen"]) -> "TokenSums":
        """The sums of some features, in the order given."""
        return replace(self, sums=self.sums[:, features])

    @property
    def explained_squares(self) -> Float64[np.ndarray, "feature"]:
        """Of each feature's sum of squares, what its means given the token account for."""
        sums = self.sums
        return np.bincount(
            np.repeat(np.arange(sums.shape[1]), np.diff(sums.indptr)),
            weights=sums.data**2 / self.counts[sums.indices],
            minlength=sums.shape[1],
        ).astype(np.float64)  # of nothing at all bincount gives integers


def summed_rows(
    rows: sp.csr_array, group: Integer[np.ndarray, "row"], n_groups: int
) -> sp.csr_array:
    """Groups x features, in float64: the sum of the rows of each group."""
    n_rows = len(group)
    indicator = sp.csr_array((np.ones(n_rows), (group, np.arange(n_rows))), (n_groups, n_rows))
    return sp.csr_array(indicator @ rows)


def within_token_squares(
    moments: FeatureMoments, sums: TokenSums
) -> Float64[np.ndarray, "feature"]:
    """Sum of squared deviations from the mean given the token; exactly 0 if there is none.

    A feature that is a function of the token, also a constant one, and a feature whose every token
    is the only one of its type, has none. Nor has one whose deviations are so small that rounding
    could have made them (`FeatureMoments.rounding`).

    Raises:
        ShapeError: The sums are not of the moments' tokens and features.
    """
    n_counted = int(sums.counts.sum())
    if (n_counted, sums.sums.shape[1]) != (moments.n_tokens, len(moments.squares)):
        raise ShapeError(
            "token sums must be of the same tokens and features as the moments, got "
            f"{n_counted} tokens and {sums.sums.shape[1]} features beside {moments.n_tokens} and "
            f"{len(moments.squares)}"
        )
    deviations = moments.squares - sums.explained_squares
    left = (deviations > moments.rounding) & (moments.centred_squares > 0)
    return np.where(left, deviations, 0.0)


def within_token_scales(
    moments_a: FeatureMoments, moments_b: FeatureMoments, sums_a: TokenSums, sums_b: TokenSums
) -> tuple[Float64[np.ndarray, "feature_a"], Float64[np.ndarray, "feature_b"]]:
    """One over the roots of the within-token sums of squares; NaN where nothing is left.

    Raises:
        ShapeError: The two sides were not summed over the same tokens.
    """
    squares_a = within_token_squares(moments_a, sums_a)
    squares_b = within_token_squares(moments_b, sums_b)
    if not (
        np.array_equal(sums_a.token_ids, sums_b.token_ids)
        and np.array_equal(sums_a.counts, sums_b.counts)
    ):
        raise ShapeError(
            "token sums of both sides must be over the same tokens, got different token types or "
            "counts: give both sides the same token_ids"
        )
    return inverse_roots(squares_a), inverse_roots(squares_b)


def within_token_correlation(
    products: Float64[np.ndarray, "feature_a feature_b"],
    moments_a: FeatureMoments,
    moments_b: FeatureMoments,
    sums_a: TokenSums,
    sums_b: TokenSums,
) -> Float64[np.ndarray, "feature_a feature_b"]:
    """Within-token correlation of every feature of A with every feature of B, in [-1, 1].

    Args:
        products: Their cross products, `CrossMoments.products`; left as they are.
        moments_a: A's moments over the same tokens.
        moments_b: B's.
        sums_a: A's sums per token type.
        sums_b: B's.

    Returns:
        NaN, in a whole row or column, where a feature has no variance left within tokens.

    Raises:
        ShapeError: Moments and sums are not over the same tokens.

    Source: this package.
    """
    scale_a, scale_b = within_token_scales(moments_a, moments_b, sums_a, sums_b)
    left = products.copy()
    Explained.of(sums_a, sums_b).take_from(left)
    # One side at a time: the product of the scales can leave the range of float64.
    left *= scale_a[:, None]
    left *= scale_b
    return np.clip(left, -1, 1, out=left)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Explained:
    """What the means given the token account for of cross products: S_A' diag(1/n) S_B.

    On a frequent token most features are active at some time, so its row of sums is nearly dense:
    such rows are multiplied as dense ones, the many short rows of rare tokens as sparse ones.

    Attributes:
        sparse_a: Rare token types x features of A, sums divided by minus the count.
        sparse_b: The same types through B, plain sums.
        dense_a: Frequent types, likewise.
        dense_b: The same through B.
    """

    sparse_a: sp.csc_array
    sparse_b: sp.csr_array
    dense_a: sp.csr_array
    dense_b: sp.csr_array

    @classmethod
    def of(
        cls,
        sums_a: TokenSums,
        sums_b: TokenSums,
        features_a: Integer[np.ndarray, "chosen_a"] | None = None,
        features_b: Integer[np.ndarray, "chosen_b"] | None = None,
    ) -> "Explained":
        """Of all features, or of some."""
        a = sums_a.sums if features_a is None else sums_a.sums[:, features_a]
        b = sums_b.sums if features_b is None else sums_b.sums[:, features_b]
        a, b = sp.csr_array(a), sp.csr_array(b)
        a.data /= -sums_a.counts[np.repeat(np.arange(a.shape[0]), np.diff(a.indptr))]
        n_products = np.diff(a.indptr).astype(np.float64) * np.diff(b.indptr)
        is_dense = n_products > DENSE_SHARE * a.shape[1] * b.shape[1]
        return cls(
            sparse_a=sp.csc_array(a[~is_dense]),
            sparse_b=sp.csr_array(b[~is_dense]),
            dense_a=sp.csr_array(a[is_dense]),
            dense_b=sp.csr_array(b[is_dense]),
        )

    def take_from(self, products: Float64[np.ndarray, "row feature_b"], first: int = 0) -> None:
        """Subtract it from the products of A's features from `first` on, in place."""
        from saelign.correlation.kernel import add_cross_products  # numba: half a second

        rows = slice(first, first + len(products))
        a, b = self.sparse_a, self.sparse_b
        starts_a, starts_b = a.indptr.astype(np.int64), b.indptr.astype(np.int64)
        begins, ends = starts_a[:-1][rows], starts_a[1:][rows]
        in_parts(
            lambda part: add_cross_products(
                begins[part], ends[part], a.indices, a.data,
                starts_b[:-1], starts_b[1:], b.indices, b.data, products[part],
            ),
            parts_of(ends - begins + 1),
        )  # fmt: skip
        for start in range(0, self.dense_a.shape[0], BLOCK):
            types = slice(start, start + BLOCK)
            dense_a, dense_b = self.dense_a[types, rows].toarray(), self.dense_b[types].toarray()
            for at in range(0, len(products), BLOCK):  # no second features x features array
                products[at : at + BLOCK] += dense_a[:, at : at + BLOCK].T @ dense_b


def within_token_of_pairs(
    products_of_pairs: Float64[np.ndarray, "pair"],
    moments_a: FeatureMoments,
    moments_b: FeatureMoments,
    sums_a: TokenSums,
    sums_b: TokenSums,
    a: Integer[np.ndarray, "pair"],
    b: Integer[np.ndarray, "pair"],
) -> Float64[np.ndarray, "pair"]:
    """Within-token correlation of feature a[i] of A with feature b[i] of B, in [-1, 1].

    What `within_token_correlation` has at [a, b], without the rest of it.

    Args:
        products_of_pairs: The cross product of each pair, `CrossMoments.products[a, b]`.
        moments_a: A's moments over the same tokens.
        moments_b: B's.
        sums_a: A's sums per token type.
        sums_b: B's.
        a: Features of A; may repeat.
        b: Features of B; may repeat.

    Returns:
        NaN where either feature has no variance left within tokens.

    Raises:
        ShapeError: Moments and sums are not over the same tokens.

    Source: this package.
    """
    scale_a, scale_b = within_token_scales(moments_a, moments_b, sums_a, sums_b)
    explained = np.empty(len(a))
    per_count = 1 / sums_a.counts
    for start in range(0, len(a), BLOCK):
        some = slice(start, start + BLOCK)
        explained[some] = sums_a.sums[:, a[some]].multiply(sums_b.sums[:, b[some]]).T @ per_count
    return np.clip((products_of_pairs - explained) * scale_a[a] * scale_b[b], -1, 1)
