"""Every measure against its definition, another library, and what it claims to ignore."""

import itertools
import re
import warnings
from typing import get_args

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse as sp
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from saelign.errors import ActivationError, DegenerateError, ShapeError, UnknownNameError
from saelign.nulls import draw_permutations
from saelign.similarity import (
    MEASURES,
    activation_gram,
    cka,
    mutual_knn,
    pc1,
    procrustes,
    pwcca,
    rows_of_gram,
    rsa,
    svcca,
    svcca_r2,
)
from saelign.similarity import neighbours as neighbours_file
from saelign.similarity.canonical import RelabelledRows
from saelign.similarity.measures import Invariance
from saelign.similarity.neighbours import check_k
from saelign.similarity.partners import partners_of
from saelign.similarity.procrustes import nuclear_norms
from saelign.similarity.rsa import check_options

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import rsatoolbox


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Decompositions as small as these take longer on several cores than on one."""
    with threadpool_limits(1):
        yield


OPTIONS = [
    ("pc1", {}),
    ("svcca", {}),
    ("svcca", {"n_components": 3}),
    ("svcca", {"variance": 0.8}),
    ("svcca_r2", {}),
    ("svcca_r2", {"n_components": 4}),
    ("svcca_r2", {"variance": 0.6}),
    ("pwcca", {}),
    ("pwcca", {"n_components": 3}),
    ("pwcca", {"variance": 0.8}),
    ("rsa", {}),
    ("rsa", {"outer": "pearson"}),
    ("rsa", {"inner": "pearson"}),
    ("rsa", {"inner": "pearson", "outer": "pearson"}),
    ("rsa", {"inner": "euclidean"}),
    ("rsa", {"inner": "euclidean", "outer": "pearson"}),
    ("cka", {}),
    ("procrustes", {}),
    ("mutual_knn", {}),
    ("mutual_knn", {"k": 3}),
]
NAMED = [pytest.param(m, o, id="-".join([m, *map(str, o.values())])) for m, o in OPTIONS]


def related_rows(
    seed: int, n_pairs: int = 60, d_x: int = 12, d_y: int = 9
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that share a little, with variances and means that differ between dimensions."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n_pairs, 4))
    sides = []
    for d in (d_x, d_y):
        rows = shared @ rng.normal(size=(4, d)) + 2 * rng.normal(size=(n_pairs, d))
        sides.append(rows * rng.uniform(0.3, 3, size=d) + rng.normal(size=d))
    return sides[0], sides[1]


def rotation_of(d: int, rng: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(d, d)))
    return q * np.sign(np.diag(r))


# The definitions, written again as plainly as possible.


def plain_cca(x: np.ndarray, y: np.ndarray, k_x: int, k_y: int) -> np.ndarray:
    """Cosines of the principal angles between the leading scores, through QR."""
    scores = [PCA(k, svd_solver="full").fit_transform(rows) for rows, k in ((x, k_x), (y, k_y))]
    (q_x, _), (q_y, _) = (np.linalg.qr(s - s.mean(axis=0)) for s in scores)
    return np.linalg.svd(q_x.T @ q_y, compute_uv=False)


def n_components_of(rows: np.ndarray, n_components=None, variance=None) -> int:
    """How many are kept; sklearn cuts on variance as we say we do."""
    if variance is not None:
        return PCA(variance, svd_solver="full").fit(rows).n_components_
    return n_components


def plain_svcca(x: np.ndarray, y: np.ndarray, power: int, **options) -> float:
    if not options:
        options = {"n_components": min(20, len(x) // 5, x.shape[1], y.shape[1])}
    r = plain_cca(x, y, n_components_of(x, **options), n_components_of(y, **options))
    return float((r**power).mean())


def plain_pc1(x: np.ndarray, y: np.ndarray) -> float:
    first = [PCA(1, svd_solver="full").fit_transform(rows)[:, 0] for rows in (x, y)]
    return float(abs(np.corrcoef(*first)[0, 1]))


def pair_similarities(rows: np.ndarray, inner: str) -> np.ndarray:
    """Between every two rows; equal rows are alike exactly, as repeated partners must be."""
    metric = {"cosine": "cosine", "pearson": "correlation", "euclidean": "euclidean"}[inner]
    _, first, held = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    alike = -squareform(pdist(rows[first], metric))
    return alike[np.ix_(held.ravel(), held.ravel())][np.triu_indices(len(rows), 1)]


def plain_rsa(
    x: np.ndarray, y: np.ndarray, inner: str = "cosine", outer: str = "spearman"
) -> float:
    correlate = {"spearman": scipy.stats.spearmanr, "pearson": scipy.stats.pearsonr}[outer]
    return float(correlate(pair_similarities(x, inner), pair_similarities(y, inner)).statistic)


def plain_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Through centred kernels, as in the paper's equation 4."""
    centre = np.eye(len(x)) - 1 / len(x)
    k, m = centre @ (x @ x.T) @ centre, centre @ (y @ y.T) @ centre
    return float(np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m)))


def plain_pwcca(x: np.ndarray, y: np.ndarray, **options) -> float:
    """As the paper's authors compute it: CCA by whitened covariances, variates made orthonormal.

    No singular vector of the overlap of bases is used, and the weights come from the columns as
    given.
    """
    if not options:
        options = {"n_components": min(20, len(x) // 5, x.shape[1], y.shape[1])}
    scores = [
        PCA(n_components_of(rows, **options), svd_solver="full").fit_transform(rows)
        for rows in (x, y)
    ]
    k_x = scores[0].shape[1]
    covariance = np.cov(*(s.T for s in scores))
    xx, xy, yy = covariance[:k_x, :k_x], covariance[:k_x, k_x:], covariance[k_x:, k_x:]
    explained = xy @ np.linalg.solve(yy, xy.T)
    squares, directions = scipy.linalg.eigh(explained, xx)  # canonical directions of X
    kept = np.argsort(-squares)[: min(s.shape[1] for s in scores)]
    variates, _ = np.linalg.qr(scores[0] @ directions[:, kept])
    weights = np.abs((x - x.mean(axis=0)).T @ variates).sum(axis=0)
    return float(np.average(np.sqrt(squares[kept]), weights=weights))


def plain_procrustes(x: np.ndarray, y: np.ndarray) -> float:
    """The inner product with Y after scipy's best rotation; zero columns make both as wide."""
    d = max(x.shape[1], y.shape[1])
    x, y = (np.pad(rows - rows.mean(axis=0), ((0, 0), (0, d - rows.shape[1]))) for rows in (x, y))
    rotation, _ = scipy.linalg.orthogonal_procrustes(x, y)
    return float(np.vdot(x @ rotation, y) / (np.linalg.norm(x) * np.linalg.norm(y)))


def plain_mutual_knn(x: np.ndarray, y: np.ndarray, k: int = 10) -> float:
    """Set by set, each from a stable sort."""
    sets = []
    for rows in (x, y):
        alike = np.full((len(rows), len(rows)), np.inf)  # distances, in the end
        alike[np.triu_indices(len(rows), 1)] = -pair_similarities(rows, "cosine")
        alike = np.minimum(alike, alike.T)
        sets.append([set(np.argsort(row, kind="stable")[:k].tolist()) for row in alike])
    return float(np.mean([len(a & b) / k for a, b in zip(*sets, strict=True)]))


PLAIN = {
    "pc1": plain_pc1,
    "svcca": lambda x, y, **options: plain_svcca(x, y, power=1, **options),
    "svcca_r2": lambda x, y, **options: plain_svcca(x, y, power=2, **options),
    "pwcca": plain_pwcca,
    "rsa": plain_rsa,
    "cka": plain_cka,
    "procrustes": plain_procrustes,
    "mutual_knn": plain_mutual_knn,
}


def test_every_measure_has_a_plain_definition_and_a_claim():
    assert set(PLAIN) == set(MEASURES) == {measure for measure, _ in OPTIONS}
    for measure in MEASURES.values():
        assert measure.source
        assert measure.invariances


SHAPES = st.sampled_from([(30, 12, 9), (60, 8, 20), (25, 40, 30), (12, 100, 7)])


@pytest.mark.parametrize(("measure", "options"), NAMED)
@settings(max_examples=25)
@given(seed=st.integers(0, 1000), shape=SHAPES)
def test_both_ways_to_compute_a_measure_are_its_plain_definition(measure, options, seed, shape):
    x, y = related_rows(seed, *shape)
    if "variance" in options:
        x, y = x[:, :5], y[:, :4]
    expected = PLAIN[measure](x, y, **options)
    defined = MEASURES[measure].compute(x, y, **options)
    compared = MEASURES[measure].compare(x, partners_of(y), **options).score()
    np.testing.assert_allclose([defined, compared], expected, rtol=0, atol=1e-9)


def test_svcca_is_the_cca_of_another_library():
    x, y = related_rows(3, 200, 10, 8)
    k = 3
    scores = [PCA(k, svd_solver="full").fit_transform(rows) for rows in (x, y)]
    fitted = CCA(k, scale=False, max_iter=100_000, tol=1e-12).fit_transform(*scores)
    r = [np.corrcoef(u, v)[0, 1] for u, v in zip(fitted[0].T, fitted[1].T, strict=True)]
    assert svcca(x, y, n_components=k) == pytest.approx(np.mean(r), abs=1e-6)
    assert svcca_r2(x, y, n_components=k) == pytest.approx(np.square(r).mean(), abs=1e-6)


@pytest.mark.parametrize(
    ("inner", "outer", "method", "compare"),
    [
        ("pearson", "spearman", "correlation", "spearman"),
        ("pearson", "pearson", "correlation", "corr"),
        ("euclidean", "spearman", "euclidean", "spearman"),  # theirs is squared: the same ranks
    ],
)
def test_rsa_is_that_of_rsatoolbox(inner, outer, method, compare):
    x, y = related_rows(4, 40, 12, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rdms = [rsatoolbox.rdm.calc_rdm(rsatoolbox.data.Dataset(r), method=method) for r in (x, y)]
        expected = rsatoolbox.rdm.compare(*rdms, method=compare).item()
    assert rsa(x, y, inner=inner, outer=outer) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("invariance", get_args(Invariance))
@pytest.mark.parametrize("side", ["x", "y"])
def test_a_measure_has_the_invariances_that_it_claims_and_no_others(measure, invariance, side):
    rng = np.random.default_rng(1)
    change = {
        "rotation": lambda rows: rows @ rotation_of(rows.shape[1], rng),
        "scale": lambda rows: 7.3 * rows,
        "shift": lambda rows: rows + 3 * rng.normal(size=rows.shape[1]),
        "row_scale": lambda rows: rows * rng.uniform(0.2, 5, size=(len(rows), 1)),
    }[invariance]
    claimed = invariance in MEASURES[measure].invariances
    if side == "y":
        claimed |= invariance in MEASURES[measure].invariances_y
    x, y = related_rows(2)
    changed = (change(x), y) if side == "x" else (x, change(y))
    for score in (
        MEASURES[measure].compute,
        lambda x, y: MEASURES[measure].compare(x, partners_of(y)).score(),
    ):
        difference = abs(score(*changed) - score(x, y))
        assert difference < 1e-9 if claimed else difference > 1e-3


@pytest.mark.parametrize("outer", ["spearman", "pearson"])
def test_pearson_inside_rsa_is_not_invariant_to_rotation(outer):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 64))
    y = x @ rotation_of(64, rng)
    assert 0.9 < rsa(x, y, inner="pearson", outer=outer) < 0.999
    assert rsa(x, y, inner="cosine", outer=outer) == pytest.approx(1, abs=1e-9)


def test_pearson_inside_rsa_ignores_a_constant_added_to_a_row_and_its_scale():
    x, y = related_rows(0)
    rng = np.random.default_rng(0)
    changed = x * rng.uniform(0.2, 5, size=(len(x), 1)) + rng.normal(size=(len(x), 1))
    same = rsa(x, y, inner="pearson")
    assert rsa(changed, y, inner="pearson") == pytest.approx(same, abs=1e-9)


@pytest.mark.parametrize("shift", [1.0, 1e5])
@pytest.mark.parametrize("outer", ["spearman", "pearson"])
def test_euclidean_inside_rsa_ignores_rotation_and_shift_but_not_the_scale_of_rows(shift, outer):
    x, y = related_rows(0)
    rng = np.random.default_rng(0)
    options = {"inner": "euclidean", "outer": outer}
    same = rsa(x, y, **options)
    assert rsa(x @ rotation_of(12, rng) + shift, y, **options) == pytest.approx(same, abs=1e-9)
    row_scale = rng.uniform(0.2, 5, size=(len(x), 1))
    assert abs(rsa(x * row_scale, y, **options) - same) > 1e-3


def test_equal_distances_tie():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 3, size=(2, 30, 4)).astype(float)
    expected = scipy.stats.spearmanr(pdist(x), pdist(y)).statistic
    assert rsa(x, y, inner="euclidean") == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("measure", "options"), NAMED)
@pytest.mark.parametrize("d", [8, 64, 400])
def test_what_is_compared_with_itself_scores_1(measure, options, d):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(150, d)) * np.logspace(0, -2, d)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert MEASURES[measure].compute(rows, rows, **options) == pytest.approx(1, abs=1e-9)
    for held in (np.arange(150), rng.integers(60, size=150)):
        of_held = rows[held]
        comparison = MEASURES[measure].compare(of_held, partners_of(of_held), **options)
        assert comparison.score() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("measure", "options"), NAMED)
@settings(max_examples=25)
@given(seed=st.integers(0, 1000))
def test_measures_are_symmetric_but_pwcca_and_within_their_range(measure, options, seed):
    x, y = related_rows(seed)
    forth = MEASURES[measure].compute(x, y, **options)
    back = MEASURES[measure].compute(y, x, **options)
    assert (back == pytest.approx(forth, abs=1e-9)) == (measure != "pwcca")
    assert (-1 if measure == "rsa" else 0) <= forth <= 1


@pytest.mark.parametrize(("measure", "options"), NAMED)
def test_the_order_of_pairs_does_not_matter(measure, options):
    x, y = related_rows(0)
    order = np.random.default_rng(0).permutation(len(x))
    ordered = MEASURES[measure].compute(x[order], y[order], **options)
    assert ordered == pytest.approx(MEASURES[measure].compute(x, y, **options), abs=1e-9)


# Shuffles: the cheap path and the definition on rows that are really relabelled.


def repeated(n_partners: int, n_pairs: int, rng: np.random.Generator) -> np.ndarray:
    """Who holds which: some partners many times, some once, each at least once."""
    weights = rng.exponential(size=n_partners) ** 2
    more = rng.choice(n_partners, size=n_pairs - n_partners, p=weights / weights.sum())
    return rng.permutation(np.concatenate([np.arange(n_partners), more]))


@pytest.mark.parametrize("pairing", ["one_to_one", "repeated", "repeated_on_both_sides"])
@pytest.mark.parametrize(("measure", "options"), NAMED)
@settings(max_examples=8)
@given(seed=st.integers(0, 1000), d_x=st.sampled_from([6, 70]), d_y=st.sampled_from([5, 80]))
def test_a_cheap_shuffle_is_the_definition_on_relabelled_rows(
    measure, options, pairing, seed, d_x, d_y
):
    rng = np.random.default_rng(seed)
    if "variance" in options:
        d_x, d_y = 6, 5
    x, y = related_rows(seed, 40, d_x, d_y)
    if pairing != "one_to_one":
        y = y[repeated(15, 40, rng)]
    if pairing == "repeated_on_both_sides":
        x = x[repeated(25, 40, rng)]
    partners = partners_of(y)
    comparison = MEASURES[measure].compare(x, partners, **options)
    n = len(partners.rows)
    permutations = np.array([np.arange(n), *(rng.permutation(n) for _ in range(4))])
    expected = [PLAIN[measure](x, partners.rows[s][partners.held], **options) for s in permutations]
    shuffled = comparison.shuffled(permutations)
    np.testing.assert_allclose(shuffled, expected, rtol=0, atol=1e-9)
    assert comparison.score() == pytest.approx(expected[0], abs=1e-9)


@pytest.mark.parametrize("width", [6, 24], ids=["as many rows as columns", "fewer rows"])
@pytest.mark.parametrize("mean", [0.0, 1e4])
@settings(max_examples=25)
@given(seed=st.integers(0, 1000), chosen=st.sampled_from([1, 3, 0.7, 1.0]))
def test_components_of_relabelled_rows_are_those_of_the_rows_repeated(width, mean, seed, chosen):
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.3, 3, size=width)  # no two components of a size
    rows = mean + rng.normal(size=(12, width)) * scale
    held = repeated(12, 40, rng)
    partners = partners_of(rows[held], held)
    relabelled = RelabelledRows(partners)
    assert relabelled.is_dual == (width > 12)
    asked = {"n_components": chosen, "variance": None}
    if isinstance(chosen, float):
        asked = {"n_components": None, "variance": chosen}
    for s in (np.arange(12), rng.permutation(12), rng.permutation(12)):
        found = relabelled.basis(s, **asked)[partners.held]
        repeats = partners.rows[s][partners.held]
        u, sizes, _ = np.linalg.svd(repeats - repeats.mean(axis=0), full_matrices=False)
        sizes = sizes[: min(width, 11)]
        held_share = np.cumsum(sizes**2) / (sizes**2).sum()
        k = chosen
        if isinstance(chosen, float):
            k = len(sizes) if chosen == 1 else int((held_share < chosen).sum()) + 1
        assert found.shape == (40, k)
        # A column is that of the definition, or its negative; rounding grows with the mean.
        np.testing.assert_allclose(found.T @ found, np.eye(k), atol=1e-7)
        np.testing.assert_allclose(np.abs((found * u[:, :k]).sum(axis=0)), 1, atol=1e-5)


def test_relabelled_rows_of_too_few_components_are_refused():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(5, 9))
    held = repeated(5, 30, rng)
    relabelled = RelabelledRows(partners_of(rows[held], held))
    words = (
        r"must lie between 1 and the rank of the matched rows, 4, got 5 for 30 pairs \(5 distinct"
    )
    with pytest.raises(DegenerateError, match=words):
        relabelled.basis(np.arange(5), n_components=5, variance=None)


@pytest.mark.parametrize(("measure", "options"), NAMED)
@pytest.mark.parametrize("repeats", [False, True])
def test_shuffling_nothing_gives_the_score_to_the_last_digits(measure, options, repeats):
    x, y = related_rows(0)
    if repeats:
        y = y[repeated(20, len(y), np.random.default_rng(0))]
    partners = partners_of(y)
    comparison = MEASURES[measure].compare(x, partners, **options)
    (same,) = comparison.shuffled(np.arange(len(partners.rows))[None, :])
    assert same == pytest.approx(comparison.score(), abs=1e-12)


@given(
    held=st.lists(st.integers(0, 8), min_size=1, max_size=20).map(np.array),
    seed=st.integers(0, 1000),
)
def test_partners_are_the_distinct_rows_in_order_of_first_appearance(held, seed):
    rows = np.random.default_rng(seed).normal(size=(9, 3))
    order = list(dict.fromkeys(held.tolist()))
    for partners in (partners_of(rows[held]), partners_of(rows[held], held + 100)):
        np.testing.assert_array_equal(partners.rows, rows[order])
        np.testing.assert_array_equal(partners.y, rows[held])
        np.testing.assert_array_equal(partners.counts, [(held == d).sum() for d in order])
        assert partners.is_one_to_one == (len(order) == len(held))
        sums = partners.group_sums(rows[held])
        np.testing.assert_allclose(sums, partners.counts[:, None] * rows[order], rtol=1e-12)


def test_features_with_equal_rows_stay_apart_when_they_are_told_apart():
    rows = np.ones((3, 2))
    assert len(partners_of(rows).rows) == 1
    assert partners_of(rows, np.array([4, 7, 5])).is_one_to_one


def test_one_to_one_rows_keep_their_order():
    y = np.random.default_rng(0).normal(size=(20, 3))
    partners = partners_of(y)
    np.testing.assert_array_equal(partners.held, np.arange(20))
    np.testing.assert_array_equal(partners.rows, y)


# Components.


@pytest.mark.parametrize(
    ("n_pairs", "d_x", "d_y", "expected"),
    [(400, 64, 32, 20), (100, 64, 32, 20), (99, 64, 32, 19), (50, 64, 7, 7), (50, 5, 9, 5),
     (5, 9, 9, 1), (9, 9, 9, 1)],
)  # fmt: skip
@pytest.mark.parametrize("measure", ["svcca", "svcca_r2", "pwcca"])
def test_by_default_a_fifth_of_the_pairs_and_at_most_20_components_are_kept(
    measure, n_pairs, d_x, d_y, expected
):
    x, y = related_rows(0, n_pairs, d_x, d_y)
    comparison = MEASURES[measure].compare(x, partners_of(y))
    assert comparison.components == (expected, expected)
    assert MEASURES[measure].compute(x, y) == pytest.approx(
        MEASURES[measure].compute(x, y, n_components=expected), abs=1e-12
    )


@pytest.mark.parametrize("variance", [0.01, 0.5, 0.9, 0.999, 1.0])
def test_components_by_variance_hold_that_fraction_on_each_side(variance):
    x, y = related_rows(0, 100, 12, 9)
    comparison = MEASURES["svcca"].compare(x, partners_of(y), variance=variance)
    for rows, k in zip((x, y), comparison.components, strict=True):
        held = np.cumsum(PCA(svd_solver="full").fit(rows).explained_variance_ratio_)
        assert held[k - 1] >= variance - 1e-12
        assert k == 1 or held[k - 2] < variance
    assert comparison.score() == pytest.approx(svcca(x, y, variance=variance), abs=1e-9)


def test_all_of_the_variance_is_the_rank_and_no_more():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 30)) + 3
    y = rng.normal(size=(60, 9))
    comparison = MEASURES["svcca"].compare(x, partners_of(y), variance=1.0)
    assert comparison.components == (5, 9)
    assert comparison.score() == pytest.approx(svcca(x, y, variance=1.0), abs=1e-9)
    assert comparison.score() == pytest.approx(plain_cca(x, y, 5, 9).mean(), abs=1e-9)


def test_components_beyond_the_pairs_agree_whatever_the_data():
    rng = np.random.default_rng(0)
    r = plain_cca(rng.normal(size=(25, 40)), rng.normal(size=(25, 40)), 20, 20)
    assert (r > 1 - 1e-9).sum() == 16  # k1 + k2 - (K - 1), the published example


@pytest.mark.parametrize("measure", ["svcca", "svcca_r2", "pwcca"])
def test_so_many_components_that_they_must_agree_are_refused(measure):
    x, y = related_rows(0, 25, 40, 40)
    entry = MEASURES[measure]
    assert 0 < entry.compute(x, y, n_components=12) < 1
    words = (
        "n_components of both sides must sum to at most n_pairs - 1 = 24, got 13 + 13: 2 canonical "
        "correlations would be 1 for any data; ask for fewer components or match more pairs"
    )
    for call in (
        lambda: entry.compute(x, y, n_components=13),
        lambda: entry.compare(x, partners_of(y), n_components=13),
    ):
        with pytest.raises(DegenerateError, match=re.escape(words)):
            call()
    with pytest.raises(DegenerateError, match="must sum to at most n_pairs - 1 = 24"):
        entry.compute(x, y, variance=0.99)
    with pytest.raises(DegenerateError, match=r"n_pairs - 1 = 23, got 12 \+ 12: 1 canonical"):
        entry.compute(x[:24], y[:24], n_components=12)


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((60, 8, 9), {"n_components": 0}, "n_components must be at least 1, got 0"),
        ((60, 8, 9), {"n_components": -2}, "n_components must be at least 1, got -2"),
        ((60, 8, 9), {"n_components": 9}, "got 9 for 60 pairs"),
        ((60, 9, 8), {"n_components": 9}, "rank of the matched rows, 8, got 9"),
        ((4, 8, 9), {}, "rank of the matched rows, 3, got 0 for 4 pairs"),
        ((60, 8, 9), {"variance": 0.0}, r"variance must be a fraction in \(0, 1\], got 0.0"),
        ((60, 8, 9), {"variance": 1.5}, r"variance must be a fraction in \(0, 1\], got 1.5"),
        ((60, 8, 9), {"variance": np.nan}, r"variance must be a fraction in \(0, 1\], got nan"),
        (
            (60, 8, 9),
            {"variance": 0.5, "n_components": 3},
            r"either n_components or variance must be given, got both \(3, 0.5\)",
        ),
    ],
)
@pytest.mark.parametrize("measure", ["svcca", "svcca_r2", "pwcca"])
def test_components_that_the_rows_do_not_have_are_refused(measure, shape, options, words):
    x, y = related_rows(0, *shape)
    entry = MEASURES[measure]
    for call in (
        lambda: entry.compute(x, y, **options),
        lambda: entry.compare(x, partners_of(y), **options),
    ):
        with pytest.raises(DegenerateError, match=words):
            call()


def test_few_distinct_partners_have_few_components():
    x, y = related_rows(0, 60, 12, 12)
    partners = partners_of(y[np.arange(60) % 5])
    assert MEASURES["svcca"].compare(x, partners, n_components=4).components == (4, 4)
    with pytest.raises(DegenerateError, match=r"matched rows, 4, got 5 for 60 pairs \(5 distinct"):
        MEASURES["svcca"].compare(x, partners, n_components=5)


def test_pc1_is_svcca_with_one_component():
    x, y = related_rows(0)
    assert pc1(x, y) == pytest.approx(svcca(x, y, n_components=1), abs=1e-12)
    assert pc1(x, y) ** 2 == pytest.approx(svcca_r2(x, y, n_components=1), abs=1e-12)
    assert MEASURES["pc1"].compare(x, partners_of(y)).components == (1, 1)


def test_measures_without_components_say_so():
    x, y = related_rows(0)
    for measure in ("rsa", "cka", "procrustes", "mutual_knn"):
        assert MEASURES[measure].compare(x, partners_of(y)).components is None


# What rsa cannot compare.


@pytest.mark.parametrize("side", ["x", "y"])
@pytest.mark.parametrize(("inner", "value"), [("cosine", 0.0), ("pearson", 0.3)])
def test_a_row_without_direction_is_refused(inner, value, side):
    x, y = related_rows(0)
    (x if side == "x" else y)[17] = value
    words = f"every row must have a direction under {inner}, row 17 has none"
    with pytest.raises(DegenerateError, match=words):
        rsa(x, y, inner=inner)
    assert -1 < rsa(x, y, inner="euclidean") < 1
    if inner == "cosine":
        with pytest.raises(DegenerateError, match=words):
            mutual_knn(x, y)
        with pytest.raises(DegenerateError, match=words):
            MEASURES["mutual_knn"].compare(x, partners_of(y))


@pytest.mark.parametrize("outer", ["spearman", "pearson"])
@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("inner", ["cosine", "euclidean"])
def test_rows_that_are_all_equally_alike_are_refused(inner, outer, rotate):
    rng = np.random.default_rng(0)
    orthonormal = rotation_of(30, rng) if rotate else np.eye(30)
    words = "similarities must differ between pairs of rows, all 435 are equal"
    with pytest.raises(DegenerateError, match=words):
        rsa(orthonormal, rng.normal(size=(30, 4)), inner=inner, outer=outer)
    with pytest.raises(DegenerateError, match=words):
        rsa(rng.normal(size=(30, 4)), orthonormal, inner=inner, outer=outer)


def test_a_similarity_of_rsa_that_does_not_exist_is_named():
    words = "unknown inner similarity of rsa 'cosin' (did you mean 'cosine'?), expected one of: "
    with pytest.raises(UnknownNameError, match=re.escape(words + "cosine, euclidean, pearson")):
        check_options("cosin", "spearman")
    words = "unknown outer similarity of rsa 'kendall', expected one of: pearson, spearman"
    with pytest.raises(UnknownNameError, match=words):
        check_options("cosine", "kendall")


def test_cka_of_orthogonal_spaces_is_0():
    basis = rotation_of(40, np.random.default_rng(0))
    centred = np.linalg.qr(np.column_stack([np.ones(40), basis]))[0][:, 1:]
    assert cka(centred[:, :5], centred[:, 5:12]) == pytest.approx(0, abs=1e-12)
    assert svcca(centred[:, :5], centred[:, 5:12], n_components=5) == pytest.approx(0, abs=1e-12)


# Procrustes.


def test_procrustes_is_what_scipy_leaves_of_the_distance():
    x, y = related_rows(0, 60, 9, 9)
    _, _, disparity = scipy.spatial.procrustes(x, y)
    assert procrustes(x, y) == pytest.approx(np.sqrt(1 - disparity), abs=1e-9)


def test_procrustes_of_lines_is_the_absolute_correlation():
    x, y = related_rows(0, 30, 1, 1)
    r = np.corrcoef(x[:, 0], y[:, 0])[0, 1]
    assert procrustes(x, y) == pytest.approx(abs(r), abs=1e-12)


def test_procrustes_of_spheres_is_the_mean_of_the_cosines_between_them():
    """With Q and W orthonormal bases the singular values of Q'W are cosines of angles."""
    rng = np.random.default_rng(0)
    centred = np.linalg.qr(np.column_stack([np.ones(40), rotation_of(40, rng)[:, :20]]))[0][:, 1:]
    q, shared = centred[:, :4], 0.6
    w = shared * q @ rotation_of(4, rng) + np.sqrt(1 - shared**2) * centred[:, 4:8]
    assert procrustes(q, w) == pytest.approx(shared, abs=1e-12)
    assert procrustes(q, centred[:, 8:12]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shape", [(128, 256), (40, 40), (70, 12), (1, 5)])
@pytest.mark.parametrize("smallest", [0, -3, -6, -9, -14])
def test_the_nuclear_norm_is_the_sum_of_the_singular_values(shape, smallest):
    rng = np.random.default_rng(0)
    n = min(shape)
    left, right = (rotation_of(d, rng)[:, :n] for d in shape)
    singular = np.logspace(0, smallest, n)
    matrix = (left * singular) @ right.T
    for turned in (matrix, matrix.T):
        assert nuclear_norms(turned[None]) == pytest.approx(singular.sum(), rel=1e-11)


def test_procrustes_of_a_side_that_cancels_within_each_group_is_0():
    y = np.repeat(np.arange(5.0)[:, None], 2, axis=0)
    x = np.tile([[1.0, -2.0], [-1.0, 2.0]], (5, 1))
    assert procrustes(x, y) == 0
    assert MEASURES["procrustes"].compare(x, partners_of(y)).score() == 0


# Mutual nearest neighbours.


@pytest.mark.parametrize("k", [1, 5, 10, 58])
def test_neighbours_are_those_of_sklearn(k):
    x, y = related_rows(5)
    graphs = []
    for rows in (x, y):
        fitted = NearestNeighbors(n_neighbors=k, metric="cosine").fit(rows)
        graphs.append(fitted.kneighbors_graph().toarray())  # without the row itself
    expected = (graphs[0] * graphs[1]).sum() / (60 * k)
    assert mutual_knn(x, y, k=k) == pytest.approx(expected, abs=1e-12)
    compared = MEASURES["mutual_knn"].compare(x, partners_of(y), k=k)
    assert compared.score() == pytest.approx(expected, abs=1e-12)


def test_neighbours_on_a_circle_are_those_beside():
    angle = np.arange(20) * 2 * np.pi / 20
    circle = np.column_stack([np.cos(angle), np.sin(angle)])
    doubled = np.column_stack([np.cos(2 * angle), np.sin(2 * angle)])
    # On the doubled circle i and i + 10 coincide: k = 2 takes it, and the lower of the four beside.
    assert mutual_knn(circle, circle[:, ::-1], k=2) == 1
    beside = {i: {(i - 1) % 20, (i + 1) % 20} for i in range(20)}
    lowest = {
        i: {(i + 10) % 20, min(j % 20 for j in (i - 1, i + 1, i + 9, i + 11))} for i in range(20)
    }
    expected = np.mean([len(beside[i] & lowest[i]) / 2 for i in range(20)])
    assert mutual_knn(circle, doubled, k=2) == pytest.approx(expected, abs=1e-12)
    comparison = MEASURES["mutual_knn"].compare(circle, partners_of(doubled), k=2)
    assert comparison.score() == pytest.approx(expected, abs=1e-12)


def test_pairs_that_hold_one_feature_are_neighbours_and_the_lowest_of_too_many_are_taken():
    held = np.repeat([0, 1, 2, 3], 5)
    rng = np.random.default_rng(0)
    y = rng.normal(size=(4, 6))[held]
    blocks = neighbours_file.neighbour_blocks(y, 3)
    near = np.concatenate(list(blocks))
    for i in range(20):
        group = [j for j in range(20) if held[j] == held[i] and j != i]
        assert np.flatnonzero(near[i]).tolist() == group[:3]


@pytest.mark.parametrize("pairing", ["one_to_one", "repeated", "told_apart"])
@pytest.mark.parametrize("rotate", [False, True])
@settings(max_examples=20)
@given(seed=st.integers(0, 1000), k=st.sampled_from([1, 4, 10, 28]))
def test_where_many_are_equally_near_cheap_shuffles_still_take_the_lower_pairs(
    pairing, rotate, seed, k
):
    """Rows on a coarse grid tie everywhere; a rotation leaves the ties equal to rounding alone."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(-1, 2, size=(2, 30, 4)) + np.array([3, 0, 0, 0])
    held = repeated(12, 30, rng) if pairing == "repeated" else np.arange(30)
    y = y[held]
    if rotate:
        x, y = x @ rotation_of(4, rng), y @ rotation_of(4, rng)
    x, y = x.astype(float), y.astype(float)
    partners = partners_of(y) if pairing != "told_apart" else partners_of(y, held)
    n = len(partners.rows)
    permutations = np.array([np.arange(n), *(rng.permutation(n) for _ in range(5))])
    comparison = MEASURES["mutual_knn"].compare(x, partners, k=k)
    expected = [mutual_knn(x, partners.rows[s][partners.held], k=k) for s in permutations]
    np.testing.assert_allclose(comparison.shuffled(permutations), expected, rtol=0, atol=1e-12)


def test_blocks_of_rows_do_not_change_the_neighbours(monkeypatch):
    x, y = related_rows(0)
    held = repeated(30, 60, np.random.default_rng(0))
    whole = [mutual_knn(x, rows) for rows in (y, y[held])]
    shuffles = np.random.default_rng(0).permuted(np.tile(np.arange(30), (5, 1)), axis=1)
    relabelled = MEASURES["mutual_knn"].compare(x, partners_of(y[held])).shuffled(shuffles)
    monkeypatch.setattr(neighbours_file, "BLOCK_ROWS", 7)
    assert [mutual_knn(x, rows) for rows in (y, y[held])] == whole
    again = MEASURES["mutual_knn"].compare(x, partners_of(y[held])).shuffled(shuffles)
    np.testing.assert_array_equal(again, relabelled)


@pytest.mark.parametrize(
    ("n", "k"), [(4, 1), (4, 2), (5, 1), (5, 3), (6, 1), (6, 2), (6, 3), (6, 4), (7, 3)]
)
def test_the_moments_of_shared_neighbours_are_those_of_every_shuffle(n, k):
    rng = np.random.default_rng(10 * n + k)
    # Heavy tails and a common direction: some are chosen by many, so that choices are not mutual.
    x, y = (rng.normal(size=(n, d)) * rng.exponential(size=(n, 1)) + 1 for d in (3, 2))
    comparison = MEASURES["mutual_knn"].compare(x, partners_of(y), k=k)
    scores = comparison.shuffled(np.array(list(itertools.permutations(range(n)))))
    mean, sd = comparison.exact_moments()
    assert mean == pytest.approx(k / (n - 1), abs=1e-12)
    assert (mean, sd) == pytest.approx((scores.mean(), scores.std()), abs=1e-12)


@pytest.mark.parametrize("k", [1, 10, 50])
def test_the_moments_of_shared_neighbours_agree_with_simulation(k):
    rng = np.random.default_rng(k)
    x, y = (rng.normal(size=(80, 6)) * rng.exponential(size=6) + 0.5 for _ in "xy")
    comparison = MEASURES["mutual_knn"].compare(x, partners_of(y), k=k)
    mean, sd = comparison.exact_moments()
    scores = comparison.shuffled(draw_permutations(80, 5000, rng=rng))
    assert scores.mean() == pytest.approx(mean, abs=4 * sd / np.sqrt(5000))
    assert scores.std() == pytest.approx(sd, rel=0.05)


def test_three_pairs_and_ties_for_the_last_place_have_no_closed_form():
    x, y = related_rows(0)
    compare = MEASURES["mutual_knn"].compare
    assert compare(x[:3], partners_of(y[:3]), k=1).exact_moments() is None
    angle = np.arange(60) * 2 * np.pi / 60
    circle = np.column_stack([np.cos(angle), np.sin(angle)])
    assert compare(x, partners_of(circle), k=3).exact_moments() is None
    assert compare(circle, partners_of(y), k=3).exact_moments() is not None  # X keeps its names
    assert compare(x, partners_of(circle), k=4).exact_moments() is not None  # two on either side


@pytest.mark.parametrize(
    ("k", "words"),
    [
        (0, "k must be at least 1, got 0"),
        (-3, "k must be at least 1, got -3"),
        (2.5, "k must be a whole number, got 2.5"),
        (True, "k must be a whole number, got True"),
        ("10", "k must be a whole number, got '10'"),
    ],
)
def test_what_is_no_number_of_neighbours_is_refused(k, words):
    with pytest.raises(DegenerateError, match=re.escape(words)):
        check_k(k)


def test_as_many_neighbours_as_other_pairs_are_refused():
    x, y = related_rows(0, 12)
    assert 0 < mutual_knn(x, y, k=10) < 1
    for rows, k in (((x, y), 11), ((x[:11], y[:11]), 10)):
        n = len(rows[0])
        words = (
            f"k must be at most n_pairs - 2 = {n - 2}, got {k}: with as many neighbours as other "
            "pairs every one is shared for any data; ask for fewer or match more pairs"
        )
        for call in (
            lambda rows=rows, k=k: mutual_knn(*rows, k=k),
            lambda rows=rows, k=k: MEASURES["mutual_knn"].compare(
                rows[0], partners_of(rows[1]), k=k
            ),
        ):
            with pytest.raises(DegenerateError, match=re.escape(words)):
                call()


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("side", ["x", "y"])
def test_rows_of_which_none_is_nearer_than_another_have_no_neighbours(rotate, side):
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(30, 4)), rotation_of(30, rng) if rotate else np.eye(30)]
    x, y = rows if side == "y" else rows[::-1]
    words = "cosines must differ between pairs of rows, all 435 are equal: no row is nearer"
    with pytest.raises(DegenerateError, match=words):
        mutual_knn(x, y)
    with pytest.raises(DegenerateError, match=words):
        MEASURES["mutual_knn"].compare(x, partners_of(y))


# Projection-weighted CCA.


def test_pwcca_weighs_a_shared_direction_by_what_x_has_of_it():
    """Two orthogonal directions, one shared, each spread over its own columns."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(np.column_stack([np.ones(50), rng.normal(size=(50, 3))]))[0][:, 1:]
    x = np.column_stack([3 * basis[:, 0], 2 * basis[:, 0], basis[:, 1]])
    y = np.column_stack([basis[:, 0], 0.5 * basis[:, 2]])
    # Weights: 3 + 2 for the direction that is shared, 1 for the one that is not.
    assert pwcca(x, y, n_components=2) == pytest.approx(5 / 6, abs=1e-12)
    assert pwcca(y, x, n_components=2) == pytest.approx(1 / 1.5, abs=1e-12)
    assert svcca(x, y, n_components=2) == pytest.approx(1 / 2, abs=1e-12)


def test_pwcca_lies_between_the_extreme_correlations_and_is_svcca_when_these_are_equal():
    x, y = related_rows(0)
    r = plain_cca(x, y, 4, 4)
    assert r.min() < pwcca(x, y, n_components=4) < r.max()
    assert pwcca(x, y, n_components=1) == pytest.approx(svcca(x, y, n_components=1), abs=1e-12)


# Rows from inner products.


def sparse_acts(n_tokens: int, n_features: int, rng: np.random.Generator) -> sp.csr_array:
    fires = rng.random((n_tokens, n_features)) < rng.uniform(0.02, 0.4, size=n_features)
    return sp.csr_array(rng.exponential(size=fires.shape) * fires)


@pytest.mark.parametrize("shape", [(20, 5), (20, 40), (1, 3), (30, 29)])
def test_rows_of_a_gram_matrix_have_its_inner_products(shape):
    rng = np.random.default_rng(0)
    gram = (rows := rng.normal(size=shape)) @ rows.T
    made = rows_of_gram(gram)
    assert made.shape == (shape[0], min(shape))
    np.testing.assert_allclose(made @ made.T, gram, rtol=0, atol=1e-12 * np.abs(gram).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_of_a_gram_matrix_of_lower_precision_are_float64(dtype):
    made = rows_of_gram(np.array([[4, 0], [0, 9]], dtype=dtype))
    assert made.dtype == np.float64
    np.testing.assert_allclose(np.sort(np.abs(made).max(axis=0)), [2, 3])


@pytest.mark.parametrize(
    ("measure", "options"), [p for p in NAMED if p.values[1].get("inner") != "pearson"]
)
def test_measures_that_ignore_rotation_are_the_same_on_rows_made_of_inner_products(
    measure, options
):
    x, y = related_rows(0, 60, 12, 9)
    entry = MEASURES[measure]
    made_x, made_y = (rows_of_gram(rows @ rows.T) for rows in (x, y))
    if "rotation" not in entry.invariances:
        made_x = x
    expected = entry.compute(x, y, **options)
    assert entry.compute(made_x, made_y, **options) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("standardise", [False, True])
def test_the_gram_matrix_of_activations_is_that_of_their_dense_columns(standardise):
    rng = np.random.default_rng(0)
    acts = sparse_acts(500, 40, rng)
    features = rng.permutation(40)[:25]
    dense = acts.toarray()[:, features]
    if standardise:
        dense = dense / dense.std(axis=0)
    covariance = np.cov(dense.T, ddof=0)
    gram = activation_gram(acts, features, standardise=standardise)
    np.testing.assert_allclose(gram, 500 * covariance, rtol=0, atol=1e-11 * np.abs(gram).max())
    np.testing.assert_array_equal(gram, gram.T)
    if standardise:
        np.testing.assert_array_equal(np.diagonal(gram), 500)


@pytest.mark.parametrize("standardise", [False, True])
def test_cosines_of_the_rows_are_pearson_correlations_over_tokens(standardise):
    acts = sparse_acts(500, 20, np.random.default_rng(0))
    rows = rows_of_gram(activation_gram(acts, np.arange(20), standardise=standardise))
    expected = np.corrcoef(acts.toarray().T)
    np.testing.assert_allclose(1 - squareform(pdist(rows, "cosine")), expected, atol=1e-12)


@pytest.mark.parametrize("measure", [m for m in MEASURES if m != "pwcca"])
def test_measures_on_activations_need_no_dense_tokens(measure):
    rng = np.random.default_rng(0)
    acts = [sparse_acts(300, 30, rng) for _ in "ab"]
    wide = [a.toarray().T - a.toarray().T.mean(axis=1, keepdims=True) for a in acts]
    made = [rows_of_gram(activation_gram(a, np.arange(30))) for a in acts]
    expected = MEASURES[measure].compute(*wide)
    assert MEASURES[measure].compute(*made) == pytest.approx(expected, abs=1e-9)


def test_float32_activations_are_summed_in_float64():
    acts = sparse_acts(500, 20, np.random.default_rng(0)).astype(np.float32)
    low, high = (activation_gram(a, np.arange(20)) for a in (acts, acts.astype(np.float64)))
    np.testing.assert_array_equal(low, high)


def test_features_that_are_sums_of_others_leave_out_a_dimension():
    acts = sparse_acts(2000, 6, np.random.default_rng(0)).toarray()
    acts[:, 5] = acts[:, 0] + acts[:, 1]
    gram = activation_gram(sp.csr_array(acts), np.arange(6))
    rows = rows_of_gram(gram)
    np.testing.assert_allclose(rows @ rows.T, gram, rtol=0, atol=1e-12 * gram.max())
    values = np.linalg.eigvalsh(rows.T @ rows)
    assert (values > 1e-12 * values.max()).sum() == 5


@pytest.mark.parametrize("value", [0.0, 0.7])
@pytest.mark.parametrize("standardise", [False, True])
def test_a_feature_that_is_constant_over_tokens_is_named(value, standardise):
    acts = sparse_acts(100, 8, np.random.default_rng(0)).toarray()
    acts[:, 6] = value
    words = "features must vary over tokens, feature 6 is constant over all 100: leave it out"
    with pytest.raises(DegenerateError, match=words):
        activation_gram(sp.csr_array(acts), np.array([2, 6, 1]), standardise=standardise)
    assert activation_gram(sp.csr_array(acts), np.array([2, 1])).shape == (2, 2)


@pytest.mark.parametrize("feature", [-1, 8])
def test_a_feature_that_is_no_column_is_named(feature):
    acts = sparse_acts(100, 8, np.random.default_rng(0))
    words = f"features must be columns of acts, 0 to 7, got {feature}"
    with pytest.raises(ShapeError, match=words):
        activation_gram(acts, np.array([2, feature]))


def test_without_tokens_or_with_values_that_are_not_finite_there_are_no_inner_products():
    with pytest.raises(ShapeError, match="there must be at least one token to sum over, got none"):
        activation_gram(sp.csr_array((0, 4)), np.array([1]))
    acts = sparse_acts(100, 8, np.random.default_rng(0))
    acts.data[3] = np.nan
    with pytest.raises(ActivationError, match="activations must be finite"):
        activation_gram(acts, np.arange(8))


@pytest.mark.parametrize(
    ("gram", "words"),
    [
        (
            [[1, 2], [2, 1]],
            "gram must be positive semi-definite, got the eigenvalue -1 (the largest is 3): "
            "no rows have such inner products",
        ),
        ([[0, 0], [0, 0]], "gram must have a positive eigenvalue, the largest of 2 is 0"),
        ([[1, 0.5], [0.4, 1]], "gram must be symmetric, got entries that differ by 0.1"),
        ([[1, np.nan], [np.nan, 1]], "gram must be finite, got a value that is not"),
    ],
)
def test_what_is_no_gram_matrix_is_refused(gram, words):
    with pytest.raises(DegenerateError, match=re.escape(words)):
        rows_of_gram(np.array(gram, dtype=float))
