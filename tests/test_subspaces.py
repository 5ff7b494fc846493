"""Semantic subspaces: planted ones are found and told from chance, and chance is what it claims."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scipy.stats
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from conftest import lossless_sae, tiny_model, tiny_tokenizer
from saelign import correlate, match
from saelign.cells import LayerPair, Setting, correlation_between
from saelign.concepts.concept import Concept, Keyword, save_concept, shipped_concepts
from saelign.concepts.occurrences import Occurrences
from saelign.errors import MissingFileError, StudyError, UnknownNameError
from saelign.layers import Layer, Reading, describe_layer, read_text_of_run
from saelign.matching import MATCHINGS, Filters
from saelign.phrases import Phrases
from saelign.pipeline import corrected, run
from saelign.results import Run
from saelign.similarity import MEASURES
from saelign.study import MeasureStudy, Study, read_study
from saelign.subspace_study import Subspaces, SubspacesStudy, read_subspaces
from saelign.subspaces import (
    SAME_SIZE,
    Similarities,
    Subspace,
    SubspaceCell,
    combined,
    compare_subspaces,
    group_scores,
    keepable,
    listed_subspaces,
    match_inside,
    members_of,
    random_groups,
    read_subspace_cell,
    rows_of,
    save_subspace_cell,
    scored,
    with_members,
)
from saelign.text import Tokens, words_of

BOS, COMMA = "<s>", ","
N_KEYWORDS, N_FILLERS, N_COMMAS = 20, 60, 6
N_CONTEXTS, LENGTH = 80, 50
D_A, D_B = 24, 20
SHARED, APART, ONE_SIDED, FEW = "Shared", "Apart", "OneSided", "Few"
"""Concepts: of one geometry in both models; of two; without features in A; of too few features."""

N_FEW = 4
STUDY: dict[str, Any] = {
    "saelign": 1,
    "name": "planted",
    "model_a": {"name": "A", "saes": "{layer}"},
    "model_b": {"name": "B", "saes": "{layer}"},
    "text": {"source": "text.txt"},
    "filters": {"min_active_tokens": 5},
    "matching": ["one_to_one"],
    "measures": ["rsa", "cka", "svcca"],
    "nulls": {"shuffle": 99, "rate_matched": 99},
    "subspaces": {"same_size": 39},
}


def keywords_of(name: str) -> list[str]:
    return [f"{name.lower()}{i}" for i in range(N_KEYWORDS)]


def concept(name: str, keywords: Sequence[str] | None = None) -> Concept:
    keywords = keywords_of(name) if keywords is None else keywords
    return Concept(
        name=name,
        version="1",
        about="",
        keywords=tuple(Keyword(text=text, source="here") for text in keywords),
    )


CONCEPTS = tuple(concept(name) for name in (SHARED, APART, ONE_SIDED, FEW))


@dataclass(frozen=True)
class World:
    """Two layers over a text, and what was planted in them.

    Attributes:
        a: A layer whose features fire on one word each.
        b: Another; which feature fires on which word is drawn for each layer by itself.
        acts: Activations of both.
        planted: For each side and concept the features that fire on its keywords.
        reading: The text.
        occurrences: Where its keywords stand.
    """

    a: Layer
    b: Layer
    acts: tuple[sp.csr_array, sp.csr_array]
    planted: tuple[dict[str, list[int]], dict[str, list[int]]]
    reading: Reading
    occurrences: Occurrences

    @property
    def pair(self) -> LayerPair:
        return LayerPair(a=self.a, b=self.b, reading=self.reading)


def text_of(words: Sequence[str], rng: np.random.Generator) -> tuple[Tokens, list[str]]:
    """Contexts of random words, a token each, that begin with BOS."""
    names = [BOS, *(f"Ġ{word}" for word in words), COMMA]
    ids = rng.integers(1, len(names), size=(N_CONTEXTS, LENGTH + 1)).astype(np.int32)
    ids[:, 0] = 0
    everything = np.ones(ids.shape, dtype=bool)
    tokens = Tokens(
        input_ids=ids,
        attended=everything,
        kept=ids > 0,
        document=np.arange(N_CONTEXTS, dtype=np.int32),
        special_ids=(0,),
    )
    return tokens, names


def acts_on(fired_on: list[int], token_ids: np.ndarray, rng: np.random.Generator) -> sp.csr_array:
    """Features that fire on most tokens of one id each, some more often than others."""
    n_tokens = len(token_ids)
    acts = np.zeros((n_tokens, len(fired_on)), dtype=np.float32)
    for feature, token in enumerate(fired_on):
        fires = (token_ids == token) & (rng.random(n_tokens) < rng.uniform(0.7, 1))
        acts[fires, feature] = rng.uniform(1, 2, size=int(fires.sum()))
    return sp.csr_array(acts)


def planted_world(seed: int = 0) -> World:
    rng = np.random.default_rng(seed)
    fillers = [f"w{i}" for i in range(N_FILLERS)]
    words = [word for one in CONCEPTS for word in one.words] + fillers
    tokens, names = text_of(words, rng)
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token=BOS)), bos_token=BOS
    )
    strings = {i: name.replace("Ġ", " ") for name, i in vocabulary.items()}
    reading = read_text_of_run(tokens, strings, rng_halves=rng, rng_shifts=rng)
    sides = []
    for letter in "ab":
        fired_on = [vocabulary[f"Ġ{word}"] for word in fillers] + [vocabulary[COMMA]] * N_COMMAS
        for one in CONCEPTS:
            n = {FEW: N_FEW, ONE_SIDED: 0 if letter == "a" else N_KEYWORDS}.get(
                one.name, N_KEYWORDS
            )
            fired_on += [vocabulary[f"Ġ{word}"] for word in one.words[:n]]
        fired_on += [-1] * 3  # dead
        sides.append(rng.permutation(fired_on).tolist())
    geometry = rng.normal(size=(len(names), D_A))
    turned = geometry @ rng.normal(size=(D_A, D_B)) + 0.5 * rng.normal(size=(len(names), D_B))
    is_shared = np.isin(np.arange(len(names)), [vocabulary[f"Ġ{w}"] for w in keywords_of(SHARED)])
    apart = np.where(is_shared[:, None], turned, rng.normal(size=turned.shape) * turned.std())
    acts = tuple(acts_on(fired_on, tokens.token_ids, rng) for fired_on in sides)
    a, b = (
        describe_layer(
            matrix, decoder[fired_on], reading, Filters(min_active_tokens=5), layer=layer
        )
        for matrix, decoder, fired_on, layer in zip(
            acts, (geometry, apart), sides, (2, 3), strict=True
        )
    )
    planted = tuple(
        {
            one.name: [
                feature
                for feature, token in enumerate(fired_on)
                if names[token].removeprefix("Ġ") in one.words and token >= 0
            ]
            for one in CONCEPTS
        }
        for fired_on in sides
    )
    occurrences = Occurrences.of(words_of(tokens, tokenizer), CONCEPTS)
    return World(
        a=a,
        b=b,
        acts=(acts[0], acts[1]),
        planted=(planted[0], planted[1]),
        reading=reading,
        occurrences=occurrences,
    )


def subspaces_of(
    study: SubspacesStudy, *, unions: Sequence[tuple[str, ...]] = (), asked: Sequence[str] = ()
) -> Subspaces:
    return Subspaces(
        study=study,
        concepts=CONCEPTS,
        asked=tuple(asked) or tuple(one.name for one in CONCEPTS),
        unions=tuple(unions),
        phrases=(),
    )


def study_of(**changes: Any) -> Study:
    subspaces = {**STUDY["subspaces"], **changes.pop("subspaces", {})}
    return read_study({**STUDY, **changes, "subspaces": subspaces}, folder=Path())


def setting_of(study: Study, seed: int = 0) -> Setting:
    return Setting(
        study=study,
        control="trained",
        run=0,
        seed=seed,
        metrics=study.metrics,
        halves_scored=False,
        judged=False,
    )


def with_all_members(world: World, subspaces: Subspaces) -> tuple[World, list[list[dict]]]:
    """The world with the members of both layers, and what is told of them."""
    (a, of_a), (b, of_b) = (
        with_members(layer, acts, subspaces, world.occurrences, None)
        for layer, acts in zip((world.a, world.b), world.acts, strict=True)
    )
    return replace(world, a=a, b=b), [of_a, of_b]


def compared(
    world: World, study: Study, *, seed: int = 0, **asked: Any
) -> tuple[SubspaceCell, pd.DataFrame]:
    """What the subspaces of the world's layer pair give, and their scores as a table."""
    subspaces = subspaces_of(study.subspaces, **asked)
    world, _ = with_all_members(world, subspaces)
    listed = listed_subspaces(subspaces, None)
    cell = compare_subspaces(setting_of(study, seed), world.pair, subspaces, listed)
    return cell, pd.DataFrame(cell.scores)


@pytest.fixture(scope="module")
def world() -> World:
    return planted_world()


@dataclass(frozen=True)
class Noise:
    """Two layers whose features have nothing to do with each other but how often they fire."""

    pair: LayerPair
    pools: tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def noise() -> Noise:
    rng = np.random.default_rng(5)
    tokens, names = text_of([f"w{i}" for i in range(60)], rng)
    strings = dict(enumerate(names))
    reading = read_text_of_run(tokens, strings, rng_halves=rng, rng_shifts=rng)
    layers, pools = [], []
    for _ in range(2):
        rates = rng.permutation(np.geomspace(0.01, 0.3, 130))
        fires = rng.random((tokens.n_tokens, 130)) < rates
        acts = sp.csr_array((fires * rng.exponential(size=fires.shape)).astype(np.float32))
        # The rarest point one way and the most frequent the other, in both models.
        decoder = rng.normal(size=(130, 12))
        decoder[:, 0] += 4 * np.argsort(np.argsort(rates)) / 130
        layer = describe_layer(acts, decoder, reading, Filters(min_active_tokens=5), layer=0)
        layers.append(layer)
        non_concept = (layer.features["n_non_concept"] > 0).to_numpy()
        assert 0 < non_concept.sum() < 65
        pools.append(np.flatnonzero(~non_concept))
    return Noise(
        pair=LayerPair(a=layers[0], b=layers[1], reading=reading), pools=(pools[0], pools[1])
    )


# Planted concepts.


def test_the_features_planted_on_a_concept_are_found_and_no_others(world: World) -> None:
    subspaces = subspaces_of(SubspacesStudy())
    found, told = with_all_members(world, subspaces)
    for layer, planted, rows in zip((found.a, found.b), world.planted, told, strict=True):
        for one, row in zip(CONCEPTS, rows, strict=True):
            assert np.flatnonzero(layer.members[one.name]).tolist() == planted[one.name]
            assert row["subspace"] == one.name
            assert row["n_features"] == len(planted[one.name])
            assert row["n_rare"] == 0
        concepts = layer.features["concepts"]
        assert [of_feature for of_feature in concepts if len(of_feature) > 1] == []
        assert concepts[planted[SHARED][0]] == [SHARED]
    assert told[0][2]["n_features"] == 0
    assert told[1][2]["n_features"] == N_KEYWORDS


def test_membership_by_mass_is_by_choice_and_both_are_counted(world: World) -> None:
    # Of the activations of one feature nearly all are moved off its keyword, but not its largest.
    _, feature = world.planted[0][SHARED][:2]
    acts = world.acts[0].tolil(copy=True)
    silent = np.flatnonzero(acts[:, [feature]].toarray()[:, 0] == 0)
    is_keyword = world.occurrences.on_word.any(axis=0)[world.occurrences.words.unit_of]
    elsewhere = [row for row in silent if not is_keyword[row]][:200]
    acts[elsewhere, feature] = 0.5
    moved = replace(world, acts=(sp.csr_array(acts), world.acts[1]))
    for membership, is_member in (("top_words", True), ("mass", False)):
        subspaces = subspaces_of(SubspacesStudy(membership=membership, min_share=0.5))
        found, (rows, _) = with_all_members(moved, subspaces)
        assert bool(found.a.members[SHARED][feature]) == is_member
        assert rows[0]["n_features"] == N_KEYWORDS - (not is_member)
        assert rows[0]["n_by_top_words"] == N_KEYWORDS
        assert rows[0]["n_by_mass"] == rows[0]["n_by_both"] == N_KEYWORDS - 1
        assert rows[0]["n_occurrences"] == world.occurrences.counts()[SHARED]
        assert (found.a.features["concepts"][feature] == [SHARED]) == is_member


def test_members_that_fire_too_rarely_are_counted_apart(world: World) -> None:
    rare = replace(world.a, features=world.a.features.copy())
    few = world.planted[0][SHARED][:3]
    rare.features.loc[few, "reason"] = "rare"
    subspaces = subspaces_of(SubspacesStudy())
    layer, rows = with_members(rare, world.acts[0], subspaces, world.occurrences, None)
    assert (rows[0]["n_features"], rows[0]["n_rare"]) == (N_KEYWORDS - 3, 3)
    assert rows[0]["n_by_top_words"] == N_KEYWORDS - 3
    assert members_of(layer, SHARED).tolist() == world.planted[0][SHARED][3:]


@pytest.mark.parametrize("matching", MATCHINGS)
def test_shared_geometry_is_told_from_chance_by_every_measure_and_null(
    world: World, matching: str
) -> None:
    measures = ["rsa", "cka"] + (["svcca"] if matching == "one_to_one" else [])
    cell, scores = compared(world, study_of(matching=[matching], measures=measures))
    shared = scores[scores["subspace"] == SHARED]
    assert len(shared) == 3 * len(measures)
    assert set(shared["null"]) == {"shuffle", "rate_matched", SAME_SIZE}
    assert (shared["p"] <= 0.05).all()
    assert (shared["calibrated"] > 0.1).all()
    assert (shared["n_pairs"] == N_KEYWORDS).all()
    pairs = pd.DataFrame(cell.pairs)
    inside = pairs[(pairs["subspace"] == SHARED) & pairs["kept"]]
    top_a, top_b = (
        layer.features["top_tokens"][inside[f"feature_{letter}"]].str[0].tolist()
        for letter, layer in (("a", world.a), ("b", world.b))
    )
    assert top_a == top_b


def test_geometries_that_are_apart_are_significant_as_often_as_chance_is(world: World) -> None:
    nulls = {"shuffle": 19, "rate_matched": 19}
    study = study_of(measures=["rsa", "cka"], nulls=nulls, subspaces={"same_size": 19})
    rejected: dict[tuple[str, str], int] = {}
    n_worlds = 25
    for seed in range(n_worlds):
        drawn = np.random.default_rng([7, seed]).normal(size=world.b.decoder.shape)
        other = replace(world, b=replace(world.b, decoder=drawn))
        _, scores = compared(other, study, seed=seed, asked=[APART])
        for row in scores.itertuples():
            of_null = rejected.get((row.measure, row.null), 0)
            rejected[row.measure, row.null] = of_null + (row.p <= 0.05)
    assert len(rejected) == 2 * 3
    assert max(rejected.values()) <= scipy.stats.binom.ppf(0.999, n_worlds, 0.05)


def test_what_has_no_features_or_too_few_pairs_is_reported_and_not_scored(world: World) -> None:
    cell, scores = compared(world, study_of())
    rows = {row["subspace"]: row for row in cell.rows}
    lacking = "OneSided must have features in both models, model A has none here"
    few = "a subspace must keep at least 10 pairs to be scored, Few keeps 4"
    for name, note, n_kept in ((ONE_SIDED, lacking, 0), (FEW, few, N_FEW), (APART, "", N_KEYWORDS)):
        assert rows[name]["note"] == note
        assert rows[name]["n_kept"] == n_kept
        of_name = scores[scores["subspace"] == name]
        assert (of_name["note"] == note).all()
        assert of_name["score"].isna().all() == bool(note)
        assert len(of_name) == 3 * 3
    assert (rows[ONE_SIDED]["n_features_a"], rows[ONE_SIDED]["n_features_b"]) == (0, N_KEYWORDS)
    assert np.isnan(rows[ONE_SIDED]["mean_correlation"])
    _, scores = compared(world, study_of(subspaces={"min_pairs": 3}), asked=[FEW])
    assert scores.loc[scores["measure"] == "rsa", "score"].notna().all()
    told = scores.loc[scores["measure"] == "svcca", "note"]  # four pairs have no K // 5 components
    assert told.str.contains("n_components must lie between 1").all()


def test_a_concept_that_neither_model_has_features_of_is_said_to_be_in_neither(
    world: World,
) -> None:
    a, b = (
        replace(layer, members={SHARED: np.zeros(len(layer.features), dtype=bool)})
        for layer in (world.a, world.b)
    )
    pair, only = LayerPair(a=a, b=b, reading=world.reading), listed_only(SHARED)
    pairs, n_features, note = match_inside(
        Filters(), pair, correlation_between(a, b), only, "one_to_one"
    )
    assert note == "Shared must have features in both models, neither has any here"
    assert n_features == (0, 0)
    assert len(pairs) == 0
    assert {"within_token", "kept", "reason"} <= set(pairs)


def listed_only(name: str) -> Subspace:
    return Subspace(name=name, kind="concept", parts=())


# Unions, phrases and what is listed.


def test_the_features_of_a_union_are_those_of_its_concepts(world: World) -> None:
    unions = [(SHARED, APART), (APART, FEW, ONE_SIDED)]
    subspaces = subspaces_of(SubspacesStudy(), unions=unions, asked=[SHARED])
    found, (rows, _) = with_all_members(world, subspaces)
    for layer, planted in zip((found.a, found.b), world.planted, strict=True):
        for union in unions:
            members = np.flatnonzero(layer.members[" + ".join(union)])
            assert members.tolist() == sorted(f for name in union for f in planted[name])
        # Concepts that only unions name are not told of by themselves.
        assert all(names == [SHARED] for names in layer.features["concepts"] if names)
    assert [(row["subspace"], row["kind"]) for row in rows] == [
        (SHARED, "concept"),
        ("Shared + Apart", "union"),
        ("Apart + Few + OneSided", "union"),
    ]
    assert rows[1]["n_features"] == 2 * N_KEYWORDS
    assert rows[1]["n_by_top_words"] is None
    _, scores = compared(world, study_of(measures=["rsa"]), unions=unions, asked=[SHARED])
    of_union = scores[scores["subspace"] == "Shared + Apart"]
    assert (of_union["n_pairs"] == 2 * N_KEYWORDS).all()


def phrases_with(names: Sequence[str], kinds: Sequence[str], contexts: int = 1) -> Phrases:
    """Groups of so many contexts each; what they say does not matter."""
    one = np.ones((len(names) * contexts, 1), dtype=bool)
    tokens = Tokens(
        input_ids=one.astype(np.int32),
        attended=one,
        kept=one,
        document=np.arange(len(one), dtype=np.int32),
    )
    return Phrases(
        names=tuple(names),
        kinds=tuple(kinds),
        a=tokens,
        b=tokens,
        pieces_a=np.ones(len(one), dtype=np.int32),
        pieces_b=np.ones(len(one), dtype=np.int32),
        group=np.repeat(np.arange(len(names)), contexts),
    )


def test_the_features_of_phrases_are_those_that_fire_on_them(world: World) -> None:
    names, kinds = ["Shared Apart", "Shared alone"], ["phrase", "alone"]
    phrases = phrases_with(names, kinds, contexts=10)
    rates = world.a.firing_rate
    fires = np.zeros((20, len(rates)))
    fires[:3, 5] = fires[:1, 6] = fires[10:, 7] = 1.0
    subspaces = replace(
        subspaces_of(SubspacesStudy(min_phrases=0.2), asked=[SHARED]), phrases=((SHARED, APART),)
    )
    layer, rows = with_members(
        world.a, world.acts[0], subspaces, world.occurrences, (phrases, sp.csr_array(fires))
    )
    assert (2 * rates[[5, 6, 7]] < 0.1).all()
    assert np.flatnonzero(layer.members["Shared Apart"]).tolist() == [5]
    assert np.flatnonzero(layer.members["Shared alone"]).tolist() == [7]
    assert [(row["subspace"], row["kind"], row["n_features"]) for row in rows[1:]] == [
        ("Shared Apart", "phrase", 1),
        ("Shared alone", "alone", 1),
    ]


def test_every_subspace_is_listed_once_with_what_it_is_compared_to() -> None:
    asked = [("A", "B"), ("B", "A"), ("A", "C"), ("C", "C")]
    subspaces = Subspaces(
        study=SubspacesStudy(),
        concepts=tuple(concept(name, ["x", "y"]) for name in "ABC"),
        asked=("A", "B"),
        unions=(("A", "B"), ("A", "B", "C")),
        phrases=tuple(asked),
    )
    names = ["A B", "B A", "A C", "C A", "C C", "A alone", "B alone", "C alone"]
    kinds = ["phrase", "phrase", "phrase", "wrong_order", "phrase", *["alone"] * 3]
    listed = listed_subspaces(subspaces, phrases_with(names, kinds))
    assert len(listed) == subspaces.n_subspaces == 2 + 2 + 8
    assert [(one.name, one.kind, one.parts) for one in listed] == [
        ("A", "concept", ()),
        ("B", "concept", ()),
        ("A + B", "union", ("A", "B")),
        ("A + B + C", "union", ("A", "B", "C")),
        ("A B", "phrase", ("A alone", "B alone", "B A")),
        ("B A", "phrase", ("B alone", "A alone", "A B")),
        ("A C", "phrase", ("A alone", "C alone", "C A")),
        ("C A", "wrong_order", ("C alone", "A alone", "A C")),
        ("C C", "phrase", ("C alone",)),
        ("A alone", "alone", ()),
        ("B alone", "alone", ()),
        ("C alone", "alone", ()),
    ]
    none = listed_subspaces(replace(subspaces, phrases=()), None)
    assert [one.name for one in none] == ["A", "B", "A + B", "A + B + C"]


# What a study asks for.


def test_concepts_are_read_once_whatever_names_them(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("joy\nwoe\n")
    study = SubspacesStudy(
        concepts=["Emotions", "mine.txt", "emotions"],
        unions=[["mine.txt", "Time"], ["mine.txt", "time"]],
        phrases=[["Time", "Time"], ["People/Roles", "mine.txt"]],
    )
    subspaces = read_subspaces(study, tmp_path)
    assert subspaces.asked == ("Emotions", "mine")
    assert subspaces.unions == (("mine", "Time"),)
    assert subspaces.phrases == (("Time", "Time"), ("PeopleRoles", "mine"))
    assert [one.name for one in subspaces.concepts] == ["Emotions", "mine", "Time", "PeopleRoles"]
    assert subspaces.told()["mine"] == {"version": "1", "keywords": ["joy", "woe"]}


def test_all_is_every_shipped_concept_and_every_pair_of_those_asked_for(tmp_path: Path) -> None:
    every = read_subspaces(SubspacesStudy(), tmp_path)
    assert every.asked == tuple(shipped_concepts())
    assert every.unions == every.phrases == ()
    some = ["Time", "Food", "Law"]
    pairs = (("Time", "Food"), ("Time", "Law"), ("Food", "Law"))
    subspaces = read_subspaces(SubspacesStudy(concepts=some, unions="all", phrases="all"), tmp_path)
    assert subspaces.unions == subspaces.phrases == pairs
    assert subspaces.n_subspaces == 3 + 3 + 2 * 3 + 3


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        (
            {"concepts": ["one/words.txt", "two/words.txt"]},
            StudyError,
            r"concepts must have distinct names, two are called words: rename one in its file",
        ),
        (
            {"concepts": ["Time"], "unions": [["Time", "time"]]},
            StudyError,
            r"unions must list groups of distinct concepts, Time stands twice in \['Time', ",
        ),
        (
            {"concepts": ["Time"], "phrases": [["one/words.txt", "one/words.txt"]]},
            StudyError,
            r"phrases must join two different keywords, words and words have 'joy' alone",
        ),
        ({"concepts": ["none.txt"]}, MissingFileError, r"a concept must be shipped or a file"),
        ({"concepts": ["Emotion"]}, UnknownNameError, r"unknown concept 'Emotion' \(did you mean"),
        (
            {"concepts": ["Time"], "unions": [["Time", "Emotoins"]]},
            UnknownNameError,
            r"unknown concept 'Emotoins' \(did you mean 'Emotions'\?\)",
        ),
        (
            {"concepts": ["Time", "Law", "clash.yaml"], "unions": [["Time", "Law"]]},
            StudyError,
            r"subspaces must have distinct names, 'Time \+ Law' would be that of a concept as well",
        ),
    ],
)
def test_concepts_that_cannot_be_are_refused_with_the_way_out(
    tmp_path: Path, asked: dict[str, Any], error: type[Exception], words: str
) -> None:
    for folder, word in (("one", "joy"), ("two", "woe")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "words.txt").write_text(word)
    named = Concept(name="Time + Law", version="1", about="", keywords=concept("x", ["y"]).keywords)
    save_concept(named, tmp_path / "clash.yaml")
    with pytest.raises(error, match=words):
        read_subspaces(SubspacesStudy(**asked), tmp_path)


# Pairs.


@pytest.mark.parametrize("metric", ["pearson", "cosine", "euclidean", "within_token"])
@pytest.mark.parametrize("matching", MATCHINGS)
def test_pairs_inside_are_those_of_the_matrices_cut_by_hand(
    world: World, matching: str, metric: str
) -> None:
    found, _ = with_all_members(world, subspaces_of(SubspacesStudy(), unions=[(SHARED, APART)]))
    name = "Shared + Apart"
    whole = correlation_between(found.a, found.b, metric=metric)
    pairs, n_features, note = match_inside(
        Filters(min_active_tokens=5), found.pair, whole, listed_only(name), matching
    )
    a, b = (np.flatnonzero(layer.members[name]) for layer in (found.a, found.b))
    assert n_features == (len(a), len(b))
    assert note == ""
    cut = correlate(
        world.acts[0][:, a],
        world.acts[1][:, b],
        metric=metric,
        token_ids=world.reading.tokens.token_ids if metric == "within_token" else None,
    )
    expected = match(cut, how=matching, min_active_tokens=5)
    assert pairs["feature_a"].tolist() == a[expected["feature_a"]].tolist()
    assert pairs["feature_b"].tolist() == b[expected["feature_b"]].tolist()
    columns = ["correlation", "similarity", "margin"]
    np.testing.assert_allclose(pairs[columns], expected[columns], atol=1e-6)
    assert pairs["mutual"].tolist() == expected["mutual"].tolist()


def test_features_that_may_not_be_paired_are_no_part_of_a_subspace(world: World) -> None:
    found, _ = with_all_members(world, subspaces_of(SubspacesStudy()))
    rare = replace(found.a, features=found.a.features.copy())
    few = world.planted[0][SHARED][:5]
    rare.features.loc[few, "reason"] = "rare"
    pair = replace(found.pair, a=rare)
    whole = correlation_between(rare, found.b)
    pairs, n_features, _ = match_inside(
        Filters(min_active_tokens=5), pair, whole, listed_only(SHARED), "one_to_one"
    )
    assert n_features == (N_KEYWORDS - 5, N_KEYWORDS)
    assert len(pairs) == N_KEYWORDS - 5
    assert not set(few) & set(pairs["feature_a"])


def test_a_subspace_whose_features_fire_too_rarely_says_so(world: World) -> None:
    found, _ = with_all_members(world, subspaces_of(SubspacesStudy()))
    whole = correlation_between(found.a, found.b)
    pairs, n_features, note = match_inside(
        Filters(min_active_tokens=1000), found.pair, whole, listed_only(SHARED), "optimal"
    )
    assert n_features == (N_KEYWORDS, N_KEYWORDS)
    assert len(pairs) == 0
    assert note.startswith("model A must have a feature active on at least 1000 of 4000 tokens")


def test_the_filters_of_subspaces_drop_pairs_with_their_reason(world: World) -> None:
    filters = {"min_active_tokens": 5, "min_correlation": 0.99, "min_shared_tokens": None}
    cell, _ = compared(world, study_of(subspaces={"filters": filters}), asked=[SHARED])
    (row,) = cell.rows
    assert (row["n_pairs"], row["n_kept"]) == (N_KEYWORDS, 0)
    assert {pair["reason"] for pair in cell.pairs} == {"low_correlation"}


@pytest.mark.parametrize("matching", ["many_to_one", "one_to_many"])
def test_the_side_whose_features_repeat_is_the_one_that_is_relabelled(
    world: World, matching: str
) -> None:
    a, b = np.array([3, 1, 4, 1, 5]), np.array([2, 7, 2, 2, 7])
    if matching == "one_to_many":
        a, b = b, a
    side = rows_of(world.pair, a, b, matching)
    assert side.is_swapped == (matching == "one_to_many")
    of_x, of_y = (world.b, world.a) if side.is_swapped else (world.a, world.b)
    x, y = (b, a) if side.is_swapped else (a, b)
    np.testing.assert_array_equal(side.x, of_x.decoder[x])
    np.testing.assert_array_equal(side.partners.rows, of_y.decoder[[2, 7]])
    assert side.partners.held.tolist() == [0, 1, 0, 0, 1]
    np.testing.assert_array_equal(side.rates, of_y.firing_rate[y])


def test_one_to_many_of_a_pair_is_many_to_one_of_the_pair_turned_round(noise: Noise) -> None:
    study = study_of(
        matching=["many_to_one", "one_to_many"],
        measures=["rsa", "cka", "pc1"],
        nulls={"shuffle": 2},
        subspaces={"same_size": 5},
    )
    a, b = (
        replace(layer, members={"g": np.isin(np.arange(130), pool[first : first + 40])})
        for layer, pool, first in zip(
            (noise.pair.a, noise.pair.b), noise.pools, (0, 9), strict=True
        )
    )
    tables = []
    for pair in (replace(noise.pair, a=a, b=b), replace(noise.pair, a=b, b=a)):
        cell = compare_subspaces(
            setting_of(study), pair, subspaces_of(study.subspaces), [listed_only("g")]
        )
        tables.append(pd.DataFrame(cell.scores).set_index(["matching", "measure", "null"]))
    here, there = tables
    swapped = {"many_to_one": "one_to_many", "one_to_many": "many_to_one"}
    other = there.rename(index=swapped, level="matching").loc[here.index]
    columns = ["score", "n_pairs", "n_partners"]
    assert (here["n_partners"] < here["n_pairs"]).all()
    np.testing.assert_allclose(here[columns], other[columns], atol=1e-9)


# Random groups of the same size and rate.


def keepable_of(world: World, layer: Layer) -> np.ndarray:
    whole = correlation_between(world.a, world.b)
    may = whole.pairable_a(5) if layer is world.a else whole.pairable_b(5)
    return keepable(layer, may, Filters())


def test_features_of_punctuation_and_of_no_activation_may_not_be_drawn(world: World) -> None:
    for layer in (world.a, world.b):
        among = keepable_of(world, layer)
        on_commas = np.array([COMMA in top for top in layer.features["top_tokens"]])
        dead = (layer.features["reason"] == "dead").to_numpy()
        assert on_commas.sum() == N_COMMAS
        assert dead.sum() == 3
        np.testing.assert_array_equal(among, ~on_commas & ~dead)
        any_token = replace(Filters(), max_non_concept_tokens=None)
        np.testing.assert_array_equal(keepable(layer, ~dead, any_token), ~dead)
        allowed = replace(Filters(), max_non_concept_tokens=5)
        np.testing.assert_array_equal(keepable(layer, ~dead, allowed), ~dead)


@pytest.mark.parametrize("n_members", [1, 7, 30, 90])
def test_random_groups_have_the_size_and_the_rates_of_the_subspace(
    world: World, n_members: int
) -> None:
    rng = np.random.default_rng(n_members)
    among = keepable_of(world, world.a)
    pool = np.flatnonzero(among)
    member = np.zeros(len(among), dtype=bool)
    chosen = rng.choice(pool[np.argsort(world.a.firing_rate[pool])][-100:], n_members, False)
    member[chosen] = True
    layer = replace(world.a, members={"g": member})
    groups = list(random_groups(layer, "g", among, n=50, rng=rng))
    # By the definition: features in order of rate, and of each tenth as many as the subspace has.
    ordered = sorted(pool.tolist(), key=lambda f: (world.a.firing_rate[f], f))
    sizes = [len(ordered) // 10 + (i < len(ordered) % 10) for i in range(10)]
    tenth = np.repeat(np.arange(10), sizes)
    of_feature = dict(zip(ordered, tenth.tolist(), strict=True))
    wanted = sorted(of_feature[f] for f in chosen.tolist())
    for group in groups:
        assert len(set(group.tolist())) == len(group) == n_members
        assert sorted(of_feature[f] for f in group.tolist()) == wanted
    assert len(groups) == 50
    assert len({tuple(group.tolist()) for group in groups}) > 1


def test_members_that_could_not_be_kept_are_not_made_up_for(world: World) -> None:
    member = np.zeros(len(world.a.features), dtype=bool)
    among = keepable_of(world, world.a)
    member[np.flatnonzero(~among)] = True
    member[np.flatnonzero(among)[:4]] = True
    layer = replace(world.a, members={"g": member})
    (group,) = random_groups(layer, "g", among, n=1, rng=np.random.default_rng(0))
    assert len(group) == 4
    assert among[group].all()


def test_every_feature_of_a_tenth_is_drawn_as_often(world: World) -> None:
    among = keepable_of(world, world.b)
    pool = np.flatnonzero(among)
    rarest = pool[np.argsort(world.b.firing_rate[pool], kind="stable")][: len(pool) // 10]
    layer = replace(world.b, members={"g": np.isin(np.arange(len(among)), rarest[:3])})
    groups = list(random_groups(layer, "g", among, n=1000, rng=np.random.default_rng(1)))
    counts = np.bincount(np.concatenate(groups), minlength=len(among))
    assert counts.sum() == 3000
    assert scipy.stats.chisquare(counts[rarest]).pvalue > 0.001


def test_a_random_group_of_features_is_significant_as_often_as_p_says(noise: Noise) -> None:
    study = study_of(measures=["cka"], nulls={"shuffle": 2}, subspaces={"same_size": 19})
    whole = correlation_between(noise.pair.a, noise.pair.b)
    similarities = Similarities(whole)
    subspaces, filters = subspaces_of(study.subspaces), study.subspaces.filters_in(study.filters)
    rng = np.random.default_rng(6)
    n_groups, p = 200, []
    for i in range(n_groups):
        layers = []
        for layer, pool, n in zip((noise.pair.a, noise.pair.b), noise.pools, (5, 6), strict=True):
            # As many of the rarest as of the most frequent: alike by their rates alone.
            ordered = pool[np.argsort(layer.firing_rate[pool], kind="stable")]
            ends = ordered[: len(pool) // 10], ordered[-(len(pool) // 10) :]
            group = np.concatenate([rng.choice(end, n, replace=False) for end in ends])
            member = np.isin(np.arange(len(layer.features)), group)
            layers.append(replace(layer, members={"g": member}))
        pair = replace(noise.pair, a=layers[0], b=layers[1])
        pairs, _, note = match_inside(filters, pair, whole, listed_only("g"), "one_to_one")
        where = {"layer_a": 0, "layer_b": 0, "matching": "one_to_one", "subspace": "g"}
        kept = pairs[pairs["kept"]]
        assert len(kept) == 10
        rows = scored(setting_of(study, seed=i), pair, subspaces, kept, similarities, where, note)
        (row,) = (row for row in rows if row["null"] == SAME_SIZE)
        assert row["n_permutations"] == 19
        p.append(row["p"])
    # One of the 20 values that p can take is as likely as another.
    n_rejected = sum(value <= 0.05 for value in p)
    least, most = scipy.stats.binom.ppf([0.001, 0.999], n_groups, 0.05)
    assert least <= n_rejected <= most
    counts = np.bincount(np.round(np.array(p) * 20).astype(int), minlength=21)[1:]
    assert scipy.stats.chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize("matching", MATCHINGS)
def test_scores_of_groups_are_those_of_their_best_pairs(noise: Noise, matching: str) -> None:
    whole = correlation_between(noise.pair.a, noise.pair.b)
    rng = np.random.default_rng(8)
    groups = [[np.sort(rng.choice(130, n, replace=False)) for _ in range(6)] for n in (12, 15)]
    measures = [MeasureStudy(name="rsa"), MeasureStudy(name="cka")]
    n_pairs = 9
    found = group_scores(
        noise.pair, measures, Similarities(whole), [iter(g) for g in groups], matching, n_pairs
    )
    dense = whole.among(np.arange(130), np.arange(130))
    for place, (a, b) in enumerate(zip(*groups, strict=True)):
        pairs = match(dense.among(a, b), how=matching, min_active_tokens=1)
        best = pairs.sort_values("similarity", ascending=False, kind="stable")[:n_pairs]
        x = noise.pair.a.decoder[a[best["feature_a"]]]
        y = noise.pair.b.decoder[b[best["feature_b"]]]
        for measure, scores in zip(measures, found, strict=True):
            expected = MEASURES[measure.name].compute(x, y)
            assert scores[place] == pytest.approx(expected, abs=1e-9)


def test_groups_with_too_few_pairs_or_no_score_are_left_out(noise: Noise) -> None:
    similarities = Similarities(correlation_between(noise.pair.a, noise.pair.b))
    flat = replace(noise.pair.a, decoder=noise.pair.a.decoder.copy())
    flat.decoder[:12] = 1.0  # rows that are all equal cannot be compared
    pair = replace(noise.pair, a=flat)
    groups = [[np.arange(8), np.arange(12), np.arange(20, 32)], [np.arange(12)] * 3]
    measures = [MeasureStudy(name="cka"), MeasureStudy(name="svcca", options={"n_components": 9})]
    scores, none = group_scores(
        pair, measures, similarities, [iter(g) for g in groups], "one_to_one", 12
    )
    assert len(scores) == 1
    assert len(none) == 0  # twice nine components of twelve pairs must meet


def test_too_few_random_groups_are_no_null(world: World) -> None:
    found, _ = with_all_members(world, subspaces_of(SubspacesStudy()))
    study = study_of(measures=["cka"])
    similarities = Similarities(correlation_between(found.a, found.b))
    a, b = (np.array(world.planted[side][SHARED]) for side in (0, 1))
    # More pairs than features: no random group of the subspace's size can have so many.
    kept = pd.DataFrame({"feature_a": np.tile(a, 2), "feature_b": np.tile(b, 2)})
    where = {"layer_a": 0, "layer_b": 0, "matching": "many_to_one", "subspace": SHARED}
    rows = scored(
        setting_of(study), found.pair, subspaces_of(study.subspaces), kept, similarities, where, ""
    )
    (row,) = (row for row in rows if row["null"] == SAME_SIZE)
    assert row["note"] == "random groups of the same size must keep 40 pairs, 0 do"
    assert np.isnan(row["score"])


def test_rows_that_are_all_equal_are_not_scored_and_say_why(world: World) -> None:
    flat = replace(world, b=replace(world.b, decoder=np.ones_like(world.b.decoder)))
    _, scores = compared(flat, study_of(), asked=[SHARED])
    assert scores["score"].isna().all()
    assert scores["note"].str.contains("rows must differ, all 20 rows of y are equal").all()


def test_similarities_kept_together_are_those_of_each_group_alone(
    noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = correlation_between(noise.pair.a, noise.pair.b)
    a, b = np.array([3, 17, 99]), np.array([0, 5, 80, 129])
    together = Similarities(whole).among(a, b)
    monkeypatch.setattr("saelign.subspaces.BLOCK_ENTRIES", 0)
    np.testing.assert_array_equal(Similarities(whole).among(a, b), together)
    i, j = (x.ravel() for x in np.indices((3, 4)))
    np.testing.assert_allclose(whole.similarity_of_pairs(a[i], b[j]), together.ravel(), atol=1e-12)


def test_a_seed_gives_the_same_scores_and_no_subspace_moves_anothers(world: World) -> None:
    study = study_of(measures=["cka"])
    _, all_of_them = compared(world, study, unions=[(SHARED, FEW)])
    _, again = compared(world, study, unions=[(SHARED, FEW)])
    pd.testing.assert_frame_equal(all_of_them, again)
    _, alone = compared(world, study, asked=[APART])
    expected = all_of_them[all_of_them["subspace"] == APART].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, expected)
    _, other = compared(world, study, seed=1, asked=[APART])
    assert (other["score"] == alone["score"]).all()
    assert (other["null_mean"] != alone["null_mean"]).tolist() == [
        False,
        True,
        True,
    ]  # one is exact


def test_each_subspace_has_random_groups_of_its_own(noise: Noise) -> None:
    study = study_of(measures=["cka"], nulls={"shuffle": 2}, subspaces={"same_size": 5})
    a, b = (
        replace(layer, members=dict.fromkeys("gh", np.isin(np.arange(130), pool[:20])))
        for layer, pool in zip((noise.pair.a, noise.pair.b), noise.pools, strict=True)
    )
    cell = compare_subspaces(
        setting_of(study),
        replace(noise.pair, a=a, b=b),
        subspaces_of(study.subspaces),
        [listed_only("g"), listed_only("h")],
    )
    of_g, of_h = (row for row in cell.scores if row["null"] == SAME_SIZE)
    assert of_g["score"] == of_h["score"]
    assert of_g["null_mean"] != of_h["null_mean"]


# Kept and read back.


def test_a_cell_that_is_kept_is_read_back_as_it_was(world: World, tmp_path: Path) -> None:
    cell, scores = compared(world, study_of(measures=["rsa", "svcca"]), unions=[(SHARED, FEW)])
    assert scores["score"].isna().any()  # what has no number has none afterwards
    path = tmp_path / "part.subspaces.json"
    save_subspace_cell(cell, path)
    found = read_subspace_cell(path)
    assert found is not None
    for of_cell, of_found in (
        (cell.rows, found.rows),
        (cell.scores, found.scores),
        (cell.pairs, found.pairs),
    ):
        assert len(of_cell) > 0
        pd.testing.assert_frame_equal(pd.DataFrame(of_cell), pd.DataFrame(of_found))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", ["", "[[], [", "[]", "[[], []]", "5", "null", "\ud800"])
def test_what_is_no_whole_cell_is_computed_again(tmp_path: Path, content: str) -> None:
    path = tmp_path / "part.subspaces.json"
    assert read_subspace_cell(path) is None
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    assert read_subspace_cell(path) is None
    path.write_text(json.dumps([[], [], []]))
    assert read_subspace_cell(path) == SubspaceCell(rows=[], scores=[], pairs=[])


# Over all cells.


def score_rows_of(subspaces: Sequence[Subspace], **columns: Any) -> pd.DataFrame:
    """A row for each subspace, with what tells cells apart and what is given."""
    rows = []
    for i, subspace in enumerate(subspaces):
        rows.append(
            {
                "control": "trained",
                "run": 0,
                "metric": "pearson",
                "layer_a": 1,
                "layer_b": 2,
                "matching": "one_to_one",
                "measure": "rsa",
                "null": "shuffle",
                "subspace": subspace.name,
                "kind": subspace.kind,
                "score": 0.5,
                **{name: values[i] for name, values in columns.items()},
            }
        )
    return pd.DataFrame(rows)


PARTS = [
    Subspace(name="A", kind="concept", parts=()),
    Subspace(name="B", kind="concept", parts=()),
    Subspace(name="A + B", kind="union", parts=("A", "B")),
]


@pytest.mark.parametrize(
    ("calibrated", "q", "expected"),
    [
        ((0.2, 0.3, 0.4), 0.01, "above parts and chance"),
        ((0.2, 0.3, 0.4), 0.05, "above parts"),
        ((0.2, 0.3, 0.3), 0.01, "above chance"),
        ((0.5, 0.3, 0.4), 0.01, "above chance"),
        ((0.5, 0.3, 0.4), 0.5, "neither"),
        ((np.nan, 0.3, 0.4), 0.5, "above parts"),
        ((np.nan, np.nan, 0.4), 0.01, "above chance, parts not scored"),
        ((np.nan, np.nan, 0.4), 0.3, "not above chance, parts not scored"),
        ((-0.4, -0.5, -0.3), 0.9, "above parts"),
    ],
)
def test_a_union_is_held_against_its_parts_and_chance(
    calibrated: tuple[float, ...], q: float, expected: str
) -> None:
    scores = score_rows_of(PARTS, calibrated=calibrated, q=(0.01, 0.01, q))
    assert combined(scores, PARTS).tolist() == ["", "", expected]


def test_a_union_without_a_score_says_nothing_and_parts_of_other_cells_do_not_count() -> None:
    scores = score_rows_of(PARTS, calibrated=(0.1, 0.1, np.nan), q=(0.1, 0.1, np.nan))
    assert combined(scores.assign(score=[0.1, 0.1, np.nan]), PARTS).tolist() == ["", "", ""]
    here = score_rows_of(PARTS, calibrated=(0.1, 0.2, 0.3), q=(0.1, 0.1, 0.01))
    for key, other in (
        ("null", SAME_SIZE),
        ("measure", "cka"),
        ("layer_a", 7),
        ("layer_b", 7),
        ("run", 1),
        ("control", "untrained"),
        ("matching", "optimal"),
    ):
        there = score_rows_of(PARTS, calibrated=(0.9, 0.9, 0.1), q=(0.1, 0.1, 0.5))
        both = pd.concat([there.assign(**{key: other}), here], ignore_index=True)
        told = combined(both, PARTS).tolist()
        assert told == ["", "", "neither", "", "", "above parts and chance"]


def test_a_phrase_is_held_against_its_words_alone_and_the_wrong_order() -> None:
    listed = [
        Subspace(name="A B", kind="phrase", parts=("A alone", "B alone", "B A")),
        Subspace(name="B A", kind="wrong_order", parts=("B alone", "A alone", "A B")),
        Subspace(name="A alone", kind="alone", parts=()),
        Subspace(name="B alone", kind="alone", parts=()),
    ]
    scores = score_rows_of(listed, calibrated=(0.5, 0.4, 0.1, 0.2), q=(0.01, 0.2, 0.9, 0.9))
    assert combined(scores, listed).tolist() == ["above parts and chance", "neither", "", ""]


def test_q_is_taken_over_all_subspaces_of_a_kind_and_all_layer_pairs(world: World) -> None:
    study = study_of(
        measures=["rsa", "cka"], matching=["one_to_one", "optimal"], nulls={"shuffle": 19}
    )
    _, scores = compared(world, study, unions=[(SHARED, APART)])
    scores = pd.concat([scores, scores.assign(layer_a=9)], ignore_index=True)
    found = corrected(scores.assign(score_half_1=np.nan, score_half_2=np.nan), family="kind")
    assert {"subspace", "kind"} <= set(found)
    np.testing.assert_array_equal(found["p"], scores["p"])
    for (_, _, _, kind), rows in found.groupby(["measure", "matching", "null", "kind"]):
        # Two concepts of four can be scored, on two layer pairs; one union.
        assert (rows["family_size"] == (4 if kind == "concept" else 2)).all()
        expected = np.full(len(rows), np.nan)
        real = rows["p"].notna().to_numpy()
        expected[real] = scipy.stats.false_discovery_control(rows["p"][real])
        np.testing.assert_allclose(rows["q"], expected)
    limited = found["floor_limited"]
    few = found["n_permutations"] < 20 * found["family_size"]
    assert limited[few & (found["p"] == 1 / (1 + found["n_permutations"]))].all()
    assert not limited[~few].any()
    assert limited.any()
    assert not limited.all()


# From text to tables.

N_TEXTS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models, an SAE that fits every layer, a text, and concepts of its words."""
    here = tmp_path_factory.mktemp("subspaces")
    for seed, (name, architecture) in enumerate((("A", "gpt_neox"), ("B", "llama"))):
        tiny_model(architecture, seed).save_pretrained(here / name)
        tiny_tokenizer().save_pretrained(here / name)
    sae = lossless_sae()
    tensors = {name: getattr(sae, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    save_file(tensors, here / "sae.safetensors")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), size=n)) for n in rng.integers(2, 6, size=60)]
    words = list(dict.fromkeys(words))
    documents = [" ".join(rng.choice(words, size=60)) for _ in range(N_TEXTS)]
    (here / "text.txt").write_text("\n\n".join(documents))
    for i, name in enumerate(("one", "two")):
        (here / f"{name}.txt").write_text("\n".join(words[12 * i : 12 * i + 12]))
    return here


def small_study(folder: Path, **changes: Any) -> Study:
    """Concepts, a union and phrases in two layers of A and one of B, and documents rolled."""
    off = dict.fromkeys(("max_non_concept_tokens", "min_shared_tokens", "min_correlation"))
    content = {
        "saelign": 1,
        "name": "words",
        "model_a": {"name": "A", "saes": dict.fromkeys((0, 2), "sae.safetensors")},
        "model_b": {"name": "B", "saes": {1: "sae.safetensors"}},
        "text": {"source": "text.txt", "split": "blank_line", "context_length": 48},
        "filters": off,
        "matching": ["one_to_one", "many_to_one"],
        "measures": ["rsa", "cka"],
        "nulls": {"shuffle": 19, "rate_matched": 19},
        "controls": ["document_shift"],
        "verdicts": False,
        "subspaces": {
            "concepts": ["one.txt", "two.txt"],
            "unions": "all",
            "phrases": "all",
            "min_pairs": 3,
            "same_size": 3,
            "n_phrases": 20,
            "min_phrases": 0.3,
        },
        "output": {"store": str(folder / "store")},
    }
    content["model_a"]["layers"], content["model_b"]["layers"] = [0, 2], [1]
    return read_study({**content, **changes}, folder=folder)


def tables_of(out: Path) -> dict[str, bytes]:
    """The tables of subspaces as they lie on the disk, and those beside them."""
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.csv"))}


@pytest.fixture(scope="module", autouse=True)
def no_figures() -> Iterator[None]:
    """They have tests of their own, and would take most of the time of these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saelign.pipeline.write_figures", lambda *_, **__: None)
        yield


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(small_study(folder), out=tmp_path_factory.mktemp("run") / "out")


def test_every_subspace_of_every_layer_pair_stands_in_the_tables(finished: Run) -> None:
    kinds = {
        "one": "concept",
        "two": "concept",
        "one + two": "union",
        "one two": "phrase",
        "two one": "wrong_order",
        "one alone": "alone",
        "two alone": "alone",
    }
    assert finished.has_subspaces
    rows, scores = finished.subspaces, finished.subspace_scores
    for table in (rows, scores):
        assert dict(zip(table["subspace"], table["kind"], strict=True)) == kinds
    n_cells = 2 * 2 * 1 * 2 * len(kinds)  # with its control, two layers against one, two matchings
    assert len(rows) == n_cells
    assert len(scores) == n_cells * 2 * 3
    assert set(scores["null"]) == {"shuffle", "rate_matched", SAME_SIZE}
    members = pd.read_parquet(finished.folder / "subspace_features.parquet")
    assert len(members) == 3 * len(kinds)
    assert members.groupby("kind")["n_features"].sum().min() > 0
    union = members[members["subspace"] == "one + two"]["n_features"].to_numpy()
    parts = [members[members["subspace"] == name]["n_features"] for name in ("one", "two")]
    assert (union >= np.max(parts, axis=0)).all()
    assert (union <= np.sum(parts, axis=0)).all()
    scored_rows = scores[scores["note"] == ""]
    assert {"concept", "union"} <= set(scored_rows["kind"])
    assert scored_rows[["score", "null_mean", "p", "q"]].notna().all().all()
    assert scores.loc[scores["note"] != "", ["score", "p", "q"]].isna().all().all()
    combined_of = scores[scores["kind"] == "union"]["combined"]
    assert (combined_of != "").any()
    assert (scores[scores["kind"] == "concept"]["combined"] == "").all()
    features = finished.features("a", 2)
    is_one = np.array(["one" in names for names in features["concepts"]])
    of_one = members.query("model == 'a' and layer == 2 and subspace == 'one'").iloc[0]
    assert is_one.sum() == of_one["n_features"] + of_one["n_rare"]
    assert set(finished.info["concepts"]) == {"one", "two"}


def test_subspaces_do_not_move_the_tables_beside_them(
    finished: Run, folder: Path, tmp_path: Path
) -> None:
    without = run(small_study(folder, subspaces=None), out=tmp_path / "out")
    assert not without.has_subspaces
    pd.testing.assert_frame_equal(without.scores, finished.scores)
    pd.testing.assert_frame_equal(without.cells, finished.cells)


class Killed(Exception):  # noqa: N818
    pass


def kill_in(stage: str, after: int) -> Callable[[str, int, int], None]:
    def progress(what: str, done: int, _: int) -> None:
        if what == stage and done == after:
            raise Killed

    return progress


def test_a_killed_run_gives_the_same_tables_and_keeps_what_it_had(
    finished: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, study = tmp_path / "out", small_study(folder)
    with pytest.raises(Killed):
        run(study, out=out, progress=kill_in("compare layers", 1))
    (part,) = out.glob("parts/*/*.subspaces.json")
    assert part.name == "trained_run0_a0_b1.subspaces.json"
    computed = []

    def counted(setting: Setting, pair: LayerPair, *others: Any) -> SubspaceCell:
        computed.append((setting.control, pair.a.layer, pair.b.layer))
        return compare_subspaces(setting, pair, *others)

    monkeypatch.setattr("saelign.pipeline.compare_subspaces", counted)
    with pytest.raises(Killed):
        run(study, out=out, progress=kill_in("compare layers (document_shift)", 1))
    assert computed == [("trained", 2, 1), ("document_shift", 0, 1)]
    last = out / part.parent / "document_shift_run0_a0_b1.subspaces.json"
    last.write_bytes(last.read_bytes()[:1000])  # as a full disk might leave it
    run(study, out=out)
    assert computed[2:] == [("document_shift", 0, 1), ("document_shift", 2, 1)]
    assert tables_of(out) == tables_of(finished.folder)
    assert {"subspaces.csv", "subspace_scores.csv", "subspace_features.csv"} <= set(tables_of(out))
    pd.testing.assert_frame_equal(
        pd.read_parquet(out / "subspace_pairs.parquet"),
        pd.read_parquet(finished.folder / "subspace_pairs.parquet"),
    )
    assert not (out / "parts").exists()


def test_what_was_kept_for_other_keywords_is_not_taken(folder: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    shutil.copytree(folder, here, ignore=shutil.ignore_patterns("store"))
    some = {"matching": ["one_to_one"], "measures": ["cka"], "controls": []}
    study = replace(small_study(here, **some), output=small_study(folder).output)
    with pytest.raises(Killed):
        run(study, out=tmp_path / "out", progress=kill_in("compare layers", 1))
    words = (here / "one.txt").read_text().splitlines()
    (here / "one.txt").write_text("\n".join(words[:3]))
    again = run(study, out=tmp_path / "out")
    assert again.info["concepts"]["one"]["keywords"] == words[:3]
    fresh = run(study, out=tmp_path / "fresh")
    assert tables_of(again.folder) == tables_of(fresh.folder)
