"""A concept: a named, versioned list of keywords, each with where it comes from, and its file."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from saelign.errors import FormatError, MissingFileError, UnknownNameError
from saelign.files import written
from saelign.strict_yaml import StrictLoader, told_yaml_error

FORMAT = 1
"""Version of the concept files that this package writes and reads."""

SHIPPED = Path(__file__).parent / "data"
KEYS = {"saelign_concept", "name", "version", "about", "keywords", "recipe", "lists"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyword:
    """A word, or several with a blank between them, that stands for a concept.

    Attributes:
        text: As written. With a capital letter it means that spelling alone: May, Turkey, US.
        source: Where it comes from, such as `Lan et al. (2024)` or `WordNet 3.0, emotion.n.01`.
    """

    text: str
    source: str

    @property
    def words(self) -> tuple[str, ...]:
        """The words that it is made of."""
        return tuple(self.text.split(" "))

    @property
    def is_cased(self) -> bool:
        """Whether it has a capital letter."""
        return self.text != self.text.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposedList:
    """A list of words as a language model gave it.

    Attributes:
        model: Which model.
        endpoint: Where it was asked.
        created: When, in UTC.
        words: What it gave, in its order.
    """

    model: str
    endpoint: str
    created: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How keywords were taken from a WordNet: enough to take them again.

    Attributes:
        source: Which WordNet, such as `WordNet 3.0`.
        synsets: Names of those at and below which the words stand.
        depth: Steps down at most; to the bottom if None.
        instances: Whether single things counted.
        multiword: Whether words of several words counted.
        ambiguity: `dominant`, `strict` or `all`.
        share: Of a word's uses that had to lie in the concept, if `dominant`.
        min_uses: Tagged uses in the concept that a word had to have.
        without: Words and synsets that were left out by choice.
    """

    source: str
    synsets: tuple[str, ...]
    depth: int | None = None
    instances: bool = True
    multiword: bool = False
    ambiguity: str = "dominant"
    share: float = 0.75
    min_uses: int = 0
    without: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """A named, versioned list of keywords.

    Attributes:
        name: Such as Emotions.
        version: Of the list.
        about: What the concept is, and how its keywords were chosen.
        keywords: Each once, in the order of the file.
        recipe: How they were taken from a WordNet, if any was.
        lists: What they were proposed from, if a language model did.
    """

    name: str
    version: str
    about: str
    keywords: tuple[Keyword, ...]
    recipe: Recipe | None = None
    lists: tuple[ProposedList, ...] = ()

    @property
    def words(self) -> list[str]:
        """The keywords' texts."""
        return [keyword.text for keyword in self.keywords]

    @property
    def by_source(self) -> dict[str, list[str]]:
        """The keywords' texts, by where they come from."""
        found: dict[str, list[str]] = {}
        for keyword in self.keywords:
            found.setdefault(keyword.source, []).append(keyword.text)
        return found


def union(concepts: Iterable[Concept], name: str | None = None) -> Concept:
    """The concept of all keywords of some; a keyword of several keeps its first source.

    Args:
        concepts: Two or more.
        name: Its name; `A + B` if None.
    """
    concepts = list(concepts)
    return Concept(
        name=name or " + ".join(concept.name for concept in concepts),
        version=" + ".join(concept.version for concept in concepts),
        about="union of " + ", ".join(concept.name for concept in concepts),
        keywords=each_once(keyword for concept in concepts for keyword in concept.keywords),
    )


def each_once(keywords: Iterable[Keyword]) -> tuple[Keyword, ...]:
    """The keywords without those whose text stood before."""
    found: dict[str, Keyword] = {}
    for keyword in keywords:
        found.setdefault(keyword.text, keyword)
    return tuple(found.values())


@cache
def shipped_concepts() -> dict[str, Path]:
    """The concepts that come with the package: their files, by name."""
    return {read_name(path): path for path in sorted(SHIPPED.glob("*.yaml"))}


def plain(name: str) -> str:
    """A name without what people write differently: People/Roles, people_roles, PeopleRoles."""
    return name.lower().translate(str.maketrans("", "", " _-/"))


def read_name(path: Path) -> str:
    """The name that a shipped file gives its concept, which is its second line."""
    with path.open(encoding="utf-8") as file:
        return yaml.safe_load(next(line for line in file if line.startswith("name:")))["name"]


def load_concept(name: str | Path, *, folder: Path | None = None) -> Concept:
    """A shipped concept by name, or one from a file.

    Args:
        name: A shipped name, in any case, `People/Roles` as well as `PeopleRoles`; or a path: a
            YAML file as `save_concept` writes it, or a text file with a keyword a line (what
            follows `#` is a comment).
        folder: Where relative paths start; the working folder if None.

    Raises:
        UnknownNameError: No such concept ships and the name is no path; names the nearest.
        MissingFileError: No such file.
        FormatError: The file is no concept, or holds no keyword.
    """
    return read_concept(concept_file(name, folder=folder))


def concept_file(name: str | Path, *, folder: Path | None = None) -> Path:
    """The file of a concept: that of a shipped name, or the path itself.

    Raises:
        UnknownNameError: No such concept ships and the name is no path; names the nearest.
        MissingFileError: No such file.
    """
    shipped = {plain(known): path for known, path in shipped_concepts().items()}
    if plain(str(name)) in shipped:
        return shipped[plain(str(name))]
    path = Path(name).expanduser()
    path = path if folder is None else folder / path
    if path.is_file():
        return path
    if path.suffix.lower() in (".yaml", ".yml", ".txt") or len(Path(name).parts) > 1:
        raise MissingFileError(f"a concept must be shipped or a file, {path} is neither")
    raise UnknownNameError.of("concept", str(name), shipped_concepts())


def read_concept(path: Path) -> Concept:
    """The concept of a file.

    Raises:
        FormatError: It is no concept, or holds no keyword.
    """
    concept = read_as_written(path)
    if not concept.keywords:
        raise FormatError(f"a concept must have keywords, {path} holds none: add a word a line")
    return replace(concept, keywords=each_once(concept.keywords))


def read_as_written(path: Path) -> Concept:
    """The concept of a file with what stands in it twice, or with no keyword at all.

    Raises:
        FormatError: It is no concept.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"a concept must be a UTF-8 text file, {path} is not: {error}") from error
    if path.suffix.lower() == ".txt":
        lines = (line.split("#")[0] for line in text.splitlines())
        words = [" ".join(line.split()) for line in lines if line.strip()]
        return Concept(
            name=path.stem,
            version="1",
            about=f"keywords of {path.name}",
            keywords=tuple(Keyword(text=word, source=path.name) for word in words),
        )
    try:
        return concept_of(yaml.load(text, Loader=StrictLoader), path)
    except yaml.YAMLError as error:
        raise FormatError(f"{path} must be a YAML file: {told_yaml_error(error)}") from error


def concept_of(content: object, path: Path) -> Concept:
    """What a concept's file says.

    Raises:
        FormatError: It does not say what a concept needs, or more than that.
    """
    wrong = f"{path} must be a concept as `saelign concepts build` writes it"
    if not isinstance(content, Mapping) or content.get("saelign_concept") is None:
        raise FormatError(f"{wrong}, it has no key saelign_concept: see `saelign concepts show`")
    if content["saelign_concept"] != FORMAT:
        raise FormatError(
            f"this version reads concepts of format {FORMAT}, {path} has "
            f"{content['saelign_concept']!r}: upgrade saelign"
        )
    unknown = sorted(set(map(str, content)) - KEYS)
    if unknown:
        raise FormatError(f"{wrong}, it has the key {unknown[0]!r}")
    groups = content.get("keywords")
    if groups is None:
        groups = {}
    if not isinstance(groups, Mapping) or not all(isinstance(w, list) for w in groups.values()):
        raise FormatError(f"{wrong}, its keywords are not lists by source")
    keywords = []
    for source, words in groups.items():
        for word in words:
            if not isinstance(word, str) or not word.strip():
                raise FormatError(f"{wrong}, its keyword {word!r} is no text: put it in quotes")
            keywords.append(Keyword(text=" ".join(word.split()), source=str(source)))
    lists = content.get("lists") or []
    if not isinstance(lists, list):
        raise FormatError(f"{wrong}, its lists are not a list")
    return Concept(
        name=str(content.get("name") or path.stem),
        version=str(content.get("version", "1")),
        about=str(content.get("about", "")),
        keywords=tuple(keywords),
        recipe=None if content.get("recipe") is None else recipe_of(content["recipe"], wrong),
        lists=tuple(proposed_of(one, wrong) for one in lists),
    )


def recipe_of(content: object, wrong: str) -> Recipe:
    """What the key `recipe` says.

    Raises:
        FormatError: It is no recipe.
    """
    known = {field.name for field in fields(Recipe)}
    if not isinstance(content, Mapping) or not {"source", "synsets"} <= content.keys() <= known:
        raise FormatError(
            f"{wrong}, its recipe must name source and synsets, and may name "
            f"{', '.join(sorted(known - {'source', 'synsets'}))}"
        )
    many = {key: content.get(key) or [] for key in ("synsets", "without")}
    if not all(isinstance(names, list) for names in many.values()):
        raise FormatError(f"{wrong}, its recipe must name synsets and words in lists")
    return Recipe(**{**content, **{key: tuple(map(str, names)) for key, names in many.items()}})


def proposed_of(content: object, wrong: str) -> ProposedList:
    """A list of the key `lists`.

    Raises:
        FormatError: It is none.
    """
    if not isinstance(content, Mapping) or not isinstance(content.get("words"), list):
        raise FormatError(f"{wrong}, an entry of its lists has no words")
    about = {key: str(content.get(key, "")) for key in ("model", "endpoint", "created")}
    return ProposedList(**about, words=tuple(str(word) for word in content["words"]))


def as_yaml(concept: Concept) -> str:
    """The concept as its file holds it: keywords by source."""
    content: dict[str, Any] = {
        "saelign_concept": FORMAT,
        "name": concept.name,
        "version": concept.version,
        "about": concept.about,
    }
    if concept.recipe:
        content["recipe"] = {key: listed(value) for key, value in asdict(concept.recipe).items()}
    content["keywords"] = concept.by_source
    if concept.lists:
        content["lists"] = [
            {key: listed(value) for key, value in asdict(one).items()} for one in concept.lists
        ]
    return yaml.dump(content, Dumper=ConceptDumper, sort_keys=False, allow_unicode=True, width=98)


def listed(value: Any) -> Any:
    """A tuple as the list that YAML knows; anything else as it is."""
    return list(value) if isinstance(value, tuple) else value


class ConceptDumper(yaml.SafeDumper):
    """Writes lists in lines, as they are read, and keys below each other."""


def in_lines(dumper: ConceptDumper, words: Sequence[Any]) -> yaml.Node:
    """A list as `[a, b]` where it holds texts alone."""
    flow = all(isinstance(word, str) for word in words)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", words, flow_style=flow)


ConceptDumper.add_representer(list, in_lines)


def save_concept(concept: Concept, path: str | Path) -> Path:
    """Write a concept's file, whole or not at all; gives its path.

    Raises:
        StorageError: It cannot be written.
    """
    path = Path(path).expanduser()
    with written(path) as temporary:
        temporary.write_text(as_yaml(concept), encoding="utf-8")
    return path
