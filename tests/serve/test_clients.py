"""Clients that others wrote, each over our server: a picture, a stream, a tool that is called and answers.

`make test-clients` installs those that the tests do without otherwise. A further client is one more
case: a class with what `Client` has.
"""

from __future__ import annotations

import base64
import gc
import json
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import openai
import pytest

from qvl.types import Completion, Image, Message, Request, Sampling, ToolCall
from qvl.vlm.local import LocalModel
from scripted import Scripted, completion, text_of
from served import data_url, running

pytestmark = [
    # litellm reads parts of itself while it is used
    pytest.mark.filterwarnings("ignore:Items? '.* `ReadOnly` qualifier:UserWarning"),
    # not every one of them offers a way to close it
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

KEY = "none"
ASKED = "Describe the picture."
SHORT = 24  # tokens
PNG = sorted((Path(__file__).parents[2] / "examples" / "pictures").glob("*.png"))[0].read_bytes()

Weather = Callable[..., str]  # of a city


class Client(Protocol):
    """How a program asks with one of them, as its own documents show it."""

    def __init__(self, url: str) -> None: ...

    def answer(self, picture: bytes, words: str) -> str: ...

    def pieces(self, picture: bytes, words: str) -> list[str]: ...

    def told_with_tool(self, words: str, weather: Weather, *, streamed: bool) -> str:
        """The last answer, after the tool was called and its result sent."""
        ...


class Completions:
    """What answers with chat completions, as OpenAI's own client names their parts."""

    def completed(self, messages: list[Any], **fields: Any) -> Any: ...

    def with_tool(self, messages: list[Any], *, streamed: bool) -> Any:
        """The completion, put together again where it is streamed."""

    def answer(self, picture: bytes, words: str) -> str:
        return self._asked(picture, words).choices[0].message.content

    def pieces(self, picture: bytes, words: str) -> list[str]:
        chunks = self._asked(picture, words, stream=True)
        return [chunk.choices[0].delta.content or "" for chunk in chunks]

    def told_with_tool(self, words: str, weather: Weather, *, streamed: bool) -> str:
        messages: list[Any] = [{"role": "user", "content": words}]
        first = self.with_tool(messages, streamed=streamed).choices[0].message
        (call,) = first.tool_calls
        found = weather(**json.loads(call.function.arguments))
        messages += [first, {"role": "tool", "tool_call_id": call.id, "content": found}]
        return self.with_tool(messages, streamed=streamed).choices[0].message.content

    def _asked(self, picture: bytes, words: str, **more: Any) -> Any:
        return self.completed(shown(picture, words), temperature=0, **more)


class OpenAI(Completions):
    def __init__(self, url: str) -> None:
        self._chats: Any = openai.OpenAI(base_url=url, api_key=KEY).chat.completions

    def completed(self, messages: list[Any], **fields: Any) -> Any:
        return self._chats.create(
            model="sprout", messages=messages, max_completion_tokens=SHORT, **fields
        )

    def with_tool(self, messages: list[Any], *, streamed: bool) -> Any:
        fields: dict[str, Any] = {"model": "sprout", "messages": messages, "tools": [WEATHER]}
        if not streamed:
            return self._chats.create(**fields)
        with self._chats.stream(**fields) as stream:
            return stream.get_final_completion()


class OpenAIResponses:
    """The same client over the newer route."""

    def __init__(self, url: str) -> None:
        self._responses: Any = openai.OpenAI(base_url=url, api_key=KEY).responses

    def answer(self, picture: bytes, words: str) -> str:
        return self._asked(picture, words).output_text

    def pieces(self, picture: bytes, words: str) -> list[str]:
        events = self._asked(picture, words, stream=True)
        return [event.delta for event in events if event.type == "response.output_text.delta"]

    def told_with_tool(self, words: str, weather: Weather, *, streamed: bool) -> str:
        items: list[Any] = [{"role": "user", "content": words}]
        tool = {"type": "function", **WEATHER["function"]}

        def said() -> Any:
            fields: dict[str, Any] = {"model": "sprout", "input": items, "tools": [tool]}
            if not streamed:
                return self._responses.create(**fields)
            with self._responses.stream(**fields) as stream:
                return stream.get_final_response()

        output = said().output
        (call,) = [item for item in output if item.type == "function_call"]
        found = weather(**json.loads(call.arguments))
        result = {"type": "function_call_output", "call_id": call.call_id, "output": found}
        items += [*output, result]
        return said().output_text

    def _asked(self, picture: bytes, words: str, **more: Any) -> Any:
        shown = {"type": "input_image", "image_url": data_url(picture), "detail": "auto"}
        content = [shown, {"type": "input_text", "text": words}]
        return self._responses.create(
            model="sprout",
            input=[{"role": "user", "content": content}],
            temperature=0,
            max_output_tokens=SHORT,
            **more,
        )


class Llm:
    """Simon Willison's `llm`, which knows our server by its file of other OpenAI models."""

    def __init__(self, url: str) -> None:
        self._llm = missing_or("llm")
        fields = {
            "model_id": "ours",
            "model_name": "sprout",
            "api_base": url,
            "vision": True,
            "supports_tools": True,
            "supports_schema": True,
        }
        (self._llm.user_dir() / "extra-openai-models.yaml").write_text(json.dumps([fields]))
        self._model = self._llm.get_model("ours")

    def answer(self, picture: bytes, words: str) -> str:
        return self._asked(picture, words, stream=False).text()

    def pieces(self, picture: bytes, words: str) -> list[str]:
        return list(self._asked(picture, words, stream=True))

    def told_with_tool(self, words: str, weather: Weather, *, streamed: bool) -> str:
        *_, last = self._model.chain(words, tools=[weather], key=KEY, stream=streamed).responses()
        return last.text()

    def _asked(self, picture: bytes, words: str, *, stream: bool) -> Any:
        attachments = [self._llm.Attachment(content=picture, type="image/png")]
        options = {"temperature": 0, "max_tokens": SHORT}
        return self._model.prompt(words, attachments=attachments, stream=stream, key=KEY, **options)


class LangChain:
    def __init__(self, url: str) -> None:
        made = missing_or("langchain_openai")
        self._messages = missing_or("langchain_core.messages")
        self._tool = missing_or("langchain_core.tools").tool
        self._chat = made.ChatOpenAI(
            model="sprout", base_url=url, api_key=KEY, temperature=0, max_tokens=SHORT
        )

    def answer(self, picture: bytes, words: str) -> str:
        return self._chat.invoke(self._shown(picture, words)).content

    def pieces(self, picture: bytes, words: str) -> list[str]:
        return [chunk.content for chunk in self._chat.stream(self._shown(picture, words))]

    def told_with_tool(self, words: str, weather: Weather, *, streamed: bool) -> str:
        tool = self._tool(weather)
        chat = self._chat.bind_tools([tool])
        messages = [self._messages.HumanMessage(words)]

        def said() -> Any:
            if not streamed:
                return chat.invoke(messages)
            first, *rest = chat.stream(messages)
            return sum(rest, first)

        called = said()
        messages += [called, *[tool.invoke(call) for call in called.tool_calls]]
        return said().content

    def _shown(self, picture: bytes, words: str) -> list[Any]:
        block = {
            "type": "image",
            "base64": base64.b64encode(picture).decode(),
            "mime_type": "image/png",
        }
        return [self._messages.HumanMessage([block, {"type": "text", "text": words}])]


class LiteLlm(Completions):
    def __init__(self, url: str) -> None:
        self._litellm = missing_or("litellm")
        self._fields = {"model": "openai/sprout", "api_base": url, "api_key": KEY}

    def completed(self, messages: list[Any], **fields: Any) -> Any:
        return self._litellm.completion(
            **self._fields, messages=messages, max_tokens=SHORT, **fields
        )

    def with_tool(self, messages: list[Any], *, streamed: bool) -> Any:
        answer = self._litellm.completion(
            **self._fields, messages=messages, tools=[WEATHER], stream=streamed
        )
        if not streamed:
            return answer
        return self._litellm.stream_chunk_builder(list(answer), messages=messages)


CLIENTS: list[type[Client]] = [OpenAI, OpenAIResponses, Llm, LangChain, LiteLlm]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


def missing_or(module: str) -> Any:
    """A module without a type that we could name; what it warns of while it is read is its makers' matter."""
    with warnings.catch_warnings(action="ignore"):
        return pytest.importorskip(
            module, reason=f"{module} is not installed: `make test-clients` does it"
        )


def shown(picture: bytes, words: str) -> list[Any]:
    part = {"type": "image_url", "image_url": {"url": data_url(picture)}}
    return [{"role": "user", "content": [part, {"type": "text", "text": words}]}]


@pytest.fixture(scope="module", autouse=True)
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Hosts that a client wanted to reach beside our server: it must not, and may not."""
    asked: list[str] = []
    look_up = socket.getaddrinfo

    def refuse(host: Any, *args: Any, **more: Any) -> Any:
        if str(host) in ("127.0.0.1", "localhost"):
            return look_up(host, *args, **more)
        asked.append(str(host))
        raise socket.gaierror(f"a client asks for {host}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_USER_PATH", str(tmp_path_factory.mktemp("llm")))
        patch.setenv("LLM_LOAD_PLUGINS", "")
        # litellm fetches its table of prices and other lists when it is imported
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        patch.setenv("LITELLM_OFFLINE_MODE", "true")
        patch.setenv("LANGSMITH_TRACING", "false")
        patch.setattr(socket, "getaddrinfo", refuse)
        yield asked
    gc.collect()  # of what was left open, while nobody minds


@pytest.fixture(scope="module")
def model() -> Iterator[LocalModel]:
    made = LocalModel()
    yield made
    made.close()


@pytest.fixture(scope="module", params=CLIENTS, ids=lambda made: made.__name__)
def make(request: pytest.FixtureRequest) -> type[Client]:
    return request.param


@pytest.fixture(scope="module")
def client(make: type[Client], model: LocalModel) -> Iterator[Client]:
    with running(model) as server:
        yield make(f"{server.url}/v1")


@pytest.fixture(scope="module")
def meant(model: LocalModel) -> str:
    message = Message.user(Image(PNG), ASKED)
    sampling = Sampling(max_new_tokens=SHORT, temperature=0)
    (told,) = model.generate([Request(messages=(message,), sampling=sampling)])
    assert len(told.text) > 10
    return told.text


def test_a_picture_is_answered_as_the_model_answers_it(client: Client, meant: str) -> None:
    assert client.answer(PNG, ASKED) == meant


def test_a_stream_comes_in_pieces_and_joins_to_the_whole(client: Client, meant: str) -> None:
    pieces = [piece for piece in client.pieces(PNG, ASKED) if piece]
    assert len(pieces) > 3
    assert "".join(pieces) == meant


def test_a_tool_is_called_and_its_result_is_answered(make: type[Client]) -> None:
    called: list[str] = []

    def weather(city: str) -> str:
        """The weather of a city"""
        called.append(city)
        return f"{city}: −3 °C, снег"

    def say(request: Request) -> Completion | str:
        last = request.messages[-1]
        if last.role == "tool":
            return f"It said {text_of(last)}"
        return completion("", request, tool_calls=(ToolCall("weather", {"city": "Минск"}),))

    for streamed in (False, True):
        called.clear()
        model = Scripted(say)
        with running(model, names=["sprout"]) as server:
            client = make(f"{server.url}/v1")
            told = client.told_with_tool("Is it cold in Minsk?", weather, streamed=streamed)
        assert called == ["Минск"]
        assert told == "It said Минск: −3 °C, снег"
        first, second = model.asked
        (offered,) = first.tools
        assert (offered.name, offered.description) == ("weather", "The weather of a city")
        assert offered.parameters["properties"]["city"]["type"] == "string"
        assert [m.role for m in second.messages] == ["user", "assistant", "tool"]
        assert second.messages[1].tool_calls == (ToolCall("weather", {"city": "Минск"}),)
        assert second.tools == first.tools


def test_no_client_speaks_to_anybody_else(outside: list[str]) -> None:
    assert outside == []
