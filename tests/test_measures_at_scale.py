"""The ways that measures take where there are many pairs, made to take them with few."""

import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from saelign.scoring import score_comparison
from saelign.similarity import MEASURES, cka, pc1, products, rsa, spectra, svcca, svcca_r2
from saelign.similarity.cka import compare_cka
from saelign.similarity.pairwise import find_levels, permuted_code_sums, permuted_sums
from saelign.similarity.partners import Partners, partners_of
from saelign.similarity.products import mirror, scatter_matrix, shuffled_products
from saelign.similarity.rsa import Similarities, compare_rsa, level_edges
from saelign.similarity.spectra import lanczos, leading_eigenpairs, singular_values

CKA, RSA = "saelign.similarity.cka", "saelign.similarity.rsa"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Decompositions as small as these take longer on several cores than on one."""
    with threadpool_limits(1):
        yield


def patch_file(patch: pytest.MonkeyPatch, name: str, value: int) -> None:
    """Set a constant of a file, even where the package shows a function under the file's name."""
    file, constant = name.rsplit(".", 1)
    patch.setattr(sys.modules[file], constant, value)


@contextmanager
def as_if_many(**changes: int) -> Iterator[None]:
    """Every threshold so low, every block so small, that few pairs are treated as many."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            f"{CKA}.EXACT_PAIRS": 0,
            f"{CKA}.STRIP_ROWS": 7,
            f"{CKA}.BLOCK_BYTES": 1500,
            f"{RSA}.EXACT_PAIRS": 0,
            f"{RSA}.STRIP_ROWS": 7,
            f"{RSA}.BLOCK_BYTES": 1500,
            "saelign.similarity.products.BLOCK_BYTES": 1500,
            "saelign.similarity.products.GATHER_BYTES": 0,
            "saelign.similarity.spectra.LANCZOS_WIDTH": 6,
            "saelign.similarity.spectra.LANCZOS_FRACTION": 3,
            **{f"saelign.similarity.{file}": value for file, value in changes.items()},
        }.items():
            patch_file(patch, name, value)
        yield


def rows_of(kind: str, seed: int, n_pairs: int, d_x: int, d_y: int) -> list[np.ndarray]:
    """Rows that share a little, and what makes them awkward."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n_pairs, 4))
    sides = []
    for d in (d_x, d_y):
        rows = shared @ rng.normal(size=(4, d)) + 2 * rng.normal(size=(n_pairs, d))
        rows *= rng.uniform(0.3, 3, size=d)
        if kind == "constant_coordinates":
            rows[:, rng.random(d) < 0.3] = 0.7
        if kind == "equal_rows":
            rows[1] = rows[n_pairs - 2] = rows[n_pairs // 2]
        if kind == "far_from_the_origin":
            rows += 1e4
        sides.append(rows)
    return sides


KINDS = ["plain", "constant_coordinates", "equal_rows", "far_from_the_origin"]
SHAPES = st.sampled_from([(30, 12, 9), (29, 9, 20), (23, 40, 31), (14, 8, 50), (64, 8, 7)])
PAIRINGS = ["one_to_one", "repeated"]


def relabelled(partners: Partners, s: np.ndarray) -> np.ndarray:
    return partners.rows[s][partners.held]


def paired(kind: str, pairing: str, seed: int, shape: tuple) -> tuple:
    """X, the partners, and a few relabellings, the first of which moves nothing."""
    rng = np.random.default_rng(seed)
    x, y = rows_of(kind, seed, *shape)
    if pairing == "repeated":
        n = max(8, len(x) // 2)
        y = y[rng.permutation(np.concatenate([np.arange(n), rng.integers(n, size=len(x) - n)]))]
    partners = partners_of(y)
    n = len(partners.rows)
    return x, partners, np.array([np.arange(n), *(rng.permutation(n) for _ in range(2))])


CANONICAL = [
    ("pc1", {}),
    ("svcca", {"n_components": 3}),
    ("svcca", {"variance": 0.6}),
    ("svcca_r2", {"n_components": 2}),
    ("svcca_r2", {"variance": 0.5}),
    ("pwcca", {"n_components": 2}),
    ("procrustes", {}),
]


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("measure", "options"), CANONICAL)
@settings(max_examples=4)
@given(seed=st.integers(0, 1000), shape=SHAPES)
def test_components_of_many_pairs_are_those_of_the_definition(
    measure, options, kind, pairing, seed, shape
):
    x, partners, permutations = paired(kind, pairing, seed, shape)
    if "variance" in options:
        x = x[:, :7]
        partners = Partners(partners.rows[:, :5], partners.held)
    compute = MEASURES[measure].compute
    expected = [compute(x, relabelled(partners, s), **options) for s in permutations]
    with as_if_many():
        comparison = MEASURES[measure].compare(x, partners, **options)
        shuffled = comparison.shuffled(permutations)
        assert shuffled[0] == comparison.score()
    np.testing.assert_allclose(shuffled, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lookups", [True, False])
@settings(max_examples=4)
@given(seed=st.integers(0, 1000), shape=SHAPES)
def test_cka_of_many_pairs_is_the_definition_to_single_precision(
    lookups, kind, pairing, seed, shape
):
    x, partners, permutations = paired(kind, pairing, seed, shape)
    expected = [cka(x, relabelled(partners, s)) for s in permutations]
    with as_if_many(**{"cka.PRODUCTS_PER_ENTRY": 0 if lookups else 10**6}):
        comparison = compare_cka(x, partners)
        shuffled = comparison.shuffled(permutations)
        assert shuffled[0] == comparison.score()
    assert (comparison.gram_x is not None) == lookups
    if lookups:
        assert comparison.gram_x.dtype == comparison.gram_y.dtype == np.float32
    error = 2.4e-7 if lookups else 1e-9
    np.testing.assert_allclose(shuffled, expected, rtol=0, atol=error)


@pytest.mark.parametrize("lookups", [True, False])
def test_few_pairs_have_gram_matrices_of_double_precision(lookups):
    x, partners, permutations = paired("far_from_the_origin", "one_to_one", 0, (40, 12, 9))
    expected = [cka(x, relabelled(partners, s)) for s in permutations]
    with pytest.MonkeyPatch.context() as patch:
        patch_file(patch, f"{CKA}.PRODUCTS_PER_ENTRY", 0 if lookups else 10**6)
        shuffled = compare_cka(x, partners).shuffled(permutations)
    np.testing.assert_allclose(shuffled, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("outer", ["spearman", "pearson"])
@pytest.mark.parametrize("inner", ["cosine", "pearson", "euclidean"])
@settings(max_examples=4)
@given(seed=st.integers(0, 1000), shape=SHAPES, sample=st.sampled_from([40, 2**24]))
def test_rsa_of_many_pairs_is_within_its_stated_error_of_the_definition(
    inner, outer, kind, pairing, seed, shape, sample
):
    x, partners, permutations = paired(kind, pairing, seed, shape)
    options = {"inner": inner, "outer": outer}
    expected = np.array([rsa(x, relabelled(partners, s), **options) for s in permutations])
    with as_if_many(**{"rsa.SAMPLE": sample}):
        comparison = compare_rsa(x, partners, **options)
        shuffled = comparison.shuffled(permutations)
        assert shuffled[0] == comparison.score()
    # Under relabelling the levels of Y hold other numbers of pairs than they were judged by.
    error = comparison.rank_error if outer == "spearman" else 5e-7
    assert abs(shuffled[0] - expected[0]) <= error + 1e-12
    if pairing == "one_to_one" or outer == "pearson":
        assert np.abs(shuffled - expected).max() <= error + 1e-12
    elif sample == 2**24:
        np.testing.assert_allclose(shuffled, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("inner", ["cosine", "euclidean"])
def test_similarities_far_from_the_origin_are_ranked_by_what_they_differ_in(inner):
    """Cosines then agree in their first digits: single precision would lose what is left."""
    x, y = rows_of("plain", 0, 60, 8, 9)
    x, y = x + 300, y + 300
    with as_if_many():
        many = compare_rsa(x, partners_of(y), inner=inner)
        assert many.score() == pytest.approx(rsa(x, y, inner=inner), abs=many.rank_error)
    assert many.rank_error < 1e-3


# The error of ranks in 16 bits.


def test_ranks_in_16_bits_are_right_to_the_stated_error():
    x, y = rows_of("plain", 3, 400, 20, 30)
    exact = rsa(x, y)
    with as_if_many(**{"rsa.STRIP_ROWS": 64}):
        comparison = compare_rsa(x, partners_of(y))
        assert comparison.x.matrix.dtype == np.uint16
        # 79,800 similarities: a level holds two of them at most, and a code 1.2.
        assert comparison.rank_error < 1e-4
        assert comparison.score() == pytest.approx(exact, abs=1e-6)


def test_coarser_levels_have_a_larger_stated_error_and_keep_it():
    x, y = rows_of("plain", 4, 150, 20, 30)
    exact, errors = rsa(x, y), []
    for n_codes in (2**4, 2**8, 2**12, 2**16):
        with as_if_many(**{"rsa.N_CODES": n_codes}):
            comparison = compare_rsa(x, partners_of(y))
            errors.append(comparison.rank_error)
            assert abs(comparison.score() - exact) <= comparison.rank_error
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.05
    assert errors[1] < 0.03


def test_a_value_that_stands_for_many_is_a_level_of_its_own():
    values = np.sort(np.concatenate([np.zeros(500), np.linspace(1e-9, 1, 300)]))
    edges = level_edges(values, 64)
    assert len(edges) < 64
    assert 0.0 in edges
    assert np.nextafter(0.0, 1) in edges


def test_ties_in_half_of_the_similarities_are_not_mixed_with_their_neighbours():
    rng = np.random.default_rng(0)
    x, y = np.zeros((2, 120, 40))
    for rows in (x, y):  # three groups at right angles
        for group in range(3):
            rows[40 * group : 40 * group + 40, 12 * group : 12 * group + 12] = rng.normal(
                size=(40, 12)
            )
    exact = rsa(x, y)
    with as_if_many(**{"rsa.SAMPLE": 500, "rsa.N_CODES": 2**10}):
        comparison = compare_rsa(x, partners_of(y))
    assert abs(comparison.score() - exact) <= comparison.rank_error < 0.02


def test_a_partner_that_hundreds_hold_does_not_overflow():
    rng = np.random.default_rng(0)
    x, y = rows_of("plain", 0, 260, 6, 7)
    held = np.concatenate([np.zeros(220, dtype=int), np.arange(40)])
    partners = partners_of(y[held])
    s = rng.permutation(len(partners.rows))
    expected = [rsa(x, relabelled(partners, p)) for p in (np.arange(40), s)]
    with as_if_many(**{"rsa.STRIP_ROWS": 64}):
        comparison = compare_rsa(x, partners)
        assert comparison.grouped().dtype == np.float64
        shuffled = comparison.shuffled(np.array([np.arange(40), s]))
    np.testing.assert_allclose(shuffled, expected, rtol=0, atol=1e-5)


@given(
    values=st.lists(st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0]), min_size=3, max_size=40),
    edges=st.lists(st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=20),
)
def test_levels_are_found_as_by_searching(values, edges):
    edges = np.unique(edges)
    n = len(values)
    strip = np.tile(np.array(values), (n, 1))
    n_cells = 4 * len(edges)
    reach = edges[-1] - edges[0]
    scale = n_cells / reach if reach > 0 and np.isfinite(n_cells / reach) else 0.0
    cells = np.minimum((edges - edges[0]) * scale, n_cells - 1).astype(np.int64)
    cell_starts = np.searchsorted(cells, np.arange(n_cells + 1))
    level, often = np.zeros((n, n), np.uint16), np.zeros((3, len(edges) + 1), np.int64)
    find_levels(strip, 0, edges, cell_starts, scale, np.ones(n, dtype=np.int64), level, often)
    expected = np.tril(np.searchsorted(edges, strip, side="right"), -1)
    np.testing.assert_array_equal(level, expected)
    below = expected[np.tril_indices(n, -1)]
    np.testing.assert_array_equal(often.sum(axis=0), np.bincount(below, minlength=len(edges) + 1))


@pytest.mark.parametrize("inner", ["cosine", "pearson", "euclidean"])
def test_strips_hold_every_similarity(inner):
    rows, _ = rows_of("plain", 0, 30, 12, 9)
    centred = rows - rows.mean(axis=1, keepdims=True) if inner == "pearson" else rows
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    expected = unit @ unit.T
    if inner == "euclidean":
        expected = -np.linalg.norm(rows[:, None] - rows[None], axis=2)
    with as_if_many():
        alike = Similarities.of(rows, inner)
        assert len(alike.strips) == 5
        matrix = alike.matrix(exact=True)
    np.testing.assert_allclose(matrix, expected, atol=1e-12)
    np.testing.assert_array_equal(matrix, matrix.T)


# Nulls of many pairs.


@pytest.mark.parametrize(
    ("measure", "options"),
    [("rsa", {}), ("rsa", {"outer": "pearson"}), ("cka", {}), ("svcca_r2", {"n_components": 1})],
)
def test_exact_moments_of_many_pairs_are_those_of_every_shuffle(measure, options):
    x, y = rows_of("plain", 5, 6, 3, 3)
    changes = {"cka.PRODUCTS_PER_ENTRY": 0, "rsa.N_CODES": 2**4}
    with as_if_many(**changes):
        comparison = MEASURES[measure].compare(x, partners_of(y), **options)
        scores = comparison.shuffled(np.array(list(itertools.permutations(range(6)))))
        moments = comparison.exact_moments()
    tolerance = {"cka": 1e-6}.get(measure, 1e-9)  # its rows keep what its Gram matrices lose
    np.testing.assert_allclose(moments, [scores.mean(), scores.std()], atol=tolerance)


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("measure", [m for m in MEASURES if m != "mutual_knn"])
def test_a_null_that_cannot_move_reaches_the_score_on_every_shuffle(measure, pairing):
    x, partners, permutations = paired("plain", pairing, 0, (40, 12, 9))
    with as_if_many(**{"cka.PRODUCTS_PER_ENTRY": 0}):
        scored = score_comparison(
            MEASURES[measure].compare(x, partners),
            partners,
            measure=measure,
            null="rate_matched",
            permutations=np.tile(permutations[0], (19, 1)),
        )
    assert scored.p_value == 1


def test_partners_in_another_order_than_the_pairs_are_lined_up():
    x, y = rows_of("plain", 0, 30, 8, 9)
    held = np.random.default_rng(0).permutation(30)
    partners = Partners(y[np.argsort(held)], held)
    np.testing.assert_array_equal(partners.y, y)
    unmoved = np.arange(30)[None]
    for measure, options in (*CANONICAL, ("rsa", {}), ("cka", {})):
        for context in (as_if_many, threadpool_limits):
            with context():
                comparison = MEASURES[measure].compare(x, partners, **options)
                expected = MEASURES[measure].compute(x, y, **options)
                assert comparison.score() == pytest.approx(expected, abs=2e-4)
                assert comparison.shuffled(unmoved)[0] == comparison.score()


def test_both_ways_to_add_up_under_a_permutation_are_the_sum():
    rng = np.random.default_rng(0)
    a, b = (rng.integers(2**16, size=(2, 23, 23))).astype(np.uint16)
    a, b = np.maximum(a, a.T), np.maximum(b, b.T)
    permutations = np.array([rng.permutation(23) for _ in range(5)])
    expected = [(a.astype(float) * b[np.ix_(s, s)]).sum() for s in permutations]
    sums = permuted_sums(a.astype(float), b.astype(float), permutations.astype(np.uint32))
    np.testing.assert_allclose(sums, expected, rtol=1e-14)
    below = permuted_code_sums(a, b, permutations.astype(np.uint16))
    diagonal = [(np.diag(a).astype(float) * np.diag(b)[s]).sum() for s in permutations]
    np.testing.assert_array_equal(2 * below + diagonal, expected)


# Products in blocks.


@settings(max_examples=30)
@given(
    seed=st.integers(0, 1000),
    n_rows=st.sampled_from([5, 23, 40]),
    block=st.sampled_from([1, 300, 1000, 2**26]),
    gather=st.sampled_from([0, 2000, 2**23]),
)
def test_blocks_do_not_change_products(seed, n_rows, block, gather):
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(n_rows, 4)), rng.normal(size=(n_rows, 6)) + 1e4
    permutations = np.array([rng.permutation(n_rows) for _ in range(7)])
    with as_if_many(**{"products.BLOCK_BYTES": block, "products.GATHER_BYTES": gather}):
        stacks = list(shuffled_products(left, right, permutations))
        scatter = scatter_matrix(right, right.mean(axis=0))
    expected = np.array([left.T @ right[s] for s in permutations])
    np.testing.assert_allclose(np.concatenate(stacks), expected, rtol=1e-10, atol=1e-8)
    centred = right - right.mean(axis=0)
    np.testing.assert_allclose(scatter, centred.T @ centred, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n_rows", [1, 4, 20, 100])
def test_the_lower_triangle_is_mirrored(n_rows):
    matrix = np.random.default_rng(0).normal(size=(20, 20))
    expected = np.tril(matrix) + np.tril(matrix, -1).T
    mirror(matrix, n_rows)
    np.testing.assert_array_equal(matrix, expected)


# A few eigenvectors of a wide matrix.


def spectrum(values: np.ndarray, seed: int = 0) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))
    gram = (q * values) @ q.T
    return (gram + gram.T) / 2


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), n=st.integers(1, 6))
def test_lanczos_finds_the_leading_eigenpairs(seed, n):
    rng = np.random.default_rng(seed)
    gram = spectrum(rng.exponential(size=60) ** 2, seed)
    found = lanczos(gram, n)
    assert found is not None
    values, vectors = np.linalg.eigh(gram)
    np.testing.assert_allclose(found[0], values[::-1][:n], rtol=1e-9)
    cosines = np.abs((found[1] * vectors[:, ::-1][:, :n]).sum(axis=0))
    np.testing.assert_allclose(cosines, 1, atol=1e-5)


@pytest.mark.parametrize("times", [2, 3, 10])
@pytest.mark.parametrize("seed", range(5))
def test_a_leading_eigenvalue_that_repeats_is_not_missed(times, seed):
    gram = spectrum(np.concatenate([np.full(times, 5.0), np.linspace(0.1, 1, 60)]), seed)
    values, vectors = leading_eigenpairs(gram, 3)
    with as_if_many():
        some_values, some_vectors = leading_eigenpairs(gram, 3)
    np.testing.assert_allclose(some_values, values, rtol=1e-9)
    np.testing.assert_allclose(gram @ some_vectors, some_vectors * some_values, atol=1e-9)
    assert vectors.shape == some_vectors.shape


def test_lanczos_gives_nothing_where_a_larger_eigenvalue_was_missed(monkeypatch):
    gram = spectrum(np.linspace(1, 2, 40))
    values, vectors = np.linalg.eigh(gram)
    for chosen in ([37, 38], [38, 39]):
        monkeypatch.setattr(
            spectra.scipy.sparse.linalg,
            "eigsh",
            lambda *_, chosen=chosen, **__: (values[chosen], vectors[:, chosen]),
        )
        assert (lanczos(gram, 2) is None) == (chosen == [37, 38])


def test_lanczos_gives_nothing_where_there_is_no_such_rank_or_it_fails(monkeypatch):
    assert lanczos(spectrum(np.concatenate([[3.0, 2.0], np.zeros(38)])), 5) is None
    assert lanczos(np.zeros((40, 40)), 2) is None

    def fails(*_, **__):
        raise spectra.scipy.sparse.linalg.ArpackNoConvergence("none", np.zeros(0), np.zeros((0, 0)))

    monkeypatch.setattr(spectra.scipy.sparse.linalg, "eigsh", fails)
    gram = spectrum(np.linspace(1, 2, 40))
    assert lanczos(gram, 2) is None
    with as_if_many():
        np.testing.assert_allclose(leading_eigenpairs(gram, 2)[0], [2, 2 - 1 / 39])


@pytest.mark.parametrize("smallest", [1, 1e-3, 1e-8, 0])
def test_singular_values_of_a_stack_are_those_of_each(smallest):
    rng = np.random.default_rng(0)
    stack = rng.normal(size=(4, 5, 9))
    u, s, v = np.linalg.svd(stack, full_matrices=False)
    s[1:3, -1] = smallest * s[1:3, 0]
    stack = (u * s[:, None]) @ v
    found = singular_values(stack)
    np.testing.assert_allclose(found.sum(axis=1), s.sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(singular_values(stack[:0]).shape, (0, 5))


# Partners.


def test_rows_that_differ_late_are_told_apart_and_minus_zero_is_zero():
    rows = np.zeros((5, 40))
    rows[1, 30], rows[2, 39], rows[3, 30], rows[4, 3] = 1, 1, 1, -0.0
    partners = partners_of(rows)
    np.testing.assert_array_equal(partners.held, [0, 1, 2, 1, 0])
    np.testing.assert_array_equal(partners.rows, rows[:3])


def test_rows_in_order_are_not_copied():
    rows = np.random.default_rng(0).normal(size=(6, 30))
    partners = partners_of(rows)
    assert partners.rows is rows
    assert partners.y is rows
    assert partners.group_sums(rows) is rows


def test_measures_of_many_pairs_agree_with_scipy_on_what_is_known():
    """Rank correlation of distances, the same with 16 bits, to its stated error."""
    x, y = rows_of("plain", 1, 50, 4, 5)
    distances = [scipy.spatial.distance.pdist(rows) for rows in (x, y)]
    expected = scipy.stats.spearmanr(*distances).statistic
    with as_if_many():
        assert compare_rsa(x, partners_of(y), inner="euclidean").score() == pytest.approx(
            expected, abs=1e-4
        )
        for function, measure in ((pc1, "pc1"), (svcca, "svcca"), (svcca_r2, "svcca_r2")):
            compared = MEASURES[measure].compare(x, partners_of(y)).score()
            assert compared == pytest.approx(function(x, y), abs=1e-9)
        assert compare_cka(x, partners_of(y)).score() == pytest.approx(cka(x, y), abs=1e-6)
    assert products.BLOCK_BYTES > 1500
