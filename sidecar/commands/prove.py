"""`mailkeep prove`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from blake3 import blake3

from sidecar import heads
from sidecar.commands import options
from sidecar.commands.head import KeyOption, OutputOption, SignOption
from sidecar.present import print_json
from sidecar.readable import escaped, text
from sidecar.units import format_time, iso_time
from store.evidence import prove
from store.files import write_whole
from store.heads import Head
from store.notes import VerifyKey
from store.proofs import Proof, ProofError, parse
from store.records import Delivery


def command(
    delivery: Annotated[
        str | None, typer.Argument(metavar="ID", help="A delivery's id, or a unique beginning.")
    ] = None,
    *,
    output: OutputOption = None,
    sign: SignOption = None,
    head: Annotated[
        Path | None,
        typer.Option("--head", metavar="FILE", help="Prove it under this head, or verify against it."),
    ] = None,
    verify: Annotated[
        Path | None, typer.Option("--verify", metavar="FILE", help="Verify a proof; needs no store.")
    ] = None,
    message: Annotated[
        Path | None,
        typer.Option(
            "--message", metavar="FILE", help="With --verify: that this is the message, to the byte."
        ),
    ] = None,
    key: KeyOption = None,
    json: options.JsonOption = False,
    config: options.ConfigOption = None,
    store: options.StoreOption = None,
    identity: options.IdentityOption = None,
) -> None:
    """Prove that a message was captured: a small file that verifies without the store.

    The proof holds what was recorded (envelope, time, the message's BLAKE3), its place in the history, and
    the head that vouches for it. `deploy/verify_proof.py` verifies it where mailkeep is not installed.

    \b
    Example: mailkeep prove 3f2a91 --output proof.json
    Example: mailkeep prove --verify proof.json --message message.eml --head head.txt
    Exit codes: 0 proved, or verified; 1 the proof does not hold, or is of another head or message; 2 wrong
    usage or configuration; 15 damaged, or facts were lost; 17 no such delivery, it was erased or has
    expired, or came after the head; 18 the id fits several; other codes above 10: the store.
    """
    if (delivery is None) == (verify is None):
        raise typer.BadParameter("name a delivery by its ID, or a proof by --verify FILE")
    if verify is not None:
        _verify(verify, message, head, key, json=json)
        return
    if message is not None:
        raise typer.BadParameter("--message goes with --verify")
    heads.distinct(output, head, sign)
    under = heads.read_head(head, key)[0] if head else ""
    if output:
        heads.standing(output, "proof of a delivery", parse)
    signing = None if head else options.signing_key(config, store, sign)
    with options.open_store(config, store, identity) as opened:
        id_ = opened.resolve(delivery or "")
        proof = prove(opened, id_, under=under, sign=signing.sign if signing else str)
    if output:
        write_whole(output.absolute(), proof.text().encode())
    else:
        print(proof.text(), end="")


def _verify(
    path: Path, message: Path | None, head_file: Path | None, key: VerifyKey | None, *, json: bool
) -> None:
    proof = parse(heads.read_text(path))
    delivery, head = proof.verify()
    if key:
        key.verify(proof.head)
    if head_file:
        _same_head(proof, head, heads.read_head(head_file, key)[1])
    if message:
        _same_message(delivery, message)
    verified = {"head": bool(head_file), "signature": bool(key), "message": bool(message)}
    if json:
        print_json({**_object(proof, delivery, head), "verified": verified})
        return
    recipients = ", ".join(text(recipient.address) for recipient in delivery.envelope.recipients)
    print(escaped(f"delivery {delivery.id.hex()}, captured {format_time(delivery.time_us)} ({delivery.leg})"))
    print(escaped(f"  from {text(delivery.envelope.sender) or '<>'} to {recipients}"))
    print(escaped(f"  message of {delivery.size} bytes with BLAKE3 {delivery.content.hex()}"))
    print(escaped(f"  is fact {proof.number} of stream {proof.stream} under {heads.told(head)}"))
    for what, said in (
        ("message", "the message file is that message"),
        ("head", "the head file is that head"),
        ("signature", f"the head is signed by {key.name}" if key else ""),
    ):
        print(f"  {escaped(said)}" if verified[what] else f"  not verified: {what}")


def _same_head(proof: Proof, inside: Head, outside: Head) -> None:
    mine, theirs = inside.stream(proof.stream), outside.stream(proof.stream)
    if inside.store_id != outside.store_id or mine is None or theirs is None:
        raise ProofError("the head is of another store, or does not vouch for the stream")
    if mine.facts != theirs.facts:
        raise ProofError(
            f"the proof is under a head of {mine.facts} facts, and this one has {theirs.facts}: "
            "make it by `mailkeep prove ID --head` with this one"
        )
    if mine.root != theirs.root:
        raise ProofError("the head in the proof is not that head: its root is another")


def _same_message(delivery: Delivery, path: Path) -> None:
    found, size = blake3(), 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
            size += len(piece)
    if (found.digest(), size) != (delivery.content, delivery.size):
        raise ProofError(
            f"{path} is not that message: it has {size} bytes with BLAKE3 {found.hexdigest()} "
            "(line ends must be CRLF, as in `mailkeep show ID --raw`)"
        )


def _object(proof: Proof, delivery: Delivery, head: Head) -> dict[str, Any]:
    return {
        "delivery": delivery.id.hex(),
        "time": iso_time(delivery.time_us),
        "leg": str(delivery.leg),
        "sender": text(delivery.envelope.sender),
        "recipients": [text(recipient.address) for recipient in delivery.envelope.recipients],
        "size": delivery.size,
        "content": delivery.content.hex(),
        "stream": proof.stream,
        "number": proof.number,
        "head": heads.head_object(head, heads.signers(proof.head)),
    }
