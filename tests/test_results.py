"""A run's folder: written whole or not at all, read back as it was, or refused with the way out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyarrow.parquet import ParquetFile

import test_report
from saelign.errors import (
    DamagedError,
    FormatError,
    MissingFileError,
    StorageError,
    UnknownNameError,
)
from saelign.results import (
    Run,
    features_name,
    open_run,
    pairs_name,
    write_info,
    write_table,
    written,
)


def made_run(folder: Path, **changes: Any) -> Run:
    """A finished run made by hand, with the tables of its layers, pairs and features."""
    run = test_report.made_run(folder, **changes)
    cells = run.cells
    columns = (("a", "layer_a"), ("b", "layer_b"))
    layers = pd.DataFrame(
        [
            {"run": index, "model": side, "layer": layer, "n_features": 4, "n_dead": 0, "n_rare": 1}
            for index in cells["run"].unique()
            for side, column in columns
            for layer in cells[column].unique()
        ]
    )
    write_table(layers, folder / "layers.parquet")
    for row in cells.itertuples():
        pairs = pd.DataFrame({"feature_a": [row.layer_a], "feature_b": [row.layer_b]})
        where = {name: getattr(row, name) for name in ("control", "metric", "matching", "run")}
        write_table(pairs, folder / pairs_name(row.layer_a, row.layer_b, **where))
    for row in layers.itertuples():
        features = pd.DataFrame({"feature": range(4), "layer": row.layer, "model": row.model})
        write_table(features, folder / features_name(row.model, row.layer, row.run))
    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return made_run(tmp_path_factory.mktemp("run"), seeds=(3, 4))


# A run read back ---------------------------------------------------------------------------------


def test_a_run_is_opened_by_its_folder_given_as_path_or_text(made: Run) -> None:
    assert open_run(made.folder).info == open_run(str(made.folder)).info == made.info
    assert made.info["format"] == 2


@pytest.mark.parametrize(
    "value",
    [
        "score", "null_mean", "null_sd", "z", "p", "q", "calibrated", "n_pairs", "n_components",
        "n_permutations", "floor_limited", "note",
    ],
)  # fmt: skip
@pytest.mark.parametrize("run", [0, 1])
def test_a_grid_holds_any_column_of_scores_by_layer_of_a_and_layer_of_b(
    made: Run, value: str, run: int
) -> None:
    grid = made.grid("svcca", value, matching="many_to_one", null="shuffle", run=run)
    assert list(grid.index) == [0, 1]
    assert list(grid.columns) == [0, 1, 10]
    rows = made.scores.query(
        "run == @run and measure == 'svcca' and null == 'shuffle' and matching == 'many_to_one'"
    )
    assert len(rows) == grid.size
    for row in rows.to_dict("records"):
        assert grid.loc[row["layer_a"], row["layer_b"]] == row[value]


def test_a_grid_stands_beside_the_rate_matched_null_unless_another_is_asked_for(made: Run) -> None:
    default = made.grid("rsa", "p")
    pd.testing.assert_frame_equal(default, made.grid("rsa", "p", null="rate_matched"))
    assert not default.equals(made.grid("rsa", "p", null="shuffle"))


def test_a_run_without_the_rate_matched_null_gives_the_grid_of_the_one_it_has(
    tmp_path: Path,
) -> None:
    run = made_run(tmp_path, nulls=("shuffle",))
    pd.testing.assert_frame_equal(run.grid("rsa", "q"), run.grid("rsa", "q", null="shuffle"))


@pytest.mark.parametrize("column", ["mean_correlation", "mean_correlation_kept", "n_kept"])
def test_a_grid_holds_any_column_of_cells(made: Run, column: str) -> None:
    grid = made.grid(column, matching="many_to_one", run=1)
    cells = made.cells.query("matching == 'many_to_one' and run == 1")
    for row in cells.to_dict("records"):
        assert grid.loc[row["layer_a"], row["layer_b"]] == row[column]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {"measure": "svca"},
            "unknown measure of this run 'svca' (did you mean 'svcca'?), expected one of: "
            "held_out_correlation, held_out_correlation_kept, held_out_high, held_out_kept_high, "
            "held_out_kept_low, held_out_low, mean_correlation, mean_correlation_kept, "
            "mean_margin, mean_within_token, mean_within_token_kept, mutual_share, n_kept, "
            "n_pairs, n_silent_held_out, note, rsa, svcca",
        ),
        (
            {"measure": "rsa", "value": "calibrate"},
            "unknown value 'calibrate' (did you mean 'calibrated'?), expected one of: calibrated, "
            "floor_limited, n_components, n_pairs, n_permutations, note, null_mean, null_sd, p, q, "
            "score, score_half_1, score_half_2, z",
        ),
        (
            {"measure": "rsa", "value": "layer_a"},
            "unknown value 'layer_a', expected one of: calibrated, floor_limited, n_components, "
            "n_pairs, n_permutations, note, null_mean, null_sd, p, q, score, score_half_1, "
            "score_half_2, z",
        ),
        (
            {"measure": "rsa", "matching": "many_to_many"},
            "unknown matching of this run 'many_to_many' (did you mean 'many_to_one'?), expected "
            "one of: many_to_one, one_to_one",
        ),
        (
            {"measure": "rsa", "null": "rate-matched"},
            "unknown null of this run 'rate-matched' (did you mean 'rate_matched'?), expected one "
            "of: rate_matched, shuffle",
        ),
        (
            {"measure": "rsa", "control": "untrained"},
            "unknown control of this run 'untrained' (did you mean 'trained'?), expected one of: "
            "trained",
        ),
        (
            {"measure": "rsa", "metric": "cosin"},
            "unknown metric of this run 'cosin', expected one of: pearson",
        ),
        ({"measure": "rsa", "run": 2}, "these results hold no run 2, expected one of: 0, 1"),
        (
            {"measure": "mean_correlation", "value": "p"},
            "mean_correlation has no null and so no 'p' beside it: leave value out",
        ),
    ],
)
def test_a_grid_that_the_run_does_not_hold_is_refused_with_what_it_holds(
    made: Run, asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(UnknownNameError) as raised:
        made.grid(**asked)
    assert str(raised.value) == words


def test_the_pairs_of_a_cell_are_those_of_its_layers_matching_and_run(made: Run) -> None:
    pairs = made.pairs(1, 10, matching="many_to_one", run=1)
    assert pairs.to_dict("records") == [{"feature_a": 1, "feature_b": 10}]


@pytest.mark.parametrize("model", ["b", "B"])
def test_the_features_of_a_layer_are_those_of_its_model(made: Run, model: str) -> None:
    features = made.features(model, 10, run=1)
    assert set(features["layer"]) == {10}
    assert set(features["model"]) == {"b"}


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda r: r.pairs(2, 0), "these results hold no layer_a 2, expected one of: 0, 1"),
        (lambda r: r.pairs(0, 9), "these results hold no layer_b 9, expected one of: 0, 1, 10"),
        (
            lambda r: r.pairs(0, 1, matching="one_to_many"),
            "unknown matching of this run 'one_to_many' (did you mean 'one_to_one'?), expected "
            "one of: many_to_one, one_to_one",
        ),
        (lambda r: r.pairs(0, 1, run=7), "these results hold no run 7, expected one of: 0, 1"),
        (lambda r: r.features("a", 10), "these results hold no layer 10, expected one of: 0, 1"),
        (lambda r: r.features("c", 1), "unknown model 'c', expected one of: a, b"),
        (lambda r: r.features("a", 1, run=2), "these results hold no run 2, expected one of: 0, 1"),
    ],
)
def test_pairs_and_features_that_the_run_does_not_hold_are_refused_with_what_it_holds(
    made: Run, ask: Any, words: str
) -> None:
    with pytest.raises(UnknownNameError) as raised:
        ask(made)
    assert str(raised.value) == words


# What stops a run from being read ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (
            None,
            MissingFileError,
            "a run's folder must hold run.json, {folder} does not: give a folder that "
            "`saelign run` wrote",
        ),
        (
            '{"format": 1, "complete": tr',
            DamagedError,
            "{folder}/run.json must be what saelign wrote, it is damaged: run the study again",
        ),
        (
            "[1]",
            DamagedError,
            "{folder}/run.json must be what saelign wrote, it is damaged: run the study again",
        ),
        (
            '{"complete": true}',
            DamagedError,
            "{folder}/run.json must be what saelign wrote, it is damaged: run the study again",
        ),
        (
            '{"format": 2, "complete": true, "name": "made"}',
            DamagedError,
            "{folder}/run.json must be what saelign wrote, it is damaged: run the study again",
        ),
        (
            '{"format": 3, "complete": true}',
            FormatError,
            "this version reads runs of format 2, {folder}/run.json has 3: upgrade saelign",
        ),
        (
            '{"format": 1, "complete": true}',
            FormatError,
            "this version reads runs of format 2, {folder}/run.json has 1: run the study again",
        ),
        (
            '{"format": 2, "complete": false}',
            MissingFileError,
            "the run in {folder} was not finished: start it again, it goes on where it stopped",
        ),
    ],
)
def test_a_folder_without_a_sound_finished_run_is_refused_with_the_way_out(
    tmp_path: Path, content: str | None, error: type[Exception], words: str
) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(error) as raised:
        open_run(tmp_path)
    assert str(raised.value) == words.format(folder=tmp_path)


@pytest.mark.parametrize("name", ["scores", "cells", "layers"])
def test_a_table_that_is_gone_or_no_longer_parquet_is_named(tmp_path: Path, name: str) -> None:
    run = made_run(tmp_path)
    path = tmp_path / f"{name}.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DamagedError) as damaged:
        getattr(run, name)
    assert str(damaged.value) == (
        f"{path} must be what saelign wrote, it is damaged: run the study again"
    )
    path.unlink()
    with pytest.raises(MissingFileError) as missing:
        getattr(run, name)
    assert str(missing.value) == (
        f"a run must hold {name}.parquet, {path} is not there: run the study again"
    )


def test_a_flipped_bit_is_never_read_as_another_score(tmp_path: Path) -> None:
    made_run(tmp_path)
    path = tmp_path / "scores.parquet"
    whole = path.read_bytes()
    group = ParquetFile(path).metadata.row_group(0)
    chunks = [group.column(i) for i in range(group.num_columns)]
    assert "score" in {chunk.path_in_schema for chunk in chunks}
    for chunk in chunks:
        content = bytearray(whole)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        content[start + chunk.total_compressed_size - 1] ^= 1
        path.write_bytes(content)
        with pytest.raises(DamagedError, match="it is damaged: run the study again"):
            _ = Run(tmp_path, {}).scores


# Writing -----------------------------------------------------------------------------------------


def test_a_table_is_read_back_as_it_was_written_and_its_csv_says_the_same(made: Run) -> None:
    scores = made.scores
    assert str(scores["n_components"].dtype) == "Int64"
    told = pd.read_csv(made.folder / "scores.csv")
    assert list(told.columns) == list(scores.columns)
    # Pandas before 3 reads no closer.
    np.testing.assert_allclose(told["score"], scores["score"], rtol=1e-12)
    np.testing.assert_allclose(told["p"], scores["p"], rtol=1e-12)


def test_a_written_file_takes_the_place_of_the_old_one_at_the_end_and_not_before(
    tmp_path: Path,
) -> None:
    path = tmp_path / "made" / "as needed" / "file.txt"
    for content in ("old", "new"):
        with written(path) as temporary:
            temporary.write_text(content)
            made = temporary.stat().st_ino
            assert not path.exists() or path.read_text() == "old"
        assert path.read_text() == content
        assert path.stat().st_ino == made  # moved, not copied: no reader ever sees half of it
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("raised", [ValueError("halfway"), KeyboardInterrupt()])
def test_what_breaks_off_a_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, raised: BaseException
) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write() -> None:
        with written(path) as temporary:
            temporary.write_text("half of the n")
            raise raised

    with pytest.raises(type(raised)):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_and_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(StorageError) as raised, written(path):
        raise OSError(28, "No space left on device")
    assert str(raised.value) == (
        f"{path} must be writable, it is not: No space left on device; free space or choose "
        "another folder with --out"
    )
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_where_a_folder_must_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "way").write_text("in the way")
    path = tmp_path / "way" / "scores.parquet"
    with pytest.raises(StorageError) as raised:
        write_table(pd.DataFrame({"score": [1.0]}), path)
    assert str(raised.value).startswith(f"{path} must be writable, it is not: ")
    assert (tmp_path / "way").read_text() == "in the way"


def test_a_folder_where_a_file_must_be_is_told_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    (path / "precious").mkdir(parents=True)
    with pytest.raises(StorageError) as raised:
        write_info({"complete": True}, tmp_path)
    assert str(raised.value) == (
        f"{path} must be writable, it is not: Is a directory; free space or choose another folder "
        "with --out"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]
    assert (path / "precious").is_dir()


def test_what_is_written_can_be_read_by_everyone(tmp_path: Path) -> None:
    write_info({"complete": True}, tmp_path)
    assert (tmp_path / "run.json").stat().st_mode & 0o777 == 0o644
    assert json.loads((tmp_path / "run.json").read_text()) == {"format": 2, "complete": True}
