"""Models and their configurations, from a folder or the Hugging Face hub."""

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BitsAndBytesConfig,
    PretrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING
from transformers.utils import logging
from transformers.utils.hub import cached_file, extract_commit_hash

from saelign.errors import ModelError, UnknownNameError
from saelign.sites import AFTER_BLOCK, Site

DTYPES = {
    "auto": "auto",
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}

QUANTIZATIONS = ("8bit", "4bit")
"""Of weights while a model is loaded, by bitsandbytes."""


def load_config(name: str, *, revision: str | None = None) -> PretrainedConfig:
    """The model's configuration, without its weights.

    Raises:
        ModelError: `name` is neither a folder with a model nor reachable on the hub.
    """
    is_folder = Path(name).is_dir()
    try:
        with _silence():
            return AutoConfig.from_pretrained(name, revision=revision, local_files_only=is_folder)
    # Whatever transformers raises here (a dozen classes, by version), it could not be loaded.
    except Exception as error:
        raise _unloadable(name, error) from error


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    quantization: str | None = None,
) -> nn.Module:
    """The language model, causal or an encoder, in evaluation mode.

    Args:
        name: A folder in the layout of transformers, or a name on the Hugging Face hub.
        revision: Branch, tag or commit on the hub.
        dtype: One of `float32`, `bfloat16`, `float16`, or `auto`, the type it was saved in.
        device: As torch names it; `auto`: over all there are, as accelerate deals it out.
        quantization: `8bit` or `4bit` weights (NF4), computing in `dtype`; None: as they are.

    Raises:
        UnknownNameError: `dtype` is none of the four, or no such quantization.
        ModelError: The model cannot be loaded, lacks weights, or the device or a package that it
            takes is not there.
    """
    if dtype not in DTYPES:
        raise UnknownNameError.of("dtype", dtype, DTYPES)
    config = load_config(name, revision=revision)
    check_device(device, quantization)
    is_dealt = device == "auto" or quantization is not None
    options: dict[str, Any] = {}
    if is_dealt:
        options["device_map"] = "auto" if device == "auto" else {"": device}
    if quantization is not None:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=quantization == "8bit",
            load_in_4bit=quantization == "4bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else DTYPES[dtype],
        )
    kind = auto_class(config)
    try:
        with _silence():
            loaded: Any = kind.from_pretrained(
                name,
                revision=revision,
                dtype=DTYPES[dtype],
                local_files_only=Path(name).is_dir(),
                output_loading_info=True,
                **options,
            )
    except Exception as error:
        raise _unloadable(name, error) from error
    model, report = loaded
    # transformers fills what a checkpoint lacks with random weights and merely logs it. The head of
    # an encoder is never run.
    body = "" if kind is AutoModelForCausalLM else f"{model.base_model_prefix}."
    if missing := sorted(key for key in report["missing_keys"] if key.startswith(body)):
        raise ModelError(
            f"model {name!r} must come with all its weights, {len(missing)} are missing: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )
    return (model if is_dealt else model.to(device)).eval()


def auto_class(config: PretrainedConfig) -> Any:
    """The class of transformers that makes the model: causal, or a masked one if it is an encoder.

    Raises:
        ModelError: It is an encoder and a decoder in one.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"a model must be a causal language model or an encoder, {config.model_type!r} is an "
            "encoder with a decoder: choose another model"
        )
    is_encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    if is_encoder and not getattr(config, "is_decoder", False):
        return AutoModelForMaskedLM
    return AutoModelForCausalLM


def check_device(device: str, quantization: str | None = None) -> None:
    """Nothing, if torch can use the device, and what dealing out and quantization take is there.

    Raises:
        UnknownNameError: No such quantization.
        ModelError: It cannot, or a package is not installed.
    """
    if quantization is not None and quantization not in QUANTIZATIONS:
        raise UnknownNameError.of("quantization", quantization, QUANTIZATIONS)
    needed = ["accelerate"] * (device == "auto" or quantization is not None)
    needed += ["bitsandbytes"] * (quantization is not None)
    for package in needed:
        if importlib.util.find_spec(package) is None:
            what = "device 'auto'" if quantization is None else f"quantization {quantization!r}"
            raise ModelError(
                f"{what} must have the package {package}, it is not installed: pip install "
                f"{' '.join(needed)}, or leave it out of the study"
            )
    try:
        torch.empty(0, device=sae_device(device))
    except (RuntimeError, AssertionError) as error:
        reason = _first_line(error)
        raise ModelError(f"device {device!r} cannot be used: {reason}; 'cpu' always can") from error


def sae_device(device: str) -> str:
    """Where the SAEs of a model go: to its device; if it is dealt out, to the first accelerator."""
    if device != "auto":
        return device
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator is None else str(accelerator)


def n_layers(config: PretrainedConfig) -> int:
    """How many transformer blocks the (text) model has."""
    return int(config.get_text_config().num_hidden_layers)


def d_model(config: PretrainedConfig) -> int:
    """The width of the (text) model's residual stream."""
    return int(config.get_text_config().hidden_size)


def d_site(config: PretrainedConfig, site: Site = AFTER_BLOCK) -> int:
    """The width of what passes a site: of the heads' outputs their number times their width."""
    text: Any = config.get_text_config()
    if site.name != "attn_z":
        return d_model(config)
    n_heads = int(text.num_attention_heads)
    return n_heads * int(getattr(text, "head_dim", None) or text.hidden_size // n_heads)


def n_positions(config: PretrainedConfig) -> int | None:
    """How many positions a context can have at most; None: as many as one likes."""
    text: Any = config.get_text_config()
    most = getattr(text, "max_position_embeddings", None)
    if most is not None and "roberta" in text.model_type:
        return int(most) - int(text.pad_token_id) - 1  # its positions begin after the padding's
    return most


def n_parameters(name: str, *, revision: str | None = None) -> int:
    """How many parameters the model has, from its configuration alone; shared ones count once.

    Raises:
        ModelError: There is no such model, or none that can be built from it.
    """
    config = load_config(name, revision=revision)
    try:
        with _silence(), torch.device("meta"):
            model: Any = auto_class(config).from_config(config)
    except Exception as error:
        raise _unloadable(name, error) from error
    return sum(parameter.numel() for parameter in model.parameters())


def model_fingerprint(name: str, revision: str | None = None) -> str:
    """What tells a model's weights from any others: their hash, or the commit on the hub.

    Raises:
        ModelError: A folder without weights, or a hub name that cannot be resolved.
    """
    load_config(name, revision=revision)
    folder = Path(name)
    if not folder.is_dir():
        try:
            with _silence():  # the configuration of newer transformers does not tell
                commit = extract_commit_hash(
                    cached_file(name, "config.json", revision=revision), None
                )
        except Exception as error:
            raise _unloadable(name, error) from error
        if commit is None:
            raise ModelError(
                f"model {name!r} has no commit on the hub: give a folder, or a revision"
            )
        return f"{name}@{commit}"
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    if not weights:
        raise ModelError(f"model folder {name!r} must hold weights (*.safetensors), it holds none")
    digest = hashlib.sha256()
    for file in [folder / "config.json", *weights]:
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _unloadable(name: str, error: Exception) -> ModelError:
    if Path(name).is_dir():
        return ModelError(f"folder {name!r} must hold a language model: {_first_line(error)}")
    return ModelError(
        f"model {name!r} must be a folder in transformers layout or a name on the Hugging Face "
        f"hub; there is no such folder and the hub gave: {_first_line(error)}"
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


@contextmanager
def _silence() -> Iterator[None]:
    # The bar, the load report and the hub's retries (six lines in 25 s without a network) would
    # stand between a study's own lines of progress.
    hub = getLogger("huggingface_hub")
    hub_level = hub.level
    verbosity, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub.setLevel(ERROR)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        hub.setLevel(hub_level)
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()
