"""The pairs whose similarities add up to the most, without the table of all similarities."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int, Int64

from saelign.errors import DegenerateError

_CONTENDED = 0.2
"""Fraction of features left over by the greedy matching of the first lists at which the lists are
too alike to begin with. Sparse activations leave some 5%; a table of row and column effects 95%."""


@runtime_checkable
class Candidates(Protocol):
    """Whatever can say which columns of B are the most similar to a row of A."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of A, columns of B."""
        ...

    def strongest(
        self,
        rows: Int[np.ndarray, "row"],
        columns: Int[np.ndarray, "column"],
        k: int,
        *,
        offsets: Float64[np.ndarray, "column"] | None = None,
    ) -> tuple[Int[np.ndarray, "row k"], Float64[np.ndarray, "row k"]]:
        """For each row its k best among the columns, by similarity less the column's offset.

        Best first, ties to the lower column; all of the columns if there are fewer than k.

        Returns:
            The columns themselves, and the similarities without the offsets.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A one-to-one matching and how far it can be from the best one.

    Attributes:
        pairs: Row of A and column of B, by falling similarity; of equals the lower row comes first.
        similarities: Of the pairs.
        gap: The total is proven to lie no further than this below the largest one; at least 0.
    """

    pairs: Int64[np.ndarray, "pair 2"]
    similarities: Float64[np.ndarray, "pair"]
    gap: float


def optimal_one_to_one(candidates: Candidates, *, k: int = 32) -> Assignment:
    """The min(n_a, n_b) pairs whose similarities add up to the most.

    Column generation. The problem is solved over the edges seen so far, which gives each row and
    each column a price; a pair that is worth more than its two prices could improve the total, so
    the candidates are asked for the best by similarity less the column's price, and what is worth
    more is added. When nothing is, linear programming duality says that the matching is the best
    of all pairs, the unseen ones included. A row is only asked again when the bound from its last
    list no longer excludes an unseen pair, so all but the first of the passes are short.

    Similarities are solved as integers, at 44 bits for 16,384 features, where ties are ties and
    the search must end; `gap` is computed from the similarities themselves, so it covers that.

    Ties: any matching with the largest total may come back, always the same one.

    Args:
        candidates: Where the similarities come from; all of them finite.
        k: Length of the first lists, at least 1; later ones have half. It moves only the time.

    Raises:
        DegenerateError: A similarity is NaN or infinite.

    Source: Jonker and Volgenant (1987), "A shortest augmenting path algorithm for dense and sparse
    linear assignment problems", for the problem over the edges; the generation is this package's.
    """
    if min(candidates.shape) == 0:
        return Assignment(pairs=np.empty((0, 2), np.int64), similarities=np.empty(0), gap=0.0)
    known = _Known(candidates)
    prices = _begin(known, k)
    matching = _Matching(known.shape)
    while True:
        matching.improve(known, prices)
        prices = None
        known.price(matching.prices_b, max(1, k // 2))
        if not matching.is_improved_by(known):
            break
    a, b = matching.pairs()
    similarities = known.similarities[np.searchsorted(known.keys, a * known.shape[1] + b)]
    order = np.lexsort((a, -similarities))
    return Assignment(
        pairs=np.column_stack([a, b])[order],
        similarities=similarities[order],
        gap=_gap(known, similarities),
    )


class _Known:
    """The similarities seen so far, and a bound on the others.

    Attributes:
        keys: Row times n_b plus column of each pair seen, ascending.
        rows: Their rows.
        columns: Their columns.
        similarities: Theirs.
        offsets: Prices of the columns that `ceilings` are meant at.
        ceilings: No pair of a row that was not seen is worth more, less the column's offset.
    """

    def __init__(self, candidates: Candidates) -> None:
        self.candidates = candidates
        self.shape = candidates.shape
        self.keys = self.rows = self.columns = np.empty(0, np.int64)
        self.similarities = np.empty(0)
        self.offsets = np.zeros(self.shape[1])
        self.ceilings = np.full(self.shape[0], np.inf)

    def add(
        self, keys: list[Int64[np.ndarray, "_"]], similarities: list[Float64[np.ndarray, "_"]]
    ) -> None:
        """Take in pairs, some of which may be known."""
        joined = np.concatenate([self.keys, *keys])
        self.keys, first = np.unique(joined, return_index=True)
        self.rows = self.keys // self.shape[1]
        self.columns = self.keys - self.rows * self.shape[1]
        self.similarities = np.concatenate([self.similarities, *similarities])[first]

    def ask(
        self,
        rows: Int64[np.ndarray, "row"],
        columns: Int64[np.ndarray, "column"],
        k: int,
        offsets: Float64[np.ndarray, "column"],
    ) -> Float64[np.ndarray, "row"]:
        """Take in the k best of each row; a bound on its others among these columns."""
        found, values = _strongest(self.candidates, rows, columns, k, offsets)
        self.add([(rows[:, None] * self.shape[1] + found).ravel()], [values.ravel()])
        if k >= len(columns):
            return np.full(len(rows), -np.inf)
        return values[:, -1] - offsets[np.searchsorted(columns, found[:, -1])]

    def best(self, offsets: Float64[np.ndarray, "column"]) -> Float64[np.ndarray, "row"]:
        """What the best pair seen of each row is worth, less the column's offset."""
        starts = np.searchsorted(self.keys, np.arange(self.shape[0]) * self.shape[1])
        return np.maximum.reduceat(self.similarities - offsets[self.columns], starts)

    def price(self, offsets: Float64[np.ndarray, "column"], k: int) -> None:
        """See to it that no unseen pair, at these offsets, is worth more than its row's best.

        Where the offset of a column fell by no more than `slack`, the ceilings rise by no more.
        So the columns that fell further are asked for by all rows, and all columns by those rows
        whose ceilings are no longer low enough; `slack` is what makes the two cheapest.
        """
        n_a, n_b = self.shape
        best = self.best(offsets)
        fall = self.offsets - offsets
        order = np.argsort(-fall, kind="stable")
        n_rows = np.searchsorted(np.sort(best - self.ceilings), np.append(fall[order], -np.inf))
        n_columns = np.arange(n_b + 1)
        # A sparse kernel saves less by fewer columns than by fewer rows: it reads A all the same.
        cost = n_a * np.where(n_columns > 0, (n_columns + n_b) / 2, 0) + n_rows * n_b
        n_fallen = int(np.argmin(cost))
        slack = fall[order[n_fallen]] if n_fallen < n_b else -np.inf
        open_rows = best - self.ceilings < slack
        ceilings = self.ceilings + slack
        everything, fallen = np.arange(n_b), np.sort(order[:n_fallen])
        for rows, columns in (
            (np.flatnonzero(open_rows), everything),
            (np.flatnonzero(~open_rows), fallen),
        ):
            if len(rows) == 0 or len(columns) == 0:
                continue
            longer = min(8, n_a // len(rows)) * k  # a few rows can have more for the same
            bound = self.ask(rows, columns, longer, offsets[columns])
            ceilings[rows] = bound if columns is everything else np.maximum(ceilings[rows], bound)
        self.ceilings, self.offsets = ceilings, offsets


class _Matching:
    """The best matching over the pairs seen so far, with its prices in integers.

    The smaller side bids for the features of the larger one, so that all bidders get one.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self.prices = np.zeros(max(shape), np.int64)
        self.holds = np.full(min(shape), -1, np.int64)
        self.gains = np.zeros(min(shape), np.int64)
        self.exponent: int | None = None

    @property
    def prices_b(self) -> Float64[np.ndarray, "feature_b"]:
        """The columns' prices, in similarities."""
        prices = self.gains if self.shape[0] > self.shape[1] else self.prices
        return _as_floats(prices, self.exponent or 0)

    def improve(self, known: _Known, prices: Float64[np.ndarray, "larger"] | None) -> None:
        """Solve over the pairs now known, from `prices` or else from where the last one ended."""
        from saelign.matching.optimal_kernel import assign  # numba: half a second

        n_a, n_b = self.shape
        exponent = _exponent(known.similarities, max(n_a, n_b))
        if prices is not None:
            self.prices = _as_integers(prices, exponent)
        elif self.exponent is not None and self.exponent != exponent:
            self.prices = _as_integers(_as_floats(self.prices, self.exponent), exponent)
        self.exponent = exponent
        values = _as_integers(known.similarities, exponent)
        bidders, objects = known.rows, known.columns
        if n_a > n_b:
            order = np.argsort(objects, kind="stable")
            bidders, objects, values = objects[order], bidders[order], values[order]
        starts = np.searchsorted(bidders, np.arange(min(n_a, n_b) + 1))
        exists = assign(starts, objects, values, self.prices, self.holds, self.gains)
        assert exists, "the first pairs must hold a matching"

    def is_improved_by(self, known: _Known) -> bool:
        """Whether a pair is worth more than its two prices."""
        a, b = self.gains, self.prices
        if self.shape[0] > self.shape[1]:
            a, b = b, a
        # New similarities may be beyond what was solved: above or below all prices is enough then.
        most = np.ldexp(2.0**61, -(self.exponent or 0))
        values = _as_integers(np.clip(known.similarities, -most, most), self.exponent or 0)
        return bool((values > a[known.rows] + b[known.columns]).any())

    def pairs(self) -> tuple[Int64[np.ndarray, "pair"], Int64[np.ndarray, "pair"]]:
        """Rows of A and columns of B that are matched."""
        bidders = np.arange(min(self.shape))
        return (self.holds, bidders) if self.shape[0] > self.shape[1] else (bidders, self.holds)


def _begin(known: _Known, k: int) -> Float64[np.ndarray, "larger"]:
    """See enough pairs for a matching to exist; the prices of the larger side to begin with.

    The best k of each row will do for most. What they leave over is matched among itself, at last
    in random blocks, whose pairs are all looked at. Where they leave much over, since all rows
    like the same columns, blocks of everything say first what the columns are worth.
    """
    from saelign.matching.optimal_kernel import left_over  # numba: half a second

    n_a, n_b = known.shape
    everything = np.arange(n_a), np.arange(n_b)
    known.ceilings = known.ask(*everything, k, known.offsets)
    for last in (False, True):
        order = np.argsort(-known.similarities, kind="stable")
        free = left_over(order, known.rows, known.columns, n_a, n_b)
        free_a, free_b = np.flatnonzero(free[0]), np.flatnonzero(free[1])
        n_free = min(len(free_a), len(free_b))
        if n_free == 0:
            break
        if not last and n_free > _CONTENDED * min(n_a, n_b):
            prices_a, prices_b = _add_blocks(known, *everything, k)
            known.offsets = prices_b
            known.ceilings = known.ask(*everything, k, prices_b)
            return prices_a if n_a > n_b else prices_b
        if last:
            _add_blocks(known, free_a, free_b, k)
        else:
            known.ask(free_a, free_b, 4 * k, np.zeros(len(free_b)))
    return np.zeros(max(n_a, n_b))


def _add_blocks(
    known: _Known, rows: Int64[np.ndarray, "row"], columns: Int64[np.ndarray, "column"], k: int
) -> tuple[Float64[np.ndarray, "feature_a"], Float64[np.ndarray, "feature_b"]]:
    """Cut rows and columns into random blocks, match within each, add what is best there.

    What the smaller side is left with, on average, is made the same in all blocks; that makes the
    prices of different blocks comparable. On the larger side those that found no partner get the
    lowest price.
    """
    from saelign.matching.optimal_kernel import assign  # numba: half a second

    n_a, n_b = known.shape
    swapped = n_a > n_b
    prices_a, prices_b = np.zeros(n_a), np.zeros(n_b)
    taken_a, taken_b = np.zeros(n_a, bool), np.zeros(n_b, bool)
    keys, similarities = [], []
    n_blocks = max(1, min(len(rows), len(columns)) // (8 * k))
    rng = np.random.default_rng(0)
    for part_a, part_b in zip(
        np.array_split(rng.permutation(rows), n_blocks),
        np.array_split(rng.permutation(columns), n_blocks),
        strict=True,
    ):
        block_a, block_b = np.sort(part_a), np.sort(part_b)
        found, values = _strongest(
            known.candidates, block_a, block_b, len(block_b), np.zeros(len(block_b))
        )
        table = np.empty(values.shape)
        np.put_along_axis(table, np.searchsorted(block_b, found), values, axis=1)

        bids = table.T if swapped else table
        n_bidders, n_objects = sorted((len(block_a), len(block_b)))
        exponent = _exponent(bids, n_objects)
        prices, gains = np.zeros(n_objects, np.int64), np.zeros(n_bidders, np.int64)
        holds = np.full(n_bidders, -1, np.int64)
        starts = np.arange(n_bidders + 1) * n_objects
        objects = np.tile(np.arange(n_objects), n_bidders)
        assign(starts, objects, _as_integers(bids, exponent).ravel(), prices, holds, gains)

        left, asked = _as_floats(gains, exponent), _as_floats(prices, exponent)
        left, asked = left - left.mean(), asked + left.mean()
        a, b = (holds, np.arange(n_bidders)) if swapped else (np.arange(n_bidders), holds)
        prices_a[block_a], prices_b[block_b] = (asked, left) if swapped else (left, asked)
        taken_a[block_a[a]] = taken_b[block_b[b]] = True
        best = np.argsort(prices_b[block_b] - table, axis=1, kind="stable")[:, : max(1, k // 2)]
        keys += [(block_a[:, None] * n_b + block_b[best]).ravel(), block_a[a] * n_b + block_b[b]]
        similarities += [np.take_along_axis(table, best, axis=1).ravel(), table[a, b]]
    known.add(keys, similarities)
    prices_a[~taken_a], prices_b[~taken_b] = prices_a.min(), prices_b.min()
    return prices_a, prices_b


def _strongest(
    candidates: Candidates,
    rows: Int64[np.ndarray, "row"],
    columns: Int64[np.ndarray, "column"],
    k: int,
    offsets: Float64[np.ndarray, "column"],
) -> tuple[Int[np.ndarray, "row k"], Float64[np.ndarray, "row k"]]:
    """What the candidates answer, if it is finite."""
    found, values = candidates.strongest(rows, columns, min(k, len(columns)), offsets=offsets)
    if not np.isfinite(values).all():
        row, place = (int(where[0]) for where in np.nonzero(~np.isfinite(values)))
        raise DegenerateError(
            f"similarities must be finite to be added up, got {values[row, place]} for row "
            f"{rows[row]} and column {found[row, place]}: leave out features without a similarity"
        )
    return found, values


def _gap(known: _Known, similarities: Float64[np.ndarray, "pair"]) -> float:
    """How far the total of the pairs may lie below the largest one: weak duality, in floats.

    Whatever the prices of the columns are, no matching of n pairs is worth more than the n highest
    of them and what the n best rows can be left with. The last term bounds the rounding.
    """
    n = len(similarities)
    prices_b = known.offsets
    prices_a = np.maximum(known.best(prices_b), known.ceilings)
    bound = math.fsum([*np.sort(prices_a)[-n:], *np.sort(prices_b)[-n:], *-similarities])
    size = np.abs(prices_a).max() + np.abs(prices_b).max() + np.abs(similarities).max()
    return max(0.0, bound) + 4 * n * float(np.finfo(np.float64).eps * size)


def _exponent(values: Float64[np.ndarray, "*shape"], n: int) -> int:
    """The power of 2 by which values become integers whose sums over n of them fit in 64 bits."""
    bits = min(50, 59 - n.bit_length())
    return bits - int(np.frexp(np.abs(values).max())[1])


def _as_integers(
    values: Float64[np.ndarray, "*shape"], exponent: int
) -> Int64[np.ndarray, "*shape"]:
    return np.rint(np.ldexp(values, exponent)).astype(np.int64)


def _as_floats(
    integers: Int64[np.ndarray, "*shape"], exponent: int
) -> Float64[np.ndarray, "*shape"]:
    return np.ldexp(integers.astype(np.float64), -exponent)
