"""`mailkeep jobs`, with `run`, `pause`, `resume` and `cancel`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sidecar.commands import options
from sidecar.commands.options import configured_path
from sidecar.metric_table import JOBS
from sidecar.present import print_json
from sidecar.progress import Progress
from sidecar.readable import escaped
from sidecar.scheduler import control
from sidecar.scheduler.channel import DIRECTORY
from sidecar.scheduler.control import Overview
from sidecar.scheduler.state import Ended, Far, Job, KindState
from sidecar.units import exact_duration, format_time, iso_time
from store.errors import StoreNotFoundError

_HEADINGS = ("JOB", "STATE", "SCHEDULE", "NEXT", "LAST", "TOOK", "RESULT")
_INTERRUPTED = 4
_KINDS = ", ".join(JOBS)

KindArgument = Annotated[
    str,
    typer.Argument(metavar="JOB", help=f"{_KINDS}.", show_default=False),
]
KindOrAllArgument = Annotated[
    str,
    typer.Argument(metavar="JOB", help=f"{_KINDS}, or all.", show_default=False),
]


def command(
    context: typer.Context,
    *,
    json: options.JsonOption = False,
    config: options.ConfigOption = None,
    store: options.StoreOption = None,
) -> None:
    """Show the background jobs of `serve`; run, pause, resume or cancel them.

    \b
    Example: mailkeep jobs
    Example: mailkeep jobs run check --wait
    Exit codes: 0 done; 1 refused, or serve does not answer; 2 wrong usage or configuration;
    3 serve is not running (`jobs` alone then shows what was saved);
    10 and above: there is no store, as the message says.
    """
    context.obj = (config, store)
    if context.invoked_subcommand is not None:
        return
    seen = control.overview(_directory(config, store))
    if json:
        for kind in seen.state.kinds:
            print_json(_kind_object(seen, kind))
        return
    if not seen.served:
        typer.echo("serve is not running; this is how it left the jobs", err=True)
    if not seen.state.kinds:
        print("no jobs")
        return
    rows = [_HEADINGS, *(_row(seen, kind) for kind in seen.state.kinds)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if seen.far:
        print(f"{seen.state.running.job.kind if seen.state.running else ''}: {_how_far(seen.far)}")


def run(
    context: typer.Context,
    kind: KindArgument,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job is done.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Run outside the window too.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="If it is running already: once more after that.")
    ] = False,
    arg: Annotated[
        list[str] | None,
        typer.Option(
            "--arg",
            metavar="NAME=VALUE",
            help="What the job is to know: compact all=true, check read_data=10%, drill sample=100.",
        ),
    ] = None,
    json: options.JsonOption = False,
    config: options.ConfigOption = None,
    store: options.StoreOption = None,
) -> None:
    """Ask for a job now. The same work is never queued twice: the earlier request's id is given.

    \b
    Example: mailkeep jobs run check --wait
    Exit codes: 0 queued, or with --wait done; 1 refused, no answer, or with --wait failed;
    2 wrong usage or configuration; 3 serve is not running; 4 with --wait: interrupted or cancelled;
    10 and above: there is no store, as the message says.
    """
    directory = _directory(config, store, context)
    answer = control.run(directory, kind, _arguments(arg or []), force=force, again=again)
    if not wait:
        _print({"job": answer.job, "kind": kind}, f"{kind}: {answer.text}", json=json)
        return
    with Progress() as progress:
        ended = control.wait(
            directory, answer.job, lambda seen: progress.show(f"{kind}: {_standing(seen, answer.job)}")
        )
    if ended is None:
        text = f"{kind}: job {answer.job} is gone: cancelled, or done by another run"
        _print({"job": answer.job, "kind": kind, "result": None}, text, json=json)
        raise typer.Exit(_INTERRUPTED)
    _print(_ended_object(ended), escaped(f"{kind}: {ended.result}: {ended.text}"), json=json)
    raise typer.Exit({"ok": 0, "failed": 1}.get(ended.result, _INTERRUPTED))


def pause(
    context: typer.Context,
    kind: KindOrAllArgument,
    *,
    config: options.ConfigOption = None,
    store: options.StoreOption = None,
) -> None:
    """Let no job of a kind run, until `resume`; one that runs stops and goes on later. Survives restarts.

    \b
    Example: mailkeep jobs pause all
    Exit codes: 0 done; 1 refused, or serve does not answer; 2 wrong usage or configuration;
    10 and above: there is no store, as the message says.
    """
    print(control.pause(_directory(config, store, context), kind, paused=True))


def resume(
    context: typer.Context,
    kind: KindOrAllArgument,
    *,
    config: options.ConfigOption = None,
    store: options.StoreOption = None,
) -> None:
    """Let the jobs of a kind run again.

    \b
    Example: mailkeep jobs resume all
    Exit codes: 0 done; 1 refused, or serve does not answer; 2 wrong usage or configuration;
    10 and above: there is no store, as the message says.
    """
    print(control.pause(_directory(config, store, context), kind, paused=False))


def cancel(
    context: typer.Context,
    kind: KindArgument,
    *,
    config: options.ConfigOption = None,
    store: options.StoreOption = None,
) -> None:
    """Stop the running job of a kind and drop those that wait; it runs again when it is due.

    \b
    Example: mailkeep jobs cancel check
    Exit codes: 0 done; 1 nothing to cancel, or serve does not answer; 2 wrong usage or configuration;
    3 serve is not running; 10 and above: there is no store, as the message says.
    """
    print(control.cancel(_directory(config, store, context), kind).text)


SUBCOMMANDS = {"run": run, "pause": pause, "resume": resume, "cancel": cancel}


def _directory(config: Path | None, store: Path | None, context: typer.Context | None = None) -> Path:
    """Where the jobs' files are. Options may stand before or after the sub-command."""
    if context is not None:
        earlier_config, earlier_store = context.obj
        config, store = config or earlier_config, store or earlier_store
    path = store or configured_path(config)
    if not (path / "mailkeep.store").is_file():
        raise StoreNotFoundError(f"there is no store at {path}")
    return path / DIRECTORY


def _arguments(written: list[str]) -> dict[str, str]:
    arguments = dict(text.partition("=")[::2] for text in written)
    if "" in arguments or any("=" not in text for text in written):
        raise typer.BadParameter("write NAME=VALUE", param_hint="--arg")
    return arguments


def _print(as_json: dict[str, Any], as_text: str, *, json: bool) -> None:
    if json:
        print_json(as_json)
    else:
        print(as_text)


def _row(seen: Overview, kind: str) -> tuple[str, ...]:
    of_kind = seen.state.kinds[kind]
    last = of_kind.last
    return (
        kind,
        _state(seen, kind),
        escaped(of_kind.schedule) or "on request",
        format_time(round(of_kind.next * 1e6)) if of_kind.next else "",
        format_time(round(last.ended * 1e6)) if last else "never",
        exact_duration(round(last.ended - last.started, 1)) if last else "",
        escaped(f"{last.result}: {last.text}") if last else "",
    )


def _state(seen: Overview, kind: str) -> str:
    """One word or a few: what a kind is at."""
    state = seen.state
    waits = _waiting(seen, kind)
    if state.running and state.running.job.kind == kind:
        return "running" if seen.served else "interrupted"
    if state.kinds[kind].paused:
        return "paused" + (", waits" if waits else "")
    if not waits:
        return "idle"
    return "interrupted" if any(job.interrupted for job in waits) else "waits"


def _waiting(seen: Overview, kind: str) -> list[Job]:
    return [job for job in seen.state.queue if job.kind == kind]


def _standing(seen: Overview, job: int) -> str:
    if seen.state.running and seen.state.running.job.id == job:
        return _how_far(seen.far) if seen.far else "running"
    return "waits"


def _how_far(far: Far) -> str:
    share = f"{far.done} of {far.total} ({100 * far.done // far.total} %)" if far.total else f"{far.done}"
    return escaped(
        ", ".join(part for part in (share, far.text, far.waiting and f"waits: {far.waiting}") if part)
    )


def _kind_object(seen: Overview, kind: str) -> dict[str, Any]:
    of_kind: KindState = seen.state.kinds[kind]
    running = seen.state.running if seen.state.running and seen.state.running.job.kind == kind else None
    far = seen.far if running else None
    return {
        "kind": kind,
        "serving": seen.served,
        "state": _state(seen, kind),
        "paused": of_kind.paused,
        "schedule": of_kind.schedule,
        "window": seen.state.window,
        "next": _time(of_kind.next),
        "last": _ended_object(of_kind.last) if of_kind.last else None,
        "last_success": _time(of_kind.last_success),
        "running": {
            "job": running.job.id,
            "started": _time(running.started),
            "done": far.done if far else 0,
            "total": far.total if far else 0,
            "text": far.text if far else "",
            "waiting": far.waiting if far else "",
        } if running else None,
        "queued": [job.id for job in _waiting(seen, kind)],
    }  # fmt: skip


def _ended_object(ended: Ended) -> dict[str, Any]:
    return {
        "job": ended.id,
        "kind": ended.kind,
        "started": _time(ended.started),
        "ended": _time(ended.ended),
        "result": ended.result,
        "text": ended.text,
    }


def _time(seconds: float | None) -> str | None:
    return iso_time(round(seconds * 1e6)) if seconds else None
