"""`qvl models convert --export`: a model in a published quantised form, and what it is calibrated on.

Pictures are described by the model itself first, so that what it writes is calibrated on too; a file
of conversations (JSON lines, each with OpenAI's `messages`) is taken as it is.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, cast

from qvl.cli.inputs import Unusable, pictures
from qvl.cli.output import with_progress
from qvl.data_url import from_data_url
from qvl.errors import InputUnreadableError, InvalidParamError, QvlError, UsageError
from qvl.types import Image, Message, Part, Request, Sampling, Text, Url, is_address

log = logging.getLogger(__name__)
GIB = 2**30
EXPORTS = {
    "gptq": "GPTQ, 4 bits in groups of 128",
    "awq": "AWQ, 4 bits in groups of 128",
    "int8": "GPTQ, 8 bits in groups of 128",
    "fp8": "FP8, in blocks of 128 x 128",
}
Kind = Literal["gptq", "awq", "int8", "fp8"]
ANSWER = Sampling(temperature=0, max_new_tokens=64)
ROLES = ("system", "user", "assistant")


def export_model(source: str, target: Path, kind: str, calibrate: Sequence[str]) -> None:
    """Write the folder and tell what was lost. Raises QvlError."""
    if kind not in EXPORTS:
        raise UsageError(f"--export is {kind!r}", hint=f"take one of {', '.join(EXPORTS)}")
    if not calibrate and kind != "fp8":
        raise UsageError(
            f"--export {kind} is calibrated on pictures like yours, and none are given",
            hint="name a folder of some 100, or conversations as JSON lines: --calibrate FOLDER; "
            "fp8 needs none",
        )
    from qvl.loading.convert import check_target
    from qvl.loading.export import export, read_source
    from qvl.vlm.local import model_folder

    folder = model_folder(source, revision=None, offline=None).path
    check_target(target)  # before the model answers anything
    read_source(folder)
    made = export(
        folder,
        target,
        cast(Kind, kind),
        conversations(calibrate, str(folder)),
        watched=partial(with_progress, doing="rounding layers"),
    )
    sizes = f"{made.weights_bytes / GIB:.2f} GiB, the source {made.source_bytes / GIB:.2f} GiB"
    print(f"{target}: {EXPORTS[kind]}, {sizes}")
    if made.loss is None or made.sample is None:
        print("loss: not measured, --calibrate names pictures to measure it with")
        return
    sample, loss = made.sample, made.loss
    if kind != "fp8":
        print(f"calibrated on {len(sample.calibrating)} conversations, {sample.tokens} tokens")
    print(
        f"loss over {loss.tokens} next tokens of {loss.conversations} others: "
        f"cosine of logits {loss.cosine:.4f}, KL {loss.kl:.4f} nats, same token {loss.same:.1%}"
    )


def conversations(sources: Sequence[str], model: str) -> Iterator[tuple[Message, ...]]:
    """Those of all sources, in order; what cannot be used is named, and the others go on."""
    files = [source for source in sources if source.endswith(".jsonl")]
    for file in files:
        yield from in_lines(Path(file))
    shown = pictures([source for source in sources if source not in files])
    for one in shown:
        if isinstance(one, Unusable):
            log.warning("%s is left out: %s", one.name, one.error.message)
    usable = [one for one in shown if isinstance(one, Image)]
    if usable:
        yield from described(usable, model)


def described(shown: Sequence[Image], model: str) -> Iterator[tuple[Message, ...]]:
    """Each picture with a question in one of the languages, and what the model answers."""
    from qvl.tasks.prompts import wording
    from qvl.vlm.local import LocalModel

    languages = cycle(("en", "ru", "zh"))
    asked = [
        (image, wording("describe", "plain", language))
        for image, language in zip(shown, languages, strict=False)
    ]
    requests = (
        # small, because only the words of the answer are wanted
        Request(
            messages=(Message.user(Image(i.source, i.name, i.page, "low"), question),),
            sampling=ANSWER,
        )
        for i, question in asked
    )
    opened = LocalModel(model)
    try:
        for (image, question), result in zip(asked, opened.results(requests), strict=True):
            if isinstance(result, QvlError):
                log.warning("%s is left out: %s", image.name, result.message)
                continue
            answer = Message("assistant", (Text(result.text),))
            yield Message.user(image, question), answer
    finally:
        opened.close()


def in_lines(path: Path) -> Iterator[tuple[Message, ...]]:
    """The conversations of a file. Raises InvalidParamError for a line that is none."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield conversation(line, f"{path.name}:{number}", path.parent)
    except (OSError, UnicodeDecodeError) as err:
        raise InputUnreadableError(f"{str(path)!r} cannot be read") from err


def conversation(line: str, place: str, folder: Path) -> tuple[Message, ...]:
    """One line: {"messages": [{"role": ..., "content": ...}, ...]}; paths are from its folder."""
    try:
        value = json.loads(line)
        messages = value["messages"]
        found = tuple(
            Message(message["role"], parts_of(message["content"], f"{place}", folder))
            for message in messages
        )
        if not found or any(message.role not in ROLES for message in found):
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError) as err:
        raise InvalidParamError(
            f"{place} is no conversation",
            hint='a line is {"messages": [{"role": "user", "content": [...]}, ...]} with parts of '
            'type "text" and "image_url", as OpenAI has them',
        ) from err
    return found


def parts_of(content: Any, place: str, folder: Path) -> tuple[Part, ...]:
    """Raises ValueError, TypeError or KeyError for what is neither text nor a picture."""
    if isinstance(content, str):
        return (Text(content),)
    return tuple(part_of(part, place, folder) for part in content)


def part_of(part: Any, place: str, folder: Path) -> Part:
    if part["type"] == "text" and isinstance(part["text"], str):
        return Text(part["text"])
    if part["type"] != "image_url":
        raise ValueError
    shown = part["image_url"]
    url = shown if isinstance(shown, str) else shown["url"]
    if url.startswith("data:"):
        return Image(from_data_url(url, place), place)
    if is_address(url):
        return Image(Url(url), place)
    return Image(folder / url, url)
