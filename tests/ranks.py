"""Runs a function in several processes of one gloo process group, on this machine's CPU."""

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.forked import forking


def on_ranks(function: Callable[..., Any], *arguments: Any, folder: Path, world: int = 2, seconds: int = 600) -> list:
    """What `function(*arguments)` returns on each rank.

    Args:
        function: Of a module that the other processes can import.
        arguments: Can be pickled.
        folder: Where the processes meet; a new one for each call.
        world: How many.
        seconds: A collective that waits longer fails, and so do processes that take longer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    forking()
    rest = (function, arguments, world, folder, seconds)
    context = mp.start_processes(_run, rest, nprocs=world, join=False, start_method="forkserver")
    deadline = time.monotonic() + seconds
    try:
        while not context.join(timeout=1):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{world} processes still ran {function.__name__} after {seconds} s.")
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def told(function: Callable[[], Any]) -> str:
    """The message of the error that a function raises; empty if it raises none."""
    try:
        function()
    except (RuntimeError, ValueError) as error:
        return str(error)
    return ""


def _run(rank: int, function: Callable[..., Any], arguments: tuple, world: int, folder: Path, seconds: int) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    limit = timedelta(seconds=seconds)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world, timeout=limit)
    torch.save(function(*arguments), folder / f"{rank}.pt")
    dist.barrier()  # a rank that leaves early makes gloo's threads in the other abort
    dist.destroy_process_group()
