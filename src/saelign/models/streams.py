"""The residual stream after a block, taken from the block itself."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig

from saelign.errors import ModelError
from saelign.models.loading import n_layers


class _LastLayerReached(Exception):  # noqa: N818
    """Ends a forward pass of which nothing further is needed."""


def find_blocks(model: nn.Module, path: str | None = None) -> nn.ModuleList:
    """The model's list of transformer blocks.

    Found by its structure: the one outermost list of as many modules as the model has layers, all
    of one class.

    Args:
        model: A causal language model of transformers.
        path: Where the list stands (`model.layers`), if it is not to be looked for.

    Raises:
        ModelError: No such list, several, or no list at `path`.
    """
    count = n_layers(cast("PretrainedConfig", model.config))
    lists = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)
    }
    advice = "name the list of blocks in the study, for instance 'blocks: model.layers'"
    if path is not None:
        if path not in lists:
            raise ModelError(
                f"{path!r} must name the list of blocks, this model's lists are: "
                f"{', '.join(sorted(lists)) or 'none'}"
            )
        return lists[path]
    found = {
        name: module
        for name, module in lists.items()
        if len(module) == count and len({type(block) for block in module}) == 1
    }
    outermost = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    if not outermost:
        raise ModelError(
            f"one list of {count} equal blocks must be found in the model, got none: {advice}"
        )
    if len(outermost) > 1:
        raise ModelError(
            f"one list of {count} equal blocks must be found in the model, got "
            f"{' and '.join(outermost)}: {advice}"
        )
    return found[outermost[0]]


@torch.inference_mode()
def residual_streams(
    model: nn.Module,
    blocks: nn.ModuleList,
    input_ids: Int[Tensor, "context position"],
    attention_mask: Bool[Tensor, "context position"] | Int[Tensor, "context position"] | None,
    layers: Sequence[int],
) -> dict[int, Float[Tensor, "context position d_model"]]:
    """The residual stream after each of the layers asked for; -1 is what enters block 0.

    Taken by hooks on the blocks, since `hidden_states[L]` of transformers is what *enters* block L
    and its last entry has passed the final norm. Nothing runs after the last layer needed.

    Raises:
        ModelError: A layer that the model does not have, or a block that did not run.
    """
    count = len(blocks)
    for layer in layers:
        if not -1 <= layer < count:
            raise ModelError(
                f"layers must be from 0 to {count - 1} (or -1, what enters block 0), got {layer}"
            )
    last = max(layers)
    streams: dict[int, Tensor] = {}

    def keep(layer: int, stream: Tensor) -> None:
        streams[layer] = stream
        if layer == last:
            raise _LastLayerReached

    def keep_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(-1, args[0] if args else kwargs["hidden_states"])

    def keep_output(layer: int) -> Any:
        def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            keep(layer, output[0] if isinstance(output, tuple) else output)

        return hook

    handles = [
        blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True)
        if layer == -1
        else blocks[layer].register_forward_hook(keep_output(layer))
        for layer in sorted(set(layers))
    ]
    try:
        model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    except _LastLayerReached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if absent := sorted(set(layers) - streams.keys()):
        raise ModelError(
            f"every block must run in a forward pass, layers {absent} did not: "
            "is the list of blocks the right one?"
        )
    return streams
