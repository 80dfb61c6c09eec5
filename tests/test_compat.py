"""The tutorials' calls of the first Qwen-VL, on a tiny model of that generation and on the embedded one."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

import tiny_v1
from qvl import VLM, Image, Message, Request, Sampling, Text
from qvl.compat import Model, Query, Tokenizer, load
from qvl.errors import InputNotFoundError, InvalidParamError
from qvl.loading.pickled import convert_pickled
from qvl.tasks.boxes import boxes_of
from qvl.tasks.prompts import wording

PICTURES = sorted((Path(__file__).parents[1] / "examples" / "pictures").glob("*.png"))[:2]
FEW = {"max_new_tokens": 12, "temperature": 0}
TOKENIZER = Tokenizer()


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A tiny random model of the first generation."""
    folder = tmp_path_factory.mktemp("v1")
    tiny_v1.save_published(folder / "published")
    convert_pickled(folder / "published", folder / "converted")
    return load(str(folder / "converted"), dtype="fp32")[0]


@pytest.fixture(scope="module")
def embedded() -> Model:
    return Model(VLM())


@pytest.fixture(params=["first", "embedded"])
def model(request: pytest.FixtureRequest) -> Model:
    return request.getfixturevalue(request.param)


def shown(path: Path, words: str) -> Query:
    return TOKENIZER.from_list_format([{"image": str(path)}, {"text": words}])


def test_a_query_looks_as_in_the_tutorials() -> None:
    query = TOKENIZER.from_list_format(
        [
            {"image": "a b.jpg"},
            {"image": "https://example.org/b.png"},
            {"text": "Is "},
            {"ref": "this", "box": (1, 2, 30, 400)},
            {"box": [(0, 0, 5, 5), (5, 5, 9, 9)]},
            {"text": " the same?"},
        ]
    )
    assert query == (
        "Picture 1: <img>a b.jpg</img>\nPicture 2: <img>https://example.org/b.png</img>\n"
        "Is <ref>this</ref><box>(1,2),(30,400)</box><box>(0,0),(5,5)</box><box>(5,5),(9,9)</box>"
        " the same?"
    )
    assert query.parts[:3] == (
        Image.of("a b.jpg"),
        Image.of("https://example.org/b.png"),
        Text("Is "),
    )


@pytest.mark.parametrize(
    "element",
    [
        {"video": "a.mp4"},
        {"image": 5},
        {"text": None},
        {"box": (1, 2, 3)},
        {},
        {"text": "a", "image": "a.png"},
        {"ref": "a"},
    ],
)
def test_another_element_is_refused(element: dict[str, object]) -> None:
    with pytest.raises(InvalidParamError):
        TOKENIZER.from_list_format([element])


def test_a_conversation_is_the_same_as_its_messages(model: Model) -> None:
    query = shown(PICTURES[0], "What is this?")
    response, history = model.chat(TOKENIZER, query=query, history=None, **FEW)
    before = copy.deepcopy(history)
    second, longer = model.chat(TOKENIZER, "And its colour?", history=history, **FEW)
    messages = (
        Message.user(Image.of(PICTURES[0]), "What is this?"),
        Message("assistant", (Text(response),)),
        Message.user("And its colour?"),
    )
    for told, said in ((response, messages[:1]), (second, messages)):
        (expected,) = model.vlm.generate(
            [Request(messages=said, sampling=Sampling(max_new_tokens=12, temperature=0))]
        )
        assert told == expected.text
        assert told
    assert history == before == [(query, response)]
    assert longer == [(query, response), ("And its colour?", second)]
    # a copied history still shows its pictures
    assert model.chat(TOKENIZER, "And its colour?", history=before, **FEW)[0] == second
    assert model.chat(TOKENIZER, query, append_history=False, **FEW) == (response, [])


def test_a_stream_grows_into_the_response(model: Model) -> None:
    query = shown(PICTURES[1], "What is this?")
    options = {"max_new_tokens": 12, "temperature": 0.9, "seed": 7, "system": "Be brief."}
    response, _ = model.chat(TOKENIZER, query, None, **options)
    pieces = list(model.chat_stream(TOKENIZER, query, None, **options))
    assert pieces[-1] == response
    assert pieces[-1].completion is not None
    assert all(later.startswith(piece) for piece, later in pairwise(pieces))


def test_a_plain_text_opens_no_picture(embedded: Model) -> None:
    with pytest.raises(InvalidParamError, match="opens no picture"):
        embedded.chat(TOKENIZER, f"<img>{PICTURES[0]}</img>What is this?")
    with pytest.raises(InvalidParamError, match="opens no picture"):
        embedded.chat(TOKENIZER, shown(PICTURES[0], "What is this?") + " Say it.")


def test_an_unknown_option_is_refused_with_the_near_one(embedded: Model) -> None:
    with pytest.raises(InvalidParamError, match="temprature") as caught:
        embedded.chat(TOKENIZER, "Hello", temprature=1)
    assert "'temperature'" in (caught.value.hint or "")
    with pytest.raises(InvalidParamError, match="outside"):
        embedded.chat(TOKENIZER, "Hello", temperature=9)


def test_boxes_of_a_plain_response_are_drawn_in_thousandths(tmp_path: Path) -> None:
    path = tmp_path / "white.png"
    PILImage.new("RGB", (400, 200), "white").save(path)
    history = [(shown(PICTURES[0], "?"), "a"), (shown(path, "Frame it"), "b"), ("More", "c")]
    picture = TOKENIZER.draw_bbox_on_latest_picture("Here: <box>(250,500),(750,900)</box>", history)
    assert picture is not None
    assert picture.size == (400, 200)
    coloured = np.argwhere((np.asarray(picture) != 255).any(axis=2))
    assert coloured.min(axis=0).tolist() == [100, 100]
    assert coloured.max(axis=0).tolist() == [180, 300]
    picture.save(tmp_path / "1.jpg")


def test_without_a_box_or_a_picture_nothing_is_drawn(tmp_path: Path) -> None:
    box = "<box>(250,500),(750,900)</box>"
    assert TOKENIZER.draw_bbox_on_latest_picture(box, None) is None
    assert TOKENIZER.draw_bbox_on_latest_picture(box, [("Hello", "Hi")]) is None
    history = [(shown(PICTURES[0], "?"), "")]
    assert TOKENIZER.draw_bbox_on_latest_picture("a cup (250,500),(750,900)", history) is None
    gone = [(shown(tmp_path / "gone.png", "?"), "")]
    with pytest.raises(InputNotFoundError):
        TOKENIZER.draw_bbox_on_latest_picture(box, gone)


def test_boxes_of_another_generation_are_drawn_where_it_means_them(embedded: Model) -> None:
    query = shown(PICTURES[0], wording("describe_parts", "locate", "en"))
    response, history = embedded.chat(TOKENIZER, query, temperature=0)
    assert response.completion is not None
    boxes = boxes_of(response.completion)
    picture = TOKENIZER.draw_bbox_on_latest_picture(response, history)
    assert boxes
    assert picture is not None
    pixels = np.asarray(picture)
    plain = np.asarray(PILImage.open(PICTURES[0]).convert("RGB"))
    changed = (pixels != plain).any(axis=2)
    for box in boxes:
        beside = slice(max(0, round(box.x1) - 2), round(box.x1) + 3)
        assert changed[round((box.y1 + box.y2) / 2), beside].any()
