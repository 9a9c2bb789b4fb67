"""What processes of one run do once and agree upon, in real ones that talk through gloo."""

import pytest
from forks import forked
from torch import distributed

from lightning_merge.core.errors import InputError
from lightning_merge.core.ranks import ALONE, AgreedError, Ranks

SIZE = 3


@pytest.fixture
def together(tmp_path):
    """Let processes talk: together(work) -> what each work(ranks) has returned or raised."""

    def run(work):
        def talk(rank, port):
            address = f"tcp://127.0.0.1:{port}"
            distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=SIZE)
            try:
                return work(Ranks(rank, SIZE))
            except (Exception, SystemExit) as fault:
                return type(fault).__name__, str(fault)

        return forked(SIZE, talk, tmp_path)

    return run


def refuse(ranks, *faulty):
    if ranks.rank in faulty:
        raise InputError(f"bad input of {ranks.rank}")


def test_one_works_and_all_have_the_result(together):
    assert together(lambda r: r.once(lambda: f"made by {r.rank}")) == ["made by 0"] * SIZE


def test_values_come_in_the_order_of_processes(together):
    assert together(lambda r: r.gather(r.rank**2)) == [[0, 1, 4]] * SIZE


def test_what_the_one_refuses_all_refuse(together):
    found = together(lambda r: r.once(lambda: refuse(r, 0)))
    assert found == [("AgreedError", "bad input of 0")] * SIZE


def test_where_the_one_fails_otherwise_the_others_stop_quietly(together):
    def fail():
        raise ZeroDivisionError("a bug")

    first, *others = together(lambda r: r.once(fail))
    assert first == ("ZeroDivisionError", "a bug")
    assert others == [("SystemExit", "1")] * (SIZE - 1)


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        ((1,), "process 1 of 3: bad input of 1"),
        ((1, 2), "process 1 of 3: bad input of 1"),
        ((0, 1, 2), "bad input of 0"),
    ],
)
def test_bad_input_of_some_ends_the_block_in_all(faulty, message, together):
    def work(ranks):
        with ranks.agreed(), ranks.agreed():  # nested: told once
            refuse(ranks, *faulty)

    assert together(work) == [("AgreedError", message)] * SIZE


def test_a_block_without_faults_goes_through(together):
    def work(ranks):
        with ranks.agreed():
            value = ranks.rank
        return value

    assert together(work) == [0, 1, 2]


def test_a_process_that_is_alone_needs_no_group():
    assert not distributed.is_initialized()
    assert Ranks.of(None) == ALONE == Ranks(0, 1)
    assert ALONE.once(lambda: 3) == 3
    assert ALONE.gather(3) == [3]
    with pytest.raises(InputError) as caught, ALONE.agreed():
        refuse(ALONE, 0)
    assert not isinstance(caught.value, AgreedError)
