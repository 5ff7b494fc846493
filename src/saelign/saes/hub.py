"""SAEs in a repository of a model hub: what is there, headers without weights, downloads.

Listings and headers are asked for here, by the hub's own interface and in few bytes, since the
calls of `huggingface_hub` for them wait without end for a hub that is silent. Files are downloaded
by `huggingface_hub`, into its cache and under its settings: `HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT`,
`HF_HUB_OFFLINE`, and `HF_HUB_ETAG_TIMEOUT`, the seconds that an answer may take.
"""

import contextlib
import io
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import quote

from saelign.errors import (
    DamagedError,
    HubError,
    MissingFileError,
    SaelignError,
    StorageError,
)
from saelign.locations import HUB, hub_place

_RETRIES = 2  # of a request, after one second and after two more
_WINDOW = (
    8192  # bytes asked for at once: the header of an SAE's safetensors file is a quarter of it
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a hub says of a path.

    Attributes:
        size: Of a file, in bytes; None: not told.
        sha256: Of a file that is not kept in git itself; None: not told.
        is_folder: Whether it is a folder.
    """

    size: int | None = None
    sha256: str | None = None
    is_folder: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Repository:
    """A repository at one commit.

    Attributes:
        name: Owner and name.
        revision: Branch, tag or commit, as asked.
        commit: Which commit that is.
        endpoint: The hub.
        cache: Where `huggingface_hub` keeps what it downloads.
        is_offline: Whether only what is in the cache may be used.
        seen: By path, what is known to be there; None: nothing is.
    """

    name: str
    revision: str
    commit: str
    endpoint: str
    cache: Path
    is_offline: bool
    seen: dict[str, Entry | None] = field(default_factory=dict)

    @property
    def snapshot(self) -> Path:
        """Where the cache has the files of this commit."""
        return _kept(self.cache, self.name) / "snapshots" / self.commit


@dataclass(frozen=True, slots=True)
class HubPath:
    """A file or folder in a repository, to be used like a `Path` as far as reading an SAE needs.

    Attributes:
        repository: The repository.
        path: The path in it; empty: the repository itself.
    """

    repository: Repository
    path: str

    def __str__(self) -> str:
        whole = f"{HUB}{self.repository.name}@{self.repository.commit}"
        return f"{whole}/{self.path}" if self.path else whole

    def __truediv__(self, name: str) -> "HubPath":
        return HubPath(self.repository, f"{self.path}/{name}" if self.path else name)

    @property
    def parts(self) -> tuple[str, ...]:
        """Owner, repository, folders and name."""
        return (*self.repository.name.split("/"), *filter(None, self.path.split("/")))

    @property
    def name(self) -> str:
        """The last part."""
        return self.parts[-1]

    @property
    def suffix(self) -> str:
        """What the name ends with, from its last dot."""
        return Path(self.name).suffix

    @property
    def parents(self) -> "list[HubPath]":
        """The folders that it is in, the nearest first."""
        parts = self.path.split("/") if self.path else []
        return [HubPath(self.repository, "/".join(parts[:n])) for n in reversed(range(len(parts)))]

    @property
    def parent(self) -> "HubPath":
        """The folder that it is in; of the repository, itself."""
        return self.parents[0] if self.path else self

    def absolute(self) -> "HubPath":
        """Itself."""
        return self

    def entry(self) -> Entry | None:
        """What the hub says of it; None: it is not there."""
        if self.path and self.path not in self.repository.seen:
            look(self.repository, [self])
        return self.repository.seen[self.path] if self.path else Entry(is_folder=True)

    def exists(self) -> bool:
        """Whether there is such a file or folder."""
        return self.entry() is not None

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        entry = self.entry()
        return entry is not None and entry.is_folder

    def is_file(self) -> bool:
        """Whether it is a file."""
        entry = self.entry()
        return entry is not None and not entry.is_folder

    def iterdir(self) -> "Iterator[HubPath]":
        """What the folder holds (the first thousand)."""
        names = _names(self.repository, self.path)
        self.repository.seen.update(names)
        return (HubPath(self.repository, path) for path in names)

    def open(self, mode: Literal["rb"]) -> io.BufferedReader | io.RawIOBase:
        """The file: from the cache where it is there, else by parts, as they are read."""
        found = self.repository.snapshot / self.path
        return found.open(mode) if found.is_file() else _Parts(self)

    def local(self) -> Path:
        """The file on disk, downloaded unless it is in the cache.

        Raises:
            HubError: It could not be downloaded whole.
            DamagedError: The cache has it with another size than the hub.
            StorageError: The cache cannot be written.
        """
        repository, entry = self.repository, self.entry()
        found = repository.snapshot / self.path
        if not found.is_file():
            from huggingface_hub import hf_hub_download

            with _told(
                repository.name,
                repository.revision,
                repository.endpoint,
                file=str(self),
                is_download=True,
            ):
                found = Path(
                    hf_hub_download(
                        repository.name,
                        self.path,
                        revision=repository.commit,
                        cache_dir=repository.cache,
                        endpoint=repository.endpoint,
                    )
                )
        size, announced = found.stat().st_size, None if entry is None else entry.size
        if announced is not None and size != announced:
            raise DamagedError(
                f"{self} must have {announced:,} bytes, as the hub says, its copy in the cache has "
                f"{size:,}: delete {found.resolve()} and try again"
            )
        return found

    def check_hash(self, sha256: str) -> None:
        """Nothing, if the hub says of the file that this is its hash, or says nothing.

        Raises:
            DamagedError: It says another.
        """
        entry = self.entry()
        if entry is not None and entry.sha256 not in (None, sha256):
            found = (self.repository.snapshot / self.path).resolve()
            raise DamagedError(
                f"{self} must have the hash {entry.sha256}, as the hub says, its copy in the cache "
                f"has {sha256}: delete {found} and try again"
            )


def locate(location: str) -> HubPath:
    """The place on the hub, its revision resolved to a commit (once a process).

    Args:
        location: As of `hub_place`.

    Raises:
        StudyError: It is none such.
        MissingFileError: No such repository, or no such revision of it.
        HubError: The hub cannot be reached or does not let one in; offline, not in the cache.
    """
    place = hub_place(location)
    from huggingface_hub import constants

    repository = _repository(
        endpoint=constants.ENDPOINT,
        cache_folder=Path(constants.HF_HUB_CACHE),
        name=place.repository,
        revision=place.revision,
        is_offline=bool(constants.HF_HUB_OFFLINE),
    )
    return HubPath(repository, place.path)


def look(repository: Repository, paths: Iterable[HubPath]) -> None:
    """Find out, in one request, which of these are there.

    Raises:
        MissingFileError: The repository does not have that commit, or is not there.
        HubError: The hub cannot be reached or does not let one in.
    """
    asked = sorted({p.path for p in paths if p.path and p.path not in repository.seen})
    if not asked:
        return
    if repository.is_offline:
        for path in asked:
            found = repository.snapshot / path
            is_folder = found.is_dir()
            repository.seen[path] = Entry(is_folder=is_folder) if found.exists() else None
        return
    url = f"{repository.endpoint}/api/models/{repository.name}/paths-info/{repository.commit}"
    with _told(repository.name, repository.revision, repository.endpoint):
        answer = _ask("POST", url, data={"paths": asked, "expand": False})
        repository.seen.update(dict.fromkeys(asked))
        repository.seen.update(_entries(answer.json()))


def missing(place: HubPath) -> MissingFileError:
    """The error for a place that is not there: it tells what the folder it should be in holds."""
    if place.repository.is_offline:
        return MissingFileError(
            f"offline, all files of an SAE must be in the cache, those of {place} are not: unset "
            "HF_HUB_OFFLINE to ask the hub"
        )
    look(place.repository, place.parents)
    folder = next(parent for parent in place.parents if parent.is_dir())
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return MissingFileError(
        f"an SAE must be a file or a folder, {place} is not there: {folder} holds "
        f"{shown or 'nothing'}"
    )


@cache
def _repository(
    *, endpoint: str, cache_folder: Path, name: str, revision: str, is_offline: bool
) -> Repository:
    commit = revision
    if not _COMMIT.fullmatch(revision):
        commit = (
            _remembered(cache_folder, name, revision)
            if is_offline
            else _resolved(endpoint, cache_folder, name, revision)
        )
    return Repository(
        name=name,
        revision=revision,
        commit=commit,
        endpoint=endpoint,
        cache=cache_folder,
        is_offline=is_offline,
    )


def _resolved(endpoint: str, cache_folder: Path, name: str, revision: str) -> str:
    with _told(name, revision, endpoint):
        url = f"{endpoint}/api/models/{name}/revision/{quote(revision, safe='')}"
        commit = str(_ask("GET", url).json()["sha"])
        if not _COMMIT.fullmatch(commit):
            raise ValueError(f"the commit {commit!r}")
    # As huggingface_hub's own cache has it, so that the same can be read offline.
    kept = _kept(cache_folder, name) / "refs" / revision
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(commit, encoding="utf-8")
    return commit


def _remembered(cache_folder: Path, name: str, revision: str) -> str:
    kept = _kept(cache_folder, name) / "refs" / revision
    if not kept.is_file():
        raise _not_kept(f"{HUB}{name}@{revision}", cache_folder)
    return kept.read_text(encoding="utf-8").strip()


def _no_repository(name: str, endpoint: str) -> MissingFileError:
    return MissingFileError(
        f"repository {name!r} must be on the hub, {endpoint} has none of that name that is open to "
        "you: check the name, and log in with a valid HF_TOKEN if it is private"
    )


def _not_kept(what: str, cache_folder: Path) -> HubError:
    return HubError(
        f"offline, {what} must be in the cache, {cache_folder} does not hold it: "
        "unset HF_HUB_OFFLINE to download it"
    )


def _kept(cache_folder: Path, name: str) -> Path:
    return cache_folder / f"models--{name.replace('/', '--')}"


def _names(repository: Repository, folder: str) -> dict[str, Entry]:
    if repository.is_offline:
        there = (repository.snapshot / folder).glob("*")
        return {
            f"{folder}/{p.name}".lstrip("/"): Entry(is_folder=p.is_dir()) for p in sorted(there)
        }
    url = f"{repository.endpoint}/api/models/{repository.name}/tree/{repository.commit}"
    with _told(repository.name, repository.revision, repository.endpoint):
        return _entries(_ask("GET", f"{url}/{quote(folder)}".rstrip("/")).json())


def _entries(answer: Any) -> dict[str, Entry]:
    if not isinstance(answer, list):
        raise TypeError("no listing")
    entries = cast("list[dict[str, Any]]", answer)
    return {
        str(told["path"]): Entry(
            size=None if told["type"] == "directory" else int(told["size"]),
            sha256=(told.get("lfs") or {}).get("oid"),
            is_folder=told["type"] == "directory",
        )
        for told in entries
    }


def _ask(
    method: Literal["GET", "POST"],
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    data: Mapping[str, Any] | None = None,
) -> Any:
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

    answer = http_backoff(
        method,
        url,
        max_retries=_RETRIES,
        retry_on_status_codes=(500, 502, 503, 504),
        timeout=constants.HF_HUB_ETAG_TIMEOUT,
        headers={**build_hf_headers(), **(headers or {})},
        data=data,
    )
    hf_raise_for_status(answer)
    return answer


class _Parts(io.RawIOBase):
    """A file on a hub, of which only what is read is sent, a window at a time."""

    def __init__(self, place: HubPath) -> None:
        entry = place.entry()
        assert entry is not None
        assert entry.size is not None
        self._place, self._size = place, entry.size
        self._position = 0
        self._windows: list[tuple[int, bytes]] = []

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError(f"a position must not be negative, got {start + offset}")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        stop = min(self._position + len(buffer), self._size)
        n_bytes = max(stop - self._position, 0)
        if n_bytes:
            buffer[:n_bytes] = self._bytes(self._position, stop)
            self._position = stop
        return n_bytes

    def _bytes(self, start: int, stop: int) -> bytes:
        for first, window in self._windows:
            if first <= start and stop <= first + len(window):
                return window[start - first : stop - first]
        last = min(max(stop, start + _WINDOW), self._size)
        first = min(start, max(last - _WINDOW, 0))
        window = self._asked(first, last)
        self._windows.append((first, window))
        return window[start - first : stop - first]

    def _asked(self, start: int, stop: int) -> bytes:
        from huggingface_hub import hf_hub_url

        place, repository = self._place, self._place.repository
        url = hf_hub_url(
            repository.name,
            place.path,
            revision=repository.commit,
            endpoint=repository.endpoint,
        )
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        name, revision = repository.name, repository.revision
        with _told(name, revision, repository.endpoint, file=str(place)):
            answer = _ask("GET", url, headers=headers)
        # Who does not know ranges sends all of it.
        content = answer.content[start:stop] if answer.status_code == 200 else answer.content
        if len(content) != stop - start:
            raise HubError(
                f"bytes {start:,} to {stop:,} of {place} must be there, as the hub announced "
                f"{self._size:,}, it sent {len(content):,}: try again"
            )
        return content


@contextlib.contextmanager
def told_by_hub(name: str) -> Iterator[None]:
    """In our words what goes wrong while another library reads a repository.

    Raises:
        MissingFileError: No such repository or file.
        HubError: The hub cannot be reached or does not let one in.
        StorageError: The cache cannot be written.
    """
    from huggingface_hub import constants

    with _told(name, "main", constants.ENDPOINT):
        yield


@contextlib.contextmanager
def _told(
    name: str, revision: str, endpoint: str, *, file: str = "", is_download: bool = False
) -> Iterator[None]:
    from huggingface_hub import errors

    # Its warnings of every try would stand between a study's own lines of progress.
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except SaelignError:
        raise
    except errors.GatedRepoError as error:
        raise HubError(
            f"repository {name!r} must be open to you, {endpoint} says that it is gated: accept "
            "its licence there and log in, with HF_TOKEN or `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise _no_repository(name, endpoint) from error
    except errors.RevisionNotFoundError as error:
        raise MissingFileError(
            f"{revision!r} must be a branch, tag or commit of repository {name!r}, it is none"
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        lacking = file or re.sub(".*/resolve/[^/]*/", "", str(error.response.url))
        raise MissingFileError(
            f"{lacking} must be in repository {name!r}, {endpoint} does not have it"
        ) from error
    # A dozen classes, by version of huggingface_hub and of what it reaches the network with.
    except Exception as error:
        # To who has not logged in a hub says 401 of what it does not have, too.
        if getattr(getattr(error, "response", None), "status_code", None) == 401:
            raise _no_repository(name, endpoint) from error
        if getattr(error, "filename", None) is not None:
            raise StorageError(
                f"the cache of the hub must be a folder that can be written, it is not: {error}; "
                "choose another with HF_HOME"
            ) from error
        reason = str(error.__cause__ or error).strip().split("\n")[0] or type(error).__name__
        if isinstance(error, ValueError | LookupError | TypeError):
            reason = "what it answered is not what a hub answers"
        if is_download:
            raise HubError(
                f"{file} must be downloaded whole, it was not: {reason}; try again"
            ) from error
        raise HubError(
            f"the hub at {endpoint} must be reachable and answer for {name!r}, it did not: "
            f"{reason}; HF_HUB_OFFLINE=1 makes do with what was downloaded before"
        ) from error
    finally:
        logger.setLevel(level)
