"""What a study will take in disk, memory and time, said before any of it is taken."""

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saelign.errors import StudyError
from saelign.study import MeasureStudy, Study

UNITS = {
    "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip

PROGRAM = 750 * 2**20
"""What Python, torch and the other libraries take before there is any data."""

SHARE_OF_FREE = 0.8
"""Of the memory that is free when nothing is said."""

ACTIVE = 80
"""Active features a token that are reckoned with where the SAE does not say (TopK does)."""

SECONDS_A_PRODUCT = 5e-9
"""Of one core, for the product of two activations of one token: measured, 3 to 8 ns."""

REPEATING = ("many_to_one", "one_to_many")
"""Matchings in which a feature may have several partners."""

SECONDS_AN_ENTRY = 1.5e-9
"""Of one core, for an entry of a K x K matrix under a shuffle: measured, 1 to 2 ns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSize:
    """The sizes of an SAE.

    Attributes:
        d_model: Width of the model.
        d_sae: Features.
        k: Active features a token, where the SAE fixes them.
    """

    d_model: int
    d_sae: int
    k: int | None

    @property
    def n_active(self) -> int:
        """Active features a token that are reckoned with."""
        return min(self.d_sae, self.k or ACTIVE)

    @property
    def sae_bytes(self) -> int:
        """What the SAE takes in float32."""
        return 4 * (2 * self.d_model + 3) * self.d_sae

    def stored_bytes(self, n_tokens: int) -> int:
        """What its activations take on the disk: an index and a value each."""
        return n_tokens * (8 + self.n_active * (6 if self.d_sae <= 2**16 else 8))

    def layer_bytes(self, n_tokens: int) -> int:
        """What the layer takes in memory while it is compared.

        18 to 20 bytes an activation for both orders, and sums for each token of the vocabulary,
        of which there are at most half as many, twice.
        """
        return n_tokens * self.n_active * (20 + 12) + 4 * self.d_model * self.d_sae


@dataclass(frozen=True, slots=True, kw_only=True)
class SideSize:
    """The sizes of one side.

    Attributes:
        key: Which side.
        n_parameters: Of the model.
        bytes_per_parameter: In the dtype it runs in.
        layers: Of each layer's SAE.
        device: On which it runs.
    """

    key: str
    n_parameters: int
    bytes_per_parameter: int | float
    layers: dict[int, LayerSize]
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a study will take.

    Attributes:
        limit: Bytes of memory that it may take.
        memory_bytes: What it will take at most, as far as can be told.
        needed_bytes: The least it can do with.
        disk_bytes: Of stored activations, if none are stored yet.
        collect_seconds: To run both models, if nothing is stored yet.
        compare_seconds: To compare the layers.
        room_for_layers: Bytes for layers that wait for their next comparison.
        saes_at_once: For each side the layers whose SAEs are in memory together.
    """

    limit: int
    memory_bytes: int
    needed_bytes: int
    disk_bytes: int
    collect_seconds: float
    compare_seconds: float
    room_for_layers: int
    saes_at_once: dict[str, list[list[int]]]

    def passes(self, side: Any) -> list[list[int]]:
        """The layers of a side that are read in each pass of its model."""
        return self.saes_at_once[side.key]

    def summary(self) -> dict[str, Any]:
        """The numbers, for people and programs."""
        return {
            "disk_bytes": self.disk_bytes,
            "memory_bytes": self.memory_bytes,
            "memory_limit_bytes": self.limit,
            "collect_seconds": round(self.collect_seconds, 1),
            "compare_seconds": round(self.compare_seconds, 1),
        }


def memory_limit(asked: str | int | None) -> int:
    """Bytes from `8GiB`, `500 MB` or a number; most of what is free if None.

    Raises:
        StudyError: It is none of these.
    """
    if asked is None:
        return int(SHARE_OF_FREE * free_memory())
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([a-z]*)", str(asked).strip().lower())
    unit = match and UNITS.get((match[2] or "b").upper())
    if not match or unit is None or float(match[1]) <= 0:
        raise StudyError(
            f"memory must be a number of bytes or such as 8GiB or 500MB, got {str(asked)!r}"
        )
    return int(float(match[1]) * unit)


def free_memory() -> int:
    """Bytes that could be had without swapping; all there are where the system does not tell."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 8 * 2**30


def cell_bytes(study: Study, n_pairs: int, d_a: int, d_b: int) -> int:
    """What the scores of one layer pair take at most, beside the layers."""
    rows = 8 * n_pairs * (d_a + d_b) * 2
    shuffles = 8 * n_pairs * sum(study.nulls.values())
    names = {measure.name for measure in study.measures}
    squares = 0
    if names & {"rsa", "cka", "mutual_knn"}:
        # Small ones as float64, with the ranking's index beside them; large ones as 16-bit ranks.
        squares = 40 * n_pairs**2 if n_pairs <= 4096 else 8 * n_pairs**2
    if any(measure.on == "activations" for measure in study.measures):
        squares += 24 * n_pairs**2
    decompositions = 8 * 4 * (d_a**2 + d_b**2)
    return rows + shuffles + squares + decompositions + 2**28


def grouped(layers: dict[int, LayerSize], room: int) -> list[list[int]]:
    """Layers in order, as many together as their SAEs have room for, but one at least."""
    groups: list[list[int]] = []
    held = room + 1
    for layer, size in layers.items():
        if held + size.sae_bytes > room:
            groups.append([])
            held = 0
        groups[-1].append(layer)
        held += size.sae_bytes
    return groups


def forecast(
    study: Study,
    comparisons: Sequence[tuple[SideSize, SideSize]],
    *,
    n_tokens: Sequence[int],
    n_positions: Sequence[int],
    limit: int,
    n_subspaces: int = 0,
) -> Forecast:
    """What a study will take, from the sizes of its models, SAEs and text.

    Times come from how fast this machine multiplies matrices just now, and from rates measured on
    another for what is not a matrix product. Half or twice as much is to be reckoned with.

    Args:
        study: What is to be computed.
        comparisons: The sizes of both sides of each.
        n_tokens: Of each run.
        n_positions: Positions that the models read in each run.
        limit: Bytes of memory that it may take.
        n_subspaces: Semantic subspaces that are scored in each layer pair.

    Raises:
        StudyError: The limit is less than the study can do with.
    """
    sides = {side.key: side for pair in comparisons for side in pair}
    longest = max(n_tokens)
    largest = max(
        (size for side in sides.values() for size in side.layers.values()),
        key=lambda size: size.layer_bytes(longest),
    )
    scores = max(
        cell_bytes(study, min(x.d_sae, y.d_sae), x.d_model, y.d_model)
        for a, b in comparisons
        for x in a.layers.values()
        for y in b.layers.values()
    )
    two_layers = 2 * largest.layer_bytes(longest)
    # While a layer is read its activations stand beside it, in another order.
    reading = largest.layer_bytes(longest) + largest.sae_bytes
    comparing = PROGRAM + two_layers + max(scores, reading)
    collecting = {
        key: PROGRAM
        + int(side.n_parameters * side.bytes_per_parameter)
        + max(size.sae_bytes for size in side.layers.values())
        + 2**29
        for key, side in sides.items()
    }
    needed = max(comparing, *collecting.values())
    if needed > limit:
        raise StudyError(
            f"memory must be at least {in_gib(needed)} for this study, got {in_gib(limit)}: "
            "give more with --memory, read fewer tokens, or leave out rsa and cka"
            if comparing == needed
            else f"memory must be at least {in_gib(needed)} to run a model of this study with one "
            f"SAE, got {in_gib(limit)}: give more with --memory, or choose a smaller dtype"
        )
    saes_at_once = {
        key: grouped(
            side.layers,
            limit - collecting[key] + max(size.sae_bytes for size in side.layers.values()),
        )
        for key, side in sides.items()
    }
    all_layers = sum(
        size.layer_bytes(longest) for side in sides.values() for size in side.layers.values()
    )
    room = limit - PROGRAM - max(scores, reading)
    collected = max(
        collecting[key]
        + max(sum(side.layers[layer].sae_bytes for layer in group) for group in saes_at_once[key])
        for key, side in sides.items()
    )
    return Forecast(
        limit=limit,
        memory_bytes=max(
            min(limit, collected), PROGRAM + min(all_layers, room) + max(scores, reading)
        ),
        needed_bytes=needed,
        disk_bytes=sum(
            size.stored_bytes(n)
            for n in n_tokens
            for side in sides.values()
            for size in side.layers.values()
        ),
        collect_seconds=sum(
            collect_seconds(side, tokens, positions, len(saes_at_once[side.key]))
            for side in sides.values()
            for tokens, positions in zip(n_tokens, n_positions, strict=True)
        ),
        compare_seconds=sum(
            cell_seconds(study, x, y, tokens) + n_subspaces * subspace_seconds(study)
            for a, b in comparisons
            for x in a.layers.values()
            for y in b.layers.values()
            for tokens in n_tokens
        ),
        room_for_layers=room,
        saes_at_once=saes_at_once,
    )


def collect_seconds(side: SideSize, n_tokens: int, n_positions: int, n_passes: int) -> float:
    """Both of a model's passes over the text and the encoders' products, at the machine's rate."""
    operations = 2.0 * side.n_parameters * n_positions * n_passes
    operations += sum(2.0 * size.d_model * size.d_sae * n_tokens for size in side.layers.values())
    return operations / matmul_rate(side.device)


def cell_seconds(study: Study, a: LayerSize, b: LayerSize, n_tokens: int) -> float:
    """One layer pair: correlations with their halves and rolls, then shuffles."""
    n_cores = os.cpu_count() or 1
    n_passes = 2 + (N_ROLLS if study.verdicts else 0)
    seconds = n_passes * n_tokens * a.n_active * b.n_active * SECONDS_A_PRODUCT
    n_pairs = min(a.d_sae, b.d_sae)
    scoring = sum(
        measure_seconds(
            study, measure, n_pairs, a.d_model, b.d_model, repeats=matching in REPEATING
        )
        for measure in study.measures
        for matching in study.matching
    )
    return len(study.metrics) * (len(study.matching) * seconds + scoring) / n_cores


def subspace_seconds(study: Study) -> float:
    """One subspace of a layer pair: random groups of its size, each scored on one core."""
    if study.subspaces is None:
        return 0.0
    n_scores = study.subspaces.same_size * len(study.measures) * len(study.matching)
    return n_scores * SECONDS_A_GROUP


def measure_seconds(
    study: Study, measure: MeasureStudy, n_pairs: int, d_a: int, d_b: int, *, repeats: bool
) -> float:
    """Of one core, for a measure beside all nulls."""
    n_shuffles = sum(min(n, measure.permutations or n) for n in study.nulls.values())
    rate = matmul_rate("cpu") / (2 * (os.cpu_count() or 1))  # of one core, in float64
    once = n_pairs * (d_a**2 + d_b**2) / rate
    if measure.name in ("rsa", "cka", "mutual_knn"):
        once += n_pairs**2 * (d_a + d_b) / rate
        return once + n_shuffles * n_pairs**2 / 2 * SECONDS_AN_ENTRY
    if repeats:  # the components of the side that repeats change with every shuffle
        return once + n_shuffles * 2 * n_pairs * min(n_pairs, max(d_a, d_b)) ** 2 / rate
    return once + n_shuffles * n_pairs * 400 * SECONDS_AN_ENTRY


SECONDS_A_GROUP = 2e-3
"""For a measure of a random group of some 50 features: measured, 1 to 3 ms."""

N_ROLLS = 2
"""Rolls of the documents that verdicts take their chance from."""

_rates: dict[str, float] = {}


def matmul_rate(device: str) -> float:
    """Operations a second of a float32 matrix product, measured once, in some 0.1 s."""
    if device not in _rates:
        x = torch.ones(1024, 1024, device=device)
        float((x @ x)[0, 0])  # a device may take its time to begin
        started = time.perf_counter()
        y = x
        for _ in range(3):
            y = x @ x
        float(y[0, 0])
        _rates[device] = 3 * 2 * 1024**3 / (time.perf_counter() - started)
    return _rates[device]


def in_gib(n_bytes: int) -> str:
    """A number of bytes as people read it."""
    return f"{n_bytes / 2**30:.1f} GiB"
