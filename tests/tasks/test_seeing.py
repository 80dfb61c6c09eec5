"""Reading, finding, comparing, watching: what is asked, how answers are read, what is equal to what."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image as Pillow

import clips
from embedded import grammars, tokenizer
from qvl import VLM, Image, Sampling
from qvl.errors import AnswerFormError, InvalidParamError, QvlError, VideoDecodeError
from qvl.tasks import TASKS
from qvl.tasks.boxes import places_form
from qvl.tasks.compare import Compare, Difference
from qvl.tasks.ground import Ground
from qvl.tasks.ocr import Line, Ocr
from qvl.tasks.prompts import shipped
from qvl.tasks.task import results
from qvl.tasks.video import Event, Watch, windows
from qvl.types import Box, Point, ResponseFormat, Video
from rewritten import Rewritten

PICTURES = sorted((Path(__file__).parents[2] / "examples" / "pictures").glob("*.png"))[:4]
FILM = Video(source=tuple(Image.of(path) for path in PICTURES[:1] * 5), name="film", fps=1.0)


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return VLM()


@pytest.mark.parametrize("task", ["ocr", "ground", "compare", "video"])
def test_every_wording_is_there_in_three_languages_and_none_twice(task: str) -> None:
    wordings = [text for by_language in shipped(task).values() for text in by_language.values()]
    assert len(set(wordings)) == len(wordings) == 3 * len(shipped(task))


ALL = [
    (Ocr(), 1),
    (Ocr(answer_as="markdown", kind="scan", language="zh"), 1),
    (Ocr(answer_as="lines", language="ru"), 1),
    (Ground(phrases=("кот", "пёс"), language="ru"), 1),
    (Ground(phrases=("cat",), points=True), 1),
    (Compare(aspect="colour"), 2),
]


def test_among_others_each_finds_what_its_method_finds_alone(vlm: VLM) -> None:
    work = [(task, [Image.of(path) for path in PICTURES[:count]]) for task, count in ALL]
    work += [(task, [FILM]) for task in (Watch(), Watch(answer_as="events"))]
    for (task, seen), found in zip(work, results(vlm.model, work), strict=True):
        assert not isinstance(found, QvlError), found
        options = {f.name: getattr(task, f.name) for f in fields(task)}
        alone = getattr(vlm, task.name)(seen, **options)
        assert [c.text for c in found.completions] == [c.text for c in alone.completions]
        assert replace(found, completions=()) == replace(alone, completions=())


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Pillow.new("RGB", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


# reading


def test_lines_come_in_reading_order_with_their_boxes(vlm: VLM) -> None:
    said = '[{"bbox_2d":[0,500,1000,750],"text_content":"ХЛЕБ 40 ₽"},{"bbox_2d":[0,0,500,250],"text_content":"{ \\"b\\" }"}]'
    found = Ocr(answer_as="lines").run(Rewritten(vlm.model, said), [Image.of(PICTURES[0])])
    size = found.completion.provenance.images[0]
    width, height = size.width_px, size.height_px
    boxes = (
        Box("ХЛЕБ 40 ₽", 0, height / 2, width, height * 3 / 4),
        Box('{ "b" }', 0, 0, width / 2, height / 4),
    )
    assert found.text == 'ХЛЕБ 40 ₽\n{ "b" }'
    assert found.lines == tuple(Line(box.label, box) for box in boxes)
    assert found.boxes == boxes


def test_a_line_whose_box_is_nothing_keeps_its_text_and_a_cut_list_its_whole_lines(
    vlm: VLM,
) -> None:
    said = (
        '[{"bbox_2d":[9,9,9,9],"text_content":"a"},{"bbox_2d":[0,0,9,9],"text_content":"b"},{"bbox'
    )
    model = Rewritten(vlm.model, said, ends="length")
    found = Ocr(answer_as="lines").run(model, [Image.of(PICTURES[0])])
    assert found.text == "a\nb"
    assert found.lines[0] == Line("a", None)
    assert [box.label for box in found.boxes] == ["b"]
    assert found.flags == ("cut",)


def test_no_text_is_an_empty_answer_that_is_flagged_and_not_asked_for_again(vlm: VLM) -> None:
    for form, said in (("lines", "[]"), ("text", "")):
        model = Rewritten(vlm.model, said)
        found = Ocr(answer_as=form).run(model, [Image.of(PICTURES[0])])
        assert (found.text, found.lines, found.flags) == ("", (), ("empty",))
        assert len(model.asked) == 1


def test_a_fence_around_the_whole_page_is_taken_off(vlm: VLM) -> None:
    page = "# Счёт\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```\ncode\n```"
    for said in (page, f"```markdown\n{page}\n```"):
        found = Ocr(answer_as="markdown").run(Rewritten(vlm.model, said), [Image.of(PICTURES[0])])
        assert found.text == page


def test_what_is_read_is_asked_for_greedily_unless_a_temperature_is_given(vlm: VLM) -> None:
    for sampling, used in ((Sampling(), 0.0), (Sampling(temperature=0.7), 0.7)):
        model = Rewritten(vlm.model, "a")
        Ocr(sampling=sampling).run(model, [Image.of(PICTURES[0])])
        assert model.asked[0].sampling.temperature == used


def test_a_language_without_wordings_asks_in_english_and_for_no_translation() -> None:
    assert Ocr(language="de", kind="sign").words() == (
        "Read all the text in the picture. It is a sign."
    )
    assert Ocr(language="ru", kind="sign").words() == (
        "Прочитай весь текст на картинке. Это вывеска."
    )


# finding


@pytest.mark.parametrize("generation", ["qwen_vl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_each_generation_is_asked_and_read_in_its_own_way(vlm: VLM, generation: str) -> None:
    json_form = '[{"bbox_2d":[0,0,%d,%d],"label":"кот"}]'
    said = {
        "qwen_vl": "<ref>кот</ref><box>(0,0),(500,500)</box>",
        "qwen2_vl": "<|object_ref_start|>кот<|object_ref_end|><|box_start|>(0,0),(500,500)<|box_end|>",
        "qwen3_vl": json_form % (500, 500),
    }
    seen = [Image.of(PICTURES[0])]
    size = vlm.describe(PICTURES[0]).completion.provenance.images[0]
    said["qwen2_5_vl"] = json_form % (size.resized_width_px / 2, size.resized_height_px / 2)
    model = Rewritten(vlm.model, said[generation], generation=generation)
    found = Ground(phrases=("кот",), language="ru").run(model, seen)
    assert found.boxes == (Box("кот", 0, 0, size.width_px / 2, size.height_px / 2),)
    words = model.asked[0].messages[0].content[-1]
    is_json = generation in ("qwen2_5_vl", "qwen3_vl")
    assert (model.asked[0].response_format is not None) == is_json
    assert ("JSON" in str(words)) == is_json


def test_places_are_in_the_order_of_the_phrases_and_what_is_not_there_is_missing(vlm: VLM) -> None:
    model = Rewritten(
        vlm.model,
        '[{"point_2d":[500,500],"label":"nose"},{"point_2d":[0,0],"label":"x"},{"point_2d":[0,0],"label":"x"}]',
        "[]",
    )
    found = Ground(phrases=("нос", "хвост", "нос"), points=True, language="ru").run(
        model, [Image.of(PICTURES[0])]
    )
    size = found.completion.provenance.images[0]
    x, y = size.width_px / 2, size.height_px / 2
    assert found.points == (Point("нос", x, y), Point("нос", 0, 0))
    assert found.missing == ("хвост",)
    assert found.text == f"нос: {x:.0f}, {y:.0f}\nнос: 0, 0\nхвост: не найдено"
    assert found.flags == found.boxes == ()


def test_a_phrase_is_found_where_it_is_found_alone(vlm: VLM) -> None:
    both = vlm.ground(PICTURES[1], phrases=("cat", "the dog on the left"))
    alone = [vlm.ground(PICTURES[1], phrases=(p,)) for p in ("cat", "the dog on the left")]
    assert both.boxes == alone[0].boxes + alone[1].boxes
    assert {box.label for box in both.boxes} <= {"cat", "the dog on the left"}


@pytest.mark.parametrize(
    ("generation", "key", "answer"),
    [
        ("qwen3_vl", "bbox_2d", '[{"bbox_2d": [0, 10, 1000, 999], "label": "кот"}]'),
        ("qwen3_vl", "bbox_2d", '[{"bbox_2d":[0,10,1000,999],"label":"кот"}]'),
        ("qwen3_vl", "point_2d", '[{"point_2d": [0, 10], "label": "кот"}]'),
        ("qwen2_5_vl", "bbox_2d", '[{"bbox_2d": [0, 10, 4032, 3024], "label": "кот"}]'),
        ("qwen3_vl", "bbox_2d", "[]"),
    ],
)
def test_what_a_generation_writes_has_the_form_that_it_is_held_to(
    generation: str, key: Literal["bbox_2d", "point_2d"], answer: str
) -> None:
    form = places_form(generation, key, {"label": {"enum": ["кот"]}})
    assert form is not None
    assert fits(answer, form)
    if answer != "[]":
        assert not fits(answer.replace("кот", "пёс"), form)
        assert fits(answer.replace("10", "1001", 1), form) == (generation == "qwen2_5_vl")


def fits(answer: str, form: ResponseFormat) -> bool:
    grammar = grammars().compile(form)
    for token in tokenizer().encode_text(answer):
        if not grammar.allowed()[token]:
            return False
        grammar.accept(token)
    return bool(grammar.allowed()[list(grammar.end_ids)].any())


# comparing


def comparison(same: list[str], *rows: dict[str, str], summary: str = "Two cats.") -> str:
    return json.dumps({"summary": summary, "same": same, "different": rows}, ensure_ascii=False)


def test_a_comparison_is_a_summary_and_a_table(vlm: VLM) -> None:
    said = comparison(
        ["kind"],
        {"aspect": "colour", "in_1": "red | blue", "in_2": "a\nb", "in_3": "-"},
    )
    seen = [Image.of(path) for path in PICTURES[:3]]
    found = Compare().run(Rewritten(vlm.model, said), seen)
    assert found.same == ("kind",)
    assert found.differences == (Difference("colour", ("red | blue", "a\nb", "-")),)
    assert found.text == (
        "Two cats.\n\n| | 1 | 2 | 3 |\n|---|---|---|---|\n| colour | red \\| blue | a b | - |"
    )
    assert Compare().run(Rewritten(vlm.model, comparison([])), seen).text == "Two cats."


def test_a_comparison_in_another_language_is_asked_for_again(vlm: VLM) -> None:
    right = comparison(["вид"], summary="Два кота.")
    model = Rewritten(vlm.model, comparison(["kind"]), right)
    found = Compare(language="ru").run(model, [Image.of(path) for path in PICTURES[:2]])
    assert (found.summary, found.flags, len(model.asked)) == ("Два кота.", (), 2)
    mixed = comparison(["kind", "colour"], summary="Два кота.")
    stubborn = Rewritten(vlm.model, mixed, mixed)
    found = Compare(language="ru").run(stubborn, [Image.of(path) for path in PICTURES[:2]])
    assert found.flags == ("language",)


def test_a_comparison_that_was_cut_is_an_error(vlm: VLM) -> None:
    model = Rewritten(vlm.model, comparison(["kind"])[:-9], ends="length")
    with pytest.raises(AnswerFormError):
        Compare().run(model, [Image.of(path) for path in PICTURES[:2]])


def test_a_number_of_pictures_that_cannot_be_compared_is_refused(vlm: VLM) -> None:
    for count in (1, 9):
        with pytest.raises(InvalidParamError, match=f"2 to 8 pictures at a time, not {count}"):
            vlm.compare([PICTURES[0]] * count)


@pytest.mark.parametrize("task", [Ocr(), Ground(phrases=("a",)), Compare()])
def test_a_video_is_refused_where_pictures_are_wanted(vlm: VLM, task: Ocr) -> None:
    with pytest.raises(InvalidParamError, match="film"):
        vlm.run(task, *[FILM] * task.least)


# watching


def events(*found: tuple[str, str, str]) -> str:
    rows = [dict(zip(("start_time", "end_time", "description"), e, strict=True)) for e in found]
    return json.dumps({"events": rows})


def test_events_come_by_their_start_within_the_clip(vlm: VLM) -> None:
    said = events(("00:03", "00:01.5", "b"), ("00:00", "00:59", "a"), ("01:00", "02:00", "c"))
    found = Watch(answer_as="events").run(Rewritten(vlm.model, said), [FILM])
    times_s = found.completion.provenance.videos[0].frame_times_s
    assert times_s[-1] == 4
    assert found.events == (Event(0, 4, "a"), Event(1.5, 3, "b"), Event(4, 4, "c"))
    assert found.text == "0:00–0:04 a\n0:01.5–0:03 b\n0:04–0:04 c"


def test_subtitles_are_srt(vlm: VLM) -> None:
    said = events(("00:00", "00:01.25", "one\n\ntwo"), ("00:04", "00:04", "c"))
    found = Watch(answer_as="srt").run(Rewritten(vlm.model, said), [FILM])
    assert found.text == (
        "1\n00:00:00,000 --> 00:00:01,250\none two\n\n2\n00:00:04,000 --> 00:00:05,000\nc\n"
    )


def test_a_part_of_a_file_has_the_files_own_times(vlm: VLM) -> None:
    film = clips.steady(60, 10)
    seen = [Image(film, "stdin")]  # as it comes through a pipe
    task = Watch(answer_as="events", start_s=2.0, end_s=4.0, frames=3)
    found = task.run(Rewritten(vlm.model, events(("00:00", "00:02.5", "a"))), seen)
    times_s = found.completion.provenance.videos[0].frame_times_s
    assert times_s == pytest.approx((2, 3, 4), abs=0.06)
    assert found.events == (Event(times_s[0], 2.5, "a"),)
    # models without stamps count from the first frame that they are shown
    blind = Rewritten(vlm.model, events(("00:00", "00:00.5", "a")), generation="qwen2_5_vl")
    assert task.run(blind, seen).events == (Event(times_s[0], times_s[0] + 0.5, "a"),)


def test_a_question_is_answered_about_the_part(vlm: VLM) -> None:
    film = Video(source=clips.steady(30, 10), name="clip")
    part = replace(film, start_s=1.0, end_s=2.0, fps=2.0)
    found = vlm.video(film, prompt="What is this?", start_s=1.0, end_s=2.0, fps=2.0)
    assert found.completion.text == vlm.ask(part, question="What is this?").completion.text
    with pytest.raises(InvalidParamError):
        Watch(prompt="What?", answer_as="srt")


def test_a_picture_is_no_video(vlm: VLM) -> None:
    with pytest.raises(VideoDecodeError):
        vlm.video(PICTURES[0])


def test_windows_are_the_last_seconds_of_a_stream(vlm: VLM) -> None:
    frames = [Image(png(colour)) for colour in ("red", "green", "blue", "white")]
    asked = 0

    def camera() -> Iterator[Image]:
        nonlocal asked
        for number in range(11):
            asked += 1
            yield frames[number % 4]

    stream = windows(camera(), 2.0, fps=2.0, every_s=1.5)
    first = next(stream)
    assert asked == 3  # no frame is taken before it is needed
    shown = [first, *stream]
    ends = [3, 6, 9, 11]
    assert [video.source for video in shown] == [
        tuple(frames[n % 4] for n in range(max(0, end - 4), end)) for end in ends
    ]
    assert [video.name for video in shown][-1] == "up to 5.5 s"
    same = Video(source=tuple(frames[n % 4] for n in range(2, 6)), fps=2.0)
    assert vlm.video(shown[1]).text == vlm.video(same).text
    for wrong in ({"fps": 0.0}, {"fps": float("nan")}, {"every_s": 0.1}):
        with pytest.raises(InvalidParamError):
            next(windows(frames, 2.0, **wrong))


def test_options_are_checked() -> None:
    for make in (
        lambda: Ocr(answer_as="pdf"),
        lambda: Ocr(kind="book"),
        lambda: Ground(phrases=()),
        lambda: Ground(phrases=("a", " ")),
        lambda: Compare(kind="twins"),
        lambda: Watch(answer_as="film"),
    ):
        with pytest.raises(InvalidParamError):
            make()
    assert {"ocr", "ground", "compare", "video"} <= set(TASKS)
