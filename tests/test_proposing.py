"""Concepts from a language model: a real HTTP server answers, well and otherwise."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from saelign.concepts import load_concept, propose_concept, save_concept
from saelign.concepts.concept import read_as_written
from saelign.concepts.proposing import Unanswered, in_all, where, words_of
from saelign.errors import DegenerateError, FormatError, ModelError

ONE = '["sea", "ship", "sail", "May", "oar"]'
TWO = "Here are the words:\n1. Ship\n2. **sail**\n3. may\n4. anchor\n5. oar"
THREE = "sail, ship, May, deck, mast"


@dataclass
class Server:
    """What a server answers, one after the other, and what it was asked."""

    address: str = ""
    answers: list[Any] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


def chat(text: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    told = Server()
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            told.asked.append(json.loads(self.rfile.read(length)) | {"path": self.path})
            told.keys.append(self.headers["Authorization"])
            answer = told.answers.pop(0)
            if answer == "silence":
                over.wait(20)
                return
            if answer == "hang up":
                self.connection.close()
                return
            status, headers, body = answer if isinstance(answer, tuple) else (200, {}, chat(answer))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            pieces = body if isinstance(body, list) else [body]
            for piece in pieces:
                self.wfile.write(piece)
                self.wfile.flush()
                if len(pieces) > 1 and over.wait(0.2):
                    return

        def log_message(self, *_: object) -> None:
            """Nothing."""

        def handle(self) -> None:
            with contextlib.suppress(OSError, ValueError):  # who asked has gone
                super().handle()

        def finish(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().finish()

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    httpd.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    told.address = f"http://127.0.0.1:{httpd.server_port}/v1"
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    yield told
    over.set()
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def propose(server: Server) -> Callable[..., Any]:
    def ask(**options: Any) -> Any:
        given = {"endpoint": server.address, "wait": 0.0, "timeout": 10.0, **options}
        return propose_concept("Ships", "small-1", **given)

    return ask


# When it answers ---------------------------------------------------------------------------------


def test_a_concept_is_what_three_lists_have_in_common_and_keeps_them(server, propose, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server.answers = [ONE, TWO, THREE]
    told = []
    concept = propose(about="on the sea", progress=lambda *step: told.append(step))
    assert concept.words == ["ship", "sail", "May"]
    assert {keyword.source for keyword in concept.keywords} == {"proposed by small-1"}
    assert [one.words for one in concept.lists] == [
        ("sea", "ship", "sail", "May", "oar"),
        ("Ship", "sail", "may", "anchor", "oar"),
        ("sail", "ship", "May", "deck", "mast"),
    ]
    assert concept.lists[0].endpoint == server.address
    assert concept.lists[0].model == "small-1"
    assert concept.lists[0].created.endswith("+00:00")
    assert told == [("ask for lists", n, 3) for n in range(4)]
    assert {request["path"] for request in server.asked} == {"/v1/chat/completions"}
    assert [request["seed"] for request in server.asked] == [0, 1, 2]
    assert {request["temperature"] for request in server.asked} == {1}
    (question,) = {request["messages"][0]["content"] for request in server.asked}
    assert "60 common English words" in question
    assert "'Ships' (on the sea)" in question
    assert server.keys == ["Bearer secret"] * 3
    assert "secret" not in repr(concept)


def test_the_address_of_the_environment_is_asked_and_no_key_is_sent_without_one(
    server, monkeypatch
):
    monkeypatch.setenv("OPENAI_BASE_URL", server.address + "/")
    server.answers = [ONE]
    assert propose_concept("Ships", "m", lists=1).words == ["sea", "ship", "sail", "May", "oar"]
    assert server.keys == [None]


def test_lists_that_arrived_are_kept_and_used_when_asked_again(server, propose, tmp_path):
    partial = tmp_path / "ships.yaml.partial"
    server.answers = [ONE, TWO, *[(500, {}, b"")] * 3]
    with pytest.raises(ModelError, match=r"lists that arrived before are kept \(2\)"):
        propose(partial=partial)
    assert [one.words[0] for one in read_as_written(partial).lists] == ["sea", "Ship"]
    server.answers = [THREE]
    assert propose(partial=partial).words == ["ship", "sail", "May"]
    assert len(server.asked) == 2 + 3 + 1
    # All are there now: nothing is asked.
    assert propose(partial=partial).words == ["ship", "sail", "May"]
    assert len(server.asked) == 6


def test_lists_for_something_else_are_not_mixed_in(server, propose, tmp_path):
    server.answers = [ONE]
    propose(partial=tmp_path / "p", lists=1)
    with pytest.raises(FormatError, match=r"must hold lists for 'Ships' from big at .*: delete it"):
        propose_concept(
            "Ships", "big", endpoint=server.address, partial=tmp_path / "p", lists=1, wait=0.0
        )
    (tmp_path / "p").write_text("not a concept")
    with pytest.raises(FormatError, match=r"p must be a concept"):
        propose(partial=tmp_path / "p", lists=1)


# When it does not --------------------------------------------------------------------------------


def test_a_server_that_fails_once_is_asked_again(server, propose):
    busy = (429, {}, b'{"error": {"message": "slow down"}}')
    server.answers = [(500, {}, b"oops"), ONE, busy, "I'd rather not.", TWO, "hang up", THREE]
    assert propose().words == ["ship", "sail", "May"]
    assert server.answers == []


def test_three_tries_then_a_clear_error(server, propose):
    server.answers = ["I am sorry, I cannot do that.", (200, {}, b"<html>hello"), chat_of(None)]
    told = (
        r"must answer with a list of words, http://127\.0\.0\.1:\d+/v1/chat/completions did not in "
        r"3 tries \(no list of words but 'I am sorry, I cannot do that\.'; no answer of a chat but "
        r"'<html>hello'; no text but 'None'\): lists that arrived before are kept \(0\)"
    )
    with pytest.raises(ModelError, match=told):
        propose()
    assert len(server.asked) == 3


def chat_of(text: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, chat(text)


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"choices": []}', b'{"choices": [1]}', b"\xff"])
def test_an_answer_that_is_no_chat_is_told(server, propose, body):
    server.answers = [(200, {}, body)] * 3
    with pytest.raises(ModelError, match=r"in 3 tries \(no answer of a chat but "):
        propose()


def test_a_wrong_key_is_told_at_once(server, propose):
    server.answers = [(401, {}, b'{"error": {"message": "Incorrect API key"}}')]
    told = (
        r"must give model 'small-1' to ask, .* answered 401 Unauthorized: Incorrect API key: "
        r"check the address, the model's name and OPENAI_API_KEY"
    )
    with pytest.raises(ModelError, match=told):
        propose(api_key="wrong")
    assert server.keys == ["Bearer wrong"]


def test_a_redirection_is_not_followed_with_the_key(server, propose):
    server.answers = [(307, {"Location": server.address + "/elsewhere"}, b"")]
    with pytest.raises(ModelError, match=r"answered 307 Temporary Redirect: check the address"):
        propose(api_key="secret")
    assert len(server.asked) == 1


def test_a_key_that_cannot_be_sent_is_not_printed(propose):
    with pytest.raises(ModelError, match=r"a key with a line break or an odd sign cannot") as error:
        propose(api_key="hush\nhush")
    assert "hush" not in str(error.value)


@pytest.mark.parametrize(
    "answer",
    ["silence", (200, {}, [b" "] * 100)],
    ids=["nothing", "a byte now and then"],
)
def test_who_never_answers_is_given_up(server, propose, answer):
    server.answers = [answer] * 3
    before = time.monotonic()
    with pytest.raises(ModelError, match=r"3 tries \(no (answer|end of the answer) in 0\.3 s\)"):
        propose(timeout=0.3)
    assert time.monotonic() - before < 15


def test_an_endless_answer_is_given_up(server, propose, monkeypatch):
    monkeypatch.setattr("saelign.concepts.proposing.MAX_BYTES", 1000)
    server.answers = [(200, {}, b"x" * 5000)] * 3
    with pytest.raises(ModelError, match=r"3 tries \(an answer of more than 0 MB\)"):
        propose()


def test_a_port_where_nobody_listens_is_told(propose):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    with pytest.raises(ModelError, match=r"3 tries \(.*[Cc]onnection refused"):
        propose(endpoint=f"http://127.0.0.1:{port}/v1")


def test_between_tries_it_waits_longer_each_time(server, propose, monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr("saelign.concepts.proposing.time.sleep", waited.append)
    server.answers = [(503, {}, b"")] * 3
    with pytest.raises(ModelError, match=r"\(503 Service Unavailable\)"):
        propose(wait=2.0)
    assert waited == [2.0, 4.0]


def test_lists_without_a_common_word_are_told(server, propose, tmp_path):
    server.answers = ["a, b, c", "d, e, f"]
    with pytest.raises(DegenerateError, match=r"the 2 lists must have words in common.*partial"):
        propose(lists=2, partial=tmp_path / "x.partial")
    server.answers = ["a, b, c", "d, e, f"]
    with pytest.raises(DegenerateError, match=r"they have none: ask for fewer lists"):
        propose(lists=2)


def test_wrong_arguments_are_told(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(DegenerateError, match=r"lists must be 1 or more, got 0"):
        propose_concept("Ships", "m", lists=0)
    with pytest.raises(DegenerateError, match=r"words must be 3 or more, got 2"):
        propose_concept("Ships", "m", words=2)
    with pytest.raises(DegenerateError, match=r"timeout must be above 0 seconds, got 0"):
        propose_concept("Ships", "m", timeout=0.0)
    with pytest.raises(ModelError, match=r"needs a key, there is none: set OPENAI_API_KEY"):
        propose_concept("Ships", "m")
    for wrong in ("localhost:8000", "ftp://host/v1", "http://", "file:///etc/passwd", "http://[1"):
        with pytest.raises(ModelError, match=r"an endpoint must be an address such as https://"):
            propose_concept("Ships", "m", endpoint=wrong)


# The parts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "address", "told"),
    [
        ("http://h/v1/", "http://h/v1/chat/completions", "http://h/v1"),
        ("http://h/v1/chat/completions", "http://h/v1/chat/completions", "http://h/v1"),
        ("https://me:pw@h:8/v1?k=v", "https://h:8/v1/chat/completions?k=v", "https://h:8/v1"),
        ("http://[::1]:8/v1", "http://[::1]:8/v1/chat/completions", "http://[::1]:8/v1"),
    ],
)
def test_an_endpoint_is_told_without_secrets(endpoint, address, told):
    assert where(endpoint) == (address, told)


@pytest.mark.parametrize(
    "reply",
    [
        '["fear", "high spirits", "joy"]',
        '```json\n["fear", "high spirits", "joy"]\n```',
        '{"words": ["fear", "high spirits", "joy"]}',
        'Sure [as asked]:\n["fear", "high spirits", "joy"]\nEnjoy!',
        "fear\nhigh spirits\njoy",
        "Here they are:\n- fear\n* high  spirits\n• joy",
        "1. fear\n2) high spirits\n3: joy\n",
        '**fear**, "high spirits", joy.',
        "fear; high spirits; joy",
        "<think>joy, no... ['x']</think>fear, high spirits, joy, joy",
    ],
)
def test_lists_are_read_however_models_write_them(reply):
    assert words_of(reply) == ["fear", "high spirits", "joy"]


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "[]",
        "joy, fear",
        "I am sorry, but as a language model I cannot, in good faith, do that for you, today.",
        '{"error": "no"}',
        "[1, 2, 3]",
        "1 2 3\n4 5 6\n7 8 9",
    ],
)
def test_what_is_no_list_of_words_is_not_taken_for_one(reply):
    with pytest.raises(Unanswered, match=r"no list of words but "):
        words_of(reply)


def test_the_most_common_spelling_is_kept():
    assert in_all([["may", "June", "x"], ["May", "june"], ["May", "JUNE"]]) == ["May", "June"]
    assert in_all([["b", "a"], ["a", "b", "B"]]) == ["b", "a"]
    assert in_all([["b"]]) == ["b"]


def test_a_proposed_concept_is_loaded_as_any_other(server, propose, tmp_path: Path):
    server.answers = [ONE]
    concept = propose(lists=1)
    assert load_concept(save_concept(concept, tmp_path / "ships.yaml")) == concept
