"""A model, trained or not, and a layer -> the residual stream there, one batch at a time."""

from saelign.models.loading import (
    DTYPES,
    check_device,
    d_model,
    load_config,
    load_model,
    model_fingerprint,
    n_layers,
    n_parameters,
)
from saelign.models.streams import find_blocks, residual_streams
from saelign.models.untrained import (
    untrained_fingerprint,
    untrained_model,
    weights_sha256,
)

__all__ = [
    "DTYPES",
    "check_device",
    "d_model",
    "find_blocks",
    "load_config",
    "load_model",
    "model_fingerprint",
    "n_layers",
    "n_parameters",
    "residual_streams",
    "untrained_fingerprint",
    "untrained_model",
    "weights_sha256",
]
