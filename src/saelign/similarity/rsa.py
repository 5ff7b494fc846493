"""Representational similarity analysis: are features alike in A also alike in B?

Only how often each similarity stands decides its rank, so similarities between distinct rows are
computed once, a strip at a time, and turned into levels, equal ones into one. Counts of levels give
ranks; a shuffle then looks levels or ranks up. Up to `EXACT_PAIRS` pairs there is a level for each
value and ranks are exact. Beyond, there are at most 2^16 levels, each of nearly as many values as
any other, and ranks are kept in 16 bits.

Source of the error that 16 bits make, with N = K (K - 1) / 2 similarities: a level of n different
values gives them their mean rank, off by n / 2 at most and by n / sqrt(12) in the root mean square;
rounding to 2^16 steps adds N / 2^17 at most. The two vectors of centred ranks turn by the angles
asin(error / length), so a score moves by at most the sum of both angles (`rank_error`): some 5e-5
where there are no ties. That needs errors that go along with the other side's ranks. They do not:
within a level the order is lost, not shifted, and the score is usually right to 1e-8 (K = 16,384).
Shuffles use the same levels, so their comparison with the score is exact.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Shaped

from saelign.errors import DegenerateError, UnknownNameError
from saelign.nulls.moments import mantel_spread
from saelign.similarity.partners import Partners, partners_of
from saelign.similarity.products import BLOCK_BYTES, lower_strips, mirror, row_blocks

Inner = Literal["cosine", "pearson", "euclidean"]
Outer = Literal["spearman", "pearson"]
ROUNDING = 1e-12
"""What is smaller than this, in proportion, is 0."""
EXACT_PAIRS = 4096
"""Up to so many pairs every rank is exact; beyond, ranks have 16 bits, similarities 32."""
STRIP_ROWS = 512
"""Rows whose similarities with all before them are computed at once."""
N_CODES = 2**16
"""Ranks that 16 bits can tell apart."""
SAMPLE = 2**24
"""Similarities that are sorted to find levels of nearly as many values each."""
WORKERS = 16
"""Strips are divided among so many; each counts for itself."""


def check_options(inner: object = "cosine", outer: object = "spearman") -> None:
    """Refuse names that are no inner or outer similarity."""
    if inner not in get_args(Inner):
        raise UnknownNameError.of("inner similarity of rsa", inner, get_args(Inner))
    if outer not in get_args(Outer):
        raise UnknownNameError.of("outer similarity of rsa", outer, get_args(Outer))


def unit_rows(rows: Float64[np.ndarray, "row d"], inner: Inner) -> Float64[np.ndarray, "row d"]:
    """Rows scaled to length 1; under `pearson` each row's mean over coordinates goes first.

    Raises:
        DegenerateError: A row has no direction (all zero, or constant under `pearson`).
    """
    given = np.linalg.norm(rows, axis=1, keepdims=True)
    if inner == "pearson":
        rows = rows - rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    undirected = norms <= ROUNDING * given  # the mean of a constant row is not quite the row
    if undirected.any():
        raise DegenerateError(
            f"every row must have a direction under {inner}, row "
            f"{int(undirected.argmax())} has none"
        )
    return rows / norms


Raw = Float64[np.ndarray, "row row"] | Float32[np.ndarray, "row row"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarities:
    """How alike each two distinct rows are, and what is to be known of all of them.

    Attributes:
        strips: The first row of each strip, and the similarities of its rows with all up to its
            last row. What lies on or above the diagonal is not to be read.
        with_itself: How alike a row is with itself, and with its like.
        n_rows: How many rows.
    """

    strips: list[tuple[int, Float64[np.ndarray, "_ _"]]]
    with_itself: float
    n_rows: int

    @classmethod
    def of(cls, rows: Float64[np.ndarray, "row d"], inner: Inner) -> "Similarities":
        """The similarities of rows.

        Args:
            rows: Decoder rows.
            inner: `cosine`; `pearson`, which first takes each row's mean over coordinates away and
                so is not invariant to rotation (the published choice); `euclidean`, minus the
                distance.

        Raises:
            DegenerateError: A row has no direction (all zero, or constant under `pearson`).
        """
        if inner != "euclidean":
            strips = lower_strips(unit_rows(rows, inner), STRIP_ROWS)
            return cls(strips=list(strips), with_itself=1.0, n_rows=len(rows))
        rows = rows - rows[0]  # distances stay, what all rows share does not drown them
        squares = np.einsum("rd,rd->r", rows, rows)
        strips = []
        for start, strip in lower_strips(rows, STRIP_ROWS):
            stop = start + len(strip)
            strip *= -2
            strip += squares[start:stop, None]
            strip += squares[:stop]
            np.sqrt(np.maximum(strip, 0, out=strip), out=strip)
            strips.append((start, np.negative(strip, out=strip)))
        return cls(strips=strips, with_itself=0.0, n_rows=len(rows))

    def below(self) -> Iterator[Float64[np.ndarray, "entry"]]:
        """The similarities under the diagonal, strip by strip."""
        for start, strip in self.strips:
            yield strip[np.tri(len(strip), strip.shape[1], start - 1, dtype=bool)]

    def check_spread(self, n_pairs: int) -> None:
        """Refuse similarities that are all equal.

        Raises:
            DegenerateError: They are.
        """
        of_strips = [(v.min(), v.max()) for v in self.below() if len(v)]
        lowest, highest = [v for v, _ in of_strips], [v for _, v in of_strips]
        if self.n_rows < n_pairs:
            lowest.append(self.with_itself)
            highest.append(self.with_itself)
        low, high = min(lowest), max(highest)
        # Ranks would blow up what is only rounding, as between orthonormal rows.
        if not high - low > ROUNDING * max(-low, high, abs(self.with_itself)):
            raise DegenerateError(
                f"similarities must differ between pairs of rows, all "
                f"{n_pairs * (n_pairs - 1) // 2} are equal"
            )

    def matrix(self, *, offset: float = 0.0, exact: bool) -> Raw:
        """All of them less `offset`, as a symmetric matrix, in single precision unless exact."""
        matrix = np.empty((self.n_rows, self.n_rows), np.float64 if exact else np.float32)
        for start, strip in self.strips:
            matrix[start : start + len(strip), : strip.shape[1]] = strip - offset
        mirror(matrix, STRIP_ROWS)
        np.fill_diagonal(matrix, self.with_itself - offset)
        return matrix

    def sample(self) -> Float64[np.ndarray, "entry"]:
        """Every so many-th similarity, sorted, and that of a row with itself."""
        n = sum(strip.size for _, strip in self.strips)
        step = max(1, n // SAMPLE) | 1  # odd: no row of an even width is read at the same places
        some = [strip.ravel()[::step] for _, strip in self.strips] if step > 1 else self.below()
        return np.sort(np.concatenate([*some, [self.with_itself]]))


def level_edges(values: Float64[np.ndarray, "entry"], most: int) -> Float64[np.ndarray, "edge"]:
    """The least value of each level but the first, so that levels hold nearly as many values.

    A value that would fill a level is a level of its own: others in it would get its rank.

    Args:
        values: Rising.
        most: Levels that there may be.
    """
    picked = values[np.linspace(0, len(values) - 1, min(most - 1, len(values))).astype(np.int64)]
    edges, times = np.unique(picked, return_counts=True)
    heavy = edges[times > 1]
    return np.union1d(edges, np.nextafter(heavy, np.inf))  # as many as were picked, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """Similarities between distinct rows as levels, by size.

    Attributes:
        level: For each two rows, and on the diagonal that of a row with itself.
        often: How many pairs of pairs stand on each level as matched.
        mixed: Whether a level may hold different values.
    """

    level: Shaped[np.ndarray, "row row"]
    often: Int[np.ndarray, "level"]
    mixed: Shaped[np.ndarray, "level"]

    @classmethod
    def of(cls, alike: Similarities, counts: Int[np.ndarray, "row"], *, exact: bool) -> "Levels":
        """The levels of similarities, rows counted as often as they stand."""
        from saelign.similarity.pairwise import find_levels  # numba: half a second

        if exact:
            edges = np.unique(np.concatenate([*alike.below(), [alike.with_itself]]))
        else:
            own = np.array([alike.with_itself, np.nextafter(alike.with_itself, np.inf)])
            edges = np.union1d(level_edges(alike.sample(), N_CODES - 2), own)
        n_levels = len(edges) + 1  # none lies under the least value of all, but for a sample
        n_cells = len(edges) if exact else 4 * len(edges)
        reach = edges[-1] - edges[0]
        scale = n_cells / reach if reach > 0 and np.isfinite(n_cells / reach) else 0.0
        cells = np.minimum((edges - edges[0]) * scale, n_cells - 1).astype(np.int64)
        cell_starts = np.zeros(n_cells + 1, dtype=np.int32)
        np.cumsum(np.bincount(cells, minlength=n_cells), out=cell_starts[1:])
        level = np.zeros((alike.n_rows, alike.n_rows), np.int32 if exact else np.uint16)
        tallies = np.zeros((2 if exact else WORKERS, n_levels), dtype=np.int64)
        for start, strip in alike.strips:
            find_levels(strip, start, edges, cell_starts, scale, counts, level, tallies)
        often = tallies.sum(axis=0)
        own = int(np.searchsorted(edges, alike.with_itself, side="right"))
        mirror(level, STRIP_ROWS)
        np.fill_diagonal(level, own)
        often[own] += (counts * (counts - 1) // 2).sum()
        mixed = np.full(n_levels, not exact)
        mixed[1:-1] &= np.nextafter(edges[:-1], np.inf) < edges[1:]
        return cls(level=level, often=often, mixed=mixed)

    @property
    def n_levels(self) -> int:
        """How many levels there are."""
        return len(self.often)

    @property
    def ranks(self) -> Float64[np.ndarray, "level"]:
        """The mid-rank of each level, less the middle of all."""
        return np.cumsum(self.often) - (self.often - 1) / 2 - (self.often.sum() + 1) / 2

    @property
    def codes(self) -> Int[np.ndarray, "level"]:
        """The mid-ranks in 2^16 steps."""
        total = self.often.sum()
        steps = np.floor((self.ranks + total / 2) * (N_CODES / total))
        return np.clip(steps, 0, N_CODES - 1).astype(np.int64)

    def heights(self, *, exact: bool) -> Shaped[np.ndarray, "row row"]:
        """Twice the mid-rank of each two rows, or its code; codes take the place of the levels."""
        if exact:
            return (2 * self.ranks).astype(np.int32)[self.level]  # whole, and half as wide
        codes = self.codes.astype(self.level.dtype)
        for block in row_blocks(len(self.level), self.level[:1].nbytes, BLOCK_BYTES):
            self.level[block] = codes[self.level[block]]
        return self.level

    def error(self, *, coded: bool) -> float:
        """The angle by which levels, or codes, at most turn the vector of exact ranks."""
        often, total = self.often.astype(np.float64), float(self.often.sum())
        off = np.zeros(len(often))
        if coded:
            off = (self.codes + 0.5 - N_CODES / 2) * (total / N_CODES) - self.ranks
        lost = often @ off**2 + (often * (often**2 - 1) / 12)[self.mixed].sum()
        return float(np.arcsin(min(1.0, np.sqrt(lost / (often @ self.ranks**2)))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Heights:
    """A symmetric matrix over pairs: ranks, codes of ranks, or similarities; zero diagonal.

    Attributes:
        matrix: The entries.
        total: Their sum; a whole number of codes.
        squares: Sum of their squares, likewise.
        by_row: Sum over rows of the squared deviation of their sum from the mean of rows.
    """

    matrix: Shaped[np.ndarray, "pair pair"]
    total: int | float
    squares: int | float
    by_row: float

    @property
    def spread(self) -> float:
        """Sum of the squared deviations from the mean, off the diagonal."""
        entries = len(self.matrix) * (len(self.matrix) - 1)
        return (entries * self.squares - self.total**2) / entries

    @classmethod
    def of(cls, matrix: Shaped[np.ndarray, "row row"], held: Int[np.ndarray, "pair"]) -> "Heights":
        """Entries between distinct rows, spread over the pairs that hold these."""
        whole = matrix.dtype == np.uint16
        kind = np.int64 if whole else np.float64
        if len(held) != len(matrix) or (held != np.arange(len(held))).any():
            spread = np.empty((len(held), len(held)), matrix.dtype)
            for block in row_blocks(len(held), spread[:1].nbytes, BLOCK_BYTES):
                spread[block] = matrix[held[block]][:, held]
            matrix = spread
        np.fill_diagonal(matrix, 0)
        sums, squares = np.empty(len(matrix), kind), kind(0)
        for block in row_blocks(len(matrix), 8 * len(matrix), BLOCK_BYTES):
            some = matrix[block].astype(kind)
            sums[block] = some.sum(axis=1)
            squares += (some * some).sum()
        uneven = float(((sums - sums.mean()) ** 2).sum())
        # Python's whole numbers are exact, however large.
        return cls(matrix=matrix, total=sums.sum().item(), squares=squares.item(), by_row=uneven)


@dataclass(frozen=True, slots=True, kw_only=True)
class RsaComparison:
    """Matched rows with the similarities of both sides ranked, ready to be shuffled.

    Attributes:
        x: Heights of X.
        y: Those of Y where no partner repeats, in the order of partners.
        alike: Where partners repeat, the levels of similarities between the distinct ones, or
            under the outer `pearson` these themselves, less a constant.
        partners: Who holds which.
        rank_error: By how much ranks of 16 bits may move a score; 0 where ranks are exact.
    """

    x: Heights
    y: Heights | None
    alike: Levels | Raw | None
    partners: Partners
    rank_error: float

    @property
    def components(self) -> None:
        """RSA keeps every dimension."""
        return

    def score(self) -> float:
        """The measure on the rows as they are matched."""
        return float(self.shuffled(np.arange(len(self.partners.rows))[None])[0])

    def shuffled(
        self, permutations: Int[np.ndarray, "shuffle partner"]
    ) -> Float64[np.ndarray, "shuffle"]:
        """The measure after each relabelling of the partners."""
        if self.y is None:
            return self.relabelled(permutations)
        from saelign.similarity.pairwise import permuted_code_sums, permuted_sums  # half a second

        if not self.partners.is_in_order:
            permutations = permutations[:, self.partners.held]
        n_pairs = len(self.partners.held)
        entries = n_pairs * (n_pairs - 1)
        if self.x.matrix.dtype == np.uint16:
            narrow = permutations.astype(np.uint16 if n_pairs <= N_CODES else np.uint32)
            sums = permuted_code_sums(self.x.matrix, self.y.matrix, narrow)
            above = [2 * entries * s - self.x.total * self.y.total for s in sums.tolist()]
            products = np.array(above, dtype=np.float64) / entries
        else:
            narrow = permutations.astype(np.uint32)
            products = permuted_sums(self.x.matrix, self.y.matrix, narrow)
            products -= self.x.total * self.y.total / entries
        return products / np.sqrt(self.x.spread * self.y.spread)

    def grouped(self) -> Shaped[np.ndarray, "partner partner"]:
        """Sums of X's heights over the pairs that hold each two partners; whole numbers exact."""
        from saelign.similarity.pairwise import group_matrix

        n_partners, most = len(self.partners.rows), int(self.partners.counts.max())
        kind = np.float64
        if self.x.matrix.dtype == np.uint16 and most**2 * N_CODES < 2**31:
            kind = np.int32
        if self.x.matrix.dtype == np.float32:
            kind = np.float32
        grouped = np.zeros((n_partners, n_partners), kind)
        group_matrix(self.x.matrix, self.partners.held, grouped)
        return grouped

    def relabelled(
        self, permutations: Int[np.ndarray, "shuffle partner"]
    ) -> Float64[np.ndarray, "shuffle"]:
        """The same with repeated partners, without ranking anew.

        The similarities of Y take the same distinct values after every relabelling, only how often
        each stands changes. So they are sorted once; ranks follow from their counts.
        """
        from saelign.similarity.pairwise import ranked_sums, weighted_sums

        counts, n_pairs = self.partners.counts, len(self.partners.held)
        entries = n_pairs * (n_pairs - 1)
        narrow = permutations.astype(np.uint32)
        if isinstance(self.alike, Levels):
            products, squares = ranked_sums(
                self.grouped(), self.alike.level, counts, self.alike.n_levels, narrow
            ).T
            return products / np.sqrt(squares * (self.x.spread / 2))
        assert self.alike is not None
        weight = counts.astype(np.float64)
        products, total, squares, _ = weighted_sums(self.grouped(), self.alike, weight, narrow).T
        with_itself = float(self.alike[0, 0])  # no pair is compared with itself
        total = total - n_pairs * with_itself
        squares = squares - n_pairs * with_itself**2
        products = products - self.x.total * total / entries
        return products / np.sqrt((squares - total**2 / entries) * self.x.spread)

    def exact_moments(self) -> tuple[float, float] | None:
        """Exact mean (0) and standard deviation over all shuffles; one-to-one only."""
        if self.y is None:
            return None
        sides = self.x, self.y
        spread = mantel_spread(len(self.x.matrix), *((side.spread, side.by_row) for side in sides))
        if spread is None:
            return None
        return 0.0, spread / float(np.sqrt(self.x.spread * self.y.spread))


def levels_of(partners: Partners, inner: Inner, *, exact: bool) -> Levels:
    """The levels of the similarities between distinct rows.

    Raises:
        DegenerateError: A row without direction, or all similarities equal.
    """
    alike = Similarities.of(partners.rows, inner)
    alike.check_spread(len(partners.held))
    return Levels.of(alike, partners.counts, exact=exact)


def similarities_of(partners: Partners, inner: Inner, *, exact: bool) -> Raw:
    """The similarities between distinct rows, less about their mean.

    Raises:
        DegenerateError: A row without direction, or all similarities equal.
    """
    alike = Similarities.of(partners.rows, inner)
    alike.check_spread(len(partners.held))
    n = len(partners.rows)
    offset = sum(float(values.sum()) for values in alike.below()) / max(1, n * (n - 1) // 2)
    return alike.matrix(offset=offset, exact=exact)


def compare_rsa(
    x: Float64[np.ndarray, "pair d_x"],
    partners: Partners,
    *,
    inner: Inner = "cosine",
    outer: Outer = "spearman",
) -> RsaComparison:
    """Both sides' similarities, computed and ranked once.

    Raises:
        UnknownNameError: No such inner or outer similarity.
        DegenerateError: A row without direction, or all similarities equal.
    """
    check_options(inner, outer)
    distinct_x, exact = partners_of(x), len(x) <= EXACT_PAIRS
    in_order = np.arange(len(partners.rows))
    if outer == "pearson":
        raw = similarities_of(distinct_x, inner, exact=exact)
        side_x, error = Heights.of(raw, distinct_x.held), 0.0
        alike: Levels | Raw = similarities_of(partners, inner, exact=exact)
        side_y = Heights.of(alike, in_order) if partners.is_one_to_one else None
    else:
        levels = levels_of(distinct_x, inner, exact=exact)
        error = 0.0 if exact else levels.error(coded=True)
        side_x = Heights.of(levels.heights(exact=exact), distinct_x.held)
        alike = levels_of(partners, inner, exact=exact)
        side_y = None
        if not exact:
            error += alike.error(coded=partners.is_one_to_one)
        if partners.is_one_to_one:
            side_y = Heights.of(alike.heights(exact=exact), in_order)
    return RsaComparison(
        x=side_x,
        y=side_y,
        alike=None if partners.is_one_to_one else alike,
        partners=partners,
        rank_error=error,
    )


def rsa(
    x: Float[np.ndarray, "pair d_x"],
    y: Float[np.ndarray, "pair d_y"],
    *,
    inner: Inner = "cosine",
    outer: Outer = "spearman",
) -> float:
    """Correlation between the similarities of X's rows and those of Y's, in [-1, 1].

    Rows that are equal are alike exactly, not up to rounding, so that repeated partners tie. Beyond
    4096 pairs ranks are kept in 16 bits, which is right to some 1e-8 and to 1e-4 at worst unless
    nearly all similarities tie (`RsaComparison.rank_error` has the bound); similarities under the
    outer `pearson` have single precision.

    Args:
        x: Matched rows of A.
        y: Matched rows of B.
        inner: How alike two rows of one side are: `cosine`, `pearson` (published), `euclidean`.
        outer: How the two sets of similarities are compared: `spearman` or `pearson`.

    Raises:
        UnknownNameError: No such inner or outer similarity.
        DegenerateError: A row without direction, or all similarities equal.

    Source: Kriegeskorte et al. (2008), "Representational similarity analysis".
    """
    return compare_rsa(x, partners_of(y), inner=inner, outer=outer).score()
