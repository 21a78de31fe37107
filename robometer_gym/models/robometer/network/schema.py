"""Checks of configuration fields: types, ranges and shapes of lists.

Knows nothing of particular fields; `config.py` and `images.py` have the schemas.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from robometer_gym.reward_model import CheckpointError

__all__ = [
    "Field",
    "Schema",
    "boolean",
    "check_fields",
    "constant",
    "integer",
    "number",
    "numbers",
    "one_of",
    "optional",
    "table",
    "text",
]


class Field(NamedTuple):
    """A condition on one field.

    Attributes:
        expected: description of the accepted values, for the message.
        accepts: whether a value is one.
        required: whether the field must be there.
    """

    expected: str
    accepts: Callable[[Any], bool]
    required: bool = False


Schema = Mapping[str, Field]


def check_fields(values: Mapping[str, Any], schema: Schema, prefix: str = "") -> None:
    """Raise unless all fields that the schema knows have accepted values.

    Args:
        values: fields without an entry in the schema are ignored.
        schema: condition by field.
        prefix: of the field names in messages, such as "text_config.".

    Raises:
        CheckpointError: names the field, the accepted values and the found one.

    Example:
        >>> check_fields({"layers": 0}, {"layers": integer(1, 8)})
        Traceback (most recent call last):
        robometer_gym.reward_model.CheckpointError: layers must be an integer from 1 to 8, got 0.
    """
    for name, field in schema.items():
        if name not in values:
            if field.required:
                raise CheckpointError(
                    f"There is no {prefix}{name}, which must be {field.expected}."
                )
        elif not field.accepts(values[name]):
            found = reprlib.repr(values[name])
            raise CheckpointError(f"{prefix}{name} must be {field.expected}, got {found}.")


def integer(minimum: int, maximum: int, *, required: bool = False) -> Field:
    """Accept an integer in a range, both ends included."""
    return Field(
        f"an integer from {minimum} to {maximum}",
        lambda value: type(value) is int and minimum <= value <= maximum,
        required,
    )


def number(minimum: float, maximum: float, *, required: bool = False) -> Field:
    """Accept a number in a range, both ends included."""
    return Field(
        f"a number from {minimum:g} to {maximum:g}",
        lambda value: type(value) in (int, float) and minimum <= value <= maximum,
        required,
    )


def numbers(count: int, minimum: float, maximum: float, *, required: bool = False) -> Field:
    """Accept a list of `count` numbers in a range."""
    one = number(minimum, maximum)
    return Field(
        f"a list of {count} numbers from {minimum:g} to {maximum:g}",
        lambda value: (
            isinstance(value, list | tuple) and len(value) == count and all(map(one.accepts, value))
        ),
        required,
    )


def boolean() -> Field:
    """Accept true and false."""
    return Field("true or false", lambda value: isinstance(value, bool))


def text(*, required: bool = False) -> Field:
    """Accept a string that is neither empty nor very long."""
    return Field(
        "a name", lambda value: isinstance(value, str) and 0 < len(value) <= 1000, required
    )


def table(*, required: bool = False) -> Field:
    """Accept a table of fields."""
    return Field("a table of settings", lambda value: isinstance(value, dict), required)


def one_of(*values: str, required: bool = False) -> Field:
    """Accept one of these strings."""
    return Field(
        " or ".join(map(repr, values)),
        lambda value: isinstance(value, str) and value in values,
        required,
    )


def constant(value: float | str | bool) -> Field:
    """Accept this value alone, numbers up to rounding."""

    def accepts(found: Any) -> bool:
        if isinstance(value, float) and type(found) in (int, float):
            # By comparisons, which are exact for integers of any size.
            return bool(value * (1 - 1e-6) <= found <= value * (1 + 1e-6))
        return type(found) is type(value) and found == value

    return Field(repr(value), accepts)


def optional(field: Field) -> Field:
    """Accept null as well."""
    return Field(
        f"{field.expected}, or null",
        lambda value: value is None or field.accepts(value),
        field.required,
    )
