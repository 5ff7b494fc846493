"""Concepts: their files, those that ship, and how they are built from WordNet."""

import contextlib
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import saelign.concepts
from saelign.concepts import (
    Concept,
    Keyword,
    ProposedList,
    Recipe,
    WnLibrary,
    Wordnet,
    build,
    build_concept,
    check_concept,
    find_wordnet,
    load_concept,
    save_concept,
    shipped_concepts,
    union,
)
from saelign.concepts.building import FUNCTION_WORDS, OFFENSIVE
from saelign.concepts.concept import SHIPPED, read_as_written
from saelign.errors import (
    DegenerateError,
    FormatError,
    MissingFileError,
    StorageError,
    UnknownNameError,
)

PAPERS = {
    "Time": 83,
    "Calendar": 35,
    "PeopleRoles": 27,
    "Nature": 46,
    "Emotions": 49,
    "MonthNames": 12,
    "Countries": 19,
    "Biology": 29,
}
LAN = "Lan et al. (2024)"


def a_concept(**changes: Any) -> Concept:
    keywords = (Keyword(text="joy", source="seed"), Keyword(text="high spirits", source="WordNet"))
    given = {"name": "Glad", "version": "1", "about": "gladness", "keywords": keywords}
    return Concept(**{**given, **changes})


# Files -------------------------------------------------------------------------------------------


def test_a_concept_is_read_as_it_was_saved(tmp_path):
    concept = a_concept(
        recipe=Recipe(source="WordNet 3.0", synsets=("joy.n.01",), without=("glee",), depth=2),
        lists=(
            ProposedList(
                model="m", endpoint="http://x/v1", created="2024-01-01", words=("joy", "on")
            ),
        ),
    )
    path = save_concept(concept, tmp_path / "new" / "glad.yaml")
    assert load_concept(path) == concept
    assert [p.name for p in path.parent.iterdir()] == ["glad.yaml"]


def test_words_that_yaml_takes_for_values_stay_words(tmp_path):
    words = ["no", "on", "yes", "null", "true", "1", "May", "NaN", "1e3", "~", "off"]
    concept = a_concept(keywords=tuple(Keyword(text=word, source="seed") for word in words))
    assert load_concept(save_concept(concept, tmp_path / "odd.yaml")).words == words


def test_a_file_that_cannot_be_written_is_told_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"glad\.yaml must be writable, it is not: "):
        save_concept(a_concept(), tmp_path / "file" / "glad.yaml")
    (tmp_path / "glad.yaml").mkdir()
    with pytest.raises(StorageError, match=r"glad\.yaml must be .*choose another folder"):
        save_concept(a_concept(), tmp_path / "glad.yaml")
    assert {p.name for p in tmp_path.iterdir()} == {"file", "glad.yaml"}


def test_a_text_file_is_a_concept_of_its_lines(tmp_path):
    (tmp_path / "mine.txt").write_text("\ufeffjoy # the best\n\n  high   spirits\njoy\n")
    concept = load_concept("mine.txt", folder=tmp_path)
    assert (concept.name, concept.words) == ("mine", ["joy", "high spirits"])
    assert concept.keywords[1].words == ("high", "spirits")
    assert {keyword.source for keyword in concept.keywords} == {"mine.txt"}


@pytest.mark.parametrize("name", ["PeopleRoles", "people/roles", "People Roles", "people_roles"])
def test_a_shipped_concept_is_found_however_its_name_is_written(name):
    assert load_concept(name).name == "PeopleRoles"


def test_an_unknown_concept_is_told_with_the_nearest(tmp_path):
    with pytest.raises(UnknownNameError, match=r"'Emotoins' \(did you mean 'Emotions'\?\)"):
        load_concept("Emotoins")
    for missing in ("none.yaml", "folder/none", "none.txt"):
        with pytest.raises(MissingFileError, match=r"must be shipped or a file, .* is neither"):
            load_concept(missing, folder=tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("a.txt", "# nothing\n\n", r"must have keywords, .*a\.txt holds none: add a word a line"),
        ("a.yaml", "saelign_concept: 1\n", r"must have keywords, .*a\.yaml holds none"),
        ("a.yaml", "- joy\n", "has no key saelign_concept"),
        ("a.yaml", "", "has no key saelign_concept"),
        ("a.yaml", "a: [\n", r"must be a YAML file: line 2"),
        ("a.yaml", "saelign_concept: 2\n", "reads concepts of format 1, .* has 2: upgrade"),
        ("a.yaml", "saelign_concept: 1\nkeyword: {}\n", "it has the key 'keyword'"),
        ("a.yaml", "saelign_concept: 1\nkeywords: [joy]\n", "keywords are not lists by source"),
        ("a.yaml", "saelign_concept: 1\nkeywords: {me: joy}\n", "keywords are not lists by source"),
        ("a.yaml", "saelign_concept: 1\nkeywords: {me: [1]}\n", "keyword 1 is no text: put it in"),
        ("a.yaml", "saelign_concept: 1\nkeywords: {me: [' ']}\n", "keyword ' ' is no text"),
        ("a.yaml", "saelign_concept: 1\nlists: 3\n", "its lists are not a list"),
        ("a.yaml", "saelign_concept: 1\nlists: [{model: m}]\n", "entry of its lists has no words"),
        ("a.yaml", "saelign_concept: 1\nrecipe: joy.n.01\n", "recipe must name source and synsets"),
        (
            "a.yaml",
            "saelign_concept: 1\nrecipe: {source: W, synsets: [], depht: 1}\n",
            "may name ambiguity, depth, instances",
        ),
        (
            "a.yaml",
            "saelign_concept: 1\nrecipe: {source: W, synsets: joy.n.01}\n",
            "must name synsets and words in lists",
        ),
    ],
)
def test_what_is_no_concept_is_told(tmp_path, file, content, told):
    (tmp_path / file).write_text(content)
    with pytest.raises(FormatError, match=told):
        load_concept(tmp_path / file)


def test_what_is_no_text_is_told(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00joy")
    with pytest.raises(FormatError, match=r"must be a UTF-8 text file, .*a\.txt is not"):
        load_concept(tmp_path / "a.txt")


def test_a_union_holds_each_keyword_once_with_its_first_source():
    other = a_concept(
        name="Calm",
        version="2",
        keywords=(Keyword(text="joy", source="x"), Keyword(text="peace", source="x")),
    )
    both = union([a_concept(), other])
    assert (both.name, both.version) == ("Glad + Calm", "1 + 2")
    assert both.by_source == {"seed": ["joy"], "WordNet": ["high spirits"], "x": ["peace"]}
    assert union([a_concept(), other], name="Good").name == "Good"


# Those that ship ---------------------------------------------------------------------------------


def test_the_papers_eight_ship_with_exactly_their_words():
    for name, n_words in PAPERS.items():
        assert len(load_concept(name).by_source[LAN]) == n_words
    assert load_concept("Emotions").by_source[LAN][:5] == ["joy", "glee", "pride", "grief", "fear"]
    assert load_concept("MonthNames").by_source[LAN][2:5] == ["March", "April", "May"]
    assert load_concept("Biology").by_source[LAN][1:3] == ["DNA", "RNA"]


def test_at_least_twelve_more_ship():
    asked = "Animals Food Body Family Numbers Colours Weather Places Money War Religion Speech"
    assert set(asked.split()) <= set(shipped_concepts())
    assert len(set(shipped_concepts()) - set(PAPERS)) >= 12


@pytest.mark.parametrize("name", sorted(shipped_concepts()))
def test_a_shipped_concept_is_of_words_each_once_from_told_sources(name):
    concept = read_as_written(shipped_concepts()[name])
    lower = [word.lower() for word in concept.words]
    assert len(set(lower)) == len(lower)
    assert 19 <= len(lower) <= 600
    assert concept.about
    assert concept.recipe is not None
    sources = {source for source in concept.by_source if source not in (LAN, "saelign")}
    assert sources <= {f"WordNet 3.0, {synset}" for synset in concept.recipe.synsets}
    assert sources
    assert LAN in concept.by_source or len(concept.by_source["saelign"]) >= 30


def test_the_pages_table_of_shipped_concepts_is_right():
    page = (Path(__file__).parents[1] / "docs" / "concepts.md").read_text(encoding="utf-8")
    for name in shipped_concepts():
        concept = load_concept(name)
        counts = [len(concept.keywords)]
        counts += [len(concept.by_source.get(source, ())) for source in (LAN, "saelign")]
        counts.append(counts[0] - sum(counts[1:]))
        cells = " | ".join(str(n) if n else "" for n in counts)
        assert f"| {name} | {cells} |\n" in page


def test_wordnets_licence_comes_with_its_words():
    licence = (SHIPPED / "LICENSE.wordnet").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in licence
    assert "Title to copyright in this software, database" in licence


def test_reading_wordnet_imports_no_other_package():
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "from saelign.concepts.wordnet import Wordnet\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    told = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert told == "['saelign']\n"


def test_every_public_name_is_there_and_no_other():
    for name in saelign.concepts.__all__:
        assert getattr(saelign.concepts, name).__doc__, name
    assert dir(saelign.concepts) == sorted(saelign.concepts.__all__)
    with pytest.raises(AttributeError, match=r"'saelign\.concepts' has no attribute 'biuld'"):
        saelign.concepts.biuld  # noqa: B018


# WordNet by hand ---------------------------------------------------------------------------------

SYNSETS = {
    # name: (words, kinds, single things, gloss); each word's uses stand in USES
    "state.n": (["state"], ["feeling.n", "land.n"], [], "how things are"),
    "feeling.n": (["feeling"], ["joy.n", "calm.n", "saw.n", "us.n", "dupe.n"], [], "what is felt"),
    "joy.n": (["joy", "high_spirits"], ["glee.n"], [], "gladness"),
    "glee.n": (["glee", "may", "lol"], [], [], "great gladness; abbreviation of laughing"),
    "calm.n": (["calm", "Turkey", "bank"], [], [], "peace of mind"),
    "saw.n": (["saw", "felt", "Sat", "Saturday", "x", "a1"], [], [], "feelings named after forms"),
    "us.n": (["US", "United_States"], [], [], "a proud feeling"),
    "dupe.n": (["dupe"], [], [], "(ethnic slur) an offensive word for a fool"),
    "land.n": (["land", "turkey", "bank"], [], ["Peru.n"], "not a feeling"),
    "Peru.n": (["Peru"], [], [], "in the Andes"),
}
VERBS = {"see.v": ["see"], "feel.v": ["feel"], "calm.v": ["calm"], "joy.v": ["joy"]}
USES = {
    ("joy", "n"): 30,
    ("joy", "v"): 10,
    ("calm", "n"): 2,
    ("calm", "v"): 1,
    ("see", "v"): 50,
    ("saw", "n"): 10,
    ("glee", "n"): 1,
    ("feeling", "n"): 9,
}


def write_feelings(folder: Path) -> Path:
    folder.mkdir()
    offsets = {name: 1000 + 10 * i for i, name in enumerate([*SYNSETS, *VERBS])}
    index: dict[str, dict[str, list[int]]] = {"n": {}, "v": {}}
    data, counts = {"n": "", "v": ""}, []
    every = [(name, *told) for name, told in SYNSETS.items()]
    every += [(name, words, [], [], "to do") for name, words in VERBS.items()]
    for name, words, kinds, things, gloss in every:
        pos = name[-1]
        down = [("~", offsets[k]) for k in kinds] + [("~i", offsets[t]) for t in things]
        data[pos] += (
            f"{offsets[name]:08d} 12 {pos} {len(words):02x} {' '.join(f'{w} 0' for w in words)} "
            f"{len(down):03d} {' '.join(f'{s} {o:08d} {pos} 0000' for s, o in down)} | {gloss}  \n"
        )
        for word in words:
            index[pos].setdefault(word.lower(), []).append(offsets[name])
            number = "1" if pos == "n" else "2"
            if (word, pos) in USES:
                counts.append(f"{word.lower()}%{number}:12:00:: 1 {USES[word, pos]}\n")
    for pos, file in (("n", "noun"), ("v", "verb")):
        (folder / f"data.{file}").write_text(data[pos])
        lines = [
            f"{word} {pos} {len(found)} 0 {len(found)} 0 {' '.join(f'{o:08d}' for o in found)}\n"
            for word, found in sorted(index[pos].items())
        ]
        (folder / f"index.{file}").write_text("".join(lines))
    for file in ("adj", "adv"):
        (folder / f"data.{file}").write_text("00000001 00 r 01 so 0 000 | thus  \n")
        (folder / f"index.{file}").write_text("so r 1 0 1 0 00000001\n")
    (folder / "cntlist.rev").write_text("".join(counts))
    (folder / "verb.exc").write_text("felt feel\nsaw see\nsat sit\n")
    return folder


@pytest.fixture
def feelings(tmp_path: Path) -> Wordnet:
    return Wordnet.find(write_feelings(tmp_path / "dict"))


def test_a_word_stays_when_three_quarters_of_its_uses_are_in_the_concept(feelings):
    built = build("Feelings", ["feeling.n.01"], source=feelings)
    assert built.concept.words == ["feeling", "joy", "Turkey", "Saturday", "US", "glee"]
    # joy: 30 of 40 uses are the noun's; calm: 2 of 3.
    assert built.left_out["calm"] == "of another dominant sense"
    assert "calm" in build_concept("F", ["feeling.n.01"], source=feelings, share=2 / 3).words
    assert "joy" not in build_concept("F", ["feeling.n.01"], source=feelings, share=0.76).words
    assert built.concept.recipe is not None
    assert built.concept.keywords[0].source == "WordNet, feeling.n.01"
    assert built.concept.about == "words at and below feeling.n.01 in WordNet"


def test_each_word_is_left_out_for_its_own_reason(feelings):
    assert build("Feelings", ["feeling.n.01"], source=feelings).left_out == {
        "high spirits": "of several words",
        "United States": "of several words",
        "calm": "of another dominant sense",
        "bank": "of another dominant sense",  # never tagged: one of two senses
        "saw": "of another dominant sense",  # 10 uses, and 50 of what it is the past of
        "felt": "of another dominant sense",  # never tagged, nor is feel: one of two senses
        "may": "that serve grammar",
        "lol": "abbreviations never seen",  # by its gloss
        "Sat": "abbreviations never seen",  # of Saturday
        "dupe": "that insult",
        "x": "not of letters alone",
        "a1": "not of letters alone",
    }


def test_matching_by_case_keeps_proper_nouns_from_their_homographs(feelings):
    words = build_concept("Lands", ["land.n.01"], source=feelings).words
    assert "Turkey" not in words
    assert "turkey" not in words  # in any case it is the feeling as often
    assert "Peru" in words
    assert "Turkey" in build_concept("Feelings", ["feeling.n.01"], source=feelings).words


def test_strict_keeps_words_of_which_all_senses_are_in_the_concept(feelings):
    built = build("Feelings", ["feeling.n.01"], source=feelings, ambiguity="strict")
    assert set(built.concept.words) == {"feeling", "glee", "Turkey", "US", "Saturday"}
    assert built.left_out["joy"] == "with other senses"


def test_all_keeps_every_word(feelings):
    built = build("Feelings", ["feeling.n.01"], source=feelings, ambiguity="all", multiword=True)
    assert built.left_out == {}
    assert {"may", "saw", "dupe", "x", "high spirits", "United States"} <= set(built.concept.words)


def test_depth_instances_and_words_left_out_are_by_choice(feelings):
    def words(*synsets: str, **options: Any) -> list[str]:
        return build_concept("C", synsets, source=feelings, **options).words

    assert words("feeling.n.01", depth=0) == ["feeling"]
    assert "glee" not in words("feeling.n.01", depth=1)
    # What lies deeper than the depth is still of the concept: it counts for what words mean.
    assert "bank" in words("state.n.01", depth=1)
    # What is left out with its synset is not: half of what bank means is gone with the land.
    assert "bank" in words("state.n.01")
    assert "bank" not in words("state.n.01", without=["land.n.01"])
    assert {"Peru", "glee"} <= set(words("land.n.01", "feeling.n.01"))
    assert "Peru" not in words("land.n.01", instances=False)
    assert "joy" not in words("feeling.n.01", without=["Joy"])
    below = words("feeling.n.01", without=["joy.n.01"])
    assert not {"joy", "glee"} & set(below)
    assert words("feeling.n.01", min_uses=1) == ["feeling", "joy", "glee"]
    # The verb is of the concept when it is asked for, and with it all of the word's uses.
    assert "calm" in words("feeling.n.01", "calm.v.01")


def test_the_users_words_come_first_and_stay_as_they_are(feelings):
    seeds = ["May", Keyword(text="calm", source="me"), "joy"]
    concept = build_concept("F", ["feeling.n.01"], source=feelings, seed_words=seeds)
    assert concept.words[:3] == ["May", "calm", "joy"]
    assert concept.by_source["seed"] == ["May", "joy"]
    assert concept.by_source["me"] == ["calm"]
    assert concept.words.count("joy") == 1
    alone = build_concept("F", [], source=feelings, seed_words=["joy"])
    assert (alone.words, alone.recipe) == (["joy"], None)


def test_what_cannot_be_built_is_told(feelings):
    with pytest.raises(UnknownNameError, match=r"unknown ambiguity 'stric' .*'strict'"):
        build("F", ["feeling.n.01"], source=feelings, ambiguity="stric")
    with pytest.raises(
        DegenerateError, match=r"share must lie above 0 and at most at 1, got 75\.0"
    ):
        build("F", ["feeling.n.01"], source=feelings, share=75.0)
    with pytest.raises(DegenerateError, match=r"'F' must be made of something: give a synset or"):
        build("F", [], source=feelings)
    with pytest.raises(DegenerateError, match=r"'F' must have keywords, all 3 words below land.n"):
        build("F", ["land.n.01"], source=feelings, depth=0, min_uses=1)


# The real WordNet --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Wordnet:
    try:
        found = Wordnet.find()
    except MissingFileError:
        pytest.skip("no WordNet on this machine")
    if found.version != "3.0":
        pytest.skip(f"lists are those of WordNet 3.0, here is {found.version}")
    return found


@pytest.mark.parametrize("name", sorted(shipped_concepts()))
def test_a_shipped_concept_is_built_again_from_its_recipe(real, name):
    shipped = load_concept(name)
    assert shipped.recipe is not None
    seeds = [k for k in shipped.keywords if not k.source.startswith("WordNet")]
    recipe = {key: getattr(shipped.recipe, key) for key in shipped.recipe.__slots__}
    assert recipe.pop("source") == real.title
    synsets = recipe.pop("synsets")
    again = build_concept(
        name, synsets, source=real, seed_words=seeds, about=shipped.about, **recipe
    )
    assert again == shipped


def test_words_of_one_sense_are_hardly_any(real):
    def emotions(**options: Any) -> list[str]:
        return build_concept("E", ["emotion.n.01"], source=real, **options).words

    assert len(emotions()) == 100
    assert {"joy", "anger", "jealousy", "terror"} <= set(emotions())
    assert len(emotions(min_uses=1)) == 38
    assert len(emotions(ambiguity="strict", min_uses=1)) == 13
    assert not {"joy", "anger", "fear"} & set(emotions(ambiguity="strict"))


def test_homographs_are_kept_out(real):
    months = build("M", ["gregorian_calendar_month.n.01"], source=real)
    assert {"May", "March", "August"} <= set(months.concept.words)
    assert months.left_out["Mar"] == "abbreviations never seen"
    days = build("D", ["day_of_the_week.n.01"], source=real)
    assert "Saturday" in days.concept.words
    assert days.left_out["Sat"] == days.left_out["Sun"] == "abbreviations never seen"
    assert build("T", ["hand_tool.n.01"], source=real).left_out["saw"] == (
        "of another dominant sense"
    )
    speakers = build("R", ["congressman.n.01"], source=real)
    assert speakers.left_out["rep"] == "abbreviations never seen"
    countries = build_concept("C", ["country.n.02"], source=real).words
    assert {"Turkey", "China", "US", "USA", "UK"} & set(countries) >= {"Turkey", "China", "US"}
    assert "may" in FUNCTION_WORDS


def test_offensive_words_are_known_by_their_glosses(real):
    def insult(name: str) -> bool:
        return OFFENSIVE.search(real.synset(name).gloss) is not None

    for name in ("dago.n.01", "street_arab.n.01", "piss-up.n.01", "oriental.n.01"):
        assert insult(name), name
    for name in ("quarterback.n.01", "vulgarian.n.01", "detractor.n.01", "halitosis.n.01"):
        assert not insult(name), name
    italians = build("I", ["italian.n.01"], source=real)
    assert italians.left_out["dago"] == "that insult"
    assert "Etruscan" in italians.concept.words


# The wn library ----------------------------------------------------------------------------------

NAMES = """
emotion.n.01 country.n.02 dog.n.01 tree.n.01 color.n.01 month.n.02 body_part.n.01 war.n.01
religion.n.01 currency.n.01 relative.n.01 weather.n.01 fruit.n.01 room.n.01 vehicle.n.01
crime.n.01 bird.n.01 china.n.02 speech_act.n.01 furniture.n.01
"""
TWENTY = NAMES.split()


def as_lmf(source: Wordnet, names: list[str], path: Path) -> None:
    """Write the nouns at and below some synsets, and all that share a word with them, as WN-LMF."""
    kept = {s.offset: s for n in names for s, _ in source.below(source.synset(n))}
    for synset in list(kept.values()):
        for lemma in synset.lemmas:
            kept |= {s.offset: s for s in source.senses(lemma) if s.pos == "n"}
    entries: dict[str, list[tuple[int, int]]] = {}
    for offset in kept:
        for lemma in kept[offset].lemmas:
            entries.setdefault(lemma, [])
    for lemma, senses in entries.items():
        uses = source.tagged_uses(lemma)
        senses += [
            (s.offset, uses[s.id])
            for s in source.senses(lemma)
            if s.pos == "n" and lemma in s.lemmas and s.offset in kept
        ]
    forms: dict[str, list[str]] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in (source.folder / "noun.exc").read_text().splitlines():
            for base in line.split()[1:]:
                forms.setdefault(base, []).append(line.split()[0])
    numbers = {lemma: number for number, lemma in enumerate(entries)}
    out = io.StringIO()
    out.write(
        '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE LexicalResource SYSTEM '
        '"http://globalwordnet.github.io/schemas/WN-LMF-1.1.dtd">\n'
        '<LexicalResource xmlns:dc="http://purl.org/dc/elements/1.1/">\n'
        '<Lexicon id="test-en" label="Test" language="en" email="a@b.c" license="x" version="1">\n'
    )
    for lemma, senses in entries.items():
        number = numbers[lemma]
        written = escaped(lemma.replace("_", " "))
        out.write(f'<LexicalEntry id="test-en-{number}-n">')
        out.write(f'<Lemma writtenForm="{written}" partOfSpeech="n"/>')
        out.writelines(
            f'<Form writtenForm="{escaped(form.replace("_", " "))}"/>'
            for form in forms.get(lemma, ())
        )
        for offset, uses in senses:
            out.write(f'<Sense id="test-en-{number}-{offset}" synset="test-en-{offset}-n">')
            out.write(f"<Count>{uses}</Count></Sense>" if uses else "</Sense>")
        out.write("</LexicalEntry>\n")
    for offset, synset in kept.items():
        members = " ".join(f"test-en-{numbers[lemma]}-{offset}" for lemma in synset.lemmas)
        out.write(f'<Synset id="test-en-{offset}-n" ili="" partOfSpeech="n" members="{members}">')
        out.write(f"<Definition>{escaped(synset.gloss)}</Definition>")
        down = {"hyponym": synset.hyponyms, "instance_hyponym": synset.instances}
        for relation, below in down.items():
            out.writelines(
                f'<SynsetRelation relType="{relation}" target="test-en-{child}-n"/>'
                for child in below
                if child in kept
            )
        out.write("</Synset>\n")
    out.write("</Lexicon>\n</LexicalResource>\n")
    path.write_text(out.getvalue(), encoding="utf-8")


def escaped(text: str) -> str:
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(sign, entity)
    return text


@contextlib.contextmanager
def lexicons_in(folder: Path) -> Iterator[Any]:
    """The wn library with its data in a folder."""
    wn = pytest.importorskip("wn")
    before = wn.config.data_directory if wn.config.database_path.is_file() else None
    wn.config.data_directory = folder
    try:
        yield wn
    finally:
        wn.config._data_directory = before or folder
        wn.config._dbpath = wn.config._data_directory / "wn.db"


@pytest.fixture
def library(tmp_path: Path, feelings: Wordnet) -> Iterator[WnLibrary]:
    as_lmf(feelings, ["state.n.01"], tmp_path / "test.xml")
    with lexicons_in(tmp_path / "wn_data") as wn:
        (tmp_path / "wn_data").mkdir()
        wn.add(tmp_path / "test.xml", progress_handler=None)
        yield WnLibrary.find("test-en")


def compared(source: Wordnet, library: WnLibrary, name: str, **options: Any) -> None:
    """Both sources give the same words on the same level below a synset."""
    a, b = (
        [(set(synset.lemmas), step) for synset, step in one.below(one.synset(name), **options)]
        for one in (source, library)
    )
    assert a == b


def test_a_lexicon_gives_what_wordnets_own_files_give(feelings, library):
    for name in ("state.n.01", "feeling.n.01", "land.n.01", "bank.n.02", "US.n.01"):
        compared(feelings, library, name)
        compared(feelings, library, name, depth=1)
        compared(feelings, library, name, instances=False)
    assert library.title == "test-en:1"
    assert library.tagged_uses("Joy") == {library.synset("joy.n.01").id: 30}
    assert len(library.senses("TURKEY")) == 2
    assert library.base_forms("felt") == []  # only forms that the lexicon tells are known
    built = build_concept("F", ["feeling.n.01"], source=library)
    # Its verbs are not in the lexicon, so nothing is held against calm, saw and felt.
    ours = build_concept("F", ["feeling.n.01"], source=feelings)
    assert set(built.words) - set(ours.words) == {"calm", "saw", "felt"}
    assert built.keywords[0].source == "test-en:1, feeling.n.01"


def test_irregular_forms_of_a_lexicon_are_known(tmp_path):
    folder = write_feelings(tmp_path / "dict")
    (folder / "noun.exc").write_text("joyes joy\n")
    as_lmf(Wordnet.find(folder), ["feeling.n.01"], tmp_path / "test.xml")
    with lexicons_in(tmp_path / "wn_data") as wn:
        (tmp_path / "wn_data").mkdir()
        wn.add(tmp_path / "test.xml", progress_handler=None)
        library = WnLibrary.find("test-en:1")
        assert library.base_forms("Joyes") == ["joy"]
        assert library.base_forms("joy") == []


def test_an_unknown_synset_of_a_lexicon_is_told(library):
    with pytest.raises(UnknownNameError, match=r"must be named like emotion\.n\.01, got 'joy'"):
        library.synset("joy")
    with pytest.raises(UnknownNameError, match=r"unknown synset 'joy\.n\.02' \(did you mean"):
        library.synset("joy.n.02")
    with pytest.raises(UnknownNameError, match=r"unknown word 'yoj', expected one of test-en:1"):
        library.synset("yoj.n.01")


@pytest.mark.usefixtures("library")
def test_a_missing_lexicon_or_library_is_told_with_ways_to_get_it(tmp_path, monkeypatch):
    with pytest.raises(MissingFileError, match=r"hold the lexicon oewn:2024, it holds test-en:1"):
        WnLibrary.find("oewn:2024")
    with pytest.raises(MissingFileError, match=r"lexicon omw-en or oewn, .* download omw-en:1\.4"):
        WnLibrary.find()
    with lexicons_in(tmp_path / "empty"), pytest.raises(MissingFileError, match=r"it holds none"):
        WnLibrary.find()
    assert not (tmp_path / "empty").exists()
    monkeypatch.setitem(sys.modules, "wn", None)
    with pytest.raises(MissingFileError, match=r"not installed: pip install 'saelign\[wordnet\]'"):
        WnLibrary.find()


def test_a_wordnet_is_looked_for_in_folders_then_among_lexicons(tmp_path, library, monkeypatch):
    folder = tmp_path / "dict"
    assert find_wordnet(folder=folder) == Wordnet.find(folder)
    assert find_wordnet(lexicon="test-en") == library
    monkeypatch.setattr("saelign.concepts.wordnet.usual_places", lambda: [folder])
    assert find_wordnet().title == "WordNet"
    monkeypatch.setattr("saelign.concepts.wordnet.usual_places", list)
    monkeypatch.setattr("saelign.concepts.wn_library.ENGLISH", ("test-en",))
    assert find_wordnet() == library
    monkeypatch.setattr("saelign.concepts.wn_library.ENGLISH", ("oewn",))
    both = r"apt install wordnet-base.*; or .*python -m wn download omw-en:1\.4"
    with pytest.raises(MissingFileError, match=both):
        find_wordnet()


def test_twenty_closures_are_those_of_the_wn_library(real, tmp_path):
    as_lmf(real, list(TWENTY), tmp_path / "test.xml")
    with lexicons_in(tmp_path / "wn_data") as wn:
        (tmp_path / "wn_data").mkdir()
        wn.add(tmp_path / "test.xml", progress_handler=None)
        library = WnLibrary.find("test-en")
        for name in TWENTY:
            compared(real, library, name)
            compared(real, library, name, instances=False)
            compared(real, library, name, depth=2)
        assert len(list(library.below(library.synset("country.n.02")))) == 228
        ours, theirs = (
            build("C", ["country.n.02"], source=source).concept.words for source in (real, library)
        )
        assert set(ours) <= set(theirs)


# Checking ----------------------------------------------------------------------------------------


class Cutter:
    """A tokenizer that has some words alone, others after a blank, and cuts the rest."""

    bos_token_id = eos_token_id = pad_token_id = None
    all_special_ids: list[int] = []  # noqa: RUF012

    def __call__(self, text: Any, **options: Any) -> dict[str, list[list[int]]]:
        assert options == {"add_special_tokens": False}
        return {"input_ids": [[1] if word in ("joy", " glee") else [1, 2] for word in text]}

    def __len__(self) -> int:
        return 3

    def decode(self, token_ids: Any, **options: Any) -> str:
        raise NotImplementedError

    def get_vocab(self) -> dict[str, int]:
        raise NotImplementedError


def test_what_is_doubtful_about_a_concept_is_found(tmp_path):
    (tmp_path / "glad.txt").write_text("joy\nglee\nJoy\nbliss\nbliss\n")
    concept = read_as_written(tmp_path / "glad.txt")
    other = a_concept(name="Other", keywords=(Keyword(text="Glee", source="x"),))
    found = check_concept(concept, [concept, other], Cutter())
    assert found.repeated == ["joy", "bliss"]
    assert found.shared == {"glee": ["Other"]}
    assert found.in_pieces == ["Joy", "bliss"]
    clean = check_concept(other)
    assert (clean.repeated, clean.shared, clean.in_pieces) == ([], {}, None)
