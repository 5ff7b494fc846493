"""Figures for a paper, and what a notebook shows of a run."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from saelign.errors import MissingFileError, UnknownNameError
from saelign.plots import WIDTHS, as_svg
from saelign.results import Run, write_table

LAYERS_A, LAYERS_B, SEEDS = (1, 3, 5), (0, 2, 4, 6), (0, 1)
CONCEPTS = ("Emotions", "Time")


def score_of(i: int, j: int, run: int) -> float:
    return 0.4 - 0.05 * abs(LAYERS_A.index(i) - 1) - 0.04 * abs(LAYERS_B.index(j) - 2) + 0.02 * run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    rng = np.random.default_rng(0)
    cells = [(i, j) for i in LAYERS_A for j in LAYERS_B]
    about = {"control": "trained", "metric": "pearson", "matching": "one_to_one"}
    scores, kept, draws = [], [], []
    for seed in range(len(SEEDS)):
        for i, j in cells:
            kept.append({**about, "run": seed, "layer_a": i, "layer_b": j, "n_kept": 10 * i + j})
            score = score_of(i, j, seed)
            scores.append(
                {
                    **about, "run": seed, "layer_a": i, "layer_b": j, "subspace": "all",
                    "measure": "rsa", "null": "rate_matched", "score": score, "null_mean": 0.1,
                    "p": 0.01, "q": 0.2 if j == 0 else 0.02, "calibrated": (score - 0.1) / 0.9,
                }
            )  # fmt: skip
            draws.append({**scores[-1], "draws": rng.normal(0.1, 0.03, 500).astype(np.float32)})
    table = pd.DataFrame(scores)
    by = ["control", "metric", "layer_a", "layer_b", "matching", "subspace", "measure", "null"]
    summary = table.groupby(by, sort=False)[["score", "null_mean", "q", "calibrated"]].mean()
    write_table(table, tmp_path / "scores.parquet")
    write_table(summary.reset_index().assign(p=0.005), tmp_path / "summary.parquet")
    write_table(pd.DataFrame(kept), tmp_path / "cells.parquet")
    write_table(pd.DataFrame(draws), tmp_path / "null_scores.parquet")
    concepts = [
        {
            **row, "subspace": name, "kind": "concept", "null": null,
            "q": 0.5 if name == "Time" else 0.01,
        }
        for row in scores
        for name in CONCEPTS
        for null in ("rate_matched", "same_size")
    ]  # fmt: skip
    write_table(pd.DataFrame(concepts), tmp_path / "subspace_scores.parquet")
    write_table(pd.DataFrame(concepts), tmp_path / "subspaces.parquet")
    info = {
        "name": "<b>name</b>", "seeds": list(SEEDS), "metrics": ["pearson"],
        "controls": ["trained"], "concepts": {"Emotions": {}, "Time": {}},
        "models": {"a": {"name": "left & right"}, "b": {"name": "B"}},
    }  # fmt: skip
    return Run(tmp_path, info)


def texts(figure: object) -> list[str]:
    svg = ET.fromstring(as_svg(figure))
    return ["".join(e.itertext()) for e in svg.iter() if e.tag.endswith("text")]


@pytest.mark.parametrize(("width", "inches"), [*WIDTHS.items(), (5.0, 5.0)])
def test_a_grid_is_as_wide_as_asked_and_saves_as_pdf_and_svg(
    run: Run, width: str | float, inches: float, tmp_path: Path
) -> None:
    figure = run.plot_grid("rsa", width=width)
    assert figure.get_size_inches()[0] == pytest.approx(inches)
    figure.savefig(tmp_path / "grid.pdf")
    figure.savefig(tmp_path / "grid.svg")
    assert (tmp_path / "grid.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "grid.svg").stat().st_size > 1000


def test_a_grid_shows_the_numbers_of_the_run_or_of_the_mean(run: Run) -> None:
    shown = texts(run.plot_grid("rsa"))
    means = [score_of(i, j, 0) + 0.01 for i in LAYERS_A for j in LAYERS_B]
    assert {f"{value:.2f}".lstrip("0") for value in means} <= set(shown)
    assert {"layer of A", "layer of B", "rsa"} <= set(shown)
    first = texts(run.plot_grid("rsa", run=0))
    assert f"{score_of(3, 4, 0):.2f}".lstrip("0") in first
    assert first != shown


def test_no_title_unless_asked(run: Run) -> None:
    assert "Mine" not in texts(run.plot_grid("rsa"))
    figure = run.plot_grid("rsa", title="Mine")
    assert "Mine" in texts(figure)
    assert figure.get_size_inches()[1] > run.plot_grid("rsa").get_size_inches()[1]


def test_cells_no_better_than_chance_are_hatched(run: Run) -> None:
    figure = run.plot_grid("rsa", "calibrated")
    hatched = [patch for patch in figure.axes[0].patches if patch.get_hatch()]
    assert sorted(patch.get_y() + 0.5 for patch in hatched) == [0, 1, 2]
    assert {patch.get_x() + 0.5 for patch in hatched} == {0}
    assert not [p for p in run.plot_grid("n_kept").axes[0].patches if p.get_hatch()]


def test_p_values_are_on_a_log_scale(run: Run) -> None:
    figure = run.plot_grid("rsa", "p")
    norm = figure.axes[0].images[0].norm
    assert type(norm).__name__ == "LogNorm"
    assert figure.axes[0].images[0].get_array().max() == pytest.approx(0.005)


def test_means_over_runs(run: Run) -> None:
    grid = run.grid("n_kept", run=None)
    assert grid.loc[3, 4] == 34
    assert run.grid("rsa", run=None).loc[3, 4] == pytest.approx(score_of(3, 4, 0) + 0.01)
    assert (run.grid("rsa", "p", run=None) == 0.005).all(axis=None)
    mean = run.grid("rsa", subspace="Time", run=None)
    assert mean.loc[3, 4] == pytest.approx(score_of(3, 4, 0) + 0.01)
    with pytest.raises(UnknownNameError, match=r"p of a mean over runs is not there"):
        run.grid("rsa", "p", subspace="Time", run=None)


def test_a_null_shows_its_shuffles_and_the_score(run: Run) -> None:
    figure = run.plot_null("rsa", 3, 4, run=1)
    ax = figure.axes[0]
    assert sum(bar.get_height() for bar in ax.patches) == 500
    edges = [bar.get_x() for bar in ax.patches]
    draws = run.null_scores.query("run == 1 and layer_a == 3 and layer_b == 4")["draws"].iloc[0]
    assert min(edges) == pytest.approx(min(draws))
    assert ax.lines[0].get_xdata()[0] == pytest.approx(score_of(3, 4, 1))
    assert any(re.fullmatch(r"rate-matched, 500 shuffles", text) for text in texts(figure))


def test_concepts_stand_in_order_with_weak_ones_hatched(run: Run) -> None:
    figure = run.plot_concepts("rsa", layer_a=3)
    ax = figure.axes[0]
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["Time", "Emotions"]  # from the bottom
    hatched = [patch.get_y() + 0.5 for patch in ax.patches if patch.get_hatch()]
    assert hatched == [0] * len(LAYERS_B)


def test_what_is_not_there_is_named(run: Run) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown width 'three', .*one, two"):
        run.plot_grid("rsa", width="three")
    with pytest.raises(UnknownNameError, match=r"more than 1 inch, got 0.5"):
        run.plot_grid("rsa", width=0.5)
    with pytest.raises(UnknownNameError, match=r"no layer_a 2, expected one of: 1, 3, 5"):
        run.plot_null("rsa", 2, 4)
    with pytest.raises(UnknownNameError, match=r"no layer_a 2, expected one of: 1, 3, 5"):
        run.plot_concepts("rsa", layer_a=2)
    with pytest.raises(UnknownNameError, match=r"unknown kind of this run 'union'"):
        run.plot_concepts("rsa", layer_a=3, kinds=("union",))
    (run.folder / "null_scores.parquet").unlink()
    with pytest.raises(MissingFileError, match=r"null_scores.parquet"):
        run.plot_null("rsa", 3, 4)
    run.info["concepts"] = {}
    with pytest.raises(UnknownNameError, match=r"looked into no semantic subspaces"):
        run.plot_concepts("rsa", layer_a=3)


def test_a_notebook_shows_a_table_and_a_grid_and_no_markup_of_names(run: Run) -> None:
    page = run._repr_html_()
    assert "&lt;b&gt;name&lt;/b&gt;" in page
    assert "left &amp; right" in page
    assert "<b>name" not in page
    assert page.count("<svg") == 1
    assert "<td>rsa</td>" in page
    assert f"<td>{score_of(3, 4, 0) + 0.01:.3f}</td>" in page
    ET.fromstring(re.sub(r"&\w+;", " ", page.replace(' border="0"', "")))  # well formed
