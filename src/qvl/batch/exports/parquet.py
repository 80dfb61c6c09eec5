"""Parquet: a row for each item, for programs; the whole answer stands in it as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from qvl.batch.exports.table import NUMBERS, WHOLE, table
from qvl.cells import storable
from qvl.errors import UsageError
from qvl.runs.record import Finished
from qvl.runs.whole import whole_file

ROWS_IN_GROUP = 1024


def write(finished: Iterable[Finished], target: Path) -> None:
    """Raises StorageError, and UsageError where pyarrow is missing."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as err:
        raise UsageError(
            "Parquet needs the package pyarrow", hint="pip install 'qvl[tables]'"
        ) from err
    types = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    with whole_file(target) as part, table(finished) as items:
        names = (*items.columns, *WHOLE)
        schema = pa.schema([(storable(name), types[NUMBERS.get(name, str)]) for name in names])
        with pq.ParquetWriter(part, schema) as file:
            left = items.rows()
            while rows := list(islice(left, ROWS_IN_GROUP)):
                columns = [[text(row.cells.get(name)) for row in rows] for name in names]
                arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
                file.write_batch(pa.record_batch(arrays, schema=schema))


def text(value: Any) -> Any:
    return storable(value) if isinstance(value, str) else value
