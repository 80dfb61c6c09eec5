"""The words of every task, by style and language; the embedded model is trained on exactly these.

A language without its own wording uses the English one plus a request to answer in that language.
"""

from __future__ import annotations

from typing import Literal, get_args

Style = Literal["plain", "product", "catalogue", "marketplace", "seo", "menu", "alt-text"]
STYLES: tuple[str, ...] = get_args(Style)
LANGUAGES = {
    "ru": "Russian", "en": "English", "zh": "Chinese", "de": "German", "es": "Spanish",
    "fr": "French", "it": "Italian", "pt": "Portuguese", "pl": "Polish", "tr": "Turkish",
    "uk": "Ukrainian", "kk": "Kazakh", "ja": "Japanese", "ko": "Korean", "vi": "Vietnamese",
    "ar": "Arabic", "hi": "Hindi",
}  # fmt: skip

DESCRIBE: dict[str, dict[str, str]] = {
    "plain": {
        "en": "Describe the picture.",
        "ru": "Опиши картинку.",
        "zh": "描述这张图片。",
    },
    "product": {
        "en": "Write a product description of what is in the picture. State only what is visible.",
        "ru": "Составь описание товара на картинке. Пиши только то, что видно.",
        "zh": "为图中的商品写一段描述，只写看得见的内容。",
    },
    "catalogue": {
        "en": "Write a short catalogue entry for what is in the picture: name, colour, number.",
        "ru": "Составь краткую запись для каталога: название, цвет, количество.",
        "zh": "为图中的物品写一条简短的目录条目：名称、颜色、数量。",
    },
    "marketplace": {
        "en": "Write a marketplace listing for the item in the picture, without superlatives.",
        "ru": "Составь текст карточки товара для маркетплейса, без превосходных степеней.",
        "zh": "为图中的商品写一段电商平台文案，不使用夸张的词语。",
    },
    "seo": {
        "en": "Write a search-friendly description of the picture with its natural keywords.",
        "ru": "Составь описание картинки для поиска с естественными ключевыми словами.",
        "zh": "写一段便于搜索的图片描述，自然地包含关键词。",
    },
    "menu": {
        "en": "Write a restaurant menu line for what is in the picture.",
        "ru": "Составь строку ресторанного меню для того, что на картинке.",
        "zh": "为图中的菜品写一行餐厅菜单说明。",
    },
    "alt-text": {
        "en": "Write alt text for the picture, one short phrase.",
        "ru": "Составь альтернативный текст к картинке, одной короткой фразой.",
        "zh": "为这张图片写一句简短的替代文字。",
    },
}

# in the plain style; the others ask about a video as about a picture, in English
DESCRIBE_VIDEO = {
    "en": "Describe the video.",
    "ru": "Опиши видео.",
    "zh": "描述这段视频。",
}

LOCATE_ALL = {
    "en": "Find every object in the picture. Answer with their boxes as JSON.",
    "ru": "Найди все предметы на картинке. Ответь рамками в JSON.",
    "zh": "找出图中的所有物体，用JSON给出边框。",
}


def describe_prompt(style: str, language: str, *, video: bool = False) -> str:
    """The request for a description; style and language are known names (checked at the edge)."""
    wordings = DESCRIBE[style]
    if video:
        english = {"en": wordings["en"].replace("picture", "video")}
        wordings = DESCRIBE_VIDEO if style == "plain" else english
    if language in wordings:
        return wordings[language]
    return f"{wordings['en']} Answer in {LANGUAGES[language]}."
