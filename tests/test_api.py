"""What a program may hand to `VLM` wrongly: a typed error before any work, and the next call is answered.

The ids are those of the table of bad inputs.
"""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from qvl import VLM
from qvl.errors import EngineClosedError, InvalidParamError, PromptTooLongError, QvlError
from qvl.processing import prompt
from qvl.types import Image, Message, Request, ResponseFormat, Sampling, Video, choices


def png(red: int = 200, blue: int = 10) -> bytes:
    file = io.BytesIO()
    Pillow.new("RGB", (64, 64), (red, 30, blue)).save(file, "PNG")
    return file.getvalue()


def closed_picture() -> Any:
    picture = Pillow.new("RGB", (5, 5))
    picture.close()
    return picture


def asked(*parts: Any, form: str | None = None, regex: str | None = None, **fields: Any) -> Request:
    wanted = ResponseFormat("json_schema", form) if form is not None else None
    wanted = ResponseFormat("regex", regex) if regex is not None else wanted
    sampling = replace(Sampling(max_new_tokens=4), **fields)
    return Request(messages=(Message.user(*parts),), sampling=sampling, response_format=wanted)


@dataclass(frozen=True)
class Wrong:
    """A call, the error that it ends with, and what that says."""

    call: Callable[[VLM], object]
    words: str = ""
    error: type[QvlError] = InvalidParamError


def request(*parts: Any, words: str = "", error: type[QvlError] = InvalidParamError, **how: Any):
    return Wrong(lambda vlm: vlm.generate([asked(*parts, **how)]), words, error)


def described(shown: Any, words: str) -> Wrong:
    return Wrong(lambda vlm: vlm.describe(shown), words)


WRONG: dict[str, Wrong] = {
    "A029 NaN": described(
        np.full((4, 4, 3), np.nan), "a numpy.ndarray, dtype float64, shape (4, 4, 3)"
    ),
    "A029 channels": described(np.zeros((4, 4, 5), np.uint8), "dtype uint8, shape (4, 4, 5)"),
    "A029 uint16": described(np.zeros((4, 4, 3), np.uint16), "uint16"),
    "A029 part": request(Wrong, words="type 'type'"),
    "A029 nothing": described(None, "NoneType"),
    "A029 in an Image": Wrong(lambda _: Image(np.zeros((4, 4, 3))), "numpy.ndarray, dtype float64"),  # type: ignore[arg-type]
    "A029 in a Video": Wrong(lambda _: Video(source=np.zeros((2, 4, 4, 3))), "ndarray"),  # type: ignore[arg-type]
    "A030 closed": described(closed_picture(), "a PIL.Image.Image"),
    "A030 closed, of several": described([closed_picture()], "a PIL.Image.Image"),
    "A039 empty": request("", words="nothing is said"),
    "A039 no part": request(words="nothing is said"),
    "A042 1,000": request(
        Image(png()),
        "<|image_pad|>" * 1000,
        words="the model's context is 4096",
        error=PromptTooLongError,
    ),
    "A048": request(
        "ab" * 10**6, words="2000000 characters, over 8 for each", error=PromptTooLongError
    ),
    "A049": request("a" * 10**6, words="1000000 characters", error=PromptTooLongError),
    **{
        f"A050 {value!r}": request("x", max_new_tokens=value, words="max_new_tokens is")
        for value in (0, -1, 1.5, True, "5", 10**12)
    },
    "A052 top_p 0": request("x", top_p=0, words="0.05 to 1.0"),
    "A052 top_p": request("x", top_p=1.1, words="0.05 to 1.0"),
    "A052 top_k": request("x", top_k=-2, words="1 to 1000"),
    "A052 min_p": request("x", min_p=2, words="0.0 to 1.0"),
    "A053 beyond": request("x", logit_bias=((999999999, 5.0),), words="999999999"),
    "A053 negative": request("x", logit_bias=((-1, 5.0),), words="-1"),
    "A053 word": request("x", logit_bias=(("x", 1.0),), words="logit_bias"),
    "A053 dict": request("x", logit_bias={5: 1.0}, words="logit_bias"),
    "A053 value": request("x", logit_bias=((5, 1e9),), words="-100 to 100"),
    "A053 NaN": request("x", logit_bias=((5, float("nan")),), words="-100 to 100"),
    "A053 text": request("x", logit_bias=((5, "1"),), words="logit_bias"),
    "A054 stop id": request("x", stop_token_ids=(10**9,), words="1000000000"),
    "A054 word": request("x", stop_token_ids=("x",), words="stop_token_ids"),
    "A054 allowed": request("x", allowed_token_ids=(-1,), words="-1"),
    "A054 stop": request("x", stop=(5,), words="stop"),
    "A054 one stop": request("x", stop="abc", words="stop"),
    **{
        f"A055 {value!r}": request("x", seed=value, words="seed is")
        for value in (-1, 2**64, "abc", 1.5, True)
    },
    "A057": Wrong(lambda _: choices(asked("x"), 10**9), "n is 1000000000, outside 1 to 8"),
    "A057 0": Wrong(lambda _: choices(asked("x"), 0), "n is 0"),
    "A058": request("x", logprobs=10**6, words="0 to 20"),
    "A059 back-reference": request("x", regex=r"(a)\1", words="backreferences"),
    "A059 1 MB": request("x", regex="a|" * 600_000, words="more than 500000"),
    "A059 broken": request("x", regex="(", words="regex"),
    "A060 1 MB": request("x", form='{"description": "%s"}' % ("x" * 10**6), words="1000019"),
    "A060 deep": request("x", form='{"items":' * 1000 + "{}" + "}" * 1000, words="json_schema"),
    "A060 loop": request("x", form='{"$ref": "#"}', words="no text fits"),
    "A062 minimum": request("x", form='{"type": "integer", "minimum": "abc"}', words="'minimum'"),
    "A062 pattern": request("x", form='{"type": "string", "pattern": "("}', words="pattern"),
    "A062 type": request("x", form='{"type": "strng"}', words="strng"),
    "A062 inside": request(
        "x", form='{"type": "object", "properties": {"a": {"type": "strng"}}}', words="strng"
    ),
}


@pytest.fixture(scope="module")
def vlm() -> Iterator[VLM]:
    made = VLM()
    yield made
    made.close()


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_a_typed_error_and_the_next_is_answered(vlm: VLM, name: str) -> None:
    wrong, began_s = WRONG[name], time.monotonic()
    with pytest.raises(wrong.error) as caught:
        wrong.call(vlm)
    assert wrong.words in caught.value.message
    assert len(caught.value.message) < 1000
    assert time.monotonic() - began_s < 5
    assert vlm.generate([asked("x")])[0].token_ids


def test_a_long_text_is_refused_before_it_is_read(vlm: VLM, monkeypatch: Any) -> None:
    """A048: what no tokenizer need see."""
    monkeypatch.setattr(prompt, "read_image", None)
    began_s = time.monotonic()
    with pytest.raises(PromptTooLongError):
        vlm.generate([asked(Image(png()), "ab " * 700_000)])
    assert time.monotonic() - began_s < 1


def test_what_looks_like_a_place_for_a_picture_is_none(vlm: VLM) -> None:
    """A042: there are as many visual tokens as the picture has."""
    plain, typed = vlm.generate(
        [asked(Image(png()), "x"), asked(Image(png()), "<|image_pad|>" * 300)]
    )
    assert plain.usage.image_tokens == typed.usage.image_tokens > 0
    assert typed.usage.prompt_tokens > 300


def test_control_characters_may_be_asked_about(vlm: VLM) -> None:
    """A047."""
    assert vlm.generate([asked("a\0b \x1b[31m \u202e c")])[0].token_ids


def test_a_thousand_pictures_are_refused_before_the_first_is_read(vlm: VLM) -> None:
    """A063."""
    pictures = [Image(b"nobody looks at this", f"{number}.png") for number in range(1000)]
    with pytest.raises(InvalidParamError, match="1000 pictures, the limit is 32") as caught:
        vlm.generate([asked(*pictures, "x")])
    assert caught.value.hint


def test_no_part_of_a_schema_is_fetched(vlm: VLM) -> None:
    """A060."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.setblocking(False)
        address = f"http://127.0.0.1:{trap.getsockname()[1]}/schema.json"
        with pytest.raises(InvalidParamError, match="json_schema"):
            vlm.generate([asked("x", form=json.dumps({"$ref": address}))])
        with pytest.raises(BlockingIOError):
            trap.accept()


def test_a_nested_repetition_costs_nothing(vlm: VLM) -> None:
    """A059: for Python's own engine (a+)+$ takes twice as long with each letter."""
    began_s = time.monotonic()
    told = vlm.generate([asked("x", regex="(a+)+$", max_new_tokens=40)])[0]
    assert set(told.text) == {"a"}
    assert time.monotonic() - began_s < 10


def test_a_closed_model_says_so_at_once() -> None:
    """A065."""
    vlm = VLM()
    vlm.generate([asked("x")])
    vlm.close()
    vlm.close()
    for call in (
        lambda: vlm.generate([asked("x")]),
        lambda: list(vlm.stream(asked("x"))),
        lambda: vlm.describe(png()),
        lambda: vlm.model.prompt_ids(asked("x")),  # type: ignore[attr-defined]
    ):
        with pytest.raises(EngineClosedError, match="closed") as caught:
            call()
        assert caught.value.hint


FORKED = """
import os, signal
from qvl import VLM, Message, Request, Sampling
from qvl.errors import EngineClosedError
asked = Request(messages=(Message.user("x"),), sampling=Sampling(max_new_tokens=2))
vlm = VLM()
vlm.generate([asked])
child = os.fork()
if not child:
    signal.alarm(20)
    try:
        vlm.generate([asked])
    except EngineClosedError as error:
        os._exit(0 if "another process" in error.message else 2)
    os._exit(1)
print(os.waitpid(child, 0)[1], len(vlm.generate([asked])))
"""


def test_a_forked_child_is_told_to_open_its_own() -> None:
    """A065: the threads that compute are not in the child, which would wait for ever."""
    # newer Pythons warn of a fork beside threads, which is the point here
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.stdout, done.stderr) == ("0 1\n", "")
