"""What is left of a correlation when the token is known, against dense residuals."""

import re

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from saelign import CrossMoments, correlate, match
from saelign.correlation import (
    FeatureMoments,
    TokenSums,
    correlation_of,
    within_token,
    within_token_correlation,
    within_token_of_pairs,
)
from saelign.correlation.within_token import within_token_squares
from saelign.errors import ActivationError, ShapeError


@st.composite
def tokens(draw, max_tokens: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Activations of both sides, some a function of the token, beside the tokens' ids."""
    n = draw(st.integers(2, max_tokens))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_types = draw(st.sampled_from([1, 3, 10, 1000]))
    ids = rng.integers(n_types, size=n) * 7 + 5
    kinds = {
        "free": lambda: rng.exponential(size=n) * (rng.random(n) < 0.5),
        "negative": lambda: rng.normal(size=n),
        "of_the_token": lambda: (rng.random(7 * n_types + 5) / 3)[ids],
        "constant": lambda: np.full(n, 0.1),
        "silent": lambda: np.zeros(n),
        "huge": lambda: 1e30 * rng.normal(size=n),
    }
    sides = []
    for _ in range(2):
        chosen = draw(st.lists(st.sampled_from(sorted(kinds)), min_size=1, max_size=5))
        sides.append(np.array([kinds[kind]() for kind in chosen]).T)
    return sides[0], sides[1], ids


def residuals(acts: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Each feature less its mean given the token."""
    frame = pd.DataFrame(acts)
    return (frame - frame.groupby(ids).transform("mean")).to_numpy()


def naive(a: np.ndarray, b: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The correlation of residuals; NaN where there are none but rounding's."""
    x, y = residuals(a, ids), residuals(b, ids)
    norms = []
    for side, left in ((a, x), (b, y)):
        norm = np.sqrt((left**2).sum(axis=0))
        norms.append(np.where(norm > 1e-9 * np.sqrt((side**2).sum(axis=0)), norm, np.nan))
    return (x / norms[0]).T @ (y / norms[1])


def sums_of(acts: np.ndarray, ids: np.ndarray) -> TokenSums:
    return TokenSums.of(sp.csr_array(acts), ids)


@given(data=tokens())
def test_it_is_the_correlation_of_what_the_mean_given_the_token_leaves(data):
    a, b, ids = data
    result = correlate(a, b, metric="within_token", token_ids=ids)
    np.testing.assert_allclose(result.similarity, naive(a, b, ids), rtol=0, atol=1e-7)
    np.testing.assert_array_equal(result.pearson, correlate(a, b).pearson)
    assert result.metric == "within_token"


def test_one_token_type_leaves_plain_pearson():
    a, b = np.random.default_rng(0).exponential(size=(2, 200, 4))
    result = correlate(a, b, metric="within_token", token_ids=np.full(200, 17))
    np.testing.assert_allclose(result.similarity, result.pearson, rtol=0, atol=1e-12)


def test_four_tokens_by_hand():
    # Given the token, x is -1, 1, -2, 2 and y is -1, 1, 0, 0 from their means.
    x, y = np.array([[1.0, 3, 0, 4]]).T, np.array([[0.0, 2, 9, 9]]).T
    result = correlate(x, y, metric="within_token", token_ids=[8, 8, 3, 3])
    np.testing.assert_allclose(result.similarity, [[2 / np.sqrt(10 * 2)]], rtol=1e-14)


@pytest.mark.parametrize("dense_share", [-1.0, 0.05, 2.0])
def test_sparse_and_dense_products_agree(monkeypatch, dense_share):
    rng = np.random.default_rng(0)
    a, b = (rng.exponential(size=(600, n)) * (rng.random((600, n)) < 0.2) for n in (9, 14))
    ids = np.minimum(rng.geometric(0.1, size=600), 40)
    expected = naive(a, b, ids)
    monkeypatch.setattr(within_token, "DENSE_SHARE", dense_share)
    monkeypatch.setattr(within_token, "BLOCK", 4)
    result = correlate(a, b, metric="within_token", token_ids=ids)
    np.testing.assert_allclose(result.similarity, expected, rtol=0, atol=1e-12)


@given(data=tokens(), cuts=st.lists(st.integers(0, 60), max_size=4).map(sorted))
def test_chunks_of_tokens_count_as_one_text_though_they_hold_different_tokens(data, cuts):
    a, b, ids = data
    cuts = [min(cut, len(a)) for cut in cuts]
    whole = correlate(a, b, metric="within_token", token_ids=ids)
    chunked = correlate(
        np.split(a, cuts), np.split(b, cuts), metric="within_token", token_ids=np.split(ids, cuts)
    )
    np.testing.assert_allclose(chunked.similarity, whole.similarity, rtol=0, atol=1e-7)


@given(data=tokens(), cut=st.integers(0, 60))
def test_token_sums_add_up(data, cut):
    a, _, ids = data
    total = sums_of(a[:cut], ids[:cut]) + sums_of(a[cut:], ids[cut:])
    expected = pd.DataFrame(a).groupby(ids).sum()
    np.testing.assert_array_equal(total.token_ids, expected.index)
    np.testing.assert_array_equal(total.counts, pd.Series(ids).value_counts().sort_index())
    scale = 1e-13 * np.abs(a).sum(axis=0)
    assert (np.abs(total.sums.toarray() - expected.to_numpy()) <= scale).all()
    explained = (expected.to_numpy() ** 2 / total.counts[:, None]).sum(axis=0)
    np.testing.assert_allclose(total.explained_squares, explained, rtol=1e-9)


@given(data=tokens(), seed=st.integers(0, 1000))
def test_pairs_alone_are_the_entries_of_the_whole(data, seed):
    a, b, ids = data
    rng = np.random.default_rng(seed)
    i, j = rng.integers(a.shape[1], size=9), rng.integers(b.shape[1], size=9)
    moments, sums_a, sums_b = CrossMoments.of(a, b), sums_of(a, ids), sums_of(b, ids)
    whole = within_token_correlation(moments.products, moments.a, moments.b, sums_a, sums_b)
    pairs = within_token_of_pairs(
        moments.products[i, j], moments.a, moments.b, sums_a, sums_b, i, j
    )
    np.testing.assert_allclose(pairs, whole[i, j], rtol=0, atol=1e-7)


def test_more_pairs_than_are_handled_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    a, ids = rng.random((90, 5)), rng.integers(4, size=90)
    moments, sums = CrossMoments.of(a, a), sums_of(a, ids)
    i, j = np.repeat(np.arange(5), 5), np.tile(np.arange(5), 5)
    monkeypatch.setattr(within_token, "BLOCK", 3)
    pairs = within_token_of_pairs(moments.products[i, j], moments.a, moments.b, sums, sums, i, j)
    np.testing.assert_allclose(pairs.reshape(5, 5), naive(a, a, ids), rtol=0, atol=1e-12)
    none = np.zeros(0, dtype=np.int64)
    of_none = within_token_of_pairs(np.zeros(0), moments.a, moments.b, sums, sums, none, none)
    assert of_none.shape == (0,)


@given(data=tokens())
def test_swapping_the_models_transposes_it_and_nothing_leaves_its_range(data):
    a, b, ids = data
    forth = correlate(a, b, metric="within_token", token_ids=ids).similarity
    back = correlate(b, a, metric="within_token", token_ids=ids).similarity
    np.testing.assert_allclose(forth, back.T, rtol=0, atol=1e-7)
    assert (np.abs(forth[~np.isnan(forth)]) <= 1).all()


@given(data=tokens(), seed=st.integers(0, 1000))
def test_what_the_token_tells_can_be_added_without_changing_it(data, seed):
    a, b, ids = data
    shift = np.random.default_rng(seed).normal(size=(ids.max() + 1, b.shape[1]))[ids]
    shift *= np.sqrt((b**2).mean(axis=0))
    expected = correlate(a, b, metric="within_token", token_ids=ids).similarity
    result = correlate(a, b + shift, metric="within_token", token_ids=ids).similarity
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-7)


@given(data=tokens())
def test_names_of_tokens_do_not_matter(data):
    a, b, ids = data
    expected = correlate(a, b, metric="within_token", token_ids=ids).similarity
    renamed = correlate(a, b, metric="within_token", token_ids=(-3 * ids).astype(np.int32))
    np.testing.assert_allclose(renamed.similarity, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_types", [1, 7, 900, 30_000])
@pytest.mark.parametrize("scale", [0.1, 1e-30, 1e30])
def test_a_function_of_the_token_has_nothing_left_whatever_its_values(dtype, n_types, scale):
    rng = np.random.default_rng(n_types)
    ids = rng.integers(n_types, size=40_000)
    values = (scale * rng.random((n_types, 6)) * (rng.random((n_types, 6)) < 0.7)).astype(dtype)
    values[0] = scale / 3
    result = correlate(
        np.array_split(values[ids], 7),
        np.array_split(rng.random((40_000, 2)), 7),
        metric="within_token",
        token_ids=np.array_split(ids, 7),
    )
    assert np.isnan(result.similarity).all()
    assert not result.pairable_a(1).any()


@pytest.mark.parametrize("in_one_go", [True, False])
def test_the_rounding_that_is_allowed_for_covers_the_rounding_that_there_is(in_one_go):
    rng = np.random.default_rng(0)
    ids = np.minimum(rng.geometric(0.01, size=60_000), 300)
    values = rng.lognormal(sigma=4, size=(301, 40))
    acts = sp.csr_array(values[ids])
    order = np.arange(60_000) if in_one_go else np.argsort(rng.random(60_000))
    pieces = np.array_split(order, 1 if in_one_go else 40)
    moments, sums = (
        FeatureMoments.of(acts[pieces[0]]),
        TokenSums.of(acts[pieces[0]], ids[pieces[0]]),
    )
    for piece in pieces[1:]:
        moments = moments + FeatureMoments.of(acts[piece])
        sums = sums + TokenSums.of(acts[piece], ids[piece])
    noise = np.abs(moments.squares - sums.explained_squares)
    assert noise.max() > 0  # there is rounding to be mistaken for variance
    assert (noise < moments.rounding).all()
    assert (within_token_squares(moments, sums) == 0).all()


def test_a_spread_that_rounding_cannot_make_is_seen():
    rng = np.random.default_rng(0)
    ids = rng.integers(50, size=20_000)
    shared = 1e-4 * rng.normal(size=20_000)
    a = (rng.random(50)[ids] + shared)[:, None]
    b = (rng.random(50)[ids] + shared)[:, None]
    result = correlate(a, b, metric="within_token", token_ids=ids)
    np.testing.assert_allclose(result.similarity, 1, rtol=0, atol=1e-5)
    assert abs(result.pearson[0, 0]) < 0.5


def test_tokens_that_occur_once_leave_nothing():
    acts = np.random.default_rng(0).random((30, 3))
    result = correlate(acts, acts, metric="within_token", token_ids=np.arange(30))
    assert np.isnan(result.similarity).all()
    assert not np.isnan(result.pearson).any()


def test_sharing_the_token_alone_gives_plain_correlation_and_none_within():
    rng = np.random.default_rng(0)
    ids = np.minimum(rng.geometric(0.05, size=50_000), 99)
    of_token = 3 * rng.exponential(size=100)[ids]
    a, b = (np.column_stack([of_token + rng.exponential(size=50_000)]) for _ in range(2))
    result = correlate(a, b, metric="within_token", token_ids=ids)
    assert result.pearson[0, 0] > 0.7
    assert abs(result.similarity[0, 0]) < 4 / np.sqrt(50_000)


def test_a_planted_context_is_found_among_features_of_the_token():
    rng = np.random.default_rng(0)
    n, n_features = 20_000, 12
    ids = rng.integers(200, size=n)
    context = rng.exponential(size=(n, n_features)) * (rng.random((n, n_features)) < 0.1)
    # Feature i of A shares its context with i of B, its tokens with i + 1.
    of_token = rng.exponential(size=(200, n_features))[ids]
    a = of_token + context
    b = np.roll(of_token, 1, axis=1) + context
    truth = list(range(n_features))
    assert match(correlate(a, b)).sort_values("feature_a")["feature_b"].tolist() != truth
    within = match(correlate(a, b, metric="within_token", token_ids=ids))
    assert within.sort_values("feature_a")["feature_b"].tolist() == truth
    np.testing.assert_allclose(within["similarity"], 1, rtol=0, atol=1e-9)
    plain = correlate(a, b).pearson[within["feature_a"], within["feature_b"]]
    np.testing.assert_allclose(within["correlation"], plain, rtol=0, atol=1e-12)


def test_what_is_missing_or_does_not_fit_is_named():
    a = np.random.default_rng(0).random((6, 2))
    ids = np.array([1, 1, 2, 2, 3, 3])
    cases = [
        (a, None, "metric 'within_token' must have one id a token, got none: pass them as token_"),
        (a, ids[:5], "token_ids must hold one id a token, got 5 ids for 6 tokens"),
        (a, ids / 2, "token_ids must be integers along one axis, one a token, got float64 of"),
        (
            a,
            ids[:, None],
            "must be integers along one axis, one a token, got int64 of shape (6, 1)",
        ),
        ([a, a], [ids], "token_ids must come in the same chunks as the activations, got 1 and 2"),
        ([a, a], [ids, ids[:4]], "one id a token, got 4 ids for 6 tokens"),
    ]
    for acts, token_ids, words in cases:
        with pytest.raises(ShapeError, match=re.escape(words)):
            correlate(acts, acts, metric="within_token", token_ids=token_ids)
    moments, sums = CrossMoments.of(a, a), sums_of(a, ids)
    words = "metric 'within_token' must have the sums per token type of both sides, got none"
    with pytest.raises(ShapeError, match=words):
        correlation_of(moments, metric="within_token")
    words = "same tokens and features as the moments, got 5 tokens and 2 features beside 6 and 2"
    with pytest.raises(ShapeError, match=words):
        correlation_of(moments, metric="within_token", within=(sums, sums_of(a[:5], ids[:5])))
    words = "token sums of both sides must be over the same tokens, got different token types or c"
    for other in (ids + 1, np.array([1, 2, 2, 2, 3, 3])):
        with pytest.raises(ShapeError, match=words):
            correlation_of(moments, metric="within_token", within=(sums, sums_of(a, other)))
    with pytest.raises(ShapeError, match="chunks must have the same features, got 2 and then 1"):
        sums + sums_of(a[:, :1], ids)


def test_other_metrics_do_not_look_at_token_ids():
    a = np.random.default_rng(0).random((6, 2))
    given_ids = correlate(a, a, token_ids=np.arange(2))
    np.testing.assert_array_equal(given_ids.similarity, correlate(a, a).similarity)


def test_a_model_whose_features_are_functions_of_the_token_cannot_be_matched_within_tokens():
    rng = np.random.default_rng(0)
    ids = rng.integers(5, size=400)
    of_token, free = rng.random((5, 3))[ids] + 0.1, rng.random((400, 3))
    assert len(match(correlate(of_token, free))) == 3
    correlation = correlate(of_token, free, metric="within_token", token_ids=ids)
    words = "active often enough and not a function of the token, got 0 of A and 0 of B"
    with pytest.raises(ActivationError, match=words):
        match(correlation)
