"""Lets the tests run as on another CPU: FINETUNE_TEST_BFLOAT16=yes or no, whatever this one multiplies by itself.

What `precision: Auto` means depends on that, and with it most of the numbers that the trainer's processes compute.
"""

from __future__ import annotations

import os

from model.training.processes import process

VARIABLE = "FINETUNE_TEST_BFLOAT16"


def pretend() -> None:
    """Report bfloat16 as the environment says, in this process and in copies of it."""
    if (wanted := os.environ.get(VARIABLE)) is not None:
        process.cpu_has_bfloat16 = lambda *_given: wanted == "yes"
