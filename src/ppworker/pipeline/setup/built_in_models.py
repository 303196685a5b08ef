"""Shows installed runners as models: with ids that stay, so that clients can name them.

Nothing here loads a model. What is told of one is what its runner and its package declare.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from uuid import UUID, uuid5

from ppworker import __version__
from ppworker.domain.inference import Task
from ppworker.errors import Invalid
from ppworker.pipeline.uploads.signatures import EXTENSIONS
from ppworker.runners import registry
from ppworker.runners.base import RunnerSpec

_NAMESPACE = UUID("6d1f4a52-7f0e-5c1b-9a86-0f6f0c1f4b10")
"""Ids are made of a runner's name in it; they are the same on every machine and for ever."""

KINDS: dict[Task, str] = {
    "stt": "speech_to_text",
    "stt-diarization": "speech_to_text",
    "classification": "image_classification",
    "detection": "object_detection",
    "ner": "ner",
    "ocr": "ocr",
    "llm": "llm",
}
"""What clients call a task; it tells them to send a file or a text. They know no classification of
files but that of images, which sends one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltIn:
    """An installed runner as a model with one version."""

    id: UUID
    version_id: UUID
    application_id: UUID
    runner: str
    spec: RunnerSpec
    description: str
    kind: str
    framework: str
    """The package that holds the model, empty where the runner names none."""
    framework_version: str
    """Of that package, empty while it is not installed."""
    can_inference: bool
    """Whether it can be asked here: its packages are installed and it needs no options."""

    @property
    def extensions(self) -> str:
        """Extensions of the files that it takes, comma between; empty where it takes any."""
        takes = self.spec.media_types
        if self.spec.reads == "text" or "*/*" in takes:
            return ""
        known = (e for kind, e in EXTENSIONS.items() if any(fnmatchcase(kind, t) for t in takes))
        return ",".join(sorted(known))


BASE_FRAMEWORK = "ppworker"
BASE_FRAMEWORK_VERSION = __version__


def built_in_id(runner: str) -> UUID:
    """Id of the model that a runner is."""
    return uuid5(_NAMESPACE, f"model:{runner}")


def list_built_in() -> list[BuiltIn]:
    """Every runner that is installed under a name, sorted by it."""
    found = (_described(name) for name in registry.names())
    return [each for each in found if each is not None]


def find_built_in(id_: UUID) -> BuiltIn | None:
    """The runner whose id that is."""
    for name in registry.names():
        if built_in_id(name) == id_:
            return _described(name)
    return None


@cache
def _described(runner: str) -> BuiltIn | None:
    try:
        spec = registry.spec(runner)
    except Invalid:
        return None  # somebody's package offers it and cannot be imported
    framework = next((n for n in spec.needs if runner.startswith(n)), "")
    framework = framework or (spec.needs[0] if spec.needs else "")
    return BuiltIn(
        id=built_in_id(runner),
        version_id=uuid5(_NAMESPACE, f"version:{runner}"),
        application_id=uuid5(_NAMESPACE, f"application:{runner}"),
        runner=runner,
        spec=spec,
        description=_first_line(runner),
        kind=KINDS[spec.tasks[0]],
        framework=framework,
        framework_version=_version(framework),
        can_inference=_can_inference(runner),
    )


def _first_line(runner: str) -> str:
    return (registry.find(runner).__doc__ or "").strip().partition("\n")[0]


def _version(package: str) -> str:
    try:
        return version(package) if package else ""
    except PackageNotFoundError:
        return ""


def _can_inference(runner: str) -> bool:
    try:
        registry.check(runner, {}, by_path=False)
    except Invalid:
        return False
    return True
