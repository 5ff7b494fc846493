"""The strongest partners of features, by row and by column of correlations nobody keeps."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int, Int64

from saelign.correlation.threads import equal_parts, in_parts

BLOCK_BYTES = 2**26
"""What a block of rows of a matrix may take."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Strongest:
    """The strongest partners that features of both sides have among each other.

    Attributes:
        partners_a: For each feature of A its best of B, best first, equals by index; -1 where
            there are fewer.
        similarity_a: How alike they are; -inf where there is none.
        partners_b: For each feature of B its best of A.
        similarity_b: How alike they are.
    """

    partners_a: Int64[np.ndarray, "feature_a n_best_a"]
    similarity_a: Float64[np.ndarray, "feature_a n_best_a"]
    partners_b: Int64[np.ndarray, "feature_b n_best_b"]
    similarity_b: Float64[np.ndarray, "feature_b n_best_b"]


@runtime_checkable
class Candidates(Protocol):
    """Similarities between features, as the greedy matching asks for them."""

    def strongest(
        self,
        features_a: Int64[np.ndarray, "chosen_a"],
        features_b: Int64[np.ndarray, "chosen_b"],
        *,
        n_best_a: int,
    ) -> Strongest:
        """The strongest partners that some features have."""
        ...

    def blocks(
        self, features_a: Int64[np.ndarray, "chosen_a"], features_b: Int64[np.ndarray, "chosen_b"]
    ) -> Iterator[tuple[Int64[np.ndarray, "_"], np.ndarray]]:
        """Similarities between some features, a block of rows at a time."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Listed:
    """All features that may be paired, with the strongest partners they have among each other.

    Attributes:
        features_a: Of A, rising.
        features_b: Of B, rising.
        best: Their strongest; of each feature of B one.
    """

    features_a: Int64[np.ndarray, "pairable_a"]
    features_b: Int64[np.ndarray, "pairable_b"]
    best: Strongest

    @property
    def n_best_a(self) -> int:
        """Partners listed for each feature of A."""
        return self.best.partners_a.shape[1]


def listed_among(
    correlation: Any,
    features_a: Int64[np.ndarray, "pairable_a"],
    features_b: Int64[np.ndarray, "pairable_b"],
    *,
    n_best_a: int,
) -> Listed:
    """The features with what `strongest` says of them."""
    best = correlation.strongest(features_a, features_b, n_best_a=n_best_a)
    return Listed(features_a=features_a, features_b=features_b, best=best)


Lists = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Positions and values of the strongest by row, then by column; -1 and -inf where there is none."""


def merged(
    best: Int[np.ndarray, "part column n_best"], value: Float64[np.ndarray, "part column n_best"]
) -> tuple[np.ndarray, np.ndarray]:
    """The strongest of each column over all parts, which stand in the order of the rows."""
    n_parts, n_columns, n_best = best.shape
    if n_parts == 1:
        return best[0], value[0]
    if n_best == 1:
        which = value[:, :, 0].argmax(axis=0)  # the first of equals, and so the lowest row
        columns = np.arange(n_columns)
        return best[which, columns], value[which, columns]
    value = value.transpose(1, 0, 2).reshape(n_columns, n_parts * n_best)
    best = best.transpose(1, 0, 2).reshape(n_columns, n_parts * n_best)
    order = np.argsort(-value, axis=1, kind="stable")[:, :n_best]
    return np.take_along_axis(best, order, axis=1), np.take_along_axis(value, order, axis=1)


def strongest_of_blocks(
    blocks: Iterable[tuple[Int[np.ndarray, "_"], np.ndarray]],
    offsets: Float64[np.ndarray, "column"] | None,
    n_columns: int,
    n_best_a: int,
    n_best_b: int,
) -> Lists:
    """The strongest of a matrix that comes a block of rows at a time.

    Args:
        blocks: What the rows are called, and their similarities; NaN where there is no partner.
        offsets: To be taken off each column's similarities before they are compared.
        n_columns: Columns of each block.
        n_best_a: To list for each row.
        n_best_b: To list for each column.
    """
    from saelign.correlation.kernel import strongest_in_rows  # numba: half a second

    best_a, value_a = [np.zeros((0, n_best_a), np.int32)], [np.zeros((0, n_best_a))]
    best_b = np.full((n_columns, n_best_b), -1, dtype=np.int32)
    value_b = np.full((n_columns, n_best_b), -np.inf)
    by_column = np.zeros(0) if offsets is None else offsets
    start = 0
    for _, block in blocks:
        block = np.ascontiguousarray(block, dtype=np.float64)
        found = in_parts(
            lambda part, block=block, start=start: strongest_in_rows(
                start + part.start, block[part], by_column, n_best_a, n_best_b
            ),
            equal_parts(len(block)),
        )
        start += len(block)
        best_a += [of_part[0] for of_part in found]
        value_a += [of_part[1] for of_part in found]
        best_b, value_b = merged(
            np.stack([best_b, *(of_part[2] for of_part in found)]),
            np.stack([value_b, *(of_part[3] for of_part in found)]),
        )
    return np.concatenate(best_a), np.concatenate(value_a), best_b, value_b


def named(
    lists: Lists,
    features_a: Int[np.ndarray, "row"],
    features_b: Int[np.ndarray, "column"],
    offsets: Float64[np.ndarray, "column"] | None,
) -> Strongest:
    """The lists by the features' own numbers, similarities as they were before the offsets."""
    best_a, value_a, best_b, value_b = lists
    if offsets is not None:
        value_a = value_a + np.append(offsets, 0.0)[best_a]
        value_b = value_b + offsets[:, None]
    return Strongest(
        partners_a=np.append(features_b, -1)[best_a].astype(np.int64),
        similarity_a=value_a,
        partners_b=np.append(features_a, -1)[best_b].astype(np.int64),
        similarity_b=value_b,
    )
