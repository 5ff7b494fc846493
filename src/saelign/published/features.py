"""A layer's features as the published method sees them: dense, a block at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float64, Int, Int64
from torch import Tensor

from saelign.correlation import Strongest
from saelign.correlation.moments import add_products
from saelign.correlation.strongest import named, strongest_of_blocks
from saelign.saes import SAE
from saelign.saes.sae import encode, encode_sparse, in_parts

TOP_K = 5
EPSILON = 1e-8
"""Added to standard deviations by the published code."""

BYTES_AN_ENTRY = 12
"""Of a block of activations: as encoded, and standardised."""

FEWEST, MOST = 16, 4096
"""Features of a block."""

SPARSE = 0.05
"""The share of activations that are not zero below which codes are stored and multiplied sparse."""


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """What an SAE makes of a layer, at every position that counts.

    Attributes:
        columns: Gives the activations of some features, float32, dense.
        stored: All of them, where they are sparse or no feature can be had without the others.
    """

    columns: Callable[[Int[np.ndarray, "chosen"]], Tensor]
    stored: sp.csc_array | None


def codes_of(
    sae: SAE, stream: np.ndarray, rows: Int[np.ndarray, "position"] | None, *, before_topk: bool
) -> Codes:
    """What an SAE makes of a layer: stored if sparse or after TopK, else encoded when asked for.

    Args:
        sae: The SAE.
        stream: What it reads, a row a position; may be a memory map.
        rows: Which positions; all if None.
        before_topk: Whether the codes of a TopK SAE are those before TopK, after ReLU.
    """
    device = sae.W_dec.device

    def read() -> Tensor:
        x = np.array(stream if rows is None else stream[rows], dtype=np.float32)
        return torch.from_numpy(x).to(device)

    if before_topk and sae.encoder is None:
        sae = replace(sae, k=None)
    parts = in_parts(sae, read())
    sample = encode_sparse(sae, parts[len(parts) // 2])
    if sae.k is not None or sae.encoder is not None or sample[0].mean() < SPARSE * sae.d_sae:
        counts, features, values = zip(*(encode_sparse(sae, part) for part in parts), strict=True)
        indptr = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
        by_position = sp.csr_array(
            (np.concatenate(values), np.concatenate(features), indptr),
            shape=(len(indptr) - 1, sae.d_sae),
        )
        stored = sp.csc_array(by_position)
        return Codes(lambda some: torch.from_numpy(stored[:, some].toarray()).to(device), stored)

    def some(features: Int[np.ndarray, "chosen"]) -> Tensor:
        at = torch.from_numpy(features).to(device)
        assert sae.W_enc is not None
        assert sae.b_enc is not None
        part = replace(
            sae,
            W_enc=sae.W_enc[:, at].contiguous(),
            b_enc=sae.b_enc[at],
            W_dec=sae.W_dec[at],
            threshold=None if sae.threshold is None else sae.threshold[at],
        )
        return encode(part, read())

    return Codes(some, None)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features:
    """A layer's features over some positions.

    Attributes:
        codes: Their activations.
        n_positions: How many positions.
        n_active: At how many each is active.
        mean: Their mean activation.
        sd: Its standard deviation, n - 1; 0 where a feature is constant.
        top: The positions of the five largest activations, ties by position; zeros count.
    """

    codes: Codes
    n_positions: int
    n_active: Int64[np.ndarray, "feature"]
    mean: Float64[np.ndarray, "feature"]
    sd: Float64[np.ndarray, "feature"]
    top: Int64[np.ndarray, "feature 5"]

    @classmethod
    def of(cls, codes: Codes, n_features: int, n_positions: int, *, memory: int) -> "Features":
        """What is to be known of each feature alone, in one pass."""
        width = block_width(n_positions, memory)
        n_active, mean, sd, top = [], [], [], []
        for start in range(0, n_features, width):
            acts = codes.columns(np.arange(start, min(start + width, n_features)))
            exact = acts.double()
            of_block = exact.mean(dim=0)
            spread = exact.std(dim=0)
            low, high = torch.aminmax(acts, dim=0)
            spread[low == high] = 0.0
            n_active.append((acts > 0).sum(dim=0).cpu().numpy())
            mean.append(of_block.cpu().numpy())
            sd.append(spread.cpu().numpy())
            top.append(top_positions(acts.T.contiguous().cpu().numpy()))
        return cls(
            codes=codes,
            n_positions=n_positions,
            n_active=np.concatenate(n_active).astype(np.int64),
            mean=np.concatenate(mean),
            sd=np.concatenate(sd),
            top=np.concatenate(top),
        )

    def standardised(self, features: Int[np.ndarray, "chosen"]) -> Tensor:
        """z-scores of some features as published: 1e-8 beside the standard deviation."""
        acts = self.codes.columns(features).double()
        mean, sd = (
            torch.from_numpy(values[features]).to(acts.device) for values in (self.mean, self.sd)
        )
        return acts.sub_(mean).div_(sd + EPSILON)

    @property
    def is_constant(self) -> Bool[np.ndarray, "feature"]:
        """Which features are the same at all positions, dead ones among them."""
        return self.sd == 0

    @property
    def firing_rate(self) -> Float64[np.ndarray, "feature"]:
        """Share of positions at which each is active."""
        return self.n_active / self.n_positions


def top_positions(acts: np.ndarray) -> Int64[np.ndarray, "feature 5"]:
    """Where the five largest of each row stand, largest first, ties by position.

    The rows are changed.
    """
    found = np.empty((len(acts), TOP_K), dtype=np.int64)
    every = np.arange(len(acts))
    for place in range(TOP_K):
        found[:, place] = acts.argmax(axis=1)  # of equals the first
        acts[every, found[:, place]] = -np.inf
    return found


def block_width(n_positions: int, memory: int) -> int:
    """How many features of either side are worked on at once."""
    room = memory // 2 // (2 * BYTES_AN_ENTRY * n_positions)
    return int(min(MOST, max(FEWEST, room)))


class Correlations:
    """Correlations between two layers' features, from dense products of blocks of them.

    All of them are kept where they fit into a quarter of the memory, else they are computed again.

    Args:
        a: A layer of A.
        b: A layer of B.
        memory: Bytes that this may take.
    """

    def __init__(self, a: Features, b: Features, *, memory: int) -> None:
        self.a, self.b = a, b
        self.width = block_width(a.n_positions, memory)
        self.fits = 8 * len(a.sd) * len(b.sd) <= memory // 4
        self.kept: np.ndarray | None = None
        self.is_exact = False

    def exactly(self, *, exact: bool) -> "Correlations":
        """The same, as published (`exact` False) or as Pearson's correlation is defined."""
        self.is_exact = exact
        return self

    def blocks(
        self, features_a: Int64[np.ndarray, "chosen_a"], features_b: Int64[np.ndarray, "chosen_b"]
    ) -> Iterator[tuple[Int64[np.ndarray, "_"], Float64[np.ndarray, "_ chosen_b"]]]:
        """Correlations between some features, a block of rows at a time; 0 with constant ones."""
        if self.fits and self.kept is None:
            every = np.arange(len(self.a.sd)), np.arange(len(self.b.sd))
            self.kept = np.concatenate([block for _, block in self.computed(*every)])
        if self.kept is not None:
            for rows in self.parts(features_a):
                yield rows, self.scaled(self.kept[np.ix_(rows, features_b)], rows, features_b)
            return
        for rows, block in self.computed(features_a, features_b):
            yield rows, self.scaled(block, rows, features_b)

    def parts(self, features: Int64[np.ndarray, "chosen"]) -> Iterator[Int64[np.ndarray, "_"]]:
        """The features a block at a time."""
        for start in range(0, len(features), self.width):
            yield features[start : start + self.width]

    def computed(
        self, features_a: Int64[np.ndarray, "chosen_a"], features_b: Int64[np.ndarray, "chosen_b"]
    ) -> Iterator[tuple[Int64[np.ndarray, "_"], Float64[np.ndarray, "_ chosen_b"]]]:
        """Products of z-scores as published, divided by n."""
        if self.a.codes.stored is not None and self.b.codes.stored is not None:
            yield from self.computed_sparse(features_a, features_b)
            return
        for rows in self.parts(features_a):
            of_a = self.a.standardised(rows).T
            block = np.empty((len(rows), len(features_b)))
            start = 0
            for columns in self.parts(features_b):
                products = of_a @ self.b.standardised(columns)
                stop = start + len(columns)
                block[:, start:stop] = (products / self.a.n_positions).cpu().numpy()
                start = stop
            yield rows, block

    def computed_sparse(
        self, features_a: Int64[np.ndarray, "chosen_a"], features_b: Int64[np.ndarray, "chosen_b"]
    ) -> Iterator[tuple[Int64[np.ndarray, "_"], Float64[np.ndarray, "_ chosen_b"]]]:
        """The same from stored codes: the products of means are taken off those of activations."""
        in_a, in_b = self.a.codes.stored, self.b.codes.stored
        assert in_a is not None
        assert in_b is not None
        in_b = sp.csr_array(in_b[:, features_b])
        mean_b, sd_b = self.b.mean[features_b], self.b.sd[features_b] + EPSILON
        for rows in self.parts(features_a):
            block = np.zeros((len(rows), len(features_b)))
            add_products(sp.csc_array(in_a[:, rows]), in_b, block)
            block /= self.a.n_positions
            block -= np.outer(self.a.mean[rows], mean_b)
            block /= (self.a.sd[rows] + EPSILON)[:, None]
            block /= sd_b
            block[self.a.is_constant[rows]] = 0  # but for rounding they are
            block[:, self.b.is_constant[features_b]] = 0
            yield rows, block

    def scaled(
        self,
        block: Float64[np.ndarray, "row column"],
        rows: Int64[np.ndarray, "row"],
        columns: Int64[np.ndarray, "column"],
    ) -> Float64[np.ndarray, "row column"]:
        """The block, or what it would be without 1e-8 and divided by n - 1."""
        if not self.is_exact:
            return block
        n = self.a.n_positions
        factors = [
            np.divide(of + EPSILON, of, out=np.zeros_like(of), where=of > 0)
            for of in (self.a.sd[rows], self.b.sd[columns])
        ]
        return block * (n / (n - 1)) * factors[0][:, None] * factors[1]

    def best_of_b(
        self, features_a: Int64[np.ndarray, "chosen_a"], features_b: Int64[np.ndarray, "chosen_b"]
    ) -> tuple[Int64[np.ndarray, "chosen_b"], Float64[np.ndarray, "chosen_b"]]:
        """For each feature of B its best of A, of equals the first, and their correlation."""
        best = np.full(len(features_b), -1, dtype=np.int64)
        value = np.full(len(features_b), -np.inf)
        every = np.arange(len(features_b))
        for rows, block in self.blocks(features_a, features_b):
            first = block.argmax(axis=0)
            found = block[first, every]
            above = found > value
            best[above], value[above] = rows[first[above]], found[above]
        return best, value

    def strongest(
        self,
        features_a: Int64[np.ndarray, "chosen_a"],
        features_b: Int64[np.ndarray, "chosen_b"],
        *,
        n_best_a: int,
    ) -> Strongest:
        """The strongest partners of some features, as the greedy matching asks for them."""
        blocks = self.blocks(features_a, features_b)
        lists = strongest_of_blocks(blocks, None, len(features_b), n_best_a, 1)
        return named(lists, features_a, features_b, None)

    def of_pairs(
        self, a: Int64[np.ndarray, "pair"], b: Int64[np.ndarray, "pair"]
    ) -> Float64[np.ndarray, "pair"]:
        """The correlation of feature a[i] of A with b[i] of B."""
        found = np.empty(len(a))
        order = np.argsort(a, kind="stable")
        for some in (order[i : i + self.width] for i in range(0, len(order), self.width)):
            rows, at_a = np.unique(a[some], return_inverse=True)
            columns, at_b = np.unique(b[some], return_inverse=True)
            start = 0
            for part, block in self.blocks(rows, columns):
                here = (at_a >= start) & (at_a < start + len(part))
                found[some[here]] = block[at_a[here] - start, at_b[here]]
                start += len(part)
        return found
