"""One text for two tokenizers."""

import copy
import json
import re
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from conftest import N_VOCABULARY, lossless_sae, tiny_model, tiny_tokenizer
from saelign import Study, check, read_study, run
from saelign.activations.pooling import pooled
from saelign.errors import ShapeError, StudyError, TextError, UnknownNameError
from saelign.models import load_model
from saelign.saes import save_sae
from saelign.study import study_mapping
from saelign.text import save_token_ids, tokenize
from saelign.text.alignment import AlignedTokens, align, pieces_kept

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


def ends_of(places: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Each place where a token ends and none goes on -> how many tokens end there or before."""
    return {
        places[n - 1][1]: n
        for n in range(1, len(places) + 1)
        if all(start >= places[n - 1][1] for start, _ in places[n : n + 1])
    }


def ends_by_definition(text: str, *places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """How many tokens of each side end at a common place: the same, or with blanks between."""
    a, b = (ends_of(of) for of in places)
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


def test_what_needs_one_tokenizer_says_so(world: Path) -> None:
    with pytest.raises(StudyError, match=r"^text\.across_documents must be left out where the mod"):
        check(study_of(world, "c", across_documents=True), out=world / "none")
    study = study_of(world, "c")
    phrases = {"concepts": ["Emotions", "Time"], "phrases": [["Emotions", "Time"]]}
    content = {**study_mapping(study), "subspaces": phrases}
    with pytest.raises(StudyError, match=r"^subspaces\.phrases must be left out where the models"):
        check(read_study(content, folder=world), out=world / "none")
    ids = tokenize(["abc def"] * 500, tiny_tokenizer(), context_length=8)
    save_token_ids(world / "ids.safetensors", ids.input_ids)
    content = study_mapping(study) | {"text": {"source": "ids.safetensors"}}
    with pytest.raises(TextError, match=r"^both models must read the same tokens, got "):
        check(read_study(content, folder=world), out=world / "none")
