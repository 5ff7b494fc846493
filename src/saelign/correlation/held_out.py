"""What a correlation is worth on documents that its pair was not chosen on.

A matching picks the best of many partners, so that the correlation it reports is too high, most of
all among rare features. Documents are split in two; pairs found on one half are correlated on the
other. Documents, not tokens, are the unit: the tokens of a document are not independent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float64, Integer

from saelign.correlation.moments import CrossMoments
from saelign.correlation.sparse import FeatureColumns
from saelign.correlation.threads import equal_parts, in_parts
from saelign.errors import DegenerateError, ShapeError

BLOCK_BYTES = 2**23
"""What one dense block of sums may take while resampling; two or three are held at a time."""


def pair_correlations(
    moments: CrossMoments, a: Integer[np.ndarray, "pair"], b: Integer[np.ndarray, "pair"]
) -> Float64[np.ndarray, "pair"]:
    """Pearson correlation of feature a[i] of A with feature b[i] of B, in [-1, 1].

    Args:
        moments: Of the tokens to correlate over, for instance the held-out half.
        a: Features of A; may repeat.
        b: Features of B; may repeat.

    Returns:
        NaN where either feature is silent or constant over those tokens.
    """
    side_a, side_b = moments.a, moments.b
    covariance = moments.products[a, b] - side_a.total[a] * (side_b.total[b] / side_a.n_tokens)
    with np.errstate(divide="ignore", invalid="ignore"):
        result = covariance / np.sqrt(side_a.centred_squares[a])
        result /= np.sqrt(side_b.centred_squares[b])
    constant = (side_a.centred_squares[a] == 0) | (side_b.centred_squares[b] == 0)
    return np.where(constant, np.nan, np.clip(result, -1, 1))


def numbered_documents(
    document: Integer[np.ndarray, "row"], *, wanted_for: str
) -> tuple[Integer[np.ndarray, "row"], Integer[np.ndarray, "document"]]:
    """Each row's document counted from 0, and the number of rows of each document.

    Raises:
        DegenerateError: There are fewer than two documents.
    """
    documents, number, n_rows = np.unique(document, return_inverse=True, return_counts=True)
    if len(documents) < 2:
        raise DegenerateError(
            f"there must be at least 2 documents to {wanted_for}, got {len(documents)}: use more "
            "text, or say where its documents begin"
        )
    return number, n_rows


def split_documents(
    document: Integer[np.ndarray, "row"], *, rng: np.random.Generator
) -> Bool[np.ndarray, "row"]:
    """Whether each row belongs to half 1 of the documents.

    Documents are put in random order and cut where the tokens before the cut are nearest to half
    of all, so that the halves differ by no more than the longest document.

    Args:
        document: The document of each kept token.
        rng: Draws the order.

    Raises:
        DegenerateError: There are fewer than two documents.
    """
    number, n_rows = numbered_documents(document, wanted_for="split")
    order = rng.permutation(len(n_rows))
    before = np.cumsum(n_rows[order])[:-1]  # each half holds a document at least
    n_first = 1 + int(np.abs(2 * before - len(document)).argmin())
    in_first = np.zeros(len(n_rows), dtype=bool)
    in_first[order[:n_first]] = True
    return in_first[number]


def shifted_rows(
    document: Integer[np.ndarray, "row"], *, rng: np.random.Generator
) -> Integer[np.ndarray, "row"]:
    """The order of rows that rolls one model's documents against the other's.

    A circular shift that begins with a document, drawn among all that move every row, either way
    round, by at least the longest run of rows of one document, so that no part of a document lies
    beside another part of it; among all but no shift where documents are too few or unequal for
    that. What lies within a document stays in order. Documents need not be equally long.

    Args:
        document: The document of each kept token; the rows of a document stand together.
        rng: Draws the shift.

    Returns:
        Indices to take B's rows by, A's rows being left as they are.

    Raises:
        DegenerateError: There are fewer than two documents.
    """
    numbered_documents(document, wanted_for="shift")
    n_rows = len(document)
    beginnings = np.flatnonzero(np.diff(document)) + 1  # row 0, no shift at all, is not among them
    longest = np.diff(beginnings, prepend=0, append=n_rows).max()
    clear = beginnings[(beginnings >= longest) & (n_rows - beginnings >= longest)]
    return np.roll(np.arange(n_rows), -int(rng.choice(clear if len(clear) else beginnings)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldOutHalf:
    """Pairs that were matched on the other half, and this half's activations.

    Attributes:
        acts_a: Tokens x features of A on this half.
        acts_b: The same tokens through B.
        documents: The document of each of these tokens.
        a: Each pair's feature of A; may repeat.
        b: Each pair's feature of B; may repeat.
        first_token: What the activations call the first of these tokens, where they come by
            feature.
    """

    acts_a: sp.csr_array | sp.csc_array | FeatureColumns
    acts_b: sp.csr_array | sp.csc_array | FeatureColumns
    documents: Integer[np.ndarray, "token"]
    a: Integer[np.ndarray, "pair"]
    b: Integer[np.ndarray, "pair"]
    first_token: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.acts_a, FeatureColumns) or isinstance(self.acts_b, FeatureColumns):
            return
        if not self.acts_a.shape[0] == self.acts_b.shape[0] == len(self.documents):
            raise ShapeError(
                "both sides and the documents must hold the same tokens, got "
                f"{self.acts_a.shape[0]}, {self.acts_b.shape[0]} and {len(self.documents)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BootstrapMean:
    """The mean held-out correlation and the interval that resampled documents give it.

    Attributes:
        mean: Mean over the pairs of each half, then over halves; NaN if every pair is silent.
        low: Lower end of the interval; NaN where a half has a single document, or no mean.
        high: Upper end.
        n_silent: Pairs, of all halves, that have no held-out correlation.
        correlations: Each half's held-out correlations, pair by pair; NaN where silent.
    """

    mean: float
    low: float
    high: float
    n_silent: int
    correlations: tuple[Float64[np.ndarray, "_"], ...]


def document_counts(
    n_documents: int, n_resamples: int, *, rng: np.random.Generator
) -> Integer[np.ndarray, "resample document"]:
    """How often each document is drawn, as many draws a resample as there are documents."""
    counts = np.empty((n_resamples, n_documents), dtype=np.uint16)
    at_once = max(1, BLOCK_BYTES // (8 * n_documents))
    for start in range(0, n_resamples, at_once):
        n_rows = min(at_once, n_resamples - start)
        drawn = rng.integers(n_documents, size=(n_rows, n_documents))
        drawn += n_documents * np.arange(n_rows)[:, None]
        counts[start : start + n_rows] = np.bincount(
            drawn.ravel(), minlength=n_rows * n_documents
        ).reshape(n_rows, n_documents)
    return counts


def resampled_means(
    half: HeldOutHalf,
    counts: Integer[np.ndarray, "resample document"],
    subsets: Float64[np.ndarray, "pair subset"],
) -> tuple[Float64[np.ndarray, "pair"], Float64[np.ndarray, "resample subset"]]:
    """Held-out correlations of the pairs, and their means in each resample of the documents.

    Moments are additive over documents, so a resample is a weighted sum of them: one matrix product
    does for all resamples. A pair that is silent or constant is NaN and left out of every mean; one
    that becomes so in a resample is left out of that one's mean. NaN where no pair is left.

    Args:
        half: Pairs and activations.
        counts: How often each document, in ascending order of its id, stands in each resample.
        subsets: 1 where a pair takes part in a mean, else 0.
    """
    from saelign.correlation.kernel import add_mean_correlations, sums_by_document  # numba

    documents, document, n_tokens = np.unique(
        half.documents, return_inverse=True, return_counts=True
    )
    n_documents, n_resamples, n_pairs = len(documents), len(counts), len(half.a)
    x, y = (
        acts if isinstance(acts, FeatureColumns) else FeatureColumns.of(acts.tocsc())
        for acts in (half.acts_a, half.acts_b)
    )
    correlations = np.empty(n_pairs)
    total = np.zeros((n_resamples, subsets.shape[1]))
    n_left = np.zeros_like(total)
    pairs_at_once = max(1, BLOCK_BYTES // (5 * 8 * n_documents))
    for start in range(0, n_pairs, pairs_at_once):
        a, b = (side[start : start + pairs_at_once].astype(np.int64) for side in (half.a, half.b))
        by_document = np.zeros((len(a), 5, n_documents))
        in_parts(
            lambda part, a=a, b=b, by_document=by_document: sums_by_document(
                a[part], b[part], x.starts, x.stops, x.tokens, x.values,
                y.starts, y.stops, y.tokens, y.values,
                document, half.first_token, by_document[part],
            ),
            equal_parts(len(a)),
        )  # fmt: skip
        sums = by_document.reshape(5 * len(a), n_documents)
        n_active = x.stops[a] - x.starts[a], y.stops[b] - y.starts[b]
        some = slice(start, start + len(a))
        once = by_document.sum(axis=2).T.reshape(1, 5 * len(a))
        correlations[some] = of_sums(
            once, np.array([float(n_tokens.sum())]), *n_active, n_documents
        )[0]
        # A pair that is silent or constant takes part in no mean.
        heard = subsets[some] * ~np.isnan(correlations[some])[:, None]
        resamples_at_once = max(1, BLOCK_BYTES // (8 * (len(sums) + n_documents)))
        for first in range(0, n_resamples, resamples_at_once):
            rows = slice(first, first + resamples_at_once)
            weights = counts[rows].astype(np.float64)
            resampled, n_drawn = weights @ sums.T, weights @ n_tokens
            in_parts(
                lambda part, resampled=resampled, n_drawn=n_drawn, rows=rows, heard=heard,
                n_active=n_active: add_mean_correlations(
                    resampled[part], n_drawn[part], n_active[0] + n_documents,
                    n_active[1] + n_documents, heard, total[rows][part], n_left[rows][part],
                ),
                equal_parts(len(weights)),
            )  # fmt: skip
    return correlations, np.divide(
        total, n_left, out=np.full(total.shape, np.nan), where=n_left > 0
    )


def of_sums(
    sums: Float64[np.ndarray, "resample five_times_pair"],
    n_tokens: Float64[np.ndarray, "resample"],
    n_active_x: Integer[np.ndarray, "pair"],
    n_active_y: Integer[np.ndarray, "pair"],
    n_documents: int,
) -> Float64[np.ndarray, "resample pair"]:
    """Pearson correlations from the sums of x, x^2, y, y^2 and xy; overwrites `sums`.

    NaN where the spread is no larger than rounding could have made it: each sum runs over at most
    the active tokens of a document and then over the documents (see `FeatureMoments.rounding`).
    """
    x, xx, y, yy, xy = np.split(sums, 5, axis=1)
    n = n_tokens[:, None]
    mean = x / n
    xy -= mean * y
    for squares, total, n_active in ((xx, x, n_active_x), (yy, y, n_active_y)):
        rounding = squares * ((8 + 2 * (n_active + n_documents)) * np.finfo(np.float64).eps)
        np.multiply(total, total, out=mean)
        mean /= n
        squares -= mean
        squares[squares <= rounding] = np.nan
        np.sqrt(squares, out=squares)
        xy /= squares
    return np.clip(xy, -1, 1, out=xy)


def bootstrap_mean_correlation(
    halves: Sequence[HeldOutHalf],
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    rng: np.random.Generator,
) -> BootstrapMean:
    """The mean held-out correlation of pairs, and how far other documents would have moved it.

    Each half's documents are resampled with replacement, independently, and the pairs correlated
    again; they are never matched again. The interval is that of the resampled means' percentiles,
    set about the mean. It says nothing of what other documents would have matched.

    Args:
        halves: One, or both for the average of the two directions.
        n_resamples: Resamples of the documents, at least 1.
        level: Coverage of the interval, between 0 and 1.
        rng: Draws the resamples.

    Raises:
        DegenerateError: There is no half, or no resample.
    """
    everything = [[np.ones(len(half.a), dtype=bool)] for half in halves]
    return bootstrap_subsets(halves, everything, n_resamples=n_resamples, level=level, rng=rng)[0]


def bootstrap_subsets(
    halves: Sequence[HeldOutHalf],
    subsets: Sequence[Sequence[Bool[np.ndarray, "_"]]],
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    rng: np.random.Generator,
) -> list[BootstrapMean]:
    """As `bootstrap_mean_correlation`, for several subsets of the pairs over the same resamples.

    Args:
        halves: One, or both for the average of the two directions.
        subsets: For each half its subsets: whether each of its pairs belongs.
        n_resamples: Resamples of the documents, at least 1.
        level: Coverage of the interval, between 0 and 1.
        rng: Draws the resamples.

    Raises:
        DegenerateError: There is no half, or no resample.
    """
    if not halves or n_resamples < 1:
        raise DegenerateError(
            "a bootstrap must have a half and a resample at least, got "
            f"{len(halves)} halves and n_resamples={n_resamples}"
        )
    correlations: list[np.ndarray] = []
    resampled: list[np.ndarray] = []
    for half, of_half in zip(halves, subsets, strict=True):
        n_documents = len(np.unique(half.documents))
        counts = document_counts(n_documents, n_resamples, rng=rng)
        of_pairs, of_resamples = resampled_means(
            half, counts, np.stack(of_half, axis=1).astype(np.float64)
        )
        correlations.append(of_pairs)
        resampled.append(of_resamples if n_documents > 1 else of_resamples * np.nan)
    return [
        _interval(
            [r[of_half[i]] for r, of_half in zip(correlations, subsets, strict=True)],
            [r[:, i] for r in resampled],
            level,
        )
        for i in range(len(subsets[0]))
    ]


def _interval(
    correlations: Sequence[Float64[np.ndarray, "_"]],
    resampled: Sequence[Float64[np.ndarray, "resample"]],
    level: float,
) -> BootstrapMean:
    # A half without a defined pair has no say in the average.
    heard = [i for i, r in enumerate(correlations) if not np.isnan(r).all()]
    means = [float(np.nanmean(correlations[i])) for i in heard]
    averages = np.mean([resampled[i] for i in heard], axis=0) if heard else np.full(1, np.nan)
    averages = averages[~np.isnan(averages)]
    outside = (1 - level) / 2
    mean = float(np.mean(means)) if means else np.nan
    # A resample lacks a third of the documents, and with them all that rare features have, so that
    # resampled means run low. The interval is their spread, set about the mean.
    about = averages - averages.mean() + mean if len(averages) else np.full(1, np.nan)
    low, high = np.quantile(about, [outside, 1 - outside])
    return BootstrapMean(
        mean=mean,
        low=float(low),
        high=float(high),
        n_silent=int(sum(np.isnan(r).sum() for r in correlations)),
        correlations=tuple(correlations),
    )
