"""VQA samples beside the robot's: the right tokens are learned, in the right proportion."""

from dataclasses import replace

import pytest
import torch

from aegis_policy.knowledge.answer_tokens import answer_tokens, ends_of_answer
from aegis_policy.knowledge.cotraining import CoTraining
from aegis_policy.network.prompt import encode_prompts
from tests.policy.conftest import make_batch, make_samples, say, train
from tests.policy.tiny_backbones import DIFFERENT, FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_taught_answers_are_the_texts_and_the_end_and_no_padding_counts(make_policy, family):
    policy = make_policy(family, knowledge="none")
    processor = policy.vlm.processor
    end = ends_of_answer(policy.backbone, processor)[0]
    texts = ["red", "on the left of the red cube", "two"]
    tokens, counts = answer_tokens(processor, texts, end=end)
    for row, text in enumerate(texts):
        said = tokens[row][counts[row]].tolist()
        assert tokens[row, : len(said)].tolist() == said  # padded behind
        assert said[-1] == end
        assert processor.tokenizer.decode(said[:-1]).strip() == text


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_each_question_and_answer_alone(make_policy, family):
    policy = make_policy(family, knowledge="none").eval()
    processor = policy.vlm.processor
    questions = ("where?", "what is it that lies on the left of the red cube?", "how many?")
    answers = ("there", "it is a disc", "two")
    samples = [
        replace(s, question=q, answers=(a,)) for s, q, a in zip(make_samples(3), questions, answers, strict=True)
    ]
    together = CoTraining(samples, processor, share=0.5, seed=0).loss(
        policy.backbone, step=0, beside=3, device=torch.device("cpu")
    )
    losses = []
    for sample in samples:
        prompt = encode_prompts(processor, [sample.images], [sample.question])
        said, _ = answer_tokens(processor, sample.answers, end=ends_of_answer(policy.backbone, processor)[0])
        again, log_probabilities = say(policy.backbone.vlm, prompt, only=said[0])
        assert torch.equal(again, said[0])
        losses.append(-log_probabilities.gather(1, again[:, None]))
    torch.testing.assert_close(together, torch.cat(losses).mean(), rtol=1e-3, atol=1e-5)


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
    original = answer_tokens

    def spy(processor, answers, **options):
        seen.append(len(answers))
        return original(processor, answers, **options)

    monkeypatch.setattr("aegis_policy.knowledge.cotraining.answer_tokens", spy)
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
