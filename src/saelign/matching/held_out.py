"""Matching on half of the documents, judging on the other half."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Bool, Integer

from saelign.correlation import (
    Activations,
    HeldOutHalf,
    TokenIds,
    as_csr,
    as_token_ids,
    bootstrap_mean_correlation,
    correlate,
    split_documents,
)
from saelign.errors import ShapeError
from saelign.matching.pairing import match


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldOut:
    """How strongly matched features correlate on documents that they were not matched on.

    Attributes:
        mean: Mean held-out correlation, over the pairs of each half, then over the two halves; NaN
            if every pair is silent.
        low: Lower end of its 95 % interval; NaN where a half has a single document, or no mean.
        high: Upper end.
        n_silent: Pairs, of both halves, that have no held-out correlation.
        pairs: A row a pair: `half` (1 or 2, which it was matched on), `feature_a`, `feature_b`,
            `correlation` on that half and `held_out` on the other, NaN where either feature is
            silent there.
    """

    mean: float
    low: float
    high: float
    n_silent: int
    pairs: pd.DataFrame


def held_out_correlation(
    acts_a: Activations,
    acts_b: Activations,
    documents: Integer[np.ndarray, "token"],
    *,
    how: str = "one_to_one",
    metric: str = "pearson",
    token_ids: TokenIds | None = None,
    min_active_tokens: int = 30,
    n_resamples: int = 1000,
    rng: np.random.Generator,
) -> HeldOut:
    """Correlation of matched features on documents that they were not matched on.

    The documents are split in two; features are matched on one half, and the same pairs are
    correlated on the other; then the halves change roles. Whatever the metric to match by, the
    held-out correlation is Pearson's. The interval resamples held-out documents and never matches
    again.

    Args:
        acts_a: Tokens x features of A: scipy.sparse, numpy or torch.
        acts_b: The same tokens through B.
        documents: The document of each token.
        how: The matching, as for `match`.
        metric: What to match by, as for `correlate`.
        token_ids: For within_token: the id of each token.
        min_active_tokens: Tokens of the whole text a feature must be active on to be paired. Half
            of it, rounded up, is asked of the half that is matched on, nothing of the other.
        n_resamples: Resamples of the documents, at least 1.
        rng: Draws the split, then the resamples.

    Raises:
        ShapeError: Activations, documents or ids do not hold the same tokens.
        DegenerateError: There are fewer than two documents, or no resample.
        ActivationError: A half has no feature that can be paired.
        UnknownNameError: No such matching or metric.
    """
    csr_a, csr_b = as_csr(acts_a, name="acts_a"), as_csr(acts_b, name="acts_b")
    if not csr_a.shape[0] == csr_b.shape[0] == len(documents):
        raise ShapeError(
            "both sides and the documents must hold the same tokens, got "
            f"{csr_a.shape[0]}, {csr_b.shape[0]} and {len(documents)}"
        )
    ids = None if token_ids is None else as_token_ids(token_ids)
    if ids is not None and len(ids) != len(documents):
        raise ShapeError(
            f"token_ids must hold one id a token, got {len(ids)} ids for {len(documents)} tokens"
        )
    in_first = split_documents(documents, rng=rng)
    tables: list[pd.DataFrame] = []
    halves: list[HeldOutHalf] = []
    for half, rows in ((1, in_first), (2, ~in_first)):
        correlation = correlate(
            rows_of(csr_a, rows),
            rows_of(csr_b, rows),
            metric=metric,
            token_ids=None if ids is None else ids[rows],
        )
        pairs = match(correlation, how=how, min_active_tokens=-(-min_active_tokens // 2))
        tables.append(pairs[["feature_a", "feature_b", "correlation"]].assign(half=half))
        halves.append(
            HeldOutHalf(
                acts_a=rows_of(csr_a, ~rows),
                acts_b=rows_of(csr_b, ~rows),
                documents=documents[~rows],
                a=pairs["feature_a"].to_numpy(),
                b=pairs["feature_b"].to_numpy(),
            )
        )
    judged = bootstrap_mean_correlation(halves, n_resamples=n_resamples, rng=rng)
    table = pd.concat(tables, ignore_index=True)
    table["held_out"] = np.concatenate(judged.correlations)
    return HeldOut(
        mean=judged.mean,
        low=judged.low,
        high=judged.high,
        n_silent=judged.n_silent,
        pairs=table[["half", "feature_a", "feature_b", "correlation", "held_out"]],
    )


def rows_of(acts: sp.csr_array, rows: Bool[np.ndarray, "token"]) -> sp.csr_array:
    """The activations on some tokens."""
    return sp.csr_array(acts[np.flatnonzero(rows)])
