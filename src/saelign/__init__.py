"""Do two language models share features? Compared through their sparse autoencoders.

    study = saelign.load_study("study.yaml")
    run = saelign.run(study, out="results")
    run.grid("rsa", "calibrated")

For arrays of one's own, no models needed: `correlate`, `match`, `score`. Names are imported when
they are first used, so that `import saelign` costs nothing. `saelign.concepts`: lists of keywords.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saelign.correlation import Correlation, CrossMoments, correlate, correlation_of
    from saelign.errors import SaelignError
    from saelign.given import Given
    from saelign.matching import Filters, HeldOut, held_out_correlation, match
    from saelign.pipeline import run
    from saelign.plan import check
    from saelign.results import Run, open_run
    from saelign.scoring import Score, score
    from saelign.study import Study, load_study, read_study

_WHERE = {
    "Correlation": "correlation",
    "CrossMoments": "correlation",
    "Filters": "matching",
    "Given": "given",
    "HeldOut": "matching",
    "Run": "results",
    "SaelignError": "errors",
    "Score": "scoring",
    "Study": "study",
    "check": "plan",
    "correlate": "correlation",
    "correlation_of": "correlation",
    "held_out_correlation": "matching",
    "load_study": "study",
    "match": "matching",
    "open_run": "results",
    "read_study": "study",
    "run": "pipeline",
    "score": "scoring",
}

__all__ = [
    "Correlation",
    "CrossMoments",
    "Filters",
    "Given",
    "HeldOut",
    "Run",
    "SaelignError",
    "Score",
    "Study",
    "check",
    "correlate",
    "correlation_of",
    "held_out_correlation",
    "load_study",
    "match",
    "open_run",
    "read_study",
    "run",
    "score",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("saelign")
    if name == "concepts":
        return importlib.import_module("saelign.concepts")
    if name not in _WHERE:
        raise AttributeError(f"module 'saelign' has no attribute {name!r}")
    return getattr(importlib.import_module(f"saelign.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
