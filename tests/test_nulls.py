"""What chance gives: closed forms against every permutation, permutations against uniformity."""

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from saelign.nulls import (
    NULLS,
    draw_permutations,
    mantel_moments,
    q_values,
    rate_strata,
    trace_moments,
)
from saelign.similarity import MEASURES
from saelign.similarity.canonical import canonical_moments
from saelign.similarity.cka import trace_sums
from saelign.similarity.partners import partners_of


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Decompositions as small as these take longer on several cores than on one."""
    with threadpool_limits(1):
        yield


def every_permutation(n: int) -> np.ndarray:
    return np.array(list(itertools.permutations(range(n))))


def symmetric(n: int, rng: np.random.Generator) -> np.ndarray:
    """Zero diagonal, zero off-diagonal mean, entries far from normal."""
    upper = np.triu(rng.exponential(size=(n, n)) ** 2, 1)
    upper[np.triu_indices(n, 1)] -= upper[np.triu_indices(n, 1)].mean()
    return upper + upper.T


def doubly_centred(n: int, rng: np.random.Generator) -> np.ndarray:
    """Symmetric with rows that sum to nothing; not a Gram matrix, some eigenvalues negative."""
    matrix = rng.exponential(size=(n, n)) ** 2
    centre = np.eye(n) - 1 / n
    return centre @ (matrix + matrix.T) @ centre


def relabelled_sums(a: np.ndarray, b: np.ndarray, permutations: np.ndarray) -> np.ndarray:
    return np.array([(a * b[np.ix_(s, s)]).sum() for s in permutations])


@pytest.mark.parametrize("n", [4, 5, 6])
@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_mantel_moments_are_those_of_every_permutation(n, seed):
    rng = np.random.default_rng(seed)
    a, b = symmetric(n, rng), symmetric(n, rng)
    sums = relabelled_sums(a, b, every_permutation(n)) / (n * (n - 1))
    mean, sd = mantel_moments(a, b)
    assert mean == 0
    np.testing.assert_allclose([sums.mean(), sums.std()], [mean, sd], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n", [4, 5, 6])
@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_trace_moments_are_those_of_every_permutation(n, seed):
    rng = np.random.default_rng(seed)
    a, b = doubly_centred(n, rng), doubly_centred(n, rng)
    sums = relabelled_sums(a, b, every_permutation(n))
    expected = [sums.mean(), sums.var()]
    moments = trace_moments(n, trace_sums(a), trace_sums(b))
    np.testing.assert_allclose(moments, expected, rtol=1e-10, atol=1e-10)


def test_fewer_than_four_things_have_no_closed_form():
    rng = np.random.default_rng(0)
    for n in (2, 3):
        assert mantel_moments(symmetric(n, rng), symmetric(n, rng)) is None
        assert trace_moments(n, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)) is None


def test_what_does_not_vary_has_no_spread_and_no_negative_variance():
    equal = np.ones((6, 6)) - np.eye(6)
    equal[~np.eye(6, dtype=bool)] -= 1
    assert mantel_moments(equal, symmetric(6, np.random.default_rng(0))) == (0, 0)
    centre = np.eye(6) - 1 / 6
    mean, variance = trace_moments(6, trace_sums(centre), trace_sums(centre))
    assert mean == pytest.approx(5)
    assert variance == pytest.approx(0, abs=1e-12)


EXACT = [
    ("svcca_r2", {"n_components": 1}),
    ("svcca_r2", {"n_components": 2}),
    ("svcca_r2", {"variance": 0.6}),
    ("rsa", {}),
    ("rsa", {"outer": "pearson"}),
    ("rsa", {"inner": "pearson"}),
    ("rsa", {"inner": "euclidean"}),
    ("cka", {}),
]


def uneven_rows(n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of heavy tails, so that a form for normal data alone would miss."""
    return rng.normal(size=(n, d)) * rng.exponential(size=(n, 1)) + rng.normal(size=d)


@pytest.mark.parametrize(("measure", "options"), EXACT)
def test_exact_moments_of_a_measure_are_those_of_every_shuffle(measure, options):
    rng = np.random.default_rng(5)
    x, y = uneven_rows(6, 3, rng), uneven_rows(6, 2, rng)
    if "variance" in options:
        x, y = x[:, :2], y[:, :2]
    comparison = MEASURES[measure].compare(x, partners_of(y), **options)
    scores = comparison.shuffled(every_permutation(6))
    np.testing.assert_allclose(
        comparison.exact_moments(), [scores.mean(), scores.std()], rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize(("measure", "options"), EXACT)
def test_exact_moments_of_a_measure_agree_with_simulation(measure, options):
    rng = np.random.default_rng(6)
    x, y = uneven_rows(60, 12, rng), uneven_rows(60, 9, rng)
    comparison = MEASURES[measure].compare(x, partners_of(y), **options)
    n_shuffles = 4000
    scores = comparison.shuffled(draw_permutations(60, n_shuffles, rng=rng))
    mean, sd = comparison.exact_moments()
    assert scores.mean() == pytest.approx(mean, abs=4 * sd / np.sqrt(n_shuffles))
    assert scores.std() == pytest.approx(sd, rel=0.08)


@pytest.mark.parametrize(("n_pairs", "k_x", "k_y"), [(6, 1, 2), (30, 5, 3), (200, 20, 20)])
def test_the_mean_squared_canonical_correlation_of_chance_is_k_over_n_minus_1(n_pairs, k_x, k_y):
    rng = np.random.default_rng(0)
    centred = [rng.normal(size=(n_pairs, k)) for k in (k_x, k_y)]
    bases = [np.linalg.qr(rows - rows.mean(axis=0))[0] for rows in centred]
    mean, sd = canonical_moments(*bases)
    assert mean * min(k_x, k_y) == pytest.approx(k_x * k_y / (n_pairs - 1), rel=1e-12)
    if n_pairs == 6:
        overlaps = [((bases[0].T @ bases[1][s]) ** 2).sum() for s in every_permutation(6)]
        assert np.mean(overlaps) == pytest.approx(mean, rel=1e-10)
        assert np.std(overlaps) == pytest.approx(sd, rel=1e-10)


@pytest.mark.parametrize("n_pairs", [4, 5, 7])
def test_the_mean_square_of_pc1_over_every_shuffle_is_1_over_k_minus_1(n_pairs):
    rng = np.random.default_rng(n_pairs)
    x, y = uneven_rows(n_pairs, 3, rng), uneven_rows(n_pairs, 4, rng)
    scores = MEASURES["pc1"].compare(x, partners_of(y)).shuffled(every_permutation(n_pairs))
    assert (scores**2).mean() == pytest.approx(1 / (n_pairs - 1), rel=1e-10)


def test_the_mean_of_pc1_is_the_published_random_baseline():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 16)), rng.normal(size=(40, 16))
    scores = (
        MEASURES["pc1"].compare(x, partners_of(y)).shuffled(draw_permutations(40, 20_000, rng=rng))
    )
    assert scores.mean() == pytest.approx(np.sqrt(2 / (np.pi * 40)), abs=0.004)  # 0.126


@pytest.mark.parametrize("measure", ["pc1", "svcca"])
def test_measures_without_a_closed_form_give_none(measure):
    x, y = np.random.default_rng(0).normal(size=(2, 30, 8))
    assert MEASURES[measure].compare(x, partners_of(y)).exact_moments() is None


@pytest.mark.parametrize("measure", MEASURES)
def test_repeated_partners_have_no_closed_form(measure):
    x, y = np.random.default_rng(0).normal(size=(2, 30, 8))
    y[7] = y[3]
    assert MEASURES[measure].compare(x, partners_of(y)).exact_moments() is None


@given(n=st.integers(2, 400), seed=st.integers(0, 1000), n_values=st.sampled_from([1, 3, 1000]))
def test_strata_are_even_and_ordered_by_rate(n, seed, n_values):
    rates = np.random.default_rng(seed).integers(n_values, size=n) / n_values
    strata = rate_strata(rates)
    sizes = np.bincount(strata)
    assert sizes.max() - sizes.min() <= 1
    assert sizes.min() >= 2
    order = np.lexsort((np.arange(n), rates))  # ties by position
    assert (np.diff(strata[order]) >= 0).all()


@pytest.mark.parametrize(
    ("n", "n_strata"),
    [(1, 1), (3, 1), (10, 5), (20, 10), (50, 10), (100, 10), (109, 10), (1536, 153)],
)
def test_strata_are_deciles_and_then_of_ten_features(n, n_strata):
    assert rate_strata(np.arange(n) / n).max() + 1 == n_strata


@given(
    strata=st.lists(st.integers(0, 4), min_size=1, max_size=30).map(np.array),
    seed=st.integers(0, 1000),
)
def test_things_move_only_within_their_stratum(strata, seed):
    permutations = draw_permutations(
        len(strata), 20, rng=np.random.default_rng(seed), strata=strata
    )
    assert permutations.shape == (20, len(strata))
    for s in permutations:
        np.testing.assert_array_equal(np.sort(s), np.arange(len(strata)))
        np.testing.assert_array_equal(strata[s], strata)


@pytest.mark.parametrize(
    ("n", "strata", "n_possible"),
    [(4, None, 24), (5, np.array([0, 1, 0, 1, 0]), 12), (4, np.array([2, 2, 2, 2]), 24)],
)
def test_every_permutation_is_as_likely_as_any_other(n, strata, n_possible):
    drawn = draw_permutations(n, 12_000, rng=np.random.default_rng(0), strata=strata)
    _, times = np.unique(drawn, axis=0, return_counts=True)
    assert len(times) == n_possible
    assert scipy.stats.chisquare(times).pvalue > 0.01


def test_the_same_generator_draws_the_same_permutations():
    drawn = [draw_permutations(30, 5, rng=np.random.default_rng(3)) for _ in range(2)]
    np.testing.assert_array_equal(*drawn)
    other = draw_permutations(30, 5, rng=np.random.default_rng(4))
    assert (drawn[0] != other).any()


def test_the_nulls_have_names():
    assert NULLS == ("shuffle", "rate_matched")


@given(
    p=st.lists(
        st.one_of(st.floats(1e-9, 1), st.sampled_from([0.01, 0.05, 1.0])), min_size=1, max_size=30
    )
)
def test_q_values_are_those_of_scipy(p):
    p = np.array(p)
    np.testing.assert_allclose(
        q_values(p), scipy.stats.false_discovery_control(p, method="bh"), rtol=1e-12
    )


@given(
    p=st.lists(st.floats(1e-9, 1) | st.just(float("nan")), max_size=30).map(
        lambda values: np.array(values, dtype=float)
    )
)
def test_what_has_no_p_is_no_test(p):
    q = q_values(p)
    tested = ~np.isnan(p)
    np.testing.assert_array_equal(np.isnan(q), ~tested)
    np.testing.assert_array_equal(q[tested], q_values(p[tested]))
    assert (q[tested] >= p[tested] * (1 - 1e-12)).all()
    assert (q[tested] <= 1).all()
