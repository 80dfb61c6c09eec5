"""One pass of training: packed examples in, the loss of what they say out.

Main path: collate -> Passage -> Loss.forward (tower, decoder, head and cross entropy in pieces).
Packed tokens, never padded; logits only where something is learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from qvl.kernels.build import library
from qvl.loading.model import pack_tower
from qvl.models.batch import ForwardBatch, VisionFeatures
from qvl.models.features import FeatureCache
from qvl.models.qwen_vl import QwenVL
from qvl.models.vision import Grid
from qvl.processing.prompt import PromptImage
from qvl.training.examples import IGNORE, Example

# of fp32 logits that are in memory at once; those of a whole pass are made in pieces, twice
LOGITS_BYTES = 256 << 20
PADDED = 1.25  # examples are computed together up to this many times the length of the shortest


@dataclass(frozen=True, slots=True, eq=False)
class Passage:
    """T packed tokens of several examples. `wanted` [N] are the places in T after which something is
    learnt, `targets` [N] what is said there; `bounds` are cu_seqlens of the examples; `branch` [T] is
    the examples', None where none has branches; `places` [V] is where the visual tokens stand.
    """

    ids: Tensor
    positions: Tensor
    wanted: Tensor
    targets: Tensor
    bounds: tuple[int, ...]
    branch: Tensor | None
    images: tuple[PromptImage, ...]
    places: Tensor

    def to(self, device: torch.device) -> Passage:
        tensors = ("ids", "positions", "wanted", "targets", "places")
        moved = {name: getattr(self, name).to(device) for name in tensors}
        return replace(
            self, **moved, branch=None if self.branch is None else self.branch.to(device)
        )

    def unlearned(self) -> Passage:
        """The same, of which nothing is learnt."""
        return replace(self, wanted=self.wanted[:0], targets=self.targets[:0])


def collate(examples: Sequence[Example]) -> Passage:
    bounds = (0, *accumulate(len(e.ids) for e in examples))
    targets = torch.from_numpy(np.concatenate([e.targets for e in examples]))
    wanted = (targets != IGNORE).nonzero().flatten()
    places = [
        np.arange(image.start, image.start + image.tokens) + start
        for example, start in zip(examples, bounds, strict=False)
        for image in example.images
    ]
    branch = np.concatenate([e.branch for e in examples])
    return Passage(
        ids=torch.from_numpy(np.concatenate([e.ids for e in examples])),
        positions=torch.from_numpy(np.concatenate([e.positions for e in examples], axis=1)),
        wanted=wanted,
        targets=targets[wanted],
        bounds=bounds,
        branch=torch.from_numpy(branch) if branch.any() else None,
        images=tuple(image for e in examples for image in e.images),
        places=torch.from_numpy(np.concatenate([np.empty(0, np.int64), *places])),
    )


class PackedBranches:
    """`Attend` of packed examples: causal, each example by itself, and in it each branch.

    Examples of about one length are computed together, padded at their ends.
    """

    def __init__(self, bounds: Sequence[int], branch_t: Tensor | None) -> None:
        self.lengths = [end - start for start, end in pairwise(bounds)]
        order = sorted(range(len(self.lengths)), key=self.lengths.__getitem__)
        self.groups: list[Group] = []
        while order:
            longest = PADDED * self.lengths[order[0]]
            count = sum(self.lengths[i] <= longest for i in order)
            branches = [
                None if branch_t is None else branch_t[bounds[i] : bounds[i + 1]]
                for i in order[:count]
            ]
            self.groups.append(Group.of(order[:count], self.lengths, branches))
            order = order[count:]

    def __call__(self, layer: int, q_tnh: Tensor, k_tkh: Tensor, v_tkh: Tensor) -> Tensor:
        pieces = [x.split(self.lengths) for x in (q_tnh, k_tkh, v_tkh)]
        parts: list[Tensor] = [q_tnh] * len(self.lengths)
        for group in self.groups:
            q, k, v = (
                pad_sequence([piece[i] for i in group.at], batch_first=True).transpose(1, 2)
                for piece in pieces
            )
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=group.mask, is_causal=group.mask is None, enable_gqa=True
            )
            flat = out.transpose(1, 2).flatten(0, 1)[group.real.to(q_tnh.device)]
            for i, part in zip(
                group.at, flat.split([self.lengths[i] for i in group.at]), strict=True
            ):
                parts[i] = part
        return torch.cat(parts)


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Examples by their numbers; which of their padded tokens are theirs, as places [T] among B x L;
    and bool [B, 1, L, L], who sees whom; None: plainly causal.
    """

    at: Sequence[int]
    real: Tensor
    mask: Tensor | None

    @classmethod
    def of(
        cls, at: Sequence[int], lengths: Sequence[int], branches: Sequence[Tensor | None]
    ) -> Group:
        longest = lengths[at[-1]]
        real = torch.cat([torch.arange(lengths[i]) + n * longest for n, i in enumerate(at)])
        if all(branch is None or not branch.any() for branch in branches):
            return cls(at, real, None)
        # what is padded is a branch of its own, so each of it sees something
        padded = pad_sequence(
            [b for b in branches if b is not None], batch_first=True, padding_value=-1
        )
        return cls(at, real, torch.stack([seen_by(b) for b in padded])[:, None])


def seen_by(branch_l: Tensor) -> Tensor:
    """bool [L, L]: which tokens (columns) each token (rows) of an example sees."""
    length = len(branch_l)
    causal = torch.ones(length, length, dtype=torch.bool, device=branch_l.device).tril()
    same = branch_l[:, None] == branch_l[None, :]
    return causal & (same | (branch_l == 0)[None, :])


class Loss(nn.Module):
    """The model with what it is asked in training: the sum of the cross entropies of a passage.

    Where nothing of the tower is trained, its features are computed without gradients, and kept by
    the pictures' content within `feature_bytes`; in bf16 on a CPU by the compiled kernels, as when the
    model runs.
    """

    def __init__(self, model: QwenVL, *, feature_bytes: int = 1 << 30) -> None:
        super().__init__()
        self.model = model
        tower = model.model.visual
        self.tower_trains = any(p.requires_grad for p in tower.parameters())
        first = next(tower.parameters())
        on_cpu = first.device.type == "cpu" and library() is not None
        self.tower_is_packed = on_cpu and not self.tower_trains and first.dtype == torch.bfloat16
        if self.tower_is_packed:
            pack_tower(tower)
        self.kept = FeatureCache(feature_bytes)

    def forward(self, passage: Passage) -> Tensor:
        """Nats, fp32 []."""
        vision = self.features(passage.images)
        batch = ForwardBatch(
            ids_t=passage.ids,
            positions_3t=passage.positions,
            attend=PackedBranches(passage.bounds, passage.branch),
            wanted_b=passage.wanted,
            vision=vision,
            vision_at_v=None if vision is None else passage.places,
        )
        hidden = self.model.model.language_model(batch)
        at_once = max(1, LOGITS_BYTES // (4 * self.model.config.decoder.vocab_size))
        pieces = list(zip(hidden.split(at_once), passage.targets.split(at_once), strict=True))
        if len(pieces) == 1:
            return self.entropy(*pieces[0])
        sums = [checkpoint(self.entropy, h, t, use_reentrant=False) for h, t in pieces]
        return torch.stack(sums).sum()

    def entropy(self, hidden_nd: Tensor, targets_n: Tensor) -> Tensor:
        logits = self.model.head(hidden_nd).float()
        return F.cross_entropy(logits, targets_n, reduction="sum")

    def features(self, images: Sequence[PromptImage]) -> VisionFeatures | None:
        if not images:
            return None
        if self.tower_trains:
            return self.encoded(images)
        needed = {image.sha256: self.kept.get(image.sha256) for image in images}
        missing = [i for i in {i.sha256: i for i in images}.values() if needed[i.sha256] is None]
        # what a picture gives must not depend on its neighbours, which others are after a resume
        at_once = len(missing) if self.tower_is_packed else 1
        for start in range(0, len(missing), max(1, at_once)):
            some = missing[start : start + at_once]
            with (
                torch.no_grad(),
                torch.autocast(self.device.type, enabled=not self.tower_is_packed),
            ):
                encoded = self.encoded(some).split([image.tokens for image in some])
            needed |= {image.sha256: one for image, one in zip(some, encoded, strict=True)}
        found = {name: features for name, features in needed.items() if features is not None}
        for name, features in found.items():
            self.kept.put(name, features)
        return VisionFeatures.joined(found[image.sha256] for image in images)

    @property
    def device(self) -> torch.device:
        return self.model.model.language_model.norm.weight.device

    def encoded(self, images: Sequence[PromptImage]) -> VisionFeatures:
        rows = np.concatenate([image.patches.rows for image in images])
        grids: list[Grid] = [image.patches.grid for image in images]
        return self.model.encode_images(torch.from_numpy(rows).to(self.device), grids)


def recompute_layers(model: QwenVL) -> None:
    """Keep only what goes into each layer, and compute the layer again for its gradients.

    (Gradient checkpointing, Chen et al. 2016, arXiv 1604.06174.)
    """
    tower = getattr(model.model.visual, "blocks", ())
    for layer in (*model.model.language_model.layers, *tower):
        plain = layer.forward
        layer.forward = lambda *args, plain=plain: checkpoint(plain, *args, use_reentrant=False)
