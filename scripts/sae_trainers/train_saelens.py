"""SAELens: its trainer, given activations.

python train_saelens.py DATA OPTIONS OUT REPORT
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from timing import imported, run

saes, seconds = imported("sae_lens")

import torch  # noqa: E402
from sae_lens.config import SAETrainerConfig  # noqa: E402
from sae_lens.saes.sae import SAEMetadata  # noqa: E402
from sae_lens.training.sae_trainer import SAETrainer  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402

BATCH = 1024
KINDS = {
    "batchtopk": (saes.BatchTopKTrainingSAE, saes.BatchTopKTrainingSAEConfig),
    "topk": (saes.TopKTrainingSAE, saes.TopKTrainingSAEConfig),
}


def batches(acts: Tensor) -> Iterator[Tensor]:
    """Batches in a drawn order, pass after pass."""
    generator = torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(len(acts), generator=generator)
        for rows in order[: len(acts) // BATCH * BATCH].split(BATCH):
            yield acts[rows]


if __name__ == "__main__":
    data, options, out = Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
    about = json.loads((data / "about.json").read_text())
    acts = load_file(data / "fit.safetensors")["acts"]
    n_samples = about["epochs"] * len(acts)
    kind, config = KINDS[options.pop("kind")]
    rate = options.pop("lr", 3e-4)
    torch.manual_seed(0)
    sae = kind(
        config(
            d_in=acts.shape[1],
            d_sae=about["width"],
            k=about["k"],
            normalize_activations="expected_average_only_in",
            metadata=SAEMetadata(hook_name=about["hook_name"]),
            **options.pop("sae", {}),
        )
    )
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=n_samples,
            train_batch_size_samples=BATCH,
            lr_warm_up_steps=50,
            lr_decay_steps=int(0.4 * n_samples / BATCH),
            n_batches_for_norm_estimate=20,
            dead_feature_window=50,
            lr=rate,
            lr_end=rate / 10,  # as its runner has it
            **options,
        ),
        sae,
        batches(acts),
    )
    run("sae-lens", seconds, lambda: trainer.fit().save_inference_model(str(out / "sae")))
