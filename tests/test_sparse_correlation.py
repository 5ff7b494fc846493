"""Correlations without their matrix against the matrix: partners, values and matchings alike."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from saelign import correlate, match
from saelign.correlation import METRICS, FeatureMoments, SparseCorrelation, TokenSums, as_csr
from saelign.errors import ShapeError, UnknownNameError
from saelign.matching import MATCHINGS

KINDS = ("sparse", "dense", "signed", "few_values", "huge_mean", "empty")


@st.composite
def texts(draw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Activations of two sides and token ids: any sparsity, with what is awkward about it.

    Some features are dead, constant, or copies of others; some tokens are silent.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.sampled_from([1, 2, 3, 17, 40]))
    kind = draw(st.sampled_from(KINDS))
    sides = []
    for _ in range(2):
        width = draw(st.integers(1, 9))
        acts = rng.exponential(size=(n, width))
        if kind == "signed":
            acts = rng.normal(size=(n, width))
        if kind == "few_values":
            acts = rng.integers(0, 3, size=(n, width)).astype(float)
        if kind == "huge_mean":
            acts = 1e4 + rng.normal(size=(n, width))
        share = {"dense": 1.0, "huge_mean": 1.0, "empty": 0.0}.get(kind, 0.3)
        acts *= rng.random((n, width)) < share
        for what in draw(st.sets(st.sampled_from(["dead", "constant", "copy", "silent"]))):
            j, other = rng.integers(width, size=2)
            if what == "dead":
                acts[:, j] = 0
            elif what == "constant":
                acts[:, j] = 2.0
            elif what == "copy":
                acts[:, j] = acts[:, other]
            else:
                acts[rng.integers(n)] = 0
        sides.append(acts)
    return sides[0], sides[1], rng.integers(0, 4, size=n)


def both_ways(a, b, ids, metric: str = "pearson"):
    """The matrix, and what does without it."""
    options = {"metric": metric, "token_ids": ids if metric == "within_token" else None}
    return correlate(a, b, **options), correlate(a, b, dense=False, **options)


@pytest.fixture(params=[0.0, 1.0, 1e9], ids=["whole rows", "as it comes", "touched alone"])
def share_touched(request, monkeypatch):
    monkeypatch.setattr("saelign.correlation.sparse.SHARE_TOUCHED", request.param)


@pytest.mark.parametrize("metric", METRICS)
@given(text=texts())
def test_values_of_pairs_are_those_of_the_matrix(metric, text):
    dense, sparse = both_ways(*text, metric)
    a, b = (i.ravel() for i in np.indices(dense.pearson.shape))
    np.testing.assert_allclose(sparse.pearson_of_pairs(a, b), dense.pearson[a, b], atol=1e-7)
    np.testing.assert_allclose(sparse.similarity_of_pairs(a, b), dense.similarity[a, b], atol=1e-6)
    # A matrix knows a feature's spread only where the other side has any.
    some_a, some_b = sparse.pairable_a(0).any(), sparse.pairable_b(0).any()
    for least in (1, 3):
        np.testing.assert_array_equal(sparse.pairable_a(least) & some_b, dense.pairable_a(least))
        np.testing.assert_array_equal(sparse.pairable_b(least) & some_a, dense.pairable_b(least))


@pytest.mark.usefixtures("share_touched")
@pytest.mark.parametrize("metric", METRICS)
@given(text=texts(), n_best=st.integers(1, 4), data=st.data())
def test_the_strongest_are_those_of_the_sorted_matrix(metric, text, n_best, data):
    dense, sparse = both_ways(*text, metric)
    features_a = np.flatnonzero(dense.pairable_a(1))
    features_b = np.flatnonzero(dense.pairable_b(1))
    some = st.lists(st.booleans(), min_size=len(features_b), max_size=len(features_b))
    features_b = features_b[np.array(data.draw(some), dtype=bool)]
    offsets = None
    if data.draw(st.booleans()):
        offsets = np.array(
            data.draw(
                st.lists(st.floats(-1, 1), min_size=len(features_b), max_size=len(features_b))
            )
        )
    for which in (dense, sparse):  # the matrix' own lists go through another loop
        found = which.strongest(
            features_a, features_b, n_best_a=n_best, n_best_b=n_best, offsets=offsets
        )
        table = dense.similarity[np.ix_(features_a, features_b)]
        shifted = table - (0 if offsets is None else offsets)
        for rows, names, partners, values in (
            (shifted, features_b, found.partners_a, found.similarity_a),
            (shifted.T, features_a, found.partners_b, found.similarity_b),
        ):
            plain = table if rows is shifted else table.T
            for i, row in enumerate(rows):
                listed = partners[i][partners[i] >= 0]
                at = np.searchsorted(names, listed)
                assert len(set(listed.tolist())) == len(listed) == min(n_best, len(names))
                # Rounding may exchange equals; the values listed are the largest all the same.
                np.testing.assert_allclose(row[at], np.sort(row)[::-1][: len(at)], atol=1e-6)
                np.testing.assert_allclose(values[i, : len(at)], plain[i][at], atol=1e-6)
                assert np.isneginf(values[i, len(at) :]).all()


@pytest.mark.usefixtures("share_touched")
@pytest.mark.parametrize("how", MATCHINGS)
@given(text=texts())
def test_matchings_of_exact_sums_are_the_same_with_and_without_the_matrix(how, text):
    # Small whole numbers make every sum exact, so that equals tie in both.
    a, b = (np.round(side * 4) % 8 for side in text[:2])
    dense, sparse = correlate(a, b), correlate(a, b, dense=False)
    if not (dense.pairable_a(1).any() and dense.pairable_b(1).any()):
        return
    tables = [match(c, how=how, min_active_tokens=1) for c in (dense, sparse)]
    if how == "optimal":  # of several best ones any may come
        assert tables[0]["similarity"].sum() == pytest.approx(tables[1]["similarity"].sum())
    else:
        pd.testing.assert_frame_equal(*tables, check_exact=True)


@pytest.mark.parametrize("width", [2**16, 2**16 + 1])
def test_features_are_told_apart_on_both_sides_of_16_bits(width):
    rng = np.random.default_rng(0)
    n = 200
    acts = sp.random_array((n, 5), density=0.3, rng=rng, format="csr")
    far = np.array([0, 1, 40_000, 65_535, width - 1])
    coo = acts.tocoo()
    wide = sp.csr_array((coo.data, (coo.coords[0], far[coo.coords[1]])), shape=(n, width))
    pairs = match(correlate(acts, wide, dense=False), min_active_tokens=1)
    assert len(pairs) == len(set(far.tolist()))
    own = pairs[pairs["correlation"] > 0.999]
    assert (far[own["feature_a"]] == own["feature_b"]).all()


@given(text=texts(), cut=st.integers(0, 40))
def test_chunks_count_as_one_text(text, cut):
    a, b, _ = text
    cut = min(cut, len(a))
    whole = correlate(a, b, dense=False)
    parts = correlate([a[:cut], a[cut:]], [b[:cut], b[cut:]], dense=False)
    i, j = (x.ravel() for x in np.indices((a.shape[1], b.shape[1])))
    np.testing.assert_allclose(parts.pearson_of_pairs(i, j), whole.pearson_of_pairs(i, j))


def test_what_dense_refuses_sparse_refuses_too():
    with pytest.raises(ShapeError, match="both sides must hold the same tokens, got 3 and 4"):
        correlate(np.eye(3), np.eye(4), dense=False)
    with pytest.raises(ShapeError, match="chunks must have the same features, got"):
        correlate([np.eye(3), np.eye(3, 2)], [np.eye(3), np.eye(3)], dense=False)
    with pytest.raises(ShapeError, match="there must be at least one token to correlate over"):
        correlate(np.zeros((0, 3)), np.zeros((0, 3)), dense=False)
    with pytest.raises(ShapeError, match="metric 'within_token' must have one id a token"):
        correlate(np.eye(3), np.eye(3), metric="within_token", dense=False)
    csr = as_csr(np.eye(3))
    with pytest.raises(ShapeError, match="sums per token type of both sides"):
        SparseCorrelation.of(csr, csr, metric="within_token")
    with pytest.raises(UnknownNameError, match="unknown metric 'pearsn'"):
        SparseCorrelation.of(csr, csr, metric="pearsn")
    with pytest.raises(ShapeError, match="and one at least, got 3 and 2"):
        SparseCorrelation.of(csr, csr[:2])


def test_frequent_and_rare_tokens_are_taken_away_alike():
    rng = np.random.default_rng(1)
    n = 3000
    ids = np.where(rng.random(n) < 0.5, 0, rng.integers(1, 400, size=n))
    a, b = (as_csr(rng.exponential(size=(n, 30)) * (rng.random((n, 30)) < 0.1)) for _ in range(2))
    dense, sparse = both_ways(a, b, ids, "within_token")
    assert TokenSums.of(a, ids).counts.max() > 1000
    for table in (match(dense), match(sparse)):
        i, j = table["feature_a"], table["feature_b"]
        np.testing.assert_allclose(table["similarity"], dense.similarity[i, j], atol=1e-12)


# Some features alone.


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=30)
@given(text=texts(), data=st.data())
def test_the_correlations_of_some_features_are_those_of_the_whole(metric, text, data):
    _, whole = both_ways(*text, metric)
    a, b = (
        np.array(data.draw(st.lists(st.integers(0, n - 1), unique=True)), dtype=np.int64)
        for n in (len(whole.n_active_a), len(whole.n_active_b))
    )
    some = whole.among(a, b)
    i, j = (x.ravel() for x in np.indices((len(a), len(b))))
    for of_some, of_all in (
        (some.similarity_of_pairs(i, j), whole.similarity_of_pairs(a[i], b[j])),
        (some.pearson_of_pairs(i, j), whole.pearson_of_pairs(a[i], b[j])),
        (some.n_active_a, whole.n_active_a[a]),
        (some.n_active_b, whole.n_active_b[b]),
        (some.pairable_a(2), whole.pairable_a(2)[a]),
        (some.pairable_b(2), whole.pairable_b(2)[b]),
    ):
        np.testing.assert_array_equal(of_some, of_all)
    assert some.n_tokens == whole.n_tokens
    blocks = [block for _, block in some.blocks(np.arange(len(a)), np.arange(len(b)))]
    if len(a):
        expected = [block for _, block in whole.blocks(a, b)]
        np.testing.assert_array_equal(np.concatenate(blocks), np.concatenate(expected))


@pytest.mark.usefixtures("share_touched")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("how", MATCHINGS)
def test_matching_among_some_features_is_matching_of_their_columns(metric, how):
    rng = np.random.default_rng(3)
    n = 300
    ids = rng.integers(0, 20, size=n)
    a, b = (rng.exponential(size=(n, d)) * (rng.random((n, d)) < 0.2) for d in (40, 30))
    whole = correlate(a, b, metric=metric, dense=False, token_ids=ids_for(metric, ids))
    match(whole, how=how)  # whose lists must not be taken for those of the part
    some_a, some_b = np.arange(5, 40, 3), np.arange(2, 30, 4)
    parts = a[:, some_a], b[:, some_b]
    alone = correlate(*parts, metric=metric, dense=False, token_ids=ids_for(metric, ids))
    found = match(whole.among(some_a, some_b), how=how)
    pd.testing.assert_frame_equal(found, match(alone, how=how), rtol=1e-12, atol=1e-12)


def ids_for(metric: str, ids: np.ndarray) -> np.ndarray | None:
    return ids if metric == "within_token" else None


def test_rolled_tokens_stay_rolled_among_some_features():
    rng = np.random.default_rng(4)
    a, b = (rng.exponential(size=(50, 6)) * (rng.random((50, 6)) < 0.5) for _ in range(2))
    order = np.roll(np.arange(50), 7)
    whole = correlate(a, b, dense=False)
    whole = replace(whole, order_b=order, rows_b=whole.rows_b.tokens(order))
    some = whole.among(np.array([1, 4]), np.array([0, 5, 2]))
    i, j = (x.ravel() for x in np.indices((2, 3)))
    expected = np.corrcoef(a[:, [1, 4]].T, b[order][:, [0, 5, 2]].T)[:2, 2:]
    np.testing.assert_allclose(some.pearson_of_pairs(i, j), expected.ravel(), atol=1e-12)
    (block,) = (block for _, block in some.blocks(np.arange(2), np.arange(3)))
    np.testing.assert_allclose(block, expected, atol=1e-12)


@settings(max_examples=50)
@given(text=texts(), data=st.data())
def test_sums_of_some_features_are_those_of_their_columns(text, data):
    acts, _, ids = text
    columns = st.lists(st.integers(0, acts.shape[1] - 1), unique=True)
    some = np.array(data.draw(columns), dtype=np.int64)
    csr = as_csr(acts)
    found, alone = TokenSums.of(csr, ids).of_some(some), TokenSums.of(csr[:, some], ids)
    np.testing.assert_array_equal(found.token_ids, alone.token_ids)
    np.testing.assert_array_equal(found.counts, alone.counts)
    np.testing.assert_allclose(found.sums.toarray(), alone.sums.toarray(), rtol=1e-12)
    np.testing.assert_allclose(found.explained_squares, alone.explained_squares, rtol=1e-12)
    moments, of_columns = FeatureMoments.of(csr).of_some(some), FeatureMoments.of(csr[:, some])
    assert moments.n_tokens == of_columns.n_tokens
    np.testing.assert_array_equal(moments.n_active, of_columns.n_active)
    np.testing.assert_allclose(moments.total, of_columns.total, rtol=1e-12)
    np.testing.assert_allclose(moments.squares, of_columns.squares, rtol=1e-12)
