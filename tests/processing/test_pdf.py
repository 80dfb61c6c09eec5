"""Every page of a document becomes the pixels that PDFium gives, and no document harms the process."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pypdfium2
import pytest

from documents import RED_LEFT, document, inflating, picture, stream, written
from qvl.errors import (
    EngineError,
    ImageAspectError,
    InputError,
    InputNotFoundError,
    InvalidParamError,
    PdfError,
    UsageError,
)
from qvl.processing import pdf as pdf_module
from qvl.processing import source as source_module
from qvl.processing import worker as worker_module
from qvl.processing.image import Picture, read_image
from qvl.processing.pdf import page_count, pages, with_pages
from qvl.types import Image, Video

GOOD = document(RED_LEFT, b"0 0 1 rg 0 0 100 100 re f", b"")
WHITE, RED, BLUE = (255, 255, 255), (255, 0, 0), (0, 0, 255)


def read(data: bytes, page: int | None = None) -> Picture:
    return read_image(Image(data, "a.pdf", page))


def of_pdfium(data: bytes, page: int) -> np.ndarray:
    """As PDFium renders it at 144 dpi in this process."""
    opened = pypdfium2.PdfDocument(data)
    opened.init_forms()
    return np.asarray(opened[page - 1].render(scale=2).to_pil().convert("RGB"))


# ---------------------------------------------------------------- right pages


def test_each_page_is_what_pdfium_renders_of_it():
    assert page_count(Image(GOOD)) == 3
    for number in (1, 2, 3):
        seen = read(GOOD, number)
        assert np.array_equal(seen.pixels, of_pdfium(GOOD, number))
        assert seen.pixels.shape == (400, 200, 3)
        assert seen.sha256 == f"{hashlib.sha256(GOOD).hexdigest()}#{number}"
        assert (seen.name, seen.notes) == ("a.pdf", ())
    red, blue, empty = (read(GOOD, number).pixels for number in (1, 2, 3))
    assert (red[:, :100] == RED).all()
    assert (red[:, 100:] == WHITE).all()
    assert (blue[:200] == WHITE).all()
    assert (blue[200:] == BLUE).all()
    assert (empty == WHITE).all()


def test_without_a_number_it_is_the_first_page_and_a_note_says_so():
    seen, first = read(GOOD), read(GOOD, 1)
    assert np.array_equal(seen.pixels, first.pixels)
    assert seen.sha256 == first.sha256
    assert seen.notes == ("3 pages: the first one is used",)
    assert read(document(RED_LEFT)).notes == ()


def test_a_picture_on_a_page_is_the_picture():
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    page = document(
        b"q 40 0 0 30 0 0 cm /Im Do Q",
        size=(40, 30),
        page=b"/Resources << /XObject << /Im 3 0 R >> >>",
        more=[picture(pixels.tobytes(), (80, 60))],
    )
    assert np.array_equal(read(page).pixels, pixels)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270, -90, 450])
def test_a_turned_page_comes_upright(degrees: int):
    seen = read(document(RED_LEFT, page=b"/Rotate %d" % degrees)).pixels
    assert np.array_equal(seen, np.rot90(read(document(RED_LEFT)).pixels, -degrees // 90))


def test_what_somebody_filled_in_is_there():
    field = (
        b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (a) /V (b) /F 4 /Rect [10 10 60 60] "
        b"/AP << /N 4 0 R >> >>"
    )
    shown = stream(b"0 0 1 rg 0 0 50 50 re f", b"/Type /XObject /Subtype /Form /BBox [0 0 50 50]")
    filled = document(
        b"",
        page=b"/Annots [3 0 R]",
        catalog=b"/AcroForm << /Fields [3 0 R] >>",
        more=[field, shown],
    )
    assert (read(filled).pixels[300:360, 40:100] == BLUE).all()


def test_a_path_and_its_bytes_are_the_same_page(tmp_path: Path):
    path = tmp_path / "бумага.pdf"
    path.write_bytes(GOOD)
    assert read_image(Image(path, page=2)).sha256 == read(GOOD, 2).sha256
    assert page_count(Image.of(path)) == 3
    # what it is shows in its bytes, whatever its name; some begin with a byte order mark or blanks
    assert np.array_equal(read_image(Image(b"\xef\xbb\xbf \n" + GOOD)).pixels, read(GOOD).pixels)


# ---------------------------------------------------------------- pages as images


def test_a_document_becomes_images_called_after_their_pages(tmp_path: Path):
    path = tmp_path / "a.pdf"
    path.write_bytes(GOOD)
    found = pages(Image(path, "a.pdf"))
    assert found == [Image(path, f"a.pdf, page {number}", number) for number in (1, 2, 3)]
    assert [read_image(image).name for image in found] == [f"a.pdf, page {n}" for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("which", "numbers"),
    [
        ("1-3", [1, 2, 3]),
        ("3,1", [3, 1]),
        ("2", [2]),
        (" 2 - 3 , 1-2", [2, 3, 1]),
        (None, [1, 2, 3]),
    ],
)
def test_some_pages_can_be_asked_for(which: str | None, numbers: list[int]):
    assert [image.page for image in pages(Image(GOOD), which)] == numbers


@pytest.mark.parametrize(
    "which", ["0", "4", "1-4", "3-1", "", "1,", "-2", "a", "1.5", "1-2-3", "9" * 5000, "１"]
)
def test_pages_that_are_not_there_are_refused(which: str):
    with pytest.raises(
        InvalidParamError, match=r"^'[^']*' are not pages of 'a\.pdf', which has 3$"
    ):
        pages(Image(GOOD, "a.pdf"), which)


@pytest.mark.parametrize("page", [0, -1, 4, 10**6])
def test_a_page_that_is_not_there_is_refused(page: int):
    with pytest.raises(InvalidParamError, match=rf"^'a\.pdf' has no page {page}: it has 3$"):
        read(GOOD, page)


def test_only_documents_have_pages():
    for encoded in (b"GIF89a", b"\x89PNG %PDF-1.7"):
        with pytest.raises(InvalidParamError, match=r"'a\.gif' is not a PDF document, so"):
            read_image(Image(encoded, "a.gif", page=1))
        with pytest.raises(PdfError, match=r"'a\.gif' is not a PDF document$"):
            pages(Image(encoded, "a.gif"))
    with pytest.raises(InputNotFoundError):
        pages(Image.of("no/such.pdf"))


def test_five_hundred_pages_are_counted_without_being_rendered():
    began_s = time.monotonic()
    found = pages(Image(document(*[RED_LEFT] * 500), "a.pdf"))
    assert len(found) == 500
    assert (read_image(found[-1]).pixels[:, :100] == RED).all()
    assert time.monotonic() - began_s < 10


# ---------------------------------------------------------------- size


def test_a_large_page_is_rendered_as_large_as_the_limit_lets_it():
    poster = document(RED_LEFT, size=(2384, 3370))  # A0
    seen = read(poster)
    height, width, _ = seen.pixels.shape
    assert 0.98 * 25e6 < height * width <= 25e6
    assert width / height == pytest.approx(2384 / 3370, rel=1e-3)
    assert seen.notes == ("a large page: rendered at 126 dpi",)


def test_a_tiny_page_is_read_with_a_note():
    assert read(document(b"", size=(5, 6))).notes == ("tiny, 10x12 px",)


# ---------------------------------------------------------------- bad documents


LOOP = written(
    [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [2 0 R 2 0 R] /Count 2 /Parent 2 0 R >>",
    ]
)
MANY = written([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [] /Count 100000 >>"])
LOCKED = document(
    RED_LEFT,
    trailer=b"/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O <%s> /U <%s> >> /ID [<00> <00>]"
    % (b"ab" * 32, b"cd" * 32),
)
BOMB = written(
    [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 100 100] /Contents 4 0 R >>",
        stream(inflating(4096), b"/Filter /FlateDecode"),
    ]
)
# what is wrong -> the document, the error, what the message says after the name
BAD: dict[str, tuple[bytes, type[InputError], str]] = {
    "encrypted": (LOCKED, PdfError, "needs a password$"),
    "no pages": (document(), PdfError, "is damaged, or has no pages$"),
    "100,000 pages": (MANY, PdfError, "has 100000 pages, the limit is 500$"),
    "501 pages": (document(*[b""] * 501), PdfError, "has 501 pages, the limit is 500$"),
    "a page of 10^6 points": (
        document(b"", size=(1e6, 800)),
        PdfError,
        "has a page 1 of 1000000x800 points, the limit is 14400 a side$",
    ),
    "a strip": (document(b"", size=(14000, 10)), ImageAspectError, "is 28000x20 px"),
    "a page tree in a circle": (LOOP, PdfError, "is damaged: its page cannot be read"),
    "4 GiB inflated": (BOMB, PdfError, "(made the PDF reader crash|needs more than 1\\.5 GiB)"),
    "cut in half": (GOOD[: len(GOOD) // 2], PdfError, "is damaged, or has no pages$"),
    "only a header": (b"%PDF-1.7\n%\xe2\xe3", PdfError, "is damaged, or has no pages$"),
    "noise": (b"%PDF-" + bytes(range(256)) * 99, PdfError, "is damaged, or has no pages$"),
}


@pytest.mark.parametrize("name", BAD)
def test_a035_a_bad_document_is_a_typed_error_and_the_next_is_read(name: str):
    data, error, text = BAD[name]
    before_bytes = psutil.Process().memory_info().rss
    began_s = time.monotonic()
    with pytest.raises(InputError) as caught:
        read(data)
    assert time.monotonic() - began_s < 12
    assert type(caught.value) is error
    assert re.match(rf"'a\.pdf' {text}", caught.value.message), caught.value.message
    assert caught.value.hint
    assert not re.search(r"\b0x[0-9a-f]{4,}|PDFium|Traceback|/home|/tmp", caught.value.message)
    assert psutil.Process().memory_info().rss - before_bytes < 50 * 2**20
    assert np.array_equal(read(GOOD).pixels, of_pdfium(GOOD, 1))


@pytest.mark.parametrize(
    "action",
    [
        b"/OpenAction << /S /JavaScript /JS (while(true);) >>",
        b"/OpenAction << /S /Launch /F (/bin/sh) >>",
        b"/OpenAction << /S /URI /URI (http://127.0.0.1/) >>",
        b"/AA << /WC << /S /JavaScript /JS (app.alert(1)) >> >>",
    ],
)
def test_a035_actions_are_never_run(action: bytes):
    began_s = time.monotonic()
    assert np.array_equal(read(document(RED_LEFT, catalog=action)).pixels, read(GOOD, 1).pixels)
    assert time.monotonic() - began_s < 5


def test_damage_anywhere_gives_a_page_or_a_typed_error():
    rng = np.random.default_rng(1)
    for _ in range(15):
        data = bytearray(GOOD)
        for at in rng.integers(0, len(data), 8):
            data[at] = rng.integers(0, 255)
        try:
            assert read(b"%PDF-" + bytes(data[5:])).pixels.ndim == 3
        except InputError as err:
            assert err.hint  # noqa: PT017 - either is right


def test_bytes_have_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    path = tmp_path / "sparse.pdf"
    path.write_bytes(b"%PDF-1.7")
    with path.open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(PdfError, match=r"has 1048576\.0 MiB, the limit is 100$"):
        read_image(Image(path))
    monkeypatch.setattr(source_module, "MAX_BYTES", 500)  # of pictures, which this is not
    read(GOOD)
    monkeypatch.setattr(source_module, "MAX_PDF_BYTES", 500)
    with pytest.raises(PdfError, match="MiB, the limit is"):
        read(GOOD)


# ---------------------------------------------------------------- the process


def readers() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children()
        if any("pdf_worker" in part for part in child.cmdline())
    ]


@pytest.fixture
def play_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Takes what a worker does with the document, in place of the real one."""

    def play(act: str) -> None:
        (tmp_path / "pdf_worker.py").write_text(
            "import json, os, signal, struct, time\n"
            "def say(text, after=b''):\n"
            "    os.write(1, struct.pack('<I', len(text)) + text.encode() + after)\n"
            "os.write(1, b'R')\n"
            "length, = struct.unpack('<Q', os.read(0, 8))\n"
            "while length > 0: length -= len(os.read(0, length))\n" + act
        )
        monkeypatch.setattr(pdf_module, "__file__", str(tmp_path / "pdf.py"))

    return play


@pytest.mark.parametrize(
    "act",
    [
        "os.kill(os.getpid(), signal.SIGSEGV)",
        "os._exit(0)",
        "os.write(1, b'xxxx')",
        "say('[1]')",
        """say('{"pages": 501, "width": -1, "height": 1, "notes": []}')""",
        """say('{"pages": "3", "width": 9, "height": 9, "notes": []}', b'few')""",
        """say('{"pages": 0, "width": 100000, "height": 100000, "notes": []}')""",
    ],
)
def test_a_worker_that_lies_or_dies_is_an_error_of_the_document(
    act: str, play_worker: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
):
    play_worker(act)
    for ask in (read_image, page_count):
        with pytest.raises(PdfError, match=r"^'evil\.pdf' made the PDF reader crash$"):
            ask(Image(GOOD, "evil.pdf"))
    monkeypatch.undo()
    assert page_count(Image(GOOD)) == 3
    assert readers() == []


def test_a_worker_that_hangs_is_killed(
    play_worker: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pdf_module, "DECODE_WALL_S", 0.5)
    play_worker("time.sleep(60)")
    with pytest.raises(PdfError, match=r"^'a\.pdf' was not read within 0\.5 s$"):
        read(GOOD)
    assert readers() == []


def test_a_worker_that_does_not_start_is_no_fault_of_the_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pdf_module, "__file__", str(tmp_path / "pdf.py"))
    with pytest.raises(EngineError, match="does not start"):
        read(GOOD)


def test_without_pypdfium2_a_document_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker_module, "find_spec", lambda _name: None)
    with pytest.raises(UsageError) as caught:
        read(GOOD)
    assert caught.value.hint == "pip install 'qvl[documents]'"


def test_of_a_document_of_which_no_page_is_named_there_are_all(tmp_path: Path) -> None:
    pdf = document(RED_LEFT, RED_LEFT)
    path = tmp_path / "paper.PDF"
    path.write_bytes(pdf)
    shown = [Image(pdf), Image(pdf, page=2), Image.of(path), Image(b"GIF89a"), Video.of("a.mp4")]
    seen = [getattr(one, "page", None) for one in with_pages(shown)]
    assert seen == [1, 2, 2, 1, 2, None, None]
