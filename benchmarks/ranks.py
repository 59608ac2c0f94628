"""Time of a training step in one process and in two, and what two send each other.

    python benchmarks/ranks.py [--backbone nano] [--batch 8] [--rounds 8] [--arms naive,gradient,update,subspace]

One process trains on a batch by itself, two (gloo, DistributedDataParallel) on one such batch each. Each round takes
two steps of every arm, first in the one process while the two wait, then in the two while the one waits, the arms in
another order each time; two processes take as long as the slower. A ratio is formed within a round, so that whatever
else the machine does falls on both sides; the table shows medians over the rounds and quartiles in brackets. What is
sent is counted from a profile of one step, in bytes that a rank hands to a collective.
"""

import argparse
import math
import multiprocessing as mp
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from step import ARMS, Training, make_batch
from torch.nn.parallel import DistributedDataParallel

STEPS = 2  # a round
WORLD = 2
BYTES = 4  # everything that is sent is float32, but for a few counters


class Replica(Training):
    """One arm, alone or as one of several that average their gradients."""

    def __init__(self, arm: str, options: argparse.Namespace) -> None:
        super().__init__(arm, options)
        self.learner: Any = self.policy
        if dist.is_initialized():
            self.learner = DistributedDataParallel(self.policy, find_unused_parameters=True)

    def steps(self, batch: dict[str, Any]) -> float:
        """Seconds a step."""
        start = time.perf_counter()
        for _ in range(STEPS):
            loss, _ = self.learner.forward(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.policy.update()
        return (time.perf_counter() - start) / STEPS

    def sent(self, batch: dict[str, Any]) -> float:
        """Bytes that this rank hands to collectives in a step."""
        cpu = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=cpu, record_shapes=True, acc_events=True) as profile:
            self.steps(batch)
        events = [e for e in profile.events() if e.name.startswith("gloo:")]
        return BYTES * sum(math.prod(shape) for e in events for shape in e.input_shapes) / STEPS


def work(rank: int, meeting: str, options: argparse.Namespace, orders: Any, answers: Any) -> None:
    """A rank: does what it is told, and tells how long it took."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORLD)
    replicas = {arm: Replica(arm, options) for arm in options.arms.split(",")}
    batch = make_batch(next(iter(replicas.values())).policy.config, options.batch)
    while order := orders.get():
        what, arm = order
        dist.barrier()
        answers.put(getattr(replicas[arm], what)(batch))
    dist.barrier()
    dist.destroy_process_group()


class Workers:
    """The two processes."""

    def __init__(self, options: argparse.Namespace, folder: str) -> None:
        context = mp.get_context("spawn")
        self.orders = [context.Queue() for _ in range(WORLD)]
        self.answers = context.Queue()
        rest = (f"file://{Path(folder) / 'meeting'}", options)
        self.processes = [
            context.Process(target=work, args=(rank, *rest, orders, self.answers), daemon=True)
            for rank, orders in enumerate(self.orders)
        ]
        for process in self.processes:
            process.start()

    def do(self, what: str, arm: str) -> float:
        """The larger of what they answer."""
        for orders in self.orders:
            orders.put((what, arm))
        return max(self.answers.get(timeout=600) for _ in range(WORLD))

    def stop(self) -> None:
        for orders in self.orders:
            orders.put(None)
        for process in self.processes:
            process.join()


def main() -> None:
    options = _parse()
    torch.set_num_threads(1)
    arms = options.arms.split(",")
    with tempfile.TemporaryDirectory() as folder:
        workers = Workers(options, folder)
        alone = {arm: Replica(arm, options) for arm in arms}
        batch = make_batch(alone[arms[0]].policy.config, options.batch)
        seconds: dict[tuple[str, int], list[float]] = {(arm, n): [] for arm in arms for n in (1, WORLD)}
        for turn in range(1 + options.rounds):
            for arm in arms[turn % len(arms) :] + arms[: turn % len(arms)]:
                took = alone[arm].steps(batch), workers.do("steps", arm)
                if turn:  # the first warms up
                    for processes, one in zip((1, WORLD), took, strict=True):
                        seconds[arm, processes].append(one)
        sent = {arm: workers.do("sent", arm) for arm in arms}
        workers.stop()
    base = arms[0]
    columns = ("arm", "1 process, ms", "2, ms", "2 over 1", f"1: over {base}", f"2: over {base}", "MB sent a step")
    table = Table(*columns, title=_title(options))
    for arm in arms:
        table.add_row(
            arm,
            *(f"{1000 * statistics.median(seconds[arm, n]):.0f}" for n in (1, WORLD)),
            _ratio(seconds[arm, WORLD], seconds[arm, 1]),
            *(_ratio(seconds[arm, n], seconds[base, n]) for n in (1, WORLD)),
            f"{sent[arm] / 1e6:.2f}",
        )
    Console(width=140).print(table)


def _ratio(these: list[float], those: list[float]) -> str:
    low, middle, high = statistics.quantiles([a / b for a, b in zip(these, those, strict=True)], n=4)
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="nano", help="as --policy.backbone")
    parser.add_argument("--arms", default="naive,gradient,update,subspace", help="the first is the others' measure")
    parser.add_argument("--batch", type=int, default=8, help="samples a step and process")
    parser.add_argument("--rounds", type=int, default=8, help="rounds, after one to warm up")
    options = parser.parse_args()
    unknown = sorted(set(options.arms.split(",")) - set(ARMS))
    if unknown:
        parser.error(f"--arms are some of {', '.join(ARMS)}; received {', '.join(unknown)}")
    if options.rounds < 2:
        parser.error(f"--rounds must be at least 2 for a spread; received {options.rounds}")
    return argparse.Namespace(**vars(options), chunk=8, image_size=96, device="cpu", dtype="float32")


def _title(options: argparse.Namespace) -> str:
    return f"{options.backbone}, batch {options.batch} a process, one thread each, median of {options.rounds} rounds"


if __name__ == "__main__":
    main()
