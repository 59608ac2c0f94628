import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from aegis_policy.aegis import AegisAdamW

LR, DECAY = 1e-2, 0.1


def parameters(seed: int, *shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]


def set_gradients(params: list[nn.Parameter], seed: int, *, anchored: bool = True) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
        if anchored:
            p.anchor_grad = torch.randn(p.shape, generator=generator)  # type: ignore[attr-defined]


def optimizer_for(params: list[nn.Parameter], projection: str, **group: Any) -> AegisAdamW:
    groups = [{"params": params, "layer": "l", **group}]
    return AegisAdamW(groups, LR, weight_decay=DECAY, projection=projection)


def test_a_parameter_that_the_subspace_cannot_protect_is_refused() -> None:
    weight, bias = parameters(0, (4, 3), (4,))
    with pytest.raises(ValueError, match=r"requires_grad_\(False\)"):
        optimizer_for([weight, bias], "subspace", projectors=[torch.eye(3), None])
    bias.requires_grad_(False)
    optimizer = optimizer_for([weight, bias], "subspace", projectors=[torch.eye(3), None])
    set_gradients([weight], 0, anchored=False)
    optimizer.step()
    bias.requires_grad_(True)  # unfrozen behind the optimizer's back
    set_gradients([weight, bias], 1, anchored=False)
    before = weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"shape \(4,\) in layer 'l'"):
        optimizer.step()
    assert torch.equal(weight, before)


@pytest.mark.parametrize("projection", ["gradient", "update"])
def test_a_layer_without_any_anchor_gradient_stops_training_before_anything_moves(projection: str) -> None:
    params = parameters(0, (4, 3), (4, 3))
    groups = [{"params": params[:1]}, {"params": params[1:], "layer": "l"}]
    optimizer = AegisAdamW(groups, LR, projection=projection)
    set_gradients(params, 0, anchored=False)
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match="layer 'l' has task gradients and no anchor gradient"):
        optimizer.step()
    assert all(torch.equal(b, p) for b, p in zip(before, params, strict=True))


def test_a_layer_that_took_no_part_in_the_loss_is_left_alone() -> None:
    params = parameters(0, (4, 3))
    optimizer = optimizer_for(params, "update")
    optimizer.step()
    assert optimizer.last_report == {}


def test_groups_that_do_not_fit_are_refused() -> None:
    (p,) = parameters(0, (4, 3))
    cases: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("is one of gradient, first_moment, update, subspace", {}, {"projection": "none"}),
        ("Minimise the negative", {"layer": "l"}, {"maximize": True}),
        ("name is a string", {"layer": 3}, {}),
        ("so it is named", {"projectors": [torch.eye(3)]}, {"projection": "subspace"}),
        ('"projectors" parallel to "params"', {"layer": "l"}, {"projection": "subspace"}),
        ("2 projectors", {"layer": "l", "projectors": [None] * 2}, {"projection": "subspace"}),
        ("it is .4, 4. for .4, 3.", {"layer": "l", "projectors": [torch.eye(4)]}, {"projection": "subspace"}),
    ]
    for message, group, options in cases:
        with pytest.raises(ValueError, match=message):
            AegisAdamW([{"params": [p], **group}], **options)


def test_copies_and_pickles_stay_protected() -> None:
    for duplicate in (copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))):
        (p,) = parameters(0, (4, 3))
        optimizer = duplicate(optimizer_for([p], "subspace", projectors=[torch.zeros(3, 3)]))
        (q,) = optimizer.param_groups[0]["params"]
        before = q.detach().clone()
        set_gradients([q], 0, anchored=False)
        optimizer.step()
        assert torch.equal(q, before)


def test_the_callers_groups_are_left_as_they_are() -> None:
    (p,) = parameters(0, (4, 3))
    group = {"params": [p], "layer": "l", "projectors": [torch.eye(3)]}
    AegisAdamW([group], projection="subspace")
    assert group.keys() == {"params", "layer", "projectors"}


def test_named_parameters_are_taken_as_by_torch() -> None:
    (p,) = parameters(0, (4, 3))
    group = {"params": [("w", p)], "layer": "l", "projectors": [torch.eye(3)]}
    optimizer = AegisAdamW([group], projection="subspace")
    set_gradients([p], 0, anchored=False)
    optimizer.step()
    assert optimizer.param_groups[0]["param_names"] == ["w"]


def test_a_guard_is_attached_once_when_the_optimizer_is_ready() -> None:
    class Guard:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def attach(self, optimizer: AegisAdamW) -> None:
            self.seen.append(len(optimizer.param_groups))

    guard, late = Guard(), Guard()
    params = parameters(0, (4, 3), (4, 3), (4, 3))
    groups = [{"params": [p], "layer": str(i), "guard": guard} for i, p in enumerate(params[:2])]
    optimizer = AegisAdamW(groups)
    optimizer.add_param_group({"params": params[2:], "layer": "2", "guard": late})
    assert guard.seen == [2]
    assert late.seen == [3]
    assert not any("guard" in group for group in optimizer.param_groups)


def test_a_projector_shared_by_weights_stays_one_tensor() -> None:
    params = parameters(0, (4, 3), (5, 3))
    projector = torch.eye(3, dtype=torch.float64)  # converted once, when first used
    optimizer = optimizer_for(params, "subspace", projectors=[projector, projector])
    set_gradients(params, 0, anchored=False)
    optimizer.step()
    first, second = (optimizer._restrictions.of(p) for p in params)
    assert first is second
    assert first.dtype == torch.float32
