"""SAEs that are Python objects of any library."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import lossless_sae
from saelign.errors import FormatError
from saelign.saes import SAE, decode, encode, reconstruct, sae_of, save_sae
from saelign.saes.sae import encode_sparse, reconstruct_counting

D_MODEL, D_SAE, K = 6, 20, 3


def weights(seed: int = 0) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    shapes = {"W_enc": (D_MODEL, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_MODEL)}
    shapes["b_dec"] = (D_MODEL,)
    return {n: torch.tensor(rng.normal(size=s), dtype=torch.float32) for n, s in shapes.items()}


class WithDecoderMatrix(nn.Module):
    """As SAELens's: parameters of our names, a decode that takes dense activations."""

    def __init__(self, seed: int = 0):
        super().__init__()
        for name, tensor in weights(seed).items():
            self.register_parameter(name, nn.Parameter(tensor))

    def encode(self, x):
        return torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)

    def decode(self, acts):
        return acts @ self.W_dec + self.b_dec


class WithLinearLayers(nn.Module):
    """As dictionary_learning's: layers, the other way round, and no bias of our name."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(D_MODEL, D_SAE), nn.Linear(D_SAE, D_MODEL)

    def encode(self, x, also=True):
        return torch.relu(self.encoder(x)), also

    def decode(self, acts, scale=1.0):
        return self.decoder(acts) * scale


@dataclass
class Largest:
    top_acts: Tensor
    top_indices: Tensor


class WithLargest:
    """As sparsify's: the k largest and their features, which its decode takes apart."""

    def __init__(self):
        self.__dict__ |= weights()
        self.k = K

    def encode(self, x):
        return Largest(*torch.relu(x @ self.W_enc + self.b_enc).topk(self.k))

    def decode(self, top_acts, top_indices):
        raise AssertionError(f"takes two: {top_acts}, {top_indices}")


x = torch.randn(40, D_MODEL, generator=torch.Generator().manual_seed(3)) * 2


@pytest.mark.parametrize("kind", [WithDecoderMatrix, WithLinearLayers, WithLargest])
def test_an_object_is_read_as_it_reads_itself(kind):
    given = kind()
    sae = sae_of(given)
    assert (sae.d_model, sae.d_sae, sae.site, sae.layer) == (D_MODEL, D_SAE, None, None)
    with torch.no_grad():
        if kind is WithLargest:
            best = given.encode(x)
            acts = torch.zeros(len(x), D_SAE).scatter(1, best.top_indices, best.top_acts)
            back = acts @ given.W_dec + given.b_dec
        else:
            acts = given.encode(x)
            acts = acts[0] if isinstance(acts, tuple) else acts
            back = given.decode(acts)
    torch.testing.assert_close(encode(sae, x), acts)
    torch.testing.assert_close(decode(sae, acts), back)
    torch.testing.assert_close(reconstruct(sae, x), back)
    counted, fired = reconstruct_counting(sae, x)
    torch.testing.assert_close(counted, back)
    assert torch.equal(fired, (acts > 0).sum(dim=0))
    counts, features, values = encode_sparse(sae, x, out=torch.empty(len(x), D_SAE))
    assert counts.tolist() == (acts > 0).sum(dim=1).tolist()
    assert features.tolist() == acts.nonzero()[:, 1].tolist()
    np.testing.assert_allclose(values, acts[acts > 0].numpy(), rtol=1e-6)


def test_an_sae_is_itself_and_objects_are_told_apart_by_what_they_hold():
    sae = lossless_sae()
    assert sae_of(sae) is sae
    hashes = [sae_of(WithDecoderMatrix(seed)).sha256 for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert sae_of(WithLargest()).sha256 == sae_of(WithLargest()).sha256
    other = WithLargest()
    other.k = 2  # no tensor tells, what it does tells
    assert sae_of(other).sha256 != sae_of(WithLargest()).sha256
    assert sae_of(other, sha256="mine", name="third").sha256 == "mine"
    assert sae_of(other, name="third").source == "third (test_given.WithLargest)"


class Changed(WithDecoderMatrix):
    def __init__(self, **changes):
        super().__init__()
        self.changes = changes

    def encode(self, x):
        return self.changes.get("encode", super().encode)(x)


def changed(**attributes):
    given = WithLargest()
    for name, value in attributes.items():
        if value is None:
            delattr(given, name)
        else:
            setattr(given, name, value)
    return given


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (object(), r"must have encode\(x\), and W_dec .*, builtins\.object has no encode$"),
        (changed(W_dec=None), r"WithLargest has no decoder$"),
        (changed(W_dec=torch.ones(3)), r"WithLargest has no decoder$"),
        (changed(W_enc=torch.ones(D_MODEL, 9), b_enc=torch.ones(9), W_dec=torch.ones(5, D_MODEL),
                 encode=lambda x: torch.ones(len(x), 9)),
         r"gives \[32, 9\] for 32 tokens and 5 rows of W_dec$"),
        (changed(encode=lambda x: [x]), r"gives list for 32 tokens and 20 rows"),
        (Changed(encode=lambda x: -torch.ones(len(x), D_SAE)), r"that are negative or not finite$"),
        (Changed(encode=lambda x: torch.full((len(x), D_SAE), torch.nan)), r"or not finite$"),
        (Changed(encode=lambda x: torch.full((len(x), D_SAE), 1.0 + len(x))),
         r"other activations when it comes with others: put it into evaluation mode"),
        (changed(decode=lambda acts: acts), r"decodes 32 tokens to something else"),
    ],
)  # fmt: skip
def test_an_object_that_is_no_sae_is_refused(given, words):
    with pytest.raises(FormatError, match=words):
        sae_of(given)


def test_an_object_cannot_be_saved_as_a_single_file(tmp_path):
    with pytest.raises(FormatError, match=r"computes its activations itself: save it with its own"):
        save_sae(sae_of(WithDecoderMatrix()), tmp_path / "sae.safetensors")
    assert isinstance(sae_of(WithDecoderMatrix()), SAE)
