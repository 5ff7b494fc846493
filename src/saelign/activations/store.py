"""One layer's sparse activations on disk: shards and the manifest that lists them.

A folder holds `manifest.json` and shards of consecutive tokens, each a safetensors file of a sparse
matrix by rows (`indptr`, `indices`, `values`). A file appears by rename, whole or not at all, and
the manifest names a shard only once it is on the disk, so a killed run leaves a folder that can be
continued. A shard's name carries its hash: two runs that write the same folder at once, whose
last bits may differ with the size of their batches, never overwrite each other's shards.
"""

import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float32, Int32, Int64, Integer, UInt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from saelign.errors import DamagedError, FormatError, MissingFileError, StorageError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_WIDEST_UINT16 = 65536
_STALE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A file of consecutive rows.

    Attributes:
        file: Its name within the folder.
        sha256: The hash of its bytes.
        n_rows: How many tokens it covers.
        n_values: How many activations are not zero.
    """

    file: str
    sha256: str
    n_rows: int
    n_values: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerActivations:
    """The sparse activations of one SAE over all kept tokens.

    Attributes:
        folder: Where the shards are.
        d_sae: How many features there are.
        n_tokens: How many rows there are when complete.
        complete: Whether all rows are there.
        shard_files: The shards, in the order of their rows.
        provenance: What the activations were computed from.
        wiring: How well the SAE fits its layer.
    """

    folder: Path
    d_sae: int
    n_tokens: int
    complete: bool
    shard_files: tuple[Shard, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    wiring: dict[str, Any] = field(default_factory=dict)

    @property
    def n_values(self) -> int:
        """How many activations are not zero."""
        return sum(shard.n_values for shard in self.shard_files)

    @property
    def n_rows(self) -> int:
        """How many rows are on the disk so far."""
        return sum(shard.n_rows for shard in self.shard_files)

    def shards(self) -> Iterator[sp.csr_array]:
        """The activations, token by feature, one shard of consecutive tokens after another.

        Raises:
            DamagedError: A shard is not there or not as it was written.
        """
        for shard in self.shard_files:
            indptr, indices, values = _read_shard(self.folder, shard)
            yield _csr(values, indices.astype(np.int32), indptr, self.d_sae)

    def concatenated(self) -> sp.csr_array:
        """All activations at once, token by feature, sparse.

        Raises:
            DamagedError: A shard is not there or not as it was written.
        """
        values = np.empty(self.n_values, dtype=np.float32)
        indices = np.empty(self.n_values, dtype=np.int32)
        indptr = np.zeros(self.n_rows + 1, dtype=np.int64)
        row = start = 0
        for shard in self.shard_files:
            shard_indptr, shard_indices, shard_values = _read_shard(self.folder, shard)
            values[start : start + shard.n_values] = shard_values
            indices[start : start + shard.n_values] = shard_indices
            indptr[row + 1 : row + 1 + shard.n_rows] = start + shard_indptr[1:]
            row, start = row + shard.n_rows, start + shard.n_values
        return _csr(values, indices, indptr, self.d_sae)


def activations_key(parts: Mapping[str, Any]) -> str:
    """The folder name under which the activations that `parts` determine are kept."""
    text = json.dumps({"format_version": FORMAT_VERSION, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def open_activations(folder: Path) -> LayerActivations:
    """The activations of a folder, complete or not; reads the manifest alone.

    Raises:
        MissingFileError: There is no manifest.
        DamagedError: The manifest cannot be read, or a shard that it names is not there.
        FormatError: It was written by a newer saelign.
    """
    path = Path(folder) / MANIFEST
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise MissingFileError(f"activations must have a {MANIFEST}, {folder} has none") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    try:
        manifest = json.loads(text)
        version = manifest["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, "is not a manifest") from error
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise FormatError(
            f"{path} has format {version}, this saelign reads up to {FORMAT_VERSION}: "
            "update saelign, or delete the folder and run again"
        )
    try:
        layer = LayerActivations(
            folder=Path(folder),
            d_sae=int(manifest["d_sae"]),
            n_tokens=int(manifest["n_tokens"]),
            complete=bool(manifest["complete"]),
            shard_files=tuple(Shard(**shard) for shard in manifest["shards"]),
            provenance=dict(manifest["provenance"]),
            wiring=dict(manifest["wiring"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"lacks or garbles an entry ({error})") from error
    if layer.complete and layer.n_rows != layer.n_tokens:
        raise _damaged(path, f"lists {layer.n_rows:,} of {layer.n_tokens:,} rows as complete")
    for shard in layer.shard_files:
        if not (layer.folder / shard.file).is_file():
            raise _damaged(layer.folder / shard.file, "is not there, though the manifest lists it")
    return layer


def write_shard(
    layer: LayerActivations,
    counts: Int64[np.ndarray, " row"],
    indices: Integer[np.ndarray, " value"],
    values: Float32[np.ndarray, " value"],
) -> LayerActivations:
    """Append rows on the disk and return the layer with them.

    Args:
        layer: What is there so far.
        counts: Non-zero activations a row.
        indices: The feature of each.
        values: The activation of each.

    Raises:
        StorageError: The disk is full or cannot be written; what was there stays usable.
    """
    narrow = np.uint16 if layer.d_sae <= _WIDEST_UINT16 else np.uint32
    indptr = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=indptr[1:])
    data = save({"indptr": indptr, "indices": indices.astype(narrow), "values": values})
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"shard-{len(layer.shard_files):05d}-{sha256[:8]}.safetensors"
    write_atomically(layer.folder / name, data)
    shard = Shard(file=name, sha256=sha256, n_rows=len(counts), n_values=len(values))
    shards = (*layer.shard_files, shard)
    complete = sum(shard.n_rows for shard in shards) == layer.n_tokens
    grown = replace(layer, shard_files=shards, complete=complete)
    write_manifest(grown)
    return grown


def write_manifest(layer: LayerActivations) -> None:
    """Write the layer's manifest, making its folder if need be.

    Raises:
        StorageError: The disk is full or cannot be written.
    """
    manifest = {
        "format_version": FORMAT_VERSION,
        "d_sae": layer.d_sae,
        "n_tokens": layer.n_tokens,
        "complete": layer.complete,
        "shards": [asdict(shard) for shard in layer.shard_files],
        "wiring": layer.wiring,
        "provenance": layer.provenance,
    }
    write_atomically(layer.folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    _remove_stale(layer.folder)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it appears whole or not at all.

    Raises:
        StorageError: The disk is full or cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StorageError(
            f"the store must be writable, cannot write {path}: {error.strerror or error}; what is "
            "stored already stays usable: free space or choose another folder, and run again"
        ) from error


def _remove_stale(folder: Path) -> None:
    # What a killed run was writing stays under its temporary name. That of another run at work is
    # seconds old.
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()


# A file is hashed once a process as long as its size and time stay the same: a grid of layer pairs
# opens each shard many times.
_verified: set[tuple[str, str, int, int]] = set()


def _read_shard(
    folder: Path, shard: Shard
) -> tuple[Int64[np.ndarray, " indptr"], UInt[np.ndarray, " value"], Float32[np.ndarray, " value"]]:
    path = folder / shard.file
    try:
        status = path.stat()
        data = path.read_bytes()
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror})") from error
    seen = (str(path), shard.sha256, status.st_size, status.st_mtime_ns)
    if seen not in _verified:
        if hashlib.sha256(data).hexdigest() != shard.sha256:
            raise _damaged(path, "is not what was written")
        _verified.add(seen)
    try:
        arrays = load(data)
        return arrays["indptr"], arrays["indices"], arrays["values"]
    except (SafetensorError, KeyError) as error:
        raise _damaged(path, f"is no shard of activations ({error})") from error


def _csr(
    values: Float32[np.ndarray, " value"],
    indices: Int32[np.ndarray, " value"],
    indptr: Int64[np.ndarray, " indptr"],
    d_sae: int,
) -> sp.csr_array:
    # scipy widens both index arrays to the wider of the two.
    if len(values) <= np.iinfo(np.int32).max:
        indptr = indptr.astype(np.int32)
    matrix = sp.csr_array((values, indices, indptr), shape=(len(indptr) - 1, d_sae))
    matrix.has_sorted_indices = True
    return matrix


def _damaged(path: Path, what: str) -> DamagedError:
    return DamagedError(
        f"stored activations must be as they were written, {path} {what}: "
        f"delete the folder {path.parent} and run again"
    )


def concatenate_parts(
    parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> tuple[Int64[np.ndarray, " row"], Integer[np.ndarray, " value"], Float32[np.ndarray, " value"]]:
    """The counts, indices and values of consecutive batches as one."""
    counts, indices, values = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return counts, indices, values
