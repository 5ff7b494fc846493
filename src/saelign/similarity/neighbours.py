"""Mutual nearest neighbours: are a feature's neighbours in A also its neighbours in B?"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Float64, Int

from saelign.errors import DegenerateError
from saelign.similarity.partners import Partners, partners_of
from saelign.similarity.rsa import unit_rows

BLOCK_ROWS = 256
"""Rows whose cosines with all others are held at once."""
DECIMALS = 12
"""Cosines are rounded to so many; those that differ by rounding alone then tie."""


def check_k(k: object = 10) -> None:
    """Refuse what is no number of neighbours."""
    if not isinstance(k, int) or isinstance(k, bool):
        raise DegenerateError(f"k must be a whole number, got {k!r}")
    if k < 1:
        raise DegenerateError(f"k must be at least 1, got {k}")


def check_others(k: int, n_pairs: int) -> None:
    """Refuse as many neighbours as there are other pairs: all would be shared for any data."""
    if k > n_pairs - 2:
        raise DegenerateError(
            f"k must be at most n_pairs - 2 = {n_pairs - 2}, got {k}: with as many neighbours as "
            "other pairs every one is shared for any data; ask for fewer or match more pairs"
        )


def cosine_blocks(
    rows: Float64[np.ndarray, "row d"], held: Int[np.ndarray, "pair"]
) -> Iterator[tuple[Int[np.ndarray, "here"], Float64[np.ndarray, "here row"]]]:
    """Some pairs, and the cosines of the rows that they hold with every row; a block at a time.

    Args:
        rows: Distinct.
        held: For each pair the index into `rows`.

    Raises:
        DegenerateError: A row has no direction, or every two rows are equally alike.
    """
    unit = unit_rows(rows, "cosine")
    lowest, highest = np.inf, -np.inf
    for start in range(0, len(held), BLOCK_ROWS):
        here = np.arange(start, min(start + BLOCK_ROWS, len(held)))
        cosines = np.round(unit[held[here]] @ unit.T, DECIMALS)
        with_itself = np.arange(len(here)), held[here]
        cosines[with_itself] = -np.inf
        highest = max(highest, float(cosines.max()))
        cosines[with_itself] = 1
        lowest = min(lowest, float(cosines.min()))
        yield here, cosines
    if lowest >= highest:
        raise DegenerateError(
            f"cosines must differ between pairs of rows, all {len(rows) * (len(rows) - 1) // 2} "
            "are equal: no row is nearer than another"
        )


def largest(values: Float64[np.ndarray, "row column"], n: int) -> Bool[np.ndarray, "row column"]:
    """Whether an entry is among the n largest of its row, ties by index."""
    least = np.partition(values, -n, axis=1)[:, -n, None]
    above, tied = values > least, values == least
    missing = n - above.sum(axis=1, keepdims=True)
    return above | (tied & (np.cumsum(tied, axis=1) <= missing))


def neighbour_blocks(
    rows: Float64[np.ndarray, "pair d"], k: int
) -> Iterator[Bool[np.ndarray, "here pair"]]:
    """Whether j is one of the k nearest of i, for some i at a time; never i itself.

    Equal rows are alike exactly, so pairs that hold the same feature are each other's neighbours
    first of all; among pairs that are equally near the lower ones are taken.
    """
    distinct = partners_of(rows)
    for here, cosines in cosine_blocks(distinct.rows, distinct.held):
        alike = cosines[:, distinct.held]
        alike[np.arange(len(here)), here] = -np.inf
        yield largest(alike, k)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """For each partner those nearest to it, itself among them.

    The k + 1 nearest and whatever ties with the last: as each is held by one pair at least, these
    hold the k neighbours of any pair, however they are relabelled.

    Attributes:
        starts: Where each partner's list begins, and the last one ends.
        near: Partners by falling cosine.
        alike: Their cosines.
    """

    starts: Int[np.ndarray, "boundary"]
    near: Int[np.ndarray, "entry"]
    alike: Float64[np.ndarray, "entry"]

    @classmethod
    def of(cls, rows: Float64[np.ndarray, "partner d"], k: int) -> "Nearest":
        """The nearest of the distinct rows of Y."""
        n = min(k + 1, len(rows))
        lengths, near, alike = [], [], []
        for _, cosines in cosine_blocks(rows, np.arange(len(rows))):
            least = np.partition(cosines, -n, axis=1)[:, -n, None]
            row, column = np.nonzero(cosines >= least)
            order = np.lexsort((-cosines[row, column], row))
            lengths.append(np.bincount(row, minlength=len(cosines)))
            near.append(column[order])
            alike.append(cosines[row, column][order])
        starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        return cls(starts=starts, near=np.concatenate(near), alike=np.concatenate(alike))


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighbourComparison:
    """Matched rows with the neighbours of both sides at hand, ready to be shuffled.

    Attributes:
        x: The k neighbours of each pair in X.
        y: The nearest of each distinct partner.
        partners: Who holds which.
    """

    x: Int[np.ndarray, "pair k"]
    y: Nearest
    partners: Partners

    @property
    def components(self) -> None:
        """Neighbours are found in every dimension."""
        return

    def score(self) -> float:
        """The measure on the rows as they are matched."""
        return float(self.shuffled(np.arange(len(self.partners.rows))[None])[0])

    def shuffled(
        self, permutations: Int[np.ndarray, "shuffle partner"]
    ) -> Float64[np.ndarray, "shuffle"]:
        """The measure after each relabelling of the partners.

        Who is nearest to whom stays; only which pairs hold them changes, and with it which of
        equally near pairs are the lower ones.
        """
        from saelign.similarity.pairwise import shared_neighbours  # numba: half a second

        held = self.partners.held
        shared = shared_neighbours(
            self.x,
            self.y.starts,
            self.y.near,
            self.y.alike,
            np.concatenate([[0], np.cumsum(self.partners.counts)]),
            np.argsort(held, kind="stable"),
            held,
            permutations,
        )
        return shared / self.x.size

    def exact_moments(self) -> tuple[float, float] | None:
        """Exact mean and standard deviation over all shuffles; one-to-one only.

        None also where partners tie for the last place: pairs then take it by index, and the
        neighbours of Y do more than change their names.
        """
        n_pairs, k = self.x.shape
        if not self.partners.is_one_to_one or len(self.y.near) > n_pairs * (k + 1):
            return None
        y = self.y.near.reshape(n_pairs, k + 1)
        y = y[y != np.arange(n_pairs)[:, None]].reshape(n_pairs, k)
        return neighbour_moments(self.x, y)


def mutual_and_popular(near: Int[np.ndarray, "pair k"]) -> tuple[float, float]:
    """How many (i, j) are each other's neighbours, and how unevenly neighbours are chosen.

    The latter is the sum of the squares of how much oftener than k times each is chosen.
    """
    n_pairs, k = near.shape
    chosen = sp.csr_array(
        (np.ones(near.size), (np.repeat(np.arange(n_pairs), k), near.ravel())),
        shape=(n_pairs, n_pairs),
    )
    mutual = float(chosen.multiply(chosen.T).sum())
    return mutual, float(((np.bincount(near.ravel(), minlength=n_pairs) - k) ** 2).sum())


def neighbour_moments(
    x: Int[np.ndarray, "pair k"], y: Int[np.ndarray, "pair k"]
) -> tuple[float, float] | None:
    """Mean and standard deviation, over all permutations, of the fraction of shared neighbours.

    The fraction is sum over i != j of a_ij b_p(i)p(j) / (n k), where a_ij says whether j is a
    neighbour of i in X. Once their mean k / (n - 1) is taken from the entries of a and of b, all
    rows sum to 0; of the ways in which two index pairs (i, j) and (l, m) can coincide there remain
    the same pair (`own`), its reverse (`mutual`) and the same neighbour (`popular`), and the other
    sums follow from these three.

    Returns:
        (mean, standard deviation); None for n < 4, where the variance has no such form.

    Source: Mantel (1967), "The detection of disease clustering", for matrices that need not be
    symmetric; form by this package.
    """
    n, k = x.shape
    if n < 4:
        return None
    own = n * k * (1 - k / (n - 1))
    (mutual_x, popular_x), (mutual_y, popular_y) = mutual_and_popular(x), mutual_and_popular(y)
    mutual_x, mutual_y = mutual_x - n * k * k / (n - 1), mutual_y - n * k * k / (n - 1)
    pairs, triples = n * (n - 1), n * (n - 1) * (n - 2)
    variance = (
        (own * own + mutual_x * mutual_y) / pairs
        + (own * own + (popular_x - own) * (popular_y - own) + 2 * mutual_x * mutual_y) / triples
        + (own + mutual_x - popular_x) * (own + mutual_y - popular_y) / (triples * (n - 3))
    )
    return k / (n - 1), float(np.sqrt(max(variance, 0.0))) / (n * k)


def compare_neighbours(
    x: Float64[np.ndarray, "pair d_x"], partners: Partners, *, k: int = 10
) -> NeighbourComparison:
    """Both sides' neighbours, found once.

    Raises:
        DegenerateError: As `mutual_knn`.
    """
    check_k(k)
    check_others(k, len(x))
    near_x = np.concatenate([np.nonzero(block)[1] for block in neighbour_blocks(x, k)])
    return NeighbourComparison(
        x=near_x.reshape(len(x), k), y=Nearest.of(partners.rows, k), partners=partners
    )


def mutual_knn(
    x: Float[np.ndarray, "pair d_x"], y: Float[np.ndarray, "pair d_y"], *, k: int = 10
) -> float:
    """Fraction of each pair's k nearest neighbours in X that are its neighbours in Y, in [0, 1].

    Neighbours are other pairs, by cosine, the lower ones where several are equally near. By chance
    k / (K - 1) of them are shared. Pairs that hold the same feature have equal rows and are each
    other's neighbours first of all. Relabelling features leaves such groups together, so what they
    add to the score they add to its null; the tie by index is in both for the same reason.

    Args:
        x: Matched rows of A.
        y: Matched rows of B.
        k: How many neighbours, at least 1 and at most K - 2.

    Raises:
        DegenerateError: No such `k`, a row without direction, or rows that are all equally alike.

    Source: Huh et al. (2024), "The Platonic Representation Hypothesis", appendix A.
    """
    check_k(k)
    check_others(k, len(x))
    blocks = zip(neighbour_blocks(x, k), neighbour_blocks(y, k), strict=True)
    return sum(int((near_x & near_y).sum()) for near_x, near_y in blocks) / (len(x) * k)
