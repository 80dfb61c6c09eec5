"""A local stand-in of the hub: what it serves, what it was asked for, and how it can fail."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

ID = "org/tiny-vl"
NEW, OLD = "b" * 40, "a" * 40


@dataclass
class Hub:
    """What the stand-in serves, and what it was asked for."""

    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)  # id, commit, file
    refs: dict[str, str] = field(default_factory=dict)  # branch or tag -> commit
    cuts: dict[str, int] = field(default_factory=dict)  # file -> its next download ends here
    broken: str | None = None  # this file can be listed but not downloaded
    spoil: bool = False  # large files arrive with another last byte
    status: int | None = None  # answer everything with this
    error_code: str | None = None  # the hub's name of the error
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, range

    def downloads(self, name: str) -> list[str | None]:
        return [
            r for method, path, r in self.asked if method == "GET" and path.endswith(f"/{name}")
        ]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.asked.append((self.command, path, self.headers.get("Range")))
        if hub.status is not None:
            return self.refuse(hub.status, hub.error_code)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self.api(parts[2:])
        if len(parts) == 5 and parts[2] == "resolve":
            return self.file("/".join(parts[:2]), parts[3], parts[4])
        return self.refuse(404, None)

    def refuse(self, status: int, code: str | None) -> None:
        headers = {"X-Error-Code": code} if code else {}
        self.send(status, b"{}", headers)

    def commit(self, repo: str, revision: str) -> str | None:
        commit = self.hub.refs.get(revision, revision)
        return commit if commit in self.hub.repos[repo] else None

    def api(self, parts: list[str]) -> None:
        repo = "/".join(parts[:2])
        if repo not in self.hub.repos:
            return self.refuse(404, "RepoNotFound")
        what, revision = parts[2:4] if len(parts) > 3 else ("revision", "main")
        commit = self.commit(repo, revision)
        if commit is None:
            return self.refuse(404, "RevisionNotFound")
        files = self.hub.repos[repo][commit]
        if what == "tree":
            return self.json([entry(name, data) for name, data in files.items()])
        siblings = [{"rfilename": name} for name in files]
        return self.json({"id": repo, "sha": commit, "siblings": siblings})

    def file(self, repo: str, revision: str, name: str) -> None:
        commit = self.commit(repo, revision)
        data = self.hub.repos[repo][commit or ""].get(name)
        if data is None:
            return self.refuse(404, "EntryNotFound")
        if name == self.hub.broken and self.command == "GET":
            return self.refuse(500, None)
        facts = entry(name, data)
        etag = facts["lfs"]["oid"] if "lfs" in facts else facts["oid"]
        headers = {"X-Repo-Commit": str(commit), "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if "lfs" in facts and self.hub.spoil:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start = int((self.headers.get("Range") or "bytes=0-")[6:].rstrip("-"))
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = self.hub.cuts.pop(name, None) if self.command == "GET" else None
        self.send(206 if start else 200, data[start:], headers, cut)
        return None

    def json(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(
        self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True


def entry(name: str, data: bytes) -> dict[str, Any]:
    """A line of the tree listing; weights are stored under their SHA-256, as large files are."""
    oid = hashlib.sha1(data).hexdigest()
    line: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": oid}
    if name.endswith(".safetensors"):
        sha256 = hashlib.sha256(data).hexdigest()
        line["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 134}
    return line


@contextmanager
def serving(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hub]:
    """The stand-in in place of the hub, with the files under ID, and an empty cache."""
    old = {**files, "README.md": b"# the older card"}
    nested = {"onnx/model.safetensors": b"cannot be fetched here"}
    hub = Hub({ID: {NEW: files | nested, OLD: old}}, {"main": NEW, "v1": OLD})
    handler = type("HandlerOfThisTest", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    huggingface_hub.close_session()
    huggingface_hub.utils.disable_progress_bars()
    yield hub
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()
