"""Writes PDF files whose pages hold letters of a font, as word processors do, and no pictures."""

from collections.abc import Sequence

_POINTS_PER_INCH = 72
_SIZE, _LEADING, _MARGIN = 15, 48, 20
_BLANK = 7
"""Points that a blank is wider than the font has it: text recognisers overlook narrow ones."""


def typeset(pages: Sequence[Sequence[str]], *, page: tuple[int, int], dpi: int) -> bytes:
    """A PDF of lines of plain letters; a page is as many pixels large at that resolution."""
    width, height = (side * _POINTS_PER_INCH / dpi for side in page)
    numbers = [4 + 2 * index for index in range(len(pages))]
    kids = " ".join(f"{number} 0 R" for number in numbers)
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} /MediaBox [0 0 {width} {height}] >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, lines in zip(numbers, pages, strict=True):
        shown = " ".join(f"({line}) Tj T*" for line in lines)
        begin = f"/F {_SIZE} Tf {_BLANK} Tw {_LEADING} TL {_MARGIN} {height - 2 * _MARGIN} Td"
        text = f"BT {begin} {shown} ET"
        fonts = "<< /Font << /F 3 0 R >> >>"
        head = f"/Type /Page /Parent 2 0 R /Resources {fonts} /Contents {number + 1} 0 R"
        objects += [f"<< {head} >>", f"<< /Length {len(text)} >>\nstream\n{text}\nendstream"]
    return _file(objects)


def _file(objects: Sequence[str]) -> bytes:
    """The objects, and the table by which they are found."""
    out, table = "%PDF-1.4\n", "0000000000 65535 f \n"
    for number, body in enumerate(objects, start=1):
        table += f"{len(out):010d} 00000 n \n"
        out += f"{number} 0 obj\n{body}\nendobj\n"
    count = len(objects) + 1
    end = f"trailer\n<< /Size {count} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n"
    return (out + f"xref\n0 {count}\n{table}{end}").encode("ascii")
