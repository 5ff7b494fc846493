"""Printed numbers, the published method beside a naive account of it, and the command."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from scipy.stats import rankdata
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

from conftest import tiny_tokenizer
from saelign.cli import main
from saelign.concepts import load_concept
from saelign.errors import DegenerateError, MissingFileError, StudyError, UnknownNameError
from saelign.nulls import draw_permutations
from saelign.pipeline import run as run_study
from saelign.published.comparison import (
    beside_printed,
    gap,
    is_subspace,
    pair_of,
    recognised,
    value_rows,
)
from saelign.published.features import Correlations, top_positions
from saelign.published.mistakes import ALL_MENDED, MISTAKES, Published, ladder
from saelign.published.preset import keyword_members
from saelign.published.preset_run import (
    Reading,
    compute,
    fill,
    ladder_table,
    layer_of,
    prepare,
    read_streams,
)
from saelign.published.tables import (
    MODELS,
    PrintedValue,
    layers_at,
    printed_cells,
    printed_keywords,
    printed_values,
    value_range,
)
from saelign.results import open_run
from saelign.study import load_study, rng_of

D_SAE, K = 96, 36
SHORT = {"a": "pythia-70m", "b": "pythia-160m"}
LAYERS = {"a": [1, 3], "b": [3, 5]}


def save_sparsify(folder: Path, width: int, seed: int) -> None:
    """A TopK SAE in sparsify's layout: a tight frame and its negative, all but lossless."""
    rng = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(D_SAE // 2, width, generator=rng))[0]
    rows = torch.cat([frame, -frame])[torch.randperm(D_SAE, generator=rng)]
    rows[7] = 0  # never fires
    norms = rows.norm(dim=1, keepdim=True)
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(
        json.dumps({"activation": "topk", "num_latents": D_SAE, "k": K, "d_in": width})
    )
    decoder = torch.where(norms > 0, rows / norms, torch.ones(width) / width**0.5)
    decoder = decoder + 0.02 * torch.randn(D_SAE, width, generator=rng)  # no similarities tie
    tensors = {"encoder.weight": rows * norms, "W_dec": decoder}
    tensors |= {"encoder.bias": torch.zeros(D_SAE), "b_dec": torch.zeros(width)}
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "sae.safetensors")


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A finished run of stand-ins for Pythia: the layers of the originals, random weights."""
    root = tmp_path_factory.mktemp("stand-in")
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    follow = rng.dirichlet(np.full(26, 0.2), size=26)  # some letters go with others
    lines = []
    for length in rng.integers(20, 120, size=60):
        line = [int(rng.integers(26))]
        for _ in range(length):
            line.append(int(rng.choice(26, p=follow[line[-1]])))
        lines.append("".join(letters[line]) + rng.choice([".", "!", " a, b?"]))
    (root / "text.txt").write_text("\n\n".join(lines))
    study = {
        "saelign": 1,
        "name": "stand-in",
        "text": {
            "source": "text.txt",
            "split": "blank_line",
            "context_length": 48,
            "tokens": 2500,
        },
        "matching": ["one_to_one", "one_to_many", "many_to_one"],
        "measures": ["pc1", "svcca", "rsa", {"rsa": {"inner": "pearson"}}],
        "nulls": {"shuffle": 25, "rate_matched": 25},
        "filters": {"min_active_tokens": 200},
        "verdicts": False,
        "output": {"store": "store", "folder": "run"},
    }
    for number, (side, short) in enumerate(SHORT.items()):
        width, heads = (16, 2) if side == "a" else (24, 2)
        torch.manual_seed(number)
        config = GPTNeoXConfig(
            vocab_size=64, hidden_size=width, intermediate_size=32, num_attention_heads=heads,
            num_hidden_layers=MODELS[short][1], max_position_embeddings=64,
            initializer_range=0.3, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        folder = root / "EleutherAI" / short
        GPTNeoXForCausalLM(config).save_pretrained(folder)
        tiny_tokenizer("abcdefghijklmnopqrstuvwxyz .,!?\n").save_pretrained(folder)
        for layer in LAYERS[side]:
            save_sparsify(root / "saes" / short / f"layers.{layer}", width, 10 * number + layer)
        study[f"model_{side}"] = {
            "name": f"EleutherAI/{short}",
            "dtype": "float32",
            "layers": LAYERS[side],
            "saes": f"saes/{short}/layers.{{layer}}",
        }
    (root / "study.yaml").write_text(yaml.safe_dump(study))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saelign.pipeline.write_figures", lambda *_, **__: None)  # half of the time
        run_study(load_study(root / "study.yaml"))
    return open_run(root / "run")


@pytest.fixture(scope="module")
def preset(stand_in):
    return prepare(stand_in, with_concepts=False)


@pytest.fixture(scope="module")
def variants(preset):
    """The method as published, with one mistake mended each, and with all mended."""
    but_12 = Published.mending(set(MISTAKES) - {"12"})
    alone, rungs = ladder()
    hows = [Published(), *alone, Published(filter_undone=True), *rungs, but_12]
    hows = list({how.label: how for how in hows}.values())
    return compute(preset, hows)


def rows_of(variants, how, matching="one_to_one"):
    rows = variants[(variants["variant"] == how.label) & (variants["matching"] == matching)]
    return rows.set_index(["layer_a", "layer_b"])


# The printed numbers


def test_the_printed_tables_are_read_whole():
    cells = printed_cells()
    assert sum(cell.subspace == "all" for cell in cells) == 184
    assert sum(cell.subspace != "all" for cell in cells) == 303
    assert len(printed_values()) == 22
    first = cells[0]
    assert (first.model_a, first.layer_a, first.layer_b, first.n_pairs) == ("pythia-70m", 1, 0, 12)
    assert (first.pc1, first.rsa_null_mean) == (0.2024, 0.04812)
    assert {cell.model_a for cell in cells} | {cell.model_b for cell in cells} <= MODELS.keys()


def test_every_printed_p_is_a_count_of_as_many_shuffles_as_are_said():
    for cell in printed_cells():
        for p in (cell.pc1_p, cell.rsa_p):
            assert p * cell.n_shuffles == pytest.approx(
                round(p * cell.n_shuffles), abs=0.51e-3 * cell.n_shuffles
            )
            assert cell.least_p(p) >= 1 / (1 + cell.n_shuffles)
    none = next(c for c in printed_cells() if c.matching == "many_to_one" and c.pc1_p == 0)
    assert none.least_p(0.0) == 0.5  # one shuffle, which did not reach the score


@pytest.mark.parametrize(
    ("value", "note", "expected"),
    [
        ("0.73", "peak of the grid", (0.73, 0.73)),
        ("0.64-0.71", "", (0.64, 0.71)),
        ("<0.08", "edges", (None, 0.08)),
        (">0.60", "", (0.6, None)),
        ("0.35", "plus or minus 0.05", (0.3, 0.4)),
        ("0.70", "peak; middle 0.60 plus or minus 0.07", (0.7, 0.7)),
    ],
)
def test_a_printed_value_is_a_range(value, note, expected):
    assert value_range(value, note) == expected


def test_a_printed_place_stands_for_layers_of_the_run():
    layers = [2, 6, 10, 14, 17, 22]
    assert layers_at("mid", layers, "gemma-2-2b") == [10, 14, 17]
    assert layers_at("early", layers, "gemma-2-2b") == [2, 6]
    assert layers_at("edge", layers, "gemma-2-2b") == [2, 22]
    assert layers_at("10-19", layers, "gemma-2-2b") == [10, 14, 17]
    assert layers_at("14", layers, "gemma-2-2b") == [14]
    assert layers_at("any", layers, "gemma-2-2b") == layers
    assert layers_at("39", layers, "gemma-2-2b") == []


def test_printed_keywords_are_those_that_the_shipped_concepts_hold():
    found = printed_keywords()
    assert [len(concept.words) for concept in found] == [83, 35, 27, 46, 49, 12, 19, 29]
    for concept in found:
        shipped = load_concept(concept.name)
        assert set(shipped.by_source["Lan et al. (2024)"]) == set(concept.words)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("EleutherAI/pythia-70m", "pythia-70m"),
        ("/data/EleutherAI/pythia-160m/", "pythia-160m"),
        ("google/gemma-2b", "gemma-2b"),
        ("google/gemma-2-2b", "gemma-2-2b"),
        ("cache/models--google--gemma-2-9b/snapshots/0123abc", "gemma-2-9b"),
        ("EleutherAI/pythia-70m-deduped", None),
        ("google/gemma-2-2b-it", None),
        ("pythia-70m", None),
        ("A", None),
    ],
)
def test_models_are_recognised_by_their_name_on_the_hub(name, expected):
    assert recognised(name) == expected


def ours(rows):
    """A table as `ours_of` gives it, of (matching, subspace, layer_a, layer_b, pc1)."""
    keys = ["matching", "subspace", "layer_a", "layer_b"]
    return pd.DataFrame(rows, columns=[*keys, "pc1"]).set_index(keys)


def value(**changes):
    about = {
        "table": "fig", "model_a": "gemma-2-2b", "model_b": "gemma-2-9b", "matching": "one_to_one",
        "runs": 5, "place_a": "any", "place_b": "any", "subspace": "all", "quantity": "pc1_svcca",
        "value": "0.5", "low": 0.5, "high": 0.5, "note": "",
    }  # fmt: skip
    return PrintedValue(**(about | changes))


def test_a_printed_value_is_set_against_the_layer_pairs_that_it_stands_for():
    table = ours(
        [("one_to_one", "all", a, b, 0.1 * i) for i, (a, b) in enumerate(
            (a, b) for a in (2, 14, 22) for b in (2, 19, 39))]
    )  # fmt: skip
    (peak,) = value_rows(value(note="peak of the grid"), table)
    assert (peak["low"], peak["high"], peak["n_layer_pairs"]) == pytest.approx((0.8, 0.8, 9))
    (mean,) = value_rows(value(note="mean of the last column", place_b="39"), table)
    assert (mean["low"], mean["difference"]) == pytest.approx((0.5, 0.0))
    (cell,) = value_rows(value(place_a="14", place_b="19", note="peak; plateau 0.54-0.66"), table)
    assert (cell["high"], cell["difference"]) == pytest.approx((0.4, -0.1))
    (edge,) = value_rows(value(place_a="edge", place_b="edge", low=None, high=0.08), table)
    assert edge["n_layer_pairs"] == 8  # all but the middle one
    assert edge["difference"] == pytest.approx(0.72)
    assert list(value_rows(value(place_a="17"), table)) == []
    assert list(value_rows(value(matching="many_to_one"), table)) == []


def test_how_far_ours_lie_outside_is_told_with_its_sign():
    assert gap(value(low=0.2, high=0.4), 0.25, 0.35) == 0
    assert gap(value(low=0.2, high=0.4), 0.1, 0.35) == pytest.approx(-0.1)
    assert gap(value(low=0.2, high=0.4), 0.1, 0.7) == pytest.approx(0.3)
    assert gap(value(low=None, high=0.4), -3.0, 0.3) == 0


def test_subspaces_are_found_under_their_names_in_a_run():
    assert is_subspace("emotions+time (union)", "time+emotions")
    assert is_subspace("emotions x time (multi-token)", "emotionstime")
    assert not is_subspace("emotions x time (multi-token)", "timeemotions")
    assert is_subspace("country+people (union)", "countries+peopleroles")
    assert is_subspace("concepts", "monthnames")
    assert not is_subspace("concepts", "emotions+time")
    assert not is_subspace("all", "biology")


# A run beside them


def test_a_run_is_set_beside_the_printed_cells_of_its_layers(stand_in):
    found = beside_printed(stand_in)
    assert (found.pair.model_a, found.pair.is_swapped) == ("pythia-70m", False)
    assert len(found.cells) == 8  # two layers of each, two matchings
    row = found.cells[
        (found.cells["matching"] == "many_to_one") & (found.cells["layer_b"] == 5)
    ].iloc[1]
    printed = next(
        c for c in printed_cells()
        if (c.matching, c.layer_a, c.layer_b, c.subspace) == ("many_to_one", 3, 5, "all")
    )  # fmt: skip
    assert (row["layer_a"], row["printed_pc1"], row["our_matching"]) == (
        3,
        printed.pc1,
        "one_to_many",
    )
    scores = stand_in.scores
    at = (scores["layer_a"] == 3) & (scores["layer_b"] == 5) & (scores["matching"] == "one_to_many")
    of_pc1 = scores[at & (scores["measure"] == "pc1")].set_index("null")
    assert row["pc1"] == of_pc1["score"]["shuffle"]
    assert row["pc1_null_mean"] == of_pc1["null_mean"]["shuffle"]
    assert row["pc1_p"] == of_pc1["p"]["rate_matched"]
    assert row["pc1_difference"] == pytest.approx(row["pc1"] - printed.pc1)
    inner = scores[at & (scores["measure"] == "rsa(inner=pearson)")]
    assert row["rsa"] == inner["score"].iloc[0]
    assert row["rsa_cosine"] == scores[at & (scores["measure"] == "rsa")]["score"].iloc[0]
    assert any("output of block L - 1" in note for note in found.notes)


def copied(run, tmp_path, **changes):
    """The run in a folder of its own, its `run.json` changed."""
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    info = json.loads((folder / "run.json").read_text())
    for key, change in changes.items():
        change(info) if callable(change) else info.update({key: change})
    (folder / "run.json").write_text(json.dumps(info))
    return folder


def swap_names(info):
    models = info["models"]
    models["a"]["name"], models["b"]["name"] = models["b"]["name"], models["a"]["name"]


def test_sides_in_the_other_order_are_set_right(stand_in, tmp_path):
    run = open_run(copied(stand_in, tmp_path, models=swap_names))
    found = beside_printed(run)
    assert found.pair.is_swapped
    # Layers 3 and 5 are now of their A, 1 and 3 of their B.
    assert set(zip(found.cells["layer_a"], found.cells["layer_b"], strict=True)) == {
        (3, 1), (3, 3), (5, 1), (5, 3),
    }  # fmt: skip
    row = found.cells[found.cells["matching"] == "many_to_one"].iloc[0]
    assert (row["our_matching"], row["our_layer_a"], row["our_layer_b"]) == ("many_to_one", 1, 3)
    scores = run.scores
    at = (scores["matching"] == "many_to_one") & (scores["measure"] == "pc1")
    at &= (scores["layer_a"] == 1) & (scores["layer_b"] == 3) & (scores["null"] == "shuffle")
    assert row["pc1"] == scores[at]["score"].iloc[0]


def name_them(a, b):
    def change(info):
        info["models"]["a"]["name"], info["models"]["b"]["name"] = a, b

    return change


def test_what_cannot_be_set_beside_printed_numbers_is_refused(stand_in, tmp_path):
    other = copied(stand_in, tmp_path / "0", models=name_them("gpt2", "EleutherAI/pythia-70m"))
    told = r"compares gpt2 with EleutherAI/pythia-70m; published are EleutherAI/pythia-70m with "
    with pytest.raises(StudyError, match=told + r"EleutherAI/pythia-160m .* google/gemma-2-9b "):
        beside_printed(open_run(other))
    far = copied(stand_in, tmp_path / "1", models=name_them("google/gemma-2b", "google/gemma-2-2b"))
    with pytest.raises(
        StudyError, match=r"layers and matchings that were printed, .* gemma-2b 0, 6, "
    ):
        beside_printed(open_run(far))
    bare = copied(stand_in, tmp_path / "2")
    (bare / "study.yaml").unlink()
    for call in (beside_printed, prepare):
        with pytest.raises(MissingFileError, match=r"must hold study.yaml, .* run the study again"):
            call(open_run(bare))
    poor = copied(stand_in, tmp_path / "3")
    scores = open_run(poor).scores
    scores[scores["measure"] == "svcca"].to_parquet(poor / "scores.parquet")
    with pytest.raises(
        DegenerateError, match=r"holds svcca: add `- pc1` and `- rsa: \{inner: pearson\}`"
    ):
        beside_printed(open_run(poor))


def test_what_a_run_lacks_is_named(stand_in, tmp_path):
    folder = copied(stand_in, tmp_path)
    for name in ("scores", "cells"):
        table = pd.read_parquet(folder / f"{name}.parquet")
        table = table[table["matching"] == "one_to_one"]
        if name == "scores":
            table = table[table["measure"].isin(["pc1", "rsa"])]
        table.to_parquet(folder / f"{name}.parquet")
    found = beside_printed(open_run(folder))
    assert set(found.cells["matching"]) == {"one_to_one"}
    assert found.cells["svcca"].isna().all()
    told = " ".join(found.notes)
    assert "lacks the matching one_to_many" in told
    assert "add `- svcca`" in told
    assert "add `- rsa: {inner: pearson}`" in told


# The published method


def naive(run, layer_a, layer_b, *, mended=frozenset()):
    """The published method written out in NumPy loops, on the models themselves.

    Follows the words of docs/published.md, and shares no code with the package but for the text
    that was drawn and the generator of its shuffles.
    """
    from saelign.plan import check

    plan = check(load_study(run.folder.parent / "study.yaml"), out=run.folder)
    tokens, tokenizer = plan.tokens[0], plan.tokenizer
    ids = torch.from_numpy(tokens.input_ids.astype(np.int64))
    mask = torch.from_numpy(tokens.attended.astype(np.int64))
    sides = []
    for short, layer in (("pythia-70m", layer_a), ("pythia-160m", layer_b)):
        root = run.folder.parent
        model = AutoModelForCausalLM.from_pretrained(root / "EleutherAI" / short)
        with torch.no_grad():
            states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        index = layer + 1 if "4" in mended else layer
        x = states.hidden_states[index].double().numpy()
        x = x[tokens.kept] if "5" in mended else x.reshape(-1, x.shape[-1])
        w = load_file(root / "saes" / short / f"layers.{layer}" / "sae.safetensors")
        codes = np.maximum((x - w["b_dec"].numpy()) @ w["encoder.weight"].T.double().numpy(), 0)
        if "codes" in mended:
            for row in codes:
                row[np.argsort(-row, kind="stable")[K:]] = 0
        sides.append((codes, w["W_dec"].double().numpy()))
    (codes_a, rows_a), (codes_b, rows_b) = sides
    n = len(codes_a)

    z = []
    for codes in (codes_a, codes_b):
        columns = []
        for column in codes.T:
            sd = np.sqrt(((column - column.mean()) ** 2).sum() / (n - 1))
            if "z" in mended:
                columns.append((column - column.mean()) / sd if sd > 0 else 0 * column)
            else:
                columns.append((column - column.mean()) / (sd + 1e-8))
        z.append(np.array(columns))
    r = z[0] @ z[1].T / (n - 1 if "z" in mended else n)

    least = 200 if "15" in mended else 1 if "8" in mended else 0
    alive = [np.flatnonzero((codes > 0).sum(axis=0) >= least) for codes in (codes_a, codes_b)]
    best = {}
    for j in alive[1]:
        best[j] = max(alive[0], key=lambda i, j=j: (r[i, j], -i))

    where = tokens.kept.ravel() if "5" in mended else np.ones(tokens.input_ids.size, dtype=bool)
    spoken = [tokenizer.decode([i]) for i in tokens.input_ids.ravel()[where].tolist()]
    tops = []
    for codes in (codes_a, codes_b):
        order = [sorted(range(n), key=lambda t, c=c: (-c[t], t))[:5] for c in codes.T]
        tops.append([[spoken[t] for t in of] for of in order])
    dropped = {".", ",", "-", "!", "?", "\n", "\\n", "", " ", "<|endoftext|>", "<bos>", "|bos|"}

    found = {}
    for matching in ("one_to_one", "many_to_one"):
        kept, taken = [], set()
        for j, i in best.items():  # in the order of B's features
            in_a, in_b = set(tops[0][i]), set(tops[1][j])
            if in_a & dropped or in_b & dropped or not in_a & in_b:
                continue
            if matching == "one_to_one" and i in taken:
                continue
            taken.add(i)
            kept.append((i, j))
        kept = [(i, j) for i, j in kept if r[i, j] > 0.1]
        x, y = (np.array([rows[k[s]] for k in kept]) for s, rows in enumerate((rows_a, rows_b)))
        named = {"one_to_one": "one_to_one", "many_to_one": "one_to_many"}[matching]
        n_shuffles = {"one_to_one": 20, "many_to_one": 1}[matching]
        shuffles = draw_permutations(
            len(kept), max(2, n_shuffles), rng=rng_of(0, "shuffle", layer_a, layer_b, named)
        )[:n_shuffles]
        row = {
            "n_pairs": len(kept),
            "mean_corr_all": np.mean([r[i, j] for j, i in best.items()]),
            "mean_corr_kept": np.mean([r[i, j] for i, j in kept]),
        }
        for name, measure in (("pc1", naive_pc1), ("rsa", naive_rsa)):
            score = measure(x, y)
            chance = np.array([measure(x, y[s]) for s in shuffles])
            row[name], row[f"{name}_null_mean"] = score, chance.mean()
            row[f"{name}_p"] = (chance >= score).mean()
        found[matching] = row
    return {"r": r, "best": best, "tops": tops, "codes": (codes_a, codes_b), "rows": found}


def naive_pc1(x, y):
    first = [np.linalg.svd(m - m.mean(axis=0))[0][:, 0] for m in (x, y)]
    return abs(np.corrcoef(*first)[0, 1])


def naive_rsa(x, y):
    above = np.triu_indices(len(x), k=1)
    ranks = [rankdata(np.corrcoef(m)[above].round(12)) for m in (x, y)]  # equal rows tie
    return np.corrcoef(*ranks)[0, 1]


@pytest.mark.parametrize(
    "mended", [(), ("4",), ("5",), ("codes",), ("z",), ("8",), ("15",), ("4", "5", "codes")]
)
def test_the_engine_does_what_the_words_say(stand_in, preset, variants, mended):
    told = naive(stand_in, 3, 5, mended=frozenset(mended))
    how = Published.mending(mended)
    computed = variants if how.label in set(variants["variant"]) else compute(preset, [how])
    for matching, expected in told["rows"].items():
        row = rows_of(computed, how, matching).loc[3, 5]
        assert row["n_pairs"] == expected["n_pairs"] > 10
        for name, number in expected.items():
            assert row[name] == pytest.approx(number, abs=2e-5), (matching, name)


def test_every_step_on_the_way_is_that_of_the_words(stand_in, preset):
    told = naive(stand_in, 3, 5)
    reading = Reading.of(Published())
    layers = []
    for side, layer in zip(preset.sides, (3, 5), strict=True):
        streams = read_streams(preset, side, {layer - 1}, lambda *_: None)
        layers.append(layer_of(preset, side, layer, reading, streams, {}, {}))
    every = np.arange(D_SAE)
    for layer, codes, tops in zip(layers, told["codes"], told["tops"], strict=True):
        np.testing.assert_allclose(layer.features.codes.columns(every).numpy(), codes, atol=2e-5)
        np.testing.assert_array_equal(layer.features.n_active, (codes > 1e-7).sum(axis=0))
        same = [set(a) == set(b) for a, b in zip(layer.top_tokens, tops, strict=True)]
        assert all(same)
    correlations = Correlations(layers[0].features, layers[1].features, memory=2**30)
    (_, block), = correlations.blocks(every, every)  # fmt: skip
    np.testing.assert_allclose(block, told["r"], atol=1e-5)
    best, _ = correlations.best_of_b(every, every)
    np.testing.assert_array_equal(best, [told["best"][j] for j in every])
    assert best[7] == 0  # a dead feature goes with feature 0


def test_with_all_mistakes_mended_it_is_our_own_pipeline(stand_in, variants):
    but_12 = Published.mending(set(MISTAKES) - {"12"})
    cells = stand_in.cells.set_index(["matching", "layer_a", "layer_b"])
    scores = stand_in.scores.set_index(["null", "measure", "matching", "layer_a", "layer_b"])
    for theirs, matching in (("one_to_one", "one_to_one"), ("many_to_one", "one_to_many")):
        for at, row in rows_of(variants, ALL_MENDED, theirs).iterrows():
            cell = cells.loc[(matching, *at)]
            assert row["n_pairs"] == cell["n_kept"] > 10
            assert row["mean_corr_all"] == pytest.approx(cell["mean_correlation"], abs=1e-6)
            assert row["mean_corr_kept"] == pytest.approx(cell["mean_correlation_kept"], abs=1e-6)
            pearson = rows_of(variants, but_12, theirs).loc[at]
            for name, measure, found in (
                ("pc1", "pc1", row),
                ("rsa", "rsa", row),
                ("rsa", "rsa(inner=pearson)", pearson),
            ):
                score = scores.loc[("rate_matched", measure, matching, *at)]
                assert found[name] == pytest.approx(score["score"], abs=1e-9)
                assert found[f"{name}_null_mean"] == pytest.approx(score["null_mean"], abs=1e-9)
                assert found[f"{name}_p"] == score["p"]
            score = scores.loc[("rate_matched", "svcca", matching, *at)]
            assert row["svcca"] == pytest.approx(score["calibrated"], abs=1e-9)
            assert row["svcca_p"] == score["p"]


def test_each_mistake_moves_what_it_is_said_to_move(variants):
    start = rows_of(variants, Published())
    many = rows_of(variants, Published(), "many_to_one")

    def one(name, matching="one_to_one"):
        return rows_of(variants, Published.mending([name]), matching)

    def same(other, *names, of=start):
        for name in names:
            np.testing.assert_array_equal(other[name], of[name])

    pairs = ("n_pairs", "mean_corr_all", "mean_corr_kept")
    for name in ("1", "2", "3", "12", "13", "14"):  # of scores and chance, not of pairs
        same(one(name), *pairs)
    for name in ("4", "5", "codes"):
        assert (one(name)["mean_corr_all"] != start["mean_corr_all"]).all()
    assert (one("1")["svcca"] != start["svcca"]).all()
    same(one("1"), "pc1", "rsa")
    assert (one("3")["svcca_p"] >= 1 / 26).all()
    same(one("12"), "pc1")
    assert (one("12")["rsa"] != start["rsa"]).all()
    same(one("14"), "pc1", "rsa", "pc1_null_mean")  # no partner repeats
    same(one("14", "many_to_one"), "n_pairs", of=many)
    assert (one("14", "many_to_one")["rsa_null_mean"] != many["rsa_null_mean"]).any()
    assert (one("6")["n_features_a"] == D_SAE).all()
    assert (one("6")["n_pairs"] != start["n_pairs"]).any()
    same(one("6", "many_to_one"), *pairs, "pc1", of=many)
    # One dead feature of B, at correlation 0, was in the mean.
    np.testing.assert_allclose(
        one("8")["mean_corr_all"], start["mean_corr_all"] * D_SAE / (D_SAE - 1)
    )
    same(one("8"), "n_pairs", "pc1", "rsa")
    assert (one("15")["n_features_a"] < D_SAE).all()
    n_positions = 1 / (1 - (start["mean_corr_all"] / one("z")["mean_corr_all"]).iloc[0])
    assert n_positions == pytest.approx(round(n_positions), rel=1e-3)
    undone = rows_of(variants, Published(filter_undone=True))
    assert (undone["n_pairs"] > start["n_pairs"]).all()


def test_feeding_what_enters_the_block_is_reading_the_layer_before(preset):
    """The planted off-by-one: SAE L reads, as published, just what mended SAE L reads one below."""
    side = preset.sides[0]
    enters, leaves = Reading(True, True, True), Reading(False, True, True)
    streams = read_streams(preset, side, {2, 3}, lambda *_: None)
    published = layer_of(preset, side, 3, enters, streams, {}, {})
    moved = layer_of(preset, side, 3, leaves, {3: streams[2]}, {}, {})
    every = np.arange(D_SAE)
    assert torch.equal(published.features.codes.columns(every), moved.features.codes.columns(every))
    mended = layer_of(preset, side, 3, leaves, streams, {}, {})
    assert not torch.equal(
        published.features.codes.columns(every), mended.features.codes.columns(every)
    )


def test_little_memory_changes_no_number(preset):
    reading = Reading.of(Published())
    layers = []
    for side, layer in zip(preset.sides, (3, 5), strict=True):
        streams = read_streams(preset, side, {layer - 1}, lambda *_: None)
        layers.append(layer_of(preset, side, layer, reading, streams, {}, {}))
    ample, scant = (
        Correlations(layers[0].features, layers[1].features, memory=memory)
        for memory in (2**30, 2**12)
    )
    assert ample.fits
    assert not scant.fits
    assert scant.width < D_SAE
    every = np.arange(D_SAE)
    for one, other in zip(
        ample.best_of_b(every, every), scant.best_of_b(every, every), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-12)
    a, b = np.array([5, 0, D_SAE - 1, 5]), np.array([1, 60, 2, 9])
    np.testing.assert_allclose(ample.of_pairs(a, b), scant.of_pairs(a, b), atol=1e-12)
    lists = [c.strongest(every, every, n_best_a=3).partners_a for c in (ample, scant)]
    np.testing.assert_array_equal(*lists)


def test_of_equal_activations_the_earlier_position_comes_first():
    acts = np.array([[0.0, 2, 1, 2, 0, 0, 0], [0.0] * 7], dtype=np.float32)
    np.testing.assert_array_equal(top_positions(acts), [[1, 3, 2, 0, 4], [0, 1, 2, 3, 4]])


def test_a_keyword_counts_only_where_it_is_a_whole_word():
    (time,) = (concept for concept in printed_keywords() if concept.name == "Time")
    near = {0: (" Day", "a fine Day, they"), 1: (" day", " some days ago"), 2: ("the", "the day")}
    top = np.full((4, 5), 9)
    top[:3, 2] = [0, 1, 2]
    members = keyword_members([time], top, near)["Time"]
    np.testing.assert_array_equal(members, [True, False, False, False])


def test_cells_are_kept_and_only_those_that_lack_are_computed(preset, variants, monkeypatch):
    (preset.folder / "cells" / "as_published_a3_b5.json").unlink()
    (preset.folder / "cells" / "as_published_a1_b5.json").write_text('{"key": "of another run"}')
    asked = []

    def listening(preset, missing, progress):
        asked.extend(pair for _, pair in missing)
        fill(preset, missing, progress)

    monkeypatch.setattr("saelign.published.preset_run.fill", listening)
    again = compute(preset, [Published()])
    assert asked == [(1, 5), (3, 5)]
    before = variants[variants["variant"] == "as published"].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, before)
    assert not (preset.folder / "streams").exists()


def test_mistakes_are_named_and_those_without_effect_refused():
    with pytest.raises(UnknownNameError, match=r"unknown mistake '16'.*expected one of: 1, 12, "):
        Published.mending([16])
    with pytest.raises(StudyError, match=r"must change a number, 9 does not \(every null run"):
        Published.mending(["9"])
    assert Published.mending([4, "codes"]).label == "4, codes mended"
    alone, rungs = ladder()
    assert [how.label for how in rungs[:3]] == ["1 mended", "1-2 mended", "1-3 mended"]
    assert rungs[-1] == ALL_MENDED
    assert all(len(how.mended) == 1 for how in alone)


def test_what_is_no_longer_there_as_it_was_is_refused(stand_in, tmp_path):
    def other_text(info):
        info["text"][0]["sha256"] = "other"

    folder = copied(stand_in, tmp_path / "0", text=other_text)
    with pytest.raises(StudyError, match=r"the text must be that of the run, .* another folder"):
        prepare(open_run(folder))

    def other_sae(info):
        info["models"]["a"]["saes"]["3"]["sha256"] = "other"

    folder = copied(stand_in, tmp_path / "1", models=other_sae)
    with pytest.raises(StudyError, match=r"SAEs must be those of the run, the one of layer 3 of"):
        compute(prepare(open_run(folder)), [Published()])


def test_what_the_published_method_cannot_read_is_refused(stand_in, tmp_path):
    def with_study(folder, change):
        path = copied(stand_in, tmp_path / folder) / "study.yaml"
        content = yaml.safe_load(path.read_text())
        change(content)
        path.write_text(yaml.safe_dump(content))
        return open_run(path.parent)

    piped = with_study("0", lambda study: study["text"].update(source="-"))
    with pytest.raises(StudyError, match=r"was piped in: run the study on a file"):
        prepare(piped)
    root = stand_in.folder.parent / "saes" / "pythia-160m"
    for layer in LAYERS["b"]:
        shutil.copytree(root / f"layers.{layer}", tmp_path / f"layers.{layer}.mlp")
    of_mlp = {"site": "mlp_out", "saes": str(tmp_path / "layers.{layer}.mlp")}
    elsewhere = with_study("1", lambda study: study["model_b"].update(of_mlp))
    with pytest.raises(StudyError, match=r"residual stream, model B of .* is read at mlp_out"):
        prepare(elsewhere)
    tiny_tokenizer("zyxwvutsrqponmlkjihgfedcba .,!?\n").save_pretrained(tmp_path / "tokenizer")
    told = {"tokenizer": str(tmp_path / "tokenizer")}
    with pytest.raises(StudyError, match=r"have different tokenizers: choose a run whose models"):
        prepare(with_study("2", lambda study: study["model_b"].update(told)))


def test_the_ladder_counts_cells_and_means_over_them(variants):
    table = ladder_table(variants).set_index(["variant", "matching"])
    rows = rows_of(variants, Published())
    row = table.loc["as published", "one_to_one"]
    assert (row["n_cells"], row["pc1"]) == (4, pytest.approx(rows["pc1"].mean()))
    assert row["svcca_below"] == (rows["svcca_p"] < 0.05).sum()


# The command


def test_the_command_prints_the_comparison(stand_in, capsys, tmp_path):
    assert main(["published", str(stand_in.folder), "--csv", str(tmp_path / "cells.csv")]) == 0
    out = capsys.readouterr().out
    assert "pythia-70m against pythia-160m" in out
    assert re.search(r"^ *3, 5 +\.\d{3} ", out, re.MULTILINE)
    assert "\N{HORIZONTAL ELLIPSIS}" not in out  # a pipe has no width that tables must fit
    assert len(pd.read_csv(tmp_path / "cells.csv")) == 8
    assert main(["published", str(stand_in.folder), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert len(content["cells"]) == 8
    assert content["cells"][0]["preset_svcca" if content["preset"] else "pc1"] is not None


def test_the_command_computes_the_published_method(stand_in, capsys, variants):
    assert main(["published", str(stand_in.folder), "--mend", "4", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["preset"] == "4 mended"
    keys = ("matching", "layer_a", "layer_b")
    (cell,) = (c for c in content["cells"] if [c[k] for k in keys] == ["one_to_one", 3, 5])
    expected = rows_of(variants, Published.mending([4])).loc[3, 5]
    assert cell["preset_svcca"] == pytest.approx(expected["pc1"])
    assert cell["preset_svcca_difference"] == pytest.approx(expected["pc1"] - cell["printed_pc1"])
    assert main(["published", str(stand_in.folder), "--preset"]) == 0
    assert "models and text: as published" in capsys.readouterr().out


@pytest.mark.usefixtures("variants")
def test_the_command_shows_the_ladder_of_any_run(stand_in, capsys, tmp_path):
    folder = copied(stand_in, tmp_path, models=name_them("EleutherAI/pythia-70m", "C"))
    shutil.rmtree(folder / "published")
    assert pair_of(open_run(folder)) is None
    with pytest.raises(SystemExit):
        main(["published", str(folder), "--cell", "1"])
    capsys.readouterr()
    assert main(["published", str(stand_in.folder), "--ladder", "--cell", "3", "5"]) == 0
    out = capsys.readouterr().out
    assert "means over 4 layer pairs, and layers 3, 5 alone" in out
    assert len(re.findall(r"^(?:nothing|1|z) ", out, re.MULTILINE)) >= 8
    assert main(["published", str(stand_in.folder), "--ladder", "--cell", "2", "5"]) == 1
    assert "--cell must be a layer pair of the run, got 2 5" in capsys.readouterr().err


def test_the_method_is_computed_on_a_run_that_nothing_was_printed_of(stand_in, capsys, tmp_path):
    folder = copied(stand_in, tmp_path, models=name_them("C", "D"))
    assert main(["published", str(folder)]) == 1
    assert "or give --preset" in capsys.readouterr().err
    assert main(["published", str(folder), "--preset", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["printed"], len(content["cells"])) == (0, 8)
    assert not any(key.startswith("printed") for key in content["cells"][0])
    assert all(cell["preset_svcca"] is not None for cell in content["cells"])
    assert main(["published", str(folder), "--preset"]) == 0
    assert "print" not in capsys.readouterr().out.split("All features")[1].splitlines()[1]
