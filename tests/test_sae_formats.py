"""Each published format, written as it is published, against its formula written out."""

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from saelign.activations.wiring import check_dimensions
from saelign.errors import FormatError, MissingFileError, UnknownNameError, WiringError
from saelign.saes import encode, inspect_sae, load_sae, reconstruct
from saelign.saes.formats import FORMATS
from saelign.sites import Site

D_MODEL, D_SAE, K = 6, 20, 4
Arrays = dict[str, np.ndarray]


def drawn(*names: str, seed: int = 0) -> Arrays:
    """Weights by our names, all the way round that SAELens has them."""
    rng = np.random.default_rng(seed)
    shapes = {"W_enc": (D_MODEL, D_SAE), "W_dec": (D_SAE, D_MODEL), "b_dec": (D_MODEL,)}
    arrays = {
        name: rng.standard_normal(shapes.get(name, (D_SAE,))).astype(np.float32)
        for name in (*shapes, "b_enc", "threshold", "b_gate", "b_mag", "r_mag")
    }
    arrays["threshold"] = np.abs(arrays["threshold"])
    return {name: arrays[name] for name in names}


STANDARD = ("W_enc", "b_enc", "W_dec", "b_dec")
X = np.random.default_rng(9).standard_normal((50, D_MODEL)).astype(np.float32) * 3 + 1


def relu(pre):
    return np.maximum(pre, 0)


def jumprelu(pre, threshold):
    return np.where(pre > threshold, relu(pre), 0)


def topk(pre):
    bar = np.sort(pre, axis=1)[:, -K][:, None]
    return np.where(pre >= bar, relu(pre), 0)


@dataclass(frozen=True)
class Published:
    """An SAE as it is published, and what it computes.

    Attributes:
        format: Its name in the table.
        architecture: As published.
        folder: As on the hub.
        config: Name and content of its configuration, if it has one.
        weights: The name of its file of weights.
        arrays: What the file holds.
        formula: Activations and reconstruction of an input.
        says: What it says of itself.
    """

    format: str
    architecture: str
    folder: str
    config: tuple[str, dict[str, Any]] | None
    weights: str
    arrays: Arrays
    formula: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    says: dict[str, Any]

    def write(self, root: Path, **changes: Any) -> Path:
        """The folder, after changes to its arrays; None takes one away."""
        folder = root / self.folder
        path = folder / self.weights
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.config is not None:
            (folder / self.config[0]).write_text(json.dumps(self.config[1]))
        arrays = {k: v for k, v in {**self.arrays, **changes}.items() if v is not None}
        if path.suffix == ".npz":
            np.savez(path, **arrays)
        elif path.suffix == ".pt":
            torch.save({name: torch.from_numpy(np.array(a)) for name, a in arrays.items()}, path)
        else:
            save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, path)
        return folder


def gemma_scope() -> Published:
    w = drawn(*STANDARD, "threshold")

    def formula(x):
        acts = jumprelu(x @ w["W_enc"] + w["b_enc"], w["threshold"])
        return acts, acts @ w["W_dec"] + w["b_dec"]

    return Published(
        format="gemma_scope",
        architecture="jumprelu",
        folder="google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82",
        config=None,
        weights="params.npz",
        arrays=w,
        formula=formula,
        says={"layer": 12, "model": "google/gemma-2-2b"},
    )


def gemma_scope_2(**changes: Any) -> Published:
    w = drawn(*STANDARD, "threshold")

    def formula(x):
        acts = jumprelu(x @ w["W_enc"] + w["b_enc"], w["threshold"])
        return acts, acts @ w["W_dec"] + w["b_dec"]

    config = {
        "hf_hook_point_in": "model.layers.17.output",
        "hf_hook_point_out": "model.layers.17.output",
        "width": D_SAE,
        "model_name": "google/gemma-3-1b-pt",
        "architecture": "jump_relu",
        "l0": 60,
        "affine_connection": False,
        "type": "sae",
    }
    return Published(
        format="gemma_scope_2",
        architecture="jumprelu",
        folder="google/gemma-scope-2-1b-pt/resid_post/layer_17_width_16k_l0_medium",
        config=("config.json", config | changes),
        weights="params.safetensors",
        arrays={name.lower(): array for name, array in w.items()},
        formula=formula,
        says={"layer": 17, "model": "google/gemma-3-1b-pt", "hook_name": "model.layers.17.output"},
    )


def saelens_gated() -> Published:
    w = drawn("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag")

    def formula(x):
        z = (x - w["b_dec"]) @ w["W_enc"]
        acts = (z + w["b_gate"] > 0) * relu(np.exp(w["r_mag"]) * z + w["b_mag"])
        return acts, acts @ w["W_dec"] + w["b_dec"]

    config = {
        "architecture": "gated",
        "d_in": D_MODEL,
        "d_sae": D_SAE,
        "apply_b_dec_to_input": True,
        "metadata": {"hook_name": "blocks.3.hook_resid_post", "model_name": "gpt2"},
    }
    return Published(
        format="saelens",
        architecture="gated",
        folder="blocks.3.hook_resid_post",
        config=("cfg.json", config),
        weights="sae_weights.safetensors",
        arrays=w,
        formula=formula,
        says={"layer": 3, "model": "gpt2"},
    )


def sparsify(folder: str = "layers.10", **changes: Any) -> Published:
    w = drawn(*STANDARD)

    def formula(x):
        acts = topk((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
        return acts, acts @ w["W_dec"] + w["b_dec"]

    config = {
        "activation": "topk",
        "expansion_factor": 32,
        "normalize_decoder": True,
        "num_latents": D_SAE,
        "k": K,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": D_MODEL,
    }
    return Published(
        format="sparsify",
        architecture="topk",
        folder=folder,
        config=("cfg.json", config | changes),
        weights="sae.safetensors",
        arrays={
            "encoder.weight": w["W_enc"].T,
            "encoder.bias": w["b_enc"],
            "W_dec": w["W_dec"],
            "b_dec": w["b_dec"],
        },
        formula=formula,
        says={"layer": 10, "hook_name": "layers.10", "k": K},
    )


def dictionary_learning(name: str, **changes: Any) -> Published:
    w = drawn(*STANDARD, "b_gate", "b_mag", "r_mag", "threshold")
    linear = {"encoder.weight": w["W_enc"].T, "decoder.weight": w["W_dec"].T}
    biased = linear | {"encoder.bias": w["b_enc"]}
    cut = np.float32(1.5)
    norms = np.linalg.norm(w["W_dec"], axis=1)
    whole = {key: w[key] for key in STANDARD}
    k = np.int32(K)

    def centred(x):
        return (x - w["b_dec"]) @ w["W_enc"]

    def gated(x):
        z = centred(x)
        return (z + w["b_gate"] > 0) * relu(np.exp(w["r_mag"]) * z + w["b_mag"])

    architecture, arrays, acts_of = {
        # On loading one the library makes its decoder's columns unit length.
        "AutoEncoder": (
            "standard",
            biased | {"bias": w["b_dec"]},
            lambda x: relu(centred(x) + w["b_enc"]) * norms,
        ),
        "AutoEncoderNew": (
            "standard",
            biased | {"decoder.bias": w["b_dec"]},
            lambda x: relu(x @ w["W_enc"] + w["b_enc"]),
        ),
        "AutoEncoderTopK": (
            "topk",
            biased | {"b_dec": w["b_dec"], "k": k, "threshold": cut},
            lambda x: topk(centred(x) + w["b_enc"]),
        ),
        "BatchTopKSAE": (
            "batchtopk",
            biased | {"b_dec": w["b_dec"], "k": k, "threshold": cut},
            lambda x: jumprelu(relu(centred(x) + w["b_enc"]), cut),
        ),
        "MatryoshkaBatchTopKSAE": (
            "batchtopk",
            whole | {"k": k, "threshold": cut, "group_sizes": np.array([8, 12])},
            lambda x: jumprelu(relu(centred(x) + w["b_enc"]), cut),
        ),
        "JumpReluAutoEncoder": (
            "jumprelu",
            whole | {"threshold": w["threshold"]},
            lambda x: jumprelu(x @ w["W_enc"] + w["b_enc"], w["threshold"]),
        ),
        "GatedAutoEncoder": (
            "gated",
            linear
            | {
                "decoder_bias": w["b_dec"],
                "gate_bias": w["b_gate"],
                "mag_bias": w["b_mag"],
                "r_mag": w["r_mag"],
            },
            gated,
        ),
    }[name]

    def formula(x):
        acts = acts_of(x)
        decoder = w["W_dec"] / norms[:, None] if name == "AutoEncoder" else w["W_dec"]
        return acts, acts @ decoder + w["b_dec"]

    trainer = {
        "dict_class": name,
        "activation_dim": D_MODEL,
        "dict_size": D_SAE,
        "k": K,
        "layer": 8,
        "lm_name": "EleutherAI/pythia-160m-deduped",
        "submodule_name": "resid_post_layer_8",
    }
    return Published(
        format="dictionary_learning",
        architecture=architecture,
        folder="resid_post_layer_8/trainer_0",
        config=("config.json", {"trainer": trainer | changes, "buffer": {"io": "out"}}),
        weights="ae.pt",
        arrays=arrays,
        formula=formula,
        says={"layer": 8, "model": "EleutherAI/pythia-160m-deduped"},
    )


AVERAGE = 7.5
SITE = "blocks.15.hook_resid_post"


def openmoss_early(**changes: Any) -> Published:
    """Llama Scope: one threshold, in the units that folding leads to."""
    w = drawn(*STANDARD)
    config = {
        "hook_point_in": SITE,
        "hook_point_out": SITE,
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "expansion_factor": 8,
        "d_model": D_MODEL,
        "d_sae": D_SAE,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.75,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": AVERAGE, "out": AVERAGE},
        "sparsity_include_decoder_norm": True,
        "use_glu_encoder": False,
        "top_k": K,
    } | changes
    norms = np.linalg.norm(w["W_dec"], axis=1)
    folds = norms if config["sparsity_include_decoder_norm"] else np.ones(D_SAE)

    def formula(x):
        scale = np.sqrt(D_MODEL) / AVERAGE
        if config["norm_activation"] == "token-wise":
            scale = np.sqrt(D_MODEL) / np.linalg.norm(x, axis=1, keepdims=True)
        if config["norm_activation"] == "inference":
            scale = 1.0
        normed = x * scale - w["b_dec"] * config["apply_decoder_bias_to_pre_encoder"]
        hidden = normed @ w["W_enc"] + w["b_enc"]
        folded = hidden * folds
        # Folding a data set's norm divides activations by the scale; a token's norm is not folded.
        unit = 1.0 if config["norm_activation"] == "token-wise" else scale
        if config["act_fn"] == "jumprelu":
            acts = jumprelu(folded / unit, config["jump_relu_threshold"])
        else:
            acts = topk(folded / unit)
        back = (acts * unit / folds) @ w["W_dec"] + w["b_dec"]
        return acts, back / scale

    return Published(
        format="openmoss",
        architecture=config["act_fn"],
        folder="fnlp/Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L15R-8x",
        config=("hyperparams.json", config),
        weights="checkpoints/final.safetensors",
        arrays={
            "encoder.weight": w["W_enc"].T,
            "encoder.bias": w["b_enc"],
            "decoder.weight": w["W_dec"].T,
            "decoder.bias": w["b_dec"],
        },
        formula=formula,
        says={"layer": 15, "hook_name": SITE},
    )


def openmoss_later(act_fn: str = "jumprelu", **changes: Any) -> Published:
    """A threshold a feature, learnt on normalised input; the average norm lies with the weights."""
    w = drawn(*STANDARD, "threshold")
    config = {
        "sae_type": "sae",
        "d_model": D_MODEL,
        "expansion_factor": 8,
        "use_decoder_bias": True,
        "act_fn": act_fn,
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": act_fn == "jumprelu",
        "top_k": K,
        "hook_point_in": SITE,
        "hook_point_out": SITE,
    } | changes
    scale = np.sqrt(D_MODEL) / AVERAGE
    norms = np.linalg.norm(w["W_dec"], axis=1) if act_fn == "jumprelu" else np.ones(D_SAE)

    def formula(x):
        hidden = (x * scale @ w["W_enc"] + w["b_enc"]) * norms
        acts = {
            "jumprelu": lambda: jumprelu(hidden, w["threshold"]),
            "topk": lambda: topk(hidden),
            "relu": lambda: relu(hidden),
        }[act_fn]()
        return acts / scale, ((acts / norms) @ w["W_dec"] + w["b_dec"]) / scale

    thresholds = {"activation_function.log_jumprelu_threshold": np.log(w["threshold"])}
    return Published(
        format="openmoss",
        architecture={"relu": "standard"}.get(act_fn, act_fn),
        folder="L15R",
        config=("config.json", config),
        weights="sae_weights.safetensors",
        arrays={
            "W_E": w["W_enc"],
            "b_E": w["b_enc"],
            "W_D": w["W_dec"],
            "b_D": w["b_dec"],
            f"dataset_average_activation_norm.{SITE}": np.float32(AVERAGE),
        }
        | (thresholds if act_fn == "jumprelu" else {}),
        formula=formula,
        says={"layer": 15, "hook_name": SITE},
    )


ALL = {
    "gemma_scope": gemma_scope(),
    "gemma_scope_2": gemma_scope_2(),
    "saelens_gated": saelens_gated(),
    "sparsify": sparsify(),
    **{
        name: dictionary_learning(name)
        for name in (
            "AutoEncoder",
            "AutoEncoderNew",
            "AutoEncoderTopK",
            "BatchTopKSAE",
            "MatryoshkaBatchTopKSAE",
            "JumpReluAutoEncoder",
            "GatedAutoEncoder",
        )
    },
    "openmoss_early": openmoss_early(),
    "openmoss_early_topk": openmoss_early(act_fn="topk", jump_relu_threshold=0.0),
    "openmoss_early_token_wise": openmoss_early(norm_activation="token-wise"),
    "openmoss_early_centred": openmoss_early(apply_decoder_bias_to_pre_encoder=True),
    "openmoss_early_no_norms": openmoss_early(sparsity_include_decoder_norm=False),
    "openmoss_early_inference": openmoss_early(norm_activation="inference"),
    "openmoss_later": openmoss_later(),
    "openmoss_later_topk": openmoss_later("topk"),
    "openmoss_later_relu": openmoss_later("relu"),
}

every = pytest.mark.parametrize("sae", ALL.values(), ids=ALL)


@every
def test_each_format_computes_the_formula_of_its_documentation(tmp_path, sae):
    ours = load_sae(sae.write(tmp_path))
    acts, back = sae.formula(X.astype(np.float64))
    assert 0 < (acts > 0).mean() < 0.8
    x = torch.from_numpy(X)
    np.testing.assert_allclose(encode(ours, x), acts, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(reconstruct(ours, x), back, atol=1e-4, rtol=1e-4)


@every
def test_a_look_at_the_headers_tells_what_loading_would(tmp_path, sae):
    path = sae.write(tmp_path)
    info, loaded = inspect_sae(path), load_sae(path)
    assert (info.format, info.architecture) == (sae.format, sae.architecture)
    assert (info.d_model, info.d_sae) == (D_MODEL, D_SAE)
    for name in ("d_model", "d_sae", "layer", "hook_name", "model", "activation", "k", "source"):
        assert getattr(info, name) == getattr(loaded, name), name
    for name in ("apply_b_dec_to_input", "normalize"):
        assert getattr(info, name) == getattr(loaded, name), name
    assert {name: getattr(info, name) for name in sae.says} == sae.says
    assert (loaded.threshold is not None) == (info.activation == "jumprelu")


@every
def test_the_weights_may_be_named_instead_of_their_folder(tmp_path, sae, monkeypatch):
    folder = sae.write(tmp_path)
    assert load_sae(folder / sae.weights).sha256 == load_sae(folder).sha256
    monkeypatch.chdir(folder)
    assert load_sae(Path(sae.weights)).sha256 == load_sae(Path()).sha256


@every
def test_the_hash_follows_weights_and_configuration(tmp_path, sae):
    hashes = {load_sae(sae.write(tmp_path)).sha256}
    key = next(k for k, a in sae.arrays.items() if a.ndim == 2)
    hashes.add(load_sae(sae.write(tmp_path, **{key: sae.arrays[key] * 2})).sha256)
    if sae.config is not None:
        folder = sae.write(tmp_path)
        (folder / sae.config[0]).write_text(json.dumps(sae.config[1] | {"note": "another"}))
        hashes.add(load_sae(folder).sha256)
    assert len(hashes) == (2 if sae.config is None else 3)


@every
def test_half_a_file_of_weights_is_refused(tmp_path, sae):
    folder = sae.write(tmp_path)
    path = folder / sae.weights
    data = path.read_bytes()
    for part in (data[: len(data) // 2], data[:20], b""):
        path.write_bytes(part)
        for look in (inspect_sae, load_sae):
            with pytest.raises(FormatError, match=r"params|sae|ae\.pt|final"):
                look(folder)


@every
def test_a_tensor_that_is_missing_or_not_known_is_named(tmp_path, sae):
    key = next(k for k, a in sae.arrays.items() if a.ndim == 2 and "W_E" not in k)
    with pytest.raises(FormatError, match=rf"lacks {key} and holds"):
        inspect_sae(sae.write(tmp_path, **{key: None}))
    with pytest.raises(FormatError, match=r"and nothing else, it also holds W_skip"):
        inspect_sae(sae.write(tmp_path, W_skip=np.zeros((2, 2), dtype=np.float32)))


@every
def test_a_tensor_that_does_not_fit_is_named_with_the_shape_it_should_have(tmp_path, sae):
    decoder = next(k for k in sae.arrays if k in ("W_dec", "w_dec", "W_D", "decoder.weight"))
    wrong = sae.arrays[decoder].T
    words = rf"{decoder} .* shape \({wrong.shape[1]}, {wrong.shape[0]}\) beside .*20.*got"
    for look in (inspect_sae, load_sae):
        with pytest.raises(FormatError, match=words):
            look(sae.write(tmp_path, **{decoder: wrong}))


@every
def test_weights_that_are_not_finite_are_refused(tmp_path, sae):
    key = next(k for k, a in sae.arrays.items() if a.ndim == 2)
    bad = np.full_like(sae.arrays[key], np.nan)
    with pytest.raises(FormatError, match=rf"must be finite, {key} of"):
        load_sae(sae.write(tmp_path, **{key: bad}))


@every
def test_a_configuration_that_is_no_json_object_is_refused(tmp_path, sae):
    if sae.config is None:
        return
    folder = sae.write(tmp_path)
    for text, words in (("{", r"must be JSON"), ("[]", r"must be a JSON object, got list")):
        (folder / sae.config[0]).write_text(text)
        with pytest.raises(FormatError, match=words):
            inspect_sae(folder)


def test_every_format_is_tried():
    assert {sae.format for sae in ALL.values()} == set(FORMATS)


def test_a_folder_that_is_not_recognised_says_what_was_seen_and_what_is_known(tmp_path):
    for n in range(10):
        (tmp_path / f"average_l0_{n}").mkdir()
    with pytest.raises(MissingFileError, match=r"holds average_l0_0/, .*_7/ and 2 more; known are"):
        load_sae(tmp_path)
    folder = tmp_path / "half"
    folder.mkdir()
    (folder / "cfg.json").write_text("{}")
    words = r"holds cfg\.json and lacks sae_weights\.safetensors to be saelens, or sae\.safetensors"
    with pytest.raises(MissingFileError, match=words):
        inspect_sae(folder)
    (folder / "model.pt").write_bytes(b"")
    with pytest.raises(FormatError, match=r"a pickle without the configuration .*ae\.pt"):
        load_sae(folder / "model.pt")


def test_an_npz_of_any_name_is_read_as_gemma_scope(tmp_path):
    np.savez(tmp_path / "mine.npz", **gemma_scope().arrays)
    sae = load_sae(tmp_path / "mine.npz")
    assert (sae.layer, sae.model, sae.activation) == (None, None, "jumprelu")
    np.testing.assert_allclose(
        encode(sae, torch.from_numpy(X)), gemma_scope().formula(X)[0], atol=1e-4
    )


def test_headers_are_read_without_the_weights(tmp_path, monkeypatch):
    npz, safe = gemma_scope().write(tmp_path), sparsify().write(tmp_path)

    def refuse(*_args, **_kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr("saelign.saes.formats.reading.np.load", refuse)
    monkeypatch.setattr("saelign.saes.formats.reading.torch.from_numpy", refuse)
    monkeypatch.setattr("saelign.saes.formats.gemma_scope.read_tensors", refuse)
    monkeypatch.setattr("saelign.saes.formats.sparsify.read_tensors", refuse)
    assert inspect_sae(npz).d_sae == inspect_sae(safe).d_sae == D_SAE


def test_a_feature_at_its_threshold_is_silent_and_one_just_above_is_not(tmp_path):
    eye = np.eye(D_MODEL, dtype=np.float32)
    zeros, cut = np.zeros(D_MODEL, dtype=np.float32), np.float32(1.25)
    weights = {"W_enc": eye, "W_dec": eye, "b_enc": zeros, "b_dec": zeros, "threshold": zeros + cut}
    np.savez(tmp_path / "params.npz", **weights)
    x = torch.tensor([[1.25, float(np.nextafter(cut, np.float32(2))), 1.0, -9.0, 0.0, 2.0]])
    assert (encode(load_sae(tmp_path), x) > 0).tolist() == [
        [False, True, False, False, False, True]
    ]


def test_of_tied_features_only_as_many_speak_as_k_allows(tmp_path):
    column = np.ones((D_MODEL, 1), dtype=np.float32)
    encoder = np.repeat(column, D_SAE, axis=1)
    encoder[:, :2] *= 2
    sae = load_sae(
        sparsify().write(
            tmp_path,
            **{
                "encoder.weight": encoder.T,
                "encoder.bias": np.zeros(D_SAE, dtype=np.float32),
                "b_dec": np.zeros(D_MODEL, dtype=np.float32),
            },
        )
    )
    acts = encode(sae, torch.ones(3, D_MODEL))
    assert ((acts > 0).sum(dim=1) == K).all()
    np.testing.assert_array_equal(acts.sort(dim=1).values[:, -K:], [[6, 6, 12, 12]] * 3)
    assert (encode(sae, -torch.ones(3, D_MODEL)) == 0).all()


def test_the_site_of_gemma_scope_is_in_the_name_of_its_folder(tmp_path):
    residual = gemma_scope()
    places = {"res": ("resid_post", 3), "mlp": ("mlp_out", 3), "att": ("attn_z", 3)}
    for site in (*places, "transcoders"):
        folder = tmp_path / f"models--google--gemma-scope-2b-pt-{site}" / "snapshots" / "layer_3"
        folder.mkdir(parents=True)
        np.savez(folder / "params.npz", **residual.arrays)
        if site in places:
            for sae in (inspect_sae(folder), load_sae(folder)):
                assert (sae.site, sae.layer) == places[site]
            continue
        with pytest.raises(FormatError, match=rf"residual stream, .* reads '{site} of "):
            inspect_sae(folder)
    folder = tmp_path / "gemma-scope-2b-pt-res" / "embedding" / "width_4k" / "average_l0_6"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **residual.arrays)
    with pytest.raises(FormatError, match=r"reads 'embedding'"):
        inspect_sae(folder)


def test_the_tuned_model_is_told_from_the_base_model(tmp_path):
    folder = tmp_path / "models--google--gemma-scope-9b-it-res" / "snapshots" / "0" / "layer_20"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **gemma_scope().arrays)
    assert inspect_sae(folder).model == "google/gemma-2-9b-it"


def test_python_objects_in_an_npz_are_refused(tmp_path):
    objects = np.array([{}, {}], dtype=object)
    np.savez(tmp_path / "params.npz", **{**gemma_scope().arrays, "W_enc": objects})
    for look in (inspect_sae, load_sae):
        with pytest.raises(FormatError, match=r"W_enc\.npy holds Python objects, .*: refused"):
            look(tmp_path)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"architecture": "topk"}, UnknownNameError, r"architecture .*'topk'.*: jump_relu"),
        ({"affine_connection": True}, FormatError, r"affine connection beside them"),
        (
            {"hf_hook_point_out": "model.layers.17.mlp.output"},
            FormatError,
            r"reads 'model\.layers\.17\.output' and gives .*mlp.* it is a transcoder",
        ),
        (
            {
                "hf_hook_point_in": "model.layers.3.self_attn.q_proj.input",
                "hf_hook_point_out": "model.layers.3.self_attn.q_proj.input",
            },
            FormatError,
            r"must read the residual stream, .*q_proj",
        ),
        ({"width": 7}, FormatError, r"width must be that of the weights, .* says 7 and .* has 20"),
    ],
)
def test_a_gemma_scope_2_that_is_no_sae_of_a_site_is_refused(tmp_path, changes, error, words):
    with pytest.raises(error, match=words):
        inspect_sae(gemma_scope_2(**changes).write(tmp_path))


def test_gemma_scope_2_without_a_configuration_is_told_by_its_folders(tmp_path):
    sae = gemma_scope_2()
    site = tmp_path / "models--google--gemma-scope-2-4b-it" / "snapshots" / "0"
    names = (
        "resid_post_all/layer_10_width_262k_l0_small",
        "mlp_out_all/layer_10_width_16k_l0_big",
        "attn_out/layer_10_width_16k_l0_big",
        "transcoder/layer_10_width_16k_l0_big",
    )
    for name in names:
        (site / name).mkdir(parents=True)
        save_file(sae.arrays, site / name / "params.safetensors")
    info = inspect_sae(site / names[0])
    assert (info.layer, info.model) == (10, "google/gemma-3-4b-it")
    acts = encode(load_sae(site / names[0]), torch.from_numpy(X))
    np.testing.assert_allclose(acts, sae.formula(X)[0], atol=1e-4)
    places = [(info.site, info.layer) for info in (inspect_sae(site / name) for name in names[:3])]
    assert places == [("resid_post", 10), ("mlp_out", 10), ("attn_z", 10)]
    with pytest.raises(FormatError, match=r"residual stream, .* reads 'transcoder of layer_10_"):
        inspect_sae(site / names[3])
    (tmp_path / "mine").mkdir()
    save_file(sae.arrays, tmp_path / "mine" / "params.safetensors")
    assert inspect_sae(tmp_path / "mine").layer is None


@pytest.mark.parametrize(
    ("folder", "site", "layer"),
    [
        ("layers.10", "resid_post", 10),
        ("gpt_neox.layers.9", "resid_post", 9),
        ("model.layers.0", "resid_post", 0),
        ("transformer.h.3", "resid_post", 3),
        ("layer_21", "resid_pre", 21),  # of the first releases: hidden states, which enter blocks
        ("layer_0", "resid_pre", 0),
        ("layers.10.mlp", "mlp_out", 10),
        ("layers.10.attention", "attn_out", 10),
        ("my-sae", None, None),
    ],
)
def test_the_hookpoint_of_sparsify_is_the_name_of_its_folder(tmp_path, folder, site, layer):
    info = inspect_sae(sparsify(folder).write(tmp_path))
    assert (info.site, info.layer) == (site, layer)


@pytest.mark.parametrize("folder", ["layers.10.mlp.up_proj", "embed_tokens"])
def test_a_hookpoint_that_is_no_site_is_refused(tmp_path, folder):
    with pytest.raises(FormatError, match=rf"must read the residual stream, .* reads '{folder}'"):
        inspect_sae(sparsify(folder).write(tmp_path))


def test_the_oldest_configuration_of_sparsify_is_understood(tmp_path):
    sae = sparsify()
    folder = sae.write(tmp_path)
    old = {"expansion_factor": 32, "normalize_decoder": True, "k": K, "signed": False}
    (folder / "cfg.json").write_text(json.dumps(old | {"d_in": D_MODEL}))
    acts = encode(load_sae(folder), torch.from_numpy(X))
    np.testing.assert_allclose(acts, sae.formula(X)[0], atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"transcode": True}, FormatError, r"has transcode in its cfg\.json: it is a transcoder"),
        ({"skip_connection": True}, FormatError, r"skip connection beside its features"),
        ({"signed": True}, FormatError, r"its activations may be negative"),
        ({"activation": "groupmax"}, UnknownNameError, r"activation .*'groupmax'.*: topk"),
        ({"d_in": 5}, FormatError, r"d_in must be that of the weights, .* says 5 and .* has 6"),
        ({"num_latents": 21}, FormatError, r"num_latents must be .* says 21 and .* has 20"),
        ({"k": 21}, FormatError, r"k of a TopK SAE must be from 1 to 20, .* says 21"),
        ({"k": None}, FormatError, r"k of a TopK SAE must be from 1 to 20, .* says None"),
    ],
)
def test_a_sparse_coder_that_is_no_topk_sae_is_refused(tmp_path, changes, error, words):
    with pytest.raises(error, match=words):
        inspect_sae(sparsify(**changes).write(tmp_path))


@pytest.mark.parametrize(
    ("changes", "site", "layer"),
    [
        ({}, "resid_post", 8),
        ({"submodule_name": None}, "resid_post", 8),
        ({"submodule_name": "resid_pre_layer_8"}, "resid_pre", 8),
        ({"submodule_name": "mlp_out_layer8"}, "mlp_out", 8),
        ({"submodule_name": "attn_out_layer8"}, "attn_out", 8),
        ({"layer": None}, None, None),
    ],
)
def test_the_site_of_a_dictionary_is_read_from_its_trainer(tmp_path, changes, site, layer):
    info = inspect_sae(dictionary_learning("AutoEncoder", **changes).write(tmp_path))
    assert (info.site, info.layer) == (site, layer)


def test_what_enters_a_block_is_told_from_what_leaves_it(tmp_path):
    sae = dictionary_learning("AutoEncoder", submodule_name=None)
    folder = sae.write(tmp_path)
    (folder / "config.json").write_text(json.dumps(sae.config[1] | {"buffer": {"io": "in"}}))
    assert (inspect_sae(folder).site, inspect_sae(folder).layer) == ("resid_pre", 8)


@pytest.mark.parametrize(
    ("name", "changes", "error", "words"),
    [
        ("AutoEncoder", {"dict_class": "IdentityDict"}, UnknownNameError, r"'IdentityDict'.*Auto"),
        ("AutoEncoder", {"submodule_name": "mlp_layer_8"}, FormatError, r"reads 'mlp_layer_8'"),
        ("AutoEncoder", {"activation_dim": 7}, FormatError, r"activation_dim .* says 7 .* has 6"),
        ("AutoEncoder", {"dict_size": 7}, FormatError, r"dict_size .* says 7 and .* has 20"),
        ("AutoEncoderTopK", {"k": 5}, FormatError, r"k must be that of .* says 5 and .* has 4"),
    ],
)
def test_a_dictionary_whose_files_do_not_fit_is_refused(tmp_path, name, changes, error, words):
    with pytest.raises(error, match=words):
        inspect_sae(dictionary_learning(name, **changes).write(tmp_path))


def test_a_dictionary_without_its_trainer_is_refused(tmp_path):
    folder = dictionary_learning("AutoEncoder").write(tmp_path)
    (folder / "config.json").write_text("{}")
    with pytest.raises(FormatError, match=r"must have a 'trainer' with its 'dict_class', got None"):
        inspect_sae(folder)


@pytest.mark.parametrize("threshold", [None, np.float32(-1)])
def test_a_batch_topk_without_a_threshold_is_refused(tmp_path, threshold):
    folder = dictionary_learning("BatchTopKSAE").write(tmp_path, threshold=threshold)
    with pytest.raises(FormatError, match=r"must hold the threshold .* none or one that was never"):
        load_sae(folder)


def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path):
    marker = tmp_path / "ran"

    class Unsafe:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    folder = dictionary_learning("AutoEncoder").write(tmp_path)
    torch.save({"encoder.weight": Unsafe()}, folder / "ae.pt")
    for look in (inspect_sae, load_sae):
        with pytest.raises(FormatError, match=r"would run code when read: refused"):
            look(folder)
    (folder / "ae.pt").write_bytes(pickle.dumps(Unsafe()))
    with pytest.raises(FormatError, match=r"ae\.pt must"):
        load_sae(folder)
    torch.save(torch.nn.Linear(2, 2), folder / "ae.pt")
    with pytest.raises(FormatError, match=r"holds Python objects, .* refused"):
        load_sae(folder)
    torch.save([1, 2], folder / "ae.pt")
    with pytest.raises(FormatError, match=r"must hold a state dict, .* got list"):
        load_sae(folder)
    assert not marker.exists()


def test_a_state_dict_of_the_time_before_zip_files_is_read(tmp_path):
    sae = dictionary_learning("AutoEncoder")
    folder = sae.write(tmp_path)
    state = torch.load(folder / "ae.pt", weights_only=True)
    torch.save(state, folder / "ae.pt", _use_new_zipfile_serialization=False)
    acts = encode(load_sae(folder), torch.from_numpy(X))
    np.testing.assert_allclose(acts, sae.formula(X)[0], atol=1e-4)


def test_a_loaded_dictionary_outlives_its_file(tmp_path):
    folder = dictionary_learning("JumpReluAutoEncoder").write(tmp_path)
    sae = load_sae(folder)
    before = sae.W_enc.clone()
    data = (folder / "ae.pt").read_bytes()
    with (folder / "ae.pt").open("r+b") as file:
        file.write(b"\x7f" * len(data))
    assert torch.equal(sae.W_enc, before)


def test_topk_of_openmoss_with_a_threshold_is_read_as_the_library_reads_it(tmp_path):
    info = inspect_sae(openmoss_early(act_fn="topk", jump_relu_threshold=0.3).write(tmp_path))
    assert (info.activation, info.k) == ("jumprelu", None)


def test_an_openmoss_decoder_may_have_no_bias(tmp_path):
    sae = openmoss_later(use_decoder_bias=False)
    loaded = load_sae(sae.write(tmp_path, b_D=None))
    assert not loaded.b_dec.any()
    np.testing.assert_allclose(encode(loaded, torch.from_numpy(X)), sae.formula(X)[0], atol=1e-4)


def test_learnt_thresholds_of_the_years_between_are_read(tmp_path):
    # Linear layers still, the threshold already one a feature (Llama Scope R1 Distill).
    later, early = openmoss_later(), openmoss_early()
    folder = tmp_path / "L15R"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(later.config[1]))
    names = {"activation_function.log_jumprelu_threshold": "log_jumprelu_threshold"}
    kept = {n: a for n, a in later.arrays.items() if n.startswith(("data", "activation"))}
    arrays = early.arrays | {names.get(n, n): a for n, a in kept.items()}
    save_file(
        {n: np.ascontiguousarray(a) for n, a in arrays.items()}, folder / "sae_weights.safetensors"
    )
    acts = encode(load_sae(folder), torch.from_numpy(X))
    np.testing.assert_allclose(acts, later.formula(X)[0], atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"hook_point_out": "blocks.15.hook_mlp_out"}, FormatError, r"it is a transcoder"),
        ({"use_glu_encoder": True}, FormatError, r"gated linear encoder is not supported"),
        ({"act_fn": "batchtopk"}, FormatError, r"convert it to 'jumprelu' with lm_saes"),
        ({"act_fn": "gelu"}, UnknownNameError, r"act_fn .*'gelu'.*: jumprelu, relu, topk"),
        ({"norm_activation": "batch-wise"}, UnknownNameError, r"norm_activation .*'batch-wise'"),
        ({"sae_type": "crosscoder"}, UnknownNameError, r"sae_type .*'crosscoder'.*: sae"),
        ({"jump_relu_threshold": None}, FormatError, r"must have a threshold, .* no jump_relu_th"),
        ({"dataset_average_activation_norm": None}, FormatError, r"must say the average norm"),
        ({"d_model": 7}, FormatError, r"d_model must be that of the weights, .* 7 and .* has 6"),
        ({"d_sae": 7}, FormatError, r"d_sae must be that of the weights, .* says 7 .* has 20"),
        (
            {"hook_point_in": "blocks.15.hook_resid_mid", "hook_point_out": None},
            FormatError,
            r"must read the residual stream, .*hook_resid_mid",
        ),
    ],
)
def test_an_openmoss_configuration_that_is_not_supported_is_refused(
    tmp_path, changes, error, words
):
    sae = openmoss_early()
    folder = sae.write(tmp_path)
    (folder / "hyperparams.json").write_text(json.dumps(sae.config[1] | changes))
    with pytest.raises(error, match=words):
        inspect_sae(folder)


def test_an_average_norm_that_is_not_positive_is_refused(tmp_path):
    key = f"dataset_average_activation_norm.{SITE}"
    with pytest.raises(FormatError, match=r"average norm must be positive, .* has 0\.0"):
        load_sae(openmoss_later().write(tmp_path, **{key: np.float32(0)}))


@pytest.mark.parametrize("norm", ["token-wise", "inference"])
def test_an_average_norm_that_does_not_count_may_be_anything(tmp_path, norm):
    # The library saves uninitialised memory in its place.
    key = f"dataset_average_activation_norm.{SITE}"
    sae, x = openmoss_later(norm_activation=norm), torch.from_numpy(X)
    without = encode(load_sae(sae.write(tmp_path, **{key: None})), x)
    for value in (np.nan, np.inf, 1e30):
        with_one = load_sae(sae.write(tmp_path, **{key: np.float32(value)}))
        assert torch.equal(encode(with_one, x), without)


def test_an_sae_of_another_width_names_the_model_it_belongs_to(tmp_path):
    info = inspect_sae(gemma_scope_2().write(tmp_path))
    with pytest.raises(WiringError, match=r"reads 6 .* has 16: it belongs to google/gemma-3-1b-pt"):
        check_dimensions(info, 17, d_site=16, n_layers=26)
    with pytest.raises(WiringError, match=r"says 'model\.layers\.17\.output' .*: choose layer 17$"):
        check_dimensions(info, 3, d_site=6, n_layers=26)
    with pytest.raises(WiringError, match=r"the MLP output of block 3 has 16: .*-pt or site$"):
        check_dimensions(info, 3, d_site=16, n_layers=26, site=Site("mlp_out"))
    words = (
        r"to read the MLP output of block 3: choose `site: resid_post` in the study and layer 17$"
    )
    with pytest.raises(WiringError, match=words):
        check_dimensions(info, 3, d_site=6, n_layers=26, site=Site("mlp_out"))
    check_dimensions(info, 18, d_site=6, n_layers=26, site=Site("resid_pre"))
