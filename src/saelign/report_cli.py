"""`saelign report`: a run as one page."""

import argparse
import json
import re
import webbrowser
from collections.abc import Callable
from typing import Any

from saelign.errors import StudyError

UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}


def add_report(commands: Any, progress: Callable[[], Any]) -> None:
    """Give a command line the command `report`.

    Args:
        commands: What `add_subparsers` gave.
        progress: Gives a context in which progress is told.
    """
    sub = commands.add_parser(
        "report",
        help="write a run as one page to look at and to send",
        description="Write a run as one HTML file that needs no server and no network.",
        epilog="examples:\n  saelign report results --open\n"
        "  saelign report results --out appendix.html --size 100MiB",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument("run", metavar="RUN", help="a run's folder")
    sub.add_argument("--out", metavar="FILE", help="where it goes (default: RUN/report.html)")
    sub.add_argument("--open", action="store_true", help="show it in the browser")
    sub.add_argument(
        "--size",
        metavar="SIZE",
        help="what the page may take (default: 16MiB); cells that find no room are told without "
        "their features",
    )
    sub.add_argument("--json", action="store_true", help="print the result as JSON")
    sub.set_defaults(call=report_command, progress=progress)


def report_command(options: argparse.Namespace) -> None:
    """`saelign report`."""
    from saelign.report import write_report
    from saelign.report.html import ROOM, open_any

    room = ROOM if options.size is None else size_in_bytes(options.size)
    run = open_any(options.run)
    with options.progress() as tell:
        path = write_report(
            run,
            options.out,
            room=room,
            progress=lambda done, total: tell("write the report", done, total),
        )
    n_bytes = path.stat().st_size
    if options.json:
        print(json.dumps({"report": str(path.resolve()), "bytes": n_bytes}, indent=2))
    else:
        print(f"report: {path.resolve()} ({n_bytes / 2**20:.1f} MiB)")
    if options.open:
        webbrowser.open(path.resolve().as_uri())


def size_in_bytes(text: str) -> int:
    """Bytes from `16MiB`, `500 kB` or a number.

    Raises:
        StudyError: It is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)(?:i?b)?", text.strip().lower())
    if found is None or float(found[1]) == 0:
        raise StudyError(f"a page's size must be a number of bytes or such as 16MiB, got {text!r}")
    return int(float(found[1]) * UNITS[found[2]])
