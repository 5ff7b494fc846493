"""Sums over tokens for the features of one side, from which their spread follows."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float64, Int64

from saelign.errors import ShapeError


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureMoments:
    """Sums over tokens for the features of one side.

    Attributes:
        n_tokens: Tokens summed over.
        n_active: Tokens on which each feature is active (not zero).
        total: Sum of each feature's activations.
        squares: Sum of their squares.
    """

    n_tokens: int
    n_active: Int64[np.ndarray, "feature"]
    total: Float64[np.ndarray, "feature"]
    squares: Float64[np.ndarray, "feature"]

    @classmethod
    def of(cls, acts: sp.csr_array) -> "FeatureMoments":
        """The moments of one chunk of tokens."""
        n_features = int(acts.shape[1])
        values = acts.data.astype(np.float64)
        total = np.bincount(acts.indices, weights=values, minlength=n_features)
        squares = np.bincount(acts.indices, weights=values * values, minlength=n_features)
        return cls(
            n_tokens=int(acts.shape[0]),
            n_active=np.bincount(acts.indices, minlength=n_features).astype(np.int64),
            total=total.astype(np.float64),  # of nothing at all bincount gives integers
            squares=squares.astype(np.float64),
        )

    def __add__(self, other: "FeatureMoments") -> "FeatureMoments":
        """The moments of both sets of tokens together.

        Raises:
            ShapeError: They are not moments of the same features.
        """
        if len(self.total) != len(other.total):
            raise ShapeError(
                f"chunks must have the same features, got {len(self.total)} "
                f"and then {len(other.total)}"
            )
        return FeatureMoments(
            n_tokens=self.n_tokens + other.n_tokens,
            n_active=self.n_active + other.n_active,
            total=self.total + other.total,
            squares=self.squares + other.squares,
        )

    def of_some(self, features: Int64[np.ndarray, "chosen"]) -> "FeatureMoments":
        """The moments of some features, in the order given."""
        return FeatureMoments(
            n_tokens=self.n_tokens,
            n_active=self.n_active[features],
            total=self.total[features],
            squares=self.squares[features],
        )

    @property
    def rounding(self) -> Float64[np.ndarray, "feature"]:
        """How far rounding alone can move a sum of squares less what groups of tokens explain.

        The groups are all tokens at once, or the tokens of each type. With u = eps / 2 and n active
        tokens: the sum of squares is certain to (n + 1) u of itself; the sum S over a group of m
        tokens to n u of the sum of absolute values, whose square is at most m times the group's
        sum of squares, so that S^2 / m is certain to (2 n + 3) u of that; adding the groups up
        takes n u more. In all (4 n + 4) u = (2 n + 2) eps of the sum of squares, in whatever order
        and however many chunks the tokens were added up. The 8 leaves room for higher orders.
        """
        return (8 + 2 * self.n_active) * np.finfo(np.float64).eps * self.squares

    @property
    def centred_squares(self) -> Float64[np.ndarray, "feature"]:
        """Sum of squared deviations from the mean; exactly 0 for a constant feature.

        A feature whose spread is so small beside its mean that rounding could have made it counts
        as constant.
        """
        deviations = self.squares - self.total**2 / self.n_tokens
        return np.where(deviations > self.rounding, deviations, 0.0)

    @property
    def scale(self) -> Float64[np.ndarray, "feature"]:
        """One over the root of the centred squares; NaN for a constant feature."""
        return inverse_roots(self.centred_squares)

    @property
    def cosine_scale(self) -> Float64[np.ndarray, "feature"]:
        """One over the root of the squares; NaN for a constant feature, as it is never paired."""
        return np.where(self.centred_squares > 0, inverse_roots(self.squares), np.nan)


def inverse_roots(squares: Float64[np.ndarray, "feature"]) -> Float64[np.ndarray, "feature"]:
    """One over the root of what is above 0, else NaN."""
    return 1 / np.sqrt(np.where(squares > 0, squares, np.nan))
