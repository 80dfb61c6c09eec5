"""Segments of a conversation: equal to the published templates, or refused where those drop something."""

from __future__ import annotations

import pytest

from data.published_template import PICTURE, render_published
from qvl.errors import ConfigError, InvalidParamError
from qvl.processing.chat import Literal_, Picture, UserText, render
from qvl.types import Image, Message, Text

GENERATIONS = ("qwen2_vl", "qwen3_vl")
CAT = Image(b"cat", "cat.png")
DOG = Image(b"dog", "dog.png")


def system(*parts):
    return Message("system", Message.user(*parts).content)


def assistant(*parts):
    return Message("assistant", Message.user(*parts).content)


def joined(segments):
    return "".join(PICTURE if isinstance(s, Picture) else s.text for s in segments)


CONVERSATIONS = [
    [Message.user("What is this?")],
    [Message.user(CAT, "What is this?")],
    [
        Message.user("Compare ", CAT, " with ", DOG, "."),
        assistant("They differ."),
        Message.user("How?"),
    ],
    [system("Be brief."), Message.user("\nhello", "  world\n")],
    [system(""), Message.user(""), assistant(""), Message.user()],
    [assistant("Hello!"), Message.user(CAT, CAT)],
    [Message.user("one"), Message.user("two"), assistant("three")],
]


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_the_text_is_that_of_the_published_template(messages, generation):
    for prompt in (True, False):
        segments = render(messages, generation=generation, add_generation_prompt=prompt)
        assert joined(segments) == render_published(
            messages, generation, add_generation_prompt=prompt
        )


def test_the_templates_are_as_documented():
    """Written out once, so that template and code cannot be wrong together."""
    messages = [Message.user("See ", CAT, "?"), assistant("A cat."), Message.user("Sure?")]
    turns = (
        "<|im_start|>user\nSee <|vision_start|><|image_pad|><|vision_end|>?<|im_end|>\n"
        "<|im_start|>assistant\nA cat.<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    default = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert joined(render(messages, generation="qwen2_vl")) == default + turns
    assert joined(render(messages, generation="qwen3_vl")) == turns
    own = "<|im_start|>system\nBe brief.<|im_end|>\n"
    for generation in GENERATIONS:
        assert (
            joined(render([system("Be brief."), *messages], generation=generation)) == own + turns
        )


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_what_a_message_says_is_never_template_text(generation, role):
    """Also the assistant's history: it may repeat what somebody typed."""
    messages = [Message(role, (Text("<|im_end|>"),)), Message.user("next")]
    segments = render(messages, generation=generation)
    assert UserText("<|im_end|>") in segments
    template = [s.text for s in segments if isinstance(s, Literal_)]
    others = render([Message(role, (Text("x"),)), Message.user("y")], generation=generation)
    assert template == [s.text for s in others if isinstance(s, Literal_)]


def test_pictures_keep_their_place_and_their_source():
    segments = render([Message.user("a", CAT, DOG, "b", CAT)], generation="qwen3_vl")
    assert [s.image for s in segments if isinstance(s, Picture)] == [CAT, DOG, CAT]
    assert segments[1:6] == (UserText("a"), Picture(CAT), Picture(DOG), UserText("b"), Picture(CAT))


def test_qwen2_takes_a_later_system_message_and_pictures_in_any_role():
    messages = [system(CAT, "a"), Message.user("b"), system("c"), assistant(DOG), Message.user("d")]
    assert joined(render(messages, generation="qwen2_vl")) == render_published(messages, "qwen2_vl")


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        ([Message.user("a"), system("b"), Message.user("c")], "message 2"),
        ([system("a"), system("b"), Message.user("c")], "message 2"),
        ([system(CAT, "a"), Message.user("b")], "message 1"),
        ([Message.user("a"), assistant(CAT), Message.user("b")], "message 2"),
    ],
)
def test_what_the_template_of_qwen3_would_drop_is_refused(messages, named):
    with pytest.raises(InvalidParamError, match=named) as caught:
        render(messages, generation="qwen3_vl")
    assert caught.value.hint
    assert joined(render(messages, generation="qwen2_vl"))  # Qwen2-VL's says all of it


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize(
    ("messages", "named"),
    [
        ([], "no messages"),
        ([Message.user("a"), Message("tool", (Text("42"),))], "not yet"),
        ([Message("developer", (Text("a"),))], "'developer'"),  # pyrefly: ignore
        ([Message("user", "hello")], "part of type 'str'"),  # pyrefly: ignore
        ([Message.user("a"), Message("user", (Text(None),))], "message 2"),  # pyrefly: ignore
    ],
)
def test_a_conversation_that_cannot_be_said_is_refused(messages, named, generation):
    with pytest.raises(InvalidParamError, match=named) as caught:
        render(messages, generation=generation)
    assert caught.value.hint


def test_an_unknown_generation_is_refused():
    with pytest.raises(ConfigError, match="qwen9_vl"):
        render([Message.user("a")], generation="qwen9_vl")
