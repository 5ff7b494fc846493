"""Results as tables for a terminal."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from saelign.nulls import SIGNIFICANCE
from saelign.results import Run, strictest

WIDTH = 80
"""Columns of the narrowest terminal that tables are laid out for."""

CORNER, GAP = "A \\ B", "  "
BLANK = Text()


def grid_tables(
    grid: pd.DataFrame, *, title: str, weak: pd.DataFrame | None = None, width: int = WIDTH
) -> list[RenderableType]:
    """A layer grid; cells that do not beat chance after correction in parentheses.

    One table, or as many below each other as its columns need to fit into `width`: what a terminal
    cuts off are digits.
    """
    shaky = np.zeros(grid.shape, dtype=bool) if weak is None else weak.to_numpy()
    texts = [
        [cell_text(value, weak=flag) for value, flag in zip(row, flags, strict=True)]
        for row, flags in zip(grid.to_numpy(dtype=float).tolist(), shaky.tolist(), strict=True)
    ]
    widest = max(len(text) for row in texts for text in row)
    at_once = max(1, (width - len(CORNER)) // (widest + len(GAP)))
    parts: list[RenderableType] = [Text(title, style="italic")]
    for start in range(0, grid.shape[1], at_once):
        block = slice(start, start + at_once)
        table = Table(box=None, padding=(0, len(GAP), 0, 0), pad_edge=False)
        table.add_column(CORNER, style="bold", justify="right", no_wrap=True)
        for layer in grid.columns[block]:
            table.add_column(str(layer), justify="right", no_wrap=True, min_width=widest)
        for layer, row in zip(grid.index, texts, strict=True):
            table.add_row(str(layer), *row[block])
        parts.append(table)
    return parts


def cell_text(value: float, *, weak: bool = False) -> str:
    """A score as a terminal's table shows it."""
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
    read = tokens_read([text["n_tokens"] for text in info["text"]])
    about = (
        f": A = {models['a']['name']}, B = {models['b']['name']}, {read}, "
        f"saelign {info['versions']['saelign']}"
    )
    parts: list[RenderableType] = [
        Text.assemble((str(info["name"]), "bold"), about),
        Text(f"Scores in parentheses do not beat chance ({null} null, q >= {SIGNIFICANCE})."),
    ]
    matchings = [matching] if matching else [str(m) for m in scores["matching"].unique()]
    for name in matchings:
        for of_null in scores["null"].unique():
            rows = scores[(scores["matching"] == name) & (scores["null"] == of_null)]
            title = f"Where the models are most alike: {name}, {of_null} null"
            parts += [BLANK, Text(title, style="italic"), best_table(rows)]
    if len(seeds) > 1:
        which = f"The grids below are those of run 0 (seed {seeds[0]}) of {len(seeds)}."
        parts += [BLANK, Text(which)]
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


def tokens_read(counts: Sequence[int]) -> str:
    """How many tokens the runs read, in words."""
    if len(counts) == 1:
        return f"{counts[0]:,} tokens"
    if len(set(counts)) == 1:
        return f"{counts[0]:,} tokens in each of {len(counts)} runs"
    return " and ".join(f"{count:,}" for count in counts) + " tokens"


def best_table(scores: pd.DataFrame) -> Table:
    """For each measure: how many cells beat chance, and the highest of them.

    Args:
        scores: Those of one matching and null.
    """
    several = scores["run"].nunique() > 1
    # Options go below their measure's name: beside it they leave no room for the numbers.
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("measure", overflow="fold", vertical="bottom")
    peak = "peak\nrun, A, B" if several else "peak\nA, B"
    for column in ("cells\nq<0.05", peak, "score", "chance", "calibrated", "p", "pairs"):
        table.add_column(column, justify="right", overflow="fold", vertical="bottom")
    for measure, group in scores.groupby("measure", sort=False):
        name = Text(str(measure).replace("(", "\n(").replace(", ", ",\n "))
        table.add_row(name, *best_cells(group, several=several))
    return table


def best_cells(group: pd.DataFrame, *, several: bool) -> list[str]:
    """What `best_table` tells of the scores of one measure, from one run or `several`."""
    scored = group[group["score"].notna()]
    beat = f"{int((scored['q'] < SIGNIFICANCE).sum())}/{len(group)}"
    if len(scored) == 0:
        return [beat, "none"]
    best = scored.iloc[int(scored["calibrated"].fillna(scored["score"]).argmax())]
    where = ("run", "layer_a", "layer_b") if several else ("layer_a", "layer_b")
    return [
        beat,
        ", ".join(str(best[column]) for column in where),
        *(cell_text(float(best[value])) for value in ("score", "null_mean", "calibrated")),
        f"{best['p']:.2g}",
        f"{best['n_pairs']}",
    ]
