"""Google's product feed, RSS 2.0: generated titles and descriptions in structured attributes alone.

Source: Google Merchant Center help, "Product data specification", structured_title and
structured_description; a plain title or description beside them would win, so there is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import escape

from qvl.batch.profiles import Profile, Value
from qvl.runs.record import Item
from qvl.xmp import NO_XML

NAMESPACE = "http://base.google.com/ns/1.0"
SOURCE_TYPE = "trained_algorithmic_media"
STRUCTURED = ("structured_title", "structured_description")
# a column of the input with one of these names is the attribute
ATTRIBUTES = frozenset(
    [
        "link",
        "mobile_link",
        "image_link",
        "additional_image_link",
        "price",
        "sale_price",
        "sale_price_effective_date",
        "availability",
        "availability_date",
        "condition",
        "brand",
        "gtin",
        "mpn",
        "identifier_exists",
        "google_product_category",
        "product_type",
        "color",
        "size",
        "size_type",
        "size_system",
        "gender",
        "age_group",
        "material",
        "pattern",
        "item_group_id",
        "shipping",
        "shipping_label",
        "shipping_weight",
        "tax",
        "adult",
        "multipack",
        "is_bundle",
        "energy_efficiency_class",
        "unit_pricing_measure",
        "unit_pricing_base_measure",
        "cost_of_goods_sold",
        "custom_label_0",
        "custom_label_1",
        "custom_label_2",
        "custom_label_3",
        "custom_label_4",
    ]
)


def write_items(
    items: Iterable[tuple[Item, dict[str, Value]]], part: Path, profile: Profile
) -> None:
    with part.open("w", encoding="utf-8") as file:
        # RSS wants the three of a channel; Google reads the items alone
        file.write(
            f'<?xml version="1.0" encoding="UTF-8"?>\n<rss version="2.0" xmlns:g="{NAMESPACE}">\n'
            "<channel>\n<title>Products</title>\n<link/>\n<description>Products</description>\n"
        )
        for item, told in items:
            file.write(element(item, told))
        file.write("</channel>\n</rss>\n")


def element(item: Item, told: dict[str, Value]) -> str:
    lines = [f"<g:id>{text(told['id'])}</g:id>"]
    for name in STRUCTURED:
        lines.append(
            f"<g:{name}>\n  <g:digital_source_type>{SOURCE_TYPE}</g:digital_source_type>\n"
            f"  <g:content>{text(told[name])}</g:content>\n</g:{name}>"
        )
    for column, value in item.columns.items():
        name = re.sub(r"[ -]", "_", column.strip().casefold())
        if name in ATTRIBUTES and value:
            lines.append(f"<g:{name}>{text(value)}</g:{name}>")
    return "<item>\n" + "\n".join(lines) + "\n</item>\n"


def text(value: Value) -> str:
    return escape(NO_XML.sub("", value if isinstance(value, str) else ", ".join(value)))
