"""A model, trained or not, and a site of its blocks -> what passes there, a batch at a time."""

from saelign.models.loading import (
    DTYPES,
    QUANTIZATIONS,
    auto_class,
    check_device,
    d_model,
    d_site,
    load_config,
    load_model,
    model_fingerprint,
    n_layers,
    n_parameters,
    n_positions,
    sae_device,
)
from saelign.models.streams import find_blocks, find_module, streams_at
from saelign.models.unembedding import (
    has_direct_path,
    promoted_tokens,
    read_unembedding,
    unembedding_of,
)
from saelign.models.untrained import (
    untrained_fingerprint,
    untrained_model,
    weights_sha256,
)

__all__ = [
    "DTYPES",
    "QUANTIZATIONS",
    "auto_class",
    "check_device",
    "d_model",
    "d_site",
    "find_blocks",
    "find_module",
    "has_direct_path",
    "load_config",
    "load_model",
    "model_fingerprint",
    "n_layers",
    "n_parameters",
    "n_positions",
    "promoted_tokens",
    "read_unembedding",
    "sae_device",
    "streams_at",
    "unembedding_of",
    "untrained_fingerprint",
    "untrained_model",
    "weights_sha256",
]
