"""`saelign train-sae`: SAEs for a model that has none."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saelign.locations import HUB

if TYPE_CHECKING:
    from saelign.sae_training import TrainingRecipe

EPILOG = """examples:
  saelign train-sae EleutherAI/pythia-70m --layers 1,3,5 --width 4096 -k 32 \\
    --text books/ --tokens 10000000 --out saes
  saelign train-sae ./model --width 1024 -k 16 --text notes.txt --split blank_line \\
    --tokens all --untrained 0 --out saes-of-the-twin"""


def add_train_sae(
    commands: Any, progress: Callable[[], Any], *, memory_help: str, models_from_help: str
) -> None:
    """Give a command line the command `train-sae`.

    Args:
        commands: What `add_subparsers` gave.
        progress: Gives a context in which progress is told.
        memory_help: What it says of `--memory`.
        models_from_help: What it says of `--models-from`.
    """
    from saelign.sites import SITES

    sub = commands.add_parser(
        "train-sae",
        help="train an SAE for each of a model's layers",
        description="Train an SAE for each of a model's layers. Started again after it was "
        "stopped, it goes on where it stopped.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument("model", metavar="MODEL", help="a folder, or a name on the hub")
    sub.add_argument(
        "--layers",
        metavar="1,3,5",
        type=layers,
        default="all",
        help="which blocks, counted from 0 (default: all)",
    )
    sub.add_argument("--width", metavar="N", type=int, required=True, help="features of each SAE")
    sub.add_argument(
        "-k", metavar="N", type=int, required=True, help="features active at a token, on average"
    )
    sub.add_argument("--out", metavar="DIR", required=True, help="where the SAEs go")
    sub.add_argument(
        "--seed", metavar="N", type=int, default=0, help="of the training (default: 0)"
    )
    sub.add_argument(
        "--untrained",
        metavar="SEED",
        type=int,
        help="train on the model's untrained twin, its weights drawn with this seed",
    )
    sub.add_argument("--memory", metavar="SIZE", help=memory_help)
    sub.add_argument("--models-from", metavar="DIR", type=Path, help=models_from_help)
    sub.add_argument("--json", action="store_true", help="print the result as JSON")

    text = sub.add_argument_group("text, read as a study reads it")
    text.add_argument(
        "--text",
        metavar="TEXT",
        required=True,
        help=f"a file, a folder, - for standard input, or a data set: {HUB}OWNER/NAME[@REVISION]",
    )
    text.add_argument(
        "--tokens",
        metavar="N",
        type=number_or_all,
        default=1_000_000,
        help="to train on, or all (default: 1000000); a tenth is held out beside them",
    )
    text.add_argument("--context-length", metavar="N", type=int, default=128, help="default: 128")
    text.add_argument(
        "--split",
        choices=("none", "blank_line"),
        default="none",
        help="of text files: whether blank lines part documents",
    )
    text.add_argument(
        "--across-documents", action="store_true", help="fill contexts across documents"
    )
    text.add_argument("--column", metavar="NAME", default="text", help="default: text")
    text.add_argument(
        "--documents",
        metavar="N",
        type=number_or_all,
        default="all",
        help="read the first so many at most",
    )
    text.add_argument("--dataset-config", metavar="NAME", help="of a data set")
    text.add_argument("--dataset-split", metavar="NAME", default="train", help="default: train")
    text.add_argument("--streaming", action="store_true", help="of a data set: read as it comes")

    model = sub.add_argument_group("model, named as in a study")
    model.add_argument("--site", choices=SITES, default="resid_post", help="default: resid_post")
    model.add_argument("--module", metavar="PATH", help="of the site, within a block")
    model.add_argument("--blocks", metavar="PATH", help="of the list of blocks")
    model.add_argument("--revision", metavar="NAME", help="on the hub")
    model.add_argument("--tokenizer", metavar="NAME", help="a folder or name, if not the model's")
    model.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto"
    )
    model.add_argument("--quantization", choices=("8bit", "4bit"))
    model.add_argument("--device", metavar="NAME", default="cpu", help="default: cpu")

    training = sub.add_argument_group("training")
    training.add_argument(
        "--epochs", metavar="X", type=float, default=2.0, help="passes over the text (default: 2)"
    )
    training.add_argument(
        "--batch-tokens", metavar="N", type=int, default=1024, help="of a step (default: 1024)"
    )
    training.add_argument(
        "--learning-rate", metavar="X", type=float, default=4e-3, help="default: 0.004"
    )
    sub.set_defaults(call=train_command, progress=progress)


def layers(text: str) -> list[int] | Literal["all"]:
    """`all`, or layers between commas."""
    return "all" if text == "all" else [int(number) for number in text.split(",")]


def number_or_all(text: str) -> int | Literal["all"]:
    """`all`, or a number."""
    return "all" if text == "all" else int(text)


def recipe_of(options: argparse.Namespace) -> "TrainingRecipe":
    """What the command line asks for."""
    from saelign.sae_training import TrainingRecipe
    from saelign.study import ModelStudy, TextStudy
    from saelign.text.sources import DatasetSource

    source: str | DatasetSource = options.text
    if options.text.startswith(HUB):
        name, _, revision = options.text.removeprefix(HUB).partition("@")
        source = DatasetSource(
            dataset=name,
            config=options.dataset_config,
            split=options.dataset_split,
            revision=revision or None,
            streaming=options.streaming,
        )
    return TrainingRecipe(
        model=ModelStudy(
            name=options.model,
            saes="",
            **{
                key: getattr(options, key)
                for key in ("layers", "revision", "tokenizer", "dtype", "device", "quantization")
            },
            **{key: getattr(options, key) for key in ("blocks", "site", "module")},
        ),
        text=TextStudy(
            source=source,
            **{
                key: getattr(options, key)
                for key in ("tokens", "context_length", "split", "across_documents", "column")
            },
            documents=options.documents,
        ),
        **{key: getattr(options, key) for key in ("width", "k", "seed", "untrained", "epochs")},
        **{key: getattr(options, key) for key in ("batch_tokens", "learning_rate", "models_from")},
    )


def train_command(options: argparse.Namespace) -> None:
    """`saelign train-sae`."""
    from saelign.sae_training import SAES, train_saes

    recipe, out = recipe_of(options), Path(options.out).expanduser()
    with options.progress() as progress:
        table = train_saes(recipe, out, memory=options.memory, progress=progress)
    saes = str(out.resolve() / SAES)
    if options.json:
        told = {"folder": str(out.resolve()), "saes": saes, "site": recipe.model.site}
        print(json.dumps({**told, "layers": table.to_dict(orient="records")}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    printed = Table(box=None, pad_edge=False)
    for name in ("layer", "explained variance", "L0", "dead share", "time"):
        printed.add_column(name, justify="right")
    for row in table.itertuples():
        printed.add_row(
            f"{row.layer}",
            f"{row.explained_variance:.3f}",
            f"{row.l0:.1f}",
            f"{row.dead_share:.3f}",
            f"{row.seconds:.0f} s",
        )
    Console(soft_wrap=True, highlight=False).print(printed)
    print(f"\nin a study:\n{study_lines(recipe, saes)}")


def study_lines(recipe: "TrainingRecipe", saes: str) -> str:
    """What a study says to use the SAEs: of the model, or of the control for its twin."""
    if recipe.untrained is not None:
        return f"  - untrained: {{seed: {recipe.untrained}, saes_a: {json.dumps(saes)}}}"
    lines = [f"  saes: {json.dumps(saes)}"]
    if recipe.model.layers != "all":
        lines.insert(0, f"  layers: {recipe.model.layers}")
    if recipe.model.site != "resid_post":
        lines.insert(0, f"  site: {recipe.model.site}")
    if recipe.model.module is not None:
        lines.insert(0, f"  module: {recipe.model.module}")
    return "\n".join(lines)
