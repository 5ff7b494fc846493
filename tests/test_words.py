"""Words whose pieces are merged, against plain readings of the text they come from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from conftest import tiny_tokenizer
from saelign.text import Tokens, Words, tokenize, words_of
from saelign.text.words import byte_alphabet, piece_bytes, words_in

BOS = "<bos>"
CONTRACTED = ("'t", "'re", "'ve", "'ll", "'d", "'m", "\u2019t", "\u2019ll")
HYPHENS = "-\u2010\u2011\u2012\u2013"
OF_FAMILY = {
    "byte_level": ["Ġone", "Ġtwo"],
    "sentence_piece": ["▁one", "▁two"],
    "word_piece": ["##one", "##two"],
    "plain": [],
}
"""Names that show which family a vocabulary is of, whatever else stands in it."""


def tokenizer_of(names: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer that has these tokens; <bos> is special."""
    vocabulary = {name: i for i, name in enumerate(dict.fromkeys([BOS, "<unk>", *names]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS)


def coded(*texts: str) -> list[str]:
    """Texts, or parts of characters as hexadecimal bytes, as a byte-level vocabulary names them."""
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    names = []
    for text in texts:
        is_hex = text.startswith("0x")
        data = bytes.fromhex(text[2:]) if is_hex else text.encode()
        names.append("".join(letters[byte] for byte in data))
    return names


def tokens_of(
    contexts: list[list[str]],
    family: str = "byte_level",
    *,
    kept: list[list[bool]] | None = None,
    attended: list[list[bool]] | None = None,
) -> tuple[Tokens, PreTrainedTokenizerFast]:
    """Contexts of named tokens; what is short is padded, what is not special is kept."""
    tokenizer = tokenizer_of([*(name for names in contexts for name in names), *OF_FAMILY[family]])
    width = max(map(len, contexts))
    vocabulary = tokenizer.get_vocab()
    ids = np.zeros((len(contexts), width), dtype=np.int32)
    there = np.zeros(ids.shape, dtype=bool)
    for i, names in enumerate(contexts):
        ids[i, : len(names)] = [vocabulary[name] for name in names]
        there[i, : len(names)] = True if attended is None else attended[i]
    tokens = Tokens(
        input_ids=ids,
        attended=there,
        kept=there & (ids != vocabulary[BOS]) if kept is None else np.array(kept),
        document=np.arange(len(contexts), dtype=np.int32),
        special_ids=(vocabulary[BOS],),
    )
    return tokens, tokenizer


def read(*contexts: list[str], family: str = "byte_level", **options) -> Words:
    return words_of(*tokens_of(list(contexts), family, **options))


def texts_of(words: Words) -> list[str]:
    """The text of each unit, in order."""
    return [words.texts[place] for place in words.text_of]


def of_tokens(words: Words) -> list[str]:
    """The text of the unit of each kept token."""
    texts = texts_of(words)
    return [texts[unit] for unit in words.unit_of]


def plain_words(text: str) -> list[tuple[int, int]]:
    """Where the words of a text begin and end: letters and digits, and what contracts them."""
    found, at = [], 0
    while at < len(text):
        if not text[at].isalnum():
            at += 1
            continue
        stop = at
        while stop < len(text) and text[stop].isalnum():
            stop += 1
        for ending in sorted(CONTRACTED, key=len, reverse=True):
            after = text[stop + len(ending) : stop + len(ending) + 1]
            is_open = after.isalnum() or after == "_"
            if text.startswith(ending, stop) and not is_open:
                stop += len(ending)
                break
        found.append((at, stop))
        at = stop
    return found


# The families of vocabularies.


def test_byte_level_pieces_are_merged_to_words() -> None:
    words = read(["h", "app", "iness", "Ġis", "Ġhere", "."])
    assert texts_of(words) == ["happiness", "is", "here", "."]
    assert words.unit_of.tolist() == [0, 0, 0, 1, 2, 3]
    assert words.ends.tolist() == [False, False, True, True, True, True]
    assert words.before.tolist() == [-1, 0, 1, -1]


def test_sentence_pieces_and_their_bytes_are_merged_to_words() -> None:
    pieces = ["▁h", "app", "y", "▁caf", "<0xC3>", "<0xA9>", "▁", "猫", ",", "▁<0xC3>"]
    words = read(pieces, family="sentence_piece")
    assert texts_of(words)[:5] == ["happy", "café", "", "猫", ","]
    assert words.unit_of.tolist()[:9] == [0, 0, 0, 1, 1, 1, 2, 3, 4]
    assert words.ends.tolist()[:6] == [False, False, True, False, False, True]
    assert words.before.tolist()[:4] == [-1, 0, -1, 1]
    assert texts_of(words)[5:] == ["0xC3"]  # no byte: its name says more than that


def test_word_pieces_are_merged_to_words() -> None:
    words = read(["[CLS]", "em", "##bed", "##ding", "new", "york", "."], family="word_piece")
    assert texts_of(words) == ["CLS", "embedding", "new", "york", "."]
    assert words.unit_of.tolist() == [0, 1, 1, 1, 2, 3, 4]


def test_of_a_plain_vocabulary_the_decoded_text_is_merged() -> None:
    tokenizer = tiny_tokenizer()
    tokens = tokenize(["on a hill, now"], tokenizer, context_length=16)
    words = words_of(tokens, tokenizer)
    assert [text for text in texts_of(words) if text.isalpha()] == ["on", "a", "hill", "now"]
    assert of_tokens(words) == [
        *["on"] * 2, "", "a", "", *["hill"] * 4, ",", "", *["now"] * 3
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "pieces"),
    [
        ("byte_level", ["h", "appy", *coded(" new"), "##", "##"]),
        ("sentence_piece", ["▁h", "appy", "▁new", "##", "Ġ", "▁one"]),
        ("word_piece", ["h", "##appy", "new", "Ġ", "▁"]),
    ],
)
def test_a_vocabulary_may_hold_the_marks_of_others(family: str, pieces: list[str]) -> None:
    words = read(pieces, family=family)
    assert texts_of(words)[:2] == ["happy", "new"]
    assert words.before.tolist()[:2] == [-1, 0]


def test_a_letter_of_maltese_does_not_make_a_vocabulary_byte_level() -> None:
    words = read(["▁pi", "ñata", "▁Ġ", "or", "ġ"], family="sentence_piece")
    assert texts_of(words) == ["piñata", "Ġorġ"]


def test_added_tokens_of_a_byte_level_vocabulary_stand_as_they_are() -> None:
    tokenizer = tokenizer_of([*coded("é", " x"), "<tool▁call>"])
    ids = tokenizer.get_vocab()
    found = piece_bytes(tokenizer, [ids["Ã©"], ids["Ġx"], ids["<tool▁call>"], 999])
    assert list(found.values()) == ["é".encode(), b" x", "<tool▁call>".encode(), b""]


def test_every_byte_has_a_letter_of_its_own() -> None:
    table = byte_alphabet()
    assert sorted(table.values()) == list(range(256))
    assert table["Ġ"] == 32
    assert table["Ċ"] == 10
    assert table["a"] == ord("a")
    reference = pre_tokenizers.ByteLevel.alphabet()
    assert set(table) == set(reference)
    coder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in ("naïve — 猫\n\t", "\u0100\u00ad ÿ"):
        ((written, _),) = coder.pre_tokenize_str(text)
        assert bytes(table[letter] for letter in written) == text.encode()


# What is a word.


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["don", "'t", " go"], ["don't", "go"]),
        (["I", "'ll", " go"], ["I'll", "go"]),
        (["it\u2019", "d", "."], ["it\u2019d", "."]),
        (["king", "'s", " son"], ["king", "s", "son"]),
        (["king", "'", "s", " son"], ["king", "'", "s", "son"]),
        (["the", "'", "dog", "'"], ["the", "'", "dog", "'"]),
        (["self", "-", "respect"], ["self", "-", "respect"]),
        (["self", "-respect"], ["self", "respect"]),
        (["a", "_b"], ["a", "b"]),
        (["in", " 19", "87", "."], ["in", "1987", "."]),
        (["x", "2", "y"], ["x2y"]),
        ([" (", "war", ")", "\n", "peace"], ["(", "war", ")", "", "peace"]),
    ],
)
def test_words_are_letters_digits_and_what_contracts_them(
    pieces: list[str], expected: list[str]
) -> None:
    assert texts_of(read(coded(*pieces))) == expected


@pytest.mark.parametrize("between", [" ", "-", " - ", "\n", "\u2013", "\u2011", "'", "\u2019", ""])
def test_blanks_hyphens_and_an_apostrophe_may_stand_between_the_words_of_a_keyword(
    between: str,
) -> None:
    pieces = ["New", *([between] if between else []), "York" if between else " York"]
    words = read(coded(*pieces))
    first, last = texts_of(words).index("New"), texts_of(words).index("York")
    assert words.before[last] == first


@pytest.mark.parametrize("between", [".", ". ", ", ", " / ", "''", "' - '", "—", " x "])
def test_other_marks_part_the_words_of_a_keyword(between: str) -> None:
    words = read(coded("New", between, "York"))
    last = texts_of(words).index("York")
    assert words.before[last] < 0 or texts_of(words)[words.before[last]] == "x"


@pytest.mark.parametrize(
    ("keyword", "expected"),
    [
        ("happy", ["happy"]),
        ("New York", ["New", "York"]),
        ("self-respect", ["self", "respect"]),
        ("man-of-war", ["man", "of", "war"]),
        ("o'clock", ["o", "clock"]),
        ("don't", ["don't"]),
        ("Guinea-Bissau border", ["Guinea", "Bissau", "border"]),
        ("C++", ["C++"]),
        ("St. Lucia", ["St.", "Lucia"]),
        ("$", ["$"]),
    ],
)
def test_a_keyword_is_cut_as_a_text_is(keyword: str, expected: list[str]) -> None:
    assert list(words_in(keyword)) == expected


def test_a_character_cut_across_tokens_is_whole_in_its_word() -> None:
    words = read(coded("caf", "0xc3", "0xa9", " ", "0xe7", "0x8c", "0xab", " x"))
    assert texts_of(words) == ["café", "", "猫", "x"]
    assert words.unit_of.tolist() == [0, 0, 0, 1, 2, 2, 2, 3]
    assert words.ends.tolist() == [False, False, True, True, False, False, True, True]


def test_bytes_that_are_no_character_part_words_and_move_nothing_after_them() -> None:
    words = read(coded("ab", "0xc3", "é", "0xff", "cd", "0xa9", " e"))
    assert [text for text in texts_of(words) if text.isalpha()] == ["ab", "é", "cd", "e"]
    assert words.unit_of.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert texts_of(words)[1] == "\ufffd"
    assert words.before.tolist() == [-1] * 7


# Tokens and words.


def test_a_token_of_two_words_belongs_to_the_second() -> None:
    words = read(coded("New", " York.In", " May"))
    assert texts_of(words) == ["New", "In", "May"]
    assert words.unit_of.tolist() == [0, 1, 2]
    words = read(coded("happ", "y.sa", "d"))
    assert texts_of(words) == ["happy", "sad"]
    assert words.unit_of.tolist() == [0, 1, 1]
    assert words.ends.tolist() == [True, False, True]
    assert words.before.tolist() == [-1, -1]


def test_a_word_without_a_token_of_its_own_is_nobodys_word_before() -> None:
    words = read(coded("a b c", " d"))
    assert texts_of(words) == ["c", "d"]
    assert words.before.tolist() == [-1, 0]
    words = read(coded("a", " b c", " d"))
    assert texts_of(words) == ["a", "c", "d"]
    assert words.before.tolist() == [-1, -1, 1]


def test_special_tokens_part_words() -> None:
    words = read(["New", BOS, "ĠYork", "Ġci", BOS, "ty"])
    named = [text for text in texts_of(words) if text.isalpha()]
    assert named == ["New", "York", "ci", "ty"]
    assert words.before.tolist().count(-1) == 5
    assert of_tokens(words) == named
    assert words.ends.all()


def test_padding_has_no_unit_and_contexts_do_not_touch() -> None:
    words = read(["Ġnew", "Ġyo"], ["rk", "Ġcity", "Ġhall"])
    assert texts_of(words) == ["new", "yo", "rk", "city", "hall"]
    assert words.before.tolist() == [-1, 0, -1, 2, 3]
    assert words.unit_of.tolist() == [0, 1, 2, 3, 4]


def test_a_first_piece_that_does_not_count_is_still_read() -> None:
    kept = [[False, True, True], [False, False, True]]
    words = read(["ha", "ppy", "Ġson"], ["sa", "d", "Ġson"], kept=kept)
    assert texts_of(words) == ["happy", "son", "sad", "son"]
    assert of_tokens(words) == ["happy", "son", "son"]
    assert words.before.tolist() == [-1, 0, -1, 2]
    assert words.texts == ("happy", "son", "sad")


def test_a_last_piece_that_does_not_count_leaves_no_end() -> None:
    words = read(["ha", "pp", "y"], kept=[[True, True, False]])
    assert words.unit_of.tolist() == [0, 0]
    assert words.ends.tolist() == [False, False]


def test_where_nothing_counts_words_stand_all_the_same() -> None:
    words = read(["ha", "ppy"], kept=[[False, False]])
    assert texts_of(words) == ["happy"]
    assert len(words.unit_of) == len(words.ends) == 0


# Any text, through a tokenizer that was really trained.

ALPHABET = ["happy", "happier", "don't", "I'm", "king's", "naïve", "猫", "the", "we'd", "1987", "é"]
MARKS = [" ", "  ", "\n", ", ", ".", "-", " \u2013 ", "'", "\u2019", "_", "...", " (", "😀", "\t"]


@pytest.fixture(scope="module")
def trained() -> PreTrainedTokenizerFast:
    """A byte-level vocabulary so small that letters beyond ASCII are cut, and with it words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(ALPHABET)] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS)


@given(
    parts=st.lists(
        st.one_of(st.sampled_from(ALPHABET), st.sampled_from(MARKS), st.text(max_size=3)),
        min_size=1,
        max_size=30,
    )
)
def test_words_and_tokens_are_those_of_the_text(
    trained: PreTrainedTokenizerFast, parts: list[str]
) -> None:
    text = "".join(parts)
    if not text or BOS in text or any("\ud800" <= c <= "\udfff" for c in text):
        return
    tokens = tokenize([text], trained, context_length=2000)
    words = words_of(tokens, trained)
    spans = trained(text, return_offsets_mapping=True)["offset_mapping"]
    found = plain_words(text)
    # A token is of the last word that it has a part of.
    owners = [
        [i for i, (a, b) in enumerate(found) if a < stop and b > start] for start, stop in spans
    ]
    owner = [of_token[-1] if of_token else None for of_token in owners]
    assert len(words.unit_of) == len(spans)
    named = of_tokens(words)
    for token, word in enumerate(owner):
        if word is not None:
            assert named[token] == text[slice(*found[word])]
    # Tokens share a unit where they share a word, and nowhere else.
    for token in range(1, len(owner)):
        same = owner[token] is not None and owner[token] == owner[token - 1]
        assert same == (words.unit_of[token] == words.unit_of[token - 1])
    # The word before is the one before, with nothing else between.
    unit_of = {word: int(words.unit_of[token]) for token, word in enumerate(owner)}
    for word in set(owner) - {None, 0}:
        between = text[found[word - 1][1] : found[word][0]]
        joins = all(c.isspace() or c in HYPHENS for c in between) or between in ("'", "\u2019")
        assert words.before[unit_of[word]] == (unit_of.get(word - 1, -1) if joins else -1)


@given(
    parts=st.lists(st.sampled_from([*ALPHABET, *MARKS]), min_size=1, max_size=40),
    context_length=st.integers(3, 40),
    mask_first=st.booleans(),
)
def test_every_kept_token_has_a_unit_in_the_order_of_the_text(
    trained: PreTrainedTokenizerFast, parts: list[str], context_length: int, mask_first: bool
) -> None:
    text = " ".join(parts)
    tokens = tokenize([text, text], trained, context_length=context_length, mask_first=mask_first)
    words = words_of(tokens, trained)
    assert len(words.unit_of) == len(words.ends) == tokens.n_tokens
    assert (np.diff(words.unit_of) >= 0).all()
    assert words.unit_of.max(initial=-1) < len(words.text_of) == len(words.before)
    assert (words.before < np.arange(len(words.before))).all()
    assert len(set(words.texts)) == len(words.texts)
    # Contexts do not touch, and one piece at most ends each unit.
    context = tokens.context_of
    assert (
        words.unit_of[1:][np.diff(context) > 0] > words.unit_of[:-1][np.diff(context) > 0]
    ).all()
    assert np.bincount(words.unit_of, weights=words.ends).max(initial=0) <= 1
    # The same document twice has the same words twice.
    half = tokens.document[context] == 0
    named = np.array(of_tokens(words))
    assert named[half].tolist() == named[~half].tolist()
