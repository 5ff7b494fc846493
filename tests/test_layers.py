"""A layer by halves of the documents: nothing is lost, doubled, or beside its own counterpart."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from saelign import correlate
from saelign.cells import LayerPair, correlation_between
from saelign.correlation import FeatureMoments, TokenSums
from saelign.features import feature_table
from saelign.layers import (
    MIN_UNITS,
    N_SHIFTS,
    Half,
    Layer,
    Reading,
    describe_layer,
    documents_fired_in,
    read_text_of_run,
    shifted,
    units_of,
)
from saelign.matching import Filters
from saelign.text import Tokens

BOS, N_IDS = 0, 12
STRINGS = {BOS: "<bos>", 1: ",", 2: "\n"} | {i: f" w{i}" for i in range(3, N_IDS)}
FILTERS = Filters(min_active_tokens=3, top_k=4)
N_FEATURES = 7


def text_of(lengths: list[int], document: list[int] | None = None, seed: int = 0) -> Tokens:
    """Contexts that keep so many tokens each, after a <bos> that is not kept."""
    rng = np.random.default_rng(seed)
    input_ids = rng.integers(1, N_IDS, size=(len(lengths), 1 + max(lengths))).astype(np.int32)
    input_ids[:, 0] = BOS
    attended = np.arange(input_ids.shape[1]) <= np.array(lengths)[:, None]
    kept = attended.copy()
    kept[:, 0] = False
    return Tokens(
        input_ids=input_ids,
        attended=attended,
        kept=kept,
        document=np.array(range(len(lengths)) if document is None else document, dtype=np.int32),
        special_ids=(BOS,),
    )


def read(tokens: Tokens, seed: int = 0) -> Reading:
    rng_halves, rng_shifts = np.random.default_rng(seed).spawn(2)
    return read_text_of_run(tokens, STRINGS, rng_halves=rng_halves, rng_shifts=rng_shifts)


def acts_of(n_tokens: int, seed: int = 0, n_features: int = N_FEATURES) -> sp.csr_array:
    """Features of very different rates, the first one dead."""
    rng = np.random.default_rng(seed)
    fires = rng.random((n_tokens, n_features)) < np.linspace(0, 0.6, n_features)
    return sp.csr_array((rng.exponential(size=fires.shape) * fires).astype(np.float32))


def described(acts: sp.csr_array, reading: Reading) -> Layer:
    return describe_layer(acts, np.eye(acts.shape[1], 3), reading, FILTERS, layer=5)


def by_feature(half: Half) -> np.ndarray:
    """Tokens x features from the columns of a half; tokens must rise within a feature."""
    dense = np.zeros(half.by_token.shape, dtype=np.float32)
    columns = half.columns
    for feature, (start, stop) in enumerate(zip(columns.starts, columns.stops, strict=True)):
        tokens = columns.tokens[start:stop] - half.first
        assert (np.diff(tokens) > 0).all()
        dense[tokens, feature] = columns.values[start:stop]
    return dense


@st.composite
def texts(draw) -> tuple[list[int], list[int]]:
    """Documents of one or several contexts, as many or as few and as unequal as can be."""
    of_document = draw(st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=4), min_size=1))
    of_document += [[draw(st.integers(1, 30))] for _ in range(draw(st.sampled_from([0, 25])))]
    of_document[draw(st.integers(0, len(of_document) - 1))][0] += draw(
        st.sampled_from([2 * MIN_UNITS, 500])
    )
    lengths = [length for contexts in of_document for length in contexts]
    return lengths, [i for i, contexts in enumerate(of_document) for _ in contexts]


# What counts as a document.


def test_documents_count_if_there_are_enough_of_them():
    tokens = text_of([3, 5] * MIN_UNITS, np.repeat(np.arange(MIN_UNITS) + 4, 2).tolist())
    unit, documents = units_of(tokens)
    assert unit == "document"
    np.testing.assert_array_equal(documents, np.repeat(np.arange(MIN_UNITS) + 4, 8))


def test_with_too_few_documents_their_contexts_count():
    tokens = text_of([3, 5] * (MIN_UNITS - 1), np.repeat(np.arange(MIN_UNITS - 1), 2).tolist())
    unit, documents = units_of(tokens)
    assert unit == "context"
    np.testing.assert_array_equal(documents, tokens.context_of)


def test_with_too_few_contexts_equal_stretches_of_the_text_count():
    tokens = text_of([40] * (MIN_UNITS - 1))
    unit, documents = units_of(tokens)
    assert unit == "stretch"
    assert (np.diff(documents) >= 0).all()
    n_rows = np.bincount(documents)
    assert len(n_rows) == MIN_UNITS
    assert n_rows.max() - n_rows.min() <= 1


def test_a_document_or_context_that_is_a_third_of_the_text_makes_way_for_smaller_units():
    short = [10] * 30
    assert units_of(text_of([*short, 149]))[0] == "document"
    assert units_of(text_of([*short, 150]))[0] == "stretch"
    long_document = text_of([*short, *[30] * 5], [*range(30), *[30] * 5])
    assert units_of(long_document)[0] == "context"


@given(text=texts(), seed=st.integers(0, 1000))
def test_every_text_can_be_split_and_rolled(text, seed):
    tokens = text_of(*text)
    reading = read(tokens, seed)
    assert len(reading.documents) == tokens.n_tokens
    assert reading.unit in ("document", "context", "stretch")
    assert len(np.unique(reading.documents)) >= MIN_UNITS
    for half in (0, 1):
        assert len(np.unique(reading.documents_in(half))) >= 2
    assert len(reading.shifts) == 1 + N_SHIFTS


# Halves.


@given(text=texts(), seed=st.integers(0, 1000))
def test_halves_partition_the_rows_and_no_document_is_in_both(text, seed):
    tokens = text_of(*text)
    reading = read(tokens, seed)
    both = np.concatenate(reading.rows)
    np.testing.assert_array_equal(np.sort(both), np.arange(tokens.n_tokens))
    assert not set(reading.documents_in(0)) & set(reading.documents_in(1))
    for half, rows in enumerate(reading.rows):
        np.testing.assert_array_equal(rows, np.sort(rows))
        np.testing.assert_array_equal(reading.token_ids_in(half), tokens.token_ids[rows])


def assert_same_sums(x: TokenSums, y: TokenSums) -> None:
    np.testing.assert_array_equal(x.token_ids, y.token_ids)
    np.testing.assert_array_equal(x.counts, y.counts)
    np.testing.assert_allclose(x.sums.toarray(), y.sums.toarray(), rtol=1e-12, atol=1e-12)


def assert_same_moments(x: FeatureMoments, y: FeatureMoments) -> None:
    assert x.n_tokens == y.n_tokens
    np.testing.assert_array_equal(x.n_active, y.n_active)
    np.testing.assert_allclose(x.total, y.total, rtol=1e-12)
    np.testing.assert_allclose(x.squares, y.squares, rtol=1e-12)


@given(text=texts(), seed=st.integers(0, 1000))
def test_the_sums_of_both_halves_are_those_of_the_whole(text, seed):
    tokens = text_of(*text)
    reading, acts = read(tokens, seed), acts_of(tokens.n_tokens, seed)
    layer = described(acts, reading)
    first, second = layer.halves
    assert_same_moments(first.moments + second.moments, FeatureMoments.of(acts))
    assert_same_sums(layer.token_sums, TokenSums.of(acts, tokens.token_ids))
    for half, rows in zip(layer.halves, reading.rows, strict=True):
        np.testing.assert_array_equal(half.by_token.toarray(), acts.toarray()[rows])
        np.testing.assert_array_equal(by_feature(half), acts.toarray()[rows])
        assert_same_moments(half.moments, FeatureMoments.of(acts[rows]))
        assert_same_sums(half.token_sums, TokenSums.of(acts[rows], tokens.token_ids[rows]))
    assert layer.n_values == acts.nnz
    assert layer.n_tokens == tokens.n_tokens
    np.testing.assert_allclose(layer.firing_rate, (acts.toarray() != 0).mean(axis=0))


def test_the_table_of_features_is_that_of_the_whole_however_it_is_halved():
    tokens = text_of([9, 4, 14] * 10, np.repeat(np.arange(15), 2).tolist())
    acts = acts_of(tokens.n_tokens)
    by_feature = acts.tocsc()
    by_feature.sort_indices()
    whole = feature_table(
        by_feature, tokens, STRINGS, frozenset({BOS}), top_k=4, min_active_tokens=3
    )
    tables = [described(acts, read(tokens, seed)).features for seed in range(3)]
    for table in tables:
        pd.testing.assert_frame_equal(table.drop(columns="n_documents"), whole)
        pd.testing.assert_frame_equal(table, tables[0])
    assert list(tables[0].columns[:3]) == ["feature", "n_active", "n_documents"]
    assert tables[0]["reason"][0] == "dead"


@given(
    document=st.lists(st.integers(0, 9), min_size=1, max_size=80).map(np.array),
    seed=st.integers(0, 1000),
)
def test_a_document_counts_once_however_often_a_feature_fires_in_it(document, seed):
    acts = acts_of(len(document), seed)
    expected = [len(set(document[column != 0])) for column in acts.toarray().T]
    np.testing.assert_array_equal(documents_fired_in(acts.tocsc(), document), expected)


def test_the_table_counts_documents_contexts_or_stretches():
    lengths = [8, 5] * 25
    for document in (np.arange(50), np.repeat(np.arange(25), 2), np.repeat(np.arange(5), 10)):
        reading = read(text_of(lengths, document.tolist()))
        acts = acts_of(reading.tokens.n_tokens)
        expected = documents_fired_in(acts.tocsc(), reading.documents)
        assert described(acts, reading).features["n_documents"].tolist() == expected.tolist()
        assert expected.max() <= len(np.unique(reading.documents))


def test_top_tokens_of_a_half_are_those_of_its_own_rows():
    reading = read(text_of([12] * 30))
    acts = acts_of(reading.tokens.n_tokens)
    layer = described(acts, reading)
    for i, half in enumerate(layer.halves):
        dense, ids = half.by_token.toarray(), reading.token_ids_in(i)
        for feature in range(N_FEATURES):
            column = dense[:, feature]
            order = sorted(np.flatnonzero(column), key=lambda row: (-column[row], row))[:4]
            top = [int(ids[row]) for row in order]
            assert half.top_tokens[feature] == [STRINGS[token] for token in top]
            assert half.n_non_concept[feature] == sum(token in (1, 2) for token in top)


# Rolls.


@given(text=texts(), seed=st.integers(0, 1000), shift=st.integers(0, N_SHIFTS))
def test_a_roll_keeps_documents_whole_and_no_row_beside_its_counterpart(text, seed, shift):
    reading = read(text_of(*text), seed)
    for half, order in enumerate(reading.shifts[shift]):
        documents = reading.documents_in(half)
        n_rows = len(documents)
        np.testing.assert_array_equal(np.sort(order), np.arange(n_rows))
        assert (order != np.arange(n_rows)).all()
        # Within a document the next row stays the next: only where one ends may there be a cut.
        follows = np.diff(order) == 1
        ends = np.diff(documents[order]) != 0
        assert (follows | ends).all()
        # And a document is in one piece, since the roll begins with one.
        assert ends.sum() <= len(np.unique(documents))


def test_documents_of_one_length_never_lie_beside_themselves():
    for seed in range(20):
        reading = read(text_of([10] * 24), seed)
        for orders in reading.shifts:
            for half, order in enumerate(orders):
                documents = reading.documents_in(half)
                assert (documents[order] != documents).all()


def test_rolls_are_drawn_anew_each_time():
    drawn = {tuple(int(order[0]) for order in shift) for shift in read(text_of([5] * 200)).shifts}
    assert len(drawn) == 1 + N_SHIFTS


@pytest.mark.parametrize("shift", range(1 + N_SHIFTS))
def test_a_rolled_layer_stands_beside_other_tokens_and_is_otherwise_the_same(shift):
    reading = read(text_of([11, 7] * 20))
    layer = described(acts_of(reading.tokens.n_tokens), reading)
    rolled = shifted(layer, reading, shift)
    for i, (half, before) in enumerate(zip(rolled.halves, layer.halves, strict=True)):
        order, ids = reading.shifts[shift][i], reading.token_ids_in(i)
        expected = before.by_token.toarray()[order]
        np.testing.assert_array_equal(half.by_token.toarray(), expected)
        np.testing.assert_array_equal(by_feature(half), expected)
        assert_same_sums(half.token_sums, TokenSums.of(before.by_token[order], ids))
        assert not np.array_equal(
            half.token_sums.sums.toarray(), before.token_sums.sums.toarray()
        )  # the tokens are those that the other side reads, not its own
        assert half.moments is before.moments
        assert half.top_tokens is before.top_tokens
    assert_same_sums(rolled.token_sums, rolled.halves[0].token_sums + rolled.halves[1].token_sums)
    assert rolled.features is layer.features
    assert rolled.decoder is layer.decoder
    assert rolled.layer == layer.layer


@pytest.mark.parametrize("metric", ["pearson", "within_token"])
def test_correlations_with_a_rolled_layer_are_those_with_its_rows_rolled(metric):
    reading = read(text_of([11, 7] * 20))
    n_tokens = reading.tokens.n_tokens
    acts_a, acts_b = acts_of(n_tokens, seed=1), acts_of(n_tokens, seed=2, n_features=5)
    a, b = described(acts_a, reading), shifted(described(acts_b, reading), reading, 1)
    found = correlation_between(a, b, metric=metric)
    both = np.concatenate(reading.rows)
    order = [rows[s] for rows, s in zip(reading.rows, reading.shifts[1], strict=True)]
    rolled = acts_b[np.concatenate(order)]
    expected = correlate(
        acts_a[both], rolled, metric=metric, token_ids=reading.tokens.token_ids[both]
    )
    i, j = (x.ravel() for x in np.indices(expected.similarity.shape))
    np.testing.assert_allclose(
        found.similarity_of_pairs(i, j), expected.similarity[i, j], rtol=0, atol=1e-6
    )


def test_a_roll_without_copying_is_the_roll_of_the_layer():
    reading = read(text_of([11, 7] * 20))
    n_tokens = reading.tokens.n_tokens
    a = described(acts_of(n_tokens, seed=1), reading)
    b = described(acts_of(n_tokens, seed=2, n_features=5), reading)
    pair = LayerPair(a=a, b=b, reading=reading)
    for half, found in enumerate(pair.rolled(1)):
        expected = correlation_between(a, shifted(b, reading, 1), half=half)
        i, j = (x.ravel() for x in np.indices((len(a.features), len(b.features))))
        np.testing.assert_array_equal(found.pearson_of_pairs(i, j), expected.pearson_of_pairs(i, j))
        best, wanted = (c.listed(1, n_best_a=3).best for c in (found, expected))
        np.testing.assert_array_equal(best.partners_a, wanted.partners_a)
        np.testing.assert_array_equal(best.similarity_b, wanted.similarity_b)
