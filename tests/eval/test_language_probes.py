"""Probes of the language model: scores of readers whose knowledge is known, and of models whose likelihoods are."""

import json
import math
from collections import Counter

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from aegis_eval.monitor import VQAMonitor
from aegis_eval.probe import main, make_report, surprise_table
from aegis_eval.probes import find_probe, read_probe_file
from aegis_eval.probes.facts import Facts, read_sentences
from aegis_eval.scoring import ALL
from aegis_eval.surprise import Surprise
from aegis_policy.answering import load_vlm
from aegis_policy.likelihood import Likelihood, continuation_likelihoods
from tests.policy.tiny_backbones import byte_tokenizer


class Knows:
    """Finds right endings likelier than others, but for one family; a passage costs three nats a word."""

    def __init__(self, *, ignorant_of: str = ""):
        self.right = {
            (one.beginning, f" {one.endings[0]}")
            for family, sentences in read_sentences().items()
            if family != ignorant_of
            for one in sentences
        }

    def likelihoods(self, texts, *, batch_size=32):
        return [
            Likelihood(
                3.0 * len(end.split()) if not start else 1.0 if (start, end) in self.right else 2.0, len(end.split())
            )
            for start, end in texts
        ]


def test_there_are_two_hundred_sentences_and_more_of_several_families_with_four_endings_each():
    families = read_sentences()
    assert find_probe("facts").count == sum(map(len, families.values())) >= 200
    assert len(families) >= 8
    for sentences in families.values():
        for one in sentences:
            assert all(isinstance(ending, str) for ending in one.endings), one  # YAML reads false as no text
            assert len(set(one.endings)) == 4, one
        assert len({one.beginning for one in sentences}) == len(sentences)


def test_no_right_ending_is_so_frequent_that_it_could_be_guessed():
    for family, sentences in read_sentences().items():
        _, most = Counter(one.endings[0] for one in sentences).most_common(1)[0]
        assert most <= len(sentences) / 4, family


def test_the_likeliest_ending_is_the_answer_and_families_are_counted_apart():
    probe = find_probe("facts")
    rates = probe.ask(Knows(ignorant_of="animals"), probe.samples()).rates()
    assert (rates["animals"].successes, rates["capitals"].successes) == (0, rates["capitals"].trials)
    assert rates[ALL].trials == probe.count
    assert rates[ALL].successes == probe.count - rates["animals"].trials


def test_a_reader_that_finds_all_endings_alike_knows_nothing():
    class Blank:
        def likelihoods(self, texts, *, batch_size=32):
            return [Likelihood(1.0, 1) for _ in texts]

    probe = find_probe("facts", count=50)
    assert not any(probe.ask(Blank(), probe.samples()).correct)


def test_fewer_sentences_are_drawn_by_the_seed_in_turns_of_families():
    families = list(read_sentences())
    few = find_probe("facts", count=2 * len(families), seed=3).samples()
    assert [one.family for one in few] == families * 2
    assert few == find_probe("facts", count=2 * len(families), seed=3).samples()
    assert few != find_probe("facts", count=2 * len(families), seed=4).samples()
    assert find_probe("facts", count=10_000).count == find_probe("facts").count


def test_a_perplexity_is_that_of_all_tokens_together():
    score = Surprise(("a", "a", "b"), ("x", "y", "z"), nats=(10.0, 20.0, 6.0), tokens=(5, 5, 6))
    found = score.perplexities()
    assert found["a"].value == pytest.approx(math.exp(3))
    assert found["b"].value == found["b"].low == pytest.approx(math.e)
    assert found[ALL].value == pytest.approx(math.exp(36 / 16))
    assert found["a"].low == pytest.approx(math.exp(2)) and found["a"].high == pytest.approx(math.exp(4))
    assert (found[ALL].passages, found[ALL].tokens) == (3, 16)


def test_prose_is_reported_passage_by_passage():
    probe = find_probe("prose")
    score = probe.ask(Knows(), probe.samples())
    assert score.perplexities()[ALL].value == pytest.approx(math.exp(3))
    scores = {"prose": score}
    report = make_report("x", [probe], scores, fingerprint="0", adapters="on", seconds=1.0)
    found = json.loads(json.dumps(report, allow_nan=False))["probes"]["prose"]
    assert len(found["nats"]) == len(found["tokens"]) == len(set(found["passages"])) == probe.count
    assert found["perplexity"][ALL]["tokens"] == sum(found["tokens"])
    assert surprise_table(scores, title="x").row_count == 3


class Uniform(torch.nn.Module):
    """Every next token is as likely as any other."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(vocabulary, 2), torch.nn.Linear(2, vocabulary)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def get_input_embeddings(self):
        return self.embedding

    def get_output_embeddings(self):
        return self.head

    def get_decoder(self):
        def decode(*, input_ids, attention_mask, use_cache):
            return type("Output", (), {"last_hidden_state": self.embedding(input_ids)})

        return decode


def test_to_a_model_that_expects_everything_alike_each_token_costs_the_logarithm_of_the_vocabulary():
    tokenizer = byte_tokenizer()
    texts = [("", "abcd"), ("abc", " de"), ("a", " longer than the others")]
    found = continuation_likelihoods(Uniform(len(tokenizer)), tokenizer, texts)
    assert [one.tokens for one in found] == [3, 3, 23]  # one byte a token; the very first has nothing before it
    for one in found:
        assert one.nats == pytest.approx(one.tokens * math.log(len(tokenizer)), rel=1e-5)


def test_likelihoods_are_the_models_own_loss_whatever_else_is_in_the_batch():
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = LlamaForCausalLM(config)  # in training mode, in which it must be left
    texts = [("The sky is", " blue"), ("", "something else entirely"), ("A", "b")]
    found = continuation_likelihoods(model, tokenizer, texts, batch_size=3)
    assert model.training
    for (context, continuation), one in zip(texts, found, strict=True):
        ids = tokenizer(context + continuation, return_tensors="pt")["input_ids"]
        labels = ids.clone()
        labels[:, : len(context)] = -100
        with torch.no_grad():
            loss = model(input_ids=ids, labels=labels).loss.item()
        assert one.nats == pytest.approx(one.tokens * loss, rel=1e-4)  # float32 sums of another order


def test_a_continuation_without_a_token_is_an_error():
    with pytest.raises(ValueError, match="something before it"):
        continuation_likelihoods(Uniform(300), byte_tokenizer(), [("", "a")])


@pytest.mark.parametrize("name", ["facts", "prose"])
def test_the_embedded_backbone_which_reads_ahead_is_refused(name, capsys):
    with pytest.raises(ValueError, match="from left to right"):
        find_probe(name, count=4).ask(load_vlm("nano"), find_probe(name, count=4).samples())
    assert main(["nano", "--probe", name, "--count", "4"]) == 2
    assert "from left to right" in " ".join(capsys.readouterr().err.split())


def test_what_counts_right_answers_refuses_a_probe_without_them(tmp_path):
    file = tmp_path / "probes.yaml"
    file.write_text("prose:\n")
    with pytest.raises(ValueError, match=r"The monitor counts right answers.*Probes with right answers: nano_scenes"):
        VQAMonitor(count=1, config=file)


def test_the_monitor_asks_sentences_as_well(tmp_path):
    file = tmp_path / "probes.yaml"
    file.write_text("facts: {count: 20}\n")
    scores = VQAMonitor(count=1, config=file)(Knows(ignorant_of="science"), 0)
    assert (scores["vqa_science"], scores["vqa_capitals"]) == (0, 1)


def test_the_shipped_file_selects_both(pytestconfig):
    probes = read_probe_file(pytestconfig.rootpath / "configs/probes/language.yaml")
    assert [probe.name for probe in probes] == ["facts", "prose"]
    assert isinstance(probes[0], Facts)
