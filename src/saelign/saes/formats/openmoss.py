"""Llama Scope and other SAEs of OpenMOSS's Language-Model-SAEs (`lm_saes`).

`hyperparams.json` with `checkpoints/final.safetensors`, later `config.json` with
`sae_weights.safetensors`. With x the input scaled by its norm (s x, see below),

pre = x W_enc + b_enc; f = pre where act(pre ||W_dec||) > 0; x' = f W_dec + b_dec,

the decoder norms ||W_dec|| only with `sparsity_include_decoder_norm`. `token-wise` scales each
token to norm sqrt(d_model); `dataset-wise` all of them by s = sqrt(d_model) / average norm, which
is folded into the biases: activations are then in the model's own units, as the library has them.

The one `jump_relu_threshold` of Llama Scope is in those units already: the library compares after
folding, and the published thresholds grow with the average norm of their layer. The learnt
`log_jumprelu_threshold`, one a feature, is not: it is folded with the biases.

Source: He et al. (2024), "Llama Scope: Extracting Millions of Features from Llama-3.1-8B with
Sparse Autoencoders", section 3; the library's own encoder and loading.
"""

import math
from typing import Any

import torch

from saelign.errors import FormatError, UnknownNameError
from saelign.saes.formats.reading import (
    Files,
    Layout,
    SaeInfo,
    Shapes,
    Tensors,
    check_k,
    check_said,
    check_shapes,
    fold_decoder_norms,
    place_of,
    read_config,
    read_shapes,
    read_tensors,
    renamed,
)
from saelign.saes.sae import Activation, Normalization

ACTIVATIONS = ("jumprelu", "relu", "topk")
NORMALIZATIONS: dict[str, Normalization] = {
    "dataset-wise": "none",
    "inference": "none",
    "token-wise": "constant_norm_rescale",
}

_NORM = "dataset_average_activation_norm"
_LINEAR = {
    "W_enc": "encoder.weight",
    "b_enc": "encoder.bias",
    "W_dec": "decoder.weight",
    "b_dec": "decoder.bias",
}
_LATER = {"W_enc": "W_E", "b_enc": "b_E", "W_dec": "W_D", "b_dec": "b_D"}
_THRESHOLDS = ("log_jumprelu_threshold", "activation_function.log_jumprelu_threshold")


def inspect(files: Files) -> SaeInfo:
    """What the folder says of itself.

    Raises:
        FormatError: A transcoder, a gated linear encoder, a BatchTopK, or a norm or threshold that
            is nowhere in the files.
        UnknownNameError: An activation function or normalisation that is not supported.
    """
    config, path = read_config(files), files.path
    kind = config.get("sae_type", "sae")
    if kind != "sae":
        raise UnknownNameError.of(f"sae_type in {path}:", kind, ("sae",))
    hook_name, hook_out = config.get("hook_point_in"), config.get("hook_point_out")
    if hook_out not in (None, hook_name):
        raise FormatError(
            f"an SAE must reconstruct what it reads, {path} reads {hook_name!r} and gives "
            f"{hook_out!r}: it is a transcoder"
        )
    if config.get("use_glu_encoder"):
        raise FormatError(f"an SAE with a gated linear encoder is not supported, {path} has one")
    activation = _activation(files, config)
    norm = config.get("norm_activation", "dataset-wise")
    if norm not in NORMALIZATIONS:
        raise UnknownNameError.of(f"norm_activation in {path}:", norm, NORMALIZATIONS)
    shapes, _ = read_shapes(files.weights)
    if norm == "dataset-wise" and f"{_NORM}.{hook_name}" not in shapes:
        _norm_said(files, config)
    d_model, d_sae = check_shapes(files.weights, shapes, _layout(files, config, shapes, activation))
    check_said(files, "d_model", config.get("d_model"), d_model)
    check_said(files, "d_sae", config.get("d_sae"), d_sae)
    site, layer = place_of(hook_name, path)
    return SaeInfo(
        d_model=d_model,
        d_sae=d_sae,
        site=site,
        layer=layer,
        hook_name=hook_name,
        model=config.get("model_name"),
        format="openmoss",
        architecture="standard" if activation == "relu" else activation,
        activation=activation,
        k=check_k(files.config, config.get("top_k"), d_sae) if activation == "topk" else None,
        apply_b_dec_to_input=bool(
            config.get("use_decoder_bias", True)
            # The library's default changed with the name of the configuration.
            and config.get("apply_decoder_bias_to_pre_encoder", _is_early(files))
        ),
        normalize=NORMALIZATIONS[norm],
        rescale_by_decoder_norm=activation != "relu"
        and bool(config.get("sparsity_include_decoder_norm", True)),
        source=str(path),
    )


def load(files: Files, info: SaeInfo, device: str) -> Tensors:
    """Its tensors, in the model's own units and with decoder norms folded."""
    config = read_config(files)
    shapes, _ = read_shapes(files.weights)
    is_scaled = config.get("norm_activation", "dataset-wise") == "dataset-wise"
    # Where no average norm counts, the library saves whatever lay in memory in its place.
    unused = {name for name in shapes if name.startswith(f"{_NORM}.") and not is_scaled}
    theirs = read_tensors(files.weights, device=device, without=unused)
    tensors = renamed(theirs, _layout(files, config, shapes, info.activation), info.d_sae)
    tensors.setdefault("b_dec", torch.zeros(info.d_model, device=device))
    scale = 1.0
    if is_scaled:
        key = f"{_NORM}.{info.hook_name}"
        average = float(theirs[key]) if key in theirs else _norm_said(files, config)
        if not average > 0:
            raise FormatError(f"the average norm must be positive, {files.path} has {average}")
        scale = math.sqrt(info.d_model) / average
    tensors["b_enc"] = tensors["b_enc"] / scale
    tensors["b_dec"] = tensors["b_dec"] / scale
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].exp() / scale
    elif info.activation == "jumprelu":
        tensors["threshold"] = torch.full(
            (info.d_sae,), float(config["jump_relu_threshold"]), device=device
        )
    return fold_decoder_norms(tensors) if info.rescale_by_decoder_norm else tensors


def _is_early(files: Files) -> bool:
    return files.config is not None and files.config.name == "hyperparams.json"


def _activation(files: Files, config: dict[str, Any]) -> Activation:
    name = str(config.get("act_fn", "relu")).lower()
    if name == "batchtopk":
        raise FormatError(
            f"a BatchTopK SAE must hold the threshold that reading single tokens needs, "
            f"{files.path} has act_fn 'batchtopk': convert it to 'jumprelu' with lm_saes"
        )
    if name == "topk" and (config.get("jump_relu_threshold") or 0) > 0:
        return "jumprelu"  # as the library does when it loads one
    for activation in ("jumprelu", "relu", "topk"):
        if name == activation:
            return activation
    raise UnknownNameError.of(f"act_fn in {files.path}:", config.get("act_fn"), ACTIVATIONS)


def _layout(files: Files, config: dict[str, Any], shapes: Shapes, activation: Activation) -> Layout:
    names = dict(_LATER if "W_E" in shapes else _LINEAR)
    if not config.get("use_decoder_bias", True):
        del names["b_dec"]
    threshold = next((name for name in _THRESHOLDS if name in shapes), None)
    if activation == "jumprelu":
        if threshold is not None:
            names["threshold"] = threshold
        elif not isinstance(config.get("jump_relu_threshold"), int | float):
            raise FormatError(
                f"a JumpReLU SAE must have a threshold, {files.config} has no jump_relu_threshold "
                f"and {files.weights} no {_THRESHOLDS[0]}"
            )
    return Layout(
        names=names,
        transposed=frozenset() if "W_E" in shapes else frozenset({"W_enc", "W_dec"}),
        ignored=frozenset(name for name in shapes if name.startswith(f"{_NORM}.")),
    )


def _norm_said(files: Files, config: dict[str, Any]) -> float:
    norms: Any = config.get(_NORM)
    if isinstance(norms, dict):
        for key in ("in", config.get("hook_point_in")):
            if isinstance(norms.get(key), int | float):
                return float(norms[key])
    raise FormatError(
        f"an SAE normalised over its data set must say the average norm, neither {files.config} "
        f"nor {files.weights} has {_NORM} of {config.get('hook_point_in')!r}"
    )
