"""What passes a site of a model, taken by hooks on its blocks and their modules."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig

from saelign.errors import ModelError
from saelign.models.loading import n_layers
from saelign.sites import AFTER_BLOCK, Site, SiteName

POST_NORMS = {
    "post_feedforward_layernorm": "post_attention_layernorm",  # Gemma 2 and 3, OLMo 2
    "post_mlp_layernorm": "post_self_attn_layernorm",  # GLM-4
}
"""Norms through which the outputs of MLP and attention pass before they are added. A block that has
the first has the second; the name of the second alone means another thing in Llama."""

MODULES: dict[SiteName, tuple[str, ...]] = {
    "mlp_out": (
        "mlp.dense_4h_to_h",  # BLOOM: its mlp adds the residual stream itself
        "ffn.down_proj",  # MPT: the same
        "mlp",
        "feed_forward",  # RWKV
        "ffn",  # DistilBERT
        "mlp_block",  # RecurrentGemma
        "fc2",  # OPT
        "output.dense",  # BERT: what follows adds and normalises
    ),
    "attn_out": (
        "attention.output.dense",  # BERT
        "self_attention.dense",  # BLOOM; Falcon's is the same as its attention
        "self_attn",
        "attention",
        "self_attention",
        "attn",
    ),
    "attn_z": (
        "attention.output.dense",
        *(
            f"{attention}.{projection}"
            for attention in ("self_attn", "attention", "self_attention", "attn", "attn.attention")
            for projection in ("o_proj", "out_proj", "c_proj", "dense", "Wo", "out_lin")
        ),
    ),
}
"""Where in a block a site's module stands: the first path that the block has. What the structure
does not tell: BLOOM's dense_4h_to_h is looked for before mlp, since GPT-NeoX adds outside of it."""


class _LastLayerReached(Exception):  # noqa: N818
    """Ends a forward pass of which nothing further is needed."""


def find_blocks(model: nn.Module, path: str | None = None) -> nn.ModuleList:
    """The model's list of transformer blocks.

    Found by its structure: the one outermost list of as many modules as the model has layers, all
    of one class; of a model that reads more than text, that of the language model.

    Args:
        model: A language model of transformers.
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
    if len(outermost) > 1:
        outermost = [n for n in outermost if "language_model" in n.split(".")] or outermost
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


def find_module(block: nn.Module, site: Site) -> nn.Module:
    """The module of a block whose output (of `attn_z`: whose input) is what passes the site.

    Args:
        block: One of the model's blocks.
        site: Which; the residual stream is the block's own.

    Raises:
        ModelError: The block has no such module.
    """
    modules = dict(block.named_modules())
    if site.module is not None:
        if site.module not in modules:
            raise ModelError(
                f"{site.module!r} must name a module of the block, those of "
                f"{type(block).__name__} are: {', '.join(name for name in modules if name)}"
            )
        return modules[site.module]
    if site.name in ("resid_post", "resid_pre"):
        return block
    places = MODULES[site.name]
    for after_mlp, after_attention in POST_NORMS.items():
        if after_mlp in modules and site.name != "attn_z":
            places = (after_mlp,) if site.name == "mlp_out" else (after_attention,)
    for place in places:
        if place in modules:
            return modules[place]
    raise ModelError(
        f"a block must have one of {', '.join(places)} to be read at {site.name}, "
        f"{type(block).__name__} has {', '.join(name for name, _ in block.named_children())}: "
        "name its module in the study, for instance 'module: mlp', or choose another site"
    )


@torch.inference_mode()
def streams_at(
    model: nn.Module,
    blocks: nn.ModuleList,
    input_ids: Int[Tensor, "context position"],
    attention_mask: Bool[Tensor, "context position"] | Int[Tensor, "context position"] | None,
    layers: Sequence[int],
    site: Site = AFTER_BLOCK,
) -> dict[int, Float[Tensor, "context position d_model"]]:
    """What passes a site of each of the blocks asked for.

    Taken by hooks, since `hidden_states[L]` of transformers is what *enters* block L and its last
    entry has passed the final norm. Nothing runs after the last layer needed. What MLP and
    attention give is what they add to the residual stream: of a model that normalises it before
    (Gemma 2 and 3), the norm's output.

    Args:
        model: Any language model.
        blocks: What `find_blocks` gives.
        input_ids: What it reads.
        attention_mask: Zero or false at padding; None if there is none.
        layers: Of which blocks; after a block, -1 is what enters block 0.
        site: Where in the block.

    Raises:
        ModelError: A layer that the model does not have, a block without that site, or one that did
            not run.
    """
    count, first = len(blocks), site.first_layer
    for layer in layers:
        if not first <= layer < count:
            entering = " (or -1, what enters block 0)" if first == -1 else ""
            raise ModelError(f"layers must be from 0 to {count - 1}{entering}, got {layer}")
    last = max(layers)
    streams: dict[int, Tensor] = {}
    shape = input_ids.shape

    def keep(layer: int, stream: Tensor) -> None:
        # Falcon adds to its MLP's output in place; OPT's MLP reads all as one row.
        streams[layer] = stream.clone().reshape(*shape, stream.shape[-1])
        if layer == last:
            raise _LastLayerReached

    def input_of(layer: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keep(layer, args[0] if args else kwargs["hidden_states"])

        return hook

    def output_of(layer: int) -> Callable[..., None]:
        def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            keep(layer, output[0] if isinstance(output, tuple) else output)

        return hook

    handles = []
    try:
        for layer in sorted(set(layers)):
            read = find_module(blocks[max(layer, 0)], site)
            if layer == -1 or site.name in ("resid_pre", "attn_z"):
                handle = read.register_forward_pre_hook(input_of(layer), with_kwargs=True)
            else:
                handle = read.register_forward_hook(output_of(layer))
            handles.append(handle)
        model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    except _LastLayerReached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if absent := sorted(set(layers) - streams.keys()):
        raise ModelError(
            f"every block must run in a forward pass, the {site.told(absent[0])} was not "
            "reached: is the list of blocks the right one?"
        )
    return streams
