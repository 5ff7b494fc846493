"""WordNet's database files: a small one written here, and the real one where it is installed."""

from pathlib import Path

import pytest

from saelign.concepts import Wordnet
from saelign.concepts.wordnet import FILES
from saelign.errors import FormatError, MissingFileError, UnknownNameError

NOUNS = {
    # name: (words, kinds, single things, words of the gloss)
    "feeling": (["feeling"], ["emotion"], [], "what is felt"),
    "emotion": (["emotion"], ["joy", "fear"], [], "a strong feeling | with a bar"),
    "joy": (["joy", "joyfulness"], ["high_spirits"], [], "great gladness"),
    "high_spirits": (["high_spirits"], [], [], "lively joy"),
    "fear": (["fear", "Angst"], ["high_spirits"], [], "of danger"),
    "fear_2": (["fear"], [], [], "awe"),
    "country": (["country", "land"], ["kingdom"], ["France", "Peru"], "a state"),
    "kingdom": (["kingdom"], [], ["Nepal"], "under a king"),
    "France": (["France", "French_Republic"], [], [], "in Europe"),
    "Peru": (["Peru"], [], [], "in the Andes"),
    "Nepal": (["Nepal"], [], [], "in Asia"),
}
LICENCE = "  1 This software is provided.  \n  2 WordNet 3.0 Copyright 2006  \n"


def write_wordnet(folder: Path) -> Path:
    """A WordNet of a few synsets, in the files that the real one has."""
    folder.mkdir(exist_ok=True)
    offsets = {name: 1000 + 7 * i for i, name in enumerate(NOUNS)}
    data, senses = LICENCE, dict[str, list[int]]()
    for name, (words, kinds, things, gloss) in NOUNS.items():
        pointers = [("~", offsets[k]) for k in kinds] + [("~i", offsets[t]) for t in things]
        of_word = [w for word in words for w in (word, "1" if name == "fear_2" else "0")]
        told = [f"{symbol} {offset:08d} n 0000" for symbol, offset in pointers]
        told += ["@ 00000001 n 0000", "+ 00000002 v 0101"]
        data += (
            f"{offsets[name]:08d} 12 n {len(words):02x} {' '.join(of_word)} {len(told):03d} "
            f"{' '.join(told)} | {gloss}  \n"
        )
        for word in words:
            senses.setdefault(word.lower(), []).append(offsets[name])
    (folder / "data.noun").write_text(data, encoding="latin-1")
    index = [
        f"{word} n {len(found)} 1 @ {len(found)} 1 {' '.join(f'{o:08d}' for o in found)}  \n"
        for word, found in sorted(senses.items())
    ]
    (folder / "index.noun").write_text(LICENCE + "".join(index), encoding="latin-1")
    (folder / "data.verb").write_text(
        LICENCE + "00000700 37 v 01 fear 0 001 + 00001028 n 0101 01 + 08 00 | be afraid  \n"
    )
    (folder / "index.verb").write_text(LICENCE + "fear v 1 1 + 1 1 00000700  \n")
    (folder / "data.adj").write_text(
        LICENCE
        + "00000100 00 a 01 glad(p) 0 001 & 00000200 a 0000 | pleased  \n"
        + "00000200 00 s 01 merry 0 001 & 00000100 a 0000 | very glad  \n"
    )
    (folder / "index.adj").write_text(
        LICENCE + "glad a 1 1 & 1 1 00000100  \nmerry a 1 1 & 1 1 00000200  \n"
    )
    (folder / "data.adv").write_text(LICENCE + "00000300 02 r 01 gladly 0 000 | with joy  \n")
    (folder / "index.adv").write_text(LICENCE + "gladly r 1 0 1 1 00000300  \n")
    (folder / "cntlist.rev").write_text(
        "fear%1:12:00:: 1 73\nfear%1:12:01:: 2 7\nfear%2:37:00:: 1 23\n"
        "glad%3:00:00:: 1 5\nmerry%5:00:00:glad:00 1 3\n"
    )
    (folder / "noun.exc").write_text("feet foot\n")
    return folder


@pytest.fixture
def wordnet(tmp_path: Path) -> Wordnet:
    return Wordnet.find(write_wordnet(tmp_path / "dict"))


def words_below(wordnet: Wordnet, name: str, **options) -> list[str]:
    found = wordnet.below(wordnet.synset(name), **options)
    return [lemma for synset, _ in found for lemma in synset.lemmas]


def test_a_synset_is_found_by_word_part_of_speech_and_number(wordnet):
    emotion = wordnet.synset("emotion.n.01")
    assert (emotion.lemmas, emotion.gloss) == (("emotion",), "a strong feeling | with a bar")
    assert wordnet.synset("Fear.n.2").gloss == "awe"
    assert wordnet.synset("merry.s.01") == wordnet.synset("merry.a.01")
    assert wordnet.version == "3.0"


def test_what_lies_below_comes_once_level_by_level(wordnet):
    assert words_below(wordnet, "feeling.n.01") == [
        "feeling", "emotion", "joy", "joyfulness", "fear", "Angst", "high_spirits",
    ]  # fmt: skip
    assert words_below(wordnet, "feeling.n.01", depth=1) == ["feeling", "emotion"]
    assert words_below(wordnet, "feeling.n.01", depth=0) == ["feeling"]
    steps = [step for _, step in wordnet.below(wordnet.synset("feeling.n.01"))]
    assert steps == [0, 1, 2, 2, 3]


def test_single_things_are_taken_or_left_out(wordnet):
    everything = words_below(wordnet, "country.n.01")
    assert everything == [
        "country", "land", "kingdom", "France", "French_Republic", "Peru", "Nepal",
    ]  # fmt: skip
    assert words_below(wordnet, "country.n.01", instances=False) == ["country", "land", "kingdom"]


def test_uses_are_counted_by_sense_in_all_parts_of_speech(wordnet):
    uses = wordnet.tagged_uses("Fear")
    assert sorted(uses.values()) == [7, 23, 73]
    assert uses["v", 700] == 23
    assert list(wordnet.tagged_uses("merry").values()) == [3]  # its key names what it is similar to
    assert list(wordnet.tagged_uses("glad").values()) == [5]  # written with a marker of its place
    assert list(wordnet.tagged_uses("joy").values()) == [0]
    assert wordnet.tagged_uses("no such word") == {}


def test_without_a_list_of_uses_all_are_0(tmp_path):
    folder = write_wordnet(tmp_path / "dict")
    (folder / "cntlist.rev").unlink()
    assert set(Wordnet.find(folder).tagged_uses("fear").values()) == {0}


def test_irregular_forms_are_known(wordnet):
    assert wordnet.base_forms("feet") == ["foot"]
    assert wordnet.base_forms("joy") == []


def test_the_folder_above_will_do(tmp_path):
    write_wordnet(tmp_path / "dict")
    assert Wordnet.find(tmp_path).folder == tmp_path / "dict"


def test_the_users_own_place_comes_first(tmp_path, monkeypatch):
    write_wordnet(tmp_path / "dict")
    monkeypatch.setenv("WNHOME", str(tmp_path))
    assert Wordnet.find().folder == tmp_path / "dict"


def test_a_missing_wordnet_is_told_with_ways_to_get_it(tmp_path, monkeypatch):
    with pytest.raises(MissingFileError, match=r"must hold data.noun .* apt install wordnet-base"):
        Wordnet.find(tmp_path)
    monkeypatch.setattr("saelign.concepts.wordnet.usual_places", lambda: [tmp_path])
    with pytest.raises(MissingFileError, match=r"there must be a WordNet .* --wordnet FOLDER"):
        Wordnet.find()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("emotion", "a synset must be named like emotion.n.01, got 'emotion'"),
        ("emotion.x.01", "a synset must be named like emotion.n.01"),
        ("emotion.n.02", r"unknown synset 'emotion.n.02' \(did you mean 'emotion.n.01'"),
        ("fear.n.00", r"expected one of: fear.n.01, fear.n.02, fear.v.01"),
        ("emotoin.n.01", r"unknown word of WordNet 'emotoin' \(did you mean 'emotion'"),
    ],
)
def test_an_unknown_synset_is_told_with_the_nearest(wordnet, name, told):
    with pytest.raises(UnknownNameError, match=told):
        wordnet.synset(name)


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("data.noun", "not a synset at all\n", "must be a data file of WordNet, line 1 is not"),
        ("data.noun", "00001000 12 n 02 joy 0 000 | lacks a word\n", "line 1 is not"),
        ("data.noun", LICENCE, "must hold synsets, it holds none"),
        ("index.noun", "emotion n many\n", "must be an index of WordNet, line 1 is not"),
        ("cntlist.rev", "emotion 1 2 3\n", "must count senses of WordNet, line 1 does not"),
    ],
)
def test_damaged_files_are_told_by_their_line(tmp_path, file, content, told):
    folder = write_wordnet(tmp_path / "dict")
    (folder / file).write_text(content)
    with pytest.raises(FormatError, match=told):
        Wordnet.find(folder).tagged_uses("emotion") or Wordnet.find(folder).synset("joy.n.01")


def test_a_missing_file_is_told(tmp_path):
    folder = write_wordnet(tmp_path / "dict")
    (folder / "data.verb").unlink()
    with pytest.raises(MissingFileError, match=r"must hold data\.verb"):
        Wordnet.find(folder).senses("fear")


def test_what_cannot_be_read_is_told(tmp_path, monkeypatch):
    folder = write_wordnet(tmp_path / "dict")
    found = Wordnet.find(folder)
    (folder / "index.noun").unlink()
    (folder / "index.noun").mkdir()
    with pytest.raises(FormatError, match=r"cannot read .*index\.noun: Is a directory"):
        found.synset("joy.n.01")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    write_wordnet(tmp_path / "other")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(FormatError, match=r"cannot read .*data\.noun: Permission denied"):
        Wordnet.find(tmp_path / "other")


# The real one.


@pytest.fixture(scope="module")
def real() -> Wordnet:
    try:
        found = Wordnet.find()
    except MissingFileError:
        pytest.skip("no WordNet on this machine")
    if found.version != "3.0":
        pytest.skip(f"numbers are those of WordNet 3.0, here is {found.version}")
    return found


def test_countries_are_mostly_single_things(real):
    country = real.synset("country.n.02")
    assert len(list(real.below(country))) - 1 == 227
    assert len(list(real.below(country, instances=False))) - 1 == 16


def test_all_that_is_pointed_to_is_there(real):
    for pos in FILES:
        synsets = real.synsets(pos)
        for synset in synsets.values():
            assert all(child in synsets for child in (*synset.hyponyms, *synset.instances))
        assert all(o in synsets for offsets in real.index(pos).values() for o in offsets)
    assert sum(len(real.synsets(pos)) for pos in FILES) == 117_659  # as its statistics say
