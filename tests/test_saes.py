import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from conftest import lossless_sae
from saelign.errors import FormatError, MissingFileError, UnknownNameError
from saelign.saes import decode, encode, inspect_sae, load_sae, reconstruct
from saelign.saes.sae import in_parts

D_MODEL, D_SAE, K = 6, 20, 4


def tensors(*, threshold: bool, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    weights = {
        "W_enc": normal(D_MODEL, D_SAE),
        "b_enc": normal(D_SAE),
        "W_dec": normal(D_SAE, D_MODEL),
        "b_dec": normal(D_MODEL),
    }
    return weights | ({"threshold": normal(D_SAE)} if threshold else {})


def inputs(n_tokens: int = 50) -> torch.Tensor:
    return torch.randn(n_tokens, D_MODEL, generator=torch.Generator().manual_seed(9)) * 3 + 1


def single_file(tmp_path, **changes):
    path = tmp_path / "sae.safetensors"
    weights = {**tensors(threshold=True), **changes}
    save_file({name: w for name, w in weights.items() if w is not None}, path)
    return path


def saelens(tmp_path, *, weights=None, **cfg):
    folder = tmp_path / "saelens"
    folder.mkdir(exist_ok=True)
    cfg = {"architecture": "standard", "d_in": D_MODEL, "d_sae": D_SAE, "dtype": "float32"} | cfg
    (folder / "cfg.json").write_text(json.dumps(cfg))
    if weights is None:
        weights = tensors(threshold=cfg["architecture"] == "jumprelu")
    save_file(weights, folder / "sae_weights.safetensors")
    return folder


def in_numpy(weights, x, activation, *, subtract=False):
    w = {name: tensor.double().numpy() for name, tensor in weights.items()}
    x = x.double().numpy()
    pre = (x - w["b_dec"] * subtract) @ w["W_enc"] + w["b_enc"]
    if activation == "jumprelu":
        return np.where((pre > w["threshold"]) & (pre > 0), pre, 0)
    if activation == "topk":
        bar = np.sort(pre, axis=1)[:, -K][:, None]
        return np.where((pre >= bar) & (pre > 0), pre, 0)
    return np.maximum(pre, 0)


def test_a_single_file_with_thresholds_is_a_jumprelu_that_takes_nothing_off_its_input(tmp_path):
    path = single_file(tmp_path)
    sae = load_sae(path)
    expected = in_numpy(tensors(threshold=True), inputs(), "jumprelu")
    assert (tensors(threshold=True)["threshold"] < 0).any()
    np.testing.assert_allclose(encode(sae, inputs()), expected, atol=1e-5)
    assert (sae.activation, sae.layer, sae.hook_name) == ("jumprelu", None, None)
    assert (sae.d_model, sae.d_sae, sae.source) == (D_MODEL, D_SAE, str(path))


def test_a_single_file_without_thresholds_is_a_relu(tmp_path):
    sae = load_sae(single_file(tmp_path, threshold=None))
    expected = in_numpy(tensors(threshold=False), inputs(), "relu")
    np.testing.assert_allclose(encode(sae, inputs()), expected, atol=1e-5)


def test_weights_of_half_precision_are_read_as_float32(tmp_path):
    half = {name: tensor.bfloat16() for name, tensor in tensors(threshold=True).items()}
    sae = load_sae(single_file(tmp_path, **half))
    assert sae.W_enc.dtype == sae.threshold.dtype == torch.float32
    rounded = {name: tensor.float() for name, tensor in half.items()}
    expected = in_numpy(rounded, inputs(), "jumprelu")
    np.testing.assert_allclose(encode(sae, inputs()), expected, atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "topk", "jumprelu"])
@pytest.mark.parametrize("subtract", [True, False])
def test_each_saelens_architecture_computes_its_formula(tmp_path, activation, subtract):
    architecture = "standard" if activation == "relu" else activation
    path = saelens(tmp_path, architecture=architecture, k=K, apply_b_dec_to_input=subtract)
    sae = load_sae(path)
    weights = tensors(threshold=activation == "jumprelu")
    expected = in_numpy(weights, inputs(), activation, subtract=subtract)
    acts = encode(sae, inputs())
    np.testing.assert_allclose(acts, expected, atol=1e-4)
    assert sae.k == (K if activation == "topk" else None)
    back = expected @ weights["W_dec"].double().numpy() + weights["b_dec"].double().numpy()
    np.testing.assert_allclose(decode(sae, acts), back, atol=1e-4)
    np.testing.assert_allclose(reconstruct(sae, inputs()), back, atol=1e-4)


def test_normalisation_of_the_input_is_undone_on_the_way_out(tmp_path):
    x = inputs()
    for normalize in ("layer_norm", "constant_norm_rescale", "none"):
        sae = lossless_sae(D_MODEL, normalize=normalize)
        np.testing.assert_allclose(reconstruct(sae, x), x, atol=1e-3)
    sizes = encode(lossless_sae(D_MODEL, normalize="constant_norm_rescale"), x).norm(dim=1)
    np.testing.assert_allclose(sizes, D_MODEL**0.5, rtol=1e-5)
    acts = encode(lossless_sae(D_MODEL, normalize="layer_norm"), x)
    signed = (acts[:, :D_MODEL] - acts[:, D_MODEL:]).numpy()
    np.testing.assert_allclose(signed.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(signed.std(axis=1, ddof=1), 1, rtol=1e-4)
    assert load_sae(saelens(tmp_path, normalize_activations="layer_norm")).normalize == "layer_norm"


def test_choosing_by_decoder_norm_is_folded_into_unit_decoder_rows(tmp_path):
    cfg = {"architecture": "topk", "k": K, "apply_b_dec_to_input": False}
    sae = load_sae(saelens(tmp_path, **cfg, rescale_acts_by_decoder_norm=True))
    weights = tensors(threshold=False)
    norms = weights["W_dec"].norm(dim=1)
    weights["W_enc"], weights["b_enc"] = weights["W_enc"] * norms, weights["b_enc"] * norms
    np.testing.assert_allclose(
        encode(sae, inputs()), in_numpy(weights, inputs(), "topk"), atol=1e-4
    )
    np.testing.assert_allclose(sae.W_dec.norm(dim=1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("cfg", "place"),
    [
        ({"metadata": {"hook_name": "blocks.7.hook_resid_post"}}, ("resid_post", 7)),
        ({"metadata": {"hook_name": "blocks.7.hook_resid_pre"}}, ("resid_pre", 7)),
        ({"hook_name": "blocks.0.hook_resid_pre", "hook_layer": 0}, ("resid_pre", 0)),
        (
            {"hook_point": "blocks.3.hook_resid_post", "activation_fn_str": "relu"},
            ("resid_post", 3),
        ),
        ({"metadata": {"hook_name": "model.layers.12"}}, ("resid_post", 12)),
        ({"metadata": {"hook_name": "layers.2"}}, ("resid_post", 2)),
        ({"metadata": {"hook_name": "blocks.2.attn.hook_z"}}, ("attn_z", 2)),
        ({"metadata": {}}, (None, None)),
    ],
)
def test_the_place_is_read_from_old_and_new_configurations(tmp_path, cfg, place):
    path = saelens(tmp_path, **cfg)
    for sae in (load_sae(path), inspect_sae(path)):
        assert (sae.site, sae.layer) == place


def test_the_old_spelling_of_topk_is_understood(tmp_path):
    cfg = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "hook_point": "layers.1"}
    sae = load_sae(saelens(tmp_path, **cfg, normalize_activations=False))
    expected = in_numpy(tensors(threshold=False), inputs(), "topk", subtract=True)
    np.testing.assert_allclose(encode(sae, inputs()), expected, atol=1e-4)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
@pytest.mark.parametrize("by_norm", [True, False])
def test_a_checkpoint_of_a_batch_topk_is_read_as_the_jumprelu_it_becomes(
    tmp_path, architecture, by_norm
):
    weights = tensors(threshold=False)
    cut = torch.tensor(1.5, dtype=torch.float64)  # as the library keeps it
    cfg = {"architecture": architecture, "k": 4.5, "rescale_acts_by_decoder_norm": by_norm}
    path = saelens(tmp_path, weights=weights | {"topk_threshold": cut}, **cfg)
    sae, info = load_sae(path), inspect_sae(path)
    norms = weights["W_dec"].norm(dim=1) if by_norm else torch.ones(D_SAE)
    folded = weights | {"W_enc": weights["W_enc"] * norms, "b_enc": weights["b_enc"] * norms}
    folded["threshold"] = cut.expand(D_SAE)
    expected = in_numpy(folded, inputs(), "jumprelu", subtract=True)
    np.testing.assert_allclose(encode(sae, inputs()), expected, atol=1e-4)
    back = expected / norms.numpy() @ weights["W_dec"].numpy() + weights["b_dec"].numpy()
    np.testing.assert_allclose(reconstruct(sae, inputs()), back, atol=1e-4)
    assert (info.architecture, info.activation, info.k) == ("batchtopk", "jumprelu", None)


def test_a_batch_topk_without_its_threshold_is_refused(tmp_path):
    path = saelens(tmp_path, weights=tensors(threshold=False), architecture="batchtopk", k=4)
    with pytest.raises(FormatError, match=r"it lacks topk_threshold"):
        inspect_sae(path)


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated", "batchtopk"])
def test_the_scale_of_the_input_that_a_checkpoint_has_beside_it_is_folded(tmp_path, architecture):
    weights = tensors(threshold=architecture == "jumprelu")
    if architecture == "batchtopk":
        weights["topk_threshold"] = torch.tensor(1.5)
    if architecture == "gated":
        bias = weights.pop("b_enc")
        weights |= {"b_gate": bias, "b_mag": bias.flip(0), "r_mag": bias / 4}
    cfg = {"architecture": architecture, "k": K, "rescale_acts_by_decoder_norm": True}
    plain = load_sae(saelens(tmp_path, weights=weights, **cfg))
    path = saelens(
        tmp_path, weights=weights, normalize_activations="expected_average_only_in", **cfg
    )
    (path / "activation_scaler.json").write_text('{"scaling_factor": 0.4}')
    scaled = load_sae(path)
    x = inputs()
    unit = 1 / 0.4 if architecture in ("topk", "batchtopk") else 1.0  # norms of the folded decoder
    np.testing.assert_allclose(encode(scaled, x), encode(plain, x * 0.4) * unit, atol=1e-4)
    np.testing.assert_allclose(reconstruct(scaled, x), reconstruct(plain, x * 0.4) / 0.4, atol=1e-4)
    (path / "activation_scaler.json").write_text('{"scaling_factor": 0.5}')
    assert load_sae(path).sha256 != scaled.sha256


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", r"activation_scaler\.json must be JSON with a 'scaling_factor'"),
        ("{}", r"must be JSON with a 'scaling_factor': KeyError"),
        ("[]", r"must be JSON with a 'scaling_factor': TypeError"),
        ('{"scaling_factor": null}', r"scaling_factor in .* must be positive, got None"),
        ('{"scaling_factor": 0}', r"must be positive, got 0"),
        ('{"scaling_factor": Infinity}', r"must be positive, got inf"),
    ],
)
def test_a_scale_of_the_input_that_is_none_is_refused(tmp_path, text, words):
    path = saelens(tmp_path, normalize_activations="expected_average_only_in")
    (path / "activation_scaler.json").write_text(text)
    for look in (inspect_sae, load_sae):
        with pytest.raises(FormatError, match=words):
            look(path)


def test_a_look_at_the_header_tells_what_loading_would(tmp_path):
    info = inspect_sae(single_file(tmp_path))
    assert (info.d_model, info.d_sae, info.format) == (D_MODEL, D_SAE, "safetensors")
    path = saelens(tmp_path, architecture="topk", k=K)
    info, sae = inspect_sae(path), load_sae(path)
    assert (info.d_model, info.d_sae, info.format) == (sae.d_model, sae.d_sae, "saelens")
    assert (info.k, info.activation, info.normalize) == (sae.k, sae.activation, sae.normalize)


def test_the_hash_follows_the_weights_and_the_configuration(tmp_path):
    hashes = {
        load_sae(single_file(tmp_path, b_dec=torch.full((D_MODEL,), b))).sha256 for b in (0.0, 1.0)
    }
    hashes |= {load_sae(saelens(tmp_path, apply_b_dec_to_input=on)).sha256 for on in (True, False)}
    assert len(hashes) == 4


def test_a_file_whose_tensors_do_not_fit_is_refused(tmp_path):
    for changes, words in (
        (
            {"W_dec": None, "b_enc": None},
            r"it lacks W_dec, b_enc and holds W_enc, b_dec, threshold",
        ),
        ({"r_mag": torch.zeros(2)}, r"and nothing else, it also holds r_mag"),
        ({"W_enc": torch.zeros(4)}, r"W_enc of .* must be d_model x d_sae, got \(4,\)"),
        ({"W_dec": torch.zeros(D_MODEL, D_SAE)}, r"W_dec .* \(20, 6\) beside .*6 x 20.*\(6, 20\)"),
        ({"threshold": torch.zeros(1)}, r"threshold .* must have shape \(20,\).* got \(1,\)"),
    ):
        path = single_file(tmp_path, **changes)
        with pytest.raises(FormatError, match=words):
            load_sae(path)
        with pytest.raises(FormatError, match=words):
            inspect_sae(path)
    path = single_file(tmp_path, b_dec=torch.full((D_MODEL,), torch.nan))
    with pytest.raises(FormatError, match=r"must be finite, b_dec of .* holds NaN"):
        load_sae(path)
    path.write_bytes(b"a pickle, say")
    with pytest.raises(FormatError, match=r"must be a safetensors file, .* is none"):
        load_sae(path)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"nowhere is not there"):
        load_sae(tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match=r"holds nothing; known are: .*saelens \(cfg\.json"):
        load_sae(tmp_path)
    path = saelens(tmp_path)
    (path / "sae_weights.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"lacks sae_weights\.safetensors"):
        inspect_sae(path)


def test_a_saelens_configuration_that_is_not_supported_is_refused(tmp_path):
    for cfg, error, words in (
        (
            {"architecture": "temporal"},
            UnknownNameError,
            r"architecture .*'temporal'.* jumprelu, .*, standard",
        ),
        ({"activation_fn": "tanh-relu"}, UnknownNameError, r"activation_fn .* 'tanh-relu'"),
        ({"normalize_activations": "l2"}, UnknownNameError, r"normalize_activations .* 'l2'"),
        ({"normalize_activations": True}, FormatError, r"'expected_average_only_in', whose stat"),
        ({"normalize_activations": "covariance_whitening"}, FormatError, r"fold them into the w"),
        (
            {"finetuning_scaling_factor": True},
            FormatError,
            r"fine-tuning scaling factor is not sup",
        ),
        ({"architecture": "topk"}, FormatError, r"k of a TopK SAE must be from 1 to 20, .* None"),
        ({"architecture": "topk", "k": 21}, FormatError, r"says 21"),
        ({"hook_name": "blocks.3.hook_mlp_in"}, FormatError, r"reads 'blocks\.3\.hook_mlp_in'"),
    ):
        path = saelens(tmp_path, **cfg)
        with pytest.raises(error, match=words):
            inspect_sae(path)
    (path / "cfg.json").write_text("{")
    with pytest.raises(FormatError, match=r"cfg\.json must be JSON"):
        load_sae(path)
    (path / "cfg.json").write_text("[]")
    with pytest.raises(FormatError, match=r"must be a JSON object, got list"):
        load_sae(path)


def test_a_scaling_factor_of_ones_changes_nothing_and_any_other_is_refused(tmp_path):
    weights = tensors(threshold=False) | {"scaling_factor": torch.ones(D_SAE)}
    with_ones = load_sae(saelens(tmp_path, weights=weights))
    expected = in_numpy(tensors(threshold=False), inputs(), "relu", subtract=True)
    np.testing.assert_allclose(encode(with_ones, inputs()), expected, atol=1e-4)
    path = saelens(tmp_path, weights=weights | {"scaling_factor": torch.full((D_SAE,), 2.0)})
    with pytest.raises(FormatError, match=r"fine-tuning scaling factor is not supported"):
        load_sae(path)


def test_an_sae_reads_any_number_of_tokens_in_parts_that_fit_together():
    for d_model in (1, 3000):
        sae = lossless_sae(d_model)
        x = torch.arange(1300.0)[:, None].expand(1300, d_model)
        parts = in_parts(sae, x)
        assert torch.equal(torch.cat(parts), x)
        assert (len(parts) == 1) == (d_model == 1)
