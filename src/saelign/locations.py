"""Where what a study names lies: a path, a place on a model hub, or a name in SAELens' registry."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from saelign.errors import StudyError

HUB = "hf://"
"""What a place on a hub begins with: `hf://OWNER/NAME[@REVISION]/FOLDER`."""

SAE_LENS = "sae_lens:"
"""What a name that SAELens knows begins with: `sae_lens:RELEASE/SAE_ID`."""

_LOCATION = re.compile(
    r"hf://(?P<name>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[^/]+))?(/(?P<path>.*))?", re.ASCII
)
_OTHER_TYPES = ("buckets", "datasets", "kernels", "models", "spaces")


@dataclass(frozen=True, slots=True)
class HubPlace:
    """A place on a hub, as it is written.

    Attributes:
        repository: Owner and name.
        revision: Branch, tag or commit; `main` if none is said.
        path: The folder or file in it; empty: the repository itself.
    """

    repository: str
    revision: str
    path: str


@dataclass(frozen=True, slots=True)
class Places:
    """Where models, SAEs and data sets that a study names are taken from.

    Attributes:
        folder: Where relative paths start.
        models_from: A folder that stands in place of the hub and has its layout: what is
            `OWNER/NAME` there lies in `models_from/OWNER/NAME`. None: the hub itself.
    """

    folder: Path
    models_from: Path | None = None

    def path(self, path: str) -> Path:
        """A path of a study: `~` is the user's home, a relative one starts at `folder`."""
        return self.folder / Path(path).expanduser()

    def repository(self, name: str) -> str:
        """The folder of a model, tokenizer or data set; its name if it is on the hub."""
        local = self.path(name)
        if local.is_dir():
            return str(local)
        return name if self.models_from is None else str(self.models_from / name)

    def sae(self, location: str) -> Path | str:
        """The path of an SAE; its place or name if it is remote.

        Raises:
            StudyError: It begins as a place on a hub does, and is none.
        """
        if self.models_from is not None and location.startswith(HUB):
            place = hub_place(location)
            return self.models_from / place.repository / place.path
        return location if is_remote(location) else self.path(location)


def is_remote(location: str) -> bool:
    """Whether it is a place on a hub or a name, and no path.

    >>> is_remote("hf://google/gemma-scope-2b-pt-res/layer_12"), is_remote("saes/layer_12")
    (True, False)
    """
    return location.startswith((HUB, SAE_LENS))


def hub_place(location: str) -> HubPlace:
    """What `hf://OWNER/NAME[@REVISION]/FOLDER` says.

    Args:
        location: Signs that a revision or folder cannot be written with stand as `%2F`.

    Raises:
        StudyError: It is none such.
    """
    found = _LOCATION.fullmatch(location)
    revision = "main" if found is None or found["revision"] is None else unquote(found["revision"])
    path = "" if found is None else unquote(found["path"] or "").strip("/")
    parts = [*path.split("/"), *revision.split("/")] if path else revision.split("/")
    if found is None or ".." in revision or any(part in ("", ".", "..") for part in parts):
        raise StudyError(
            f"a place on a hub must be {HUB}OWNER/NAME[@REVISION]/FOLDER, got {location!r}"
        )
    if found["name"].split("/")[0] in _OTHER_TYPES:
        raise StudyError(
            f"a place on a hub must be in a repository of models, {HUB}OWNER/NAME/FOLDER, "
            f"got {location!r}"
        )
    return HubPlace(found["name"], revision, path)
