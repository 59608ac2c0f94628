"""What the subspace costs on one transformer layer, form against form, and what projectors take in whole models.

    python benchmarks/subspace.py [--shape smolvlm2-500m] [--closed 0.45] [--layers mlp.down_proj] [--rounds 3]
    python benchmarks/subspace.py --arithmetic [--closed 0.45]

The first takes optimizer steps on the linear maps of one language layer with random gradients: AdamW alone, with the
kernel that torch chooses and with the one that the policy asks for (fused on a CPU), as all that follow; the subspace
with dense matrices and with projectors in their compact form (`aegis_policy.aegis.Projector`); and, for comparison, the
parametrisation `W = W0 + A V^T` with V (in, open) an orthonormal basis of what is open: Adam on A (out, open), after
which W is made anew. That one is another method: Adam's second moment is another, so it takes other
steps. *Leak* is the largest response of the steps taken to a closed input of norm 1, over the largest to any.

The second builds no weights: bytes by the sizes of the models.
"""

import argparse
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from measure import Table, interleave, make_parser, milliseconds, parse, ratio, report, seconds
from shapes import CLOSED, SHAPES, TEXT, distinct_inputs, random_projector
from torch import Tensor, nn

from aegis_policy.aegis import AegisAdamW, Projector
from aegis_policy.aegis.statistics import BLOCK
from aegis_policy.aegis.subspace import SMALL
from aegis_policy.network.backbone import Backbone

LR = 1e-3
GIB = 2**30
BATCH = 32  # samples of a step, for the arithmetic


class Layer:
    """Weights (out, in) of one layer in float32 and what each may move along."""

    def __init__(self, sizes: dict[str, tuple[int, int]], projectors: dict[str, Projector], device: str) -> None:
        draw = torch.Generator(device).manual_seed(0)
        self.projectors = projectors
        self.params = {
            name: nn.Parameter(torch.randn(size, device=device, generator=draw) / size[1] ** 0.5)
            for name, size in sizes.items()
        }
        for p in self.params.values():
            p.grad = torch.randn(p.shape, device=device, generator=draw)
        self.before = {name: p.detach().clone() for name, p in self.params.items()}

    def kernel(self) -> dict[str, bool]:
        """As `AegisAdamWConfig` builds the policy's optimizer."""
        return {"fused": True} if next(iter(self.params.values())).device.type == "cpu" else {}

    def moments(self) -> int:
        """Numbers of Adam's two moments."""
        return 2 * sum(p.numel() for p in self.params.values())

    def leak(self) -> float:
        """Of what the layer has moved, the largest part that a closed input sees."""
        shares = []
        for name, p in self.params.items():
            moved = p.detach() - self.before[name]
            closed = moved - moved @ self.projectors[name]
            shares.append((torch.linalg.matrix_norm(closed, 2) / torch.linalg.matrix_norm(moved, 2)).item())
        return max(shares)


class Plain(Layer):
    """AdamW alone."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(self.params.values(), lr=LR, **self.kernel())

    def step(self) -> None:
        self.optimizer.step()

    def extra_bytes(self) -> int:
        return 0


class Unfused(Plain):
    """AdamW alone as torch takes its step when nothing is said."""

    def kernel(self) -> dict[str, bool]:
        return {}


class Subspace(Plain):
    """The subspace, each projector in the form that it has."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        group = {"layer": "l", "params": list(self.params.values()), "projectors": list(self.projectors.values())}
        self.optimizer = AegisAdamW([group], lr=LR, projection="subspace", **self.kernel())

    def extra_bytes(self) -> int:
        return sum(p.nbytes for p in {id(p): p for p in self.projectors.values()}.values())


class Dense(Subspace):
    """The same with matrices."""

    def __init__(self, sizes: dict[str, tuple[int, int]], projectors: dict[str, Projector], device: str) -> None:
        known = {id(p): Projector(p.matrix(), "matrix") for p in projectors.values()}
        super().__init__(sizes, {name: known[id(p)] for name, p in projectors.items()}, device)


class Parametrised(Layer):
    """W = W0 + A V^T: V is made of the projector's complement, A and its moments are (out, open)."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        bases = {id(p): _open_basis(p) for p in self.projectors.values()}
        self.bases = {name: bases[id(p)] for name, p in self.projectors.items()}
        self.inner = {
            name: nn.Parameter(torch.zeros(len(p), self.bases[name].shape[1], device=p.device))
            for name, p in self.params.items()
        }
        self.optimizer = torch.optim.AdamW(self.inner.values(), lr=LR, **self.kernel())

    @torch.no_grad()
    def step(self) -> None:
        for name, a in self.inner.items():
            a.grad = self.params[name].grad @ self.bases[name]
        self.optimizer.step()
        for name, a in self.inner.items():
            torch.addmm(self.before[name], a, self.bases[name].T, out=self.params[name])

    def moments(self) -> int:
        return 2 * sum(a.numel() for a in self.inner.values())

    def extra_bytes(self) -> int:
        """Bases, A and W0: the weight itself is made for the forward pass."""
        kept = [*{id(v): v for v in self.bases.values()}.values(), *self.inner.values(), *self.before.values()]
        return sum(t.nbytes for t in kept)


FORMS = {
    "AdamW, torch's choice": Unfused,
    "AdamW alone": Plain,
    "dense": Dense,
    "compact": Subspace,
    "W0 + A V^T": Parametrised,
}


def _open_basis(projector: Projector) -> Tensor:
    if projector.form == "open":
        return projector.basis
    values, vectors = torch.linalg.eigh(projector.matrix())
    return vectors[:, values > 0.5].contiguous()


def measure(options: argparse.Namespace) -> None:
    with torch.device("meta"):
        backbone = Backbone.build(SHAPES[options.shape])
    first = f"{backbone.decoder_name}.layers.0."
    linears = {n: m for n, m in backbone.linears().items() if n.startswith(first) and options.layers in n}
    projectors: dict[str, Projector] = {}
    for names, width in distinct_inputs(linears):
        projectors |= dict.fromkeys(names, random_projector(width, closed=options.closed, device=options.device))
    sizes = {name: (m.out_features, m.in_features) for name, m in linears.items()}
    arms = {form: kind(sizes, projectors, options.device) for form, kind in FORMS.items()}
    times = interleave({form: partial(seconds, arm.step, options) for form, arm in arms.items()}, rounds=options.rounds)
    base = "AdamW alone"
    rows = [
        [
            form,
            milliseconds(times[form]),
            ratio(times[form], times["dense"]),
            f"{arm.extra_bytes() / 2**20:.0f}",
            f"{4 * arm.moments() / 2**20:.0f}",
            f"{arm.leak():.0e}",
        ]
        for form, arm in arms.items()
    ]
    matrices = ", ".join(f"{name.split('.')[-2]} {out} x {width}" for name, (out, width) in sizes.items())
    more = statistics.median(times["compact"]) - statistics.median(times[base])
    title = (
        f"One language layer of `{options.shape}` ({matrices}), {options.closed:.0%} of the directions closed, float32 "
        f"on {options.device}, {options.rounds} rounds. The subspace adds {1000 * more:.0f} ms to AdamW's step."
    )
    header = ("form", "ms a step", "over dense", "beside the weights, MiB", "Adam's moments, MiB", "leak")
    report([Table(title, header, rows)], options, seconds=times)


def arithmetic(options: argparse.Namespace) -> None:
    few = min(options.closed, 1 - options.closed)
    memory, operations = [], []
    for name, shape in {"nano": None, **{n: s for n, s in SHAPES.items() if "tiny" not in n}}.items():
        with torch.device("meta"):
            backbone = Backbone.load("nano", weights=False) if shape is None else Backbone.build(shape)
        linears = backbone.linears()
        weights = sum(m.weight.numel() for m in linears.values())
        widths = [width for _, width in distinct_inputs(linears)]
        dense = sum(4 * width**2 for width in widths)
        compact = sum(4 * width**2 * (1 if width <= SMALL else few) for width in widths)
        head = backbone.vlm.get_output_embeddings()
        tied = head.weight is backbone.vlm.get_input_embeddings().weight
        naive = sum(p.numel() for p in backbone.vlm.parameters()) - (0 if tied else head.weight.numel())
        frozen = 12 * (naive - weights)  # a gradient and two moments in float32
        amounts = (2 * weights, dense, compact, frozen, compact - frozen, compact - frozen + 2 * weights)
        memory.append([name, f"{weights / 1e6:.1f}", *(f"{amount / GIB:.3f}" for amount in amounts)])
        if shape is not None:
            operations.append([name, *_operations(backbone, shape, few=few)])
    header = (
        "backbone",
        "10^6 weights",
        "a copy in bfloat16",
        "dense",
        "compact",
        "not kept of what is frozen",
        "compact over naive",
        "with features",
    )
    closed = f"{options.closed:.0%} of the directions closed"
    title = (
        f"GiB of projectors in float32 by the sizes of the models, all linear maps of the prefix protected, {closed}. "
        "*Not kept*: gradients and moments of what naive fine-tuning trains and a subspace freezes, as embeddings. "
        "*With features*: a frozen copy of these weights in bfloat16, as in training in bfloat16, on top."
    )
    tables = [Table(title, header, memory)]
    header = ("backbone", "forward and backward", "dense", "compact", "compact, share", "second moments over forward")
    title = f"TFLOP of a step of {BATCH} samples with one image and {TEXT} text tokens, {closed}."
    report([*tables, Table(title, header, operations)], options)


def _operations(backbone: Backbone, shape: dict[str, Any], *, few: float) -> list[str]:
    """Attention, norms and the expert left out."""
    vision = shape["vision_config"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    tokens = patches // shape.get("scale_factor", 1) ** 2 + TEXT
    linears = backbone.linears()
    counts = {name: tokens if backbone.is_language(name) else patches for name in linears}
    forward = sum(2 * counts[name] * m.weight.numel() for name, m in linears.items())
    moments = sum(2 * counts[names[0]] * _half(width) for names, width in distinct_inputs(linears))
    dense = sum(2 * m.in_features * m.weight.numel() for m in linears.values())
    compact = sum(
        2 * (1 if m.in_features <= SMALL else 2 * few) * m.in_features * m.weight.numel() for m in linears.values()
    )
    step = 3 * BATCH * forward
    return [*(f"{n / 1e12:.2f}" for n in (step, dense, compact)), f"{compact / step:.0%}", f"{moments / forward:.2f}"]


def _half(width: int) -> int:
    """Entries of a second moment that are made."""
    return sum(min(BLOCK, width - i) * (width - i) for i in range(0, width, BLOCK))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__, rounds=3)
    parser.add_argument("--arithmetic", action="store_true", help="whole models, without building one")
    parser.add_argument("--shape", default="small-paligemma2", choices=SHAPES, help="whose layer")
    parser.add_argument("--layers", default="", help="only weights whose name has this in it")
    parser.add_argument("--closed", type=float, default=CLOSED[0.99], help="share of the input directions closed")
    options = parse(parser, arguments)
    (arithmetic if options.arithmetic else measure)(options)


if __name__ == "__main__":
    main()
