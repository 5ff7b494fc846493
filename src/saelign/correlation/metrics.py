"""What features are matched by."""

from typing import Any

import numpy as np
from jaxtyping import Float64

from saelign.errors import ShapeError, UnknownNameError

METRICS = ("pearson", "cosine", "euclidean", "within_token")


def check_metric(metric: str, within: Any) -> None:
    """Refuse what is no metric, and within_token without its sums.

    Raises:
        UnknownNameError: No such metric.
        ShapeError: The metric is within_token and there are no sums per token type.
    """
    if metric not in METRICS:
        raise UnknownNameError.of("metric", metric, METRICS)
    if metric == "within_token" and within is None:
        raise ShapeError(
            "metric 'within_token' must have the sums per token type of both sides, got none: "
            "pass them as within=(TokenSums.of(acts_a, token_ids), TokenSums.of(acts_b, token_ids))"
        )


def euclidean_from(
    pearson: Float64[np.ndarray, "*any"], n_tokens: int
) -> Float64[np.ndarray, "*any"]:
    """Minus the distance between standardised activations; orders partners as Pearson does."""
    return -np.sqrt(2 * n_tokens * (1 - pearson))
