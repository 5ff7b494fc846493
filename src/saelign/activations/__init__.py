"""Sparse feature activations on disk: written once, read ever after."""

from saelign.activations.collect import collect, sample_streams
from saelign.activations.store import LayerActivations, activations_key, open_activations
from saelign.activations.wiring import Wiring, check_wiring

__all__ = [
    "LayerActivations",
    "Wiring",
    "activations_key",
    "check_wiring",
    "collect",
    "open_activations",
    "sample_streams",
]
