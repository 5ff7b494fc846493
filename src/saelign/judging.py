"""Verdicts on all features of a run: of both models, their twins, and the decoys."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from saelign.cells import correlation_between
from saelign.layers import Layer
from saelign.nulls import SIGNIFICANCE
from saelign.results import TRAINED
from saelign.shelf import ShelfSide
from saelign.verdicts import (
    MIN_DOCUMENTS,
    Evidence,
    held_out_of_some,
    significances,
    stratified_p,
    verdicts_of,
)

Found = Mapping[tuple[int, int], tuple[Evidence, Evidence]]
"""What the layer pairs of a comparison say of the features of both sides."""


Layers = Mapping[int, Layer] | ShelfSide
"""The layers of a side, by number."""


def judge(
    evidence: Mapping[str, Found],
    layers: Mapping[str, Layers],
    *,
    min_active_tokens: int,
) -> list[pd.DataFrame]:
    """A verdict table for each layer of each model, against the other and against the decoy.

    The decoy is the same model with the SAEs of the control `seed`: there nothing is truly missing,
    so what the procedure calls missing there is its error.

    Args:
        evidence: By comparison, then layer pair.
        layers: The layers of every side.
        min_active_tokens: Tokens a feature must be active on to have a partner.
    """
    tables = []
    for control, cells in evidence.items():
        decoy = control.startswith("seed_")
        for letter in control[-1] if decoy else "ab":
            # A decoy's features are those of its first side, whichever model that is.
            position = 0 if decoy else "ab".index(letter)
            side = f"{letter}_untrained" if control == "untrained" else letter
            for number in sorted({pair[position] for pair in cells}):
                of_layer = {
                    pair[1 - position]: both[position]
                    for pair, both in cells.items()
                    if pair[position] == number
                }
                n_documents = layers[side][number].features["n_documents"].to_numpy()
                table = verdicts_of(of_layer, n_documents)
                table["replicated"] = pd.array([pd.NA] * len(table), dtype="boolean")
                seeds = evidence.get(f"seed_{letter}")
                if control == TRAINED and seeds is not None:
                    table["replicated"] = replications(
                        table,
                        of_layer,
                        seeds[number, number][0],
                        layers[f"{letter}_seed"][number],
                        layers["b" if letter == "a" else "a"],
                        min_active_tokens=min_active_tokens,
                    )
                table["control"] = TRAINED if decoy else control
                table["against"] = "decoy" if decoy else "other"
                tables.append(table.assign(model=letter, layer=number))
    return tables


def replications(
    table: pd.DataFrame,
    of_layer: Mapping[int, Evidence],
    own: Evidence,
    second: Layer,
    others: Layers,
    *,
    min_active_tokens: int,
) -> Any:
    """Whether the counterparts of features without a partner have none either.

    A feature's counterpart is its mutual best in the second SAE at the same layer, if above chance:
    many features have some mutual best. It is held against every compared layer of the other model,
    beside the same chance.

    Args:
        table: Verdicts on a layer's features.
        of_layer: What they were made from, by layer of the other model.
        own: Partners of the features in the second SAE.
        second: The layer through the second SAE.
        others: The other model's layers.
        min_active_tokens: Tokens a feature must be active on to have a partner.

    Returns:
        NA where a feature was not judged `only`, or has no counterpart, or one that fires too
        rarely to be judged.
    """
    found = pd.array([pd.NA] * len(table), dtype="boolean")
    _, own_q = significances({second.layer: own})
    has = own.mutual & (own_q[0] < SIGNIFICANCE)
    has &= second.features["n_documents"].to_numpy()[own.partner] >= MIN_DOCUMENTS
    only = np.flatnonzero((table["verdict"] == "only").to_numpy() & has)
    if len(only) == 0:
        return found
    counterparts = own.partner[only]
    n_active = second.features["n_active"].to_numpy()[counterparts]
    smallest = np.full(len(only), np.nan)
    for number, of_pair in of_layer.items():
        first, second_half = (
            correlation_between(second, others[number], half=half) for half in (0, 1)
        )
        held_out = held_out_of_some((first, second_half), counterparts, -(-min_active_tokens // 2))
        p = stratified_p(held_out, n_active, of_pair.null_held_out, of_pair.n_active)
        smallest = np.fmin(smallest, p)
    # As strict as q < 0.05 was for the features themselves; if none passed it, nothing does.
    p, q = significances(of_layer)
    limit = p[q < SIGNIFICANCE].max(initial=-np.inf)
    tested = ~np.isnan(smallest)
    found[only[tested]] = smallest[tested] > limit
    return found
