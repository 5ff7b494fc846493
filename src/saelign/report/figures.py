"""What the figures of a run show: grids, layer by layer, and what is said of features."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from saelign.nulls import SIGNIFICANCE
from saelign.panels import (
    P_COLOURS,
    Bars,
    Panel,
    Sheet,
    common_norm,
    p_norm,
    shown,
    write_sheet,
)
from saelign.report.selection import (
    CEILINGS,
    CORRELATIONS,
    DIFFERENCE,
    KEPT_CORRELATIONS,
    NAMES,
    ON_GRID,
    UNTRAINED,
    file_name,
    grid_of,
    of_own_metric,
    of_runs,
    over_runs,
    there,
    with_differences,
)
from saelign.report.subspaces import subspace_sheets
from saelign.results import TRAINED, Run, strictest
from saelign.sites import Site
from saelign.verdicts import MIN_DOCUMENTS, VERDICTS, verdict_shares

AXES = {
    TRAINED: ("layer of A", "layer of B"),
    "seed_a": ("layer of A", "layer of A, other SAEs"),
    "seed_b": ("layer of B", "layer of B, other SAEs"),
}
"""What the rows and columns of a comparison's grid are; of any other, those of the first."""

README_WIDTH, PAGE_WIDTH = 9.0, 13.0
"""Inches: where numbers of 6 points can still be read 900 pixels wide, and on a screen."""

VERDICT_COLOURS = {
    "shared": "#0072B2",
    "one_sided": "#8FCBEE",
    "only": "#D55E00",
    "unclear": "#D9D9D9",
}
"""Told apart by colour-blind readers (Okabe and Ito, the second and last of them lighter)."""
VERDICTS_TOLD = {
    "shared": "shared: each is the other's best, above chance",
    "one_sided": "one-sided: has a partner above chance, which has a better one",
    "only": "only: no partner above chance at any compared layer",
    "unclear": f"unclear: in fewer than {MIN_DOCUMENTS} documents, or too rare to be paired",
}
AGAINST = {
    (TRAINED, "other"): "trained",
    (UNTRAINED, "other"): "untrained",
    (TRAINED, "decoy"): "decoy: itself, other SAEs",
}
"""Whose features, held against what: columns of the figure of verdicts."""


def write_figures(run: Run, *, progress: Callable[[int, int], None]) -> list[Path]:
    """Write every figure of a run as SVG and PNG, with a CSV of what it shows.

    For each matching: the correlations of all pairs and of the kept ones, beside their controls;
    each measure beside each of its nulls, and beside its controls; an overview of all measures. At
    the end what is said of each feature. Of several runs the means are shown.

    Returns:
        The PNG files, the correlations of the first matching first.
    """
    sheets = [*correlation_sheets(run), *measure_sheets(run), *overview_sheets(run)]
    sheets += verdict_sheets(run)
    sheets += subspace_sheets(run)
    models = run.info["models"]
    names = {side: side_name(models[side.lower()]) for side in ("A", "B")}
    about = ", ".join(f"{side}: {name}" for side, name in names.items() if name != side)
    drawn = []
    for done, sheet in enumerate(sheets):
        progress(done, len(sheets))
        drawn.append(write_sheet(run.folder / "figures", sheet, about))
    progress(len(sheets), len(sheets))
    return drawn


def side_name(about: Mapping[str, Any]) -> str:
    """The last part of a model's path or hub name, and its site if not that after a block."""
    name, site = Path(about["name"]).name, Site(**about.get("site", {})).short
    return f"{name} ({site})" if site else name


# Correlations ------------------------------------------------------------------------------------


def correlation_sheets(run: Run) -> list[Sheet]:
    """For each matching the correlations of all pairs, and those of the kept ones."""
    cells = of_own_metric(run, run.cells)
    kept = {**KEPT_CORRELATIONS, "n_kept": "number kept"}
    sheets = []
    for matching, group in cells.groupby("matching", sort=False):
        of_what = f"matched features, {NAMES[str(matching)]}"
        for name, values, pairs in (
            ("correlation", CORRELATIONS, "all pairs"),
            ("correlation_kept", kept, "kept pairs"),
        ):
            table = with_differences(over_runs(group, list(values)), list(values))
            rows, row_names = correlation_rows(table, values)
            sheets.append(
                Sheet(
                    name=f"{name}_{matching}",
                    title=f"Correlation of {of_what}, {pairs}{of_runs(run)}\n"
                    "numbers above panels: means over cells",
                    rows=rows,
                    table=table,
                    row_names=row_names,
                    width=README_WIDTH,
                )
            )
    return sheets


def correlation_rows(
    cells: pd.DataFrame, values: Mapping[str, str]
) -> tuple[list[list[Panel]], tuple[str, ...]]:
    """A row for each correlation, its controls on its scale; without controls all in one row.

    Args:
        cells: Of one matching, with the differences to untrained models.
        values: Columns, and what they are called.

    Returns:
        The rows, and what each is called.
    """
    if set(cells["control"]) == {TRAINED}:
        grids = {value: grid_of(cells, value) for value in values}
        norm = common_norm(*(grid for value, grid in grids.items() if not is_count(value)))
        return [
            [
                told_mean(
                    Panel(
                        title=values[value],
                        grid=grid,
                        norm=common_norm(grid) if is_count(value) else norm,
                    )
                )
                for value, grid in grids.items()
            ]
        ], ()
    ceilings = there(cells, CEILINGS)[:1]
    rows = [control_row(cells, value, ceilings=ceilings, told=True) for value in values]
    return rows, tuple(values.values())


def is_count(value: str) -> bool:
    """Whether a column counts, and so has no scale in common with correlations."""
    return value.startswith("n_")


def told_mean(panel: Panel) -> Panel:
    """A heat map whose title also tells the mean of its cells; in two decimals."""
    mean = float(pd.Series(panel.grid.to_numpy().ravel()).mean())
    said = "none" if pd.isna(mean) else shown(mean, panel.norm, 2)
    return replace(panel, title=f"{panel.title}: {said}", digits=2)


def control_row(
    table: pd.DataFrame, value: str, *, ceilings: list[str], told: bool = False
) -> list[Panel]:
    """A value of the trained models beside that of their controls, all on one scale.

    Trained, untrained, documents shifted, how far trained is above untrained, and the same model
    with itself; those of them that there are.

    Args:
        table: A row a cell and control, with the differences to untrained models. With a column
            `q`, cells that do not beat chance are hatched.
        value: Which column.
        ceilings: Which comparisons of a model with itself.
        told: Whether titles tell the mean of the cells.
    """
    rows = {c: table[table["control"] == c] for c in there(table, (*ON_GRID, *ceilings))}
    grids = {control: grid_of(of_control, value) for control, of_control in rows.items()}
    if f"{value}{DIFFERENCE}" in table.columns:
        grids[DIFFERENCE] = grid_of(rows[TRAINED], f"{value}{DIFFERENCE}")
    weak = {
        control: ~(grid_of(of_control, "q") < SIGNIFICANCE)
        for control, of_control in rows.items()
        if "q" in table.columns
    }
    norm = common_norm(*grids.values())
    row = []
    for control in (*ON_GRID, DIFFERENCE, *CEILINGS):
        if control in grids:
            y_label, x_label = AXES.get(control, AXES[TRAINED])
            panel = Panel(
                title=NAMES[control],
                grid=grids[control],
                norm=norm,
                hatched=weak.get(control),
                y_label=y_label,
                x_label=x_label,
            )
            row.append(told_mean(panel) if told else panel)
    return row


# Measures ----------------------------------------------------------------------------------------


def measure_sheets(run: Run) -> list[Sheet]:
    """For each matching and measure: beside its nulls, and, if there are any, beside controls."""
    summary = of_own_metric(run, run.summary)
    n_permutations = int(run.scores["n_permutations"].max())
    null = strictest(summary["null"].unique())
    sheets = []
    for (matching, measure), group in summary.groupby(["matching", "measure"], sort=False):
        name = f"{file_name(str(measure))}_{matching}"
        title = f"{measure}, {NAMES[str(matching)]}"
        trained = group[group["control"] == TRAINED]
        sheets.append(
            Sheet(
                name=name,
                title=f"{title}{of_runs(run)}",
                rows=measure_panels(trained, str(measure), n_permutations),
                table=trained,
            )
        )
        if len(trained) < len(group):
            of_null = group[group["null"] == null]
            table = with_differences(of_null, ["score", "calibrated"])
            ceilings = there(table, CEILINGS)
            sheets.append(
                Sheet(
                    name=f"controls_{name}",
                    title=f"{title}, controls, {NAMES[null]}{of_runs(run)}",
                    rows=[
                        control_row(table, value, ceilings=ceilings)
                        for value in ("score", "calibrated")
                    ],
                    table=table,
                    row_names=("score", "calibrated"),
                    width=PAGE_WIDTH,
                )
            )
    return sheets


def measure_panels(summary: pd.DataFrame, measure: str, n_permutations: int) -> list[list[Panel]]:
    """A row a null: score, null mean and calibrated score on one scale, and p.

    Beside them, in the first row, the spread of the score over runs if there are several.
    """
    grids = {
        (null, value): grid_of(group, value)
        for null, group in summary.groupby("null", sort=False)
        for value in ("score", "null_mean", "calibrated", "p", "q", "score_sd")
    }
    scored = ("score", "null_mean", "calibrated")
    norm = common_norm(*(g for (_, value), g in grids.items() if value in scored))
    rows = []
    for null in summary["null"].unique():
        weak = ~(grids[null, "q"] < SIGNIFICANCE)
        rows.append(
            [
                Panel(title=f"{measure}", grid=grids[null, "score"], norm=norm, hatched=weak),
                Panel(title=f"mean, {NAMES[null]}", grid=grids[null, "null_mean"], norm=norm),
                Panel(title="calibrated", grid=grids[null, "calibrated"], norm=norm),
                Panel(
                    title=f"p, {NAMES[null]}",
                    grid=grids[null, "p"],
                    norm=p_norm(n_permutations),
                    colours=P_COLOURS,
                ),
            ]
        )
    if summary["n_runs"].max() > 1:
        spread = grids[summary["null"].iloc[0], "score_sd"]
        title = "standard deviation over runs"
        rows[0].append(Panel(title=title, grid=spread, norm=common_norm(spread)))
    return rows


def overview_sheets(run: Run) -> list[Sheet]:
    """For each matching all measures, beside the strictest null."""
    summary = of_own_metric(run, run.summary)
    null = strictest(summary["null"].unique())
    on_grid = summary[(summary["null"] == null) & summary["control"].isin(ON_GRID)]
    sheets = []
    for matching, group in on_grid.groupby("matching", sort=False):
        table = with_differences(group, ["calibrated"])
        table = table[table["control"] == TRAINED]
        sheets.append(
            Sheet(
                name=f"overview_{matching}",
                title=f"Shared features, {NAMES[str(matching)]}, {NAMES[null]}{of_runs(run)}",
                rows=overview_panels(table),
                table=table,
            )
        )
    return sheets


def overview_panels(scores: pd.DataFrame) -> list[list[Panel]]:
    """A row a measure: score, null mean, calibrated score, on the measure's own scale.

    On it too: how far the calibrated score is above that of untrained models, if there are any.
    """
    rows = []
    above = f"calibrated{DIFFERENCE}"
    for measure, group in scores.groupby("measure", sort=False):
        columns = {
            "score": str(measure),
            "null_mean": "chance",
            "calibrated": "calibrated",
            above: "calibrated, trained - untrained",
        }
        grids = {value: grid_of(group, value) for value in columns if value in group.columns}
        norm = common_norm(*grids.values())
        weak = ~(grid_of(group, "q") < SIGNIFICANCE)
        rows.append(
            [
                Panel(
                    title=columns[value],
                    grid=grid,
                    norm=norm,
                    hatched=weak if value in ("score", "calibrated") else None,
                )
                for value, grid in grids.items()
            ]
        )
    return rows


# Features ----------------------------------------------------------------------------------------


def verdict_sheets(run: Run) -> list[Sheet]:
    """Which share of each layer's features is shared or its model's own; none if not asked."""
    verdicts = run.verdicts
    if len(verdicts) == 0:
        return []
    shares = verdict_shares(verdicts)
    by = ["control", "model", "against", "layer"]
    if shares["run"].nunique() > 1:
        shares = shares.groupby(by, sort=False).mean().drop(columns="run").reset_index()
    return [
        Sheet(
            name="verdicts",
            title=f"What is said of each feature, held against all compared layers{of_runs(run)}",
            rows=verdict_rows(shares),
            table=shares,
            legend=tuple((VERDICT_COLOURS[v], VERDICTS_TOLD[v]) for v in VERDICTS),
        )
    ]


def verdict_rows(shares: pd.DataFrame) -> list[list[Bars]]:
    """A row for A and one for B: the trained model, the untrained one, and the decoy."""
    rows = []
    for model in ("a", "b"):
        of_model = shares[shares["model"] == model]
        row = []
        for (control, against), name in AGAINST.items():
            found = of_model[
                (of_model["control"] == control) & (of_model["against"] == against)
            ].sort_values("layer")
            if len(found):
                row.append(
                    Bars(
                        title=f"{model.upper()}, {name}",
                        shares=found.set_index("layer")[list(VERDICTS)],
                        colours=tuple(VERDICT_COLOURS[v] for v in VERDICTS),
                        y_label=f"layer of {model.upper()}",
                    )
                )
        if row:
            rows.append(row)
    return rows
