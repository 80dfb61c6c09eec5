"""The describe task: its wording, its order, its errors, on the embedded model."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from qvl import VLM, Image, Message, Request, Sampling
from qvl.errors import ImageDecodeError, InvalidParamError, QvlError
from qvl.tasks.describe import Describe, describe
from qvl.tasks.prompts import DESCRIBE, LANGUAGES, describe_prompt
from qvl.types import Text, Video

PICTURES = sorted((Path(__file__).parents[2] / "examples" / "pictures").glob("*.png"))[:4]


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return VLM()


def test_every_style_has_its_wording_in_the_three_languages() -> None:
    wordings = [text for by_language in DESCRIBE.values() for text in by_language.values()]
    assert len(set(wordings)) == len(wordings) == 3 * len(DESCRIBE)


def test_a_language_without_wording_is_asked_for_by_name() -> None:
    assert describe_prompt("plain", "de") == f"{DESCRIBE['plain']['en']} Answer in German."
    assert all(describe_prompt("menu", code) for code in LANGUAGES)


def test_a_video_is_asked_about_as_a_video_and_not_for_boxes() -> None:
    film = Video(source=b"")
    asked = list(Describe(languages=("ru", "de"), boxes=True).requests(film))
    assert [request.messages[0].content[1] for request in asked] == [
        Text("Опиши видео."),
        Text("Describe the video. Answer in German."),
    ]
    (asked_in_style,) = Describe(languages=("zh",), style="menu").requests(film)
    words = "Write a restaurant menu line for what is in the video. Answer in Chinese."
    assert asked_in_style.messages == (Message.user(film, words),)


def test_videos_and_pictures_keep_their_places(vlm: VLM) -> None:
    film = Video(source=tuple(Image.of(path) for path in PICTURES[:1] * 3), name="film")
    shown = [Image.of(PICTURES[0]), film, Image.of(PICTURES[1])]
    found = list(describe(vlm, shown, Describe(languages=("ru", "en"), boxes=True)))
    for item, described in zip(shown, found, strict=True):
        assert not isinstance(described, QvlError)
        alone = next(describe(vlm, [item], Describe(languages=("ru", "en"), boxes=True)))
        assert not isinstance(alone, QvlError)
        for language in ("ru", "en"):
            assert described[language].text == alone[language].text
    assert found[1]["en"].boxes == ()  # type: ignore[index]
    assert vlm.describe(film).text == found[1]["en"].text  # type: ignore[index]


def test_a_prompt_of_ones_own_replaces_the_wording() -> None:
    (asked,) = Describe(languages=("ru",), prompt="What is this?").requests(Image(b""))
    assert asked.messages == (Message.user(Image(b""), "What is this?"),)


def test_unknown_names_are_refused_with_near_ones(vlm: VLM) -> None:
    with pytest.raises(InvalidParamError) as style:
        vlm.describe(PICTURES[0], style="marketplac")
    assert "'marketplace'" in (style.value.hint or "")
    with pytest.raises(InvalidParamError, match="xx"):
        vlm.describe(PICTURES[0], language="xx")


def test_many_as_one_by_one(vlm: VLM) -> None:
    images = [Image.of(path) for path in PICTURES]
    together = list(describe(vlm, images, Describe(languages=("ru", "zh"), boxes=True)))
    for path, found in zip(PICTURES, together, strict=True):
        assert not isinstance(found, QvlError)
        for language in ("ru", "zh"):
            alone = vlm.describe(path, language=language, boxes=True)
            assert (alone.text, alone.boxes) == (found[language].text, found[language].boxes)


def test_a_broken_picture_is_an_error_in_its_place(vlm: VLM) -> None:
    images = [Image.of(PICTURES[0]), Image(b"text", "b.jpg"), Image.of(PICTURES[1])]
    found = list(describe(vlm, images, Describe(boxes=True)))
    assert isinstance(found[1], ImageDecodeError)
    assert not isinstance(found[0], QvlError)
    assert not isinstance(found[2], QvlError)
    assert found[2]["en"].text == vlm.describe(PICTURES[1]).text


def test_what_is_reasoned_is_neither_text_nor_boxes(vlm: VLM) -> None:
    (told,) = vlm.generate(Describe().requests(Image.of(PICTURES[0])))
    thought = '[{"bbox_2d": [0, 0, 500, 500], "label": "thought"}]'
    found = [replace(told, reasoning=thought), replace(told, text="none", reasoning=thought)]
    description = Describe(boxes=True).read(found)["en"]
    assert (description.text, description.boxes) == (told.text, ())
    said = replace(found[1], text=thought)
    assert len(Describe(boxes=True).read([told, said])["en"].boxes) == 1


def test_async_says_the_same(vlm: VLM) -> None:
    (asked,) = Describe().requests(Image.of(PICTURES[0]))

    async def all_three() -> tuple[str, str, str]:
        described = await vlm.adescribe(PICTURES[0], language="en")
        generated = (await vlm.agenerate([asked]))[0]
        streamed = [delta.text async for delta in vlm.astream(asked)]
        return described.text, generated.text, "".join(streamed)

    described, generated, streamed = asyncio.run(all_three())
    assert described == generated == streamed == vlm.describe(PICTURES[0], language="en").text


def test_a_stop_string_ends_the_text_before_it(vlm: VLM) -> None:
    whole = vlm.describe(PICTURES[0], language="en").text
    stop = whole[5:8]
    asked = Request(
        messages=(Message.user(Image.of(PICTURES[0]), describe_prompt("plain", "en")),),
        sampling=Sampling(temperature=0, stop=(stop,)),
    )
    told = vlm.generate([asked])[0]
    assert told.text == whole[: whole.index(stop)]
    assert told.finish_reason == "stop"
