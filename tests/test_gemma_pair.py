"""Two models of Gemma 2's class with SAEs in Gemma Scope's files, by `saelign run`, at each site.

Small and with random weights; classes, file layout, folders and the way through the code are those
of Gemma-2-2B against 9B.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, Gemma2Config

from conftest import tiny_tokenizer
from saelign.activations import sample_streams
from saelign.cli import main
from saelign.models import load_model
from saelign.saes import train_sae
from saelign.sites import Site
from saelign.text import load_tokenizer, read_documents, tokenize

SIDES = {"2b": {"hidden_size": 24, "layers": 2}, "9b": {"hidden_size": 32, "layers": 3}}
RELEASES = {"resid_post": "res", "mlp_out": "mlp", "attn_z": "att"}


def made(folder: Path) -> Path:
    """Models, SAEs and text in a folder, laid out as on the hub."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), rng.integers(1, 5))) for _ in range(80)]
    documents = [" ".join(rng.choice(words, 40)) + "." for _ in range(60)]
    (folder / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    for number, (size, about) in enumerate(SIDES.items()):
        config = Gemma2Config(
            vocab_size=64, hidden_size=about["hidden_size"], num_hidden_layers=about["layers"],
            num_attention_heads=2, num_key_value_heads=1, head_dim=14, intermediate_size=48,
            max_position_embeddings=64, sliding_window=16, initializer_range=0.3,
            query_pre_attn_scalar=14,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(number)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder / f"gemma-2-{size}")
        tiny_tokenizer().save_pretrained(folder / f"gemma-2-{size}")
    tokenizer = load_tokenizer(str(folder / "gemma-2-2b"))
    texts = read_documents(folder / "text.txt", split="blank_line")
    tokens = tokenize(texts, tokenizer, context_length=64)
    for size, about in SIDES.items():
        model = load_model(str(folder / f"gemma-2-{size}"), dtype="bfloat16")
        for site, release in RELEASES.items():
            streams = sample_streams(
                load=lambda model=model: model,
                blocks_path=None,
                layers=range(about["layers"]),
                tokens=tokens,
                n_tokens=6_000,
                site=Site(site),
            )
            for layer, stream in streams.items():
                sae, report = train_sae(
                    stream.float(), d_sae=96, k=8, seed=0, batch_tokens=256, epochs=3.0
                )
                assert report.explained_variance > 0.35, (site, layer, report)
                at = folder / f"gemma-scope-{size}-pt-{release}" / f"layer_{layer}"
                at = at / "width_16k" / f"average_l0_{round(report.l0)}"
                at.mkdir(parents=True)
                assert sae.W_enc is not None
                arrays = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec}
                arrays |= {"b_dec": sae.b_dec, "threshold": sae.threshold}
                np.savez(at / "params.npz", **{n: a.numpy() for n, a in arrays.items()})
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("gemma"))


def study_of(world: Path, site: str, release: str) -> dict:
    def side(size: str) -> dict:
        scope = world / f"gemma-scope-{size}-pt-{release}"
        paths = {int(p.name[6:]): str(next(p.glob("*/*"))) for p in sorted(scope.iterdir())}
        model = {"name": f"gemma-2-{size}", "dtype": "bfloat16", "layers": sorted(paths)}
        return {**model, "site": site, "saes": paths}

    return {
        "saelign": 1,
        "name": f"gemma-2-2b-9b-{release}",
        "model_a": side("2b"),
        "model_b": side("9b"),
        "text": {"source": "text.txt", "split": "blank_line", "context_length": 64},
        "filters": {"max_non_concept_tokens": None, "min_shared_tokens": None},
        "matching": ["one_to_one"],
        "measures": ["pc1", "rsa"],
        "nulls": {"shuffle": 20, "rate_matched": 20},
        "output": {"store": str(world / "store")},
    }


@pytest.mark.parametrize("site", list(RELEASES))
def test_a_pair_of_gemmas_is_compared_at_each_site_that_gemma_scope_has(
    site: str,
    world: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if site != "resid_post":
        monkeypatch.setattr("saelign.pipeline.write_figures", lambda *_, **__: [])
    path = world / f"{site}.yaml"
    path.write_text(yaml.safe_dump(study_of(world, site, RELEASES[site])), encoding="utf-8")
    out = world / f"run-{site}"
    assert main(["run", str(path), "--out", str(out), "--json"]) == 0
    assert capsys.readouterr().out
    assert main(["check", str(path), "--out", str(out)]) == 0
    told = "gemma-2-9b, layers" if site == "resid_post" else "gemma-2-9b, site "
    assert f"model b: name {told}" in capsys.readouterr().out
    assert main(["show", str(out)]) == 0
    assert ("gemma-2-9b (" in capsys.readouterr().out) == (site != "resid_post")
    info = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert info["models"]["b"]["site"] == {"name": site, "module": None}
    layers = pd.read_parquet(out / "layers.parquet")
    assert (layers["explained_variance"] > 0.35).all()
    assert set(map(tuple, layers[["model", "layer"]].to_numpy().tolist())) == {
        *(("a", layer) for layer in range(2)), *(("b", layer) for layer in range(3))
    }  # fmt: skip
    scores = pd.read_parquet(out / "scores.parquet")
    assert scores["score"].notna().all()
    assert len(scores) == 2 * 3 * 2 * 2  # layer pairs, measures, nulls


def test_files_of_another_site_are_refused_before_anything_is_read(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = world / "wrong.yaml"
    path.write_text(yaml.safe_dump(study_of(world, "resid_post", "mlp")), encoding="utf-8")
    assert main(["check", str(path), "--out", str(world / "nowhere")]) == 1
    said = capsys.readouterr().err
    assert "'blocks.0.hook_mlp_out' (MLP output of block 0)" in said
    assert "choose `site: mlp_out` in the study" in said
