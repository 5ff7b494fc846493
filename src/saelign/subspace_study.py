"""What a study says under `subspaces:`."""

from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from saelign.concepts.concept import Concept, load_concept, shipped_concepts
from saelign.errors import StudyError
from saelign.matching import Filters

EVERY = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class SubspacesStudy:
    """Which semantic subspaces to look into, and which features belong to one.

    Attributes:
        concepts: Names of shipped concepts or paths of concept files; `all` shipped ones.
        unions: Lists of concepts whose features are taken together; `all` pairs.
        phrases: Pairs of concepts whose keywords are joined to phrases; `all` pairs.
        membership: `top_words`: a keyword is among the words of the largest activations. `mass`: so
            much of the activations falls on keywords.
        top_words: How many of a feature's largest activations count.
        min_share: Of a feature's activations on keywords, for `mass`.
        case: `smart`: keywords with a capital letter mean that spelling alone. `ignore`, `exact`.
        inflected: Whether regular English forms of keywords count.
        filters: Which pairs inside a subspace are kept. The study's own if None, but for shared
            tokens and the least correlation: there the concept stands for them.
        min_pairs: Subspaces with fewer pairs are not scored.
        same_size: Random groups of features, as many and as frequent, that are scored beside each.
        n_phrases: Phrases of each pair of concepts, drawn where there are more.
        min_phrases: A feature belongs to a pair's phrases when it fires on the last token of this
            share of them, and twice as often as in the text.
    """

    concepts: list[str] | Literal["all"] = "all"
    unions: list[list[str]] | Literal["all"] = field(default_factory=list)
    phrases: list[list[str]] | Literal["all"] = field(default_factory=list)
    membership: Literal["top_words", "mass"] = "top_words"
    top_words: int = 5
    min_share: float = 0.5
    case: Literal["smart", "ignore", "exact"] = "smart"
    inflected: bool = False
    filters: Filters | None = None
    min_pairs: int = 10
    same_size: int = 100
    n_phrases: int = 200
    min_phrases: float = 0.1

    def filters_in(self, study: Filters) -> Filters:
        """Which pairs are kept, given the filters of the study."""
        return self.filters or replace(study, min_shared_tokens=None, min_correlation=None)

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            StudyError: A value out of its range, or a union or phrase of other than two.
        """
        if self.concepts != EVERY and not self.concepts:
            raise StudyError("subspaces.concepts must have at least one entry, it is empty")
        for where, value, least in (
            ("top_words", self.top_words, 1),
            ("min_pairs", self.min_pairs, 3),
            ("same_size", self.same_size, 2),
            ("n_phrases", self.n_phrases, 2),
        ):
            if value < least:
                raise StudyError(f"subspaces.{where} must be at least {least}, got {value}")
        for where, value in (("min_share", self.min_share), ("min_phrases", self.min_phrases)):
            if not 0 < value <= 1:
                raise StudyError(f"subspaces.{where} must lie in (0, 1], got {value}")
        for where, groups in (("unions", self.unions), ("phrases", self.phrases)):
            for group in groups if groups != EVERY else ():
                # A phrase has an order and so can be of a concept with itself; a union cannot.
                enough = len(group) == 2 if where == "phrases" else len(set(group)) > 1
                if not enough:
                    told = "exactly two" if where == "phrases" else "two or more distinct"
                    raise StudyError(
                        f"subspaces.{where} must list groups of {told} concepts, got {group}"
                    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Subspaces:
    """The subspaces of a study, their concepts read.

    Attributes:
        study: What was asked.
        concepts: Each once, those that only unions or phrases name included.
        asked: Names of those that are looked into by themselves.
        unions: Names of concepts taken together.
        phrases: Names of the concepts of first and second words.
    """

    study: SubspacesStudy
    concepts: tuple[Concept, ...]
    asked: tuple[str, ...]
    unions: tuple[tuple[str, ...], ...]
    phrases: tuple[tuple[str, str], ...]

    @property
    def n_subspaces(self) -> int:
        """How many are scored in each layer pair."""
        singles = {name for pair in self.phrases for name in pair}
        both_orders = {*self.phrases, *((b, a) for a, b in self.phrases)}
        return len(self.asked) + len(self.unions) + len(both_orders) + len(singles)

    def told(self) -> dict[str, Any]:
        """What `run.json` says of them: each concept's version, size and words."""
        return {
            concept.name: {"version": concept.version, "keywords": concept.words}
            for concept in self.concepts
        }


def read_subspaces(study: SubspacesStudy, folder: Path) -> Subspaces:
    """The subspaces that a study asks for.

    Args:
        study: What it says.
        folder: Where relative paths of concept files start.

    Raises:
        SaelignError: A concept that cannot be read, two of one name, a union of a concept with
            itself, or phrases of concepts that have the same single keyword.
    """
    known: dict[str, Concept] = {}
    names: dict[str, str] = {}

    def name_of(asked: str) -> str:
        if asked not in names:
            concept = load_concept(asked, folder=folder)
            if known.get(concept.name, concept) != concept:
                raise StudyError(
                    f"concepts must have distinct names, two are called {concept.name}: rename one "
                    "in its file"
                )
            known[concept.name] = concept
            names[asked] = concept.name
        return names[asked]

    listed = list(shipped_concepts()) if study.concepts == EVERY else study.concepts
    asked = tuple(dict.fromkeys(name_of(name) for name in listed))
    pairs = list(combinations(asked, 2))
    unions = pairs
    if study.unions != EVERY:
        unions = [tuple(name_of(name) for name in group) for group in study.unions]
    phrases = pairs
    if study.phrases != EVERY:
        phrases = [(name_of(first), name_of(second)) for first, second in study.phrases]
    for group in unions:
        if len(set(group)) < len(group):
            raise StudyError(
                f"subspaces.unions must list groups of distinct concepts, {group[0]} stands twice "
                f"in {list(group)}"
            )
    for first, second in phrases:
        if len({*known[first].words, *known[second].words}) < 2:
            raise StudyError(
                f"subspaces.phrases must join two different keywords, {first} and {second} have "
                f"{known[first].words[0]!r} alone"
            )
    single = dict.fromkeys(name for pair in phrases for name in pair)
    made = [" + ".join(union) for union in dict.fromkeys(unions)]
    made += [" ".join(p) for p in dict.fromkeys(q for a, b in phrases for q in ((a, b), (b, a)))]
    made += [f"{name} alone" for name in single]
    clash = next((name for name in made if name in known or made.count(name) > 1), None)
    if clash is not None:
        raise StudyError(
            f"subspaces must have distinct names, {clash!r} would be that of a concept as well as "
            "of a union or phrase: rename the concept in its file"
        )
    return Subspaces(
        study=study,
        concepts=tuple(known.values()),
        asked=asked,
        unions=tuple(dict.fromkeys(unions)),
        phrases=tuple(dict.fromkeys(phrases)),
    )
