"""Results as tables for a terminal."""

import re
from collections.abc import Callable, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import Normalize
from rich.color import Color
from rich.console import RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from saelign.nulls import SIGNIFICANCE
from saelign.panels import SCORE_COLOURS, common_norm, is_light
from saelign.report.selection import (
    CEILINGS,
    CORRELATIONS,
    ON_GRID,
    UNTRAINED,
    grid_of,
    of_own_metric,
    over_runs,
    there,
)
from saelign.results import TRAINED, Run, strictest
from saelign.sites import Site
from saelign.verdicts import VERDICTS, verdict_shares

WIDTH = 80
"""Columns of the narrowest terminal that tables are laid out for."""

CORNER, GAP = "A \\ B", "  "
BLANK = Text()

CONTROLS = {
    "trained": "trained",
    "untrained": "untrained",
    "document_shift": "document\nshift",
    "seed_a": "A with\nitself",
    "seed_b": "B with\nitself",
}
AGAINST = {
    (TRAINED, "other"): "trained",
    (UNTRAINED, "other"): "untrained",
    (TRAINED, "decoy"): "decoy",
}
"""Whose features, held against what: rows of the table of verdicts."""


def grid_tables(
    grid: pd.DataFrame,
    *,
    title: str,
    weak: pd.DataFrame | None = None,
    width: int = WIDTH,
    norm: Normalize | None = None,
) -> list[RenderableType]:
    """A layer grid in colours; cells that do not beat chance after correction in parentheses.

    One table, or as many below each other as its columns need to fit into `width`: what a terminal
    cuts off are digits. Colours go from 0 to the largest value, or as `norm` says.
    """
    norm = common_norm(grid) if norm is None else norm
    shaky = np.zeros(grid.shape, dtype=bool) if weak is None else weak.to_numpy()
    values = grid.to_numpy(dtype=float).tolist()
    texts = [
        [cell_text(value, weak=flag) for value, flag in zip(row, flags, strict=True)]
        for row, flags in zip(values, shaky.tolist(), strict=True)
    ]
    widest = max(len(text) for row in texts for text in row)
    cells = [
        [Text(text.rjust(widest), style=cell_style(v, norm)) for text, v in zip(*row, strict=True)]
        for row in zip(texts, values, strict=True)
    ]
    at_once = max(1, (width - len(CORNER)) // (widest + len(GAP)))
    parts: list[RenderableType] = [Text(title, style="italic")]
    for start in range(0, grid.shape[1], at_once):
        block = slice(start, start + at_once)
        table = Table(box=None, padding=(0, len(GAP), 0, 0), pad_edge=False)
        table.add_column(CORNER, style="bold", justify="right", no_wrap=True)
        for layer in grid.columns[block]:
            table.add_column(str(layer), justify="right", no_wrap=True, min_width=widest)
        for layer, row in zip(grid.index, cells, strict=True):
            table.add_row(str(layer), *row[block])
        parts.append(table)
    return parts


def cell_style(value: float, norm: Normalize) -> Style:
    """The colours of a cell, those of the figures; none where there is no value."""
    if np.isnan(value):
        return Style()
    colour = mpl.colormaps[SCORE_COLOURS](float(norm(value)))
    background = Color.from_rgb(*(255 * part for part in colour[:3]))
    return Style(color="#000000" if is_light(colour) else "#ffffff", bgcolor=background)


def cell_text(value: float, *, weak: bool = False) -> str:
    """A score as a terminal's table shows it."""
    if np.isnan(value):
        return "-"
    return f"({value:z.3f})" if weak else f"{value:z.3f}"


def brief(value: float, digits: int = 3) -> str:
    """A number as a narrow table shows it: `.312`, `-.002`, `-` if there is none."""
    return "-" if np.isnan(value) else re.sub(r"^(-?)0\.", r"\1.", f"{value:z.{digits}f}")


def with_interval(value: float, low: float, high: float, digits: int = 3) -> str:
    """A number with its 95 % interval: `.312 [.305, .319]`; alone if there is none."""
    told = brief(value, digits)
    if np.isnan(low) or np.isnan(high):
        return told
    return f"{told} [{brief(low, digits)}, {brief(high, digits)}]"


def overview(run: Run, *, matching: str | None = None, width: int = WIDTH) -> list[RenderableType]:
    """What a run found, beside chance and controls, and warnings; of several runs the means.

    What was compared; where the models are most alike; how trained models stand against controls;
    what is said of features; how alike grids are when one choice is changed; the grids themselves.

    Args:
        run: The run.
        matching: Only this one; all if None.
        width: Columns of the terminal.
    """
    info, seeds = run.info, run.info["seeds"]
    models = info["models"]
    # Means over runs where there are several; of one run its scores, which also count the pairs.
    scores = of_own_metric(run, run.summary if len(seeds) > 1 else run.scores)
    cells = of_own_metric(run, run.cells)
    trained = scores[scores["control"] == TRAINED]
    null = strictest(scores["null"].unique())
    read = tokens_read([text["n_tokens"] for text in info["text"]])
    sites = {side: Site(**models[side].get("site", {})).short for side in ("a", "b")}
    names = {
        side: f"{models[side]['name']} ({site})" if site else models[side]["name"]
        for side, site in sites.items()
    }
    about = f": A = {names['a']}, B = {names['b']}, {read}, saelign {info['versions']['saelign']}"
    parts: list[RenderableType] = [
        Text.assemble((str(info["name"]), "bold"), about),
        Text(f"Scores in parentheses do not beat chance ({null} null, q >= {SIGNIFICANCE})."),
    ]
    if len(seeds) > 1:
        parts.append(Text(f"Scores and grids are means over {len(seeds)} runs."))
    matchings = [matching] if matching else [str(m) for m in scores["matching"].unique()]
    for name in matchings:
        of_matching = trained[trained["matching"] == name]
        for of_null in scores["null"].unique():
            rows = of_matching[of_matching["null"] == of_null]
            title = f"Where the models are most alike: {name}, {of_null} null"
            parts += [BLANK, Text(title, style="italic"), best_table(rows)]
    strict = scores[scores["null"] == null]
    for name in matchings if len(set(cells["control"])) > 1 else []:
        parts.append(BLANK)
        parts += control_tables(
            cells[cells["matching"] == name], strict[strict["matching"] == name], f"{name}, {null}"
        )
    parts += verdict_tables(run.verdicts)
    agreement = run.agreement
    for name in matchings:
        parts += agreement_tables(agreement[agreement["matching"] == name], name)
    means = over_runs(cells[cells["control"] == TRAINED], list(CORRELATIONS))
    for name in matchings:
        parts += correlation_tables(means[means["matching"] == name], name, width)
        parts += peak_lines(cells[cells["matching"] == name], seeds)
        parts += score_tables(strict[strict["matching"] == name], name, null, width)
    warnings = info.get("warnings", [])
    parts += [BLANK] * bool(warnings)
    return [*parts, *(Text.assemble(("warning: ", "yellow"), warning) for warning in warnings)]


def tokens_read(counts: Sequence[int]) -> str:
    """How many tokens the runs read, in words."""
    if len(counts) == 1:
        return f"{counts[0]:,} tokens"
    if len(set(counts)) == 1:
        return f"{counts[0]:,} tokens in each of {len(counts)} runs"
    return " and ".join(f"{count:,}" for count in counts) + " tokens"


def plain_table(first: str, *others: str, whole: bool = False) -> Table:
    """A table without lines, its first column to be read and the others numbers.

    Args:
        first: What the first column is.
        others: What the others are.
        whole: Whether, where it gets narrow, only the others are to wrap.
    """
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(first, overflow="fold", vertical="bottom", no_wrap=whole)
    for column in others:
        table.add_column(column, justify="right", overflow="fold", vertical="bottom")
    return table


def measure_text(measure: str) -> Text:
    """A measure's name, its options below it: beside it they leave no room for the numbers."""
    return Text(measure.replace("(", "\n(").replace(", ", ",\n "))


def best_table(scores: pd.DataFrame) -> Table:
    """For each measure: how many cells beat chance, and the highest of them.

    Args:
        scores: Those of one matching and null, from one run or as means over several.
    """
    last = "spread\nover runs" if "score_sd" in scores.columns else "pairs"
    table = plain_table(
        "measure", "cells\nq<0.05", "peak\nA, B", "score", "chance", "calibrated", "p", last
    )
    for measure, group in scores.groupby("measure", sort=False):
        table.add_row(measure_text(str(measure)), *best_cells(group))
    return table


def best_cells(group: pd.DataFrame) -> list[str]:
    """What `best_table` tells of the scores of one measure."""
    scored = group[group["score"].notna()]
    beat = f"{n_beating(group)}/{len(group)}"
    if len(scored) == 0:
        return [beat, "none"]
    best = scored.iloc[int(scored["calibrated"].fillna(scored["score"]).argmax())]
    spread = "score_sd" in group.columns
    return [
        beat,
        f"{best['layer_a']}, {best['layer_b']}",
        *(cell_text(float(best[value])) for value in ("score", "null_mean", "calibrated")),
        f"{best['p']:.2g}",
        cell_text(float(best["score_sd"])) if spread else f"{best['n_pairs']}",
    ]


def n_beating(scores: pd.DataFrame) -> int:
    """How many cells beat chance after correction."""
    return int((scores["q"] < SIGNIFICANCE).sum())


def control_tables(cells: pd.DataFrame, scores: pd.DataFrame, of_what: str) -> list[RenderableType]:
    """How trained models stand against their controls: each correlation, then each measure.

    Args:
        cells: Of one matching.
        scores: Of one matching and null.
        of_what: Which these are.
    """
    controls = there(cells, (*ON_GRID, *CEILINGS))
    names = [CONTROLS[control] for control in controls]

    def row_of(table: pd.DataFrame, told: Callable[[pd.DataFrame], str]) -> list[str]:
        return [told(table[table["control"] == control]) for control in controls]

    correlations = plain_table("mean over cells", *names)
    for column, name in CORRELATIONS.items():
        for value, pairs in ((column, "all pairs"), (f"{column}_kept", "kept pairs")):
            row = row_of(cells, lambda rows, value=value: brief(float(rows[value].mean())))
            correlations.add_row(f"{name}, {pairs}", *row)
    measures = plain_table("range of cells,\ncells q<0.05", *names, whole=True)
    for measure, group in scores.groupby("measure", sort=False):
        measures.add_row(measure_text(str(measure)), *row_of(group, range_text))
    return [
        Text(f"Trained against controls: {of_what} null", style="italic"),
        correlations,
        BLANK,
        measures,
    ]


def range_text(scores: pd.DataFrame) -> str:
    """Lowest and highest score, and how many cells beat chance."""
    if len(scores) == 0:
        return "-"
    least, most = float(scores["score"].min()), float(scores["score"].max())
    range_of = "none" if np.isnan(least) else f"{brief(least)} to {brief(most)}"
    return f"{range_of}\n{n_beating(scores)}/{len(scores)}"


def verdict_tables(verdicts: pd.DataFrame) -> list[RenderableType]:
    """Which share of features is shared, and which is its model's own; nothing if not asked."""
    if len(verdicts) == 0:
        return []
    by = ["model", "control", "against"]
    shares = dict(iter(verdict_shares(verdicts).groupby(by)))
    groups = dict(iter(verdicts.groupby(by)))
    table = plain_table(
        "", *(verdict.replace("_", "-") for verdict in VERDICTS), "features", "only,\nreplicated"
    )
    for model in ("a", "b"):
        for (control, against), name in AGAINST.items():
            key = (model, control, against)
            if key in groups:
                table.add_row(f"{model.upper()}, {name}", *verdict_cells(groups[key], shares[key]))
    title = "Features, held against all compared layers: percent (range over layers)"
    if "decoy" in set(verdicts["against"]):
        title += "\ndecoy: the same model, other SAEs"
    return [BLANK, Text(title, style="italic"), table]


def verdict_cells(verdicts: pd.DataFrame, shares: pd.DataFrame) -> list[str]:
    """What `verdict_tables` tells of the features of one model, held against one thing.

    Args:
        verdicts: On the features, of all runs and layers.
        shares: Of each verdict, by run and layer.
    """
    percent = {
        v: (100 * (verdicts["verdict"] == v).mean(), 100 * shares[v].min(), 100 * shares[v].max())
        for v in VERDICTS
    }
    n_features = len(verdicts) // verdicts["run"].nunique()
    replicated = verdicts.loc[verdicts["verdict"] == "only", "replicated"].dropna()
    return [
        *(f"{mean:.0f} ({least:.0f}-{most:.0f})" for mean, least, most in percent.values()),
        f"{n_features:,}",
        f"{replicated.astype(float).mean():.0%}" if len(replicated) else "-",
    ]


def agreement_tables(agreement: pd.DataFrame, of_what: str) -> list[RenderableType]:
    """How alike grids are when one choice is changed, with 95 % intervals; nothing if none was."""
    if len(agreement) == 0:
        return []
    table = plain_table("", "Spearman\n[95 %]", "difference\n[95 %]")
    for kind, group in agreement.groupby("kind", sort=False):
        table.add_row(Text(str(kind), style="bold"))
        for row in group.to_dict("records"):
            compared = f"{row['x']}, {row['y']}"
            if kind != "measures":  # which compares measures, and names them as x and y
                compared = f"{row['measure']}: {compared}"
            table.add_row(
                f" {compared}",
                with_interval(row["spearman"], row["low"], row["high"], 2),
                with_interval(
                    row["mean_difference"], row["difference_low"], row["difference_high"]
                ),
            )
    title = f"Do the grids agree, cell by cell: {of_what}"
    return [BLANK, Text(title, style="italic"), table]


def correlation_tables(cells: pd.DataFrame, of_what: str, width: int) -> list[RenderableType]:
    """The grids of each correlation, of all pairs."""
    parts: list[RenderableType] = []
    for column, name in CORRELATIONS.items():
        title = f"{'mean' if name == 'plain' else name} correlation, {of_what}"
        parts += [BLANK, *grid_tables(grid_of(cells, column), title=title, width=width)]
    return parts


def peak_lines(cells: pd.DataFrame, seeds: Sequence[int]) -> list[RenderableType]:
    """For each run the cell with the highest held-out correlation, with its interval.

    Args:
        cells: Of one matching, from all runs and controls.
        seeds: Of the runs.
    """
    lines: list[RenderableType] = []
    own = cells[(cells["control"] == TRAINED) & cells["held_out_correlation"].notna()]
    for run, group in own.groupby("run"):
        peak = group.sort_values("held_out_correlation").iloc[-1]
        pairs = with_interval(
            peak["held_out_correlation"], peak["held_out_low"], peak["held_out_high"]
        )
        kept = with_interval(
            peak["held_out_correlation_kept"], peak["held_out_kept_low"], peak["held_out_kept_high"]
        )
        which = f"seed {seeds[int(str(run))]}, " if len(seeds) > 1 else ""
        where = f"{which}peak {peak['layer_a']}, {peak['layer_b']}"
        lines.append(Text(f"{where}: held-out {pairs}, of kept pairs {kept}"))
    return lines


def score_tables(scores: pd.DataFrame, of_what: str, null: str, width: int) -> list[RenderableType]:
    """For each measure the grid of its scores, and that of what chance gives.

    Args:
        scores: Of one matching and null, from all controls.
        of_what: Which matching.
        null: Which null.
        width: Columns of the terminal.
    """
    parts: list[RenderableType] = []
    for measure, group in scores[scores["control"] == TRAINED].groupby("measure", sort=False):
        score, chance, q = (grid_of(group, value) for value in ("score", "null_mean", "q"))
        title, norm = f"{measure}, {of_what}", common_norm(score, chance)
        weak = ~(q < SIGNIFICANCE)
        parts += [BLANK, *grid_tables(score, title=title, weak=weak, width=width, norm=norm)]
        told = f"{title}: chance ({null} null)"
        parts += grid_tables(chance, title=told, width=width, norm=norm)
    return parts
