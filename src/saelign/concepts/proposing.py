"""A concept from a language model: the words that several of its lists have in common.

Source: Lan et al. (2024), "Sparse Autoencoders Reveal Universal Feature Spaces Across Large
Language Models": keywords of a concept that a language model gives. Here several lists are asked
for, each on its own, and every one is kept.
"""

import contextlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from saelign.concepts.concept import (
    Concept,
    Keyword,
    ProposedList,
    each_once,
    read_as_written,
    save_concept,
)
from saelign.errors import DegenerateError, FormatError, ModelError

DEFAULT_ENDPOINT = "https://api.openai.com/v1"
TRIES = 3
TIMEOUT = 120.0
MAX_BYTES = 10_000_000
"""Longest answer to read: a list of words is a thousandth of it."""

MIN_WORDS = 3
"""Fewer words than that are no list."""

MOST = 0.75
"""Share of what stands in lines or between commas that must be words: prose has commas too."""

MAX_PARTS = 3
"""Words that a keyword may have; more are a sentence about the list."""

WORD = re.compile(r"[^\W\d_]+([ '’.-][^\W\d_]+)*\.?")  # noqa: RUF001


def propose_concept(
    name: str,
    model: str,
    *,
    lists: int = 3,
    words: int = 60,
    endpoint: str | None = None,
    api_key: str | None = None,
    about: str = "",
    partial: str | Path | None = None,
    timeout: float = TIMEOUT,
    wait: float = 2.0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Concept:
    """The concept of the words that all lists of a language model have, upper or lower case alike.

    Lists are asked for one by one, at temperature 1 and with another seed each. Of a word's
    spellings the most common one is kept.

    Args:
        name: Of the concept.
        model: As the endpoint calls it.
        lists: How many to ask for, at least 1.
        words: How many words to ask for in each, at least 3.
        endpoint: Base address that answers `/chat/completions` as OpenAI's does; `OPENAI_BASE_URL`
            if None, or else that of OpenAI.
        api_key: `OPENAI_API_KEY` if None; without any, none is sent.
        about: What the concept is, told to the model.
        partial: File that keeps lists that have arrived until all have; read when it is there.
        timeout: Seconds to wait for an answer.
        wait: Seconds before the second try; twice that before the third.
        progress: Told how many lists there are.

    Raises:
        ModelError: The endpoint cannot be asked, refuses, or gave no list in three tries.
        DegenerateError: Too few lists, words or seconds are asked for, or the lists have no word in
            common.
        FormatError: `partial` is not what this function writes.
        StorageError: `partial` cannot be written.
    """
    if lists < 1:
        raise DegenerateError(f"lists must be 1 or more, got {lists}")
    if words < MIN_WORDS:
        raise DegenerateError(f"words must be {MIN_WORDS} or more, got {words}")
    if not timeout > 0:
        raise DegenerateError(f"timeout must be above 0 seconds, got {timeout:g}")
    address, told = where(endpoint)
    key = (api_key if api_key is not None else os.environ.get("OPENAI_API_KEY", "")).strip()
    if not key and told == DEFAULT_ENDPOINT:
        raise ModelError(
            f"{DEFAULT_ENDPOINT} needs a key, there is none: set OPENAI_API_KEY, or give the "
            "address of another endpoint with --endpoint"
        )
    draft = Concept(
        name=name,
        version="1",
        about=about or f"words that all of {lists} lists of {model} have",
        keywords=(),
    )
    partial = None if partial is None else Path(partial).expanduser()
    arrived = kept_lists(partial, name, model, told)[:lists]
    for index in range(len(arrived), lists):
        if progress is not None:
            progress("ask for lists", index, lists)
        content = {
            "model": model,
            "messages": [{"role": "user", "content": question(name, about, words)}],
            "temperature": 1,
            "seed": index,
        }
        given = ask(address, content, key, timeout=timeout, wait=wait, kept=len(arrived))
        arrived.append(
            ProposedList(
                model=model,
                endpoint=told,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                words=tuple(given),
            )
        )
        if partial is not None:
            save_concept(replace(draft, lists=tuple(arrived)), partial)
    if progress is not None:
        progress("ask for lists", lists, lists)
    common = in_all([one.words for one in arrived])
    if not common:
        kept = "" if partial is None else f" delete {partial}, which keeps them, and"
        raise DegenerateError(
            f"the {lists} lists must have words in common, they have none:{kept} ask for fewer "
            "lists, or say more about the concept"
        )
    source = f"proposed by {model}"
    return replace(
        draft,
        keywords=each_once(Keyword(text=word, source=source) for word in common),
        lists=tuple(arrived),
    )


def where(endpoint: str | None) -> tuple[str, str]:
    """Where to ask, and the same as it may be told: without user, password and query.

    Raises:
        ModelError: It is no address.
    """
    base = (endpoint or os.environ.get("OPENAI_BASE_URL") or DEFAULT_ENDPOINT).rstrip("/")
    base = base.removesuffix("/chat/completions")
    try:
        parts = urllib.parse.urlsplit(base)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urllib.parse.urlsplit(""), None, None
    if parts.scheme not in ("http", "https") or not host:
        raise ModelError(
            f"an endpoint must be an address such as {DEFAULT_ENDPOINT}, got {base!r}: give one "
            "with --endpoint or in OPENAI_BASE_URL"
        )
    host = f"[{host}]" if ":" in host else host
    told = f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path}"
    return f"{told}/chat/completions{f'?{parts.query}' if parts.query else ''}", told


def question(name: str, about: str, words: int) -> str:
    """What the model is asked."""
    meaning = f" ({about})" if about else ""
    return (
        f"List {words} common English words that stand for the concept {name!r}{meaning}. Single "
        "words, in lower case unless they are names. Answer with a JSON list of strings, and "
        "nothing else."
    )


def kept_lists(partial: Path | None, name: str, model: str, endpoint: str) -> list[ProposedList]:
    """Lists that arrived at an earlier try for the same concept from the same model.

    Raises:
        FormatError: The file is of another concept or model, or is none.
    """
    if partial is None or not partial.is_file():
        return []
    concept = read_as_written(partial)
    asked = {(concept.name, one.model, one.endpoint) for one in concept.lists}
    if asked - {(name, model, endpoint)}:
        got = ", ".join(f"{concept_name!r} from {m} at {e}" for concept_name, m, e in sorted(asked))
        raise FormatError(
            f"{partial} must hold lists for {name!r} from {model} at {endpoint}, it holds lists "
            f"for {got}: delete it, or choose another --out"
        )
    return list(concept.lists)


def ask(
    address: str,
    content: dict[str, Any],
    key: str,
    *,
    timeout: float,
    wait: float,
    kept: int,
) -> list[str]:
    """A list of words from a language model, tried for three times.

    Args:
        address: Where to post.
        content: What to ask.
        key: Sent as the bearer's, if not empty.
        timeout: Seconds to wait for an answer.
        wait: Seconds before the second try; twice that before the third.
        kept: How many lists have arrived before, for the message.

    Raises:
        ModelError: It refuses, or gave no list in three tries.
    """
    reasons = []
    for attempt in range(TRIES):
        if attempt:
            time.sleep(wait * attempt)
        try:
            return words_of(reply_of(post(address, content, key, timeout)))
        except Refused as error:
            raise ModelError(
                f"the endpoint must give model {content['model']!r} to ask, {address} answered "
                f"{error}: check the address, the model's name and OPENAI_API_KEY"
            ) from error
        except Unanswered as error:
            reasons.append(str(error))
    told = "; ".join(dict.fromkeys(reasons))
    raise ModelError(
        f"the endpoint must answer with a list of words, {address} did not in {TRIES} tries "
        f"({told}): lists that arrived before are kept ({kept}); ask again when it answers, or "
        "check --endpoint"
    )


class Unanswered(Exception):  # noqa: N818
    """No list of words this time; another try may bring one."""


class Refused(Exception):  # noqa: N818
    """An answer that another try would not change."""


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: it would hand the key to whoever the answer names."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """No request."""


def post(address: str, content: dict[str, Any], key: str, timeout: float) -> bytes:
    """The body of an answer.

    Raises:
        Unanswered: None came, or the server was at fault or busy.
        Refused: The request was.
    """
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        request = urllib.request.Request(address, json.dumps(content).encode(), headers)
        opener = urllib.request.build_opener(NoRedirect)
        with opener.open(request, timeout=timeout) as response:
            return read_within(response, timeout)
    except urllib.error.HTTPError as error:
        with error:
            told = f"{error.code} {error.reason}{in_short(error)}"
        if error.code in (408, 409, 425, 429) or error.code >= 500:
            raise Unanswered(told) from error
        raise Refused(told) from error
    except TimeoutError as error:
        raise Unanswered(f"no answer in {timeout:g} s") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise Unanswered(f"no answer in {timeout:g} s") from error
        raise Unanswered(str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise Unanswered(f"{type(error).__name__}: {error}") from error
    except ValueError as error:
        # Its own words would print the key.
        raise Refused(
            "nothing, for a key with a line break or an odd sign cannot be sent"
        ) from error


def read_within(response: Any, timeout: float) -> bytes:
    """All that a response holds; a server that sends a byte now and then does not hold us up."""
    until, parts, size = time.monotonic() + timeout, [], 0
    while part := response.read1(65536):
        parts.append(part)
        size += len(part)
        if time.monotonic() > until:
            raise Unanswered(f"no end of the answer in {timeout:g} s")
        if size > MAX_BYTES:
            raise Unanswered(f"an answer of more than {MAX_BYTES // 1_000_000} MB")
    return b"".join(parts)


def in_short(error: urllib.error.HTTPError) -> str:
    """What an error's answer says of it, on one line."""
    text = ""
    with contextlib.suppress(OSError, http.client.HTTPException):
        text = error.read(4000).decode("utf-8", "replace")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = str(json.loads(text)["error"]["message"])
    text = " ".join(text.split())
    return f": {text[:200]}" if text else ""


def reply_of(body: bytes) -> str:
    """What the model said.

    Raises:
        Unanswered: The answer is not that of a chat.
    """
    try:
        said = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise Unanswered(f"no answer of a chat but {shown(body.decode('utf-8', 'replace'))}") from (
            error
        )
    if not isinstance(said, str):
        raise Unanswered(f"no text but {shown(str(said))}")
    return said


def shown(text: str) -> str:
    """The beginning of a text, on one line."""
    text = " ".join(text.split())
    return repr(text[:60] + ("..." if len(text) > 60 else ""))


def words_of(reply: str) -> list[str]:
    """The words of a list as language models write them: JSON, numbered, in lines or with commas.

    Raises:
        Unanswered: It is no list of words.
    """
    # Some models think aloud first.
    reply = re.sub(r"<think>.*?</think>", "", reply, flags=re.DOTALL)
    items = json_items(reply) or line_items(reply)
    words = [
        word
        for item in items
        if WORD.fullmatch(word := " ".join(item.strip(" \t\"'`*_“”").split()).rstrip("."))
        and len(word.split()) <= MAX_PARTS
    ]
    words = list(dict.fromkeys(words))
    if len(words) < MIN_WORDS or len(words) < MOST * len(set(items)):
        raise Unanswered(f"no list of words but {shown(reply)}")
    return words


def json_items(reply: str) -> list[str]:
    """The first list of texts that stands in a reply as JSON; empty if there is none."""
    decoder = json.JSONDecoder()
    for start in re.finditer(r"\[", reply):
        with contextlib.suppress(ValueError):
            found, _ = decoder.raw_decode(reply, start.start())
            if found and all(isinstance(item, str) for item in found):
                return found
    return []


def line_items(reply: str) -> list[str]:
    """What stands in lines, after numbers or bullets, or between commas."""
    lines = [line.strip() for line in reply.splitlines()]
    # Fences of code, and what announces a list.
    lines = [line for line in lines if line and not line.startswith("```") and line[-1] != ":"]
    bare = [re.sub(r"^(\d+\s*[.):]|[-*•+])\s*", "", line) for line in lines]
    return [item for line in bare for item in re.split(r"[,;]", line) if item.strip()]


def in_all(lists: Sequence[Iterable[str]]) -> list[str]:
    """The words that stand in every list whatever their case, in the first one's order.

    Of several spellings the most common one is given, the first of them if there are several.
    """
    kept = [{word.casefold() for word in words} for words in lists]
    spellings = Counter(word for words in lists for word in words)
    best: dict[str, str] = {}
    for word in spellings:
        known = best.get(word.casefold())
        if known is None or spellings[word] > spellings[known]:
            best[word.casefold()] = word
    return [best[key] for key in best if all(key in keys for keys in kept)]
