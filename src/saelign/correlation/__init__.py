"""Sparse activations of A and B become correlations between all their features."""

from saelign.correlation.feature_moments import FeatureMoments
from saelign.correlation.held_out import (
    BootstrapMean,
    HeldOutHalf,
    bootstrap_mean_correlation,
    bootstrap_subsets,
    pair_correlations,
    shifted_rows,
    split_documents,
)
from saelign.correlation.metrics import METRICS
from saelign.correlation.moments import (
    Activations,
    Correlation,
    CrossMoments,
    TokenIds,
    as_csr,
    as_token_ids,
    correlate,
    correlation_of,
)
from saelign.correlation.sparse import FeatureColumns, SparseCorrelation, TokenRows
from saelign.correlation.strongest import Strongest
from saelign.correlation.within_token import (
    TokenSums,
    within_token_correlation,
    within_token_of_pairs,
)

__all__ = [
    "METRICS",
    "Activations",
    "BootstrapMean",
    "Correlation",
    "CrossMoments",
    "FeatureColumns",
    "FeatureMoments",
    "HeldOutHalf",
    "SparseCorrelation",
    "Strongest",
    "TokenIds",
    "TokenRows",
    "TokenSums",
    "as_csr",
    "as_token_ids",
    "bootstrap_mean_correlation",
    "bootstrap_subsets",
    "correlate",
    "correlation_of",
    "pair_correlations",
    "shifted_rows",
    "split_documents",
    "within_token_correlation",
    "within_token_of_pairs",
]
