"""Files of items by HTTP: as attachments, in parts, unchanged; and small pictures of hostile ones."""

import io
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

import pytest
from PIL import Image, ImageDraw

from api_server import Api, new_user
from ppworker.errors import RunnerError
from ppworker.pipeline.uploads import thumbnails
from ppworker.pipeline.uploads.thumbnails import Thumbnails
from ppworker.runners.child import ChildRunner
from ppworker.store.blobs import BlobStore

ORIENTATION = 0x0112


def make(api: Api, content: bytes | None, name: str = "file.bin", **body: Any) -> str:
    """Path of a new item with that file."""
    made = api.me.post(f"{api.version}/items", json={"name": name, **body})
    assert made.status_code == 200, made.text
    path = f"{api.version}/items/{made.json()['id']}"
    if content is not None:
        given = api.me.post(f"{path}/upload", files={"file": (name, content)})
        assert given.status_code == 200, given.text
    return path


def picture(kind: str = "PNG", size: tuple[int, int] = (1200, 400), **options: Any) -> bytes:
    """An image whose left half is red and whose right half is blue."""
    image = Image.new(options.pop("mode", "RGB"), size, options.pop("paper", "blue"))
    ImageDraw.Draw(image).rectangle((0, 0, size[0] // 2 - 1, size[1]), fill="red")
    if turn := options.pop("turn", None):
        exif = Image.Exif()
        exif[ORIENTATION] = turn
        options["exif"] = exif
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pdf(width: int, height: int) -> bytes:
    """Two pages of that size; the first has a black lower half."""
    drawn = f"0 0 {width} {height // 2} re f"
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        "<</Type/Pages/Kids[3 0 R 5 0 R]/Count 2>>",
        f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 {width} {height}]/Contents 4 0 R>>",
        f"<</Length {len(drawn)}>>stream\n{drawn}\nendstream",
        "<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>",
    ]
    data, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    end = f"xref\n0 {len(offsets) + 1}\n0000000000 65535 f \n{table}"
    end += f"trailer\n<</Size {len(offsets) + 1}/Root 1 0 R>>\nstartxref\n{len(data)}\n%%EOF"
    return data + end.encode()


def bomb(width: int, height: int) -> bytes:
    """A small PNG that says it is huge, and has the bytes for it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width // 8 + 1) * height))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def test_a_file_comes_back_as_it_was_as_an_attachment_that_no_browser_shows(api: Api) -> None:
    content = bytes(range(256)) * 300
    response = api.me.get(f"{make(api, content, 'größe “日本” a;b.bin')}/download")
    assert (response.status_code, response.content) == (200, content)
    headers = response.headers
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-length"] == str(len(content))
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "private, no-cache"
    assert headers["content-security-policy"].startswith("sandbox")
    kind, plain, full = headers["content-disposition"].split("; ", 2)
    assert (kind, plain) == ("attachment", 'filename="gr__e ____ a;b.bin"')
    assert unquote(full.removeprefix("filename*=UTF-8''")) == "größe “日本” a;b.bin"

    page = api.me.get(f"{make(api, b'<html><script>1</script>', 'x.html')}/download")
    assert page.headers["content-disposition"].startswith("attachment")
    hostile = f"{make(api, b'x', name=chr(34) + 'a' + chr(13) + chr(10) + 'Set-Cookie: b/../c')}"
    said = api.me.get(f"{hostile}/download").headers
    assert "set-cookie" not in said
    assert '"' not in said["content-disposition"].split('"')[1]


def test_text_without_a_file_comes_as_txt_and_nothing_as_404(api: Api) -> None:
    text = make(api, None, "letter", text="Grüße\n日本")
    response = api.me.get(f"{text}/download")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert 'filename="letter.txt"' in response.headers["content-disposition"]
    assert response.content == "Grüße\n日本".encode()
    tag = response.headers["etag"]
    again = api.me.get(f"{text}/download", headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")

    empty = make(api, None, "empty")
    refused = api.me.get(f"{empty}/download")
    assert (refused.status_code, refused.json()["field"]) == (404, "item")
    lost = make(api, b"lost", "lost.bin")
    for file in api.deps.blobs.root.glob("??/*"):
        file.unlink()
    assert api.me.get(f"{lost}/download").status_code == 404
    other = api.client(new_user(api.deps, "other"))
    for path in (text, lost):
        for query in ("", "?thumbnail=true"):
            assert other.get(f"{path}/download{query}").status_code == 404
    assert api.with_header(None).get(f"{text}/download").status_code == 401
    for flag in ("perhaps", "2"):
        bad = api.me.get(f"{text}/download", params={"thumbnail": flag})
        assert (bad.status_code, bad.json()["field"]) == (400, "thumbnail")


RANGES = [
    ("bytes=0-9", 206, slice(0, 10)),
    ("bytes=990-", 206, slice(990, 1000)),
    ("bytes=-5", 206, slice(995, 1000)),
    ("bytes=-5000", 206, slice(0, 1000)),
    ("bytes=10-99999", 206, slice(10, 1000)),
    # What is not one range of bytes is as if nobody had asked.
    ("bytes=0-1,4-5", 200, slice(None)),
    ("bytes=5-2", 200, slice(None)),
    ("bytes=", 200, slice(None)),
    ("bytes=-", 200, slice(None)),
    ("bytes=a-b", 200, slice(None)),
    ("items=0-1", 200, slice(None)),
    ("bytes=" + "9" * 5000 + "-", 200, slice(None)),
]


def test_a_part_of_a_file_and_what_a_client_has_already(api: Api) -> None:
    content = bytes(n % 251 for n in range(1000))
    path = f"{make(api, content)}/download"
    for asked, status, part in RANGES:
        response = api.me.get(path, headers={"Range": asked})
        assert (response.status_code, response.content) == (status, content[part]), asked
        assert response.headers["x-content-type-options"] == "nosniff"
    for asked in ("bytes=1000-", "bytes=" + "9" * 18 + "-"):
        beyond = api.me.get(path, headers={"Range": asked})
        assert (beyond.status_code, beyond.headers["content-range"]) == (416, "bytes */1000")
        assert "1000 bytes" in beyond.json()["message"]

    tag = api.me.get(path).headers["etag"]
    for said in (tag, f'"other", W/{tag}', "*"):
        assert api.me.get(path, headers={"If-None-Match": said}).status_code == 304
    assert api.me.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
    stale = {"Range": "bytes=0-9", "If-Range": '"other"'}
    assert api.me.get(path, headers=stale).content == content
    fresh = {"Range": "bytes=0-9", "If-Range": tag}
    assert api.me.get(path, headers=fresh).content == content[:10]
    nothing = f"{make(api, b'', 'empty.bin')}/download"
    assert api.me.get(nothing, headers={"Range": "bytes=0-"}).content == b""


def test_a_large_file_is_never_in_memory(api: Api) -> None:
    path = make(api, b"small")
    size = 150 * 1024 * 1024
    (kept,) = api.deps.blobs.root.glob("??/*")
    with kept.open("r+b") as file:
        file.truncate(size)
    before, most, seen = resident(), 0, 0
    with api.me.stream("GET", f"{path}/download") as response:
        for chunk in response.iter_raw(1 << 20):
            seen += len(chunk)
            most = max(most, resident())
    assert seen == size
    assert most - before < 40 * 1024 * 1024


def resident() -> int:
    """Bytes that this process, server and client in one, holds in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def small(api: Api, path: str) -> Image.Image:
    response = api.me.get(f"{path}/download", params={"thumbnail": "true"})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/jpeg"
    assert 'filename="' in response.headers["content-disposition"]
    return Image.open(io.BytesIO(response.content)).convert("RGB")


def is_like(image: Image.Image, at: tuple[int, int], colour: tuple[int, int, int]) -> bool:
    found = image.getpixel(at)
    assert isinstance(found, tuple)
    return all(abs(a - b) < 40 for a, b in zip(found, colour, strict=True))


RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def test_small_pictures_stand_upright_on_white_and_of_the_first_page(api: Api) -> None:
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        image = small(api, make(api, picture(kind), f"a.{kind.lower()}"))
        assert image.size == (512, 171), kind
        assert is_like(image, (20, 80), RED), kind
        assert is_like(image, (490, 80), BLUE), kind
    turned = small(api, make(api, picture("JPEG", turn=6), "turned.jpg"))
    assert turned.size == (171, 512)
    assert is_like(turned, (80, 20), RED)
    assert is_like(turned, (80, 490), BLUE)
    clear = picture("PNG", mode="RGBA", paper=(0, 0, 0, 0))
    assert is_like(small(api, make(api, clear, "clear.png")), (490, 80), WHITE)
    tiny = small(api, make(api, picture(size=(3, 2)), "tiny.png"))
    assert tiny.size == (3, 2), "what is small already stays as it is"
    deep = Image.new("I;16", (40, 40), 65535)
    out = io.BytesIO()
    deep.save(out, "PNG")
    assert small(api, make(api, out.getvalue(), "deep.png")).size == (40, 40)
    page = small(api, make(api, pdf(300, 600), "two.pdf"))
    assert page.size == (256, 512)
    assert is_like(page, (128, 100), WHITE)
    assert is_like(page, (128, 400), BLACK)
    assert small(api, make(api, pdf(14_000, 7_000), "poster.pdf")).size == (512, 256)


def test_what_cannot_be_drawn_is_refused_with_a_reason_and_hurts_nobody(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(content: bytes | None, name: str, **body: Any) -> tuple[int, str]:
        path = make(api, content, name, **body)
        response = api.me.get(f"{path}/download", params={"thumbnail": "True"})
        assert response.json()["field"] == "thumbnail"
        return response.status_code, response.json()["message"]

    whole = picture("JPEG")
    assert refused(whole[: len(whole) // 2], "cut.jpg")[0] == 422
    assert "broken" in refused(b"\x89PNG\r\n\x1a\n" + b"\xff" * 500, "bad.png")[1]
    assert "pixels" in refused(bomb(20_000, 20_000), "bomb.png")[1]
    assert refused(b"%PDF-1.7\n" + b"\xff" * 500, "bad.pdf")[0] == 422
    assert refused(b"words", "note.txt") == (404, "there is no thumbnail of text/plain")
    assert refused(None, "text", text="words")[0] == 404
    # A decoder that does not come to an end is not asked again for a while.
    monkeypatch.setattr(thumbnails, "_TIMEOUT_S", 0.0)
    slow = make(api, picture(size=(31, 31)), "slow.png")
    for _ in range(2):
        response = api.me.get(f"{slow}/download", params={"thumbnail": "true"})
        assert (response.status_code, response.headers["retry-after"]) == (503, "2")
        monkeypatch.setattr(thumbnails, "_TIMEOUT_S", 20.0)
    assert small(api, make(api, picture(size=(32, 32)), "next.png")).size == (32, 32)


def test_fifty_at_once_are_made_by_two_processes_while_others_are_answered(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    children: set[int] = set()

    class Watched(ChildRunner):
        def predict(self, *given: Any) -> Any:
            found = super().predict(*given)
            children.add(self.pid or 0)
            return found

    monkeypatch.setattr(thumbnails, "ChildRunner", Watched)
    paths = [make(api, picture(size=(600 + n, 90)), f"{n}.png") for n in range(50)]
    with ThreadPoolExecutor(50) as pool:
        asked = [pool.submit(small, api, path) for path in paths]
        # More wait for pictures than there are threads, and none of them holds one.
        for _ in range(5):
            assert api.me.get("/datasets").status_code == 200
        assert {each.result().size[0] for each in asked} == {512}
    assert 1 <= len(children) <= 2

    # They are kept: neither the file nor a process is needed for what was made once.
    for path in api.deps.blobs.root.glob("??/*"):
        path.unlink()
    assert small(api, paths[0]).size[0] == 512
    tag = api.me.get(f"{paths[0]}/download?thumbnail=true").headers["etag"]
    known = api.me.get(f"{paths[0]}/download?thumbnail=true", headers={"If-None-Match": tag})
    assert known.status_code == 304
    given = api.me.post(f"{paths[0]}/upload", files={"file": ("n.png", picture(size=(7, 7)))})
    assert given.status_code == 200
    assert small(api, paths[0]).size == (7, 7), "another file, another picture"


@pytest.fixture
def keeper(tmp_path: Path) -> Callable[[int], list[Path]]:
    """Keeps so many pictures on one shelf."""

    def keep(count: int) -> list[Path]:
        maker = Thumbnails(BlobStore(tmp_path / "blobs"), tmp_path)
        for _ in range(count):
            maker._keep(f"ab{uuid4().hex}", b"x")
        return list((tmp_path / thumbnails.FOLDER / "ab").iterdir())

    return keep


def test_the_disk_that_pictures_take_is_bounded(
    keeper: Callable[[int], list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thumbnails, "_SHELF", 20)
    assert 15 <= len(keeper(100)) <= 20


def test_who_waits_for_a_picture_is_told_when_the_server_stops(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    maker = Thumbnails(blobs, tmp_path)
    waiting = [maker.ask(f"{n:064x}", "image/png") for n in range(20)]
    maker.close()
    for each in waiting:
        with pytest.raises(RunnerError):
            each.result(30)
    with pytest.raises(RunnerError, match="stopping"):
        maker.ask("0" * 64, "image/png").result(1)
