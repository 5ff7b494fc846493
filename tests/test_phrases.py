"""Phrases of two concepts' keywords: which there are, what the models read, what fires on them."""

import copy
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from conftest import tiny_tokenizer
from saelign.concepts.concept import Concept, Keyword
from saelign.phrases import Phrases, as_contexts, phrases_of, word_pairs
from saelign.subspace_study import Subspaces, SubspacesStudy
from saelign.text import Tokens

BOS = "<s>"
TEXT = "happy child, sad mother and the New York children: unhappy with naïve mothers. " * 3


def concept(name: str, *keywords: str) -> Concept:
    return Concept(
        name=name,
        version="1",
        about="",
        keywords=tuple(Keyword(text=text, source="here") for text in keywords),
    )


FEELINGS = concept("Feelings", "happy", "sad", "calm")
PEOPLE = concept("People", "child", "mother")


def subspaces_of(
    phrases: Sequence[tuple[str, str]], *concepts: Concept, n_phrases: int = 200
) -> Subspaces:
    names = tuple(one.name for one in concepts)
    return Subspaces(
        study=SubspacesStudy(n_phrases=n_phrases),
        concepts=concepts,
        asked=names,
        unions=(),
        phrases=tuple(phrases),
    )


def phrases_between(
    phrases: Sequence[tuple[str, str]], *concepts: Concept, seed: int = 0, n_phrases: int = 200
) -> Phrases:
    """Phrases read by a tokenizer of one token a letter."""
    return phrases_of(
        subspaces_of(phrases, *concepts, n_phrases=n_phrases),
        [tiny_tokenizer()] * 2,
        with_bos=[True, True],
        rng=np.random.default_rng(seed),
    )


def texts_of(phrases: Phrases) -> dict[str, list[str]]:
    """The texts of each group, by its name."""
    tokenizer = tiny_tokenizer()
    found: dict[str, list[str]] = {name: [] for name in phrases.names}
    for ids, attended, group in zip(
        phrases.a.input_ids, phrases.a.attended, phrases.group, strict=True
    ):
        read = tokenizer.decode(ids[attended].tolist())
        assert read.startswith("<bos> ")
        found[phrases.names[group]].append(read.removeprefix("<bos> "))
    return found


# Which phrases there are.


def test_there_are_phrases_in_both_orders_and_words_alone() -> None:
    phrases = phrases_between([("Feelings", "People")], FEELINGS, PEOPLE)
    assert dict(zip(phrases.names, phrases.kinds, strict=True)) == {
        "Feelings People": "phrase",
        "People Feelings": "wrong_order",
        "Feelings alone": "alone",
        "People alone": "alone",
    }
    texts = texts_of(phrases)
    pairs = {(a, b) for a in FEELINGS.words for b in PEOPLE.words}
    assert set(texts["Feelings People"]) == {f"{a} {b}" for a, b in pairs}
    assert texts["People Feelings"] == [
        " ".join(reversed(text.split())) for text in texts["Feelings People"]
    ]
    assert len(texts["Feelings People"]) == 6
    assert sorted(texts["Feelings alone"]) == ["calm", "happy", "sad"]
    assert sorted(texts["People alone"]) == ["child", "mother"]


def test_an_order_that_is_asked_for_too_is_not_the_wrong_one() -> None:
    both = [("Feelings", "People"), ("People", "Feelings")]
    phrases = phrases_between(both, FEELINGS, PEOPLE, n_phrases=3)
    assert phrases.kinds[:2] == ("phrase", "phrase")
    assert phrases.names == ("Feelings People", "People Feelings", "Feelings alone", "People alone")
    texts = texts_of(phrases)
    assert [t.split()[::-1] for t in texts["Feelings People"]] == [
        t.split() for t in texts["People Feelings"]
    ]


def test_phrases_of_a_concept_with_itself_have_one_order_and_no_word_twice() -> None:
    phrases = phrases_between([("Feelings", "Feelings")], FEELINGS)
    assert phrases.names == ("Feelings Feelings", "Feelings alone")
    texts = texts_of(phrases)["Feelings Feelings"]
    assert len(texts) == 6
    assert all(len(set(text.split())) == 2 for text in texts)


def test_a_keyword_of_both_concepts_is_never_said_twice() -> None:
    pairs = word_pairs(
        concept("a", "time", "day"), concept("b", "time", "night"), 10, rng=np.random.default_rng(0)
    )
    assert set(pairs) == {("time", "night"), ("day", "time"), ("day", "night")}


@given(n=st.integers(1, 30), seed=st.integers(0, 1000))
def test_so_many_phrases_are_drawn_as_are_asked_for_each_once(n: int, seed: int) -> None:
    a, b = concept("a", *"abcde"), concept("b", *"cdefg")
    pairs = word_pairs(a, b, n, rng=np.random.default_rng(seed))
    assert len(pairs) == len(set(pairs)) == min(n, 22)
    assert all(x in a.words and y in b.words and x != y for x, y in pairs)


def test_every_pair_of_words_is_drawn_as_often() -> None:
    a, b = concept("a", "x", "y"), concept("b", "x", "z", "w")
    rng = np.random.default_rng(0)
    drawn = [word_pairs(a, b, 1, rng=rng)[0] for _ in range(1000)]
    counts = {pair: drawn.count(pair) for pair in set(drawn)}
    assert len(counts) == 5
    assert min(counts.values()) > 150  # of 200 with a standard deviation of 13


def test_words_alone_are_those_of_the_phrases_drawn() -> None:
    phrases = phrases_between([("Feelings", "People")], FEELINGS, PEOPLE, n_phrases=2)
    texts = texts_of(phrases)
    said = [text.split() for text in texts["Feelings People"]]
    assert len(said) == 2
    assert set(texts["Feelings alone"]) == {a for a, _ in said}
    assert set(texts["People alone"]) == {b for _, b in said}


def test_words_alone_of_a_concept_in_several_phrases_stand_once() -> None:
    places = concept("Places", "town")
    asked = [("Feelings", "People"), ("Places", "Feelings")]
    phrases = phrases_between(asked, FEELINGS, PEOPLE, places)
    assert phrases.names[-3:] == ("Feelings alone", "People alone", "Places alone")
    assert sorted(texts_of(phrases)["Feelings alone"]) == ["calm", "happy", "sad"]


def test_a_seed_draws_the_same_phrases_and_another_others() -> None:
    many = concept("Many", *"abcdefghij"), concept("More", *"klmnopqrst")
    first, again, other = (
        texts_of(phrases_between([("Many", "More")], *many, seed=seed, n_phrases=10))
        for seed in (0, 0, 1)
    )
    assert first == again
    assert set(first["Many More"]) != set(other["Many More"])


# What the models read.


def byte_level(*, add_prefix_space: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=310,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS)


def sentence_piece(*, prepend_scheme: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    special = [BOS, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS)


def word_piece() -> PreTrainedTokenizerFast:
    names = [BOS, "[UNK]", *"abcdefghijklmnopqrstuvwxyzNYï", "happy", "child", "New", "York"]
    names += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyzï"] + ["##ren"]
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS)


TOKENIZERS = {
    "byte level": lambda: byte_level(add_prefix_space=False),
    "byte level with a blank of its own": lambda: byte_level(add_prefix_space=True),
    "sentence piece": lambda: sentence_piece(prepend_scheme="never"),
    "sentence piece with a blank of its own": lambda: sentence_piece(prepend_scheme="always"),
    "word piece": word_piece,
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]()


def ids_of(tokens: Tokens, context: int) -> list[int]:
    return tokens.input_ids[context, tokens.attended[context]].tolist()


def test_a_phrase_has_the_ids_that_it_has_inside_a_text(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = ["happy child", "New York mothers", "naïve", "unhappy children"]
    tokens = as_contexts(texts, tokenizer, with_bos=False)
    for i, text in enumerate(texts):
        around = f"and {text} with"
        told = tokenizer(around, add_special_tokens=False, return_offsets_mapping=True)
        first, last = around.index(text) - 1, around.index(text) + len(text)  # with the blank
        inside = [
            token
            for token, (start, stop) in zip(told["input_ids"], told["offset_mapping"], strict=True)
            if stop > first and start < last
        ]
        assert ids_of(tokens, i) == inside


def test_the_last_token_alone_counts_and_what_is_short_is_padded(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    texts = ["happy child", "unhappy mothers", "child"]
    tokens = as_contexts(texts, tokenizer, with_bos=True)
    lengths = tokens.attended.sum(axis=1)
    assert len(set(lengths.tolist())) > 1
    for i, length in enumerate(lengths):
        assert tokens.attended[i].tolist() == [True] * length + [False] * (max(lengths) - length)
        assert np.flatnonzero(tokens.kept[i]).tolist() == [length - 1]
        assert ids_of(tokens, i)[0] == tokenizer.bos_token_id
        assert tokenizer.bos_token_id not in ids_of(tokens, i)[1:]
    without = as_contexts(texts, tokenizer, with_bos=False)
    assert [ids_of(without, i) for i in range(3)] == [ids_of(tokens, i)[1:] for i in range(3)]
    assert tokens.special_ids == tuple(sorted(tokenizer.all_special_ids))
    assert tokens.document.tolist() == [0, 1, 2]


def test_a_tokenizer_without_bos_reads_phrases_alone() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    tokens = as_contexts(["ab", "c"], tokenizer, with_bos=True)
    assert [tokenizer.decode(ids_of(tokens, i)) for i in (0, 1)] == [" ab", " c"]


# What two models with different tokenizers read.


made = cache(lambda name: TOKENIZERS[name]())


def two_read(
    tokenizer_a: PreTrainedTokenizerFast, tokenizer_b: PreTrainedTokenizerFast
) -> tuple[Phrases, list[str]]:
    """The same phrases for two tokenizers, and their texts."""
    keywords = concept("Some", "New York", "happy"), concept("Others", "naïve", "children")
    phrases, alone = (
        phrases_of(
            subspaces_of([("Some", "Others")], *keywords),
            tokenizers,
            with_bos=[True, True],
            rng=np.random.default_rng(0),
        )
        for tokenizers in ((tokenizer_a, tokenizer_b), [tiny_tokenizer(LETTERS)] * 2)
    )
    texts = [
        tiny_tokenizer(LETTERS).decode(ids_of(alone.a, i)[1:]) for i in range(len(alone.group))
    ]
    return phrases, texts


LETTERS = "abcdefghijklmnopqrstuvwxyzNYï "


def places_inside(tokenizer: PreTrainedTokenizerFast, text: str) -> list[tuple[int, int]]:
    """Where the tokens of a phrase stand if it stands inside a text."""
    told = tokenizer(f"a{text} a", add_special_tokens=False, return_offsets_mapping=True)
    places = [(start - 1, stop - 1) for start, stop in told["offset_mapping"]]
    return [place for place in places if place[1] > 0 and place[0] < len(text)]


@pytest.mark.parametrize("name_b", TOKENIZERS)
@pytest.mark.parametrize("name_a", TOKENIZERS)
def test_each_model_reads_a_phrase_in_its_own_tokens_to_its_end(name_a: str, name_b: str) -> None:
    a, b = made(name_a), copy.deepcopy(made(name_b))
    phrases, texts = two_read(a, b)
    assert len(texts) == len(phrases.group) == 4 + 4 + 2 + 2
    for letter, tokenizer in (("a", a), ("b", b)):
        tokens, pieces = phrases.of(letter)
        alone = as_contexts([text[1:] for text in texts], tokenizer, with_bos=True)
        assert tokens.sha256 == alone.sha256
        assert tokens.n_tokens == len(pieces) == len(texts)
    for text, n_a, n_b in zip(texts, phrases.pieces_a, phrases.pieces_b, strict=True):
        sides = [places_inside(tokenizer, text) for tokenizer in (a, b)]
        # The last place before the end where a token of each ends and none goes on.
        ends = [
            {stop for (_, stop), (start, _) in pairwise(places) if start >= stop and stop}
            for places in sides
        ]
        shared = max({stop for stop in ends[0] & ends[1] if stop < len(text)}, default=0)
        expected = [sum(stop > shared for _, stop in places) for places in sides]
        if expected[0] == expected[1] and name_a.split()[:2] == name_b.split()[:2]:
            expected = [1, 1]  # cut alike
        assert [n_a, n_b] == expected


def test_what_one_tokenizer_cuts_and_the_other_does_not_is_the_end_of_a_phrase() -> None:
    phrases, texts = two_read(tiny_tokenizer(LETTERS), word_piece())
    ends = dict(zip(texts, zip(phrases.pieces_a, phrases.pieces_b, strict=True), strict=True))
    # Letters beside New, York, happy, child, ##ren, and letters again where a word is unknown.
    assert ends[" happy children"] == (3, 1)
    assert ends[" children happy"] == (6, 1)
    assert ends[" naïve New York"] == (5, 1)
    assert ends[" New York naïve"] == (1, 1)
    assert ends[" happy"] == (6, 1)


def test_one_tokenizer_reads_a_phrase_once() -> None:
    phrases = phrases_between([("Feelings", "People")], FEELINGS, PEOPLE)
    assert phrases.of("a")[0] is phrases.of("b")[0]
    assert set(phrases.pieces_a.tolist()) == set(phrases.pieces_b.tolist()) == {1}


# What fires on them.


def grouped(names: list[str], group: list[int]) -> Phrases:
    """Groups of contexts; what they say does not matter."""
    one = np.ones((len(group), 1), dtype=bool)
    tokens = Tokens(
        input_ids=one.astype(np.int32),
        attended=one,
        kept=one,
        document=np.arange(len(group), dtype=np.int32),
    )
    return Phrases(
        names=tuple(names),
        kinds=("phrase",) * len(names),
        a=tokens,
        b=tokens,
        pieces_a=np.ones(len(group), dtype=np.int32),
        pieces_b=np.ones(len(group), dtype=np.int32),
        group=np.array(group),
    )


def test_a_feature_fires_on_a_share_of_the_phrases_and_twice_as_often_as_in_the_text() -> None:
    phrases = grouped(["a", "b"], [0] * 10 + [1] * 4)
    fires = np.zeros((14, 6))
    for feature, n in enumerate((0, 1, 2, 5, 10, 10)):
        fires[:n, feature] = 0.5 + np.arange(n)
    fires[10:12, 0] = 3
    rate = np.array([0.0, 0.0, 0.1, 0.26, 0.5, 0.51])
    members = phrases.features(sp.csr_array(fires), rate, min_phrases=0.2)
    # Of the ten phrases: none, one, two at twice the rate, five at less, all at twice, all at less.
    assert members["a"].tolist() == [False, False, True, False, True, False]
    assert members["b"].tolist() == [True, False, False, False, False, False]
    assert phrases.features(sp.csr_array(fires), rate, min_phrases=0.1)["a"][1]
    assert not phrases.features(sp.csr_array(fires), rate, min_phrases=0.6)["b"][0]


@given(
    seed=st.integers(0, 2**32 - 1),
    n_contexts=st.integers(1, 20),
    min_phrases=st.sampled_from([0.05, 0.5, 1.0]),
)
def test_features_of_phrases_are_those_of_the_definition(
    seed: int, n_contexts: int, min_phrases: float
) -> None:
    rng = np.random.default_rng(seed)
    group = np.sort(rng.integers(0, 3, size=n_contexts))
    used = np.unique(group)
    group = np.searchsorted(used, group)
    phrases = grouped([str(i) for i in used], group.tolist())
    acts = rng.random((n_contexts, 7)) * (rng.random((n_contexts, 7)) < 0.5)
    rate = rng.choice([0, 0.1, 0.25, 0.5], size=7)
    members = phrases.features(sp.csr_array(acts), rate, min_phrases=min_phrases)
    for place, name in enumerate(phrases.names):
        for feature in range(7):
            fired = [acts[i, feature] > 0 for i in range(n_contexts) if group[i] == place]
            share = sum(fired) / len(fired)
            assert members[name][feature] == (share >= min_phrases and share >= 2 * rate[feature])
