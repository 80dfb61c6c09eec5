"""What stands under each visual token, taught to the tower directly.

Answers alone say a few words about a whole picture; the scenes know which thing covers every cell,
where its box ends and which letters lie there. Linear probes on the tower's output learn that
beside the answers, so that naming, counting, placing and reading start from features that hold
the place. The probes serve training only and are not part of the checkpoint. Targets in the manner of
FCOS (Tian et al. 2019, arXiv 1904.01355): a class for each cell, the box from every cell inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.scenes.kinds import by_key
from qvl.scenes.scene import PixelBox, Thing

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "hexagon")
TEXT = "text"
COLOURS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "black", "white", "grey", "brown",
    "light blue",
)  # fmt: skip
CLASSES: dict[str, int] = {
    what: number for number, what in enumerate((*by_key(), *SHAPES, TEXT), start=1)
}  # 0 is the background
# Cyrillic letters that look like Latin ones are the same letter to the eye
ALIKE: dict[str, str] = dict(zip("АВЕКМНОРСТХаеорсухЁё", "ABEKMHOPCTXaeopcyxEe", strict=True))
LETTERS: dict[str, int] = {
    letter: number
    for number, letter in enumerate(
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
        "БГДЖЗИЙЛПУФЦЧШЩЪЫЬЭЮЯбвгджзийклмнптфцчшщъыьэюя.,:;-+=%/()<>?!№₽$€"
    )
}
LETTERS |= {cyrillic: LETTERS[latin] for cyrillic, latin in ALIKE.items()}
MARKS = max(LETTERS.values()) + 1
COVERED = 0.12  # share of a cell that a thing must cover to be its class
SHARPNESS = 16.0  # of the cosines between cells and names
INSIDE = 0.35  # share of a letter that must lie in a cell to be found there
UNKNOWN = -100


@dataclass(frozen=True, slots=True)
class CellTruth:
    """Of V visual tokens: the class of the thing there [V] (0 none, UNKNOWN), its colour [V] (UNKNOWN
    none), its box [V, 4] as shares of the picture's sides, whether a thing's middle is there [V],
    letters [V, MARKS].
    """

    what: Tensor
    colour: Tensor
    box: Tensor
    middle: Tensor
    letters: Tensor


def shares(box: PixelBox, rows: int, cols: int, size: tuple[int, int]) -> np.ndarray:
    """How many pixels of the box lie in each cell, [rows, cols]."""
    across, down = (
        np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None)
        for low, high, edges in (
            (box[0], box[2], np.linspace(0, size[0], cols + 1)),
            (box[1], box[3], np.linspace(0, size[1], rows + 1)),
        )
    )
    return down[:, None] * across[None, :]


def class_of(thing: Thing) -> int:
    return CLASSES[TEXT] if thing.letters else CLASSES.get(thing.what, UNKNOWN)


def unknown_cells(count: int) -> tuple[np.ndarray, ...]:
    """Of a picture of which nothing is told."""
    return (
        np.full(count, UNKNOWN, np.int64),
        np.full(count, UNKNOWN, np.int64),
        np.zeros((count, 4), np.float32),
        np.full(count, UNKNOWN, np.float32),
        np.zeros((count, MARKS), np.float32),
    )


def cells_of(
    things: Sequence[Thing], size: tuple[int, int], rows: int, cols: int
) -> tuple[np.ndarray, ...]:
    """The fields of CellTruth about rows x cols cells of one picture of `size`, in raster order."""
    cell_px = size[0] * size[1] / (rows * cols)
    count = rows * cols
    what, colour = np.zeros(count, np.int64), np.full(count, UNKNOWN, np.int64)
    box, middle = np.zeros((count, 4), np.float32), np.zeros(count, np.float32)
    letters = np.zeros((count, MARKS), np.float32)
    most = np.full(count, COVERED)
    for thing in things:
        covered = (shares(thing.box, rows, cols, size) / cell_px).reshape(-1)
        x1, y1, x2, y2 = thing.box
        middle_col = min(cols - 1, max(0, int((x1 + x2) / 2 / size[0] * cols)))
        middle_row = min(rows - 1, max(0, int((y1 + y2) / 2 / size[1] * rows)))
        at_middle = middle_row * cols + middle_col
        mine = covered > most
        mine[at_middle] = True
        middle[at_middle] = 1
        most = np.maximum(covered, most)
        what[mine] = class_of(thing)
        colour[mine] = COLOURS.index(thing.colour) if thing.colour in COLOURS else UNKNOWN
        box[mine] = np.array((x1 / size[0], y1 / size[1], x2 / size[0], y2 / size[1]))
        for letter, place in thing.letters:
            if letter not in LETTERS:
                continue
            area = (place[2] - place[0]) * (place[3] - place[1])
            inside = shares(place, rows, cols, size).reshape(-1) > INSIDE * max(area, 1e-6)
            letters[inside, LETTERS[letter]] = 1
    return what, colour, box, middle, letters


def class_names(encode: Callable[[str], list[int]]) -> Tensor:
    """Token ids int64 [forms, kinds of objects, longest name], padded with -1."""
    kinds = by_key().values()
    forms = [(k.ru, f" {k.ru}", f" {k.ru_gen}", k.en, f" {k.en}", k.zh) for k in kinds]
    names = [[encode(name) for name in form] for form in zip(*forms, strict=True)]
    longest = max(len(ids) for row in names for ids in row)
    return torch.tensor([[ids + [-1] * (longest - len(ids)) for ids in row] for row in names])


def naming_loss(rows_vd: Tensor, truth: CellTruth, embeddings: Tensor, names_lct: Tensor) -> Tensor:
    """How far the tower's output about an object is from the embedding of its name, in nats.

    Cosines to the names of all kinds, in every form, as in CLIP (arXiv 2103.00020). Attention
    finds what a question names by likeness; where a cat looks like the word cat, it need not learn
    that for every object and language apart. The embeddings themselves are not moved.
    """
    named = (truth.what > 0) & (truth.what <= names_lct.shape[1])
    if not named.any():
        return rows_vd.sum() * 0
    tokens = embeddings.detach()[names_lct.clamp(min=0)] * (names_lct >= 0).unsqueeze(-1)
    names_lcd = F.normalize(tokens.sum(2), dim=-1)
    cosines = torch.einsum("vd,lcd->lvc", F.normalize(rows_vd[named], dim=-1), names_lcd)
    wanted = (truth.what[named] - 1).expand(len(names_lct), -1)
    return F.cross_entropy(SHARPNESS * cosines.flatten(0, 1), wanted.flatten())


class Probes(nn.Module):
    """Linear readings of the tower's output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.parts = (len(CLASSES) + 1, len(COLOURS), 4, 1, MARKS)
        self.norm = nn.LayerNorm(width)
        self.read = nn.Linear(width, sum(self.parts))
        nn.init.normal_(self.read.weight, std=0.02)
        nn.init.zeros_(self.read.bias)
        with torch.no_grad():
            self.read.bias[-1 - MARKS :] = -3.0  # middles and letters are rare

    def loss(self, rows_vd: Tensor, truth: CellTruth) -> Tensor:
        """One figure (nats and shares of a side, summed) for V visual tokens."""
        parts = self.read(self.norm(rows_vd)).float().split(self.parts, dim=-1)
        what, colour, box, middle, letters = parts
        known, covered = truth.middle >= 0, truth.what > 0
        coloured = truth.colour >= 0
        written = truth.letters.sum(-1) > 0
        loss = F.cross_entropy(what, truth.what, ignore_index=UNKNOWN)
        # counting is finding middles, and they are rare
        found = middle.squeeze(-1)[known]
        loss = loss + 3 * F.binary_cross_entropy_with_logits(found, truth.middle[known])
        loss = loss + 4 * F.l1_loss(box[covered], truth.box[covered])
        if coloured.any():
            loss = loss + 0.2 * F.cross_entropy(colour[coloured], truth.colour[coloured])
        if written.any():
            marks = F.binary_cross_entropy_with_logits(
                letters[written], truth.letters[written], reduction="none"
            )
            loss = loss + 0.2 * marks.sum(-1).mean()
        return loss


class Pointer(nn.Module):
    """A linear reading of the decoder at a token: where the thing is that this token is about.

    One word of answer says little about which object it came from; this teaches that a noun in the
    question looks its object up in the picture, and that the answer begins with the first noun's.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.read = nn.Linear(width, 4)
        nn.init.normal_(self.read.weight, std=0.02)
        nn.init.constant_(self.read.bias, 0.5)

    def loss(self, tokens_nd: Tensor, boxes_n4: Tensor) -> Tensor:
        """Mean error of the sides, as shares of the picture's; 0 for no tokens."""
        if not len(tokens_nd):
            return torch.zeros((), device=tokens_nd.device)
        return F.l1_loss(self.read(self.norm(tokens_nd)).float(), boxes_n4)
