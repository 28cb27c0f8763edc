"""The program without what Windows does not have: signals, system calls, flags and modules."""

import subprocess
import sys

import pytest

from tests.helpers import ROOT, SMALL

# Libraries are imported before anything is taken away: theirs is another question.
WITHOUT = """
import signal, os, sys, mmap, time, ctypes, multiprocessing.reduction, pkgutil, importlib
import torch, torchvision, numpy, scipy.optimize, scipy.stats, PIL.Image, matplotlib.pyplot, tqdm
import pydantic, filelock, sklearn.datasets, sklearn.model_selection, torch.utils.data
flags = os.O_NONBLOCK, os.O_NOFOLLOW, os.O_CLOEXEC
MISSING = {
    signal: "SIGHUP SIGKILL SIGCHLD SIGUSR1 SIGUSR2 SIGALRM SIGPIPE SIGCONT SIGTSTP pthread_kill",
    os: "fork forkpty killpg getpgid setsid getuid geteuid getgid uname nice sysconf "
    "sched_getaffinity memfd_create posix_fallocate O_NONBLOCK O_NOFOLLOW O_CLOEXEC chown fchmod "
    "mkfifo WEXITSTATUS wait4 getloadavg",
    mmap: "MAP_SHARED MAP_POPULATE",
    multiprocessing.reduction: "DupFd",
    time: "tzset",
}
for module, names in MISSING.items():
    for name in names.split():
        vars(module).pop(name, None)
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None
class NoLibc:
    def __init__(self, name=None, *args, **options):
        raise TypeError("a name is needed")
ctypes.CDLL = NoLibc
"""
# filelock's class for POSIX reads these while it locks; utils.files has read them when imported.
RESTORED = """
os.O_NONBLOCK, os.O_NOFOLLOW, os.O_CLOEXEC = flags
"""
IMPORTS = """
for package in (
    "utils theory models input_pipeline objective metrics rundir figures training reproduction"
).split():
    for found in pkgutil.iter_modules([package]):
        importlib.import_module(f"{package}.{found.name}")
import train, eval_nc, eval_scores, eval_tsne, verify_theory, reproduce
"""
COMMANDS = """
save_dir, *flags = sys.argv[1:]
where = ["--save_dir", save_dir, "--run_name", "r", "--gpu_id", "-1"]
assert train.main([*flags, "--epochs", "1", *where]) == 0
assert train.main([*flags, "--epochs", "1", "--resume", *where]) == 0
assert eval_nc.main(["--load_path", f"{save_dir}/r", "--gpu_id", "-1"]) == 0
"""


@pytest.mark.slow
def test_training_and_evaluation_run_without_posix(tmp_path):
    words = [
        sys.executable,
        "-c",
        WITHOUT + IMPORTS + RESTORED + COMMANDS,
        str(tmp_path),
        *map(str, SMALL),
    ]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "2 evaluated" in ended.stdout
    assert (tmp_path / "r" / "nc_curves.png").exists()
