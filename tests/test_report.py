"""A run's numbers as figures and tables: what is shown is what was found, and can be read."""

from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.console import Console, RenderableType

from saelign.report import figures, grid_tables, overview, write_figures
from saelign.report.figures import (
    Panel,
    common_norm,
    correlation_panels,
    draw_panel,
    measure_panels,
    overview_panels,
    shown,
)
from saelign.results import Run, write_table
from test_results import made_run

LONG = "rsa(inner=euclidean, outer=pearson)"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = made_run(tmp_path_factory.mktemp("run"), measures=("rsa",), matchings=("one_to_one",))
    write_figures(run, progress=untold)
    return run


def untold(done: int, total: int) -> None:
    pass


def changed(run: Run, rows: str, **values: Any) -> None:
    """Write the run's scores again with other values in the rows that the query finds."""
    scores = run.scores
    found = scores.query(rows).index
    assert len(found)
    for column, value in values.items():
        scores.loc[found, column] = value
    write_table(scores, run.folder / "scores.parquet")


def of_one_null(run: Run) -> pd.DataFrame:
    return run.scores.query("null == 'shuffle' and matching == 'one_to_one'")


def axes_of(panel: Panel) -> Axes:
    ax = Figure().add_subplot()
    draw_panel(ax, panel)
    return ax


def hatched_cells(ax: Axes) -> set[tuple[int, int]]:
    patches = [p for p in ax.patches if isinstance(p, Rectangle) and p.get_hatch()]
    return {(round(p.get_y() + 0.5), round(p.get_x() + 0.5)) for p in patches}


def rendered(parts: list[RenderableType], width: int = 80) -> str:
    console = Console(
        file=StringIO(), width=width, soft_wrap=True, highlight=False, force_terminal=False
    )
    for part in parts:
        console.print(part)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


# Figures -----------------------------------------------------------------------------------------


def test_every_figure_is_there_as_svg_and_png_with_its_numbers(drawn: Run) -> None:
    folder = drawn.folder / "figures"
    names = ["mean_correlation_one_to_one", "overview_one_to_one", "rsa_one_to_one"]
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        f"{name}.{suffix}" for name in names for suffix in ("csv", "png", "svg")
    )
    for name in names:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        svg = (folder / f"{name}.svg").read_text(encoding="utf-8")
        assert svg.startswith("<?xml")
        assert svg.rstrip().endswith("</svg>")


def test_writing_figures_gives_the_png_files_and_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_run(tmp_path, measures=("rsa", "svcca(n_components=10)"))
    monkeypatch.setattr(figures, "write_figure", lambda path, *_: path.with_suffix(".png"))
    told: list[tuple[int, int]] = []
    written = write_figures(run, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 8) for done in range(9)]
    assert {p.name for p in written} == {
        f"{what}_{matching}.png"
        for what in ("mean_correlation", "rsa", "svcca_n_components_10", "overview")
        for matching in ("one_to_one", "many_to_one")
    }


def test_the_csv_beside_a_figure_holds_every_number_that_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_run(tmp_path, seeds=(3, 4))
    seen: list[tuple[str, list[list[Panel]], pd.DataFrame]] = []

    def look(path: Path, rows: list[list[Panel]], table: pd.DataFrame, _: str) -> Path:
        seen.append((path.name, rows, table))
        return path

    monkeypatch.setattr(figures, "write_figure", look)
    write_figures(run, progress=untold)
    assert len(seen) == 2 * 2 * 4
    for name, rows, table in seen:
        assert table["run"].nunique() == table["matching"].nunique() == 1
        by_cell = dict(iter(table.groupby(["layer_a", "layer_b"])))
        for panel in (panel for row in rows for panel in row):
            for (a, b), value in panel.grid.stack().items():
                numbers = by_cell[a, b].select_dtypes("number").to_numpy(dtype=float)
                assert value in numbers, (name, panel.title)


def test_the_csv_beside_a_figure_is_the_part_of_the_scores_that_it_shows(drawn: Run) -> None:
    folder, scores = drawn.folder / "figures", drawn.scores
    for name, part in (
        ("rsa_one_to_one", scores),
        ("overview_one_to_one", scores[scores["null"] == "rate_matched"]),
        ("mean_correlation_one_to_one", drawn.cells),
    ):
        told = pd.read_csv(folder / f"{name}.csv")
        assert list(told.columns) == list(part.columns)
        assert len(told) == len(part)
        for column in part.select_dtypes("number"):
            there = part[column].to_numpy(dtype=float, na_value=np.nan)
            np.testing.assert_allclose(told[column], there, rtol=1e-12)


def test_the_same_run_gives_the_same_bytes(drawn: Run, tmp_path: Path) -> None:
    again = made_run(tmp_path, measures=("rsa",), matchings=("one_to_one",))
    write_figures(again, progress=untold)
    for path in sorted((drawn.folder / "figures").iterdir()):
        assert (tmp_path / "figures" / path.name).read_bytes() == path.read_bytes(), path.name


def test_several_seeds_have_figures_of_their_own_named_by_run_and_titled_by_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_run(tmp_path, measures=("rsa",), matchings=("one_to_one",), seeds=(3, 4))
    titles: dict[str, str] = {}

    def look(path: Path, _: Any, table: pd.DataFrame, title: str) -> Path:
        titles[path.name] = title.splitlines()[0]
        assert path.name.endswith(f"_run{table['run'].unique()[0]}")
        return path

    monkeypatch.setattr(figures, "write_figure", look)
    write_figures(run, progress=untold)
    correlation, alike = "Mean correlation of matched features", "Shared features"
    assert titles == {
        "mean_correlation_one_to_one_run0": f"{correlation}, one-to-one, seed 3",
        "rsa_one_to_one_run0": "rsa, one-to-one, seed 3",
        "overview_one_to_one_run0": f"{alike}, one-to-one, rate-matched null, seed 3",
        "mean_correlation_one_to_one_run1": f"{correlation}, one-to-one, seed 4",
        "rsa_one_to_one_run1": "rsa, one-to-one, seed 4",
        "overview_one_to_one_run1": f"{alike}, one-to-one, rate-matched null, seed 4",
    }


def test_a_figure_names_both_models_and_what_hatching_means_above_everything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "EleutherAI/pythia-160m-deduped-v0-with-a-long-name"
    run = made_run(
        tmp_path, layers_a=(3,), layers_b=(5,), measures=(LONG,), matchings=("one_to_one",),
        names=("/models/gemma-2-2b/", long),
    )  # fmt: skip
    made: list[Figure] = []
    monkeypatch.setattr(figures, "Figure", lambda **size: made.append(Figure(**size)) or made[-1])
    write_figures(run, progress=untold)
    assert len(made) == 3
    for figure in made:
        figure.canvas.draw()
        title = figure._suptitle
        assert "A: gemma-2-2b, B: pythia-160m-deduped-v0-with-a-long-name" in title.get_text()
        panels = [ax for ax in figure.axes if ax.images]
        hatching = any(hatched_cells(ax) for ax in panels)
        assert not hatching or "hatched: q ≥ 0.05" in title.get_text()
        inside = figure.bbox.padded(1)
        assert inside.containsx(title.get_window_extent().x0)
        assert inside.containsx(title.get_window_extent().x1)
        assert inside.containsy(title.get_window_extent().y1)
        lowest = title.get_window_extent().y0
        boxes = [ax.get_tightbbox() for ax in panels]
        for box in boxes:
            assert box.y1 < lowest
            assert inside.containsx(box.x0)
            assert inside.containsx(box.x1)
            assert inside.containsy(box.y0)
        for first in range(len(boxes)):
            for second in range(first):
                assert not boxes[first].overlaps(boxes[second])


def test_score_null_mean_and_calibrated_score_have_one_range_of_colours(drawn: Run) -> None:
    rows = measure_panels(drawn.scores, "rsa")
    assert [[panel.title for panel in row] for row in rows] == [
        ["rsa", "mean, shuffle null", "calibrated", "p, shuffle null"],
        ["rsa", "mean, rate-matched null", "calibrated", "p, rate-matched null"],
    ]
    shared = [panel for row in rows for panel in row[:3]]
    values = np.concatenate([panel.grid.to_numpy().ravel() for panel in shared])
    assert len({id(panel.norm) for panel in shared}) == 1
    assert (shared[0].norm.vmin, shared[0].norm.vmax) == (values.min(), values.max())
    assert values.min() < 0
    for row in rows:
        assert isinstance(row[3].norm, LogNorm)
        assert (row[3].norm.vmin, row[3].norm.vmax) == (1 / 1000, 1)


def test_the_panels_of_a_measure_hold_the_score_null_mean_calibrated_score_and_p(
    drawn: Run,
) -> None:
    rows = measure_panels(drawn.scores, "rsa")
    for row, null in zip(rows, ("shuffle", "rate_matched"), strict=True):
        for panel, value in zip(row, ("score", "null_mean", "calibrated", "p"), strict=True):
            expected = drawn.grid("rsa", value, null=null)
            pd.testing.assert_frame_equal(panel.grid, expected)


def test_in_the_overview_each_measure_has_a_range_of_colours_of_its_own(tmp_path: Path) -> None:
    run = made_run(tmp_path, nulls=("shuffle",), matchings=("one_to_one",))
    changed(run, "measure == 'svcca'", score=0.02, null_mean=0.01, calibrated=0.0101)
    rsa, svcca = overview_panels(run.scores)
    assert [panel.title for panel in svcca] == ["svcca", "chance", "calibrated"]
    for row in (rsa, svcca):
        assert len({id(panel.norm) for panel in row}) == 1
    assert svcca[0].norm.vmax == 0.02
    assert rsa[0].norm.vmax == rsa[0].grid.to_numpy().max()
    for panel, value in zip(rsa, ("score", "null_mean", "calibrated"), strict=True):
        pd.testing.assert_frame_equal(panel.grid, run.grid("rsa", value))


def test_mean_correlations_before_and_after_filtering_have_one_range_of_colours(
    drawn: Run,
) -> None:
    before, after, counts = correlation_panels(drawn.cells)
    assert before.norm is after.norm
    assert before.norm.vmin == 0
    assert before.norm.vmax == after.grid.to_numpy().max()
    assert counts.norm.vmax == counts.grid.to_numpy().max()


@pytest.mark.parametrize(
    ("values", "least", "most"),
    [
        ([0.2, 0.5], 0, 0.5),
        ([-0.3, 0.5, np.nan], -0.3, 0.5),
        ([-0.3, -0.1], -0.3, 0),
        ([0.0, 0.0], 0, 1),
        ([np.nan, np.nan], 0, 1),
    ],
)
def test_a_range_of_colours_holds_zero_and_every_value(
    values: list[float], least: float, most: float
) -> None:
    norm = common_norm(pd.DataFrame({0: values}))
    assert (norm.vmin, norm.vmax) == (least, most)


def test_cells_that_do_not_beat_chance_are_hatched_and_no_others(tmp_path: Path) -> None:
    run = made_run(tmp_path, measures=("rsa",), matchings=("one_to_one",))
    changed(run, "run == 0", q=0.001)
    changed(run, "null == 'shuffle' and layer_a == 0 and layer_b == 1", q=0.05)
    changed(run, "null == 'shuffle' and layer_a == 1 and layer_b == 0", q=0.04999)
    changed(run, "null == 'shuffle' and layer_a == 1 and layer_b == 1", q=np.nan)
    changed(run, "null == 'shuffle' and layer_a == 1 and layer_b == 10", score=np.nan, q=np.nan)
    changed(run, "null == 'rate_matched' and layer_a == 0 and layer_b == 0", q=0.9)
    shuffle, matched = measure_panels(run.scores, "rsa")
    assert hatched_cells(axes_of(shuffle[0])) == {(0, 1), (1, 1)}
    assert hatched_cells(axes_of(matched[0])) == {(0, 0)}
    for panel in (*shuffle[1:], *matched[1:]):
        assert hatched_cells(axes_of(panel)) == set()
    score, chance, calibrated = overview_panels(of_one_null(run))[0]
    assert hatched_cells(axes_of(score)) == {(0, 1), (1, 1)}
    assert hatched_cells(axes_of(chance)) == set()
    # A calibrated score is there where its score is; here only the score was taken away.
    assert hatched_cells(axes_of(calibrated)) == {(0, 1), (1, 1), (1, 2)}


def test_a_cell_without_a_score_is_grey_and_says_nothing() -> None:
    grid = pd.DataFrame([[0.25, np.nan], [0.5, 0.75]], index=[3, 7], columns=[2, 11])
    ax = axes_of(Panel(title="rsa", grid=grid, norm=Normalize(0, 1)))
    assert [(text.get_position(), text.get_text()) for text in ax.texts] == [
        ((0, 0), ".25"),
        ((0, 1), ".50"),
        ((1, 1), ".75"),
    ]
    image = ax.images[0]
    colours = image.to_rgba(image.get_array())
    assert tuple(colours[0, 1]) == mpl.colors.to_rgba("0.85")


def test_a_run_without_a_single_score_still_has_figures(tmp_path: Path) -> None:
    run = made_run(tmp_path, layers_a=(0,), measures=("rsa",), matchings=("one_to_one",))
    nothing = dict.fromkeys(("score", "null_mean", "p", "q", "calibrated"), np.nan)
    changed(run, "run == 0", n_permutations=0, **nothing)
    assert len(write_figures(run, progress=untold)) == 3


def test_an_axis_names_the_layers_that_were_read() -> None:
    grid = pd.DataFrame(0.5, index=[3, 7], columns=[2, 11, 30])
    ax = axes_of(Panel(title="rsa", grid=grid, norm=Normalize(0, 1)))
    assert [text.get_text() for text in ax.get_yticklabels()] == ["3", "7"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["2", "11", "30"]
    # Layer 3 of A stands below layer 7: depth grows upwards.
    assert ax.get_ylim() == (-0.5, 1.5)


def test_up_to_fourteen_layers_cells_have_numbers_and_beyond_that_axes_name_every_few() -> None:
    def ax(n_a: int, n_b: int) -> Axes:
        grid = pd.DataFrame(0.5, index=range(n_a), columns=range(n_b))
        weak = grid < 1
        return axes_of(Panel(title="rsa", grid=grid, norm=Normalize(0, 1), hatched=weak))

    assert len(ax(14, 2).texts) == 28
    wide = ax(26, 42)
    assert len(wide.texts) == 0
    assert len(hatched_cells(wide)) == 26 * 42
    for ticks, labels, step, last in (
        (wide.get_yticks(), wide.get_yticklabels(), 2, 24),
        (wide.get_xticks(), wide.get_xticklabels(), 3, 39),
    ):
        assert list(ticks) == list(range(0, last + 1, step))
        assert [text.get_text() for text in labels] == [str(t) for t in range(0, last + 1, step)]


@pytest.mark.parametrize(
    ("value", "norm", "text"),
    [
        (0.125, Normalize(0, 0.8), ".12"),
        (1.0, Normalize(0, 1), "1.00"),
        (-0.125, Normalize(-0.2, 0.8), "-.12"),
        (-0.001, Normalize(-0.2, 0.8), ".00"),
        (-0.005, Normalize(-0.01, 0.1), "-.005"),
        (-0.0001, Normalize(-0.01, 0.1), ".000"),
        (10.0, Normalize(0, 10), "10"),
        (3.0, Normalize(0, 9), "3"),
        (380.0, Normalize(0, 400), "380"),
        (1.0, LogNorm(1e-3, 1), "1.00"),
        (0.04, LogNorm(1e-3, 1), ".04"),
        (0.004, LogNorm(1e-3, 1), "4e-3"),
        (2e-12, LogNorm(1e-3, 1), "2e-12"),
    ],
)
def test_a_cell_shows_its_number_with_its_sign_and_in_full(
    value: float, norm: Normalize, text: str
) -> None:
    assert shown(value, norm) == text


def test_numbers_stand_out_from_their_cells() -> None:
    grid = pd.DataFrame([np.linspace(0, 1, 14)])
    for colours in (figures.SCORE_COLOURS, figures.P_COLOURS):
        ax = axes_of(Panel(title="x", grid=grid, norm=Normalize(0, 1), colours=colours))
        for text, cell in zip(ax.texts, mpl.colormaps[colours](grid.to_numpy()[0]), strict=True):
            ink = luminance(mpl.colors.to_rgb(text.get_color()))
            bright, dark = sorted((ink, luminance(tuple(cell[:3]))), reverse=True)
            assert (bright + 0.05) / (dark + 0.05) > 3, cell


def luminance(colour: tuple[float, ...]) -> float:
    """Of the WCAG's definition of contrast."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


# Tables ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_layers", [3, 12, 42])
@pytest.mark.parametrize("width", [40, 80, 132])
def test_a_grid_fits_the_terminal_and_loses_no_digit(n_layers: int, width: int) -> None:
    rng = np.random.default_rng(0)
    grid = pd.DataFrame(rng.uniform(-1, 1, size=(4, n_layers)))
    weak = pd.DataFrame(rng.random(grid.shape) < 0.3)
    text = rendered(grid_tables(grid, title="rsa", weak=weak, width=width), width)
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[0] == "rsa"
    assert max(map(len, lines)) <= width
    blocks = [block.splitlines() for block in "\n".join(lines[1:]).split("A \\ B")[1:]]
    told = {layer: [] for layer in grid.index}
    for block in blocks:
        assert len(block) == 5
        for line in block[1:]:
            layer, *cells = line.split()
            told[int(layer)] += cells
    assert " ".join(block[0].strip() for block in blocks).split() == [
        str(i) for i in range(n_layers)
    ]
    for layer in grid.index:
        assert told[layer] == [
            f"({value:z.3f})" if flag else f"{value:z.3f}"
            for value, flag in zip(grid.loc[layer], weak.loc[layer], strict=True)
        ]


def test_a_grid_shows_a_missing_score_as_a_dash_and_no_negative_zero() -> None:
    grid = pd.DataFrame([[np.nan, -0.0001]])
    weak = pd.DataFrame([[True, False]])
    table = rendered(grid_tables(grid, title="x", weak=weak))
    assert table.splitlines()[-1].split() == ["0", "-", "0.000"]


@pytest.mark.parametrize("seeds", [(0,), (3, 4)])
def test_the_overview_of_a_run_fits_eighty_columns_with_whole_words_and_numbers(
    tmp_path: Path, seeds: tuple[int, ...]
) -> None:
    measures = ("svcca_r2(n_components=100)", LONG)
    run = made_run(
        tmp_path,
        measures=measures,
        layers_a=range(12),
        layers_b=range(24),
        seeds=seeds,
        parts=False,
    )
    changed(run, "run == 0", n_pairs=24576)
    text = rendered(overview(run))
    assert max(len(line.rstrip()) for line in text.splitlines()[1:]) <= 80
    where = ("run", "layer_a", "layer_b") if len(seeds) > 1 else ("layer_a", "layer_b")
    for (matching, null, measure), group in run.scores.groupby(["matching", "null", "measure"]):
        best = group.loc[group["calibrated"].idxmax()]
        title = f"Where the models are most alike: {matching}, {null} null\n"
        rows = text.split(title)[1].split("\n\n")[0]
        numbers = (
            f"{(group['q'] < 0.05).sum()}/{288 * len(seeds)} "
            f"{', '.join(str(best[column]) for column in where)} "
            f"{best['score']:z.3f} {best['null_mean']:z.3f} {best['calibrated']:z.3f} "
            f"{best['p']:.2g} {best['n_pairs']}"
        )
        # The last line of a measure's name stands beside its numbers.
        assert f"{measure} {numbers}".replace(" ", "") in "".join(rows.split())


def test_the_overview_of_a_small_run_reads_so(tmp_path: Path) -> None:
    run = made_run(
        tmp_path, layers_a=(1, 4), layers_b=(5,), measures=("rsa",), matchings=("one_to_one",),
        nulls=("shuffle",), warnings=["1 of 2 cells kept fewer than 3 pairs"],
    )  # fmt: skip
    common = {"p": 0.001, "q": 0.002, "n_pairs": 380}
    changed(run, "layer_a == 4", score=0.25, null_mean=-0.0001, calibrated=0.25, **common)
    nothing = dict.fromkeys(("score", "null_mean", "p", "q", "calibrated"), np.nan)
    changed(run, "layer_a == 1", **nothing)
    write_table(run.cells.assign(mean_correlation=0.5), tmp_path / "cells.parquet")
    told = "\n".join(" ".join(line.split()) for line in rendered(overview(run)).splitlines())
    expected = (
        "made: A = pythia-70m, B = pythia-160m, 2,000 tokens, saelign 0.1.0\n"
        "Scores in parentheses do not beat chance (shuffle null, q >= 0.05).\n"
        "\n"
        "Where the models are most alike: one_to_one, shuffle null\n"
        "         cells peak\n"
        "measure q<0.05 A, B score chance calibrated     p pairs\n"
        "rsa        1/2 4, 5 0.250  0.000      0.250 0.001   380\n"
        "\n"
        "mean correlation, one_to_one\n"
        "A \\ B      5\n"
        "    1  0.500\n"
        "    4  0.500\n"
        "\n"
        "rsa, one_to_one\n"
        "A \\ B      5\n"
        "    1      -\n"
        "    4  0.250\n"
        "rsa, one_to_one: chance (shuffle null)\n"
        "A \\ B      5\n"
        "    1      -\n"
        "    4  0.000\n"
        "\n"
        "warning: 1 of 2 cells kept fewer than 3 pairs"
    )
    # Versions of rich differ in how wide they make a table under a long title.
    assert told == "\n".join(" ".join(line.split()) for line in expected.split("\n"))


def test_a_score_that_does_not_beat_chance_stands_in_parentheses(tmp_path: Path) -> None:
    run = made_run(tmp_path, layers_a=(0,), measures=("rsa",), matchings=("one_to_one",))
    changed(run, "layer_b == 0", score=0.111, q=0.05)
    changed(run, "layer_b == 1", score=0.222, q=0.0499)
    changed(run, "null == 'shuffle'", q=0.0001)
    text = rendered(overview(run))
    assert "(rate_matched null, q >= 0.05)" in text
    assert "(0.111)" in text
    assert "(0.222)" not in text
    assert "0.222" in text


def test_the_overview_of_one_matching_tells_of_no_other(tmp_path: Path) -> None:
    text = rendered(overview(made_run(tmp_path), matching="many_to_one"))
    assert "one_to_one" not in text
    assert text.count("Where the models are most alike: many_to_one") == 2
    assert "one_to_one" in rendered(overview(made_run(tmp_path / "again")))


def test_a_measure_that_was_never_scored_says_so(tmp_path: Path) -> None:
    run = made_run(tmp_path, measures=("rsa", "svcca"), matchings=("one_to_one",))
    nothing = dict.fromkeys(("score", "null_mean", "p", "q", "calibrated"), np.nan)
    changed(run, "measure == 'svcca'", **nothing)
    lines = [line.split() for line in rendered(overview(run)).splitlines()]
    assert lines.count(["svcca", "0/6", "none"]) == 2


def test_several_runs_say_which_one_the_grids_are_of_and_where_the_peak_lies(
    tmp_path: Path,
) -> None:
    run = made_run(tmp_path, measures=("rsa",), matchings=("one_to_one",), seeds=(3, 4))
    changed(run, "run == 1 and layer_a == 1 and layer_b == 10", calibrated=0.99)
    text = rendered(overview(run))
    assert "2,000 tokens in each of 2 runs" in text
    assert "The grids below are those of run 0 (seed 3) of 2." in text
    assert text.count("1, 1, 10") == 2
    uneven = made_run(tmp_path / "x", seeds=(3, 4), text=[{"n_tokens": 2000}, {"n_tokens": 1500}])
    assert "2,000 and 1,500 tokens" in rendered(overview(uneven))


def test_brackets_in_names_are_shown_as_they_are(tmp_path: Path) -> None:
    run = made_run(
        tmp_path, names=("[bold]model[/]", "b:smile:"), measures=("rsa[red]",),
        name="[/]", warnings=["see [link]"],
    )  # fmt: skip
    text = rendered(overview(run))
    assert "[/]: A = [bold]model[/], B = b:smile:," in text
    assert "rsa[red], one_to_one" in text
    assert "\nrsa[red] " in text
    assert "warning: see [link]" in text
