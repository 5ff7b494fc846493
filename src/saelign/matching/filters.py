"""Which pairs are kept, and why the others are not."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

KEPT = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which features are paired and which pairs are kept; None switches one of the last three off.

    Attributes:
        min_active_tokens: Features active on fewer tokens are not paired.
        top_k: How many of a feature's largest activations give its top tokens.
        max_non_concept_tokens: A pair is dropped when more than so many of a feature's top tokens
            are punctuation, blank or special, in either feature.
        min_shared_tokens: A pair is dropped when its top tokens share fewer strings than this.
        min_correlation: A pair is dropped when its Pearson correlation is not above this.

    Source: Lan et al. (2024), section 3; `min_active_tokens` by this package.
    """

    min_active_tokens: int = 30
    top_k: int = 5
    max_non_concept_tokens: int | None = 0
    min_shared_tokens: int | None = 1
    min_correlation: float | None = 0.1


def filter_pairs(
    pairs: pd.DataFrame,
    filters: Filters,
    *,
    top_tokens_a: Sequence[Sequence[str]],
    top_tokens_b: Sequence[Sequence[str]],
    n_non_concept_a: Sequence[int],
    n_non_concept_b: Sequence[int],
) -> pd.DataFrame:
    """The same pairs with `kept` and `reason`; nothing is thrown away.

    Args:
        pairs: What `match` returned.
        filters: The thresholds.
        top_tokens_a: For every feature of A the strings at its largest activations.
        top_tokens_b: The same for B.
        n_non_concept_a: For every feature of A how many of those are punctuation, blank or special.
        n_non_concept_b: The same for B.

    Returns:
        `pairs` with two more columns. `reason` is empty for a kept pair, else the first of
        `non_concept`, `no_shared_token`, `low_correlation` that applies.
    """
    a, b = pairs["feature_a"].to_numpy(), pairs["feature_b"].to_numpy()
    reason = np.full(len(pairs), KEPT, dtype=object)

    def drop(failing: np.ndarray, why: str) -> None:
        reason[failing & (reason == KEPT)] = why

    if filters.max_non_concept_tokens is not None:
        most = np.maximum(np.asarray(n_non_concept_a)[a], np.asarray(n_non_concept_b)[b])
        drop(most > filters.max_non_concept_tokens, "non_concept")
    if filters.min_shared_tokens is not None:
        sets_a, sets_b = [set(t) for t in top_tokens_a], [set(t) for t in top_tokens_b]
        shared = np.array([len(sets_a[i] & sets_b[j]) for i, j in zip(a, b, strict=True)], int)
        drop(shared < filters.min_shared_tokens, "no_shared_token")
    if filters.min_correlation is not None:
        drop(~(pairs["correlation"].to_numpy() > filters.min_correlation), "low_correlation")
    return pairs.assign(kept=reason == KEPT, reason=pd.Series(reason, index=pairs.index, dtype=str))
