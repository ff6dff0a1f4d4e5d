"""What an answer lacks: each thing is told on standard error, and the exit code says that there is any."""

from __future__ import annotations

import sys

import typer

from sidecar.readable import escaped
from store.errors import StoreError
from store.fleet import Archive
from store.ids import DeliveryId

PARTLY = 1


class Shortfall:
    """True once something is missing or cannot be read that may belong to what was asked for."""

    def __init__(self, archive: Archive, *, by_id: bool = False) -> None:
        """`by_id`: what is asked for is named, so that what is found is all of it."""
        self._any = False
        if by_id:
            return
        self._any = bool(archive.faults or archive.damage)  # which was told as it was met
        for stream in archive.lacks:
            self._tell(f"part of {stream} is damaged or missing: what was captured then is not seen here")

    def damaged(self, delivery: DeliveryId, error: StoreError) -> None:
        """Take note of a delivery that cannot be read."""
        self._tell(f"delivery {delivery.hex()}: {error}")

    def _tell(self, text: str) -> None:
        self._any = True
        print(f"mailkeep: {escaped(text)}", file=sys.stderr)

    def __bool__(self) -> bool:
        return self._any

    def exit(self) -> None:
        """End the command with `PARTLY` if there is any. Raises `typer.Exit`."""
        if self._any:
            raise typer.Exit(PARTLY)
