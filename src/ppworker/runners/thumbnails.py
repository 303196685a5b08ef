"""Makes small pictures of images and first pages. No model, but hostile files meet their decoder
here, so it runs as one: in a process of its own, with limits of memory and time."""

import base64
import io
from collections.abc import Sequence

from PIL import Image

from ppworker.errors import RunnerError, UnreadableInput
from ppworker.runners import documents, wire
from ppworker.runners.base import RawAnswer, RunnerInput, RunnerSpec

MEDIA_TYPES = documents.MEDIA_TYPES
"""What it makes pictures of."""

SIDE = 512
"""Most pixels of the longer side."""

_QUALITY = 80
_MEMORY_MB = 1536


class Thumbnailer:
    """Runs as a runner does: ``jpeg`` of the upright image, or of the first page, in base 64."""

    spec = RunnerSpec(tasks=(), reads="file", media_types=MEDIA_TYPES, memory_mb=_MEMORY_MB)

    def load(self) -> None:
        """Nothing is kept between files."""

    def predict(self, inputs: Sequence[RunnerInput]) -> list[RawAnswer | RunnerError]:
        """Make a picture of each file."""
        return [_answer(each) for each in inputs]

    def close(self) -> None:
        """Nothing to give back."""


def _answer(given: RunnerInput) -> RawAnswer | RunnerError:
    if given.path is None:
        return UnreadableInput("there is no file")
    try:
        page = next(documents.pages(given.path, given.media_type, side=SIDE, max_pages=None))
        page.image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
        out = io.BytesIO()
        page.image.save(out, "JPEG", quality=_QUALITY, optimize=True)
    except Exception as error:  # noqa: BLE001  one file's fault is its own
        return wire.as_runner_error(error)
    return RawAnswer(raw={"jpeg": base64.b64encode(out.getvalue()).decode()})
