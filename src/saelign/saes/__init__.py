"""Sparse autoencoders: of whatever format they were saved in, trained here, or drawn at random."""

from saelign.saes.formats.reading import SaeInfo
from saelign.saes.given import sae_of
from saelign.saes.loading import inspect_sae, load_sae
from saelign.saes.sae import SAE, decode, encode, reconstruct
from saelign.saes.training import TrainingReport, random_sae, save_sae, train_sae

__all__ = [
    "SAE",
    "SaeInfo",
    "TrainingReport",
    "decode",
    "encode",
    "inspect_sae",
    "load_sae",
    "random_sae",
    "reconstruct",
    "sae_of",
    "save_sae",
    "train_sae",
]
