"""A layer of one side as comparisons use it: sparse activations by halves of the documents."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Bool, Float, Float64, Int

from saelign.correlation import (
    FeatureColumns,
    TokenRows,
    TokenSums,
    shifted_rows,
    split_documents,
)
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
        columns: The same by feature, tokens numbered as in the whole layer.
        first: The first of its tokens in the whole layer.
        moments: Sums over the tokens.
        token_sums: Sums for each token of the vocabulary.
        top_tokens: For each feature the strings at its largest activations.
        n_non_concept: How many of those are punctuation, blank or special.
    """

    by_token: sp.csr_array
    columns: FeatureColumns
    first: int
    moments: FeatureMoments
    token_sums: TokenSums
    top_tokens: list[list[str]]
    n_non_concept: Int[np.ndarray, "feature"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Everything about one layer that no other layer takes part in; computed once.

    Attributes:
        layer: Which.
        rows: Its activations by token, those of half 1 before those of half 2.
        columns: The same by feature.
        halves: The same for each half; nothing in it is stored twice.
        token_sums: Sums for each token of the vocabulary, over both halves.
        decoder: A row a feature.
        features: The table that the run shows of them.
        members: For each semantic subspace which features belong to it.
    """

    layer: int
    rows: TokenRows
    columns: FeatureColumns
    halves: tuple[Half, Half]
    token_sums: TokenSums
    decoder: Float[np.ndarray, "feature d_model"]
    features: pd.DataFrame
    members: Mapping[str, Bool[np.ndarray, "feature"]] = field(default_factory=dict)

    @property
    def moments(self) -> FeatureMoments:
        """Sums over all tokens."""
        return self.halves[0].moments + self.halves[1].moments

    @property
    def n_bytes(self) -> int:
        """What its arrays take."""
        arrays = [self.rows.features, self.rows.values, self.rows.starts, self.rows.stops]
        arrays += [self.columns.tokens, self.columns.values, self.decoder]
        arrays += [of_half.by_token.indices for of_half in self.halves]
        for sums in (self.token_sums, *(of_half.token_sums for of_half in self.halves)):
            arrays += [sums.sums.data, sums.sums.indices, sums.sums.indptr]
        return sum(array.nbytes for array in arrays)

    @property
    def n_values(self) -> int:
        """Activations that are not zero."""
        return len(self.columns.values)

    @property
    def n_tokens(self) -> int:
        """Kept tokens."""
        return self.columns.n_tokens

    @property
    def firing_rate(self) -> Float64[np.ndarray, "feature"]:
        """Share of tokens on which each feature is active."""
        return self.features["firing_rate"].to_numpy()


def describe_layer(
    acts: sp.csr_array,
    decoder: Float[np.ndarray, "feature d_model"],
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
    features.insert(2, "n_documents", documents_fired_in(by_feature, reading.documents))
    blank = {i: i in special or is_non_concept(text) for i, text in reading.strings.items()}
    rows, columns, parts = laid_out(acts[np.concatenate(reading.rows)], len(reading.rows[0]))
    ids = reading.tokens.token_ids[np.concatenate(reading.rows)]
    halves = []
    for half, (by_token, of_half, first) in enumerate(parts):
        top, _ = top_rows(of_half, filters.top_k)
        top_ids = [[int(ids[row]) for row in of_feature if row >= 0] for of_feature in top]
        halves.append(
            Half(
                by_token=by_token,
                columns=of_half,
                first=first,
                moments=FeatureMoments.of(by_token),
                token_sums=TokenSums.of(by_token, reading.token_ids_in(half)),
                top_tokens=[[reading.strings[i] for i in top] for top in top_ids],
                n_non_concept=np.array([sum(blank[i] for i in top) for top in top_ids]),
            )
        )
    return Layer(
        layer=layer,
        rows=rows,
        columns=columns,
        halves=(halves[0], halves[1]),
        token_sums=halves[0].token_sums + halves[1].token_sums,
        decoder=decoder,
        features=features,
    )


def laid_out(
    acts: sp.csr_array, n_first: int
) -> tuple[TokenRows, FeatureColumns, list[tuple[sp.csr_array, FeatureColumns, int]]]:
    """Activations by token and by feature; and each half's share of both, which begins where said.

    Args:
        acts: Tokens x features, those of half 1 before those of half 2.
        n_first: Tokens of half 1.
    """
    by_feature = acts.tocsc()
    by_feature.sort_indices()
    columns = FeatureColumns.of(by_feature)
    n_tokens, width = acts.shape
    in_first = np.concatenate([[0], np.cumsum(by_feature.indices < n_first, dtype=np.int64)])
    cut = columns.starts + (in_first[columns.stops] - in_first[columns.starts])
    parts = []
    for first, stop, of_half in (
        (0, n_first, replace(columns, stops=cut)),
        (n_first, n_tokens, replace(columns, starts=cut)),
    ):
        begin, end = acts.indptr[first], acts.indptr[stop]
        by_token = sp.csr_array(
            (acts.data[begin:end], acts.indices[begin:end], acts.indptr[first : stop + 1] - begin),
            shape=(stop - first, width),
        )
        parts.append((by_token, of_half, first))
    return TokenRows.of(acts), columns, parts


def documents_fired_in(
    acts: sp.csc_array, documents: Int[np.ndarray, "token"]
) -> Int[np.ndarray, "feature"]:
    """In how many documents each feature is active at all."""
    from saelign.correlation.kernel import count_documents  # numba: half a second

    names, number = np.unique(documents, return_inverse=True)
    return count_documents(acts.indptr, acts.indices, number, len(names))


def whole_order(reading: Reading, shift: int) -> Int[np.ndarray, "token"]:
    """Which of a layer's tokens stands at each token of the other side, its documents rolled."""
    first, second = reading.shifts[shift]
    return np.concatenate([first, len(first) + second])


def shifted(layer: Layer, reading: Reading, shift: int) -> Layer:
    """The layer with its documents rolled against those of the other side, within each half.

    Token sums are those of the token that the other side reads, since it is that token whose
    identity is to be taken away.
    """
    acts = sp.csr_array(sp.vstack([half.by_token for half in layer.halves]))
    rows, columns, parts = laid_out(acts[whole_order(reading, shift)], layer.halves[1].first)
    first, second = (
        replace(
            half,
            by_token=by_token,
            columns=of_half,
            token_sums=TokenSums.of(by_token, reading.token_ids_in(i)),
        )
        for i, (half, (by_token, of_half, _)) in enumerate(zip(layer.halves, parts, strict=True))
    )
    return replace(
        layer,
        rows=rows,
        columns=columns,
        halves=(first, second),
        token_sums=first.token_sums + second.token_sums,
    )
