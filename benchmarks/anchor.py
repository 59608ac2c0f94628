"""Building an anchor beside the plain forward pass over the same samples, and whether its memory grows with them.

    python benchmarks/anchor.py [--coverage] [--backbone nano] [--samples 512] [--batch 32] [--rounds 3] [--device cpu]

*forward* prepares the samples and runs the backbone on them, *anchor* is `build_anchor`, with every so many tokens in
the second moments as in an anchor of the usual size, *anchor, all tokens* the same with each token; with the shape of a
real model (`shapes.SHAPES`) all run on random inputs. Memory is the peak of a process of its own that takes in so many
samples, and twice as many.

`--coverage` asks instead what is lost where second moments take in every so many tokens: of the inputs' energy on other
samples, the share that lies in the directions that such an anchor closes.

A collector adds the second moments' products, 2 in^2 operations a token and distinct input, to the 2 in out of the
weights that read it; of inputs wider than 256 about half of the product is made. `subspace.py --arithmetic` has the
ratio for whole models.
"""

import argparse
import gc
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from measure import (
    Table,
    in_own_process,
    interleave,
    make_parser,
    parse,
    peak_mib,
    ratio,
    report,
    reset_peak,
    seconds,
)
from shapes import SHAPES, random_inputs

from aegis_policy.aegis import AnchorCollector
from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.knowledge.sources import build_anchor, token_stride_of
from aegis_policy.network.backbone import Backbone
from aegis_policy.network.prompt import encode_prompts, load_processor
from aegis_policy.processor_aegis_vla import VLM_INPUT
from aegis_policy.vqa import VQASample, load_vqa_source

USUAL_STRIDE = token_stride_of(AegisVLAConfig.anchor_samples)
STRIDES = (1, 8, 16, 24)
ENERGIES = (0.97, 0.99)


class OnQuestions:
    """A backbone with its processor, on rendered scenes."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.backbone = Backbone.load(options.backbone).eval().to(options.device)
        self.processor = load_processor(options.backbone)
        self.batch = options.batch
        self.device = options.device
        self.count = options.samples
        self.samples = self.draw(seed=0)

    def draw(self, *, seed: int) -> list[VQASample]:
        return list(load_vqa_source("nano_scenes")(count=self.count, seed=seed, split="train"))

    @torch.no_grad()
    def forward(self, times: int = 1) -> None:
        for batch in _batches(self.samples * times, self.batch):
            inputs = encode_prompts(self.processor, [s.images for s in batch], [s.question for s in batch])
            self.backbone.encode({k: v.to(self.device) for k, v in inputs.items()})

    def anchor(self, times: int = 1, *, token_stride: int = USUAL_STRIDE) -> None:
        options = {"batch_size": self.batch, "token_stride": token_stride}
        build_anchor(self.backbone, self.processor, self.samples * times, **options)


class OnShape:
    """The shape of a real model, on random inputs."""

    def __init__(self, options: argparse.Namespace) -> None:
        shape = SHAPES[options.backbone]
        with torch.device(options.device):
            self.backbone = Backbone.build(shape).eval()
        inputs = random_inputs(shape, options.batch, images=1)
        self.inputs = {k.removeprefix(VLM_INPUT): v.to(options.device) for k, v in inputs.items()}
        self.batches = options.samples // options.batch

    @torch.no_grad()
    def forward(self, times: int = 1) -> None:
        for _ in range(times * self.batches):
            self.backbone.encode(self.inputs)

    def anchor(self, times: int = 1, *, token_stride: int = USUAL_STRIDE) -> None:
        layers, linears = self.backbone.layers(), self.backbone.linears()
        mask = self.inputs["attention_mask"].bool()
        masks = {site: mask if self.backbone.is_language(site) else None for site in [*layers, *linears]}
        collector = AnchorCollector(
            self.backbone.vlm,
            layers=layers,
            linears=linears,
            mask_of=masks.get,
            unit_inputs=True,
            token_stride=token_stride,
        )
        with collector:
            self.forward(times)
        collector.anchor(fingerprint="")


def arms_of(work: Any) -> dict[str, Any]:
    """What is measured, by name; each may be given how many times the samples are taken in."""
    return {
        "forward": work.forward,
        "anchor": work.anchor,
        "anchor, all tokens": partial(work.anchor, token_stride=1),
    }


def peak_of(name: str, times: int, options: argparse.Namespace) -> float:
    """MiB at the peak of taking in `times` as many samples."""
    arm = arms_of(_work(options))[name]
    gc.collect()
    reset_peak(options.device)
    arm(times)
    return peak_mib(options.device)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    work = _work(options)
    if options.coverage:
        report([coverage(work, options)], options)
        return
    arms = {name: partial(seconds, arm, options) for name, arm in arms_of(work).items()}
    times = interleave(arms, rounds=options.rounds)
    memory = {name: [in_own_process(peak_of, name, n, options) for n in (1, 2)] for name in arms}
    rows = [
        [
            name,
            f"{options.samples / statistics.median(times[name]):.1f}",
            ratio(times["forward"], times[name]),
            *(f"{peak:.0f}" for peak in memory[name]),
        ]
        for name in arms
    ]
    title = (
        f"`{options.backbone}`, {options.samples} samples in batches of {options.batch}, float32 on "
        f"{options.device}, {options.rounds} rounds."
    )
    header = ("arm", "samples/s", "throughput over forward's", "peak MiB", "peak MiB, twice the samples")
    report([Table(title, header, rows)], options, seconds=times, peak_mib=memory)


def coverage(work: OnQuestions, options: argparse.Namespace) -> Table:
    """Of the energy of other samples' inputs, the share that anchors with several token strides close."""
    held_out = build_anchor(work.backbone, work.processor, work.draw(seed=1), batch_size=work.batch, token_stride=1)
    rows = []
    for stride in STRIDES:
        anchor = build_anchor(work.backbone, work.processor, work.samples, batch_size=work.batch, token_stride=stride)
        for energy in ENERGIES:
            closed = []
            for weight, projector in anchor.projectors(energy=energy).items():
                moment = held_out.second_moment(weight).double()
                closed.append(1 - ((moment @ projector.matrix().double()).trace() / moment.trace()).item())
            rows.append([f"{energy:.0%}", str(stride), f"{statistics.mean(closed):.2%}", f"{min(closed):.2%}"])
    title = f"`{options.backbone}`, anchors of {options.samples} samples, energy of {options.samples} others."
    header = ("to close", "every so many tokens", "closed, mean over weights", "least weight")
    return Table(title, header, sorted(rows, key=lambda row: row[0]))


def _work(options: argparse.Namespace) -> Any:
    return (OnShape if options.backbone in SHAPES else OnQuestions)(options)


def _batches(samples: Sequence[VQASample], size: int) -> list[Any]:
    return [samples[i : i + size] for i in range(0, len(samples), size)]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(__file__, __doc__, rounds=3)
    parser.add_argument("--backbone", default="nano", help=f"a backbone, or one of {', '.join(SHAPES)}")
    parser.add_argument("--samples", type=int, default=512, help="to take in")
    parser.add_argument("--batch", type=int, default=32, help="samples a forward pass")
    parser.add_argument("--coverage", action="store_true", help="what a token stride loses, in place of what it saves")
    options = parse(parser, arguments)
    if options.coverage and options.backbone in SHAPES:
        parser.error(
            f"--coverage is of real questions; received --backbone={options.backbone}, which has random inputs"
        )
    if options.dtype != "float32":
        parser.error(f"an anchor is built in float32; received --dtype={options.dtype}")
    if options.samples % options.batch:
        parser.error(f"--samples must be a multiple of --batch; received {options.samples} and {options.batch}")
    return options


if __name__ == "__main__":
    main()
