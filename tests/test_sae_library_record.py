"""The record of the comparison with the libraries, and the comparison itself."""

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import check_sae_libraries as script
from scripts.check_sae_libraries import CLAIMED, LIBRARIES, Computed, compare

from saelign.saes import encode, reconstruct
from saelign.saes.formats import FORMATS
from saelign.saes.sae import SAE

D_MODEL, D_SAE, K = 8, 24, 5
TESTS = Path(__file__).parent
RECORDED = script.recorded(script.RECORD)


def test_every_format_and_architecture_that_is_read_has_passed_beside_a_library():
    assert set(CLAIMED) == {*FORMATS, "safetensors"}
    claimed = {(format_, a) for format_, names in CLAIMED.items() for a in names}
    asked = {(row["format"], row["architecture"]) for row in RECORDED}
    assert asked == {pair for pair in claimed if pair[0] not in script.WITHOUT_LIBRARY}
    assert {row["library"] for row in RECORDED} == set(LIBRARIES)


def test_every_row_on_record_is_sound():
    for row in RECORDED:
        assert tuple(row) == script.COLUMNS
        assert row["version"] == LIBRARIES[row["library"]].version
        assert (row["passed"], row["note"]) == ("True", ""), row
        assert float(row["tolerance"]) == script.TOLERANCE
        for key in ("acts_difference", "reconstruction_difference"):
            assert 0 <= float(row[key]) <= script.TOLERANCE, row
        assert row["support_differs"] == row["at_bound"]
        assert int(row["n_tokens"]) >= 260
        assert row["written_by"] in ("library", "layout")
        hashes = [row["weights_sha256"], *filter(None, [row["config_sha256"]])]
        assert all(len(digest) == 64 and int(digest, 16) for digest in hashes), row


def test_a_second_run_wrote_the_same_files_but_where_memory_is_saved_that_nothing_was_put_in():
    for row in RECORDED:
        is_library_of_openmoss = (row["library"], row["written_by"]) == ("llamascopium", "library")
        has_no_average = is_library_of_openmoss and not row["options"].startswith("dataset-wise")
        assert row["hashes_repeat"] == "True" or has_no_average, row


def test_the_page_shows_the_record():
    text = script.PAGE.read_text()
    shown = text.partition(script.BEGIN)[2].partition(script.END)[0].strip()
    assert shown == script.table(RECORDED)


def test_every_formula_test_that_the_page_names_exists():
    tests = "".join((TESTS / f"test_{name}.py").read_text() for name in ("saes", "sae_formats"))
    for name in (script.FORMULAS, *script.FORMULA_TESTS.values()):
        assert f"def {name}(" in tests


def made(activation: str = "jumprelu", **changes) -> SAE:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    sae = SAE(
        W_enc=normal(D_MODEL, D_SAE),
        b_enc=normal(D_SAE),
        W_dec=normal(D_SAE, D_MODEL),
        b_dec=normal(D_MODEL),
        threshold=normal(D_SAE).abs() if activation == "jumprelu" else None,
        k=K if activation == "topk" else None,
        activation=activation,
        apply_b_dec_to_input=False,
        normalize="none",
        hook_name=None,
        layer=None,
        sha256="",
        source="",
    )
    return replace(sae, **changes)


X = torch.randn(100, D_MODEL, generator=torch.Generator().manual_seed(4)) * 3


def computed(sae: SAE, x: torch.Tensor = X, **changes) -> Computed:
    acts = encode(sae, x).numpy().astype(np.float64)
    theirs = Computed(
        x=x.numpy(),
        feature_acts=acts,
        reconstruction=reconstruct(sae, x).numpy().astype(np.float64),
        exact=np.zeros(acts.shape, dtype=bool),
    )
    return replace(theirs, **changes)


@pytest.mark.parametrize("activation", ["relu", "topk", "jumprelu"])
def test_an_sae_agrees_with_itself(activation):
    sae = made(activation)
    found = compare(sae, computed(sae))
    assert found["passed"]
    assert found["support_differs"] == found["acts_difference"] == 0


def one_more(tensor: torch.Tensor, at: int, by: float) -> torch.Tensor:
    changed = tensor.clone()
    changed[at] += by
    return changed


@pytest.mark.parametrize(
    ("activation", "change"),
    [
        ("jumprelu", lambda sae: {"threshold": one_more(sae.threshold, 4, 0.3)}),
        ("jumprelu", lambda sae: {"threshold": -sae.threshold}),
        ("jumprelu", lambda _: {"threshold": None, "activation": "relu"}),
        ("jumprelu", lambda sae: {"b_enc": one_more(sae.b_enc, 4, 1e-3)}),
        ("relu", lambda sae: {"b_dec": one_more(sae.b_dec, 2, 3e-3)}),
        ("relu", lambda _: {"apply_b_dec_to_input": True}),
        ("relu", lambda _: {"normalize": "layer_norm"}),
        ("relu", lambda _: {"normalize": "constant_norm_rescale"}),
        ("relu", lambda sae: {"W_dec": sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)}),
        ("relu", lambda sae: {"W_enc": sae.W_enc.flip(1), "b_enc": sae.b_enc.flip(0)}),
        ("topk", lambda _: {"k": K + 1}),
        ("topk", lambda _: {"k": None, "activation": "relu"}),
        ("relu", lambda sae: {"b_enc": torch.full_like(sae.b_enc, torch.nan)}),
    ],
)
def test_a_planted_mismatch_is_found(activation, change):
    sae = made(activation)
    assert not compare(replace(sae, **change(sae)), computed(sae))["passed"]


@pytest.mark.parametrize("bound", [1.0, 1e-6])
def test_float_error_excuses_a_feature_at_its_bound_but_not_where_the_input_is_exact(bound):
    eye = torch.eye(D_MODEL)
    zeros = torch.zeros(D_MODEL)
    sae = made(W_enc=eye, W_dec=eye, b_enc=zeros, b_dec=zeros, threshold=zeros + bound)
    x = torch.full((20, D_MODEL), 3.0)
    x[0, 0] = float(np.nextafter(np.float32(bound), np.float32(2)))
    agreeing = computed(sae, x)
    acts = agreeing.feature_acts.copy()
    assert acts[0, 0] > 0
    acts[0, 0] = 0
    silent = replace(agreeing, feature_acts=acts, reconstruction=acts)
    found = compare(sae, silent)
    assert found["passed"]
    assert found["support_differs"] == found["at_bound"] == 1
    exact = agreeing.exact.copy()
    exact[0, 0] = True
    assert not compare(sae, replace(silent, exact=exact))["passed"]
    acts[1, 0] = 0
    assert not compare(sae, replace(silent, feature_acts=acts))["passed"]


def saved(folder: Path, sae: SAE, *, scale: float = 1.0) -> dict[str, object]:
    """What a maker leaves behind; its library's activations are ours over `scale`."""
    (folder / "sae").mkdir(parents=True)
    names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    weights = {name: getattr(sae, name).numpy() for name in names}
    np.savez(folder / "sae" / "params.npz", **weights)
    theirs = computed(sae)
    np.savez(
        folder / "0.npz",
        x=theirs.x,
        feature_acts=theirs.feature_acts / scale,
        reconstruction=theirs.reconstruction,
        scale=np.full(D_SAE, scale),
    )
    return {
        "format": "gemma_scope",
        "architecture": "jumprelu",
        "options": "tried",
        "folder": "sae",
        "config": None,
        "weights": "params.npz",
        "computed": "0.npz",
        "scaled_by": "two",
        "n_exact": 1,
        "written_by": "layout",
    }


ROW = script.Row(format="", architecture="", options="", library="sae-lens", version="1")


def test_a_saved_sae_is_read_by_its_folder_and_compared_in_the_scale_that_is_noted(tmp_path):
    case = saved(tmp_path / "first", made(), scale=2.0)
    saved(tmp_path / "second", made(), scale=2.0)
    row = script.check(case, tmp_path / "first", tmp_path / "second", ROW)
    assert row.passed
    assert row.hashes_repeat
    assert (row.format, row.options, row.n_tokens) == ("gemma_scope", "tried", len(X))
    assert row.weights_sha256 == script.sha256(tmp_path / "first" / "sae" / "params.npz")
    with np.load(tmp_path / "first" / "0.npz") as arrays:
        unscaled = dict(arrays) | {"scale": np.ones(D_SAE)}
    np.savez(tmp_path / "first" / "0.npz", **unscaled)
    assert not script.check(case, tmp_path / "first", tmp_path / "second", ROW).passed


def test_files_that_a_second_run_writes_otherwise_are_noted(tmp_path):
    case = saved(tmp_path / "first", made())
    saved(tmp_path / "second", made(b_dec=torch.zeros(D_MODEL)))
    row = script.check(case, tmp_path / "first", tmp_path / "second", ROW)
    assert (row.passed, row.hashes_repeat) == (True, False)


def test_an_sae_that_is_refused_has_not_passed(tmp_path):
    case = saved(tmp_path / "first", made(b_dec=torch.full((D_MODEL,), torch.nan)))
    row = script.check(case, tmp_path / "first", tmp_path / "first", ROW)
    assert not row.passed
    assert row.note.startswith("weights must be finite, b_dec of …/sae/params.npz")


def test_a_library_that_cannot_be_installed_is_on_record_and_the_script_fails(
    tmp_path, monkeypatch, capsys
):
    def refuse(name, folder):
        raise subprocess.CalledProcessError(2, [folder / "bin" / "python", "-m", "pip", name])

    monkeypatch.setattr(script, "environment", refuse)
    arguments = ["--environments", str(tmp_path), "--out", str(tmp_path), "--only", "sae-lens"]
    assert script.main(arguments) == 1
    (row,) = script.recorded(tmp_path / "sae_libraries.csv")
    assert row["note"] == "could not be asked: python -m pip sae-lens ended with 2"
    assert (row["library"], row["passed"]) == ("sae-lens", "False")
    assert "sae-lens: 0 of 1 agree" in capsys.readouterr().out
    assert "- sae-lens: could not be asked" in script.table([row])


def test_a_run_of_one_library_keeps_what_is_on_record_of_the_others(tmp_path, monkeypatch):
    case = saved(tmp_path / "made", made())

    def make(_name, _python, out):
        saved(out, made())
        return {"version": "1", "python": "3", "torch": "2", "cases": [case]}

    monkeypatch.setattr(script, "environment", lambda _name, _folder: Path("python"))
    monkeypatch.setattr(script, "make", make)
    where = ["--environments", str(tmp_path), "--out", str(tmp_path)]
    for _ in range(2):
        for name in ("eai-sparsify", "sae-lens"):
            assert script.main([*where, "--only", name]) == 0
    rows = script.recorded(tmp_path / "sae_libraries.csv")
    assert [row["library"] for row in rows] == ["sae-lens", "eai-sparsify"]
    assert script.table(rows).count("sae-lens 1: 1 of 1 SAEs; eai-sparsify 1: 1 of 1 SAEs") == 1
