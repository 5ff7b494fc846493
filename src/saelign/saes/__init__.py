"""Sparse autoencoders, whatever format they were saved in."""

from saelign.saes.loading import SaeInfo, inspect_sae, load_sae
from saelign.saes.sae import SAE, decode, encode, reconstruct

__all__ = ["SAE", "SaeInfo", "decode", "encode", "inspect_sae", "load_sae", "reconstruct"]
