"""The strongest partners of features, by row and by column of correlations nobody keeps."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int, Int64, Integer

BLOCK_BYTES = 2**26
"""What a block of rows of a matrix may take."""

PARTS_PER_THREAD = 4
"""Parts that the rows are cut into, so that threads which meet more work do not hold up others."""


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


def n_threads() -> int:
    """Threads that compiled loops run on."""
    import numba  # half a second

    return numba.get_num_threads()


def parts_of(work: Integer[np.ndarray, "row"]) -> Int64[np.ndarray, "boundary"]:
    """Bounds of consecutive parts of the rows that are about equally much work."""
    n_parts = max(1, min(PARTS_PER_THREAD * n_threads(), len(work)))
    done = np.cumsum(work)
    total = int(done[-1]) if len(done) else 0
    cuts = np.searchsorted(done, total * np.arange(1, n_parts) / n_parts)
    return np.concatenate([[0], cuts, [len(work)]]).astype(np.int64)


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
    start = 0
    for _, block in blocks:
        block = np.ascontiguousarray(block, dtype=np.float64)
        rows = np.arange(start, start + len(block))
        start += len(block)
        bounds = parts_of(np.ones(len(rows), dtype=np.int64))
        of_rows, value_of_rows, of_columns, value_of_columns = strongest_in_rows(
            rows, block, offsets, bounds, n_best_a, n_best_b
        )
        best_a.append(of_rows)
        value_a.append(value_of_rows)
        best_b, value_b = merged(
            np.concatenate([best_b[None], of_columns]),
            np.concatenate([value_b[None], value_of_columns]),
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
