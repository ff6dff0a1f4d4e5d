"""The `mailkeep` command with jobs of the tests' own: they do nothing but obey files beside the store.

`check` writes a line to `steps` every 10 ms until there is a file `finish`; `compact` is done at once;
`expire` fails. Run as a program, with the command's arguments.
"""

from __future__ import annotations

import time
from pathlib import Path

from sidecar import jobs
from sidecar.cli import main
from sidecar.config import Config
from sidecar.scheduler.context import JobContext
from sidecar.scheduler.kinds import Run
from store.store import Store


def check_job(store: Store, config: Config) -> Run:
    directory: Path = store.path.parent

    def check(context: JobContext) -> str:
        number = int(context.bookmark or 0)
        while not (directory / "finish").exists():
            context.yield_()
            number += 1
            with (directory / "steps").open("a") as steps:
                steps.write(f"{number}\n")
            context.bookmark = str(number)
            context.progress(number, 1000, "steps")
            time.sleep(0.01)
        return f"{number} steps"

    return check


def compact_job(store: Store, config: Config, others: object) -> Run:
    return lambda _: "nothing to give back \x1b[31m"


def expire_job(store: Store, config: Config) -> Run:
    def fail(_: JobContext) -> str:
        raise OSError(5, "Input/output error")

    return fail


if __name__ == "__main__":
    jobs.check_job = check_job
    jobs.compact_job = compact_job
    jobs.expire_job = expire_job
    main()
