"""Time and memory of a training step, arm against arm in one run.

    python benchmarks/step.py [--backbone nano] [--batch 32] [--rounds 6] [--device cpu] [--arms naive,subspace]

Each round takes four steps of every arm (some do more every fourth), the arms in another order each time, on the same
random batch: forward, backward, clipping and optimizer, as lerobot-train does them, without its data loader. Memory is
the peak over four steps of a process of its own that trains that arm alone.

`--backbone` is a backbone as in `--policy.backbone`, or the shape of a real model with random weights (`shapes.SHAPES`,
such as paligemma2-3b): token ids and pixels then come from a random generator, and a subspace closes random directions,
as many as the embedded backbone's does (`shapes.CLOSED`). Where not all arms fit into memory at once, `--fresh` builds
an arm anew in a process of its own each time that it is its turn; nan then says that not even one fits.
"""

import argparse
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies import make_pre_post_processors
from measure import (
    Table,
    autocast,
    in_own_process,
    interleave,
    make_parser,
    milliseconds,
    parse,
    peak_mib,
    ratio,
    report,
    reset_peak,
    seconds,
)
from shapes import EXPERTS, SHAPES, ShapePolicy, random_inputs

from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.modeling_aegis_vla import AegisVLAPolicy

LORA = {"method_type": "LORA", "r": 16, "lora_alpha": 32}
TOGETHER = {"projection_every": 4}  # steps restricted together
FEATURES = {"reference": "features", "penalty_weight": 1.0, "reference_every": 4}  # on a quarter of the samples
ARMS: dict[str, dict[str, Any]] = {
    "naive": {"knowledge": "none"},
    "stop_gradient": {"knowledge": "stop_gradient"},
    "lora": {"knowledge": "none"},
    "lora_subspace_97_features": {"projection": "subspace", "energy": 0.97, **FEATURES},
    "gradient": {"projection": "gradient"},  # as the paper prints it
    "subspace": {"projection": "subspace", "energy": 0.99},
    "subspace_97": {"projection": "subspace", "energy": 0.97},
    "subspace_97_together": {"projection": "subspace", "energy": 0.97, **TOGETHER},
    "subspace_features": {"projection": "subspace", "energy": 0.99, **FEATURES},
    "subspace_97_features": {"projection": "subspace", "energy": 0.97, **FEATURES},
    "subspace_97_features_together": {"projection": "subspace", "energy": 0.97, **FEATURES, **TOGETHER},
    "subspace_97_features_own": {"projection": "subspace", "energy": 0.97, **FEATURES, "own_keys_values": True},
}
STEPS = 4  # a round
ACTION = 6


class Training:
    """One arm, its optimizer and its batch.

    Args:
        arm: One of `ARMS`.
        options: As parsed by `step.py`; `scaling.py` changes some.
        shape: In place of the one that `options.backbone` names.
    """

    def __init__(self, arm: str, options: argparse.Namespace, *, shape: dict[str, Any] | None = None) -> None:
        torch.manual_seed(0)
        shape = shape or SHAPES.get(options.backbone)
        width, mlp = EXPERTS.get(options.backbone, (None, None))
        size = options.image_size
        images = {
            f"observation.images.camera{i}": PolicyFeature(type=FeatureType.VISUAL, shape=(3, size, size))
            for i in range(options.images)
        }
        config = AegisVLAConfig(
            input_features={**images, "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(ACTION,))},
            output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(ACTION,))},
            backbone="nano" if shape else options.backbone,
            device=options.device,
            dtype=options.dtype,
            chunk_size=options.chunk,
            n_action_steps=1,
            reference_samples=max(1, options.batch // 4),
            expert_hidden_size=width,
            expert_intermediate_size=mlp,
            **ARMS[arm],
        )
        self.policy: Any = ShapePolicy(config, shape) if shape else AegisVLAPolicy(config)
        self.policy.to(options.device)
        if arm.startswith("lora"):
            self.policy = self.policy.wrap_with_peft(peft_cli_overrides=dict(LORA))
        self.policy.train()
        self.optimizer = config.get_optimizer_preset().build(self.policy.get_optim_params())
        self.batch = make_batch(config, options.batch, shape=shape)
        self._learner = self.policy  # what a subclass puts around it averages over ranks
        self._clip = config.optimizer_grad_clip_norm
        self._options = options

    def step(self) -> None:
        with autocast(self._options):
            loss, _ = self._learner(self.batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self._clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.policy.update()

    def round(self) -> float:
        """Seconds a step."""
        return sum(seconds(self.step, self._options) for _ in range(STEPS)) / STEPS


def make_batch(config: AegisVLAConfig, size: int, *, shape: dict[str, Any] | None) -> dict[str, Any]:
    """A random batch as the policy's preprocessor hands it over."""
    generator = torch.Generator().manual_seed(0)
    batch = {
        "observation.state": torch.randn(size, ACTION, generator=generator),
        "action": torch.randn(size, config.chunk_size, ACTION, generator=generator),
        "action_is_pad": torch.zeros(size, config.chunk_size, dtype=torch.bool),
    }
    if shape:
        batch |= random_inputs(shape, size, images=len(config.image_features))
        return {key: value.to(config.device) for key, value in batch.items()}
    for key, feature in config.image_features.items():
        batch[key] = torch.rand(size, *feature.shape, generator=generator)
    colours = [f"touch the {colour} cube" for colour in ("red", "blue")]
    stats = {key: {"mean": torch.zeros(ACTION), "std": torch.ones(ACTION)} for key in ("observation.state", "action")}
    preprocessor, _ = make_pre_post_processors(config, dataset_stats=stats)
    prepared: dict[str, Any] = preprocessor({**batch, "task": colours * (size // 2) + ["touch it"] * (size % 2)})
    return prepared


def peak_of(arm: str, options: argparse.Namespace, shape: dict[str, Any] | None = None) -> float:
    """MiB at the peak over a round of one arm."""
    training = Training(arm, options, shape=shape)
    reset_peak(options.device)
    training.round()
    return peak_mib(options.device)


def build_and_run(arm: str, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds a step and MiB at the peak, after a round to warm up; nan where the device has too little memory."""
    try:
        training = Training(arm, options)
        reset_peak(options.device)
        training.round()
        return training.round(), peak_mib(options.device)
    except torch.OutOfMemoryError:
        return math.nan, math.nan


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    arms = options.arms.split(",")
    memory: dict[str, float] = {}
    if options.fresh:

        def run(arm: str) -> float:
            took: float
            took, memory[arm] = in_own_process(build_and_run, arm, options)
            return took

        times = interleave({arm: partial(run, arm) for arm in arms}, rounds=options.rounds, warm_up=False)
    else:
        trainings = {arm: Training(arm, options) for arm in arms}
        times = interleave({arm: training.round for arm, training in trainings.items()}, rounds=options.rounds)
        trainings.clear()
        if torch.device(options.device).type == "cuda":
            torch.cuda.empty_cache()
        memory = {arm: in_own_process(peak_of, arm, options) for arm in arms}
    base = arms[0]
    rows = [
        [
            arm,
            milliseconds(times[arm]),
            ratio(times[arm], times[base]),
            f"{memory[arm]:.0f}",
            f"{memory[arm] - memory[base]:+.0f}",
        ]
        for arm in arms
    ]
    header = ("arm", "ms a step", f"over {base}", "peak MiB", f"over {base}")
    report([Table(_title(options), header, rows)], options, seconds=times, peak_mib=memory)


def add_training_options(parser: argparse.ArgumentParser, *, backbone: str, batch: int, chunk: int) -> None:
    """What a training of these benchmarks can be told; the arguments are defaults."""
    parser.add_argument("--backbone", default=backbone, help=f"as --policy.backbone, or one of {', '.join(SHAPES)}")
    parser.add_argument("--batch", type=int, default=batch, help="samples a step")
    parser.add_argument("--chunk", type=int, default=chunk, help="actions a chunk")
    parser.add_argument("--images", type=int, default=1, help="cameras")
    parser.add_argument("--image-size", type=int, default=96, help="pixels of a camera; a shape has its own")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(__file__, __doc__, rounds=6)
    parser.add_argument("--arms", default=",".join(ARMS), help="the first is what the others are compared with")
    parser.add_argument("--fresh", action="store_true", help="each turn in a process of its own, one arm in memory")
    add_training_options(parser, backbone="nano", batch=32, chunk=8)
    options = parse(parser, arguments)
    if unknown := sorted(set(options.arms.split(",")) - set(ARMS)):
        parser.error(f"--arms are some of {', '.join(ARMS)}; received {', '.join(unknown)}")
    return options


def _title(options: argparse.Namespace) -> str:
    return (
        f"`{options.backbone}`, batch {options.batch}, {options.images} camera(s), chunk {options.chunk}, "
        f"{options.dtype} on {options.device}, {options.rounds} rounds of {STEPS} steps."
    )


if __name__ == "__main__":
    main()
