"""The untrained twin of a model: its configuration with random weights."""

import copy
import hashlib
import json
import math
import zlib
from typing import Any, cast

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig

from saelign.errors import ModelError, UnknownNameError
from saelign.models.loading import (
    DTYPES,
    _first_line,
    _silence,
    auto_class,
    check_device,
    load_config,
    sae_device,
)

DRAWING_VERSION = 1
"""Changes whenever the same seed would draw other weights."""

# What a configuration says of its file and not of the model.
_UNSAID = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


def untrained_model(
    name_or_config: str | PretrainedConfig,
    *,
    seed: int,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    sha256: str | None = None,
) -> nn.Module:
    """The model of this configuration, initialised and never trained, in evaluation mode.

    As transformers initialises the class, save that numpy draws: a study's twin is the same with
    every version of torch and transformers that keeps the parameters' names. Which parameters are
    random, and how widely they spread, is seen from two initialisations. What is equal in both
    (norms, biases, the row of a padding token) stays; the rest is redrawn from a normal
    distribution, whatever its own, with the configuration's `initializer_range` where that is the
    spread, else with the spread seen, rounded to two digits. Needs the memory of three models.

    Args:
        name_or_config: A folder or a name on the Hugging Face hub, of which only the configuration
            is read, or the configuration.
        seed: Draws each parameter, together with the parameter's name.
        revision: Branch, tag or commit on the hub.
        dtype: One of `float32`, `bfloat16`, `float16`, or `auto`, the configuration's.
        device: As torch names it (`auto`: the first accelerator); the weights are drawn on the CPU.
        sha256: What `weights_sha256` must give in float32; None: anything.

    Raises:
        UnknownNameError: `dtype` is none of the four.
        ModelError: No language model has this configuration, the device is not there, or
            the weights are not those that `sha256` tells.
    """
    if dtype not in DTYPES:
        raise UnknownNameError.of("dtype", dtype, DTYPES)
    check_device(device)
    config = _config(name_or_config, revision)
    model, other = _initialised(config, 0), _initialised(config, 1)
    spread = getattr(config.get_text_config(), "initializer_range", None)
    others = dict(other.named_parameters())
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            _redraw(parameter, others[name], spread, [seed, zlib.crc32(name.encode())])
    if sha256 is not None and (got := weights_sha256(model)) != sha256:
        raise ModelError(
            f"the untrained twin of {config.model_type!r} with seed {seed} must have weights "
            f"{sha256}, got {got}: its configuration is another, or numpy {np.__version__} or "
            f"transformers {transformers.__version__} (torch {torch.__version__}) draws other "
            "weights: install the versions of the run that recorded the hash, or leave it out"
        )
    # A configuration without a type was saved before there was another than float32.
    asked = DTYPES[dtype] if dtype != "auto" else getattr(config, "dtype", None) or torch.float32
    return model.to(device=sae_device(device), dtype=asked).eval()


def untrained_fingerprint(
    name_or_config: str | PretrainedConfig, seed: int, revision: str | None = None
) -> str:
    """What tells an untrained twin from any other model, without drawing its weights."""
    config = _config(name_or_config, revision).to_dict()
    about = {
        "config": {key: value for key, value in config.items() if key not in _UNSAID},
        "seed": seed,
        "drawing": DRAWING_VERSION,
    }
    told = json.dumps(about, sort_keys=True, default=str)
    return f"untrained-{hashlib.sha256(told.encode()).hexdigest()}"


def weights_sha256(model: nn.Module) -> str:
    """The hash of all parameters: name, shape and float32 bytes, in the order of their names."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {list(parameter.shape)}\0".encode())
        digest.update(parameter.detach().float().cpu().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def _config(name_or_config: str | PretrainedConfig, revision: str | None) -> PretrainedConfig:
    if isinstance(name_or_config, str):
        return load_config(name_or_config, revision=revision)
    return name_or_config


def _initialised(config: PretrainedConfig, seed: int) -> nn.Module:
    # `torch.manual_seed` would reseed the accelerators as well; only the CPU's generator is used.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), _silence():
        torch.default_generator.manual_seed(seed)
        try:
            kind = auto_class(config)
            drawn: Any = kind.from_config(copy.deepcopy(config), dtype=torch.float32)
        except Exception as error:
            raise ModelError(
                f"a configuration of type {config.model_type!r} must make a language "
                f"model: {_first_line(error)}"
            ) from error
    return cast("nn.Module", drawn)


def _redraw(parameter: Tensor, other: Tensor, spread: float | None, seed: list[int]) -> None:
    # By whole rows, since two floats of a large matrix can be equal by chance.
    n_rows = len(parameter) if parameter.ndim > 1 else 1
    rows = parameter.view(n_rows, -1)
    is_random = (rows != other.view(n_rows, -1)).any(dim=1)
    if not is_random.any():
        return
    seen = torch.stack([rows[is_random], other.view(n_rows, -1)[is_random]]).double()
    centre, seen_spread = float(seen.mean()), float(seen.std())
    # Five standard errors are no difference; nor is a tenth, as where the tails are cut off.
    errors = 5 / math.sqrt(seen.numel())
    if abs(centre) <= errors * seen_spread:
        centre = 0.0
    if spread is None or abs(seen_spread / spread - 1) > max(0.1, errors):
        spread = float(f"{seen_spread:.1e}")
    drawn = np.random.default_rng(seed).standard_normal(seen.shape[1:], dtype=np.float32)
    drawn = np.float32(f"{centre:.1e}") + np.float32(spread) * drawn
    rows[is_random] = torch.from_numpy(drawn)
