"""The whole model: a vision tower, a decoder and the head that turns hidden states into logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.errors import EngineError
from qvl.models.batch import ForwardBatch, VisionFeatures
from qvl.models.config import ModelConfig
from qvl.models.decoder import Decoder
from qvl.models.qwen_v1 import FixedTower
from qvl.models.vision import Grid, VisionTower


class VisionAndText(nn.Module):
    """Only there for the names of the published files: model.visual.*, model.language_model.*."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        is_first = config.generation == "qwen_vl"
        self.visual: VisionTower | FixedTower = (
            FixedTower(config.vision) if is_first else VisionTower(config.vision)
        )
        self.language_model = Decoder(config.decoder)


class QwenVL(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # of a view with an adapter: what names the adapter's content, and that if it changes the tower
        self.adapter = self.tower_adapter = ""
        self.model = VisionAndText(config)
        # None: the embedding table is the head too
        self.lm_head: nn.Module | None = None
        if not config.decoder.tied_head:
            self.lm_head = nn.Linear(config.decoder.hidden, config.decoder.vocab_size, bias=False)

    @property
    def dtype(self) -> torch.dtype:
        """Of hidden states, keys and values; weights may be kept in another."""
        return self.model.language_model.norm.weight.dtype

    @property
    def token_bytes(self) -> int:
        """Weights that are read for one token: the decoder's layers and the head.

        Of a mixture's experts as many as a token goes through.
        """
        language, decoder = self.model.language_model, self.config.decoder
        head = language.embed_tokens if self.lm_head is None else self.lm_head
        total = 0.0
        for part in (language.layers, head):
            for name, tensor in (*part.named_parameters(), *part.named_buffers()):
                chosen = decoder.experts_per_token / decoder.experts if ".experts." in name else 1
                total += tensor.nbytes * chosen
        return round(total)

    def head(self, hidden_bd: Tensor) -> Tensor:
        """Logits [B, vocab]."""
        if self.lm_head is not None:
            return self.lm_head(hidden_bd)
        return F.linear(hidden_bd, self.model.language_model.embed_tokens.weight)

    def encode_images(self, rows_sc: Tensor, grids: Sequence[Grid]) -> VisionFeatures:
        """Features of all pictures of the call, in order: [V, D] and the deepstack levels."""
        return self.model.visual(rows_sc, grids)

    def forward(self, batch: ForwardBatch) -> Tensor:
        """fp32 logits [B, vocab] of the wanted tokens.

        Raises EngineError when the visual rows are not as many as their places.
        """
        rows = 0 if batch.vision is None else len(batch.vision.rows_vd)
        places = 0 if batch.vision_at_v is None else len(batch.vision_at_v)
        if rows != places:
            raise EngineError(f"the prompt has {places} places for {rows} visual tokens")
        return self.head(self.model.language_model(batch)).float()
