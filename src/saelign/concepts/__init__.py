"""Concepts: named lists of keywords, and where they come from."""

from saelign.concepts.wordnet import Synset, Wordnet

__all__ = ["Synset", "Wordnet"]
