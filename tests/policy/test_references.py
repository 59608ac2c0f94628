"""What counts as knowledge: each reference is nothing where nothing has moved, grows, and leads back."""

import copy

import pytest
import torch

from aegis_policy.knowledge.drift import watch_outputs
from aegis_policy.knowledge.reference import REFERENCES, Seen
from aegis_policy.knowledge.references import answers
from aegis_policy.network.prompt import encode_prompts, to_uint8
from aegis_policy.processor_aegis_vla import vlm_inputs
from tests.policy.conftest import make_batch, say, train
from tests.policy.tiny_backbones import DIFFERENT

OF_THE_TEACHER = ("batch_moments", "kind_moments", "features", "answers", "weights")  # zero for the untouched backbone


def see(policy, batch) -> Seen:
    inputs = vlm_inputs(batch)
    with watch_outputs(policy.backbone.layers()) as outputs:
        prefix = policy.backbone.encode(inputs)
    return Seen(batch, inputs, outputs, prefix.mask, 0)


def penalised(make_policy, reference: str, family: str = "paligemma2", **options):
    return make_policy(family, knowledge="none", reference=reference, penalty_weight=1.0, **options)


def disturb(policy, *, by: float = 0.05) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in policy.backbone.named_parameters():
            if p.requires_grad and p.ndim == 2 and policy.backbone.is_language(name.removeprefix("vlm.")):
                p.add_(by * p.std() * torch.randn_like(p))


@pytest.mark.parametrize("family", DIFFERENT)
@pytest.mark.parametrize("reference", OF_THE_TEACHER)
def test_nothing_has_moved_yet(make_policy, reference, family):
    policy = penalised(make_policy, reference, family)
    distance = policy._retention._reference(see(policy, make_batch(policy))).sum()
    assert distance.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("reference", REFERENCES)
def test_descending_its_gradient_leads_back(make_policy, reference):
    policy = penalised(make_policy, reference)
    disturb(policy)
    batch = make_batch(policy)
    learns = [p for p in policy.backbone.parameters() if p.requires_grad]
    before = policy._retention._reference(see(policy, batch)).sum()
    gradients = torch.autograd.grad(before, learns, allow_unused=True)
    length = sum(g.square().sum() for g in gradients if g is not None)
    with torch.no_grad():
        for p, g in zip(learns, gradients, strict=True):
            if g is not None:
                p.sub_(0.05 * before.detach() / length * g)
        after = policy._retention._reference(see(policy, batch)).sum()
    assert 0 < after < before


@pytest.mark.parametrize("reference", REFERENCES)
def test_the_penalty_is_added_to_the_loss_and_logged(make_policy, reference):
    policy = penalised(make_policy, reference)
    disturb(policy)
    batch = make_batch(policy)
    noise, time = policy.progress.draw(batch["action"], micro_batch=0)
    policy.train()
    loss, metrics = policy.forward(batch, noise, time)
    assert metrics["penalty"] > 0
    assert loss.item() == pytest.approx(metrics["flow_loss"] + metrics["penalty"], rel=1e-5)
    policy.eval()
    assert policy.forward(batch, noise, time)[0].item() == pytest.approx(metrics["flow_loss"], rel=1e-5)


def test_a_strong_penalty_on_features_keeps_them(make_policy):
    def moved(**options) -> float:
        torch.manual_seed(0)
        policy = make_policy(knowledge="none", optimizer_lr=3e-3, **options)
        train(policy, 12)
        judge = penalised(make_policy, "features")
        judge.backbone.load_state_dict(policy.backbone.state_dict())
        return judge._retention._reference(see(judge, make_batch(judge, seed=99))).sum().item()

    assert moved(reference="features", penalty_weight=30.0) < 0.5 * moved()


@pytest.mark.parametrize("family", DIFFERENT)
def test_all_of_an_answer_counts(make_policy, family):
    """The distance of a batch is that of its samples one by one, without padding, through the VLM's own generate."""
    policy = penalised(
        make_policy, "answers", family, reference_questions=("What?", "Is anything on the table, and where?")
    )
    untouched = copy.deepcopy(policy.backbone.vlm).eval()
    batch = make_batch(policy, 2)
    reference = policy._retention._reference
    reference(see(policy, batch))  # loads the teacher
    disturb(policy)
    found = reference(see(policy, batch)).sum()
    divergences = []
    for i, question in enumerate(policy.config.reference_questions):
        views = [[to_uint8(batch[key])[i] for key in policy.config.image_features]]
        prompt = encode_prompts(policy.vlm.processor, views, [question])
        said, before = say(untouched, prompt)
        again, now = say(policy.backbone.vlm, prompt, only=said)
        assert torch.equal(again, said)
        divergences.append((before.exp() * (before - now)).sum(-1))
    found_alone = torch.cat(divergences)
    assert len(found_alone) > 2  # more than a token each
    torch.testing.assert_close(found, found_alone.mean(), rtol=1e-3, atol=1e-6)


def test_every_question_comes_up_however_rarely_they_are_asked(make_policy, monkeypatch):
    asked: set[str] = set()

    def listen(processor, images, prompts, **options):
        asked.update(prompts)
        return encode_prompts(processor, images, prompts, **options)

    monkeypatch.setattr(answers, "encode_prompts", listen)
    questions = tuple(f"Question {i}?" for i in range(4))
    policy = penalised(make_policy, "answers", reference_questions=questions, reference_every=2, reference_samples=1)
    seen = see(policy, make_batch(policy)).first(1)
    for step in range(0, 8, 2):
        policy._retention._reference(seen._replace(step=step))
    assert asked == set(questions)


@pytest.mark.parametrize("reference", ["features", "answers", "batch_moments"])
def test_a_few_samples_are_as_good_as_a_batch_of_those(make_policy, reference):
    policy = penalised(make_policy, reference, reference_samples=2)
    disturb(policy)
    seen = see(policy, make_batch(policy, 4))
    alone = see(policy, {k: v[:2] if isinstance(v, torch.Tensor) else v for k, v in make_batch(policy, 4).items()})
    few, two = policy._retention._reference(seen.first(2)), policy._retention._reference(alone)
    torch.testing.assert_close(few, two, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", DIFFERENT)
def test_rows_of_a_sample_stay_together(make_policy, family):
    policy = penalised(make_policy, "features", family, cameras=2)
    inputs = see(policy, make_batch(policy, 4)).first(2).inputs
    prefix = policy.backbone.encode(dict(inputs))  # a model's own check of images against image tokens
    assert len(prefix.mask) == 2


@pytest.mark.parametrize("projection", ["gradient", "first_moment", "update"])
def test_the_projection_reads_the_reference(make_policy, projection):
    policy = make_policy(projection=projection, reference="features", reference_samples=2).train()
    disturb(policy)
    policy.config.get_optimizer_preset().build(policy.get_optim_params())
    batch = make_batch(policy)
    policy.forward(batch)[0].backward()
    name = "model.language_model.layers.1.mlp.down_proj.weight"
    weight = policy.backbone.vlm.get_parameter(name)
    expected = torch.autograd.grad(policy._retention._reference(see(policy, batch).first(2)).sum(), weight)[0]
    torch.testing.assert_close(weight.anchor_grad, expected, rtol=1e-3, atol=1e-7)


def test_between_two_looks_the_gradient_of_the_last_one_is_kept(make_policy):
    policy = make_policy(projection="update", reference="features", reference_every=3).train()
    disturb(policy)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    weight = policy.backbone.vlm.get_parameter("model.language_model.layers.1.mlp.down_proj.weight")
    found = []
    for step in range(5):
        policy.forward(make_batch(policy, seed=step))[0].backward()
        found.append(weight.anchor_grad.clone())
        optimizer.step()
        optimizer.zero_grad()
        policy.update()
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert not torch.equal(found[2], found[3]) and torch.equal(found[3], found[4])
    policy._protection._last.clear()  # as after a restart: the sixth step would not look by itself
    policy.forward(make_batch(policy, seed=5))[0].backward()
    assert not torch.equal(found[4], weight.anchor_grad)


def test_a_penalty_that_comes_every_third_step_weighs_three_times_as_much(make_policy):
    rare, always = (
        make_policy(knowledge="none", reference="features", penalty_weight=0.5, reference_every=every).train()
        for every in (3, 1)
    )
    always.backbone.load_state_dict(rare.backbone.state_dict())
    disturb(rare)
    disturb(always)
    batch = make_batch(rare)
    found = []
    for _ in range(6):
        found.append(rare.forward(batch)[1].get("penalty"))
        rare.update()
    assert [one is None for one in found] == [True, True, False] * 2
    assert found[2] == found[5] == pytest.approx(3 * always.forward(batch)[1]["penalty"], rel=1e-4)


def test_kinds_of_tokens_are_compared_apart(make_policy):
    """What image tokens gain and the others lose cancels in the moments of all, not in those of each kind."""
    policy = penalised(make_policy, "kind_moments")
    seen = see(policy, make_batch(policy))
    of_images = seen.inputs["input_ids"] == policy.backbone.image_token
    assert of_images.any() and (seen.mask & ~of_images).any()
    shift = torch.where(of_images, 1 / of_images.sum(), -1 / (seen.mask & ~of_images).sum()).unsqueeze(-1)
    shifted = seen._replace(outputs={name: output + 10 * shift for name, output in seen.outputs.items()})
    apart = policy._retention._reference(shifted)
    together = penalised(make_policy, "batch_moments")._retention._reference(shifted)
    assert len(apart) == 2 * len(together)

    def of_means(share):  # the squared shift of the mean, in each of the D channels
        width = next(iter(seen.outputs.values())).shape[-1]
        return width * (10 * share) ** 2

    text = (seen.mask & ~of_images).sum()
    for distance in apart[: len(together)]:
        assert distance.item() == pytest.approx(of_means(1 / of_images.sum().item()), rel=1e-3)
    for distance in apart[len(together) :]:
        assert distance.item() == pytest.approx(of_means(1 / text.item()), rel=1e-3)


def test_the_teacher_is_no_part_of_the_policy(make_policy):
    plain, policy = make_policy(knowledge="none"), penalised(make_policy, "features")
    train(policy, 1)
    assert policy.state_dict().keys() - plain.state_dict().keys() <= {"anchor_spec"} | {
        k for k in policy.state_dict() if k.startswith("anchor")
    }
    assert sum(1 for _ in policy.parameters()) == sum(1 for _ in plain.parameters())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"projection": "subspace", "reference": "features"}, "penalty_weight"),
        ({"projection": "subspace", "reference_every": 4}, "nothing uses"),
        ({"projection": "update", "reference_every": 0}, "reference_every must be positive"),
        ({"reference": "smell"}, "moments"),
        ({"penalty_weight": -1.0}, "negative"),
        ({"knowledge": "frozen", "penalty_weight": 1.0}, "frozen"),
        ({"knowledge": "stop_gradient", "penalty_weight": 1.0}, "stop_gradient"),
        ({"loss_temperature": 0.0}, "positive"),
        ({"cotraining_share": 1.0}, "share"),
        ({"knowledge": "frozen", "cotraining_share": 0.5}, "stop_gradient"),
        (
            {"knowledge": "none", "reference": "answers", "penalty_weight": 1.0, "reference_questions": ()},
            "at least one",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(make_policy, options, told):
    with pytest.raises(ValueError, match=told):
        make_policy(**options)


def test_a_temperature_weighs_down_what_asks_for_large_changes(make_policy):
    policy = make_policy(knowledge="none", loss_temperature=0.5).train()
    batch = make_batch(policy)
    noise, time = torch.randn_like(batch["action"]), torch.tensor([0.2, 0.5, 0.9])
    weighted, _ = policy.forward(batch, noise, time, reduction="none")
    plain, _ = policy.eval().forward(batch, noise, time, reduction="none")
    torch.testing.assert_close(weighted, plain * torch.exp(-plain / 0.5))
