"""Whether a checkpoint reasons before it answers: its chat template says so, as text, never run."""

from __future__ import annotations

from pathlib import Path

from qvl.errors import ConfigError
from qvl.loading.files import read_json, regular_file

MAX_BYTES = 2**20
JINJA = "chat_template.jinja"


def opens_reasoning(folder: Path) -> bool:
    """True for the Thinking editions: the template ends a prompt with a `<think>` that stays open.

    What counts is the text after the template's last `add_generation_prompt`. A hybrid's
    `<think>\\n\\n</think>`, which it says to skip the reasoning, is closed. A checkpoint without a
    template does not reason. Raises ConfigError for a template that cannot be read.
    """
    _, found, ending = _template(folder).rpartition("add_generation_prompt")
    return bool(found) and ending.rfind("<think>") > ending.rfind("</think>")


def _template(folder: Path) -> str:
    """Of the first of the three places that has one, in the order in which the hub's libraries look."""
    if (folder / JINJA).exists():
        with regular_file(folder, JINJA, error=ConfigError).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{JINJA} has more than {MAX_BYTES} bytes")
        return data.decode(errors="replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).exists():
            values = read_json(folder, name, limit_bytes=MAX_BYTES, error=ConfigError)
            if isinstance(template := values.get("chat_template"), str):
                return template
    return ""
