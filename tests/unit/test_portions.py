"""Portions of a long run in processes of their own: all that they tell arrives, and one that is lost is told."""

import os
import signal

import pytest

from tests.reliability.portions import Lost, told


def work(portion, tell):
    tell(("begun", os.getpid()))
    if portion == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if portion == "fails":
        raise ValueError("planted")
    if portion == "hangs":
        signal.pause()
    tell(("done", os.getpid()))


def test_each_portion_has_a_process_and_one_that_is_lost_is_told():
    heard = list(told(work, ["one", "dies", "fails", "two"], at_once=2))
    of = {number: [what for place, what in heard if place == number] for number in range(4)}
    assert [[each[0] for each in of[number]] for number in (0, 3)] == [["begun", "done"]] * 2
    assert of[1][1:] == [Lost("its process ended with -9")]
    assert of[2][1:] == [Lost("its process ended with 1")]
    processes = {of[number][0][1] for number in range(4)}
    assert len(processes | {os.getpid()}) == 5


def test_a_silent_process_is_killed():
    *_, (number, lost) = told(work, ["hangs"], at_once=1, silent_s=1.0)
    assert (number, lost) == (0, Lost("killed: it said nothing for 1 s"))


def test_processes_end_with_whoever_listens():
    heard = told(work, ["hangs", "never begun"], at_once=1)
    _, (_, process) = next(heard)
    heard.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
