"""Correlations become pairs of features, and pairs are filtered."""

from saelign.matching.filters import Filters, filter_pairs
from saelign.matching.pairing import MATCHINGS, match

__all__ = ["MATCHINGS", "Filters", "filter_pairs", "match"]
