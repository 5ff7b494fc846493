"""What every format needs: configurations, headers, tensors, and the words for what is wrong."""

import json
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saelign.errors import FormatError
from saelign.saes.sae import Activation, Normalization

Architecture = Literal["standard", "topk", "batchtopk", "jumprelu", "gated"]

Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class SaeInfo:
    """What an SAE says of itself, read from headers alone.

    Attributes:
        d_model: Width of the model that it reads.
        d_sae: How many features it has.
        layer: The block after which it reads; -1 is what enters block 0; None: it does not say.
        hook_name: The site in its own words; None: it does not say.
        model: The model that it was trained on, in its own words; None: it does not say.
        format: One of the names in `FORMATS`, or `safetensors` for one file.
        architecture: As published.
        activation: What computes the same: BatchTopK with its threshold and gated SAEs are
            `jumprelu`.
        k: Of TopK.
        apply_b_dec_to_input: Whether `b_dec` is taken off the input first.
        normalize: What is done to the input first.
        rescale_by_decoder_norm: Whether pre-activations are multiplied by the decoder rows' norms.
        source: Where it lies.
        beside: Files beside configuration and weights that count for what it computes.
    """

    d_model: int
    d_sae: int
    layer: int | None
    hook_name: str | None
    model: str | None
    format: str
    architecture: Architecture
    activation: Activation
    k: int | None
    apply_b_dec_to_input: bool
    normalize: Normalization
    rescale_by_decoder_norm: bool
    source: str
    beside: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where an SAE lies.

    Attributes:
        path: As it was given.
        config: What describes it; None: the weights say all.
        weights: Its tensors.
    """

    path: Path
    config: Path | None
    weights: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the tensors of a format are called and lie.

    Attributes:
        names: Ours to theirs.
        transposed: Those of ours that lie the other way round.
        scalars: Those of ours that are one number for all features.
        ignored: Theirs, allowed but not needed.
    """

    names: Mapping[str, str]
    transposed: frozenset[str] = frozenset()
    scalars: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()


def read_config(files: Files) -> dict[str, Any]:
    """The JSON object that describes the SAE.

    Raises:
        FormatError: It is none.
    """
    assert files.config is not None
    try:
        config: Any = json.loads(files.config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{files.config} must be JSON: {error}") from error
    if not isinstance(config, dict):
        raise FormatError(f"{files.config} must be a JSON object, got {type(config).__name__}")
    return cast("dict[str, Any]", config)


def read_shapes(weights: Path) -> tuple[Shapes, dict[str, str]]:
    """The shapes of the tensors in a file and what it says beside them, without the tensors.

    A `.pt` file has no header of its own: it is opened as weights only, mapped and not read.

    Raises:
        FormatError: It cannot be read, or would run code.
    """
    if weights.suffix == ".npz":
        return _npz_shapes(weights), {}
    if weights.suffix == ".pt":
        return {name: tuple(tensor.shape) for name, tensor in read_pickle(weights).items()}, {}
    try:
        with safe_open(weights, framework="numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return shapes, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise FormatError(
            f"an SAE must be a safetensors file, {weights} is none: {error}"
        ) from error


def _npz_shapes(weights: Path) -> Shapes:
    shapes: Shapes = {}
    try:
        with zipfile.ZipFile(weights) as archive:
            for member in archive.namelist():
                with archive.open(member) as stream:
                    version = np.lib.format.read_magic(stream)
                    read = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape, _, dtype = read(stream)
                if dtype.hasobject:
                    raise FormatError(
                        f"{weights} must hold numbers, {member} holds Python objects, which would "
                        "run code when read: refused"
                    )
                shapes[member.removesuffix(".npy")] = shape
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(
            f"{weights} must be a whole .npz file, it is not (half downloaded?): {error}"
        ) from error
    return shapes


def read_pickle(weights: Path) -> Tensors:
    """The tensors of a state dict saved by torch, opened as weights only.

    Raises:
        FormatError: It cannot be read, would run code, or is no state dict.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about pickles that are then refused
            state: Any = torch.load(
                weights, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(weights)
            )
    except pickle.UnpicklingError as error:
        raise FormatError(
            f"{weights} must hold tensors only, it holds Python objects, which would run code when "
            "read: refused; save its state dict again"
        ) from error
    # What the weights-only unpickler raises on bytes that are no pickle depends on the bytes.
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError) as error:
        raise FormatError(
            f"{weights} must be a whole file as torch.save writes it, it is not (half downloaded?)"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise FormatError(
            f"{weights} must hold a state dict, names with tensors, got {type(state).__name__}"
        )
    return {str(name): tensor for name, tensor in state.items()}


def read_tensors(weights: Path, *, device: str, without: Collection[str] = frozenset()) -> Tensors:
    """All tensors of a file but those `without`, in float32, under the names in the file.

    Raises:
        FormatError: They cannot be read, or hold NaN or infinite values.
    """
    tensors: Tensors = {}
    try:
        if weights.suffix == ".npz":
            with np.load(weights, allow_pickle=False) as arrays:
                kept = [name for name in arrays if name not in without]
                tensors = {name: torch.from_numpy(np.asarray(arrays[name])) for name in kept}
        elif weights.suffix == ".pt":
            state = read_pickle(weights)
            tensors = {name: state[name] for name in state if name not in without}
        else:
            with safe_open(weights, framework="pt", device=device) as file:
                kept = [name for name in file.keys() if name not in without]  # noqa: SIM118
                tensors = {name: file.get_tensor(name) for name in kept}
        # A mapped file must not change under the SAE's feet: clone what float() left in place.
        tensors = {
            name: tensor.to(device=device, dtype=torch.float32, copy=weights.suffix == ".pt")
            for name, tensor in tensors.items()
        }
    except (zipfile.BadZipFile, zlib.error, SafetensorError, OSError, EOFError) as error:
        raise FormatError(f"{weights} must be a whole file, it is not: {error}") from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise FormatError(
                f"weights must be finite, {name} of {weights} holds NaN or infinite values"
            )
    return tensors


def renamed(tensors: Tensors, layout: Layout, d_sae: int) -> Tensors:
    """The tensors under our names, the way ours lie; taken out of `tensors`, to save memory."""
    ours: Tensors = {}
    for name, theirs in layout.names.items():
        tensor = tensors.pop(theirs)
        if name in layout.transposed:
            tensor = tensor.T
        if name in layout.scalars:
            tensor = tensor.reshape(1).expand(d_sae)
        ours[name] = tensor.contiguous()
    return ours


def check_shapes(weights: Path, shapes: Shapes, layout: Layout) -> tuple[int, int]:
    """The width of the model and the number of features, after every tensor was found to fit.

    Raises:
        FormatError: A tensor is missing, of another shape, or not known.
    """
    needed = set(layout.names.values())
    if missing := sorted(needed - shapes.keys()):
        raise FormatError(
            f"{weights} must hold {', '.join(sorted(needed))}, it lacks {', '.join(missing)} "
            f"and holds {', '.join(sorted(shapes)) or 'nothing'}"
        )
    if unknown := sorted(shapes.keys() - needed - layout.ignored):
        raise FormatError(
            f"{weights} must hold {', '.join(sorted(needed))} and nothing else, "
            f"it also holds {', '.join(unknown)}: an SAE of another kind would be misread"
        )
    flipped = "W_enc" in layout.transposed
    encoder = layout.names["W_enc"]
    order = "d_sae x d_model" if flipped else "d_model x d_sae"
    if len(shapes[encoder]) != 2:
        raise FormatError(f"{encoder} of {weights} must be {order}, got {shapes[encoder]}")
    rows, columns = shapes[encoder]
    d_model, d_sae = (columns, rows) if flipped else (rows, columns)
    for name, theirs in layout.names.items():
        if name in layout.scalars:
            fitting: tuple[int, ...] = ()
        elif name in ("W_enc", "W_dec"):
            fitting = (d_model, d_sae) if name == "W_enc" else (d_sae, d_model)
            fitting = fitting[::-1] if name in layout.transposed else fitting
        else:
            fitting = (d_model,) if name == "b_dec" else (d_sae,)
        if shapes[theirs] != fitting:
            raise FormatError(
                f"{theirs} of {weights} must have shape {fitting} beside a {encoder} of "
                f"{rows} x {columns} ({order}), got {shapes[theirs]}"
            )
    return d_model, d_sae


def check_said(files: Files, what: str, said: object, found: int) -> None:
    """Nothing, if what the configuration says of a size is what the tensors have, or nothing.

    Raises:
        FormatError: It says otherwise.
    """
    if said is not None and said != found:
        raise FormatError(
            f"{what} must be that of the weights, {files.config} says {said!r} and "
            f"{files.weights} has {found}: do both belong to the same SAE?"
        )


def check_k(files: Files, k: object, d_sae: int) -> int:
    """The number of features that may speak at a token.

    Raises:
        FormatError: It is none from 1 to `d_sae`.
    """
    if not (isinstance(k, int) and 1 <= k <= d_sae):
        raise FormatError(f"k of a TopK SAE must be from 1 to {d_sae}, {files.config} says {k!r}")
    return k


def fold_decoder_norms(tensors: Tensors) -> Tensors:
    """The same reconstructions from a decoder with rows of unit length.

    Pre-activations and the activations are then multiplied by what the rows' norms were.
    """
    norms = tensors["W_dec"].norm(dim=1).clamp_min(1e-8)
    return tensors | {
        "W_enc": tensors["W_enc"] * norms,
        "b_enc": tensors["b_enc"] * norms,
        "W_dec": tensors["W_dec"] / norms[:, None],
    }


def ungated(tensors: Tensors) -> Tensors:
    """The JumpReLU that computes what a gated SAE with shared encoder computes.

    With z = x W_enc a feature is on where z + b_gate > 0 and is then relu(exp(r_mag) z + b_mag).
    In terms of what is inside that relu, it is on above b_mag - exp(r_mag) b_gate.

    Source: Rajamanoharan et al. (2024), "Improving Dictionary Learning with Gated Sparse
    Autoencoders", equations 7 to 9 and appendix H.
    """
    scale = tensors["r_mag"].exp()
    return {
        "W_enc": tensors["W_enc"] * scale,
        "b_enc": tensors["b_mag"],
        "W_dec": tensors["W_dec"],
        "b_dec": tensors["b_dec"],
        "threshold": tensors["b_mag"] - scale * tensors["b_gate"],
    }


def layer_of(hook_name: str | None, path: Path) -> int | None:
    """The block after which a site lies; -1 is what enters block 0.

    Raises:
        FormatError: It is not in the residual stream.
    """
    if hook_name is None:
        return None
    if found := re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|post)", hook_name):
        return int(found[1]) - (found[2] == "pre")
    # The block module itself, as transformers names it: its output.
    if found := re.fullmatch(r"(?:\w+\.)*(?:layers|h|blocks)\.(\d+)(?:\.output)?", hook_name):
        return int(found[1])
    raise FormatError(
        f"an SAE must read the residual stream before or after a block, {path} reads "
        f"{hook_name!r}: choose one of hook_resid_pre or hook_resid_post"
    )
