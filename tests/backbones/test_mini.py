"""The mini backbone: a language model and eyes become one folder, which everything takes for a SmolVLM."""

from importlib.util import find_spec

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, SmolVLMForConditionalGeneration, SmolVLMProcessor

from aegis_backbones import language_model
from aegis_backbones.assemble_mini import assemble, main
from aegis_backbones.language_model import load_language_model
from aegis_backbones.mini import EYES_FILE, IMAGE_TOKENS, build_model, build_processor, eyes_of, load_eyes, save_eyes
from aegis_policy.answering import load_vlm
from aegis_policy.build_anchor import main as build_anchor
from aegis_policy.knowledge.sources import load_anchor
from aegis_policy.network.backbone import Backbone, resolve_backbone
from aegis_policy.network.prompt import encode_prompts, load_processor
from tests.backbones.tiny_language import WIDTH, save_language, tiny_language
from tests.policy.conftest import make_samples


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The language model's folder, eyes whose connector is another one than a new model's, and both as one folder."""
    folder = tmp_path_factory.mktemp("mini")
    language = save_language(folder / "language")
    spoken = load_language_model(language)
    build_processor(spoken.tokenizer)
    save_eyes(build_model(spoken, seed=7), folder / "eyes.safetensors")
    assemble(folder / "vlm", language=language, eyes=folder / "eyes.safetensors")
    return folder


def test_the_folder_is_a_smolvlm_with_this_language_model_and_these_eyes(made):
    model = AutoModelForImageTextToText.from_pretrained(made / "vlm")
    assert isinstance(model, SmolVLMForConditionalGeneration)
    language = load_language_model(made / "language").model.base_model.state_dict()
    inside = model.model.text_model.state_dict()
    rows = len(language["embed_tokens.weight"])
    for name, weight in language.items():
        assert torch.equal(inside[name][:rows] if name == "embed_tokens.weight" else inside[name], weight), name
    eyes = load_file(made / "eyes.safetensors")
    for name, weight in eyes_of(model).items():
        assert torch.equal(weight, eyes[name].float()), name


def test_the_tower_begins_as_the_nano_backbones(made):
    spoken = tiny_language()
    build_processor(spoken.tokenizer)
    tower = build_model(spoken, seed=0).model.vision_model
    nano = Backbone.load("nano").vlm.model.vision_tower
    pixels = torch.rand(2, 3, 96, 96) * 2 - 1
    theirs = nano(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(tower(pixel_values=pixels).last_hidden_state, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_text_alone_is_scored_as_by_the_language_model_alone(tied):
    spoken = tiny_language(tied=tied)
    build_processor(spoken.tokenizer)
    text = spoken.tokenizer("any text at all", return_tensors="pt")
    model = build_model(spoken, seed=0)
    before = spoken.model(**text).logits
    torch.testing.assert_close(model(**text).logits[..., : before.shape[-1]], before, atol=1e-5, rtol=1e-5)


def test_a_prompt_has_sixteen_image_tokens_whatever_the_pictures_size(made):
    processor = load_processor(str(made / "vlm"))
    assert isinstance(processor, SmolVLMProcessor)
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    for size in ((96, 96), (128, 96), (40, 60)):
        inputs = encode_prompts(processor, [[Image.new("RGB", size)]], ["Where?"])
        assert inputs["pixel_values"].shape == (1, 1, 3, 96, 96)
        assert int((inputs["input_ids"] == image).sum()) == IMAGE_TOKENS == 16


def test_it_answers_and_the_picture_matters(made):
    vlm = load_vlm(str(made / "vlm"))
    samples = make_samples(2)
    answers = vlm.answer(samples, max_new_tokens=4)
    assert len(answers) == 2
    scores = []
    for shade in (0, 255):
        inputs = encode_prompts(vlm.processor, [[Image.new("RGB", (96, 96), (shade, 0, 0))]], ["What?"])
        scores.append(vlm.model(**inputs).logits[:, -1])
    assert (scores[0] - scores[1]).abs().max() > 1e-3


def test_what_the_expert_reads_is_what_the_models_own_forward_leaves(made):
    backbone = Backbone.load(str(made / "vlm")).eval()
    samples = make_samples(2)
    inputs = encode_prompts(load_processor(str(made / "vlm")), [s.images for s in samples], ["touch", "push it left"])
    with torch.no_grad():
        prefix = backbone.encode(inputs)
        plain = AutoModelForImageTextToText.from_pretrained(made / "vlm").eval()
        cache = plain(**inputs, use_cache=True).past_key_values
    assert len(prefix.keys) == len(cache.layers) == 2
    for key, value, layer in zip(prefix.keys, prefix.values, cache.layers, strict=True):
        torch.testing.assert_close(key, layer.keys, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(value, layer.values, atol=1e-6, rtol=1e-6)


def test_an_anchor_can_be_built_of_it(made):
    out = made / "anchor.safetensors"
    build_anchor(["--backbone", str(made / "vlm"), "--count", "8", "--out", str(out)])
    backbone = Backbone.load(str(made / "vlm"))
    anchor = load_anchor(out, backbone)
    assert set(anchor.layers) == set(backbone.layers())
    with pytest.raises(ValueError, match="Collect an anchor on this model"):
        load_anchor(out, Backbone.load("nano"))


def test_eyes_are_kept_in_float16_and_fit_one_language_model_alone(made, tmp_path):
    assert {tensor.dtype for tensor in load_file(made / "eyes.safetensors").values()} == {torch.float16}
    spoken = tiny_language()
    build_processor(spoken.tokenizer)
    model = build_model(spoken, seed=0)
    linear = "connector.modality_projection.proj.weight"
    narrow = {**load_file(made / "eyes.safetensors"), linear: torch.zeros(WIDTH - 8, 512)}
    save_file(narrow, tmp_path / "narrow.safetensors")
    with pytest.raises(ValueError, match=r"modality_projection.*40 x 512 in the file, 48 x 512 in the model"):
        load_eyes(model, tmp_path / "narrow.safetensors")
    del narrow[linear]
    save_file(narrow, tmp_path / "blind.safetensors")
    with pytest.raises(ValueError, match="absent in the file"):
        load_eyes(model, tmp_path / "blind.safetensors")


def test_a_mistake_on_the_command_line_is_explained(made, tmp_path, monkeypatch):
    language, eyes = str(made / "language"), str(made / "eyes.safetensors")
    new = str(tmp_path / "new")
    with pytest.raises(SystemExit, match="new or empty folder"):
        main(["--out", str(made / "vlm"), "--language", language, "--eyes", eyes])
    with pytest.raises(SystemExit, match="aegis-pretrain-mini --out FOLDER"):
        main(["--out", new, "--language", language, "--eyes", str(tmp_path / "absent")])
    with pytest.raises(SystemExit, match="no language model at"):
        main(["--out", new, "--language", str(tmp_path / "absent.gguf"), "--eyes", eyes])
    monkeypatch.setattr(language_model, "CARRIER", "a_package_that_nobody_has")
    with pytest.raises(SystemExit, match=r"lerobot_policy_aegis_vla\[mini\]"):
        main(["--out", new, "--eyes", eyes])
    assert not (tmp_path / "new").exists()


def test_the_command_writes_the_folder(made, tmp_path, capsys):
    out = tmp_path / "vlm"
    main(["--out", str(out), "--language", str(made / "language"), "--eyes", str(made / "eyes.safetensors")])
    assert str(out) in capsys.readouterr().out
    assert Backbone.load(str(out)).text_config.hidden_size == WIDTH
    assert resolve_backbone(str(out)) == str(out)


installed = pytest.mark.skipif(
    find_spec("gguf") is None or find_spec(language_model.CARRIER) is None, reason="needs the extra `mini`"
)


@installed
def test_smollm2s_tokenizer_reads_digits_one_by_one_and_writes_back_any_text():
    tokenizer = language_model.read_tokenizer(language_model._installed_file())
    assert len(tokenizer) == 49_152
    # As SmolLM2's own tokenizer.json has it: nothing before the text, each digit a token, blanks on the words.
    assert tokenizer.convert_ids_to_tokens(tokenizer("In 2024 cats")["input_ids"]) == [
        *("In", "Ġ", "2", "0", "2", "4", "Ġcats")
    ]
    turn = tokenizer("<|im_start|>user\nHi<|im_end|>")["input_ids"]
    assert (turn[0], turn[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    for text in ("Grüße, 世界! 🦾", "a\tb\nc  d"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@installed
@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france_without_a_picture():
    spoken = load_language_model()
    text = spoken.tokenizer("The capital of France is", return_tensors="pt")
    new = spoken.model.generate(**text, max_new_tokens=1, do_sample=False)[0, -1]
    assert spoken.tokenizer.decode(new) == " Paris"


def test_the_shipped_eyes_fit_smollm2_in_at_most_eight_mebibytes():
    assert EYES_FILE.stat().st_size <= 8 * 2**20
    eyes = load_file(EYES_FILE)
    assert eyes["connector.modality_projection.proj.weight"].shape == (576, 512)
    assert all(torch.isfinite(tensor).all() for tensor in eyes.values())
