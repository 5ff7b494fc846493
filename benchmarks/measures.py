"""Measures on matched decoder rows, with their nulls, through `saelign.score`."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

import saelign
from benchmarks import published
from benchmarks.harness import (
    Fit,
    Point,
    Row,
    decoder_rows,
    fitted,
    in_fresh_process,
    interleaved,
    rates,
)
from saelign.scoring import Score, null_permutations
from saelign.similarity.partners import partners_of

FULL = {"n_features": 16384, "d_a": 2304, "d_b": 3584}
TINY = {"n_features": 400, "d_a": 24, "d_b": 32}
RSA = {"inner": "pearson", "outer": "spearman"}
SIZES = {
    "svd": ((100, 200, 400), (4096, 6144, 8192)),
    "rsa": ((100, 200, 400), (2048, 4096, 8192)),
    "rsatoolbox": ((50, 100, 200), (512, 1024, 2048)),
    "cka": ((100, 200, 400), (2048, 4096, 8192)),
}
"""Pairs at which opponents are measured: in a quick run, and in a full one."""

Task = tuple[str, int, dict[str, Any]]
"""A measure, how many shuffles, and its options."""

TASKS: dict[str, list[Task]] = {
    "pc1": [("pc1", 1000, {})],
    "svcca": [("svcca", 1000, {"n_components": 20})],
    "variance": [("svcca_r2", 2, {"variance": 0.99}), ("svcca", 10, {"variance": 0.99})],
    "rsa": [("rsa", 100, RSA)],
    "cka": [("cka", 100, {})],
}


def scored(x: np.ndarray, y: np.ndarray, tasks: list[Task]) -> list[Score]:
    """The work that is measured."""
    return [
        saelign.score(x, y, measure=m, n_permutations=n, rng=np.random.default_rng(0), **options)
        for m, n, options in tasks
    ]


def prepare(*, task: str, **size: int) -> Callable[[], None]:
    x, y = decoder_rows(**size)

    def work() -> None:
        scored(x, y, TASKS[task])

    return work


def told(n_permutations: int, *, quick: bool, exact: bool = False) -> str:
    size = TINY if quick else FULL
    shuffles = f"{n_permutations:,} shuffles" + (" and exact moments" if exact else "")
    return f"K = {size['n_features']:,}, d = {size['d_a']} and {size['d_b']}, {shuffles}"


def sizes_of(opponent: str, *, quick: bool) -> tuple[int, ...]:
    return SIZES[opponent][0 if quick else 1]


@functools.cache
def rows_of(*, quick: bool) -> tuple[np.ndarray, np.ndarray]:
    return decoder_rows(**(TINY if quick else FULL))


@functools.cache
def times_of(task: str, opponent: str, *, quick: bool) -> tuple[float, Fit]:
    """Our seconds at full size, and those of one evaluation of the opponent at three sizes."""
    x, y = rows_of(quick=quick)
    sizes = sizes_of(opponent, quick=quick)
    prepare(task=task, **TINY)()
    jobs: dict[str, Callable[[], object]] = {"ours": lambda: scored(x, y, TASKS[task])}
    for k in sizes:
        jobs[f"evaluation {k}"] = lambda k=k: EVALUATIONS[task](x[:k], y[:k])
    times = interleaved(jobs)
    return times["ours"], fitted(times, "evaluation", sizes, "K")


EVALUATIONS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "pc1": published.svcca_as_published,
    "svcca": published.svcca_as_published,
    "variance": lambda x, y: published.svcca_by_variance(x, y, 0.99),
    "rsa": published.rsa_as_published,
    "cka": published.cka_by_numpy,
}
"""What is done again for every shuffle."""


def published_evaluation(*, quick: bool) -> tuple[Fit, Fit]:
    """One evaluation of the published SVCCA and of the published RSA."""
    return times_of("pc1", "svd", quick=quick)[1], times_of("rsa", "rsa", quick=quick)[1]


def difference(
    task: Task,
    evaluate: Callable[[np.ndarray, np.ndarray], float],
    largest: int,
    smallest: int | None,
    *,
    quick: bool,
) -> float:
    """How far the scores lie apart, of the matched rows and after two shuffles.

    The matched rows are compared at the largest size, shuffles at the smallest, if at all.
    """
    measure, _, options = task
    x, y = rows_of(quick=quick)
    ours = scored(x[:largest], y[:largest], [(measure, 2, options)])[0]
    differences = [abs(ours.score - evaluate(x[:largest], y[:largest]))]
    if smallest is None:
        return differences[0]
    x, y = x[:smallest], y[:smallest]
    few = scored(x, y, [(measure, 2, options)])[0]
    rng = np.random.default_rng(0)
    drawn = null_permutations("shuffle", partners_of(y), None, n_permutations=2, rng=rng)
    differences += [
        abs(null - evaluate(x, y[order]))
        for null, order in zip(few.null_scores, drawn, strict=True)
    ]
    return float(np.max(differences))


def gram_flops(size: Mapping[str, int]) -> float:
    """Of both Gram matrices over coordinates, each half of a product."""
    return float(size["n_features"] * (size["d_a"] ** 2 + size["d_b"] ** 2))


def svcca_flops(size: Mapping[str, int], k_a: int, k_b: int, n_shuffles: int) -> float:
    k = size["n_features"]
    projections = 2 * k * (size["d_a"] * k_a + size["d_b"] * k_b)
    return gram_flops(size) + projections + 2 * k * k_a * k_b * (1 + n_shuffles)


def measure(*, quick: bool) -> Iterator[Row]:
    """Part e."""
    size = TINY if quick else FULL
    for row in (pc1_row, svcca_row, variance_row, rsa_rows, cka_row):
        yield from row(size, quick)


def pc1_row(size: Mapping[str, int], quick: bool) -> Iterator[Row]:
    ours, fit = times_of("pc1", "svd", quick=quick)
    sizes = fit.sizes
    yield Row(
        part="e",
        work="pc1",
        size=told(1000, quick=quick),
        ours_s=ours,
        ours_peak_gib=peak("pc1", size, quick=quick),
        opponent="published SVCCA, both SVDs for every shuffle",
        opponent_s=fit.at(size["n_features"]) * 1001,
        how=f"one evaluation {fit.told}; times 1,001",
        limit_s=svcca_flops(size, 1, 1, 1000) / rates(quick=quick).flops64,
        limit="float64 products: both Gram matrices, one component, the shuffles",
        max_difference=difference(
            TASKS["pc1"][0],
            published.svcca_as_published,
            int(sizes[-1]),
            int(sizes[0]),
            quick=quick,
        ),
        tolerance=1e-4,
        target_s=5.0,
        note=f"one published evaluation {fit.at(size['n_features']):.1f} s, in float32",
    )


def svcca_row(size: Mapping[str, int], quick: bool) -> Iterator[Row]:
    x, y = rows_of(quick=quick)
    k, n_shuffles = TASKS["svcca"][0][2]["n_components"], TASKS["svcca"][0][1]
    sizes, orders = sizes_of("svd", quick=quick), np.random.default_rng(0)
    prepare(task="svcca", **TINY)()
    u, w = (np.random.default_rng(i).standard_normal((len(x), k)) for i in range(2))

    def shuffle() -> None:
        for _ in range(10):
            published.mean_correlation(u, w[orders.permutation(len(w))])

    jobs: dict[str, Callable[[], object]] = {
        "ours": lambda: scored(x, y, TASKS["svcca"]),
        "ten shuffles": shuffle,
    }
    for n in sizes:
        jobs[f"numpy {n}"] = lambda n=n: published.bases_of(x[:n], y[:n], k)
    times = interleaved(jobs)
    numpy_fit = fitted(times, "numpy", sizes, "K")
    evaluation = times_of("pc1", "svd", quick=quick)[1]

    def once(x: np.ndarray, y: np.ndarray) -> float:
        return published.mean_correlation(*published.bases_of(x, y, k))

    common: dict[str, Any] = {
        "part": "e",
        "work": "svcca, 20 components",
        "size": told(n_shuffles, quick=quick),
        "ours_s": times["ours"],
        "ours_peak_gib": peak("svcca", size, quick=quick),
        "limit_s": svcca_flops(size, k, k, n_shuffles) / rates(quick=quick).flops64,
        "limit": "float64 products: both Gram matrices, the components, the shuffles",
        "target_s": 20.0,
    }
    yield Row(
        **common,
        opponent="published SVCCA, both SVDs for every shuffle",
        opponent_s=evaluation.at(size["n_features"]) * (1 + n_shuffles),
        how=f"one evaluation {evaluation.told}; times {1 + n_shuffles:,}",
        note="another number: theirs is pc1",
    )
    small = sizes[0]
    sides = x[:small], y[:small]
    learnt = published.svcca_by_scikit_learn(*sides, 5)
    ours = scored(*sides, [("svcca", 2, {"n_components": 5})])[0].score
    yield Row(
        **common,
        opponent="numpy: both SVDs once, a product and a small SVD for every shuffle",
        opponent_s=numpy_fit.at(size["n_features"]) + n_shuffles / 10 * times["ten shuffles"],
        how=f"SVDs {numpy_fit.told}; shuffles measured at full size",
        max_difference=difference(TASKS["svcca"][0], once, sizes[-1], sizes[0], quick=quick),
        tolerance=1e-4,
        note=f"scikit-learn's CCA on 5 components, K = {small:,}: differs by "
        f"{abs(learnt - ours):.1g}",
    )


def variance_row(size: Mapping[str, int], quick: bool) -> Iterator[Row]:
    ours, fit = times_of("variance", "svd", quick=quick)
    x, y = rows_of(quick=quick)
    kept = scored(*(rows[: int(fit.sizes[-1])] for rows in (x, y)), TASKS["variance"][:1])[0]
    k_a, k_b = kept.components or (0, 0)
    evaluation, largest = EVALUATIONS["variance"], int(fit.sizes[-1])
    # No shuffles are compared: at the smallest size there are more components than pairs.
    yield Row(
        part="e",
        work="svcca_r2 and svcca at 99 % of the variance",
        size=told(10, quick=quick, exact=True),
        ours_s=ours,
        ours_peak_gib=peak("variance", size, quick=quick),
        opponent="the same by both SVDs for every shuffle",
        opponent_s=fit.at(size["n_features"]) * 12,
        how=f"one evaluation {fit.told}; times 12",
        limit_s=svcca_flops(size, k_a, k_b, 12) / rates(quick=quick).flops64,
        limit="float64 products: both Gram matrices, the components, the shuffles",
        max_difference=difference(TASKS["variance"][1], evaluation, largest, None, quick=quick),
        tolerance=1e-4,
        target_s=90.0,
        note=f"{k_a} and {k_b} components at K = {largest:,}",
    )


def rsa_rows(size: Mapping[str, int], quick: bool) -> Iterator[Row]:
    ours, fit = times_of("rsa", "rsa", quick=quick)
    n, n_shuffles = size["n_features"], TASKS["rsa"][0][1]
    sizes = fit.sizes
    machine = rates(quick=quick)
    gram = n**2 * (size["d_a"] + size["d_b"]) / machine.flops32
    yield Row(
        part="e",
        work="rsa, Pearson inside, Spearman outside",
        size=told(n_shuffles, quick=quick, exact=True),
        ours_s=ours,
        ours_peak_gib=peak("rsa", size, quick=quick),
        opponent="published RSA, both matrices and ranks for every shuffle",
        opponent_s=fit.at(n) * (1 + n_shuffles),
        how=f"one evaluation {fit.told}; times {1 + n_shuffles}",
        limit_s=gram + n_shuffles * 2 * n**2 / machine.bandwidth,
        limit="half of both K x K products in float32; reading both sides' 16-bit ranks below the "
        "diagonal for every shuffle",
        max_difference=difference(
            TASKS["rsa"][0],
            published.rsa_as_published,
            int(sizes[-1]),
            int(sizes[0]),
            quick=quick,
        ),
        tolerance=5e-5,
        target_s=120.0,
        target_gib=4.0,
        note=f"one published evaluation {fit.at(n):.1f} s",
    )
    yield rsatoolbox_row(quick=quick)


def rsatoolbox_row(*, quick: bool) -> Row:
    sizes, task = sizes_of("rsatoolbox", quick=quick), TASKS["rsa"]
    x, y = (rows[: sizes[-1]] for rows in rows_of(quick=quick))
    published.rsa_by_rsatoolbox(x[:8], y[:8])
    scored(x[:8], y[:8], task)
    times = interleaved(
        {
            "ours": lambda: scored(x, y, task),
            "rsatoolbox": lambda: published.rsa_by_rsatoolbox(x, y),
        }
    )
    size = {"n_features": sizes[-1], "d_a": x.shape[1], "d_b": y.shape[1]}
    n, machine = sizes[-1], rates(quick=quick)
    return Row(
        part="e",
        work="rsa, Pearson inside, Spearman outside",
        size=f"K = {n:,}, d = {x.shape[1]} and {y.shape[1]}, {task[0][1]} shuffles and exact "
        "moments",
        ours_s=times["ours"],
        ours_peak_gib=peak("rsa", size, quick=quick),
        opponent="rsatoolbox, once for every shuffle",
        opponent_s=times["rsatoolbox"] * (1 + task[0][1]),
        how=f"one evaluation measured; times {1 + task[0][1]}",
        limit_s=n**2 * sum(r.shape[1] for r in (x, y)) / machine.flops64
        + task[0][1] * 2 * n**2 / machine.bandwidth,
        limit="as above, the products in float64",
        max_difference=difference(
            task[0], published.rsa_by_rsatoolbox, sizes[-1], sizes[0], quick=quick
        ),
        tolerance=1e-6,
        note=f"one evaluation of rsatoolbox {times['rsatoolbox']:.2g} s; at 16,384 its vectors of "
        "dissimilarities alone take 1 GiB each",
    )


def cka_row(size: Mapping[str, int], quick: bool) -> Iterator[Row]:
    ours, fit = times_of("cka", "cka", quick=quick)
    n, n_shuffles = size["n_features"], TASKS["cka"][0][1]
    machine = rates(quick=quick)
    cross = 2 * n * size["d_a"] * size["d_b"]
    by_products = (gram_flops(size) + (1 + n_shuffles) * cross) / machine.flops32
    by_gathering = n**2 * (size["d_a"] + size["d_b"]) / machine.flops32
    by_gathering += n_shuffles * 4 * n**2 / machine.bandwidth
    yield Row(
        part="e",
        work="cka",
        size=told(n_shuffles, quick=quick, exact=True),
        ours_s=ours,
        ours_peak_gib=peak("cka", size, quick=quick),
        opponent="numpy, three products for every shuffle",
        opponent_s=fit.at(n) * (1 + n_shuffles),
        how=f"one evaluation {fit.told}; times {1 + n_shuffles}",
        limit_s=min(by_products, by_gathering),
        limit="a cross product in float32 for every shuffle, or both K x K products once and "
        "reading half of both for every shuffle, whichever is less",
        max_difference=difference(
            TASKS["cka"][0],
            published.cka_by_numpy,
            int(fit.sizes[-1]),
            int(fit.sizes[0]),
            quick=quick,
        ),
        tolerance=1e-5,
    )


def peak(task: str, size: Mapping[str, int], *, quick: bool) -> float:
    sizes = {"task": task, **size}, {"task": task, **TINY}
    return in_fresh_process(prepare, *sizes, quick=quick).peak_gib


LINES: dict[str, tuple[str, dict[str, Any]]] = {
    "pc1": ("pc1", {}),
    "svcca, 20 components": ("svcca", {"n_components": 20}),
    "rsa": ("rsa", RSA),
    "cka": ("cka", {}),
}


def curves(*, quick: bool) -> Iterator[Point]:
    """Our time against the number of pairs, and of shuffles."""
    size = TINY if quick else FULL
    n_shuffles = 10 if quick else 100
    few = size["n_features"] // 4
    steps = [size["n_features"] // 4 * f for f in (1, 2, 4)]
    for line, (name, options) in LINES.items():
        for n in steps:
            x, y = (rows[:n] for rows in rows_of(quick=quick))
            yield Point(
                figure="measures",
                panel=f"matched pairs (K), {n_shuffles} shuffles",
                line=line,
                x=n,
                seconds=time_of(x, y, [(name, n_shuffles, options)]),
            )
        x, y = (rows[:few] for rows in rows_of(quick=quick))
        for n in (10, 100, 1000):
            yield Point(
                figure="measures",
                panel=f"shuffles, K = {few:,}",
                line=line,
                x=n,
                seconds=time_of(x, y, [(name, n, options)]),
            )


def time_of(x: np.ndarray, y: np.ndarray, tasks: list[Task]) -> float:
    scored(x[:100], y[:100], [(name, 2, options) for name, _, options in tasks])
    return interleaved({"ours": lambda: scored(x, y, tasks)})["ours"]
