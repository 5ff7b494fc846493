"""One-to-one matchings: the paper's greedy, exact, and the one with the largest total."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import saelign
from benchmarks import published
from benchmarks.correlating import FULL, TINY, TINY_WIDE, WIDE, limit_s
from benchmarks.harness import (
    Activations,
    Row,
    activations,
    fitted,
    in_fresh_process,
    interleaved,
    rates,
)
from saelign.correlation import SparseCorrelation
from saelign.correlation.strongest import Listed
from saelign.matching.greedy import N_LISTED, greedy_one_to_one
from saelign.matching.optimal import Assignment, optimal_one_to_one
from saelign.matching.pairing import Pairable

MIN_ACTIVE = 30
ABOVE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lists:
    """Correlations with the strongest partners of all features that may be paired."""

    correlation: SparseCorrelation
    listed: Listed

    @classmethod
    def of(cls, data: Activations, min_active: int = MIN_ACTIVE) -> "Lists":
        correlation = saelign.correlate(data.a, data.b, dense=False)
        assert isinstance(correlation, SparseCorrelation)
        listed = correlation.listed(min_active, n_best_a=N_LISTED)
        return cls(correlation=correlation, listed=listed)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.listed.features_a), len(self.listed.features_b)

    def greedy(self, above: float = -np.inf) -> np.ndarray:
        return greedy_one_to_one(
            self.correlation,
            self.listed.features_a,
            self.listed.features_b,
            listed=self.listed.best,
            above=above,
        )

    def optimal(self) -> Assignment:
        return optimal_one_to_one(Pairable(correlation=self.correlation, listed=self.listed))

    def table(self) -> np.ndarray:
        """All similarities between features that may be paired."""
        blocks = self.correlation.blocks(self.listed.features_a, self.listed.features_b)
        return np.concatenate([block for _, block in blocks])

    @property
    def n_bytes(self) -> int:
        best = self.listed.best
        return best.partners_a.nbytes + best.similarity_a.nbytes


def prepare_greedy(*, above: float | None, **size: float) -> Callable[[], None]:
    lists = Lists.of(activations(**size))
    lowest = -np.inf if above is None else above

    def work() -> None:
        lists.greedy(lowest)

    return work


def prepare_optimal(**size: float) -> Callable[[], None]:
    lists = Lists.of(activations(**size))

    def work() -> None:
        lists.optimal()

    return work


def tables_of(data: Activations, sizes: tuple[int, ...]) -> dict[int, tuple[Lists, np.ndarray]]:
    """Smaller problems of the same kind: some features of A with their planted partners."""
    small = {n: Lists.of(data.subset(n), min_active=1) for n in sizes}
    return {n: (lists, lists.table()) for n, lists in small.items()}


def measure_greedy(*, quick: bool) -> Iterator[Row]:
    """Part c."""
    size, sizes = (TINY, (192, 384, 768)) if quick else (FULL, (2048, 4096, 8192))
    data = activations(**size)
    lists, small = Lists.of(data), tables_of(data, sizes)
    prepare_greedy(**(TINY | {"above": None}))()
    jobs: dict[str, Callable[[], object]] = {"ours": lists.greedy}
    for n, (_, table) in small.items():
        jobs[f"sort {n}"] = lambda table=table: published.greedy_by_sorting(table)
    times = interleaved(jobs)
    fit = fitted(times, "sort", sizes, "features a side")
    few, table = small[sizes[-1]]
    expected, got = published.greedy_by_sorting(table), few.greedy()
    differing, difference = compared(few, table, expected, got)
    opponent = "numpy argsort of the dense matrix, pairs taken in that order"
    common: dict[str, Any] = {
        "part": "c",
        "opponent": opponent,
        "how": fit.told,
        "tolerance": 1e-9,
        "max_difference": difference,
        "limit": "reading the lists of strongest partners once",
    }
    yield Row(
        **common,
        work="greedy one-to-one, the whole bijection (correlations known)",
        size=f"{lists.shape[0]:,} x {lists.shape[1]:,}",
        ours_s=times["ours"],
        ours_peak_gib=in_fresh_process(
            prepare_greedy, size | {"above": None}, TINY | {"above": None}, quick=quick
        ).peak_gib,
        opponent_s=fit.at(lists.shape[0]),
        limit_s=lists.n_bytes / rates(quick=quick).bandwidth,
        target_s=3.0,
        note=f"compared at {table.shape[0]:,} x {table.shape[1]:,}: {differing} of {len(got):,} "
        "pairs differ",
    )
    del small, few, table, jobs
    wide_size = TINY_WIDE if quick else WIDE
    wide = Lists.of(activations(**wide_size))
    pairs: list[np.ndarray] = []
    time = interleaved({"ours": lambda: pairs.append(wide.greedy(ABOVE))})["ours"]
    yield Row(
        **common,
        work=f"greedy one-to-one down to r = {ABOVE} (correlations known)",
        size=f"{wide.shape[0]:,} x {wide.shape[1]:,}, active often enough of "
        f"{wide_size['n_features']:,}",
        ours_s=time,
        ours_peak_gib=in_fresh_process(
            prepare_greedy, wide_size | {"above": ABOVE}, TINY | {"above": ABOVE}, quick=quick
        ).peak_gib,
        opponent_s=fit.at((wide.shape[0] * wide.shape[1]) ** 0.5),
        limit_s=wide.n_bytes / rates(quick=quick).bandwidth,
        target_s=15.0,
        note=f"{len(pairs[-1]):,} pairs; the opponent's matrix would take "
        f"{8 * wide.shape[0] * wide.shape[1] / 2**30:.2g} GiB, its order as much; compared as "
        "above",
    )


def compared(
    lists: Lists, table: np.ndarray, expected: np.ndarray, got: np.ndarray
) -> tuple[int, float]:
    """Pairs that differ, and how far similarities in the order of taking do."""
    row = np.searchsorted(lists.listed.features_a, got[:, 0])
    column = np.searchsorted(lists.listed.features_b, got[:, 1])
    if len(expected) != len(got):
        return abs(len(expected) - len(got)), np.inf
    differing = len(got) - len(
        set(zip(*expected.T, strict=True)) & set(zip(row, column, strict=True))
    )
    values = np.abs(table[tuple(expected.T)] - table[row, column])
    return differing, float(values.max())


def measure_optimal(*, quick: bool) -> Iterator[Row]:
    """Part d."""
    size, sizes = (TINY, (192, 384, 768)) if quick else (FULL, (1024, 2048, 4096))
    data = activations(**size)
    lists, small = Lists.of(data), tables_of(data, sizes)
    prepare_optimal(**TINY)()
    found: list[Assignment] = []
    jobs: dict[str, Callable[[], object]] = {"ours": lambda: found.append(lists.optimal())}
    totals: dict[int, float] = {}
    for n, (_, table) in small.items():
        jobs[f"scipy {n}"] = lambda n=n, table=table: totals.update(
            {n: published.largest_total(table)}
        )
    times = interleaved(jobs)
    fit = fitted(times, "scipy", sizes, "features a side")
    few, largest = small[sizes[-1]][0].optimal(), sizes[-1]
    yield Row(
        part="d",
        work="optimal one-to-one (correlations known)",
        size=f"{lists.shape[0]:,} x {lists.shape[1]:,}",
        ours_s=times["ours"],
        ours_peak_gib=in_fresh_process(prepare_optimal, size, TINY, quick=quick).peak_gib,
        opponent="scipy.optimize.linear_sum_assignment on the dense matrix",
        opponent_s=fit.at(lists.shape[0]),
        how=fit.told,
        limit_s=limit_s(data, quick=quick),
        limit="one pass over the co-firings, as for the correlations",
        max_difference=abs(float(few.similarities.sum()) - totals[largest]),
        tolerance=1e-7,
        target_s=15.0,
        target_gib=6.0,
        note=f"proven to be within {found[-1].gap:.2g} of the largest total, "
        f"{found[-1].similarities.sum():,.2f}; totals compared at {largest:,}",
    )
