"""How the benchmarks measure: arms interleaved, ratios within a round, memory in a process of its own, tables last.

A machine does other things too. So every round runs all arms, in another order each time, and a ratio is formed within
a round: whatever else the machine does falls on both sides. What is shown is the median over the rounds, in brackets
its quartiles. The first round warms up and does not count.

`--clock=cpu` counts the seconds that this process computed, not those that it waited for a core: on a CPU that others
use too that is far steadier. It says nothing about an accelerator.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
# What a process of its own finds imported already, where the system can fork one.
PRELOADED = ["aegis_policy.modeling_aegis_vla", "aegis_policy.processor_aegis_vla", "lerobot.policies"]

Times = dict[str, list[float]]  # arm -> seconds, one entry a round


class Table(NamedTuple):
    """Words in the first column, numbers in the others."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        widths = [max(len(row[i]) for row in (self.header, *self.rows)) for i in range(len(self.header))]

        def line(row: Sequence[str]) -> str:
            cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
            cells[0] = row[0].ljust(widths[0])
            return "| " + " | ".join(cells) + " |"

        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        return "\n".join([self.title, "", *(line(row) for row in (self.header, rule, *self.rows))])


def make_parser(file: str, description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """With what every benchmark can be told; `rounds` is a default."""
    parser = argparse.ArgumentParser(
        prog=Path(file).name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="bfloat16 is autocast")
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds, after one to warm up")
    parser.add_argument(
        "--clock", default="wall", choices=CLOCKS, help="cpu: one thread, without its waiting for a core"
    )
    parser.add_argument("--out", type=Path, help="where the tables go: OUT.md and OUT.json")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with `command` as somebody else would type it: where its output went is nobody's business."""
    options = parser.parse_args(arguments)
    if options.rounds < 2:
        parser.error(f"--rounds must be at least 2 for a spread; received {options.rounds}")
    if options.clock == "cpu" and torch.device(options.device).type != "cpu":
        parser.error(f"--clock=cpu does not see what {options.device} does; leave it at wall")
    if options.clock == "cpu":
        torch.set_num_threads(1)  # seconds of several threads add up, and count their spinning where cores are busy
    given = list(sys.argv[1:] if arguments is None else arguments)
    kept = [a for before, a in zip(["", *given], given, strict=False) if "--out" not in (before, a)]
    kept = [a for a in kept if not a.startswith("--out=")]
    options.command = " ".join(["python", f"benchmarks/{parser.prog}", *kept])
    return options


def autocast(options: argparse.Namespace) -> torch.autocast:
    return torch.autocast(torch.device(options.device).type, torch.bfloat16, enabled=options.dtype == "bfloat16")


def seconds(run: Callable[[], Any], options: argparse.Namespace) -> float:
    """How long one call takes, what it left to the device included."""
    clock = CLOCKS[options.clock]
    _synchronise(options.device)
    start = clock()
    run()
    _synchronise(options.device)
    return clock() - start


def interleave(arms: Mapping[str, Callable[[], float]], *, rounds: int, warm_up: bool = True) -> Times:
    """Runs every arm once a round.

    Args:
        arms: Name -> a call that returns the seconds it wants to be counted.
        rounds: That count.
        warm_up: Whether one goes before that does not.
    """
    names = list(arms)
    times: Times = {name: [] for name in names}
    first = -1 if warm_up else 0
    with tqdm(total=(rounds - first) * len(names), unit="run", disable=None) as progress:
        for turn in range(first, rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                progress.set_description(name if turn >= 0 else f"{name} (warming up)")
                took = arms[name]()
                if turn >= 0:
                    times[name].append(took)
                progress.update()
    return times


def ratio(above: Sequence[float], below: Sequence[float]) -> str:
    """Median and quartiles of the ratio within a round."""
    low, middle, high = statistics.quantiles(
        [a / b for a, b in zip(above, below, strict=True)], n=4, method="inclusive"
    )
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def milliseconds(times: Sequence[float]) -> str:
    median = 1000 * statistics.median(times)
    return f"{median:.0f}" if median >= 100 else f"{median:.3g}"


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module returns in a process that does nothing else; it has the imports and no data."""
    with ProcessPoolExecutor(1, mp_context=own_processes()) as pool:
        return pool.submit(function, *arguments).result()


def own_processes() -> Any:
    """Where such processes come from."""
    can_fork = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if can_fork else "spawn")
    if can_fork:
        context.set_forkserver_preload(PRELOADED)
    return context


def reset_peak(device: str) -> None:
    """Forgets the peak so far. Off CUDA only Linux can; elsewhere what was built before counts too."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").is_file():
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib(device: str) -> float:
    """MiB at this process's peak: of the device's memory, or of the process where the device is a CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # Linux's `ru_maxrss` would count what the parent held when it forked.
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def report(tables: Sequence[Table], options: argparse.Namespace, **raw: Any) -> None:
    """Prints the tables as Markdown with their command and machine; `--out` writes them, and `raw` as JSON."""
    on = machine(options)
    text = "\n\n".join([f"    {options.command}", *(table.markdown() for table in tables), on]) + "\n"
    print("\n" + text, flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        record = {"command": options.command, "machine": on, "tables": [t._asdict() for t in tables], **raw}
        options.out.with_suffix(".md").write_text(text + "\n")  # so that files can follow one another
        options.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


def machine(options: argparse.Namespace) -> str:
    """What the numbers were measured on, and how busy it was."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cpu = f"{names[0]} x {len(names)}" if names else platform.processor() or platform.machine()
    cuda = torch.device(options.device).type == "cuda"
    on = torch.cuda.get_device_name(options.device) + " beside " if cuda else ""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    counted = "seconds computed" if options.clock == "cpu" else "wall time"
    return (
        f"{on}{cpu}, {torch.get_num_threads()} thread(s), {counted}, load {load:.1f} at the end, "
        f"torch {torch.__version__}; brackets are quartiles over the rounds."
    )


def _synchronise(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
