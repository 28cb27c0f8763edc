"""Jobs of several processes, forked from this one: none of them imports torch again."""

import contextlib
import io
import multiprocessing
import os
import socket
import sys
import tempfile
import traceback

import torch


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_job(size: int, function, *arguments, expected: tuple[int, ...] = (0,)) -> list:
    """Call a function in `size` processes that are connected by the environment, as torchrun does.

    Returns what each returns, with what it wrote to stdout and stderr: (result, stdout, stderr).
    The exit status of each must be among `expected`.
    """
    context = multiprocessing.get_context("fork")
    port = find_port()
    with tempfile.TemporaryDirectory() as folder:
        places = [os.path.join(folder, str(rank)) for rank in range(size)]
        processes = [
            context.Process(target=_run, args=(rank, size, port, place, function, arguments))
            for rank, place in enumerate(places)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(300)
            if process.is_alive():
                process.kill()
        statuses = [process.exitcode for process in processes]
        found = [_read(place) for place in places]
    assert all(status in expected for status in statuses), (statuses, found)
    return found


def _read(place: str) -> tuple:
    result = torch.load(place) if os.path.exists(place) else None
    texts = []
    for name in ("out", "err"):
        with open(f"{place}.{name}", encoding="utf-8") as file:
            texts.append(file.read())
    return result, *texts


def _run(rank: int, size: int, port: int, place: str, function, arguments) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(f"{place}.{name}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        os.dup2(file, number)
    sys.stdout = sys.__stdout__ = io.TextIOWrapper(io.FileIO(1, "w", closefd=False))
    sys.stderr = sys.__stderr__ = io.TextIOWrapper(io.FileIO(2, "w", closefd=False))
    torch.set_num_threads(1)
    status = 1
    try:
        result = function(*arguments)
        torch.save(result, place)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
