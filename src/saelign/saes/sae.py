"""What an SAE computes."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor

Activation = Literal["relu", "topk", "jumprelu"]
Normalization = Literal["none", "layer_norm", "constant_norm_rescale"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SAE:
    """A sparse autoencoder of the residual stream, in float32.

    Attributes:
        W_enc: Encoder.
        b_enc: Added before the activation.
        W_dec: Decoder; one row a feature.
        b_dec: Added to the reconstruction.
        threshold: Of JumpReLU: below or at it a feature is silent.
        k: Of TopK: how many features may speak at a token.
        activation: What turns pre-activations into activations.
        apply_b_dec_to_input: Whether `b_dec` is taken off the input first.
        normalize: What is done to the input first, and undone to the reconstruction.
        hook_name: The site it was trained at, as it says itself.
        layer: The block after which it reads, as it says itself; -1 is what enters block 0.
        sha256: The hash of its files.
        source: Where it was loaded from.
    """

    W_enc: Float32[Tensor, "d_model d_sae"]
    b_enc: Float32[Tensor, " d_sae"]
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

    @property
    def d_model(self) -> int:
        """The width of the model that it reads."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """How many features it has."""
        return self.W_enc.shape[1]


@torch.inference_mode()
def encode(sae: SAE, x: Float[Tensor, "token d_model"]) -> Float32[Tensor, "token d_sae"]:
    """The feature activations, none negative, dense: meant for one batch at a time.

    A JumpReLU threshold below zero does not let a negative activation through.
    """
    x, _, _ = _normalized(sae, x.float())
    if sae.apply_b_dec_to_input:
        x = x - sae.b_dec
    pre = torch.addmm(sae.b_enc, x, sae.W_enc)
    if sae.threshold is not None:
        return pre.relu() * (pre > sae.threshold)
    if sae.k is not None:
        values, features = pre.topk(sae.k, dim=1)
        return torch.zeros_like(pre).scatter_(1, features, values.relu_())
    return pre.relu_()


def in_parts(sae: SAE, x: Float[Tensor, "token d_model"]) -> tuple[Float[Tensor, "_ d_model"], ...]:
    """The tokens in consecutive parts, each small enough to be encoded densely.

    8 MiB of activations where that is at least 512 tokens, since what stays in the cache is encoded
    two to three times faster (1,536 features, two cores); fewer tokens only to stay under 256 MiB.
    """
    return x.split(max(2**21 // sae.d_sae, min(512, 2**26 // sae.d_sae), 1))


@torch.inference_mode()
def decode(
    sae: SAE, feature_acts: Float[Tensor, "token d_sae"]
) -> Float32[Tensor, "token d_model"]:
    """What the activations stand for, in the SAE's own (normalised) input space."""
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
