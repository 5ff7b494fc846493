"""What chance gives: exact moments, permutations, false-discovery rate."""

from saelign.nulls.fdr import SIGNIFICANCE, q_values
from saelign.nulls.moments import mantel_moments, trace_moments
from saelign.nulls.permutations import NULLS, draw_permutations, rate_strata

__all__ = [
    "NULLS",
    "SIGNIFICANCE",
    "draw_permutations",
    "mantel_moments",
    "q_values",
    "rate_strata",
    "trace_moments",
]
