"""Which tokens a direction in the residual stream speaks for."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

BLOCK_BYTES = 2**26
"""Of the logits that are in memory at once."""


def unembedding_of(model: nn.Module, d_model: int) -> Float[Tensor, "token d_model"] | None:
    """The matrix that turns the residual stream into logits; None where none can be read.

    A model without a head for tokens has none, and quantized weights are no matrix.
    """
    find: Any = getattr(model, "get_output_embeddings", None)
    weight = None if find is None else getattr(find(), "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.ndim != 2:
        return None
    return weight.detach() if weight.shape[1] == d_model else None


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
