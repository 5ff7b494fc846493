import errno
import importlib
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from conftest import CONFIGS, D_MODEL, N_LAYERS, lossless_sae, random_tokens, tiny_model
from saelign.activations import LayerActivations, activations_key, collect, open_activations
from saelign.activations.store import write_atomically, write_manifest, write_shard
from saelign.errors import (
    ActivationError,
    DamagedError,
    FormatError,
    MissingFileError,
    StorageError,
    TextError,
    WiringError,
)
from saelign.models import find_blocks, streams_at
from saelign.saes import SAE, encode, reconstruct
from saelign.saes.sae import encode_sparse, nonzero_above, reconstruct_counting

TOKENS = random_tokens(n_contexts=40)
# The function of this name hides the module in its package.
COLLECT = importlib.import_module("saelign.activations.collect")


def narrow_sae(layer: int, model=None, rank: int = 6) -> SAE:
    """Reads the `rank` directions in which the layer varies most, and no others."""
    model = tiny_model("gpt_neox") if model is None else model
    stream = streams_of(model, [layer])[layer]
    mean = stream.mean(dim=0)
    _, _, directions = torch.linalg.svd(stream - mean, full_matrices=False)
    top = directions[:rank]
    return lossless_sae(
        W_enc=torch.cat([top.T, -top.T], dim=1),
        b_enc=torch.cat([-(top @ mean), top @ mean]),
        W_dec=torch.cat([top, -top]),
        b_dec=mean,
        sha256=f"narrow {layer}",
        source=f"narrow_{layer}.safetensors",
    )


def streams_of(model, layers, tokens=TOKENS):
    ids = torch.from_numpy(tokens.input_ids).long()
    mask = torch.from_numpy(tokens.attended).long()
    streams = streams_at(model, find_blocks(model), ids, mask, layers)
    kept = torch.from_numpy(tokens.kept)
    return {layer: stream[kept].clone() for layer, stream in streams.items()}


class Study:
    """What `collect` is to do, and how often it loaded and ran the model."""

    def __init__(self, store, architecture="gpt_neox", **changes):
        self.n_loads = self.n_contexts_run = 0
        self.architecture = architecture
        self.arguments = {
            "load": self.load,
            "blocks_path": None,
            "saes": {0: lossless_sae(), 2: lossless_sae()},
            "tokens": TOKENS,
            "store": store,
            "model_fingerprint": "tiny",
            "dtype": "float32",
            "batch_tokens": 60,
            "shard_tokens": 100,
        } | changes

    def load(self):
        self.n_loads += 1
        model = tiny_model(self.architecture)
        model.register_forward_pre_hook(self.count, with_kwargs=True)
        return model

    def count(self, _, __, kwargs):
        self.n_contexts_run += len(kwargs["input_ids"])

    def collect(self, **changes) -> dict[int, LayerActivations]:
        return collect(**(self.arguments | changes))


@pytest.mark.parametrize("architecture", list(CONFIGS))
def test_the_activations_are_the_saes_of_the_kept_positions_in_order(tmp_path, architecture):
    layers = Study(tmp_path, architecture).collect()
    assert list(layers) == [0, 2]
    streams = streams_of(tiny_model(architecture), [0, 2])
    for layer, activations in layers.items():
        assert activations.complete
        matrix = activations.concatenated()
        assert matrix.shape == (TOKENS.n_tokens, 2 * D_MODEL)
        expected = encode(lossless_sae(), streams[layer])
        np.testing.assert_allclose(matrix.toarray(), expected, atol=1e-5)
        assert (matrix.data > 0).all()


def test_the_input_of_block_0_can_be_read(tmp_path):
    layers = Study(tmp_path, saes={-1: lossless_sae()}).collect()
    embedding = tiny_model("gpt_neox").get_input_embeddings().weight.detach()
    expected = encode(lossless_sae(), embedding[TOKENS.token_ids.astype(np.int64)])
    np.testing.assert_allclose(layers[-1].concatenated().toarray(), expected, atol=1e-6)


@pytest.mark.parametrize(("batch_tokens", "shard_tokens"), [(1, 1), (36, 50), (10**6, 10**6)])
def test_batches_and_shards_change_nothing(tmp_path, batch_tokens, shard_tokens):
    one = Study(tmp_path / "one").collect()
    other = Study(tmp_path / "other").collect(batch_tokens=batch_tokens, shard_tokens=shard_tokens)
    for layer in one:
        a, b = one[layer].concatenated(), other[layer].concatenated()
        np.testing.assert_allclose(a.toarray(), b.toarray(), atol=1e-5)
        sure = a.toarray() > 1e-4
        assert (b.toarray()[sure] > 0).all()


def test_the_shards_of_a_layer_do_not_depend_on_the_batches(tmp_path):
    sizes = [
        [shard.n_rows for shard in Study(tmp_path / str(n)).collect(batch_tokens=n)[0].shard_files]
        for n in (1, 48, 10**6)
    ]
    assert sizes[0] == sizes[1] == sizes[2]
    assert len(sizes[0]) > 3
    assert max(sizes[0]) <= 100
    assert sum(sizes[0]) == TOKENS.n_tokens


def test_the_shards_in_turn_are_the_whole(tmp_path):
    activations = Study(tmp_path).collect()[0]
    shards = list(activations.shards())
    whole = activations.concatenated()
    stacked = sp.vstack(shards, format="csr")
    assert len(shards) == len(activations.shard_files)
    assert all(shard.dtype == np.float32 and shard.indices.dtype == np.int32 for shard in shards)
    assert whole.indices.dtype == np.int32
    assert (stacked != whole).nnz == 0
    assert whole.nnz == activations.n_values
    whole.sum_duplicates()
    assert whole.nnz == activations.n_values


def test_a_second_study_reuses_what_is_stored_without_the_model(tmp_path):
    first = Study(tmp_path)
    before = first.collect()
    second = Study(tmp_path)
    after = second.collect()
    assert (first.n_loads, second.n_loads) == (1, 0)
    assert after == before
    third = Study(tmp_path)
    third.collect(saes={0: lossless_sae(), 1: lossless_sae()})
    assert third.n_loads == 1
    assert len(list(tmp_path.iterdir())) == 3


def test_whatever_changes_the_activations_gets_a_folder_of_its_own(tmp_path):
    study = Study(tmp_path, saes={0: lossless_sae()})
    changes = (
        {},
        {"model_fingerprint": "another"},
        {"dtype": "bfloat16"},
        {"saes": {1: lossless_sae()}},
        {"saes": {0: lossless_sae(sha256="another")}},
        {"tokens": replace(TOKENS, kept=TOKENS.attended)},
        {"tokens": random_tokens(seed=1)},
    )
    for change in changes:
        study.collect(**change)
    study.collect(batch_tokens=12, provenance={"name": "does not matter"})
    assert len(list(tmp_path.iterdir())) == len(changes)
    assert activations_key({"a": 1, "b": 2}) == activations_key({"b": 2, "a": 1})
    assert len(activations_key({})) == 32


def test_the_manifest_says_where_the_activations_come_from(tmp_path):
    activations = Study(tmp_path).collect(provenance={"model_name": "a tiny one"})[2]
    assert activations.provenance["model_name"] == "a tiny one"
    assert activations.provenance["tokens"] == TOKENS.sha256
    assert activations.provenance["masked"] == TOKENS.masked
    assert activations.provenance["layer"] == 2
    assert open_activations(activations.folder) == activations


class KilledError(Exception):
    pass


def test_a_killed_run_continues_after_its_last_shard(tmp_path):
    def stop(done, total):
        assert total == TOKENS.n_tokens
        if done >= 200:
            raise KilledError

    study = Study(tmp_path)
    with pytest.raises(KilledError):
        study.collect(progress=stop)
    there = [open_activations(folder) for folder in tmp_path.iterdir()]
    assert {layer.n_rows for layer in there} == {there[0].n_rows}
    assert 100 <= there[0].n_rows <= 200
    assert not any(layer.complete for layer in there)
    again, fresh = Study(tmp_path), Study(tmp_path / "fresh")
    seen = []
    continued = again.collect(progress=lambda done, _: seen.append(done))
    whole = fresh.collect()
    rest = TOKENS.n_tokens - there[0].n_rows
    # The wiring is on record, so only the rest of the contexts runs, each once.
    assert again.n_contexts_run == np.count_nonzero(
        np.cumsum(TOKENS.kept.sum(axis=1)) > there[0].n_rows
    )
    assert fresh.n_contexts_run == 2 * len(TOKENS.input_ids)
    assert seen[0] > there[0].n_rows
    assert seen[-1] == TOKENS.n_tokens
    assert rest > 0
    for layer, activations in continued.items():
        assert activations.shard_files == whole[layer].shard_files
        assert activations.wiring == whole[layer].wiring


def test_layers_that_stopped_at_different_shards_are_each_completed(tmp_path):
    layers = Study(tmp_path).collect()
    write_manifest(replace(layers[0], shard_files=layers[0].shard_files[:2], complete=False))
    write_manifest(replace(layers[2], shard_files=layers[2].shard_files[:1], complete=False))
    assert Study(tmp_path).collect() == layers


def test_a_context_in_which_nothing_counts_is_not_run(tmp_path):
    kept = TOKENS.kept.copy()
    kept[10:20] = False
    study = Study(tmp_path)
    layers = study.collect(tokens=replace(TOKENS, kept=kept))
    assert study.n_contexts_run == 2 * (len(kept) - 10)
    assert layers[0].concatenated().shape[0] == kept.sum()


def test_a_damaged_shard_is_named_even_after_it_was_read_once(tmp_path):
    activations = Study(tmp_path).collect()[0]
    activations.concatenated()
    path = activations.folder / activations.shard_files[1].file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    words = rf"{path.name} is not what was written: delete the folder .* and run again"
    with pytest.raises(DamagedError, match=words):
        activations.concatenated()
    with pytest.raises(DamagedError, match=words):
        list(activations.shards())
    path.unlink()
    with pytest.raises(DamagedError, match=r"cannot be read"):
        activations.concatenated()
    with pytest.raises(DamagedError, match=rf"{path.name} is not there, though the manifest lists"):
        Study(tmp_path).collect()


def test_a_shard_that_is_whole_but_no_shard_is_damaged(tmp_path):
    activations = Study(tmp_path).collect()[0]
    shard = activations.shard_files[0]
    (activations.folder / shard.file).write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    forged = replace(activations, shard_files=(replace(shard, sha256=empty),))
    with pytest.raises(DamagedError, match=r"is no shard of activations"):
        forged.concatenated()


def test_a_bad_manifest_is_refused(tmp_path):
    activations = Study(tmp_path).collect()[0]
    path = activations.folder / "manifest.json"
    good = json.loads(path.read_text())

    def refuse(text, error, words):
        path.write_text(text)
        with pytest.raises(error, match=words):
            Study(tmp_path).collect()

    refuse("{", DamagedError, r"manifest\.json is not a manifest: delete the folder")
    refuse("[]", DamagedError, r"is not a manifest")
    newer = json.dumps(good | {"format_version": 2})
    refuse(newer, FormatError, r"has format 2, this saelign reads up to 1: update saelign")
    refuse(json.dumps(good | {"shards": [1]}), DamagedError, r"lacks or garbles an entry")
    short = json.dumps(good | {"shards": good["shards"][1:]})
    refuse(short, DamagedError, rf"of {TOKENS.n_tokens} rows as complete")
    path.unlink()
    with pytest.raises(MissingFileError, match=r"must have a manifest\.json"):
        open_activations(activations.folder)
    path.mkdir()
    with pytest.raises(StorageError, match=r"cannot read .*manifest\.json"):
        open_activations(activations.folder)


def test_a_full_disk_leaves_what_was_stored_usable(tmp_path, monkeypatch):
    n_synced = 0

    def fsync(_):
        nonlocal n_synced
        n_synced += 1
        if n_synced > 8:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("saelign.activations.store.os.fsync", fsync)
        with pytest.raises(StorageError, match=r"No space left on device; what is stored already"):
            Study(tmp_path).collect()
    assert not list(tmp_path.rglob("*.tmp"))
    partial = [open_activations(folder) for folder in tmp_path.iterdir()]
    assert any(layer.shard_files for layer in partial)
    for layer in partial:
        assert layer.concatenated().shape[0] == layer.n_rows
    layers = Study(tmp_path).collect()
    assert all(layer.complete for layer in layers.values())


def test_a_store_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"must be writable, cannot write .*manifest\.json: Not"):
        Study(tmp_path / "file").collect()
    with pytest.raises(StorageError, match=r"cannot write"):
        write_atomically(tmp_path, b"a folder is in the way")


@pytest.mark.parametrize(("d_sae", "dtype"), [(65536, np.uint16), (65537, np.uint32)])
def test_indices_are_as_narrow_as_the_sae_allows(tmp_path, d_sae, dtype):
    from safetensors.numpy import load_file

    layer = LayerActivations(
        folder=tmp_path / "layer", d_sae=d_sae, n_tokens=2, complete=False, shard_files=()
    )
    layer = write_shard(
        layer, np.array([0, 1]), np.array([d_sae - 1]), np.array([2], dtype=np.float32)
    )
    assert layer.complete
    assert load_file(layer.folder / layer.shard_files[0].file)["indices"].dtype == dtype
    matrix = layer.concatenated()
    assert matrix[1, d_sae - 1] == 2
    assert matrix.nnz == 1


def test_two_runs_at_once_do_not_disturb_each_other(tmp_path):
    inner = []

    def another_run(done, _):
        if not inner and done > 150:
            inner.append(Study(tmp_path).collect(batch_tokens=12))

    outer = Study(tmp_path).collect(progress=another_run)
    for layers in (inner[0], outer, Study(tmp_path).collect()):
        for layer in layers.values():
            assert layer.concatenated().shape[0] == TOKENS.n_tokens


def test_the_wiring_of_a_good_sae_is_on_record(tmp_path):
    layers = Study(tmp_path, saes={0: lossless_sae(), 1: narrow_sae(1)}).collect()
    whole, narrow = layers[0].wiring, layers[1].wiring
    assert whole["explained_variance"] == pytest.approx(1)
    assert whole["l0"] == pytest.approx(D_MODEL)
    assert whole["dead_fraction"] == 0
    assert whole["n_tokens"] == TOKENS.n_tokens
    stream = streams_of(tiny_model("gpt_neox"), [1])[1]
    centred = stream - stream.mean(dim=0)
    spectrum = torch.linalg.svdvals(centred).square()
    explained = float(spectrum[:6].sum() / spectrum.sum())
    assert narrow["explained_variance"] == pytest.approx(explained, abs=1e-4)
    assert narrow["explained_variance_before"] < explained
    assert narrow["explained_variance_after"] < explained


def test_the_first_and_the_last_layer_have_one_neighbour(tmp_path):
    layers = Study(tmp_path, saes={-1: lossless_sae(), 2: lossless_sae()}).collect()
    assert layers[-1].wiring["explained_variance_before"] is None
    assert layers[2].wiring["explained_variance_after"] is None


def test_an_sae_of_another_layer_is_refused_and_the_right_one_named(tmp_path):
    with pytest.raises(WiringError, match=r"narrow_2.* at layer 0.*: layer 2 fits best \(0\.\d+\)"):
        Study(tmp_path, saes={0: narrow_sae(2)}).collect()
    with pytest.raises(WiringError, match=r"explains .* at layer 1.*: layer 2 fits best"):
        Study(tmp_path, saes={0: lossless_sae(), 1: narrow_sae(2)}).collect()
    with pytest.raises(WiringError, match=r": the input of block 0 fits best .* read it there"):
        Study(tmp_path, saes={0: narrow_sae(-1)}).collect()
    assert not list(tmp_path.iterdir())


def test_a_neighbour_that_is_a_little_better_is_refused_too(tmp_path, monkeypatch):
    monkeypatch.setattr("saelign.activations.wiring.MIN_EXPLAINED_VARIANCE", -1e9)
    words = r"must explain its own layer best, narrow_2.* at layer 1 and 0\.\d+ at layer 2: layer 2"
    with pytest.raises(WiringError, match=words):
        Study(tmp_path, saes={1: narrow_sae(2)}).collect()


def test_an_sae_that_fits_nowhere_is_refused(tmp_path):
    wrong = lossless_sae(W_dec=-lossless_sae().W_dec)
    words = r"at least 0\.3 of the variance .* at layer 1: no layer of this model fits"
    with pytest.raises(WiringError, match=words):
        Study(tmp_path, saes={1: wrong}).collect()


def test_an_sae_without_a_live_feature_is_refused(tmp_path):
    dead = lossless_sae(b_enc=torch.full((2 * D_MODEL,), -1e6))
    with pytest.raises(ActivationError, match=r"none of the 32 of lossless.* tokens at layer 1"):
        Study(tmp_path, saes={1: dead}).collect()


def test_an_sae_that_says_it_belongs_elsewhere_is_refused(tmp_path):
    with pytest.raises(
        WiringError, match=r"reads 8 dim.* and the residual .* 1 has 16: it belongs"
    ):
        Study(tmp_path, saes={1: lossless_sae(8)}).collect()
    said = lossless_sae(site="resid_pre", layer=1, hook_name="blocks.1.hook_resid_pre")
    words = (
        r"says 'blocks\.1\.hook_resid_pre' \(residual stream before block 1\) and is to read the "
        r"residual stream after block 1: choose `site: resid_pre` in the study$"
    )
    with pytest.raises(WiringError, match=words):
        Study(tmp_path, saes={1: said}).collect()
    with pytest.raises(WiringError, match=rf"got layer {N_LAYERS}: choose from 0 to 2"):
        Study(tmp_path, saes={N_LAYERS: lossless_sae()}).collect()
    Study(tmp_path, saes={0: said}).collect()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_stream_that_is_not_finite_is_refused_saying_where(tmp_path, value):
    model = tiny_model("gpt_neox")
    bad = int(TOKENS.input_ids[7, 3])
    model.get_input_embeddings().weight.data[bad] = value
    hits = np.argwhere(TOKENS.kept & (TOKENS.input_ids == bad))
    context, position = hits[0]
    words = rf"the input of block 0 is not at context {context}, position {position} \(.* {bad}\)"
    with pytest.raises(ActivationError, match=words):
        Study(tmp_path, saes={0: lossless_sae()}).collect(load=lambda: model)


def test_what_happens_at_padding_does_not_matter(tmp_path):
    ids = TOKENS.input_ids.copy()
    ids[~TOKENS.attended] = 13
    one, other = (
        Study(tmp_path / name).collect(tokens=replace(TOKENS, input_ids=i))[2].concatenated()
        for name, i in (("one", TOKENS.input_ids), ("other", ids))
    )
    np.testing.assert_allclose(one.toarray(), other.toarray(), atol=1e-5)


def test_ids_that_the_model_does_not_know_are_refused(tmp_path):
    ids = TOKENS.input_ids.copy()
    ids[3, 3] = 64
    with pytest.raises(TextError, match=r"below the model's 64 embeddings, got 64: the text was"):
        Study(tmp_path).collect(tokens=replace(TOKENS, input_ids=ids))


def test_nothing_but_the_store_is_written(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Study(tmp_path / "store").collect()
    assert not list(Path.cwd().iterdir())
    names = {path.name for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert all(name == "manifest.json" or name.endswith(".safetensors") for name in names)


def test_padding_on_the_left_is_not_attended_to(tmp_path):
    attended = np.ones(TOKENS.input_ids.shape, dtype=bool)
    attended[::3, :4] = False
    tokens = replace(TOKENS, attended=attended, kept=attended & (TOKENS.input_ids != 0))
    matrix = Study(tmp_path).collect(tokens=tokens)[2].concatenated()
    expected = encode(lossless_sae(), streams_of(tiny_model("gpt_neox"), [2], tokens)[2])
    np.testing.assert_allclose(matrix.toarray(), expected, atol=1e-5)


FLOATS = st.floats(-3, 3, width=32) | st.sampled_from(
    np.array([0, -0.0, np.nan, np.inf, -np.inf, 1], dtype=np.float32).tolist()
)


@given(
    st.data(),
    array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=40),
    st.sampled_from([0.0, 0.03, 0.5, 1.0]),
)
def test_what_is_above_its_bound_is_found_row_by_row(data, shape, share):
    dense = data.draw(arrays(np.float32, shape, elements=FLOATS, fill=FLOATS))
    bounds = data.draw(arrays(np.float32, shape[1:], elements=FLOATS))
    silent = np.random.default_rng(len(dense)).random(shape) >= share
    dense[silent] = -np.inf
    counts, features, values = nonzero_above(torch.from_numpy(dense), torch.from_numpy(bounds))
    rows, columns = np.nonzero(dense > bounds)
    np.testing.assert_array_equal(counts, np.bincount(rows, minlength=len(dense)))
    np.testing.assert_array_equal(features, columns)
    np.testing.assert_array_equal(values, dense[rows, columns])
    assert (counts.dtype, features.dtype, values.dtype) == (np.int64, np.int32, np.float32)


def a_random_sae(activation: str, d_sae: int = 4096, **changes) -> SAE:
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(D_MODEL, d_sae, generator=generator)
    return lossless_sae(
        W_enc=weights,
        b_enc=torch.randn(d_sae, generator=generator) - 12,
        W_dec=weights.T.contiguous(),
        b_dec=torch.randn(D_MODEL, generator=generator),
        activation=activation,
        k=40 if activation == "topk" else None,
        threshold=torch.randn(d_sae, generator=generator) if activation == "jumprelu" else None,
        **changes,
    )


@pytest.mark.parametrize("activation", ["relu", "topk", "jumprelu"])
@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
def test_sparse_encoding_and_reconstruction_are_the_dense_ones(activation, normalize):
    sae = a_random_sae(activation, normalize=normalize, apply_b_dec_to_input=True)
    x = torch.randn(70, D_MODEL, generator=torch.Generator().manual_seed(4))
    x[7] *= 0.01
    dense = encode(sae, x).numpy()
    assert 0 < (dense > 0).mean() < 1 / 32
    counts, features, values = encode_sparse(sae, x, out=torch.empty(70, sae.d_sae))
    np.testing.assert_array_equal(counts, (dense > 0).sum(axis=1))
    np.testing.assert_array_equal(features, np.nonzero(dense)[1])
    np.testing.assert_array_equal(values, dense[dense > 0])
    reconstruction, n_active = reconstruct_counting(sae, x)
    np.testing.assert_allclose(reconstruction, reconstruct(sae, x), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(n_active, (dense > 0).sum(axis=0))


def test_an_sae_of_which_many_features_are_active_is_reconstructed_densely():
    x = torch.randn(30, D_MODEL, generator=torch.Generator().manual_seed(4))
    reconstruction, n_active = reconstruct_counting(lossless_sae(), x)
    assert torch.equal(reconstruction, reconstruct(lossless_sae(), x))
    assert int(n_active.sum()) == x.numel()


def test_a_run_that_stops_waits_for_what_it_is_writing(tmp_path, monkeypatch):
    def slowly(*arguments):
        time.sleep(0.1)
        return write_shard(*arguments)

    def stop(done, _):
        if done >= 200:
            raise KilledError

    monkeypatch.setattr(COLLECT, "write_shard", slowly)
    with pytest.raises(KilledError):
        Study(tmp_path).collect(progress=stop)
    there = [open_activations(folder) for folder in tmp_path.iterdir()]
    assert len({layer.n_rows for layer in there}) == 1
    assert there[0].n_rows >= 100
    assert not list(tmp_path.rglob("*.tmp"))


def test_no_shard_follows_on_one_that_could_not_be_written(tmp_path, monkeypatch):
    n_calls = 0

    def fails_once(*arguments):
        nonlocal n_calls
        n_calls += 1
        if n_calls == 2:
            raise StorageError("the disk is full for a moment")
        return write_shard(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(COLLECT, "write_shard", fails_once)
        with pytest.raises(StorageError, match=r"full for a moment"):
            Study(tmp_path / "one", saes={0: lossless_sae()}).collect()
    (folder,) = (tmp_path / "one").iterdir()
    assert len(open_activations(folder).shard_files) == 1
    layers = [Study(tmp_path / name, saes={0: lossless_sae()}).collect() for name in ("one", "two")]
    assert layers[0][0].shard_files == layers[1][0].shard_files
