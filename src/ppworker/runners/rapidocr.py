"""rapidocr: reads the text of images and PDF pages, or finds where text stands on them."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from ppworker.errors import RunnerError, UnreadableInput
from ppworker.runners import documents, options, wire
from ppworker.runners.base import RawAnswer, RunnerInput, RunnerSpec
from ppworker.runners.documents import Page

_SURE = 0.9
"""Mean score of the lines below which a page may stand upside down."""
_NEEDS = ("rapidocr", "onnxruntime", "pypdfium2", "numpy", "cv2")


class _OnPages:
    """What both runners share: the engine, and the way from a file to its pages."""

    def __init__(self, *, dpi: int = 150, max_pages: int = 50) -> None:
        """Check the options.

        Args:
            dpi: resolution that PDF pages are rendered with; images keep their own.
            max_pages: most pages of one document; longer ones are refused, not cut.
        """
        self._dpi = options.whole_number("dpi", dpi, low=36, high=600)
        self._max_pages = options.whole_number("max_pages", max_pages, low=1, high=10_000)
        self._engine: Any = None
        self._version = ""

    def load(self) -> None:
        """Load the networks that come in rapidocr's package; needs no network connection."""
        import cv2  # noqa: PLC0415  reading the spec must not cost the libraries
        from rapidocr import RapidOCR  # noqa: PLC0415

        cv2.setNumThreads(1)
        self._engine = RapidOCR(
            params={
                "Global.log_level": "critical",
                # Which line is too unsure to keep is the post-processor's threshold to say.
                "Global.text_score": 0.0,
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )
        nets = (self._engine.cfg.Det, self._engine.cfg.Rec)
        names = " ".join(f"{net.ocr_version.value}-{net.model_type.value}" for net in nets)
        self._version = f"rapidocr {version('rapidocr')} {names}"

    def predict(self, inputs: Sequence[RunnerInput]) -> list[RawAnswer | RunnerError]:
        """Answer one by one: batches gain nothing on a processor without a GPU."""
        return [self._answer(item) for item in inputs]

    def close(self) -> None:
        """Let the networks go."""
        self._engine = None

    def _raw(self, pages: list[dict[str, Any]]) -> dict[str, Any]:
        raise NotImplementedError

    def _read(self, page: Page, pixels: Any) -> list[dict[str, Any]]:
        raise NotImplementedError

    def _answer(self, item: RunnerInput) -> RawAnswer | RunnerError:
        if item.path is None:
            return UnreadableInput("the item has no file")
        try:
            found = [
                self._on_page(page)
                for page in documents.pages(
                    item.path, item.media_type, dpi=self._dpi, max_pages=self._max_pages
                )
            ]
        except RunnerError as error:
            return error
        except Exception as error:  # noqa: BLE001  one input's fault must not cost the others
            return wire.as_runner_error(error)
        return RawAnswer(raw=self._raw(found), model_version=self._version)

    def _on_page(self, page: Page) -> dict[str, Any]:
        import numpy as np  # noqa: PLC0415  reading the spec must not cost the library

        pixels = np.ascontiguousarray(np.asarray(page.image)[:, :, ::-1])  # the engine reads BGR
        width, height = page.image.size
        about: dict[str, Any] = {"page": page.index, "width": width, "height": height}
        if page.dpi is not None:
            about["dpi"] = page.dpi
        return about | {"lines": in_reading_order(self._read(page, pixels))}


class RapidOcrRunner(_OnPages):
    """OCR: ``text`` of the document and ``pages`` with every line, its score and its polygon."""

    spec = RunnerSpec(
        tasks=("ocr",),
        reads="file",
        media_types=documents.MEDIA_TYPES,
        max_batch=8,
        needs=_NEEDS,
        extra="models",
    )

    def _read(self, page: Page, pixels: Any) -> list[dict[str, Any]]:
        # The network that tells upside-down lines turns one upright line of lower case in some
        # hundreds too, and what is read of it then is nonsense. So it is asked only where reading
        # without it went badly, and the page as a whole decides.
        found = self._engine(pixels, use_cls=False)
        if _mean_score(found) < _SURE:
            found = max(found, self._engine(pixels, use_cls=True), key=_mean_score)
        if found.boxes is None or found.txts is None:
            return []
        return [
            {"text": text, "score": float(score), "polygon": _polygon(box, page)}
            for text, score, box in zip(found.txts, found.scores, found.boxes, strict=True)
        ]

    def _raw(self, pages: list[dict[str, Any]]) -> dict[str, Any]:
        texts = ("\n".join(line["text"] for line in page["lines"]) for page in pages)
        return {"text": "\n\n".join(text for text in texts if text), "pages": pages}


class RapidOcrBoxesRunner(_OnPages):
    """Detection: one prediction ``text`` with a polygon for each line of text, which is not read.

    ``pages`` beside them tells the size of each page the coordinates are in.
    """

    spec = RunnerSpec(
        tasks=("detection",),
        reads="file",
        media_types=documents.MEDIA_TYPES,
        max_batch=8,
        labels=("text",),
        needs=_NEEDS,
        extra="models",
    )

    def _read(self, page: Page, pixels: Any) -> list[dict[str, Any]]:
        found = self._engine(pixels, use_det=True, use_cls=False, use_rec=False)
        if found.boxes is None:
            return []
        return [
            {"label": "text", "score": float(score), "polygon": _polygon(box, page)}
            for score, box in zip(found.scores, found.boxes, strict=True)
        ]

    def _raw(self, pages: list[dict[str, Any]]) -> dict[str, Any]:
        predictions = [line | {"page": page["page"]} for page in pages for line in page["lines"]]
        sizes = [{key: page[key] for key in page if key != "lines"} for page in pages]
        return {"predictions": predictions, "pages": sizes}


def _mean_score(found: Any) -> float:
    """How sure the engine is of the lines of a page; of none it is sure."""
    return sum(map(float, found.scores)) / len(found.scores) if found.scores else 1.0


def in_reading_order(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines from top to bottom, those of one height from left to right.

    A line belongs to the row of the one above it while its middle lies above that one's lower
    edge, so slight tilt and mixed sizes do not mix rows. Columns are not told apart.
    """
    rows: list[list[dict[str, Any]]] = []
    bottom = float("-inf")
    for line in sorted(lines, key=_middle):
        if not rows or _middle(line) > bottom:
            rows.append([])
            bottom = max(y for _, y in line["polygon"])
        rows[-1].append(line)
    return [line for row in rows for line in sorted(row, key=_left)]


def _middle(line: dict[str, Any]) -> float:
    heights = [y for _, y in line["polygon"]]
    return float(min(heights) + max(heights)) / 2


def _left(line: dict[str, Any]) -> float:
    return float(min(x for x, _ in line["polygon"]))


def _polygon(box: Any, page: Page) -> list[list[float]]:
    """Corners in pixels of the page; the engine may point a little beyond its edges."""
    width, height = page.image.size
    return [
        [min(max(float(x), 0.0), float(width)), min(max(float(y), 0.0), float(height))]
        for x, y in box
    ]
