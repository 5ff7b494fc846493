"""SAEs from disk: one safetensors file, or a folder of SAELens."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saelign.errors import FormatError, MissingFileError, UnknownNameError
from saelign.saes.sae import SAE, Activation, Normalization

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
ARCHITECTURES = ("jumprelu", "standard", "topk")
NORMALIZATIONS = ("constant_norm_rescale", "layer_norm", "none")
UNFOLDED = ("covariance_whitening", "expected_average_only_in")


@dataclass(frozen=True, slots=True, kw_only=True)
class SaeInfo:
    """What an SAE says of itself, read from headers alone.

    Attributes:
        d_model: Width of the model that it reads.
        d_sae: How many features it has.
        layer: The block after which it reads; -1 is what enters block 0; None: it does not say.
        hook_name: The site in its own words; None: it does not say.
        format: `safetensors` (one file) or `saelens` (a folder).
        activation: `relu`, `topk` or `jumprelu`.
        k: Of TopK.
        apply_b_dec_to_input: Whether `b_dec` is taken off the input first.
        normalize: What is done to the input first.
        rescale_by_decoder_norm: Whether pre-activations are multiplied by the decoder rows' norms.
        source: Where it lies.
    """

    d_model: int
    d_sae: int
    layer: int | None
    hook_name: str | None
    format: Literal["safetensors", "saelens"]
    activation: Activation
    k: int | None
    apply_b_dec_to_input: bool
    normalize: Normalization
    rescale_by_decoder_norm: bool
    source: str


def inspect_sae(path: Path) -> SaeInfo:
    """What the SAE at `path` says of itself; reads headers, no weights.

    One safetensors file holds `W_enc`, `b_enc`, `W_dec`, `b_dec` and, for JumpReLU, `threshold`;
    nothing is taken off its input. A folder of SAELens holds `cfg.json` and
    `sae_weights.safetensors`.

    Raises:
        MissingFileError: A file is not there.
        FormatError: It cannot be read, its tensors do not fit, or it needs what is not supported.
        UnknownNameError: An architecture or a normalisation that is not supported.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"an SAE must be a file or a SAELens folder, {path} is not there")
    if path.is_dir():
        for name in (CFG, WEIGHTS):
            if not (path / name).is_file():
                raise MissingFileError(
                    f"a SAELens folder must hold {CFG} and {WEIGHTS}, {path} lacks {name}"
                )
        return _saelens_info(path)
    shapes, metadata = _header(path)
    activation: Activation = "jumprelu" if "threshold" in shapes else "relu"
    width, d_sae = _check_shapes(path, shapes, activation)
    hook_name = metadata.get("hook_name")
    return SaeInfo(
        d_model=width,
        d_sae=d_sae,
        layer=_layer_of(hook_name, path),
        hook_name=hook_name,
        format="safetensors",
        activation=activation,
        k=None,
        apply_b_dec_to_input=False,
        normalize="none",
        rescale_by_decoder_norm=False,
        source=str(path),
    )


def load_sae(path: Path, *, device: str = "cpu") -> SAE:
    """The SAE at `path`, in float32; which format it has is seen from what is there.

    A TopK SAE that chooses by pre-activation times decoder norm gets its decoder norms folded into
    the encoder: the same activations, with decoder rows of unit length.

    Raises:
        MissingFileError: A file is not there.
        FormatError: It cannot be read, its tensors do not fit, or it needs what is not supported.
        UnknownNameError: An architecture or a normalisation that is not supported.
    """
    path = Path(path)
    info = inspect_sae(path)
    weights = path / WEIGHTS if path.is_dir() else path
    tensors: dict[str, Tensor] = {}
    with safe_open(weights, framework="pt", device=device) as file:
        for name in file.keys():  # noqa: SIM118
            tensors[name] = file.get_tensor(name).float()
            if not torch.isfinite(tensors[name]).all():
                raise FormatError(
                    f"weights must be finite, {name} of {weights} holds NaN or infinite values"
                )
    scaling = tensors.get("scaling_factor")
    if scaling is not None and not torch.allclose(scaling, torch.ones_like(scaling)):
        raise FormatError(_SCALING.format(path=path))
    if info.rescale_by_decoder_norm:
        norms = tensors["W_dec"].norm(dim=1).clamp_min(1e-8)
        tensors["W_enc"] = tensors["W_enc"] * norms
        tensors["b_enc"] = tensors["b_enc"] * norms
        tensors["W_dec"] = tensors["W_dec"] / norms[:, None]
    digest = hashlib.sha256()
    for file in [path / CFG, weights] if path.is_dir() else [weights]:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return SAE(
        W_enc=tensors["W_enc"].contiguous(),
        b_enc=tensors["b_enc"],
        W_dec=tensors["W_dec"].contiguous(),
        b_dec=tensors["b_dec"],
        threshold=tensors["threshold"] if info.activation == "jumprelu" else None,
        k=info.k,
        activation=info.activation,
        apply_b_dec_to_input=info.apply_b_dec_to_input,
        normalize=info.normalize,
        hook_name=info.hook_name,
        layer=info.layer,
        sha256=digest.hexdigest(),
        source=str(path),
    )


_SCALING = (
    "an SAE with a fine-tuning scaling factor is not supported, {path} has one: "
    "fold it into the decoder and save the SAE again"
)


def _saelens_info(path: Path) -> SaeInfo:
    try:
        cfg: Any = json.loads((path / CFG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{path / CFG} must be JSON: {error}") from error
    if not isinstance(cfg, dict):
        raise FormatError(f"{path / CFG} must be a JSON object, got {type(cfg).__name__}")
    cfg = cast("dict[str, Any]", cfg)
    # Until version 6 the site stood at the top and TopK was an activation function of "standard".
    metadata = {**cfg, **(cfg.get("metadata") or {})}
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
    normalize = cfg.get("normalize_activations") or "none"
    normalize = "expected_average_only_in" if normalize is True else normalize
    if normalize in UNFOLDED:
        raise FormatError(
            f"{path} normalises its input by {normalize!r}, whose statistics are not in its files: "
            "fold them into the weights with SAELens and save the SAE again"
        )
    if normalize not in NORMALIZATIONS:
        raise UnknownNameError.of(f"normalize_activations in {path}:", normalize, NORMALIZATIONS)
    if cfg.get("finetuning_scaling_factor"):
        raise FormatError(_SCALING.format(path=path))
    shapes, _ = _header(path / WEIGHTS)
    shapes.pop("scaling_factor", None)
    activation = cast("Activation", {"standard": "relu"}.get(architecture, architecture))
    width, d_sae = _check_shapes(path / WEIGHTS, shapes, activation)
    if activation == "topk" and not (isinstance(k, int) and 1 <= k <= d_sae):
        raise FormatError(f"k of a TopK SAE must be from 1 to {d_sae}, {path / CFG} says {k!r}")
    hook_name = metadata.get("hook_name", metadata.get("hook_point"))
    return SaeInfo(
        d_model=width,
        d_sae=d_sae,
        layer=_layer_of(hook_name, path),
        hook_name=hook_name,
        format="saelens",
        activation=activation,
        k=k if activation == "topk" else None,
        apply_b_dec_to_input=bool(cfg.get("apply_b_dec_to_input", True)),
        normalize=cast("Normalization", normalize),
        rescale_by_decoder_norm=activation == "topk"
        and bool(cfg.get("rescale_acts_by_decoder_norm", False)),
        source=str(path),
    )


def _header(weights: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    try:
        with safe_open(weights, framework="numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return shapes, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise FormatError(
            f"an SAE must be a safetensors file, {weights} is none: {error}"
        ) from error


def _check_shapes(
    weights: Path, shapes: dict[str, tuple[int, ...]], activation: Activation
) -> tuple[int, int]:
    needed = {"W_enc", "b_enc", "W_dec", "b_dec"} | (
        {"threshold"} if activation == "jumprelu" else set()
    )
    if missing := sorted(needed - shapes.keys()):
        raise FormatError(
            f"{weights} must hold {', '.join(sorted(needed))}, it lacks {', '.join(missing)} "
            f"and holds {', '.join(sorted(shapes)) or 'nothing'}"
        )
    if unknown := sorted(shapes.keys() - needed):
        raise FormatError(
            f"{weights} must hold {', '.join(sorted(needed))} and nothing else, "
            f"it also holds {', '.join(unknown)}: an SAE of another kind would be misread"
        )
    if len(shapes["W_enc"]) != 2:
        raise FormatError(f"W_enc of {weights} must be d_model x d_sae, got {shapes['W_enc']}")
    d_model, d_sae = shapes["W_enc"]
    fitting = {"b_enc": (d_sae,), "W_dec": (d_sae, d_model), "b_dec": (d_model,)}
    for name, shape in (fitting | {"threshold": (d_sae,)}).items():
        if name in needed and shapes[name] != shape:
            raise FormatError(
                f"{name} of {weights} must have shape {shape} beside a W_enc of "
                f"{d_model} x {d_sae} (d_model x d_sae), got {shapes[name]}"
            )
    return d_model, d_sae


def _layer_of(hook_name: str | None, path: Path) -> int | None:
    if hook_name is None:
        return None
    if found := re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|post)", hook_name):
        return int(found[1]) - (found[2] == "pre")
    # The block module itself, as transformers names it: its output.
    if found := re.fullmatch(r"(?:\w+\.)*(?:layers|h|blocks)\.(\d+)", hook_name):
        return int(found[1])
    raise FormatError(
        f"an SAE must read the residual stream before or after a block, {path} reads "
        f"{hook_name!r}: choose one of hook_resid_pre or hook_resid_post"
    )
