"""What a feature fires on, against slow and plain readings of the activations."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from saelign.features import (
    CONTEXT_AFTER,
    CONTEXT_BEFORE,
    feature_table,
    is_non_concept,
    shown_context,
    top_rows,
)
from saelign.text import Tokens

SPECIAL, COMMA, NEWLINE = 0, 1, 2
STRINGS = {SPECIAL: "<|endoftext|>", COMMA: ",", NEWLINE: "\n"} | {
    i: f" w{i}" for i in range(3, 40)
}


def tokens_of(input_ids: np.ndarray, kept: np.ndarray | None = None, **changes) -> Tokens:
    """Contexts of those ids; everything is attended and kept unless said."""
    everything = np.ones(input_ids.shape, dtype=bool)
    return Tokens(
        **{
            "input_ids": input_ids.astype(np.int32),
            "attended": everything,
            "kept": everything if kept is None else kept,
            "document": np.arange(len(input_ids), dtype=np.int32),
            "special_ids": (SPECIAL,),
        }
        | changes
    )


def table_of(acts: np.ndarray, tokens: Tokens, top_k: int = 5, min_active_tokens: int = 3):
    return feature_table(
        sp.csc_array(acts),
        tokens,
        STRINGS,
        frozenset(tokens.special_ids),
        top_k=top_k,
        min_active_tokens=min_active_tokens,
    )


@given(
    seed=st.integers(0, 2**32 - 1),
    n_tokens=st.integers(1, 200),
    top_k=st.integers(1, 6),
    n_values=st.sampled_from([1, 2, 5, 1000]),
    density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_the_largest_activations_come_first_and_ties_go_to_the_earlier_token(
    seed, n_tokens, top_k, n_values, density, dtype
):
    rng = np.random.default_rng(seed)
    acts = rng.integers(1, n_values + 1, size=(n_tokens, 4)) * (rng.random((n_tokens, 4)) < density)
    acts = acts.astype(dtype)
    rows, values = top_rows(sp.csc_array(acts), top_k)
    for feature in range(4):
        active = [t for t in range(n_tokens) if acts[t, feature] > 0]
        expected = sorted(active, key=lambda t: (-acts[t, feature], t))[:top_k]
        assert rows[feature].tolist() == expected + [-1] * (top_k - len(expected))
        filled = acts[expected, feature].tolist() + [np.nan] * (top_k - len(expected))
        np.testing.assert_array_equal(values[feature], filled)


def test_dead_and_rare_features_say_so_and_are_counted():
    acts = np.zeros((10, 4))
    acts[:2, 1], acts[:3, 2], acts[:, 3] = 1, 2, np.arange(1, 11)
    table = table_of(acts, tokens_of(np.full((2, 5), 7)))
    assert table["feature"].tolist() == [0, 1, 2, 3]
    assert table["reason"].tolist() == ["dead", "rare", "", ""]
    assert table["n_active"].tolist() == [0, 2, 3, 10]
    assert table["firing_rate"].tolist() == [0, 0.2, 0.3, 1]
    np.testing.assert_array_equal(table["max_activation"], [np.nan, 1, 2, 10])
    assert table["top_tokens"].tolist() == [[], [" w7"] * 2, [" w7"] * 3, [" w7"] * 5]
    assert table["top_activations"].tolist() == [[], [1, 1], [2, 2, 2], [10, 9, 8, 7, 6]]
    assert table["top_rows"].tolist() == [[], [0, 1], [0, 1, 2], [9, 8, 7, 6, 5]]
    assert table["n_non_concept"].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("text", "non_concept"),
    [
        (",", True),
        (".", True),
        ("\n", True),
        (" ", True),
        ("", True),
        ("—", True),
        ("\t\n", True),
        (" \n", True),
        ("...", True),
        (' "', True),
        ("$", True),
        ("\u00a0", True),
        ("\u200b", True),
        ("\ufffd", True),
        ("a", False),
        ("don", False),
        ("'t", False),
        ("3", False),
        (" 3.", False),
        ("é", False),
        ("猫", False),
        ("\\n", False),
        ("<|endoftext|>", False),  # special by its id, not by its looks
    ],
)
def test_blank_and_punctuation_are_no_concept(text, non_concept):
    assert is_non_concept(text) == non_concept


def test_top_tokens_that_are_blank_punctuation_or_special_are_counted():
    ids = np.array([[SPECIAL, COMMA, NEWLINE, 5, 6, 7, COMMA, 8]])
    acts = np.array([[8.0, 7, 6, 5, 4, 3, 2, 1], [1, 2, 0, 8, 7, 6, 0, 5]]).T
    table = table_of(acts, tokens_of(ids))
    assert table["n_non_concept"].tolist() == [3, 1]
    assert table["top_tokens"][0] == ["<|endoftext|>", ",", "\n", " w5", " w6"]
    assert table["top_tokens"][1] == [" w5", " w6", " w7", " w8", ","]


def test_a_special_token_counts_by_its_id_whatever_its_text():
    ids = np.array([[3, 4, 5, 6, 7]])
    acts = np.ones((5, 1))
    assert table_of(acts, tokens_of(ids))["n_non_concept"].tolist() == [0]
    assert table_of(acts, tokens_of(ids, special_ids=(4, 6)))["n_non_concept"].tolist() == [2]


def test_rows_are_the_kept_positions_in_reading_order():
    ids = np.array([[SPECIAL, 3, 4, 5], [SPECIAL, 6, 7, 8]])
    kept = ids != SPECIAL
    acts = np.array([[0.0, 0, 1, 3, 2, 0]]).T  # ids 5, 6 and 7
    (feature,) = table_of(acts, tokens_of(ids, kept)).itertuples()
    assert feature.top_tokens == [" w6", " w7", " w5"]
    assert feature.top_rows == [3, 4, 2]
    assert feature.top_contexts == [
        "<|endoftext|>« w6» w7 w8",
        "<|endoftext|> w6« w7» w8",
        "<|endoftext|> w3 w4« w5»",
    ]


def test_a_context_is_cut_to_what_stands_near_the_token():
    ids = np.arange(3, 33)[None, :]
    at = 15
    shown = shown_context(tokens_of(ids), STRINGS, 0, at)
    before = "".join(STRINGS[i] for i in ids[0, at - CONTEXT_BEFORE : at])
    after = "".join(STRINGS[i] for i in ids[0, at + 1 : at + 1 + CONTEXT_AFTER])
    assert shown == f"{before}«{STRINGS[ids[0, at]]}»{after}"


def test_the_same_token_elsewhere_in_the_context_is_not_marked():
    shown = shown_context(tokens_of(np.array([[7, 7, 7]])), STRINGS, 0, 1)
    assert shown == " w7« w7» w7"


def test_padding_is_not_shown():
    ids = np.array([[3, 4, SPECIAL, SPECIAL]])
    attended = np.array([[True, True, False, False]])
    tokens = tokens_of(ids, attended, attended=attended)
    assert shown_context(tokens, STRINGS, 0, 1) == " w3« w4»"
