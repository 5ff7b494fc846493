"""What a sweep over SAEs found: tables for the terminal and small grids side by side."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from rich.console import RenderableType
from rich.text import Text

from saelign.panels import Panel, Sheet, common_norm, write_sheet
from saelign.report.selection import NAMES, file_name, grid_of
from saelign.report.tables import BLANK, brief, measure_text, plain_table
from saelign.results import TRAINED

FACTOR_NAMES = {"width": "width", "k": "k", "train_seed": "seed"}
COMBINATION = ["width", "k", "train_seed"]
PER_ROW = 4
"""Grids side by side in a figure; more combinations of k and seed continue below."""


def sweep_overview(
    saes: pd.DataFrame,
    combinations: pd.DataFrame,
    moves: pd.DataFrame,
    *,
    matching: str | None = None,
) -> list[RenderableType]:
    """The tables of a sweep, as `saelign sweep` prints them.

    Args:
        saes: A row an SAE.
        combinations: A row a combination, matching and measure.
        moves: A row two combinations that differ in one factor.
        matching: Only this one; the first if None.
    """
    matching = matching or str(combinations["matching"].iloc[0])
    combinations = combinations[combinations["matching"] == matching]
    moves = moves[moves["matching"] == matching]
    null = NAMES[str(combinations["null"].iloc[0])]
    name = NAMES.get(matching, matching)
    parts: list[RenderableType] = [
        Text("SAEs on held-out text, range over layers", style="italic"),
        sae_table(saes),
        BLANK,
        Text(f"Each combination: {name}, calibrated scores beside the {null}", style="italic"),
        combination_tables(combinations),
        BLANK,
        Text(
            "Correlation of matched features, means over cells; ceilings: held out", style="italic"
        ),
        correlation_table(combinations),
        BLANK,
        Text(
            "What changes with one of width, k and training seed while the others stay: calibrated "
            "grids",
            style="italic",
        ),
        moves_table(moves),
    ]
    return parts


def sae_table(saes: pd.DataFrame) -> RenderableType:
    """How good the SAEs of each combination are."""
    table = plain_table(
        "model", "width", "k", "seed", "explained variance", "L0", "dead", "s/layer"
    )
    for key, group in saes.groupby(["model", "width", "k", "train_seed"], sort=False):
        model, width, k, seed = cast("tuple[Any, ...]", key)
        table.add_row(
            str(model).upper(),
            f"{width:,}",
            str(k),
            str(seed),
            f"{group['explained_variance'].min():.3f} to {group['explained_variance'].max():.3f}",
            f"{group['l0'].min():.1f} to {group['l0'].max():.1f}",
            f"{group['dead_share'].min():.1%} to {group['dead_share'].max():.1%}",
            f"{group['seconds'].mean():.0f}",
        )
    return table


def combination_tables(combinations: pd.DataFrame) -> RenderableType:
    """Peaks, means and ceilings, measure by measure."""
    table = plain_table(
        "measure", "width", "k", "seed", "peak\nA, B", "peak", "mean", "cells\nq<0.05",
        "ceiling\nA", "ceiling\nB",
    )  # fmt: skip
    for measure, group in combinations.groupby("measure", sort=False):
        for number, row in enumerate(cast("Iterable[Any]", group.itertuples())):
            peak = "none" if pd.isna(row.peak_a) else f"{row.peak_a}, {row.peak_b}"
            scores = (row.peak_calibrated, row.mean_calibrated)
            table.add_row(
                measure_text(str(measure)) if number == 0 else "",
                *(f"{row.width:,}", str(row.k), str(row.train_seed), peak),
                *(brief(float(value)) for value in scores),
                f"{row.n_beating}/{row.n_cells}",
                *(brief(float(value)) for value in (row.ceiling_a, row.ceiling_b)),
            )
    return table


def correlation_table(combinations: pd.DataFrame) -> RenderableType:
    """Correlations of the matched features of each combination, beside their ceilings."""
    table = plain_table(
        "width", "k", "seed", "plain", "within\ntoken", "held out", "ceiling\nA", "ceiling\nB"
    )
    once = combinations.drop_duplicates(COMBINATION)
    for row in cast("Iterable[Any]", once.itertuples()):
        values = (
            row.mean_correlation, row.mean_within_token, row.held_out_correlation,
            row.ceiling_held_out_a, row.ceiling_held_out_b,
        )  # fmt: skip
        numbers = (brief(float(value)) for value in values)
        table.add_row(f"{row.width:,}", str(row.k), str(row.train_seed), *numbers)
    return table


def moves_table(moves: pd.DataFrame) -> RenderableType:
    """For each measure and factor how far grids move, means over the pairs of combinations."""
    table = plain_table(
        "measure", "changes", "pairs", "rank\ncorr.", "mean\nchange", "mean\ndiff.",
        "peak moved\n(layers)", "held out",
    )  # fmt: skip
    for measure, group in moves.groupby("measure", sort=False):
        for number, (key, same) in enumerate(group.groupby(["factor", "x", "y"], sort=False)):
            factor, x, y = cast("tuple[Any, ...]", key)
            table.add_row(
                measure_text(str(measure)) if number == 0 else "",
                f"{FACTOR_NAMES[str(factor)]} {x:,} to {y:,}",
                str(len(same)),
                *(brief(float(same[c].mean())) for c in ("spearman", "mean_change")),
                signed(float(same["mean_difference"].mean())),
                brief(float(same["peak_moved"].mean()), 1),
                signed(float(same["held_out_difference"].mean())),
            )
    return table


def signed(value: float) -> str:
    """A change, `+.012`; `-` if there is none."""
    return "-" if np.isnan(value) else f"{value:+.3f}".replace("0.", ".", 1)


def write_sweep_figures(folder: Path, grids: pd.DataFrame, name: str) -> list[Path]:
    """For each matching and measure the calibrated grids of all combinations, on one scale.

    Rows are widths; along a row k grows, and within a k the training seeds follow each other.
    """
    own = grids[grids["control"] == TRAINED]
    drawn = []
    for (matching, measure), group in own.groupby(["matching", "measure"], sort=False):
        norm = common_norm(*(grid_of(of, "calibrated") for _, of in group.groupby(COMBINATION)))
        rows, names = [], []
        for width, of_width in group.groupby("width", sort=False):
            panels = [
                Panel(
                    title=f"k {k}, seed {seed}",
                    grid=grid_of(of, "calibrated"),
                    norm=norm,
                    hatched=grid_of(of, "q") >= 0.05,
                )
                for (k, seed), of in of_width.groupby(["k", "train_seed"], sort=False)
            ]
            for start in range(0, len(panels), PER_ROW):
                rows.append(panels[start : start + PER_ROW])
                names.append(f"width {width:,}")
        sheet = Sheet(
            name=f"sweep_{file_name(str(measure))}_{matching}",
            title=f"{measure}, calibrated, {NAMES.get(str(matching), matching)}: SAEs of each "
            "width, k and training seed",
            rows=rows,
            table=group,
            row_names=tuple(names),
        )
        drawn.append(write_sheet(folder, sheet, name))
    return drawn
