"""Processes forked from that of a test, which has everything imported: a start costs no seconds, a kill is as hard.

For tests marked `apart`, whose process has no threads yet; several ranks meet as those that torchrun starts."""
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from sr_distill.parallel import ranks

torch.set_num_threads(1)   # no pool of threads that a forked child would miss
torch.optim.Adam([torch.zeros(1)])   # loads what PyTorch puts off until the first optimiser


@dataclass
class Child:
    "A job under way in a process of its own."
    pid: int
    log: Path
    code: int = None   # as of subprocess: negative for a signal

    def poll(self):
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid: self.code = os.waitstatus_to_exitcode(status)
        return self.code
    def wait(self, seconds=300.):
        "Until it has ended or the time is over; its exit code or None."
        until = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < until: time.sleep(.001)
        return self.code
    def kill(self):
        if self.poll() is None: os.kill(self.pid, signal.SIGKILL); self.wait()
        return self.code == -signal.SIGKILL
    @property
    def said(self): return self.log.read_text(errors="replace").strip()

def fork(do: Callable, log: Path, threads=1, **variables) -> Child:
    "`do()` in a child with these environment variables, which writes to `log`; its exit code is what `do` returns, or 70 for an error."
    if pid := os.fork(): return Child(pid, log)
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
        try:
            for stream in (sys.stdout, sys.stderr): stream.flush()
        finally: os._exit(code)   # also where the disk of the log is full

def team(size: int, do: Callable, log: Path, **how) -> list[Child]:
    "`do()` in so many children, each with the variables of torchrun; a log for each beside `log`."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        how |= dict(WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(s.getsockname()[1]))
    def one(): ranks.cache_clear(); return do()
    return [fork(one, log.with_name(f"{log.name}-{rank}"), **how, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(size)]
