"""The milter protocol's numbers, and what we agree on with the MTA.

Only what a capture needs: it changes no mail, so it asks for no action but naming its macros, and it has
nothing to say to headers and body before end-of-message, so the MTA need not wait for a reply to each.
Values are those of libmilter (SMFIS_*, SMFIF_*, SMFIP_*).
"""

from __future__ import annotations

import enum


class Reply(enum.IntEnum):
    """What a callback returns to libmilter. REJECT, DISCARD and ACCEPT are not ours to say."""

    CONTINUE = 0
    TEMPFAIL = 4
    NOREPLY = 7


class Action(enum.IntFlag):
    """What a milter may do to mail: of these, we ask for one that does nothing to it."""

    SETSYMLIST = 0x100


class Step(enum.IntFlag):
    """Events not to be sent (NO), replies not to be waited for (NR), and how header values come."""

    NOHELO = 0x2
    NR_HDR = 0x80
    NOUNKNOWN = 0x100
    NODATA = 0x200
    NR_EOH = 0x40000
    NR_BODY = 0x80000
    HDR_LEADSPC = 0x100000


QUIET_STEPS = Step.NR_HDR | Step.NR_EOH | Step.NR_BODY
"""The events whose callbacks must answer NOREPLY and nothing else. libmilter makes up the reply itself for an
MTA that waits for one, so these are had with every MTA."""

# HELO and unknown commands are free text that pymilter decodes as strict UTF-8 before any callback of ours
# runs: an 8-bit HELO would cost the client its session. DATA tells us nothing.
_WANTED_STEPS = QUIET_STEPS | Step.NOHELO | Step.NOUNKNOWN | Step.NODATA | Step.HDR_LEADSPC


def agree(offered_actions: int, offered_steps: int) -> tuple[Action, Step]:
    """Of what the MTA offers, what we take. To ask for more than is offered ends the session."""
    return Action.SETSYMLIST & Action(offered_actions), _WANTED_STEPS & Step(offered_steps)
