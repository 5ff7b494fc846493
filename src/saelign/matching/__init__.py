"""Correlations become pairs of features, and pairs are filtered."""

from saelign.matching.filters import Filters, filter_pairs
from saelign.matching.held_out import HeldOut, held_out_correlation
from saelign.matching.pairing import MATCHINGS, match, pairs_among

__all__ = [
    "MATCHINGS",
    "Filters",
    "HeldOut",
    "filter_pairs",
    "held_out_correlation",
    "match",
    "pairs_among",
]
