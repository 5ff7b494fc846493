"""SAEs from a hub: a real HTTP server answers as a hub does, well and otherwise."""

import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import save_file

import saelign.pipeline
from saelign.demo import FOLDER
from saelign.errors import (
    DamagedError,
    FormatError,
    HubError,
    MissingFileError,
    StorageError,
    StudyError,
    UnknownNameError,
)
from saelign.locations import is_remote
from saelign.saes import encode, inspect_sae, load_sae, reconstruct, registry
from saelign.saes import hub as hub_module
from saelign.study import load_study
from test_sae_formats import ALL, Published, X, dictionary_learning, gemma_scope, sparsify

SCRIPT = Path(sys.executable).with_name("saelign")
WEIGHTS = (".npz", ".safetensors", ".pt")
MAIN, OLD = "a" * 40, "b" * 40


@dataclass
class Hub:
    """A hub: its repositories, what it is to do wrong, and what it was asked and sent.

    Attributes:
        root: Below it lies OWNER/NAME/COMMIT/ of each repository.
        address: Where it listens.
        refs: By name of a repository, its branches and tags.
        gated: Repositories whose files it does not give.
        failing: How often it answers 503 before it answers.
        silent: Whether it does not answer at all.
        odd: What it says instead of JSON.
        without: How many bytes a file lacks when it is sent, though not when it is announced.
        breaks_off: Whether it closes the connection there.
        has_ranges: Whether it knows ranges of bytes.
        asked: Method and path of each request.
        sent: Bytes of weights, by the path in their repository.
        tokens: What came with each request to say who asks, to the host of large files apart.
    """

    root: Path
    address: str = ""
    refs: dict[str, dict[str, str]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    failing: int = 0
    silent: bool = False
    odd: bytes | None = None
    without: int = 0
    breaks_off: bool = False
    has_ranges: bool = True
    asked: list[str] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    tokens: list[str | None] = field(default_factory=list)

    def folder(self, name: str, commit: str = MAIN) -> Path:
        """Where to write files of a repository."""
        self.refs.setdefault(name, {"main": MAIN})
        folder = self.root / name / commit
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def add(self, sae: Published, *, commit: str = MAIN, **changes: Any) -> tuple[str, Path]:
        """An SAE, put into a repository: where it lies on the hub and on disk."""
        owner, *rest = sae.folder.split("/")
        if owner not in ("google", "fnlp"):
            owner, rest = "them", ["saes", *sae.folder.split("/")]
        name = f"{owner}/{rest[0]}"
        placed = dataclasses.replace(sae, folder="/".join(rest[1:]))
        written = placed.write(self.folder(name, commit), **changes)
        at = "" if commit == MAIN else f"@{commit}"
        return f"hf://{name}{at}/{placed.folder}", written

    def n_asked(self, what: str) -> int:
        """How many requests have this in them."""
        return sum(what in asked for asked in self.asked)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    over: threading.Event

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # who asked has gone
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        told = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path = urlsplit(self.path).path
        self.hub.asked.append(f"{self.command} {path}")
        if not path.startswith("/cdn/"):
            self.hub.tokens.append(self.headers["Authorization"])
        if self.hub.silent:
            self.over.wait(4)
            self.close_connection = True
            return
        if self.hub.failing > 0:
            self.hub.failing -= 1
            self.refuse(503, "", "busy")
        elif path.startswith("/cdn/"):
            self.file(path.removeprefix("/cdn/"))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/([\w-]+)/([^/]+)/?(.*)", path):
            self.api(found[1], found[2], unquote(found[3]), unquote(found[4]), told)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.*)", path):
            self.resolve(found[1], found[2], unquote(found[3]))
        else:
            self.refuse(404, "", "no such page")

    def refuse(self, status: int, code: str, message: str) -> None:
        self.send(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def api(self, name: str, what: str, revision: str, path: str, told: str) -> None:
        if name not in self.hub.refs:
            self.send(401, b'{"error": "Invalid username or password."}', {})
            return
        commit = self.hub.refs[name].get(revision, revision)
        top = self.hub.root / name / commit
        if not top.is_dir():
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif self.hub.odd is not None:
            self.send(200, self.hub.odd, {})
        elif what == "revision":
            self.send_json({"id": name, "sha": commit})
        elif what == "paths-info":
            asked = [top / p for p in parse_qs(told)["paths"]]
            self.send_json([self.entry(top, p) for p in asked if p.exists()])
        elif not (top / path).is_dir():
            self.refuse(404, "EntryNotFound", f"{path} does not exist")
        else:
            self.send_json([self.entry(top, p) for p in sorted((top / path).iterdir())])

    def send_json(self, content: Any) -> None:
        self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def entry(self, top: Path, path: Path) -> dict[str, Any]:
        name = path.relative_to(top).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "size": 0, "oid": "0" * 40}
        content = path.read_bytes()
        entry = {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
        if path.suffix in WEIGHTS:
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
        return entry

    def resolve(self, name: str, commit: str, path: str) -> None:
        commit = self.hub.refs.get(name, {}).get(commit, commit)
        file = self.hub.root / name / commit / path
        if name in self.hub.gated:
            self.refuse(403, "GatedRepo", f"Access to model {name} is restricted")
        elif not file.is_file():
            self.refuse(404, "EntryNotFound", "Entry not found")
        elif file.suffix in WEIGHTS:
            # As on the hub large files lie on another host, which is not told who asks.
            content, port = file.read_bytes(), self.server.server_address[1]
            headers = {
                "Location": f"http://localhost:{port}/cdn/{name}/{commit}/{quote(path)}",
                "X-Repo-Commit": commit,
                "X-Linked-Size": str(len(content)),
                "X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            }
            self.send(302, b"", headers)
        else:
            content = file.read_bytes()
            tag = hashlib.sha1(content).hexdigest()
            self.send(200, content, {"X-Repo-Commit": commit, "ETag": f'"{tag}"'})

    def file(self, path: str) -> None:
        owner, name, commit, *rest = unquote(path).split("/")
        assert self.headers["Authorization"] is None
        content = (self.hub.root / owner / name / commit / Path(*rest)).read_bytes()
        whole, status, headers = len(content), 200, {}
        if self.hub.has_ranges and (asked := self.headers["Range"]):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            stop = min(int(last) + 1, whole) if last else whole
            content, status = content[int(first) : stop], 206
            headers = {"Content-Range": f"bytes {first}-{stop - 1}/{whole}"}
        if self.hub.breaks_off:
            headers["Content-Length"] = str(len(content))
        content = content[: max(len(content) - self.hub.without, 0)]
        key = "/".join(rest)
        self.hub.sent[key] = self.hub.sent.get(key, 0) + len(content)
        self.send(status, content, headers)
        if self.hub.breaks_off:
            self.close_connection = True


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Hub]:
    """The hub, for another process."""
    hub, over = Hub(root=tmp_path / "hub"), threading.Event()
    handler = type("OfHub", (Handler,), {"hub": hub, "over": over})
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    httpd.daemon_threads = True
    httpd.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.address = f"http://127.0.0.1:{httpd.server_port}"
    yield hub
    over.set()
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def hub(served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub, for this process."""
    use(monkeypatch, served.address, tmp_path / "cache")
    yield served
    huggingface_hub.close_session()


def use(monkeypatch: pytest.MonkeyPatch, address: str, cache: Path, **changes: Any) -> None:
    """Let huggingface_hub, which reads its environment once, ask there and keep files there."""
    constants = {
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": False,
        **changes,
    }
    for name, value in constants.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", waited.append)
    return waited


def large(sae: Published) -> Published:
    """The SAE with as many features as make a header small beside the weights."""
    times = 4000
    arrays = {
        name: np.concatenate([a] * times, axis=list(a.shape).index(20)) if 20 in a.shape else a
        for name, a in sae.arrays.items()
    }
    config = sae.config
    if config is not None:
        widths = dict.fromkeys({"num_latents", "width"} & config[1].keys(), 20 * times)
        config = (config[0], config[1] | widths)
    return dataclasses.replace(sae, arrays=arrays, config=config)


# What is read ------------------------------------------------------------------------------------

every = pytest.mark.parametrize("sae", ALL.values(), ids=ALL)


@every
def test_each_format_is_the_same_from_a_hub_as_from_disk(hub, sae):
    location, folder = hub.add(sae)
    info, on_disk = inspect_sae(location), inspect_sae(folder)
    assert info.source == on_hub(location)
    assert info == dataclasses.replace(on_disk, source=info.source)
    theirs, ours = load_sae(folder), load_sae(location)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"):
        a, b = getattr(theirs, name), getattr(ours, name)
        assert a is b is None or torch.equal(a, b), name
    assert (ours.sha256, ours.source) == (theirs.sha256, info.source)
    for name in ("layer", "hook_name", "model", "activation", "k", "normalize"):
        assert getattr(ours, name) == getattr(info, name), name


def on_hub(location: str, commit: str = MAIN) -> str:
    return re.sub(r"^(hf://[^/]+/[^/@]+)(@[^/]+)?", rf"\1@{commit}", location)


@every
def test_the_file_of_weights_may_be_named_instead_of_its_folder(hub, sae):
    location, _ = hub.add(sae)
    info = inspect_sae(f"{location}/{sae.weights}")
    assert info == dataclasses.replace(inspect_sae(location), source=info.source)
    assert info.source == on_hub(f"{location}/{sae.weights}")


@pytest.mark.parametrize(("name", "n"), [("gemma_scope", 6), ("gemma_scope_2", 1), ("sparsify", 1)])
def test_a_look_takes_a_few_kilobytes_of_the_weights(hub, name, n):
    sae = large(ALL[name])
    location, folder = hub.add(sae)
    size = (folder / sae.weights).stat().st_size
    assert size > 3_000_000
    assert inspect_sae(location).d_sae == 80_000
    assert 0 < sum(hub.sent.values()) <= 8192 * n
    assert not list((hub.root.parent / "cache").rglob(sae.weights))
    before = len(hub.asked)
    inspect_sae(location)
    assert len(hub.asked) == before
    load_sae(location)
    load_sae(location)
    assert sum(hub.sent.values()) <= size + 8192 * n


def test_a_pickle_has_no_header_and_is_downloaded_to_be_looked_at(hub):
    location, folder = hub.add(dictionary_learning("AutoEncoder"))
    assert inspect_sae(location).layer == 8
    assert sum(hub.sent.values()) == (folder / "ae.pt").stat().st_size
    load_sae(location)
    assert sum(hub.sent.values()) == (folder / "ae.pt").stat().st_size


def test_a_header_longer_than_what_is_asked_for_at_once_is_read_whole(hub):
    save_file(
        {name: array.copy() for name, array in large(gemma_scope()).arrays.items()},
        hub.folder("them/saes") / "mine.safetensors",
        metadata={"hook_name": "blocks.3.hook_resid_post", "note": "long " * 4000},
    )
    info = inspect_sae("hf://them/saes/mine.safetensors")
    assert (info.layer, info.format) == (3, "safetensors")
    assert 20_000 < sum(hub.sent.values()) < 50_000


def test_a_hub_that_knows_no_ranges_is_read_all_the_same(hub):
    hub.has_ranges = False
    location, _ = hub.add(gemma_scope())
    assert inspect_sae(location).layer == 12


def test_only_the_folder_is_asked_about(hub):
    location, _ = hub.add(gemma_scope())
    inspect_sae(location)
    name = "google/gemma-scope-2b-pt-res"
    assert [asked for asked in hub.asked if "/api/" in asked] == [
        f"GET /api/models/{name}/revision/main",
        f"POST /api/models/{name}/paths-info/{MAIN}",
    ]


def test_a_revision_is_resolved_once_and_stays(hub):
    new, old = gemma_scope(), dataclasses.replace(gemma_scope(), arrays=large(gemma_scope()).arrays)
    location, _ = hub.add(new)
    at_commit, _ = hub.add(old, commit=OLD)
    hub.refs["google/gemma-scope-2b-pt-res"] |= {"v1": OLD, "refs/pr/1": OLD}
    at_tag, at_request = (at_commit.replace(OLD, tag) for tag in ("v1", "refs%2Fpr%2F1"))
    assert inspect_sae(location).d_sae == 20
    for place in (at_commit, at_tag, at_request):
        info = inspect_sae(place)
        assert (info.d_sae, info.source) == (80_000, on_hub(at_commit, OLD))
    hub.refs["google/gemma-scope-2b-pt-res"]["main"] = OLD  # someone pushes while we read
    assert load_sae(location).d_sae == 20
    assert hub.n_asked("/revision/main") == 1
    assert hub.n_asked(f"/revision/{OLD}") == 0


def test_the_token_goes_to_the_hub_and_to_nobody_else(hub):
    location, _ = hub.add(sparsify())
    inspect_sae(location)
    load_sae(location)
    assert hub.n_asked("/api/models/them/saes/") == 2
    assert hub.n_asked("GET /them/saes/resolve/") == 2
    assert set(hub.tokens) == {"Bearer hf_secret"}


def test_a_hub_that_fails_once_is_asked_again(hub, no_waiting):
    location, _ = hub.add(gemma_scope())
    hub.failing = 2
    assert inspect_sae(location).layer == 12
    assert no_waiting == [1, 2]


# Offline -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gemma_scope", "gemma_scope_2", "AutoEncoder", "openmoss_early"])
def test_what_was_downloaded_can_be_read_offline(hub, name, monkeypatch):
    location, _ = hub.add(ALL[name])
    before = load_sae(location)
    info, n_asked = inspect_sae(location), len(hub.asked)
    go_offline(monkeypatch)
    assert inspect_sae(location) == info
    after = load_sae(location)
    assert (after.sha256, after.source) == (before.sha256, before.source)
    assert len(hub.asked) == n_asked


def test_offline_what_is_not_in_the_cache_is_told(hub, monkeypatch):
    location, _ = hub.add(sparsify())
    inspect_sae(location)  # its configuration, not its weights
    go_offline(monkeypatch)
    for place, name in ((location, "layers.10"), ("hf://them/saes/x", "x")):
        words = rf"offline, all files of an SAE must be in the cache, those of \S+/{name} are not: "
        with pytest.raises(MissingFileError, match=words):
            load_sae(place)
    words = r"offline, hf://them/other@main must be in the cache, .*cache does not hold it: unset"
    with pytest.raises(HubError, match=words):
        load_sae("hf://them/other/layers.1")


def test_a_file_kept_at_another_commit_is_found_when_offline_under_its_branch(hub, monkeypatch):
    location, _ = hub.add(gemma_scope())
    load_sae(location.replace("-res/", f"-res@{MAIN}/"))
    inspect_sae(location)
    go_offline(monkeypatch)
    assert load_sae(location).layer == 12


# What can be wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "location",
    [
        "hf://",
        "hf://google",
        "hf://google/",
        "hf:///x/y",
        "hf://google/x@/y",
        "hf://google/x@../../y/z",
        "hf://google/x@..%2F..%2Fy/z",
        "hf://google/x@a%2F/z",
        "hf://google/x/../y",
        "hf://google/x/%2E%2E/y",
        "hf://google/x//y/./z",
        "hf://goo gle/x/y",
    ],
)
def test_a_location_that_is_none_is_refused_without_asking(hub, location):
    for look in (inspect_sae, load_sae):
        words = r"a place on a hub must be hf://OWNER/NAME\[@REVISION\]/FOLDER, got 'hf://"
        with pytest.raises(StudyError, match=words):
            look(location)
    assert hub.asked == []


@pytest.mark.usefixtures("hub")
def test_a_repository_that_is_not_of_models_is_refused():
    words = r"must be in a repository of models, .* got 'hf://datasets/them/saes'"
    with pytest.raises(StudyError, match=words):
        inspect_sae("hf://datasets/them/saes")


def test_a_repository_a_revision_and_a_folder_that_are_not_there_are_told_apart(hub):
    location, _ = hub.add(gemma_scope())
    words = r"repository 'google/none' must be on the hub, http://127.* has none of that name"
    with pytest.raises(MissingFileError, match=words):
        inspect_sae("hf://google/none/layer_1")
    for revision in ("v9", "c" * 40):
        words = rf"'{revision}' must be a branch, tag or commit of .*2b-pt-res', it is none"
        with pytest.raises(MissingFileError, match=words):
            load_sae(location.replace("-res/", f"-res@{revision}/"))
    words = r"average_l0_83 is not there: hf://.*/layer_12/width_16k holds average_l0_82/$"
    with pytest.raises(MissingFileError, match=words):
        inspect_sae(location.replace("l0_82", "l0_83"))
    words = rf"res@{MAIN}/layer_99/w/l0 is not there: hf://google/\S*@{MAIN} holds layer_12/$"
    with pytest.raises(MissingFileError, match=words):
        inspect_sae("hf://google/gemma-scope-2b-pt-res/layer_99/w/l0")


def test_of_a_folder_with_much_in_it_the_first_are_named(hub):
    for n in range(10):
        (hub.folder("them/saes") / f"layer_{n}").mkdir()
        (hub.folder("them/saes") / f"layer_{n}" / "x.txt").write_text("x")
    with pytest.raises(MissingFileError, match=r"holds layer_0/, .*layer_7/ and 2 more$"):
        inspect_sae("hf://them/saes/layer_10")
    with pytest.raises(MissingFileError, match=r"known format, hf://\S+/layer_3 holds x\.txt; kn"):
        inspect_sae("hf://them/saes/layer_3")
    with pytest.raises(MissingFileError, match=r"hf://them/saes@a+ holds layer_0/, .* and 2 more;"):
        inspect_sae("hf://them/saes")
    words = r"a whole safetensors file, hf://\S+/layer_3/x\.txt is none"
    with pytest.raises(FormatError, match=words):
        inspect_sae("hf://them/saes/layer_3/x.txt")


def test_a_folder_with_half_of_a_format_says_what_it_lacks(hub):
    location, folder = hub.add(sparsify())
    (folder / "sae.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"layers\.10 holds cfg\.json and lacks .*sparsify"):
        inspect_sae(location)


@pytest.mark.parametrize("name", ["gemma_scope", "gemma_scope_2", "AutoEncoder"])
def test_a_gated_repository_says_how_to_get_in(hub, name):
    location, _ = hub.add(ALL[name])
    hub.gated |= set(hub.refs)
    words = r"must be open to you, .* gated: accept its licence there and log in, with HF_TOKEN"
    for look in (inspect_sae, load_sae):
        with pytest.raises(HubError, match=words):
            look(location)


@pytest.mark.parametrize("odd", [b"<html>log in", b"[]", b"{}", b'{"sha": 7}', b"null"])
def test_what_is_no_answer_of_a_hub_is_told(hub, odd):
    location, _ = hub.add(gemma_scope())
    hub.odd = odd
    words = r"must be reachable and answer for 'google/\S+', it did not: what it answered is not"
    with pytest.raises(HubError, match=words):
        inspect_sae(location)
    hub.odd = None
    hub.add(gemma_scope(), commit=OLD)
    hub.odd = odd if odd != b"[]" else b"[7]"
    with pytest.raises(HubError, match=words):
        inspect_sae(location.replace("-res/", f"-res@{OLD}/"))


def test_a_hub_that_fails_goes_on_failing_is_told(hub, no_waiting):
    location, _ = hub.add(gemma_scope())
    hub.failing = 99
    with pytest.raises(
        HubError, match=r"the hub at http://127\S+ must be reachable .*503.*OFFLINE"
    ):
        inspect_sae(location)
    assert no_waiting == [1, 2]


@pytest.mark.usefixtures("no_waiting")
def test_a_port_where_nobody_listens_is_told(tmp_path, monkeypatch):
    use(monkeypatch, f"http://127.0.0.1:{free_port()}", tmp_path)
    words = r"the hub at http://127\S+ must be reachable and answer for 'a/b', .*[Cc]onnection ref"
    with pytest.raises(HubError, match=words):
        inspect_sae("hf://a/b/c")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.usefixtures("no_waiting")
def test_a_hub_that_never_answers_is_given_up(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.3)
    hub.silent = True
    before = time.monotonic()
    with pytest.raises(HubError, match=r"must be reachable and answer for 'a/b', .*timed out"):
        inspect_sae("hf://a/b/c")
    assert 0.9 < time.monotonic() - before < 10


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("breaks_off", [False, True])
def test_a_file_that_does_not_arrive_whole_is_told(hub, breaks_off):
    location, folder = hub.add(large(gemma_scope()))
    inspect_sae(location)
    hub.without, hub.breaks_off = (folder / "params.npz").stat().st_size - 9, breaks_off
    words = r"params\.npz must be downloaded whole, it was not: .*; try again"
    with pytest.raises(HubError, match=words):
        load_sae(location)
    assert not list((hub.root.parent / "cache").rglob("params.npz"))
    hub.without, hub.breaks_off = 0, False
    assert load_sae(location).d_sae == 80_000


@pytest.mark.usefixtures("no_waiting")
def test_a_header_that_does_not_arrive_whole_is_told(hub):
    location, _ = hub.add(large(gemma_scope()))
    hub.without = 5
    words = r"bytes [\d,]+ to [\d,]+ of hf://\S+params\.npz must be there, .* sent 8,187: try again"
    with pytest.raises(HubError, match=words):
        inspect_sae(location)


def test_a_damaged_copy_in_the_cache_is_found_and_named(hub):
    location, _ = hub.add(gemma_scope())
    load_sae(location)
    (copy,) = (hub.root.parent / "cache").rglob("blobs/*")
    content = copy.read_bytes()
    copy.write_bytes(content[:-7])
    words = r"must have [\d,]+ bytes, as the hub says, .* has [\d,]+: delete \S+/blobs/\w+ and try"
    with pytest.raises(DamagedError, match=words):
        load_sae(location)
    place = content.index(b"W_enc.npy") + 200  # a weight, where the archive itself tells nothing
    copy.write_bytes(content[:place] + b"\0\0" + content[place + 2 :])
    with pytest.raises((DamagedError, FormatError), match=r"must (have the hash|be a whole)"):
        load_sae(location)


def test_other_weights_of_the_same_size_in_the_cache_are_found(hub):
    location, _ = hub.add(sparsify())
    load_sae(location)
    path = next((hub.root.parent / "cache").rglob("sae.safetensors")).resolve()
    content = path.read_bytes()
    path.write_bytes(content[:-8] + content[-4:] + content[-8:-4])
    words = r"sae\.safetensors must have the hash \w{64}, as the hub says, .* delete \S+/blobs/"
    with pytest.raises(DamagedError, match=words):
        load_sae(location)


def test_a_cache_that_cannot_be_written_is_told(hub, tmp_path, monkeypatch):
    location, _ = hub.add(sparsify())
    (tmp_path / "taken").write_text("")
    use(monkeypatch, hub.address, tmp_path / "taken")
    with pytest.raises(StorageError, match=r"the cache of the hub must be a folder .* HF_HOME"):
        load_sae(location)


def header(content: bytes, length: int | None = None) -> bytes:
    return (len(content) if length is None else length).to_bytes(8, "little") + content


TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"a header of 0 bytes in a file of 0$"),
        (b"\2\0\0", r"a header of 2 bytes in a file of 3$"),
        (header(b"{}", 2**60), r"a header of 1,152,921,504,606,846,976 bytes in a file of 10"),
        (header(b"{}", 3), r"a header of 3 bytes in a file of 10"),
        (header(b"xx"), r"Expecting value"),
        (header(b"[]"), r"is none: "),
        (header(b'"a"'), r"is none: "),
        (header(b"\xff\xff"), r"codec"),
        (header(b'{"W_enc": 3}'), r"is none: "),
        (header(b'{"W_enc": {"shape": [1]}}'), r"data_offsets"),
        (header(json.dumps({"W_enc": TENSOR}).encode()), r"its tensors do not fill it"),
        (header(json.dumps({"W_enc": TENSOR}).encode()) + b"12345", r"its tensors do not fill it"),
        (header(json.dumps({"W": TENSOR}).encode()) + b"1234", r"it lacks .* and holds W"),
    ],
)
def test_a_header_that_is_none_is_refused(hub, content, words):
    (hub.folder("them/saes") / "mine.safetensors").write_bytes(content)
    with pytest.raises(FormatError, match=rf"hf://them/saes@a+/mine\.safetensors .*{words}"):
        inspect_sae("hf://them/saes/mine.safetensors")


@pytest.mark.parametrize("name", ["gemma_scope", "sparsify", "AutoEncoder"])
def test_half_a_file_in_the_repository_is_refused(hub, name):
    location, folder = hub.add(ALL[name])
    path = folder / ALL[name].weights
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for look in (inspect_sae, load_sae):
        with pytest.raises(FormatError, match=rf"hf://\S+/{path.name} (must|is)"):
            look(location)


def test_a_position_before_the_beginning_is_refused(hub):
    hub.add(gemma_scope())
    place = hub_module.locate("hf://google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82")
    with (place / "params.npz").open("rb") as stream:
        with pytest.raises(OSError, match=r"a position must not be negative, got -1"):
            stream.seek(-1)
        assert (
            stream.seek(0, 2)
            == (hub.folder(place.repository.name) / place.path)
            .joinpath("params.npz")
            .stat()
            .st_size
        )
        assert stream.read(9) == b""


def test_a_file_that_the_listing_has_and_the_hub_does_not_give_is_told(hub):
    location, folder = hub.add(sparsify())
    assert inspect_sae(location).layer == 10
    (folder / "sae.safetensors").unlink()
    words = r"sae\.safetensors must be in repository 'them/saes', http\S+ does not have it"
    with pytest.raises((MissingFileError, HubError), match=words):
        load_sae(location)


# From end to end ---------------------------------------------------------------------------------

STUDY = {
    "saelign": 1,
    "name": "from-a-hub",
    "model_a": {
        "name": str(FOLDER / "A"),
        "tokenizer": str(FOLDER / "tokenizer"),
        "layers": [1],
        "saes": "hf://them/saes-a@v1/layer_{layer}.safetensors",
    },
    "model_b": {
        "name": str(FOLDER / "B"),
        "tokenizer": str(FOLDER / "tokenizer"),
        "layers": [5],
        "saes": {5: "hf://them/saes-b/here/layer_5.safetensors"},
    },
    "text": {"source": str(FOLDER / "text.safetensors"), "tokens": 4000},
    "matching": ["one_to_one"],
    "measures": ["cka"],
    "nulls": {"shuffle": 9, "rate_matched": 9},
    "verdicts": False,
    "controls": [{"seed": {"saes_a": "hf://them/saes-a@v1/seed/layer_{layer}.safetensors"}}],
    "output": {"store": "store", "folder": "results"},
}


def demo_hub(hub: Hub) -> None:
    hub.refs["them/saes-a"] = {"main": MAIN, "v1": OLD}
    a, b = hub.folder("them/saes-a", OLD), hub.folder("them/saes-b") / "here"
    (a / "seed").mkdir()
    b.mkdir()
    shutil.copy(FOLDER / "sae_A" / "layer_1.safetensors", a)
    shutil.copy(FOLDER / "sae_A_seed" / "layer_1.safetensors", a / "seed")
    shutil.copy(FOLDER / "sae_B" / "layer_5.safetensors", b)


def command(
    hub: Hub, folder: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    settings = {"HF_ENDPOINT": hub.address, "HF_HOME": str(folder / "hf"), "no_proxy": "*"}
    return subprocess.run(
        [SCRIPT, *arguments],
        cwd=folder,
        env={**keep, **settings, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_study_with_saes_on_a_hub_is_checked_by_headers_and_run(served, tmp_path, monkeypatch):
    demo_hub(served)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    checked = command(served, tmp_path, "check", "study.yaml", "--json")
    assert checked.returncode == 0, checked.stderr
    assert 0 < sum(served.sent.values()) <= 3 * 8192
    assert not list((tmp_path / "hf").rglob("*.safetensors"))
    ran = command(served, tmp_path, "run", "study.yaml")
    assert ran.returncode == 0, ran.stderr
    told = json.loads((tmp_path / "results" / "run.json").read_text())["models"]
    sources = {side: [sae["source"] for sae in of["saes"].values()] for side, of in told.items()}
    assert sources == {
        "a": [f"hf://them/saes-a@{OLD}/layer_1.safetensors"],
        "b": [f"hf://them/saes-b@{MAIN}/here/layer_5.safetensors"],
        "a_seed": [f"hf://them/saes-a@{OLD}/seed/layer_1.safetensors"],
    }
    n_asked = len(served.asked)
    use(monkeypatch, served.address, tmp_path / "hf" / "hub", HF_HUB_OFFLINE=True)
    monkeypatch.setattr(saelign.pipeline, "write_figures", lambda *_, **__: [])
    saelign.pipeline.run(load_study(tmp_path / "study.yaml"), out=tmp_path / "again")
    assert len(served.asked) == n_asked
    for name in ("scores.csv", "cells.csv"):
        assert (tmp_path / "again" / name).read_text() == (tmp_path / "results" / name).read_text()


def test_a_hub_that_cannot_be_reached_is_one_line_in_finite_time(served, tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    before = time.monotonic()
    nobody = f"http://127.0.0.1:{free_port()}"
    told = command(served, tmp_path, "check", "study.yaml", HF_ENDPOINT=nobody)
    assert time.monotonic() - before < 60
    assert (told.returncode, told.stdout) == (1, "")
    words = rf"saelign: the hub at {nobody} must be reachable and answer for 'them/saes-a', .*\n"
    assert re.fullmatch(words, told.stderr), told.stderr


def test_a_study_that_names_no_hub_does_not_import_what_reaches_one() -> None:
    code = (
        "import sys, saelign, saelign.study, saelign.locations\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        "from saelign.saes import inspect_sae\n"
        f"assert inspect_sae({str(FOLDER / 'sae_A' / 'layer_1.safetensors')!r}).d_sae\n"
        "assert 'huggingface_hub' not in sys.modules and 'sae_lens' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_places_that_are_no_paths_are_told_from_paths() -> None:
    assert is_remote("hf://a/b")
    assert is_remote("sae_lens:gpt2-small-res-jb/x")
    assert not is_remote("saes/hf://a")
    assert not is_remote("C:/saes")


# SAELens' registry -------------------------------------------------------------------------------


@dataclass
class Release:
    repo_id: str
    saes_map: dict[str, str]
    norm_scaling_factor: dict[str, float] = field(default_factory=dict)


CONFIG = {
    "architecture": "standard",
    "d_in": 6,
    "d_sae": 20,
    "normalize_activations": "none",
    "metadata": {"hook_name": "blocks.3.hook_resid_post", "model_name": "gpt2"},
}


@dataclass
class Registry:
    """What stands in for SAELens; it counts what it loads.

    Attributes:
        config: What it says of every SAE.
        error: What it raises instead.
        loaded: Release and id of what it loaded.
    """

    config: dict[str, Any]
    error: Exception | None = None
    loaded: list[tuple[str, str]] = field(default_factory=list)

    def tell(self, *_: str) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        return self.config

    def from_pretrained(self, release: str, sae_id: str) -> "Registry":
        self.tell(release, sae_id)
        self.loaded.append((release, sae_id))
        return self

    def parameters(self) -> list[torch.Tensor]:
        return []

    def save_model(self, folder: Path) -> None:
        arrays = ALL["gemma_scope"].arrays
        save_file(
            {name: arrays[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")},
            folder / "sae_weights.safetensors",
        )
        config = self.config | {"normalize_activations": "none"}
        (folder / "cfg.json").write_text(json.dumps(config))


@pytest.fixture
def sae_lens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    known = {
        "gpt2-small-res-jb": Release("jbloom/GPT2", {"blocks.3.hook_resid_post": "b", "x/y": "z"}),
        "scaled": Release("a/b", {"one": "1"}, {"one": 2.0}),
    }
    told = Registry(dict(CONFIG))
    package, directory, loaders = (ModuleType(name) for name in ("sae_lens", "dir", "loaders"))
    package.__dict__.update(SAE=told, __version__="6.5.0")
    directory.__dict__.update(get_pretrained_saes_directory=lambda: known)
    loaders.__dict__.update(load_sae_config_from_huggingface=told.tell)
    monkeypatch.setitem(sys.modules, "sae_lens", package)
    for name, module in (("saes_directory", directory), ("sae_loaders", loaders)):
        monkeypatch.setitem(sys.modules, f"sae_lens.loading.pretrained_{name}", module)
    monkeypatch.setenv("SAELIGN_STORE", str(tmp_path / "store"))
    return told


NAME = "sae_lens:gpt2-small-res-jb/blocks.3.hook_resid_post"


def test_a_name_that_saelens_knows_is_loaded_by_it_once(sae_lens, tmp_path):
    info = inspect_sae(NAME)
    assert (info.source, info.d_sae, info.layer, info.model) == (NAME, 20, 3, "gpt2")
    assert sae_lens.loaded == []
    sae = load_sae(NAME)
    assert (sae.source, sae.d_sae, sae.layer) == (NAME, 20, 3)
    assert load_sae(NAME).sha256 == sae.sha256
    assert len(sae_lens.loaded) == 1
    kept = tmp_path / "store" / "saes" / "sae_lens" / "6.5.0" / "gpt2-small-res-jb"
    assert [p.name for p in kept.iterdir()] == ["blocks.3.hook_resid_post"]
    sae_lens.error = AssertionError("asked again")
    assert inspect_sae(NAME) == info
    sae_lens.error = None
    sys.modules["sae_lens"].__dict__["__version__"] = "6.6.0"
    load_sae(NAME)
    assert len(sae_lens.loaded) == 2


def test_a_configuration_that_does_not_say_the_widths_has_the_sae_loaded(sae_lens):
    sae_lens.config["d_sae"] = None
    info = inspect_sae("sae_lens:gpt2-small-res-jb/x/y")
    assert (info.d_sae, info.source) == (20, "sae_lens:gpt2-small-res-jb/x/y")
    assert len(sae_lens.loaded) == 1


def test_a_norm_that_saelens_folds_is_no_hindrance(sae_lens):
    sae_lens.config["normalize_activations"] = "expected_average_only_in"
    assert inspect_sae("sae_lens:scaled/one").normalize == "none"
    words = rf"{re.escape(NAME)} normalises its input by 'expected_average_only_in', whose stat"
    with pytest.raises(FormatError, match=words):
        inspect_sae(NAME)


@pytest.mark.usefixtures("sae_lens")
def test_a_name_that_saelens_does_not_know_says_the_nearest():
    words = r"unknown release of SAELens 'gpt2-res-jb', the nearest of its 2 are: gpt2-small-res-jb"
    with pytest.raises(UnknownNameError, match=words):
        inspect_sae("sae_lens:gpt2-res-jb/x")
    words = r"unknown SAE of .*'gpt2-small-res-jb' 'blocks\.4', the nearest of its 2 are: blocks\.3"
    with pytest.raises(UnknownNameError, match=words):
        load_sae("sae_lens:gpt2-small-res-jb/blocks.4")


@pytest.mark.usefixtures("sae_lens")
@pytest.mark.parametrize("location", ["sae_lens:", "sae_lens:x", "sae_lens:/x", "sae_lens:x/"])
def test_what_is_no_name_of_saelens_is_refused(location):
    with pytest.raises(StudyError, match=r"must be sae_lens:RELEASE/SAE_ID, got 'sae_lens:"):
        inspect_sae(location)


def test_without_saelens_a_name_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    monkeypatch.setitem(sys.modules, "sae_lens.loading.pretrained_saes_directory", None)
    words = r"needs SAELens 6 or newer, .* pip install .*sae-lens.*; or say where .* hf://OWNER"
    for look in (inspect_sae, load_sae):
        with pytest.raises(MissingFileError, match=words):
            look(NAME)


def test_what_saelens_cannot_load_is_told(sae_lens):
    sae_lens.error = KeyError("hook_layer")
    words = r"one that SAELens can load, sae_lens:gpt2\S+ is not: 'hook_layer'"
    for look in (inspect_sae, load_sae):
        with pytest.raises(FormatError, match=words):
            look(NAME)
    sae_lens.error = ConnectionError("no route")
    words = r"the hub at \S+ must be reachable and answer for 'jbloom/GPT2', it did not: no route"
    for look in (inspect_sae, load_sae):
        with pytest.raises(HubError, match=words):
            look(NAME)


def test_a_file_that_saelens_misses_is_named(hub, sae_lens):
    hub.folder("jbloom/GPT2")
    with pytest.raises(Exception, match=r"Entry Not Found") as error:
        huggingface_hub.hf_hub_download("jbloom/GPT2", "b/cfg.json")
    sae_lens.error = error.value
    with pytest.raises(
        MissingFileError, match=r"^b/cfg\.json must be in repository 'jbloom/GPT2', "
    ):
        load_sae(NAME)


@pytest.mark.usefixtures("sae_lens")
def test_a_folder_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("SAELIGN_STORE", str(tmp_path / "taken"))
    with pytest.raises(StorageError, match=r"must be writable, it is not: .*\$SAELIGN_STORE"):
        load_sae(NAME)


def test_what_saelens_loaded_is_kept_in_a_users_cache(monkeypatch):
    monkeypatch.delenv("SAELIGN_STORE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert registry.kept_in() == Path("/caches/saelign/sae_lens")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/ada")
    assert registry.kept_in() == Path("/home/ada/.cache/saelign/sae_lens")


PUBLISHED = {
    "openmoss_early": "llama_scope",
    "AutoEncoderTopK": "dictionary_learning_1",
    "GatedAutoEncoder": "dictionary_learning_1",
    "BatchTopKSAE": "dictionary_learning_1",
    "standard": None,
    "topk": None,
    "jumprelu": None,
    "gated": None,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PUBLISHED)
def test_saelens_itself_computes_the_same_by_name(hub, name, tmp_path, monkeypatch):
    sae_lens = pytest.importorskip("sae_lens")
    directory = importlib.import_module("sae_lens.loading.pretrained_saes_directory")
    known = directory.get_pretrained_saes_directory()
    monkeypatch.setenv("SAELIGN_STORE", str(tmp_path / "store"))
    if PUBLISHED[name] is None:
        sae_class, cfg_class = sae_lens.registry.get_sae_class(name)
        made = sae_class(cfg_class(d_in=6, d_sae=20, **({"k": 4} if name == "topk" else {})))
        generator = torch.Generator().manual_seed(1)
        for parameter in made.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator).abs()
        made.cfg.metadata.hook_name = "blocks.3.hook_resid_post"
        made.save_model(hub.folder("them/saes") / name)
        repository, folder = "them/saes", name
    else:
        location, written = hub.add(ALL[name])
        config = written / ALL[name].config[0]
        config.write_text(json.dumps(ALL[name].config[1] | {"buffer": {"ctx_len": 1024}}))
        _, _, owner, repository, folder = location.split("/", 4)
        repository = f"{owner}/{repository}"
    entry = dataclasses.replace(
        known["gpt2-small-res-jb"],
        release="mine",
        repo_id=repository,
        conversion_func=PUBLISHED[name],
        saes_map={"one": folder},
        config_overrides=None,
        neuronpedia_id={},
        norm_scaling_factor={"one": 6**0.5 / 7.5} if name == "openmoss_early" else {},
    )
    monkeypatch.setitem(known, "mine", entry)
    info = inspect_sae("sae_lens:mine/one")
    n_asked = len(hub.asked)
    ours, theirs = load_sae("sae_lens:mine/one"), sae_lens.SAE.from_pretrained("mine", "one")
    assert len(hub.asked) > n_asked
    assert (info.d_model, info.d_sae, info.layer) == (6, 20, ours.layer)
    assert (info.activation, info.k, info.normalize) == (ours.activation, ours.k, ours.normalize)
    assert info.hook_name == ours.hook_name
    x = torch.from_numpy(X)
    with torch.no_grad():
        torch.testing.assert_close(encode(ours, x), theirs.encode(x), atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(reconstruct(ours, x), theirs(x), atol=2e-4, rtol=1e-4)
