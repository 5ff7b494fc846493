"""Which feature of A goes with which feature of B."""

import heapq

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from saelign.correlation import Correlation
from saelign.errors import ActivationError, UnknownNameError

MATCHINGS = ("one_to_one", "many_to_one", "one_to_many")
"""one_to_one: each feature at most once. many_to_one: each feature of A with its best of B.
one_to_many: each feature of B with its best of A."""


def greedy_one_to_one(
    similarity: Float[np.ndarray, "feature_a feature_b"],
) -> Int[np.ndarray, "pair 2"]:
    """The pairs taken by repeatedly choosing the most alike that are both still free.

    Exact: the same pairs, in the same order, as sorting all of them; ties go to the lower index of
    A, then of B. Each row waits in a heap with its best free partner and looks again only when that
    partner was taken, since what a row can still get never grows.

    Source: Lan et al. (2024), section 3, as the text states it (their code keeps the lowest index).
    """
    n_a, n_b = similarity.shape
    free = np.ones(n_b, dtype=bool)
    best = similarity.argmax(axis=1)
    heap = [(-similarity[a, b], a, b) for a, b in enumerate(best.tolist())]
    heapq.heapify(heap)
    pairs: list[tuple[int, int]] = []
    while len(pairs) < min(n_a, n_b):
        _, a, b = heapq.heappop(heap)
        if free[b]:
            free[b] = False
            pairs.append((a, b))
        else:
            row = np.where(free, similarity[a], -np.inf)
            b = int(row.argmax())
            heapq.heappush(heap, (-row[b], a, b))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def match(
    correlation: Correlation, *, how: str = "one_to_one", min_active_tokens: int = 30
) -> pd.DataFrame:
    """Pairs of features, best first in `one_to_one`, by index otherwise.

    Features without a similarity (constant, or matched within tokens and a function of the token),
    or active on fewer than `min_active_tokens` tokens, are never paired: of features that fire two
    or three times some correlate at 1 by chance.

    Args:
        correlation: What `saelign.correlate` returned.
        how: `one_to_one` (the paper's greedy, exact), `many_to_one` (each feature of A with its
            best of B) or `one_to_many` (each feature of B with its best of A).
        min_active_tokens: Tokens a feature must be active on to be paired; at least 1.

    Returns:
        A row a pair: `feature_a`, `feature_b`; `correlation` (Pearson); `similarity` (in the metric
        that was matched by); `margin`, the similarity minus the best other one in A's full row,
        which may be negative and is NaN where B has no other feature; `mutual`, whether each is the
        other's best.

    Raises:
        UnknownNameError: No such matching.
        ActivationError: A side has no feature that can be paired.

    Source: Lan et al. (2024), section 3; METHODS of this package for ties, margin and mutual.
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
    features_a = np.flatnonzero(correlation.pairable_a(min_active_tokens))
    features_b = np.flatnonzero(correlation.pairable_b(min_active_tokens))
    if len(features_a) == 0 or len(features_b) == 0:
        what = "constant" if correlation.metric != "within_token" else "a function of the token"
        raise ActivationError(
            f"both models must have a feature that is active often enough and not {what}, "
            f"got {len(features_a)} of A and {len(features_b)} of B: use more text"
        )
    similarity = correlation.similarity[np.ix_(features_a, features_b)]
    best_b, best_a = similarity.argmax(axis=1), similarity.argmax(axis=0)
    if how == "one_to_one":
        a, b = greedy_one_to_one(similarity).T
    elif how == "many_to_one":
        a, b = np.arange(len(features_a)), best_b
    else:
        a, b = best_a, np.arange(len(features_b))
    chosen = similarity[a, b]
    return pd.DataFrame(
        {
            "feature_a": features_a[a],
            "feature_b": features_b[b],
            "correlation": correlation.pearson[features_a[a], features_b[b]],
            "similarity": chosen,
            "margin": chosen - best_other(similarity, a, b),
            "mutual": (best_b[a] == b) & (best_a[b] == a),
        }
    )


def best_other(
    similarity: Float[np.ndarray, "feature_a feature_b"],
    a: Int[np.ndarray, "pair"],
    b: Int[np.ndarray, "pair"],
) -> Float[np.ndarray, "pair"]:
    """The best similarity in each pair's row of A, its partner left out; NaN if none is left."""
    if similarity.shape[1] < 2:
        return np.full(len(a), np.nan)
    best = similarity.argmax(axis=1)
    second = np.partition(similarity, -2, axis=1)[:, -2]
    return np.where(best[a] == b, second[a], similarity[a, best[a]])
