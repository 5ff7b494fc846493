"""What collecting costs beyond the forward pass and the encoder products that it cannot avoid.

    .venv/bin/python -m benchmarks.collecting [--quick]

Two transformer blocks of Gemma-2-2B's size with random weights, a random JumpReLU SAE after each,
about 65 features active at a token. The opponent is `script` below: the same forward pass and the
same products, and nothing after them: no threshold, no sparse activations, nothing on the disk.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Gemma2Config

from saelign.activations import LayerActivations, collect
from saelign.activations.store import write_manifest
from saelign.models import find_blocks, streams_at
from saelign.saes import SAE
from saelign.text import Tokens

L0 = 65
CONTEXT = 128
MANY_TOKENS = 1_000_000
"""A study of ordinary size, for what is paid once a study."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of the model and of what is measured."""

    config: Gemma2Config
    d_sae: int
    n_tokens: int
    batch_tokens: int
    repeats: int


def sizes(*, quick: bool) -> Sizes:
    if quick:
        config = gemma2(n_layers=2, d_model=64, d_mlp=256, n_heads=2, n_kv_heads=1, d_head=32)
        return Sizes(config=config, d_sae=512, n_tokens=512, batch_tokens=256, repeats=3)
    config = gemma2(n_layers=2, d_model=2304, d_mlp=9216, n_heads=8, n_kv_heads=4, d_head=256)
    return Sizes(config=config, d_sae=16384, n_tokens=4096, batch_tokens=2048, repeats=5)


def gemma2(
    *,
    n_layers: int,
    d_model: int,
    d_mlp: int,
    n_heads: int,
    n_kv_heads: int,
    d_head: int,
    n_vocabulary: int = 4096,
) -> Gemma2Config:
    """A Gemma-2 of these widths; what the published ones share is as published."""
    return Gemma2Config(
        vocab_size=n_vocabulary,
        hidden_size=d_model,
        intermediate_size=d_mlp,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv_heads,
        head_dim=d_head,
        max_position_embeddings=8192,
        sliding_window=4096,
        query_pre_attn_scalar=256,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    )


def random_model(
    config: Gemma2Config, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> nn.Module:
    """A model with random weights, made where it is to run."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.to(device).eval()


def random_tokens(n_tokens: int, *, n_vocabulary: int, length: int = CONTEXT) -> Tokens:
    """Contexts of random ids, all of them kept."""
    n_contexts = math.ceil(n_tokens / length)
    ids = np.random.default_rng(0).integers(2, n_vocabulary, (n_contexts, length), dtype=np.int32)
    everywhere = np.ones(ids.shape, dtype=bool)
    return Tokens(
        input_ids=ids,
        attended=everywhere,
        kept=everywhere,
        document=np.arange(n_contexts, dtype=np.int32),
        special_ids=(),
    )


@torch.inference_mode()
def random_saes(
    model: nn.Module, tokens: Tokens, layers: list[int], d_sae: int, *, l0: float = L0
) -> dict[int, SAE]:
    """Random JumpReLU SAEs, one threshold each, with `l0` features active at the first tokens."""
    parameter = next(model.parameters())
    first = torch.from_numpy(tokens.input_ids[:4]).long().to(parameter.device)
    streams = streams_at(model, find_blocks(model), first, None, layers)
    saes = {}
    for layer, stream in streams.items():
        x = stream.flatten(0, 1).float()
        generator = torch.Generator(device=x.device).manual_seed(layer)
        d_model = x.shape[1]
        weights = torch.randn(d_model, d_sae, generator=generator, device=x.device)
        weights /= d_model**0.5
        pre = (x @ weights).flatten()
        threshold = pre.topk(max(1, int(l0 * len(x)))).values[-1]
        saes[layer] = SAE(
            W_enc=weights,
            b_enc=torch.zeros(d_sae, device=x.device),
            W_dec=weights.T.contiguous(),
            b_dec=torch.zeros(d_model, device=x.device),
            threshold=threshold.clone().expand(d_sae).contiguous(),
            k=None,
            activation="jumprelu",
            apply_b_dec_to_input=False,
            normalize="none",
            hook_name=None,
            layer=layer,
            sha256=f"random {layer}",
            source=f"random_{layer}",
        )
    return {layer: saes[layer] for layer in layers}


@torch.inference_mode()
def script(model: Any, saes: dict[int, SAE], input_ids: Tensor, contexts_per_batch: int) -> None:
    """The ten lines: hidden states (without the head) and the encoder products, thrown away."""
    for batch in input_ids.split(contexts_per_batch):
        hidden = model.model(batch, use_cache=False, output_hidden_states=True).hidden_states
        for layer, sae in saes.items():
            x = hidden[layer + 1].flatten(0, 1).float()
            _ = x @ sae.W_enc + sae.b_enc


class Collection:
    """A store that can be collected into again and again, its wiring on record or not."""

    def __init__(
        self,
        model: nn.Module,
        saes: dict[int, SAE],
        tokens: Tokens,
        store: Path,
        *,
        batch_tokens: int,
        device: str = "cpu",
    ) -> None:
        self.arguments: dict[str, Any] = {
            "load": lambda: model,
            "blocks_path": None,
            "saes": saes,
            "tokens": tokens,
            "store": store,
            "model_fingerprint": "random",
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
            "device": device,
            "batch_tokens": batch_tokens,
            "check_fit": False,  # nothing random explains a layer; it is measured all the same
        }
        self.layers: dict[int, LayerActivations] = {}

    def collect(self) -> None:
        self.layers = collect(**self.arguments)

    def forget(self) -> None:
        """Back to where the wiring is on record and no token has been read."""
        for layer in self.layers.values():
            for shard in layer.shard_files:
                (layer.folder / shard.file).unlink()
            write_manifest(replace(layer, shard_files=(), complete=False))


@contextmanager
def temporary_collection(
    model: nn.Module, saes: dict[int, SAE], tokens: Tokens, *, batch_tokens: int
) -> Iterator[Collection]:
    with tempfile.TemporaryDirectory(prefix="saelign-collecting-") as store:
        yield Collection(model, saes, tokens, Path(store), batch_tokens=batch_tokens)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def side_by_side(
    ours: Callable[[], object], opponent: Callable[[], object], repeats: int
) -> tuple[float, float, float]:
    """Medians of our seconds, the opponent's, and the ratio, each ratio of neighbours in time."""
    pairs = []
    for repeat in range(repeats):
        if repeat % 2:
            theirs = seconds(opponent)
            pairs.append((seconds(ours), theirs))
        else:
            mine = seconds(ours)
            pairs.append((mine, seconds(opponent)))
    return (
        median(mine for mine, _ in pairs),
        median(theirs for _, theirs in pairs),
        median(mine / theirs for mine, theirs in pairs),
    )


def collecting_against_script(
    size: Sizes, model: nn.Module, saes: dict[int, SAE], tokens: Tokens
) -> tuple[float, float, float, float, float]:
    """Seconds with the wiring, without, of the script, the ratio without, and the L0."""
    input_ids = torch.from_numpy(tokens.input_ids).long()
    contexts_per_batch = size.batch_tokens // CONTEXT
    first = random_tokens(CONTEXT, n_vocabulary=size.config.vocab_size)
    with temporary_collection(model, saes, first, batch_tokens=CONTEXT) as warm_up:
        warm_up.collect()  # compiles, on the first call of an installation
    with temporary_collection(model, saes, tokens, batch_tokens=size.batch_tokens) as collection:
        with_wiring = seconds(collection.collect)

        def ours() -> None:
            collection.forget()
            collection.collect()

        mine, theirs, ratio = side_by_side(
            ours,
            lambda: script(model, saes, input_ids, contexts_per_batch),
            size.repeats,
        )
        n_values = sum(layer.n_values for layer in collection.layers.values())
    return with_wiring, mine, theirs, ratio, n_values / len(saes) / tokens.n_tokens


def product_shapes(config: Any, d_sae: int) -> list[tuple[int, int]]:
    """Widths in and out of every weight matrix that a token meets, both layers' SAEs included."""
    d_model, d_head = config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * d_head, config.num_key_value_heads * d_head
    block = [
        (d_model, queries),
        (d_model, keys),
        (d_model, keys),
        (queries, d_model),
        (d_model, config.intermediate_size),
        (d_model, config.intermediate_size),
        (config.intermediate_size, d_model),
        (d_model, d_sae),
    ]
    return block * config.num_hidden_layers


@torch.inference_mode()
def limit(config: Any, d_sae: int, n_rows: int, repeats: int) -> tuple[float, float]:
    """Seconds a token of the matrix products alone, and their rate in flops a second.

    Each shape is timed as torch multiplies it, `n_rows` tokens at once, into memory at hand: less
    cannot be had from this library. Attention's own products are left out, they are one part in a
    hundred.
    """
    shapes = product_shapes(config, d_sae)
    best: dict[tuple[int, int], float] = {}
    for d_in, d_out in set(shapes):
        x, weights, out = torch.randn(n_rows, d_in), torch.randn(d_in, d_out), torch.empty(0)
        out = x @ weights
        best[d_in, d_out] = min(
            seconds(lambda x=x, w=weights, out=out: torch.mm(x, w, out=out)) for _ in range(repeats)
        )
    total = sum(best[shape] for shape in shapes)
    flops = 2 * n_rows * sum(d_in * d_out for d_in, d_out in shapes)
    return total / n_rows, flops / total


def measure(*, quick: bool) -> list[dict[str, Any]]:
    """Collecting beside the script, with the wiring check and without, and beside the limit."""
    size = sizes(quick=quick)
    model = random_model(size.config)
    tokens = random_tokens(size.n_tokens, n_vocabulary=size.config.vocab_size)
    saes = random_saes(model, tokens, [0, 1], size.d_sae)
    with_wiring, mine, theirs, ratio, l0 = collecting_against_script(size, model, saes, tokens)
    per_token, rate = limit(size.config, size.d_sae, size.batch_tokens, size.repeats)
    n = tokens.n_tokens
    wiring = max(0.0, with_wiring - mine)
    many_ours = wiring + mine * MANY_TOKENS / n
    many_theirs = theirs * MANY_TOKENS / n
    work = f"collect {{}} tokens, 2 blocks of {size.config.hidden_size}, SAEs of {size.d_sae}"
    opponent = "forward pass and encoder products alone"

    def row(
        work: str, ours_s: float, opponent: str, opponent_s: float, ratio: float, note: str
    ) -> dict[str, Any]:
        return {
            "work": work,
            "ours_s": ours_s,
            "opponent": opponent,
            "opponent_s": opponent_s,
            "ratio": ratio,
            "note": note,
        }

    return [
        row(
            work.format(f"{n:,}"),
            mine,
            opponent,
            theirs,
            ratio,
            f"wiring already on record; L0 {l0:.0f}; median of {size.repeats} interleaved",
        ),
        row(
            f"the same and the wiring check of {min(4096, n):,} tokens",
            with_wiring,
            opponent,
            theirs,
            with_wiring / theirs,
            f"the check takes {wiring:.2f} s, once a layer and SAE; measured once",
        ),
        row(
            work.format(f"{MANY_TOKENS:,}"),
            many_ours,
            opponent,
            many_theirs,
            many_ours / many_theirs,
            "computed from the two rows above, the check included",
        ),
        row(
            work.format(f"{n:,}"),
            mine,
            "limit: the weights' matrix products alone",
            per_token * n,
            mine / (per_token * n),
            f"torch multiplies these shapes at {rate / 1e9:.0f} Gflop/s",
        ),
    ]


def curves(*, quick: bool) -> list[dict[str, Any]]:
    """Seconds of collecting and of the script against tokens, and against the SAEs' width."""
    size = replace(sizes(quick=quick), repeats=3)
    model = random_model(size.config)
    widths = (size.d_sae // 4, size.d_sae)
    points = [(size.n_tokens // 4 * factor, size.d_sae) for factor in (1, 2, 4)]
    points += [(size.n_tokens // 2, width) for width in widths if width != size.d_sae]
    rows = []
    for n_tokens, d_sae in points:
        tokens = random_tokens(n_tokens, n_vocabulary=size.config.vocab_size)
        saes = random_saes(model, tokens, [0, 1], d_sae)
        _, mine, theirs, ratio, l0 = collecting_against_script(
            replace(size, d_sae=d_sae), model, saes, tokens
        )
        rows.append(
            {
                "n_tokens": tokens.n_tokens,
                "d_sae": d_sae,
                "l0": l0,
                "ours_s": mine,
                "opponent_s": theirs,
                "ratio": ratio,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--curves", action="store_true", help="against tokens and width instead")
    arguments = parser.parse_args()
    table = curves if arguments.curves else measure
    for row in table(quick=arguments.quick):
        shown = (
            f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}"
            for name, value in row.items()
        )
        print(" | ".join(shown))


if __name__ == "__main__":
    main()
