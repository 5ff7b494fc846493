"""From text to verdict, on the two trained models that ship; and what stops it."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import saelign.pipeline
from saelign.activations import collect
from saelign.demo import FOLDER, demo_study
from saelign.errors import (
    ActivationError,
    DamagedError,
    DegenerateError,
    MissingFileError,
    ModelError,
    StorageError,
    StudyError,
    TextError,
    WiringError,
)
from saelign.matching import Filters
from saelign.pipeline import run
from saelign.plan import check
from saelign.results import Run
from saelign.study import Controls, MeasureStudy, OutputStudy, Study

MEASURES = ("pc1", "svcca", "svcca_r2", "rsa", "cka")


def small_study(store: Path, **changes: Any) -> Study:
    """The demo on two layers of each model and 6,000 tokens."""
    study = demo_study()
    changes = {"controls": Controls(), "verdicts": False, **changes}
    return dataclasses.replace(
        study,
        name="small",
        model_a=dataclasses.replace(study.model_a, layers=[1, 4]),
        model_b=dataclasses.replace(study.model_b, layers=[1, 5]),
        text=dataclasses.replace(study.text, tokens=6000),
        nulls={"shuffle": 19, "rate_matched": 19},
        matching=["one_to_one", "many_to_one", "one_to_many"],
        output=OutputStudy(store=str(store)),
        **changes,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def finished(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(small_study(store), out=tmp_path_factory.mktemp("run") / "out")


def test_every_cell_is_scored_by_every_measure_beside_every_null(finished: Run) -> None:
    scores = finished.scores
    assert len(scores) == 2 * 2 * 3 * len(MEASURES) * 2
    assert scores[["score", "null_mean", "p", "q", "calibrated"]].notna().all().all()
    assert (scores["p"] > 0).all()
    assert (scores["q"] >= scores["p"]).all()
    assert (scores["family_size"] == 4).all()


def test_cells_at_the_floor_of_too_few_shuffles_say_so(finished: Run) -> None:
    scores = finished.scores  # 19 shuffles, 4 cells a family: 80 would do
    at_floor = scores["p"] == 1 / 20
    assert at_floor.any()
    assert (scores["floor_limited"] == at_floor).all()
    assert any("floor-limited" in warning for warning in finished.info["warnings"])


def test_each_seed_is_a_run_of_its_own(store: Path, tmp_path: Path) -> None:
    study = small_study(store, measures=[MeasureStudy(name="rsa")])
    study = dataclasses.replace(study, seeds=[0, 1], matching=["one_to_one"])
    both = run(study, out=tmp_path / "both")
    assert sorted(both.scores["run"].unique()) == [0, 1]
    assert (both.scores["family_size"] == 4).all()
    first, second = (both.grid("rsa", run=index) for index in (0, 1))
    assert (first != second).all().all()
    assert both.pairs(4, 5, run=0)["correlation"].mean() == pytest.approx(
        both.pairs(4, 5, run=1)["correlation"].mean(), rel=0.2
    )
    assert both.info["text"][0]["sha256"] != both.info["text"][1]["sha256"]


def test_trained_models_are_alike_above_chance(finished: Run) -> None:
    rsa = finished.grid("rsa", "p", matching="one_to_one", null="rate_matched")
    assert (rsa.to_numpy() <= 0.05).all()


def test_a_grid_is_layers_of_a_by_layers_of_b(finished: Run) -> None:
    grid = finished.grid("svcca", "score")
    assert list(grid.index) == [1, 4]
    assert list(grid.columns) == [1, 5]
    assert finished.grid("mean_correlation_kept").shape == (2, 2)


def test_dropped_pairs_stay_with_their_reason(finished: Run) -> None:
    pairs = finished.pairs(4, 5)
    cell = finished.cells.query("layer_a == 4 and layer_b == 5 and matching == 'one_to_one'").iloc[
        0
    ]
    assert len(pairs) == cell["n_pairs"]
    assert pairs["kept"].sum() == cell["n_kept"]
    assert set(pairs.loc[~pairs["kept"], "reason"]) <= {
        "non_concept",
        "no_shared_token",
        "low_correlation",
    }
    assert (pairs.loc[pairs["kept"], "correlation"] > 0.1).all()
    assert not pairs["feature_a"].duplicated().any()


def test_the_features_of_a_layer_tell_what_they_fire_on(finished: Run) -> None:
    features = finished.features("b", 5)
    assert len(features) == 1408
    alive = features[features["reason"] == ""]
    assert (alive["n_active"] >= 30).all()
    one = alive.iloc[0]
    assert f"«{one['top_tokens'][0]}»" in one["top_contexts"][0]
    assert one["top_activations"][0] == pytest.approx(one["max_activation"])


def test_every_figure_comes_with_the_numbers_that_it_shows(finished: Run) -> None:
    figures = finished.folder / "figures"
    pictures = sorted(p.stem for p in figures.glob("*.png"))
    assert len(pictures) == 3 * (2 + 1 + len(MEASURES))
    for name in pictures:
        assert (figures / f"{name}.svg").read_text(encoding="utf-8").startswith("<?xml")
        table = pd.read_csv(figures / f"{name}.csv")
        assert {"layer_a", "layer_b"} <= set(table.columns)


def test_a_run_tells_what_it_takes_to_repeat_it(finished: Run) -> None:
    info = finished.info
    assert info["complete"]
    assert info["versions"]["saelign"]
    assert len(info["models"]["a"]["fingerprint"]) == 64
    assert set(info["models"]["a"]["saes"]) == {1, 4}
    assert info["text"][0]["n_tokens"] == 6000
    assert info["study"]["seeds"] == [0]


def test_a_second_run_gives_the_same_numbers_without_running_the_models(
    finished: Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded again")

    monkeypatch.setattr(saelign.pipeline, "load_model", refuse)
    again = run(small_study(store), out=tmp_path / "again")
    pd.testing.assert_frame_equal(again.scores, finished.scores)


def test_the_same_saes_in_published_formats_give_the_same_scores(
    finished: Run, store: Path, tmp_path: Path
) -> None:
    study = small_study(store, measures=[MeasureStudy(name="rsa")])
    weights_a = load_file(study.model_a.sae_path(4, study.places))
    scope = tmp_path / "gemma-scope-2b-pt-res" / "layer_4" / "width_16k" / "average_l0_12"
    scope.mkdir(parents=True)
    np.savez(scope / "params.npz", **{n: t.float().numpy() for n, t in weights_a.items()})
    weights_b = load_file(study.model_b.sae_path(5, study.places))
    trainer = tmp_path / "resid_post_layer_5" / "trainer_0"
    trainer.mkdir(parents=True)
    torch.save(weights_b, trainer / "ae.pt")
    config = {"dict_class": "JumpReluAutoEncoder", "layer": 5, "lm_name": "demo-b"}
    (trainer / "config.json").write_text(json.dumps({"trainer": config}))
    study = dataclasses.replace(
        study,
        model_a=dataclasses.replace(study.model_a, layers=[4], saes={4: str(scope)}),
        model_b=dataclasses.replace(study.model_b, layers=[5], saes={5: str(trainer)}),
        matching=["one_to_one"],
    )
    published = run(study, out=tmp_path / "published")
    assert published.grid("rsa").loc[4, 5] == finished.grid("rsa").loc[4, 5]
    moved = dataclasses.replace(study.model_a, layers=[1], saes={1: str(scope)})
    with pytest.raises(WiringError, match=r"'blocks\.4\.hook_resid_post' .*: choose layer 4$"):
        check(dataclasses.replace(study, model_a=moved))


def test_another_seed_draws_other_documents(store: Path) -> None:
    plans = [check(small_study(store, seeds=[seed])) for seed in (0, 1)]
    assert plans[0].tokens[0].sha256 != plans[1].tokens[0].sha256
    assert check(small_study(store, seeds=[1])).tokens[0].sha256 == plans[1].tokens[0].sha256


def test_changing_one_decoder_row_changes_the_scores(
    finished: Run, store: Path, tmp_path: Path
) -> None:
    kept = finished.pairs(4, 5).query("kept")
    feature = int(kept["feature_b"].iloc[0])
    shutil.copytree(FOLDER / "sae_B", tmp_path / "sae_B")
    path = tmp_path / "sae_B" / "layer_5.safetensors"
    tensors = load_file(path)
    tensors["W_dec"][feature] = -tensors["W_dec"][feature]
    save_file(tensors, path)
    study = small_study(store)
    study = dataclasses.replace(
        study,
        model_b=dataclasses.replace(
            study.model_b, saes=f"{tmp_path}/sae_B/layer_{{layer}}.safetensors"
        ),
    )
    changed = run(study, out=tmp_path / "changed")
    for measure in ("svcca", "rsa", "cka"):
        before, after = (r.grid(measure, null="shuffle") for r in (finished, changed))
        assert after.loc[4, 5] != before.loc[4, 5]
        # The SAE of layer 1 is as it was; what was drawn for its cells is too.
        assert after.loc[4, 1] == before.loc[4, 1]


def test_a_model_against_itself_scores_one_on_the_diagonal(store: Path, tmp_path: Path) -> None:
    study = small_study(store)
    study = dataclasses.replace(
        study,
        model_b=study.model_a,
        matching=["one_to_one", "many_to_one"],
        measures=[
            *(MeasureStudy(name=name) for name in MEASURES),
            MeasureStudy(name="rsa", options={"inner": "pearson"}),
        ],
    )
    same = run(study, out=tmp_path / "same")
    for measure in same.scores["measure"].unique():
        for matching in study.matching:
            grid = same.grid(measure, matching=matching)
            assert np.diag(grid) == pytest.approx(1, abs=1e-9), (measure, matching)
            assert grid.loc[1, 4] < 0.99
    assert np.diag(same.grid("mean_correlation")) == pytest.approx(1, abs=1e-9)


def test_swapping_the_models_transposes_one_to_one(
    finished: Run, store: Path, tmp_path: Path
) -> None:
    study = small_study(store)
    study = dataclasses.replace(
        study, model_a=study.model_b, model_b=study.model_a, matching=["many_to_one", "one_to_many"]
    )
    swapped = run(study, out=tmp_path / "swapped")
    for there, here in (("many_to_one", "one_to_many"), ("one_to_many", "many_to_one")):
        before = finished.grid("rsa", matching=there).to_numpy()
        assert pytest.approx(before, abs=1e-9) == swapped.grid("rsa", matching=here).to_numpy().T


def test_a_killed_run_continues_with_what_is_stored(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small_study(tmp_path / "store")

    class Killed(Exception):  # noqa: N818
        pass

    def kill(what: str, done: int, total: int) -> None:
        if what.startswith("collect B") and done == total:
            raise Killed

    with pytest.raises(Killed):
        run(study, out=tmp_path / "out", progress=kill)
    with pytest.raises(MissingFileError, match="was not finished: start it again"):
        saelign.open_run(tmp_path / "out")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded again")

    monkeypatch.setattr(saelign.pipeline, "load_model", refuse)
    resumed = run(study, out=tmp_path / "out")
    pd.testing.assert_frame_equal(resumed.scores, finished.scores)


def test_a_rerun_that_stops_leaves_the_finished_run_readable(store: Path, tmp_path: Path) -> None:
    study = small_study(store, measures=[MeasureStudy(name="rsa")])
    before = run(study, out=tmp_path / "out").scores

    def stop(what: str, done: int, _: int) -> None:
        if what == "compare layers" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(study, out=tmp_path / "out", progress=stop)
    pd.testing.assert_frame_equal(saelign.open_run(tmp_path / "out").scores, before)


# What stops a study ------------------------------------------------------------------------------


def test_a_layer_that_the_model_does_not_have_is_named(store: Path) -> None:
    study = small_study(store)
    study = dataclasses.replace(study, model_a=dataclasses.replace(study.model_a, layers=[6]))
    with pytest.raises(StudyError, match="layers of model A must lie between 0 and 5, got 6"):
        check(study)


def test_a_device_that_is_not_there_is_refused_before_anything_is_loaded(store: Path) -> None:
    study = small_study(store)
    study = dataclasses.replace(study, model_a=dataclasses.replace(study.model_a, device="gpu"))
    with pytest.raises(ModelError, match=r"device 'gpu' cannot be used: .*; 'cpu' always can"):
        check(study)


def test_a_model_folder_without_a_tokenizer_says_so(store: Path) -> None:
    study = small_study(store)
    study = dataclasses.replace(study, model_a=dataclasses.replace(study.model_a, tokenizer=None))
    with pytest.raises(
        MissingFileError, match=r"must hold a tokenizer \(tokenizer.json\), it holds"
    ):
        check(study)


def test_an_sae_of_another_width_is_refused_before_any_weights_are_read(store: Path) -> None:
    study = small_study(store)
    study = dataclasses.replace(
        study, model_a=dataclasses.replace(study.model_a, saes=study.model_b.saes)
    )
    with pytest.raises(
        WiringError, match="reads 256 dimensions and the residual stream after block 1 has 128"
    ):
        check(study)


def test_an_sae_of_another_layer_is_refused_and_the_right_layer_named(
    store: Path, tmp_path: Path
) -> None:
    study = small_study(store)
    silent = tmp_path / "silent.safetensors"  # one that does not say itself where it was trained
    save_file(load_file(FOLDER / "sae_B" / "layer_0.safetensors"), silent)
    swapped = {1: "sae_B/layer_1.safetensors", 5: str(silent)}
    study = dataclasses.replace(study, model_b=dataclasses.replace(study.model_b, saes=swapped))
    with pytest.raises(WiringError, match="layer 0"):
        run(study, out=tmp_path / "out")


def test_too_little_text_says_how_much_there_is(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("Once upon a time there was a king. " * 300)
    study = small_study(store)
    text = dataclasses.replace(study.text, source=str(path))
    with pytest.raises(TextError, match="the text must hold the 6,000 tokens asked for, it holds"):
        check(dataclasses.replace(study, text=text))
    path.write_text("Once upon a time.")
    with pytest.raises(TextError, match="at least 1,000 tokens must count, got"):
        check(dataclasses.replace(study, text=text))


def test_when_no_cell_can_be_scored_the_pairs_and_reasons_are_still_there(
    store: Path, tmp_path: Path
) -> None:
    study = small_study(store, filters=Filters(min_correlation=0.9999))
    with pytest.raises(DegenerateError, match="at least one layer pair must be scored, none of 12"):
        run(study, out=tmp_path / "out")
    left = saelign.open_run(tmp_path / "out")
    assert left.scores["note"].str.contains("at least 3 pairs are needed").all()
    assert "12 of 12 cells kept fewer than 3 pairs" in left.info["warnings"]
    assert (left.pairs(4, 5)["reason"] != "").all()


def test_components_that_must_meet_are_refused_cell_by_cell(store: Path, tmp_path: Path) -> None:
    study = small_study(
        store,
        measures=[MeasureStudy(name="rsa"), MeasureStudy(name="svcca", options={"variance": 1.0})],
    )
    study = dataclasses.replace(
        study, matching=["one_to_one"], filters=Filters(min_correlation=0.5)
    )
    scores = run(study, out=tmp_path / "out").scores
    refused = scores[scores["measure"] != "rsa"]
    assert refused["note"].str.contains("n_components").all()
    assert scores.loc[scores["measure"] == "rsa", "score"].notna().all()


def test_a_damaged_shard_is_named_and_nothing_is_overwritten(store: Path, tmp_path: Path) -> None:
    run(small_study(store), out=tmp_path / "before")
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    for path in copy.rglob("shard-*.safetensors"):
        damaged = bytearray(path.read_bytes())
        damaged[-5] ^= 255
        path.write_bytes(damaged)
    with pytest.raises(DamagedError, match="delete the folder"):
        run(small_study(copy), out=tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    store: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="must be a folder that can be written"):
        check(small_study(store), out=tmp_path / "file" / "out")


def test_a_run_is_not_written_over_that_of_another_study(finished: Run, store: Path) -> None:
    other = small_study(store, metric="cosine")
    with pytest.raises(
        StudyError, match="holds the run of another study: choose another with --out"
    ):
        check(other, out=finished.folder)


def test_a_run_is_not_written_into_a_folder_of_other_files(store: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(StudyError, match="holds files that are not a run"):
        check(small_study(store), out=tmp_path)


def test_the_store_is_the_studys_else_the_environments_else_a_users_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = dataclasses.replace(demo_study(), output=OutputStudy())
    monkeypatch.setenv("SAELIGN_STORE", str(tmp_path / "env"))
    assert check(study).store == tmp_path / "env"
    monkeypatch.delenv("SAELIGN_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert check(study).store == tmp_path / "cache" / "saelign" / "activations"


def test_infinite_activations_name_layer_and_token(tmp_path: Path) -> None:
    from conftest import lossless_sae, random_tokens, tiny_model

    model = tiny_model("gpt_neox")
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = torch.inf
    tokens = random_tokens()
    with pytest.raises(ActivationError, match=r"block \d+ is not at context \d+, position \d+"):
        collect(
            load=lambda: model,
            blocks_path=None,
            saes={1: lossless_sae()},
            tokens=tokens,
            store=tmp_path,
            model_fingerprint="x",
            dtype="float32",
        )


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No user's cache is touched, and figures are drawn once, by the module's own run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SAELIGN_STORE", raising=False)
    monkeypatch.setattr(saelign.pipeline, "write_figures", lambda *_, **__: [])
