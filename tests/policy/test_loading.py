"""A backbone is loaded whole or not at all, from a folder or from the hub's cache."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Florence2Config,
    FuyuConfig,
    Gemma3nConfig,
    Llama4Config,
    LlamaConfig,
    LlamaForCausalLM,
    MllamaConfig,
    Qwen3_5Config,
)

from aegis_policy.network.backbone import Backbone
from aegis_policy.network.readable import refuse_unreadable

WEIGHTS = "model.safetensors"
# The same tensor in the model and in its file: PaliGemma's checkpoints keep the names of an earlier layout.
NAME, STORED = "layers.1.mlp.up_proj.weight", "model.language_model.model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def copied(tiny_folder, tmp_path) -> Path:
    """A copy of a checkpoint to be spoilt."""
    folder = tmp_path / "copied"
    shutil.copytree(tiny_folder["paligemma2"], folder)
    return folder


def rewrite(folder: Path, change) -> None:
    """Stores what `change` makes of the checkpoint's tensors."""
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def load(folder: Path) -> dict[str, torch.Tensor]:
    return Backbone.load(str(folder)).vlm.state_dict()


def test_weights_in_shards_are_those_in_one_file(tiny_folder, tmp_path):
    folder = tiny_folder["paligemma2"]
    AutoModelForImageTextToText.from_pretrained(folder).save_pretrained(tmp_path, max_shard_size="40KB")
    assert not (tmp_path / WEIGHTS).exists() and len(list(tmp_path.glob("*.safetensors"))) > 2
    expected, found = load(folder), load(tmp_path)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_shard_that_is_missing_is_refused(tiny_folder, tmp_path):
    AutoModelForImageTextToText.from_pretrained(tiny_folder["paligemma2"]).save_pretrained(
        tmp_path, max_shard_size="40KB"
    )
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    with pytest.raises(ValueError, match="weights cannot be read"):
        Backbone.load(str(tmp_path))


def test_bfloat16_weights_become_float32_of_the_same_values(copied):
    expected = {name: value.bfloat16().float() for name, value in load(copied).items()}
    rewrite(copied, lambda weights: {name: value.bfloat16() for name, value in weights.items()})
    config = json.loads((copied / "config.json").read_text())
    config["dtype"] = config["text_config"]["dtype"] = config["vision_config"]["dtype"] = "bfloat16"
    (copied / "config.json").write_text(json.dumps(config))
    found = load(copied)
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    without = Backbone.load(str(copied), weights=False)
    assert {p.dtype for p in without.parameters()} == {torch.float32}


def test_a_missing_weight_is_named_and_not_made_up(copied):
    rewrite(copied, lambda weights: {n: v for n, v in weights.items() if n != STORED})
    with pytest.raises(ValueError, match=f"lacks weights .* random .*{NAME}"):
        Backbone.load(str(copied))


def test_a_weight_of_another_shape_is_named_with_both_shapes(copied):
    rewrite(copied, lambda weights: weights | {STORED: weights[STORED][:-8].clone()})
    with pytest.raises(ValueError, match=rf"{NAME} is \(40, 32\), not \(48, 32\)"):
        Backbone.load(str(copied))


def test_pickled_weights_are_refused_with_a_way_to_convert_them(copied):
    torch.save(load_file(copied / WEIGHTS), copied / "pytorch_model.bin")
    (copied / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"pytorch_model\.bin, which can run code.*save_pretrained"):
        Backbone.load(str(copied))


def test_a_file_that_was_cut_off_is_refused(copied):
    content = (copied / WEIGHTS).read_bytes()
    (copied / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="weights cannot be read"):
        Backbone.load(str(copied))


def test_a_folder_without_weights_is_refused(copied):
    (copied / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"folder with config\.json and safetensors"):
        Backbone.load(str(copied))


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    config = {"model_type": "unheard_of", "auto_map": {"AutoConfig": "code.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match="code that a repository brings is never run"):
        Backbone.load(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_model_that_reads_no_images_is_refused(tmp_path):
    config = LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a 'llama' model does not"):
        Backbone.load(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (Gemma3nConfig, "num_kv_shared_layers=15"),
        (Qwen3_5Config, "another kind .* linear_attention"),
        (Llama4Config, "another kind .* chunked_attention"),
        (MllamaConfig, "cross-attention"),
        (Florence2Config, "encoder-decoder"),
        (FuyuConfig, "no rotary positions, or no keys"),
    ],
)
def test_a_model_that_an_expert_cannot_read_is_refused_by_its_configuration_alone(config, reason, tmp_path):
    config().save_pretrained(tmp_path)  # no weights anywhere: nothing would be fetched either
    with pytest.raises(ValueError, match=reason):
        Backbone.load(str(tmp_path))


def test_every_kind_of_model_is_either_accepted_or_refused_with_a_reason():
    refuse_unreadable(AutoConfig.for_model("paligemma"))
    with pytest.raises(ValueError, match="Choose a decoder-only backbone"):
        refuse_unreadable(AutoConfig.for_model("blip-2"))


FIRST, SECOND = "1" * 40, "2" * 40  # commits
ASK = """
import json, sys
from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.aegis import fingerprint
from aegis_policy.network.backbone import Backbone
from aegis_policy.network.prompt import load_processor
from aegis_policy.pretrained.start import load_backbone

def seen(**options):
    config = AegisVLAConfig(backbone="someone/model", device="cpu", **options)
    backbone = load_backbone(config)
    load_processor(config.backbone, revision=config.backbone_revision)
    return fingerprint(backbone.vlm.state_dict()), config.backbone_revision

found = {"main": seen(), "tag": seen(backbone_revision="v1"), "again": seen(backbone_revision=seen()[1])}
try:
    Backbone.load("someone/other")
except ValueError as error:
    found["other"] = str(error)
print(json.dumps(found))
"""


@pytest.mark.slow  # a process of its own: whether the hub may be asked is decided when its client is imported
def test_a_hub_id_comes_from_the_cache_offline_and_stays_at_its_commit(tiny_folder, tmp_path):
    repository = tmp_path / "hub" / "models--someone--model"
    for commit, shift in ((FIRST, 0.0), (SECOND, 1.0)):
        folder = repository / "snapshots" / commit
        shutil.copytree(tiny_folder["paligemma2"], folder)
        rewrite(folder, lambda weights, shift=shift: {n: v + shift for n, v in weights.items()})
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text(FIRST)
    (repository / "refs" / "main").write_text(SECOND)
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    run = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout.splitlines()[-1])
    old, new = (Backbone.load(str(repository / "snapshots" / c)).vlm.state_dict() for c in (FIRST, SECOND))
    assert [found["main"], found["tag"]] == [[_name(new), SECOND], [_name(old), "v1"]]
    assert found["again"] == found["main"]
    assert "configuration cannot be read" in found["other"] and "in the local cache" in found["other"]


def _name(weights: dict[str, torch.Tensor]) -> str:
    from aegis_policy.aegis import fingerprint

    return fingerprint(weights)
