"""The scheduler, with no model behind it: nobody starves, nothing leaks, no budget is overrun."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferlab import serving
from inferlab.errors import UserError
from inferlab.kvcache.blocks import BlockManager
from inferlab.serving.prefixes import PrefixCache
from inferlab.serving.scheduler import QueueFull, Scheduler
from inferlab.serving.sequence import Sequence


def scheduler_of(num_blocks=8, block_size=4, seqs=3, tokens=16, max_len=64, **options):
    return Scheduler(BlockManager(num_blocks, block_size), seqs, tokens, max_len, **options)


def added(scheduler, *sizes, start=0):
    """Sequences of (prompt length, output length), put in line; prompts of counting numbers."""
    seqs = [Sequence(f"s{i + start}", range(p), n) for i, (p, n) in enumerate(sizes)]
    for seq in seqs:
        scheduler.add(seq)
    return seqs


def take(scheduler, plan=None):
    """One step as an engine does it, token 0 for everybody; what was planned."""
    plan = plan or scheduler.schedule()
    if plan.segments:
        scheduler.manager.append_all({s.seq.seq_id: s.num_tokens for s in plan.segments})
        scheduler.computed(plan)
    for segment in plan.segments:
        if segment.samples and (reason := segment.seq.append(0)):
            scheduler.finish(segment.seq, reason)
    return plan


def shown(plan):
    return [(s.seq.seq_id, s.start, s.num_tokens) for s in plan.segments]


SIZES = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=10)


@settings(max_examples=150, deadline=None)
@given(
    sizes=SIZES,
    block_size=st.sampled_from([1, 4, 16]),
    spare=st.integers(0, 8),
    seqs=st.integers(1, 4),
    more=st.integers(0, 40),
    chunk_size=st.none() | st.integers(1, 20),
    policy=st.sampled_from(["continuous", "static"]),
    parks=st.booleans(),
    late=st.integers(0, 10),
    hang_up=st.none() | st.integers(0, 9),
)
def test_everybody_finishes_in_order_of_arrival_and_nothing_is_left_behind(
    sizes, block_size, spare, seqs, more, chunk_size, policy, parks, late, hang_up
):
    least = max(-(-(p + n - 1) // block_size) for p, n in sizes)
    manager = BlockManager(least + spare, block_size)
    prefixes = PrefixCache(manager, 3) if parks else None
    budget = seqs + more
    scheduler = Scheduler(
        manager, seqs, budget, 64, chunk_size=chunk_size, policy=policy, prefixes=prefixes
    )
    everybody = added(scheduler, *sizes[:late])
    entered, steps = [], 0
    while scheduler.num_running or scheduler.num_waiting or len(everybody) < len(sizes):
        if len(everybody) < len(sizes):
            everybody += added(scheduler, sizes[len(everybody)], start=len(everybody))
        batch = list(scheduler.running)
        if steps == 3 and hang_up is not None:
            served = hang_up < len(everybody) and everybody[hang_up].state != "finished"
            assert scheduler.cancel(f"s{hang_up}") == served
            batch = list(scheduler.running)
            if not (scheduler.num_running or scheduler.num_waiting):
                continue
        plan = scheduler.schedule()
        assert plan.segments and sum(s.num_tokens for s in plan.segments) <= budget
        assert len({s.seq.seq_id for s in plan.segments}) == len(plan.segments)
        assert all(s.start == s.seq.num_computed and s.num_tokens > 0 for s in plan.segments)
        decodes = [s for s in plan.segments if s.seq.is_decoding]
        assert list(plan.segments[: len(decodes)]) == decodes  # single tokens first
        reads = plan.segments[len(decodes) :]
        assert all(s.samples for s in reads[:-1])  # one at most is left in pieces
        if chunk_size is None:
            assert not decodes or not reads
        else:
            assert sum(s.num_tokens for s in reads) <= chunk_size
        assert scheduler.num_running <= seqs
        order = [int(s.seq_id[1:]) for s in (*scheduler.running, *scheduler.waiting)]
        assert order == sorted(order)
        if policy == "static" and batch:
            assert set(scheduler.running) <= set(batch)
        entered += [s.seq for s in reads if s.seq not in entered]
        take(scheduler, plan)
        assert manager.problems() == []
        steps += 1
    ids = [int(seq.seq_id[1:]) for seq in entered]
    assert parks or ids == sorted(ids)  # read for the first time in order of arrival
    for seq, (prompt_len, output_len) in zip(everybody, sizes, strict=True):
        assert seq.state == "finished"
        if seq.finish_reason != "cancelled":
            assert (seq.prompt_len, len(seq.output_token_ids)) == (prompt_len, output_len)
    if parks:
        prefixes.give_up(manager.num_blocks)
        assert prefixes.num_parked == 0
    assert manager.num_free == manager.num_blocks and manager.seq_ids == ()


def test_without_chunks_prompts_are_read_in_steps_of_their_own():
    scheduler = scheduler_of(num_blocks=40)
    added(scheduler, (10, 3))
    assert shown(take(scheduler)) == [("s0", 0, 10)]
    assert shown(take(scheduler)) == [("s0", 10, 1)]
    added(scheduler, (9, 2), (20, 2), start=1)
    assert shown(take(scheduler)) == [("s1", 0, 9), ("s2", 0, 7)]  # 16 tokens a step; s0 stalls
    assert shown(take(scheduler)) == [("s2", 7, 13)]
    assert shown(take(scheduler)) == [("s0", 11, 1), ("s1", 9, 1), ("s2", 20, 1)]
    assert take(scheduler).segments == ()


def test_chunks_of_prompts_ride_along_with_decodes():
    scheduler = scheduler_of(num_blocks=40, chunk_size=6, tokens=7)
    added(scheduler, (3, 9))
    assert shown(take(scheduler)) == [("s0", 0, 3)]
    added(scheduler, (8, 2), (5, 2), start=1)
    assert shown(take(scheduler)) == [("s0", 3, 1), ("s1", 0, 6)]
    assert shown(take(scheduler)) == [("s0", 4, 1), ("s1", 6, 2), ("s2", 0, 4)]
    # The last token of a text is a decode like any other, whoever wrote it.
    assert shown(take(scheduler)) == [("s0", 5, 1), ("s1", 8, 1), ("s2", 4, 1)]


def test_the_last_to_enter_is_preempted_and_is_first_in_line():
    scheduler = scheduler_of(num_blocks=6, tokens=100)
    seqs = added(scheduler, (7, 9), (7, 9), (2, 1))
    for _ in range(2):
        plan = take(scheduler)
    assert shown(plan) == [("s0", 7, 1), ("s1", 7, 1)]
    while not plan.preempted:
        plan = take(scheduler)
    assert plan.preempted == (seqs[1],) and seqs[1].state == "waiting"
    assert shown(plan) == [("s0", 12, 1)] and list(scheduler.waiting)[0] is seqs[1]
    while seqs[0].state == "running":
        plan = take(scheduler)
    assert shown(take(scheduler))[0] == ("s1", 0, 7 + 6)  # its text so far, read again


def test_static_lets_nobody_in_until_the_batch_is_done():
    scheduler = scheduler_of(num_blocks=40, policy="static", tokens=100)
    added(scheduler, (4, 1), (4, 4), (4, 2), (4, 3))
    batches = []
    while scheduler.num_running or scheduler.num_waiting:
        batches.append([s.seq.seq_id for s in take(scheduler).segments])
    assert batches == [["s0", "s1", "s2"], ["s1", "s2"], ["s1"], ["s1"], ["s3"], ["s3"], ["s3"]]


def test_parked_prefixes_are_given_up_before_anyone_is_preempted():
    manager = BlockManager(8, 4)
    prefixes = PrefixCache(manager)
    scheduler = Scheduler(manager, 2, 100, 64, prefixes=prefixes)
    added(scheduler, (8, 2))
    while scheduler.num_running or scheduler.num_waiting:
        take(scheduler)
    assert prefixes.num_parked == 1 and manager.num_free == 6
    (again,) = added(scheduler, (11, 2), start=1)
    assert shown(take(scheduler)) == [("s1", 8, 3)] and scheduler.cached_tokens == 8
    take(scheduler)
    assert again.state == "finished"
    seqs = [Sequence(f"o{i}", [50 + i] * 13, 4) for i in range(2)]
    for seq in seqs:
        scheduler.add(seq)
    while any(seq.state != "finished" for seq in seqs):
        assert take(scheduler).preempted == ()
    assert manager.problems() == []


def test_parked_prefixes_stay_where_giving_them_up_would_not_be_enough():
    manager = BlockManager(8, 4)
    prefixes = PrefixCache(manager)
    scheduler = Scheduler(manager, 2, 100, 64, prefixes=prefixes)
    added(scheduler, (8, 1))
    take(scheduler)
    assert prefixes.num_parked == 1 and manager.num_free == 6
    scheduler.add(Sequence("long", [50] * 20, 4))
    take(scheduler)
    (head,) = added(scheduler, (13, 2), start=1)  # its beginning is parked; two blocks it lacks
    while head.state == "waiting":
        take(scheduler)
    assert scheduler.cached_tokens == 8
    while scheduler.num_running:
        take(scheduler)
    prefixes.give_up(manager.num_blocks + 1)
    assert prefixes.num_parked > 0
    prefixes.give_up(manager.num_blocks)
    assert prefixes.num_parked == 0 and manager.problems() == []


def test_a_parked_text_replaces_its_own_beginning_and_the_oldest_goes_first():
    manager = BlockManager(40, 4)
    prefixes = PrefixCache(manager, max_parked=2)

    def read(seq_id, text):
        seq = Sequence(seq_id, text, 1)
        taken = prefixes.take(seq)
        if not taken:
            manager.allocate(seq_id, 0)
        manager.append(seq_id, len(text) - taken)
        seq.num_computed = len(text)
        prefixes.park(seq)
        manager.free(seq_id)
        return taken

    assert read("a", [1] * 9) == 0 and prefixes.num_parked == 1
    assert read("b", [1] * 13) == 8 and prefixes.num_parked == 1
    assert read("c", [1] * 12) == 8 and prefixes.num_parked == 1  # a token is left to read
    assert read("d", [2] * 4) == 0 and prefixes.num_parked == 2
    assert read("e", [3] * 3) == 0 and prefixes.num_parked == 2  # not a whole block
    assert read("f", [1] * 4 + [4] * 9) == 4 and prefixes.num_parked == 2  # [2] is gone
    assert read("g", [2] * 5) == 0
    assert manager.problems() == []


def test_a_full_line_refuses_and_free_rows_do_not_count_as_waiting():
    scheduler = scheduler_of(num_blocks=40, seqs=1, max_waiting=1)
    added(scheduler, (4, 2), (4, 2))
    with pytest.raises(QueueFull, match="2 requests wait already: try again later"):
        added(scheduler, (4, 2), start=2)
    take(scheduler)
    with pytest.raises(QueueFull):
        added(scheduler, (4, 2), start=2)
    assert scheduler.cancel("s1") and not scheduler.cancel("s1")
    added(scheduler, (4, 2), start=2)
    assert scheduler.num_waiting == 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: scheduler_of(policy="fair"), "unknown policy 'fair'; known: continuous, static"),
        (lambda: scheduler_of(seqs=0), "max_num_seqs must be a whole number of at least 1"),
        (lambda: scheduler_of(tokens=2), "max_num_batched_tokens must be .* at least 3, not '2'"),
        (lambda: scheduler_of(chunk_size=0), "chunk_size must be"),
        (lambda: scheduler_of(chunk_size=2.5), "chunk_size must be"),
        (lambda: scheduler_of(max_waiting=-1), "max_waiting must be"),
        (lambda: added(scheduler_of(), (30, 4)), "take 33 positions and 32 are the most"),
        (lambda: added(scheduler_of(99, max_len=20), (20, 2)), "21 positions and 20 are the most"),
        (lambda: added(scheduler_of(), (0, 4)), "at least one token"),
        (lambda: added(scheduler_of(), (4, 0)), "max_tokens must be a whole number"),
        (lambda: added(scheduler_of(), (4, True)), "max_tokens must be a whole number"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(wrong, words):
    with pytest.raises(UserError, match=words) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def test_an_id_is_used_once_at_a_time():
    scheduler = scheduler_of()
    added(scheduler, (4, 1))
    with pytest.raises(UserError, match="'s0' is being served: give another id"):
        added(scheduler, (4, 1))
    take(scheduler)
    added(scheduler, (4, 1))


def test_a_stop_token_ends_a_text_and_stays_in_it():
    seq = Sequence("a", [5, 6], 3, {9})
    assert [seq.append(7), seq.append(9)] == [None, "stop"]
    assert seq.output_token_ids == [7, 9] and seq.prompt_token_ids == [5, 6]
    assert Sequence("b", [5], 1, {9}).append(3) == "length"


def test_the_engine_has_at_most_500_lines():
    folder = Path(serving.__file__).parent
    files = [folder / f"{name}.py" for name in ("sequence", "scheduler", "engine")]
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) <= 500
