"""SAEs of whatever format is found, on disk, on a model hub or in SAELens' registry."""

import hashlib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from saelign.errors import MissingFileError
from saelign.locations import HUB, SAE_LENS
from saelign.saes import hub, registry
from saelign.saes.formats import Format, candidates, recognise
from saelign.saes.formats.reading import Files, SaeInfo, local
from saelign.saes.hub import HubPath
from saelign.saes.sae import SAE


def inspect_sae(path: str | Path) -> SaeInfo:
    """What the SAE at `path` says of itself; reads headers, no weights.

    A folder, or its file of weights, of one of the `FORMATS`; or one safetensors file that holds
    `W_enc`, `b_enc`, `W_dec`, `b_dec` and, for JumpReLU, `threshold`, and takes nothing off its
    input. Of an SAE on a hub, configurations are downloaded and headers read by ranges of bytes;
    a `.pt` file has none and is downloaded.

    Args:
        path: On disk; `hf://OWNER/NAME[@REVISION]/FOLDER`; or `sae_lens:RELEASE/SAE_ID`.

    Raises:
        MissingFileError: A file, a repository or a revision of it is not there.
        HubError: The hub cannot be reached, or does not let one in.
        FormatError: It cannot be read, its tensors do not fit, or it needs what is not supported.
        UnknownNameError: An architecture or a normalisation that is not supported; a release or an
            SAE that SAELens does not know.
        StudyError: `path` begins as a place on a hub or a name does, and is none.
    """
    location = str(path)
    if location.startswith(SAE_LENS):
        return registry.inspect(location)
    if location.startswith(HUB):
        return _inspect_on_hub(hub.locate(location))
    format_, files = recognise(Path(path))
    return format_.inspect(files)


def load_sae(path: str | Path, *, device: str = "cpu") -> SAE:
    """The SAE at `path`, in float32; which format it has is seen from what is there.

    An SAE that chooses by pre-activation times decoder norm gets its decoder norms folded into the
    encoder: the same reconstructions, with decoder rows of unit length. A gated SAE becomes the
    JumpReLU that computes the same. One on a hub is downloaded unless it is in the cache.

    Args:
        path: As for `inspect_sae`.
        device: Where its tensors go.

    Raises:
        MissingFileError: A file, a repository or a revision of it is not there.
        HubError: The hub cannot be reached, breaks off, or does not let one in.
        FormatError: It cannot be read, its tensors do not fit, or it needs what is not supported.
        DamagedError: What is in the cache is not what the hub has.
        UnknownNameError: An architecture or a normalisation that is not supported; a release or an
            SAE that SAELens does not know.
        StudyError: `path` begins as a place on a hub or a name does, and is none.
    """
    location = str(path)
    if location.startswith(SAE_LENS):
        return replace(load_sae(registry.converted(location), device=device), source=location)
    found = hub.locate(location) if location.startswith(HUB) else Path(path)
    format_, files = _recognise_on_hub(found) if isinstance(found, HubPath) else recognise(found)
    places = [place for place in (files.config, files.weights) if place is not None]
    on_disk = [local(place) for place in places]  # now, so that what follows asks no hub
    info = format_.inspect(files)
    tensors = format_.load(files, info, device)
    digest = hashlib.sha256()
    for place, file in [
        *zip(places, on_disk, strict=True),
        *((place, local(place)) for place in info.beside),
    ]:
        with file.open("rb") as stream:
            of_file = hashlib.file_digest(stream, "sha256")
        if isinstance(place, HubPath):
            place.check_hash(of_file.hexdigest())
        digest.update(of_file.digest())
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
        site=info.site,
        layer=info.layer,
        model=info.model,
        sha256=digest.hexdigest(),
        source=info.source,
    )


@lru_cache(maxsize=1024)  # a study looks at each twice; at one commit it stays as it is
def _inspect_on_hub(path: HubPath) -> SaeInfo:
    format_, files = _recognise_on_hub(path)
    return format_.inspect(files)


def _recognise_on_hub(path: HubPath) -> tuple[Format, Files]:
    places = [
        place
        for format_, files in candidates(path)
        for place in (
            files.config,
            files.weights,
            *(files.weights.parent / name for name in format_.beside),
        )
    ]
    hub.look(path.repository, [path, *(p for p in places if isinstance(p, HubPath))])
    try:
        return recognise(path)
    except MissingFileError as error:
        if path.exists() and not path.repository.is_offline:
            raise
        raise hub.missing(path) from error
