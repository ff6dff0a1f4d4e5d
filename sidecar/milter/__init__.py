"""The milter protocol as a capture needs it: numbers, macros, envelopes, the message put together again.

Bytes in, bytes out. Does no I/O, runs no thread and knows neither the store nor pymilter: libmilter speaks
on the wire, and `sidecar.milter_front` calls this room from its callbacks.
"""

from sidecar.milter.envelope import parse_path
from sidecar.milter.macros import MACROS, QUEUE_ID, Stage, attribute_name
from sidecar.milter.message import Rebuild
from sidecar.milter.protocol import QUIET_STEPS, Action, Reply, Step, agree

__all__ = [
    "MACROS",
    "QUEUE_ID",
    "QUIET_STEPS",
    "Action",
    "Rebuild",
    "Reply",
    "Stage",
    "Step",
    "agree",
    "attribute_name",
    "parse_path",
]
