"""The optimal matching against scipy's, which sees the whole table."""

import re
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from saelign.errors import DegenerateError
from saelign.matching import optimal
from saelign.matching.optimal import Assignment, optimal_one_to_one
from saelign.matching.optimal_kernel import assign


@dataclass
class Dense:
    """Candidates from a table that is there."""

    table: np.ndarray
    asked: list[tuple[int, int]] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int]:
        n_a, n_b = self.table.shape
        return n_a, n_b

    def strongest(self, rows, columns, k, *, offsets=None):
        self.asked.append((len(rows), len(columns)))
        columns = np.sort(columns)
        values = self.table[np.ix_(rows, columns)]
        worth = values if offsets is None else values - offsets
        best = np.argsort(-worth, axis=1, kind="stable")[:, :k]
        return columns[best], np.take_along_axis(values, best, axis=1)


def assert_is_optimal(table: np.ndarray, found: Assignment) -> None:
    """One to one, in order, of the largest total, and no further from it than the gap says."""
    n = min(table.shape)
    a, b = found.pairs.T
    assert found.pairs.shape == (n, 2)
    assert len(set(a.tolist())) == len(set(b.tolist())) == n
    np.testing.assert_array_equal(found.similarities, table[a, b])
    assert [*zip(-found.similarities, a, strict=True)] == sorted(
        zip(-found.similarities, a, strict=True)
    )
    best = table[linear_sum_assignment(table, maximize=True)]
    size = np.abs(table).max()
    assert found.gap >= 0
    assert found.gap <= 1e-9 * size
    assert best.sum() - found.similarities.sum() <= found.gap + 1e-15 * n * size


def zipf(n: int, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(1 / np.sqrt(np.arange(1, n + 1)))


def planted(n: int, rng: np.random.Generator) -> np.ndarray:
    """Half the features have a partner; the others never fire together: -c_a d_b."""
    table = -0.1 * np.outer(zipf(n, rng), zipf(n, rng))
    half = n // 2
    table[:half, :half] = 0.05 * rng.normal(size=(half, half))
    table[np.arange(half), rng.permutation(half)] = rng.uniform(0, 1, size=half)
    return table[rng.permutation(n)]


def one_likes_all(n: int, rng: np.random.Generator) -> np.ndarray:
    """Every row likes the same columns, nearly."""
    return rng.uniform(size=n) + 0.1 * rng.uniform(size=(n, n))


TABLES = {
    "normal": lambda n, rng: rng.normal(size=(n, n)),
    "tied": lambda n, rng: rng.integers(4, size=(n, n)).astype(float),
    "constant": lambda n, _rng: np.full((n, n), 0.3),
    "zero": lambda n, _rng: np.zeros((n, n)),
    "rank one": lambda n, rng: np.outer(zipf(n, rng), zipf(n, rng)),
    "rank one, negative": lambda n, rng: -np.outer(zipf(n, rng), zipf(n, rng)),
    "rank four": lambda n, rng: rng.normal(size=(n, 4)) @ rng.normal(size=(4, n)),
    "negative and far": lambda n, rng: -1000 - rng.uniform(size=(n, n)),
    "permutation": lambda n, rng: np.eye(n)[rng.permutation(n)],
    "planted": planted,
    "one likes all": one_likes_all,
    "huge": lambda n, rng: 1e300 * rng.normal(size=(n, n)),
    "tiny": lambda n, rng: 1e-300 * rng.normal(size=(n, n)),
    "exponents": lambda n, rng: rng.normal(size=(n, n)) * 10.0 ** rng.integers(-9, 9, size=(n, n)),
}


@pytest.mark.parametrize("k", [1, 2, 32])
@pytest.mark.parametrize("shape", [(70, 70), (70, 45), (45, 70), (70, 69), (3, 70), (70, 3)])
@pytest.mark.parametrize("kind", TABLES)
def test_the_total_is_the_one_of_the_whole_table(kind, shape, k):
    table = TABLES[kind](70, np.random.default_rng(0))[: shape[0], : shape[1]]
    assert_is_optimal(table, optimal_one_to_one(Dense(table), k=k))


@pytest.mark.parametrize("kind", ["planted", "one likes all", "rank one, negative", "tied"])
@pytest.mark.parametrize("shape", [(400, 400), (400, 350), (350, 400)])
def test_larger_tables_are_no_different(kind, shape):
    table = TABLES[kind](400, np.random.default_rng(0))[: shape[0], : shape[1]]
    assert_is_optimal(table, optimal_one_to_one(Dense(table), k=4))


def tables() -> st.SearchStrategy[np.ndarray]:
    entries = st.one_of(
        st.integers(-2, 2).map(float), st.floats(-1, 1), st.floats(-1e6, 1e6, allow_subnormal=False)
    )
    return arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=entries)


@given(table=tables(), k=st.integers(1, 4))
def test_any_table_is_matched_at_its_optimum(table, k):
    assert_is_optimal(table, optimal_one_to_one(Dense(table), k=k))


@given(table=tables(), k=st.integers(1, 4))
def test_swapping_the_models_leaves_the_total(table, k):
    forth = optimal_one_to_one(Dense(table), k=k)
    back = optimal_one_to_one(Dense(table.T.copy()), k=k)
    assert abs(forth.similarities.sum() - back.similarities.sum()) <= forth.gap + back.gap


@given(table=arrays(np.int64, st.tuples(*[st.integers(1, 9)] * 2), elements=st.integers(-3, 3)))
def test_whole_numbers_are_matched_without_any_error(table):
    found = optimal_one_to_one(Dense(table.astype(float)), k=1)
    assert found.similarities.sum() == table[linear_sum_assignment(table, maximize=True)].sum()


@pytest.mark.parametrize(("n_a", "n_b"), [(1, 1), (1, 9), (9, 1)])
def test_a_single_feature_gets_the_best(n_a, n_b):
    table = np.random.default_rng(0).normal(size=(n_a, n_b))
    found = optimal_one_to_one(Dense(table), k=2)
    assert found.similarities.tolist() == [table.max()]


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_no_features_make_no_pairs(shape):
    found = optimal_one_to_one(Dense(np.empty(shape)))
    assert found.pairs.shape == (0, 2)
    assert len(found.similarities) == found.gap == 0


def test_the_best_total_is_not_the_greedy_one():
    found = optimal_one_to_one(Dense(np.array([[0.9, 0.8], [0.8, 0.1]])), k=1)
    assert found.pairs.tolist() == [[0, 1], [1, 0]]


def test_equal_similarities_come_by_row():
    found = optimal_one_to_one(Dense(np.array([[0, 0, 0.5], [0.7, 0, 0], [0, 0.5, 0]])), k=1)
    assert found.pairs.tolist() == [[1, 0], [0, 2], [2, 1]]


@pytest.mark.parametrize("kind", ["constant", "tied", "planted"])
def test_the_same_candidates_give_the_same_pairs(kind):
    table = TABLES[kind](60, np.random.default_rng(0))
    first, again = (optimal_one_to_one(Dense(table), k=2) for _ in range(2))
    np.testing.assert_array_equal(first.pairs, again.pairs)
    assert first.gap == again.gap


def test_only_the_first_pass_asks_for_everything():
    rng = np.random.default_rng(0)
    table = 0.02 * rng.standard_t(4, size=(800, 800))
    table[np.arange(800), rng.permutation(800)] = rng.uniform(0, 1, size=800)
    candidates = Dense(table)
    assert_is_optimal(table, optimal_one_to_one(candidates))
    whole, *others = candidates.asked
    assert whole == table.shape
    assert 0 < sum(n_rows * n_columns for n_rows, n_columns in others) < table.size / 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_similarity_that_is_not_finite_is_refused(value):
    table = np.zeros((3, 4))
    table[1, 2] = value
    words = (
        f"similarities must be finite to be added up, got {value} for row 1 and column 2: "
        "leave out features without a similarity"
    )
    with pytest.raises(DegenerateError, match=re.escape(words)):
        optimal_one_to_one(Dense(table))


@given(data=st.data())
def test_prices_prove_the_assignment_and_survive_a_change_of_values(data):
    n = data.draw(st.integers(1, 7))
    m = data.draw(st.integers(n, 10))
    numbers = arrays(np.int64, (n, m), elements=st.integers(-5, 5))
    values = data.draw(numbers)
    prices, holds, gains = np.zeros(m, np.int64), np.full(n, -1), np.zeros(n, np.int64)
    for _ in range(3):
        objects = np.tile(np.arange(m), n)
        assert assign(np.arange(n + 1) * m, objects, values.ravel(), prices, holds, gains)
        assert len(set(holds.tolist())) == n
        assert (gains[:, None] + prices >= values).all()
        np.testing.assert_array_equal(gains + prices[holds], values[np.arange(n), holds])
        left = np.delete(prices, holds)
        assert (left == prices.min()).all()
        best = values[linear_sum_assignment(values, maximize=True)].sum()
        assert values[np.arange(n), holds].sum() == best
        values = values + np.maximum(data.draw(numbers), 0)


def test_edges_without_a_matching_are_noticed():
    starts, objects = np.array([0, 1, 2]), np.array([0, 0])
    state = np.zeros(2, np.int64), np.full(2, -1), np.zeros(2, np.int64)
    assert not assign(starts, objects, np.array([1, 2]), *state)


@pytest.mark.parametrize("shape", [(60, 60), (60, 40), (40, 60)])
@pytest.mark.parametrize("kind", ["normal", "planted", "one likes all", "rank one, negative"])
def test_the_gap_is_honest_when_the_search_is_cut_short(kind, shape, monkeypatch):
    monkeypatch.setattr(optimal._Matching, "is_improved_by", lambda *_: False)
    table = TABLES[kind](60, np.random.default_rng(0))[: shape[0], : shape[1]]
    found = optimal_one_to_one(Dense(table), k=1)
    best = table[linear_sum_assignment(table, maximize=True)].sum()
    assert found.gap > 1e-6
    assert best - found.similarities.sum() <= found.gap


def test_a_similarity_far_beyond_those_seen_first_may_turn_up_later():
    table = np.zeros((6, 2))
    table[5] = -16385, 1
    for candidates in (Dense(table), Dense(table.T.copy())):
        found = optimal_one_to_one(candidates, k=1)
        assert found.similarities.sum() == 1
