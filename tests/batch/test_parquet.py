"""Parquet files as items; damaged ones end a process that is not ours."""

from __future__ import annotations

import datetime
import random
from decimal import Decimal
from pathlib import Path

import pytest

from qvl.batch.inputs import items
from qvl.batch.row import Refused, Wanted
from qvl.errors import QvlError, TableError
from qvl.runs.record import Item

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error() -> QvlError:
    (bad,) = items(["t.parquet"])
    assert isinstance(bad, Refused)
    return bad.error


def test_values_are_text_and_lists_several_pictures(here: Path) -> None:
    table = pa.table({
        "id": [1, 2],
        "images": [["a.png", "b.png"], ["c.png"]],
        "price": [Decimal("1.50"), None],
        "day": [datetime.date(2026, 1, 31), None],
        "kind": pa.array(["cup", "mug"]).dictionary_encode(),
        "weight": [0.5, float("nan")],
        "deep": [{"a": 1}, {"a": 2}],
    })  # fmt: skip
    pq.write_table(table, "t.parquet", row_group_size=1)
    told: list[str] = []
    first, second = items(["t.parquet"], Wanted(), told.append)
    assert isinstance(first, Item)
    assert isinstance(second, Item)
    assert first.columns == {
        "id": "1", "images": "a.png; b.png", "price": "1.50", "day": "2026-01-31", "kind": "cup",
        "weight": "0.5",
    }  # fmt: skip
    assert len(first.sources) == 2
    assert (second.columns["price"], second.columns["weight"]) == ("", "")
    assert told[0] == (
        "'t.parquet': columns that are no text or numbers are left out: deep (struct<a: int64>)"
    )


def test_b029_pictures_of_a_type_that_is_none_name_the_column(here: Path) -> None:
    pq.write_table(pa.table({"image": [{"bytes": b"x"}], "title": ["x"]}), "t.parquet")
    told: list[str] = []
    (bad,) = items(["t.parquet"], Wanted(), told.append)
    assert isinstance(bad, Refused)
    assert "image (struct" in told[0]
    assert bad.error.message == "'t.parquet' has no column of pictures; it has title"


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" * 20, b"id,image\n1,a.png\n"])
def test_b029_what_is_not_parquet_is_told(here: Path, data: bytes) -> None:
    (here / "t.parquet").write_bytes(data)
    assert isinstance(error(), TableError)
    assert "or is not Parquet" in error().message


def test_b029_a_footer_that_is_cut_or_lies_is_an_error(here: Path) -> None:
    pq.write_table(pa.table({"image": [f"{n}.png" for n in range(50)]}), "t.parquet")
    whole = (here / "t.parquet").read_bytes()
    chance = random.Random(3)
    for _ in range(6):
        damaged = bytearray(whole)
        for _ in range(8):  # in the footer: numbers of rows, offsets, types
            damaged[chance.randrange(len(whole) // 2, len(whole) - 8)] = chance.randrange(256)
        (here / "t.parquet").write_bytes(damaged)
        list(items(["t.parquet"]))
    (here / "t.parquet").write_bytes(whole[:-20])
    assert isinstance(error(), TableError)


def test_a_reader_that_is_killed_is_an_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qvl.batch import parquet

    pq.write_table(pa.table({"image": ["a.png"]}), "t.parquet")
    monkeypatch.setattr(parquet, "WALL_S", 0.0)
    assert "crash, or took longer" in error().message


def test_many_rows_come_one_by_one(here: Path) -> None:
    pq.write_table(pa.table({"image": [f"{n}.png" for n in range(5000)]}), "t.parquet")
    found = items(["t.parquet"])
    assert isinstance(next(found), Item)
    found.close()  # type: ignore[attr-defined] # ends the reader
    assert sum(isinstance(one, Item) for one in items(["t.parquet"])) == 5000
