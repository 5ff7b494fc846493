"""The strongest partners of features on a GPU: dense tiles, where these beat the sparse loops.

A tile of A's features and one of B's are written out densely over a chunk of tokens and multiplied
in float32; chunks are added in float64; a finished tile gives up its strongest by row and by column
and is dropped, so that no matrix of all features exists anywhere.

Before a value becomes float32 it loses its feature's mean, in float64. What rounding does to a
product is then a share of the deviations and not of the values, however large the means: of S, the
sum of |deviation of A * deviation of B|, which for correlations is at most 1. With u = 2^-24, a
step of 128 tokens is off by at most 128 u S in whatever order it is summed, adding up the 8 steps
of a chunk by 8 u S, and the values themselves are rounded by 2 u S: 138 u S = 8.2e-6, for texts of
any length. (Steps as long as a chunk would be faster. But rounding is not random: where most tokens
add the same small number, as features do that seldom fire, sums in order over 1024 tokens were
found to be off by 3.3e-5.) Values listed are rounded to float32 once more, 6e-8 of themselves.

Sparse loops do work in proportion to co-firings, tiles to all tokens times all pairs: which is
sooner done is measured on the data and device at hand (`faster`).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil, isqrt, log2
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int, Int32, Int64

from saelign.correlation import FeatureColumns, TokenRows
from saelign.correlation.sparse import strongest_of_products
from saelign.correlation.strongest import Lists
from saelign.correlation.threads import n_threads

Way = Literal["tiles", "sparse"]

CHUNK = 1024
"""Tokens written out at once, whose products are added in float32."""

STEP = 128
"""Tokens multiplied at once; with `CHUNK` it makes the bound above."""

WIDEST = 8192
"""Features of a side in a tile: wider gains nothing, and takes memory."""

NARROWEST = 64
"""Features of a side in a tile at least, whatever the memory."""

MEMORY = 2**30
"""What tiles may take on a device that does not tell what is free."""

BYTES_PER_PAIR = 40
"""Of a tile: sums (8) and a chunk's products (4), or then keys by row and by column (16) and what
ordering them takes."""

BYTES_PER_ENTRY = 64
"""Of an activation on the device, while it is put in its place; 12 stay."""

LEAST_COFIRINGS = 2**24
"""Work that the sparse loops have done before anything could be measured."""

N_BEST = 32
"""Partners of each of A's features in what is timed, as matchings ask for."""

LOW = 2**32 - 1
"""The half of a key that says who; the other half says how strong."""

_CHOSEN: dict[tuple[object, ...], Way] = {}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Side:
    """One side's activations on the device, cut into pieces: a tile of features, a chunk of tokens.

    Each feature is less its mean over the tokens that take part, and in units of its root mean
    square, so that nothing leaves the range of float32.

    Attributes:
        tokens: Of each activation, within its piece.
        features: Of each activation, within its piece.
        values: The activations.
        bounds: Where each piece begins, tile after tile; and the last one ends.
        silent: What each feature has where it does not fire.
        unit: What its values were divided by.
        total: The sum of its activations as they were.
        width: Features of a tile; the last may have fewer.
        chunk: Tokens of a chunk; the last may have fewer.
        n_tokens: Tokens in all.
    """

    tokens: Int32[torch.Tensor, "entry"]
    features: Int32[torch.Tensor, "entry"]
    values: Float32[torch.Tensor, "entry"]
    bounds: list[int]
    silent: Float32[torch.Tensor, "feature"]
    unit: Float64[torch.Tensor, "feature"]
    total: Float64[torch.Tensor, "feature"]
    width: int
    chunk: int
    n_tokens: int

    @property
    def n_chunks(self) -> int:
        """Chunks that the tokens are cut into."""
        return ceil(self.n_tokens / self.chunk)

    @property
    def tiles(self) -> list[slice]:
        """The features of each tile."""
        n = len(self.unit)
        return [slice(start, min(start + self.width, n)) for start in range(0, n, self.width)]

    def piece(self, tile: int, chunk: int) -> Float32[torch.Tensor, "token tile"]:
        """A tile of features over a chunk of tokens, written out."""
        n_tokens = min(self.chunk, self.n_tokens - chunk * self.chunk)
        number = tile * self.n_chunks + chunk
        at = slice(self.bounds[number], self.bounds[number + 1])
        dense = self.silent[self.tiles[tile]].repeat(n_tokens, 1)
        dense[self.tokens[at], self.features[at]] = self.values[at]
        return dense


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entries:
    """The activations of some features over some tokens, one by one, both counted from 0.

    Attributes:
        tokens: On which each stands.
        features: Of which feature it is.
        values: What it is.
        n_features: Features, dead ones among them.
    """

    tokens: Int[np.ndarray, "entry"]
    features: Int[np.ndarray, "entry"]
    values: np.ndarray
    n_features: int

    def cut(self, n_tokens: int, width: int, chunk: int, device: str) -> Side:
        """The same on the device and in pieces."""
        weights = self.values.astype(np.float64, copy=False)
        total = np.bincount(self.features, weights, self.n_features).astype(np.float64)
        squares = np.bincount(self.features, weights * weights, self.n_features)
        mean = total / max(n_tokens, 1)
        unit = np.sqrt(squares / max(n_tokens, 1))
        unit[unit == 0] = 1.0
        on_device = {"mean": mean, "unit": unit, "total": total}
        on_device = {name: torch.tensor(x, device=device) for name, x in on_device.items()}
        tokens, features = (
            torch.tensor(x.astype(np.int32, copy=False), device=device)
            for x in (self.tokens, self.features)
        )
        n_chunks = ceil(n_tokens / chunk)
        piece = features // width * n_chunks + tokens // chunk
        piece, order = piece.sort(stable=True)
        n_pieces = ceil(self.n_features / width) * n_chunks
        starts = torch.arange(n_pieces + 1, dtype=piece.dtype, device=device)
        bounds = torch.searchsorted(piece, starts).tolist()
        del piece
        tokens, features = tokens[order], features[order]
        values = torch.tensor(self.values, device=device)[order].double()
        values -= on_device["mean"][features]
        values /= on_device["unit"][features]
        return Side(
            tokens=tokens % chunk,
            features=features % width,
            values=values.float(),
            bounds=bounds,
            silent=(-on_device["mean"] / on_device["unit"]).float(),
            unit=on_device["unit"],
            total=on_device["total"],
            width=width,
            chunk=chunk,
            n_tokens=n_tokens,
        )


def flat(
    starts: Int[np.ndarray, "row"], stops: Int[np.ndarray, "row"]
) -> tuple[Int64[np.ndarray, "entry"], "slice | np.ndarray"]:
    """The row of every entry, and where the entries stand."""
    lengths = stops - starts
    rows = np.repeat(np.arange(len(starts)), lengths)
    if len(starts) and (starts[1:] == stops[:-1]).all():
        return rows, slice(int(starts[0]), int(stops[-1]))
    before = np.cumsum(lengths) - lengths
    return rows, np.arange(len(rows)) + np.repeat(starts - before, lengths)


def entries_of(
    features_a: Int[np.ndarray, "chosen_a"],
    features_b: Int[np.ndarray, "chosen_b"],
    a: FeatureColumns,
    b: TokenRows,
) -> tuple[Entries, Entries, int]:
    """Both sides' activations on the tokens on which any of A's features fires; and how many.

    No other token adds to a product, and which of them count, the whole text or a half of it, only
    A's columns know.
    """
    which, at = flat(a.starts[features_a], a.stops[features_a])
    tokens, values = a.tokens[at], a.values[at]
    fires = np.zeros(len(b.starts), dtype=bool)
    fires[tokens] = True
    place = np.cumsum(fires) - 1
    chosen = np.flatnonzero(fires)
    of_a = Entries(tokens=place[tokens], features=which, values=values, n_features=len(features_a))
    which, at = flat(b.starts[chosen], b.stops[chosen])
    features, values = b.features[at], b.values[at]
    if len(features_b) < b.n_features:
        position = np.full(b.n_features, -1)
        position[features_b] = np.arange(len(features_b))
        features = position[features]
        kept = features >= 0
        which, features, values = which[kept], features[kept], values[kept]
    of_b = Entries(
        tokens=which,
        features=features.astype(np.int32, copy=False),
        values=values,
        n_features=len(features_b),
    )
    return of_a, of_b, len(chosen)


def free_memory(device: str) -> int:
    """Half of what is free on the device; `MEMORY` if it does not tell."""
    if torch.device(device).type != "cuda":
        return MEMORY
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (torch.cuda.mem_get_info(device)[0] + kept) // 2


def tile_width(memory: int, chunk: int) -> int:
    """Features of a side whose tile, and the pieces it is made of, take as many bytes."""
    per_feature = 2 * 4 * chunk
    root = isqrt(per_feature**2 + 4 * BYTES_PER_PAIR * max(memory, 0))
    return min(WIDEST, max(NARROWEST, (root - per_feature) // (2 * BYTES_PER_PAIR)))


def both_sides(
    features_a: Int[np.ndarray, "chosen_a"],
    features_b: Int[np.ndarray, "chosen_b"],
    a: FeatureColumns,
    b: TokenRows,
    *,
    device: str,
    memory: int | None = None,
    width: int | None = None,
    chunk: int = CHUNK,
) -> tuple[Side, Side]:
    """Both sides on the device, in tiles about equally wide."""
    of_a, of_b, n_tokens = entries_of(features_a, features_b, a, b)
    if width is None:
        left = free_memory(device) if memory is None else memory
        left -= BYTES_PER_ENTRY * (len(of_a.values) + len(of_b.values))
        width = tile_width(left, chunk)
    cut = []
    for side in (of_a, of_b):
        n_tiles = max(1, ceil(side.n_features / width))
        even = max(1, ceil(side.n_features / n_tiles))
        cut.append(side.cut(n_tokens, even, chunk, device))
    return cut[0], cut[1]


@contextmanager
def exact_products() -> Iterator[None]:
    """Float32 products in float32, TF32 off, whatever was set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def no_sums(a: Side, b: Side, i: int, j: int) -> Float64[torch.Tensor, "tile_a tile_b"]:
    """What the products of a tile are added to."""
    shape = len(a.unit[a.tiles[i]]), len(b.unit[b.tiles[j]])
    return torch.zeros(shape, dtype=torch.float64, device=a.unit.device)


def add_products(
    sums: Float64[torch.Tensor, "tile_a tile_b"], a: Side, b: Side, i: int, j: int, chunk: int
) -> None:
    """Add the products of one chunk of tokens."""
    x, y = a.piece(i, chunk), b.piece(j, chunk)
    products = x[:STEP].T @ y[:STEP]
    for start in range(STEP, len(x), STEP):
        at = slice(start, start + STEP)
        products.addmm_(x[at].T, y[at])
    sums += products


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Centring:
    """How products become similarities, on the device; see `strongest_partners`.

    Attributes:
        mean_a: What is taken off the products, by A's feature, and
        total_b: by B's.
        scale_a: What they are then multiplied with.
        scale_b: By B's feature.
        offsets: To be taken off before comparing, or None.
    """

    mean_a: Float64[torch.Tensor, "feature_a"]
    total_b: Float64[torch.Tensor, "feature_b"]
    scale_a: Float64[torch.Tensor, "feature_a"]
    scale_b: Float64[torch.Tensor, "feature_b"]
    offsets: Float64[torch.Tensor, "feature_b"] | None

    def similarities(
        self, sums: Float64[torch.Tensor, "tile_a tile_b"], a: Side, b: Side, i: int, j: int
    ) -> Float64[torch.Tensor, "tile_a tile_b"]:
        """What a finished tile's sums come to, in their place.

        With x and y the values, m the mean of x and d any number, sum (x - m)(y - d) is
        sum x y - m sum y: that much is added again before what was asked for is taken off.
        """
        at_a, at_b = a.tiles[i], b.tiles[j]
        sums *= a.unit[at_a, None]
        sums *= b.unit[at_b]
        sums.addr_(a.total[at_a] / max(a.n_tokens, 1), b.total[at_b])
        sums.addr_(self.mean_a[at_a], self.total_b[at_b], alpha=-1)
        sums *= self.scale_a[at_a, None]
        sums *= self.scale_b[at_b]
        sums.clamp_(-1, 1)
        if self.offsets is not None:
            sums -= self.offsets[at_b]
        return sums


def ordered(bits: Int32[torch.Tensor, "*shape"]) -> Int32[torch.Tensor, "*shape"]:
    """The bits of floats as integers in the order of the floats; the same again undoes it."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def keys_of(
    values: Float64[torch.Tensor, "row column"], names: Int64[torch.Tensor, "*name"]
) -> Int64[torch.Tensor, "row column"]:
    """Integers, larger for the stronger and then for the lower name; NaN is below everything.

    Values are rounded to float32, so that any choice of the largest is the same on every device.
    """
    single = values.float()
    single.masked_fill_(single.isnan(), -torch.inf)
    single += 0.0  # -0 is 0
    keys = ordered(single.view(torch.int32)).long()
    keys <<= 32
    keys |= LOW - names
    return keys


def named_anew(
    keys: Int64[torch.Tensor, "row column"], names: Int64[torch.Tensor, "row 1"]
) -> Int64[torch.Tensor, "row column"]:
    """The same strengths under other names, in their place."""
    keys &= ~LOW
    keys |= LOW - names
    return keys


def largest(
    keys: Int64[torch.Tensor, "row column"], n: int, dim: int
) -> Int64[torch.Tensor, "row_of_best column_of_best"]:
    """The n largest along a dimension, or as many as there are, largest first."""
    if n == 1:
        return keys.amax(dim=dim, keepdim=True)
    return keys.topk(min(n, keys.shape[dim]), dim=dim).values


def none_yet(n_rows: int, n_columns: int, device: str) -> Int64[torch.Tensor, "row column"]:
    """Keys below all others."""
    nobody = torch.tensor([[-torch.inf]], dtype=torch.float64, device=device)
    key = keys_of(nobody, torch.tensor([LOW], device=device))
    return key.repeat(n_rows, n_columns)


def read(
    keys: Int64[torch.Tensor, "row n_best"],
) -> tuple[Int32[np.ndarray, "row n_best"], Float64[np.ndarray, "row n_best"]]:
    """Names and values; -1 and -inf where there is none."""
    values = ordered((keys >> 32).int()).view(torch.float32).double().cpu().numpy()
    names = (LOW - (keys & LOW)).cpu().numpy()
    return np.where(np.isneginf(values), -1, names).astype(np.int32), values


def strongest_in_tiles(
    features_a: Int64[np.ndarray, "chosen_a"],
    a: FeatureColumns,
    b: TokenRows,
    mean_a: Float64[np.ndarray, "feature_a"],
    total_b: Float64[np.ndarray, "feature_b"],
    scale_a: Float64[np.ndarray, "feature_a"],
    scale_b: Float64[np.ndarray, "feature_b"],
    offsets: Float64[np.ndarray, "feature_b"] | None,
    n_best_a: int,
    n_best_b: int,
    *,
    device: str,
    memory: int | None = None,
    width: int | None = None,
    chunk: int = CHUNK,
) -> Lists:
    """The lists of `strongest_of_products` from dense tiles on a device that has float64.

    Values agree to 1e-5 for correlations (the bound stands at the top of this module); of those
    closer than that, either may be listed first. Equals go to the lower index.

    Args:
        features_a: Features of A to list.
        a: A's activations.
        b: B's; all have to fit onto the device, 12 bytes each, twice that while they are sorted.
        mean_a: What is taken off the products, by A's feature, and
        total_b: by B's.
        scale_a: What they are then multiplied with.
        scale_b: NaN for features of B that take no part.
        offsets: To be taken off each column's similarities before comparing, or None.
        n_best_a: Partners to list for each of A's.
        n_best_b: Partners to list for each of B's.
        device: As torch names it.
        memory: Bytes that it may take there; half of what is free on cuda if None, else 1 GiB.
        width: Features of a side in a tile, instead of what fits into the memory.
        chunk: Tokens written out at once.
    """
    features_b = np.flatnonzero(~np.isnan(scale_b))
    best_b = np.full((len(scale_b), n_best_b), -1, dtype=np.int32)
    value_b = np.full((len(scale_b), n_best_b), -np.inf)
    with exact_products():
        side_a, side_b = both_sides(
            features_a, features_b, a, b, device=device, memory=memory, width=width, chunk=chunk
        )
        names_a, names_b = (torch.tensor(x, device=device) for x in (features_a, features_b))
        centring = Centring(
            mean_a=torch.tensor(mean_a[features_a], device=device),
            total_b=torch.tensor(total_b[features_b], device=device),
            scale_a=torch.tensor(scale_a[features_a], device=device),
            scale_b=torch.tensor(scale_b[features_b], device=device),
            offsets=None if offsets is None else torch.tensor(offsets[features_b], device=device),
        )
        rows = none_yet(len(features_a), n_best_a, device)
        columns = none_yet(n_best_b, len(features_b), device)
        for j, at_b in enumerate(side_b.tiles):
            for i, at_a in enumerate(side_a.tiles):
                sums = no_sums(side_a, side_b, i, j)
                for number in range(side_a.n_chunks):
                    add_products(sums, side_a, side_b, i, j, number)
                keys = keys_of(centring.similarities(sums, side_a, side_b, i, j), names_b[at_b])
                del sums
                found = largest(keys, n_best_a, 1)
                rows[at_a] = largest(torch.cat([rows[at_a], found], dim=1), n_best_a, 1)
                found = largest(named_anew(keys, names_a[at_a, None]), n_best_b, 0)
                columns[:, at_b] = largest(torch.cat([columns[:, at_b], found]), n_best_b, 0)
        best_a, value_a = read(rows)
        best_b[features_b], value_b[features_b] = read(columns.T)
    return best_a, value_a, best_b, value_b


def clock(device: str) -> float:
    """Seconds, once the device has finished what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def n_entries(starts: Int[np.ndarray, "row"], stops: Int[np.ndarray, "row"]) -> int:
    """Activations between the bounds."""
    return int(stops.sum(dtype=np.int64) - starts.sum(dtype=np.int64))


def time_of_tiles(a: FeatureColumns, b: TokenRows, device: str) -> float:
    """Seconds that all tiles should take, from both sides laid out and a few chunks of one tile."""
    started = clock(device)
    with exact_products():
        all_a, all_b = np.arange(len(a.starts)), np.arange(b.n_features)
        side_a, side_b = both_sides(all_a, all_b, a, b, device=device)
        to_begin = clock(device) - started
        if side_a.n_chunks == 0:
            return to_begin
        names_a, names_b = (torch.tensor(x, device=device) for x in (all_a, all_b))
        at_a, at_b = side_a.tiles[0], side_b.tiles[0]
        sums = no_sums(side_a, side_b, 0, 0)
        some = min(4, side_a.n_chunks)
        of_chunks = to_finish = 0.0
        for _ in range(2):  # the first time the device finds its kernels and its memory
            started = clock(device)
            for number in range(some):
                add_products(sums, side_a, side_b, 0, 0, number)
            of_chunks = clock(device) - started
            started = clock(device)
            keys = keys_of(sums, names_b[at_b])
            largest(keys, N_BEST, 1)
            largest(named_anew(keys, names_a[at_a, None]), 1, 0)
            to_finish = clock(device) - started
        n_tiles = len(all_a) / side_a.width * len(all_b) / side_b.width
        return to_begin + n_tiles * (of_chunks * side_a.n_chunks / some + to_finish)


def time_of_sparse(a: FeatureColumns, b: TokenRows) -> float:
    """Seconds that the sparse loops should take, from what a few random features take.

    Twice: what begins and ends the loops takes as long for few features as for many.
    """
    n_b = b.n_features
    nothing, ones = np.zeros(len(a.starts)), np.ones(len(a.starts))
    per_token = n_entries(b.starts, b.stops) / max(1, len(b.starts))
    work = (a.stops - a.starts) * per_token + n_b
    drawn = np.random.default_rng(0).permutation(len(a.starts))

    def seconds(features: Int64[np.ndarray, "few"]) -> float:
        started = time.perf_counter()
        strongest_of_products(
            np.sort(features), a, b, nothing, np.zeros(n_b), ones, np.ones(n_b), None, N_BEST, 1,
            0.0,
        )  # fmt: skip
        return time.perf_counter() - started

    few = max(64, 4 * n_threads())
    seconds(drawn[:1])  # compiles
    of_few = seconds(drawn[:few])
    if len(drawn) <= few:
        return of_few
    more = drawn[few : 5 * few]
    of_more = seconds(np.concatenate([drawn[:few], more])) - of_few
    return of_few + max(of_more, 0.0) * float(work[drawn[few:]].sum() / work[more].sum())


def faster(
    a: FeatureColumns,
    b: TokenRows,
    device: str,
    *,
    time_tiles: Callable[[FeatureColumns, TokenRows, str], float] = time_of_tiles,
    time_sparse: Callable[[FeatureColumns, TokenRows], float] = time_of_sparse,
    least_cofirings: int = LEAST_COFIRINGS,
) -> Way:
    """Whether tiles on the device or sparse loops on the CPU find the strongest sooner.

    Measured once a process for each device and about the same widths, length and densities. On a
    CPU the answer is always sparse, as it is where there is next to nothing to do.

    Args:
        a: A's activations.
        b: B's.
        device: As torch names it.
        time_tiles: Says how long all tiles would take.
        time_sparse: Says how long the sparse loops would take.
        least_cofirings: Co-firings below which nothing is measured.
    """
    n_a, n_b = n_entries(a.starts, a.stops), n_entries(b.starts, b.stops)
    n_tokens = max(1, len(b.starts))
    if torch.device(device).type == "cpu" or n_a * n_b / n_tokens < least_cofirings:
        return "sparse"
    sizes = (len(a.starts), b.n_features, n_tokens, n_a, n_b)
    about = tuple(round(2 * log2(max(1, size))) for size in sizes)
    key = (device, *about)
    if key not in _CHOSEN:
        _CHOSEN[key] = "tiles" if time_tiles(a, b, device) < time_sparse(a, b) else "sparse"
    return _CHOSEN[key]


def engine(device: str, *, way: Way | None = None) -> Callable[..., Lists]:
    """What `SparseCorrelation` may find the strongest with: on the device where that is faster.

    Args:
        device: As torch names it. On a CPU the sparse loops are always taken, unless forced.
        way: Forces one of them.
    """

    def strongest(features_a: np.ndarray, a: FeatureColumns, b: TokenRows, *rest: Any) -> Lists:
        chosen = replace(a, starts=a.starts[features_a], stops=a.stops[features_a])
        if (way or faster(chosen, b, device)) == "tiles":
            return strongest_in_tiles(features_a, a, b, *rest[:-1], device=device)
        return strongest_of_products(features_a, a, b, *rest)

    return strongest
