"""Time of a training step in one process and in two, and what two send each other.

    python benchmarks/ranks.py [--backbone nano] [--batch 8] [--rounds 8] [--arms naive,gradient]

One process trains on a batch by itself, two (gloo, DistributedDataParallel) on one such batch each. Each round takes
four steps of every arm in the one process while the two wait, and in the two while the one waits, in another order each
time; two processes take as long as the slower. What is sent is counted from a profile of one more round, in bytes that
a rank hands to a collective.
"""

import argparse
import math
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from measure import Table, interleave, make_parser, milliseconds, own_processes, parse, ratio, report
from step import ARMS, STEPS, Training, add_training_options
from torch.nn.parallel import DistributedDataParallel

WORLD = 2
BYTES = 4  # everything that is sent is float32, but for a few counters


class Replica(Training):
    """One arm, alone or as one of several that average their gradients."""

    def __init__(self, arm: str, options: argparse.Namespace) -> None:
        super().__init__(arm, options)
        if dist.is_initialized():
            self._learner = DistributedDataParallel(self.policy, find_unused_parameters=True)

    def sent(self) -> float:
        """Bytes that this rank hands to collectives in a step."""
        cpu = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=cpu, record_shapes=True, acc_events=True) as profile:
            self.round()
        events = [e for e in profile.events() if e.name.startswith("gloo:")]
        return BYTES * sum(math.prod(shape) for e in events for shape in e.input_shapes) / STEPS


def work(rank: int, meeting: str, options: argparse.Namespace, orders: Any, answers: Any) -> None:
    """A rank: does what it is told, and answers with a number."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORLD)
    replicas = {arm: Replica(arm, options) for arm in options.arms.split(",")}
    while order := orders.get():
        what, arm = order
        dist.barrier()
        answers.put(getattr(replicas[arm], what)())
    dist.barrier()
    dist.destroy_process_group()


class Workers:
    """The two processes."""

    def __init__(self, options: argparse.Namespace, folder: str) -> None:
        context = own_processes()
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


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    torch.set_num_threads(1)
    arms = options.arms.split(",")
    with tempfile.TemporaryDirectory() as folder:
        workers = Workers(options, folder)
        alone = {arm: Replica(arm, options) for arm in arms}
        runs = {}
        for arm in arms:
            runs[arm, 1] = alone[arm].round
            runs[arm, WORLD] = partial(workers.do, "round", arm)
        named = {f"{arm}, {n} at once": run for (arm, n), run in runs.items()}
        measured = interleave(named, rounds=options.rounds)
        times = dict(zip(runs, measured.values(), strict=True))
        sent = {arm: workers.do("sent", arm) for arm in arms}
        workers.stop()
    base = arms[0]
    rows = [
        [
            arm,
            *(milliseconds(times[arm, n]) for n in (1, WORLD)),
            ratio(times[arm, WORLD], times[arm, 1]),
            *(ratio(times[arm, n], times[base, n]) for n in (1, WORLD)),
            f"{sent[arm] / 1e6:.2f}",
        ]
        for arm in arms
    ]
    title = (
        f"`{options.backbone}`, {options.batch} samples a process, one thread each, gloo, float32 on cpu, "
        f"{options.rounds} rounds."
    )
    header = ("arm", "ms, 1 process", "2", "2 over 1", f"1: over {base}", f"2: over {base}", "MB sent a step")
    report([Table(title, header, rows)], options, seconds=measured, bytes_sent=sent)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(__file__, __doc__, rounds=8)
    add_training_options(parser, backbone="nano", batch=8, chunk=8)
    parser.add_argument(
        "--arms",
        default="naive,gradient,subspace_97,subspace_97_features",
        help="the first is what the others are compared with",
    )
    options = parse(parser, arguments)
    unknown = sorted(set(options.arms.split(",")) - set(ARMS))
    if unknown:
        parser.error(f"--arms are some of {', '.join(ARMS)}; received {', '.join(unknown)}")
    if (options.device, options.dtype) != ("cpu", "float32"):
        parser.error(
            f"two gloo processes train in float32 on cpu; received --device={options.device}, --dtype={options.dtype}"
        )
    return options


if __name__ == "__main__":
    main()
