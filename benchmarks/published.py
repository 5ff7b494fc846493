"""The opponents, in the plainest way: the published procedure, and calls of general libraries.

Nothing of the package is used here, so that agreement says something.
"""

from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata

Best = tuple[np.ndarray, np.ndarray]
"""For each feature of A its best of B, and their correlation."""


def best_by_dense_product(acts_a: np.ndarray, acts_b: np.ndarray) -> Best:
    """As published: z-scores of all activations, one matrix product, the largest of each row.

    Theirs divides by the standard deviation of a sample and then by n; here both are of n.
    """
    import torch  # seconds, and only this needs it

    z = []
    for acts in (acts_a, acts_b):
        x = torch.from_numpy(acts)
        std, mean = torch.std_mean(x, dim=0, correction=0)
        z.append((x - mean) / (std + 1e-8))
    correlation = z[0].T @ z[1] / len(acts_a)
    values, best = correlation.max(dim=1)
    return best.numpy(), values.numpy()


def best_by_sparse_product(acts_a: sp.csr_array, acts_b: sp.csr_array) -> Best:
    """The sparse product of scipy, made a correlation where it is not zero."""
    n = acts_a.shape[0]
    products = (acts_a.T @ acts_b).tocsr()
    total_a, total_b = (np.asarray(x.sum(axis=0, dtype=np.float64)) for x in (acts_a, acts_b))
    norm_a, norm_b = (
        np.sqrt(np.asarray(x.multiply(x).sum(axis=0, dtype=np.float64)) - total**2 / n)
        for x, total in ((acts_a, total_a), (acts_b, total_b))
    )
    lengths = np.diff(products.indptr)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = products.data - total_a[rows] * (total_b / n)[products.indices]
        values /= norm_a[rows] * norm_b[products.indices]
    best, largest = np.full(len(lengths), -1), np.full(len(lengths), -np.inf)
    for row in np.flatnonzero(lengths):
        here = slice(products.indptr[row], products.indptr[row + 1])
        at = values[here].argmax()
        best[row], largest[row] = products.indices[here][at], values[here][at]
    return best, largest


def correlations_of_rows(
    acts_a: sp.csr_array, acts_b: sp.csr_array, rows: np.ndarray
) -> np.ndarray:
    """Pearson correlations of some features of A with all of B, from a dense copy, in float64."""
    chosen = acts_a[:, rows].toarray().astype(np.float64)
    chosen -= chosen.mean(axis=0)
    b = acts_b.astype(np.float64)
    n = len(chosen)
    total = np.asarray(b.sum(axis=0))
    squares = np.asarray(b.multiply(b).sum(axis=0)) - total**2 / n
    with np.errstate(divide="ignore", invalid="ignore"):
        return (b.T @ chosen).T / np.outer(np.linalg.norm(chosen, axis=0), np.sqrt(squares))


def greedy_by_sorting(similarity: np.ndarray) -> np.ndarray:
    """All pairs sorted; each is taken if both are still free."""
    n_a, n_b = similarity.shape
    order = np.argsort(-similarity, axis=None)
    free_a, free_b = np.ones(n_a, dtype=bool), np.ones(n_b, dtype=bool)
    pairs = []
    chunk = 16 * max(n_a, n_b)
    for start in range(0, len(order), chunk):
        a, b = np.divmod(order[start : start + chunk], n_b)
        still = np.flatnonzero(free_a[a] & free_b[b])
        for i, j in zip(a[still].tolist(), b[still].tolist(), strict=True):
            if free_a[i] and free_b[j]:
                free_a[i] = free_b[j] = False
                pairs.append((i, j))
        if len(pairs) == min(n_a, n_b):
            break
    return np.array(pairs)


def largest_total(similarity: np.ndarray) -> float:
    """The total of scipy's optimal assignment."""
    a, b = linear_sum_assignment(similarity, maximize=True)
    return float(similarity[a, b].sum())


def svcca_as_published(x: np.ndarray, y: np.ndarray) -> float:
    """Both sides' full SVD; components up to 99 % of the variance as their code counts it.

    A share of the variance is held against 0.99 of its sum, which for unit rows is above 1, so the
    search finds nothing and one component is left.
    """
    bases = []
    for rows in (x, y):
        u, s, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
        variance = s**2 / (len(rows) - 1)
        share = np.cumsum(variance / variance.sum())
        above = np.flatnonzero(share > 0.99 * (s**2).sum())
        k = int(above[0]) + 1 if len(above) else 1
        bases.append(u[:, :k])
    return mean_correlation(*bases)


def mean_correlation(u: np.ndarray, w: np.ndarray) -> float:
    return float(np.linalg.svd(u.T @ w, compute_uv=False).mean())


def bases_of(x: np.ndarray, y: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k components of both sides, by numpy's SVD."""
    u, w = (
        np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[0][:, :k] for rows in (x, y)
    )
    return u, w


def svcca_by_variance(x: np.ndarray, y: np.ndarray, variance: float) -> float:
    """Canonical correlations of the components that hold so much of the variance: both SVDs."""
    bases = []
    for rows in (x, y):
        u, s, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
        held = np.cumsum(s.astype(np.float64) ** 2)
        bases.append(u[:, : int(np.searchsorted(held, variance * held[-1])) + 1])
    return mean_correlation(*bases)


def svcca_by_scikit_learn(x: np.ndarray, y: np.ndarray, k: int) -> float:
    """Mean canonical correlation of the first k components: PCA and CCA of scikit-learn."""
    from sklearn.cross_decomposition import CCA
    from sklearn.decomposition import PCA

    x, y = (PCA(k, svd_solver="full").fit_transform(rows.astype(np.float64)) for rows in (x, y))
    u, w = CCA(k, max_iter=10_000, tol=1e-12).fit(x, y).transform(x, y)
    return float(np.mean([np.corrcoef(u[:, i], w[:, i])[0, 1] for i in range(k)]))


def rsa_as_published(x: np.ndarray, y: np.ndarray) -> float:
    """Two K x K Pearson matrices, the ranks of their upper triangles, their correlation."""
    above = np.triu_indices(len(x), k=1)
    ranks = [rankdata(np.corrcoef(rows)[above]) for rows in (x, y)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def rsa_by_rsatoolbox(x: np.ndarray, y: np.ndarray) -> float:
    """The same by rsatoolbox, on dissimilarities."""
    rsatoolbox = imported_rsatoolbox()
    rdms = [
        rsatoolbox.rdm.calc_rdm(rsatoolbox.data.Dataset(rows), method="correlation")
        for rows in (x.astype(np.float64), y.astype(np.float64))
    ]
    return float(rsatoolbox.rdm.compare(*rdms, method="spearman").item())


def imported_rsatoolbox() -> Any:
    """The library; what it warns of on import is not ours."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import rsatoolbox
    return rsatoolbox


def cka_by_numpy(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA by its three products."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    overlap = np.linalg.norm(x.T @ y) ** 2
    return float(overlap / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))
