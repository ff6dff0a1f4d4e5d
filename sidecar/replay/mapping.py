"""The file of `--mapping`: whose mail goes to which other mailbox."""

from __future__ import annotations

from pathlib import Path

from sidecar.units import bare_address


class MappingError(Exception):
    """The file cannot be used; the text names file and line."""

    hint = "Write a line OLD-ADDRESS NEW-ADDRESS for each mailbox; what follows a # is a comment."
    exit_code = 2


def read_mapping(path: Path) -> dict[bytes, bytes]:
    """Old address in lower case -> new address. Raises `MappingError`."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as exc:
        raise MappingError(f"--mapping {path}: cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise MappingError(f"--mapping {path}: is not UTF-8 at byte {exc.start}") from exc
    found: dict[bytes, bytes] = {}
    for number, line in enumerate(lines, 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if len(words) != 2:
            raise MappingError(f"--mapping {path}, line {number}: {len(words)} words, not two addresses")
        old, new = (bare_address(word) for word in words)
        if not old or not new:
            raise MappingError(f"--mapping {path}, line {number}: {words[bool(old)]!r} is no address")
        if old.lower() in found:
            raise MappingError(f"--mapping {path}, line {number}: {words[0]} is named a second time")
        found[old.lower()] = new
    if not found:
        raise MappingError(f"--mapping {path}: it names no mailbox")
    return found
