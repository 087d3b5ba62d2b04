"""torchrun, which ends as its processes do, and with whatever started it: dist_run.sh calls it."""

import logging
import os
import signal
import sys

import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

from codmoe.interruption import PARENT, follow_parent
from codmoe.machine import check_gpus


def stop(signum, frame):
    raise SignalException(f"signal {signum}", sigval=signal.Signals(signum))


def check_processes(words):
    """Say it once, before anything starts, if there are GPUs, but fewer than processes."""
    if torch.cuda.is_available():
        try:
            check_gpus(int(words[words.index("--nproc_per_node") + 1]), "--gpus")
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)


if __name__ == "__main__":
    check_processes(sys.argv)
    logging.disable(logging.ERROR)  # what there is to say, the processes of the run have said
    follow_parent()
    os.environ[PARENT] = str(os.getpid())
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no stack of C++ when one has left
    signal.signal(signal.SIGUSR1, stop)  # Slurm's warning, of which torchrun knows nothing
    try:
        main()
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            print(f"error: process {rank} was ended by signal {-failure.exitcode}", file=sys.stderr)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
