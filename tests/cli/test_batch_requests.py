"""`qvl batch run chat`: requests to OpenAI's API out of a file; and `qvl replay`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from command import Run
from qvl.batch.asked import seed_of
from qvl.runs.record import Outcome, Review
from qvl.runs.run import Run as Store
from qvl.vlm.local import LocalModel
from served import Running, ask, data_url, png, running

JSON = {"Content-Type": "application/json"}
SEED = 3
CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
PICTURE = {"type": "image_url", "image_url": {"url": data_url(png(1))}}
HOT: dict[str, Any] = {"temperature": 1.5, "max_tokens": 12}
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "hot": (CHAT, {"model": "gpt", "messages": [{"role": "user", "content": "Hello"}], **HOT}),
    "two": (CHAT, {"messages": [{"role": "user", "content": "Hello"}], **HOT, "n": 2}),
    "own": (CHAT, {"messages": [{"role": "user", "content": [PICTURE]}], **HOT, "seed": 5}),
    "text": (TEXT, {"prompt": ["What is red?", "Hello"], **HOT}),
    "new": (RESPONSES, {"input": "What is red?", "temperature": 1.5, "max_output_tokens": 9}),
    "empty": (CHAT, {"messages": []}),
    "stray": (CHAT, {"messages": [{"role": "user", "content": "a", "x": 1}]}),
    "broken": (CHAT, {"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": "data:image/png;base64,AAAA"}]}]}),
    "warm": (CHAT, {"messages": [{"role": "user", "content": "a"}], "temperature": 9}),
}  # fmt: skip
WRONG = ("empty", "stray", "broken", "warm")


def line(name: str, url: str, body: Any) -> str:
    return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": body}) + "\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "requests.jsonl"
    found.write_text("".join(line(name, *one) for name, one in BODIES.items()))
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    model = LocalModel()
    with running(model, any_model=True) as here:
        yield here
    model.close()


def lasting(value: Any) -> Any:
    """Without what is another each time: ids, moments, and what was found computed."""
    changing = ("id", "created", "created_at", "completed_at", "timings", "cached_tokens")
    if isinstance(value, dict):
        return {k: lasting(v) for k, v in value.items() if k not in (*changing, "request_id")}
    return [lasting(one) for one in value] if isinstance(value, list) else value


def exported(qvl: Run, tmp_path: Path, name: str) -> dict[str, Any]:
    assert qvl("batch", "export", name, "out.jsonl", "--as", "openai", "--overwrite").code == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    return {line["custom_id"]: line for line in lines}


def test_each_answer_is_the_routes_own(
    qvl: Run, file: Path, tmp_path: Path, server: Running
) -> None:
    ended = qvl("batch", "run", "chat", file, "--run", "asked", "--seed", str(SEED))
    assert ended.code == 3, ended.err
    assert f"{len(WRONG)} failed" in ended.err
    found = exported(qvl, tmp_path, "asked")
    assert [*found] == [*BODIES]
    for name, (url, body) in BODIES.items():
        seed = {"seed": body.get("seed", seed_of(SEED, name))}
        status, _, data = ask(server.port, "POST", url, JSON, json.dumps(body | seed))
        assert (status == 200) == (name not in WRONG)
        told = found[name]
        assert told["error"] is None
        assert told["response"]["status_code"] == status
        assert lasting(told["response"]["body"]) == lasting(json.loads(data))
        assert told["response"]["request_id"].startswith("req_")
    answers = found["two"]["response"]["body"]["choices"]
    assert answers[0]["message"] != answers[1]["message"]
    assert found["hot"]["response"]["body"]["model"] == "gpt"


def test_what_is_no_request_is_refused_alone(qvl: Run, tmp_path: Path) -> None:
    other = {"input": "a"}
    words = ("custom_id", "method", "url", "body")
    bad = dict(zip(words, ("get", "GET", CHAT, BODIES["hot"][1]), strict=True))
    (tmp_path / "some.jsonl").write_text(
        line("good", *BODIES["hot"]) + line("far", "/v1/embeddings", other) + json.dumps(bad)
        + "\n" + line("good", *BODIES["two"]) + '{"custom_id": "cut", "bo\n'
    )  # fmt: skip
    (tmp_path / "cup.png").write_bytes(png(2))
    ended = qvl("batch", "plan", "chat", "some.jsonl", "cup.png")
    assert ended.code == 3
    assert "1 items of 1 rows" in ended.out
    assert "good: Hello" in ended.out
    assert "the same" not in ended.out
    ended = qvl("batch", "run", "chat", "some.jsonl", "cup.png", "--run", "some")
    assert ended.code == 3
    found = exported(qvl, tmp_path, "some")
    assert [*found] == ["good", "far", "cup.png"]
    assert found["good"]["response"]["status_code"] == 200
    assert found["far"]["response"]["status_code"] == 404
    assert found["far"]["response"]["body"]["error"]["code"] == "invalid_url"
    assert found["cup.png"]["error"]["code"] == "invalid_param"
    assert "no option 'request'" in qvl("batch", "run", "describe", "some.jsonl").err
    # texts, and a person's words, go into tables and back into the form of OpenAI
    with Store.read(tmp_path / "data" / "qvl" / "runs" / "some") as run:
        run.review([Review(id="good", state="edited", fields={"text": "Привет"})])
    (choice,) = exported(qvl, tmp_path, "some")["good"]["response"]["body"]["choices"]
    assert choice["message"]["content"] == "Привет"
    assert qvl("batch", "export", "some", "out.csv").code == 0
    table = (tmp_path / "out.csv").read_text("utf-8-sig")
    assert "Привет" in table
    assert "qvl_response" not in table.splitlines()[0]
    assert qvl("batch", "export", "some", "set.jsonl", "--as", "training").code == 0


def test_a_killed_run_goes_on_with_the_requests_that_are_in_its_items(
    qvl: Run, tmp_path: Path
) -> None:
    (tmp_path / "many.jsonl").write_text("".join(line(f"r{n}", *BODIES["hot"]) for n in range(60)))
    begin = ("batch", "run", "chat", "many.jsonl", "--seed", str(SEED))
    assert qvl(*begin, "--run", "whole").code == 0
    words = [sys.executable, "-m", "qvl", *map(str, begin), "--run", "killed"]
    with subprocess.Popen(words, cwd=tmp_path, env=dict(os.environ)) as process:
        results = tmp_path / "data" / "qvl" / "runs" / "killed" / "results-000001.jsonl"
        end_s = time.monotonic() + 60
        while not (results.exists() and results.stat().st_size):
            assert time.monotonic() < end_s
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    (tmp_path / "many.jsonl").unlink()
    assert qvl("batch", "resume", "killed").code == 0
    texts = [
        {
            name: line["response"]["body"]["choices"][0]["message"]["content"]
            for name, line in exported(qvl, tmp_path, run).items()
        }
        for run in ("whole", "killed")
    ]
    assert texts[0] == texts[1]
    assert len(set(texts[0].values())) > 10


def changed(tmp_path: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Another outcome of the run's first item."""
    with Store.open(tmp_path / "data" / "qvl" / "runs" / name) as run:
        one = run.at(0)
        assert one.outcome is not None
        out = json.loads(json.dumps(one.outcome.out))
        change(out)
        run.record(Outcome(ordinal=0, id=one.item.id, ok=True, out=out, attempt=2))


def test_replay_gives_the_same_answer_or_says_what_is_another(
    qvl: Run, file: Path, tmp_path: Path
) -> None:
    assert qvl("batch", "run", "chat", file, "--run", "asked", "--seed", str(SEED)).code == 3
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "cup.png").write_bytes(png(4))
    assert qvl("batch", "run", "describe", "a", "--run", "cups", "-t", "1", "--forbid", "rot",
               "--profile", "etsy").code == 0  # fmt: skip
    for run, item in (("asked", "hot"), ("asked", "own"), ("asked", "new"), ("cups", "cup.png")):
        ended = qvl("replay", run, item)
        assert (ended.code, "the same as kept" in ended.err) == (0, True)
        with Store.read(tmp_path / "data" / "qvl" / "runs" / run) as store:
            one = store.at(store.find(item) or 0)
        assert one.outcome is not None
        assert ended.out == f"{one.outcome.out['text']}\n"

    def say_another(out: dict[str, Any]) -> None:
        out["text"] = "a cup\nof tea"

    changed(tmp_path, "asked", say_another)
    ended = qvl("replay", "asked", "hot")
    assert ended.code == 7
    assert "-of tea" in ended.err
    assert "hot" in ended.err
    (tmp_path / "a" / "cup.png").write_bytes(png(5))
    assert "the pictures are not those" in qvl("replay", "cups", "cup.png").err
    assert qvl("replay", "asked", "warm").code == 4
    assert qvl("replay", "asked", "nothing").code == 4
    assert qvl("replay", "nothing", "hot").code == 4


def test_replay_tells_another_device_and_version(
    qvl: Run, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert qvl("batch", "run", "chat", file, "--run", "asked", "--seed", str(SEED)).code == 3
    monkeypatch.setattr("qvl.__version__", "9.9.9")
    ended = qvl("replay", "asked", "hot")
    assert ended.code == 0
    assert "qvl was" in ended.err
    assert "9.9.9" in ended.err
