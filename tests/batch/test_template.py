"""What stands in a template's places, and what is found wrong with them before a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvl.batch.inputs import items
from qvl.batch.row import Refused, Wanted
from qvl.batch.template import filled, names_in
from qvl.errors import InvalidParamError
from qvl.runs.record import Item, Source


def item(columns: dict[str, str] | None = None, where: str = "/shop/cups/Cup 7.jpg") -> Item:
    return Item(id="1", row="1", sources=(Source(where),), columns=columns or {})


def test_columns_and_the_files_name_are_put_in() -> None:
    text = "{title} ({sku}) of {file}, {stem} in { folder } {{as is}}"
    told = filled(text, item({"title": "Cup", "sku": "A-1"}))
    assert told == "Cup (A-1) of Cup 7.jpg, Cup 7 in cups {as is}"


def test_texts_in_lists_and_mappings_are_templates_and_nothing_else_is() -> None:
    options = {"facts": ["{sku}"], "deep": {"a": ("{sku}", 3)}, "n": 1, "on": True, "no": None}
    told = filled(options, item({"sku": "7"}))
    assert told == {"facts": ["7"], "deep": {"a": ("7", 3)}, "n": 1, "on": True, "no": None}
    assert names_in(options) == ("sku",)


@pytest.mark.parametrize(
    ("where", "part", "told"),
    [
        ("https://a.example/x/pic.png?size=2", "", "pic.png pic x"),
        ("/data/pack.zip", "member=red/1.jpg", "1.jpg 1 red"),
        ("s3://shop/cups/1.jpg", "", "1.jpg 1 cups"),
    ],
)
def test_a_files_name_is_that_of_the_picture(where: str, part: str, told: str) -> None:
    one = Item(id="1", row="1", sources=(Source(where, part),))
    assert filled("{file} {stem} {folder}", one) == told


@given(st.text(), st.text())
def test_a_value_is_never_a_template(value: str, name: str) -> None:
    assert (
        filled("<{x}>", item({"x": value + "{title}{{" + name})) == f"<{value}{{title}}{{{{{name}>"
    )


@given(st.text())
def test_any_text_can_be_escaped(text: str) -> None:
    escaped = text.replace("{", "{{").replace("}", "}}")
    assert names_in(escaped) == ()
    assert filled(escaped, item()) == text


@pytest.mark.parametrize("text", ["{", "}", "a {title", "{}", "{ }", "{a\nb}", "{a{b}}"])
def test_a_brace_that_is_no_name_is_an_error(text: str) -> None:
    with pytest.raises(InvalidParamError, match="brace"):
        names_in(text)


def test_an_unknown_name_and_an_empty_cell_are_found_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("id,image,title\n1,a.png,Cup\n2,b.png,\n")
    found = list(items(["t.csv"], Wanted(options={"prompt": "Describe {title}"})))
    assert isinstance(found[0], Item)
    assert isinstance(found[1], Refused)
    assert found[1].error.message.startswith("'t.csv', row 3 has nothing in the column 'title'")
    (unknown,) = items(["t.csv"], Wanted(options={"prompt": "Describe {titel}"}))
    assert isinstance(unknown, Refused)
    assert unknown.error.message == "'t.csv' has no column 'titel', which {titel} stands for"
    assert unknown.error.hint == "did you mean 'title'?"
    (tmp_path / "t.jsonl").write_text('{"image": "a.png", "title": "Cup"}\n{"image": "b.png"}\n')
    one, other = items(["t.jsonl"], Wanted(options={"prompt": "Describe {title}"}))
    assert isinstance(one, Item)
    assert isinstance(other, Refused)
    assert other.error.message.startswith("'t.jsonl', row 2 has no column 'title'")


def test_a_file_without_columns_ends_a_run_that_wants_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidParamError, match=r"'a\.png' has no column 'title'"):
        next(items(["a.png"], Wanted(options={"prompt": "{title} {stem}"})))


def test_a_rows_own_prompt_is_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("id,image,prompt\n1,a.png,What is {this}?\n")
    (one,) = items(["t.csv"])
    assert isinstance(one, Item)
    assert one.options == {"prompt": "What is {this}?"}
