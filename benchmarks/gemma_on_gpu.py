"""Collecting and correlating at the full size of Gemma-2, for a machine with a GPU.

    .venv/bin/python -m benchmarks.gemma_on_gpu --device cuda --tokens 262144
    .venv/bin/python -m benchmarks.gemma_on_gpu --device cpu --tokens 512 --scale tiny

Both models have the published widths and random weights, in bfloat16 (float32 at the tiny scale),
and random JumpReLU SAEs at the published layers, with thresholds under which about 65 features are
active at a token. Nothing is downloaded. Writes `gemma_on_gpu.csv` and `gemma_on_gpu.md`.
"""

import argparse
import csv
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Gemma2Config

import saelign
from benchmarks.collecting import (
    Collection,
    gemma2,
    random_model,
    random_saes,
    random_tokens,
)
from saelign import tiles
from saelign.activations import LayerActivations
from saelign.models import find_blocks, streams_at
from saelign.provenance import machine, versions
from saelign.saes import SAE
from saelign.text import Tokens

MIN_ACTIVE_TOKENS = 30
"""Tokens that a feature has to be active on before `time_layer_pair` looks for its partners."""

N_BEST_A = 32
"""Partners that it lists for each feature of the first layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Both models, the layers at which their SAEs read, and how wide these are."""

    configs: dict[str, Gemma2Config]
    layers: dict[str, list[int]]
    d_sae: int
    dtype: torch.dtype
    context: int


def full() -> Scale:
    n_vocabulary = 256_000
    return Scale(
        configs={
            "gemma-2-2b": gemma2(
                n_layers=26,
                d_model=2304,
                d_mlp=9216,
                n_heads=8,
                n_kv_heads=4,
                d_head=256,
                n_vocabulary=n_vocabulary,
            ),
            "gemma-2-9b": gemma2(
                n_layers=42,
                d_model=3584,
                d_mlp=14336,
                n_heads=16,
                n_kv_heads=8,
                d_head=256,
                n_vocabulary=n_vocabulary,
            ),
        },
        layers={"gemma-2-2b": [6, 10, 14, 17], "gemma-2-9b": [2, 6, 10, 19, 25, 39]},
        d_sae=16384,
        dtype=torch.bfloat16,
        context=1024,
    )


def tiny() -> Scale:
    small, large = (
        gemma2(n_layers=4, d_model=d, d_mlp=2 * d, n_heads=2, n_kv_heads=1, d_head=16)
        for d in (32, 48)
    )
    return Scale(
        configs={"tiny-a": small, "tiny-b": large},
        layers={"tiny-a": [0, 2], "tiny-b": [1, 3]},
        d_sae=256,
        dtype=torch.float32,
        context=32,
    )


SCALES = {"full": full, "tiny": tiny}


def seconds(work: Callable[[], object], device: str) -> float:
    """Until the device has finished, not until the work was handed to it."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def whole_forward(model: Any, tokens: Tokens, contexts: int, device: str) -> None:
    """Every block and the final norm; no head, nothing kept."""
    for ids in torch.from_numpy(tokens.input_ids).split(contexts):
        model.model(ids.long().to(device), use_cache=False)


def forward_to(
    model: nn.Module, layers: list[int], tokens: Tokens, contexts: int, device: str
) -> None:
    """The blocks up to the last layer asked for, as collecting runs them; nothing kept."""
    blocks = find_blocks(model)
    for ids in torch.from_numpy(tokens.input_ids).split(contexts):
        streams_at(model, blocks, ids.long().to(device), None, layers)


@torch.inference_mode()
def encoder_products(saes: Iterable[SAE], n_tokens: int, batch_tokens: int, device: str) -> None:
    """x @ W_enc + b_enc in float32 for as many tokens, thrown away."""
    for sae in saes:
        x = torch.randn(batch_tokens, sae.d_model, device=device)
        for start in range(0, n_tokens, batch_tokens):
            _ = x[: n_tokens - start] @ sae.W_enc + sae.b_enc


def time_model(
    name: str, scale: Scale, store: Path, *, n_tokens: int, batch_tokens: int, device: str
) -> tuple[list[dict[str, Any]], dict[int, LayerActivations]]:
    """Rows of seconds and tokens a second of the bare passes and of collecting; what it gave."""
    config, layers = scale.configs[name], scale.layers[name]
    model = random_model(config, dtype=scale.dtype, device=device)
    tokens = random_tokens(n_tokens, n_vocabulary=config.vocab_size, length=scale.context)
    saes = random_saes(model, tokens, layers, scale.d_sae)
    contexts = max(1, batch_tokens // scale.context)
    collection = Collection(model, saes, tokens, store, batch_tokens=batch_tokens, device=device)
    forward_to(model, layers, tokens, contexts, device)  # the first pass finds its kernels

    rows: list[dict[str, Any]] = []

    def add(work: str, taken: float, note: str = "") -> None:
        per_second = tokens.n_tokens / taken
        rows.append(
            {
                "model": name,
                "work": work,
                "seconds": taken,
                "tokens_per_second": per_second,
                "note": note,
            }
        )

    last = max(layers)
    forward = seconds(lambda: whole_forward(model, tokens, contexts, device), device)
    add("forward pass, all blocks, no head", forward)
    stopped = seconds(lambda: forward_to(model, layers, tokens, contexts, device), device)
    add(f"forward pass to block {last}", stopped)
    products = seconds(
        lambda: encoder_products(saes.values(), tokens.n_tokens, batch_tokens, device), device
    )
    add(f"encoder products of {len(layers)} SAEs in float32", products)
    with_wiring = seconds(collection.collect, device)
    collection.forget()
    collected = seconds(collection.collect, device)
    l0 = sum(layer.n_values for layer in collection.layers.values()) / len(layers)
    add(
        f"collect layers {', '.join(map(str, layers))}",
        collected,
        f"{collected / (stopped + products):.2f} times the two above, {collected / forward:.2f} "
        f"times the whole forward pass; L0 {l0 / tokens.n_tokens:.0f}",
    )
    add("the same with the wiring check", with_wiring, "the check is paid once an SAE")
    return rows, collection.layers


def time_layer_pair(
    a: LayerActivations, b: LayerActivations, device: str
) -> dict[str, tuple[float, str]]:
    """Seconds until the strongest partners of two layers are known, and what was done, by the way.

    Both layers are of the same tokens, in the same order. Tiles are forced, so that both ways are
    seen beside each other; the note says which of them would be taken.
    """
    acts_a, acts_b = a.concatenated(), b.concatenated()
    what = f"{acts_a.shape[1]:,} x {acts_b.shape[1]:,} features, {acts_a.shape[0]:,} tokens"
    correlation = saelign.correlate(acts_a, acts_b, dense=False)
    taken = tiles.faster(correlation.columns_a, correlation.rows_b, device)
    ways = {
        "dense tiles": (
            tiles.engine(device, way="tiles"),
            f"{what}, on {device}; of both ways a study would take {taken}",
        ),
        "sparse loops": (None, f"{what}, on the CPU"),
    }

    def work(engine: Callable[..., Any] | None) -> None:
        found = saelign.correlate(acts_a, acts_b, dense=False)
        replace(found, engine=engine).listed(MIN_ACTIVE_TOKENS, n_best_a=N_BEST_A)

    return {
        name: (seconds(lambda engine=engine: work(engine), device), note)
        for name, (engine, note) in ways.items()
    }


def measure(*, scale: str, device: str, n_tokens: int, batch_tokens: int) -> list[dict[str, Any]]:
    """Both models one after the other, then the first collected layer of one with the other's."""
    size = SCALES[scale]()
    rows: list[dict[str, Any]] = []
    first: list[LayerActivations] = []
    with tempfile.TemporaryDirectory(prefix="saelign-gemma-") as store:
        for name in size.configs:
            of_model, layers = time_model(
                name,
                size,
                Path(store) / name,
                n_tokens=n_tokens,
                batch_tokens=batch_tokens,
                device=device,
            )
            rows += of_model
            first.append(layers[size.layers[name][0]])
            if torch.device(device).type == "cuda":
                torch.cuda.empty_cache()
        time_layer_pair(*first, device)  # compiles
        ways = time_layer_pair(*first, device)
    a, b = size.configs
    rows += [
        {
            "model": f"{a} x {b}",
            "work": f"correlate one pair of layers, {name}",
            "seconds": taken,
            "tokens_per_second": first[0].n_tokens / taken,
            "note": note,
        }
        for name, (taken, note) in ways.items()
    ]
    return rows


def describe(device: str) -> dict[str, str]:
    """Versions and machine, the accelerator among them."""
    found = {**versions(), **machine(), "device": device}
    if torch.device(device).type == "cuda":
        found["device"] = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return found


def write_tables(rows: list[dict[str, Any]], about: dict[str, str], folder: Path) -> None:
    """`gemma_on_gpu.csv`, versions and machine as columns, and the same in Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "gemma_on_gpu.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *about])
        writer.writeheader()
        writer.writerows(row | about for row in rows)
    lines = ["| model | work | seconds | tokens a second | note |", "|---|---|--:|--:|---|"]
    lines += [
        f"| {row['model']} | {row['work']} | {row['seconds']:.3f} "
        f"| {row['tokens_per_second']:,.0f} | {row['note']} |"
        for row in rows
    ]
    lines += ["", *(f"- {name}: {value}" for name, value in about.items()), ""]
    (folder / "gemma_on_gpu.md").write_text("\n".join(lines))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda", help="as torch names it (default: cuda)")
    parser.add_argument("--tokens", type=int, default=262_144, help="to read (default: 262144)")
    parser.add_argument("--batch-tokens", type=int, default=8192, help="of a forward pass")
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--out", type=Path, default=Path("gemma-on-gpu"), help="where to write")
    options = parser.parse_args(arguments)
    rows = measure(
        scale=options.scale,
        device=options.device,
        n_tokens=options.tokens,
        batch_tokens=options.batch_tokens,
    )
    write_tables(rows, describe(options.device), options.out)
    print((options.out / "gemma_on_gpu.md").read_text())


if __name__ == "__main__":
    main()
