"""Small models, SAEs and text in place of those that a shipped study names, laid out as on the hub.

Models are of the same classes with as many blocks and random weights; SAEs lie in the files of
their release. Feature n of either side reads the same token, so that features find partners, while
decoder rows are drawn independently of everything, so that matched rows are alike by chance alone.
Planted, B has A's first blocks and, for the layers that both read, A's SAEs with decoders rotated.

    python tests/stand_ins.py STUDY HUB             # then: saelign run STUDY --models-from HUB
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GemmaTokenizer,
    GPTNeoXConfig,
    GPTNeoXTokenizer,
    MambaConfig,
    PretrainedConfig,
)

from saelign.activations import sample_streams
from saelign.concepts import load_concept
from saelign.locations import Places
from saelign.models import load_model
from saelign.saes.formats.saelens import _PUBLISHED_SCALES
from saelign.study import ModelStudy, Study, load_shipped
from saelign.text import load_tokenizer, tokenize

D_SAE, N_VOCABULARY = 96, 700
N_DOCUMENTS, N_WORDS = 900, 135
CONCEPTS = ("Time", "Calendar", "PeopleRoles", "Nature", "Emotions", "MonthNames", "Countries")
FILLER = "the of a to in for is on that by this with you it not or be are from at as all have new"


def _sizes(n_layers: int, d_model: int) -> dict[str, Any]:
    return {
        "vocab_size": N_VOCABULARY,
        "hidden_size": d_model,
        "num_hidden_layers": n_layers,
        "intermediate_size": 2 * d_model,
        "num_attention_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
    }


def gemma(n_layers: int, d_model: int) -> PretrainedConfig:
    return GemmaConfig(**_sizes(n_layers, d_model), num_key_value_heads=1, head_dim=8)


def gemma_2(n_layers: int, d_model: int) -> PretrainedConfig:
    sizes = _sizes(n_layers, d_model)
    return Gemma2Config(
        **sizes, num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8, sliding_window=256
    )


def gpt_neox(n_layers: int, d_model: int) -> PretrainedConfig:
    return GPTNeoXConfig(**_sizes(n_layers, d_model), bos_token_id=0, eos_token_id=0)


def mamba(n_layers: int, d_model: int) -> PretrainedConfig:
    return MambaConfig(
        vocab_size=N_VOCABULARY,
        hidden_size=d_model,
        num_hidden_layers=n_layers,
        state_size=4,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )


@dataclass(frozen=True)
class Kind:
    """What a model that a study names is: its class, blocks and tokenizer."""

    config: Callable[[int, int], PretrainedConfig]
    n_layers: int
    tokenizer: type


KINDS = {
    "google/gemma-2b": Kind(gemma, 18, GemmaTokenizer),
    "google/gemma-2-2b": Kind(gemma_2, 26, GemmaTokenizer),
    "google/gemma-2-9b": Kind(gemma_2, 42, GemmaTokenizer),
    "google/gemma-2-9b-it": Kind(gemma_2, 42, GemmaTokenizer),
    "EleutherAI/pythia-70m": Kind(gpt_neox, 6, GPTNeoXTokenizer),
    "EleutherAI/pythia-160m": Kind(gpt_neox, 12, GPTNeoXTokenizer),
    "EleutherAI/pythia-160m-seed1": Kind(gpt_neox, 12, GPTNeoXTokenizer),
    "state-spaces/mamba-130m-hf": Kind(mamba, 24, GPTNeoXTokenizer),
}


@dataclass
class Drawn:
    """Directions of an SAE; what b_enc and thresholds are follows from its format."""

    W_enc: np.ndarray
    W_dec: np.ndarray
    b_dec: np.ndarray
    strongest: np.ndarray
    shares: np.ndarray


def documents(seed: int = 0) -> list[str]:
    """Sentences of words drawn at random, those of concepts among them, some far more often."""
    rng = np.random.default_rng(seed)
    words = FILLER.split()
    for concept in (*CONCEPTS, "Biology"):
        single = [word for word in load_concept(concept).words if word.isalpha() and word.isascii()]
        words += single[:24]
    words = list(dict.fromkeys(words))
    order = rng.permutation(len(words))
    share = 1 / (10 + np.arange(len(words)))
    drawn = rng.choice(order, size=(N_DOCUMENTS, N_WORDS), p=share / share.sum())
    sentences = [[words[i] for i in row] for row in drawn]
    return [
        " ".join(w + ("." if n % 15 == 14 else "") for n, w in enumerate(row)) for row in sentences
    ]


def build(study: Study, folder: Path, *, seed: int = 0, planted: bool = False) -> Path:
    """All that the study names, in a folder in place of the hub; what it names by path, there."""
    texts = documents()
    places = replace(study, models_from=folder).places
    source = study.text.source
    shard = folder / source.dataset / "plain_text" / "train" / "0000.parquet"
    shard.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts}), shard)
    rng = np.random.default_rng(seed)
    first: tuple[nn.Module, dict[int, Drawn]] | None = None
    for number, model in enumerate((study.model_a, study.model_b)):
        width = 24 if number == 0 or planted else 32
        made = _model(model, folder / model.name, texts, width, seed * 2 + number)
        if first is not None and planted:
            made.load_state_dict(first[0].state_dict(), strict=False)
            made.save_pretrained(folder / model.name)
        streams, ids = _streams(model, folder / model.name, texts)
        saes = {layer: _drawn(stream, ids, rng) for layer, stream in streams.items()}
        if first is not None and planted:
            for layer in saes.keys() & first[1].keys():
                saes[layer] = _rotated(first[1][layer], rng)
        for layer, sae in saes.items():
            _write(sae, model.sae_location(layer), layer, places, streams[layer])
        seeds = study.controls.seed
        other = None if seeds is None else (seeds.saes_a, seeds.saes_b)[number]
        if other is not None:
            again = replace(model, saes=other)
            for layer, stream in streams.items():
                drawn = _drawn(stream, ids, rng)
                _write(drawn, again.sae_location(layer), layer, places, stream)
        first = (made, saes) if first is None else first
    return folder


def _model(model: ModelStudy, folder: Path, texts: list[str], width: int, seed: int) -> nn.Module:
    kind = KINDS[model.name]
    config = kind.config(kind.n_layers, width)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = AutoModelForCausalLM.from_config(config)
        # One direction carries most of what is read, so that an SAE with one feature for it
        # explains its layer, whatever its other decoder rows are.
        embeddings = made.get_input_embeddings().weight.data
        direction = nn.functional.normalize(torch.randn(width), dim=0)
        embeddings.normal_()
        if model.site == "resid_post":
            embeddings += 25 * torch.randn(len(embeddings), 1) * direction
        for name, weight in made.named_parameters():
            if name.endswith("post_feedforward_layernorm.weight"):
                weight.data.fill_(-0.8)  # plus one: what a block adds is small
                weight.data[0] = 4.0  # the direction that carries most of an MLP's output
            elif name.endswith("post_attention_layernorm.weight") and "2-" in model.name:
                weight.data.fill_(-0.8)
    made.save_pretrained(folder)
    tokenizer: Any = kind.tokenizer()
    trained = tokenizer.train_new_from_iterator(texts[:300], N_VOCABULARY)
    trained.save_pretrained(folder)
    return made


def _streams(
    model: ModelStudy, folder: Path, texts: list[str]
) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """What the SAEs of each layer read of some of the text, and the tokens there."""
    tokens = tokenize(texts[:40], load_tokenizer(str(folder)), context_length=128)
    loaded = load_model(str(folder), dtype=model.dtype)
    layers = range(KINDS[model.name].n_layers) if model.layers == "all" else model.layers
    found = sample_streams(
        load=lambda: loaded,
        blocks_path=None,
        layers=list(layers),
        tokens=tokens,
        n_tokens=4_000,
        site=model.place,
    )
    streams = {layer: stream.double().numpy() for layer, stream in found.items()}
    return streams, tokens.input_ids[tokens.kept][: len(next(iter(streams.values())))]


def _drawn(stream: np.ndarray, ids: np.ndarray, rng: np.random.Generator) -> Drawn:
    """An SAE whose feature 0 explains the stream and whose others each read a token."""
    d_model, mean = stream.shape[1], stream.mean(axis=0)
    strongest = np.linalg.eigh(np.cov(stream.T))[1][:, -1]
    tokens, counts = np.unique(ids, return_counts=True)
    read = np.random.default_rng(0).choice(tokens[counts >= 12], D_SAE, replace=False)
    W_enc = np.stack([stream[ids == token].mean(axis=0) - mean for token in read], axis=1)
    W_enc -= np.outer(strongest, strongest @ W_enc)
    W_enc *= 0.02 / np.linalg.norm(W_enc, axis=0)
    W_dec = _directions(rng, d_model)
    W_enc[:, 0] = W_dec[0] = strongest
    lowest = ((stream - mean) @ strongest).min()
    b_dec = mean + 1.5 * lowest * strongest  # so that its feature is never silent
    shares = np.array([(ids == token).mean() for token in read])
    return Drawn(W_enc, W_dec, b_dec, strongest, 1.3 * shares)


def _directions(rng: np.random.Generator, d_model: int) -> np.ndarray:
    rows = rng.standard_normal((D_SAE, d_model))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _rotated(sae: Drawn, rng: np.random.Generator) -> Drawn:
    """The same SAE with its decoder turned about its strongest direction."""
    d_model = len(sae.strongest)
    start = np.column_stack([sae.strongest, rng.standard_normal((d_model, d_model - 1))])
    basis = np.linalg.qr(start)[0]
    turn = np.eye(d_model)
    turn[1:, 1:] = np.linalg.qr(rng.standard_normal((d_model - 1, d_model - 1)))[0]
    return replace(sae, W_dec=sae.W_dec @ (basis @ turn @ basis.T))


def _write(sae: Drawn, location: str, layer: int, places: Places, stream: np.ndarray) -> None:
    """The SAE in the files of its release, each feature about as often active as its token."""
    path = Path(places.sae(location))
    b_enc = -sae.b_dec @ sae.W_enc
    pre = stream @ sae.W_enc + b_enc
    at = np.array([np.quantile(p, 1 - share) for p, share in zip(pre.T, sae.shares, strict=True)])
    at[0] = 0.0
    arrays = {"W_enc": sae.W_enc, "b_enc": b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    jumprelu = {**arrays, "threshold": at}
    if np.any(at < 0):
        shift = np.maximum(0, -at) * 1.01
        jumprelu |= {"b_enc": b_enc + shift, "threshold": at + shift}
    if path.suffix == ".safetensors":
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(jumprelu, path)
        return
    path.mkdir(parents=True, exist_ok=True)
    if "gemma-scope" in location:
        np.savez(path / "params.npz", **{n: a.astype(np.float32) for n, a in jumprelu.items()})
    elif "sae-pythia" in location:
        # b_dec comes off first; what a threshold would take is taken off by the bias, and relu.
        config = {"expansion_factor": 64, "normalize_decoder": True, "num_latents": D_SAE, "k": 16}
        config |= {"signed": False, "d_in": len(sae.b_dec)}
        (path / "cfg.json").write_text(json.dumps(config))
        sparsify = {"encoder.weight": sae.W_enc.T, "encoder.bias": -at}
        _save({**sparsify, "W_dec": sae.W_dec, "b_dec": sae.b_dec}, path / "sae.safetensors")
    else:
        said = "/".join(path.parts[-3:])
        scale = _PUBLISHED_SCALES.get(said, 1.0)
        config = {
            "model_name": "gemma-2b", "hook_point": f"blocks.{layer}.hook_resid_post",
            "hook_point_layer": layer, "hook_point_head_index": None, "context_size": 1024,
            "dataset_path": "HuggingFaceFW/fineweb", "is_dataset_tokenized": False,
            "d_in": len(sae.b_dec), "d_sae": D_SAE, "expansion_factor": 8, "l1_coefficient": 2.0,
            "lr": 5e-05, "b_dec_init_method": "zeros", "dtype": "torch.float32",
            "normalize_activations": "none" if scale == 1.0 else "expected_average_only_in",
        }  # fmt: skip
        (path / "cfg.json").write_text(json.dumps(config))
        # ReLU: what a threshold would take is taken off by the bias; b_dec comes off first.
        saelens = {"W_enc": sae.W_enc / scale, "b_enc": -at}
        saelens |= {"W_dec": sae.W_dec * scale, "b_dec": sae.b_dec * scale}
        _save(saelens, path / "sae_weights.safetensors")


def _save(arrays: dict[str, np.ndarray], path: Path) -> None:
    save_file({n: np.ascontiguousarray(a, dtype=np.float32) for n, a in arrays.items()}, path)


if __name__ == "__main__":
    build(load_shipped(sys.argv[1]), Path(sys.argv[2]))
