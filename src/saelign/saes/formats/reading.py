"""What every format needs: configurations, headers, tensors, and the words for what is wrong."""

import json
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saelign.errors import FormatError, SaelignError
from saelign.saes.hub import HubPath
from saelign.saes.sae import Activation, Normalization
from saelign.sites import SiteName, site_of_hook

Architecture = Literal["standard", "topk", "batchtopk", "jumprelu", "gated"]

Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, Tensor]

Place = Path | HubPath
"""Where a file or folder lies, on disk or on a hub."""

_LONGEST_HEADER = 100_000_000  # what the format allows


@dataclass(frozen=True, slots=True, kw_only=True)
class SaeInfo:
    """What an SAE says of itself, read from headers alone.

    Attributes:
        d_model: Width of what it reads.
        d_sae: How many features it has.
        site: Where in a block it reads; None: it does not say.
        layer: Of which block; None: it does not say.
        hook_name: Both in its own words; None: it does not say.
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
    site: SiteName | None
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
    beside: tuple[Place, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where an SAE lies.

    Attributes:
        path: As it was given.
        config: What describes it; None: the weights say all.
        weights: Its tensors.
    """

    path: Place
    config: Place | None
    weights: Place


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
    file = local(files.config)
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{files.config} must be JSON: {error}") from error
    if not isinstance(config, dict):
        raise FormatError(f"{files.config} must be a JSON object, got {type(config).__name__}")
    return cast("dict[str, Any]", config)


def local(place: Place) -> Path:
    """The file on disk; one on a hub is downloaded unless it is in the cache."""
    return place.local() if isinstance(place, HubPath) else place


def read_shapes(weights: Place) -> tuple[Shapes, dict[str, str]]:
    """The shapes of the tensors in a file and what it says beside them, without the tensors.

    A `.pt` file has no header of its own: it is opened as weights only, mapped and not read; one
    on a hub is downloaded. Of other files on a hub only the header is sent.

    Raises:
        FormatError: It cannot be read, or would run code.
    """
    if weights.suffix == ".npz":
        return _npz_shapes(weights), {}
    if weights.suffix == ".pt":
        return {name: tuple(tensor.shape) for name, tensor in read_pickle(weights).items()}, {}
    if isinstance(weights, HubPath):
        return _safetensors_shapes(weights)
    try:
        with safe_open(weights, framework="numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return shapes, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise FormatError(
            f"an SAE must be a safetensors file, {weights} is none: {error}"
        ) from error


def _safetensors_shapes(weights: HubPath) -> tuple[Shapes, dict[str, str]]:
    # safe_open wants a file on disk; on a hub the header is a range of bytes.
    try:
        with weights.open("rb") as stream:
            n_bytes = stream.seek(0, 2)
            stream.seek(0)
            length = int.from_bytes(stream.read(8) or b"", "little")
            if not 2 <= length <= min(n_bytes - 8, _LONGEST_HEADER):
                raise ValueError(f"a header of {length:,} bytes in a file of {n_bytes:,}")
            header: Any = json.loads((stream.read(length) or b"").decode())
        metadata = header.pop("__metadata__", {})
        shapes = {str(name): tuple(map(int, told["shape"])) for name, told in header.items()}
        spans = sorted(tuple(map(int, told["data_offsets"])) for told in header.values())
        starts, stops = [a for a, _ in spans], [b for _, b in spans]
        if [*starts, n_bytes - 8 - length] != [0, *stops]:
            raise ValueError("its tensors do not fill it")
        return shapes, {str(key): str(value) for key, value in metadata.items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, SaelignError):
            raise
        raise FormatError(
            f"an SAE must be a whole safetensors file, {weights} is none: {error}"
        ) from error


def _npz_shapes(weights: Place) -> Shapes:
    shapes: Shapes = {}
    try:
        with weights.open("rb") as whole, zipfile.ZipFile(cast("BinaryIO", whole)) as archive:
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
        # zipfile says of whatever fails while it looks for the end that this is no zip file.
        for known in (error, error.__context__):
            if isinstance(known, SaelignError):
                raise known from known.__cause__
        raise FormatError(
            f"{weights} must be a whole .npz file, it is not (half downloaded?): {error}"
        ) from error
    return shapes


def read_pickle(weights: Place) -> Tensors:
    """The tensors of a state dict saved by torch, opened as weights only.

    Raises:
        FormatError: It cannot be read, would run code, or is no state dict.
    """
    file = local(weights)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about pickles that are then refused
            state: Any = torch.load(
                file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
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


def read_tensors(weights: Place, *, device: str, without: Collection[str] = frozenset()) -> Tensors:
    """All tensors of a file but those `without`, in float32, under the names in the file.

    Raises:
        FormatError: They cannot be read, or hold NaN or infinite values.
    """
    tensors: Tensors = {}
    file = local(weights)
    try:
        if weights.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                kept = [name for name in arrays if name not in without]
                tensors = {name: torch.from_numpy(np.asarray(arrays[name])) for name in kept}
        elif weights.suffix == ".pt":
            state = read_pickle(weights)
            tensors = {name: state[name] for name in state if name not in without}
        else:
            with safe_open(file, framework="pt", device=device) as opened:
                kept = [name for name in opened.keys() if name not in without]  # noqa: SIM118
                tensors = {name: opened.get_tensor(name) for name in kept}
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


def check_shapes(weights: Place, shapes: Shapes, layout: Layout) -> tuple[int, int]:
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


def check_k(config: object, k: object, d_sae: int) -> int:
    """The number of features that may speak at a token, as `config` says it.

    Raises:
        FormatError: It is none from 1 to `d_sae`.
    """
    if not (isinstance(k, int) and 1 <= k <= d_sae):
        raise FormatError(f"k of a TopK SAE must be from 1 to {d_sae}, {config} says {k!r}")
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


def place_of(hook_name: str | None, path: object) -> tuple[SiteName | None, int | None]:
    """The site and the block that an SAE reads by its own word; None twice: it does not say.

    Raises:
        FormatError: It is none of `SITES`.
    """
    if hook_name is None:
        return None, None
    place = site_of_hook(hook_name)
    if place is None:
        raise FormatError(
            "an SAE must read the residual stream, or what the MLP or the attention of a block "
            f"gives, {path} reads {hook_name!r}: choose one of hook_resid_post, hook_resid_pre, "
            "hook_mlp_out, hook_attn_out or attn.hook_z"
        )
    return place
