"""config.json, preprocessor_config.json and generation_config.json into our own shapes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tiny
from qvl.errors import ConfigError, ModelFormatError, UnsafeCheckpointError
from qvl.loading.config import model_config, parse_config
from qvl.loading.family import FALLBACKS
from qvl.loading.generation import parse_generation_defaults
from qvl.loading.rules import parse_pixel_rules, parse_video_rules
from qvl.models.config import Quantisation
from qvl.processing.tokenizer import Tokenizer
from qvl.processing.video import VideoRules

# as published, without the keys that nobody reads
QWEN2_VL_7B = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2_vl",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "mlp_ratio": 4,
        "num_heads": 16,
        "in_chans": 3,
        "hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 152064,
}
QWEN3_VL_4B = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "image_token_id": 151655,
    "model_type": "qwen3_vl",
    "text_config": {
        "attention_bias": False,
        "dtype": "bfloat16",
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "max_position_embeddings": 262144,
        "model_type": "qwen3_vl_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "mrope_interleaved": True,
            "mrope_section": [24, 20, 20],
            "rope_type": "default",
        },
        "rope_theta": 5000000,
        "tie_word_embeddings": True,
        "vocab_size": 151936,
    },
    "tie_word_embeddings": True,
    "video_token_id": 151656,
    "vision_config": {
        "deepstack_visual_indexes": [5, 11, 17],
        "depth": 24,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1024,
        "in_channels": 3,
        "intermediate_size": 4096,
        "model_type": "qwen3_vl",
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": 2560,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "vision_end_token_id": 151653,
    "vision_start_token_id": 151652,
}


def write(folder: Path, name: str, value: Any) -> Path:
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def changed(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with the key at a dotted path set, or removed when value is ...."""
    copy = json.loads(json.dumps(values))
    *parents, last = path.split(".")
    place = copy
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return copy


def test_the_published_7b_is_read_whole(tmp_path: Path) -> None:
    config = parse_config(write(tmp_path, "config.json", QWEN2_VL_7B))
    decoder, vision = config.decoder, config.vision
    assert (decoder.hidden, decoder.layers, decoder.heads, decoder.kv_heads) == (3584, 28, 28, 4)
    assert (decoder.head_dim, decoder.mlp_width, decoder.vocab_size) == (128, 18944, 152064)
    assert (decoder.mrope_section, decoder.rope_theta) == ((16, 24, 24), 1e6)
    assert (decoder.qkv_bias, decoder.qk_norm, decoder.mrope_interleaved) == (True, False, False)
    assert not decoder.tied_head
    assert (vision.depth, vision.width, vision.heads, vision.mlp_width) == (32, 1280, 16, 5120)
    assert (vision.out_width, vision.patch_px, vision.merge) == (3584, 14, 2)
    assert (vision.mlp, vision.patch_bias, vision.pos_grid) == ("quick_gelu", False, 0)
    assert vision.deepstack_after == ()
    assert (config.image_token_id, config.vision_end_token_id) == (151655, 151653)


def test_the_published_4b_is_read_whole() -> None:
    config = model_config(QWEN3_VL_4B)
    decoder, vision = config.decoder, config.vision
    assert (decoder.head_dim, decoder.hidden, decoder.heads) == (128, 2560, 32)
    assert (decoder.mrope_section, decoder.rope_theta) == ((24, 20, 20), 5e6)
    assert (decoder.qkv_bias, decoder.qk_norm, decoder.mrope_interleaved) == (False, True, True)
    assert decoder.tied_head
    assert (vision.width, vision.mlp_width, vision.out_width) == (1024, 4096, 2560)
    assert (vision.mlp, vision.patch_bias, vision.pos_grid) == ("gelu_tanh", True, 48)
    assert vision.deepstack_after == (5, 11, 17)


@pytest.mark.parametrize("published", [QWEN2_VL_7B, QWEN3_VL_4B])
def test_what_transformers_saves_again_means_the_same(
    published: dict[str, Any], tmp_path: Path
) -> None:
    import transformers

    kind = {"qwen2_vl": transformers.Qwen2VLConfig, "qwen3_vl": transformers.Qwen3VLConfig}
    kind[published["model_type"]](**published).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in saved["text_config"]
    assert parse_config(tmp_path) == model_config(published)


@pytest.mark.parametrize("published", [QWEN2_VL_7B, QWEN3_VL_4B])
def test_keys_with_a_family_value_may_be_left_out(published: dict[str, Any]) -> None:
    text = "text_config." if "text_config" in published else ""
    for path in (
        f"{text}rms_norm_eps",
        f"{text}rope_theta",
        f"{text}rope_scaling",
        f"{text}hidden_act",
        "vision_config.num_heads",
        "vision_config.patch_size",
        "vision_config.spatial_merge_size",
        "image_token_id",
    ):
        assert model_config(changed(published, path, ...)) == model_config(published)


def test_a_head_is_tied_when_either_place_says_so() -> None:
    for path in ("tie_word_embeddings", "text_config.tie_word_embeddings"):
        assert model_config(changed(QWEN3_VL_4B, path, ...)).decoder.tied_head


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 8, "group_size": 128, "desc_act": True, "sym": True}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (AWQ, Quantisation(method="awq", bits=4, group=128)),
        (AWQ | {"group_size": -1}, Quantisation(method="awq", bits=4, group=-1)),
        (GPTQ, Quantisation(method="gptq", bits=8, group=128, zero_offset=1, act_order=True)),
        (
            GPTQ | {"bits": 4, "desc_act": False, "checkpoint_format": "gptq_v2"},
            Quantisation(method="gptq", bits=4, group=128),
        ),
        (FP8, Quantisation(method="fp8", bits=8, group=128)),
    ],
)
def test_how_the_files_are_quantised(values: dict[str, Any], expected: Quantisation) -> None:
    for config, path in ((QWEN2_VL_7B, ""), (QWEN3_VL_4B, ""), (QWEN3_VL_4B, "text_config.")):
        found = model_config(changed(config, f"{path}quantization_config", values))
        assert found.quantisation == expected
        assert replace(found, quantisation=None) == model_config(config)


def test_an_intermediate_size_padded_by_a_quantiser_is_taken_from_the_file() -> None:
    padded = changed(QWEN2_VL_7B, "intermediate_size", 29696)
    assert model_config(padded).decoder.mlp_width == 29696


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("hidden_act", "__import__('os')", ["hidden_act", "__import__", "unknown activation"]),
        ("torch_dtype", "os.system", ["torch_dtype", "'os.system'"]),
        ("num_hidden_layers", 10**9, ["num_hidden_layers", "1000000000", "1..256"]),
        ("num_hidden_layers", "28", ["num_hidden_layers", "'28'"]),
        ("num_hidden_layers", True, ["num_hidden_layers", "True"]),
        ("num_hidden_layers", 28.5, ["num_hidden_layers", "28.5"]),
        ("num_hidden_layers", 0, ["num_hidden_layers", "0"]),
        ("hidden_size", ..., ["hidden_size is missing"]),
        ("rms_norm_eps", -1, ["rms_norm_eps", "-1"]),
        ("rope_scaling.mrope_section", [16, 24, 20], ["sums to 60", "head_dim is 64"]),
        ("rope_scaling.mrope_section", [64], ["mrope_section", "three"]),
        ("rope_scaling.mrope_section", "16", ["mrope_section", "'16'"]),
        ("rope_scaling.type", "yarn", ["type", "'yarn'", "not yet supported"]),
        ("rope_scaling", {"factor": 0}, ["factor", "0", "not yet supported"]),
        ("use_sliding_window", True, ["use_sliding_window", "True"]),
        ("num_key_value_heads", 5, ["28", "5"]),
        ("image_token_id", 152064, ["image_token_id", "152064"]),
        ("image_token_id", 151656, ["image_token_id", "video_token_id", "151656"]),
        ("vision_config.hidden_size", 3000, ["vision_config.hidden_size", "3000", "3584"]),
        ("vision_config.hidden_act", "gelu", ["vision_config.hidden_act", "'gelu'"]),
        ("vision_config.patch_size", 0, ["vision_config.patch_size", "0"]),
        ("vision_config.patch_size", [14, 14], ["vision_config.patch_size"]),
        ("vision_config.num_heads", 7, ["1280", "7"]),
        ("vision_config.in_chans", 4, ["in_chans", "4"]),
        ("vision_config", ..., ["vision_config.embed_dim is missing"]),
        ("vision_config", [], ["vision_config", "[]", "not an object"]),
        ("quantization_config", {"bits": 4}, ["quantization_config.quant_method is missing"]),
        ("quantization_config", {"quant_method": "bitsandbytes"}, ["bitsandbytes"]),
        ("quantization_config", "awq", ["quantization_config", "not an object"]),
        ("quantization_config", AWQ | {"bits": 3}, ["quantization_config.bits is 3"]),
        ("quantization_config", AWQ | {"version": "gemv"}, ["version", "'gemv'"]),
        ("quantization_config", AWQ | {"zero_point": False}, ["zero_point", "False"]),
        ("quantization_config", AWQ | {"group_size": 0}, ["group_size", "0"]),
        ("quantization_config", AWQ | {"group_size": None}, ["group_size is missing"]),
        ("quantization_config", GPTQ | {"bits": 2}, ["quantization_config.bits is 2"]),
        ("quantization_config", GPTQ | {"checkpoint_format": "marlin"}, ["'marlin'"]),
        ("quantization_config", GPTQ | {"desc_act": 1}, ["desc_act is 1"]),
        ("quantization_config", FP8 | {"weight_block_size": [64, 128]}, ["[64, 128]"]),
        ("quantization_config", FP8 | {"weight_block_size": None}, ["weight_block_size"]),
        ("quantization_config", FP8 | {"activation_scheme": "static"}, ["'static'"]),
        ("layer_types", ["sliding_attention"], ["layer_types", "sliding_attention"]),
        ("layer_types", 5, ["layer_types", "5"]),
    ],
)
def test_a_value_that_we_do_not_know_names_file_key_and_value(
    path: str, value: Any, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as raised:
        model_config(changed(QWEN2_VL_7B, path, value))
    for word in ["config.json", *words]:
        assert word in raised.value.message
    assert not raised.value.message.endswith(".")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("text_config.attention_bias", True, ["attention_bias"]),
        ("text_config.rope_scaling.mrope_interleaved", False, ["mrope_interleaved", "False"]),
        ("text_config.rope_scaling.mrope_section", [4, 40, 20], ["[4, 40, 20]", "interleaved"]),
        ("vision_config.num_position_embeddings", 2300, ["num_position_embeddings", "2300"]),
        ("vision_config.deepstack_visual_indexes", [5, 24], ["deepstack_visual_indexes", "24"]),
        ("vision_config.deepstack_visual_indexes", [5, 5], ["deepstack_visual_indexes"]),
        ("vision_config.deepstack_visual_indexes", ..., ["deepstack_visual_indexes is missing"]),
        ("text_config", ..., ["hidden_size is missing"]),
    ],
)
def test_a_value_that_we_do_not_know_in_qwen3_vl(path: str, value: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        model_config(changed(QWEN3_VL_4B, path, value))
    for word in words:
        assert word in raised.value.message


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("qwen", ["Qwen", "sees no pictures"]),
        ("llama", ["'llama'", "unknown"]),
        (["qwen2_vl"], ["unknown"]),
        (None, ["None", "unknown"]),
    ],
)
def test_another_model_is_refused_with_those_that_run(model_type: Any, words: list[str]) -> None:
    with pytest.raises(ModelFormatError) as raised:
        model_config({**QWEN2_VL_7B, "model_type": model_type})
    assert all(word in raised.value.message for word in words)
    assert "Qwen2-VL, Qwen2.5-VL and Qwen3-VL" in str(raised.value.hint)


def test_another_architecture_is_refused() -> None:
    with pytest.raises(ModelFormatError, match=r"unsupported architecture .*EvilForCausalLM"):
        model_config({**QWEN2_VL_7B, "architectures": ["EvilForCausalLM"]})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested deeper than 64"),
        ('{"a":' * 500 + "1" + "}" * 500, "nested deeper than 64"),
        ('{"a": 1, "a": 2}', "duplicate key: 'a'"),
        ('{"b": {"x": 1, "x": 1}}', "duplicate key: 'x'"),
        ('{"a": NaN}', "NaN"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        ("[]", "no JSON object"),
        ("", "not valid JSON"),
        ("\ufeff{}", "not valid JSON"),
        (json.dumps({"a": "x" * 2**20}), "too large: 1048585 bytes, limit 1048576"),
    ],
)
def test_a_config_that_is_no_plain_json_is_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_config(write(tmp_path, "config.json", text))
    assert "config.json" in raised.value.message
    assert words in raised.value.message


def test_bytes_that_are_no_utf8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'{"a": "\xff\xfe"}')
    with pytest.raises(ConfigError, match=r"config\.json is not valid JSON in UTF-8"):
        parse_config(tmp_path)


def test_a_folder_without_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"no config\.json"):
        parse_config(tmp_path)


def test_a_config_linked_from_elsewhere_is_not_read(tmp_path: Path) -> None:
    secret = write(tmp_path, "secret.json", QWEN2_VL_7B) / "secret.json"
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").symlink_to(secret)
    with pytest.raises(UnsafeCheckpointError, match=r"config\.json is a link that leaves"):
        parse_config(folder)


# ---- pixel rules -------------------------------------------------------------------------------

QWEN2, QWEN3 = model_config(QWEN2_VL_7B), model_config(QWEN3_VL_4B)


def test_the_published_pixel_rules_of_both_generations(tmp_path: Path) -> None:
    clip_mean, clip_std = list(FALLBACKS["qwen2_vl"].mean), list(FALLBACKS["qwen2_vl"].std)
    write(
        tmp_path,
        "preprocessor_config.json",
        {
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": clip_mean,
            "image_std": clip_std,
            "image_processor_type": "Qwen2VLImageProcessor",
        },
    )
    rules = parse_pixel_rules(tmp_path, QWEN2)
    assert (rules.patch_px, rules.merge, rules.temporal_patch) == (14, 2, 2)
    assert (rules.min_px, rules.max_px) == (3136, 12845056)
    assert (list(rules.mean), list(rules.std)) == (clip_mean, clip_std)
    write(
        tmp_path,
        "preprocessor_config.json",
        {
            "size": {"longest_edge": 16777216, "shortest_edge": 65536},
            "patch_size": 16,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
    )
    rules = parse_pixel_rules(tmp_path, QWEN3)
    assert (rules.patch_px, rules.min_px, rules.max_px) == (16, 65536, 16777216)
    assert rules.mean == rules.std == (0.5, 0.5, 0.5)


def test_what_the_image_processor_saves_again_means_the_same(tmp_path: Path) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )

    processor = Qwen2VLImageProcessorPil(min_pixels=5000, max_pixels=70000)
    processor.save_pretrained(tmp_path)
    rules = parse_pixel_rules(tmp_path, QWEN2)
    assert (rules.min_px, rules.max_px) == (5000, 70000)
    nested = json.loads((tmp_path / "preprocessor_config.json").read_text())
    write(tmp_path, "processor_config.json", {"image_processor": nested, "video_processor": {}})
    write(tmp_path, "preprocessor_config.json", "not even JSON: the nested rules win")
    assert parse_pixel_rules(tmp_path, QWEN2) == rules


def test_a_processor_config_without_rules_leaves_them_to_the_other_file(tmp_path: Path) -> None:
    write(tmp_path, "processor_config.json", {"processor_class": "Qwen2VLProcessor"})
    write(tmp_path, "preprocessor_config.json", {"max_pixels": 100352})
    assert parse_pixel_rules(tmp_path, QWEN2).max_px == 100352


def test_legacy_keys_win_over_size(tmp_path: Path) -> None:
    size = {"shortest_edge": 1, "longest_edge": 2}
    rules = {"min_pixels": 4000, "max_pixels": 8000, "size": size}
    write(tmp_path, "preprocessor_config.json", rules)
    parsed = parse_pixel_rules(tmp_path, QWEN2)
    assert (parsed.min_px, parsed.max_px) == (4000, 8000)


@pytest.mark.parametrize("config", [QWEN2, QWEN3])
def test_without_the_file_the_family_rules_hold(
    config: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules = parse_pixel_rules(tmp_path, config)
    known = FALLBACKS[config.generation]
    assert (rules.min_px, rules.max_px, rules.mean) == (known.min_px, known.max_px, known.mean)
    assert "preprocessor_config.json" in caplog.text


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"max_pixels": 10**12}, ["max_pixels", "1000000000000", "50000000"]),
        ({"min_pixels": 0}, ["min_pixels", "0"]),
        ({"min_pixels": 9000, "max_pixels": 8000}, ["9000", "8000"]),
        ({"min_pixels": 1, "max_pixels": 700}, ["700", "784"]),
        ({"patch_size": 0}, ["patch_size", "0"]),
        ({"patch_size": 16}, ["patch_size", "16", "14"]),
        ({"merge_size": 3}, ["merge_size", "3", "2"]),
        ({"temporal_patch_size": 1}, ["temporal_patch_size", "1", "2"]),
        ({"image_mean": [0.5, 0.5]}, ["image_mean", "three"]),
        ({"image_mean": [0.5, 0.5, "0.5"]}, ["image_mean"]),
        ({"image_std": [0.5, 0.5, 0]}, ["image_std"]),
        ({"do_normalize": False}, ["do_normalize", "False"]),
        ({"resample": 2}, ["resample", "2", "bicubic"]),
        ({"rescale_factor": 1.0}, ["rescale_factor", "1.0"]),
        ({"size": 336}, ["size", "336"]),
    ],
)
def test_pixel_rules_that_we_cannot_follow_are_refused(
    rules: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    write(tmp_path, "preprocessor_config.json", rules)
    with pytest.raises(ConfigError) as raised:
        parse_pixel_rules(tmp_path, QWEN2)
    for word in ["preprocessor_config.json", *words]:
        assert word in raised.value.message


# ---- video rules -------------------------------------------------------------------------------


def video_rules(folder: Path, config: Any) -> VideoRules:
    rules = parse_video_rules(folder, config, parse_pixel_rules(folder, config))
    assert rules is not None
    return rules


def test_the_video_rules_of_the_first_generations_are_their_authors_own(tmp_path: Path) -> None:
    write(tmp_path, "config.json", QWEN2_VL_7B)
    rules = video_rules(tmp_path, QWEN2)
    assert rules == VideoRules(
        stamps=False, min_px=100352, max_px=602112, total_px=24576 * 784, fps=2.0
    )
    newer = replace(
        QWEN2,
        generation="qwen2_5_vl",
        decoder=replace(QWEN2.decoder, max_positions=128000),
    )
    wanted = replace(rules, total_px=115200 * 784, positions_per_second=2.0)
    assert video_rules(tmp_path, newer) == wanted
    vision: Any = QWEN2_VL_7B["vision_config"]
    vision = vision | {"tokens_per_second": 4}
    write(tmp_path, "config.json", {**QWEN2_VL_7B, "vision_config": vision})
    assert video_rules(tmp_path, newer).positions_per_second == 4.0


def test_the_video_rules_of_qwen3_are_in_its_files(tmp_path: Path) -> None:
    published = {
        "size": {"longest_edge": 25165824, "shortest_edge": 4096},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "video_processor_type": "Qwen3VLVideoProcessor",
    }
    wanted = VideoRules(stamps=True, min_px=4096, max_px=25165824, fps=2.0)
    assert video_rules(tmp_path, QWEN3) == wanted
    write(tmp_path, "video_preprocessor_config.json", published | {"fps": 1})
    assert video_rules(tmp_path, QWEN3) == replace(wanted, fps=1.0)
    size = {"longest_edge": 50000, "shortest_edge": 4096}
    nested = published | {"size": size}
    write(tmp_path, "processor_config.json", {"image_processor": {}, "video_processor": nested})
    assert video_rules(tmp_path, QWEN3).max_px == 50000


def test_a_video_may_take_nine_tenths_of_the_context(tmp_path: Path) -> None:
    short = replace(QWEN3, decoder=replace(QWEN3.decoder, max_positions=1000))
    assert video_rules(tmp_path, short).max_px == 900 * 2 * 32 * 32
    write(tmp_path, "config.json", QWEN2_VL_7B)
    short = replace(QWEN2, decoder=replace(QWEN2.decoder, max_positions=1000))
    assert video_rules(tmp_path, short).total_px == 900 * 28 * 28


@pytest.mark.parametrize(
    "rules",
    [
        {"patch_size": 14},
        {"temporal_patch_size": 1},
        {"image_mean": [0.4, 0.5, 0.5]},
        {"image_std": [0.5, 0.5]},
        {"fps": 0},
        {"size": {"longest_edge": 10**12}},
    ],
)
def test_video_rules_that_we_cannot_follow_are_refused(
    rules: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path, "video_preprocessor_config.json", rules)
    (key,) = rules.get("size", rules)
    with pytest.raises(ConfigError, match=rf"video_preprocessor_config\.json: .*{key}"):
        video_rules(tmp_path, QWEN3)


# ---- generation defaults -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    return Tokenizer.from_folder(write(folder, "tokenizer.json", tiny.tokenizer_json("qwen2_vl")))


TINY = tiny.tiny_config("qwen2_vl")


def test_the_published_defaults_are_taken(tmp_path: Path, tokenizer: Tokenizer) -> None:
    values = {
        "do_sample": True,
        "eos_token_id": [267, 265],
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "repetition_penalty": 1.05,
    }
    write(tmp_path, "generation_config.json", values)
    defaults = parse_generation_defaults(tmp_path, TINY, tokenizer)
    assert defaults.stop_ids == (267, 265)
    assert (defaults.do_sample, defaults.temperature) == (True, 0.7)
    assert (defaults.top_p, defaults.top_k, defaults.repetition_penalty) == (0.8, 20, 1.05)
    assert defaults.presence_penalty == 0.0


def test_without_the_file_it_is_greedy_until_the_stop_tokens(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    defaults = parse_generation_defaults(tmp_path, TINY, tokenizer)
    assert defaults.stop_ids == (
        tokenizer.encode_control("<|im_end|>"),
        tokenizer.encode_control("<|endoftext|>"),
    )
    assert (defaults.do_sample, defaults.temperature) == (False, 0.0)


def test_do_sample_false_is_temperature_zero(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write(tmp_path, "generation_config.json", {"do_sample": False, "temperature": 0.7})
    assert parse_generation_defaults(tmp_path, TINY, tokenizer).temperature == 0.0


def test_one_stop_id_may_stand_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write(tmp_path, "generation_config.json", {"eos_token_id": 267})
    assert parse_generation_defaults(tmp_path, TINY, tokenizer).stop_ids == (267,)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"eos_token_id": 320}, ["eos_token_id", "320", "0..319"]),
        ({"eos_token_id": [267, -1]}, ["eos_token_id", "-1"]),
        ({"eos_token_id": []}, ["eos_token_id"]),
        ({"eos_token_id": "267"}, ["eos_token_id", "'267'"]),
        ({"temperature": -0.5}, ["temperature", "-0.5"]),
        ({"temperature": "hot"}, ["temperature", "'hot'"]),
        ({"top_p": 1.5}, ["top_p", "1.5"]),
        ({"top_k": -1}, ["top_k", "-1"]),
        ({"repetition_penalty": 0}, ["repetition_penalty", "0"]),
        ({"do_sample": "yes"}, ["do_sample", "'yes'"]),
    ],
)
def test_defaults_out_of_range_are_refused(
    values: dict[str, Any], words: list[str], tmp_path: Path, tokenizer: Tokenizer
) -> None:
    write(tmp_path, "generation_config.json", values)
    with pytest.raises(ConfigError) as raised:
        parse_generation_defaults(tmp_path, TINY, tokenizer)
    for word in ["generation_config.json", *words]:
        assert word in raised.value.message
