"""The loops over sparse activations that have to be compiled.

All go through the features of A one at a time: a feature's firing tokens are few, each holds few
features of B, and the row of products they fall into stays in the cache. The cost is the number of
co-firings, not tokens times features; no sparse result with its sorting is ever built.

A call does a part of the work, on one core, and lets go of the interpreter: `in_parts` runs several
at once. Loops that numba runs in parallel itself take three times as long to compile.
"""

from typing import Any, no_type_check

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

BLOCK = 64
"""Entries of a row that are compared at once before any is looked at alone."""

AHEAD = 4
"""Tokens before its own at which a token's activations are called for: a feature fires on tokens
that stand far apart, and without a call each would be waited for."""

LINE_ENTRIES = 16
"""Entries of four bytes in a line of the cache."""


# Run-time type checks, as the tests switch them on, cannot be compiled.
@no_type_check
@intrinsic
def call_for(typingctx: Any, array: Any, index: Any) -> Any:  # noqa: ARG001 (numba's way)
    """Have the processor bring an entry's line of the cache; one out of bounds does no harm."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        address = builder.bitcast(builder.gep(data, [args[1]]), byte)
        to_read, keep, is_data = (ir.Constant(number, value) for value in (0, 3, 1))
        builder.call(prefetch, [address, to_read, keep, is_data])
        return context.get_dummy_value()

    return types.none(array, types.intp), generate


@no_type_check
@numba.njit(cache=True, nogil=True)
def call_for_token(
    token: int,
    starts_b: np.ndarray,
    stops_b: np.ndarray,
    features_b: np.ndarray,
    values_b: np.ndarray,
) -> None:
    """Call for what fires on a token."""
    for q in range(starts_b[token], stops_b[token], LINE_ENTRIES):
        call_for(features_b, q)
        call_for(values_b, q)


@no_type_check
@numba.njit(cache=True, nogil=True)
def add_products_of(
    a: int,
    starts_a: np.ndarray,
    stops_a: np.ndarray,
    tokens_a: np.ndarray,
    values_a: np.ndarray,
    starts_b: np.ndarray,
    stops_b: np.ndarray,
    features_b: np.ndarray,
    values_b: np.ndarray,
    row: np.ndarray,
) -> None:
    """Add the products of one feature of A with all of B to a row."""
    stop_a = stops_a[a]
    for p in range(starts_a[a], stop_a):
        if p + AHEAD < stop_a:
            call_for_token(tokens_a[p + AHEAD], starts_b, stops_b, features_b, values_b)
        value = np.float64(values_a[p])
        token = tokens_a[p]
        for q in range(starts_b[token], stops_b[token]):
            row[features_b[q]] += value * np.float64(values_b[q])


@no_type_check
@numba.njit(cache=True, nogil=True)
def add_cross_products(
    starts_a: np.ndarray,
    stops_a: np.ndarray,
    tokens_a: np.ndarray,
    values_a: np.ndarray,
    starts_b: np.ndarray,
    stops_b: np.ndarray,
    features_b: np.ndarray,
    values_b: np.ndarray,
    total: np.ndarray,
) -> None:
    """Add A'B to `total`, where A comes by feature and B by token, each with its bounds."""
    for a in range(len(starts_a)):
        add_products_of(
            a, starts_a, stops_a, tokens_a, values_a,
            starts_b, stops_b, features_b, values_b, total[a],
        )  # fmt: skip


@no_type_check
@numba.njit(cache=True, nogil=True)
def insert(best: np.ndarray, indices: np.ndarray, value: float, index: int) -> None:
    """Put a value in its place in a falling list, equals by index; it may be below the last."""
    j = len(best) - 1
    if best[j] > value or (best[j] == value and indices[j] < index):
        return
    while j > 0 and (best[j - 1] < value or (best[j - 1] == value and indices[j - 1] > index)):
        best[j] = best[j - 1]
        indices[j] = indices[j - 1]
        j -= 1
    best[j] = value
    indices[j] = index


@no_type_check
@numba.njit(cache=True, nogil=True)
def is_listed(indices: np.ndarray, index: int) -> bool:
    """Whether an index is among those of a list already."""
    for j in range(len(indices)):  # noqa: SIM110 (compiled)
        if indices[j] == index:
            return True
    return False


@no_type_check
@numba.njit(cache=True, nogil=True)
def take_strongest(
    a: int,
    row: np.ndarray,
    offsets: np.ndarray,
    best_a: np.ndarray,
    value_a: np.ndarray,
    best_b: np.ndarray,
    value_b: np.ndarray,
    least_b: np.ndarray,
) -> None:
    """Take from a's row of similarities what belongs to its strongest, or to a column's.

    A block is searched only if it holds anything that does: as lists fill, few blocks are. NaN is
    above nothing. With offsets, lists hold and are ordered by the similarity less the column's.
    """
    n_b = len(row)
    last_a, last_b = len(best_a) - 1, value_b.shape[1] - 1
    for start in range(0, n_b, BLOCK):
        stop = min(start + BLOCK, n_b)
        least = value_a[last_a]
        n_above = 0
        if len(offsets) == 0:
            for b in range(start, stop):
                n_above += (row[b] > least) | (row[b] > least_b[b])
        else:
            for b in range(start, stop):
                n_above += (row[b] - offsets[b] > least) | (row[b] - offsets[b] > least_b[b])
        if n_above == 0:
            continue
        for b in range(start, stop):
            value = row[b] if len(offsets) == 0 else row[b] - offsets[b]
            if value > value_a[last_a]:
                insert(value_a, best_a, value, b)
            if value > least_b[b]:
                insert(value_b[b], best_b[b], value, a)
                least_b[b] = value_b[b, last_b]


@no_type_check
@numba.njit(cache=True, nogil=True)
def strongest_in_rows(
    first: int, similarity: np.ndarray, offsets: np.ndarray, n_best_a: int, n_best_b: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The strongest partners among similarities at hand, by row and by column.

    Args:
        first: What the first row is called; those after it follow.
        similarity: Rows x features of B; NaN where there is no partner.
        offsets: To be taken off each column's similarities first; empty for none.
        n_best_a: Partners to list for each row.
        n_best_b: Partners to list for each column.
    """
    n_a, n_b = similarity.shape
    best_a = np.full((n_a, n_best_a), -1, dtype=np.int32)
    value_a = np.full((n_a, n_best_a), -np.inf)
    best_b = np.full((n_b, n_best_b), -1, dtype=np.int32)
    value_b = np.full((n_b, n_best_b), -np.inf)
    least_b = np.full(n_b, -np.inf)
    for i in range(n_a):
        take_strongest(
            first + i, similarity[i], offsets, best_a[i], value_a[i], best_b, value_b, least_b
        )
    return best_a, value_a, best_b, value_b


@no_type_check
@numba.njit(cache=True, nogil=True)
def strongest_partners(
    rows: np.ndarray,
    starts_a: np.ndarray,
    stops_a: np.ndarray,
    tokens_a: np.ndarray,
    values_a: np.ndarray,
    starts_b: np.ndarray,
    stops_b: np.ndarray,
    features_b: np.ndarray,
    values_b: np.ndarray,
    mean_a: np.ndarray,
    total_b: np.ndarray,
    scale_a: np.ndarray,
    scale_b: np.ndarray,
    offsets: np.ndarray,
    n_best_a: int,
    n_best_b: int,
    share_touched: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float, float]:
    """The strongest partners of A's features and of B's, no matrix of all of them ever built.

    A similarity is (sum of products - mean_a * total_b) * scale_a * scale_b, cut to [-1, 1]. A row
    is formed, searched and dropped. Where a feature has fewer co-firings than a share of B's width,
    only the features that it co-fired with are searched: what all others have is known to be at
    most the largest of -mean_a * total_b * scale_a * scale_b, and where that might be among a row's
    strongest the whole row is searched after all. What columns then might have missed is bounded by
    the lowest and highest mean_a * scale_a returned.

    Args:
        rows: Features of A to go through, rising.
        starts_a: Where each of A's features begins in `tokens_a`.
        stops_a: Where it ends.
        tokens_a: Tokens on which it fires.
        values_a: Its activations there.
        starts_b: Where each token begins in `features_b`.
        stops_b: Where it ends.
        features_b: Features of B that fire on it.
        values_b: Their activations.
        mean_a: What is taken off the products, by A's feature, and
        total_b: by B's.
        scale_a: What they are multiplied with.
        scale_b: NaN for features of B that take no part.
        offsets: To be taken off each column's similarities before comparing; empty for none.
        n_best_a: Partners to list for each row.
        n_best_b: Partners to list for each column.
        share_touched: Co-firings, per feature of B, below which only what co-fired is searched.

    Returns:
        best_a, value_a (row x n_best_a); best_b, value_b (feature of B x n_best_b); -1 and -inf
        where there are fewer; then lowest and highest mean_a * scale_a of rows that were not
        searched whole, inf and -inf if there is none.
    """
    n_b = len(total_b)
    best_a = np.full((len(rows), n_best_a), -1, dtype=np.int32)
    value_a = np.full((len(rows), n_best_a), -np.inf)
    best_b = np.full((n_b, n_best_b), -1, dtype=np.int32)
    value_b = np.full((n_b, n_best_b), -np.inf)
    lowest, highest = np.inf, -np.inf
    # What a feature of B has with one that it never co-fires with, before A's part of it.
    apart_low, apart_high = np.inf, -np.inf
    for b in range(n_b):
        apart = total_b[b] * scale_b[b]
        if apart < apart_low:
            apart_low = apart
        if apart > apart_high:
            apart_high = apart
    row = np.zeros(n_b)
    touched = np.empty(n_b, dtype=np.int32)
    # Total, scale and the least of its list side by side: a feature of B is one line of the cache.
    of_b = np.empty((n_b, 4))
    of_b[:, 0], of_b[:, 1], of_b[:, 2] = total_b, scale_b, -np.inf
    least_b = np.full(n_b, -np.inf)
    for i in range(len(rows)):
        a = rows[i]
        mean, scale = mean_a[a], scale_a[a]
        n_products = 0
        for p in range(starts_a[a], stops_a[a]):
            n_products += stops_b[tokens_a[p]] - starts_b[tokens_a[p]]
        search_whole = len(offsets) > 0 or n_products >= share_touched * n_b
        if not search_whole:
            n_touched = 0
            for p in range(starts_a[a], stops_a[a]):
                if p + AHEAD < stops_a[a]:
                    call_for_token(tokens_a[p + AHEAD], starts_b, stops_b, features_b, values_b)
                value = np.float64(values_a[p])
                token = tokens_a[p]
                for q in range(starts_b[token], stops_b[token]):
                    b = features_b[q]
                    if row[b] == 0:
                        touched[n_touched] = b
                        n_touched += n_touched < n_b - 1
                    row[b] += value * np.float64(values_b[q])
            # Products that cancel make a feature look untouched, and it is as good as that; it may
            # be noted twice, and once the list is full the row is searched whole.
            search_whole = n_touched == n_b - 1
            for t in range(0 if search_whole else n_touched):
                b = touched[t]
                if row[b] != 0:
                    similarity = (row[b] - mean * of_b[b, 0]) * scale * of_b[b, 1]
                    if similarity >= value_a[i, n_best_a - 1]:
                        insert(value_a[i], best_a[i], max(min(similarity, 1.0), -1.0), b)
                    if similarity > of_b[b, 2]:
                        insert(value_b[b], best_b[b], max(min(similarity, 1.0), -1.0), a)
                        of_b[b, 2] = value_b[b, n_best_b - 1]
                        least_b[b] = value_b[b, n_best_b - 1]
                    row[b] = 0
            apart = max(-(mean * scale) * apart_low, -(mean * scale) * apart_high)
            if search_whole:
                row[:] = 0
            elif value_a[i, n_best_a - 1] > apart:
                lowest = min(lowest, mean * scale)
                highest = max(highest, mean * scale)
                continue
        value_a[i] = -np.inf
        best_a[i] = -1
        add_products_of(
            a, starts_a, stops_a, tokens_a, values_a, starts_b, stops_b, features_b, values_b, row
        )
        for start in range(0, n_b, BLOCK):
            stop = min(start + BLOCK, n_b)
            least = value_a[i, n_best_a - 1]
            n_above = 0
            if len(offsets) == 0:
                for b in range(start, stop):
                    similarity = (row[b] - mean * total_b[b]) * scale * scale_b[b]
                    row[b] = similarity
                    n_above += (similarity > least) | (similarity > least_b[b])
            else:
                for b in range(start, stop):
                    similarity = (row[b] - mean * total_b[b]) * scale * scale_b[b]
                    similarity = max(min(similarity, 1.0), -1.0) - offsets[b]
                    row[b] = similarity
                    n_above += (similarity > least) | (similarity > least_b[b])
            if n_above > 0:
                for b in range(start, stop):
                    similarity = row[b]
                    if len(offsets) == 0:
                        similarity = max(min(similarity, 1.0), -1.0)
                    if similarity > value_a[i, n_best_a - 1]:
                        insert(value_a[i], best_a[i], similarity, b)
                    if similarity > least_b[b] and not is_listed(best_b[b], a):
                        insert(value_b[b], best_b[b], similarity, a)
                        least_b[b] = value_b[b, n_best_b - 1]
                        of_b[b, 2] = least_b[b]
            row[start:stop] = 0
    return best_a, value_a, best_b, value_b, lowest, highest


@no_type_check
@numba.njit(cache=True, nogil=True)
def products_of_pairs(
    pairs_a: np.ndarray,
    pairs_b: np.ndarray,
    starts_a: np.ndarray,
    stops_a: np.ndarray,
    tokens_a: np.ndarray,
    values_a: np.ndarray,
    starts_b: np.ndarray,
    stops_b: np.ndarray,
    tokens_b: np.ndarray,
    values_b: np.ndarray,
    order: np.ndarray,
    n_tokens: int,
) -> np.ndarray:
    """The sum of products of feature pairs_a[i] of A and pairs_b[i] of B over all tokens.

    Both sides come by feature. With an order, token t of A stands beside token order[t] of B; it is
    empty where that is the same one.
    """
    products = np.zeros(len(pairs_a))
    at = np.zeros(n_tokens)
    for i in range(len(pairs_a)):
        a, b = pairs_a[i], pairs_b[i]
        for q in range(starts_b[b], stops_b[b]):
            at[tokens_b[q]] = values_b[q]
        total = 0.0
        for p in range(starts_a[a], stops_a[a]):
            token = np.int64(tokens_a[p])
            if len(order) > 0:
                token = order[token]
            total += np.float64(values_a[p]) * at[token]
        products[i] = total
        for q in range(starts_b[b], stops_b[b]):
            at[tokens_b[q]] = 0
    return products


@no_type_check
@numba.njit(cache=True, nogil=True)
def to_columns(
    starts: np.ndarray, stops: np.ndarray, features: np.ndarray, values: np.ndarray, n_features: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Activations by token put in order by feature: starts, tokens, values; totals and squares.

    `starts` has one entry more than there are features; tokens rise within a feature.
    """
    begins = np.zeros(n_features + 1, dtype=np.int64)
    for t in range(len(starts)):
        for q in range(starts[t], stops[t]):
            begins[features[q] + 1] += 1
    for feature in range(n_features):
        begins[feature + 1] += begins[feature]
    at = begins[:-1].copy()
    tokens = np.empty(begins[n_features], dtype=np.int32)
    ordered = np.empty(begins[n_features], dtype=values.dtype)
    total, squares = np.zeros(n_features), np.zeros(n_features)
    for t in range(len(starts)):
        for q in range(starts[t], stops[t]):
            feature = features[q]
            tokens[at[feature]] = t
            ordered[at[feature]] = values[q]
            at[feature] += 1
            value = np.float64(values[q])
            total[feature] += value
            squares[feature] += value * value
    return begins, tokens, ordered, total, squares


@no_type_check
@numba.njit(cache=True, nogil=True)
def select_features(
    starts: np.ndarray,
    stops: np.ndarray,
    features: np.ndarray,
    values: np.ndarray,
    place: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By token, the features that have a place, renamed to it: starts, features, values."""
    n_tokens = len(starts)
    out_starts = np.zeros(n_tokens + 1, dtype=np.int64)
    for t in range(n_tokens):
        n = 0
        for q in range(starts[t], stops[t]):
            n += place[features[q]] >= 0
        out_starts[t + 1] = n
    for t in range(n_tokens):
        out_starts[t + 1] += out_starts[t]
    out_features = np.empty(out_starts[n_tokens], dtype=features.dtype)
    out_values = np.empty(out_starts[n_tokens], dtype=values.dtype)
    for t in range(n_tokens):
        n = out_starts[t]
        for q in range(starts[t], stops[t]):
            if place[features[q]] >= 0:
                out_features[n] = place[features[q]]
                out_values[n] = values[q]
                n += 1
    return out_starts, out_features, out_values


@no_type_check
@numba.njit(cache=True, nogil=True)
def largest_by_feature(
    starts: np.ndarray, stops: np.ndarray, tokens: np.ndarray, values: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """The n largest values of each feature and their tokens, largest first, ties to the earlier.

    Tokens rise within a feature; -1 and NaN where there are fewer.
    """
    rows = np.full((len(starts), n), -1, dtype=np.int64)
    largest = np.full((len(starts), n), np.nan)
    for feature in range(len(starts)):
        n_kept = 0
        for p in range(starts[feature], stops[feature]):
            value = np.float64(values[p])
            if n_kept == n and not value > largest[feature, n - 1]:
                continue
            j = min(n_kept, n - 1)
            while j > 0 and largest[feature, j - 1] < value:
                largest[feature, j] = largest[feature, j - 1]
                rows[feature, j] = rows[feature, j - 1]
                j -= 1
            largest[feature, j] = value
            rows[feature, j] = tokens[p]
            n_kept = min(n_kept + 1, n)
    return rows, largest


@no_type_check
@numba.njit(cache=True, nogil=True)
def count_documents(
    starts: np.ndarray, tokens: np.ndarray, document: np.ndarray, n_documents: int
) -> np.ndarray:
    """In how many documents, numbered from 0, each feature has a token."""
    counts = np.zeros(len(starts) - 1, dtype=np.int64)
    seen = np.full(n_documents, -1)
    for feature in range(len(counts)):
        for p in range(starts[feature], starts[feature + 1]):
            if seen[document[tokens[p]]] != feature:
                seen[document[tokens[p]]] = feature
                counts[feature] += 1
    return counts


@no_type_check
@numba.njit(cache=True, nogil=True)
def sums_by_document(
    pairs_a: np.ndarray,
    pairs_b: np.ndarray,
    starts_a: np.ndarray,
    stops_a: np.ndarray,
    tokens_a: np.ndarray,
    values_a: np.ndarray,
    starts_b: np.ndarray,
    stops_b: np.ndarray,
    tokens_b: np.ndarray,
    values_b: np.ndarray,
    document: np.ndarray,
    first: int,
    sums: np.ndarray,
) -> None:
    """Add up x, x^2, y, y^2 and x y over each document for each pair.

    Args:
        pairs_a: Each pair's feature of A, whose activations are x.
        pairs_b: Each pair's feature of B, whose activations are y.
        starts_a: Where each of A's features begins; its tokens and values follow.
        stops_a: Where it ends.
        tokens_a: Tokens.
        values_a: Activations.
        starts_b: The same for B.
        stops_b: The same for B.
        tokens_b: The same for B.
        values_b: The same for B.
        document: The document of each token, from token `first` on.
        first: See there.
        sums: Pair x 5 x document, added to.
    """
    at = np.zeros(len(document))
    for i in range(len(pairs_a)):
        a, b = pairs_a[i], pairs_b[i]
        for q in range(starts_b[b], stops_b[b]):
            token = tokens_b[q] - first
            value = np.float64(values_b[q])
            at[token] = value
            sums[i, 2, document[token]] += value
            sums[i, 3, document[token]] += value * value
        for p in range(starts_a[a], stops_a[a]):
            token = tokens_a[p] - first
            value = np.float64(values_a[p])
            sums[i, 0, document[token]] += value
            sums[i, 1, document[token]] += value * value
            sums[i, 4, document[token]] += value * at[token]
        for q in range(starts_b[b], stops_b[b]):
            at[tokens_b[q] - first] = 0


@no_type_check
@numba.njit(cache=True, nogil=True)
def add_mean_correlations(
    sums: np.ndarray,
    n_tokens: np.ndarray,
    n_terms_x: np.ndarray,
    n_terms_y: np.ndarray,
    subsets: np.ndarray,
    total: np.ndarray,
    n_left: np.ndarray,
) -> None:
    """Add up the correlations that resampled sums stand for, and count them, by subset.

    Those whose spread is no larger than rounding could have made it are left out.

    Args:
        sums: Resamples x (pair times 5): of x, x^2, y, y^2, x y.
        n_tokens: Tokens of each resample.
        n_terms_x: Terms of each sum of x, which bound its rounding.
        n_terms_y: The same for y.
        subsets: Pairs x subsets: 1 where a pair takes part in a mean, else 0.
        total: Resamples x subsets, added to.
        n_left: Resamples x subsets, added to.
    """
    n_pairs = len(subsets)
    eps = 2.220446049250313e-16
    for r in range(len(sums)):
        row, n = sums[r], n_tokens[r]
        for i in range(n_pairs):
            x, xx, y, yy, xy = (
                row[5 * i], row[5 * i + 1], row[5 * i + 2], row[5 * i + 3], row[5 * i + 4],
            )  # fmt: skip
            spread_x, spread_y = xx - x * x / n, yy - y * y / n
            if not spread_x > xx * ((8 + 2 * n_terms_x[i]) * eps):
                continue
            if not spread_y > yy * ((8 + 2 * n_terms_y[i]) * eps):
                continue
            correlation = (xy - x / n * y) / np.sqrt(spread_x) / np.sqrt(spread_y)
            correlation = max(min(correlation, 1.0), -1.0)
            for s in range(subsets.shape[1]):
                total[r, s] += correlation * subsets[i, s]
                n_left[r, s] += subsets[i, s]
