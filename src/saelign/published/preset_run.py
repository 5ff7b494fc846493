"""The published method on a finished run's models, SAEs and text, cell by cell, kept as it goes."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from saelign.concepts.concept import Concept, plain
from saelign.errors import DamagedError, MissingFileError, StudyError
from saelign.features import is_non_concept
from saelign.files import written
from saelign.forecast import memory_limit
from saelign.models import d_model, find_blocks, streams_at
from saelign.nulls import SIGNIFICANCE
from saelign.pipeline import loader
from saelign.plan import Plan, Side, check
from saelign.published.comparison import OURS, SWAPPED, Pair, ours_of, pair_of
from saelign.published.features import Correlations, Features, codes_of
from saelign.published.mistakes import Published
from saelign.published.preset import NON_CONCEPT, WINDOW, Draws, ReadLayer, compare_as_published
from saelign.published.preset import keyword_members as members_by_keyword
from saelign.published.tables import ALL, printed_keywords, shuffles_drawn
from saelign.results import Run
from saelign.saes import SAE
from saelign.study import read_study
from saelign.text import STANDARD_INPUT, Tokenizer, Tokens

MATCHINGS = ("one_to_one", "many_to_one")
BATCH_TOKENS = 8192
"""Positions of a forward pass."""

KEYS = ["matching", "subspace", "layer_a", "layer_b"]
"""What tells one cell from another."""

PRINTED_AS = {
    "n_pairs": "n_pairs",
    "mean_corr_all": "mean_corr_all",
    "mean_corr_kept": "mean_corr_kept",
    "pc1": "svcca",
    "rsa": "rsa",
}
"""Printed quantities, and the columns in which the method gives them."""

LADDER = ("svcca", "pc1", "rsa", "mean_corr_all", "mean_corr_kept", "n_pairs")
"""What the ladder shows the means of."""

FORMAT = 1
"""Of the files of cells: others are computed again."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Reading:
    """How activations are made: what makes two variants share their correlations.

    Attributes:
        enters: Whether SAEs are fed what enters their block.
        everywhere: Whether every position counts.
        before_topk: Whether codes are those before TopK.
    """

    enters: bool
    everywhere: bool
    before_topk: bool

    @classmethod
    def of(cls, how: Published) -> "Reading":
        """The reading of a variant."""
        return cls(how.makes("4"), how.makes("5"), how.makes("codes"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Preset:
    """All that the published method needs of a run.

    Attributes:
        run: The run.
        plan: Its study, found to fit as it did then.
        sides: Their A and their B.
        pair: The published models that these are; None if they are none.
        memory: Bytes that it may take.
        concepts: Those to look into.
    """

    run: Run
    plan: Plan
    sides: tuple[Side, Side]
    pair: Pair | None
    memory: int
    concepts: tuple[Concept, ...]
    strings: dict[int, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where what is computed is kept."""
        return self.run.folder / "published"

    @property
    def tokens(self) -> Tokens:
        """The text of the first run."""
        return self.plan.tokens[0]

    @property
    def key(self) -> str:
        """Tells the cells of this run, version and text from any others."""
        info = self.run.info
        about = {key: info[key] for key in ("study", "text", "models")}
        about |= {"version": info["versions"]["saelign"], "format": FORMAT}
        return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def draws(self) -> Draws:
        """How chance is drawn."""
        study = self.plan.study
        model = "" if self.pair is None else self.pair.model_a
        named = SWAPPED if self.pair is not None and self.pair.is_swapped else OURS
        return Draws(
            seed=study.seeds[0],
            n_shuffles={name: shuffles_drawn(model, name) for name in MATCHINGS},
            nulls=study.nulls,
            min_active_tokens=study.filters.min_active_tokens,
            named=named,
        )

    @property
    def layer_pairs(self) -> list[tuple[int, int]]:
        """Layers of their A and of their B."""
        return [(a, b) for a in self.sides[0].layers for b in self.sides[1].layers]


def prepare(run: Run, *, memory: str | int | None = None, with_concepts: bool = True) -> Preset:
    """What the published method needs of a run, after it was found to be what it was.

    Args:
        run: A finished run.
        memory: What it may take, such as `8GiB`; most of what is free if None.
        with_concepts: Look into the published concepts, where the run looks into any or the papers
            looked into its models.

    Raises:
        MissingFileError: The run has no study.yaml.
        StudyError: Its text or its SAEs are not there as they were, it does not read the residual
            stream, or its models have different tokenizers.
        SaelignError: Its study cannot run any more.
    """
    path = run.folder / "study.yaml"
    if not path.is_file():
        raise MissingFileError(
            f"a run's folder must hold study.yaml, {run.folder} does not: run the study again"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DamagedError(
            f"{path} must be what saelign wrote, it is damaged: run the study again"
        ) from error
    study = read_study(content, folder=Path(run.info["study_folder"]))
    if study.text.source == STANDARD_INPUT:
        raise StudyError(
            "the text of a run must still be there for the published method, that of "
            f"{run.folder} was piped in: run the study on a file"
        )
    plan = check(study, out=run.folder, memory=memory, models_from=run.info.get("models_from"))
    if plan.aligned is not None:
        raise StudyError(
            "the published method must read one sequence of tokens with both models, those of "
            f"{run.folder} have different tokenizers: choose a run whose models share one"
        )
    if plan.tokens[0].sha256 != run.info["text"][0]["sha256"]:
        raise StudyError(
            f"the text must be that of the run, it is another than when {run.folder} was made: "
            "run the study again in another folder"
        )
    own = plan.comparisons[0]
    for side in (own.a, own.b):
        if side.model.site not in ("resid_post", "resid_pre"):
            raise StudyError(
                "the published method must read the residual stream, model "
                f"{side.key.upper()} of {run.folder} is read at {side.model.site}: choose a run "
                "that reads resid_post"
            )
    pair = pair_of(run)
    sides = (own.b, own.a) if pair is not None and pair.is_swapped else (own.a, own.b)
    wanted = with_concepts and (pair is not None or run.has_subspaces)
    return Preset(
        run=run,
        plan=plan,
        sides=sides,
        pair=pair,
        memory=memory_limit(memory),
        concepts=printed_keywords() if wanted else (),
    )


def no_progress(what: str, done: int, total: int) -> None:
    """Tell nobody."""


def compute(
    preset: Preset, variants: Sequence[Published], *, progress: Progress = no_progress
) -> pd.DataFrame:
    """The cells of some variants of the published method.

    Cells are kept in the run's folder as they are done: a command that is stopped goes on there.

    Args:
        preset: What `prepare` gave.
        variants: Which mistakes are mended; each variant is computed for every layer pair.
        progress: Told how far it has come.

    Returns:
        A row for each variant, layer pair (in their order), matching and subspace: `n_pairs`,
        `mean_corr_all`, `mean_corr_kept`, and `svcca`, `pc1`, `rsa`, each with `_null_mean` and
        `_p`.

    Raises:
        StudyError: An SAE is another than when the run was made.
        StorageError: The run's folder cannot be written.
    """
    wanted = [(how, pair) for pair in preset.layer_pairs for how in variants]
    missing = [(how, pair) for how, pair in wanted if read_rows(preset, how, pair) is None]
    if missing:
        fill(preset, missing, progress)
    rows = [row for how, pair in wanted for row in read_rows(preset, how, pair) or []]
    return pd.DataFrame(rows)


def fill(
    preset: Preset, missing: Sequence[tuple[Published, tuple[int, int]]], progress: Progress
) -> None:
    """Compute cells that are not there yet, layer pair by layer pair."""
    todo: dict[tuple[int, int], dict[Reading, list[Published]]] = {}
    for how, pair in missing:
        todo.setdefault(pair, {}).setdefault(Reading.of(how), []).append(how)
    readings = {reading for of_pair in todo.values() for reading in of_pair}
    streams = [
        read_streams(preset, side, {at(side, n[i], r) for n in todo for r in readings}, progress)
        for i, side in enumerate(preset.sides)
    ]
    known: tuple[dict[Any, ReadLayer], dict[Any, ReadLayer]] = ({}, {})
    saes: dict[tuple[str, int], SAE] = {}
    done = 0
    for (layer_a, layer_b), of_pair in todo.items():
        for reading, variants in of_pair.items():
            layers = [
                layer_of(preset, side, layer, reading, streams[i], known[i], saes)
                for i, (side, layer) in enumerate(
                    zip(preset.sides, (layer_a, layer_b), strict=True)
                )
            ]
            correlations = Correlations(*(x.features for x in layers), memory=preset.memory)
            for how in variants:
                rows = [
                    {"layer_a": layer_a, "layer_b": layer_b, "matching": matching}
                    | {"subspace": subspace}
                    | compare_as_published(
                        how, correlations, *layers, matching=matching, draws=preset.draws,
                        subspace=subspace,
                    )
                    for matching, subspace in asked(preset)
                ]  # fmt: skip
                write_rows(preset, how, (layer_a, layer_b), rows)
                progress("published method", done, len(missing))
                done += 1
        if sum(8 * sae.d_sae * sae.d_model for sae in saes.values()) > preset.memory // 4:
            for held in (*known, saes):
                held.clear()
    progress("published method", len(missing), len(missing))
    shutil.rmtree(preset.folder / "streams", ignore_errors=True)


def asked(preset: Preset) -> Iterator[tuple[str, str]]:
    """Matchings of all features, then the concepts, one-to-one as the paper's tables have them."""
    for matching in MATCHINGS:
        yield matching, ALL
    for concept in preset.concepts:
        yield "one_to_one", concept.name


def at(side: Side, layer: int, reading: Reading) -> int:
    """The block whose output is read for a layer: `hidden_states[L]` is that of block L - 1."""
    return layer - 1 if reading.enters or side.model.site == "resid_pre" else layer


def cell_path(preset: Preset, how: Published, pair: tuple[int, int]) -> Path:
    """Where the rows of a variant and a layer pair are kept."""
    name = f"{how.label.replace(' ', '_').replace(',', '')}_a{pair[0]}_b{pair[1]}.json"
    return preset.folder / "cells" / name


def read_rows(preset: Preset, how: Published, pair: tuple[int, int]) -> list[dict[str, Any]] | None:
    """The rows that were kept; None if they are not there, not whole, or of something else."""
    try:
        content = json.loads(cell_path(preset, how, pair).read_text(encoding="utf-8"))
        subspaces = {row["subspace"] for row in content["rows"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    wanted = {subspace for _, subspace in asked(preset)}
    if content.get("key") != preset.key or not wanted <= subspaces:
        return None
    return [{"variant": how.label, **row} for row in content["rows"] if row["subspace"] in wanted]


def write_rows(
    preset: Preset, how: Published, pair: tuple[int, int], rows: list[dict[str, Any]]
) -> None:
    """Keep the rows of a variant and a layer pair."""
    with written(cell_path(preset, how, pair)) as temporary:
        temporary.write_text(json.dumps({"key": preset.key, "rows": rows}), encoding="utf-8")


def read_streams(
    preset: Preset, side: Side, blocks: set[int], progress: Progress
) -> dict[int, np.ndarray]:
    """What leaves some blocks (-1: what enters block 0) at every position, padding included.

    Kept on the disk while cells are computed, mapped into memory.
    """
    tokens, folder = preset.tokens, preset.folder / "streams"
    paths = {n: folder / f"{preset.key[:16]}_{side.key}_{n}.npy" for n in blocks}
    lacking = [n for n, path in paths.items() if not path.is_file()]
    if lacking:
        model: Any = loader(preset.plan, side)()
        found = find_blocks(model, side.model.blocks)
        reads = next(iter(model.get_input_embeddings().parameters())).device
        n_contexts, length = tokens.input_ids.shape
        batch = max(1, BATCH_TOKENS // length)
        width = d_model(model.config)
        folder.mkdir(parents=True, exist_ok=True)
        partial = {n: path.with_suffix(".partial.npy") for n, path in paths.items() if n in lacking}
        maps = {
            n: np.lib.format.open_memmap(
                path, mode="w+", dtype=np.float32, shape=(n_contexts * length, width)
            )
            for n, path in partial.items()
        }
        what = f"read {side.key.upper()} (positions)"
        for start in range(0, n_contexts, batch):
            ids = torch.from_numpy(tokens.input_ids[start : start + batch].astype(np.int64))
            mask = torch.from_numpy(tokens.attended[start : start + batch].astype(np.int64))
            streams = streams_at(model, found, ids.to(reads), mask.to(reads), lacking)
            for n, stream in streams.items():
                flat = stream.float().reshape(-1, width).cpu().numpy()
                maps[n][start * length : start * length + len(flat)] = flat
            progress(what, min(start + batch, n_contexts) * length, n_contexts * length)
        for n, path in partial.items():
            maps[n].flush()
            path.replace(paths[n])
    return {n: np.load(path, mmap_mode="r") for n, path in paths.items()}


def layer_of(
    preset: Preset,
    side: Side,
    layer: int,
    reading: Reading,
    streams: Mapping[int, np.ndarray],
    known: dict[Any, ReadLayer],
    saes: dict[tuple[str, int], SAE],
) -> ReadLayer:
    """A layer under a reading; what is known already is not made again."""
    key = (layer, reading)
    if key not in known:
        if (side.key, layer) not in saes:
            saes[side.key, layer] = sae_of(preset, side, layer)
        sae = saes[side.key, layer]
        tokens = preset.tokens
        rows = None if reading.everywhere else np.flatnonzero(tokens.kept.ravel())
        stream = streams[at(side, layer, reading)]
        n_positions = len(stream) if rows is None else len(rows)
        codes = codes_of(sae, stream, rows, before_topk=reading.before_topk)
        features = Features.of(codes, sae.d_sae, n_positions, memory=preset.memory)
        known[key] = described(preset, layer, features, sae, rows)
    return known[key]


def sae_of(preset: Preset, side: Side, layer: int) -> SAE:
    """The SAE of a layer, found to be that of the run.

    Raises:
        StudyError: It is another.
    """
    sae = preset.plan.sae_of(side, layer, device=preset.plan.device_of(side))
    saes = preset.run.info["models"][side.key]["saes"]
    told = {int(n): about for n, about in saes.items()}[layer]  # JSON made text of the numbers
    if sae.sha256 != told["sha256"]:
        raise StudyError(
            f"SAEs must be those of the run, the one of layer {layer} of model {side.key.upper()} "
            f"({sae.source}) is another than when {preset.run.folder} was made: run the study "
            "again in another folder"
        )
    return sae


def described(
    preset: Preset, layer: int, features: Features, sae: SAE, rows: np.ndarray | None
) -> ReadLayer:
    """A layer with its top tokens and what they say of its features."""
    tokens, tokenizer = preset.tokens, preset.plan.tokenizer
    ids = tokens.input_ids.ravel()
    top = features.top if rows is None else rows[features.top]
    used = np.unique(top)
    strings = preset.strings
    for i in np.unique(ids[used]).tolist():
        strings.setdefault(i, tokenizer.decode([i]))
    special = set(tokens.special_ids)
    top_ids = ids[top]
    top_tokens = [[strings[i] for i in row] for row in top_ids.tolist()]
    by_kind = {i: i in special or is_non_concept(strings[i]) for i in np.unique(top_ids).tolist()}
    members = {}
    if preset.concepts:
        length = tokens.input_ids.shape[1]
        near = {
            int(p): (strings[int(ids[p])], window(tokens, tokenizer, *divmod(int(p), length)))
            for p in used
        }
        members = members_by_keyword(preset.concepts, top, near)
    return ReadLayer(
        layer=layer,
        features=features,
        decoder=sae.W_dec.cpu().numpy(),
        top_tokens=top_tokens,
        n_listed=np.array([sum(t in NON_CONCEPT for t in of) for of in top_tokens]),
        n_non_concept=np.array([sum(by_kind[i] for i in row) for row in top_ids.tolist()]),
        members=members,
    )


def window(tokens: Tokens, tokenizer: Tokenizer, context: int, position: int) -> str:
    """The text of a token with two on either side, within its context."""
    start = max(0, position - WINDOW)
    return tokenizer.decode(tokens.input_ids[context, start : position + WINDOW + 1].tolist())


def beside_computed(table: pd.DataFrame, computed: pd.DataFrame) -> pd.DataFrame:
    """Cells with what the published method gives here, and its difference from what was printed.

    Args:
        table: That of `beside_printed`, or of `own_cells`.
        computed: The rows of one variant.
    """
    names = ["n_pairs", "mean_corr_all", "mean_corr_kept", "n_shuffles", "note"]
    names += [f"{name}{part}" for name in ("svcca", "rsa") for part in ("", "_null_mean", "_p")]
    by_key = computed.assign(subspace=computed["subspace"].map(plain)).set_index(KEYS)[names]
    at = pd.MultiIndex.from_frame(table[KEYS].assign(subspace=table["subspace"].map(plain)))
    preset = by_key.reindex(at).add_prefix("preset_").set_axis(table.index)
    found = pd.concat([table, preset], axis=1)
    for printed, ours in PRINTED_AS.items():
        if f"printed_{printed}" in found:
            difference = found[f"preset_{ours}"] - found[f"printed_{printed}"]
            found[f"preset_{ours}_difference"] = difference
    return found


def own_cells(preset: Preset, computed: pd.DataFrame) -> pd.DataFrame:
    """The cells of a run of whose layer pairs nothing was printed: ours alone."""
    names = (str(preset.run.info["models"][side]["name"]) for side in ("a", "b"))
    pair = preset.pair or Pair(model_a=next(names), model_b=next(names), is_swapped=False)
    cells = computed[KEYS].drop_duplicates().reset_index(drop=True)
    at = pd.MultiIndex.from_frame(cells.assign(subspace=cells["subspace"].map(plain)))
    ours = ours_of(preset.run, pair).reindex(at).set_axis(cells.index)
    return pd.concat([cells, ours], axis=1)


def ladder_table(computed: pd.DataFrame) -> pd.DataFrame:
    """What each variant gives on average over the layer pairs, all features.

    Returns:
        A row for each variant and matching: means of `svcca`, `pc1`, `rsa`, `mean_corr_all`,
        `mean_corr_kept` and `n_pairs` over the layer pairs that could be scored; and of how many of
        these p was below 0.05 (`svcca_below`, `rsa_below`, `n_cells`).
    """
    rows = []
    whole = computed[computed["subspace"] == ALL]
    for (variant, matching), of_both in whole.groupby(["variant", "matching"], sort=False):
        scored = of_both[of_both["svcca"].notna()]
        rows.append(
            {
                "variant": variant,
                "matching": matching,
                "n_cells": len(scored),
                **{name: scored[name].mean() for name in LADDER},
                **{
                    f"{name}_below": int((scored[f"{name}_p"] < SIGNIFICANCE).sum())
                    for name in ("svcca", "rsa")
                },
            }
        )
    return pd.DataFrame(rows)
