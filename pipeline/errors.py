"""Errors that users of the package can correct: an option, an input, a file, a store.

Each is a `ValueError`, so `except ValueError` catches them all. A message says what is wrong, what was expected and
what to do next. It names an option as Python spells it, in backticks: `batch_size`. The command line shows its flag.
"""

from __future__ import annotations

__all__ = [
    "DamagedStoreError",
    "MissingDependencyError",
    "OptionError",
    "PipelineError",
    "SampleNotFoundError",
    "StoreFormatError",
    "StoreNotFoundError",
]


class PipelineError(ValueError):
    """Something that the user can correct. All errors of this package are of this class.

    Example:
        >>> import pipeline as tiekd
        >>> try:
        ...     tiekd.open_store("nothing.zarr")
        ... except tiekd.PipelineError as error:
        ...     print(type(error).__name__)
        StoreNotFoundError
    """


class OptionError(PipelineError):
    """An option has a value that it cannot have.

    Attributes:
        option: its name in Python, such as `batch_size`.
        value: what was given.
        expected: what it may be, in words.
    """

    def __init__(self, option: str, value: object, expected: str) -> None:
        super().__init__(f"`{option}={value!r}`: expected {expected}")
        self.option, self.value, self.expected = option, value, expected

    def __reduce__(self) -> tuple[type[OptionError], tuple[str, object, str]]:
        return type(self), (self.option, self.value, self.expected)


class StoreNotFoundError(PipelineError):
    """There is no store at a path or URL, or it is not finished."""


class StoreFormatError(PipelineError):
    """A store is of an unknown version, or its metadata is not what its version prescribes."""


class DamagedStoreError(PipelineError):
    """Bytes of a store are not those that were written."""


class SampleNotFoundError(PipelineError, KeyError):
    """A store has no sample of an id."""

    def __str__(self) -> str:
        # KeyError shows its argument with quotes
        return ValueError.__str__(self)


class MissingDependencyError(PipelineError):
    """An optional package is not installed.

    Attributes:
        package: its import name.
        extra: the extra of this distribution that brings it.
    """

    def __init__(self, package: str, extra: str, what: str) -> None:
        super().__init__(f"{what}: the package {package} is not installed; run: pip install 'tiekd-pipeline[{extra}]'")
        self.package, self.extra, self._what = package, extra, what

    def __reduce__(self) -> tuple[type[MissingDependencyError], tuple[str, str, str]]:
        return type(self), (self.package, self.extra, self._what)
