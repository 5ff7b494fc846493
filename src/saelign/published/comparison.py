"""A finished run beside the printed numbers, cell by cell."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from saelign.concepts.concept import plain
from saelign.errors import DegenerateError, MissingFileError, StudyError
from saelign.published.tables import (
    ALL,
    CONCEPTS,
    LAN,
    MODELS,
    SON,
    PrintedCell,
    PrintedValue,
    layers_at,
    printed_cells,
    printed_values,
)
from saelign.results import TRAINED, Run, strictest

PEARSON = "rsa(inner=pearson)"
"""The label of the published RSA."""

MEASURES = {"pc1": "pc1", PEARSON: "rsa", "svcca": "svcca", "rsa": "rsa_cosine"}
"""Measures of a run, and what their columns are called: the two printed ones, two corrected."""

OURS = {"one_to_one": "one_to_one", "many_to_one": "one_to_many"}
"""A printed matching and ours where the sides are the same: theirs gives B's features partners."""

SWAPPED = {"one_to_one": "one_to_one", "many_to_one": "many_to_one"}
"""The same where the run's A is their B."""

QUANTITIES = {
    "pc1_svcca": "pc1",
    "pc1_svcca_null_mean": "pc1_null_mean",
    "rsa": "rsa",
    "mean_corr_all": "mean_corr_all",
    "mean_corr_kept": "mean_corr_kept",
}
"""Quantities of single values, and the columns that hold ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two models that a paper compared, as a run holds them.

    Attributes:
        model_a: Their A, as `MODELS` calls it.
        model_b: Their B.
        is_swapped: Whether the run's A is their B.
    """

    model_a: str
    model_b: str
    is_swapped: bool

    def side(self, letter: str) -> str:
        """The run's side that is their A (`a`) or B (`b`)."""
        return "ba"["ab".index(letter)] if self.is_swapped else letter

    @property
    def matchings(self) -> Mapping[str, str]:
        """Our matching for each of theirs."""
        return SWAPPED if self.is_swapped else OURS

    def in_their_order(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table of the run with the layers of their A and B."""
        if not self.is_swapped:
            return table
        return table.rename(columns={"layer_a": "layer_b", "layer_b": "layer_a"})


def recognised(name: str) -> str | None:
    """Which of the published models a name or a folder stands for; None if none.

    >>> recognised("EleutherAI/pythia-70m"), recognised("models/google/gemma-2b"), recognised("A")
    ('pythia-70m', 'gemma-2b', None)
    """
    path = "/" + re.sub(r"models--([^/]+?)--", r"\1/", name.replace("\\", "/")).rstrip("/")
    path = re.sub(r"/snapshots/[^/]+$", "", path).lower()
    for short, (on_hub, _) in MODELS.items():
        if path.endswith(f"/{on_hub.lower()}"):
            return short
    return None


def pair_of(run: Run) -> Pair | None:
    """The published pair that a run compares, in either order; None if there is no such pair."""
    a, b = (recognised(str(run.info["models"][side]["name"])) for side in ("a", "b"))
    known = {
        (printed.model_a, printed.model_b) for printed in (*printed_cells(), *printed_values())
    }
    if (a, b) in known:
        return Pair(model_a=str(a), model_b=str(b), is_swapped=False)
    if (b, a) in known:
        return Pair(model_a=str(b), model_b=str(a), is_swapped=True)
    return None


def check_pair(run: Run) -> Pair:
    """The published pair that a run compares.

    Raises:
        StudyError: The papers did not compare these models; says which they did.
    """
    pair = pair_of(run)
    if pair is not None:
        return pair
    known = [
        f"{MODELS[a][0]} with {MODELS[b][0]} ({source})"
        for a, b, source in dict.fromkeys(
            (printed.model_a, printed.model_b, source)
            for source, table in ((LAN, printed_cells()), (SON, printed_values()))
            for printed in table
        )
    ]
    a, b = (run.info["models"][side]["name"] for side in ("a", "b"))
    raise StudyError(
        f"a run must compare two models that a paper compared, {run.folder} compares {a} with {b}; "
        f"published are {', '.join(known)}: compare one of these, or give --preset to compute the "
        "published method on this run"
    )


def check_run(run: Run) -> None:
    """Refuse a run that cannot be set beside printed numbers.

    Raises:
        MissingFileError: It has no study.yaml.
        DegenerateError: It has neither of the two printed measures.
    """
    if not (run.folder / "study.yaml").is_file():
        raise MissingFileError(
            f"a run's folder must hold study.yaml, {run.folder} does not: run the study again"
        )
    there = set(run.scores["measure"])
    if not there & {"pc1", PEARSON}:
        raise DegenerateError(
            "a run must hold a measure that was published, pc1 or rsa with Pearson's correlation "
            f"inside, {run.folder} holds {', '.join(sorted(there))}: add `- pc1` and "
            "`- rsa: {inner: pearson}` to measures and run the study again"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A run beside the printed numbers.

    Attributes:
        pair: The models.
        cells: A row for each printed cell that the run has: what was printed (`printed_...`), ours,
            and ours minus printed (`..._difference`).
        values: A row for each printed value that the run has a layer pair for.
        n_printed: How many cells and values were printed for these models.
        notes: What a reader ought to know, such as what the run lacks.
    """

    pair: Pair
    cells: pd.DataFrame
    values: pd.DataFrame
    n_printed: int
    notes: list[str]


def beside_printed(run: Run) -> Comparison:
    """A finished run beside the numbers that were printed for its models.

    A printed layer L is the SAE of layer L, and is set against ours of the same SAE, hence of the
    same decoder rows; the printed one was fed `hidden_states[L]`, which enters block L, ours what
    passes the site that the run reads. Scores are means over runs; p and q are of the null that
    verdicts are taken from.

    Raises:
        StudyError: The papers did not compare these models.
        MissingFileError: No study.yaml.
        DegenerateError: Neither of the printed measures.
    """
    check_run(run)
    pair = check_pair(run)
    ours = ours_of(run, pair)
    printed = [c for c in printed_cells() if (c.model_a, c.model_b) == (pair.model_a, pair.model_b)]
    ours_at: Mapping[Any, Any] = ours.to_dict(orient="index")
    rows = [
        {**cell_row(cell, pair), **beside(cell, cast("dict[str, Any]", ours_at[key]))}
        for cell in printed
        if (key := cell_key(cell)) in ours_at
    ]
    values = [v for v in printed_values() if (v.model_a, v.model_b) == (pair.model_a, pair.model_b)]
    found = [row for value in values for row in value_rows(value, ours)]
    if not rows and not found:
        told = "; ".join(
            f"{name} {', '.join(map(str, sorted({getattr(c, f'layer_{side}') for c in printed})))}"
            for side, name in (("a", pair.model_a), ("b", pair.model_b))
        )
        raise StudyError(
            "a run must hold layers and matchings that were printed, "
            f"{run.folder} holds none: choose among layers {told}, and among the matchings "
            f"{', '.join(pair.matchings.values())}"
        )
    return Comparison(
        pair=pair,
        cells=pd.DataFrame(rows),
        values=pd.DataFrame(found),
        n_printed=len(printed) + len(values),
        notes=notes_of(run, pair),
    )


def cell_key(cell: PrintedCell) -> tuple[str, str, int, int]:
    """Where ours of a printed cell stands."""
    return cell.matching, plain(cell.subspace), cell.layer_a, cell.layer_b


def cell_row(cell: PrintedCell, pair: Pair) -> dict[str, Any]:
    """What was printed of a cell, and which of ours it is set against."""
    first, second = (
        (cell.layer_b, cell.layer_a) if pair.is_swapped else (cell.layer_a, cell.layer_b)
    )
    return {
        "source": LAN,
        "model_a": cell.model_a,
        "model_b": cell.model_b,
        "matching": cell.matching,
        "subspace": cell.subspace,
        "layer_a": cell.layer_a,
        "layer_b": cell.layer_b,
        "our_matching": pair.matchings[cell.matching],
        "our_layer_a": first,
        "our_layer_b": second,
        "n_shuffles": cell.n_shuffles,
        "printed_n_pairs": cell.n_pairs,
        "printed_mean_corr_all": cell.mean_corr_all,
        "printed_mean_corr_kept": cell.mean_corr_kept,
        "printed_pc1": cell.pc1,
        "printed_pc1_null_mean": cell.pc1_null_mean,
        "printed_pc1_p": cell.pc1_p,
        "printed_pc1_p_least": cell.least_p(cell.pc1_p),
        "printed_rsa": cell.rsa,
        "printed_rsa_null_mean": cell.rsa_null_mean,
        "printed_rsa_p": cell.rsa_p,
        "printed_rsa_p_least": cell.least_p(cell.rsa_p),
    }


COMPARED = (
    "n_pairs",
    "mean_corr_all",
    "mean_corr_kept",
    "pc1",
    "pc1_null_mean",
    "rsa",
    "rsa_null_mean",
)
"""Quantities that are printed and that we have."""


def beside(cell: PrintedCell, ours: Mapping[Any, Any]) -> dict[str, Any]:
    """Ours of a cell, and ours minus printed."""
    return dict(ours) | {
        f"{name}_difference": ours[name] - getattr(cell, name) for name in COMPARED
    }


def ours_of(run: Run, pair: Pair) -> pd.DataFrame:
    """A row for each matching (as printed), subspace and layer pair (in their order) of a run."""
    scores = run.summary if run.info["seeds"][1:] else run.scores
    cells = run.cells.assign(subspace=ALL)
    if run.has_subspaces:
        by = ["control", "metric", "layer_a", "layer_b", "matching", "subspace", "measure", "null"]
        inside = run.subspace_scores
        means = inside.groupby(by, sort=False).agg(
            score=("score", "mean"),
            null_mean=("null_mean", "mean"),
            calibrated=("calibrated", "mean"),
            p=("p", lambda p: p.iloc[0] if len(p) == 1 else np.nan),
            q=("q", lambda q: q.iloc[0] if len(q) == 1 else np.nan),
        )
        scores = pd.concat([scores, means.reset_index()])
        cells = pd.concat([cells, run.subspaces])
    scores, cells = (
        pair.in_their_order(t[(t["control"] == TRAINED) & (t["metric"] == run.metrics[0])])
        for t in (scores, cells)
    )
    theirs = {ours: name for name, ours in pair.matchings.items()}
    keys = ["matching", "subspace", "layer_a", "layer_b"]

    def keyed(table: pd.DataFrame) -> pd.DataFrame:
        table = table[table["matching"].isin(list(theirs))]
        return table.assign(
            matching=table["matching"].map(theirs), subspace=table["subspace"].map(plain)
        )

    cells = keyed(cells).groupby(keys, sort=False)
    columns: dict[str, Any] = {
        name: cells[ours].mean()
        for name, ours in (
            ("n_pairs", "n_kept"),
            ("mean_corr_all", "mean_correlation"),
            ("mean_corr_kept", "mean_correlation_kept"),
        )
    }
    table = pd.DataFrame(columns)
    scores = keyed(scores)
    nulls = list(scores["null"].unique())
    plain_null = "shuffle" if "shuffle" in nulls else strictest(nulls)
    for label, name in MEASURES.items():
        of_measure = scores[scores["measure"] == label].set_index([*keys, "null"])
        printed_null, strict = (
            (of_measure.xs(null, level="null") for null in (plain_null, strictest(nulls)))
            if len(of_measure)
            else (of_measure.droplevel("null"),) * 2
        )
        table[name] = printed_null["score"].reindex(table.index)
        table[f"{name}_null_mean"] = printed_null["null_mean"].reindex(table.index)
        table[f"{name}_calibrated"] = printed_null["calibrated"].reindex(table.index)
        table[f"{name}_p"] = strict["p"].reindex(table.index)
        table[f"{name}_q"] = strict["q"].reindex(table.index)
    return table


def value_rows(value: PrintedValue, ours: pd.DataFrame) -> Iterable[dict[str, Any]]:
    """A printed value beside ours of the layer pairs that it stands for; none if there are none."""
    column = QUANTITIES[value.quantity]
    for matching in ("one_to_one", "many_to_one"):
        if value.matching not in (matching, "both"):
            continue
        of_matching = ours[ours.index.get_level_values("matching") == matching]
        layers_a, layers_b = (
            sorted({int(n) for n in of_matching.index.get_level_values(f"layer_{side}")})
            for side in "ab"
        )
        if not layers_a:
            continue
        at_a = layers_at(value.place_a, layers_a, value.model_a)
        at_b = layers_at(value.place_b, layers_b, value.model_b)
        is_edge = value.place_a == value.place_b == "edge"
        chosen = [
            of_matching.loc[key, column]
            for key in of_matching.index
            if is_subspace(value.subspace, key[1])
            and (
                (key[2] in at_a or key[3] in at_b)  # the border of the grid
                if is_edge
                else (key[2] in at_a and key[3] in at_b)
            )
        ]
        found = np.array([n for n in chosen if not np.isnan(n)], dtype=float)
        if len(found) == 0:
            continue
        low, high = float(found.min()), float(found.max())
        if value.how == "peak":
            low = high
        elif value.how == "mean":
            low = high = float(found.mean())
        yield {
            "source": SON,
            "table": value.table,
            "model_a": value.model_a,
            "model_b": value.model_b,
            "matching": matching,
            "place_a": value.place_a,
            "place_b": value.place_b,
            "subspace": value.subspace,
            "quantity": value.quantity,
            "stands_for": value.how,
            "printed": value.value,
            "printed_low": value.low,
            "printed_high": value.high,
            "low": low,
            "high": high,
            "n_layer_pairs": len(found),
            "difference": gap(value, low, high),
            "note": value.note,
        }


def gap(value: PrintedValue, low: float, high: float) -> float:
    """How far ours lie outside what was printed: above positive, below negative, 0 inside.

    The end that lies further outside counts.
    """
    above = 0.0 if value.high is None else max(0.0, high - value.high)
    below = 0.0 if value.low is None else min(0.0, low - value.low)
    return above if above >= -below else below


def is_subspace(printed: str, ours: str) -> bool:
    """Whether a subspace of a run (its name plain) is one that a printed value tells of.

    >>> is_subspace("emotions+time (union)", "time+emotions"), is_subspace("concepts", "biology")
    (True, True)
    """
    if printed == ALL or ours == ALL:
        return printed == ours
    single = {plain(name) for name in CONCEPTS.values()} | {"monthnames"}
    if printed in ("concepts", "several concepts"):
        return ours in single
    named, _, kind = printed.partition(" (")
    if kind.startswith("multi"):
        return ours == plain("".join(CONCEPTS[name] for name in named.split(" x ")))
    parts = {plain(CONCEPTS[name]) for name in named.split("+")}
    return set(ours.split("+")) == parts


def notes_of(run: Run, pair: Pair) -> list[str]:
    """What a reader ought to know: which of ours stands beside what, and what the run lacks."""
    names = {side: str(run.info["models"][side]["name"]) for side in ("a", "b")}
    notes = [
        f"their {letter.upper()} is model {pair.side(letter).upper()} of the run, "
        f"{names[pair.side(letter)]}"
        for letter in ("a", "b")
    ]
    notes += [
        f"{names[pair.side(letter)]} is not the name of a model on the hub: if it is a stand-in, "
        "differences say nothing about the papers"
        for letter, name in (("a", pair.model_a), ("b", pair.model_b))
        if names[pair.side(letter)].lower() != MODELS[name][0].lower()
    ]
    sites = {
        str(run.info["models"][side].get("site", {}).get("name", "resid_post")) for side in "ab"
    }
    read = "the output of block L" if sites == {"resid_post"} else ", ".join(sorted(sites))
    notes.append(
        "layer L: the SAE of layer L. It was fed hidden_states[L], the output of block L - 1; ours "
        f"is fed {read}"
    )
    notes.append(
        "their many_to_one gives each feature of their B its best of their A: our "
        f"{pair.matchings['many_to_one']}"
    )
    lacking = sorted(set(pair.matchings.values()) - set(run.cells["matching"]))
    if lacking:
        notes.append(f"the run lacks the matching {', '.join(lacking)}: add it for those cells")
    for label, name in MEASURES.items():
        if label not in set(run.scores["measure"]):
            spelled = "- rsa: {inner: pearson}" if label == PEARSON else f"- {name.split('_')[0]}"
            notes.append(f"the run lacks the measure {label}: add `{spelled}` to measures")
    return notes
