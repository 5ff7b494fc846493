"""Models and SAEs that are Python objects."""

import copy
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import saelign
from conftest import lossless_sae
from saelign import Given, Study, read_study
from saelign.demo import FOLDER, demo_study
from saelign.errors import FormatError, ModelError, StudyError
from saelign.models import load_model
from saelign.saes import SAE, decode, encode, load_sae, reconstruct, sae_of, save_sae
from saelign.saes.sae import encode_sparse, reconstruct_counting
from saelign.text import load_tokenizer

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


# Whole studies -----------------------------------------------------------------------------------


def demo_side(letter: str, *, layer: int) -> tuple[Given, dict[str, object]]:
    study = demo_study()
    named = getattr(study, f"model_{letter}")
    folder = str(study.folder / named.name)
    own = load_sae(named.sae_path(layer, study.places))

    class Mine:
        def __init__(self):
            self.W_dec, self.b_dec = own.W_dec, own.b_dec

        def encode(self, x):
            return encode(own, x)

    given = Given(
        model=load_model(folder, dtype="auto"),
        tokenizer=load_tokenizer(str(FOLDER / named.tokenizer)),
        saes={layer: Mine()},
    )
    return given, {"name": f"my {letter}", "layers": [layer], "saes": "given"}


def study_with(**changes: object) -> Study:
    content = {
        "saelign": 1,
        "name": "given",
        "text": {"source": str(FOLDER / "text.safetensors"), "tokens": 4000},
        "matching": ["one_to_one"],
        "measures": ["rsa"],
        "nulls": {"shuffle": 10},
        "verdicts": False,
    }
    return read_study({**content, **changes}, folder=FOLDER)


def test_models_and_saes_in_memory_give_what_those_on_disk_give(tmp_path, monkeypatch):
    monkeypatch.setattr("saelign.pipeline.write_figures", lambda *_, **__: [])
    (given_a, a), (given_b, b) = demo_side("a", layer=2), demo_side("b", layer=3)
    output = {"store": str(tmp_path / "store")}
    control = [{"untrained": {"saes_a": "random", "saes_b": "random"}}]
    study = study_with(model_a=a, model_b=b, output=output, controls=control)
    objects = {"a": given_a, "b": given_b}
    got = saelign.run(study, out=tmp_path / "given", given=objects)
    named = demo_study()
    sides = {
        f"model_{letter}": {
            "name": str(FOLDER / getattr(named, f"model_{letter}").name),
            "layers": [layer],
            "tokenizer": "tokenizer",
            "saes": str(getattr(named, f"model_{letter}").sae_path(layer, named.places)),
        }
        for letter, layer in (("a", 2), ("b", 3))
    }
    expected = saelign.run(
        study_with(**sides, output=output, controls=control), out=tmp_path / "named"
    )
    columns = ["control", "measure", "null", "score", "p"]
    pd.testing.assert_frame_equal(got.scores[columns], expected.scores[columns], rtol=1e-4)
    about = got.info["models"]
    assert about["a"]["fingerprint"].startswith("given-")
    assert about["a"]["saes"][2]["source"].startswith("SAE given for layer 2 of a (")
    widened = replace(given_a, model=copy.deepcopy(given_a.model).float())
    assert widened.fingerprint != given_a.fingerprint  # the same numbers, computed with otherwise
    again = saelign.run(study, out=tmp_path / "given", given=objects)
    pd.testing.assert_frame_equal(again.scores, got.scores)


def test_what_is_given_and_does_not_fit_is_refused(tmp_path):
    given, a = demo_side("a", layer=2)
    study = study_with(model_a=a, model_b={**a, "layers": [1, 2]}, output={"store": str(tmp_path)})
    out = tmp_path / "out"
    with pytest.raises(
        StudyError, match=r"for each layer of my a, layer 2 has none \(there are: n"
    ):
        saelign.check(study, out=out, given={"a": Given(model=given.model)})
    with pytest.raises(StudyError, match=r"layer 1 has none \(there are: 2\): pass it as given="):
        saelign.check(study, out=out, given={"a": given, "b": given})
    with pytest.raises(StudyError, match=r"must be for side 'a' or 'b', got 'A'"):
        saelign.check(study, out=out, given={"A": given})
    with pytest.raises(ModelError, match=r"one of transformers, with its config, Linear has none"):
        saelign.check(study, out=out, given={"a": Given(model=nn.Linear(2, 2))})
    given.model.train()
    with pytest.raises(ModelError, match=r"must not be training: call model\.eval\(\)"):
        saelign.check(study, out=out, given={"a": given, "b": given})
