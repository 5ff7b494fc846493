"""A model and text -> an SAE for each of its layers, in a folder that a study reads."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers import PretrainedConfig

from saelign import provenance
from saelign.activations import sample_streams
from saelign.errors import FormatError, ShapeError, StudyError, TextError
from saelign.files import written
from saelign.forecast import PROGRAM, in_gib, memory_limit
from saelign.locations import Places
from saelign.models import (
    check_device,
    d_site,
    load_config,
    load_model,
    model_fingerprint,
    n_parameters,
    sae_device,
    untrained_fingerprint,
    untrained_model,
)
from saelign.plan import (
    bytes_per_parameter,
    check_positions,
    check_writable,
    layers_of,
    model_name,
    read_text,
)
from saelign.saes import save_sae, train_sae
from saelign.study import ModelStudy, TextStudy, check_places, check_text, rng_of
from saelign.text import Tokens, draw, load_tokenizer

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

SAES = "layer_{layer}.safetensors"
"""The file of a layer's SAE in the folder."""

PARTIAL = ".layer_{layer}.partial"
"""The state of a training that is not done."""

REPORT = "training.json"
"""What tells, in the same folder, how they were trained and what they are worth."""

HELD_OUT_SHARE, MOST_HELD_OUT = 0.1, 100_000
"""Tokens to measure on: a tenth of those to train on, up to so many."""

TOKENS_A_FEATURE, LEAST_STEPS = 10, 100
"""With fewer tokens a feature, or fewer steps (twice the warm-up), nothing is learnt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecipe:
    """SAEs to be trained.

    Attributes:
        model: The model, its site and its layers; its `saes` are not looked at.
        text: What to train on; `tokens` are those trained on, to which a tenth comes to measure on.
        width: Features of each SAE.
        k: Features to be active at a token, on average.
        seed: Of weights and of the order of tokens. Which documents are read, and which of them are
            held out, it does not change.
        untrained: Train on the model's untrained twin, its weights drawn with this seed; None: on
            the model itself.
        epochs: Passes over the tokens.
        batch_tokens: Tokens of a step.
        learning_rate: Of Adam, between warm-up and decay.
        folder: Where relative paths start.
        models_from: A folder in place of the hub; see `Places`.
    """

    model: ModelStudy
    text: TextStudy
    width: int
    k: int
    seed: int = 0
    untrained: int | None = None
    epochs: float = 2.0
    batch_tokens: int = 1024
    learning_rate: float = 4e-3
    folder: Path = Path()
    models_from: Path | None = None

    @property
    def places(self) -> Places:
        """Where what it names is taken from."""
        return Places(self.folder, self.models_from)


def train_saes(
    recipe: TrainingRecipe,
    out: str | Path,
    *,
    memory: str | int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Train an SAE for each layer, one after the other, and write each when it is done.

    What `out` holds already of the same training is not trained again, so that a training that was
    killed goes on; with the same hardware, threads and versions to the same SAEs. Layers may be
    added to it later.

    Args:
        recipe: What to train.
        out: The folder for `layer_{layer}.safetensors`, which a study's `saes` can name, and
            `training.json`, which says what they are worth on text held out.
        memory: What it may take, such as `8GiB` (or bytes); most of what is free if None. Layers
            whose activations do not fit at once are read in several passes of the model.
        progress: Told how far it has come.

    Returns:
        A row a layer: `layer`, `explained_variance`, `l0`, `dead_share` on held-out tokens (as of
        `TrainingReport`), the `seconds` that it took, and the `path` of the SAE.

    Raises:
        StudyError: A layer that the model does not have, a number out of range, too little memory,
            or a folder that holds another training.
        TextError: Too little text.
        SaelignError: The model or the text cannot be read, or the folder not written.
    """

    def tell(what: str, done: int, total: int) -> None:
        if progress is not None:
            progress(what, done, total)

    out = Path(out)
    check_recipe(recipe)
    name, model = model_name(recipe.model, recipe.places), recipe.model
    check_device(model.device, model.quantization)
    config = load_config(name, revision=model.revision)
    layers = layers_of(model, config, "the model")
    check_writable(out, "choose another with --out")
    tell("read the text", 0, 1)
    fit, test, is_by_documents = texts_of(recipe, config, name)
    tell("read the text", 1, 1)
    about: dict[str, Any] = {
        "fingerprint": (
            model_fingerprint(name, model.revision)
            if recipe.untrained is None
            else untrained_fingerprint(name, recipe.untrained, model.revision)
        ),
        "dtype": model.precision,
        "site": model.site,
        "module": model.module,
        "text": fit.sha256,
        "held_out": test.sha256,
        **{key: getattr(recipe, key) for key in ("width", "k", "seed", "epochs")},
        **{key: getattr(recipe, key) for key in ("batch_tokens", "learning_rate")},
    }
    report = begun(out, about)
    if report is None:
        report = new_report(recipe, about, fit, test, is_by_documents=is_by_documents)
        write_report(out, report)
    missing = [layer for layer in layers if not is_done(out, report, layer)]
    passes = passes_of(recipe, config, name, missing, fit, test, memory)
    for number, some in enumerate(passes):
        part = f", pass {number + 1} of {len(passes)}" if len(passes) > 1 else ""
        streams = streams_of(recipe, name, some, (fit, test), tell, part)
        for layer in some:
            acts, held_out = (by_layer.pop(layer) for by_layer in streams)
            checkpoint = out / PARTIAL.replace("{layer}", str(layer))
            sae, quality = train_sae(
                acts,
                d_sae=recipe.width,
                k=recipe.k,
                seed=1000 * recipe.seed + layer,
                held_out=held_out,
                epochs=recipe.epochs,
                batch_tokens=recipe.batch_tokens,
                learning_rate=recipe.learning_rate,
                hook_name=model.place.hook_name(layer),
                device=sae_device(model.device),
                checkpoint=checkpoint,
                progress=lambda done, total, layer=layer: tell(f"train layer {layer}", done, total),
            )
            del acts, held_out
            path = sae_path(out, layer)
            save_sae(sae, path)
            report["layers"][str(layer)] = {
                **asdict(quality),
                "sha256": provenance.sha256_of_file(path),
                "torch": torch.__version__,
            }
            write_report(out, report)
            checkpoint.unlink(missing_ok=True)
    columns = ("explained_variance", "l0", "dead_share", "seconds")
    rows = [
        {
            "layer": layer,
            **{column: report["layers"][str(layer)][column] for column in columns},
            "path": str(sae_path(out, layer)),
        }
        for layer in layers
    ]
    return pd.DataFrame(rows, columns=["layer", *columns, "path"])


def sae_path(out: Path, layer: int) -> Path:
    """Where the SAE of a layer is written."""
    return out / SAES.replace("{layer}", str(layer))


def check_recipe(recipe: TrainingRecipe) -> None:
    """Refuse numbers out of range.

    Raises:
        StudyError: A number that cannot be, or a layer twice.
        ShapeError: `k` larger than the width.
    """
    at_least: list[tuple[str, float, float]] = [
        ("width", recipe.width, 2),
        ("k", recipe.k, 1),
        ("seed", recipe.seed, 0),
        ("untrained", recipe.untrained or 0, 0),
        ("batch_tokens", recipe.batch_tokens, 1),
    ]
    for name, value, least in at_least:
        if value < least:
            raise StudyError(f"{name} must be at least {least}, got {value}")
    for name, value in (("epochs", recipe.epochs), ("learning_rate", recipe.learning_rate)):
        if not 0 < value < math.inf:
            raise StudyError(f"{name} must be a number above 0, got {value}")
    if recipe.k > recipe.width:
        raise ShapeError(
            f"k must be at most the width, {recipe.width:,} features, got {recipe.k:,}: choose "
            "a smaller k or more features"
        )
    check_text(recipe.text)
    check_places(recipe.model, "model")


def texts_of(
    recipe: TrainingRecipe, config: PretrainedConfig, name: str
) -> tuple[Tokens, Tokens, bool]:
    """What to train on, what to measure on, and whether they share no document.

    Raises:
        TextError: Too little text.
        SaelignError: The text cannot be read.
    """
    model, text = recipe.model, recipe.text
    own = recipe.places.repository(model.tokenizer or model.name)
    tokenizer = load_tokenizer(own, model.revision if model.tokenizer is None else None)
    tokens = read_text(recipe, tokenizer)
    check_positions(config, name, tokens)
    least = max(
        TOKENS_A_FEATURE * recipe.width,
        math.ceil(LEAST_STEPS * recipe.batch_tokens / recipe.epochs),
    )
    there = math.floor(tokens.n_tokens / (1 + HELD_OUT_SHARE))
    there = max(there, tokens.n_tokens - MOST_HELD_OUT)
    wanted = there if text.tokens == "all" or text.allow_fewer else text.tokens
    if text.tokens != "all":
        wanted = min(wanted, text.tokens)
    if min(wanted, there) < least:
        raise TextError(
            f"at least {least:,} tokens must be trained on ({TOKENS_A_FEATURE} a feature, "
            f"{LEAST_STEPS} steps), got {min(wanted, there):,} of a text that holds "
            f"{tokens.n_tokens:,}: give more, or train fewer features in smaller batches"
        )
    if wanted > there:
        beside = held_out_tokens(wanted)
        raise TextError(
            f"the text must hold {wanted + beside:,} tokens, {wanted:,} to train on and {beside:,} "
            f"to measure on, it holds {tokens.n_tokens:,}: give more text, or ask for at most "
            f"{there:,}"
        )
    is_held_out, is_by_documents = held_out_contexts(tokens, held_out_tokens(wanted))
    fit, test = (of_contexts(tokens, chosen) for chosen in (~is_held_out, is_held_out))
    rng = rng_of(0, "training text")
    return draw(fit, min(wanted, fit.n_tokens), rng=rng), test, is_by_documents


def held_out_tokens(n_tokens: int) -> int:
    """How many tokens to measure on beside so many to train on."""
    return min(MOST_HELD_OUT, math.floor(HELD_OUT_SHARE * n_tokens))


def held_out_contexts(tokens: Tokens, n_tokens: int) -> tuple[Bool[np.ndarray, " context"], bool]:
    """Which contexts to measure on, of `n_tokens` at most, and whether they are whole documents.

    Documents in a drawn order, each that still fits; where documents are too few or too long for
    that, the last contexts of the text.
    """
    per_context = tokens.kept.sum(axis=1)
    documents, number = np.unique(tokens.document, return_inverse=True)
    per_document = np.bincount(number, weights=per_context).astype(np.int64)
    chosen, held = np.zeros(len(documents), dtype=bool), 0
    for document in rng_of(0, "held-out documents").permutation(len(documents)):
        if held + per_document[document] <= n_tokens:
            chosen[document] = True
            held += int(per_document[document])
    if held >= n_tokens / 2:
        return chosen[number], True
    return np.cumsum(per_context[::-1])[::-1] <= n_tokens, False


def of_contexts(tokens: Tokens, chosen: Bool[np.ndarray, " context"]) -> Tokens:
    """Some of the contexts."""
    names = ("input_ids", "attended", "kept", "document")
    return dataclasses.replace(tokens, **{name: getattr(tokens, name)[chosen] for name in names})


def streams_of(
    recipe: TrainingRecipe,
    name: str,
    layers: list[int],
    texts: tuple[Tokens, Tokens],
    tell: Progress,
    part: str,
) -> list[dict[int, Tensor]]:
    """What passes the site of the layers, of each text, in bfloat16."""
    model, whats = loaded(recipe, name), ("run the model", "run it on held-out text")
    return [
        sample_streams(
            load=lambda: model,
            blocks_path=recipe.model.blocks,
            layers=layers,
            tokens=tokens,
            n_tokens=tokens.n_tokens,
            device=recipe.model.device,
            site=recipe.model.place,
            dtype=torch.bfloat16,
            progress=lambda done, total, what=what: tell(f"{what}{part}", done, total),
        )
        for tokens, what in zip(texts, whats, strict=True)
    ]


def loaded(recipe: TrainingRecipe, name: str) -> nn.Module:
    """The model, or its untrained twin."""
    model = recipe.model
    if recipe.untrained is not None:
        return untrained_model(
            name,
            seed=recipe.untrained,
            revision=model.revision,
            dtype=model.dtype,
            device=model.device,
        )
    return load_model(
        name,
        revision=model.revision,
        dtype=model.dtype,
        device=model.device,
        quantization=model.quantization,
    )


def passes_of(
    recipe: TrainingRecipe,
    config: PretrainedConfig,
    name: str,
    layers: list[int],
    fit: Tokens,
    test: Tokens,
    memory: str | int | None,
) -> list[list[int]]:
    """The layers in groups whose activations fit into memory together.

    Raises:
        StudyError: Those of one layer do not.
    """
    limit, width = memory_limit(memory), d_site(config, recipe.model.place)
    n_weights = n_parameters(name, revision=recipe.model.revision)
    of_model = bytes_per_parameter(recipe.model) * n_weights
    # Both matrices with their gradients and Adam's two moments; pre-activations of a batch and of
    # the sample that the thresholds are set by.
    of_training = 32 * width * recipe.width + 12 * recipe.batch_tokens * recipe.width + 2**29
    of_layer = 2 * width * (fit.n_tokens + test.n_tokens)
    fixed = PROGRAM + int(max(of_model, of_training))
    if fixed + of_layer > limit:
        raise StudyError(
            f"memory must be at least {in_gib(fixed + of_layer)} to train an SAE on "
            f"{fit.n_tokens:,} tokens, got {in_gib(limit)}: give more with --memory, or train on "
            "fewer tokens"
        )
    at_once = (limit - fixed) // of_layer
    return [layers[i : i + at_once] for i in range(0, len(layers), at_once)]


def new_report(
    recipe: TrainingRecipe,
    about: Mapping[str, Any],
    fit: Tokens,
    test: Tokens,
    *,
    is_by_documents: bool,
) -> dict[str, Any]:
    """What `training.json` says before any layer is done."""
    told = asdict(recipe)
    del told["folder"], told["models_from"], told["model"]["saes"]
    return {
        "recipe": told,
        "training": dict(about),
        "tokens": {
            "trained_on": fit.n_tokens,
            "held_out": test.n_tokens,
            "held_out_by": "documents" if is_by_documents else "contexts",
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": provenance.command(),
        "versions": provenance.versions(),
        "machine": provenance.machine(),
        "layers": {},
    }


def begun(out: Path, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the folder says of an earlier part of the same training; None if it is empty.

    Raises:
        StudyError: It holds something else.
        FormatError: What it says cannot be read.
    """
    path = out / REPORT
    if not path.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise StudyError(
                f"the folder must be empty or hold an earlier part of this training, {out} holds "
                "other files: choose another with --out"
            )
        return None
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        theirs, _ = report["training"], report["layers"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise FormatError(
            f"{path} must be what an earlier training wrote, it cannot be read ({error}): choose "
            "another folder with --out"
        ) from error
    differs = [key for key in about if theirs.get(key) != about[key]]
    if differs:
        told = ", ".join(f"{key} {theirs.get(key)!r} instead of {about[key]!r}" for key in differs)
        raise StudyError(
            f"the folder must be empty or hold an earlier part of this training, {out} holds "
            f"another: {told}; choose another with --out"
        )
    return report


def is_done(out: Path, report: Mapping[str, Any], layer: int) -> bool:
    """Whether the SAE of a layer is there as it was written."""
    path, entry = sae_path(out, layer), report["layers"].get(str(layer))
    if entry is None or not path.is_file():
        return False
    return provenance.sha256_of_file(path) == entry["sha256"]


def write_report(out: Path, report: Mapping[str, Any]) -> None:
    """Write `training.json`."""
    with written(out / REPORT) as path:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
