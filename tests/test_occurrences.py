"""Where keywords stand and which features fire there, against slow and plain readings."""

import re
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from saelign.concepts.concept import Concept, Keyword
from saelign.concepts.occurrences import Case, Occurrences, concept_features, inflections
from saelign.text import Words

SPECIAL = "<|>"
"""In the texts below: a token that no keyword may reach across."""

HYPHEN = "-"
"""A token that stands between the words of one keyword."""


def concept(*keywords: str, name: str = "test") -> Concept:
    return Concept(
        name=name,
        version="1",
        about="",
        keywords=tuple(Keyword(text=text, source="here") for text in keywords),
    )


def words_of_text(text: str) -> Words:
    """A token a word; one with | in it is of as many pieces. Marks part words, hyphens do not."""
    texts: list[str] = []
    before, unit_of, ends = [], [], []
    for unit, written in enumerate(text.split()):
        pieces = [written] if written == SPECIAL else written.split("|")
        texts.append("".join(pieces))
        previous = unit - 1
        while previous >= 0 and texts[previous] == HYPHEN:
            previous -= 1
        is_joined = previous >= 0 and texts[unit].isalnum() and texts[previous].isalnum()
        before.append(previous if is_joined else -1)
        unit_of += [unit] * len(pieces)
        ends += [False] * (len(pieces) - 1) + [True]
    distinct = tuple(dict.fromkeys(texts))
    return Words(
        texts=distinct,
        text_of=np.array([distinct.index(t) for t in texts], dtype=np.int64),
        before=np.array(before, dtype=np.int64),
        unit_of=np.array(unit_of, dtype=np.int64),
        ends=np.array(ends, dtype=bool),
    )


def found_in(text: str, *keywords: str, **options) -> list[str]:
    """The words of a text at which keywords stand, `word!` for the last of several."""
    words = words_of_text(text)
    here = Occurrences.of(words, [concept(*keywords)], **options)
    told = []
    for unit, place in enumerate(words.text_of):
        if here.on_word[0, unit]:
            told.append(words.texts[place])
        if here.on_last[0, unit]:
            told.append(words.texts[place] + "!")
    return told


# Where keywords stand.


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("smart", ["May", "May", "Happy", "happy", "HAPPY"]),
        ("ignore", ["may", "May", "MAY", "May", "Happy", "happy", "HAPPY"]),
        ("exact", ["May", "May", "happy"]),
    ],
)
def test_a_capital_letter_means_that_spelling_alone_if_case_is_smart(
    case: Case, expected: list[str]
) -> None:
    assert found_in("I may in May MAY May Happy happy HAPPY", "May", "happy", case=case) == expected


def test_smart_is_the_default_and_nothing_is_inflected() -> None:
    assert found_in("Loves love may", "May", "love") == ["love"]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("smart", ["York!"]),
        ("ignore", ["York!", "york!", "YORK!"]),
        ("exact", ["York!"]),
    ],
)
def test_the_case_of_a_keyword_of_several_words_counts_alike(
    case: Case, expected: list[str]
) -> None:
    assert found_in("New York new york NEW YORK", "New York", case=case) == expected


def test_a_keyword_of_several_words_stands_at_its_last() -> None:
    text = "grand father clock father clock clock"
    assert found_in(text, "grand father clock") == ["clock!"]
    assert found_in(text, "father clock") == ["clock!", "clock!"]
    assert found_in(text, "father clock", "father") == ["father", "clock!", "father", "clock!"]


def test_words_that_overlap_are_found_each_time() -> None:
    assert found_in("very very very good", "very very") == ["very!", "very!"]


@pytest.mark.parametrize("between", [SPECIAL, ".", "city"])
def test_a_keyword_of_several_words_is_not_found_across_anything_else(between: str) -> None:
    assert found_in(f"New {between} York", "New York") == []
    assert found_in("York New York", "New York") == ["York!"]


@pytest.mark.parametrize("keyword", ["self-respect", "self\u2011respect", "self'respect"])
def test_a_hyphen_or_apostrophe_is_cut_in_keywords_as_in_texts(keyword: str) -> None:
    assert found_in("a self respect of his self", keyword) == ["respect!"]
    assert found_in("a self - respect - of his self", keyword) == ["respect!"]
    assert found_in("self respects", keyword, inflected=True) == ["respects!"]


@pytest.mark.parametrize(
    ("word", "forms", "others"),
    [
        ("happy", ["happier", "happiest", "happily"], ["happyness", "unhappy", "happen"]),
        ("stop", ["stops", "stopped", "stopping", "stopper"], ["stope", "top"]),
        ("love", ["loves", "loved", "loving", "lover"], ["lov", "lovely", "glove"]),
        ("cry", ["cries", "cried", "crying"], ["crie"]),
        ("play", ["plays", "played", "playing", "player"], ["plaies", "plaied"]),
        ("box", ["boxes", "boxed", "boxing"], ["boxxes", "boxxed"]),
        ("church", ["churches"], ["churche"]),
        ("potato", ["potatoes", "potatos"], ["potato-es"]),
        ("large", ["larger", "largest"], ["largeer"]),
        ("rain", ["rains", "rained", "raining"], ["rainned", "rainning"]),
        ("row", ["rowed", "rowing"], ["rowwed"]),
        ("at", ["ats", "atted"], []),
        ("", ["s"], []),
    ],
)
def test_regular_forms_are_found_if_asked_for(
    word: str, forms: list[str], others: list[str]
) -> None:
    assert {word, *forms} <= inflections(word)
    assert not set(others) & inflections(word)


def test_the_last_of_several_words_is_inflected_and_no_other() -> None:
    text = "grandfather clocks grandfathers clock grandfather clock"
    assert found_in(text, "grandfather clock", inflected=True) == ["clocks!", "clock!"]
    assert found_in(text, "grandfather clock") == ["clock!"]
    assert found_in("Mays may mays May", "May", inflected=True) == ["Mays", "May"]
    assert found_in("Happier LOVED", "happy", "love", inflected=True) == ["Happier", "LOVED"]


def test_occurrences_are_counted_once_by_concept() -> None:
    words = words_of_text("old York and New York York")
    concepts = [concept("New York", "York", name="Places"), concept("absent", name="None")]
    here = Occurrences.of(words, concepts)
    assert here.names == ("Places", "None")
    assert here.counts() == {"Places": 3, "None": 0}
    assert here.on_last.sum() == 1


def test_no_concepts_and_no_words_have_no_occurrences() -> None:
    assert Occurrences.of(words_of_text("a b"), []).on_word.shape == (0, 2)
    empty = Occurrences.of(words_of_text(""), [concept("a", "b c")])
    assert empty.on_word.shape == empty.on_last.shape == (1, 0)
    assert empty.counts() == {"test": 0}


WORDS = ["new", "New", "york", "York", "cat", "cats", SPECIAL]


@given(
    text=st.lists(st.sampled_from([*WORDS, HYPHEN]), max_size=30),
    keywords=st.lists(
        st.lists(st.sampled_from(WORDS[:-1]), min_size=1, max_size=3).map(" ".join), min_size=1
    ),
    case=st.sampled_from(["smart", "ignore", "exact"]),
)
def test_occurrences_are_those_that_a_search_of_the_text_finds(
    text: list[str], keywords: list[str], case: Case
) -> None:
    here = Occurrences.of(words_of_text(" ".join(text)), [concept(*keywords)], case=case)
    for unit in range(len(text)):
        for several, found in ((False, here.on_word), (True, here.on_last)):
            expected = False
            for keyword in keywords:
                wanted = keyword.split(" ")
                words = [word for word in text[: unit + 1] if word != HYPHEN]
                stands = words[max(0, len(words) - len(wanted)) :]
                if (len(wanted) > 1) != several or SPECIAL in stands or text[unit] == HYPHEN:
                    continue
                flags = 0
                if case == "ignore" or (case == "smart" and keyword == keyword.lower()):
                    flags = re.IGNORECASE
                expected |= bool(re.fullmatch(re.escape(keyword), " ".join(stands), flags))
            assert found[0, unit] == expected


# Which features belong.


def features_on(
    text: str, acts: Sequence[Sequence[float]], *keywords: str, top_words: int = 5
) -> tuple[list[bool], list[float]]:
    """Membership and share of features; a row of activations a feature."""
    words = words_of_text(text)
    columns = sp.csc_array(np.array(acts, dtype=np.float32).reshape(-1, len(words.unit_of)).T)
    columns.sort_indices()
    here = Occurrences.of(words, [concept(*keywords)])
    belongs, share = concept_features(columns, here, top_words=top_words)
    return belongs[0].tolist(), share[0].tolist()


def test_a_keyword_among_the_five_largest_makes_a_member_and_the_sixth_does_not() -> None:
    text = "one two three four five six"
    falling, rising = [6.0, 5, 4, 3, 2, 1], [1.0, 2, 3, 4, 5, 6]
    assert features_on(text, [falling, rising], "five")[0] == [True, True]
    assert features_on(text, [falling, rising], "six")[0] == [False, True]
    assert features_on(text, [falling, rising], "one", "six", top_words=1)[0] == [True, True]
    assert features_on(text, [falling, rising], "two", top_words=1)[0] == [False, False]


def test_pieces_of_a_word_count_as_one_of_the_five() -> None:
    # Six pieces are larger than the keyword, but they are four words.
    text = "a|b|c two three four love six"
    acts = [[9.0, 8, 7, 6, 5, 4, 3, 2]]
    assert features_on(text, acts, "love")[0] == [True]
    assert features_on(text, acts, "six")[0] == [False]
    assert features_on(text, acts, "love", top_words=4)[0] == [False]


def test_the_largest_piece_of_a_word_is_what_counts() -> None:
    text = "ha|ppy two"
    assert features_on(text, [[1.0, 9, 5]], "happy", top_words=1)[0] == [True]
    assert features_on(text, [[9.0, 1, 5]], "happy", top_words=1)[0] == [True]
    assert features_on(text, [[4.0, 4, 5]], "happy", top_words=1)[0] == [False]


def test_ties_go_to_the_earlier_word() -> None:
    assert features_on("love hate", [[1.0, 1]], "love", top_words=1)[0] == [True]
    assert features_on("hate love", [[1.0, 1]], "love", top_words=1)[0] == [False]
    assert features_on("ha|te lo|ve", [[0.5, 1, 1, 0.5]], "love", top_words=1)[0] == [False]


def test_words_that_repeat_count_each_time_they_stand() -> None:
    assert features_on("so so so so so love", [[6.0, 5, 4, 3, 2, 1]], "love")[0] == [False]


def test_a_keyword_of_several_words_needs_the_last_piece_to_fire() -> None:
    text = "New Yo|rk"
    assert features_on(text, [[0.0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 9, 1]], "New York") == (
        [True, False, False, True],
        [1, 0, 0, pytest.approx(0.1)],
    )
    assert features_on(text, [[0.0, 0, 1], [0, 1, 0], [1, 0, 0]], "york") == (
        [True, True, False],
        [1, 1, 0],
    )


def test_the_share_is_of_the_activations_and_not_of_the_tokens() -> None:
    text = "love is war love"
    belongs, share = features_on(text, [[1.0, 2, 4, 1], [0, 1, 0, 0], [0, 0, 0, 0]], "love")
    assert belongs == [True, False, False]
    assert share[:2] == [0.25, 0]
    assert np.isnan(share[2])


def test_a_silent_feature_belongs_nowhere_and_a_silent_layer_has_no_members() -> None:
    belongs, share = features_on("love war", [[0.0, 0], [0, 0]], "love")
    assert belongs == [False, False]
    assert np.isnan(share).all()


def plainly(
    acts: np.ndarray, words: Words, here: Occurrences, top_words: int
) -> tuple[np.ndarray, np.ndarray]:
    """Membership and share by the definition, one feature and one concept at a time."""
    n_features, n_concepts = acts.shape[1], len(here.names)
    belongs = np.zeros((n_concepts, n_features), dtype=bool)
    share = np.full((n_concepts, n_features), np.nan)
    for feature in range(n_features):
        best: dict[int, float] = {}
        reached: set[int] = set()
        for token, value in enumerate(acts[:, feature]):
            unit = int(words.unit_of[token])
            if value > 0:
                best[unit] = max(best.get(unit, 0), value)
                if words.ends[token]:
                    reached.add(unit)
        top = sorted(best, key=lambda unit: (-best[unit], unit))[:top_words]
        for i in range(n_concepts):
            on_word, on_last = here.on_word[i], here.on_last[i]
            belongs[i, feature] = any(
                on_word[unit] or (on_last[unit] and unit in reached) for unit in top
            )
            if not best:
                continue
            on_keyword = sum(
                float(value)
                for token, value in enumerate(acts[:, feature])
                if on_word[words.unit_of[token]]
                or (on_last[words.unit_of[token]] and words.ends[token])
            )
            share[i, feature] = on_keyword / float(acts[:, feature].astype(float).sum())
    return belongs, share


@given(
    text=st.lists(
        st.sampled_from(["a", "b|c", "d|e|f", "g", "h|i", SPECIAL]), min_size=1, max_size=25
    ),
    keywords=st.lists(
        st.sampled_from(["a", "bc", "def", "bc def", "a a", "g hi a", "zz"]), min_size=1
    ),
    top_words=st.integers(1, 6),
    n_values=st.sampled_from([1, 2, 5, 1000]),
    density=st.sampled_from([0.0, 0.2, 0.6, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_members_and_shares_are_those_of_the_definition(
    text: list[str],
    keywords: list[str],
    top_words: int,
    n_values: int,
    density: float,
    seed: int,
) -> None:
    words = words_of_text(" ".join(text))
    rng = np.random.default_rng(seed)
    shape = (len(words.unit_of), 5)
    acts = rng.integers(1, n_values + 1, size=shape) * (rng.random(shape) < density)
    acts = acts.astype(np.float32)
    acts[:, rng.integers(5)] = 0
    here = Occurrences.of(words, [concept(*keywords), concept("def", "g", name="other")])
    columns = sp.csc_array(acts)
    columns.sort_indices()
    belongs, share = concept_features(columns, here, top_words=top_words)
    expected, of_mass = plainly(acts, words, here, top_words)
    np.testing.assert_array_equal(belongs, expected)
    np.testing.assert_allclose(share, of_mass, rtol=1e-12)


def test_words_whose_tokens_do_not_count_move_nothing() -> None:
    words = words_of_text("a love b war")
    kept = np.array([True, False, True, True])
    words = Words(
        texts=words.texts,
        text_of=words.text_of,
        before=words.before,
        unit_of=words.unit_of[kept],
        ends=words.ends[kept],
    )
    here = Occurrences.of(words, [concept("love"), concept("war")])
    belongs, share = concept_features(sp.csc_array(np.eye(3)), here)
    assert belongs.tolist() == [[False, False, False], [False, False, True]]
    assert share.tolist() == [[0, 0, 0], [0, 0, 1]]
