"""The block pool on its own: sharing, names, eviction order, isolation."""

from __future__ import annotations

import pytest

from pellucid.engine.kv_cache import KVCacheManager
from pellucid.engine.request import Request
from tests.engine.helpers import request


def enter(kv: KVCacheManager, entering: Request) -> list[int]:
    """Admit and compute everything the request knows; the blocks it found in the cache."""
    found = kv.find_prefix(entering)
    assert kv.allocate(entering, entering.num_tokens, found) is not None
    entering.num_computed_tokens = entering.num_tokens
    kv.commit(entering)
    return found


def test_equal_prefixes_share_blocks_and_tails_do_not() -> None:
    kv = KVCacheManager(16, 4)
    a, b = request("a", list(range(10))), request("b", [*range(8), 77, 78])
    assert enter(kv, a) == []
    assert enter(kv, b) == a.block_table[:2]
    assert set(a.block_table) & set(b.block_table) == set(a.block_table[:2])
    assert kv.num_used == 4
    kv.check_integrity([a, b])


@pytest.mark.parametrize("length", [4, 8, 9])
def test_a_hit_leaves_at_least_one_token_to_compute(length: int) -> None:
    kv = KVCacheManager(16, 4)
    enter(kv, request("a", list(range(length))))
    found = kv.find_prefix(request("b", list(range(length))))
    assert len(found) * 4 <= length - 1
    assert len(found) == (length - 1) // 4


def test_a_request_that_comes_back_leaves_a_token_of_its_own_blocks_to_compute() -> None:
    kv = KVCacheManager(16, 4)
    a = request("a", list(range(8)))
    enter(kv, a)
    kv.free(a)
    assert len(kv.find_prefix(a)) == 1


def test_what_was_generated_before_a_preemption_is_found_again() -> None:
    kv = KVCacheManager(16, 4)
    a = request("a", list(range(3)), max_tokens=20)
    for token in range(50, 56):
        a.append(token)
    enter(kv, a)
    kv.free(a)
    assert len(kv.find_prefix(a)) == 2


def test_equal_blocks_behind_different_ones_are_not_shared() -> None:
    kv = KVCacheManager(32, 4)
    first, other, same = [1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 9, 9]
    enter(kv, request("a", [*first, *same, 0]))
    enter(kv, request("b", [*other, 0]))
    assert len(kv.find_prefix(request("c", [*other, *same, 0]))) == 1


def test_blocks_that_somebody_holds_already_need_no_memory() -> None:
    kv = KVCacheManager(4, 4)
    enter(kv, request("a", list(range(12))))
    b = request("b", [*range(8), 50])
    assert kv.allocate(b, b.num_tokens, kv.find_prefix(b)) is not None
    assert kv.num_free == 0


def test_blocks_are_found_only_after_they_were_computed() -> None:
    kv = KVCacheManager(16, 4)
    a = request("a", list(range(9)))
    kv.find_prefix(a)
    kv.allocate(a, 9)
    assert kv.find_prefix(request("b", list(range(9)))) == []
    a.num_computed_tokens = 5
    kv.commit(a)
    assert kv.find_prefix(request("b", list(range(9)))) == a.block_table[:1]


def test_a_request_is_told_to_wait_for_a_block_that_is_being_computed() -> None:
    kv = KVCacheManager(16, 4)
    a, b = request("a", list(range(9))), request("b", list(range(9)))
    kv.allocate(a, 9, kv.find_prefix(a))
    assert kv.is_in_progress(b, len(kv.find_prefix(b)))
    assert not kv.is_in_progress(request("c", [5, 5, 5, 5, 5]), 0)
    kv.free(b)  # leaves the queue: it was not the one that computes
    assert kv.is_in_progress(b, 0)
    kv.free(a)  # it left before it computed anything: nobody must wait for it
    assert not kv.is_in_progress(b, 0)


def test_a_request_waits_for_the_block_behind_those_it_found() -> None:
    kv = KVCacheManager(16, 4)
    a, b = request("a", list(range(9))), request("b", list(range(9)))
    kv.allocate(a, 9, kv.find_prefix(a))
    a.num_computed_tokens = 5
    kv.commit(a)
    assert len(kv.find_prefix(b)) == 1
    assert kv.is_in_progress(b, 1)
    a.num_computed_tokens = 9
    kv.commit(a)
    assert not kv.is_in_progress(b, len(kv.find_prefix(b)))


def test_salt_and_the_position_of_a_block_are_part_of_its_name() -> None:
    kv = KVCacheManager(32, 4)
    enter(kv, request("a", [1, 1, 1, 1, 9], cache_salt="x"))
    assert kv.find_prefix(request("b", [1, 1, 1, 1, 9])) == []
    assert kv.find_prefix(request("c", [1, 1, 1, 1, 9], cache_salt="y")) == []
    assert len(kv.find_prefix(request("d", [1, 1, 1, 1, 9], cache_salt="x"))) == 1
    assert kv.find_prefix(request("e", [2, 1, 1, 1, 1, 1, 1, 1, 9], cache_salt="x")) == []


def test_prompt_logprobs_need_every_position_and_take_nothing_from_the_cache() -> None:
    kv = KVCacheManager(16, 4)
    enter(kv, request("a", list(range(9))))
    b = request("b", list(range(9)), prompt_logprobs=1)
    assert kv.find_prefix(b) == []
    assert not kv.is_in_progress(b, 0)


def test_eviction_takes_unnamed_blocks_then_the_least_recently_used_tails_first() -> None:
    kv = KVCacheManager(6, 4)
    old, new = request("old", [*range(8), 50]), request("new", [*range(100, 108), 51])
    enter(kv, old)
    enter(kv, new)
    old_table, new_table = list(old.block_table), list(new.block_table)
    kv.free(old)
    kv.free(new)
    taker = request("taker", list(range(200, 224)))
    kv.allocate(taker, 24)
    unnamed = {old_table[2], new_table[2]}
    assert set(taker.block_table[:2]) == unnamed
    assert taker.block_table[2:] == [old_table[1], old_table[0], new_table[1], new_table[0]]
    kv.check_integrity([taker])


def test_a_found_block_in_the_free_list_does_not_count_as_free_twice() -> None:
    kv = KVCacheManager(3, 4)
    a = request("a", list(range(9)))
    enter(kv, a)
    kv.free(a)
    b = request("b", [*range(8), 60, 61, 62, 63, 64])  # 4 blocks, 2 of them found
    found = kv.find_prefix(b)
    assert len(found) == 2
    assert kv.allocate(b, b.num_tokens, found) is None
    assert b.block_table == []
    assert kv.num_free == 3
    kv.check_integrity([])


def test_without_prefix_caching_nothing_is_ever_found() -> None:
    kv = KVCacheManager(16, 4, prefix_caching=False)
    enter(kv, request("a", list(range(9))))
    assert kv.find_prefix(request("b", list(range(9)))) == []


def test_lost_blocks_are_forgotten_and_stay_with_their_holder() -> None:
    kv = KVCacheManager(16, 4)
    a = request("a", list(range(13)))
    enter(kv, a)
    kv.forget([a.block_table[1], a.block_table[3]])  # the last one never had a name
    assert kv.find_prefix(request("b", list(range(13)))) == a.block_table[:1]
    kv.check_integrity([a])


def test_integrity_check_sees_a_block_with_two_writers() -> None:
    kv = KVCacheManager(16, 4)
    a, b = request("a", [1, 2]), request("b", [3, 4])
    kv.allocate(a, 2)
    kv.allocate(b, 2)
    b.block_table[0] = a.block_table[0]
    with pytest.raises(AssertionError):
        kv.check_integrity([a, b])
