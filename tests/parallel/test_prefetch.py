"""Work done alongside the caller: in order, one step ahead, with errors raised in the caller."""

import threading

import pytest
import torch

from mscd.parallel.prefetch import consume_in_thread, on_device, on_host, read_ahead

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def counting(stop, asked, fails_at=None):
    for number in range(stop):
        asked.append(number)
        if number == fails_at:
            raise ValueError(f"no {number}")
        yield number


def test_only_the_next_item_is_fetched_while_the_caller_uses_the_last():
    got, asked = threading.Event(), []

    def items():
        yield 0
        got.set()
        yield from counting(5, asked)

    found = read_ahead(items())
    assert next(found) == 0 and got.wait(10)
    assert next(found) == 0 and next(found) == 1
    assert list(found) == [2, 3, 4]
    found = read_ahead(counting(5, asked := []))
    next(found)
    found.close()  # waits for the thread
    assert asked == [0, 1]


def test_an_error_is_raised_at_its_item():
    found = read_ahead(counting(5, [], fails_at=2))
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(ValueError, match="no 2"):
        next(found)


def test_no_items_give_no_items():
    assert list(read_ahead([])) == []
    taken = []
    consume_in_thread(taken.extend, [])
    assert taken == []


def test_a_consumer_gets_all_items_in_order_in_another_thread():
    taken, threads = [], set()

    def consume(items):
        for item in items:
            taken.append(item)
            threads.add(threading.get_ident())

    consume_in_thread(consume, range(100))
    assert taken == list(range(100)) and threads != {threading.get_ident()} and len(threads) == 1


def test_the_next_item_is_produced_while_the_last_is_consumed():
    made = [threading.Event() for _ in range(3)]

    def items():
        for number, event in enumerate(made):
            event.set()
            yield number

    def consume(taken):
        assert not made[0].is_set()
        assert next(taken) == 0 and made[1].wait(10)
        assert next(taken) == 1 and made[2].wait(10)
        assert list(taken) == [2]

    consume_in_thread(consume, items())


def test_at_most_one_item_waits_for_the_consumer():
    asked, most = [], []

    def consume(taken):
        for number in taken:
            threading.Event().wait(0.01)
            most.append(len(asked) - number)

    consume_in_thread(consume, counting(20, asked))
    assert max(most) <= 2  # this one and the waiting one


def test_nothing_is_produced_for_a_consumer_that_fails_before_it_asks():
    def consume(taken):
        raise ValueError("not a place")

    with pytest.raises(ValueError, match="not a place"):
        consume_in_thread(consume, counting(3, asked := []))
    assert asked == []


def test_an_error_in_the_consumer_is_raised_and_ends_production():
    def consume(taken):
        next(taken)
        raise ValueError("full")

    with pytest.raises(ValueError, match="full"):
        consume_in_thread(consume, counting(100, asked := []))
    assert asked == [0, 1]


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_consumer_whose_items_break_off_cleans_up_and_sees_no_end(after):
    seen = []

    def consume(taken):
        try:
            seen.extend(taken)
            seen.append("end")
        finally:
            seen.append("clean")

    def items():
        yield from range(after)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume_in_thread(consume, items())
    assert seen[-1] == "clean" and "end" not in seen


def test_a_consumer_may_end_early():
    consume_in_thread(next, counting(100, asked := []))
    assert len(asked) <= 2


def test_on_a_cpu_batches_are_unchanged_and_not_delayed():
    batches = [(torch.arange(3), None), (torch.arange(4), torch.ones(2))]
    asked = []

    def made():
        for batch in batches:
            asked.append(batch)
            yield batch

    found = on_host(made())
    assert next(found)[0] is batches[0][0] and len(asked) == 1
    assert next(found)[1] is batches[1][1] and next(found, None) is None
    assert [batch.tolist() for batch in on_device(iter([torch.arange(2), torch.arange(1)]), "cpu")] == [[0, 1], [0]]


@needs_gpu
def test_gpu_batches_arrive_complete_and_one_step_behind():
    asked = []

    def made():
        for number in range(4):
            asked.append(number)
            yield torch.full([1000, 1000], number, device="cuda"), None

    found = on_host(made())
    first, nothing = next(found)
    assert asked == [0, 1] and nothing is None and first.is_pinned() and first.eq(0).all()
    assert [int(batch.max()) for batch, _ in found] == [1, 2, 3]
    assert [int(b.min()) for b in on_device((torch.full([1000], k) for k in range(3)), "cuda")] == [0, 1, 2]
