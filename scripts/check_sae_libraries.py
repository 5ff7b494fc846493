"""Compare saelign's reading of SAEs with the libraries that publish them, each in an environment.

    python scripts/check_sae_libraries.py                     # docs/checks and docs/saes.md
    python scripts/check_sae_libraries.py --only sae-lens --out FOLDER

Makes an environment per library under build/sae-libraries (a few GiB, from the package index; kept
for the next time), where the library makes SAEs with random weights, saves them and computes
activations and reconstructions; then reads the files here and compares. Ends with 1 if anything
differs by more than the tolerance or a library could not be installed.
"""

import argparse
import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32

from saelign.errors import SaelignError
from saelign.saes import encode, load_sae, reconstruct
from saelign.saes.formats import dictionary_learning, openmoss, saelens
from saelign.saes.sae import SAE, before_bounds

ROOT = Path(__file__).parents[1]
MAKERS = Path(__file__).parent / "sae_libraries"
RECORD, PAGE = ROOT / "docs" / "checks" / "sae_libraries.csv", ROOT / "docs" / "saes.md"
BEGIN, END = "<!-- results -->", "<!-- /results -->"
TOLERANCE = 1e-5
"""The largest difference allowed, as a share of a token's largest value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """A library to compare with.

    Attributes:
        version: The one to install.
        maker: The script that makes SAEs with it.
        pins: Of what it needs, where its own range has come to hold what breaks it.
        without: What is taken away again of what it brings.
    """

    version: str
    maker: str
    pins: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


LIBRARIES = {
    "sae-lens": Library(version="6.54.12", maker="make_saelens.py"),
    "eai-sparsify": Library(version="1.3.3", maker="make_sparsify.py"),
    "dictionary-learning": Library(
        version="0.1.0",
        maker="make_dictionary_learning.py",
        without=(
            "torchvision",
        ),  # built for the CUDA build of torch, breaks imports beside another
    ),
    "llamascopium": Library(
        version="2.0.0b34",
        maker="make_openmoss.py",
        pins=("transformer-lens==3.9.0",),  # version 4 took away a class that it imports
    ),
}
"""By the name on the package index."""

CLAIMED = {
    "safetensors": ("standard", "jumprelu"),
    "gemma_scope": ("jumprelu",),
    "gemma_scope_2": ("jumprelu",),
    "saelens": saelens.ARCHITECTURES,
    "sparsify": ("topk",),
    "dictionary_learning": tuple(dictionary_learning.CLASSES),
    "openmoss": openmoss.ACTIVATIONS,
}
"""Formats, and the architectures that each is read in."""

WITHOUT_LIBRARY = ("safetensors",)
"""Saelign's own format: its formula is all there is to compare with."""

FORMULAS = "test_each_format_computes_the_formula_of_its_documentation"
FORMULA_TESTS = {
    ("safetensors", "standard"): "test_a_single_file_without_thresholds_is_a_relu",
    ("safetensors", "jumprelu"): "test_a_single_file_with_thresholds_is_a_jumprelu_that_takes_"
    "nothing_off_its_input",
    **{
        ("saelens", name): "test_each_saelens_architecture_computes_its_formula"
        for name in ("standard", "topk", "jumprelu")
    },
    **{
        ("saelens", name): "test_a_checkpoint_of_a_batch_topk_is_read_as_the_jumprelu_it_becomes"
        for name in ("batchtopk", "matryoshka_batchtopk")
    },
}
"""The test of the formula written out, where it is another than `FORMULAS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One SAE, read by both sides.

    Attributes:
        format: As saelign calls it.
        architecture: As the library calls it.
        options: What sets this SAE apart from others of its architecture.
        library: What computed the other side.
        version: Of the library.
        python: Under which the library ran.
        torch: With which the library ran.
        written_by: `library`, or `layout` for files written as their publisher lays them out.
        weights_sha256: Of the file with the tensors.
        config_sha256: Of the file that describes it; empty: there is none.
        hashes_repeat: Whether a second run wrote the same files, byte for byte.
        scaled_by: What the library's activations are multiplied by; empty: nothing.
        n_tokens: How many tokens both read.
        support_differs: At how many places one has an activation and the other none.
        at_bound: How many of these are within the tolerance of the bound, which are allowed.
        acts_difference: The largest difference of activations, as a share of the token's largest.
        reconstruction_difference: The same of reconstructions.
        tolerance: The largest that is allowed.
        passed: Whether all this is within it.
        note: What went wrong before anything could be compared.
    """

    format: str
    architecture: str
    options: str
    library: str
    version: str
    python: str = ""
    torch: str = ""
    written_by: str = ""
    weights_sha256: str = ""
    config_sha256: str = ""
    hashes_repeat: bool | None = None
    scaled_by: str = ""
    n_tokens: int = 0
    support_differs: int = 0
    at_bound: int = 0
    acts_difference: float = float("nan")
    reconstruction_difference: float = float("nan")
    tolerance: float = TOLERANCE
    passed: bool = False
    note: str = ""


COLUMNS = tuple(field.name for field in fields(Row))


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """What a library computed.

    Attributes:
        x: What it read.
        feature_acts: In saelign's units: scaled by what folding multiplies activations by.
        reconstruction: In the model's units.
        exact: Where a pre-activation is at or beside its bound to the bit, so that no float error
            excuses a difference.
    """

    x: Float32[np.ndarray, "token d_model"]
    feature_acts: Float[np.ndarray, "token d_sae"]
    reconstruction: Float[np.ndarray, "token d_model"]
    exact: Bool[np.ndarray, "token d_sae"]


def compare(sae: SAE, theirs: Computed) -> dict[str, Any]:
    """How far what saelign computes is from what the library did, by the columns of `Row`."""
    x = torch.from_numpy(theirs.x)
    ours = encode(sae, x).numpy().astype(np.float64)
    back = reconstruct(sae, x).numpy().astype(np.float64)
    flipped = (ours > 0) != (theirs.feature_acts > 0)
    excused = flipped & _at_bound(sae, x) & ~theirs.exact
    acts = _share(np.where(excused, theirs.feature_acts, ours), theirs.feature_acts)
    # A reconstruction without a feature at its bound is another one.
    whole = ~excused.any(axis=1)
    reconstruction = _share(back[whole], theirs.reconstruction[whole])
    return {
        "n_tokens": len(ours),
        "support_differs": int(flipped.sum()),
        "at_bound": int(excused.sum()),
        "acts_difference": acts,
        "reconstruction_difference": reconstruction,
        "passed": bool(
            (flipped == excused).all()
            and whole.mean() > 0.9
            and acts <= TOLERANCE
            and reconstruction <= TOLERANCE
        ),
    }


def _at_bound(sae: SAE, x: Float32[torch.Tensor, "token d_model"]) -> Bool[np.ndarray, "token _"]:
    # Where a pre-activation is so close to what it must exceed that float error decides.
    bare = replace(sae, k=None, activation="relu") if sae.k is not None else sae
    dense, bounds = (tensor.double() for tensor in before_bounds(bare, x))
    if sae.k is not None and sae.k < sae.d_sae:
        # Among the k largest a value must exceed the next one, and any other the k-th.
        kth, following = dense.topk(sae.k + 1, dim=1).values[:, -2:].split(1, dim=1)
        bounds = torch.where(dense >= kth, following, kth).clamp_min(0)
    largest = dense.abs().amax(dim=1, keepdim=True)
    return ((dense - bounds).abs() <= TOLERANCE * largest).numpy()


def _share(ours: Float[np.ndarray, "token _"], theirs: Float[np.ndarray, "token _"]) -> float:
    # The largest difference as a share of the token's largest value; NaN where either has one.
    difference = np.abs(ours - theirs).max(axis=1)
    largest = np.abs(theirs).max(axis=1)
    share = np.divide(difference, largest, out=np.zeros_like(difference), where=difference != 0)
    return float(share.max(initial=0))


def check(case: dict[str, Any], folder: Path, again: Path, row: Row) -> Row:
    """Read an SAE that a library saved and compare; `again` holds what a second run saved."""
    names = [case["weights"], *([case["config"]] if case["config"] else [])]
    hashes = [sha256(folder / case["folder"] / name) for name in names]
    row = replace(
        row,
        **{key: case[key] for key in ("format", "architecture", "options", "written_by")},
        scaled_by=case["scaled_by"],
        weights_sha256=hashes[0],
        config_sha256="".join(hashes[1:]),
        hashes_repeat=hashes == [sha256(again / case["folder"] / name) for name in names],
    )
    try:
        sae = load_sae(folder / case["folder"])
    except SaelignError as error:
        return replace(row, note=str(error).replace(str(folder), "…"))
    return replace(row, **compare(sae, computed_by(case, folder)))


def computed_by(case: dict[str, Any], folder: Path) -> Computed:
    """What a library computed, from the files of its maker."""
    with np.load(folder / case["computed"]) as arrays:
        acts = arrays["feature_acts"].astype(np.float64) * arrays["scale"].astype(np.float64)
        exact = np.zeros(acts.shape, dtype=bool)
        if case["n_exact"]:
            exact[-case["n_exact"] :, 0] = True
        return Computed(
            x=arrays["x"],
            feature_acts=acts,
            reconstruction=arrays["reconstruction"].astype(np.float64),
            exact=exact,
        )


def sha256(path: Path) -> str:
    """The hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def environment(name: str, folder: Path) -> Path:
    """The Python of an environment that has the library, made if there is none yet."""
    library = LIBRARIES[name]
    python = folder / "bin" / "python"
    done = folder / f"{name}-{library.version}"
    if not done.is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        # An open range would bring the CUDA build of torch with several gigabytes of libraries.
        pins = re.findall(r"(?m)^torch==.*$", (ROOT / "constraints.txt").read_text())
        constraints = folder / "constraints.txt"
        constraints.write_text("\n".join((*pins, *library.pins)) + "\n")
        pip = [python, "-m", "pip", "-q"]
        wanted = f"{name}=={library.version}"
        subprocess.run([*pip, "install", "-c", constraints, wanted], check=True)
        for package in library.without:
            subprocess.run([*pip, "uninstall", "-y", package], check=True)
        done.touch()
    return python


def make(name: str, python: Path, out: Path) -> dict[str, Any]:
    """Let a library make its SAEs in a new folder; what it says of them."""
    if out.exists():
        raise FileExistsError(f"{out} must be new")
    out.mkdir(parents=True)
    settings = {
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
        "SPARSIFY_DISABLE_TRITON": "1",
        # SAELens writes the configuration for inference in the order of a set.
        "PYTHONHASHSEED": "0",
    }
    subprocess.run(
        [python, MAKERS / LIBRARIES[name].maker, out], check=True, env=os.environ | settings
    )
    return json.loads((out / "cases.json").read_text())


def rows_of(name: str, folder: Path) -> Iterator[Row]:
    """Every SAE of a library, compared; one row that says so if there is no library to ask."""
    row = Row(format="", architecture="", options="", library=name, version=LIBRARIES[name].version)
    runs = [folder / "saes" / name / run for run in ("first", "second")]
    try:
        python = environment(name, folder / name)
        about, _ = [make(name, python, run) for run in runs]
    except subprocess.CalledProcessError as error:
        command = " ".join(Path(part).name for part in map(str, error.cmd))
        yield replace(row, note=f"could not be asked: {command} ended with {error.returncode}")
        return
    row = replace(row, **{key: about[key] for key in ("version", "python", "torch")})
    for case in about["cases"]:
        yield check(case, *runs, row)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare with every library; gives the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", action="append", choices=LIBRARIES, help="this library alone")
    parser.add_argument("--environments", type=Path, default=ROOT / "build" / "sae-libraries")
    parser.add_argument("--out", type=Path, help="where sae_libraries.csv goes, and no page")
    options = parser.parse_args(arguments)
    chosen = options.only or list(LIBRARIES)
    record = RECORD if options.out is None else options.out / RECORD.name
    rows = [row for row in recorded(record) if row["library"] not in chosen]
    fresh: list[Row] = []
    for name in chosen:
        shutil.rmtree(options.environments / "saes" / name, ignore_errors=True)
        fresh += rows_of(name, options.environments)
        print(told(name, [row for row in fresh if row.library == name]), flush=True)
    rows += [as_text(row) for row in fresh]
    rows.sort(key=lambda row: list(LIBRARIES).index(row["library"]))
    write(record, rows)
    if options.out is None:
        fill(PAGE, table(rows))
    failed = [row for row in fresh if not row.passed]
    for row in failed:
        print(f"FAILED {as_text(row)}", file=sys.stderr)
    return 1 if failed else 0


def told(name: str, rows: Sequence[Row]) -> str:
    """A line about a library."""
    passed = sum(row.passed for row in rows)
    largest = max((max(r.acts_difference, r.reconstruction_difference) for r in rows), default=0.0)
    return f"{name}: {passed} of {len(rows)} agree, largest difference {largest:.2g}"


def as_text(row: Row) -> dict[str, str]:
    """A row as it is written."""
    return {
        name: "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
        for name, value in asdict(row).items()
    }


def recorded(record: Path) -> list[dict[str, str]]:
    """The rows on record; none if there is no record."""
    if not record.is_file():
        return []
    with record.open(newline="") as file:
        return list(csv.DictReader(file))


def write(record: Path, rows: Iterable[dict[str, str]]) -> None:
    """Write the record."""
    record.parent.mkdir(parents=True, exist_ok=True)
    with record.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def table(rows: Sequence[dict[str, str]]) -> str:
    """Formats and architectures, and the check that each passed, as Markdown."""
    lines = [
        "| format | architecture | formula written out | computed by a library | difference |",
        "|---|---|---|---|---|",
    ]
    for format_, architectures in CLAIMED.items():
        for architecture in architectures:
            mine = [
                row
                for row in rows
                if (row["format"], row["architecture"]) == (format_, architecture)
            ]
            libraries = dict.fromkeys((row["library"], row["version"]) for row in mine)
            asked = "; ".join(
                f"{library} {version}: {passed} of {len(theirs)} SAEs"
                for library, version in libraries
                for theirs in [[row for row in mine if row["library"] == library]]
                for passed in [sum(row["passed"] == "True" for row in theirs)]
            )
            differences = [
                float(row[key])
                for row in mine
                for key in ("acts_difference", "reconstruction_difference")
            ]
            formula = FORMULA_TESTS.get((format_, architecture), FORMULAS)
            none = "none: saelign's own" if format_ in WITHOUT_LIBRARY else "none"
            lines.append(
                f"| {format_} | {architecture} | `{formula}` | {asked or none} "
                f"| {f'{max(differences):.1g}' if differences else ''} |"
            )
    failed = [row for row in rows if row["passed"] != "True"]
    lines += ["", f"{len(rows)} SAEs compared, {len(failed)} failed."]
    lines += [
        "- "
        + " ".join(row[key] for key in ("library", "format", "architecture", "options") if row[key])
        + f": {row['note'] or 'differs'}"
        for row in failed
    ]
    return "\n".join(lines)


def fill(page: Path, text: str) -> None:
    """Put the table between the marks of the page."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
