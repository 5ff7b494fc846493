"""Which tokens a direction in the residual stream speaks for."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from jaxtyping import Float, Float32, Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from saelign.models.loading import auto_class, load_config

BLOCK_BYTES = 2**26
"""Of the logits that are in memory at once."""


IN_CHECKPOINTS = {"lm_head.weight": "embed_out.weight"}
"""What GPT-NeoX's unembedding is called in every checkpoint, and its class renames."""


def read_unembedding(
    name: str, *, revision: str | None = None
) -> Float[Tensor, "token d_model"] | None:
    """The unembedding of a model on disk or in the hub's cache, without loading the model.

    None where the model must be loaded to have it: weights that are no safetensors, or that the
    model's class renames as it loads them.

    Raises:
        ModelError: There is no such model.
    """
    config = load_config(name, revision=revision)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    head = getattr(model.get_output_embeddings(), "weight", None)
    tensors = [n for n, weight in model.named_parameters(remove_duplicate=False) if weight is head]
    tensors += [IN_CHECKPOINTS[n] for n in tensors if n in IN_CHECKPOINTS]
    for file in _weight_files(name, revision, tensors):
        try:
            with safe_open(file, framework="pt") as weights:
                there = set(weights.keys())
                for tensor in tensors:
                    if tensor in there:
                        return weights.get_tensor(tensor)
        except (OSError, SafetensorError):
            return None
    return None


def _weight_files(name: str, revision: str | None, tensors: list[str]) -> Iterator[str]:
    def find(file: str) -> str | None:
        if Path(name).is_dir():
            path = Path(name) / file
            return str(path) if path.is_file() else None
        # What the model was loaded from lies in the cache: nothing is fetched for this alone.
        cached = try_to_load_from_cache(name, file, revision=revision)
        return cached if isinstance(cached, str) else None

    if (index := find("model.safetensors.index.json")) is not None:
        shards = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        found = map(find, dict.fromkeys(shards[tensor] for tensor in tensors if tensor in shards))
    else:
        found = iter([find("model.safetensors")])
    yield from filter(None, found)


def has_direct_path(config: PretrainedConfig) -> bool:
    """Whether logits are the stream times a matrix, but for a normalisation; not of encoders."""
    return auto_class(config) is AutoModelForCausalLM


def unembedding_of(model: nn.Module) -> Float[Tensor, "token d_model"] | None:
    """The matrix that turns the residual stream into logits; None where none can be read.

    A model without a head for tokens has none, and quantized weights are no matrix.
    """
    find: Any = getattr(model, "get_output_embeddings", None)
    weight = None if find is None else getattr(find(), "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.ndim != 2:
        return None
    return weight.detach()


@torch.inference_mode()
def promoted_tokens(
    unembedding: Float[Tensor, "token d_model"],
    decoder: Float[Tensor, "feature d_model"],
    *,
    top: int,
) -> tuple[Int64[np.ndarray, "feature top"], Float32[np.ndarray, "feature top"]]:
    """The tokens whose logits each decoder row raises most, and by how much.

    The direct path alone: the row times the unembedding. What the blocks between make of the
    direction is left out, and so is the last normalisation, which scales it.

    Args:
        unembedding: Of the model.
        decoder: A row a feature.
        top: How many tokens.
    """
    weight = unembedding.float()
    rows = decoder.to(weight.device, torch.float32)
    step = max(1, BLOCK_BYTES // (4 * len(weight)))
    found = [(block @ weight.T).topk(top, dim=1) for block in rows.split(step)]
    ids = torch.cat([each.indices for each in found])
    logits = torch.cat([each.values for each in found])
    return ids.cpu().numpy(), logits.cpu().numpy()
