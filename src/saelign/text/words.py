"""The words of a tokenised text: pieces merged, wherever a tokenizer cuts.

Concepts are made of words, activations of tokens. A word is a run of letters and digits, with what
an apostrophe leaves behind it (`don't`, but `king` in `king's`); what stands between words, such as
punctuation, is a unit of its own, token by token.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from jaxtyping import Bool, Int

from saelign.text.tokens import Tokenizer, Tokens

WORD = re.compile(r"[^\W_]+(?:['\u2019](?:t|re|ve|ll|d|m)\b)?")
BETWEEN = re.compile(r"[\s\-\u2010-\u2013]*|['\u2019]")
"""What may stand between the words of a keyword: New York, self-respect, o'clock."""

BREAK = b"\0"
"""What a special token reads as: no part of a word, nor a blank between two of a keyword."""

BYTE_LEVEL, SENTENCE_PIECE, WORD_PIECE = "Ġ", "▁", "##"
"""What marks a blank, or its absence, in the three families of vocabularies."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Words:
    """The units of a text: its words, and each other token by itself.

    Attributes:
        texts: Every text that a unit has, once.
        text_of: For each unit its place in `texts`; units stand in the order of the text.
        before: For each unit the word before it, with nothing but blanks, a hyphen or an apostrophe
            between; -1 if there is none.
        unit_of: For each kept token its unit; a token of two words belongs to the second.
        ends: For each kept token whether it is the last piece of its unit.
    """

    texts: tuple[str, ...]
    text_of: Int[np.ndarray, "unit"]
    before: Int[np.ndarray, "unit"]
    unit_of: Int[np.ndarray, "token"]
    ends: Bool[np.ndarray, "token"]


def words_of(tokens: Tokens, tokenizer: Tokenizer) -> Words:
    """The words that the kept tokens of a text are pieces of."""
    pieces = piece_bytes(tokenizer, np.unique(tokens.input_ids).tolist())
    special = dict.fromkeys(tokens.special_ids, BREAK)
    pieces |= {i: special[i] for i in special if i in pieces}
    places: dict[str, int] = {}
    text_of, before, units, ends, kept = [], [], [], [], []
    for ids, attended, counts in zip(tokens.input_ids, tokens.attended, tokens.kept, strict=True):
        at = np.flatnonzero(attended)
        of_context = [pieces[i] for i in ids[at].tolist()]
        for unit, last, text, previous in units_of(of_context, first=len(text_of)):
            if text is not None:
                text_of.append(places.setdefault(text, len(places)))
                before.append(previous)
            units.append(unit)
            ends.append(last)
        kept.append(counts[at])
    of_kept = np.concatenate(kept) if kept else np.zeros(0, dtype=bool)
    return Words(
        texts=tuple(places),
        text_of=np.array(text_of, dtype=np.int64),
        before=np.array(before, dtype=np.int64),
        unit_of=np.array(units, dtype=np.int64)[of_kept],
        ends=np.array(ends, dtype=bool)[of_kept],
    )


def units_of(pieces: list[bytes], *, first: int) -> Iterable[tuple[int, bool, str | None, int]]:
    """For each token of a context its unit, whether it is the last piece of it, and what begins.

    Args:
        pieces: The bytes of each token.
        first: The number of the first unit.

    Returns:
        For each token: the unit; whether it ends it; the unit's text where it begins, else None;
        and then the word before, or -1.
    """
    joined = b"".join(pieces)
    text = joined.decode("utf-8", "surrogateescape")  # a broken character stays as many bytes
    begins = [0, *accumulate(map(len, pieces))]
    if len(text) == len(joined):
        byte_at = range(len(text) + 1)
    else:
        widths = [1 if 0xDC80 <= ord(c) <= 0xDCFF else len(c.encode()) for c in text]
        byte_at = [0, *accumulate(widths)]
    owner: list[int] = [-1] * len(pieces)  # the word of each token, by number in this context
    found = list(WORD.finditer(text))
    for number, match in enumerate(found):
        low = bisect_right(begins, byte_at[match.start()]) - 1
        high = bisect_right(begins, byte_at[match.end()] - 1) - 1
        owner[low : high + 1] = [number] * (high + 1 - low)
    told = []
    unit, previous_word, unit_of_word = first - 1, -2, {}
    for token, number in enumerate(owner):
        begins_unit = number < 0 or number not in unit_of_word
        before, name = -1, None
        if begins_unit:
            unit += 1
            if number < 0:
                name = pieces[token].decode("utf-8", "replace").strip()
            else:
                name = found[number][0]
                unit_of_word[number] = unit
                if number == previous_word + 1 and BETWEEN.fullmatch(
                    text[found[number - 1].end() : found[number].start()]
                ):
                    before = unit_of_word[number - 1]
                previous_word = number
        is_last = number < 0 or token + 1 == len(owner) or owner[token + 1] != number
        told.append((unit, is_last, name, before))
    return told


def words_in(keyword: str) -> tuple[str, ...]:
    """The words of a keyword, cut as those of a text are: self-respect is two.

    What holds other marks, such as `C++`, is cut at its blanks alone: it is no word of any text.
    """
    gaps = WORD.split(keyword)
    if len(gaps) > 1 and gaps[0] == gaps[-1] == "" and all(map(BETWEEN.fullmatch, gaps)):
        return tuple(WORD.findall(keyword))
    return tuple(keyword.split(" "))


def piece_bytes(tokenizer: Tokenizer, ids: Iterable[int]) -> dict[int, bytes]:
    """The bytes that each id stands for, a leading blank included.

    From the vocabulary, not from decoding ids one by one: some tokenizers drop the blank then, and
    none can decode a part of a character.
    """
    names = {index: name for name, index in tokenizer.get_vocab().items()}
    # Large vocabularies have the others' marks too: Ġ is a letter of Maltese, ## begins a heading.
    marked = {
        mark: sum(name.startswith(mark) for name in names.values())
        for mark in (BYTE_LEVEL, SENTENCE_PIECE, WORD_PIECE)
    }
    family = max(marked, key=lambda mark: marked[mark]) if any(marked.values()) else None
    table = byte_alphabet() if family == BYTE_LEVEL else {}
    found = {}
    for i in ids:
        name = names.get(i, "")
        if table:
            # Added tokens stand as they are, with characters that the alphabet may not have.
            is_coded = set(name) <= table.keys()
            found[i] = bytes(table[c] for c in name) if is_coded else name.encode()
        elif family == SENTENCE_PIECE:
            byte = re.fullmatch(r"<0x([0-9A-F]{2})>", name)
            found[i] = bytes([int(byte[1], 16)]) if byte else name.replace("▁", " ").encode()
        elif family == WORD_PIECE:
            part = name.startswith(WORD_PIECE)
            found[i] = (name.removeprefix(WORD_PIECE) if part else f" {name}").encode()
        else:
            found[i] = tokenizer.decode([i]).encode()
    return found


def byte_alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for.

    Source: Radford et al. (2019), "Language models are unsupervised multitask learners", code.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + place): byte for place, byte in enumerate(others)}
