"""The one tree of errors: what happened, on which item, what to do.

QvlError                      1  500  our bug, when nothing more exact fits
|- UsageError                 2  400  wrong flags or settings
|- InvalidParamError          2  400  a value outside its range
|- InputError                 4  400  an input that cannot be used
|  |- InputNotFoundError                no such file, or a folder without pictures
|  |- InputUnreadableError              permissions, not a regular file
|  |- UnsupportedMediaError             a format that is not on the list
|  |- ImageDecodeError                  damaged, truncated or not a picture
|  |- ImageTooLargeError                bytes, pixels or memory over the limit
|  |- ImageAspectError                  one side over 200 times the other
|  |- VideoDecodeError                  damaged, or not a video
|  |- VideoTooLargeError                bytes, pixels, frames or hours over the limit
|  |- PdfError                           encrypted, damaged, without pages, over a limit
|  |- TableError                         a table, or a row of it, that cannot be read
|  |- ArchiveError                       an archive, or a member, that is damaged or over a limit
|  |- FetchBlockedError                  an address that may not be fetched
|  |- FetchError                         an address that gives no file (retryable)
|  `- PromptTooLongError                more tokens than the model's context
|- ModelError                 4  400  a model that cannot be used
|  |- UnknownModelError         404     no such name; carries the nearest ones
|  |- ModelFormatError                  a checkpoint whose files do not fit together
|  |- ConfigError                       a checkpoint's json with values we do not know
|  |- UnsafeCheckpointError             pickles, paths that leave the folder
|  |- OfflineError                      a download is needed and not allowed
|  `- DownloadError             503     the hub could not be reached (exit 8, retryable)
|- AnswerFormError            3  422  an answer that was cut before it had the form that was asked for
|- CheckError                 7  422  a check failed, and the caller said that this is an error
|- EngineError                1  500  a fault while computing
|  `- EngineClosedError                the model was closed, or opened by another process
|- RemoteError                8  502  a remote server failed, or what it said is no answer (retryable)
|  `- RemoteRefusedError               it refuses the request, or is at another address (not retryable)
|     `- RemoteKeyError                it wants a key, or another one
|- DeadlineError              9  504  not finished in the time that was given
|- OutOfMemoryError           9  503  memory is too small for the model or the request
|- StorageError               6  500  a result could not be written
|  `- StoreCorruptError                 what a run has kept is damaged; names file, line and byte
|- RunLockedError             5  409  another process works on that run
|- RunChangedError            7  409  a run goes on with other settings than it was begun with
`- PartialFailure             3  -    finished, some items failed (they are listed)

The numbers are the exit code and the HTTP status. Messages hold what the caller already knows: the
item, both numbers of a comparison, never a traceback, an object's repr or a path of the server.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar

log = logging.getLogger(__name__)


class QvlError(Exception):
    """Shown as `error: <message>`, then `hint: <hint>`; a traceback only with --debug."""

    code: ClassVar[str] = "internal_error"
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        # The decode worker sends errors through a pipe; the default would lose the hint.
        return _rebuild, (type(self), self.message, self.hint)

    def as_json(self) -> dict[str, str | None]:
        """The `error` object of --json lines, of batch records and of HTTP answers."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


def _rebuild(kind: type[QvlError], message: str, hint: str | None) -> QvlError:
    return kind(message, hint=hint)


class UsageError(QvlError):
    code, exit_code, http_status = "usage", 2, 400


class InvalidParamError(QvlError):
    code, exit_code, http_status = "invalid_param", 2, 400


class InputError(QvlError):
    code, exit_code, http_status = "invalid_input", 4, 400


class InputNotFoundError(InputError):
    code = "input_not_found"


class InputUnreadableError(InputError):
    code = "input_unreadable"


class UnsupportedMediaError(InputError):
    code = "unsupported_media"


class ImageDecodeError(InputError):
    code = "image_decode"


class ImageTooLargeError(InputError):
    code = "image_too_large"


class ImageAspectError(InputError):
    code = "image_aspect"


class VideoDecodeError(InputError):
    code = "video_decode"


class VideoTooLargeError(InputError):
    code = "video_too_large"


class PdfError(InputError):
    code = "pdf"


class TableError(InputError):
    code = "table"


class ArchiveError(InputError):
    code = "archive"


class FetchBlockedError(InputError):
    code = "fetch_blocked"


class FetchError(InputError):
    code, retryable = "fetch_failed", True


class PromptTooLongError(InputError):
    code = "context_length_exceeded"


class ModelError(QvlError):
    code, exit_code, http_status = "model", 4, 400


class UnknownModelError(ModelError):
    code, http_status = "model_not_found", 404


class ModelFormatError(ModelError):
    code = "model_format"


class ConfigError(ModelError):
    code = "model_config"


class UnsafeCheckpointError(ModelError):
    code = "unsafe_checkpoint"


class OfflineError(ModelError):
    code = "offline"


class DownloadError(ModelError):
    code, exit_code, http_status, retryable = "download", 8, 503, True


class AnswerFormError(QvlError):
    code, exit_code, http_status = "answer_form", 3, 422


class CheckError(QvlError):
    code, exit_code, http_status = "check_failed", 7, 422


class EngineError(QvlError):
    code, retryable = "engine", True


class EngineClosedError(EngineError):
    code, retryable = "engine_closed", False


class RemoteError(QvlError):
    code, exit_code, http_status, retryable = "remote", 8, 502, True


class RemoteRefusedError(RemoteError):
    code, retryable = "remote_refused", False


class RemoteKeyError(RemoteRefusedError):
    code = "remote_key"


class DeadlineError(QvlError):
    code, exit_code, http_status, retryable = "deadline_exceeded", 9, 504, True


class OutOfMemoryError(QvlError):
    code, exit_code, http_status, retryable = "out_of_memory", 9, 503, True


class StorageError(QvlError):
    code, exit_code = "storage", 6


class StoreCorruptError(StorageError):
    code = "store_corrupt"


class RunLockedError(QvlError):
    code, exit_code, http_status = "run_locked", 5, 409


class RunChangedError(QvlError):
    code, exit_code, http_status = "run_changed", 7, 409


class PartialFailure(QvlError):
    code, exit_code = "partial_failure", 3


def as_fault(error: Exception, name: str) -> QvlError:
    """What a request or an item ends with, at whose edge an error stops so that the others go on.

    It is free of the tensors that the error's traceback refers to.
    """
    log.debug("%r failed while computing", name, exc_info=error)
    traceback.clear_frames(error.__traceback__)
    if isinstance(error, QvlError):
        return error
    fault: QvlError = EngineError(f"{name!r} failed while computing")
    # torch's own, which is not imported here, has that name too; on a CPU it raises a plain one
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"MemoryError", "OutOfMemoryError"} or "DefaultCPUAllocator" in str(error):
        fault = OutOfMemoryError(
            f"memory ran out while computing {name!r}",
            hint="run fewer requests at once, or give smaller pictures",
        )
    fault.__cause__ = error
    return fault


def nearest(name: str, known: Iterable[str]) -> str | None:
    """A sentence naming the closest known names, or None when nothing is close."""
    close = get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"did you mean {', '.join(repr(c) for c in close)}?" if close else None
