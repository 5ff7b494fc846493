"""A run's numbers as figures and tables: what is shown is what was found, and can be read."""

import itertools
import re
from collections.abc import Iterable, Sequence
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

from saelign import panels
from saelign.panels import (
    Bars,
    Panel,
    Sheet,
    common_norm,
    draw_bars,
    draw_panel,
    shown,
    write_sheet,
)
from saelign.report import figures, grid_tables, overview, write_figures
from saelign.report.figures import (
    correlation_sheets,
    measure_panels,
    measure_sheets,
    overview_panels,
    overview_sheets,
    verdict_sheets,
)
from saelign.results import Run, open_run, write_info, write_table
from saelign.verdicts import VERDICTS

LONG = "rsa(inner=euclidean, outer=pearson)"

MATCHINGS = ("one_to_one", "many_to_one")
ALL_CONTROLS = ("untrained", "document_shift", "seed_a", "seed_b")
# Plain correlation hardly tells trained from untrained; within a token it does.
PLAIN = {"trained": 0.36, "untrained": 0.33, "document_shift": 0.04, "seed_a": 0.5, "seed_b": 0.48}
WITHIN = {"trained": 0.21, "untrained": 0.02, "document_shift": 0.01, "seed_a": 0.4, "seed_b": 0.38}
SCORE = {"trained": 0.5, "untrained": 0.2, "document_shift": 0.02, "seed_a": 0.7, "seed_b": 0.7}
KEY = ["control", "metric", "layer_a", "layer_b", "matching", "subspace", "measure", "null"]
SHARES = {
    ("trained", "other"): (0.42, 0.27, 0.2, 0.11),
    ("untrained", "other"): (0.06, 0.12, 0.69, 0.13),
    ("trained", "decoy"): (0.66, 0.21, 0.02, 0.11),
}


def made_run(
    folder: Path,
    *,
    layers_a: Sequence[int] = (0, 1),
    layers_b: Sequence[int] = (0, 1, 10),
    measures: Sequence[str] = ("rsa", "svcca"),
    matchings: Sequence[str] = MATCHINGS,
    nulls: Sequence[str] = ("shuffle", "rate_matched"),
    seeds: Sequence[int] = (0,),
    controls: Sequence[str] = (),
    metrics: Sequence[str] = ("pearson",),
    judged: bool = False,
    names: tuple[str, str] = ("pythia-70m", "pythia-160m"),
    **info: Any,
) -> Run:
    """A finished run made by hand: every number drawn, no model loaded."""
    rng = np.random.default_rng(0)
    runs = range(len(seeds))
    sides = {"seed_a": (layers_a, layers_a), "seed_b": (layers_b, layers_b)}
    where = [
        {"control": c, "run": r, "metric": metric, "layer_a": a, "layer_b": b, "matching": matching}
        for c in ("trained", *controls)
        for r in runs
        for metric in (metrics if c == "trained" else metrics[:1])
        for a, b in itertools.product(*sides.get(c, (layers_a, layers_b)))
        for matching in matchings
    ]
    cells = pd.DataFrame([{**at, **drawn_cell(at, rng)} for at in where])
    scores = pd.DataFrame(
        [
            {**at, "subspace": "all", "measure": measure, "null": null, **drawn_score(at, rng)}
            for at in where
            for measure, null in itertools.product(measures, nulls)
        ]
    ).astype({"n_components": "Int64"})
    write_table(cells, folder / "cells.parquet")
    write_scores(scores, folder)
    write_table(agreement_of_grids(scores, seeds, metrics, rng), folder / "agreement.parquet")
    verdicts = drawn_verdicts(runs, layers_a, layers_b, controls, rng)
    write_table(verdicts if judged else verdicts[:0], folder / "verdicts.parquet")
    told = {
        "complete": True,
        "name": "made",
        "versions": {"saelign": "0.1.0"},
        "seeds": list(seeds),
        "metrics": list(metrics),
        "controls": ["trained", *controls],
        "text": [{"n_tokens": 2000} for _ in seeds],
        "models": {"a": {"name": names[0]}, "b": {"name": names[1]}},
        "warnings": [],
        **info,
    }
    write_info(told, folder)
    return open_run(folder)


def drawn_cell(at: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """What `cells` says of a layer pair."""
    control, depth = at["control"], at["layer_a"] + at["layer_b"]
    plain = PLAIN[control] + rng.uniform(-0.03, 0.03)
    within = WITHIN[control] + rng.uniform(-0.02, 0.02)
    held_out = within + 0.1 + rng.uniform(-0.02, 0.02)
    return {
        "n_pairs": 200 + at["layer_a"],
        "n_kept": 100 + depth if control == "trained" else 40 + depth,
        "mean_correlation": plain,
        "mean_correlation_kept": plain + 0.1,
        "mean_within_token": within,
        "mean_within_token_kept": within + 0.08,
        "held_out_correlation": held_out,
        "held_out_low": held_out - 0.007,
        "held_out_high": held_out + 0.007,
        "held_out_correlation_kept": held_out + 0.05,
        "held_out_kept_low": held_out + 0.04,
        "held_out_kept_high": held_out + 0.06,
        "n_silent_held_out": 3,
        "mutual_share": 0.5,
        "mean_margin": 0.05,
        "note": "",
    }


def drawn_score(at: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """What `scores` says of a measure beside a null."""
    control = at["control"]
    beats = control not in ("untrained", "document_shift")
    halves = rng.uniform(0.3, 0.8, 2) if control == "trained" else (np.nan, np.nan)
    return {
        "score": SCORE[control] + rng.uniform(-0.1, 0.2),
        "null_mean": rng.uniform(-0.01, 0.2),
        "null_sd": 0.01,
        "z": 10.0,
        "p": rng.uniform(1e-4, 0.1) if beats else rng.uniform(0.01, 1),
        "q": rng.uniform(1e-4, 0.1) if beats else rng.uniform(0.02, 1),
        "calibrated": SCORE[control] - 0.1 + rng.uniform(-0.1, 0.1),
        "score_half_1": halves[0],
        "score_half_2": halves[1],
        "n_pairs": 100 + at["layer_a"] + at["layer_b"],
        "n_components": 20,
        "n_permutations": 999,
        "floor_limited": False,
        "note": "",
    }


def write_scores(scores: pd.DataFrame, folder: Path) -> None:
    """Write the scores of a run and their means over runs, p and q of the first run among them."""
    groups = scores.groupby(KEY, sort=False)
    means = groups[["score", "null_mean", "calibrated"]].mean()
    summary = means.assign(
        n_runs=groups["score"].count(),
        score_sd=groups["score"].std(),
        p=groups["p"].first(),
        q=groups["q"].first(),
    ).reset_index()
    write_table(scores, folder / "scores.parquet", csv=True)
    write_table(summary, folder / "summary.parquet", csv=True)


def agreement_of_grids(
    scores: pd.DataFrame, seeds: Sequence[int], metrics: Sequence[str], rng: np.random.Generator
) -> pd.DataFrame:
    """Rows of every kind that the run has grids for."""
    measures = list(scores["measure"].unique())
    found = [("texts", m, "half 1", "half 2") for m in measures]
    for x, y in itertools.combinations(seeds, 2):
        found += [("seeds", m, f"seed {x}", f"seed {y}") for m in measures]
    found += [("metrics", m, metrics[0], other) for m in measures for other in metrics[1:]]
    found += [("measures", f"{x}, {y}", x, y) for x, y in itertools.combinations(measures, 2)]
    rows = []
    for (kind, measure, x, y), matching in itertools.product(found, scores["matching"].unique()):
        rho, difference = rng.uniform(0.5, 0.9), rng.uniform(-0.05, 0.05)
        nothing = kind == "measures"
        rows.append(
            {
                "kind": kind, "matching": matching, "measure": measure, "x": x, "y": y,
                "n_cells": 6, "spearman": rho, "low": rho - 0.2, "high": rho + 0.1,
                "mean_difference": np.nan if nothing else difference,
                "difference_low": np.nan if nothing else difference - 0.01,
                "difference_high": np.nan if nothing else difference + 0.01,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def drawn_verdicts(
    runs: Iterable[int],
    layers_a: Sequence[int],
    layers_b: Sequence[int],
    controls: Sequence[str],
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Two hundred features a layer."""
    tables = []
    for run, (model, layers) in itertools.product(runs, (("a", layers_a), ("b", layers_b))):
        asked = {"untrained": "untrained" in controls, "decoy": f"seed_{model}" in controls}
        for (control, against), shares in SHARES.items():
            if not asked.get(against, asked.get(control, True)):
                continue
            for layer in layers:
                verdicts = rng.choice(list(VERDICTS), size=200, p=shares)
                known = (verdicts == "only") & (control == "trained") & (against == "other")
                replicated = pd.array(rng.random(200) < 0.9, dtype="boolean")
                replicated[~(known & (rng.random(200) < 0.5))] = pd.NA
                table = {"feature": range(200), "verdict": verdicts, "replicated": replicated}
                told = {"control": control, "run": run, "model": model, "against": against}
                tables.append(pd.DataFrame(table).assign(**told, layer=layer))
    return pd.concat(tables, ignore_index=True)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = made_run(tmp_path_factory.mktemp("run"), measures=("rsa",), matchings=("one_to_one",))
    write_figures(run, progress=untold)
    return run


@pytest.fixture(scope="module")
def controlled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return made_run(
        tmp_path_factory.mktemp("run"),
        controls=ALL_CONTROLS,
        matchings=("one_to_one",),
        judged=True,
    )


def untold(done: int, total: int) -> None:
    pass


def changed(run: Run, rows: str, **values: Any) -> None:
    """Write the run's scores again with other values in the rows that the query finds."""
    scores = run.scores
    found = scores.query(rows).index
    assert len(found)
    for column, value in values.items():
        scores.loc[found, column] = value
    write_scores(scores, run.folder)


def of_one_null(run: Run) -> pd.DataFrame:
    return run.summary.query("null == 'shuffle' and matching == 'one_to_one'")


def axes_of(panel: Panel) -> Axes:
    ax = Figure().add_subplot()
    draw_panel(ax, panel)
    return ax


class Unsaved(Figure):
    """Drawn, but not as a file: what takes the time."""

    def savefig(self, *_: Any, **__: Any) -> None:
        pass


def unsaved_figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that will be made."""
    made: list[Figure] = []
    monkeypatch.setattr(panels, "Figure", lambda **size: made.append(Unsaved(**size)) or made[-1])
    return made


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


def sheets_of(run: Run) -> list[Sheet]:
    return [
        *correlation_sheets(run), *measure_sheets(run), *overview_sheets(run), *verdict_sheets(run),
    ]  # fmt: skip


def test_every_figure_is_there_as_svg_and_png_with_its_numbers(drawn: Run) -> None:
    folder = drawn.folder / "figures"
    names = ["correlation", "correlation_kept", "overview", "rsa"]
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        f"{name}_one_to_one.{suffix}" for name in names for suffix in ("csv", "png", "svg")
    )
    for name in names:
        assert (folder / f"{name}_one_to_one.png").read_bytes().startswith(b"\x89PNG")
        svg = (folder / f"{name}_one_to_one.svg").read_text(encoding="utf-8")
        assert svg.startswith("<?xml")
        assert svg.rstrip().endswith("</svg>")


def test_writing_figures_gives_the_png_files_the_first_correlation_first_and_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_run(
        tmp_path, measures=("rsa", "svcca(n_components=10)"), controls=("untrained",), judged=True
    )
    monkeypatch.setattr(figures, "write_sheet", lambda folder, sheet, _: folder / sheet.name)
    told: list[tuple[int, int]] = []
    written = write_figures(run, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 15) for done in range(16)]
    assert written[0].name == "correlation_one_to_one"
    kinds = ("correlation", "correlation_kept", "rsa", "controls_rsa", "overview")
    names = {f"{kind}_{m}" for kind in kinds for m in ("one_to_one", "many_to_one")}
    names |= {f"{k}svcca_n_components_10_{m}" for k in ("", "controls_") for m in MATCHINGS}
    assert {p.name for p in written} == {*names, "verdicts"}


def test_a_dot_in_a_measures_options_cuts_nothing_off_the_names_of_its_files(
    tmp_path: Path,
) -> None:
    run = made_run(tmp_path, measures=("svcca(variance=0.99)",), layers_a=(0,), layers_b=(0,))
    written = write_figures(run, progress=untold)
    for matching in MATCHINGS:
        path = tmp_path / "figures" / f"svcca_variance_0.99_{matching}.png"
        assert path in written
        assert path.is_file()
        assert path.with_name(f"svcca_variance_0.99_{matching}.csv").is_file()


@pytest.mark.parametrize("seeds", [(0,), (3, 4)])
def test_the_csv_beside_a_figure_holds_every_number_that_it_shows(
    tmp_path: Path, seeds: tuple[int, ...]
) -> None:
    run = made_run(tmp_path, seeds=seeds, controls=ALL_CONTROLS, judged=True)
    sheets = sheets_of(run)
    assert len(sheets) == 15
    for sheet in sheets:
        grids = [p for row in sheet.rows for p in row if isinstance(p, Panel)]
        if grids:
            assert sheet.table["matching"].nunique() == 1
            by_cell = dict(iter(sheet.table.groupby(["layer_a", "layer_b"])))
        for panel in grids:
            for (a, b), value in panel.grid.stack().items():
                numbers = by_cell[a, b].select_dtypes("number").to_numpy(dtype=float)
                assert value in numbers, (sheet.name, panel.title)
        for bars in (p for row in sheet.rows for p in row if isinstance(p, Bars)):
            for layer, shares in bars.shares.iterrows():
                rows = sheet.table[sheet.table["layer"] == layer]
                assert (rows[list(VERDICTS)] == shares).all(axis=1).any(), bars.title


def test_the_csv_beside_a_figure_is_the_part_of_the_tables_that_it_shows(drawn: Run) -> None:
    folder, summary = drawn.folder / "figures", drawn.summary
    for name, part in (
        ("rsa_one_to_one", summary),
        ("overview_one_to_one", summary[summary["null"] == "rate_matched"]),
        ("correlation_one_to_one", drawn.cells),
        ("correlation_kept_one_to_one", drawn.cells),
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


def test_of_several_seeds_the_means_are_shown_and_how_far_the_runs_are_apart(
    tmp_path: Path,
) -> None:
    run = made_run(tmp_path, measures=("rsa",), matchings=("one_to_one",), seeds=(3, 4))
    titles = {sheet.name: sheet.title.splitlines()[0] for sheet in sheets_of(run)}
    features = "Correlation of matched features, one-to-one"
    assert titles == {
        "correlation_one_to_one": f"{features}, all pairs, mean of 2 runs",
        "correlation_kept_one_to_one": f"{features}, kept pairs, mean of 2 runs",
        "rsa_one_to_one": "rsa, one-to-one, mean of 2 runs",
        "overview_one_to_one": "Shared features, one-to-one, rate-matched null, mean of 2 runs",
    }
    correlation, _, rsa, _ = sheets_of(run)
    runs = [run.grid("mean_correlation", run=i).to_numpy() for i in (0, 1)]
    np.testing.assert_allclose(correlation.rows[0][0].grid, np.mean(runs, axis=0))
    assert set(correlation.table["n_runs"]) == {2}
    first, second = rsa.rows
    assert [panel.title for panel in first[4:]] == ["standard deviation over runs"]
    of_null = run.scores.query("null == 'shuffle'").groupby(["layer_a", "layer_b"])["score"]
    np.testing.assert_allclose(first[4].grid, of_null.std().unstack())
    np.testing.assert_allclose(first[0].grid, of_null.mean().unstack())
    assert first[4].norm is not first[3].norm
    assert len(second) == 4


def test_an_axis_is_told_below_the_lowest_panel_of_each_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_run(tmp_path, measures=("rsa",), matchings=("one_to_one",), seeds=(3, 4))
    made = unsaved_figures(monkeypatch)
    write_sheet(tmp_path, measure_sheets(run)[0], "")
    told = [bool(ax.get_xlabel()) for ax in made[0].axes if ax.get_title(loc="left")]
    assert told == [False] * 4 + [True] * 5


def test_matching_by_other_metrics_changes_no_figure(tmp_path: Path) -> None:
    one = made_run(tmp_path / "one", layers_a=(0,), layers_b=(0,))
    cells, scores = one.cells, one.scores
    other = {"metric": "cosine", "layer_a": 0}
    write_table(
        pd.concat([cells, cells.assign(**other, mean_correlation=0.9)]),
        one.folder / "cells.parquet",
    )
    before = sheets_of(one)
    write_scores(pd.concat([scores, scores.assign(**other, score=0.9)]), one.folder)
    for sheet, unchanged in zip(sheets_of(one), before, strict=True):
        assert set(sheet.table["metric"]) == {"pearson"}
        assert len(sheet.table) == len(unchanged.table)


def test_a_figure_names_both_models_and_what_hatching_means_above_everything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "EleutherAI/pythia-160m-deduped-v0-with-a-long-name"
    alone = made_run(
        tmp_path / "alone", layers_a=(3,), layers_b=(5,), measures=(LONG,),
        matchings=("one_to_one",), names=("/models/gemma-2-2b/", long),
    )  # fmt: skip
    beside = made_run(
        tmp_path / "beside", layers_a=(3, 10, 11, 12), layers_b=range(15), measures=(LONG,),
        matchings=("one_to_one",), names=("/models/gemma-2-2b/", long), controls=ALL_CONTROLS,
        judged=True, seeds=(3, 4),
    )  # fmt: skip
    made = unsaved_figures(monkeypatch)
    write_figures(alone, progress=untold)
    write_figures(beside, progress=untold)
    assert len(made) == 4 + 6
    for figure in made:
        figure.canvas.draw()
        title = figure._suptitle
        assert "A: gemma-2-2b, B: pythia-160m-deduped-v0-with-a-long-name" in title.get_text()
        shown_axes = [ax for ax in figure.axes if ax.get_title(loc="left")]
        hatching = any(hatched_cells(ax) for ax in shown_axes)
        assert not hatching or "hatched: q ≥ 0.05" in title.get_text()
        inside = figure.bbox.padded(1)
        assert inside.containsx(title.get_window_extent().x0)
        assert inside.containsx(title.get_window_extent().x1)
        assert inside.containsy(title.get_window_extent().y1)
        above = [title, *figure.legends]
        lowest = min(artist.get_window_extent().y0 for artist in above)
        boxes = [ax.get_tightbbox() for ax in shown_axes]
        boxes += [text.get_window_extent() for text in figure.texts if text is not title]
        for box in boxes:
            assert box.y1 < lowest
            assert inside.containsx(box.x0)
            assert inside.containsx(box.x1)
            assert inside.containsy(box.y0)
        for first in range(len(boxes)):
            for second in range(first):
                assert not boxes[first].overlaps(boxes[second]), title.get_text()
        for legend in figure.legends:
            assert legend.get_window_extent().y1 <= title.get_window_extent().y0 + 1
            assert inside.containsx(legend.get_window_extent().x1)


# Correlations and controls -----------------------------------------------------------------------


def test_each_correlation_has_a_row_with_its_controls_on_one_range_of_colours(
    controlled: Run,
) -> None:
    sheet = correlation_sheets(controlled)[0]
    assert sheet.row_names == ("plain", "within-token", "held-out")
    columns = ("mean_correlation", "mean_within_token", "held_out_correlation")
    for row, column in zip(sheet.rows, columns, strict=True):
        names = [panel.title.split(":")[0] for panel in row]
        difference = "trained - untrained"
        assert names == ["trained", "untrained", "document shift", difference, "A with itself"]
        assert len({id(panel.norm) for panel in row}) == 1
        trained, untrained, shift = (
            controlled.grid(column, control=c) for c in ("trained", "untrained", "document_shift")
        )
        ceiling = controlled.grid(column, control="seed_a")
        expected = [trained, untrained, shift, trained - untrained, ceiling]
        for panel, grid in zip(row, expected, strict=True):
            pd.testing.assert_frame_equal(panel.grid, grid)
            mean = f"{grid.to_numpy().mean():z.2f}".replace("0.", ".", 1)
            assert panel.title.endswith(f": {mean}")
            assert panel.digits == 2
        values = np.concatenate([grid.to_numpy().ravel() for grid in expected])
        assert row[0].norm.vmax == values.max()
        assert row[0].norm.vmin == min(values.min(), 0)
        assert {panel.x_label for panel in row[:4]} == {"layer of B"}
        assert (row[4].y_label, row[4].x_label) == ("layer of A", "layer of A, other SAEs")


def test_within_token_sets_trained_apart_in_colour_where_plain_does_not(controlled: Run) -> None:
    plain, within, _ = correlation_sheets(controlled)[0].rows
    share = [row[3].norm(row[3].grid.to_numpy().mean()) for row in (plain, within)]
    assert share[0] < 0.2
    assert share[1] > 0.4


def test_kept_pairs_have_a_figure_of_their_own_with_their_number(controlled: Run) -> None:
    sheet = correlation_sheets(controlled)[1]
    assert sheet.name == "correlation_kept_one_to_one"
    assert sheet.row_names == ("plain", "within-token", "held-out", "number kept")
    *_, numbers = sheet.rows
    pd.testing.assert_frame_equal(numbers[0].grid, controlled.grid("n_kept").astype(float))
    kept = controlled.grid("mean_correlation_kept")
    pd.testing.assert_frame_equal(sheet.rows[0][0].grid, kept)
    assert numbers[0].title == f"trained: {numbers[0].grid.to_numpy().mean():.0f}"


def test_without_controls_the_correlations_stand_in_one_row_on_one_range_of_colours(
    drawn: Run,
) -> None:
    every, kept = correlation_sheets(drawn)
    assert [p.title.split(":")[0] for p in every.rows[0]] == ["plain", "within-token", "held-out"]
    assert len(every.rows) == len(kept.rows) == 1
    assert every.row_names == ()
    assert len({id(panel.norm) for panel in every.rows[0]}) == 1
    assert len({id(panel.norm) for panel in kept.rows[0][:3]}) == 1
    assert every.rows[0][0].norm.vmin == 0
    assert every.rows[0][0].norm.vmax == every.rows[0][0].grid.to_numpy().max()
    numbers = kept.rows[0][3]
    assert numbers.norm.vmax == numbers.grid.to_numpy().max() == 111


def test_a_control_that_was_not_run_has_no_place_in_a_figure(tmp_path: Path) -> None:
    run = made_run(tmp_path, controls=("document_shift", "seed_b"), matchings=("one_to_one",))
    row = correlation_sheets(run)[0].rows[0]
    assert [p.title.split(":")[0] for p in row] == ["trained", "document shift", "B with itself"]
    assert (row[2].y_label, row[2].x_label) == ("layer of B", "layer of B, other SAEs")
    assert list(row[2].grid.index) == [0, 1, 10]
    assert not any("minus" in column for sheet in sheets_of(run) for column in sheet.table)


def test_a_difference_stands_only_where_both_were_compared(tmp_path: Path) -> None:
    run = made_run(tmp_path, controls=("untrained", "seed_a"), matchings=("one_to_one",))
    cells = run.cells
    gone = (cells["control"] == "untrained") & (cells["layer_b"] == 10)
    cells.loc[gone, ["mean_correlation", "held_out_correlation"]] = np.nan
    write_table(cells, tmp_path / "cells.parquet")
    sheet = correlation_sheets(run)[0]
    difference = sheet.rows[0][2]
    assert difference.title.startswith("trained - untrained")
    assert difference.grid[10].isna().all()
    assert difference.grid[[0, 1]].notna().all(axis=None)
    told = sheet.table["mean_correlation_minus_untrained"]
    assert told.notna().sum() == 4
    assert told[sheet.table["control"] != "trained"].isna().all()


def test_a_measure_has_a_figure_with_all_its_controls_beside_the_strictest_null(
    controlled: Run,
) -> None:
    sheet = {sheet.name: sheet for sheet in measure_sheets(controlled)}["controls_rsa_one_to_one"]
    assert sheet.row_names == ("score", "calibrated")
    assert set(sheet.table["null"]) == {"rate_matched"}
    for row, value in zip(sheet.rows, ("score", "calibrated"), strict=True):
        trained, untrained, shift, difference, of_a, of_b = row
        assert len({id(panel.norm) for panel in row}) == 1
        for panel, control in (
            (trained, "trained"),
            (untrained, "untrained"),
            (shift, "document_shift"),
            (of_a, "seed_a"),
            (of_b, "seed_b"),
        ):
            grid = controlled.grid("rsa", value, control=control)
            pd.testing.assert_frame_equal(panel.grid, grid)
            weak = ~(controlled.grid("rsa", "q", control=control) < 0.05)
            pd.testing.assert_frame_equal(panel.hatched, weak)
        pd.testing.assert_frame_equal(difference.grid, trained.grid - untrained.grid)
        assert difference.hatched is None
    assert [p.y_label for p in sheet.rows[0]] == ["layer of A"] * 5 + ["layer of B"]


def test_without_controls_no_figure_is_named_after_them(drawn: Run) -> None:
    assert [sheet.name for sheet in measure_sheets(drawn)] == ["rsa_one_to_one"]


def test_the_figure_of_a_measure_shows_no_control(controlled: Run) -> None:
    sheet = measure_sheets(controlled)[0]
    assert sheet.name == "rsa_one_to_one"
    assert set(sheet.table["control"]) == {"trained"}
    pd.testing.assert_frame_equal(sheet.rows[1][0].grid, controlled.grid("rsa"))


def test_the_overview_tells_how_far_trained_is_above_untrained(controlled: Run) -> None:
    sheet = overview_sheets(controlled)[0]
    for row, measure in zip(sheet.rows, ("rsa", "svcca"), strict=True):
        assert [panel.title for panel in row] == [
            measure, "chance", "calibrated", "calibrated, trained - untrained",
        ]  # fmt: skip
        of = (controlled.grid(measure, "calibrated", control=c) for c in ("trained", "untrained"))
        pd.testing.assert_frame_equal(row[3].grid, next(of) - next(of))
        assert len({id(panel.norm) for panel in row}) == 1
        assert row[3].hatched is None
    assert set(sheet.table["control"]) == {"trained"}


# Verdicts ----------------------------------------------------------------------------------------


def test_verdicts_are_bars_of_shares_for_each_layer_of_both_models(controlled: Run) -> None:
    (sheet,) = verdict_sheets(controlled)
    assert [[bars.title for bars in row] for row in sheet.rows] == [
        [f"{model}, {what}" for what in ("trained", "untrained", "decoy: itself, other SAEs")]
        for model in ("A", "B")
    ]
    groups = dict(iter(controlled.verdicts.groupby(["model", "control", "against"])))
    for row, model, layers in zip(sheet.rows, ("a", "b"), ([0, 1], [0, 1, 10]), strict=True):
        for bars, (control, against) in zip(row, SHARES, strict=True):
            assert list(bars.shares.index) == layers
            rows = groups[model, control, against]
            for layer, shares in bars.shares.iterrows():
                found = rows.loc[rows["layer"] == layer, "verdict"]
                for verdict in VERDICTS:
                    assert shares[verdict] == (found == verdict).mean()
    told = [text for _, text in sheet.legend]
    assert [text.split(":")[0].replace("-", "_") for text in told] == list(VERDICTS)
    assert "fewer than 50 documents" in told[3]


def test_of_several_runs_the_mean_shares_are_shown(tmp_path: Path) -> None:
    run = made_run(tmp_path, seeds=(3, 4), judged=True)
    (sheet,) = verdict_sheets(run)
    bars = sheet.rows[0][0]
    rows = run.verdicts.query("model == 'a' and layer == 1")
    for verdict in VERDICTS:
        by_run = (rows["verdict"] == verdict).groupby(rows["run"]).mean()
        assert bars.shares.loc[1, verdict] == pytest.approx(by_run.mean())
    assert len(sheet.rows[0]) == 1


def test_without_verdicts_there_is_no_figure_of_them(drawn: Run) -> None:
    assert verdict_sheets(drawn) == []


def test_bars_fill_their_whole_width_and_tell_percentages_where_there_is_room() -> None:
    shares = pd.DataFrame({"x": [0.5, 1.0], "y": [0.495, 0.0], "z": [0.005, 0.0]}, index=[3, 7])
    ax = Figure(dpi=100).add_subplot()
    draw_bars(ax, Bars(title="A", shares=shares, colours=("black", "white", "red"), y_label="l"))
    ends = {round(bar.get_x() + bar.get_width(), 9) for bar in ax.patches[4:]}
    assert ends == {1.0}
    assert [text.get_text() for text in ax.texts] == ["50", "100", "50"]
    assert [text.get_color() for text in ax.texts] == ["white", "white", "black"]
    # Layer 3 stands below layer 7: depth grows upwards, as in the heat maps.
    assert [text.get_text() for text in ax.get_yticklabels()] == ["3", "7"]
    assert ax.get_ylim() == (-0.5, 1.5)


def test_the_colours_of_verdicts_stand_apart_for_colour_blind_readers_too() -> None:
    # Brettel's and Vienot's projections for red- and green-blind eyes, on linear light.
    blind = {
        "red": [[0.109, 0.891, 0], [0.109, 0.891, 0], [0.004, -0.004, 1]],
        "green": [[0.294, 0.706, 0], [0.294, 0.706, 0], [-0.022, 0.022, 1]],
    }
    for projection in (np.eye(3), *(np.array(m) for m in blind.values())):
        seen = [projection @ linear_light(c) for c in figures.VERDICT_COLOURS.values()]
        for x, y in itertools.combinations(seen, 2):
            assert np.linalg.norm(x - y) > 0.2


# Panels ------------------------------------------------------------------------------------------


def test_score_null_mean_and_calibrated_score_have_one_range_of_colours(drawn: Run) -> None:
    rows = measure_panels(drawn.summary, "rsa", 999)
    assert [[panel.title for panel in row] for row in rows] == [
        ["rsa", "mean, shuffle null", "calibrated", "p, shuffle null"],
        ["rsa", "mean, rate-matched null", "calibrated", "p, rate-matched null"],
    ]
    shared = [panel for row in rows for panel in row[:3]]
    values = np.concatenate([panel.grid.to_numpy().ravel() for panel in shared])
    assert len({id(panel.norm) for panel in shared}) == 1
    assert (shared[0].norm.vmin, shared[0].norm.vmax) == (min(values.min(), 0), values.max())
    for row in rows:
        assert isinstance(row[3].norm, LogNorm)
        assert (row[3].norm.vmin, row[3].norm.vmax) == (1 / 1000, 1)


def test_the_panels_of_a_measure_hold_the_score_null_mean_calibrated_score_and_p(
    drawn: Run,
) -> None:
    rows = measure_panels(drawn.summary, "rsa", 999)
    for row, null in zip(rows, ("shuffle", "rate_matched"), strict=True):
        for panel, value in zip(row, ("score", "null_mean", "calibrated", "p"), strict=True):
            expected = drawn.grid("rsa", value, null=null)
            pd.testing.assert_frame_equal(panel.grid, expected)


def test_in_the_overview_each_measure_has_a_range_of_colours_of_its_own(tmp_path: Path) -> None:
    run = made_run(tmp_path, nulls=("shuffle",), matchings=("one_to_one",))
    changed(run, "measure == 'svcca'", score=0.02, null_mean=0.01, calibrated=0.0101)
    rsa, svcca = overview_panels(run.summary)
    assert [panel.title for panel in svcca] == ["svcca", "chance", "calibrated"]
    for row in (rsa, svcca):
        assert len({id(panel.norm) for panel in row}) == 1
    assert svcca[0].norm.vmax == 0.02
    assert rsa[0].norm.vmax == rsa[0].grid.to_numpy().max()
    for panel, value in zip(rsa, ("score", "null_mean", "calibrated"), strict=True):
        pd.testing.assert_frame_equal(panel.grid, run.grid("rsa", value))


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
    shuffle, matched = measure_panels(run.summary, "rsa", 999)
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
    assert len(write_figures(run, progress=untold)) == 4


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
    for colours in (panels.SCORE_COLOURS, panels.P_COLOURS):
        ax = axes_of(Panel(title="x", grid=grid, norm=Normalize(0, 1), colours=colours))
        for text, cell in zip(ax.texts, mpl.colormaps[colours](grid.to_numpy()[0]), strict=True):
            ink = luminance(mpl.colors.to_rgb(text.get_color()))
            bright, dark = sorted((ink, luminance(tuple(cell[:3]))), reverse=True)
            assert (bright + 0.05) / (dark + 0.05) > 3, cell


def luminance(colour: tuple[float, ...]) -> float:
    """Of the WCAG's definition of contrast."""
    return float(np.dot([0.2126, 0.7152, 0.0722], linear_light(colour)))


def linear_light(colour: Any) -> np.ndarray:
    """Of an sRGB colour."""
    c = np.array(mpl.colors.to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


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


def squeezed(text: str) -> str:
    """Without blanks: a table's columns may be wide or narrow."""
    return "".join(text.split())


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
        controls=ALL_CONTROLS,
        metrics=("pearson", "within_token"),
        judged=True,
    )
    changed(run, "run == 0", n_pairs=24576)
    text = rendered(overview(run))
    assert max(len(line.rstrip()) for line in text.splitlines()[1:]) <= 80
    found = run.summary if len(seeds) > 1 else run.scores
    found = found.query("control == 'trained' and metric == 'pearson'")
    for (matching, null, measure), group in found.groupby(["matching", "null", "measure"]):
        best = group.loc[group["calibrated"].idxmax()]
        title = f"Where the models are most alike: {matching}, {null} null\n"
        rows = text.split(title)[1].split("\n\n")[0]
        last = f"{best['score_sd']:.3f}" if len(seeds) > 1 else str(best["n_pairs"])
        numbers = (
            f"{(group['q'] < 0.05).sum()}/288 {best['layer_a']}, {best['layer_b']} "
            f"{best['score']:z.3f} {best['null_mean']:z.3f} {best['calibrated']:z.3f} "
            f"{best['p']:.2g} {last}"
        )
        # The last line of a measure's name stands beside its numbers.
        assert squeezed(f"{measure} {numbers}") in squeezed(rows)


def test_the_overview_of_a_small_run_reads_so(tmp_path: Path) -> None:
    run = made_run(
        tmp_path, layers_a=(1, 4), layers_b=(5,), measures=("rsa",), matchings=("one_to_one",),
        nulls=("shuffle",), warnings=["1 of 2 cells kept fewer than 3 pairs"],
    )  # fmt: skip
    common = {"p": 0.001, "q": 0.002, "n_pairs": 380}
    changed(run, "layer_a == 4", score=0.25, null_mean=-0.0001, calibrated=0.25, **common)
    nothing = dict.fromkeys(("score", "null_mean", "p", "q", "calibrated"), np.nan)
    changed(run, "layer_a == 1", **nothing)
    cells = run.cells.assign(
        mean_correlation=0.5, mean_within_token=0.25,
        held_out_correlation=[0.4, 0.3], held_out_low=[0.39, 0.2], held_out_high=[0.41, 0.4],
        held_out_correlation_kept=0.5, held_out_kept_low=np.nan, held_out_kept_high=np.nan,
    )  # fmt: skip
    write_table(cells, tmp_path / "cells.parquet")
    write_table(run.agreement[:0], tmp_path / "agreement.parquet")
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
        "within-token correlation, one_to_one\n"
        "A \\ B      5\n"
        "    1  0.250\n"
        "    4  0.250\n"
        "\n"
        "held-out correlation, one_to_one\n"
        "A \\ B      5\n"
        "    1  0.400\n"
        "    4  0.300\n"
        "peak 1, 5: held-out .400 [.390, .410], of kept pairs .500\n"
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


def table_below(text: str, title: str) -> str:
    """What stands between a title and the next empty line."""
    return text.split(f"{title}\n")[1].split("\n\n")[0]


def test_trained_models_stand_beside_their_controls(tmp_path: Path) -> None:
    run = made_run(
        tmp_path, controls=("untrained", "seed_a"), measures=("rsa",), matchings=("one_to_one",)
    )
    changed(run, "control == 'trained'", score=0.25, q=0.01)
    changed(run, "control == 'trained' and layer_a == 1 and layer_b == 10", score=0.5)
    changed(run, "control == 'untrained'", score=-0.002, q=0.2)
    changed(run, "null == 'shuffle'", score=0.9, q=0.001)
    changed(run, "control == 'seed_a'", score=np.nan, q=np.nan)
    cells = run.cells
    for control, plain in (("trained", 0.36), ("untrained", 0.33), ("seed_a", np.nan)):
        cells.loc[cells["control"] == control, "mean_correlation"] = plain
    write_table(cells, tmp_path / "cells.parquet")
    text = rendered(overview(run))
    title = "Trained against controls: one_to_one, rate_matched null"
    means = table_below(text, title).splitlines()
    within = [
        f".{1000 * run.grid('mean_within_token_kept', control=c).to_numpy().mean():03.0f}"
        for c in ("trained", "untrained", "seed_a")
    ]
    assert means[0].split() == ["A", "with"]
    assert means[1].split() == ["mean", "over", "cells", "trained", "untrained", "itself"]
    assert means[2].split() == ["plain,", "all", "pairs", ".360", ".330", "-"]
    assert means[5].split() == ["within-token,", "kept", "pairs", *within]
    assert [line.split(",")[0] for line in means[2:]] == [
        "plain", "plain", "within-token", "within-token", "held-out", "held-out",
    ]  # fmt: skip
    ranges = text.split(title)[1].split("\n\n")[1].splitlines()
    assert ranges[2].split() == [".250", "to", ".500", "-.002", "to", "-.002", "none"]
    assert ranges[3].split() == ["rsa", "6/6", "0/6", "0/4"]


def test_without_controls_nothing_is_held_against_them(drawn: Run) -> None:
    assert "controls" not in rendered(overview(drawn))


def test_shares_of_verdicts_are_told_with_their_range_over_layers(tmp_path: Path) -> None:
    run = made_run(tmp_path, controls=("seed_a",), matchings=("one_to_one",))
    told = {"run": 0, "model": "a", "control": "trained", "against": "other"}
    features = pd.DataFrame(
        {
            "layer": [0] * 4 + [1] * 8,
            "verdict": ["shared"] * 2 + ["only"] * 2 + ["shared"] * 6 + ["only", "one_sided"],
            "replicated": pd.array([pd.NA] * 2 + [True, False] + [pd.NA] * 6 + [True, pd.NA]),
        }
    ).assign(**told)
    decoy = features.assign(against="decoy", verdict="shared", replicated=pd.NA)
    decoy["replicated"] = decoy["replicated"].astype("boolean")
    write_table(pd.concat([features, decoy]), tmp_path / "verdicts.parquet")
    table = table_below(rendered(overview(run)), "decoy: the same model, other SAEs").splitlines()
    assert table[1].split() == [
        "shared", "one-sided", "only", "unclear", "features", "replicated",
    ]  # fmt: skip
    assert table[2].split() == [
        "A,", "trained", "67", "(50-75)", "8", "(0-12)", "25", "(12-50)", "0", "(0-0)", "12", "67%",
    ]  # fmt: skip
    assert table[3].split() == [
        "A,", "decoy", "100", "(100-100)", "0", "(0-0)", "0", "(0-0)", "0", "(0-0)", "12", "-",
    ]  # fmt: skip
    assert len(table) == 4


def test_without_verdicts_nothing_is_said_of_features(drawn: Run) -> None:
    assert "Features" not in rendered(overview(drawn))


def test_agreement_is_told_by_kind_with_its_intervals(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    nothing = {"difference_low": np.nan, "difference_high": np.nan}
    rows = [
        {
            "kind": "texts", "measure": "rsa", "x": "half 1", "y": "half 2", "spearman": 0.934,
            "low": 0.8, "high": 1.0, "mean_difference": -0.0312, "difference_low": -0.05,
            "difference_high": 0.0101,
        },
        {
            "kind": "measures", "measure": "rsa, svcca", "x": "rsa", "y": "svcca",
            "spearman": -0.5, "low": np.nan, "high": np.nan, "mean_difference": np.nan, **nothing,
        },
    ]  # fmt: skip
    agreement = pd.DataFrame(rows).assign(matching="one_to_one", n_cells=6)
    write_table(agreement, tmp_path / "agreement.parquet")
    text = rendered(overview(run))
    table = table_below(text, "Do the grids agree, cell by cell: one_to_one").splitlines()
    assert [" ".join(line.split()) for line in table] == [
        "Spearman difference",
        "[95 %] [95 %]",
        "texts",
        "rsa: half 1, half 2 .93 [.80, 1.00] -.031 [-.050, .010]",
        "measures",
        "rsa, svcca -.50 -",
    ]
    assert "cell by cell: many_to_one" not in text


def test_the_decoy_is_explained_only_where_there_is_one(tmp_path: Path) -> None:
    assert "decoy" not in rendered(overview(made_run(tmp_path, judged=True)))


def test_the_peak_of_the_held_out_correlation_has_its_interval_for_each_seed(
    tmp_path: Path,
) -> None:
    run = made_run(tmp_path, seeds=(3, 4), matchings=("one_to_one",), controls=("seed_a",))
    text = rendered(overview(run))
    for index, seed in enumerate((3, 4)):
        rows = run.cells.query(f"control == 'trained' and run == {index}")
        peak = rows.loc[rows["held_out_correlation"].idxmax()]
        told = {name: f"{peak[name]:.3f}"[1:] for name in peak.index if name.startswith("held_out")}
        assert (
            f"seed {seed}, peak {peak['layer_a']}, {peak['layer_b']}: held-out "
            "{held_out_correlation} [{held_out_low}, {held_out_high}], of kept pairs "
            "{held_out_correlation_kept} [{held_out_kept_low}, {held_out_kept_high}]\n"
        ).format(**told) in text


def test_a_run_whose_halves_show_nothing_has_no_peak(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    write_table(run.cells.assign(held_out_correlation=np.nan), tmp_path / "cells.parquet")
    assert "peak " not in rendered(overview(run)).split("held-out correlation")[1]


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


def test_of_several_runs_tables_tell_means_and_the_spread(tmp_path: Path) -> None:
    run = made_run(tmp_path, measures=("rsa",), matchings=("one_to_one",), seeds=(3, 4))
    peak = "layer_a == 1 and layer_b == 10"
    changed(run, f"run == 0 and {peak}", calibrated=0.9, score=0.7)
    changed(run, f"run == 1 and {peak}", calibrated=0.8, score=0.8)
    text = rendered(overview(run))
    assert "2,000 tokens in each of 2 runs" in text
    assert "Scores and grids are means over 2 runs." in text
    assert text.count("1, 10 0.750") == 2
    assert text.count("0.850") == 2
    assert text.count("0.071") == 2  # the standard deviation of .7 and .8
    assert text.split("rsa, one_to_one\n")[1].splitlines()[2].split()[-1] in ("0.750", "(0.750)")
    cells = run.cells.query(peak)["mean_correlation"]
    grid = table_below(text, "mean correlation, one_to_one").splitlines()
    assert grid[2].split()[-1] == f"{cells.mean():.3f}"
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


def test_a_terminal_shows_grids_in_the_colours_of_the_figures_and_a_file_none() -> None:
    grid = pd.DataFrame([[0.0, 0.2], [0.4, np.nan]], index=[1, 2], columns=[3, 4])
    shown = []
    for colours in ("truecolor", None):
        console = Console(
            file=StringIO(), force_terminal=colours is not None, color_system=colours, width=80
        )
        for part in grid_tables(grid, title="t"):
            console.print(part)
        shown.append(console.file.getvalue())
    coloured, plain = shown
    least, most = (mpl.colormaps["cividis"](value) for value in (0.0, 1.0))
    for colour in (least, most):
        rgb = ";".join(str(int(255 * part)) for part in colour[:3])
        assert f"48;2;{rgb}" in coloured
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured).split() == plain.split()
