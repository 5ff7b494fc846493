"""The benchmark at tiny sizes: what it writes, and that it fails where results differ."""

import csv
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from benchmarks import __main__ as command
from benchmarks import correlating, harness, matching, measures, published
from benchmarks.harness import (
    COLUMNS,
    Fit,
    Row,
    activations,
    decoder_rows,
    in_fresh_process,
    interleaved,
)

import saelign


@pytest.fixture(autouse=True, scope="module")
def no_repeats():
    """Times are not looked at."""
    repeats, harness.REPEATS = harness.REPEATS, 1
    yield
    harness.REPEATS = repeats


def table(folder):
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    assert command.main(["--quick", "--only", "a,b,c,d", "--out", str(folder)]) == 0
    return folder


def test_the_table_has_its_columns_and_a_line_for_every_opponent(written):
    rows = table(written)
    assert tuple(rows[0]) == COLUMNS
    assert [row["part"] for row in rows] == ["a", "a", "b", "c", "c", "d"]
    for row in rows:
        assert float(row["ours_s"]) > 0
        assert float(row["opponent_s"]) > 0
        assert float(row["limit_s"]) > 0
        assert float(row["ours_peak_gib"]) >= 0
        assert float(row["max_difference"]) <= float(row["tolerance"])
        assert float(row["ratio"]) == pytest.approx(
            float(row["opponent_s"]) / float(row["ours_s"]), rel=1e-3
        )
    assert rows[0]["how"].startswith(
        "extrapolated from tokens = 1,000, 2,000, 4,000; a straight line"
    )


def test_the_table_for_people_has_the_machine_and_the_versions(written):
    text = (written / "results.md").read_text()
    assert text.startswith("# Measured in a quick run")
    assert text.count("\n| ") == 2 + 6
    assert f"numpy {np.__version__}" in text
    assert "Gflop/s" in text


def test_a_second_run_keeps_the_parts_that_it_leaves_out(written, tmp_path):
    (tmp_path / "results.csv").write_text((written / "results.csv").read_text())
    assert command.main(["--quick", "--only", "b", "--out", str(tmp_path)]) == 0
    assert [row["part"] for row in table(tmp_path)] == ["a", "a", "b", "c", "c", "d"]


def planted(function):
    """The same with a result that is off by 1e-2."""

    def off(*arguments):
        result = function(*arguments)
        if isinstance(result, tuple):
            return result[0], result[1] + 1e-2
        return result + 1e-2

    return off


@pytest.mark.parametrize(
    ("part", "file", "name"),
    [
        ("a", published, "best_by_sparse_product"),
        ("b", published, "correlations_of_rows"),
        ("d", published, "largest_total"),
    ],
)
def test_the_benchmark_fails_where_results_differ(part, file, name, tmp_path, monkeypatch, capsys):
    correlating.measured.cache_clear()
    monkeypatch.setattr(file, name, planted(getattr(file, name)))
    assert command.main(["--quick", "--only", part, "--out", str(tmp_path)]) == 1
    correlating.measured.cache_clear()
    assert f"{part}: " in capsys.readouterr().err
    assert any(float(row["max_difference"]) > float(row["tolerance"]) for row in table(tmp_path))


def test_pairs_taken_in_another_order_are_a_difference():
    lists = matching.Lists.of(activations(n_features=60, n_tokens=2000, l0=8.0))
    pairs = lists.greedy()
    similarity = lists.table()
    expected = published.greedy_by_sorting(similarity)
    assert matching.compared(lists, similarity, expected, pairs) == (0, 0.0)
    swapped = expected.copy()
    swapped[:2, 1] = expected[1::-1, 1]
    n_differing, difference = matching.compared(lists, similarity, swapped, pairs)
    assert n_differing == 2
    assert difference > 1e-3
    assert matching.compared(lists, similarity, expected[:-1], pairs) == (1, math.inf)


def test_another_partner_of_less_worth_is_a_difference():
    data = activations(n_features=60, n_tokens=2000, l0=8.0)
    partners, values = published.best_by_sparse_product(data.a, data.b)
    assert correlating.difference(data.a, data.b, (partners, values)) < 1e-5
    others = (partners + 1) % 60
    assert correlating.difference(data.a, data.b, (others, values)) > 0.1


@pytest.mark.parametrize("task", ["pc1", "variance", "rsa", "cka"])
def test_measures_are_compared_with_their_opponents(task):
    def off(x, y):
        return measures.EVALUATIONS[task](x, y) + 1e-3

    of = measures.TASKS[task][-1]
    assert measures.difference(of, measures.EVALUATIONS[task], 200, 100, quick=True) < 1e-4
    assert measures.difference(of, off, 200, 100, quick=True) == pytest.approx(1e-3, rel=0.1)


def test_scikit_learn_and_rsatoolbox_give_the_same():
    x, y = decoder_rows(80, 12, 16)
    svcca = saelign.score(
        x, y, measure="svcca", n_components=3, n_permutations=2, rng=np.random.default_rng(0)
    )
    assert published.svcca_by_scikit_learn(x, y, 3) == pytest.approx(svcca.score, abs=1e-6)
    assert published.rsa_by_rsatoolbox(x, y) == pytest.approx(published.rsa_as_published(x, y))


def test_the_published_svcca_keeps_one_component():
    x, y = decoder_rows(200, 12, 16)
    u, w = published.bases_of(x, y, 1)
    assert published.svcca_as_published(x, y) == pytest.approx(abs(float((u.T @ w).item())))


def test_half_of_the_firings_are_planted_and_rates_are_log_normal():
    data = activations(n_features=300, n_tokens=5000, l0=20.0)
    assert data.a.nnz / 5000 == pytest.approx(20, rel=0.1)
    assert data.b.nnz / 5000 == pytest.approx(20, rel=0.1)
    fires_a, fires_b = (x.toarray() > 0 for x in (data.a, data.b))
    shared = (fires_a & fires_b[:, data.partner]).sum() / fires_a.sum()
    assert 0.5 < shared < 0.6  # half, and what coincides by chance
    rates = fires_a.mean(axis=0)
    assert np.log(rates).std() > 0.8
    few = data.subset(40)
    assert few.a.shape == few.b.shape == (5000, 40)
    assert (few.a.toarray() == data.a.toarray()[:, :40]).all()
    both = (few.a.toarray() > 0) & (few.b.toarray()[:, few.partner] > 0)
    assert both.sum() == (fires_a & fires_b[:, data.partner])[:, :40].sum()


def test_a_power_law_is_found_and_told():
    fit = Fit(sizes=(10, 20, 40), seconds=(1.0, 4.0, 16.0), of="K")
    assert fit.exponent == pytest.approx(2)
    assert fit.at(80) == pytest.approx(64)
    assert fit.told == "extrapolated from K = 10, 20, 40; exponent 2.00"


def test_a_straight_line_has_a_constant():
    fit = Fit(sizes=(10, 20, 40), seconds=(3.0, 4.0, 6.0), of="tokens", is_straight=True)
    assert fit.at(100) == pytest.approx(12)
    assert fit.told == "extrapolated from tokens = 10, 20, 40; a straight line"


def test_jobs_take_turns_and_long_ones_are_done_once(monkeypatch):
    monkeypatch.setattr(harness, "REPEATS", 3)
    clock, done = [0.0], []
    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock[0])

    def job(name, takes):
        def work():
            done.append(name)
            clock[0] += takes

        return work

    times = interleaved({"short": job("short", 1.0), "long": job("long", 9.0)})
    assert times == {"short": 1.0, "long": 9.0}
    assert done == ["short", "long", "short", "short"]


@pytest.mark.parametrize("met", [True, False])
def test_a_target_is_met_or_not(met):
    row = Row(
        part="a", work="", size="", ours_s=1.0, target_s=2.0, target_gib=1.0,
        ours_peak_gib=0.5 if met else 1.5,
    )  # fmt: skip
    assert row.target == "2 s, 1 GiB"
    assert row.met == ("yes" if met else "no")


def hold(*, n_bytes):
    """Work that holds so much for a moment."""
    return lambda: np.ones(n_bytes, dtype=np.int8)[::4096].sum().item()


def test_memory_is_that_above_the_inputs_in_a_process_of_its_own():
    fresh = in_fresh_process(correlating.prepare_best_matches, correlating.TINY, correlating.TINY)
    assert 0 <= fresh.peak_gib < 0.5
    assert fresh.result is None
    many = harness.watched(hold, {"n_bytes": 2**27}, {"n_bytes": 1})
    assert 0.12 < many["peak_gib"] < 0.2
    assert many["result"] == 2**27 // 4096
    assert json.dumps(many)


def test_a_wrong_part_is_refused():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--only", "z"],
        cwd=harness.ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "unknown part 'z', expected of a, b, c, d, e, f, g, h, i, curves" in done.stderr


def test_curves_are_written_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "CURVES", {"correlation": correlating.curves})
    assert command.main(["--quick", "--only", "curves", "--out", str(tmp_path)]) == 0
    with (tmp_path / "curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == command.CURVE_COLUMNS
    assert len({row["panel"] for row in rows}) == 3
    assert (tmp_path / "correlation.png").stat().st_size > 5000


def test_the_page_holds_the_table_between_its_markers(written, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{command.BEGIN}\nwhat stood there\n{command.END}\nafter\n")
    command.fill_page(page, table(written), "the machine")
    text = page.read_text()
    assert text.startswith(f"before\n{command.BEGIN}\n|")
    assert text.endswith(f"\n\nthe machine\n{command.END}\nafter\n")
    assert "what stood there" not in text
    page.write_text("no markers")
    with pytest.raises(ValueError, match="must hold <!-- results -->"):
        command.fill_page(page, table(written), "the machine")


def test_the_page_of_the_package_has_the_markers():
    text = command.PAGE.read_text()
    assert text.count(command.BEGIN) == text.count(command.END) == 1
