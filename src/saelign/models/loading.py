"""Models and their configurations, from a folder or the Hugging Face hub."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.utils import logging

from saelign.errors import ModelError, UnknownNameError

DTYPES = {
    "auto": "auto",
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


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
    name: str, *, revision: str | None = None, dtype: str = "float32", device: str = "cpu"
) -> nn.Module:
    """The causal language model in evaluation mode.

    Args:
        name: A folder in the layout of transformers, or a name on the Hugging Face hub.
        revision: Branch, tag or commit on the hub.
        dtype: One of `float32`, `bfloat16`, `float16`, or `auto`, the type it was saved in.
        device: As torch names it.

    Raises:
        UnknownNameError: `dtype` is none of the four.
        ModelError: The model cannot be loaded, lacks weights, or the device is not there.
    """
    if dtype not in DTYPES:
        raise UnknownNameError.of("dtype", dtype, DTYPES)
    load_config(name, revision=revision)
    check_device(device)
    try:
        with _silence():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name,
                revision=revision,
                dtype=DTYPES[dtype],
                local_files_only=Path(name).is_dir(),
                output_loading_info=True,
            )
    except Exception as error:
        raise _unloadable(name, error) from error
    model, report = loaded
    # transformers fills what a checkpoint lacks with random weights and merely logs it.
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"model {name!r} must come with all its weights, {len(missing)} are missing: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )
    return model.to(device).eval()


def check_device(device: str) -> None:
    """Nothing, if torch can use the device.

    Raises:
        ModelError: It cannot.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = _first_line(error)
        raise ModelError(f"device {device!r} cannot be used: {reason}; 'cpu' always can") from error


def n_layers(config: PretrainedConfig) -> int:
    """How many transformer blocks the (text) model has."""
    return int(config.get_text_config().num_hidden_layers)


def d_model(config: PretrainedConfig) -> int:
    """The width of the (text) model's residual stream."""
    return int(config.get_text_config().hidden_size)


def n_parameters(name: str, *, revision: str | None = None) -> int:
    """How many parameters the model has, from its configuration alone; shared ones count once.

    Raises:
        ModelError: There is no such model, or none that can be built from it.
    """
    config = load_config(name, revision=revision)
    try:
        with _silence(), torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        raise _unloadable(name, error) from error
    return sum(parameter.numel() for parameter in model.parameters())


def model_fingerprint(name: str, revision: str | None = None) -> str:
    """What tells a model's weights from any others: their hash, or the commit on the hub.

    Raises:
        ModelError: A folder without weights, or a hub name that cannot be resolved.
    """
    config = load_config(name, revision=revision)
    folder = Path(name)
    if not folder.is_dir():
        commit = getattr(config, "_commit_hash", None)
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
        return ModelError(
            f"folder {name!r} must hold a causal language model: {_first_line(error)}"
        )
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
