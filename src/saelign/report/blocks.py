"""Tables as compressed blocks inside a page: columns as small as their numbers allow.

A block is the length of its header (four bytes, little-endian), the header (JSON), and the columns
one after the other, each at a multiple of eight bytes; all of it deflated (zlib). A column is named
in the header with its type, where it begins, how many numbers it has, and what turns these into
values: `scale` (times), `values` (a list that they are places in).
"""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

MISSING = -32768
"""Stands for NaN in a column of 16-bit numbers with a scale."""

UNSIGNED = (("u1", np.uint8), ("u2", np.uint16), ("u4", np.uint32))


class Column:
    """Numbers with what turns them into values.

    Attributes:
        numbers: As they are stored.
        about: What the header says of them besides.
    """

    def __init__(self, numbers: np.ndarray, **about: Any) -> None:
        self.numbers = numbers
        self.about = about


def fixed(values: Any, scale: float) -> Column:
    """Numbers rounded to multiples of `scale`, in 16 bits; NaN stays."""
    values = np.asarray(values, dtype=np.float64)
    whole = np.round(np.nan_to_num(values) / scale).clip(MISSING + 1, 32767)
    whole[np.isnan(values)] = MISSING
    return Column(whole.astype(np.int16), scale=scale)


def coded(values: Sequence[Any] | np.ndarray) -> Column:
    """Texts (or anything JSON holds) as places in the list of those that there are."""
    codes, known = pd.factorize(pd.Series(values, dtype=object), use_na_sentinel=False)
    listed = [None if pd.isna(v) else v for v in known]
    return Column(smallest(codes), values=listed)


def smallest(values: Any) -> np.ndarray:
    """Whole numbers in the smallest type that holds them."""
    values = np.asarray(values)
    if len(values) == 0 or values.min() >= 0:
        top = int(values.max()) if len(values) else 0
        for _, kind in UNSIGNED:
            if top <= np.iinfo(kind).max:
                return values.astype(kind)
    return values.astype(np.int32)


def column_of(values: Any) -> Column:
    """A column of a table, in the form that its type asks for."""
    if isinstance(values, Column):
        return values
    if isinstance(values, pd.Series):
        if pd.api.types.is_bool_dtype(values.dtype):
            return Column(values.to_numpy(dtype=bool).astype(np.uint8))
        if pd.api.types.is_numeric_dtype(values.dtype):
            has_all = not bool(values.isna().any())
            if has_all and pd.api.types.is_integer_dtype(values.dtype):
                return Column(smallest(values.to_numpy()))
            return Column(values.to_numpy(dtype=np.float32, na_value=np.nan))
        return coded(values.tolist())
    array = np.asarray(values)
    if array.dtype.kind in "OUS":
        return coded(array.tolist())
    if array.dtype.kind == "f":
        return Column(array.astype(np.float32))
    return Column(smallest(array))


def packed(columns: Mapping[str, Any], **more: Any) -> bytes:
    """A block of columns; what else its header shall say goes into `more`."""
    body, told, at = [], {}, 0
    for name, values in columns.items():
        column = column_of(values)
        numbers = np.ascontiguousarray(column.numbers)
        data = numbers.tobytes()
        kind = f"{numbers.dtype.kind}{numbers.dtype.itemsize}"
        told[name] = {"type": kind, "at": at, "n": int(numbers.size), **column.about}
        filled = -len(data) % 8
        body.append(data + bytes(filled))
        at += len(data) + filled
    header = json.dumps({**more, "columns": told}, ensure_ascii=False, allow_nan=False)
    encoded = header.encode("utf-8", errors="replace")
    encoded += b" " * (-(len(encoded) + 4) % 8)
    whole = len(encoded).to_bytes(4, "little") + encoded + b"".join(body)
    return zlib.compress(whole, 9)


def unpacked(block: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a block holds: what its header says besides, and its columns as the page reads them."""
    whole = zlib.decompress(block)
    length = int.from_bytes(whole[:4], "little")
    header = json.loads(whole[4 : 4 + length].decode("utf-8"))
    columns: dict[str, Any] = {}
    for name, about in header.pop("columns").items():
        numbers = np.frombuffer(whole, about["type"], about["n"], 4 + length + about["at"])
        if "values" in about:
            columns[name] = [about["values"][i] for i in numbers.tolist()]
        elif "scale" in about:
            values = numbers * about["scale"]
            columns[name] = np.where(numbers == MISSING, np.nan, values)
        else:
            columns[name] = numbers
    return header, columns


def as_text(block: bytes) -> str:
    """A block as it stands in a page: in letters that HTML leaves alone."""
    return base64.b64encode(block).decode("ascii")


def table_block(table: pd.DataFrame, columns: Sequence[str] | None = None) -> bytes:
    """A table as a block, or those of the columns that it has."""
    names = [c for c in columns or table.columns if c in table.columns]
    return packed({str(name): table[name] for name in names}, n=len(table))
