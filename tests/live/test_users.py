"""From a recipient's address to the login of its mailbox."""

from __future__ import annotations

import pytest

from sidecar.config import Config, ConfigError
from sidecar.live.users import imap_user
from sidecar.sections import ImapConfig


@pytest.mark.parametrize(
    ("recipient", "username", "delimiter", "user"),
    [
        (b"anna@example.org", "%u", "+", "anna@example.org"),
        (b"Anna+Lists@Example.ORG", "%u", "+", "anna@example.org"),
        (b"anna+a+b@example.org", "%n", "+", "anna"),
        (b"anna+a@example.org", "%u", "", "anna+a@example.org"),
        (b"anna-x+y@example.org", "%n", "+-", "anna"),
        (b"+x@example.org", "%n", "+", "+x"),
        (b"anna@example.org", "%d/%n", "+", "example.org/anna"),
        (b"anna@example.org", "100%%%n", "+", "100%anna"),
        (b"anna", "%u", "+", "anna"),
        (b"anna+x", "%u", "+", "anna"),
        (b"anna", "%n%d", "+", "anna"),
        (b'"anna smith"@example.org', "%n", "+", "anna smith"),
        (b'"a@b"@example.org', "%n", "+", "a@b"),
        ("größe@example.org".encode(), "%n", "+", "größe"),
        (b"gr\xf6\xdfe@example.org", "%n", "+", "gr\ufffd\ufffde"),
    ],
)
def test_imap_user(recipient: bytes, username: str, delimiter: str, user: str) -> None:
    assert imap_user(recipient, ImapConfig(username=username, recipient_delimiter=delimiter)) == user


@pytest.mark.parametrize(
    ("username", "fault"),
    [
        ("", "would be one user for everybody"),
        ("%d", "would be one user for everybody"),
        ("%%u", "would be one user for everybody"),
        ("%x", "has a % that is none of"),
        ("%u%", "has a % that is none of"),
    ],
)
def test_a_format_that_names_no_user(username: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[imap\] username: .*{fault}"):
        Config.parse(f"[lmtp]\n[imap]\nusername = '{username}'", "test")
