"""A score never without its null: what every number of it says, and what is refused."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from saelign import Score, score
from saelign.errors import DegenerateError, ShapeError, UnknownNameError
from saelign.nulls import NULLS, draw_permutations, rate_strata
from saelign.scoring import MIN_PAIRS, check_rows, null_permutations, score_comparison
from saelign.similarity import MEASURES
from saelign.similarity.partners import partners_of


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Decompositions as small as these take longer on several cores than on one."""
    with threadpool_limits(1):
        yield


def rng_of(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def related_rows(seed: int = 0, n_pairs: int = 40, d_x: int = 8, d_y: int = 9) -> tuple:
    rng = rng_of(seed)
    shared = rng.normal(size=(n_pairs, 3))
    return tuple(
        shared @ rng.normal(size=(3, d)) + rng.normal(size=(n_pairs, d)) for d in (d_x, d_y)
    )


def score_of(null_scores, value: float, **changes) -> Score:
    null_scores = np.array(null_scores, dtype=float)
    return Score(
        **{
            "measure": "svcca",
            "null": "shuffle",
            "score": value,
            "null_scores": null_scores,
            "null_mean": float(null_scores.mean()),
            "null_sd": float(null_scores.std(ddof=1)),
            "exact": False,
            "n_pairs": 40,
            "n_partners": 40,
            "components": (3, 4),
        }
        | changes
    )


# The numbers.


@given(
    null_scores=st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.4]), min_size=2, max_size=30),
    value=st.sampled_from([0.0, 0.1, 0.25, 0.4, 0.9]),
)
def test_p_counts_the_shuffles_that_reach_the_score_and_the_score_itself(null_scores, value):
    scored = score_of(null_scores, value)
    reaching = sum(s >= value for s in null_scores)
    assert scored.n_reaching == reaching
    assert scored.p_value == (1 + reaching) / (1 + len(null_scores))
    assert 0 < scored.p_value <= 1
    assert scored.n_permutations == len(null_scores)


def test_a_shuffle_that_differs_by_rounding_alone_reaches_the_score():
    scored = score_of([0.5 - 1e-15, 0.5 - 1e-9, 0.2], 0.5)
    assert scored.n_reaching == 1


def test_z_and_the_calibrated_score_measure_the_distance_from_chance():
    scored = score_of([0.2, 0.4], 0.65)
    assert scored.z == pytest.approx((0.65 - 0.3) / np.std([0.2, 0.4], ddof=1))
    assert scored.calibrated == pytest.approx((0.65 - 0.3) / 0.7)
    assert score_of([0.2, 0.4], 1.0).calibrated == pytest.approx(1)
    assert score_of([0.2, 0.4], 0.3).calibrated == pytest.approx(0)
    assert score_of([0.2, 0.4], 0.1).calibrated < 0


def test_without_spread_there_is_no_z():
    assert np.isnan(score_of([0.5, 0.5], 0.5).z)
    assert np.isnan(score_of([0.5, 0.5 + 2e-16], 0.5).z)
    assert np.isnan(score_of([0.5, 0.5], 0.5, exact=True, null_sd=0.0).p_bound)


def test_where_chance_is_1_nothing_is_calibrated():
    assert np.isnan(score_of([1.0, 1.0], 1.0).calibrated)
    assert np.isnan(score_of([1.0, 1 - 1e-12], 1.0).calibrated)


def test_cantelli_bounds_p_only_where_no_shuffle_reached_and_moments_are_exact():
    null = {"null_mean": 0.0, "null_sd": 0.01}
    exact = score_of([0.0] * 9, 0.5, exact=True, **null)
    assert exact.z == pytest.approx(50)
    assert exact.p_bound == pytest.approx(1 / 2501)
    assert exact.p_value == exact.p_bound
    drawn = replace(exact, exact=False)
    assert np.isnan(drawn.p_bound)
    assert drawn.p_value == 0.1
    reached = replace(exact, null_scores=np.array([0.6] + [0.0] * 8))
    assert reached.p_value == 0.2
    weak = replace(exact, null_sd=0.4)  # the bound is 0.39, worse than what was drawn
    assert weak.p_value == 0.1


def test_a_score_below_chance_has_no_bound():
    below = score_of([0.0] * 9, -0.5, exact=True, null_mean=0.0, null_sd=0.01)
    assert np.isnan(below.p_bound)
    assert below.p_value == 1


def test_at_the_floor_more_shuffles_could_say_more():
    assert score_of([0.0, 0.1], 0.5).at_floor
    assert not score_of([0.0, 0.6], 0.5).at_floor
    bounded = score_of([0.0, 0.0], 0.5, exact=True, null_mean=0.0, null_sd=0.01)
    assert not bounded.at_floor
    assert replace(bounded, null_sd=1.0).at_floor


def test_cantellis_bound_holds_over_every_shuffle_of_few_pairs():
    rng = rng_of(0)
    x, y = rng.exponential(size=(2, 6, 2)) ** 2
    for measure in ("rsa", "cka", "svcca_r2", "mutual_knn"):
        options = {"svcca_r2": {"n_components": 1}, "mutual_knn": {"k": 2}}.get(measure, {})
        comparison = MEASURES[measure].compare(x, partners_of(y), **options)
        every = np.array(np.meshgrid(*[range(6)] * 6)).reshape(6, -1).T
        scores = comparison.shuffled(every[[len(set(s)) == 6 for s in every.tolist()]])
        mean, sd = comparison.exact_moments()
        for value in scores[scores > mean + 1e-9]:
            bound = 1 / (1 + ((value - mean) / sd) ** 2)
            assert (scores >= value - 1e-12).mean() <= bound + 1e-12


def test_the_number_of_components_is_that_of_the_smaller_side():
    assert score_of([0.0, 0.1], 0.5).n_components == 3
    assert score_of([0.0, 0.1], 0.5, components=None).n_components is None


# From rows to a score.


@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize("measure", MEASURES)
def test_a_score_is_the_measure_beside_the_measure_of_shuffled_rows(measure, null):
    x, y = related_rows()
    rates = rng_of(1).random(40)
    scored = score(
        x, y, measure=measure, null=null, n_permutations=30, rng=rng_of(7), firing_rates=rates
    )
    strata = rate_strata(rates) if null == "rate_matched" else None
    permutations = draw_permutations(40, 30, rng=rng_of(7), strata=strata)
    compute = MEASURES[measure].compute
    assert scored.score == pytest.approx(compute(x, y), abs=1e-9)
    expected = [compute(x, y[s]) for s in permutations]
    np.testing.assert_allclose(scored.null_scores, expected, rtol=0, atol=1e-9)
    assert (scored.measure, scored.null) == (measure, null)
    assert (scored.n_pairs, scored.n_partners, scored.n_permutations) == (40, 40, 30)
    with_moments = ("rsa", "cka", "svcca_r2", "mutual_knn")
    assert scored.exact == (null == "shuffle" and measure in with_moments)
    moments = MEASURES[measure].compare(x, partners_of(y)).exact_moments()
    if scored.exact:
        assert (scored.null_mean, scored.null_sd) == moments
    else:
        assert scored.null_mean == pytest.approx(np.mean(expected), abs=1e-9)
        assert scored.null_sd == pytest.approx(np.std(expected, ddof=1), abs=1e-9)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_same_generator_gives_the_same_score(measure):
    x, y = related_rows()
    first, again, other = (
        score(x, y, measure=measure, n_permutations=20, rng=rng_of(seed)) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first.null_scores, again.null_scores)
    assert (first.null_scores != other.null_scores).any()
    assert first.score == other.score


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("null", NULLS)
def test_a_model_against_itself_scores_1_and_no_shuffle_reaches_it(measure, null):
    x, _ = related_rows(n_pairs=60)
    x = np.vstack([x, rng_of(1).normal(size=x.shape)])
    scored = score(
        x, x, measure=measure, null=null, n_permutations=99, rng=rng_of(), firing_rates=x[:, 0]
    )
    assert scored.score == pytest.approx(1, abs=1e-9)
    assert scored.calibrated == pytest.approx(1, abs=1e-9)
    assert scored.n_reaching == 0
    assert scored.p_value <= 0.01


@pytest.mark.parametrize("measure", MEASURES)
def test_options_reach_the_measure(measure):
    x, y = related_rows(n_pairs=60)
    options = {
        "svcca": {"n_components": 2},
        "svcca_r2": {"variance": 0.7},
        "pwcca": {"n_components": 2},
        "rsa": {"inner": "pearson", "outer": "pearson"},
        "mutual_knn": {"k": 3},
    }.get(measure, {})
    scored = score(x, y, measure=measure, n_permutations=2, rng=rng_of(), **options)
    expected = MEASURES[measure].compute(x, y, **options)
    assert scored.score == pytest.approx(expected, abs=1e-9)
    if options:
        assert abs(expected - MEASURES[measure].compute(x, y)) > 1e-6


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_of_lower_precision_are_scored_in_float64(dtype):
    x, y = (rows.astype(dtype) for rows in related_rows())
    exact = [rows.astype(np.float64) for rows in (x, y)]
    for measure in MEASURES:
        low, high = (
            score(*rows, measure=measure, n_permutations=5, rng=rng_of())
            for rows in ((x, y), exact)
        )
        np.testing.assert_array_equal(low.null_scores, high.null_scores)
        assert low.score == high.score


# Repeated partners.


def grouped_rows(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs whose B features repeat, and how often each of these fires."""
    x, y = related_rows(seed, 40)
    rng = rng_of(seed)
    held = rng.permutation(np.concatenate([np.arange(25), rng.integers(25, size=15)]))
    return x, y[held], rng_of(seed + 1).random(40)[held]


@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize("measure", MEASURES)
def test_the_null_of_repeated_partners_relabels_whole_groups(measure, null):
    x, y, rates = grouped_rows()
    scored = score(
        x, y, measure=measure, null=null, n_permutations=10, rng=rng_of(7), firing_rates=rates
    )
    partners = partners_of(y)
    assert (scored.n_pairs, scored.n_partners, scored.exact) == (40, len(partners.rows), False)
    assert scored.n_partners < 40
    strata = None
    if null == "rate_matched":
        strata = rate_strata(np.array([rates[(y == row).all(axis=1)][0] for row in partners.rows]))
    permutations = draw_permutations(scored.n_partners, 10, rng=rng_of(7), strata=strata)
    compute = MEASURES[measure].compute
    expected = [compute(x, partners.rows[s][partners.held]) for s in permutations]
    np.testing.assert_allclose(scored.null_scores, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize("measure", MEASURES)
def test_one_to_many_has_the_null_of_many_to_one(measure, null):
    x, y, rates = grouped_rows()
    options = {"null": null, "n_permutations": 10, "firing_rates": rates}
    forth = score(x, y, measure=measure, rng=rng_of(7), **options)
    back = score(y, x, measure=measure, rng=rng_of(7), **options)
    assert back.score == pytest.approx(forth.score, abs=1e-9)
    np.testing.assert_allclose(back.null_scores, forth.null_scores, rtol=0, atol=1e-9)
    assert back.n_partners == forth.n_partners < back.n_pairs


@pytest.mark.parametrize("measure", ["svcca", "svcca_r2", "pwcca"])
def test_components_are_named_in_the_order_of_the_given_sides(measure):
    x, y, _ = grouped_rows()
    x = x * np.logspace(0, -1, 8)  # fewer components than y
    options = {"measure": measure, "variance": 0.6, "n_permutations": 2}
    k_x, k_y = score(x, y, rng=rng_of(), **options).components
    assert k_x != k_y
    assert score(y, x, rng=rng_of(), **options).components == (k_y, k_x)


@pytest.mark.parametrize("measure", [m for m in MEASURES if m != "pwcca"])
def test_swapping_one_to_one_rows_keeps_score_and_chance(measure):
    x, y = related_rows()
    forth = score(x, y, measure=measure, n_permutations=2, rng=rng_of())
    back = score(y, x, measure=measure, n_permutations=2, rng=rng_of())
    assert back.score == pytest.approx(forth.score, abs=1e-9)
    if forth.exact:
        assert back.null_mean == pytest.approx(forth.null_mean, abs=1e-12)
        assert back.null_sd == pytest.approx(forth.null_sd, rel=1e-9)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_null_that_cannot_move_is_the_score_itself_and_shows_nothing(measure):
    x, y = related_rows(n_pairs=12)
    partners = partners_of(y)
    scored = score_comparison(
        MEASURES[measure].compare(x, partners),
        partners,
        measure=measure,
        null="rate_matched",
        permutations=np.tile(np.arange(12), (19, 1)),
    )
    assert scored.p_value == 1
    assert np.isnan(scored.z)
    assert not scored.at_floor
    assert scored.calibrated == pytest.approx(0, abs=1e-9)


def test_measures_that_share_shuffles_say_the_same_as_alone():
    x, y = related_rows()
    partners = partners_of(y)
    permutations = null_permutations("shuffle", partners, None, n_permutations=20, rng=rng_of(5))
    for measure in MEASURES:
        shared = score_comparison(
            MEASURES[measure].compare(x, partners),
            partners,
            measure=measure,
            null="shuffle",
            permutations=permutations,
        )
        alone = score(x, y, measure=measure, n_permutations=20, rng=rng_of(5))
        np.testing.assert_array_equal(shared.null_scores, alone.null_scores)
        assert (shared.score, shared.p_value) == (alone.score, alone.p_value)


def test_pwcca_takes_its_weights_from_the_side_that_does_not_repeat():
    x, y, _ = grouped_rows()
    weighted_by_x = MEASURES["pwcca"].compute(x, y)
    assert abs(MEASURES["pwcca"].compute(y, x) - weighted_by_x) > 1e-4
    for sides in ((x, y), (y, x)):
        scored = score(*sides, measure="pwcca", n_permutations=2, rng=rng_of())
        assert scored.score == pytest.approx(weighted_by_x, abs=1e-9)


# What is refused.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"measure": "ckaa"},
            "unknown measure 'ckaa' (did you mean 'cka'?), expected one of: "
            "cka, mutual_knn, pc1, procrustes, pwcca, rsa, svcca, svcca_r2",
        ),
        (
            {"measure": "svcca", "n_component": 3},
            "unknown option of svcca 'n_component' (did you mean 'n_components'?), "
            "expected one of: n_components, variance",
        ),
        ({"measure": "rsa", "variance": 1}, "unknown option of rsa 'variance', expected one of: "),
        ({"measure": "cka", "inner": "cosine"}, "unknown option of cka 'inner', expected one of: "),
        (
            {"measure": "cka", "null": "shufle"},
            "unknown null 'shufle' (did you mean 'shuffle'?), "
            "expected one of: rate_matched, shuffle",
        ),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(options, words):
    with pytest.raises(UnknownNameError, match=re.escape(words)):
        score(*related_rows(), rng=rng_of(), **options)


@pytest.mark.parametrize(
    ("shape_x", "shape_y"), [((5, 3), (6, 3)), ((5, 3), (5,)), ((5,), (5,)), ((5, 3, 1), (5, 3))]
)
def test_rows_that_are_no_pairs_are_refused(shape_x, shape_y):
    words = f"rows must be matched pairs, got shapes {shape_x} and {shape_y}"
    with pytest.raises(ShapeError, match=re.escape(words)):
        check_rows(np.ones(shape_x), np.ones(shape_y))


@pytest.mark.parametrize("n_pairs", range(MIN_PAIRS))
def test_fewer_than_three_pairs_are_refused(n_pairs):
    x, y = related_rows()
    words = f"at least 3 pairs are needed to compare, got {n_pairs}: loosen the filters or use more"
    with pytest.raises(DegenerateError, match=words):
        score(x[:n_pairs], y[:n_pairs], measure="cka", rng=rng_of())


@pytest.mark.parametrize("measure", MEASURES)
def test_three_and_four_pairs_are_scored_or_refused_in_words(measure):
    for n_pairs in (3, 4):
        x, y = related_rows(n_pairs=n_pairs)
        refused = {
            # A fifth of so few pairs is no component at all.
            "svcca": f"got 0 for {n_pairs} pairs",
            "svcca_r2": f"got 0 for {n_pairs} pairs",
            "pwcca": f"got 0 for {n_pairs} pairs",
            "mutual_knn": f"k must be at most n_pairs - 2 = {n_pairs - 2}, got 10",
        }
        if measure in refused:
            with pytest.raises(DegenerateError, match=refused[measure]):
                score(x, y, measure=measure, n_permutations=5, rng=rng_of())
        else:
            scored = score(x, y, measure=measure, n_permutations=5, rng=rng_of())
            assert 0 < scored.p_value <= 1


@pytest.mark.parametrize("side", ["x", "y"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_named_with_its_row(side, bad):
    x, y = related_rows()
    (x if side == "x" else y)[7, 2] = bad
    with pytest.raises(DegenerateError, match=f"{side} must be finite, .* not in row 7"):
        score(x, y, measure="cka", rng=rng_of())


@pytest.mark.parametrize("side", ["x", "y"])
def test_rows_that_are_all_equal_are_refused(side):
    x, y = related_rows()
    (x if side == "x" else y)[:] = 0.5
    with pytest.raises(DegenerateError, match=f"rows must differ, all 40 rows of {side} are equal"):
        score(x, y, measure="cka", rng=rng_of())


@pytest.mark.parametrize("n_permutations", [-1, 0, 1])
def test_fewer_than_two_permutations_are_refused(n_permutations):
    with pytest.raises(DegenerateError, match=f"must be at least 2, got {n_permutations}"):
        score(*related_rows(), measure="cka", n_permutations=n_permutations, rng=rng_of())


@pytest.mark.parametrize("rates", [None, np.ones(39)])
def test_rate_matched_needs_the_firing_rates(rates):
    words = "the null rate_matched needs firing_rates, one for each pair's feature of B"
    with pytest.raises(DegenerateError, match=words):
        null_permutations(
            "rate_matched",
            partners_of(related_rows()[1]),
            rates,
            n_permutations=2,
            rng=rng_of(),
        )


@pytest.mark.parametrize("side", ["many_to_one", "one_to_many"])
def test_firing_rates_of_the_side_that_does_not_repeat_are_refused(side):
    x, y, _ = grouped_rows()
    x, y = (x, y) if side == "many_to_one" else (y, x)
    words = "firing_rates must be finite, and the same for pairs that share a feature: give those "
    for rates in (rng_of().random(40), np.full(40, np.nan)):
        with pytest.raises(DegenerateError, match=words + "of the side whose features repeat"):
            score(x, y, measure="cka", null="rate_matched", firing_rates=rates, rng=rng_of())


def test_numbers_may_be_numpys():
    x, y = related_rows()
    for options in ({"n_components": np.int64(3)}, {"variance": np.float64(0.5)}):
        assert score(x, y, measure="svcca", n_permutations=9, rng=rng_of(), **options).score > 0
