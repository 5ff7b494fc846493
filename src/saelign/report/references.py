"""What a run computed, by name and source, with BibTeX of what it used."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ENTRIES = {
    "lan2024": """@article{lan2024,
  title = {Quantifying Feature Space Universality Across Large Language Models via Sparse Autoencoders},
  author = {Lan, Michael and Torr, Philip and Meek, Austin and Khakzar, Ashkan and Krueger, David and Barez, Fazl},
  journal = {arXiv preprint arXiv:2410.06981},
  year = {2024}
}""",
    "son2025": """@article{son2025,
  title = {Semantic Convergence: Investigating Shared Representations Across Scaled {LLMs}},
  author = {Son, Daniel and Rathore, Sanjana and Rufail, Andrew and Simon, Adrian and Zhang, Daniel and Dave, Soham and Blondin, Cole and Zhu, Kevin and O'Brien, Sean},
  journal = {arXiv preprint arXiv:2507.22918},
  year = {2025}
}""",
    "raghu2017": """@inproceedings{raghu2017,
  title = {{SVCCA}: Singular Vector Canonical Correlation Analysis for Deep Learning Dynamics and Interpretability},
  author = {Raghu, Maithra and Gilmer, Justin and Yosinski, Jason and Sohl-Dickstein, Jascha},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2017}
}""",
    "morcos2018": """@inproceedings{morcos2018,
  title = {Insights on Representational Similarity in Neural Networks with Canonical Correlation},
  author = {Morcos, Ari S. and Raghu, Maithra and Bengio, Samy},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2018}
}""",
    "kriegeskorte2008": """@article{kriegeskorte2008,
  title = {Representational Similarity Analysis -- Connecting the Branches of Systems Neuroscience},
  author = {Kriegeskorte, Nikolaus and Mur, Marieke and Bandettini, Peter},
  journal = {Frontiers in Systems Neuroscience},
  volume = {2},
  year = {2008}
}""",
    "kornblith2019": """@inproceedings{kornblith2019,
  title = {Similarity of Neural Network Representations Revisited},
  author = {Kornblith, Simon and Norouzi, Mohammad and Lee, Honglak and Hinton, Geoffrey},
  booktitle = {International Conference on Machine Learning},
  year = {2019}
}""",
    "schonemann1966": """@article{schonemann1966,
  title = {A Generalized Solution of the Orthogonal {Procrustes} Problem},
  author = {Sch{\\"o}nemann, Peter H.},
  journal = {Psychometrika},
  volume = {31},
  number = {1},
  pages = {1--10},
  year = {1966}
}""",
    "huh2024": """@inproceedings{huh2024,
  title = {The {Platonic} Representation Hypothesis},
  author = {Huh, Minyoung and Cheung, Brian and Wang, Tongzhou and Isola, Phillip},
  booktitle = {International Conference on Machine Learning},
  year = {2024}
}""",
    "mantel1967": """@article{mantel1967,
  title = {The Detection of Disease Clustering and a Generalized Regression Approach},
  author = {Mantel, Nathan},
  journal = {Cancer Research},
  volume = {27},
  pages = {209--220},
  year = {1967}
}""",
    "kaziaoual1995": """@article{kaziaoual1995,
  title = {Refined Approximations to Permutation Tests for Multivariate Inference},
  author = {Kazi-Aoual, F. and Hitier, S. and Sabatier, R. and Lebreton, J.-D.},
  journal = {Computational Statistics \\& Data Analysis},
  volume = {20},
  pages = {643--656},
  year = {1995}
}""",
    "benjamini1995": """@article{benjamini1995,
  title = {Controlling the False Discovery Rate: A Practical and Powerful Approach to Multiple Testing},
  author = {Benjamini, Yoav and Hochberg, Yosef},
  journal = {Journal of the Royal Statistical Society: Series B},
  volume = {57},
  number = {1},
  pages = {289--300},
  year = {1995}
}""",
}

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

NULLS = {
    "shuffle": "partners relabelled at random",
    "rate_matched": "partners relabelled among features that fire about as often",
    "same_size": "random features, as many and as frequent as those of the concept, matched alike",
}


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
        found.append(
            {"name": null, "called": "null", "what": NULLS.get(null, ""), "keys": ["lan2024"]}
        )
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
            "what": "(1 + shuffles that reach the score) / (1 + shuffles), or Cantelli's bound from "
            "exact moments where it is smaller and no shuffle reaches the score",
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
                "what": "features whose top words are a concept's keywords, matched among themselves",
                "keys": ["lan2024", "son2025"],
            }
        )
    return found


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
    return "\n\n".join([own, *(ENTRIES[key] for key in keys)]) + "\n"
