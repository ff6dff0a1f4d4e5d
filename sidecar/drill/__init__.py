"""The drill: proves that mail which is captured now, and mail of any time, comes back byte for byte.

A canary goes the way that mail goes; it and a random sample of the store are put back to a scratch LMTP
server in this process, which keeps nothing but their BLAKE3. Nothing is recorded in the store's history: a
later replay must not take what went to the scratch server for mail that is back.
"""

from sidecar.drill.drill import DrillFailedError, Plan, Report, drill
from sidecar.drill.proof import Proof, load_proof, record

__all__ = ["DrillFailedError", "Plan", "Proof", "Report", "drill", "load_proof", "record"]
