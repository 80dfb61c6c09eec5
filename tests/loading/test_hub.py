"""Names become folders: local ones as they are, hub ids through a local stand-in of the hub."""

import json
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

import tiny
from quantised_folders import save_first_quantised
from qvl.errors import (
    ConfigError,
    DownloadError,
    InvalidParamError,
    ModelFormatError,
    OfflineError,
    QvlError,
    StorageError,
    UnknownModelError,
    UnsafeCheckpointError,
)
from qvl.loading import hub
from qvl.loading.hub import fetch_checkpoint
from qvl.loading.model import load_model
from stand_in_hub import ID, NEW, OLD, Handler, Hub, serving


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("published")
    tiny.save_tiny(folder, "qwen3_vl", shards=True)
    (folder / "README.md").write_text("# card")
    (folder / "pytorch_model.bin").write_bytes(b"never fetched")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def served(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hub]:
    with serving(files, tmp_path, monkeypatch) as hub:
        yield hub


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def refuse_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the client at a port on which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def weights(files: dict[str, bytes]) -> list[str]:
    return [name for name in files if name.endswith(".safetensors")]


def test_a_full_download_holds_what_was_published_and_loads(
    served: Hub, files: dict[str, bytes]
) -> None:
    found = fetch_checkpoint(ID)
    assert (found.name, found.revision, found.path.name) == (ID, NEW, NEW)
    got = {path.name: path.read_bytes() for path in found.path.iterdir()}
    assert got == {name: data for name, data in files.items() if name != "pytorch_model.bin"}
    assert not served.downloads("pytorch_model.bin")
    assert [path for _, path, _ in served.asked if f"/{ID}" not in path] == []
    assert load_model(found.path).config.generation == "qwen3_vl"


def test_the_first_int4_comes_with_its_own_vocabulary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_first_quantised(tmp_path / "published")
    files = {path.name: path.read_bytes() for path in (tmp_path / "published").iterdir()}
    assert "tokenizer.json" not in files
    with serving(files, tmp_path, monkeypatch):
        loaded = load_model(fetch_checkpoint(ID).path)
    assert loaded.config.generation == "qwen_vl"
    assert loaded.tokenizer.control["<imgpad>"] == loaded.config.image_token_id


def test_what_is_in_the_cache_is_not_fetched_again(served: Hub, files: dict[str, bytes]) -> None:
    first = fetch_checkpoint(ID)
    served.asked.clear()
    assert fetch_checkpoint(ID) == first
    assert not [path for method, path, _ in served.asked if method == "GET" and "resolve" in path]


def test_a_download_that_is_cut_goes_on_where_it_stopped(
    served: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    name = weights(files)[0]
    served.cuts[name] = 5000
    found = fetch_checkpoint(ID)
    assert (found.path / name).read_bytes() == files[name]
    assert served.downloads(name) == [None, "bytes=5000-"]


def test_files_that_arrived_before_a_failure_are_kept(served: Hub, files: dict[str, bytes]) -> None:
    last = max(weights(files))
    served.broken = last
    with pytest.raises(DownloadError, match="status 500"):
        fetch_checkpoint(ID)
    arrived = {path.name for path in Path(constants.HF_HUB_CACHE).rglob("*/snapshots/*/*")}
    assert "config.json" in arrived
    assert last not in arrived
    served.broken = None
    served.asked.clear()
    found = fetch_checkpoint(ID)
    assert (found.path / last).read_bytes() == files[last]
    assert last in {path.split("/")[-1] for method, path, _ in served.asked if method == "GET"}
    assert not [name for name in arrived if served.downloads(name)]


def test_a_damaged_file_is_an_error_and_is_fetched_again(
    served: Hub, files: dict[str, bytes]
) -> None:
    served.spoil = True
    with pytest.raises(DownloadError, match="arrived damaged"):
        fetch_checkpoint(ID)
    served.spoil = False
    found = fetch_checkpoint(ID)
    for name in weights(files):
        assert (found.path / name).read_bytes() == files[name]


@pytest.mark.parametrize("revision", ["v1", OLD])
def test_a_pinned_revision_is_that_commit(revision: str, served: Hub) -> None:
    found = fetch_checkpoint(ID, revision=revision)
    assert found.revision == OLD
    assert (found.path / "README.md").read_text() == "# the older card"


def test_all_files_come_from_one_commit_though_the_branch_moves(
    served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Handler.file

    def move_then_answer(self: Handler, *args: str) -> None:
        served.refs["main"] = OLD
        original(self, *args)

    monkeypatch.setattr(Handler, "file", move_then_answer)
    found = fetch_checkpoint(ID)
    assert found.revision == NEW
    assert (found.path / "README.md").read_text() == "# card"


# ---- offline -----------------------------------------------------------------------------------


def test_offline_uses_the_cache_without_a_socket(
    served: Hub, request: pytest.FixtureRequest
) -> None:
    first = fetch_checkpoint(ID)
    request.getfixturevalue("no_sockets")
    assert fetch_checkpoint(ID, offline=True) == first
    assert fetch_checkpoint(ID, revision=NEW, offline=True) == first


@pytest.mark.usefixtures("no_sockets")
def test_offline_without_a_copy_says_how_to_get_one(served: Hub) -> None:
    with pytest.raises(OfflineError) as raised:
        fetch_checkpoint(ID, offline=True)
    assert ID in raised.value.message
    assert "with a connection" in str(raised.value.hint)
    assert raised.value.exit_code == 4
    assert not served.asked


@pytest.mark.usefixtures("no_sockets")
def test_the_environment_s_offline_switch_counts(
    served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineError):
        fetch_checkpoint(ID)


def test_offline_does_not_take_a_half_copy(served: Hub, files: dict[str, bytes]) -> None:
    found = fetch_checkpoint(ID)
    (found.path / weights(files)[0]).unlink()
    with pytest.raises(OfflineError):
        fetch_checkpoint(ID, offline=True)


def test_a_hub_out_of_reach_is_a_download_error(
    served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_connections(monkeypatch)
    with pytest.raises(DownloadError) as raised:
        fetch_checkpoint(ID)
    assert "could not be reached" in raised.value.message
    assert "127.0.0.1" not in raised.value.message
    assert (raised.value.exit_code, raised.value.retryable) == (8, True)


def test_a_hub_that_never_answers_is_given_up(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    monkeypatch.setattr(Handler, "answer", lambda self: time.sleep(1))
    with pytest.raises(DownloadError, match="did not answer in time"):
        fetch_checkpoint(ID)


def test_a_whole_copy_serves_when_the_hub_is_out_of_reach(
    served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fetch_checkpoint(ID)
    refuse_connections(monkeypatch)
    assert fetch_checkpoint(ID) == first


def test_a_copy_of_an_older_client_serves_too(
    served: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = fetch_checkpoint(ID)
    listings = first.path.parent.parent / "trees"
    monkeypatch.setattr("huggingface_hub._tree_cache._IN_MEMORY_TREE_CACHE", {})
    shutil.rmtree(listings)  # older clients wrote none
    refuse_connections(monkeypatch)
    assert fetch_checkpoint(ID) == first
    assert "using the copy in the local cache" in caplog.text


# ---- refusals ----------------------------------------------------------------------------------


def test_a_wrong_revision_is_named(served: Hub) -> None:
    with pytest.raises(UnknownModelError, match="no revision 'v9'"):
        fetch_checkpoint(ID, revision="v9")


@pytest.mark.parametrize("revision", ["../../x", "a b", "", "/etc", "a/../b"])
def test_a_revision_that_is_no_name_is_refused(revision: str, served: Hub) -> None:
    with pytest.raises(InvalidParamError, match="no branch, tag or commit"):
        fetch_checkpoint(ID, revision=revision)
    assert not served.asked


def test_an_unknown_repository_names_the_nearest_ones(served: Hub) -> None:
    with pytest.raises(UnknownModelError) as raised:
        fetch_checkpoint("Qwen/Qwen3-VL-5B-Instruct")
    assert "'Qwen/Qwen3-VL-5B-Instruct'" in raised.value.message
    assert "'Qwen/Qwen3-VL-4B-Instruct'" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (403, "GatedRepo", UnknownModelError, "gated"),
        (401, None, UnknownModelError, "refuses access"),
        (403, None, UnknownModelError, "refuses access"),
        (404, "RepoNotFound", UnknownModelError, "no model"),
        (500, None, DownloadError, "failed"),
        (429, None, DownloadError, "failed"),
    ],
)
def test_what_the_hub_answers_becomes_a_plain_error(
    status: int, code: str | None, kind: type[QvlError], words: str, served: Hub
) -> None:
    served.status, served.error_code = status, code
    with pytest.raises(kind) as raised:
        fetch_checkpoint(ID)
    assert type(raised.value) is kind
    assert words in raised.value.message
    assert raised.value.hint
    assert "http" not in raised.value.message


@pytest.mark.parametrize(
    "name", ["nothing", "./nothing", "/nothing", "a/b/c", "org/na me", "", "org/a\0b", "x" * 5000]
)
@pytest.mark.usefixtures("no_sockets")
def test_a_name_that_is_neither_folder_nor_id(
    name: str, served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownModelError, match="ORG/NAME"):
        fetch_checkpoint(name)


def test_a_model_that_cannot_run_is_refused_before_its_weights(
    served: Hub, files: dict[str, bytes]
) -> None:
    for model_type, words in (("qwen", "sees no pictures"), ("llama", "'llama'")):
        served.repos[ID][NEW]["config.json"] = json.dumps({"model_type": model_type}).encode()
        served.refs["main"] = NEW
        with pytest.raises(ModelFormatError, match=words):
            fetch_checkpoint(ID)
        shutil.rmtree(constants.HF_HUB_CACHE)
    quantised = json.loads(files["config.json"]) | {
        "quantization_config": {"quant_method": "bitsandbytes"}
    }
    served.repos[ID][NEW]["config.json"] = json.dumps(quantised).encode()
    with pytest.raises(ConfigError, match="bitsandbytes"):
        fetch_checkpoint(ID)
    assert not [name for name in weights(files) if served.downloads(name)]


def test_a_repository_without_config_or_safetensors_is_refused(served: Hub) -> None:
    for name in weights(served.repos[ID][NEW]):
        del served.repos[ID][NEW][name]
    with pytest.raises(ModelFormatError, match="no safetensors weights"):
        fetch_checkpoint(ID)
    del served.repos[ID][OLD]["config.json"]
    with pytest.raises(ModelFormatError, match=r"no config\.json"):
        fetch_checkpoint(ID, revision=OLD)


def test_too_little_disk_is_found_before_the_download(
    served: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=50_000)
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StorageError) as raised:
        fetch_checkpoint(ID)
    assert "0.00 GiB are free" in raised.value.message
    assert raised.value.exit_code == 6
    assert not [name for name in weights(files) if served.downloads(name)]


def test_a_cache_that_cannot_be_written_is_a_storage_error(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, "snapshot_download", full)
    with pytest.raises(StorageError, match="No space left on device"):
        fetch_checkpoint(ID)


# ---- names -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_sockets")
def test_a_local_folder_is_used_as_it_is(tmp_path: Path) -> None:
    found = fetch_checkpoint(str(tmp_path), offline=True)
    assert (found.path, found.name, found.revision) == (tmp_path, str(tmp_path), None)


def test_a_local_folder_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(InvalidParamError, match="has no revision 'v1'"):
        fetch_checkpoint(str(tmp_path), revision="v1")


def test_a_local_pickle_is_unsafe(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(UnsafeCheckpointError):
        fetch_checkpoint(str(tmp_path / "model.pt"))


def test_the_8b_that_people_type_is_the_7b_with_a_notice(
    served: Hub, files: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    served.repos["Qwen/Qwen2-VL-7B-Instruct"] = {NEW: files}
    found = fetch_checkpoint("Qwen/Qwen2-VL-8B-Instruct")
    assert found.name == "Qwen/Qwen2-VL-7B-Instruct"
    assert "there is no Qwen/Qwen2-VL-8B-Instruct; using Qwen/Qwen2-VL-7B-Instruct" in caplog.text


def test_a_published_name_may_be_short(
    served: Hub, files: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    served.repos["Qwen/Qwen3-VL-4B-Instruct"] = {NEW: files}
    assert fetch_checkpoint("qwen3-vl-4b-instruct").name == "Qwen/Qwen3-VL-4B-Instruct"
    assert "there is no" not in caplog.text
