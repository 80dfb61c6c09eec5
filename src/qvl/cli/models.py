"""`qvl models`: what there is and what runs here; a model to the local cache and out of it; a packed
copy of one.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from qvl.errors import ModelFormatError, UnknownModelError, UsageError, nearest
from qvl.loading.catalogue import CATALOGUE, Published, find
from qvl.loading.machine import memory_bytes
from qvl.vlm.chat_model import EMBEDDED, EMBEDDED_FOLDER, refuse_later

log = logging.getLogger(__name__)
models = typer.Typer(
    help="The models there are, and what they need.", no_args_is_help=True, rich_markup_mode=None
)
GIB = 2**30
PACKED_KINDS: tuple[Literal["int4", "int8", "bf16"], ...] = ("int4", "int8", "bf16")
ROOM_FOR_WORK = 1.15  # weights and a little more: cache, pictures, the program itself


MEMORY_IN = ("bf16", "int8", "int4")
COMMERCIAL = {
    "yes": "",
    "conditional": " (conditions)",
    "no": " (research only: NO commercial use)",
}


def needed_gib(entry: Published) -> dict[str, float]:
    """Memory to run it, by what its weights are kept in."""
    return {kept: round(gib * ROOM_FOR_WORK, 1) for kept, gib in entry.weights_as_gib.items()}


def verdict(entry: Published, available_gib: float | None) -> str:
    """Whether it runs here: "yes" as it is stored, or the first of the smaller kinds in which it does."""
    if available_gib is None:
        return "?"
    stored, *smaller = needed_gib(entry).items()
    if stored[1] <= available_gib:
        return "yes"
    return next((f"as {kept}" for kept, gib in smaller if gib <= available_gib), "too big")


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
            print(json.dumps(row | {"memory_gib": needed_gib(entry)}, ensure_ascii=False))
        return
    print(f"{'':<36} {'GiB':>6}  {'memory for it, GiB, as':<20}  fits this")
    print(table_row("model", "stored", MEMORY_IN, "machine", "kind", "licence"))
    print(table_row(EMBEDDED, 0.0, (0.1, 0.1, 0.1), "yes", "demonstration", "apache-2.0"))
    for entry in CATALOGUE:
        need = needed_gib(entry)
        memory = [need.get(kept, "-") for kept in MEMORY_IN]
        licence = entry.licence + COMMERCIAL[entry.commercial]
        fits = verdict(entry, room)
        print(table_row(entry.hub_id, entry.weights_gib, memory, fits, entry.kind, licence))


def table_row(
    name: str, stored: object, memory: Iterable[object], fits: str, kind: str, licence: str
) -> str:
    needed = " ".join(f"{gib!s:>6}" for gib in memory)
    return f"{name:<36} {stored!s:>6}  {needed}  {fits:<9}  {kind:<18}  {licence}"


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


@models.command("pull")
def pull_model(
    name: Annotated[str, typer.Argument(help="A hub id.")],
    *,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
) -> None:
    """Download a model into the local cache; asked for again, it goes on where it stopped."""
    from qvl.vlm.local import model_folder

    entry = find(name)
    if entry is not None and entry.commercial != "yes":
        terms = "for research only" if entry.commercial == "no" else "commercial use has conditions"
        log.warning("%s has the %s: %s", entry.hub_id, entry.licence, terms)
    print(model_folder(name, revision=revision, offline=None).path)


@models.command("remove")
def remove_model(
    name: Annotated[str, typer.Argument(help="A hub id.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a downloaded model from the local cache."""
    if name == EMBEDDED:
        raise UsageError(f"{EMBEDDED!r} is a part of qvl itself", hint="pip uninstall qvl")
    refuse_later(name)
    from qvl.loading.hub import find_cached

    found = find_cached(name)
    size = f"{found.size_bytes / GIB:.2f} GiB ({found.size_bytes} bytes)"
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"removing {found.hub_id!r} frees {size}", hint="say so with --yes")
        if not typer.confirm(f"Remove {found.hub_id}, {size}?", err=True):
            print("kept", file=sys.stderr)
            return
    found.remove()
    print(f"{found.hub_id}: removed, {size} freed")


@models.command("convert")
def convert_model(
    source: Annotated[str, typer.Argument(help="A hub id, a folder, or sprout.")],
    target: Annotated[Path, typer.Argument(help="The folder to make.")],
    *,
    quantize: Annotated[
        str | None, typer.Option(help="int4, int8 or bf16: packed, for qvl on a processor alone.")
    ] = None,
    export: Annotated[
        str | None, typer.Option(help="gptq, awq, int8 or fp8: as published, for others too.")
    ] = None,
    calibrate: Annotated[
        list[str] | None,
        typer.Option(help="With --export: pictures, a folder, conversations in a .jsonl."),
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="The folder of an adapter, to put into the weights.")
    ] = None,
) -> None:
    """Write a copy of a model in another form.

    --quantize packs it for a processor, where it starts at once; qvl alone reads that. --export
    writes a published quantised form, which qvl reads on any device and others know, and says
    what was lost. --adapter makes a copy as it was published, with the adapter in its weights. Without
    any: the safetensors of a folder of Qwen-VL, which was published pickled.
    """
    given = {"--quantize": quantize, "--export": export, "--adapter": adapter}
    several = [name for name, value in given.items() if value is not None]
    if len(several) > 1:
        raise UsageError(f"{' and '.join(several)} are given together", hint="take one of them")
    if adapter is not None:
        merge_adapter(source, target, adapter)
        return
    if export is not None:
        from qvl.cli.export import export_model

        export_model(source, target, export, calibrate or ())
        return
    if calibrate:
        raise UsageError("--calibrate is for --export", hint="add --export gptq, or leave it out")
    if quantize is None:
        from qvl.loading.checkpoint import pickles_alone
        from qvl.loading.pickled import convert_pickled

        folder = Path(source).expanduser()
        if not pickles_alone(folder):
            raise UsageError(
                "neither --quantize nor --export is given",
                hint=f"--quantize is one of {', '.join(PACKED_KINDS)}; --export of gptq, awq, int8, fp8",
            )
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


def merge_adapter(source: str, target: Path, adapter: Path) -> None:
    from qvl.loading.merged import convert_merged
    from qvl.vlm.local import model_folder

    folder = model_folder(source, revision=None, offline=None).path
    size_bytes = convert_merged(folder, target, adapter.expanduser())
    print(f"{target}: merged, {size_bytes / GIB:.2f} GiB")


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
    if (folder / "adapter_config.json").exists():
        from qvl.loading.adapter import adapter_facts

        return {"id": name, **adapter_facts(folder)}
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
