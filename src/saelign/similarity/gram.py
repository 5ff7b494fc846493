"""Rows with given inner products, so that features can be compared by how they fire.

A feature's row is then its activation over all tokens, far too wide to build; measures that a
rotation does not change need only the inner products between features, a K x K matrix.
"""

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from jaxtyping import Float, Float64, Int

from saelign.correlation.feature_moments import FeatureMoments
from saelign.correlation.moments import add_products, as_csr
from saelign.errors import DegenerateError, ShapeError

NEGATIVE = 1e-10
"""Eigenvalues above minus this, in proportion to the largest, are 0 but for rounding.

Looser than the error of the decomposition: products are summed over as many as millions of tokens.
"""


def rows_of_gram(gram: Float[np.ndarray, "pair pair"]) -> Float64[np.ndarray, "pair r"]:
    """Rows whose inner products are `gram`, in as few dimensions as these need.

    The only such rows up to a rotation, so every measure that claims `rotation` is the same on
    them as on the rows that `gram` was made of. Features with equal rows come out equal up to
    rounding alone: where partners repeat, give each once and repeat its row afterwards.

    Args:
        gram: Inner products, symmetric and positive semi-definite.

    Raises:
        ShapeError: Not a square matrix.
        DegenerateError: Not finite, not symmetric, without a positive eigenvalue, or with one that
            is negative beyond rounding.

    Source: this package.
    """
    if gram.ndim != 2 or len(gram) != gram.shape[1]:
        raise ShapeError(f"gram must be a square matrix, got the shape {gram.shape}")
    gram = gram.astype(np.float64)
    if not np.isfinite(gram).all():
        raise DegenerateError("gram must be finite, got a value that is not")
    skew = float(np.abs(gram - gram.T).max(initial=0.0))
    if skew > NEGATIVE * float(np.abs(gram).max(initial=0.0)):
        raise DegenerateError(f"gram must be symmetric, got entries that differ by {skew:.3g}")
    values, vectors = scipy.linalg.eigh((gram + gram.T) / 2)
    smallest, largest = values[[0, -1]].tolist() if len(values) else (0.0, 0.0)
    if not largest > 0:
        raise DegenerateError(
            f"gram must have a positive eigenvalue, the largest of {len(gram)} is {largest:.3g}"
        )
    if smallest < -NEGATIVE * largest:
        raise DegenerateError(
            f"gram must be positive semi-definite, got the eigenvalue {smallest:.3g} (the largest "
            f"is {largest:.3g}): no rows have such inner products"
        )
    kept = values > len(gram) * np.finfo(np.float64).eps * largest
    return vectors[:, kept] * np.sqrt(values[kept])


def activation_gram(
    acts: sp.csr_array, features: Int[np.ndarray, "pair"], *, standardise: bool = False
) -> Float64[np.ndarray, "pair pair"]:
    """Inner products over tokens of the centred activations of some features.

    Their covariances times the number of tokens. From sparse products, so that the cost is the
    number of co-firings. Cosines of the `rows_of_gram` of it are Pearson correlations.

    Args:
        acts: Tokens x features.
        features: Columns of `acts`, in the order of the result.
        standardise: Whether each feature is first scaled to unit variance; the result is then the
            Pearson correlations times the number of tokens.

    Raises:
        ShapeError: A feature that is no column of `acts`, or no token.
        ActivationError: An activation that is not finite.
        DegenerateError: A feature is constant over tokens, as one that never fires.

    Source: this package.
    """
    n_tokens, d_sae = acts.shape
    if n_tokens == 0:
        raise ShapeError("there must be at least one token to sum over, got none")
    outside = (features < 0) | (features >= d_sae)
    if outside.any():
        raise ShapeError(
            f"features must be columns of acts, 0 to {d_sae - 1}, got {features[outside][0]}"
        )
    chosen = as_csr(acts[:, features])
    moments = FeatureMoments.of(chosen)
    constant = moments.centred_squares == 0
    if constant.any():
        raise DegenerateError(
            f"features must vary over tokens, feature {features[constant][0]} is constant over all "
            f"{n_tokens}: leave it out"
        )
    gram = np.zeros((len(features), len(features)))
    add_products(chosen.tocsc(), chosen, gram)
    gram -= np.outer(moments.total, moments.total) / n_tokens
    gram = (gram + gram.T) / 2
    if not standardise:
        return gram
    length = np.sqrt(np.diagonal(gram))
    gram = gram * (n_tokens / np.outer(length, length))
    np.fill_diagonal(gram, float(n_tokens))
    return gram
