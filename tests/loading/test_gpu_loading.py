"""What a GPU gets, with a CPU in its place: quantised layers, and layers that come over the bus."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import tiny
from qvl.errors import InvalidParamError, OutOfMemoryError
from qvl.kernels.quantised import Fp8Linear
from qvl.loading.gpu import gpu_kind, to_gpu
from qvl.loading.offload import Plan, StreamedLayer, offload, plan, tensors
from qvl.models.attention import PackedCausal
from qvl.models.batch import ForwardBatch
from qvl.models.qwen_vl import QwenVL

CPU = torch.device("cpu")
LAYERS = 5


def random_model(**changes) -> QwenVL:
    torch.manual_seed(3)
    config = tiny.tiny_config("qwen3_vl", num_hidden_layers=LAYERS, **changes)
    return QwenVL(config).eval().requires_grad_(False)


@torch.inference_mode()
def logits(model: QwenVL) -> torch.Tensor:
    ids, at = torch.arange(40, 60), torch.arange(20)
    return model(ForwardBatch(ids, at.expand(3, -1), PackedCausal([0, 20]), at))


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (60, Plan(5, 0)),  # all: 10 + 5 * 10
        (59, Plan(2, 30)),  # two more leave, for the buffers of those that do
        (40, Plan(1, 40)),
        (39, Plan(0, 50)),
        (30, Plan(0, 50)),
    ],
)
def test_a_plan_uses_the_room_and_no_more(room, expected):
    made = plan(layers=5, layer_bytes=10, other_bytes=10, room_bytes=room)
    assert made == expected
    buffers = 0 if made.kept == 5 else 2
    assert 10 + 10 * (made.kept + buffers) <= room


def test_what_cannot_leave_the_card_must_fit():
    with pytest.raises(OutOfMemoryError, match="cannot leave the card"):
        plan(layers=5, layer_bytes=10, other_bytes=10, room_bytes=29)


@pytest.mark.parametrize("kept", range(LAYERS))
def test_streamed_layers_compute_what_they_did_and_move_what_was_planned(kept):
    model = random_model()
    expected = logits(model)
    layers = model.model.language_model.layers
    layer_bytes = sum(tensor.nbytes for tensor in tensors(layers[0]).values())
    bus = offload(layers, kept, CPU)
    assert torch.equal(logits(model), expected)
    before = bus.moved_bytes
    assert torch.equal(logits(model), expected)
    streamed = LAYERS - kept
    # one or two layers stay in the buffers
    assert bus.moved_bytes - before == (streamed * layer_bytes if streamed > 2 else 0)


def test_a_step_that_failed_half_way_leaves_no_wrong_weights():
    model = random_model()
    expected = logits(model)
    layers = model.model.language_model.layers
    offload(layers, 0, CPU)
    last = layers[3]
    assert isinstance(last, StreamedLayer)
    hook = last.layer.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        logits(model)
    hook.remove()
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("kind", ["fp8", "int4", None])
def test_a_model_that_is_too_large_says_the_same_and_how_much_it_moves(kind, caplog):
    wide = {"hidden_size": 128, "intermediate_size": 256, "vision": {"out_hidden_size": 128}}
    model = random_model(**wide)
    whole, short = copy.deepcopy(model), copy.deepcopy(model)
    to_gpu(whole, kind, torch.float32, CPU, room_bytes=1 << 40)
    bytes_of = {p: sum(t.nbytes for t in tensors(p).values()) for p in (model, whole)}
    assert (bytes_of[whole] < bytes_of[model]) == (kind is not None)
    to_gpu(copy.deepcopy(model), kind, torch.float32, CPU, room_bytes=bytes_of[whole])
    assert not caplog.messages
    to_gpu(short, kind, torch.float32, CPU, room_bytes=bytes_of[whole] - 1)
    assert "2 of 5 layers" in caplog.text
    assert torch.equal(logits(short), logits(whole))


def test_only_linear_layers_of_the_decoder_are_quantised():
    model = random_model()
    to_gpu(model, "fp8", torch.bfloat16, CPU, room_bytes=1 << 40)
    found = {name for name, module in model.named_modules() if isinstance(module, Fp8Linear)}
    assert {name.split(".layers.")[0] for name in found} == {"model.language_model"}
    assert len(found) == 7 * LAYERS
    assert isinstance(model.lm_head, nn.Linear)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.isfinite(logits(model)).all()


@pytest.mark.parametrize("dtype", ["fp8", "int8"])
def test_a_dtype_that_the_device_lacks_is_refused(dtype):
    with pytest.raises(InvalidParamError, match=dtype):
        gpu_kind(dtype, torch.device("mps"))
    assert gpu_kind("int4", CPU) is None
