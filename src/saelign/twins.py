"""SAEs for an untrained twin: drawn at random, or trained on the twin as the model's own were."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from torch import nn

from saelign.activations import LayerActivations, sample_streams
from saelign.models import sae_device
from saelign.saes import SAE, load_sae
from saelign.saes.training import random_sae, save_sae, train_sae
from saelign.sites import AFTER_BLOCK, Site
from saelign.text import Tokens

TRAINING_TOKENS = 1_000_000
"""Tokens of the study's text that a twin's SAE is trained on, at most."""

SAMPLE_TOKENS = 10_000
"""Tokens that the sparsity of a random SAE is set by."""


def made_saes(
    how: str,
    *,
    like: Mapping[int, LayerActivations],
    load: Callable[[], nn.Module],
    blocks_path: str | None,
    site: Site,
    tokens: Tokens,
    store: Path,
    fingerprint: str,
    seed: int,
    device: str,
    progress: Callable[[int, int], None],
) -> dict[int, SAE]:
    """An SAE for each layer of a twin, as wide and as sparse as the model's own.

    Kept in the store, so that a second run does not make them again.

    Args:
        how: `random`: decoder rows drawn at random, the encoder their transpose. `trained`: trained
            on the twin's residual streams over the study's text.
        like: The activations of the model's own SAEs, by layer.
        load: Gives the twin; called only if an SAE is missing.
        blocks_path: Where it keeps its blocks.
        site: Where in them it is read.
        tokens: The text.
        store: Under which folder they are kept.
        fingerprint: Tells the twin's weights from any others.
        seed: Draws and trains them.
        device: Where to train.
        progress: Told how many layers are done.

    Raises:
        ActivationError: A residual stream that is not finite or too short to train on.
        StorageError: The store cannot be written.
    """
    folder = store / "saes"
    paths: dict[int, Path] = {}
    for layer, acts in like.items():
        key = {
            "how": how,
            "model": fingerprint,
            "tokens": tokens.sha256,
            "layer": layer,
            **({} if site == AFTER_BLOCK else {"site": asdict(site)}),
            "d_sae": acts.d_sae,
            "l0": round(acts.n_values / acts.n_tokens, 3),
            "seed": seed,
            "version": 1,
        }
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        paths[layer] = folder / f"{name}.safetensors"
    missing = [layer for layer, path in paths.items() if not path.is_file()]
    if missing:
        streams = sample_streams(
            load=load,
            blocks_path=blocks_path,
            layers=missing,
            tokens=tokens,
            n_tokens=TRAINING_TOKENS if how == "trained" else SAMPLE_TOKENS,
            device=device,
            site=site,
        )
        for done, layer in enumerate(missing):
            progress(done, len(missing))
            acts, l0 = like[layer], like[layer].n_values / like[layer].n_tokens
            if how == "trained":
                sae, _ = train_sae(
                    streams[layer], d_sae=acts.d_sae, k=max(1, round(l0)), seed=seed + layer
                )
            else:
                width = int(streams[layer].shape[1])
                sae = random_sae((width, acts.d_sae), streams[layer], l0=l0, seed=seed + layer)
            save_sae(sae, paths[layer])
        progress(len(missing), len(missing))
    return {layer: load_sae(path, device=sae_device(device)) for layer, path in paths.items()}
