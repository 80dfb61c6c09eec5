"""`qvl chat`: a conversation at the terminal, or through a pipe, a line a turn.

Main path: chat -> Talk.run -> a line -> a command (/image ...) or Talk.answer -> Conversation.say.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from qvl.chat import history
from qvl.chat.conversation import Called, Conversation, Function
from qvl.chat.mcp_tools import mcp_functions
from qvl.cli.inputs import Unusable, pictures
from qvl.cli.model import ADAPTER_HELP, open_chosen
from qvl.cli.output import FLAGS, tell_cost
from qvl.cli.tasks import THINKING_HELP, new_tokens_help
from qvl.errors import InputError, InputNotFoundError, QvlError, UsageError, nearest
from qvl.log import visible, wants_colour
from qvl.settings import load_settings
from qvl.tasks.guards import FLAG_OF_REASON
from qvl.tasks.task import Seen
from qvl.types import NEW_TOKENS, Completion, Delta, Message, Sampling, Text, ToolCall, Usage

log = logging.getLogger(__name__)
MCP = "mcp:"
GREETING = "Ctrl-C stops an answer, Ctrl-D ends; /help lists what else there is"
COMMANDS = {
    "/image": "/image PATH  show a picture, a video or a folder of them with the next question",
    "/thoughts": "/thoughts    what the model thought before its last answer",
    "/help": "/help        this list; a line that begins with a blank is never a command",
}
SHOWN = 400  # characters of a call or its result on the terminal


def chat(
    *,
    image: Annotated[
        list[str] | None, typer.Option("--image", help="Shown with the first question.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="How the model is to behave.")] = None,
    tools: Annotated[
        list[str] | None,
        typer.Option("--tools", help="A Python file, mcp:URL, or mcp:COMMAND with its arguments."),
    ] = None,
    approve_tools: Annotated[
        bool, typer.Option("--approve-tools", help="Run what the model calls without asking.")
    ] = False,
    continued: Annotated[
        bool, typer.Option("--continue", help="Go on with the last conversation.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="As in qvl describe.")] = None,
    adapter: Annotated[str | None, typer.Option(help=ADAPTER_HELP)] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Open no connection.")] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, fp32, bf16, fp8, int8, int4.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", "-n", help=new_tokens_help(NEW_TOKENS))
    ] = None,
    thinking_tokens: Annotated[int | None, typer.Option(help=THINKING_HELP)] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", "-t", help="0.1 to 2.0; 0 is greedy.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(help="0.05 to 1.0.")] = None,
    top_k: Annotated[int | None, typer.Option(help="1 to 1000.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="0.1 to 2.0.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same words.")] = None,
) -> None:
    """Talk about pictures, question by question; a pipe may ask too, a line a question."""
    from qvl.fetch import set_policy  # brings ssl: not for `qvl --help`

    settings = load_settings(
        model=model, adapter=adapter, device=device, dtype=dtype, max_new_tokens=max_new_tokens
    )
    sampling = Sampling(
        max_new_tokens=settings.max_new_tokens,
        thinking_tokens=thinking_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        seed=seed,
    ).checked()
    set_policy(offline=offline)
    if continued and system is not None:
        raise UsageError("--continue has a beginning already", hint="leave out --system")
    shown = [one for source in image or [] for one in named(source)]
    file = history.latest() if continued else history.new_file()
    messages = history.load(file) if continued else []
    if system is not None:
        messages.append(Message("system", (Text(system),)))
    with ExitStack() as stack:
        functions = [
            function
            for where in tools or []
            for function in stack.enter_context(functions_of(where, offline=offline))
        ]
        check_names(functions)
        opened = open_chosen(
            settings.model,
            device=settings.device,
            dtype=settings.dtype,
            revision=revision,
            offline=offline,
            prices=settings.prices,
            adapter=settings.adapter,
        )
        stack.enter_context(closing(opened))
        conversation = Conversation(
            model=opened,
            messages=messages,
            functions=functions,
            approve=(lambda _: True) if approve_tools else approved,
            sampling=sampling,
        )
        talk = Talk(conversation, file, shown)
        try:
            talk.run()
        finally:
            tell_cost(talk.usages)


@contextmanager
def functions_of(where: str, *, offline: bool) -> Iterator[Sequence[Function]]:
    if where.startswith(MCP):
        with mcp_functions(where.removeprefix(MCP), offline=offline) as found:
            yield found
    else:
        from qvl.chat.python_tools import functions_in

        yield functions_in(Path(where))


def check_names(functions: Sequence[Function]) -> None:
    names = [function.tool.name for function in functions]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two tools are called {name!r}", hint="leave out one of the --tools")


@dataclass(slots=True)
class Talk:
    """`shown` are the pictures that go with the next question."""

    conversation: Conversation
    file: Path
    shown: list[Seen] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)  # of all answers so far
    asks: bool = field(default_factory=lambda: sys.stdin.isatty())  # somebody sits there

    def run(self) -> None:
        """Until the input ends. Of a pipe the first error ends it, and so does an interrupt."""
        if self.asks:
            with suppress(ImportError):
                import readline  # noqa: F401 - with it, `input` lets one edit the line

            print(GREETING, file=sys.stderr)
        while (line := self.line()) is not None:
            try:
                self.take(line)
            except QvlError as err:
                if not self.asks:
                    raise
                log.error("%s%s", err.message, f" ({err.hint})" if err.hint else "")
            except KeyboardInterrupt:
                if not self.asks:
                    raise
                print("\n(stopped)", file=sys.stderr)

    def line(self) -> str | None:
        """The next line, None at the end of the input."""
        while True:
            try:
                return read_line("> ") if self.asks else (sys.stdin.readline() or None)
            except EOFError:
                return None
            except KeyboardInterrupt:
                if not self.asks:
                    raise
                print("\n(Ctrl-D ends)", file=sys.stderr)

    def take(self, line: str) -> None:
        if not line.strip():
            return
        if not line.startswith("/"):
            self.answer(line.strip())
            return
        command, _, rest = line.strip().partition(" ")
        match command:
            case "/image" if rest.strip():
                self.shown += named(rest.strip())
            case "/thoughts":
                last = self.conversation.messages[-1:]
                print(visible(last[0].reasoning) if last and last[0].reasoning else "(none)")
            case "/help":
                print("\n".join(COMMANDS.values()), file=sys.stderr)
            case _:
                hint = COMMANDS.get(command) or nearest(command, COMMANDS) or "/help lists them"
                raise UsageError(f"{command!r} is no command here", hint=hint)

    def answer(self, question: str) -> None:
        shown, self.shown = self.shown, []
        thinking, began = Thinking(), len(self.conversation.messages)
        try:
            for event in self.conversation.say(*shown, question):
                if isinstance(event, Called):
                    tell(event)
                    continue
                thinking.see(event)
                print(visible(event.text), end="", flush=True)
                if event.completion is not None:
                    self.usages.append(event.completion.usage)
                    finish(event.completion)
        except InputError:  # a picture may be what cannot be used
            raise
        except BaseException:
            if len(self.conversation.messages) == began:  # the turn was taken back
                self.shown = shown
            raise
        finally:
            self.save()

    def save(self) -> None:
        if messages := self.conversation.messages:
            history.save(self.file, messages, self.conversation.model.info.name)


@dataclass(slots=True)
class Thinking:
    """Reasoning, folded into one line on stderr that says how long it took."""

    began_s: float = field(default_factory=time.monotonic)
    text: str = ""

    def see(self, delta: Delta) -> None:
        on_terminal = sys.stderr.isatty()
        if delta.reasoning:
            if not self.text and on_terminal:
                print("thinking ...", end="", file=sys.stderr, flush=True)
            self.text += delta.reasoning
        elif self.text and (delta.text or delta.completion):
            took_s, words = time.monotonic() - self.began_s, len(self.text.split())
            said = f"(thought for {took_s:.0f} s, {words} words; /thoughts shows them)"
            print("\r" * on_terminal + dim(said), file=sys.stderr)
            self.text = ""


def finish(completion: Completion) -> None:
    """End the line, and say what a person should know about the answer."""
    if completion.text:
        print(flush=True)
    if flag := FLAG_OF_REASON.get(completion.finish_reason):
        log.warning("%s", FLAGS[flag].format(tokens=completion.usage.completion_tokens))
    for note in completion.notes:
        log.warning("%s", note)


def named(source: str) -> list[Seen]:
    """The pictures and videos of a path, a folder or an address. Raises the first error."""
    found: list[Seen] = []
    for one in pictures([source]):
        if isinstance(one, Unusable):
            raise one.error
        if isinstance(one.source, Path) and not os.path.exists(one.source):
            raise InputNotFoundError(f"{source!r} does not exist", hint="check the path")
        found.append(one)
    return found


def read_line(prompt: str) -> str:
    """A line of the terminal, with editing where the output is one too. Raises EOFError."""
    if sys.stdout.isatty():
        return input(prompt)
    print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def approved(call: ToolCall) -> bool:
    """Whether the user wants the call to be made; nobody can be asked through a pipe."""
    if not sys.stdin.isatty():
        log.warning("%s was not called: --approve-tools allows it where nobody is asked", call.name)
        return False
    said = visible(spelt(call, whole=True))
    print(f"call {said}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def tell(event: Called) -> None:
    result = event.said if len(event.said) <= SHOWN else event.said[:SHOWN] + "..."
    print(dim(visible(f"[{spelt(event.call)} -> {result}]")), file=sys.stderr)


def spelt(call: ToolCall, *, whole: bool = False) -> str:
    """To be approved, the whole of it: what is cut off could be anything."""
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    is_cut = len(arguments) > SHOWN and not whole
    return f"{call.name}({arguments[:SHOWN] + '...' if is_cut else arguments})"


def dim(text: str) -> str:
    return f"\x1b[2m{text}\x1b[0m" if wants_colour(sys.stderr) else text
