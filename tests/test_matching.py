"""The fast matchings against the slow ones that the paper states."""

import re

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st

from saelign import Correlation, correlate, match
from saelign.errors import ActivationError, UnknownNameError
from saelign.matching import MATCHINGS, Filters, filter_pairs, pairs_among
from saelign.matching.greedy import greedy_one_to_one


def correlation_from(
    pearson: np.ndarray, *, n_active_a=None, n_active_b=None, similarity: np.ndarray | None = None
) -> Correlation:
    """A correlation whose entries are given; every feature active on 100 tokens unless said."""
    n_a, n_b = pearson.shape
    return Correlation(
        metric="pearson",
        pearson=pearson,
        similarity=pearson if similarity is None else similarity,
        n_active_a=np.full(n_a, 100) if n_active_a is None else np.asarray(n_active_a),
        n_active_b=np.full(n_b, 100) if n_active_b is None else np.asarray(n_active_b),
        n_tokens=1000,
    )


def naive_one_to_one(similarity: np.ndarray) -> list[tuple[int, int]]:
    """Sort all pairs, best first, then by index of A and of B; take what is still free."""
    n_a, n_b = similarity.shape
    ordered = sorted((-similarity[a, b], a, b) for a in range(n_a) for b in range(n_b))
    taken_a, taken_b, pairs = set(), set(), []
    for _, a, b in ordered:
        if a not in taken_a and b not in taken_b:
            taken_a.add(a)
            taken_b.add(b)
            pairs.append((a, b))
    return pairs


@st.composite
def matrices(draw) -> np.ndarray:
    """Correlations of few different values, so that most of them tie; or all different."""
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_values = draw(st.sampled_from([1, 2, 3, 8, None]))
    if n_values is None:
        return rng.uniform(-1, 1, size=shape)
    return rng.choice(np.linspace(-1, 1, 2 * n_values + 1)[:n_values], size=shape)


def pairs_of(table: pd.DataFrame) -> list[tuple[int, int]]:
    return list(table[["feature_a", "feature_b"]].itertuples(index=False, name=None))


def greedy(similarity: np.ndarray, **options) -> list[tuple[int, int]]:
    n_a, n_b = similarity.shape
    found = greedy_one_to_one(
        correlation_from(similarity), np.arange(n_a), np.arange(n_b), **options
    )
    return list(map(tuple, found))


@pytest.mark.parametrize(("small", "listed"), [(0, 1), (0, 3), (20, 2), (2**18, 32)])
@given(similarity=matrices())
def test_greedy_takes_the_pairs_and_the_order_of_the_naive_algorithm(small, listed, similarity):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saelign.matching.greedy.SMALL", small)
        patch.setattr("saelign.matching.greedy.N_LISTED", listed)
        assert greedy(similarity) == naive_one_to_one(similarity)


@pytest.mark.parametrize("small", [0, 2**18])
@given(similarity=matrices(), above=st.floats(-1, 1))
def test_greedy_stops_at_what_is_not_above_the_least(small, similarity, above):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saelign.matching.greedy.SMALL", small)
        patch.setattr("saelign.matching.greedy.N_LISTED", 2)
        expected = [(a, b) for a, b in naive_one_to_one(similarity) if similarity[a, b] > above]
        assert greedy(similarity, above=above) == expected


@given(similarity=matrices())
def test_one_to_one_pairs_each_feature_at_most_once_and_best_first(similarity):
    pairs = match(correlation_from(similarity))
    assert len(pairs) == min(similarity.shape)
    assert pairs["feature_a"].is_unique
    assert pairs["feature_b"].is_unique
    assert pairs["correlation"].is_monotonic_decreasing


def test_greedy_is_exact_on_many_features():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(150, 20))
    similarity = np.round(np.corrcoef(shared[:120], shared[30:])[:120, 120:], 2)  # rounded: ties
    assert greedy(similarity) == naive_one_to_one(similarity)


@given(similarity=matrices())
def test_the_many_take_their_best_and_ties_go_to_the_lowest_index(similarity):
    correlation = correlation_from(similarity)
    n_a, n_b = similarity.shape
    best_b = [min(range(n_b), key=lambda b: (-similarity[a, b], b)) for a in range(n_a)]
    best_a = [min(range(n_a), key=lambda a: (-similarity[a, b], a)) for b in range(n_b)]
    assert pairs_of(match(correlation, how="many_to_one")) == list(enumerate(best_b))
    assert pairs_of(match(correlation, how="one_to_many")) == [(a, b) for b, a in enumerate(best_a)]


@given(similarity=matrices())
def test_one_to_many_is_many_to_one_of_the_swapped_models(similarity):
    forth = match(correlation_from(similarity), how="one_to_many")
    back = match(correlation_from(similarity.T.copy()), how="many_to_one")
    assert pairs_of(forth) == [(a, b) for b, a in pairs_of(back)]
    np.testing.assert_array_equal(forth["mutual"], back["mutual"])


@pytest.mark.parametrize("how", MATCHINGS)
@given(similarity=matrices())
def test_pairs_of_few_features_are_those_of_match_best_first(how, similarity):
    found = [tuple(pair) for pair in pairs_among(similarity, how).tolist()]
    expected = pairs_of(match(correlation_from(similarity), how=how))
    values = [similarity[pair] for pair in found]
    assert values == sorted(values, reverse=True)
    if how == "one_to_one":
        assert found == expected
    elif how == "optimal":  # of several best ones any may come
        assert len(found) == len({a for a, _ in found}) == len({b for _, b in found})
        assert sum(values) == pytest.approx(sum(similarity[pair] for pair in expected))
        assert len(found) == len(expected)
    else:
        assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("how", MATCHINGS)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_without_features_there_are_no_pairs(how, shape):
    assert pairs_among(np.zeros(shape), how).shape == (0, 2)


@pytest.mark.parametrize("how", MATCHINGS)
@given(similarity=matrices())
def test_margin_and_mutual_are_what_their_names_say(how, similarity):
    n_a, n_b = similarity.shape
    for pair in match(correlation_from(similarity), how=how).itertuples():
        a, b = pair.feature_a, pair.feature_b
        others = [similarity[a, other] for other in range(n_b) if other != b]
        assert pair.correlation == pair.similarity == similarity[a, b]
        if others:
            assert pair.margin == similarity[a, b] - max(others)
        else:
            assert np.isnan(pair.margin)
        best_b = min(range(n_b), key=lambda j: (-similarity[a, j], j))
        best_a = min(range(n_a), key=lambda i: (-similarity[i, b], i))
        assert pair.mutual == (best_b == b and best_a == a)


@given(similarity=matrices())
def test_optimal_has_the_largest_total_of_all_one_to_one_matchings(similarity):
    pairs = match(correlation_from(similarity), how="optimal")
    rows, columns = scipy.optimize.linear_sum_assignment(similarity, maximize=True)
    assert pairs["similarity"].sum() == pytest.approx(similarity[rows, columns].sum(), abs=1e-9)
    assert pairs["feature_a"].is_unique
    assert pairs["feature_b"].is_unique
    assert pairs["correlation"].is_monotonic_decreasing


def test_optimal_gives_up_the_best_pair_where_that_pays():
    similarity = np.array([[0.9, 0.8], [0.8, 0.1]])
    assert pairs_of(match(correlation_from(similarity))) == [(0, 0), (1, 1)]
    assert pairs_of(match(correlation_from(similarity), how="optimal")) == [(0, 1), (1, 0)]


def test_a_pair_taken_late_has_a_negative_margin():
    pairs = match(correlation_from(np.array([[0.9, 0.1], [0.8, 0.3]])))
    assert pairs_of(pairs) == [(0, 0), (1, 1)]
    np.testing.assert_allclose(pairs["margin"], [0.8, -0.5])
    assert pairs["mutual"].tolist() == [True, False]


@pytest.mark.parametrize("how", MATCHINGS)
def test_features_are_matched_by_similarity_and_keep_their_pearson(how):
    rng = np.random.default_rng(0)
    pearson, similarity = rng.uniform(-1, 1, size=(2, 5, 5))
    pairs = match(correlation_from(pearson, similarity=similarity), how=how)
    assert pairs_of(pairs) == pairs_of(match(correlation_from(similarity), how=how))
    a, b = pairs["feature_a"], pairs["feature_b"]
    np.testing.assert_array_equal(pairs["correlation"], pearson[a, b])
    np.testing.assert_array_equal(pairs["similarity"], similarity[a, b])


@pytest.mark.parametrize("how", MATCHINGS)
def test_rare_dead_and_constant_features_are_never_paired(how):
    pearson = np.full((4, 5), 0.2)
    pearson[0] = 1.0  # rare, yet perfectly correlated
    pearson[1] = np.nan  # constant
    pearson[:, 2] = np.nan  # dead
    pearson[3, 4] = 0.7
    correlation = correlation_from(
        pearson, n_active_a=[29, 1000, 30, 100], n_active_b=[30, 30, 0, 5, 30]
    )
    pairs = match(correlation, how=how)
    assert set(pairs["feature_a"]) <= {2, 3}
    assert set(pairs["feature_b"]) <= {0, 1, 4}
    assert (3, 4) in pairs_of(pairs)
    assert pairs["correlation"].notna().all()


@pytest.mark.parametrize("how", MATCHINGS)
@given(similarity=matrices(), data=st.data())
def test_features_without_a_similarity_are_never_paired_though_they_have_a_pearson(
    how, similarity, data
):
    n_a, n_b = similarity.shape
    left_a = data.draw(st.sets(st.integers(0, n_a - 1), min_size=1).map(sorted))
    left_b = data.draw(st.sets(st.integers(0, n_b - 1), min_size=1).map(sorted))
    seen = np.full(similarity.shape, np.nan)
    seen[np.ix_(left_a, left_b)] = similarity[np.ix_(left_a, left_b)]
    pearson = np.ones_like(similarity)
    pairs = match(correlation_from(pearson, similarity=seen), how=how)
    inner = match(correlation_from(similarity[np.ix_(left_a, left_b)]), how=how)
    assert pairs_of(pairs) == [(left_a[a], left_b[b]) for a, b in pairs_of(inner)]
    assert pairs["similarity"].notna().all()
    for column in ("similarity", "margin", "mutual"):
        np.testing.assert_array_equal(pairs[column], inner[column])


@pytest.mark.parametrize("how", MATCHINGS)
def test_a_function_of_the_token_is_matched_by_pearson_and_not_within_tokens(how):
    rng = np.random.default_rng(0)
    ids = rng.integers(6, size=300)
    of_token, free = rng.random((6, 2))[ids] / 3, rng.random((300, 3))
    acts = np.column_stack([of_token, free])
    by_pearson = match(correlate(acts, acts), how=how)
    within = match(correlate(acts, acts, metric="within_token", token_ids=ids), how=how)
    assert sorted(pairs_of(by_pearson)) == [(i, i) for i in range(5)]
    assert sorted(pairs_of(within)) == [(i, i) for i in (2, 3, 4)]
    np.testing.assert_allclose(within["similarity"], 1, rtol=0, atol=1e-9)
    assert (within["margin"] > 0).all()
    assert within["mutual"].all()


@pytest.mark.parametrize("how", MATCHINGS)
def test_features_out_of_the_running_do_not_touch_margin_or_mutual(how):
    rng = np.random.default_rng(0)
    inner = rng.uniform(-1, 1, size=(4, 4))
    outer = np.ones((6, 6))
    outer[1:5, 1:5] = inner
    active = [1, 50, 50, 50, 50, 1]
    outer = match(correlation_from(outer, n_active_a=active, n_active_b=active), how=how)
    expected = match(correlation_from(inner), how=how)
    assert pairs_of(outer) == [(a + 1, b + 1) for a, b in pairs_of(expected)]
    for column in ("correlation", "margin", "mutual"):
        np.testing.assert_array_equal(outer[column], expected[column])


@pytest.mark.parametrize(("threshold", "n_pairs"), [(0, 3), (1, 3), (2, 2), (3, 1)])
def test_the_least_number_of_active_tokens_is_inclusive_and_at_least_1(threshold, n_pairs):
    correlation = correlation_from(np.eye(4), n_active_a=[0, 1, 2, 3], n_active_b=[9, 9, 9, 9])
    assert len(match(correlation, min_active_tokens=threshold)) == n_pairs


def test_a_real_correlation_is_matched_without_its_constant_features():
    rng = np.random.default_rng(0)
    a = np.column_stack([np.ones(100), rng.random(100), np.zeros(100), rng.random(100)])
    pairs = match(correlate(a, a[:, ::-1].copy()))
    assert sorted(pairs_of(pairs)) == [(1, 2), (3, 0)]
    np.testing.assert_allclose(pairs["correlation"], 1, rtol=0, atol=1e-12)


def test_a_matching_that_does_not_exist_is_named():
    words = "unknown matching 'one_to_on' (did you mean 'one_to_one'?), expected one of: "
    with pytest.raises(UnknownNameError, match=re.escape(words + ", ".join(sorted(MATCHINGS)))):
        match(correlation_from(np.eye(3)), how="one_to_on")


@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize("how", MATCHINGS)
def test_a_model_without_a_live_feature_is_named(side, how):
    acts = {"A": np.eye(50, 3, k=-3), "B": np.random.default_rng(0).random((50, 4))}
    if side == "B":
        acts = {"A": acts["B"], "B": acts["A"]}
    n_features = acts[side].shape[1]
    words = (
        f"model {side} must have a feature active on at least 30 of 50 tokens, the most active of "
        f"{n_features} has 1: use more text or lower min_active_tokens"
    )
    with pytest.raises(ActivationError, match=words):
        match(correlate(acts["A"], acts["B"]), how=how)


def test_a_model_of_constant_features_is_refused():
    words = "a feature that is active often enough and not constant, got 0 of A and 0 of B"
    with pytest.raises(ActivationError, match=words):
        match(correlate(np.random.default_rng(0).random((50, 3)), np.ones((50, 2))))


def test_a_model_without_features_is_refused():
    with pytest.raises(ActivationError, match="the most active of 0 has 0"):
        match(correlate(np.ones((5, 0)), np.ones((5, 2))))


FEATURE_PAIRS = pd.DataFrame(
    {
        "feature_a": [0, 1, 2, 3, 4],
        "feature_b": [4, 3, 2, 1, 0],
        "correlation": [0.9, 0.9, 0.9, 0.1, 0.05],
    },
    index=[10, 11, 12, 13, 14],
)
TOP_A = [["x", "y"], ["x", "y"], ["x", "x"], ["x", "y"], ["u", "v"]]
TOP_B = [["w", "z"], ["y", "z"], ["y", "z"], ["x", "y"], ["y", "y"]]
BLANK_A, BLANK_B = [0, 2, 0, 0, 1], [0, 0, 0, 0, 0]
EVERYTHING = Filters(max_non_concept_tokens=None, min_shared_tokens=None, min_correlation=None)


def reasons(
    filters: Filters, pairs=FEATURE_PAIRS, blank_a=BLANK_A, blank_b=BLANK_B, **tokens
) -> list[str]:
    filtered = filter_pairs(
        pairs,
        filters,
        **({"top_tokens_a": TOP_A, "top_tokens_b": TOP_B} | tokens),
        n_non_concept_a=blank_a,
        n_non_concept_b=blank_b,
    )
    pd.testing.assert_frame_equal(filtered[pairs.columns], pairs)
    assert filtered["kept"].dtype == bool
    assert (filtered["kept"] == (filtered["reason"] == "")).all()
    return filtered["reason"].tolist()


def test_without_filters_every_pair_is_kept():
    assert reasons(EVERYTHING) == [""] * 5


def test_a_pair_has_the_first_reason_that_applies_and_stays_in_the_table():
    expected = ["", "non_concept", "no_shared_token", "low_correlation", "non_concept"]
    assert reasons(Filters()) == expected


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ({"max_non_concept_tokens": 0}, ["", "non_concept", "", "", "non_concept"]),
        ({"max_non_concept_tokens": 1}, ["", "non_concept", "", "", ""]),
        ({"max_non_concept_tokens": 2}, [""] * 5),
        ({"min_shared_tokens": 0}, [""] * 5),
        ({"min_shared_tokens": 1}, ["", "", "no_shared_token", "", "no_shared_token"]),
        (
            {"min_shared_tokens": 2},
            ["no_shared_token", "", "no_shared_token", "no_shared_token", "no_shared_token"],
        ),
        ({"min_correlation": 0.1}, ["", "", "", "low_correlation", "low_correlation"]),
        ({"min_correlation": 0.05}, ["", "", "", "", "low_correlation"]),
        ({"min_correlation": -1.0}, [""] * 5),
    ],
)
def test_each_filter_alone_drops_what_it_names(only, expected):
    off = {"max_non_concept_tokens": None, "min_shared_tokens": None, "min_correlation": None}
    assert reasons(Filters(**(off | only))) == expected


def test_a_correlation_of_exactly_the_threshold_or_none_at_all_is_dropped():
    values = [0.1, np.nextafter(0.1, 1), np.nan, -0.5, 1.0]
    filters = Filters(max_non_concept_tokens=None, min_shared_tokens=None)
    kept = [reason == "" for reason in reasons(filters, FEATURE_PAIRS.assign(correlation=values))]
    assert kept == [False, True, False, False, True]


def test_either_features_non_concept_tokens_drop_a_pair():
    filters = Filters(min_shared_tokens=None, min_correlation=None)
    swapped = reasons(filters, blank_a=[0] * 5, blank_b=[1, 0, 0, 0, 0])
    assert swapped == ["", "", "", "", "non_concept"]  # B's feature 0 is in the last pair


def test_a_token_counts_once_however_often_it_is_on_top():
    filters = Filters(max_non_concept_tokens=None, min_shared_tokens=2, min_correlation=None)
    tokens = {"top_tokens_a": [["x"] * 5] * 5, "top_tokens_b": [["x"] * 5] * 5}
    assert reasons(filters, **tokens) == ["no_shared_token"] * 5


def test_filters_keep_the_order_and_index_of_pairs_and_accept_none():
    none = FEATURE_PAIRS.iloc[:0]
    filtered = filter_pairs(
        none,
        Filters(),
        top_tokens_a=TOP_A,
        top_tokens_b=TOP_B,
        n_non_concept_a=BLANK_A,
        n_non_concept_b=BLANK_B,
    )
    assert len(filtered) == 0
    assert {"kept", "reason"} <= set(filtered)
