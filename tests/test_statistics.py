"""Levels where there is nothing to find, and planted truth found again."""

from collections.abc import Callable

import numba
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scipy.stats
from threadpoolctl import threadpool_limits

from saelign import Score, correlate, match, score
from saelign.matching import MATCHINGS
from saelign.nulls import NULLS
from saelign.scoring import null_permutations, score_comparison
from saelign.similarity import MEASURES
from saelign.similarity.partners import Partners, partners_of

LEVEL = 0.05
D_A, D_B = 12, 9


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Work as small as this takes longer on several cores than on one."""
    n_threads = numba.get_num_threads()
    numba.set_num_threads(1)
    with threadpool_limits(1):
        yield
    numba.set_num_threads(n_threads)


def unit_rows(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def sparse_acts(n_tokens: int, rates: np.ndarray, rng: np.random.Generator) -> sp.csr_array:
    """Features that fire independently, each at its own rate."""
    fires = rng.random((n_tokens, len(rates))) < rates
    return sp.csr_array(rng.exponential(size=fires.shape) * fires)


def scores_of(
    x: np.ndarray,
    partners: Partners,
    rates: np.ndarray,
    *,
    rng: np.random.Generator,
    measures: tuple[str, ...] = tuple(MEASURES),
    nulls: tuple[str, ...] = NULLS,
    n_permutations: int = 99,
) -> dict[tuple[str, str], Score]:
    """Every measure beside every null, the shuffles shared, as a study does it."""
    permutations = {
        null: null_permutations(null, partners, rates, n_permutations=n_permutations, rng=rng)
        for null in nulls
    }
    scored = {}
    for measure in measures:
        comparison = MEASURES[measure].compare(x, partners)
        for null in nulls:
            scored[measure, null] = score_comparison(
                comparison,
                partners,
                measure=measure,
                null=null,
                permutations=permutations[null],
            )
    return scored


def repeat(study: Callable, n_repeats: int, seed: int) -> dict[tuple[str, str], list[Score]]:
    """The scores of many independent studies, by measure and null."""
    results: dict[tuple[str, str], list[Score]] = {}
    for rng in np.random.default_rng(seed).spawn(n_repeats):
        for key, scored in study(rng).items():
            results.setdefault(key, []).append(scored)
    return results


def n_rejected(scores: list[Score]) -> int:
    return sum(scored.p_value <= LEVEL for scored in scores)


def most_by_chance(n_repeats: int) -> int:
    """Rejections that a test of that level exceeds once in a thousand times."""
    return int(scipy.stats.binom.ppf(0.999, n_repeats, LEVEL))


# Nothing to find.


def independent_saes(rng: np.random.Generator) -> dict[tuple[str, str], Score]:
    """Activations and decoders of two models that share nothing, matched one to one."""
    n_tokens, n_features = 300, 36
    rates = [rng.uniform(0.05, 0.5, size=n_features) for _ in "ab"]
    acts = [sparse_acts(n_tokens, r, rng) for r in rates]
    decoders = [unit_rows(rng.normal(size=(n_features, d))) for d in (D_A, D_B)]
    pairs = match(correlate(*acts), min_active_tokens=5)
    firing = np.diff(acts[1].tocsc().indptr) / n_tokens
    x, y = decoders[0][pairs["feature_a"]], decoders[1][pairs["feature_b"]]
    return scores_of(x, partners_of(y), firing[pairs["feature_b"]], rng=rng)


@pytest.fixture(scope="module")
def scores_of_independent_saes() -> dict[tuple[str, str], list[Score]]:
    return repeat(independent_saes, 300, seed=0)


@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize("measure", MEASURES)
def test_p_is_uniform_when_models_share_nothing(measure, null, scores_of_independent_saes):
    scores = scores_of_independent_saes[measure, null]
    drawn = np.array([(1 + s.n_reaching) / (1 + s.n_permutations) for s in scores])
    # Spread evenly within their steps, p-values of so many shuffles are uniform exactly. A step is
    # higher where shuffles tie with the score, as fractions of shared neighbours do.
    tied = np.array([(np.abs(s.null_scores - s.score) < 1e-12).sum() for s in scores])
    drawn -= (
        np.random.default_rng(1).random(len(drawn)) * (1 + tied) / (1 + scores[0].n_permutations)
    )
    assert scipy.stats.kstest(drawn, "uniform").pvalue > 0.01
    assert n_rejected(scores) <= most_by_chance(len(scores))


@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize("measure", MEASURES)
def test_the_calibrated_score_is_about_0_when_models_share_nothing(
    measure, null, scores_of_independent_saes
):
    scores = scores_of_independent_saes[measure, null]
    calibrated = np.array([scored.calibrated for scored in scores])
    assert abs(calibrated.mean()) < 3.5 * calibrated.std() / np.sqrt(len(calibrated))
    z = np.array([scored.z for scored in scores])
    assert z.std() == pytest.approx(1, abs=0.2)
    if measure in ("svcca", "svcca_r2", "pwcca"):  # while the score itself is far from 0
        assert np.mean([scored.score for scored in scores]) > 0.1


def repeated_partners(
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A features that split what a B feature holds together; between groups nothing is shared.

    Features of A with a common partner are alike in A, as split features are, and the partners'
    decoders are independent of everything.
    """
    n_partners, n_pairs = 20, 60
    weights = rng.exponential(size=n_partners) + 0.1
    more = rng.choice(n_partners, size=n_pairs - n_partners, p=weights / weights.sum())
    held = rng.permutation(np.concatenate([np.arange(n_partners), more]))
    centres = rng.normal(size=(n_partners, D_A))
    x = unit_rows(centres[held] + 0.5 * rng.normal(size=(n_pairs, D_A)))
    y = unit_rows(rng.normal(size=(n_partners, D_B)))[held]
    return x, y, held, rng.random(n_partners)[held]


@pytest.fixture(scope="module")
def scores_of_repeated_partners() -> dict[str, dict[tuple[str, str], list[Score]]]:
    def relabelled(rng: np.random.Generator) -> dict[tuple[str, str], Score]:
        x, y, held, rates = repeated_partners(rng)
        return scores_of(x, partners_of(y, held), rates, rng=rng, n_permutations=39)

    def naive(rng: np.random.Generator) -> dict[tuple[str, str], Score]:
        x, y, held, rates = repeated_partners(rng)
        every_row = partners_of(y, np.arange(len(held)))  # as if no partner repeated
        return scores_of(x, every_row, rates, rng=rng, nulls=("shuffle",), n_permutations=39)

    return {"relabelled": repeat(relabelled, 120, seed=1), "naive": repeat(naive, 40, seed=2)}


@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize("measure", MEASURES)
def test_many_to_one_keeps_its_level_with_repeated_partners(
    measure, null, scores_of_repeated_partners
):
    scores = scores_of_repeated_partners["relabelled"][measure, null]
    assert n_rejected(scores) <= most_by_chance(len(scores))
    calibrated = np.array([scored.calibrated for scored in scores])
    assert abs(calibrated.mean()) < 3.5 * calibrated.std() / np.sqrt(len(calibrated))


@pytest.mark.parametrize(
    "measure", ["svcca", "svcca_r2", "pwcca", "rsa", "cka", "procrustes", "mutual_knn"]
)
def test_a_shuffle_of_rows_takes_repeated_partners_for_shared_meaning(
    measure, scores_of_repeated_partners
):
    scores = scores_of_repeated_partners["naive"][measure, "shuffle"]
    assert n_rejected(scores) > len(scores) / 2


def frequent_with_frequent(
    rng: np.random.Generator, *, n_pairs: int, strength: float, measures: tuple[str, ...]
) -> dict[tuple[str, str], Score]:
    """Decoders whose only order is how often features fire; pairs match in rate alone.

    Rates are log-normal. A row is a random direction of length about 1, plus `strength` times the
    standardised log rate along one direction of its model.
    """
    d = 32
    log_rates = [np.sort(rng.normal(size=n_pairs)) for _ in "ab"]
    x, y = (
        rng.normal(size=(n_pairs, d)) / np.sqrt(d)
        + strength * np.outer(log_rate, unit_rows(rng.normal(size=(1, d)))[0])
        for log_rate in log_rates
    )
    partners = partners_of(y, np.arange(n_pairs))
    return scores_of(x, partners, np.exp(log_rates[1]), rng=rng, measures=measures)


FIRING_RATE_MEASURES = ("pc1", "rsa", "cka")


@pytest.fixture(scope="module")
def scores_of_firing_rates() -> dict[tuple[str, str], list[Score]]:
    def study(rng: np.random.Generator) -> dict[tuple[str, str], Score]:
        return frequent_with_frequent(
            rng, n_pairs=200, strength=0.15, measures=FIRING_RATE_MEASURES
        )

    return repeat(study, 100, seed=3)


@pytest.mark.parametrize("measure", FIRING_RATE_MEASURES)
def test_rate_matched_keeps_its_level_where_shuffle_finds_firing_rates(
    measure, scores_of_firing_rates
):
    shuffle, matched = (scores_of_firing_rates[measure, null] for null in NULLS)
    assert n_rejected(shuffle) > 0.35 * len(shuffle)
    assert n_rejected(matched) <= most_by_chance(len(matched))


def test_rate_matched_keeps_its_level_with_many_pairs_and_a_strong_component():
    def study(rng: np.random.Generator) -> dict[tuple[str, str], Score]:
        return frequent_with_frequent(rng, n_pairs=400, strength=0.25, measures=("pc1",))

    matched = repeat(study, 40, seed=4)["pc1", "rate_matched"]
    assert n_rejected(matched) <= most_by_chance(len(matched))


def test_shared_geometry_is_found_under_both_nulls():
    def study(rng: np.random.Generator) -> dict[tuple[str, str], Score]:
        shared = rng.normal(size=(60, 6))
        x, y = (
            unit_rows(shared @ rng.normal(size=(6, d)) + 2 * rng.normal(size=(60, d)))
            for d in (D_A, D_B)
        )
        return scores_of(x, partners_of(y), rng.random(60), rng=rng)

    for key, scores in repeat(study, 20, seed=5).items():
        if key[0] != "pc1":  # one component can miss it
            assert n_rejected(scores) >= 18, key


# Planted truth.

N_TOKENS = 2000


def rotation_of(d: int, rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


def planted(n_shared: int, n_alone: int, seed: int, d: int = 16) -> tuple:
    """Two models that share `n_shared` features, renamed, rescaled and rotated, and no others.

    Returns:
        The activations of A and B, their decoders, and which feature of B each of A's shared
        features (its first ones) is.
    """
    rng = np.random.default_rng(seed)
    n_features = n_shared + n_alone
    rates = rng.uniform(0.03, 0.2, size=n_features)
    acts_a = sparse_acts(N_TOKENS, rates, rng)
    decoder_a = unit_rows(rng.normal(size=(n_features, d)) * np.logspace(0, -0.5, d))
    alone_acts = sparse_acts(N_TOKENS, rates[n_shared:], rng)
    alone_rows = unit_rows(rng.normal(size=(n_alone, d)))
    shared_acts = acts_a[:, :n_shared].multiply(rng.uniform(0.5, 3, size=n_shared))
    acts_b = sp.hstack([shared_acts, alone_acts]).tocsc()
    decoder_b = np.vstack([decoder_a[:n_shared] @ rotation_of(d, rng), alone_rows])
    order = rng.permutation(n_features)
    partner = np.argsort(order)[:n_shared]
    return acts_a, acts_b[:, order].tocsr(), decoder_a, decoder_b[order], partner


@pytest.mark.parametrize("how", MATCHINGS)
@pytest.mark.parametrize("metric", ["pearson", "cosine", "euclidean"])
def test_renamed_and_rotated_features_are_recovered_exactly(how, metric):
    acts_a, acts_b, _, _, partner = planted(80, 0, seed=0)
    pairs = match(correlate(acts_a, acts_b, metric=metric), how=how)
    by_a = pairs.sort_values("feature_a")
    assert by_a["feature_a"].tolist() == list(range(80))
    np.testing.assert_array_equal(by_a["feature_b"], partner)
    np.testing.assert_allclose(pairs["correlation"], 1, rtol=0, atol=1e-9)
    assert pairs["mutual"].all()
    assert (pairs["margin"] > 0.5).all()


@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize("how", MATCHINGS)
def test_recovered_features_score_1_unless_the_inner_similarity_is_pearson(how, null):
    acts_a, acts_b, decoder_a, decoder_b, _ = planted(80, 0, seed=1)
    pairs = match(correlate(acts_a, acts_b), how=how)
    x, y = decoder_a[pairs["feature_a"]], decoder_b[pairs["feature_b"]]
    rates = np.diff(acts_b.tocsc().indptr)[pairs["feature_b"]] / N_TOKENS
    options = {"null": null, "n_permutations": 99, "firing_rates": rates}
    for measure in MEASURES:
        scored = score(x, y, measure=measure, rng=np.random.default_rng(0), **options)
        assert scored.score == pytest.approx(1, abs=1e-9)
        assert scored.calibrated == pytest.approx(1, abs=1e-9)
        assert scored.p_value <= 0.01
    published = score(x, y, measure="rsa", inner="pearson", rng=np.random.default_rng(0), **options)
    assert 0.7 < published.score < 0.999
    assert published.p_value <= 0.01


@pytest.fixture(scope="module")
def half_overlap() -> tuple[pd.DataFrame, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of two models that share half of their features, their rows, and the truth."""
    acts_a, acts_b, decoder_a, decoder_b, partner = planted(80, 80, seed=2)
    pairs = match(correlate(acts_a, acts_b))
    truth = np.full(160, -1)
    truth[:80] = partner
    x, y = decoder_a[pairs["feature_a"]], decoder_b[pairs["feature_b"]]
    return pairs, x, y, truth[pairs["feature_a"]] == pairs["feature_b"].to_numpy()


def test_a_half_that_is_shared_is_found_and_only_that_half(half_overlap):
    pairs, _, _, is_shared = half_overlap
    assert len(pairs) == 160
    assert is_shared.sum() == 80
    np.testing.assert_array_equal(pairs["correlation"] > 0.5, is_shared)
    assert pairs.loc[is_shared, "correlation"].min() > 0.999
    assert pairs.loc[~is_shared, "correlation"].max() < 0.2


@pytest.mark.parametrize("measure", MEASURES)
def test_the_shared_half_scores_1_and_the_other_half_what_chance_gives(measure, half_overlap):
    _, x, y, is_shared = half_overlap
    shared, alone = (
        score(x[half], y[half], measure=measure, n_permutations=199, rng=np.random.default_rng(0))
        for half in (is_shared, ~is_shared)
    )
    assert shared.score == pytest.approx(1, abs=1e-9)
    assert shared.p_value <= 0.005
    assert alone.p_value > 0.05
    assert abs(alone.z) < 3
