"""A finished run: its folder, and what is read from it."""

import html
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from saelign.errors import (
    DamagedError,
    FormatError,
    MissingFileError,
    UnknownNameError,
)
from saelign.files import written
from saelign.nulls import SIGNIFICANCE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from saelign.plots import Width

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
        run: int | None = 0,
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
            run: Which seed's run, counted from 0; None: the mean over runs, with the p and q of
                the mean.
            control: Which comparison: `trained`, the models as given; or a control.
            metric: Matched by what; the study's own metric if None.
            subspace: Of which semantic subspace (then columns are those of `subspaces` and
                `subspace_scores`); of all features if None.

        Raises:
            UnknownNameError: No such measure, value, matching, null, run, control, metric or
                subspace in this folder; or of a subspace the p or q of a mean, which is not there.
        """
        cells, scores = self.cells, self.scores
        if run is None and len(self.info["seeds"]) == 1:
            run = 0
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
        where = {"control": control, "metric": metric, "matching": matching}
        for column, wanted in (where if run is None else {**where, "run": run}).items():
            table = chosen(table, column, wanted, table[column].unique())
        if run is None:
            return self._mean_grid(table, value, is_subspace=subspace is not None)
        return table.pivot(index="layer_a", columns="layer_b", values=value)

    def _mean_grid(self, table: pd.DataFrame, value: str, *, is_subspace: bool) -> pd.DataFrame:
        # A column as its mean over runs; p and q are those of the mean, which the summary holds.
        if "measure" in table.columns and not is_subspace:
            first, summary = table.iloc[0], self.summary
            for column in ("control", "metric", "matching", "measure", "null"):
                summary = summary[summary[column] == first[column]]
            if value in summary.columns:
                return summary.pivot(index="layer_a", columns="layer_b", values=value)
        if value in ("p", "q"):
            raise UnknownNameError(
                f"{value} of a mean over runs is not there of a subspace: say which run, such as "
                "run=0"
            )
        return table.groupby(["layer_a", "layer_b"])[value].mean().unstack()

    @property
    def null_scores(self) -> pd.DataFrame:
        """What every shuffle gave, as a list `draws`, for each row of `scores` of the models given.

        Raises:
            MissingFileError: The run was written by a version that did not keep them.
        """
        return read_table(self.folder / "null_scores.parquet")

    def plot_grid(
        self,
        measure: str,
        value: str = "score",
        *,
        matching: str = "one_to_one",
        null: str | None = None,
        run: int | None = None,
        control: str = TRAINED,
        metric: str | None = None,
        subspace: str | None = None,
        width: "Width" = "one",
        title: str | None = None,
    ) -> "Figure":
        """A grid as a figure for a paper; save it with `savefig("grid.pdf")`.

        Cells of a score that are no better than chance after correction are hatched.

        Args:
            measure: As for `grid`, like `value` and the next six.
            value: Which column.
            matching: Which matching.
            null: Beside which null.
            run: Which run; None: the mean over runs.
            control: Which comparison.
            metric: Matched by what.
            subspace: Of which semantic subspace.
            width: Of the figure: `one` column (3.25 inches), `two` (6.75), or inches.
            title: Stands above; none if None.

        Raises:
            UnknownNameError: As `grid`, or a width that cannot be.
        """
        from saelign.plots import heat_map, panel_of

        where: Any = {
            "matching": matching, "null": null, "run": run, "control": control, "metric": metric,
            "subspace": subspace,
        }  # fmt: skip
        grid = self.grid(measure, value, **where)
        q = None
        if measure not in self.cells.columns and value in ("score", "calibrated"):
            with suppress(UnknownNameError):
                q = self.grid(measure, "q", **where)
        sides = SIDES.get(control, ("A", "B"))
        labels = (f"layer of {sides[0]}", f"layer of {sides[1]}")
        told = measure if value == "score" else f"{measure}, {value.replace('_', ' ')}"
        panel = panel_of(grid, value, q=q, labels=labels)
        return heat_map(panel, label=told.replace("_", " "), width=width, title=title)

    def plot_null(
        self,
        measure: str,
        layer_a: int,
        layer_b: int,
        *,
        matching: str = "one_to_one",
        null: str | None = None,
        run: int = 0,
        metric: str | None = None,
        width: "Width" = "one",
        title: str | None = None,
    ) -> "Figure":
        """What each shuffle of a cell gave, and where its score stands.

        Args:
            measure: A measure of the run.
            layer_a: Layer of A.
            layer_b: Layer of B.
            matching: Which matching.
            null: Which null; the strictest that was run if None.
            run: Which seed's run, counted from 0.
            metric: Matched by what; the study's own metric if None.
            width: Of the figure: `one` column (3.25 inches), `two` (6.75), or inches.
            title: Stands above; none if None.

        Raises:
            UnknownNameError: No such cell in this run.
            MissingFileError: The run was written by a version that did not keep what shuffles gave.
        """
        from saelign.plots import null_histogram

        scores, draws = self.scores, self.null_scores
        scores = scores[scores["control"] == TRAINED]
        null = null or strictest(scores["null"].unique())
        where = {
            "measure": measure, "layer_a": layer_a, "layer_b": layer_b, "matching": matching,
            "null": null, "run": run, "metric": self.metrics[0] if metric is None else metric,
        }  # fmt: skip
        for column, wanted in where.items():
            scores = chosen(scores, column, wanted, scores[column].unique())
            draws = draws[draws[column] == wanted]
        return null_histogram(
            np.asarray(draws["draws"].iloc[0], dtype=float),
            float(scores["score"].iloc[0]),
            p=float(scores["p"].iloc[0]),
            label=f"{measure}, layer {layer_a} of A with layer {layer_b} of B",
            null=null.replace("_", "-"),
            width=width,
            title=title,
        )

    def plot_concepts(
        self,
        measure: str,
        value: str = "calibrated",
        *,
        layer_a: int,
        matching: str = "one_to_one",
        null: str | None = None,
        kinds: Sequence[str] = ("concept",),
        run: int = 0,
        width: "Width" = "one",
        title: str | None = None,
    ) -> "Figure":
        """Semantic subspaces x layers of B, for one layer of A.

        Args:
            measure: A measure of the run.
            value: Which column of `subspace_scores`.
            layer_a: Layer of A.
            matching: Which matching.
            null: Beside which null; the strictest that was run if None.
            kinds: Which subspaces: `concept`, `union`, `phrase`.
            run: Which seed's run, counted from 0.
            width: Of the figure: `one` column (3.25 inches), `two` (6.75), or inches.
            title: Stands above; none if None.

        Raises:
            UnknownNameError: No such subspaces in this run.

        Source: Lan et al. (2024), appendix B.
        """
        from saelign.plots import concept_grid, heat_map, panel_of

        if not self.has_subspaces:
            raise UnknownNameError(
                "this run looked into no semantic subspaces: add `subspaces` to its study"
            )
        scores = self.subspace_scores
        scores = scores[scores["control"] == TRAINED]
        null = null or strictest(scores["null"].unique())
        if value not in scores.columns or value in KEYS:
            raise UnknownNameError.of("value", value, set(scores.columns) - set(KEYS))
        for column, wanted in (
            ("measure", measure),
            ("matching", matching),
            ("null", null),
            ("run", run),
            ("layer_a", layer_a),
        ):
            scores = chosen(scores, column, wanted, scores[column].unique())
        known = list(scores["kind"].unique())
        for kind in kinds:
            chosen(scores, "kind", kind, known)
        scores = scores[scores["kind"].isin(kinds)]
        q = concept_grid(scores, "q") if value in ("score", "calibrated") else None
        panel = panel_of(
            concept_grid(scores, value), value, q=q, labels=("", "layer of B"), row_names="told"
        )
        told = f"{measure}, {value}".replace("_", " ")
        return heat_map(panel, label=told, width=width, title=title)

    def _repr_html_(self) -> str:
        # A notebook shows it: what was compared, its scores, and a grid of the first measure.
        from saelign.plots import as_svg

        scores = self.summary
        null = strictest(scores["null"].unique())
        matching = str(scores["matching"].iloc[0])
        own = scores[
            (scores["control"] == TRAINED)
            & (scores["metric"] == self.metrics[0])
            & (scores["null"] == null)
            & (scores["matching"] == matching)
        ]
        rows = []
        for measure, group in own.groupby("measure", sort=False):
            if group["calibrated"].isna().all():
                continue
            best = group.iloc[int(group["calibrated"].fillna(-np.inf).argmax())]
            beat = f"{int((group['q'] < SIGNIFICANCE).sum())}/{len(group)}"
            rows.append(
                {
                    "measure": measure,
                    f"q < {SIGNIFICANCE}": beat,
                    "peak (A, B)": f"{best['layer_a']}, {best['layer_b']}",
                    "score": f"{best['score']:.3f}",
                    "chance": f"{best['null_mean']:.3f}",
                    "calibrated": f"{best['calibrated']:.3f}",
                    "p": f"{best['p']:.2g}",
                }
            )
        models = self.info["models"]
        named = " and ".join(html.escape(str(models[side]["name"])) for side in ("a", "b"))
        told = f"{matching.replace('_', '-')}, beside the {null.replace('_', '-')} null"
        table = pd.DataFrame(rows).to_html(index=False, border=0)
        picture = as_svg(self.plot_grid(rows[0]["measure"], "calibrated")) if rows else ""
        return (
            f"<div><b>{html.escape(str(self.info['name']))}</b>: {named} ({told})"
            f'<div style="display:flex;flex-wrap:wrap;gap:1em">{table}{picture}</div></div>'
        )

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


SIDES = {"seed_a": ("A", "A, other SAEs"), "seed_b": ("B", "B, other SAEs")}
"""What the rows and columns of a control's grid are, where they are not A and B."""

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
