"""SAELens: `cfg.json` and `sae_weights.safetensors`.

A checkpoint of training is read as what training saves in the end: a BatchTopK as the JumpReLU with
the threshold that it has come to, and the scale of the input in `activation_scaler.json`, beside
the weights, folded into them.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch

from saelign.errors import FormatError, UnknownNameError
from saelign.saes.formats.reading import (
    Architecture,
    Files,
    Layout,
    Place,
    SaeInfo,
    Tensors,
    check_k,
    check_shapes,
    fold_decoder_norms,
    local,
    place_of,
    read_config,
    read_shapes,
    read_tensors,
    renamed,
    ungated,
)
from saelign.saes.formats.single_file import JUMPRELU, STANDARD
from saelign.saes.sae import Activation, Normalization

ARCHITECTURES = ("batchtopk", "gated", "jumprelu", "matryoshka_batchtopk", "standard", "topk")
NORMALIZATIONS = ("constant_norm_rescale", "expected_average_only_in", "layer_norm", "none")

_BY_DECODER_NORM = ("batchtopk", "matryoshka_batchtopk", "topk")

_GATED = ("W_enc", "b_gate", "b_mag", "r_mag", "W_dec", "b_dec")
_BATCH_TOPK = Layout(
    names={**STANDARD.names, "threshold": "topk_threshold"}, scalars=frozenset({"threshold"})
)
_LAYOUTS = {
    "standard": STANDARD,
    "topk": STANDARD,
    "batchtopk": _BATCH_TOPK,
    "matryoshka_batchtopk": _BATCH_TOPK,
    "jumprelu": JUMPRELU,
    "gated": Layout(names={name: name for name in _GATED}),
}
_ACTIVATIONS: dict[str, Activation] = {
    "standard": "relu",
    "topk": "topk",
    "batchtopk": "jumprelu",
    "matryoshka_batchtopk": "jumprelu",
    "jumprelu": "jumprelu",
    "gated": "jumprelu",
}
_SCALED = "expected_average_only_in"
SCALER = "activation_scaler.json"
"""The scale of the input, beside the weights of a checkpoint of training."""

_PUBLISHED_SCALES = {
    "jbloom/Gemma-2b-Residual-Stream-SAEs/gemma_2b_blocks.12.hook_resid_post_16384": (
        0.21381838399317255
    ),
}
"""Scales of the input, by repository and folder, which SAELens' registry has and no file there."""

_SCALING = (
    "an SAE with a fine-tuning scaling factor is not supported, {path} has one: "
    "fold it into the decoder and save the SAE again"
)


def inspect(files: Files) -> SaeInfo:
    """What the folder says of itself, in the words of any version of SAELens."""

    def widths(architecture: str) -> tuple[int, int]:
        shapes, _ = read_shapes(files.weights)
        shapes.pop("scaling_factor", None)
        return check_shapes(files.weights, shapes, _LAYOUTS[architecture])

    scaler = files.weights.parent / SCALER
    return inspect_config(
        read_config(files),
        str(files.path),
        str(files.config),
        widths,
        scaler if scaler.is_file() else None,
        has_scale=_published_scale(files) is not None,
    )


def inspect_config(
    cfg: Mapping[str, Any],
    path: str,
    config: str,
    widths: Callable[[str], tuple[int, int]],
    scaler: Place | None = None,
    *,
    has_scale: bool = False,
) -> SaeInfo:
    """What a configuration of SAELens says.

    Args:
        cfg: The configuration.
        path: Where the SAE lies.
        config: Where its configuration lies.
        widths: Gives the widths of the model and of an SAE of such architecture.
        scaler: The file with the scale of the input, if there is one.
        has_scale: Whether the scale is known without one.

    Raises:
        FormatError: It needs what its files do not hold, or is of another site.
        UnknownNameError: An architecture or a normalisation that is not supported.
    """
    # Until version 6 the site stood at the top and TopK was an activation function of "standard".
    metadata: dict[str, Any] = {**cfg, **(cfg.get("metadata") or {})}
    function = cfg.get("activation_fn", cfg.get("activation_fn_str")) or "relu"
    architecture = cfg.get("architecture", "standard")
    k = cfg.get("k")
    if architecture == "standard" and function == "topk":
        architecture = "topk"
    if architecture == "topk" and k is None:
        k = (cfg.get("activation_fn_kwargs") or {}).get("k")
    if architecture not in ARCHITECTURES:
        raise UnknownNameError.of(f"SAE architecture in {path}:", architecture, ARCHITECTURES)
    if architecture != "topk" and function != "relu":
        raise UnknownNameError.of(f"activation_fn in {path}:", function, ("relu", "topk"))
    normalize = _normalize(cfg)
    is_lacking = normalize == _SCALED and scaler is None and not has_scale
    if normalize == "covariance_whitening" or is_lacking:
        raise FormatError(
            f"{path} normalises its input by {normalize!r}, whose statistics are not in its files: "
            "fold them into the weights with SAELens and save the SAE again"
        )
    if normalize not in NORMALIZATIONS:
        raise UnknownNameError.of(f"normalize_activations in {path}:", normalize, NORMALIZATIONS)
    beside: tuple[Place, ...] = ()
    if normalize == _SCALED and scaler is not None:
        _scale_in(scaler)
        beside = (scaler,)
    if normalize == _SCALED:
        normalize = "none"  # folded on loading
    if cfg.get("finetuning_scaling_factor"):
        raise FormatError(_SCALING.format(path=path))
    d_model, d_sae = widths(architecture)
    hook_name = metadata.get("hook_name", metadata.get("hook_point"))
    site, layer = place_of(hook_name, path)
    return SaeInfo(
        d_model=d_model,
        d_sae=d_sae,
        site=site,
        layer=layer,
        hook_name=hook_name,
        model=metadata.get("model_name"),
        format="saelens",
        architecture=cast("Architecture", architecture.removeprefix("matryoshka_")),
        activation=_ACTIVATIONS[architecture],
        k=check_k(config, k, d_sae) if architecture == "topk" else None,
        apply_b_dec_to_input=bool(cfg.get("apply_b_dec_to_input", True)),
        normalize=cast("Normalization", normalize),
        rescale_by_decoder_norm=architecture in _BY_DECODER_NORM
        and bool(cfg.get("rescale_acts_by_decoder_norm", False)),
        source=path,
        beside=beside,
    )


def load(files: Files, info: SaeInfo, device: str) -> Tensors:
    """Its tensors, the scale of the input, decoder norms and gates folded."""
    theirs = read_tensors(files.weights, device=device)
    scaling = theirs.get("scaling_factor")
    if scaling is not None and not torch.allclose(scaling, torch.ones_like(scaling)):
        raise FormatError(_SCALING.format(path=files.path))
    tensors = renamed(theirs, _LAYOUTS[info.architecture], info.d_sae)
    published = _published_scale(files)
    if info.beside:
        tensors = _fold_scale(tensors, _scale_in(info.beside[0]), info)
    elif published is not None and _normalize(read_config(files)) == _SCALED:
        tensors = _fold_scale(tensors, published, info)
    if info.architecture == "gated":
        return ungated(tensors)
    return fold_decoder_norms(tensors) if info.rescale_by_decoder_norm else tensors


def _normalize(cfg: Mapping[str, Any]) -> Any:
    normalize = cfg.get("normalize_activations") or "none"
    return _SCALED if normalize is True else normalize


def _published_scale(files: Files) -> float | None:
    return _PUBLISHED_SCALES.get("/".join(files.weights.absolute().parts[-4:-1]))


def _fold_scale(tensors: Tensors, scale: float, info: SaeInfo) -> Tensors:
    folded = tensors | {
        "W_enc": tensors["W_enc"] * scale,
        "W_dec": tensors["W_dec"] / scale,
        "b_dec": tensors["b_dec"] / scale,
    }
    if info.architecture == "batchtopk" and info.rescale_by_decoder_norm:
        # It is in units of the decoder's norms, which have just been divided.
        folded["threshold"] = tensors["threshold"] / scale
    return folded


def _scale_in(scaler: Place) -> float:
    try:
        scale: Any = json.loads(local(scaler).read_text(encoding="utf-8"))["scaling_factor"]
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{scaler} must be JSON with a 'scaling_factor': {error!r}") from error
    if not (isinstance(scale, int | float) and 0 < scale < math.inf):
        raise FormatError(f"the scaling_factor in {scaler} must be positive, got {scale!r}")
    return float(scale)
