"""What `saelign doctor` finds, on machines made up for it: no network, nothing of this one."""

import builtins
import importlib.metadata
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import saelign.concepts.wordnet
import saelign.doctor
from saelign.cli import main
from saelign.demo import demo_study
from saelign.doctor import (
    diagnose,
    has_bfloat16,
    hub,
    is_within,
    memory,
    no_answer,
    packages,
    parsed,
    processor,
    room,
    size,
    store,
    wordnet,
)
from saelign.plan import store_folder

GB = 10**9


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no store, data base or WordNet of the user's, and a folder of its own."""
    for name in ("WNHOME", "WNSEARCHDIR", "HF_ENDPOINT", "TRANSFORMERS_OFFLINE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("SAELIGN_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("WN_DATA_DIR", str(tmp_path / "wn_data"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(saelign.concepts.wordnet, "USUAL_PLACES", ())
    monkeypatch.chdir(tmp_path)


def feature(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in found["features"] if one["name"] == name)


def without(monkeypatch: pytest.MonkeyPatch, *lacking: str, **older: str) -> None:
    """Take distributions away, or give them another version."""
    version = importlib.metadata.version

    def told(name: str) -> str:
        if name in lacking:
            raise importlib.metadata.PackageNotFoundError(name)
        return older.get(name) or version(name)

    monkeypatch.setattr(importlib.metadata, "version", told)


def written(root: Path, **files: str) -> Path:
    """A tree of files, `__` in a name for a folder's slash."""
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


# The command -------------------------------------------------------------------------------------


def test_as_json_everything_found_is_printed_and_nothing_else(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["doctor", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    assert list(found) == [
        "saelign", "python", "packages", "devices", "memory", "disk", "store", "hub", "wordnet",
        "features", "ready",
    ]  # fmt: skip
    assert found["ready"]
    assert found["saelign"] == saelign.__version__
    assert found["packages"]["torch"]["version"] == importlib.metadata.version("torch")
    assert found["disk"]["store"]["folder"] == str(tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_the_text_tells_of_every_part_and_ends_with_the_verdict(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = [line.rstrip() for line in out.splitlines()]
    assert [line for line in lines if line in {"Packages", "This machine", "What it can do"}] == [
        "Packages",
        "This machine",
        "What it can do",
    ]
    starts = {line.split("  ")[0] for line in lines}
    assert {"saelign", "Python", "torch", "sae-lens", "CPU", "memory", "store", "hub"} <= starts
    assert {"run a study", "GPU", "models of the hub", "WordNet concepts"} <= starts
    assert lines[-1] == "a study can run"


def test_where_no_study_can_run_the_exit_code_is_1_and_the_text_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without(monkeypatch, "numba", scipy="1.2.0")
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    lines = {line.split("  ")[0]: line.strip() for line in out.splitlines()}
    assert lines["numba"].endswith("not installed, needed: >=0.61")
    assert lines["scipy"].endswith("1.2.0, needed: >=1.13")
    assert "missing: numba>=0.61; scipy>=1.13 (this is 1.2.0)" in lines["run a study"]
    assert "pip install 'numba>=0.61' 'scipy>=1.13'\n" in out.replace(" \n", "\n").replace("  ", "")
    assert out.rstrip().endswith("no study can run")


def test_without_rich_the_result_is_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without(monkeypatch, "rich")
    assert main(["doctor"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert feature(found, "run a study")["install"] == "pip install 'rich>=14.0'"


def test_importing_the_doctor_imports_the_standard_library_alone() -> None:
    code = "import sys, json, saelign.doctor; print(json.dumps(sorted(sys.modules)))"
    modules = json.loads(subprocess.check_output([sys.executable, "-c", code]))
    assert not {"torch", "numpy", "pandas", "rich", "packaging", "yaml"} & set(modules)


# Packages ----------------------------------------------------------------------------------------


def test_what_the_metadata_asks_for_is_what_is_looked_for() -> None:
    found = packages()
    assert found["numpy"] == {
        "version": importlib.metadata.version("numpy"),
        "needed": ">=2.0",
        "optional": False,
        "ready": True,
    }
    assert "pytest" not in found  # an extra's
    assert found["sae-lens"]["optional"]


@pytest.mark.parametrize(
    ("requirement", "expected"),
    [
        ("numpy>=2.0", ("numpy", ">=2.0", "")),
        ("torch >=2.13, <3", ("torch", ">=2.13,<3", "")),
        ("huggingface-hub[torch] (>=1)", ("huggingface-hub", ">=1", "")),
        ('ruff<0.18,>=0.17; extra == "dev"', ("ruff", "<0.18,>=0.17", ' extra == "dev"')),
        ("wn", ("wn", "", "")),
    ],
)
def test_requirements_are_read_as_metadata_writes_them(
    requirement: str, expected: tuple[str, str, str]
) -> None:
    assert parsed(requirement) == expected


@pytest.mark.parametrize(
    ("version", "bounds", "expected"),
    [
        ("2.13.0+cpu", ">=2.13", True),
        ("2.14.0a0+git1", ">=2.13", True),
        ("2.9.1", ">=2.13", False),
        ("0.18.0", "<0.18,>=0.17", False),
        ("1", "", True),
        ("built by hand", ">=1", True),
    ],
)
def test_versions_are_compared_as_pip_compares_them(
    version: str, bounds: str, expected: bool
) -> None:
    assert is_within(version, bounds) is expected


def test_too_old_a_python_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.python_version", lambda: "3.9.2")
    found = diagnose()
    assert not found["ready"]
    assert feature(found, "run a study") == {
        "name": "run a study",
        "ready": False,
        "found": "",
        "missing": ["Python >=3.11 (this is 3.9.2)"],
        "install": "install saelign with a newer Python",
    }


# Devices and room --------------------------------------------------------------------------------


def test_a_torch_that_cannot_be_imported_is_survived_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    imported = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> ModuleType:
        if name == "torch":
            raise OSError("libcudart.so.12: cannot open shared object file\nand more")
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["devices"]["torch"] == "libcudart.so.12: cannot open shared object file"
    told = feature(found, "run a study")
    assert told["missing"] == [
        "a torch that can be imported (libcudart.so.12: cannot open shared object file)"
    ]
    assert told["install"] == "pip install --force-reinstall torch"


def test_gpus_are_told_with_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (index * GB, 80 * GB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    found = diagnose()
    assert found["devices"]["cuda"][1] == {"name": "GPU 1", "total": 80 * GB, "free": GB}
    assert feature(found, "GPU")["found"] == "GPU 0, GPU 1, MPS"
    rows = dict(saelign.doctor.machine_rows(found))
    assert rows["CUDA"] == "GPU 0, 0 B of 80.0 GB free\nGPU 1, 1.0 GB of 80.0 GB free"


CPUINFO = "processor\t: 0\nmodel name\t: Pen and Paper\nflags\t\t: fpu avx512f{}\n"


def test_a_processor_says_whether_it_has_bfloat16(tmp_path: Path) -> None:
    root = written(tmp_path / "with", proc__cpuinfo=CPUINFO.format(" avx512_bf16"))
    assert has_bfloat16(root) is True
    assert processor(root) == "Pen and Paper"
    arm = written(tmp_path / "arm", proc__cpuinfo="Features\t: fp asimd bf16\n")
    assert has_bfloat16(arm) is True
    assert has_bfloat16(written(tmp_path / "no", proc__cpuinfo=CPUINFO.format(""))) is False
    assert has_bfloat16(tmp_path / "silent") is None


MEMINFO = "MemTotal:       16000000 kB\nMemFree:  1 kB\nMemAvailable:   12000000 kB\n"
K = 1024


def test_without_a_cgroup_memory_is_that_of_the_machine(tmp_path: Path) -> None:
    root = written(tmp_path, proc__meminfo=MEMINFO)
    expected = {"total": 16000000 * K, "available": 12000000 * K, "limited": False}
    assert memory(root) == expected
    unlimited = written(tmp_path, proc__self__cgroup="0::/a\n")
    (unlimited / "sys/fs/cgroup/a").mkdir(parents=True)
    (unlimited / "sys/fs/cgroup/a/memory.max").write_text("max\n")
    assert memory(unlimited) == expected


@pytest.mark.parametrize("at", ["a/b", "a", ""])
def test_the_lowest_limit_of_the_cgroups_above_counts_less_what_is_used(
    tmp_path: Path, at: str
) -> None:
    root = written(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/a/b\n")
    folder = root / "sys/fs/cgroup" / at
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text("4000000000\n")
    (folder / "memory.current").write_text("3000000000\n")
    (folder / "memory.stat").write_text("anon 5\ninactive_file 1000000000\n")
    assert memory(root) == {"total": 4 * GB, "available": 2 * GB, "limited": True}


def test_limits_of_the_first_version_of_cgroups_count_too(tmp_path: Path) -> None:
    root = written(
        tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="4:cpuset:/\n3:memory:/host/path\n"
    )
    folder = root / "sys/fs/cgroup/memory"  # a container sees its own group at the top
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert not memory(root)["limited"]
    (folder / "memory.limit_in_bytes").write_text("2000000000\n")
    (folder / "memory.usage_in_bytes").write_text("500000000\n")
    assert memory(root) == {"total": 2 * GB, "available": GB * 3 // 2, "limited": True}


def test_room_is_told_of_a_folder_yet_to_be_made_and_nothing_is_left(tmp_path: Path) -> None:
    found = room(tmp_path / "not" / "yet")
    assert found["folder"] == str(tmp_path / "not" / "yet")
    assert found["free"] > 0
    assert found["not_writable"] is None
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_written_stops_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SAELIGN_STORE", str(tmp_path / "file"))
    found = diagnose()
    assert not found["ready"]
    assert feature(found, "run a study")["missing"] == [
        f"a folder to write in ({tmp_path}/file: Not a directory)"
    ]
    assert feature(found, "run a study")["install"] == "set SAELIGN_STORE to another"
    assert dict(saelign.doctor.machine_rows(found))["store"] == (
        f"{tmp_path}/file: cannot be written (Not a directory)\nholds 0 layers, 0 B"
    )


def test_layers_of_the_store_are_counted_with_their_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    for name, manifest in (
        ("done", '{"complete": true}'),
        ("begun", '{"complete": false}'),
        ("damaged", '{"comp'),
    ):
        written(folder / name, **{"manifest.json": manifest, "shard": "12345"})
    (folder / "empty").mkdir()
    n_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert store(folder) == {"layers": 3, "bytes": n_bytes, "incomplete": 1, "unreadable": 1}
    told = dict(saelign.doctor.machine_rows(diagnose()))["store"]
    assert told.endswith(f"holds 3 layers, {n_bytes} B, 1 incomplete, 1 unreadable")


@pytest.mark.parametrize("variable", ["SAELIGN_STORE", "XDG_CACHE_HOME", None])
def test_the_store_is_where_a_study_would_have_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str | None
) -> None:
    monkeypatch.delenv("SAELIGN_STORE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if variable is not None:
        monkeypatch.setenv(variable, str(tmp_path / "there"))
    assert saelign.doctor.default_store() == store_folder(demo_study())


@pytest.mark.parametrize(
    ("n_bytes", "words"),
    [(None, "unknown"), (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (25_340_000_000, "25.3 GB")],
)
def test_sizes_are_told_in_words(n_bytes: int | None, words: str) -> None:
    assert size(n_bytes) == words


# The hub -----------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], str]]:
    """Answers on this machine with the code it is asked to; gives its address."""
    servers: list[HTTPServer] = []
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def serve(code: int) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(code)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for one in servers:
        one.shutdown()
        one.server_close()


def test_a_hub_that_answers_is_reachable(
    server: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", server(200) + "/")
    found = diagnose()
    assert found["hub"]["reachable"]
    assert not found["hub"]["endpoint"].endswith("/")
    assert feature(found, "models of the hub")["found"] == found["hub"]["endpoint"]


def test_a_hub_that_refuses_is_not_reachable_and_says_why(server: Callable[[int], str]) -> None:
    assert no_answer(server(403), 60.0) == "answered 403 Forbidden"


def test_an_address_at_which_nobody_listens_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert "refused" in str(no_answer("http://127.0.0.1:9", 60.0))
    assert no_answer("nonsense", 60.0) == "unknown url type: 'nonsense'"


def test_a_hub_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    given_up = threading.Event()

    def wait(*_: Any, **__: Any) -> None:
        given_up.wait()
        raise OSError("too late")

    monkeypatch.setattr("urllib.request.urlopen", wait)
    assert no_answer("https://huggingface.co", 0.01) == "no answer in 0.01 s"
    given_up.set()


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_the_hub_is_not_asked(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(saelign.doctor, "no_answer", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv(variable, "true")
    assert hub() == {
        "endpoint": "https://huggingface.co",
        "offline": variable,
        "reachable": False,
        "reason": f"offline, as {variable} asks",
    }
    told = feature(diagnose(), "models of the hub")
    assert told["missing"] == [f"https://huggingface.co (offline, as {variable} asks)"]
    assert told["install"] == f"unset {variable}; models in its cache can be used as it is"


def test_release_names_want_sae_lens_and_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    told = feature(diagnose(), "SAELens release names")
    if importlib.metadata.version("saelign") and "sae-lens" in told["missing"]:
        assert told["install"].startswith("pip install sae-lens; unset HF_HUB_OFFLINE")
    without(monkeypatch, "nothing", **{"sae-lens": "6.0.0"})
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(saelign.doctor, "no_answer", lambda _: None)
    told = feature(diagnose(), "SAELens release names")
    assert told["ready"]
    assert told["found"] == "sae-lens 6.0.0, https://huggingface.co"


def test_data_sets_by_name_want_the_library_and_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(saelign.doctor, "no_answer", lambda _: None)
    without(monkeypatch, "datasets")
    told = feature(diagnose(), "data sets by name")
    assert (told["missing"], told["install"]) == (["datasets"], "pip install 'saelign[datasets]'")
    without(monkeypatch, "nothing", datasets="4.0.0")
    told = feature(diagnose(), "data sets by name")
    assert told["ready"]
    assert told["found"] == "datasets 4.0.0, https://huggingface.co"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    told = feature(diagnose(), "data sets by name")
    assert told["install"].startswith("unset HF_HUB_OFFLINE")


# WordNet -----------------------------------------------------------------------------------------


def wordnet_at(folder: Path, *files: str) -> Path:
    return written(folder, **dict.fromkeys(files or ("data.noun", "index.noun"), ""))


@pytest.mark.parametrize(("variable", "below"), [("WNHOME", "dict"), ("WNSEARCHDIR", "")])
def test_wordnet_is_found_where_the_environment_says(
    variable: str, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wordnet_at(tmp_path / "wordnet" / below)
    monkeypatch.setenv(variable, str(tmp_path / "wordnet"))
    found = diagnose()
    assert found["wordnet"] == {"folder": str(tmp_path / "wordnet" / below), "wn": []}
    assert feature(found, "WordNet concepts")["ready"]


def test_wordnet_is_found_where_systems_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = (str(tmp_path / "not there"), str(wordnet_at(tmp_path / "wordnet")))
    monkeypatch.setattr(saelign.concepts.wordnet, "USUAL_PLACES", folders)
    assert wordnet()["folder"] == folders[1]


def test_a_wordnet_folder_without_the_nouns_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wordnet_at(tmp_path / "dict", "data.noun", "data.verb")
    monkeypatch.setenv("WNHOME", str(tmp_path))
    found = diagnose()
    assert found["wordnet"]["folder"] is None
    told = feature(found, "WordNet concepts")
    assert told["missing"] == ["WordNet (data.noun, index.noun)"]
    assert told["install"].startswith("apt install wordnet-base; ")


def test_an_english_lexicon_of_the_wn_library_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = ModuleType("wn")
    module.__spec__ = SimpleNamespace(name="wn")
    module.lexicons = lambda lang: [SimpleNamespace(specifier=lambda: f"oewn:2024 {lang}")]
    monkeypatch.setitem(sys.modules, "wn", module)
    assert wordnet()["wn"] == []  # it has no data base, and none is made
    assert not (tmp_path / "wn_data").exists()
    written(tmp_path / "wn_data", **{"wn.db": ""})
    found = diagnose()
    assert found["wordnet"]["wn"] == ["oewn:2024 en"]
    assert feature(found, "WordNet concepts")["found"] == "oewn:2024 en"

    def fail(lang: str) -> None:
        raise RuntimeError(f"no table of {lang}")

    module.lexicons = fail
    assert wordnet()["wn"] == []
