"""Who goes first, under each policy."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pellucid.engine.policy import Order, SchedulingPolicy, load_policy
from pellucid.engine.request import Request
from pellucid.errors import ConfigError
from tests.engine.helpers import core, drain, message, request


class LongestIdFirst(SchedulingPolicy):
    """A user's own policy."""

    def order(self, request: Request, now: float) -> Order:
        return (-len(request.request_id),)


def finishing_order(policy: str, requests: Sequence[object]) -> list[str]:
    engine = core(num_blocks=400, max_num_seqs=1, policy=policy)
    for item in requests:
        engine.add(item)  # type: ignore[arg-type]
    return list(drain(engine))


def test_fifo_goes_by_arrival() -> None:
    late = message("late", [1], arrival=2.0, priority=-5)
    assert finishing_order("fifo", [late, message("early", [1], arrival=1.0)]) == ["early", "late"]


def test_priority_goes_by_number_then_arrival() -> None:
    assert finishing_order(
        "priority",
        [
            message("c", [1], arrival=2.0, priority=1),
            message("b", [1], arrival=1.0, priority=1),
            message("a", [1], arrival=3.0, priority=0),
        ],
    ) == ["a", "b", "c"]


def test_priority_preempts_the_least_important() -> None:
    policy = load_policy("priority")
    running = [request("a", [1], priority=0), request("b", [1], priority=9, arrival=0.0)]
    assert policy.victim(running, 0.0).request_id == "b"


def test_shortest_first_prefers_little_work_but_a_long_wait_wins() -> None:
    policy = load_policy("shortest-first")
    short = request("short", [1], max_tokens=10, arrival=100.0)
    long = request("long", [1], max_tokens=1000, arrival=100.0)
    assert policy.order(short, 100.0) < policy.order(long, 100.0)
    begun = request("begun", [1] * 50, max_tokens=10, arrival=100.0)
    assert policy.order(short, 100.0) < policy.order(begun, 100.0)
    begun.num_computed_tokens = 55
    assert policy.order(begun, 100.0) < policy.order(short, 100.0)
    patient = request("patient", [1], max_tokens=1000, arrival=0.0)
    assert policy.order(patient, 100.0) < policy.order(short, 100.0)


def test_fair_share_lets_a_small_user_pass_a_flood() -> None:
    flood = [message(f"flood{i}", [i + 5] * 20, arrival=float(i), user="big") for i in range(10)]
    order = finishing_order(
        "fair-share", [*flood, message("small", [1, 2], arrival=99.0, user="small")]
    )
    assert order.index("small") <= 1


def test_fair_share_does_not_save_up_a_pause() -> None:
    policy = load_policy("fair-share")
    busy = request("busy", [1], user="busy", arrival=0.0)
    ended = request("ended", [1], user="busy", arrival=0.0)
    policy.enter(busy)
    policy.enter(ended)
    policy.charge(busy, 1000)
    policy.leave(ended)
    rested = request("rested", [1], user="rested", arrival=1.0)
    policy.enter(rested)
    assert policy.order(rested, 2.0)[0] == policy.order(busy, 2.0)[0]


def test_fair_share_does_not_forget_what_one_had_by_leaving() -> None:
    policy = load_policy("fair-share")
    greedy, modest = request("greedy", [1], user="greedy"), request("modest", [1], user="modest")
    policy.enter(greedy)
    policy.enter(modest)
    policy.charge(greedy, 1000)
    policy.charge(modest, 10)
    policy.leave(greedy)
    policy.enter(greedy)
    assert policy.order(modest, 1.0) < policy.order(greedy, 1.0)


def test_fair_share_remembers_so_many_of_those_who_left() -> None:
    policy = load_policy("fair-share")
    policy.max_remembered_users = 2  # type: ignore[attr-defined]
    stays, *others = (request(name, [1], user=name) for name in ("stays", "a", "b"))
    policy.enter(stays)
    policy.charge(stays, 5)
    for other in others:
        policy.enter(other)
        policy.charge(other, 100)
        policy.leave(other)
    assert [policy.order(one, 0.0)[0] for one in (stays, *others)] == [5, 0, 0]
    policy.charge(stays, 5)


def test_who_has_left_is_no_measure_for_who_comes() -> None:
    engine = core(policy="fair-share")
    engine.add(message("gone", [1], user="gone", max_tokens=1))
    drain(engine)
    engine.add(message("busy", [1] * 100, user="busy"))
    engine.step()
    engine.add(message("new", [2], user="new"))
    served = {
        name: engine.scheduler.policy.order(request, 0.0)[0]
        for name, request in engine.scheduler.requests.items()
    }
    assert served == {"busy": 100, "new": 100}


def test_a_policy_of_ones_own_is_loaded_by_its_import_path() -> None:
    name = f"{__name__}:LongestIdFirst"
    assert finishing_order(
        name, [message("a", [1], arrival=0.0), message("ccc", [1]), message("bb", [1])]
    ) == ["ccc", "bb", "a"]


@pytest.mark.parametrize(
    "name",
    ["lifo", "no.such.module:Policy", f"{__name__}:Nothing", "builtins:dict", "builtins:len"],
)
def test_a_wrong_policy_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_policy(name)
    assert caught.value.param == "policy"
    assert name in caught.value.message
