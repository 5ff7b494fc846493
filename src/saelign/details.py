"""What stands behind a cell's scores, small enough to be kept: what the report draws of a cell."""

import numpy as np
from jaxtyping import Float, Float64, Int
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

from saelign.errors import DegenerateError
from saelign.similarity.canonical import check_surplus, default_n_components, leading_components
from saelign.similarity.rsa import unit_rows

N_SAMPLED = 80
"""Pairs whose similarities are kept: as many rows and columns as a picture shows."""


def cell_details(
    x: Float[np.ndarray, "pair d_x"],
    y: Float[np.ndarray, "pair d_y"],
    a: Int[np.ndarray, "pair"],
    b: Int[np.ndarray, "pair"],
    *,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Canonical correlations of a cell and the similarities that RSA compares, of some pairs.

    Args:
        x: Decoder rows of the kept pairs' features of A.
        y: Of B.
        a: Which features of A.
        b: Which of B.
        rng: Draws the pairs where there are more than 80.

    Returns:
        `canonical`: the canonical correlations that `svcca` averages, largest first; not
        there when there are too few pairs. `pairs`: the drawn pairs (A's feature, B's feature),
        ordered by clusters of A's similarities (average linkage), so that both matrices have the
        same rows. `cosine_a`, `cosine_b`: cosines of these rows, pairs above the diagonal in
        row-major order.
    """
    found: dict[str, np.ndarray] = {}
    x, y = x.astype(np.float64), y.astype(np.float64)
    k = default_n_components(len(x), x.shape[1], y.shape[1])
    if k >= 1:
        try:
            check_surplus(k, k, len(x))
            u, w = (leading_components(rows, n_components=k).basis for rows in (x, y))
        except DegenerateError:
            pass
        else:
            found["canonical"] = np.minimum(np.linalg.svd(u.T @ w, compute_uv=False), 1.0)
            found["canonical"] = found["canonical"].astype(np.float32)
    if len(x) < 3:
        return found
    sample = np.sort(rng.permutation(len(x))[:N_SAMPLED])
    cosines = [cosine_matrix(rows[sample]) for rows in (x, y)]
    order = clustered(cosines[0])
    upper = np.triu_indices(len(sample), k=1)
    found["pairs"] = np.stack([a[sample][order], b[sample][order]]).astype(np.int32)
    for side, cosine in zip("ab", cosines, strict=True):
        found[f"cosine_{side}"] = cosine[np.ix_(order, order)][upper].astype(np.float16)
    return found


def cosine_matrix(rows: Float64[np.ndarray, "row d"]) -> Float64[np.ndarray, "row row"]:
    """Cosines of all rows with all."""
    unit = unit_rows(rows, "cosine")
    return np.clip(unit @ unit.T, -1.0, 1.0)


def clustered(cosine: Float64[np.ndarray, "row row"]) -> Int[np.ndarray, "row"]:
    """An order of the rows in which those that are alike stand together."""
    distance = np.clip(1.0 - cosine, 0.0, None)
    np.fill_diagonal(distance, 0.0)
    condensed = squareform(distance, checks=False)
    tree = optimal_leaf_ordering(linkage(condensed, "average"), condensed)
    return leaves_list(tree).astype(np.int64)


def decoder_map(
    decoder: Float[np.ndarray, "feature d_model"], reason: np.ndarray
) -> Float[np.ndarray, "feature 2"]:
    """Where each feature's decoder row lies on the two first principal components.

    Of the directions (rows of unit length) of features that fire; NaN for those that never do. The
    sign of a component is that which makes its largest entry positive.
    """
    places = np.full((len(decoder), 2), np.nan, dtype=np.float32)
    alive = np.flatnonzero((reason != "dead") & (np.linalg.norm(decoder, axis=1) > 0))
    if len(alive) < 3 or decoder.shape[1] < 2:
        return places
    rows = unit_rows(decoder[alive].astype(np.float64), "cosine")
    rows -= rows.mean(axis=0)
    _, vectors = np.linalg.eigh(rows.T @ rows)
    leading = vectors[:, :-3:-1]
    leading *= np.sign(leading[np.abs(leading).argmax(axis=0), [0, 1]])
    places[alive] = rows @ leading
    return places
