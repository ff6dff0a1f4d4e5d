"""Which messages a check reads: all, a random share, or one of so many parts that together are all. Pure."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from blake3 import blake3


@dataclass(frozen=True, slots=True)
class Sample:
    """The messages whose share or part it is. `seed` makes another share each time; parts need none."""

    share: float = 1.0
    part: int = 1
    parts: int = 1
    seed: str = field(default_factory=lambda: os.urandom(8).hex())

    @classmethod
    def parse(cls, text: str) -> Sample:
        """`all`, a share such as `10%`, or `2/5`: the second of five parts. Raises `ValueError`."""
        if text == "all":
            return cls()
        if match := re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)%", text):
            if 0 < float(match[1]) <= 100:
                return cls(share=float(match[1]) / 100)
        elif match := re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text):
            part, parts = int(match[1]), int(match[2])
            if 1 <= part <= parts:
                return cls(part=part, parts=parts)
        raise ValueError(f"{text!r} is neither a share such as 10% nor a part such as 2/5")

    def takes(self, name: bytes) -> bool:
        """Whether a content or chunk is in it, by its id."""
        if self.parts > 1:
            return int.from_bytes(name[:8], "big") % self.parts == self.part - 1
        if self.share < 1:
            drawn = int.from_bytes(blake3(name + self.seed.encode()).digest(8), "big")
            return drawn < self.share * (1 << 64)
        return True

    def __str__(self) -> str:
        return f"{self.part}/{self.parts}" if self.parts > 1 else f"{self.share:.6%}"
