"""Text out of tokens as they come: whole characters only, and nothing of a stop string.

A token may end inside a character, and a stop string may be spread over several tokens. What is
emitted is never taken back, and the pieces joined are the whole text.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable


class Detokenizer:
    """Tokens of one request in, pieces of its text out.

    The text ends before the stop string that is complete first (of two that end together, before
    the longer one), however the text was cut into tokens; `is_stopped` tells that this happened.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], stop: tuple[str, ...] = ()) -> None:
        self.is_stopped = False
        self._token_bytes = token_bytes
        self._stop = stop
        # bytes that can never become a character are replaced at once, unfinished ones are kept
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # decoded, but may be the beginning of a stop string

    def push(self, token_id: int) -> str:
        """The text that is certain by now and was not returned before."""
        return self._release(self._decoder.decode(self._token_bytes(token_id)))

    def finish(self) -> str:
        """The rest: what was held back, and U+FFFD for a character that stayed unfinished."""
        text = self._release(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return text + rest

    def _release(self, new: str) -> str:
        if self.is_stopped:
            return ""
        text = self._held + new
        cut = _stop_start(text, self._stop)
        if cut is not None:
            self.is_stopped = True
            self._held = ""
            return text[:cut]
        certain = len(text) - undecided(text, self._stop)
        self._held = text[certain:]
        return text[:certain]


def _stop_start(text: str, stop: tuple[str, ...]) -> int | None:
    """Where the stop string that is complete first begins in `text`; None if none is complete."""
    found = [(text.index(s) + len(s), text.index(s)) for s in stop if s in text]
    return min(found)[1] if found else None


def undecided(text: str, stop: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that a stop string begins with."""
    lengths = (n for s in stop for n in range(1, len(s)) if text.endswith(s[:n]))
    return max(lengths, default=0)
