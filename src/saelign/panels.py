"""Sheets of panels, heat maps and bars, written with the numbers that they show."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle

from saelign.files import written
from saelign.nulls import SIGNIFICANCE

SCORE_COLOURS = "cividis"  # even in lightness, and made for colour-blind readers
P_COLOURS = "cividis_r"
MAX_ANNOTATED = 14
"""Grids with more layers than this on a side show colours without numbers, and name few layers."""

LEAST_INK, MOST_INK = 5.0, 6.5
"""Points of the numbers in cells; where even the smaller do not fit, there are none."""
TITLE = 9.0
"""Points of the title above all."""
EM = 0.6
"""Width of a letter, on average, in units of its size."""
POINTS = 72
"""In an inch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One heat map of a figure.

    Attributes:
        title: What it shows.
        grid: layer_a x layer_b.
        norm: How values become colours.
        colours: Name of the colour map.
        hatched: Cells to hatch, as a grid of Booleans; none if None.
        digits: Decimals of its numbers; as fine as the range of colours makes useful if None.
        y_label: What the rows are.
        x_label: What the columns are.
        row_names: Whether rows have names, which are told, or have been told by the neighbour at
            the left; None where they are layers.
    """

    title: str
    grid: pd.DataFrame
    norm: Normalize
    colours: str = SCORE_COLOURS
    hatched: pd.DataFrame | None = None
    digits: int | None = None
    y_label: str = "layer of A"
    x_label: str = "layer of B"
    row_names: Literal["told", "told_before"] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns that it makes room for."""
        n_a, n_b = self.grid.shape
        if self.row_names is not None:
            return max(n_a, 3), min(max(n_b, 4), MAX_ANNOTATED)
        return min(max(n_a, 3), MAX_ANNOTATED), min(max(n_b, 4), MAX_ANNOTATED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """Stacked horizontal bars, a bar a layer.

    Attributes:
        title: What they show.
        shares: layer x part, each row adding up to 1.
        colours: Of each part.
        y_label: What the rows are.
        x_label: What the length is.
    """

    title: str
    shares: pd.DataFrame
    colours: tuple[str, ...]
    y_label: str
    x_label: str = "percent of features"

    @property
    def shape(self) -> tuple[int, int]:
        """Cells of a heat map up and across that it takes the room of."""
        return min(max(len(self.shares), 3), 2 * MAX_ANNOTATED), 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A figure: rows of panels, and the numbers that they show.

    Attributes:
        name: Of its files.
        title: Stands above all.
        rows: The panels.
        table: Every number that the panels show.
        row_names: What each row shows, to stand at its left; none if empty.
        width: Inches that it may take; cells become narrow enough.
        legend: Colours and what they mean.
    """

    name: str
    title: str
    rows: list[list[Panel]] | list[list[Bars]]
    table: pd.DataFrame
    row_names: tuple[str, ...] = ()
    width: float = float("inf")
    legend: tuple[tuple[str, str], ...] = ()

    @property
    def margin(self) -> float:
        """Inches at the left for what stands before all panels: names of rows."""
        longest = max(
            (
                len(str(name))
                for row in self.rows
                if isinstance(row[0], Panel) and row[0].row_names == "told"
                for name in row[0].grid.index
            ),
            default=0,
        )
        return NAME * bool(self.row_names) + longest * EM * 8 / POINTS


def common_norm(*grids: pd.DataFrame) -> Normalize:
    """One colour range over all that is compared, 0 within it; [0, 1] if there is nothing else."""
    values = np.concatenate([g.to_numpy().ravel() for g in grids])
    values = values[np.isfinite(values)]
    least, most = float(values.min(initial=0)), float(values.max(initial=0))
    return Normalize(least, most if most > least else 1.0)


def p_norm(n_permutations: int) -> LogNorm:
    """Colours of p-values, from the floor of so many shuffles to 1."""
    return LogNorm(1 / (1 + max(n_permutations, 99)), 1, clip=True)


LEFT, GAP, BAR, NAME = 0.5, 0.3, 0.68, 0.22
"""Inches left of a panel whose axis says what it is, of one whose neighbour says it, of a colour
bar with its numbers, and of a row's name."""

TOP, TICKS, BOTTOM, LINE, EDGE = 0.24, 0.2, 0.38, 0.16, 0.08
"""Inches above a panel; below it, where its axis is told further down and where it is told there;
of a line of the title above all; and above that."""

CELL, ROW, BAR_ROW = 0.36, 0.30, 0.22
"""Inches of a cell where there is room, and of a stacked bar."""
LEAST_ROW, LEAST_HEIGHT = 0.12, 1.2
"""Inches of a cell, and of a panel, that are still easy to tell from their neighbours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a panel stands, in inches from the left.

    Attributes:
        left: Where it begins.
        width: How wide it is.
        is_barred: Whether its colour bar follows.
        is_labelled: Whether its axis says what its rows are.
    """

    left: float
    width: float
    is_barred: bool
    is_labelled: bool


def row_places(row: list[Panel] | list[Bars], start: float, cell: float) -> list[Place]:
    """Where the panels of a row stand, its cells so many inches wide.

    Neighbours on one scale share a colour bar, to the right of the last of them.
    """
    places: list[Place] = []
    left = start
    for before, panel, after in zip([None, *row], row, [*row[1:], None], strict=False):
        barred = isinstance(panel, Panel) and (
            not isinstance(after, Panel) or panel.norm is not after.norm
        )
        axes = (panel.y_label, panel.x_label)
        labelled = before is None or axes != (before.y_label, before.x_label)
        left += LEFT if labelled else GAP
        width = cell * panel.shape[1]
        places.append(Place(left=left, width=width, is_barred=barred, is_labelled=labelled))
        left += width + BAR * barred
    return places


def cell_width(sheet: Sheet, start: float) -> float:
    """How wide cells can be if the sheet is to stay within its width."""
    cells = [CELL]
    for row in sheet.rows:
        last = row_places(row, start, 0.0)[-1]
        fixed = last.left + BAR * last.is_barred
        cells.append((sheet.width - fixed) / sum(panel.shape[1] for panel in row))
    return max(min(cells), 0.05)


def row_height(panel: Panel | Bars, cell: float) -> float:
    """How high a row of panels is, its cells so many inches wide."""
    n_rows = panel.shape[0]
    if isinstance(panel, Bars):
        return BAR_ROW * n_rows
    return n_rows * min(ROW, max(1.1 * cell, LEAST_HEIGHT / n_rows, LEAST_ROW))


def write_sheet(folder: Path, sheet: Sheet, about: str) -> Path:
    """Write a figure of panels as SVG and PNG, and its table as CSV; gives the PNG's path.

    Args:
        folder: Where the files go.
        sheet: What to draw.
        about: A line below the title.
    """
    title = f"{sheet.title}\n{about}".rstrip()
    if any(isinstance(p, Panel) and p.hatched is not None for row in sheet.rows for p in row):
        title += f"\nhatched: q ≥ {SIGNIFICANCE}, no better than chance after correction"
    with mpl.rc_context({"font.size": 8, "svg.hashsalt": "saelign", "hatch.linewidth": 0.6}):
        figure = figure_of(sheet, title)
        # Not `with_suffix`: a measure's options may put a dot into the name.
        for suffix, metadata in (("svg", {"Date": None}), ("png", {})):
            with written(folder / f"{sheet.name}.{suffix}") as temporary:
                figure.savefig(temporary, format=suffix, dpi=150, metadata=metadata)
    with written(folder / f"{sheet.name}.csv") as temporary:
        sheet.table.to_csv(temporary, index=False)
    return folder / f"{sheet.name}.png"


def figure_of(sheet: Sheet, title: str) -> Figure:
    """A sheet as a figure.

    Panels are placed by hand: all are of one size, and a layout engine takes as long as the rest.
    """
    n_lines = 1 + title.count("\n")
    start = sheet.margin
    cell = cell_width(sheet, start)
    places = [row_places(row, start, cell) for row in sheet.rows]
    heights = [row_height(row[0], cell) for row in sheet.rows]
    # An axis is told below the lowest panel of a column.
    told_from = [*(len(below) for below in sheet.rows[1:]), 0]
    feet = [
        BOTTOM if len(row) > first else TICKS
        for row, first in zip(sheet.rows, told_from, strict=True)
    ]
    right = max(row[-1].left + row[-1].width + BAR * row[-1].is_barred for row in places)
    longest = max(map(len, title.split("\n"))) * EM * TITLE / POINTS
    width = max(right, longest) + 2 * EDGE
    head = 2 * EDGE + LINE * (n_lines + len(sheet.legend))
    height = head + sum(heights) + TOP * len(heights) + sum(feet)
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)

    def axes_at(left: float, bottom: float, across: float, up: float) -> Axes:
        return figure.add_axes((left / width, bottom / height, across / width, up / height))

    bottom = height - head
    for i, row in enumerate(sheet.rows):
        bottom -= TOP + heights[i]
        for j, (panel, place) in enumerate(zip(row, places[i], strict=True)):
            ax = axes_at(place.left, bottom, place.width, heights[i])
            if isinstance(panel, Bars):
                draw_bars(ax, panel)
            else:
                image = draw_panel(ax, panel)
                if place.is_barred:
                    bar = axes_at(place.left + place.width + 0.06, bottom, 0.09, heights[i])
                    figure.colorbar(image, cax=bar)
            if place.is_labelled:
                ax.set_ylabel(panel.y_label)
            if j >= told_from[i]:
                room = (place.width + GAP / 2) * POINTS
                ax.set_xlabel(panel.x_label, fontsize=fitted(panel.x_label, room))
        if sheet.row_names:
            name, middle = sheet.row_names[i], bottom + heights[i] / 2
            size = fitted(name, (heights[i] + TOP) * POINTS, most=TITLE)
            figure.text(
                0.09 / width, middle / height, name,
                size=size, weight="bold", rotation="vertical", va="center",
            )  # fmt: skip
        bottom -= feet[i]
    figure.suptitle(title, fontsize=TITLE, y=1 - EDGE / height)
    if sheet.legend:
        top = height - 1.5 * EDGE - LINE * n_lines
        figure.legend(
            handles=[Patch(facecolor=colour, label=told) for colour, told in sheet.legend],
            loc="upper left", bbox_to_anchor=(LEFT / width, top / height),
            borderaxespad=0, frameon=False, fontsize=8, labelspacing=0.25, handlelength=1.2,
        )  # fmt: skip
    return figure


def size_in_points(ax: Axes) -> tuple[float, float]:
    """How wide and how high axes are."""
    box, dpi = ax.get_window_extent(), ax.figure.dpi
    return box.width * POINTS / dpi, box.height * POINTS / dpi


def fitted(text: str, room: float, *, most: float = 8.0) -> float:
    """The size at which a line of text takes no more than `room` points, `most` at the largest."""
    return min(most, room / (EM * max(len(text), 1)))


def draw_panel(ax: Axes, panel: Panel) -> AxesImage:
    """One heat map: layers labelled, cells annotated while there is room, weak ones hatched."""
    values = panel.grid.to_numpy()
    colours = mpl.colormaps[panel.colours].with_extremes(bad="0.85")
    image = ax.imshow(
        np.ma.masked_invalid(values), cmap=colours, norm=panel.norm, origin="lower", aspect="auto"
    )
    width, height = size_in_points(ax)
    # A measure's options may be longer than its panel is wide: smaller, not over the next panel.
    size = fitted(panel.title, width + GAP / 2 * POINTS)
    ax.set_title(panel.title, pad=4, loc="left", fontsize=size)
    widest = max(len(str(layer)) for layer in panel.grid.columns)
    ax.set_xticks(*named_layers(panel.grid.columns, int(width / (5.1 * widest + 4))))
    if panel.row_names is None:
        ax.set_yticks(*named_layers(panel.grid.index, int(height / 8.5)))
    else:
        names = [str(name) for name in panel.grid.index]
        ax.set_yticks(range(len(names)), names if panel.row_names == "told" else [""] * len(names))
    bare(ax)
    hatched = np.zeros(values.shape, bool) if panel.hatched is None else panel.hatched.to_numpy()
    cells = [
        (i, j, shown(values[i, j], panel.norm, panel.digits))
        for i, j in np.argwhere(np.isfinite(values)).tolist()
    ]
    ink_size = number_size((text for *_, text in cells), width / max(values.shape[1], 1))
    layers = values.shape if panel.row_names is None else values.shape[1:]
    annotated = max(layers) <= MAX_ANNOTATED and ink_size >= LEAST_INK
    for i, j, text in cells:
        colour = colours(float(panel.norm(values[i, j])))
        ink, line = ("black", "0.3") if is_light(colour) else ("white", "0.75")
        if hatched[i, j]:
            ax.add_patch(
                Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, hatch="////", edgecolor=line, lw=0)
            )
        if annotated:
            clear = {"facecolor": colour, "lw": 0, "pad": 0.8} if hatched[i, j] else None
            ax.text(j, i, text, ha="center", va="center", fontsize=ink_size, color=ink, bbox=clear)
    return image


def draw_bars(ax: Axes, bars: Bars) -> None:
    """Stacked bars, depth growing upwards; a part that has room for it tells its percentage."""
    width, height = size_in_points(ax)
    n_layers = len(bars.shares)
    begin = np.zeros(n_layers)
    size = min(MOST_INK, 0.75 * height / n_layers)
    for colour, (_, part) in zip(bars.colours, bars.shares.items(), strict=True):
        lengths = part.to_numpy(dtype=float)
        ax.barh(range(n_layers), lengths, left=begin, height=0.8, color=colour)
        ink = "black" if is_light(to_rgba(colour)) else "white"
        for at, (left, length) in enumerate(zip(begin.tolist(), lengths.tolist(), strict=True)):
            text = f"{100 * length:.0f}"
            if size >= LEAST_INK and length * width > 1.2 * number_width(text) * size:
                middle = left + length / 2
                ax.text(middle, at, text, ha="center", va="center", fontsize=size, color=ink)
        begin = begin + lengths
    ax.set_title(bars.title, pad=4, loc="left", fontsize=fitted(bars.title, width))
    ax.set_xlim(0, 1)
    ax.set_ylim(-0.5, n_layers - 0.5)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
    ax.set_yticks(*named_layers(bars.shares.index, int(height / 8.5), most=2 * MAX_ANNOTATED))
    bare(ax)


def bare(ax: Axes) -> None:
    """Take ticks and frame away."""
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)


def named_layers(
    layers: pd.Index, room: int, *, most: int = MAX_ANNOTATED
) -> tuple[list[int], list[str]]:
    """Where an axis names a layer, and what it says: each, or every few when there are many.

    Args:
        layers: What there is.
        room: How many names fit.
        most: How many names there shall be at most.
    """
    step = -(-len(layers) // max(1, min(room, most)))
    at = list(range(0, len(layers), step))
    return at, [str(layers[i]) for i in at]


def is_light(colour: tuple[float, float, float, float]) -> bool:
    """Whether black is easier to read on it than white."""
    red, green, blue, _ = colour
    return bool(0.30 * red + 0.59 * green + 0.11 * blue > 0.45)


def number_width(text: str) -> float:
    """How wide a number is, in units of its size."""
    return sum(0.34 if c in ".-" else 0.64 for c in text)


def number_size(texts: Iterable[str], room: float) -> float:
    """The size at which the widest of the numbers takes no more than `room` points."""
    widest = max(map(number_width, texts), default=1.0)
    return min(MOST_INK, 0.88 * room / widest)


def shown(value: float, norm: Normalize, digits: int | None = None) -> str:
    """A number as a heat map's cell shows it, as fine as the range of colours makes useful."""
    if isinstance(norm, LogNorm):
        return f"{value:.2f}".lstrip("0") if value >= 0.01 else f"{value:.0e}".replace("e-0", "e-")
    top = float(norm.vmax or 0)
    if top > 1.5:  # a count, no score is above 1
        return f"{value:z.0f}"
    digits = (3 if top < 0.2 else 2) if digits is None else digits
    return re.sub(r"^(-?)0\.", r"\1.", f"{value:z.{digits}f}")
