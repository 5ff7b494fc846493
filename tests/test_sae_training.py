"""SAEs trained on a model over text: what they find, what is kept, refused and gone on with."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from conftest import D_MODEL, tiny_model, tiny_tokenizer
from saelign.cli import parser
from saelign.errors import (
    ActivationError,
    FormatError,
    ShapeError,
    StorageError,
    StudyError,
    TextError,
)
from saelign.forecast import PROGRAM
from saelign.models import load_config
from saelign.pipeline import run
from saelign.sae_training import (
    REPORT,
    TrainingRecipe,
    held_out_contexts,
    held_out_tokens,
    sae_path,
    texts_of,
    train_saes,
)
from saelign.saes import inspect_sae, load_sae, train_sae, training
from saelign.sites import SITES, Site, site_of_hook
from saelign.study import ModelStudy, TextStudy, read_study
from saelign.text import DatasetSource
from saelign.training_cli import recipe_of

SCRIPT = Path(sys.executable).with_name("saelign")
WIDTH, K, BATCH = 48, 6, 128
QUALITY = ["explained_variance", "l0", "dead_share"]
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")


def prose(n_documents=400, n_characters=90, seed=0):
    """Documents of letters, some far more frequent than others."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz .,"))
    rates = 1 / np.arange(1, len(letters) + 1)
    drawn = rng.choice(letters, size=(n_documents, n_characters), p=rates / rates.sum())
    return "\n\n".join("".join(row).strip(" ") for row in drawn)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model with its tokenizer, and text, in a folder."""
    folder = tmp_path_factory.mktemp("place")
    tiny_model("gpt_neox").save_pretrained(folder / "A")
    tiny_tokenizer().save_pretrained(folder / "A")
    (folder / "text.txt").write_text(prose())
    return folder


def recipe(place, *, model=None, text=None, **changes):
    """A quick one."""
    common: dict[str, Any] = {"width": WIDTH, "k": K, "batch_tokens": BATCH}
    return TrainingRecipe(
        model=ModelStudy(name="A", saes="", **({"layers": [0, 2]} | (model or {}))),
        text=TextStudy(
            **(
                {
                    "source": "text.txt",
                    "split": "blank_line",
                    "tokens": 20_000,
                    "context_length": 32,
                }
                | (text or {})
            )
        ),
        folder=place,
        **(common | changes),
    )


def arguments(place, out, *more):
    """The same on the command line."""
    return [
        *("train-sae", str(place / "A"), "--layers", "0,2", "--width", str(WIDTH), "-k", str(K)),
        *("--text", str(place / "text.txt"), "--split", "blank_line", "--tokens", "20000"),
        *("--context-length", "32", "--batch-tokens", str(BATCH), "--out", str(out), *more),
    ]


@pytest.fixture(scope="module")
def trained(place, tmp_path_factory):
    """The folder of a training that nothing stopped, and its table."""
    out = tmp_path_factory.mktemp("trained") / "saes"
    return out, train_saes(recipe(place), out)


def same_files(out, other, layers=(0, 2)):
    return all(sae_path(out, n).read_bytes() == sae_path(other, n).read_bytes() for n in layers)


# What is found -----------------------------------------------------------------------------------


def test_features_that_a_model_was_given_are_found(tmp_path):
    """Embeddings that are sparse sums of atoms, which blocks of zeros pass on unchanged."""
    d_model, n_atoms, n_vocabulary, n_active = 24, 40, 4096, 3
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((n_atoms, d_model))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    active = rng.random((n_vocabulary, n_atoms)) < n_active / n_atoms
    planted = active * rng.uniform(1, 3, size=active.shape) @ atoms
    config = LlamaConfig(
        vocab_size=n_vocabulary,
        hidden_size=d_model,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.from_numpy(planted))
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    model.save_pretrained(tmp_path / "A")
    tiny_tokenizer().save_pretrained(tmp_path / "A")
    ids = torch.from_numpy(rng.integers(2, n_vocabulary, size=(1200, 20)).astype(np.int32))
    save_file({"input_ids": ids}, tmp_path / "ids.safetensors")
    asked = recipe(
        tmp_path,
        model={"layers": [1]},
        text={"source": "ids.safetensors", "split": "none", "context_length": 128},
        k=n_active,
        epochs=30.0,
        batch_tokens=256,
    )
    table = train_saes(asked, tmp_path / "out")
    decoder = load_sae(sae_path(tmp_path / "out", 1)).W_dec.double().numpy()
    nearest = (atoms @ decoder.T).max(axis=1)
    chance = rng.standard_normal(decoder.shape)
    chance /= np.linalg.norm(chance, axis=1, keepdims=True)
    assert nearest.mean() > 0.95 > 0.65 > (atoms @ chance.T).max(axis=1).mean()
    assert table["explained_variance"][0] > 0.9
    assert table["l0"][0] == pytest.approx(n_active, rel=0.1)


def test_a_report_stands_beside_the_saes(trained):
    out, table = trained
    assert sorted(f.name for f in out.iterdir()) == [
        "layer_0.safetensors",
        "layer_2.safetensors",
        REPORT,
    ]
    report = json.loads((out / REPORT).read_text())
    assert list(table["layer"]) == [0, 2]
    assert list(table["path"]) == [str(sae_path(out, n)) for n in (0, 2)]
    for row in table.to_dict(orient="records"):
        told = report["layers"][str(row["layer"])]
        assert {key: told[key] for key in QUALITY} == {key: row[key] for key in QUALITY}
        assert row["explained_variance"] > 0.5
        assert row["l0"] == pytest.approx(K, rel=0.15)
        assert 0 <= row["dead_share"] < 0.2
    assert report["recipe"]["width"] == WIDTH
    assert report["recipe"]["text"]["source"] == "text.txt"
    assert "saes" not in report["recipe"]["model"]
    assert report["tokens"]["trained_on"] == 20_000
    assert report["tokens"]["held_out_by"] == "documents"
    assert set(report["versions"]) >= {"saelign", "torch", "transformers", "numpy"}
    for layer in (0, 2):
        sae = load_sae(sae_path(out, layer))
        assert (sae.site, sae.layer, sae.d_sae) == ("resid_post", layer, WIDTH)


def test_the_report_is_measured_on_documents_that_are_not_trained_on(place):
    asked = recipe(place)
    fit, test, is_by_documents = texts_of(asked, load_config(str(place / "A")), str(place / "A"))
    assert is_by_documents
    assert not set(fit.document.tolist()) & set(test.document.tolist())
    assert fit.n_tokens == 20_000
    assert 1000 < test.n_tokens <= 2000
    # Special tokens and the first position count in neither.
    for tokens in (fit, test):
        assert not tokens.kept[:, 0].any()
        assert not np.isin(tokens.input_ids[tokens.kept], tokens.special_ids).any()


def test_a_single_document_is_measured_on_at_its_end(place):
    text = (place / "text.txt").read_text().replace("\n\n", " ")
    (place / "one.txt").write_text(text)
    asked = recipe(place, text={"source": "one.txt", "split": "none"})
    fit, test, is_by_documents = texts_of(asked, load_config(str(place / "A")), str(place / "A"))
    assert not is_by_documents
    assert 1000 < test.n_tokens <= 2000
    whole = np.concatenate([fit.input_ids, test.input_ids])
    assert len(np.unique(whole, axis=0)) == len(whole)
    assert set(test.document.tolist()) == {0}
    is_held_out, _ = held_out_contexts(replace(fit, document=fit.document * 0), 500)
    assert is_held_out[-1]
    assert (np.diff(is_held_out.astype(int)) >= 0).all()


def test_a_tenth_is_held_out_up_to_a_hundred_thousand():
    assert [held_out_tokens(n) for n in (20_000, 1_000_000, 10**9)] == [2_000, 100_000, 100_000]


def test_all_tokens_are_those_that_are_not_held_out(place):
    asked = recipe(place, text={"tokens": "all"})
    fit, test, _ = texts_of(asked, load_config(str(place / "A")), str(place / "A"))
    fewer = recipe(place, text={"tokens": 10**8, "allow_fewer": True})
    again, _, _ = texts_of(fewer, load_config(str(place / "A")), str(place / "A"))
    assert fit.sha256 == again.sha256
    assert 0.04 < test.n_tokens / fit.n_tokens <= 0.1


def test_another_seed_gives_other_saes_of_the_same_text(place, trained, tmp_path):
    out, _ = trained
    train_saes(recipe(place, seed=1, model={"layers": [2]}), tmp_path)
    ours, theirs = (json.loads((f / REPORT).read_text())["training"] for f in (out, tmp_path))
    assert [key for key in ours if ours[key] != theirs[key]] == ["seed"]
    assert not same_files(out, tmp_path, [2])


def test_an_untrained_twin_is_another_model(place, trained, tmp_path):
    out, _ = trained
    table = train_saes(recipe(place, untrained=3, model={"layers": [2]}), tmp_path)
    report = json.loads((tmp_path / REPORT).read_text())
    assert report["training"]["fingerprint"].startswith("untrained-")
    assert not same_files(out, tmp_path, [2])
    assert table["explained_variance"][0] > 0.3


@pytest.mark.parametrize("site", SITES)
def test_a_site_goes_by_the_name_that_is_read_back(site):
    assert site_of_hook(Site(site).hook_name(3)) == (site, 3)


def test_other_sites_are_trained_at(place, tmp_path):
    asked = recipe(place, model={"layers": [1], "site": "mlp_out"})
    train_saes(asked, tmp_path)
    told = inspect_sae(sae_path(tmp_path, 1))
    assert (told.site, told.layer, told.d_model) == ("mlp_out", 1, D_MODEL)


# Going on ----------------------------------------------------------------------------------------


def test_a_training_that_is_killed_goes_on_to_the_same_saes(place, tmp_path):
    """A real process, killed in the middle of the second layer."""
    slow = recipe(place, epochs=6.0)
    whole = tmp_path / "whole"
    train_saes(slow, whole)
    out = tmp_path / "out"
    # A checkpoint whenever one is due at all, so that there is one within a second.
    code = (
        "import sys, saelign.saes.training as t; t.CHECKPOINT_SECONDS = 0.0; "
        "from saelign.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *arguments(place, out, "--epochs", "6")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    partial = out / ".layer_2.partial"
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    ) as process:
        while not partial.exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert sae_path(out, 0).exists()
    assert not sae_path(out, 2).exists()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "train layer 0" not in done.stderr
    found = re.findall(r"train layer 2: ([\d,]+) of ([\d,]+)", done.stderr)
    assert 1 < int(found[0][0].replace(",", "")) < int(found[0][1].replace(",", ""))
    assert same_files(whole, out)
    assert not partial.exists()


def test_a_training_that_is_done_is_not_repeated(place, trained):
    out, table = trained
    told = []
    again = train_saes(recipe(place), out, progress=lambda *now: told.append(now[0]))
    pd.testing.assert_frame_equal(table, again)
    assert set(told) == {"read the text"}


def test_layers_are_added_and_a_missing_file_is_made_again(place, trained, tmp_path):
    out, _ = trained
    train_saes(recipe(place, model={"layers": [2]}), tmp_path)
    assert same_files(out, tmp_path, [2])
    table = train_saes(recipe(place), tmp_path)
    assert same_files(out, tmp_path)
    assert list(table["layer"]) == [0, 2]
    sae_path(tmp_path, 0).write_bytes(b"damaged")
    sae_path(tmp_path, 2).unlink()
    train_saes(recipe(place), tmp_path)
    assert same_files(out, tmp_path)


def test_layers_that_do_not_fit_at_once_are_read_one_after_the_other(place, trained, tmp_path):
    out, _ = trained
    fixed = PROGRAM + 2**29 + 32 * D_MODEL * WIDTH + 12 * BATCH * WIDTH
    of_layer = 2 * D_MODEL * 22_000
    told = []
    train_saes(
        recipe(place),
        tmp_path,
        memory=fixed + of_layer,
        progress=lambda what, *_: told.append(what),
    )
    assert {"run the model, pass 1 of 2", "run the model, pass 2 of 2"} <= set(told)
    assert same_files(out, tmp_path)


def planted(n_tokens=4000):
    return torch.from_numpy(np.random.default_rng(0).standard_normal((n_tokens, 8), np.float32))


QUICK: dict[str, Any] = {"d_sae": 32, "k": 4, "seed": 0, "batch_tokens": 64, "epochs": 4.0}


class StopTraining(Exception):  # noqa: N818
    """What stops a training."""


def stopped_at(step):
    """Progress that stops the training at a step."""

    def tell(done, _total):
        if done == step:
            raise StopTraining

    return tell


@pytest.mark.parametrize("step", [30, 60, 187])  # in the warm-up, after it, after a revival
def test_a_checkpoint_holds_all_that_a_training_needs(step, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(training, "_REVIVAL_TOKENS", 64 * 25)
    monkeypatch.setattr(training.time, "monotonic", iter(np.arange(0.0, 1e6).tolist()).__next__)
    acts = planted()
    whole, told = train_sae(acts, **QUICK)
    path = tmp_path / "checkpoint"
    with pytest.raises(StopTraining):
        train_sae(acts, **QUICK, checkpoint=path, progress=stopped_at(step))
    assert path.exists()
    seen = []
    sae, report = train_sae(
        acts, **QUICK, checkpoint=path, progress=lambda done, _: seen.append(done)
    )
    assert 1 < seen[0] <= step + 1
    assert all(torch.equal(getattr(sae, n), getattr(whole, n)) for n in TENSORS)
    assert report.explained_variance == told.explained_variance
    assert report.seconds > len(seen)  # what came before it was stopped is counted


@pytest.mark.parametrize("content", [b"", b"cut short", b"\x08\0\0\0\0\0\0\0{}      cut"])
def test_a_checkpoint_that_cannot_be_read_is_as_good_as_none(content, tmp_path):
    path = tmp_path / "checkpoint"
    path.write_bytes(content)
    sae, _ = train_sae(planted(), **QUICK, checkpoint=path)
    whole, _ = train_sae(planted(), **QUICK)
    assert all(torch.equal(getattr(sae, n), getattr(whole, n)) for n in TENSORS)


# The command -------------------------------------------------------------------------------------


def test_the_command_trains_what_a_study_reads_as_it_is(place, trained, tmp_path):
    out = tmp_path / "saes"
    told = subprocess.run(
        [SCRIPT, *arguments(place, out)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert same_files(trained[0], out)
    heads, *rows = told.stdout.split("\n\n")[0].splitlines()
    assert heads.split() == ["layer", "explained", "variance", "L0", "dead", "share", "time"]
    expected = [f"{v:.3f}" for v in trained[1]["explained_variance"]]
    assert [row.split()[:2] for row in rows] == [["0", expected[0]], ["2", expected[1]]]
    lines = yaml.safe_load(told.stdout.split("in a study:\n")[1])
    assert lines == {"layers": [0, 2], "saes": str(out / "layer_{layer}.safetensors")}
    study = {
        "saelign": 1,
        "name": "own",
        "model_a": {"name": "A", **lines},
        "model_b": {"name": "A", **lines},
        "text": {"source": "text.txt", "split": "blank_line", "context_length": 32},
        "filters": {"min_active_tokens": 1},
        "matching": ["one_to_one"],
        "measures": ["rsa"],
        "nulls": {"shuffle": 19, "rate_matched": 19},
        "output": {"store": str(tmp_path / "store")},
    }
    scores = run(read_study(study, folder=place), out=tmp_path / "run").scores
    own = scores[scores["layer_a"] == scores["layer_b"]]
    assert len(own)
    np.testing.assert_allclose(own["score"], 1, atol=1e-6)


def test_the_result_is_told_as_json(place, trained, capsys):
    from saelign.cli import main

    out, table = trained
    assert main(arguments(place, out, "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["saes"] == str(out.resolve() / "layer_{layer}.safetensors")
    assert told["site"] == "resid_post"
    assert told["layers"] == table.to_dict(orient="records")


def test_what_a_study_says_of_other_sites_and_twins(place, capsys, tmp_path):
    from saelign.cli import main

    saes = str(tmp_path / "layer_{layer}.safetensors")
    asked = arguments(place, tmp_path, "--site", "mlp_out", "--module", "mlp", "--layers", "all")
    assert main(asked) == 0
    told = capsys.readouterr().out.split("in a study:\n")[1]
    assert yaml.safe_load(told) == {"site": "mlp_out", "module": "mlp", "saes": saes}
    twin = tmp_path / "twin"
    assert main(arguments(place, twin, "--untrained", "4")) == 0
    told = capsys.readouterr().out.split("in a study:\n")[1]
    assert yaml.safe_load(told) == [
        {"untrained": {"seed": 4, "saes_a": str(twin / "layer_{layer}.safetensors")}}
    ]


def test_the_command_asks_for_what_it_says():
    line = (
        "train-sae M --width 64 -k 8 --out o --text hf://owner/name@main --dataset-config c "
        "--dataset-split s --streaming --documents 50 --tokens all --dtype bfloat16 "
        "--learning-rate 0.01 --epochs 1.5 --seed 3 --across-documents --column c"
    )
    options = parser().parse_args(line.split())
    asked = recipe_of(options)
    assert asked.model == ModelStudy(name="M", saes="", dtype="bfloat16")
    assert asked.text == TextStudy(
        source=DatasetSource(
            dataset="owner/name", config="c", split="s", revision="main", streaming=True
        ),
        documents=50,
        across_documents=True,
        column="c",
        tokens="all",
    )
    assert (asked.width, asked.k, asked.seed, asked.untrained) == (64, 8, 3, None)
    assert (asked.learning_rate, asked.epochs, asked.batch_tokens) == (0.01, 1.5, 1024)


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"k": 49},
            ShapeError,
            r"k must be at most the width, 48 features, got 49: choose a smaller k or more",
        ),
        ({"k": 0}, StudyError, r"k must be at least 1, got 0"),
        ({"width": 1}, StudyError, r"width must be at least 2, got 1"),
        ({"seed": -1}, StudyError, r"seed must be at least 0, got -1"),
        ({"untrained": -1}, StudyError, r"untrained must be at least 0, got -1"),
        ({"batch_tokens": 0}, StudyError, r"batch_tokens must be at least 1, got 0"),
        ({"epochs": 0.0}, StudyError, r"epochs must be a number above 0, got 0\.0"),
        (
            {"learning_rate": float("nan")},
            StudyError,
            r"learning_rate must be a number above 0, got nan",
        ),
        (
            {"model": {"layers": [0, 7]}},
            StudyError,
            r"layers of the model must lie between 0 and 2, got 7: A has 3 blocks, counted from 0",
        ),
        ({"model": {"layers": [1, 1]}}, StudyError, r"model\.layers must be distinct"),
        (
            {"text": {"tokens": 10_000}, "width": 2000},
            TextError,
            r"at least 20,000 tokens must be trained on \(10 a feature, 100 steps\), got 10,000 of "
            r"a text that holds 3\d,\d{3}: give more, or train fewer features in smaller batches",
        ),
        (
            {"text": {"tokens": 10_000}, "batch_tokens": 1024},
            TextError,
            r"at least 51,200 tokens must be trained on .* got 10,000",
        ),
        (
            {"text": {"tokens": 100_000}, "width": 4000},
            TextError,
            r"at least 40,000 tokens must be trained on .* got 3\d,\d{3} of a text that holds 3",
        ),
        (
            {"text": {"tokens": 100_000}},
            TextError,
            r"the text must hold 110,000 tokens, 100,000 to train on and 10,000 to measure on, it "
            r"holds 3\d,\d{3}: give more text, or ask for at most 3\d,\d{3}",
        ),
        ({"text": {"tokens": 999}}, StudyError, r"text\.tokens must be at least 1,000, got 999"),
        (
            {"text": {"context_length": 65}},
            StudyError,
            r"contexts must fit into the 64 positions of model ",
        ),
        ({"learning_rate": 1e30}, ActivationError, r"training must converge"),
    ],
)
def test_what_cannot_be_is_refused(place, tmp_path, changes, error, words):
    with pytest.raises(error, match=words):
        train_saes(recipe(place, **changes), tmp_path / "out")


def test_the_most_that_can_be_asked_for_is_what_the_text_can_give(place, tmp_path):
    with pytest.raises(TextError, match=r"ask for at most") as refused:
        train_saes(recipe(place, text={"tokens": 100_000}), tmp_path)
    most = int(str(refused.value).split("at most ")[1].replace(",", ""))
    config = load_config(str(place / "A"))
    fit, _, _ = texts_of(recipe(place, text={"tokens": most}), config, str(place / "A"))
    assert fit.n_tokens == most


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_read(place):
    with pytest.raises(StorageError, match=r"must be a folder that can be written"):
        train_saes(recipe(place), place / "text.txt" / "out")


def test_a_folder_with_other_files_is_refused(place, tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(StudyError, match=r"holds other files: choose another with --out"):
        train_saes(recipe(place), tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 64}, r"holds another: width 48 instead of 64; choose another with --out"),
        ({"k": 5, "seed": 1}, r"holds another: k 6 instead of 5, seed 0 instead of 1;"),
        ({"text": {"tokens": 10_000}}, r"holds another: text '\w+' instead of '\w+', held_out "),
        ({"model": {"site": "mlp_out"}}, r"holds another: site 'resid_post' instead of 'mlp_out'"),
        ({"untrained": 0}, r"holds another: fingerprint '\w+' instead of 'untrained-\w+'"),
    ],
)
def test_a_folder_that_holds_another_training_is_refused(place, trained, changes, words):
    out, _ = trained
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    with pytest.raises(StudyError, match=words):
        train_saes(recipe(place, **changes), out)
    assert before == {f.name: f.read_bytes() for f in out.iterdir()}


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"training": 1}'])
def test_a_report_that_cannot_be_read_is_refused(place, tmp_path, content):
    (tmp_path / REPORT).write_text(content)
    with pytest.raises(FormatError, match=r"must be what an earlier training wrote"):
        train_saes(recipe(place), tmp_path)


def test_too_little_memory_is_refused_with_what_is_needed(place, tmp_path):
    with pytest.raises(
        StudyError,
        match=r"memory must be at least 1\.2 GiB to train an SAE on 20,000 tokens, got 1\.0 GiB",
    ):
        train_saes(recipe(place), tmp_path, memory="1GiB")


def test_activations_that_are_not_numbers_are_refused(place, tmp_path):
    folder = tmp_path / "A"
    tiny_tokenizer().save_pretrained(folder)
    broken = tiny_model("gpt_neox")
    with torch.no_grad():
        broken.gpt_neox.layers[1].mlp.dense_4h_to_h.bias[3] = float("nan")
    broken.save_pretrained(folder)
    asked = replace(recipe(place), model=ModelStudy(name=str(folder), saes="", layers=[2]))
    with pytest.raises(
        ActivationError, match=r"must be finite, the residual stream after block 2 is not"
    ):
        train_saes(asked, tmp_path / "out")


def test_refusals_end_the_command_with_one_line(place, tmp_path, capsys):
    from saelign.cli import main

    assert main(arguments(place, tmp_path, "--width", "4")) == 1
    assert capsys.readouterr().err == (
        "saelign: k must be at most the width, 4 features, got 6: choose a smaller k or more "
        "features\n"
    )
