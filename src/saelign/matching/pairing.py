"""Which feature of A goes with which feature of B."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64, Int, Int64
from scipy.optimize import linear_sum_assignment

from saelign.correlation import Correlation, SparseCorrelation, Strongest
from saelign.correlation.strongest import Listed
from saelign.errors import ActivationError, UnknownNameError
from saelign.matching.greedy import N_LISTED, greedy_one_to_one
from saelign.matching.optimal import optimal_one_to_one

MATCHINGS = ("one_to_one", "optimal", "many_to_one", "one_to_many")
"""one_to_one: each feature at most once, greedily. optimal: each feature at most once, so that the
similarities add up to the most. many_to_one: each feature of A with its best of B. one_to_many:
each feature of B with its best of A."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairable:
    """Features that may be paired, by position, as `optimal_one_to_one` asks for their partners."""

    correlation: Correlation | SparseCorrelation
    listed: Listed

    @property
    def shape(self) -> tuple[int, int]:
        """Features of A and of B."""
        return len(self.listed.features_a), len(self.listed.features_b)

    def strongest(
        self,
        rows: Int[np.ndarray, "row"],
        columns: Int[np.ndarray, "column"],
        k: int,
        *,
        offsets: Float64[np.ndarray, "column"] | None = None,
    ) -> tuple[Int[np.ndarray, "row k"], Float64[np.ndarray, "row k"]]:
        """For each row its k best among the columns, and how alike they are."""
        a, b = self.listed.features_a, self.listed.features_b
        k = min(k, len(columns))
        if (
            offsets is None
            and (len(rows), len(columns)) == self.shape
            and k <= self.listed.n_best_a
        ):
            best = self.listed.best
        else:
            best = self.correlation.strongest(a[rows], b[columns], n_best_a=k, offsets=offsets)
        return np.searchsorted(b, best.partners_a[:, :k]), best.similarity_a[:, :k]


def match(
    correlation: Correlation | SparseCorrelation,
    *,
    how: str = "one_to_one",
    min_active_tokens: int = 30,
) -> pd.DataFrame:
    """Pairs of features, best first where each has one partner, by index otherwise.

    Features without a similarity (constant, or matched within tokens and a function of the token),
    or active on fewer than `min_active_tokens` tokens, are never paired: of features that fire two
    or three times some correlate at 1 by chance.

    Args:
        correlation: What `saelign.correlate` returned.
        how: `one_to_one` (the paper's greedy, exact), `optimal` (one-to-one with the largest total
            similarity, certified), `many_to_one` (each feature of A with its best of B) or
            `one_to_many` (each feature of B with its best of A).
        min_active_tokens: Tokens a feature must be active on to be paired; at least 1.

    Returns:
        A row a pair: `feature_a`, `feature_b`; `correlation` (Pearson); `similarity` (in the metric
        that was matched by); `margin`, the similarity minus the best other one in A's full row,
        which may be negative and is NaN where B has no other feature; `mutual`, whether each is the
        other's best.

    Raises:
        UnknownNameError: No such matching.
        ActivationError: A side has no feature that can be paired.

    Source: Lan et al. (2024), section 3; ties, margin, mutual and `optimal` by this package.
    """
    if how not in MATCHINGS:
        raise UnknownNameError.of("matching", how, MATCHINGS)
    min_active_tokens = max(1, min_active_tokens)
    for side, n_active in (("A", correlation.n_active_a), ("B", correlation.n_active_b)):
        if n_active.max(initial=0) < min_active_tokens:
            raise ActivationError(
                f"model {side} must have a feature active on at least {min_active_tokens} of "
                f"{correlation.n_tokens} tokens, the most active of {len(n_active)} has "
                f"{n_active.max(initial=0)}: use more text or lower min_active_tokens"
            )
    listed = correlation.listed(min_active_tokens, n_best_a=2 if "many" in how else N_LISTED)
    features_a, features_b, best = listed.features_a, listed.features_b, listed.best
    if len(features_a) == 0 or len(features_b) == 0:
        what = "constant" if correlation.metric != "within_token" else "a function of the token"
        raise ActivationError(
            f"both models must have a feature that is active often enough and not {what}, "
            f"got {len(features_a)} of A and {len(features_b)} of B: use more text"
        )
    best_b, best_a = best.partners_a[:, 0], best.partners_b[:, 0]
    if how == "one_to_one":
        a, b = greedy_one_to_one(correlation, features_a, features_b, listed=best).T
    elif how == "optimal":
        chosen = optimal_one_to_one(Pairable(correlation=correlation, listed=listed)).pairs
        a, b = features_a[chosen[:, 0]], features_b[chosen[:, 1]]
    elif how == "many_to_one":
        a, b = features_a, best_b
    else:
        a, b = best_a, features_b
    row, column = np.searchsorted(features_a, a), np.searchsorted(features_b, b)
    similarity = correlation.similarity_of_pairs(a, b)
    return pd.DataFrame(
        {
            "feature_a": a,
            "feature_b": b,
            "correlation": correlation.pearson_of_pairs(a, b),
            "similarity": similarity,
            "margin": similarity - best_other(best, row, b),
            "mutual": (best_b[row] == b) & (best_a[column] == a),
        }
    )


def pairs_among(
    similarity: Float[np.ndarray, "feature_a feature_b"], how: str
) -> Int64[np.ndarray, "pair 2"]:
    """The pairs that `match` makes of features few enough for all their similarities, best first.

    Args:
        similarity: Of each feature of A with each of B; all of them may be paired.
        how: As `match` names it.
    """
    n_a, n_b = similarity.shape
    if min(n_a, n_b) == 0:
        return np.zeros((0, 2), dtype=np.int64)
    if how == "one_to_one":
        from saelign.matching.greedy_kernel import take_sorted  # numba: half a second

        values = similarity.astype(np.float64).ravel()
        order = np.argsort(-values, kind="stable")
        return np.stack(np.divmod(take_sorted(order, values, n_a, n_b, -np.inf), n_b), axis=1)
    if how == "optimal":
        a, b = linear_sum_assignment(similarity, maximize=True)
    elif how == "many_to_one":
        a, b = np.arange(n_a), similarity.argmax(axis=1)
    else:
        a, b = similarity.argmax(axis=0), np.arange(n_b)
    order = np.argsort(-similarity[a, b], kind="stable")
    return np.stack([a[order], b[order]], axis=1).astype(np.int64)


def best_other(
    best: Strongest, row: Int[np.ndarray, "pair"], b: Int[np.ndarray, "pair"]
) -> Float[np.ndarray, "pair"]:
    """The best similarity in each pair's row of A, its partner left out; NaN if none is left."""
    if best.partners_a.shape[1] < 2:
        return np.full(len(row), np.nan)
    is_best = best.partners_a[row, 0] == b
    other = best.similarity_a[row, is_best.astype(np.int64)]
    return np.where(np.isneginf(other), np.nan, other)
