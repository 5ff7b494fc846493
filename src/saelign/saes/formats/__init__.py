"""The formats in which SAEs are published, each recognised by its files."""

from collections.abc import Callable
from dataclasses import dataclass

from saelign.errors import FormatError, MissingFileError
from saelign.saes.formats import (
    dictionary_learning,
    gemma_scope,
    openmoss,
    saelens,
    single_file,
    sparsify,
)
from saelign.saes.formats.reading import Files, Place, SaeInfo, Tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format: how it is recognised, looked at and read.

    Attributes:
        layouts: Configuration (None: there is none) and weights, relative to the folder; the
            first that is there counts.
        inspect: What the SAE says of itself, from headers.
        load: Its tensors under our names, all that the format folds folded.
        beside: What may lie beside the weights.
    """

    layouts: tuple[tuple[str | None, str], ...]
    inspect: Callable[[Files], SaeInfo]
    load: Callable[[Files, SaeInfo, str], Tensors]
    beside: tuple[str, ...] = ()


FORMATS = {
    "gemma_scope": Format(
        layouts=((None, "params.npz"),), inspect=gemma_scope.inspect, load=gemma_scope.load
    ),
    "gemma_scope_2": Format(
        layouts=(("config.json", "params.safetensors"), (None, "params.safetensors")),
        inspect=gemma_scope.inspect_2,
        load=gemma_scope.load_2,
    ),
    "saelens": Format(
        layouts=(("cfg.json", "sae_weights.safetensors"),),
        inspect=saelens.inspect,
        load=saelens.load,
        beside=(saelens.SCALER,),
    ),
    "sparsify": Format(
        layouts=(("cfg.json", "sae.safetensors"),), inspect=sparsify.inspect, load=sparsify.load
    ),
    "dictionary_learning": Format(
        layouts=(("config.json", "ae.pt"),),
        inspect=dictionary_learning.inspect,
        load=dictionary_learning.load,
    ),
    "openmoss": Format(
        layouts=tuple(
            (config, weights)
            for config in ("hyperparams.json", "config.json")
            for weights in (
                "sae_weights.safetensors",
                "checkpoints/pruned.safetensors",
                "checkpoints/final.safetensors",
            )
        ),
        inspect=openmoss.inspect,
        load=openmoss.load,
    ),
}
"""By name; a folder is of the first whose files it holds."""

SINGLE_FILE = Format(layouts=(), inspect=single_file.inspect, load=single_file.load)


def candidates(path: Place) -> list[tuple[Format, Files]]:
    """What the SAE at `path` may be: for each format, where its files would then lie.

    Whether `path` would be the folder or its file of weights follows from the names.
    """
    return [
        (format_, files)
        for format_ in FORMATS.values()
        for config, weights in format_.layouts
        for folder in [path, *path.parents[weights.count("/") :][:1]]
        for files in [
            Files(
                path=path,
                config=None if config is None else folder / config,
                weights=folder / weights,
            )
        ]
        if path in (folder, files.weights)
    ]


def recognise(path: Place) -> tuple[Format, Files]:
    """The format of the SAE at `path`, a folder or its file of weights, and where its files lie.

    Raises:
        MissingFileError: Nothing is there, or not the files of any format.
        FormatError: A file that belongs to no format.
    """
    if not path.exists():
        raise MissingFileError(f"an SAE must be a file or a folder, {path} is not there")
    for format_, files in candidates(path):
        if files.weights.is_file() and (files.config is None or files.config.is_file()):
            return format_, files
    if path.is_dir():
        raise MissingFileError(_unrecognised(path))
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".pkl"):
        raise FormatError(
            f"an SAE must be of a known format, {path} is a pickle without the configuration that "
            f"says how to read it; known are: {_known()}"
        )
    if path.suffix == ".npz":
        return FORMATS["gemma_scope"], Files(path=path, config=None, weights=path)
    return SINGLE_FILE, Files(path=path, config=None, weights=path)


def _unrecognised(folder: Place) -> str:
    seen = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    lacking = [
        f"{lacks} to be {name}"
        for name, format_ in FORMATS.items()
        for layout in format_.layouts
        for lacks in [" and ".join(n for n in layout if n and not (folder / n).is_file())]
        if any(n and (folder / n).is_file() for n in layout)
    ]
    shown = ", ".join(seen[:8]) + (f" and {len(seen) - 8} more" if len(seen) > 8 else "")
    return (
        f"a folder with an SAE must hold the files of a known format, {folder} holds "
        f"{shown or 'nothing'}"
        + (f" and lacks {', or '.join(lacking)}" if lacking else "")
        + f"; known are: {_known()}"
    )


def _known() -> str:
    return "; ".join(
        f"{name} ("
        + " or ".join(" and ".join(part for part in layout if part) for layout in format_.layouts)
        + ")"
        for name, format_ in FORMATS.items()
    )
