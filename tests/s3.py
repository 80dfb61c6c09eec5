"""A real S3 server on this machine, for the tests of object stores."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def serving_s3() -> Iterator[str]:
    """Its address. In a process of its own: what it is warned of is no error of ours."""
    running = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    try:
        said = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in running.stderr)
        address = next(found[0] for found in said if found)
        threading.Thread(target=running.stderr.read, daemon=True).start()  # or it fills the pipe
        yield address
    finally:
        running.kill()
        running.wait()
        running.stderr.close()


def put(address: str, path: str, data: bytes) -> None:
    """An object of the bucket "pictures"; the bucket itself where the path is empty."""
    # urllib would call it a form, and the server take a form apart
    kind = {"Content-Type": "image/png"}
    asked = urllib.request.Request(f"{address}/pictures{path}", data, kind, method="PUT")
    urllib.request.urlopen(asked, timeout=30).close()


def environment(address: str) -> dict[str, str]:
    """The variables that name it."""
    return {
        "AWS_ENDPOINT": address,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret-of-somebody",
        "AWS_REGION": "us-east-1",
    }
