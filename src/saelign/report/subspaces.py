"""Semantic subspaces as tables and figures: concepts, unions, phrases."""

from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import RenderableType
from rich.text import Text

from saelign.nulls import SIGNIFICANCE
from saelign.panels import Panel, Sheet, common_norm
from saelign.report.selection import (
    NAMES,
    UNTRAINED,
    file_name,
    grid_of,
    of_runs,
    over_runs,
    there,
)
from saelign.report.tables import BLANK, brief, plain_table
from saelign.results import TRAINED, Run, strictest, written

SETS = {
    "concepts": ("Concepts", ("concept",)),
    "unions": ("Unions of concepts", ("union",)),
    "phrases": (
        "Phrases, the same words in the other order, words alone",
        ("phrase", "wrong_order", "alone"),
    ),
}
"""What is shown together: its name, and the kinds of subspaces."""
COMBINED = ("above parts and chance", "above chance", "above parts", "neither")
SAME_SIZE = "same_size"
IN_A_ROW = 4
PAGE_WIDTH = 13.0
SHOWN = (TRAINED, UNTRAINED)


def subspace_overview(run: Run, *, matching: str | None = None) -> list[RenderableType]:
    """What subspaces of a run show: how large they are, and which beat chance; nothing without.

    Args:
        run: The run.
        matching: Only this one; all if None.
    """
    if not run.has_subspaces:
        return []
    scores, cells = run.subspace_scores, run.subspaces
    null = strictest(scores["null"].unique())
    parts: list[RenderableType] = [*size_tables(run.subspace_features)]
    for name in [matching] if matching else scores["matching"].unique():
        of_scores = scores[scores["matching"] == name]
        of_cells = cells[cells["matching"] == name]
        for told, kinds in SETS.values():
            rows = of_scores[of_scores["kind"].isin(kinds)]
            if len(rows):
                sizes = of_cells[of_cells["kind"].isin(kinds)]
                title = (
                    f"{told}, {name}: of the layer pairs scored those that beat chance "
                    f"(q < {SIGNIFICANCE}):\n{NAMES[null]}, {NAMES[SAME_SIZE]}"
                )
                if UNTRAINED in set(rows["control"]):
                    title += "; below: untrained twins"
                parts += [BLANK, Text(title, style="italic"), beating_table(rows, sizes, null)]
        title = (
            f"Percent of layer pairs with p < {SIGNIFICANCE}, not corrected "
            f"({100 * SIGNIFICANCE:.0f} by chance), {name}:\n{NAMES[null]}, {NAMES[SAME_SIZE]}"
        )
        parts += [BLANK, Text(title, style="italic"), share_table(of_scores, null)]
        is_asked = of_scores["kind"].isin(["union", "phrase"]) & (of_scores["combined"] != "")
        combined = of_scores[is_asked]
        if len(combined):
            title = f"Combined against their parts and chance, {name}, trained: layer pairs"
            parts += [BLANK, Text(title, style="italic"), combined_table(combined, null)]
    return parts


def size_tables(features: pd.DataFrame) -> list[RenderableType]:
    """How many features of each layer belong to each concept, in both ways; those of all layers."""
    own = features[(features["kind"] == "concept") & (features["run"] == features["run"].min())]
    sides = [side for side in ("a", "b", "a_untrained", "b_untrained") if side in set(own["model"])]
    heads = (side[0].upper() + side[1:].replace("_", "\n") for side in sides)
    table = plain_table("concept", *heads, "keywords\nin text")
    for concept, group in own.groupby("subspace", sort=False):
        counts = [group[group["model"] == side] for side in sides]
        table.add_row(
            str(concept),
            *(f"{span(c['n_by_top_words'])} | {span(c['n_by_mass'])}" for c in counts),
            f"{int(group['n_occurrences'].iloc[0]):,}",
        )
    title = "Features of each concept, range over layers: by top words | by mass"
    return [BLANK, Text(title, style="italic"), table]


def span(values: pd.Series) -> str:
    """The range of numbers, one of them if all are equal."""
    values = values.dropna()
    if len(values) == 0:
        return "-"
    least, most = int(values.min()), int(values.max())
    return str(least) if least == most else f"{least}-{most}"


def beating_table(scores: pd.DataFrame, cells: pd.DataFrame, null: str) -> RenderableType:
    """For each subspace its pairs, and for each measure how many layer pairs beat chance.

    Args:
        scores: Of one kind and matching.
        cells: The same of the table `subspaces`.
        null: The strictest of the study.
    """
    controls = there(scores, SHOWN)
    table = plain_table("", "pairs", *(str(name) for name in scores["measure"].unique()))
    table.columns[0].vertical = "top"
    for subspace, group in scores.groupby("subspace", sort=False):
        sizes = cells[cells["subspace"] == subspace]
        row = ["\n".join(span(sizes.loc[sizes["control"] == c, "n_kept"]) for c in controls)]
        for _, of_measure in group.groupby("measure", sort=False):
            counts = (of_measure[of_measure["control"] == c] for c in controls)
            row.append("\n".join(told_beating(of_control, null) for of_control in counts))
        table.add_row(str(subspace), *row)
    return table


def share_table(scores: pd.DataFrame, null: str) -> RenderableType:
    """For each set of subspaces and measure how many p-values are small: together they may tell.

    Args:
        scores: Of one matching.
        null: The strictest of the study.
    """
    table = plain_table("", *(str(name) for name in scores["measure"].unique()))
    for told, kinds in SETS.values():
        of_set = scores[scores["kind"].isin(kinds) & scores["score"].notna()]
        for control in there(of_set, SHOWN):
            row = []
            for measure in scores["measure"].unique():
                of_measure = of_set[(of_set["measure"] == measure) & (of_set["control"] == control)]
                p = [of_measure.loc[of_measure["null"] == n, "p"] for n in (null, SAME_SIZE)]
                small = [100 * (of_null < SIGNIFICANCE).mean() for of_null in p]
                row.append(", ".join("-" if np.isnan(s) else f"{s:.0f}" for s in small))
            table.add_row(f"{told.split(',')[0]}, {NAMES[control]}", *row)
    return table


def told_beating(scores: pd.DataFrame, null: str) -> str:
    """How many cells beat the strictest null, and how many that of their size, of how many."""
    counts = []
    for name in (null, SAME_SIZE):
        of_null = scores[scores["null"] == name]
        counts.append(int((of_null["q"] < SIGNIFICANCE).sum()))
    scored = int(scores.loc[scores["null"] == null, "score"].notna().sum())
    return "-" if scored == 0 else f"{counts[0]}, {counts[1]}/{scored}"


def combined_table(scores: pd.DataFrame, null: str) -> RenderableType:
    """How combined subspaces compare with their parts: layer pairs by what `combined` says.

    Args:
        scores: Of one matching, with something to say.
        null: The strictest of the study.
    """
    table = plain_table("", *(c.replace(" ", "\n") for c in COMBINED), "parts not\nscored")
    own = scores[(scores["control"] == TRAINED) & (scores["null"] == null)]
    for (subspace, measure), group in own.groupby(["subspace", "measure"], sort=False):
        counts = [int((group["combined"] == c).sum()) for c in COMBINED]
        others = len(group) - sum(counts)
        table.add_row(f"{subspace}: {measure}", *map(str, counts), str(others))
    return table


def subspace_table(run: Run, *, matching: str, null: str | None = None) -> pd.DataFrame:
    """Concepts by layer pair in the papers' form: for each measure score, chance, p, q, calibrated.

    Args:
        run: The run.
        matching: Which matching.
        null: Beside which null; the strictest if None.

    Source: Lan et al. (2024), tables 1 to 3.
    """
    scores = run.subspace_scores
    null = null or strictest(scores["null"].unique())
    chosen = scores[(scores["matching"] == matching) & (scores["null"] == null)]
    by = ["control", "run", "kind", "subspace", "layer_a", "layer_b", "n_pairs"]
    values = ["score", "null_mean", "p", "q", "calibrated"]
    wide = chosen.pivot(index=by, columns="measure", values=values)
    measures = chosen["measure"].unique()
    wide = wide[[(value, m) for m in measures for value in values]]
    wide.columns = [f"{measure}_{value}" for value, measure in wide.columns]
    order = {name: i for i, name in enumerate(chosen["subspace"].unique())}
    wide = wide.reset_index()
    key = wide["subspace"].map(order)
    return wide.assign(_order=key).sort_values(["run", "control", "_order"]).drop(columns="_order")


def write_subspace_tables(run: Run) -> list[Path]:
    """Write `subspace_table` of each matching as CSV and Markdown; nothing without subspaces.

    In Markdown: subspaces with a score, of the models as given; a measure's cell tells its score,
    chance in parentheses, and q.
    """
    if not run.has_subspaces:
        return []
    paths = []
    for matching in run.subspace_scores["matching"].unique():
        table = subspace_table(run, matching=matching)
        path = run.folder / "tables" / f"subspaces_{matching}.csv"
        with written(path) as temporary:
            table.to_csv(temporary, index=False)
        own = table[table["control"] == TRAINED]
        measures = list(run.subspace_scores["measure"].unique())
        lines = [
            f"| layers A, B | subspace | pairs | {' | '.join(measures)} |",
            "|" + " --- |" * (3 + len(measures)),
        ]
        for row in own.to_dict("records"):
            if all(np.isnan(row[f"{m}_score"]) for m in measures):
                continue
            told = [
                f"{brief(row[f'{m}_score'])} ({brief(row[f'{m}_null_mean'])}) {row[f'{m}_q']:.2g}"
                for m in measures
            ]
            where = f"{row['layer_a']}, {row['layer_b']} | {row['subspace']} | {row['n_pairs']}"
            lines.append(f"| {where} | {' | '.join(told)} |")
        with written(path.with_suffix(".md")) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def subspace_sheets(run: Run) -> list[Sheet]:
    """Heat maps of subspaces: by layer of B for each layer of A, and layer by layer for each one.

    Source: Lan et al. (2024), appendices B and C.
    """
    if not run.has_subspaces:
        return []
    scores = run.subspace_scores
    null = strictest(scores["null"].unique())
    own = scores[(scores["control"] == TRAINED) & (scores["null"] == null)]
    sheets = []
    for (matching, measure), of_measure in own.groupby(["matching", "measure"], sort=False):
        about = f"{measure}, {NAMES[str(matching)]}, {NAMES[null]}{of_runs(run)}"
        for part, (told, kinds) in SETS.items():
            group = of_measure[of_measure["kind"].isin(kinds)]
            if group["score"].isna().all():
                continue
            group = over_runs(group, ["score", "null_mean", "calibrated", "p", "q"])
            name = f"{part}_{file_name(str(measure))}_{matching}"
            sheets.append(
                Sheet(
                    name=name,
                    title=f"{told}: {about}\na panel a layer of A",
                    rows=by_source_layer(group),
                    table=group,
                    row_names=("score", "calibrated"),
                )
            )
            if len(group[["layer_a", "layer_b"]].drop_duplicates()) > 1:
                sheets.append(
                    Sheet(
                        name=f"{name}_grids",
                        title=f"{told}, layer by layer: {about}",
                        rows=by_subspace(group),
                        table=group,
                        width=PAGE_WIDTH,
                    )
                )
    return sheets


def by_source_layer(scores: pd.DataFrame) -> list[list[Panel]]:
    """A row of scores and one of calibrated scores: a panel a layer of A, subspace x layer of B."""
    order = list(scores["subspace"].unique())[::-1]  # the first stands on top
    norm = common_norm(*(scores[[value]] for value in ("score", "calibrated")))
    rows = []
    for value in ("score", "calibrated"):
        row = []
        for layer, group in scores.groupby("layer_a"):
            grid, q = (
                group.pivot(index="subspace", columns="layer_b", values=v).reindex(order)
                for v in (value, "q")
            )
            row.append(
                Panel(
                    title=f"layer {layer} of A",
                    grid=grid.astype(float),
                    norm=norm,
                    hatched=~(q < SIGNIFICANCE),
                    y_label="",
                    row_names="told_before" if row else "told",
                    digits=2,
                )
            )
        rows.append(row)
    return rows


def by_subspace(scores: pd.DataFrame) -> list[list[Panel]]:
    """A grid for each subspace that has a score, a few in a row, all on one scale."""
    norm = common_norm(scores[["score"]])
    panels = []
    for subspace, group in scores.groupby("subspace", sort=False):
        if group["score"].notna().any():
            weak = ~(grid_of(group, "q") < SIGNIFICANCE)
            panels.append(
                Panel(
                    title=str(subspace), grid=grid_of(group, "score"), norm=norm, hatched=weak,
                    digits=2,
                )
            )  # fmt: skip
    return [panels[at : at + IN_A_ROW] for at in range(0, len(panels), IN_A_ROW)]
