"""Figures for a paper: a heat map or a null, as wide as a column, nothing around it."""

import io
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from saelign.errors import UnknownNameError
from saelign.nulls import SIGNIFICANCE
from saelign.panels import (
    EM,
    P_COLOURS,
    POINTS,
    ROW,
    SCORE_COLOURS,
    Panel,
    common_norm,
    draw_panel,
)

Width = str | float
"""`one` column, `two`, or inches."""

WIDTHS = {"one": 3.25, "two": 6.75}
"""Inches of one column and of two, in the style files of the large conferences."""

STYLE: Any = {
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "saelign",
}
LEFT, BAR, BOTTOM, TOP, TITLE = 0.44, 0.78, 0.42, 0.06, 0.22
"""Inches left of a heat map, of its colour bar with numbers, below, above it, and of a title."""
NULL_HEIGHT, LEGEND, AXIS = 1.6, 0.3, 0.52
"""Inches of a histogram with its axis, of a legend above it, and left of it."""
SCORE_COLOUR, NULL_COLOUR = "#D55E00", "#9AA5B1"


def inches(width: Width) -> float:
    """What a width comes to.

    Raises:
        UnknownNameError: Neither `one` nor `two` columns nor a number of inches above 1.
    """
    if isinstance(width, str):
        if width not in WIDTHS:
            raise UnknownNameError.of("width", width, WIDTHS)
        return WIDTHS[width]
    if not width > 1:
        raise UnknownNameError(
            f"a width must be 'one' column, 'two', or more than 1 inch, got {width}"
        )
    return float(width)


def heat_map(panel: Panel, *, label: str, width: Width = "one", title: str | None = None) -> Figure:
    """A heat map with its colour bar.

    Args:
        panel: What to draw; its own title is left out.
        label: What the colours are.
        width: Of the figure: `one` column, `two`, or inches. Cells become as wide as it lets them.
        title: Stands above; none if None.
    """
    n_rows, n_columns = panel.grid.shape
    names = [str(name) for name in panel.grid.index] if panel.row_names else []
    left = LEFT + max(map(len, names), default=0) * EM * 7 / POINTS - 0.2 * bool(names)
    top = TOP + TITLE * (title is not None)
    whole = inches(width)
    across = whole - left - BAR
    up = max(n_rows, 2) * min(ROW * 1.4, across / max(n_columns, 1))
    height = BOTTOM + up + top
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(whole, height))
        FigureCanvasAgg(figure)
        ax = figure.add_axes((left / whole, BOTTOM / height, across / whole, up / height))
        image = draw_panel(ax, panel)
        ax.set_title("")
        ax.set_xlabel(panel.x_label)
        ax.set_ylabel(panel.y_label)
        bar = figure.add_axes(
            ((left + across + 0.08) / whole, BOTTOM / height, 0.09 / whole, up / height)
        )
        figure.colorbar(image, cax=bar, label=label)
        if title is not None:
            figure.text(left / whole, 1 - TOP / height, title, fontsize=9, va="top")
    return figure


def null_histogram(
    draws: Float[np.ndarray, " shuffle"],
    score: float,
    *,
    p: float,
    label: str,
    null: str,
    width: Width = "one",
    title: str | None = None,
) -> Figure:
    """What a null gave, and where the score stands.

    Args:
        draws: The score of each shuffle.
        score: The score itself.
        p: Its p-value, which is told.
        label: What is measured.
        null: What the null is called.
        width: Of the figure: `one` column, `two`, or inches.
        title: Stands above; none if None.
    """
    whole = inches(width)
    top = TOP + LEGEND + TITLE * (title is not None)
    height = NULL_HEIGHT + top
    draws = draws[np.isfinite(draws)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(whole, height))
        FigureCanvasAgg(figure)
        ax = figure.add_axes(
            (
                AXIS / whole,
                BOTTOM / height,
                (whole - LEFT - 0.1) / whole,
                1 - (BOTTOM + top) / height,
            )
        )
        n_bins = int(np.clip(np.sqrt(len(draws)), 10, 40))
        ax.hist(draws, bins=n_bins, color=NULL_COLOUR, label=f"{null}, {len(draws):,} shuffles")
        if np.isfinite(score):
            ax.axvline(score, color=SCORE_COLOUR, lw=1.5, label=f"score {score:.3f}, p = {p:.2g}")
        ax.set_xlabel(label)
        ax.set_ylabel("shuffles")
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
        above = (0, 1, 1, 0.01)
        ax.legend(frameon=False, fontsize=7, loc="lower left", bbox_to_anchor=above, borderpad=0)
        if title is not None:
            figure.text(AXIS / whole, 1 - TOP / height, title, fontsize=9, va="top")
    return figure


def as_svg(figure: Figure) -> str:
    """A figure as an SVG element, to stand in a page."""
    stream = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "saelign"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def panel_of(
    grid: pd.DataFrame,
    value: str,
    *,
    q: pd.DataFrame | None,
    labels: tuple[str, str],
    row_names: Literal["told"] | None = None,
) -> Panel:
    """A panel of one grid, its colours from 0 to its largest value; p-values on a log scale.

    Args:
        grid: Rows x layers.
        value: Which column it is.
        q: Where it is no better than chance after correction, cells are hatched; nowhere if None.
        labels: What rows and columns are.
        row_names: `told` where rows are not layers.
    """
    grid = grid.astype(float)
    is_p = value in ("p", "q")
    least = float(np.nanmin(grid.to_numpy())) if is_p and grid.notna().any(axis=None) else 1.0
    return Panel(
        title="",
        grid=grid,
        norm=LogNorm(min(0.01, least), 1, clip=True) if is_p else common_norm(grid),
        colours=P_COLOURS if is_p else SCORE_COLOURS,
        hatched=None if q is None else ~(q < SIGNIFICANCE),
        y_label=labels[0],
        x_label=labels[1],
        row_names=row_names,
    )


def concept_grid(scores: pd.DataFrame, value: str) -> pd.DataFrame:
    """Subspace x layer of B of one layer of A, the first subspace on top."""
    order = list(scores["subspace"].unique())[::-1]
    return scores.pivot(index="subspace", columns="layer_b", values=value).reindex(order)
