"""Documents from every source of text, and how they become contexts; what is bad is named."""

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from conftest import tiny_tokenizer
from saelign.demo import FOLDER, demo_study
from saelign.errors import (
    FormatError,
    MissingFileError,
    SaelignError,
    TextError,
    UnknownNameError,
)
from saelign.phrases import as_contexts
from saelign.plan import read_text
from saelign.study import Study, read_study
from saelign.text import DatasetSource, context_frame, read_documents, tokenize
from saelign.text.sources import quiet

LETTERS = "abcdefghijklmnopqrstuvwxyz .,\n"
ROWS = ["one", " \n", "two", "three"]


def write_parquet(path: Path, values: list[Any], column: str = "text", **options: Any) -> Path:
    table = pa.table({"id": list(range(len(values))), column: values})
    pq.write_table(table, path, **options)
    return path


def write_lines(path: Path, values: list[Any], column: str = "text") -> Path:
    lines = [json.dumps({"id": i, column: value}) for i, value in enumerate(values)]
    content = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write(path: Path, values: list[Any], column: str = "text") -> Path:
    is_parquet = path.suffix == ".parquet"
    return (write_parquet if is_parquet else write_lines)(path, values, column)


def study_of(folder: Path, **text: Any) -> Study:
    content = {
        "saelign": 1,
        "name": "small",
        "model_a": {"name": "A", "saes": "a/{layer}.safetensors"},
        "model_b": {"name": "B", "saes": "b/{layer}.safetensors"},
        "text": {"context_length": 8, **text},
    }
    return read_study(content, folder=folder)


# Text files --------------------------------------------------------------------------------------


def test_a_file_is_one_document_or_one_a_paragraph(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\ntwo\r\n\r\n \nthree\n\n\n")
    assert read_documents(path, split="none") == ["one\ntwo\n\n \nthree\n\n\n"]
    assert read_documents(path, split="blank_line") == ["one\ntwo", "three"]
    assert read_documents(path, split="blank_line", n_documents=1) == ["one\ntwo"]


def test_a_folder_is_read_in_order_of_name_and_blank_files_are_passed_over(tmp_path: Path) -> None:
    for name, text in {"b.txt": "B", "a.txt": "A", "c.txt": " \n", "d.md": "no"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "about.json").write_text("{}")
    assert read_documents(tmp_path) == ["A", "B"]
    assert read_documents(tmp_path, n_documents=1) == ["A"]


def test_text_may_be_packed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress("né\n\ntwo".encode()))
    assert read_documents(path, split="blank_line") == ["né", "two"]
    assert read_documents(tmp_path) == ["né\n\ntwo"]
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(FormatError, match=r"a\.txt\.gz must be a whole gzip file, it is not: .*;"):
        read_documents(path)
    path.write_bytes(b"none of the kind")
    with pytest.raises(FormatError, match=r"must be a whole gzip file, .*copy it again"):
        read_documents(path)
    other = tmp_path / "a.jsonl.zst"
    other.write_bytes(b"(\xb5/\xfd")
    with pytest.raises(FormatError, match=r"packed text must be \.gz, got .*\.zst: unpack it"):
        read_documents(other)


def test_text_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        MissingFileError,
        match=r"nowhere is not there: give its path, or ask for a data set as \{dataset: NAME\}",
    ):
        read_documents(tmp_path / "nowhere")
    with pytest.raises(TextError, match=r"hold \.txt, \.jsonl or \.parquet files, .* holds none"):
        read_documents(tmp_path)
    path = tmp_path / "a.txt"
    path.write_text(" \n\n")
    with pytest.raises(TextError, match=r"text must hold words, .*a\.txt is empty"):
        read_documents(path)
    path.write_bytes(b"ab\xff")
    with pytest.raises(FormatError, match=r"must be UTF-8, .* is not at byte 2: convert it"):
        read_documents(path)
    with pytest.raises(UnknownNameError, match=r"'blankline' \(did you mean 'blank_line'\?\)"):
        read_documents(path, split="blankline")
    path.unlink()
    path.mkdir()
    with pytest.raises(MissingFileError, match=r"cannot read .*a\.txt: Is a directory"):
        read_documents(tmp_path)


def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(MissingFileError, match=r"cannot read .*: Permission denied"):
        read_documents(tmp_path)


# Rows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a.parquet", "a.PARQUET", "a.jsonl", "a.json", "a.ndjson", "a.jsonl.gz"]
)
def test_a_row_is_a_document(tmp_path: Path, name: str) -> None:
    writes = write_parquet if name.lower().endswith("parquet") else write_lines
    path = writes(tmp_path / name, ROWS, "body")
    assert read_documents(path, column="body") == ["one", "two", "three"]
    assert read_documents(path, column="body", n_documents=2) == ["one", "two"]
    with pytest.raises(UnknownNameError, match=r"^unknown column of .*'text', .* of: body, id$"):
        read_documents(path)
    with pytest.raises(TextError, match=r"split must be none where each row .*, got blank_line"):
        read_documents(path, column="body", split="blank_line")


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_shards_of_a_folder_are_read_in_order_of_name(tmp_path: Path, kind: str) -> None:
    write(tmp_path / f"part-1.{kind}", ["c"])
    write(tmp_path / f"part-0.{kind}", ["a", "b"])
    assert read_documents(tmp_path) == ["a", "b", "c"]
    (tmp_path / "c.txt").write_text("other")
    with pytest.raises(TextError, match=rf"files of one kind, .* holds \.{kind} and \.txt: move"):
        read_documents(tmp_path)


def test_blank_lines_between_objects_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a\\n\\nb"}\r\n\n  \n{"text": "c"}')
    assert read_documents(path) == ["a\n\nb", "c"]


def test_pandas_text_columns_of_any_kind_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for kind in ("object", "category", "string"):
        pd.DataFrame({"text": pd.Series(["a", "b", "a"], dtype=kind)}).to_parquet(path)
        assert read_documents(path) == ["a", "b", "a"]
    pq.write_table(pa.table({"text": pa.array(["x"], pa.large_string())}), path)
    assert read_documents(path) == ["x"]


@pytest.mark.parametrize(
    ("value", "got"),
    [(None, "null"), (3, "a number"), (True, "true or false"), (["a"], "a list")],
)
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_row_without_text_is_named(tmp_path: Path, kind: str, value: object, got: str) -> None:
    if kind == "parquet" and value is not None:  # a column has one type
        path, number = write(tmp_path / "a.parquet", [value, value]), 1
    else:
        path, number = write(tmp_path / f"a.{kind}", ["a", "b", value, "c"]), 3
    what = "row" if kind == "parquet" else "line"
    words = (
        rf"^{what} {number} of .*a\.{kind} must hold text in the column 'text', got {got}: leave "
        r"the row out, or choose another column with text\.column$"
    )
    with pytest.raises(FormatError, match=words):
        read_documents(path)


def test_rows_after_those_asked_for_are_not_looked_at(tmp_path: Path) -> None:
    for path in (tmp_path / "a.parquet", tmp_path / "a.jsonl"):
        write(path, ["a", "b", None])
        assert read_documents(path, n_documents=2) == ["a", "b"]
        with pytest.raises(FormatError, match=r" 3 of .* got null"):
            read_documents(path, n_documents=3)
    shards = tmp_path / "shards"
    shards.mkdir()
    write(shards / "0.jsonl", ["a", "b"])
    (shards / "1.jsonl").write_text("no JSON")
    assert read_documents(shards, n_documents=2) == ["a", "b"]


def test_a_parquet_file_is_read_by_row_groups_and_one_that_is_damaged_is_refused(
    tmp_path: Path,
) -> None:
    texts = [f"document {i}" for i in range(3000)]
    path = write_parquet(tmp_path / "a.parquet", texts, row_group_size=1500)
    assert read_documents(path) == texts
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(1)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + 400] = b"\xff" * 400
    path.write_bytes(content)
    assert read_documents(path, n_documents=1000) == texts[:1000]
    with pytest.raises(FormatError, match=r"must be a Parquet file, it cannot be read as one: "):
        read_documents(path)


def test_columns_that_are_not_asked_for_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"other": [f"{i}" for i in range(500)], "text": ["a"] * 500}), path)
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + 200] = b"\xff" * 200
    path.write_bytes(content)
    assert read_documents(path) == ["a"] * 500


def test_a_parquet_file_that_is_none_or_cut_short_is_refused(tmp_path: Path) -> None:
    whole = write_parquet(tmp_path / "a.parquet", ["a"] * 100).read_bytes()
    path = tmp_path / "b.parquet"
    for content in (b"", b"PAR1", whole[:-20], whole[20:], b"text of some kind, but no table"):
        path.write_bytes(content)
        with pytest.raises(
            FormatError,
            match=r"b\.parquet must be a Parquet file, it cannot be read as one: .*; see whether",
        ):
            read_documents(path)


def test_parquet_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    text = pa.array([b"fine", b"ab\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": text}), path)
    with pytest.raises(FormatError, match=r"must be UTF-8, .* within 1024 rows after row 0: write"):
        read_documents(path)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (
            b'{"text": "a"}\n{"text": "b',
            FormatError,
            r"^line 2 of .*a\.jsonl must be a JSON object of its own, it is none: Unterminated .*; "
            r"repair it, or, if it is the last, see whether the file was cut short$",
        ),
        (b"[" * 100_000, FormatError, r"line 1 of .* must be a JSON object of its own, it is none"),
        (
            b'["a", "b"]',
            FormatError,
            r"line 1 of .* must be a JSON object of its own, got a list: write one object a line",
        ),
        (b'"a"', FormatError, r"must be a JSON object of its own, got text"),
        (
            b'{"text": "a"}\n{"txt": "b"}',
            UnknownNameError,
            r"^unknown column of line 2 of .*a\.jsonl 'text' \(did you mean 'txt'\?\), expected on",
        ),
        (b'{"text": "\xff"}', FormatError, r"must be UTF-8, line 1 of .* is not at byte 10"),
        (
            b'{"text": "a\\ud800"}',
            FormatError,
            r"line 1 of .* its character 1 is half of one \(a lone surrogate\): leave the row out",
        ),
        (b"\n\n", TextError, r"text must hold words, .*a\.jsonl is empty"),
    ],
)
def test_a_line_that_is_no_document_is_named(
    tmp_path: Path, content: bytes, error: type[SaelignError], words: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(error, match=words):
        read_documents(path)


def test_lines_cut_short_in_a_packed_file_are_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl.gz", [f"text {i}" for i in range(1000)])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FormatError, match=r"a\.jsonl\.gz must be a whole gzip file"):
        read_documents(path)


# Standard input ----------------------------------------------------------------------------------


def piped(text: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(text.encode()), encoding="ascii")


def test_standard_input_is_read_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", piped("naïve\r\n\r\ntwo"))
    assert read_documents("-") == ["naïve\n\ntwo"]
    assert read_documents("-", split="blank_line") == ["naïve", "two"]
    monkeypatch.setattr(sys, "stdin", piped("other"))
    assert read_documents("-") == ["other"]


def test_a_file_may_be_called_what_standard_input_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-").write_text("a file")
    assert read_documents(Path("-")) == ["a file"]
    assert read_documents("./-") == ["a file"]


def test_standard_input_that_gives_no_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(stream: object, words: str) -> None:
        monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(TextError, match=words):
            read_documents("-")

    refused(piped(" \n"), r"^text must hold words, standard input is empty$")
    refused(None, r"must be open to be read, it is closed: pipe text into it, as in: saelign run")
    closed = piped("a")
    closed.close()
    refused(closed, r"must be open to be read, it is closed")
    with (tmp_path / "out").open("w") as for_writing:
        refused(for_writing, r"standard input must be readable, it is not: read; pipe text into it")
    refused(io.StringIO("a"), r"standard input must be readable, it is not: .*'buffer'; pipe text")
    controller, terminal = os.openpty()
    with os.fdopen(terminal, encoding="utf-8") as stream:
        refused(stream, r"text must come in on standard input, it is a terminal: pipe text into it")
    os.close(controller)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff")))
    with pytest.raises(FormatError, match=r"must be UTF-8, standard input is not at byte 2"):
        read_documents("-")


# Data sets ---------------------------------------------------------------------------------------


def data_set(folder: Path, **asked: Any) -> DatasetSource:
    return DatasetSource(dataset=str(folder), **asked)


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library, with a cache of its own and away from the network."""
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return library


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    return folder


@pytest.mark.usefixtures("datasets")
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_row_of_a_data_set_is_a_document(
    shards: Path, kind: str, streaming: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    write(shards / f"train-0.{kind}", ["a", " ", "b"], "body")
    write(shards / f"train-1.{kind}", ["c"], "body")
    write(shards / f"test-0.{kind}", ["x"], "body")
    asked = data_set(shards, streaming=streaming)
    assert read_documents(asked, column="body") == ["a", "b", "c"]
    assert read_documents(asked, column="body", n_documents=2) == ["a", "b"]
    held_out = data_set(shards, streaming=streaming, split="test")
    assert read_documents(held_out, column="body") == ["x"]
    with pytest.raises(
        UnknownNameError, match=r"column of data set .* \(split 'train'\) 'text', .*: body, id$"
    ):
        read_documents(asked)
    with pytest.raises(TextError, match=r"split must be none where each row .* for data set "):
        read_documents(asked, column="body", split="blank_line")
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("datasets")
def test_a_streamed_data_set_is_not_copied_to_the_cache(tmp_path: Path, shards: Path) -> None:
    write(shards / "a.jsonl", ["a"])
    assert read_documents(data_set(shards, streaming=True)) == ["a"]
    assert not list(tmp_path.rglob("*.arrow"))
    assert read_documents(data_set(shards, streaming=False)) == ["a"]
    assert list(tmp_path.rglob("*.arrow"))


@pytest.mark.usefixtures("datasets")
def test_a_data_set_may_have_configurations(shards: Path) -> None:
    files = {name: write(shards / f"{name}.jsonl", [name]).name for name in ("de", "fr")}
    listed = [f"- config_name: {name}\n  data_files: {file}\n" for name, file in files.items()]
    (shards / "README.md").write_text("---\nconfigs:\n" + "".join(listed) + "---\n")
    assert read_documents(data_set(shards, config="fr")) == ["fr"]
    assert read_documents(data_set(shards, config="de")) == ["de"]
    with pytest.raises(TextError, match=r"datasets gave: Config name is missing"):
        read_documents(data_set(shards))


def test_a_data_set_is_asked_for_at_the_revision_that_the_study_names(
    datasets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        return datasets.Dataset.from_dict({"text": ["a"]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_documents(DatasetSource(dataset="a/b", revision="abc123")) == ["a"]
    options = {"split": "train", "revision": "abc123", "streaming": False}
    assert asked == [(("a/b", None), options)]


@pytest.mark.usefixtures("datasets")
@pytest.mark.parametrize("streaming", [False, True])
def test_a_bad_row_of_a_data_set_is_named(shards: Path, streaming: bool) -> None:
    write(shards / "a.jsonl", ["a", None, "b"])
    asked = data_set(shards, streaming=streaming)
    assert read_documents(asked, n_documents=1) == ["a"]
    with pytest.raises(FormatError, match=r"^row 2 of data set .* in the column 'text', got null"):
        read_documents(asked)
    with pytest.raises(FormatError, match=r"row 1 of data set .* column 'id', got a number"):
        read_documents(asked, column="id")


@pytest.mark.usefixtures("datasets")
@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_that_cannot_be_had_is_one_error(
    shards: Path, streaming: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    def refused(source: DatasetSource, words: str) -> None:
        with pytest.raises(TextError, match=words) as raised:
            read_documents(source)
        assert "\n" not in str(raised.value)

    refused(
        DatasetSource(dataset="no/such", revision="abc", streaming=streaming),
        r"^data set 'no/such' \(split 'train', revision 'abc'\) must be a name on the Hugging Face "
        r"hub or a folder of files, and have what is asked of it; datasets gave: .+; check the",
    )
    refused(data_set(shards, streaming=streaming), r"datasets gave: .+; check the study's words")
    write(shards / "train.parquet", ["a"])
    refused(data_set(shards, split="tset", streaming=streaming), r"\(split 'tset'\) .*tset.*; che")
    refused(data_set(shards, config="de", streaming=streaming), r"\(config 'de', split .*de.*; ch")
    (shards / "train.parquet").write_bytes(b"PAR1")
    refused(data_set(shards, streaming=streaming), r"datasets gave: .*Parquet.*; check the study's")
    (shards / "train.parquet").unlink()
    (shards / "train.jsonl").write_bytes(b'{"text": "a"}\n{"text": "b')
    refused(data_set(shards, streaming=streaming), r"datasets gave: JSON parse error: .+; check th")
    assert capfd.readouterr() == ("", "")


def test_data_sets_without_the_library_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    words = (
        r"must be read with the library datasets, it cannot be imported \(.*\): "
        r"pip install 'saelign\[datasets\]'$"
    )
    with pytest.raises(MissingFileError, match=words):
        read_documents(DatasetSource(dataset="a/b"))


def test_files_are_read_without_the_library(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ["a"])
    code = (
        "import sys, json, saelign.text; saelign.text.read_documents(sys.argv[1]); "
        "print(json.dumps(sorted(sys.modules)))"
    )
    told = subprocess.check_output([sys.executable, "-c", code, path])
    assert not {"torch", "transformers", "datasets", "pyarrow"} & set(json.loads(told))


def test_the_librarys_bars_come_back_after_it_was_quiet(datasets: Any) -> None:
    assert datasets.is_progress_bar_enabled()
    with quiet(datasets):
        assert not datasets.is_progress_bar_enabled()
    assert datasets.is_progress_bar_enabled()


@pytest.mark.usefixtures("datasets")
def test_a_study_reads_a_data_set_in_a_folder_beside_it(tmp_path: Path, shards: Path) -> None:
    write(shards / "train.parquet", ["once upon a time"] * 400)
    study = study_of(tmp_path, source={"dataset": "shards"}, documents=300)
    tokens = read_text(study, tiny_tokenizer())
    assert tokens.n_tokens == 300 * len("once upon a time")
    assert len(set(tokens.document)) == 300


# Studies of files --------------------------------------------------------------------------------


def test_a_studys_words_about_its_text_are_heeded(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ["abcdefghij", "klm", "nop"], "body")
    asked = {"source": "a.jsonl", "column": "body"}
    tokens = read_text(study_of(tmp_path, **asked), tiny_tokenizer())
    assert (tokens.n_tokens, tokens.document.tolist()) == (16, [0, 0, 1, 2])
    fewer = read_text(study_of(tmp_path, **asked, documents=2), tiny_tokenizer())
    assert (fewer.n_tokens, fewer.document.tolist()) == (13, [0, 0, 1])
    across = read_text(study_of(tmp_path, **asked, across_documents=True), tiny_tokenizer())
    assert (across.n_tokens, across.document.tolist()) == (16, [0, 1, 2])


def test_the_shipped_text_is_read_as_before() -> None:
    tokens = read_text(demo_study(), PreTrainedTokenizerFast.from_pretrained(FOLDER / "tokenizer"))
    assert tokens.sha256 == "f746fc8938a900cf78aea03227593383760d2da00f32f40bd36238c8be650a63"


# Contexts ----------------------------------------------------------------------------------------


@given(
    documents=st.lists(st.text(LETTERS, max_size=40), min_size=1, max_size=6).filter(any),
    context_length=st.integers(2, 11),
)
def test_contexts_across_documents_are_the_joined_text_cut(
    documents: list[str], context_length: int
) -> None:
    tokenizer = tiny_tokenizer()
    tokens = tokenize(
        documents, tokenizer, context_length=context_length, across_documents=True, mask_first=False
    )
    letters = [[tokenizer.get_vocab()[letter] for letter in text] for text in documents if text]
    joined = letters[0] + [i for ids in letters[1:] for i in [0, *ids]]
    room = context_length - 1
    cut = [[0, *joined[i : i + room]] for i in range(0, len(joined), room)]
    assert [
        ids[on].tolist() for ids, on in zip(tokens.input_ids, tokens.attended, strict=True)
    ] == (cut)
    assert tokens.attended[:-1].all()
    assert tokens.document.tolist() == list(range(len(cut)))
    assert tokens.n_tokens == sum(map(len, documents))


def test_documents_share_a_context_only_when_asked_for() -> None:
    documents = [letter * 5 for letter in "abcdefgh"]
    tokenizer = tiny_tokenizer()

    def most_in_one(**options: Any) -> int:
        tokens = tokenize(documents, tokenizer, context_length=8, **options)
        kept = (ids[on] for ids, on in zip(tokens.input_ids, tokens.kept, strict=True))
        return max(len(np.unique(ids)) for ids in kept)

    assert most_in_one() == 1
    assert most_in_one(across_documents=True) == 2


def character_tokenizer(**names: str) -> PreTrainedTokenizerFast:
    """One token a character, and special ones as named."""
    special = dict.fromkeys(["<unk>", *names.values()])
    vocabulary = {token: index for index, token in enumerate([*special, *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if "cls_token" in names:
        cls, sep = names["cls_token"], names.get("sep_token")
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A" + (f" {sep}" if sep else ""),
            special_tokens=[(name, vocabulary[name]) for name in (cls, sep) if name],
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


BERT = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
ROBERTA = {
    "bos_token": "<s>",
    "cls_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
}


@pytest.mark.parametrize("names", [BERT, ROBERTA, {"cls_token": "<cls>"}])
def test_an_encoders_contexts_are_framed_as_its_tokenizer_frames_a_text(
    names: dict[str, str],
) -> None:
    tokenizer = character_tokenizer(**names)
    documents = ["abc", "abcdefghijklmnop"]
    tokens = tokenize(documents, tokenizer, context_length=8, mask_first=False)
    room = 8 - n_special(tokenizer)
    pieces = ["abc", *(documents[1][i : i + room] for i in range(0, 16, room))]
    read = [ids[on].tolist() for ids, on in zip(tokens.input_ids, tokens.attended, strict=True)]
    assert read == [tokenizer(piece)["input_ids"] for piece in pieces]
    assert max(map(len, read)) == 8
    assert tokens.n_tokens == sum(map(len, documents))
    assert tokens.masked["special"] == len(read) * n_special(tokenizer)
    unmasked = tokenize(
        documents, tokenizer, context_length=8, mask_special=False, mask_first=False
    )
    assert unmasked.n_tokens == sum(map(len, read))
    bare = tokenize(documents, tokenizer, context_length=8, add_bos=False)
    assert not np.isin(bare.input_ids[bare.attended], tokenizer.all_special_ids).any()


def n_special(tokenizer: PreTrainedTokenizerFast) -> int:
    return tokenizer.num_special_tokens_to_add()


def test_an_encoders_documents_are_parted_by_its_separator() -> None:
    for names in (BERT, ROBERTA):
        tokenizer = character_tokenizer(**names)
        tokens = tokenize(["ab", "cde"], tokenizer, context_length=8, across_documents=True)
        text = tokenizer.convert_ids_to_tokens(tokens.input_ids[0])
        cls, sep = names["cls_token"], names["sep_token"]
        assert text == [cls, "a", "b", sep, "c", "d", "e", sep]
        assert tokens.n_tokens == 5


def test_a_tokenizer_without_any_end_parts_documents_by_nothing() -> None:
    tokens = tokenize(["ab", "cd"], character_tokenizer(), context_length=8, across_documents=True)
    assert tokens.attended.sum() == 4


@pytest.mark.parametrize(
    ("names", "frame"),
    [
        ({}, ([], [])),
        ({"bos_token": "<s>"}, (["<s>"], [])),
        ({"bos_token": "<s>", "eos_token": "</s>"}, (["<s>"], [])),
        ({"bos_token": "<s>", "sep_token": "</s>"}, (["<s>"], [])),
        ({"bos_token": "<s>", "cls_token": "<cls>", "sep_token": "<sep>"}, (["<s>"], [])),
        ({"sep_token": "</s>"}, ([], [])),
        (BERT, (["[CLS]"], ["[SEP]"])),
        (ROBERTA, (["<s>"], ["</s>"])),
        ({"cls_token": "<cls>", "eos_token": "<eos>"}, (["<cls>"], [])),
    ],
)
def test_what_a_context_begins_and_ends_with(
    names: dict[str, str], frame: tuple[list[str], list[str]]
) -> None:
    tokenizer = character_tokenizer(**names)
    told = tuple(tokenizer.convert_ids_to_tokens(ids) for ids in context_frame(tokenizer))
    assert told == frame


def test_a_tokenizer_need_not_know_of_cls() -> None:
    class Plain:
        bos_token_id, eos_token_id, pad_token_id = 1, 2, None
        all_special_ids = (1, 2)

        def __call__(self, text: list[str], **_: Any) -> dict[str, list[list[int]]]:
            return {"input_ids": [[LETTERS.index(letter) + 3 for letter in one] for one in text]}

        def __len__(self) -> int:
            return len(LETTERS) + 3

        def decode(self, token_ids: Any, **_: Any) -> str:
            return "".join(LETTERS[i - 3] for i in token_ids)

        def get_vocab(self) -> dict[str, int]:
            return {letter: index + 3 for index, letter in enumerate(LETTERS)}

    assert context_frame(Plain()) == ([1], [])
    tokens = tokenize(["ab", "c"], Plain(), context_length=4, across_documents=True)
    assert tokens.input_ids.tolist() == [[1, 3, 4, 2], [1, 5, 2, 2]]


def test_a_context_has_room_for_what_frames_it() -> None:
    tokenizer = character_tokenizer(**BERT)
    assert tokenize(["ab"], tokenizer, context_length=3).n_tokens == 2
    with pytest.raises(TextError, match=r"leave room for text, got 2: choose at least 16"):
        tokenize(["ab"], tokenizer, context_length=2)


def test_a_phrase_is_framed_as_an_encoders_contexts_are() -> None:
    tokenizer = character_tokenizer(**BERT)
    tokens = as_contexts(["ab", "c"], tokenizer, with_bos=True)
    framed: list[list[str]] = [
        tokenizer.convert_ids_to_tokens(ids[on])
        for ids, on in zip(tokens.input_ids, tokens.attended, strict=True)
    ]
    assert framed == [["[CLS]", " ", "a", "b", "[SEP]"], ["[CLS]", " ", "c", "[SEP]"]]
    assert tokenizer.convert_ids_to_tokens(tokens.token_ids) == ["b", "c"]
