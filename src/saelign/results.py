"""A finished run: its folder, and what is read from it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from saelign.errors import (
    DamagedError,
    FormatError,
    MissingFileError,
    UnknownNameError,
)
from saelign.files import written

FORMAT = 2
"""Version of the run folder that this package writes and reads."""

TRAINED = "trained"
"""The comparison that a study is about, the models as given; what controls are held against."""

NEEDED = {"name", "versions", "seeds", "metrics", "controls", "text", "models"}
"""Keys of a finished run's `run.json` that its tables and figures tell of."""


@dataclass(frozen=True, slots=True)
class Run:
    """The results in a run's folder; files are read when asked for.

    Attributes:
        folder: Where they lie.
        info: What `run.json` says: study, versions, hashes, command, models, text, warnings.
    """

    folder: Path
    info: dict[str, Any]

    @property
    def scores(self) -> pd.DataFrame:
        """Tidy: a row a control, run, metric, layer pair, matching, subspace, measure and null."""
        return read_table(self.folder / "scores.parquet")

    @property
    def summary(self) -> pd.DataFrame:
        """Scores as means over runs, with their spread and the p-value of the mean."""
        return read_table(self.folder / "summary.parquet")

    @property
    def cells(self) -> pd.DataFrame:
        """A row for each control, run, metric, layer pair and matching: filters, correlations."""
        return read_table(self.folder / "cells.parquet")

    @property
    def layers(self) -> pd.DataFrame:
        """A row for each run, side and layer: features dead, rare and alive, fit of the SAE."""
        return read_table(self.folder / "layers.parquet")

    @property
    def agreement(self) -> pd.DataFrame:
        """How alike grids are between seeds, metrics, measures and disjoint texts."""
        return read_table(self.folder / "agreement.parquet")

    @property
    def verdicts(self) -> pd.DataFrame:
        """What is to be said of each feature: shared, one-sided, of one model only, or unclear."""
        return read_table(self.folder / "verdicts.parquet")

    @property
    def subspace_features(self) -> pd.DataFrame:
        """How many features of each layer belong to each semantic subspace."""
        return read_table(self.folder / "subspace_features.parquet")

    @property
    def subspaces(self) -> pd.DataFrame:
        """Features, pairs and correlations of each subspace of each layer pair."""
        return read_table(self.folder / "subspaces.parquet")

    @property
    def subspace_scores(self) -> pd.DataFrame:
        """Scores of subspaces beside every null, that of their size among them."""
        return read_table(self.folder / "subspace_scores.parquet")

    @property
    def subspace_pairs(self) -> pd.DataFrame:
        """The matched features of each subspace, dropped ones with their reason."""
        return read_table(self.folder / "subspace_pairs.parquet")

    @property
    def has_subspaces(self) -> bool:
        """Whether the study asked for semantic subspaces."""
        return bool(self.info.get("concepts"))

    @property
    def controls(self) -> list[str]:
        """The comparisons that there are, the models as given first."""
        return list(self.info["controls"])

    @property
    def metrics(self) -> list[str]:
        """What was matched by, the study's own metric first."""
        return list(self.info["metrics"])

    def grid(
        self,
        measure: str,
        value: str = "score",
        *,
        matching: str = "one_to_one",
        null: str | None = None,
        run: int = 0,
        control: str = TRAINED,
        metric: str | None = None,
        subspace: str | None = None,
    ) -> pd.DataFrame:
        """A layer_a x layer_b table.

        Args:
            measure: A measure of the run (`rsa`, `svcca`, ...), or a column of `cells`
                (`mean_correlation`, `mean_within_token`, `held_out_correlation`, `n_kept`, ...).
            value: Which column of `scores`: `score`, `null_mean`, `p`, `q`, `calibrated`, ...; a
                column of `cells` has none.
            matching: Which matching.
            null: Beside which null; the strictest that was run (`rate_matched`) if None.
            run: Which seed's run, counted from 0.
            control: Which comparison: `trained`, the models as given; or a control.
            metric: Matched by what; the study's own metric if None.
            subspace: Of which semantic subspace (then columns are those of `subspaces` and
                `subspace_scores`); of all features if None.

        Raises:
            UnknownNameError: No such measure, value, matching, null, run, control, metric or
                subspace in this folder.
        """
        cells, scores = self.cells, self.scores
        if subspace is not None:
            known = self.subspaces["subspace"].unique() if self.has_subspaces else []
            if subspace not in known:
                raise UnknownNameError.of("subspace of this run", subspace, known or ["(none)"])
            cells, scores = self.subspaces, self.subspace_scores
            cells, scores = (t[t["subspace"] == subspace] for t in (cells, scores))
        if measure in cells.columns and measure not in KEYS:
            if value != "score":
                raise UnknownNameError(
                    f"{measure} has no null and so no {value!r} beside it: leave value out"
                )
            table, value = cells, measure
        else:
            table = scores
            known = [*table["measure"].unique(), *(c for c in cells.columns if c not in KEYS)]
            table = chosen(table, "measure", measure, known)
            nulls = list(table["null"].unique())
            table = chosen(table, "null", null or strictest(nulls), nulls)
            if value not in table.columns or value in KEYS:
                raise UnknownNameError.of("value", value, set(table.columns) - set(KEYS))
        metric = self.metrics[0] if metric is None else metric
        for column, wanted in (
            ("control", control),
            ("metric", metric),
            ("matching", matching),
            ("run", run),
        ):
            table = chosen(table, column, wanted, table[column].unique())
        return table.pivot(index="layer_a", columns="layer_b", values=value)

    def pairs(
        self,
        layer_a: int,
        layer_b: int,
        *,
        matching: str = "one_to_one",
        run: int = 0,
        control: str = TRAINED,
        metric: str | None = None,
    ) -> pd.DataFrame:
        """The matched features of a cell, dropped ones with their reason.

        Raises:
            UnknownNameError: The run holds no such cell; says which layers, matchings, runs,
                controls and metrics it holds.
        """
        table = self.cells
        metric = self.metrics[0] if metric is None else metric
        for column, value in (
            ("control", control),
            ("metric", metric),
            ("layer_a", layer_a),
            ("layer_b", layer_b),
            ("matching", matching),
            ("run", run),
        ):
            table = chosen(table, column, value, table[column].unique())
        where = {"control": control, "metric": metric, "matching": matching, "run": run}
        return read_table(self.folder / pairs_name(layer_a, layer_b, **where))

    def features(self, model: str, layer: int, *, run: int = 0) -> pd.DataFrame:
        """Every feature of a layer: firing rate, top tokens in context, why it was not paired.

        Args:
            model: `a` or `b`; or a side that only a control has: `a_untrained`, `b_untrained`,
                `a_seed`, `b_seed`.
            layer: Which layer.
            run: Which seed's run.

        Raises:
            UnknownNameError: No such side, or the run holds no such layer of it; says which it
                holds.
        """
        side = model.lower()
        table = self.layers
        sides = list(table["model"].unique())
        if side not in sides:
            raise UnknownNameError.of("model", model, sides)
        table = table[table["model"] == side]
        for column, value in (("layer", layer), ("run", run)):
            table = chosen(table, column, value, table[column].unique())
        return read_table(self.folder / features_name(side, layer, run))


KEYS = (
    "control", "run", "metric", "layer_a", "layer_b", "matching", "subspace", "kind", "measure",
    "null",
)  # fmt: skip
"""Columns that say which cell a row is about."""


def chosen(table: pd.DataFrame, column: str, value: object, known: Any) -> pd.DataFrame:
    """The rows with `value` in `column`, or an error that names what there is."""
    rows = table[table[column] == value]
    if len(rows) > 0:
        return rows
    if isinstance(value, str):
        raise UnknownNameError.of(f"{column} of this run", value, [str(k) for k in known])
    # Numbers stand in their own order, and none of them is a misspelling of another.
    there = ", ".join(str(k) for k in sorted(known))
    raise UnknownNameError(f"these results hold no {column} {value}, expected one of: {there}")


def strictest(nulls: Iterable[str]) -> str:
    """The null that verdicts are taken from: `rate_matched` if it was run."""
    nulls = list(nulls)
    return "rate_matched" if "rate_matched" in nulls else nulls[0]


def pairs_name(
    layer_a: int, layer_b: int, *, control: str, metric: str, matching: str, run: int
) -> str:
    """Where a cell's pairs lie in a run's folder."""
    return f"pairs/{control}/run{run}_{metric}_{matching}_a{layer_a}_b{layer_b}.parquet"


def features_name(side: str, layer: int, run: int) -> str:
    """Where a layer's features lie in a run's folder."""
    return f"features/{side}/run{run}_layer{layer}.parquet"


def contexts_name(side: str, layer: int, run: int) -> str:
    """Where the top contexts of a layer's features lie in a run's folder."""
    return f"contexts/{side}/run{run}_layer{layer}.parquet"


def details_name(
    layer_a: int, layer_b: int, *, control: str, metric: str, matching: str, run: int
) -> str:
    """Where what stands behind a cell's scores lies in a run's folder."""
    return f"details/{control}/run{run}_{metric}_{matching}_a{layer_a}_b{layer_b}.safetensors"


def decoder_tokens_name(side: str, layer: int) -> str:
    """Where the tokens lie that a layer's decoder rows speak for, in a run's folder."""
    return f"decoder_tokens/{side}/layer{layer}.parquet"


def open_run(folder: str | Path) -> Run:
    """The run in a folder.

    Raises:
        MissingFileError: No run there, or one that was not finished.
        DamagedError: Its `run.json` cannot be read.
        FormatError: It was written by a newer version, or by one that is too old.
    """
    folder = Path(folder)
    path = folder / "run.json"
    if not path.is_file():
        raise MissingFileError(
            f"a run's folder must hold run.json, {folder} does not: give a folder that "
            "`saelign run` wrote"
        )
    damaged = f"{path} must be what saelign wrote, it is damaged: run the study again"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        version = int(info["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(damaged) from error
    if version != FORMAT:
        advice = "upgrade saelign" if version > FORMAT else "run the study again"
        raise FormatError(
            f"this version reads runs of format {FORMAT}, {path} has {version}: {advice}"
        )
    if not info.get("complete"):
        raise MissingFileError(
            f"the run in {folder} was not finished: start it again, it goes on where it stopped"
        )
    if not info.keys() >= NEEDED:
        raise DamagedError(damaged)
    return Run(folder, info)


def read_table(path: Path) -> pd.DataFrame:
    """A parquet file of a run.

    Raises:
        MissingFileError: It is not there.
        DamagedError: It cannot be read.
    """
    if not path.is_file():
        raise MissingFileError(
            f"a run must hold {path.name}, {path} is not there: run the study again"
        )
    try:
        return pd.read_parquet(path, engine="pyarrow", page_checksum_verification=True)
    # Bytes flipped at random gave errors of six classes, KeyError and bare ArrowException included.
    except Exception as error:
        raise DamagedError(
            f"{path} must be what saelign wrote, it is damaged: run the study again"
        ) from error


def write_table(table: pd.DataFrame, path: Path, *, csv: bool = False) -> None:
    """Write a table as parquet, and beside it as CSV if asked for."""
    with written(path) as temporary:
        table.to_parquet(temporary, engine="pyarrow", index=False, write_page_checksum=True)
    if csv:
        with written(path.with_suffix(".csv")) as temporary:
            table.to_csv(temporary, index=False)


def write_info(info: dict[str, Any], folder: Path) -> None:
    """Write `run.json`."""
    with written(folder / "run.json") as temporary:
        temporary.write_text(json.dumps({"format": FORMAT, **info}, indent=2, default=str))
