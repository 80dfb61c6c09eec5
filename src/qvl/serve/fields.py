"""The fields that several routes take: what is asked of the sampling, tools, the form of an answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qvl.errors import InvalidParamError
from qvl.serve.content import Nested
from qvl.serve.errors import Refusal, shown
from qvl.serve.limits import (
    CHOICES,
    DEFAULT_MAX_TOKENS,
    LOGIT_BIASES,
    SCHEMA_BYTES,
    SCHEMA_DEPTH,
    STOP_CHARACTERS,
    STOPS,
    TOKEN_IDS,
    TOOLS,
    TOP_LOGPROBS,
)
from qvl.types import ResponseFormat, Sampling, Tool, ToolCall

# what other servers hand on to templates and processors; here it would do nothing or worse
REFUSED = ("chat_template", "chat_template_kwargs", "mm_processor_kwargs", "media_io_kwargs")
QUIET = ("user",)  # says nothing about the answer
HEADER_NAMES = 20  # of ignored fields
_SAFE_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")
_TOKEN_ID = re.compile(r"[0-9]{1,9}")

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Stop = Annotated[str, Field(min_length=1, max_length=STOP_CHARACTERS)]
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class Body(BaseModel):
    """A whole body; what it holds beyond the known fields is ignored, and named as such."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    model: str | None = None

    def ignored(self) -> list[str]:
        """Names of fields that have no effect. Raises Refusal for those that must not be there."""
        names = list(self.model_extra or {})
        for name in names:
            if name in REFUSED:
                raise Refusal(400, "unsupported_parameter", f"{name} is not allowed", param=name)
        return [name for name in names if name not in QUIET]


class StreamOptions(Nested):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Sampled(Body):
    """What chat and text completions ask of the sampling."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    n: Annotated[int, Field(ge=1, le=CHOICES)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=STOPS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=TOKEN_IDS)] | None = None
    allowed_token_ids: Annotated[list[TokenId], Field(max_length=TOKEN_IDS)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=LOGIT_BIASES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Annotated[int, Field(ge=-100, le=100)] | None = None

    def check_stream(self, ignored: list[str]) -> None:
        """Names in `ignored` what has no effect on an answer in one piece."""
        if self.stream_options and not self.stream:
            ignored.append("stream_options")

    def sampling(self, *, max_tokens: int | None, logprobs: int) -> Sampling:
        """Raises InvalidParamError for what lies outside the ranges of `Sampling`."""
        stop = self.stop
        asked = Sampling(
            max_new_tokens=DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            allowed_token_ids=tuple(self.allowed_token_ids or ()),
            logit_bias=tuple(map(_bias, (self.logit_bias or {}).items())),
            logprobs=logprobs,
        )
        return asked.checked()


def _bias(item: tuple[str, float]) -> tuple[int, float]:
    token_id, bias = item
    if not _TOKEN_ID.fullmatch(token_id):
        raise InvalidParamError(f"logit_bias names {token_id!r:.40}, which is no token id")
    return int(token_id), bias


class Function(Nested):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None  # arguments that are demanded fit their schema in any case


class ChatTool(Nested):
    type: Literal["function"]
    function: Function


Tools = Annotated[list[ChatTool], Field(max_length=TOOLS)]


class NamedFunction(Nested):
    name: ToolName


class NamedTool(Nested):
    type: Literal["function"]
    function: NamedFunction


class CalledFunction(Nested):
    name: ToolName
    arguments: str
    parsed_arguments: object = None  # the same, as `parse` and `stream` of OpenAI's client add it


def tool_of(function: Function) -> Tool:
    parameters = function.parameters or {"type": "object", "properties": {}}
    check_schema(parameters, f"the parameters of {function.name!r}")
    return Tool(function.name, function.description or "", parameters)


def check_choice(choice: str, tools: Sequence[Tool]) -> str:
    """The choice itself. Raises Refusal for a call that is demanded of a tool that is not there."""
    names = [tool.name for tool in tools]
    if choice in ("none", "auto") or choice in names or (choice == "required" and names):
        return choice
    raise Refusal(
        400,
        "invalid_request",
        f"tool_choice demands {shown(choice)}, which is not among the tools",
        param="tool_choice",
    )


def call_of(name: str, arguments: str, place: str) -> ToolCall:
    """Raises Refusal for arguments that are no JSON object."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Refusal(400, "invalid_request", f"{place}.arguments is no JSON object", param=place)
    return ToolCall(name, value)


class JsonSchema(Nested):
    name: str | None = None
    description: str | None = None
    # `schema` is a method of pydantic's models
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None  # it is kept in any case


class TextForm(Nested):
    type: Literal["text"]


class ObjectForm(Nested):
    type: Literal["json_object"]


class SchemaForm(Nested):
    type: Literal["json_schema"]
    json_schema: JsonSchema


Form = Annotated[TextForm | ObjectForm | SchemaForm, Field(discriminator="type")]


class StructuredOutputs(Nested):
    """One form, under vLLM's names, which our own `openai:` door uses, too; a null is not there."""

    choice: Annotated[list[str], Field(min_length=1)] | None = None
    regex: str | None = None
    # `json` is a method of pydantic's models
    json_: Annotated[dict[str, Any] | None, Field(alias="json")] = None
    json_object: bool | None = None


def schema_form(schema: Mapping[str, Any]) -> ResponseFormat:
    check_schema(schema, "the schema")
    return ResponseFormat("json_schema", json.dumps(schema))


def form_of(
    form: Form | None, structured: StructuredOutputs | None = None
) -> ResponseFormat | None:
    """Raises InvalidParamError for one that is too large, Refusal where there is not one alone."""
    asked: list[ResponseFormat] = []
    match form:
        case ObjectForm():
            asked.append(schema_form({"type": "object"}))
        case SchemaForm():
            asked.append(schema_form(form.json_schema.schema_))
    if structured is not None:
        asked += _structured_forms(structured)
        if len(asked) != 1:
            raise Refusal(
                400,
                "invalid_request",
                f"structured_outputs and response_format ask for {len(asked)} forms, not one",
                hint="give structured_outputs one of choice, regex, json, json_object",
                param="structured_outputs",
            )
    return asked[0] if asked else None


def _structured_forms(structured: StructuredOutputs) -> Iterator[ResponseFormat]:
    if structured.choice is not None:
        yield ResponseFormat("choice", _bounded("choice", json.dumps(structured.choice)))
    if structured.regex is not None:
        yield ResponseFormat("regex", _bounded("regex", structured.regex))
    if structured.json_ is not None:
        yield schema_form(structured.json_)
    if structured.json_object:
        yield schema_form({"type": "object"})


def _bounded(kind: str, value: str) -> str:
    if len(value) > SCHEMA_BYTES:
        raise InvalidParamError(
            f"the {kind} has {len(value)} characters, the limit is {SCHEMA_BYTES}"
        )
    return value


def check_schema(schema: Mapping[str, Any], what: str) -> None:
    """Raises InvalidParamError for one that is too long or too deep."""
    size = len(json.dumps(schema).encode())
    if size > SCHEMA_BYTES:
        raise InvalidParamError(f"{what} has {size} bytes, the limit is {SCHEMA_BYTES}")
    layer, depth = [schema], 0
    while layer := [v for node in layer for v in _inner(node)]:
        depth += 1
        if depth >= SCHEMA_DEPTH:
            raise InvalidParamError(f"{what} is nested deeper than {SCHEMA_DEPTH}")


def _inner(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, Mapping) else value
    return [v for v in inner if isinstance(v, Mapping | list)]


def top_logprobs(wanted: bool | None, count: int | None) -> int:  # noqa: FBT001
    """How many of the likeliest tokens the engine has to tell; 0 for none of it.

    Raises InvalidParamError for a count without the switch.
    """
    if count is not None and not 0 <= count <= TOP_LOGPROBS:
        raise InvalidParamError(f"top_logprobs is {count}, outside 0 to {TOP_LOGPROBS}")
    if not wanted:
        if count:
            raise InvalidParamError("top_logprobs needs logprobs to be true")
        return 0
    return max(1, count or 0)


def header_of(ignored: list[str]) -> dict[str, str]:
    """Those names that can stand in a header."""
    names = [name for name in ignored if _SAFE_NAME.fullmatch(name)]
    return {"x-qvl-ignored": ", ".join(names[:HEADER_NAMES])} if names else {}
