"""What an SAE computes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor
from torch.nn.functional import embedding_bag

from saelign.sites import SiteName

Activation = Literal["relu", "topk", "jumprelu"]
Normalization = Literal["none", "layer_norm", "constant_norm_rescale"]

NonZeros = tuple[Int64[np.ndarray, "_"], Int32[np.ndarray, "_"], Float32[np.ndarray, "_"]]
"""Activations kept sparse: how many a token, of which features, how large."""

_SPARSE_BELOW = 1 / 32
# The share of active features below which a row of the decoder an activation costs less than the
# product with all of it (the same at 1/27; 2,304 x 16,384, two cores).


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SAE:
    """A sparse autoencoder of what passes a site of a model, in float32.

    Attributes:
        W_enc: Encoder; None, as `b_enc`, of an object of another library, which encodes itself.
        b_enc: Added before the activation.
        W_dec: Decoder; one row a feature.
        b_dec: Added to the reconstruction.
        threshold: Of JumpReLU: below or at it a feature is silent.
        k: Of TopK: how many features may speak at a token.
        activation: What turns pre-activations into activations.
        apply_b_dec_to_input: Whether `b_dec` is taken off the input first.
        normalize: What is done to the input first, and undone to the reconstruction.
        hook_name: Where it was trained, in its own words.
        site: Where in a block that is; None: it does not say.
        layer: Of which block; None: it does not say.
        model: The model that it was trained on, as it says itself.
        encoder: Computes the activations, of an object of another library; else None.
        decoder: Computes the reconstruction from them, where that object does it itself.
        sha256: The hash of its files.
        source: Where it was loaded from.
    """

    W_enc: Float32[Tensor, "d_model d_sae"] | None
    b_enc: Float32[Tensor, " d_sae"] | None
    W_dec: Float32[Tensor, "d_sae d_model"]
    b_dec: Float32[Tensor, " d_model"]
    threshold: Float32[Tensor, " d_sae"] | None
    k: int | None
    activation: Activation
    apply_b_dec_to_input: bool
    normalize: Normalization
    hook_name: str | None
    layer: int | None
    sha256: str
    source: str
    site: SiteName | None = None
    model: str | None = None
    encoder: Callable[[Tensor], Tensor] | None = None
    decoder: Callable[[Tensor], Tensor] | None = None

    @property
    def d_model(self) -> int:
        """The width of what it reads."""
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        """How many features it has."""
        return self.W_dec.shape[0]


@torch.inference_mode()
def encode(sae: SAE, x: Float[Tensor, "token d_model"]) -> Float32[Tensor, "token d_sae"]:
    """The feature activations, none negative, dense: meant for one batch at a time.

    A JumpReLU threshold below zero does not let a negative activation through.
    """
    dense, bounds = before_bounds(sae, x)
    return dense.masked_fill_(dense <= bounds, 0)


@torch.inference_mode()
def before_bounds(
    sae: SAE, x: Float[Tensor, "token d_model"], *, out: Tensor | None = None
) -> tuple[Float32[Tensor, "token d_sae"], Float32[Tensor, " d_sae"]]:
    """What `encode` gives, before what is not above its feature's bound is set to zero.

    The bound is zero, or the threshold of JumpReLU where that is higher. Whoever keeps only the
    activations that are not zero need not have the zeros written.

    Args:
        sae: The SAE.
        x: What it reads.
        out: Where the result may go; None: new memory.
    """
    zero = sae.W_dec.new_zeros(sae.d_sae)
    if sae.encoder is not None:
        return sae.encoder(x.float()), zero
    assert sae.W_enc is not None
    assert sae.b_enc is not None
    x, _, _ = _normalized(sae, x.float())
    if sae.apply_b_dec_to_input:
        x = x - sae.b_dec
    dense = torch.addmm(sae.b_enc, x, sae.W_enc, out=out)
    if sae.threshold is None and sae.k is not None:
        values, features = dense.topk(sae.k, dim=1)
        dense = dense.zero_().scatter_(1, features, values)
    return dense, zero if sae.threshold is None else sae.threshold.maximum(zero)


@torch.inference_mode()
def encode_sparse(
    sae: SAE, x: Float[Tensor, "token d_model"], *, out: Tensor | None = None
) -> NonZeros:
    """What `encode` gives, without its zeros (and without NaN), in memory.

    Args:
        sae: The SAE.
        x: What it reads.
        out: Where the pre-activations go; None: new memory.
    """
    dense, bounds = before_bounds(sae, x, out=out)
    if dense.device.type == "cpu":
        return nonzero_above(dense, bounds)
    active = dense > bounds
    counts, features = active.sum(dim=1), active.nonzero()[:, 1].int()
    return counts.cpu().numpy(), features.cpu().numpy(), dense[active].cpu().numpy()


def nonzero_above(
    dense: Float32[Tensor, "token d_sae"], bounds: Float32[Tensor, " d_sae"]
) -> NonZeros:
    """The entries above the bound of their column, row by row; a NaN is above none. On the CPU."""
    from saelign.saes.kernel import count_above, fill_above  # numba: half a second

    counts = np.empty(len(dense), dtype=np.int64)
    count_above(dense.numpy(), bounds.numpy(), counts)
    stops = counts.cumsum()
    n_values = int(counts.sum())
    features, values = np.empty(n_values, dtype=np.int32), np.empty(n_values, dtype=np.float32)
    fill_above(dense.numpy(), bounds.numpy(), stops, features, values)
    return counts, features, values


def in_parts(sae: SAE, x: Float[Tensor, "token d_model"]) -> tuple[Float[Tensor, "_ d_model"], ...]:
    """The tokens in consecutive parts, all but equal, each small enough to be encoded densely.

    8 MiB of activations where that is at least 1,024 tokens, since dense passes over what stays in
    the cache are two to three times faster (1,536 features, two cores); and no fewer tokens than
    that, since the product then spends a fifth of its time on reading the weights (2,304 x 16,384),
    unless it takes fewer to stay under 256 MiB.
    """
    most = max(2**21 // sae.d_sae, min(1024, 2**26 // sae.d_sae), 1)
    n_parts = max(1, math.ceil(len(x) / most))
    return x.split(max(1, math.ceil(len(x) / n_parts)))


@torch.inference_mode()
def decode(
    sae: SAE, feature_acts: Float[Tensor, "token d_sae"]
) -> Float32[Tensor, "token d_model"]:
    """What the activations stand for, in the SAE's own (normalised) input space."""
    if sae.decoder is not None:
        return sae.decoder(feature_acts.float())
    return torch.addmm(sae.b_dec, feature_acts.float(), sae.W_dec)


@torch.inference_mode()
def reconstruct(sae: SAE, x: Float[Tensor, "token d_model"]) -> Float32[Tensor, "token d_model"]:
    """The residual stream as the SAE sees it: decode(encode(x)), normalisation undone."""
    return reconstruct_from(sae, x, encode(sae, x))


@torch.inference_mode()
def reconstruct_from(
    sae: SAE, x: Float[Tensor, "token d_model"], feature_acts: Float[Tensor, "token d_sae"]
) -> Float32[Tensor, "token d_model"]:
    """The reconstruction of `x` from activations already at hand."""
    _, scale, shift = _normalized(sae, x.float())
    return decode(sae, feature_acts) * scale + shift


@torch.inference_mode()
def reconstruct_counting(
    sae: SAE, x: Float[Tensor, "token d_model"]
) -> tuple[Float32[Tensor, "token d_model"], Int64[Tensor, " d_sae"]]:
    """The reconstruction, and on how many tokens each feature is active.

    Where few features are active, only their rows of the decoder are read: nine times faster than
    the dense product at 65 of 16,384, equal but for the order in which the rows are added.
    """
    dense, bounds = before_bounds(sae, x)
    if dense.device.type == "cpu" and sae.decoder is None:
        counts, features, values = nonzero_above(dense, bounds)
        if len(values) < _SPARSE_BELOW * dense.numel():
            _, scale, shift = _normalized(sae, x.float())
            decoded = embedding_bag(
                torch.from_numpy(features).long(),
                sae.W_dec,
                torch.from_numpy(counts.cumsum() - counts),
                mode="sum",
                per_sample_weights=torch.from_numpy(values),
            )
            fired = torch.from_numpy(np.bincount(features, minlength=sae.d_sae))
            return (decoded + sae.b_dec) * scale + shift, fired
    feature_acts = dense.masked_fill_(dense <= bounds, 0)
    return reconstruct_from(sae, x, feature_acts), (feature_acts > 0).sum(dim=0)


def _normalized(
    sae: SAE, x: Float32[Tensor, "token d_model"]
) -> tuple[Float32[Tensor, "token d_model"], Tensor | float, Tensor | float]:
    # The normalised input, and what undoes it on the way out: * scale + shift.
    if sae.normalize == "layer_norm":
        # As SAELens: the n - 1 standard deviation, an epsilon on the way in, none on the way out.
        shift = x.mean(dim=1, keepdim=True)
        centred = x - shift
        scale = centred.std(dim=1, keepdim=True)
        return centred / (scale + 1e-5), scale, shift
    if sae.normalize == "constant_norm_rescale":
        scale = x.norm(dim=1, keepdim=True) / sae.d_model**0.5
        return x / scale, scale, 0.0
    return x, 1.0, 0.0
