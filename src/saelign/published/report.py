"""Runs beside printed numbers as tables for a terminal."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from saelign.published.comparison import Comparison
from saelign.published.mistakes import MISTAKES, Published, ladder
from saelign.published.tables import ALL
from saelign.report.tables import BLANK, brief

MATCHINGS = {
    "one_to_one": "one_to_one",
    "many_to_one": "many_to_one, each feature of their B with its best of A",
}


def comparison_tables(found: Comparison) -> list[RenderableType]:
    """A run beside the printed numbers: notes, a table for each matching, single values."""
    parts: list[RenderableType] = [
        Text.assemble(
            (f"{found.pair.model_a} against {found.pair.model_b}", "bold"),
            f": {len(found.cells) + len(found.values)} of {found.n_printed} printed numbers "
            "have their place in this run",
        ),
        *(Text(f"- {note}") for note in found.notes),
    ]
    if len(found.cells):
        parts += cell_tables(found.cells)
    if len(found.values):
        parts += [BLANK, Text("Single values, as stated or read off figures", style="italic")]
        parts.append(value_table(found.values))
    return parts


def cell_tables(cells: pd.DataFrame) -> list[RenderableType]:
    """Printed, ours and the difference: of all features by matching, then of concepts."""
    parts: list[RenderableType] = []
    is_whole = cells["subspace"] == ALL
    for matching, told in MATCHINGS.items():
        rows = cells[is_whole & (cells["matching"] == matching)]
        if len(rows):
            parts += [BLANK, Text(f"All features, {told}", style="italic"), score_table(rows)]
    if not is_whole.all():
        parts += [BLANK, Text("Concepts, one_to_one", style="italic")]
        parts.append(score_table(cells[~is_whole], concepts=True))
    parts.append(
        Text(
            'pc1 is what was printed as "SVCCA". diff: ours minus printed; p>=: the least that the '
            "printed p can\nhave been, (1 + N p) / (N + 1); cal.: (score - null mean) / "
            "(1 - null mean); rsa: Pearson inside; cos: cosine."
        )
    )
    return parts


def score_table(rows: pd.DataFrame, *, concepts: bool = False) -> Table:
    """A row a printed cell."""
    first = ("concept",) if concepts else ()
    table = plain_table(
        (*first, "layers", "pc1\nprint", "\nours", "\ndiff", "p>=\nprint", "p\nours",
         "svcca\nours", "\ncal.", "rsa\nprint", "\nours", "\ndiff", "p>=\nprint", "p\nours",
         "cos\nours", "pairs\nprint", "\nours"),
        n_left=len(first),
    )  # fmt: skip
    for row in rows.to_dict(orient="records"):
        table.add_row(
            *([str(row["subspace"])] if concepts else []),
            f"{row['layer_a']}, {row['layer_b']}",
            *numbers(row, "printed_pc1", "pc1", "pc1_difference", "printed_pc1_p_least", "pc1_p"),
            *numbers(row, "svcca", "svcca_calibrated"),
            *numbers(row, "printed_rsa", "rsa", "rsa_difference", "printed_rsa_p_least", "rsa_p"),
            *numbers(row, "rsa_cosine"),
            *(whole(row[name]) for name in ("printed_n_pairs", "n_pairs")),
        )
    return table


def value_table(values: pd.DataFrame) -> Table:
    """A row a printed value."""
    table = plain_table(
        (
            "where",
            "matching",
            "subspace",
            "quantity",
            "layers",
            "printed",
            "ours",
            "outside\nby",
            "of",
        ),
        n_left=5,
    )
    for row in values.to_dict(orient="records"):
        low, high = row["low"], row["high"]
        ours = brief(high) if low == high else f"{brief(low)} to {brief(high)}"
        many = "" if row["n_layer_pairs"] == 1 else f"{row['stands_for']} of {row['n_layer_pairs']}"
        table.add_row(
            *(str(row[name]) for name in ("table", "matching", "subspace", "quantity")),
            f"{row['place_a']}, {row['place_b']}",
            str(row["printed"]),
            ours,
            brief(row["difference"]),
            many,
        )
    return table


def preset_tables(cells: pd.DataFrame, label: str) -> list[RenderableType]:
    """What the published method gives on the run: beside what was printed, if anything was."""
    printed = "printed_pc1" in cells
    parts: list[RenderableType] = [
        BLANK,
        Text(f"The published method on this run's models and text: {label}", style="bold"),
    ]
    is_whole = cells["subspace"] == ALL
    for matching, told in MATCHINGS.items():
        rows = cells[is_whole & (cells["matching"] == matching)]
        if len(rows):
            parts += [BLANK, Text(f"All features, {told}", style="italic")]
            parts.append(preset_table(rows, printed=printed))
    if not is_whole.all():
        parts += [BLANK, Text("Concepts, one_to_one", style="italic")]
        parts.append(preset_table(cells[~is_whole], printed=printed, concepts=True))
    parts.append(
        Text(
            'method: the published method here; ours: this run. "SVCCA" is pc1 unless that is '
            "mended."
        )
    )
    return parts


def preset_table(rows: pd.DataFrame, *, printed: bool, concepts: bool = False) -> Table:
    """A row a cell: printed, by the published method, ours."""
    first = ("concept",) if concepts else ()
    columns: list[tuple[str, str]] = []
    for told, theirs, ours, own in (
        ("SVCCA", "pc1", "svcca", "pc1"),
        ("rsa", "rsa", "rsa", "rsa"),
        ("mean r\nkept", "mean_corr_kept", "mean_corr_kept", "mean_corr_kept"),
    ):
        lines = told.replace("\n", " ")
        if printed:
            columns.append((f"{lines}\nprint", f"printed_{theirs}"))
        columns.append((("" if printed else lines) + "\nmethod", f"preset_{ours}"))
        if ours != "mean_corr_kept":
            columns.append(("\np", f"preset_{ours}_p"))
        if printed:
            columns.append(("\ndiff", f"preset_{ours}_difference"))
        columns.append(("\nours", own))
    names = [*first, "layers", *(told for told, _ in columns)]
    names += ["pairs\nprint"] * printed + ["\nmethod" if printed else "pairs\nmethod", "\nours"]
    table = plain_table(names, n_left=len(first))
    for row in rows.to_dict(orient="records"):
        counts = (*(["printed_n_pairs"] if printed else []), "preset_n_pairs", "n_pairs")
        table.add_row(
            *([str(row["subspace"])] if concepts else []),
            f"{row['layer_a']}, {row['layer_b']}",
            *numbers(row, *(name for _, name in columns)),
            *(whole(row[name]) for name in counts),
        )
    return table


def ladder_tables(
    means: pd.DataFrame, of_cell: pd.DataFrame, cell: tuple[int, int]
) -> list[RenderableType]:
    """How each mistake moves the numbers: on average over the layer pairs, and in one of them."""
    alone, rungs = ladder()
    start, worse = [(Published(), "nothing")], (Published(filter_undone=True), "7b")
    n_cells = int(means["n_cells"].max())
    parts: list[RenderableType] = [
        Text.assemble(
            ("What each published mistake does", "bold"),
            f": means over {n_cells} layer pairs, and layers {cell[0]}, {cell[1]} alone",
        )
    ]
    for matching, told in MATCHINGS.items():
        of_matching = means[means["matching"] == matching].set_index("variant")
        single = of_cell[of_cell["matching"] == matching].set_index("variant")
        for title, rows in (
            ("each mistake mended alone", [*start, *zip(alone, MISTAKES, strict=True), worse]),
            ("one mended after the other", [*start, *zip(rungs, MISTAKES, strict=True)]),
        ):
            table = plain_table(
                ("mended", "SVCCA\nmean", "\np<.05", "rsa\nmean", "\np<.05", "mean r\nall",
                 "\nkept", "\npairs", "SVCCA\ncell", "\np", "rsa\ncell", "\np", "mean r\nkept",
                 "\npairs"),
                n_left=1,
            )  # fmt: skip
            for how, name in rows:
                row, one = of_matching.loc[how.label], single.loc[how.label]
                table.add_row(
                    name,
                    *numbers(row, "svcca"), f"{row['svcca_below']}/{row['n_cells']}",
                    *numbers(row, "rsa"), f"{row['rsa_below']}/{row['n_cells']}",
                    *numbers(row, "mean_corr_all", "mean_corr_kept"), whole(row["n_pairs"]),
                    *numbers(one, "svcca", "svcca_p", "rsa", "rsa_p", "mean_corr_kept"),
                    whole(one["n_pairs"]),
                )  # fmt: skip
            parts += [BLANK, Text(f"{told}: {title}", style="italic"), table]
    parts.append(BLANK)
    parts += [Text(f"{name:>5}  {told}") for name, told in MISTAKES.items()]
    parts.append(Text("   7b  made worse: the non-concept filter does nothing (a later version)"))
    return parts


def plain_table(columns: Sequence[str], *, n_left: int) -> Table:
    """A table without lines; the first columns are text."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for place, column in enumerate(columns):
        table.add_column(
            column, justify="left" if place < n_left else "right", no_wrap=True, vertical="bottom"
        )
    return table


def numbers(row: Any, *names: str) -> list[str]:
    """Values of a row as the table shows them."""
    return [brief(float(row[name])) for name in names]


def whole(value: Any) -> str:
    """A count."""
    return "-" if np.isnan(value) else f"{value:,.0f}"
