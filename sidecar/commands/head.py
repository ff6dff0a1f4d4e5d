"""`mailkeep head`, with `keygen`."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from sidecar import heads
from sidecar.commands import options
from sidecar.present import print_json
from sidecar.readable import escaped
from sidecar.units import format_time
from store.evidence import continuation, head_of
from store.files import sync_directory, write_new, write_whole
from store.notes import SignKey, VerifyKey
from store.proofs import Continuation, parse_continuation
from store.store import Store

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
    the streams themselves, which is what to trust. A head that is in FILE already is replaced only if the
    history goes on from it, and any other file is left alone.

    \b
    Example: mailkeep head --output /mnt/elsewhere/head.txt
    Example: mailkeep head --verify head.txt --key mx1.key.pub
    Example: mailkeep head --consistent-with head.txt
    Exit codes: 0 all is well; 1 not so: a stream has lost facts, a signature is not right, the history is
    another, or FILE must stay; 2 wrong usage or configuration; 10 and above: the store, as the message says.
    """
    if context.invoked_subcommand is not None:
        return
    if verify is not None:
        _verify(verify, key, json=json)
        return
    heads.distinct(output, consistent_with, sign)
    signing = options.signing_key(config, store, sign)
    signs = signing.sign if signing else str
    with options.open_store(config, store, needs=options.Need.NOTHING) as opened:
        if consistent_with is not None:
            old, _ = heads.read_head(consistent_with, key)
            if output:
                heads.standing(output, "proof that one head continues another", parse_continuation)
            made = continuation(opened, old, sign=signs)
            if output:
                write_whole(output.absolute(), made.text().encode())
            _tell_continuation(made, json=json)
            return
        kept = heads.standing(output, "head", heads.head_in) if output else None
        note = signs(head_of(opened).text()) if kept is None else _continued(opened, output, kept, signs)
        damage = list(opened.damage)
    head = heads.head_in(note)
    if output:
        write_whole(output.absolute(), note.encode())
    if json:
        print_json(heads.head_object(head, heads.signers(note)))
    elif not output:
        print(note, end="")
    for name in head.gaps:
        print(
            escaped(f"stream {name} has lost facts: nothing vouches for it; run `mailkeep check`"),
            file=sys.stderr,
        )
    if damage:
        print(
            escaped(
                f"the store is damaged, and this vouches for what is left: {damage[0]}; `mailkeep check`"
            ),
            file=sys.stderr,
        )
    if head.gaps or damage:
        raise typer.Exit(1)


def _continued(store: Store, path: Path | None, kept: str, sign: Callable[[str], str]) -> str:
    """A head that goes on from the one that it is to replace. Raises `OutputError`."""
    made = continuation(store, kept, sign=sign)
    if faults := made.faults():
        raise heads.OutputError(
            escaped(f"the head in {path} is not of this history, and may be the only trace of it: ")
            + escaped("; ".join(faults))
        )
    return made.new


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
    pair = ((file, str(signing), 0o600), (public, str(signing.verify_key), 0o644))
    for path, _, _ in pair:
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    made: list[Path] = []
    try:
        for path, text, mode in pair:
            write_new(path, text.encode() + b"\n", mode=mode)
            made.append(path)
        sync_directory(file.parent)
    except BaseException:  # one key without the other is of no use, and its name would be taken
        for path in made:
            path.unlink(missing_ok=True)
        raise
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
