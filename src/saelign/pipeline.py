"""The stages composed: the one module that knows them all."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from saelign import provenance
from saelign.activations import LayerActivations, collect
from saelign.correlation import Correlation, CrossMoments
from saelign.correlation.moments import FeatureMoments, add_products, correlation_of
from saelign.errors import DegenerateError, SaelignError
from saelign.features import feature_table
from saelign.matching import filter_pairs, match
from saelign.models import load_model, model_fingerprint
from saelign.nulls import SIGNIFICANCE, q_values
from saelign.plan import Plan, as_yaml_reads, check, model_name, rng_of, study_yaml
from saelign.report import write_figures
from saelign.results import (
    Run,
    features_name,
    open_run,
    pairs_name,
    write_info,
    write_table,
    written,
)
from saelign.saes import SAE, load_sae
from saelign.scoring import MIN_PAIRS, Score, check_rows, null_permutations, score_comparison
from saelign.similarity import MEASURES
from saelign.similarity.partners import partners_of
from saelign.study import MeasureStudy, ModelStudy, Study

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

SUBSPACE = "all"
"""Every feature takes part; semantic subspaces would stand beside it."""

COMPONENTS = ("n_components", "n_components_a", "n_components_b")
"""Columns that are empty where a measure keeps no components."""

SMALL = 1024
"""Pairs and widths up to which linear algebra runs on one core."""


def no_progress(what: str, done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Everything about one layer that no other layer takes part in; computed once.

    Attributes:
        layer: Which.
        acts: Its activations, by column for a layer of A, by row for one of B, as the product of
            the two needs them.
        moments: Their sums.
        decoder: A row a feature.
        features: The table that the run shows of them.
    """

    layer: int
    acts: sp.csc_array | sp.csr_array
    moments: FeatureMoments
    decoder: np.ndarray
    features: pd.DataFrame


def run(study: Study, *, out: str | Path | None = None, progress: Progress = no_progress) -> Run:
    """Compare two models from beginning to end.

    Args:
        study: What `load_study` returned.
        out: The run's folder, if not the study's own.
        progress: Told how far it has come.

    Returns:
        The run, its folder written; activations stay in the store, so that a second study of the
        same models, SAEs and text, or this one after it was killed, does not compute them again.

    Raises:
        SaelignError: The study cannot run; the message says what to do.
    """
    started = time.monotonic()
    progress("check the study", 0, 1)
    plan = check(study, out=out)
    progress("check the study", 1, 1)
    info: dict[str, Any] = {
        "complete": False,
        "name": study.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": provenance.command(),
        "versions": provenance.versions(),
        "machine": provenance.machine(),
        "study": as_yaml_reads(study),
        "study_folder": str(study.folder),
        "seeds": study.seeds,
        "layers_a": plan.layers_a,
        "layers_b": plan.layers_b,
        "store": str(plan.store),
        "text": [
            {"sha256": t.sha256, "n_tokens": t.n_tokens, "masked": t.masked} for t in plan.tokens
        ],
    }
    with written(plan.out / "study.yaml") as temporary:
        temporary.write_text(study_yaml(study), encoding="utf-8")
    if not is_finished(plan.out):  # an earlier run of this study stays readable until this one ends
        write_info(info, plan.out)

    saes = {
        "a": load_saes(study.model_a, plan.layers_a, study.folder),
        "b": load_saes(study.model_b, plan.layers_b, study.folder),
    }
    models = {"a": study.model_a, "b": study.model_b}
    info["models"] = {
        side: {
            "name": model.name,
            "fingerprint": model_fingerprint(model_name(model, study.folder), model.revision),
            "saes": {
                layer: {"source": s.source, "sha256": s.sha256} for layer, s in saes[side].items()
            },
        }
        for side, model in models.items()
    }
    scores: list[dict[str, Any]] = []
    cells: list[dict[str, Any]] = []
    layer_rows: list[dict[str, Any]] = []
    for index, seed in enumerate(study.seeds):
        collected = {
            side: collect_side(plan, side, saes[side], index, info, progress) for side in ("a", "b")
        }
        strings = token_strings(plan, index)
        layers = {
            side: [
                describe_layer(plan, side, index, acts, saes[side][layer], layer, strings)
                for layer, acts in told(
                    collected[side].items(), f"describe {side.upper()}", progress
                )
            ]
            for side in ("a", "b")
        }
        for side in ("a", "b"):
            for layer in layers[side]:
                write_table(
                    layer.features, plan.out / "features" / features_name(side, layer.layer, index)
                )
                wiring = collected[side][layer.layer].wiring
                layer_rows.append(layer_row(layer, side, index, wiring))
        layer_pairs = [(a, b) for a in layers["a"] for b in layers["b"]]
        for a, b in told(layer_pairs, "compare layers", progress):
            compare_layers(plan, index, seed, a, b, cells, scores)

    write_table(pd.DataFrame(layer_rows), plan.out / "layers.parquet", csv=True)
    write_table(pd.DataFrame(cells), plan.out / "cells.parquet", csv=True)
    table = corrected(pd.DataFrame(scores))
    write_table(table, plan.out / "scores.parquet", csv=True)
    info["warnings"] = warnings_of(pd.DataFrame(cells), table, pd.DataFrame(layer_rows))
    finished = Run(plan.out, info)
    write_figures(finished, progress=lambda done, total: progress("draw figures", done, total))
    info["complete"] = True
    info["seconds"] = round(time.monotonic() - started, 1)
    write_info(info, plan.out)
    if table["score"].isna().all():
        raise DegenerateError(
            f"at least one layer pair must be scored, none of {len(cells)} could be: "
            f"{table['note'].iloc[0]} (pairs and their reasons are in {plan.out})"
        )
    return finished


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a run that can be opened."""
    try:
        open_run(folder)
    except SaelignError:
        return False
    return True


def told(items: Any, what: str, progress: Progress) -> Any:
    """The items one by one, telling progress as each is done."""
    items = list(items)
    for done, item in enumerate(items):
        progress(what, done, len(items))
        yield item
    progress(what, len(items), len(items))


def load_saes(model: ModelStudy, layers: list[int], folder: Path) -> dict[int, SAE]:
    """The SAEs of a side, by layer."""
    return {layer: load_sae(model.sae_path(layer, folder), device=model.device) for layer in layers}


def collect_side(
    plan: Plan,
    side: str,
    saes: dict[int, SAE],
    index: int,
    info: dict[str, Any],
    progress: Progress,
) -> dict[int, LayerActivations]:
    """The activations of one model over the text of one run, from the store or computed."""
    model = plan.study.model_a if side == "a" else plan.study.model_b
    name = model_name(model, plan.study.folder)
    return collect(
        load=lambda: load_model(
            name, revision=model.revision, dtype=model.dtype, device=model.device
        ),
        blocks_path=model.blocks,
        saes=saes,
        tokens=plan.tokens[index],
        store=plan.store,
        model_fingerprint=info["models"][side]["fingerprint"],
        dtype=model.dtype,
        device=model.device,
        provenance={"model": model.name, "created": info["created"], "versions": info["versions"]},
        progress=lambda done, total: progress(f"collect {side.upper()} (tokens)", done, total),
    )


def token_strings(plan: Plan, index: int) -> dict[int, str]:
    """The text of every token id that a run reads."""
    ids = np.unique(plan.tokens[index].input_ids)
    return {int(i): plan.tokenizer.decode([int(i)]) for i in ids}


def describe_layer(
    plan: Plan,
    side: str,
    index: int,
    stored: LayerActivations,
    sae: SAE,
    layer: int,
    strings: dict[int, str],
) -> Layer:
    """A layer's activations in memory, sparse, with its moments, decoder and features."""
    acts = stored.concatenated()
    by_feature = acts.tocsc()
    by_feature.sort_indices()
    tokens, filters = plan.tokens[index], plan.study.filters
    features = feature_table(
        by_feature,
        tokens,
        strings,
        frozenset(tokens.special_ids),
        top_k=filters.top_k,
        min_active_tokens=filters.min_active_tokens,
    )
    return Layer(
        layer=layer,
        acts=by_feature if side == "a" else acts,
        moments=FeatureMoments.of(acts),
        decoder=sae.W_dec.cpu().numpy().astype(np.float64),
        features=features,
    )


def layer_row(layer: Layer, side: str, index: int, wiring: dict[str, Any]) -> dict[str, Any]:
    """What `layers` says of a layer."""
    reasons = layer.features["reason"]
    return {
        "run": index,
        "model": side,
        "layer": layer.layer,
        "n_features": len(reasons),
        "n_dead": int((reasons == "dead").sum()),
        "n_rare": int((reasons == "rare").sum()),
        "l0": layer.acts.nnz / layer.acts.shape[0],
        "explained_variance": wiring["explained_variance"],
        "explained_variance_before": wiring["explained_variance_before"],
        "explained_variance_after": wiring["explained_variance_after"],
    }


def correlate_layers(a: Layer, b: Layer, metric: str) -> Correlation:
    """The correlations of two layers, straight from their sparse activations."""
    products = np.zeros((a.acts.shape[1], b.acts.shape[1]))
    add_products(a.acts.tocsc(), b.acts.tocsr(), products)
    return correlation_of(CrossMoments(a=a.moments, b=b.moments, products=products), metric=metric)


def compare_layers(
    plan: Plan,
    index: int,
    seed: int,
    a: Layer,
    b: Layer,
    cells: list[dict[str, Any]],
    scores: list[dict[str, Any]],
) -> None:
    """Correlate, match, filter and score one layer pair; appends to `cells` and `scores`."""
    study = plan.study
    correlation = correlate_layers(a, b, study.metric)
    for matching in study.matching:
        where = {"run": index, "layer_a": a.layer, "layer_b": b.layer, "matching": matching}
        pairs = match(correlation, how=matching, min_active_tokens=study.filters.min_active_tokens)
        pairs = filter_pairs(
            pairs,
            study.filters,
            top_tokens_a=a.features["top_tokens"].to_list(),
            top_tokens_b=b.features["top_tokens"].to_list(),
            n_non_concept_a=a.features["n_non_concept"].to_list(),
            n_non_concept_b=b.features["n_non_concept"].to_list(),
        )
        write_table(pairs, plan.out / "pairs" / pairs_name(a.layer, b.layer, matching, index))
        cells.append({**where, **cell_row(pairs, a, b)})
        kept = pairs[pairs["kept"]]
        # Small decompositions run several times slower on all cores than on one.
        small = max(len(kept), a.decoder.shape[1], b.decoder.shape[1]) <= SMALL
        with threadpool_limits(1 if small else None, user_api="blas"):
            rows = score_pairs(study, seed, where, kept, a, b)
        scores.extend({**where, "subspace": SUBSPACE, **row} for row in rows)


def cell_row(pairs: pd.DataFrame, a: Layer, b: Layer) -> dict[str, Any]:
    """What `cells` says of a layer pair under one matching."""
    kept = pairs[pairs["kept"]]
    reasons = pairs["reason"].value_counts()
    return {
        "n_features_a": len(a.features),
        "n_features_b": len(b.features),
        "n_unpaired_a": int((a.features["reason"] != "").sum()),
        "n_unpaired_b": int((b.features["reason"] != "").sum()),
        "n_pairs": len(pairs),
        "n_non_concept": int(reasons.get("non_concept", 0)),
        "n_no_shared_token": int(reasons.get("no_shared_token", 0)),
        "n_low_correlation": int(reasons.get("low_correlation", 0)),
        "n_kept": len(kept),
        "mean_correlation": pairs["correlation"].mean(),
        "mean_correlation_kept": kept["correlation"].mean(),
        "mutual_share": pairs["mutual"].mean(),
        "mean_margin": pairs["margin"].mean(),
    }


def score_pairs(
    study: Study, seed: int, where: dict[str, Any], kept: pd.DataFrame, a: Layer, b: Layer
) -> list[dict[str, Any]]:
    """Every measure of the study beside every null, on the decoder rows of the kept pairs.

    What cannot be scored keeps its place, with a note that says why.
    """
    x = a.decoder[kept["feature_a"]]
    y = b.decoder[kept["feature_b"]]
    shuffled, rows_held = b, kept["feature_b"].to_numpy()
    if where["matching"] == "one_to_many":  # the side that repeats is the one to be relabelled
        x, y, shuffled, rows_held = y, x, a, kept["feature_a"].to_numpy()
    rates = shuffled.features["firing_rate"].to_numpy()[rows_held]
    wanted = [(measure, null) for measure in study.measures for null in study.nulls]
    try:
        x, y = check_rows(x, y)
    except DegenerateError as error:
        return [unscored(measure, null, len(kept), error) for measure, null in wanted]
    partners = partners_of(y, rows_held)
    permutations = {
        null: null_permutations(
            null,
            partners,
            rates,
            n_permutations=n_permutations,
            rng=rng_of(seed, null, where["layer_a"], where["layer_b"], where["matching"]),
        )
        for null, n_permutations in study.nulls.items()
    }
    rows = []
    for measure in study.measures:
        try:
            comparison = MEASURES[measure.name].compare(x, partners, **measure.options)
        except DegenerateError as error:
            rows += [unscored(measure, null, len(kept), error) for null in study.nulls]
            continue
        for null in study.nulls:
            scored = score_comparison(
                comparison,
                partners,
                measure=measure.name,
                null=null,
                permutations=permutations[null],
            )
            swapped = where["matching"] == "one_to_many"
            rows.append(score_row(measure, scored, swapped=swapped))
    return rows


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


def unscored(
    measure: MeasureStudy, null: str, n_pairs: int, error: DegenerateError
) -> dict[str, Any]:
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
        "note": str(error),
    }


def corrected(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores with `q`, `family_size` and `floor_limited`.

    A family is all layer pairs of one run, measure, matching, null and subspace. A cell is limited
    by the floor when its p is the smallest that its shuffles allow and they are fewer
    than 20 for each test of the family: were it the only one, q could not fall below 0.05.
    """
    by = ["run", "measure", "matching", "null", "subspace"]
    scores = scores.astype(dict.fromkeys(COMPONENTS, "Int64"))
    families = scores.groupby(by, sort=False)["p"]
    scores["q"] = families.transform(lambda p: q_values(p.to_numpy()))
    scores["family_size"] = families.transform("count").astype(int)
    few = scores["n_permutations"] < scores["family_size"] / SIGNIFICANCE
    scores["floor_limited"] = scores.pop("at_floor") & few
    order = [
        "run", "layer_a", "layer_b", "matching", "subspace", "measure", "null", "score",
        "null_mean", "null_sd", "z", "p", "q", "calibrated", "n_pairs", "n_partners",
        "n_components", "n_components_a", "n_components_b", "n_permutations", "exact_moments",
        "family_size", "floor_limited", "note",
    ]  # fmt: skip
    return scores[order]


def warnings_of(cells: pd.DataFrame, scores: pd.DataFrame, layers: pd.DataFrame) -> list[str]:
    """What a reader of the results ought to know before believing them."""
    found = []
    few = cells[cells["n_kept"] < MIN_PAIRS]
    if len(few):
        found.append(f"{len(few)} of {len(cells)} cells kept fewer than {MIN_PAIRS} pairs")
    unpaired = (layers["n_dead"] + layers["n_rare"]) / layers["n_features"]
    found += [
        f"more than half of the features of model {str(row.model).upper()} layer {row.layer} fire "
        "too rarely to be paired: use more text"
        for row in layers[unpaired > 0.5].itertuples()
    ]
    if scores["floor_limited"].any():
        n = int(scores["floor_limited"].sum())
        found.append(
            f"{n} of {len(scores)} scores are floor-limited: no shuffle reached them, and shuffles "
            "are fewer than 20 for each layer pair, so that p is their floor and not a "
            "measurement; raise the numbers under nulls"
        )
    missing = scores[scores["note"] != ""]
    if len(missing):
        found.append(
            f"{len(missing)} of {len(scores)} scores do not exist: {missing['note'].iloc[0]}"
        )
    return found
