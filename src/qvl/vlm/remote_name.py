"""What `openai:MODEL@URL` says: the model, its servers, and which generation it is likely to be."""

from __future__ import annotations

import re
from dataclasses import dataclass

import httpx2

from qvl.errors import UsageError
from qvl.models.config import Generation

FORM = "openai:MODEL@URL, such as openai:Qwen/Qwen3-VL-8B-Instruct@http://localhost:8000/v1"
_NAME = re.compile(r"openai:(?P<model>\S+?)@(?P<urls>https?://\S+)")
_GENERATIONS: tuple[tuple[str, Generation], ...] = (
    (r"qwen[-_ ]?2[._]5[-_ ]?vl", "qwen2_5_vl"),
    (r"qwen[-_ ]?2[-_ ]?vl", "qwen2_vl"),
    (r"qwen[-_ ]?3[-_ ]?vl", "qwen3_vl"),
)


@dataclass(frozen=True, slots=True)
class RemoteName:
    """`urls` are of servers that answer alike, each without a slash at its end."""

    model: str
    urls: tuple[str, ...]


def parse_remote_name(name: str) -> RemoteName:
    """Raises UsageError for a name of another form, or with a secret in it."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise UsageError("the name of a remote model has no URL or no model in it", hint=FORM)
    urls = tuple(dict.fromkeys(_checked(url) for url in found["urls"].split(",")))
    return RemoteName(found["model"], urls)


def guessed_generation(model: str) -> Generation | None:
    """By the model's name; None where it says nothing."""
    low = model.lower()
    return next((known for spelt, known in _GENERATIONS if re.search(spelt, low)), None)


def _checked(text: str) -> str:
    """A base address: with /v1 where no path is given, without the name of a method."""
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL as err:
        raise UsageError("the name of a remote model has a damaged URL in it", hint=FORM) from err
    has_port = url.port is None or 0 < url.port < 65536
    if url.scheme not in ("http", "https") or not url.host or not has_port:
        raise UsageError("the servers of a remote model are http or https addresses", hint=FORM)
    if url.userinfo or url.query or url.fragment:
        raise UsageError(
            "the URL of a remote model has a user, a query or a fragment in it",
            hint="leave it out; a key goes into the environment as QVL_REMOTE_KEY",
        )
    path = url.path.rstrip("/").removesuffix("/chat/completions")
    return str(url.copy_with(path=path or "/v1"))
