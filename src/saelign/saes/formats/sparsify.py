"""EleutherAI's sparsify (once `sae`): `cfg.json` and `sae.safetensors`, in a folder per hookpoint.

pre = (x - b_dec) W_enc' + b_enc, relu, the k largest of each token; x' = f W_dec + b_dec.

Source: Gao et al. (2024), "Scaling and evaluating sparse autoencoders", section 2.3; the library's
own encoder.
"""

import re

from saelign.errors import FormatError, UnknownNameError
from saelign.saes.formats.reading import (
    Files,
    Layout,
    SaeInfo,
    Tensors,
    check_k,
    check_said,
    check_shapes,
    place_of,
    read_config,
    read_shapes,
    read_tensors,
    renamed,
)

_LAYOUT = Layout(
    names={"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"},
    transposed=frozenset({"W_enc"}),
)
_REFUSED = {
    "transcode": "it is a transcoder",
    "skip_connection": "it has a skip connection beside its features",
    "embed_skip": "it has a skip connection from the embeddings beside its features",
    "gram_lookup": "it reads what a table of n-grams leaves over",
    "signed": "its activations may be negative",
}


def inspect(files: Files) -> SaeInfo:
    """What the folder says of itself; the site is its name.

    `layers.10` (or `gpt_neox.layers.10`) is the output of block 10. In the first releases
    `layer_10` is one of the hidden states that transformers returns: what enters block 10.

    Raises:
        FormatError: A transcoder, or an SAE that is not of features alone.
        UnknownNameError: Another activation function than TopK.
    """
    config = read_config(files)
    for key, why in _REFUSED.items():
        if config.get(key):
            raise FormatError(
                f"an SAE must reconstruct what it reads from positive features alone, {files.path} "
                f"has {key} in its cfg.json: {why}"
            )
    activation = config.get("activation", "topk")
    if activation != "topk":
        raise UnknownNameError.of(f"activation in {files.path}:", activation, ("topk",))
    shapes, _ = read_shapes(files.weights)
    d_model, d_sae = check_shapes(files.weights, shapes, _LAYOUT)
    check_said(files, "d_in", config.get("d_in"), d_model)
    check_said(files, "num_latents", config.get("num_latents") or None, d_sae)
    folder = files.weights.absolute().parent.name
    hook_name = None
    if found := re.fullmatch(r"layer_(\d+)", folder):
        hook_name = f"blocks.{found[1]}.hook_resid_pre"
    elif re.search(r"(^|\.)(layers?|h|blocks|embed_\w+|wte)(\.|$)", folder):
        hook_name = folder
    site, layer = place_of(hook_name, files.path)
    return SaeInfo(
        d_model=d_model,
        d_sae=d_sae,
        site=site,
        layer=layer,
        hook_name=hook_name,
        model=None,
        format="sparsify",
        architecture="topk",
        activation="topk",
        k=check_k(files.config, config.get("k"), d_sae),
        apply_b_dec_to_input=True,
        normalize="none",
        rescale_by_decoder_norm=False,
        source=str(files.path),
    )


def load(files: Files, info: SaeInfo, device: str) -> Tensors:
    """Its tensors."""
    return renamed(read_tensors(files.weights, device=device), _LAYOUT, info.d_sae)
