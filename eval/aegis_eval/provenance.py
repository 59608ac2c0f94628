"""Where a number comes from: commit, versions of packages, machine."""

import platform
import shlex
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

from aegis_eval.jobs import available_cores

PACKAGES = ("lerobot_policy_aegis_vla", "lerobot", "torch", "transformers", "peft", "mujoco")


def commit() -> dict[str, str | bool]:
    """The repository's `commit`, and whether files differ from it (`dirty`); an unknown commit says why."""
    git = shutil.which("git")
    if git is None:
        return {"commit": "unknown (no git)", "dirty": False}
    run = [git, "-C", str(Path(__file__).parent)]
    head = subprocess.run([*run, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        return {"commit": "unknown (not a git repository)", "dirty": False}
    # Results that are being collected make no difference to what collects them.
    status = subprocess.run(
        [*run, "status", "--porcelain", "--", ":(top)", ":(top,exclude)results"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {"commit": head.stdout.strip(), "dirty": bool(status.stdout.strip())}


def versions() -> dict[str, str]:
    """Versions of the packages that shape the numbers."""
    return {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}


def machine() -> str:
    """Processor, cores and system."""
    return f"{_processor()}, {available_cores()} cores, {platform.system()}"


def as_typed(command: str) -> str:
    """A command as one types it: its program by name, whichever environment it was run from."""
    program, *options = shlex.split(command)
    return shlex.join([Path(program).name, *options])


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
