"""dictionary_learning: `config.json` and `ae.pt`, the latter opened as weights only.

`AutoEncoder`, `AutoEncoderTopK`, `BatchTopKSAE`, `MatryoshkaBatchTopKSAE` and `GatedAutoEncoder`
take the decoder's bias off their input, `AutoEncoderNew` and `JumpReluAutoEncoder` do not. The
BatchTopK of a single token is a threshold, the one that training left in the file.

Source: the library's own classes; Bussmann et al. (2024), "BatchTopK Sparse Autoencoders",
section 3.
"""

import re
from dataclasses import dataclass
from typing import Any, cast

from saelign.errors import FormatError, UnknownNameError
from saelign.saes.formats.reading import (
    Architecture,
    Files,
    Layout,
    SaeInfo,
    Tensors,
    check_k,
    check_said,
    check_shapes,
    fold_decoder_norms,
    place_of,
    read_config,
    read_pickle,
    read_tensors,
    renamed,
    ungated,
)
from saelign.saes.sae import Activation


@dataclass(frozen=True, slots=True, kw_only=True)
class _Class:
    architecture: Architecture
    activation: Activation
    apply_b_dec_to_input: bool
    layout: Layout


_LINEAR = {"W_enc": "encoder.weight", "W_dec": "decoder.weight"}
_BIASES = {"b_enc": "encoder.bias", "b_dec": "b_dec"}
_OURS = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
_TRANSPOSED = frozenset(_LINEAR)
_SCALAR = frozenset({"threshold"})

CLASSES = {
    "AutoEncoder": _Class(
        architecture="standard",
        activation="relu",
        apply_b_dec_to_input=True,
        layout=Layout(
            names={**_LINEAR, "b_enc": "encoder.bias", "b_dec": "bias"}, transposed=_TRANSPOSED
        ),
    ),
    "AutoEncoderNew": _Class(
        architecture="standard",
        activation="relu",
        apply_b_dec_to_input=False,
        layout=Layout(
            names={**_LINEAR, "b_enc": "encoder.bias", "b_dec": "decoder.bias"},
            transposed=_TRANSPOSED,
        ),
    ),
    "AutoEncoderTopK": _Class(
        architecture="topk",
        activation="topk",
        apply_b_dec_to_input=True,
        layout=Layout(
            names={**_LINEAR, **_BIASES},
            transposed=_TRANSPOSED,
            ignored=frozenset({"k", "threshold"}),
        ),
    ),
    "BatchTopKSAE": _Class(
        architecture="batchtopk",
        activation="jumprelu",
        apply_b_dec_to_input=True,
        layout=Layout(
            names={**_LINEAR, **_BIASES, "threshold": "threshold"},
            transposed=_TRANSPOSED,
            scalars=_SCALAR,
            ignored=frozenset({"k"}),
        ),
    ),
    "MatryoshkaBatchTopKSAE": _Class(
        architecture="batchtopk",
        activation="jumprelu",
        apply_b_dec_to_input=True,
        layout=Layout(names=_OURS, scalars=_SCALAR, ignored=frozenset({"k", "group_sizes"})),
    ),
    "JumpReluAutoEncoder": _Class(
        architecture="jumprelu",
        activation="jumprelu",
        apply_b_dec_to_input=False,
        layout=Layout(names=_OURS),
    ),
    "GatedAutoEncoder": _Class(
        architecture="gated",
        activation="jumprelu",
        apply_b_dec_to_input=True,
        layout=Layout(
            names={
                **_LINEAR,
                "b_gate": "gate_bias",
                "b_mag": "mag_bias",
                "r_mag": "r_mag",
                "b_dec": "decoder_bias",
            },
            transposed=_TRANSPOSED,
        ),
    ),
}
"""By the library's name."""


def inspect(files: Files) -> SaeInfo:
    """What the folder says of itself.

    Raises:
        FormatError: Files that do not belong together, or a BatchTopK without its threshold.
        UnknownNameError: A class that is none of `CLASSES`.
    """
    trainer = _trainer(files)
    name = trainer.get("dict_class")
    if name not in CLASSES:
        raise UnknownNameError.of(f"dict_class in {files.config}:", name, CLASSES)
    kind = CLASSES[name]
    state = read_pickle(files.weights)
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    if kind.architecture == "batchtopk" and (
        "threshold" not in state or (shapes["threshold"] == () and float(state["threshold"]) < 0)
    ):
        raise FormatError(
            f"a BatchTopK SAE must hold the threshold that reading single tokens needs, "
            f"{files.weights} has none or one that was never set: train it past "
            "threshold_start_step, or set the threshold from data"
        )
    d_model, d_sae = check_shapes(files.weights, shapes, kind.layout)
    check_said(files, "activation_dim", trainer.get("activation_dim"), d_model)
    check_said(files, "dict_size", trainer.get("dict_size"), d_sae)
    k = None
    if kind.activation == "topk":
        k = check_k(files.config, trainer.get("k"), d_sae)
        if "k" in state:
            check_said(files, "k", k, int(state["k"]))
    hook_name = _hook_name(files, trainer)
    site, layer = place_of(hook_name, files.path)
    return SaeInfo(
        d_model=d_model,
        d_sae=d_sae,
        site=site,
        layer=layer,
        hook_name=hook_name,
        model=trainer.get("lm_name"),
        format="dictionary_learning",
        architecture=kind.architecture,
        activation=kind.activation,
        k=k,
        apply_b_dec_to_input=kind.apply_b_dec_to_input,
        normalize="none",
        rescale_by_decoder_norm=name == "AutoEncoder",  # as the library does on loading one
        source=str(files.path),
    )


def load(files: Files, info: SaeInfo, device: str) -> Tensors:
    """Its tensors, decoder norms and gates folded."""
    kind = CLASSES[cast("str", _trainer(files)["dict_class"])]
    theirs = read_tensors(files.weights, device=device)
    tensors = renamed(theirs, kind.layout, info.d_sae)
    if kind.architecture == "gated":
        return ungated(tensors)
    return fold_decoder_norms(tensors) if info.rescale_by_decoder_norm else tensors


def _trainer(files: Files) -> dict[str, Any]:
    trainer: Any = read_config(files).get("trainer")
    if not isinstance(trainer, dict):
        raise FormatError(
            f"{files.config} must have a 'trainer' with its 'dict_class', got {trainer!r}"
        )
    return cast("dict[str, Any]", trainer)


def _hook_name(files: Files, trainer: dict[str, Any]) -> str | None:
    # The site stands in submodule_name where it stands at all, such as mlp_out_layer3; the
    # library's own scripts read the output of a block, or with io "in" what enters it.
    layer, site = trainer.get("layer"), trainer.get("submodule_name")
    if not isinstance(layer, int):
        return None
    buffer: Any = read_config(files).get("buffer") or {}
    enters = buffer.get("io") == "in"
    if site is not None:
        found = re.search(r"resid_(pre|post)|(mlp|attn)_out", site)
        if found is None:
            return site
        if found[2] is not None:
            return f"blocks.{layer}.hook_{found[2]}_out"
        enters = enters or found[1] == "pre"
    return f"blocks.{layer}.hook_resid_{'pre' if enters else 'post'}"
