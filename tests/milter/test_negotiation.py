"""What is asked of the MTA, against what different MTAs offer."""

import pytest

from sidecar.milter import MACROS, QUIET_STEPS, Action, Stage, Step, agree, attribute_name

_MODIFYING = 0xFF  # ADDHDRS CHGBODY ADDRCPT DELRCPT CHGHDRS QUARANTINE CHGFROM ADDRCPT_PAR
_POSTFIX_STEPS = 0x1FFFFF


def test_postfix():
    actions, steps = agree(0x1FF, _POSTFIX_STEPS)
    assert actions == Action.SETSYMLIST
    assert not actions & _MODIFYING
    assert steps == QUIET_STEPS | Step.NOHELO | Step.NOUNKNOWN | Step.NODATA | Step.HDR_LEADSPC


@pytest.mark.parametrize("bit", range(32))
def test_never_more_than_is_offered(bit):
    offered = 0xFFFFFFFF & ~(1 << bit)
    actions, steps = agree(offered, offered)
    assert actions & ~offered == 0
    assert steps & ~offered == 0


def test_the_events_that_make_a_capture_are_never_declined():
    _, steps = agree(0x1FF, 0xFFFFFFFF)
    connect, mail, rcpt, body, headers, end_of_headers = 0x1, 0x4, 0x8, 0x10, 0x20, 0x40
    assert steps & (connect | mail | rcpt | body | headers | end_of_headers) == 0


def test_the_queue_id_is_asked_for_where_it_counts():
    assert "i" in MACROS[Stage.END_OF_MESSAGE]


def test_macro_names_are_one_char_or_braced_and_attribute_names_are_plain():
    for names in MACROS.values():
        for name in names:
            assert len(name) == 1 or (name[0], name[-1]) == ("{", "}")
            assert attribute_name(name).replace("_", "").isalnum()
    assert attribute_name("{auth_authen}") == "auth_authen"
    assert attribute_name("j") == "j"
