"""The places that runs take turns in."""

import pytest

from reproduction import places
from reproduction.places import Place, Places, divide_machine


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    def split(parts):
        return [8 // parts + (number < 8 % parts) for number in range(parts)]

    monkeypatch.setattr(places, "split_cores", split)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_one_run_at_a_time_has_the_machine():
    (place,) = divide_machine(1, [None])
    assert (place.threads, place.gpu_id, place.sharers) == (None, None, 1)
    assert place.list_flags() == []
    assert place.get_environment() == {"GPU_SHARERS": "1"}


def test_runs_share_cores_and_gpus_evenly(monkeypatch):
    divided = divide_machine(5, [3, 1])
    assert [place.threads for place in divided] == [2, 2, 2, 1, 1]
    assert [place.gpu_id for place in divided] == [3, 1, 3, 1, 3]
    assert [place.sharers for place in divided] == [3, 2, 3, 2, 3]
    assert divided[3].list_flags() == ["--gpu_id", "1"]
    assert divided[3].get_environment() == {"GPU_SHARERS": "2", "OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    assert divided[3].get_environment()["OMP_NUM_THREADS"] == "6"


def test_the_processes_of_a_run_share_its_place(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (alone,) = divide_machine(1, [-1], 3)
    assert (alone.threads, alone.processes, alone.gpu_id) == (2, 3, -1)
    assert [place.threads for place in divide_machine(3, [None], 4)] == [1, 1, 1]
    pairs = divide_machine(3, [4, 5, 0, 2], 2)
    assert [place.gpu_ids for place in pairs] == [(4, 5), (0, 2), (4, 5)]
    assert [place.sharers for place in pairs] == [2, 1, 2]
    environment = {"GPU_SHARERS": "1", "CUDA_VISIBLE_DEVICES": "0,2", "OMP_NUM_THREADS": "1"}
    assert pairs[1].get_environment() == environment
    assert pairs[1].list_flags() == ["--gpu_id", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c")
    assert pairs[1].list_visible() == {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-c"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hides all: the runs take the CPU
    assert pairs[1].list_visible() == {}
    (counted,) = divide_machine(1, [2], 2)  # a run takes GPUs 2 and 3 by itself
    assert counted.list_visible() == {} and counted.list_flags() == ["--gpu_id", "2"]


def test_nobody_shares_a_gpu_on_the_cpu():
    assert [place.sharers for place in divide_machine(3, [-1])] == [1, 1, 1]
    assert [place.sharers for place in divide_machine(3, [None])] == [3, 3, 3]


def test_a_freed_place_goes_to_the_next_run():
    rooms = Places(divide_machine(2, [0, 1]))
    names = list("abcd")
    for expected in (("a", 0), ("b", 1)):
        name, place = rooms.take(names)
        names.remove(name)
        assert (name, place.gpu_id) == expected
    assert rooms.take(names) is None
    rooms.leave("b")
    name, place = rooms.take(names)
    assert (name, place.gpu_id) == ("c", 1)


def test_the_gpu_with_the_fewest_runs_is_next():
    rooms = Places(divide_machine(4, [0, 1]))
    for name in "abcd":
        rooms.take([name])
    for name in "abd":  # one run is left, on GPU 0
        rooms.leave(name)
    assert rooms.take(["e"])[1].gpu_id == 1


def test_a_run_goes_on_with_its_threads():
    rooms = Places(divide_machine(3, [None]), begun={"a": 2, "b": 3, "c": 7})
    assert [place.threads for place in rooms.places] == [3, 3, 2]
    assert rooms.take("abcd")[0] == "b"
    assert rooms.take("acd")[0] == "c"  # no place has seven: any will do
    assert rooms.take("ad") == ("a", Place(2, 2, None, 3))
    rooms.leave("b")
    assert rooms.take("d")[0] == "d"


def test_a_run_waits_for_a_place_of_its_threads():
    rooms = Places(divide_machine(3, [None]), begun={"a": 2, "b": 2})
    assert rooms.take("ab") == ("a", Place(2, 2, None, 3))
    assert rooms.take("b") is None
    rooms.leave("a")
    assert rooms.take("b")[0] == "b"
