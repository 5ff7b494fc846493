"""Where the keywords of concepts stand in a text, and which features fire there."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Bool, Float64

from saelign.concepts.concept import Concept
from saelign.correlation.moments import Activations, as_csr
from saelign.correlation.sparse import FeatureColumns
from saelign.errors import ActivationError, ShapeError
from saelign.features import top_rows
from saelign.text import Tokenizer, Tokens, Words, words_of
from saelign.text.words import words_in

Case = Literal["smart", "ignore", "exact"]
"""smart: keywords with a capital letter mean that spelling alone, others any. ignore: any spelling.
exact: every keyword as it is written."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Occurrences:
    """Where the keywords of concepts stand in a text.

    Attributes:
        names: Of the concepts.
        words: Of the text.
        on_word: For each concept and unit whether it is a keyword.
        on_last: Likewise, whether it is the last word of a keyword of several.
    """

    names: tuple[str, ...]
    words: Words
    on_word: Bool[np.ndarray, "concept unit"]
    on_last: Bool[np.ndarray, "concept unit"]

    @classmethod
    def of(
        cls,
        words: Words,
        concepts: Sequence[Concept],
        *,
        case: Case = "smart",
        inflected: bool = False,
    ) -> "Occurrences":
        """The occurrences of each concept's keywords.

        Args:
            words: Of the text.
            concepts: With distinct names.
            case: Which spellings count.
            inflected: Whether regular English forms of a keyword count as well.
        """
        found = [standing(words, concept, case=case, inflected=inflected) for concept in concepts]
        shape = (len(concepts), len(words.text_of))
        return cls(
            names=tuple(concept.name for concept in concepts),
            words=words,
            on_word=np.array([on_word for on_word, _ in found], dtype=bool).reshape(shape),
            on_last=np.array([on_last for _, on_last in found], dtype=bool).reshape(shape),
        )

    def counts(self) -> dict[str, int]:
        """How often the keywords of each concept occur."""
        every = self.on_word | self.on_last
        return dict(zip(self.names, every.sum(axis=1).tolist(), strict=True))


def standing(
    words: Words, concept: Concept, *, case: Case, inflected: bool
) -> tuple[Bool[np.ndarray, "unit"], Bool[np.ndarray, "unit"]]:
    """Which units are a keyword, and which are the last word of a keyword of several."""
    exact: set[str] = set()
    lowered: set[str] = set()
    on_last = np.zeros(len(words.text_of), dtype=bool)
    for keyword in concept.keywords:
        spelled = words_in(keyword.text)
        forms: set[tuple[str, ...]] = {spelled}
        if inflected:  # the last word is the one that changes: grandfather clocks
            forms |= {(*spelled[:-1], form) for form in inflections(spelled[-1])}
        by_case = case == "exact" or (case == "smart" and keyword.is_cased)
        for form in forms:
            word, *others = form
            if others:
                on_last |= ending(words, form, by_case=by_case)
            elif by_case:
                exact.add(word)
            else:
                lowered.add(word.lower())
    of_text = np.array(
        [text in exact or text.lower() in lowered for text in words.texts], dtype=bool
    )
    return of_text[words.text_of] if len(of_text) else np.zeros(0, dtype=bool), on_last


def ending(words: Words, form: tuple[str, ...], *, by_case: bool) -> Bool[np.ndarray, "unit"]:
    """The units at which several words end."""
    at = np.arange(len(words.text_of))
    found = np.ones(len(at), dtype=bool)
    for word in reversed(form):
        wanted = [
            (text if by_case else text.lower()) == (word if by_case else word.lower())
            for text in words.texts
        ]
        found &= np.append(np.array(wanted, dtype=bool)[words.text_of], False)[at]
        at = np.append(words.before, -1)[at]
    return found


def concept_features(
    acts: sp.csc_array,
    occurrences: Occurrences,
    *,
    top_words: int = 5,
) -> tuple[Bool[np.ndarray, "concept feature"], Float64[np.ndarray, "concept feature"]]:
    """Which features belong to a concept, in two ways.

    Args:
        acts: Kept tokens x features, not negative, columns sorted by token.
        occurrences: Of each concept in the same text.
        top_words: How many of a feature's largest activations count.

    Returns:
        Whether a keyword is among the words of the feature's largest activations, a word's being
        the largest over its pieces (of a keyword of several words the feature must fire on the last
        piece); and the share of its activations that falls on keywords, NaN if it never fires.

    Source: Lan et al. (2024), section 3; whole words and shares by this package.
    """
    words = occurrences.words
    n_features = acts.shape[1]
    unit, of_feature = (
        words.unit_of[acts.indices],
        np.repeat(np.arange(n_features), np.diff(acts.indptr)),
    )
    ends = words.ends[acts.indices]
    # A feature's activations on the pieces of one word follow each other: they are one group.
    is_new = np.ones(len(unit), dtype=bool)
    is_new[1:] = (unit[1:] != unit[:-1]) | (of_feature[1:] != of_feature[:-1])
    starts = np.flatnonzero(is_new)
    edges = np.searchsorted(starts, acts.indptr)
    largest = np.maximum.reduceat(acts.data, starts) if len(starts) else acts.data
    on_end = np.logical_or.reduceat(ends, starts) if len(starts) else ends
    groups = FeatureColumns(
        starts=edges[:-1].astype(np.int64),
        stops=edges[1:].astype(np.int64),
        tokens=np.arange(len(starts), dtype=np.int32),  # of equals the earlier word comes first
        values=largest,
        n_tokens=len(starts),
    )
    top, _ = top_rows(groups, top_words)
    there = top >= 0
    safe = np.where(there, top, 0)
    top_unit = unit[starts][safe] if len(starts) else safe
    top_end = on_end[safe] if len(starts) else there
    belongs = np.zeros((len(occurrences.names), n_features), dtype=bool)
    share = np.full((len(occurrences.names), n_features), np.nan)
    total = np.bincount(of_feature, weights=acts.data, minlength=n_features)
    for i, (on_word, on_last) in enumerate(
        zip(occurrences.on_word, occurrences.on_last, strict=True)
    ):
        if len(starts):
            hit = on_word[top_unit] | (on_last[top_unit] & top_end)
            belongs[i] = (hit & there).any(axis=1)
        on_keyword = on_word[unit] | (on_last[unit] & ends)
        mass = np.bincount(of_feature, weights=acts.data * on_keyword, minlength=n_features)
        np.divide(mass, total, out=share[i], where=total > 0)
    return belongs, share


# Endings of English inflection. What they make too many of ("sads") does no harm in a text.
VOWEL_Y = re.compile(r"[^aeiou]y$")
DOUBLED = re.compile(r"(?:^|[^aeiou])[aeiou][bdgklmnprt]$")


def inflections(word: str) -> set[str]:
    """Regular English forms of a word: plural, third person, past, participle, comparative."""
    stems = {word}
    forms = {word, word + "s"}
    if word.endswith(("s", "x", "z", "ch", "sh", "o")):
        forms.add(word + "es")
    if VOWEL_Y.search(word):
        stem = word[:-1] + "i"
        forms |= {stem + "es", stem + "ed", stem + "er", stem + "est", stem + "ly"}
    if word.endswith("e"):
        stems.add(word[:-1])
        forms |= {word + "d", word + "r", word + "st"}
    if DOUBLED.search(word):
        stems.add(word + word[-1])
    for stem in stems - ({word} if word.endswith("e") else set()):
        forms |= {stem + "ed", stem + "ing", stem + "er", stem + "est"}
    return forms


def features_of(
    concepts: Sequence[Concept],
    acts: Activations,
    tokens: Tokens,
    tokenizer: Tokenizer,
    *,
    top_words: int = 5,
    case: Case = "smart",
    inflected: bool = False,
) -> pd.DataFrame:
    """Which features of a layer belong to concepts, for activations of one's own.

    Args:
        concepts: With distinct names.
        acts: Kept tokens x features, not negative: scipy.sparse, numpy or torch.
        tokens: What was read, as `saelign.text.tokenize` gives it.
        tokenizer: Of the model.
        top_words: How many of a feature's largest activations count.
        case: Which spellings of keywords count.
        inflected: Whether regular English forms of keywords count.

    Returns:
        A row for each concept and feature: `concept`, `feature`, `in_top_words` (whether a keyword
        is among the words of its largest activations), `share` (of its activations on keywords; NaN
        if it never fires).

    Raises:
        ShapeError: There is not one row of activations for each kept token.
        ActivationError: An activation that is not finite, or negative.
    """
    by_token = as_csr(acts)
    if by_token.shape[0] != tokens.n_tokens:
        raise ShapeError(
            f"activations must have a row for each of the {tokens.n_tokens} kept tokens, got "
            f"{by_token.shape[0]}"
        )
    if (by_token.data < 0).any():
        raise ActivationError(
            "activations must not be negative to say what a feature fires on, got "
            f"{by_token.data.min():.3g}: take those of an SAE after its nonlinearity"
        )
    by_feature = by_token.tocsc()
    by_feature.sort_indices()
    words = words_of(tokens, tokenizer)
    occurrences = Occurrences.of(words, concepts, case=case, inflected=inflected)
    belongs, share = concept_features(by_feature, occurrences, top_words=top_words)
    names, features = np.meshgrid(
        np.array(occurrences.names, dtype=object), np.arange(by_token.shape[1]), indexing="ij"
    )
    return pd.DataFrame(
        {
            "concept": names.ravel(),
            "feature": features.ravel(),
            "in_top_words": belongs.ravel(),
            "share": share.ravel(),
        }
    )
