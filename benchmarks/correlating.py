"""Correlations and best matches at the widths of Gemma's SAEs and of SAEs four times as wide."""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

import saelign
from benchmarks import published
from benchmarks.harness import (
    Activations,
    Fit,
    Point,
    Row,
    activations,
    fitted,
    in_fresh_process,
    interleaved,
    rates,
)
from saelign.correlation import SparseCorrelation
from saelign.correlation.strongest import Listed

MIN_ACTIVE = 30
TINY = {"n_features": 768, "n_tokens": 4000, "l0": 24.0}
FULL = {"n_features": 16384, "n_tokens": 100_000, "l0": 65.0}
WIDE = {"n_features": 65536, "n_tokens": 100_000, "l0": 65.0}
TINY_WIDE = {"n_features": 3072, "n_tokens": 4000, "l0": 24.0}
CHECKED_ROWS = 200
ENTRY_BYTES = 6
"""Of a feature's number in 16 bits and its activation in 32."""


def size_of(*, quick: bool) -> dict[str, float]:
    return TINY if quick else FULL


def best_matches(a: sp.csr_array, b: sp.csr_array, min_active: int = MIN_ACTIVE) -> Listed:
    """The work that is measured."""
    correlation = saelign.correlate(a, b, dense=False)
    assert isinstance(correlation, SparseCorrelation)
    return correlation.listed(min_active, n_best_a=1)


def prepare_best_matches(**size: float) -> Callable[[], None]:
    data = activations(**size)

    def work() -> None:
        best_matches(data.a, data.b)

    return work


def n_cofirings(data: Activations) -> int:
    """Over all tokens, features of A times features of B: multiply-adds that are not by zero."""
    per_token = (np.diff(x.indptr).astype(np.int64) for x in (data.a, data.b))
    return int(math.prod(per_token).sum())


def limit_s(data: Activations, *, quick: bool) -> float:
    return n_cofirings(data) * ENTRY_BYTES / rates(quick=quick).bandwidth


def difference(a: sp.csr_array, b: sp.csr_array, best: published.Best) -> float:
    """How far best matches lie from ours: in value, and in what their partner is worth.

    Where partners differ, theirs must be as good as ours, or nearly.
    """
    ours = best_matches(a, b, min_active=1)
    rows = ours.features_a
    partners, values = best[0][rows], best[1][rows]
    similarity = ours.best.similarity_a[:, 0]
    theirs = saelign.correlate(a, b, dense=False).pearson_of_pairs(rows, partners)
    return float(max(np.abs(values - similarity).max(), np.abs(similarity - theirs).max()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Ours and the opponents, taken in turns.

    Attributes:
        times: Seconds by name.
        fit: Through those of the dense product.
        dense: What it found over the most tokens that it was given.
        sparse: What scipy's product found over all tokens.
    """

    times: dict[str, float]
    fit: Fit
    dense: published.Best
    sparse: published.Best


@functools.cache
def measured(*, quick: bool) -> Measured:
    """Times and results, found once."""
    data, n_tokens = activations(**size_of(quick=quick)), dense_tokens(quick=quick)
    prepare_best_matches(**TINY)()
    found: dict[str, published.Best] = {}

    def dense(n: int) -> None:
        a, b = data.a[:n].toarray(), data.b[:n].toarray()
        found[f"dense {n}"] = published.best_by_dense_product(a, b)

    def sparse() -> None:
        found["sparse"] = published.best_by_sparse_product(data.a, data.b)

    jobs: dict[str, Callable[[], object]] = {"ours": lambda: best_matches(data.a, data.b)}
    jobs["sparse"] = sparse
    for n in n_tokens:
        jobs[f"dense {n}"] = lambda n=n: dense(n)
    times = interleaved(jobs)
    return Measured(
        times=times,
        # Making z-scores and products is linear in tokens; the search for the best is a constant.
        fit=replace(fitted(times, "dense", n_tokens, "tokens"), is_straight=True),
        dense=found[f"dense {n_tokens[-1]}"],
        sparse=found["sparse"],
    )


def dense_fit(*, quick: bool) -> Fit:
    """The published correlation against tokens."""
    return measured(quick=quick).fit


def dense_tokens(*, quick: bool) -> tuple[int, ...]:
    return (1000, 2000, 4000) if quick else (5000, 10_000, 20_000)


def measure(*, quick: bool) -> Iterator[Row]:
    """Part a."""
    size = size_of(quick=quick)
    found = measured(quick=quick)
    times, fit, data = found.times, found.fit, activations(**size)
    told = f"{size['n_features']:,} x {size['n_features']:,}, {size['n_tokens']:,} tokens"
    told += f", L0 {data.a.nnz / size['n_tokens']:.0f} and {data.b.nnz / size['n_tokens']:.0f}"
    peak = in_fresh_process(prepare_best_matches, size, TINY, quick=quick).peak_gib
    largest = fit.sizes[-1]
    a, b = data.a[: int(largest)], data.b[: int(largest)]
    common = {
        "part": "a",
        "work": "correlation and best match",
        "size": told,
        "ours_s": times["ours"],
        "ours_peak_gib": peak,
        "limit_s": limit_s(data, quick=quick),
        "limit": f"reading an activation of B at each of {n_cofirings(data):.2g} co-firings",
        "target_s": 1.5,
        "target_gib": 2.0,
    }
    needed = 4 * 4 * size["n_tokens"] * size["n_features"] / 2**30
    yield Row(
        **common,
        opponent="published: dense float32 z-scores, matrix product, argmax",
        opponent_s=fit.at(size["n_tokens"]),
        how=fit.told,
        max_difference=difference(a, b, found.dense),
        tolerance=1e-4,
        target_ratio=250.0,
        note=f"would hold {needed:.0f} GiB; compared at {largest:,.0f} tokens",
    )
    yield Row(
        **common,
        opponent="scipy.sparse product, made Pearson, row argmax",
        opponent_s=times["sparse"],
        how="measured",
        max_difference=difference(data.a, data.b, found.sparse),
        tolerance=1e-5,
        note="sums in float32",
    )


def measure_wide(*, quick: bool) -> Iterator[Row]:
    """Part b."""
    narrow, wide = (TINY, TINY_WIDE) if quick else (FULL, WIDE)
    one, other = activations(**narrow), activations(**wide)
    prepare_best_matches(**TINY)()
    times = interleaved(
        {
            "narrow": lambda: best_matches(one.a, one.b),
            "wide": lambda: best_matches(other.a, other.b),
        }
    )
    listed = best_matches(other.a, other.b)
    rng = np.random.default_rng(0)
    n_rows = min(CHECKED_ROWS, len(listed.features_a))
    chosen = np.sort(rng.choice(len(listed.features_a), n_rows, replace=False))
    expected = published.correlations_of_rows(other.a, other.b, listed.features_a[chosen])
    expected = expected[:, listed.features_b]
    best = listed.best
    at = np.searchsorted(listed.features_b, best.partners_a[chosen, 0])
    differences = [
        np.abs(expected.max(axis=1) - best.similarity_a[chosen, 0]).max(),
        np.abs(expected.max(axis=1) - expected[np.arange(n_rows), at]).max(),
    ]
    n_features, n_paired = wide["n_features"], len(listed.features_a)
    yield Row(
        part="b",
        work="correlation and best match",
        size=f"{n_features:,} x {n_features:,}, {wide['n_tokens']:,} tokens, "
        f"{n_paired:,} x {len(listed.features_b):,} of them active often enough",
        ours_s=times["wide"],
        ours_peak_gib=in_fresh_process(prepare_best_matches, wide, TINY, quick=quick).peak_gib,
        opponent=f"itself at {narrow['n_features']:,} (dense: does not fit)",
        opponent_s=times["narrow"],
        how="measured",
        limit_s=limit_s(other, quick=quick),
        limit=f"reading an activation of B at each of {n_cofirings(other):.2g} co-firings",
        max_difference=float(max(differences)),
        tolerance=1e-9,
        target_gib=4.0,
        target_ratio=0.25,
        note=f"{times['wide'] / times['narrow']:.2f} times the time at a quarter of the width; "
        f"compared with {n_rows} rows computed from dense columns",
    )


def curves(*, quick: bool) -> Iterator[Point]:
    """Our time against tokens, width and L0."""
    base = size_of(quick=quick)
    prepare_best_matches(**TINY)()
    panels = {
        "n_tokens": ("tokens", [base["n_tokens"] // 4 * f for f in (1, 2, 4, 8)]),
        "n_features": ("width of both SAEs", [base["n_features"] // 4 * f for f in (1, 2, 4, 16)]),
        "l0": ("active features a token (L0)", [base["l0"] / 4 * f for f in (1, 2, 4, 8)]),
    }
    for name, (panel, values) in panels.items():
        for value in values:
            data = activations(**{**base, name: value})
            time = interleaved({"ours": lambda data=data: best_matches(data.a, data.b)})["ours"]
            yield Point(
                figure="correlation", panel=panel, line="best matches", x=value, seconds=time
            )
