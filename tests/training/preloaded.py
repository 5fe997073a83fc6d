"""What the server of new processes imports once for all of them."""

from __future__ import annotations

import gc

from model.training import run
from model.training.loop import dpo, sft

__all__ = ["dpo", "run", "sft"]

# A collection in a child would otherwise walk through, and copy, all that the libraries made on import.
gc.collect()
gc.freeze()
