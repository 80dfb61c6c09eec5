"""Pictures in object stores, asked of a real S3 server on this machine."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image as Pillow

from qvl import fetch
from qvl.batch import check, media, object_store
from qvl.batch.inputs import items
from qvl.batch.row import Refused
from qvl.errors import (
    FetchError,
    InputError,
    InputNotFoundError,
    OfflineError,
    QvlError,
    StorageError,
    UsageError,
)
from qvl.processing.image import read_image
from qvl.runs.record import Item, Source
from qvl.types import Image
from s3 import environment, put, serving_s3

pytest.importorskip("obstore")
pytest.importorskip("moto")


def drawn(colour: str) -> bytes:
    file = io.BytesIO()
    Pillow.new("RGB", (40, 30), colour).save(file, "PNG")
    return file.getvalue()


OBJECTS = {
    "shop/a.png": drawn("red"),
    "shop/sub/b.png": drawn("blue"),
    "shop/notes.txt": b"x",
    "shop/big.png": b"\x89PNG" + b"\0" * (21 << 20),
    "other/c.png": drawn("red"),
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving_s3() as address:
        put(address, "", b"")
        for key, data in OBJECTS.items():
            put(address, f"/{key}", data)
        yield address


@pytest.fixture
def store(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    object_store._store.cache_clear()
    yield "s3://pictures"
    object_store._store.cache_clear()


def test_what_was_written_once_is_not_written_over(store: str) -> None:
    assert object_store.put_new(f"{store}/new/a", b"1")
    assert object_store.put_new(f"{store}/new/a", b"1")  # as when an answer was lost
    assert not object_store.put_new(f"{store}/new/a", b"2")
    assert object_store.read(f"{store}/new/a", 9) == b"1"
    assert object_store.sizes_below(f"{store}/new") == {"a": 1}
    assert object_store.sizes_below(f"{store}/ne") == {}
    with pytest.raises(StorageError, match="could not be written"):
        object_store.put_new("s3://no-such-bucket/a", b"1")


def error(name: str) -> QvlError:
    (bad,) = items([name])
    assert isinstance(bad, Refused)
    return bad.error


def test_what_lies_below_a_prefix_is_items_that_are_read_when_looked_at(store: str) -> None:
    found = [one for one in items([f"{store}/shop/"]) if isinstance(one, Item)]
    assert [one.id for one in found] == ["a.png", "big.png", "sub/b.png"]
    assert found[2].sources == (Source("s3://pictures/shop/sub/b.png"),)
    assert json.dumps(found[2].sources[0].where)
    (image,) = media.seen(found[2])
    assert isinstance(image, Image)
    assert image.name == "s3://pictures/shop/sub/b.png"
    assert tuple(read_image(image).pixels[0, 0]) == (0, 0, 255)


def test_a_whole_bucket_and_one_object_can_be_named(store: str) -> None:
    found = [one.id for one in items([store]) if isinstance(one, Item)]
    assert found == ["other/c.png", "shop/a.png", "shop/big.png", "shop/sub/b.png"]
    (one,) = items([f"{store}/shop/a.png"])
    assert isinstance(one, Item)
    assert one.id == "a.png"


def test_a_list_of_many_pages_is_read_page_by_page(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "LISTED_AT_ONCE", 1)
    assert len(list(items([store]))) == 4


def test_a_table_names_objects(store: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"id,image\n1,{store}/shop/a.png\n")
    (one,) = items([str(tmp_path / "t.csv")])
    assert isinstance(one, Item)
    assert media.seen(one)[0].source == OBJECTS["shop/a.png"]


def test_an_object_that_is_too_large_is_not_read(store: str) -> None:
    with pytest.raises(InputError, match=r"big\.png' has 21\.0 MiB, the limit is 20"):
        media.seen_in(Source(f"{store}/shop/big.png"))
    assert object_store.size_of(f"{store}/shop/big.png") == len(OBJECTS["shop/big.png"])


def test_what_is_not_there_is_told(store: str) -> None:
    with pytest.raises(InputNotFoundError, match="does not exist"):
        media.seen_in(Source(f"{store}/shop/none.png"))
    assert error(f"{store}/nothing/").message == "'s3://pictures/nothing/' holds no pictures"
    assert isinstance(error("s3://no-such-bucket/x/"), InputNotFoundError | FetchError)
    assert "names no bucket" in error("s3:///x.png/").message


def test_a_server_that_does_not_answer_is_told_without_its_address(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(object_store, "RETRIES", {"max_retries": 0})
    with pytest.raises(FetchError) as failed:
        media.seen_in(Source(f"{store}/shop/a.png"))
    assert failed.value.message == "'s3://pictures/shop/a.png' could not be read from its store"
    assert failed.value.retryable


def test_nothing_is_read_offline(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_policy", fetch.Policy(offline=True))
    assert isinstance(error(store), OfflineError)
    with pytest.raises(OfflineError):
        media.seen_in(Source(f"{store}/shop/a.png"))


def test_without_the_package_its_extra_is_named(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    told = error(store)
    assert isinstance(told, UsageError)
    assert told.hint == "pip install 'qvl[storage]'"


def test_a_check_reads_no_object(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "read", None)
    (looked,) = check.looked_at(items([f"{store}/shop/a.png"]))
    assert isinstance(looked, check.Looked)
    assert looked.sizes == (None,)
