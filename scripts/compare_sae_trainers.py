"""Train the same SAEs with several libraries and measure them with the same code.

    python scripts/compare_sae_trainers.py TEXT HELD_OUT           # docs/checks, docs/training.md
    python scripts/compare_sae_trainers.py TEXT HELD_OUT --only eai-sparsify --tokens 100000

Reads the demo's models through block 3 of A and block 4 of B; documents of TEXT are parted by blank
lines. Each training runs alone, on one thread, in the environment of its library, made under
build/sae-libraries if it is not there. A training on record is not repeated.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from check_sae_libraries import environment, fill
from safetensors.torch import load_file, save_file
from train_demo_models import read_documents

from saelign.activations import sample_streams
from saelign.demo import FOLDER
from saelign.models import load_model
from saelign.saes import load_sae
from saelign.saes.training import measured
from saelign.text import Tokens, draw, load_tokenizer, tokenize

ROOT = Path(__file__).parents[1]
RECORD, PAGE = ROOT / "docs" / "checks" / "sae_trainers.csv", ROOT / "docs" / "training.md"
WIDTH, K, EPOCHS, CONTEXT, HELD_OUT_TOKENS = 1024, 30, 2, 128, 100_000
LAYERS = {"A": 3, "B": 4}
COLUMNS = (
    "trainer", "options", "model", "layer", "tokens", "explained_variance", "l0", "dead_share",
    "seconds", "cpu_seconds", "import_seconds", "packages", "version", "torch", "transformers",
    "python",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A way to train.

    Attributes:
        trainer: The library, as the package index calls it.
        script: What trains with it, under `scripts/sae_trainers`.
        told: The options in words.
        options: Given to the library as they are.
    """

    trainer: str
    script: str
    told: str
    options: dict[str, Any] = field(default_factory=dict)


def of_sparsify(told: str, **options: Any) -> Training:
    """A training by sparsify."""
    return Training(trainer="eai-sparsify", script="train_sparsify.py", told=told, options=options)


def of_saelens(told: str, **options: Any) -> Training:
    """A training by SAELens."""
    return Training(trainer="sae-lens", script="train_saelens.py", told=told, options=options)


AUX = {"auxk_alpha": 1 / 32, "dead_feature_threshold": 50_000}
ADAM = {"optimizer": "adam", "lr_warmup_steps": 50}
TRAININGS = [
    Training(trainer="saelign", script="train_saelign.py", told="BatchTopK, defaults"),
    of_sparsify("TopK, signum, defaults"),
    of_sparsify("TopK, signum at 0.005, AuxK", lr=5e-3, **AUX),
    of_sparsify(
        "TopK, Adam at 0.0008 (default), AuxK", optimizer="adam", lr_warmup_steps=50, **AUX
    ),
    of_sparsify("TopK, Adam at 0.004, AuxK", lr=4e-3, **ADAM, **AUX),
    of_saelens("BatchTopK, Adam at 0.0003 (default)", kind="batchtopk"),
    of_saelens("BatchTopK, Adam at 0.001", kind="batchtopk", lr=1e-3),
    of_saelens("BatchTopK, Adam at 0.004", kind="batchtopk", lr=4e-3),
]


def read(path: Path, n_tokens: int) -> Tokens:
    """Contexts that keep so many tokens, of the first documents that surely hold them."""
    tokenizer = load_tokenizer(str(FOLDER / "tokenizer"))
    documents, n_characters = [], 0
    for text in filter(str.strip, read_documents(path)):
        if n_characters > 8 * n_tokens:
            break
        documents.append(text)
        n_characters += len(text)
    tokens = tokenize(documents, tokenizer, context_length=CONTEXT, across_documents=True)
    return draw(tokens, n_tokens, rng=np.random.default_rng(0))


def prepare(folder: Path, name: str, fit: Tokens, test: Tokens) -> None:
    """Write what every trainer of a model reads: contexts, activations of them, and sizes."""
    layer, model = LAYERS[name], load_model(str(FOLDER / name))
    folder.mkdir(parents=True)
    for part, tokens in (("fit", fit), ("held_out", test)):
        streams = sample_streams(
            load=lambda: model,
            blocks_path=None,
            layers=[layer],
            tokens=tokens,
            n_tokens=tokens.n_tokens,
        )
        save_file({"acts": streams[layer]}, folder / f"{part}.safetensors")
    np.save(folder / "contexts.npy", fit.input_ids.astype(np.int64))
    about = {
        "model": str(FOLDER / name),
        "module": f"layers.{layer}",
        "hook_name": f"blocks.{layer}.hook_resid_post",
        "excluded": list(fit.special_ids),
        "width": WIDTH,
        "k": K,
        "epochs": EPOCHS,
        "tokens": fit.n_tokens,
    }
    (folder / "about.json").write_text(json.dumps(about))


def trained(training: Training, data: Path, environments: Path, out: Path) -> dict[str, Any]:
    """Train in the library's environment; what it took, and what the SAE is worth."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    own = training.trainer == "saelign"
    python = (
        Path(sys.executable)
        if own
        else environment(training.trainer, environments / training.trainer)
    )
    script = Path(__file__).parent / "sae_trainers" / training.script
    report = out / "report.json"
    settings = {
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
        "SPARSIFY_DISABLE_TRITON": "1",
        "OMP_NUM_THREADS": "1",
        # Threads that wait would otherwise be counted as working.
        "OMP_WAIT_POLICY": "passive",
    }
    subprocess.run(
        [python, script, data, json.dumps(training.options), out, report],
        check=True,
        env=os.environ | settings,
    )
    path = out / "sae.safetensors" if own else out / "sae"
    worth = measured(load_sae(path), load_file(data / "held_out.safetensors")["acts"])
    quality = {key: getattr(worth, key) for key in ("explained_variance", "l0", "dead_share")}
    return {**quality, **json.loads(report.read_text())}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train whatever is not on record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--only", action="append", help="this trainer alone")
    parser.add_argument("--options", action="append", help="told in these words alone")
    parser.add_argument("--model", choices=LAYERS, help="this model alone")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="to train on")
    parser.add_argument("--environments", type=Path, default=ROOT / "build" / "sae-libraries")
    parser.add_argument("--out", type=Path, help="where sae_trainers.csv goes, and no page")
    options = parser.parse_args(arguments)
    record = RECORD if options.out is None else options.out / RECORD.name
    work = ROOT / "build" / f"sae-trainers-{options.tokens}"
    torch.set_num_threads(2)
    texts: list[Tokens] = []
    for name, layer in LAYERS.items():
        if options.model not in (None, name):
            continue
        if not (work / name / "about.json").is_file():
            shutil.rmtree(work / name, ignore_errors=True)
            asked = ((options.text, options.tokens), (options.held_out, HELD_OUT_TOKENS))
            texts = texts or [read(path, n) for path, n in asked]
            prepare(work / name, name, *texts)
        for training in TRAININGS:
            about = {
                "trainer": training.trainer,
                "options": training.told,
                "model": name,
                "layer": str(layer),
                "tokens": str(options.tokens),
            }
            rows = recorded(record)
            is_known = any(all(row[key] == about[key] for key in about) for row in rows)
            if is_known or training.trainer not in (options.only or [training.trainer]):
                continue
            if training.told not in (options.options or [training.told]):
                continue
            row = trained(training, work / name, options.environments, work / "run")
            row = {key: f"{v:.4g}" if isinstance(v, float) else str(v) for key, v in row.items()}
            print(about | row, flush=True)
            write(record, [*rows, about | row])
    if options.out is None:
        fill(PAGE, table(recorded(record)))


def recorded(record: Path) -> list[dict[str, str]]:
    """The rows on record; none if there is no record."""
    if not record.is_file():
        return []
    with record.open(newline="") as file:
        return list(csv.DictReader(file))


def write(record: Path, rows: list[dict[str, str]]) -> None:
    """Write the record, in the order of the trainings."""
    order = [(training.trainer, training.told) for training in TRAININGS]
    known = [row for row in rows if (row["trainer"], row["options"]) in order]

    def place(row: dict[str, str]) -> tuple[str, int, int]:
        return row["model"], int(row["tokens"]), order.index((row["trainer"], row["options"]))

    known.sort(key=place)
    record.parent.mkdir(parents=True, exist_ok=True)
    with record.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(known)


def table(rows: list[dict[str, str]]) -> str:
    """The record as the page shows it."""
    lines = [
        "| model | tokens | trainer | options | explained variance | L0 | dead share | CPU time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['model']}, layer {row['layer']} | {int(row['tokens']):,} "
        f"| {row['trainer']} {row['version']} "
        f"| {row['options']} | {float(row['explained_variance']):.3f} | {float(row['l0']):.1f} "
        f"| {float(row['dead_share']):.3f} | {float(row['cpu_seconds']):.0f} s |"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
