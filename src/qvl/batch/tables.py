"""Tables as rows of the inputs: which columns hold pictures, ids, and options of the task.

Main path: rows -> a reader by the file's suffix, which gives Cells -> Head.of their names -> a Row each.
A path in a cell is relative to the table's folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvl.batch import csv_table, json_lines, parquet, workbook
from qvl.batch.cells import Cells, as_text
from qvl.batch.places import located, parts, storable
from qvl.batch.row import AUTO, Refused, Row, Tell, Wanted, row_name
from qvl.batch.template import check_names, names_in
from qvl.errors import InvalidParamError, QvlError, TableError, nearest
from qvl.processing.source import quoted
from qvl.runs.record import Source

READERS: Mapping[str, Callable[[Path, str, Tell], Iterator[Cells]]] = {
    ".csv": csv_table.cells,
    ".tsv": csv_table.cells,
    ".xlsx": workbook.cells,
    ".xlsm": workbook.cells,
    ".jsonl": json_lines.cells,
    ".ndjson": json_lines.cells,
    ".parquet": parquet.cells,
}
JSON_LINES = frozenset([".jsonl", ".ndjson"])  # whose rows have columns of their own
IDS = ("id", "custom_id", "item_id", "ид", "编号")
# what a shop calls a column of pictures, without case, digits and marks between words
PICTURES = frozenset(
    name.strip()
    for name in """
    image, images, img, imgs, picture, pictures, pic, pics, photo, photos, scan, scans,
    image url, image urls, image link, image links, image path, image file, image src, main image,
    photo url, photo link, photo path, main photo, picture url, picture link, picture path,
    additional image link, video, videos, video url, video link, video path, video file,
    pdf, pdf url, pdf path, document, documents,
    изображение, изображения, картинка, картинки, фото, фотография, фотографии, скан, сканы,
    url фото, url изображения, ссылка на фото, ссылки на фото, ссылка на изображение,
    ссылки на изображения, ссылка на картинку, ссылка на главное фото, ссылки на дополнительные фото,
    главное фото, дополнительные фото, путь к фото, путь к изображению, файл фото, медиафайлы,
    видео, ссылка на видео, документ, документы,
    图片, 图像, 照片, 图, 主图, 商品图片, 商品图, 商品主图, 产品图片, 图片链接, 图片地址, 图片路径, 图片文件, 图片网址,
    视频, 视频链接, 视频地址, 文档, 扫描件
    """.replace("\n", " ").split(",")
)
# what may hold them where no column of those names is
FILES = frozenset(
    name.strip()
    for name in """
    file, files, filename, filenames, file name, file path, filepath, path, paths, url, urls, link,
    links, src, uri, файл, файлы, имя файла, путь, пути, путь к файлу, ссылка, ссылки, адрес,
    文件, 文件名, 文件路径, 路径, 链接, 网址, 地址
    """.replace("\n", " ").split(",")
)
# column -> option of the item
OPTIONS: Mapping[str, str] = {
    "prompt": "prompt",
    "task": "task",
    "model": "model",
    "language": "language",
    "lang": "language",
    "seed": "seed",
}
# what stands between several pictures of a cell; a comma or a space may be part of a path
_BETWEEN = re.compile(r"[;\n]|[,\s]+(?=https?://)", re.IGNORECASE)
KINDS_KEPT = 1000  # of rows with other columns, of JSON lines
PAGE = "page"  # the column that says which page of a document is meant


@dataclass(frozen=True, slots=True)
class Head:
    """What the columns are: `names` of all, of those with pictures, of the one with ids ("": none)."""

    pictures: tuple[str, ...]
    id: str
    options: Mapping[str, str]
    page: str

    @classmethod
    def of(
        cls, names: Sequence[str], table: str, wanted: Wanted, embedded: Sequence[str] = ()
    ) -> Head:
        """Raises TableError where no column holds pictures, or the one with ids is not there."""
        own_id = wanted.ids if wanted.ids not in (None, AUTO) else None
        check_there([own_id] if own_id else [], names, table)
        pictures = tuple(name for name in wanted.image_columns if name in names)
        if not pictures:
            check_there(wanted.image_columns, names, table)
        plain = {name: _plain(name) for name in names}
        pictures = pictures or tuple(
            name for name in names if plain[name] in PICTURES or name in embedded
        )
        pictures = pictures or tuple(name for name in names if plain[name] in FILES)
        if not pictures:
            raise TableError(
                f"{quoted(table)} has no column of pictures; it has {', '.join(names) or 'none'}",
                hint="name it with --image-column, or call it image",
            )
        lower = {name.strip().casefold(): name for name in reversed(names)}
        found = own_id or next((lower[one] for one in IDS if one in lower), "")
        options = {lower[one]: key for one, key in OPTIONS.items() if one in lower}
        return cls(pictures, found, options, lower.get(PAGE, ""))


def check_there(wanted: Sequence[str], names: Sequence[str], table: str) -> None:
    """Raises TableError for a column that the table has not."""
    for name in wanted:
        if name not in names:
            raise TableError(
                f"{quoted(table)} has no column {name!r}",
                hint=nearest(name, names) or f"it has {', '.join(names)}",
            )


def is_table(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in READERS


def rows(path: Path, name: str, wanted: Wanted, tell: Tell) -> Iterator[Row | Refused]:
    """The rows of a table. Raises what its reader raises for the whole of it, and TableError for columns
    that are not there.
    """
    heads: dict[tuple[str, ...], Head] = {}
    found = 0
    folder = str(path.parent)
    by_line = path.suffix.lower() in JSON_LINES
    for cells in READERS[path.suffix.lower()](path, name, tell):
        found += 1
        if isinstance(cells.values, QvlError):
            yield Refused(row_name(name, cells.number), cells.values)
            continue
        if cells.request is not None:  # what it shows lies in its body
            yield Row(
                table=name,
                number=cells.number,
                id=str(cells.request["custom_id"]),
                is_given=True,
                sources=(),
                options={"request": cells.request},
            )
            continue
        names = tuple({**cells.values, **cells.pictures})
        try:
            head = heads.get(names)
            if head is None:
                head = Head.of(names, name, wanted, cells.shown_in)
                if not by_line:
                    check_there(wanted.image_columns, names, name)
                    check_names(names_in(wanted.options), names, quoted(name))
                if not heads:
                    tell(f"{quoted(name)}: pictures are taken from {', '.join(head.pictures)}")
                if len(heads) >= KINDS_KEPT:
                    heads.clear()
                heads[names] = head
            row = _row(cells, head, name, folder)
        except QvlError as err:
            if names not in heads and not by_line:  # all rows have these columns
                raise
            yield Refused(row_name(name, cells.number), err)
        else:
            yield from parts(row, wanted)
    if not found:
        tell(f"{quoted(name)} holds no rows")


def _row(cells: Cells, head: Head, table: str, folder: str) -> Row:
    """Raises InvalidParamError for a row without a picture, or with an option that means nothing."""
    values = cells.values
    assert not isinstance(values, QvlError)  # told before
    columns = {key: as_text(value) for key, value in values.items()}
    page = columns.get(head.page, "").strip()
    if page and not re.fullmatch("[1-9][0-9]{0,5}", page):
        raise InvalidParamError(
            f"{row_name(table, cells.number)} has the page {quoted(page)}, which is not a number from 1"
        )
    sources: list[Source] = []
    written: list[str] = []
    for column in head.pictures:
        if column in cells.pictures:
            sources.append(cells.pictures[column])
            continue
        for text in _several(values.get(column), columns.get(column, ""), folder):
            source = located(text, folder)
            written.append(text)
            if page and not source.part and source.where.lower().endswith(".pdf"):
                source = Source(source.where, f"page={page}")
            sources.append(source)
    if not sources:
        raise InvalidParamError(
            f"{row_name(table, cells.number)} has no picture in {', '.join(map(repr, head.pictures))}",
            hint="fill the cell, or take the row out",
        )
    given = columns.get(head.id, "").strip()
    return Row(
        table=table,
        number=cells.number,
        id=storable(given or (written[0] if written else f"row {cells.number}")),
        is_given=bool(given),
        sources=tuple(sources),
        columns=columns,
        options=dict(_options(values, head.options, table, cells.number)),
    )


def _several(value: Any, text: str, folder: str) -> Iterator[str]:
    """The paths and addresses of a cell: of a list, of lines, with ; or, before https://, a comma between."""
    if isinstance(value, list):
        yield from (one.strip() for one in map(as_text, value) if one.strip())
        return
    text = text.strip()
    if ";" in text and os.path.exists(os.path.join(folder, text)):  # a file's name may have one
        yield text
        return
    yield from (one.strip() for one in _BETWEEN.split(text) if one.strip())


def _options(
    values: Mapping[str, Any], columns: Mapping[str, str], table: str, number: int
) -> Iterator[tuple[str, Any]]:
    for column, option in columns.items():
        text = as_text(values.get(column)).strip()
        if not text:
            continue
        if option == "seed":
            if not re.fullmatch("[0-9]{1,19}", text):
                raise InvalidParamError(
                    f"{row_name(table, number)} has the seed {quoted(text)}, which is no number"
                )
            yield option, int(text)
        else:
            yield option, text


def _plain(name: str) -> str:
    """A column's name without case, marks and the number of its picture: Image_2 is image."""
    return " ".join(re.sub(r"[\W_0-9]+", " ", name.casefold()).split())
