"""Dense tiles against the sparse loops: the same partners and values, whatever is cut where."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

from saelign import tiles
from saelign.correlation import FeatureColumns, SparseCorrelation, TokenRows, as_csr
from saelign.correlation.sparse import strongest_of_products

KINDS = ("sparse", "dense", "signed", "few_values", "huge_mean", "huge", "minute", "empty")
METRICS = ("pearson", "cosine", "euclidean")


@st.composite
def sides(draw) -> tuple[np.ndarray, np.ndarray]:
    """Activations of two sides of any sparsity, some features dead, constant or copies."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.sampled_from([1, 2, 3, 17, 40, 300]))
    kind = draw(st.sampled_from(KINDS))
    both = []
    for _ in range(2):
        width = draw(st.integers(1, 9))
        acts = rng.exponential(size=(n, width))
        if kind == "signed":
            acts = rng.normal(size=(n, width))
        if kind == "few_values":
            acts = rng.integers(0, 3, size=(n, width)).astype(float)
        if kind == "huge_mean":
            acts = 1e4 + rng.normal(size=(n, width))
        acts *= {"huge": 1e30, "minute": 1e-30}.get(kind, 1.0)
        share = {"dense": 1.0, "huge_mean": 1.0, "empty": 0.0}.get(kind, 0.3)
        acts *= rng.random((n, width)) < share
        for what in draw(st.sets(st.sampled_from(["dead", "constant", "copy", "silent"]))):
            j, other = rng.integers(width, size=2)
            if what == "dead":
                acts[:, j] = 0
            elif what == "constant":
                acts[:, j] = 2.0
            elif what == "copy":
                acts[:, j] = acts[:, other]
            else:
                acts[rng.integers(n)] = 0
        both.append(acts)
    return both[0], both[1]


def arguments(a, b, metric: str = "pearson") -> tuple:
    """What `SparseCorrelation.strongest` hands on, of all features that have a similarity."""
    c = SparseCorrelation.of(as_csr(a), as_csr(b), metric=metric)
    scale_a, scale_b = c.scales()
    total_a, total_b = c.moments_a.total, c.moments_b.total
    if metric == "cosine":
        total_a, total_b = 0 * total_a, 0 * total_b
    features_a = np.flatnonzero(~np.isnan(scale_a))
    return features_a, c.columns_a, c.rows_b, total_a / len(a), total_b, scale_a, scale_b


def similarities(given: tuple) -> np.ndarray:
    """All of them in float64, as the arguments define them."""
    features_a, a, b, mean_a, total_b, scale_a, scale_b = given
    dense_a = np.zeros((len(b.starts), len(mean_a)))
    dense_b = np.zeros((len(b.starts), len(total_b)))
    for j, (start, stop) in enumerate(zip(a.starts, a.stops, strict=True)):
        dense_a[a.tokens[start:stop], j] = a.values[start:stop]
    for t, (start, stop) in enumerate(zip(b.starts, b.stops, strict=True)):
        dense_b[t, b.features[start:stop]] = b.values[start:stop]
    products = dense_a.T @ dense_b - np.outer(mean_a, total_b)
    return np.clip(products * scale_a[:, None] * scale_b, -1, 1)[features_a]


def assert_lists_agree(found, expected, table, features_a, offsets) -> None:
    """Values are equal to 1e-5, and each partner listed once and where its value is."""
    for x, y in zip(found, expected, strict=True):
        assert x.shape == y.shape
        assert x.dtype == y.dtype
    best_a, value_a, best_b, value_b = found
    for values, wanted in ((value_a, expected[1]), (value_b, expected[3])):
        np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-5)
    shifted = table - (0 if offsets is None else offsets)
    row_of = np.full(features_a.max(initial=0) + 1, -1)
    row_of[features_a] = np.arange(len(features_a))
    for best, values, rows in (
        (best_a, value_a, shifted),
        (np.where(best_b >= 0, row_of[best_b], -1), value_b, shifted.T),
    ):
        np.testing.assert_array_equal(best < 0, np.isneginf(values))
        for names, strengths, row in zip(best, values, rows, strict=True):
            listed = names[names >= 0]
            assert len(set(listed.tolist())) == len(listed)
            np.testing.assert_allclose(strengths[: len(listed)], row[listed], rtol=0, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
@given(
    both=sides(),
    n_best_a=st.integers(1, 4),
    n_best_b=st.integers(1, 4),
    width=st.none() | st.integers(1, 5),
    chunk=st.sampled_from([1, 3, 7, 150, 1024]),
    step=st.sampled_from([1, 2, 128]),
    data=st.data(),
)
def test_tiles_list_what_the_sparse_loops_list(
    metric, both, n_best_a, n_best_b, width, chunk, step, data
):
    given = arguments(*both, metric)
    offsets = None
    if data.draw(st.booleans()):
        n_b = len(given[-1])
        offsets = np.array(data.draw(st.lists(st.floats(-1, 1), min_size=n_b, max_size=n_b)))
    options = (offsets, n_best_a, n_best_b)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "STEP", step)
        found = tiles.strongest_in_tiles(*given, *options, device="cpu", width=width, chunk=chunk)
    expected = strongest_of_products(*given, *options, 0.0)
    assert_lists_agree(found, expected, similarities(given), given[0], offsets)


@given(both=sides(), seed=st.integers(0, 99), width=st.integers(1, 5), chunk=st.integers(1, 9))
def test_a_half_of_the_text_and_another_order_of_it_are_seen_in_the_columns_alone(
    both, seed, width, chunk
):
    # As `saelign.layers` lays halves out: A's columns hold a half, B's rows the text in any order.
    rng = np.random.default_rng(seed)
    a, b = both
    order = rng.permutation(len(b))
    n_first = 1 + len(a) // 2
    features_a, _, _, mean_a, total_b, scale_a, scale_b = arguments(a[:n_first], b[order][:n_first])
    whole = FeatureColumns.of(as_csr(a).tocsc())
    counts = (a[:n_first] != 0).sum(axis=0)
    half = FeatureColumns(
        starts=whole.starts,
        stops=whole.starts + counts,
        tokens=whole.tokens,
        values=whole.values,
        n_tokens=whole.n_tokens,
    )
    rows = TokenRows.of(as_csr(b)).tokens(order)
    given = (features_a, half, rows, mean_a, total_b, scale_a, scale_b)
    found = tiles.strongest_in_tiles(*given, None, 2, 2, device="cpu", width=width, chunk=chunk)
    expected = strongest_of_products(*given, None, 2, 2, 0.0)
    assert_lists_agree(found, expected, similarities(given), features_a, None)


@given(seed=st.integers(0, 2**32 - 1), width=st.integers(1, 5), n_best=st.integers(1, 4))
def test_equals_go_to_the_lower_index(seed, width, n_best):
    # As many +1 as -1: mean 0, root mean square 1, and so every product is exact.
    rng = np.random.default_rng(seed)
    a, b = (
        np.array([rng.permutation(np.repeat([-1.0, 1.0], 4)) for _ in range(9)]).T for _ in range(2)
    )
    features_a, *given = arguments(a, b)
    given[-1][rng.random(9) < 0.2] = np.nan
    options = (None, n_best, n_best)
    found = tiles.strongest_in_tiles(features_a, *given, *options, device="cpu", width=width)
    expected = strongest_of_products(features_a, *given, *options, 0.0)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-7)


def test_a_key_rises_with_the_value_and_falls_with_the_name():
    values = np.array([-np.inf, -1.5, -1e-30, -0.0, 0.0, 1e-30, 0.3, 1.0, 1.0])
    keys = tiles.keys_of(torch.tensor(values[None]), torch.arange(9))[0]
    assert keys.argsort(descending=True).tolist() == [7, 8, 6, 5, 3, 4, 2, 1, 0]
    names, back = tiles.read(keys[None])
    assert names[0].tolist() == [-1, 1, 2, 3, 4, 5, 6, 7, 8]
    np.testing.assert_array_equal(back[0], values.astype(np.float32))
    nothing = tiles.none_yet(2, 3, "cpu")
    assert (nothing < keys.min()).all()
    assert (tiles.read(nothing)[0] == -1).all()
    nan = tiles.keys_of(torch.tensor([[np.nan]], dtype=torch.float64), torch.tensor([0]))
    assert tiles.read(nan)[0].item() == -1


def adversaries(n: int) -> np.ndarray:
    """Features whose products round the same way at token after token."""
    rng = np.random.default_rng(0)
    seldom = rng.exponential(size=(n, 20)) * (rng.random((n, 20)) < 0.05)
    signs = np.sign(rng.normal(size=(n, 20))) * (1 + 1e-3 * rng.random(20))
    huge = 1e4 + rng.normal(size=(n, 20))
    return np.hstack([seldom, signs, huge, 1e4 + signs])  # the last correlate 1 with the second


def test_rounding_stays_within_the_bound_where_it_is_not_random():
    acts = adversaries(5000)
    given = arguments(acts, acts)
    n = acts.shape[1]
    best_a, value_a, best_b, value_b = tiles.strongest_in_tiles(*given, None, n, 1, device="cpu")
    centred = acts - acts.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=0)
    exact = centred.T @ centred
    bound = (tiles.STEP + tiles.CHUNK / tiles.STEP + 2) * 2.0**-24 + 2.0**-24
    assert bound < 1e-5
    np.testing.assert_allclose(
        value_a, np.take_along_axis(exact, best_a.astype(np.int64), axis=1), rtol=0, atol=bound
    )
    np.testing.assert_array_equal(best_b[:, 0] % 40, np.arange(n) % 40)  # signs, with and without
    np.testing.assert_allclose(value_b, 1, rtol=0, atol=bound)


@pytest.mark.parametrize("width", [2**16, 2**16 + 1])
def test_features_beyond_16_bits_keep_their_names(width):
    rng = np.random.default_rng(0)
    acts = sp.random_array((200, 5), density=0.3, rng=rng, format="csr")
    far = np.array([0, 1, 40_000, 65_535, width - 1])
    coo = acts.tocoo()
    wide = sp.csr_array((coo.data, (coo.coords[0], far[coo.coords[1]])), shape=(200, width))
    options = {"n_best_a": 1, "n_best_b": 1}
    for a, b in ((acts, wide), (wide, acts)):
        c = SparseCorrelation.of(as_csr(a), as_csr(b))
        on_device = SparseCorrelation.of(as_csr(a), as_csr(b))
        object.__setattr__(on_device, "engine", tiles.engine("cpu", way="tiles"))
        features = np.flatnonzero(c.pairable_a(1)), np.flatnonzero(c.pairable_b(1))
        x, y = c.strongest(*features, **options), on_device.strongest(*features, **options)
        np.testing.assert_array_equal(x.partners_a, y.partners_a)
        np.testing.assert_array_equal(x.partners_b, y.partners_b)
        np.testing.assert_allclose(x.similarity_a, y.similarity_a, atol=1e-5)


def test_a_side_without_activations_has_no_partners():
    given = arguments(np.zeros((4, 3)), np.eye(4))
    best_a, value_a, best_b, value_b = tiles.strongest_in_tiles(*given, None, 2, 3, device="cpu")
    assert best_a.shape == value_a.shape == (0, 2)
    assert best_b.shape == value_b.shape == (4, 3)
    assert (best_b == -1).all()
    assert tiles.time_of_tiles(given[1], given[2], "cpu") >= 0


def test_a_tile_obeys_its_memory():
    for memory in (2**24, 2**27, 2**30):
        width = tiles.tile_width(memory, 1024)
        assert tiles.NARROWEST < width < tiles.WIDEST
        for wide, fits in ((width, True), (width + 1, False)):
            takes = tiles.BYTES_PER_PAIR * wide**2 + 2 * 4 * 1024 * wide
            assert (takes <= memory) == fits
    assert tiles.tile_width(-5, 1024) == tiles.NARROWEST
    assert tiles.tile_width(2**50, 1024) == tiles.WIDEST
    assert tiles.free_memory("cpu") == tiles.MEMORY


def test_half_of_what_is_free_or_kept_unused_on_the_gpu_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 20)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70, 1000))
    assert tiles.free_memory("cuda:0") == 50


def test_the_precision_of_products_is_put_back():
    torch.set_float32_matmul_precision("high")
    try:
        with tiles.exact_products():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.fixture
def nothing_chosen(monkeypatch):
    monkeypatch.setattr(tiles, "_CHOSEN", {})


@pytest.mark.usefixtures("nothing_chosen")
@pytest.mark.parametrize(("of_tiles", "wanted"), [(1.0, "tiles"), (3.0, "sparse")])
def test_what_was_timed_faster_is_taken_and_remembered(of_tiles, wanted):
    calls = []

    def time_tiles(*given):
        calls.append(given[-1])
        return of_tiles

    _, a, b, *_ = arguments(np.eye(6), np.eye(6))
    timers = {"time_tiles": time_tiles, "time_sparse": lambda *_: 2.0, "least_cofirings": 0}
    for device in ("cuda", "cuda", "cuda:1"):
        assert tiles.faster(a, b, device, **timers) == wanted
    assert calls == ["cuda", "cuda:1"]
    _, denser, *_ = arguments(np.ones((6, 6)), np.eye(6))
    tiles.faster(denser, b, "cuda", **timers)
    assert len(calls) == 3


@pytest.mark.usefixtures("nothing_chosen")
def test_nothing_is_timed_on_a_cpu_or_for_little_work():
    _, a, b, *_ = arguments(np.eye(6), np.eye(6))

    def never(*_):
        raise AssertionError

    timers = {"time_tiles": never, "time_sparse": never}
    assert tiles.faster(a, b, "cpu", **timers, least_cofirings=0) == "sparse"
    assert tiles.faster(a, b, "cuda", **timers) == "sparse"


@pytest.mark.parametrize("n_features", [5, 700])
def test_both_ways_can_be_timed(n_features):
    rng = np.random.default_rng(0)
    acts = rng.exponential(size=(50, n_features)) * (rng.random((50, n_features)) < 0.2)
    _, a, b, *_ = arguments(acts, acts)
    assert tiles.time_of_tiles(a, b, "cpu") > 0
    assert tiles.time_of_sparse(a, b) > 0


@pytest.mark.usefixtures("nothing_chosen")
def test_the_engine_takes_the_way_that_was_found_or_forced(monkeypatch):
    taken = []
    for way in ("strongest_in_tiles", "strongest_of_products"):
        real = getattr(tiles, way)

        def told(*given, way=way, real=real, **options):
            taken.append(way)
            return real(*given, **options)

        monkeypatch.setattr(tiles, way, told)
    given = (*arguments(np.eye(6), np.eye(6)), None, 1, 1, 0.0)
    tiles.engine("cpu")(*given)
    tiles.engine("cpu", way="tiles")(*given)
    monkeypatch.setattr(tiles, "faster", lambda *_: "tiles")
    tiles.engine("cpu")(*given)
    tiles.engine("cpu", way="sparse")(*given)
    assert taken == [
        "strongest_of_products", "strongest_in_tiles", "strongest_in_tiles",
        "strongest_of_products",
    ]  # fmt: skip


@pytest.mark.parametrize("metric", METRICS)
def test_correlations_find_the_strongest_with_their_engine(metric):
    rng = np.random.default_rng(0)
    csr_a, csr_b = (
        as_csr(rng.exponential(size=(60, width)) * (rng.random((60, width)) < 0.3))
        for width in (12, 15)
    )
    plain = SparseCorrelation.of(csr_a, csr_b, metric=metric)
    calls = []

    def counted(*given):
        calls.append(given[-1])
        return tiles.engine("cpu", way="tiles")(*given)

    on_device = SparseCorrelation(
        metric=metric,
        columns_a=plain.columns_a,
        columns_b=plain.columns_b,
        rows_b=plain.rows_b,
        moments_a=plain.moments_a,
        moments_b=plain.moments_b,
        engine=counted,
    )
    for some_b in (np.arange(15), np.array([2, 3, 11])):  # rows of B as they are, and cut
        x, y = (
            c.strongest(np.arange(1, 12), some_b, n_best_a=3, n_best_b=2)
            for c in (plain, on_device)
        )
        np.testing.assert_array_equal(x.partners_a, y.partners_a)
        np.testing.assert_array_equal(x.partners_b, y.partners_b)
        np.testing.assert_allclose(x.similarity_a, y.similarity_a, atol=1e-5)
        np.testing.assert_allclose(x.similarity_b, y.similarity_b, atol=1e-5)
    assert len(calls) == 2
    on_device.by_pearson().listed(1, n_best_a=2)
    assert len(calls) == 3
