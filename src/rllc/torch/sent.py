"""Numbers of the host as tensors on a device, sent once and without waiting.

    sent(device, [[0.9, 0.0], [0.0, 0.5]])               the same tensor for the same numbers
    sent(device, make, key)                              for numbers that are long to make, found by a key

A CUDA graph goes on reading what was read while it was captured, and what is sent meanwhile is sent at each
of its replays: both stay for ever, and the latter is no one else's.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["sent"]

MOST = 512  # tensors kept; the one that was sent first goes first

_kept: dict[Hashable, Tensor] = {}
_captured: list[Tensor] = []


def sent(device: torch.device, values: Any, key: Hashable = None) -> Tensor:
    """The numbers, or where a key is given what `values()` makes, in the dtype NumPy has; to read only."""
    if key is None:
        values = np.asarray(values, order="C")
        key = values.tobytes(), values.shape, values.dtype.str
    place, capturing = (device, key), device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    found = _kept.get(place)
    if found is None:
        host = torch.tensor(values() if callable(values) else values, device="cpu")
        if device.type == "cuda":
            host = host.pin_memory()
        found = host.to(device, non_blocking=True)
        if capturing:
            _captured.append(host)
        else:
            _kept[place] = found
            if len(_kept) > MOST:
                del _kept[next(iter(_kept))]
    if capturing:
        _captured.append(found)
    return found
