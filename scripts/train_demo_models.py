"""Train the demo's tokenizer and two language models from a text file and a seed.

    python scripts/train_demo_models.py train.txt.xz heldout.txt.xz OUT [A] [B]

Documents are parted by blank lines. Writes OUT/tokenizer, OUT/A and OUT/B in the layout of
transformers, each with `training.json`: settings, versions, and the held-out loss as it fell. A
killed run goes on from its last checkpoint. Matrices learn by Muon, all else by AdamW, in bfloat16
where the hardware multiplies it; on two cores of a laptop B takes an hour, A a quarter of one.
`cross_tokenizer.py` trains a third model in the same way, with another tokenizer.
"""

import json
import lzma
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE, Unigram
from torch import Tensor
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCABULARY = 6144
BOS = "<|endoftext|>"
CONTEXT = 128
EVALUATE_EVERY = 500_000
CHECKPOINT_EVERY = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Size and training of a model; learning rates fall linearly to zero.

    Attributes:
        n_tokens: Tokens seen, counted with repetition.
        family: The class of the model and of its tokenizer, a key of `NEW` and `TOKENIZERS`.
        batch: Contexts a step.
    """

    n_layers: int
    d_model: int
    n_heads: int
    n_tokens: int
    seed: int
    family: str = "GPT-NeoX"
    vocabulary: int = VOCABULARY
    batch: int = 16
    lr_matrices: float = 0.02
    lr_embedding: float = 8e-3
    lr_vectors: float = 2e-3
    weight_decay: float = 0.05
    warm_up_steps: int = 100


RECIPES = {
    "A": Recipe(n_layers=6, d_model=128, n_heads=4, n_tokens=10_000_000, seed=1),
    "B": Recipe(n_layers=8, d_model=256, n_heads=8, n_tokens=12_000_000, seed=2),
}


def read_documents(path: Path) -> list[str]:
    """The documents of a text file, plain or compressed."""
    opened = lzma.open if path.suffix == ".xz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return file.read().split("\n\n")


def byte_level(documents: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with single digits."""
    bpe = tokenizers.Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=BOS, pad_token=BOS
    )


def unigram(documents: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """As SentencePiece makes them: unigram pieces with `▁` for blanks, bytes for what is rare."""
    core = tokenizers.Tokenizer(Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary - 256,
        special_tokens=special,
        unk_token="<unk>",
        show_progress=False,
    )
    core.train_from_iterator(documents, trainer)
    learnt = json.loads(core.to_str())["model"]["vocab"]
    n_special = len(special)
    pieces = [
        *learnt[:n_special],
        *([f"<0x{byte:02X}>", -20.0] for byte in range(256)),
        *learnt[n_special:],
    ]
    core.model = Unigram(
        [(piece, float(score)) for piece, score in pieces], unk_id=0, byte_fallback=True
    )
    core.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


TOKENIZERS = {"GPT-NeoX": byte_level, "Llama": unigram}


def train_tokenizer(documents: list[str], folder: Path, recipe: Recipe) -> PreTrainedTokenizerFast:
    """The tokenizer of a recipe; made once, then read."""
    if not (folder / "tokenizer.json").exists():
        TOKENIZERS[recipe.family](documents, recipe.vocabulary).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def token_stream(documents: list[str], tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """All documents as one stream of ids, each begun by BOS."""
    ids: list[int] = []
    for encoding in tokenizer.backend_tokenizer.encode_batch(documents):
        ids.append(tokenizer.bos_token_id)
        ids.extend(encoding.ids)
    return np.array(ids, dtype=np.uint16)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of tied logits, whose table of tokens x vocabulary is never held whole."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
        """The loss; both gradients are at hand as soon as a chunk's logits are."""
        weight = embedding.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(embedding)
        total = 0.0
        for start in range(0, len(hidden), 512):
            rows, target = hidden[start : start + 512], targets[start : start + 512, None]
            logits = (rows @ weight.T).float()
            logits -= logits.max(dim=1, keepdim=True).values
            of_target = logits.gather(1, target).sum()
            normaliser = logits.exp_().sum(dim=1, keepdim=True)
            total += float(normaliser.log().sum() - of_target)
            logits /= normaliser
            logits.scatter_add_(1, target, torch.full_like(target, -1, dtype=logits.dtype))
            grad = (logits / len(hidden)).to(hidden.dtype)
            grad_hidden[start : start + 512] = grad @ weight
            grad_weight += grad.T @ rows
        ctx.save_for_backward(grad_hidden, grad_weight)
        return embedding.new_tensor(total / len(hidden))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """The gradients computed on the way."""
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grads[0].to(grad_hidden.dtype), grad_weight * grads[0], None


def new_gpt_neox(recipe: Recipe) -> GPTNeoXForCausalLM:
    """A GPT-NeoX; blocks begin as the identity."""
    config = GPTNeoXConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.d_model,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        intermediate_size=4 * recipe.d_model,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        # On a CPU the fused attention's backward pass takes five times the plain one's.
        attn_implementation="eager",
    )
    model = GPTNeoXForCausalLM(config)
    for block in model.gpt_neox.layers:
        torch.nn.init.zeros_(block.attention.dense.weight)
        torch.nn.init.zeros_(block.mlp.dense_4h_to_h.weight)
    return model


def new_llama(recipe: Recipe) -> LlamaForCausalLM:
    """A Llama; blocks begin as the identity."""
    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.d_model,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        intermediate_size=3 * recipe.d_model,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config)
    for block in model.model.layers:
        torch.nn.init.zeros_(block.self_attn.o_proj.weight)
        torch.nn.init.zeros_(block.mlp.down_proj.weight)
    return model


NEW = {"GPT-NeoX": new_gpt_neox, "Llama": new_llama}


def new_model(recipe: Recipe) -> PreTrainedModel:
    """The model before its first step."""
    torch.manual_seed(recipe.seed)
    return NEW[recipe.family](recipe)


def optimizers_of(model: PreTrainedModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the embedding and all vectors."""
    embedding = model.get_input_embeddings().weight
    matrices = [p for p in model.parameters() if p.ndim == 2 and p is not embedding]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    muon = torch.optim.Muon(
        matrices, lr=recipe.lr_matrices, weight_decay=recipe.weight_decay, momentum=0.95
    )
    groups = [
        {"params": [embedding], "lr": recipe.lr_embedding},
        {"params": vectors, "lr": recipe.lr_vectors},
    ]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [muon, adam]


def batch_of(stream: np.ndarray, step: int, recipe: Recipe) -> Tensor:
    """The contexts of a step: each epoch cuts the stream elsewhere and shuffles the pieces."""
    per_epoch = (len(stream) // CONTEXT - 1) // recipe.batch
    epoch, at = divmod(step, per_epoch)
    rng = np.random.default_rng([recipe.seed, epoch])
    offset = int(rng.integers(CONTEXT))
    order = rng.permutation(per_epoch * recipe.batch)[at * recipe.batch : (at + 1) * recipe.batch]
    starts = offset + order[:, None] * CONTEXT + np.arange(CONTEXT)
    return torch.from_numpy(stream[starts].astype(np.int64))


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, stream: np.ndarray, n_contexts: int) -> float:
    """Mean loss in nats a token over the first contexts of the held-out stream, in float32."""
    contexts = stream[: n_contexts * CONTEXT].reshape(-1, CONTEXT).astype(np.int64)
    losses = [
        float(model(input_ids=batch, labels=batch).loss) * len(batch)
        for batch in torch.from_numpy(contexts).split(32)
    ]
    return sum(losses) / len(contexts)


def train(name: str, recipe: Recipe, stream: np.ndarray, held_out: np.ndarray, out: Path) -> None:
    """Train a model and save it in bfloat16."""
    model = new_model(recipe)
    optimizers = optimizers_of(model, recipe)
    n_steps = recipe.n_tokens // (recipe.batch * CONTEXT)
    per_evaluation = EVALUATE_EVERY // (recipe.batch * CONTEXT)
    checkpoint = out / f"{name}.checkpoint"
    log: list[dict[str, float]] = []
    first, seconds = 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        first, log, seconds = saved["step"], saved["log"], saved["seconds"]
    started = time.monotonic() - seconds
    for step in range(first, n_steps):
        rate = min(1.0, (step + 1) / recipe.warm_up_steps) * (1 - step / n_steps)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
        batch = batch_of(stream, step, recipe)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.base_model(input_ids=batch).last_hidden_state
        hidden = hidden[:, :-1].reshape(-1, recipe.d_model).to(torch.bfloat16)
        embedding = model.get_input_embeddings().weight
        loss = ChunkedCrossEntropy.apply(hidden, embedding, batch[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        if (step + 1) % per_evaluation == 0:
            seen = (step + 1) * recipe.batch * CONTEXT
            nats = round(held_out_loss(model, held_out, 256), 4)
            log.append({"tokens": seen, "held_out_loss": nats})
            print(name, seen, nats, f"{time.monotonic() - started:.0f} s", flush=True)
        if (step + 1) % CHECKPOINT_EVERY == 0:
            states = [optimizer.state_dict() for optimizer in optimizers]
            part = checkpoint.with_suffix(".part")
            torch.save(
                {
                    "model": model.state_dict(), "optimizers": states, "step": step + 1,
                    "log": log, "seconds": time.monotonic() - started,
                },
                part,
            )  # fmt: skip
            part.replace(checkpoint)
    model.to(torch.bfloat16).save_pretrained(out / name)
    model.float()
    n_all = sum(p.numel() for p in model.parameters())
    report = {
        "recipe": asdict(recipe),
        "parameters": n_all,
        "parameters_without_embedding": n_all - model.get_input_embeddings().weight.numel(),
        "training_text_tokens": len(stream),
        "held_out_loss": round(held_out_loss(model, held_out, len(held_out) // CONTEXT), 4),
        "held_out_tokens": len(held_out) // CONTEXT * CONTEXT,
        "seconds": round(time.monotonic() - started),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "log": log,
    }
    (out / name / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    print(name, "held-out loss", report["held_out_loss"], flush=True)


if __name__ == "__main__":
    text, held_out_text, out = (Path(argument) for argument in sys.argv[1:4])
    documents = read_documents(text)
    tokenizer = train_tokenizer(documents, out / "tokenizer", RECIPES["A"])
    stream = token_stream(documents, tokenizer)
    held_out = token_stream(read_documents(held_out_text), tokenizer)
    for name in sys.argv[4:] or RECIPES:
        train(name, RECIPES[name], stream, held_out, out)
