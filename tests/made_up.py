"""Items that are finished, as a run of `describe` has them, for the tests of what comes after a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qvl.runs.record import Finished, Item, Outcome, Review, Source

RUSSIAN = "Белая кружка на столе.\nРучка справа, рисунка нет."
CHINESE = "桌上有一个白色的杯子。"


def finished(
    number: int = 0,
    text: str = RUSSIAN,
    *,
    row: str | None = None,
    language: str = "ru",
    columns: Mapping[str, str] | None = None,
    sources: Sequence[Source] | None = None,
    attempt: int = 1,
    review: Review | None = None,
    **out: Any,
) -> Finished:
    name = f"row {number}" if row is None else row
    item = Item(
        id=f"{name}/{language}",
        row=name,
        sources=tuple(sources if sources is not None else [Source(f"/nowhere/{number}.jpg")]),
        columns=columns
        if columns is not None
        else {"sku": f"A-{number:03}", "Название": f"Кружка {number}"},
        options={"language": language},
    )
    answer = {
        "id": item.id,
        "text": text,
        "language": language,
        "boxes": [],
        "points": [],
        "title": "",
        "keywords": [],
        "alt_text": "",
        "flags": [],
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "image_tokens": 64, "cached_tokens": 0, "reasoning_tokens": 0},
        "meta": {"model": "sprout", "confidence": 0.9, "images": [], "videos": []},
        **out,
    }  # fmt: skip
    outcome = Outcome(ordinal=number, id=item.id, ok=True, out=answer, attempt=attempt)
    return Finished(ordinal=number, item=item, outcome=outcome, review=review)


def failed(number: int = 0, message: str = "'a.jpg' is damaged") -> Finished:
    one = finished(number)
    error = {"code": "image_decode", "message": message, "hint": None}
    out = {"id": one.item.id, "error": error}
    outcome = Outcome(ordinal=number, id=one.item.id, ok=False, out=out)
    return Finished(ordinal=number, item=one.item, outcome=outcome)


def waiting(number: int = 0) -> Finished:
    return Finished(ordinal=number, item=finished(number).item, outcome=None)


def review(one: Finished, state: Any = "edited", note: str = "", **fields: str) -> Finished:
    made = Review(id=one.item.id, state=state, fields=fields, note=note, by="an editor")
    return Finished(ordinal=one.ordinal, item=one.item, outcome=one.outcome, review=made)


def many(number: int) -> Iterator[Finished]:
    return (finished(n, f"{RUSSIAN} {n}") for n in range(number))


def picture(path: Path, colour: str = "#d62828", size: tuple[int, int] = (64, 48)) -> Path:
    from PIL import Image

    Image.new("RGB", size, colour).save(path)
    return path


# what a spreadsheet would compute, or take for something else than a text: 40 of them
PAYLOADS = [
    "=1+1", "=cmd|' /C calc'!A0", '=HYPERLINK("http://a.test","x")', "=WEBSERVICE(\"http://a.test\")", "==1",
    "='file:///etc/passwd'#$Sheet1.A1", "=IMPORTXML(CONCAT(\"http://a.test\"),\"//a\")", "={1,2;3,4}", "=A1", "=1/0",
    "+1+1", "+cmd|' /C calc'!A0", "+A1", "-1+1", "-2+3+cmd|' /C calc'!A0", "-A1", "--1", "@SUM(1+1)", "@A1",
    "@=1", "\t=1+1", "\t@SUM(1)", "\ttext", "\r=1+1", "\r\n=1+1", "\n=1+1", "\rtext", " =1+1", "\u00a0=1+1",
    "\u3000@SUM(1)", "＝1+1", "＋1+1", "－1+1", "＠SUM(1)", "﹦1+1", "﹢1", "﹣1", "﹫A1", "'=1+1", "''+1",
]  # fmt: skip
