"""Semantic subspaces of a layer pair: matched again inside, scored, and held against chance."""

import json
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Bool, Float64, Int

from saelign.cells import (
    SMALL,
    LayerPair,
    MatchedRows,
    Setting,
    correlation_between,
    filtered,
    in_order,
    limited,
    no_pairs,
    score_row,
    score_rows,
    unscored,
)
from saelign.concepts.occurrences import Occurrences, concept_features
from saelign.correlation import SparseCorrelation
from saelign.correlation.threads import one_core
from saelign.errors import ActivationError, DegenerateError
from saelign.layers import Layer
from saelign.matching import Filters, match, pairs_among
from saelign.nulls import SIGNIFICANCE
from saelign.phrases import Phrases
from saelign.results import written
from saelign.scoring import Score
from saelign.similarity import MEASURES
from saelign.study import MeasureStudy, rng_of
from saelign.subspace_study import Subspaces

CONCEPT, UNION = "concept", "union"
SAME_SIZE = "same_size"
"""The null of random features, as many and as frequent on either side."""

N_STRATA = 10
"""Of firing rates, within which random features are drawn."""

BLOCK_ENTRIES = 2**25
"""Similarities of a layer pair that are kept together; where there are more, each group's alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subspace:
    """A group of features of each layer that is matched and scored by itself.

    Attributes:
        name: Such as `Emotions`, `Emotions + Time`, `Emotions Time`.
        kind: `concept`, `union`, `phrase`, `wrong_order` or `alone`.
        parts: The subspaces that it is made of or is to be compared with; none of a concept.
    """

    name: str
    kind: str
    parts: tuple[str, ...]


def listed_subspaces(subspaces: Subspaces, phrases: Phrases | None) -> list[Subspace]:
    """Every subspace that a study asks for: concepts, unions, and what phrases give."""
    found = [Subspace(name=name, kind=CONCEPT, parts=()) for name in subspaces.asked]
    found += [Subspace(name=" + ".join(u), kind=UNION, parts=u) for u in subspaces.unions]
    if phrases is not None:
        orders = {" ".join(p): p for a, b in subspaces.phrases for p in ((a, b), (b, a))}
        for name, kind in zip(phrases.names, phrases.kinds, strict=True):
            a, b = orders.get(name, ("", ""))
            parts = tuple(dict.fromkeys((f"{a} alone", f"{b} alone"))) if a else ()
            other = " ".join((b, a))
            if a != b and other in phrases.names:
                parts = (*parts, other)
            found.append(Subspace(name=name, kind=kind, parts=parts))
    return found


def with_members(
    layer: Layer,
    acts: sp.csr_array,
    subspaces: Subspaces,
    occurrences: Occurrences,
    phrases: tuple[Phrases, sp.csr_array] | None,
) -> tuple[Layer, list[dict[str, Any]]]:
    """The layer with the features of each subspace, and how many there are.

    Args:
        layer: As described.
        acts: Its activations, kept tokens x features.
        subspaces: What the study asks for.
        occurrences: Of all its concepts in the text.
        phrases: The phrases, and the activations at their last units; None if there are none.
    """
    study = subspaces.study
    by_feature = acts.tocsc()
    by_feature.sort_indices()
    by_top, share = concept_features(by_feature, occurrences, top_words=study.top_words)
    by_mass = np.nan_to_num(share, nan=0.0) >= study.min_share  # what never fires has no share
    chosen = by_top if study.membership == "top_words" else by_mass
    places = {name: i for i, name in enumerate(occurrences.names)}
    members = {name: chosen[place] for name, place in places.items()}
    for union in subspaces.unions:
        members[" + ".join(union)] = np.any([members[name] for name in union], axis=0)
    if phrases is not None:
        texts, at_last = phrases
        members |= texts.features(at_last, layer.firing_rate, min_phrases=study.min_phrases)
    may_pair = (layer.features["reason"] == "").to_numpy()
    counts = occurrences.counts()
    rows = []
    for subspace in listed_subspaces(subspaces, None if phrases is None else phrases[0]):
        place = places.get(subspace.name)
        row = {
            "subspace": subspace.name,
            "kind": subspace.kind,
            "n_features": int((members[subspace.name] & may_pair).sum()),
            "n_rare": int((members[subspace.name] & ~may_pair).sum()),
            "n_by_top_words": None,
            "n_by_mass": None,
            "n_by_both": None,
            "n_occurrences": None,
        }
        if place is not None:
            top, mass = by_top[place] & may_pair, by_mass[place] & may_pair
            row["n_by_top_words"], row["n_by_mass"] = int(top.sum()), int(mass.sum())
            row["n_by_both"] = int((top & mass).sum())
            row["n_occurrences"] = counts[subspace.name]
        rows.append(row)
    names = np.array(occurrences.names, dtype=object)
    asked = np.array([name in subspaces.asked for name in occurrences.names])
    features = layer.features.assign(
        concepts=[names[asked & of_feature].tolist() for of_feature in chosen.T]
    )
    return replace(layer, members=members, features=features), rows


@dataclass(frozen=True, slots=True, kw_only=True)
class SubspaceCell:
    """What the subspaces of a layer pair give.

    Attributes:
        rows: Of the table `subspaces`.
        scores: Of the table `subspace_scores`.
        pairs: Of the table of their pairs.
    """

    rows: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    pairs: list[dict[Any, Any]]


def compare_subspaces(
    setting: Setting, pair: LayerPair, subspaces: Subspaces, listed: list[Subspace]
) -> SubspaceCell:
    """Every subspace of a layer pair, under every matching: by the study's own metric."""
    metric = setting.metrics[0]
    filters = subspaces.study.filters_in(setting.study.filters)
    whole = correlation_between(pair.a, pair.b, metric=metric)
    similarities = Similarities(whole)
    cell = SubspaceCell(rows=[], scores=[], pairs=[])
    for matching in setting.study.matching:
        for subspace in listed:
            where = {
                "control": setting.control,
                "run": setting.run,
                "metric": metric,
                "layer_a": pair.a.layer,
                "layer_b": pair.b.layer,
                "matching": matching,
                "subspace": subspace.name,
                "kind": subspace.kind,
            }
            pairs, (n_a, n_b), note = match_inside(filters, pair, whole, subspace, matching)
            kept = pairs[pairs["kept"]]
            n_kept = len(kept)
            if not note and n_kept < subspaces.study.min_pairs:
                note = (
                    f"a subspace must keep at least {subspaces.study.min_pairs} pairs to be "
                    f"scored, {subspace.name} keeps {n_kept}"
                )
            cell.rows.append(
                {
                    **where,
                    "n_features_a": n_a,
                    "n_features_b": n_b,
                    "n_pairs": len(pairs),
                    "n_kept": n_kept,
                    "mean_correlation": pairs["correlation"].mean(),
                    "mean_correlation_kept": kept["correlation"].mean(),
                    "mean_within_token_kept": kept["within_token"].mean(),
                    "note": note,
                }
            )
            cell.scores.extend(scored(setting, pair, subspaces, kept, similarities, where, note))
            cell.pairs.extend(pairs.assign(**where).to_dict("records"))
    return cell


def match_inside(
    filters: Filters,
    pair: LayerPair,
    whole: SparseCorrelation,
    subspace: Subspace,
    matching: str,
) -> tuple[pd.DataFrame, tuple[int, int], str]:
    """The pairs among a subspace's features, filtered; how many features; why there are none."""
    chosen = [members_of(layer, subspace.name) for layer in (pair.a, pair.b)]
    counts = len(chosen[0]), len(chosen[1])
    note, pairs = "", no_pairs()
    if 0 in counts:
        lacking = [f"model {side}" for side, n in zip("AB", counts, strict=True) if n == 0]
        told = "neither has any" if len(lacking) == 2 else f"{lacking[0]} has none"
        note = f"{subspace.name} must have features in both models, {told} here"
    else:
        try:
            pairs = match(
                whole.among(*chosen), how=matching, min_active_tokens=filters.min_active_tokens
            )
        except ActivationError as error:
            note = str(error)
    a, b = (
        features[pairs[f"feature_{letter}"].to_numpy()]
        for features, letter in zip(chosen, "ab", strict=True)
    )
    pairs["feature_a"], pairs["feature_b"] = a, b
    return filtered(pairs, pair, whole, filters), counts, note


def members_of(layer: Layer, name: str) -> Int[np.ndarray, "member"]:
    """The features of a subspace that may be paired."""
    return np.flatnonzero(layer.members[name] & (layer.features["reason"] == "").to_numpy())


def scored(
    setting: Setting,
    pair: LayerPair,
    subspaces: Subspaces,
    kept: pd.DataFrame,
    similarities: "Similarities",
    where: Mapping[str, Any],
    note: str,
) -> list[dict[str, Any]]:
    """Every measure on a subspace's pairs, beside every null of the study and that of its size."""
    study = setting.study
    measures = [measure for measure in study.measures if measure.on == "decoder"]
    a, b = kept["feature_a"].to_numpy(), kept["feature_b"].to_numpy()
    side = None
    if not note:
        try:
            side = rows_of(pair, a, b, str(where["matching"]))
        except DegenerateError as error:
            note = str(error)
    if side is None:
        rows = [
            unscored(measure, null, len(kept), note)
            for measure in measures
            for null in (*study.nulls, SAME_SIZE)
        ]
        return [{**where, **row} for row in rows]
    with limited(side):
        rows, _ = score_rows(setting, measures, side, where)
        of_measure = {row["measure"]: row for row in rows}
        rng = rng_of(setting.seed, SAME_SIZE, *(where[k] for k in ORDER))
        filters = subspaces.study.filters_in(study.filters)
        whole, least = similarities.correlation, filters.min_active_tokens
        groups = [
            random_groups(
                layer,
                str(where["subspace"]),
                keepable(layer, may_pair, filters),
                n=subspaces.study.same_size,
                rng=of_side,
            )
            for layer, may_pair, of_side in zip(
                (pair.a, pair.b),
                (whole.pairable_a(least), whole.pairable_b(least)),
                rng.spawn(2),
                strict=True,
            )
        ]
    with one_core() if len(side.x) <= SMALL else nullcontext():
        drawn = group_scores(
            pair, measures, similarities, groups, str(where["matching"]), len(kept)
        )
    rows += [
        same_size_row(measure, of_measure[measure.label], null_scores, side)
        for measure, null_scores in zip(measures, drawn, strict=True)
    ]
    return [{**where, **row} for row in rows]


ORDER = ("layer_a", "layer_b", "matching", "subspace")
"""What tells the draws of one subspace from those of another."""


def rows_of(
    pair: LayerPair, a: Int[np.ndarray, "pair"], b: Int[np.ndarray, "pair"], matching: str
) -> MatchedRows:
    """Decoder rows of some pairs, the side that repeats as the second."""
    return in_order(pair, pair.a.decoder[a], pair.b.decoder[b], a, b, matching)


class Similarities:
    """What features of a layer pair are matched by, all at once where they are not too many."""

    def __init__(self, correlation: SparseCorrelation) -> None:
        self.correlation = correlation
        self._all: np.ndarray | None = None

    def among(
        self, a: Int[np.ndarray, "chosen_a"], b: Int[np.ndarray, "chosen_b"]
    ) -> Float64[np.ndarray, "chosen_a chosen_b"]:
        """Between some features of A and some of B."""
        n_a, n_b = len(self.correlation.n_active_a), len(self.correlation.n_active_b)
        if n_a * n_b > BLOCK_ENTRIES:
            return self._block(a, b)
        if self._all is None:
            self._all = self._block(np.arange(n_a), np.arange(n_b))
        return self._all[np.ix_(a, b)]

    def _block(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.concatenate([block for _, block in self.correlation.blocks(a, b)])


def keepable(
    layer: Layer, may_pair: Bool[np.ndarray, "feature"], filters: Filters
) -> Bool[np.ndarray, "feature"]:
    """Features that may be paired, and whose top tokens would let a pair be kept."""
    if filters.max_non_concept_tokens is None:
        return may_pair
    few = layer.features["n_non_concept"].to_numpy() <= filters.max_non_concept_tokens
    return may_pair & few


def random_groups(
    layer: Layer,
    name: str,
    among: Bool[np.ndarray, "feature"],
    *,
    n: int,
    rng: np.random.Generator,
) -> Iterator[Int[np.ndarray, "member"]]:
    """Random features of a layer, as many and as frequent as those of a subspace.

    Of each tenth of the layer's features by firing rate as many as the subspace has there.

    Args:
        layer: The layer.
        name: Of the subspace.
        among: The features to draw from.
        n: Groups to draw.
        rng: Where randomness comes from.
    """
    pool = np.flatnonzero(among)
    pool = pool[np.argsort(layer.firing_rate[pool], kind="stable")]
    is_member = layer.members[name]
    strata = np.array_split(pool, min(N_STRATA, max(1, len(pool))))
    wanted = [int(is_member[stratum].sum()) for stratum in strata]
    for _ in range(n):
        drawn = [
            rng.choice(stratum, size, replace=False)
            for stratum, size in zip(strata, wanted, strict=True)
        ]
        yield np.sort(np.concatenate(drawn))


def group_scores(
    pair: LayerPair,
    measures: list[MeasureStudy],
    similarities: Similarities,
    groups: list[Iterator[Int[np.ndarray, "member"]]],
    matching: str,
    n_pairs: int,
) -> list[Float64[np.ndarray, "draw"]]:
    """Each measure on the best pairs of random groups, as many pairs as the subspace keeps.

    A group that has fewer, or whose score is not defined, is left out.
    """
    found: list[list[float]] = [[] for _ in measures]
    for a, b in zip(*groups, strict=True):
        pairs = pairs_among(similarities.among(a, b), matching)[:n_pairs]
        if len(pairs) < n_pairs:
            continue
        try:
            side = rows_of(pair, a[pairs[:, 0]], b[pairs[:, 1]], matching)
        except DegenerateError:
            continue
        for scores, measure in zip(found, measures, strict=True):
            try:
                comparison = MEASURES[measure.name].compare(
                    side.x, side.partners, **measure.options
                )
            except DegenerateError:
                continue
            scores.append(comparison.score())
    return [np.array(scores) for scores in found]


def same_size_row(
    measure: MeasureStudy,
    of_measure: Mapping[str, Any],
    null_scores: Float64[np.ndarray, "draw"],
    side: MatchedRows,
) -> dict[str, Any]:
    """A score beside that of random groups, as `subspace_scores` holds it."""
    n_pairs = len(side.x)
    if np.isnan(of_measure["score"]):
        return unscored(measure, SAME_SIZE, n_pairs, of_measure["note"])
    if len(null_scores) < 2:
        why = f"random groups of the same size must keep {n_pairs} pairs, {len(null_scores)} do"
        return unscored(measure, SAME_SIZE, n_pairs, why)
    score = Score(
        measure=measure.name,
        null=SAME_SIZE,
        score=of_measure["score"],
        null_scores=null_scores,
        null_mean=float(null_scores.mean()),
        null_sd=float(null_scores.std(ddof=1)),
        exact=False,
        n_pairs=n_pairs,
        n_partners=len(side.partners.rows),
        components=None,
    )
    row = score_row(measure, score, swapped=side.is_swapped)
    components = ("n_components", "n_components_a", "n_components_b")
    return row | {name: of_measure[name] for name in components}


def save_subspace_cell(cell: SubspaceCell, path: Path) -> None:
    """Keep what the subspaces of a layer pair gave, so that a killed run need not do it again."""
    content = json.dumps([cell.rows, cell.scores, cell.pairs], default=lambda v: v.item())
    with written(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def read_subspace_cell(path: Path) -> SubspaceCell | None:
    """What was kept; None if it is not there or not whole."""
    try:
        rows, scores, pairs = json.loads(path.read_text(encoding="utf-8"))
        return SubspaceCell(rows=rows, scores=scores, pairs=pairs)
    except (OSError, ValueError, TypeError):
        return None


def combined(scores: pd.DataFrame, listed: list[Subspace]) -> pd.Series:
    """Whether a combined subspace is more alike than its parts, and than chance.

    Args:
        scores: With `q`.
        listed: The subspaces.

    Returns:
        For each row of a union or phrase `above parts and chance`, `above chance`, `above parts`,
        `neither`, or `parts not scored` (with `above chance` or not); empty for what has no parts.
        Calibrated scores are compared, under the null of the row; chance at q < 0.05.
    """
    parts = {subspace.name: subspace.parts for subspace in listed}
    by = ["control", "run", "metric", "layer_a", "layer_b", "matching", "measure", "null"]
    calibrated = scores.set_index([*by, "subspace"])["calibrated"].to_dict()
    told = []
    for row in scores.to_dict("records"):
        names = parts.get(row["subspace"], ())
        if not names or np.isnan(row["score"]):
            told.append("")
            continue
        key = tuple(row[name] for name in by)
        others = np.array([calibrated.get((*key, name), np.nan) for name in names])
        is_above_chance = row["q"] < SIGNIFICANCE
        chance = "above chance" if is_above_chance else "not above chance"
        if np.isnan(others).all() or np.isnan(row["calibrated"]):
            told.append(f"{chance}, parts not scored")
            continue
        is_above_parts = row["calibrated"] > np.nanmax(others)
        if is_above_parts:
            told.append("above parts and chance" if is_above_chance else "above parts")
        else:
            told.append("above chance" if is_above_chance else "neither")
    return pd.Series(told, index=scores.index, dtype=str)
