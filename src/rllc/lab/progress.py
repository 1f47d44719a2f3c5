"""What all workers of a cluster share; without torch, because the process that keeps it needs none."""

from __future__ import annotations

__all__ = ["Progress"]


class Progress:
    """The steps done, and whether to stop."""

    def __init__(self) -> None:
        self._steps = 0
        self._stopping = False

    def add(self, steps: int) -> None:
        self._steps += steps

    def steps(self) -> int:
        return self._steps

    def stop(self) -> None:
        self._stopping = True

    def stopping(self) -> bool:
        return self._stopping
