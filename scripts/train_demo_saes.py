"""Train every SAE of the demo, on the text and the models of `train_demo_models.py`.

    python scripts/train_demo_saes.py train.txt.xz OUT [NAME ...]

Reads OUT/tokenizer, OUT/A and OUT/B and writes OUT/sae_NAME as `saelign train-sae` does: an SAE a
layer and `training.json`. Text is the end of the file, which it keeps in OUT/sae_text.txt.gz, and
is measured on documents of it that are held out. What is there already is not trained again. Of the
untrained twins it prints the hash of their weights, which the demo's study tells.
"""

import dataclasses
import gzip
import sys
from pathlib import Path
from typing import Any

from train_demo_models import CONTEXT, read_documents

from saelign.cli import progress_on_stderr
from saelign.models import untrained_model, weights_sha256
from saelign.sae_training import TrainingRecipe, train_saes
from saelign.study import ModelStudy, TextStudy

CHARACTERS = 8_000_000
"""Of the text's end: surely the tokens to train on and to measure on."""

TEXT = TextStudy(
    source="sae_text.txt.gz", split="blank_line", tokens=1_000_000, context_length=CONTEXT
)


def recipe(model: str, layers: Any = "all", **changes: Any) -> TrainingRecipe:
    """SAEs of a model, of its usual width if nothing else is said."""
    side = ModelStudy(name=model, tokenizer="tokenizer", dtype="float32", layers=layers, saes="")
    width = changes.pop("width", {"A": 1024, "B": 1408}[model])
    return TrainingRecipe(model=side, text=TEXT, width=width, k=30, **changes)


RECIPES = {
    "A": recipe("A"),
    "B": recipe("B"),
    "A_seed": recipe("A", seed=1),
    "A_untrained": recipe("A", untrained=0),
    "B_untrained": recipe("B", untrained=0),
    "A_wide": recipe("A", [3], width=4096),
    "B_wide": recipe("B", [4], width=4096),
}


def write_text(source: Path, path: Path) -> None:
    """Keep the last documents of a text."""
    text = "\n\n".join(read_documents(source))[-CHARACTERS:]
    path.write_bytes(gzip.compress(text.partition("\n\n")[2].encode(), mtime=0))


if __name__ == "__main__":
    out = Path(sys.argv[2])
    write_text(Path(sys.argv[1]), out / str(TEXT.source))
    for name in sys.argv[3:] or RECIPES:
        asked = dataclasses.replace(RECIPES[name], folder=out)
        with progress_on_stderr() as progress:
            print(train_saes(asked, out / f"sae_{name}", progress=progress).to_string(index=False))
        if asked.untrained is not None:
            twin = untrained_model(str(out / asked.model.name), seed=asked.untrained)
            print(f"{name}: weights {weights_sha256(twin)}", flush=True)
