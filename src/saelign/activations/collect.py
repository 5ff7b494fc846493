"""Tokens -> sparse activations: run the model once, encode as it goes, keep the non-zeros."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from saelign.activations.store import (
    MANIFEST,
    LayerActivations,
    activations_key,
    concatenate_parts,
    open_activations,
    write_manifest,
    write_shard,
)
from saelign.activations.wiring import (
    N_TOKENS,
    Streams,
    check_dimensions,
    check_wiring,
    explained_variances,
    measure_wiring,
)
from saelign.errors import ActivationError, TextError
from saelign.models import d_site, find_blocks, sae_device, streams_at
from saelign.saes import SAE
from saelign.saes.sae import NonZeros, encode_sparse, in_parts
from saelign.sites import AFTER_BLOCK, Site
from saelign.text import Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    # A loaded model with its blocks, and what it is to read.
    model: nn.Module
    blocks: nn.ModuleList
    site: Site
    tokens: Tokens
    device: str
    sae_device: str
    contexts_per_batch: int


def collect(
    *,
    load: Callable[[], nn.Module],
    blocks_path: str | None,
    saes: Mapping[int, SAE],
    tokens: Tokens,
    store: Path,
    model_fingerprint: str,
    dtype: str,
    device: str = "cpu",
    site: Site = AFTER_BLOCK,
    provenance: Mapping[str, Any] | None = None,
    batch_tokens: int = 8192,
    shard_tokens: int = 65536,
    check_fit: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, LayerActivations]:
    """The sparse activations of every SAE at its layer, computed where they are not stored yet.

    The model is loaded only if some layer is incomplete, and then runs once for all that are.
    Batches never cross the boundary of a shard, and shards depend on the tokens and on
    `shard_tokens` alone, so a killed run continues after its last shard.

    Args:
        load: Gives the model; called at most once.
        blocks_path: Where the model keeps its blocks; None: found by structure.
        saes: By layer; after a block, -1 is what enters block 0.
        tokens: What to read.
        store: The folder under which each layer gets a folder of its own.
        model_fingerprint: Tells the weights from any others.
        dtype: In which the model runs; the SAEs run in float32.
        device: On which the model runs.
        site: Where in its blocks it is read.
        provenance: Recorded beside the above; does not take part in the key.
        batch_tokens: Positions (padding included) of a forward pass.
        shard_tokens: Kept tokens of a shard, at most, unless one context has more.
        check_fit: Refuse an SAE that does not explain its layer, or explains a neighbour better; of
            untrained models none need do.
        progress: Called with tokens done and tokens in all, after each batch.

    Raises:
        WiringError: An SAE does not fit its layer.
        ActivationError: A residual stream that is not finite, or an SAE without a live feature.
        TextError: Token ids that the model does not know.
        StorageError: The store cannot be written.
        DamagedError: What is stored is not what was written.
        ModelError: The blocks are not found.
    """
    parts = {
        "model": model_fingerprint,
        "tokens": tokens.sha256,
        "dtype": dtype,
        "shard_tokens": shard_tokens,
    }
    layers: dict[int, LayerActivations] = {}
    fresh: dict[int, LayerActivations] = {}
    for layer, sae in saes.items():
        key = {**parts, "site": site.told(layer), "sae": sae.sha256}
        folder = Path(store) / activations_key(key)
        if (folder / MANIFEST).exists():
            layers[layer] = open_activations(folder)
        else:
            fresh[layer] = LayerActivations(
                folder=folder,
                d_sae=sae.d_sae,
                n_tokens=tokens.n_tokens,
                complete=False,
                shard_files=(),
                provenance={
                    **(provenance or {}),
                    **key,
                    "layer": layer,
                    "sae_source": sae.source,
                    "device": device,
                    "masked": tokens.masked,
                    "torch": torch.__version__,
                },
            )
    if not fresh and all(layer.complete for layer in layers.values()):
        return {layer: layers[layer] for layer in saes}
    model = load()
    reader = _reader(model, blocks_path, site, tokens, device, batch_tokens)
    _check_ids(reader)
    layers |= _wired(reader, saes, fresh, check_fit=check_fit)
    _run(reader, saes, layers, shard_tokens=shard_tokens, progress=progress)
    return {layer: layers[layer] for layer in saes}


def sample_streams(
    *,
    load: Callable[[], nn.Module],
    blocks_path: str | None,
    layers: Sequence[int],
    tokens: Tokens,
    n_tokens: int,
    device: str = "cpu",
    site: Site = AFTER_BLOCK,
    dtype: torch.dtype = torch.float32,
    batch_tokens: int = 8192,
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, Float[Tensor, "token d_model"]]:
    """What passes a site of the layers, of the first contexts that hold enough kept tokens.

    Args:
        load: Gives the model.
        blocks_path: Where the model keeps its blocks; None: found by structure.
        layers: Of which blocks.
        tokens: What to read.
        n_tokens: How many tokens to give at least, if there are as many.
        device: On which the model runs.
        site: Where in its blocks it is read.
        dtype: In which the streams are kept; bfloat16 takes half the memory.
        batch_tokens: Positions (padding included) of a forward pass.
        progress: Called with tokens done and tokens to give, after each batch.

    Raises:
        ActivationError: A residual stream that is not finite.
        TextError: Token ids that the model does not know.
        ModelError: The blocks are not found.
    """
    model = load()
    reader = _reader(model, blocks_path, site, tokens, device, batch_tokens)
    _check_ids(reader)
    n_kept = int(tokens.kept.sum())
    streams: dict[int, Tensor] = {}
    done = 0
    for batch in _first_batches(reader, list(layers), n_tokens):
        for layer, stream in batch.items():
            if layer not in streams:  # room for a last context that goes beyond what was asked for
                rows = min(n_kept, n_tokens + tokens.input_ids.shape[1])
                streams[layer] = torch.empty(rows, stream.shape[1], dtype=dtype)
            streams[layer][done : done + len(stream)] = stream.to(dtype)
        done += len(next(iter(batch.values())))
        if progress is not None:
            progress(min(done, n_tokens), min(n_kept, n_tokens))
    return {layer: stream[:done] for layer, stream in streams.items()}


def _reader(
    model: nn.Module,
    blocks_path: str | None,
    site: Site,
    tokens: Tokens,
    device: str,
    batch_tokens: int,
) -> _Reader:
    # Token ids go where the embeddings are; accelerate brings them on if it has put those away.
    embeddings = cast("PreTrainedModel", model).get_input_embeddings()
    reads: Any = next(iter(embeddings.parameters())).device
    on = sae_device(device)
    return _Reader(
        model=model,
        blocks=find_blocks(model, blocks_path),
        site=site,
        tokens=tokens,
        device=on if reads.type == "meta" else str(reads),
        sae_device=on,
        contexts_per_batch=max(1, batch_tokens // tokens.input_ids.shape[1]),
    )


def _wired(
    reader: _Reader,
    saes: Mapping[int, SAE],
    fresh: Mapping[int, LayerActivations],
    *,
    check_fit: bool,
) -> dict[int, LayerActivations]:
    # The layers with their wiring measured, found good and recorded.
    if not fresh:
        return {}
    n_layers = len(reader.blocks)
    site, everywhere = reader.site, range(reader.site.first_layer, n_layers)
    width = d_site(cast("PretrainedConfig", reader.model.config), site)
    for layer in fresh:
        check_dimensions(saes[layer], layer, d_site=width, n_layers=n_layers, site=site)
    asked = {near for layer in fresh for near in (layer - 1, layer, layer + 1)}
    wirings = measure_wiring(
        {layer: saes[layer] for layer in fresh},
        _first_batches(reader, sorted(asked.intersection(everywhere))),
        layers=everywhere,
    )
    for layer, wiring in wirings.items() if check_fit else ():
        check_wiring(
            saes[layer],
            wiring,
            lambda sae=saes[layer]: explained_variances(
                sae, everywhere, _first_batches(reader, list(everywhere))
            ),
        )
    wired = {
        layer: replace(fresh[layer], wiring=asdict(wiring)) for layer, wiring in wirings.items()
    }
    # All are recorded only after all have passed: a study with one misplaced SAE leaves nothing.
    for layer in wired.values():
        write_manifest(layer)
    return wired


def _run(
    reader: _Reader,
    saes: Mapping[int, SAE],
    layers: dict[int, LayerActivations],
    *,
    shard_tokens: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    # Fill `layers` shard by shard; an entry is replaced as each of its shards reaches the disk.
    # One shard a layer is written while the next is computed, and never two: a shard follows only
    # on one that is on the disk. Leaving, whatever the reason, waits for what is being written.
    per_context = reader.tokens.kept.sum(axis=1)
    n_done, total = 0, int(per_context.sum())
    n_stored = {layer: len(layers[layer].shard_files) for layer in saes}

    def append(layer: int, parts: list[NonZeros]) -> None:
        layers[layer] = write_shard(layers[layer], *concatenate_parts(parts))

    with ThreadPoolExecutor(max_workers=1) as writer:
        writing: list[Future[None]] = []
        for number, (start, stop) in enumerate(_shard_bounds(per_context, shard_tokens)):
            open_layers = [layer for layer in saes if n_stored[layer] <= number]
            if not open_layers:
                n_done += int(per_context[start:stop].sum())
                continue
            parts: dict[int, list[NonZeros]] = {layer: [] for layer in open_layers}
            contexts = start + np.flatnonzero(per_context[start:stop])
            for i in range(0, len(contexts), reader.contexts_per_batch):
                batch = contexts[i : i + reader.contexts_per_batch]
                streams = _kept_streams(reader, batch, open_layers)
                for layer in open_layers:
                    parts[layer] += _nonzero_activations(saes[layer], streams[layer])
                n_done += int(per_context[batch].sum())
                if batch[-1] == contexts[-1]:
                    for written in writing:
                        written.result()
                    writing = [writer.submit(append, layer, parts[layer]) for layer in open_layers]
                if progress is not None:
                    progress(n_done, total)
        for written in writing:
            written.result()


def _shard_bounds(
    per_context: Int64[np.ndarray, " context"], shard_tokens: int
) -> list[tuple[int, int]]:
    # Ranges of contexts, each of at most `shard_tokens` kept tokens and of at least one.
    bounds: list[tuple[int, int]] = []
    start = held = 0
    for context, count in enumerate(per_context.tolist()):
        if held and held + count > shard_tokens:
            bounds.append((start, context))
            start, held = context, 0
        held += count
    if held:
        bounds.append((start, len(per_context)))
    return bounds


def _first_batches(
    reader: _Reader, layers: list[int], n_tokens: int = N_TOKENS
) -> Iterator[Streams]:
    # The streams of the first contexts, until they hold enough kept tokens.
    per_context = reader.tokens.kept.sum(axis=1)
    contexts = np.flatnonzero(per_context)
    enough = int(np.searchsorted(np.cumsum(per_context[contexts]), n_tokens)) + 1
    contexts = contexts[:enough]
    n_batches = math.ceil(len(contexts) / reader.contexts_per_batch)
    for batch in np.array_split(contexts, n_batches):
        yield _kept_streams(reader, batch, layers)


def _kept_streams(
    reader: _Reader, contexts: Int64[np.ndarray, " context"], layers: list[int]
) -> dict[int, Float32[Tensor, "token d_model"]]:
    # What passes the site at the kept positions, in float32, all of it finite, where the SAEs are.
    tokens = reader.tokens
    attended = tokens.attended[contexts]
    n_positions = int(np.flatnonzero(attended.any(axis=0))[-1]) + 1
    attended = attended[:, :n_positions]
    input_ids = torch.from_numpy(tokens.input_ids[contexts, :n_positions].astype(np.int64))
    mask = None if attended.all() else torch.from_numpy(attended.astype(np.int64))
    streams = streams_at(
        reader.model,
        reader.blocks,
        input_ids.to(reader.device),
        None if mask is None else mask.to(reader.device),
        layers,
        site=reader.site,
    )
    kept = torch.from_numpy(tokens.kept[contexts, :n_positions])
    flat = {
        layer: stream[kept.to(stream.device)].float().to(reader.sae_device)
        for layer, stream in streams.items()
    }
    for layer in sorted(flat):
        _check_finite(flat[layer], reader.site.told(layer), tokens, contexts)
    return flat


def _check_finite(
    stream: Float[Tensor, "token d_model"],
    where: str,
    tokens: Tokens,
    contexts: Int64[np.ndarray, " context"],
) -> None:
    # The extremes show a NaN or an infinity in one pass without a temporary array.
    if torch.isfinite(torch.stack(torch.aminmax(stream))).all():
        return
    bad = ~torch.isfinite(stream).all(dim=1)
    row = int(bad.int().argmax())
    rows, positions = np.nonzero(tokens.kept[contexts])
    context, position = int(contexts[rows[row]]), int(positions[row])
    raise ActivationError(
        f"what an SAE reads must be finite, the {where} is not at context {context}, position "
        f"{position} (token id {int(tokens.input_ids[context, position])}): run the model in "
        "float32 or bfloat16, or check its weights"
    )


def _nonzero_activations(sae: SAE, stream: Float32[Tensor, "token d_model"]) -> list[NonZeros]:
    # Part by part of the batch, all in the same memory: what is new to a process costs a pass more.
    parts = in_parts(sae, stream)
    room = torch.empty(len(parts[0]), sae.d_sae, device=stream.device)
    return [encode_sparse(sae, part, out=room[: len(part)]) for part in parts]


def _check_ids(reader: _Reader) -> None:
    embeddings: Any = cast("PreTrainedModel", reader.model).get_input_embeddings()
    n_known, highest = len(embeddings.weight), int(reader.tokens.input_ids.max())
    if highest >= n_known:
        raise TextError(
            f"token ids must be below the model's {n_known:,} embeddings, got {highest:,}: "
            "the text was tokenised for another model"
        )
