"""Is a result robust to its SAEs? They are trained at several widths, k and seeds, and compared.

Each combination of width, k and training seed is a run of the study like any other, in a folder of
its own. A second training seed of the same model is the ceiling that scores across models are read
against: what is left between one model and itself when only the SAEs' training differs.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd

from saelign import provenance
from saelign.agreement import compared, grid
from saelign.errors import SaelignError, StudyError
from saelign.files import written
from saelign.pipeline import Progress, no_progress, run
from saelign.plan import MADE, as_yaml_reads, check_writable, model_name
from saelign.report.sweeps import write_sweep_figures
from saelign.results import TRAINED, Run, open_run, read_table, strictest, write_table
from saelign.sae_training import SAES, TrainingRecipe, train_saes
from saelign.study import Controls, OutputStudy, SeedControl, Study, TextStudy, rng_of

MOST_TOKENS = 1_000_000
"""To train an SAE on, where nobody says how many."""

FACTORS = ("width", "k", "train_seed")
"""What combinations differ in."""

LETTERS: tuple[Literal["a"], Literal["b"]] = ("a", "b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """One choice of how SAEs are trained.

    Attributes:
        width: Features of each SAE.
        k: Features active at a token, on average.
        train_seed: Of their weights and of the order of tokens.
    """

    width: int
    k: int
    train_seed: int

    @property
    def name(self) -> str:
        """Of its folders."""
        return f"w{self.width}_k{self.k}_s{self.train_seed}"


@dataclass(frozen=True, slots=True)
class Sweep:
    """The results in a sweep's folder.

    Attributes:
        folder: Where they lie; the runs in `runs/`, their SAEs in `saes/`.
        info: What `sweep.json` says: study, widths, ks, training seeds, tokens.
    """

    folder: Path
    info: dict[str, Any]

    @property
    def saes(self) -> pd.DataFrame:
        """A row for each SAE: explained variance, L0, dead share and seconds on held-out text."""
        return read_table(self.folder / "saes.parquet")

    @property
    def grids(self) -> pd.DataFrame:
        """A row for each combination, comparison, layer pair, matching and measure."""
        return read_table(self.folder / "grids.parquet")

    @property
    def combinations(self) -> pd.DataFrame:
        """A row for each combination, matching and measure: peak, means, ceilings."""
        return read_table(self.folder / "combinations.parquet")

    @property
    def moves(self) -> pd.DataFrame:
        """How far a grid moves when one of width, k and training seed changes, and no other."""
        return read_table(self.folder / "moves.parquet")


def sweep(
    study: Study,
    *,
    widths: Sequence[int],
    ks: Sequence[int],
    out: str | Path,
    train_seeds: Sequence[int] = (0, 1),
    train_tokens: int | None = None,
    train_text: TextStudy | None = None,
    memory: str | int | None = None,
    progress: Progress = no_progress,
) -> Sweep:
    """Train SAEs of both models in every combination, run the study with each, and compare.

    A sweep that was stopped goes on where it was: SAEs and runs that are there are kept.

    Args:
        study: What `load_study` returned. Its SAEs are replaced; of its controls, untrained twins
            whose SAEs are made and shifted documents stay. Verdicts and subspaces are left out.
        widths: Features of an SAE.
        ks: Features active at a token.
        out: The sweep's folder.
        train_seeds: Of the training; each but the last is also held against the next, in A and in
            B: their ceilings.
        train_tokens: Tokens to train each SAE on; if None a million, or what the text holds.
        train_text: What to train on; the study's own text if None.
        memory: What it may take, as for `run`.
        progress: Told how far it has come.

    Raises:
        StudyError: Values that are not positive or repeat, a `k` above a width, SAEs given as
            objects, one model on both sides, or a folder with another sweep.
        SaelignError: Training or a run cannot be done.
    """
    root = Path(out)
    combinations = combinations_of(widths, ks, train_seeds)
    check_models(study)
    info = {
        "study": as_yaml_reads(study),
        "study_folder": str(study.folder),
        "widths": list(widths),
        "ks": list(ks),
        "train_seeds": list(train_seeds),
        "train_tokens": train_tokens,
        "train_text": asdict(train_text or study.text),
    }
    check_writable(root, "choose another with --out")
    check_same_sweep(info, root)
    trained = []
    for number, combination in enumerate(combinations):
        of_all = f"{combination.name}, {number + 1} of {len(combinations)}"
        for letter in LETTERS:
            table = train_saes(
                recipe_of(study, letter, combination, train_tokens, train_text),
                root / "saes" / letter / combination.name,
                progress=named(progress, f"{letter.upper()} {of_all}: "),
            )
            trained.append(table.assign(model=letter, **asdict(combination)))
    saes = pd.concat(trained, ignore_index=True)
    about = ["model", *FACTORS]
    saes = saes[[*about, *(name for name in saes.columns if name not in about)]]
    write_table(saes, root / "saes.parquet", csv=True)
    grids = []
    for combination, after in with_next_seed(combinations):
        folder = root / "runs" / combination.name
        asked = study_of(study, combination, after, root)
        finished = finished_run(asked, folder) or run(
            asked, out=folder, memory=memory, progress=named(progress, f"{combination.name}: ")
        )
        grids.append(grid_table(finished).assign(**asdict(combination)))
    table = pd.concat(grids, ignore_index=True)
    write_table(table, root / "grids.parquet", csv=True)
    write_table(combination_table(table), root / "combinations.parquet", csv=True)
    rng = rng_of(study.seeds[0], "sweep")
    write_table(move_table(table, rng=rng), root / "moves.parquet", csv=True)
    write_sweep_figures(root / "figures", table, study.name)
    return Sweep(root, info)


def combinations_of(
    widths: Sequence[int], ks: Sequence[int], train_seeds: Sequence[int]
) -> list[Combination]:
    """Every combination, training seeds of a width and k one after the other.

    Raises:
        StudyError: A list that is empty or repeats, a value that cannot be, a `k` above a width.
    """
    for name, values, least in (
        ("widths", widths, 1),
        ("ks", ks, 1),
        ("train_seeds", train_seeds, 0),
    ):
        if not values or len(set(values)) < len(values) or min(values) < least:
            raise StudyError(
                f"{name} must be distinct whole numbers from {least}, at least one, got "
                f"{list(values)}"
            )
    if max(ks) > min(widths):
        raise StudyError(
            f"every k must be at most the width, got k {max(ks)} beside width {min(widths)}: leave "
            "one of them out"
        )
    return [
        Combination(width=width, k=k, train_seed=seed)
        for width, k, seed in itertools.product(widths, ks, train_seeds)
    ]


def check_models(study: Study) -> None:
    """Refuse one model on both sides.

    Raises:
        StudyError: Its SAEs would be the same on both.
    """
    a, b = study.model_a, study.model_b
    places = [(model_name(m, study.places), m.revision, m.place) for m in (a, b)]
    if places[0] == places[1]:
        raise StudyError(
            f"a sweep must compare two models, both are {a.name} at the same site: their "
            "SAEs would be the same; what one model gives against itself is in every sweep, as its "
            "ceiling"
        )


def check_same_sweep(info: dict[str, Any], out: Path) -> None:
    """Write what is swept, or refuse a folder that holds something else.

    Raises:
        StudyError: The folder holds another sweep, or files that are not a sweep.
    """
    path = out / "sweep.json"
    if not path.exists() and out.exists() and any(out.iterdir()):
        raise StudyError(
            f"a sweep's folder must be empty or hold an earlier sweep, {out} holds other files: "
            "choose another with --out"
        )
    now = json.loads(json.dumps(info, default=str))
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            before = {}
        # More widths and ks are welcome: what is there is kept.
        grows = ("widths", "ks")
        differ = sorted(k for k in now if k not in grows and now[k] != before.get(k))
        if differ:
            raise StudyError(
                f"a sweep's folder must hold an earlier sweep of the same study, {out} holds one "
                f"with another {', '.join(differ)}: choose another with --out"
            )
    with written(path) as temporary:
        temporary.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")


def recipe_of(
    study: Study,
    letter: Literal["a", "b"],
    combination: Combination,
    n_tokens: int | None,
    text: TextStudy | None,
) -> TrainingRecipe:
    """How the SAEs of a model are trained in a combination."""
    read = replace(
        text or study.text,
        tokens=MOST_TOKENS if n_tokens is None else n_tokens,
        allow_fewer=n_tokens is None,
    )
    return TrainingRecipe(
        model=study.model_a if letter == "a" else study.model_b,
        text=read,
        width=combination.width,
        k=combination.k,
        seed=combination.train_seed,
        folder=study.folder,
        models_from=study.models_from,
    )


def with_next_seed(
    combinations: Sequence[Combination],
) -> Iterator[tuple[Combination, Combination | None]]:
    """Each combination, and the one with the next training seed; None after the last."""
    for combination, after in itertools.zip_longest(combinations, combinations[1:]):
        is_next = after is not None and (after.width, after.k) == (combination.width, combination.k)
        yield combination, after if is_next else None


def study_of(study: Study, combination: Combination, after: Combination | None, out: Path) -> Study:
    """The study with the SAEs of a combination; against those of `after` each model's ceiling."""

    def saes(letter: str, of: Combination) -> str:
        return str((out / "saes" / letter / of.name).resolve() / SAES)

    models = {
        f"model_{letter}": replace(
            getattr(study, f"model_{letter}"),
            saes=saes(letter, combination),
        )
        for letter in LETTERS
    }
    twins = study.controls.untrained
    is_made = twins is not None and {twins.saes_a, twins.saes_b} <= set(MADE)
    seed = None
    if after is not None:
        seed = SeedControl(saes_a=saes("a", after), saes_b=saes("b", after))
    return replace(
        study,
        name=f"{study.name}-{combination.name}",
        **models,
        controls=Controls(
            untrained=twins if is_made else None,
            seed=seed,
            document_shift=study.controls.document_shift,
        ),
        verdicts=False,
        subspaces=None,
        output=OutputStudy(store=study.output.store),
    )


def finished_run(study: Study, folder: Path) -> Run | None:
    """The run in a folder, if it is one of this study, by this version, and done."""
    try:
        finished = open_run(folder)
    except SaelignError:
        return None
    is_same = finished.info.get("study") == as_yaml_reads(study)
    is_same &= finished.info["versions"].get("saelign") == provenance.versions()["saelign"]
    return finished if is_same else None


def grid_table(finished: Run) -> pd.DataFrame:
    """A run's scores beside its strictest null and its correlations, means over its text seeds."""
    metric = finished.metrics[0]
    summary, cells = finished.summary, finished.cells
    null = strictest(summary["null"].unique())
    summary = summary[(summary["null"] == null) & (summary["metric"] == metric)]
    by = ["control", "layer_a", "layer_b", "matching"]
    values = ["mean_correlation", "mean_within_token", "held_out_correlation", "n_kept"]
    means = cells[cells["metric"] == metric].groupby(by, sort=False)[values].mean().reset_index()
    keep = [*by, "measure", "null", "score", "null_mean", "calibrated", "p", "q"]
    return summary[keep].merge(means, on=by, validate="many_to_one")


def combination_table(grids: pd.DataFrame) -> pd.DataFrame:
    """What each combination comes to: where its peak is, how high, and under what ceilings."""
    rows = []
    for key, group in grids.groupby([*FACTORS, "matching", "measure"], sort=False):
        row = dict(zip((*FACTORS, "matching", "measure"), key, strict=True))
        own = group[group["control"] == TRAINED]
        best = highest(own)
        row |= {
            "null": own["null"].iloc[0],
            "n_cells": len(own),
            "n_beating": int((own["q"] < 0.05).sum()),
            "peak_a": None if best is None else int(best["layer_a"]),
            "peak_b": None if best is None else int(best["layer_b"]),
            "peak_score": np.nan if best is None else float(best["score"]),
            "peak_calibrated": np.nan if best is None else float(best["calibrated"]),
            "mean_calibrated": float(own["calibrated"].mean()),
            "mean_correlation": float(own["mean_correlation"].mean()),
            "mean_within_token": float(own["mean_within_token"].mean()),
            "held_out_correlation": float(own["held_out_correlation"].mean()),
        }
        for control in ("seed_a", "seed_b"):
            same = group[(group["control"] == control) & (group["layer_a"] == group["layer_b"])]
            row[f"ceiling_{control[-1]}"] = float(same["calibrated"].mean())
            row[f"ceiling_held_out_{control[-1]}"] = float(same["held_out_correlation"].mean())
        twins = group[group["control"] == "untrained"]
        row["untrained_calibrated"] = float(twins["calibrated"].mean())
        rows.append(row)
    table = pd.DataFrame(rows)
    return table.astype({"peak_a": "Int64", "peak_b": "Int64"})


def move_table(grids: pd.DataFrame, *, rng: np.random.Generator) -> pd.DataFrame:
    """How far grids of two combinations that differ in one factor are from each other.

    Returns:
        A row for each factor, two of its values, and the other factors: `spearman` over cells and
        `mean_difference` (second minus first) of the calibrated score, each with a 95 % interval
        (layers resampled), `mean_change` (mean absolute difference over cells), `peak_moved`
        (layers of A plus layers of B), and the difference of the mean held-out correlation.
    """
    own = grids[grids["control"] == TRAINED]
    rows: list[dict[str, Any]] = []
    for (matching, measure), group in own.groupby(["matching", "measure"], sort=False):
        for factor in FACTORS:
            others = [name for name in FACTORS if name != factor]
            for held, same in group.groupby(others, sort=False):
                for x, y in itertools.combinations(same[factor].unique(), 2):
                    first, second = (same[same[factor] == value] for value in (x, y))
                    about = {"factor": factor, "x": int(x), "y": int(y)}
                    levels = (int(value) for value in cast("tuple[int, ...]", held))
                    about |= dict(zip(others, levels, strict=True))
                    rows.append(
                        {"matching": matching, "measure": measure, **about, factor: None}
                        | moved(first, second, rng=rng)
                    )
    columns = [
        "factor", "x", "y", *FACTORS, "matching", "measure", "n_cells", "spearman", "low", "high",
        "mean_difference", "difference_low", "difference_high", "mean_change", "peak_moved",
        "held_out_difference",
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(FACTORS, "Int64"))


def moved(
    first: pd.DataFrame, second: pd.DataFrame, *, rng: np.random.Generator
) -> dict[str, int | float]:
    """How far the second grid is from the first; see `move_table`."""
    x, y = (grid(table, "calibrated") for table in (first, second))
    found = compared(y, x, rng=rng)  # it takes the second from the first
    peaks = [
        np.full(2, np.nan) if best is None else np.array([best["layer_a"], best["layer_b"]], float)
        for best in map(highest, (first, second))
    ]
    held = [float(table["held_out_correlation"].mean()) for table in (first, second)]
    return {
        **found,
        "mean_change": float(pd.Series((y - x).to_numpy(dtype=float).ravel()).abs().mean()),
        "peak_moved": float(np.abs(peaks[0] - peaks[1]).sum()),
        "held_out_difference": held[1] - held[0],
    }


def highest(scores: pd.DataFrame) -> "pd.Series[Any] | None":
    """The row with the largest calibrated score; None where there is none."""
    values = scores["calibrated"].to_numpy(dtype=float)
    return None if np.isnan(values).all() else scores.iloc[int(np.nanargmax(values))]


def named(progress: Progress, prefix: str) -> Callable[[str, int, int], None]:
    """Progress whose lines begin with a prefix."""
    return lambda what, done, total: progress(prefix + what, done, total)
