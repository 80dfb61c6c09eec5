"""Extraction: what is wanted, what is read from an answer, what is checked, what is refused."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import jsonschema
import pydantic
import pytest

from qvl import VLM, Image, QvlError, Sampling
from qvl.cli.formats import json_line
from qvl.cli.main import main
from qvl.cli.output import Outcome, finish
from qvl.errors import AnswerFormError, CheckError, InvalidParamError
from qvl.tasks.extract import Extract, Extraction, Field
from qvl.tasks.leaves import leaves
from qvl.tasks.prompts import shipped
from qvl.tasks.task import adapter, as_row, from_json, results, run_task
from qvl.tasks.wanted import PROFILES
from qvl.types import Completion, Request, Video
from scripted import Scripted, completion, likely, words_of

PICTURES = sorted((Path(__file__).parents[2] / "examples" / "pictures").glob("*.png"))
SHORT = Sampling(max_new_tokens=300, temperature=0.0)
SEEN = [Image(b"", "a.png")]


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return VLM()


class Line(pydantic.BaseModel):
    name: str
    price: float | None = pydantic.Field(description="of one piece")


class Bill(pydantic.BaseModel):
    shop: str | None
    on: date | None = None
    lines: list[Line] | None = pydantic.Field(max_length=2)


WANTED: dict[str, Any] = {
    "fields": "word, count int, on date?, parts[name, n int]",
    "json": '{"type": "object", "properties": {"word": {"type": "string", "maxLength": 9}}}',
    "mapping": {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]},
    "model": Bill,
}


@pytest.mark.parametrize("number", ["1e999", "-1e999", "Infinity", "NaN"])
def test_a_number_that_json_cannot_say_again_is_no_answer(number: str) -> None:
    model = Scripted(lambda request: f'{{"n": {number}}}')
    found = run_task(model, Extract(schema="n float?"), SEEN)
    assert isinstance(found, AnswerFormError)
    with pytest.raises(ValueError, match="JSON"):
        json_line({"n": float(number)})


@pytest.mark.parametrize("name", WANTED)
def test_an_answer_of_the_embedded_model_fits(vlm: VLM, name: str) -> None:
    task = Extract(schema=WANTED[name], sampling=SHORT)
    found = run_task(vlm.model, task, [Image.of(PICTURES[8])])
    if isinstance(found, AnswerFormError):
        assert "its JSON was whole" in found.message
        return
    assert not isinstance(found, QvlError)
    asked = json.loads(found.completion.text)
    jsonschema.Draft202012Validator(task.wanted().schema).validate(asked)
    assert found.data == asked
    assert all(f.confidence is not None and 0 <= f.confidence <= 1 for f in found.fields)


def test_a_schema_is_checked_once_however_many_pictures_it_is_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A check of a schema takes as long as several of its tokens."""
    checked: list[object] = []
    check = jsonschema.Draft202012Validator.check_schema
    monkeypatch.setattr(
        jsonschema.Draft202012Validator,
        "check_schema",
        lambda schema: (checked.append(schema), check(schema)),
    )
    schema = {"type": "object", "properties": {"checked once": {"type": "integer"}}}
    model = Scripted(lambda _: '{"checked once": 1}')
    for _ in range(3):
        Extract(schema=schema).run(model, SEEN)
    assert checked == [schema]


@pytest.mark.parametrize("profile", PROFILES)
def test_every_field_of_a_profile_is_there_or_null(profile: str) -> None:
    task = Extract(profile=profile, language="ru")
    names = list(task.wanted().schema["properties"])
    found = task.run(Scripted(lambda _: json.dumps(dict.fromkeys(names))), SEEN)
    assert [field.name for field in found.fields] == names
    assert (found.checks, found.flags) == ((), ())


def test_a_profile_is_read_by_the_embedded_model(vlm: VLM) -> None:
    found = vlm.extract(PICTURES[8], profile="passport", language="zh", sampling=SHORT)
    assert list(found.data) == list(Extract(profile="passport").wanted().schema["properties"])


def test_alone_as_among_others(vlm: VLM) -> None:
    task = Extract(schema="word, count int", evidence=True, sampling=SHORT)
    found = list(results(vlm.model, ((task, [Image.of(path)]) for path in PICTURES[8:10])))
    for path, together in zip(PICTURES[8:10], found, strict=True):
        alone = run_task(vlm.model, task, [Image.of(path)])
        if isinstance(alone, QvlError):
            assert str(alone) == str(together)
        else:
            assert not isinstance(together, QvlError)
            assert (alone.text, alone.boxes) == (together.text, together.boxes)
            for one, other in zip(alone.fields, together.fields, strict=True):
                # logits differ in their last digits with the shape of a step
                assert one.confidence == pytest.approx(other.confidence, rel=1e-3)


def test_in_bf16_the_probabilities_are_the_same_to_the_last_digit_in_any_batch() -> None:
    with closing(VLM(dtype="bf16")) as opened:
        schema = '{"type": "object", "properties": {"word": {"type": "string", "maxLength": 9}}}'
        task = Extract(schema=schema, sampling=SHORT)
        work = [(task, [Image.of(path)]) for path in PICTURES]
        together = [told(found) for found in results(opened.model, work)]
        assert together == [told(run_task(opened.model, *one)) for one in work]


def told(found: Extraction | QvlError) -> object:
    return str(found) if isinstance(found, QvlError) else found.completion.logprobs


@pytest.mark.parametrize("as_file", [True, False])
def test_the_command_is_the_call(
    vlm: VLM,
    as_file: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    long = {"word": {"type": "string", "maxLength": 12, "description": "as it is printed " * 20}}
    schema = json.dumps({"type": "object", "properties": long, "required": ["word"]})
    (tmp_path / "wanted.json").write_text(schema, "utf-8")
    given = "wanted.json" if as_file else schema
    args = ["qvl", "extract", str(PICTURES[8]), "--schema", given, "--json", "--seed", "4"]
    monkeypatch.setattr(sys, "argv", args)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    try:
        code = main()
    except SystemExit as stop:
        code = stop.code
    told = json.loads(capsys.readouterr().out)
    task = Extract(schema=schema, sampling=Sampling(seed=4))
    here = run_task(vlm.model, task, [Image.of(str(PICTURES[8]))])
    if isinstance(here, QvlError):
        assert (code, told["error"]["message"]) == (here.exit_code, here.message)
    else:
        row = json.loads(json.dumps(as_row(str(PICTURES[8]), here)))
        for name in ("text", "data", "fields", "checks", "flags"):
            assert told[name] == row[name]


ANSWER = '{"shop": "Я", "lines": [{"name": "чай", "sum": 40.00}], "total": 41, "paid": true, "tel": null}'


def test_values_have_names_probabilities_and_places() -> None:
    """Of each value the probabilities of its own tokens are multiplied, and of none beside them."""
    tokens = [
        ('{"shop": ', 0.5), ('"', 0.9), ("Я", 0.8), ('", ', 0.7), ('"lines": [{"name": "', 0.5),
        ("чай", 0.6), ('", "sum": ', 0.5), ("40", 0.4), (".00", 0.3), ('}], "total": ', 0.5),
        ("41", 0.2), (', "paid": ', 0.5), ("true", 0.95), (', "tel": ', 0.5), ("null", 0.85), ("}", 0.5),
    ]  # fmt: skip
    assert "".join(text for text, _ in tokens) == ANSWER

    def tell(request: Request) -> str | Completion:
        words = words_of(request)
        if words.startswith("Read"):
            return completion(ANSWER, request, logprobs=likely(*tokens))
        if "40.00" in words:
            return '[{"bbox_2d":[100,500,200,1000],"label":"40.00"}]'
        return "nowhere"

    model = Scripted(tell)
    fields = "shop, lines[name, sum float], total float, paid bool, tel"
    found = Extract(schema=fields, evidence=True).run(model, SEEN)
    expected = [
        ("shop", "Я", 0.9 * 0.8 * 0.7),
        ("lines[0].name", "чай", 0.5 * 0.6 * 0.5),
        ("lines[0].sum", 40.0, 0.4 * 0.3),
        ("total", 41, 0.2),
        ("paid", True, 0.95),
        ("tel", None, 0.85),
    ]
    assert [(f.name, f.value) for f in found.fields] == [(n, v) for n, v, _ in expected]
    for field, (_, _, probability) in zip(found.fields, expected, strict=True):
        assert field.confidence == pytest.approx(probability, abs=1e-4)
    asked = [words_of(request) for request in model.asked[1:]]
    assert len(asked) == 4  # neither what is null nor what is only true
    (place,) = found.boxes
    assert (place.label, place.x1, place.y1, place.x2, place.y2) == (
        "lines[0].sum",
        40,
        100,
        80,
        200,
    )
    assert [f.name for f in found.fields if f.box] == ["lines[0].sum"]
    assert found.text == "shop: Я\nlines:\n- name: чай, sum: 40.0\ntotal: 41\npaid: true\ntel: -"


def test_without_probabilities_there_is_no_confidence() -> None:
    found = Extract(schema="a").run(Scripted(lambda _: '{"a": "b"}'), SEEN)
    assert found.fields == (Field("a", "b", None),)


@pytest.mark.parametrize(
    ("answer", "reason", "word"),
    [
        ('{"a": "b', "length", "cut"),
        ('{"a": "b', "loop", "repeated"),
        ("no JSON", "stop", "no JSON object"),
        ('["a"]', "stop", "no JSON object"),
        ('{"a":' + "[" * 940 + "]" * 940 + "}", "stop", "deep"),
    ],
)
def test_what_is_not_whole_is_an_error(answer: str, reason: Any, word: str) -> None:
    model = Scripted(lambda request: completion(answer, request, finish_reason=reason))
    with pytest.raises(AnswerFormError, match=word):
        Extract(schema="a").run(model, SEEN)


def receipt(**changed: Any) -> dict[str, Any]:
    line = {"name": "чай", "count": 2, "price": 20.5, "sum": 41}
    names = Extract(profile="receipt").wanted().schema["properties"]
    known = {"shop": "Чайная", "inn": "7707083893", "date": "2024-05-04", "lines": [line]}
    return {**dict.fromkeys(names), **known, "total": 41, **changed}


def test_a_failed_check_is_a_flag_and_an_error_if_strict() -> None:
    good = Scripted(lambda _: json.dumps(receipt()))
    wrong = Scripted(lambda _: json.dumps(receipt(inn="7707083894", total=44)))
    found = Extract(profile="receipt").run(good, SEEN)
    assert found.flags == ()
    assert [(c.field, c.rule) for c in found.checks if c.ok] == [
        ("inn", "inn"),
        ("date", "date"),
        ("lines[0].sum", "product"),
        ("total", "sum"),
    ]
    assert Extract(profile="receipt", strict=True).run(good, SEEN) == found
    flagged = Extract(profile="receipt").run(wrong, SEEN)
    assert flagged.flags == ("check:inn", "check:total")
    with pytest.raises(CheckError, match=r"inn: .*; total: it is 44, and should be 41") as failed:
        Extract(profile="receipt", strict=True).run(wrong, SEEN)
    assert failed.value.exit_code == 7


def test_failed_checks_end_the_command_with_7_and_other_errors_with_3() -> None:
    found = Extract(profile="receipt").run(Scripted(lambda _: json.dumps(receipt())), SEEN)
    whole, wrong, broken = (
        Outcome("whole", [found]),
        Outcome("wrong", CheckError("wrong")),
        Outcome("broken", AnswerFormError("broken")),
    )
    severe = Outcome("severe", [replace(found, flags=("fail_on",))])
    finish([whole, whole])
    for outcomes, code, named in [
        ([wrong], 7, "wrong"),
        ([whole, wrong], 7, "wrong"),
        ([wrong, broken], 3, "broken"),
        ([whole, severe], 7, "severe"),
        ([severe, broken], 3, "broken"),
    ]:
        with pytest.raises(QvlError, match=named) as ended:
            finish(outcomes)
        assert ended.value.exit_code == code


def test_the_prompt_names_the_fields() -> None:
    model = Scripted(lambda _: '{"shop": "a", "on": null, "lines": null}')
    for language, words in (
        (
            "en",
            "Read these fields in the picture: {}. Answer in JSON, with null for what is not there.",
        ),
        ("ru", "Прочитай на картинке поля: {}. Ответь в JSON; чего нет, для того null."),
        ("zh", "读出图中的这些字段：{}。用JSON回答，没有的填null。"),
    ):
        Extract(schema=Bill, language=language).run(model, SEEN)
        named = "shop, on, lines [name, price (of one piece)]"
        assert words_of(model.asked[-1]) == words.format(named)


@pytest.mark.parametrize("task", ["extract", "classify", "moderate"])
def test_every_wording_is_there_in_the_three_languages(task: str) -> None:
    for wordings in shipped(task).values():
        assert set(wordings) == {"en", "ru", "zh"}
        assert len(set(wordings.values())) == 3


def test_a_schema_that_leads_in_circles_or_is_huge_is_named_at_once() -> None:
    node = {"type": "object", "properties": {f"f{i}": {"$ref": "#/$defs/n"} for i in range(300)}}
    loop = {"$defs": {"n": node, "m": {"$ref": "#/$defs/m"}}, **node}
    loop["properties"] = {**node["properties"], "m": {"$ref": "#/$defs/m"}}
    model = Scripted(lambda _: "{}")
    Extract(schema=loop).run(model, SEEN)
    assert len(words_of(model.asked[0])) < 30_000


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({}, "what to extract"),
        ({"schema": "a", "profile": "receipt"}, "what to extract"),
        ({"profile": "reciept"}, "reciept"),
        ({"schema": "{not json"}, "not JSON"),
        ({"schema": '{"type": "array"}'}, "object"),
        ({"schema": {"type": "objekt"}}, "no JSON schema"),
        ({"schema": {"type": "object", "properties": 5}}, "no JSON schema"),
        ({"schema": "a flaot"}, "flaot"),
        ({"schema": 5}, "schema"),
        ({"shcema": "a"}, "shcema"),
    ],
)
def test_what_cannot_be_wanted_is_refused(options: Mapping[str, Any], word: str) -> None:
    with pytest.raises(InvalidParamError, match=word):
        from_json(Extract, options)


def test_a_video_has_no_boxes() -> None:
    with pytest.raises(InvalidParamError, match="video"):
        Extract(schema="a", evidence=True).run(Scripted(lambda _: "{}"), [Video(source=b"")])


def test_the_options_have_a_schema() -> None:
    """A pydantic model comes from Python alone, so it is not in what other doors are told."""
    told = adapter(Extract).json_schema()
    assert {kind.get("type") for kind in told["properties"]["schema"]["anyOf"]} == {
        "string",
        "object",
        "null",
    }


@pytest.mark.parametrize(
    "value",
    [{}, {"a": []}, {"a": {"b": [1, [2, {"c": None}]]}, "д": 'x"\\\u2028🙂'}, {"": -1.5e3}],
)
@pytest.mark.parametrize("spaced", [(",", ":"), (" , ", " : ")])
def test_leaves_stand_where_they_say(value: dict[str, Any], spaced: tuple[str, str]) -> None:
    text = f"\n {json.dumps(value, ensure_ascii=False, separators=spaced)} "
    found = leaves(text)
    assert [json.loads(text[leaf.start : leaf.end]) for leaf in found] == [v.value for v in found]
    flat: list[Any] = []
    waiting: list[Any] = [value]
    while waiting:
        one = waiting.pop(0)
        inner = list(one.values()) if isinstance(one, dict) else one
        if isinstance(one, dict | list):
            waiting = [*inner, *waiting]
        else:
            flat.append(one)
    assert [leaf.value for leaf in found] == flat
    assert len({leaf.name for leaf in found}) == len(found)


def test_confidence_is_a_probability_of_the_whole_value(vlm: VLM) -> None:
    """Against the same tokens put together by hand."""
    found = vlm.extract(PICTURES[8], schema="count int", sampling=SHORT)
    (field,) = found.fields
    said, total = "", 0.0
    for token in found.completion.logprobs:
        said += token.token.decode()
        if token.token.strip().isdigit() or token.token in (b"-", b"null"):
            total += token.logprob
    assert field.confidence == pytest.approx(math.exp(total), abs=1e-4)
    assert said == found.completion.text
