"""The hosts to which one may speak in the clear: nobody on the way could listen."""

from __future__ import annotations

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
