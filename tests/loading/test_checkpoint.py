"""Safetensors files: a malformed one is a typed error, a good one is mapped without a copy."""

import json
import os
import pickle
import random
import struct
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from qvl.errors import ModelError, ModelFormatError, QvlError, UnsafeCheckpointError
from qvl.loading.checkpoint import fill, match, open_checkpoint

NAME = "model.safetensors"
INDEX = "model.safetensors.index.json"
F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def raw(header: Any, data: bytes = b"", size: int | None = None) -> bytes:
    """A file of this header (JSON, or its bytes) and data; size replaces the header's own."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def sparse(folder: Path, header: bytes, total: int) -> None:
    with (folder / NAME).open("wb") as file:
        file.write(header)
        file.truncate(total)


ZERO_SIZED = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
MANY = b"{" + b",".join(b'"%x":%s' % (i, ZERO_SIZED) for i in range(100_001)) + b"}"

BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "header too small"),
    "seven bytes": (b"\0" * 7, "header too small"),
    "header of 0 bytes": (b"\0" * 8, "invalid header"),
    "header of 2^63 bytes": (struct.pack("<Q", 2**63), "header too large"),
    "header over the limit": (raw(b"", b"x" * 64, size=16 * 2**20 + 1), "header too large"),
    "header past the end": (raw(b"{}", size=100), "truncated"),
    "a zip": (b"PK\x03\x04\x14\0\x08\x08" + b"\0" * 64, "header too large"),
    "a pickle": (pickle.dumps({"weight": [1.0] * 30}), "header too large"),
    "header is a list": (raw([]), "no JSON object"),
    "header is no JSON": (raw(b"{nope}"), "not valid JSON"),
    "header is no UTF-8": (raw(b'{"\xff\xfe": 1}'), "not valid JSON in UTF-8"),
    "header with NaN": (raw(b'{"a": NaN}'), "NaN"),
    "header nested deep": (raw(b'{"a":' * 3000 + b"1" + b"}" * 3000), "nested deeper"),
    "tensor is a number": (raw({"a": 1}), "'a' is not described"),
    "tensor without a shape": (raw({"a": {"dtype": "F32"}}), "'a' is not described"),
    "unknown dtype": (raw({"a": entry("F31", [2], 0, 8)}, b"\0" * 8), "unknown dtype 'F31'"),
    "dtype is a list": (raw({"a": {**F32, "dtype": []}}, b"\0" * 8), "unknown dtype []"),
    "negative shape": (raw({"a": entry("F32", [-2], 0, 8)}, b"\0" * 8), "shape [-2]"),
    "fractional shape": (raw({"a": {**F32, "shape": [2.0]}}, b"\0" * 8), "shape [2.0]"),
    "true in a shape": (raw({"a": {**F32, "shape": [True]}}, b"\0" * 4), "shape [True]"),
    "shape overflows": (raw({"a": entry("U8", [2**32] * 2, 0, 4)}, b"\0" * 4), "overflow"),
    "shape of 1000 axes": (raw({"a": entry("U8", [2] * 1000, 0, 4)}, b"\0" * 4), "impossible"),
    "shape too big for its bytes": (raw({"a": entry("F32", [3], 0, 8)}, b"\0" * 8), "needs 12"),
    "offsets backwards": (raw({"a": entry("F32", [2], 8, 0)}, b"\0" * 8), "data_offsets [8, 0]"),
    "three offsets": (raw({"a": {**F32, "data_offsets": [0, 8, 8]}}, b"\0" * 8), "data_offsets"),
    "two tensors share bytes": (raw({"a": F32, "b": F32}, b"\0" * 8), "overlap"),
    "hole at the start": (raw({"a": entry("F32", [2], 4, 12)}, b"\0" * 12), "hole"),
    "data cut": (raw({"a": F32}, b"\0" * 7), "holds 7 bytes of data, its header describes 8"),
    "data too long": (raw({"a": F32}, b"\0" * 9), "holds 9 bytes of data"),
    "same name twice": (
        raw(b'{"a":%s,"a":%s}' % ((json.dumps(F32).encode(),) * 2), b"\0" * 8),
        "duplicate key: 'a'",
    ),
    "metadata is a list": (raw({"__metadata__": []}), "__metadata__"),
    "metadata holds a number": (raw({"__metadata__": {"a": 1}}), "__metadata__"),
    "100,001 tensors": (raw(MANY), "100001 tensors, limit 100000"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_malformed_file_is_an_error_that_names_it(case: str, tmp_path: Path) -> None:
    data, words = BAD_FILES[case]
    (tmp_path / NAME).write_bytes(data)
    with pytest.raises(ModelFormatError) as raised:
        open_checkpoint(tmp_path)
    assert words in raised.value.message
    assert NAME in raised.value.message
    assert str(tmp_path) not in raised.value.message


def test_a_header_of_67_mb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    sparse(tmp_path, struct.pack("<Q", 67_000_000), 67_000_008)
    start = time.monotonic()
    with pytest.raises(ModelFormatError, match="header too large"):
        open_checkpoint(tmp_path)
    assert time.monotonic() - start < 0.5


def test_a_fifo_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / NAME)
    with pytest.raises(ModelFormatError, match=rf"{NAME} is not a regular file"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("target", ["/dev/zero", "/proc"])
def test_a_link_to_a_device_or_a_folder_is_not_a_regular_file(target: str, tmp_path: Path) -> None:
    (tmp_path / NAME).symlink_to(target)
    with pytest.raises(ModelFormatError, match="not a regular file"):
        open_checkpoint(tmp_path)


def test_a_link_out_of_the_folder_is_unsafe(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "other").write_bytes(raw({"a": F32}, b"\0" * 8))
    (folder / NAME).symlink_to("../other")
    with pytest.raises(UnsafeCheckpointError, match="leaves the model folder"):
        open_checkpoint(folder)


def test_links_inside_the_folder_and_into_the_hub_cache_are_followed(tmp_path: Path) -> None:
    data = raw({"a": F32}, b"\0" * 8)
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "real").write_bytes(data)
    (inside / NAME).symlink_to("real")
    assert open_checkpoint(inside).tensors.keys() == {"a"}

    repo = tmp_path / "hub" / "models--org--name"
    snapshot = repo / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "blobs" / "123").write_bytes(data)
    (snapshot / NAME).symlink_to("../../blobs/123")
    assert open_checkpoint(snapshot).tensors.keys() == {"a"}

    (repo / "refs").write_bytes(data)
    (snapshot / NAME).unlink()
    (snapshot / NAME).symlink_to("../../refs")
    with pytest.raises(UnsafeCheckpointError):
        open_checkpoint(snapshot)


def test_links_that_lead_nowhere_are_missing_files(tmp_path: Path) -> None:
    (tmp_path / NAME).symlink_to("gone")
    with pytest.raises(ModelFormatError, match=f"{NAME} is missing"):
        open_checkpoint(tmp_path)
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).symlink_to(NAME)
    with pytest.raises(ModelFormatError, match=NAME):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin", "state.pt", "x.pth"])
def test_pickles_are_refused_unread(name: str, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "marker",)

    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UnsafeCheckpointError) as raised:
        open_checkpoint(tmp_path)
    assert name in raised.value.message
    assert "safetensors" in str(raised.value.hint)
    assert not (tmp_path / "marker").exists()


def test_a_pickle_beside_safetensors_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"whatever")
    (tmp_path / NAME).write_bytes(raw({"a": F32}, b"\0" * 8))
    assert open_checkpoint(tmp_path).tensors.keys() == {"a"}


def test_a_folder_without_weights_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=f"no {NAME} and no {INDEX}"):
        open_checkpoint(tmp_path)


# ---- the index ---------------------------------------------------------------------------------


def sharded(folder: Path, weight_map: Any) -> Path:
    (folder / "one.safetensors").write_bytes(raw({"a": F32}, b"\0" * 8))
    (folder / "two.safetensors").write_bytes(raw({"b": F32}, b"\0" * 8))
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_an_index_joins_its_shards(tmp_path: Path) -> None:
    folder = sharded(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    assert {n: t.shard for n, t in open_checkpoint(folder).tensors.items()} == {
        "a": "one.safetensors",
        "b": "two.safetensors",
    }


@pytest.mark.parametrize(
    ("weight_map", "kind", "words"),
    [
        ({"a": "../../etc/passwd"}, UnsafeCheckpointError, "leaves the model folder"),
        ({"a": "/etc/passwd"}, UnsafeCheckpointError, "leaves the model folder"),
        ({"a": ".."}, UnsafeCheckpointError, "leaves the model folder"),
        ({"a": "sub/one.safetensors"}, UnsafeCheckpointError, "leaves the model folder"),
        ({"a": "..\\one.safetensors"}, UnsafeCheckpointError, "leaves the model folder"),
        ({"a": "one.safetensors\0"}, ModelFormatError, "'one.safetensors\\x00'"),
        ({"a": "one.bin"}, UnsafeCheckpointError, "one.bin is a pickle"),
        ({"a": "one.txt"}, ModelFormatError, "'one.txt'"),
        ({"a": 1}, ModelFormatError, "'a' is in 1"),
        ({"a": "x" * 5000 + ".safetensors"}, ModelFormatError, "cannot be opened"),
        ({"a": "three.safetensors"}, ModelFormatError, "three.safetensors is missing"),
        ({}, ModelFormatError, "weight_map"),
        ([], ModelFormatError, "weight_map"),
        (
            {"a": "one.safetensors", "c": "one.safetensors"},
            ModelFormatError,
            "1 listed but not in the file: 'c'",
        ),
        (
            {"b": "one.safetensors"},
            ModelFormatError,
            "1 in the file but not listed: 'a'",
        ),
    ],
)
def test_a_bad_index_is_an_error(
    weight_map: Any, kind: type[QvlError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(kind) as raised:
        open_checkpoint(sharded(tmp_path, weight_map))
    assert words in raised.value.message


def test_a_shard_that_is_damaged_is_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    (folder / "two.safetensors").write_bytes(raw({"b": F32}, b"\0" * 4))
    with pytest.raises(ModelFormatError, match=r"two\.safetensors holds 4 bytes"):
        open_checkpoint(folder)


# ---- against the model -------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device="meta")))


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in module.named_parameters()}


def load(module: nn.Module, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    checkpoint = open_checkpoint(folder)
    stored = match(checkpoint, shapes_of(module), "qwen3_vl")
    fill(module, stored, checkpoint, dtype=dtype, device=torch.device("cpu"))


def test_one_error_lists_all_that_does_not_fit(tmp_path: Path) -> None:
    wanted = {
        "good": (2,),
        "wide": (3, 4),
        "whole": (2,),
        **{f"gone{i:02}": (1,) for i in range(12)},
    }
    stored = {
        "good": torch.zeros(2),
        "wide": torch.zeros(4, 3),
        "whole": torch.zeros(2, dtype=torch.int32),
        "../../x": torch.zeros(1),
        "line\nbreak\0": torch.zeros(1),
    }
    save_file(stored, tmp_path / NAME)
    with pytest.raises(ModelFormatError) as raised:
        match(open_checkpoint(tmp_path), wanted, "qwen3_vl")
    message = raised.value.message
    assert "12 missing: 'gone00', 'gone01'" in message
    assert "'gone09' and 2 more" in message
    assert "gone10" not in message
    assert "2 unexpected: '../../x', 'line\\nbreak\\x00'" in message
    assert "1 of another shape: 'wide is [4, 3], config.json asks for [3, 4]'" in message
    assert "1 of another dtype: 'whole is I32, not F32, BF16 or F16'" in message
    assert "\n" not in message


def test_two_names_of_one_parameter_are_refused(tmp_path: Path) -> None:
    name = "model.language_model.norm.weight"
    save_file({name: torch.zeros(2), "model.norm.weight": torch.ones(2)}, tmp_path / NAME)
    with pytest.raises(ModelFormatError, match="1 stored twice"):
        match(open_checkpoint(tmp_path), {name: (2,)}, "qwen3_vl")


def test_parameters_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    save_file({"a": torch.randn(64, 1024), "b": torch.randn(3)}, tmp_path / NAME)
    module = Small(a=(64, 1024), b=(3,))
    load(module, tmp_path)
    maps = [
        [int(x, 16) for x in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(tmp_path / NAME))
    ]
    for parameter in module.parameters():
        assert any(start <= parameter.data_ptr() < end for start, end in maps)
        assert not parameter.requires_grad


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_double_in_the_stored_dtype(tmp_path: Path) -> None:
    def anonymous_kib() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    save_file({"a": torch.ones(48, 2**18)}, tmp_path / NAME)  # 48 MiB
    module = Small(a=(48, 2**18))
    before = anonymous_kib()
    load(module, tmp_path)
    assert module.get_parameter("a").sum().item() == 48 * 2**18
    assert anonymous_kib() - before < 8 * 1024


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_values_are_converted_as_torch_converts(
    stored: torch.dtype, wanted: torch.dtype, tmp_path: Path
) -> None:
    values = torch.randn(5, 7).to(stored)
    save_file({"a": values}, tmp_path / NAME)
    module = Small(a=(5, 7))
    load(module, tmp_path, wanted)
    assert module.get_parameter("a").dtype == wanted
    assert torch.equal(module.get_parameter("a"), values.to(wanted))


def test_a_tensor_at_an_odd_address_is_read_right(tmp_path: Path) -> None:
    values = torch.randn(2)
    header = json.dumps({"a": F32}).encode()
    header += b" " * ((3 - len(header)) % 8)
    (tmp_path / NAME).write_bytes(raw(header, values.numpy().tobytes()))
    module = Small(a=(2,))
    load(module, tmp_path)
    assert torch.equal(module.get_parameter("a"), values)
    assert module.get_parameter("a").data_ptr() % 4 == 0


def test_a_file_that_shrinks_after_its_check_is_not_mapped(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1000)}, tmp_path / NAME)
    module = Small(a=(1000,))
    checkpoint = open_checkpoint(tmp_path)
    stored = match(checkpoint, shapes_of(module), "qwen3_vl")
    os.truncate(tmp_path / NAME, 2000)
    with pytest.raises(ModelFormatError, match="changed while it was being read"):
        fill(module, stored, checkpoint, dtype=torch.float32, device=torch.device("cpu"))


def test_the_main_dtype_is_the_one_of_most_bytes(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(100, dtype=torch.bfloat16), "b": torch.zeros(9)}
    save_file(tensors, tmp_path / NAME)
    assert open_checkpoint(tmp_path).main_dtype == "BF16"


# ---- random damage -----------------------------------------------------------------------------


def mutated(data: bytes, draw: random.Random) -> bytes:
    """The file with one piece of damage, mostly in its size field and header."""
    kind = draw.randrange(6)
    header_end = 8 + int.from_bytes(data[:8], "little")
    spot = draw.randrange(header_end)
    if kind == 0:
        return data[: draw.randrange(len(data))]
    if kind == 1:
        return data + bytes(draw.randrange(1, 20))
    if kind == 2:  # one bit
        return data[:spot] + bytes([data[spot] ^ 1 << draw.randrange(8)]) + data[spot + 1 :]
    if kind == 3:  # another digit
        digits = [i for i in range(8, header_end) if data[i : i + 1].isdigit()]
        spot = draw.choice(digits)
        return data[:spot] + str(draw.randrange(10)).encode() + data[spot + 1 :]
    if kind == 4:  # a piece doubled
        end = min(header_end, spot + draw.randrange(1, 40))
        return data[:end] + data[spot:end] + data[end:]
    piece = draw.choice((b"-1", b"1e9", b"[]", b"{}", b"null", b'"', b"\xff", b"9" * 30))
    end = min(header_end, spot + len(piece))
    return data[:spot] + piece[: end - spot] + data[end:]


def test_random_damage_never_gives_anything_but_an_error_or_a_load(tmp_path: Path) -> None:
    save_file(
        {"a": torch.ones(2, 3), "b": torch.ones(5, dtype=torch.bfloat16), "c": torch.ones(1)},
        tmp_path / NAME,
        metadata={"format": "pt"},
    )
    good = (tmp_path / NAME).read_bytes()
    seed = int(os.environ.get("QVL_SEED", "1"))
    loads = 0
    for i in range(500):
        draw = random.Random(seed * 1000 + i)
        (tmp_path / NAME).unlink()
        (tmp_path / NAME).write_bytes(mutated(good, draw))
        module = Small(a=(2, 3), b=(5,), c=(1,))
        try:
            load(module, tmp_path)
        except ModelError:
            continue
        loads += 1
        assert shapes_of(module) == {"a": (2, 3), "b": (5,), "c": (1,)}, i
        assert all(bool(p.isfinite().all()) for p in module.parameters()), i
    assert 0 < loads < 100  # a changed byte in the metadata does no harm
