"""What installing and importing saelign brings with it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import saelign
from saelign.demo import FOLDER

DEMO_FILES = {
    "__init__.py",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "concepts.yaml",
    "study.yaml",
    "text.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "training.json",
}


def test_importing_saelign_imports_neither_torch_nor_transformers() -> None:
    code = "import saelign, sys, json; print(json.dumps(sorted(sys.modules)))"
    modules = json.loads(subprocess.check_output([sys.executable, "-c", code]))
    assert "saelign" in modules
    assert not {"torch", "transformers", "numba", "pandas"} & set(modules)


def test_scoring_arrays_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import saelign, sys, json, numpy as np\n"
        "r = np.random.default_rng(0)\n"
        "x = r.normal(size=(60, 8))\n"
        "saelign.score(x, x, measure='rsa', n_permutations=9, rng=r)\n"
        "saelign.match(saelign.correlate(abs(x), abs(x)))\n"
        "saelign.open_run, saelign.load_study\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    modules = json.loads(subprocess.check_output([sys.executable, "-c", code]))
    assert not {"torch", "transformers"} & set(modules)


def test_every_public_name_is_there_and_documented() -> None:
    for name in saelign.__all__:
        assert getattr(saelign, name).__doc__, name


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'saelign' has no attribute 'scor'"):
        saelign.scor  # noqa: B018


def test_models_saes_tokenizer_and_text_ship_and_no_result_does() -> None:
    shipped = [p for p in FOLDER.rglob("*") if p.is_file() and p.suffix != ".pyc"]
    weights = {p.name for p in shipped if p.name.startswith("layer_")}
    assert weights == {f"layer_{layer}.safetensors" for layer in range(8)}
    assert {p.name for p in shipped} - weights == DEMO_FILES
    assert {tuple(sorted(tensors(p))) for p in shipped if p.name.startswith("layer_")} == {
        ("W_dec", "W_enc", "b_dec", "b_enc", "threshold")
    }
    assert tensors(FOLDER / "text.safetensors") == ["input_ids"]


def test_the_shipped_text_holds_200_000_tokens_half_from_each_model() -> None:
    with safe_open(FOLDER / "text.safetensors", framework="numpy") as file:
        ids, told = file.get_tensor("input_ids"), file.metadata()
    assert np.count_nonzero(ids) >= 200_000
    assert (ids[:, 0] == 0).all()
    assert told["contexts"] == f"{len(ids) // 2} from A, then {len(ids) // 2} from B"


def test_the_readmes_lines_of_python_run_as_they_stand() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    lines = readme.split("```python\n")[1].split("```")[0].split("run = ")[0]
    rng = np.random.default_rng(0)
    codes = rng.random((500, 40)) * (rng.random((500, 40)) < 0.2)
    rows = rng.normal(size=(40, 16))
    names = {"acts_a": codes, "acts_b": codes[:, ::-1], "W_dec_a": rows, "W_dec_b": rows[::-1]}
    names["documents"] = np.arange(500) // 10
    exec(lines, names)
    assert names["s"].score == pytest.approx(1)
    assert names["held"].mean == pytest.approx(1)
    assert (names["pairs"]["feature_a"] + names["pairs"]["feature_b"] == 39).all()


def tensors(path: object) -> list[str]:
    with safe_open(path, framework="numpy") as file:
        return sorted(file.keys())
