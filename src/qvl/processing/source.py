"""Where pictures, documents and videos come from: a regular file, bytes, or an address.

Main path: read_encoded (a picture or a document, whole), opened (a file, a video's above all).
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qvl.errors import (
    ImageDecodeError,
    ImageTooLargeError,
    InputNotFoundError,
    InputUnreadableError,
    InvalidParamError,
    PdfError,
)
from qvl.fetch import fetch
from qvl.types import Image, Url

MAX_BYTES = 20 * 2**20
MAX_PDF_BYTES = 100 * 2**20
FETCH_S = 10.0
MAX_NAME_SHOWN = 200
HEAD_BYTES = 1024


def read_encoded(image: Image) -> bytes:
    """The file of a picture, at most MAX_BYTES, or of a PDF, at most MAX_PDF_BYTES.

    From an address comes at most MAX_BYTES of either. Raises InputNotFoundError, InputUnreadableError
    and InvalidParamError for a path, FetchBlockedError, FetchError and OfflineError for an address,
    ImageTooLargeError and PdfError for too many bytes, ImageDecodeError for none.
    """
    name = quoted(image.name)
    if isinstance(image.source, Url):
        file = io.BytesIO()
        fetch(
            image.source.address,
            file,
            name=name,
            max_bytes=MAX_BYTES,
            deadline_s=FETCH_S,
            too_large=ImageTooLargeError,
        )
        encoded = file.getvalue()
    elif isinstance(image.source, Path):
        encoded = _read_file(image.source, name)
    else:
        encoded = image.source
    _check_size(len(encoded), encoded, name)
    if not encoded:
        raise ImageDecodeError(f"{name} is empty: 0 bytes", hint="download or copy it again")
    return encoded


def read_head(image: Image, count: int) -> tuple[bytes, bool]:
    """At most `count` of the first bytes of a picture, and whether they are all of it.

    Raises as `read_encoded`; InvalidParamError for an address, of which nothing is fetched.
    """
    name = quoted(image.name)
    if isinstance(image.source, Url):
        raise InvalidParamError(f"{name} is an address: what is there is not known yet")
    if isinstance(image.source, bytes):
        size_bytes, head = len(image.source), image.source[:count]
    else:
        with opened(image.source, name) as fd:
            size_bytes, head = os.fstat(fd).st_size, os.pread(fd, count, 0)
    _check_size(size_bytes, head, name)
    if not head:
        raise ImageDecodeError(f"{name} is empty: 0 bytes", hint="download or copy it again")
    return head, len(head) == size_bytes


def is_pdf(encoded: bytes) -> bool:
    return encoded[:HEAD_BYTES].lstrip(b"\xef\xbb\xbf\0\t\n\f\r ").startswith(b"%PDF-")


def quoted(name: str) -> str:
    """A name for a message: in quotes, control characters escaped, the middle of long ones left out."""
    if len(name) > MAX_NAME_SHOWN:
        name = f"{name[: MAX_NAME_SHOWN // 2]}...{name[-MAX_NAME_SHOWN // 2 :]}"
    return repr(name)


def _read_file(path: Path, name: str) -> bytes:
    with opened(path, name) as fd:
        head = os.pread(fd, HEAD_BYTES, 0)
        _check_size(os.fstat(fd).st_size, head, name)
        encoded = bytearray()
        # One byte more than allowed: the file may have grown since.
        while piece := os.read(fd, min(1 << 20, _max_bytes(head) + 1 - len(encoded))):
            encoded += piece
        return bytes(encoded)


def _max_bytes(head: bytes) -> int:
    return MAX_PDF_BYTES if is_pdf(head) else MAX_BYTES


def _check_size(size_bytes: int, head: bytes, name: str) -> None:
    limit_bytes = _max_bytes(head)
    if size_bytes <= limit_bytes:
        return
    message = f"{name} has {size_bytes / 2**20:.1f} MiB, the limit is {limit_bytes // 2**20}"
    if is_pdf(head):
        raise PdfError(message, hint="cut it into several documents")
    raise ImageTooLargeError(message, hint="make it smaller or save it as JPEG")


@contextmanager
def opened(path: Path, name: str) -> Iterator[int]:
    """A file that is open for reading, by its number; what fails in the block while reading, too.

    Raises InputNotFoundError, InputUnreadableError and InvalidParamError, which call it `name`.
    """
    try:
        # O_NONBLOCK: a FIFO opens at once instead of when somebody writes to it.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as err:
        raise InputNotFoundError(
            f"{name} does not exist", hint="check the path and the current folder"
        ) from err
    except ValueError as err:  # a NUL, or a character that no file name can hold
        raise InvalidParamError(f"{name} cannot be a path") from err
    except OSError as err:
        if err.errno == errno.ENAMETOOLONG:
            raise InvalidParamError(f"{name} is too long for a path") from err
        raise _unreadable(name, err) from err
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            is_folder = stat.S_ISDIR(mode)
            raise InputUnreadableError(
                f"{name} is a folder" if is_folder else f"{name} is not a regular file",
                hint="give the files in it" if is_folder else "save it to a regular file first",
            )
        yield fd
    except OSError as err:
        raise _unreadable(name, err) from err
    finally:
        os.close(fd)


def _unreadable(name: str, err: OSError) -> InputUnreadableError:
    reason = os.strerror(err.errno).lower() if err.errno else "input/output error"
    denied = isinstance(err, PermissionError)
    hint = "check who may read the file and its folders" if denied else None
    return InputUnreadableError(f"{name} cannot be read: {reason}", hint=hint)
