"""Do the grids agree: between seeds, metrics, measures and texts; and their means over seeds."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
from jaxtyping import Float

from saelign.nulls import q_values

N_RESAMPLES = 1000
MIN_LAYERS = 3
"""With fewer layers on a side there is nothing to resample, and no interval."""

CELL = ["layer_a", "layer_b"]
Grid = Float[np.ndarray, "layer_a layer_b"]


def agreement_of(
    scores: pd.DataFrame,
    *,
    seeds: Sequence[int],
    metrics: Sequence[str],
    rng: np.random.Generator,
) -> pd.DataFrame:
    """How alike the grids of a study's own comparison are when one choice is changed.

    Args:
        scores: The table of scores, those of the models as given.
        seeds: The study's seeds.
        metrics: What was matched by; the first is the study's own.
        rng: Draws the layers that intervals come from.

    Returns:
        A row for two grids each: `kind` (`seeds`; `metrics`: the study's own against each
        other; `measures`; `texts`: matches made on two disjoint halves of the documents),
        `matching`, `measure`, `x`, `y`, `n_cells`, `spearman` over cells, `mean_difference` (x
        minus y, cell by cell) and 95 % intervals of both (`low`, `high`, `difference_low`,
        `difference_high`): layers of A and of B are resampled, since cells that share a layer are
        not independent. NaN where there are fewer than 3 layers or no two cells differ.
    """
    own = scores[(scores["metric"] == metrics[0]) & scores["score"].notna()]
    own = own[own["null"] == scores["null"].iloc[0]]  # the score is the same beside every null
    others = scores[scores["null"] == scores["null"].iloc[0]]
    rows: list[dict[str, Any]] = []
    for (matching, measure), group in own.groupby(["matching", "measure"], sort=False):
        where = {"matching": matching, "measure": measure}
        for (i, x), (j, y) in itertools.combinations(enumerate(seeds), 2):
            about = {"kind": "seeds", **where, "x": f"seed {x}", "y": f"seed {y}"}
            of_run = [group[group["run"] == run] for run in (i, j)]
            rows.append({**about, **compared(grid(of_run[0]), grid(of_run[1]), rng=rng)})
        for metric in metrics[1:]:
            of_metric = others[
                (others["metric"] == metric)
                & (others["matching"] == matching)
                & (others["measure"] == measure)
            ]
            about = {"kind": "metrics", **where, "x": metrics[0], "y": metric}
            rows.append({**about, **compared(mean_grid(group), mean_grid(of_metric), rng=rng)})
        first = group[group["run"] == 0]
        if first["score_half_1"].notna().any():
            halves = [grid(first, f"score_half_{half}") for half in (1, 2)]
            about = {"kind": "texts", **where, "x": "half 1", "y": "half 2"}
            rows.append({**about, **compared(*halves, rng=rng)})
    for matching, group in own.groupby("matching", sort=False):
        for x, y in itertools.combinations(group["measure"].unique(), 2):
            grids = [mean_grid(group[group["measure"] == measure]) for measure in (x, y)]
            found = compared(*grids, rng=rng)
            about = {"kind": "measures", "matching": matching, "measure": f"{x}, {y}"}
            found |= dict.fromkeys(("mean_difference", "difference_low", "difference_high"), np.nan)
            rows.append({**about, "x": x, "y": y, **found})
    columns = [
        "kind", "matching", "measure", "x", "y", "n_cells", "spearman", "low", "high",
        "mean_difference", "difference_low", "difference_high",
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def grid(scores: pd.DataFrame, value: str = "score") -> pd.DataFrame:
    """A column as layer_a x layer_b."""
    return scores.pivot(index="layer_a", columns="layer_b", values=value)


def mean_grid(scores: pd.DataFrame) -> pd.DataFrame:
    """The mean score over runs as layer_a x layer_b."""
    return scores.groupby(CELL)["score"].mean().unstack()


def compared(
    x: pd.DataFrame, y: pd.DataFrame, *, rng: np.random.Generator
) -> dict[str, int | float]:
    """Rank correlation and mean difference of two grids over the cells that both have."""
    x, y = x.align(y, join="inner")
    a, b = x.to_numpy(dtype=float), y.to_numpy(dtype=float)
    n_a, n_b = a.shape
    cells = {"n_cells": int((~np.isnan(a - b)).sum())}
    at = np.arange(a.size)[None, :]
    found = dict(zip(("spearman", "mean_difference"), statistics_at(a, b, at), strict=True))
    told = {name: float(value[0]) for name, value in found.items()}
    intervals = dict.fromkeys(("low", "high", "difference_low", "difference_high"), np.nan)
    if min(n_a, n_b) >= MIN_LAYERS:
        rows = rng.integers(n_a, size=(N_RESAMPLES, n_a))
        columns = rng.integers(n_b, size=(N_RESAMPLES, n_b))
        at = (rows[:, :, None] * n_b + columns[:, None, :]).reshape(N_RESAMPLES, -1)
        drawn = [value[~np.isnan(value)] for value in statistics_at(a, b, at)]
        for names, values in zip(
            (("low", "high"), ("difference_low", "difference_high")), drawn, strict=True
        ):
            if len(values):
                intervals |= dict(zip(names, np.quantile(values, [0.025, 0.975]), strict=True))
    return {**cells, **told, **{name: float(value) for name, value in intervals.items()}}


def statistics_at(a: Grid, b: Grid, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spearman correlation and mean difference over the cells of each row of `at`."""
    x, y = a.ravel()[at], b.ravel()[at]
    missing = np.isnan(x) | np.isnan(y)
    x, y = np.where(missing, np.nan, x), np.where(missing, np.nan, y)
    ranks = [scipy.stats.rankdata(v, axis=1, nan_policy="omit") for v in (x, y)]
    n = np.maximum((~missing).sum(axis=1), 1)
    x_c, y_c = (r - (np.nansum(r, axis=1) / n)[:, None] for r in ranks)
    norm = np.sqrt(np.nansum(x_c**2, axis=1) * np.nansum(y_c**2, axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        spearman = np.where(norm > 0, np.nansum(x_c * y_c, axis=1) / norm, np.nan)
    difference = np.where((~missing).any(axis=1), np.nansum(x - y, axis=1) / n, np.nan)
    return np.clip(spearman, -1, 1), difference


def summary_of(scores: pd.DataFrame, null_scores: Iterable[np.ndarray]) -> pd.DataFrame:
    """Means over runs, with the p-value of the mean.

    The mean score is held against the means of equally indexed shuffles: shuffle 17 of every run
    together is one draw of what chance gives for the mean.

    Args:
        scores: The table of scores.
        null_scores: The drawn null of each of its rows.

    Returns:
        A row for each `control`, `metric`, `layer_a`, `layer_b`, `matching`, `subspace`, `measure`,
        `null`: `n_runs` that could be scored, `score`, `score_sd` over runs (NaN for one run),
        `null_mean`, `p` (of one run: that of the run), `q` (Benjamini-Hochberg over the grid) and
        `calibrated`.
    """
    by = ["control", "metric", "layer_a", "layer_b", "matching", "subspace", "measure", "null"]
    drawn = list(null_scores)
    rows = []
    for key, group in scores.reset_index(drop=True).groupby(by, sort=False):
        scored = group[group["score"].notna()]
        row = dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True))
        row["n_runs"] = len(scored)
        row["score"], row["null_mean"] = scored["score"].mean(), scored["null_mean"].mean()
        row["score_sd"] = scored["score"].std(ddof=1) if len(scored) > 1 else np.nan
        row["p"] = scored["p"].iloc[0] if len(scored) == 1 else np.nan
        if len(scored) > 1:
            n = min(len(drawn[i]) for i in scored.index)
            means = np.mean([drawn[i][:n] for i in scored.index], axis=0)
            row["p"] = (1 + int((means >= row["score"] - 1e-12).sum())) / (1 + n)
        room = 1 - row["null_mean"]
        row["calibrated"] = (row["score"] - row["null_mean"]) / room if room > 1e-9 else np.nan
        rows.append(row)
    table = pd.DataFrame(rows)
    family = table.groupby(["control", "metric", "matching", "subspace", "measure", "null"])["p"]
    table["q"] = family.transform(lambda p: q_values(p.to_numpy()))
    order = [*by, "n_runs", "score", "score_sd", "null_mean", "p", "q", "calibrated"]
    return table[order]
