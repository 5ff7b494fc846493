"""The command line as someone tired meets it: what it prints, where, and what it says when not."""

import contextlib
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import save_file

import saelign.pipeline
import saelign.plan
from conftest import D_MODEL, lossless_sae, tiny_model, tiny_tokenizer
from saelign.cli import main
from saelign.demo import FOLDER, demo_study
from saelign.errors import MissingFileError
from saelign.results import FORMAT, open_run
from saelign.saes import SAE
from saelign.similarity import MEASURES
from saelign.text import Tokenizer
from test_results import made_run

COMMANDS = ("run", "check", "show", "demo", "doctor")
PROGRESS = re.compile(r"\[ *\d+\.\d s\] [A-Za-z ()]+: [\d,]+ of [\d,]+")
SCRIPT = Path(sys.executable).with_name("saelign")


@dataclass(frozen=True)
class Called:
    """What a command gave back."""

    code: int
    out: str
    err: str


def call(*arguments: str | Path) -> Called:
    """Run the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setenv("COLUMNS", "80")
        patch.delenv("FORCE_COLOR", raising=False)
        code = main([str(a) for a in arguments])
    return Called(code, out.getvalue(), err.getvalue())


def write_study(path: Path, content: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(dict(content)), encoding="utf-8")
    return path


def write_sae(path: Path, sae: SAE, **metadata: str) -> None:
    tensors = {name: getattr(sae, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    if sae.threshold is not None:
        tensors["threshold"] = sae.threshold
    save_file(tensors, path, metadata=metadata)


def changed(study: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The study with the changes, key by key within its parts."""
    return {
        **study,
        **{
            key: {**study[key], **value} if isinstance(value, dict) and key in study else value
            for key, value in changes.items()
        },
    }


DEMO: dict[str, Any] = {
    "saelign": 1,
    "name": "small",
    "model_a": {
        "name": str(FOLDER / "A"),
        "tokenizer": str(FOLDER / "tokenizer"),
        "saes": str(FOLDER / "sae_A" / "layer_{layer}.safetensors"),
        "layers": [1, 4],
        "dtype": "float32",
    },
    "model_b": {
        "name": str(FOLDER / "B"),
        "tokenizer": str(FOLDER / "tokenizer"),
        "saes": str(FOLDER / "sae_B" / "layer_{layer}.safetensors"),
        "layers": [5],
        "dtype": "float32",
    },
    "text": {"source": str(FOLDER / "text.safetensors"), "tokens": 3000},
    "matching": ["one_to_one"],
    "measures": ["rsa", {"svcca": {"n_components": 10}}],
    "nulls": {"shuffle": 19, "rate_matched": 19},
    "output": {"store": "store"},
}
"""Two layers of one shipped model beside one of the other."""

TINY: dict[str, Any] = {
    "saelign": 1,
    "name": "tiny",
    "model_a": {"name": "A", "saes": "sae/{layer}.safetensors", "layers": [1]},
    "model_b": {"name": "B", "saes": "sae/{layer}.safetensors", "layers": [1]},
    "text": {"source": "text.txt", "tokens": 2000, "context_length": 16},
    "filters": {
        "max_non_concept_tokens": None,
        "min_shared_tokens": None,
        "min_correlation": None,
    },
    "matching": ["one_to_one", "many_to_one"],
    "measures": ["rsa"],
    "nulls": {"shuffle": 9},
    "output": {"folder": "new", "store": "store"},
}
"""Two models of random weights with SAEs that reconstruct everything."""


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Called]:
    folder = tmp_path_factory.mktemp("demo")
    study = write_study(folder / "study.yaml", DEMO)
    return folder / "out", call("run", study, "--out", folder / "out")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny study, all that it names, its finished run in `old`, and its store."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "sae").mkdir()
    for seed, name in enumerate("AB"):
        tiny_model("gpt_neox", seed).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    for layer in range(3):
        write_sae(folder / "sae" / f"{layer}.safetensors", lossless_sae())
    words = np.random.default_rng(0).choice(list("abcdefghij ."), 3000)
    (folder / "text.txt").write_text("".join(words))
    study = write_study(folder / "study.yaml", TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saelign.pipeline, "write_figures", lambda *_, **__: [])
        assert call("run", study, "--out", folder / "old").code == 0
    return folder


# What is printed, and where ----------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    told, err = capsys.readouterr()
    assert err == ""
    assert re.search(rf"^examples?:\n  saelign {command}", told, flags=re.MULTILINE)
    assert "--json" in told


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    told = capsys.readouterr().out
    assert all(re.search(rf"^    {command} ", told, flags=re.MULTILINE) for command in COMMANDS)
    assert "example:\n  saelign demo" in told


@pytest.mark.parametrize("command", [[SCRIPT], [sys.executable, "-m", "saelign.cli"]])
def test_the_version_is_printed_by_script_and_module(command: list[str | Path]) -> None:
    told = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert told.stdout == f"saelign {saelign.__version__}\n"
    assert told.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["compare"], "invalid choice: 'compare'"),
        (["run"], "the following arguments are required: STUDY"),
        (["show", "results", "--matchin"], "expected one argument"),
        (["check", "study.yaml", "--quiet"], "unrecognized arguments: --quiet"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_is_wrong(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: saelign")
    assert words in err


def test_a_run_prints_its_tables_on_stdout_and_plain_lines_of_progress_on_stderr(
    demo_run: tuple[Path, Called],
) -> None:
    folder, told = demo_run
    assert told.code == 0
    lines = told.err.splitlines()
    assert all(PROGRESS.fullmatch(line) for line in lines), told.err
    stages = [line.split("] ")[1].split(":")[0] for line in lines]
    assert list(dict.fromkeys(stages)) == [
        "check the study",
        "collect A (tokens)",
        "unembed decoder of A",
        "collect B (tokens)",
        "unembed decoder of B",
        "compare layers",
        "describe A",
        "describe B",
        "draw figures",
        "write the report",
    ]
    assert told.out.startswith("small: A = ")
    assert "3,000 tokens, saelign " in told.out
    assert "Where the models are most alike: one_to_one, rate_matched null" in told.out
    assert told.out.endswith(
        f"\nresults: {folder}\nfigures: {folder}/figures (start with correlation_one_to_one.png)\n"
        f"report: {folder}/report.html\n"
    )
    assert (folder / "figures" / "correlation_one_to_one.png").is_file()
    assert " of 3,000" not in told.out


def test_show_prints_what_the_run_printed(demo_run: tuple[Path, Called]) -> None:
    folder, told = demo_run
    assert call("show", folder) == Called(0, told.out, "")


def test_show_as_json_prints_every_score_exactly_and_nothing_else(
    demo_run: tuple[Path, Called],
) -> None:
    folder, _ = demo_run
    told = call("show", folder, "--json")
    assert (told.code, told.err) == (0, "")
    content = json.loads(told.out)
    assert content["folder"] == str(folder)
    assert content["warnings"] == open_run(folder).info["warnings"]
    scores = open_run(folder).scores
    assert len(scores) == len(content["scores"]) == 2 * 2 * 2
    for row, record in zip(scores.to_dict("records"), content["scores"], strict=True):
        assert row.keys() == record.keys()
        for key, value in row.items():
            assert record[key] is None if pd.isna(value) else record[key] == value, key


def test_a_small_p_and_a_missing_score_survive_as_json(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    scores = run.scores
    scores.loc[0, "p"] = 1.2345678901234e-12
    scores.loc[1, ["score", "n_components"]] = [np.nan, pd.NA]
    scores.to_parquet(tmp_path / "scores.parquet")
    told = json.loads(call("show", tmp_path, "--json").out)["scores"]
    assert told[0]["p"] == 1.2345678901234e-12
    assert told[1]["score"] is None
    assert told[1]["n_components"] is None


def test_show_of_one_matching_tells_of_no_other(tmp_path: Path) -> None:
    made_run(tmp_path)
    told = call("show", tmp_path, "--matching", "many_to_one")
    assert told.code == 0
    assert "many_to_one" in told.out
    assert "one_to_one" not in told.out
    told = call("show", tmp_path, "--matching", "many_to_one", "--json")
    assert {row["matching"] for row in json.loads(told.out)["scores"]} == {"many_to_one"}


def test_the_figure_that_is_pointed_at_is_there(tmp_path: Path) -> None:
    run = made_run(tmp_path, matchings=("many_to_one",), seeds=(3, 4))
    assert f"figures: {tmp_path}/figures\n" in call("show", tmp_path).out
    figure = tmp_path / "figures" / "correlation_many_to_one.png"
    figure.parent.mkdir()
    figure.touch()
    for arguments in ([], ["--matching", "many_to_one"]):
        told = call("show", run.folder, *arguments).out
        assert told.endswith(f"figures: {figure.parent} (start with {figure.name})\n")


def test_a_path_with_brackets_is_printed_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "[bold]run :smile:"
    made_run(folder)
    assert f"results: {folder}\n" in call("show", folder).out


def test_a_run_with_several_matchings_gives_all_as_json_and_says_how_to_see_the_others(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saelign.pipeline, "write_figures", lambda *_, **__: [])
    study, out = tiny / "study.yaml", tmp_path / "out"
    content = json.loads(call("run", study, "--out", out, "--json").out)
    assert {row["matching"] for row in content["scores"]} == {"one_to_one", "many_to_one"}
    told = call("run", study, "--out", out)
    assert told.code == 0
    assert "rsa, many_to_one" not in told.out
    assert told.out.endswith(f"\nmany_to_one: saelign show {out} --matching many_to_one\n")
    assert "rsa, many_to_one" in call("show", out, "--matching", "many_to_one").out


def test_check_says_what_a_study_comes_to_and_leaves_nothing_behind(
    tiny: Path, tmp_path: Path
) -> None:
    study = write_study(
        tiny / "several.yaml",
        changed(TINY, {"seeds": [0, 1], "output": {"folder": "a/b", "store": "c/d"}}),
    )
    before = sorted(tiny.iterdir())
    told = call("check", study)
    assert (told.code, told.err) == (0, "")
    takes, rest = [], []
    for line in told.out.splitlines(keepends=True):
        (takes if line.startswith("   takes: ") else rest).append(line)
    # How fast the machine is and what is free differs.
    assert re.fullmatch(
        r"   takes: up to \d\.\d GiB of memory \(limit \d+\.\d GiB\), 0\.0 GiB of disk in the "
        r"store, roughly collecting \d+ s and comparing \d+ s\n",
        *takes,
    )
    assert "".join(rest) == (
        "   study: tiny\n"
        " model a: name A, layers 1\n"
        " model b: name B, layers 1\n"
        "  tokens: 2,000, 2,000\n"
        "  masked: padding 0, special 134, first position 0, surplus 10; "
        "padding 0, special 134, first position 0, surplus 10\n"
        "controls: none\n"
        "   cells: 4\n"
        "  scores: 4\n"
        f"     out: {tiny}/a/b\n"
        f"   store: {tiny}/c/d\n"
        " verdict: this study can run\n"
    )
    told = call("check", study, "--out", tmp_path / "elsewhere", "--json")
    assert (told.code, told.err) == (0, "")
    content = json.loads(told.out)
    assert content["tokens"] == [2000, 2000]
    assert content["takes"]["memory_bytes"] <= content["takes"]["memory_limit_bytes"]
    assert content["out"] == str(tmp_path / "elsewhere")
    assert sorted(tiny.iterdir()) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["check", "run"])
def test_less_memory_than_a_study_needs_is_refused_before_anything_is_done(
    command: str, tiny: Path
) -> None:
    study = write_study(tiny / "little.yaml", {**TINY, "output": {"folder": "little"}})
    told = call(command, study, "--memory", "100MB")
    assert (told.code, told.out) == (1, "")
    assert re.search(
        r"saelign: memory must be at least \d\.\d GiB (for this study|to run a model of this study "
        r"with one SAE), got 0\.1 GiB: give more with --memory, ",
        told.err,
    )
    assert not (tiny / "little").exists()
    told = call(command, study, "--memory", "8 gib")
    assert told.code == 0
    told = call(command, study, "--memory", "much")
    assert told.err.endswith(
        "saelign: memory must be a number of bytes or such as 8GiB or 500MB, got 'much'\n"
    )


def test_a_models_revision_is_not_asked_of_a_tokenizer_from_elsewhere(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []
    load = saelign.plan.load_tokenizer

    def ask(name: str, revision: str | None) -> Tokenizer:
        asked.append((Path(name).name, revision))
        return load(name, revision)

    monkeypatch.setattr(saelign.plan, "load_tokenizer", ask)
    models = {"model_a": {"revision": "step3"}, "model_b": {"revision": "step3", "tokenizer": "A"}}
    assert call("check", write_study(tiny / "revised.yaml", changed(TINY, models))).code == 0
    assert asked == [("A", "step3"), ("A", None)]


def test_on_a_terminal_progress_is_bars_while_stdout_stays_json_alone(
    tiny: Path, tmp_path: Path
) -> None:
    terminal, stderr = pty.openpty()
    seen: list[bytes] = []

    def watch() -> None:
        # Linux ends a pseudo-terminal whose other side was closed with an error.
        with contextlib.suppress(OSError):
            while chunk := os.read(terminal, 65536):
                seen.append(chunk)

    watcher = threading.Thread(target=watch)
    watcher.start()
    told = subprocess.run(
        [SCRIPT, "run", tiny / "study.yaml", "--out", tmp_path / "out", "--json"],
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
        check=False,
    )
    os.close(stderr)
    watcher.join()
    os.close(terminal)
    bars = b"".join(seen).decode()
    assert told.returncode == 0, bars
    assert len(json.loads(told.stdout)["scores"]) == 2
    assert "━━━" in bars
    assert re.search(r"draw figures.*(\d+)/\1", bars)
    assert not PROGRESS.search(bars)
    assert bars.count("\x1b[?25h") == 1  # the cursor is shown again


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_has_seen_enough_ends_the_output_quietly(
    tmp_path: Path, options: list[str]
) -> None:
    made_run(tmp_path, layers_a=range(6), layers_b=range(6))
    with subprocess.Popen(
        [SCRIPT, "show", tmp_path, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


def test_a_run_stopped_from_the_keyboard_says_that_it_can_go_on(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(saelign.pipeline, "run", stop)
    assert call("run", tiny / "study.yaml") == Called(
        130, "", "saelign: stopped; start it again, it goes on where it stopped\n"
    )


def test_an_error_that_is_none_of_saeligns_own_is_not_hidden(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(saelign.pipeline, "run", fail)
    with pytest.raises(ZeroDivisionError):
        call("run", tiny / "study.yaml")


# Standard input ----------------------------------------------------------------------------------


def test_a_study_of_standard_input_runs_as_one_of_a_file_does(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saelign.pipeline, "write_figures", lambda *_, **__: [])
    here = tmp_path / "here"
    shutil.copytree(tiny, here)
    study = write_study(here / "study.yaml", changed(TINY, {"text": {"source": "-"}}))
    text = (here / "text.txt").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert call("check", study).code == 0
    assert call("run", study, "--out", here / "piped").code == 0
    assert call("run", study, "--out", here / "piped").code == 0
    infos = [json.loads((here / name / "run.json").read_text()) for name in ("piped", "old")]
    assert infos[0]["text"] == infos[1]["text"]
    assert infos[0]["study"]["text"]["source"] == "-"
    scores = [pd.read_parquet(here / name / "scores.parquet") for name in ("piped", "old")]
    pd.testing.assert_frame_equal(*scores)


def test_check_reads_what_is_piped_into_it(tiny: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    shutil.copytree(tiny, here)
    study = write_study(here / "study.yaml", changed(TINY, {"text": {"source": "-"}}))
    command = [SCRIPT, "check", study, "--json", "--out", tmp_path / "out"]
    with (here / "text.txt").open("rb") as text:
        told = subprocess.run(command, stdin=text, capture_output=True, check=False)
    assert (told.returncode, told.stderr) == (0, b"")
    assert json.loads(told.stdout)["tokens"] == [2000]
    nothing = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert nothing.returncode == 1
    assert nothing.stderr == b"saelign: text must hold words, standard input is empty\n"


# The demo ----------------------------------------------------------------------------------------


def test_the_demo_reads_the_shipped_text_unless_told_otherwise() -> None:
    study = demo_study()
    assert study.text.source == "text.safetensors"
    assert study.folder == FOLDER
    assert not study.text.allow_fewer


def test_the_demo_reads_any_text_file_or_folder_however_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "book.txt").write_text("Once upon a time.")
    monkeypatch.chdir(tmp_path)
    for text in ("book.txt", tmp_path / "book.txt", tmp_path):
        study = demo_study(text=text)
        assert study.text.source == str(tmp_path / text)
        assert study.text.allow_fewer
        assert study.text.tokens == demo_study().text.tokens
        assert study.model_a == demo_study().model_a


def test_the_demo_reads_standard_input() -> None:
    assert demo_study(text="-").text.source == "-"


def test_a_missing_text_stops_the_demo_before_anything_else(tmp_path: Path) -> None:
    words = f"text must be a file or folder, {tmp_path}/book.txt is not there"
    with pytest.raises(MissingFileError) as raised:
        demo_study(text=tmp_path / "book.txt")
    assert str(raised.value) == words
    told = call("demo", "--text", tmp_path / "book.txt", "--out", tmp_path / "out")
    assert told == Called(1, "", f"saelign: {words}\n")
    assert list(tmp_path.iterdir()) == []


# Bad input ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bad:
    """Something that a tired researcher does.

    Attributes:
        says: The whole message; `…` stands for words of another package's, on the same line.
        study: What is other in the study.
        files: What is other in the folder; may give names to format the message with.
        command: What is typed, if it is not `run study.yaml`.
        code: The exit code.
    """

    says: str
    study: Mapping[str, Any] | None = None
    files: Callable[[Path], dict[str, Any] | Any] | None = None
    command: tuple[str, ...] = ("run", "{here}/study.yaml")
    code: int = 1


def flip(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[-5] ^= 255
    path.write_bytes(content)
    return path


def stored(here: Path, pattern: str) -> Path:
    return sorted(here.glob(f"store/*/{pattern}"))[0]


def damaged_shard(here: Path) -> dict[str, Path]:
    return {"file": flip(stored(here, "shard-*"))}


def damaged_manifest(here: Path) -> dict[str, Path]:
    path = stored(here, "manifest.json")
    path.write_text('{"format_version": 1, "shards": [')
    return {"file": path}


def manifest_without_entries(here: Path) -> dict[str, Path]:
    path = stored(here, "manifest.json")
    path.write_text('{"format_version": 1}')
    return {"file": path}


def missing_shard(here: Path) -> dict[str, Path]:
    path = stored(here, "shard-*")
    path.unlink()
    return {"file": path}


def newer_manifest(here: Path) -> dict[str, Path]:
    path = stored(here, "manifest.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 2}))
    return {"file": path}


def file_at(name: str, content: str = "in the way") -> Callable[[Path], Any]:
    def write(here: Path) -> None:
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(content)

    return write


def sae_at_layer_1(sae: SAE, **metadata: str) -> Callable[[Path], Any]:
    return lambda here: write_sae(here / "sae" / "1.safetensors", sae, **metadata)


def sae_of_layer_0(here: Path) -> None:
    """At layer 1 an SAE that keeps what varies most at layer 0, and its mean."""
    model = tiny_model("gpt_neox", 0)
    ids = torch.randint(2, 12, (50, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stream = model(ids, output_hidden_states=True).hidden_states[1].reshape(-1, D_MODEL)
    mean = stream.mean(dim=0)
    _, _, axes = torch.linalg.svd(stream - mean, full_matrices=False)
    both = torch.cat([axes[:8], -axes[:8]]).contiguous()
    sae = lossless_sae(W_enc=both.T.contiguous(), W_dec=both, b_enc=-both @ mean, b_dec=mean)
    write_sae(here / "sae" / "1.safetensors", sae)


def embedding_of_a(value: float) -> Callable[[Path], Any]:
    """Gives model A a broken weight, of the letter that each context of a new text begins with."""

    def write(here: Path) -> None:
        model = tiny_model("gpt_neox", 0)
        with torch.no_grad():
            model.get_input_embeddings().weight[2, 3] = value
        model.save_pretrained(here / "A")
        (here / "text.txt").write_text("abcdefghij .abc" * 200)

    return write


def tokenizer_of_b(words: str) -> Callable[[Path], Any]:
    return lambda here: tiny_tokenizer(words).save_pretrained(here / "B")


SHOW = ("show", "{here}/old")
BAD = {
    "a layer that the model does not have": Bad(
        study={"model_a": {"layers": [1, 3]}},
        says="layers of model A must lie between 0 and 2, got 3: A has 3 blocks, counted from 0",
    ),
    "an SAE of another width": Bad(
        files=sae_at_layer_1(lossless_sae(8)),
        says="an SAE must be as wide as what it reads, {here}/sae/1.safetensors reads 8 dimensions "
        "and the residual stream after block 1 has 16: it belongs to another model",
    ),
    "an SAE of another layer": Bad(
        files=sae_at_layer_1(lossless_sae(), hook_name="blocks.2.hook_resid_post"),
        says="an SAE must be read where it was trained, {here}/sae/1.safetensors says "
        "'blocks.2.hook_resid_post' (residual stream after block 2) and is to read the residual "
        "stream after block 1: choose layer 2",
    ),
    "an SAE of another site": Bad(
        files=sae_at_layer_1(lossless_sae(), hook_name="blocks.1.hook_mlp_out"),
        says="an SAE must be read where it was trained, {here}/sae/1.safetensors says "
        "'blocks.1.hook_mlp_out' (MLP output of block 1) and is to read the residual stream after "
        "block 1: choose `site: mlp_out` in the study",
    ),
    "an SAE of no site": Bad(
        files=sae_at_layer_1(lossless_sae(), hook_name="blocks.1.hook_resid_mid"),
        says="an SAE must read the residual stream, or what the MLP or the attention of a block "
        "gives, {here}/sae/1.safetensors reads 'blocks.1.hook_resid_mid': choose one of "
        "hook_resid_post, hook_resid_pre, hook_mlp_out, hook_attn_out or attn.hook_z",
    ),
    "a site that is none": Bad(
        study={"model_a": {"site": "resid_mid"}},
        says="model_a.site must be one of resid_post, resid_pre, mlp_out, attn_out, attn_z, got "
        "'resid_mid'",
    ),
    "a module beside the residual stream": Bad(
        study={"model_a": {"module": "mlp"}},
        says="model_a.module must go with a site inside a block (mlp_out, attn_out, attn_z), got "
        "'mlp' beside resid_post: say the site, or leave the module out",
    ),
    "an SAE without a live feature": Bad(
        files=sae_at_layer_1(
            lossless_sae(threshold=torch.full((32,), 1e9), activation="jumprelu")
        ),
        says="an SAE must have live features, none of the 32 of {here}/sae/1.safetensors is active "
        "on 2,000 tokens at layer 1: is it an SAE of this model?",
    ),
    "an SAE that says nothing and is of another layer": Bad(
        files=sae_of_layer_0,
        says="an SAE must explain its own layer best, {here}/sae/1.safetensors explains … at layer "
        "1 and … at layer 0: layer 0 fits best (…), read it there",
    ),
    "an SAE that fits no layer": Bad(
        files=sae_at_layer_1(lossless_sae(W_dec=torch.cat([-torch.eye(16), torch.eye(16)]))),
        says="an SAE must explain at least 0.3 of the variance of its layer, "
        "{here}/sae/1.safetensors explains -… at layer 1: no layer of this model fits, is it an "
        "SAE of this model and of this site?",
    ),
    "an SAE with weights that are NaN": Bad(
        files=sae_at_layer_1(lossless_sae(b_dec=torch.full((16,), torch.nan))),
        says="weights must be finite, b_dec of {here}/sae/1.safetensors holds NaN or infinite "
        "values",
    ),
    "activations that are NaN": Bad(
        files=embedding_of_a(torch.nan),
        says="what an SAE reads must be finite, the residual stream after block 0 is not at "
        "context 0, position 1 (token id 2): run the model in float32 or bfloat16, or check its "
        "weights",
    ),
    "activations that are infinite": Bad(
        files=embedding_of_a(torch.inf),
        says="what an SAE reads must be finite, the residual stream after block 0 is not at "
        "context 0, position 1 (token id 2): run the model in float32 or bfloat16, or check its "
        "weights",
    ),
    "a missing SAE": Bad(
        study={"model_a": {"saes": "sae/layer_{layer}.safetensors"}},
        says="an SAE must be a file or a folder, {here}/sae/layer_1.safetensors is not "
        "there",
    ),
    "an SAE that is no safetensors file": Bad(
        files=file_at("sae/1.safetensors"),
        says="an SAE must be a safetensors file, {here}/sae/1.safetensors is none: …",
    ),
    "token ids for tokenizers of as many tokens that differ": Bad(
        study={"text": {"source": "ids.safetensors"}},
        files=tokenizer_of_b("abcdefghijklmnopqrstuvwxyz ,.\n"),
        says="both models must read the same tokens, token 29 is '.' in {here}/A and ',' in "
        "{here}/B: choose two models that share a tokenizer",
    ),
    "token ids for tokenizers of different size": Bad(
        study={"text": {"source": "ids.safetensors"}},
        files=tokenizer_of_b("abcdefghijklmnopqrstuvwxyz"),
        says="both models must read the same tokens, got 32 tokens in {here}/A and 28 in {here}/B: "
        "choose two models that share a tokenizer",
    ),
    "an empty text": Bad(
        files=file_at("text.txt", " \n"), says="text must hold words, {here}/text.txt is empty"
    ),
    "a text too short": Bad(
        files=file_at("text.txt", "abc " * 100),
        says="at least 1,000 tokens must count, got 400: give more text",
    ),
    "a text of fewer tokens than asked for": Bad(
        study={"text": {"tokens": 5000}},
        says="the text must hold the 5,000 tokens asked for, it holds 3,000: give more text, or "
        "ask for at most 3,000",
    ),
    "a missing text": Bad(
        study={"text": {"source": "book.txt"}},
        says="text must be a file or a folder of files, {here}/book.txt is not there: give its "
        "path, or ask for a data set as {{dataset: NAME}}",
    ),
    "a Parquet file cut short": Bad(
        study={"text": {"source": "text.parquet"}},
        files=file_at("text.parquet", "PAR1"),
        says="{here}/text.parquet must be a Parquet file, it cannot be read as one: …; see whether "
        "it was cut short, and copy it again",
    ),
    "lines without the column asked for": Bad(
        study={"text": {"source": "text.jsonl", "column": "txt"}},
        files=file_at("text.jsonl", '{"text": "abc"}'),
        says="unknown column of line 1 of {here}/text.jsonl 'txt' (did you mean 'text'?), expected "
        "one of: text",
    ),
    "a data set streamed to its end": Bad(
        study={"text": {"source": {"dataset": "a/b", "streaming": True}}},
        says="text.documents must be a number where a data set is streamed, got all: say how many "
        "to read, or leave streaming out",
    ),
    "token ids that are to be cut": Bad(
        study={"text": {"source": "text.safetensors", "documents": 10}},
        says="text.documents must be left out where the text is token ids, which are cut already, "
        "got 10 for {here}/text.safetensors",
    ),
    "contexts longer than the model can read": Bad(
        study={"text": {"context_length": 512}},
        says="contexts must fit into the 64 positions of model A, got contexts of 512 tokens: "
        "lower text.context_length, or give shorter rows of token ids",
    ),
    "fewer than three pairs left": Bad(
        study={"filters": {"min_correlation": 0.999}},
        says="at least one layer pair must be scored, none of 2 could be: at least 3 pairs are "
        "needed to compare, got 0: loosen the filters or use more text (pairs and their reasons "
        "are in {here}/new)",
    ),
    "a file where the run's folder must be": Bad(
        files=file_at("new"),
        says="{here}/new must be a folder that can be written, it is not: Not a directory; choose "
        "another with --out or output.folder",
    ),
    "a file where the store must be": Bad(
        study={"output": {"store": "text.txt"}},
        says="{here}/text.txt must be a folder that can be written, it is not: Not a directory; "
        "choose another with output.store or $SAELIGN_STORE",
    ),
    "a disk that refuses the run's folder": Bad(
        command=("run", "{here}/study.yaml", "--out", "/proc/saelign"),
        says="/proc/saelign must be a folder that can be written, it is not: …; choose another "
        "with --out or output.folder",
    ),
    "a disk that refuses the store": Bad(
        study={"output": {"store": "/proc/saelign"}},
        says="/proc/saelign must be a folder that can be written, it is not: …; choose another "
        "with output.store or $SAELIGN_STORE",
    ),
    "a run's folder that holds other files": Bad(
        files=file_at("new/thesis.tex"),
        says="the run's folder must be empty or hold an earlier run of this study, {here}/new "
        "holds files that are not a run: choose another with --out",
    ),
    "a run's folder that holds the run of another study": Bad(
        study={"output": {"folder": "old"}, "metric": "cosine"},
        says="the run's folder must be empty or hold an earlier run of this study, {here}/old "
        "holds the run of another study: choose another with --out",
    ),
    "a run's folder whose study is damaged": Bad(
        files=file_at("new/study.yaml", "a: ["),
        says="the run's folder must be empty or hold an earlier run of this study, {here}/new "
        "holds the run of another study: choose another with --out",
    ),
    "a damaged shard": Bad(
        files=damaged_shard,
        says="stored activations must be as they were written, {file} is not what was written: "
        "delete the folder {file.parent} and run again",
    ),
    "a damaged manifest": Bad(
        files=damaged_manifest,
        says="stored activations must be as they were written, {file} is not a manifest: delete "
        "the folder {file.parent} and run again",
    ),
    "a manifest that lacks its entries": Bad(
        files=manifest_without_entries,
        says="stored activations must be as they were written, {file} lacks or garbles an entry "
        "('d_sae'): delete the folder {file.parent} and run again",
    ),
    "a missing shard": Bad(
        files=missing_shard,
        says="stored activations must be as they were written, {file} is not there, though the "
        "manifest lists it: delete the folder {file.parent} and run again",
    ),
    "a manifest of a newer format": Bad(
        files=newer_manifest,
        says="{file} has format 2, this saelign reads up to 1: update saelign, or delete the "
        "folder and run again",
    ),
    "a study of a newer format": Bad(
        study={"saelign": 2},
        says="this version reads studies of format 1, got 2: upgrade saelign",
    ),
    "an unknown measure": Bad(
        study={"measures": ["rsa", "ckaa"]},
        says="unknown measure 'ckaa' (did you mean 'cka'?), expected one of: "
        + ", ".join(sorted(MEASURES)),
    ),
    "an unknown key": Bad(
        study={"text": {"token": 3000}},
        says="unknown key of text 'token' (did you mean 'tokens'?), expected one of: "
        "across_documents, allow_fewer, column, context_length, contexts_per_document, documents, "
        "mask_first, "
        "mask_special, pooling, source, split, tokens",
    ),
    "a missing study": Bad(
        command=("run", "{here}/studdy.yaml"),
        says="a study file must be there to be read, {here}/studdy.yaml is not",
    ),
    "a study that is not YAML": Bad(
        files=file_at("study.yaml", "model_a: [A"),
        says="{here}/study.yaml must be a YAML file: line 1, column 12: …",
    ),
    "a model that is neither a folder nor reachable": Bad(
        study={"model_a": {"name": "pythia-70"}},
        says="model 'pythia-70' must be a folder in transformers layout or a name on the Hugging "
        "Face hub; there is no such folder and the hub gave: …",
    ),
    "a model folder without weights": Bad(
        files=lambda here: (here / "A" / "model.safetensors").unlink(),
        says="model folder '{here}/A' must hold weights (*.safetensors), it holds none",
    ),
    "a damaged run.json": Bad(
        command=SHOW,
        files=lambda here: (here / "old" / "run.json").write_text('{"format": 1, "comp'),
        says="{here}/old/run.json must be what saelign wrote, it is damaged: run the study again",
    ),
    "a run of a newer format": Bad(
        command=SHOW,
        files=lambda here: (here / "old" / "run.json").write_text(f'{{"format": {FORMAT + 1}}}'),
        says=f"this version reads runs of format {FORMAT}, {{here}}/old/run.json has {FORMAT + 1}: "
        "upgrade saelign",
    ),
    "a run that was not finished": Bad(
        command=SHOW,
        files=lambda here: (here / "old" / "run.json").write_text(f'{{"format": {FORMAT}}}'),
        says="the run in {here}/old was not finished: start it again, it goes on where it stopped",
    ),
    "damaged scores": Bad(
        command=SHOW,
        files=lambda here: (here / "old" / "scores.parquet").write_text("PAR1"),
        says="{here}/old/scores.parquet must be what saelign wrote, it is damaged: run the study "
        "again",
    ),
    "missing scores": Bad(
        command=SHOW,
        files=lambda here: (here / "old" / "scores.parquet").unlink(),
        says="a run must hold scores.parquet, {here}/old/scores.parquet is not there: run the "
        "study again",
    ),
    "no run at all": Bad(
        command=("show", "{here}/results"),
        says="a run's folder must hold run.json, {here}/results does not: give a folder that "
        "`saelign run` wrote",
    ),
    "an unknown matching": Bad(
        command=(*SHOW, "--matching", "onetoone"),
        says="unknown matching of this run 'onetoone' (did you mean 'one_to_one'?), expected one "
        "of: many_to_one, one_to_one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_input_ends_with_one_line_that_says_what_to_do(
    bad: Bad, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(saelign.pipeline, "write_figures", lambda *_, **__: [])
    here = tmp_path / "here"
    shutil.copytree(tiny, here)
    if bad.study is not None:
        write_study(here / "study.yaml", changed(TINY, bad.study))
    names = bad.files(here) if bad.files is not None else None
    told = call(*(part.format(here=here) for part in bad.command))
    *progress, message = told.err.splitlines()
    assert all(PROGRESS.fullmatch(line) for line in progress), told.err
    expected = bad.says.format(here=here, **(names if isinstance(names, dict) else {}))
    assert re.fullmatch(re.escape(f"saelign: {expected}").replace("…", ".+"), message), message
    assert (told.code, told.out) == (bad.code, "")


@pytest.mark.parametrize("what", ["a damaged shard", "a damaged manifest", "an empty text"])
def test_what_was_there_before_bad_input_is_there_after_it(
    what: str, tiny: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    shutil.copytree(tiny, here)
    bad = BAD[what]
    assert bad.files is not None
    bad.files(here)

    def content() -> dict[Path, bytes]:
        files = (p for part in ("store", "old") for p in (here / part).rglob("*") if p.is_file())
        return {path: path.read_bytes() for path in files}

    before = content()
    assert call("run", here / "study.yaml").code == 1
    assert content() == before
