"""The places on one machine that runs take turns in: each has its threads and its part of a GPU."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from utils.cli import list_device_flags
from utils.sharing import GPU_SHARERS, split_cores

THREADS = "OMP_NUM_THREADS"
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Place:
    """Room for one run.

    Attributes:
        number: counts the places from 0.
        threads: of each process of a run; None: as many as torch takes by itself.
        gpu_id: the device that is given to a run, the first one if it has several; None: the run
            decides.
        sharers: how many places share its GPU, this one included.
        processes: of a run; on GPUs each has its own, counted on from `gpu_id`.
        gpu_ids: the GPUs of a run if they are named one by one. The run sees no others.
    """

    number: int
    threads: int | None = None
    gpu_id: int | None = None
    sharers: int = 1
    processes: int = 1
    gpu_ids: tuple[int, ...] = ()

    @property
    def seen_gpu_id(self) -> int | None:
        """The number of the run's device, or of its first one, among those that it sees."""
        return 0 if self.gpu_ids else self.gpu_id

    def list_flags(self) -> list[str]:
        """Return the flags of train.py for a run in this place."""
        return list_device_flags(self.seen_gpu_id)

    def get_environment(self) -> dict[str, str]:
        """Return the environment variables of a run; the user's own number of threads stays."""
        environment = {GPU_SHARERS: str(self.sharers), **self.list_visible()}
        if self.threads is not None:
            environment[THREADS] = os.environ.get(THREADS) or str(self.threads)
        return environment

    def list_visible(self) -> dict[str, str]:
        """Return the variable that shows a run its GPUs alone, if they are named one by one."""
        visible = os.environ.get(VISIBLE)
        if not self.gpu_ids or visible == "":  # "" hides all of them: the run takes the CPU
            return {}
        names = dict(enumerate(visible.split(","))) if visible else {}
        return {VISIBLE: ",".join(names.get(number, str(number)) for number in self.gpu_ids)}


def divide_machine(jobs: int, gpu_ids: Sequence[int | None], processes: int = 1) -> list[Place]:
    """Divide a machine for `jobs` runs at a time.

    The runs share the cores, because each would otherwise use all of them, and the GPUs evenly.
    The threads depend on `jobs` and `processes` alone, not on the number of runs that are left: the
    bits of a run depend on them.

    Args:
        jobs: at least 1.
        gpu_ids: the devices, each once; −1 is the CPU, None the one that a run takes by itself.
            Several are a multiple of `processes`. A single one is where all runs begin to count.
        processes: of each run.
    """
    threads: list[int | None] = [None]
    if jobs * processes > 1:
        threads = [max(1, cores // processes) for cores in split_cores(jobs)]
    size = processes if len(gpu_ids) > 1 else 1
    groups = [tuple(gpu_ids[first : first + size]) for first in range(0, len(gpu_ids), size)]
    places = []
    for number in range(jobs):
        group = groups[number % len(groups)]
        sharers = len(range(number % len(groups), jobs, len(groups))) if group[0] != -1 else 1
        named = tuple(gpu_id for gpu_id in group if gpu_id is not None) if size > 1 else ()
        places.append(Place(number, threads[number], group[0], sharers, processes, named))
    return places


@dataclass
class Places:
    """Free and taken places.

    Attributes:
        places: all of them.
        begun: the numbers of threads of runs that began earlier, by their names. Such a run goes on
            in a place of as many threads, if there is one at all: then it ends as if it had never
            been stopped, bit for bit.
        taken: the places of the runs that run, by their names.
    """

    places: Sequence[Place]
    begun: Mapping[str, int] = field(default_factory=dict)
    taken: dict[str, Place] = field(default_factory=dict)

    def take(self, waiting: Iterable[str]) -> tuple[str, Place] | None:
        """Choose the next run and its place, on the GPU with the fewest runs; None: wait."""
        names, taken = list(waiting), set(self.taken.values())
        running = Counter(place.gpu_id for place in taken)
        free = [place for place in self.places if place not in taken]
        for place in sorted(free, key=lambda place: running[place.gpu_id]):
            name = next((name for name in names if self._fits(name, place)), None)
            if name is not None:
                self.taken[name] = place
                return name, place
        return None

    def _fits(self, name: str, place: Place) -> bool:
        threads = self.begun.get(name)
        return threads == place.threads or all(threads != other.threads for other in self.places)

    def leave(self, name: str) -> None:
        """Free the place of a run that has ended."""
        del self.taken[name]
