"""B033: an id chooses no path."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvl.batch.names import inside, safe_name
from qvl.errors import StorageError

HOSTILE = [
    "../../x", "..", ".", "", "/", "/etc/passwd", "a/b", "a\\b", "C:\\x", "CON", "con.txt", "NUL", "COM1",
    "LPT1.jpg", "x" * 300, "ж" * 300, "杯" * 300, "a\0b", "a\nb", ".hidden", "a.", "a ", " a", "-rf", "~root",
    "a:b", "a*?b", "\u202egpj.exe", "\ud800", "🎉", "a\u0301", "\u00e1", "%2e%2e%2f", "aux", "$(id)", "`id`",
]  # fmt: skip


@pytest.mark.parametrize("item", HOSTILE)
def test_a_name_is_one_plain_file(item: str, tmp_path: Path) -> None:
    name = safe_name(item) + ".json"
    path = inside(tmp_path / "out", name)
    path.parent.mkdir()
    path.write_bytes(b"x")
    assert path.resolve().parent == (tmp_path / "out").resolve()
    assert len(name.encode()) < 160
    assert all(sign.isalnum() or sign in "_-" for sign in safe_name(item))
    assert not name.startswith(("-", "_", "."))
    assert name.split(".")[0].upper() not in ("CON", "AUX", "NUL", "COM1", "LPT1")


def test_no_two_names_are_the_same() -> None:
    names = [
        safe_name(item).casefold() for item in [*HOSTILE, *map(str.upper, HOSTILE), "a_b", "a b"]
    ]
    assert len(set(names)) == len({*HOSTILE, *map(str.upper, HOSTILE), "a_b", "a b"})


@given(st.text())
def test_the_same_id_has_the_same_name(item: str) -> None:
    assert safe_name(item) == safe_name(item)
    assert "/" not in safe_name(item)


def test_a_readable_id_stays_readable() -> None:
    assert safe_name("photos/кружка 1.jpg").startswith("photos_кружка_1_jpg-")


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".", ""])
def test_a_name_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="would not lie in"):
        inside(tmp_path, name)
