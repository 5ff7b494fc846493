"""What the page of a run shows, as blocks: everything is read from the run's folder."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file

from saelign.errors import SaelignError
from saelign.report.blocks import coded, fixed, packed, smallest, table_block
from saelign.report.references import bibtex, methods_of
from saelign.report.selection import NAMES
from saelign.report.telling import headline, verdict_of, warnings_told
from saelign.results import (
    TRAINED,
    Run,
    contexts_name,
    decoder_tokens_name,
    details_name,
    features_name,
    pairs_name,
    read_table,
    strictest,
)

SCORES = (
    "control", "run", "metric", "layer_a", "layer_b", "matching", "subspace", "kind", "measure",
    "null", "score", "null_mean", "null_sd", "z", "p", "q", "calibrated", "score_half_1",
    "score_half_2", "n_pairs", "n_components", "n_permutations", "floor_limited", "combined",
    "note",
)  # fmt: skip
SUMMARY = (
    "control", "metric", "layer_a", "layer_b", "matching", "measure", "null", "score", "score_sd",
    "null_mean", "calibrated", "p", "q", "n_runs",
)  # fmt: skip
ROUND = 1e-4
"""Correlations are told in so fine steps."""
BINS = 100
"""Of the distribution of matched correlations, from -1 to 1."""
ACTS = 254
"""Steps of an activation in a context, of the feature's largest one; 255 is a token not read."""


@dataclass(slots=True)
class Content:
    """The blocks of a page.

    Attributes:
        blocks: By name.
        missing: What the run's folder does not hold, or not whole: what and why.
        left_out: Names of blocks that found no room.
    """

    blocks: dict[str, bytes] = field(default_factory=dict)
    missing: list[dict[str, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def n_bytes(self) -> int:
        """What the blocks take in a page."""
        return sum(math.ceil(len(block) / 3) * 4 for block in self.blocks.values())


def content_of(
    run: Run, *, room: int, progress: Callable[[int, int], None] = lambda *_: None
) -> Content:
    """Everything that a page of a run shows.

    Tables come whole. Of cells with their features as many as there is room for, the study's own
    comparison first, and of it the cells with the highest held-out correlation.

    Args:
        run: The run; its tables need not all be there.
        room: Bytes that the blocks may take in the page.
        progress: Told how many blocks of cells are packed, and of how many.
    """
    content = Content()
    tables = {name: table_or_none(run, name, content) for name in TABLES}
    for name, columns in TABLES.items():
        table = tables[name]
        if table is not None and len(table):
            content.blocks[name] = table_block(table, columns)
    verdicts = tables_verdicts(run, content)
    if verdicts is not None and len(verdicts):
        content.blocks["verdict_shares"] = table_block(verdict_counts(verdicts))
    cells = tables["cells"]
    cells = cells_from_pairs(run) if cells is None else cells
    wanted = list(in_order(run, cells))
    for done, row in enumerate(wanted):
        progress(done, len(wanted))
        add_cell(run, row, verdicts, content, room)
    progress(len(wanted), len(wanted))
    for what, why in old_folder(run, content):
        content.missing.append({"what": what, "why": why})
    content.blocks["core"] = packed({}, **core_of(run, tables, content))
    return content


TABLES: dict[str, tuple[str, ...] | None] = {
    "scores": SCORES,
    "summary": SUMMARY,
    "cells": None,
    "layers": None,
    "agreement": None,
    "subspaces": None,
    "subspace_scores": SCORES,
    "subspace_features": None,
}


def table_or_none(run: Run, name: str, content: Content) -> pd.DataFrame | None:
    """A table of the run; None, and a word on it, where it is not there or not whole."""
    if name.startswith("subspace") and not run.has_subspaces:
        return None
    try:
        return getattr(run, name)
    except SaelignError as error:
        why = "the run was not finished" if not run.info.get("complete") else str(error)
        content.missing.append({"what": f"the table {name}", "why": why})
        return None


def tables_verdicts(run: Run, content: Content) -> pd.DataFrame | None:
    """The verdicts on features; None where they are not there."""
    return table_or_none(run, "verdicts", content)


def verdict_counts(verdicts: pd.DataFrame) -> pd.DataFrame:
    """How many features of each layer have each verdict."""
    by = ["control", "run", "model", "against", "layer", "verdict"]
    return verdicts.groupby(by, sort=False).size().reset_index(name="n")


def cells_from_pairs(run: Run) -> pd.DataFrame:
    """Which cells an unfinished run has come to, from the files of pairs that lie there."""
    rows = []
    for path in sorted((run.folder / "pairs").glob("*/run*_a*_b*.parquet")):
        *front, a, b = path.stem.split("_")
        metric = next((m for m in run.metrics if path.stem.startswith(f"{front[0]}_{m}_")), "")
        matching = path.stem[len(f"{front[0]}_{metric}_") : -len(f"_{a}_{b}")]
        rows.append(
            {
                "control": path.parent.name,
                "run": int(front[0].removeprefix("run")),
                "metric": metric,
                "matching": matching,
                "layer_a": int(a[1:]),
                "layer_b": int(b[1:]),
            }
        )
    return pd.DataFrame(
        rows, columns=["control", "run", "metric", "matching", "layer_a", "layer_b"]
    )


def in_order(run: Run, cells: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The cells, those first that a reader is likeliest to open."""
    if len(cells) == 0:
        return
    matchings = list(dict.fromkeys(cells["matching"]))
    by = pd.Series(0.0, cells.index)
    if "held_out_correlation" in cells.columns:
        by = cells["held_out_correlation"].astype(float).fillna(-1.0)
    places = {
        "control": run.controls,
        "metric": run.metrics,
        "matching": matchings,
    }
    key = pd.DataFrame(
        {
            name: [known.index(value) if value in known else 99 for value in cells[name]]
            for name, known in places.items()
        },
        index=cells.index,
    ).assign(run=cells["run"], by=-by)
    # The study's own comparison, metric, matching and first run before all others.
    order = key.sort_values(["control", "metric", "matching", "run", "by"], kind="stable").index
    for row in cells.loc[order].to_dict("records"):
        yield {str(name): value for name, value in row.items()}


def cell_key(row: dict[str, Any]) -> str:
    """What a cell is called in the page."""
    names = ("control", "run", "metric", "matching", "layer_a", "layer_b")
    return "/".join(str(row[name]) for name in names)


def sides_of(control: str) -> tuple[str, str]:
    """The two sides that a comparison compares, by their keys."""
    return {
        "untrained": ("a_untrained", "b_untrained"),
        "seed_a": ("a", "a_seed"),
        "seed_b": ("b", "b_seed"),
    }.get(control, ("a", "b"))


def add_cell(
    run: Run, row: dict[str, Any], verdicts: pd.DataFrame | None, content: Content, room: int
) -> None:
    """Add the blocks of a cell and those of its features, as far as there is room."""
    key = cell_key(row)
    where = {name: row[name] for name in ("control", "metric", "matching", "run")}
    for name, make in (
        (f"pairs/{key}", lambda: pairs_block(run, row, where)),
        (f"details/{key}", lambda: details_block(run, row, where)),
    ):
        add(content, name, make, room)
    for side, layer in zip(sides_of(row["control"]), (row["layer_a"], row["layer_b"]), strict=True):
        place = f"{side}/{row['run']}/{layer}"
        of_run = int(row["run"])
        add(
            content,
            f"features/{place}",
            lambda s=side, n=layer, r=of_run: features_block(run, s, n, r, verdicts),
            room,
        )
        add(
            content,
            f"contexts/{place}",
            lambda s=side, n=layer, r=of_run: contexts_block(run, s, n, r),
            room,
        )


def add(content: Content, name: str, make: Callable[[], bytes | None], room: int) -> None:
    """Add a block if the folder has what it needs, and the page room for it."""
    if name in content.left_out or name in content.blocks:
        return
    if content.n_bytes >= room:
        content.left_out.append(name)
        return
    try:
        block = make()
    except (SaelignError, KeyError, ValueError) as error:
        content.missing.append({"what": name, "why": str(error)})
        return
    if block is None:
        return
    if content.n_bytes + len(block) * 4 // 3 > room:
        content.left_out.append(name)
    else:
        content.blocks[name] = block


def pairs_block(run: Run, row: dict[str, Any], where: dict[str, Any]) -> bytes:
    """The matched features of a cell, strongest first."""
    pairs = read_table(run.folder / pairs_name(row["layer_a"], row["layer_b"], **where))
    pairs = pairs.sort_values("correlation", ascending=False, kind="stable")
    columns: dict[str, Any] = {
        "a": smallest(pairs["feature_a"].to_numpy()),
        "b": smallest(pairs["feature_b"].to_numpy()),
    }
    for name in ("correlation", "within_token", "margin"):
        columns[name] = fixed(pairs[name].to_numpy(dtype=float), ROUND)
    columns["mutual"] = pairs["mutual"].astype(bool)
    columns["reason"] = coded(pairs["reason"].tolist())
    return packed(columns, n=len(pairs))


def details_block(run: Run, row: dict[str, Any], where: dict[str, Any]) -> bytes | None:
    """The distribution of a cell's correlations, and what the run kept of its decoder spaces."""
    pairs = read_table(run.folder / pairs_name(row["layer_a"], row["layer_b"], **where))
    columns: dict[str, Any] = {
        "all": histogram(pairs["correlation"]),
        "kept": histogram(pairs.loc[pairs["kept"], "correlation"]),
    }
    path = run.folder / details_name(row["layer_a"], row["layer_b"], **where)
    if path.is_file():
        try:
            found = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{path.name} is damaged: {error}") from error
        if "canonical" in found:
            columns["canonical"] = fixed(found["canonical"], ROUND)
        if "pairs" in found:
            columns["sample_a"], columns["sample_b"] = (smallest(p) for p in found["pairs"])
            for side in "ab":
                cosine = found[f"cosine_{side}"].astype(np.float64)
                columns[f"cosine_{side}"] = np.round((cosine + 1) * 127).astype(np.uint8)
    return packed(columns)


def histogram(values: pd.Series) -> np.ndarray:
    """How many values fall into each of the bins from -1 to 1."""
    counts, _ = np.histogram(values.dropna().clip(-1, 1), bins=BINS, range=(-1, 1))
    return smallest(counts)


def features_block(
    run: Run, side: str, layer: int, of_run: int, verdicts: pd.DataFrame | None
) -> bytes:
    """What is said of each feature of a layer, but for its contexts."""
    table = read_table(run.folder / features_name(side, layer, of_run))
    columns: dict[str, Any] = {
        "n_active": smallest(table["n_active"].to_numpy()),
        "n_documents": smallest(table["n_documents"].to_numpy()),
        "max_activation": table["max_activation"].to_numpy(dtype=np.float32),
        "n_non_concept": table["n_non_concept"],
        "reason": coded(table["reason"].tolist()),
        "top_token": coded([str(t[0]) if len(t) else "" for t in table["top_tokens"]]),
    }
    if "decoder_x" in table.columns:
        for axis in ("decoder_x", "decoder_y"):
            columns[axis] = fixed(table[axis].to_numpy(dtype=float), ROUND)
    if "concepts" in table.columns:
        columns["concepts"] = coded(["\t".join(names) for names in table["concepts"]])
    if verdicts is not None and len(verdicts):
        control = "untrained" if side.endswith("_untrained") else TRAINED
        own = verdicts[
            (verdicts["run"] == of_run)
            & (verdicts["model"] == side[0])
            & (verdicts["layer"] == layer)
            & (verdicts["control"] == control)
            & (verdicts["against"] == "other")
        ]
        if len(own) and not side.endswith("_seed"):
            said = own.set_index("feature")["verdict"].reindex(table["feature"]).fillna("")
            columns["verdict"] = coded(said.tolist())
    path = run.folder / decoder_tokens_name(side, layer)  # nothing where it was not asked of
    if path.is_file():
        spoken = read_table(path)
        flat = [token for tokens in spoken["tokens"] for token in tokens]
        columns["decoder_token"] = coded(flat)
        columns["decoder_logit"] = np.concatenate(spoken["logits"].to_list()).astype(np.float32)
    n_tokens = None
    fired = table[table["n_active"] > 0]
    if len(fired):
        first = fired.iloc[0]
        n_tokens = round(float(first["n_active"] / first["firing_rate"]))
    return packed(columns, n=len(table), n_tokens=n_tokens)


def contexts_block(run: Run, side: str, layer: int, of_run: int) -> bytes | None:
    """The top contexts of each feature of a layer; None where the run's folder has none."""
    path = run.folder / contexts_name(side, layer, of_run)
    if not path.is_file():
        return contexts_without_activations(run, side, layer, of_run)
    table = read_table(path)
    n = int(read_table(run.folder / features_name(side, layer, of_run))["feature"].max()) + 1
    length = table["tokens"].map(len).to_numpy()
    none = np.zeros(0)
    acts = np.concatenate([none, *table["activations"]])
    whose = np.repeat(table["feature"].to_numpy(), length)
    peaks = np.full(n, 1e-30)
    np.maximum.at(peaks, whose, np.nan_to_num(acts))
    steps = np.round(np.nan_to_num(acts) / peaks[whose] * ACTS).clip(0, ACTS)
    steps[np.isnan(acts)] = 255
    flat = np.concatenate([none.astype(object), *table["tokens"]])
    return packed(
        {
            "count": np.bincount(table["feature"], minlength=n),
            "length": length,
            "at": table["at"],
            "document": table["document"],
            "token": coded(flat),
            "activation": steps.astype(np.uint8),
        },
        n=n,
        told="activations",
    )


def contexts_without_activations(run: Run, side: str, layer: int, of_run: int) -> bytes:
    """Contexts of a run written before activations stood beside them: the top token alone."""
    table = read_table(run.folder / features_name(side, layer, of_run))
    parts: list[tuple[str, str, str, float]] = []
    counts = np.zeros(len(table), dtype=np.int64)
    for i, (contexts, acts) in enumerate(
        zip(table["top_contexts"], table["top_activations"], strict=True)
    ):
        counts[i] = len(contexts)
        for text, value in zip(contexts, acts, strict=True):
            before, _, rest = str(text).partition("«")
            token, _, after = rest.partition("»")
            parts.append((before, token, after, float(value) / float(max(acts))))
    return packed(
        {
            "count": counts,
            "length": [3] * len(parts),
            "at": [1] * len(parts),
            "document": [0] * len(parts),
            "token": coded([text for part in parts for text in part[:3]]),
            "activation": np.array(
                [a for *_, value in parts for a in (255, round(ACTS * value), 255)], dtype=np.uint8
            ),
        },
        n=len(table),
        told="top token",
    )


def old_folder(run: Run, content: Content) -> Iterator[tuple[str, str]]:
    """What a folder written by an older version lacks."""
    older = "the run was written by a version that did not keep it: run the study again"
    if content.blocks and not (run.folder / "details").is_dir():
        yield "canonical correlations and similarity matrices of cells", older
    if content.blocks and not (run.folder / "contexts").is_dir():
        yield "activations of every token of a context, and maps", older


def core_of(run: Run, tables: dict[str, pd.DataFrame | None], content: Content) -> dict[str, Any]:
    """What the page needs at once: what was compared, what is to be said, what there is."""
    info = run.info
    scores = tables["scores"]
    nulls = [] if scores is None else [str(n) for n in scores["null"].unique()]
    measures = [] if scores is None else [str(m) for m in scores["measure"].unique()]
    verdict = verdict_of(info, tables)
    return plain(
        {
            "name": info["name"],
            "complete": bool(info.get("complete")),
            "created": info.get("created"),
            "seconds": info.get("seconds"),
            "command": info.get("command"),
            "versions": info["versions"],
            "machine": info.get("machine", {}),
            "models": info["models"],
            "seeds": info["seeds"],
            "metrics": run.metrics,
            "controls": run.controls,
            "text": info["text"],
            "study": info.get("study", {}),
            "concepts": info.get("concepts", {}),
            "nulls": nulls,
            "null": strictest(nulls) if nulls else None,
            "measures": measures,
            "measure": headline(measures),
            "names": NAMES,
            "verdict": verdict,
            "warnings": warnings_told(info, tables),
            "methods": methods_of(measures, nulls, info),
            "bibtex": bibtex(measures, nulls, info),
            "missing": content.missing,
            "left_out": len(content.left_out),
            "blocks": sorted(content.blocks),
        }
    )


def plain(value: Any) -> Any:
    """A value as JSON holds it: NaN is null, and what JSON does not know is its text."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) or math.isinf(value) else float(value)
    if isinstance(value, np.integer):
        return int(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)
