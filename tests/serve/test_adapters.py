"""Adapters in the server: models by their own names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from low_rank import random_adapter
from qvl.loading.adapter import write_adapter
from qvl.loading.model import load_model
from qvl.types import Image, Message, Request, Sampling
from qvl.vlm.local import LocalModel
from served import Running, ask, client_of, data_url, png, running
from tiny import save_tiny

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    root = tmp_path_factory.mktemp("served")
    save_tiny(root / "model", "qwen3_vl")
    plain = load_model(root / "model", dtype="fp32").model
    for seed, name in enumerate(("shelf", "receipts")):
        adapter = random_adapter(plain, ("q_proj", "down_proj", "qkv"), seed=seed, size=1.5)
        write_adapter(root / name, adapter.layers, generation="qwen3_vl", base_name="tiny")
    folders = {name: root / name for name in ("shelf", "receipts")}
    made = LocalModel(str(root / "model"), device="cpu", dtype="fp32", adapters=folders)
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(model: LocalModel) -> Iterator[Running]:
    with running(model, names=["tiny"], adapters=model.adapters) as here:
        yield here


def post(server: Running, path: str, **fields: Any) -> tuple[int, Any]:
    status, _, body = ask(server.port, "POST", path, JSON, json.dumps(fields))
    return status, json.loads(body)


@pytest.mark.parametrize("name", ["tiny", "shelf", "receipts"])
def test_the_name_of_the_model_picks_the_adapter(
    server: Running, model: LocalModel, name: str
) -> None:
    adapter = "" if name == "tiny" else name
    (called,) = model.generate([
        Request(
            messages=(Message.user("What is this?", Image(png(3))),),
            sampling=Sampling(max_new_tokens=8, temperature=0),
            adapter=adapter,
        )
    ])  # fmt: skip
    content = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": data_url(png(3))}},
    ]
    with client_of(server) as client:
        told = client.chat.completions.create(
            model=name,
            messages=[{"role": "user", "content": content}],
            max_tokens=8,
            temperature=0,
        )
    assert told.model == name
    assert told.choices[0].message.content == called.text
    meta = told.choices[0].meta
    assert (meta["model"], meta["adapter"]) == (name, adapter)
    said = {
        adapter: model.generate(
            [
                Request(
                    messages=(Message.user("What is this?", Image(png(3))),),
                    sampling=Sampling(max_new_tokens=8, temperature=0),
                    adapter=adapter,
                )
            ]
        )[0].text
        for adapter in ("", "shelf", "receipts")
    }
    assert len(set(said.values())) == 3


def test_each_is_listed_and_the_model_is_its_parent(server: Running) -> None:
    with client_of(server) as client:
        listed = {m.id: m for m in client.models.list().data}
        assert list(listed) == ["tiny", "shelf", "receipts"]
        assert [listed[name].parent for name in listed] == [None, "tiny", "tiny"]
        assert client.models.retrieve("shelf").root == "tiny"
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve("shelves")
        assert "tiny, shelf, receipts" in str(caught.value.body)


def test_a_task_takes_the_same_name(server: Running, model: LocalModel) -> None:
    greedy = {"temperature": 0, "max_new_tokens": 8}
    fields = {"images": [data_url(png(4))], "question": "What is it?", "sampling": greedy}
    rows = {}
    for name in (None, "tiny", "shelf"):
        named = {} if name is None else {"model": name}
        status, row = post(server, "/v1/tasks/ask", **fields, **named)
        assert status == 200, row
        rows[name] = row
    assert [row["meta"]["model"] for row in rows.values()] == ["tiny", "tiny", "shelf"]
    assert [row["meta"]["adapter"] for row in rows.values()] == ["", "", "shelf"]
    assert rows[None]["text"] == rows["tiny"]["text"] != rows["shelf"]["text"]
    status, told = post(server, "/v1/tasks/ask", **fields, model="other")
    assert (status, told["error"]["code"]) == (404, "model_not_found")
    assert post(server, "/v1/tasks/ask", **fields, model=3)[0] == 400
