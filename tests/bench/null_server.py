"""The named peer: aiosmtpd's own LMTP, which takes every message and throws it away.

`python -m tests.bench.null_server PORT [uvloop]`. Its limits are raised so that it takes what we send.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from aiosmtpd.lmtp import LMTP


class _Discard:
    async def handle_DATA(self, _server: Any, _session: Any, _envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        return "250 2.0.0 Ok"


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: LMTP(_Discard(), data_size_limit=100_000_000, hostname="null.example", loop=loop),
        "127.0.0.1",
        port,
    )
    await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[2:] == ["uvloop"]:
        import uvloop

        uvloop.run(_serve(int(sys.argv[1])))
    else:
        asyncio.run(_serve(int(sys.argv[1])))
