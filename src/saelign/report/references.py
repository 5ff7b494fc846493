"""What a run computed, by name and source, with BibTeX of what it used."""

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

MEASURES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "pc1": (
        "first principal component",
        "absolute correlation of the two first principal components; both papers print it as SVCCA",
        ("lan2024",),
    ),
    "svcca": (
        "SVCCA",
        "mean canonical correlation of the leading principal components, min(20, K // 5) of them "
        "unless told otherwise",
        ("raghu2017",),
    ),
    "svcca_r2": ("SVCCA, squared", "mean squared canonical correlation", ("raghu2017",)),
    "pwcca": (
        "PWCCA",
        "canonical correlations weighted by what A's columns have of each direction",
        ("morcos2018",),
    ),
    "rsa": (
        "RSA",
        "Spearman correlation of the two K x K matrices of cosines",
        ("kriegeskorte2008", "mantel1967"),
    ),
    "cka": ("linear CKA", "centred kernel alignment", ("kornblith2019", "kaziaoual1995")),
    "procrustes": (
        "Procrustes",
        "inner product after the best rotation, both sides centred and scaled",
        ("schonemann1966",),
    ),
    "mutual_knn": (
        "mutual nearest neighbours",
        "share of each pair's nearest neighbours in A that are its neighbours in B",
        ("huh2024",),
    ),
}

NULLS: dict[str, tuple[str, tuple[str, ...]]] = {
    "shuffle": ("partners relabelled at random", ("lan2024",)),
    "rate_matched": ("partners relabelled among features that fire about as often", ()),
    "same_size": (
        "random features, as many and as frequent as those of the concept, matched alike",
        (),
    ),
}

CITED = {
    "lan2024": "Lan et al. (2024)",
    "son2025": "Son et al. (2025)",
    "raghu2017": "Raghu et al. (2017)",
    "morcos2018": "Morcos et al. (2018)",
    "kriegeskorte2008": "Kriegeskorte et al. (2008)",
    "kornblith2019": "Kornblith et al. (2019)",
    "schonemann1966": "Schönemann (1966)",
    "huh2024": "Huh et al. (2024)",
    "mantel1967": "Mantel (1967)",
    "kaziaoual1995": "Kazi-Aoual et al. (1995)",
    "benjamini1995": "Benjamini and Hochberg (1995)",
}
"""Sources as a table names them."""


def methods_of(
    measures: Sequence[str], nulls: Sequence[str], info: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Each formula that was used: its name, what it is, and the keys of its sources."""
    found = []
    for label in measures:
        name, _, options = label.partition("(")
        told = MEASURES.get(name)
        if told is not None:
            about = f"{told[1]} ({options.rstrip(')')})" if options else told[1]
            found.append({"name": label, "called": told[0], "what": about, "keys": list(told[2])})
    for null in nulls:
        what, keys = NULLS.get(null, ("", ()))
        found.append({"name": null, "called": "null", "what": what, "keys": list(keys)})
    found += [
        {
            "name": "calibrated",
            "called": "calibrated score",
            "what": "(score - null mean) / (1 - null mean): 0 at chance, 1 at best",
            "keys": [],
        },
        {
            "name": "p",
            "called": "p-value",
            "what": "(1 + shuffles that reach the score) / (1 + shuffles), or Cantelli's bound "
            "from exact moments where it is smaller and no shuffle reaches the score",
            "keys": [],
        },
        {
            "name": "q",
            "called": "corrected p-value",
            "what": "Benjamini-Hochberg over all layer pairs",
            "keys": ["benjamini1995"],
        },
    ]
    if info.get("concepts"):
        found.append(
            {
                "name": "concepts",
                "called": "semantic subspaces",
                "what": "features whose top words are keywords, matched among themselves",
                "keys": ["lan2024", "son2025"],
            }
        )
    return [{**method, "cited": [CITED[key] for key in method["keys"]]} for method in found]


def bibtex(measures: Sequence[str], nulls: Sequence[str], info: Mapping[str, Any]) -> str:
    """BibTeX of this package and of every source of what a run used."""
    version = info["versions"].get("saelign", "")
    own = (
        "@software{saelign,\n  title = {saelign: do two language models share features?},\n"
        f"  author = {{{{The saelign developers}}}},\n  version = {{{version}}}\n}}"
    )
    keys: Iterable[str] = dict.fromkeys(
        ["lan2024", "son2025"]
        + [key for method in methods_of(measures, nulls, info) for key in method["keys"]]
    )
    entries = bibtex_entries()
    return "\n\n".join([own, *(entries[key] for key in keys)]) + "\n"


def bibtex_entries() -> dict[str, str]:
    """BibTeX of every source that a run may have used, by key."""
    text = files("saelign.report").joinpath("references.bib").read_text(encoding="utf-8")
    entries = [entry.strip() for entry in text.split("\n\n")]
    return {entry.partition("{")[2].partition(",")[0]: entry for entry in entries}
