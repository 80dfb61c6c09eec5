"""A packed folder == the same model packed while loading; it appears whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from safetensors.torch import load_file, save_file

import tiny
from qvl.errors import (
    InvalidParamError,
    ModelError,
    ModelFormatError,
    OutOfMemoryError,
    StorageError,
    UnsafeCheckpointError,
)
from qvl.kernels import linear
from qvl.kernels.build import library
from qvl.kernels.linear import KINDS, LAYOUT, Int4Linear, PackedName
from qvl.loading import model as loading
from qvl.loading.convert import convert
from qvl.loading.model import load_model, pack
from qvl.loading.packed import MARK, WEIGHTS
from qvl.models.qwen_vl import QwenVL
from qvl.types import Image, Message, Request, Sampling
from qvl.vlm.local import LocalModel

WIDE: dict[str, Any] = {  # so that int4, in groups of 128, is int4
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
}
linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


def save_wide(folder: Path, generation: str, **changes: Any) -> Path:
    out = "hidden_size" if generation == "qwen2_vl" else "out_hidden_size"
    tiny.save_tiny(folder, generation, vision={out: 128}, **WIDE, **changes)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wide(tmp_path_factory.mktemp("source") / "wide", "qwen2_vl")


@pytest.fixture(scope="module")
def good(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One packed folder, to be copied and spoilt."""
    folder = tmp_path_factory.mktemp("good") / "packed"
    convert(source, folder, "int4")
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "packed"))


# ---- the same model ----------------------------------------------------------------------------


def tensors_of(model: QwenVL) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def assert_same(found: QwenVL, expected: QwenVL) -> None:
    assert str(found) == str(expected)  # the same modules at the same places
    ours, theirs = tensors_of(found), tensors_of(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name
        assert not tensor.requires_grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("generation", tiny.GENERATIONS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_converted_model_is_the_one_packed_while_loading(
    kind: PackedName, generation: str, tied: bool, stored: torch.dtype, tmp_path: Path
) -> None:
    if kind == "bf16" and library() is None:
        pytest.skip("bf16 is packed where there is a C compiler")
    source = save_wide(tmp_path / "source", generation, tie_word_embeddings=tied, dtype=stored)
    size_bytes = convert(source, tmp_path / "packed", kind)
    assert size_bytes == (tmp_path / "packed" / WEIGHTS).stat().st_size
    found, expected = load_model(tmp_path / "packed"), load_model(source, dtype=kind)
    assert_same(found.model, expected.model)
    assert not found.model.training
    assert found.dtype == expected.dtype == kind
    assert found.parameters == expected.parameters
    if kind == "int4":
        assert any(isinstance(m, Int4Linear) for m in found.model.modules())


@pytest.mark.parametrize("computed", ["compiled", "plain"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("generation", "tied"), [("qwen2_vl", True), ("qwen3_vl", False)])
def test_it_says_the_same_words(
    computed: str,
    kind: PackedName,
    generation: str,
    tied: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if library() is None:
        pytest.skip("no C compiler here")
    source = save_wide(tmp_path / "source", generation, tie_word_embeddings=tied)
    convert(source, tmp_path / "packed", kind)
    models = LocalModel(str(tmp_path / "packed")), LocalModel(str(source), dtype=kind)
    if computed == "plain":
        monkeypatch.setattr(linear, "library", lambda: None)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    Pillow.fromarray(pixels).save(picture := io.BytesIO(), "PNG")
    message = Message.user(Image(picture.getvalue(), "noise"), "hello")
    sampling = Sampling(max_new_tokens=8, temperature=1.0, seed=5, logprobs=3)
    request = Request(messages=(message,), sampling=sampling)
    found, expected = (model.generate([request])[0] for model in models)
    assert len(expected.token_ids) > 3
    assert found.token_ids == expected.token_ids
    assert found.logprobs == expected.logprobs


def test_a_folder_without_a_compiler_is_read_as_it_is(
    good: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unlike an ordinary checkpoint's, a packed folder's dtype does not hang on the machine."""
    convert(source, tmp_path / "bf16", "bf16")
    monkeypatch.setattr(loading, "library", lambda: None)
    assert load_model(tmp_path / "bf16").dtype == "bf16"
    assert load_model(good).dtype == "int4"


@linux
def test_every_tensor_is_a_view_of_the_file(good: Path) -> None:
    loaded = load_model(good)
    maps = Path("/proc/self/maps").read_text("utf-8").splitlines()
    ranges = [line.split()[0].split("-") for line in maps if line.endswith(str(good / WEIGHTS))]
    assert ranges
    for name, tensor in tensors_of(loaded.model).items():
        at = tensor.data_ptr()
        assert any(int(low, 16) <= at < int(high, 16) for low, high in ranges), name
        assert at % min(64, tensor.nbytes & -tensor.nbytes) == 0, name


def test_the_file_is_a_safetensors_file_like_any_other(good: Path) -> None:
    stored, loaded = load_file(good / WEIGHTS), tensors_of(load_model(good).model)
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(stored[name], loaded[name]) for name in stored)


def test_the_other_files_are_copied_byte_for_byte(source: Path, good: Path) -> None:
    weights = {path.name for path in source.glob("model*")}
    others = {path.name for path in source.iterdir()} - weights
    assert {path.name for path in good.iterdir()} == others | {MARK, WEIGHTS}
    assert others >= {"config.json", "tokenizer.json", "preprocessor_config.json"}
    for name in others:
        assert (good / name).read_bytes() == (source / name).read_bytes()


def test_the_index_of_shards_is_not_copied(tmp_path: Path) -> None:
    tiny.save_tiny(tmp_path / "source", "qwen3_vl", shards=True)
    (tmp_path / "source" / "LICENSE").write_text("as you like")
    convert(tmp_path / "source", tmp_path / "packed", "int8")
    assert not list((tmp_path / "packed").glob("*.index.json"))
    assert (tmp_path / "packed" / "LICENSE").read_text() == "as you like"
    expected = load_model(tmp_path / "source", dtype="int8")
    assert_same(load_model(tmp_path / "packed").model, expected.model)


def test_another_library_finds_no_weights_rather_than_wrong_ones(good: Path) -> None:
    import transformers

    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        transformers.Qwen2VLForConditionalGeneration.from_pretrained(good)


# ---- the layout --------------------------------------------------------------------------------

# of LAYOUT: folders on disk hold it, so what changes a digest takes the next number, and a new one
DIGESTS = {2: "54a703deb9177476"}


def test_a_changed_layout_has_another_number() -> None:
    digest = hashlib.sha256()
    for generation in tiny.GENERATIONS:
        out = "hidden_size" if generation == "qwen2_vl" else "out_hidden_size"
        for kind in KINDS:
            model = QwenVL(tiny.tiny_config(generation, vision={out: 128}, **WIDE))
            model.requires_grad_(False)
            for parameter in model.parameters():  # the same numbers on every machine
                count = torch.arange(parameter.numel(), dtype=torch.int64)
                parameter.copy_(((count * 7919 % 2003 - 1001) / 4096).view(parameter.shape))
            pack(model, kind, ())
            for name, tensor in sorted(tensors_of(model).items()):
                digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    assert digest.hexdigest()[:16] == DIGESTS[LAYOUT]


# ---- what is refused ---------------------------------------------------------------------------


def change_mark(folder: Path, **values: Any) -> None:
    mark = json.loads((folder / MARK).read_text())
    (folder / MARK).write_text(json.dumps({**mark, **values}))


def test_another_layout_says_to_convert_again(folder: Path) -> None:
    change_mark(folder, layout=LAYOUT + 1)
    with pytest.raises(ModelFormatError, match=rf"{MARK}: packed in layout {LAYOUT + 1}") as raised:
        load_model(folder)
    assert "qvl models convert" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "packed in layout None"),
        ('{"layout": true, "kind": "int4"}', "packed in layout True"),
        (f'{{"layout": {LAYOUT}, "kind": "int3"}}', "kind is 'int3', not one of bf16, int8, int4"),
        (f'{{"layout": {LAYOUT}, "kind": ["int4"]}}', r"kind is \['int4'\]"),
        (f'{{"layout": {LAYOUT}, "layout": {LAYOUT}}}', "duplicate key: 'layout'"),
        ("[]", "no JSON object"),
        ("", "not valid JSON"),
        (" " * 70_000, "too large"),
    ],
)
def test_a_damaged_mark_is_named(text: str, words: str, folder: Path) -> None:
    (folder / MARK).write_text(text)
    with pytest.raises(ModelFormatError, match=words) as raised:
        load_model(folder)
    assert MARK in raised.value.message


def test_another_kind_than_the_folders_is_not_read_into_it(folder: Path) -> None:
    """int8 and int4 of one checkpoint differ in types and shapes, whatever qvl.json says."""
    change_mark(folder, kind="int8")
    with pytest.raises(ModelFormatError, match=rf"{WEIGHTS} does not fit .*{MARK}"):
        load_model(folder)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8", "int5"])
def test_another_dtype_is_refused(dtype: Any, good: Path) -> None:
    with pytest.raises(InvalidParamError, match=f"'{dtype}', and .* packed as int4"):
        load_model(good, dtype=dtype)
    assert load_model(good, dtype="int4").dtype == "int4"


def test_a_graphics_card_is_refused(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InvalidParamError, match="packed as int4, which runs on a CPU only"):
        load_model(good, device="cuda")


def test_too_little_memory_is_told_before_anything_is_mapped(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("mapped")

    monkeypatch.setattr(loading, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(loading, "fill", never)
    with pytest.raises(OutOfMemoryError, match=r"GiB in int4, 0\.00 GiB are free"):
        load_model(good)


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    """The folder's tensors in a valid file again, some of them replaced or left out."""
    tensors: dict[str, torch.Tensor | None] = {**load_file(folder / WEIGHTS), **changes}
    save_file({n: t for n, t in tensors.items() if t is not None}, folder / WEIGHTS)


def a_name(folder: Path, part: str) -> str:
    """The first stored name with that part; which layers there are is the packing's affair."""
    return min(name for name in load_file(folder / WEIGHTS) if part in name)


def test_a_missing_and_an_unexpected_tensor_are_named(folder: Path) -> None:
    name = a_name(folder, "layers.0.")
    rewrite(folder, **{name: None, "extra": torch.zeros(2)})
    with pytest.raises(ModelFormatError) as raised:
        load_model(folder)
    assert f"1 missing: {name!r}; 1 unexpected: 'extra'" in raised.value.message
    assert WEIGHTS in raised.value.message


@pytest.mark.parametrize("part", ["panels", "scales", "bias", "embed_tokens", "layernorm"])
def test_a_tensor_of_another_shape_or_type_is_named(part: str, folder: Path) -> None:
    name = a_name(folder, part)
    tensor = load_file(folder / WEIGHTS)[name]
    for other in (tensor.flatten()[:-1].clone(), tensor.to(torch.int64)):
        rewrite(folder, **{name: other})
        with pytest.raises(ModelFormatError, match="1 of another shape or type") as raised:
            load_model(folder)
        assert f"{name} is " in raised.value.message


def test_a_config_of_other_sizes_does_not_fit(folder: Path) -> None:
    config = tiny.config_json(
        "qwen2_vl", vision={"hidden_size": 128}, **{**WIDE, "intermediate_size": 384}
    )
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFormatError, match="of another shape or type"):
        load_model(folder)


@pytest.mark.parametrize("damage", ["cut", "longer", "header cut", "empty", "zeros", "shape"])
def test_a_damaged_file_is_named(damage: str, folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    (folder / WEIGHTS).write_bytes(
        {
            "cut": data[:-1],
            "longer": data + b"\0",
            "header cut": data[: size // 2],
            "empty": b"",
            "zeros": bytes(len(data)),
            "shape": data.replace(b'"shape":[', b'"shape":[-', 1),
        }[damage]
    )
    with pytest.raises(ModelFormatError) as raised:
        load_model(folder)
    assert WEIGHTS in raised.value.message
    assert str(folder) not in raised.value.message


def test_a_missing_file_a_pipe_and_a_link_out_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS).rename(tmp_path / WEIGHTS)
    with pytest.raises(ModelFormatError, match=f"{WEIGHTS} is missing"):
        load_model(folder)
    (folder / WEIGHTS).symlink_to(tmp_path / WEIGHTS)
    with pytest.raises(UnsafeCheckpointError, match=f"{WEIGHTS} is a link that leaves"):
        load_model(folder)
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)
    with pytest.raises(ModelFormatError, match=f"{WEIGHTS} is not a regular file"):
        load_model(folder)


# ---- whole or not at all -----------------------------------------------------------------------


def test_what_is_there_is_never_overwritten(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine").write_text("dear")
    (tmp_path / "file").write_text("dear")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for taken in (target, tmp_path / "file", tmp_path / "link"):
        with pytest.raises(InvalidParamError, match="exists and is not an empty folder"):
            convert(source, taken, "int8")
    assert [path.name for path in target.iterdir()] == ["mine"]
    assert (tmp_path / "file").read_text() == "dear"


def test_an_empty_folder_is_taken(source: Path, good: Path, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    convert(source, tmp_path / "target", "int4")
    assert (tmp_path / "target" / WEIGHTS).read_bytes() == (good / WEIGHTS).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_packed_source_is_refused(good: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="'packed' is packed already"):
        convert(good, tmp_path / "target", "int8")


def test_a_source_that_cannot_be_used_leaves_nothing(source: Path, tmp_path: Path) -> None:
    spoilt = Path(shutil.copytree(source, tmp_path / "spoilt"))
    (spoilt / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        convert(spoilt, tmp_path / "target", "int8")
    assert [path.name for path in tmp_path.iterdir()] == ["spoilt"]


def test_too_small_a_disk_is_told_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StorageError, match=r"takes 0\.00 GiB, 0\.00 GiB are free"):
        convert(source, tmp_path / "target", "int8")
    assert not list(tmp_path.iterdir())


def test_no_folder_for_the_target(source: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is no folder"):
        convert(source, tmp_path / "gone" / "target", "int8")


CONVERT = [sys.executable, "-m", "qvl", "models", "convert", "--quantize", "int8"]
# as a full disk does, in the middle of the weights: no file grows over a megabyte
FULL = """
import resource, sys
from qvl.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
sys.exit(main())
"""


@linux
def test_a_disk_that_fills_up_leaves_nothing(large: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, *CONVERT[3:], str(large), str(tmp_path / "target")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 6, done.stderr
    assert "target' cannot be written: File too large" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    tiny.save_large(folder)
    return folder


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_one_that_is_stopped_leaves_no_target(
    how: signal.Signals, large: Path, tmp_path: Path
) -> None:
    command = [*CONVERT, str(large), str(tmp_path / "target")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        while not any(path.stat().st_size > 1 << 20 for path in tmp_path.glob(f"*/*/{WEIGHTS}")):
            assert process.poll() is None, "it ended before it could be stopped"
            time.sleep(0.001)
        process.send_signal(how)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert not (tmp_path / "target").exists()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert not list(tmp_path.iterdir())
        assert b"Traceback" not in err


def test_a_start_leaves_the_compiler_of_torch_alone(source: Path, tmp_path: Path) -> None:
    """Its import takes longer than all the rest."""
    convert(source, tmp_path / "target", "int8")
    code = (
        "import sys; from pathlib import Path; from qvl.loading.model import load_model;"
        "load_model(Path(sys.argv[1])); print('torch._dynamo' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "target")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


# ---- memory ------------------------------------------------------------------------------------

PEAK = """
import sys
from pathlib import Path
import torch
from qvl.loading.convert import convert
from qvl.loading.model import load_model

if sys.argv[2:]:
    convert(Path(sys.argv[1]), Path(sys.argv[2]), "int8")
else:
    model = load_model(Path(sys.argv[1])).model
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().flatten().view(torch.uint8)[::1024].max()  # every page once
status = Path("/proc/self/status").read_text()
print(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1])
"""


def peak_bytes(*arguments: Path) -> int:
    command = [sys.executable, "-c", PEAK, *map(str, arguments)]
    return 1024 * int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


@linux
def test_converting_takes_a_layer_and_loading_the_file(
    source: Path, large: Path, tmp_path: Path
) -> None:
    """Over what the same takes for a tiny checkpoint."""
    idle = peak_bytes(source, tmp_path / "tiny")
    converting = peak_bytes(large, tmp_path / "large") - idle
    loading = peak_bytes(tmp_path / "large") - peak_bytes(tmp_path / "tiny")
    weights = (tmp_path / "large" / WEIGHTS).stat().st_size
    assert weights > 100e6
    assert converting <= 0.5 * weights  # its MLP is a third of this model
    assert 0.9 * weights <= loading <= 1.15 * weights
