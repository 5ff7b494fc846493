"""What is shown of semantic subspaces, from tables of known numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from saelign.errors import UnknownNameError
from saelign.panels import Panel, write_sheet
from saelign.report import subspace_overview, subspace_table, write_subspace_tables
from saelign.report.subspaces import span, subspace_sheets
from saelign.results import Run

LAYERS = ((1, 1), (1, 4), (3, 1), (3, 4))
SUBSPACES = {
    "Emotions": "concept",
    "Time": "concept",
    "Emotions + Time": "union",
    "Emotions Time": "phrase",
    "Time Emotions": "wrong_order",
    "Emotions alone": "alone",
}
MEASURES, NULLS = ("rsa", "cka"), ("shuffle", "rate_matched", "same_size")


def score_of(subspace: str, layers: tuple[int, int], measure: str) -> float:
    """Another number for each; `Time` has no score on the last layer pair."""
    if subspace == "Time" and layers == (3, 4):
        return np.nan
    place = list(SUBSPACES).index(subspace)
    return 0.1 * place + 0.01 * LAYERS.index(layers) + 0.5 * (measure == "cka")


def small_p(subspace: str, control: str, null: str) -> bool:
    return subspace == "Emotions" and control == "trained" and null != "same_size"


def tables() -> dict[str, pd.DataFrame]:
    keys = [
        {
            "control": control, "run": 0, "metric": "pearson", "layer_a": a, "layer_b": b,
            "matching": "one_to_one", "subspace": subspace, "kind": kind,
        }
        for control in ("trained", "untrained")
        for a, b in LAYERS
        for subspace, kind in SUBSPACES.items()
    ]  # fmt: skip
    scores = [
        {
            **key,
            "measure": measure,
            "null": null,
            "score": score_of(key["subspace"], (key["layer_a"], key["layer_b"]), measure),
            "null_mean": 0.25,
            "p": 0.001 if small_p(key["subspace"], key["control"], null) else 0.5,
            "q": 0.002 if small_p(key["subspace"], key["control"], null) else 0.5,
            "calibrated": 0.0,
            "n_pairs": 12,
            "combined": "above parts" if key["kind"] == "union" else "",
        }
        for key in keys
        for measure in MEASURES
        for null in NULLS
    ]
    frame = pd.DataFrame(scores)
    frame.loc[frame["score"].isna(), ["null_mean", "p", "q", "calibrated"]] = np.nan
    cells = [{**key, "n_kept": 12 + key["layer_b"], "mean_correlation": 0.3} for key in keys]
    features = [
        {
            "run": 0, "model": model, "layer": layer, "subspace": name, "kind": kind,
            "n_by_top_words": 10 + layer, "n_by_mass": 1, "n_occurrences": 1234,
        }
        for model in ("a", "b", "a_untrained", "b_untrained")
        for layer in (1, 3)
        for name, kind in SUBSPACES.items()
    ]  # fmt: skip
    return {
        "subspace_scores": frame,
        "subspaces": pd.DataFrame(cells),
        "subspace_features": pd.DataFrame(features),
    }


@pytest.fixture
def run(tmp_path: Path) -> Run:
    for name, table in tables().items():
        table.to_parquet(tmp_path / f"{name}.parquet")
    empty = pd.DataFrame({"control": [], "subspace": []})
    for name in ("cells", "scores"):
        empty.to_parquet(tmp_path / f"{name}.parquet")
    info = {"seeds": [0], "metrics": ["pearson"], "concepts": {"Emotions": {}, "Time": {}}}
    (tmp_path / "run.json").write_text(json.dumps(info))
    return Run(tmp_path, info)


def printed(parts: list[Any], width: int = 100) -> str:
    console = Console(width=width, soft_wrap=True, highlight=False)
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return capture.get()


def line_of(text: str, start: str, after: str = "") -> list[str]:
    lines = text[text.index(after) :].splitlines()
    return next(line for line in lines if line.startswith(start))[len(start) :].split()


def test_a_run_without_subspaces_shows_nothing_of_them(tmp_path: Path) -> None:
    without = Run(tmp_path, {"seeds": [0], "metrics": ["pearson"], "concepts": {}})
    assert subspace_overview(without) == []
    assert subspace_sheets(without) == []
    assert write_subspace_tables(without) == []
    assert not list(tmp_path.iterdir())


def test_sizes_are_told_as_ranges_over_layers_in_both_ways(run: Run) -> None:
    text = printed(subspace_overview(run))
    assert line_of(text, "Emotions") == ["11-13", "|", "1"] * 4 + ["1,234"]


@pytest.mark.parametrize(
    ("values", "told"), [([3, 5, 4], "3-5"), ([2, 2], "2"), ([None, 7], "7"), ([], "-")]
)
def test_a_range_of_one_number_is_that_number(values, told):
    assert span(pd.Series(values, dtype=float)) == told


def test_layer_pairs_that_beat_chance_are_counted_beside_both_nulls_and_twins(run: Run) -> None:
    text = printed(subspace_overview(run))
    part = text[text.index("Concepts, one_to_one") :]
    assert line_of(part, "Emotions") == ["13-16", "4,", "0/4", "4,", "0/4"]
    lines = part.splitlines()
    below = lines[[line.startswith("Emotions") for line in lines].index(True) + 1]
    assert below.split() == ["13-16", "0,", "0/4", "0,", "0/4"]
    assert line_of(part, "Time") == ["13-16", "0,", "0/3", "0,", "0/3"]


def test_small_p_values_of_all_subspaces_are_told_together(run: Run) -> None:
    text = printed(subspace_overview(run))
    # 4 of 7 scores of concepts: Emotions has them on all layer pairs, Time none on its three.
    assert line_of(text, "Concepts, trained") == ["57,", "0", "57,", "0"]
    assert line_of(text, "Concepts, untrained") == ["0,", "0", "0,", "0"]


def test_what_is_combined_is_counted_by_what_it_is_above(run: Run) -> None:
    text = printed(subspace_overview(run))
    assert line_of(text, "Emotions + Time: rsa") == ["0", "0", "4", "0", "0"]


def test_the_overview_fits_a_narrow_terminal(run: Run) -> None:
    widest = max(map(len, printed(subspace_overview(run), 80).splitlines()))
    titles = [line for line in printed(subspace_overview(run)).splitlines() if "one_to_one" in line]
    assert widest <= max(80, *map(len, titles))


def test_the_papers_table_has_a_row_a_subspace_and_layer_pair(run: Run) -> None:
    table = subspace_table(run, matching="one_to_one")
    assert len(table) == 2 * len(LAYERS) * len(SUBSPACES)
    row = table[
        (table["control"] == "trained")
        & (table["subspace"] == "Emotions + Time")
        & (table["layer_a"] == 3)
        & (table["layer_b"] == 1)
    ].iloc[0]
    assert row["rsa_score"] == pytest.approx(0.22)
    assert row["cka_score"] == pytest.approx(0.72)
    assert row["rsa_null_mean"] == 0.25
    assert row["rsa_q"] == 0.5
    assert list(dict.fromkeys(table["subspace"])) == list(SUBSPACES)


def test_the_table_of_another_null_is_had_by_name(run: Run) -> None:
    table = subspace_table(run, matching="one_to_one", null="same_size")
    assert (table.loc[table["subspace"] == "Emotions", "rsa_p"] == 0.5).all()


def test_tables_are_written_as_csv_and_markdown(run: Run) -> None:
    (path,) = write_subspace_tables(run)
    assert len(pd.read_csv(path)) == 2 * len(LAYERS) * len(SUBSPACES)
    lines = path.with_suffix(".md").read_text().splitlines()
    assert lines[0] == "| layers A, B | subspace | pairs | rsa | cka |"
    assert "| 1, 4 | Emotions | 12 | .010 (.250) 0.002 | .510 (.250) 0.002 |" in lines
    # A row for each score there is: one of 24 has none.
    assert len(lines) == 2 + len(LAYERS) * len(SUBSPACES) - 1


def test_heat_maps_show_subspaces_by_layer_of_b_and_layer_by_layer(run: Run) -> None:
    sheets = {sheet.name: sheet for sheet in subspace_sheets(run)}
    assert set(sheets) == {
        f"{part}_{measure}_one_to_one{ending}"
        for part in ("concepts", "unions", "phrases")
        for measure in MEASURES
        for ending in ("", "_grids")
    }
    by_layer = sheets["concepts_rsa_one_to_one"].rows
    assert [panel.title for panel in by_layer[0]] == ["layer 1 of A", "layer 3 of A"]
    first = by_layer[0][0]
    assert isinstance(first, Panel)
    assert list(first.grid.index) == ["Time", "Emotions"]  # rows grow upwards: Emotions on top
    assert first.grid.loc["Emotions", 4] == pytest.approx(0.01)
    assert not first.hatched.loc["Emotions"].any()
    assert first.hatched.loc["Time"].all()
    grids = sheets["phrases_cka_one_to_one_grids"].rows
    assert [panel.title for panel in grids[0]] == [
        "Emotions Time", "Time Emotions", "Emotions alone",
    ]  # fmt: skip
    assert grids[0][1].grid.loc[3, 1] == pytest.approx(0.92)


def test_every_heat_map_can_be_drawn_and_names_its_rows(run: Run, tmp_path: Path) -> None:
    for sheet in subspace_sheets(run):
        path = write_sheet(tmp_path / "figures", sheet, "")
        assert path.stat().st_size > 5000
        if not sheet.name.endswith("_grids"):
            svg = path.with_suffix(".svg")
            assert svg.stat().st_size > 5000
            assert sheet.margin > 0.5  # room for the names
            assert pd.read_csv(path.with_suffix(".csv"))["subspace"].nunique() > 0


def test_a_grid_of_a_subspace_is_had_by_name(run: Run) -> None:
    grid = run.grid("rsa", subspace="Emotions + Time")
    assert grid.loc[3, 4] == pytest.approx(0.23)
    assert run.grid("rsa", "p", subspace="Emotions", null="same_size").loc[1, 1] == 0.5
    assert run.grid("n_kept", subspace="Time", control="untrained").loc[1, 4] == 16


def test_a_grid_of_an_unknown_subspace_names_the_nearest(run: Run) -> None:
    told = r"unknown subspace of this run 'Emotion' \(did you mean 'Emotions'\?\)"
    with pytest.raises(UnknownNameError, match=told):
        run.grid("rsa", subspace="Emotion")
