from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tokenizers import normalizers

from conftest import random_tokens, tiny_tokenizer
from saelign.errors import (
    FormatError,
    MissingFileError,
    ModelError,
    StorageError,
    TextError,
)
from saelign.text import (
    check_same_tokenizer,
    draw,
    load_token_ids,
    load_tokenizer,
    save_token_ids,
    special_ids,
    tokenize,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz .,\n"


@given(
    documents=st.lists(st.text(LETTERS, max_size=40), min_size=1, max_size=5).filter(any),
    context_length=st.integers(2, 11),
    add_bos=st.booleans(),
)
def test_contexts_hold_every_character_once_and_in_order(documents, context_length, add_bos):
    tokenizer = tiny_tokenizer()
    tokens = tokenize(
        documents, tokenizer, context_length=context_length, add_bos=add_bos, mask_first=False
    )
    assert "".join(tokenizer.convert_ids_to_tokens(tokens.token_ids)) == "".join(documents)
    for index, document in enumerate(documents):
        ids = tokens.input_ids[tokens.document == index][tokens.kept[tokens.document == index]]
        assert "".join(tokenizer.convert_ids_to_tokens(ids)) == document
    if add_bos:
        assert (tokens.input_ids[:, 0] == tokenizer.bos_token_id).all()


@given(
    documents=st.lists(st.text(LETTERS + "é", max_size=40), min_size=1, max_size=5).filter(any),
    mask_special=st.booleans(),
    mask_first=st.booleans(),
    add_bos=st.booleans(),
)
def test_every_position_is_kept_or_counted_under_one_reason(
    documents, mask_special, mask_first, add_bos
):
    tokens = tokenize(
        documents,
        tiny_tokenizer(),
        context_length=8,
        add_bos=add_bos,
        mask_special=mask_special,
        mask_first=mask_first,
    )
    masked = tokens.masked
    assert sum(masked.values()) + tokens.n_tokens == tokens.input_ids.size
    assert masked["padding"] == (~tokens.attended).sum()
    assert masked["surplus"] == 0
    if mask_special and add_bos:
        assert masked["special"] >= len(tokens.input_ids)
        assert masked["first_position"] == 0
    if not mask_special:
        assert masked["special"] == 0 or mask_first
    if mask_first:
        assert not tokens.kept[:, 0].any()


def test_only_the_first_of_several_reasons_counts():
    tokens = tokenize(["abc", "defgh"], tiny_tokenizer(), context_length=4)
    assert tokens.input_ids.tolist() == [[0, 2, 3, 4], [0, 5, 6, 7], [0, 8, 9, 0]]
    assert tokens.document.tolist() == [0, 1, 1]
    assert tokens.masked == {"padding": 1, "special": 3, "first_position": 0, "surplus": 0}
    assert tokens.token_ids.tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    assert tokens.context_of.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert tokens.position_of.tolist() == [1, 2, 3, 1, 2, 3, 1, 2]
    bare = tokenize(["abcd"], tiny_tokenizer(), context_length=4, add_bos=False)
    assert bare.masked == {"padding": 0, "special": 0, "first_position": 1, "surplus": 0}


def test_text_longer_than_the_window_is_cut_without_a_warning(caplog):
    tokens = tokenize(["ab" * 200], tiny_tokenizer(), context_length=9)
    assert tokens.n_tokens == 400
    assert not caplog.records


def test_contexts_need_room_and_text():
    with pytest.raises(TextError, match=r"leave room for text, got 1"):
        tokenize(["a"], tiny_tokenizer(), context_length=1)
    with pytest.raises(TextError, match=r"at least one token, got none"):
        tokenize([""], tiny_tokenizer(), context_length=4)


def test_the_hash_tells_what_is_read_and_what_counts():
    tokens = random_tokens()
    other_mask = replace(tokens, kept=tokens.attended)
    other_document = replace(tokens, document=tokens.document[::-1].copy())
    assert random_tokens().sha256 == tokens.sha256
    assert len({t.sha256 for t in (tokens, random_tokens(seed=1), other_mask, other_document)}) == 4


def test_saved_token_ids_come_back(tmp_path):
    path = tmp_path / "text.safetensors"
    ids = np.arange(12).reshape(3, 4)
    save_token_ids(path, ids, {"made_by": "a test"})
    tokens = load_token_ids(path, special_ids=(0, 5), mask_special=True, mask_first=True)
    assert (tokens.input_ids == ids).all()
    assert tokens.document.tolist() == [0, 1, 2]
    assert tokens.masked == {"padding": 0, "special": 2, "first_position": 2, "surplus": 0}
    with pytest.raises(StorageError, match=r"cannot write token ids to .*nowhere"):
        save_token_ids(tmp_path / "nowhere" / "text.safetensors", ids)


def test_a_file_of_token_ids_may_say_what_is_padding_and_which_document(tmp_path):
    path = tmp_path / "text.safetensors"
    mask = np.array([[1, 1, 1], [1, 1, 0]])
    save_file(
        {"input_ids": np.full((2, 3), 70000), "attention_mask": mask, "document": np.array([4, 4])},
        path,
    )
    tokens = load_token_ids(path, special_ids=(), mask_special=True, mask_first=False)
    assert tokens.n_tokens == 5
    assert tokens.masked["padding"] == 1
    assert tokens.document.tolist() == [4, 4]


def test_a_bad_file_of_token_ids_is_refused(tmp_path):
    path = tmp_path / "text.safetensors"

    def load():
        return load_token_ids(path, special_ids=(), mask_special=True, mask_first=True)

    with pytest.raises(MissingFileError, match=r"text\.safetensors is not there"):
        load()
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(FormatError, match=r"must be a safetensors file, .* is none"):
        load()
    ids = np.zeros((2, 3), dtype=np.int32)
    for arrays, words in (
        ({"ids": ids}, r"must hold an array 'input_ids', got: ids"),
        ({"input_ids": ids[0]}, r"integers of context by position, got int32 of shape \(3,\)"),
        ({"input_ids": ids.astype(np.float32)}, r"got float32 of shape"),
        ({"input_ids": ids - 1}, r"must be token ids, got values from -1 to -1"),
        ({"input_ids": ids, "attention_mask": ids[0]}, r"attention_mask .* shape \(2, 3\)"),
        ({"input_ids": ids, "document": ids}, r"document .* shape \(2,\).* got \(2, 3\)"),
    ):
        save_file(arrays, path)
        with pytest.raises(FormatError, match=words):
            load()


@given(n_tokens=st.integers(1000, 1200), seed=st.integers(0, 5))
def test_a_draw_keeps_exactly_what_was_asked_for_in_the_order_of_the_text(n_tokens, seed):
    tokens = random_tokens(n_contexts=130)
    drawn = draw(tokens, n_tokens, rng=np.random.default_rng(seed))
    again = draw(tokens, n_tokens, rng=np.random.default_rng(seed))
    assert drawn.n_tokens == n_tokens
    assert drawn.sha256 == again.sha256
    assert (np.diff(drawn.document) >= 0).all()
    assert sum(drawn.masked.values()) + n_tokens == drawn.input_ids.size
    rows = {tuple(ids): kept for ids, kept in zip(tokens.input_ids, tokens.kept, strict=True)}
    cut = 0
    for ids, kept in zip(drawn.input_ids, drawn.kept, strict=True):
        whole = rows[tuple(ids)]
        assert not (kept & ~whole).any()
        if kept.sum() < whole.sum():
            cut += 1
            assert (kept == (whole & (np.cumsum(whole) <= kept.sum()))).all()
    assert cut == (drawn.masked["surplus"] > 0)


def test_draws_of_different_seeds_differ():
    tokens = random_tokens(n_contexts=130)
    first, second = (draw(tokens, 1000, rng=np.random.default_rng(seed)) for seed in (0, 1))
    assert first.sha256 != second.sha256


def test_a_draw_of_everything_is_the_text():
    tokens = random_tokens(n_contexts=130)
    for n_tokens in (None, tokens.n_tokens):
        drawn = draw(tokens, n_tokens, rng=np.random.default_rng(0))
        assert drawn.sha256 == tokens.sha256
    fewer = draw(tokens, 10**6, rng=np.random.default_rng(0), allow_fewer=True)
    assert fewer.sha256 == tokens.sha256


def test_too_little_text_is_refused():
    rng = np.random.default_rng(0)
    short = random_tokens(n_contexts=20)
    with pytest.raises(TextError, match=rf"at least 1,000 .* got {short.n_tokens}"):
        draw(short, None, rng=rng, allow_fewer=True)
    tokens = random_tokens(n_contexts=130)
    with pytest.raises(TextError, match=r"at least 1,000 tokens must count, got 999"):
        draw(tokens, 999, rng=rng)
    with pytest.raises(
        TextError, match=rf"the 5,000 tokens asked for, it holds {tokens.n_tokens:,}"
    ):
        draw(tokens, 5000, rng=rng)


def test_a_tokenizer_loads_from_a_folder_and_knows_its_special_ids(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert special_ids(tokenizer) == (0,)
    check_same_tokenizer(tokenizer, tiny_tokenizer(), "a", "b")


def test_a_tokenizer_that_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    with pytest.raises(MissingFileError, match=r"must hold a tokenizer"):
        load_tokenizer(str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"'no/such' must be a folder or a name on the Hug"):
        load_tokenizer("no/such")


def test_tokenizers_that_differ_are_refused_saying_where():
    one = tiny_tokenizer()
    with pytest.raises(TextError, match=r"got 32 tokens in left and 31 in right: choose two"):
        check_same_tokenizer(one, tiny_tokenizer(LETTERS[:-1]), "left", "right")
    with pytest.raises(TextError, match=r"token 2 is 'a' in left and 'b' in right: choose two"):
        check_same_tokenizer(one, tiny_tokenizer("ba" + LETTERS[2:]), "left", "right")
    lower = tiny_tokenizer()
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(TextError, match=r"of left and right agree but not .* from token 0 on"):
        check_same_tokenizer(one, lower, "left", "right")
