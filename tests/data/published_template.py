"""The text that a published chat template makes of a conversation, rendered as transformers does."""

from __future__ import annotations

from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment

from qvl.types import Message, Text

PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"


def render_published(
    messages: list[Message], generation: str, *, add_generation_prompt=True
) -> str:
    """A picture is PICTURE, one pad whatever its size."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    source = Path(__file__).with_name(f"{generation}.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        messages=[
            {"role": message.role, "content": [_hub_part(part) for part in message.content]}
            for message in messages
        ],
        add_generation_prompt=add_generation_prompt,
    )


def _hub_part(part):
    return {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": "image"}
