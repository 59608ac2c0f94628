"""Mixed precision: what runs in half, what must not, and what the step that is really taken keeps."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from lerobot.scripts.lerobot_train import update_policy
from lerobot.utils.logging_utils import AverageMeter, MetricsTracker

from aegis_policy.aegis.anchor_gradient import anchor_gradient
from aegis_policy.aegis.wasserstein import wasserstein2
from aegis_policy.knowledge.drift import watch_outputs
from aegis_policy.knowledge.reference import REFERENCES, Seen
from aegis_policy.knowledge.sources import build_anchor
from aegis_policy.modeling_aegis_vla import vlm_inputs
from aegis_policy.network.prompt import encode_prompts
from tests.policy.conftest import make_batch, make_samples
from tests.policy.tiny_backbones import FAMILIES

HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture
def accelerate_alone():
    """accelerate keeps one state a process: nobody's before this test, nobody's after it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def start(make_policy, family: str = "paligemma2", **options):
    torch.manual_seed(0)
    policy = make_policy(family, **options).train()
    return policy, policy.config.get_optimizer_preset().build(policy.get_optim_params())


def gradients(policy, batch, dtype) -> dict[str, torch.Tensor]:
    with torch.autocast("cpu", dtype):
        loss, _ = policy.forward(batch)
    loss.backward()
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


def train(policy, optimizer, dtype, *, steps: int = 3) -> torch.amp.GradScaler:
    """A trainer's loop with autocast around the forward pass, and a loss scaler where float16 needs one."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**11, enabled=dtype is torch.float16)
    for step in range(steps):
        with torch.autocast("cpu", dtype):
            loss, _ = policy.forward(make_batch(policy, seed=step))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        policy.update()
    return scaler


@pytest.mark.parametrize(
    ("family", "dtype"),
    [*((family, torch.bfloat16) for family in FAMILIES), ("gemma3", torch.float16), ("smolvlm2", torch.float16)],
)
def test_every_family_trains_in_half_around_float32_weights(make_policy, family, dtype):
    policy, optimizer = start(make_policy, family, projection="update", optimizer_lr=1e-3)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    scaler = train(policy, optimizer, dtype)
    assert all(p.dtype is torch.float32 and p.isfinite().all() for p in policy.parameters())
    assert all(t.dtype is torch.float32 for state in optimizer.state.values() for t in state.values())
    moved = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    first = next(iter(policy.backbone.layers()))
    assert {name for name in before if first in name or "expert.action" in name} <= moved
    assert not scaler.is_enabled() or scaler.get_scale() == 2.0**11  # no overflow: every step was taken


@pytest.mark.parametrize("dtype", HALVES)
def test_in_half_too_the_step_that_is_taken_leaves_closed_directions_alone(make_policy, dtype):
    policy, optimizer = start(make_policy, projection="subspace", energy=0.9, optimizer_lr=1e-2)
    weights = {n: policy.backbone.vlm.get_parameter(n) for n in policy.anchor.weights}
    before = {name: w.detach().double().clone() for name, w in weights.items()}
    train(policy, optimizer, dtype, steps=4)
    moved = 0
    for name, projector in policy.anchor.projectors(energy=0.9).items():
        step = weights[name].detach().double() - before[name]
        if not step.any():  # what comes behind the last layer's keys and values acts on nothing
            continue
        moved += 1
        width = step.flatten(1).shape[1]
        through = step.flatten(1) @ (torch.eye(width) - projector.matrix()).double()
        # Weights of size 1 round to 1e-7 in each of four steps; half precision would leave 1e-3 of the step, 1e-5.
        assert through.norm() < 1e-4 * step.norm()
    assert moved > 0.7 * len(weights)


@pytest.mark.parametrize("dtype", HALVES)
def test_in_half_too_the_step_does_not_raise_the_distance(make_policy, dtype):
    policy, optimizer = start(make_policy, projection="update")
    gradients(policy, make_batch(policy), dtype)
    layers = {
        group["layer"]: [
            (p, p.detach().clone(), p.anchor_grad.clone()) for p in group["params"] if anchor_gradient(p) is not None
        ]
        for group in optimizer.param_groups
        if "layer" in group
    }
    optimizer.step()
    for layer in optimizer.layer_reports:
        moves = [((p.detach().double() - b.double()) * a.double()).sum() for p, b, a in layers[layer]]
        sizes = [(p.detach().norm() * a.norm()).item() for p, _, a in layers[layer]]
        # Each weight is rounded to float32 when the step is added.
        assert sum(moves) <= torch.finfo(torch.float32).eps * sum(sizes)
    assert optimizer.last_report["projected_share"] > 0


@pytest.mark.parametrize("dtype", HALVES)
def test_distances_to_the_anchor_are_sums_in_float32_even_of_what_is_half(make_policy, dtype):
    policy, _ = start(make_policy, "smolvlm2", projection="gradient")
    with torch.autocast("cpu", dtype):
        with watch_outputs(policy.backbone.layers()) as outputs:
            mask = policy.backbone.encode(vlm_inputs(make_batch(policy))).mask
        half = {name: output.to(dtype) for name, output in outputs.items()}
        found = policy._retention.distances(half, mask, training=True)
    assert found.dtype is torch.float32
    for (name, output), distance in zip(half.items(), found, strict=True):
        rows = output.detach().double()[mask]
        exact = wasserstein2(
            rows.mean(0), rows.std(0, correction=0), policy.anchor.mean(name).double(), policy.anchor.std(name).double()
        )
        # Float32 keeps seven digits; in half the sum would keep two or three.
        assert distance.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("reference", REFERENCES)
def test_every_reference_measures_in_float32(make_policy, reference):
    policy, _ = start(make_policy, "smolvlm2", knowledge="none", reference=reference, penalty_weight=1.0)
    batch = make_batch(policy)
    with torch.autocast("cpu", torch.bfloat16):
        with watch_outputs(policy.backbone.layers()) as outputs:
            prefix = policy.backbone.encode(vlm_inputs(batch))
        distance = policy._retention._reference(Seen(batch, vlm_inputs(batch), outputs, prefix.mask, 0))
    assert distance.dtype is torch.float32 and distance.isfinite().all()


def test_anchors_and_projectors_do_not_depend_on_the_autocast_around_them(make_policy):
    policy = make_policy()
    plain = build_anchor(policy.backbone, policy.vlm.processor, make_samples(3))
    closed = plain.projectors(energy=0.9)
    with torch.autocast("cpu", torch.bfloat16):
        within = build_anchor(policy.backbone, policy.vlm.processor, make_samples(3))
        closed_within = within.projectors(energy=0.9)
    for layer in plain.layers:
        assert torch.equal(plain.mean(layer), within.mean(layer)) and torch.equal(plain.std(layer), within.std(layer))
    assert all(torch.equal(plain.second_moment(w), within.second_moment(w)) for w in plain.weights)
    assert all(torch.equal(closed[w].basis, closed_within[w].basis) for w in plain.weights)


def test_the_monitor_asks_in_float32_wherever_it_is_called(make_policy):
    policy, _ = start(make_policy, probe_freq=5)
    samples = make_samples(2)

    @torch.no_grad()
    def monitor(vlm, step):
        inputs = encode_prompts(vlm.processor, [s.images for s in samples], [s.question for s in samples])
        return {"score": vlm.model(**inputs).logits.double().sum().item()}

    policy._monitor = monitor
    batch = make_batch(policy)
    found = gradients(policy, batch, torch.bfloat16)  # the first forward pass asks
    within = policy._scores
    assert policy.probe() == within
    # Nor is the step another one: what autocast casts without gradients and kept would lead nowhere.
    unasked = start(make_policy)[0]
    unasked.load_state_dict(policy.state_dict())
    expected = gradients(unasked, batch, torch.bfloat16)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_answers_teach_in_half_what_actions_only_read(make_policy):
    """Under stop_gradient the same weights run without gradients first and with them then, in one autocast."""
    policy, _ = start(make_policy, knowledge="stop_gradient", cotraining_share=0.5, cotraining_samples=20)
    found = gradients(policy, make_batch(policy), torch.bfloat16)
    assert {f"backbone.vlm.{name}.self_attn.q_proj.weight" for name in policy.backbone.layers()} <= found.keys()


@pytest.mark.parametrize(
    ("options", "micro_batches"),
    [
        ({"knowledge": "none"}, 1),
        ({"projection": "subspace"}, 1),
        ({"projection": "gradient"}, 2),
        ({"projection": "update", "reference_every": 3}, 1),
        ({"projection": "gradient", "reference": "features", "gradient_checkpointing": True}, 1),
    ],
)
def test_overflows_cost_steps_and_nothing_else(make_policy, accelerate_alone, options, micro_batches):
    """accelerate's way under float16, with the scaler that torch has for a CPU: skip the step, lower the scale."""
    Accelerator(cpu=True)

    def begin(scale: float):
        policy, optimizer = start(make_policy, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=2.0**-4)
        return policy, AcceleratedOptimizer(optimizer, device_placement=False, scaler=scaler), scaler

    def step(policy, optimizer, scaler, number: int) -> bool:
        policy.progress.training_steps.fill_(number)
        for part in range(micro_batches):
            with torch.autocast("cpu", torch.float16):
                loss, _ = policy.forward(make_batch(policy, seed=10 * number + part))
            scaler.scale(loss / micro_batches).backward()
        scaler.unscale_(optimizer.optimizer)
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        policy.update()
        return not optimizer.step_was_skipped

    policy, optimizer, scaler = begin(2.0**32)
    before = [p.detach().clone() for p in policy.parameters()]
    initial = {name: value.clone() for name, value in policy.state_dict().items()}
    skipped = 0
    while not step(policy, optimizer, scaler, 0):
        skipped += 1
        assert all(torch.equal(p, b) for p, b in zip(policy.parameters(), before, strict=True))
        assert not optimizer.optimizer.state and not optimizer.optimizer.last_report
        assert all(anchor_gradient(p) is None for p in policy.parameters())
    assert 0 < skipped < 8 and optimizer.optimizer.skipped_steps == 0  # the scaler's affair, no failure

    # The first step that fits is that of a run which began at its scale, bit for bit; so is the one after it.
    fresh, its_optimizer, its_scaler = begin(scaler.get_scale())
    fresh.load_state_dict(initial)
    assert step(fresh, its_optimizer, its_scaler, 0)
    for number in (0, 1):
        if number:
            assert step(policy, optimizer, scaler, number) == step(fresh, its_optimizer, its_scaler, number)
        assert all(torch.equal(p, q) for p, q in zip(policy.parameters(), fresh.parameters(), strict=True))
        assert optimizer.optimizer.last_report == its_optimizer.optimizer.last_report
    assert not all(torch.equal(p, b) for p, b in zip(policy.parameters(), before, strict=True))


@pytest.mark.parametrize("projection", ["subspace", "update"])
def test_lerobots_step_in_bfloat16_is_autocast_around_float32_weights(make_policy, accelerate_alone, projection):
    """`--policy.dtype=bfloat16` is accelerate's mixed precision in lerobot-train; its step is run here."""
    policy, optimizer = start(make_policy, projection=projection, dtype="bfloat16")
    accelerator = Accelerator(mixed_precision="bf16", cpu=True, step_scheduler_with_optimizer=False)
    policy, optimizer = accelerator.prepare(policy, optimizer)
    seen = []
    down = policy.backbone.decoder.layers[1].mlp.down_proj
    down.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    meters = {name: AverageMeter(name) for name in ("loss", "grad_norm", "lr", "update_s", "gpu_mem_gb")}
    tracker = MetricsTracker(3, 3, 1, meters, accelerator=accelerator)
    before = down.weight.detach().clone()
    for step in range(2):
        update_policy(tracker, policy, make_batch(policy, seed=step), optimizer, 1.0, accelerator)
    assert set(seen) == {torch.bfloat16}
    assert down.weight.dtype is torch.float32 and not torch.equal(down.weight, before)
    assert int(policy.progress.training_steps) == 2
    assert optimizer.optimizer.last_report["energy_shed"] > 0
