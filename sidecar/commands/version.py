"""`mailkeep version`."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_LIBRARIES = (
    "aiosmtpd",
    "blake3",
    "lmdb",
    "msgspec",
    "prometheus-client",
    "pymilter",
    "rich",
    "typer",
    "uvloop",
    "zstandard",
)


def command() -> None:
    """Print the versions of mailkeep, Python and the libraries in use.

    \b
    Example: mailkeep version
    Exit code: 0
    """
    print("mailkeep", _version("mailkeep"))
    print(f"python {platform.python_version()}")
    for name in _LIBRARIES:
        print(f"{name} {_version(name)}")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "is not installed"
