"""`saelign studies`: the studies that ship, listed or printed."""

import argparse
import json
import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saelign.study import ModelStudy, Study

EPILOG = """examples:
  saelign studies
  saelign studies pythia-70m-vs-160m > study.yaml
  saelign run pythia-70m-vs-160m"""
WIDTH = 98


def add_studies(commands: Any) -> None:
    """Give a command line the command `studies`.

    Args:
        commands: What `add_subparsers` gave.
    """
    sub = commands.add_parser(
        "studies",
        help="list the studies that can be run by name, or print one",
        description="Studies that ship, to be run by name or printed, to be copied and changed.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument("name", metavar="NAME", nargs="?", help="print the file of this study")
    sub.add_argument("--json", action="store_true", help="print the result as JSON")
    sub.set_defaults(call=studies_command)


def studies_command(options: argparse.Namespace) -> None:
    """`saelign studies`."""
    from saelign.errors import UnknownNameError
    from saelign.study import load_shipped, shipped_studies, study_mapping

    shipped = shipped_studies()
    if options.name is None:
        rows = [about(load_shipped(name)) for name in shipped]
        print(json.dumps(rows, indent=2) if options.json else "\n\n".join(map(told, rows)))
        return
    if options.name not in shipped:
        raise UnknownNameError.of("study", options.name, shipped)
    if options.json:
        print(json.dumps(study_mapping(load_shipped(options.name)), indent=2))
    else:
        print(shipped[options.name].read_text(encoding="utf-8"), end="")


def about(study: "Study") -> dict[str, Any]:
    """What `saelign studies` tells of a study."""
    text = study.text
    asked = text.source
    return {
        "name": study.name,
        "description": study.description,
        "source": study.source,
        "model_a": about_model(study.model_a),
        "model_b": about_model(study.model_b),
        "text": asked if isinstance(asked, str) else asked.dataset,
        "tokens": text.tokens,
        "context_length": text.context_length,
        "runs": len(study.seeds),
        "matching": study.matching,
        "controls": [next(iter(control)) for control in study.controls.asked],
    }


def about_model(model: "ModelStudy") -> dict[str, Any]:
    """What `saelign studies` tells of one side; of SAEs on a hub the repository."""
    said = model.saes if isinstance(model.saes, str) else next(iter(model.saes.values()))
    where = "/".join(said.split("/")[:4]) if said.startswith("hf://") else said
    return {
        "name": model.name,
        "revision": model.revision,
        "site": model.site,
        "layers": model.layers,
        "saes": where,
    }


def told(row: dict[str, Any]) -> str:
    """A study as `saelign studies` prints it."""
    lines = [row["name"], *textwrap.wrap(row["description"] or "", WIDTH - 2)]
    for side in ("model_a", "model_b"):
        model = row[side]
        layers = model["layers"]
        listed = layers if layers == "all" else ", ".join(map(str, layers))
        site = "" if model["site"] == "resid_post" else f", {model['site']}"
        lines.append(f"{side[-1].upper()}: {model['name']}{site}, layers {listed}; {model['saes']}")
    tokens = row["tokens"] if row["tokens"] == "all" else f"{row['tokens']:,}"
    lines.append(
        f"text: {row['text']}, {tokens} tokens in contexts of {row['context_length']}; "
        f"{row['runs']} {'run' if row['runs'] == 1 else 'runs'}"
    )
    lines += textwrap.wrap(f"from: {row['source']}", WIDTH - 2) if row["source"] else []
    return "\n  ".join(lines)
