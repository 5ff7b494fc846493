"""Models, tokenizers and SAEs that a Python program has in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from saelign.errors import ModelError, StudyError
from saelign.models import weights_sha256
from saelign.saes import sae_of
from saelign.text import Tokenizer

SIDES = ("a", "b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What stands in place of what a study names for one of its models.

    Attributes:
        model: A language model of transformers in evaluation mode, on its device; None: loaded as
            the study says. Its name in the study is then a label.
        tokenizer: The model's; None: loaded as the study says.
        saes: By layer, any objects that `saelign.saes.sae_of` takes, on the model's device; None:
            read as the study says. The study says `saes: given`.
    """

    model: nn.Module | None = None
    tokenizer: Tokenizer | None = None
    saes: Mapping[int, Any] | None = None

    @property
    def config(self) -> PretrainedConfig | None:
        """The configuration of the model given; None if there is none."""
        config: Any = None if self.model is None else self.model.config
        return config

    @property
    def device(self) -> str | None:
        """Where the model given is; None if there is none."""
        return None if self.model is None else str(next(self.model.parameters()).device)

    @property
    def fingerprint(self) -> str | None:
        """What tells its weights, and what they are held in, from others; None if there are none.

        The hash alone would not tell bfloat16 from the same numbers in float32.
        """
        if self.model is None:
            return None
        dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        return f"given-{dtype}-{weights_sha256(self.model)}"


def settled(given: Mapping[str, Given] | None) -> dict[str, Given]:
    """What was given for each side, its SAEs as `SAE`.

    Raises:
        StudyError: A side that is neither `a` nor `b`.
        ModelError: A model in training mode, or without a configuration.
        FormatError: An object that is no SAE.
    """
    settled = {side: Given() for side in SIDES}
    for side, of_side in (given or {}).items():
        if side not in SIDES:
            raise StudyError(f"what is given must be for side 'a' or 'b', got {side!r}")
        model = of_side.model
        if model is not None and not isinstance(getattr(model, "config", None), PretrainedConfig):
            raise ModelError(
                "a model given as an object must be one of transformers, with its config, "
                f"{type(model).__name__} has none"
            )
        if model is not None and model.training:
            raise ModelError("a model given as an object must not be training: call model.eval()")
        saes = of_side.saes
        if saes is not None:
            saes = {
                n: sae_of(s, name=f"SAE given for layer {n} of {side}") for n, s in saes.items()
            }
        settled[side] = replace(of_side, saes=saes)
    return settled
