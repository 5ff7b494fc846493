"""The report's page: its blocks hold what the run's tables hold, and nothing in it can run."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file
from tests.test_report import ALL_CONTROLS, made_run
from tests.test_subspace_report import tables as subspace_tables

from saelign.cli import main
from saelign.report import write_report
from saelign.report.blocks import coded, fixed, packed, table_block, unpacked
from saelign.report.content import ACTS, content_of
from saelign.report.html import blocks_in, hash_of, open_any, page_of
from saelign.report.references import MEASURES, bibtex, bibtex_entries, methods_of
from saelign.report.telling import verdict_of, warnings_told
from saelign.report_cli import size_in_bytes
from saelign.results import (
    Run,
    contexts_name,
    decoder_tokens_name,
    details_name,
    features_name,
    open_run,
    pairs_name,
    write_info,
    write_table,
)

HOSTILE = (
    "</script><script>window.hit=1</script>",
    '"><img src=x onerror="window.hit=1">',
    "'; window.hit=1; //",
    "<!-- <script>",
    "\u202eright to left \u0645\u0631\u062d\u0628\u0627",
    "\u2028line\u2029separators\x00\x07",
    "&lt;b&gt; &amp; {{7*7}} ${window.hit=1}",
    "=cmd|' /C calc'!A0",
)
N_FEATURES, N_PAIRS = 200, 150
SIDES = {
    "untrained": ("a_untrained", "b_untrained"),
    "seed_a": ("a", "a_seed"),
    "seed_b": ("b", "b_seed"),
}


def whole_run(
    folder: Path, *, tokens: tuple[str, ...] = (" cat", " dog", "."), **asked: Any
) -> Run:
    """A run made by hand with everything that a page shows."""
    run = made_run(folder, judged=True, **asked)
    rng = np.random.default_rng(1)
    cells = run.cells
    counts = {f"n_features_{s}": N_FEATURES for s in "ab"} | {f"n_unpaired_{s}": 5 for s in "ab"}
    dropped = {"n_non_concept": 20, "n_no_shared_token": 10, "n_low_correlation": 5}
    write_table(cells.assign(**counts, **dropped), folder / "cells.parquet")
    sides: dict[tuple[str, int, int], None] = {}
    for row in cells.to_dict("records"):
        where = {k: row[k] for k in ("control", "metric", "matching", "run")}
        a, b = row["layer_a"], row["layer_b"]
        write_table(drawn_pairs(rng), folder / pairs_name(a, b, **where))
        path = folder / details_name(a, b, **where)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(drawn_details(rng), path)
        for side, layer in zip(SIDES.get(row["control"], ("a", "b")), (a, b), strict=True):
            sides[side, layer, row["run"]] = None
    layers = []
    for side, layer, index in sides:
        features, contexts = drawn_features(rng, tokens)
        write_table(features, folder / features_name(side, layer, index))
        write_table(contexts, folder / contexts_name(side, layer, index))
        told = {"run": index, "model": side, "layer": layer, "n_features": N_FEATURES, "n_dead": 30}
        layers.append({**told, "n_rare": 3, "l0": 12.5, "explained_variance": 0.8})
    write_table(pd.DataFrame(layers), folder / "layers.parquet")
    spoken = {"feature": range(N_FEATURES), "tokens": [list(tokens[:2])] * N_FEATURES}
    first = asked.get("layers_a", (0, 1))[0]
    table = pd.DataFrame({**spoken, "logits": [[2.0, 1.0]] * N_FEATURES})
    write_table(table, folder / decoder_tokens_name("a", first))
    return open_run(folder)


def drawn_pairs(rng: np.random.Generator) -> pd.DataFrame:
    """Pairs of a cell, two in three of them kept."""
    correlation = rng.uniform(-0.1, 1, N_PAIRS)
    reason = rng.choice(["", "", "non_concept"], N_PAIRS)
    return pd.DataFrame(
        {
            "feature_a": rng.permutation(N_FEATURES)[:N_PAIRS],
            "feature_b": rng.permutation(N_FEATURES)[:N_PAIRS],
            "correlation": correlation,
            "within_token": np.where(rng.random(N_PAIRS) < 0.1, np.nan, correlation / 2),
            "margin": rng.uniform(0, 0.5, N_PAIRS),
            "mutual": rng.random(N_PAIRS) < 0.6,
            "kept": reason == "",
            "reason": reason,
        }
    )


def drawn_details(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What stands behind a cell."""
    n = 12
    cosine = rng.uniform(-1, 1, n * (n - 1) // 2)
    return {
        "canonical": np.linspace(0.9, 0.1, 8).astype(np.float32),
        "pairs": np.arange(2 * n).reshape(2, n).astype(np.int32),
        "cosine_a": cosine.astype(np.float16),
        "cosine_b": (cosine / 2).astype(np.float16),
    }


def drawn_features(
    rng: np.random.Generator, tokens: tuple[str, ...]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Features of a layer, the last ten dead; and the top contexts of the others."""
    n_active = np.where(np.arange(N_FEATURES) < N_FEATURES - 10, 40, 0)
    alive = np.flatnonzero(n_active)
    contexts = pd.DataFrame(
        [
            {
                "feature": f, "rank": k, "document": 7 + k, "context": k, "position": 9, "at": 1,
                "tokens": [tokens[(f + k + j) % len(tokens)] for j in range(4)],
                "activations": np.array([0, 8 - k, 2, np.nan], dtype=np.float32),
            }
            for f in alive for k in range(2)
        ]
    )  # fmt: skip
    top = [[tokens[(f + 1) % len(tokens)]] if f in alive else [] for f in range(N_FEATURES)]
    features = pd.DataFrame(
        {
            "feature": np.arange(N_FEATURES),
            "n_active": n_active,
            "n_documents": n_active // 4,
            "firing_rate": n_active / 2000,
            "max_activation": np.where(n_active > 0, 8.0, np.nan),
            "top_tokens": top,
            "top_activations": [[8.0] * len(t) for t in top],
            "top_contexts": [[f"before«{t}»after" for t in of] for of in top],
            "n_non_concept": np.zeros(N_FEATURES, dtype=int),
            "reason": np.where(n_active == 0, "dead", ""),
            "decoder_x": rng.normal(0, 0.1, N_FEATURES),
            "decoder_y": rng.normal(0, 0.1, N_FEATURES),
            "concepts": [["Animals"] if f % 7 == 0 else [] for f in range(N_FEATURES)],
        }
    )
    return features, contexts


def run_with_concepts(folder: Path) -> Run:
    """A run that looked into subspaces, their numbers known."""
    run = whole_run(
        folder, layers_a=(1, 3), layers_b=(1, 4), controls=("untrained",),
        matchings=("one_to_one",), concepts={"Emotions": {}, "Time": {}},
    )  # fmt: skip
    for name, table in subspace_tables().items():
        if name == "subspace_features":
            table = table.assign(n_features=table["n_by_top_words"])
        write_table(table, folder / f"{name}.parquet")
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    return whole_run(folder, controls=ALL_CONTROLS[:3], matchings=("one_to_one",))


@pytest.fixture(scope="module")
def blocks(run: Run) -> dict[str, bytes]:
    return blocks_in(write_report(run).read_text(encoding="utf-8"))


def read(blocks: dict[str, bytes], name: str) -> dict[str, Any]:
    return unpacked(blocks[name])[1]


# Blocks ------------------------------------------------------------------------------------------


def test_a_block_gives_back_what_was_packed() -> None:
    table = pd.DataFrame(
        {
            "few": [3, 0, 255], "many": [70_000, 1, 2], "below": [-5, 0, 5],
            "yes": [True, False, True],
            "score": [0.25, np.nan, -1.5], "name": ["a", "b", "a"], "none": ["x", None, "y"],
            "maybe": pd.array([1, None, 3], dtype="Int64"),
        }
    )  # fmt: skip
    about, columns = unpacked(table_block(table))
    assert about == {"n": 3}
    for name in ("few", "many", "below", "yes"):
        assert columns[name].tolist() == table[name].tolist()
    np.testing.assert_array_equal(columns["score"], table["score"])
    assert columns["name"] == ["a", "b", "a"]
    assert columns["none"] == ["x", None, "y"]
    np.testing.assert_array_equal(columns["maybe"], [1, np.nan, 3])


def test_correlations_lose_no_more_than_half_a_step() -> None:
    values = np.array([-1.0, -0.33333, 0.0, 0.12345, 1.0, np.nan])
    _, columns = unpacked(packed({"r": fixed(values, 1e-4)}))
    np.testing.assert_allclose(columns["r"], values, atol=0.5001e-4)


def test_texts_of_any_kind_come_back_whole() -> None:
    texts = [*HOSTILE, "x" * 10_000, "", "\ud800 alone"]
    _, columns = unpacked(packed({"t": coded(texts)}))
    assert columns["t"][:-1] == texts[:-1]
    assert columns["t"][-1] == "? alone"  # half a surrogate pair is no character


def test_an_empty_table_is_a_block_too() -> None:
    about, columns = unpacked(table_block(pd.DataFrame({"a": pd.Series(dtype=float)})))
    assert about["n"] == 0
    assert len(columns["a"]) == 0


# What the page holds -----------------------------------------------------------------------------


def test_the_tables_stand_whole_in_the_page(run: Run, blocks: dict[str, bytes]) -> None:
    scores, cells = read(blocks, "scores"), read(blocks, "cells")
    for name in ("control", "measure", "null"):
        assert scores[name] == run.scores[name].tolist()
    for name in ("score", "p", "q", "calibrated"):
        np.testing.assert_allclose(scores[name], run.scores[name], rtol=1e-6)
    assert cells["n_kept"].tolist() == run.cells["n_kept"].tolist()


def test_every_cell_has_its_pairs_strongest_first(run: Run, blocks: dict[str, bytes]) -> None:
    named = {name for name in blocks if name.startswith("pairs/")}
    assert len(named) == len(run.cells)
    found = read(blocks, "pairs/trained/0/pearson/one_to_one/1/10")
    pairs = run.pairs(1, 10).sort_values("correlation", ascending=False)
    assert found["a"].tolist() == pairs["feature_a"].tolist()
    assert found["b"].tolist() == pairs["feature_b"].tolist()
    assert found["reason"] == pairs["reason"].tolist()
    assert found["mutual"].astype(bool).tolist() == pairs["mutual"].tolist()
    for name in ("correlation", "within_token", "margin"):
        np.testing.assert_allclose(found[name], pairs[name], atol=0.5001e-4)


def test_the_distribution_of_a_cell_counts_its_pairs(run: Run, blocks: dict[str, bytes]) -> None:
    details = read(blocks, "details/trained/0/pearson/one_to_one/1/10")
    pairs = run.pairs(1, 10)
    assert details["all"].sum() == len(pairs)
    assert details["kept"].sum() == pairs["kept"].sum()
    above = pairs["correlation"] >= 0.5
    assert details["all"][75:].sum() == above.sum()
    np.testing.assert_allclose(details["canonical"], np.linspace(0.9, 0.1, 8), atol=1e-4)


def test_contexts_hold_tokens_and_activations_as_shares_of_the_largest(
    run: Run, blocks: dict[str, bytes]
) -> None:
    held = read(blocks, "contexts/a/0/0")
    table = pd.read_parquet(run.folder / contexts_name("a", 0, 0))
    assert held["token"] == [t for tokens in table["tokens"] for t in tokens]
    assert held["count"].tolist() == [2] * (N_FEATURES - 10) + [0] * 10
    assert held["length"].tolist() == [4] * len(table)
    # A feature's contexts: 8 and 7 at the top, 2 beside it, then a token that was not read.
    quarter, less = round(ACTS / 4), round(ACTS * 7 / 8)
    assert held["activation"][:8].tolist() == [0, ACTS, quarter, 255, 0, less, quarter, 255]


def test_features_carry_rates_concepts_verdicts_and_what_they_speak_for(
    run: Run, blocks: dict[str, bytes]
) -> None:
    about, held = unpacked(blocks["features/a/0/0"])
    assert about["n_tokens"] == 2000
    assert held["n_active"].tolist() == run.features("a", 0)["n_active"].tolist()
    assert [bool(c) for c in held["concepts"]] == [f % 7 == 0 for f in range(N_FEATURES)]
    own = run.verdicts.query("control == 'trained' and model == 'a' and layer == 0")
    own = own[own["against"] == "other"]
    assert held["verdict"] == own["verdict"].tolist()
    assert held["decoder_token"][:2] == [" cat", " dog"]
    assert "decoder_token" not in read(blocks, "features/b/0/0")


def test_subspaces_stand_in_the_page_where_there_are_any(
    tmp_path: Path, blocks: dict[str, bytes]
) -> None:
    content = content_of(run_with_concepts(tmp_path), room=2**30)
    held = read(content.blocks, "subspace_scores")
    table = subspace_tables()["subspace_scores"]
    assert held["subspace"] == table["subspace"].tolist()
    np.testing.assert_allclose(held["score"], table["score"], rtol=1e-6)
    assert held["combined"] == table["combined"].tolist()
    assert not any(name.startswith("subspace") for name in blocks)


def test_a_page_without_room_tells_which_cells_it_left_out(run: Run) -> None:
    whole = content_of(run, room=2**30)
    some = content_of(run, room=whole.n_bytes // 2)
    assert 0 < some.n_bytes < whole.n_bytes
    assert some.left_out
    assert not set(some.left_out) & set(some.blocks)
    core = unpacked(some.blocks["core"])[0]
    assert core["left_out"] == len(some.left_out)
    # The study's own comparison comes before every control.
    first = next(name for name in some.blocks if name.startswith("pairs/"))
    assert first.startswith("pairs/trained/")


# What is said ------------------------------------------------------------------------------------


def core_of(run: Run) -> dict[str, Any]:
    return unpacked(content_of(run, room=2**30).blocks["core"])[0]


def test_the_verdict_is_three_sentences_of_the_runs_numbers(run: Run) -> None:
    tables = {name: getattr(run, name) for name in ("cells", "scores", "layers")}
    features, spaces, controls = verdict_of(run.info, tables)
    own = run.cells[run.cells["control"] == "trained"]
    peak = own.loc[own["held_out_correlation"].idxmax()]
    assert f"layer {peak['layer_a']} of A and {peak['layer_b']} of B" in features
    assert f"{peak['held_out_correlation']:.3f}".lstrip("0") in features
    scores = run.scores.query(
        "control == 'trained' and measure == 'rsa' and null == 'rate_matched'"
    )
    best = scores.loc[scores["calibrated"].idxmax()]
    assert f"A {best['layer_a']}, B {best['layer_b']}: rsa is" in spaces
    assert f"{(scores['q'] < 0.05).sum()} of {len(scores)} layer pairs beat" in spaces
    assert "untrained twins" in controls
    assert "A with itself through other SAEs" in controls


def test_without_controls_the_verdict_says_what_cannot_be_told(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    tables = {"cells": run.cells, "scores": run.scores, "layers": None}
    assert "No control was run" in verdict_of(run.info, tables)[2]


def test_dead_features_low_coverage_and_an_unstable_component_are_warned_of(tmp_path: Path) -> None:
    text = [{"n_tokens": 2000, "coverage": {"characters": 0.6}}]
    run = whole_run(tmp_path, measures=("pc1",), text=text, warnings=["as the run said"])
    scores = run.scores.assign(score_half_1=0.9, score_half_2=0.2)
    tables = {"cells": run.cells, "scores": scores, "layers": run.layers}
    found = warnings_told(run.info, tables)
    assert found[0] == "as the run said"
    assert any("Low coverage" in w and "60%" in w for w in found)
    assert any("Dead features" in w and "15% never fire" in w for w in found)
    assert any("pc1 differs by more than 0.2" in w and ".900 and .200" in w for w in found)


def test_every_measure_has_a_source_and_every_source_an_entry() -> None:
    from saelign.similarity import MEASURES as COMPUTED

    assert set(MEASURES) == set(COMPUTED)
    keys = {key for _, _, keys in MEASURES.values() for key in keys}
    assert keys <= set(bibtex_entries())
    info = {"versions": {"saelign": "9.9"}, "concepts": {"x": 1}}
    told = methods_of(["rsa(inner=pearson)", "cka"], ["shuffle"], info)
    assert told[0]["what"].endswith("(inner=pearson)")
    text = bibtex(["rsa", "cka"], ["shuffle"], info)
    assert "version = {9.9}" in text
    assert {"kriegeskorte2008", "kornblith2019", "son2025"} <= set(re.findall(r"@\w+\{(\w+)", text))
    assert "raghu2017" not in text


# The page itself ---------------------------------------------------------------------------------


def test_nothing_of_the_run_can_end_a_script_or_add_markup(tmp_path: Path) -> None:
    run = whole_run(
        tmp_path, tokens=HOSTILE, names=(HOSTILE[0], HOSTILE[1]), name=HOSTILE[0],
        warnings=list(HOSTILE), matchings=("one_to_one",),
    )  # fmt: skip
    page = write_report(run).read_text(encoding="utf-8")
    data = page.count('<script type="application/octet-stream;base64"')
    assert page.count("<script") == data + 1
    assert page.count("</script>") == data + 1
    assert "window.hit" not in page.replace("&lt;script&gt;window.hit=1", "")
    assert "onerror" not in page
    core = unpacked(blocks_in(page)["core"])[0]
    assert core["models"]["a"]["name"] == HOSTILE[0]


def test_the_policy_allows_this_script_and_style_and_nothing_else() -> None:
    page = page_of("name", {"core": packed({})})
    found = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert found is not None
    policy = found[1].replace("&#x27;", "'")
    script = re.search(r"<script>(.*)</script>\n</body>", page, flags=re.S)
    style = re.search(r"<style>(.*?)</style>", page, flags=re.S)
    assert script is not None
    assert style is not None
    assert f"script-src {hash_of(script[1])};" in policy
    assert f"style-src {hash_of(style[1])};" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


def test_the_page_names_no_address_that_a_browser_would_fetch(run: Run) -> None:
    page = write_report(run).read_text(encoding="utf-8")
    markup = re.sub(r"<script.*?</script>|<style>.*?</style>", "", page, flags=re.S)
    assert re.findall(r'(?:src|href)="([^"]*)"', markup) == ["data:,"]
    style = re.search(r"<style>(.*?)</style>", page, flags=re.S)
    assert style is not None
    assert not re.search(r"url\(|@import", style[1])


# The command, and folders that are not whole -----------------------------------------------------


def test_the_command_writes_the_page_and_says_where_and_how_large(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sent.html"
    assert main(["report", str(run.folder), "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"report": str(out), "bytes": out.stat().st_size}
    assert main(["report", str(run.folder)]) == 0
    assert (run.folder / "report.html").is_file()
    assert re.search(r"report: .*report\.html \(\d\.\d MiB\)\n", capsys.readouterr().out)


def test_open_shows_the_page_in_the_browser(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", shown.append)
    assert main(["report", str(run.folder), "--open"]) == 0
    assert shown == [(run.folder / "report.html").resolve().as_uri()]


@pytest.mark.parametrize(("text", "n"), [("16MiB", 2**24), ("500 kB", 512000), ("1.5m", 3 * 2**19)])
def test_a_size_is_read_with_its_unit(text: str, n: int) -> None:
    assert size_in_bytes(text) == n


@pytest.mark.parametrize("text", ["", "large", "-3M", "0", "3 TB"])
def test_a_size_that_is_none_is_refused(
    text: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run.folder), f"--size={text}"]) == 1
    told = f"a page's size must be a number of bytes or such as 16MiB, got {text!r}"
    assert told in capsys.readouterr().err


def test_an_unfinished_run_has_a_page_that_says_so(tmp_path: Path) -> None:
    run = whole_run(tmp_path, matchings=("one_to_one",))
    for name in ("scores", "summary", "cells", "layers", "agreement", "verdicts"):
        (tmp_path / f"{name}.parquet").unlink()
    info = {k: v for k, v in run.info.items() if k not in ("format", "models")}
    write_info({**info, "complete": False}, tmp_path)
    core = core_of(open_any(tmp_path))
    assert core["verdict"] == ["The run holds no scores: it was not finished. Start it again."]
    assert core["warnings"][0].startswith("The run was not finished")
    assert {m["what"] for m in core["missing"]} >= {"the table scores", "the table cells"}
    assert "pairs/trained/0/pearson/one_to_one/0/10" in core["blocks"]  # what there is is shown


def test_damaged_files_are_told_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = whole_run(tmp_path, matchings=("one_to_one",))
    where = {"control": "trained", "metric": "pearson", "matching": "one_to_one", "run": 0}
    for name in (
        "summary.parquet",
        pairs_name(0, 1, **where),
        details_name(0, 0, **where),
        contexts_name("b", 10, 0),
        features_name("a", 1, 0),
    ):
        (tmp_path / name).write_bytes(b"damaged")
    content = content_of(run, room=2**30)
    missing = {m["what"]: m["why"] for m in content.missing}
    assert "the table summary" in missing
    key = "trained/0/pearson/one_to_one"
    assert {f"pairs/{key}/0/1", f"details/{key}/0/0", "contexts/b/0/10", "features/a/0/1"} <= set(
        missing
    )
    assert f"pairs/{key}/1/1" in content.blocks


def test_a_run_of_an_older_version_says_what_it_did_not_keep(tmp_path: Path) -> None:
    run = whole_run(tmp_path, matchings=("one_to_one",))
    for folder in ("details", "contexts", "decoder_tokens"):
        for path in sorted((tmp_path / folder).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (tmp_path / folder).rmdir()
    content = content_of(run, room=2**30)
    assert any("similarity matrices" in m["what"] for m in content.missing)
    about, held = unpacked(content.blocks["contexts/a/0/0"])
    assert about["told"] == "top token"
    assert held["token"][:3] == ["before", " dog", "after"]


@pytest.mark.parametrize("version", [1, 99])
def test_a_folder_of_another_format_is_refused(
    version: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_run(tmp_path)
    info = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**info, "format": version}))
    assert main(["report", str(tmp_path)]) == 1
    assert f"has {version}" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_a_folder_without_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 1
    assert "give a folder that" in capsys.readouterr().err


def test_one_layer_and_no_pairs_at_all_make_a_page(tmp_path: Path) -> None:
    run = whole_run(tmp_path, layers_a=(3,), layers_b=(3,), matchings=("one_to_one",))
    scores = run.scores.assign(score=np.nan, calibrated=np.nan, p=np.nan, q=np.nan)
    write_table(scores, tmp_path / "scores.parquet")
    core = core_of(open_run(tmp_path))
    assert "No layer pair kept enough pairs for rsa" in core["verdict"][1]


def test_blocks_are_letters_that_html_leaves_alone(run: Run) -> None:
    page = write_report(run).read_text(encoding="utf-8")
    for text in re.findall(r'data-block="[^"]*">(.*?)</script>', page, flags=re.S):
        assert base64.b64decode(text, validate=True)
