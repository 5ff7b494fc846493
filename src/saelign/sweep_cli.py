"""`saelign sweep`: the same study with SAEs of other widths, sparsities and seeds."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

EPILOG = """examples:
  saelign sweep study.yaml --widths 1024,4096 --ks 16,64 --out robust
  saelign sweep study.yaml --widths 4096 --ks 32 --train-text books.txt --out robust"""


def add_sweep(
    commands: Any, progress: Callable[[], Any], *, memory_help: str, models_from_help: str
) -> None:
    """Give a command line the command `sweep`.

    Args:
        commands: What `add_subparsers` gave.
        progress: Gives a context in which progress is told.
        memory_help: What it says of `--memory`.
        models_from_help: What it says of `--models-from`.
    """
    told = "train SAEs of several widths, k and seeds, and see how a study's result moves"
    sub = commands.add_parser(
        "sweep",
        help=told,
        description=f"{told[0].upper()}{told[1:]}.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument(
        "study",
        metavar="STUDY",
        help="a study file (YAML), or the name of one that ships; its SAEs are replaced",
    )
    sub.add_argument(
        "--widths", metavar="N,N", type=numbers, required=True, help="features of an SAE"
    )
    sub.add_argument(
        "--ks", metavar="N,N", type=numbers, required=True, help="features active at a token"
    )
    sub.add_argument(
        "--train-seeds",
        metavar="N,N",
        type=numbers,
        default=[0, 1],
        help="of the training; two give the ceiling (default: 0,1)",
    )
    sub.add_argument(
        "--train-tokens",
        metavar="N",
        type=int,
        help="tokens to train each SAE on (default: a million, or what the text holds)",
    )
    sub.add_argument(
        "--train-text", metavar="FILE", help="train on this text instead of the study's own"
    )
    sub.add_argument(
        "--train-split",
        choices=("none", "blank_line"),
        default="none",
        help="whether blank lines part the documents of that text",
    )
    sub.add_argument("--out", metavar="DIR", required=True, help="the sweep's folder")
    sub.add_argument("--matching", metavar="NAME", help="print this matching (default: the first)")
    sub.add_argument("--memory", metavar="SIZE", help=memory_help)
    sub.add_argument("--models-from", metavar="DIR", type=Path, help=models_from_help)
    sub.add_argument("--json", action="store_true", help="print the result as JSON")
    sub.set_defaults(call=lambda options: sweep_command(options, progress))


def numbers(text: str) -> list[int]:
    """Whole numbers parted by commas."""
    try:
        return [int(part.replace("_", "")) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be whole numbers parted by commas, such as 1024,4096, got {text!r}"
        ) from None


def sweep_command(options: argparse.Namespace, progress: Callable[[], Any]) -> None:
    """`saelign sweep`."""
    from saelign.errors import UnknownNameError
    from saelign.study import TextStudy, load_study
    from saelign.sweep import sweep

    study = replace(load_study(options.study), models_from=options.models_from)
    if options.matching is not None and options.matching not in study.matching:
        raise UnknownNameError.of("matching of this study", options.matching, study.matching)
    text = None
    if options.train_text is not None:
        source = options.train_text
        text = replace(
            TextStudy(source=source if source == "-" else str(Path(source).resolve())),
            context_length=study.text.context_length,
            mask_special=study.text.mask_special,
            mask_first=study.text.mask_first,
            split=options.train_split,
        )
    with progress() as tell:
        found = sweep(
            study,
            widths=options.widths,
            ks=options.ks,
            train_seeds=options.train_seeds,
            train_tokens=options.train_tokens,
            train_text=text,
            out=options.out,
            memory=options.memory,
            progress=tell,
        )
    if options.json:
        tables = {
            name: json.loads(getattr(found, name).to_json(orient="records", double_precision=15))
            for name in ("saes", "combinations", "moves")
        }
        print(json.dumps({"folder": str(found.folder.resolve()), **tables}, indent=2))
        return
    from rich.console import Console

    from saelign.report.sweeps import sweep_overview

    console = Console(soft_wrap=True, highlight=False, file=sys.stdout)
    for part in sweep_overview(
        found.saes, found.combinations, found.moves, matching=options.matching
    ):
        console.print(part)
    print(f"\nresults: {found.folder.resolve()}")
    print(f"figures: {(found.folder / 'figures').resolve()}")
