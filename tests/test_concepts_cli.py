"""`saelign concepts` as a user meets it."""

import json
import re
from pathlib import Path

import pytest

from saelign.cli import main
from saelign.concepts import load_concept, shipped_concepts
from saelign.concepts.concept import read_as_written
from saelign.demo import FOLDER
from test_cli import PROGRESS, call
from test_concepts import feelings, write_feelings
from test_proposing import ONE, THREE, TWO, Server, server

__all__ = ["feelings", "server"]  # fixtures

COMMANDS = ("list", "show", "build", "propose", "check")


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    return write_feelings(tmp_path / "dict")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["concepts", command, "--help"])
    assert stopped.value.code == 0
    told = capsys.readouterr().out
    assert re.search(rf"^examples?:\n  saelign concepts {command}", told, flags=re.MULTILINE)
    assert "--json" in told


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, names in (["concepts"], COMMANDS), ([], ["concepts"]):
        with pytest.raises(SystemExit):
            main([*arguments, "--help"])
        told = capsys.readouterr().out
        assert all(re.search(rf"^    {name} ", told, flags=re.MULTILINE) for name in names)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["build"], "the following arguments are required: NAME"),
        (["build", "F", "--depth", "-1"], "argument --depth: invalid count value: '-1'"),
        (["build", "F", "--unambiguous", "--all-senses"], "not allowed with argument"),
        (["build", "F", "--wordnet", "x", "--lexicon", "y"], "not allowed with argument"),
        (["propose", "F"], "the following arguments are required: --model"),
    ],
)
def test_wrong_usage_exits_with_2(arguments, words, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["concepts", *arguments])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_list_tells_each_shipped_concept_with_its_size_and_sources() -> None:
    told = call("concepts", "list")
    assert (told.code, told.err) == (0, "")
    lines = told.out.splitlines()
    assert lines[0].split() == ["name", "version", "words", "sources"]
    assert [line.split()[0] for line in lines[1:]] == list(shipped_concepts())
    emotions = load_concept("Emotions")
    line = next(line for line in lines if line.startswith("Emotions"))
    assert line.split()[1:3] == ["1", str(len(emotions.keywords))]
    assert "Lan et al. (2024) 49, saelign " in line
    rows = json.loads(call("concepts", "list", "--json").out)
    row = next(row for row in rows if row["name"] == "Emotions")
    assert row["words"] == len(emotions.keywords) == sum(row["sources"].values())


def test_show_prints_keywords_by_source() -> None:
    told = call("concepts", "show", "month names")
    assert told.code == 0
    head, papers, wordnet = told.out.split("\n\n")
    assert head.startswith("MonthNames, version 1, 19 keywords\nthe twelve months")
    assert "WordNet 3.0: gregorian_calendar_month.n.01; depth any; instances yes" in head
    assert papers.startswith("Lan et al. (2024) (12)\n  January, February, March, April, May,")
    assert wordnet.startswith("WordNet 3.0, gregorian_calendar_month.n.01 (7)\n  Jan, ")
    content = json.loads(call("concepts", "show", "MonthNames", "--json").out)
    assert content["keywords"][4] == {"text": "May", "source": "Lan et al. (2024)"}
    assert content["recipe"]["synsets"] == ["gregorian_calendar_month.n.01"]


def test_show_of_what_does_not_ship_names_the_nearest() -> None:
    told = call("concepts", "show", "emotoins")
    assert (told.code, told.out) == (1, "")
    assert told.err.startswith(
        "saelign: unknown concept 'emotoins' (did you mean 'Emotions'?), expected one of: Animals,"
    )


def test_build_writes_a_file_and_says_what_was_left_out(wordnet: Path, tmp_path: Path) -> None:
    arguments = ["build", "Feelings", "--synset", "feeling.n.01", "--wordnet", wordnet]
    told = call("concepts", *arguments, "--out", tmp_path / "f.yaml")
    assert (told.code, told.err) == (0, "")
    assert told.out == (
        "Feelings: 6 keywords; left out 12 words: 4 of another dominant sense, 2 of several words, "
        "2 abbreviations never seen, 2 not of letters alone, 1 that insult, 1 that serve grammar\n"
        f"concept: {tmp_path / 'f.yaml'}\n"
    )
    concept = load_concept(tmp_path / "f.yaml")
    assert concept.words == ["feeling", "joy", "Turkey", "Saturday", "US", "glee"]
    printed = call("concepts", *arguments)
    assert printed.out == (tmp_path / "f.yaml").read_text()
    assert printed.err.startswith("Feelings: 6 keywords; left out 12 words: ")
    content = json.loads(call("concepts", *arguments, "--json").out)
    assert content["left_out"]["that insult"] == ["dupe"]
    assert content["file"] is None
    assert call("concepts", "show", tmp_path / "f.yaml").out.startswith("Feelings, version 1, 6 ")


def test_every_option_of_build_does_what_it_says(wordnet: Path) -> None:
    def words(*options: str) -> list[str]:
        told = call("concepts", "build", "F", "--wordnet", wordnet, "--json", *options)
        assert told.code == 0, told.err
        return [keyword["text"] for keyword in json.loads(told.out)["keywords"]]

    feeling = ("--synset", "feeling.n.01")
    assert words("--seed-words", "happy, high  spirits,") == ["happy", "high spirits"]
    assert words(*feeling, "--depth", "0") == ["feeling"]
    assert "calm" in words(*feeling, "--synset", "calm.v.01")
    assert "Peru" in words("--synset", "land.n.01")
    assert "Peru" not in words("--synset", "land.n.01", "--no-instances")
    assert "high spirits" in words(*feeling, "--all-senses", "--multiword")
    assert "joy" not in words(*feeling, "--unambiguous")
    assert "joy" not in words(*feeling, "--share", "0.8")
    assert words(*feeling, "--min-uses", "5") == ["feeling", "joy"]
    assert "Turkey" not in words(*feeling, "--without", "turkey,joy.n.01")
    told = call("concepts", "build", "F", "--wordnet", wordnet, *feeling, "--about", "moods")
    assert "about: moods\n" in told.out


def test_build_tells_what_it_cannot_use(tmp_path: Path, wordnet: Path, monkeypatch) -> None:
    told = call("concepts", "build", "F", "--synset", "joy.n.01", "--wordnet", tmp_path)
    assert told.code == 0  # the folder above dict will do
    (wordnet / "data.noun").write_text("no synset\n")
    told = call("concepts", "build", "F", "--synset", "joy.n.01", "--wordnet", wordnet)
    assert told.code == 1
    assert "must be a data file of WordNet, line 1 is not" in told.err
    (wordnet / "index.noun").unlink()
    told = call("concepts", "build", "F", "--synset", "joy.n.01", "--wordnet", wordnet)
    assert "a WordNet folder must hold data.noun and index.noun" in told.err
    monkeypatch.setenv("WN_DATA_DIR", str(tmp_path / "none"))
    told = call("concepts", "build", "F", "--synset", "joy.n.01", "--lexicon", "no-such:1")
    assert told.code == 1
    assert "python -m wn download no-such:1" in told.err


def test_propose_writes_the_concept_with_its_lists(server: Server, tmp_path: Path) -> None:
    server.answers = [ONE, TWO, THREE]
    out = tmp_path / "ships.yaml"
    arguments = ["propose", "Ships", "--model", "m", "--endpoint", server.address, "--out", out]
    told = call("concepts", *arguments)
    assert told.code == 0, told.err
    assert told.out == (
        f"Ships: 3 keywords; in common of lists of 5, 5, 5 words\nconcept: {out.resolve()}\n"
    )
    assert all(PROGRESS.fullmatch(line) for line in told.err.splitlines())
    assert [len(one.words) for one in load_concept(out).lists] == [5, 5, 5]
    assert [path.name for path in tmp_path.iterdir()] == ["ships.yaml"]
    shown = call("concepts", "show", out).out
    assert "\nproposed by m (3)\n  ship, sail, May\n" in shown
    assert "\nlist 1 of m, 20" in shown


def test_propose_goes_on_where_it_failed(server: Server, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("saelign.concepts.proposing.time.sleep", lambda _: None)
    server.answers = [ONE, TWO, *[(500, {}, b"")] * 3]
    arguments = ["propose", "People/Ships", "--model", "m", "--endpoint", server.address]
    told = call("concepts", *arguments)
    assert (told.code, told.out) == (1, "")
    assert "lists that arrived before are kept (2)" in told.err
    (partial,) = tmp_path.iterdir()
    assert partial.name == "People_Ships.yaml.partial"
    assert len(read_as_written(partial).lists) == 2
    server.answers = [THREE]
    told = call("concepts", *arguments, "--json")
    assert told.code == 0, told.err
    content = json.loads(told.out)
    assert [keyword["text"] for keyword in content["keywords"]] == ["ship", "sail", "May"]
    assert content["file"] == str(tmp_path / "People_Ships.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["People_Ships.yaml"]


def test_check_tells_repeats_words_of_other_concepts_and_words_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("joy\nJoy\nqwertyuiop\nzyx\n")
    (tmp_path / "other.txt").write_text("zyx\n")
    told = call(
        "concepts", "check", tmp_path / "mine.txt", tmp_path / "other.txt",
        "--study", FOLDER / "study.yaml",
    )  # fmt: skip
    assert told.code == 0, told.err
    mine, other = told.out.split("\n\n")
    assert mine.startswith("mine: 4 keywords\nmore than once (1):\n  joy\n")
    assert "in other too (1):\n  zyx\n" in mine
    assert "in Emotions too (2):\n  joy, Joy\n" in mine
    assert "no single token of the study's tokenizer (" in mine
    assert "qwertyuiop, zyx" in mine
    assert other.startswith("other: 1 keywords\nmore than once: none\nin mine too (1):\n  zyx\n")
    content = json.loads(call("concepts", "check", tmp_path / "mine.txt", "--json").out)
    assert content == [
        {
            "concept": "mine",
            "words": 4,
            "repeated": ["joy"],
            "shared": {"joy": ["Emotions"], "Joy": ["Emotions"]},
            "in_pieces": None,
        }
    ]
    told = call("concepts", "check", tmp_path / "mine.txt").out
    assert told.endswith("give --study to learn which words its tokenizer cuts\n")


def test_check_of_a_long_finding_is_cut_and_says_so(tmp_path: Path) -> None:
    emotions = load_concept("Emotions").words
    (tmp_path / "mine.txt").write_text("\n".join(emotions))
    told = call("concepts", "check", tmp_path / "mine.txt").out
    assert f"in Emotions too ({len(emotions)}):" in told
    assert f", and {len(emotions) - 40} more\n" in told
    assert told.count("joy,") == 1


def test_an_empty_keyword_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("# nothing yet\n")
    told = call("concepts", "check", tmp_path / "empty.txt")
    assert (told.code, told.out) == (1, "")
    assert "a concept must have keywords" in told.err
