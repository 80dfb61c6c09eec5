"""What is asked in a run, of which model: all that its answers depend on beside its items.

It is kept in run.json, so that a run goes on with exactly that, and with nothing else.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qvl
from qvl.batch.asked import Asked
from qvl.batch.guards import Guards
from qvl.batch.profiles import load
from qvl.tasks.prompts import own, tasks_with_prompts, version
from qvl.types import DType
from qvl.vlm.chat_model import REMOTE, ModelInfo
from qvl.vlm.local import model_folder

READ_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.tiktoken")  # of a checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """`revision`, `adapter` and `dtype` as on the command line; `device` may differ when it goes on."""

    asked: Asked
    model: str
    revision: str | None = None
    adapter: str = ""
    dtype: DType = "auto"
    device: str = "auto"

    def identity(self, info: ModelInfo) -> dict[str, Any]:
        """What must be the same when the run goes on; `info` is of the opened model."""
        return {
            "task": self.asked.task,
            "options": self.asked.options,
            "seed": self.asked.seed,
            "rules": rules(self.asked.guards),
            "wordings": wordings(self.asked.task),
            "model": {
                "name": self.model,
                "revision": info.revision,
                "files": files_of(self.model, info.revision),
                "generation": info.generation,
                "dtype": info.dtype,
            },
            "adapter": {"name": self.adapter, "files": files_in(adapter_folder(self.adapter))},
        }

    def environment(self, info: ModelInfo) -> dict[str, Any]:
        """Where it was done: told, and not held against it."""
        return {
            "qvl": qvl.__version__,
            "python": platform.python_version(),
            "device": info.device,
            "machine": platform.machine(),
        }

    @classmethod
    def of(cls, identity: Mapping[str, Any], *, device: str = "auto") -> Job:
        """The job that a run was begun with."""
        model, said = identity["model"], identity["rules"]
        return cls(
            asked=Asked(
                task=identity["task"],
                options=identity["options"],
                seed=identity["seed"],
                guards=Guards(forbidden=tuple(said["forbidden"]), profile=said["profile"]["name"]),
            ),
            model=model["name"],
            revision=model["revision"],
            adapter=identity["adapter"]["name"],
            dtype="auto" if model["name"].startswith(REMOTE) else model["dtype"],
            device=device,
        )


def rules(guards: Guards) -> dict[str, Any]:
    """The words and the profile that answers are held against; a profile with all that it says."""
    said = load(guards.profile).model_dump(mode="json") if guards.profile else {}
    return {"forbidden": list(guards.forbidden), "profile": {"name": guards.profile, "says": said}}


def wordings(task: str) -> dict[str, Any]:
    """Which words are said for a task, and for its guards."""
    known = [name for name in (task, "guards") if name in tasks_with_prompts()]
    return {name: {"version": version(name), "own": own(name)} for name in known}


def files_of(model: str, revision: str | None) -> dict[str, str]:
    """SHA-256 by name of the files of a model on this machine; none where a commit says it all."""
    if model.startswith(REMOTE) or revision is not None:
        return {}
    return files_in(model_folder(model, revision=None, offline=True).path)


def files_in(folder: Path | None) -> dict[str, str]:
    if folder is None:
        return {}
    digests = {}
    for path in sorted({path for pattern in READ_FILES for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def adapter_folder(adapter: str) -> Path | None:
    """Of FOLDER or NAME=FOLDER; None of ""."""
    if not adapter:
        return None
    whole = Path(adapter).expanduser()
    return whole if whole.is_dir() else Path(adapter.partition("=")[2]).expanduser()
