"""SAEs from disk, of whatever format is found there."""

import hashlib
from pathlib import Path

from saelign.saes.formats import recognise
from saelign.saes.formats.reading import SaeInfo
from saelign.saes.sae import SAE


def inspect_sae(path: Path) -> SaeInfo:
    """What the SAE at `path` says of itself; reads headers, no weights.

    A folder, or its file of weights, of one of the `FORMATS`; or one safetensors file that holds
    `W_enc`, `b_enc`, `W_dec`, `b_dec` and, for JumpReLU, `threshold`, and takes nothing off its
    input.

    Raises:
        MissingFileError: A file is not there.
        FormatError: It cannot be read, its tensors do not fit, or it needs what is not supported.
        UnknownNameError: An architecture or a normalisation that is not supported.
    """
    format_, files = recognise(Path(path))
    return format_.inspect(files)


def load_sae(path: Path, *, device: str = "cpu") -> SAE:
    """The SAE at `path`, in float32; which format it has is seen from what is there.

    An SAE that chooses by pre-activation times decoder norm gets its decoder norms folded into the
    encoder: the same reconstructions, with decoder rows of unit length. A gated SAE becomes the
    JumpReLU that computes the same.

    Raises:
        MissingFileError: A file is not there.
        FormatError: It cannot be read, its tensors do not fit, or it needs what is not supported.
        UnknownNameError: An architecture or a normalisation that is not supported.
    """
    format_, files = recognise(Path(path))
    info = format_.inspect(files)
    tensors = format_.load(files, info, device)
    digest = hashlib.sha256()
    for file in (files.config, files.weights, *info.beside):
        if file is not None:
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
        model=info.model,
        sha256=digest.hexdigest(),
        source=info.source,
    )
