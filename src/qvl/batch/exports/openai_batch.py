"""OpenAI's batch output: for each request a line `{id, custom_id, response, error}`.

Source: OpenAI API reference, "The request output object" of Batch, and the chat completion object.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qvl.batch.exports.jsonl import json_line
from qvl.batch.exports.table import cell_of
from qvl.runs.record import Finished, Outcome
from qvl.runs.whole import whole_file

FINISH = {"length": "length", "loop": "length", "reasoning": "length"}  # else "stop"


def write(finished: Iterable[Finished], target: Path, *, created: int = 0) -> None:
    """`created` is when the run was made, in seconds since 1970. Raises StorageError.

    Items that nobody was asked about have no line, as in a batch that was cancelled.
    """
    with whole_file(target) as part, part.open("wb") as file:
        for one in finished:
            if one.outcome is not None:
                file.write(json_line(as_line(one, one.outcome, created)))


def as_line(one: Finished, outcome: Outcome, created: int = 0) -> dict[str, Any]:
    """A line of the output.

    Of a request to OpenAI's API the response is what its route answers, also where that is an error. What
    failed in another way has an error, and no response.
    """
    name = hashlib.sha256(f"{outcome.id}\0{outcome.attempt}".encode("utf-8", "surrogatepass"))
    digest = name.hexdigest()[:24]
    line = {"id": f"batch_req_{digest}", "custom_id": one.item.id, "response": None, "error": None}
    if not outcome.ok:
        error = outcome.out.get("error") or {}
        code, message = error.get("code", "internal_error"), error.get("message", "it failed")
        if "status" in error:
            told = {key: value for key, value in error.items() if key != "status"}
            body = {"error": told | {"request_id": f"req_{digest}"}}
            return line | {"response": response(error["status"], digest, body)}
        return line | {"error": {"code": code, "message": message}}
    body = outcome.out.get("response")
    if body is None:
        body = completion(one, outcome.out, f"chatcmpl-{digest}", created)
    else:
        body = reviewed(body, one)
    return line | {"response": response(200, digest, body)}


def response(status: int, digest: str, body: Mapping[str, Any]) -> dict[str, Any]:
    return {"status_code": status, "request_id": f"req_{digest}", "body": body}


def reviewed(body: Mapping[str, Any], one: Finished) -> dict[str, Any]:
    """A route's answer, with a reviewer's words in its first choice where there are any."""
    text = one.review.fields.get("text") if one.review is not None else None
    if text is None:
        return dict(body)
    if "output" in body:  # of /v1/responses
        items = [
            item | {"content": [item["content"][0] | {"text": text}]}
            if item["type"] == "message"
            else item
            for item in body["output"]
        ]
        return {**body, "output": items}
    first, *rest = body["choices"]
    said = (
        {"message": first["message"] | {"content": text}} if "message" in first else {"text": text}
    )
    return {**body, "choices": [first | said, *rest]}


def completion(one: Finished, out: Mapping[str, Any], name: str, created: int) -> dict[str, Any]:
    said = {"role": "assistant", "content": cell_of(one.told("text")), "refusal": None}
    if out.get("reasoning"):
        said |= {"reasoning": out["reasoning"], "reasoning_content": out["reasoning"]}
    usage = out.get("usage") or {}
    prompt, answer = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
    finished = FINISH.get(out.get("finish_reason", "stop"), "stop")
    return {
        "id": name,
        "object": "chat.completion",
        "created": created,
        "model": (out.get("meta") or {}).get("model", ""),
        "choices": [{"index": 0, "message": said, "logprobs": None, "finish_reason": finished}],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
            "prompt_tokens_details": {
                "cached_tokens": usage.get("cached_tokens", 0),
                "image_tokens": usage.get("image_tokens", 0),
            },
            "completion_tokens_details": {"reasoning_tokens": usage.get("reasoning_tokens", 0)},
        },
    }
