"""Matched decoder rows become a score of how alike two feature spaces are."""

from saelign.similarity.canonical import pc1, svcca, svcca_r2
from saelign.similarity.cka import cka
from saelign.similarity.measures import MEASURES, Comparison, Measure
from saelign.similarity.rsa import rsa

__all__ = ["MEASURES", "Comparison", "Measure", "cka", "pc1", "rsa", "svcca", "svcca_r2"]
