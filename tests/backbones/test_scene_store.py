"""Rendering to disk: what a killed run leaves behind."""

import subprocess
import sys
import time

import pytest

RENDER = """
from pathlib import Path
from aegis_backbones.scene_store import load_scenes

if __name__ == "__main__":
    load_scenes(Path({folder!r}), split="train", seed=0, count=4000, workers=2)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a Windows process has no parent that ends")
def test_workers_end_with_the_run_that_is_killed(tmp_path):
    script = tmp_path / "render.py"
    script.write_text(RENDER.format(folder=str(tmp_path / "scenes")))
    run = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert run.stdout is not None
    ends = time.monotonic() + 60
    while not _workers(run.pid) and time.monotonic() < ends:
        time.sleep(0.1)
    time.sleep(3)  # until they are at work
    assert len(_workers(run.pid)) >= 2
    run.kill()
    run.communicate(timeout=20)  # returns when the last process that holds the pipe, workers included, has ended


def _workers(parent: int) -> list[str]:
    return subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True, check=False).stdout.split()
