"""Sparse moments against dense definitions."""

import re
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from saelign import CrossMoments, correlate
from saelign.correlation import METRICS, as_csr
from saelign.correlation.moments import correlation_of
from saelign.errors import ActivationError, ShapeError, UnknownNameError

COLUMNS = {
    "sparse": lambda n, rng: rng.exponential(size=n) * (rng.random(n) < 0.3),
    "dense": lambda n, rng: rng.normal(size=n),
    "negative": lambda n, rng: -rng.exponential(size=n) * (rng.random(n) < 0.5),
    "counts": lambda n, rng: rng.integers(-2, 3, size=n).astype(float),
    "empty": lambda n, _: np.zeros(n),
    "constant": lambda n, rng: np.full(n, rng.choice([0.1, -1 / 3, 7.0])),
    "huge_constant": lambda n, _: np.full(n, 1e30),
    "huge": lambda n, rng: 1e30 * rng.normal(size=n),
    "tiny": lambda n, rng: 1e-30 * rng.normal(size=n),
    "large_mean": lambda n, rng: 1e4 + rng.integers(0, 4, size=n),
    "once": lambda n, rng: np.eye(1, n, rng.integers(n))[0],
}
SAFE_IN_HALF = ("sparse", "dense", "negative", "counts", "empty", "constant", "once")
DTYPES = {"float64": tuple(COLUMNS), "float32": tuple(COLUMNS), "float16": SAFE_IN_HALF}


@st.composite
def activations(draw, dtype: str = "float64", max_tokens: int = 40) -> tuple:
    """The same tokens through two sides, with duplicated columns and empty rows among them."""
    n = draw(st.integers(1, max_tokens))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sides = []
    for _ in range(2):
        kinds = draw(st.lists(st.sampled_from(DTYPES[dtype]), min_size=1, max_size=6))
        columns = [COLUMNS[kind](n, rng) for kind in kinds]
        if draw(st.booleans()):
            columns.append(columns[0])
        sides.append(np.array(columns).T)
    if draw(st.booleans()):  # both sides silent on a token
        for side in sides:
            side[rng.integers(n)] = 0
    if draw(st.booleans()):  # a feature that both sides share
        sides[1][:, 0] = sides[0][:, 0]
    return tuple(side.astype(dtype) for side in sides)


def ids_of(acts: np.ndarray) -> np.ndarray:
    """Token ids of three types; only within_token looks at them."""
    return np.arange(len(acts)) * 7 % 3


def is_constant(columns: np.ndarray) -> np.ndarray:
    return (columns == columns[0]).all(axis=0)


def unit(columns: np.ndarray) -> np.ndarray:
    """Columns over their norm, through a scale that neither overflows nor vanishes."""
    largest = np.abs(columns).max(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        columns = columns / largest
        return columns / np.sqrt((columns**2).sum(axis=0))


def dense_similarity(a: np.ndarray, b: np.ndarray, metric: str) -> np.ndarray:
    """The definition on dense float64 columns; NaN where one is constant."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    if metric == "within_token":
        types = [np.flatnonzero(ids_of(a) == token) for token in np.unique(ids_of(a))]
        undefined_a, undefined_b = (
            np.all([is_constant(side[rows]) for rows in types], axis=0) for side in (a, b)
        )
        undefined = undefined_a[:, None] | undefined_b[None, :]
        a, b = a.copy(), b.copy()
        for rows in types:
            a[rows], b[rows] = a[rows] - a[rows].mean(axis=0), b[rows] - b[rows].mean(axis=0)
        return np.where(undefined, np.nan, unit(a).T @ unit(b))
    undefined = is_constant(a)[:, None] | is_constant(b)[None, :]
    if metric == "cosine":
        result = unit(a).T @ unit(b)
    else:
        with np.errstate(invalid="ignore"):
            a, b = unit(a - a.mean(axis=0)), unit(b - b.mean(axis=0))
        n = len(a)
        result = a.T @ b if metric == "pearson" else -cdist(a.T * np.sqrt(n), b.T * np.sqrt(n))
    return np.where(undefined, np.nan, result)


@given(acts=activations(), metric=st.sampled_from(METRICS))
def test_every_metric_is_its_dense_definition(acts, metric):
    result = correlate(*acts, metric=metric, token_ids=ids_of(acts[0]))
    # Near r = 1 a distance is the root of a rounded difference.
    tolerance = 1e-5 if metric == "euclidean" else 1e-6
    np.testing.assert_allclose(
        result.similarity, dense_similarity(*acts, metric), rtol=0, atol=tolerance
    )
    np.testing.assert_allclose(
        result.pearson, dense_similarity(*acts, "pearson"), rtol=0, atol=1e-6
    )
    np.testing.assert_array_equal(result.n_active_a, np.count_nonzero(acts[0], axis=0))
    np.testing.assert_array_equal(result.n_active_b, np.count_nonzero(acts[1], axis=0))
    assert result.n_tokens == len(acts[0])


def test_pearson_is_numpys_to_twelve_digits_on_ordinary_activations():
    rng = np.random.default_rng(0)
    a = rng.exponential(size=(5000, 8)) * (rng.random((5000, 8)) < 0.05)
    b = np.maximum(a[:, ::-1] + 0.1 * rng.normal(size=a.shape), 0)
    expected = np.corrcoef(a.T, b.T)[:8, 8:]
    np.testing.assert_allclose(correlate(a, b).pearson, expected, rtol=0, atol=1e-12)


@given(data=st.data(), dtype=st.sampled_from(["float16", "float32"]))
def test_activations_of_lower_precision_are_correlated_in_float64(data, dtype):
    a, b = data.draw(activations(dtype))
    exact = correlate(a.astype(np.float64), b.astype(np.float64))
    np.testing.assert_allclose(correlate(a, b).pearson, exact.pearson, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_tokens", [2, 1000, 100_000])
@pytest.mark.parametrize("value", [0.1, 1 / 3, -7.3e-5, 1e30])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_constant_feature_has_no_correlation_whatever_its_value(n_tokens, value, dtype):
    noise = np.random.default_rng(0).normal(size=(n_tokens, 2))
    constant = np.full((n_tokens, 1), value, dtype=dtype)
    assert np.isnan(correlate(constant, noise).pearson).all()
    assert np.isnan(correlate(noise, constant, metric="cosine").similarity).all()


@pytest.mark.parametrize("scale", [1e-100, 1e100])
@pytest.mark.parametrize("metric", METRICS)
def test_the_unit_of_activation_does_not_matter(metric, scale):
    a, b = np.random.default_rng(0).normal(size=(2, 30, 3))
    ids = ids_of(a)
    expected = correlate(a, b, metric=metric, token_ids=ids).similarity
    result = correlate(scale * a, scale * b, metric=metric, token_ids=ids).similarity
    np.testing.assert_allclose(result, expected, rtol=1e-12)


def test_a_large_mean_leaves_six_digits_of_a_correlation():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(1000, 4))
    b = a + rng.normal(size=a.shape)
    expected = np.corrcoef(a.T, b.T)[:4, 4:]
    np.testing.assert_allclose(correlate(a + 1e4, b - 1e4).pearson, expected, rtol=0, atol=1e-6)


def test_one_token_correlates_with_nothing():
    result = correlate(np.ones((1, 2)), np.array([[0.0, 3.0, -1.0]]))
    assert np.isnan(result.pearson).all()
    assert result.pearson.shape == (2, 3)


@given(acts=activations())
def test_a_feature_correlates_with_itself_at_1_and_with_its_negative_at_minus_1(acts):
    a = acts[0]
    varies = ~is_constant(a)
    itself = np.diag(correlate(a, a).pearson)
    opposite = np.diag(correlate(a, -a).pearson)
    np.testing.assert_allclose(itself[varies], 1, rtol=0, atol=1e-6)
    np.testing.assert_allclose(opposite[varies], -1, rtol=0, atol=1e-6)
    assert (np.abs(itself[varies]) <= 1).all()


@given(acts=activations(), data=st.data(), metric=st.sampled_from(METRICS))
def test_chunks_of_tokens_count_as_one_text(acts, data, metric):
    a, b = acts
    cuts = data.draw(st.lists(st.integers(0, len(a)), max_size=4).map(sorted))
    ids = ids_of(a)
    chunked = correlate(
        np.split(a, cuts), tuple(np.split(b, cuts)), metric=metric, token_ids=np.split(ids, cuts)
    )
    whole = correlate(a, b, metric=metric, token_ids=ids)
    np.testing.assert_allclose(chunked.pearson, whole.pearson, rtol=0, atol=1e-6)
    np.testing.assert_allclose(chunked.similarity, whole.similarity, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(chunked.n_active_a, whole.n_active_a)
    np.testing.assert_array_equal(chunked.n_active_b, whole.n_active_b)
    assert chunked.n_tokens == whole.n_tokens


@given(acts=activations(), data=st.data())
def test_moments_of_chunks_add_up(acts, data):
    a, b = acts
    cut = data.draw(st.integers(1, max(1, len(a) - 1)))
    parts = [CrossMoments.of(x, y) for x, y in ((a[:cut], b[:cut]), (a[cut:], b[cut:])) if len(x)]
    total = parts[0] + parts[1] if len(parts) == 2 else parts[0]
    whole = CrossMoments.of(a, b)
    np.testing.assert_allclose(total.products, whole.products, rtol=1e-12, atol=1e-12 * 1e60)
    np.testing.assert_array_equal(total.a.n_active, whole.a.n_active)
    np.testing.assert_allclose(total.b.squares, whole.b.squares, rtol=1e-12)
    summed, at_once = correlation_of(total), correlation_of(whole)
    np.testing.assert_allclose(summed.pearson, at_once.pearson, rtol=0, atol=1e-6)


@given(acts=activations(), seed=st.integers(0, 1000), metric=st.sampled_from(METRICS))
def test_the_order_of_tokens_does_not_matter(acts, seed, metric):
    a, b = acts
    order = np.random.default_rng(seed).permutation(len(a))
    ids = ids_of(a)
    result = correlate(a[order], b[order], metric=metric, token_ids=ids[order]).similarity
    expected = correlate(a, b, metric=metric, token_ids=ids).similarity
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)


@given(acts=activations(), metric=st.sampled_from(METRICS))
def test_what_is_undefined_is_whole_rows_and_columns(acts, metric):
    similarity = correlate(*acts, metric=metric, token_ids=ids_of(acts[0])).similarity
    undefined = np.isnan(similarity)
    rows, columns = undefined.all(axis=1), undefined.all(axis=0)
    np.testing.assert_array_equal(undefined, rows[:, None] | columns)


@given(acts=activations())
def test_swapping_the_models_transposes_the_correlations(acts):
    a, b = acts
    forth, back = correlate(a, b), correlate(b, a)
    np.testing.assert_allclose(forth.pearson, back.pearson.T, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(forth.n_active_a, back.n_active_b)


def torch_csr(dense: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the layout a beta
        return torch.from_numpy(dense).to_sparse_csr()


CONTAINERS = {
    "numpy": np.asarray,
    "numpy_fortran": np.asfortranarray,
    "csr_array": sp.csr_array,
    "csr_matrix": sp.csr_matrix,
    "csc_array": sp.csc_array,
    "csc_matrix": sp.csc_matrix,
    "coo_array": sp.coo_array,
    "coo_matrix": sp.coo_matrix,
    "lil_array": sp.lil_array,
    "torch": torch.from_numpy,
    "torch_grad": lambda dense: torch.from_numpy(dense).double().requires_grad_(),
    "torch_coo": lambda dense: torch.from_numpy(dense).to_sparse_coo(),
    "torch_csr": torch_csr,
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_the_container_of_activations_does_not_matter(container, dtype):
    rng = np.random.default_rng(0)
    a = (rng.integers(-3, 4, size=(40, 5)) * (rng.random((40, 5)) < 0.4)).astype(dtype)
    b = (rng.integers(-3, 4, size=(40, 4)) * (rng.random((40, 4)) < 0.4)).astype(dtype)
    a[7] = b[7] = 0
    held_a, held_b = CONTAINERS[container](a), CONTAINERS[container](b)
    expected = dense_similarity(a, b, "pearson")
    np.testing.assert_allclose(correlate(held_a, held_b).pearson, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8, torch.bool])
@pytest.mark.parametrize("sparse", [False, True])
def test_small_torch_types_are_read_exactly(dtype, sparse):
    acts = (torch.arange(60).reshape(20, 3) % 7).to(dtype)
    expected = dense_similarity(acts.double().numpy(), acts.double().numpy(), "pearson")
    held = acts.to_sparse_coo() if sparse else acts
    np.testing.assert_allclose(correlate(held, held).pearson, expected, rtol=0, atol=1e-12)


def test_float64_tensors_keep_their_precision():
    rng = np.random.default_rng(0)
    a = 1 + 1e-5 * rng.normal(size=(50, 2))  # float32 would keep two digits of the spread
    result = correlate(torch.from_numpy(a), torch.from_numpy(a.copy()).to_sparse_coo())
    np.testing.assert_allclose(result.pearson, np.corrcoef(a.T), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float16, ">f8"])
def test_other_numpy_types_are_read_exactly(dtype):
    acts = (np.arange(60).reshape(20, 3) % 7).astype(dtype)
    expected = dense_similarity(acts.astype(float), acts.astype(float), "pearson")
    np.testing.assert_allclose(correlate(acts, acts).pearson, expected, rtol=0, atol=1e-12)


def test_repeated_entries_of_a_sparse_matrix_are_summed_before_they_are_squared():
    rows, columns, values = [0, 0, 1, 2], [0, 0, 0, 1], [1.0, 2.0, 5.0, 4.0]
    repeated = sp.coo_array((values, (rows, columns)), shape=(4, 2))
    unsorted = sp.csr_array(
        (np.array([2.0, 1.0, 2.0, 5.0]), np.array([1, 0, 0, 0]), np.array([0, 3, 4, 4, 4])),
        shape=(4, 2),
    )
    for acts in (repeated, unsorted):
        dense = acts.toarray()
        expected = dense_similarity(dense, dense, "pearson")
        result = correlate(acts, acts)
        np.testing.assert_allclose(result.pearson, expected, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(result.n_active_a, np.count_nonzero(dense, axis=0))


def test_stored_zeros_are_not_active():
    acts = sp.csr_array((np.array([0.0, 1.0]), np.array([0, 1]), np.array([0, 2, 2])), shape=(2, 2))
    np.testing.assert_array_equal(correlate(acts, acts).n_active_a, [0, 1])


def test_the_given_matrices_are_left_as_they_were():
    data = np.array([2.0, 1.0, 2.0, 0.0])
    acts = sp.csr_array((data, np.array([1, 0, 0, 0]), np.array([0, 3, 4])), shape=(2, 2))
    before = (acts.data.copy(), acts.indices.copy(), acts.indptr.copy())
    correlate(acts, acts)
    for now, then in zip((acts.data, acts.indices, acts.indptr), before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("container", ["numpy", "csc_matrix", "coo_array", "torch", "torch_coo"])
def test_a_value_that_is_not_finite_is_named_with_its_token_and_feature(container, bad):
    acts = np.zeros((6, 4))
    acts[1, 2], acts[4, 3] = 1, bad
    words = f"acts_b must be finite, got {bad} at token 4, feature 3: look at the model's dtype"
    with pytest.raises(ActivationError, match=re.escape(words)):
        correlate(np.ones((6, 1)), CONTAINERS[container](acts))


@pytest.mark.parametrize(
    ("acts_a", "acts_b", "words"),
    [
        (np.ones(4), np.ones((4, 1)), r"acts_a must be tokens x features, got the shape \(4,\)"),
        (np.ones((4, 1)), np.ones((2, 2, 1)), r"acts_b must be .* got the shape \(2, 2, 1\)"),
        (torch.ones(2, 2, 2), np.ones((4, 1)), r"flatten documents and positions into one axis"),
        (np.ones((4, 1)), np.ones((5, 1)), "both sides must hold the same tokens, got 4 and 5"),
        (np.ones((0, 1)), np.ones((0, 1)), "at least one token to correlate over, got none"),
        ([], [], "at least one token to correlate over, got none"),
        ([np.ones((4, 1))], [np.ones((2, 1))] * 2, "in the same chunks, got 1 and 2"),
        (
            [np.ones((4, 1)), np.ones((4, 2))],
            [np.ones((4, 3))] * 2,
            r"chunks must have the same features, got \(1, 3\) and then \(2, 3\)",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(acts_a, acts_b, words):
    with pytest.raises(ShapeError, match=words):
        correlate(acts_a, acts_b)


def test_moments_of_different_features_do_not_add():
    one, more = CrossMoments.of(np.eye(4, 1), np.eye(4, 1)), CrossMoments.of(np.eye(4), np.eye(4))
    with pytest.raises(ShapeError, match="chunks must have the same features, got 1 and then 4"):
        one + more


def test_an_unknown_metric_is_refused_before_any_work():
    words = "unknown metric 'pearsn' .did you mean 'pearson'.., expected one of: cosine, euclidean"
    with pytest.raises(UnknownNameError, match=words):
        correlate(np.full((2, 2), np.nan), np.ones((3, 2)), metric="pearsn")
    moments = CrossMoments.of(np.eye(3), np.eye(3))
    with pytest.raises(UnknownNameError, match=words):
        correlation_of(moments, metric="pearsn")


def test_euclidean_orders_partners_as_pearson_does():
    a, b = np.random.default_rng(0).normal(size=(2, 50, 6))
    result = correlate(a, b, metric="euclidean")
    orders = (np.argsort(m, axis=None) for m in (result.pearson, result.similarity))
    np.testing.assert_array_equal(*orders)


def test_checked_activations_are_sorted_and_hold_no_zero():
    acts = sp.csr_array((np.array([3, 0, 1]), np.array([2, 1, 0]), np.array([0, 3, 3])), (2, 3))
    csr = as_csr(acts)
    assert csr.has_canonical_format
    np.testing.assert_array_equal(csr.indices, [0, 2])
    np.testing.assert_array_equal(csr.toarray(), acts.toarray())
