"""One text for two tokenizers."""

import copy
import io
import json
import re
import shutil
import unicodedata
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import Tokenizer as Core
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from conftest import N_VOCABULARY, lossless_sae, tiny_model, tiny_tokenizer
from saelign import Study, check, read_study, run
from saelign.activations.pooling import pooled
from saelign.cli import main
from saelign.errors import ShapeError, StudyError, TextError, UnknownNameError
from saelign.models import load_model
from saelign.pipeline import read_words
from saelign.saes import save_sae
from saelign.study import study_mapping
from saelign.text import placed, save_token_ids, tokenize
from saelign.text.alignment import AlignedTokens, align, pieces_kept, units_of_text

TEXTS = [
    "The feeling was good; a café in Zürich cost 12.50 francs, and nobody was feeling worse.",
    "Feelings come back on Mondays. It's  not\n\nonly the weather 🙂 that changes, naïvely 日本.",
    "Good francs feel good. The weather in Zürich changes on Mondays and feelings change with it!",
]


def byte_level(n: int = 330, *, prefix: bool = False) -> PreTrainedTokenizerFast:
    core = Core(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    core.post_processor = processors.ByteLevel(trim_offsets=prefix)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=n, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(TEXTS * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="<s>")


def word_piece(n: int = 120) -> PreTrainedTokenizerFast:
    core = Core(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    core.train_from_iterator(
        TEXTS * 3,
        trainers.WordPieceTrainer(vocab_size=n, special_tokens=special, show_progress=False),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]",
    )  # fmt: skip


def sentence_piece(n: int = 150) -> PreTrainedTokenizerFast:
    core = Core(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    core.train_from_iterator(
        TEXTS * 3,
        trainers.UnigramTrainer(
            vocab_size=n, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


KINDS = {
    "byte-level": byte_level,
    "byte-level, other merges": lambda: byte_level(290, prefix=True),
    "WordPiece": word_piece,
    "SentencePiece": sentence_piece,
    "letters": tiny_tokenizer,
}
TOKENIZERS = {name: make() for name, make in KINDS.items()}
pairs = pytest.mark.parametrize(
    ("name_a", "name_b"), [(a, b) for a in KINDS for b in KINDS if a != b]
)


def told(tokenizer: PreTrainedTokenizerFast, text: str) -> list[tuple[int, int]]:
    return tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]


def visible(text: str) -> int:
    return len(re.sub(r"\s", "", text))


def ends_of(text: str, places: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Each place where a token ends and none goes on -> how many tokens end there or before.

    What no token stands for, but for blanks, is the end of the token before.
    """
    found = {}
    for n, (start, stop) in enumerate(places, 1):
        following = [start for start, _ in places[n : n + 1]] or [len(text)]
        if following[0] >= stop:
            dropped = re.match(r"\S*", text[stop : following[0]])
            assert dropped is not None
            found[stop + len(dropped[0]) * (stop > start)] = n
    return found


def ends_by_definition(text: str, *places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """How many tokens of each side end at a common place: the same, or with blanks between."""
    a, b = (ends_of(text, of) for of in places)
    found = []
    for count in {visible(text[:end]) for end in a}:
        here_a = {end: n for end, n in a.items() if visible(text[:end]) == count}
        here_b = {end: n for end, n in b.items() if visible(text[:end]) == count}
        same = here_a.keys() & here_b.keys()
        if same:
            found += [(here_a[end], here_b[end]) for end in same]
        elif here_a and here_b:
            found.append((max(here_a.values()), max(here_b.values())))
    return sorted(found)


def rows(aligned: AlignedTokens) -> list[tuple[int, int]]:
    """For each kept unit the token of A and of B that ends it."""
    return list(zip(aligned.a.token_ids.tolist(), aligned.b.token_ids.tolist(), strict=True))


def test_a_word_in_two_pieces_stands_beside_the_whole_word() -> None:
    class Pieces:
        is_fast, bos_token_id, eos_token_id, pad_token_id = True, 0, 0, None
        all_special_ids = (0,)

        def __init__(self, *pieces: str) -> None:
            self.pieces = pieces

        def __call__(self, text: str, **_: object) -> dict[str, list]:
            ids, places, at = [], [], 0
            for index, piece in enumerate(self.pieces):
                at = text.index(piece, at)
                ids.append(index + 1)
                places.append((at, at + len(piece)))
                at += len(piece)
            return {"input_ids": ids, "offset_mapping": places}

        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return [self.pieces[i - 1] for i in ids]

        def __len__(self) -> int:
            return len(self.pieces) + 1

        def decode(self, token_ids: list[int], **_: object) -> str:
            return "".join(self.pieces[i - 1] for i in token_ids)

        def get_vocab(self) -> dict[str, int]:
            return {piece: i + 1 for i, piece in enumerate(self.pieces)}

    a, b = Pieces("feel", "ing", " good", "!"), Pieces("feeling", " go", "od", "!")
    aligned = align(["feeling good!"], a, b, context_length=8)
    assert rows(aligned) == [(2, 1), (3, 3), (4, 4)]
    assert aligned.pieces_a.tolist() == [2, 1, 1]
    assert aligned.pieces_b.tolist() == [1, 2, 1]
    assert (aligned.coverage.tokens_a, aligned.coverage.tokens_b) == (0.75, 0.75)
    assert (aligned.coverage.characters, aligned.coverage.single) == (1.0, 1 / 3)
    assert pieces_kept(aligned.a, aligned.pieces_a).token_ids.tolist() == [1, 2, 3, 4]
    # A context has room for three tokens of either: "good" no longer fits into the first.
    short = align(["feeling good!"], a, b, context_length=4)
    assert short.a.input_ids.tolist() == [[0, 1, 2, 3], [0, 4, 0, 0]]
    assert short.b.input_ids.tolist() == [[0, 1, 2, 3], [0, 4, 0, 0]]
    # What is longer than a context is left out.
    with pytest.raises(TextError, match=r"at least 50% .*, these cover 8\.3% .* of 2 tokens: give"):
        align(["feeling good!"], a, b, context_length=2)


@pytest.mark.parametrize("name", list(KINDS))
def test_one_tokenizer_beside_itself_is_read_as_it_is_alone(name: str) -> None:
    tokenizer, other = TOKENIZERS[name], copy.deepcopy(TOKENIZERS[name])
    for length in (9, 64):
        aligned = align(TEXTS, tokenizer, other, context_length=length)
        alone = tokenize(TEXTS, tokenizer, context_length=length)
        for side in (aligned.a, aligned.b):
            assert side.sha256 == alone.sha256
        assert set(aligned.pieces_a.tolist()) == set(aligned.pieces_b.tolist()) == {1}
        assert aligned.coverage.tokens_a == aligned.coverage.tokens_b == 1.0
        assert aligned.coverage.characters == aligned.coverage.single == 1.0


@pairs
def test_units_are_the_common_boundaries_and_contexts_hold_the_same_text(
    name_a: str, name_b: str
) -> None:
    a, b = TOKENIZERS[name_a], TOKENIZERS[name_b]
    aligned = align(TEXTS, a, b, context_length=400, mask_special=False, mask_first=False)
    assert len(aligned.a.input_ids) == len(TEXTS)
    n_units = 0
    for row, text in enumerate(TEXTS):
        common = ends_by_definition(text, told(a, text), told(b, text))
        for side, (tokenizer, tokens) in enumerate(((a, aligned.a), (b, aligned.b))):
            has_first = tokenizer.bos_token_id is not None or tokenizer.cls_token_id is not None
            got = {int(i) - has_first + 1 for i in np.flatnonzero(tokens.kept[row])}
            assert got >= {pair[side] for pair in common}  # more where equal pieces were split
        n_units += len(common)
    assert aligned.a.n_tokens == aligned.b.n_tokens == len(aligned.pieces_a) >= n_units
    assert aligned.coverage.characters == 1.0
    for tokens, pieces in ((aligned.a, aligned.pieces_a), (aligned.b, aligned.pieces_b)):
        whole = pieces_kept(tokens, pieces)
        assert whole.n_tokens == pieces.sum()
        n_special = int(np.isin(tokens.input_ids[tokens.attended], tokens.special_ids).sum())
        assert whole.n_tokens >= int(tokens.attended.sum()) - n_special


def plain(tokenizer: PreTrainedTokenizerFast, ids: np.ndarray) -> str:
    """The plain letters and digits of some tokens, in small letters without accents."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKD", text).lower())


@pytest.mark.parametrize(
    ("name_a", "name_b"),
    [(a, b) for a in KINDS for b in KINDS if a != b and "letters" not in (a, b)],
)
def test_short_contexts_of_both_hold_the_same_text(name_a: str, name_b: str) -> None:
    a, b = TOKENIZERS[name_a], TOKENIZERS[name_b]
    aligned = align(TEXTS, a, b, context_length=24)
    assert np.array_equal(aligned.a.document, aligned.b.document)
    assert np.array_equal(aligned.a.context_of, aligned.b.context_of)
    assert len(aligned.a.input_ids) > len(TEXTS)
    texts = [
        [
            plain(tokenizer, ids[attended])
            for ids, attended in zip(tokens.input_ids, tokens.attended, strict=True)
        ]
        for tokenizer, tokens in ((a, aligned.a), (b, aligned.b))
    ]
    assert texts[0] == texts[1]
    assert sum(len(text) > 2 for text in texts[0]) > len(TEXTS)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(alphabet="ab é🙂日 \n.<s>Zü", min_size=1, max_size=30), min_size=1, max_size=4)
)
def test_any_text_is_paired_in_order_and_wholly(texts: list[str]) -> None:
    a, b = TOKENIZERS["byte-level"], TOKENIZERS["SentencePiece"]
    try:
        aligned = align(texts, a, b, context_length=200, mask_special=False, mask_first=False)
    except TextError:  # blanks alone, of which SentencePiece makes no token
        assert not "".join(texts).strip()
        return
    assert aligned.a.n_tokens == aligned.b.n_tokens
    assert np.array_equal(aligned.a.context_of, aligned.b.context_of)
    assert (np.diff(aligned.a.context_of) >= 0).all()
    for tokens, pieces in ((aligned.a, aligned.pieces_a), (aligned.b, aligned.pieces_b)):
        assert pieces_kept(tokens, pieces).n_tokens == pieces.sum()


def test_a_unit_with_a_masked_token_on_either_side_does_not_count() -> None:
    a, b = TOKENIZERS["byte-level"], TOKENIZERS["SentencePiece"]
    text = ["good <s> weather in good weather"]
    masked = align(text, a, b, context_length=64)
    everything = align(text, a, b, context_length=64, mask_special=False)
    assert everything.a.n_tokens > masked.a.n_tokens
    for tokens, pieces in ((masked.a, masked.pieces_a), (masked.b, masked.pieces_b)):
        whole = pieces_kept(tokens, pieces)
        assert not np.isin(whole.token_ids, tokens.special_ids).any()
    words = TOKENIZERS["WordPiece"]
    assert words.bos_token_id is None
    first = align(TEXTS, words, a, context_length=32)
    assert not first.a.kept[:, 0].any()
    assert not first.b.kept[:, 0].any()


def test_tokenizers_that_cannot_be_aligned_are_refused() -> None:
    class Slow:
        bos_token_id = eos_token_id = pad_token_id = None
        all_special_ids: tuple[int, ...] = ()

        def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
            return {"input_ids": [1] * len(text)}

        def __len__(self) -> int:
            return 2

        def decode(self, token_ids: list[int], **_: object) -> str:
            return "a" * len(token_ids)

        def get_vocab(self) -> dict[str, int]:
            return {"a": 1}

    fast = TOKENIZERS["byte-level"]
    with pytest.raises(TextError, match=r"which characters .*, Slow does not: choose a model with"):
        align(TEXTS, fast, Slow(), context_length=16)
    with pytest.raises(TextError, match=r"context_length must leave room for text, got 1"):
        align(TEXTS, fast, TOKENIZERS["letters"], context_length=1)
    with pytest.raises(TextError, match=r"text must hold at least one token, got none"):
        align([""], fast, TOKENIZERS["letters"], context_length=16)


# Special tokens, and characters that are not one token each ------------------------------------


def gpt_neox() -> PreTrainedTokenizerFast:
    """Byte-level pieces of composed characters, and runs of blanks as added tokens; BOS unused."""
    made = byte_level()
    core = made.backend_tokenizer
    core.normalizer = normalizers.NFC()
    core.add_tokens([AddedToken(" " * n, normalized=False) for n in range(2, 9)])
    end = "<|endoftext|>"
    core.add_special_tokens([end])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=end, pad_token=end)


def bert() -> PreTrainedTokenizerFast:
    """Small letters without accents, between CLS and SEP, both put there by the tokenizer."""
    made = word_piece()
    core = made.backend_tokenizer
    ids = core.get_vocab()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]",
    )  # fmt: skip


def llama() -> PreTrainedTokenizerFast:
    """Pieces with `▁` for blanks, bytes for what they lack, BOS put there by the tokenizer."""
    core = Core(models.BPE(unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    core.train_from_iterator([word for text in TEXTS for word in text.split(" ")], trainer)
    told = json.loads(core.to_str())
    told["added_tokens"] = [token for token in told["added_tokens"] if token["content"] in special]
    core = Core.from_str(json.dumps(told))
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


REAL = {"GPT-NeoX": gpt_neox(), "BERT": bert(), "Llama": llama()}
REAL["SentencePiece"] = TOKENIZERS["SentencePiece"]
HARD = {
    "runs of blanks": "good  weather    in   Zürich",
    "blanks at both ends": "  good weather  ",
    "tabs and no-break spaces": "good\tweather\u00a0in \u3000Zürich",
    "line ends of two characters": "good\r\nweather\r\n\r\nin Zürich",
    "accents of their own": "cafe\u0301 in Zu\u0308rich, nai\u0308ve\u0301",
    "two accents out of order": "go\u0307\u0323od in Zu\u0323\u0307rich",
    "a letter that gets longer in small": "İstanbul feels good in Zürich",
    "ligatures and fractions": "ﬁne feelings cost ½ franc",
    "syllables of three letters": "good \u1112\u1161\u11ab good",
    "an emoji of five characters": "good \U0001f469\u200d\U0001f469\u200d\U0001f467 weather",
    "flags and skin": "good \U0001f1e9\U0001f1ea weather \U0001f44d\U0001f3fd",
    "characters of no width": "go\u200bod\ufeff wea\u00adther",
    "a character of three bytes": "日本 good 日",
}
real_pairs = pytest.mark.parametrize(
    ("name_a", "name_b"), [(a, b) for a in REAL for b in REAL if a != b]
)


@pytest.mark.parametrize("text", HARD.values(), ids=HARD.keys())
@real_pairs
def test_units_of_hard_texts_are_the_common_boundaries(name_a: str, name_b: str, text: str) -> None:
    a, b = (placed(REAL[name], text) for name in (name_a, name_b))
    units = units_of_text(text, a, b)
    ends = [tuple(end) for end in np.cumsum([pieces for pieces, _, _ in units], axis=0).tolist()]
    expected = [(0, 0)]
    for end in ends_by_definition(text, a.places, b.places):
        if all(n > before for n, before in zip(end, expected[-1], strict=True)):
            expected.append(end)  # else blanks of one side alone, which join what follows
    assert len(expected) > 2
    assert expected[-1] == ends[-1]
    assert set(expected[1:]) <= set(ends)
    # More only where equal pieces were split.
    assert {units[i][0] for i, end in enumerate(ends) if end not in expected} <= {(1, 1)}
    # Nothing but blanks is left over, and the units stand one after the other.
    assert not text[units[-1][2] :].strip()
    assert [start for _, start, _ in units] == [0, *(stop for _, _, stop in units[:-1])]


@real_pairs
def test_what_was_composed_of_two_characters_is_one_end(name_a: str, name_b: str) -> None:
    """NFC is told to stand for the letter alone, WordPiece drops the accent, bytes have both."""
    text = "cafe\u0301 good"
    a, b = (placed(REAL[name], text) for name in (name_a, name_b))
    stops = [stop for _, _, stop in units_of_text(text, a, b)]
    assert 5 in stops
    assert 4 not in stops


@real_pairs
def test_frames_of_both_are_read_and_never_count(name_a: str, name_b: str) -> None:
    a, b = REAL[name_a], REAL[name_b]
    frames = {"GPT-NeoX": [], "BERT": ["[CLS]", "[SEP]"], "Llama": ["<s>"]}
    frames["SentencePiece"] = frames["Llama"]
    aligned = align([*TEXTS, *HARD.values()], a, b, context_length=32)
    for name, tokenizer, (tokens, pieces) in (
        (name_a, a, aligned.of("a")),
        (name_b, b, aligned.of("b")),
    ):
        ids = tokenizer.convert_tokens_to_ids(frames[name])
        lengths = tokens.attended.sum(axis=1)
        if ids:
            assert set(tokens.input_ids[:, 0].tolist()) == {ids[0]}
        if ids[1:]:
            last = tokens.input_ids[np.arange(len(lengths)), lengths - 1]
            assert set(last.tolist()) == {ids[1]}
        whole = pieces_kept(tokens, pieces)
        assert whole.n_tokens == pieces.sum() > 100
        assert not np.isin(whole.token_ids, tokens.special_ids).any()
        assert not whole.kept[:, 0].any()


@pytest.mark.parametrize("marker", ["<|endoftext|>", "[SEP]", "<s>", "</s>"])
@real_pairs
def test_a_marker_in_the_text_counts_for_neither_where_one_has_it(
    name_a: str, name_b: str, marker: str
) -> None:
    a, b = REAL[name_a], REAL[name_b]
    has_it = [marker in tokenizer.all_special_tokens for tokenizer in (a, b)]
    texts = [f"good weather{marker}in Zürich {marker} feelings"]
    read = align(texts, a, b, context_length=100)
    for tokenizer, (tokens, pieces) in ((a, read.of("a")), (b, read.of("b"))):
        whole = pieces_kept(tokens, pieces)
        kept = plain(tokenizer, whole.token_ids)
        assert "weather" in kept
        assert "feelings" in kept
        if any(has_it):  # else its letters are text
            assert marker.strip("<|>[]/").lower() not in kept.replace("feelings", "")


# Places that cannot be --------------------------------------------------------------------------


class Misplaced:
    """A tokenizer of letters that tells other places than its own."""

    is_fast, bos_token_id, eos_token_id, pad_token_id = True, None, None, None
    all_special_ids: tuple[int, ...] = ()

    def __init__(self, *places: tuple[int, int]) -> None:
        self.places = list(places)

    def __call__(self, _: str, **__: object) -> dict[str, list]:
        return {"input_ids": list(range(len(self.places))), "offset_mapping": self.places}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [f"t{i}" for i in ids]

    def __len__(self) -> int:
        return 26

    def decode(self, token_ids: list[int], **_: object) -> str:
        return "".join(self.convert_ids_to_tokens(token_ids))

    def get_vocab(self) -> dict[str, int]:
        return {}


@pytest.mark.parametrize(
    ("places", "which"),
    [
        ([(0, 2), (2, 9)], r"token 1, 't1', at characters 2 to 9 of 4, after one at 0 to 2"),
        ([(-1, 2)], r"token 0, 't0', at characters -1 to 2 of 4"),
        ([(2, 4), (0, 2)], r"token 1, 't1', at characters 0 to 2 of 4, after one at 2 to 4"),
        ([(0, 3), (1, 2)], r"token 1, 't1', at characters 1 to 2 of 4, after one at 0 to 3"),
        ([(3, 1)], r"token 0, 't0', at characters 3 to 1 of 4"),
        ([(9, 9)], r"token 0, 't0', at characters 9 to 9 of 4"),
    ],
)
def test_places_that_no_text_has_are_refused(places: list[tuple[int, int]], which: str) -> None:
    letters = TOKENIZERS["letters"]
    with pytest.raises(TextError, match=rf"must ascend within the text, Misplaced puts {which}"):
        align(["good"], Misplaced(*places), letters, context_length=16)
    with pytest.raises(TextError, match=r"choose another model$"):
        align(["good"], letters, Misplaced(*places), context_length=16)


def test_places_that_are_all_the_same_are_told_by_the_coverage() -> None:
    with pytest.raises(TextError, match=r"at least 50% of a text .*, these cover 0\.0% of it"):
        align(["good"], Misplaced((0, 0), (0, 0)), TOKENIZERS["letters"], context_length=16)


# Pooling -----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_units_take_the_last_the_largest_or_the_mean_of_their_tokens(data: st.DataObject) -> None:
    counts = np.array(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=8)))
    seed = data.draw(st.integers(0, 999))
    rng = np.random.default_rng(seed)
    dense = rng.random((int(counts.sum()), 5)).astype(np.float32)
    dense[rng.random(dense.shape) < 0.6] = 0
    matrix = sp.csr_array(dense)
    parts = np.split(dense, np.cumsum(counts)[:-1])
    for how, expected in (
        ("last", [part[-1] for part in parts]),
        ("max", [part.max(axis=0) for part in parts]),
        ("mean", [part.mean(axis=0) for part in parts]),
    ):
        got = pooled(matrix, counts, how)
        np.testing.assert_allclose(got.toarray(), np.array(expected), rtol=1e-6)
        assert got.has_canonical_format
        assert got.dtype == np.float32


def test_one_token_a_unit_is_left_as_it_is() -> None:
    matrix = sp.csr_array(np.eye(3, dtype=np.float32))
    for how in ("last", "max", "mean"):
        assert (pooled(matrix, np.ones(3, dtype=int), how) != matrix).nnz == 0


def test_pooling_that_cannot_be_is_refused() -> None:
    matrix = sp.csr_array(np.eye(3, dtype=np.float32))
    with pytest.raises(UnknownNameError, match=r"unknown pooling 'maxx' \(did you mean 'max'\?\)"):
        pooled(matrix, np.ones(3, dtype=int), "maxx")
    with pytest.raises(ShapeError, match=r"as many tokens as there are rows, got 4 .* for 3 rows"):
        pooled(matrix, np.array([2, 2]), "mean")


# Whole studies -----------------------------------------------------------------------------------


def permuted(folder: Path, out: Path) -> None:
    """The same model and tokenizer with other numbers for the tokens."""
    order = np.random.default_rng(5).permutation(30) + 2  # <bos> and <unk> stay
    order = np.concatenate([[0, 1], order, np.arange(32, N_VOCABULARY)])
    model = load_model(str(folder))
    embeddings = model.get_input_embeddings().weight.data
    embeddings[order] = embeddings.clone()
    model.save_pretrained(out)
    for file in folder.glob("*token*"):
        shutil.copy(file, out)
    told = json.loads((out / "tokenizer.json").read_text())
    words = told["model"]["vocab"]
    told["model"]["vocab"] = {word: int(order[index]) for word, index in words.items()}
    (out / "tokenizer.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that share a tokenizer, one of them twice with other numbers; a third with its own."""
    folder = tmp_path_factory.mktemp("aligned")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), rng.integers(1, 6))) for _ in range(60)]
    documents = [" ".join(rng.choice(words, 30)) + "." for _ in range(60)]
    (folder / "text.txt").write_text("\n\n".join(documents))
    for number, name in enumerate(("a", "b", "c")):
        model = tiny_model("gpt_neox", number)
        if name == "c":
            model.resize_token_embeddings(400)
        model.save_pretrained(folder / name)
        (TOKENIZERS["byte-level"] if name == "c" else tiny_tokenizer()).save_pretrained(
            folder / name
        )
    permuted(folder / "b", folder / "b2")
    for layer in range(2):
        save_sae(lossless_sae(), folder / f"sae_{layer}.safetensors")
    return folder


NO_FILTERS = {"max_non_concept_tokens": None, "min_shared_tokens": None, "min_correlation": None}


def study_of(world: Path, b: str, **changes: object) -> Study:
    text = {"source": "text.txt", "split": "blank_line", "context_length": 32, **changes}
    content = {
        "saelign": 1,
        "name": "aligned",
        "model_a": {"name": "a", "layers": [0, 1], "saes": "sae_{layer}.safetensors"},
        "model_b": {"name": b, "layers": [0, 1], "saes": "sae_{layer}.safetensors"},
        "text": {"tokens": 3000, **text},
        "seeds": [0, 1],
        "measures": ["pc1", "rsa"],
        "filters": {"max_non_concept_tokens": None, "min_shared_tokens": None},
        "nulls": {"shuffle": 10},
        "controls": ["document_shift"],
        "output": {"store": str(world / "store")},
    }
    return read_study(content, folder=world)


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saelign.pipeline.write_figures", lambda *_, **__: [])


def test_a_tokenizer_with_other_numbers_gives_exactly_the_same_comparison(world: Path) -> None:
    common = run(study_of(world, "b"), out=world / "common")
    aligned = run(study_of(world, "b2"), out=world / "aligned")
    assert "coverage" not in common.info["text"][0]
    assert set(aligned.info["text"][0]["coverage"].values()) == {1.0}
    pd.testing.assert_frame_equal(aligned.scores, common.scores)
    for column in ("mean_correlation", "mean_within_token", "held_out_correlation"):
        of = [r.cells.loc[r.cells["control"] == "trained", column] for r in (aligned, common)]
        pd.testing.assert_series_equal(*of)


@pytest.mark.parametrize("pooling", ["last", "max", "mean"])
def test_models_with_tokenizers_of_their_own_are_compared(world: Path, pooling: str) -> None:
    finished = run(study_of(world, "c", pooling=pooling), out=world / pooling)
    about = finished.info["text"][0]
    assert about["n_tokens"] == 3000
    assert about["coverage"]["characters"] == 1.0
    assert about["coverage"]["tokens_a"] < 1.0
    assert finished.scores["score"].notna().any()
    assert finished.info["study"]["text"]["pooling"] == pooling
    plan = check(study_of(world, "c", pooling=pooling), out=world / pooling)
    assert 0 < plan.summary()["coverage"]["tokens_b"] <= 1.0
    side_a, side_b = plan.comparisons[0].a, plan.comparisons[0].b
    reads = [plan.read_by(side, 0).n_tokens for side in (side_a, side_b)]
    assert (reads == [3000, 3000]) == (pooling == "last")


def with_phrases(study: Study, world: Path) -> Study:
    """The study with phrases of two halves of the text's words."""
    words = sorted(set((world / "text.txt").read_text().replace(".", "").split()))
    for half, name in enumerate(("first.txt", "second.txt")):
        (world / name).write_text("\n".join(words[half::2]))
    names = ["first.txt", "second.txt"]
    subspaces = {
        "concepts": names, "phrases": [names], "min_pairs": 3, "same_size": 5, "filters": NO_FILTERS
    }  # fmt: skip
    content = study_mapping(study)
    for model in ("model_a", "model_b"):
        content[model]["layers"] = [1]
    quick = {"seeds": [0], "controls": [], "subspaces": subspaces}
    return read_study({**content, **quick}, folder=world)


def test_phrases_of_a_tokenizer_with_other_numbers_give_exactly_the_same(world: Path) -> None:
    common, aligned = (
        run(with_phrases(study_of(world, b), world), out=world / f"phrases_{b}")
        for b in ("b", "b2")
    )
    for table in ("subspaces", "subspace_scores", "subspace_features"):
        pd.testing.assert_frame_equal(getattr(aligned, table), getattr(common, table))
    members = common.subspace_features
    assert (members.loc[members["kind"] == "phrase", "n_features"] > 0).any()


@pytest.mark.parametrize("pooling", ["last", "max", "mean"])
def test_a_phrase_ends_with_a_unit_pooled_as_the_units_of_the_text(
    world: Path, pooling: str
) -> None:
    study = with_phrases(study_of(world, "c", pooling=pooling), world)
    plan = check(study, out=world / "none")
    words = read_words(plan, 0, 0)
    assert words is not None
    assert words.phrases is not None
    rng = np.random.default_rng(0)
    for side in plan.sides:
        tokens, pieces = words.phrases.of(side.letter)
        read = plan.to_collect(tokens, pieces)
        assert read.n_tokens == (len(pieces) if pooling == "last" else pieces.sum())
        dense = rng.random((read.n_tokens, 4)).astype(np.float32)
        got = plan.pooled(sp.csr_array(dense), pieces).toarray()
        of_context = [dense[read.context_of == row] for row in range(len(pieces))]
        how = {"last": lambda x: x[-1], "max": lambda x: x.max(0), "mean": lambda x: x.mean(0)}
        np.testing.assert_allclose(got, [how[pooling](part) for part in of_context], rtol=1e-6)
        for row, n in enumerate(pieces if pooling != "last" else np.ones_like(pieces)):
            last = int(tokens.position_of[row])
            of_row = read.position_of[read.context_of == row]
            assert of_row.tolist() == list(range(last - n + 1, last + 1))
    assert words.phrases.pieces_a.max() > 1


def test_phrases_of_tokenizers_of_their_own_are_read_to_the_end(world: Path) -> None:
    study = with_phrases(study_of(world, "c", pooling="mean"), world)
    features = run(study, out=world / "phrases_c").subspace_features
    assert set(features["kind"]) == {"concept", "phrase", "wrong_order", "alone"}
    assert (features["n_features"] > 0).any()


def told_by_check(world: Path, tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """What `saelign check` says of the world's model A beside the same with another tokenizer."""
    tiny_model("gpt_neox", 1).save_pretrained(world / name)
    tokenizer.save_pretrained(world / name)
    study = {**study_mapping(study_of(world, "b")), "output": {}}
    study["model_b"]["name"] = name
    path = world / f"{name}.yaml"
    path.write_text(yaml.safe_dump(study))
    with redirect_stderr(io.StringIO()) as error, redirect_stdout(io.StringIO()):
        status = main(["check", str(path), "--out", str(world / "none")])
    assert status == 1
    return " ".join(error.getvalue().split())


def test_the_command_line_says_why_tokenizers_cannot_be_aligned(world: Path) -> None:
    core = Core(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    whole = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    assert whole.encode("two words") == [0]
    error = told_by_check(world, whole, "whole")
    assert "two tokenizers must cut at least 50% of a text at common places" in error
    assert "these cover 0.0% of it in contexts of 32 tokens: give longer contexts, or" in error
    error = told_by_check(world, ByT5Tokenizer(), "slow")
    assert "each must tell which characters a token stands for, ByT5Tokenizer does not" in error
    assert "choose a model with a tokenizer.json" in error


def test_what_needs_one_tokenizer_says_so(world: Path) -> None:
    with pytest.raises(StudyError, match=r"^text\.across_documents must be left out where the mod"):
        check(study_of(world, "c", across_documents=True), out=world / "none")
    study = study_of(world, "c")
    ids = tokenize(["abc def"] * 500, tiny_tokenizer(), context_length=8)
    save_token_ids(world / "ids.safetensors", ids.input_ids)
    content = study_mapping(study) | {"text": {"source": "ids.safetensors"}}
    with pytest.raises(TextError, match=r"^both models must read the same tokens, got "):
        check(read_study(content, folder=world), out=world / "none")
