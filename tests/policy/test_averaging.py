"""The average of the weights: what it is, where it holds, and that learning does not notice it."""

import pytest
import torch
from lerobot.optim import load_optimizer_state, save_optimizer_state
from safetensors.torch import load_file

from aegis_policy.answering import load_vlm
from aegis_policy.modeling_aegis_vla import AegisVLAPolicy
from tests.policy.conftest import make_batch, take_steps
from tests.policy.test_adapter_checkpoints import resume, save
from tests.policy.test_adapters import adapted, moved, responses

DECAY = 0.3


def start(make_policy, **options):
    torch.manual_seed(7)
    policy = make_policy(**options)
    return policy, policy.config.get_optimizer_preset().build(policy.get_optim_params())


def learning(policy) -> dict[str, torch.Tensor]:
    """Copies of what the parameters that learn hold now."""
    return {n: p.detach().clone() for n, p in policy.named_parameters() if p.requires_grad}


def test_learning_does_not_notice_the_average_nor_that_it_acted(make_policy):
    plain, optimizer = start(make_policy, optimizer_lr=1e-2)
    losses = take_steps(plain, optimizer, range(4))
    policy, optimizer = start(make_policy, optimizer_lr=1e-2, ema_decay=DECAY)
    batch = make_batch(policy, training=False)
    found = []
    for step in range(4):
        found += take_steps(policy, optimizer, range(step, step + 1))
        policy.predict_action_chunk(batch)
        policy.state_dict()
        optimizer.state_dict()
    assert found == losses
    policy.hold_acting_weights(False)
    expected = learning(plain)
    assert all(torch.equal(p, expected[n]) for n, p in learning(policy).items())


def test_the_average_is_the_recursion_with_a_decay_that_grows_to_its_bound(make_policy):
    policy, optimizer = start(make_policy, optimizer_lr=1e-2, ema_decay=DECAY)
    average: dict[str, torch.Tensor] = {}
    for t in range(1, 7):
        take_steps(policy, optimizer, range(t, t + 1))
        live = {n: p.double() for n, p in learning(policy).items()}
        d = 0.0 if t == 1 else min(DECAY, t / (9 + t))  # diffusers' law: (1 + (t - 1)) / (10 + (t - 1))
        average = {n: d * average.get(n, p) + (1 - d) * p for n, p in live.items()}
    policy.hold_acting_weights(True)
    for name, p in learning(policy).items():
        # six steps in float32: a few roundings of the weight
        torch.testing.assert_close(p.double(), average[name], rtol=1e-6, atol=1e-6)
    gap = max((p.double() - live[n]).norm() / live[n].norm() for n, p in learning(policy).items() if live[n].any())
    assert gap > 1e-3


def test_a_step_that_is_left_out_moves_no_average(make_policy):
    policy, optimizer = start(make_policy, optimizer_lr=1e-2, ema_decay=DECAY, on_nonfinite="skip")
    take_steps(policy, optimizer, range(2))
    averages = {p: state["other_weights"].clone() for p, state in optimizer.state.items()}
    for p in averages:
        p.grad = torch.full_like(p, torch.nan)
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert all(torch.equal(optimizer.state[p]["other_weights"], average) for p, average in averages.items())


def test_putting_averages_in_force_and_back_changes_no_bit(make_policy):
    policy, optimizer = start(make_policy, optimizer_lr=1e-2, ema_decay=DECAY)
    take_steps(policy, optimizer, range(3))
    live = learning(policy)
    policy.hold_acting_weights(True)
    averages = learning(policy)
    policy.hold_acting_weights(True)
    assert all(torch.equal(p, averages[n]) for n, p in learning(policy).items())
    policy.hold_acting_weights(False)
    assert all(torch.equal(p, live[n]) for n, p in learning(policy).items())


def test_acting_probing_and_a_loss_without_gradient_see_the_average(make_policy):
    policy, optimizer = start(make_policy, optimizer_lr=1e-2, ema_decay=DECAY)
    take_steps(policy, optimizer, range(3))
    live = learning(policy)
    policy.hold_acting_weights(True)
    averages = learning(policy)
    policy.hold_acting_weights(False)
    batch = make_batch(policy)
    seen = {}

    def look(*_) -> None:
        seen["now"] = learning(policy)

    policy._monitor = lambda *_: look() or {}
    policy.backbone.vlm.base_model.register_forward_pre_hook(look)
    with torch.no_grad():
        policy.eval().forward(batch)
    assert all(torch.equal(p, averages[n]) for n, p in seen["now"].items())
    policy.train().forward(batch)
    assert all(torch.equal(p, live[n]) for n, p in seen["now"].items())
    policy.predict_action_chunk(batch)
    assert all(torch.equal(p, averages[n]) for n, p in seen["now"].items())
    policy.hold_acting_weights(False)
    policy.probe()
    assert all(torch.equal(p, averages[n]) for n, p in seen["now"].items())


@pytest.mark.parametrize("optimizer_first", [False, True])
def test_a_resumed_training_is_the_uninterrupted_one_and_the_file_holds_the_average(
    make_policy, tmp_path, optimizer_first
):
    policy, optimizer = start(make_policy, optimizer_lr=1e-2, ema_decay=DECAY)
    take_steps(policy, optimizer, range(3))
    if optimizer_first:
        save_optimizer_state(optimizer, tmp_path)
        policy.save_pretrained(tmp_path)
    else:
        policy.save_pretrained(tmp_path)
        save_optimizer_state(optimizer, tmp_path)
    policy.hold_acting_weights(True)
    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(p, saved[n]) for n, p in learning(policy).items() if n in saved)
    losses = take_steps(policy, optimizer, range(3, 6))
    again = AegisVLAPolicy.from_pretrained(tmp_path)
    its_optimizer = again.config.get_optimizer_preset().build(again.get_optim_params())
    load_optimizer_state(its_optimizer, tmp_path)
    assert take_steps(again, its_optimizer, range(3, 6)) == losses
    for averages in (False, True):
        policy.hold_acting_weights(averages)
        again.hold_acting_weights(averages)
        expected = learning(policy)
        assert all(torch.equal(p, expected[n]) for n, p in learning(again).items())


def test_a_loaded_policy_acts_on_the_average_without_its_optimizer(make_policy, tmp_path):
    policy, optimizer = start(make_policy, optimizer_lr=1e-2, ema_decay=DECAY)
    take_steps(policy, optimizer, range(3))
    policy.save_pretrained(tmp_path)
    batch, noise = make_batch(policy, training=False), torch.randn(3, 5, 4)
    expected = policy.predict_action_chunk(batch, noise)
    assert torch.equal(AegisVLAPolicy.from_pretrained(tmp_path).predict_action_chunk(batch, noise), expected)
    asked = load_vlm(str(tmp_path)).model
    assert all(torch.equal(p, policy.backbone.vlm.get_parameter(n)) for n, p in asked.named_parameters())


def test_averaging_may_begin_where_a_training_is_resumed(make_policy, tmp_path):
    policy, optimizer = start(make_policy, optimizer_lr=1e-2)
    take_steps(policy, optimizer, range(2))
    policy.save_pretrained(tmp_path)
    save_optimizer_state(optimizer, tmp_path)
    losses = take_steps(policy, optimizer, range(2, 4))
    config = type(policy.config).from_pretrained(tmp_path)
    config.ema_decay = DECAY
    again = AegisVLAPolicy.from_pretrained(tmp_path, config=config)
    its_optimizer = again.config.get_optimizer_preset().build(again.get_optim_params())
    load_optimizer_state(its_optimizer, tmp_path)
    assert take_steps(again, its_optimizer, range(2, 4)) == losses
    live = learning(again)
    again.hold_acting_weights(True)
    assert any(not torch.equal(p, live[n]) for n, p in learning(again).items())


def test_the_average_of_a_hard_subspace_keeps_every_response_to_closed_inputs(make_policy):
    energy = 0.9
    moves = {}
    for knowledge in ("aegis", "none"):
        policy, optimizer = start(make_policy, knowledge=knowledge, energy=energy, optimizer_lr=1e-2, ema_decay=DECAY)
        projectors = policy.anchor.projectors(energy=energy)
        before = {n: policy.backbone.vlm.get_parameter(n).detach().double() for n in projectors}
        take_steps(policy, optimizer, range(6))
        policy.hold_acting_weights(True)
        shares = []
        for name, projector in projectors.items():
            difference = policy.backbone.vlm.get_parameter(name).detach().double() - before[name]
            closed = difference - difference @ projector.matrix().double()
            if difference.any():
                shares.append((closed.norm() / difference.norm()).item())
        moves[knowledge] = max(shares)
    # of the average's way from W0, the share in closed directions: float32 rounds W by 1e-7, the way is a tenth of it
    assert moves["aegis"] < 1e-4
    assert moves["none"] > 0.5


def test_the_average_of_protected_adapters_keeps_them_too_and_its_checkpoint_resumes_exactly(make_policy, tmp_path):
    policy = adapted(make_policy, energy=0.9, optimizer_lr=1e-2, ema_decay=DECAY)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    before = responses(policy, energy=0.9)
    take_steps(policy, optimizer, range(6))
    policy.hold_acting_weights(True)
    assert moved(before, responses(policy, energy=0.9)) < 1e-6  # as for the live adapters
    save(policy, optimizer, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    held = learning(policy)
    assert all(torch.equal(saved[n.replace(".default", "")], p) for n, p in held.items() if ".lora_" in n)
    losses = take_steps(policy, optimizer, range(6, 8))
    again, its_optimizer = resume(tmp_path)
    assert take_steps(again, its_optimizer, range(6, 8)) == losses


def test_a_foreign_optimizer_cannot_average_and_is_refused(make_policy):
    policy = make_policy(knowledge="none", ema_decay=0.9).train()
    torch.optim.AdamW(policy.parameters())
    with pytest.raises(RuntimeError, match="ema_decay=null"):
        policy.forward(make_batch(policy))


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5])
def test_a_decay_that_averages_nothing_is_refused(make_policy, decay):
    with pytest.raises(ValueError, match="ema_decay"):
        make_policy(ema_decay=decay)
