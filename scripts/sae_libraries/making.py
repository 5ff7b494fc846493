"""What the makers of SAEs share: inputs, weights, and the record of what a library computed.

A maker runs in its library's own environment, without saelign: this file needs numpy and torch.
"""

import argparse
import json
import platform
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

D_MODEL, D_SAE, K = 64, 256, 12
SITE = "blocks.3.hook_resid_post"
N_EXACT = 3
# Feature 0 copies the first coordinate of the input, exactly, and has the threshold 1 wherever
# there are thresholds: the last inputs are at it, the next number above and the next below.


def inputs(*, threshold: float = 1.0, zero: bool = True) -> Tensor:
    """What the SAEs read: ordinary tokens, huge and tiny ones, the zero vector, and the exact ones.

    Args:
        threshold: Where feature 0 begins to speak, in units of the input.
        zero: Whether the zero vector is among them; it has no norm to divide by.
    """
    rng = np.random.default_rng(9)
    x = rng.standard_normal((260, D_MODEL)).astype(np.float32) * 3 + 1
    x[200:220] *= 1e5
    x[220:240] *= 1e-4
    x[-N_EXACT:, 0] = [
        threshold,
        np.nextafter(np.float32(threshold), np.float32(np.inf)),
        np.nextafter(np.float32(threshold), np.float32(0)),
    ]
    if zero:
        x = np.insert(x, 240, 0, axis=0)
    return torch.from_numpy(x)


def drawn(*names: str, unit_decoder: bool = False) -> dict[str, Tensor]:
    """Weights by the field's names; decoder norms differ, but for `unit_decoder`."""
    rng = np.random.default_rng(1)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape)

    arrays = {
        "W_enc": normal(D_MODEL, D_SAE) / D_MODEL**0.5,
        "W_dec": normal(D_SAE, D_MODEL) * rng.uniform(0.1, 1, (D_SAE, 1)),
        "b_enc": normal(D_SAE),
        "b_dec": normal(D_MODEL),
        "threshold": np.abs(normal(D_SAE)),
        "b_gate": normal(D_SAE),
        "b_mag": normal(D_SAE),
        "r_mag": normal(D_SAE) / 4,
    }
    if unit_decoder:
        arrays["W_dec"] /= np.linalg.norm(arrays["W_dec"], axis=1, keepdims=True)
    arrays["W_enc"][:, 0] = arrays["W_dec"][0] = np.eye(D_MODEL)[0]
    for name in ("b_enc", "b_dec", "b_mag", "r_mag"):
        arrays[name][0] = 0
    arrays["threshold"][0], arrays["b_gate"][0] = 1, -1
    return {name: torch.from_numpy(arrays[name].astype(np.float32)) for name in names}


class Cases:
    """The SAEs that a library saved, each with what the library computes with it."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.cases: list[dict[str, Any]] = []

    def folder(self, name: str) -> Path:
        """A new folder for the files of one SAE."""
        path = self.out / name
        path.mkdir(parents=True)
        return path

    def add(
        self,
        folder: Path,
        *,
        format: str,  # noqa: A002
        architecture: str,
        options: str,
        config: str | None,
        weights: str,
        x: Tensor,
        feature_acts: Tensor,
        reconstruction: Tensor,
        scale: Tensor | float = 1.0,
        scaled_by: str = "",
        exact: bool = False,
        written_by: str = "library",
    ) -> None:
        """Note an SAE and what its library computed.

        Args:
            folder: Where its files lie.
            format: The name of the format in saelign.
            architecture: As the library calls it.
            options: What sets this one apart from others of its architecture.
            config: The file that describes it; None: there is none.
            weights: The file with its tensors.
            x: What it read.
            feature_acts: As the library has them.
            reconstruction: As the library has it.
            scale: What saelign's activations are in units of the library's.
            scaled_by: The same in words; empty where nothing is scaled.
            exact: Whether feature 0 is at its threshold, to the bit, in the last inputs.
            written_by: `library` where its own function saved the files, `layout` where they
                were written as the format's publisher lays them out.
        """
        name = f"{len(self.cases)}.npz"
        np.savez(
            self.out / name,
            x=x.numpy(),
            feature_acts=feature_acts.detach().numpy(),
            reconstruction=reconstruction.detach().numpy(),
            scale=torch.as_tensor(scale).detach().expand(D_SAE).numpy(),
        )
        self.cases.append(
            {
                "format": format,
                "architecture": architecture,
                "options": options,
                "folder": str(folder.relative_to(self.out)),
                "config": config,
                "weights": weights,
                "computed": name,
                "scaled_by": scaled_by,
                "n_exact": N_EXACT if exact else 0,
                "written_by": written_by,
            }
        )


def main(library: str, make: Callable[[Cases], None]) -> None:
    """Make all SAEs of a library in the folder named on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    torch.manual_seed(0)
    torch.set_num_threads(1)
    cases = Cases(out)
    with torch.no_grad():
        make(cases)
    about = {
        "library": library,
        "version": version(library),
        "python": platform.python_version(),
        "torch": re.sub(r"\+.*", "", torch.__version__),
        "cases": cases.cases,
    }
    (out / "cases.json").write_text(json.dumps(about, indent=1))
