"""What a run found, in sentences made from its numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from saelign.nulls import SIGNIFICANCE
from saelign.report.selection import UNTRAINED, over_runs
from saelign.report.tables import brief, with_interval
from saelign.results import TRAINED, strictest

HEADLINES = ("rsa", "svcca", "cka")
"""Measures that speak for all, the first that was run; else the first of the study."""

LOW_COVERAGE = 0.8
"""Share of the characters that different tokenizers cut alike: below it, a reader is told."""

UNSTABLE = 0.2
"""How far pc1 may differ between halves of the documents before a reader is told."""

CONTROLS_TOLD = {
    UNTRAINED: "untrained twins",
    "document_shift": "shifted documents",
    "seed_a": "A with itself through other SAEs",
    "seed_b": "B with itself through other SAEs",
}
"""Controls as a sentence names them."""

Tables = Mapping[str, pd.DataFrame | None]


def headline(measures: Sequence[str]) -> str | None:
    """The measure that the overview speaks of."""
    return next((m for m in HEADLINES if m in measures), measures[0] if measures else None)


def verdict_of(info: Mapping[str, Any], tables: Tables) -> list[str]:
    """Three sentences: matched features, decoder spaces, and what controls say of both."""
    cells, scores = tables["cells"], tables["scores"]
    if cells is None or scores is None or len(scores) == 0:
        return [
            "The run holds no scores"
            + ("." if info.get("complete") else ": it was not finished. Start it again.")
        ]
    own_metric, matching = info["metrics"][0], str(scores["matching"].iloc[0])
    null = strictest(scores["null"].unique())
    cells = cells[(cells["metric"] == own_metric) & (cells["matching"] == matching)]
    chosen = (scores["metric"] == own_metric) & (scores["matching"] == matching)
    scores = scores[chosen & (scores["null"] == null)]
    measure = headline([str(m) for m in scores["measure"].unique()])
    of_measure = scores[scores["measure"] == measure]
    return [
        features_told(cells),
        spaces_told(of_measure, str(measure), null, len(info["seeds"])),
        controls_told(cells, of_measure, str(measure)),
    ]


def features_told(cells: pd.DataFrame) -> str:
    """Where matched features correlate most on text that they were not matched on."""
    means = over_runs(
        cells[cells["control"] == TRAINED],
        ["held_out_correlation", "held_out_low", "held_out_high", "n_pairs", "n_kept"],
    )
    found = means[means["held_out_correlation"].notna()]
    if len(found) == 0:
        return "No layer pair has matched features that could be correlated on held-out text."
    peak = found.iloc[int(found["held_out_correlation"].argmax())]
    held = with_interval(peak["held_out_correlation"], peak["held_out_low"], peak["held_out_high"])
    return (
        f"Matched features go together most at layer {peak['layer_a']} of A and {peak['layer_b']} "
        f"of B: on documents that they were not matched on, the {peak['n_pairs']:,.0f} pairs "
        f"correlate at {held} on average, and {peak['n_kept']:,.0f} pass the filters."
    )


def spaces_told(scores: pd.DataFrame, measure: str, null: str, n_runs: int) -> str:
    """Where decoder spaces are most alike, and how far that is above chance."""
    own = scores[scores["control"] == TRAINED]
    scored = own[own["score"].notna()]
    if len(scored) == 0:
        return f"No layer pair kept enough pairs for {measure} to be computed."
    by = ["layer_a", "layer_b"]
    mean = scored.groupby(by)[["score", "null_mean", "calibrated", "p", "q"]].mean().reset_index()
    best = mean.iloc[int(mean["calibrated"].fillna(mean["score"]).argmax())]
    beat = scored.groupby(by)["q"].max().lt(SIGNIFICANCE).sum()
    n_cells = len(own[by].drop_duplicates())
    runs = f", mean of {n_runs} runs" if n_runs > 1 else ""
    null = null.replace("_", "-")
    if beat == 0:
        told = f"none of {n_cells} layer pairs beats chance"
    else:
        told = f"{beat} of {n_cells} layer pairs beat{'s' if beat == 1 else ''} chance"
    return (
        f"The spaces that their decoder rows span are most alike at A {best['layer_a']:.0f}, "
        f"B {best['layer_b']:.0f}: {measure} is {brief(best['score'])} where the {null} null gives "
        f"{brief(best['null_mean'])} (calibrated {brief(best['calibrated'])}, "
        f"q = {told_p(best['q'])}{runs}), and {told} after correction (q < .05)."
    )


def told_p(p: float) -> str:
    """A probability as it is told: .003, 2e-05."""
    return f"{p:.2g}".removeprefix("0")


def controls_told(cells: pd.DataFrame, scores: pd.DataFrame, measure: str) -> str:
    """How trained models stand against untrained ones, and against a model with itself."""
    there = [control for control in CONTROLS_TOLD if control in set(cells["control"])]
    if not there:
        return (
            "No control was run, so nothing here says how much two untrained models share, or a "
            "model with itself."
        )
    told = []
    for what, table, column in (
        ("held-out correlation", cells, "held_out_correlation"),
        ("within-token correlation", cells, "mean_within_token"),
        (f"calibrated {measure}", scores, "calibrated"),
    ):
        means = table.groupby("control")[column].mean()
        beside = [
            f"{brief(float(means[control]), 2)} for {CONTROLS_TOLD[control]}"
            for control in there
            if control in means.index and np.isfinite(means[control])
        ]
        own = brief(float(means.get(TRAINED, np.nan)), 2)
        listed = " and ".join([", ".join(beside[:-1]), beside[-1]] if beside[1:] else beside)
        told.append(f"{what} is {own}" + (f", against {listed}" if listed else ""))
    return f"On average over all layer pairs {'; '.join(told)}."


def warnings_told(info: Mapping[str, Any], tables: Tables) -> list[str]:
    """What a reader ought to know: what the run warned of, and what its tables show besides."""
    found = [str(w) for w in info.get("warnings", [])]
    if not info.get("complete"):
        found.insert(0, "The run was not finished: start it again, it goes on where it stopped.")
    for number, text in enumerate(info["text"]):
        share = text.get("coverage", {}).get("characters")
        if share is not None and share < LOW_COVERAGE:
            found.append(
                f"Low coverage in run {number}: the tokenizers have {share:.0%} of the characters "
                "in common units; the rest was not read."
            )
    layers = tables["layers"]
    if layers is not None and len(layers):
        own = layers[layers["model"].isin(["a", "b"])]
        share = own["n_dead"] / own["n_features"]
        worst = own[share > 0.1]
        if len(worst):
            most = own.iloc[int(share.argmax())]
            found.append(
                f"Dead features: more than a tenth in {len(worst)} of {len(own)} layers; most at "
                f"{str(most['model']).upper()} {most['layer']}, "
                f"{share.max():.0%} never fire in this text."
            )
    scores = tables["scores"]
    if scores is not None and len(scores):
        found += unstable_component(scores)
    return list(dict.fromkeys(found))


def unstable_component(scores: pd.DataFrame) -> list[str]:
    """Whether the first component is another one on each half of the documents."""
    pc1 = scores[(scores["control"] == TRAINED) & (scores["measure"] == "pc1")]
    pc1 = pc1.drop_duplicates(["run", "metric", "matching", "layer_a", "layer_b"])
    apart = (pc1["score_half_1"] - pc1["score_half_2"]).abs()
    n = int((apart > UNSTABLE).sum())
    if n == 0 or not np.isfinite(apart.max()):
        return []
    worst = pc1.iloc[int(apart.argmax())]
    return [
        f"Unstable first component: pc1 differs by more than {UNSTABLE} between halves of the "
        f"documents in {n} of {len(pc1)} cells; at A {worst['layer_a']}, B {worst['layer_b']} it "
        f"is {brief(worst['score_half_1'])} and {brief(worst['score_half_2'])}."
    ]
