"""nan and inf, seen from the policy: what is told, and what stays as it was."""

import logging

import pytest
import torch

from aegis_policy.aegis import PROJECTIONS
from tests.policy.conftest import make_batch

WAYS = [{"knowledge": "none"}, *({"projection": projection} for projection in PROJECTIONS)]


def start(make_policy, **options):
    torch.manual_seed(0)
    policy = make_policy(**options).train()
    return policy, policy.config.get_optimizer_preset().build(policy.get_optim_params())


def step(policy, optimizer, batch) -> None:
    """One of lerobot-train's."""
    loss, _ = policy.forward(batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), policy.config.optimizer_grad_clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    policy.update()


def kept(policy, optimizer) -> list[torch.Tensor]:
    state = [t.clone() for one in optimizer.state.values() for t in one.values()]
    buffers = [b.clone() for name, b in policy.named_buffers() if name != "progress.training_steps"]
    return [p.detach().clone() for p in policy.parameters()] + state + buffers


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def spoilt(policy) -> dict:
    batch = make_batch(policy, seed=1)
    batch["observation.state"][1, 2] = torch.nan
    return batch


@pytest.mark.parametrize("options", WAYS)
def test_a_loss_that_is_no_number_stops_training_and_names_the_batchs_entry(make_policy, options):
    policy, optimizer = start(make_policy, **options)
    step(policy, optimizer, make_batch(policy))
    before = kept(policy, optimizer)
    with pytest.raises(FloatingPointError, match=r"step 1 flow_loss is nan\. In the batch observation\.state has nan"):
        step(policy, optimizer, spoilt(policy))
    assert same(before, kept(policy, optimizer))


@pytest.mark.parametrize("options", WAYS)
def test_skipped_it_leaves_the_weights_and_training_goes_on(make_policy, options, caplog):
    policy, optimizer = start(make_policy, on_nonfinite="skip", **options)
    step(policy, optimizer, make_batch(policy))
    before = kept(policy, optimizer)
    with caplog.at_level(logging.WARNING):
        step(policy, optimizer, spoilt(policy))
    assert "flow_loss is nan" in caplog.text and "Nothing of this step was written" in caplog.text
    assert same(before, kept(policy, optimizer))
    step(policy, optimizer, make_batch(policy, seed=2))
    assert optimizer.skipped_steps == 1
    assert not same(before, kept(policy, optimizer))
    assert all(t.isfinite().all() for t in kept(policy, optimizer))


def test_the_layer_from_which_on_activations_are_not_finite_is_named(make_policy):
    policy, _ = start(make_policy)
    name, layer = list(policy.backbone.layers().items())[1]
    with torch.no_grad():
        layer.mlp.down_proj.weight[0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match=f"Everything in the batch is finite.*from layer '{name}' on"):
        policy.forward(make_batch(policy))


@pytest.mark.parametrize("options", WAYS)
def test_a_gradient_that_is_no_number_is_named_by_its_layer_in_spite_of_clipping(make_policy, options):
    policy, optimizer = start(make_policy, **options)
    name, layer = list(policy.backbone.layers().items())[1]
    before_it = (
        1 if options.get("projection") in ("gradient", "first_moment", "update") else 0
    )  # the distance's backward
    passes = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        passes.append(gradient)
        return gradient * torch.nan if len(passes) > before_it else gradient

    def watch(module, inputs, output) -> None:
        output.register_hook(spoil)

    before = kept(policy, optimizer)
    handle = layer.register_forward_hook(watch)
    with pytest.raises(
        FloatingPointError, match=rf"The gradient of .*'{name}'( \(\d+ layers\))?, beginning with the last,"
    ):
        step(policy, optimizer, make_batch(policy))
    handle.remove()
    assert same(before, kept(policy, optimizer))


@pytest.mark.parametrize("projection", ["gradient", "first_moment", "update"])
@pytest.mark.parametrize("wish", ["stop", "skip"])
def test_an_anchor_gradient_that_is_no_number_is_never_written(make_policy, projection, wish, caplog):
    policy, optimizer = start(make_policy, projection=projection, reference_every=2, on_nonfinite=wish)
    name, weight = next((n, p) for n, p in policy.backbone.vlm.named_parameters() if n.endswith("1.mlp.up_proj.weight"))
    reference = policy._retention._reference
    policy._retention._reference = lambda seen: reference(seen).sum() + torch.inf * weight[0, 0]
    before = kept(policy, optimizer)
    told = f"The anchor gradient of '{name.removesuffix('.mlp.up_proj.weight')}' has nan or inf"
    if wish == "stop":
        with pytest.raises(FloatingPointError, match=told):
            step(policy, optimizer, make_batch(policy))
    else:
        with caplog.at_level(logging.WARNING):
            step(policy, optimizer, make_batch(policy))
        assert told in caplog.text
    assert same(before, kept(policy, optimizer))
    # What was kept for the next step was this gradient: it is not used again.
    policy._retention._reference = reference
    optimizer.zero_grad()
    policy.progress.training_steps.fill_(1)
    step(policy, optimizer, make_batch(policy, seed=1))
    assert not same(before, kept(policy, optimizer))


def test_a_distance_that_is_no_number_does_not_stay_in_the_penaltys_scale(make_policy):
    policy, optimizer = start(make_policy, knowledge="none", penalty_weight=1.0, penalty_bound=1.0, on_nonfinite="skip")
    reference = policy._retention._reference
    policy._retention._reference = lambda seen: reference(seen) * torch.nan
    step(policy, optimizer, make_batch(policy))
    assert policy.penalty_controller.log_scale == 0
    assert optimizer.skipped_steps == 1


def test_another_wish_is_refused(make_policy):
    with pytest.raises(ValueError, match="on_nonfinite must be one of stop, skip"):
        make_policy(on_nonfinite="ignore")
