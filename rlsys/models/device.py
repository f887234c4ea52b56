"""The device that a model lies on, for messages."""

from __future__ import annotations

import torch


def device_name(device: torch.device) -> str:
    """Return the product name of a GPU, or `CPU`."""
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else "CPU"
