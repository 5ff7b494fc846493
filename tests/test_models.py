import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from conftest import CONFIGS, D_MODEL, N_LAYERS, tiny_model
from saelign.errors import ModelError, UnknownNameError
from saelign.models import (
    check_device,
    d_model,
    find_blocks,
    has_direct_path,
    load_config,
    load_model,
    model_fingerprint,
    n_layers,
    n_positions,
    promoted_tokens,
    read_unembedding,
    sae_device,
    streams_at,
    unembedding_of,
)
from saelign.sites import AFTER_BLOCK, Site

IDS = torch.tensor([[0, 5, 9, 30, 2, 7], [0, 8, 8, 41, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
EVERYWHERE = list(range(-1, N_LAYERS))
architectures = pytest.mark.parametrize("architecture", list(CONFIGS))


class Wrapped(nn.Module):
    """A block that keeps what it gives, told apart from a hook on it."""

    def __init__(self, block, seen):
        super().__init__()
        self.block, self.seen = block, seen
        self.attention_type = getattr(block, "attention_type", None)  # asked of Gemma-2's blocks

    def forward(self, *args, **kwargs):
        self.seen.append(args[0])
        output = self.block(*args, **kwargs)
        self.seen.append(output[0] if isinstance(output, tuple) else output)
        return output


@architectures
def test_the_stream_after_a_block_is_the_blocks_own_output(architecture):
    model = tiny_model(architecture)
    blocks = find_blocks(model)
    streams = streams_at(model, blocks, IDS, MASK, EVERYWHERE)
    seen = []
    for layer in range(N_LAYERS):
        blocks[layer] = Wrapped(blocks[layer], seen)
    with torch.no_grad():
        model(input_ids=IDS, attention_mask=MASK)
    assert torch.equal(streams[-1], seen[0])
    for layer in range(N_LAYERS):
        assert torch.equal(streams[layer], seen[2 * layer + 1])


@architectures
def test_hidden_states_are_one_off_and_the_last_has_passed_the_final_norm(architecture):
    model = tiny_model(architecture)
    streams = streams_at(model, find_blocks(model), IDS, MASK, EVERYWHERE)
    with torch.no_grad():
        hidden = model(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states
    for layer in range(-1, N_LAYERS - 1):
        assert torch.equal(hidden[layer + 1], streams[layer])
    assert not torch.allclose(hidden[N_LAYERS], streams[N_LAYERS - 1], atol=0.01)
    assert not torch.allclose(hidden[1], streams[1], atol=0.01)


@architectures
def test_nothing_runs_after_the_last_layer_needed(architecture):
    model = tiny_model(architecture)
    blocks = find_blocks(model)
    ran = []
    for layer, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    model.get_output_embeddings().register_forward_hook(lambda *_: ran.append("logits"))
    streams_at(model, blocks, IDS, MASK, [0, 1])
    assert ran == [0, 1]
    streams_at(model, blocks, IDS, MASK, [-1])
    assert ran == [0, 1]


def test_hooks_are_gone_afterwards_even_after_a_failure():
    model = tiny_model("gpt_neox")
    blocks = find_blocks(model)
    streams_at(model, blocks, IDS, MASK, [-1, 0])
    with pytest.raises(IndexError):
        streams_at(model, blocks, IDS + 1000, MASK, [-1, 0])
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in blocks)
    with torch.no_grad():
        assert model(input_ids=IDS).logits.shape == (2, 6, 64)


class TupleBlock(nn.Module):
    def forward(self, hidden_states):
        return hidden_states + 1, "a cache"


class TupleModel(nn.Module):
    def __init__(self, n_used):
        super().__init__()
        self.config = CONFIGS["llama"]()
        self.layers = nn.ModuleList([TupleBlock() for _ in range(N_LAYERS)])
        self.n_used = n_used

    def forward(self, input_ids, attention_mask, use_cache):
        assert attention_mask is None
        assert not use_cache
        stream = input_ids[..., None].float()
        for block in self.layers[: self.n_used]:
            stream, _ = block(hidden_states=stream)
        return stream


def test_a_block_may_give_a_tuple_and_take_its_input_by_name():
    model = TupleModel(N_LAYERS)
    streams = streams_at(model, find_blocks(model), IDS, None, [-1, 1])
    assert torch.equal(streams[-1], IDS[..., None].float())
    assert torch.equal(streams[1], IDS[..., None] + 2.0)


def test_layers_that_are_not_there_or_do_not_run_are_refused():
    model = TupleModel(1)
    with pytest.raises(ModelError, match=r"layers must be from 0 to 2 .*, got 3"):
        streams_at(model, find_blocks(model), IDS, None, [0, 3])
    with pytest.raises(
        ModelError, match=r"must run in a forward pass, the residual stream after block 2 was"
    ):
        streams_at(model, find_blocks(model), IDS, None, [0, 2])


@architectures
def test_blocks_are_found_by_structure_and_by_path(architecture):
    model = tiny_model(architecture)
    path = "gpt_neox.layers" if architecture == "gpt_neox" else "model.layers"
    assert find_blocks(model) is model.get_submodule(path)
    assert find_blocks(model, path) is model.get_submodule(path)


def test_blocks_that_are_not_unique_must_be_named():
    model = tiny_model("llama")
    with pytest.raises(ModelError, match=r"'model\.lay' must name .* are: model\.layers$"):
        find_blocks(model, "model.lay")
    model.others = nn.ModuleList([nn.Linear(2, 2) for _ in range(N_LAYERS)])
    with pytest.raises(ModelError, match=r"got model\.layers and others: name the list .*blocks:"):
        find_blocks(model)
    assert find_blocks(model, "others") is model.others
    model.model.layers.append(nn.Linear(2, 2))
    model.others.append(nn.ReLU())
    with pytest.raises(ModelError, match=r"one list of 3 equal blocks .* got none: name the list"):
        find_blocks(model)


def test_a_list_within_the_blocks_does_not_count():
    model = tiny_model("llama")
    for block in model.model.layers:
        block.parts = nn.ModuleList([nn.Identity() for _ in range(N_LAYERS)])
    assert find_blocks(model) is model.model.layers


@architectures
def test_a_saved_model_loads_in_silence_and_computes_the_same(architecture, model_folder, capfd):
    folder = str(model_folder(architecture))
    capfd.readouterr()
    model = load_model(folder, revision=None, dtype="float32", device="cpu")
    assert capfd.readouterr() == ("", "")
    assert not model.training
    config = load_config(folder)
    assert (n_layers(config), d_model(config)) == (N_LAYERS, D_MODEL)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, tiny_model(architecture)(IDS).logits)
    half = load_model(folder, revision=None, dtype="bfloat16", device="cpu")
    assert next(half.parameters()).dtype == torch.bfloat16


def test_a_model_that_cannot_be_loaded_is_refused_in_one_line(tmp_path, monkeypatch, model_folder):
    load = {"revision": None, "dtype": "float32", "device": "cpu"}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = r"^model 'no/such' must be a folder in transformers layout or a name on the .+; .+: .+$"
    with pytest.raises(ModelError, match=words):
        load_model("no/such", **load)
    with pytest.raises(ModelError, match=words):
        load_config("no/such")
    with pytest.raises(ModelError, match=r"^folder .* must hold a language model: .+$"):
        load_model(str(tmp_path), **load)
    folder = model_folder("llama")
    with pytest.raises(UnknownNameError, match=r"dtype 'float23' \(did you mean 'float32'\?\)"):
        load_model(str(folder), **(load | {"dtype": "float23"}))
    with pytest.raises(ModelError, match=r"device 'warp' cannot be used: .*; 'cpu' always can"):
        load_model(str(folder), **(load | {"device": "warp"}))
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"all its weights, 1 are missing: model\.norm\.weight"):
        load_model(str(folder), **load)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"must hold a language model"):
        load_model(str(folder), **load)
    with pytest.raises(ModelError, match=r"must hold weights \(\*\.safetensors\), it holds none"):
        model_fingerprint(str(folder))


def test_the_fingerprint_follows_weights_and_configuration(model_folder):
    folder, other = model_folder("llama"), model_folder("llama", 1)
    prints = [model_fingerprint(str(folder)), model_fingerprint(str(other))]
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    prints.append(model_fingerprint(str(folder)))
    assert len(set(prints)) == 3


def test_a_model_of_the_hub_is_known_by_its_commit(tmp_path, monkeypatch):
    """A filled cache, as huggingface_hub lays it out, read offline."""
    commit = "0123456789abcdef" * 2 + "01234567"
    kept = tmp_path / "models--some--model"
    for name in (commit, "no-commit"):
        CONFIGS["llama"]().save_pretrained(kept / "snapshots" / name)
    (kept / "refs").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (kept / "refs" / "main").write_text("no-commit")
    with pytest.raises(ModelError, match=r"'some/model' has no commit on the hub"):
        model_fingerprint("some/model")
    (kept / "refs" / "main").write_text(commit)
    assert model_fingerprint("some/model") == f"some/model@{commit}"


def saved(model, folder):
    model.save_pretrained(folder)
    return str(folder)


BERT = {
    "vocab_size": 64, "hidden_size": D_MODEL, "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 2, "intermediate_size": 24,
}  # fmt: skip


def test_an_encoder_is_read_whatever_head_it_was_saved_with(tmp_path):
    config = transformers.BertConfig(**BERT)
    masked = transformers.BertForMaskedLM(config).eval()
    bare = masked.bert
    streams = []
    for number, model in enumerate((masked, bare)):
        loaded = load_model(saved(model, tmp_path / str(number)))
        assert type(loaded).__name__ == "BertForMaskedLM"
        streams.append(streams_at(loaded, find_blocks(loaded), IDS, MASK, EVERYWHERE))
    with torch.no_grad():
        hidden = bare(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states
    for layer in EVERYWHERE:
        assert torch.equal(streams[0][layer], streams[1][layer])
        assert torch.equal(streams[0][layer], hidden[layer + 1])
    weights = load_file(tmp_path / "1" / "model.safetensors")
    weights.pop("encoder.layer.0.output.dense.weight")
    save_file(weights, tmp_path / "1" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 are missing: bert\.encoder\.layer\.0\.output\.dense"):
        load_model(str(tmp_path / "1"))


def test_positions_of_a_model_that_counts_from_its_padding():
    assert n_positions(transformers.BertConfig(max_position_embeddings=512)) == 512
    config = transformers.RobertaConfig(max_position_embeddings=514, pad_token_id=1)
    assert n_positions(config) == 512
    assert n_positions(transformers.MambaConfig()) is None


def test_dealing_out_and_quantization_ask_for_their_packages(monkeypatch):
    absent = set[str]()
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name in absent else object()
    )
    absent |= {"accelerate", "bitsandbytes"}
    words = r"^device 'auto' must have the package accelerate, it is not .*: pip install accelerate"
    with pytest.raises(ModelError, match=words):
        check_device("auto")
    words = r"^quantization '4bit' must have the package accelerate, .* accelerate bitsandbytes, or"
    with pytest.raises(ModelError, match=words):
        check_device("cpu", "4bit")
    absent -= {"accelerate"}
    with pytest.raises(ModelError, match=r"must have the package bitsandbytes"):
        check_device("cpu", "8bit")
    with pytest.raises(UnknownNameError, match=r"unknown quantization '3bit' .*'8bit'|'3bit'"):
        check_device("cpu", "3bit")


@architectures
def test_a_model_dealt_out_by_accelerate_computes_the_same(architecture, model_folder):
    pytest.importorskip("accelerate")
    folder = str(model_folder(architecture))
    dealt = load_model(folder, device="auto")
    whole = tiny_model(architecture)
    for site in (AFTER_BLOCK, Site("mlp_out"), Site("attn_z")):
        got = streams_at(dealt, find_blocks(dealt), IDS, MASK, [0, 2], site=site)
        expected = streams_at(whole, find_blocks(whole), IDS, MASK, [0, 2], site=site)
        for layer in (0, 2):
            assert torch.equal(got[layer].cpu(), expected[layer])
    assert torch.device(sae_device("auto")).type in ("cpu", "cuda", "mps")


@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_quantized_weights_compute_nearly_the_same_eight_bits_nearer_than_four(tmp_path):
    pytest.importorskip("bitsandbytes")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=N_LAYERS,
        num_attention_heads=2, num_key_value_heads=2, initializer_range=0.1,
    )  # fmt: skip
    folder = saved(transformers.AutoModelForCausalLM.from_config(config), tmp_path / "model")
    whole = load_model(folder)
    exact = streams_at(whole, find_blocks(whole), IDS, MASK, [2])[2]
    errors = []
    for quantization in ("8bit", "4bit"):
        model = load_model(folder, quantization=quantization)
        blocks = find_blocks(model)
        assert quantization[0] in type(blocks[0].mlp.up_proj).__name__
        got = streams_at(model, blocks, IDS, MASK, [2])[2]
        errors.append(float((got - exact).norm() / exact.norm()))
    assert 0 < errors[0] < 0.1
    assert errors[0] < errors[1] < 0.5


# Unembedding --------------------------------------------------------------------------------------


@architectures
@pytest.mark.parametrize("size", ["5GB", "1KB"])
def test_an_unembedding_is_read_by_itself(architecture, size, tmp_path):
    model = tiny_model(architecture)
    model.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (size == "1KB")
    found, expected = read_unembedding(str(tmp_path)), unembedding_of(model)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_an_unembedding_that_is_no_safetensors_is_left_to_the_model(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    torch.save(load_file(weights), tmp_path / "pytorch_model.bin")
    weights.unlink()
    assert read_unembedding(str(tmp_path)) is None


def test_an_encoder_has_no_direct_path_to_its_logits():
    assert not has_direct_path(transformers.BertConfig())
    assert has_direct_path(CONFIGS["gemma2"]())


def test_promoted_tokens_are_those_with_the_largest_entries():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 8, generator=generator)
    rows = torch.randn(30, 8, generator=generator)
    ids, logits = promoted_tokens(weight, rows, top=4)
    products = (rows @ weight.T).numpy()
    np.testing.assert_array_equal(ids, np.argsort(-products, axis=1)[:, :4])
    np.testing.assert_allclose(logits, -np.sort(-products, axis=1)[:, :4], rtol=1e-5)
