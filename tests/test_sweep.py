"""Sweeps over how SAEs are trained: every combination is a real training and a real run."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from conftest import tiny_tokenizer
from saelign.cli import main
from saelign.errors import StudyError, TextError
from saelign.results import open_run
from saelign.study import Study, load_study
from saelign.sweep import Sweep, combination_table, combinations_of, move_table, sweep

LETTERS = "abcdefghijklmnopqrstuvwxyz .,\n"


@pytest.fixture(scope="module")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from conftest import tiny_model

    folder = tmp_path_factory.mktemp("sweep")
    for name, architecture, seed in (("A", "gpt_neox", 0), ("B", "llama", 1)):
        tiny_model(architecture, seed).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list(LETTERS[:26]), size=rng.integers(2, 7))) for _ in range(300)]
    lines = [" ".join(rng.choice(words, size=12)) for _ in range(1200)]
    (folder / "text.txt").write_text("\n\n".join(lines), encoding="utf-8")
    content = {
        "saelign": 1,
        "name": "small",
        "model_a": {"name": "A", "layers": [0, 1], "saes": "nowhere/{layer}"},
        "model_b": {"name": "B", "layers": [0, 2], "saes": "nowhere/{layer}"},
        "text": {
            "source": "text.txt",
            "split": "blank_line",
            "tokens": 5000,
            "context_length": 48,
        },
        "matching": ["one_to_one"],
        "measures": ["rsa", {"svcca": {"n_components": 5}}],
        "nulls": {"rate_matched": 50},
        "output": {"store": "store"},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder / "study.yaml"


@pytest.fixture(scope="module")
def study(study_file: Path) -> Study:
    return load_study(study_file)


@pytest.fixture(scope="module")
def swept(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    out = tmp_path_factory.mktemp("swept") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saelign.pipeline.write_figures", lambda *_, **__: [])  # most of the time
        return sweep(study, widths=[24, 48], ks=[3], out=out)


def test_each_combination_is_an_ordinary_run_with_its_own_saes(swept: Sweep) -> None:
    names = sorted(path.name for path in (swept.folder / "runs").iterdir())
    asked = {"w24_k3_s0", "w24_k3_s1", "w48_k3_s0", "w48_k3_s1"}
    assert asked <= set(names)
    for name in asked:
        run = open_run(swept.folder / "runs" / name)
        width = int(name[1:3])
        assert (run.layers["n_features"] == width).all()
        ceilings = ["seed_a", "seed_b"] if name.endswith("s0") else []
        assert run.controls == ["trained", *ceilings]


def test_grids_are_those_of_the_runs(swept: Sweep) -> None:
    grids = swept.grids
    for (width, k, seed), group in grids.groupby(["width", "k", "train_seed"]):
        run = open_run(swept.folder / "runs" / f"w{width}_k{k}_s{seed}")
        for control in run.controls:
            for measure in ("rsa", "svcca(n_components=5)"):
                mine = group.query("control == @control and measure == @measure")
                mine = mine.pivot(index="layer_a", columns="layer_b", values="score")
                theirs = run.grid(measure, control=control)
                pd.testing.assert_frame_equal(mine, theirs, check_dtype=False)


def test_ceilings_are_of_the_same_layer_through_other_saes(swept: Sweep) -> None:
    table = swept.combinations
    assert table.loc[table["train_seed"] == 1, ["ceiling_a", "ceiling_b"]].isna().all(axis=None)
    first = table[(table["train_seed"] == 0) & (table["width"] == 48) & (table["measure"] == "rsa")]
    run = open_run(swept.folder / "runs" / "w48_k3_s0")
    for letter in "ab":
        grid = run.grid("rsa", "calibrated", control=f"seed_{letter}").to_numpy()
        assert first[f"ceiling_{letter}"].item() == pytest.approx(np.diag(grid).mean())
        held = run.grid("held_out_correlation", control=f"seed_{letter}").to_numpy()
        assert first[f"ceiling_held_out_{letter}"].item() == pytest.approx(np.diag(held).mean())


def test_it_goes_on_where_it_was_and_grows(
    swept: Sweep, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saelign.pipeline.write_figures", lambda *_, **__: [])
    kept = [*swept.folder.rglob("layer_*.safetensors"), *swept.folder.rglob("run.json")]
    files = {path: path.stat().st_mtime_ns for path in kept}
    before = swept.combinations
    grown = sweep(study, widths=[24, 48], ks=[3, 6], out=swept.folder)
    assert {p: p.stat().st_mtime_ns for p in files} == files
    table = grown.combinations
    assert len(table) == 2 * len(before)
    again = table[table["k"] == 3].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, before.reset_index(drop=True))
    assert set(grown.moves["factor"]) == {"width", "k", "train_seed"}
    assert len(list((grown.folder / "figures").glob("sweep_rsa_*.png"))) == 1


def test_training_seeds_give_different_saes(swept: Sweep) -> None:
    files = [
        swept.folder / "saes" / letter / name / "training.json"
        for letter in "ab"
        for name in ("w24_k3_s0", "w24_k3_s1")
    ]
    layers = [json.loads(file.read_text())["layers"] for file in files]
    assert len({about["sha256"] for of_file in layers for about in of_file.values()}) == 8


def grid_rows(value: Callable[[int, int], float], **about: object) -> list[dict[str, object]]:
    return [
        {
            "control": "trained", "layer_a": i, "layer_b": j, "matching": "one_to_one",
            "measure": "rsa", "null": "shuffle", "score": value(i, j), "null_mean": 0.0,
            "calibrated": value(i, j), "p": 0.01, "q": 0.04 if value(i, j) > 0.1 else 0.5,
            "mean_correlation": 0.5, "mean_within_token": 0.2,
            "held_out_correlation": 0.4, "n_kept": 9, **about,
        }
        for i in range(4)
        for j in range(5)
    ]  # fmt: skip


def test_moves_of_grids_that_differ_as_planted() -> None:
    def bump(i: int, j: int) -> float:
        return 0.3 - 0.05 * abs(i - 1) - 0.03 * abs(j - 2)

    rows = []
    for width, k, seed in ((8, 2, 0), (8, 2, 1), (16, 2, 0), (16, 2, 1)):
        shift = 0.1 * (width == 16)
        rows += grid_rows(
            # Seed 1 has its peak two layers of B further on.
            lambda i, j, shift=shift, seed=seed: bump(i, j - 2 * seed) + shift,
            width=width, k=k, train_seed=seed,
        )  # fmt: skip
    grids = pd.DataFrame(rows)
    grids.loc[grids["width"] == 16, "held_out_correlation"] = 0.55
    moves = move_table(grids, rng=np.random.default_rng(0))
    assert moves["factor"].tolist() == ["width", "width", "train_seed", "train_seed"]
    by_width, by_seed = moves[moves["factor"] == "width"], moves[moves["factor"] == "train_seed"]
    assert by_width["spearman"].tolist() == pytest.approx([1.0, 1.0])
    assert by_width["mean_difference"].tolist() == pytest.approx([0.1, 0.1])
    assert by_width["difference_low"].tolist() == pytest.approx([0.1, 0.1])
    assert by_width["mean_change"].tolist() == pytest.approx([0.1, 0.1])
    assert by_width["peak_moved"].tolist() == [0, 0]
    assert by_width["held_out_difference"].tolist() == pytest.approx([0.15, 0.15])
    assert by_seed["peak_moved"].tolist() == [2, 2]
    assert (by_seed["spearman"] < 0.9).all()
    change = np.mean([[abs(bump(i, j - 2) - bump(i, j)) for j in range(5)] for i in range(4)])
    assert by_seed["mean_change"].tolist() == pytest.approx([change, change])
    table = combination_table(grids)
    assert table[["peak_a", "peak_b"]].to_numpy().tolist() == [[1, 2], [1, 4], [1, 2], [1, 4]]
    assert table["peak_calibrated"].tolist() == pytest.approx([0.3, 0.3, 0.4, 0.4])
    assert (table["n_cells"] == 20).all()
    assert table["n_beating"].tolist()[2:] == [20, 20]


def test_a_grid_without_scores_has_no_peak() -> None:
    grids = pd.DataFrame(grid_rows(lambda *_: float("nan"), width=8, k=2, train_seed=0))
    table = combination_table(grids)
    assert table[["peak_a", "peak_calibrated", "mean_calibrated"]].isna().all(axis=None)
    assert move_table(grids, rng=np.random.default_rng(0)).empty


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"widths": []}, r"widths must be distinct whole numbers from 1, at least one, got \[\]"),
        ({"ks": [4, 4]}, r"ks must be distinct"),
        ({"train_seeds": [-1]}, r"train_seeds must be distinct whole numbers from 0"),
        ({"widths": [64, 2], "ks": [1, 3]}, r"at most the width, got k 3 beside width 2"),
    ],
)
def test_values_that_cannot_be_are_refused(
    changed: dict[str, list[int]], message: str, study: Study, tmp_path: Path
) -> None:
    asked = {"widths": [8], "ks": [2], "train_seeds": [0], **changed}
    with pytest.raises(StudyError, match=message):
        combinations_of(**asked)
    with pytest.raises(StudyError, match=message):
        sweep(study, out=tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


def test_one_model_on_both_sides_is_refused(study: Study, tmp_path: Path) -> None:
    from dataclasses import replace

    same = replace(study, model_b=study.model_a)
    with pytest.raises(StudyError, match=r"must compare two models, both are A"):
        sweep(same, widths=[24], ks=[3], out=tmp_path / "out")


def test_another_sweep_in_the_folder_is_refused(swept: Sweep, study: Study, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"with another train_seeds: choose another"):
        sweep(study, widths=[24], ks=[3], train_seeds=[0], out=swept.folder)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StudyError, match=r"holds other files: choose another with --out"):
        sweep(study, widths=[24], ks=[3], out=tmp_path)


def test_too_little_text_is_refused_before_anything_is_trained(
    study: Study, tmp_path: Path
) -> None:
    with pytest.raises(TextError, match=r"at least 51,200 tokens must be trained on"):
        sweep(study, widths=[24], ks=[3], train_tokens=5000, out=tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_the_command_prints_tables_and_json(
    swept: Sweep, study_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["sweep", str(study_file), "--widths", "24,48", "--ks", "3", "--out"]
    assert main([*asked, str(swept.folder)]) == 0
    printed = capsys.readouterr().out
    for told in ("explained variance", "ceiling", " seed 0 to 1", "width 24 to 48"):
        assert told in printed
    assert main([*asked, str(swept.folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {row["width"] for row in told["combinations"]} == {24, 48}
    with pytest.raises(SystemExit):
        main(["sweep", str(study_file), "--widths", "wide", "--ks", "3", "--out", "x"])
    assert "whole numbers parted by commas" in capsys.readouterr().err
