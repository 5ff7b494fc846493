"""Pairs whose B features may repeat: the distinct partners and who holds which.

Shuffling the rows of Y would break up the duplicates that many-to-one matching makes, and the null
would be of another kind than the score. Relabelling keeps them: the group of A features that share
partner d goes as a whole to partner s(d). One-to-one is the case of groups of one.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int


@dataclass(frozen=True, slots=True)
class Partners:
    """Distinct rows of Y, and which of them each pair holds.

    Attributes:
        rows: The distinct partners' decoder rows.
        held: For each pair the index into `rows`.
    """

    rows: Float[np.ndarray, "partner d_y"]
    held: Int[np.ndarray, "pair"]

    @property
    def counts(self) -> Int[np.ndarray, "partner"]:
        """How many pairs hold each partner."""
        return np.bincount(self.held, minlength=len(self.rows))

    @property
    def is_one_to_one(self) -> bool:
        """Whether no partner repeats."""
        return len(self.rows) == len(self.held)

    @property
    def y(self) -> Float[np.ndarray, "pair d_y"]:
        """The matched rows, one a pair."""
        return self.rows[self.held]

    def group_sums(self, values: Float[np.ndarray, "pair d"]) -> Float[np.ndarray, "partner d"]:
        """Sum of the rows of `values` over the pairs that hold each partner."""
        n_pairs = len(self.held)
        holds = sp.csr_array(
            (np.ones(n_pairs), (self.held, np.arange(n_pairs))), shape=(len(self.rows), n_pairs)
        )
        return holds @ values


def partners_of(
    y: Float[np.ndarray, "pair d_y"], held: Int[np.ndarray, "pair"] | None = None
) -> Partners:
    """The distinct partners among the rows of Y: equal rows are one partner.

    One-to-one rows keep their order, so that permutation i means the same for every measure.
    """
    if held is None:
        _, first, held = np.unique(y, axis=0, return_index=True, return_inverse=True)
    else:
        _, first, held = np.unique(held, return_index=True, return_inverse=True)
    order = np.argsort(first)  # by first appearance
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    return Partners(y[first[order]], position[held.reshape(-1)])
