"""Heat maps, layer by layer, each with the numbers that it shows as CSV."""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from saelign.nulls import SIGNIFICANCE
from saelign.results import Run, strictest, written

SCORE_COLOURS = "cividis"  # even in lightness, and made for colour-blind readers
P_COLOURS = "cividis_r"
MAX_ANNOTATED = 14
"""Grids with more layers than this on a side show colours without numbers, and name few layers."""

NAMES = {
    "one_to_one": "one-to-one",
    "many_to_one": "many-to-one",
    "one_to_many": "one-to-many",
    "rate_matched": "rate-matched null",
    "shuffle": "shuffle null",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One heat map of a figure.

    Attributes:
        title: What it shows.
        grid: layer_a x layer_b.
        norm: How values become colours.
        colours: Name of the colour map.
        hatched: Cells to hatch, as a grid of Booleans; none if None.
    """

    title: str
    grid: pd.DataFrame
    norm: Normalize
    colours: str = SCORE_COLOURS
    hatched: pd.DataFrame | None = None


def write_figures(run: Run, *, progress: Callable[[int, int], None]) -> list[Path]:
    """Write every figure of a run as SVG and PNG, with a CSV of what it shows.

    For each matching: the mean correlation before and after filtering; each measure beside each of
    its nulls; and an overview of all measures.

    Returns:
        The PNG files.
    """
    scores = run.scores
    seeds = run.info["seeds"]
    jobs: list[tuple[str, list[list[Panel]], pd.DataFrame, str]] = []
    for index, seed in enumerate(seeds):
        suffix, told = (f"_run{index}", f", seed {seed}") if len(seeds) > 1 else ("", "")
        cells = run.cells[run.cells["run"] == index]
        of_run = scores[scores["run"] == index]
        for matching, group in cells.groupby("matching", sort=False):
            name = str(matching)
            jobs.append(
                (
                    f"mean_correlation_{name}{suffix}",
                    [correlation_panels(group)],
                    group,
                    f"Mean correlation of matched features, {NAMES[name]}{told}",
                )
            )
        for (matching, measure), group in of_run.groupby(["matching", "measure"], sort=False):
            name = str(matching)
            jobs.append(
                (
                    f"{file_name(str(measure))}_{name}{suffix}",
                    measure_panels(group, str(measure)),
                    group,
                    f"{measure}, {NAMES[name]}{told}",
                )
            )
        for matching, group in of_run.groupby("matching", sort=False):
            null = strictest(group["null"].unique())
            of_null = group[group["null"] == null]
            jobs.append(
                (
                    f"overview_{matching}{suffix}",
                    overview_panels(of_null),
                    of_null,
                    f"Shared features, {NAMES[str(matching)]}, {NAMES[null]}{told}",
                )
            )
    models = run.info["models"]
    names = {side: short_name(models[side.lower()]["name"]) for side in ("A", "B")}
    about = ", ".join(f"{side}: {name}" for side, name in names.items() if name != side)
    drawn = []
    for done, (name, rows, table, title) in enumerate(jobs):
        progress(done, len(jobs))
        path = run.folder / "figures" / name
        drawn.append(write_figure(path, rows, table, f"{title}\n{about}".rstrip()))
    progress(len(jobs), len(jobs))
    return drawn


def short_name(name: str) -> str:
    """The last part of a model's path or hub name."""
    return Path(name).name


def file_name(measure: str) -> str:
    """A measure's label as part of a file name."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in measure).strip("_")


def grid_of(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """A column as layer_a x layer_b."""
    return table.pivot(index="layer_a", columns="layer_b", values=value).astype(float)


def common_norm(*grids: pd.DataFrame) -> Normalize:
    """One colour range over all that is compared, 0 within it; [0, 1] if there is nothing else."""
    values = np.concatenate([g.to_numpy().ravel() for g in grids])
    values = values[np.isfinite(values)]
    least, most = float(values.min(initial=0)), float(values.max(initial=0))
    return Normalize(least, most if most > least else 1.0)


def p_norm(n_permutations: int) -> LogNorm:
    """Colours of p-values, from the floor of so many shuffles to 1."""
    return LogNorm(1 / (1 + max(n_permutations, 99)), 1, clip=True)


def correlation_panels(cells: pd.DataFrame) -> list[Panel]:
    """Mean correlation of all pairs and of the kept ones, on one scale."""
    before, after = grid_of(cells, "mean_correlation"), grid_of(cells, "mean_correlation_kept")
    norm = common_norm(before, after)
    kept = grid_of(cells, "n_kept")
    return [
        Panel(title="all pairs", grid=before, norm=norm),
        Panel(title="kept pairs", grid=after, norm=norm),
        Panel(title="number of kept pairs", grid=kept, norm=common_norm(kept)),
    ]


def measure_panels(scores: pd.DataFrame, measure: str) -> list[list[Panel]]:
    """A row a null: score, null mean and calibrated score on one scale, and p."""
    grids = {
        (null, value): grid_of(group, value)
        for null, group in scores.groupby("null", sort=False)
        for value in ("score", "null_mean", "calibrated", "p", "q")
    }
    norm = common_norm(*(g for (_, value), g in grids.items() if value not in ("p", "q")))
    rows = []
    for null in scores["null"].unique():
        weak = ~(grids[null, "q"] < SIGNIFICANCE)
        rows.append(
            [
                Panel(title=f"{measure}", grid=grids[null, "score"], norm=norm, hatched=weak),
                Panel(title=f"mean, {NAMES[null]}", grid=grids[null, "null_mean"], norm=norm),
                Panel(title="calibrated", grid=grids[null, "calibrated"], norm=norm),
                Panel(
                    title=f"p, {NAMES[null]}",
                    grid=grids[null, "p"],
                    norm=p_norm(int(scores["n_permutations"].max())),
                    colours=P_COLOURS,
                ),
            ]
        )
    return rows


def overview_panels(scores: pd.DataFrame) -> list[list[Panel]]:
    """A row a measure: score, null mean, calibrated score, on the measure's own scale."""
    rows = []
    for measure, group in scores.groupby("measure", sort=False):
        grids = {v: grid_of(group, v) for v in ("score", "null_mean", "calibrated", "q")}
        norm = common_norm(grids["score"], grids["null_mean"], grids["calibrated"])
        weak = ~(grids["q"] < SIGNIFICANCE)
        rows.append(
            [
                Panel(title=str(measure), grid=grids["score"], norm=norm, hatched=weak),
                Panel(title="chance", grid=grids["null_mean"], norm=norm),
                Panel(title="calibrated", grid=grids["calibrated"], norm=norm, hatched=weak),
            ]
        )
    return rows


LEFT, BAR, BOTTOM, TOP, LINE = 0.5, 0.68, 0.38, 0.24, 0.16
"""Inches around a panel, of a colour bar with its numbers, and of a line of the title above all."""


def write_figure(path: Path, rows: list[list[Panel]], table: pd.DataFrame, title: str) -> Path:
    """Write a figure of panels as SVG and PNG, and its table as CSV; gives the PNG's path.

    Panels are placed by hand: all are of one size, and a layout engine takes as long as the rest.
    Neighbours on one scale share a colour bar, to the right of the last of them.
    """
    n_a, n_b = rows[0][0].grid.shape
    width = 0.36 * min(max(n_b, 4), MAX_ANNOTATED)
    height = 0.30 * min(max(n_a, 3), MAX_ANNOTATED)
    barred = [
        [panel.norm is not after.norm for panel, after in itertools.pairwise(row)] + [True]
        for row in rows
    ]
    total_width = max(len(bars) * (LEFT + width) + sum(bars) * BAR for bars in barred)
    if any(panel.hatched is not None for row in rows for panel in row):
        title += f"\nhatched: q ≥ {SIGNIFICANCE}, no better than chance after correction"
    head = LINE * (2 + title.count("\n"))
    total_height = len(rows) * (BOTTOM + height + TOP) + head
    with mpl.rc_context({"font.size": 8, "svg.hashsalt": "saelign", "hatch.linewidth": 0.6}):
        figure = Figure(figsize=(total_width, total_height))
        FigureCanvasAgg(figure)

        def axes_at(left: float, bottom: float, width: float, height: float) -> Axes:
            return figure.add_axes(
                (
                    left / total_width,
                    bottom / total_height,
                    width / total_width,
                    height / total_height,
                )
            )

        for i, row in enumerate(rows):
            bottom = (len(rows) - 1 - i) * (BOTTOM + height + TOP) + BOTTOM
            for j, panel in enumerate(row):
                left = (j + 1) * LEFT + j * width + sum(barred[i][:j]) * BAR
                ax = axes_at(left, bottom, width, height)
                image = draw_panel(ax, panel)
                if barred[i][j]:
                    figure.colorbar(image, cax=axes_at(left + width + 0.06, bottom, 0.09, height))
                if j == 0:
                    ax.set_ylabel("layer of A")
                if i == len(rows) - 1:
                    ax.set_xlabel("layer of B")
        figure.suptitle(title, fontsize=9, y=1 - 0.08 / total_height)
        for suffix, metadata in ((".svg", {"Date": None}), (".png", {})):
            with written(path.with_suffix(suffix)) as temporary:
                figure.savefig(temporary, format=suffix[1:], dpi=150, metadata=metadata)
    with written(path.with_suffix(".csv")) as temporary:
        table.to_csv(temporary, index=False)
    return path.with_suffix(".png")


def draw_panel(ax: Axes, panel: Panel) -> AxesImage:
    """One heat map: layers labelled, cells annotated while there is room, weak ones hatched."""
    values = panel.grid.to_numpy()
    colours = mpl.colormaps[panel.colours].with_extremes(bad="0.85")
    image = ax.imshow(
        np.ma.masked_invalid(values), cmap=colours, norm=panel.norm, origin="lower", aspect="auto"
    )
    # A measure's options may be longer than its panel is wide: smaller, not over the next panel.
    ax.set_title(panel.title, pad=4, loc="left", fontsize=min(8, 224 / max(len(panel.title), 1)))
    ax.set_xticks(*named_layers(panel.grid.columns))
    ax.set_yticks(*named_layers(panel.grid.index))
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    hatched = np.zeros(values.shape, bool) if panel.hatched is None else panel.hatched.to_numpy()
    annotated = max(values.shape) <= MAX_ANNOTATED
    for i, j in np.argwhere(np.isfinite(values)):
        value = float(values[i, j])
        colour = colours(float(panel.norm(value)))
        ink, line = ("black", "0.3") if is_light(colour) else ("white", "0.75")
        if hatched[i, j]:
            ax.add_patch(
                Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, hatch="////", edgecolor=line, lw=0)
            )
        if annotated:
            clear = {"facecolor": colour, "lw": 0, "pad": 0.8} if hatched[i, j] else None
            text = shown(value, panel.norm)
            ax.text(j, i, text, ha="center", va="center", fontsize=5.5, color=ink, bbox=clear)
    return image


def named_layers(layers: pd.Index) -> tuple[list[int], list[str]]:
    """Where an axis names a layer, and what it says: each, or every few when there are many."""
    step = -(-len(layers) // MAX_ANNOTATED)
    at = list(range(0, len(layers), step))
    return at, [str(layers[i]) for i in at]


def is_light(colour: tuple[float, float, float, float]) -> bool:
    """Whether black is easier to read on it than white."""
    red, green, blue, _ = colour
    return bool(0.30 * red + 0.59 * green + 0.11 * blue > 0.45)


def shown(value: float, norm: Normalize) -> str:
    """A number as a heat map's cell shows it, as fine as the range of colours makes useful."""
    if isinstance(norm, LogNorm):
        return f"{value:.2f}".lstrip("0") if value >= 0.01 else f"{value:.0e}".replace("e-0", "e-")
    top = float(norm.vmax or 0)
    if top > 1.5:  # a count, no score is above 1
        return f"{value:.0f}"
    return re.sub(r"^(-?)0\.", r"\1.", f"{value:z.{3 if top < 0.2 else 2}f}")
