"""What happened, token by token: the event log from which every latency in the book is computed.

A trace is a list of requests; a request knows when it was scheduled, when it was sent, and a list
of (time, number of tokens) events. `inferlab.metrics` and `inferlab.dialects` are folds over it.
On disk a trace is JSON Lines (`inferlab.trace/1`), gzip-compressed when the name ends in `.gz`.
Chapter: chapters/01_metrics.md  Lab: labs/01_metrics.ipynb
"""

from inferlab.trace.file import SCHEMA, load_trace, save_trace
from inferlab.trace.model import STATUSES, Request, Trace, TraceError

__all__ = ["SCHEMA", "STATUSES", "Request", "Trace", "TraceError", "load_trace", "save_trace"]
