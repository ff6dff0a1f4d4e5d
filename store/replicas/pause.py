"""How many rounds pass between two tries of something that costs much and fails: more after each."""

from __future__ import annotations

_LONGEST = 64


class Pause:
    """Between two tries; one that has not failed yet is over."""

    def __init__(self) -> None:
        self._next, self._left = 1, 0

    def begin(self) -> None:
        """It has failed once more."""
        self._left, self._next = self._next, min(2 * self._next, _LONGEST)

    def is_over(self) -> bool:
        """Whether to try in this round; to be asked once in each."""
        self._left = max(0, self._left - 1)
        return not self._left
