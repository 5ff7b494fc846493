"""What a study comes to: everything about it that can be checked without loading weights."""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import scipy.sparse as sp
import yaml
from jaxtyping import Int32
from transformers import PretrainedConfig

from saelign.activations.pooling import pooled
from saelign.activations.wiring import check_dimensions
from saelign.errors import StorageError, StudyError, TextError
from saelign.files import user_cache
from saelign.forecast import Forecast, LayerSize, SideSize, forecast, memory_limit
from saelign.given import Given, settled
from saelign.hub_folder import check_hub_folder
from saelign.locations import Places
from saelign.models import (
    check_device,
    d_site,
    load_config,
    n_layers,
    n_parameters,
    n_positions,
    sae_device,
)
from saelign.results import TRAINED
from saelign.saes import SAE, SaeInfo, inspect_sae, load_sae
from saelign.study import GIVEN, ModelStudy, Study, TextStudy, rng_of, study_mapping
from saelign.subspace_study import Subspaces, read_subspaces
from saelign.text import (
    STANDARD_INPUT,
    AlignedTokens,
    DatasetSource,
    Tokenizer,
    Tokens,
    align,
    at_commit,
    check_same_tokenizer,
    draw,
    draw_aligned,
    load_token_ids,
    load_tokenizer,
    pieces_kept,
    read_documents,
    special_ids,
    tokenize,
)

MADE = ("random", "trained")
"""SAEs of an untrained twin that are made when they are needed."""

CUTTING = ("column", "documents", "split", "across_documents", "contexts_per_document")
"""What a study says of text that has yet to be cut into contexts."""


@runtime_checkable
class HasText(Protocol):
    """A study, or what else says what to read."""

    @property
    def text(self) -> TextStudy:
        """What to read."""
        ...

    @property
    def places(self) -> Places:
        """Where what it names is taken from."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side of a comparison: a model, read at some layers through an SAE at each.

    Attributes:
        key: `a` or `b`, or one of these with what makes it another: `a_untrained`, `a_seed`.
        model: The model, with the SAEs that this side reads it through.
        layers: The layers read.
        twin_seed: Draws the weights if this is the model's untrained twin; else None.
        twin_sha256: What these weights must hash to.
    """

    key: str
    model: ModelStudy
    layers: list[int]
    twin_seed: int | None = None
    twin_sha256: str | None = None

    @property
    def letter(self) -> str:
        """The model that it is, or is a twin of: `a` or `b`."""
        return self.key[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two sides to be compared, layer by layer.

    Attributes:
        control: What it is a control of; `trained` for the models as given.
        a: The side whose layers are the rows of a grid.
        b: The side whose layers are the columns.
        is_shifted: Whether b's documents are rolled against a's.
    """

    control: str
    a: Side
    b: Side
    is_shifted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a study comes to, found out without loading weights.

    Attributes:
        study: The study.
        comparisons: The study's own, then its controls.
        tokens: For each run, what is read; drawn by its seed.
        tokenizer: Of both models, or of A if B has another.
        tokenizer_b: Of B: the same object if both models have one.
        out: The run's folder.
        store: Where activations are kept.
        forecast: What the study will take.
        subspaces: The semantic subspaces to look into; None if there are none.
        aligned: For each run, what both models read if their tokenizers differ; `tokens` are then
            the last tokens in A of the units that both cut; None if they do not.
        given: What a Python program gave in place of what the study names, by side.
    """

    study: Study
    comparisons: list[Comparison]
    tokens: list[Tokens]
    tokenizer: Tokenizer
    tokenizer_b: Tokenizer
    out: Path
    store: Path
    forecast: Forecast
    subspaces: Subspaces | None = None
    aligned: list[AlignedTokens] | None = None
    given: Mapping[str, Given] = field(default_factory=lambda: settled(None))

    def read_by(self, side: Side, index: int) -> Tokens:
        """What a side reads in a run; all that is kept of it is collected."""
        if self.aligned is None:
            return self.tokens[index]
        return self.to_collect(*self.aligned[index].of(side.letter))

    def by_unit(self, acts: sp.csr_array, side: Side, index: int) -> sp.csr_array:
        """What was collected of a side in a run, a row a token of `tokens`."""
        if self.aligned is None:
            return acts
        _, pieces = self.aligned[index].of(side.letter)
        return self.pooled(acts, pieces)

    def to_collect(self, tokens: Tokens, pieces: Int32[np.ndarray, " unit"]) -> Tokens:
        """Tokens kept at the ends of units -> those whose activations the study's pooling needs."""
        return tokens if self.study.text.pooling == "last" else pieces_kept(tokens, pieces)

    def pooled(self, acts: sp.csr_array, pieces: Int32[np.ndarray, " unit"]) -> sp.csr_array:
        """What was collected of `to_collect`, a row a unit."""
        how = self.study.text.pooling
        return acts if how == "last" else pooled(acts, pieces, how)

    def model_given(self, side: Side) -> Given:
        """The model given for a side, if there is one; none for a twin, whose weights are drawn."""
        return self.given[side.letter] if side.twin_seed is None else Given()

    def device_of(self, side: Side) -> str:
        """Where the SAEs of a side are, and what goes into them."""
        return self.model_given(side).device or sae_device(side.model.device)

    def sae_of(self, side: Side, layer: int, *, device: str) -> SAE:
        """The SAE of a layer of a side, given or read."""
        given = self.given[side.letter].saes
        if side.model.saes == GIVEN and given is not None:
            return given[layer]
        return load_sae(side.model.sae_path(layer, self.study.places), device=device)

    @property
    def layers_a(self) -> list[int]:
        """Layers of A to read."""
        return self.comparisons[0].a.layers

    @property
    def layers_b(self) -> list[int]:
        """Layers of B to read."""
        return self.comparisons[0].b.layers

    @property
    def sides(self) -> list[Side]:
        """Every side that a comparison has, once."""
        found = {side.key: side for c in self.comparisons for side in (c.a, c.b)}
        return list(found.values())

    def metrics_of(self, comparison: Comparison) -> list[str]:
        """What to match by: controls only by the study's own metric."""
        metrics = self.study.metrics
        return metrics if comparison.control == TRAINED else metrics[:1]

    @property
    def n_cells(self) -> int:
        """Layer pairs times matchings, metrics and runs, controls included."""
        pairs = sum(
            len(c.a.layers) * len(c.b.layers) * len(self.metrics_of(c)) for c in self.comparisons
        )
        return pairs * len(self.study.matching) * len(self.study.seeds)

    def summary(self) -> dict[str, Any]:
        """What `saelign check` tells."""
        study = self.study
        told = {
            "study": study.name,
            "model_a": about_model(study.model_a, self.layers_a),
            "model_b": about_model(study.model_b, self.layers_b),
            "tokens": [tokens.n_tokens for tokens in self.tokens],
            "masked": [tokens.masked for tokens in self.tokens],
            "controls": [c.control for c in self.comparisons if c.control != TRAINED],
            "cells": self.n_cells,
            "scores": self.n_cells * len(study.measures) * len(study.nulls),
            "takes": self.forecast.summary(),
            "out": str(self.out),
            "store": str(self.store),
        }
        if self.aligned is not None:
            told["coverage"] = asdict(self.aligned[0].coverage)
        if self.subspaces is not None:
            told["subspaces"] = self.subspaces.n_subspaces
        return told


def about_model(model: ModelStudy, layers: list[int]) -> dict[str, Any]:
    """What `saelign check` tells of a model: its site, if not that after a block."""
    site = model.place.short
    return {"name": model.name, **({"site": site} if site else {}), "layers": layers}


def check(
    study: Study,
    *,
    out: str | Path | None = None,
    memory: str | int | None = None,
    given: Mapping[str, Given] | None = None,
    models_from: str | Path | None = None,
) -> Plan:
    """Find out whether a study can run, without loading weights, and what it comes to.

    Opens configurations, tokenizers, headers of SAE files and the text, and tries both folders.

    Args:
        study: What `load_study` returned.
        out: The run's folder, if not the study's own.
        memory: What it may take, such as `8GiB` (or bytes); most of what is free if None.
        given: For `a` and `b`, objects in place of what the study names.
        models_from: A folder in place of the hub, from which models, SAEs and data sets are taken:
            `OWNER/NAME` of the hub lies in `models_from/OWNER/NAME`.

    Raises:
        SaelignError: Whatever of it cannot be: the message says what to do.
    """
    limit, objects = memory_limit(memory), settled(given)
    if models_from is not None:
        study = replace(study, models_from=Path(models_from).expanduser().resolve())
    check_hub_folder(study, objects)
    comparisons = comparisons_of(study, objects)
    subspaces = None
    if study.subspaces is not None:
        subspaces = read_subspaces(study.subspaces, study.folder)
    tokenizer, tokenizer_b = tokenizers_of(study, objects)
    if tokenizer_b is tokenizer:
        aligned, read_a = None, read_text(study, tokenizer)
        read_b = read_a
    else:
        aligned = aligned_text(study, tokenizer, tokenizer_b)
        read_a, read_b = aligned.a, aligned.b
    for side, model, read in (("a", study.model_a, read_a), ("b", study.model_b, read_b)):
        check_positions(config_of(model, study.places, objects[side]), side.upper(), read)
    wanted = None if study.text.tokens == "all" else study.text.tokens
    rngs = [rng_of(seed, "documents") for seed in study.seeds]
    fewer = study.text.allow_fewer
    if aligned is None:
        drawn, tokens = None, [draw(read_a, wanted, rng=rng, allow_fewer=fewer) for rng in rngs]
    else:
        drawn = [draw_aligned(aligned, wanted, rng=rng, allow_fewer=fewer) for rng in rngs]
        tokens = [of_run.a for of_run in drawn]
    plan = Plan(
        study=study,
        comparisons=comparisons,
        tokens=tokens,
        tokenizer=tokenizer,
        tokenizer_b=tokenizer_b,
        out=out_folder(study, out),
        store=store_folder(study),
        forecast=forecast(
            study,
            sizes_of(study, comparisons, objects),
            n_tokens=[t.n_tokens for t in tokens],
            n_positions=[int(t.attended.sum()) for t in tokens],
            limit=limit,
            n_subspaces=0 if subspaces is None else subspaces.n_subspaces,
        ),
        subspaces=subspaces,
        aligned=drawn,
        given=objects,
    )
    check_writable(plan.out, "choose another with --out or output.folder")
    check_writable(plan.store, "choose another with output.store or $SAELIGN_STORE")
    check_same_study(plan)
    return plan


def comparisons_of(study: Study, given: Mapping[str, Given]) -> list[Comparison]:
    """The study's own comparison and its controls, after models and SAEs were found to fit.

    Raises:
        SaelignError: A model or an SAE that cannot be read or does not fit.
    """
    controls, models = study.controls, {"a": study.model_a, "b": study.model_b}
    own = {
        letter: Side(
            key=letter,
            model=model,
            layers=check_model(model, letter, study.places, given[letter]),
        )
        for letter, model in models.items()
    }
    found = [Comparison(control=TRAINED, a=own["a"], b=own["b"])]
    if controls.untrained is not None:
        twins = [
            Side(
                key=f"{letter}_untrained",
                model=with_saes(
                    side, getattr(controls.untrained, f"saes_{letter}"), study.places, given[letter]
                ),
                layers=side.layers,
                twin_seed=controls.untrained.seed,
                twin_sha256=getattr(controls.untrained, f"sha256_{letter}"),
            )
            for letter, side in own.items()
        ]
        found.append(Comparison(control="untrained", a=twins[0], b=twins[1]))
    if controls.document_shift is not None:
        found.append(Comparison(control="document_shift", a=own["a"], b=own["b"], is_shifted=True))
    if controls.seed is not None:
        for letter, side in own.items():
            saes = getattr(controls.seed, f"saes_{letter}")
            if saes is not None:
                other = replace(
                    side,
                    key=f"{letter}_seed",
                    model=with_saes(side, saes, study.places, given[letter]),
                )
                found.append(Comparison(control=f"seed_{letter}", a=side, b=other))
    return found


def sizes_of(
    study: Study, comparisons: list[Comparison], given: Mapping[str, Given]
) -> list[tuple[SideSize, SideSize]]:
    """The sizes of the layers of both sides of each comparison."""
    sizes = {}
    for side in {side.key: side for c in comparisons for side in (c.a, c.b)}.values():
        model, objects = side.model, given[side.letter]
        own = study.model_a if side.letter == "a" else study.model_b
        like = own if model.saes in MADE else model  # made ones are as wide as the model's own
        saes = {n: told_sae(like, n, study.places, objects) for n in side.layers}
        sizes[side.key] = SideSize(
            key=side.key,
            n_parameters=(
                n_parameters(model_name(model, study.places), revision=model.revision)
                if objects.model is None
                else sum(parameter.numel() for parameter in objects.model.parameters())
            ),
            bytes_per_parameter=bytes_per_parameter(model),
            device=objects.device or sae_device(model.device),
            layers={
                layer: LayerSize(d_model=sae.d_model, d_sae=sae.d_sae, k=sae.k)
                for layer, sae in saes.items()
            },
        )
    return [(sizes[c.a.key], sizes[c.b.key]) for c in comparisons]


def bytes_per_parameter(model: ModelStudy) -> int | float:
    """What a weight takes while the model is loaded."""
    if model.quantization is not None:
        return 1 if model.quantization == "8bit" else 0.5
    return 2 if model.dtype in ("bfloat16", "float16") else 4


def with_saes(side: Side, saes: str, places: Places, given: Given) -> ModelStudy:
    """The side's model with other SAEs, whose headers were found to fit."""
    model = replace(side.model, saes=saes, layers=side.layers, neuronpedia=None)
    if saes not in MADE:
        check_model(model, side.letter, places, replace(given, saes=None))
    return model


def model_name(model: ModelStudy, places: Places) -> str:
    """The folder of the model if there is one at that path, else its hub name."""
    return places.repository(model.name)


def config_of(model: ModelStudy, places: Places, given: Given) -> PretrainedConfig:
    """The configuration of a model, given or named."""
    if given.config is not None:
        return given.config
    return load_config(model_name(model, places), revision=model.revision)


def told_sae(model: ModelStudy, layer: int, places: Places, given: Given) -> SaeInfo | SAE:
    """What the SAE of a layer says of itself, given or named.

    Raises:
        StudyError: The study says that it is given, and it is not.
        SaelignError: It cannot be read.
    """
    if model.saes != GIVEN:
        return inspect_sae(model.sae_path(layer, places))
    if given.saes is None or layer not in given.saes:
        there = ", ".join(str(n) for n in sorted(given.saes or ())) or "none"
        raise StudyError(
            f"an SAE must be given for each layer of {model.name}, layer {layer} has none (there "
            f"are: {there}): pass it as given={{'a': Given(saes={{{layer}: sae}})}}, or say in the "
            "study where it lies"
        )
    return given.saes[layer]


def check_model(model: ModelStudy, side: str, places: Places, given: Given) -> list[int]:
    """The layers to read of a model, after its configuration and SAE headers were found to fit.

    Raises:
        StudyError: A layer that the model does not have.
        WiringError: An SAE of another width or layer.
        SaelignError: The model or an SAE that cannot be read.
    """
    if given.model is None:
        check_device(model.device, model.quantization)
    config = config_of(model, places, given)
    count, width = n_layers(config), d_site(config, model.place)
    layers = layers_of(model, config, f"model {side.upper()}")
    for layer in layers:
        info = told_sae(model, layer, places, given)
        check_dimensions(info, layer, d_site=width, n_layers=count, site=model.place)
    return layers


def layers_of(model: ModelStudy, config: PretrainedConfig, told: str) -> list[int]:
    """The layers to read of a model, which errors call `told`.

    Raises:
        StudyError: A layer that the model does not have.
    """
    count = n_layers(config)
    layers = list(range(count)) if model.layers == "all" else list(model.layers)
    for layer in layers:
        if not 0 <= layer < count:
            raise StudyError(
                f"layers of {told} must lie between 0 and {count - 1}, got {layer}: "
                f"{model.name} has {count} blocks, counted from 0"
            )
    return layers


def tokenizers_of(
    study: Study, given: Mapping[str, Given] | None = None
) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizers of both models; one and the same object if they cut text alike.

    Raises:
        TextError: They differ, and the text is token ids.
    """
    a, b = study.model_a, study.model_b
    name_a, name_b = (study.places.repository(m.tokenizer or m.name) for m in (a, b))
    # A revision is one of the model's; a tokenizer from elsewhere need not have it.
    revision_a, revision_b = (m.revision if m.tokenizer is None else None for m in (a, b))
    given_a, given_b = (None if given is None else given[side].tokenizer for side in ("a", "b"))
    tokenizer = given_a or load_tokenizer(name_a, revision_a)
    is_same = (name_a, revision_a) == (name_b, revision_b) and given_a is given_b is None
    if is_same or given_b is tokenizer:
        return tokenizer, tokenizer
    other = given_b or load_tokenizer(name_b, revision_b)
    try:
        check_same_tokenizer(tokenizer, other, name_a, name_b)
    except TextError:
        source = text_source(study)
        if isinstance(source, Path) and source.suffix == ".safetensors":
            raise
        return tokenizer, other
    return tokenizer, tokenizer


def aligned_text(study: Study, tokenizer_a: Tokenizer, tokenizer_b: Tokenizer) -> AlignedTokens:
    """All of the study's text as two models with different tokenizers read it.

    Raises:
        StudyError: Contexts across documents, which need one tokenizer.
        SaelignError: The text cannot be read or aligned.
    """
    text = study.text
    if text.across_documents:
        raise StudyError(
            "text.across_documents must be left out where the models have different tokenizers, it "
            "is asked for: leave it out, or choose models that share a tokenizer"
        )
    return align(
        documents_of(study),
        tokenizer_a,
        tokenizer_b,
        context_length=text.context_length,
        contexts_per_document=contexts_per_document(text),
        mask_special=text.mask_special,
        mask_first=text.mask_first,
    )


def contexts_per_document(text: TextStudy) -> int | None:
    """How many contexts of a document count; None: all."""
    return None if text.contexts_per_document == "all" else text.contexts_per_document


def documents_of(study: HasText) -> list[str]:
    """The documents of a study's text."""
    text = study.text
    return read_documents(
        text_source(study),
        split=text.split,
        column=text.column,
        n_documents=None if text.documents == "all" else text.documents,
    )


def read_text(study: HasText, tokenizer: Tokenizer) -> Tokens:
    """All of the study's text as contexts, before any are drawn.

    Raises:
        StudyError: Token ids, which are contexts already, are to be cut.
        SaelignError: The text cannot be read.
    """
    text = study.text
    source = text_source(study)
    masks = {"mask_special": text.mask_special, "mask_first": text.mask_first}
    if isinstance(source, Path) and source.suffix == ".safetensors":
        for f in fields(text):
            if f.name in CUTTING and getattr(text, f.name) != f.default:
                raise StudyError(
                    f"text.{f.name} must be left out where the text is token ids, which are cut "
                    f"already, got {getattr(text, f.name)!r} for {source}"
                )
        return load_token_ids(source, special_ids=special_ids(tokenizer), **masks)
    return tokenize(
        documents_of(study),
        tokenizer,
        context_length=text.context_length,
        across_documents=text.across_documents,
        contexts_per_document=contexts_per_document(text),
        **masks,
    )


def text_source(study: HasText) -> str | Path | DatasetSource:
    """Where the study's text lies; paths, also that of a data set's folder, made full."""
    source = study.text.source
    if source == STANDARD_INPUT:
        return source
    if isinstance(source, str):
        return study.places.path(source)
    return at_commit(replace(source, dataset=study.places.repository(source.dataset)))


def check_positions(config: PretrainedConfig, side: str, tokens: Tokens) -> None:
    """Refuse contexts that are longer than what the model was made to read.

    Raises:
        StudyError: They are; some models would fail, others read on and give numbers.
    """
    most = n_positions(config)
    longest = int(np.flatnonzero(tokens.attended.any(axis=0)).max(initial=-1)) + 1
    if most is not None and longest > most:
        raise StudyError(
            f"contexts must fit into the {most:,} positions of model {side}, got contexts of "
            f"{longest:,} tokens: lower text.context_length, or give shorter rows of token ids"
        )


def out_folder(study: Study, out: str | Path | None) -> Path:
    """Where the run goes: as asked, else as the study says, else `saelign-runs/NAME`."""
    if out is not None:
        return Path(out)
    if study.output.folder is not None:
        return study.places.path(study.output.folder)
    return Path("saelign-runs") / study.name


def store_folder(study: Study) -> Path:
    """Where activations are kept: as the study says, else `$SAELIGN_STORE`, else a user's cache."""
    if study.output.store is not None:
        return study.places.path(study.output.store)
    if os.environ.get("SAELIGN_STORE"):
        return Path(os.environ["SAELIGN_STORE"])
    return user_cache() / "activations"


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
