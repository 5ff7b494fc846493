import copy
import re

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, ViTConfig

from conftest import CONFIGS
from saelign.errors import ModelError, UnknownNameError
from saelign.models import untrained_fingerprint, untrained_model, weights_sha256

SIZES = {"vocab_size": 64, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32}
IDS = {"bos_token_id": 0, "eos_token_id": 0}
MADE = CONFIGS | {"gpt2": lambda: GPT2Config(**SIZES, **IDS)}
architectures = pytest.mark.parametrize("architecture", list(MADE))


def wide_llama(**changes):
    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 256}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaConfig(**(sizes | heads | IDS | changes))


def parameters(model):
    return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}


@architectures
def test_a_twin_follows_from_configuration_and_seed(architecture):
    config = MADE[architecture]()
    twin, again, other = (untrained_model(config, seed=seed) for seed in (3, 3, 4))
    assert weights_sha256(twin) == weights_sha256(again) != weights_sha256(other)
    assert not twin.training
    with torch.no_grad():
        assert twin(torch.tensor([[0, 5, 9]])).logits.isfinite().all()


@architectures
def test_random_parameters_differ_by_seed_and_all_others_are_as_transformers_sets_them(
    architecture,
):
    config = MADE[architecture]()
    with torch.random.fork_rng(devices=[]):
        theirs = parameters(AutoModelForCausalLM.from_config(config))
    ours, other = (parameters(untrained_model(config, seed=seed)) for seed in (0, 1))
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        if values.ndim == 1:
            np.testing.assert_array_equal(values, theirs[name])
        else:
            assert (values != theirs[name]).mean() > 0.99
            assert (values != other[name]).mean() > 0.99


def test_weights_are_numpys_and_known_in_advance():
    name, seed = "model.layers.1.mlp.up_proj.weight", 5
    twin = untrained_model(wide_llama(initializer_range=0.3), seed=seed)
    # The checksum of the name, so that it does not matter which parameters there are besides.
    drawn = np.random.default_rng([seed, 2819139542]).standard_normal((256, 64), dtype=np.float32)
    np.testing.assert_array_equal(parameters(twin)[name], np.float32(0.3) * drawn)


def test_the_spread_is_the_configurations_or_what_the_class_makes_of_it():
    wide = {"n_embd": 64, "n_layer": 8, "n_positions": 128, "vocab_size": 512}
    twin = parameters(untrained_model(GPT2Config(**(SIZES | IDS | wide)), seed=0))
    spreads = {name: values.std() for name, values in twin.items() if values.ndim == 2}
    for name, spread in spreads.items():
        # GPT-2 divides by the square root of twice its layers where blocks write to the stream.
        expected = 0.02 / 4 if name.endswith("c_proj.weight") else 0.02
        assert spread == pytest.approx(expected, rel=0.05)
        assert abs(twin[name].mean()) < 5 * spread / twin[name].size ** 0.5
    assert sum(name.endswith("c_proj.weight") for name in spreads) == 16


def test_small_parameters_do_not_stray_from_the_configurations_spread():
    # With 8 x 16 values, sampling alone takes one spread in nine a tenth away.
    for seed in range(3):
        twin = parameters(untrained_model(CONFIGS["gemma2"](), seed=seed))
        joined = np.concatenate([w.ravel() for w in twin.values() if w.ndim == 2])
        assert joined.std() == pytest.approx(0.3, rel=0.03)


def test_the_row_of_a_padding_token_stays_empty():
    twin = parameters(untrained_model(wide_llama(pad_token_id=7), seed=0))
    embedding = twin["model.embed_tokens.weight"]
    assert (embedding == 0).all(axis=1).nonzero()[0].tolist() == [7]


class Shifted(nn.Module):
    def __init__(self):
        super().__init__()
        self.shifted = nn.Parameter(torch.randn(400, 40) * 0.25 + 3)
        self.lone = nn.Parameter(torch.tensor(2.0))


def test_what_is_drawn_about_another_centre_stays_there(monkeypatch):
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_config", lambda *_, **__: Shifted())
    twin = parameters(untrained_model(wide_llama(), seed=0))
    assert twin["shifted"].mean() == pytest.approx(3, abs=0.02)
    assert twin["shifted"].std() == pytest.approx(0.25, abs=0.01)
    assert twin["lone"] == 2


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_drawn_once(tied):
    twin = untrained_model(wide_llama(tie_word_embeddings=tied), seed=0)
    embedding, unembedding = (
        module.weight for module in (twin.get_input_embeddings(), twin.get_output_embeddings())
    )
    assert (embedding is unembedding) == tied
    assert torch.equal(embedding, unembedding) == tied


def test_no_generator_of_the_caller_and_no_configuration_is_touched():
    config = wide_llama()
    before = copy.deepcopy(config.to_dict())
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    untrained_model(config, seed=0)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert config.to_dict() == before


def test_a_folder_gives_its_configuration_alone_and_nothing_is_printed(model_folder, capfd):
    folder = model_folder("llama")
    (folder / "model.safetensors").unlink()
    capfd.readouterr()
    twin = untrained_model(str(folder), seed=2)
    assert capfd.readouterr() == ("", "")
    assert weights_sha256(twin) == weights_sha256(untrained_model(CONFIGS["llama"](), seed=2))


def test_the_type_of_numbers_is_changed_after_drawing():
    config = wide_llama()
    full = parameters(untrained_model(config, seed=0))
    half = untrained_model(config, seed=0, dtype="bfloat16")
    for name, parameter in half.named_parameters():
        assert torch.equal(parameter, torch.from_numpy(full[name]).bfloat16())
    assert next(untrained_model(config, seed=0, dtype="auto").parameters()).dtype == torch.float32
    config.dtype = torch.bfloat16
    auto = untrained_model(config, seed=0, dtype="auto", sha256=None)
    assert weights_sha256(auto) == weights_sha256(half)
    sha256 = weights_sha256(untrained_model(config, seed=0))
    assert untrained_model(config, seed=0, dtype="auto", sha256=sha256).dtype == torch.bfloat16


def test_the_hash_follows_names_shapes_and_values():
    model = nn.Linear(2, 3)
    hashes = {weights_sha256(model)}
    with torch.no_grad():
        model.bias += 1
    hashes.add(weights_sha256(model))
    model.offset = model.bias
    del model.bias
    hashes.add(weights_sha256(model))
    model.weight = nn.Parameter(model.weight.reshape(2, 3))
    hashes.add(weights_sha256(model))
    assert len(hashes) == 4


def test_weights_other_than_recorded_are_refused():
    config = wide_llama()
    got = weights_sha256(untrained_model(config, seed=0))
    untrained_model(config, seed=0, sha256=got)
    words = (
        rf"^the untrained twin of 'llama' with seed 1 must have weights {got}, got (?!{got})\w+: .*"
        rf"numpy {re.escape(np.__version__)} or transformers .* draws other weights: install "
        r"the versions of the run that recorded the hash, or leave it out$"
    )
    with pytest.raises(ModelError, match=words):
        untrained_model(config, seed=1, sha256=got)


def test_what_cannot_be_a_twin_is_refused_in_one_line(tmp_path):
    with pytest.raises(UnknownNameError, match=r"dtype 'float23' \(did you mean 'float32'\?\)"):
        untrained_model(wide_llama(), seed=0, dtype="float23")
    with pytest.raises(ModelError, match=r"device 'warp' cannot be used"):
        untrained_model(wide_llama(), seed=0, device="warp")
    with pytest.raises(
        ModelError, match=r"^a configuration of type 'vit' must make a language .+$"
    ):
        untrained_model(ViTConfig(), seed=0)
    with pytest.raises(ModelError, match=r"^folder .* must hold a language model: .+$"):
        untrained_model(str(tmp_path), seed=0)


def test_the_fingerprint_tells_twins_apart_without_drawing_them(monkeypatch, model_folder):
    monkeypatch.delattr("saelign.models.untrained._initialised")
    config = wide_llama()
    first = untrained_fingerprint(config, 0)
    assert re.fullmatch(r"untrained-[0-9a-f]{64}", first)
    assert first == untrained_fingerprint(wide_llama(), 0)
    # What the file says of itself does not change the twin.
    config.name_or_path, config.dtype, config.architectures = "x", torch.bfloat16, ["y"]
    assert first == untrained_fingerprint(config, 0)
    assert first != untrained_fingerprint(config, 1)
    assert first != untrained_fingerprint(wide_llama(rms_norm_eps=1e-3), 0)
    folder = str(model_folder("llama"))
    assert untrained_fingerprint(folder, 0, None) == untrained_fingerprint(CONFIGS["llama"](), 0)
    monkeypatch.setattr("saelign.models.untrained.DRAWING_VERSION", 2)
    assert first != untrained_fingerprint(config, 0)
