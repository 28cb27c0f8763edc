"""torchrun as another program starts it. Imports torch.distributed, for its launcher alone."""

from __future__ import annotations

import os
import sys

from utils.signals import PARENT, stop_with_parent

# Newer torch: seconds that torchrun gives its workers to save. Older torch gives them 30.
PATIENCE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"


def main() -> None:
    """Run torchrun with the words of the command line.

    It stops when the program that started it has ended, and its workers stop with it. Its exit
    status is that of the first worker that failed, or 128 + the number of the signal that ended the
    one or the other.
    """
    stop_with_parent()
    os.environ[PARENT] = str(os.getpid())  # the parent of the workers
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as run

    try:
        run(sys.argv[1:])
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        sys.exit(code if code >= 0 else 128 - code)
    except SignalException as error:
        sys.exit(128 + error.sigval)
