"""Every site of a small model of each real class, against what the class itself computes."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers as t
from torch import Tensor, nn

from saelign.errors import ModelError
from saelign.models import auto_class, d_model, d_site, find_blocks, find_module, streams_at
from saelign.sites import AFTER_BLOCK, SITES, Site, SiteName, same_place, site_of_hook

DOCS = Path(__file__).parent.parent / "docs" / "models.md"
N_LAYERS, D_MODEL, N_HEADS, D_HEAD = 3, 16, 2, 12
IDS = torch.tensor([[2, 5, 9, 30, 2, 7], [2, 8, 8, 41, 3, 3]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])

SIZES = {
    "vocab_size": 64,
    "hidden_size": D_MODEL,
    "intermediate_size": 24,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 3,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
LLAMA = {**SIZES, "num_key_value_heads": 1, "head_dim": D_HEAD}
GPT = {"vocab_size": 64, "n_embd": D_MODEL, "n_layer": N_LAYERS, "n_head": 2, "n_positions": 64}
STATE = {k: v for k, v in SIZES.items() if "heads" not in k and "position" not in k}
GEMMA = {**LLAMA, "query_pre_attn_scalar": 8, "sliding_window": 4}

Adds = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


def plainly(_: nn.Module, before: Tensor, attention: Tensor, mlp: Tensor) -> Tensor:
    return before + attention + mlp


def normalised(block: nn.Module, before: Tensor, attention: Tensor, mlp: Tensor) -> Tensor:
    between = block.attention.output.LayerNorm(before + attention)
    return block.output.LayerNorm(between + mlp)


def distilled(block: nn.Module, before: Tensor, attention: Tensor, mlp: Tensor) -> Tensor:
    return block.output_layer_norm(block.sa_layer_norm(before + attention) + mlp)


def multiplied(block: nn.Module, before: Tensor, attention: Tensor, mlp: Tensor) -> Tensor:
    return before + block.residual_multiplier * (attention + mlp)


@dataclass(frozen=True, kw_only=True)
class Class:
    config: Callable[[], t.PretrainedConfig]
    blocks: str
    projection: str = "self_attn.o_proj"
    adds: Adds = plainly
    is_later: bool = False  # whether hidden states are those after each block, not before
    sites: tuple[SiteName, ...] = SITES


RESIDUAL: tuple[SiteName, ...] = ("resid_post", "resid_pre")
LAYERS = "model.layers"
BERT = {"projection": "attention.output.dense", "adds": normalised}
CLASSES = {
    "GPTNeoXForCausalLM": Class(
        config=lambda: t.GPTNeoXConfig(**SIZES),
        blocks="gpt_neox.layers",
        projection="attention.dense",
    ),
    "GemmaForCausalLM": Class(config=lambda: t.GemmaConfig(**LLAMA), blocks=LAYERS),
    "Gemma2ForCausalLM": Class(config=lambda: t.Gemma2Config(**GEMMA), blocks=LAYERS),
    "Gemma3ForCausalLM": Class(config=lambda: t.Gemma3TextConfig(**GEMMA), blocks=LAYERS),
    "LlamaForCausalLM": Class(config=lambda: t.LlamaConfig(**LLAMA), blocks=LAYERS),
    "MistralForCausalLM": Class(config=lambda: t.MistralConfig(**LLAMA), blocks=LAYERS),
    "MixtralForCausalLM": Class(
        config=lambda: t.MixtralConfig(**LLAMA, num_local_experts=2), blocks=LAYERS
    ),
    "Qwen2ForCausalLM": Class(
        config=lambda: t.Qwen2Config(**SIZES, num_key_value_heads=1), blocks=LAYERS
    ),
    "Qwen3ForCausalLM": Class(config=lambda: t.Qwen3Config(**LLAMA), blocks=LAYERS),
    "Olmo2ForCausalLM": Class(
        config=lambda: t.Olmo2Config(**SIZES, num_key_value_heads=1), blocks=LAYERS
    ),
    "Glm4ForCausalLM": Class(config=lambda: t.Glm4Config(**LLAMA), blocks=LAYERS),
    "GraniteForCausalLM": Class(
        config=lambda: t.GraniteConfig(**SIZES, residual_multiplier=0.25),
        blocks=LAYERS,
        adds=multiplied,
    ),
    "CohereForCausalLM": Class(
        config=lambda: t.CohereConfig(**SIZES, num_key_value_heads=1), blocks=LAYERS
    ),
    "StableLmForCausalLM": Class(
        config=lambda: t.StableLmConfig(**SIZES, num_key_value_heads=1), blocks=LAYERS
    ),
    "Starcoder2ForCausalLM": Class(
        config=lambda: t.Starcoder2Config(**SIZES, num_key_value_heads=1), blocks=LAYERS
    ),
    "PhiForCausalLM": Class(
        config=lambda: t.PhiConfig(**SIZES), blocks=LAYERS, projection="self_attn.dense"
    ),
    "Phi3ForCausalLM": Class(
        config=lambda: t.Phi3Config(**SIZES, num_key_value_heads=1), blocks=LAYERS
    ),
    "GPT2LMHeadModel": Class(
        config=lambda: t.GPT2Config(**GPT), blocks="transformer.h", projection="attn.c_proj"
    ),
    "GPTNeoForCausalLM": Class(
        config=lambda: t.GPTNeoConfig(
            vocab_size=64,
            hidden_size=D_MODEL,
            num_layers=N_LAYERS,
            num_heads=2,
            attention_types=[[["global"], N_LAYERS]],
        ),
        blocks="transformer.h",
        projection="attn.attention.out_proj",
    ),
    "GPTJForCausalLM": Class(
        config=lambda: t.GPTJConfig(**GPT, rotary_dim=4),
        blocks="transformer.h",
        projection="attn.out_proj",
    ),
    "OPTForCausalLM": Class(
        config=lambda: t.OPTConfig(**SIZES, ffn_dim=24, word_embed_proj_dim=D_MODEL),
        blocks="model.decoder.layers",
        projection="self_attn.out_proj",
    ),
    "BloomForCausalLM": Class(
        config=lambda: t.BloomConfig(
            vocab_size=64, hidden_size=D_MODEL, n_layer=N_LAYERS, n_head=2, initializer_range=0.3
        ),
        blocks="transformer.h",
        projection="self_attention.dense",
    ),
    "FalconForCausalLM": Class(
        config=lambda: t.FalconConfig(**SIZES),
        blocks="transformer.h",
        projection="self_attention.dense",
    ),
    "MptForCausalLM": Class(
        config=lambda: t.MptConfig(
            vocab_size=64, d_model=D_MODEL, n_layers=N_LAYERS, n_heads=2, max_seq_len=64
        ),
        blocks="transformer.blocks",
        projection="attn.out_proj",
    ),
    "MambaForCausalLM": Class(
        config=lambda: t.MambaConfig(**STATE, state_size=4),
        blocks="backbone.layers",
        is_later=True,
        sites=RESIDUAL,
    ),
    "Mamba2ForCausalLM": Class(
        config=lambda: t.Mamba2Config(**STATE, num_heads=4, head_dim=8, state_size=4, n_groups=1),
        blocks="backbone.layers",
        is_later=True,
        sites=RESIDUAL,
    ),
    "FalconMambaForCausalLM": Class(
        config=lambda: t.FalconMambaConfig(**STATE, state_size=4),
        blocks="backbone.layers",
        is_later=True,
        sites=RESIDUAL,
    ),
    "RwkvForCausalLM": Class(
        config=lambda: t.RwkvConfig(**STATE, attention_hidden_size=D_MODEL),
        blocks="rwkv.blocks",
        is_later=True,
        sites=("resid_post", "resid_pre", "mlp_out", "attn_out"),
    ),
    "BertForMaskedLM": Class(
        config=lambda: t.BertConfig(**SIZES), blocks="bert.encoder.layer", **BERT
    ),
    "RobertaForMaskedLM": Class(
        config=lambda: t.RobertaConfig(**SIZES), blocks="roberta.encoder.layer", **BERT
    ),
    "ElectraForMaskedLM": Class(
        config=lambda: t.ElectraConfig(**SIZES, embedding_size=D_MODEL),
        blocks="electra.encoder.layer",
        **BERT,
    ),
    "DistilBertForMaskedLM": Class(
        config=lambda: t.DistilBertConfig(
            vocab_size=64, dim=D_MODEL, n_layers=N_LAYERS, n_heads=2, hidden_dim=24, pad_token_id=3
        ),
        blocks="distilbert.transformer.layer",
        projection="attention.out_lin",
        adds=distilled,
    ),
    "ModernBertForMaskedLM": Class(
        config=lambda: t.ModernBertConfig(
            **SIZES | {"bos_token_id": 2}, cls_token_id=2, sep_token_id=1
        ),
        blocks=LAYERS,
        projection="attn.Wo",
    ),
}
classes = pytest.mark.parametrize("name", list(CLASSES))


def model_of(name: str) -> nn.Module:
    config = CLASSES[name].config()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto_class(config).from_config(config).eval()
    assert type(model).__name__ == name
    with torch.no_grad():  # norms' weights of one and zero would hide which norm it was
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.manual_seed(1))
    return model


def read(model: nn.Module, site: Site = AFTER_BLOCK, blocks: nn.ModuleList | None = None):
    blocks = find_blocks(model) if blocks is None else blocks
    layers = range(site.first_layer, N_LAYERS)
    return streams_at(model, blocks, IDS, MASK, list(layers), site=site)


@classes
def test_blocks_are_found_and_the_stream_is_what_hidden_states_hold_one_later(name):
    model = model_of(name)
    assert find_blocks(model) is model.get_submodule(CLASSES[name].blocks)
    after, before = read(model), read(model, Site("resid_pre"))
    assert d_model(model.config) == D_MODEL
    with torch.no_grad():
        hidden = model(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states
    for layer in range(N_LAYERS):
        assert torch.equal(before[layer], after[layer - 1])
        expected = after if CLASSES[name].is_later else before
        torch.testing.assert_close(hidden[layer], expected[layer])


@classes
def test_attention_and_mlp_are_what_a_block_adds_to_the_stream(name):
    kind, model = CLASSES[name], model_of(name)
    before, after = read(model, Site("resid_pre")), read(model)
    for site in set(SITES) - set(kind.sites):
        with pytest.raises(ModelError, match=rf"to be read at {site}, \w+ has .*: name its module"):
            read(model, Site(site))
    if "mlp_out" not in kind.sites:
        return
    attention, mlp = read(model, Site("attn_out")), read(model, Site("mlp_out"))
    for layer, block in enumerate(find_blocks(model)):
        with torch.no_grad():
            entering = before[layer]
            if name == "RwkvForCausalLM" and layer == 0:
                entering = block.pre_ln(entering)
            added = kind.adds(block, entering, attention[layer], mlp[layer])
        torch.testing.assert_close(added, after[layer])
        assert not torch.allclose(attention[layer], torch.zeros(()), atol=1e-3)
        assert not torch.allclose(mlp[layer], torch.zeros(()), atol=1e-3)


@pytest.mark.parametrize("name", [n for n, kind in CLASSES.items() if "attn_z" in kind.sites])
def test_the_heads_outputs_are_what_the_projection_of_the_attention_reads(name):
    kind, model = CLASSES[name], model_of(name)
    heads, attention = read(model, Site("attn_z")), read(model, Site("attn_out"))
    for layer, block in enumerate(find_blocks(model)):
        assert heads[layer].shape == (*IDS.shape, d_site(model.config, Site("attn_z")))
        norm = None
        if "post_feedforward_layernorm" in dict(block.named_children()):
            norm = block.post_attention_layernorm
        elif "post_mlp_layernorm" in dict(block.named_children()):
            norm = block.post_self_attn_layernorm
        with torch.no_grad():
            projected = block.get_submodule(kind.projection)(heads[layer])
            projected = projected if norm is None else norm(projected)
        torch.testing.assert_close(projected, attention[layer])


@pytest.mark.parametrize(
    ("name", "site"), [(name, site) for name, kind in CLASSES.items() for site in kind.sites]
)
def test_padding_moves_nothing_and_nothing_runs_after_the_last_block_read(name, site):
    model = model_of(name)
    blocks, site = find_blocks(model), Site(site)
    ran: list[int] = []
    for layer, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    padded = streams_at(model, blocks, IDS, MASK, [1], site=site)[1]
    assert 2 not in ran
    alone = streams_at(model, blocks, IDS[1:, :4], None, [1], site=site)[1]
    torch.testing.assert_close(padded[1, :4], alone[0], rtol=1e-4, atol=1e-5)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_model_that_also_sees_is_read_in_its_language_model():
    config = t.Gemma3Config(
        text_config=t.Gemma3TextConfig(**GEMMA).to_dict(),
        vision_config={
            "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": N_LAYERS,
            "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
        },
        mm_tokens_per_image=4,
    )  # fmt: skip
    model = auto_class(config).from_config(config).eval()
    assert find_blocks(model) is model.get_submodule("model.language_model.layers")


def test_the_module_of_a_site_can_be_named():
    model = model_of("Gemma2ForCausalLM")
    raw, added = read(model, Site("mlp_out", "mlp")), read(model, Site("mlp_out"))
    for layer, block in enumerate(find_blocks(model)):
        with torch.no_grad():
            torch.testing.assert_close(block.post_feedforward_layernorm(raw[layer]), added[layer])
    words = r"^'mpl' must name a module of the block, those of Gemma2DecoderLayer are: .*, mlp, "
    with pytest.raises(ModelError, match=words):
        find_module(find_blocks(model)[0], Site("mlp_out", "mpl"))


def test_an_encoder_with_a_decoder_is_refused():
    with pytest.raises(ModelError, match=r"causal language model or an encoder, 't5' is an enc"):
        auto_class(t.T5Config())
    assert auto_class(t.BertConfig(is_decoder=True)) is t.AutoModelForCausalLM


@pytest.mark.parametrize(
    ("hook_name", "place"),
    [
        ("blocks.7.hook_resid_post", ("resid_post", 7)),
        ("blocks.7.hook_resid_pre", ("resid_pre", 7)),
        ("blocks.7.hook_mlp_out", ("mlp_out", 7)),
        ("blocks.7.hook_attn_out", ("attn_out", 7)),
        ("blocks.7.attn.hook_z", ("attn_z", 7)),
        ("gpt_neox.layers.7", ("resid_post", 7)),
        ("model.layers.7.output", ("resid_post", 7)),
        ("model.language_model.layers.7.output", ("resid_post", 7)),
        ("layers.7.mlp", ("mlp_out", 7)),
        ("transformer.h.7.mlp", ("mlp_out", 7)),
        ("h.7.attn", ("attn_out", 7)),
        ("gpt_neox.layers.7.attention", ("attn_out", 7)),
        ("bert.encoder.layer.7", ("resid_post", 7)),
        ("model.layers.7.post_feedforward_layernorm.output", ("mlp_out", 7)),
        ("model.layers.7.self_attn.o_proj.input", ("attn_z", 7)),
        ("model.layers.7.self_attn.o_proj", None),
        ("model.layers.7.post_attention_layernorm.output", None),  # Llama's is what the MLP reads
        ("blocks.7.hook_resid_mid", None),
        ("blocks.7.ln2.hook_normalized", None),
        ("embed_tokens", None),
    ],
)
def test_the_words_of_an_sae_for_its_place_are_understood(hook_name, place):
    assert site_of_hook(hook_name) == place


def test_a_site_is_told_in_words():
    assert [Site(name).short for name in SITES] == [
        "", "residual stream before blocks", "MLP output", "attention output",
        "attention heads' outputs",
    ]  # fmt: skip
    assert Site("mlp_out", "mlp.down").short == "MLP output, mlp.down"
    assert Site("mlp_out", "mlp").told(3) == "MLP output of block 3 (its module mlp)"
    assert Site().told(-1) == "input of block 0"


def test_what_leaves_a_block_enters_the_next():
    assert same_place("resid_pre", 5, "resid_post", 4)
    assert not same_place("resid_pre", 5, "resid_post", 5)
    assert not same_place("mlp_out", 5, "attn_out", 5)


def test_the_table_of_the_docs_is_what_was_tested():
    text = DOCS.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w*[A-Z]\w*)` \|(.*)\|$", text, re.MULTILINE)
    assert [name for name, _ in rows] == list(CLASSES)
    for name, cells in rows:
        said = tuple(s for s, c in zip(SITES, cells.split("|"), strict=True) if c.strip() == "yes")
        assert said == CLASSES[name].sites
