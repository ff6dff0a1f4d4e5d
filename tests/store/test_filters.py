"""A filter means exactly what it says, now and when it is read back from the log."""

from __future__ import annotations

from typing import Any

import pytest

from store.filters import Filter, address_test, exact_address, held_by
from store.ids import ContentId, DeliveryId
from store.records import Delivery, Envelope, Hold, Leg, Recipient

ID = DeliveryId(bytes(range(16)))


def delivery(**fields: Any) -> Delivery:
    made: dict[str, Any] = {
        "id": ID, "time_us": 1000, "leg": Leg.LMTP, "content": ContentId(bytes(32)), "size": 1,
        "envelope": Envelope(
            b"Bert@Example.com", (Recipient(b"anna@example.org"), Recipient(b"Carl@Sub.Example.NET"))
        ),
        "queue_id": b"Q1", "subject": b"=?utf-8?q?Zw=C3=B6lf?= lines", "message_id": b"<1@x>",
    }  # fmt: skip
    return Delivery(**(made | fields))


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ({}, True),
        ({"to": "anna@example.org"}, True),
        ({"to": "ANNA@example.org"}, True),
        ({"to": "<anna@example.org>"}, True),
        ({"to": "anna@example.orgx"}, False),
        ({"to": "@sub.example.net"}, True),
        ({"to": "@example.net"}, False),
        ({"to": "*@*.example.net"}, True),
        ({"to": "*"}, True),
        ({"to": "bert@example.com"}, False),
        ({"sender": "bert@example.com"}, True),
        ({"sender": "<>"}, False),
        ({"sender": "@example.com", "to": "dora@example.org"}, False),
        ({"since_us": 1000}, True),
        ({"since_us": 1001}, False),
        ({"until_us": 1000}, False),
        ({"until_us": 1001}, True),
        ({"queue_id": "Q1"}, True),
        ({"queue_id": "q1"}, False),
        ({"message_id": "1@x"}, True),
        ({"message_id": "<1@x>"}, True),
        ({"message_id": "<2@x>"}, False),
        ({"subject": "ZWÖLF"}, True),
        ({"subject": "zwölf  lines"}, False),
        ({"leg": "lmtp"}, True),
        ({"leg": "milter"}, False),
        ({"ids": (ID.hex(),)}, True),
        ({"ids": (ID.hex(), "ff" * 16)}, True),
        ({"ids": (ID.hex()[:10],)}, False),
    ],
)
def test_what_is_meant(asked: dict[str, Any], meant: bool) -> None:
    filter_ = Filter(**asked)
    assert filter_.matches(delivery()) is meant
    told = filter_.told()
    assert Filter.of(told) == filter_, "what stands in the log means the same"
    assert set(told) == set(asked), "and says nothing that was not asked"
    assert filter_.asks_for_nothing == (not asked)


def test_the_null_sender() -> None:
    bounce = delivery(envelope=Envelope(b"", (Recipient(b"anna@example.org"),)))
    assert Filter(sender="<>").matches(bounce)
    assert not Filter(sender="@*").matches(bounce)
    assert exact_address("<>") == b""


def test_signs_that_mean_something_to_regular_expressions_are_plain() -> None:
    assert address_test("a.b+c@*")(b"A.B+C@x")
    assert not address_test("a.b+c@*")(b"aXb+c@x")
    assert not address_test("[a]@*")(b"a@x")


def test_the_first_hold_in_force() -> None:
    def hold(name: str, *, released: bool = False, **matches: Any) -> Hold:
        return Hold(name=name, time_us=1, owner="o", reason="r", matches=matches, released=released)

    anna, other = hold("anna", to="anna@example.org"), hold("other", to="dora@example.org")
    assert held_by([other, anna], delivery()) is anna
    assert held_by([other, hold("anna", to="anna@example.org", released=True)], delivery()) is None
    assert held_by([], delivery()) is None
    unknown = hold("later", colour="red")
    assert held_by([unknown], delivery()) is unknown, "what this version cannot read holds everything"
    with pytest.raises(TypeError):
        Filter.of(unknown.matches)
