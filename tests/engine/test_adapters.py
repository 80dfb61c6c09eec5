"""Several adapters on one engine: each request as if its adapter were alone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from low_rank import random_adapter
from qvl.engine.request import EngineRequest, Event
from qvl.errors import EngineError
from qvl.loading.adapted import adapted
from qvl.models.lora import Adapted
from qvl.models.qwen_vl import QwenVL
from tiny_engine import (
    GENERATIONS,
    MIX,
    NAMED,
    asking,
    drain,
    end_of,
    error_of,
    ids_of,
    new_engine,
    prompt,
    run,
    tiny_model,
)

LANGUAGE = ("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj")
TOWER = ("attn.qkv", "mlp.linear_fc1")


def views(generation: str) -> dict[str, QwenVL]:
    model = tiny_model(generation)
    return {
        "one": adapted(model, random_adapter(model, LANGUAGE, seed=1)),
        "two": adapted(model, random_adapter(model, ("k_proj", "up_proj"), seed=2, dora=True)),
        "tower": adapted(model, random_adapter(model, TOWER, seed=3, size=2.0)),
    }


def asked_of(adapter: str, requests: Sequence[EngineRequest] = MIX) -> list[EngineRequest]:
    return [replace(r, id=f"{adapter} {r.id}", adapter=adapter) for r in requests]


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("budget", [2048, 7])
def test_in_company_each_adapter_says_what_it_says_alone(generation: str, budget: int) -> None:
    model, adapters = tiny_model(generation), views(generation)
    # those of one adapter do not stand together
    requests = [r for i in range(len(MIX)) for a in ("two", "", "tower", "one") for r in asked_of(a, MIX[i : i + 1])]  # fmt: skip
    events = run(model, requests, adapters=adapters, token_budget=budget)
    said = {r.id: ids_of(events, r.id) for r in requests}
    for request in requests:
        view = adapters.get(request.adapter, model)
        expected = ids_of(run(view, [replace(request, adapter="")]), request.id)
        assert said[request.id] == expected, request.id
    for one, other in (("", "one"), ("one", "two"), ("", "tower")):
        differ = [said[f"{one} {r.id}"] != said[f"{other} {r.id}"] for r in MIX if r.images]
        assert any(differ), (one, other)


def after(
    generation: str, first: EngineRequest, second: EngineRequest, adapters: dict[str, QwenVL]
) -> int:
    """Tokens of the second request that were computed for the first."""
    engine = new_engine(tiny_model(generation), adapters=adapters)
    engine.add(first)
    drain(engine)
    engine.add(replace(second, id="second"))
    return end_of(drain(engine), "second").cached_tokens


def test_what_is_computed_is_found_again_under_the_same_adapter_alone() -> None:
    adapters = views("qwen3_vl")
    plain = asking("first", [50, 51, 52], NAMED[0])
    one, two = (replace(plain, adapter=name) for name in ("one", "two"))
    assert after("qwen3_vl", one, one, adapters) == after("qwen3_vl", plain, plain, {}) == 32
    for first, second in ((plain, one), (one, plain), (one, two)):
        assert after("qwen3_vl", first, second, adapters) == 0


def test_another_adapter_of_the_same_name_finds_nothing() -> None:
    model = tiny_model("qwen3_vl")
    adapters = {"mine": adapted(model, random_adapter(model, LANGUAGE, seed=1))}
    request = replace(asking("first", [50, 51, 52], NAMED[0]), adapter="mine")
    engine = new_engine(model, adapters=adapters)
    engine.add(request)
    drain(engine)
    adapters["mine"] = adapted(model, random_adapter(model, LANGUAGE, seed=2))
    engine.add(replace(request, id="other"))
    other = drain(engine)
    assert end_of(other, "other").cached_tokens == 0
    assert ids_of(other, "other") == ids_of(
        run(adapters["mine"], [replace(request, adapter="", id="other")]), "other"
    )
    adapters["mine"] = adapted(model, random_adapter(model, LANGUAGE, seed=1))
    engine.add(replace(request, id="again"))  # the first content once more
    assert end_of(drain(engine), "again").cached_tokens == 32


def test_a_picture_is_seen_once_unless_an_adapter_changes_the_tower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []
    plain = QwenVL.encode_images

    def encode_images(self: QwenVL, *args):
        seen.append(self.tower_adapter)
        return plain(self, *args)

    monkeypatch.setattr(QwenVL, "encode_images", encode_images)
    adapters = views("qwen3_vl")
    engine = new_engine(tiny_model("qwen3_vl"), adapters=adapters)
    for name in ("", "one", "two", "tower", "tower", ""):
        request = asking(f"{len(seen)}", [50, 51, 52], NAMED[0])
        engine.add(replace(request, adapter=name))
        drain(engine)
    assert seen == ["", adapters["tower"].adapter]


def test_an_adapter_that_is_removed_is_freed_when_its_last_request_ends() -> None:
    model = tiny_model("qwen3_vl")
    adapters = {"mine": adapted(model, random_adapter(model, LANGUAGE, seed=1))}
    request = replace(MIX[0], adapter="mine")
    expected = ids_of(run(model, [request], adapters=dict(adapters)), request.id)
    engine = new_engine(model, adapters=adapters)
    engine.add(request)
    events: list[Event] = engine.step()
    factor = next(p for p in adapters["mine"].modules() if isinstance(p, Adapted))
    alive = weakref.ref(factor)
    del factor, adapters["mine"]
    with pytest.raises(EngineError, match="no adapter 'mine'"):
        engine.add(replace(request, id="late"))
    assert alive() is not None
    events += drain(engine)
    assert ids_of(events, request.id) == expected
    gc.collect()
    assert alive() is None


def test_a_fault_of_one_adapter_harms_the_others_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model, adapters = tiny_model("qwen3_vl"), views("qwen3_vl")
    broken = next(p for p in adapters["one"].modules() if isinstance(p, Adapted))
    monkeypatch.setattr(broken, "forward", lambda x: 1 / 0)
    requests = [prompt(name, [7, 8, 9]) for name in ("", "one", "two")]
    requests = [replace(r, adapter=r.id, id=f"of {r.id}") for r in requests]
    events = run(model, requests, adapters=adapters)
    assert isinstance(error_of(events, "of one"), EngineError)
    for name in ("", "two"):
        assert len(ids_of(events, f"of {name}")) == 6


def test_the_model_itself_is_not_changed_by_a_view() -> None:
    model = tiny_model("qwen2_vl")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    view = adapted(model, random_adapter(model, LANGUAGE, seed=1, rank=5))
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    own = {p.data_ptr() for p in view.parameters()} - {p.data_ptr() for p in model.parameters()}
    ranks = [p for p in view.parameters() if 5 in p.shape]
    assert own == {p.data_ptr() for p in ranks}
    assert len(ranks) == 2 * 5 * 2
