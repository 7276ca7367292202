"""Runs in processes forked from the one of a test, which has everything imported: a start costs no seconds, a kill is as hard.

For tests marked `apart`, whose process has no threads yet; several ranks meet as those that torchrun starts."""
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import faults
import torch

from sr_distill.parallel import ranks


def fork(do: Callable, log: Path, threads=1, **variables) -> faults.Child:
    "`do()` in a child with these environment variables, which writes to `log`; its exit code is what `do` returns, or 70 for an error."
    if pid := os.fork(): return faults.Child(pid, log)
    code = 70
    try:
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2): os.dup2(written, descriptor)
        sys.stdout, sys.stderr = (open(descriptor, "w", closefd=False) for descriptor in (1, 2))
        os.environ.update({**variables, "TQDM_DISABLE": "1"})
        torch.set_num_threads(threads)
        code = do() or 0
    except BaseException: traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr): stream.flush()
        os._exit(code)

def team(size: int, do: Callable, log: Path, **how) -> list[faults.Child]:
    "`do()` in so many children, each with the variables of torchrun; a log for each beside `log`."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        how |= dict(WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(s.getsockname()[1]))
    def one(): ranks.cache_clear(); return do()
    return [fork(one, log.with_name(f"{log.name}-{rank}"), **how, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(size)]
