"""What a feature fires on, token by token: its top contexts with an activation at every token."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Int

from saelign.features import top_rows
from saelign.text import Tokens

BEFORE, AFTER = 11, 6
"""Tokens kept before and after the one of a top activation."""


def context_table(
    acts: sp.csc_array,
    tokens: Tokens,
    token_strings: Mapping[int, str],
    *,
    top_k: int,
) -> pd.DataFrame:
    """A row for each feature and each of its largest activations.

    Args:
        acts: Kept tokens x features, columns sorted by token.
        tokens: The text that was read.
        token_strings: The text of each token id.
        top_k: Largest activations to show.

    Returns:
        `feature`, `rank` (0 is the largest), `document`, `context`, `position` (of the top token in
        its context), `at` (of the top token in the list), `tokens` (strings around it, in order)
        and `activations` (of the feature on each of them; NaN where a token was not read).
    """
    top, _ = top_rows(acts, top_k)
    features, ranks = np.nonzero(top >= 0)
    rows = top[features, ranks]
    contexts, positions = tokens.context_of[rows], tokens.position_of[rows]
    shown = positions[:, None] + np.arange(-BEFORE, AFTER + 1)
    length = tokens.input_ids.shape[1]
    inside = (shown >= 0) & (shown < length)
    at = np.where(inside, shown, 0)
    inside &= tokens.attended[contexts[:, None], at]
    ids = tokens.input_ids[contexts[:, None], at]
    values = activations_at(acts, features, row_at(tokens)[contexts[:, None], at])
    first = inside.argmax(axis=1)
    strings = np.empty(len(token_strings), dtype=object)
    known = np.array(sorted(token_strings), dtype=np.int64)
    strings[:] = [token_strings[int(i)] for i in known]
    words = strings[np.searchsorted(known, ids)]
    return pd.DataFrame(
        {
            "feature": features.astype(np.int32),
            "rank": ranks.astype(np.int16),
            "document": tokens.document[contexts].astype(np.int32),
            "context": contexts.astype(np.int32),
            "position": positions.astype(np.int32),
            "at": (BEFORE - first).astype(np.int16),
            "tokens": [list(w[i]) for w, i in zip(words, inside, strict=True)],
            "activations": [v[i] for v, i in zip(values, inside, strict=True)],
        }
    )


def row_at(tokens: Tokens) -> Int[np.ndarray, "context position"]:
    """The row of activations at each position; -1 where there is none."""
    rows = np.full(tokens.input_ids.shape, -1, dtype=np.int64)
    rows[tokens.kept] = np.arange(tokens.n_tokens)
    return rows


def activations_at(
    acts: sp.csc_array, features: Int[np.ndarray, "shown"], rows: Int[np.ndarray, "shown token"]
) -> np.ndarray:
    """What each feature does at the rows asked for; NaN for row -1."""
    values = np.zeros(rows.shape, dtype=np.float32)
    starts = acts.indptr
    for i, feature in enumerate(features.tolist()):
        begin, end = starts[feature], starts[feature + 1]
        active = acts.indices[begin:end]
        found = np.searchsorted(active, rows[i])
        there = np.minimum(found, len(active) - 1)
        hit = (found < len(active)) & (active[there] == rows[i])
        values[i, hit] = acts.data[begin:end][there[hit]]
    values[rows < 0] = np.nan
    return values
