"""Random but valid traces for property tests."""

from hypothesis import strategies as st

from inferlab.trace import STATUSES, Request, Trace

gap_s = st.floats(0, 10).map(lambda value: round(value, 6))
token_counts = st.integers(0, 6)


@st.composite
def requests(draw, identity="r0", statuses=STATUSES):
    """One request: gaps of whole microseconds, chunks of 0 to 6 tokens."""
    scheduled = draw(st.floats(0, 100).map(lambda value: round(value, 6)))
    time = sent = scheduled + draw(gap_s)
    events = []
    for _ in range(draw(st.integers(0, 8))):
        time += draw(gap_s)
        events.append((time, draw(token_counts)))
    status = draw(st.sampled_from(statuses))
    error = draw(st.none() | st.text(max_size=20)) if status != "ok" else None
    return Request(identity, scheduled, sent, draw(st.integers(0, 100)), events, status, error)


@st.composite
def traces(draw, min_size=1, max_size=6, statuses=STATUSES):
    """A trace with some metadata."""
    size = draw(st.integers(min_size, max_size))
    items = tuple(draw(requests(f"r{index}", statuses)) for index in range(size))
    meta = draw(st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=8)))
    return Trace(items, meta)
