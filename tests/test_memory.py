"""Memory is planned: what is said in advance, and that a run keeps to it."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from saelign.errors import StudyError
from saelign.forecast import (
    LayerSize,
    SideSize,
    cell_seconds,
    forecast,
    grouped,
    memory_limit,
    subspace_seconds,
)
from saelign.layers import Layer
from saelign.shelf import Shelf
from saelign.study import MeasureStudy, Study, read_study
from test_layers import acts_of, described, read, text_of
from test_study import MINIMAL

GIB = 2**30


def study(**changes: Any) -> Study:
    from pathlib import Path

    return read_study({**MINIMAL, **changes}, folder=Path("/studies"))


def side(key: str, *, n_layers: int = 4, d_sae: int = 16384, d_model: int = 2304) -> SideSize:
    return SideSize(
        key=key,
        n_parameters=2_600_000_000,
        bytes_per_parameter=2,
        layers={i: LayerSize(d_model=d_model, d_sae=d_sae, k=None) for i in range(n_layers)},
    )


def told(limit: float, n_layers: int = 4, n_tokens: int = 100_000, **changes: Any):
    return forecast(
        study(**changes),
        [(side("a", n_layers=n_layers), side("b", n_layers=n_layers))],
        n_tokens=[n_tokens],
        n_positions=[n_tokens],
        limit=int(limit * GIB),
    )


@pytest.mark.parametrize(
    ("asked", "n_bytes"),
    [
        ("8GiB", 8 * GIB), ("8 gib", 8 * GIB), ("1.5GB", 1_500_000_000), ("500MB", 500_000_000),
        ("4096", 4096), (4096, 4096), ("2TiB", 2 * 2**40),
    ],
)  # fmt: skip
def test_memory_is_given_in_the_usual_units(asked, n_bytes):
    assert memory_limit(asked) == n_bytes


@pytest.mark.parametrize("asked", ["", "GiB", "8 apples", "-1GiB", "0", "8GiB please"])
def test_what_is_no_size_is_refused(asked):
    with pytest.raises(StudyError, match="memory must be a number of bytes or such as 8GiB"):
        memory_limit(asked)


def test_most_of_what_is_free_is_taken_when_nothing_is_said():
    assert 2**20 < memory_limit(None) < 2**50


def test_the_forecast_stays_within_the_limit_and_grows_with_the_study():
    wide, narrow = told(64), told(12)
    assert wide.memory_bytes <= wide.limit
    assert narrow.memory_bytes <= narrow.limit
    assert wide.needed_bytes == narrow.needed_bytes <= 12 * GIB
    assert narrow.room_for_layers < wide.room_for_layers
    assert told(64, n_layers=8).disk_bytes == 2 * wide.disk_bytes
    assert told(64, n_tokens=200_000).disk_bytes == 2 * wide.disk_bytes
    assert told(64, n_layers=8).compare_seconds == pytest.approx(4 * wide.compare_seconds)
    assert told(64).collect_seconds > 0


def test_less_memory_means_more_passes_each_with_its_share_of_layers():
    wide, narrow = told(64, n_layers=26), told(12, n_layers=26)
    assert len(wide.saes_at_once["a"]) == 1
    assert len(narrow.saes_at_once["a"]) > 1
    assert [i for some in narrow.saes_at_once["a"] for i in some] == list(range(26))
    assert narrow.collect_seconds > wide.collect_seconds


def test_a_limit_that_cannot_be_kept_is_refused_with_what_would_do():
    with pytest.raises(StudyError, match=r"memory must be at least \d+\.\d GiB to run a model"):
        told(4)
    with pytest.raises(StudyError, match=r"memory must be at least \d+\.\d GiB for this study"):
        told(8, n_tokens=3_000_000)
    needed = told(64).needed_bytes
    assert told((needed + 1) / GIB).needed_bytes == needed


def test_groups_hold_what_fits_and_one_layer_at_least():
    layers = {i: LayerSize(d_model=10, d_sae=100, k=5) for i in range(5)}
    size = layers[0].sae_bytes
    assert grouped(layers, 2 * size) == [[0, 1], [2, 3], [4]]
    assert grouped(layers, size // 2) == [[0], [1], [2], [3], [4]]
    assert grouped(layers, 99 * size) == [[0, 1, 2, 3, 4]]


def test_fewer_permutations_of_a_measure_take_less_time():
    size = LayerSize(d_model=2304, d_sae=16384, k=65)
    all_of_them = study(measures=["rsa"])
    fewer = dataclasses.replace(all_of_them, measures=[MeasureStudy(name="rsa", permutations=100)])
    assert cell_seconds(fewer, size, size, 100_000) < cell_seconds(all_of_them, size, size, 100_000)


def test_decompositions_of_repeated_partners_are_reckoned_with():
    size = LayerSize(d_model=2304, d_sae=16384, k=65)
    seconds = {
        (name, matching): cell_seconds(
            study(measures=[name], matching=[matching]), size, size, 100_000
        )
        for name in ("pc1", "cka")
        for matching in ("one_to_one", "many_to_one")
    }
    assert seconds["pc1", "many_to_one"] > 20 * seconds["pc1", "one_to_one"]
    assert seconds["cka", "many_to_one"] == pytest.approx(seconds["cka", "one_to_one"])


def test_groups_of_the_size_of_each_subspace_are_reckoned_with():
    assert subspace_seconds(study()) == 0
    few, many = (
        subspace_seconds(study(subspaces={"same_size": n}, measures=["rsa", "cka"]))
        for n in (100, 300)
    )
    assert many == pytest.approx(3 * few)
    assert few > 0


# The shelf.


@pytest.fixture(scope="module")
def layers() -> list[Layer]:
    reading = read(text_of([11, 7] * 20))
    return [described(acts_of(reading.tokens.n_tokens, seed=i), reading) for i in range(4)]


def shelf_of(layers: list[Layer], room: int):
    made: list[int] = []

    def make(number: int) -> Layer:
        made.append(number)
        return layers[number]

    return Shelf(room), made, make


def test_layers_that_fit_are_made_once(layers):
    shelf, made, make = shelf_of(layers, 10**9)
    on_shelf = shelf.side("a", range(4), make)
    for _ in range(3):
        assert [on_shelf[i] is layers[i] for i in on_shelf] == [True] * 4
    assert made == [0, 1, 2, 3]
    assert len(on_shelf) == 4
    shelf.forget(["a"])
    assert shelf.n_bytes == 0
    with pytest.raises(KeyError):
        on_shelf[9]


@pytest.mark.parametrize("n_fit", [0, 2, 3])
def test_no_more_than_fit_are_kept_and_two_always_are(layers, n_fit):
    size = max(layer.n_bytes for layer in layers)
    shelf, made, make = shelf_of(layers, n_fit * size)
    a, b = shelf.side("a", range(4), make), shelf.side("b", range(4), make)
    for i in a:
        for j in b:
            assert (a[i], b[j]) == (layers[i], layers[j])
            assert shelf.n_bytes <= max(2, n_fit) * size
    assert len(made) > 8  # some were made again


def test_the_bytes_of_a_layer_are_those_of_its_arrays(layers):
    layer = layers[0]
    assert layer.n_bytes > layer.decoder.nbytes + 18 * layer.n_values
    assert layer.n_bytes < layer.decoder.nbytes + 100 * layer.n_values + 10_000


def test_what_a_layer_takes_is_not_more_than_was_said():
    rng = np.random.default_rng(0)
    reading = read(text_of([40] * 100))
    n_tokens, width, k = reading.tokens.n_tokens, 512, 20
    import scipy.sparse as sp

    columns = np.argsort(rng.random((n_tokens, width)), axis=1)[:, :k].ravel()
    acts = sp.csr_array(
        (
            rng.exponential(size=n_tokens * k).astype(np.float32),
            (np.repeat(np.arange(n_tokens), k), columns),
        ),
        shape=(n_tokens, width),
    )
    layer = described(acts, reading)
    said = LayerSize(d_model=layer.decoder.shape[1], d_sae=width, k=k).layer_bytes(n_tokens)
    slack = 12 * 12 * width * 3 + 64 * width  # few token types, many features: sums are dense
    assert layer.n_bytes <= said + slack + layer.decoder.nbytes
