"""The places on one machine that runs take turns in: each has its threads and its part of a GPU."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from utils.cli import list_device_flags
from utils.sharing import GPU_SHARERS, split_cores

THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Place:
    """Room for one run.

    Attributes:
        number: counts the places from 0.
        threads: of a run that computes on the CPU; None: as many as torch takes by itself.
        gpu_id: the device that is given to a run; None: the run decides.
        sharers: how many places share its GPU, this one included.
    """

    number: int
    threads: int | None = None
    gpu_id: int | None = None
    sharers: int = 1

    def list_flags(self) -> list[str]:
        """Return the flags of train.py for a run in this place."""
        return list_device_flags(self.gpu_id)

    def get_environment(self) -> dict[str, str]:
        """Return the environment variables of a run; the user's own number of threads stays."""
        environment = {GPU_SHARERS: str(self.sharers)}
        if self.threads is not None:
            environment[THREADS] = os.environ.get(THREADS) or str(self.threads)
        return environment


def divide_machine(jobs: int, gpu_ids: Sequence[int | None]) -> list[Place]:
    """Divide a machine for `jobs` runs at a time.

    The runs share the cores, because each would otherwise use all of them, and the GPUs evenly.
    The threads depend on `jobs` alone, not on the number of runs that are left: the bits of a run
    depend on them.

    Args:
        jobs: at least 1.
        gpu_ids: the devices, each once; −1 is the CPU, None the one that a run takes by itself.
    """
    threads: Sequence[int | None] = split_cores(jobs) if jobs > 1 else [None]
    devices = [gpu_ids[number % len(gpu_ids)] for number in range(jobs)]
    counts = Counter(devices)
    return [
        Place(number, threads[number], device, 1 if device == -1 else counts[device])
        for number, device in enumerate(devices)
    ]


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
