"""The LMTP front: Postfix's lmtp(8) on one side, the mailbox server on the other, the store in between.

`policy` has the limits and what the metrics may watch, `wire` the bytes of one connection, `session` its
commands, `transaction` their state, `message` what happens from 354 to the last reply (with `answers` and
`retry`), `server` the listener and all sessions.
"""

from sidecar.front.policy import FrontEvents, FrontLimits
from sidecar.front.server import FrontServer
from sidecar.front.session import LmtpFront

__all__ = ["FrontEvents", "FrontLimits", "FrontServer", "LmtpFront"]
