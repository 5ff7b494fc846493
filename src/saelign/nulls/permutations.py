"""Random relabellings of B's features, plain or among features that fire as often."""

import numpy as np
from jaxtyping import Float, Int

NULLS = ("shuffle", "rate_matched")
"""shuffle: any relabelling. rate_matched: only within deciles of the firing rate."""


def rate_deciles(
    firing_rates: Float[np.ndarray, "partner"], *, n_strata: int = 10
) -> Int[np.ndarray, "partner"]:
    """The decile of each feature's firing rate, 0 to 9, ties by position; sizes differ by one."""
    strata = np.empty(len(firing_rates), dtype=np.int64)
    order = np.argsort(firing_rates, kind="stable")
    for stratum, members in enumerate(np.array_split(order, n_strata)):
        strata[members] = stratum
    return strata


def draw_permutations(
    n: int,
    n_permutations: int,
    *,
    rng: np.random.Generator,
    strata: Int[np.ndarray, "n"] | None = None,
) -> Int[np.ndarray, "shuffle n"]:
    """Uniform random permutations of n, within strata if given.

    Args:
        n: How many things are permuted.
        n_permutations: How many permutations to draw.
        rng: Where randomness comes from.
        strata: A label for each of the n; things move only among those of the same label.
    """
    permutations = np.tile(np.arange(n), (n_permutations, 1))
    if strata is None:
        return rng.permuted(permutations, axis=1)
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        permutations[:, members] = rng.permuted(permutations[:, members], axis=1)
    return permutations
