"""A run's folder: written whole or not at all, read back as it was, or refused with the way out."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from saelign.errors import (
    DamagedError,
    FormatError,
    MissingFileError,
    StorageError,
    UnknownNameError,
)
from saelign.results import (
    Run,
    features_name,
    open_run,
    pairs_name,
    write_info,
    write_table,
    written,
)


def made_run(
    folder: Path,
    *,
    layers_a: Sequence[int] = (0, 1),
    layers_b: Sequence[int] = (0, 1, 10),
    measures: Sequence[str] = ("rsa", "svcca"),
    matchings: Sequence[str] = ("one_to_one", "many_to_one"),
    nulls: Sequence[str] = ("shuffle", "rate_matched"),
    seeds: Sequence[int] = (0,),
    names: tuple[str, str] = ("pythia-70m", "pythia-160m"),
    **info: Any,
) -> Run:
    """A finished run made by hand: every number drawn, no model loaded."""
    rng = np.random.default_rng(0)
    runs = range(len(seeds))
    cells = pd.DataFrame(
        [
            {
                "run": run,
                "layer_a": a,
                "layer_b": b,
                "matching": matching,
                "n_pairs": 200 + a,
                "n_kept": 100 + a + b,
                "mean_correlation": rng.uniform(0.2, 0.5),
                "mean_correlation_kept": rng.uniform(0.5, 0.7),
            }
            for run, a, b, matching in itertools.product(runs, layers_a, layers_b, matchings)
        ]
    )
    scores = pd.DataFrame(
        [
            {
                "run": run,
                "layer_a": a,
                "layer_b": b,
                "matching": matching,
                "subspace": "all",
                "measure": measure,
                "null": null,
                "score": rng.uniform(0.3, 0.8),
                "null_mean": rng.uniform(-0.01, 0.2),
                "null_sd": 0.01,
                "z": 10.0,
                "p": rng.uniform(1e-4, 0.1),
                "q": rng.uniform(1e-4, 0.1),
                "calibrated": rng.uniform(0.2, 0.6),
                "n_pairs": 100 + a + b,
                "n_components": 20 if measure == "svcca" else None,
                "n_permutations": 999,
                "floor_limited": False,
                "note": "",
            }
            for run, a, b, matching in itertools.product(runs, layers_a, layers_b, matchings)
            for measure, null in itertools.product(measures, nulls)
        ]
    ).astype({"n_components": "Int64"})
    layers = pd.DataFrame(
        [
            {"run": run, "model": side, "layer": layer, "n_features": 4, "n_dead": 0, "n_rare": 1}
            for run in runs
            for side, present in (("a", layers_a), ("b", layers_b))
            for layer in present
        ]
    )
    write_table(cells, folder / "cells.parquet")
    write_table(scores, folder / "scores.parquet", csv=True)
    write_table(layers, folder / "layers.parquet")
    for row in cells.itertuples():
        pairs = pd.DataFrame({"feature_a": [row.layer_a], "feature_b": [row.layer_b]})
        name = pairs_name(row.layer_a, row.layer_b, row.matching, row.run)
        write_table(pairs, folder / "pairs" / name)
    for row in layers.itertuples():
        features = pd.DataFrame({"feature": range(4), "layer": row.layer, "model": row.model})
        write_table(features, folder / "features" / features_name(row.model, row.layer, row.run))
    told = {
        "complete": True,
        "name": "made",
        "versions": {"saelign": "0.1.0"},
        "seeds": list(seeds),
        "text": [{"n_tokens": 2000} for _ in seeds],
        "models": {"a": {"name": names[0]}, "b": {"name": names[1]}},
        "warnings": [],
        **info,
    }
    write_info(told, folder)
    return open_run(folder)
