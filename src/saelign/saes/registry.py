"""SAEs by the names that SAELens knows them by, read with SAELens' own loaders.

What it loads it saves in its own format to a folder that is kept, and that is read as any other
SAE of SAELens is: however an SAE was published, it comes in by one door.
"""

import contextlib
import difflib
import importlib
import os
import shutil
import uuid
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saelign.errors import (
    FormatError,
    MissingFileError,
    StorageError,
    StudyError,
    UnknownNameError,
)
from saelign.files import user_cache
from saelign.locations import SAE_LENS
from saelign.saes.formats import recognise
from saelign.saes.formats.reading import SaeInfo
from saelign.saes.formats.saelens import inspect_config
from saelign.saes.hub import told_by_hub

_DIRECTORY = "sae_lens.loading.pretrained_saes_directory"
_LOADERS = "sae_lens.loading.pretrained_sae_loaders"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An SAE in the registry.

    Attributes:
        location: As a study has it.
        release: The release that it belongs to.
        sae_id: Its name there.
        repository: The repository that SAELens reads it from.
        is_scaled: Whether SAELens folds the average norm of its input, which the registry has.
    """

    location: str
    release: str
    sae_id: str
    repository: str
    is_scaled: bool
    neuronpedia: str | None


def find(location: str) -> Entry:
    """What the registry has under `sae_lens:RELEASE/SAE_ID`.

    Raises:
        StudyError: It is no such name.
        MissingFileError: SAELens is not installed, or too old.
        UnknownNameError: A release, or an SAE of it, that the registry does not have.
    """
    release, _, sae_id = location.removeprefix(SAE_LENS).partition("/")
    if not (release and sae_id):
        raise StudyError(
            f"a name that SAELens knows must be {SAE_LENS}RELEASE/SAE_ID, got {location!r}"
        )
    known: Mapping[str, Any] = _imported(_DIRECTORY).get_pretrained_saes_directory()
    if release not in known:
        raise _unknown("release of SAELens", release, known)
    entry = known[release]
    if sae_id not in entry.saes_map:
        raise _unknown(f"SAE of SAELens' release {release!r}", sae_id, entry.saes_map)
    return Entry(
        location=location,
        release=release,
        sae_id=sae_id,
        repository=entry.repo_id,
        is_scaled=sae_id in (getattr(entry, "norm_scaling_factor", None) or {}),
        neuronpedia=(getattr(entry, "neuronpedia_id", None) or {}).get(sae_id),
    )


def inspect(location: str) -> SaeInfo:
    """What SAELens says of an SAE that it knows, without its weights where it can.

    Raises:
        SaelignError: As `converted`; or the SAE is not supported.
    """
    entry = find(location)
    if not _folder(entry).is_dir():
        loaders = _imported(_LOADERS)
        with _told(entry):
            told = loaders.load_sae_config_from_huggingface(entry.release, entry.sae_id)
        config: dict[str, Any] = dict(told)
        d_model, d_sae = config.get("d_in"), config.get("d_sae")
        # Some configurations do not say how wide the SAE is.
        if isinstance(d_model, int) and isinstance(d_sae, int):
            normalize = config.get("normalize_activations")
            if entry.is_scaled and normalize == "expected_average_only_in":
                config["normalize_activations"] = "none"  # folded on loading
            return inspect_config(config, location, location, lambda _: (d_model, d_sae))
    format_, files = recognise(converted(location))
    return replace(format_.inspect(files), source=location)


def converted(location: str) -> Path:
    """A folder with the SAE in SAELens' own format, made unless it is there.

    It is kept for this version of SAELens, in `$SAELIGN_STORE` or a user's cache.

    Raises:
        StudyError: It is no name such as SAELens has.
        MissingFileError: SAELens is not installed; the repository or a file is not there.
        UnknownNameError: A release, or an SAE of it, that the registry does not have.
        HubError: The hub cannot be reached, or does not let one in.
        FormatError: SAELens cannot load it.
        StorageError: The folder cannot be written.
    """
    entry = find(location)
    folder = _folder(entry)
    if folder.is_dir():
        return folder
    sae_lens = _imported("sae_lens")
    with _told(entry):
        sae = sae_lens.SAE.from_pretrained(entry.release, entry.sae_id)
    for parameter in sae.parameters():  # some of its loaders leave views, which it cannot save
        parameter.data = parameter.data.contiguous()
    part = folder.with_name(f".{uuid.uuid4().hex}")
    try:
        part.mkdir(parents=True)
        sae.save_model(part)
        part.replace(folder)
    except OSError as error:
        if not folder.is_dir():  # another run may have been faster
            raise StorageError(
                f"{folder} must be writable, it is not: {error}; choose another with $SAELIGN_STORE"
            ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def kept_in() -> Path:
    """Where what SAELens loaded is kept: under `$SAELIGN_STORE`, else in a user's cache."""
    if os.environ.get("SAELIGN_STORE"):
        return Path(os.environ["SAELIGN_STORE"]) / "saes" / "sae_lens"
    return user_cache() / "sae_lens"


def _unknown(kind: str, got: str, known: Collection[str]) -> UnknownNameError:
    # All of them, hundreds of releases with up to thousands of SAEs, would fill the screen.
    nearest = difflib.get_close_matches(got, known, n=3, cutoff=0)
    return UnknownNameError(
        f"unknown {kind} {got!r}, the nearest of its {len(known):,} are: {', '.join(nearest)}"
    )


def _folder(entry: Entry) -> Path:
    version = _imported("sae_lens").__version__
    return kept_in() / version / entry.release / entry.sae_id.replace("/", "--")


def _imported(module: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it imports, about one another
            return importlib.import_module(module)
    except ImportError as error:
        raise MissingFileError(
            f"{SAE_LENS} needs SAELens 6 or newer, it cannot be imported ({error}): "
            "pip install 'saelign[sae-lens]'; or say where the SAE lies on a hub, as hf://OWNER/NAME/FOLDER"
        ) from error


@contextlib.contextmanager
def _told(entry: Entry) -> Iterator[None]:
    with told_by_hub(entry.repository), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of SAELens, on what does not concern a reader
        try:
            yield
        except Exception as error:
            # What does not come from the network or the disk comes from how SAELens reads it.
            if isinstance(error, OSError) or type(error).__module__.startswith("httpx"):
                raise
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise FormatError(
                f"an SAE must be one that SAELens can load, {entry.location} is not: {reason}"
            ) from error
