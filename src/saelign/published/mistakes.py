"""What is wrong in the published method, mistake by mistake, and which of it is mended."""

from collections.abc import Iterable
from dataclasses import dataclass

from saelign.errors import StudyError, UnknownNameError

MISTAKES = {
    "1": "SVCCA keeps one component of either side (pc1)",
    "2": "scores are not calibrated against their null",
    "3": "p = #/N, and few shuffles",
    "4": "SAEs are fed what enters their block, not what leaves it",
    "5": "padding and special positions take part",
    "6": "1-to-1 keeps the lowest index, not the best-correlated",
    "7": "non-concept tokens are a list of strings",
    "8": "dead features are paired, at correlation 0",
    "12": "RSA's inner similarity is Pearson's correlation",
    "13": "all rows are shuffled, whatever their firing rates",
    "14": "rows are shuffled although partners repeat",
    "15": "features that fire two or three times take part",
    "codes": "ReLU comes before TopK: codes are dense",
    "z": "z-scores with 1e-8 beside the standard deviation, divided by n",
}
"""Numbered as docs/published.md numbers them; the two last are of the same code."""

WITHOUT_EFFECT = {
    "9": "every null run repeats what a shuffle leaves as it is",
    "10": "dense float32 copies",
    "11": "a misprinted p in one table",
}
"""Mistakes that change what it costs or how it is printed, and no number here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The published method, with some of its mistakes mended; none by default.

    Attributes:
        mended: Names of `MISTAKES`.
        filter_undone: Whether the non-concept filter does nothing, as in a later version of the
            published code (the other half of mistake 7); the logged numbers do not have it.
    """

    mended: frozenset[str] = frozenset()
    filter_undone: bool = False

    @classmethod
    def mending(cls, names: Iterable[str | int]) -> "Published":
        """The method with these mistakes mended.

        Raises:
            UnknownNameError: There is no such mistake.
            StudyError: A mistake that changes no number.
        """
        mended = {str(name) for name in names}
        for name in sorted(mended):
            if name in WITHOUT_EFFECT:
                raise StudyError(
                    f"a mistake to be mended must change a number, {name} does not "
                    f"({WITHOUT_EFFECT[name]}): leave it out"
                )
            if name not in MISTAKES:
                raise UnknownNameError.of("mistake", name, MISTAKES)
        return cls(mended=frozenset(mended))

    def makes(self, mistake: str) -> bool:
        """Whether it makes a mistake still."""
        return mistake not in self.mended

    @property
    def label(self) -> str:
        """What is mended: `as published`, `4 mended`, `1-5 mended`, `all mended`."""
        if self.filter_undone:
            return "filter undone"
        if not self.mended:
            return "as published"
        if len(self.mended) == len(MISTAKES):
            return "all mended"
        names = [name for name in MISTAKES if name in self.mended]
        if len(names) > 1 and names == list(MISTAKES)[: len(names)]:
            return f"{names[0]}-{names[-1]} mended"
        return f"{', '.join(names)} mended"


ALL_MENDED = Published(mended=frozenset(MISTAKES))


def ladder() -> tuple[list[Published], list[Published]]:
    """The method with each mistake mended alone; and with one after the other mended, in order."""
    names = list(MISTAKES)
    alone = [Published.mending([name]) for name in names]
    rungs = [Published.mending(names[: n + 1]) for n in range(len(names))]
    return alone, rungs
