"""The functions of a file: their schema is of their hints, and a call fits it or is refused."""

from __future__ import annotations

import re
from pathlib import Path

import jsonschema
import pytest

from qvl.chat.python_tools import functions_in
from qvl.errors import UsageError

GUIDE = Path(__file__).parents[2] / "docs" / "chat.md"
FILE = '''
from __future__ import annotations
from dataclasses import dataclass
from math import sqrt
from typing import Annotated, Literal
from pydantic import Field

@dataclass
class Place:
    city: str
    floor: int = 0

def parcel(number: Annotated[str, Field(description="as printed")], kind: Literal["box", "tube"] = "box") -> dict:
    """Where a parcel is.

    By its number.
    """
    return {"number": number, "kind": kind, "steps": [1, None]}

def lift(place: Place) -> str:
    """Call the lift."""
    return f"{place.city}:{place.floor + 1}"

def fails(a: int) -> int:
    """Divide by nothing."""
    return a // 0

def _helper(x):
    return x
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "tools.py").write_text(FILE)
    return tmp_path / "tools.py"


def test_functions_become_tools_that_run(file: Path) -> None:
    parcel, lift, fails = functions_in(file)
    assert (parcel.tool.name, parcel.tool.description) == (
        "parcel",
        "Where a parcel is.\n\nBy its number.",
    )
    assert parcel.tool.parameters["properties"]["number"]["description"] == "as printed"
    jsonschema.Draft202012Validator.check_schema(dict(lift.tool.parameters))
    jsonschema.validate({"place": {"city": "Riga"}}, dict(lift.tool.parameters))
    assert parcel.run({"number": "7"}) == '{"number":"7","kind":"box","steps":[1,null]}'
    assert lift.run({"place": {"city": "Riga", "floor": 3}}) == "Riga:4"
    with pytest.raises(ZeroDivisionError):
        fails.run({"a": 1})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [({}, "number"), ({"number": "7", "kind": "bag"}, "kind"), ({"number": "7", "x": 1}, "x")],
)
def test_arguments_that_do_not_fit_are_refused(
    file: Path, arguments: dict[str, object], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        functions_in(file)[0].run(arguments)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no function"),
        ("import math\nfrom os.path import join", "no function"),
        ("def f(a: int): return a", "docstring"),
        ("def f(a):\n 'Do.'", "'a' of 'f'"),
        ("def f(*a: int):\n 'Do.'", "'a' of 'f'"),
        ("async def f():\n 'Do.'", "async"),
        ("def f(a: 'Nowhere'):\n 'Do.'", "'f'"),
        ("def f(a: object()):\n 'Do.'", "'f'"),
        ("1/0", "ZeroDivisionError"),
        ("open('nowhere.txt')", "cannot be run: FileNotFoundError"),
        ("def", "SyntaxError"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "tools.py").write_text(text)
    with pytest.raises(UsageError, match=says):
        functions_in(tmp_path / "tools.py")


@pytest.mark.parametrize("name", ["gone.py", "tools.txt"])
def test_no_file_no_tools(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=name):
        functions_in(tmp_path / name)


def test_the_file_of_the_guide_works(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), flags=re.S)
    (tmp_path / "shop.py").write_text(code)
    (stock,) = functions_in(tmp_path / "shop.py")
    assert stock.run({"article": "A-17"}) == "44"
