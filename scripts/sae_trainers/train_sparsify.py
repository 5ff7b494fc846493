"""EleutherAI's sparsify: its Trainer, on the transformers model.

python train_sparsify.py DATA OPTIONS OUT REPORT
"""

import json
import sys
from pathlib import Path

from timing import imported, run

sparsify, seconds = imported("sparsify")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

if __name__ == "__main__":
    data, options, out = Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
    about = json.loads((data / "about.json").read_text())
    contexts = np.load(data / "contexts.npy")
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(len(contexts)) for _ in range(about["epochs"])])
    model = AutoModelForCausalLM.from_pretrained(about["model"], dtype=torch.float32)
    coder = {"num_latents": about["width"], "k": about["k"], **options.pop("sae", {})}
    config = sparsify.TrainConfig(
        sparsify.SparseCoderConfig(**coder),
        batch_size=8,  # contexts: as many tokens as the others take
        hookpoints=[about["module"]],
        exclude_tokens=about["excluded"],
        save_every=10**9,
        log_to_wandb=False,
        save_dir=str(out),
        run_name="run",
        **options,
    )
    dataset = Dataset.from_dict({"input_ids": contexts[order]}).with_format("torch")
    run("eai-sparsify", seconds, lambda: sparsify.Trainer(config, dataset, model).fit())
    (out / "run" / about["module"]).rename(out / "sae")
