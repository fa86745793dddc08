"""The text of lists: read as UTF-8, cut into lines and rows, shown in messages."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Collection, Iterator, Sequence

from flcache.errors import DataError
from flcache.videos.remote_path import Place

INDEX = re.compile(r"[0-9]{1,9}")
OTHER_DELIMITERS = {";": "semicolon", "\t": "tab", "|": "vertical bar"}
"""Characters that are taken for a comma or a space, and what they are called."""
_SHOWN_CHARACTERS = 80


def read_text(path: Place) -> str:
    try:
        return read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def read_file(path: Place) -> bytes:
    """The bytes of an annotation or label file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such annotation file; set the path of your CSV or label file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: this is a folder; name the annotation file in it") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def file_digest(path: Place) -> str:
    """SHA-256 of the file."""
    return hashlib.sha256(read_file(path)).hexdigest()


def lines(text: str) -> list[str]:
    """Lines end at newlines alone: `str.splitlines` would also cut a label at U+2028 or a vertical tab."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def check_commas(path: Place, header: str, columns: Collection[str]) -> None:
    """Raise DataError where a header with one of `columns` is separated by something else than commas."""
    for delimiter, name in OTHER_DELIMITERS.items():
        fields = {field.strip() for field in header.split(delimiter)}
        if delimiter in header and "," not in header and fields & set(columns):
            raise DataError(f"{path}:1: the columns are separated by a {name}; separate them by commas")


def table_rows(path: Place, text: str, required: Sequence[str], expected: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows below the header of a CSV, by its columns, each with its line; at least one.

    Raises DataError, also where a `required` column is missing; `expected` says which there should be.
    """
    rows = _csv_rows(path, text)
    number, fields = next(rows)
    header = [field.strip() for field in fields]
    if missing := [column for column in required if column not in header]:
        raise DataError(f"{path}:{number}: the header has no column {', '.join(missing)}; expected {expected}")
    first = number
    for number, fields in rows:
        if len(fields) != len(header):
            raise DataError(f"{path}:{number}: {len(fields)} fields where the header has {len(header)}; mend the row")
        yield number, dict(zip(header, fields, strict=True))
    if number == first:
        raise DataError(f"{path}: there is a header but no row below it; is the download complete?")


def _csv_rows(path: Place, text: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the number of its first line; a quoted field may hold newlines."""
    reader, number = csv.reader(io.StringIO(text, newline=""), strict=True), 1
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                yield number, fields
            number = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{number}: not a row of a CSV: {error}; mend or remove the row") from None


def shown(text: str) -> str:
    """`text` of a file for a message: on one line, shortened, without control characters."""
    return repr(text[:_SHOWN_CHARACTERS])
