"""The block manager: no block lost, none shared by mistake, nothing changed by a refusal."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inferlab.errors import UserError
from inferlab.kvcache.blocks import BlockManager, OutOfBlocks


class Blocks(RuleBasedStateMachine):
    """Random operations, beside a store that is really written and what each sequence wrote."""

    @initialize(num_blocks=st.integers(1, 12), block_size=st.integers(1, 5))
    def start(self, num_blocks, block_size):
        self.manager = BlockManager(num_blocks, block_size)
        self.store = {}  # (block, place) -> token
        self.texts = {}  # what each sequence has to read back
        self.next_id = self.next_token = 0

    def write(self, seq_id, start):
        table, size = self.manager.block_table(seq_id), self.manager.block_size
        for place in range(start, self.manager.num_tokens(seq_id)):
            self.store[table[place // size], place % size] = self.next_token
            self.texts[seq_id].append(self.next_token)
            self.next_token += 1

    def new_id(self):
        self.next_id += 1
        return self.next_id

    @rule(num_tokens=st.integers(0, 20))
    def allocate(self, num_tokens):
        seq_id = self.new_id()
        if self.manager.blocks_for(num_tokens) > self.manager.num_free:
            with pytest.raises(OutOfBlocks):
                self.manager.allocate(seq_id, num_tokens)
            return
        self.manager.allocate(seq_id, num_tokens)
        self.texts[seq_id] = []
        self.write(seq_id, 0)

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def append(self, data):
        chosen = data.draw(st.lists(st.sampled_from(sorted(self.texts)), min_size=1, unique=True))
        growth = {seq_id: data.draw(st.integers(1, 7)) for seq_id in chosen}
        starts = {seq_id: self.manager.num_tokens(seq_id) for seq_id in chosen}
        needed, free = self.manager.blocks_to_append(growth), self.manager.num_free
        if needed > free:
            tables = {seq_id: self.manager.block_table(seq_id) for seq_id in self.texts}
            with pytest.raises(OutOfBlocks):
                self.manager.append_all(growth)
            assert tables == {seq_id: self.manager.block_table(seq_id) for seq_id in self.texts}
            assert free == self.manager.num_free
            return
        for source, target in self.manager.append_all(growth):
            for place in range(self.manager.block_size):
                if (source, place) in self.store:
                    self.store[target, place] = self.store[source, place]
        assert free - self.manager.num_free == needed
        for seq_id, start in starts.items():
            self.write(seq_id, start)

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def fork(self, data):
        parent, child = data.draw(st.sampled_from(sorted(self.texts))), self.new_id()
        free = self.manager.num_free
        held = len(self.texts[parent])
        shared = data.draw(st.none() | st.integers(1, held)) if held else None
        self.manager.fork(parent, child, shared)
        self.texts[child] = self.texts[parent][:shared]
        assert self.manager.num_free == free
        assert child in self.manager and self.next_id + 1 not in self.manager

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def free(self, data):
        seq_id = data.draw(st.sampled_from(sorted(self.texts)))
        self.manager.free(seq_id)
        del self.texts[seq_id]
        with pytest.raises(UserError, match="holds blocks"):
            self.manager.free(seq_id)

    @invariant()
    def nothing_is_lost(self):
        assert self.manager.problems() == []
        if not self.texts:
            assert self.manager.num_free == self.manager.num_blocks

    @invariant()
    def every_sequence_reads_what_it_wrote(self):
        size = self.manager.block_size
        for seq_id, text in self.texts.items():
            table = self.manager.block_table(seq_id)
            read = [self.store[table[s // size], s % size] for s in range(len(text))]
            assert read == text
        wanted = [*self.texts, "nobody"]
        assert self.manager.lengths(wanted) == [len(self.texts.get(s, [])) for s in wanted]


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_fork_is_copied_by_the_first_that_writes_and_only_then():
    manager = BlockManager(8, 4)
    table = manager.allocate("parent", 6)
    manager.fork("parent", "child")
    assert manager.block_table("child") == table and manager.num_free == 6
    (copy,) = manager.append("child")
    assert copy[0] == table[1] and manager.block_table("child") == (table[0], copy[1])
    assert manager.append("parent") == []  # alone with its last block by now
    assert manager.users(table[0]) == 2 and manager.users(table[1]) == 1
    manager.free("parent")
    assert manager.block_table("child")[0] == table[0]  # still in use: not free
    manager.free("child")
    assert manager.num_free == 8


def test_a_full_last_block_is_never_copied():
    manager = BlockManager(8, 4)
    manager.allocate("parent", 8)
    manager.fork("parent", "child")
    assert manager.append_all({"parent": 1, "child": 1}) == []
    assert set(manager.block_table("parent")[:2]) == set(manager.block_table("child")[:2])
    assert manager.block_table("parent")[2] != manager.block_table("child")[2]


def test_a_fork_of_a_beginning_shares_its_blocks_alone():
    manager = BlockManager(8, 4)
    table = manager.allocate("parent", 12)
    assert manager.fork("parent", "child", 6) == table[:2] and manager.num_tokens("child") == 6
    ((source, target),) = manager.append("child")  # a block in the middle of the parent's
    assert source == table[1] and manager.block_table("child") == (table[0], target)
    assert manager.block_table("parent") == table
    live = manager.live_table("child")
    manager.append("child", 4)
    assert tuple(live) == manager.block_table("child") and len(live) == 3
    manager.free("child")
    manager.allocate("child", 1)
    assert manager.live_table("child") is not live


def test_all_or_none_of_several_sequences_grow():
    manager = BlockManager(3, 2)
    manager.allocate("a", 2)
    manager.allocate("b", 2)
    with pytest.raises(OutOfBlocks, match="2 blocks are needed and 1 are free"):
        manager.append_all({"a": 1, "b": 1})
    assert manager.num_tokens("a") == manager.num_tokens("b") == 2
    assert manager.append("a") == [] and manager.num_free == 0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda m: m.free("nobody"), "no sequence 'nobody' holds blocks"),
        (lambda m: m.append("nobody"), "no sequence 'nobody'"),
        (lambda m: m.fork("nobody", "b"), "no sequence 'nobody'"),
        (lambda m: m.block_table("nobody"), "no sequence 'nobody'"),
        (lambda m: m.allocate("a", 1), "holds blocks already"),
        (lambda m: m.fork("a", "a"), "fork to a new id"),
        (lambda m: m.fork("a", "b", 4), "holds 3 positions, not 4: fork no more"),
        (lambda m: m.fork("a", "b", 0), "num_tokens must be a whole number of at least 1"),
        (lambda m: m.allocate("b", -1), "num_tokens must be a whole number"),
        (lambda m: m.append("a", 1.5), "n must be a whole number"),
        (lambda m: BlockManager(0, 16), "num_blocks must be"),
        (lambda m: BlockManager(4, True), "block_size must be"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(wrong, words):
    manager = BlockManager(4, 2)
    manager.allocate("a", 3)
    with pytest.raises(UserError, match=words) as caught:
        wrong(manager)
    assert "\n" not in str(caught.value)
    assert manager.num_tokens("a") == 3
    assert manager.problems() == []


@given(st.integers(1, 1000), st.integers(1, 64))
def test_less_than_one_block_of_a_sequence_is_empty(num_tokens, block_size):
    manager = BlockManager(1000, block_size)
    reserved = len(manager.allocate(0, num_tokens)) * block_size
    assert 0 <= reserved - num_tokens < block_size


def test_a_corrupted_manager_says_so():
    manager = BlockManager(4, 2)
    manager.allocate("a", 4)
    manager._free.append(manager.block_table("a")[0])
    assert manager.problems() == ["a block is neither in use nor free, or both"]
    manager._sequences["b"] = manager._sequences["a"]
    assert "a block has other users than it counts" in manager.problems()
