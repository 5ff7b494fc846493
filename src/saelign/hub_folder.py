"""A folder in place of the hub: does it hold all that a study names?"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from saelign.errors import MissingFileError, StudyError
from saelign.given import Given
from saelign.locations import HUB, SAE_LENS, Places, hub_place
from saelign.study import ModelStudy, Study
from saelign.text import DatasetSource

MOST_SHOWN = 8
"""Names in a folder that an error tells."""


def check_hub_folder(study: Study, given: Mapping[str, Given]) -> None:
    """Nothing, if the study's `models_from`, where it has one, holds all that it names.

    Looks for folders, not into them. It is not asked which revision they are.

    Raises:
        MissingFileError: There is no such folder, or something is not in it; tells all of it.
        StudyError: SAEs by names of SAELens, which asks the hub for them.
    """
    there = study.models_from
    if there is None:
        return
    if not there.is_dir():
        raise MissingFileError(
            f"a folder in place of the hub must be there, {there} is not: fill it with `hf download"
            " OWNER/NAME --local-dir DIR/OWNER/NAME`, or leave --models-from out"
        )
    lacking = list(dict.fromkeys(_lacking(study, given)))
    if lacking:
        raise MissingFileError(
            "a folder in place of the hub must hold all that the study names, it lacks "
            f"{'; '.join(lacking)}: download it to there, or leave --models-from out"
        )


def _lacking(study: Study, given: Mapping[str, Given]) -> Iterator[str]:
    places, controls = study.places, study.controls
    for side, model in (("a", study.model_a), ("b", study.model_b)):
        objects, name = given[side], places.repository(model.name)
        tokenizer = places.repository(model.tokenizer or model.name)
        if objects.model is None and not Path(name).is_dir():
            yield f"{name} (model {side.upper()})"
        elif objects.tokenizer is None and not Path(tokenizer).is_dir():
            yield f"{tokenizer} (tokenizer {side.upper()})"
        others = (getattr(of, f"saes_{side}", None) for of in (controls.untrained, controls.seed))
        for saes in (model.saes, *(other for other in others if other is not None)):
            yield from _lacking_saes(replace(model, saes=saes), places)
    source = study.text.source
    if isinstance(source, DatasetSource) and not Path(places.repository(source.dataset)).is_dir():
        yield f"{places.repository(source.dataset)} (data set)"


def _lacking_saes(model: ModelStudy, places: Places) -> Iterator[str]:
    layers = model.layers
    if layers == "all":  # how many that is, the model's configuration says later
        layers = sorted(model.saes) if isinstance(model.saes, dict) else [0]
    for layer in layers:
        location = model.sae_location(layer)
        if location.startswith(SAE_LENS):
            raise StudyError(
                f"where a folder stands in place of the hub SAEs must be said as paths or as "
                f"{HUB}OWNER/NAME/FOLDER, got {location!r}, which SAELens asks the hub for"
            )
        if not location.startswith(HUB):
            continue
        folder = Path(places.sae(location))
        repository = Path(places.repository(hub_place(location).repository))
        if not repository.is_dir():
            yield f"{repository} (SAEs of {model.name})"
        elif not folder.exists() and model.layers != "all":
            above = next(parent for parent in folder.parents if parent.is_dir())
            held = sorted(path.name for path in above.iterdir() if not path.name.startswith("."))
            told = ", ".join(held[:MOST_SHOWN]) or "nothing"
            more = f" and {len(held) - MOST_SHOWN} more" if len(held) > MOST_SHOWN else ""
            yield f"{folder} (SAE of layer {layer}; {above} holds {told}{more})"
