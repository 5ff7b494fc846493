"""Small models, tokenizers and SAEs, made from their real classes with seeded weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from saelign.saes import SAE
from saelign.text import Tokens

# torch's first call takes longer than hypothesis allows; a failure must come back on every run.
settings.register_profile("saelign", deadline=None, derandomize=True)
settings.load_profile("saelign")
# Handing such small products to several threads costs a hundred times more than they do.
torch.set_num_threads(1)

D_MODEL, N_LAYERS, N_VOCABULARY = 16, 3, 64
_SIZES = {
    "vocab_size": N_VOCABULARY,
    "hidden_size": D_MODEL,
    "intermediate_size": 32,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
CONFIGS = {
    "gpt_neox": lambda: GPTNeoXConfig(**_SIZES),
    "gemma2": lambda: Gemma2Config(
        **_SIZES, num_key_value_heads=1, head_dim=8, sliding_window=8, query_pre_attn_scalar=8
    ),
    "llama": lambda: LlamaConfig(**_SIZES, num_key_value_heads=1),
}


def tiny_model(architecture: str, seed: int = 0) -> PreTrainedModel:
    """A model of three layers and 16 dimensions, its weights drawn from the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(CONFIGS[architecture]()).eval()


def tiny_tokenizer(words: str = "abcdefghijklmnopqrstuvwxyz .,\n") -> PreTrainedTokenizerFast:
    """One token a character; <bos> is 0 and also ends a text."""
    vocabulary = {token: index for index, token in enumerate(["<bos>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<bos>", model_max_length=16
    )


def lossless_sae(d_model: int = D_MODEL, **changes: object) -> SAE:
    """Two features a dimension, one for each sign: reconstructs whatever it reads."""
    eye = torch.eye(d_model)
    sae = SAE(
        W_enc=torch.cat([eye, -eye], dim=1),
        b_enc=torch.zeros(2 * d_model),
        W_dec=torch.cat([eye, -eye]),
        b_dec=torch.zeros(d_model),
        threshold=None,
        k=None,
        activation="relu",
        apply_b_dec_to_input=False,
        normalize="none",
        hook_name=None,
        layer=None,
        sha256="lossless",
        source="lossless.safetensors",
    )
    return replace(sae, **changes)


def random_tokens(n_contexts: int = 40, length: int = 12, seed: int = 0) -> Tokens:
    """Contexts of random ids that begin with <bos>; every fifth is padded to two thirds."""
    rng = np.random.default_rng(seed)
    input_ids = rng.integers(2, N_VOCABULARY, size=(n_contexts, length)).astype(np.int32)
    attended = np.ones(input_ids.shape, dtype=bool)
    attended[::5, 2 * length // 3 :] = False
    input_ids[:, 0] = 0
    input_ids[~attended] = 0
    return Tokens(
        input_ids=input_ids,
        attended=attended,
        kept=attended & (input_ids != 0),
        document=np.arange(n_contexts, dtype=np.int32) // 2,
        special_ids=(0,),
    )


@pytest.fixture
def model_folder(tmp_path: Path) -> Callable[[str], Path]:
    """Saves a tiny model and its tokenizer as transformers does; gives the folder."""

    def save(architecture: str, seed: int = 0) -> Path:
        folder = tmp_path / f"{architecture}-{seed}"
        tiny_model(architecture, seed).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return folder

    return save
