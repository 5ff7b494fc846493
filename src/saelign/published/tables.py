"""What two papers printed, as typed tables: layer pairs, concepts, keywords, and single values."""

import csv
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np

from saelign.concepts.concept import Concept, Keyword

LAN, SON = "Lan et al. (2024)", "Son et al. (2025)"

ALL = "all"
"""The subspace of every feature."""

MODELS = {
    "pythia-70m": ("EleutherAI/pythia-70m", 6),
    "pythia-160m": ("EleutherAI/pythia-160m", 12),
    "gemma-2b": ("google/gemma-2b", 18),
    "gemma-2-2b": ("google/gemma-2-2b", 26),
    "gemma-2-9b": ("google/gemma-2-9b", 42),
}
"""The models that were compared: what the tables call them, on the hub, and how many blocks."""

CONCEPTS = {
    "biology": "Biology",
    "calendar": "Calendar",
    "country": "Countries",
    "emotions": "Emotions",
    "nature": "Nature",
    "people": "People/Roles",
    "time": "Time",
}
"""Concepts as the values of Son et al. call them, and as tables and keywords do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrintedCell:
    """The numbers of one layer pair, of all features or of one concept.

    Attributes:
        model_a: As `MODELS` calls it.
        model_b: Likewise.
        matching: `one_to_one`, or `many_to_one`: each feature of B with its best of A. The file of
            concepts does not say; the paper's tables of concepts are of one-to-one pairs.
        layer_a: `hidden_states[layer_a]` was read through the SAE of layer `layer_a`.
        layer_b: The same of B.
        subspace: `all`, or a concept.
        n_pairs: Pairs kept.
        mean_corr_all: Mean correlation before filters; NaN of concepts.
        mean_corr_kept: Mean correlation of the pairs kept; NaN of concepts.
        pc1: What is printed as SVCCA.
        pc1_null_mean: Its mean over the shuffles.
        pc1_p: Its p as printed.
        rsa: Representational similarity, with Pearson's correlation inside.
        rsa_null_mean: Its mean over the shuffles.
        rsa_p: Its p as printed.
        n_shuffles: How many there were.
    """

    model_a: str
    model_b: str
    matching: str
    layer_a: int
    layer_b: int
    subspace: str
    n_pairs: int
    mean_corr_all: float
    mean_corr_kept: float
    pc1: float
    pc1_null_mean: float
    pc1_p: float
    rsa: float
    rsa_null_mean: float
    rsa_p: float
    n_shuffles: int

    def least_p(self, p: float) -> float:
        """What a printed p must have been at least: the score is one of the N + 1 draws."""
        return (round(p * self.n_shuffles) + 1) / (self.n_shuffles + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrintedValue:
    """A value stated in the text or read off a figure, which may stand for several layer pairs.

    Attributes:
        table: Which figure or table.
        model_a: As `MODELS` calls it.
        model_b: Likewise.
        matching: `one_to_one`, `many_to_one` or `both`.
        runs: How many it is the mean of; None if that is not said.
        place_a: A layer, layers such as `10-19`, or `early`, `mid`, `edge`, `any`.
        place_b: The same of B.
        subspace: `all`, or what it calls the subspace.
        quantity: `pc1_svcca`, `rsa`, `pc1_svcca_null_mean`, `mean_corr_all` or `mean_corr_kept`.
        value: As printed: `0.73`, `0.64-0.71`, `<0.08`, `>0.60`.
        low: The least it can be; None where only a bound from above is given.
        high: The most; None where only a bound from below is given.
        note: What is said beside it.
    """

    table: str
    model_a: str
    model_b: str
    matching: str
    runs: int | None
    place_a: str
    place_b: str
    subspace: str
    quantity: str
    value: str
    low: float | None
    high: float | None
    note: str

    @property
    def how(self) -> str:
        """Which number of the layer pairs it stands for: `peak`, `mean` or `range`."""
        if self.note.startswith("mean of"):
            return "mean"
        several = not (self.place_a.isdigit() and self.place_b.isdigit())
        is_peak = self.note.startswith(("peak", "highest"))
        return "peak" if several and is_peak else "range"


def shuffles_drawn(model_a: str, matching: str) -> int:
    """How many shuffles the logged layer pairs of a pair of models rest on."""
    if model_a.startswith("gemma"):
        return 10
    return 20 if matching == "one_to_one" else 1


def shuffles_of_concept(n_pairs: int) -> int:
    """How many the logged concepts rest on."""
    return 100 if n_pairs > 100 else 1000


@cache
def printed_cells() -> tuple[PrintedCell, ...]:
    """Lan et al.'s layer pairs, then their concepts."""
    found = []
    for name in ("lan2024_layer_pairs.csv", "lan2024_concepts.csv"):
        for row in rows_of(name):
            subspace = row.get("concept", ALL)
            matching, n_pairs = row.get("matching", "one_to_one"), int(row.get("pairs_kept", 0))
            n_pairs = int(row.get("pairs", n_pairs))
            found.append(
                PrintedCell(
                    model_a=row["model_a"],
                    model_b=row["model_b"],
                    matching=matching,
                    layer_a=int(row["layer_a"]),
                    layer_b=int(row["layer_b"]),
                    subspace=subspace,
                    n_pairs=n_pairs,
                    mean_corr_all=float(row.get("mean_corr_all", np.nan)),
                    mean_corr_kept=float(row.get("mean_corr_kept", np.nan)),
                    pc1=float(row["pc1_svcca"]),
                    pc1_null_mean=float(row["pc1_svcca_null_mean"]),
                    pc1_p=float(row["pc1_svcca_p"]),
                    rsa=float(row["rsa"]),
                    rsa_null_mean=float(row["rsa_null_mean"]),
                    rsa_p=float(row["rsa_p"]),
                    n_shuffles=(
                        shuffles_drawn(row["model_a"], matching)
                        if subspace == ALL
                        else shuffles_of_concept(n_pairs)
                    ),
                )
            )
    return tuple(found)


@cache
def printed_values() -> tuple[PrintedValue, ...]:
    """The values of Son et al."""
    found = []
    for row in rows_of("son2025_published.csv"):
        low, high = value_range(row["value"], row["note"])
        found.append(
            PrintedValue(
                table=row["table"],
                model_a=row["model_a"],
                model_b=row["model_b"],
                matching=row["matching"],
                runs=int(row["runs"]) if row["runs"].isdigit() else None,
                place_a=row["layer_a"],
                place_b=row["layer_b"],
                subspace=row["subspace"],
                quantity=row["quantity"],
                value=row["value"],
                low=low,
                high=high,
                note=row["note"],
            )
        )
    return tuple(found)


@cache
def printed_keywords() -> tuple[Concept, ...]:
    """Lan et al.'s keywords, a concept each; `saelign.concepts.save_concept` writes their files."""
    words: dict[str, list[str]] = {}
    for row in rows_of("lan2024_keywords.csv"):
        words.setdefault(row["concept"], []).append(row["keyword"])
    return tuple(
        Concept(
            name=name.replace("/", ""),
            version="1",
            about=f"the keywords of {name} as {LAN} list them",
            keywords=tuple(Keyword(text=word, source=LAN) for word in of_concept),
        )
        for name, of_concept in words.items()
    )


def value_range(value: str, note: str = "") -> tuple[float | None, float | None]:
    """The least and the most that a printed value can be.

    >>> value_range("0.64-0.71"), value_range("<0.08"), value_range("0.35", "plus or minus 0.05")
    ((0.64, 0.71), (None, 0.08), (0.3, 0.4))
    """
    if value[0] in "<>":
        bound = float(value[1:])
        return (None, bound) if value[0] == "<" else (bound, None)
    low, _, high = value.partition("-")
    if spread := re.match(r"plus or minus ([0-9.]+)", note):
        return round(float(low) - float(spread[1]), 6), round(float(low) + float(spread[1]), 6)
    return float(low), float(high or low)


def layers_at(place: str, layers: list[int], model: str) -> list[int]:
    """Those of a run's layers that a printed place stands for.

    Words are ours to read: `early` is the first third of the model's blocks and `mid` the second;
    `edge` is the first and the last of the layers that were compared, `any` every one.

    >>> layers_at("mid", [2, 6, 10, 14, 18, 22], "gemma-2-2b"), layers_at("10-19", [6, 19], "")
    ([10, 14], [19])
    """
    if place == "any":
        return layers
    if place == "edge":
        return sorted({min(layers), max(layers)})
    if place in ("early", "mid"):
        third = MODELS[model][1] / 3
        low, high = (0.0, third) if place == "early" else (third, 2 * third)
        return [layer for layer in layers if low <= layer < high]
    first, _, last = place.partition("-")
    return [layer for layer in layers if int(first) <= layer <= int(last or first)]


def rows_of(name: str) -> list[dict[str, str]]:
    """The rows of a file of printed numbers."""
    text = (files("saelign.published") / "data" / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
