"""Checks of the keywords that a runner is configured with."""

from ppworker.errors import Invalid


def whole_number(name: str, value: object, *, low: int, high: int) -> int:
    """The value as a whole number between two bounds, both allowed.

    Raises:
        Invalid: it is not one; the message names the option and its bounds.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise Invalid(
            f"{name} must be a whole number from {low} to {high}, not {value!r}",
            field=f"runner_config.{name}",
        )
    return value


def number(name: str, value: object, *, low: float, high: float) -> float:
    """The value as a number between two bounds, both allowed.

    Raises:
        Invalid: it is not one; the message names the option and its bounds.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise Invalid(
            f"{name} must be a number from {low:g} to {high:g}, not {value!r}",
            field=f"runner_config.{name}",
        )
    return float(value)


def fraction(name: str, value: object) -> float:
    """The value as a number between 0 and 1, both allowed.

    Raises:
        Invalid: it is not one.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise Invalid(
            f"{name} must be a number from 0 to 1, not {value!r}", field=f"runner_config.{name}"
        )
    return float(value)


def flag(name: str, value: object) -> bool:
    """The value as true or false.

    Raises:
        Invalid: it is neither.
    """
    if not isinstance(value, bool):
        raise Invalid(f"{name} must be true or false, not {value!r}", field=f"runner_config.{name}")
    return value


def optional_text(name: str, value: object) -> str | None:
    """The value as a text that is not empty, or None.

    Raises:
        Invalid: it is something else.
    """
    if value is not None and (not isinstance(value, str) or not value):
        raise Invalid(f"{name} must be a text, not {value!r}", field=f"runner_config.{name}")
    return value
