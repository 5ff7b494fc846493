"""Results as tables for a terminal."""

import numpy as np
import pandas as pd
from rich.console import RenderableType
from rich.table import Table

from saelign.results import Run


def grid_table(grid: pd.DataFrame, *, title: str, weak: pd.DataFrame | None = None) -> Table:
    """A layer grid; cells that do not beat chance after correction in parentheses."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    table.add_column("A \\ B", style="bold", justify="right")
    for layer in grid.columns:
        table.add_column(str(layer), justify="right")
    shaky = np.zeros(grid.shape, dtype=bool) if weak is None else weak.to_numpy()
    for layer, row, flags in zip(grid.index, grid.to_numpy(dtype=float), shaky, strict=True):
        cells = [cell_text(value, weak=flag) for value, flag in zip(row, flags, strict=True)]
        table.add_row(str(layer), *cells)
    return table


def cell_text(value: float, *, weak: bool) -> str:
    """A score as a terminal's grid shows it."""
    if np.isnan(value):
        return "-"
    return f"({value:.3f})" if weak else f"{value:.3f}"


def overview(run: Run, *, matching: str | None = None) -> list[RenderableType]:
    """What a run found: what was compared, each measure's grids beside chance, and warnings."""
    info = run.info
    models = info["models"]
    n_tokens = ", ".join(f"{text['n_tokens']:,}" for text in info["text"])
    parts: list[RenderableType] = [
        f"[bold]{info['name']}[/]: A = {models['a']['name']}, B = {models['b']['name']}, "
        f"{n_tokens} tokens, saelign {info['versions']['saelign']}",
        "Scores in parentheses do not beat chance (rate-matched null, q >= 0.05).",
        best_table(run),
    ]
    scores = run.scores
    matchings = [matching] if matching else [str(m) for m in scores["matching"].unique()]
    for name in matchings:
        parts.append(
            grid_table(
                run.grid("mean_correlation", matching=name), title=f"mean correlation, {name}"
            )
        )
        for measure in scores["measure"].unique():
            weak = ~(run.grid(measure, "q", matching=name).astype(float) < 0.05)
            parts += [
                grid_table(
                    run.grid(measure, "score", matching=name),
                    title=f"{measure}, {name}",
                    weak=weak,
                ),
                grid_table(
                    run.grid(measure, "null_mean", matching=name),
                    title=f"{measure}, {name}: chance",
                ),
            ]
    parts += [f"[yellow]warning:[/] {warning}" for warning in info.get("warnings", [])]
    return parts


def best_table(run: Run) -> Table:
    """For each measure, matching and null: how many cells beat chance, and the highest of them."""
    table = Table(title="Where the models are most alike", title_justify="left", box=None)
    for column in ("measure", "matching", "null"):
        table.add_column(column)
    for column in ("cells q<.05", "peak (A, B)", "score", "chance", "calibrated", "p", "pairs"):
        table.add_column(column, justify="right")
    by = ["measure", "matching", "null"]
    for (measure, matching, null), group in run.scores.groupby(by, sort=False):
        scored = group[group["score"].notna()]
        if len(scored) == 0:
            table.add_row(str(measure), str(matching), str(null), "-", "none scored")
            continue
        best = scored.iloc[int(scored["calibrated"].fillna(scored["score"]).argmax())]
        table.add_row(
            str(measure),
            str(matching),
            str(null),
            f"{int((scored['q'] < 0.05).sum())} of {len(group)}",
            f"{best['layer_a']}, {best['layer_b']}",
            f"{best['score']:.3f}",
            f"{best['null_mean']:.3f}",
            f"{best['calibrated']:.3f}",
            f"{best['p']:.2g}",
            f"{best['n_pairs']}",
        )
    return table
