"""Documents -> tokens: what both models read, and which positions count."""

from saelign.text.alignment import (
    AlignedTokens,
    Placed,
    align,
    draw_aligned,
    last_unit,
    pieces_kept,
    placed,
)
from saelign.text.sources import STANDARD_INPUT, DatasetSource, at_commit, read_documents
from saelign.text.tokens import (
    MIN_TOKENS,
    Tokenizer,
    Tokens,
    check_same_tokenizer,
    context_frame,
    draw,
    load_token_ids,
    load_tokenizer,
    save_token_ids,
    special_ids,
    tokenize,
)
from saelign.text.words import Words, words_of

__all__ = [
    "MIN_TOKENS",
    "STANDARD_INPUT",
    "AlignedTokens",
    "DatasetSource",
    "Placed",
    "Tokenizer",
    "Tokens",
    "Words",
    "align",
    "at_commit",
    "check_same_tokenizer",
    "context_frame",
    "draw",
    "draw_aligned",
    "last_unit",
    "load_token_ids",
    "load_tokenizer",
    "pieces_kept",
    "placed",
    "read_documents",
    "save_token_ids",
    "special_ids",
    "tokenize",
    "words_of",
]
