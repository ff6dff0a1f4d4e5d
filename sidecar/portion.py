"""How much of something to read: a size, or a share of what there is."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from sidecar.units import exact_size, parse_size


@dataclass(frozen=True, slots=True)
class Portion:
    """So many bytes, or so many hundredths."""

    size_bytes: int = 0
    percent: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Portion:
        """`256MiB`, `0`, or a share such as `5%`. Raises `ValueError`."""
        if match := re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)%", text):
            if float(match[1]) <= 100:
                return cls(percent=float(match[1]))
            raise ValueError(f"{text!r} is more than all")
        try:
            return cls(parse_size(text))
        except ValueError as exc:
            raise ValueError(f"{exc}, or a share such as 5%") from exc

    def of(self, total: int) -> int:
        """Bytes, of so many."""
        return min(total, math.ceil(total * self.percent / 100) if self.percent else self.size_bytes)

    def __str__(self) -> str:
        return f"{self.percent:g}%" if self.percent else exact_size(self.size_bytes)
