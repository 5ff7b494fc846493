"""Sample the demo's text from both demo models, half and half.

    python scripts/sample_demo_text.py OUT

Reads OUT/A and OUT/B, writes OUT/text.safetensors.
Ancestral sampling at temperature 1 from the whole vocabulary but `<|endoftext|>`, so that every
context is full. The same seed and library versions give the same ids; the shipped file says which.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM

from saelign.text import save_token_ids

SEED = 20261121
CONTEXTS_EACH, CONTEXT_LENGTH, BATCH = 800, 128, 200
BOS = 0


@torch.inference_mode()
def sample(folder: Path, generator: torch.Generator) -> np.ndarray:
    """CONTEXTS_EACH contexts drawn from the model in `folder`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    batches = []
    for _ in range(CONTEXTS_EACH // BATCH):
        ids = torch.full((BATCH, 1), BOS)
        cache = None
        while ids.shape[1] < CONTEXT_LENGTH:
            out = model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits = out.logits[:, -1].float()
            logits[:, BOS] = -torch.inf
            drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
            ids = torch.cat([ids, drawn], dim=1)
        batches.append(ids.numpy())
    return np.concatenate(batches)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    generator = torch.Generator().manual_seed(SEED)
    ids = np.concatenate([sample(out / name, generator) for name in ("A", "B")])
    save_token_ids(
        out / "text.safetensors",
        ids.astype(np.uint16),
        {
            "made_by": "scripts/sample_demo_text.py",
            "seed": str(SEED),
            "contexts": f"{CONTEXTS_EACH} from A, then {CONTEXTS_EACH} from B",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    )
