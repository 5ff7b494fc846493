"""Train every SAE of the demo, on the text and the models of `train_demo_models.py`.

    python scripts/train_demo_saes.py train.txt.xz heldout.txt.xz OUT [NAME ...]

Reads OUT/tokenizer, OUT/A and OUT/B and writes OUT/sae_NAME/layer_{layer}.safetensors and
`training.json` beside them: what each explains, how sparse it is and how many features are dead, on
held-out text. What is there already is not trained again. Position 0 is left out, where every
context has the same token and an outlying activation.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from train_demo_models import CONTEXT, read_documents, token_stream
from transformers import PreTrainedTokenizerFast

from saelign.activations import sample_streams
from saelign.models import load_model, untrained_model, weights_sha256
from saelign.saes import save_sae, train_sae
from saelign.text import Tokens

TRAINING_TOKENS, HELD_OUT_TOKENS = 1_000_000, 100_000
TWIN_SEED = 0
WIDTH, K = {"A": 1024, "B": 1408}, 30
DEPTH = {"A": 6, "B": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A set of SAEs."""

    model: str
    layers: range
    d_sae: int
    k: int = K
    seed: int = 0
    is_untrained: bool = False


RECIPES = {
    "A": Recipe(model="A", layers=range(DEPTH["A"]), d_sae=WIDTH["A"]),
    "B": Recipe(model="B", layers=range(DEPTH["B"]), d_sae=WIDTH["B"]),
    "A_seed": Recipe(model="A", layers=range(DEPTH["A"]), d_sae=WIDTH["A"], seed=1),
    "A_untrained": Recipe(model="A", layers=range(DEPTH["A"]), d_sae=WIDTH["A"], is_untrained=True),
    "B_untrained": Recipe(model="B", layers=range(DEPTH["B"]), d_sae=WIDTH["B"], is_untrained=True),
    "A_wide": Recipe(model="A", layers=range(3, 4), d_sae=4096),
    "B_wide": Recipe(model="B", layers=range(4, 5), d_sae=4096),
}


def contexts_of(stream: np.ndarray) -> Tokens:
    """A stream of ids as full contexts whose first position does not count."""
    ids = stream[: len(stream) // CONTEXT * CONTEXT].reshape(-1, CONTEXT).astype(np.int32)
    attended = np.ones(ids.shape, dtype=bool)
    kept = attended.copy()
    kept[:, 0] = False
    return Tokens(
        input_ids=ids,
        attended=attended,
        kept=kept,
        document=np.arange(len(ids), dtype=np.int32),
    )


def model_of(recipe: Recipe, out: Path) -> nn.Module:
    """The model that the SAEs read, in float32."""
    folder = str(out / recipe.model)
    return untrained_model(folder, seed=TWIN_SEED) if recipe.is_untrained else load_model(folder)


def train(name: str, recipe: Recipe, text: Tokens, held_out: Tokens, out: Path) -> None:
    """Train what is missing of a set."""
    folder = out / f"sae_{name}"
    folder.mkdir(exist_ok=True)
    report_path = folder / "training.json"
    report = json.loads(report_path.read_text()) if report_path.exists() else {"layers": {}}
    missing = [n for n in recipe.layers if str(n) not in report["layers"]]
    if not missing:
        return
    model = model_of(recipe, out)
    report |= {"recipe": {**asdict(recipe), "layers": list(recipe.layers)}}
    report |= {"training_tokens": TRAINING_TOKENS, "torch": torch.__version__}
    if recipe.is_untrained:
        report["weights_sha256"] = weights_sha256(model)
    fit, test = (
        sample_streams(
            load=lambda: model,
            blocks_path=None,
            layers=missing,
            tokens=tokens,
            n_tokens=n,
            dtype=torch.bfloat16,
        )
        for tokens, n in ((text, TRAINING_TOKENS), (held_out, HELD_OUT_TOKENS))
    )
    for layer in missing:
        sae, quality = train_sae(
            fit.pop(layer),
            d_sae=recipe.d_sae,
            k=recipe.k,
            seed=1000 * recipe.seed + layer,
            held_out=test.pop(layer),
            hook_name=f"gpt_neox.layers.{layer}",
        )
        save_sae(sae, folder / f"layer_{layer}.safetensors")
        report["layers"][str(layer)] = asdict(quality)
        report_path.write_text(json.dumps(report, indent=1) + "\n")
        print(name, layer, quality, flush=True)


if __name__ == "__main__":
    text_path, held_out_path, out = (Path(argument) for argument in sys.argv[1:4])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "tokenizer")
    streams = [token_stream(read_documents(path), tokenizer) for path in (text_path, held_out_path)]
    # The end of the text, from the first token that fills whole contexts.
    text = contexts_of(streams[0][-(TRAINING_TOKENS * 11 // 10) :])
    held_out = contexts_of(streams[1])
    for name in sys.argv[4:] or RECIPES:
        train(name, RECIPES[name], text, held_out, out)
