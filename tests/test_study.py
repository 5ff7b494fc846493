"""A study is read strictly: what it says is taken as said, or refused with the way out."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from saelign.demo import demo_study
from saelign.errors import (
    DegenerateError,
    FormatError,
    MissingFileError,
    StudyError,
    UnknownNameError,
)
from saelign.study import load_study, read_study, study_mapping

MINIMAL: dict[str, Any] = {
    "saelign": 1,
    "name": "small",
    "model_a": {"name": "A", "saes": "a/{layer}.safetensors"},
    "model_b": {"name": "B", "saes": "b/{layer}.safetensors"},
    "text": {"source": "text.txt"},
}


def read(**changes: Any) -> Any:
    return read_study({**MINIMAL, **changes}, folder=Path("/studies"))


def test_what_is_not_said_has_the_documented_default() -> None:
    study = read()
    assert study.filters.min_active_tokens == 30
    assert study.filters.min_correlation == 0.1
    assert study.text.context_length == 128
    assert study.nulls == {"shuffle": 1000, "rate_matched": 1000}
    assert study.seeds == [0]


def test_a_study_written_out_reads_back_as_itself() -> None:
    study = read(
        measures=["pc1", {"svcca": {"variance": 0.99}}, {"rsa": {"inner": "pearson"}}],
        filters={"min_correlation": None},
        seeds=[3, 4],
    )
    again = read_study(yaml.safe_load(yaml.safe_dump(study_mapping(study))), folder=study.folder)
    assert again == study


def test_the_shipped_study_reads_back_as_itself() -> None:
    study = demo_study()
    assert read_study(study_mapping(study), folder=study.folder) == study


def test_a_measure_with_options_says_so_in_its_label() -> None:
    study = read(measures=["rsa", {"svcca": {"n_components": 10}}])
    assert [m.label for m in study.measures] == ["rsa", "svcca(n_components=10)"]


def test_paths_start_at_the_study_files_folder(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    study = load_study(path)
    assert study.model_a.sae_path(3, study.folder) == tmp_path / "a" / "3.safetensors"


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"modle_a": {}},
            UnknownNameError,
            "unknown key of study 'modle_a' (did you mean 'model_a'?)",
        ),
        ({"folder": "x"}, UnknownNameError, "unknown key of study 'folder'"),
        (
            {"text": {"source": "t", "token": 5000}},
            UnknownNameError,
            "unknown key of text 'token' (did you mean 'tokens'?)",
        ),
        (
            {"measures": ["ckaa"]},
            UnknownNameError,
            "unknown measure 'ckaa' (did you mean 'cka'?), expected one of: "
            "cka, mutual_knn, pc1, procrustes, pwcca, rsa, svcca, svcca_r2",
        ),
        (
            {"measures": [{"rsa": {"iner": "cosine"}}]},
            UnknownNameError,
            "unknown option of rsa 'iner' (did you mean 'inner'?), expected one of: inner, outer",
        ),
        ({"measures": ["rsa", "rsa"]}, StudyError, "measures must not repeat an entry"),
        ({"measures": "rsa"}, StudyError, "measures must be a list, got 'rsa'"),
        (
            {"measures": [["rsa"]]},
            StudyError,
            "a measure must be a name or {name: {option: value}}",
        ),
        ({"measures": [{"svcca": [1]}]}, StudyError, "a measure must be a name or {name: {option"),
        (
            {"measures": [{"svcca": {"n_components": "ten"}}]},
            DegenerateError,
            "n_components must be a whole number, got 'ten'",
        ),
        (
            {"measures": [{"svcca": {"variance": 99}}]},
            DegenerateError,
            "variance must be a fraction in (0, 1], got 99",
        ),
        (
            {"measures": [{"rsa": {"inner": "cosin"}}]},
            UnknownNameError,
            "unknown inner similarity of rsa 'cosin' (did you mean 'cosine'?)",
        ),
        ({"measures": []}, StudyError, "measures must have at least one entry"),
        (
            {"nulls": {"shufle": 10}},
            UnknownNameError,
            "unknown null 'shufle' (did you mean 'shuffle'?)",
        ),
        ({"nulls": {"shuffle": 1}}, StudyError, "nulls.shuffle must be at least 2, got 1"),
        ({"metric": "spearman"}, UnknownNameError, "unknown metric 'spearman'"),
        ({"matching": ["one_to_two"]}, UnknownNameError, "unknown matching 'one_to_two'"),
        ({"name": "a/b"}, StudyError, "name must be letters, digits, dots, dashes"),
        ({"name": 3}, StudyError, "name must be text, got 3"),
        ({"seeds": [-1]}, StudyError, "seeds[0] must be at least 0, got -1"),
        ({"seeds": [True]}, StudyError, "seeds[0] must be a whole number, got True"),
        (
            {"text": {"source": "t", "tokens": 10}},
            StudyError,
            "text.tokens must be at least 1,000, got 10",
        ),
        (
            {"text": {"source": "t", "tokens": "many"}},
            StudyError,
            "text.tokens must be a whole number or all, got 'many'",
        ),
        ({"text": {}}, StudyError, "text must have the key source, it has none"),
        ({"text": "file.txt"}, StudyError, "text must be a mapping of keys, got 'file.txt'"),
        (
            {"filters": {"min_correlation": 1.0}},
            StudyError,
            "filters.min_correlation must lie in [-1, 1), got 1.0",
        ),
        (
            {"model_a": {**MINIMAL["model_a"], "dtype": "int8"}},
            StudyError,
            "model_a.dtype must be one of float32, bfloat16, float16, auto, got 'int8'",
        ),
        (
            {"model_a": {**MINIMAL["model_a"], "layers": [1, 1]}},
            StudyError,
            "model_a.layers must be distinct layers, got [1, 1]",
        ),
        (
            {"model_a": {"name": "A", "saes": "one.safetensors", "layers": [1, 2]}},
            StudyError,
            "model_a.saes must hold {layer} when there are several layers",
        ),
        ({"saelign": 2}, FormatError, "this version reads studies of format 1, got 2: upgrade"),
        ({"saelign": None}, FormatError, "a study must say its format in the key saelign"),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(
    changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as raised:
        read(**changes)
    assert words in str(raised.value)


def test_a_layer_without_an_sae_path_is_named() -> None:
    study = read(model_a={"name": "A", "saes": {0: "x", 2: "y"}})
    with pytest.raises(StudyError, match=r"layer 1 has none \(there are: 0, 2\)"):
        study.model_a.sae_path(1, study.folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- a\n", "a study must be a mapping of keys, got a list"),
        ("a: [", "must be a YAML file: line 1, column 5: expected"),
        ("", "a study must be a mapping of keys, got nothing"),
        (
            "name: a\ntext: {}\nname: b\n",
            r"must be a YAML file: line 3, column 1: the key 'name' stands twice \(lines 1 and 3\)",
        ),
    ],
)
def test_a_file_that_is_no_study_is_refused(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(content)
    with pytest.raises(FormatError, match=words):
        load_study(path)


def test_a_missing_study_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="a study file must be there to be read"):
        load_study(tmp_path / "absent.yaml")
    with pytest.raises(MissingFileError, match="is a folder: give the YAML file in it"):
        load_study(tmp_path)


def test_a_tilde_is_the_users_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    study = read(model_a={"name": "A", "saes": "~/saes/{layer}"})
    assert study.model_a.sae_path(2, study.folder) == Path("/home/ada/saes/2")
