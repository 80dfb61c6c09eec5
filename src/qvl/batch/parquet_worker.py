"""The process that reads a Parquet file, so that a damaged one can only kill this process.

Started by parquet.py as `python -I parquet_worker.py TASK`, a JSON object: "paths" to look for pyarrow
in, "file", "memory_bytes". On stdout, a line each: {"columns", "left_out"}, then a list of values for
each row, then END; or {"error", "hint"}, whose message goes on after the file's name.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any

if __name__ == "__main__":
    sys.path += json.loads(sys.argv[1])["paths"]

import pyarrow as pa
import pyarrow.parquet as pq

ROWS_AT_ONCE = 1024


def is_shown(kind: pa.DataType) -> bool:
    """Text, numbers, times, and lists of texts."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return is_text(kind.value_type)
    return is_text(kind) or any(
        test(kind)
        for test in (
            pa.types.is_integer,
            pa.types.is_floating,
            pa.types.is_decimal,
            pa.types.is_boolean,
            pa.types.is_temporal,
            pa.types.is_null,
        )
    )


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def value(cell: Any) -> Any:
    if cell is None or isinstance(cell, (str, bool, int, list)):
        return cell
    if isinstance(cell, float):
        return cell if cell == cell and abs(cell) != float("inf") else None
    return cell.isoformat() if hasattr(cell, "isoformat") else str(cell)


def say(told: Any) -> None:
    sys.stdout.write(json.dumps(told) + "\n")


def main(task: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for kind, limit in ((resource.RLIMIT_AS, task["memory_bytes"]), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        try:
            resource.setrlimit(kind, (limit if hard < 0 else min(limit, hard), hard))
        except ValueError:  # macOS refuses to limit the address space
            continue
    pa.set_cpu_count(1)  # each thread reserves address space
    pa.set_io_thread_count(1)
    try:
        file = pq.ParquetFile(task["file"], memory_map=False)
        schema = file.schema_arrow
        names = [field.name for field in schema if is_shown(field.type)]
        if doubled := sorted({name for name in schema.names if schema.names.count(name) > 1}):
            say({"error": f"has the column {doubled[0]!r} twice", "hint": "name each differently"})
            return
        left_out = [f"{f.name} ({f.type})"[:80] for f in schema if not is_shown(f.type)]
        say({"columns": names, "left_out": left_out})
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=names, use_threads=False):
            columns = [column.to_pylist() for column in batch.columns]
            for row in zip(*columns, strict=True):
                say([value(cell) for cell in row])
    except MemoryError:
        say({"error": "needs too much memory to read", "hint": "write it in smaller row groups"})
    except (pa.ArrowException, OSError, ValueError, KeyError) as err:
        # its own words name offsets and paths; the column, where it does, is what helps
        column = next((n for n in locals().get("names", []) if n in str(err)), "")
        where = f" in the column {column!r}" if column else ""
        say({"error": f"is damaged{where}, or is not Parquet", "hint": "write it anew"})
    else:
        sys.stdout.write("END\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    os._exit(0)  # pyarrow's threads may hang at the end
