"""What each feature of a layer fires on: rate, largest activations, top tokens in context."""

import unicodedata
from collections.abc import Mapping

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float, Int

from saelign.correlation.sparse import FeatureColumns
from saelign.correlation.threads import in_parts, parts_of
from saelign.text import Tokens

CONTEXT_BEFORE, CONTEXT_AFTER = 8, 4
"""Tokens shown around a top token."""


def is_non_concept(text: str) -> bool:
    """Whether a token is blank or nothing but punctuation and symbols.

    Source: Lan et al. (2024), section 3, names the kind; the set of characters is Unicode's.
    """
    return all(unicodedata.category(c)[0] in "PSZC" for c in text)


def top_rows(
    acts: sp.csc_array | FeatureColumns, top_k: int
) -> tuple[Int[np.ndarray, "feature top_k"], Float[np.ndarray, "feature top_k"]]:
    """The tokens (rows) of each feature's largest activations and these, largest first.

    Ties go to the earlier token. Features with fewer active tokens are filled with row -1 and NaN.
    """
    from saelign.correlation.kernel import largest_by_feature  # numba: half a second

    columns = acts if isinstance(acts, FeatureColumns) else FeatureColumns.of(acts)
    found = in_parts(
        lambda part: largest_by_feature(
            columns.starts[part], columns.stops[part], columns.tokens, columns.values, top_k
        ),
        parts_of(columns.stops - columns.starts + 1),
    )
    return np.concatenate([rows for rows, _ in found]), np.concatenate([v for _, v in found])


def feature_table(
    acts: sp.csc_array,
    tokens: Tokens,
    token_strings: Mapping[int, str],
    special_ids: frozenset[int],
    *,
    top_k: int,
    min_active_tokens: int,
) -> pd.DataFrame:
    """A row for every feature of a layer.

    Args:
        acts: Kept tokens x features, columns sorted by token.
        tokens: The text that was read.
        token_strings: The text of each token id.
        special_ids: Ids of special tokens.
        top_k: Largest activations to keep.
        min_active_tokens: Fewer than this and the feature is not paired.

    Returns:
        `feature`, `n_active` (tokens), `firing_rate` (share of tokens), `max_activation`,
        `top_tokens` (strings at the largest activations), `top_activations`, `top_rows` (which kept
        token), `top_contexts` (the token between guillemets with what stands around it),
        `n_non_concept` (how many of the top tokens are punctuation, blank or special) and `reason`
        (`dead`, `rare`, or empty when the feature may be paired).
    """
    n_active = np.diff(acts.indptr).astype(np.int64)
    rows, values = top_rows(acts, top_k)
    ids, contexts, positions = tokens.token_ids, tokens.context_of, tokens.position_of
    blank = {i: i in special_ids or is_non_concept(text) for i, text in token_strings.items()}
    top_tokens, top_contexts, n_non_concept = [], [], []
    for of_feature in rows:
        top = [int(ids[row]) for row in of_feature if row >= 0]
        top_tokens.append([token_strings[i] for i in top])
        n_non_concept.append(sum(blank[i] for i in top))
        top_contexts.append(
            [
                shown_context(tokens, token_strings, int(contexts[row]), int(positions[row]))
                for row in of_feature
                if row >= 0
            ]
        )
    reason = np.where(n_active == 0, "dead", np.where(n_active < min_active_tokens, "rare", ""))
    return pd.DataFrame(
        {
            "feature": np.arange(len(n_active)),
            "n_active": n_active,
            "firing_rate": n_active / acts.shape[0],
            "max_activation": values[:, 0],
            "top_tokens": top_tokens,
            "top_activations": [list(v[~np.isnan(v)]) for v in values],
            "top_rows": [list(r[r >= 0]) for r in rows],
            "top_contexts": top_contexts,
            "n_non_concept": n_non_concept,
            "reason": reason,
        }
    )


def shown_context(
    tokens: Tokens, token_strings: Mapping[int, str], context: int, position: int
) -> str:
    """The token in guillemets, with what stands before and after it in its context."""
    ids = tokens.input_ids[context]
    shown = []
    stop = min(len(ids), position + CONTEXT_AFTER + 1)
    for at in range(max(0, position - CONTEXT_BEFORE), stop):
        if tokens.attended[context, at]:
            text = token_strings[int(ids[at])]
            shown.append(f"«{text}»" if at == position else text)
    return "".join(shown)
