"""The describe task: its wording, its order, its errors, on the embedded model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from qvl import VLM, Image, Message, Request, Sampling
from qvl.errors import EngineError, ImageDecodeError, InvalidParamError, QvlError
from qvl.tasks.describe import Describe, Description
from qvl.tasks.prompts import LANGUAGES, shipped, wording
from qvl.tasks.task import Seen, as_row, from_json, question, results
from qvl.types import Video
from qvl.vlm.chat_model import ChatModel

PICTURES = sorted((Path(__file__).parents[2] / "examples" / "pictures").glob("*.png"))[:4]


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return VLM()


def test_every_style_has_its_wording_in_the_three_languages() -> None:
    styles = shipped("describe")
    wordings = [text for by_language in styles.values() for text in by_language.values()]
    assert len(set(wordings)) == len(wordings) == 3 * len(styles)


def test_a_language_without_wording_is_asked_for_by_name() -> None:
    english = shipped("describe")["plain"]["en"]
    assert wording("describe", "plain", "de") == f"{english} Answer in German."
    assert all(wording("describe", "menu", code) for code in LANGUAGES)


def test_a_video_is_asked_about_as_a_video() -> None:
    film = Video(source=b"")
    assert Describe(language="ru").words(film) == "Опиши видео."
    assert Describe(language="de").words(film) == "Describe the video. Answer in German."
    assert Describe(language="zh", style="menu").words(film) == (
        "Write a restaurant menu line for what is in the video. Answer in Chinese."
    )


def test_options_add_their_sentences_in_the_language() -> None:
    task = Describe(
        language="ru", length="short", tone="friendly", audience="дети", facts={"артикул": "47"}
    )
    assert task.words(Image(b"")) == (
        "Опиши картинку. Ответь одним предложением. Пиши дружелюбным тоном. Читатели: дети. "
        "Эти сведения известны; используй их и ни одному не противоречь: артикул: 47."
    )


def test_videos_and_pictures_keep_their_places(vlm: VLM) -> None:
    film = Video(source=tuple(Image.of(path) for path in PICTURES[:1] * 3), name="film")
    shown = [Image.of(PICTURES[0]), film, Image.of(PICTURES[1])]
    task = Describe(language="ru", boxes=True)
    found = list(results(vlm.model, ((task, [one]) for one in shown)))
    for item, described in zip(shown, found, strict=True):
        assert not isinstance(described, QvlError)
        alone = vlm.run(task, item)
        assert (described.text, described.boxes) == (alone.text, alone.boxes)
    assert not isinstance(found[1], QvlError)
    assert found[1].boxes == ()
    assert vlm.describe(film, language="ru").text == found[1].text


def test_a_prompt_of_ones_own_replaces_the_wording() -> None:
    assert Describe(language="ru", prompt="What is this?").words(Image(b"")) == "What is this?"


def test_unknown_names_are_refused_with_near_ones(vlm: VLM) -> None:
    with pytest.raises(InvalidParamError) as style:
        vlm.describe(PICTURES[0], style="marketplac")
    assert "'marketplace'" in (style.value.hint or "")
    with pytest.raises(InvalidParamError, match="xx"):
        vlm.describe(PICTURES[0], language="xx")


def test_many_as_one_by_one(vlm: VLM) -> None:
    tasks = [Describe(language=language, boxes=True) for language in ("ru", "zh")]
    work = [(task, path) for path in PICTURES for task in tasks]
    together = results(vlm.model, ((task, [Image.of(path)]) for task, path in work))
    for (task, path), found in zip(work, together, strict=True):
        assert not isinstance(found, QvlError)
        alone = vlm.run(task, path)
        assert (alone.text, alone.boxes) == (found.text, found.boxes)


def test_a_broken_picture_is_an_error_in_its_place(vlm: VLM) -> None:
    images = [Image.of(PICTURES[0]), Image(b"text", "b.jpg"), Image.of(PICTURES[1])]
    found = list(results(vlm.model, ((Describe(boxes=True), [image]) for image in images)))
    assert isinstance(found[1], ImageDecodeError)
    assert not isinstance(found[0], QvlError)
    assert not isinstance(found[2], QvlError)
    assert found[2].text == vlm.describe(PICTURES[1]).text


def test_a_task_with_a_bug_fails_its_item_alone(vlm: VLM) -> None:
    class Broken(Describe):
        def run(self, model: ChatModel, seen: Sequence[Seen]) -> Description:
            raise KeyError("of ours")

    first, second = results(
        vlm.model, [(Broken(), [Image.of(PICTURES[0])]), (Describe(), [Image.of(PICTURES[0])])]
    )
    assert isinstance(first, EngineError)
    assert "of ours" not in first.message
    assert not isinstance(second, QvlError)


def test_options_of_json_are_those_of_python_and_others_are_refused() -> None:
    options = {"language": "ru", "facts": {"a": "b"}, "sampling": {"seed": 4, "stop": ["x"]}}
    assert from_json(Describe, options) == Describe(
        language="ru", facts={"a": "b"}, sampling=Sampling(seed=4, stop=("x",))
    )
    for wrong, word in [
        ({"languge": "ru"}, "languge"),
        ({"language": 5}, "language"),
        ({"language": "xx"}, "xx"),
        ({"sampling": {"temperature": 9}}, "temperature"),
        ({"sampling": {"top": 1}}, "sampling.top"),
        ({"listing": "yes"}, "listing"),
    ]:
        with pytest.raises(InvalidParamError, match=word):
            from_json(Describe, wrong)


def test_a_row_is_json(vlm: VLM) -> None:
    found = vlm.describe(PICTURES[0], boxes=True)
    row = json.loads(json.dumps(as_row("a.png", found)))
    assert (row["id"], row["text"]) == ("a.png", found.text)
    assert len(row["boxes"]) == len(found.boxes)
    assert row["usage"]["completion_tokens"] == sum(
        c.usage.completion_tokens for c in found.completions
    )


def test_async_says_the_same(vlm: VLM) -> None:
    asked = question([Image.of(PICTURES[0])], Describe().words(Image(b"")), Sampling())

    async def all_three() -> tuple[str, str, str]:
        described = await vlm.arun(Describe(language="en"), PICTURES[0])
        generated = (await vlm.agenerate([asked]))[0]
        streamed = [delta.text async for delta in vlm.astream(asked)]
        return described.text, generated.text, "".join(streamed)

    described, generated, streamed = asyncio.run(all_three())
    assert described == generated == streamed == vlm.describe(PICTURES[0], language="en").text


def test_a_stop_string_ends_the_text_before_it(vlm: VLM) -> None:
    whole = vlm.describe(PICTURES[0], language="en").text
    stop = whole[5:8]
    asked = Request(
        messages=(Message.user(Image.of(PICTURES[0]), wording("describe", "plain", "en")),),
        sampling=Sampling(temperature=0, stop=(stop,)),
    )
    told = vlm.generate([asked])[0]
    assert told.text == whole[: whole.index(stop)]
    assert told.finish_reason == "stop"
