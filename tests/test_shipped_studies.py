"""Studies that ship: by name, from a folder in place of the hub, and end to end on stand-ins."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import kstest

import stand_ins
from saelign.cli import main
from saelign.errors import MissingFileError, StudyError, UnknownNameError
from saelign.locations import Places
from saelign.plan import check
from saelign.results import open_run
from saelign.saes.formats.saelens import _PUBLISHED_SCALES
from saelign.study import load_shipped, load_study, read_study, shipped_studies, study_mapping

NAMES = list(shipped_studies())
SOME_LAYERS = (0, 0.5, 1)
"""Which of a study's layers its stand-ins are run at: the first, that in the middle, the last."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder of one's own, and no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAELIGN_STORE", str(tmp_path / "store"))
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("saelign.pipeline.write_figures", lambda *_, **__: [])
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """By name, a folder with a study's stand-ins: `hub`, and what it names by path."""

    @cache
    def of(name: str, planted: bool = False) -> Path:
        root = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root)
            stand_ins.build(load_shipped(name), root / "hub", planted=planted)
        return root

    return of


@pytest.fixture(scope="module")
def scores(made: Any) -> Any:
    """By name, the scores of a study's stand-ins, run by the command line."""

    @cache
    def of(name: str, planted: bool = False) -> pd.DataFrame:
        root = made(name, planted)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root)
            patch.setenv("SAELIGN_STORE", str(root / "store"))
            patch.setattr("saelign.pipeline.write_figures", lambda *_, **__: [])
            file = root / "shortened.yaml"
            file.write_text(yaml.safe_dump(shortened(name, planted)), encoding="utf-8")
            assert main(["run", str(file), "--models-from", "hub", "--json"]) == 0
        run = open_run(root / "saelign-runs" / name)
        assert run.info["models_from"] == str((root / "hub").resolve())
        source = run.info["text_source"]
        assert source["dataset"] == str(root / "hub" / "Skylion007" / "openwebtext")
        for model in run.info["models"].values():
            assert model["loaded_from"] == str(root / "hub" / model["name"])
            if model["name"] == "google/gemma-2-9b":
                for layer, sae in model["saes"].items():
                    assert sae["neuronpedia"].startswith(f"gemma-2-9b/{layer}-gemmascope-")
        return run.scores

    return of


def shortened(name: str, planted: bool = False) -> dict[str, Any]:
    """The study's file with less to do: fewer layers, tokens, shuffles, runs and concepts."""
    content = yaml.safe_load(shipped_studies()[name].read_text(encoding="utf-8"))
    of_both = set(content["model_a"]["layers"]) & set(content["model_b"]["layers"])
    for side in ("model_a", "model_b"):
        layers = sorted(of_both) if planted else content[side]["layers"]
        content[side]["layers"] = [layers[round(at * (len(layers) - 1))] for at in SOME_LAYERS]
    if planted:
        content.pop("subspaces", None)
        content["controls"] = []
    content["seeds"] = content["seeds"][:1]
    content["text"]["tokens"] = 6_000
    content["nulls"] = dict.fromkeys(content["nulls"], 49)
    content["filters"] = {"min_active_tokens": 12}
    if "subspaces" in content:
        inside = content["subspaces"]
        inside |= {"concepts": inside["concepts"][:1], "same_size": 3}
        inside |= {key: inside[key][:1] for key in ("unions", "phrases") if key in inside}
        inside["n_phrases"] = 40
    return content


# By name ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_study_says_what_it_is(name: str) -> None:
    study = load_shipped(name)
    assert study.name == name
    assert study.description.endswith("?") or study.description.endswith("The ceiling.")
    assert study.source
    for model in (study.model_a, study.model_b):
        assert model.revision
        assert model.layers != "all"
        for layer in model.layers:
            location = model.sae_location(layer)
            assert re.search(rf"(layer_|layers\.|blocks\.){layer}\b", location), location
    assert read_study(study_mapping(study), folder=study.folder) == study


def test_studies_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["studies"]) == 0
    printed = capsys.readouterr().out
    for name in NAMES:
        assert f"{name}\n  " in printed
    assert (
        "A: google/gemma-2-2b, layers 2, 6, 10, 14, 17, 18, 22; hf://google/gemma-scope-2b-pt"
        in (printed)
    )
    assert "text: Skylion007/openwebtext, 22,350 tokens in contexts of 150; 5 runs\n" in printed
    assert "from: Son et al. (2025), Semantic Convergence" in printed
    assert main(["studies", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == NAMES
    mlp = next(row for row in rows if row["name"] == "gemma-2-2b-vs-9b-mlp")
    assert mlp["model_b"] == {
        "name": "google/gemma-2-9b",
        "revision": "main",
        "site": "mlp_out",
        "layers": [2, 6, 10, 19, 25, 39],
        "saes": "hf://google/gemma-scope-9b-pt-mlp",
    }


def test_a_study_is_printed_to_be_copied_and_changed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["studies", "pythia-70m-vs-160m"]) == 0
    printed = capsys.readouterr().out
    (here / "mine.yaml").write_text(printed, encoding="utf-8")
    assert load_study("mine.yaml") == load_shipped("pythia-70m-vs-160m")
    assert main(["studies", "pythia-70m-vs-160m", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert read_study(content, folder=here) == load_shipped("pythia-70m-vs-160m")
    assert main(["studies", "pythia-70m"]) == 1
    assert capsys.readouterr().err.startswith(
        "saelign: unknown study 'pythia-70m' (did you mean 'pythia-70m-vs-160m'?), expected one of:"
    )


def test_a_file_comes_before_a_name_and_a_name_before_a_folder(here: Path) -> None:
    (here / "pythia-160m-seeds").mkdir()
    assert load_study("pythia-160m-seeds").folder == here
    (here / "pythia-160m-seeds").rmdir()
    content = shortened("pythia-160m-seeds") | {"name": "mine"}
    (here / "pythia-160m-seeds").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert load_study("pythia-160m-seeds").name == "mine"
    assert load_shipped("pythia-160m-seeds").name == "pythia-160m-seeds"


@pytest.mark.parametrize("command", ["run", "check"])
def test_an_unknown_name_names_the_nearest(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "gemma-2-2b-9b"]) == 1
    assert capsys.readouterr().err == (
        "saelign: a study must be a YAML file or the name of one that ships, 'gemma-2-2b-9b' is "
        "neither (did you mean 'gemma-2-2b-vs-9b'?): `saelign studies` lists them\n"
    )


def test_what_looks_like_a_file_is_told_as_one() -> None:
    for path in ("gemma-2-2b-vs-9b.yaml", "studies/pythia"):
        with pytest.raises(MissingFileError, match=r"a study file must be there to be read"):
            load_study(path)
    with pytest.raises(UnknownNameError, match=r"must be a YAML file or the name of one that ship"):
        load_study("demo")


def test_keys_of_places_are_no_keys_of_a_study() -> None:
    content = shortened(NAMES[0])
    with pytest.raises(UnknownNameError, match=r"unknown key of study 'models_from'"):
        read_study(content | {"models_from": "x"}, folder=Path())


# A folder in place of the hub ---------------------------------------------------------------------


def test_places_are_folders_where_one_stands_in_place_of_the_hub(here: Path) -> None:
    hub, there = Places(here), Places(here, here / "hub")
    assert hub.repository("a/b") == "a/b"
    assert there.repository("a/b") == str(here / "hub" / "a" / "b")
    (here / "a" / "b").mkdir(parents=True)
    assert hub.repository("a/b") == there.repository("a/b") == str(here / "a" / "b")
    assert hub.sae("hf://a/b@v1/c/d") == "hf://a/b@v1/c/d"
    assert there.sae("hf://a/b@v1/c/d") == here / "hub" / "a" / "b" / "c" / "d"
    assert there.sae("c/d") == here / "c" / "d"
    with pytest.raises(StudyError, match=r"a place on a hub must be hf://OWNER/NAME"):
        there.sae("hf://a")


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_of_a_shipped_study_is_found_in_its_stand_ins(
    name: str, made: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = made(name)
    monkeypatch.chdir(root)
    assert main(["check", name, "--models-from", "hub", "--json"]) == 0
    told, study = json.loads(capsys.readouterr().out), load_shipped(name)
    for side, model in (("model_a", study.model_a), ("model_b", study.model_b)):
        assert (told[side]["name"], told[side]["layers"]) == (model.name, model.layers)
    assert told["tokens"] == [study.text.tokens] * len(study.seeds)
    assert told["out"] == str(Path("saelign-runs") / name)


def test_all_that_a_folder_lacks_is_told_at_once(
    here: Path, made: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "gemma-2-2b-vs-9b"
    assert main(["check", name, "--models-from", "nowhere"]) == 1
    assert capsys.readouterr().err == (
        f"saelign: a folder in place of the hub must be there, {here}/nowhere is not: fill it with "
        "`hf download OWNER/NAME --local-dir DIR/OWNER/NAME`, or leave --models-from out\n"
    )
    (here / "hub").mkdir()
    assert main(["run", name, "--models-from", "hub"]) == 1
    at = here / "hub"
    lacking = (
        f"{at}/google/gemma-2-2b (model A); "
        f"{at}/google/gemma-scope-2b-pt-res (SAEs of google/gemma-2-2b); "
        f"{at}/google/gemma-2-9b (model B); "
        f"{at}/google/gemma-scope-9b-pt-res (SAEs of google/gemma-2-9b); "
        f"{at}/Skylion007/openwebtext (data set)"
    )
    assert capsys.readouterr().err.endswith(
        "saelign: a folder in place of the hub must hold all that the study names, it lacks "
        f"{lacking}: download it to there, or leave --models-from out\n"
    )
    shutil.copytree(made(name) / "hub", at, dirs_exist_ok=True)
    scope = at / "google" / "gemma-scope-9b-pt-res"
    shutil.rmtree(scope / "layer_39")
    (scope / "layer_2" / "width_16k" / "average_l0_67").rename(
        scope / "layer_2" / "width_16k" / "average_l0_50"
    )
    with pytest.raises(MissingFileError) as raised:
        check(load_study(name), models_from=at)
    two = scope / "layer_2" / "width_16k"
    assert (
        f"lacks {two}/average_l0_67 (SAE of layer 2; {two} holds average_l0_50); "
        f"{scope}/layer_39/width_16k/average_l0_131 (SAE of layer 39; {scope} holds layer_10, "
        "layer_19, layer_2, layer_25, layer_6): download"
    ) in str(raised.value)


def test_a_layer_that_the_model_does_not_have_names_those_that_it_has(made: Any) -> None:
    content = shortened("pythia-70m-vs-160m")
    content["model_a"]["layers"] = [6]
    content["model_a"]["saes"] = "saes/layer_{layer}"
    study = read_study(content, folder=Path())
    with pytest.raises(StudyError, match=r"must lie between 0 and 5, got 6: .*pythia-70m has 6 bl"):
        check(study, models_from=made("pythia-70m-vs-160m") / "hub")


def test_names_of_saelens_have_no_place_in_a_folder(made: Any) -> None:
    content = shortened("pythia-70m-vs-160m")
    content["model_b"]["saes"] = "sae_lens:pythia-160m/layer_{layer}"
    study = read_study(content, folder=Path())
    words = r"must be said as paths or as hf://OWNER/NAME/FOLDER, got 'sae_lens:.*0', which SAELens"
    with pytest.raises(StudyError, match=words):
        check(study, models_from=made("pythia-70m-vs-160m") / "hub")


def test_a_filled_cache_of_the_hub_is_read_offline(here: Path, made: Any) -> None:
    hub, home = made("pythia-70m-vs-160m") / "hub", here / "home"
    content = shortened("pythia-70m-vs-160m")
    content |= {"matching": ["one_to_one"], "measures": ["pc1"], "controls": []}
    del content["subspaces"]
    for side in ("model_a", "model_b"):
        content[side]["layers"] = content[side]["layers"][:1]
    (here / "study.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    commits = {}
    for number, repository in enumerate(sorted(hub.glob("*/*"))):
        kind, ref = "models", "main"
        if repository.name == "openwebtext":
            kind, ref = "datasets", "refs/convert/parquet"
        owner_name = repository.relative_to(hub).as_posix()
        at = home / "hub" / f"{kind}--{owner_name.replace('/', '--')}"
        commits[owner_name] = f"{number:x}" * 40
        shutil.copytree(repository, at / "snapshots" / commits[owner_name])
        (at / "refs" / ref).parent.mkdir(parents=True)
        (at / "refs" / ref).write_text(commits[owner_name], encoding="utf-8")
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))
    } | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "saelign.cli", "run", "study.yaml", "--out", "out"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    info = json.loads((here / "out" / "run.json").read_text(encoding="utf-8"))
    assert info["models_from"] is None
    model, name = info["models"]["a"], "EleutherAI/pythia-70m"
    assert model["fingerprint"] == f"{name}@{commits[name]}"
    saes = "EleutherAI/sae-pythia-70m-32k"
    assert model["saes"]["0"]["source"] == f"hf://{saes}@{commits[saes]}/layers.0"
    source = info["text_source"]
    assert source["revision"] == commits["Skylion007/openwebtext"]
    assert source["dataset"].endswith(f"snapshots/{source['revision']}")


def test_the_scale_that_only_saelens_knows_is_folded(made: Any) -> None:
    from saelign.saes import load_sae

    assert list(_PUBLISHED_SCALES.values()) == [0.21381838399317255]
    study = load_shipped("gemma-1-2b-vs-gemma-2-2b")
    folder = Path(Places(Path(), made(study.name) / "hub").sae(study.model_a.sae_location(12)))
    assert json.loads((folder / "cfg.json").read_text())["normalize_activations"] != "none"
    norms = np.linalg.norm(load_sae(folder).W_dec.numpy(), axis=1)
    np.testing.assert_allclose(norms, 1, rtol=1e-5)
    elsewhere = Path("elsewhere")
    shutil.copytree(folder, elsewhere)
    with pytest.raises(ValueError, match=r"whose statistics are not in its files"):
        load_sae(elsewhere)


# End to end ---------------------------------------------------------------------------------------


def at_chance(scores: pd.DataFrame) -> pd.DataFrame:
    """Of the comparisons whose decoder rows are independent of all else, what has been scored."""
    independent = scores["control"].isin(["trained", "document_shift", "seed_a"])
    return scores[independent & scores["score"].notna()]


@pytest.mark.parametrize("name", NAMES)
def test_random_stand_ins_of_a_shipped_study_come_out_at_chance(name: str, scores: Any) -> None:
    found = at_chance(scores(name))
    assert set(found["measure"]) == {"pc1", "svcca", "rsa", "rsa(inner=pearson)"}
    for which, cells in found.groupby(["measure", "matching", "null"]):
        assert len(cells) >= 9, which
        assert cells["n_pairs"].min() >= 15, which
        # Two cells with one layer in common have independent scores: the other layers are.
        assert kstest(cells["p"], "uniform").pvalue > 1e-3, which
        error = (cells["null_sd"] / (1 - cells["null_mean"])).pow(2).mean() ** 0.5
        assert abs(cells["calibrated"].mean()) < 4 * error / len(cells) ** 0.5, which


def test_all_studies_together_are_at_chance(scores: Any) -> None:
    found = pd.concat([at_chance(scores(name)) for name in NAMES])
    for which, cells in found.groupby(["measure", "null"]):
        assert len(cells) >= 63, which
        assert kstest(cells["p"], "uniform").pvalue > 1e-3, which
        assert not (cells["q"] < 0.01).any(), which


@pytest.mark.parametrize("name", ["pythia-70m-vs-160m", "gemma-2-2b-vs-9b"])
def test_a_planted_rotation_is_found_far_above_chance(name: str, scores: Any) -> None:
    found = scores(name, True)
    same = found["layer_a"] == found["layer_b"]
    planted = found[same & found["measure"].isin(["rsa", "svcca"])]
    assert len(planted) >= 3
    assert planted["calibrated"].min() > 0.9
    assert (planted["p"] <= 0.02).all()
