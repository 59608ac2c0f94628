import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from aegis_policy.aegis import PROJECTIONS, AegisAdamW, Projector, subspace_projector

LR, BETAS, EPS, DECAY = 1e-2, (0.9, 0.99), 1e-8, 0.1


def parameters(seed: int, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in shapes]


def set_gradients(params: list[nn.Parameter], seed: int, *, anchored: bool = True) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        if anchored:
            p.anchor_grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)  # type: ignore[attr-defined]


def vector(tensors: list[Any]) -> np.ndarray:
    return torch.cat([t.detach().double().flatten() for t in tensors]).numpy()


def optimizer_for(params: list[nn.Parameter], projection: str, **group: Any) -> AegisAdamW:
    groups = [{"params": params, "layer": "l", **group}]
    return AegisAdamW(groups, LR, BETAS, EPS, DECAY, projection=projection)


class ReferenceAdamW:
    """AdamW on one float64 vector, in numpy, from the formula; `guard` acts on the displacement."""

    def __init__(self, weights: np.ndarray) -> None:
        self.w, self.m, self.v, self.t = weights.copy(), np.zeros_like(weights), np.zeros_like(weights), 0

    def step(
        self,
        gradient: np.ndarray,
        guard: Callable[[np.ndarray], np.ndarray] = lambda d: d,
        *,
        first: np.ndarray | None = None,
    ) -> None:
        self.t += 1
        self.m = BETAS[0] * self.m + (1 - BETAS[0]) * (gradient if first is None else first)
        self.v = BETAS[1] * self.v + (1 - BETAS[1]) * gradient**2
        m_hat, v_hat = self.m / (1 - BETAS[0] ** self.t), self.v / (1 - BETAS[1] ** self.t)
        self.w = self.w + guard(-LR * (m_hat / (np.sqrt(v_hat) + EPS) + DECAY * self.w))


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"foreach": False}, {"fused": True}, {"amsgrad": True}])
def test_without_protected_groups_it_is_adamw_bit_for_bit(options: dict[str, Any]) -> None:
    def train(kind: type[torch.optim.AdamW]) -> list[nn.Parameter]:
        params = parameters(0, (4, 3), (5,), (2, 2, 2))
        groups: list[dict[str, Any]] = [{"params": params[:2]}, {"params": params[2:], "lr": 1e-3, "weight_decay": 0.0}]
        optimizer = kind(groups, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, **options)
        for step in range(20):
            set_gradients(params, step, anchored=False)
            if step % 3 == 0:
                params[1].grad = None
            optimizer.step()
        return params

    for ours, theirs in zip(train(AegisAdamW), train(torch.optim.AdamW), strict=True):
        assert torch.equal(ours, theirs)


def test_it_has_adamws_defaults_and_is_one() -> None:
    (p,) = parameters(0, (2, 2))
    ours, theirs = AegisAdamW([p]), torch.optim.AdamW([p])
    assert isinstance(ours, torch.optim.AdamW)
    assert ours.defaults == theirs.defaults
    assert ours.state_dict() == theirs.state_dict()
    assert ours.last_report == {}


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_other_groups_take_adamws_steps_bit_for_bit(projection: str) -> None:
    protected, free = parameters(0, (4, 3)), parameters(1, (5, 2), (3,))
    alone = [copy.deepcopy(p) for p in free]
    projector = torch.diag(torch.tensor([1.0, 0.0, 0.0]))
    optimizer = AegisAdamW(
        [{"params": free}, {"params": protected, "layer": "l", "projectors": [projector]}], LR, projection=projection
    )
    plain = torch.optim.AdamW(alone, LR)
    for step in range(5):
        set_gradients(protected, step)
        set_gradients(free, step, anchored=False)
        set_gradients(alone, step, anchored=False)
        optimizer.step()
        plain.step()
    assert all(torch.equal(a, b) for a, b in zip(free, alone, strict=True))


@pytest.mark.parametrize("projection", ["gradient", "first_moment", "update"])
def test_without_conflict_a_protected_layer_takes_adamws_step_bit_for_bit(projection: str) -> None:
    params = parameters(0, (4, 3), (3,))
    with torch.no_grad():
        for p in params:
            p.mul_(1e-3)  # smaller than a step, so that weight - (weight - after) would not round to after
    plain = [copy.deepcopy(p) for p in params]
    optimizer, reference = optimizer_for(params, projection), torch.optim.AdamW(plain, LR, BETAS, EPS, DECAY)
    for step in range(5):
        set_gradients(params, step, anchored=False)
        set_gradients(plain, step, anchored=False)
        before = [p.detach().clone() for p in plain]
        reference.step()
        for p, g, b, q in zip(params, [p.grad for p in params], before, plain, strict=True):
            # Agrees with the gradient, or with minus the displacement that AdamW is about to make.
            p.anchor_grad = b - q.detach() if projection == "update" else g.clone()  # type: ignore[attr-defined,union-attr]
        optimizer.step()
        assert optimizer.last_report["projected_share"] == 0
        assert all(torch.equal(p, q) for p, q in zip(params, plain, strict=True))


def halfspace(step: np.ndarray, anchor: np.ndarray) -> np.ndarray:
    """`step` without its component that points along `anchor`'s ascent."""
    d = step @ anchor
    return step - max(d, 0) / (anchor @ anchor) * anchor


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_steps_agree_with_an_independent_float64_reference(projection: str) -> None:
    params = parameters(0, (4, 3), (2, 3), dtype=torch.float64)
    x = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    projector = subspace_projector(x.T @ x / 10, epsilon=0.5)
    optimizer = optimizer_for(params, projection, projectors=[projector, projector])
    reference = ReferenceAdamW(vector(params))
    for step in range(6):
        set_gradients(params, step)
        g, a = vector([p.grad for p in params]), vector([p.anchor_grad for p in params])  # type: ignore[attr-defined]
        optimizer.step()
        if projection == "gradient":
            reference.step(-halfspace(-g, a))
        elif projection == "first_moment":
            reference.step(g, first=-halfspace(-g, a))
        elif projection == "update":
            reference.step(g, partial(halfspace, anchor=a))
        elif projection == "subspace":
            reference.step(g, lambda d: (d.reshape(-1, 3) @ projector.numpy()).reshape(-1))
        else:
            reference.step((g.reshape(-1, 3) @ projector.numpy()).reshape(-1))
        # Six steps of float64 arithmetic.
        np.testing.assert_allclose(vector(params), reference.w, rtol=0, atol=1e-13)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    lr=st.sampled_from([1e-5, 1e-3, 0.1]),
    scale=st.sampled_from([1.0, 1e-20]),
)
def test_the_step_really_taken_does_not_raise_the_penalty(
    seed: int, dtype: torch.dtype, lr: float, scale: float
) -> None:
    params = parameters(seed, (4, 3), (3,), dtype=dtype)
    optimizer = AegisAdamW([{"params": params, "layer": "l"}], lr, weight_decay=DECAY, projection="update")
    for step in range(3):
        set_gradients(params, seed + step)
        for p in params:
            p.anchor_grad *= scale  # type: ignore[attr-defined]
        anchor, before = vector([p.anchor_grad for p in params]), vector(params)  # type: ignore[attr-defined]
        optimizer.step()
        after = vector(params)
        # Each weight is rounded to its dtype when the step is added.
        rounding = torch.finfo(dtype).eps * np.linalg.norm(after) * np.linalg.norm(anchor)
        assert (after - before) @ anchor <= rounding


def test_projecting_the_gradient_alone_lets_adam_undo_it() -> None:
    # By hand: Adam's first step is minus the sign of the gradient. g = (3, -1) agrees with a = (1, 2), so nothing is
    # projected; the step (-1, 1) has <D, a> = 1 and raises the penalty.
    p = nn.Parameter(torch.zeros(2))
    optimizer = AegisAdamW([{"params": [p], "layer": "l"}], lr=1.0, weight_decay=0.0, projection="gradient")
    p.grad, p.anchor_grad = torch.tensor([3.0, -1.0]), torch.tensor([1.0, 2.0])  # type: ignore[attr-defined]
    anchor = p.anchor_grad.clone()  # type: ignore[attr-defined]
    assert p.grad.dot(anchor) > 0
    optimizer.step()
    assert p.detach().dot(anchor).item() == pytest.approx(1.0)


@pytest.mark.parametrize("projection", ["update", "subspace"])
def test_weight_decay_is_inside_the_guard(projection: str) -> None:
    (p,) = parameters(0, (4, 3))
    before = p.detach().clone()
    optimizer = optimizer_for([p], projection, projectors=[torch.zeros(3, 3)])
    p.grad = torch.zeros(4, 3)  # Adam's own part of the step is zero: only the decay moves
    p.anchor_grad = -before  # type: ignore[attr-defined]
    optimizer.step()
    # Everything is removed; what is left is the rounding of the measured displacement.
    assert (p - before).abs().max() <= torch.finfo(torch.float32).eps * before.abs().max()
    assert optimizer.last_report["energy_shed"] == pytest.approx(1)


def test_in_gradient_mode_weight_decay_is_not_guarded_as_in_the_paper() -> None:
    (p,) = parameters(0, (4, 3))
    before = p.detach().clone()
    optimizer = optimizer_for([p], "gradient")
    p.grad, p.anchor_grad = torch.zeros(4, 3), -before  # type: ignore[attr-defined]
    optimizer.step()
    torch.testing.assert_close(p.detach(), before * (1 - LR * DECAY))


@pytest.mark.parametrize(("dtype", "steps"), [(torch.float32, 500), (torch.float64, 100), (torch.bfloat16, 50)])
@pytest.mark.parametrize(("energy", "rank", "form"), [(0.9, 6, "matrix"), (1.0, 6, "closed"), (1.0, 12, "open")])
def test_no_anchor_input_in_the_closed_span_ever_sees_the_weight_move(
    dtype: torch.dtype, steps: int, energy: float, rank: int, form: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    width = 16
    x = torch.randn(200, rank, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(rank, width, generator=generator, dtype=torch.float64)
    matrix = subspace_projector(x.T @ x / len(x), energy=energy)
    closed = x @ (torch.eye(width, dtype=torch.float64) - matrix)  # what of each input lies in the closed span
    open_or_not, vectors = torch.linalg.eigh(matrix)
    projector = Projector.of_directions(vectors, open_or_not < 0.5) if form != "matrix" else matrix
    assert isinstance(projector, torch.Tensor) or projector.form == form

    (p,) = parameters(1, (8, width), dtype=dtype)
    before = p.detach().double().clone()
    largest = before.abs().max().item()
    optimizer = optimizer_for([p], "subspace", projectors=[projector])
    for step in range(steps):
        set_gradients([p], step, anchored=False)
        optimizer.step()
        largest = max(largest, p.detach().abs().max().item())
    moved = p.detach().double() - before

    # A step rounds each weight once when it is stored, by eps/2 of its size; the projection itself errs by
    # width * eps(float32) of a step of at most about 10 lr. Both act on x through its 1-norm.
    wide = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    a_step = torch.finfo(dtype).eps / 2 * largest + width * wide * 10 * LR
    assert ((closed @ moved.T).abs() <= steps * a_step * closed.abs().sum(1, keepdim=True)).all()
    assert moved.norm() > 0.1 * LR * steps**0.5  # and it did move, in the open directions


def test_restricting_the_gradient_alone_lets_adam_leave_the_open_span() -> None:
    # By hand: the input x = (1, 2) is closed, so the gradient becomes a multiple of (2, -1); Adam's first step is minus
    # its sign, (-1, 1), and moves the response to x by 1.
    x = torch.tensor([1.0, 2.0])
    p = nn.Parameter(torch.zeros(1, 2))
    group = {"params": [p], "layer": "l", "projectors": [subspace_projector(torch.outer(x, x), energy=1.0)]}
    optimizer = AegisAdamW([group], lr=1.0, weight_decay=0.0, projection="subspace_gradient")
    p.grad = torch.tensor([[3.0, 1.0]])
    optimizer.step()
    torch.testing.assert_close(p.grad @ x, torch.zeros(1))
    torch.testing.assert_close(p.detach() @ x, torch.ones(1))
    assert optimizer.last_report["energy_shed"] == pytest.approx(0.5)  # of (3, 1), whose square is 10, 5 lie along x


def test_a_projector_of_zero_freezes_and_of_one_is_adamw() -> None:
    frozen, free, plain = (parameters(0, (4, 3)) for _ in range(3))
    groups = [
        {"params": frozen, "layer": "a", "projectors": [torch.zeros(3, 3)]},
        {"params": free, "layer": "b", "projectors": [torch.eye(3)]},
    ]
    optimizer = AegisAdamW(groups, LR, projection="subspace")
    reference = torch.optim.AdamW(plain, LR)
    for step in range(5):
        for p in (*frozen, *free, *plain):
            set_gradients([p], step, anchored=False)
        optimizer.step()
        reference.step()
    assert torch.equal(frozen[0], parameters(0, (4, 3))[0])
    torch.testing.assert_close(free[0], plain[0], rtol=1e-6, atol=1e-7)
    shed = {name: r.energy_shed.item() for name, r in optimizer.layer_reports.items()}
    assert shed == {"a": 1.0, "b": 0.0}
    assert optimizer.last_report == {"energy_shed": 0.5, "projected_share": 0.5, "closed_share": 0.5}


def test_a_convolution_kernel_counts_as_out_times_rest() -> None:
    (kernel,), (matrix,) = parameters(0, (4, 2, 3)), parameters(0, (4, 6))
    projector = subspace_projector(torch.diag(torch.arange(6.0)), energy=0.8)
    for p in (kernel, matrix):
        optimizer = optimizer_for([p], "subspace", projectors=[projector])
        set_gradients([p], 0, anchored=False)
        optimizer.step()
    assert torch.equal(kernel.flatten(1), matrix)


def test_two_groups_of_one_name_are_one_layer() -> None:
    # Alone each would conflict differently; a split by weight decay must not change the layer's vector.
    for projection in ("gradient", "update"):
        split, whole = parameters(0, (4, 3), (3,)), parameters(0, (4, 3), (3,))
        optimizers = [
            AegisAdamW([{"params": [p], "layer": "l"} for p in split], LR, projection=projection),
            AegisAdamW([{"params": whole, "layer": "l"}], LR, projection=projection),
        ]
        for params, optimizer in zip((split, whole), optimizers, strict=True):
            set_gradients(params, 4)
            optimizer.step()
        assert all(torch.equal(p, q) for p, q in zip(split, whole, strict=True))


def test_the_scale_of_the_anchor_gradient_does_not_matter() -> None:
    for projection in ("gradient", "update"):
        results = []
        for scale in (1.0, 2.0**-70, 2.0**16):
            params = parameters(0, (4, 3))
            optimizer = optimizer_for(params, projection)
            for step in range(3):
                set_gradients(params, step)
                params[0].anchor_grad *= scale  # type: ignore[attr-defined]
                optimizer.step()
            results.append(params[0].detach())
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])


def test_a_parameter_without_anchor_gradient_does_not_enter_its_layers_vector() -> None:
    for projection in ("gradient", "update"):
        both, alone = parameters(0, (4, 3), (3,)), parameters(0, (4, 3), (3,))
        optimizer = optimizer_for(both, projection)
        groups = [{"params": alone[:1], "layer": "l"}, {"params": alone[1:]}]
        reference = AegisAdamW(groups, LR, BETAS, EPS, DECAY, projection=projection)
        for params in (both, alone):
            set_gradients(params, 0)
            params[1].anchor_grad = None  # type: ignore[attr-defined]
        optimizer.step()
        reference.step()
        assert all(torch.equal(p, q) for p, q in zip(both, alone, strict=True))


def test_the_anchor_gradient_is_gone_after_the_step() -> None:
    params = parameters(0, (4, 3), (3,))
    optimizer = optimizer_for(params, "update")
    set_gradients(params, 0)
    optimizer.step()
    assert all(p.anchor_grad is None for p in params)  # type: ignore[attr-defined]


def test_reports_are_floats_over_layers_and_tensors_within() -> None:
    params = parameters(0, (4, 3), (4, 3))
    groups = [{"params": [p], "layer": name} for p, name in zip(params, "ab", strict=True)]
    optimizer = AegisAdamW(groups, LR, projection="gradient")
    params[0].grad, params[0].anchor_grad = torch.ones(4, 3), -torch.ones(4, 3)  # type: ignore[attr-defined]
    params[1].grad, params[1].anchor_grad = torch.ones(4, 3), torch.ones(4, 3)  # type: ignore[attr-defined]
    optimizer.step()
    assert optimizer.last_report == {"energy_shed": 0.5, "projected_share": 0.5, "closed_share": 0.0, "cosine": 0.0}
    reports: dict[str, Tensor] = {name: r.conflict for name, r in optimizer.layer_reports.items()}
    assert {name: c.item() for name, c in reports.items()} == {"a": True, "b": False}
