"""Gemma Scope: `params.npz`; Gemma Scope 2: `config.json` and `params.safetensors`.

pre = x W_enc + b_enc; f = relu(pre) where pre > threshold; x' = f W_dec + b_dec.

Source: Lieberum et al. (2024), "Gemma Scope: Open Sparse Autoencoders Everywhere All At Once on
Gemma 2", section 2; the model cards of the releases.
"""

import re
from typing import Any

from saelign.errors import FormatError, UnknownNameError
from saelign.saes.formats.reading import (
    Files,
    Layout,
    SaeInfo,
    Tensors,
    check_said,
    check_shapes,
    place_of,
    read_config,
    read_shapes,
    read_tensors,
    renamed,
)
from saelign.saes.formats.single_file import JUMPRELU

_HOOKS = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}
_NAMES_2 = {name: name.lower() for name in JUMPRELU.names}
_MODULES_2 = {
    "resid_post": "output",
    "mlp_out": "post_feedforward_layernorm.output",
    "attn_out": "self_attn.o_proj.input",
}
_LAYOUT_2 = Layout(names=_NAMES_2)


def inspect(files: Files) -> SaeInfo:
    """What the header of `params.npz` and the names of its folders say.

    The file itself says nothing of model, site and layer: the hub has them in its folders, such as
    `gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82`. Those of `-mlp` read what the MLP adds
    to the residual stream, its norm included; those of `-att` the heads' outputs side by side.

    Raises:
        FormatError: The folders tell of another site: a transcoder, or the embeddings.
    """
    parts = files.weights.absolute().parts[:-1]
    model, layer, release = None, None, "res"
    for part in parts:
        if found := re.search(r"gemma-scope-(\w+)-(pt|it)-(\w+)$", part):
            size, tuned, release = found[1], found[2] == "it", found[3]
            model = f"google/gemma-2-{size}" + ("-it" if tuned else "")
            if release not in _HOOKS:
                place_of(f"{release} of {part}", files.path)
        if found := re.fullmatch(r"layer_(\d+)", part):
            layer = int(found[1])
    if "embedding" in parts[-3:]:
        place_of("embedding", files.path)
    shapes, _ = read_shapes(files.weights)
    d_model, d_sae = check_shapes(files.weights, shapes, JUMPRELU)
    hook_name = None if layer is None else f"blocks.{layer}.{_HOOKS[release]}"
    site, layer = place_of(hook_name, files.path)
    return SaeInfo(
        d_model=d_model,
        d_sae=d_sae,
        site=site,
        layer=layer,
        hook_name=hook_name,
        model=model,
        format="gemma_scope",
        architecture="jumprelu",
        activation="jumprelu",
        k=None,
        apply_b_dec_to_input=False,
        normalize="none",
        rescale_by_decoder_norm=False,
        source=str(files.path),
    )


def load(files: Files, info: SaeInfo, device: str) -> Tensors:
    """Its tensors."""
    return renamed(read_tensors(files.weights, device=device), JUMPRELU, info.d_sae)


def inspect_2(files: Files) -> SaeInfo:
    """What a folder of Gemma Scope 2 says of itself.

    Some folders on the hub have no configuration; then the names of the folders say the rest, such
    as `gemma-scope-2-1b-pt/resid_post_all/layer_10_width_262k_l0_small`.

    Raises:
        FormatError: A transcoder, or with an affine connection beside the features.
        UnknownNameError: Another architecture than `jump_relu`.
    """
    config = _from_folders(files) if files.config is None else read_config(files)
    architecture = config.get("architecture", "jump_relu")
    if architecture != "jump_relu":
        raise UnknownNameError.of(f"architecture in {files.path}:", architecture, ("jump_relu",))
    hook_name, hook_out = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    if hook_out is not None and hook_out != hook_name:
        raise FormatError(
            f"an SAE must reconstruct what it reads, {files.path} reads {hook_name!r} and gives "
            f"{hook_out!r}: it is a transcoder"
        )
    if config.get("affine_connection"):
        raise FormatError(
            f"an SAE must reconstruct from its features alone, {files.path} has an affine "
            "connection beside them: choose another"
        )
    shapes, _ = read_shapes(files.weights)
    d_model, d_sae = check_shapes(files.weights, shapes, _LAYOUT_2)
    check_said(files, "width", config.get("width"), d_sae)
    site, layer = place_of(hook_name, files.path)
    return SaeInfo(
        d_model=d_model,
        d_sae=d_sae,
        site=site,
        layer=layer,
        hook_name=hook_name,
        model=config.get("model_name"),
        format="gemma_scope_2",
        architecture="jumprelu",
        activation="jumprelu",
        k=None,
        apply_b_dec_to_input=bool(config.get("apply_b_dec_to_input", False)),
        normalize="none",
        rescale_by_decoder_norm=False,
        source=str(files.path),
    )


def load_2(files: Files, info: SaeInfo, device: str) -> Tensors:
    """Its tensors."""
    return renamed(read_tensors(files.weights, device=device), _LAYOUT_2, info.d_sae)


def _from_folders(files: Files) -> dict[str, Any]:
    parts = files.weights.absolute().parts[:-1]
    config: dict[str, Any] = {}
    for part in parts:
        if found := re.search(r"gemma-scope-2-(\w+-(?:pt|it))$", part):
            config["model_name"] = f"google/gemma-3-{found[1]}"
    if found := re.match(r"layer_(\d+)_width_", parts[-1]):
        module = _MODULES_2.get(parts[-2].removesuffix("_all"))
        config["hf_hook_point_in"] = (
            f"{parts[-2]} of {parts[-1]}" if module is None else f"model.layers.{found[1]}.{module}"
        )
    return config
