"""`mailkeep head`, with `keygen`."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from sidecar import heads
from sidecar.commands import options
from sidecar.present import print_json
from sidecar.readable import escaped
from sidecar.scheduler.state import write_whole
from sidecar.units import format_time
from store.evidence import continuation, head_of
from store.notes import SignKey, VerifyKey
from store.proofs import Continuation, parse_continuation

SignOption = Annotated[
    Path | None,
    typer.Option("--sign", metavar="KEYFILE", help="Sign the head; default: [witness] key, if there is one."),
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", metavar="FILE", help="Write it there instead of printing it.")
]
KeyOption = Annotated[
    VerifyKey | None,
    typer.Option(
        "--key",
        metavar="PUB",
        parser=heads.verify_key,
        help="Who must have signed the head: a public key, or a file with it.",
    ),
]


def command(
    context: typer.Context,
    *,
    output: OutputOption = None,
    sign: SignOption = None,
    verify: Annotated[
        Path | None,
        typer.Option(
            "--verify", metavar="FILE", help="Verify a head, or a proof that one continues another."
        ),
    ] = None,
    consistent_with: Annotated[
        Path | None,
        typer.Option(
            "--consistent-with",
            metavar="OLD",
            help="Compare with an earlier head: does the history still begin with that?",
        ),
    ] = None,
    key: KeyOption = None,
    json: options.JsonOption = False,
    config: options.ConfigOption = None,
    store: options.StoreOption = None,
) -> None:
    """Print the head: a few lines that vouch for everything recorded so far. Keep it off this host.

    With --consistent-with OLD it is shown that nothing under OLD was altered, from the index, in a moment;
    with --output the proof of it, which holds both heads, is written. `mailkeep check --since-head OLD` reads
    the streams themselves, which is what to trust.

    \b
    Example: mailkeep head --output /mnt/elsewhere/head.txt
    Example: mailkeep head --verify head.txt --key mx1.key.pub
    Example: mailkeep head --consistent-with head.txt
    Exit codes: 0 all is well; 1 not so: a stream has lost facts, a signature is not right, or the history is
    another; 2 wrong usage or configuration; 10 and above: the store, as the message says.
    """
    if context.invoked_subcommand is not None:
        return
    if verify is not None:
        _verify(verify, key, json=json)
        return
    signing = options.signing_key(config, store, sign)
    with options.open_store(config, store, needs=options.Need.NOTHING) as opened:
        if consistent_with is not None:
            old, _ = heads.read_head(consistent_with, key)
            made = continuation(opened, old, sign=signing.sign if signing else str)
            if output:
                write_whole(output.absolute(), made.text().encode(), durable=True)
            _tell_continuation(made, json=json)
            return
        head = head_of(opened)
    note = signing.sign(head.text()) if signing else head.text()
    if output:
        write_whole(output.absolute(), note.encode(), durable=True)
    if json:
        print_json(heads.head_object(head, heads.signers(note)))
    elif not output:
        print(note, end="")
    for name in head.gaps:
        print(
            escaped(f"stream {name} has lost facts: nothing vouches for it; run `mailkeep check`"),
            file=sys.stderr,
        )
    if head.gaps:
        raise typer.Exit(1)


def keygen(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the signing key goes.")],
    *,
    name: Annotated[
        str | None, typer.Option("--name", metavar="TEXT", help="The signer's name; default: the host's.")
    ] = None,
) -> None:
    """Make a pair of keys for heads: FILE to sign with, FILE.pub for those who verify.

    \b
    Example: mailkeep head keygen /etc/mailkeep/head.key
    Exit codes: 0 made; 1 the file is there already, or cannot be written; 2 wrong usage.
    """
    signing = SignKey.generate(name or socket.gethostname() or "mailkeep")
    public = file.with_name(file.name + ".pub")
    for path, text, mode in ((file, str(signing), 0o600), (public, str(signing.verify_key), 0o644)):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "w") as written:
            written.write(text + "\n")
    print(signing.verify_key)


SUBCOMMANDS = {"keygen": keygen}


def _verify(path: Path, key: VerifyKey | None, *, json: bool) -> None:
    text = heads.read_text(path)
    if text.lstrip().startswith("{"):
        made = parse_continuation(text)
        for note in (made.old, made.new):
            heads.head_in(note, key)
        _tell_continuation(made, json=json)
        return
    _, head = heads.read_head(path, key)
    if json:
        print_json(heads.head_object(head, heads.signers(text)))
    else:
        by = f"signed by {key.name}" if key else "no signature was verified: name the signer by --key"
        print(escaped(f"{heads.told(head)}; {by}"))


def _tell_continuation(made: Continuation, *, json: bool) -> None:
    old, new = heads.head_in(made.old), heads.head_in(made.new)
    faults = made.faults()
    if json:
        print_json(
            {
                "consistent": not faults,
                "faults": faults,
                "old": heads.head_object(old, heads.signers(made.old)),
                "new": heads.head_object(new, heads.signers(made.new)),
                "paths": {name: [part.hex() for part in path] for name, path in made.paths.items()},
            }
        )
    elif faults:
        for fault in faults:
            print(escaped(fault))
        print("Compare with other copies of the head; `mailkeep check --since-head` reads the streams.")
    else:
        since = f"{new.facts - old.facts} facts came since {format_time(old.time_us)}"
        print(f"all {old.facts} facts of the earlier head are as they were; {since}")
    if faults:
        raise typer.Exit(1)
