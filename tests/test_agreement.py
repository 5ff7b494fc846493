"""When grids agree, how sure that is, and means over runs beside what chance gives for a mean."""

import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from saelign import agreement
from saelign.agreement import MIN_LAYERS, agreement_of, compared, statistics_at, summary_of
from saelign.nulls import q_values

STATISTICS = ("spearman", "mean_difference")
INTERVALS = ("low", "high", "difference_low", "difference_high")


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def grid_of(values: np.ndarray) -> pd.DataFrame:
    """A grid of layers 0, 2, 4 ... of A by layers 1, 2, 3 ... of B."""
    n_a, n_b = values.shape
    return pd.DataFrame(values, index=2 * np.arange(n_a), columns=1 + np.arange(n_b))


# Two grids.


def test_a_grid_agrees_with_itself_beyond_doubt():
    x = grid_of(rng().normal(size=(6, 5)))
    found = compared(x, x, rng=rng())
    assert found["n_cells"] == 30
    assert [found[name] for name in ("spearman", "low", "high")] == [1, 1, 1]
    assert found["mean_difference"] == found["difference_low"] == found["difference_high"] == 0


def test_ranks_see_no_more_than_order_and_the_difference_sees_a_shift():
    x = grid_of(rng().normal(size=(6, 5)))
    up, down = (compared(x, y, rng=rng()) for y in (np.exp(x), -(x**3)))
    assert [up[name] for name in ("spearman", "low", "high")] == [1, 1, 1]
    assert [down[name] for name in ("spearman", "low", "high")] == [-1, -1, -1]
    shifted = compared(x + 0.25, x, rng=rng())
    np.testing.assert_allclose(
        [shifted[name] for name in ("mean_difference", "difference_low", "difference_high")], 0.25
    )


@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    n_values=st.sampled_from([1, 2, 4, 1000]),
    missing=st.sampled_from([0.0, 0.3, 0.9]),
    seed=st.integers(0, 2**32 - 1),
)
def test_spearman_is_scipys_over_the_cells_that_both_have(shape, n_values, missing, seed):
    rng = np.random.default_rng(seed)
    x, y = (rng.integers(n_values, size=shape) / 7 for _ in range(2))
    x[rng.random(shape) < missing] = np.nan
    y[rng.random(shape) < missing] = np.nan
    at = rng.integers(x.size, size=(4, x.size))
    spearman, difference = statistics_at(x, y, np.vstack([np.arange(x.size), at]))
    for row, cells in enumerate([np.arange(x.size), *at]):
        a, b = x.ravel()[cells], y.ravel()[cells]
        both = ~np.isnan(a + b)
        a, b = a[both], b[both]
        if len(a) == 0:
            assert np.isnan(difference[row])
        else:
            assert difference[row] == pytest.approx((a - b).mean())
        if len(set(a)) > 1 and len(set(b)) > 1:
            assert spearman[row] == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
        else:
            assert np.isnan(spearman[row])
    found = compared(grid_of(x), grid_of(y), rng=rng)
    assert found["n_cells"] == (~np.isnan(x + y)).sum()
    np.testing.assert_array_equal(
        [found[name] for name in STATISTICS], [spearman[0], difference[0]]
    )


def test_layers_are_matched_by_their_number_and_only_common_ones_count():
    x = grid_of(rng().normal(size=(6, 5)))
    found = compared(x, x.iloc[::-1, [4, 2, 1, 0]].drop(index=4), rng=rng())
    assert found["n_cells"] == 5 * 4
    assert found["spearman"] == 1
    assert found["mean_difference"] == 0
    two = compared(x, x.iloc[:2], rng=rng())  # the other layers are none to resample
    assert two["n_cells"] == 2 * 5
    assert np.isnan([two[name] for name in INTERVALS]).all()


def test_cells_that_one_grid_lacks_are_left_out_and_counted():
    x = grid_of(rng().normal(size=(5, 5)))
    y = x.copy()
    y.iloc[0, 0], y.iloc[3, 2] = np.nan, np.nan
    x.iloc[0, 0], x.iloc[4, 4] = np.nan, np.nan
    found = compared(x, y, rng=rng())
    assert found["n_cells"] == 22
    assert [found[name] for name in ("spearman", "low", "high")] == [1, 1, 1]


@pytest.mark.parametrize("shape", [(MIN_LAYERS - 1, 9), (9, MIN_LAYERS - 1), (1, 1), (0, 0)])
def test_with_fewer_than_three_layers_there_is_no_interval(shape):
    x, y = (grid_of(values) for values in rng().normal(size=(2, *shape)))
    found = compared(x, y, rng=rng())
    assert np.isnan([found[name] for name in INTERVALS]).all()
    assert np.isnan(found["spearman"]) == (x.size < 2)
    assert np.isnan(found["mean_difference"]) == (x.size == 0)


def test_grids_without_a_common_cell_or_without_any_difference_have_no_correlation():
    x = grid_of(rng().normal(size=(4, 4)))
    nothing = compared(x, x.set_axis([90, 91, 92, 93]), rng=rng())
    missing = compared(x, x * np.nan, rng=rng())
    for found in (nothing, missing):
        assert found.pop("n_cells") == 0
        assert np.isnan(list(found.values())).all()
    flat = compared(x, 0 * x, rng=rng())
    assert flat["n_cells"] == 16
    assert np.isnan([flat[name] for name in ("spearman", "low", "high")]).all()
    assert flat["difference_low"] < flat["mean_difference"] < flat["difference_high"]


@pytest.mark.parametrize("of_layers", [0.0, 1.0])
def test_intervals_cover_0_where_grids_are_independent(of_layers, monkeypatch):
    """Layers are what is drawn: that cells of a layer go together must not narrow an interval."""
    monkeypatch.setattr(agreement, "N_RESAMPLES", 200)
    rng = np.random.default_rng(1)
    n_trials, n = 80, 12

    def drawn() -> pd.DataFrame:
        effects = rng.normal(size=(n, 1)) + rng.normal(size=(1, n))
        return grid_of(rng.normal(size=(n, n)) + of_layers * effects)

    found = [compared(drawn(), drawn(), rng=rng) for _ in range(n_trials)]
    spearman = np.array([f["spearman"] for f in found])
    assert abs(spearman.mean()) < 4 * spearman.std() / np.sqrt(n_trials)
    for low, high in (INTERVALS[:2], INTERVALS[2:]):
        covered = np.mean([f[low] <= 0 <= f[high] for f in found])
        assert covered >= 0.85  # 95 % within four standard errors
    widths = np.mean(
        [[f["high"] - f["low"], f["difference_high"] - f["difference_low"]] for f in found], axis=0
    )
    assert (widths < [1.0, 3.0]).all()


def test_resampling_cells_instead_of_layers_would_be_too_sure(monkeypatch):
    monkeypatch.setattr(agreement, "N_RESAMPLES", 200)
    rng = np.random.default_rng(2)
    n, covered, n_trials = 12, {"layers": 0, "cells": 0}, 60
    for _ in range(n_trials):
        x, y = (
            rng.normal(size=(n, 1)) + rng.normal(size=(1, n)) + 0.2 * rng.normal(size=(n, n))
            for _ in range(2)
        )
        found = compared(grid_of(x), grid_of(y), rng=rng)
        covered["layers"] += found["difference_low"] <= 0 <= found["difference_high"]
        _, by_cell = statistics_at(x, y, rng.integers(n * n, size=(200, n * n)))
        low, high = np.quantile(by_cell, [0.025, 0.975])
        covered["cells"] += low <= 0 <= high
    assert covered["layers"] >= 0.85 * n_trials
    assert covered["cells"] < 0.6 * n_trials


# The rows of a study.


METRICS, SEEDS, MATCHINGS = ("pearson", "cosine", "euclidean"), (7, 3, 11), ("one_to_one", "other")
MEASURES, NULLS = ("rsa", "cka", "pc1"), ("shuffle", "rate_matched")
LAYERS_A, LAYERS_B = (0, 2, 4), (1, 2, 3, 5)


def scores_table(**changes) -> pd.DataFrame:
    """Scores as a study gives them; every score is another, the same beside every null."""
    rng = np.random.default_rng(5)
    rows = []
    for run, metric, matching, measure, layer_a, layer_b in itertools.product(
        range(len(SEEDS)), METRICS, MATCHINGS, MEASURES, LAYERS_A, LAYERS_B
    ):
        score, *halves = rng.random(3)
        if metric != METRICS[0] and matching == "other" and measure == "pc1":
            score = np.nan
        where = {
            "control": "trained",
            "run": run,
            "metric": metric,
            "layer_a": layer_a,
            "layer_b": layer_b,
            "matching": matching,
            "subspace": "all",
            "measure": measure,
            "score": score,
            "score_half_1": halves[0] if measure != "cka" else np.nan,
            "score_half_2": halves[1] if measure != "cka" else np.nan,
        }
        rows += [{**where, "null": null, "null_mean": 0.1, "p": 0.5} for null in NULLS]
    return pd.DataFrame(rows).assign(**changes)


def cells_of(scores: pd.DataFrame, value: str = "score", **where) -> np.ndarray:
    """The values of the cells in order, means over runs, one of the equal rows beside each null."""
    for column, wanted in where.items():
        scores = scores[scores[column] == wanted]
    scores = scores[scores["null"] == NULLS[0]]
    return scores.groupby(["layer_a", "layer_b"])[value].mean().to_numpy()


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return agreement_of(scores_table(), seeds=SEEDS, metrics=METRICS, rng=rng())


def test_every_choice_that_a_study_makes_has_its_rows(rows):
    n_kinds = rows.groupby("kind").size().to_dict()
    n_each = len(MATCHINGS) * len(MEASURES)
    assert n_kinds == {
        "seeds": 3 * n_each,
        "metrics": 2 * n_each,
        "texts": 2 * len(MATCHINGS),  # of measures that have scores of the halves
        "measures": 3 * len(MATCHINGS),
    }
    assert not rows.duplicated(["kind", "matching", "measure", "x", "y"]).any()
    assert list(rows.columns) == [
        "kind", "matching", "measure", "x", "y", "n_cells", "spearman", "low", "high",
        "mean_difference", "difference_low", "difference_high",
    ]  # fmt: skip


def expected_cells(row) -> tuple[np.ndarray, np.ndarray]:
    """The cells that a row compares, taken from the table by its words alone."""
    scores = scores_table()
    scores = scores[scores["matching"] == row.matching]
    own = scores[scores["metric"] == METRICS[0]]
    if row.kind == "measures":
        assert row.measure == f"{row.x}, {row.y}"
        return cells_of(own, measure=row.x), cells_of(own, measure=row.y)
    own, scores = (s[s["measure"] == row.measure] for s in (own, scores))
    if row.kind == "metrics":
        return cells_of(scores, metric=row.x), cells_of(scores, metric=row.y)
    if row.kind == "texts":
        assert (row.x, row.y) == ("half 1", "half 2")
        return cells_of(own, "score_half_1", run=0), cells_of(own, "score_half_2", run=0)
    runs = [SEEDS.index(int(seed.removeprefix("seed "))) for seed in (row.x, row.y)]
    return cells_of(own, run=runs[0]), cells_of(own, run=runs[1])


def test_each_row_compares_the_cells_that_it_names(rows):
    for row in rows.itertuples():
        x, y = expected_cells(row)
        both = ~np.isnan(x + y)
        assert row.n_cells == both.sum()
        if not both.any():
            assert (row.kind, row.matching, row.measure) == ("metrics", "other", "pc1")
            assert np.isnan([row.spearman, row.mean_difference, row.low, row.high]).all()
            continue
        assert row.n_cells == len(LAYERS_A) * len(LAYERS_B)
        assert row.spearman == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
        assert row.low <= row.spearman <= row.high
        if row.kind == "measures":  # which have no common unit
            assert np.isnan([row.mean_difference, row.difference_low, row.difference_high]).all()
        else:
            assert row.mean_difference == pytest.approx((x - y).mean())
            assert row.difference_low <= row.mean_difference <= row.difference_high


def test_identical_runs_metrics_and_halves_agree_completely():
    scores = scores_table()
    value = scores["layer_a"] + 10.0 * scores["layer_b"]
    rows = agreement_of(
        scores.assign(score=value, score_half_1=value, score_half_2=value),
        seeds=SEEDS,
        metrics=METRICS,
        rng=rng(),
    )
    assert (rows[["spearman", "low", "high"]] == 1).all(axis=None)
    of_one_measure = rows[rows["kind"] != "measures"]
    differences = ["mean_difference", "difference_low", "difference_high"]
    assert (of_one_measure[differences] == 0).all(axis=None)


def test_the_null_that_stands_first_does_not_matter():
    scores = scores_table()
    swapped = scores.sort_values("null", kind="stable")
    assert swapped["null"].iloc[0] != scores["null"].iloc[0]
    found = [agreement_of(s, seeds=SEEDS, metrics=METRICS, rng=rng()) for s in (scores, swapped)]
    pd.testing.assert_frame_equal(*found)


def test_a_study_of_one_seed_one_metric_and_one_measure_compares_its_texts_alone():
    scores = scores_table().query("run == 0 and metric == 'pearson' and measure == 'rsa'")
    rows = agreement_of(scores, seeds=SEEDS[:1], metrics=METRICS[:1], rng=rng())
    assert rows["kind"].tolist() == ["texts"] * len(MATCHINGS)
    without = scores.assign(score_half_1=np.nan, score_half_2=np.nan)
    assert len(agreement_of(without, seeds=SEEDS[:1], metrics=METRICS[:1], rng=rng())) == 0


def test_runs_and_cells_without_a_score_are_left_out():
    scores = scores_table()
    scores.loc[scores["run"] == 1, "score"] = np.nan
    scores.loc[(scores["layer_a"] == 2) & (scores["run"] == 2), "score"] = np.nan
    rows = agreement_of(scores, seeds=SEEDS, metrics=METRICS[:1], rng=rng())
    seeds = rows[rows["kind"] == "seeds"]
    n_cells = {(x, y): n for x, y, n in seeds[["x", "y", "n_cells"]].itertuples(index=False)}
    assert n_cells == {("seed 7", "seed 3"): 0, ("seed 7", "seed 11"): 8, ("seed 3", "seed 11"): 0}
    none = agreement_of(scores.assign(score=np.nan), seeds=SEEDS, metrics=METRICS, rng=rng())
    assert len(none) == 0
    assert list(none.columns) == list(rows.columns)


def test_the_same_numbers_come_back_with_the_same_draws(rows):
    again = agreement_of(scores_table(), seeds=SEEDS, metrics=METRICS, rng=rng())
    pd.testing.assert_frame_equal(rows, again)


# Means over runs.


def runs_table(scores: list[float], **columns) -> pd.DataFrame:
    """One cell, a row a run."""
    return pd.DataFrame(
        {
            "control": "trained",
            "run": range(len(scores)),
            "metric": "pearson",
            "layer_a": 0,
            "layer_b": 1,
            "matching": "one_to_one",
            "subspace": "all",
            "measure": "rsa",
            "null": "shuffle",
            "score": scores,
            "null_mean": 0.1,
            "p": 0.25,
        }
        | columns
    )


def test_a_mean_is_held_against_means_of_equally_indexed_shuffles():
    scores = runs_table([0.3, 0.5, 0.7], null_mean=[0.0, 0.1, 0.2])
    drawn = [np.array(null) for null in ([0.9, 0.1, 0.6, 0], [0.1, 0.1, 0.5, 0], [0, 0.9, 0.4, 0])]
    # Means .333, .367, .5 and 0: one of four reaches the mean score of .5, that which ties with it.
    summary = summary_of(scores, drawn)
    assert len(summary) == 1
    row = summary.iloc[0]
    assert row["n_runs"] == 3
    assert row["score"] == pytest.approx(0.5)
    assert row["score_sd"] == pytest.approx(0.2)  # n - 1
    assert row["null_mean"] == pytest.approx(0.1)
    assert row["p"] == pytest.approx(2 / 5)
    assert row["q"] == row["p"]
    assert row["calibrated"] == pytest.approx(0.4 / 0.9)
    assert list(summary.columns) == [
        "control", "metric", "layer_a", "layer_b", "matching", "subspace", "measure", "null",
        "n_runs", "score", "score_sd", "null_mean", "p", "q", "calibrated",
    ]  # fmt: skip


def test_one_run_keeps_its_own_p_and_has_no_spread():
    row = summary_of(runs_table([0.3], p=0.0125), [np.zeros(7)]).iloc[0]
    assert (row["n_runs"], row["score"], row["p"]) == (1, 0.3, 0.0125)
    assert np.isnan(row["score_sd"])


def test_runs_that_could_not_be_scored_are_left_out():
    scores = runs_table([np.nan, 0.4, 0.6], p=[np.nan, 0.2, 0.2], null_mean=[np.nan, 0.1, 0.1])
    row = summary_of(scores, [np.zeros(0), np.array([0.6, 0]), np.array([0.5, 0])]).iloc[0]
    assert (row["n_runs"], row["score"], row["p"]) == (2, 0.5, pytest.approx(2 / 3))
    alone = summary_of(scores.iloc[:2], [np.zeros(0), np.array([0.6, 0])]).iloc[0]
    assert (alone["n_runs"], alone["score"], alone["p"]) == (1, 0.4, 0.2)
    none = summary_of(scores.iloc[:1], [np.zeros(0)]).iloc[0]
    assert none["n_runs"] == 0
    assert none[["score", "score_sd", "null_mean", "p", "q", "calibrated"]].isna().all()


def test_different_numbers_of_shuffles_are_cut_to_the_fewest():
    drawn = [np.array([1.0, 0, 1, 1, 1]), np.array([1.0, 0])]
    assert summary_of(runs_table([0.5, 0.5]), drawn)["p"][0] == pytest.approx(2 / 3)


def test_a_null_mean_of_1_leaves_no_room_to_calibrate():
    row = summary_of(runs_table([1.0, 1.0], null_mean=1.0), [np.ones(3)] * 2).iloc[0]
    assert np.isnan(row["calibrated"])
    assert row["p"] == 1


def test_each_cell_takes_its_own_shuffles_and_q_is_over_the_grid():
    scores = scores_table().sample(frac=1, random_state=0)  # any order, any index
    values = np.random.default_rng(1).random((len(scores), 19))
    summary = summary_of(scores, values)
    by = ["control", "metric", "layer_a", "layer_b", "matching", "subspace", "measure", "null"]
    scores = scores.reset_index(drop=True)
    assert len(summary) == len(scores) / len(SEEDS)
    for key, row in summary.set_index(by).iterrows():
        of_cell = scores[(scores[by] == list(key)).all(axis=1)]
        if of_cell["score"].isna().all():
            assert row["n_runs"] == 0
            continue
        reached = values[of_cell.index].mean(axis=0) >= of_cell["score"].mean()
        assert row["p"] == (1 + reached.sum()) / 20
    families = summary.groupby(["control", "metric", "matching", "subspace", "measure", "null"])
    assert (families.size() == len(LAYERS_A) * len(LAYERS_B)).all()
    for _, family in families:
        np.testing.assert_array_equal(family["q"], q_values(family["p"].to_numpy()))


@pytest.mark.parametrize("n_runs", [2, 5])
def test_p_of_the_mean_is_uniform_under_the_null(n_runs):
    rng = np.random.default_rng(0)
    n_cells, n_shuffles = 400, 99
    values = rng.gamma(2, size=(n_cells, n_runs, 1 + n_shuffles))  # a score and its shuffles
    values += rng.normal(size=(n_cells, n_runs, 1))  # what chance gives may differ between runs
    scores = pd.concat(
        [runs_table(of_cell[:, 0].tolist(), layer_a=i) for i, of_cell in enumerate(values)]
    )
    summary = summary_of(scores, values[:, :, 1:].reshape(-1, n_shuffles))
    assert (summary["n_runs"] == n_runs).all()
    p = summary["p"] - rng.random(n_cells) / (1 + n_shuffles)  # spread evenly within its steps
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01


def test_runs_together_find_what_each_alone_does_not():
    rng = np.random.default_rng(0)
    drawn = list(rng.normal(size=(9, 999)))
    scores = runs_table([1.2] * 9, p=[(1 + (null >= 1.2).sum()) / 1000 for null in drawn])
    assert (scores["p"] > 0.05).all()
    assert summary_of(scores, drawn)["p"][0] < 0.002
