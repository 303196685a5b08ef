"""Asks Datumaro what our COCO and YOLO archives say, and reads what it writes: `make oracle`.

A dataset that nobody would make by hand: pictures of unequal sizes, names in several scripts,
boxes that touch every edge, a picture of two splits, one without annotations.

Usage: python -m oracle.compare PYTHON_WITH_DATUMARO
"""

import io
import json
import random
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from format_archives import about, placed, read
from ppworker.formats.archive_writer import ArchiveWriter
from ppworker.formats.base import Format, Mark, Record, Report
from ppworker.formats.coco import Coco
from ppworker.formats.yolo import Yolo

HERE = Path(__file__).parent
NAMES = (
    "plain",
    "mit Leerzeichen",
    "größe",
    "写真",
    "фото",
    "صورة",
    "a.b.c",
    "🚀",
    "x-y_z",
    "é combining",
)
LABELS = ("cat", "großer Hund", "猫", "a,b")
SPLITS = ("train", "val", "test")  # Datumaro writes no others in the layout of Ultralytics
TOLERANCE_PX = 0.011
"""Datumaro rounds points to two digits behind the point."""

Said = dict[str, dict[str, list[tuple[str, str, tuple[float, ...]]]]]


def dataset(pictures: int = 60) -> list[Record]:
    """The same at each call."""
    chance = random.Random(4)
    records = []
    for number in range(pictures):
        width, height = chance.randint(20, 900), chance.randint(20, 900)
        ending, media = chance.choice([("jpg", "jpeg"), ("png", "png")])
        records.append(
            Record(
                id=f"id-{number}",
                name=f"{NAMES[number % len(NAMES)]} {number}",
                extension=ending,
                splits=tuple(chance.sample(SPLITS, 2 if number % 10 == 0 else 1)),
                media_type=f"image/{media}",
                content_sha256=f"{number:064x}",
                width=width,
                height=height,
                marks=tuple(_mark(chance, width, height) for _ in range(number % 7)),
            )
        )
    return records


def _mark(chance: random.Random, width: int, height: int) -> Mark:
    label = chance.choice(LABELS)
    if chance.random() < 0.2:
        points = [
            [float(chance.randint(0, width)), float(chance.randint(0, height))] for _ in range(5)
        ]
        points[:2] = [[0.0, 0.0], [float(width), float(height)]]
        return Mark(label=label, kind="polygon", geometry={"points": points})
    x1, y1 = (
        chance.choice([0.0, chance.uniform(0, width - 5)]),
        chance.choice([0.0, chance.uniform(0, height - 5)]),
    )
    x2 = chance.choice([float(width), chance.uniform(x1 + 1, width)])
    y2 = chance.choice([float(height), chance.uniform(y1 + 1, height)])
    return Mark(label=label, kind="bbox", geometry={"box": [x1, y1, x2, y2]})


@contextmanager
def _picture(record: Record) -> Iterator[BinaryIO]:
    made = io.BytesIO()
    Image.new("RGB", (record.width or 1, record.height or 1)).save(
        made, record.media_type[6:].upper()
    )
    yield made


def _export(format_: Format, records: list[Record], folder: Path) -> Report:
    path, report = folder / "ours.zip", Report()
    with path.open("w+b") as out:
        archive = ArchiveWriter(out)
        writer = format_.writer(archive, about(LABELS, SPLITS), _picture, report, {})
        for record in records:
            writer.add(record)
        writer.finish()
        archive.close()
    with zipfile.ZipFile(path) as packed:
        packed.extractall(folder / "ours")
    return report


def _expected(records: list[Record], *, has_polygons: bool) -> Said:
    """What Datumaro should say; beside a polygon it also says the box around it."""
    found: Said = {}
    for record in records:
        marks = []
        for mark in record.marks:
            points = (mark.geometry or {}).get("points")
            if points is None:
                marks.append((mark.label, "bbox", tuple((mark.geometry or {})["box"])))
                continue
            xs, ys = zip(*points, strict=True)
            marks.append((mark.label, "bbox", (min(xs), min(ys), max(xs), max(ys))))
            if has_polygons:
                marks.append(
                    (mark.label, "polygon", tuple(side for point in points for side in point))
                )
        for split in record.splits:
            found.setdefault(split, {})[record.name] = marks
    return found


def _differences(expected: Said, said: dict[str, Any]) -> list[str]:
    if expected.keys() != said.keys():
        return [f"splits {sorted(said)} instead of {sorted(expected)}"]
    wrong = []
    for split, items in expected.items():
        if items.keys() != said[split].keys():
            wrong.append(f"{split}: pictures differ: {sorted(items.keys() ^ said[split].keys())}")
            continue
        for name, marks in items.items():
            left = [tuple(mark) for mark in said[split][name]]
            for mark in marks:
                if (same := _same(mark, left)) is None:
                    wrong.append(f"{split}/{name}: {mark} is not in {left}")
                else:
                    left.remove(same)
            wrong += [f"{split}/{name}: {mark} is nobody's" for mark in left]
    return wrong


def _same(mark: Any, among: list[Any]) -> Any:
    """The mark of these that says the same, up to the tolerance; None if there is none."""
    for other in among:
        is_alike = mark[:2] == other[:2] and len(mark[2]) == len(other[2])
        sides = zip(mark[2], other[2], strict=False)
        if is_alike and all(abs(a - b) <= TOLERANCE_PX for a, b in sides):
            return other
    return None


def _back(format_: Format, folder: Path, records: list[Record], *, has_polygons: bool) -> list[str]:
    """Differences in what we read of an archive that Datumaro wrote."""
    members = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    _, found, report = read(format_, members, about(LABELS, SPLITS))
    said: dict[str, Any] = {}
    by_name = {record.name: record for record in records}
    for one in found:
        name = one.name.removesuffix(f".{one.extension}")
        marks = []
        for place in placed(one, by_name[name]):
            if place.kind == "bbox":
                marks.append((place.label, "bbox", tuple(place.geometry["box"])))
            else:
                sides = tuple(side for point in place.geometry["points"] for side in point)
                xs, ys = sides[::2], sides[1::2]
                marks.append((place.label, "bbox", (min(xs), min(ys), max(xs), max(ys))))
                marks += [(place.label, "polygon", sides)] * has_polygons
        for split in one.splits:
            said.setdefault(split, {}).setdefault(name, []).extend(marks)
    # It writes files of other tasks beside, all empty.
    skipped = {k: v for k, v in report.skipped.items() if k not in {"unused_file", "other_task"}}
    return _differences(_expected(records, has_polygons=has_polygons), said) + (
        [f"skipped: {skipped}"] if skipped else []
    )


def main(python: str) -> int:
    """Compare both formats in both directions; returns how many differ."""
    records, failed = dataset(), 0
    boxes = sum(len(record.marks) for record in records)
    for format_, theirs, outs in (
        (Coco(), "coco", ("coco",)),
        (Yolo(), "yolo", ("yolo", "yolo_ultralytics")),
    ):
        has_polygons = theirs == "coco"
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            report = _export(format_, records, folder)
            pairs = [word for out in outs for word in (out, str(folder / out))]
            ran = subprocess.run(
                [python, HERE / "datumaro_side.py", theirs, folder / "ours", *pairs],
                check=True, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            said = json.loads(ran.stdout.splitlines()[-1])
            results = {
                "reads ours": _differences(
                    _expected(records, has_polygons=has_polygons), said["splits"]
                )
            }
            for out in outs:
                results[f"writes {out}, we read"] = _back(
                    format_, folder / out, records, has_polygons=has_polygons
                )
        for what, wrong in results.items():
            verdict = "the same" if not wrong else f"{len(wrong)} differences"
            print(f"Datumaro {said['version']} {what} ({theirs}): {len(records)} pictures, "
                  f"{boxes} annotations: {verdict}; losses said: {dict(report.losses)}")  # fmt: skip
            for line in wrong[:5]:
                print("  " + line[:400])
            failed += bool(wrong)
    return failed


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1])))
