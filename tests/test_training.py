import re

import numpy as np
import pytest
import torch

from conftest import lossless_sae
from saelign.errors import ActivationError, FormatError, ShapeError, StorageError
from saelign.saes import encode, load_sae, random_sae, reconstruct, save_sae, train_sae
from saelign.saes.training import _nonzeros, _sums, _thresholds, _Trainee

D_MODEL, N_ATOMS, K = 24, 40, 3
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
QUICK = {"d_sae": 48, "k": K, "batch_tokens": 256, "epochs": 1.0}


def planted(n_tokens=20_000, n_atoms=N_ATOMS, d_model=D_MODEL, *, skewed=False, seed=0):
    """Sparse sums of atoms about a mean far from zero, and the atoms."""
    rng = np.random.default_rng(seed)
    atoms = rng.standard_normal((n_atoms, d_model))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    rates = 1 / np.arange(1, n_atoms + 1) if skewed else np.ones(n_atoms)
    active = rng.random((n_tokens, n_atoms)) < K * rates / rates.sum()
    acts = active * rng.uniform(1, 3, size=active.shape) @ atoms
    acts = acts + 0.02 * rng.standard_normal(acts.shape)
    acts = 4 * acts + 20 * rng.standard_normal(d_model)
    return torch.from_numpy(acts.astype(np.float32)), atoms


def same(sae, other):
    return all(torch.equal(getattr(sae, name), getattr(other, name)) for name in TENSORS)


@pytest.fixture(scope="module")
def trained():
    acts, atoms = planted()
    held_out = acts[-2000:]
    sae, report = train_sae(
        acts[:-2000], d_sae=48, k=K, seed=0, held_out=held_out, epochs=40.0, batch_tokens=256
    )
    return sae, report, held_out, atoms


def test_planted_atoms_are_found(trained):
    sae, report, _, atoms = trained
    nearest = (atoms @ sae.W_dec.double().numpy().T).max(axis=1)
    assert (nearest > 0.95).mean() >= 0.95
    assert report.explained_variance > 0.9


def test_the_report_is_what_the_sae_does_on_the_tokens_held_out(trained):
    sae, report, held_out, _ = trained
    active = encode(sae, held_out) > 0
    error = held_out - reconstruct(sae, held_out)
    variance = (held_out - held_out.mean(dim=0)).square().sum()
    assert report.l0 == pytest.approx(float(active.sum()) / len(held_out))
    assert report.l0 == pytest.approx(K, rel=0.1)
    assert report.dead_share == pytest.approx(float((~active.any(dim=0)).double().mean()))
    expected = 1 - float(error.square().sum() / variance)
    assert report.explained_variance == pytest.approx(expected, abs=1e-4)
    assert report.seconds > 0


def test_what_is_saved_is_read_back_bit_by_bit(trained, tmp_path):
    for sae in (trained[0], random_sae(trained[0], trained[2], l0=4.0, seed=0)):
        path = tmp_path / "folder" / "sae.safetensors"
        save_sae(sae, path)
        read = load_sae(path)
        assert same(sae, read)
        assert (read.activation, read.normalize, read.apply_b_dec_to_input) == (
            sae.activation,
            sae.normalize,
            sae.apply_b_dec_to_input,
        )
        assert [file.name for file in path.parent.iterdir()] == ["sae.safetensors"]
        # Two bytes a weight of the matrices, four a weight of the vectors.
        weights = 2 * 2 * sae.d_sae * sae.d_model + 4 * (2 * sae.d_sae + sae.d_model)
        assert 0 < path.stat().st_size - weights < 500
        np.testing.assert_allclose(sae.W_dec.norm(dim=1), 1, atol=2e-3)


def test_the_site_is_kept(tmp_path):
    acts, _ = planted(1000)
    sae, _ = train_sae(acts, **QUICK, seed=0, hook_name="gpt_neox.layers.3")
    save_sae(sae, tmp_path / "sae.safetensors")
    read = load_sae(tmp_path / "sae.safetensors")
    assert (sae.hook_name, sae.layer) == (read.hook_name, read.layer) == ("gpt_neox.layers.3", 3)
    drawn = random_sae(sae, acts, l0=2.0, seed=0)
    assert (drawn.hook_name, drawn.layer) == ("gpt_neox.layers.3", 3)
    with pytest.raises(FormatError, match=r"k 3, seed 0 reads 'blocks\.3\.hook_scale'"):
        train_sae(acts, **QUICK, seed=0, hook_name="blocks.3.hook_scale")


def test_the_seed_decides_and_nobody_elses_generator_is_touched():
    acts, _ = planted(3000)
    before = torch.get_rng_state()
    sae, again, other = (train_sae(acts, **QUICK, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(sae, again)
    assert not same(sae, other)
    assert sae.sha256 == again.sha256 != other.sha256
    assert re.fullmatch(r"trained on 2,850 tokens, 48 features, k 3, seed 0", sae.source)


def test_the_last_twentieth_is_held_out_unless_others_are():
    acts, _ = planted(3000)
    sae, report = train_sae(acts, **QUICK, seed=0)
    explicit, explicit_report = train_sae(acts[:2850], **QUICK, seed=0, held_out=acts[2850:])
    assert same(sae, explicit)
    assert report.explained_variance == explicit_report.explained_variance


def test_half_precision_is_enough():
    acts, _ = planted(3000)
    acts = acts.bfloat16()
    assert same(train_sae(acts, **QUICK, seed=0)[0], train_sae(acts.float(), **QUICK, seed=0)[0])


def test_hardly_a_feature_stays_silent_though_most_atoms_are_rare():
    acts, _ = planted(60_000, 600, 48, skewed=True)
    _, report = train_sae(
        acts[:40_000], d_sae=320, k=K, seed=0, held_out=acts[40_000:], epochs=8.0, batch_tokens=256
    )
    assert report.dead_share <= 0.02  # none on some processors, 5 of 320 on others
    assert report.l0 == pytest.approx(K, rel=0.1)


def test_features_share_a_threshold_save_those_that_it_would_silence():
    pre = torch.tensor([[5.0, 1.0, -2.0], [6.0, 2.0, -1.0], [7.0, 3.0, -3.0], [8.0, 0.0, 4.0]])
    # Four values are above 4, one a token; the second feature is above 1 at two tokens.
    assert _thresholds(pre, 1).tolist() == [4.0, 1.0, 0.0]


def test_a_step_follows_the_gradient_that_torch_finds():
    acts, _ = planted(256)
    x = (acts - acts.mean(dim=0)) / acts.std()
    trainee = _Trainee(x.shape[1], 48, K, np.random.default_rng(0), x.device)
    trainee.dtype = torch.float32
    names = ("encoder", "b_enc", "decoder", "b_dec")
    weights = {name: getattr(trainee, name).clone().requires_grad_() for name in names}
    error = trainee.step(x, 0.0, settled=False)
    pre = x @ weights["encoder"].T + weights["b_enc"]
    back = (pre * (pre > trainee.threshold)) @ weights["decoder"] + weights["b_dec"]
    torch.testing.assert_close(x - back, error)
    (0.5 * (x - back).square().sum()).backward()
    for name in names:
        torch.testing.assert_close(getattr(trainee, name).grad, weights[name].grad)


def test_sums_over_groups_allow_empty_ones():
    active = torch.tensor([[0, 0, 0], [1, 0, 1], [0, 0, 0], [1, 0, 0], [0, 0, 0]]).bool()
    tokens, features, by_feature = _nonzeros(active)
    assert (tokens.tolist(), features.tolist()) == ([1, 1, 3], [0, 2, 0])
    assert features[by_feature].tolist() == [0, 0, 2]
    rows = torch.eye(3)
    expected = active.float()
    torch.testing.assert_close(_sums(rows, features, tokens, 5, torch.ones(3)), expected)
    none = torch.zeros(0, dtype=torch.int64)
    assert torch.equal(_sums(rows, none, none, 5, torch.zeros(0)), torch.zeros(5, 3))


def test_progress_counts_all_steps():
    seen = []
    train_sae(planted(2000)[0], **QUICK, seed=0, progress=lambda *done: seen.append(done))
    assert seen == [(step, 8) for step in range(1, 9)]


@pytest.mark.parametrize("l0", [0.5, 4.0, 9.7])
def test_a_random_sae_is_as_sparse_as_asked(l0):
    acts, _ = planted(2000)
    sae = random_sae((D_MODEL, 96), acts, l0=l0, seed=0)
    assert float((encode(sae, acts) > 0).sum()) / len(acts) == pytest.approx(l0, abs=0.01)
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    np.testing.assert_allclose(sae.b_dec, acts.mean(dim=0), rtol=1e-5)
    assert same(sae, random_sae((D_MODEL, 96), acts, l0=l0, seed=0))
    assert not same(sae, random_sae((D_MODEL, 96), acts, l0=l0, seed=1))


def test_the_directions_of_a_random_sae_are_numpys():
    sae = random_sae((D_MODEL, 96), planted(500)[0], l0=4.0, seed=7)
    drawn = np.random.default_rng(7).standard_normal((96, D_MODEL))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    np.testing.assert_allclose(sae.W_dec, drawn, rtol=2**-8)


def test_activations_that_cannot_be_learnt_from_are_refused():
    acts, _ = planted(600)
    broken = acts.clone()
    broken[580, 3] = torch.nan
    words = r"activations must be finite, some are NaN or infinite: run the model in float32 or"
    for given, held_out in ((broken, None), (acts, broken), (acts * torch.inf, acts)):
        with pytest.raises(ActivationError, match=words):
            train_sae(given, **QUICK, seed=0, held_out=held_out)
    with pytest.raises(ActivationError, match=words):
        random_sae((D_MODEL, 96), broken, l0=4.0, seed=0)
    with pytest.raises(ActivationError, match=r"at least 256 tokens must be given, got 190: give"):
        train_sae(acts[:200], **QUICK, seed=0)
    with pytest.raises(ActivationError, match=r"at least 1 tokens must be given, got 0"):
        random_sae((D_MODEL, 96), acts[:0], l0=4.0, seed=0)
    with pytest.raises(ActivationError, match=r"must differ, all 570 sampled are equal"):
        train_sae(torch.ones_like(acts), **QUICK, seed=0)
    with pytest.raises(ActivationError, match=r"converge, at a learning rate of 1e\+30 .* lower"):
        train_sae(acts, **QUICK, seed=0, learning_rate=1e30)


def test_sizes_that_do_not_fit_are_refused():
    acts, _ = planted(600)
    for k in (0, 49):
        with pytest.raises(ShapeError, match=rf"k must be from 1 to d_sae, 48, got {k}"):
            train_sae(acts, **(QUICK | {"k": k}), seed=0)
    with pytest.raises(ShapeError, match=r"activations must be 24 wide, got 10"):
        train_sae(acts, **QUICK, seed=0, held_out=acts[:, :10])
    with pytest.raises(ShapeError, match=r"activations must be 24 wide, got 10"):
        random_sae((24, 96), acts[:, :10], l0=4.0, seed=0)
    for l0 in (0.0, 32.0):
        with pytest.raises(
            ShapeError, match=rf"below a third of the 96 features, got {l0:g}: half"
        ):
            random_sae((24, 96), acts, l0=l0, seed=0)


def test_what_a_single_file_cannot_hold_or_a_disk_not_take_is_refused(tmp_path):
    for changes in (
        {"activation": "topk", "k": 3},
        {"normalize": "layer_norm"},
        {"apply_b_dec_to_input": True},
    ):
        with pytest.raises(FormatError, match=r"must hold a ReLU or JumpReLU SAE that reads its"):
            save_sae(lossless_sae(**changes), tmp_path / "sae.safetensors")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"must be writable, cannot write .*sae\.safetensors: "):
        save_sae(lossless_sae(), tmp_path / "file" / "sae.safetensors")
    (tmp_path / "sae.safetensors").mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*sae\.safetensors: "):
        save_sae(lossless_sae(), tmp_path / "sae.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "sae.safetensors"]
    save_sae(lossless_sae(), tmp_path / "relu.safetensors")
    assert load_sae(tmp_path / "relu.safetensors").activation == "relu"
