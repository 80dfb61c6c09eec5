"""Turns and tools: what the model is shown, what is run, and what stays when a turn ends early."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qvl.chat.conversation import MOST_RESULT, MOST_ROUNDS, Called, Conversation, Function
from qvl.errors import DeadlineError, QvlError
from qvl.types import Delta, Image, Message, Request, Sampling, Text, Tool, ToolCall
from qvl.vlm.local import LocalModel
from scripted import Scripted, completion, text_of

PICTURE = sorted((Path(__file__).parents[2] / "examples" / "pictures").glob("*.png"))[0]
ADD = ToolCall("add", {"a": 2, "b": 3})
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}


def add(arguments: Mapping[str, Any]) -> str:
    return str(arguments["a"] + arguments["b"])


ADDER = Function(Tool("add", "Add.", SCHEMA), add)


def talk(*answers: Any, approves: bool = True, functions: Any = (ADDER,)) -> Conversation:
    return Conversation(model=Scripted(*answers), functions=functions, approve=lambda _: approves)


@pytest.fixture(scope="module")
def sprout() -> LocalModel:
    return LocalModel()


def test_follow_up_turns_are_the_request_with_all_messages(sprout: LocalModel) -> None:
    image = Image.of(PICTURE)
    greedy = Sampling(temperature=0.0)
    conversation = Conversation(model=sprout, sampling=greedy)
    streamed = [
        "".join(e.text for e in conversation.say(*parts) if isinstance(e, Delta))
        for parts in ((image, "Describe the picture."), ("How many objects are there?",))
    ]
    first = Message.user(image, "Describe the picture.")
    (one,) = sprout.generate([Request(messages=(first,), sampling=greedy)])
    said = Message("assistant", (Text(one.text),))
    second = (first, said, Message.user("How many objects are there?"))
    (two,) = sprout.generate([Request(messages=second, sampling=greedy)])
    assert streamed == [one.text, two.text]
    assert conversation.messages == [*second, Message("assistant", (Text(two.text),))]


def test_a_call_is_run_and_its_result_goes_back() -> None:
    conversation = talk(completion("", tool_calls=(ADD,)), completion("Five."))
    events = list(conversation.say("2+3?"))
    assert [e for e in events if isinstance(e, Called)] == [Called(ADD, "5")]
    assert "".join(e.text for e in events if not isinstance(e, Called)) == "Five."
    user, call, result, answer = conversation.messages
    assert (call.role, call.tool_calls) == ("assistant", (ADD,))
    assert (result.role, text_of(result)) == ("tool", "5")
    assert (answer.role, text_of(answer)) == ("assistant", "Five.")
    model = conversation.model
    assert isinstance(model, Scripted)
    assert model.asked[1].messages == (user, call, result)
    assert [tool.name for tool in model.asked[0].tools] == ["add"]


def test_without_approval_nothing_is_run() -> None:
    ran = []
    spy = Function(ADDER.tool, lambda given: str(ran.append(given)))
    conversation = talk(
        completion("", tool_calls=(ADD,)), completion("No."), approves=False, functions=[spy]
    )
    list(conversation.say("2+3?"))
    assert not ran
    assert "does not allow" in text_of(conversation.messages[2])
    unasked = Conversation(
        model=Scripted(completion("", tool_calls=(ADD,)), completion("")), functions=[spy]
    )
    list(unasked.say("2+3?"))
    assert not ran


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (ToolCall("sub", {}), "there is no tool 'sub', only add"),
        (ToolCall("add", {}), "error: KeyError"),
        (ToolCall("add", {"a": "x" * MOST_RESULT, "b": "y"}), "20001 characters in all"),
    ],
)
def test_the_model_is_told_what_went_wrong(call: ToolCall, told: str) -> None:
    conversation = talk(completion("", tool_calls=(call,)), completion("I see."))
    list(conversation.say("?"))
    assert told in text_of(conversation.messages[2])
    assert text_of(conversation.messages[3]) == "I see."


def test_rounds_end() -> None:
    """After the last round the model is offered no tools, so it has to answer."""
    conversation = talk(*[completion("", tool_calls=(ADD,))] * MOST_ROUNDS, completion("Enough."))
    events = list(conversation.say("again"))
    assert sum(isinstance(e, Called) for e in events) == MOST_ROUNDS
    model = conversation.model
    assert isinstance(model, Scripted)
    assert [bool(request.tools) for request in model.asked] == [True] * MOST_ROUNDS + [False]


def test_an_answer_that_is_left_stays_as_far_as_it_was_said() -> None:
    conversation = talk(completion("abcdef"))
    turn = conversation.say("?")
    said = [next(turn), next(turn)]
    turn.close()
    assert [text_of(m) for m in conversation.messages] == ["?", "ab"]
    assert [getattr(delta, "text", "") for delta in said] == ["a", "b"]


def test_a_turn_without_a_word_is_taken_back() -> None:
    conversation = talk(
        completion("Hello."),
        DeadlineError("late"),
        completion("", tool_calls=(ADD,)),
        completion("Bye."),
    )
    list(conversation.say("Hi"))
    before = list(conversation.messages)
    with pytest.raises(QvlError, match="late"):
        list(conversation.say("and?"))
    assert conversation.messages == before

    def interrupted(_: Mapping[str, Any]) -> str:
        raise KeyboardInterrupt

    conversation.functions = [Function(ADDER.tool, interrupted)]
    with pytest.raises(KeyboardInterrupt):
        list(conversation.say("2+3?"))
    assert conversation.messages == before
    list(conversation.say("bye"))
    assert text_of(conversation.messages[-1]) == "Bye."
