"""The store's few errors, each with words for the person who has to act on it.

Everything the store raises on purpose derives from `StoreError`; callers in the mail path need to ask
one question only: did it work? Anything else (a bug) is left to propagate and is treated as a fault too.
"""

from __future__ import annotations


class StoreError(Exception):
    """Something about the store went wrong; `hint` says what to do."""

    hint = ""
    exit_code = 10


class StoreNotFoundError(StoreError):
    """There is no store at the path."""

    hint = "Check [store] path or --store; `mailkeep serve` creates a store on first use."
    exit_code = 11


class StoreLockedError(StoreError):
    """Another process writes to this stream."""

    hint = "Only one `mailkeep serve` may write to a store's stream; end the other one first."
    exit_code = 12


class StoreFullError(StoreError):
    """Free space has fallen to the reserve; mail is deferred before the disk is full."""

    hint = "Free space on the store's file system, or lower [store] reserve."
    exit_code = 13


class StoreFailedError(StoreError):
    """A write or flush failed; what was not acknowledged must be taken as lost, and is retried by Postfix."""

    hint = "Look at the kernel log for the disk's error, then restart: start-up verifies what is on disk."
    exit_code = 14


class DamagedError(StoreError):
    """Bytes on disk are not what was written."""

    hint = "Run `mailkeep check --read-data` to find the extent; restore the named pack from a copy."
    exit_code = 15


class PackGoneError(DamagedError):
    """A pack that something should lie in is not there: lost, or replaced by compaction a moment ago."""


class HeldError(StoreError):
    """What was to be erased is under a hold."""

    hint = "`mailkeep hold list` shows the holds; release it first if you may."
    exit_code = 20


class FormatError(StoreError):
    """The store was written by a version that this one does not know."""

    hint = "Use a mailkeep at least as new as the one that wrote the store."
    exit_code = 16


class NotFoundError(StoreError):
    """No such delivery or content."""

    hint = "`mailkeep list` shows what there is."
    exit_code = 17


class AmbiguousIdError(StoreError):
    """An abbreviated id fits more than one delivery."""

    hint = "Give more characters of the id."
    exit_code = 18


class SealedError(StoreError):
    """Something is sealed, and none of the identities at hand opens it."""

    hint = "Give the age identity that it is sealed for: --identity FILE, or MAILKEEP_IDENTITY."
    exit_code = 21


class IdentityError(StoreError):
    """A key, or a file that should hold one, is not what it should be."""

    hint = "`mailkeep keygen --output FILE` makes an identity; `age1…` keys seal, the identity file opens."
    exit_code = 22


class IndexFailedError(StoreError):
    """The index cannot be opened or written."""

    hint = "The index is derived: move the store's `index` directory away and it is rebuilt from the logs."
    exit_code = 19
