"""Planted truth judged: shared, one-sided, of one side only, unclear; and how often that errs."""

import itertools
from collections.abc import Mapping
from dataclasses import replace

import numba
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from saelign import Correlation, correlate, match
from saelign.cells import LayerPair, partners_found
from saelign.correlation import FeatureMoments, shifted_rows, split_documents
from saelign.judging import judge, replications
from saelign.layers import Layer, Reading, describe_layer, read_text_of_run
from saelign.matching import Filters
from saelign.nulls import SIGNIFICANCE, q_values
from saelign.text import Tokens
from saelign.verdicts import (
    MIN_CHANCE,
    MIN_DOCUMENTS,
    N_STRATA,
    VERDICTS,
    Evidence,
    best_partners,
    evidence_of,
    held_out_of_best,
    stratified_p,
    verdict_shares,
    verdicts_of,
)

N_DOCUMENTS, LENGTH = 120, 60
DOCUMENTS = np.repeat(np.arange(N_DOCUMENTS), LENGTH)
N_TOKENS = len(DOCUMENTS)
MIN_ACTIVE = 30


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Work as small as this takes longer on several cores than on one."""
    n_threads = numba.get_num_threads()
    numba.set_num_threads(1)
    with threadpool_limits(1):
        yield
    numba.set_num_threads(n_threads)


def codes(n_features: int, rng: np.random.Generator) -> np.ndarray:
    """Features that fire independently on 1 to 10 % of the tokens."""
    rates = np.exp(rng.uniform(np.log(0.01), np.log(0.1), size=n_features))
    fires = rng.random((N_TOKENS, n_features)) < rates
    return rng.exponential(size=fires.shape) * fires


def copies_of(acts: np.ndarray, rng: np.random.Generator, kept: float = 0.8) -> np.ndarray:
    """The same features through another SAE: some firings missed, some added, values not exact."""
    seen = rng.random(acts.shape) < kept
    added = rng.exponential(size=acts.shape) * (rng.random(acts.shape) < 0.003)
    return acts * seen * rng.uniform(0.7, 1.3, size=acts.shape) + added


def document_counts(acts: np.ndarray) -> np.ndarray:
    return np.array([len(set(DOCUMENTS[column != 0])) for column in acts.T])


def found_between(
    a: np.ndarray, b: np.ndarray, rng: np.random.Generator, n_shifts: int = 2
) -> tuple[Evidence, Evidence]:
    """What a study finds of two layers, straight from dense activations."""
    first = split_documents(DOCUMENTS, rng=rng)
    rows = [np.flatnonzero(first), np.flatnonzero(~first)]
    sides = [[sp.csr_array(acts[of_half]) for of_half in rows] for acts in (a, b)]
    shifted = []
    for _ in range(n_shifts):
        orders = [shifted_rows(DOCUMENTS[of_half], rng=rng) for of_half in rows]
        shifted.append(tuple(correlate(x, y[o]) for x, y, o in zip(*sides, orders, strict=True)))
    return evidence_of(
        correlate(a, b),
        tuple(correlate(x, y) for x, y in zip(*sides, strict=True)),
        iter(shifted),
        min_active_tokens=MIN_ACTIVE,
    )


# Planted truth.


@pytest.fixture(scope="module")
def half_shared() -> list[tuple[pd.DataFrame, np.ndarray]]:
    """Verdicts on both sides of models that share 40 of their 80 features; and each one's truth."""
    judged = []
    for rng in np.random.default_rng(0).spawn(10):
        a = codes(80, rng)
        order = rng.permutation(80)
        b = np.hstack([copies_of(a[:, :40], rng), codes(40, rng)])[:, order]
        truth_a = np.where(np.arange(80) < 40, np.argsort(order), -1)
        truth_b = np.where(order < 40, order, -1)
        for evidence, acts, truth in zip(
            found_between(a, b, rng), (a, b), (truth_a, truth_b), strict=True
        ):
            judged.append((verdicts_of({4: evidence}, document_counts(acts)), truth))
    return judged


def test_noisy_copies_are_shared_and_their_partner_is_the_copy(half_shared):
    for table, truth in half_shared:
        copies = table[truth >= 0]
        often = copies["n_documents"] >= MIN_DOCUMENTS
        assert (copies.loc[often, "verdict"] == "shared").all()
        assert copies.loc[often, "mutual"].all()
        np.testing.assert_array_equal(copies["best_feature"], truth[truth >= 0])
        assert copies["correlation"].min() > 0.4
        assert copies["held_out"].min() > 0.4


def test_features_without_counterpart_are_only_but_for_the_stated_share_of_findings(half_shared):
    verdicts = pd.concat([table["verdict"][truth < 0] for table, truth in half_shared])
    n_clear = (verdicts != "unclear").sum()
    n_wrong = verdicts.isin(["shared", "one_sided"]).sum()
    assert n_clear >= 780
    # At q < 0.05, half of the tests being of absent ones, 2.5 % of 40 findings a table are wrong.
    expected = 0.025 * 40 * len(half_shared)
    assert n_wrong <= scipy.stats.poisson.ppf(0.999, expected)
    assert n_wrong / n_clear < 0.05
    assert (verdicts == "only").sum() == n_clear - n_wrong


@pytest.fixture(scope="module")
def nothing_shared() -> list[dict[int, Evidence]]:
    """What is found of models that share nothing, at two layers of the other side."""
    judged = []
    for rng in np.random.default_rng(1).spawn(30):
        a, others = codes(100, rng), (codes(100, rng), codes(60, rng))
        judged.append({i: found_between(a, b, rng)[0] for i, b in enumerate(others)})
    return judged


def test_models_that_share_nothing_share_nothing(nothing_shared):
    n_features = np.full(100, N_DOCUMENTS)
    tables = [verdicts_of(evidence, n_features) for evidence in nothing_shared]
    n_with_any = sum((table["q"] < SIGNIFICANCE).any() for table in tables)
    assert n_with_any <= scipy.stats.binom.ppf(0.999, len(tables), SIGNIFICANCE)
    verdicts = pd.concat(tables)["verdict"].value_counts(normalize=True)
    assert verdicts["only"] > 0.97
    assert set(verdicts.index) <= {"only", "one_sided", "shared", "unclear"}


def test_p_values_are_uniform_where_nothing_is_shared(nothing_shared):
    p = np.concatenate([e.p_values() for found in nothing_shared for e in found.values()])
    p = p[~np.isnan(p)]
    assert len(p) > 5900
    for level in (0.02, 0.05, 0.1, 0.25, 0.5, 0.75):
        # Features share partners and rolls, so that they vary more than independent ones do.
        slack = 2 * 3.5 * np.sqrt(level * (1 - level) / len(p)) + 1 / MIN_CHANCE
        assert (p <= level).mean() == pytest.approx(level, abs=slack)


def test_a_feature_that_two_features_of_the_other_side_split_is_one_sided_for_one_of_them():
    rng = np.random.default_rng(2)
    a = codes(80, rng)
    for i in range(0, 20, 2):  # halves of ten features, the first of each the larger one
        whole = rng.exponential(size=N_TOKENS) * (rng.random(N_TOKENS) < 0.06)
        to_first = rng.random(N_TOKENS) < 0.65
        a[:, i], a[:, i + 1] = whole * to_first, whole * ~to_first
    b = np.hstack([a[:, 0:20:2] + a[:, 1:20:2], copies_of(a[:, 20:50], rng), codes(40, rng)])
    found = found_between(a, b, rng)
    of_a, of_b = (
        verdicts_of({0: evidence}, document_counts(acts))
        for evidence, acts in zip(found, (a, b), strict=True)
    )
    assert of_a["verdict"][:20].tolist() == ["shared", "one_sided"] * 10
    assert of_a["best_feature"][:20].tolist() == np.repeat(np.arange(10), 2).tolist()
    assert of_a["mutual"][:20].tolist() == [True, False] * 10
    assert (of_b["verdict"][:10] == "shared").all()
    assert of_b["best_feature"][:10].tolist() == list(range(0, 20, 2))


def test_features_that_fire_in_fewer_than_50_documents_are_unclear():
    rng = np.random.default_rng(3)
    a = codes(60, rng)
    for feature, n_documents in enumerate((MIN_DOCUMENTS - 1, MIN_DOCUMENTS)):
        a[:, feature] = 0
        for document in rng.choice(N_DOCUMENTS, size=n_documents, replace=False):
            tokens = rng.choice(LENGTH, size=2, replace=False) + LENGTH * document
            a[tokens, feature] = rng.exponential(size=2)
    a[:, 2] = 0  # dead
    a[:, 3] = np.arange(N_TOKENS) < MIN_ACTIVE - 1  # too few tokens to be paired, and documents
    evidence, _ = found_between(a, a, rng)
    table = verdicts_of({0: evidence}, document_counts(a))
    assert table["verdict"][:4].tolist() == ["unclear", "shared", "unclear", "unclear"]
    assert table["n_documents"][:3].tolist() == [49, 50, 0]
    assert (table["q"][:2] < SIGNIFICANCE).all()  # both are clearly there
    assert table["best_feature"][:4].tolist() == [0, 1, -1, -1]
    assert table.loc[2:3, ["correlation", "held_out", "p", "q"]].isna().all(axis=None)
    many = verdicts_of({0: evidence}, np.full(60, N_DOCUMENTS))
    assert many["verdict"][:4].tolist() == ["shared", "shared", "unclear", "unclear"]


def test_a_partner_at_any_layer_of_the_other_side_counts():
    rng = np.random.default_rng(4)
    a = codes(90, rng)
    others = {
        2: np.hstack([copies_of(a[:, :30], rng), codes(50, rng)]),
        5: codes(70, rng),
        9: np.hstack([codes(40, rng), copies_of(a[:, 30:60], rng)]),
    }
    evidence = {layer: found_between(a, b, rng)[0] for layer, b in others.items()}
    n_documents = document_counts(a)
    table = verdicts_of(evidence, n_documents)
    often = (n_documents >= MIN_DOCUMENTS)[:60]
    assert (table["verdict"][:60][often] == "shared").all()
    assert table["best_layer"][:60].tolist() == [2] * 30 + [9] * 30
    assert table["best_feature"][:60].tolist() == [*range(30), *range(40, 70)]
    assert (table["verdict"][60:] == "only").mean() > 0.9
    without = verdicts_of({5: evidence[5]}, n_documents)
    assert (without["verdict"] == "only").mean() > 0.9


def test_of_the_same_features_seen_again_next_to_none_is_missing():
    n_only = n_clear = 0
    for rng in np.random.default_rng(5).spawn(5):
        a = codes(80, rng)
        for evidence in found_between(a, copies_of(a, rng), rng):
            verdicts = verdicts_of({0: evidence}, document_counts(a))["verdict"]
            n_only += (verdicts == "only").sum()
            n_clear += (verdicts != "unclear").sum()
    assert n_clear > 750
    assert n_only <= 0.01 * n_clear


def test_a_few_shared_features_among_many_are_unclear_rather_than_missing():
    """5 of 100, where 200 chance values can show no fewer than 10."""
    rng = np.random.default_rng(6)
    a = codes(100, rng)
    b = np.hstack([copies_of(a[:, :5], rng), codes(95, rng)])
    few, _ = found_between(a, b, rng, n_shifts=2)
    table = verdicts_of({0: few}, np.full(100, N_DOCUMENTS))
    assert (table["q"] > SIGNIFICANCE).all()
    assert (table["verdict"][:5] == "unclear").all()
    assert (table["verdict"][5:] == "only").mean() > 0.95
    many, _ = found_between(a, b, rng, n_shifts=60)
    table = verdicts_of({0: many}, np.full(100, N_DOCUMENTS))
    assert (table["verdict"][:5] == "shared").all()
    assert (table["verdict"][5:] == "only").mean() > 0.95


# Best partners, and what they are worth on the other half.


def correlation_from(
    pearson: np.ndarray, n_active_a: np.ndarray, n_active_b: np.ndarray, similarity=None
) -> Correlation:
    return Correlation(
        metric="pearson",
        pearson=pearson,
        similarity=pearson if similarity is None else similarity,
        n_active_a=n_active_a,
        n_active_b=n_active_b,
        n_tokens=1000,
    )


@st.composite
def small_correlations(draw) -> Correlation:
    """Some features silent, some rare, and values that tie."""
    n_a, n_b = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_active = [rng.choice([0, 14, 15, 16, 99], size=n) for n in (n_a, n_b)]
    pearson = rng.integers(-9, 10, size=(n_a, n_b)) / 9
    constant = [(active == 0) | (rng.random(len(active)) < 0.2) for active in n_active]
    pearson[constant[0]], pearson[:, constant[1]] = np.nan, np.nan
    return correlation_from(pearson, *n_active)


def naive_best(pearson: np.ndarray, n_active_a, n_active_b, enough: int) -> list[int]:
    """By loops: of each feature of A the first best one of B, -1 where either does not count."""
    found = []
    for a, row in enumerate(pearson):
        partner = -1
        for b, r in enumerate(row):
            if n_active_a[a] < enough or n_active_b[b] < enough or np.isnan(r):
                continue
            if partner < 0 or r > row[partner]:
                partner = b
        found.append(partner)
    return found


def naive_partners(correlation: Correlation, enough: int) -> tuple[list[int], list[int]]:
    r, n_a, n_b = correlation.pearson, correlation.n_active_a, correlation.n_active_b
    return naive_best(r, n_a, n_b, enough), naive_best(r.T, n_b, n_a, enough)


@given(correlation=small_correlations(), enough=st.sampled_from([0, 15, 100]))
def test_best_partners_are_those_of_plain_loops(correlation, enough):
    expected = naive_partners(correlation, enough)
    for found, wanted in zip(best_partners(correlation, enough), expected, strict=True):
        assert found.tolist() == wanted


def test_best_partners_are_those_of_many_to_one_matching():
    rng = np.random.default_rng(0)
    correlation = correlate(codes(30, rng), codes(40, rng))
    best_a, best_b = best_partners(correlation, 100)
    forth = match(correlation, how="many_to_one", min_active_tokens=100)
    back = match(correlation, how="one_to_many", min_active_tokens=100)
    assert best_a[forth["feature_a"]].tolist() == forth["feature_b"].tolist()
    assert best_b[back["feature_b"]].tolist() == back["feature_a"].tolist()
    assert (best_a >= 0).sum() == len(forth)
    assert (best_b >= 0).sum() == len(back)


def test_partners_go_by_pearson_whatever_else_was_matched_by():
    rng = np.random.default_rng(0)
    plain = correlate(codes(10, rng), codes(9, rng))
    other = rng.uniform(size=plain.pearson.shape)
    other[3], other[:, 4] = np.nan, np.nan  # functions of the token, within tokens
    for found, wanted in zip(
        best_partners(replace(plain, similarity=other), 30), best_partners(plain, 30), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


@st.composite
def halves(draw) -> tuple[Correlation, Correlation]:
    """Correlations of the same features over two halves."""
    first = draw(small_correlations())
    n_a, n_b = first.pearson.shape
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pearson = rng.integers(-9, 10, size=(n_a, n_b)) / 9
    pearson[rng.random(n_a) < 0.2] = np.nan
    pearson[:, rng.random(n_b) < 0.2] = np.nan
    n_active = [rng.choice([0, 14, 15, 16, 99], size=n) for n in (n_a, n_b)]
    return first, correlation_from(pearson, *n_active)


@given(both=halves(), enough=st.sampled_from([0, 15, 100]))
def test_the_held_out_correlation_is_that_of_plain_loops(both, enough):
    for side, found in enumerate(held_out_of_best(both, enough)):
        for feature, value in enumerate(found):
            ways = []
            for chosen_on, read_on in (both, both[::-1]):
                partner = naive_partners(chosen_on, enough)[side][feature]
                pair = (feature, partner) if side == 0 else (partner, feature)
                if partner >= 0 and not np.isnan(read_on.pearson[pair]):
                    ways.append(read_on.pearson[pair])
            if ways:
                assert value == pytest.approx(np.mean(ways), abs=1e-12)
            else:
                assert np.isnan(value)


def test_evidence_tells_the_partners_and_swapping_the_sides_swaps_it():
    rng = np.random.default_rng(0)
    a = codes(20, rng)
    a[:, 3] = 0
    b = np.hstack([copies_of(a[:, 8:], rng), codes(13, rng)])
    of_a, of_b = found_between(a, b, np.random.default_rng(1), n_shifts=3)
    swapped = found_between(b, a, np.random.default_rng(1), n_shifts=0)[::-1]
    whole = correlate(a, b)
    best = best_partners(whole, MIN_ACTIVE)
    for side, (evidence, acts) in enumerate(((of_a, a), (of_b, b))):
        partner, back = best[side], best[1 - side]
        np.testing.assert_array_equal(evidence.partner, partner)
        np.testing.assert_array_equal(evidence.n_active, (acts != 0).sum(axis=0))
        assert evidence.null_held_out.shape == (3, acts.shape[1])
        for feature, other in enumerate(partner):
            if other < 0:
                assert np.isnan(evidence.correlation[feature])
                assert not evidence.mutual[feature]
                continue
            pair = (feature, other) if side == 0 else (other, feature)
            assert evidence.correlation[feature] == whole.pearson[pair]
            assert evidence.mutual[feature] == (back[other] == feature)
        for name in ("partner", "correlation", "mutual", "held_out", "n_active"):
            np.testing.assert_allclose(
                getattr(evidence, name), getattr(swapped[side], name), rtol=0, atol=1e-12
            )
        assert not np.isclose(evidence.null_held_out, evidence.held_out).any()
    assert of_a.partner[3] == -1
    assert of_a.partner[8:].tolist() == list(range(12))


def test_half_as_many_active_tokens_are_enough_in_a_half():
    pearson = np.array([[0.9, 0.2], [0.1, 0.8]])
    counts = np.array([15, 15])
    half = correlation_from(pearson, counts, counts)
    whole = correlation_from(pearson, 2 * counts, 2 * counts)
    for needed, there in ((29, True), (30, True), (31, False)):
        evidence, _ = evidence_of(whole, (half, half), [], min_active_tokens=needed)
        assert (~np.isnan(evidence.held_out)).all() == there
        assert (evidence.partner >= 0).all() == there
        assert np.isnan(evidence.p_values()).all()  # nothing was rolled


# Against chance.


def test_p_counts_the_chance_values_that_reach_a_value_itself_and_ties_among_them():
    null = np.array([[0.1, 0.2, np.nan], [0.3, np.nan, 0.2]])
    values = np.array([0.0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.31, np.nan])
    p = stratified_p(values, np.full(8, 5), null, np.full(3, 5))
    np.testing.assert_allclose(p[:-1], np.array([5, 5, 4, 4, 2, 2, 1]) / 5)
    assert np.isnan(p[-1])


@pytest.mark.parametrize("null", [np.full((2, 3), np.nan), np.zeros((0, 3)), np.zeros((2, 0))])
def test_without_chance_there_is_no_p(null):
    p = stratified_p(np.ones(4), np.arange(4), null, np.arange(null.shape[1]))
    assert np.isnan(p).all()


def test_features_are_held_against_those_that_fire_as_often():
    n_each = MIN_CHANCE
    n_active = np.repeat([40, 300, 5000], n_each)
    null = np.concatenate([np.arange(n_each) + start for start in (0, 1000, 2000)]).astype(float)
    values = np.repeat([np.inf, 1000.0, -1.0], 3)
    often = np.tile([40, 300, 5000], 3)
    expected = [1, 1, 1, 1, n_each + 1, n_each + 1, *[n_each + 1] * 3]
    p = stratified_p(values, often, null[None, :], n_active)
    np.testing.assert_allclose(p, np.array(expected) / (n_each + 1))


def test_strata_are_tenths_unless_a_tenth_holds_too_few_chance_values():
    rng = np.random.default_rng(0)
    for n_chance, n_strata in (
        (1, 1),
        (2 * MIN_CHANCE - 1, 1),
        (2 * MIN_CHANCE, 2),
        (5 * MIN_CHANCE + 3, 5),
        (50 * MIN_CHANCE, N_STRATA),
    ):
        null, n_active = rng.random((1, n_chance)), np.arange(n_chance)
        lowest = stratified_p(np.full(n_chance, np.inf), n_active, null, n_active)
        sizes = np.round(1 / lowest) - 1
        assert np.sum(1 / sizes) == pytest.approx(n_strata)
        np.testing.assert_allclose(sizes, n_chance / n_strata, atol=1.01)


@given(
    n_active=st.lists(st.sampled_from([2, 5, 9]), min_size=1, max_size=40),
    others=st.lists(st.integers(0, 11), min_size=1, max_size=20),
    silent=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 1000),
)
def test_however_often_a_feature_fires_there_is_chance_enough_to_hold_it_against(
    n_active, others, silent, seed
):
    rng = np.random.default_rng(seed)
    null = rng.normal(size=(MIN_CHANCE, len(n_active)))
    null[:, rng.random(len(n_active)) < silent] = np.nan
    p = stratified_p(np.full(len(others), np.inf), np.array(others), null, np.array(n_active))
    if np.isnan(null).all():
        assert np.isnan(p).all()
    else:
        assert (p <= 1 / (1 + MIN_CHANCE)).all()


def test_p_values_of_independent_values_are_uniform_in_every_stratum():
    rng = np.random.default_rng(0)
    n_active = rng.integers(30, 3000, size=4000)
    scale = 100 / n_active
    values, *null = rng.gamma(2, size=(6, 4000)) * scale
    p = stratified_p(values, n_active, np.array(null), n_active)
    tenths = np.quantile(n_active, np.arange(11) / 10)
    p -= rng.random(4000) / 2001
    for low, high in itertools.pairwise(tenths):
        of_stratum = p[(n_active >= low) & (n_active < high)]
        assert scipy.stats.kstest(of_stratum, "uniform").pvalue > 0.001


def test_rare_features_scatter_more_and_are_not_taken_for_shared_because_of_it():
    rng = np.random.default_rng(0)
    n_active = np.repeat([40, 2000], 1000)
    scale = np.repeat([1.0, 0.1], 1000)
    values, *null = rng.normal(size=(11, 2000)) * scale
    null = np.array(null)
    p = stratified_p(values, n_active, null, n_active)
    unstratified = stratified_p(values, 0 * n_active, null, 0 * n_active)
    for of_kind, wrong in ((n_active == 40, 0.095), (n_active == 2000, 0.0)):
        assert (p[of_kind] <= 0.05).mean() == pytest.approx(0.05, abs=0.025)
        assert (unstratified[of_kind] <= 0.05).mean() == pytest.approx(wrong, abs=0.03)


# Verdicts, by hand.


def evidence_by_hand(held_out: list[float], mutual: list[bool], **changes) -> Evidence:
    """Features that fire alike; chance has 999 values below 0.1, the same for all."""
    n = len(held_out)
    values = {
        "partner": np.arange(n) + 10,
        "correlation": np.linspace(0.5, 0.6, n),
        "mutual": np.array(mutual),
        "held_out": np.array(held_out),
        "null_held_out": np.resize(np.linspace(0, 0.1, 999), (999, 1)) * np.ones((1, n)),
        "n_active": np.full(n, 100),
    }
    return Evidence(**(values | changes))


def test_the_partner_told_is_the_mutual_one_above_chance_else_one_above_chance_else_the_best():
    nan, yes, no = np.nan, True, False
    evidence = {
        8: evidence_by_hand([0.2, 0.9, 0.05, nan, 0.05, nan], [yes, no, yes, yes, yes, yes]),
        1: evidence_by_hand([0.9, 0.3, 0.04, 0.7, 0.06, nan], [no, no, yes, no, yes, yes]),
        6: evidence_by_hand([0.3, 0.01, 0.9, nan, nan, nan], [yes, yes, no, no, yes, yes]),
    }
    table = verdicts_of(evidence, np.array([60, 60, 60, 60, 60, 60]))
    expected = ["shared", "one_sided", "one_sided", "one_sided", "only", "unclear"]
    assert table["verdict"].tolist() == expected
    assert table["best_layer"].tolist()[:5] == [6, 8, 6, 1, 1]
    assert table["held_out"].tolist()[:5] == [0.3, 0.9, 0.9, 0.7, 0.06]
    assert table["mutual"].tolist()[:5] == [True, False, False, False, True]
    assert table["best_feature"].tolist() == [10, 11, 12, 13, 14, 15]
    assert table.loc[5, ["held_out", "p", "q"]].isna().all()
    assert table["feature"].tolist() == list(range(6))
    assert list(table.columns) == [
        "feature", "verdict", "n_documents", "best_layer", "best_feature", "correlation",
        "held_out", "p", "q", "mutual",
    ]  # fmt: skip


def test_a_partner_above_chance_is_told_before_a_higher_one_that_is_not():
    low, high = evidence_by_hand([0.3] * 3, [False] * 3), evidence_by_hand([0.5] * 3, [True] * 3)
    high = replace(high, null_held_out=high.null_held_out * 10)  # chance goes up to 1 there
    table = verdicts_of({0: high, 1: low}, np.full(3, 60))
    assert (table["verdict"] == "one_sided").all()
    assert (table["best_layer"] == 1).all()
    assert (table["q"] < SIGNIFICANCE).all()


def test_q_is_over_all_features_and_all_layers_compared():
    rng = np.random.default_rng(0)
    evidence = {
        layer: evidence_by_hand(rng.uniform(0, 0.12, size=40).tolist(), [True] * 40)
        for layer in (0, 3, 4)
    }
    evidence[3].held_out[5:9] = np.nan
    p = np.array([of_layer.p_values() for of_layer in evidence.values()])
    q = q_values(p.ravel()).reshape(p.shape)
    table = verdicts_of(evidence, np.full(40, 60))
    rows = [list(evidence).index(layer) for layer in table["best_layer"]]
    np.testing.assert_array_equal(table["p"], p[rows, range(40)])
    np.testing.assert_array_equal(table["q"], q[rows, range(40)])
    assert ((table["verdict"] == "shared") == (q < SIGNIFICANCE).any(axis=0)).all()
    assert set(table["verdict"]) == {"shared", "only"}


# Shares.


def judged_table(**columns) -> pd.DataFrame:
    return pd.DataFrame(
        {"control": "trained", "run": 0, "model": "a", "against": "other", "layer": 3} | columns
    )


def test_shares_are_of_all_features_of_a_layer_and_sum_to_1():
    rng = np.random.default_rng(0)
    tables = [
        judged_table(
            model=model,
            layer=layer,
            run=run,
            verdict=rng.choice(VERDICTS[:n], size=n_features),
            replicated=pd.array(rng.choice([True, False, None], size=n_features), dtype="boolean"),
        )
        for run, model, layer, n, n_features in (
            (0, "a", 1, 4, 300), (0, "b", 7, 2, 50), (1, "a", 1, 3, 20), (1, "b", 7, 1, 1),
        )
    ]  # fmt: skip
    shares = verdict_shares(pd.concat(tables, ignore_index=True))
    assert list(shares.columns) == [
        "control", "run", "model", "against", "layer", *VERDICTS, "n_features", "only_replicated",
    ]  # fmt: skip
    np.testing.assert_allclose(shares[list(VERDICTS)].sum(axis=1), 1)
    assert shares["n_features"].tolist() == [300, 50, 20, 1]
    for table, row in zip(tables, shares.itertuples(), strict=True):
        for verdict in VERDICTS:
            assert getattr(row, verdict) == pytest.approx((table["verdict"] == verdict).mean())
        of_only = table.loc[table["verdict"] == "only", "replicated"].dropna()
        if len(of_only):
            assert row.only_replicated == pytest.approx(of_only.astype(float).mean())
        else:
            assert np.isnan(row.only_replicated)


@pytest.mark.parametrize("dtype", ["boolean", object])
def test_without_a_known_counterpart_there_is_no_replicated_share(dtype):
    table = judged_table(verdict=["only", "shared"], replicated=pd.array([pd.NA] * 2, dtype=dtype))
    shares = verdict_shares(table)
    assert len(shares) == 1
    assert shares["only_replicated"].isna().all()
    assert shares["only"].tolist() == [0.5]
    assert len(verdict_shares(table.iloc[:0])) == 0
    assert shares["only_replicated"].dtype == np.float64


# A whole run.


def text() -> Reading:
    """Each document in one context of its own, after a position that is not kept."""
    rng = np.random.default_rng(0)
    input_ids = rng.integers(1, 30, size=(N_DOCUMENTS, LENGTH + 1)).astype(np.int32)
    attended = np.ones(input_ids.shape, dtype=bool)
    kept = attended.copy()
    kept[:, 0] = False
    tokens = Tokens(
        input_ids=input_ids,
        attended=attended,
        kept=kept,
        document=np.arange(N_DOCUMENTS, dtype=np.int32),
    )
    rng_halves, rng_shifts = np.random.default_rng(1).spawn(2)
    strings = {i: f" w{i}" for i in range(30)}
    return read_text_of_run(tokens, strings, rng_halves=rng_halves, rng_shifts=rng_shifts)


READING = text()


def layer_of(acts: np.ndarray, number: int) -> Layer:
    return describe_layer(
        sp.csr_array(acts),
        np.eye(acts.shape[1], 4),
        READING,
        Filters(min_active_tokens=MIN_ACTIVE),
        layer=number,
    )


def pair_found(a: Layer, b: Layer) -> tuple[Evidence, Evidence]:
    pair = LayerPair(a=a, b=b, reading=READING)
    return partners_found(pair, *pair.correlations("pearson"), MIN_ACTIVE)


def all_found(
    a: Mapping[int, Layer], b: Mapping[int, Layer]
) -> dict[tuple[int, int], tuple[Evidence, Evidence]]:
    return {(i, j): pair_found(x, y) for i, x in a.items() for j, y in b.items()}


SHARED, ABSENT, MISSED, ALONE = (slice(0, 40), slice(40, 55), slice(55, 65), slice(65, 80))
"""Features of A: B has them; B lacks them; B has what the second SAE takes them for; the second SAE
lacks them as well."""


@pytest.fixture(scope="module")
def world() -> dict[str, dict[int, Layer]]:
    """Two models of one and two layers, A and B seen through a second SAE, and twins of both."""
    rng = np.random.default_rng(7)
    a = codes(80, rng)
    hidden = codes(10, rng)  # what B has beside it, and A's second SAE mixes into its features
    second = np.hstack(
        [
            copies_of(a[:, SHARED], rng),
            copies_of(a[:, ABSENT], rng),
            copies_of(a[:, MISSED], rng) + copies_of(hidden, rng),
            codes(15, rng),
        ]
    )
    b = {
        number: np.hstack([copies_of(a[:, SHARED], rng), codes(25, rng), copies_of(some, rng)])
        for number, some in ((2, hidden[:, :5]), (6, hidden[:, 5:]))
    }
    second_b = {
        number: np.hstack([codes(5, rng), copies_of(acts, rng)]) for number, acts in b.items()
    }
    order = rng.permutation(80)
    return {
        "a": {3: layer_of(a, 3)},
        "b": {number: layer_of(acts, number) for number, acts in b.items()},
        "a_seed": {3: layer_of(second[:, order], 3)},
        "b_seed": {number: layer_of(acts, number) for number, acts in second_b.items()},
        "a_untrained": {3: layer_of(codes(50, rng), 3)},
        "b_untrained": {number: layer_of(codes(60, rng), number) for number in b},
    }


@pytest.fixture(scope="module")
def evidence(world) -> dict[str, dict[tuple[int, int], tuple[Evidence, Evidence]]]:
    return {
        "trained": all_found(world["a"], world["b"]),
        "untrained": all_found(world["a_untrained"], world["b_untrained"]),
        "document_shift": {},
        "seed_a": all_found(world["a"], world["a_seed"]),
        "seed_b": all_found(world["b"], world["b_seed"]),
    }


@pytest.fixture(scope="module")
def verdicts(world, evidence) -> pd.DataFrame:
    tables = judge(evidence, world, min_active_tokens=MIN_ACTIVE)
    return pd.concat(tables, ignore_index=True)


def of(verdicts: pd.DataFrame, **where) -> pd.DataFrame:
    for column, wanted in where.items():
        verdicts = verdicts[verdicts[column] == wanted]
    return verdicts.reset_index(drop=True)


def test_every_layer_of_every_side_has_a_verdict_on_each_of_its_features(world, verdicts):
    expected = {
        ("trained", "a", "other", 3): 80,
        ("trained", "b", "other", 2): 70,
        ("trained", "b", "other", 6): 70,
        ("untrained", "a", "other", 3): 50,
        ("untrained", "b", "other", 2): 60,
        ("untrained", "b", "other", 6): 60,
        ("trained", "a", "decoy", 3): 80,
        ("trained", "b", "decoy", 2): 70,
        ("trained", "b", "decoy", 6): 70,
    }
    by = ["control", "model", "against", "layer"]
    assert verdicts.groupby(by).size().to_dict() == expected
    for (control, model, _, layer), table in verdicts.groupby(by):
        side = f"{model}_untrained" if control == "untrained" else model
        features = world[side][layer].features
        assert table["n_documents"].tolist() == features["n_documents"].tolist()
        assert table["feature"].tolist() == features["feature"].tolist()
    assert verdicts["replicated"].dtype == "boolean"


def test_each_verdict_is_that_of_its_layer_against_all_layers_of_the_other_side(evidence, verdicts):
    cells = evidence["trained"]
    columns = ["verdict", "best_layer", "best_feature", "correlation", "held_out", "p", "q"]
    of_a = of(verdicts, control="trained", against="other", model="a")
    expected = verdicts_of({j: cells[3, j][0] for j in (2, 6)}, of_a["n_documents"].to_numpy())
    pd.testing.assert_frame_equal(of_a[columns], expected[columns])
    of_b = of(verdicts, control="trained", against="other", model="b", layer=6)
    expected = verdicts_of({3: cells[3, 6][1]}, of_b["n_documents"].to_numpy())
    pd.testing.assert_frame_equal(of_b[columns], expected[columns])
    decoy = of(verdicts, against="decoy", model="b", layer=2)
    cells = evidence["seed_b"]
    expected = verdicts_of({j: cells[2, j][0] for j in (2, 6)}, decoy["n_documents"].to_numpy())
    pd.testing.assert_frame_equal(decoy[columns], expected[columns])


def test_decoys_lack_only_what_the_second_sae_lacks_and_twins_share_nothing(verdicts):
    decoy = of(verdicts, against="decoy", model="a")["verdict"]
    assert (decoy[: ALONE.start] == "only").sum() == 0
    assert (decoy[ALONE] == "only").sum() >= 13
    for layer in (2, 6):
        assert (of(verdicts, against="decoy", model="b", layer=layer)["verdict"] != "only").all()
    twins = of(verdicts, control="untrained")["verdict"]
    assert twins.isin(["only", "unclear"]).mean() > 0.97
    assert (twins == "only").mean() > 0.9


def test_what_is_missing_is_replicated_if_the_second_sae_has_it_and_misses_it_too(verdicts):
    table = of(verdicts, control="trained", against="other", model="a")
    verdict, replicated = table["verdict"], table["replicated"]
    is_only = (verdict == "only").to_numpy()
    assert (verdict[SHARED] == "shared").mean() > 0.9
    assert is_only[ABSENT].sum() >= 12
    assert is_only[MISSED].sum() >= 7
    assert is_only[ALONE].sum() >= 12
    clear = (table["n_documents"] >= MIN_DOCUMENTS).to_numpy()
    absent, missed = (replicated[part][(is_only & clear)[part]] for part in (ABSENT, MISSED))
    assert absent.notna().all()
    assert absent.sum() >= len(absent) - 1
    assert missed.notna().all()
    assert not missed.any()
    assert replicated[ALONE].notna().sum() <= 1  # mutual best by chance is no counterpart
    assert replicated[~is_only].isna().all()


def test_nothing_but_the_studys_own_comparison_can_be_replicated(world, evidence, verdicts):
    own = (verdicts["control"] == "trained") & (verdicts["against"] == "other")
    assert verdicts.loc[~own, "replicated"].isna().all()
    without = {key: cells for key, cells in evidence.items() if key != "seed_a"}
    tables = pd.concat(judge(without, world, min_active_tokens=MIN_ACTIVE))
    assert of(tables, model="a")["replicated"].isna().all()
    assert of(tables, model="b", control="trained")["replicated"].notna().any()
    assert not (tables["against"] == "decoy")[(tables["model"] == "a").to_numpy()].any()


def test_a_counterpart_is_held_against_all_layers_as_strictly_as_the_features_were(
    world, evidence, verdicts
):
    table = of(verdicts, control="trained", against="other", model="a")
    own, second = evidence["seed_a"][3, 3][0], world["a_seed"][3]
    cells = {j: evidence["trained"][3, j][0] for j in (2, 6)}
    p = np.array([of_layer.p_values() for of_layer in cells.values()])
    q = q_values(p.ravel()).reshape(p.shape)
    lowest = np.min(
        [
            stratified_p(
                pair_found(second, world["b"][j])[0].held_out,
                second.features["n_active"].to_numpy(),
                of_layer.null_held_out,
                of_layer.n_active,
            )
            for j, of_layer in cells.items()
        ],
        axis=0,
    )
    known = np.flatnonzero(table["replicated"].notna())
    assert len(known) > 20
    found = (lowest <= p[q < SIGNIFICANCE].max())[own.partner[known]]
    assert table["replicated"][known].tolist() == (~found).tolist()


def replicated_through(second: Layer, own: Evidence, world, evidence, verdicts) -> pd.Series:
    """`replicated` of the features of A, had they these counterparts in this second SAE."""
    found = replications(
        of(verdicts, control="trained", against="other", model="a"),
        {j: evidence["trained"][3, j][0] for j in (2, 6)},
        own,
        second,
        world["b"],
        min_active_tokens=MIN_ACTIVE,
    )
    return pd.Series(found)


def test_a_mutual_best_that_is_not_above_chance_is_no_counterpart(world, evidence, verdicts):
    own, second = evidence["seed_a"][3, 3][0], world["a_seed"][3]
    held_out = own.held_out.copy()
    held_out[ABSENT] = 0.0
    others = (world, evidence, verdicts)
    found = replicated_through(second, replace(own, held_out=held_out), *others)
    assert found[ABSENT].isna().all()
    assert found[MISSED].notna().any()
    one_sided = replace(own, mutual=np.zeros(80, dtype=bool))
    assert replicated_through(second, one_sided, *others).isna().all()


def test_a_counterpart_too_rare_to_be_judged_tells_nothing(world, evidence, verdicts):
    own, second = evidence["seed_a"][3, 3][0], world["a_seed"][3]
    features = second.features.assign(n_documents=MIN_DOCUMENTS - 1)
    in_few = replace(second, features=features)
    halves = [
        replace(
            half,
            columns=replace(half.columns, stops=half.columns.starts),
            moments=FeatureMoments.of(sp.csr_array(half.by_token.shape)),
        )
        for half in second.halves
    ]
    silent = replace(second, halves=(halves[0], halves[1]))
    for layer in (in_few, silent):
        assert replicated_through(layer, own, world, evidence, verdicts).isna().all()
