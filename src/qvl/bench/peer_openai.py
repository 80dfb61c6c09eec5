"""The same requests to a server that speaks OpenAI's chat API, streamed, timed at this end.

Answers have a fixed length by `ignore_eos`, and `cache_prompt` forbids the use of an earlier prompt;
both are extensions: llama-server knows the two, vLLM the first.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx2

from qvl.bench.work import Runner, Timed
from qvl.errors import EngineError, InvalidParamError, QvlError, UsageError
from qvl.types import Image, Part, Request, Text, Video

WAIT = httpx2.Timeout(600, connect=10)  # s; a long prompt is silent until its first token


@dataclass(frozen=True, slots=True)
class Answer:
    """One stream: seconds from the common start to the first and the last token; token counts."""

    first_token_s: float
    last_token_s: float
    prompt_tokens: int
    new_tokens: int


def run_openai(url: str) -> Runner:
    """Requests to `url`, with or without its /v1, all of a workload at once.

    Raises UsageError where nothing answers there or the request is refused, EngineError for a
    failure of the server.
    """
    url = url.rstrip("/").removesuffix("/v1") + "/v1"
    # no proxy of the environment, which would be timed too; as many connections as requests
    client = httpx2.Client(timeout=WAIT, trust_env=False, limits=httpx2.Limits())
    model = served_model(client, url)

    def run(requests: Sequence[Request]) -> Timed:
        bodies = [json.dumps(as_json(request, model)).encode() for request in requests]
        with ThreadPoolExecutor(len(bodies), "qvl-peer") as pool:
            began = time.perf_counter()
            answers = list(pool.map(lambda body: answer(client, url, body, began), bodies))
        for request, found in zip(requests, answers, strict=True):
            check_length(url, found, request.tokens_allowed())
        return Timed(
            requests=len(requests),
            prompt_tokens=round(median(a.prompt_tokens for a in answers)),
            first_token_s=median(a.first_token_s for a in answers),
            tokens_s=median(
                (a.new_tokens - 1) / (a.last_token_s - a.first_token_s) for a in answers
            ),
            total_s=max(a.last_token_s for a in answers),
        )

    return run


def served_model(client: httpx2.Client, url: str) -> str:
    try:
        response = client.get(f"{url}/models")
    except httpx2.HTTPError as err:
        raise unreachable(url, err) from err
    if response.is_error:
        raise refused(url, response)
    try:
        return response.json()["data"][0]["id"]
    except (ValueError, LookupError, TypeError) as err:
        raise UsageError(
            f"{url}/models names no model", hint="is it a server of OpenAI's chat API?"
        ) from err


def as_json(request: Request, model: str) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [
            {"role": message.role, "content": [part_json(part) for part in message.content]}
            for message in request.messages
        ],
        "max_tokens": request.tokens_allowed(),
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def part_json(part: Part) -> dict[str, Any]:
    match part:
        case Text(text):
            return {"type": "text", "text": text}
        case Image(bytes() | Path() as source):
            data = source if isinstance(source, bytes) else source.read_bytes()
            url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
            return {"type": "image_url", "image_url": {"url": url}}
        case Image(name=name) | Video(name=name):
            raise InvalidParamError(f"{name!r} cannot be sent to a server")


def answer(client: httpx2.Client, url: str, body: bytes, began: float) -> Answer:
    """Reads one stream; the tokens are those of its usage, else its pieces of text."""
    times_s: list[float] = []  # of pieces of text
    last_s, usage = 0.0, {}
    for chunk in chunks(client, url, body):
        now_s = time.perf_counter() - began
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices", []):
            last_s = now_s
            delta = choice.get("delta") or {}
            if any(delta.get(name) for name in ("content", "reasoning_content", "reasoning")):
                times_s.append(now_s)
    if not times_s or last_s == times_s[0]:
        raise EngineError(
            f"the answer of {url} came in {len(times_s)} pieces of text, so its speed is not known",
            hint="is the server one that streams?",
        )
    return Answer(
        first_token_s=times_s[0],
        last_token_s=last_s,
        prompt_tokens=usage.get("prompt_tokens", 0),
        new_tokens=usage.get("completion_tokens", len(times_s)),
    )


def chunks(client: httpx2.Client, url: str, body: bytes) -> Iterator[dict[str, Any]]:
    """The JSON of each `data:` line up to [DONE]."""
    headers = {"Content-Type": "application/json"}
    try:
        with client.stream(
            "POST", f"{url}/chat/completions", content=body, headers=headers
        ) as response:
            if response.is_error:
                response.read()
                raise refused(url, response)
            for line in response.iter_lines():
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                if not line.startswith(("data:", "error:")):
                    continue
                chunk = json.loads(data.removeprefix("error:"))
                if line.startswith("error:") or "error" in chunk:
                    raise EngineError(f"{url} failed while it answered: {data[:300]}")
                yield chunk
    except httpx2.ConnectError as err:
        raise unreachable(url, err) from err
    except (httpx2.HTTPError, ValueError) as err:
        raise EngineError(
            f"{url} broke off its answer: {err}", hint="look into the server's log"
        ) from err
    raise EngineError(f"{url} ended its answer without [DONE]", hint="look into the server's log")


def check_length(url: str, found: Answer, new_tokens: int) -> None:
    if found.new_tokens != new_tokens:
        raise UsageError(
            f"{url} answered with {found.new_tokens} tokens where {new_tokens} were asked for,"
            " so the times do not compare",
            hint="take a server that knows ignore_eos (llama-server, vLLM), or fewer --new-tokens",
        )


def unreachable(url: str, err: Exception) -> UsageError:
    return UsageError(
        f"no server answers at {url}: {err}", hint="start the server, or correct the address"
    )


def refused(url: str, response: httpx2.Response) -> QvlError:
    try:
        said = response.json()["error"]
        said = said["message"] if isinstance(said, dict) else said
    except (ValueError, LookupError, TypeError):
        said = response.text
    kind = EngineError if response.status_code >= 500 else UsageError
    return kind(
        f"{url} answered with status {response.status_code}: {str(said)[:300]}",
        hint="look into the server's log; is it one for pictures?",
    )
