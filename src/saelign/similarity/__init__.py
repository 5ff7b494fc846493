"""Matched decoder rows become a score of how alike two feature spaces are."""

from saelign.similarity.canonical import pc1, pwcca, svcca, svcca_r2
from saelign.similarity.cka import cka
from saelign.similarity.gram import activation_gram, rows_of_gram
from saelign.similarity.measures import MEASURES, Comparison, Measure
from saelign.similarity.neighbours import mutual_knn
from saelign.similarity.procrustes import procrustes
from saelign.similarity.rsa import rsa

__all__ = [
    "MEASURES",
    "Comparison",
    "Measure",
    "activation_gram",
    "cka",
    "mutual_knn",
    "pc1",
    "procrustes",
    "pwcca",
    "rows_of_gram",
    "rsa",
    "svcca",
    "svcca_r2",
]
