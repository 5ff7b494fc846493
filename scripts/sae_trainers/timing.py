"""What a training takes, told alike by every trainer's script. Needs nothing but torch."""

import importlib
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def imported(name: str) -> tuple[Any, float]:
    """A module, and the seconds that importing it took, torch included."""
    started = time.perf_counter()
    module = importlib.import_module(name)
    return module, time.perf_counter() - started


def run(package: str, import_seconds: float, train: Callable[[], Any]) -> None:
    """Train on one thread and write what it took to the file named last on the command line.

    Args:
        package: What trains, as the package index calls it.
        import_seconds: What importing it took.
        train: Trains; nothing before it is counted.
    """
    import torch

    torch.set_num_threads(1)
    wall, processor = time.perf_counter(), time.process_time()
    train()
    told = {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - processor,
        "import_seconds": import_seconds,
        "packages": len({d.name.lower() for d in importlib.metadata.distributions()}),
        "python": platform.python_version(),
        "version": importlib.metadata.version(package),
        "torch": importlib.metadata.version("torch"),
        "transformers": importlib.metadata.version("transformers"),
    }
    Path(sys.argv[-1]).write_text(json.dumps(told, indent=1) + "\n")
