"""The study that ships: two small trained language models, their SAEs, and text of their own."""

import dataclasses
from pathlib import Path

import yaml

from saelign.errors import MissingFileError
from saelign.study import Study, read_study
from saelign.text.sources import STANDARD_INPUT

FOLDER = Path(__file__).parent


def demo_study(*, text: str | Path | None = None, concepts: bool = False) -> Study:
    """The demo's study.

    Args:
        text: A text file or folder to read instead of the shipped text, or `-` for standard input;
            as many of its tokens as the demo reads, or all if it holds fewer.
        concepts: Whether to look into semantic subspaces as well.

    Raises:
        MissingFileError: There is no such file.
    """
    content = yaml.safe_load((FOLDER / "study.yaml").read_text(encoding="utf-8"))
    if concepts:
        content["name"] += "-concepts"
        content["controls"] = [
            control for control in content["controls"] if "untrained" in control
        ]  # the others compare features one by one; they would double the time
        content["subspaces"] = yaml.safe_load(
            (FOLDER / "concepts.yaml").read_text(encoding="utf-8")
        )
    study = read_study(content, folder=FOLDER.resolve())
    if text is None:
        return study
    source = STANDARD_INPUT if text == STANDARD_INPUT else str(Path(text).resolve())
    if source != STANDARD_INPUT and not Path(source).exists():
        raise MissingFileError(f"text must be a file or folder, {text} is not there")
    read = dataclasses.replace(study.text, source=source, allow_fewer=True)
    return dataclasses.replace(study, text=read)
