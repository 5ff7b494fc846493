"""`saelign published`: a run beside printed numbers, and what each published mistake does."""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

EPILOG = """examples:
  saelign published saelign-runs/pythia
  saelign published saelign-runs/pythia --preset --mend 4 5
  saelign published saelign-demo --ladder"""


WIDTH = 200
"""Columns that tables are laid out for at least."""


def add_published(commands: Any, progress: Callable[[], Any]) -> None:
    """Give a command line the command `published`.

    Args:
        commands: What `add_subparsers` gave.
        progress: Gives a context in which progress is told.
    """
    sub = commands.add_parser(
        "published",
        help="set a finished run beside the numbers that the papers printed",
        description="Set a finished run beside the numbers that the papers printed, cell by cell.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument("run", metavar="RUN", help="a run's folder")
    sub.add_argument(
        "--preset",
        action="store_true",
        help="compute the published method, mistakes included, on the run's models and text",
    )
    sub.add_argument(
        "--mend",
        metavar="N",
        nargs="+",
        default=[],
        help="with these of its mistakes mended, numbered as docs/published.md does (implies "
        "--preset)",
    )
    sub.add_argument(
        "--ladder",
        action="store_true",
        help="compute it with each mistake mended alone, and with one after the other mended",
    )
    sub.add_argument(
        "--cell",
        metavar=("A", "B"),
        nargs=2,
        type=int,
        help="the layer pair that --ladder shows beside the means (default: the middle one)",
    )
    sub.add_argument("--memory", metavar="SIZE", help="memory it may take, such as 8GiB")
    sub.add_argument("--csv", metavar="FILE", help="write the table of cells there too")
    sub.add_argument("--json", action="store_true", help="print the result as JSON")
    sub.set_defaults(call=published_command, progress=progress)


def published_command(options: argparse.Namespace) -> None:
    """`saelign published`."""
    from saelign.published.comparison import beside_printed, pair_of
    from saelign.results import open_run

    run = open_run(options.run)
    if options.ladder:
        ladder_command(run, options)
        return
    is_computed = options.preset or bool(options.mend)
    found = None
    if pair_of(run) is not None or not is_computed:
        found = beside_printed(run)
    cells = None if found is None else found.cells
    label = None
    if is_computed:
        cells, label = with_preset(run, cells, options)
    table = cells if cells is not None and len(cells) else found and found.values
    if options.csv is not None:
        write_csv(table, options.csv)
    if options.json:
        print(json.dumps(as_json(run, found, cells, label), indent=2))
        return
    from saelign.published.report import comparison_tables, preset_tables

    parts = [] if found is None else comparison_tables(found)
    if cells is not None and label is not None:
        parts += preset_tables(cells, label)
    tell(parts)


def with_preset(run: Any, cells: Any, options: argparse.Namespace) -> tuple[Any, str]:
    """The cells with what the published method gives; and which variant of it."""
    from saelign.published.mistakes import Published
    from saelign.published.preset_run import beside_computed, compute, own_cells, prepare

    how = Published.mending(options.mend)
    preset = prepare(run, memory=options.memory)
    with options.progress() as progress:
        computed = compute(preset, [how], progress=progress)
    write_csv(computed, str(preset.folder / "cells.csv"))
    if cells is None or not len(cells):
        cells = own_cells(preset, computed)
    return beside_computed(cells, computed), how.label


def ladder_command(run: Any, options: argparse.Namespace) -> None:
    """`saelign published RUN --ladder`."""
    from saelign.errors import UnknownNameError
    from saelign.published.mistakes import Published, ladder
    from saelign.published.preset_run import compute, ladder_table, prepare
    from saelign.published.report import ladder_tables

    preset = prepare(run, memory=options.memory, with_concepts=False)
    pairs = preset.layer_pairs
    cell = tuple(options.cell) if options.cell else middle(preset)
    if cell not in pairs:
        raise UnknownNameError(
            f"--cell must be a layer pair of the run, got {cell[0]} {cell[1]}: choose a layer of "
            f"{sorted({a for a, _ in pairs})} and one of {sorted({b for _, b in pairs})}"
        )
    alone, rungs = ladder()
    variants = [Published(), *alone, Published(filter_undone=True), *rungs]
    variants = list({how.label: how for how in variants}.values())
    with options.progress() as progress:
        computed = compute(preset, variants, progress=progress)
    write_csv(computed, str(preset.folder / "ladder.csv"))
    if options.csv is not None:
        write_csv(computed, options.csv)
    means = ladder_table(computed)
    at = (computed["layer_a"] == cell[0]) & (computed["layer_b"] == cell[1])
    if options.json:
        content = {
            "folder": str(run.folder.resolve()),
            "means": records(means),
            "cells": records(computed),
        }
        print(json.dumps(content, indent=2))
        return
    tell(ladder_tables(means, computed[at], cell))


def middle(preset: Any) -> tuple[int, int]:
    """The layer pair in the middle of the grid."""
    layers_a, layers_b = (side.layers for side in preset.sides)
    return layers_a[len(layers_a) // 2], layers_b[len(layers_b) // 2]


def tell(parts: list[Any]) -> None:
    """Print tables to stdout."""
    from rich.console import Console

    # A terminal that is narrower breaks lines; numbers must not be cut off.
    console = Console(soft_wrap=True, highlight=False)
    console.width = max(console.width, WIDTH)
    for part in parts:
        console.print(part)


def as_json(run: Any, found: Any, cells: Any, label: str | None) -> dict[str, Any]:
    """The comparison as JSON holds it."""
    return {
        "folder": str(run.folder.resolve()),
        "notes": [] if found is None else found.notes,
        "printed": 0 if found is None else found.n_printed,
        "preset": label,
        "cells": records(cells),
        "values": [] if found is None else records(found.values),
    }


def records(table: Any) -> list[dict[str, Any]]:
    """The rows of a table, what is missing as null."""
    return [
        {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in row.items()}
        for row in table.to_dict(orient="records")
    ]


def write_csv(table: Any, path: str) -> None:
    """Write a table as CSV.

    Raises:
        StorageError: It cannot be written.
    """
    from saelign.files import written

    with written(Path(path).expanduser()) as temporary:
        table.to_csv(temporary, index=False)
