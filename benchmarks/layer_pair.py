"""Whole comparisons: a layer pair, a second one that shares a layer, and the demo."""

import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import yaml

from benchmarks.correlating import dense_fit
from benchmarks.harness import Point, Row, activations, decoder_rows, in_fresh_process
from benchmarks.measures import published_evaluation
from saelign.cells import LayerPair, Setting, compare_layers
from saelign.demo import FOLDER, demo_study
from saelign.layers import Layer, Reading, describe_layer, read_text_of_run
from saelign.results import TRAINED
from saelign.study import Study, read_study
from saelign.text import Tokens

CONTEXT = 128
N_VOCABULARY = 4096
N_SHUFFLES = 1000
N_DECOMPOSED = 10
"""Shuffles, as many as the papers took, where each needs a decomposition: partners that repeat."""
FULL = {"n_features": 16384, "n_tokens": 100_000, "l0": 65.0, "d_a": 2304, "d_b": 3584}
TINY = {"n_features": 256, "n_tokens": 4096, "l0": 16.0, "d_a": 24, "d_b": 32}
FOR_LAYERS = {"n_features": 2048, "n_tokens": 20_000, "l0": 30.0, "d_a": 288, "d_b": 448}
SQUARE: list[Any] = [
    {"rsa": {"inner": "pearson", "permutations": 100}},
    {"cka": {"permutations": 100}},
]
MEASURES: dict[str, list[Any]] = {
    "one_to_one": ["pc1", "svcca", *SQUARE],
    "many_to_one": [
        {"pc1": {"permutations": N_DECOMPOSED}},
        {"svcca": {"permutations": N_DECOMPOSED}},
        *SQUARE,
    ],
}
RUN = "import sys; from saelign.cli import main; sys.exit(main(sys.argv[1:]))"


def study_of(n_shuffles: int, matching: str = "one_to_one") -> Study:
    """A matching, four measures, both nulls; no filter, so that every matched pair counts."""
    content = {
        "saelign": 1,
        "name": "layer-pair",
        "model_a": {"name": "a", "saes": "{layer}"},
        "model_b": {"name": "b", "saes": "{layer}"},
        "text": {"source": "text"},
        "matching": [matching],
        "measures": MEASURES[matching],
        "nulls": {"shuffle": n_shuffles, "rate_matched": n_shuffles},
        "filters": {
            "max_non_concept_tokens": None,
            "min_shared_tokens": None,
            "min_correlation": None,
        },
    }
    return read_study(content, folder=Path())


def reading_of(n_tokens: int) -> Reading:
    """Contexts of random words, four to a document."""
    n_contexts = -(-n_tokens // CONTEXT)
    ids = np.random.default_rng(0).integers(N_VOCABULARY, size=(n_contexts, CONTEXT))
    everywhere = np.ones(ids.shape, dtype=bool)
    tokens = Tokens(
        input_ids=ids.astype(np.int32),
        attended=everywhere,
        kept=np.arange(ids.size).reshape(ids.shape) < n_tokens,
        document=np.arange(n_contexts, dtype=np.int32) // 4,
    )
    strings = {i: f" w{i}" for i in range(N_VOCABULARY)}
    rng_halves, rng_shifts = np.random.default_rng(1).spawn(2)
    return read_text_of_run(tokens, strings, rng_halves=rng_halves, rng_shifts=rng_shifts)


def sides_of(
    seed: int, *, n_features: int, n_tokens: int, l0: float, d_a: int, d_b: int
) -> tuple[tuple[sp.csr_array, np.ndarray], tuple[sp.csr_array, np.ndarray]]:
    """Activations and decoder rows of a layer of A and one of B; planted partners match."""
    data = activations(n_features=n_features, n_tokens=n_tokens, l0=l0, seed=seed)
    decoder_a, matched = decoder_rows(n_features, d_a, d_b, seed=seed)
    decoder_b = np.empty_like(matched)
    decoder_b[data.partner] = matched
    return (data.a, decoder_a), (data.b, decoder_b)


def described(side: tuple[sp.csr_array, np.ndarray], reading: Reading, layer: int) -> Layer:
    """As the pipeline describes it."""
    acts, decoder = side
    filters = study_of(2).filters
    return describe_layer(acts, decoder.astype(np.float64), reading, filters, layer=layer)


def compared(
    a: Layer, b: Layer, reading: Reading, n_shuffles: int, *, believably: bool = False
) -> int:
    """Both matchings and all measures of a layer pair; how many pairs were matched.

    Args:
        a: A layer of A.
        b: A layer of B.
        reading: The text.
        n_shuffles: Of each null.
        believably: With verdicts, and with the measures on each half of the text, as the pipeline
            does it.
    """
    pair, n_pairs = LayerPair(a=a, b=b, reading=reading), 0
    for matching in MEASURES:
        first = matching == "one_to_one"
        setting = Setting(
            study=study_of(n_shuffles, matching),
            control=TRAINED,
            run=0,
            seed=0,
            metrics=["pearson"],
            halves_scored=believably,
            judged=believably and first,
        )
        cell = compare_layers(setting, pair, lambda _pairs, _metric, _matching: None)
        for row in cell.scores:
            assert not row["note"], row
        n_pairs = n_pairs or int(cell.rows[0]["n_kept"])
    return n_pairs


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def prepare(*, n_shuffles: int, **size: Any) -> Callable[[], dict[str, float]]:
    """Compares one layer of A with two of B; says how long each step took."""
    reading = reading_of(size["n_tokens"])
    side_a, side_b = sides_of(0, **size)
    _, other = sides_of(1, **size)
    a, time_a = timed(lambda: described(side_a, reading, 0))
    b, time_b = timed(lambda: described(side_b, reading, 0))
    second, time_second = timed(lambda: described(other, reading, 1))
    del side_a, side_b, other

    def work() -> dict[str, float]:
        n_pairs, first_pair = timed(lambda: compared(a, b, reading, n_shuffles))
        _, second_pair = timed(lambda: compared(a, second, reading, n_shuffles))
        _, believed = timed(lambda: compared(a, second, reading, n_shuffles, believably=True))
        return {
            "describe_a": time_a,
            "describe_b": time_b,
            "describe_second": time_second,
            "first_pair": first_pair,
            "second_pair": second_pair,
            "believed": believed,
            "n_pairs": n_pairs,
        }

    return work


@functools.cache
def measured(*, quick: bool) -> tuple[dict[str, float], float]:
    """Seconds of each step, and the memory of both comparisons."""
    size = TINY if quick else FULL
    tiny = TINY | {"n_shuffles": 2}
    fresh = in_fresh_process(
        prepare, size | {"n_shuffles": 50 if quick else N_SHUFFLES}, tiny, quick=quick
    )
    return fresh.result, fresh.peak_gib


def told(size: Mapping[str, float], n_pairs: float) -> str:
    return (
        f"{size['n_features']:,} x {size['n_features']:,}, {size['n_tokens']:,} tokens, "
        f"d = {size['d_a']} and {size['d_b']}, {n_pairs:,} pairs one-to-one"
    )


def measure(*, quick: bool) -> Iterator[Row]:
    """Part f."""
    size = TINY if quick else FULL
    times, peak_gib = measured(quick=quick)
    correlation = dense_fit(quick=quick).at(size["n_tokens"])
    parts = [fit.at(size["n_features"]) for fit in published_evaluation(quick=quick)]
    yield Row(
        part="f",
        work="one layer pair, collected already: correlations over all documents and both halves, "
        "both matchings, pc1, svcca, rsa, cka, both nulls",
        size=told(size, times["n_pairs"]),
        ours_s=times["first_pair"],
        ours_peak_gib=peak_gib,
        opponent="published: correlation once, SVCCA and RSA for every shuffle, one matching, one "
        "null",
        opponent_s=correlation + sum(parts) * (1 + N_SHUFFLES),
        how=f"extrapolated: {correlation:.4g} s and {1 + N_SHUFFLES:,} times "
        f"{' + '.join(f'{part:.4g}' for part in parts)} s, as in parts a and e",
        target_s=300.0,
        note=f"{50 if quick else N_SHUFFLES:,} shuffles of each null, {100:,} for rsa and cka, "
        f"{N_DECOMPOSED} for pc1 and svcca in many-to-one, where each is a decomposition; no "
        "pair filtered; measured once, in a process of its own; with verdicts, and the measures on "
        f"each half of the text as well, as the pipeline does it: {times['believed']:.4g} s",
    )


def measure_second(*, quick: bool) -> Iterator[Row]:
    """Part i."""
    size = TINY if quick else FULL
    times, _ = measured(quick=quick)
    first = times["describe_a"] + times["describe_b"] + times["first_pair"]
    yield Row(
        part="i",
        work="a second layer pair that shares a layer of A: describing the new layer, comparing",
        size=told(size, times["n_pairs"]),
        ours_s=times["describe_second"] + times["second_pair"],
        opponent="the first pair, both layers described",
        opponent_s=first,
        how="measured once",
        note=f"describing takes {times['describe_a']:.3g} s a layer of A and "
        f"{times['describe_b']:.3g} s one of B, once; comparing {times['first_pair']:.4g} s, then "
        f"{times['second_pair']:.4g} s",
    )


def measure_demo(*, quick: bool) -> Iterator[Row]:
    """Part h; a quick run takes two layers and little text."""
    study = demo_study()
    layers = f"{len(study.model_a.layers)} x {len(study.model_b.layers)} layers"
    controls = ", ".join(name for control in study.controls.asked for name in control)
    size = f"{layers}, {study.text.tokens:,} tokens, controls: {controls}"
    if quick:
        size = "1 x 1 layers, 1,000 tokens"
    else:
        yield Row(
            part="h",
            work="the demo, nothing stored, its loops to be compiled first",
            size=size,
            ours_s=seconds_of_demo(quick=quick, compiled=False),
            how="measured once, the start of Python included",
        )
    yield Row(
        part="h",
        work="the demo, nothing stored",
        size=size,
        ours_s=seconds_of_demo(quick=quick, compiled=True),
        target_s=60.0,
        how="measured once, the start of Python included",
        note="loops were compiled by an earlier run",
    )


def seconds_of_demo(*, quick: bool, compiled: bool) -> float:
    """Wall clock of the command, in folders of its own."""
    with tempfile.TemporaryDirectory(prefix="saelign-demo-") as folder:
        arguments = ["demo"]
        if quick:
            path = Path(folder) / "study.yaml"
            path.write_text(yaml.safe_dump(small_demo()))
            arguments = ["run", str(path)]
        command = [sys.executable, "-c", RUN, *arguments, "--out", str(Path(folder) / "run")]
        environment = os.environ | {"SAELIGN_STORE": str(Path(folder) / "store")}
        if not compiled:
            environment["NUMBA_CACHE_DIR"] = str(Path(folder) / "numba")
        return timed(
            lambda: subprocess.run(command, check=True, capture_output=True, env=environment)
        )[1]


def small_demo() -> dict[str, Any]:
    """The demo's study, less of it."""
    content = yaml.safe_load((FOLDER / "study.yaml").read_text())
    for side, letter in (("model_a", "A"), ("model_b", "B")):
        content[side]["name"] = str(FOLDER / letter)
        content[side]["tokenizer"] = str(FOLDER / "tokenizer")
        content[side]["saes"] = str(FOLDER / content[side]["saes"])
        content[side]["layers"] = [3]
    content["text"] = {"source": str(FOLDER / "text.safetensors"), "tokens": 1000}
    content["measures"], content["nulls"] = ["pc1"], {"shuffle": 20}
    content["verdicts"] = False
    del content["controls"]
    return content


def curves(*, quick: bool) -> Iterator[Point]:
    """A whole comparison against the layers of each side, at a size where many can be had."""
    size, steps, n_shuffles = (TINY, (1, 2), 10) if quick else (FOR_LAYERS, (1, 2, 4, 6), 100)
    reading = reading_of(size["n_tokens"])
    sides = [sides_of(layer, **size) for layer in range(max(steps))]
    compared(*(described(side, reading, 0) for side in sides[0]), reading, 2)
    for n_layers in steps:
        start = time.perf_counter()
        of_a, of_b = (
            [described(pair[side], reading, i) for i, pair in enumerate(sides[:n_layers])]
            for side in (0, 1)
        )
        describing = time.perf_counter() - start
        for a in of_a:
            for b in of_b:
                compared(a, b, reading, n_shuffles)
        whole = time.perf_counter() - start
        for line, seconds in (("describing layers", describing), ("all of it", whole)):
            yield Point(
                figure="layers",
                panel=f"layers of each side, {size['n_features']:,} features",
                line=line,
                x=n_layers,
                seconds=seconds,
            )
