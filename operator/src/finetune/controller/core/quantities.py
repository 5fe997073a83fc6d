"""Amounts as Kubernetes writes them, for comparison."""

from __future__ import annotations

import re
from decimal import Decimal

_UNITS = {"m": Decimal("0.001"), "": Decimal(1), "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9)} | {
    "T": Decimal(10**12), "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40),
}  # fmt: skip


def quantity(text: str) -> Decimal:
    """The amount behind a text such as `500m`, `0.5` or `16Gi`. Raises ValueError for anything else."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z]*)", text)
    if found is None or found.group(2) not in _UNITS:
        raise ValueError(f"{text!r} is not an amount such as 500m, 0.5 or 16Gi")
    return Decimal(found.group(1)) * _UNITS[found.group(2)]
