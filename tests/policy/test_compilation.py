"""A compiled expert is the same expert: losses, gradients, projections, actions, names. (Any backend compiles from the
same captured graph; `aot_eager` runs it and its backward with the usual kernels, so its numbers are the usual ones.)"""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from aegis_policy.aegis.anchor_gradient import anchor_gradient
from aegis_policy.modeling_aegis_vla import AegisVLAPolicy
from tests.policy.conftest import make_batch, take_steps
from tests.policy.test_adapters import adapted

pytestmark = pytest.mark.slow

ONE_LAYER = {"num_vlm_layers": 1}  # takes half as long to compile


@pytest.fixture(autouse=True)
def _forget_what_others_compiled():
    torch.compiler.reset()


def run(policy, *, steps: int = 2, backend: str | None = None):
    """Losses, what learned, each layer's projection in the last step, a chunk."""
    if backend:
        policy.expert.compile(backend=backend)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    losses = take_steps(policy, optimizer, range(steps))
    learned = {n: p.detach().clone() for n, p in policy.named_parameters() if p.requires_grad}
    reports = {layer: float(report.energy_shed) for layer, report in optimizer.layer_reports.items()}
    noise = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    return losses, learned, reports, policy.predict_action_chunk(make_batch(policy, training=False), noise)


def start(make_policy, **options):
    torch.manual_seed(7)
    return make_policy(optimizer_lr=1e-3, **options)


@pytest.mark.parametrize("options", [{}, {"projection": "update", "reference_every": 2, **ONE_LAYER}])
def test_losses_projections_and_what_is_learned_are_the_same(make_policy, options):
    losses, learned, reports, chunk = run(start(make_policy, **options))
    policy = start(make_policy, **options)
    its_losses, its_learned, its_reports, its_chunk = run(policy, backend="aot_eager")
    assert its_losses == losses and its_reports == reports
    assert all(torch.equal(p, learned[n]) for n, p in its_learned.items())
    assert torch.equal(its_chunk, chunk)


def test_the_anchor_gradient_survives_a_compiled_expert_that_has_acted_before(make_policy):
    found = []
    for backend in (None, "aot_eager"):
        policy = start(make_policy, projection="gradient", **ONE_LAYER)
        if backend:
            policy.expert.compile(backend=backend)
        policy.predict_action_chunk(make_batch(policy, training=False))
        policy.train()
        policy.config.get_optimizer_preset().build(policy.get_optim_params())
        policy.forward(make_batch(policy))[0].backward()
        found.append({n: anchor_gradient(p) for n, p in policy.backbone.vlm.named_parameters() if p.requires_grad})
    plain, compiled = found
    assert sum(g is not None for g in plain.values()) > 50
    for name, gradient in plain.items():
        assert (gradient is None) == (compiled[name] is None)
        assert gradient is None or torch.equal(gradient, compiled[name])


def test_it_is_one_graph_whatever_the_length_of_the_instruction(make_policy):
    policy = start(make_policy, knowledge="none", **ONE_LAYER)
    policy.expert.compile(backend="aot_eager", fullgraph=True)
    torch._dynamo.utils.counters.clear()
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    take_steps(policy, optimizer, range(1))
    for batch in (2, 3, 4, 5):  # the longest instruction grows with the batch
        take_steps(policy, optimizer, range(1), batch=batch)
    # one for the first shape and one for all others
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles C++ on a CPU")
def test_the_option_compiles_with_inductor_and_changes_actions_by_rounding_only(make_policy, tmp_path):
    policy = start(make_policy, num_inference_steps=2, **ONE_LAYER)
    batch, noise = make_batch(policy, training=False), torch.randn(3, 5, 4)
    chunk = policy.predict_action_chunk(batch, noise)
    policy.config.compile_model = True
    torch._dynamo.utils.counters.clear()
    # fused float32 kernels sum in another order; actions are of size 1
    torch.testing.assert_close(policy.predict_action_chunk(batch, noise), chunk, rtol=1e-4, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    policy.save_pretrained(tmp_path)
    assert not any("_orig_mod" in name for name in load_file(tmp_path / "model.safetensors"))
    assert AegisVLAPolicy.from_pretrained(tmp_path).config.compile_model


def test_adapters_train_beside_a_compiled_expert(make_policy):
    plain = adapted(make_policy, optimizer_lr=1e-3)
    losses, learned, _, chunk = run(plain)
    its_losses, its_learned, _, its_chunk = run(adapted(make_policy, optimizer_lr=1e-3), backend="aot_eager")
    assert its_losses == losses
    assert all(torch.equal(p, learned[n]) for n, p in its_learned.items())
    assert torch.equal(its_chunk, chunk)


def test_an_unknown_mode_is_refused(make_policy):
    with pytest.raises(ValueError, match="compile_mode must be one of default"):
        make_policy(compile_mode="fastest")
