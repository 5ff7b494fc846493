"""Phrases made of two concepts' keywords, as text that the models read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int, Int32

from saelign.concepts.concept import Concept
from saelign.subspace_study import Subspaces
from saelign.text import (
    Placed,
    Tokenizer,
    Tokens,
    context_frame,
    last_unit,
    placed,
    special_ids,
)
from saelign.text.words import piece_bytes

ABOVE_TEXT = 2.0
"""A feature of a phrase fires there so many times as often as in the text, at least."""

IN_ORDER, WRONG_ORDER, ALONE = "phrase", "wrong_order", "alone"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Phrases:
    """Phrases of two keywords in both orders, and single keywords, each a context of its own.

    Attributes:
        names: Of the groups: `A B` for words of A before words of B, `A` for words alone.
        kinds: Of the groups: `phrase`, `wrong_order` or `alone`.
        a: The contexts as A reads them; only the last token of each is kept.
        b: The same for B; the same object if both have one tokenizer.
        pieces_a: For each context the tokens of its last unit in A: 1 with one tokenizer.
        pieces_b: The same for B.
        group: For each context its place in `names`.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    a: Tokens
    b: Tokens
    pieces_a: Int32[np.ndarray, " context"]
    pieces_b: Int32[np.ndarray, " context"]
    group: Int[np.ndarray, "context"]

    def of(self, letter: str) -> tuple[Tokens, Int32[np.ndarray, " context"]]:
        """What `a` or `b` reads, and the number of its tokens in the last unit of each context."""
        return (self.a, self.pieces_a) if letter == "a" else (self.b, self.pieces_b)

    def features(
        self,
        acts: sp.csr_array,
        firing_rate: Float[np.ndarray, "feature"],
        *,
        min_phrases: float,
    ) -> dict[str, Bool[np.ndarray, "feature"]]:
        """The features that fire at the end of the contexts of each group, by its name.

        Args:
            acts: Contexts x features, at the last unit of each; what is stored is not 0.
            firing_rate: Of each feature in the text.
            min_phrases: Share of the contexts of a group that a feature must fire on.
        """
        found = {}
        for place, name in enumerate(self.names):
            of_group = np.flatnonzero(self.group == place)
            fires = np.bincount(acts[of_group].indices, minlength=acts.shape[1])
            share = fires / len(of_group)
            found[name] = (share >= min_phrases) & (share >= ABOVE_TEXT * firing_rate)
        return found


def phrases_of(
    subspaces: Subspaces,
    tokenizers: Sequence[Tokenizer],
    *,
    with_bos: Sequence[bool],
    rng: np.random.Generator,
) -> Phrases:
    """The phrases of every pair of concepts that a study asks for.

    Args:
        subspaces: What is asked.
        tokenizers: Of A and of B; the same object if they have one.
        with_bos: Whether contexts of the text begin with BOS (or CLS), in A and in B.
        rng: Draws the phrases where there are more than asked for.

    Raises:
        TextError: Of two tokenizers one does not tell which characters a token stands for.
    """
    concepts = {concept.name: concept for concept in subspaces.concepts}
    texts: dict[tuple[str, str], list[str]] = {}
    alone: dict[str, dict[str, None]] = {}
    for first, second in subspaces.phrases:
        if (second, first) in texts:  # asked for in both orders: the same words in both
            continue
        drawn = word_pairs(concepts[first], concepts[second], subspaces.study.n_phrases, rng=rng)
        texts[first, second] = [f"{a} {b}" for a, b in drawn]
        if first != second:
            texts[second, first] = [f"{b} {a}" for a, b in drawn]
        for a, b in drawn:
            alone.setdefault(first, {})[a] = None
            alone.setdefault(second, {})[b] = None
    names, kinds, contexts, group = [], [], [], []
    for pair, of_pair in texts.items():
        kinds.append(IN_ORDER if pair in subspaces.phrases else WRONG_ORDER)
        names.append(" ".join(pair))
        contexts += of_pair
        group += [len(names) - 1] * len(of_pair)
    for name, words in alone.items():
        kinds.append(ALONE)
        names.append(f"{name} alone")
        contexts += words
        group += [len(names) - 1] * len(words)
    a, b = tokenizers
    read_a = as_contexts(contexts, a, with_bos=with_bos[0])
    read_b = read_a if b is a else as_contexts(contexts, b, with_bos=with_bos[1])
    pieces = np.ones((len(contexts), 2), dtype=np.int32)
    if b is not a:
        places = [placed_after_blank(contexts, tokenizer) for tokenizer in tokenizers]
        for row, (text, in_a, in_b) in enumerate(zip(contexts, *places, strict=True)):
            pieces[row] = last_unit(f" {text}", in_a, in_b)
    return Phrases(
        names=tuple(names),
        kinds=tuple(kinds),
        a=read_a,
        b=read_b,
        pieces_a=pieces[:, 0].copy(),
        pieces_b=pieces[:, 1].copy(),
        group=np.array(group, dtype=np.int64),
    )


def word_pairs(
    first: Concept, second: Concept, n: int, *, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """Pairs of a keyword of each, at most n of them, none of a word with itself."""
    a, b = first.words, second.words
    order = rng.permutation(len(a) * len(b))
    found = []
    for place in order.tolist():
        pair = a[place // len(b)], b[place % len(b)]
        if pair[0] != pair[1]:
            found.append(pair)
        if len(found) == n:
            break
    return found


def as_contexts(texts: list[str], tokenizer: Tokenizer, *, with_bos: bool) -> Tokens:
    """Each text as a context, as it would stand after a blank, its last token alone kept.

    Args:
        texts: The phrases.
        tokenizer: Of the model that reads them.
        with_bos: Frame them as contexts of the text are: with BOS, or with CLS and SEP.
    """
    start, end = context_frame(tokenizer) if with_bos else ([], [])
    blank = blank_before(tokenizer)
    rows = [start + ids + end for ids in encoded(tokenizer, [blank + text for text in texts])]
    width = max(map(len, rows), default=1)
    ids = np.zeros((len(rows), width), dtype=np.int32)
    attended = np.zeros(ids.shape, dtype=bool)
    kept = np.zeros(ids.shape, dtype=bool)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        attended[place, : len(row)] = True
        kept[place, len(row) - len(end) - 1] = True
    return Tokens(
        input_ids=ids,
        attended=attended,
        kept=kept,
        document=np.arange(len(rows), dtype=np.int32),
        special_ids=special_ids(tokenizer),
    )


def blank_before(tokenizer: Tokenizer) -> str:
    """What to put before a text for it to stand after a blank; some tokenizers do it themselves."""
    first = encoded(tokenizer, ["a"])[0][0]
    return "" if piece_bytes(tokenizer, [first])[first].startswith(b" ") else " "


def placed_after_blank(texts: list[str], tokenizer: Tokenizer) -> list[Placed]:
    """The tokens of each text and where they stand in it, a blank before it counted in."""
    blank = blank_before(tokenizer)
    shift = 1 - len(blank)
    found = [placed(tokenizer, blank + text) for text in texts]
    return [
        replace(of, places=[(start + shift, stop + shift) for start, stop in of.places])
        for of in found
    ]


def encoded(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """The ids of each text alone."""
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
