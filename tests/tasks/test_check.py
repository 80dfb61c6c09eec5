"""Self-check: what is stated, how sure the model is of it, what contradicts the given facts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from qvl import VLM
from qvl.errors import InvalidParamError
from qvl.tasks.check import chance_of_yes, contradicted, disputed, statements, unseen
from qvl.tasks.describe import Describe
from qvl.types import Box, Completion, Image, Request, TokenLogprob, Video
from scripted import HEIGHT_PX, WIDTH_PX, Scripted, completion, text_of

PICTURE = Image(b"", "cup.png")
EXAMPLE = sorted((Path(__file__).parents[2] / "examples" / "pictures").glob("*.png"))[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("A cup. A plate!", ("A cup.", "A plate!")),
        ("It is 3.5 cm wide, e.g. a ring.", ("It is 3.5 cm wide, e.g. a ring.",)),
        (
            "The flag is red, white, and blue, and it hangs on a pole.",
            ("The flag is red, white, and blue", "it hangs on a pole."),
        ),
        ("- **Size:** 10 cm\n- Colour: red\n\n3", ("Size: 10 cm", "Colour: red")),
        ("1. One thing\n2. Another", ("One thing", "Another")),
        ("Same. Same.", ("Same.",)),
        (
            "Кружка объёмом 0,5 л стоит на столе, а ложка лежит рядом с ней. Вес 300 г!",
            ("Кружка объёмом 0,5 л стоит на столе", "ложка лежит рядом с ней.", "Вес 300 г!"),
        ),
        ("На ней А. С. Пушкин; высота 9 см.", ("На ней А. С. Пушкин;", "высота 9 см.")),
        ("См. рис. 3 и т.д. на этикетке.", ("См. рис. 3 и т.д. на этикетке.",)),
        (
            "桌上放着一个白色的杯子，而旁边有一把勺子。颜色：白色！",
            ("桌上放着一个白色的杯子", "而旁边有一把勺子。", "颜色：白色！"),
        ),
        ("红色，蓝色和黄色的旗。", ("红色，蓝色和黄色的旗。",)),
    ],
)
def test_a_text_is_split_into_what_it_states(text: str, expected: tuple[str, ...]) -> None:
    assert statements(text) == expected


def tokens(*said: tuple[str | bytes, float, Mapping[str | bytes, float]]) -> Completion:
    """An answer of tokens with their probabilities, and those of the likeliest others."""

    def spelt(token: str | bytes) -> bytes:
        return token.encode() if isinstance(token, str) else token

    logprobs = tuple(
        TokenLogprob(
            spelt(token), math.log(p), tuple((spelt(t), math.log(q)) for t, q in best.items())
        )
        for token, p, best in said
    )
    return completion(b"".join(t.token for t in logprobs).decode(), logprobs=logprobs)


@pytest.mark.parametrize(
    ("language", "answer", "chance"),
    [
        ("en", tokens(("yes", 0.6, {"yes": 0.6, "no": 0.2, "Yes": 0.1})), 0.75),
        ("en", tokens(("no", 0.6, {"y": 0.1, "no": 0.6, "n": 0.1})), 0.125),
        ("ru", tokens(("д", 0.3, {"н": 0.1, "нет": 0.2}), ("а", 1.0, {})), 0.5),
        # the first byte of both words decides nothing
        ("ru", tokens(("д", 0.3, {b"\xd0": 0.4, "н": 0.1}), ("а", 1.0, {})), 0.75),
        ("ru", tokens((b"\xd0", 0.9, {}), (b"\xbd", 0.6, {b"\xb4": 0.2}), ("ет", 1.0, {})), 0.25),
        ("zh", tokens((b"\xe6", 0.2, {b"\xe5": 0.6}), (b"\x98\xaf", 1.0, {})), 0.25),
        ("de", tokens(("no", 0.9, {})), 0.0),  # languages without words of their own have English
        ("en", completion("yes"), 1.0),
        ("en", completion("no"), 0.0),
        ("en", completion(""), 0.0),
    ],
)
def test_the_chance_of_yes_is_read_where_the_tokens_part(
    language: str, answer: Completion, chance: float
) -> None:
    assert chance_of_yes(answer, language) == pytest.approx(chance)


def test_each_statement_is_asked_about_and_what_is_not_seen_is_told() -> None:
    model = Scripted(lambda request: "no" if "spoon" in text_of(request.messages[0]) else "yes")
    text = "A white mug stands on a table. A spoon lies beside it."
    found, told = unseen(model, [PICTURE], text, "en")
    assert found == ("A spoon lies beside it.",)
    assert len(told) == 2
    assert model.words == [
        f'Statement: "{each}" Can this be seen in the picture? Answer yes or no.'
        for each in statements(text)
    ]
    for request in model.asked:
        assert request.messages[0].content[0] == PICTURE
        assert request.response_format is not None
        assert json.loads(request.response_format.value) == ["yes", "no"]
        assert request.sampling.logprobs > 1


def test_a_video_is_asked_about_as_one_and_in_the_language() -> None:
    model = Scripted("да")
    assert unseen(model, [Video(source=b"")], "Кот спит.", "ru")[0] == ()
    assert model.words == ["Утверждение: «Кот спит.» Видно ли это на видео? Ответь: да или нет."]


FACTS = {"артикул": "AB-4711", "объём": "0,5 л", "material": "cotton", "容量": "350毫升"}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Артикул AB-4711, объёмом 0.5 л, хлопок.", ()),
        ("Кружка без чисел.", ()),
        ("Артикул: AB-4712.", ("артикул",)),
        ("Артикула AB-4711 нет, объёмом 0,7 л", ("объём",)),
        ("Объём 500 мл.", ()),  # another unit is not compared
        ("Объём указан. Высота 9 л", ()),  # beyond a full stop it is about something else
        ("容量为500毫升。", ("容量",)),
        ("容量350毫升。", ()),
        ("Material: polyester.", ()),  # words are not compared, but asked about
    ],
)
def test_numbers_and_codes_beside_a_facts_name_are_compared(
    text: str, names: tuple[str, ...]
) -> None:
    assert contradicted(text, FACTS) == names


def test_other_facts_are_asked_about_without_the_picture() -> None:
    model = Scripted("yes", "no")
    facts = {"article": "4711", "material": "cotton", "origin": "Italy", "colour": "red"}
    found, _ = disputed(model, "Red polyester scarf, article 4712.", facts, "en")
    assert found == ("article", "material")
    assert model.words == [
        f'Text: "Red polyester scarf, article 4712." Fact: {fact}. '
        "Does the text contradict this fact? Answer yes or no."
        for fact in ("material: cotton", "origin: Italy")
    ]


def answers(request: Request) -> str:
    words = text_of(request.messages[0])
    if "Statement" in words:
        return "no" if "glass" in words else "yes"
    if "Find each thing" in words:
        return '[{"bbox_2d":[0,0,500,500],"label":"mug"}]'
    return "A mug of 300 ml. It is made of glass."


def test_a_description_is_checked_and_grounded() -> None:
    model = Scripted(answers)
    task = Describe(check=True, grounded=True, facts={"mug of": "350 ml"})
    found = task.run(model, [PICTURE])
    assert found.unsupported == ("It is made of glass.",)
    assert found.contradicted == ("mug of",)
    assert found.flags == ("unsupported", "contradicts")
    assert found.boxes == (Box("mug", 0, 0, WIDTH_PX / 2, HEIGHT_PX / 2),)
    assert len(found.completions) == len(model.asked) == 4
    located = model.asked[1]
    assert text_of(located.messages[0]).startswith('Description: "A mug of 300 ml. It is made')
    assert located.response_format is not None


def test_a_generation_that_writes_tags_is_asked_for_them() -> None:
    tags = "<|object_ref_start|>mug<|object_ref_end|><|box_start|>(0,0),(500,500)<|box_end|>"
    model = Scripted("A white mug.", tags, generation="qwen2_vl")
    found = Describe(grounded=True).run(model, [PICTURE])
    assert found.boxes == (Box("mug", 0, 0, WIDTH_PX / 2, HEIGHT_PX / 2),)
    assert model.asked[1].response_format is None
    assert model.words[1].endswith("Find each thing that it names. Answer with their boxes.")


def test_unchecked_costs_no_question() -> None:
    model = Scripted(answers)
    found = Describe(facts={"mug of": "350 ml"}).run(model, [PICTURE])
    assert (found.flags, found.unsupported, len(model.asked)) == (("contradicts",), (), 1)


def test_all_of_a_listing_is_checked() -> None:
    listing = {"title": "Glass mug", "description": "A mug.", "keywords": ["a"], "alt_text": "Mug"}
    model = Scripted(json.dumps(listing), "no", "yes", "yes")
    found = Describe(check=True, listing=True).run(model, [PICTURE])
    assert found.unsupported == ("Glass mug",)


def test_two_ways_of_finding_boxes_are_refused() -> None:
    with pytest.raises(InvalidParamError, match="grounded"):
        Describe(boxes=True, grounded=True)


@pytest.mark.parametrize("language", ["ru", "en", "zh"])
def test_the_embedded_model_answers_all_of_it_in_form(language: str) -> None:
    vlm = VLM()
    plain = vlm.describe(EXAMPLE, language=language)
    found = vlm.describe(EXAMPLE, language=language, check=True, grounded=True)
    assert found.text == plain.text
    assert set(found.unsupported) <= set(statements(found.text))
    yes_no = found.completions[2:]
    assert len(yes_no) == len(statements(found.text)) > 0
    for answer in yes_no:
        assert (chance_of_yes(answer, language) >= 0.5) == (answer.text in ("yes", "да", "是"))
