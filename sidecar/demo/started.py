"""What runs between a start and a stop, and while a `with` block lasts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self


class Started(ABC):
    """A context manager that starts it, and stops it whatever happens."""

    @abstractmethod
    def start(self) -> None:
        """Start and wait until it is of use; leaves nothing running where it raises."""

    @abstractmethod
    def stop(self) -> object:
        """End it, for good; idempotent."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
