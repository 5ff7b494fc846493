"""The same text for two tokenizers: positions of both that end at the same place, paired.

Where both models have a boundary between tokens at the same character, what stands since the last
such boundary is a *unit*: one or more tokens of A beside one or more of B. Tokenizers that cut
alike have one token a unit, and everything is as with one tokenizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
from jaxtyping import Int, Int32

from saelign.errors import TextError
from saelign.text.tokens import Tokenizer, Tokens, context_frame, draw, special_ids

Pooling = Literal["last", "max", "mean"]

MIN_CHARACTERS = 0.5
"""Share of a text that must lie in units of less than a context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How much of a text two tokenizers cut at the same places.

    Attributes:
        characters: Share of the characters that are no blanks in units that fit into a context.
        tokens_a: Units a token of A: 1 where every token of A ends where one of B ends.
        tokens_b: The same for B.
        single: Share of the units that are one token of A beside one of B.
    """

    characters: float
    tokens_a: float
    tokens_b: float
    single: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AlignedTokens:
    """One text as two models read it, in contexts that hold the same of it.

    Attributes:
        a: As A reads it; kept are the last tokens of units.
        b: The same for B: as many, in the same order.
        pieces_a: For each kept unit the number of its tokens in A.
        pieces_b: The same for B.
        coverage: How much of the text was cut at the same places.
    """

    a: Tokens
    b: Tokens
    pieces_a: Int32[np.ndarray, " unit"]
    pieces_b: Int32[np.ndarray, " unit"]
    coverage: Coverage

    def of(self, letter: str) -> tuple[Tokens, Int32[np.ndarray, " unit"]]:
        """What `a` or `b` reads, and the number of its tokens in each kept unit."""
        return (self.a, self.pieces_a) if letter == "a" else (self.b, self.pieces_b)


Pieces = list[tuple[int, int]]
"""Tokens a unit, of A and of B."""


def align(
    documents: Sequence[str],
    tokenizer_a: Tokenizer,
    tokenizer_b: Tokenizer,
    *,
    context_length: int,
    contexts_per_document: int | None = None,
    mask_special: bool = True,
    mask_first: bool = True,
) -> AlignedTokens:
    """The documents as consecutive contexts of whole units, none of which spans two documents.

    A context holds as many units as fit into `context_length` positions of both models. A unit that
    does not fit into one is left out.

    Args:
        documents: At least one.
        tokenizer_a: Of A; it must tell which characters a token stands for.
        tokenizer_b: Of B.
        context_length: Positions of a context, special tokens at its edges included.
        contexts_per_document: Take the first so many of each document at most; all if None. The
            coverage is that of all the text.
        mask_special: Leave units with a special token out of what counts.
        mask_first: Leave a unit with the first position of a context out.

    Raises:
        TextError: A tokenizer that does not tell places, a context without room, no token at all,
            places that no text has, or less than half of it in units that fit into a context.
    """
    tokenizers = (tokenizer_a, tokenizer_b)
    edges = [context_frame(tokenizer) for tokenizer in tokenizers]
    rooms = [context_length - len(before) - len(after) for before, after in edges]
    if min(rooms) < 1:
        raise TextError(
            f"context_length must leave room for text, got {context_length}: choose at least 16"
        )
    contexts: list[tuple[list[int], list[int], Pieces]] = []
    document: list[int] = []
    n_characters = n_covered = 0
    n_tokens, n_units, n_single = [0, 0], 0, 0
    for index, text in enumerate(documents):
        read = [placed(tokenizer, text) for tokenizer in tokenizers]
        units = units_of_text(text, read[0], read[1])
        at, first = [0, 0], len(contexts)
        open_: tuple[list[int], list[int], Pieces] = ([], [], [])
        n_characters += _n_visible(text, 0, len(text))
        n_tokens = [total + len(of.ids) for total, of in zip(n_tokens, read, strict=True)]
        for pieces, start, stop in units:
            ids = [of.ids[i : i + n] for of, i, n in zip(read, at, pieces, strict=True)]
            at = [i + n for i, n in zip(at, pieces, strict=True)]
            n_units, n_single = n_units + 1, n_single + (pieces == (1, 1))
            would_be = [len(held) + n for held, n in zip(open_[:2], pieces, strict=True)]
            if open_[2] and any(n > room for n, room in zip(would_be, rooms, strict=True)):
                contexts.append(open_)
                document.append(index)
                open_ = ([], [], [])
            if all(n <= room for n, room in zip(pieces, rooms, strict=True)):
                open_[0].extend(ids[0])
                open_[1].extend(ids[1])
                open_[2].append(pieces)
                n_covered += _n_visible(text, start, stop)
        if open_[2]:
            contexts.append(open_)
            document.append(index)
        if contexts_per_document is not None:
            del contexts[first + contexts_per_document :], document[first + contexts_per_document :]
    if not all(n_tokens):
        raise TextError("text must hold at least one token, got none")
    coverage = Coverage(
        characters=n_covered / max(1, n_characters),
        tokens_a=n_units / n_tokens[0],
        tokens_b=n_units / n_tokens[1],
        single=n_single / max(1, n_units),
    )
    if coverage.characters < MIN_CHARACTERS or not contexts:
        raise TextError(
            f"two tokenizers must cut at least {MIN_CHARACTERS:.0%} of a text at common places, "
            f"these cover {coverage.characters:.1%} of it in contexts of {context_length} tokens: "
            "give longer contexts, or choose models whose tokenizers are more alike"
        )
    return _assembled(
        contexts,
        document,
        tokenizers,
        edges,
        context_length,
        coverage,
        mask_special=mask_special,
        mask_first=mask_first,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A text's tokens and where each stands in it.

    Attributes:
        ids: The tokens.
        pieces: Their names in the vocabulary.
        places: First character and the one after the last.
    """

    ids: list[int]
    pieces: list[str]
    places: list[tuple[int, int]]


def units_of_text(text: str, a: Placed, b: Placed) -> list[tuple[tuple[int, int], int, int]]:
    """The units of a text: how many tokens of A and of B, and where in the text.

    A token ends a unit where the next one begins at or after its end, so that bytes of a character
    stay together, and where the other tokenizer has such an end too: at the same character, or
    with nothing but blanks between, which some tokenizers drop and others join to either side. What
    else no token stands for belongs to the one before: accents that were joined to it or dropped.
    """
    ends = [_ends(of.places, text) for of in (a, b)]
    common = sorted(ends[0].keys() & ends[1].keys())
    pairs = [(ends[0][end], ends[1][end], end) for end in common]
    visible = _visible_before(text)
    known = {visible[end] for end in common}
    loose = [
        {visible[end]: (last, end) for end, last in of.items() if visible[end] not in known}
        for of in ends
    ]
    for count in loose[0].keys() & loose[1].keys():
        (last_a, end_a), (last_b, end_b) = loose[0][count], loose[1][count]
        pairs.append((last_a, last_b, max(end_a, end_b)))
    pairs.sort()
    units: list[tuple[tuple[int, int], int, int]] = []
    done_a = done_b = begun = 0
    for last_a, last_b, end in pairs:
        n_a, n_b = last_a + 1 - done_a, last_b + 1 - done_b
        if n_a < 1 or n_b < 1:
            continue  # blanks of one side only: they belong to the next unit
        if n_a == n_b > 1 and a.pieces[done_a : last_a + 1] == b.pieces[done_b : last_b + 1]:
            stops = [a.places[done_a + i][1] for i in range(n_a)]
            starts = [begun, *stops[:-1]]
            units += [((1, 1), *place) for place in zip(starts, stops, strict=True)]
        else:
            units.append(((n_a, n_b), begun, end))
        done_a, done_b, begun = last_a + 1, last_b + 1, end
    return units


def last_unit(text: str, a: Placed, b: Placed) -> tuple[int, int]:
    """Tokens of A and of B since the last place before a text's end where both have a boundary."""
    before = [pieces for pieces, _, _ in units_of_text(text, a, b)[:-1]]
    n_a, n_b = (len(of.ids) - sum(n[side] for n in before) for side, of in enumerate((a, b)))
    return n_a, n_b


def draw_aligned(
    aligned: AlignedTokens,
    n_units: int | None,
    *,
    rng: np.random.Generator,
    allow_fewer: bool = False,
) -> AlignedTokens:
    """Contexts at random, without replacement, that keep exactly `n_units` units of both sides.

    As `draw` does it for one tokenizer.

    Raises:
        TextError: There are fewer than `n_units`, or fewer than 1,000 in all.
    """
    n_contexts = len(aligned.a.document)
    numbered = replace(aligned.a, document=np.arange(n_contexts, dtype=np.int32))
    a = draw(numbered, n_units, rng=rng, allow_fewer=allow_fewer)
    chosen = a.document
    per_context, n_kept = aligned.a.kept.sum(axis=1), a.kept.sum(axis=1)
    starts = np.cumsum(per_context) - per_context
    is_kept = np.zeros(int(per_context.sum()), dtype=bool)
    for context, n in zip(chosen, n_kept, strict=True):
        is_kept[starts[context] : starts[context] + n] = True
    kept_b = aligned.b.kept.copy()
    kept_b[kept_b] = is_kept
    b = replace(
        aligned.b,
        input_ids=aligned.b.input_ids[chosen],
        attended=aligned.b.attended[chosen],
        kept=kept_b[chosen],
        document=aligned.b.document[chosen],
    )
    return replace(
        aligned,
        a=replace(a, document=aligned.a.document[chosen]),
        b=b,
        pieces_a=aligned.pieces_a[is_kept],
        pieces_b=aligned.pieces_b[is_kept],
    )


def pieces_kept(tokens: Tokens, pieces: Int[np.ndarray, "unit"]) -> Tokens:
    """The same contexts with all tokens of each kept unit kept, not the last alone."""
    kept = tokens.kept.copy().ravel()
    last = np.flatnonzero(kept)
    for back in range(1, int(pieces.max(initial=1))):
        kept[last[pieces > back] - back] = True
    return replace(tokens, kept=kept.reshape(tokens.kept.shape))


def placed(tokenizer: Tokenizer, text: str) -> Placed:
    """A text's tokens and where each stands in it.

    Raises:
        TextError: The tokenizer does not tell places, or some that are not in order or in the text.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise TextError(
            "to align two tokenizers each must tell which characters a token stands for, "
            f"{type(tokenizer).__name__} does not: choose a model with a tokenizer.json"
        )
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids: list[int] = read["input_ids"]
    pieces: list[str] = cast("Any", tokenizer).convert_ids_to_tokens(ids)
    places: list[tuple[int, int]] = [(start, stop) for start, stop in read["offset_mapping"]]
    before = (0, 0)
    for index, (start, stop) in enumerate(places):
        # What stands for no character, as a blank put before a text, may be told to stand anywhere.
        is_after = start == stop or (before[0] <= start and before[1] <= stop)
        if not (is_after and 0 <= start <= stop <= len(text)):
            raise TextError(
                "the places of a tokenizer's tokens must ascend within the text, "
                f"{type(tokenizer).__name__} puts token {index}, {pieces[index]!r}, at characters "
                f"{start} to {stop} of {len(text)}, after one at {before[0]} to {before[1]}: "
                "its tokenizer.json does not tell places as it should, choose another model"
            )
        if stop > start:
            before = (start, stop)
    return Placed(ids=ids, pieces=pieces, places=places)


def _ends(places: Sequence[tuple[int, int]], text: str) -> dict[int, int]:
    # Where a token ends and none goes on: the character after it -> the last such token.
    ends: dict[int, int] = {}
    for index, (start, end) in enumerate(places):
        following = places[index + 1][0] if index + 1 < len(places) else len(text)
        if following >= end:
            # Where NFC made one character of two, it is told to stand for the first alone.
            while start < end < following and not text[end].isspace():
                end += 1
            ends[end] = index
    return ends


def _visible_before(text: str) -> list[int]:
    # For each place between characters how many before it are no blanks.
    counts = [0]
    for character in text:
        counts.append(counts[-1] + (not character.isspace()))
    return counts


def _n_visible(text: str, start: int, stop: int) -> int:
    return sum(not character.isspace() for character in text[start:stop])


def _assembled(
    contexts: Sequence[tuple[list[int], list[int], Pieces]],
    document: Sequence[int],
    tokenizers: Sequence[Tokenizer],
    edges: Sequence[tuple[list[int], list[int]]],
    context_length: int,
    coverage: Coverage,
    *,
    mask_special: bool,
    mask_first: bool,
) -> AlignedTokens:
    # Both sides as arrays; a unit counts if no token of either side is masked.
    shape = (len(contexts), context_length)
    fills = [
        next((i for i in (t.pad_token_id, t.eos_token_id) if i is not None), 0) for t in tokenizers
    ]
    ids = [np.full(shape, fill, dtype=np.int32) for fill in fills]
    attended = [np.zeros(shape, dtype=bool) for _ in tokenizers]
    kept = [np.zeros(shape, dtype=bool) for _ in tokenizers]
    special = [special_ids(tokenizer) for tokenizer in tokenizers]
    pieces_kept: list[tuple[int, int]] = []
    for row, (ids_a, ids_b, pieces) in enumerate(contexts):
        for side, held in enumerate((ids_a, ids_b)):
            before, after = edges[side]
            whole = [*before, *held, *after]
            ids[side][row, : len(whole)] = whole
            attended[side][row, : len(whole)] = True
        counts = np.array(pieces, dtype=np.int64).reshape(-1, 2)
        first = np.array([len(before) for before, _ in edges], dtype=np.int64)
        stops = counts.cumsum(axis=0) + first
        counted = np.ones(len(counts), dtype=bool)
        for side in range(2):
            starts = stops[:, side] - counts[:, side]
            if mask_first:
                counted &= starts > 0
            if mask_special:
                is_special = np.isin(ids[side][row], special[side])
                before_it = np.concatenate([[0], is_special.cumsum()])
                counted &= before_it[stops[:, side]] == before_it[starts]
        for side in range(2):
            kept[side][row, stops[counted, side] - 1] = True
        pieces_kept += [pieces[i] for i in np.flatnonzero(counted)]
    of_document = np.array(document, dtype=np.int32)
    a, b = (
        Tokens(
            input_ids=ids[side],
            attended=attended[side],
            kept=kept[side],
            document=of_document,
            special_ids=special[side],
        )
        for side in range(2)
    )
    counts = np.array(pieces_kept, dtype=np.int32).reshape(-1, 2)
    return AlignedTokens(
        a=a, b=b, pieces_a=counts[:, 0].copy(), pieces_b=counts[:, 1].copy(), coverage=coverage
    )
