"""Which popular claims about inference optimization survive a measurement, and where?

The ledger is data/claims/*.yml; verdicts are computed from records when a page is built.
"""

from inferlab.claims.ledger import (
    Claim,
    DeviceVerdict,
    Ledger,
    LedgerRow,
    Source,
    judge,
    ledger_table,
    load_ledger,
)
from inferlab.claims.predicates import PREDICATES, Verdict

__all__ = [
    "PREDICATES",
    "Claim",
    "DeviceVerdict",
    "Ledger",
    "LedgerRow",
    "Source",
    "Verdict",
    "judge",
    "ledger_table",
    "load_ledger",
]
