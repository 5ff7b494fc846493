"""WordNet as its own database files hold it (WNDB): synsets, hyponyms, counted uses.

Reads a `dict` folder of Princeton WordNet, such as Debian's package `wordnet-base` installs. Only
what concepts need is kept: the words of a synset, what lies below it, and how often each word is
tagged with each of its senses.

Source: WordNet 3.0 manual, wndb(5WN), senseidx(5WN), cntlist(5WN).
"""

import functools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from saelign.errors import FormatError, MissingFileError, UnknownNameError

USUAL_PLACES = (
    "/usr/share/wordnet",
    "/usr/share/wordnet/dict",
    "/usr/local/share/wordnet",
    "/usr/local/WordNet-3.0/dict",
    "/opt/homebrew/opt/wordnet/share/wordnet",
    "/opt/local/share/WordNet-3.0/dict",
)
"""Where packages put it; `$WNHOME/dict` and `$WNSEARCHDIR` come first, as for WordNet itself."""

FOLDER_FILES = ("data.noun", "index.noun")
"""What a folder must hold to be taken for a WordNet."""

FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
"""Parts of speech, with the endings of their files."""

SYNSET_TYPES = {"n": "1", "v": "2", "a": "3", "r": "4"}
"""Numbers of a sense key; that of satellite adjectives is 5."""

HYPONYM, INSTANCE, SIMILAR = "~", "~i", "&"

HOW_TO_GET = (
    "install it (Debian: apt install wordnet-base; macOS: brew install wordnet), or download "
    "WordNet 3.0 from wordnet.princeton.edu and give its dict folder with --wordnet FOLDER"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Synset:
    """A set of words with one meaning.

    Attributes:
        pos: Part of speech: n, v, a or r.
        offset: Where it stands in its file, which is its name there.
        lemmas: Its words as written, blanks as underscores.
        keys: For each word its number among the senses of its lexicographer's file.
        hyponyms: Offsets of its kinds.
        instances: Offsets of the single things that are of it, as France of country.
        head: Of a satellite adjective the offset of what it gathers around; else None.
        gloss: What it means.
    """

    pos: str
    offset: int
    lemmas: tuple[str, ...]
    keys: tuple[tuple[str, str], ...]
    hyponyms: tuple[int, ...]
    instances: tuple[int, ...]
    head: int | None
    gloss: str

    @property
    def id(self) -> tuple[str, int]:
        """Part of speech and offset, which no other synset has."""
        return self.pos, self.offset


@dataclass(frozen=True, slots=True, kw_only=True)
class Wordnet:
    """A WordNet in a folder of database files.

    Attributes:
        folder: Where it lies.
        version: As its files tell, such as `3.0`; empty if they do not.
    """

    folder: Path
    version: str
    _synsets: dict[str, dict[int, Synset]] = field(default_factory=dict, repr=False)
    _index: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict, repr=False)

    @property
    def title(self) -> str:
        """Its name with its version."""
        return f"WordNet {self.version}".rstrip()

    @classmethod
    def find(cls, folder: str | Path | None = None) -> "Wordnet":
        """The WordNet of a folder, or of the usual places if none is given.

        Raises:
            MissingFileError: There is none; says how to get it.
            FormatError: The folder's files are not those of a WordNet.
        """
        if folder is not None:
            path = Path(folder).expanduser()
            place = next(filter(holds_wordnet, (path, path / "dict")), None)
            if place is not None:
                return cls(folder=place, version=version_of(place))
            raise MissingFileError(
                f"a WordNet folder must hold {' and '.join(FOLDER_FILES)}, {path} does not: "
                f"{HOW_TO_GET}"
            )
        place = next(filter(holds_wordnet, usual_places()), None)
        if place is not None:
            return cls(folder=place, version=version_of(place))
        raise MissingFileError(f"there must be a WordNet on this machine, none is: {HOW_TO_GET}")

    def synset(self, name: str) -> Synset:
        """The synset of a name such as `emotion.n.01`: word, part of speech, number of the sense.

        Raises:
            UnknownNameError: There is none; names the senses that the word has.
        """
        word, pos, number = parts_of_name(name)
        lemma, pos = word.replace(" ", "_"), pos.replace("s", "a")
        offsets = self.index(pos).get(lemma, ())
        if not 1 <= number <= len(offsets):
            there = [
                f"{lemma}.{p}.{i + 1:02d}" for p in FILES for i in range(self.n_senses(lemma, p))
            ]
            if not there:
                raise UnknownNameError.of("word of WordNet", lemma, self.near(lemma, pos))
            raise UnknownNameError.of("synset", name, there)
        return self.synsets(pos)[offsets[number - 1]]

    def n_senses(self, lemma: str, pos: str) -> int:
        """How many senses a word has as one part of speech."""
        return len(self.index(pos).get(lemma, ()))

    def near(self, lemma: str, pos: str) -> list[str]:
        """Words that begin as this one does."""
        for length in range(len(lemma), 0, -1):
            found = sorted(word for word in self.index(pos) if word.startswith(lemma[:length]))
            if found:
                return found[:8]
        return []

    def senses(self, word: str) -> list[Synset]:
        """All synsets of a word, in any part of speech; in WordNet's order within each."""
        lemma = word.lower().replace(" ", "_")
        return [
            self.synsets(pos)[offset] for pos in FILES for offset in self.index(pos).get(lemma, ())
        ]

    def below(
        self, synset: Synset, *, depth: int | None = None, instances: bool = True
    ) -> Iterator[tuple[Synset, int]]:
        """A synset and all that lie below it, each once, with how many steps down they are.

        Args:
            synset: Where to begin.
            depth: Steps down at most; to the bottom if None.
            instances: Whether single things count, as France does among countries.
        """
        level, seen, step = [synset.offset], {synset.offset}, 0
        synsets = self.synsets(synset.pos)
        while level:
            for offset in level:
                yield synsets[offset], step
            if step == depth:
                return
            lower = []
            for offset in level:
                one = synsets[offset]
                for child in (*one.hyponyms, *(one.instances if instances else ())):
                    if child not in seen:
                        seen.add(child)
                        lower.append(child)
            level, step = lower, step + 1

    def tagged_uses(self, word: str) -> dict[tuple[str, int], int]:
        """How often a word is tagged with each of its senses, by part of speech and offset."""
        lemma = word.lower().replace(" ", "_")
        counts = counted_uses(self.folder)
        return {
            synset.id: counts.get(key, 0)
            for synset in self.senses(word)
            for lemma_there, key in zip(synset.lemmas, self.keys_of(synset), strict=True)
            if lemma_there.lower() == lemma
        }

    def keys_of(self, synset: Synset) -> list[str]:
        """The sense key of each word of a synset, as cntlist.rev has it."""
        kind, head = SYNSET_TYPES[synset.pos], ":"
        if synset.head is not None:
            kind, gathered = "5", self.synsets(synset.pos)[synset.head]
            head = f"{gathered.lemmas[0].lower()}:{gathered.keys[0][1]}"
        return [
            f"{lemma.lower()}%{kind}:{file}:{number}:{head}"
            for lemma, (file, number) in zip(synset.lemmas, synset.keys, strict=True)
        ]

    def base_forms(self, word: str) -> list[str]:
        """Words that this one is an irregular form of, such as sit of sat."""
        lemma = word.lower().replace(" ", "_")
        return [base for pos in FILES for base in exceptions(self.folder, pos).get(lemma, ())]

    def synsets(self, pos: str) -> dict[int, Synset]:
        """All synsets of a part of speech by offset; read once."""
        if pos not in self._synsets:
            self._synsets[pos] = read_data(self.folder / f"data.{FILES[pos]}", pos)
        return self._synsets[pos]

    def index(self, pos: str) -> dict[str, tuple[int, ...]]:
        """The offsets of each word's senses, the most used one first; read once."""
        if pos not in self._index:
            self._index[pos] = read_index(self.folder / f"index.{FILES[pos]}")
        return self._index[pos]


def parts_of_name(name: str) -> tuple[str, str, int]:
    """The word in lower case, part of speech and number of a synset's name.

    Raises:
        UnknownNameError: It is not named like `emotion.n.01`.
    """
    match = re.fullmatch(r"(.+)\.([nvasr])\.(\d+)", name)
    if not match:
        raise UnknownNameError(
            f"a synset must be named like emotion.n.01, got {name!r}: word, part of speech "
            "(n, v, a, r), number of the sense"
        )
    return match[1].lower(), match[2], int(match[3])


def usual_places() -> list[Path]:
    """Folders where a WordNet may lie, the user's own first."""
    own = []
    if os.environ.get("WNSEARCHDIR"):
        own.append(Path(os.environ["WNSEARCHDIR"]))
    if os.environ.get("WNHOME"):
        own.append(Path(os.environ["WNHOME"]) / "dict")
    return [*own, *map(Path, USUAL_PLACES)]


def holds_wordnet(folder: Path) -> bool:
    """Whether a folder holds WordNet's nouns."""
    return all((folder / name).is_file() for name in FOLDER_FILES)


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a database file but those of its licence, with their numbers.

    Raises:
        MissingFileError: It is not there.
        FormatError: It cannot be read as text.
    """
    try:
        with path.open(encoding="latin-1") as file:  # some glosses hold bytes beyond ASCII
            for number, line in enumerate(file, start=1):
                if not line.startswith("  "):
                    yield number, line.rstrip("\n")
    except FileNotFoundError as error:
        raise MissingFileError(
            f"a WordNet folder must hold {path.name}, {path.parent} does not: {HOW_TO_GET}"
        ) from error
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}") from error


def version_of(folder: Path) -> str:
    """The version that the licence at the head of the nouns tells.

    Raises:
        FormatError: The file cannot be read.
    """
    path = folder / "data.noun"
    try:
        with path.open(encoding="latin-1") as file:
            head = file.read(2000)
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}") from error
    match = re.search(r"WordNet (\d+\.\d+)", head)
    return match[1] if match else ""


def read_data(path: Path, pos: str) -> dict[int, Synset]:
    """The synsets of a data file.

    Raises:
        FormatError: A line is not as wndb(5WN) says.
    """
    synsets = {}
    for number, line in lines_of(path):
        try:
            synset = read_synset(line, pos)
        except (ValueError, IndexError) as error:
            raise FormatError(
                f"{path} must be a data file of WordNet, line {number} is not: {line[:60]!r}"
            ) from error
        synsets[synset.offset] = synset
    if not synsets:
        raise FormatError(f"{path} must hold synsets, it holds none")
    return synsets


def read_synset(line: str, pos: str) -> Synset:
    """A line of a data file: offset, file, type, words, pointers, frames | gloss."""
    head, _, gloss = line.partition("|")
    parts = head.split()
    n_words = int(parts[3], 16)
    words = [re.sub(r"\((?:a|p|ip)\)$", "", w) for w in parts[4 : 4 + 2 * n_words : 2]]
    numbers = parts[5 : 5 + 2 * n_words : 2]
    at = 4 + 2 * n_words
    n_pointers = int(parts[at])
    pointers = parts[at + 1 : at + 1 + 4 * n_pointers]
    if len(words) != n_words or len(numbers) != n_words or len(pointers) != 4 * n_pointers:
        raise ValueError(line)
    down: dict[str, list[int]] = {HYPONYM: [], INSTANCE: [], SIMILAR: []}
    for symbol, offset, of_pos in zip(pointers[::4], pointers[1::4], pointers[2::4], strict=True):
        if symbol in down and of_pos == pos:
            down[symbol].append(int(offset))
    return Synset(
        pos=pos,
        offset=int(parts[0]),
        lemmas=tuple(words),
        keys=tuple((parts[1], f"{int(n, 16):02d}") for n in numbers),
        hyponyms=tuple(down[HYPONYM]),
        instances=tuple(down[INSTANCE]),
        head=down[SIMILAR][0] if parts[2] == "s" else None,
        gloss=gloss.strip(),
    )


def read_index(path: Path) -> dict[str, tuple[int, ...]]:
    """The senses of each word of an index file.

    Raises:
        FormatError: A line is not as wndb(5WN) says.
    """
    index = {}
    for number, line in lines_of(path):
        parts = line.split()
        try:
            n_senses = int(parts[2])
            index[parts[0]] = tuple(int(offset) for offset in parts[-n_senses:])
        except (ValueError, IndexError) as error:
            raise FormatError(
                f"{path} must be an index of WordNet, line {number} is not: {line[:60]!r}"
            ) from error
    return index


@functools.cache
def counted_uses(folder: Path) -> dict[str, int]:
    """Tagged uses of each sense by its key; empty without cntlist.rev."""
    path = folder / "cntlist.rev"
    counts: dict[str, int] = {}
    if not path.is_file():
        return counts
    for number, line in lines_of(path):
        try:
            key, _, times = line.split()
            counts[key] = int(times)
        except ValueError as error:
            raise FormatError(
                f"{path} must count senses of WordNet, line {number} does not: {line[:60]!r}"
            ) from error
    return counts


@functools.cache
def exceptions(folder: Path, pos: str) -> dict[str, tuple[str, ...]]:
    """Irregular forms of a part of speech and what they are forms of; empty without their file."""
    path = folder / f"{FILES[pos]}.exc"
    if not path.is_file():
        return {}
    return {parts[0]: tuple(parts[1:]) for _, line in lines_of(path) if (parts := line.split())}
