"""The stages composed: the one module that knows them all."""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import save
from torch import Tensor, nn

from saelign import provenance
from saelign.activations import LayerActivations, collect
from saelign.agreement import agreement_of, summary_of
from saelign.cells import (
    Cell,
    LayerPair,
    Setting,
    compare_layers,
    read_cell,
    save_cell,
)
from saelign.concepts.occurrences import Occurrences
from saelign.contexts import context_table
from saelign.details import cell_details, decoder_map
from saelign.errors import DegenerateError, SaelignError
from saelign.given import Given
from saelign.judging import judge
from saelign.layers import Layer, Reading, describe_layer, read_text_of_run, shifted
from saelign.locations import SAE_LENS
from saelign.models import (
    has_direct_path,
    load_model,
    model_fingerprint,
    promoted_tokens,
    read_unembedding,
    unembedding_of,
    untrained_fingerprint,
    untrained_model,
)
from saelign.nulls import SIGNIFICANCE, q_values
from saelign.phrases import Phrases, phrases_of
from saelign.plan import (
    MADE,
    Comparison,
    Plan,
    Side,
    as_yaml_reads,
    check,
    config_of,
    model_name,
    study_yaml,
    text_source,
)
from saelign.report import write_figures, write_report, write_subspace_tables
from saelign.results import (
    TRAINED,
    Run,
    contexts_name,
    decoder_tokens_name,
    details_name,
    features_name,
    open_run,
    pairs_name,
    write_info,
    write_table,
    written,
)
from saelign.saes import SAE
from saelign.saes.registry import find
from saelign.scoring import MIN_PAIRS
from saelign.shelf import Shelf, ShelfSide
from saelign.study import GIVEN, ModelStudy, Study, rng_of
from saelign.subspace_study import Subspaces
from saelign.subspaces import (
    Subspace,
    SubspaceCell,
    combined,
    compare_subspaces,
    listed_subspaces,
    read_subspace_cell,
    save_subspace_cell,
    with_members,
)
from saelign.text import DatasetSource, Tokenizer, Tokens, context_frame, words_of
from saelign.tiles import engine
from saelign.twins import made_saes
from saelign.verdicts import Evidence

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

logger = logging.getLogger(__name__)

PROMOTED = 8
"""Tokens that are told of each decoder row."""

MOST_PRODUCTS = 4e12
"""Operations a layer that a decoder may take to be unembedded on a CPU, about half a minute."""

RESIDUAL = ("resid_post", "resid_pre")
"""Sites where a decoder row adds to what the unembedding reads."""

COMPONENTS = ("n_components", "n_components_a", "n_components_b")
"""Columns that are empty where a measure keeps no components."""


def no_progress(what: str, done: int, total: int) -> None:
    """Tell nobody."""


def run(
    study: Study,
    *,
    out: str | Path | None = None,
    memory: str | int | None = None,
    given: Mapping[str, Given] | None = None,
    models_from: str | Path | None = None,
    progress: Progress = no_progress,
) -> Run:
    """Compare two models from beginning to end.

    Args:
        study: What `load_study` returned.
        out: The run's folder, if not the study's own.
        memory: What it may take, such as `8GiB` (or bytes); most of what is free if None. Layers
            and SAEs that do not fit at once are read again when they are needed.
        given: For `a` and `b`, a model, its tokenizer or its SAEs as objects, in place of what the
            study names.
        models_from: A folder in place of the hub; see `check`.
        progress: Told how far it has come.

    Returns:
        The run, its folder written; activations stay in the store, so that a second study of the
        same models, SAEs and text does not compute them again. A run that was killed goes on where
        it stopped: layer pairs that it had finished are kept in its folder until it ends.

    Raises:
        SaelignError: The study cannot run; the message says what to do.
    """
    started = time.monotonic()
    progress("check the study", 0, 1)
    plan = check(study, out=out, memory=memory, given=given, models_from=models_from)
    study = plan.study
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
        "models_from": None if study.models_from is None else str(study.models_from),
        "seeds": study.seeds,
        "metrics": study.metrics,
        "controls": [comparison.control for comparison in plan.comparisons],
        "layers_a": plan.layers_a,
        "layers_b": plan.layers_b,
        "store": str(plan.store),
        "text_source": about_source(text_source(study)),
        "text": [about_text(plan, index) for index in range(len(study.seeds))],
    }
    with written(plan.out / "study.yaml") as temporary:
        temporary.write_text(study_yaml(study), encoding="utf-8")
    if not is_finished(plan.out):  # an earlier run of this study stays readable until this one ends
        write_info(info, plan.out)

    info["concepts"] = {} if plan.subspaces is None else plan.subspaces.told()
    info["models"] = {side.key: about_side(plan, side) for side in plan.sides}
    parts = plan.out / "parts" / parts_key(info)
    found = Found()
    for index, seed in enumerate(study.seeds):
        run_once(plan, index, seed, info, parts, found, progress)

    cells, layers = pd.DataFrame(found.cells), found.layer_table(plan)
    scores = corrected(pd.DataFrame(found.scores))
    write_table(layers, plan.out / "layers.parquet", csv=True)
    write_table(cells, plan.out / "cells.parquet", csv=True)
    write_table(scores, plan.out / "scores.parquet", csv=True)
    write_table(null_table(scores, found.null_scores), plan.out / "null_scores.parquet")
    summary = summary_of(scores, found.null_scores)
    write_table(summary, plan.out / "summary.parquet", csv=True)
    agreement = agreement_of(
        scores[scores["control"] == TRAINED],
        seeds=study.seeds,
        metrics=study.metrics,
        rng=rng_of(study.seeds[0], "agreement"),
    )
    write_table(agreement, plan.out / "agreement.parquet", csv=True)
    write_table(verdict_table(found.verdicts), plan.out / "verdicts.parquet", csv=True)
    info["warnings"] = warnings_of(cells, scores, layers)
    if plan.subspaces is not None:
        info["warnings"] += write_subspaces(found, plan)
    finished = Run(plan.out, info)
    write_subspace_tables(finished)
    write_figures(finished, progress=lambda done, total: progress("draw figures", done, total))
    info["complete"] = True
    info["seconds"] = round(time.monotonic() - started, 1)
    write_info(info, plan.out)
    shutil.rmtree(plan.out / "parts", ignore_errors=True)
    write_page(finished, progress)
    if scores.loc[scores["control"] == TRAINED, "score"].isna().all():
        raise DegenerateError(
            f"at least one layer pair must be scored, none of {len(cells)} could be: "
            f"{scores['note'].iloc[0]} (pairs and their reasons are in {plan.out})"
        )
    return finished


def null_table(scores: pd.DataFrame, null_scores: list[np.ndarray]) -> pd.DataFrame:
    """What every shuffle gave, for each row of `scores` of the models as given, in its order."""
    own = (scores["control"] == TRAINED).to_numpy()
    keys = ["run", "metric", "layer_a", "layer_b", "matching", "measure", "null"]
    draws = [null_scores[i].astype(np.float32) for i in np.flatnonzero(own)]
    table = scores.loc[own, keys]
    table["draws"] = pd.Series(draws, index=table.index, dtype=object)
    return table


def write_page(finished: Run, progress: Progress) -> None:
    """Write the report; a page that cannot be written is told, and loses no run."""
    what = "write the report"
    try:
        write_report(finished, progress=lambda done, total: progress(what, done, total))
    except Exception as error:  # the results are whole, whatever befalls the page
        logger.warning(
            "the report could not be written (%s); `saelign report %s` tries again: %s",
            type(error).__name__, finished.folder, error,
        )  # fmt: skip


class Found:
    """The rows that layer pairs have given so far, and what their features' partners are."""

    def __init__(self) -> None:
        self.cells: list[dict[str, Any]] = []
        self.scores: list[dict[str, Any]] = []
        self.null_scores: list[np.ndarray] = []
        self.layers: dict[tuple[int, str, int], dict[str, Any]] = {}
        self.verdicts: list[pd.DataFrame] = []
        self.listed: list[Subspace] = []
        self.members: dict[tuple[int, str, int], list[dict[str, Any]]] = {}
        self.subspaces: list[SubspaceCell] = []

    def layer_table(self, plan: Plan) -> pd.DataFrame:
        """What `layers` says, in the order of runs, sides and layers, however they were read."""
        sides = [side.key for side in plan.sides]
        order = sorted(self.layers, key=lambda name: (name[0], sides.index(name[1]), name[2]))
        return pd.DataFrame([self.layers[name] for name in order])

    def add(self, cell: Cell) -> None:
        """Take in what a layer pair gave."""
        self.cells += cell.rows
        self.scores += cell.scores
        self.null_scores += cell.null_scores


def run_once(
    plan: Plan,
    index: int,
    seed: int,
    info: dict[str, Any],
    parts: Path,
    found: Found,
    progress: Progress,
) -> None:
    """All comparisons over the text that one seed draws."""
    tokens = plan.tokens[index]
    reading = read_text_of_run(
        tokens,
        token_strings(plan, tokens),
        rng_halves=rng_of(seed, "halves"),
        rng_shifts=rng_of(seed, "shifts"),
    )
    info["text"][index]["unit"] = reading.unit
    about_words = read_words(plan, index, seed)
    if about_words is not None:
        found.listed = listed_subspaces(about_words.subspaces, about_words.phrases)
    collected: dict[str, dict[int, LayerActivations]] = {}
    at_phrases: dict[str, dict[int, LayerActivations]] = {}
    saes: dict[str, Callable[[int], SAE]] = {}
    for side in plan.sides:
        read = plan.read_by(side, index)
        saes[side.key] = sae_loader(plan, side, read, collected, info, progress)
        collected[side.key] = collect_side(plan, side, saes[side.key], read, info, progress)
        if about_words is not None and about_words.phrases is not None:
            at_phrases[side.key] = collect_side(
                plan, side, saes[side.key],
                plan.to_collect(*about_words.phrases.of(side.letter)), info, progress,
                of=", phrases",
            )  # fmt: skip
        if index == 0:
            keep_promoted_tokens(plan, side, saes[side.key], info, progress)
    shelf = Shelf(plan.forecast.room_for_layers)
    layers: dict[str, ShelfSide] = {}
    evidence: dict[str, dict[tuple[int, int], tuple[Evidence, Evidence]]] = {}
    for number, comparison in enumerate(plan.comparisons):
        for side in (comparison.a, comparison.b):
            if side.key not in layers:
                layers[side.key] = describe_side(
                    plan, side, index, collected[side.key], saes[side.key], reading, about_words,
                    at_phrases.get(side.key), found, shelf, progress,
                )  # fmt: skip
        sides = layers[comparison.a.key], layers[comparison.b.key]
        evidence[comparison.control] = compare_sides(
            plan, comparison, index, seed, sides, reading, parts, found, shelf, progress
        )
        if not plan.study.verdicts:  # which look back at all layers
            again = {side.key for c in plan.comparisons[number + 1 :] for side in (c.a, c.b)}
            shelf.forget([key for key in layers if key not in again])
    for side in plan.sides:  # an earlier run may have finished all their pairs
        for layer in side.layers:
            if (index, side.key, layer) not in found.layers:
                layers[side.key][layer]
    if plan.study.verdicts:
        found.verdicts += [
            table.assign(run=index)
            for table in judge(
                evidence,
                layers,
                min_active_tokens=plan.study.filters.min_active_tokens,
            )
        ]


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


def sae_loader(
    plan: Plan,
    side: Side,
    tokens: Tokens,
    collected: Mapping[str, Mapping[int, LayerActivations]],
    info: Mapping[str, Any],
    progress: Progress,
) -> Callable[[int], SAE]:
    """What loads the SAE of a layer of a side, from where the study says it lies or made now."""
    model = side.model
    if model.saes in MADE:
        made = twin_saes(plan, side, tokens, collected[side.letter], info, progress)
        return made.__getitem__
    return lambda layer: plan.sae_of(side, layer, device=plan.device_of(side))


def about_text(plan: Plan, index: int) -> dict[str, Any]:
    """What `run.json` says of the text of a run."""
    tokens = plan.tokens[index]
    told = {"sha256": tokens.sha256, "n_tokens": tokens.n_tokens, "masked": tokens.masked}
    if plan.aligned is None:
        return told
    aligned = plan.aligned[index]
    return {**told, "sha256_b": aligned.b.sha256, "coverage": asdict(aligned.coverage)}


def about_source(source: str | Path | DatasetSource) -> Any:
    """What `run.json` says of where the text came from; a data set at the commit that was read."""
    return asdict(source) if isinstance(source, DatasetSource) else str(source)


def neuronpedia_of(model: ModelStudy, layer: int) -> str | None:
    """What neuronpedia.org calls the SAE of a layer: as the study says, or as SAELens knows."""
    if model.neuronpedia is not None or model.saes == GIVEN:
        return model.neuronpedia_id(layer)
    location = model.sae_location(layer)
    return find(location).neuronpedia if location.startswith(SAE_LENS) else None


def about_side(plan: Plan, side: Side) -> dict[str, Any]:
    """What `run.json` says of a side: the model, its weights and its SAEs."""
    model, name = side.model, model_name(side.model, plan.study.places)
    if side.twin_seed is None:
        given = plan.model_given(side).fingerprint
        fingerprint = given or model_fingerprint(name, model.revision)
    else:
        config = plan.given[side.letter].config
        fingerprint = untrained_fingerprint(config or name, side.twin_seed, model.revision)
    told_saes: Any = model.saes
    if told_saes not in MADE:
        told_saes = {}
        for layer in side.layers:  # one at a time: all of them need not fit into memory
            sae = plan.sae_of(side, layer, device="cpu")
            told_saes[layer] = {"source": sae.source, "sha256": sae.sha256}
            if where := neuronpedia_of(model, layer):
                told_saes[layer]["neuronpedia"] = where
    return {
        "name": model.name,
        "loaded_from": name,
        "fingerprint": fingerprint,
        "site": asdict(model.place),
        "saes": told_saes,
    }


def parts_key(info: Mapping[str, Any]) -> str:
    """Tells the finished layer pairs of this study and version from those of any other."""
    about = {key: info[key] for key in ("study", "text", "models", "concepts")}
    about["version"] = info["versions"]["saelign"]
    text = json.dumps(about, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def loader(plan: Plan, side: Side) -> Callable[[], nn.Module]:
    """What loads a side's model, or draws its untrained twin."""
    model, name = side.model, model_name(side.model, plan.study.places)
    given = plan.model_given(side).model
    if given is not None:
        return lambda: given
    if side.twin_seed is None:
        return lambda: load_model(
            name,
            revision=model.revision,
            dtype=model.dtype,
            device=model.device,
            quantization=model.quantization,
        )
    seed, sha256 = side.twin_seed, side.twin_sha256
    return lambda: untrained_model(
        plan.given[side.letter].config or name,
        seed=seed,
        revision=model.revision,
        dtype=model.dtype,
        device=model.device,
        sha256=sha256,
    )


def side_name(side: Side) -> str:
    """A side as progress tells of it."""
    return side.key.replace("_", " ").replace(side.letter, side.letter.upper(), 1)


def twin_saes(
    plan: Plan,
    side: Side,
    tokens: Tokens,
    like: Mapping[int, LayerActivations],
    info: Mapping[str, Any],
    progress: Progress,
) -> dict[int, SAE]:
    """SAEs made for an untrained twin; see `saelign.twins`."""
    how = str(side.model.saes)
    what = f"{'train' if how == 'trained' else 'draw'} SAEs of {side_name(side)}"
    return made_saes(
        how,
        like=like,
        load=loader(plan, side),
        blocks_path=side.model.blocks,
        site=side.model.place,
        tokens=tokens,
        store=plan.store,
        fingerprint=info["models"][side.key]["fingerprint"],
        seed=side.twin_seed or 0,
        device=side.model.device,
        progress=lambda done, total: progress(what, done, total),
    )


def collect_side(
    plan: Plan,
    side: Side,
    load: Callable[[int], SAE],
    tokens: Tokens,
    info: Mapping[str, Any],
    progress: Progress,
    *,
    of: str = "",
) -> dict[int, LayerActivations]:
    """The activations of one side over the text of one run, from the store or computed.

    In one pass of the model, or in as many as it takes for the SAEs of a pass to fit into memory.
    """
    about = info["models"][side.key]
    found: dict[int, LayerActivations] = {}
    passes = plan.forecast.passes(side)
    for number, some in enumerate(passes):
        part = f", pass {number + 1} of {len(passes)}" if len(passes) > 1 else ""
        what = f"collect {side_name(side)} (tokens{of}{part})"
        found |= collect(
            load=loader(plan, side),
            blocks_path=side.model.blocks,
            saes={layer: load(layer) for layer in some},
            tokens=tokens,
            store=plan.store,
            model_fingerprint=about["fingerprint"],
            dtype=side.model.precision,
            device=plan.device_of(side),
            site=side.model.place,
            provenance={
                "model": about["name"],
                "side": side.key,
                "created": info["created"],
                "versions": info["versions"],
            },
            check_fit=side.twin_seed is None and not of,  # phrases are too few to tell
            progress=lambda done, total, what=what: progress(what, done, total),
        )
    return found


def keep_promoted_tokens(
    plan: Plan, side: Side, load: Callable[[int], SAE], info: dict[str, Any], progress: Progress
) -> None:
    """Write which tokens each decoder row speaks for, where it adds to the residual stream.

    Not for untrained twins, whose unembedding says nothing. `run.json` says where it was left out
    and why.
    """
    paths = {layer: plan.out / decoder_tokens_name(side.key, layer) for layer in side.layers}
    if side.twin_seed is not None or all(path.is_file() for path in paths.values()):
        return
    about = info["models"][side.key]
    if side.model.place.name not in RESIDUAL:
        about["decoder_tokens"] = "left out: decoder rows do not add to the residual stream"
        return
    config = config_of(side.model, plan.study.places, plan.given[side.letter])
    n_entries, n_weights = config.get_text_config().vocab_size, load(side.layers[0]).W_dec.numel()
    if plan.device_of(side) == "cpu" and 2.0 * n_entries * n_weights > MOST_PRODUCTS:
        about["decoder_tokens"] = "left out: it takes minutes a layer without a GPU"
        return
    tokenizer = plan.tokenizer if side.letter == "a" else plan.tokenizer_b
    weight = unembedding_for(plan, side) if has_direct_path(config) else None
    if weight is None or weight.shape[1] != load(side.layers[0]).W_dec.shape[1]:
        about["decoder_tokens"] = "left out: the model has no unembedding that can be read"
        return
    what = f"unembed decoder of {side_name(side)}"
    for layer in told(side.layers, what, progress):
        decoder = load(layer).W_dec
        ids, logits = promoted_tokens(weight, decoder, top=min(PROMOTED, len(weight)))
        known = {
            int(i): tokenizer.decode([int(i)]) if i < len(tokenizer) else f"[{i}]"
            for i in np.unique(ids)
        }
        table = pd.DataFrame(
            {
                "feature": np.arange(len(ids)),
                "tokens": [[known[i] for i in row] for row in ids.tolist()],
                "logits": list(logits),
            }
        )
        write_table(table, paths[layer])


def unembedding_for(plan: Plan, side: Side) -> Tensor | None:
    """The unembedding of a side's model, read by itself where that can be; None if it has none."""
    given, name = plan.model_given(side).model, model_name(side.model, plan.study.places)
    if given is not None:
        return unembedding_of(given)
    weight = read_unembedding(name, revision=side.model.revision)
    return unembedding_of(loader(plan, side)()) if weight is None else weight


def token_strings(plan: Plan, tokens: Tokens) -> dict[int, str]:
    """The text of every token id that a run reads."""
    return {int(i): plan.tokenizer.decode([int(i)]) for i in np.unique(tokens.input_ids)}


@dataclass(frozen=True, slots=True, kw_only=True)
class AboutWords:
    """What semantic subspaces need to know of the text of a run.

    Attributes:
        subspaces: What the study asks for.
        occurrences: Where the keywords stand.
        phrases: Phrases to be read beside the text; None if none are asked for.
    """

    subspaces: Subspaces
    occurrences: Occurrences
    phrases: Phrases | None


def read_words(plan: Plan, index: int, seed: int) -> AboutWords | None:
    """Where the keywords of the study's concepts stand; None if it asks for no subspaces."""
    subspaces, tokens = plan.subspaces, plan.tokens[index]
    if subspaces is None:
        return None
    occurrences = Occurrences.of(
        words_of(tokens, plan.tokenizer),
        subspaces.concepts,
        case=subspaces.study.case,
        inflected=subspaces.study.inflected,
    )
    phrases = None
    if subspaces.phrases:
        tokens_b = tokens if plan.aligned is None else plan.aligned[index].b
        read = (plan.tokenizer, tokens), (plan.tokenizer_b, tokens_b)
        phrases = phrases_of(
            subspaces,
            [tokenizer for tokenizer, _ in read],
            with_bos=[begins_with_bos(of, tokenizer) for tokenizer, of in read],
            rng=rng_of(seed, "phrases"),
        )
    return AboutWords(subspaces=subspaces, occurrences=occurrences, phrases=phrases)


def begins_with_bos(tokens: Tokens, tokenizer: Tokenizer) -> bool:
    """Whether every context begins with BOS, or CLS."""
    start, _ = context_frame(tokenizer)
    return start != [] and bool((tokens.input_ids[:, 0] == start).all())


def describe_side(
    plan: Plan,
    side: Side,
    index: int,
    collected: Mapping[int, LayerActivations],
    load: Callable[[int], SAE],
    reading: Reading,
    about_words: AboutWords | None,
    at_phrases: Mapping[int, LayerActivations] | None,
    found: Found,
    shelf: Shelf,
    progress: Progress,
) -> ShelfSide:
    """All layers of a side, described when they are first needed, their tables of features written.

    Whatever depends on a layer alone is computed here, once, unless memory is too short to keep it.
    """
    what = f"describe {side_name(side)}"

    def make(number: int) -> Layer:
        acts = collected[number]
        matrix = plan.by_unit(acts.concatenated(), side, index)
        layer = describe_layer(
            matrix,
            load(number).W_dec.cpu().numpy(),
            reading,
            plan.study.filters,
            layer=number,
        )
        if about_words is not None:
            phrases = None
            if about_words.phrases is not None and at_phrases is not None:
                at_last = at_phrases[number].concatenated()
                _, pieces = about_words.phrases.of(side.letter)
                phrases = (about_words.phrases, plan.pooled(at_last, pieces))
            layer, members = with_members(
                layer, matrix, about_words.subspaces, about_words.occurrences, phrases
            )
            where = {"run": index, "model": side.key, "layer": number}
            found.members[index, side.key, number] = [{**where, **row} for row in members]
        if (index, side.key, number) not in found.layers:
            write_table(
                layer.features.assign(**told_of_decoder(layer, plan)),
                plan.out / features_name(side.key, number, index),
            )
            contexts = context_table(
                matrix.tocsc(), reading.tokens, reading.strings, top_k=plan.study.filters.top_k
            )
            write_table(contexts, plan.out / contexts_name(side.key, number, index))
            found.layers[index, side.key, number] = layer_row(layer, side, index, acts.wiring)
            done = sum(name[:2] == (index, side.key) for name in found.layers)
            progress(what, done, len(collected))
        return layer

    return shelf.side(side.key, list(collected), make)


def told_of_decoder(layer: Layer, plan: Plan) -> dict[str, Any]:
    """What the table of features says besides: where decoder rows lie, and which concepts."""
    places = decoder_map(layer.decoder, layer.features["reason"].to_numpy())
    found: dict[str, Any] = {"decoder_x": places[:, 0], "decoder_y": places[:, 1]}
    if plan.subspaces is not None:
        names = [concept.name for concept in plan.subspaces.concepts]
        held = np.stack([layer.members[name] for name in names], axis=1)
        found["concepts"] = [[names[i] for i in np.flatnonzero(row)] for row in held]
    return found


def layer_row(layer: Layer, side: Side, index: int, wiring: dict[str, Any]) -> dict[str, Any]:
    """What `layers` says of a layer."""
    reasons = layer.features["reason"]
    return {
        "run": index,
        "model": side.key,
        "layer": layer.layer,
        "n_features": len(reasons),
        "n_dead": int((reasons == "dead").sum()),
        "n_rare": int((reasons == "rare").sum()),
        "l0": layer.n_values / layer.n_tokens,
        "explained_variance": wiring["explained_variance"],
        "explained_variance_before": wiring["explained_variance_before"],
        "explained_variance_after": wiring["explained_variance_after"],
    }


def compare_sides(
    plan: Plan,
    comparison: Comparison,
    index: int,
    seed: int,
    sides: tuple[ShelfSide, ShelfSide],
    reading: Reading,
    parts: Path,
    found: Found,
    shelf: Shelf,
    progress: Progress,
) -> dict[tuple[int, int], tuple[Evidence, Evidence]]:
    """Every layer pair of a comparison, those that an earlier run finished read back."""
    control = comparison.control
    setting = Setting(
        study=plan.study,
        control=control,
        run=index,
        seed=seed,
        metrics=plan.metrics_of(comparison),
        halves_scored=control == TRAINED,
        judged=plan.study.verdicts and not comparison.is_shifted,
    )
    devices = [plan.device_of(side) for side in (comparison.a, comparison.b)]
    on_gpu = next((engine(device) for device in devices if device.startswith("cuda")), None)
    evidence = {}
    layers_a, layers_b = sides
    if comparison.is_shifted:
        as_given = layers_b
        layers_b = shelf.side(
            f"{comparison.b.key}_{control}",
            as_given.layers,
            lambda number: shifted(as_given[number], reading, 0),
        )

    def layer_pair(a: int, b: int) -> LayerPair:
        return LayerPair(a=layers_a[a], b=layers_b[b], reading=reading, engine=on_gpu)

    layer_pairs = [(a, b) for a in layers_a for b in layers_b]
    what = "compare layers" if control == TRAINED else f"compare layers ({control})"
    for a, b in told(layer_pairs, what, progress):
        part = parts / f"{control}_run{index}_a{a}_b{b}.safetensors"
        cell = read_cell(part)
        if cell is None:
            where = (plan.out, control, index, a, b)
            layers_of_pair = layer_pair(a, b)
            cell = compare_layers(
                setting,
                layers_of_pair,
                lambda pairs, metric, matching, where=where, of=layers_of_pair: write_pairs(
                    of, pairs, metric, matching, *where
                ),
            )
            save_cell(cell, part)
        found.add(cell)
        if cell.evidence is not None:
            evidence[a, b] = cell.evidence
        if plan.subspaces is not None:
            part = part.with_suffix(".subspaces.json")
            inside = read_subspace_cell(part)
            if inside is None:
                inside = compare_subspaces(setting, layer_pair(a, b), plan.subspaces, found.listed)
                save_subspace_cell(inside, part)
            found.subspaces.append(inside)
    return evidence


def write_pairs(
    layers: LayerPair,
    pairs: pd.DataFrame,
    metric: str,
    matching: str,
    out: Path,
    control: str,
    index: int,
    layer_a: int,
    layer_b: int,
) -> None:
    """Write the pairs of a cell, and what stands behind its scores."""
    where = {"control": control, "metric": metric, "matching": matching, "run": index}
    write_table(pairs, out / pairs_name(layer_a, layer_b, **where))
    kept = pairs[pairs["kept"]]
    a, b = kept["feature_a"].to_numpy(), kept["feature_b"].to_numpy()
    details = cell_details(
        layers.a.decoder[a], layers.b.decoder[b], a, b, rng=np.random.default_rng(0)
    )
    with written(out / details_name(layer_a, layer_b, **where)) as temporary:
        temporary.write_bytes(save(details))


def verdict_table(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """All verdicts as one table; empty, with its columns, if none were asked for."""
    columns = [
        "control", "run", "model", "against", "layer", "feature", "verdict", "n_documents",
        "best_layer", "best_feature", "correlation", "held_out", "p", "q", "mutual", "replicated",
    ]  # fmt: skip
    if not tables:
        return pd.DataFrame(columns=columns)
    return pd.concat(tables, ignore_index=True)[columns]


def write_subspaces(found: Found, plan: Plan) -> list[str]:
    """Write the tables of semantic subspaces; gives what a reader ought to know before."""
    members = [row for rows in found.members.values() for row in rows]
    write_table(pd.DataFrame(members), plan.out / "subspace_features.parquet", csv=True)
    rows = pd.DataFrame([row for cell in found.subspaces for row in cell.rows])
    write_table(rows, plan.out / "subspaces.parquet", csv=True)
    scores = pd.DataFrame([row for cell in found.subspaces for row in cell.scores])
    scores = corrected(scores.assign(score_half_1=np.nan, score_half_2=np.nan), family="kind")
    scores = scores.drop(columns=["score_half_1", "score_half_2"])
    scores["combined"] = combined(scores, found.listed)
    write_table(scores, plan.out / "subspace_scores.parquet", csv=True)
    pairs = pd.DataFrame([row for cell in found.subspaces for row in cell.pairs])
    write_table(pairs, plan.out / "subspace_pairs.parquet")
    own = scores[(scores["control"] == TRAINED) & scores["score"].notna()]
    n = int(own["floor_limited"].sum())
    if n == 0:
        return []
    return [
        f"{n} of {len(own)} scores of subspaces are floor-limited: p is the least that so few "
        "shuffles or random groups allow; raise the numbers under nulls and subspaces.same_size"
    ]


def corrected(scores: pd.DataFrame, *, family: str = "subspace") -> pd.DataFrame:
    """The scores with `q`, `family_size` and `floor_limited`.

    A family is all layer pairs of one control, run, metric, measure, matching, null and subspace,
    or set of subspaces of one kind. A
    cell is limited by the floor when its p is the smallest that its shuffles allow and they are
    fewer than 20 for each test of the family: were it the only one, q could not fall below 0.05.
    """
    by = ["control", "run", "metric", "measure", "matching", "null", family]
    scores = scores.astype(dict.fromkeys(COMPONENTS, "Int64"))
    families = scores.groupby(by, sort=False)["p"]
    scores["q"] = families.transform(lambda p: q_values(p.to_numpy()))
    scores["family_size"] = families.transform("count").astype(int)
    few = scores["n_permutations"] < scores["family_size"] / SIGNIFICANCE
    scores["floor_limited"] = scores.pop("at_floor") & few
    order = [
        "control", "run", "metric", "layer_a", "layer_b", "matching",
        *dict.fromkeys(("subspace", family)), "measure", "null",
        "score", "null_mean", "null_sd", "z", "p", "q", "calibrated", "score_half_1",
        "score_half_2", "n_pairs", "n_partners", "n_components", "n_components_a",
        "n_components_b", "n_permutations", "exact_moments", "family_size", "floor_limited", "note",
    ]  # fmt: skip
    return scores[order]


def warnings_of(cells: pd.DataFrame, scores: pd.DataFrame, layers: pd.DataFrame) -> list[str]:
    """What a reader of the results ought to know before believing them."""
    found = []
    own = cells[cells["control"] == TRAINED]
    few = own[own["n_kept"] < MIN_PAIRS]
    if len(few):
        found.append(f"{len(few)} of {len(own)} cells kept fewer than {MIN_PAIRS} pairs")
    unpaired = (layers["n_dead"] + layers["n_rare"]) / layers["n_features"]
    found += [
        f"more than half of the features of model {str(row.model).upper()} layer {row.layer} fire "
        "too rarely to be paired: use more text"
        for row in layers[(unpaired > 0.5) & layers["model"].isin(["a", "b"])].itertuples()
    ]
    scores = scores[scores["control"] == TRAINED]
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
