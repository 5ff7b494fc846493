"""Sparse activations of A and B become correlations between all their features."""

from saelign.correlation.moments import (
    METRICS,
    Activations,
    Correlation,
    CrossMoments,
    as_csr,
    correlate,
    correlation_of,
)

__all__ = [
    "METRICS",
    "Activations",
    "Correlation",
    "CrossMoments",
    "as_csr",
    "correlate",
    "correlation_of",
]
