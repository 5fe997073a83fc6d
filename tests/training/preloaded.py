"""What the server of new processes imports and computes once for all of them."""

from __future__ import annotations

import gc

from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.models.llama import modeling_llama

from model.training import run
from model.training.commands import chat, verify
from model.training.loop import dpo, sft
from tests.training import cpus, faults, programs, ranks

__all__ = ["chat", "dpo", "faults", "modeling_llama", "programs", "ranks", "run", "sft", "verify"]

# Every process that loads a model would compile a thousand regular expressions for this.
get_checkpoint_conversion_mapping("llama")

cpus.pretend()

# A collection in a child would otherwise walk through, and copy, all that the libraries made on import.
gc.collect()
gc.freeze()
