"""One layer pair: correlated, matched, filtered and scored, and what its features' partners are."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64, Int
from safetensors import SafetensorError
from safetensors.numpy import load, save
from threadpoolctl import threadpool_limits

from saelign.correlation import (
    BootstrapMean,
    HeldOutHalf,
    SparseCorrelation,
    bootstrap_subsets,
    within_token_of_pairs,
)
from saelign.errors import ActivationError, DegenerateError
from saelign.layers import N_SHIFTS, Layer, Reading, whole_order
from saelign.matching import Filters, filter_pairs, match
from saelign.results import written
from saelign.scoring import Score, check_rows, null_permutations, score_comparison
from saelign.similarity import MEASURES
from saelign.similarity.gram import activation_gram, rows_of_gram
from saelign.similarity.partners import Partners, partners_of
from saelign.study import MeasureStudy, Study, rng_of
from saelign.verdicts import Evidence, evidence_of

SUBSPACE = "all"
"""Every feature takes part; semantic subspaces would stand beside it."""

SMALL = 1024
"""Pairs and widths up to which linear algebra runs on one core."""

N_RESAMPLES = 1000
"""Resamples of the documents that the interval of a held-out correlation comes from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is to be computed of each layer pair of a comparison.

    Attributes:
        study: Matchings, filters, measures and nulls.
        control: Which comparison.
        run: Which run.
        seed: Its seed.
        metrics: What to match by; the first is the study's own.
        halves_scored: Whether the measures are also taken on each half of the documents alone.
        judged: Whether partners are looked up for verdicts.
    """

    study: Study
    control: str
    run: int
    seed: int
    metrics: list[str]
    halves_scored: bool
    judged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What a layer pair gives.

    Attributes:
        rows: Of the table `cells`.
        scores: Of the table `scores`.
        null_scores: The drawn null of each of these.
        evidence: Partners of the features of A and of B; None if not asked for.
    """

    rows: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    null_scores: list[np.ndarray]
    evidence: tuple[Evidence, Evidence] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPair:
    """Two layers over the same text.

    Attributes:
        a: A layer of A.
        b: A layer of B.
        reading: The text.
        engine: What finds the strongest partners, if not the loops on the CPU.
    """

    a: Layer
    b: Layer
    reading: Reading
    engine: Callable[..., Any] | None = None

    def correlations(
        self, metric: str
    ) -> tuple[SparseCorrelation, tuple[SparseCorrelation, SparseCorrelation]]:
        """Correlations over all documents and over each half of them."""
        options = {"metric": metric, "engine": self.engine}
        first, second = (
            correlation_between(self.a, self.b, half=half, **options) for half in (0, 1)
        )
        return correlation_between(self.a, self.b, **options), (first, second)

    def rolled(self, shift: int) -> tuple[SparseCorrelation, SparseCorrelation]:
        """Pearson correlations over each half with b's documents rolled."""
        order = whole_order(self.reading, shift)
        first, second = (
            correlation_between(self.a, self.b, half=half, order=order, engine=self.engine)
            for half in (0, 1)
        )
        return first, second


def correlation_between(
    a: Layer,
    b: Layer,
    *,
    half: int | None = None,
    metric: str = "pearson",
    order: np.ndarray | None = None,
    engine: Callable[..., Any] | None = None,
) -> SparseCorrelation:
    """Correlations between two layers, straight from their sparse activations.

    Args:
        a: A layer of A.
        b: A layer of B.
        half: Over which half of the documents; over all if None.
        metric: What to match by.
        order: Which of b's tokens stands at each of a's, if not the same one.
        engine: What finds the strongest partners, if not the loops on the CPU.
    """
    of_a, of_b = (a, b) if half is None else (a.halves[half], b.halves[half])
    return SparseCorrelation(
        metric=metric,
        columns_a=of_a.columns,
        columns_b=of_b.columns,
        rows_b=b.rows if order is None else b.rows.tokens(order),
        moments_a=of_a.moments,
        moments_b=of_b.moments,
        order_b=order,
        within=(of_a.token_sums, of_b.token_sums) if metric == "within_token" else None,
        engine=engine,
    )


def compare_layers(
    setting: Setting, pair: LayerPair, keep_pairs: Callable[[pd.DataFrame, str, str], None]
) -> Cell:
    """Everything that a study asks of one layer pair.

    Args:
        setting: What to compute.
        pair: The two layers.
        keep_pairs: Given each table of pairs, with its metric and its matching.
    """
    study = setting.study
    rows: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    nulls: list[np.ndarray] = []
    evidence = None
    for metric in setting.metrics:
        whole, halves = pair.correlations(metric)
        for matching in study.matching:
            where = {
                "control": setting.control,
                "run": setting.run,
                "metric": metric,
                "layer_a": pair.a.layer,
                "layer_b": pair.b.layer,
                "matching": matching,
            }
            matched = match_layers(setting, pair, whole, halves, matching)
            rows.append({**where, **cell_row(setting, pair, matched, where)})
            keep_pairs(matched.pairs, metric, matching)
            found, drawn = score_matched(setting, pair, matched, where)
            scores += [{**where, "subspace": SUBSPACE, **row} for row in found]
            nulls += drawn
        if setting.judged and metric == setting.metrics[0]:  # after: best partners are known then
            evidence = partners_found(pair, whole, halves, study.filters.min_active_tokens)
    return Cell(rows=rows, scores=scores, null_scores=nulls, evidence=evidence)


def partners_found(
    pair: LayerPair,
    whole: SparseCorrelation,
    halves: tuple[SparseCorrelation, SparseCorrelation],
    min_active_tokens: int,
) -> tuple[Evidence, Evidence]:
    """Each feature's best partner, and what chance gives with documents rolled."""
    rolled = (pair.rolled(shift) for shift in range(1, 1 + N_SHIFTS))
    return evidence_of(whole, halves, rolled, min_active_tokens=min_active_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """The pairs of one matching.

    Attributes:
        pairs: Over all documents, with `within_token`, `kept` and `reason`.
        halves: Matched on each half alone, and filtered by what that half shows.
        note: Why there are none; empty if there are.
    """

    pairs: pd.DataFrame
    halves: tuple[pd.DataFrame, pd.DataFrame]
    note: str


def match_layers(
    setting: Setting,
    pair: LayerPair,
    whole: SparseCorrelation,
    halves: tuple[SparseCorrelation, SparseCorrelation],
    matching: str,
) -> Matched:
    """Pairs over all documents and over each half, filtered."""
    filters = setting.study.filters
    note = ""
    tables = []
    try:
        pairs = match(whole, how=matching, min_active_tokens=filters.min_active_tokens)
    except ActivationError as error:
        note, pairs = str(error), no_pairs()
    pairs = filtered(pairs, pair, whole, filters)
    for half, correlation in enumerate(halves):
        tables.append(match_half(pair, half, correlation, filters, matching))
    return Matched(pairs=pairs, halves=(tables[0], tables[1]), note=note)


def filtered(
    pairs: pd.DataFrame, pair: LayerPair, whole: SparseCorrelation, filters: Filters
) -> pd.DataFrame:
    """Pairs with their within-token correlation, `kept` and `reason`."""
    a, b = pairs["feature_a"].to_numpy(), pairs["feature_b"].to_numpy()
    within = within_token_of_pairs(
        whole.products_of_pairs(a, b),
        whole.moments_a,
        whole.moments_b,
        pair.a.token_sums,
        pair.b.token_sums,
        a,
        b,
    )
    pairs.insert(3, "within_token", within)
    features = (pair.a.features, pair.b.features)
    return filter_pairs(
        pairs,
        filters,
        top_tokens_a=features[0]["top_tokens"].to_list(),
        top_tokens_b=features[1]["top_tokens"].to_list(),
        n_non_concept_a=features[0]["n_non_concept"].to_list(),
        n_non_concept_b=features[1]["n_non_concept"].to_list(),
    )


def match_half(
    pair: LayerPair, half: int, correlation: SparseCorrelation, filters: Filters, matching: str
) -> pd.DataFrame:
    """Pairs of one half of the documents; a feature need fire on half as many tokens there."""
    enough = -(-filters.min_active_tokens // 2)
    try:
        pairs = match(correlation, how=matching, min_active_tokens=enough)
    except ActivationError:
        pairs = no_pairs()
    of_a, of_b = pair.a.halves[half], pair.b.halves[half]
    return filter_pairs(
        pairs,
        filters,
        top_tokens_a=of_a.top_tokens,
        top_tokens_b=of_b.top_tokens,
        n_non_concept_a=of_a.n_non_concept.tolist(),
        n_non_concept_b=of_b.n_non_concept.tolist(),
    )


def no_pairs() -> pd.DataFrame:
    """The table of pairs when there are none."""
    return pd.DataFrame(
        {
            "feature_a": np.zeros(0, dtype=np.int64),
            "feature_b": np.zeros(0, dtype=np.int64),
            "correlation": np.zeros(0),
            "similarity": np.zeros(0),
            "margin": np.zeros(0),
            "mutual": np.zeros(0, dtype=bool),
        }
    )


def cell_row(
    setting: Setting, pair: LayerPair, matched: Matched, where: Mapping[str, Any]
) -> dict[str, Any]:
    """What `cells` says of a layer pair under one matching."""
    pairs = matched.pairs
    kept = pairs[pairs["kept"]]
    reasons = pairs["reason"].value_counts()
    features_a, features_b = pair.a.features, pair.b.features
    held_out, of_kept = held_out_correlations(setting, pair, matched, where)
    return {
        "n_features_a": len(features_a),
        "n_features_b": len(features_b),
        "n_unpaired_a": int((features_a["reason"] != "").sum()),
        "n_unpaired_b": int((features_b["reason"] != "").sum()),
        "n_pairs": len(pairs),
        "n_non_concept": int(reasons.get("non_concept", 0)),
        "n_no_shared_token": int(reasons.get("no_shared_token", 0)),
        "n_low_correlation": int(reasons.get("low_correlation", 0)),
        "n_kept": len(kept),
        "mean_correlation": pairs["correlation"].mean(),
        "mean_correlation_kept": kept["correlation"].mean(),
        "mean_within_token": pairs["within_token"].mean(),
        "mean_within_token_kept": kept["within_token"].mean(),
        "held_out_correlation": held_out.mean,
        "held_out_low": held_out.low,
        "held_out_high": held_out.high,
        "n_silent_held_out": held_out.n_silent,
        "held_out_correlation_kept": of_kept.mean,
        "held_out_kept_low": of_kept.low,
        "held_out_kept_high": of_kept.high,
        "mutual_share": pairs["mutual"].mean() if len(pairs) else np.nan,
        "mean_margin": pairs["margin"].mean(),
        "note": matched.note,
    }


def held_out_correlations(
    setting: Setting, pair: LayerPair, matched: Matched, where: Mapping[str, Any]
) -> list[BootstrapMean]:
    """The correlation of each half's pairs on the other half: of all pairs, and of those kept."""
    ways, subsets = [], []
    for half, pairs in enumerate(matched.halves):
        other = 1 - half
        ways.append(
            HeldOutHalf(
                acts_a=pair.a.halves[other].columns,
                acts_b=pair.b.halves[other].columns,
                documents=pair.reading.documents_in(other),
                a=pairs["feature_a"].to_numpy(),
                b=pairs["feature_b"].to_numpy(),
                first_token=pair.a.halves[other].first,
            )
        )
        subsets.append([np.ones(len(pairs), dtype=bool), pairs["kept"].to_numpy()])
    rng = rng_of(setting.seed, "bootstrap", *where.values())
    return bootstrap_subsets(ways, subsets, n_resamples=N_RESAMPLES, rng=rng)


def score_matched(
    setting: Setting, pair: LayerPair, matched: Matched, where: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Every measure of the study beside every null; and the nulls as drawn."""
    study = setting.study
    rows: list[dict[str, Any]] = []
    drawn: list[np.ndarray] = []
    for on in ("decoder", "activations"):
        measures = [m for m in study.measures if m.on == on]
        if not measures:
            continue
        try:
            side = matched_rows(pair, matched, str(where["matching"]), on)
        except DegenerateError as error:
            n_pairs = int(matched.pairs["kept"].sum())
            found = [
                unscored(m, null, n_pairs, str(error)) for m in measures for null in study.nulls
            ]
            rows, drawn = rows + found, drawn + [np.zeros(0)] * len(found)
            continue
        with limited(side):
            found, nulls = score_rows(setting, measures, side, where)
        rows, drawn = rows + found, drawn + nulls
    if matched.note:
        rows = [{**row, "note": matched.note} for row in rows]
    if setting.halves_scored:
        halves = [
            half_scores(study, pair, matched.halves[half], str(where["matching"]))
            for half in (0, 1)
        ]
    else:
        halves = [{}, {}]
    for row in rows:
        for half in (0, 1):
            row[f"score_half_{half + 1}"] = halves[half].get(row["measure"], np.nan)
    order = {m.label: i for i, m in enumerate(study.measures)}
    by_measure = sorted(range(len(rows)), key=lambda i: order[rows[i]["measure"]])
    return [rows[i] for i in by_measure], [drawn[i] for i in by_measure]


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedRows:
    """Rows of matched features, the side whose features repeat as the second.

    Attributes:
        x: Rows of the side that keeps its order.
        partners: Rows of the other, who holds which.
        rates: How often each pair's feature of the second side fires.
        is_swapped: Whether the second side is A.
    """

    x: Float64[np.ndarray, "pair d_x"]
    partners: Partners
    rates: Float[np.ndarray, "pair"]
    is_swapped: bool


def limited(rows: MatchedRows) -> Any:
    """Small decompositions run several times slower on all cores than on one."""
    small = max(*rows.x.shape, rows.partners.rows.shape[1]) <= SMALL
    return threadpool_limits(1 if small else None, user_api="blas")


def matched_rows(pair: LayerPair, matched: Matched, matching: str, on: str) -> MatchedRows:
    """The rows that a measure compares: decoder rows, or activations over held-out tokens.

    Activations: features matched on half 1 of the documents, read on half 2, each standardised.
    With dimensions as many as tokens only inner products matter; rows with the same inner products
    in as few dimensions as can hold them take their place.

    Raises:
        DegenerateError: Too few pairs, or nothing to compare.
    """
    pairs = matched.pairs if on == "decoder" else matched.halves[0]
    kept = pairs[pairs["kept"]]
    a, b = kept["feature_a"].to_numpy(), kept["feature_b"].to_numpy()
    if on == "decoder":
        x, y = pair.a.decoder[a], pair.b.decoder[b]
    else:
        x, y = (
            rows_of_gram(activation_gram(layer.halves[1].by_token, features, standardise=True))
            if len(features) > 2
            else np.zeros((len(features), 1))
            for layer, features in ((pair.a, a), (pair.b, b))
        )
    return in_order(pair, x, y, a, b, matching)


def in_order(
    pair: LayerPair,
    x: Float[np.ndarray, "pair d_x"],
    y: Float[np.ndarray, "pair d_y"],
    a: Int[np.ndarray, "pair"],
    b: Int[np.ndarray, "pair"],
    matching: str,
) -> MatchedRows:
    """Rows of matched features, the side whose features may repeat as the second.

    Args:
        pair: The layers.
        x: Rows of A.
        y: Rows of B.
        a: Which features of A these are.
        b: Which of B.
        matching: How they were matched.

    Raises:
        DegenerateError: Too few pairs, or nothing to compare.
    """
    shuffled, held = pair.b, b
    is_swapped = matching == "one_to_many"  # the side that repeats is the one to be relabelled
    if is_swapped:
        x, y, shuffled, held = y, x, pair.a, a
    x, y = check_rows(x, y)
    return MatchedRows(
        x=x,
        partners=partners_of(y, held),
        rates=shuffled.firing_rate[held],
        is_swapped=is_swapped,
    )


def score_rows(
    setting: Setting,
    measures: list[MeasureStudy],
    side: MatchedRows,
    where: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Each measure beside each null. What cannot be scored keeps its place, with a note."""
    study, partners = setting.study, side.partners
    # Controls draw the same shuffles as the study's own: what differs is what is compared.
    cell = (where["layer_a"], where["layer_b"], where["matching"])
    if where.get("subspace", SUBSPACE) != SUBSPACE:
        cell = (*cell, where["subspace"])
    permutations = {
        null: null_permutations(
            null,
            partners,
            side.rates,
            n_permutations=n_permutations,
            rng=rng_of(setting.seed, null, *cell),
        )
        for null, n_permutations in study.nulls.items()
    }
    rows: list[dict[str, Any]] = []
    drawn: list[np.ndarray] = []
    for measure in measures:
        try:
            comparison = MEASURES[measure.name].compare(side.x, partners, **measure.options)
        except DegenerateError as error:
            rows += [unscored(measure, null, len(side.x), str(error)) for null in study.nulls]
            drawn += [np.zeros(0)] * len(study.nulls)
            continue
        for null in study.nulls:
            scored = score_comparison(
                comparison,
                partners,
                measure=measure.name,
                null=null,
                permutations=permutations[null][: measure.permutations],
            )
            rows.append(score_row(measure, scored, swapped=side.is_swapped))
            drawn.append(scored.null_scores)
    return rows, drawn


def half_scores(
    study: Study, pair: LayerPair, pairs: pd.DataFrame, matching: str
) -> dict[str, float]:
    """The measures on decoder rows of pairs that one half of the documents gave."""
    found: dict[str, float] = {}
    alone = Matched(pairs=pairs, halves=(pairs, pairs), note="")
    try:
        side = matched_rows(pair, alone, matching, "decoder")
    except DegenerateError:
        return found
    with limited(side):
        for measure in study.measures:
            if measure.on == "decoder":
                try:
                    comparison = MEASURES[measure.name].compare(
                        side.x, side.partners, **measure.options
                    )
                except DegenerateError:
                    continue
                found[measure.label] = comparison.score()
    return found


def score_row(measure: MeasureStudy, scored: Score, *, swapped: bool) -> dict[str, Any]:
    """A score as `scores` holds it."""
    components = scored.components or (None, None)
    a, b = reversed(components) if swapped else components
    return {
        "measure": measure.label,
        "null": scored.null,
        "score": scored.score,
        "null_mean": scored.null_mean,
        "null_sd": scored.null_sd,
        "z": scored.z,
        "p": scored.p_value,
        "calibrated": scored.calibrated,
        "exact_moments": scored.exact,
        "n_pairs": scored.n_pairs,
        "n_partners": scored.n_partners,
        "n_components": scored.n_components,
        "n_components_a": a,
        "n_components_b": b,
        "n_permutations": scored.n_permutations,
        "at_floor": scored.at_floor,
        "note": "",
    }


def unscored(measure: MeasureStudy, null: str, n_pairs: int, why: str) -> dict[str, Any]:
    """The place of a score that does not exist, with the reason."""
    nothing = dict.fromkeys(("score", "null_mean", "null_sd", "z", "p", "calibrated"), np.nan)
    return {
        "measure": measure.label,
        "null": null,
        **nothing,
        "exact_moments": False,
        "n_pairs": n_pairs,
        "n_partners": 0,
        "n_components": None,
        "n_components_a": None,
        "n_components_b": None,
        "n_permutations": 0,
        "at_floor": False,
        "note": why,
    }


def save_cell(cell: Cell, path: Path) -> None:
    """Keep a finished layer pair, so that a run that is killed need not compute it again."""
    arrays = {f"null_{i}": null for i, null in enumerate(cell.null_scores)}
    for side, evidence in zip("ab", cell.evidence or (), strict=False):
        for field in fields(evidence):
            arrays[f"{side}_{field.name}"] = np.ascontiguousarray(getattr(evidence, field.name))
    tables = json.dumps({"rows": cell.rows, "scores": cell.scores})
    with written(path) as temporary:
        temporary.write_bytes(save(arrays, metadata={"tables": tables}))


def read_cell(path: Path) -> Cell | None:
    """A layer pair that was kept; None if it is not there or not whole."""
    try:
        data = path.read_bytes()
        arrays = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        tables = json.loads(header["__metadata__"]["tables"])
        evidence = tuple(
            Evidence(**{f.name: arrays[f"{side}_{f.name}"] for f in fields(Evidence)})
            for side in "ab"
            if f"{side}_partner" in arrays
        )
        return Cell(
            rows=tables["rows"],
            scores=tables["scores"],
            null_scores=[arrays[f"null_{i}"] for i in range(len(tables["scores"]))],
            evidence=(evidence[0], evidence[1]) if evidence else None,
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
