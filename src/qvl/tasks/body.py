"""A task as JSON asks for it: what is seen, by address, beside the options; and the schema of that.

The route and the MCP tool take the same body, and say the same of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qvl.data_url import from_data_url
from qvl.errors import InvalidParamError
from qvl.tasks.task import R, Seen, Task, adapter, from_json
from qvl.types import Image, Video, is_address, page_apart

ADDRESS = "http(s) address or data: URL"


def body_schema(task: type[Task[Any]], *, paths: bool) -> dict[str, Any]:
    """The JSON schema of a body, without references; `paths` as for `read_body`."""
    options = _inlined(adapter(task).json_schema())
    where = f"path, {ADDRESS}" if paths else ADDRESS
    properties = {
        kind: {
            "type": "array",
            "items": {"type": "string"},
            "maxItems": task.most,
            "description": f"The {kind} to look at, each as {where}{more}.",
        }
        for kind, more in (("images", "; #page=2 behind a PDF is a page of it"), ("videos", ""))
    }
    return {
        "type": "object",
        "properties": properties | options["properties"],
        "required": options.get("required", []),
        "additionalProperties": False,
    }


def read_body(
    task: type[Task[R]], body: Mapping[str, Any], *, paths: bool
) -> tuple[Task[R], list[Seen]]:
    """The task, and what it is to look at, pictures first; `paths` says whether files may be named.

    Raises InvalidParamError, which names the key, and ImageDecodeError for a damaged data URL.
    """
    shown: list[Seen] = []
    for kind in ("images", "videos"):
        sources = body.get(kind, [])
        if not isinstance(sources, list) or not all(isinstance(s, str) for s in sources):
            raise InvalidParamError(f"{kind} is not a list of strings")
        shown += [_seen(kind, s, f"{kind}[{i}]", paths=paths) for i, s in enumerate(sources)]
    options = {key: value for key, value in body.items() if key not in ("images", "videos")}
    return from_json(task, options), shown


def _seen(kind: str, source: str, place: str, *, paths: bool) -> Seen:
    source, page = page_apart(source) if kind == "images" else (source, None)
    if source.startswith("data:"):
        data = from_data_url(source, place)
        return Image(data, place, page) if kind == "images" else Video(source=data, name=place)
    if not paths and not is_address(source):
        raise InvalidParamError(
            f"{place} is not an {ADDRESS}", hint="files of the server are not read"
        )
    return replace(Image.of(source), page=page) if kind == "images" else Video.of(source)


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with its definitions in their places: not every reader follows references."""
    definitions = schema.pop("$defs", {})

    def whole(node: Any) -> Any:
        if isinstance(node, list):
            return [whole(one) for one in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            named = definitions[node["$ref"].removeprefix("#/$defs/")]
            return whole(named | {key: value for key, value in node.items() if key != "$ref"})
        return {key: whole(value) for key, value in node.items()}

    return whole(schema)
