"""Finds runners by name.

A name is that of an entry point of the group ``ppworker.runners``, or ``module:Class`` for a class
of one's own that is not packaged; its module must be importable (``PYTHONPATH``). Finding a runner
imports its module, never its model library: that is left to ``Runner.load``.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any, cast

from ppworker.errors import Invalid
from ppworker.runners.base import Runner, RunnerSpec

GROUP = "ppworker.runners"
"""Entry-point group in which packages offer their runners."""


def names() -> list[str]:
    """Names of the installed runners, sorted; classes named by path are not among them."""
    return sorted(_entry_points())


def find(name: str) -> type[Runner]:
    """The runner class behind a name.

    Raises:
        Invalid: nobody offers the name, it cannot be imported, or it is no runner.
    """
    if ":" in name:
        return _by_path(name)
    entry = _entry_points().get(name)
    if entry is None:
        raise Invalid(
            f"there is no runner {name!r}; known are {', '.join(names())}, "
            "and any class of yours as 'module:Class'",
            field="runner",
        )
    return _by_path(entry.value)


def spec(name: str) -> RunnerSpec:
    """What a runner declares about itself, without loading it.

    Raises:
        Invalid: as ``find``.
    """
    return find(name).spec


def check(name: str, config: Mapping[str, object], *, by_path: bool = True) -> RunnerSpec:
    """Make sure, when a post-processor is created, that its runner exists and takes its settings.

    Args:
        name: as for ``find``.
        config: keywords for the runner.
        by_path: whether ``module:Class`` and options that name files are allowed. Importing a
            module runs it, so a door that is open to strangers says no.

    Raises:
        Invalid: the runner is unknown, its libraries are missing (the message names the extra),
            or a keyword is unknown, missing or malformed (``field`` is ``runner_config.<key>``).
    """
    if not by_path and ":" in name:
        raise Invalid("a runner is chosen by its name here, not by its path", field="runner")
    found = find(name)
    for option in found.spec.paths:
        if not by_path and config.get(option) is not None:
            raise Invalid(
                "names a file of the worker's machine; only the command line sets it",
                field=f"runner_config.{option}",
            )
    complaint = _missing(name, found.spec)
    if complaint:
        raise Invalid(complaint, field="runner")
    build(name, config)
    return found.spec


def build(name: str, config: Mapping[str, object]) -> Runner:
    """A new runner that is not loaded yet.

    Raises:
        Invalid: as ``check``, missing libraries excepted: ``load`` reports those.
    """
    found = find(name)
    _check_keywords(name, found, config)
    try:
        return cast("Callable[..., Runner]", found)(**config)
    except Invalid:
        raise
    except Exception as error:
        raise Invalid(
            f"runner {name!r} refuses its settings: {type(error).__name__}: {error}",
            field="runner_config",
        ) from error


@cache
def _entry_points() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


@cache
def _by_path(path: str) -> type[Runner]:
    module_name, _, attribute = path.partition(":")
    try:
        found: Any = import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # a stranger's module may fail in any way when it is imported
        raise Invalid(
            f"runner {path!r} cannot be imported: {type(error).__name__}: {error}", field="runner"
        ) from error
    # Nothing is called before this check, so a path cannot be made to run a class of its choice.
    if not inspect.isclass(found) or not isinstance(getattr(found, "spec", None), RunnerSpec):
        raise Invalid(f"{path!r} is no runner: it needs a class with a RunnerSpec", field="runner")
    return cast("type[Runner]", found)


def _missing(name: str, declared: RunnerSpec) -> str | None:
    absent = [module for module in declared.needs if find_spec(module) is None]
    if not absent:
        return None
    if declared.extra:
        return (
            f"runner {name!r} needs the extra {declared.extra!r}: "
            f"pip install 'ppworker[{declared.extra}]'"
        )
    return f"runner {name!r} needs what is not installed: {', '.join(absent)}"


def _check_keywords(name: str, found: type[Runner], config: Mapping[str, object]) -> None:
    parameters = inspect.signature(found).parameters.values()
    known = [p.name for p in parameters if p.kind in {p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD}]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for key in config:
        if key not in known and not takes_any:
            offer = f"it knows {', '.join(known)}" if known else "it has none"
            raise Invalid(
                f"runner {name!r} has no option {key!r}; {offer}", field=f"runner_config.{key}"
            )
    for parameter in parameters:
        needed = parameter.default is parameter.empty and parameter.name in known
        if needed and parameter.name not in config:
            raise Invalid(
                f"runner {name!r} needs the option {parameter.name!r}",
                field=f"runner_config.{parameter.name}",
            )
