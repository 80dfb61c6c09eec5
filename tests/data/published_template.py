"""The text that a published chat template makes of a conversation, rendered as transformers does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment

from qvl.types import Message, Text, Tool

PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"


def render_published(
    messages: Sequence[Message],
    generation: str,
    *,
    tools: Sequence[Tool] = (),
    thinks: bool = False,
    add_generation_prompt: bool = True,
) -> str:
    """A picture is PICTURE, one pad whatever its size."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    source = Path(__file__).with_name(f"{generation}.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        messages=[_hub_message(message) for message in messages],
        tools=[_hub_tool(tool) for tool in tools],
        thinks=thinks,
        add_generation_prompt=add_generation_prompt,
    )


def _hub_message(message: Message):
    calls = [{"name": call.name, "arguments": call.arguments} for call in message.tool_calls]
    return {
        "role": message.role,
        "content": [_hub_part(part) for part in message.content],
        "reasoning_content": message.reasoning,
        "tool_calls": [{"type": "function", "function": call} for call in calls],
    }


def _hub_part(part):
    return {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": "image"}


def _hub_tool(tool: Tool):
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}
