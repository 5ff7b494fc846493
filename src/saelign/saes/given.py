"""SAEs that are Python objects of any library."""

import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from saelign.errors import FormatError
from saelign.saes.sae import SAE

_PROBES = 32


def sae_of(given: Any, *, name: str = "given", sha256: str | None = None) -> SAE:
    """The SAE that an object of any library is, which goes on encoding by itself.

    It needs `encode(x)`, giving a token's activations of all features (or, as sparsify's, the
    largest in `top_acts` and `top_indices`), and its decoder: `W_dec` of d_sae x d_model, or a
    linear layer `decoder`. What it has of `decode` and `b_dec` is used. Encoding must treat each
    token by itself: BatchTopK in training does not. An `SAE` is returned as it is.

    Args:
        given: The object, in evaluation mode and on the device of the model.
        name: What it is called in results.
        sha256: What tells it from others; None: made from its tensors, its class, and what it does
            to some random tokens.

    Raises:
        FormatError: It lacks one of the two, or they do not fit.
    """
    if isinstance(given, SAE):
        return given
    kind = f"{type(given).__module__}.{type(given).__qualname__}"
    must = (
        "an SAE given as an object must have encode(x), and W_dec of d_sae x d_model (or a linear "
        f"layer `decoder`), {kind}"
    )
    encode = getattr(given, "encode", None)
    if not callable(encode):
        raise FormatError(f"{must} has no encode")
    W_dec = _decoder(given, must)
    d_sae, d_model = W_dec.shape
    b_dec = getattr(given, "b_dec", None)
    b_dec = _float(b_dec) if isinstance(b_dec, Tensor) else W_dec.new_zeros(d_model)

    def activations(x: Tensor) -> Tensor:
        return _dense(encode(x), len(x), d_sae, must)

    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(_PROBES, d_model, generator=generator).to(W_dec.device)
    with torch.inference_mode():
        acts = activations(probes)
        alone = activations(probes[:1])
    if not torch.isfinite(acts).all() or (acts < 0).any():
        raise FormatError(f"{must} gives activations that are negative or not finite")
    if not torch.allclose(acts[:1], alone, rtol=1e-3, atol=1e-3 * float(acts.max())):
        raise FormatError(
            f"{must} gives a token other activations when it comes with others: put it into "
            "evaluation mode (of BatchTopK, with its threshold)"
        )
    return SAE(
        W_enc=None,
        b_enc=None,
        W_dec=W_dec,
        b_dec=b_dec,
        threshold=None,
        k=None,
        activation="relu",
        apply_b_dec_to_input=False,
        normalize="none",
        hook_name=None,
        layer=None,
        sha256=sha256 or _hash(given, kind, W_dec, acts),
        source=f"{name} ({kind})",
        encoder=activations,
        decoder=_decode(getattr(given, "decode", None), acts, d_model, must),
    )


def _decoder(given: Any, must: str) -> Float32[Tensor, "d_sae d_model"]:
    W_dec, layer = getattr(given, "W_dec", None), getattr(given, "decoder", None)
    if W_dec is None and isinstance(layer, nn.Linear):
        W_dec = layer.weight.T
    if not isinstance(W_dec, Tensor) or W_dec.ndim != 2:
        raise FormatError(f"{must} has no decoder")
    return _float(W_dec)


def _float(tensor: Tensor) -> Tensor:
    return tensor.detach().float().contiguous()


def _dense(encoded: Any, n_tokens: int, d_sae: int, must: str) -> Float32[Tensor, "token d_sae"]:
    if hasattr(encoded, "top_acts") and hasattr(encoded, "top_indices"):
        values = encoded.top_acts.float()
        return values.new_zeros(n_tokens, d_sae).scatter_(1, encoded.top_indices, values)
    acts = encoded[0] if isinstance(encoded, tuple) else encoded
    if not isinstance(acts, Tensor) or acts.shape != (n_tokens, d_sae):
        got = list(acts.shape) if isinstance(acts, Tensor) else type(acts).__name__
        raise FormatError(f"{must} gives {got} for {n_tokens} tokens and {d_sae} rows of W_dec")
    return acts.float()


def _decode(decode: Callable[..., Any] | None, acts: Tensor, d_model: int, must: str) -> Any:
    # sparsify's takes the largest activations and their features; there W_dec and b_dec do.
    if decode is None:
        return None
    asked = [
        parameter
        for parameter in inspect.signature(decode).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if len(asked) != 1:
        return None
    with torch.inference_mode():
        decoded = decode(acts)
    if not isinstance(decoded, Tensor) or decoded.shape != (len(acts), d_model):
        raise FormatError(f"{must} decodes {len(acts)} tokens to something else than their stream")
    return lambda acts: decode(acts).float()


def _hash(given: Any, kind: str, W_dec: Tensor, acts: Tensor) -> str:
    state = given.state_dict() if isinstance(given, nn.Module) else vars(given)
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    digest = hashlib.sha256(kind.encode())
    for name, tensor in sorted((tensors | {"W_dec": W_dec, "": acts}).items()):
        digest.update(f"\0{name} {list(tensor.shape)}\0".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
