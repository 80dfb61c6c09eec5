"""A small byte-level BPE in the form of Qwen3-VL's tokenizer.json, trained on the spot, always the same."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import ByteLevel
from tokenizers.trainers import BpeTrainer

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
ADDED_NOT_SPECIAL = [
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
]
ADDED = SPECIAL + ADDED_NOT_SPECIAL
# the pattern of Qwen2 to Qwen3-VL, written out here so that the tests do not believe the code
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SENTENCES = [
    "You are a helpful assistant. user assistant system\n\n\n Describe this image, please.\n",
    "What is in the picture? How many cups are there? It's a red cup; I'm sure they're three!\n\n",
    "Опиши картинку. Что изображено на фотографии? Сколько здесь чашек?\n\n Две красные чашки.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.\n",
    "请描述这张图片。图中有几个杯子？这是一只红色的杯子。\n\n你好，世界！\n",
    "def f(x):\n    return {'a': [1, 2, 3]}\n\n\nfor i in range(10):\n\tprint(i)\r\n",
    '{"bbox_2d": [10, 20, 300, 400], "label": "cup"}\n```json\n```\n \n  \n...\n!!!\n?\n:\n;\n<|im_end|>',
    "🙂 😀 👍🏽 ❤️ 🇷🇺 \n",
]


def train_tiny_tokenizer() -> Tokenizer:
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=700, initial_alphabet=sorted(alphabet), show_progress=False)
    bpe.train_from_iterator(SENTENCES, trainer)
    bpe.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    bpe.add_tokens([AddedToken(t, special=False, normalized=False) for t in ADDED_NOT_SPECIAL])
    return bpe


def write_tiny_tokenizer(folder: Path) -> Path:
    """The folder, now with a tokenizer.json."""
    train_tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return folder
