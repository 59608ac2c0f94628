"""Processes forked from a server that has imported what they need: importing costs more than what they do."""

import multiprocessing as mp
import os
import sys
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import entry_points
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory
from unittest import mock

PRELOADED = (
    "torch.distributed.tensor",
    "lerobot.scripts.lerobot_train",
    "lerobot.scripts.lerobot_eval",
    "lerobot_policy_aegis_vla",
)
OFFLINE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # read while importing


@lru_cache
def forking() -> ForkServerContext:
    """The context whose processes are forked from the server; the first call starts it."""
    mp.set_forkserver_preload(list(PRELOADED))
    with mock.patch.dict(os.environ, OFFLINE):
        forkserver.ensure_running()
    return mp.get_context("forkserver")


def run_command(
    command: str, *arguments: str, before: Callable[[], object] | None = None, seconds: int = 600
) -> CompletedProcess[str]:
    """An installed command in a process of its own, as `subprocess.run` would give it.

    Args:
        command: Such as "lerobot-train": what the installed script of that name calls is called.
        arguments: Of the command.
        before: Called in that process first; of a module that it can import.
        seconds: After as many it is killed, and that is an error.
    """
    with TemporaryDirectory() as folder:
        written = Path(folder) / "out", Path(folder) / "err"
        environment = {**os.environ, **OFFLINE}
        process = forking().Process(target=_call, args=(command, arguments, environment, written, before))
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            raise TimeoutError(f"{command} still ran after {seconds} s: {written[1].read_text()[-3000:]}")
        out, err = (path.read_text() for path in written)
    return CompletedProcess([command, *arguments], process.exitcode or 0, out, err)


def _call(
    command: str,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    written: tuple[Path, Path],
    before: Callable[[], object] | None,
) -> None:
    for stream, path in zip((1, 2), written, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [command, *arguments]
    if before is not None:
        before()
    (script,) = entry_points(group="console_scripts", name=command)
    sys.exit(script.load()())
