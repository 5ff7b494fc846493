"""What a study file says, strictly read.

A study names two models, the layers and SAEs of each, the text, and what to compute. Every key is
known or an error that names the nearest known one; values are checked for type and range when they
are read, files only by `check` and `run`. Relative paths are taken from the study file's folder.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from saelign.correlation import METRICS
from saelign.errors import FormatError, MissingFileError, StudyError, UnknownNameError
from saelign.locations import Places
from saelign.matching import MATCHINGS, Filters
from saelign.nulls import NULLS
from saelign.scoring import check_measure
from saelign.sites import Site, SiteName
from saelign.strict_yaml import StrictLoader, told_yaml_error
from saelign.subspace_study import SubspacesStudy
from saelign.text.sources import DatasetSource

GIVEN = "given"
"""What `saes` says where a Python program gives them as objects."""

FORMAT = 1
"""Version of the study format that this package writes and reads."""

NOT_KEYS = ("folder", "models_from")
"""What a `Study` has beside what its file says."""

_NAMES_A_FILE = re.compile(r"\.ya?ml$", re.IGNORECASE)

SHIPPED = Path(__file__).parent / "studies"
"""The folder of the studies that can be run by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStudy:
    """One side: a model, the layers to read, and an SAE for each.

    Attributes:
        name: A folder in `transformers` layout, or a name on the Hugging Face hub.
        revision: Branch, tag or commit on the hub.
        tokenizer: Folder or name of its tokenizer, if not the model's own.
        dtype: `float32`, `bfloat16`, `float16`, or `auto` for the one it was saved in.
        device: Where to run it: `cpu`, `cuda`, `cuda:1`, `mps`; `auto`: over all accelerators, as
            the package accelerate deals it out.
        quantization: `8bit` or `4bit` weights, by the package bitsandbytes.
        blocks: Path of the block list inside the model, where it is not found by itself.
        site: Where in a block to read: the residual stream after it (`resid_post`) or before it
            (`resid_pre`), what the MLP (`mlp_out`) or the attention (`attn_out`) adds to it, or the
            outputs of the attention's heads side by side (`attn_z`).
        module: Path within a block of the module whose output the site is (of `attn_z`: whose
            input), where it is not found by itself.
        layers: Which blocks to read, from 0; `all` for all of them.
        saes: Where the SAE of a layer lies, with `{layer}` in it; or a mapping from layer to path.
            A path, `hf://OWNER/NAME[@REVISION]/FOLDER`, or `sae_lens:RELEASE/SAE_ID`.
        neuronpedia: What neuronpedia.org calls the SAE of a layer, with `{layer}` in it, or a
            mapping: the report links to its features. Of `sae_lens:` names SAELens tells it.
    """

    name: str
    saes: str | dict[int, str]
    layers: list[int] | Literal["all"] = "all"
    revision: str | None = None
    tokenizer: str | None = None
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "auto"
    device: str = "cpu"
    quantization: Literal["8bit", "4bit"] | None = None
    blocks: str | None = None
    site: SiteName = "resid_post"
    module: str | None = None
    neuronpedia: str | dict[int, str] | None = None

    @property
    def place(self) -> Site:
        """Where in its blocks it is read."""
        return Site(self.site, self.module)

    @property
    def precision(self) -> str:
        """What its weights are held in: one more thing that tells its activations from others."""
        return self.dtype if self.quantization is None else f"{self.dtype}, {self.quantization}"

    def sae_path(self, layer: int, places: Places) -> Path | str:
        """Where the SAE of a layer lies: its path, or its place on a hub or name as given."""
        return places.sae(self.sae_location(layer))

    def sae_location(self, layer: int) -> str:
        """What the study says of where the SAE of a layer lies.

        Raises:
            StudyError: Nothing.
        """
        if isinstance(self.saes, dict):
            if layer not in self.saes:
                known = ", ".join(str(known) for known in sorted(self.saes))
                raise StudyError(
                    f"saes of {self.name} must name a path for each layer, layer {layer} has none "
                    f"(there are: {known}): add it or leave the layer out"
                )
            return self.saes[layer]
        return self.saes.replace("{layer}", str(layer))

    def neuronpedia_id(self, layer: int) -> str | None:
        """What neuronpedia.org calls the SAE of a layer, if the study says so."""
        if isinstance(self.neuronpedia, str):
            return self.neuronpedia.replace("{layer}", str(layer))
        return None if self.neuronpedia is None else self.neuronpedia.get(layer)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextStudy:
    """What both models read.

    Attributes:
        source: A text file; `.jsonl` or `.parquet` with a document a row; a folder of files of one
            of these kinds; `-` for standard input; a data set; or a safetensors file with token ids
            (`input_ids`, context x position).
        column: Which column holds the text, where there are columns.
        documents: Read the first so many at most; `all` for all there are.
        tokens: How many tokens to compare over; `all` for all there are.
        allow_fewer: Take what there is when the text holds fewer.
        context_length: Tokens a context holds at most, with its BOS (of encoders CLS and SEP).
        across_documents: Whether contexts are filled across documents, with EOS between two; each
            context then counts as a document of its own.
        split: Of text files and standard input. `none`: a file is one document. `blank_line`:
            blank lines part documents.
        mask_special: Leave special tokens out.
        mask_first: Leave the first position of each context out.
        contexts_per_document: Take the first so many contexts of each document at most; `all` for
            all there are.
        pooling: Of models with different tokenizers, what stands for the tokens between two places
            where both have a boundary: the `last` of them, their `max` or `mean`.
    """

    source: str | DatasetSource
    column: str = "text"
    documents: int | Literal["all"] = "all"
    tokens: int | Literal["all"] = "all"
    allow_fewer: bool = False
    context_length: int = 128
    across_documents: bool = False
    contexts_per_document: int | Literal["all"] = "all"
    split: Literal["none", "blank_line"] = "none"
    mask_special: bool = True
    mask_first: bool = True
    pooling: Literal["last", "max", "mean"] = "last"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureStudy:
    """A measure with its options, as a study asks for it.

    Attributes:
        name: Which measure.
        options: Its options, by name.
        on: What the rows are: `decoder` rows of the matched features, or their `activations` over
            held-out tokens (matched on one half of the documents, read on the other).
        permutations: Shuffles of each null to take at most, where fewer than the study's will do.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    on: Literal["decoder", "activations"] = "decoder"
    permutations: int | None = None

    @property
    def asked(self) -> dict[str, Any]:
        """Options as the study gives them, `on` among them where it is not the default."""
        return {**self.options, **({"on": self.on} if self.on != "decoder" else {})}

    @property
    def written(self) -> dict[str, Any]:
        """All that the study says of it: `asked`, which is in its label, and what is not."""
        if self.permutations is None:
            return self.asked
        return {**self.asked, "permutations": self.permutations}

    @property
    def label(self) -> str:
        """The name under which the scores stand: with options, `svcca(variance=0.99)`."""
        if not self.asked:
            return self.name
        told = ", ".join(f"{key}={value}" for key, value in sorted(self.asked.items()))
        return f"{self.name}({told})"


@dataclass(frozen=True, slots=True, kw_only=True)
class UntrainedControl:
    """The untrained twins of both models: their configurations with random weights.

    Attributes:
        seed: Draws the weights (and SAEs that are drawn or trained).
        saes_a: SAEs of A's twin: `random`, drawn with the sparsity of A's own; `trained`, trained
            on the twin over the study's text with the width and sparsity of A's own; or where they
            lie, with `{layer}` in it.
        saes_b: The same for B.
        sha256_a: What the weights drawn for A's twin must hash to; not checked if None.
        sha256_b: The same for B.
    """

    seed: int = 0
    saes_a: str = "random"
    saes_b: str = "random"
    sha256_a: str | None = None
    sha256_b: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedControl:
    """A model against itself with other SAEs, as of a second training seed: the ceiling.

    Attributes:
        saes_a: Where A's other SAEs lie, with `{layer}` in it; None: no such comparison of A.
        saes_b: The same for B.
    """

    saes_a: str | None = None
    saes_b: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftControl:
    """B's documents rolled against A's: what matching finds where nothing belongs together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """Comparisons that say what the study's own is worth; none by default.

    Attributes:
        untrained: The untrained twins of both models.
        seed: The same model with other SAEs.
        document_shift: Documents shifted.
    """

    untrained: UntrainedControl | None = None
    seed: SeedControl | None = None
    document_shift: ShiftControl | None = None

    @property
    def asked(self) -> list[dict[str, dict[str, Any]]]:
        """As a study lists them."""
        named = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return [{name: dataclasses.asdict(of)} for name, of in named if of is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputStudy:
    """Where results go.

    Attributes:
        folder: The run's folder; `saelign-runs/NAME` if not given.
        store: Where activations are kept for other studies to reuse; `$SAELIGN_STORE`, else a
            folder in the user's cache, if not given.
    """

    folder: str | None = None
    store: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Everything a run needs to know.

    Attributes:
        name: What the run is called.
        model_a: One model; in `many_to_one` its features each look for a partner.
        model_b: The other.
        text: What both read.
        seeds: One run each; a seed draws the documents and the shuffles, nothing else.
        metric: What to match by: `pearson`, `within_token`, `cosine`, `euclidean`; or a list, whose
            first is the study's own and whose others are compared with it.
        matching: Any of `one_to_one`, `optimal`, `many_to_one`, `one_to_many`.
        filters: Which pairs are kept.
        measures: What to score, each a name or `{name: options}`.
        nulls: How many shuffles of each null.
        controls: Which comparisons to set beside the study's own.
        verdicts: Whether to say of each feature if it is shared.
        subspaces: Which semantic subspaces to look into; none if None.
        output: Where results go.
        description: What it asks, in a sentence; `saelign studies` tells it.
        source: Where it comes from: a paper, with what is printed there.
        folder: Where the study file lies; relative paths start there. Not a key of the file.
        models_from: A folder in place of the hub; see `Places`. Not a key of the file.
    """

    name: str
    model_a: ModelStudy
    model_b: ModelStudy
    text: TextStudy
    seeds: list[int] = field(default_factory=lambda: [0])
    metric: str | list[str] = "pearson"
    matching: list[str] = field(default_factory=lambda: ["one_to_one", "many_to_one"])
    filters: Filters = field(default_factory=Filters)
    measures: list[MeasureStudy] = field(
        default_factory=lambda: [MeasureStudy(name=n) for n in ("pc1", "svcca", "rsa", "cka")]
    )
    nulls: dict[str, int] = field(default_factory=lambda: {"shuffle": 1000, "rate_matched": 1000})
    controls: Controls = field(default_factory=Controls)
    verdicts: bool = True
    subspaces: SubspacesStudy | None = None
    output: OutputStudy = field(default_factory=OutputStudy)
    description: str | None = None
    source: str | None = None
    folder: Path = Path()
    models_from: Path | None = None

    @property
    def metrics(self) -> list[str]:
        """What to match by; the first is the study's own."""
        return [self.metric] if isinstance(self.metric, str) else list(self.metric)

    @property
    def places(self) -> Places:
        """Where what it names is taken from."""
        return Places(self.folder, self.models_from)


def rng_of(seed: int, *purpose: str | int) -> np.random.Generator:
    """A generator for one purpose of one seed: adding a measure or layer moves no other number."""
    words = [int.from_bytes(str(word).encode(), "big") for word in purpose]
    return np.random.default_rng([seed, *words])


def load_study(path: str | Path) -> Study:
    """The study that a YAML file describes.

    Args:
        path: The file; or, where there is no such file, the name of a study that ships. Its
            relative paths start at the current folder.

    Raises:
        MissingFileError: There is no such file.
        FormatError: Not YAML, or written for a newer version.
        StudyError: A key is missing, or a value has the wrong type or range.
        UnknownNameError: A key that is not known; names the nearest known one. Neither a file nor a
            name.
    """
    path, name = Path(path), str(path)
    shipped = shipped_studies()
    if not path.is_file() and name in shipped:
        return load_shipped(name)
    if not path.exists() and re.fullmatch(r"[\w-][\w.-]*", name) and not _NAMES_A_FILE.search(name):
        near = difflib.get_close_matches(name, shipped, n=1, cutoff=0)
        raise UnknownNameError(
            f"a study must be a YAML file or the name of one that ships, {name!r} is neither "
            f"(did you mean {near[0]!r}?): `saelign studies` lists them"
        )
    if path.is_dir():
        raise MissingFileError(
            f"a study must be a file, {path} is a folder: give the YAML file in it"
        )
    if not path.is_file():
        raise MissingFileError(f"a study file must be there to be read, {path} is not")
    return read_study(_content(path), folder=path.parent.resolve())


def shipped_studies() -> dict[str, Path]:
    """The files of the studies that ship, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def load_shipped(name: str) -> Study:
    """A study that ships, whatever files there are; its relative paths start here."""
    return read_study(_content(shipped_studies()[name]), folder=Path.cwd())


def _content(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} must be a YAML file: {told_yaml_error(error)}") from error


def read_study(content: object, *, folder: Path) -> Study:
    """The study that a mapping, as YAML gives it, describes; relative paths start at `folder`.

    Raises:
        FormatError: No mapping, no format version, or a newer one.
        StudyError: A key is missing, or a value has the wrong type or range.
        UnknownNameError: A key that is not known.
    """
    if not isinstance(content, Mapping):
        got = "nothing" if content is None else f"a {type(content).__name__}"
        raise FormatError(f"a study must be a mapping of keys, got {got}")
    content = dict(content)
    version = content.pop("saelign", None)
    if version is None:
        raise FormatError(
            f"a study must say its format in the key saelign, it does not: add `saelign: {FORMAT}`"
        )
    if not isinstance(version, int) or version > FORMAT:
        raise FormatError(
            f"this version reads studies of format {FORMAT}, got {version!r}: upgrade saelign"
        )
    if "measures" in content:
        content["measures"] = [spelled_out(m) for m in listed(content["measures"], "measures")]
    if "controls" in content:
        content["controls"] = named_controls(listed(content["controls"], "controls"))
    for key in NOT_KEYS:
        if content.get(key) is not None:
            raise UnknownNameError.of("key of study", key, study_keys(Study))
    study = dataclasses.replace(read_value(Study, content, "study"), folder=folder)
    check_study(study)
    return study


def listed(value: object, where: str) -> list[Any]:
    """The value, which must be a list."""
    if not isinstance(value, list):
        raise StudyError(f"{where} must be a list, got {value!r}")
    return value


def spelled_out(measure: object) -> dict[str, Any]:
    """A measure's `name` or `{name: options}` as a mapping with both keys."""
    if isinstance(measure, str):
        return {"name": measure}
    if isinstance(measure, Mapping) and len(measure) == 1:
        name, options = next(iter(measure.items()))
        if options is None or isinstance(options, Mapping):
            options = dict(options or {})
            own = {key: options.pop(key) for key in ("on", "permutations") if key in options}
            return {"name": name, "options": options, **own}
    raise StudyError(f"a measure must be a name or {{name: {{option: value}}}}, got {measure!r}")


def named_controls(controls: list[Any]) -> dict[str, Any]:
    """A list of `name` or `{name: options}` as one mapping."""
    named: dict[str, Any] = {}
    for control in controls:
        entry = {control: None} if isinstance(control, str) else control
        if not isinstance(entry, Mapping) or len(entry) != 1:
            raise StudyError(
                f"a control must be a name or {{name: {{option: value}}}}, got {control!r}"
            )
        name, options = next(iter(entry.items()))
        if name not in study_keys(Controls):
            raise UnknownNameError.of("control", name, study_keys(Controls))
        if name in named:
            raise StudyError(f"controls must not repeat an entry, got {name} twice")
        named[name] = {} if options is None else options
    return named


def study_keys(kind: type) -> list[str]:
    """The keys that a part of a study may have."""
    names = [f.name for f in dataclasses.fields(kind)]
    return ["saelign", *(n for n in names if n not in NOT_KEYS)] if kind is Study else names


def read_value(kind: Any, value: object, where: str) -> Any:
    """`value` as an instance of the annotated `kind`, or an error that says where it stands."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise StudyError(f"{where} must be a mapping of keys, got {value!r}")
        hints = typing.get_type_hints(kind)
        known = study_keys(kind)
        for key in value:
            if key not in known:
                raise UnknownNameError.of(f"key of {where}", key, known)
        for f in dataclasses.fields(kind):
            required = f.default is f.default_factory is dataclasses.MISSING
            if required and f.name not in value:
                raise StudyError(f"{where} must have the key {f.name}, it has none")
        prefix = "" if where == "study" else f"{where}."
        return kind(**{k: read_value(hints[k], v, f"{prefix}{k}") for k, v in value.items()})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
                return read_value(option, value, where)
            try:
                return read_value(option, value, where)
            except StudyError:
                continue
    elif origin is Literal:
        if value in arguments and not isinstance(value, bool):
            return value
    elif origin is list:
        if isinstance(value, list):
            return [read_value(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value)]
    elif origin is dict:
        if isinstance(value, Mapping):
            return {
                read_value(arguments[0], k, f"key of {where}"): (
                    read_value(arguments[1], v, f"{where}.{k}")
                )
                for k, v in value.items()
            }
    elif kind is Any:
        return value
    elif kind is types.NoneType:
        if value is None:
            return None
    elif kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif (
        isinstance(kind, type)
        and isinstance(value, kind)
        and (kind is bool or not isinstance(value, bool))
    ):
        return value
    raise StudyError(f"{where} must be {told_type(kind)}, got {value!r}")


def told_type(kind: Any) -> str:
    """An annotation in words."""
    if dataclasses.is_dataclass(kind):
        return "a mapping of keys"
    words = {
        str: "text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        types.NoneType: "null",
    }
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(told_type(option) for option in arguments)
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in arguments) if arguments[1:] else arguments[0]
    if origin is list:
        inner = told_type(arguments[0]).removeprefix("a ")
        # Of a list that holds lists it is these that are several.
        is_list = inner.startswith("list of ")
        return f"a list of {inner.replace('list', 'lists', 1) if is_list else f'{inner}s'}"
    if origin is dict:
        return "a mapping"
    return words.get(kind, str(kind))


def check_study(study: Study) -> None:
    """Refuse names that are not known and values out of range; `saelign check` looks at files.

    Raises:
        UnknownNameError: No such metric, matching, measure, option or null.
        DegenerateError: A measure's option takes no such value.
        StudyError: A value out of its range.
    """
    for kind, names, known in (
        ("metric", study.metrics, METRICS),
        ("matching", study.matching, MATCHINGS),
        ("null", study.nulls, NULLS),
    ):
        for name in names:
            if name not in known:
                raise UnknownNameError.of(kind, name, known)
    for measure in study.measures:
        entry = check_measure(measure.name, measure.options)
        turned = "rotation" in entry.invariances and measure.options.get("inner") != "pearson"
        if measure.on == "activations" and not turned:
            # Only inner products of activations are at hand, so any rotation of them will do.
            raise StudyError(
                f"a measure on activations must not change when they are rotated, {measure.label} "
                "does: leave `on` out, or choose another measure"
            )
    check_text(study.text)
    inside = None if study.subspaces is None else study.subspaces.filters
    at_least: list[tuple[str, float | None, float]] = [
        *filter_limits("filters", study.filters),
        *(filter_limits("subspaces.filters", inside) if inside else ()),
        *((f"nulls.{name}", n, 2) for name, n in study.nulls.items()),
        *((f"permutations of {m.label}", m.permutations, 2) for m in study.measures),
        *((f"seeds[{i}]", seed, 0) for i, seed in enumerate(study.seeds)),
    ]
    for where, value, least in at_least:
        if value is not None and value < least:
            raise StudyError(f"{where} must be at least {least:,}, got {value}")
    for where, filters in (("filters", study.filters), ("subspaces.filters", inside)):
        least = None if filters is None else filters.min_correlation
        if least is not None and not -1 <= least < 1:
            raise StudyError(f"{where}.min_correlation must lie in [-1, 1), got {least}")
    for where in ("seeds", "metrics", "matching", "measures", "nulls"):
        values = getattr(study, where)
        if len(values) == 0:
            raise StudyError(f"{where} must have at least one entry, it is empty")
        names = [getattr(value, "label", str(value)) for value in values]
        if not isinstance(values, dict) and len(set(names)) < len(names):
            raise StudyError(f"{where} must not repeat an entry, got {values}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", study.name):
        raise StudyError(
            f"name must be letters, digits, dots, dashes (it names a folder), got {study.name!r}"
        )
    for where, model in (("model_a", study.model_a), ("model_b", study.model_b)):
        check_places(model, where)
        several = model.layers == "all" or len(model.layers) > 1
        for key, told in (("saes", model.saes), ("neuronpedia", model.neuronpedia)):
            if several and isinstance(told, str) and "{layer}" not in told and told != GIVEN:
                raise StudyError(
                    f"{where}.{key} must hold {{layer}} when there are several layers, got {told!r}"
                )
    check_controls(study)
    if study.subspaces is not None:
        study.subspaces.check()
        if all(measure.on == "activations" for measure in study.measures):
            raise StudyError(
                "subspaces are scored on decoder rows, so at least one measure must be; all are on "
                "activations: add one, such as rsa"
            )


def check_text(text: TextStudy) -> None:
    """Refuse numbers out of range.

    Raises:
        StudyError: One that cannot be.
    """
    for where, value, least in (
        ("documents", text.documents, 1),
        ("tokens", text.tokens, 1_000),
        ("context_length", text.context_length, 2),
        ("contexts_per_document", text.contexts_per_document, 1),
    ):
        if isinstance(value, int) and value < least:
            raise StudyError(f"text.{where} must be at least {least:,}, got {value}")
    is_streamed = isinstance(text.source, DatasetSource) and text.source.streaming
    if is_streamed and text.documents == "all":
        raise StudyError(
            "text.documents must be a number where a data set is streamed, got all: say how many "
            "to read, or leave streaming out"
        )
    if text.across_documents and text.contexts_per_document != "all":
        raise StudyError(
            "text.contexts_per_document must be left out where contexts are filled across "
            f"documents, got {text.contexts_per_document}: leave one of the two out"
        )


def check_places(model: ModelStudy, where: str) -> None:
    """Refuse layers and modules at which no model can be read.

    Raises:
        StudyError: A layer twice, none at all, or a module of the residual stream.
    """
    layers = model.layers
    if layers != "all" and (not layers or len(set(layers)) < len(layers)):
        raise StudyError(f"{where}.layers must be distinct layers, got {layers}")
    if model.module is not None and model.site in ("resid_post", "resid_pre"):
        raise StudyError(
            f"{where}.module must go with a site inside a block (mlp_out, attn_out, attn_z), "
            f"got {model.module!r} beside {model.site}: say the site, or leave the module out"
        )


def filter_limits(where: str, filters: Filters) -> list[tuple[str, int | None, int]]:
    """The least that each of the filters can be."""
    return [
        (f"{where}.min_active_tokens", filters.min_active_tokens, 1),
        (f"{where}.top_k", filters.top_k, 1),
        (f"{where}.max_non_concept_tokens", filters.max_non_concept_tokens, 0),
        (f"{where}.min_shared_tokens", filters.min_shared_tokens, 1),
    ]


def check_controls(study: Study) -> None:
    """Refuse controls that lack what they compare.

    Raises:
        StudyError: A seed control without other SAEs, or a path that is the same for all layers.
    """
    untrained, seed = study.controls.untrained, study.controls.seed
    if seed is not None and seed.saes_a is None and seed.saes_b is None:
        raise StudyError(
            "the control seed must say where other SAEs of a model lie, it says neither saes_a nor "
            "saes_b: for instance `seed: {saes_a: other/layer_{layer}.safetensors}`"
        )
    if untrained is not None and untrained.seed < 0:
        raise StudyError(f"controls.untrained.seed must be at least 0, got {untrained.seed}")
    for name, control in (("untrained", untrained), ("seed", seed)):
        for side, model in (("a", study.model_a), ("b", study.model_b)):
            path = getattr(control, f"saes_{side}", None)
            several = model.layers == "all" or len(model.layers) > 1
            if path in (None, "random", "trained") or "{layer}" in path or not several:
                continue
            raise StudyError(
                f"controls.{name}.saes_{side} must hold {{layer}} when there are several layers, "
                f"got {path!r}"
            )


def study_mapping(study: Study) -> dict[str, Any]:
    """The study as a mapping that `read_study` reads back to the same study."""
    content = dataclasses.asdict(study)
    for key in NOT_KEYS:
        del content[key]
    content["measures"] = [{m.name: m.written} if m.written else m.name for m in study.measures]
    content["controls"] = study.controls.asked
    return {"saelign": FORMAT, **content}
