"""From a file's bytes to records: JSON lines, a JSON array, CSV and Parquet, without holding more than a few rows."""

from __future__ import annotations

from model.data.decode import MAX_LINE_BYTES
from model.data.readers.base import DataFile
from model.data.readers.files import bare_name, has_data_extension, read
from model.data.readers.lines import bounded_lines, json_lines

__all__ = ["MAX_LINE_BYTES", "DataFile", "bare_name", "bounded_lines", "has_data_extension", "json_lines", "read"]
