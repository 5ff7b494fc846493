"""Concepts: named lists of keywords, and where they come from.

    emotions = saelign.concepts.load_concept("Emotions")
    both = saelign.concepts.union([emotions, saelign.concepts.load_concept("Time")])
    mine = saelign.concepts.build_concept(
        "Feelings", ["emotion.n.01"], source=saelign.concepts.Wordnet.find()
    )
    table = saelign.concepts.features_of([emotions, mine], acts, tokens, tokenizer)

Names are imported when they are first used, for reading WordNet needs nothing but Python.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saelign.concepts.building import Built, build, build_concept
    from saelign.concepts.checking import Findings, check_concept
    from saelign.concepts.concept import (
        Concept,
        Keyword,
        ProposedList,
        Recipe,
        load_concept,
        save_concept,
        shipped_concepts,
        union,
    )
    from saelign.concepts.occurrences import features_of
    from saelign.concepts.proposing import propose_concept
    from saelign.concepts.wn_library import WnLibrary, find_wordnet
    from saelign.concepts.wordnet import Synset, Wordnet

_WHERE = {
    "Built": "building",
    "Concept": "concept",
    "Findings": "checking",
    "Keyword": "concept",
    "ProposedList": "concept",
    "Recipe": "concept",
    "Synset": "wordnet",
    "WnLibrary": "wn_library",
    "Wordnet": "wordnet",
    "build": "building",
    "build_concept": "building",
    "check_concept": "checking",
    "features_of": "occurrences",
    "find_wordnet": "wn_library",
    "load_concept": "concept",
    "propose_concept": "proposing",
    "save_concept": "concept",
    "shipped_concepts": "concept",
    "union": "concept",
}

__all__ = [
    "Built",
    "Concept",
    "Findings",
    "Keyword",
    "ProposedList",
    "Recipe",
    "Synset",
    "WnLibrary",
    "Wordnet",
    "build",
    "build_concept",
    "check_concept",
    "features_of",
    "find_wordnet",
    "load_concept",
    "propose_concept",
    "save_concept",
    "shipped_concepts",
    "union",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"saelign.concepts.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
