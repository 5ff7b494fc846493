"""One safetensors file, the format that saelign writes.

pre = x W_enc + b_enc; f = relu(pre), with `threshold` only where pre exceeds it.
"""

from saelign.saes.formats.reading import (
    Files,
    Layout,
    SaeInfo,
    Tensors,
    check_shapes,
    place_of,
    read_shapes,
    read_tensors,
    renamed,
)
from saelign.saes.sae import Activation

STANDARD = Layout(names={name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")})
JUMPRELU = Layout(names={**STANDARD.names, "threshold": "threshold"})


def inspect(files: Files) -> SaeInfo:
    """What the file says of itself."""
    shapes, metadata = read_shapes(files.weights)
    activation: Activation = "jumprelu" if "threshold" in shapes else "relu"
    layout = JUMPRELU if activation == "jumprelu" else STANDARD
    d_model, d_sae = check_shapes(files.weights, shapes, layout)
    hook_name = metadata.get("hook_name")
    site, layer = place_of(hook_name, files.path)
    return SaeInfo(
        d_model=d_model,
        d_sae=d_sae,
        site=site,
        layer=layer,
        hook_name=hook_name,
        model=None,
        format="safetensors",
        architecture="jumprelu" if activation == "jumprelu" else "standard",
        activation=activation,
        k=None,
        apply_b_dec_to_input=False,
        normalize="none",
        rescale_by_decoder_norm=False,
        source=str(files.path),
    )


def load(files: Files, info: SaeInfo, device: str) -> Tensors:
    """Its tensors."""
    layout = JUMPRELU if info.activation == "jumprelu" else STANDARD
    return renamed(read_tensors(files.weights, device=device), layout, info.d_sae)
