"""A wrong clock for one process: Debian's libfaketime, told by a file what time it is."""

from __future__ import annotations

from pathlib import Path

_LIBRARIES = tuple(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


class FakedClock:
    """`environment` is for the process; what it sees moves with `set`. Intervals stay right."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set("+0")

    @staticmethod
    def is_there() -> bool:
        """Whether the library is installed."""
        return bool(_LIBRARIES)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(_LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, offset: str) -> None:
        """So far off, as in `-20m`."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(offset)
        fresh.replace(self._file)  # whoever looks sees the one or the other
