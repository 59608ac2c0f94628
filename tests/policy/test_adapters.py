"""LoRA under the protection: what enters through A alone cannot move where A is closed; DoRA, and who is refused."""

import pytest
import torch
from peft import LoraConfig, PeftModel

from aegis_policy.knowledge.adapters import open_inputs
from aegis_policy.knowledge.sources import build_anchor
from tests.policy.conftest import make_batch, make_samples, train
from tests.policy.test_knowledge import outputs_on

ALPHA, RANK = 16, 4  # dW = 4 B A: an adapter that moves far in few steps


def adapted(make_policy, *, peft=None, **options) -> PeftModel:
    """A policy that LeRobot has wrapped; adapters drawn from one seed."""
    torch.manual_seed(7)
    policy = make_policy(**options)
    return policy.wrap_with_peft(
        peft_cli_overrides={"method_type": "LORA", "r": RANK, "lora_alpha": ALPHA, **(peft or {})}
    )


def lora_layers(policy) -> dict:
    """Name of the weight inside the VLM -> the module of peft that stands in its place."""
    return {f"{n}.weight": m for n, m in policy.backbone.vlm.named_modules() if hasattr(m, "lora_A")}


def closed_inputs(policy, weight: str, count: int = 5, **closes: float) -> torch.Tensor:
    """(count, in), drawn from the closed span of a weight's inputs, each of length 1."""
    projector = policy.anchor.projectors(weights=[weight], **closes)[weight].matrix().double()
    drawn = torch.randn(count, len(projector), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    closed = drawn - drawn @ projector
    return (closed / closed.norm(dim=1, keepdim=True)).float()


@torch.no_grad()
def responses(policy, **closes: float) -> dict[str, torch.Tensor]:
    return {weight: module(closed_inputs(policy, weight, **closes)) for weight, module in lora_layers(policy).items()}


@torch.no_grad()
def difference_of_weights(policy) -> dict[str, float]:
    """||s B A|| over ||W0||."""
    return {
        weight: (module.get_delta_weight("default").norm() / module.base_layer.weight.norm()).item()
        for weight, module in lora_layers(policy).items()
    }


def moved(before: dict, after: dict) -> float:
    """The largest change of a response, relative to its size."""
    return max(((after[w] - before[w]).norm() / before[w].norm()).item() for w in before)


@pytest.mark.parametrize("closes", [{"energy": 0.9}, {"energy": 0.99}, {"energy": None, "directions": 0.4}])
def test_protected_adapters_leave_every_response_to_closed_inputs_where_it_was(make_policy, closes):
    policy = adapted(make_policy, projection="subspace", optimizer_lr=1e-2, **closes)
    before = responses(policy, **closes)
    assert len(before) == 7 * 3  # all linear maps of three language layers
    train(policy, 8)
    # not all have gone far: of the last layer keys and values alone reach the actions
    assert sorted(difference_of_weights(policy).values())[len(before) // 2] > 0.02
    # float32: A leaves the open directions by eps ||A|| a step, against ||dW|| of a tenth of ||W0||
    assert moved(before, responses(policy, **closes)) < 1e-6


def test_unprotected_adapters_move_the_same_responses_far(make_policy):
    policy = adapted(make_policy, knowledge="none", optimizer_lr=1e-2)
    before = responses(policy, energy=0.9)
    train(policy, 8)
    assert moved(before, responses(policy, energy=0.9)) > 0.05


def test_with_every_anchor_direction_closed_the_adapted_answers_to_the_anchor_stay(make_policy, tmp_path):
    samples = make_samples(1)  # fewer tokens than channels, so that open directions are left
    untrained = make_policy()
    build_anchor(untrained.backbone, untrained.vlm.processor, samples).save(tmp_path / "anchor.safetensors")
    drift = {}
    for knowledge in ("aegis", "none"):
        policy = adapted(
            make_policy,
            anchor_path=str(tmp_path / "anchor.safetensors"),
            energy=1.0,
            knowledge=knowledge,
            optimizer_lr=1e-2,
        )
        before, mask = outputs_on(policy, samples)
        train(policy, 8)
        after = outputs_on(policy, samples)[0]
        drift[knowledge] = ((before[-1] - after[-1])[mask].norm() / before[-1][mask].norm()).item()
    # second moments are float32: directions with less than about 1e-3 of the largest input are not closed
    assert drift["aegis"] < 1e-2
    assert drift["none"] > 0.1


def test_the_soft_form_shrinks_what_adapters_answer_to_inputs_by_their_energy(make_policy):
    epsilon = 1e-3
    policy = adapted(make_policy, energy=None, epsilon=epsilon, optimizer_lr=1e-2)
    train(policy, 4)
    for weight, module in lora_layers(policy).items():
        sigma = policy.anchor.second_moment(weight).double()
        values, vectors = torch.linalg.eigh(sigma)
        a = module.lora_A["default"].weight.detach().double()
        projector = policy.anchor.projectors(epsilon=epsilon, weights=[weight])[weight].matrix().double()
        free = a @ torch.linalg.inv(projector)
        share = epsilon * values.mean() / (epsilon * values.mean() + values[-1])
        largest = vectors[:, -1]
        assert share < 0.01
        # P is float32: its eigenvalue `share` is exact to eps / share, amplified by its own inverse
        torch.testing.assert_close(a @ largest, share * (free @ largest), rtol=1e-2, atol=1e-6)


def test_starting_open_changes_no_action(make_policy):
    untouched = make_policy(energy=0.9)
    noise, batch = torch.randn(3, 5, 4), make_batch(untouched, training=False)
    expected = untouched.predict_action_chunk(batch, noise)
    torch.manual_seed(7)
    policy = untouched.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": RANK})
    policy.get_optim_params()
    assert torch.equal(policy.predict_action_chunk(batch, noise), expected)


def test_only_what_enters_is_restricted_and_the_rest_is_free(make_policy):
    policy = adapted(make_policy)
    groups = policy.get_optim_params()
    restricted = {id(p) for g in groups if "layer" in g for p in g["params"]}
    free = {id(p) for g in groups if "layer" not in g for p in g["params"]}
    for module in lora_layers(policy).values():
        assert id(module.lora_A["default"].weight) in restricted
        assert id(module.lora_B["default"].weight) in free
    assert {id(p) for p in policy.parameters() if p.requires_grad} == restricted | free


def test_taking_over_open_adapters_once_more_changes_no_bit(make_policy):
    policy = adapted(make_policy, energy=0.9, projection="subspace")
    train(policy, 2)
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    policy.get_optim_params()
    assert all(torch.equal(p, before[n]) for n, p in policy.named_parameters())


def test_adapters_that_learned_outside_are_refused(make_policy):
    policy = adapted(make_policy, knowledge="none")
    train(policy, 2)
    layers = lora_layers(policy)
    trained = {n: p for n, p in policy.backbone.vlm.named_parameters() if p.requires_grad}
    weight = next(iter(layers))
    name = weight.replace(".weight", ".lora_A.default.weight")
    projectors = {name: policy.anchor.projectors(energy=0.9, weights=[weight])[weight]}
    with pytest.raises(ValueError, match="without this protection"):
        open_inputs(trained, projectors, stays=True)


@pytest.mark.parametrize("projection", ["gradient", "first_moment", "update"])
@pytest.mark.parametrize("use_dora", [False, True])
def test_every_adapter_parameter_is_in_a_protected_layer_of_an_anchor_gradient(make_policy, projection, use_dora):
    policy = adapted(make_policy, projection=projection, use_dora=use_dora, optimizer_lr=1e-3)
    groups = policy.get_optim_params()
    protected = {id(p) for g in groups if "layer" in g for p in g["params"]}
    assert {id(p) for p in policy.backbone.parameters() if p.requires_grad} == protected
    assert len({g["layer"] for g in groups if "layer" in g}) == 3
    train(policy, 3)
    _, metrics = policy.forward(make_batch(policy, seed=3))
    assert 0 <= metrics["energy_shed"] <= 1 and 0 <= metrics["projected_share"] <= 1


def test_the_anchor_gradient_of_an_adapter_is_that_of_the_distance(make_policy):
    policy = adapted(make_policy, projection="gradient")
    train(policy, 2)  # at B = 0 nothing depends on A
    batch = make_batch(policy)
    policy.train()
    policy.forward(batch)[0].backward()
    module = lora_layers(policy)["model.language_model.layers.1.mlp.down_proj.weight"]

    def distance() -> float:
        with torch.no_grad():
            return policy.eval().forward(batch)[1]["anchor_distance"]

    for weight in (module.lora_A["default"].weight, module.lora_B["default"].weight):
        gradient = weight.anchor_grad
        direction = gradient / gradient.norm()
        h, found = 1e-2, []
        for shift in (h, -2 * h, h):
            with torch.no_grad():
                weight.add_(shift * direction)
            found.append(distance())
        # central difference of a sum in float32
        assert (found[0] - found[1]) / (2 * h) == pytest.approx(gradient.norm().item(), rel=3e-2)


def test_the_step_that_adapters_take_does_not_raise_the_distance_to_first_order(make_policy):
    policy = adapted(make_policy, projection="update", optimizer_lr=1e-3)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    policy.train()
    conflicts = 0
    for step in range(4):
        loss, _ = policy.forward(make_batch(policy, seed=step))
        loss.backward()
        layers = {g["layer"]: g["params"] for g in optimizer.param_groups if g.get("layer")}
        for p in (p for params in layers.values() for p in params):
            p.anchor_grad *= (-1) ** step  # one of the two signs is a conflict
        before = {
            p: (p.detach().double().clone(), p.anchor_grad.double().clone()) for ps in layers.values() for p in ps
        }
        optimizer.step()
        optimizer.zero_grad()
        policy.update()
        for layer, params in layers.items():
            moves = torch.cat([(p.double() - before[p][0]).flatten() for p in params])
            anchor = torch.cat([before[p][1].flatten() for p in params])
            # adding the step to float32 weights of size 0.1 rounds it by 1e-5 of a step of 1e-3
            assert moves @ anchor <= 1e-4 * moves.norm() * anchor.norm()
            conflicts += bool(optimizer.layer_reports[layer].conflict)
    assert conflicts > 0


def test_dora_answers_closed_inputs_with_the_old_response_times_m_over_n_so_a_subspace_cannot_keep_it(make_policy):
    policy = adapted(make_policy, knowledge="none", use_dora=True)
    for weight, module in lora_layers(policy).items():
        x = closed_inputs(policy, weight, energy=0.9)
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        magnitude = module.lora_magnitude_vector["default"].weight
        projector = policy.anchor.projectors(energy=0.9, weights=[weight])[weight]
        with torch.no_grad():
            a.copy_(a @ projector)
            b.normal_()
            old = module.base_layer(x)
            norms = (module.base_layer.weight + ALPHA / RANK * b @ a).norm(dim=1)
            new = module(x)
            torch.testing.assert_close(new, old * magnitude / norms, rtol=1e-4, atol=1e-4 * old.abs().max().item())
            assert (new - old).norm() > 0.1 * old.norm()
            magnitude.copy_(norms)  # m = n: LoRA
            torch.testing.assert_close(module(x), old, rtol=1e-4, atol=1e-4 * old.abs().max().item())


@pytest.mark.parametrize(
    ("options", "peft", "message"),
    [
        ({"use_dora": True}, {}, "DoRA rescales"),
        ({}, {"init_type": "pissa"}, "B = 0 at the start"),
        ({}, {"lora_bias": True}, "lora_bias"),
        ({}, {"method_type": "IA3", "r": None, "lora_alpha": None}, "another form"),
        ({"use_dora": True}, {"method_type": "IA3", "r": None, "lora_alpha": None}, "use_dora makes a DoRA of LoRA"),
        ({"reference": "weights", "projection": "gradient"}, {}, "do not move"),
        ({"knowledge": "frozen"}, {}, "its adapters would stay at zero"),
        ({"knowledge": "stop_gradient"}, {}, "its adapters would stay at zero"),
        ({}, {"full_training_modules": ["action_in"]}, "Add expert to it"),
        ({"knowledge": "none"}, {"full_training_modules": []}, "Add expert to it"),
    ],
)
def test_adapters_that_cannot_be_protected_or_learn_are_refused_before_anything_is_wrapped(
    make_policy, options, peft, message
):
    with pytest.raises(ValueError, match=message):
        adapted(make_policy, peft=peft, **options)


@pytest.mark.parametrize(
    "peft", [{"target_modules": ["lm_head", "q_proj"]}, {"full_training_modules": ["expert", "multi_modal_projector"]}]
)
def test_what_trains_in_the_backbone_without_a_projector_is_named(make_policy, peft):
    policy = adapted(make_policy, peft=peft)
    with pytest.raises(ValueError, match=r"lm_head|multi_modal_projector"):
        policy.get_optim_params()


def test_a_finished_configuration_of_peft_is_judged_too(make_policy):
    policy = make_policy()
    with pytest.raises(ValueError, match="DoRA"):
        policy.wrap_with_peft(LoraConfig(target_modules=["q_proj"], use_dora=True))


def test_dora_without_adapters_is_refused(make_policy):
    with pytest.raises(ValueError, match=r"--peft\.method_type=LORA"):
        make_policy(use_dora=True).get_optim_params()


def test_a_foreign_optimizer_of_adapters_is_refused_before_the_first_step(make_policy):
    policy = adapted(make_policy).train()
    torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad])
    with pytest.raises(RuntimeError, match="use_policy_training_preset"):
        policy.forward(make_batch(policy))
