"""SAEs made, saved, read and computed by OpenMOSS's library (lm_saes, now llamascopium)."""

import itertools
import json
import math
from typing import Any

import torch
from llamascopium.models.sae import SAEConfig, SparseAutoEncoder
from llamascopium.models.sparse_dictionary import SparseDictionary
from making import D_MODEL, D_SAE, SITE, Cases, K, drawn, inputs, main
from safetensors.torch import save_file
from torch import Tensor

AVERAGE = 16.0
SCALE = math.sqrt(D_MODEL) / AVERAGE  # 1/2: a threshold of 1 is 2 in the model's units, exactly


def filled(**options: Any) -> SparseAutoEncoder:
    """An SAE with the weights that are drawn."""
    config = SAEConfig(
        hook_point_in=SITE,
        hook_point_out=SITE,
        d_model=D_MODEL,
        expansion_factor=D_SAE / D_MODEL,
        top_k=K,
        **options,
    )
    made = SparseAutoEncoder(config)
    w = drawn("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    made.W_E.copy_(w["W_enc"])
    made.b_E.copy_(w["b_enc"])
    made.W_D.copy_(w["W_dec"])
    if config.use_decoder_bias:
        made.b_D.copy_(w["b_dec"])
    if config.act_fn == "jumprelu":
        made.activation_function.log_jumprelu_threshold.copy_(w["threshold"].log())
    return made


def computed(theirs: SparseDictionary, x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations in the units of training, and the reconstruction in the model's."""
    batch, scales = theirs.normalize_activations({SITE: x}, return_scale_factor=True)
    acts = theirs.encode(batch[SITE])
    return acts, theirs.denormalize_activations({SITE: theirs.decode(acts)}, scales)[SITE]


def make_later(cases: Cases) -> None:
    """`config.json` and `sae_weights.safetensors`, by the library's own functions."""
    for act_fn, norm, by_norm in itertools.product(
        ("relu", "jumprelu", "topk"),
        ("dataset-wise", "token-wise", "inference"),
        (True, False),
    ):
        made = filled(act_fn=act_fn, norm_activation=norm, sparsity_include_decoder_norm=by_norm)
        if norm == "dataset-wise":
            made.set_dataset_average_activation_norm({SITE: AVERAGE})
        save(cases, made, f"{norm}, decoder norms {'count' if by_norm else 'do not count'}")
    made = filled(act_fn="jumprelu", norm_activation="dataset-wise", use_decoder_bias=False)
    made.set_dataset_average_activation_norm({SITE: AVERAGE})
    save(cases, made, "dataset-wise, no decoder bias")


def save(cases: Cases, made: SparseAutoEncoder, options: str) -> None:
    """Save an SAE, load it and note what it computes."""
    config = made.cfg
    folder = cases.folder(f"{config.act_fn}_{len(cases.cases)}")
    config.save_hyperparameters(folder)
    made.save_pretrained(folder)
    theirs = SparseDictionary.from_pretrained(str(folder))
    norm = config.norm_activation
    unit = SCALE if norm == "dataset-wise" else 1.0
    x = inputs(threshold=1 / unit, zero=norm != "token-wise")
    acts, reconstruction = computed(theirs, x)
    folds = config.sparsity_include_decoder_norm and config.act_fn != "relu"
    scale = (theirs.decoder_norm() if folds else torch.ones(D_SAE)) / unit
    words = ["decoder norms"] * folds + ["average norm / sqrt(d_model)"] * (unit != 1)
    cases.add(
        folder,
        format="openmoss",
        architecture=config.act_fn,
        options=options,
        config="config.json",
        weights="sae_weights.safetensors",
        x=x,
        feature_acts=acts,
        reconstruction=reconstruction,
        scale=scale,
        scaled_by=" x ".join(words),
        exact=config.act_fn == "jumprelu" and norm != "token-wise",
    )


def make_early(cases: Cases) -> None:
    """`hyperparams.json` and `checkpoints/final.safetensors`, as Llama Scope was published.

    No version on the package index reads them. The files are written as they are laid out, and
    the library computes with the same weights, folded by its own function: one threshold, in the
    units that folding leads to.
    """
    for act_fn, by_norm in itertools.product(("relu", "jumprelu", "topk"), (True, False)):
        made = filled(
            act_fn=act_fn, norm_activation="dataset-wise", sparsity_include_decoder_norm=by_norm
        )
        early = {
            "encoder.weight": made.W_E.T,
            "encoder.bias": made.b_E,
            "decoder.weight": made.W_D.T,
            "decoder.bias": made.b_D,
        }
        folder = cases.folder(f"early_{act_fn}_{len(cases.cases)}")
        (folder / "checkpoints").mkdir()
        save_file(
            {name: tensor.detach().clone().contiguous() for name, tensor in early.items()},
            folder / "checkpoints" / "final.safetensors",
        )
        config = {
            "hook_point_in": SITE,
            "hook_point_out": SITE,
            "use_decoder_bias": True,
            "apply_decoder_bias_to_pre_encoder": False,
            "expansion_factor": D_SAE // D_MODEL,
            "d_model": D_MODEL,
            "d_sae": D_SAE,
            "act_fn": act_fn,
            "jump_relu_threshold": 1.0 if act_fn == "jumprelu" else 0.0,
            "norm_activation": "dataset-wise",
            "dataset_average_activation_norm": {"in": AVERAGE, "out": AVERAGE},
            "sparsity_include_decoder_norm": by_norm,
            "use_glu_encoder": False,
            "top_k": K,
        }
        (folder / "hyperparams.json").write_text(json.dumps(config, indent=4))
        made.set_dataset_average_activation_norm({SITE: AVERAGE})
        made.standardize_parameters_of_dataset_norm()
        if act_fn == "jumprelu":
            made.activation_function.log_jumprelu_threshold.zero_()  # a threshold of 1
        x = inputs()
        acts, reconstruction = computed(made, x)
        folds = by_norm and act_fn != "relu"
        cases.add(
            folder,
            format="openmoss",
            architecture=act_fn,
            options=f"Llama Scope, decoder norms {'count' if by_norm else 'do not count'}",
            config="hyperparams.json",
            weights="checkpoints/final.safetensors",
            x=x,
            feature_acts=acts,
            reconstruction=reconstruction,
            scale=made.decoder_norm() if folds else 1.0,
            scaled_by="decoder norms" if folds else "",
            exact=act_fn == "jumprelu",
            written_by="layout",
        )


def make(cases: Cases) -> None:
    """Both layouts."""
    make_later(cases)
    make_early(cases)


if __name__ == "__main__":
    main("llamascopium", make)
