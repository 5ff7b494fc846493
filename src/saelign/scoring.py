"""A measure on matched rows, with what chance alone would give: never one without the other."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int

from saelign.errors import DegenerateError, ShapeError, UnknownNameError
from saelign.nulls import NULLS, draw_permutations, rate_strata
from saelign.similarity import MEASURES, Comparison, Measure
from saelign.similarity.partners import Partners, partners_of

MIN_PAIRS = 3
ROUNDING = 1e-12
"""Scores that differ by less are the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A score beside its null.

    Attributes:
        measure: Which measure, by name.
        null: Which null: `shuffle` or `rate_matched`.
        score: The measure on the rows as matched; larger is more alike.
        null_scores: The measure after each drawn shuffle.
        null_mean: What chance gives; exact over all shuffles where `exact`, else the drawn mean.
        null_sd: Its standard deviation, likewise.
        exact: Whether mean and standard deviation are exact moments rather than drawn.
        n_pairs: Matched pairs.
        n_partners: Distinct features on the repeated side; `n_pairs` in one-to-one.
        components: Components kept of the sides as given, where the measure keeps any.
    """

    measure: str
    null: str
    score: float
    null_scores: Float64[np.ndarray, "shuffle"]
    null_mean: float
    null_sd: float
    exact: bool
    n_pairs: int
    n_partners: int
    components: tuple[int, int] | None

    @property
    def n_components(self) -> int | None:
        """Canonical correlations summarised: the smaller number of components; else None."""
        return None if self.components is None else min(self.components)

    @property
    def n_permutations(self) -> int:
        """Shuffles drawn."""
        return len(self.null_scores)

    @property
    def n_reaching(self) -> int:
        """Shuffles that score as high as the matched rows, up to rounding."""
        return int((self.null_scores >= self.score - ROUNDING).sum())

    @property
    def z(self) -> float:
        """Standard deviations above the null mean; NaN when the null has no spread."""
        if not self.null_sd > ROUNDING:
            return float("nan")
        return (self.score - self.null_mean) / self.null_sd

    @property
    def p_bound(self) -> float:
        """Cantelli's bound 1 / (1 + z^2) on the p-value, from exact moments; NaN without them.

        Holds for any distribution, so unlike a fitted tail it cannot promise too much.
        """
        if not self.exact or not self.z > 0:
            return float("nan")
        return 1 / (1 + self.z**2)

    @property
    def p_value(self) -> float:
        """One-sided: (1 + shuffles reaching the score) / (1 + shuffles).

        Where no shuffle reached the score, that is only the floor that their number sets; exact
        moments then give Cantelli's bound instead if it is smaller.
        """
        drawn = (1 + self.n_reaching) / (1 + self.n_permutations)
        if self.n_reaching == 0 and self.p_bound < drawn:
            return self.p_bound
        return drawn

    @property
    def at_floor(self) -> bool:
        """Whether the p-value is as small as so few shuffles allow, and could be smaller."""
        return self.p_value == 1 / (1 + self.n_permutations)

    @property
    def calibrated(self) -> float:
        """(score - null mean) / (1 - null mean): 0 at chance, 1 at best; NaN if chance is 1."""
        room = 1 - self.null_mean
        return (self.score - self.null_mean) / room if room > 1e-9 else float("nan")


def check_measure(measure: str, options: dict[str, Any]) -> Measure:
    """The measure of that name, after its options were checked.

    Raises:
        UnknownNameError: No such measure, or the measure takes no such option.
        DegenerateError: The option takes no such value.
    """
    if measure not in MEASURES:
        raise UnknownNameError.of("measure", measure, MEASURES)
    for option in options:
        if option not in MEASURES[measure].options:
            expected = MEASURES[measure].options or {"(none)"}
            raise UnknownNameError.of(f"option of {measure}", option, expected)
    MEASURES[measure].check(**options)
    return MEASURES[measure]


def check_rows(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sides as float64, after they were found sound.

    Raises:
        ShapeError: Not two matrices of as many rows.
        DegenerateError: Fewer than 3 pairs, a value that is not finite, or all rows equal.
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ShapeError(f"rows must be matched pairs, got shapes {x.shape} and {y.shape}")
    if len(x) < MIN_PAIRS:
        raise DegenerateError(
            f"at least {MIN_PAIRS} pairs are needed to compare, got {len(x)}: loosen the filters "
            "or use more text"
        )
    for name, matrix in (("x", x), ("y", y)):
        if not np.isfinite(matrix).all():
            row = int(np.argwhere(~np.isfinite(matrix))[0][0])
            raise DegenerateError(f"{name} must be finite, got a value that is not in row {row}")
        if (matrix == matrix[0]).all():
            raise DegenerateError(f"rows must differ, all {len(matrix)} rows of {name} are equal")
    return x.astype(np.float64, copy=False), y.astype(np.float64, copy=False)


def score_comparison(
    comparison: Comparison,
    partners: Partners,
    *,
    measure: str,
    null: str,
    permutations: Int[np.ndarray, "shuffle partner"],
) -> Score:
    """A prepared comparison beside one null; shuffles are given, so that measures share them."""
    null_scores = comparison.shuffled(permutations)
    moments = comparison.exact_moments() if null == "shuffle" else None
    mean, sd = moments or (float(null_scores.mean()), float(null_scores.std(ddof=1)))
    return Score(
        measure=measure,
        null=null,
        score=comparison.score(),
        null_scores=null_scores,
        null_mean=mean,
        null_sd=sd,
        exact=moments is not None,
        n_pairs=len(partners.held),
        n_partners=len(partners.rows),
        components=comparison.components,
    )


def null_permutations(
    null: str,
    partners: Partners,
    firing_rates: Float[np.ndarray, "pair"] | None,
    *,
    n_permutations: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, "shuffle partner"]:
    """Relabellings of the distinct partners that the null of that name draws.

    Raises:
        UnknownNameError: No such null.
        DegenerateError: Fewer than 2 permutations, or `rate_matched` without firing rates or with
            rates that are not those of the features to be relabelled.
    """
    if null not in NULLS:
        raise UnknownNameError.of("null", null, NULLS)
    if n_permutations < 2:
        raise DegenerateError(f"n_permutations must be at least 2, got {n_permutations}")
    strata = None
    if null == "rate_matched":
        if firing_rates is None or len(firing_rates) != len(partners.held):
            raise DegenerateError(
                "the null rate_matched needs firing_rates, one for each pair's feature of B"
            )
        rates = np.asarray(firing_rates, dtype=np.float64)
        _, first = np.unique(partners.held, return_index=True)
        if not np.array_equal(rates, rates[first][partners.held]):  # nor is NaN equal to itself
            raise DegenerateError(
                "firing_rates must be finite, and the same for pairs that share a feature: give "
                "those of the side whose features repeat"
            )
        strata = rate_strata(rates[first])
    return draw_permutations(len(partners.rows), n_permutations, rng=rng, strata=strata)


def score(
    x: Float[np.ndarray, "pair_x d_x"],
    y: Float[np.ndarray, "pair_y d_y"],
    *,
    measure: str,
    null: str = "shuffle",
    n_permutations: int = 1000,
    rng: np.random.Generator,
    firing_rates: Float[np.ndarray, "pair_y"] | None = None,
    **options: Any,
) -> Score:
    """How alike matched rows are, beside what chance alone gives.

    Rows of one side that are equal are taken for one feature that several pairs share, as
    many-to-one matching makes them: the null then relabels distinct features and leaves the groups
    together. The repeated side is found by itself.

    Args:
        x: Rows of A, for instance decoder rows of the matched features.
        y: Rows of B, row i matched with row i of `x`.
        measure: `pc1`, `svcca`, `svcca_r2`, `pwcca`, `rsa`, `cka`, `procrustes` or `mutual_knn`.
        null: `shuffle`, or `rate_matched`: only among features that fire about as often.
        n_permutations: Shuffles to draw, at least 2.
        rng: Where randomness comes from.
        firing_rates: For `rate_matched`: how often each pair's feature of B fires (of the repeated
            side, if that is A).
        **options: The measure's own: `n_components` or `variance` (svcca, svcca_r2, pwcca),
            `inner` and `outer` (rsa), `k` (mutual_knn).

    Raises:
        UnknownNameError: No such measure, option or null.
        ShapeError: Rows that do not match.
        DegenerateError: Fewer than 3 pairs, values that are not finite, or nothing to compare.

    Source: Lan et al. (2024), sections 3 and 4; nulls by this package.
    """
    # A numpy number, as 5 taken from an array, is as good as Python's.
    options = {k: v.item() if isinstance(v, np.generic) else v for k, v in options.items()}
    entry = check_measure(measure, options)
    x, y = check_rows(x, y)
    partners = partners_of(y)
    swapped = partners.is_one_to_one and not partners_of(x).is_one_to_one
    if swapped:
        x, partners = y, partners_of(x)
    permutations = null_permutations(
        null, partners, firing_rates, n_permutations=n_permutations, rng=rng
    )
    scored = score_comparison(
        entry.compare(x, partners, **options),
        partners,
        measure=measure,
        null=null,
        permutations=permutations,
    )
    if swapped and scored.components is not None:
        return replace(scored, components=scored.components[::-1])
    return scored
