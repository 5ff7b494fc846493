"""What a study comes to: everything about it that can be checked without loading weights."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from saelign.activations.wiring import check_dimensions
from saelign.errors import StorageError, StudyError
from saelign.models import check_device, d_model, load_config, n_layers
from saelign.saes import inspect_sae
from saelign.study import ModelStudy, Study, path_from, study_mapping
from saelign.text import (
    Tokenizer,
    Tokens,
    check_same_tokenizer,
    draw,
    load_token_ids,
    load_tokenizer,
    read_documents,
    special_ids,
    tokenize,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a study comes to, found out without loading weights.

    Attributes:
        study: The study.
        layers_a: Layers of A to read.
        layers_b: Layers of B to read.
        tokens: For each run, what is read; drawn by its seed.
        tokenizer: Of both models.
        out: The run's folder.
        store: Where activations are kept.
    """

    study: Study
    layers_a: list[int]
    layers_b: list[int]
    tokens: list[Tokens]
    tokenizer: Tokenizer
    out: Path
    store: Path

    @property
    def n_cells(self) -> int:
        """Layer pairs times matchings times runs."""
        study = self.study
        pairs = len(self.layers_a) * len(self.layers_b)
        return pairs * len(study.matching) * len(study.seeds)

    def summary(self) -> dict[str, Any]:
        """What `saelign check` tells."""
        study = self.study
        return {
            "study": study.name,
            "model_a": {"name": study.model_a.name, "layers": self.layers_a},
            "model_b": {"name": study.model_b.name, "layers": self.layers_b},
            "tokens": [tokens.n_tokens for tokens in self.tokens],
            "masked": [tokens.masked for tokens in self.tokens],
            "cells": self.n_cells,
            "scores": self.n_cells * len(study.measures) * len(study.nulls),
            "out": str(self.out),
            "store": str(self.store),
        }


def check(study: Study, *, out: str | Path | None = None) -> Plan:
    """Find out whether a study can run, without loading weights, and what it comes to.

    Opens configurations, tokenizers, headers of SAE files and the text, and tries both folders.

    Args:
        study: What `load_study` returned.
        out: The run's folder, if not the study's own.

    Raises:
        SaelignError: Whatever of it cannot be: the message says what to do.
    """
    layers_a = check_model(study.model_a, "a", study.folder)
    layers_b = check_model(study.model_b, "b", study.folder)
    tokenizer = common_tokenizer(study)
    read = read_text(study, tokenizer)
    for side, model in (("A", study.model_a), ("B", study.model_b)):
        check_positions(model, side, study.folder, read)
    wanted = None if study.text.tokens == "all" else study.text.tokens
    tokens = [
        draw(read, wanted, rng=rng_of(seed, "documents"), allow_fewer=study.text.allow_fewer)
        for seed in study.seeds
    ]
    plan = Plan(
        study=study,
        layers_a=layers_a,
        layers_b=layers_b,
        tokens=tokens,
        tokenizer=tokenizer,
        out=out_folder(study, out),
        store=store_folder(study),
    )
    check_writable(plan.out, "choose another with --out or output.folder")
    check_writable(plan.store, "choose another with output.store or $SAELIGN_STORE")
    check_same_study(plan)
    return plan


def model_name(model: ModelStudy, folder: Path, name: str | None = None) -> str:
    """The folder of the model (or tokenizer) if there is one at that path, else its hub name."""
    name = model.name if name is None else name
    local = path_from(folder, name)
    return str(local) if local.is_dir() else name


def check_model(model: ModelStudy, side: str, folder: Path) -> list[int]:
    """The layers to read of a model, after its configuration and SAE headers were found to fit.

    Raises:
        StudyError: A layer that the model does not have.
        WiringError: An SAE of another width or layer.
        SaelignError: The model or an SAE that cannot be read.
    """
    check_device(model.device)
    config = load_config(model_name(model, folder), revision=model.revision)
    count, width = n_layers(config), d_model(config)
    layers = list(range(count)) if model.layers == "all" else list(model.layers)
    for layer in layers:
        if not 0 <= layer < count:
            raise StudyError(
                f"layers of model {side.upper()} must lie between 0 and {count - 1}, got {layer}: "
                f"{model.name} has {count} blocks, counted from 0"
            )
    for layer in layers:
        info = inspect_sae(model.sae_path(layer, folder))
        check_dimensions(info, layer, d_model=width, n_layers=count)
    return layers


def common_tokenizer(study: Study) -> Tokenizer:
    """The tokenizer that both models share.

    Raises:
        TextError: They differ.
    """
    a, b = study.model_a, study.model_b
    name_a, name_b = (model_name(m, study.folder, m.tokenizer or m.name) for m in (a, b))
    # A revision is one of the model's; a tokenizer from elsewhere need not have it.
    revision_a, revision_b = (m.revision if m.tokenizer is None else None for m in (a, b))
    tokenizer = load_tokenizer(name_a, revision_a)
    if (name_a, revision_a) != (name_b, revision_b):
        check_same_tokenizer(tokenizer, load_tokenizer(name_b, revision_b), name_a, name_b)
    return tokenizer


def read_text(study: Study, tokenizer: Tokenizer) -> Tokens:
    """All of the study's text as contexts, before any are drawn."""
    text = study.text
    path = path_from(study.folder, text.source)
    masks = {"mask_special": text.mask_special, "mask_first": text.mask_first}
    if path.suffix == ".safetensors":
        return load_token_ids(path, special_ids=special_ids(tokenizer), **masks)
    documents = read_documents(path, split=text.split)
    return tokenize(documents, tokenizer, context_length=text.context_length, **masks)


def check_positions(model: ModelStudy, side: str, folder: Path, tokens: Tokens) -> None:
    """Refuse contexts that are longer than what the model was made to read.

    Raises:
        StudyError: They are; some models would fail, others read on and give numbers.
    """
    config = load_config(model_name(model, folder), revision=model.revision)
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    longest = int(np.flatnonzero(tokens.attended.any(axis=0)).max(initial=-1)) + 1
    if most is not None and longest > most:
        raise StudyError(
            f"contexts must fit into the {most:,} positions of model {side}, got contexts of "
            f"{longest:,} tokens: lower text.context_length, or give shorter rows of token ids"
        )


def rng_of(seed: int, *purpose: str | int) -> np.random.Generator:
    """A generator for one purpose of one seed: adding a measure or layer moves no other number."""
    words = [int.from_bytes(str(word).encode(), "big") for word in purpose]
    return np.random.default_rng([seed, *words])


def out_folder(study: Study, out: str | Path | None) -> Path:
    """Where the run goes: as asked, else as the study says, else `saelign-runs/NAME`."""
    if out is not None:
        return Path(out)
    if study.output.folder is not None:
        return path_from(study.folder, study.output.folder)
    return Path("saelign-runs") / study.name


def store_folder(study: Study) -> Path:
    """Where activations are kept: as the study says, else `$SAELIGN_STORE`, else a user's cache."""
    if study.output.store is not None:
        return path_from(study.folder, study.output.store)
    if os.environ.get("SAELIGN_STORE"):
        return Path(os.environ["SAELIGN_STORE"])
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "saelign" / "activations"


def check_writable(folder: Path, advice: str) -> None:
    """Raise StorageError unless a file can be made in `folder`; leaves nothing behind."""
    made: list[Path] = []
    try:
        for part in [*reversed(folder.parents), folder]:
            if not part.exists():
                part.mkdir()
                made.append(part)
        probe = folder / f".saelign-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StorageError(
            f"{folder} must be a folder that can be written, it is not: {error.strerror}; {advice}"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # another run may have begun to fill it
            for part in reversed(made):
                part.rmdir()


def check_same_study(plan: Plan) -> None:
    """Refuse to write a run over that of another study.

    Raises:
        StudyError: The folder holds something else.
    """
    if not plan.out.exists() or not any(plan.out.iterdir()):
        return
    path = plan.out / "study.yaml"
    theirs, what = None, "files that are not a run"
    if path.is_file():
        what = "the run of another study"
        with contextlib.suppress(OSError, UnicodeDecodeError, yaml.YAMLError):
            theirs = yaml.safe_load(path.read_text(encoding="utf-8"))
    if theirs != as_yaml_reads(plan.study):
        raise StudyError(
            f"the run's folder must be empty or hold an earlier run of this study, {plan.out} "
            f"holds {what}: choose another with --out"
        )


def as_yaml_reads(study: Study) -> Any:
    """The study as it stands in the run's `study.yaml`."""
    return yaml.safe_load(study_yaml(study))


def study_yaml(study: Study) -> str:
    """The study with every default spelled out; paths as they were given."""
    return yaml.safe_dump(study_mapping(study), sort_keys=False, allow_unicode=True)
