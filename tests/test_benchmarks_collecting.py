import csv

import pytest
import torch
from benchmarks import collecting, gemma_on_gpu


def test_collecting_is_measured_beside_the_bare_products():
    rows = collecting.measure(quick=True)
    assert len(rows) == 4
    for row in rows:
        assert list(row) == ["work", "ours_s", "opponent", "opponent_s", "ratio", "note"]
        assert row["ours_s"] > 0
        assert row["opponent_s"] > 0
        assert row["ratio"] > 0
    assert "L0 65" in rows[0]["note"]


def test_the_curves_run_over_tokens_and_width():
    rows = collecting.curves(quick=True)
    assert [(row["n_tokens"], row["d_sae"]) for row in rows] == [
        (128, 512),
        (256, 512),
        (512, 512),
        (256, 128),
    ]


def test_the_command_for_a_gpu_runs_tiny_on_the_cpu(tmp_path, capsys):
    gemma_on_gpu.main(
        f"--device cpu --scale tiny --tokens 512 --batch-tokens 128 --out {tmp_path}".split()
    )
    with (tmp_path / "gemma_on_gpu.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == {"tiny-a", "tiny-b", "tiny-a x tiny-b"}
    assert rows[-1]["note"] == "256 x 256 features, 512 tokens, on the CPU"
    assert all(float(row["seconds"]) > 0 for row in rows)
    assert {row["torch"] for row in rows} == {torch.__version__}
    assert "collect layers 0, 2" in (tmp_path / "gemma_on_gpu.md").read_text()
    assert "- numba: " in capsys.readouterr().out


@pytest.mark.parametrize(("name", "billions"), [("gemma-2-2b", 2.6), ("gemma-2-9b", 9.2)])
def test_the_full_models_have_as_many_parameters_as_the_published(name, billions):
    model = gemma_on_gpu.random_model(gemma_on_gpu.full().configs[name], device="meta")
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert n_parameters / 1e9 == pytest.approx(billions, abs=0.05)
