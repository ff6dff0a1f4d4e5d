"""The demo's proofs can fail: each contradiction is seen. And its mails are what they claim to be."""

from __future__ import annotations

import email.utils
from dataclasses import replace
from typing import Any

import pytest

from sidecar.demo.evidence import Evidence, is_copy
from sidecar.demo.mails import ANNA, DORA, ELSEWHERE, NOBODY, USERS, Mail, all_mails
from sidecar.demo.roads import Answer

MAILS = all_mails()
TRACE = (
    b"Return-Path: <a@example.com>\r\nDelivered-To: <b@example.org>\r\nReceived: from x\r\n\tby y; now\r\n"
)


def reply_to(mail: Mail, address: str) -> str:
    return "550 5.1.1 no" if address in mail.refused else "250 2.0.0 Saved"


def capture(mail: Mail) -> dict[str, Any]:
    known = [address for address in mail.recipients if address in USERS]
    return {"recipients": [{"address": address, "reply": reply_to(mail, address)} for address in known]}


EVIDENCE = Evidence(
    MAILS,
    {(mail.message_id, "lmtp"): capture(mail) for mail in MAILS if set(mail.recipients) & set(USERS)},
    {mail.message_id: {who: Answer(reply_to(mail, who), "it") for who in mail.recipients} for mail in MAILS},
)
MESSAGES = {(mail.message_id, "lmtp"): b"Received: by mx\r\n" + mail.raw for mail in MAILS}
BOXES = {
    user: [
        TRACE + MESSAGES[mail.message_id, "lmtp"]
        for mail in MAILS
        if user in set(mail.recipients) - mail.refused
    ]
    for user in USERS
}
METRICS = {
    'mailkeep_captured_messages_total{leg="lmtp"}': float(len(EVIDENCE.captures)),
    'mailkeep_capture_failures_total{leg="lmtp",reason="full"}': 0.0,
}


def test_where_all_is_well_nothing_speaks_against_it() -> None:
    assert list(EVIDENCE.wrong_replies()) == []
    assert list(EVIDENCE.wrong_refusals()) == []
    assert list(EVIDENCE.wrong_captures(MESSAGES)) == []
    assert list(EVIDENCE.wrong_mailboxes(MESSAGES, BOXES)) == []
    assert list(EVIDENCE.wrong_metrics(METRICS)) == []


def answered(mail: Mail, address: str, reply: str) -> Evidence:
    told = {**EVIDENCE.answers[mail.message_id], address: Answer(reply, "it")}
    return replace(EVIDENCE, answers={**EVIDENCE.answers, mail.message_id: told})


def test_a_reply_that_is_not_the_one_heard_is_seen() -> None:
    found = list(answered(MAILS[0], ANNA, "250 2.0.0 saved").wrong_replies())
    assert found == [
        "plain text, anna@example.org: '250 2.0.0 Saved' is on record, heard was '250 2.0.0 saved'"
    ]
    assert list(replace(EVIDENCE, answers={mail.message_id: {} for mail in MAILS}).wrong_replies())


def test_a_refusal_too_many_or_too_few_is_seen() -> None:
    assert len(list(answered(MAILS[0], ANNA, "451 4.3.0 later").wrong_refusals())) == 1
    refusing = next(mail for mail in MAILS if NOBODY in mail.refused)
    assert len(list(answered(refusing, NOBODY, "250 2.0.0 Saved").wrong_refusals())) == 1


@pytest.mark.parametrize(
    "changed",
    [
        lambda message: message[:-1],
        lambda message: message + b" ",
        lambda message: message.replace(b"Lunch", b"lunch"),
        lambda message: b"X-Spam: yes\r\n" + message,
        lambda message: message.replace(b"\r\n", b"\n"),
    ],
)
def test_a_byte_that_differs_is_seen(changed: Any) -> None:
    key = MAILS[0].message_id, "lmtp"
    other = {**MESSAGES, key: changed(MESSAGES[key])}
    assert list(EVIDENCE.wrong_captures(other)) == ["plain text: the lmtp capture is not what was sent"]
    boxes = {**BOXES, ANNA: [TRACE + other[key], *BOXES[ANNA][1:]]}
    assert list(EVIDENCE.wrong_mailboxes(MESSAGES, boxes)) == ["plain text: anna@example.org has 0 of it"]


def test_mail_that_is_missing_doubled_or_strange_is_seen() -> None:
    for found in (BOXES[ANNA][1:], [BOXES[ANNA][0], *BOXES[ANNA]]):
        assert len(list(EVIDENCE.wrong_mailboxes(MESSAGES, {**BOXES, ANNA: found}))) == 2
    assert list(EVIDENCE.wrong_mailboxes(MESSAGES, {**BOXES, DORA: [b"spam"]})) == [
        "dora@example.org has 1 mails, not 0"
    ]


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_that_is_wrong_is_seen(name: str) -> None:
    assert len(list(EVIDENCE.wrong_metrics({**METRICS, name: METRICS[name] + 1}))) == 1


def test_only_trace_fields_may_stand_on_top() -> None:
    assert is_copy(TRACE + b"Subject: x\r\n\r\n", b"Subject: x\r\n\r\n")
    assert is_copy(b"Subject: x\r\n\r\n", b"Subject: x\r\n\r\n")
    assert not is_copy(b"Subject: y\r\n" + b"Subject: x\r\n\r\n", b"Subject: x\r\n\r\n")
    assert not is_copy(b"Received: x\r\n\r\n" + b"Subject: x\r\n\r\n", b"Subject: x\r\n\r\n")


def test_the_mails_are_twenty_different_ones_and_the_same_every_time() -> None:
    assert all_mails() == MAILS
    assert len({mail.message_id for mail in MAILS}) == len(MAILS) == 20
    for mail in MAILS:
        assert mail.raw.endswith(b"\r\n")
        assert mail.raw.count(b"\n") == mail.raw.count(b"\r\n") == mail.raw.count(b"\r")
        assert mail.message_id.encode() in mail.raw
        for address in (mail.sender, *mail.recipients):
            domain = email.utils.parseaddr(address)[1].rpartition("@")[2]
            assert domain in {"", "example.org", "example.com", "example.net"}
    assert {NOBODY, ELSEWHERE, DORA} == {who for mail in MAILS for who in mail.refused}
    assert [mail.offers for mail in MAILS if mail.offers] == [1, 1, 1]
