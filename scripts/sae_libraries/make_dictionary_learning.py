"""SAEs made, read and computed by dictionary_learning, saved as its `trainSAE` saves them."""

import json
from pathlib import Path
from typing import Any

import torch
from dictionary_learning.dictionary import AutoEncoderNew
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.gated_anneal import GatedAnnealTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.p_anneal import PAnnealTrainer
from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.utils import load_dictionary
from making import D_MODEL, D_SAE, Cases, K, drawn, inputs, main
from torch import Tensor

TRAINERS = {
    StandardTrainer: {},
    StandardTrainerAprilUpdate: {},
    PAnnealTrainer: {},
    TopKTrainer: {"k": K},
    BatchTopKTrainer: {"k": K},
    MatryoshkaBatchTopKTrainer: {"k": K, "group_fractions": [0.25, 0.75]},
    JumpReluTrainer: {},
    GatedSAETrainer: {},
    GatedAnnealTrainer: {},
}
COMMON = {
    "steps": 10_000,
    "activation_dim": D_MODEL,
    "dict_size": D_SAE,
    "layer": 3,
    "lm_name": "EleutherAI/pythia-70m",
    "device": "cpu",
}


def fill(ae: torch.nn.Module) -> None:
    """Give a dictionary the weights that are drawn, wherever it keeps them."""
    w = drawn("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "b_gate", "b_mag", "r_mag")
    places: dict[str, Tensor] = {
        "encoder.weight": w["W_enc"].T,
        "decoder.weight": w["W_dec"].T,
        "encoder.bias": w["b_enc"],
        "decoder.bias": w["b_dec"],
        "bias": w["b_dec"],
        "decoder_bias": w["b_dec"],
        "gate_bias": w["b_gate"],
        "mag_bias": w["b_mag"],
    } | w
    for name, tensor in ae.state_dict().items():
        if name in ("k", "group_sizes"):
            continue
        tensor.copy_(torch.ones(()) if tensor.ndim == 0 else places[name])


def save(ae: torch.nn.Module, trainer: dict[str, Any], folder: Path) -> None:
    """As the last lines of `training.trainSAE` do."""
    config = {"trainer": trainer, "buffer": {"d_submodule": D_MODEL, "io": "out", "ctx_len": 128}}
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    torch.save({k: v.cpu() for k, v in ae.state_dict().items()}, folder / "ae.pt")


def make(cases: Cases) -> None:
    """Every class of dictionary, from every trainer that makes one."""
    made = []
    for trainer_class, options in TRAINERS.items():
        trainer = trainer_class(**COMMON, **options)
        made.append((trainer.ae, trainer.config, trainer_class.__name__))
    config = made[0][1] | {"dict_class": "AutoEncoderNew"}
    made.append((AutoEncoderNew(D_MODEL, D_SAE), config, "no trainer of this version makes it"))
    for ae, trainer, options in made:
        fill(ae)
        folder = cases.folder(f"{trainer['dict_class']}_{len(cases.cases)}")
        save(ae, trainer, folder)
        # Of these the library makes the decoder's columns unit length on loading.
        theirs, _ = load_dictionary(str(folder), device="cpu")
        x = inputs()
        acts = theirs.encode(x)
        cases.add(
            folder,
            format="dictionary_learning",
            architecture=trainer["dict_class"],
            options=options,
            config="config.json",
            weights="ae.pt",
            x=x,
            feature_acts=acts,
            reconstruction=theirs.decode(acts),
            exact=trainer["dict_class"] not in ("AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK"),
        )


if __name__ == "__main__":
    main("dictionary-learning", make)
