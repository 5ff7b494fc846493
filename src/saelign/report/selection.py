"""Which rows of a run's tables are shown, and how they are laid side by side."""

from collections.abc import Sequence

import pandas as pd

from saelign.results import KEYS, TRAINED, Run

UNTRAINED = "untrained"
ON_GRID = (TRAINED, UNTRAINED, "document_shift")
"""Comparisons of A's layers with B's, which can stand beside each other cell by cell."""
CEILINGS = ("seed_a", "seed_b")
"""Comparisons of a model's layers with its own, through other SAEs."""

CORRELATIONS = {
    "mean_correlation": "plain",
    "mean_within_token": "within-token",
    "held_out_correlation": "held-out",
}
"""Correlations of all pairs, and what they are called."""
KEPT_CORRELATIONS = {f"{column}_kept": name for column, name in CORRELATIONS.items()}

DIFFERENCE = "_minus_untrained"
"""Ends the name of a column that holds what trained models have above untrained ones."""


NAMES = {
    "one_to_one": "one-to-one",
    "many_to_one": "many-to-one",
    "one_to_many": "one-to-many",
    "optimal": "optimal one-to-one",
    "rate_matched": "rate-matched null",
    "same_size": "same-size null",
    "shuffle": "shuffle null",
    "trained": "trained",
    "untrained": "untrained",
    "document_shift": "document shift",
    DIFFERENCE: "trained - untrained",
    "seed_a": "A with itself",
    "seed_b": "B with itself",
}


def file_name(measure: str) -> str:
    """A measure's label as part of a file name."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in measure).strip("_")


def of_runs(run: Run) -> str:
    """What a title says of several runs."""
    n_runs = len(run.info["seeds"])
    return f", mean of {n_runs} runs" if n_runs > 1 else ""


def grid_of(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """A column as layer_a x layer_b."""
    return table.pivot(index="layer_a", columns="layer_b", values=value).astype(float)


def of_own_metric(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """The rows matched by the study's own metric, the one that controls are matched by too."""
    return table[table["metric"] == run.metrics[0]]


def there(table: pd.DataFrame, controls: Sequence[str]) -> list[str]:
    """Those of the comparisons that the table has rows of."""
    present = set(table["control"])
    return [control for control in controls if control in present]


def over_runs(cells: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """Cells as they are if there is one run; else the means of `values` over runs."""
    if cells["run"].nunique() == 1:
        return cells
    by = [key for key in KEYS if key in cells.columns and key != "run"]
    groups = cells.groupby(by, sort=False)
    means = groups[list(values)].mean()
    means.insert(0, "n_runs", groups.size())
    return means.reset_index()


def with_differences(table: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """The table, and in its rows of trained models how far they are above the untrained ones.

    A column `<value>_minus_untrained` for each of the values, NaN in the rows of controls; no
    column if there are no untrained models.
    """
    if UNTRAINED not in set(table["control"]):
        return table
    by = [key for key in KEYS if key in table.columns and key != "control"]
    twins = table.loc[table["control"] == UNTRAINED, [*by, *values]]
    beside = table[by].merge(twins, on=by, how="left", validate="many_to_one")
    beside.index = table.index
    trained = table["control"] == TRAINED
    return table.assign(
        **{f"{v}{DIFFERENCE}": (table[v] - beside[v]).where(trained) for v in values}
    )
