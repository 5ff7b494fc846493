"""Documents, contexts and the positions of them that count.

Imports neither torch nor transformers: a stored run can be read without them.
"""

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int32, Integer
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from saelign.errors import FormatError, MissingFileError, ModelError, StorageError, TextError

MIN_TOKENS = 1000
# Of a folder that has none of these transformers makes an empty tokenizer.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
# Accents, digits, runs of blanks, newlines: where tokenizers of one vocabulary part ways.
PROBE = "The café cost $12.50 in 1987;\n\n  its owner (née Müller) won't say why…"


@runtime_checkable
class Tokenizer(Protocol):
    """What is asked of a tokenizer; every one of transformers has it."""

    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    all_special_ids: list[int]

    def __call__(self, text: Any, **options: Any) -> Any:
        """Token ids among other things, under `input_ids`."""
        ...

    def __len__(self) -> int: ...

    def decode(self, token_ids: Any, **options: Any) -> str:
        """The text of ids."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """The id of every token."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tokens:
    """What a model reads, cut into contexts, and the positions whose activations count.

    Attributes:
        input_ids: Token ids; padding holds some valid id.
        attended: False at padding.
        kept: True where the activations count; their rows stand in row-major order.
        document: The source document that a context comes from.
        special_ids: The ids that are special, whether or not they were left out.
    """

    input_ids: Int32[np.ndarray, "context position"]
    attended: Bool[np.ndarray, "context position"]
    kept: Bool[np.ndarray, "context position"]
    document: Int32[np.ndarray, " context"]
    special_ids: tuple[int, ...] = ()

    @property
    def n_tokens(self) -> int:
        """How many positions are kept."""
        return int(self.kept.sum())

    @property
    def masked(self) -> dict[str, int]:
        """Positions left out by reason, each counted once, under the first reason that holds.

        `surplus` are those that `draw` left out to keep exactly as many as were asked for.
        """
        padding = ~self.attended
        special = self.attended & ~self.kept & np.isin(self.input_ids, self.special_ids)
        first = self.attended & ~self.kept & ~special
        first[:, 1:] = False
        surplus = self.attended & ~self.kept & ~special & ~first
        return {
            "padding": int(padding.sum()),
            "special": int(special.sum()),
            "first_position": int(first.sum()),
            "surplus": int(surplus.sum()),
        }

    @property
    def sha256(self) -> str:
        """The hash of the ids, of what is attended and kept, and of the documents."""
        digest = hashlib.sha256(repr(self.input_ids.shape).encode())
        for array in (self.input_ids, self.attended, self.kept, self.document):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    @property
    def token_ids(self) -> Int32[np.ndarray, " token"]:
        """The ids of the kept positions, in the row order of all activations."""
        return self.input_ids[self.kept]

    @property
    def context_of(self) -> Integer[np.ndarray, " token"]:
        """The context of every kept position."""
        return np.nonzero(self.kept)[0]

    @property
    def position_of(self) -> Integer[np.ndarray, " token"]:
        """The position within its context of every kept position."""
        return np.nonzero(self.kept)[1]


def special_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids of the tokenizer's special tokens, in order."""
    return tuple(sorted(set(tokenizer.all_special_ids)))


def context_frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that a context begins and ends with, as the tokenizer's models are used to read.

    BOS alone, where there is one; of an encoder's tokenizer, which has CLS in its place or as the
    same token, CLS and SEP. Nothing where it has neither.
    """
    # Not every tokenizer has these two attributes; hence they are no part of the protocol.
    cls, sep = (getattr(tokenizer, f"{name}_token_id", None) for name in ("cls", "sep"))
    bos = tokenizer.bos_token_id
    if cls is None or bos not in (None, cls):
        return ([] if bos is None else [bos]), []
    return [cls], ([] if sep is None else [sep])


def document_end(tokenizer: Tokenizer) -> list[int]:
    """What parts two documents in one context: EOS, else SEP, else nothing."""
    ends = (tokenizer.eos_token_id, getattr(tokenizer, "sep_token_id", None))
    return [end for end in ends if end is not None][:1]


def load_tokenizer(name: str, revision: str | None = None) -> Tokenizer:
    """The tokenizer of a local folder or of a model on the Hugging Face hub.

    Raises:
        MissingFileError: `name` is a folder without a tokenizer.
        ModelError: `name` is neither a folder nor reachable on the hub.
    """
    from transformers import AutoTokenizer

    is_folder = Path(name).is_dir()
    if is_folder and not any((Path(name) / file).is_file() for file in TOKENIZER_FILES):
        raise MissingFileError(
            f"folder {name!r} must hold a tokenizer (tokenizer.json), it holds none: "
            "say in the study where the tokenizer is"
        )
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    hub.setLevel(logging.ERROR)  # it would print each of its retries
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, local_files_only=is_folder)
    # Whatever transformers raises here (a dozen classes, by version), it could not be loaded.
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        if is_folder:
            raise MissingFileError(
                f"folder {name!r} must hold a tokenizer (tokenizer.json): {reason}"
            ) from error
        raise ModelError(
            f"tokenizer {name!r} must be a folder or a name on the Hugging Face hub; there is no "
            f"such folder and the hub gave: {reason}"
        ) from error
    finally:
        hub.setLevel(hub_level)


def check_same_tokenizer(
    tokenizer_a: Tokenizer, tokenizer_b: Tokenizer, name_a: str, name_b: str
) -> None:
    """Nothing, if both tokenizers turn text into the same ids.

    Raises:
        TextError: They differ; says where first.
    """
    must = "both models must read the same tokens"
    if len(tokenizer_a) != len(tokenizer_b):
        raise TextError(
            f"{must}, got {len(tokenizer_a)} tokens in {name_a} and {len(tokenizer_b)} in "
            f"{name_b}: choose two models that share a tokenizer"
        )
    vocabulary_a, vocabulary_b = (
        {index: token for token, index in tokenizer.get_vocab().items()}
        for tokenizer in (tokenizer_a, tokenizer_b)
    )
    for index in sorted(vocabulary_a.keys() | vocabulary_b.keys()):
        token_a, token_b = vocabulary_a.get(index), vocabulary_b.get(index)
        if token_a != token_b:
            raise TextError(
                f"{must}, token {index} is {token_a!r} in {name_a} and {token_b!r} in {name_b}: "
                "choose two models that share a tokenizer"
            )
    ids_a, ids_b = (_encode(tokenizer, [PROBE])[0] for tokenizer in (tokenizer_a, tokenizer_b))
    if ids_a != ids_b:
        agreed = next(
            (i for i, (a, b) in enumerate(zip(ids_a, ids_b, strict=False)) if a != b),
            min(len(ids_a), len(ids_b)),
        )
        raise TextError(
            f"{must}, the vocabularies of {name_a} and {name_b} agree but not how they cut a text: "
            f"from token {agreed} on {PROBE!r} differs; choose two models that share a tokenizer"
        )


def tokenize(
    documents: Sequence[str],
    tokenizer: Tokenizer,
    *,
    context_length: int,
    across_documents: bool = False,
    contexts_per_document: int | None = None,
    add_bos: bool = True,
    mask_special: bool = True,
    mask_first: bool = True,
) -> Tokens:
    """The documents as consecutive contexts, none of which spans two documents unless asked for.

    Each context begins with BOS, where the tokenizer has one (an encoder's with CLS, and ends with
    SEP); the last one of a document is padded.

    Args:
        documents: At least one.
        tokenizer: Of both models.
        context_length: Positions of a context, BOS (or CLS and SEP) included.
        across_documents: Fill contexts across documents, with EOS (or SEP) between two. A context
            then counts as a document of its own.
        contexts_per_document: Take the first so many of each document at most; all if None.
        add_bos: Begin each context with BOS, or frame it with CLS and SEP.
        mask_special: Leave special tokens out of what counts.
        mask_first: Leave the first position of each context out of what counts.

    Raises:
        TextError: The documents hold no token, or a context has no room for one.
    """
    start, end = context_frame(tokenizer) if add_bos else ([], [])
    room = context_length - len(start) - len(end)
    if room < 1:
        raise TextError(
            f"context_length must leave room for text, got {context_length}: choose at least 16"
        )
    fill = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    encoded = _encode(tokenizer, list(documents))
    if across_documents:
        encoded = [_joined(encoded, document_end(tokenizer))]
    contexts: list[list[int]] = []
    document: list[int] = []
    for index, ids in enumerate(encoded):
        begins = range(0, len(ids), room)[:contexts_per_document]
        cut = [start + ids[i : i + room] + end for i in begins]
        contexts += cut
        document += [index] * len(cut)
    if not contexts:
        raise TextError("text must hold at least one token, got none")
    if across_documents:
        document = list(range(len(contexts)))
    input_ids = np.full((len(contexts), context_length), fill, dtype=np.int32)
    attended = np.zeros(input_ids.shape, dtype=bool)
    for row, ids in enumerate(contexts):
        input_ids[row, : len(ids)] = ids
        attended[row, : len(ids)] = True
    return _masked(
        input_ids,
        attended,
        np.array(document, dtype=np.int32),
        special_ids=special_ids(tokenizer),
        mask_special=mask_special,
        mask_first=mask_first,
    )


def load_token_ids(
    path: Path, *, special_ids: Collection[int], mask_special: bool = True, mask_first: bool = True
) -> Tokens:
    """The contexts of a safetensors file with `input_ids`, of context by position.

    The file may also hold `attention_mask` (zero at padding) and `document`, one number a context;
    without it each context counts as a document of its own.

    Raises:
        MissingFileError: Nothing is at `path`.
        FormatError: The file is not safetensors, or its arrays do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"token ids must be a safetensors file, {path} is not there")
    try:
        arrays = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise FormatError(
            f"token ids must be a safetensors file, {path} is none: {error}"
        ) from error
    if "input_ids" not in arrays:
        raise FormatError(
            f"{path} must hold an array 'input_ids', got: {', '.join(sorted(arrays)) or 'nothing'}"
        )
    ids = arrays["input_ids"]
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer) or not ids.size:
        raise FormatError(
            f"input_ids of {path} must be integers of context by position, "
            f"got {ids.dtype} of shape {ids.shape}"
        )
    if ids.min() < 0 or ids.max() > np.iinfo(np.int32).max:
        raise FormatError(
            f"input_ids of {path} must be token ids, got values from {ids.min()} to {ids.max()}"
        )
    attended = arrays.get("attention_mask", np.ones(ids.shape, dtype=bool)) != 0
    document = arrays.get("document", np.arange(len(ids)))
    for name, array, shape in (
        ("attention_mask", attended, ids.shape),
        ("document", document, ids.shape[:1]),
    ):
        if array.shape != shape:
            raise FormatError(
                f"{name} of {path} must have shape {shape} as input_ids asks, got {array.shape}"
            )
    return _masked(
        ids.astype(np.int32),
        attended,
        document.astype(np.int32),
        special_ids=special_ids,
        mask_special=mask_special,
        mask_first=mask_first,
    )


def save_token_ids(
    path: Path,
    input_ids: Integer[np.ndarray, "context position"],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write contexts as `load_token_ids` reads them, in the narrowest type that holds the ids.

    Raises:
        StorageError: The file cannot be written.
    """
    narrow = np.uint16 if input_ids.max(initial=0) <= np.iinfo(np.uint16).max else np.int32
    try:
        save_file(
            {"input_ids": np.ascontiguousarray(input_ids.astype(narrow))},
            path,
            metadata=dict(metadata or {}),
        )
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot write token ids to {path}: {error}") from error


def draw(
    tokens: Tokens, n_tokens: int | None, *, rng: np.random.Generator, allow_fewer: bool = False
) -> Tokens:
    """Contexts at random, without replacement, that keep exactly `n_tokens` positions.

    The surplus is taken off the end of the context drawn last; the contexts then stand in the
    order of the text, so that a draw of all of it is the text itself.

    Args:
        tokens: What to draw from.
        n_tokens: How many positions to keep; None keeps all.
        rng: Draws the contexts and nothing else.
        allow_fewer: Take all where there are fewer than `n_tokens`.

    Raises:
        TextError: There are fewer than `n_tokens`, or fewer than 1,000 in all.
    """
    n_there = tokens.n_tokens
    if n_there < MIN_TOKENS or (n_tokens is not None and n_tokens < MIN_TOKENS):
        got = n_there if n_there < MIN_TOKENS else n_tokens
        raise TextError(f"at least {MIN_TOKENS:,} tokens must count, got {got:,}: give more text")
    if n_tokens is not None and n_there < n_tokens and not allow_fewer:
        raise TextError(
            f"the text must hold the {n_tokens:,} tokens asked for, it holds {n_there:,}: "
            f"give more text, or ask for at most {n_there:,}"
        )
    if n_tokens is None or n_there <= n_tokens:
        return tokens
    per_context = tokens.kept.sum(axis=1)
    order = rng.permutation(len(per_context))
    order = order[per_context[order] > 0]
    reached = np.cumsum(per_context[order])
    n_drawn = int(np.searchsorted(reached, n_tokens)) + 1
    kept = tokens.kept.copy()
    surplus = int(reached[n_drawn - 1]) - n_tokens
    if surplus:
        last = order[n_drawn - 1]
        kept[last, np.flatnonzero(kept[last])[-surplus:]] = False
    chosen = np.sort(order[:n_drawn])
    return replace(
        tokens,
        input_ids=tokens.input_ids[chosen],
        attended=tokens.attended[chosen],
        kept=kept[chosen],
        document=tokens.document[chosen],
    )


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    # verbose=False: documents are longer than the model's window by design, and are cut below.
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def _joined(texts: list[list[int]], between: list[int]) -> list[int]:
    """The ids of all texts in one; those without any part nothing."""
    first, *others = [ids for ids in texts if ids] or [[]]
    return first + [i for ids in others for i in between + ids]


def _masked(
    input_ids: Int32[np.ndarray, "context position"],
    attended: Bool[np.ndarray, "context position"],
    document: Int32[np.ndarray, " context"],
    *,
    special_ids: Collection[int],
    mask_special: bool,
    mask_first: bool,
) -> Tokens:
    special = tuple(sorted(set(special_ids)))
    kept = attended.copy()
    if mask_special:
        kept &= ~np.isin(input_ids, special)
    if mask_first:
        kept[:, 0] = False
    return Tokens(
        input_ids=input_ids, attended=attended, kept=kept, document=document, special_ids=special
    )
