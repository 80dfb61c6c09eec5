"""CSV, JSON lines and requests as items: every dialect and encoding, and rows that are wrong."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qvl.batch import json_lines
from qvl.batch.cells import MAX_CELL_CHARS
from qvl.batch.csv_table import encoding_of
from qvl.batch.inputs import items
from qvl.batch.row import Refused, Wanted
from qvl.errors import InvalidParamError, TableError
from qvl.runs.record import Item, Source

RUSSIAN = "Кружка керамическая синяя, 350 мл; подарок"
CHINESE = "陶瓷马克杯，蓝色，适合送礼和日常使用"
ENCODINGS = {
    "utf-8": RUSSIAN + CHINESE,
    "utf-8-sig": RUSSIAN + CHINESE,
    "utf-16": RUSSIAN + CHINESE,
    "utf-16-le": RUSSIAN + CHINESE,
    "utf-16-be": RUSSIAN + CHINESE,
    "cp1251": RUSSIAN,
    "gb18030": CHINESE,
    "cp1252": "Café crème, déjà vu - Größe",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(path: str, wanted: Wanted | None = None, told: list[str] | None = None) -> list[Item]:
    found = list(items([path], wanted or Wanted(), (told if told is not None else []).append))
    assert all(isinstance(one, Item) for one in found), found
    return [one for one in found if isinstance(one, Item)]


def mixed(path: str) -> list[str]:
    """Of each row its id, or why it is refused."""
    return [one.error.message if isinstance(one, Refused) else one.id for one in items([path])]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_encoding_and_delimiter_are_found_and_told(
    here: Path, encoding: str, delimiter: str
) -> None:
    text = ENCODINGS[encoding]
    with open("t.csv", "w", encoding=encoding, newline="") as file:
        table = csv.writer(file, delimiter=delimiter)
        table.writerows([["id", "image", "title"], ["1", "a.png", text], ["2", "b.png", ""]])
    told: list[str] = []
    found = read("t.csv", told=told)
    assert [one.columns for one in found] == [
        {"id": "1", "image": "a.png", "title": text},
        {"id": "2", "image": "b.png", "title": ""},
    ]
    sign = "tab" if delimiter == "\t" else delimiter
    assert told[0] == f"'t.csv' is read as {encoding} with {sign} between cells"


cell_texts = st.text(
    st.characters(codec="utf-8", exclude_characters="\r\0\ufeff", exclude_categories=("Cs",)),
    max_size=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    table=st.lists(st.tuples(cell_texts, cell_texts), min_size=1, max_size=4),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_a_written_table_is_read_again(
    tmp_path: Path,
    table: list[tuple[str, str]],
    encoding: str,
    delimiter: str,
    quoting: Literal[0, 1],
    end: str,
) -> None:
    rows = [[str(n), "a.png", *row] for n, row in enumerate(table)]
    with (tmp_path / "t.csv").open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=end)
        writer.writerows([["id", "image", "first", "second"], *rows])
    told: list[str] = []
    found = list(items([str(tmp_path / "t.csv")], Wanted(), told.append))
    assert [list(one.columns.values()) for one in found if isinstance(one, Item)] == rows


@given(st.text(alphabet="абвгдежзийклмнопрстуфхцчшщъыьэюяАБВГД Ё«»№-", min_size=6))
def test_russian_of_one_byte_is_known(text: str) -> None:
    letters = sum(sign.isalpha() for sign in text)
    if letters < 4 or letters < 0.9 * sum(not sign.isascii() for sign in text):
        return
    assert encoding_of(io.BytesIO(f"id,image\n1,{text}\n".encode("cp1251"))) == "cp1251"


# the commonest characters of Chinese texts
COMMON = "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生自会那后能对着事其里所去行过家十用发天如然作方成者多日都三小军二无同么经法当起与好看学进种将还分此心前面又定见只主没公从"


def test_chinese_of_two_bytes_is_known() -> None:
    """By most texts of a dozen characters: some are UTF-8, too, as it happens."""
    chance = random.Random(7)
    texts = ["".join(chance.choices(COMMON, k=12)) for _ in range(300)]
    tables = [io.BytesIO(f"id,image\n1,{text}\n".encode("gb18030")) for text in texts]
    assert sum(encoding_of(table) == "gb18030" for table in tables) >= 297


def test_a_table_of_excel_says_its_own_delimiter(here: Path) -> None:
    (here / "t.csv").write_text("sep=;\nid;image,url\n1;a.png\n")
    (one,) = read("t.csv", Wanted(image_columns=("image,url",)))
    assert one.columns == {"id": "1", "image,url": "a.png"}


def test_lines_of_another_encoding_are_refused_by_row_and_column(here: Path) -> None:
    head = "id,image,title\n"
    first = f"1,a.png,{RUSSIAN.replace(',', '')}\n"
    (here / "u.csv").write_bytes(
        (head + first).encode() + first.replace("1,", "2,", 1).encode("cp1251") + b"3,c.png,x\n"
    )
    assert mixed("u.csv") == [
        "1",
        "'u.csv', row 3 is not utf-8 in 'title', as the other rows are",
        "3",
    ]
    (here / "w.csv").write_bytes(
        (head + first + first.replace("1,", "2,", 1)).encode("cp1251")
        + first.replace("1,", "3,", 1).encode()
    )
    assert mixed("w.csv")[2] == "'w.csv', row 4 is not cp1251 in 'title', as the other rows are"


def test_a_cell_of_ten_megabytes_is_refused_and_the_rest_is_read(here: Path) -> None:
    (here / "t.csv").write_text(f"id,image,title\n1,a.png,{'x' * 10_000_000}\n2,b.png,ok\n")
    limit = f"has 10000000 characters in 'title', the limit is {MAX_CELL_CHARS}"
    assert mixed("t.csv") == [f"'t.csv', row 2 {limit}", "2"]
    lines = [{"image": "a.png", "title": "x" * 10_000_000}, {"id": "2", "image": "b.png"}]
    (here / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    first, second = mixed("t.jsonl")
    assert first.startswith("'t.jsonl', row 1 has over 1048576 characters in 'title'")
    assert second == "2"


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ('1,"a.png"x,y\n2,b.png,z\n', "has quotes that do not match"),
        ('1,a.png,"open\n2,b.png,z\n', "opens a quote that is never closed"),
        ("1,a.png,x,y\n2,b.png,z\n", "has 4 cells, the header has 3"),
        ("1,,x\n2,b.png,z\n", "has no picture in 'image'"),
    ],
)
def test_a_row_that_cannot_be_read_is_refused_by_its_number(
    here: Path, rows: str, why: str
) -> None:
    (here / "t.csv").write_text("id,image,title\n" + rows)
    found = mixed("t.csv")
    assert found[0] == f"'t.csv', row 2 {why}"
    assert found[1:] in (["2"], [])
    assert (found[1:] == []) == ("never closed" in why)


def test_rows_are_counted_as_a_spreadsheet_does(here: Path) -> None:
    (here / "t.csv").write_text('image,t\n"a.png","two\nlines"\n\n,x\n')
    assert mixed("t.csv")[1].startswith("'t.csv', row 4 has no picture")


def test_b020_an_id_that_comes_twice_names_both_rows(here: Path) -> None:
    (here / "t.csv").write_text("id,image\n7,a.png\n8,b.png\n7,c.png\n")
    assert mixed("t.csv")[2] == "'t.csv', row 4 has the id '7', which 't.csv', row 2 has already"
    assert [one.id for one in read("t.csv", Wanted(ids="auto"))] == ["7", "8", "7#4"]
    (here / "u.csv").write_text("id,image\n8,a.png\n")
    told = [one.error.message for one in items(["t.csv", "u.csv"]) if isinstance(one, Refused)]
    assert told[1] == "'u.csv', row 2 has the id '8', which 't.csv', row 3 has already"


def test_b021_without_ids_one_picture_may_come_twice(here: Path) -> None:
    (here / "t.csv").write_text("image,prompt\na.png,one\na.png,two\n")
    found = read("t.csv")
    assert [(one.id, one.options["prompt"]) for one in found] == [
        ("a.png", "one"),
        ("a.png#3", "two"),
    ]


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("sku,Фото,Ссылка", ["Фото"]),
        ("sku,图片链接,标题", ["图片链接"]),
        ("sku,image_1,image_2", ["image_1", "image_2"]),
        ("sku,Image URL,url", ["Image URL"]),
        ("sku,file,title", ["file"]),
        ("sku,Ссылка на главное фото,Ссылки на дополнительные фото",
         ["Ссылка на главное фото", "Ссылки на дополнительные фото"]),
    ],
)  # fmt: skip
def test_columns_of_pictures_are_found_by_their_names(
    here: Path, header: str, columns: list[str]
) -> None:
    (here / "t.csv").write_text(f"{header}\n1,a.png,b.png\n")
    told: list[str] = []
    (one,) = read("t.csv", told=told)
    assert told[1] == f"'t.csv': pictures are taken from {', '.join(columns)}"
    assert len(one.sources) == len(columns)


def test_a_table_without_pictures_says_which_columns_it_has(here: Path) -> None:
    (here / "t.csv").write_text("sku,title\n1,x\n2,y\n")
    (bad,) = items(["t.csv"])
    assert isinstance(bad, Refused)
    assert isinstance(bad.error, TableError)
    assert bad.error.message == "'t.csv' has no column of pictures; it has sku, title"
    (one, _) = read("t.csv", Wanted(image_columns=("title",)))
    assert one.sources == (Source(str(here / "x")),)
    (wrong,) = items(["t.csv"], Wanted(image_columns=("titel",)))
    assert isinstance(wrong, Refused)
    assert wrong.error.hint == "did you mean 'title'?"


def test_a_cell_names_several_pictures_pages_segments_and_addresses(here: Path) -> None:
    (here / "shop").mkdir()
    (here / "shop/a;b.png").touch()
    (here / "shop/dir").mkdir()
    (here / "shop/dir/w.png").touch()
    cells = [
        "a.png; sub/b.png ;https://a.example/c.jpg",
        "a;b.png",
        "d.pdf#page=2",
        "e.mp4#t=1,2.5",
        "/abs/f.png",
        "s3://bucket/g.png",
        "dir\\w.png",
        "https://a.example/1,2.jpg, http://a.example/3.jpg https://a.example/4.jpg",
    ]
    with open("shop/t.csv", "w", newline="") as file:
        csv.writer(file).writerows([["image"], *([cell] for cell in cells)])
    top = str(here / "shop")
    assert [one.sources for one in read("shop/t.csv")] == [
        (Source(f"{top}/a.png"), Source(f"{top}/sub/b.png"), Source("https://a.example/c.jpg")),
        (Source(f"{top}/a;b.png"),),
        (Source(f"{top}/d.pdf", "page=2"),),
        (Source(f"{top}/e.mp4", "t=1,2.5"),),
        (Source("/abs/f.png"),),
        (Source("s3://bucket/g.png"),),
        (Source(f"{top}/dir/w.png"),),
        (
            Source("https://a.example/1,2.jpg"),
            Source("http://a.example/3.jpg"),
            Source("https://a.example/4.jpg"),
        ),
    ]


def test_a_row_has_options_of_its_own(here: Path) -> None:
    (here / "t.csv").write_text(
        'id,pdf,page,prompt,language,seed,task\n1,a.pdf,3,What?,"ru,en",7,ask\n2,b.pdf,1,,,,\n'
        "3,c.pdf,x,,,,\n4,c.pdf,1,,,-1,\n"
    )
    found = list(items(["t.csv"], Wanted(languages=("zh",))))
    own = {"prompt": "What?", "seed": 7, "task": "ask"}
    first, second, third = (one for one in found if isinstance(one, Item))
    assert first.sources[0].part == "page=3"
    assert (first.id, first.options) == ("1.ru", {**own, "language": "ru"})
    assert (second.id, second.options) == ("1.en", {**own, "language": "en"})
    assert (third.id, third.options) == ("2", {"language": "zh"})
    errors = [one.error for one in found if isinstance(one, Refused)]
    assert [type(error) for error in errors] == [InvalidParamError, InvalidParamError]
    assert "page 'x'" in errors[0].message
    assert "seed '-1'" in errors[1].message


def test_json_lines_have_lists_and_numbers(here: Path) -> None:
    rows = [
        {"id": 7, "images": ["a.png", "b.png"], "price": 12.0, "on": True, "tags": ["x", "y"]},
        {"id": "8", "image": "c.png", "deep": {"ключ": 1}, "none": None},
    ]
    (here / "t.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
    first, second = read("t.jsonl")
    assert first.columns == {
        "id": "7",
        "images": "a.png; b.png",
        "price": "12",
        "on": "true",
        "tags": "x; y",
    }
    assert len(first.sources) == 2
    assert second.columns["deep"] == '{"ключ": 1}'
    assert second.columns["none"] == ""


def test_lines_may_lack_some_of_the_columns_and_tables_may_not(here: Path) -> None:
    both = Wanted(image_columns=("front", "back"))
    (here / "t.jsonl").write_text('{"front": "a.png"}\n{"front": "b.png", "back": "c.png"}\n{}\n')
    *found, bad = items(["t.jsonl"], both)
    assert [len(one.sources) for one in found if isinstance(one, Item)] == [1, 2]
    assert isinstance(bad, Refused)
    (here / "t.csv").write_text("front,title\na.png,x\n")
    (bad,) = items(["t.csv"], both)
    assert isinstance(bad, Refused)
    assert bad.error.message == "'t.csv' has no column 'back'"


def test_lines_that_are_no_rows_are_refused_one_by_one(here: Path) -> None:
    bad = [b"[1]", b"{", b"\xff", b'{"image": NaN}', b"[" * 100_000, b'{"title": "no picture"}']
    (here / "t.jsonl").write_bytes(b"\n".join([*bad, b'{"id": "ok", "image": "a.png"}']))
    found = mixed("t.jsonl")
    assert found[-1] == "ok"
    assert all(f"row {n}" in told or n == 6 for n, told in enumerate(found[:-1], 1))
    assert len(found) == 7


def request(number: int, **changes: object) -> dict[str, object]:
    body = {"model": "qwen", "messages": [{"role": "user", "content": "{hello}"}]}
    whole = {
        "custom_id": f"r{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body,
    }
    return {**whole, **changes}


def test_requests_to_openai_are_items_with_their_bodies(here: Path) -> None:
    (here / "t.jsonl").write_text("\n".join(json.dumps(request(n)) for n in range(3)))
    told: list[str] = []
    found = read("t.jsonl", Wanted(options={"prompt": "{title}"}), told)
    assert [one.id for one in found] == ["r0", "r1", "r2"]
    assert found[1].options == {"request": request(1)}
    assert told == ["'t.jsonl' holds 3 requests to OpenAI's API"]


@pytest.mark.parametrize(
    "changes",
    [{"custom_id": 7}, {"custom_id": ""}, {"method": "GET"}, {"url": None}, {"body": []}, {"x": 1}],
)
def test_what_is_no_request_is_refused(here: Path, changes: dict[str, object]) -> None:
    (here / "t.jsonl").write_text(
        json.dumps(request(1)) + "\n" + json.dumps(request(2, **changes)) + "\n"
    )
    first, second = mixed("t.jsonl")
    assert first == "r1"
    assert "row 2" in second


def test_too_many_requests_are_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "MAX_REQUESTS", 2)
    (here / "t.jsonl").write_text("\n".join(json.dumps(request(n)) for n in range(3)))
    assert mixed("t.jsonl")[2] == "'t.jsonl' has more than 2 requests, or 200 MiB"


def test_columns_without_a_name_or_of_one_name_keep_apart(here: Path) -> None:
    (here / "t.csv").write_text("image,title,title,\na.png,x,y,z\n")
    (one,) = read("t.csv")
    assert one.columns == {"image": "a.png", "title": "x", "title (3)": "y", "column 4": "z"}


def test_data_urls_in_tables_are_refused(here: Path) -> None:
    (here / "t.csv").write_text('image\n"data:image/png;base64,AAAA"\n')
    assert "data: URL" in mixed("t.csv")[0]
