"""Micro-batches whose gradients add up to one step, in a loop of one's own."""

import pytest
import torch

from aegis_policy.aegis import PROJECTIONS
from aegis_policy.knowledge.reference import Seen
from tests.policy.conftest import make_batch

SIZE = 4
PARTS = [slice(0, 1), slice(1, 4)]  # of unequal size


def start(make_policy, **options):
    torch.manual_seed(0)
    policy = make_policy(**options).train()
    return policy, policy.config.get_optimizer_preset().build(policy.get_optim_params())


def part_of(batch: dict, rows: slice) -> dict:
    return {k: v[rows] if isinstance(v, torch.Tensor) and len(v) == SIZE else v for k, v in batch.items()}


@pytest.mark.parametrize(
    "options",
    [{"knowledge": "none"}, *({"projection": p} for p in PROJECTIONS if "subspace" in p)]
    # A distance that is a mean over samples, or does not depend on them; moments of a batch are neither.
    + [
        {"projection": p, "reference": r, "reference_questions": ("What is there?",)}
        for p in ("gradient", "first_moment", "update")
        for r in ("answers", "weights")
    ],
)
def test_micro_batches_take_the_step_of_the_batch(make_policy, tiny_folder, options):
    assert tiny_folder["paligemma2"].is_dir()  # made now, for that draws random numbers
    found, projected = [], []
    for parts in ([slice(0, SIZE)], PARTS):
        policy, optimizer = start(make_policy, optimizer_lr=1e-3, optimizer_eps=1e-4, **options)
        with torch.no_grad():  # so that there is a distance
            for p in policy.backbone.parameters():
                if p.requires_grad and p.ndim == 2:
                    p.add_(0.05 * p.std() * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        start_from = [p.detach().clone() for p in policy.parameters()]
        for step in range(2):
            batch = make_batch(policy, SIZE, seed=step)
            generator = torch.Generator().manual_seed(step)
            noise = torch.randn(batch["action"].shape, generator=generator)
            time = torch.rand(SIZE, generator=generator)
            for rows in parts:
                loss, _ = policy.forward(part_of(batch, rows), noise[rows], time[rows])
                (loss * len(noise[rows]) / SIZE).backward()
            optimizer.step()
            optimizer.zero_grad()
            policy.update()
            if policy._protection is not None:
                projected.append(optimizer.last_report["projected_share"])
        found.append([p.detach() - b for p, b in zip(policy.parameters(), start_from, strict=True)])
    assert policy._protection is None or max(projected) > 0
    # Sums in another order, in float32, through two of Adam's steps, which divide by a root and by 1e-4 at least.
    whole, split = (torch.cat([move.flatten() for move in moves]) for moves in found)
    assert (whole - split).norm() < 1e-3 * whole.norm()


def test_each_micro_batch_draws_noise_and_questions_of_its_own_and_the_next_step_begins_anew(make_policy):
    policy, _ = start(make_policy, knowledge="none", cotraining_share=0.5, cotraining_samples=50)
    again, _ = start(make_policy, knowledge="none", cotraining_share=0.5, cotraining_samples=50)
    again.load_state_dict(policy.state_dict())
    batch = make_batch(policy)
    losses = []
    for _ in range(2):
        loss, metrics = policy.forward(batch)
        loss.backward()
        losses.append((metrics["flow_loss"], metrics["vqa_loss"]))
    assert losses[0][0] != losses[1][0] and losses[0][1] != losses[1][1]
    policy.update()
    again.update()
    assert policy.forward(batch)[1]["flow_loss"] == again.forward(batch)[1]["flow_loss"]


def test_each_micro_batch_asks_on_where_a_step_of_its_own_would(make_policy):
    policy, _ = start(make_policy, knowledge="none", reference="answers", penalty_weight=1.0)
    with torch.no_grad():  # so that each question has a distance of its own
        for p in policy.backbone.parameters():
            p.mul_(1.1)
    batch = make_batch(policy, 1)
    seen = Seen(batch, {}, {}, torch.ones(1, 1, dtype=torch.bool), step=3)
    ask = policy._retention._reference
    assert torch.equal(ask(seen._replace(micro_batch=1)), ask(seen._replace(step=4)))
    assert not torch.equal(ask(seen._replace(micro_batch=1)), ask(seen))
    assert seen._replace(mask=seen.mask.expand(2, 1), micro_batch=2).first(1).micro_batch == 2


def test_the_penaltys_scale_adapts_once_a_step(make_policy):
    policy, _ = start(make_policy, knowledge="none", penalty_weight=1.0, penalty_bound=1e-3)
    scales = []
    for _ in range(2):
        for _ in range(2):
            policy.forward(make_batch(policy))[0].backward()
            scales.append(policy.penalty_controller.log_scale.item())
        policy.update()
    assert scales[0] == scales[1] and scales[2] == scales[3] and scales[1] < scales[2]
