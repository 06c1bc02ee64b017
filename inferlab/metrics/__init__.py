"""Which latency and throughput a trace shows: one set of definitions for every backend.

Chapter: chapters/01_metrics.md  Lab: labs/01_metrics.ipynb

Definitions (seconds; `tokens` are output tokens; a token event is an event of at least one token):

- TTFT: first token event - *scheduled* time, so that waiting for the client or the server is
  inside; `ttft_from_sent_s` starts at the send instead.
- TPOT: (last token event - first token event) / (tokens - 1) for one request; undefined below two
  tokens. The divisor counts tokens, not events: when the first event brings k tokens, the k - 1
  that came with the first one took no further time and are in the divisor. When all tokens come in
  one event, TPOT is 0 and says nothing about speed; the summary counts such answers.
- ITL: the gaps between successive token events of a request, pooled over requests; a gap before an
  event of several tokens stays one gap, and the summary counts such events. Gaps of one request are
  not independent, so their percentiles are less certain than their number suggests.
- E2E: last token event - scheduled time, so TTFT + (tokens - 1) * TPOT = E2E.
- Output throughput: tokens of completed requests / length of the window. Goodput: requests a second
  that meet every limit of an SLO; failed requests, and requests for which a limited quantity is
  undefined, are not good.

Latencies are folded over completed requests (status `ok`); failures are counted beside them.
"""

from inferlab.metrics.request import (
    SLO,
    e2e_s,
    is_good,
    itl_s,
    token_events,
    tpot_s,
    ttft_from_sent_s,
    ttft_s,
    user_tok_per_s,
)
from inferlab.metrics.summary import (
    Distribution,
    Goodput,
    MetricsSummary,
    Window,
    distribution,
    summarize,
    without_warmup,
)

__all__ = [
    "SLO",
    "Distribution",
    "Goodput",
    "MetricsSummary",
    "Window",
    "distribution",
    "e2e_s",
    "is_good",
    "itl_s",
    "summarize",
    "token_events",
    "tpot_s",
    "ttft_from_sent_s",
    "ttft_s",
    "user_tok_per_s",
    "without_warmup",
]
