"""Which checkpoints reason before they answer, as their templates tell."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from qvl.errors import ConfigError
from qvl.loading.template import opens_reasoning
from qvl.types import Message, Request, Sampling
from qvl.vlm.chat_model import EMBEDDED_FOLDER
from qvl.vlm.local import LocalModel
from tiny import save_tiny

PLAIN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
OPEN = PLAIN.replace("assistant\\n", "assistant\\n<think>\\n")
CLOSED = PLAIN.replace("assistant\\n", "assistant\\n<think>\\n\\n</think>\\n\\n")
HISTORY = "{{ '<think>' ~ message.reasoning_content }}" + PLAIN


@pytest.mark.parametrize(
    ("template", "opens"),
    [
        (PLAIN, False),
        (OPEN, True),
        (CLOSED, False),
        (HISTORY, False),
        ("<think>", False),
        ("", False),
    ],
)
@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"]
)
def test_an_open_mark_after_the_prompt_is_what_counts(
    template: str, opens: bool, name: str, tmp_path: Path
) -> None:
    is_json = name.endswith("json")
    (tmp_path / name).write_text(json.dumps({"chat_template": template}) if is_json else template)
    assert opens_reasoning(tmp_path) is opens


def test_the_first_place_that_has_a_template_counts(tmp_path: Path) -> None:
    assert not opens_reasoning(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": OPEN}))
    (tmp_path / "chat_template.json").write_text(json.dumps({"other": 1}))
    assert opens_reasoning(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(PLAIN)
    assert not opens_reasoning(tmp_path)


HOSTILE = {
    "L046": "{{ cycler.__init__.__globals__.os.popen('touch was-run').read() }}",
    "L047": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "L048": "{{ 'a' * 2000000000 }}",
    "L050 undefined": "{{ messages[0].nothing.more }}",
    "L050 syntax": "{% for %}{{",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_is_text_that_is_never_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompt is made by our own template, so the model says what it says with the published one."""
    monkeypatch.chdir(tmp_path)
    asked = Request(
        messages=(Message.user("hello"),), sampling=Sampling(max_new_tokens=2, temperature=0)
    )
    save_tiny(tmp_path / "plain", "qwen3_vl")
    shutil.copytree(tmp_path / "plain", tmp_path / "hostile")
    (tmp_path / "hostile" / "chat_template.jinja").write_text(HOSTILE[name])
    told = []
    for folder in ("plain", "hostile"):
        model, began_s = LocalModel(folder, dtype="fp32"), time.monotonic()
        told.append((model.prompt_ids(asked), model.generate([asked])[0].text))
        assert time.monotonic() - began_s < 10
        model.close()
    assert told[0] == told[1]
    assert not (tmp_path / "was-run").exists()


def test_the_embedded_model_does_not_reason() -> None:
    assert not opens_reasoning(EMBEDDED_FOLDER)


def test_a_template_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b" " * (2**20 + 1))
    with pytest.raises(ConfigError, match=r"chat_template\.jinja has more than"):
        opens_reasoning(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").write_text("[")
    with pytest.raises(ConfigError, match=r"chat_template\.json"):
        opens_reasoning(tmp_path)
