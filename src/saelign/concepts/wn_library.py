"""The lexicons of the `wn` library, as far as concepts need them.

The library is installed with `pip install saelign[wordnet]`, a lexicon with
`python -m wn download omw-en:1.4` (WordNet 3.0) or `oewn:2024` (Open English WordNet). Only some
lexicons carry counted uses; without them every sense of a word counts once.
"""

import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saelign.concepts.wordnet import Wordnet, parts_of_name
from saelign.errors import MissingFileError, UnknownNameError

ENGLISH = ("omw-en", "oewn")
"""Lexicons that are taken by themselves, the first that is there."""

POS = {"n": ("n",), "v": ("v",), "a": ("a", "s"), "s": ("a", "s"), "r": ("r",)}
"""Parts of speech of a synset's name, and those of the library that they stand for."""

HOW_TO_INSTALL = "pip install 'saelign[wordnet]'"
HOW_TO_DOWNLOAD = "python -m wn download omw-en:1.4"


@dataclass(frozen=True, slots=True, kw_only=True)
class WnSynset:
    """A set of words with one meaning, in a lexicon of the `wn` library.

    Attributes:
        id: Its name in the lexicon.
        lemmas: Its words as written, blanks as underscores.
        gloss: What it means.
    """

    id: str
    lemmas: tuple[str, ...]
    gloss: str
    _synset: Any = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class WnLibrary:
    """A WordNet in a lexicon of the `wn` library.

    Attributes:
        lexicon: Its name with its version, such as `omw-en:1.4`.
    """

    lexicon: str
    _lemmas: Any = field(repr=False, compare=False)
    _forms: Any = field(repr=False, compare=False)

    @property
    def title(self) -> str:
        """Its name with its version."""
        return self.lexicon

    @classmethod
    def find(cls, lexicon: str | None = None) -> "WnLibrary":
        """The lexicon of a name such as `oewn` or `omw-en:1.4`; an English one if none is given.

        Raises:
            MissingFileError: The library is not installed, or it has no such lexicon; says how to
                get either.
        """
        if importlib.util.find_spec("wn") is None:
            raise MissingFileError(
                f"lexicons need the wn library, it is not installed: {HOW_TO_INSTALL}, then "
                f"{HOW_TO_DOWNLOAD}"
            )
        wn: Any = importlib.import_module("wn")
        # The library would make its data base in order to say that it is empty.
        there = wn.lexicons() if wn.config.database_path.is_file() else []
        names = {one.id: one.specifier() for one in there} | {
            one.specifier(): one.specifier() for one in there
        }
        asked = [lexicon] if lexicon is not None else list(ENGLISH)
        found = next((names[name] for name in asked if name in names), None)
        if found is None:
            raise MissingFileError(
                f"the wn library must hold the lexicon {' or '.join(asked)}, it holds "
                f"{', '.join(sorted(set(names.values()))) or 'none'}: "
                f"python -m wn download {lexicon or 'omw-en:1.4'}"
            )
        # Nothing below a synset may come from another lexicon, hence no `expand`.
        return cls(
            lexicon=found,
            _lemmas=wn.Wordnet(found, expand="", search_all_forms=False),
            _forms=wn.Wordnet(found, expand=""),
        )

    def synset(self, name: str) -> WnSynset:
        """The synset of a name such as `emotion.n.01`, numbered as the lexicon orders senses.

        Raises:
            UnknownNameError: There is none; names the senses that the word has.
        """
        word, pos, number = parts_of_name(name)
        lemma = word.replace("_", " ")
        found = self.ordered(lemma, pos)
        if not 1 <= number <= len(found):
            there = [
                f"{lemma.replace(' ', '_')}.{p}.{i + 1:02d}"
                for p in "nvar"
                for i in range(len(self.ordered(lemma, p)))
            ]
            if not there:
                raise UnknownNameError(
                    f"unknown word {lemma!r}, expected one of {self.lexicon}: check its spelling"
                )
            raise UnknownNameError.of("synset", name, there)
        return as_synset(found[number - 1].synset())

    def ordered(self, lemma: str, pos: str) -> list[Any]:
        """The senses of a word as one part of speech, in the order that numbers them.

        WordNet orders the senses of all spellings (china, China) together, the most used first; a
        lexicon orders each spelling's.
        """
        words = [
            word
            for one in dict.fromkeys(POS[pos])
            for word in self._lemmas.words(lemma, pos=one)
            if word.lemma().lower() == lemma
        ]
        senses = [sense for word in words for sense in word.senses()]
        return senses if len(words) == 1 else sorted(senses, key=lambda s: -sum(s.counts()))

    def below(
        self, synset: WnSynset, *, depth: int | None = None, instances: bool = True
    ) -> Iterator[tuple[WnSynset, int]]:
        """A synset and all that lie below it, each once, with how many steps down they are.

        Args:
            synset: Where to begin.
            depth: Steps down at most; to the bottom if None.
            instances: Whether single things count, as France does among countries.
        """
        level, seen, step = [synset], {synset.id}, 0
        down = ("hyponym", "instance_hyponym") if instances else ("hyponym",)
        while level:
            yield from ((one, step) for one in level)
            if step == depth:
                return
            lower = []
            for child in (c for one in level for d in down for c in one._synset.get_related(d)):
                if child.id not in seen:
                    seen.add(child.id)
                    lower.append(as_synset(child))
            level, step = lower, step + 1

    def senses(self, word: str) -> list[WnSynset]:
        """All synsets of a word, in any part of speech and any case."""
        return [as_synset(sense.synset()) for sense in self.senses_of(word)]

    def tagged_uses(self, word: str) -> dict[str, int]:
        """How often a word is tagged with each of its senses, by the synset's id."""
        uses: dict[str, int] = {}
        for sense in self.senses_of(word):
            id_ = sense.synset().id
            uses[id_] = uses.get(id_, 0) + sum(sense.counts())
        return uses

    def senses_of(self, word: str) -> list[Any]:
        """All senses of a word, in any case."""
        lemma = word.lower().replace("_", " ")
        return [
            sense
            for found in self._lemmas.words(lemma)
            if found.lemma().lower() == lemma
            for sense in found.senses()
        ]

    def base_forms(self, word: str) -> list[str]:
        """Words that this one is an irregular form of, such as sit of sat."""
        form = word.lower().replace("_", " ")
        return [
            found.lemma()
            for found in self._forms.words(form)
            if form in [other.lower() for other in found.forms()[1:]]
        ]


def find_wordnet(
    *, folder: str | Path | None = None, lexicon: str | None = None
) -> Wordnet | WnLibrary:
    """A WordNet: the one asked for, or a folder in its usual place, or else a lexicon of `wn`.

    Args:
        folder: WordNet's own database files.
        lexicon: A lexicon of the `wn` library; not both.

    Raises:
        MissingFileError: There is none; says how to get one of either kind.
        FormatError: The folder's files are not those of a WordNet.
    """
    if lexicon is not None:
        return WnLibrary.find(lexicon)
    if folder is not None:
        return Wordnet.find(folder)
    try:
        return Wordnet.find()
    except MissingFileError as no_folder:
        try:
            return WnLibrary.find()
        except MissingFileError as no_lexicon:
            raise MissingFileError(f"{no_folder}; or {no_lexicon}") from no_lexicon


def as_synset(synset: Any) -> WnSynset:
    """The library's synset as concepts see it."""
    return WnSynset(
        id=synset.id,
        lemmas=tuple(lemma.replace(" ", "_") for lemma in synset.lemmas()),
        gloss=synset.definition() or "",
        _synset=synset,
    )
