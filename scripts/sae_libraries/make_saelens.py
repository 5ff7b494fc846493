"""SAEs made, saved, read and computed by SAELens; other formats, read by its converters."""

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from making import D_MODEL, D_SAE, SITE, Cases, K, drawn, inputs, main
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.registry import get_sae_class, get_sae_training_class
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.torch import load_file, save_file
from torch import Tensor

STANDARD = ("W_enc", "b_enc", "W_dec", "b_dec")
NAMES = {
    "standard": STANDARD,
    "topk": STANDARD,
    "batchtopk": STANDARD,
    "matryoshka_batchtopk": STANDARD,
    "jumprelu": (*STANDARD, "threshold"),
    "gated": ("W_enc", "b_gate", "b_mag", "r_mag", "W_dec", "b_dec"),
}
WITH_THRESHOLD = ("jumprelu", "gated", "batchtopk", "matryoshka_batchtopk")
SCALE = 0.5
FILES = {"config": "cfg.json", "weights": "sae_weights.safetensors"}


def filled(architecture: str, *, training: bool = False, **options: Any) -> SAE:
    """An SAE with the weights that are drawn."""
    sae_class, config_class = (get_sae_training_class if training else get_sae_class)(architecture)
    metadata = SAEMetadata(hook_name=SITE, model_name="gpt2")
    made = sae_class(config_class(d_in=D_MODEL, d_sae=D_SAE, metadata=metadata, **options))
    for name, tensor in drawn(*NAMES[architecture]).items():
        getattr(made, name).copy_(tensor)
    if "batchtopk" in architecture:
        made.topk_threshold.fill_(1.0)
    return made


def note(
    cases: Cases,
    folder: Path,
    theirs: SAE,
    architecture: str,
    options: str,
    *,
    threshold: float = 1.0,
) -> None:
    """Note what an SAE of SAELens' own format computes."""
    norm = theirs.cfg.normalize_activations
    x = inputs(threshold=threshold, zero=norm != "constant_norm_rescale")
    acts = theirs.encode(x)
    cases.add(
        folder,
        format="saelens",
        architecture=architecture,
        options=options,
        **FILES,
        x=x,
        feature_acts=acts,
        reconstruction=theirs.decode(acts),
        exact=architecture in WITH_THRESHOLD and norm == "none",
    )


def make_inference(cases: Cases) -> None:
    """Every architecture for inference, in every option that changes its numbers."""
    for architecture, norm, centred, by_norm in itertools.product(
        ("standard", "topk", "jumprelu", "gated"),
        ("none", "layer_norm", "constant_norm_rescale"),
        (True, False),
        (True, False),
    ):
        if by_norm and architecture != "topk":
            continue
        special = {"k": K, "rescale_acts_by_decoder_norm": by_norm}
        made = filled(
            architecture,
            normalize_activations=norm,
            apply_b_dec_to_input=centred,
            **(special if architecture == "topk" else {}),
        )
        folder = cases.folder(f"{architecture}_{len(cases.cases)}")
        made.save_model(folder)
        options = f"{norm}, b_dec {'off' if centred else 'left in'} the input"
        options += ", decoder norms count" * by_norm
        note(cases, folder, SAE.load_from_disk(folder), architecture, options)


def make_checkpoints(cases: Cases) -> None:
    """What training saves on the way, against what it saves at the end for inference."""
    for architecture, is_scaled in itertools.product(NAMES, (False, True)):
        for by_norm in (True, False) if "topk" in architecture else (False,):
            special: dict[str, Any] = {}
            if "topk" in architecture:
                special |= {"k": K, "rescale_acts_by_decoder_norm": by_norm}
            if architecture == "matryoshka_batchtopk":
                special["matryoshka_widths"] = [D_SAE // 4, D_SAE]
            norm = "expected_average_only_in" if is_scaled else "none"
            made = filled(architecture, training=True, normalize_activations=norm, **special)
            folder = cases.folder(f"checkpoint_{architecture}_{len(cases.cases)}")
            made.save_model(folder / "on_the_way")
            scaler = ActivationScaler(SCALE if is_scaled else None)
            scaler.save(str(folder / "on_the_way" / "activation_scaler.json"))
            if is_scaled:
                made.fold_activation_norm_scaling_factor(SCALE)
            made.save_inference_model(folder / "at_the_end")
            theirs = SAE.load_from_disk(folder / "at_the_end")
            at = 1 / SCALE if is_scaled else 1.0
            options = ", expected_average_only_in" * is_scaled + ", decoder norms count" * by_norm
            for name, words in (
                ("at_the_end", "trained, for inference"),
                ("on_the_way", "checkpoint of training"),
            ):
                note(cases, folder / name, theirs, architecture, words + options, threshold=at)


def make_early(cases: Cases) -> None:
    """Configurations of before version 6, as the library still reads them."""
    common = {
        "d_in": D_MODEL,
        "d_sae": D_SAE,
        "dtype": "float32",
        "device": "cpu",
        "model_name": "gpt2-small",
        "hook_layer": 3,
        "hook_head_index": None,
        "prepend_bos": True,
        "normalize_activations": "none",
    }
    topk = {"activation_fn_kwargs": {"k": K}, "apply_b_dec_to_input": False}
    variants: dict[tuple[str, str], dict[str, Any]] = {
        ("standard", "version 1"): {"hook_point": SITE, "normalize_activations": False},
        ("standard", "version 3"): {"hook_name": SITE, "activation_fn_str": "relu"},
        ("topk", "version 3"): {"hook_name": SITE, "activation_fn_str": "topk"} | topk,
        ("jumprelu", "version 4"): {"hook_name": SITE, "architecture": "jumprelu"},
        ("gated", "version 4"): {"hook_name": SITE, "architecture": "gated"},
    }
    for (architecture, options), config in variants.items():
        folder = cases.folder(f"early_{architecture}_{len(cases.cases)}")
        (folder / "cfg.json").write_text(json.dumps(common | config))
        weights = drawn(*NAMES[architecture])
        save_file(weights | {"scaling_factor": torch.ones(D_SAE)}, folder / FILES["weights"])
        note(cases, folder, SAE.load_from_disk(folder), architecture, f"{options}, by its layout")
        cases.cases[-1]["written_by"] = "layout"


@contextmanager
def hub_at(root: Path) -> Iterator[None]:
    """Let the library's loaders find a repository of the hub under a folder."""

    def found(repo_id: str, filename: str, subfolder: str | None = None, **_ignored: Any) -> str:
        path = root / repo_id / (subfolder or "") / filename
        if not path.is_file():
            raise loaders.EntryNotFoundError(f"{filename} is not in {repo_id}")
        return str(path)

    def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
        return {name: list(t.shape) for name, t in load_file(found(repo_id, filename)).items()}

    with (
        patch.object(loaders, "hf_hub_download", found),
        patch.object(loaders, "get_safetensors_tensor_shapes", shapes),
    ):
        yield


def converted(name: str, root: Path, repo: str, folder: str, **overrides: Any) -> SAE:
    """An SAE of another format, read by SAELens' converter for it."""
    with hub_at(root):
        config, state, *_ = loaders.NAMED_PRETRAINED_SAE_LOADERS[name](
            repo, folder, "cpu", False, {"device": "cpu"} | overrides
        )
    config = loaders.handle_config_defaulting(config)
    sae_class, config_class = get_sae_class(config["architecture"])
    theirs = sae_class(config_class.from_dict(config))
    theirs.process_state_dict_for_loading(state)
    theirs.load_state_dict(state)
    return theirs.float()


def make_gemma_scope(cases: Cases) -> None:
    """Gemma Scope 1 and 2, laid out as published."""
    weights = drawn(*NAMES["jumprelu"])
    said = {
        "hf_hook_point_in": "model.layers.3.output",
        "hf_hook_point_out": "model.layers.3.output",
        "width": D_SAE,
        "model_name": "google/gemma-3-1b-pt",
        "architecture": "jump_relu",
        "l0": 60,
        "affine_connection": False,
        "type": "sae",
    }
    second = "google/gemma-scope-2-1b-pt"
    for format_, repo, name, config in (
        ("gemma_scope", "google/gemma-scope-2b-pt-res", "layer_3/width_16k/average_l0_59", None),
        ("gemma_scope_2", second, "resid_post/layer_3_width_16k_l0_medium", "config.json"),
        ("gemma_scope_2", second, "resid_post_all/layer_3_width_16k_l0_small", None),
    ):
        root = cases.folder(f"gemma_{len(cases.cases)}")
        folder = root / repo / name
        folder.mkdir(parents=True)
        if config is not None:
            (folder / config).write_text(json.dumps(said))
        if format_ == "gemma_scope":
            file, converter = "params.npz", "gemma_2"
            np.savez(folder / file, **{n: t.numpy() for n, t in weights.items()})
        else:
            file, converter = "params.safetensors", "gemma_3"
            save_file({n.lower(): t for n, t in weights.items()}, folder / file)
        theirs = converted(converter, root, repo, name, d_in=D_MODEL, d_sae=D_SAE)
        x = inputs()
        acts = theirs.encode(x)
        cases.add(
            folder,
            format=format_,
            architecture="jumprelu",
            options=f"converter {converter}, {config or 'no configuration'}",
            config=config,
            weights=file,
            x=x,
            feature_acts=acts,
            reconstruction=theirs.decode(acts),
            exact=True,
            written_by="layout",
        )


def make_openmoss(cases: Cases) -> None:
    """Llama Scope and its successor; the converters know of no decoder norms, so all are one."""
    average = D_MODEL**0.5 / SCALE
    w = drawn(*NAMES["jumprelu"], unit_decoder=True)
    linear = {
        "encoder.weight": w["W_enc"].T.contiguous(),
        "encoder.bias": w["b_enc"],
        "decoder.weight": w["W_dec"].T.contiguous(),
        "decoder.bias": w["b_dec"],
    }
    common = {
        "hook_point_in": SITE,
        "hook_point_out": SITE,
        "d_model": D_MODEL,
        "expansion_factor": D_SAE // D_MODEL,
        "act_fn": "jumprelu",
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": True,
        "dataset_average_activation_norm": {"in": average, "out": average},
        "top_k": K,
    }
    early = {
        "d_sae": D_SAE,
        "jump_relu_threshold": 1 / SCALE,
        "apply_decoder_bias_to_pre_encoder": False,
    }
    variants = (
        (
            "llama_scope",
            "Llama3_1-8B-Base-L3R-8x",
            ("hyperparams.json", common | early),
            ("checkpoints/final.safetensors", linear),
        ),
        (
            "llama_scope_r1_distill",
            "400M-Slimpajama-400M-OpenR1-Math-220k/L3R",
            ("config.json", common),
            (FILES["weights"], linear | {"log_jumprelu_threshold": w["threshold"].log()}),
        ),
    )
    for converter, name, (config, said), (weights, tensors) in variants:
        root = cases.folder(converter)
        folder = root / "fnlp/repository" / name
        (folder / weights).parent.mkdir(parents=True)
        (folder / config).write_text(json.dumps(said))
        save_file(tensors, folder / weights)
        theirs = converted(converter, root, "fnlp/repository", name, dtype="float32")
        theirs.fold_activation_norm_scaling_factor(SCALE)
        x = inputs(threshold=1 / SCALE)
        acts = theirs.encode(x)
        cases.add(
            folder,
            format="openmoss",
            architecture="jumprelu",
            options=f"converter {converter}",
            config=config,
            weights=weights,
            x=x,
            feature_acts=acts,
            reconstruction=theirs.decode(acts),
            scale=1 / SCALE,
            scaled_by="average norm / sqrt(d_model)",
            exact=True,
            written_by="layout",
        )


def make_dictionary_learning(cases: Cases) -> None:
    """The classes of dictionary_learning that the converter for it knows."""
    w = drawn(*NAMES["gated"], "b_enc", "threshold")
    linear = {"encoder.weight": w["W_enc"].T, "decoder.weight": w["W_dec"].T}
    biased = linear | {"encoder.bias": w["b_enc"], "b_dec": w["b_dec"]}
    whole = {name: w[name] for name in STANDARD}
    batch = {"k": torch.tensor(K), "threshold": torch.ones(())}
    gates = {"mag_bias": w["b_mag"], "gate_bias": w["b_gate"], "r_mag": w["r_mag"]}
    states: dict[str, dict[str, Tensor]] = {
        "AutoEncoder": linear | {"encoder.bias": w["b_enc"], "bias": w["b_dec"]},
        "AutoEncoderTopK": biased | batch,
        "BatchTopKSAE": biased | batch,
        "MatryoshkaBatchTopKSAE": whole | batch | {"group_sizes": torch.tensor([64, 192])},
        "JumpReluAutoEncoder": whole | {"threshold": w["threshold"]},
        "GatedAutoEncoder": linear | gates | {"decoder_bias": w["b_dec"]},
    }
    for name, state in states.items():
        root = cases.folder(name)
        folder = root / "canrager/lm_sae" / name
        folder.mkdir(parents=True)
        trainer = {
            "dict_class": name,
            "activation_dim": D_MODEL,
            "dict_size": D_SAE,
            "k": K,
            "layer": 3,
            "lm_name": "EleutherAI/pythia-70m-deduped",
        }
        config = {"trainer": trainer, "buffer": {"ctx_len": 128}}
        (folder / "config.json").write_text(json.dumps(config))
        torch.save({n: t.contiguous() for n, t in state.items()}, folder / "ae.pt")
        theirs = converted("dictionary_learning_1", root, "canrager/lm_sae", name)
        x = inputs()
        acts = theirs.encode(x)
        # Only dictionary_learning itself makes this class's decoder unit length on loading.
        folds = name == "AutoEncoder"
        cases.add(
            folder,
            format="dictionary_learning",
            architecture=name,
            options="converter dictionary_learning_1",
            config="config.json",
            weights="ae.pt",
            x=x,
            feature_acts=acts,
            reconstruction=theirs.decode(acts),
            scale=theirs.W_dec.norm(dim=1) if folds else 1.0,
            scaled_by="decoder norms" if folds else "",
            exact=name not in ("AutoEncoder", "AutoEncoderTopK"),
            written_by="layout",
        )


def make(cases: Cases) -> None:
    """SAELens' own format first, then what it converts."""
    make_inference(cases)
    make_checkpoints(cases)
    make_early(cases)
    make_gemma_scope(cases)
    make_openmoss(cases)
    make_dictionary_learning(cases)


if __name__ == "__main__":
    main("sae-lens", make)
