"""A layer of one side as comparisons use it: sparse activations by halves of the documents."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float64, Int

from saelign.correlation import TokenSums, shifted_rows, split_documents
from saelign.correlation.moments import FeatureMoments
from saelign.features import feature_table, is_non_concept, top_rows
from saelign.matching import Filters
from saelign.text import Tokens

MIN_UNITS = 20
"""Fewer documents than this and contexts take their place, or else stretches of the text."""

MAX_SHARE = 1 / 3
"""So do they where a document holds this share of the text: a half of it could be that one alone,
and nothing could be rolled."""

N_SHIFTS = 2
"""Rolls of the documents that chance is taken from when features are judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The text of one run, cut into two halves of its documents.

    Attributes:
        tokens: The text.
        strings: The text of each token id.
        unit: What counts as a document: `document`, or `context` or `stretch` where there are fewer
            than 20 documents or one holds a third of the text.
        documents: The document of each kept token.
        rows: For each half which kept tokens it holds.
        shifts: For each roll of B's documents against A's, and for each half, which row of B then
            stands at each row; the first is that of the control `document_shift`.
    """

    tokens: Tokens
    strings: dict[int, str]
    unit: str
    documents: Int[np.ndarray, "token"]
    rows: tuple[Int[np.ndarray, "half_1"], Int[np.ndarray, "half_2"]]
    shifts: list[tuple[Int[np.ndarray, "half_1"], Int[np.ndarray, "half_2"]]]

    def documents_in(self, half: int) -> Int[np.ndarray, "row"]:
        """The document of each row of a half."""
        return self.documents[self.rows[half]]

    def token_ids_in(self, half: int) -> Int[np.ndarray, "row"]:
        """The token id at each row of a half."""
        return self.tokens.token_ids[self.rows[half]]


def read_text_of_run(
    tokens: Tokens,
    strings: dict[int, str],
    *,
    rng_halves: np.random.Generator,
    rng_shifts: np.random.Generator,
) -> Reading:
    """The text of a run with its halves and the rolls of its documents drawn."""
    unit, documents = units_of(tokens)
    first = split_documents(documents, rng=rng_halves)
    rows = (np.flatnonzero(first), np.flatnonzero(~first))
    shifts = [
        (
            shifted_rows(documents[rows[0]], rng=rng_shifts),
            shifted_rows(documents[rows[1]], rng=rng_shifts),
        )
        for _ in range(1 + N_SHIFTS)
    ]
    return Reading(
        tokens=tokens,
        strings=strings,
        unit=unit,
        documents=documents,
        rows=rows,
        shifts=shifts,
    )


def units_of(tokens: Tokens) -> tuple[str, Int[np.ndarray, "token"]]:
    """What counts as a document, and that of each kept token.

    Bootstraps and halves want many: a book given as one file is a single document.
    """
    contexts = tokens.context_of
    for unit, of_token in (("document", tokens.document[contexts]), ("context", contexts)):
        _, n_rows = np.unique(of_token, return_counts=True)
        if len(n_rows) >= MIN_UNITS and n_rows.max() < MAX_SHARE * len(contexts):
            return unit, of_token.astype(np.int64)
    return "stretch", np.arange(len(contexts)) * MIN_UNITS // len(contexts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Half:
    """A layer's activations over one half of the documents.

    Attributes:
        by_token: A row a kept token.
        by_feature: The same by column.
        moments: Sums over the tokens.
        token_sums: Sums for each token of the vocabulary.
        top_tokens: For each feature the strings at its largest activations.
        n_non_concept: How many of those are punctuation, blank or special.
    """

    by_token: sp.csr_array
    by_feature: sp.csc_array
    moments: FeatureMoments
    token_sums: TokenSums
    top_tokens: list[list[str]]
    n_non_concept: Int[np.ndarray, "feature"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Everything about one layer that no other layer takes part in; computed once.

    Attributes:
        layer: Which.
        halves: Its activations.
        token_sums: Sums for each token of the vocabulary, over both halves.
        decoder: A row a feature.
        features: The table that the run shows of them.
    """

    layer: int
    halves: tuple[Half, Half]
    token_sums: TokenSums
    decoder: Float64[np.ndarray, "feature d_model"]
    features: pd.DataFrame

    @property
    def n_values(self) -> int:
        """Activations that are not zero."""
        return sum(half.by_token.nnz for half in self.halves)

    @property
    def n_tokens(self) -> int:
        """Kept tokens."""
        return sum(half.by_token.shape[0] for half in self.halves)

    @property
    def firing_rate(self) -> Float64[np.ndarray, "feature"]:
        """Share of tokens on which each feature is active."""
        return self.features["firing_rate"].to_numpy()


def describe_layer(
    acts: sp.csr_array,
    decoder: Float64[np.ndarray, "feature d_model"],
    reading: Reading,
    filters: Filters,
    *,
    layer: int,
) -> Layer:
    """A layer from its stored activations, with all that can be said of it alone."""
    tokens, special = reading.tokens, frozenset(reading.tokens.special_ids)
    by_feature = acts.tocsc()
    by_feature.sort_indices()
    features = feature_table(
        by_feature,
        tokens,
        reading.strings,
        special,
        top_k=filters.top_k,
        min_active_tokens=filters.min_active_tokens,
    )
    features.insert(2, "n_documents", documents_fired_in(acts, reading.documents))
    blank = {i: i in special or is_non_concept(text) for i, text in reading.strings.items()}
    halves = []
    for half in (0, 1):
        of_half = acts[reading.rows[half]]
        columns = of_half.tocsc()
        columns.sort_indices()
        ids = reading.token_ids_in(half)
        rows, _ = top_rows(columns, filters.top_k)
        top_ids = [[int(ids[row]) for row in of_feature if row >= 0] for of_feature in rows]
        halves.append(
            Half(
                by_token=of_half,
                by_feature=columns,
                moments=FeatureMoments.of(of_half),
                token_sums=TokenSums.of(of_half, ids),
                top_tokens=[[reading.strings[i] for i in top] for top in top_ids],
                n_non_concept=np.array([sum(blank[i] for i in top) for top in top_ids]),
            )
        )
    return Layer(
        layer=layer,
        halves=(halves[0], halves[1]),
        token_sums=halves[0].token_sums + halves[1].token_sums,
        decoder=decoder,
        features=features,
    )


def documents_fired_in(
    acts: sp.csr_array, documents: Int[np.ndarray, "token"]
) -> Int[np.ndarray, "feature"]:
    """In how many documents each feature is active at all."""
    n_features = int(acts.shape[1])
    of_value = np.repeat(documents, np.diff(acts.indptr)).astype(np.int64)
    seen = np.unique(of_value * n_features + acts.indices)
    return np.bincount(seen % n_features, minlength=n_features)


def shifted(layer: Layer, reading: Reading, shift: int) -> Layer:
    """The layer with its documents rolled against those of the other side, within each half.

    Token sums are those of the token that the other side reads, since it is that token whose
    identity is to be taken away.
    """
    halves = [
        roll(half, order, reading.token_ids_in(i))
        for i, (half, order) in enumerate(zip(layer.halves, reading.shifts[shift], strict=True))
    ]
    token_sums = halves[0].token_sums + halves[1].token_sums
    return replace(layer, halves=(halves[0], halves[1]), token_sums=token_sums)


def roll(half: Half, order: Int[np.ndarray, "row"], token_ids: Int[np.ndarray, "row"]) -> Half:
    """A half with its rows in another order."""
    by_token = half.by_token[order]
    by_feature = by_token.tocsc()
    by_feature.sort_indices()
    return replace(
        half,
        by_token=by_token,
        by_feature=by_feature,
        token_sums=TokenSums.of(by_token, token_ids),
    )
