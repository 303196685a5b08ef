import io
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ppworker.errors import RunnerError, RunnerUnavailable, UnreadableInput, UnsupportedMedia
from ppworker.runners import documents
from ppworker.runners.rapidocr import in_reading_order


def pages(path, media_type="", **options):
    return list(documents.pages(path, media_type, **options))


def picture(width=40, height=20):
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (width // 2, 0, width, height))
    return image


def locked_pdf():
    """A PDF whose security handler no empty password opens."""
    hidden = "00" * 32
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 100 100] >>",
        f"<< /Filter /Standard /V 1 /R 2 /O <{hidden}> /U <{hidden}> /P -4 >>",
    ]
    out = "%PDF-1.4\n"
    places = []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n"
    out += "".join(f"{place:010d} 00000 n \n" for place in places)
    out += f"trailer\n<< /Size 5 /Root 1 0 R /Encrypt 4 0 R /ID [<{hidden}> <{hidden}>] >>\n"
    return (out + f"startxref\n{start}\n%%EOF\n").encode()


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "webp", "bmp", "gif"])
def test_each_kind_of_image_opens_as_rgb(tmp_path, kind):
    path = tmp_path / "x"
    picture().save(path, format=kind)
    (page,) = pages(path)
    assert (page.image.mode, page.image.size, page.index, page.dpi) == ("RGB", (40, 20), 0, None)


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "webp"])
def test_a_picture_taken_sideways_is_turned_upright(tmp_path, kind):
    path = tmp_path / "x"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(path, format=kind, exif=exif)
    (page,) = pages(path)
    assert page.image.size == (20, 40)
    red, _, blue = page.image.getpixel((10, 5))
    assert red - blue > 150, "the left half is on top when turned clockwise"


def test_every_page_of_a_tiff_counts_and_only_the_first_of_an_animation(tmp_path):
    sizes = [(40, 20), (30, 30), (10, 50)]
    first, *rest = [picture(*size) for size in sizes]
    first.save(tmp_path / "x.tiff", save_all=True, append_images=rest)
    assert [page.image.size for page in pages(tmp_path / "x.tiff")] == sizes
    for kind in ("gif", "webp", "png"):
        path = tmp_path / kind
        first.save(path, format=kind, save_all=True, append_images=[first.rotate(180)])
        assert len(pages(path)) == 1


def test_dark_letters_on_nothing_stand_on_white(tmp_path):
    image = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    image.putpixel((3, 3), (0, 0, 0, 255))
    image.save(tmp_path / "x.png")
    (page,) = pages(tmp_path / "x.png")
    assert page.image.getpixel((10, 10)) == (255, 255, 255)
    assert page.image.getpixel((3, 3)) == (0, 0, 0)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "I;16", "LA"])
def test_every_colour_mode_keeps_its_contrast(tmp_path, mode):
    path = tmp_path / "x"
    if mode == "I;16":
        image = Image.new("I;16", (20, 20), 60_000)
        image.putpixel((3, 3), 100)
    else:
        grey = Image.new("L", (20, 20), 255)
        grey.putpixel((3, 3), 0)
        image = grey.convert(mode)
    image.save(path, format="PNG" if mode == "LA" else "TIFF")
    (page,) = pages(path)
    assert min(page.image.getpixel((10, 10))) > 200
    assert max(page.image.getpixel((3, 3))) < 60


def test_a_pdf_gives_its_pages_at_the_resolution_asked_for(tmp_path):
    path = tmp_path / "x.pdf"
    picture(144, 72).save(
        path, format="PDF", save_all=True, append_images=[picture(72, 72)], resolution=72
    )
    first, second = pages(path, dpi=144)
    assert (first.image.size, first.dpi, first.index) == ((288, 144), 144, 0)
    assert (second.image.size, second.index) == ((144, 144), 1)
    assert first.image.mode == "RGB"
    red, _, blue = first.image.getpixel((20, 70))
    assert red - blue > 150, "channels in their order"


@pytest.mark.parametrize("name", ["x.png", "x.pdf"])
def test_a_file_cut_short_is_unreadable_and_says_so(tmp_path, name):
    path = tmp_path / name
    Image.effect_noise((200, 200), 90).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UnreadableInput, match="broken or cut short"):
        pages(path)


def test_an_empty_or_missing_file_is_told_apart(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(UnreadableInput, match="empty"):
        pages(tmp_path / "empty")
    with pytest.raises(RunnerUnavailable):
        pages(tmp_path / "missing")


def test_what_is_no_document_is_broken_or_unsupported_by_its_declared_type(tmp_path):
    path = tmp_path / "x"
    path.write_text("just words")
    with pytest.raises(UnreadableInput, match="cannot be recognised"):
        pages(path, "image/png")
    with pytest.raises(UnsupportedMedia, match="text/plain"):
        pages(path, "text/plain")
    with pytest.raises(UnreadableInput):
        pages(path, "application/pdf")


def test_a_program_in_postscript_is_not_run(tmp_path):
    path = tmp_path / "x.eps"
    picture().save(path, format="EPS")
    with pytest.raises(UnsupportedMedia):
        pages(path, "application/postscript")


def test_a_locked_pdf_is_named_so(tmp_path):
    path = tmp_path / "x.pdf"
    path.write_bytes(locked_pdf())
    with pytest.raises(UnreadableInput, match="encrypted"):
        pages(path)


@pytest.mark.parametrize("side", [8_000, 11_000, 20_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, side):
    path = tmp_path / "bomb.png"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.new("1", (side, side)).save(path)
    with pytest.raises(
        UnreadableInput, match=f"many pixels.* above the limit of {documents.MAX_PIXELS}"
    ) as caught:
        pages(path)
    assert caught.value.code == "too_large"


def test_a_pdf_page_of_vast_size_is_refused(tmp_path):
    path = tmp_path / "x.pdf"
    picture(500, 500).save(path, format="PDF", resolution=1)
    with pytest.raises(UnreadableInput, match="too many pixels"):
        pages(path, dpi=600)


def test_a_document_with_too_many_pages_is_refused_not_cut(tmp_path):
    for name in ("x.pdf", "x.tiff"):
        path = tmp_path / name
        picture().save(path, save_all=True, append_images=[picture()] * 3)
        with pytest.raises(UnreadableInput, match=r"4 pages, more than runner_config\.max_pages"):
            pages(path, max_pages=3)
        assert len(pages(path, max_pages=4)) == 4


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["png", "jpeg", "tiff", "gif", "bmp", "webp", "pdf"]),
    place=st.integers(0, 3000),
    junk=st.binary(min_size=1, max_size=20),
)
def test_damaged_bytes_never_raise_anything_but_a_typed_error(tmp_path_factory, kind, place, junk):
    buffer = io.BytesIO()
    picture().save(buffer, format=kind)
    data = bytearray(buffer.getvalue())
    place %= len(data)
    data[place : place + len(junk)] = junk
    path = tmp_path_factory.mktemp("damaged") / "x"
    path.write_bytes(bytes(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn of what they mend
        fault = None
        try:
            for page in documents.pages(path):
                assert page.image.mode == "RGB"
        except RunnerError as error:
            fault = error
    assert fault is None or not fault.retryable


def line(name, x, y, height=10):
    return {"text": name, "polygon": [[x, y], [x + 30, y], [x + 30, y + height], [x, y + height]]}


def test_lines_stand_in_reading_order():
    lines = [
        line("d", 50, 41),
        line("b", 50, 3),
        line("c", 0, 40),
        line("a", 0, 5),
        line("e", 9, 60),
    ]
    assert [each["text"] for each in in_reading_order(lines)] == ["a", "b", "c", "d", "e"]


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500), st.integers(1, 60))))
def test_ordering_loses_no_line(places):
    lines = [line(str(n), x, y, height) for n, (x, y, height) in enumerate(places)]
    ordered = in_reading_order(lines)
    assert sorted(map(id, ordered)) == sorted(map(id, lines))
