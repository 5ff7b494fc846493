"""One layer pair by the published method, each of its mistakes made or mended.

A chain of its own, apart from the correct one: what has to be the same mathematics (the greedy
matching, `pc1`, `rsa`, the filters' table) is shared, everything else is written after the
published procedure, and with all mistakes mended both must give the same numbers.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Int64
from threadpoolctl import threadpool_limits

from saelign.concepts.concept import Concept
from saelign.errors import DegenerateError
from saelign.matching import Filters, filter_pairs
from saelign.matching.greedy import greedy_one_to_one
from saelign.published.features import Correlations, Features
from saelign.published.mistakes import Published
from saelign.published.tables import ALL, shuffles_of_concept
from saelign.scoring import MIN_PAIRS, check_rows, null_permutations, score_comparison
from saelign.similarity import MEASURES
from saelign.similarity.partners import Partners, partners_of
from saelign.study import rng_of

NON_CONCEPT = frozenset(
    [".", ",", "-", "!", "?", "\n", "\\n", "", " ", "<|endoftext|>", "<bos>", "|bos|", "<pad>"]
)
"""Token strings that the published filter drops; `<pad>` of Gemma alone, no other model has it."""

WINDOW = 2
"""Tokens before and after a keyword's in which it must stand as a whole word."""

SMALL = 1024
"""Pairs and widths up to which linear algebra runs on one core."""

SCORED = ("svcca", "pc1", "rsa")
"""Columns of scores: what goes by the name SVCCA (pc1, unless mended), pc1 itself, and RSA."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadLayer:
    """A layer of one side as the published method reads it.

    Attributes:
        layer: The SAE's layer.
        features: Its features over the positions that count.
        decoder: Their decoder rows.
        top_tokens: The strings at each feature's five largest activations.
        n_listed: How many of these are on the published list.
        n_non_concept: How many are punctuation, blank or special by kind.
        members: Which features belong to each concept.
    """

    layer: int
    features: Features
    decoder: Float[np.ndarray, "feature d_model"]
    top_tokens: Sequence[Sequence[str]]
    n_listed: Int[np.ndarray, "feature"]
    n_non_concept: Int[np.ndarray, "feature"]
    members: Mapping[str, Bool[np.ndarray, "feature"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """How chance is drawn.

    Attributes:
        seed: The run's.
        n_shuffles: By matching, as the logged cells have it.
        nulls: The study's own numbers, for when few shuffles are mended.
        min_active_tokens: The study's, for when rare features are left out.
        named: What our pipeline calls each matching: its shuffles are drawn alike.
    """

    seed: int
    n_shuffles: Mapping[str, int]
    nulls: Mapping[str, int]
    min_active_tokens: int
    named: Mapping[str, str]


def compare_as_published(
    how: Published,
    correlations: Correlations,
    a: ReadLayer,
    b: ReadLayer,
    *,
    matching: str,
    draws: Draws,
    subspace: str = ALL,
) -> dict[str, Any]:
    """What the published method says of a layer pair, or of a concept in it.

    Args:
        how: Which mistakes are mended.
        correlations: Of the features of both.
        a: A layer of A.
        b: A layer of B.
        matching: `one_to_one`, or `many_to_one`: each feature of B with its best of A.
        draws: How chance is drawn.
        subspace: `all`, or a concept: matched inside, without the filter on correlation.
    """
    correlations.exactly(exact=not how.makes("z"))
    in_a, in_b = (features_taking_part(how, side, draws, subspace) for side in (a, b))
    pairs = matched(how, correlations, in_a, in_b, matching)
    kept = surviving(how, pairs, a, b, matching, min_correlation=0.1 if subspace == ALL else None)
    row: dict[str, Any] = {
        "n_features_a": len(in_a),
        "n_features_b": len(in_b),
        "n_pairs": len(kept),
        "mean_corr_all": mean(pairs["correlation"]),
        "mean_corr_kept": mean(kept["correlation"]),
    }
    return row | scores_of(how, kept, a, b, matching=matching, draws=draws, subspace=subspace)


def mean(values: pd.Series) -> float:
    """The mean; NaN of nothing."""
    return float(values.mean()) if len(values) else float("nan")


def features_taking_part(
    how: Published, side: ReadLayer, draws: Draws, subspace: str
) -> Int64[np.ndarray, "chosen"]:
    """The features of a side that are paired: all, the living, or those that fire often enough."""
    chosen = np.ones(len(side.features.sd), dtype=bool)
    if not how.makes("8"):
        chosen &= ~side.features.is_constant
    if not how.makes("15"):
        chosen &= side.features.n_active >= draws.min_active_tokens
    if subspace != ALL:
        chosen &= side.members[subspace]
    return np.flatnonzero(chosen)


def matched(
    how: Published,
    correlations: Correlations,
    features_a: Int64[np.ndarray, "chosen_a"],
    features_b: Int64[np.ndarray, "chosen_b"],
    matching: str,
) -> pd.DataFrame:
    """Pairs before any filter: each feature of B with its best of A, or the greedy pairs."""
    if min(len(features_a), len(features_b)) == 0:
        a = b = np.zeros(0, dtype=np.int64)
        value = np.zeros(0)
    elif matching == "one_to_one" and not how.makes("6"):
        a, b = greedy_one_to_one(correlations, features_a, features_b).T
        value = correlations.of_pairs(a, b)
    else:
        b = features_b
        a, value = correlations.best_of_b(features_a, features_b)
    return pd.DataFrame({"feature_a": a, "feature_b": b, "correlation": value})


def surviving(
    how: Published,
    pairs: pd.DataFrame,
    a: ReadLayer,
    b: ReadLayer,
    matching: str,
    *,
    min_correlation: float | None,
) -> pd.DataFrame:
    """The pairs kept: concept tokens, a shared one, in 1-to-1 one of B for each of A; then r."""
    listed = how.makes("7")
    kept = filter_pairs(
        pairs,
        Filters(
            max_non_concept_tokens=None if how.filter_undone else 0,
            min_shared_tokens=1,
            min_correlation=None,
        ),
        top_tokens_a=a.top_tokens,
        top_tokens_b=b.top_tokens,
        n_non_concept_a=(a.n_listed if listed else a.n_non_concept).tolist(),
        n_non_concept_b=(b.n_listed if listed else b.n_non_concept).tolist(),
    )
    kept = kept[kept["kept"]]
    if matching == "one_to_one" and how.makes("6"):
        kept = kept.drop_duplicates("feature_a", keep="first")  # they stand in the order of B
    if min_correlation is not None:
        kept = kept[kept["correlation"] > min_correlation]
    return kept


def scores_of(
    how: Published,
    kept: pd.DataFrame,
    a: ReadLayer,
    b: ReadLayer,
    *,
    matching: str,
    draws: Draws,
    subspace: str,
) -> dict[str, Any]:
    """SVCCA, pc1 and RSA of the pairs kept, each with what shuffles give; NaN of too few pairs."""
    nothing: dict[str, Any] = {
        f"{name}{part}": float("nan") for name in SCORED for part in ("", "_null_mean", "_p")
    }
    nothing |= {"n_shuffles": 0, "note": ""}
    if len(kept) < MIN_PAIRS:
        return nothing | {"note": f"{len(kept)} pairs are left, {MIN_PAIRS} are needed"}
    in_a, in_b = kept["feature_a"].to_numpy(), kept["feature_b"].to_numpy()
    rows_a, rows_b = check_rows(a.decoder[in_a], b.decoder[in_b])
    rates = b.features.firing_rate[in_b]
    if matching == "many_to_one" and not how.makes(
        "14"
    ):  # A's features repeat: they are relabelled
        x, partners, rates = rows_b, partners_of(rows_a, in_a), a.features.firing_rate[in_a]
    else:
        x, partners = rows_a, Partners(rows_b, np.arange(len(kept)))
    null = "shuffle" if how.makes("13") else "rate_matched"
    n = draws.nulls.get(null, 1000)
    if how.makes("3"):
        n = draws.n_shuffles[matching] if subspace == ALL else shuffles_of_concept(len(kept))
    where = (a.layer, b.layer, draws.named[matching])
    rng = rng_of(draws.seed, null, *where, *([] if subspace == ALL else [subspace]))
    # Ours refuses a null of one shuffle, theirs has some.
    permutations = null_permutations(null, partners, rates, n_permutations=max(n, 2), rng=rng)[:n]
    inner = "pearson" if how.makes("12") else "cosine"
    asked = {"pc1": ("pc1", {}), "rsa": ("rsa", {"inner": inner})}
    if not how.makes("1"):
        asked["svcca"] = ("svcca", {})
    found = nothing | {"n_shuffles": n}
    small = max(*x.shape, partners.rows.shape[1]) <= SMALL
    with threadpool_limits(1 if small else None, user_api="blas"):
        for name, (measure, options) in asked.items():
            try:
                comparison = MEASURES[measure].compare(x, partners, **options)
                found |= scored(how, comparison, partners, permutations, name, null)
            except DegenerateError as error:
                found["note"] = str(error)
    if how.makes("1"):
        found |= {f"svcca{part}": found[f"pc1{part}"] for part in ("", "_null_mean", "_p")}
    if not how.makes("2"):
        room = 1 - found["svcca_null_mean"]
        found["svcca"] = (found["svcca"] - found["svcca_null_mean"]) / room
    return found


def scored(
    how: Published,
    comparison: Any,
    partners: Partners,
    permutations: Int[np.ndarray, "shuffle partner"],
    name: str,
    null: str,
) -> dict[str, float]:
    """A score, the mean of its shuffles and its p: as printed, or as it ought to be."""
    if how.makes("3"):
        score, drawn = comparison.score(), comparison.shuffled(permutations)
        null_mean, p = float(drawn.mean()), float((drawn >= score).mean())
    else:
        full = score_comparison(
            comparison, partners, measure=name, null=null, permutations=permutations
        )
        score, null_mean, p = full.score, full.null_mean, full.p_value
    return {name: score, f"{name}_null_mean": null_mean, f"{name}_p": p}


def keyword_members(
    concepts: Sequence[Concept],
    top: Int[np.ndarray, "feature 5"],
    tokens_at: Mapping[int, tuple[str, str]],
) -> dict[str, Bool[np.ndarray, "feature"]]:
    """Which features belong to each concept by the published rule.

    One of the feature's top tokens, blanks removed and in lower case, is a keyword, and the text of
    that token and two on either side holds the keyword as a whole word.

    Args:
        concepts: With their keywords.
        top: The positions of each feature's largest activations.
        tokens_at: For each of these positions the token's text and that of its window.
    """
    found = {}
    for concept in concepts:
        words = {word.lower() for word in concept.words}
        hit = {
            position
            for position, (token, window) in tokens_at.items()
            if (word := token.strip().lower()) in words
            and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", window.lower())
        }
        found[concept.name] = np.isin(top, list(hit)).any(axis=1)
    return found
