"""VQA samples beside the robot's: the right tokens are learned, in the right proportion."""

import pytest
import torch

from aegis_policy.knowledge.cotraining import IGNORED, CoTraining, end_of_answer, with_answers
from tests.policy.conftest import make_batch, make_samples, train
from tests.policy.tiny_backbones import DIFFERENT, FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_the_answers_and_the_end(make_policy, family):
    policy = make_policy(family, knowledge="none")
    processor, samples = policy.vlm.processor, make_samples(3)
    end = end_of_answer(policy.backbone, processor)
    inputs, labels = with_answers(processor, samples, end=end, token_type=policy.backbone.answer_type)
    for row, sample in enumerate(samples):
        told = labels[row][labels[row] != IGNORED].tolist()
        assert told[-1] == end
        assert processor.tokenizer.decode(told[:-1]).strip() == sample.answers[0]
        assert inputs["attention_mask"][row].sum() == (labels[row] != IGNORED).nonzero().max() + 1


@pytest.mark.parametrize("family", DIFFERENT)
def test_what_is_learned_is_then_answered(make_policy, family):
    policy = make_policy(family, knowledge="none", cotraining_share=0.5)
    samples = make_samples(4)
    cotraining = CoTraining(samples, policy.vlm.processor, share=0.5, seed=0)
    optimizer = torch.optim.Adam(policy.backbone.parameters(), 3e-3)
    for step in range(60):
        loss = cotraining.loss(policy.backbone, step=step, beside=4, device=torch.device("cpu"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    answers = policy.vlm.answer(samples)
    assert all(s.accepts(a) for s, a in zip(samples, answers, strict=True)), (answers, loss)


def test_the_share_counts_samples_and_weighs_them(make_policy, monkeypatch):
    policy = make_policy(knowledge="none")
    seen = []
    original = with_answers

    def spy(processor, samples, **options):
        seen.append(len(samples))
        return original(processor, samples, **options)

    monkeypatch.setattr("aegis_policy.knowledge.cotraining.with_answers", spy)
    losses = {
        share: CoTraining(make_samples(8), policy.vlm.processor, share=share, seed=0).loss(
            policy.backbone, step=3, beside=6, device=torch.device("cpu")
        )
        for share in (0.25, 0.5)
    }
    assert seen == [2, 6]  # a third of six beside them is a quarter of eight
    again = CoTraining(make_samples(8), policy.vlm.processor, share=0.5, seed=0)
    assert again.loss(policy.backbone, step=3, beside=6, device=torch.device("cpu")).item() == losses[0.5].item()


def test_a_policy_trains_on_both(make_policy, monkeypatch):
    monkeypatch.setattr("aegis_policy.knowledge.retention.load_vqa_source", lambda name: lambda **_: make_samples(8))
    policy = make_policy(knowledge="none", cotraining_share=0.5)
    train(policy, 2)
    _, metrics = policy.forward(make_batch(policy))
    assert metrics["vqa_loss"] > 0


def test_under_stop_gradient_only_vqa_samples_train_the_backbone(make_policy, monkeypatch):
    monkeypatch.setattr("aegis_policy.knowledge.retention.load_vqa_source", lambda name: lambda **_: make_samples(8))
    policy = make_policy(knowledge="stop_gradient", cotraining_share=0.5).train()
    loss, metrics = policy.forward(make_batch(policy))
    name = "model.language_model.layers.1.mlp.down_proj.weight"
    gradient = torch.autograd.grad(loss, policy.backbone.vlm.get_parameter(name))[0]
    assert gradient.norm() > 0
    assert metrics["vqa_loss"] > 0
