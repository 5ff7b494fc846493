"""The study's own comparison beside its controls, on the two trained models that ship."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import saelign.cells
import saelign.pipeline
from saelign.demo import demo_study
from saelign.errors import ModelError, StudyError, UnknownNameError
from saelign.pipeline import run
from saelign.plan import check
from saelign.results import Run
from saelign.study import (
    Controls,
    MeasureStudy,
    OutputStudy,
    SeedControl,
    ShiftControl,
    Study,
    UntrainedControl,
    read_study,
    study_mapping,
)
from saelign.verdicts import VERDICTS, verdict_shares

RANDOM = UntrainedControl(seed=3)


def study_with(store: Path, **changes: Any) -> Study:
    """The demo on two layers of each model, 12,000 tokens, with every control."""
    study = demo_study()
    of_a = study.controls.seed.saes_a if study.controls.seed else None
    controls = Controls(
        untrained=RANDOM, seed=SeedControl(saes_a=of_a), document_shift=ShiftControl()
    )
    return dataclasses.replace(
        study,
        **{
            "name": "controls",
            "model_a": dataclasses.replace(study.model_a, layers=[1, 4]),
            "model_b": dataclasses.replace(study.model_b, layers=[1, 5]),
            "text": dataclasses.replace(study.text, tokens=12000),
            "measures": [
                MeasureStudy(name="rsa"),
                MeasureStudy(name="svcca"),
                MeasureStudy(name="rsa", on="activations"),
            ],
            "metric": ["pearson", "euclidean"],
            "nulls": {"shuffle": 19, "rate_matched": 19},
            "matching": ["one_to_one"],
            "seeds": [0, 1],
            "controls": controls,
            "verdicts": True,
            "output": OutputStudy(store=str(store)),
            **changes,
        },
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def finished(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(study_with(store), out=tmp_path_factory.mktemp("run") / "out")


def test_every_control_has_its_own_rows_in_every_table(finished: Run) -> None:
    controls = ["trained", "untrained", "document_shift", "seed_a"]
    assert finished.controls == controls
    for table in (finished.scores, finished.cells, finished.summary):
        assert list(table["control"].unique()) == controls
    sides = ["a", "b", "a_untrained", "b_untrained", "a_seed"]
    assert sorted(finished.layers["model"].unique()) == sorted(sides)
    own = finished.scores[finished.scores["control"] == "trained"]
    assert set(own["metric"]) == {"pearson", "euclidean"}
    others = finished.scores[finished.scores["control"] != "trained"]
    assert set(others["metric"]) == {"pearson"}


def test_documents_that_do_not_belong_together_share_nothing_that_holds(finished: Run) -> None:
    shifted = finished.grid("held_out_correlation", control="document_shift")
    own = finished.grid("held_out_correlation")
    assert (shifted.abs() < 0.02).all().all()
    assert (own > 0.1).all().all()
    # What was matched looks alike all the same: the match has picked it.
    assert (
        (finished.grid("mean_correlation", control="document_shift") > shifted + 0.02).all().all()
    )


def test_within_token_correlation_tells_trained_from_untrained_better(finished: Run) -> None:
    means = {
        (value, control): finished.grid(value, control=control).to_numpy().mean()
        for value in ("mean_correlation", "mean_within_token")
        for control in ("trained", "untrained")
    }
    plain = means["mean_correlation", "trained"] / means["mean_correlation", "untrained"]
    within = means["mean_within_token", "trained"] / means["mean_within_token", "untrained"]
    assert within > 1.5 * plain


def test_a_model_against_other_saes_of_its_own_is_the_ceiling(finished: Run) -> None:
    ceiling = finished.grid("held_out_correlation", control="seed_a")
    assert list(ceiling.columns) == [1, 4]  # layers of A on both axes
    best = finished.grid("held_out_correlation").max(axis=1)
    assert (np.diag(ceiling) > best).all()  # layer by layer of A


def test_held_out_intervals_hold_their_mean_and_it_is_below_the_plain_one(finished: Run) -> None:
    cells = finished.cells
    assert (cells["held_out_low"] <= cells["held_out_correlation"]).all()
    assert (cells["held_out_correlation"] <= cells["held_out_high"]).all()
    assert (cells["held_out_correlation"] < cells["mean_correlation"]).all()


def test_euclidean_matching_agrees_with_pearson_entirely(finished: Run) -> None:
    agreement = finished.agreement
    assert set(agreement["kind"]) == {"seeds", "metrics", "measures", "texts"}
    metrics = agreement[agreement["kind"] == "metrics"]
    assert (metrics["spearman"] == 1).all()
    assert (metrics["mean_difference"] == 0).all()


def test_the_summary_is_the_mean_over_runs(finished: Run) -> None:
    keys = ["control", "metric", "layer_a", "layer_b", "matching", "measure", "null"]
    means = finished.scores.groupby(keys, sort=False)["score"].mean()
    pd.testing.assert_series_equal(finished.summary.set_index(keys)["score"], means)
    own = finished.summary[finished.summary["control"] == "trained"]
    assert (own["n_runs"] == 2).all()


def test_every_feature_has_a_verdict_and_the_decoy_lacks_hardly_anything(finished: Run) -> None:
    shares = verdict_shares(finished.verdicts)
    assert np.allclose(shares[list(VERDICTS)].sum(axis=1), 1)
    of_runs = len(finished.info["seeds"])
    # Trained: two layers of each; untrained likewise; the decoy: two layers of A.
    assert len(shares) == of_runs * (4 + 4 + 2)
    judged = shares[shares["unclear"] < 1]
    decoy = judged[judged["against"] == "decoy"]
    other = judged[(judged["against"] == "other") & (judged["control"] == "trained")]
    assert decoy["only"].mean() <= other["only"].mean()
    assert decoy["shared"].mean() > other["shared"].mean()


def test_finished_layer_pairs_are_not_computed_again(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_with(Path(finished.info["store"]))

    class Killed(Exception):  # noqa: N818
        pass

    def kill(what: str, done: int, _: int) -> None:
        if what == "compare layers (seed_a)" and done == 1:
            raise Killed

    with pytest.raises(Killed):
        run(study, out=tmp_path / "out", progress=kill)
    kept = {path.name for path in (tmp_path / "out" / "parts").glob("*/*.safetensors")}
    assert len(kept) == 3 * 4 + 1
    computed = []
    real = saelign.cells.compare_layers

    def counted(setting: Any, pair: Any, keep: Any) -> Any:
        computed.append((setting.control, setting.run, pair.a.layer, pair.b.layer))
        return real(setting, pair, keep)

    monkeypatch.setattr(saelign.pipeline, "compare_layers", counted)
    resumed = run(study, out=tmp_path / "out")
    assert len(computed) == 2 * 4 * 4 - len(kept)
    assert not (tmp_path / "out" / "parts").exists()
    for name in ("scores", "cells", "summary", "agreement", "verdicts"):
        pd.testing.assert_frame_equal(getattr(resumed, name), getattr(finished, name))


def test_a_damaged_part_is_computed_again(finished: Run, tmp_path: Path) -> None:
    study = study_with(Path(finished.info["store"]), seeds=[0], controls=Controls())

    def kill(what: str, done: int, _: int) -> None:
        if what == "compare layers" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(study, out=tmp_path / "out", progress=kill)
    for part in (tmp_path / "out" / "parts").glob("*/*.safetensors"):
        part.write_bytes(part.read_bytes()[:-100])
    whole = run(study, out=tmp_path / "out")
    before = finished.scores
    before = before[(before["control"] == "trained") & (before["run"] == 0)]
    pd.testing.assert_frame_equal(whole.scores, before)


def test_twins_may_have_saes_that_are_trained_on_them(store: Path, tmp_path: Path) -> None:
    trained = UntrainedControl(saes_a="trained", saes_b="random")
    study = study_with(store, controls=Controls(untrained=trained), seeds=[0], metric="pearson")
    study = dataclasses.replace(
        study,
        model_a=dataclasses.replace(study.model_a, layers=[1]),
        model_b=dataclasses.replace(study.model_b, layers=[1]),
        verdicts=False,
    )
    layers = run(study, out=tmp_path / "out").layers.set_index("model")
    fit = layers["explained_variance"]
    assert fit["a_untrained"] > fit["b_untrained"]
    for letter in "ab":  # as sparse as the model's own
        assert layers["l0"][f"{letter}_untrained"] == pytest.approx(layers["l0"][letter], rel=0.2)


def test_weights_of_a_twin_that_hash_to_something_else_are_refused(
    tmp_path: Path,
) -> None:
    wrong = UntrainedControl(sha256_a="0" * 64)
    study = study_with(tmp_path / "store", controls=Controls(untrained=wrong), seeds=[0])
    with pytest.raises(ModelError, match="0000"):
        run(study, out=tmp_path / "out")


def test_a_second_study_with_controls_reuses_the_first_ones_activations(
    finished: Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded again")

    for name in ("load_model", "untrained_model"):
        monkeypatch.setattr(saelign.pipeline, name, refuse)
    study = study_with(store, seeds=[1], metric="pearson")
    again = run(study, out=tmp_path / "out")
    before = finished.scores
    before = before[(before["run"] == 1) & (before["metric"] == "pearson")]
    same = ["score", "null_mean", "p"]
    assert np.array_equal(again.scores[same], before[same], equal_nan=True)
    shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize(
    ("controls", "error", "message"),
    [
        (
            ["untraned"],
            UnknownNameError,
            r"unknown control 'untraned' \(did you mean 'untrained'\?\)",
        ),
        (["seed"], StudyError, "the control seed must say where other SAEs of a model lie"),
        (
            [{"seed": {"saes_a": "other.safetensors"}}],
            StudyError,
            r"controls.seed.saes_a must hold \{layer\} when there are several layers",
        ),
        ([{"untrained": {"sead": 1}}], UnknownNameError, "unknown key of controls.untrained"),
        ([{"untrained": {"seed": -1}}], StudyError, "controls.untrained.seed must be at least 0"),
        (["untrained", "untrained"], StudyError, "must not repeat an entry, got untrained twice"),
        ("untrained", StudyError, "controls must be a list, got 'untrained'"),
        ([3], StudyError, "a control must be a name or"),
    ],
)
def test_controls_are_read_strictly(
    controls: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    content = {**study_mapping(study_with(tmp_path)), "controls": controls}
    with pytest.raises(error, match=message):
        read_study(content, folder=tmp_path)


@pytest.mark.parametrize("measure", ["pwcca", {"rsa": {"inner": "pearson"}}])
def test_measures_that_a_rotation_changes_are_refused_on_activations(
    measure: Any, tmp_path: Path
) -> None:
    asked = {measure: {}} if isinstance(measure, str) else measure
    ((name, options),) = asked.items()
    content = {
        **study_mapping(study_with(tmp_path)),
        "measures": [{name: {**options, "on": "activations"}}],
    }
    with pytest.raises(StudyError, match=r"must not change when they are rotated, (pwcca|rsa)"):
        read_study(content, folder=tmp_path)


def test_a_study_with_controls_is_written_as_it_is_read(tmp_path: Path) -> None:
    study = study_with(tmp_path)
    assert read_study(study_mapping(study), folder=study.folder) == study


def test_saes_of_a_control_that_are_not_there_are_named_before_anything_runs(
    tmp_path: Path,
) -> None:
    seed = SeedControl(saes_a=str(tmp_path / "none_{layer}.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"none_1\.safetensors"):
        check(study_with(tmp_path / "store", controls=Controls(seed=seed)))
