"""What is needed to compute a number again: versions, machine, hashes."""

import hashlib
import importlib.metadata
import json
import platform
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("saelign", "numpy", "scipy", "numba", "pandas", "torch", "transformers", "safetensors")
"""Packages whose version can change a number."""


def versions() -> dict[str, str]:
    """Version of Python and of every package that can change a number."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, str]:
    """System and processor."""
    return {"system": platform.platform(), "processor": platform.processor() or platform.machine()}


def command() -> str:
    """The command line that this process was started with."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


def sha256_of_file(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """Hash of a value that JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
