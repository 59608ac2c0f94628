"""One action chunk: LeRobot's `pi0` and `smolvla` beside an `aegis_vla` of the same size, random weights.

    python benchmarks/inference.py [--pairs pi0,smolvla] [--size small] [--batches 1,8] [--rounds 8] [--device cpu]

A row is one policy and batch: an observation of two 480 x 640 cameras goes through the policy's own preprocessor and
`predict_action_chunk` (the prefix once, ten evaluations of the flow for 50 actions). `--size` is one of
`lerobot_policies.SIZES`. The pair of pi0 has the same weights, and the same noise must give the same actions.
"""

import argparse
import gc
import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from lerobot_policies import ACTION, CHUNK, PAIRS, SIZES, Arm, observation
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

TOLERANCE = 1e-3  # of one pi0: float32 through attention kernels that sum in another order, ten times over


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    rows: list[list[str]] = []
    raw: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for pair in options.pairs:
            arms = PAIRS[pair](SIZES[options.size][pair], Path(folder), device=options.device)
            if pair == "pi0" and options.dtype == "float32":
                _same_actions(arms)
            for batch in options.batches:
                rows += _rows(pair, arms, batch, options, raw)
            del arms
    header = ("policy", "batch", "ms, whole", "over LeRobot's", "ms, preprocessor", "ms, chunk", "over LeRobot's")
    table = Table(_title(options), (*header, "chunks/s", "peak MiB"), rows)
    report([table], options, seconds=raw)


def _rows(
    pair: str,
    arms: dict[str, Arm],
    batch: int,
    options: argparse.Namespace,
    raw: dict[str, dict[str, list[float]]],
) -> list[list[str]]:
    before: dict[str, list[float]] = {name: [] for name in arms}
    chunk: dict[str, list[float]] = {name: [] for name in arms}

    def run(name: str) -> float:
        parts = _once(arms[name], batch, options)
        before[name].append(parts[0])
        chunk[name].append(parts[1])
        return sum(parts)

    whole = interleave({name: partial(run, name) for name in arms}, rounds=options.rounds)
    before, chunk = ({name: times[1:] for name, times in part.items()} for part in (before, chunk))  # one warmed up
    raw |= {f"{name}, batch {batch}": {"preprocessor": before[name], "chunk": chunk[name]} for name in arms}
    base = next(iter(arms))
    return [
        [
            name,
            str(batch),
            milliseconds(whole[name]),
            ratio(whole[name], whole[base]),
            milliseconds(before[name]),
            milliseconds(chunk[name]),
            ratio(chunk[name], chunk[base]),
            f"{batch / statistics.median(whole[name]):.2f}",
            f"{in_own_process(peak_of, pair, name, batch, options):.0f}",
        ]
        for name in arms
    ]


def _once(arm: Arm, batch: int, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds of the preprocessor and of the chunk."""
    raw, inputs = observation(batch), {}

    def prepare() -> None:
        inputs.update(arm.preprocessor(raw))

    def act() -> None:
        with autocast(options):
            arm.policy.predict_action_chunk(inputs)

    return seconds(prepare, options), seconds(act, options)


def peak_of(pair: str, name: str, batch: int, options: argparse.Namespace) -> float:
    """MiB at the peak of one chunk."""
    with tempfile.TemporaryDirectory() as folder:
        arms = PAIRS[pair](SIZES[options.size][pair], Path(folder), device=options.device)
    arm = arms.pop(name)
    arms.clear()  # building a pair holds both
    gc.collect()
    reset_peak(options.device)
    _once(arm, batch, options)
    return peak_mib(options.device)


def _same_actions(arms: dict[str, Arm]) -> None:
    """Refuses to compare two networks that are meant to be one and are not."""
    width = next(iter(arms.values())).policy.config.max_action_dim
    noise = torch.randn(1, CHUNK, width, generator=torch.Generator().manual_seed(2))
    chunks = []
    for policy, preprocessor in arms.values():
        device = next(policy.parameters()).device
        chunks.append(policy.predict_action_chunk(preprocessor(observation(1)), noise=noise.to(device)))
    apart = (chunks[0] - chunks[1]).abs().max().item()
    if apart > TOLERANCE * chunks[0].abs().max().item():
        raise RuntimeError(f"The two must act as one; their actions differ by up to {apart}.")
    assert chunks[0].shape == (1, CHUNK, ACTION)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(__file__, __doc__, rounds=8)
    parser.add_argument("--pairs", type=lambda s: s.split(","), default=list(PAIRS), help=", ".join(PAIRS))
    parser.add_argument("--size", default="small", choices=SIZES, help="of the networks")
    parser.add_argument("--batches", type=lambda s: [int(b) for b in s.split(",")], default=[1, 8], help="observations")
    options = parse(parser, arguments)
    if unknown := sorted(set(options.pairs) - set(PAIRS)):
        parser.error(f"--pairs are some of {', '.join(PAIRS)}; received {', '.join(unknown)}")
    return options


def _title(options: argparse.Namespace) -> str:
    return f"Networks of size `{options.size}` in {options.dtype} on {options.device}, {options.rounds} rounds."


if __name__ == "__main__":
    main()
