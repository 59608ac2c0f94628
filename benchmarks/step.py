"""Time and memory of a training step, arm against arm in one run.

    python benchmarks/step.py [--backbone nano] [--batch 32] [--rounds 10] [--device cpu] [--arms naive,subspace]

Each round takes four steps of every arm (some do more every fourth), the arms in another order each time, on the same
random batch: forward, backward, clipping and optimizer, as lerobot-train does them, without its data loader. A ratio is
formed within a round, so that whatever else the machine does falls on both sides; the table shows the median ratio over
the rounds and, in brackets, its quartiles. Memory is the peak of a process of its own that takes four steps of that arm
alone.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies import make_pre_post_processors
from rich.console import Console
from rich.table import Table

from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.modeling_aegis_vla import AegisVLAPolicy

LORA = {"method_type": "LORA", "r": 16, "lora_alpha": 32}
ARMS: dict[str, dict[str, Any]] = {
    "naive": {"knowledge": "none"},
    "stop_gradient": {"knowledge": "stop_gradient"},
    "lora": {"knowledge": "none"},
    "gradient": {"projection": "gradient"},
    "update": {"projection": "update"},
    "subspace": {"projection": "subspace"},
    "features": {"knowledge": "none", "reference": "features", "penalty_weight": 1.0},
    "subspace_features": {
        "projection": "subspace",
        "reference": "features",
        "penalty_weight": 1.0,
        "reference_samples": 8,
        "reference_every": 4,
    },
}
STEPS = 4  # a round


class Training:
    """One arm and its optimizer."""

    def __init__(self, arm: str, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        size = options.image_size
        config = AegisVLAConfig(
            input_features={
                "observation.images.front": PolicyFeature(type=FeatureType.VISUAL, shape=(3, size, size)),
                "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(6,)),
            },
            output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(6,))},
            backbone=options.backbone,
            device=options.device,
            dtype=options.dtype,
            chunk_size=options.chunk,
            n_action_steps=1,
            **ARMS[arm],
        )
        self.policy: Any = AegisVLAPolicy(config).to(options.device)
        if arm == "lora":
            self.policy = self.policy.wrap_with_peft(peft_cli_overrides=dict(LORA))
        self.policy.train()
        self.optimizer = config.get_optimizer_preset().build(self.policy.get_optim_params())
        self.clip = config.optimizer_grad_clip_norm
        self.autocast = torch.autocast(options.device, torch.bfloat16, enabled=options.dtype == "bfloat16")

    def step(self, batch: dict[str, Any]) -> float:
        """Seconds of one step."""
        _synchronise()
        start = time.perf_counter()
        with self.autocast:
            loss, _ = self.policy.forward(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.policy.update()
        _synchronise()
        return time.perf_counter() - start


def make_batch(config: AegisVLAConfig, size: int) -> dict[str, Any]:
    """A random batch through the policy's preprocessor."""
    generator = torch.Generator().manual_seed(0)
    image = config.image_features["observation.images.front"].shape
    raw = {
        "observation.images.front": torch.rand(size, *image, generator=generator),
        "observation.state": torch.randn(size, 6, generator=generator),
        "action": torch.randn(size, config.chunk_size, 6, generator=generator),
        "action_is_pad": torch.zeros(size, config.chunk_size, dtype=torch.bool),
        "task": [f"touch the {colour} cube" for colour in ("red", "blue")] * (size // 2) + ["touch it"] * (size % 2),
    }
    stats = {key: {"mean": torch.zeros(6), "std": torch.ones(6)} for key in ("observation.state", "action")}
    preprocessor, _ = make_pre_post_processors(config, dataset_stats=stats)
    batch: dict[str, Any] = preprocessor(raw)
    return batch


def peak_memory(arm: str) -> float:
    """MiB at the peak of a process that trains this arm alone: on the device, or of the process where that is a CPU."""
    command = [sys.executable, __file__, *sys.argv[1:], f"--alone={arm}"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def run_alone(arm: str, options: argparse.Namespace) -> None:
    training = Training(arm, options)
    batch = make_batch(training.policy.config, options.batch)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(STEPS):
        training.step(batch)
    if options.device == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        print(_peak_resident() / 2**20)


def main() -> None:
    options = _parse()
    if options.alone:
        run_alone(options.alone, options)
        return
    arms = options.arms.split(",")
    trainings = {arm: Training(arm, options) for arm in arms}
    batch = make_batch(trainings[arms[0]].policy.config, options.batch)
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for turn in range(1 + options.rounds):
        for arm in arms[turn % len(arms) :] + arms[: turn % len(arms)]:
            took = sum(trainings[arm].step(batch) for _ in range(STEPS)) / STEPS
            if turn:  # the first warms up
                seconds[arm].append(took)
    del trainings
    base = arms[0]
    table = Table("arm", "ms a step", f"over {base}", "peak MiB", f"over {base}", title=_title(options))
    memory = {arm: peak_memory(arm) for arm in arms}
    for arm in arms:
        low, middle, high = statistics.quantiles([a / b for a, b in zip(seconds[arm], seconds[base], strict=True)], n=4)
        table.add_row(
            arm,
            f"{1000 * statistics.median(seconds[arm]):.0f}",
            f"{middle:.2f} [{low:.2f}, {high:.2f}]",
            f"{memory[arm]:.0f}",
            f"{memory[arm] - memory[base]:+.0f}",
        )
    Console().print(table)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="nano", help="as --policy.backbone")
    parser.add_argument("--arms", default=",".join(ARMS), help="the first is what the others are compared with")
    parser.add_argument("--batch", type=int, default=32, help="samples a step")
    parser.add_argument("--rounds", type=int, default=10, help="rounds, after one to warm up")
    parser.add_argument("--chunk", type=int, default=8, help="actions a chunk")
    parser.add_argument("--image-size", type=int, default=96, help="pixels")
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--dtype", default="float32", help="float32, or bfloat16 for autocast")
    parser.add_argument("--alone", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = sorted(set(options.arms.split(",")) - set(ARMS))
    if unknown:
        parser.error(f"--arms are some of {', '.join(ARMS)}; received {', '.join(unknown)}")
    if options.rounds < 2:
        parser.error(f"--rounds must be at least 2 for a spread; received {options.rounds}")
    return options


def _title(options: argparse.Namespace) -> str:
    return (
        f"{options.backbone}, batch {options.batch}, chunk {options.chunk}, {options.dtype}, {options.device}, "
        f"{torch.get_num_threads()} threads, median of {options.rounds} rounds"
    )


def _peak_resident() -> int:
    """Bytes of this process at its peak; Linux's `ru_maxrss` would count what the parent held when it forked."""
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
