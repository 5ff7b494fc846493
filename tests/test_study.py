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
from saelign.locations import Places
from saelign.study import ModelStudy, load_study, read_study, study_mapping
from saelign.text import DatasetSource

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


def test_text_may_be_a_data_set_and_is_written_out_as_it_was_asked_for() -> None:
    text = {"source": {"dataset": "a/b", "streaming": True}, "documents": 50, "column": "body"}
    study = read(text=text)
    assert study.text.source == DatasetSource(dataset="a/b", streaming=True)
    assert (study.text.source.split, study.text.source.revision) == ("train", None)
    assert (study.text.documents, study.text.column) == (50, "body")
    assert read_study(
        yaml.safe_load(yaml.safe_dump(study_mapping(study))), folder=study.folder
    ) == (study)
    assert (read().text.documents, read().text.column) == ("all", "text")
    assert not read().text.across_documents


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
    assert study.model_a.sae_path(3, study.places) == tmp_path / "a" / "3.safetensors"


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
        (
            {"text": {"source": 3}},
            StudyError,
            "text.source must be text or a mapping of keys, got 3",
        ),
        (
            {"text": {"source": {"split": "train"}}},
            StudyError,
            "text.source must have the key dataset, it has none",
        ),
        (
            {"text": {"source": {"dataset": "a", "revison": "main"}}},
            UnknownNameError,
            "unknown key of text.source 'revison' (did you mean 'revision'?)",
        ),
        (
            {"text": {"source": {"dataset": "a", "streaming": True}}},
            StudyError,
            "text.documents must be a number where a data set is streamed, got all: say how many",
        ),
        (
            {"text": {"source": "t", "documents": 0}},
            StudyError,
            "text.documents must be at least 1, got 0",
        ),
        (
            {"text": {"source": "t", "documents": "some"}},
            StudyError,
            "text.documents must be a whole number or all, got 'some'",
        ),
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
        (
            {"model_a": {**MINIMAL["model_a"], "neuronpedia": "gpt2-small/6-res-jb"}},
            StudyError,
            "model_a.neuronpedia must hold {layer} when there are several layers, got 'gpt2-small",
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


# Semantic subspaces.


def test_subspaces_are_none_unless_asked_for_and_have_documented_defaults() -> None:
    assert read().subspaces is None
    assert read(subspaces=None).subspaces is None
    subspaces = read(subspaces={}).subspaces
    assert (subspaces.concepts, subspaces.unions, subspaces.phrases) == ("all", [], [])
    assert (subspaces.membership, subspaces.top_words, subspaces.min_share) == ("top_words", 5, 0.5)
    assert (subspaces.case, subspaces.inflected, subspaces.min_pairs) == ("smart", False, 10)
    assert (subspaces.same_size, subspaces.n_phrases, subspaces.min_phrases) == (100, 200, 0.1)


def test_inside_a_subspace_the_concept_stands_for_shared_tokens_and_correlation() -> None:
    study = read(subspaces={}, filters={"min_active_tokens": 7, "max_non_concept_tokens": 1})
    inside = study.subspaces.filters_in(study.filters)
    assert (inside.min_active_tokens, inside.max_non_concept_tokens, inside.top_k) == (7, 1, 5)
    assert (inside.min_shared_tokens, inside.min_correlation) == (None, None)
    study = read(subspaces={"filters": {"min_correlation": 0.3}})
    assert study.subspaces.filters_in(study.filters) == study.subspaces.filters
    assert study.subspaces.filters.min_shared_tokens == 1


def test_subspaces_written_out_read_back_as_themselves() -> None:
    asked = {
        "concepts": ["Emotions", "mine.txt"],
        "unions": [["Emotions", "Time", "mine.txt"]],
        "phrases": "all",
        "membership": "mass",
        "min_share": 1,
        "filters": {"min_shared_tokens": None},
    }
    study = read(subspaces=asked)
    assert study.subspaces.unions == [["Emotions", "Time", "mine.txt"]]
    assert study.subspaces.phrases == "all"
    assert read_study(study_mapping(study), folder=study.folder) == study


@pytest.mark.parametrize(
    ("subspaces", "error", "words"),
    [
        (
            {"concept": ["Time"]},
            UnknownNameError,
            "unknown key of subspaces 'concept' (did you mean 'concepts'?)",
        ),
        ({"concepts": []}, StudyError, "subspaces.concepts must have at least one entry"),
        ({"concepts": "Time"}, StudyError, "subspaces.concepts must be a list of texts or all"),
        ({"unions": 3}, StudyError, "subspaces.unions must be a list of lists of texts or all"),
        ("all", StudyError, "subspaces must be a mapping of keys or null, got 'all'"),
        ({"top_words": 0}, StudyError, "subspaces.top_words must be at least 1, got 0"),
        ({"min_pairs": 2}, StudyError, "subspaces.min_pairs must be at least 3, got 2"),
        ({"same_size": 1}, StudyError, "subspaces.same_size must be at least 2, got 1"),
        ({"n_phrases": 1}, StudyError, "subspaces.n_phrases must be at least 2, got 1"),
        ({"min_share": 0.0}, StudyError, "subspaces.min_share must lie in (0, 1], got 0.0"),
        ({"min_phrases": 1.5}, StudyError, "subspaces.min_phrases must lie in (0, 1], got 1.5"),
        (
            {"unions": [["Time"]]},
            StudyError,
            "subspaces.unions must list groups of two or more distinct concepts, got ['Time']",
        ),
        (
            {"unions": [["Time", "Time"]]},
            StudyError,
            "subspaces.unions must list groups of two or more distinct concepts",
        ),
        (
            {"phrases": [["Time", "Food", "Law"]]},
            StudyError,
            "subspaces.phrases must list groups of exactly two concepts, got ['Time', 'Food', 'L",
        ),
        (
            {"phrases": [["Time"]]},
            StudyError,
            "subspaces.phrases must list groups of exactly two concepts, got ['Time']",
        ),
        (
            {"membership": "top"},
            StudyError,
            "subspaces.membership must be one of top_words, mass, got 'top'",
        ),
        ({"case": "lower"}, StudyError, "subspaces.case must be one of smart, ignore, exact"),
        (
            {"filters": {"top_k": 0}},
            StudyError,
            "subspaces.filters.top_k must be at least 1, got 0",
        ),
        (
            {"filters": {"min_correlation": 2.0}},
            StudyError,
            "subspaces.filters.min_correlation must lie in [-1, 1), got 2.0",
        ),
    ],
)
def test_subspaces_that_cannot_be_are_refused_with_the_way_out(
    subspaces: object, error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as raised:
        read(subspaces=subspaces)
    assert words in str(raised.value)


def test_subspaces_without_a_measure_on_decoder_rows_are_refused() -> None:
    on_activations = [{"cka": {"on": "activations"}}]
    with pytest.raises(StudyError, match=r"subspaces are scored on decoder rows, so at least one"):
        read(subspaces={}, measures=on_activations)
    assert read(subspaces={}, measures=[*on_activations, "cka"]).subspaces is not None


def test_a_concept_may_follow_itself_in_a_phrase() -> None:
    assert read(subspaces={"phrases": [["Time", "Time"]]}).subspaces.phrases == [["Time", "Time"]]


def test_a_layer_without_an_sae_path_is_named() -> None:
    study = read(model_a={"name": "A", "saes": {0: "x", 2: "y"}})
    with pytest.raises(StudyError, match=r"layer 1 has none \(there are: 0, 2\)"):
        study.model_a.sae_path(1, study.places)


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


def test_a_place_on_a_hub_and_a_name_of_saelens_are_no_paths(tmp_path: Path) -> None:
    for given in ("hf://google/gemma-scope-2b-pt-res@main/layer_{layer}", "sae_lens:x/{layer}/~"):
        study = read(model_a={"name": "A", "saes": given})
        assert study.model_a.sae_path(2, Places(tmp_path)) == given.replace("{layer}", "2")
    study = read(model_a={"name": "A", "saes": {2: "hf://a/b/c"}})
    assert study.model_a.sae_path(2, Places(tmp_path)) == "hf://a/b/c"


def test_a_tilde_is_the_users_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    study = read(model_a={"name": "A", "saes": "~/saes/{layer}"})
    assert study.model_a.sae_path(2, study.places) == Path("/home/ada/saes/2")


def test_neuronpedia_names_come_from_a_pattern_or_one_by_one() -> None:
    def of(told: object) -> ModelStudy:
        changed = {**MINIMAL, "model_a": {**MINIMAL["model_a"], "neuronpedia": told}}
        return read_study(changed, folder=Path()).model_a

    assert of("gpt2-small/{layer}-res-jb").neuronpedia_id(6) == "gpt2-small/6-res-jb"
    assert of({6: "gpt2-small/6-res-jb"}).neuronpedia_id(6) == "gpt2-small/6-res-jb"
    assert of({6: "gpt2-small/6-res-jb"}).neuronpedia_id(7) is None
    assert read_study(MINIMAL, folder=Path()).model_a.neuronpedia_id(6) is None
