"""The first Qwen-VL through our engine equals its formulas, computed slowly (slow_v1.py)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from torch import Tensor

import slow_v1
import tiny_v1
from quantised_folders import (
    FORMATS,
    GPTQ,
    is_quantised_in_the_first,
    save_first_quantised,
)
from qvl.engine.engine import Engine, banned_ids
from qvl.engine.graphs import StaticDecode
from qvl.engine.request import EngineRequest, Finished, SamplingParams, Token
from qvl.errors import (
    ConfigError,
    EngineError,
    InvalidParamError,
    ModelFormatError,
    PromptTooLongError,
)
from qvl.kernels.linear import Int4Linear
from qvl.loading.checkpoint import Checkpoint, StoredTensor, match
from qvl.loading.config import model_config
from qvl.loading.convert import convert
from qvl.loading.model import LoadedModel, empty_model, load_model
from qvl.loading.offload import tensors
from qvl.loading.pickled import convert_pickled
from qvl.loading.quantised import exact_dtypes, make_places, own_dtypes
from qvl.models.attention import PackedCausal
from qvl.models.batch import ForwardBatch
from qvl.models.decoder import Decoder, DecoderLayer
from qvl.models.rope import rotate, stretch
from qvl.processing.prompt import Prompt, build_prompt
from qvl.types import DType, Image, Message, Text, Video
from qvl.vlm.local import engine_image

SIDE_PX = 2 * tiny_v1.SIDE * 14
TOKENS = tiny_v1.SIDE**2


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("v1")
    tiny_v1.save_published(folder / "published")
    convert_pickled(folder / "published", folder / "converted")
    return folder / "converted"


@pytest.fixture(scope="module")
def loaded(converted: Path) -> LoadedModel:
    return load_model(converted, dtype="fp32")


@dataclass(frozen=True)
class Slow:
    """The reference with the weights of one folder."""

    weights: dict[str, np.ndarray]
    pictures: list[Path]

    @classmethod
    def of(cls, tensors: dict[str, Tensor], pictures: list[Path]) -> Slow:
        return cls({name: t.double().numpy() for name, t in tensors.items()}, pictures)

    @cached_property
    def rows(self) -> list[np.ndarray]:
        """Of each picture."""
        opened = [slow_v1.pixels(PILImage.open(path), SIDE_PX) for path in self.pictures]
        return [slow_v1.features(pixels, self.weights, heads=2) for pixels in opened]

    def logits(self, ids: list[int], rows: np.ndarray, *, prompt_tokens: int) -> np.ndarray:
        image_id = tiny_v1.control_id("<imgpad>")
        sizes = {"heads": 8, "prompt_tokens": prompt_tokens, "start": tiny_v1.START}
        return slow_v1.logits(ids, rows, image_id, self.weights, **sizes)

    def greedy(self, loaded: LoadedModel, asked: Prompt, shown: list[int]) -> list[int]:
        """8 tokens after a prompt with those pictures."""
        never = banned_ids(loaded.config, loaded.tokenizer.vocab_size).numpy()
        rows = np.concatenate([np.empty((0, tiny_v1.HIDDEN)), *(self.rows[i] for i in shown)])
        ids = asked.ids.tolist()
        for _ in range(8):
            last = self.logits(ids, rows, prompt_tokens=len(asked.ids))[-1]
            ids.append(int(np.where(never, -np.inf, last).argmax()))
        return ids[len(asked.ids) :]


@pytest.fixture(scope="module")
def slow(pictures: list[Path]) -> Slow:
    return Slow.of(tiny_v1.tensors(tiny_v1.config_json()), pictures)


@pytest.fixture(scope="module")
def int4(tmp_path_factory: pytest.TempPathFactory, pictures: list[Path]) -> tuple[Path, Slow]:
    """Qwen-VL-Chat-Int4, and the reference with the weights that it stands for."""
    folder = tmp_path_factory.mktemp("int4")
    return folder, Slow.of(save_first_quantised(folder), pictures)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(3)
    paths = []
    for index, (width, height) in enumerate([(120, 60), (50, 97)]):
        coarse = noise.integers(0, 256, (5, 7, 3), np.uint8)
        picture = PILImage.fromarray(coarse).resize((width, height))
        paths.append(folder / f"{index}.png")
        picture.save(paths[-1])
    return paths


def prompt(loaded: LoadedModel, *messages: Message) -> Prompt:
    return build_prompt(
        messages,
        tokenizer=loaded.tokenizer,
        rules=loaded.rules,
        generation=loaded.template,
        image_token_id=loaded.config.image_token_id,
    )


def user(*parts: str | Path) -> Message:
    return Message("user", tuple(Text(p) if isinstance(p, str) else Image(p) for p in parts))


def close(ours: torch.Tensor, slow: np.ndarray) -> float:
    """The largest difference, as a share of the largest number."""
    return float(np.abs(ours.double().numpy() - slow).max() / np.abs(slow).max())


@pytest.mark.parity
@torch.inference_mode()
def test_features_and_logits_equal_the_slow_reference(
    loaded: LoadedModel, slow: Slow, record_property: Callable[[str, object], None]
) -> None:
    features, logits = differences(loaded, slow)
    row = ("qwen_vl", "several pictures", f"{features:.1e}", f"{logits:.1e}", "below", "")
    record_property("parity", row)


def differences(loaded: LoadedModel, slow: Slow) -> tuple[float, float]:
    """Of the features and of the logits, both checked."""
    first, second = slow.pictures
    asked = prompt(loaded, user(first, "Is this ", second, "the same cup? 杯子"))
    rows_sc = torch.from_numpy(np.concatenate([i.patches.rows for i in asked.images]))
    vision = loaded.model.encode_images(rows_sc, [i.patches.grid for i in asked.images])
    rows = np.concatenate(slow.rows)
    assert vision.rows_vd.shape == rows.shape == (2 * TOKENS, tiny_v1.HIDDEN)
    features = close(vision.rows_vd, rows)
    assert features < 1e-5

    ids = torch.from_numpy(asked.ids)
    batch = ForwardBatch(
        ids_t=ids,
        positions_3t=torch.from_numpy(asked.positions),
        attend=PackedCausal([0, len(ids)]),
        wanted_b=torch.arange(len(ids)),
        vision=vision,
        vision_at_v=(ids == loaded.config.image_token_id).nonzero().squeeze(1),
        stretch_t=torch.full_like(ids, 7),
    )
    expected = slow.logits(asked.ids.tolist(), rows, prompt_tokens=len(ids))
    assert len(ids) > 2 * tiny_v1.START  # stretched by 7
    logits = close(loaded.model(batch), expected)
    assert logits < 1e-5
    return features, logits


@pytest.mark.parity
@torch.inference_mode()
def test_int4_equals_the_slow_reference_with_its_weights_plain(
    int4: tuple[Path, Slow], record_property: Callable[[str, object], None]
) -> None:
    folder, slow = int4
    loaded = load_model(folder, dtype="fp32")
    features, logits = differences(loaded, slow)
    asked = prompt(loaded, user("Which of ", slow.pictures[1], slow.pictures[0], "is red?"))
    expected = slow.greedy(loaded, asked, [1, 0])
    assert answers(new_engine(loaded), request("two", asked)) == {"two": expected}
    differ = (f"{features:.1e}", f"{logits:.1e}")
    record_property("parity", ("qwen_vl gptq", "several pictures", *differ, len(expected), ""))


@torch.inference_mode()
def test_int4_keeps_the_stored_integers_of_q_k_and_v_in_one(
    int4: tuple[Path, Slow], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, slow = int4
    loaded = load_model(folder)
    assert loaded.dtype == "int4"
    assert not caplog.messages
    convert(folder, tmp_path / "packed", "int4")
    packed = load_model(tmp_path / "packed")
    for layer in range(tiny_v1.LAYERS):
        for ours, theirs in (
            ("qkv_proj", ["attn.c_attn"]),
            ("o_proj", ["attn.c_proj"]),
            ("mlp.gate_up_proj", ["mlp.w2", "mlp.w1"]),
            ("mlp.down_proj", ["mlp.c_proj"]),
        ):
            names = [f"transformer.h.{layer}.{name}.weight" for name in theirs]
            weight = np.concatenate([slow.weights[name] for name in names])
            for one in (loaded, packed):
                found = one.model.get_submodule(f"model.language_model.layers.{layer}.{ours}")
                assert isinstance(found, Int4Linear)
                assert torch.equal(found.weight(), torch.from_numpy(weight).float()), ours
    bias = torch.from_numpy(slow.weights["transformer.h.1.attn.c_attn.bias"]).float()
    found = loaded.model.get_submodule("model.language_model.layers.1.qkv_proj")
    assert isinstance(found, Int4Linear)
    assert found.bias is not None
    assert torch.equal(found.bias[: len(bias)], bias)
    text = "Is it 杯子?"
    assert packed.tokenizer.encode_text(text) == loaded.tokenizer.encode_text(text)


@pytest.mark.parametrize(("dtype", "floor"), [("bf16", 0.9999), ("int8", 0.999)])
@torch.inference_mode()
def test_packed_weights_say_nearly_the_same(
    converted: Path, pictures: list[Path], dtype: DType, floor: float
) -> None:
    said = []
    for one in (load_model(converted, dtype="fp32"), load_model(converted, dtype=dtype)):
        asked = prompt(one, user(pictures[0], "What is it?"))
        image, ids = asked.images[0], torch.from_numpy(asked.ids)
        batch = ForwardBatch(
            ids_t=ids,
            positions_3t=torch.from_numpy(asked.positions),
            attend=PackedCausal([0, len(ids)]),
            wanted_b=torch.arange(len(ids)),
            vision=one.model.encode_images(torch.from_numpy(image.patches.rows), [(1, 6, 6)]),
            vision_at_v=torch.arange(image.start, image.start + TOKENS),
        )
        said.append(one.model(batch).flatten())
    assert torch.cosine_similarity(*said, dim=0) > floor


def request(name: str, asked: Prompt) -> EngineRequest:
    return EngineRequest(
        id=name,
        ids=asked.ids,
        positions=asked.positions,
        next_position=asked.next_position,
        params=SamplingParams(max_new_tokens=8, seed=1, temperature=0.0),
        images=tuple(engine_image(image) for image in asked.images),
    )


def answers(engine: Engine, *requests: EngineRequest) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {r.id: [] for r in requests}
    for one in requests:
        engine.add(one)
    while not engine.idle:
        for event in engine.step():
            if isinstance(event, Token):
                found[event.request_id].append(event.token_id)
            elif event.error is not None:
                raise event.error
    return found


def new_engine(loaded: LoadedModel, **options: Any) -> Engine:
    tokenizer = loaded.tokenizer
    return Engine(
        loaded.model,
        token_bytes=tokenizer.token_bytes,
        vocab_size=tokenizer.vocab_size,
        **options,
    )


@pytest.mark.parity
def test_greedy_tokens_equal_the_slow_reference_in_every_way_of_computing(
    loaded: LoadedModel, slow: Slow, record_property: Callable[[str, object], None]
) -> None:
    pictures = slow.pictures
    asked = {
        "one": prompt(loaded, user(pictures[0], "What is it?")),
        "two": prompt(loaded, user("Which of ", pictures[1], pictures[0], "is red?")),
        "text": prompt(loaded, user("你好"), Message("assistant", (Text("Hi."),)), user("And?")),
        "short": prompt(loaded, Message("system", ()), user("Hi")),
    }
    shown = {"one": [0], "two": [1, 0], "text": [], "short": []}
    reached = {name: stretch(len(one.ids), tiny_v1.START) for name, one in asked.items()}
    assert reached == {"one": 3, "two": 7, "text": 3, "short": 1}
    expected = {name: slow.greedy(loaded, one, shown[name]) for name, one in asked.items()}
    requests = [request(name, one) for name, one in asked.items()]
    alone = {}
    for one in requests:
        alone |= answers(new_engine(loaded), one)
    assert alone == expected
    assert answers(new_engine(loaded), *requests) == expected  # together
    assert answers(new_engine(loaded, token_budget=7), *requests) == expected  # in parts
    replayed = new_engine(loaded, draft_tokens=0)  # in steps of fixed shapes, as on a GPU
    replayed._static = StaticDecode(loaded.model, replayed._cache, torch.device("cpu"))
    assert answers(replayed, *requests) == expected
    engine = new_engine(loaded)
    assert answers(engine, requests[0])["one"] == expected["one"]
    again = request("again", asked["one"])
    engine.add(again)
    events = [event for _ in range(20) for event in engine.step()]
    end = events[-1]
    assert isinstance(end, Finished)
    assert end.cached_tokens > 0
    assert [e.token_id for e in events if isinstance(e, Token)] == expected["one"]
    for name, said in expected.items():
        record_property("parity", ("qwen_vl", name, "", "", len(said), ""))


def test_a_picture_is_another_size_or_the_prompt_is_too_long(
    loaded: LoadedModel, pictures: list[Path]
) -> None:
    with pytest.raises(EngineError, match="takes"):
        loaded.model.encode_images(torch.zeros(16, 588), [(1, 4, 4)])
    limit = loaded.config.decoder.max_positions
    long = prompt(loaded, user(*["\n0"] * (limit // 2)))
    with pytest.raises(PromptTooLongError, match=f"the model's context is {limit}"):
        new_engine(loaded).add(request("long", long))


def test_prompts_that_are_stretched_otherwise_share_no_beginning(loaded: LoadedModel) -> None:
    words = ["one two three four five six seven eight nine ten"]
    asked = [
        request(str(length), prompt(loaded, Message("system", ()), user(*words * length)))
        for length in (1, 2, 4)
    ]
    alone = {}
    for one in asked:
        alone |= answers(new_engine(loaded), one)
    engine = new_engine(loaded)
    for one in asked:
        assert answers(engine, one)[one.id] == alone[one.id]


def test_the_rotation_is_fp32_and_its_result_of_the_models_dtype() -> None:
    x_tnh = torch.randn(5, 2, 8).bfloat16()
    angles = torch.randn(5, 4).repeat(1, 2)
    turned = rotate(x_tnh, angles.cos(), angles.sin())
    assert torch.equal(turned, rotate(x_tnh.float(), angles.cos(), angles.sin()).bfloat16())
    seen: list[Tensor] = []

    def attend(layer: int, q_tnh: Tensor, k_tkh: Tensor, v_tkh: Tensor) -> Tensor:
        seen.append(k_tkh)
        return v_tkh

    torch.manual_seed(0)
    decoder = Decoder(model_config(tiny_v1.config_json()).decoder).bfloat16()
    positions_3t = torch.arange(5).expand(3, -1)
    batch = ForwardBatch(torch.arange(5), positions_3t, attend, torch.arange(5))
    with torch.inference_mode():
        decoder(batch)
        layer = decoder.layers[0]
        assert isinstance(layer, DecoderLayer)
        k = layer.self_attn.k_proj(layer.input_layernorm(decoder.embed_tokens(batch.ids_t)))
    exact = np.array(
        [
            [slow_v1.turned(head, p, 10_000.0) for head in row]
            for p, row in enumerate(k.unflatten(-1, (8, -1)).double().numpy())
        ]
    )
    assert torch.equal(seen[0], torch.from_numpy(exact).bfloat16())


def test_the_stretch_is_the_published_formula() -> None:
    for tokens in range(1, 8193):
        formula = max(2 ** math.ceil(math.log2(tokens / 2048) + 1) - 1, 1)
        assert stretch(tokens, 2048) == formula
    assert [stretch(n, 2048) for n in (2048, 2049, 4096, 4097, 8192)] == [1, 3, 3, 7, 7]


# ---- prompts -----------------------------------------------------------------------------------


def ids_of(loaded: LoadedModel, *parts: str | int) -> list[int]:
    found = []
    for part in parts:
        found += [part] if isinstance(part, int) else loaded.tokenizer.encode_template(part)
    return found


def test_the_chat_template(loaded: LoadedModel, pictures: list[Path]) -> None:
    asked = prompt(
        loaded,
        user(pictures[0], "What is it?"),
        Message("assistant", (Text("A cup."),)),
        user(pictures[1], "And this? <img>x</img><|im_end|>"),
    )
    pads = "<img>" + "<imgpad>" * TOKENS + "</img>\n"
    typed = loaded.tokenizer.encode_text("\nAnd this? <img>x</img><|im_end|>")
    assert asked.ids.tolist() == [
        *ids_of(loaded, "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"),
        *ids_of(loaded, f"<|im_start|>user\nPicture 1: {pads}What is it?<|im_end|>\n"),
        *ids_of(loaded, "<|im_start|>assistant\nA cup.<|im_end|>\n"),
        *ids_of(loaded, f"<|im_start|>user\nPicture 2: {pads[:-1]}"),
        *typed,
        *ids_of(loaded, "<|im_end|>\n<|im_start|>assistant\n"),
    ]
    assert asked.positions.tolist() == [list(range(len(asked.ids)))] * 3
    assert asked.next_position == len(asked.ids)
    assert [image.info and image.info.resized_width_px for image in asked.images] == [SIDE_PX] * 2
    own = Message("system", (Text("Be brief."),))
    assert prompt(loaded, own, user("Hi")).ids.tolist() == ids_of(
        loaded,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n",
    )
    stops = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    assert set(loaded.defaults.stop_ids) == {tiny_v1.control_id(token) for token in stops}
    assert (loaded.defaults.top_p, loaded.defaults.top_k) == (0.3, 0)


def test_it_takes_no_videos(loaded: LoadedModel) -> None:
    assert loaded.video_rules is None
    with pytest.raises(InvalidParamError, match="takes no videos"):
        prompt(loaded, Message("user", (Video(source=Path("clip.mp4")),)))


def test_the_base_model_goes_on_with_plain_text(tmp_path: Path, pictures: list[Path]) -> None:
    tiny_v1.save_published(tmp_path / "published", chat_format="raw")
    convert_pickled(tmp_path / "published", tmp_path / "base")
    loaded = load_model(tmp_path / "base", dtype="fp32")
    asked = prompt(loaded, user(pictures[0], "Describe it in English:"))
    pads = "<img>" + "<imgpad>" * TOKENS + "</img>\n"
    assert asked.ids.tolist() == ids_of(loaded, f"Picture 1: {pads}Describe it in English:")


# ---- sizes and names ---------------------------------------------------------------------------


def test_the_published_model_has_its_parameters_and_256_tokens_a_picture() -> None:
    config = model_config(tiny_v1.PUBLISHED)
    model = empty_model(config)
    assert sum(p.numel() for p in model.parameters()) == 9_656_935_168
    rows_sc = torch.empty(2 * 1024, 588, device="meta")
    rows_vd = model.encode_images(rows_sc, [(1, 32, 32)] * 2).rows_vd
    assert rows_vd.shape == (2 * 256, 4096)
    assert (config.image_token_id, config.vision_start_token_id) == (151859, 151857)
    assert (config.decoder.stretch_from, config.decoder.max_positions) == (2048, 8192)


def test_every_published_tensor_becomes_its_parameters_and_none_is_left() -> None:
    model = empty_model(model_config(tiny_v1.PUBLISHED))
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    published = tiny_v1.shapes(tiny_v1.PUBLISHED)
    stored = {n: StoredTensor(n, "", "BF16", shape, 0, 0) for n, shape in published.items()}
    found = match(Checkpoint(Path(), stored, {}), wanted, "qwen_vl")
    assert found.keys() == wanted.keys()
    assert {tensor.name for tensor in found.values()} == published.keys()
    fused = [name for name in published if ".c_attn." in name]
    assert len(found) == len(published) + 2 * len(fused)
    assert found["model.language_model.layers.3.mlp.gate_proj.weight"].name.endswith(
        "mlp.w2.weight"
    )


def test_every_published_tensor_of_int4_becomes_its_parameters_and_none_is_left() -> None:
    config = tiny_v1.PUBLISHED | {"torch_dtype": "float16", "quantization_config": GPTQ}
    model = empty_model(model_config(config))
    stored, fused = {}, 0
    for name, shape in tiny_v1.shapes(config).items():
        if not is_quantised_in_the_first(name):
            stored[name] = StoredTensor(name, "", "F16", shape, 0, 0)
            continue
        (n, k), module = shape, name.removesuffix("weight")
        fused += "c_attn" in name
        for leaf, dtype, own in (
            ("qweight", "I32", (k // 8, n)),
            ("qzeros", "I32", (k // 128, n // 8)),
            ("scales", "F16", (k // 128, n)),
            ("g_idx", "I32", (k,)),
            ("bias", "F16", (n,)),
        ):
            stored[module + leaf] = StoredTensor(module + leaf, "", dtype, own, 0, 0)
    checkpoint = Checkpoint(Path(), stored, {})
    make_places(model, checkpoint)
    wanted = {name: tuple(tensor.shape) for name, tensor in tensors(model).items()}
    found = match(checkpoint, wanted, "qwen_vl", exact_dtypes(model))
    assert found.keys() == wanted.keys()
    assert {tensor.name for tensor in found.values()} == stored.keys()
    assert fused == 32
    assert len(found) == len(stored) + 2 * 5 * fused
    assert own_dtypes(model, torch.device("cpu")) == ("int4",)


@pytest.mark.parametrize(
    ("changes", "error", "why"),
    [
        ({"visual": None}, ModelFormatError, "sees no pictures"),
        ({"no_bias": False}, ConfigError, "no_bias"),
        ({"rotary_pct": 0.5}, ConfigError, "rotary_pct"),
        ({"tie_word_embeddings": True}, ConfigError, "tie_word_embeddings"),
        ({"kv_channels": 64}, ConfigError, "kv_channels"),
        ({"quantization_config": FORMATS["awq"][0]}, ConfigError, "quant_method"),
        ({"quantization_config": GPTQ | {"bits": 3}}, ConfigError, "bits"),
        ({"visual": tiny_v1.PUBLISHED["visual"] | {"image_size": 450}}, ConfigError, "image_size"),
        ({"visual": tiny_v1.PUBLISHED["visual"] | {"output_dim": 64}}, ConfigError, "output_dim"),
        ({"visual": tiny_v1.PUBLISHED["visual"] | {"heads": 15}}, ConfigError, "width"),
    ],
)
def test_what_is_not_known_of_its_config_is_refused(
    changes: dict[str, Any], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        model_config(tiny_v1.PUBLISHED | changes)
