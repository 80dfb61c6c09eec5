"""`qvl settings`: each setting, its value and where it came from."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from qvl.settings import explain_settings


def settings(
    *, as_json: Annotated[bool, typer.Option("--json", help="One object a line.")] = False
) -> None:
    """Show every setting and where its value came from."""
    rows = explain_settings()
    if as_json:
        for row in rows:
            print(json.dumps(asdict(row), ensure_ascii=False))
        return
    width = max(len(row.key) for row in rows)
    for row in rows:
        value = "-" if row.value in (None, {}) else str(row.value)
        print(f"{row.key:<{width}}  {value:<12}  {row.origin}")
