"""saelign's own BatchTopK trainer, on activations.

python train_saelign.py DATA OPTIONS OUT REPORT
"""

import json
import sys
from pathlib import Path

from timing import imported, run

saes, seconds = imported("saelign.saes")

from safetensors.torch import load_file  # noqa: E402

if __name__ == "__main__":
    data, options, out = Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
    about = json.loads((data / "about.json").read_text())
    acts = load_file(data / "fit.safetensors")["acts"]

    def train() -> None:
        """Train and save."""
        sae, _ = saes.train_sae(
            acts,
            d_sae=about["width"],
            k=about["k"],
            seed=0,
            held_out=acts[:1024],
            epochs=about["epochs"],
            hook_name=about["hook_name"],
            **options,
        )
        saes.save_sae(sae, out / "sae.safetensors")

    run("saelign", seconds, train)
