"""Each format holds what the run holds, and is read back equal."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

import openpyxl
import pyarrow.parquet as pq
import pytest
from openai.types.chat import ChatCompletion
from PIL import Image as Pillow

from made_up import CHINESE, PAYLOADS, RUSSIAN, failed, finished, many, picture, review, waiting
from qvl.batch.exports import (
    copies,
    csv_table,
    gallery,
    google_feed,
    jsonl,
    marketplace,
    openai_batch,
    parquet,
    sidecars,
    sqlite,
    training_set,
    workbook,
)
from qvl.batch.names import safe_name
from qvl.batch.profiles import check, fields_of, load
from qvl.errors import InputError, InvalidParamError, StorageError
from qvl.runs.record import Finished, Item, Source
from qvl.tasks import TASKS
from qvl.training.rows import read_rows
from qvl.types import Image, Text

EDITED = "Белая фарфоровая кружка.\nРучка справа."
ITEMS = (
    finished(0),
    review(finished(1), "edited", "проверено", text=EDITED),
    finished(
        2, CHINESE, language="zh", title="白杯", keywords=["杯子", "白色"], flags=["language"]
    ),
    failed(3, "=cmd|' /C calc'!A0"),
    waiting(4),
    review(finished(5, "a\x00b\x1b\u2028\ud800\r\nc"), "approved"),
)
WRITERS: dict[str, Callable[[Iterable[Finished], Path], object]] = {
    "csv": csv_table.write,
    "jsonl": jsonl.write,
    "parquet": parquet.write,
    "sqlite": sqlite.write,
    "html": gallery.write,
    "xlsx": workbook.write,
}


def read_csv(path: Path) -> list[dict[str, str]]:
    text = path.read_bytes().decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_csv_has_their_columns_then_ours(tmp_path: Path) -> None:
    csv_table.write(iter(ITEMS), tmp_path / "a.csv")
    rows = read_csv(tmp_path / "a.csv")
    assert [*rows[0]] == [
        "sku", "Название", "qvl_id", "qvl_source", "qvl_language", "qvl_text", "qvl_title", "qvl_keywords",
        "qvl_flags", "qvl_error", "qvl_attempt", "qvl_kept", "qvl_status", "qvl_note", "qvl_key",
    ]  # fmt: skip
    assert [row["qvl_text"] for row in rows] == [RUSSIAN, EDITED, CHINESE, "", "", "a\\x00b\\x1b\u2028\\ud800\nc"]  # fmt: skip
    assert [row["qvl_status"] for row in rows] == ["new", "edited", "new", "new", "new", "approved"]
    assert rows[1]["qvl_kept"] == "0.375"
    assert rows[2]["qvl_keywords"] == "杯子; 白色"
    assert rows[3]["qvl_error"] == "'=cmd|' /C calc'!A0"
    assert [row["qvl_attempt"] for row in rows] == ["1", "1", "1", "1", "0", "1"]


def test_csv_for_excel_in_russian(tmp_path: Path) -> None:
    csv_table.write(ITEMS, tmp_path / "a.csv", delimiter=";")
    data = (tmp_path / "a.csv").read_bytes()
    assert data.startswith("\ufeffsku;Название;qvl_id".encode())
    csv_table.write(ITEMS, tmp_path / "a.csv", bom=False)
    assert (tmp_path / "a.csv").read_bytes().startswith(b"sku,")


def test_jsonl_leaves_nothing_out(tmp_path: Path) -> None:
    """B043, B023: one record for each LF, halves of letters escaped, no apostrophes."""
    jsonl.write(iter(ITEMS), tmp_path / "a.jsonl")
    lines = (tmp_path / "a.jsonl").read_bytes().split(b"\n")
    assert lines.pop() == b""
    rows = [json.loads(line) for line in lines]
    assert [row["id"] for row in rows] == [one.item.id for one in ITEMS]
    assert [row["ok"] for row in rows] == [True, True, True, False, None, True]
    assert rows[1]["text"] == EDITED
    assert rows[1]["review"]["model"] == {"text": RUSSIAN}
    assert rows[3]["error"]["message"] == "=cmd|' /C calc'!A0"
    assert rows[5]["text"] == "a\x00b\x1b\u2028\ud800\r\nc"
    assert rows[2]["columns"] == {"sku": "A-002", "Название": "Кружка 2"}
    for row, one in zip(rows, ITEMS, strict=True):
        if one.outcome is not None:
            said = dict(one.review.fields) if one.review is not None else {}
            assert {**one.outcome.out, **said}.items() <= row.items()


def expected(name: str, one: Finished) -> Any:
    return {
        "qvl_id": one.item.id,
        "qvl_text": one.told("text"),
        "qvl_attempt": one.outcome.attempt if one.outcome is not None else 0,
        "sku": one.item.columns["sku"],
    }[name]


def test_parquet_is_read_back_equal(tmp_path: Path) -> None:
    items = ITEMS[:5]  # halves of letters are escaped
    parquet.write(iter(items), tmp_path / "a.parquet")
    rows = pq.read_table(tmp_path / "a.parquet").to_pylist()
    check_rows(rows, items)


def test_sqlite_is_read_back_equal(tmp_path: Path) -> None:
    items = ITEMS[:5]
    sqlite.write(iter(items), tmp_path / "a.sqlite")
    with closing(sqlite3.connect(tmp_path / "a.sqlite")) as base:
        base.row_factory = sqlite3.Row
        check_rows([dict(row) for row in base.execute("SELECT * FROM items")], items)
        (count,) = base.execute("SELECT count(*) FROM items WHERE qvl_status = 'edited'").fetchone()
    assert count == 1


def check_rows(rows: list[dict[str, Any]], items: Iterable[Finished]) -> None:
    for row, one in zip(rows, items, strict=True):
        out = json.loads(row["qvl_out"]) if row["qvl_out"] is not None else None
        assert out == (dict(one.outcome.out) if one.outcome is not None else None)
        kept = json.loads(row["qvl_review"])["fields"] if row["qvl_review"] else None
        assert kept == (dict(one.review.fields) if one.review is not None else None)
        for name in ("qvl_id", "qvl_attempt", "sku"):
            assert row[name] == expected(name, one)
        assert row["qvl_text"] == expected("qvl_text", one)


def test_sqlite_takes_columns_of_any_name(tmp_path: Path) -> None:
    columns = {"Title": "1", "title": "2", 'a"b': "3", "x\0y": "4", "": "5", "\ud800": "6"}
    sqlite.write([finished(columns=columns)], tmp_path / "a.sqlite")
    with closing(sqlite3.connect(tmp_path / "a.sqlite")) as base:
        found = base.execute("SELECT * FROM items")
        names = [column[0] for column in found.description]
        assert found.fetchone()[:6] == ("1", "2", "3", "4", "5", "6")
    assert names[:4] == ["Title", "title_2", 'a"b', "xy"]


def test_parquet_has_many_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROWS_IN_GROUP", 10)
    parquet.write(many(25), tmp_path / "a.parquet")
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert (file.metadata.num_rows, file.metadata.num_row_groups) == (25, 3)


def test_the_gallery_is_one_page_that_loads_nothing(tmp_path: Path) -> None:
    file = picture(tmp_path / "red.png", size=(640, 480))
    boxes = [{"label": "<круг>", "x1": 1.0, "y1": 2.0, "x2": 30.0, "y2": 40.0}]
    meta = {"model": "m", "images": [{"width_px": 640, "height_px": 480}], "videos": []}
    seen = finished(9, '<script>alert("x")</script>', sources=[Source(str(file))], boxes=boxes, meta=meta)  # fmt: skip
    gallery.write([*ITEMS, seen], tmp_path / "a.html", title="<Прогон>")
    page = (tmp_path / "a.html").read_text("utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert page.count("<article>") == len(ITEMS) + 1
    assert page.count("data:image/jpeg;base64,") == 1
    assert page.count("<rect ") == 1
    assert "<del>на столе</del>" not in page
    assert "<ins>фарфоровая </ins>" in page or "<ins> фарфоровая</ins>" in page
    assert page.endswith("</html>\n")


def test_sidecars_are_named_after_items(tmp_path: Path) -> None:
    """B033."""
    hostile = finished(7, "Текст", row="../../x")
    assert sidecars.write([*ITEMS, hostile], tmp_path / "out", "txt") == 5
    assert sidecars.write([*ITEMS, hostile], tmp_path / "out", "json") == 7
    assert sorted(tmp_path.iterdir()) == [tmp_path / "out"]
    path = tmp_path / "out" / f"{safe_name(hostile.item.id)}.txt"
    assert path.read_text("utf-8") == "Текст\n"
    row = json.loads(path.with_suffix(".json").read_bytes())
    assert row["id"] == "../../x/ru"
    assert len(list((tmp_path / "out").iterdir())) == 12


def test_xmp_stands_beside_and_inside_of_copies(tmp_path: Path) -> None:
    file = picture(tmp_path / "red.png")
    row = [finished(n, text, row="чашка", language=code, sources=[Source(str(file))], keywords=["a", "b"]) for n, (code, text) in enumerate([("ru", "Чашка"), ("en", "A cup")])]  # fmt: skip
    gone = finished(8, sources=[Source(str(tmp_path / "gone.png"))])
    page = finished(9, sources=[Source(str(file), "page=2")])
    written, lost = copies.write([*row, gone, page, failed(10)], tmp_path / "out")
    assert written == 1
    assert [name for name, _ in lost] == ["row 8", "row 9"]
    assert sidecars.write(row, tmp_path / "out", "xmp") == 1
    one, beside = sorted((tmp_path / "out").iterdir())
    assert one.stem == beside.stem == safe_name("чашка")
    with Pillow.open(one) as copy, Pillow.open(file) as original:
        inside = copy.info["xmp"]
        assert copy.tobytes() == original.tobytes()
    for xmp in (inside, beside.read_bytes()):
        texts = re.findall(r'lang="([\w-]+)"[^>]*>([^<]+)<', xmp.decode())
        assert {("ru", "Чашка"), ("en", "A cup")} <= set(texts)


def test_items_of_one_row_have_to_be_together(tmp_path: Path) -> None:
    items = [finished(0, row="a"), finished(1, row="b"), finished(2, row="a", language="en")]
    with pytest.raises(InputError, match="of row 'a' are apart"):
        sidecars.write(items, tmp_path, "xmp")
    with pytest.raises(InvalidParamError, match="no sidecar 'doc'"):
        sidecars.write(items, tmp_path, "doc")  # type: ignore[arg-type]


def test_openai_reads_its_batch_output(tmp_path: Path) -> None:
    openai_batch.write(ITEMS, tmp_path / "a.jsonl", created=1_700_000_000)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_bytes().splitlines()]
    assert [row["custom_id"] for row in rows] == [one.item.id for one in ITEMS if one.outcome]
    assert all([*row] == ["id", "custom_id", "response", "error"] for row in rows)
    assert rows[3]["response"] is None
    assert rows[3]["error"] == {"code": "image_decode", "message": "=cmd|' /C calc'!A0"}
    assert len({row["id"] for row in rows}) == len(rows)
    for row in (rows[0], rows[1], rows[2]):
        assert row["response"]["status_code"] == 200
        answer = ChatCompletion.model_validate(row["response"]["body"], strict=True)
        assert answer.model == "sprout"
        assert answer.usage is not None
        assert answer.usage.total_tokens == 120
        assert answer.choices[0].message.content in (RUSSIAN, EDITED, CHINESE)


def asked(item: Item) -> str:
    return f"Опиши {item.columns['sku']}"


def test_training_reads_what_was_approved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = picture(tmp_path / "red.png")
    here = [Source(str(file))]
    listing = finished(3, "Белая кружка", sources=here, title="Кружка", keywords=["белая", "кружка"], alt_text="Кружка на столе")  # fmt: skip
    clip = finished(5, "Кружка падает", sources=[Source("/clips/a.bin")], meta={"videos": [{"name": "a"}]})  # fmt: skip
    items = [
        finished(0, sources=here),
        review(finished(1, sources=here), "approved", text=EDITED),
        review(finished(2, sources=here), "edited", text=EDITED),
        review(listing, "approved"),
        review(finished(4, sources=[Source(str(file), "page=2")]), "approved"),
        review(clip, "approved"),
        review(failed(6), "approved"),
        review(finished(7), "rejected"),
    ]
    assert training_set.write(items, tmp_path / "a.jsonl", asked) == 3
    assert "1 items that are edited" in caplog.text
    assert "1 items about pages" in caplog.text
    rows, problems = read_rows([tmp_path / "a.jsonl"])
    assert problems == []
    first, second, third = rows
    seen, words = first.messages[0].content
    assert isinstance(seen, Image)
    assert seen.source == file
    assert words == Text("Опиши A-001")
    assert first.messages[1].content == (Text(EDITED),)
    (said,) = second.messages[1].content
    assert isinstance(said, Text)
    assert json.loads(said.text) == {
        "title": "Кружка",
        "description": "Белая кружка",
        "keywords": ["белая", "кружка"],
        "alt_text": "Кружка на столе",
    }
    assert type(third.messages[0].content[0]).__name__ == "Video"


def test_googles_feed_has_structured_texts_alone(tmp_path: Path) -> None:
    columns = {"sku": "A<1>", "title": "Plain", "description": "Plain", "link": "https://a.test/?a=1&b=2", "Image Link": "https://a.test/1.jpg", "price": "5 EUR", "other": "x"}  # fmt: skip
    long = "A white <b>mug</b> & a plate. " * 300
    items = [finished(0, long, columns=columns, title="Mug"), failed(1), finished(2, "Ok.")]
    counts = marketplace.write(items, tmp_path / "feed.xml", load("google_merchant"))
    assert (counts.written, counts.cut, counts.left_out) == (2, 1, 1)
    space = {"g": google_feed.NAMESPACE}
    root = ElementTree.parse(tmp_path / "feed.xml").getroot()
    assert (root.tag, root.get("version")) == ("rss", "2.0")
    first, second = root.findall("channel/item")
    assert first.findtext("g:id", namespaces=space) == "A<1>"
    assert second.findtext("g:id", namespaces=space) == "A-002"
    for item in (first, second):
        for name, most in (("structured_title", 150), ("structured_description", 5000)):
            parts = item.find(f"g:{name}", space)
            assert parts is not None
            assert [part.tag for part in parts] == [f"{{{google_feed.NAMESPACE}}}{tag}" for tag in ("digital_source_type", "content")]  # fmt: skip
            assert parts[0].text == "trained_algorithmic_media"
            assert 1 <= len(parts[1].text or "") <= most
        tags = {element.tag.rpartition("}")[2] for element in item}
        assert not tags & {"title", "description", "other"}
    assert first.findtext("g:link", namespaces=space) == "https://a.test/?a=1&b=2"
    assert first.findtext("g:image_link", namespaces=space) == "https://a.test/1.jpg"
    with pytest.raises(InvalidParamError, match=r"'feed\.csv' cannot be"):
        marketplace.write(items, tmp_path / "feed.csv", load("google_merchant"))


@pytest.mark.parametrize("name", ["ozon", "wildberries", "yandex_market", "yandex_products", "amazon", "shopify", "etsy"])  # fmt: skip
@pytest.mark.parametrize("ending", ["csv", "xlsx"])
def test_a_marketplaces_file_passes_its_profile(name: str, ending: str, tmp_path: Path) -> None:
    profile = load(name)
    texts = [
        *PAYLOADS,
        "Белая кружка из фарфора с ручкой для чая и кофе, объём 350 мл. " * 120,
        "СУПЕР КРУЖКА!!! Скидка, всего 500 руб. 🎉 Звоните +7 495 123-45-67.",
        "",
    ]
    items = [finished(n, text, title=text, keywords=[text[:40], "кружка"]) for n, text in enumerate(texts)]  # fmt: skip
    target = tmp_path / f"a.{ending}"
    counts = marketplace.write(items, target, profile)
    assert counts.written + counts.left_out == len(items)
    if ending == "csv":
        rows = read_csv(target)
    else:
        page: Any = openpyxl.load_workbook(target).active
        grid = list(page.iter_rows())
        assert {cell.data_type for row in grid for cell in row} <= {"s", "n"}
        head, *body = [[cell.value or "" for cell in row] for row in grid]
        rows = [dict(zip(head, row, strict=True)) for row in body]
    assert len(rows) == counts.written > 0
    for row in rows:
        assert [*row] == [*profile.headings]
        told = fields_of(profile, {}.get, {})
        for rules in profile.field:
            values = [row[heading] for heading in rules.headings]
            values = values[0].split(rules.joined) if rules.joined else values
            told[rules.name] = tuple(filter(None, values)) if rules.most > 1 else values[0]
        assert [found for found in check(profile, told) if not found.advice] == []
    report = read_csv(marketplace.report_of(target))
    assert {"id", "field", "rule", "what"} == set(report[0])
    left = {row["id"] for row in report if row["rule"] == "left out"}
    assert len(left) == counts.left_out
    if name == "wildberries":
        assert any(row["rule"] == "max" and row["field"] == "title" for row in report)


@pytest.mark.parametrize("form", WRITERS)
def test_nothing_is_an_export_too(form: str, tmp_path: Path) -> None:
    """B044."""
    WRITERS[form](iter(()), tmp_path / "empty")
    assert (tmp_path / "empty").exists()


@pytest.mark.parametrize("form", WRITERS)
def test_a_failed_export_leaves_the_old_one(form: str, tmp_path: Path) -> None:
    target = tmp_path / "a"
    WRITERS[form](ITEMS[:2], target)
    old = target.read_bytes()

    def broken() -> Iterator[Finished]:
        yield ITEMS[0]
        raise OSError(28, os.strerror(28))

    with pytest.raises(StorageError, match="a' cannot be written: No space left"):
        WRITERS[form](broken(), target)
    assert target.read_bytes() == old
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_payload_is_a_formula_in_csv(payload: str, tmp_path: Path) -> None:
    """B023, for 40 payloads in three formats; of the new and one's own workbook in test_workbooks."""
    columns = {"sku": payload, payload: "x"}
    items = [finished(0, payload, columns=columns, title=payload), failed(1, payload)]
    csv_table.write(items, tmp_path / "a.csv")
    for row in csv.reader(io.StringIO((tmp_path / "a.csv").read_bytes().decode("utf-8-sig"), newline="")):  # fmt: skip
        assert not any(cell.lstrip()[:1] in (*"=+-@＝＋－＠﹦﹢﹣﹫",) for cell in row)
    jsonl.write(items, tmp_path / "a.jsonl")
    assert json.loads((tmp_path / "a.jsonl").read_bytes().splitlines()[0])["text"] == payload


def test_columns_of_tasks_have_names_of_their_own() -> None:
    """No task's result has a field that would fall on a column of ours."""
    from qvl.batch.exports.table import AFTER, BEFORE, NOT_SHOWN, OURS
    from qvl.cli.formats import columns

    fixed = {name.removeprefix(OURS) for name in (*BEFORE, *AFTER, "qvl_key", "qvl_cut", "qvl_picture")}  # fmt: skip
    for task in TASKS.values():
        own = set(columns(task)) - NOT_SHOWN
        assert not own & fixed


CHILD = """
import sys, itertools
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from made_up import finished
from qvl.batch.exports import csv_table, sqlite, workbook
from functools import partial
write = {"csv": csv_table.write, "sqlite": sqlite.write, "xlsx": partial(workbook.write, pictures=False)}[sys.argv[1]]
for round in itertools.count():
    write((finished(n, f"round {round}") for n in range(40)), Path(sys.argv[2]))
    if round == 0:
        print("ready", flush=True)
"""


def rounds_in(form: str, target: Path) -> list[str]:
    match form:
        case "csv":
            return [row["qvl_text"] for row in read_csv(target)]
        case "xlsx":
            page: Any = openpyxl.load_workbook(target).active
            head, *rows = page.iter_rows(values_only=True)
            return [row[head.index("qvl_text")] for row in rows]
    with closing(sqlite3.connect(target)) as base:
        return [text for (text,) in base.execute("SELECT qvl_text FROM items")]


def kill_exports(form: str, folder: Path, kills: int) -> None:
    """B035: killed at any moment, the file is the old or the new one, whole."""
    target = folder / f"a.{form}"
    random = Random(f"{form}{kills}")
    paths = [str(Path(__file__).parents[2]), str(Path(training_set.__file__).parents[3])]
    for _ in range(kills):
        command = [sys.executable, "-c", CHILD, form, str(target), *paths]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            time.sleep(random.uniform(0, 0.06))
            child.send_signal(signal.SIGKILL)
        texts = rounds_in(form, target)
        assert len(texts) == 40
        assert len(set(texts)) == 1
    assert len(os.listdir(folder)) <= 2  # and what the last one had begun


@pytest.mark.parametrize("form", ["csv", "sqlite", "xlsx"])
def test_a_killed_export_is_old_or_new(form: str, tmp_path: Path) -> None:
    kill_exports(form, tmp_path, 7)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["csv", "sqlite", "xlsx"])
def test_a_hundred_killed_exports_are_old_or_new(form: str, tmp_path: Path) -> None:
    kill_exports(form, tmp_path, 100)
