"""What only a CUDA device can show; `make test-gpu`, and docs/gpu-checks.md for the last figures."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

from qvl import VLM, Image
from qvl.errors import QvlError
from qvl.tasks.describe import Describe, describe

PICTURES = sorted((Path(__file__).parents[1] / "examples" / "pictures").glob("*.png"))

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def cuda() -> str:
    if not torch.cuda.is_available():
        pytest.fail("no CUDA device here: these checks need one")
    return "cuda"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_embedded_model_says_on_cuda_what_it_says_on_the_cpu(
    cuda: str, dtype: Literal["fp32", "bf16"]
) -> None:
    images = [Image.of(path) for path in PICTURES]
    told = []
    for device in ("cpu", cuda):
        model = VLM(device=device, dtype=dtype)
        found = list(describe(model, images, Describe(languages=("ru", "en", "zh"), boxes=True)))
        model.close()
        told.append(
            [
                (d.text, d.boxes)
                for of_picture in found
                if not isinstance(of_picture, QvlError)
                for d in of_picture.values()
            ]
        )
    assert len(told[0]) == 3 * len(PICTURES)
    same = sum(a == b for a, b in zip(*told, strict=True)) / len(told[0])
    # bf16 kernels of different devices round differently; fp32 leaves no such excuse
    assert same == 1.0 if dtype == "fp32" else same >= 0.9
