"""What is doubtful about a concept's keywords, before a study takes them for what they are not."""

from collections.abc import Iterable
from dataclasses import dataclass

from saelign.concepts.concept import Concept
from saelign.text import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What is doubtful about a concept.

    Attributes:
        repeated: Keywords that stand more than once, be it in another case.
        shared: Keywords of other concepts too, with the names of those.
        in_pieces: Keywords that the tokenizer gives no token of their own, neither with a blank
            before them nor without; None if no tokenizer was given.
    """

    repeated: list[str]
    shared: dict[str, list[str]]
    in_pieces: list[str] | None


def check_concept(
    concept: Concept, others: Iterable[Concept] = (), tokenizer: Tokenizer | None = None
) -> Findings:
    """What is doubtful about a concept's keywords; none of it is an error.

    Args:
        concept: As `read_as_written` gives it, or any other.
        others: What it may share words with; one of the same name is left out.
        tokenizer: That of the study that will use it.
    """
    counts: dict[str, list[str]] = {}
    for word in concept.words:
        counts.setdefault(word.lower(), []).append(word)
    shared: dict[str, list[str]] = {}
    for other in others:
        if other.name != concept.name:
            theirs = {word.lower() for word in other.words}
            for word in dict.fromkeys(concept.words):
                if word.lower() in theirs:
                    shared.setdefault(word, []).append(other.name)
    return Findings(
        repeated=[words[0] for words in counts.values() if len(words) > 1],
        shared=shared,
        in_pieces=None if tokenizer is None else in_pieces(concept.words, tokenizer),
    )


def in_pieces(words: Iterable[str], tokenizer: Tokenizer) -> list[str]:
    """Words that are no single token, neither with a blank before them nor without."""
    words = list(dict.fromkeys(words))
    bare, spaced = (
        tokenizer([before + word for word in words], add_special_tokens=False)["input_ids"]
        for before in ("", " ")
    )
    return [
        word for word, a, b in zip(words, bare, spaced, strict=True) if len(a) != 1 and len(b) != 1
    ]
