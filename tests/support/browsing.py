"""The browser on a store, driven without a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from textual.pilot import Pilot

from sidecar.browse.app import Browser, Setting
from store.fleet import Archive
from store.store import Store
from tests.support.waiting import until

SMALL = (80, 24)


@contextlib.asynccontextmanager
async def browsing(
    path: Path | Archive, setting: Setting | None = None
) -> AsyncIterator[tuple[Browser, Pilot[None]]]:
    """The browser at 80x24, its first page loaded."""
    with Store.open(path) if isinstance(path, Path) else path as store:
        browser = Browser(store, setting)
        async with browser.run_test(size=SMALL) as pilot:
            await until(lambda: not browser.is_loading)
            yield browser, pilot


def screen_text(browser: Browser) -> str:
    """What a person sees, a line for each line of the screen."""
    strips = browser.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in strips)
