"""Which features are shared, and what one model has that the other lacks.

Best partners are chosen on one half of the documents and their correlation is read on the other,
so that the choice does not flatter it; what chance gives is the same procedure with B's documents
rolled against A's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float64, Int, Int64

from saelign.correlation import Correlation, SparseCorrelation
from saelign.nulls import SIGNIFICANCE, q_values

MIN_DOCUMENTS = 50
"""Nothing is said of a feature that fires in fewer documents."""

N_STRATA = 10
"""Chance is that of features that fire about as often: rare ones scatter more."""

MIN_CHANCE = 200
"""Chance values of a stratum, at least: p cannot fall under 1/201 then, and q can fall under 0.05
only where a tenth of all tests is that low; with fewer nothing at all might be above chance."""

VERDICTS = ("shared", "one_sided", "only", "unclear")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Each feature's best partner in one layer of the other side.

    Attributes:
        partner: Its best partner over all documents; -1 where it has none.
        correlation: Their Pearson correlation over all documents.
        mutual: Whether each is the other's best.
        held_out: Correlation with the best partner of one half of the documents on the other half,
            mean of both ways; NaN where it is silent there.
        null_held_out: The same with documents rolled, a row a roll.
        n_active: Tokens on which the feature is active.
    """

    partner: Int[np.ndarray, "feature"]
    correlation: Float[np.ndarray, "feature"]
    mutual: Bool[np.ndarray, "feature"]
    held_out: Float[np.ndarray, "feature"]
    null_held_out: Float[np.ndarray, "shift feature"]
    n_active: Int[np.ndarray, "feature"]

    def p_values(self) -> Float64[np.ndarray, "feature"]:
        """How often chance gives a feature that fires about as often as high a held-out one."""
        return stratified_p(self.held_out, self.n_active, self.null_held_out, self.n_active)

    def lowest_p_values(self) -> Float64[np.ndarray, "feature"]:
        """What they would be if no chance value reached the feature."""
        highest = np.where(np.isnan(self.held_out), np.nan, np.inf)
        return stratified_p(highest, self.n_active, self.null_held_out, self.n_active)


Correlated = Correlation | SparseCorrelation
Halves = tuple[Correlated, Correlated]


def evidence_of(
    whole: Correlated, halves: Halves, shifted: Iterable[Halves], *, min_active_tokens: int
) -> tuple[Evidence, Evidence]:
    """What one layer pair says of the features of both sides.

    Args:
        whole: Correlations over all documents.
        halves: Over each half of them.
        shifted: Over each half with B's documents rolled, for each roll; read one at a time.
        min_active_tokens: Tokens a feature must be active on to have a partner; half of it in each
            half.
    """
    in_half = -(-min_active_tokens // 2)
    best = best_partners(whole, min_active_tokens)
    held_out = held_out_of_best(halves, in_half)
    null_held_out = [held_out_of_best(rolled, in_half) for rolled in shifted]
    both = []
    for side in (0, 1):
        partner, of_other = best[side], best[1 - side]
        rows = np.arange(len(partner))
        has = partner >= 0
        both.append(
            Evidence(
                partner=partner,
                correlation=pearson_with(whole, side, partner),
                mutual=has & (of_other[partner] == rows),
                held_out=held_out[side],
                null_held_out=np.array([of_roll[side] for of_roll in null_held_out]).reshape(
                    len(null_held_out), len(rows)
                ),
                n_active=whole.n_active_a if side == 0 else whole.n_active_b,
            )
        )
    return both[0], both[1]


def pearson_with(
    correlation: Correlated,
    side: int,
    partner: Int[np.ndarray, "chosen"],
    features: Int[np.ndarray, "chosen"] | None = None,
) -> Float64[np.ndarray, "chosen"]:
    """Pearson correlation of features of a side, all unless said, with a partner each.

    NaN where the partner is -1.
    """
    features = np.arange(len(partner)) if features is None else features
    has = partner >= 0
    pair = features[has].astype(np.int64), partner[has].astype(np.int64)
    found = np.full(len(partner), np.nan)
    found[has] = correlation.pearson_of_pairs(*(pair if side == 0 else pair[::-1]))
    return found


def best_partners(
    correlation: Correlated, min_active_tokens: int
) -> tuple[Int64[np.ndarray, "feature_a"], Int64[np.ndarray, "feature_b"]]:
    """For each feature of A its best of B and the reverse; -1 for those that are not paired.

    By Pearson correlation, whatever a study matches by, as chance is.
    """
    listed = correlation.by_pearson().listed(min_active_tokens, n_best_a=1)
    best_a = np.full(len(correlation.n_active_a), -1)
    best_b = np.full(len(correlation.n_active_b), -1)
    if len(listed.features_a) and len(listed.features_b):
        best_a[listed.features_a] = listed.best.partners_a[:, 0]
        best_b[listed.features_b] = listed.best.partners_b[:, 0]
    return best_a, best_b


def held_out_of_best(
    halves: Halves, min_active_tokens: int
) -> tuple[Float64[np.ndarray, "feature_a"], Float64[np.ndarray, "feature_b"]]:
    """Correlation with the best partner of one half on the other, mean of both ways."""
    chosen = [best_partners(half, min_active_tokens) for half in halves]
    first, second = (
        both_ways(*(pearson_with(halves[1 - half], side, chosen[half][side]) for half in (0, 1)))
        for side in (0, 1)
    )
    return first, second


def held_out_of_some(
    halves: Halves, features_a: Int[np.ndarray, "chosen"], min_active_tokens: int
) -> Float64[np.ndarray, "chosen"]:
    """The same for some features of A alone, as often as they are named."""
    ways = []
    for half in (0, 1):
        correlation = halves[half].by_pearson()
        some = np.unique(features_a[correlation.pairable_a(min_active_tokens)[features_a]])
        among = np.flatnonzero(correlation.pairable_b(min_active_tokens))
        partner = np.full(len(correlation.n_active_a), -1)
        if len(some) and len(among):
            best = correlation.strongest(some.astype(np.int64), among, n_best_a=1)
            partner[some] = best.partners_a[:, 0]
        ways.append(pearson_with(halves[1 - half], 0, partner[features_a], features_a))
    return both_ways(*ways)


def both_ways(
    first: Float64[np.ndarray, "feature"], second: Float64[np.ndarray, "feature"]
) -> Float64[np.ndarray, "feature"]:
    """Their mean; the other one where one is NaN."""
    mean = (first + second) / 2
    return np.where(np.isnan(first), second, np.where(np.isnan(second), first, mean))


def stratified_p(
    values: Float[np.ndarray, "feature"],
    n_active: Int[np.ndarray, "feature"],
    null_values: Float[np.ndarray, "shift null_feature"],
    null_n_active: Int[np.ndarray, "null_feature"],
) -> Float64[np.ndarray, "feature"]:
    """(1 + chance values that reach it) / (1 + chance values), among features as frequent.

    Strata are tenths of the null's features by how often they fire, or so many fewer parts that
    each has 200 chance values. NaN where there is no value, or no chance value to hold it against.
    """
    there = ~np.isnan(null_values)
    alive = there.any(axis=0)
    p = np.full(len(values), np.nan)
    if not alive.any():
        return p
    n_strata = max(1, min(N_STRATA, int(there.sum()) // MIN_CHANCE))
    often = null_n_active[alive]
    # Edges that a feature stands at, but not the lowest: thus no stratum is empty.
    edges = np.quantile(often, np.arange(1, n_strata) / n_strata, method="higher")
    edges = np.unique(edges[edges > often.min()])
    null_strata = np.searchsorted(edges, null_n_active, side="right")
    strata = np.searchsorted(edges, n_active, side="right")
    for stratum in np.unique(strata):
        of_stratum = null_strata == stratum
        chance = np.sort(null_values[:, of_stratum][there[:, of_stratum]])
        members = (strata == stratum) & ~np.isnan(values)
        reached = len(chance) - np.searchsorted(chance, values[members], side="left")
        p[members] = (1 + reached) / (1 + len(chance))
    return p


def significances(
    evidence: Mapping[int, Evidence],
) -> tuple[Float64[np.ndarray, "layer feature"], Float64[np.ndarray, "layer feature"]]:
    """p- and q-values of all features at all layers of another side, which are one family."""
    p = np.array([of_layer.p_values() for of_layer in evidence.values()])
    return p, q_values(p.ravel()).reshape(p.shape)


def verdicts_of(
    evidence: Mapping[int, Evidence], n_documents: Int[np.ndarray, "feature"]
) -> pd.DataFrame:
    """What is to be said of each feature of a layer, against all compared layers of another side.

    `shared`: with some layer's feature each is the other's best and their held-out correlation is
    above chance. `one_sided`: a partner above chance, but that one has a better one. `only`: no
    partner above chance at any compared layer. `unclear`: fires in fewer than 50 documents, or too
    rarely to be paired, or is higher than all chance values, which are too few to tell.

    Args:
        evidence: By layer of the other side.
        n_documents: In how many documents each feature fires.

    Returns:
        A row a feature: `feature`, `verdict`, `n_documents`, `best_layer`, `best_feature` (-1 where
        there is none), `correlation`, `held_out`, `p`, `q`, `mutual`. The partner told is the
        mutual one above chance with the highest held-out correlation if there is one, else the one
        above chance, else the one with the highest. q: Benjamini-Hochberg over all features of the
        layer and all layers compared.
    """
    layers = list(evidence)
    p, q = significances(evidence)
    lowest = np.array([evidence[layer].lowest_p_values() for layer in layers])
    held_out = np.array([evidence[layer].held_out for layer in layers])
    mutual = np.array([evidence[layer].mutual for layer in layers])
    above = q < SIGNIFICANCE
    both = above & mutual
    rank = np.where(np.isnan(held_out), -np.inf, held_out)
    rank += 3.0 * above + 3.0 * both  # correlations are at most 2 apart
    best = rank.argmax(axis=0)
    rows = np.arange(p.shape[1])
    # With few chance values even the lowest p may not pass; to say `only` would be wrong then.
    undecided = (p == lowest).any(axis=0) & ~above.any(axis=0)
    unclear = (n_documents < MIN_DOCUMENTS) | np.isnan(p).all(axis=0) | undecided
    verdict = np.select(
        [unclear, both.any(axis=0), above.any(axis=0)], ["unclear", "shared", "one_sided"], "only"
    )
    told = {
        name: np.array([getattr(evidence[layer], name) for layer in layers])[best, rows]
        for name in ("partner", "correlation")
    }
    return pd.DataFrame(
        {
            "feature": rows,
            "verdict": verdict,
            "n_documents": n_documents,
            "best_layer": np.array(layers)[best],
            "best_feature": told["partner"],
            "correlation": told["correlation"],
            "held_out": held_out[best, rows],
            "p": p[best, rows],
            "q": q[best, rows],
            "mutual": mutual[best, rows],
        }
    )


def verdict_shares(verdicts: pd.DataFrame) -> pd.DataFrame:
    """The share of each verdict in each layer.

    Returns:
        A row for each `control`, `run`, `model`, `against`, `layer`, with a column for each
        verdict, `n_features`, and `only_replicated`: of the features judged `only` whose
        counterpart in a second SAE is known, the share whose counterpart has no partner either.
    """
    by = ["control", "run", "model", "against", "layer"]
    groups = verdicts.groupby(by, sort=False)
    shares = groups["verdict"].value_counts(normalize=True).unstack(fill_value=0)
    shares = shares.reindex(columns=list(VERDICTS), fill_value=0.0)
    shares["n_features"] = groups.size()
    of_only = verdicts[verdicts["verdict"] == "only"].groupby(by, sort=False)["replicated"]
    shares["only_replicated"] = of_only.mean().astype(float)
    return shares.reset_index().rename_axis(columns=None)
