"""Real processes that are killed, that run at once, and that fill the disk."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.torch import save_file

from conftest import N_LAYERS, lossless_sae, tiny_model, tiny_tokenizer
from saelign.activations import LayerActivations, open_activations
from saelign.activations.store import write_manifest
from saelign.results import open_run

SCRIPT = Path(sys.executable).with_name("saelign")
PROGRESS = re.compile(r"\[ *\d+\.\d s\] [A-Za-z ()]+: [\d,]+ of [\d,]+")
PATIENCE = 1800.0
"""Seconds after which something hangs; nothing is asserted about time."""

N_PAIRS = N_LAYERS * N_LAYERS
N_SHARDS = 2
"""Shards of a layer: the text is a little longer than one holds."""

STUDY: dict[str, Any] = {
    "saelign": 1,
    "name": "survivor",
    "model_a": {"name": "A", "saes": dict.fromkeys(range(N_LAYERS), "sae.safetensors")},
    "model_b": {"name": "B", "saes": dict.fromkeys(range(N_LAYERS), "sae.safetensors")},
    "text": {"source": "text.txt", "split": "blank_line", "context_length": 64},
    "filters": {
        "max_non_concept_tokens": None,
        "min_shared_tokens": None,
        "min_correlation": None,
    },
    "matching": ["one_to_one"],
    "measures": ["rsa"],
    "nulls": {"shuffle": 19, "rate_matched": 19},
}


# Processes ---------------------------------------------------------------------------------------


class Process:
    """`saelign run` in a process of its own, whose lines on stderr can be waited for."""

    def __init__(self, study: Path, out: Path, store: Path, before: Sequence[str] = ()) -> None:
        self.lines: list[str] = []
        self.running = subprocess.Popen(
            [*before, SCRIPT, "run", study, "--out", out],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(store),
        )
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self) -> None:
        """Take in the lines as they come."""
        assert self.running.stderr is not None
        for line in self.running.stderr:
            self.lines.append(line.rstrip("\n"))

    def wait_until(self, condition: Callable[["Process"], bool]) -> None:
        """Wait for a condition; a run that ends before it holds fails the test."""
        patient_until = time.monotonic() + PATIENCE
        while not condition(self):
            assert self.running.poll() is None, f"the run ended too early: {self.told}"
            assert time.monotonic() < patient_until, f"the run hangs: {self.told}"
            time.sleep(0.002)

    def kill(self) -> bool:
        """Kill it as the system does when memory runs out; whether it was still running."""
        self.running.send_signal(signal.SIGKILL)
        return self.end() == -signal.SIGKILL

    def end(self) -> int:
        """Wait for the end; gives the exit code."""
        try:
            code = self.running.wait(PATIENCE)
        finally:
            self.running.kill()
            self.reader.join()
            assert self.running.stderr is not None
            self.running.stderr.close()
        return code

    @property
    def told(self) -> str:
        """What stands on stderr."""
        return "\n".join(self.lines)

    def has_told(self, stage: str) -> bool:
        """Whether a stage has begun."""
        return any(f"] {stage}" in line for line in self.lines)


def environment(store: Path) -> dict[str, str]:
    """That of the process: its store, one thread, no network."""
    return {
        **os.environ,
        "SAELIGN_STORE": str(store),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def message(told: str) -> str:
    """The one line that is no progress."""
    lines = [line for line in told.splitlines() if not PROGRESS.fullmatch(line)]
    assert len(lines) == 1, told
    return lines[0]


# What is on the disk -----------------------------------------------------------------------------


@dataclass(frozen=True)
class OnDisk:
    """What a run has left: files with the time at which each was written.

    Attributes:
        shards: Of each side, those that a manifest lists.
        parts: Layer pairs that are finished.
    """

    shards: Mapping[str, Mapping[Path, int]]
    parts: Mapping[Path, int]

    @classmethod
    def at(cls, store: Path, out: Path) -> "OnDisk":
        """What is there now; manifests appear whole, so it may be asked while a run goes on."""
        shards: dict[str, dict[Path, int]] = {"a": {}, "b": {}}
        for path in store.glob("*/manifest.json"):
            manifest = json.loads(path.read_bytes())
            for shard in manifest["shards"]:
                file = path.parent / shard["file"]
                shards[manifest["provenance"]["side"]][file] = file.stat().st_mtime_ns
        return cls(shards, {p: p.stat().st_mtime_ns for p in finished_pairs(out)})

    def __str__(self) -> str:
        a, b = (f"{len(files)}/{N_LAYERS * N_SHARDS}" for files in self.shards.values())
        return f"shards of A {a}, of B {b}, layer pairs {len(self.parts)}/{N_PAIRS}"

    def holds(self, earlier: "OnDisk") -> bool:
        """Whether all of `earlier` is there as it was."""
        return (
            all(self.shards[side].items() >= earlier.shards[side].items() for side in "ab")
            and self.parts.items() >= earlier.parts.items()
        )

    def since(self, earlier: "OnDisk") -> str:
        """What was computed after `earlier`, in words."""
        new = [len(self.shards[side].keys() - earlier.shards[side].keys()) for side in "ab"]
        pairs = len(self.parts.keys() - earlier.parts.keys())
        return f"{new[0]} shards of A, {new[1]} of B, {pairs} layer pairs"


def finished_pairs(out: Path) -> list[Path]:
    return list(out.glob("parts/*/[!.]*.safetensors"))


def is_complete(out: Path) -> bool:
    path = out / "run.json"
    return path.is_file() and json.loads(path.read_bytes())["complete"]


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.is_file()]


def numbers(out: Path) -> dict[str, bytes]:
    """Every table of a run as it lies on the disk."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.csv"))}


def check_store(store: Path, *, complete: bool = True) -> None:
    """Every layer of the store can be read, each shard as it was written; nothing else is left."""
    manifests = sorted(store.glob("*/manifest.json"))
    assert manifests or not complete
    for path in manifests:
        layer = open_activations(path.parent)
        assert layer.complete or not complete
        assert sum(len(range(shard.shape[0])) for shard in layer.shards()) == layer.n_rows
    assert temporaries(store) == []


# The study ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of different make, an SAE that fits every layer, and text of forty documents."""
    here = tmp_path_factory.mktemp("survival")
    for seed, (name, architecture) in enumerate((("A", "gpt_neox"), ("B", "llama"))):
        tiny_model(architecture, seed).save_pretrained(here / name)
        tiny_tokenizer().save_pretrained(here / name)
    sae = lossless_sae()
    tensors = {name: getattr(sae, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    save_file(tensors, here / "sae.safetensors")
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 7, size=300)
    words = ["".join(rng.choice(list("abcdefghij"), size=length)) for length in lengths]
    documents = [" ".join(rng.choice(words, size=360)) for _ in range(40)]
    (here / "text.txt").write_text("\n\n".join(documents))
    (here / "study.yaml").write_text(yaml.safe_dump(STUDY))
    return here


@dataclass(frozen=True)
class Undisturbed:
    """A run from beginning to end.

    Attributes:
        study: Its study file.
        out: Its folder.
        store: Its store.
        seconds: What it took after its first line.
        numbers: Its tables.
    """

    study: Path
    out: Path
    store: Path
    seconds: float
    numbers: dict[str, bytes] = field(repr=False)


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Undisturbed:
    out, store = folder / "undisturbed", folder / "undisturbed-store"
    process = Process(folder / "study.yaml", out, store)
    process.wait_until(lambda process: process.has_told("check the study"))
    started = time.monotonic()
    assert process.end() == 0, process.told
    seconds = time.monotonic() - started
    check_store(store)
    assert len(list(store.glob("*/shard-*"))) == 2 * N_LAYERS * N_SHARDS
    assert temporaries(out) == []
    assert not (out / "parts").exists()
    assert {"scores.csv", "cells.csv"} <= numbers(out).keys()
    return Undisturbed(folder / "study.yaml", out, store, seconds, numbers(out))


# Killed ------------------------------------------------------------------------------------------


def test_a_run_killed_in_each_of_its_stages_does_only_what_is_missing(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    out, store = tmp_path / "out", tmp_path / "store"
    rng = np.random.default_rng(1)
    first, second = sorted(int(n) for n in rng.choice(np.arange(1, N_PAIRS), 2, replace=False))

    def shards_of(side: str) -> int:
        return len(OnDisk.at(store, out).shards[side])

    stages: dict[str, Callable[[Process], bool]] = {
        "check": lambda process: process.has_told("check the study"),
        "collect A, a shard written": lambda _: shards_of("a") > 0,
        "collect B, a shard written": lambda _: shards_of("b") > 0,
        "describe": lambda process: process.has_told("describe A"),
        f"compare, {first} layer pairs done": lambda _: len(finished_pairs(out)) >= first,
        f"compare, {second} layer pairs done": lambda _: len(finished_pairs(out)) >= second,
        "figures": lambda process: process.has_told("draw figures"),
    }
    log = ["killed in                       on the disk | done since the kill before"]
    before = OnDisk.at(store, out)
    for stage, is_reached in stages.items():
        process = Process(undisturbed.study, out, store)
        process.wait_until(is_reached)
        assert process.kill()
        after = OnDisk.at(store, out)
        log.append(f"{stage:<30}  {after} | {after.since(before)}")
        assert after.holds(before), log
        check_not_repeated(process, before)
        before = after
    assert len(before.parts) == N_PAIRS
    finish(undisturbed, out, store, before, log)
    (tmp_path / "kills.log").write_text("\n".join(log))
    print("", *log, sep="\n")


def test_a_run_killed_at_random_moments_does_only_what_is_missing(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    out, store = tmp_path / "out", tmp_path / "store"
    rng = np.random.default_rng(2)
    log = ["killed after       told last                              on the disk | done since"]
    before = OnDisk.at(store, out)
    kills = 0
    while kills < 3:
        process = Process(undisturbed.study, out, store)
        process.wait_until(lambda process: process.has_told("check the study"))
        share = rng.uniform()
        patient_until = time.monotonic() + share * undisturbed.seconds
        while time.monotonic() < patient_until and process.running.poll() is None:
            time.sleep(0.01)
        if not process.kill() or is_complete(out):  # too late: what it finished is taken away
            shutil.rmtree(out)
            before = OnDisk.at(store, out)
            continue
        kills += 1
        after = OnDisk.at(store, out)
        last = process.lines[-1].split("] ")[1]
        log.append(f"{share:4.0%} of a run's time  {last:<38} {after} | {after.since(before)}")
        assert after.holds(before), log
        check_not_repeated(process, before)
        before = after
    finish(undisturbed, out, store, before, log)
    (tmp_path / "kills.log").write_text("\n".join(log))
    print("", *log, sep="\n")


def finish(
    undisturbed: Undisturbed, out: Path, store: Path, before: OnDisk, log: list[str]
) -> None:
    """Start a killed run for the last time: it ends as if nothing had happened."""
    process = Process(undisturbed.study, out, store)
    assert process.end() == 0, process.told
    after = OnDisk.at(store, out)
    log.append(f"{'not killed':<30}  {after} | {after.since(before)}")
    assert all(after.shards[side].items() >= before.shards[side].items() for side in "ab"), log
    check_not_repeated(process, before)
    assert numbers(out) == undisturbed.numbers
    assert not (out / "parts").exists()
    assert open_run(out).info["complete"]


def check_not_repeated(process: Process, before: OnDisk) -> None:
    """No model is run whose activations were all there when the process began."""
    for side, shards in before.shards.items():
        if len(shards) == N_LAYERS * N_SHARDS:
            assert not process.has_told(f"collect {side.upper()}"), process.told


# At once -----------------------------------------------------------------------------------------


def test_two_runs_of_one_study_at_once_share_a_store(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    store, outs = tmp_path / "store", (tmp_path / "one", tmp_path / "two")
    processes = [Process(undisturbed.study, out, store) for out in outs]
    for process, out in zip(processes, outs, strict=True):
        assert process.end() == 0, process.told
        assert numbers(out) == undisturbed.numbers
        assert temporaries(out) == []
    check_store(store)


def test_two_studies_with_layers_in_common_at_once_share_a_store(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    layers = {"model_a": [1, 2], "model_b": [2]}
    content = {**STUDY, **{key: {**STUDY[key], "layers": of} for key, of in layers.items()}}
    study = undisturbed.study.with_name("fewer.yaml")
    study.write_text(yaml.safe_dump(content))
    store, whole, fewer = tmp_path / "store", tmp_path / "whole", tmp_path / "fewer"
    processes = [Process(undisturbed.study, whole, store), Process(study, fewer, store)]
    for process in processes:
        assert process.end() == 0, process.told
    assert numbers(whole) == undisturbed.numbers
    check_store(store)
    assert len(list(store.glob("*/manifest.json"))) == 2 * N_LAYERS
    there = {name: pd.read_csv(whole / name) for name in ("cells.csv", "scores.csv")}
    for name, table in there.items():
        common = table["layer_a"].isin(layers["model_a"]) & table["layer_b"].isin(layers["model_b"])
        # What is corrected over the family depends on which other layer pairs there are.
        columns = table.columns.difference(["q", "family_size", "floor_limited"])
        here = pd.read_csv(fewer / name)
        assert len(here) > 0
        pd.testing.assert_frame_equal(
            here[columns], table.loc[common, columns].reset_index(drop=True), check_exact=True
        )


# A full disk -------------------------------------------------------------------------------------


SHARD_BYTES = 7_000_000
"""A full shard of a layer, at least."""

FULL_STORE = re.compile(
    r"saelign: the store must be writable, cannot write \S+: (No space left on device|File too "
    r"large); what is stored already stays usable: free space or choose another folder, and run "
    r"again"
)
FULL_OUT = re.compile(
    r"saelign: \S+ must be writable, it is not: (.* )?(No space left on device|File too large); "
    r"free space or choose another folder with --out"
)
IN_SMALL = """
mount -t tmpfs -o size=$SMALL tmpfs "$FULL" || exit 77
"$@" >/dev/null 2>"$HERE/first.err"; echo $? >"$HERE/first.code"
cp -a "$FULL" "$HERE/left"
mount -o remount,size=1g "$FULL"
"$@" >/dev/null 2>"$HERE/second.err"; echo $? >"$HERE/second.code"
cp -a "$FULL" "$HERE/after"
"""
"""Run a command on a small disk, then again after that was made large."""


def on_small_disk(
    here: Path, full: Path, size: int, command: list[Path | str], environment: dict[str, str]
) -> None:
    """Run a command twice in a name space where `full` is a disk of its own.

    Leaves, under `here`, stderr and exit code of both and copies of the disk after each.
    """
    full.mkdir(parents=True, exist_ok=True)
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    told = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", IN_SMALL, "sh", *command],
        env={**environment, "SMALL": str(size), "FULL": str(full), "HERE": str(here)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if not (here / "first.code").exists():
        pytest.skip(f"no disk may be mounted here: {told.stderr.strip()}")


def no_file_above(n_bytes: int) -> list[str]:
    """What starts a command to which the system refuses longer files, as a full disk would.

    Python ignores the signal that comes with it, and what it starts inherits that.
    """
    code = (
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, "
        f"({n_bytes}, {n_bytes})); os.execv(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-c", code]


def test_a_disk_too_small_for_the_store_stops_a_run_that_later_goes_on(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    out, store = tmp_path / "out", tmp_path / "store"
    size = 5 * SHARD_BYTES  # three layers of A, and not all of B
    command = [SCRIPT, "run", undisturbed.study, "--out", out]
    on_small_disk(tmp_path, store, size, command, environment(store))
    told = (tmp_path / "first.err").read_text()
    assert (tmp_path / "first.code").read_text() == "1\n", told
    assert FULL_STORE.fullmatch(message(told)), told
    check_store(tmp_path / "left", complete=False)
    assert (tmp_path / "second.code").read_text() == "0\n", (tmp_path / "second.err").read_text()
    assert numbers(out) == undisturbed.numbers
    check_store(tmp_path / "after")
    written = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "left").glob("*/shard-*")}
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "after").glob("*/shard-*")}
    assert len(written) >= N_LAYERS
    assert after.items() >= written.items()


@pytest.mark.parametrize("share", [0.02, 0.4, 0.95])
def test_a_disk_too_small_for_the_results_stops_a_run_that_later_goes_on(
    share: float, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    files = [p for p in undisturbed.out.rglob("*") if p.is_file() and p.name != "report.html"]
    blocks = sum(-(-p.stat().st_size // 4096) for p in files)
    size = max(1, int(share * blocks)) * 4096
    command = [SCRIPT, "run", undisturbed.study, "--out", out]
    on_small_disk(tmp_path, out, size, command, environment(undisturbed.store))
    told = (tmp_path / "first.err").read_text()
    assert (tmp_path / "first.code").read_text() == "1\n", told
    assert FULL_OUT.fullmatch(message(told)), told
    assert temporaries(tmp_path / "left") == []
    assert (tmp_path / "second.code").read_text() == "0\n", (tmp_path / "second.err").read_text()
    assert numbers(tmp_path / "after") == undisturbed.numbers
    assert not (tmp_path / "after" / "parts").exists()


def test_a_disk_too_small_for_the_report_costs_nothing_but_the_page(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    files = [p for p in undisturbed.out.rglob("*") if p.is_file()]
    page = undisturbed.out / "report.html"
    size = 4096 * (sum(-(-p.stat().st_size // 4096) for p in files)) - page.stat().st_size // 2
    command = [SCRIPT, "run", undisturbed.study, "--out", out]
    on_small_disk(tmp_path, out, size, command, environment(undisturbed.store))
    told = (tmp_path / "first.err").read_text()
    assert (tmp_path / "first.code").read_text() == "0\n", told
    assert f"`saelign report {out}` tries again" in told
    assert not (tmp_path / "left" / "report.html").exists()
    assert numbers(tmp_path / "left") == undisturbed.numbers
    assert temporaries(tmp_path / "left") == []
    assert (tmp_path / "after" / "report.html").is_file()


def test_files_refused_by_the_store_stop_a_run_that_later_goes_on(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    out, store = tmp_path / "out", tmp_path / "store"
    process = Process(undisturbed.study, out, store, no_file_above(SHARD_BYTES // 2))
    assert process.end() == 1, process.told
    assert FULL_STORE.fullmatch(message(process.told)), process.told
    check_store(store, complete=False)
    process = Process(undisturbed.study, out, store)
    assert process.end() == 0, process.told
    assert numbers(out) == undisturbed.numbers
    check_store(store)


@pytest.mark.parametrize("n_bytes", [500, 15_000])
def test_files_refused_by_the_results_folder_stop_a_run_that_later_goes_on(
    n_bytes: int, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = Process(undisturbed.study, out, undisturbed.store, no_file_above(n_bytes))
    assert process.end() == 1, process.told
    assert FULL_OUT.fullmatch(message(process.told)), process.told
    assert temporaries(out) == []
    process = Process(undisturbed.study, out, undisturbed.store)
    assert process.end() == 0, process.told
    assert numbers(out) == undisturbed.numbers


def test_what_a_killed_run_was_writing_is_removed_once_it_is_old(tmp_path: Path) -> None:
    layer = LayerActivations(
        folder=tmp_path / "layer", d_sae=4, n_tokens=9, complete=False, shard_files=()
    )
    write_manifest(layer)
    old, new = (layer.folder / f".shard-00000.{name}.tmp" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half a shard")
    os.utime(old, (0, 0))
    write_manifest(layer)
    assert temporaries(tmp_path) == [new]
