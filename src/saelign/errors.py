"""Every deliberate error of saelign.

Each says what must hold, what was got and what to do, and inherits the fitting builtin as well,
so that code that knows nothing of saelign can still catch it:

    SaelignError
    |-- StudyError (ValueError)             the study file asks for what cannot be
    |-- UnknownNameError (ValueError)       a name that is none of the expected ones
    |-- MissingFileError (FileNotFoundError)  a file or folder is not there
    |-- HubError (ConnectionError)          a model hub not reached, or that lets one not in
    |-- FormatError (ValueError)            a file that is not what it claims to be
    |-- DamagedError (ValueError)           a stored file is not what was written
    |-- ModelError (RuntimeError)           a model not loaded, or its blocks not found
    |-- WiringError (ValueError)            an SAE that does not fit the site it is read at
    |-- TextError (ValueError)              text not to be had, too short, or tokenised differently
    |-- ActivationError (ValueError)        activations that are NaN, infinite or all dead
    |-- ShapeError (ValueError)             arrays whose shapes do not fit together
    |-- DegenerateError (ValueError)        data for which a score is not defined
    `-- StorageError (OSError)              a disk that cannot be written
"""

import difflib
from collections.abc import Iterable


class SaelignError(Exception):
    """The root: catch this to catch every deliberate error of saelign."""


class StudyError(SaelignError, ValueError):
    """A study file that asks for what cannot be."""


class UnknownNameError(SaelignError, ValueError):
    """A name that is none of the expected ones."""

    @classmethod
    def of(cls, kind: str, got: object, expected: Iterable[str]) -> "UnknownNameError":
        """The error for `got` where one of `expected` had to stand, naming the nearest of them."""
        names = sorted(expected)
        near = difflib.get_close_matches(str(got), names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        return cls(f"unknown {kind} {got!r}{hint}, expected one of: {', '.join(names)}")


class MissingFileError(SaelignError, FileNotFoundError):
    """A file or folder that is not there."""


class HubError(SaelignError, ConnectionError):
    """A model hub that cannot be reached, breaks off, or does not let one in."""


class FormatError(SaelignError, ValueError):
    """A file that is there but cannot be read as what it claims to be."""


class DamagedError(SaelignError, ValueError):
    """A stored file whose content is not what was recorded when it was written."""


class ModelError(SaelignError, RuntimeError):
    """A model that cannot be loaded, or whose blocks are not found."""


class WiringError(SaelignError, ValueError):
    """An SAE that does not fit the site at which it is to be read."""


class TextError(SaelignError, ValueError):
    """Text that cannot be had, is too short, or is tokenised differently by the two models."""


class ActivationError(SaelignError, ValueError):
    """Activations that are NaN or infinite, or a layer without a live feature."""


class ShapeError(SaelignError, ValueError):
    """Arrays whose shapes do not fit together."""


class DegenerateError(SaelignError, ValueError):
    """Data for which the asked score is not defined."""


class StorageError(SaelignError, OSError):
    """A disk or folder that cannot be written."""
