"""The table of measures. Adding one is a comparison in its own file and an entry here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int

from saelign.similarity.canonical import (
    check_choice,
    compare_canonically,
    compare_pc1,
    pc1,
    pwcca,
    svcca,
    svcca_r2,
)
from saelign.similarity.cka import cka, compare_cka
from saelign.similarity.neighbours import check_k, compare_neighbours, mutual_knn
from saelign.similarity.procrustes import compare_procrustes, procrustes
from saelign.similarity.rsa import check_options, compare_rsa, rsa

Invariance = Literal["rotation", "scale", "shift", "row_scale"]
"""rotation: an orthogonal map. scale: one factor for all rows. shift: one vector added to all rows.
row_scale: a positive factor for each row."""


@runtime_checkable
class Comparison(Protocol):
    """Matched rows, with everything done that a shuffle leaves as it is."""

    @property
    def components(self) -> tuple[int, int] | None:
        """Components kept on each side, where the measure keeps any."""
        ...

    def score(self) -> float:
        """The measure on the rows as they are matched."""
        ...

    def shuffled(
        self, permutations: Int[np.ndarray, "shuffle partner"]
    ) -> Float64[np.ndarray, "shuffle"]:
        """The measure after each relabelling of the partners."""
        ...

    def exact_moments(self) -> tuple[float, float] | None:
        """Mean and standard deviation over all plain shuffles, where a closed form exists."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A similarity measure and what is claimed of it.

    Attributes:
        compute: The definition, on float64 rows already known to be sound; options by keyword.
        compare: The same, factored so that shuffles are cheap: `(x, partners, **options)`.
        options: The options it takes.
        check: Raises what is wrong with values of its options, before there is any data.
        invariances: Changes to either side that leave the score as it is; the tests check each.
        source: The paper that defines it.
        invariances_y: Further changes that do when they are made to Y alone.
    """

    compute: Callable[..., float]
    compare: Callable[..., Any]
    options: frozenset[str]
    check: Callable[..., None]
    invariances: frozenset[Invariance]
    source: str
    invariances_y: frozenset[Invariance] = frozenset()


SVCCA_OPTIONS = frozenset({"n_components", "variance"})
AFFINE = frozenset[Invariance]({"rotation", "scale", "shift"})

MEASURES: dict[str, Measure] = {
    "pc1": Measure(
        compute=pc1,
        compare=compare_pc1,
        options=frozenset(),
        check=lambda: None,
        invariances=AFFINE,
        source="Lan et al. (2024), code, there called SVCCA",
    ),
    "svcca": Measure(
        compute=svcca,
        compare=lambda x, partners, **options: compare_canonically(
            x, partners, summary="mean", **options
        ),
        options=SVCCA_OPTIONS,
        check=check_choice,
        invariances=AFFINE,
        source="Raghu et al. (2017), SVCCA",
    ),
    "svcca_r2": Measure(
        compute=svcca_r2,
        compare=lambda x, partners, **options: compare_canonically(
            x, partners, summary="mean_square", **options
        ),
        options=SVCCA_OPTIONS,
        check=check_choice,
        invariances=AFFINE,
        source="Raghu et al. (2017), SVCCA; moments Kazi-Aoual et al. (1995)",
    ),
    "pwcca": Measure(
        compute=pwcca,
        compare=lambda x, partners, **options: compare_canonically(
            x, partners, summary="projection_weighted", **options
        ),
        options=SVCCA_OPTIONS,
        check=check_choice,
        invariances=frozenset({"scale", "shift"}),
        source="Morcos et al. (2018), Insights on representational similarity in neural networks "
        "with canonical correlation",
        invariances_y=frozenset({"rotation"}),
    ),
    "rsa": Measure(
        compute=rsa,
        compare=compare_rsa,
        options=frozenset({"inner", "outer"}),
        check=check_options,
        invariances=frozenset({"rotation", "scale", "row_scale"}),
        source="Kriegeskorte et al. (2008), Representational similarity analysis",
    ),
    "cka": Measure(
        compute=cka,
        compare=compare_cka,
        options=frozenset(),
        check=lambda: None,
        invariances=AFFINE,
        source="Kornblith et al. (2019), Similarity of Neural Network Representations Revisited",
    ),
    "procrustes": Measure(
        compute=procrustes,
        compare=compare_procrustes,
        options=frozenset(),
        check=lambda: None,
        invariances=AFFINE,
        source="Schönemann (1966), A generalized solution of the orthogonal Procrustes problem",
    ),
    "mutual_knn": Measure(
        compute=mutual_knn,
        compare=compare_neighbours,
        options=frozenset({"k"}),
        check=check_k,
        invariances=frozenset({"rotation", "scale", "row_scale"}),
        source="Huh et al. (2024), The Platonic Representation Hypothesis",
    ),
}
"""Every measure by name. `rsa` is claimed for its default, the cosine inner similarity."""
