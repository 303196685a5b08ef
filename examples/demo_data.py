"""Makes the demo's input from a seed: pages, letters, speech, source and data files, broken files.

Pages and letters are composed, so what the models should find in them is known; so is what is said
in the recordings. Source and data files are real: they are copied from the standard library and
the installed packages.
"""

import hashlib
import io
import json
import os
import random
import shutil
import sysconfig
import textwrap
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import docx
from PIL import ExifTags, Image, ImageDraw, ImageFont

import demo_pdf
import demo_speech

Kind = Literal["page", "letter", "speech", "source", "broken", "later"]
"""``later``: a letter that is kept for the end of the demo."""

STREETS = (
    *("Maple", "Cedar", "Walnut", "Chestnut", "Lincoln", "Jefferson", "Madison", "Franklin"),
    *("Prospect", "Highland", "Sunset", "Meadow", "Willow", "Magnolia", "Sycamore", "Hickory"),
)
STREET_TYPES = ("Street", "Avenue", "Road", "Lane", "Drive")
CITIES = (
    *(("Portland", "OR"), ("Columbus", "OH"), ("Denver", "CO"), ("Austin", "TX")),
    *(("Nashville", "TN"), ("Phoenix", "AZ"), ("Atlanta", "GA"), ("Seattle", "WA")),
    *(("Springfield", "IL"), ("Albany", "NY"), ("Boise", "ID"), ("Orlando", "FL")),
)
WORDS = (
    *("garden", "window", "bridge", "market", "winter", "summer", "forest", "planet"),
    *("letter", "number", "silver", "golden", "orange", "purple", "yellow", "butter"),
    *("kitchen", "blanket", "morning", "evening", "thunder", "journey", "picture", "station"),
    *("mountain", "hospital", "sandwich", "umbrella", "calendar", "notebook", "treasure"),
    *("elephant", "dinosaur", "engineer", "scientist", "president", "gardener", "traveller"),
)
"""Long and lower-case: words that a text recogniser has no excuse to misread."""

# How many files of an ending the demo takes; what is missing here is missing in the demo.
SOURCES = {
    ".py": 12, ".json": 5, ".md": 4, ".csv": 4, ".xml": 3, ".yaml": 2, ".toml": 1,
    ".sql": 3, ".css": 2, ".html": 2, ".js": 2, ".c": 2, ".h": 2, ".rst": 2,
}  # fmt: skip
_SOURCE_BYTES = (400, 40_000)
_INK, _PAPER = "black", "white"
_PAGE = (900, 740)
_MARGIN, _LINE_HEIGHT, _FONT_SIZE = 40, 100, 32
_WORD_GAP = 32
"""Wider than the font's own blank, which text recognisers overlook now and then."""
_WORDS_PER_LINE = 4
_DPI = 150
_NO_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """An address in the United States, taken apart."""

    number: str
    street: str
    street_type: str
    city: str
    state: str
    zip_code: str

    @property
    def line(self) -> str:
        """As it is written on an envelope."""
        return (
            f"{self.number} {self.street} {self.street_type}, "
            f"{self.city}, {self.state} {self.zip_code}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A file of the input, and what is known of it."""

    path: Path
    kind: Kind
    lines: tuple[str, ...] = ()
    """What is printed on it, page after page, or said in it."""
    addresses: tuple[Address, ...] = ()


def make(folder: Path, *, seed: int) -> list[Made]:
    """Fill an empty folder with the demo's input; the same seed makes the same files.

    Returns:
        What was made, no two files with the same content.
    """
    rng = random.Random(seed)
    made = [
        *_pages(_subfolder(folder, "pages"), rng),
        *_letters(_subfolder(folder, "letters"), rng, "letter", count=14),
        *_documents(_subfolder(folder, "documents"), rng),
        *_speech(_subfolder(folder, "speech")),
        *_sources(_subfolder(folder, "sources"), rng),
        *_tables(_subfolder(folder, "tables"), rng),
        *_broken(_subfolder(folder, "broken"), rng),
        *_letters(_subfolder(folder, "later"), rng, "later", count=1),
    ]
    return list({_sha256(each.path): each for each in made}.values())


def random_address(rng: random.Random) -> Address:
    """An address that looks real and, but for chance, is not."""
    city, state = rng.choice(CITIES)
    return Address(
        number=str(rng.randint(100, 9899)),
        street=rng.choice(STREETS),
        street_type=rng.choice(STREET_TYPES),
        city=city,
        state=state,
        zip_code=str(rng.randint(10_000, 99_899)),
    )


def random_lines(rng: random.Random, address: Address, *, lines: int = 3) -> tuple[str, ...]:
    """Lines of random words, with an address somewhere below the first."""
    prose = [" ".join(rng.sample(WORDS, _WORDS_PER_LINE)) for _ in range(lines)]
    prose.insert(rng.randint(1, lines), address.line)
    return tuple(prose)


def render(lines: Sequence[str]) -> Image.Image:
    """Print lines on a page: large black letters on white, nothing else."""
    page = Image.new("RGB", _PAGE, _PAPER)
    pen = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=_FONT_SIZE)
    for row, line in enumerate(lines):
        x = float(_MARGIN)
        for word in line.split():
            pen.text((x, _MARGIN + row * _LINE_HEIGHT), word, fill=_INK, font=font)
            x += pen.textlength(word, font=font) + _WORD_GAP
    return page


def save_turned(page: Image.Image, path: Path) -> None:
    """Save a JPEG as a camera held sideways does: turned pixels, and a note to turn them back."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # show it a quarter turn clockwise
    page.transpose(Image.Transpose.ROTATE_90).save(path, quality=92, exif=exif)


def _pages(folder: Path, rng: random.Random) -> Iterator[Made]:
    """Twelve documents, three of them of several pages, one photographed sideways."""
    counts = {"png": (1, 1, 1, 1), "jpg": (1, 1, 1), "tiff": (1, 2), "pdf": (2, 2, 2)}
    for extension, documents in counts.items():
        for number, page_count in enumerate(documents, start=1):
            addresses = tuple(random_address(rng) for _ in range(page_count))
            texts = [random_lines(rng, address) for address in addresses]
            path = folder / f"page-{number}.{extension}"
            save_document([render(lines) for lines in texts], path, turned=number == 1)
            lines = tuple(line for page in texts for line in page)
            yield Made(path=path, kind="page", lines=lines, addresses=addresses)
    addresses = tuple(random_address(rng) for _ in range(2))
    texts = [random_lines(rng, address) for address in addresses]
    path = folder / "page-with-letters.pdf"
    path.write_bytes(demo_pdf.typeset(texts, page=_PAGE, dpi=_DPI))
    lines = tuple(line for page in texts for line in page)
    yield Made(path=path, kind="page", lines=lines, addresses=addresses)


def save_document(images: Sequence[Image.Image], path: Path, *, turned: bool) -> None:
    first, others = images[0], list(images[1:])
    if path.suffix == ".pdf":
        # Without dates the same seed makes the same bytes.
        first.save(
            path, save_all=True, append_images=others, resolution=_DPI,
            creationDate=None, modDate=None,
        )  # fmt: skip
    elif path.suffix == ".tiff":
        first.save(path, save_all=True, append_images=others, compression="tiff_lzw")
    elif path.suffix == ".jpg" and turned:
        save_turned(first, path)
    else:
        first.save(path)


def _letters(folder: Path, rng: random.Random, kind: Kind, *, count: int) -> Iterator[Made]:
    for number in range(1, count + 1):
        sender, receiver = random_address(rng), random_address(rng)
        prose = textwrap.wrap(" ".join(rng.choices(WORDS, k=rng.randint(30, 60))), width=72)
        lines = (receiver.line, "", *prose, "", "please answer to", sender.line)
        path = folder / f"{kind}-{number:02}.txt"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        yield Made(path=path, kind=kind, lines=lines, addresses=(receiver, sender))


def _documents(folder: Path, rng: random.Random) -> Iterator[Made]:
    """Letters once more, written with a word processor."""
    for number in range(1, 4):
        address = random_address(rng)
        lines = random_lines(rng, address, lines=5)
        document = docx.Document()
        for line in lines:
            document.add_paragraph(line)
        written = io.BytesIO()
        document.save(written)
        path = folder / f"letter-{number}.docx"
        path.write_bytes(without_dates(written.getvalue()))
        yield Made(path=path, kind="letter", lines=lines, addresses=(address,))


def without_dates(archive: bytes) -> bytes:
    """The same ZIP archive whenever it was written, so that a seed makes the same bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(zipfile.ZipInfo(name, _NO_DATE), old.read(name), zipfile.ZIP_DEFLATED)
    return out.getvalue()


def _speech(folder: Path) -> Iterator[Made]:
    """Real recordings of real people, an MP3 among them."""
    for name, said in demo_speech.transcripts().items():
        path = Path(shutil.copy(demo_speech.SPEECH / name, folder))
        yield Made(path=path, kind="speech", lines=(said,))


def _sources(folder: Path, rng: random.Random) -> Iterator[Made]:
    """Real files: a random choice of what Python's library and the installed packages brought."""
    found = _installed_files()
    for extension, wanted in SOURCES.items():
        there = found.get(extension, [])
        for number, source in enumerate(rng.sample(there, min(wanted, len(there))), start=1):
            path = folder / f"{number:02}-{source.name}"
            shutil.copyfile(source, path)
            yield Made(path=path, kind="source")


def _installed_files() -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for base in sorted({sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")}):
        for place, folders, names in os.walk(base):
            folders[:] = sorted(set(folders) - {"__pycache__", "site-packages"})
            for path in (Path(place, name) for name in sorted(names)):
                if path.suffix in SOURCES and _is_of_fair_size(path):
                    found.setdefault(path.suffix, []).append(path)
    return found


def _is_of_fair_size(path: Path) -> bool:
    smallest, largest = _SOURCE_BYTES
    return path.is_file() and smallest <= path.stat().st_size <= largest


def _tables(folder: Path, rng: random.Random) -> Iterator[Made]:
    """The same kind of list in two formats of data, so that they are there on every machine."""
    for number in range(1, 4):
        rows = [
            {"id": row, "word": rng.choice(WORDS), "amount": rng.randint(1, 9999)}
            for row in range(1, 41)
        ]
        table = folder / f"orders-{number}.csv"
        lines = [",".join(rows[0]), *(",".join(str(v) for v in row.values()) for row in rows)]
        table.write_text("\n".join(lines) + "\n", encoding="utf-8")
        yield Made(path=table, kind="source")
        orders = folder / f"orders-{number}.json"
        orders.write_text(json.dumps({"orders": rows}, indent=2), encoding="utf-8")
        yield Made(path=orders, kind="source")


def _broken(folder: Path, rng: random.Random) -> Iterator[Made]:
    """An image and a sound whose second half never arrived, a file without content, an old .doc."""
    whole = folder / "whole.png"
    render(random_lines(rng, random_address(rng))).save(whole)
    cut = folder / "cut-short.png"
    content = whole.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    whole.unlink()
    yield Made(path=cut, kind="broken")
    sound = folder / "cut-short.mp3"
    content = (demo_speech.SPEECH / "librivox-chapter.mp3").read_bytes()
    sound.write_bytes(content[: len(content) // 2])
    yield Made(path=sound, kind="broken")
    old = folder / "old.doc"
    old.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(4096))
    yield Made(path=old, kind="broken")
    empty = folder / "empty.bin"
    empty.touch()
    yield Made(path=empty, kind="broken")


def distinct(made: Iterable[Made]) -> int:
    """How many different contents there are, by SHA-256."""
    return len({_sha256(each.path) for each in made})


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _subfolder(folder: Path, name: str) -> Path:
    made = folder / name
    made.mkdir(parents=True)
    return made
