"""Every task says the same through every door: Python, the command, the MCP tool, the route."""

from __future__ import annotations

import atexit
import base64
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import pytest
from anyio.from_thread import start_blocking_portal
from mcp import Client, StdioServerParameters

import clips
import documents
from qvl import VLM
from qvl.cli.main import main
from qvl.cli.tasks import flag_of
from qvl.tasks import TASKS
from qvl.tasks.body import body_schema
from qvl.tasks.task import Task, as_row, from_json, option_names
from qvl.types import Image, Sampling, Video
from served import running

ROOT = Path(__file__).parents[1]
PICTURES = sorted((ROOT / "examples" / "pictures").glob("p*.png"))
# options of a task that has required ones, or that does more with some
EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "describe": {"language": "ru", "facts": {"article": "4711"}, "boxes": True},
    "ask": {"question": "How many objects are there?", "answer_as": "int"},
    "ground": {"phrases": ["lion", "dress"]},
    "compare": {"kind": "pair"},
    "extract": {"schema": "name, count int"},
    "classify": {"labels": ["lion", "dress", "cup"]},
    "solve": {"question": "2 + 3 = ?"},
    "service": {"question": "Is it red?", "policy": "Be brief."},
}
VIDEOS = ("video",)  # tasks that look at one
SAMPLING = {"seed": 7, "temperature": 0.7, "max_new_tokens": 300}
Door = Callable[[type[Task[Any]]], dict[str, Any]]


def options(task: type[Task[Any]]) -> dict[str, Any]:
    return {**EXAMPLES.get(task.name, {}), "sampling": SAMPLING}


@cache
def clip() -> Path:
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    path = Path(folder) / "clip.mp4"
    path.write_bytes(clips.steady(24, 12))
    return path


def shown(task: type[Task[Any]]) -> list[Path]:
    return [clip()] if task.name in VIDEOS else PICTURES[: max(1, task.least)]


def kind(task: type[Task[Any]]) -> str:
    return "videos" if task.name in VIDEOS else "images"


@pytest.fixture(scope="module")
def vlm() -> Iterator[VLM]:
    vlm = VLM()
    yield vlm
    vlm.close()


@pytest.fixture(scope="module")
def python(vlm: VLM) -> Door:
    def run(task: type[Task[Any]]) -> dict[str, Any]:
        chosen = from_json(task, options(task))
        given = {f.name: getattr(chosen, f.name) for f in fields(chosen)}
        method = getattr(vlm, task.name)
        result = method([look_at(path) for path in shown(task)], **given)
        return as_row(", ".join(map(str, shown(task))), result)

    return run


def look_at(path: Path) -> str | Video:
    return Video.of(path) if path == clip() else str(path)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Door:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(task: type[Task[Any]]) -> dict[str, Any]:
        arguments = ["qvl", task.name, *map(str, shown(task)), "--json"]
        for name, value in {**EXAMPLES.get(task.name, {}), **SAMPLING}.items():
            arguments += flags(task, name, value)
        monkeypatch.setattr(sys, "argv", arguments)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            sys.exit(main())
        told = capsys.readouterr()
        assert not ended.value.code, told.err
        return json.loads(told.out)

    return run


def flags(task: type[Task[Any]], name: str, value: Any) -> list[str]:
    """As a person writes the option on the command line."""
    names = flag_of(task, name).names if name in option_names(task) else ()
    flag = names[0] if names else "--" + name.replace("_", "-")
    match value:
        case bool():
            return [flag] if value else []
        case dict():
            return [part for key, said in value.items() for part in (flag, f"{key}={said}")]
        case list():
            return [flag, ",".join(value)]
    return [flag, str(value)]


@pytest.fixture(scope="module")
def tool() -> Iterator[Door]:
    """The real client and the command, over stdio."""
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "qvl", "--quiet", "mcp", "--offline"],
        env={"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"},
    )
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())
        client = stack.enter_context(portal.wrap_async_context_manager(Client(server)))

        def run(task: type[Task[Any]]) -> dict[str, Any]:
            body = {kind(task): [str(path) for path in shown(task)], **options(task)}
            result = portal.call(client.call_tool, task.name, body)
            assert not result.is_error, result.content
            assert result.structured_content["text"] == result.content[0].text
            return result.structured_content

        yield run


@pytest.fixture(scope="module")
def client(vlm: VLM) -> Iterator[httpx2.Client]:
    """Of the real server."""
    with running(vlm.model) as server, httpx2.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture
def route(client: httpx2.Client) -> Door:
    def run(task: type[Task[Any]]) -> dict[str, Any]:
        answer = client.post(f"/v1/tasks/{task.name}", json=body(task))
        assert answer.status_code == 200, answer.text
        return answer.json()

    return run


def body(task: type[Task[Any]]) -> dict[str, Any]:
    return {kind(task): [data_url(path) for path in shown(task)], **options(task)}


def data_url(path: Path) -> str:
    return f"data:;base64,{base64.b64encode(path.read_bytes()).decode()}"


def comparable(row: dict[str, Any]) -> dict[str, Any]:
    """Without what may differ: how a picture is called, how long it took, what was cached."""
    row = json.loads(json.dumps(row))
    row.pop("id")
    row["meta"].pop("timings")
    row["usage"].pop("cached_tokens")
    for one in (*row["meta"]["images"], *row["meta"]["videos"]):
        one.pop("name")
    return row


@pytest.mark.parametrize("door", ["command", "tool", "route"])
@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_every_door_gives_what_python_gives(
    task: type[Task[Any]], door: str, python: Door, request: pytest.FixtureRequest
) -> None:
    through: Door = request.getfixturevalue(door)
    wanted, found = python(task), through(task)
    assert wanted["text"].strip()
    assert found["text"] == wanted["text"]
    assert comparable(found) == comparable(wanted)


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_the_schema_is_kept_by_the_example_and_by_nothing_else(
    task: type[Task[Any]], client: httpx2.Client
) -> None:
    listed = {one["id"]: one["schema"] for one in client.get("/v1/tasks").json()["data"]}
    schema = listed[task.name]
    shared = body_schema(task, paths=False)
    options = {name: said for name, said in schema["properties"].items() if name != "model"}
    assert {**schema, "properties": options} == shared
    assert "$ref" not in json.dumps(schema)
    jsonschema.Draft202012Validator.check_schema(schema)
    operation = client.get("/openapi.json").json()["paths"][f"/v1/tasks/{task.name}"]["post"]
    documented = operation["requestBody"]["content"]["application/json"]["schema"]
    unknown = {**body(task), "lenguage": "ru"}
    for said in (schema, documented):
        jsonschema.validate(body(task), said)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(unknown, said)
    answer = client.post(f"/v1/tasks/{task.name}", json=unknown)
    assert answer.status_code == 400
    assert "'lenguage'" in answer.text


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ([], "at a time"),
        (["/etc/hostname"], "images[0] is not an http(s) address or data: URL"),
        (["file:///etc/hostname"], "images[0] is not an http(s) address or data: URL"),
        (["data:image/png;base64,%%%"], "images[0] is not base64"),
        (["data:,hello"], "without base64"),
        (["data:image/png;base64,aGVsbG8="], "images[0]"),
        ("data:image/png;base64,aGVsbG8=", "not a list"),
        ([7], "not a list"),
    ],
)
def test_the_route_refuses_what_is_no_picture(
    client: httpx2.Client, images: object, says: str
) -> None:
    answer = client.post("/v1/tasks/describe", json={"images": images})
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


def test_a_video_may_be_shown_to_the_route(client: httpx2.Client) -> None:
    clip = base64.b64encode(clips.steady(8, 4)).decode()
    shown = {"videos": [f"data:video/mp4;base64,{clip}"], "sampling": SAMPLING}
    row = client.post("/v1/tasks/describe", json=shown).json()
    assert row["meta"]["videos"][0]["name"] == "videos[0]"


def test_the_body_of_the_guide_is_one(client: httpx2.Client) -> None:
    guide = (ROOT / "docs" / "programs.md").read_text("utf-8")
    shown = json.loads(re.findall(r"```json\n(.*?)```", guide, flags=re.S)[0])
    jsonschema.validate(shown, body_schema(TASKS["describe"], paths=False))
    shown["images"] = [data_url(PICTURES[0])]
    assert client.post("/v1/tasks/describe", json=shown).json()["language"] == "ru"


def test_in_python_a_document_is_all_of_its_pages_or_the_result_says_that_it_is_not(
    vlm: VLM, tmp_path: Path
) -> None:
    path = tmp_path / "paper.pdf"
    path.write_bytes(documents.document(documents.RED_LEFT, b"0 0 1 rg 0 0 100 100 re f"))
    short = Sampling(max_new_tokens=4)
    both, first = vlm.ask(path, question="What?", sampling=short), vlm.ocr(path, sampling=short)
    assert [i.sha256[-2:] for i in both.completion.provenance.images] == ["#1", "#2"]
    assert both.warnings == ()
    assert first.warnings == (f"{path}: 2 pages: the first one is used",)
    second = vlm.ocr(Image(path, page=2), sampling=short)
    assert second.completion.provenance.images[0].sha256.endswith("#2")
    assert second.warnings == ()
