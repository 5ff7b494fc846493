"""How things are measured: side by side, in fresh processes for memory, on inputs of known seed.

Run as `python -m benchmarks.harness MODULE:FUNCTION SIZES` it is such a fresh process.
"""

import ctypes
import functools
import gc
import importlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import scipy.sparse as sp

REPEATS = 3
LONG_S = 5.0
"""What takes this long is measured once."""
GIB = 2**30
ROOT = Path(__file__).parents[1]


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of the table.

    Attributes:
        part: The letter under which `--only` knows it.
        work: What was done.
        size: Of the inputs.
        ours_s: Seconds this package took; a median.
        ours_peak_gib: Memory above that of the inputs, in a fresh process.
        opponent: What else did it.
        opponent_s: Seconds it took, or would take.
        how: Whether that was measured or extrapolated, and from what.
        limit_s: What the machine cannot beat.
        limit: What that stands for.
        max_difference: Between the results of both, at the largest size at which both ran.
        tolerance: What it may be; more fails the benchmark.
        target_s: What the package set out to reach.
        target_gib: Likewise.
        target_ratio: Likewise, at least.
        note: What else is to be known.
        measured: When, in UTC.
    """

    part: str
    work: str
    size: str
    ours_s: float
    ours_peak_gib: float = math.nan
    opponent: str = ""
    opponent_s: float = math.nan
    how: str = ""
    limit_s: float = math.nan
    limit: str = ""
    max_difference: float = math.nan
    tolerance: float = math.nan
    target_s: float = math.nan
    target_gib: float = math.nan
    target_ratio: float = math.nan
    note: str = ""
    measured: str = ""

    @property
    def ratio(self) -> float:
        """How many times longer the opponent takes."""
        return self.opponent_s / self.ours_s

    @property
    def differs(self) -> bool:
        """Whether results were compared and are not the same."""
        if math.isnan(self.tolerance):
            return False
        return not self.max_difference <= self.tolerance  # NaN differs

    @property
    def target(self) -> str:
        told = []
        if not math.isnan(self.target_s):
            told.append(f"{self.target_s:g} s")
        if not math.isnan(self.target_gib):
            told.append(f"{self.target_gib:g} GiB")
        if not math.isnan(self.target_ratio):
            told.append(f"ratio {self.target_ratio:.3g}")
        return ", ".join(told)

    @property
    def met(self) -> str:
        """Whether every target of the row is reached: yes, no, or empty where there is none."""
        if not self.target:
            return ""
        missed = (
            self.ours_s > self.target_s
            or self.ours_peak_gib > self.target_gib
            or self.ratio < self.target_ratio
        )
        return "no" if missed else "yes"

    def as_dict(self) -> dict[str, Any]:
        """Every column in the order of the table."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {"ratio": self.ratio, "target": self.target, "met": self.met}
        return {name: values[name] for name in COLUMNS}


COLUMNS = (
    "part", "work", "size", "ours_s", "ours_peak_gib", "opponent", "opponent_s", "how", "ratio",
    "limit_s", "limit", "max_difference", "tolerance", "target", "met", "note", "measured",
)  # fmt: skip
"""Of the table, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point of a curve.

    Attributes:
        figure: Which figure it belongs to.
        panel: What it grows with; the label of the axis.
        line: Whose time it is.
        x: How much of that.
        seconds: How long it took.
    """

    figure: str
    panel: str
    line: str
    x: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A power law through measured times, or a straight line where theory says that it is one.

    Attributes:
        sizes: Where they were measured.
        seconds: What they were.
        of: What the sizes are of.
        is_straight: Whether it is a line: a constant, and so much for each unit.
    """

    sizes: tuple[float, ...]
    seconds: tuple[float, ...]
    of: str = ""
    is_straight: bool = False

    @property
    def exponent(self) -> float:
        return float(np.polyfit(np.log(self.sizes), np.log(self.seconds), 1)[0])

    def at(self, size: float) -> float:
        """Seconds at a size, on the line through the times or through their logarithms."""
        if self.is_straight:
            return float(np.polyval(np.polyfit(self.sizes, self.seconds, 1), size))
        slope, height = np.polyfit(np.log(self.sizes), np.log(self.seconds), 1)
        return float(np.exp(height + slope * np.log(size)))

    @property
    def told(self) -> str:
        sizes = ", ".join(f"{size:,.0f}" for size in self.sizes)
        law = "a straight line" if self.is_straight else f"exponent {self.exponent:.2f}"
        return f"extrapolated from {self.of} = {sizes}; {law}"


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved(jobs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of jobs that take turns, every other round in reverse.

    What takes longer than `LONG_S` is done once.
    """
    taken = {name: [seconds(job)] for name, job in jobs.items()}
    for turn in range(1, REPEATS):
        for name in list(jobs)[:: -1 if turn % 2 else 1]:
            if taken[name][0] < LONG_S:
                taken[name].append(seconds(jobs[name]))
    return {name: median(times) for name, times in taken.items()}


def fitted(times: Mapping[str, float], name: str, sizes: tuple[int, ...], of: str) -> Fit:
    """The fit through the jobs called `name` and a size."""
    return Fit(sizes=sizes, seconds=tuple(times[f"{name} {size}"] for size in sizes), of=of)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fresh:
    """What a fresh process says of a piece of work.

    Attributes:
        seconds: How long it took.
        peak_gib: The most memory it held above what it began with.
        result: What it returned.
    """

    seconds: float
    peak_gib: float
    result: Any


def in_fresh_process(
    prepare: Callable[..., Callable[[], Any]],
    size: Mapping[str, Any],
    tiny: Mapping[str, Any],
    *,
    quick: bool = False,
) -> Fresh:
    """Prepare work in a process of its own, then do it, with its memory watched.

    The same work is done at a tiny size first, so that neither modules nor compiled loops count.

    Args:
        prepare: Makes the inputs and returns the work; a function of a module.
        size: Its arguments.
        tiny: Its arguments for the first time.
        quick: Do it in this process after all; starting one takes seconds.
    """
    if quick:
        return Fresh(**watched(prepare, size, tiny))
    target = f"{prepare.__module__}:{prepare.__qualname__}"
    command = [sys.executable, "-m", "benchmarks.harness", target, json.dumps([size, tiny])]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return Fresh(**json.loads(done.stdout.splitlines()[-1]))


def watched(prepare: Callable[..., Callable[[], Any]], size: Any, tiny: Any) -> dict[str, Any]:
    """What `in_fresh_process` does in its process."""
    prepare(**tiny)()
    work = prepare(**size)
    gc.collect()
    give_back_freed()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    start = time.perf_counter()
    result = work()
    taken = time.perf_counter() - start
    return {"seconds": taken, "peak_gib": (memory("VmHWM") - before) / GIB, "result": result}


def give_back_freed() -> None:
    """Hand memory that was freed back, so that what is used again counts."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def memory(name: str) -> int:
    """Bytes of this process's memory: `VmRSS` now, `VmHWM` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What the machine does in a second.

    Attributes:
        bandwidth: Bytes read and written by copies on all cores.
        flops32: Of float32 matrix products.
        flops64: Of float64 matrix products.
    """

    bandwidth: float
    flops32: float
    flops64: float


@functools.cache
def rates(*, quick: bool) -> Rates:
    """The best of five tries of each."""
    n_bytes, width = (2**24, 512) if quick else (2**29, 4096)
    n_parts = 2
    source, target = np.ones(n_bytes // 8), np.zeros(n_bytes // 8)
    parts = list(zip(np.array_split(source, n_parts), np.array_split(target, n_parts), strict=True))
    with ThreadPoolExecutor(n_parts) as pool:

        def copy() -> None:
            list(pool.map(lambda part: np.copyto(part[1], part[0]), parts))

        bandwidth = 2 * n_bytes / min(seconds(copy) for _ in range(5))
    flops = []
    for dtype in (np.float32, np.float64):
        x, y = np.ones((width, width), dtype), np.ones((width, width), dtype)
        best = min(seconds(lambda x=x, y=y: x @ y) for _ in range(5))
        flops.append(2 * width**3 / best)
    return Rates(bandwidth=bandwidth, flops32=flops[0], flops64=flops[1])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Activations:
    """Two sides over the same tokens.

    Attributes:
        a: Tokens x features of A, float32.
        b: The same tokens through B.
        partner: For each feature of A the one of B that half of its firings were planted into.
    """

    a: sp.csr_array
    b: sp.csr_array
    partner: np.ndarray

    def subset(self, n_features: int) -> "Activations":
        """The first features of A and their partners alone, in the order of their numbers."""
        order = np.sort(self.partner[:n_features])
        return Activations(
            a=sp.csr_array(self.a[:, :n_features]),
            b=sp.csr_array(self.b[:, order]),
            partner=np.searchsorted(order, self.partner[:n_features]),
        )


def firing_rates(n_features: int, l0: float, least: float, rng: np.random.Generator) -> np.ndarray:
    """Log-normal rates that add up to `l0`, none below `least` and none above a half."""
    raw = rng.lognormal(sigma=1.2, size=n_features)
    low, high = 0.0, l0
    for _ in range(60):
        middle = (low + high) / 2
        if np.clip(middle * raw, least, 0.5).sum() < l0:
            low = middle
        else:
            high = middle
    return np.clip(high * raw, least, 0.5)


def firings(probabilities: np.ndarray, n_tokens: int, rng: np.random.Generator) -> np.ndarray:
    """Feature x n_tokens + token of each firing, rising; each once."""
    counts = rng.binomial(n_tokens, probabilities)
    features = np.repeat(np.arange(len(counts)), counts)
    return np.unique(features * n_tokens + rng.integers(n_tokens, size=len(features)))


def as_tokens_by_features(
    keys: np.ndarray, values: np.ndarray, n_tokens: int, n_features: int
) -> sp.csr_array:
    features, tokens = np.divmod(keys, n_tokens)
    shape = (n_tokens, n_features)
    acts = sp.csr_array(sp.coo_array((values, (tokens, features)), shape=shape))
    acts.sort_indices()
    return acts


def activations(*, n_features: int, n_tokens: int, l0: float = 65.0, seed: int = 0) -> Activations:
    """Sparse activations of two sides, as wide as each other.

    Firing rates are log-normal. Half of A's firings are planted into B, under a permutation of the
    features, with noise on their values; B's other half is its own. Values follow a gamma
    distribution. A feature fires on 60 tokens at least, or a quarter of the mean if that is less.
    """
    rng = np.random.default_rng(seed)
    least = min(60, n_tokens * l0 / n_features / 4) / n_tokens
    keys_a = firings(firing_rates(n_features, l0, least, rng), n_tokens, rng)
    values_a = rng.gamma(2.0, size=len(keys_a)).astype(np.float32)
    partner = rng.permutation(n_features)
    planted = rng.random(len(keys_a)) < 0.5
    feature, token = np.divmod(keys_a[planted], n_tokens)
    own = firings(firing_rates(n_features, l0 / 2, least / 2, rng), n_tokens, rng)
    noise = rng.lognormal(sigma=0.3, size=len(feature)).astype(np.float32)
    keys_b = np.concatenate([partner[feature] * n_tokens + token, own])
    values_b = np.concatenate(
        [values_a[planted] * noise, rng.gamma(2.0, size=len(own)).astype(np.float32)]
    )
    keys_b, first = np.unique(keys_b, return_index=True)
    return Activations(
        a=as_tokens_by_features(keys_a, values_a, n_tokens, n_features),
        b=as_tokens_by_features(keys_b, values_b[first], n_tokens, n_features),
        partner=partner,
    )


def decoder_rows(
    n_features: int, d_a: int, d_b: int, *, rank: int = 64, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Matched decoder rows of unit length, float32: a structure of low rank, half of it shared."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((n_features, rank), dtype=np.float32)
    sides = []
    for width in (d_a, d_b):
        own = rng.standard_normal((n_features, rank), dtype=np.float32)
        spectrum = 1 / np.sqrt(1 + np.arange(rank, dtype=np.float32))
        directions = rng.standard_normal((rank, width), dtype=np.float32) * spectrum[:, None]
        rows = (shared + own) @ directions
        rows /= np.linalg.norm(rows, axis=1).mean()
        rows += rng.standard_normal(rows.shape, dtype=np.float32) / np.float32(width**0.5)
        sides.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    return sides[0], sides[1]


if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(":")
    function = getattr(importlib.import_module(module), name)
    print(json.dumps(watched(function, *json.loads(sys.argv[2]))))
