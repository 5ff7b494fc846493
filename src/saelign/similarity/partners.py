"""Pairs whose B features may repeat: the distinct partners and who holds which.

Shuffling the rows of Y would break up the duplicates that many-to-one matching makes, and the null
would be of another kind than the score. Relabelling keeps them: the group of A features that share
partner d goes as a whole to partner s(d). One-to-one is the case of groups of one.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

FIRST_COLUMNS = 16
"""Rows that differ within these need not be read to the end."""


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
    def is_in_order(self) -> bool:
        """Whether pair i holds partner i, so that nothing need be copied to line them up."""
        return self.is_one_to_one and bool((self.held == np.arange(len(self.held))).all())

    @property
    def y(self) -> Float[np.ndarray, "pair d_y"]:
        """The matched rows, one a pair."""
        return self.rows if self.is_in_order else self.rows[self.held]

    def group_sums(self, values: Float[np.ndarray, "pair d"]) -> Float[np.ndarray, "partner d"]:
        """Sum of the rows of `values` over the pairs that hold each partner."""
        if self.is_in_order:
            return values
        n_pairs = len(self.held)
        holds = sp.csr_array(
            (np.ones(n_pairs), (self.held, np.arange(n_pairs))), shape=(len(self.rows), n_pairs)
        )
        return holds @ values


def first_held(keys: Iterable[Hashable]) -> Int[np.ndarray, "pair"]:
    """For each key its number, in order of first appearance."""
    position: dict[Hashable, int] = {}
    return np.array([position.setdefault(key, len(position)) for key in keys], dtype=np.int64)


def row_keys(rows: Float[np.ndarray, "row d"]) -> list[bytes]:
    """A key for each row, equal where rows are: a digest of 16 bytes. Minus zero is zero."""
    return [blake2b((row + 0.0).tobytes(), digest_size=16).digest() for row in rows]


def partners_of(
    y: Float[np.ndarray, "pair d_y"], held: Int[np.ndarray, "pair"] | None = None
) -> Partners:
    """The distinct partners among the rows of Y: equal rows are one partner.

    One-to-one rows keep their order, so that permutation i means the same for every measure.
    """
    if held is None:
        position = first_held(row_keys(y[:, :FIRST_COLUMNS]))
        if y.shape[1] > FIRST_COLUMNS and position.max(initial=-1) + 1 < len(y):
            position = first_held(row_keys(y))
    else:
        position = first_held(held.tolist())
    if (position == np.arange(len(position))).all():
        return Partners(y, position)
    _, first = np.unique(position, return_index=True)
    return Partners(y[first], position)
