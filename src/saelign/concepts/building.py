"""A concept from WordNet: the words below some synsets, without those that mostly mean another.

A word stays when its *dominant sense* is in the concept: at least three quarters of its uses that
WordNet's makers tagged with a sense, in all parts of speech, lie at or below the given synsets. To
ask for words of one sense alone would leave next to nothing (of the words below `emotion.n.01`
that anybody uses, one), for everyday words have many senses.

Source: this package; WordNet's counts are those of its semantic concordances, cntlist(5WN).
"""

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from saelign.concepts.concept import Concept, Keyword, Recipe, each_once
from saelign.errors import DegenerateError, UnknownNameError

AMBIGUITIES = ("dominant", "strict", "all")
SHARE = 0.75
"""Of a word's tagged uses that must lie in the concept for its dominant sense to be there."""

SEED = "seed"
"""Source of the words that the user gives."""

GRAMMAR = """
a an the this that these those such some any no none each every either neither both all few
more most much many several other another same own enough
i me my mine myself you your yours yourself yourselves he him his himself she her hers herself
it its itself we us our ours ourselves they them their theirs themselves one ones
thou thee thy thine ye
who whom whose which what whatever whoever when where why how
be am is are was were been being do does did done doing have has had having
can could may might must shall should will would ought need dare
and or nor but if then else so because although though while whereas unless until since
about above across after against along amid among around as at before behind below beneath
beside besides between beyond by concerning despite down during except for from in inside into
like near of off on onto opposite out outside over past per round save than through throughout
till to toward towards under underneath up upon versus via with within without
not never ever here there now just only even also too very quite rather still yet again away
back well please yes
"""
FUNCTION_WORDS = frozenset(GRAMMAR.split())
"""Words that serve grammar first, whatever else WordNet knows them as (can, may, in, us, will)."""

KINDS = "disparaging|derogatory|offensive|obscene|vulgar"
OFFENSIVE = re.compile(
    rf"\bslurs?\b|\((often |sometimes |usually )?({KINDS})\b|(considered|regarded as) offensive"
    rf"|\b({KINDS}) (and \w+ )?(term|name|word|expression|slang|referen)|\bdisparagingly\b",
    re.IGNORECASE,
)
"""How WordNet's glosses tell that a word insults."""

SHORT = 3
"""Letters up to which a word that abbreviates another is taken for something else (rep, sat)."""


@runtime_checkable
class AnySynset(Protocol):
    """What building needs of a synset."""

    @property
    def lemmas(self) -> tuple[str, ...]:
        """Its words as written, blanks as underscores."""
        ...

    @property
    def gloss(self) -> str:
        """What it means."""
        ...

    @property
    def id(self) -> Hashable:
        """What no other synset has."""
        ...


S = TypeVar("S", bound=AnySynset)


@runtime_checkable
class Lexicon(Protocol[S]):
    """What building needs of a WordNet: `Wordnet` and `WnLibrary` have it."""

    @property
    def title(self) -> str:
        """Its name with its version."""
        ...

    def synset(self, name: str) -> S:
        """The synset of a name such as `emotion.n.01`."""
        ...

    def below(
        self, synset: S, *, depth: int | None = None, instances: bool = True
    ) -> Iterator[tuple[S, int]]:
        """A synset and all that lie below it, each once, with how many steps down they are."""
        ...

    def senses(self, word: str) -> list[S]:
        """All synsets of a word, in any part of speech and any case."""
        ...

    def tagged_uses(self, word: str) -> Mapping[Any, int]:
        """How often a word is tagged with each of its senses, by the synset's id."""
        ...

    def base_forms(self, word: str) -> list[str]:
        """Words that this one is an irregular form of."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A concept from WordNet, and what was left out of it.

    Attributes:
        concept: The concept.
        left_out: Words below the synsets that it does not hold, with the reason.
    """

    concept: Concept
    left_out: dict[str, str]


def build_concept(name: str, synsets: Sequence[str], **options: Any) -> Concept:
    """The concept that `build` makes; takes the same options."""
    return build(name, synsets, **options).concept


def build(
    name: str,
    synsets: Sequence[str],
    *,
    source: Lexicon[Any],
    seed_words: Sequence[Keyword | str] = (),
    depth: int | None = None,
    instances: bool = True,
    multiword: bool = False,
    ambiguity: str = "dominant",
    share: float = SHARE,
    min_uses: int = 0,
    without: Sequence[str] = (),
    about: str = "",
) -> Built:
    """A concept of the words at and below some synsets, and what was left out of it and why.

    Words that the user gives come first, as they are. A word with a capital letter is matched in
    that spelling alone, so only its senses that are written so can make it mean something else
    (Turkey the country keeps clear of the bird); one without is matched in any case, and all its
    senses count. A word never tagged counts each of its senses once; an irregular form of another
    word counts the uses of that one too (saw is a tool, and the past of see). Unless all words are
    asked for, words go that serve grammar, that insult by WordNet's own account, or that abbreviate
    in three letters or fewer what nobody was seen to call so.

    Args:
        name: Of the concept.
        synsets: Names such as `emotion.n.01`.
        source: A WordNet: `Wordnet.find()`, or `WnLibrary.find("omw-en:1.4")`.
        seed_words: Words to hold in any case.
        depth: Steps down from the synsets at most; to the bottom if None.
        instances: Whether single things count, as France does among countries.
        multiword: Whether words of several words count.
        ambiguity: `dominant`: at least `share` of a word's tagged uses lie in the concept.
            `strict`: all its senses do. `all`: every word, whatever else it means.
        share: In (0, 1].
        min_uses: Tagged uses in the concept that a word must have: 1 leaves the words of everyday.
        without: Words to leave out, in any case, and synsets to leave out with all below them.
        about: What the concept is.

    Raises:
        UnknownNameError: A synset that WordNet has not, or another ambiguity.
        DegenerateError: No synset and no word is given, or no word is left.
    """
    if ambiguity not in AMBIGUITIES:
        raise UnknownNameError.of("ambiguity", ambiguity, AMBIGUITIES)
    if not 0 < share <= 1:
        raise DegenerateError(f"share must lie above 0 and at most at 1, got {share}")
    if not synsets and not seed_words:
        raise DegenerateError(f"concept {name!r} must be made of something: give a synset or words")
    dropped = {one.lower().replace("_", " ") for one in without if not is_synset_name(one)}
    pruned = {
        found.id
        for one in without
        if is_synset_name(one)
        for found, _ in source.below(source.synset(one), instances=True)
    }
    seeds = [
        one if isinstance(one, Keyword) else Keyword(text=one, source=SEED) for one in seed_words
    ]
    given = {seed.text.lower() for seed in seeds}
    found = {
        one: list(source.below(source.synset(one), depth=depth, instances=instances))
        for one in synsets
    }
    # What lies deeper than `depth` is of the concept all the same: it counts for what words mean.
    inside = {below.id for one in synsets for below, _ in source.below(source.synset(one))} - pruned
    keywords, left_out = [], {}
    for one, level in found.items():
        for synset, _ in level:
            if synset.id in pruned:
                continue
            for lemma in synset.lemmas:
                word = lemma.replace("_", " ")
                if word.lower() in given:
                    continue
                reason = "left out by choice" if word.lower() in dropped else None
                if reason is None and " " in word and not multiword:
                    reason = "of several words"
                if reason is None and ambiguity != "all":
                    reason = why_not(word, synset, inside, source, ambiguity, share)
                if reason is None and seen(word, inside, source) < min_uses:
                    reason = "seldom used"
                if reason is None:
                    keywords.append(Keyword(text=word, source=f"{source.title}, {one}"))
                else:
                    left_out.setdefault(word, reason)
    concept = Concept(
        name=name,
        version="1",
        about=about or f"words at and below {', '.join(synsets)} in {source.title}",
        keywords=each_once([*seeds, *keywords]),
        recipe=Recipe(
            source=source.title,
            synsets=tuple(synsets),
            depth=depth,
            instances=instances,
            multiword=multiword,
            ambiguity=ambiguity,
            share=share,
            min_uses=min_uses,
            without=tuple(without),
        )
        if synsets
        else None,
    )
    if not concept.keywords:
        raise DegenerateError(
            f"concept {name!r} must have keywords, all {len(left_out)} words below "
            f"{', '.join(synsets)} were left out: choose other synsets, or ask for all words"
        )
    held = set(concept.words)  # a word may be left out below one synset and stay below another
    return Built(
        concept=concept,
        left_out={word: reason for word, reason in left_out.items() if word not in held},
    )


def why_not(
    word: str,
    synset: AnySynset,
    inside: set[Hashable],
    source: Lexicon[Any],
    ambiguity: str,
    share: float,
) -> str | None:
    """Why a word does not stand for a concept; None if it does.

    Args:
        word: As written.
        synset: Of the concept, the one that it was found in.
        inside: The concept's synsets.
        source: Where its senses and uses are told.
        ambiguity: `dominant` or `strict`.
        share: Of its uses that must lie inside, if `dominant`.
    """
    if not re.fullmatch(r"[^\W\d_]+([ '’-][^\W\d_]+)*", word) or len(word) == 1:  # noqa: RUF001
        return "not of letters alone"
    if word in FUNCTION_WORDS:
        return "that serve grammar"
    if OFFENSIVE.search(synset.gloss):
        return "that insult"
    uses = uses_of(word, source)
    if len(word) <= SHORT and abbreviates(word, synset) and not uses.get(synset.id):
        return "abbreviations never seen"
    if ambiguity == "strict":
        return None if uses.keys() <= inside else "with other senses"
    if not any(uses.values()):
        uses = dict.fromkeys(uses, 1)
    if sum(n for id_, n in uses.items() if id_ in inside) < share * sum(uses.values()):
        return "of another dominant sense"
    return None


def uses_of(word: str, source: Lexicon[Any]) -> dict[Hashable, int]:
    """Tagged uses by synset: of a word, and of those that it is an irregular form of."""
    uses = dict(source.tagged_uses(word))
    if word != word.lower():
        lemma = word.replace(" ", "_")
        written = {synset.id for synset in source.senses(word) if lemma in synset.lemmas}
        return {id_: n for id_, n in uses.items() if id_ in written}
    for base in source.base_forms(word):
        uses |= source.tagged_uses(base)
    return uses


def seen(word: str, inside: set[Hashable], source: Lexicon[Any]) -> int:
    """Tagged uses of a word inside a concept."""
    return sum(n for id_, n in source.tagged_uses(word).items() if id_ in inside)


def abbreviates(word: str, synset: AnySynset) -> bool:
    """Whether a word shortens another of its synset, or is told to be short for something.

    An abbreviation in capitals (USA) stands for nothing else when its spelling is kept.
    """
    if word.isupper():
        return False
    if re.search(r"\b(abbreviation|short for)\b", synset.gloss):
        return True
    letters = ".*".join(map(re.escape, word.lower()))
    firsts = (lemma.lower().split("_")[0] for lemma in synset.lemmas)
    return any(len(first) > len(word) and re.match(letters, first) for first in firsts)


def is_synset_name(text: str) -> bool:
    """Whether a text is a name such as `emotion.n.01`."""
    return re.fullmatch(r".+\.[nvasr]\.\d+", text) is not None
