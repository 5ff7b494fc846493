"""Correlations on documents that pairs were not chosen on: closed forms, levels and intervals."""

import re

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

import saelign
from saelign import CrossMoments, correlate, held_out_correlation, match
from saelign.correlation import (
    HeldOutHalf,
    bootstrap_mean_correlation,
    bootstrap_subsets,
    held_out,
    pair_correlations,
    shifted_rows,
    split_documents,
)
from saelign.correlation.held_out import document_counts, resampled_means
from saelign.errors import ActivationError, DegenerateError, ShapeError, UnknownNameError

# As numpy gives them: few documents and many, in order and interleaved, of very different lengths.
document_arrays = st.lists(st.integers(-3, 12), min_size=2, max_size=60).map(np.array)
several = document_arrays.filter(lambda document: len(np.unique(document)) > 1)


def sparse_acts(shape: tuple[int, int], rate: float, rng: np.random.Generator) -> np.ndarray:
    return rng.exponential(size=shape) * (rng.random(shape) < rate)


def half_of(x: np.ndarray, y: np.ndarray, documents: np.ndarray, **changes) -> HeldOutHalf:
    """Feature i of A paired with feature i of B."""
    pairs = np.arange(min(x.shape[1], y.shape[1]))
    values = {"acts_a": sp.csr_array(x), "acts_b": sp.csr_array(y), "documents": documents}
    return HeldOutHalf(**(values | {"a": pairs, "b": pairs} | changes))


def naive_pearson(x: np.ndarray, y: np.ndarray) -> float:
    if (x == x[0]).all() or (y == y[0]).all():
        return np.nan
    return float(np.corrcoef(x, y)[0, 1])


def naive_resampled_means(half: HeldOutHalf, counts: np.ndarray) -> list[float]:
    """Repeat the tokens of each document as often as it was drawn, and correlate."""
    a, b = half.acts_a.toarray(), half.acts_b.toarray()
    pairs = list(zip(half.a, half.b, strict=True))
    defined = [not np.isnan(naive_pearson(a[:, i], b[:, j])) for i, j in pairs]
    documents = np.unique(half.documents)
    means = []
    for row in counts:
        drawn = np.repeat(documents, row)
        rows = np.concatenate([np.flatnonzero(half.documents == d) for d in drawn])
        r = [naive_pearson(a[rows, i], b[rows, j]) for i, j in pairs]
        r = [value for value, there in zip(r, defined, strict=True) if there]
        r = [value for value in r if not np.isnan(value)]
        means.append(np.mean(r) if r else np.nan)
    return means


@given(seed=st.integers(0, 2**32 - 1), rate=st.sampled_from([0.02, 0.3, 1.0]))
def test_pairs_have_the_correlations_of_the_whole(seed, rate):
    rng = np.random.default_rng(seed)
    a, b = sparse_acts((40, 5), rate, rng), sparse_acts((40, 4), rate, rng)
    a[:, 0] = 0.1
    i, j = rng.integers(5, size=12), rng.integers(4, size=12)
    pairs = pair_correlations(CrossMoments.of(a, b), i, j)
    np.testing.assert_allclose(pairs, correlate(a, b).pearson[i, j], rtol=0, atol=1e-12)
    assert np.isnan(pairs[i == 0]).all()


@given(document=several, seed=st.integers(0, 1000))
def test_a_split_keeps_documents_whole_and_halves_differ_by_at_most_one(document, seed):
    in_first = split_documents(document, rng=np.random.default_rng(seed))
    first, second = set(document[in_first]), set(document[~in_first])
    assert first
    assert second
    assert not first & second
    longest = np.unique(document, return_counts=True)[1].max()
    assert abs(int(in_first.sum()) - int((~in_first).sum())) <= longest


def test_documents_of_one_length_are_split_evenly_and_each_is_in_either_half():
    document = np.repeat(np.arange(10), 7)
    splits = np.array(
        [split_documents(document, rng=np.random.default_rng(seed)) for seed in range(400)]
    )
    assert (splits.sum(axis=1) == 35).all()
    share = splits.mean(axis=0)
    assert (np.abs(share - 0.5) < 4 * 0.5 / 20).all()
    together = (splits[:, 0] == splits[:, 7]).mean()
    assert together == pytest.approx(4 / 9, abs=0.1)  # of the nine others four are in one's half


@pytest.mark.parametrize("of", [split_documents, shifted_rows])
@pytest.mark.parametrize("document", [np.zeros(5, dtype=np.int32), np.zeros(0, dtype=np.int64)])
def test_one_document_can_be_neither_split_nor_shifted(of, document):
    words = f"there must be at least 2 documents to .*, got {len(np.unique(document))}: use more"
    with pytest.raises(DegenerateError, match=words):
        of(document, rng=np.random.default_rng(0))


@given(document=several, seed=st.integers(0, 1000))
def test_shifted_rows_roll_by_whole_documents_and_never_by_nothing(document, seed):
    rows = shifted_rows(document, rng=np.random.default_rng(seed))
    n = len(document)
    assert rows[0] != 0
    np.testing.assert_array_equal(rows, (np.arange(n) + rows[0]) % n)
    assert document[rows[0]] != document[rows[0] - 1]


@pytest.mark.parametrize("lengths", [[5] * 6, [1, 2, 3, 4, 5, 6, 7], [9, 1, 1, 1, 9, 1, 1, 1]])
def test_where_it_can_be_no_document_lies_beside_a_part_of_itself(lengths):
    document = np.repeat(np.arange(len(lengths)), lengths)
    shifts = set()
    for seed in range(200):
        rows = shifted_rows(document, rng=np.random.default_rng(seed))
        assert (document[rows] != document).all()
        shifts.add(int(rows[0]))
    starts = np.cumsum([0, *lengths[:-1]])
    clear = {
        s
        for s in starts
        if (document[(np.arange(len(document)) + s) % len(document)] != document).all()
    }
    assert shifts <= clear
    assert len(shifts) >= min(3, len(clear))


def test_documents_too_unequal_to_be_kept_apart_are_shifted_all_the_same():
    document = np.repeat([3, 1], [10, 2])
    for seed in range(20):  # no seed leaves all where it is
        rows = shifted_rows(document, rng=np.random.default_rng(seed))
        np.testing.assert_array_equal(rows, [10, 11, *range(10)])


@given(seed=st.integers(0, 2**32 - 1), rate=st.sampled_from([0.03, 0.3, 1.0]))
def test_the_bootstrap_is_the_naive_one_on_the_same_counts(seed, rate):
    rng = np.random.default_rng(seed)
    documents = rng.permutation(np.repeat([4, -1, 9, 2, 7], [3, 8, 5, 1, 13]))
    a, b = sparse_acts((30, 6), rate, rng), sparse_acts((30, 5), rate, rng)
    a[:, 1], b[:, 2] = 0.1, 0.0
    pairs = {"a": rng.integers(6, size=9), "b": rng.integers(5, size=9)}
    half = half_of(a.astype(np.float32), b, documents, **pairs)
    counts = document_counts(5, 8, rng=rng)
    some = rng.random(9) < 0.5
    subsets = np.stack([np.ones(9), some], axis=1)
    correlations, means = resampled_means(half, counts, subsets)
    expected = [
        naive_pearson(a.astype(np.float32)[:, i].astype(float), b[:, j])
        for i, j in zip(half.a, half.b, strict=True)
    ]
    np.testing.assert_allclose(correlations, expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(means[:, 0], naive_resampled_means(half, counts), rtol=0, atol=1e-6)
    alone = half_of(half.acts_a, half.acts_b, documents, a=half.a[some], b=half.b[some])
    of_some = naive_resampled_means(alone, counts) if some.any() else np.full(8, np.nan)
    np.testing.assert_allclose(means[:, 1], of_some, rtol=0, atol=1e-6)


def test_subsets_of_pairs_share_the_resamples_and_have_their_own_means():
    rng = np.random.default_rng(4)
    a, b = sparse_acts((400, 9), 0.3, rng), sparse_acts((400, 9), 0.3, rng)
    halves = [half_of(a, b, np.arange(400) // 20) for _ in range(2)]
    some = np.arange(9) < 4
    whole, few = bootstrap_subsets(
        halves, [[np.ones(9, dtype=bool), some]] * 2, rng=np.random.default_rng(0)
    )
    alone = bootstrap_mean_correlation(halves, rng=np.random.default_rng(0))
    assert (whole.mean, whole.low, whole.high) == (alone.mean, alone.low, alone.high)
    assert few.mean == pytest.approx(np.mean([r[some].mean() for r in whole.correlations]))
    assert few.low < few.mean < few.high


def test_blocks_of_pairs_and_resamples_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = sparse_acts((400, 30), 0.05, rng), sparse_acts((400, 30), 0.05, rng)
    half = half_of(a, b, np.repeat(np.arange(20), 20))
    whole = bootstrap_mean_correlation([half], n_resamples=50, rng=np.random.default_rng(1))
    monkeypatch.setattr(held_out, "BLOCK_BYTES", 3000)
    blocks = bootstrap_mean_correlation([half], n_resamples=50, rng=np.random.default_rng(1))
    np.testing.assert_allclose(blocks.correlations[0], whole.correlations[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        (blocks.mean, blocks.low, blocks.high), (whole.mean, whole.low, whole.high), rtol=1e-9
    )


def test_a_resample_draws_as_many_documents_as_there_are_each_as_often():
    counts = document_counts(12, 4000, rng=np.random.default_rng(0)).astype(int)
    assert (counts.sum(axis=1) == 12).all()
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.08)
    np.testing.assert_allclose(counts.var(axis=0), 11 / 12, atol=0.1)  # multinomial
    covariance = np.cov(counts.T)[~np.eye(12, dtype=bool)]
    np.testing.assert_allclose(covariance.mean(), -1 / 12, atol=0.01)


def test_columnwise_or_rowwise_activations_give_the_same():
    rng = np.random.default_rng(0)
    a, b = sparse_acts((60, 4), 0.4, rng), sparse_acts((60, 4), 0.4, rng)
    documents = np.repeat(np.arange(6), 10)
    by_row = half_of(a, b, documents)
    by_column = half_of(a, b, documents, acts_a=sp.csc_array(a), acts_b=sp.csc_array(b))
    results = [
        bootstrap_mean_correlation([half], n_resamples=20, rng=np.random.default_rng(3))
        for half in (by_row, by_column)
    ]
    assert results[0].mean == results[1].mean
    assert (results[0].low, results[0].high) == (results[1].low, results[1].high)


def test_perfect_pairs_have_an_interval_without_width():
    a = np.random.default_rng(0).random((200, 5))
    half = half_of(a, 3 * a + 1, np.repeat(np.arange(10), 20))
    result = bootstrap_mean_correlation([half, half], rng=np.random.default_rng(0))
    np.testing.assert_allclose((result.mean, result.low, result.high), 1, rtol=0, atol=1e-9)
    assert result.n_silent == 0


def test_silent_pairs_are_left_out_and_counted():
    a = np.random.default_rng(0).random((200, 4))
    a[:, 1], a[:, 2] = 0, 0.3
    half = half_of(a, np.random.default_rng(1).random((200, 4)), np.repeat(np.arange(10), 20))
    result = bootstrap_mean_correlation([half, half], rng=np.random.default_rng(0))
    assert result.n_silent == 4
    assert np.isnan(result.correlations[0]).tolist() == [False, True, True, False]
    assert result.mean == pytest.approx(np.nanmean(result.correlations[0]))
    assert result.low < result.mean < result.high


def test_without_a_pair_that_fires_there_is_no_mean_and_the_other_half_decides():
    silent = half_of(np.zeros((20, 2)), np.ones((20, 2)), np.repeat(np.arange(4), 5))
    acts = np.random.default_rng(0).random((20, 2))
    heard = half_of(acts, acts, np.repeat(np.arange(4), 5))
    none = half_of(acts, acts, np.repeat(np.arange(4), 5), a=np.zeros(0, int), b=np.zeros(0, int))
    for halves, n_silent in (([silent, silent], 4), ([none], 0)):
        result = bootstrap_mean_correlation(halves, rng=np.random.default_rng(0))
        assert np.isnan([result.mean, result.low, result.high]).all()
        assert result.n_silent == n_silent
    result = bootstrap_mean_correlation([silent, heard], rng=np.random.default_rng(0))
    np.testing.assert_allclose((result.mean, result.low, result.high), 1, rtol=0, atol=1e-9)


def test_a_single_document_gives_a_mean_and_no_interval():
    acts = np.random.default_rng(0).random((20, 2))
    half = half_of(acts, acts[:, ::-1], np.zeros(20, dtype=np.int32))
    result = bootstrap_mean_correlation([half], rng=np.random.default_rng(0))
    assert result.mean == pytest.approx(naive_pearson(acts[:, 0], acts[:, 1]))
    assert np.isnan([result.low, result.high]).all()


def test_the_average_of_two_halves_varies_as_that_of_independent_ones():
    rng = np.random.default_rng(0)
    halves = [
        half_of(*rng.normal(size=(2, 500, 3)), np.repeat(np.arange(50), 10)) for _ in range(2)
    ]
    widths = []
    for some in ([halves[0]], [halves[1]], halves):
        result = bootstrap_mean_correlation(some, n_resamples=4000, rng=rng)
        widths.append(result.high - result.low)
    expected = np.hypot(widths[0], widths[1]) / 2
    assert widths[2] == pytest.approx(expected, rel=0.1)
    both = bootstrap_mean_correlation(halves, rng=rng)
    assert both.mean == pytest.approx(np.mean([c.mean() for c in both.correlations]))


def test_a_higher_level_gives_a_wider_interval():
    half = half_of(*np.random.default_rng(0).normal(size=(2, 500, 3)), np.repeat(np.arange(50), 10))
    narrow, wide = (
        bootstrap_mean_correlation([half], level=level, rng=np.random.default_rng(0))
        for level in (0.5, 0.99)
    )
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def clustered(n_documents: int, length: int, rng: np.random.Generator) -> tuple:
    """Four pairs that correlate at .5; four fifths of the variance is shared by a document."""
    n_pairs = 4
    documents = np.repeat(np.arange(n_documents), length)

    def signal() -> np.ndarray:
        of_document = rng.normal(size=(n_documents, 1))[documents]
        return np.sqrt(0.8) * of_document + np.sqrt(0.2) * rng.normal(size=(len(documents), 1))

    shared = signal()
    sides = [
        np.sqrt(0.5) * shared + np.sqrt(0.5) * signal() * np.ones((1, n_pairs)) for _ in range(2)
    ]
    return sides[0], sides[1], documents


def test_the_interval_covers_the_truth_where_tokens_of_a_document_go_together():
    rng = np.random.default_rng(0)
    n_trials, covered = 200, {"documents": 0, "tokens": 0}
    for _ in range(n_trials):
        a, b, documents = clustered(60, 10, rng)
        for unit, numbers in (("documents", documents), ("tokens", np.arange(len(documents)))):
            result = bootstrap_mean_correlation([half_of(a, b, numbers)], n_resamples=200, rng=rng)
            covered[unit] += result.low <= 0.5 <= result.high
    # 95 % within four standard errors, and the small-sample bias of percentiles below it.
    assert 0.87 <= covered["documents"] / n_trials <= 1
    assert covered["tokens"] / n_trials < 0.7


def test_independent_models_match_well_above_zero_and_hold_out_at_zero():
    rng = np.random.default_rng(0)
    a, b = (sp.csr_array(sparse_acts((6000, 80), 0.02, rng)) for _ in range(2))
    documents = np.repeat(np.arange(60), 100)
    result = held_out_correlation(a, b, documents, rng=rng)
    assert result.pairs["correlation"].mean() > 0.03
    assert abs(result.mean) < 0.005
    assert result.low < 0 < result.high


def test_planted_pairs_hold_out_at_what_was_planted():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(8000, 30))
    a, b = (shared + rng.normal(size=shared.shape) for _ in range(2))
    documents = np.repeat(np.arange(80), 100)
    result = held_out_correlation(a, b[:, ::-1], documents, rng=rng)
    assert result.mean == pytest.approx(0.5, abs=0.01)
    assert result.low < 0.5 < result.high
    assert result.high - result.low < 0.02
    assert (result.pairs["feature_a"] + result.pairs["feature_b"] == 29).all()


@pytest.mark.parametrize("how", ["one_to_one", "many_to_one", "one_to_many"])
@pytest.mark.parametrize("metric", ["pearson", "cosine", "within_token"])
def test_pairs_are_those_of_each_half_and_their_correlation_is_the_other_halfs(how, metric):
    rng = np.random.default_rng(0)
    a, b = sparse_acts((600, 12), 0.2, rng), sparse_acts((600, 9), 0.2, rng)
    documents, ids = np.repeat(np.arange(30), 20), rng.integers(20, size=600)
    result = held_out_correlation(
        a, b, documents, how=how, metric=metric, token_ids=ids, rng=np.random.default_rng(5)
    )
    in_first = split_documents(documents, rng=np.random.default_rng(5))
    for half, rows in ((1, in_first), (2, ~in_first)):
        correlation = correlate(a[rows], b[rows], metric=metric, token_ids=ids[rows])
        expected = match(correlation, how=how, min_active_tokens=15)
        other = correlate(a[~rows], b[~rows]).pearson
        pairs = result.pairs[result.pairs["half"] == half].reset_index(drop=True)
        for column in ("feature_a", "feature_b", "correlation"):
            np.testing.assert_array_equal(pairs[column], expected[column])
        np.testing.assert_allclose(
            pairs["held_out"], other[pairs["feature_a"], pairs["feature_b"]], atol=1e-12
        )
    by_half = result.pairs.groupby("half")["held_out"].mean()
    assert result.mean == pytest.approx(by_half.mean())
    assert result.n_silent == 0


def test_a_half_asks_for_half_as_many_active_tokens_rounded_up():
    documents = np.repeat([0, 1], 50)
    acts = np.random.default_rng(0).random((100, 2))
    acts[:, 1] = 0
    acts[:16, 1], acts[50:65, 1] = 1 + np.arange(16), 1 + np.arange(15)
    n_pairs = {}
    for threshold in (30, 31, 32, 33):
        pairs = held_out_correlation(
            acts, acts, documents, min_active_tokens=threshold, rng=np.random.default_rng(0)
        ).pairs
        n_pairs[threshold] = sorted(np.bincount(pairs["half"])[1:])
    assert n_pairs == {30: [2, 2], 31: [1, 2], 32: [1, 2], 33: [1, 1]}


def test_a_feature_silent_in_the_other_half_is_counted():
    documents = np.repeat([0, 1], 50)
    acts = np.random.default_rng(0).random((100, 3))
    acts[50:, 2] = 0
    result = held_out_correlation(acts, acts, documents, rng=np.random.default_rng(0))
    assert result.n_silent == 1
    assert result.pairs["held_out"].isna().sum() == 1
    assert result.mean == pytest.approx(1)
    assert np.isnan([result.low, result.high]).all()  # a document a half


def test_the_generator_decides_and_containers_do_not_matter():
    rng = np.random.default_rng(0)
    a, b = sparse_acts((300, 6), 0.4, rng), sparse_acts((300, 6), 0.4, rng)
    documents = np.repeat(np.arange(15), 20)

    def result(make, seed=1):
        found = held_out_correlation(make(a), make(b), documents, rng=np.random.default_rng(seed))
        return found.mean, found.low, found.high

    assert result(np.asarray) == result(sp.csr_array) == result(torch.from_numpy)
    assert result(np.asarray) != result(np.asarray, seed=2)
    assert saelign.held_out_correlation is held_out_correlation
    assert "held_out_correlation" in saelign.__all__


def test_what_cannot_be_is_refused_in_words():
    acts, documents = np.random.default_rng(0).random((60, 3)), np.repeat(np.arange(6), 10)
    rng = np.random.default_rng(0)
    words = "both sides and the documents must hold the same tokens, got 60, 60 and 59"
    with pytest.raises(ShapeError, match=words):
        held_out_correlation(acts, acts, documents[:59], rng=rng)
    with pytest.raises(ShapeError, match=words):
        half_of(acts, acts, documents[:59])
    with pytest.raises(ShapeError, match="token_ids must hold one id a token, got 3 ids for 60"):
        held_out_correlation(acts, acts, documents, token_ids=np.arange(3), rng=rng)
    with pytest.raises(ShapeError, match="metric 'within_token' must have one id a token"):
        held_out_correlation(acts, acts, documents, metric="within_token", rng=rng)
    with pytest.raises(DegenerateError, match="at least 2 documents to split, got 1"):
        held_out_correlation(acts, acts, 0 * documents, rng=rng)
    with pytest.raises(ActivationError, match="active on at least 31 of 30 tokens"):
        held_out_correlation(acts, acts, documents, min_active_tokens=62, rng=rng)
    with pytest.raises(UnknownNameError, match=re.escape("unknown matching 'best'")):
        held_out_correlation(acts, acts, documents, how="best", rng=rng)
    half = half_of(acts, acts, documents)
    for halves, n, words in (([], 9, "got 0 halves and n_resamples=9"), ([half], 0, "n_resam.*=0")):
        with pytest.raises(DegenerateError, match=words):
            bootstrap_mean_correlation(halves, n_resamples=n, rng=rng)
