"""The `mailkeep` command: finds the command that is meant, and turns expected faults into words.

A command's module is imported when it is asked for, and not before: parsers and libraries of the other
commands would cost every start a tenth of a second or more.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

COMMANDS = {
    "serve": "sidecar.commands.serve",
    "demo": "sidecar.commands.demo",
    "list": "sidecar.commands.list",
    "find": "sidecar.commands.find",
    "show": "sidecar.commands.show",
    "browse": "sidecar.commands.browse",
    "export": "sidecar.commands.export",
    "replay": "sidecar.commands.replay",
    "undelete": "sidecar.commands.undelete",
    "audit": "sidecar.commands.audit",
    "import": "sidecar.commands.import_",
    "expire": "sidecar.commands.expire",
    "hold": "sidecar.commands.hold",
    "erase": "sidecar.commands.erase",
    "compact": "sidecar.commands.compact",
    "check": "sidecar.commands.check",
    "drill": "sidecar.commands.drill",
    "head": "sidecar.commands.head",
    "prove": "sidecar.commands.prove",
    "rebuild": "sidecar.commands.rebuild",
    "replica": "sidecar.commands.replica",
    "restore-store": "sidecar.commands.restore_store",
    "stats": "sidecar.commands.stats",
    "jobs": "sidecar.commands.jobs",
    "keygen": "sidecar.commands.keygen",
    "version": "sidecar.commands.version",
}
"""name -> the module whose function `command` it is; the order is that of `mailkeep --help`.

A module with SUBCOMMANDS (name -> function) is a group: `command` then comes before each of them, and alone
when none is named. A module's COMMAND_CLASS, if it has one, reads the arguments.
"""


class _Commands(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the signature is typer's
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - the signature is typer's
        if cmd_name not in COMMANDS:
            return None
        module = import_module(COMMANDS[cmd_name])
        made = _plain_typer()
        subcommands = getattr(module, "SUBCOMMANDS", None)
        if subcommands is None:
            made.command(cmd_name, cls=getattr(module, "COMMAND_CLASS", None))(module.command)
        else:
            made.callback(invoke_without_command=True)(module.command)
            for name, function in subcommands.items():
                made.command(name)(function)
        return typer.main.get_command(made)


def _plain_typer(**how: Any) -> typer.Typer:
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, **how)


app = _plain_typer(cls=_Commands, no_args_is_help=True)


@app.callback()
def _mailkeep() -> None:
    """Real-time backup for mail servers: every message captured durably before the mailbox has it."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its code; an expected fault is two lines on standard error."""
    # A name with an odd character in it must not end a listing on a terminal that cannot show it.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Who was reading has seen enough (`| head`); what is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        app(args=arguments, prog_name="mailkeep")
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 1
    except BrokenPipeError:
        raise
    except Exception as exc:
        known = _in_words(exc)
        if known is None:
            raise
        text, hint, code = known
        print(f"mailkeep: {text}", file=sys.stderr)
        if hint:
            print(hint, file=sys.stderr)
        return code
    return 0


def _in_words(exc: Exception) -> tuple[str, str, int] | None:
    """What happened, what to do, and the exit code. None for a fault of ours, which keeps its traceback."""
    if hasattr(exc, "hint") and hasattr(exc, "exit_code"):  # how every fault that we expect tells itself
        return str(exc), exc.hint, exc.exit_code
    if isinstance(exc, OSError):
        return str(exc.strerror) if exc.filename is None else f"{exc.filename}: {exc.strerror}", "", 1
    return None


if __name__ == "__main__":
    main()
