"""Steps that are restricted together: the same weights, no drift, and nothing unrestricted ever gets out."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from aegis_policy.aegis import AegisAdamW, subspace_projector
from tests.aegis.test_optimizer import BETAS, DECAY, EPS, LR, ReferenceAdamW, parameters, set_gradients, vector

WIDTH = 6


def projector(*, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    """Closes three random directions of six."""
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x @ torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    return subspace_projector(x.T @ x, energy=1.0).to(dtype)


def optimizer_for(params: list[nn.Parameter], every: int, *, decay: float = DECAY, **options: Any) -> AegisAdamW:
    p = projector(dtype=params[0].dtype)
    group = {"params": params, "layer": "l", "projectors": [p] * len(params)}
    return AegisAdamW([group], LR, BETAS, EPS, decay, projection="subspace", projection_every=every, **options)


def train(params: list[nn.Parameter], optimizer: AegisAdamW, steps: range) -> None:
    for step in steps:
        set_gradients(params, step, anchored=False)
        optimizer.step()


def closed_part(move: np.ndarray) -> np.ndarray:
    return move.reshape(-1, WIDTH) @ (np.eye(WIDTH) - projector().numpy())


@pytest.mark.parametrize("every", [2, 5])
def test_it_is_the_sum_of_the_steps_restricted_one_by_one(every: int) -> None:
    """Adam's steps depend on the gradients alone, without decay: here on the same ones."""
    one, many = (parameters(1, (4, WIDTH), (3, WIDTH), dtype=torch.float64) for _ in range(2))
    train(one, optimizer_for(one, 1, decay=0.0), range(20))
    train(many, optimizer_for(many, every, decay=0.0), range(20))
    for a, b in zip(one, many, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_steps_agree_with_an_independent_float64_reference() -> None:
    (p,) = parameters(1, (4, WIDTH), dtype=torch.float64)
    start = vector([p])
    reference, optimizer = ReferenceAdamW(start), optimizer_for([p], 3)
    for step in range(11):
        set_gradients([p], step, anchored=False)
        gradient = vector([p.grad])
        optimizer.step()
        reference.step(gradient)
        if step % 3 == 2:
            moved = reference.w - start
            reference.w = start + (moved.reshape(-1, WIDTH) @ projector().numpy()).ravel()
        np.testing.assert_allclose(vector([p]), reference.w, rtol=0, atol=1e-12)


def test_in_between_a_weight_is_off_and_what_is_in_force_is_not() -> None:
    params = parameters(1, (4, WIDTH), dtype=torch.float64)
    before = vector(params)
    optimizer = optimizer_for(params, 4)
    train(params, optimizer, range(6))
    live = vector(params)
    assert np.abs(closed_part(live - before)).max() > LR / 10
    optimizer.put_in_force(True)
    assert np.abs(closed_part(vector(params) - before)).max() < 1e-14
    optimizer.put_in_force(True)
    assert np.abs(closed_part(vector(params) - before)).max() < 1e-14
    optimizer.put_in_force(False)
    np.testing.assert_array_equal(vector(params), live)
    train(params, optimizer, range(6, 8))  # the eighth step restricts them
    assert np.abs(closed_part(vector(params) - before)).max() < 1e-14


def test_learning_does_not_notice_that_restricted_weights_were_in_force() -> None:
    plain, asked = (parameters(1, (4, WIDTH)) for _ in range(2))
    train(plain, optimizer_for(plain, 3), range(7))
    optimizer = optimizer_for(asked, 3)
    for step in range(7):
        train(asked, optimizer, range(step, step + 1))
        optimizer.put_in_force(True)
    optimizer.put_in_force(False)
    assert torch.equal(plain[0], asked[0])


def test_rounding_does_not_add_up() -> None:
    """Each projection begins at W0: after 3,000 steps a response is off by the rounding of one, not of all of them."""
    off = {}
    for every in (1, 3):
        params = parameters(1, (4, WIDTH))
        before = vector(params)
        train(params, optimizer_for(params, every), range(3000))
        moved = vector(params) - before
        assert np.abs(moved).max() > 10 * LR
        off[every] = np.abs(closed_part(moved)).max()
    assert off[3] < off[1] / 10  # 3,000 roundings that are as often up as down come to about 50


def test_a_weight_without_gradient_at_the_last_of_the_steps_is_restricted_as_well() -> None:
    params = parameters(1, (4, WIDTH), (4, WIDTH), dtype=torch.float64)
    before = vector(params[1:])
    optimizer = optimizer_for(params, 2)
    train(params, optimizer, range(1))
    set_gradients(params, 1, anchored=False)
    params[1].grad = None
    optimizer.step()
    assert np.abs(closed_part(vector(params[1:]) - before)).max() < 1e-14
    assert np.abs(vector(params[1:]) - before).max() > LR / 10


def test_the_origin_takes_half_the_memory_where_bfloat16_holds_it_and_changes_nothing() -> None:
    (rounded,) = (nn.Parameter(p.detach().bfloat16().float()) for p in parameters(1, (4, WIDTH)))
    (other,) = parameters(1, (4, WIDTH))
    for p, dtype in ((rounded, torch.bfloat16), (other, torch.float32)):
        before = p.detach().clone()
        optimizer = optimizer_for([p], 2)
        train([p], optimizer, range(4))
        assert optimizer.state[p]["origin"].dtype == dtype
        assert torch.equal(optimizer.state[p]["origin"].float(), before)
        again = optimizer_for([p], 2)
        again.load_state_dict(optimizer.state_dict())
        assert again.state[p]["origin"].dtype == dtype
        assert torch.equal(again.state[p]["origin"].float(), before)


@pytest.mark.parametrize("steps", [4, 5])
def test_a_loaded_state_goes_on_from_restricted_weights(steps: int) -> None:
    """Exactly as if it had gone on where nothing was pending, and without any of what was where something was."""
    params = parameters(1, (4, WIDTH), dtype=torch.float64)
    before = vector(params)
    optimizer = optimizer_for(params, 2)
    train(params, optimizer, range(steps))
    optimizer.put_in_force(True)
    again = [nn.Parameter(p.detach().clone()) for p in params]
    its_optimizer = optimizer_for(again, 2)
    its_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(params, optimizer, range(steps, steps + 2))
    train(again, its_optimizer, range(steps, steps + 2))
    assert torch.equal(params[0], again[0]) == (steps % 2 == 0)
    assert np.abs(closed_part(vector(again) - before)).max() < 1e-14


def test_copies_and_pickles_accumulate_too() -> None:
    params = parameters(1, (4, WIDTH), dtype=torch.float64)
    optimizer = optimizer_for(params, 2)
    train(params, optimizer, range(1))
    for again in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        its = again.param_groups[0]["params"]
        before = again.state[its[0]]["origin"].numpy().ravel()
        train(its, again, range(1, 2))
        assert np.abs(closed_part(vector(its) - before)).max() < 1e-14


def test_reports_are_of_the_last_projection() -> None:
    params = parameters(1, (4, WIDTH))
    optimizer = optimizer_for(params, 2)
    train(params, optimizer, range(1))
    assert optimizer.last_report == {}
    train(params, optimizer, range(1, 2))
    first = optimizer.last_report
    assert 0 < first["energy_shed"] < 1
    assert first["closed_share"] == pytest.approx(0.5)
    train(params, optimizer, range(2, 3))
    assert optimizer.last_report == first


@pytest.mark.parametrize(("every", "projection"), [(0, "subspace"), (4, "update"), (4, "subspace_gradient")])
def test_what_cannot_be_restricted_together_is_refused(every: int, projection: str) -> None:
    with pytest.raises(ValueError, match=r"projection_every is a number of steps.*Leave it at 1"):
        AegisAdamW(parameters(0, (2, 2)), projection=projection, projection_every=every)
