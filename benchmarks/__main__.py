"""The benchmark: a table, curves and their figures.

    .venv/bin/python -m benchmarks                      # docs/benchmarks and docs/performance.md
    .venv/bin/python -m benchmarks --quick              # tiny sizes, to see that it runs
    .venv/bin/python -m benchmarks --only a,e --out FOLDER

Ends with 1 if results differ from an opponent's by more than the row's tolerance, or if a part
fails. What is on record of parts that `--only` leaves out is kept.
"""

import argparse
import csv
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from benchmarks import correlating, layer_pair, matching, measures
from benchmarks.harness import COLUMNS, ROOT, Fit, Point, Row, now, rates
from saelign.provenance import machine, versions

QUICK_OUT, OUT = ROOT / "build" / "benchmarks", ROOT / "docs" / "benchmarks"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- results -->", "<!-- /results -->"
CURVE_COLUMNS = ("figure", "panel", "line", "x", "seconds", "exponent")
INK = ("#1f3a5f", "#b5562b", "#5b7f4a", "#7a5c8e")


def collecting_rows(*, quick: bool) -> Iterator[Row]:
    """Part g, which another file measures."""
    from benchmarks import collecting  # torch and transformers: seconds

    for index, row in enumerate(collecting.measure(quick=quick)):
        is_limit = row["opponent"].startswith("limit")
        yield Row(
            part="g",
            work=row["work"],
            size="",
            ours_s=row["ours_s"],
            opponent=row["opponent"],
            opponent_s=row["opponent_s"],
            how="measured" if index != 2 else "computed from measured parts",
            limit_s=row["opponent_s"] if is_limit else math.nan,
            limit="matrix products of the weights" if is_limit else "",
            target_ratio=1 / 1.15 if index == 0 else math.nan,
            note=f"ours takes {row['ratio']:.3f} times as long; {row['note']}",
        )


def collecting_points(*, quick: bool) -> Iterator[Point]:
    from benchmarks import collecting

    rows = collecting.curves(quick=quick)
    width = max(row["d_sae"] for row in rows)
    tokens = next(row["n_tokens"] for row in rows if row["d_sae"] != width)
    for row in rows:
        for line, name in (("saelign", "ours_s"), ("products alone", "opponent_s")):
            common = {"figure": "collecting", "line": line, "seconds": row[name]}
            if row["d_sae"] == width:
                panel = f"tokens, SAEs of {width:,}"
                yield Point(**common, panel=panel, x=row["n_tokens"])
            if row["n_tokens"] == tokens:
                panel = f"width of the SAEs, {tokens:,} tokens"
                yield Point(**common, panel=panel, x=row["d_sae"])


PARTS: dict[str, Callable[..., Iterable[Row]]] = {
    "a": correlating.measure,
    "b": correlating.measure_wide,
    "c": matching.measure_greedy,
    "d": matching.measure_optimal,
    "e": measures.measure,
    "f": layer_pair.measure,
    "g": collecting_rows,
    "h": layer_pair.measure_demo,
    "i": layer_pair.measure_second,
}
CURVES: dict[str, Callable[..., Iterable[Point]]] = {
    "correlation": correlating.curves,
    "measures": measures.curves,
    "layers": layer_pair.curves,
    "collecting": collecting_points,
}
ONLY = (*PARTS, "curves")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; gives the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument(
        "--only", metavar="a,c", type=chosen, default=ONLY, help="of " + ", ".join(ONLY)
    )
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="where tables and figures go")
    options = parser.parse_args(arguments)
    out = options.out or (QUICK_OUT if options.quick else OUT)
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    rows, points = kept_rows(out, options.only), kept_points(out, options.only)
    print(f"load {load()}", flush=True)
    for part in options.only:
        start = time.perf_counter()
        try:
            if part == "curves":
                for measure in CURVES.values():
                    points += measure(quick=options.quick)
            else:
                for row in PARTS[part](quick=options.quick):
                    rows.append({k: as_text(v) for k, v in stamped(row).as_dict().items()})
                    print(told(row), flush=True)
                    if row.differs:
                        failed.append(
                            f"{part}: {row.work} differs from {row.opponent} by "
                            f"{row.max_difference:.3g}, more than {row.tolerance:g}"
                        )
        except Exception:  # the other parts may take an hour: they are measured, and 1 is returned
            traceback.print_exc()
            failed.append(f"{part}: failed, see above")
        print(f"{part}: {time.perf_counter() - start:.1f} s in all", flush=True)
        rows.sort(key=lambda row: row["part"])
        write(out, rows, points, quick=options.quick)
    if points:
        draw(points, out)
    if out.resolve() == OUT and not options.quick:
        fill_page(PAGE, rows, about(quick=False))
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed else 0


def chosen(names: str) -> tuple[str, ...]:
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in ONLY:
            raise argparse.ArgumentTypeError(
                f"unknown part {name!r}, expected of {', '.join(ONLY)}"
            )
    return tuple(name for name in ONLY if name in wanted)


def stamped(row: Row) -> Row:
    return replace(row, measured=now())


def load() -> str:
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def kept_rows(out: Path, only: Sequence[str]) -> list[dict[str, str]]:
    """Rows on record of parts that are not measured now."""
    path = out / "results.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["part"] not in only]


def kept_points(out: Path, only: Sequence[str]) -> list[Point]:
    path = out / "curves.csv"
    if "curves" in only or not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        Point(
            figure=row["figure"],
            panel=row["panel"],
            line=row["line"],
            x=float(row["x"]),
            seconds=float(row["seconds"]),
        )
        for row in rows
    ]


def as_text(value: Any) -> str:
    """A cell: floats to four digits, nothing for NaN."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def told(row: Row) -> str:
    size = f"; {row.size}" if row.size else ""
    text = f"{row.part}: {row.work}{size}: {row.ours_s:.3g} s"
    if not math.isnan(row.ours_peak_gib):
        text += f", {row.ours_peak_gib:.2f} GiB"
    if row.opponent:
        text += f"; {row.opponent}: {row.opponent_s:.4g} s ({row.how}), ratio {row.ratio:.4g}"
    if not math.isnan(row.limit_s):
        text += f"; limit {row.limit_s:.3g} s"
    if not math.isnan(row.max_difference):
        text += f"; results differ by {row.max_difference:.2g}"
    return text + (f"; target {row.target}: {row.met}" if row.target else "")


def write(
    out: Path, rows: Sequence[dict[str, str]], points: Sequence[Point], *, quick: bool
) -> None:
    """The tables as they are by now."""
    with (out / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    with (out / "curves.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, CURVE_COLUMNS)
        writer.writeheader()
        for fit, of_line in lines(points):
            for point in of_line:
                values = {f.name: as_text(getattr(point, f.name)) for f in fields(Point)}
                writer.writerow(values | {"exponent": f"{fit.exponent:.2f}"})
    (out / "results.md").write_text(
        f"# Measured{' in a quick run: sizes too small to mean anything' if quick else ''}\n\n"
        f"{as_markdown(rows)}\n\n{about(quick=quick)}\n"
    )


def lines(points: Sequence[Point]) -> Iterator[tuple[Fit, list[Point]]]:
    """The points of each line, with the power law through them."""
    for key in dict.fromkeys((p.figure, p.panel, p.line) for p in points):
        of_line = [p for p in points if (p.figure, p.panel, p.line) == key]
        of_line.sort(key=lambda p: p.x)
        sizes, seconds = tuple(p.x for p in of_line), tuple(p.seconds for p in of_line)
        yield Fit(sizes=sizes, seconds=seconds), of_line


def as_markdown(rows: Sequence[dict[str, str]]) -> str:
    """The table for people: fewer columns."""
    head = ("", "work", "ours", "other", "ratio", "limit", "difference", "target")
    table = [head, tuple("---" for _ in head)]
    for row in rows:
        size = f"<br>{row['size']}" if row["size"] else ""
        note = f"<br>*{row['note']}*" if row["note"] else ""
        memory = f", {row['ours_peak_gib']} GiB" if row["ours_peak_gib"] else ""
        opponent = f"{row['opponent']}: {for_people(row['opponent_s'])}" if row["opponent"] else ""
        how = f"<br>{row['how']}" if row["how"] else ""
        difference = row["max_difference"]
        if difference:
            difference += f" (at most {row['tolerance']})"
        limit = f"{for_people(row['limit_s'])}: {row['limit']}" if row["limit_s"] else ""
        target = f"{row['target']}: {'met' if row['met'] == 'yes' else 'not met'}"
        cells = (
            row["part"],
            f"{row['work']}{size}{note}",
            f"{for_people(row['ours_s'])}{memory}",
            f"{opponent}{how}".removeprefix("<br>"),
            row["ratio"],
            limit,
            difference,
            target if row["target"] else "",
        )
        table.append(tuple(cell.replace("|", "\\|") for cell in cells))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


def for_people(seconds: str) -> str:
    """Seconds, or hours where they are many."""
    value = float(seconds)
    return f"{value / 3600:.3g} h" if value >= 7200 else f"{value:.3g} s"


def about(*, quick: bool) -> str:
    """The machine, how fast it is, and the versions."""
    of_machine, measured = machine(), rates(quick=quick)
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    return (
        f"Machine: {of_machine['processor']}, {of_machine['system']}, {os.cpu_count()} cores; load "
        f"when it was done {load()}. It copies {measured.bandwidth / 1e9:.1f} GB/s (read and "
        f"written) and multiplies matrices at {measured.flops32 / 1e9:.0f} Gflop/s in float32, "
        f"{measured.flops64 / 1e9:.0f} in float64.\n\nVersions: {packages}."
    )


def draw(points: Sequence[Point], out: Path) -> None:
    """A figure for each group of curves, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    for figure in dict.fromkeys(point.figure for point in points):
        of_figure = [(fit, line) for fit, line in lines(points) if line[0].figure == figure]
        panels = list(dict.fromkeys(line[0].panel for _, line in of_figure))
        drawing, axes = plt.subplots(
            1, len(panels), figsize=(3.4 * len(panels), 3.4), squeeze=False, layout="constrained"
        )
        for axis, panel in zip(axes[0], panels, strict=True):
            here = [(fit, line) for fit, line in of_figure if line[0].panel == panel]
            for (fit, line), colour in zip(here, INK, strict=False):
                x = [point.x for point in line]
                axis.plot(x, [fit.at(value) for value in x], color=colour, linewidth=0.8)
                told = f": exponent {fit.exponent:.2f}" if len(x) > 2 else ", two sizes"
                label = f"{line[0].line}{told}"
                axis.plot(x, fit.seconds, "o", color=colour, markersize=4, label=label)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            ticks = sorted({point.x for _, line in here for point in line})
            axis.set_xticks(ticks, [f"{tick:,g}" for tick in ticks], fontsize=7)
            axis.minorticks_off()
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.tick_params(labelsize=7)
            axis.set_xlabel(panel, fontsize=8)
            for side in ("top", "right"):
                axis.spines[side].set_visible(False)
            axis.legend(fontsize=7, frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
        axes[0][0].set_ylabel("seconds", fontsize=8)
        drawing.savefig(out / f"{figure}.png", dpi=150, metadata={"Software": None})
        plt.close(drawing)


def fill_page(page: Path, rows: Sequence[dict[str, str]], below: str) -> None:
    """Put the table, and what is said below it, between the page's markers.

    Raises:
        ValueError: The page has no such markers.
    """
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} must hold {BEGIN} and {END}, it does not")
    page.write_text(f"{before}{BEGIN}\n{as_markdown(rows)}\n\n{below}\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
