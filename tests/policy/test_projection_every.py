"""`--policy.projection_every`: what learns may be off the open directions for a few steps, what acts never is."""

import pytest
import torch
from lerobot.optim import load_optimizer_state, save_optimizer_state
from safetensors.torch import load_file

from aegis_policy.modeling_aegis_vla import AegisVLAPolicy
from tests.policy.conftest import make_batch, take_steps
from tests.policy.test_adapter_checkpoints import resume, save
from tests.policy.test_adapters import adapted, moved, responses
from tests.policy.test_averaging import learning, start

ENERGY = 0.9
OPTIONS = {"optimizer_lr": 1e-2, "energy": ENERGY, "projection_every": 3}


def shares_closed(policy, before: dict[str, torch.Tensor]) -> list[float]:
    """Of each protected weight's way from where it began, the share of its length in closed directions."""
    shares = []
    for name, projector in policy.anchor.projectors(energy=ENERGY).items():
        way = (policy.backbone.vlm.get_parameter(name).detach() - before[f"backbone.vlm.{name}"]).double().flatten(1)
        if way.any():
            shares.append(((way - way @ projector.matrix().double()).norm() / way.norm()).item())
    return shares


def test_what_is_saved_acts_and_answers_keeps_to_the_open_directions_between_two_projections(make_policy, tmp_path):
    policy, optimizer = start(make_policy, **OPTIONS)
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    take_steps(policy, optimizer, range(5))
    assert max(shares_closed(policy, before)) > 0.1
    batch, seen = make_batch(policy, training=False), {}
    policy._monitor = lambda *_: seen.update(probed=shares_closed(policy, before)) or {}
    for name, use in {
        "saved": lambda: policy.save_pretrained(tmp_path),
        "acting": lambda: policy.predict_action_chunk(batch),
        "asked": policy.probe,
    }.items():
        policy.hold_acting_weights(False)
        use()
        seen[name] = shares_closed(policy, before)
    # float32 rounds a weight by 6e-8 of it, and its way is some hundredths of it
    assert {name: max(shares) < 1e-4 for name, shares in seen.items()} == dict.fromkeys(seen, True)
    saved, held = load_file(tmp_path / "model.safetensors"), learning(policy)
    assert all(torch.equal(p, saved[n]) for n, p in held.items() if n in saved)


def test_learning_does_not_notice_that_it_acted(make_policy):
    plain, optimizer = start(make_policy, **OPTIONS)
    losses = take_steps(plain, optimizer, range(5))
    policy, optimizer = start(make_policy, **OPTIONS)
    batch, found = make_batch(policy, training=False), []
    for step in range(5):
        found += take_steps(policy, optimizer, range(step, step + 1))
        policy.predict_action_chunk(batch)
        policy.state_dict()
    assert found == losses
    expected = {n: p for n, p in plain.state_dict().items() if p.is_floating_point()}
    assert all(torch.equal(p, expected[n]) for n, p in policy.state_dict().items() if n in expected)


def test_a_training_resumed_at_a_projection_is_the_uninterrupted_one(make_policy, tmp_path):
    policy, optimizer = start(make_policy, **OPTIONS, reference_every=1)
    take_steps(policy, optimizer, range(3))
    policy.save_pretrained(tmp_path)
    save_optimizer_state(optimizer, tmp_path)
    losses = take_steps(policy, optimizer, range(3, 8))
    again = AegisVLAPolicy.from_pretrained(tmp_path)
    assert again.config.projection_every == 3
    its_optimizer = again.config.get_optimizer_preset().build(again.get_optim_params())
    load_optimizer_state(its_optimizer, tmp_path)
    assert take_steps(again, its_optimizer, range(3, 8)) == losses


def test_protected_adapters_are_restricted_together_too(make_policy, tmp_path):
    policy = adapted(make_policy, **OPTIONS, reference_every=1)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    before = responses(policy, energy=ENERGY)
    take_steps(policy, optimizer, range(5))
    assert moved(before, responses(policy, energy=ENERGY)) > 1e-4
    policy.hold_acting_weights(True)
    assert moved(before, responses(policy, energy=ENERGY)) < 1e-6
    take_steps(policy, optimizer, range(5, 6))
    save(policy, optimizer, tmp_path)
    losses = take_steps(policy, optimizer, range(6, 8))
    again, its_optimizer = resume(tmp_path)
    assert take_steps(again, its_optimizer, range(6, 8)) == losses


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"projection_every": 0}, "projection_every must be positive: got 0"),
        ({"projection_every": 4, "projection": "update"}, "only a subspace allows"),
        ({"projection_every": 4, "knowledge": "none"}, "only a subspace allows"),
        ({"projection_every": 4, "ema_decay": 0.9}, "would average weights that are not projected yet"),
    ],
)
def test_what_it_does_not_go_with_is_refused(make_policy, options, told):
    with pytest.raises(ValueError, match=told):
        make_policy(**options)
