"""The demo itself: start the servers, send mail, show what was captured, lose a mail, put it back, prove it.

Whatever is claimed is checked first, against the mailboxes and the senders' side and not against mailkeep's
word alone; what the demo knows of the store it has from the commands that an operator would type.
"""

from __future__ import annotations

import imaplib
import os
import subprocess
import time
from collections import Counter
from typing import Any

from rich.text import Text

from sidecar.demo.evidence import Evidence, is_copy
from sidecar.demo.hints import hints
from sidecar.demo.interruption import Interruption
from sidecar.demo.mails import ANNA, OFFER, USERS, Mail, all_mails
from sidecar.demo.ports import wait_until
from sidecar.demo.process import ServerFailedError
from sidecar.demo.roads import Road
from sidecar.demo.stage import Stage
from sidecar.demo.teller import Teller
from sidecar.units import format_size

_CAPTURE_TIMEOUT_S = 60.0
_LOOK_INTERVAL_S = 0.5
_INTERRUPTED = 130
_ID_DIGITS = 10
_METRICS = (
    'mailkeep_captured_messages_total{leg="lmtp"}',
    'mailkeep_captured_messages_total{leg="milter"}',
    "mailkeep_delivered_messages_total",
    'mailkeep_outcomes_total{class="2xx",source="downstream"}',
    'mailkeep_outcomes_total{class="5xx",source="downstream"}',
    "mailkeep_stored_new_bytes_total",
    "mailkeep_stored_duplicate_bytes_total",
    "mailkeep_commit_seconds_count",
    "mailkeep_commit_seconds_sum",
)


def play(*, keep: bool, without: frozenset[str]) -> int:
    """The whole demo; the exit code. Ends all that it started, however it ends."""
    teller = Teller()
    began = time.monotonic()
    took_s = 0.0
    interrupted = False
    with Interruption() as interruption, Stage(without) as stage:
        try:
            with interruption.allowed():
                story = Story(stage, teller, interruption)
                story.tell()
                took_s = time.monotonic() - began
                if keep:
                    story.wait()
        except KeyboardInterrupt:
            interrupted = not took_s
        except BrokenPipeError:
            raise
        except (ServerFailedError, OSError, imaplib.IMAP4.error, subprocess.TimeoutExpired) as exc:
            # A connection that an interruption has cut short complains in its own words.
            interrupted = interruption.raised and not took_s
            if not interruption.raised:
                teller.failures.append(f"it could not go on: {exc}")
        if interruption.raised:
            teller.go_on()
        teller.title("7. The end" if took_s else "The end")
        with teller.step("Stopping") as step:
            code = stage.stop_serve()
            step.text = "mailkeep serve is stopped"
        if code is not None:
            teller.proof("it ended in order on SIGTERM, exit code 0", [f"it was {code}"] if code else [])
        stage.keep_directory = bool(teller.failures)
    stopped = "All servers are stopped, their directory is removed."
    if not teller.failures:
        teller.title(
            f"Interrupted. {stopped}" if interrupted else f"Everything held, in {took_s:.0f} s. {stopped}"
        )
        return _INTERRUPTED if interrupted else 0
    teller.title("NOT everything held:")
    for failure in teller.failures:
        teller.note(failure, style="red")
    teller.note(f"All servers are stopped. What they wrote is left in {stage.directory}; the logs:")
    for log in stage.logs():
        teller.note(f"  {log}")
    return 1


class Story:
    """The steps, in their order."""

    def __init__(self, stage: Stage, teller: Teller, interruption: Interruption) -> None:
        self._stage = stage
        self._teller = teller
        self._interruption = interruption
        self._mails = all_mails()
        self._captures: dict[tuple[str, str], dict[str, Any]] = {}
        self._evidence = Evidence(self._mails, {}, {})

    def tell(self) -> None:
        """From the start of the servers to the last figure. Raises ServerFailedError and others."""
        self._start()
        road = self._stage.road()
        self._send(road)
        self._show()
        self._compare()
        self._lose_and_restore()
        self._figures()

    def wait(self) -> None:
        """Leave it running until KeyboardInterrupt. Raises ServerFailedError when a server ends by itself."""
        self._teller.title("It goes on running until Ctrl-C. In another terminal:")
        for line in hints(self._stage):
            self._teller.console.print(Text(f"  {line}"), soft_wrap=True)
        while self._stage.serve.running:
            time.sleep(_LOOK_INTERVAL_S)
        raise ServerFailedError("mailkeep serve has ended by itself")

    # -- 1

    def _start(self) -> None:
        stage, teller = self._stage, self._teller
        teller.title("1. Servers")
        teller.note(f"Private ones, on loopback, below {stage.directory}. Your own are not touched.")
        with teller.step("Starting the mailbox server") as step, self._interruption.held():
            step.text = stage.start_mailboxes()
        if stage.no_dovecot:
            teller.note(f"No Dovecot: {stage.no_dovecot}.", style="yellow")
        with teller.step("Starting mailkeep serve") as step, self._interruption.held():
            step.text = stage.start_serve()
        if not stage.no_postfix:
            with teller.step("Starting Postfix") as step, self._interruption.held():
                step.text = stage.start_postfix()
                step.failed = stage.postfix is None
        if stage.no_postfix:
            teller.note(
                f"No Postfix: {stage.no_postfix}. So a client of our own delivers straight to mailkeep by "
                "LMTP, and the milter, which is Postfix's to call, is not shown."
                + (" With sudo it would be." if os.geteuid() else ""), style="yellow",
            )  # fmt: skip
        elif stage.no_milter:
            teller.note(f"No milter: {stage.no_milter}. So only the LMTP leg is shown.", style="yellow")

    # -- 2

    def _send(self, road: Road) -> None:
        to = "Postfix by SMTP" if self._stage.postfix else "mailkeep by LMTP"
        count = len(self._mails)
        self._teller.title("2. Mail")
        with self._teller.step(f"Sending {count} mails to {to}") as step:
            for number, mail in enumerate(self._mails, 1):
                step.show(f"Sending mail {number} of {count} to {to}")
                road.send(mail)
            size = sum(len(mail.raw) for mail in self._mails)
            step.text = f"{count} mails, {format_size(size)}, given to {to}"
        with self._teller.step("Waiting until all is captured and answered for") as step:
            road.settle()
            complete = wait_until(self._all_captured, timeout_s=_CAPTURE_TIMEOUT_S)
            step.text = (
                "the queue is empty, every reply is known" if self._stage.postfix else "every reply is known"
            )
        legs = Counter(leg for _, leg in self._captures)
        told = f"{legs['lmtp']} on their way to mailboxes" + (
            f", {legs['milter']} as Postfix took them in" if self._stage.two_legs else ""
        )
        missing = sorted(
            f"{message_id} is missing in the {leg} leg"
            for message_id, leg in self._wanted() - set(self._captures)
        )
        claim = f"captured, all that were to be: {told}"
        if not self._teller.proof(
            claim, missing or ([] if complete else ["replies are missing, or mails were captured twice"])
        ):
            raise ServerFailedError("with mails missing, there is nothing more to show")
        answers = {mail.message_id: road.answers(mail) for mail in self._mails}
        self._evidence = Evidence(self._mails, self._captures, answers)

    def _wanted(self) -> set[tuple[str, str]]:
        """A mail goes to the mailbox server if there is anybody in it whom that server knows."""
        wanted = {(mail.message_id, "lmtp") for mail in self._mails if set(mail.recipients) & set(USERS)}
        return wanted | {(mail.message_id, "milter") for mail in self._mails if self._stage.two_legs}

    def _all_captured(self) -> bool:
        listed = self._stage.serve.listed()
        self._captures = {(found["message_id"], found["leg"]): found for found in listed}
        replies = [who["reply"] for found in listed if found["leg"] == "lmtp" for who in found["recipients"]]
        return set(self._captures) == self._wanted() and len(listed) == len(self._captures) and all(replies)

    # -- 3

    def _show(self) -> None:
        teller, stage = self._teller, self._stage
        teller.title("3. What mailkeep has")
        teller.table(
            self._headings(), (self._row(number, mail) for number, mail in enumerate(self._mails, 1))
        )
        server = stage.mailbox_server
        legs = (
            "OFFERED is the milter's, as Postfix took the mail in: everybody is in its envelope, BCC "
            f"too. DELIVERED is the capture in front of {server}. The same queue id joins them."
            if stage.two_legs
            else f"DELIVERED is the capture in front of {server}."
        )
        teller.note(
            f"{legs} Before each recipient stands the reply that decided; a mail that nobody could get never "
            f"set out for {server}.", style="dim",
        )  # fmt: skip
        heard = "Postfix" if stage.postfix else "the client"
        teller.proof(
            f"the replies on record are those that {heard} heard, to the letter",
            self._evidence.wrong_replies(),
        )
        teller.proof("refused were those that had to be, and nobody else", self._evidence.wrong_refusals())

    def _headings(self) -> list[str]:
        return ["#", "MAIL", "SIZE", *(["OFFERED"] if self._stage.two_legs else []), "DELIVERED", "REPLIES"]

    def _row(self, number: int, mail: Mail) -> list[Text]:
        legs = [self._captures.get((mail.message_id, leg)) for leg in ("milter", "lmtp")]
        size = next((found["size"] for found in reversed(legs) if found), len(mail.raw))
        shown = legs if self._stage.two_legs else legs[1:]
        return [
            Text(str(number)),
            Text(mail.what),
            Text(format_size(size)),
            *(Text(found["id"][:_ID_DIGITS] if found else "-", style="cyan") for found in shown),
            self._replies(mail),
        ]

    def _replies(self, mail: Mail) -> Text:
        """From the store where it has them, else (refused before it came to us) from the sender's side."""
        recorded = self._evidence.recorded(mail)
        lines = []
        for address in mail.recipients:
            answer = self._evidence.answer(mail, address)
            code = recorded.get(address, answer.reply)[:3]
            good = code.startswith("2")
            by = "" if good else f" ({answer.by})"
            lines.append(Text(f"{code} {address}{by}", style="" if good else "red"))
        return Text("\n").join(lines)

    # -- 4

    def _compare(self) -> None:
        teller, stage = self._teller, self._stage
        teller.title("4. The same bytes")
        with teller.step(f"Reading the mailboxes {stage.protocol}, and the store by mailkeep export") as step:
            messages = self._export()
            boxes = {user: self._raw_mails(user) for user in USERS}
            count = sum(map(len, boxes.values()))
            step.text = (
                f"read {count} mails {stage.protocol}, and {len(messages)} captures by mailkeep export"
            )
        teller.proof("every capture is what was sent, byte for byte", self._evidence.wrong_captures(messages))
        teller.proof(
            "every mail in every mailbox is its capture, byte for byte, and nobody has too many or too few",
            self._evidence.wrong_mailboxes(messages, boxes),
        )
        teller.note(self._explain_bytes(), style="dim")

    def _explain_bytes(self) -> str:
        added = (
            "Compared below the fields that final delivery puts on top (Return-Path, Delivered-To, "
            "Received), and with CRLF, as IMAP gives it back; Dovecot's Maildir has LF."
            if self._stage.dovecot
            else "Compared below the Return-Path that final delivery puts on top."
        )
        return (
            f"{added} On its way in Postfix has put its own Received on top."
            if self._stage.postfix
            else added
        )

    def _export(self) -> dict[tuple[str, str], bytes]:
        """The exact bytes that the store has of each capture."""
        folder = self._stage.directory / "export"
        for leg in ("lmtp", "milter"):
            self._stage.serve.output("export", "--format", "eml", "--output", str(folder), "--leg", leg)
        by_id = {path.stem.rpartition("-")[2]: path.read_bytes() for path in folder.iterdir()}
        return {key: by_id[found["id"][:_ID_DIGITS]] for key, found in self._captures.items()}

    def _raw_mails(self, user: str) -> list[bytes]:
        with self._stage.mailbox(user) as box:
            return [mail.raw for mail in box.messages()]

    # -- 5

    def _lose_and_restore(self) -> None:
        teller, stage = self._teller, self._stage
        teller.title("5. A mail is lost, and put back")
        mail = next(mail for mail in self._mails if mail.recipients == (ANNA,) and mail.offers)
        found = self._captures[mail.message_id, "lmtp"]
        message = stage.serve.output("show", found["id"], "--raw")
        before = len(self._raw_mails(ANNA))
        with teller.step(f"Deleting {mail.what!r} {stage.protocol}") as step:
            with stage.mailbox(ANNA) as box:
                lost = next((each for each in box.messages() if is_copy(each.raw, message)), None)
                if lost:
                    box.delete(lost.uid)
            step.text = f"deleted Anna's mail with the {mail.what}, {stage.protocol}"
        left = self._raw_mails(ANNA)
        teller.proof(
            f"it is gone: {before} mails before, {len(left)} now, and none of them is it",
            []
            if lost and len(left) == before - 1 and not any(is_copy(raw, message) for raw in left)
            else ["it is there"],
        )
        replayed = self._show_command("replay", found["id"][:_ID_DIGITS])
        back = [raw for raw in self._raw_mails(ANNA) if is_copy(raw, message)]
        faults = [] if replayed == 0 else [f"mailkeep replay ended with {replayed}"]
        faults += [] if len(back) == 1 else [f"Anna has {len(back)} of it"]
        teller.proof(
            f"it is back: {len(message)} bytes, the same {stage.protocol} as by mailkeep show --raw",
            faults,
        )

    # -- 6

    def _figures(self) -> None:
        teller, serve = self._teller, self._stage.serve
        teller.title("6. Figures")
        self._show_command("stats")
        captures = Counter(message_id for message_id, _ in self._captures)
        offers = sum(mail.offers * captures[mail.message_id] for mail in self._mails)
        metrics = serve.metrics()
        duplicate = metrics["mailkeep_stored_duplicate_bytes_total"]
        new = format_size(int(metrics["mailkeep_stored_new_bytes_total"]))
        received = format_size(sum(found["size"] for found in self._captures.values()))
        least = (offers - 1) * len(OFFER)
        teller.proof(
            f"the PDF of {format_size(len(OFFER))} came {offers} times, in base64 of 76 and of 60 columns, "
            f"and is stored once: of {received} of mail {new} were new",
            [] if duplicate >= least else [f"{duplicate:g} bytes were there already, {least} were to be"],
        )
        checked = self._show_command("check", "--read-data")
        teller.proof(
            "every record, the chain of the history and every message in the store are sound",
            [] if checked == 0 else [f"mailkeep check ended with {checked}"],
        )
        teller.note(f"Some of http://127.0.0.1:{serve.metrics_port}/metrics:")
        for name in _METRICS:
            teller.console.print(Text(f"    {name} {metrics[name]:.10g}", style="cyan"))
        teller.proof("the metrics agree, and count no failure", self._evidence.wrong_metrics(metrics))

    def _show_command(self, *arguments: str) -> int:
        """Run it and print what it printed; its exit code."""
        done = self._stage.serve.command(*arguments)
        self._teller.command(arguments, done.stdout + done.stderr)
        return done.returncode
