"""Results as tables for a terminal."""

import numpy as np
import pandas as pd
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from saelign.report.figures import SIGNIFICANCE
from saelign.results import Run, strictest

WIDTH = 80
"""Columns of the narrowest terminal that tables are laid out for."""

CORNER, GAP = "A \\ B", "  "
BLANK = Text()


def grid_tables(
    grid: pd.DataFrame, *, title: str, weak: pd.DataFrame | None = None, width: int = WIDTH
) -> list[Table]:
    """A layer grid; cells that do not beat chance after correction in parentheses.

    One table, or as many below each other as its columns need to fit into `width`: what a terminal
    cuts off are digits.
    """
    shaky = np.zeros(grid.shape, dtype=bool) if weak is None else weak.to_numpy()
    texts = [
        [cell_text(value, weak=flag) for value, flag in zip(row, flags, strict=True)]
        for row, flags in zip(grid.to_numpy(dtype=float), shaky, strict=True)
    ]
    widest = max(len(text) for row in texts for text in row)
    at_once = max(1, (width - len(CORNER)) // (widest + len(GAP)))
    tables = []
    for start in range(0, grid.shape[1], at_once):
        block = slice(start, start + at_once)
        table = plain_table(title if start == 0 else None)
        table.add_column(CORNER, style="bold", justify="right", no_wrap=True)
        for layer in grid.columns[block]:
            table.add_column(str(layer), justify="right", no_wrap=True, min_width=widest)
        for layer, row in zip(grid.index, texts, strict=True):
            table.add_row(str(layer), *row[block])
        tables.append(table)
    return tables


def plain_table(title: str | None) -> Table:
    """A table without lines, its title above."""
    heading = None if title is None else Text(title, style="italic")
    padding = (0, len(GAP), 0, 0)
    return Table(title=heading, title_justify="left", box=None, padding=padding, pad_edge=False)


def cell_text(value: float, *, weak: bool) -> str:
    """A score as a terminal's grid shows it."""
    if np.isnan(value):
        return "-"
    return f"({value:z.3f})" if weak else f"{value:z.3f}"


def overview(run: Run, *, matching: str | None = None, width: int = WIDTH) -> list[RenderableType]:
    """What a run found: what was compared, each measure's grids beside chance, and warnings.

    Args:
        run: The run.
        matching: Only this one; all if None.
        width: Columns of the terminal.
    """
    info, scores = run.info, run.scores
    models, seeds = info["models"], info["seeds"]
    null = strictest(scores["null"].unique())
    about = (
        f": A = {models['a']['name']}, B = {models['b']['name']}, "
        f"{tokens_read(info['text'])}, saelign {info['versions']['saelign']}"
    )
    parts: list[RenderableType] = [
        Text.assemble((str(info["name"]), "bold"), about),
        Text(f"Scores in parentheses do not beat chance ({null} null, q >= {SIGNIFICANCE})."),
    ]
    matchings = [matching] if matching else [str(m) for m in scores["matching"].unique()]
    for name in matchings:
        for table in best_tables(scores[scores["matching"] == name]):
            parts += [BLANK, table]
    if len(seeds) > 1:
        parts.append(BLANK)
        parts.append(Text(f"The grids below are those of run 0 (seed {seeds[0]}) of {len(seeds)}."))
    for name in matchings:
        correlation = run.grid("mean_correlation", matching=name)
        parts.append(BLANK)
        parts += grid_tables(correlation, title=f"mean correlation, {name}", width=width)
        for measure in scores["measure"].unique():
            score, chance, q = (
                run.grid(measure, value, matching=name) for value in ("score", "null_mean", "q")
            )
            weak = ~(q.astype(float) < SIGNIFICANCE)
            title = f"{measure}, {name}"
            parts.append(BLANK)
            parts += grid_tables(score, title=title, weak=weak, width=width)
            parts += grid_tables(chance, title=f"{title}: chance ({null} null)", width=width)
    warnings = info.get("warnings", [])
    parts += [BLANK] * bool(warnings)
    return [*parts, *(Text.assemble(("warning: ", "yellow"), warning) for warning in warnings)]


def tokens_read(texts: list[dict[str, int]]) -> str:
    """How many tokens the runs read."""
    counts = [text["n_tokens"] for text in texts]
    if len(counts) == 1:
        return f"{counts[0]:,} tokens"
    if len(set(counts)) == 1:
        return f"{counts[0]:,} tokens in each of {len(counts)} runs"
    return " and ".join(f"{count:,}" for count in counts) + " tokens"


def best_tables(scores: pd.DataFrame) -> list[Table]:
    """For each null, by measure: how many cells beat chance, and the highest of them.

    Args:
        scores: Those of one matching.
    """
    tables = []
    several = scores["run"].nunique() > 1
    for (matching, null), of_null in scores.groupby(["matching", "null"], sort=False):
        table = plain_table(f"Where the models are most alike: {matching}, {null} null")
        table.add_column("measure")
        peak = "peak\n(run, A, B)" if several else "peak\n(A, B)"
        for column in ("cells\nq < .05", peak, "score", "chance", "calibrated", "p", "pairs"):
            table.add_column(column, justify="right", no_wrap=True, vertical="bottom")
        for measure, group in of_null.groupby("measure", sort=False):
            table.add_row(Text(str(measure)), *best_cells(group, several=several))
        tables.append(table)
    return tables


def best_cells(group: pd.DataFrame, *, several: bool) -> list[str]:
    """What `best_tables` tells of the scores of one measure, from one run or `several`."""
    scored = group[group["score"].notna()]
    beat = f"{int((scored['q'] < SIGNIFICANCE).sum())} of {len(group)}"
    if len(scored) == 0:
        return [beat, "none scored"]
    best = scored.iloc[int(scored["calibrated"].fillna(scored["score"]).argmax())]
    where = ("run", "layer_a", "layer_b") if several else ("layer_a", "layer_b")
    return [
        beat,
        ", ".join(str(best[column]) for column in where),
        *(cell_text(best[value], weak=False) for value in ("score", "null_mean", "calibrated")),
        f"{best['p']:.2g}",
        f"{best['n_pairs']}",
    ]
