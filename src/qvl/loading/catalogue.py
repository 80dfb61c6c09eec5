"""The published checkpoints of the family: their names, sizes and licences.

Sizes are counted from the published shapes (bf16, or decoder linears at 8 or about 4 bits);
licences are the model cards'. Fine-tunes and merges inherit the licence of what they come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Commercial = Literal["yes", "conditional", "no"]

# a name that people type and that does not exist -> the one they mean
ALIASES = {"Qwen/Qwen2-VL-8B-Instruct": "Qwen/Qwen2-VL-7B-Instruct"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """`weights_gib` are stored and downloaded; `weights_as_gib` is what they take in memory, by what
    they can be kept in: one that is published quantised is kept as it is.
    """

    hub_id: str
    generation: str
    kind: str  # base, Instruct, Thinking; MoE; how it is quantised
    parameters: int
    weights_gib: float
    weights_as_gib: Mapping[str, float]
    licence: str
    commercial: Commercial


@dataclass(frozen=True, slots=True)
class _Size:
    """One size of one generation; the three figures are GiB in bf16, with 8 and with 4 bits."""

    prefix: str
    parameters: int
    bf16: float
    int8: float
    int4: float
    licence: str = "apache-2.0"
    commercial: Commercial = "yes"


_TONGYI = ("Tongyi Qianwen licence", "conditional")  # over 100 million monthly users must ask
_QWEN = ("Qwen licence", "conditional")  # likewise
_RESEARCH = ("Qwen research licence", "no")

_V1 = _Size("Qwen/Qwen-VL", 9_656_935_168, 18.0, 12.0, 9.1, *_TONGYI)
_V2 = (
    _Size("Qwen/Qwen2-VL-2B", 2_208_985_600, 4.1, 2.9, 2.3),
    _Size("Qwen/Qwen2-VL-7B", 8_291_375_616, 15.4, 9.4, 6.4),
    _Size("Qwen/Qwen2-VL-72B", 73_405_560_320, 136.7, 71.3, 39.9, *_TONGYI),
)
_V25 = (
    _Size("Qwen/Qwen2.5-VL-3B", 3_754_622_976, 7.0, 4.4, 3.2, *_RESEARCH),
    _Size("Qwen/Qwen2.5-VL-7B", 8_292_166_656, 15.4, 9.4, 6.4),
    _Size("Qwen/Qwen2.5-VL-32B", 33_452_718_336, 62.3, 33.3, 19.3),
    _Size("Qwen/Qwen2.5-VL-72B", 73_410_777_344, 136.7, 71.4, 39.9, *_QWEN),
)
_V3 = (
    _Size("Qwen/Qwen3-VL-2B", 2_127_532_032, 4.0, 2.7, 2.0),
    _Size("Qwen/Qwen3-VL-4B", 4_437_815_808, 8.3, 4.9, 3.3),
    _Size("Qwen/Qwen3-VL-8B", 8_767_123_696, 16.3, 9.9, 6.8),
    _Size("Qwen/Qwen3-VL-32B", 33_357_390_064, 62.1, 33.1, 19.1),
)
_V3_MOE = (
    _Size("Qwen/Qwen3-VL-30B-A3B", 31_070_754_032, 57.9, 30.0, 16.6),
    _Size("Qwen/Qwen3-VL-235B-A22B", 235_670_022_896, 439.0, 221.0, 116.0),
)


def _editions(
    size: _Size,
    generation: str,
    editions: dict[str, Literal["bf16", "int8", "int4"]],
) -> Iterator[Published]:
    for suffix, stored in editions.items():
        kept_as = {"bf16": size.bf16, "int8": size.int8, "int4": size.int4}
        kind = suffix.removeprefix("-").replace("-", " ") or "base"
        yield Published(
            hub_id=size.prefix + suffix,
            generation=generation,
            kind=f"MoE {kind}" if generation.endswith("_moe") else kind,
            parameters=size.parameters,
            weights_gib=kept_as[stored],
            weights_as_gib=kept_as if stored == "bf16" else {stored: kept_as[stored]},
            licence=size.licence,
            commercial=size.commercial,
        )


def _all() -> Iterator[Published]:
    yield from _editions(_V1, "qwen_vl", {"": "bf16", "-Chat": "bf16", "-Chat-Int4": "int4"})
    for size in _V2:
        yield from _editions(
            size,
            "qwen2_vl",
            {
                "": "bf16",
                "-Instruct": "bf16",
                "-Instruct-AWQ": "int4",
                "-Instruct-GPTQ-Int4": "int4",
                "-Instruct-GPTQ-Int8": "int8",
            },
        )
    for size in _V25:
        yield from _editions(size, "qwen2_5_vl", {"-Instruct": "bf16", "-Instruct-AWQ": "int4"})
    for size in _V3 + _V3_MOE:
        yield from _editions(
            size,
            "qwen3_vl" if size in _V3 else "qwen3_vl_moe",
            {
                "-Instruct": "bf16",
                "-Thinking": "bf16",
                "-Instruct-FP8": "int8",
                "-Thinking-FP8": "int8",
            },
        )


CATALOGUE: tuple[Published, ...] = tuple(_all())


def find(name: str) -> Published | None:
    """The published checkpoint of that name, in any case, with or without "Qwen/"; else None."""
    aliases = {alias.lower(): target for alias, target in ALIASES.items()}
    wanted = name.lower() if "/" in name else f"qwen/{name.lower()}"
    wanted = aliases.get(wanted, wanted).lower()
    return next((entry for entry in CATALOGUE if entry.hub_id.lower() == wanted), None)
