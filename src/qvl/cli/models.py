"""`qvl models list`, `show` and `convert`: what there is, what runs here; a packed copy of it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from qvl.errors import ModelFormatError, UnknownModelError, UsageError, nearest
from qvl.loading.catalogue import CATALOGUE, Published, find
from qvl.loading.machine import memory_bytes
from qvl.vlm.chat_model import EMBEDDED, EMBEDDED_FOLDER, refuse_later

models = typer.Typer(
    help="The models there are, and what they need.", no_args_is_help=True, rich_markup_mode=None
)
GIB = 2**30
PACKED_KINDS: tuple[Literal["int4", "int8", "bf16"], ...] = ("int4", "int8", "bf16")
ROOM_FOR_WORK = 1.15  # weights and a little more: cache, pictures, the program itself


def verdict(entry: Published, available_gib: float | None) -> str:
    if not entry.runs:
        return "not yet"
    if available_gib is None:
        return "?"
    return "yes" if entry.weights_gib * ROOM_FOR_WORK <= available_gib else "too big"


def available_gib() -> float | None:
    memory = memory_bytes()
    return None if memory is None else memory[1] / GIB


@models.command("list")
def list_models(
    *, as_json: Annotated[bool, typer.Option("--json", help="One object a line.")] = False
) -> None:
    """Every published checkpoint of the family, and whether it runs on this machine."""
    room = available_gib()
    if as_json:
        print(json.dumps({"id": EMBEDDED, "runs_here": "yes", "licence": "apache-2.0"}))
        for entry in CATALOGUE:
            row = {"id": entry.hub_id, "runs_here": verdict(entry, room), **asdict(entry)}
            print(json.dumps(row, ensure_ascii=False))
        return
    print(f"{'model':<40} {'GiB':>6}  {'runs here':<9}  licence")
    print(f"{EMBEDDED:<40} {0.03:>6.2f}  {'yes':<9}  apache-2.0 (embedded, demonstration)")
    for entry in CATALOGUE:
        commercial = {"yes": "", "conditional": " (conditions)", "no": " (NO commercial use)"}
        licence = entry.licence + commercial[entry.commercial]
        print(f"{entry.hub_id:<40} {entry.weights_gib:>6.1f}  {verdict(entry, room):<9}  {licence}")


@models.command("show")
def show_model(
    name: Annotated[str, typer.Argument(help="A hub id, a folder, or sprout.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One object.")] = False,
) -> None:
    """One model: its size, shape, licence and place."""
    facts = facts_about(name)
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
        return
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        print(f"{key:<{width}}  {value}")


@models.command("convert")
def convert_model(
    source: Annotated[str, typer.Argument(help="A hub id, a folder, or sprout.")],
    target: Annotated[Path, typer.Argument(help="The folder to make.")],
    *,
    quantize: Annotated[str | None, typer.Option(help="int4, int8 or bf16.")] = None,
) -> None:
    """Write a packed copy of a model, for a processor, which starts at once.

    Without --quantize: the safetensors of a folder of Qwen-VL, which was published pickled.
    """
    if quantize is None:
        from qvl.loading.checkpoint import pickles_alone
        from qvl.loading.pickled import convert_pickled

        folder = Path(source).expanduser()
        if not pickles_alone(folder):
            raise UsageError("--quantize is missing", hint=f"take one of {', '.join(PACKED_KINDS)}")
        size_bytes = convert_pickled(folder, target)
        print(f"{target}: safetensors, {size_bytes / GIB:.2f} GiB")
        return
    if quantize not in PACKED_KINDS:
        raise UsageError(
            f"--quantize is {quantize!r}", hint=f"take one of {', '.join(PACKED_KINDS)}"
        )
    from qvl.loading.convert import convert
    from qvl.vlm.local import model_folder

    folder = model_folder(source, revision=None, offline=None).path
    size_bytes = convert(folder, target, quantize)
    print(f"{target}: {quantize}, {size_bytes / GIB:.2f} GiB")


def facts_about(name: str) -> dict[str, object]:
    """Raises UnknownModelError with the nearest names, ModelFormatError for an unusable folder."""
    refuse_later(name)
    entry = find(name)
    if name != EMBEDDED and entry is not None:
        rest = {key: value for key, value in asdict(entry).items() if key != "hub_id"}
        return {"id": entry.hub_id, **rest, "runs_here": verdict(entry, available_gib())}
    folder = EMBEDDED_FOLDER if name == EMBEDDED else Path(name).expanduser()
    if not folder.is_dir():
        raise UnknownModelError(
            f"there is no model {name!r}, neither as a folder nor in the catalogue",
            hint=nearest(name, [EMBEDDED, *(e.hub_id for e in CATALOGUE)]) or "qvl models list",
        )
    if not (folder / "config.json").exists():
        raise ModelFormatError(
            f"the folder {name!r} has no config.json", hint="give the folder of a checkpoint"
        )
    from qvl.loading.checkpoint import pickles_alone, refuse_pickle
    from qvl.loading.config import parse_config
    from qvl.loading.packed import packed_form

    if pickles := pickles_alone(folder):
        raise refuse_pickle(pickles[0])
    config = parse_config(folder)
    size_bytes = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    facts: dict[str, object] = {
        "id": name,
        "generation": config.generation,
        "weights_mib": round(size_bytes / 2**20, 1),
        "packed": packed_form(folder) or "no",
        "context_tokens": config.decoder.max_positions,
        "vocabulary": config.decoder.vocab_size,
        "decoder": f"{config.decoder.layers} layers x {config.decoder.hidden}",
        "vision": f"{config.vision.depth} blocks x {config.vision.width}, "
        f"patches of {config.vision.patch_px} px",
    }
    if name == EMBEDDED:
        facts["for"] = "demonstration and tests: drawn scenes in ru, en, zh; not photographs"
    return facts
