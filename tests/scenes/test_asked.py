"""What a job asks is what the product asks, also after other questions; answers are read by the task."""

import json

import pytest
from PIL import Image

from qvl.errors import AnswerFormError, InvalidParamError
from qvl.scenes.asked import answered, request_of, seen_of, value
from qvl.scenes.scene import Job, Scene
from qvl.tasks.classify import Classification
from qvl.tasks.compare import schema
from qvl.tasks.prompts import wording
from qvl.types import Video

PICTURE = Image.new("RGB", (128, 96), "white")


def scene(*, pictures: int = 1, times_s: tuple[float, ...] = ()) -> Scene:
    return Scene("test", (PICTURE,) * pictures, ((),) * pictures, (), times_s)


def job(task: str, answer: str = "", *before: str, **options: object) -> Job:
    return Job(task, options, answer, None, "test", before=before)


def words(request) -> str:
    return request.messages[-1].content[-1].text


def test_the_prompt_is_the_products_own():
    asked = request_of(job("describe", style="menu", language="ru"), scene())
    assert words(asked) == wording("describe", "menu", "ru")
    assert asked.response_format is None


def test_the_form_of_an_answer_comes_with_the_request():
    asked = request_of(job("compare", language="en"), scene(pictures=2))
    assert asked.response_format is not None
    assert json.loads(asked.response_format.value) == schema(2)


def test_a_question_of_classes_is_asked_with_its_choices():
    asked = request_of(job("classify", labels=["cup", "plate"], language="en"), scene())
    assert asked.response_format is not None
    assert set(json.loads(asked.response_format.value)) == {"cup", "plate"}


def test_later_questions_are_reached_through_the_answers_before_them():
    rule = "weapons"
    options = {"language": "en", "boxes": True}
    reason = request_of(job("moderate", "", rule, **options), scene())
    assert words(reason).startswith("Say in one sentence")
    assert "weapons" in words(reason)
    located = request_of(job("moderate", "", rule, "There is a bomb.", **options), scene())
    assert words(located).startswith("Find what breaks the rule")


def test_more_answers_than_the_task_has_questions_is_an_error():
    with pytest.raises(ValueError, match="asks no more after 1 answers"):
        request_of(job("describe", "", "A cup.", language="en"), scene())


def test_options_that_the_task_does_not_have_are_refused():
    with pytest.raises(InvalidParamError):
        request_of(job("describe", stile="menu"), scene())


def test_frames_are_a_video_at_their_rate():
    (clip,) = seen_of(scene(pictures=4, times_s=(0.0, 0.5, 1.0, 1.5)))
    assert isinstance(clip, Video)
    assert clip.fps == 2.0
    assert isinstance(clip.source, tuple)
    assert len(clip.source) == 4


@pytest.mark.parametrize("right", ["cup", "cupboard", "plate"])
def test_the_class_that_is_said_is_the_likeliest(right):
    asked = job("classify", right, labels=["cup", "cupboard", "plate", "cupcake"], language="en")
    result = answered(asked, scene(), right)
    assert value(asked, result) == [right]
    assert isinstance(result, Classification)
    assert result.probabilities[right] > 0.999


@pytest.mark.parametrize(("said", "labels"), [("да", ["кот"]), ("нет", [])])
def test_a_class_of_several_fits_or_does_not(said, labels):
    asked = job("classify", said, labels=["кот"], multi=True, language="ru")
    assert value(asked, answered(asked, scene(), said)) == labels


def test_a_rule_and_none():
    broken = job("moderate", "weapons", language="en")
    assert value(broken, answered(broken, scene(), "weapons")) == "weapons"
    assert value(broken, answered(broken, scene(), "none")) is None


def test_boxes_come_back_in_pixels():
    asked = job("ground", phrases=["cup"], language="en")
    text = '[{"bbox_2d":[0,250,500,1000],"label":"cup"}]'
    assert value(asked, answered(asked, scene(), text)) == [[0.0, 24.0, 64.0, 96.0]]


def test_an_answer_in_another_language_is_flagged():
    asked = job("describe", language="ru")
    assert "language" in answered(asked, scene(), "The picture shows a cup on a table.").flags


def test_an_answer_of_the_wrong_form_is_an_error():
    with pytest.raises(AnswerFormError):
        answered(job("compare", language="en"), scene(pictures=2), "they are the same")
