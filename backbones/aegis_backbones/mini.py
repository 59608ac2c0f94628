"""The mini backbone: a SmolVLM of about 136 million parameters, a real language model behind eyes of our own.

The eyes are the nano backbone's vision tower (4 layers, 8 x 8 patches of 12 pixels) and SmolVLM's connector: the
tower's states of 2 x 2 patches side by side, one linear map, 16 image tokens. The language model is whatever
`load_language_model` gives. Eyes travel apart from it, in float16: 2 MiB that fit one language model alone.

Source: Marafioti et al., SmolVLM (arXiv:2504.05299); pixel shuffle of Laurencon et al., Idefics3 (arXiv:2408.12637).
"""

import os
from importlib.resources import files
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from aegis_backbones.architecture import GRID
from aegis_backbones.language_model import LanguageModel
from aegis_backbones.scenes import IMAGE_SIZE
from aegis_policy.network.backbone import NANO, resolve_backbone

SHUFFLE = 2  # patches a side that one image token holds
TOKEN_GRID = GRID // SHUFFLE  # image tokens a side
IMAGE_TOKENS = TOKEN_GRID**2
IMAGE = "<image>"
IMAGE_MARKS = ("<fake_token_around_image>", IMAGE, "<global-img>")  # what SmolVLM's processor writes around an image
EYES = ("vision_model.", "connector.")  # parts of `SmolVLMModel` that see
EYES_FILE = Path(str(files("aegis_backbones") / "assets" / "mini_eyes.safetensors"))
# SmolLM2's chat without its system turn, which would be longer than a question.
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_processor(tokenizer: PreTrainedTokenizerFast) -> SmolVLMProcessor:
    """SmolVLM's own processor for one 96 x 96 picture of 16 image tokens; adds its marks to the tokenizer."""
    tokenizer.add_special_tokens({"additional_special_tokens": list(IMAGE_MARKS)})
    size = {"longest_edge": IMAGE_SIZE}
    return SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(
            size=size,
            max_image_size=size,
            do_image_splitting=False,
            resample=Image.Resampling.BICUBIC,  # the only one that it knows for pictures and for tensors
        ),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(size=size, max_image_size=size),
        image_seq_len=IMAGE_TOKENS,
        chat_template=CHAT,
    )


def build_model(language: LanguageModel, *, seed: int) -> SmolVLMForConditionalGeneration:
    """The mini backbone in float32 with the nano backbone's tower and a connector that has learned nothing.

    `build_processor` must have completed the tokenizer. The image marks' embeddings, which no text has trained, begin
    as the mean of all others.

    Args:
        language: Language model and tokenizer; the model is left as it is.
        seed: Of the connector.
    """
    nano = AutoModelForImageTextToText.from_pretrained(resolve_backbone(NANO), dtype=torch.float32)
    tokenizer, text = language.tokenizer, language.model.config.to_dict()
    old, new = text["vocab_size"], max(text["vocab_size"], len(tokenizer))
    vision = nano.config.vision_config
    tied = bool(text["tie_word_embeddings"])
    config = SmolVLMConfig(
        vision_config={
            name: getattr(vision, name)
            for name in (
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "image_size",
                "patch_size",
                "hidden_act",
                "layer_norm_eps",
            )
        },
        text_config={**text, "vocab_size": new},
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        scale_factor=SHUFFLE,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(seed)
    model = SmolVLMForConditionalGeneration(config)
    _copy(model.model.vision_model, nano.model.vision_tower.vision_model.state_dict())
    weights = language.model.base_model.state_dict()
    weights["embed_tokens.weight"] = _with_rows(weights["embed_tokens.weight"], new - old)
    _copy(model.model.text_model, weights)
    if not tied:
        _copy(model.lm_head, {"weight": _with_rows(language.model.get_output_embeddings().weight.detach(), new - old)})
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(model.generation_config, name, getattr(tokenizer, name))
    return model.eval()


def eyes_of(model: SmolVLMForConditionalGeneration) -> dict[str, Tensor]:
    """The part that sees, by its names inside `model.model`: the tensors themselves."""
    return {name: tensor for name, tensor in model.model.state_dict().items() if name.startswith(EYES)}


def save_eyes(model: SmolVLMForConditionalGeneration, path: Path) -> None:
    """Write the part that sees in float16, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".part{os.getpid()}")
    save_file({name: tensor.half().contiguous() for name, tensor in eyes_of(model).items()}, part)
    part.replace(path)


def load_eyes(model: SmolVLMForConditionalGeneration, path: Path) -> None:
    """Give `model` the eyes that `save_eyes` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If they belong to another architecture.
    """
    if not path.is_file():
        raise missing_eyes(path)
    with safe_open(path, framework="pt") as file:
        given = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118  it is no mapping
    own = eyes_of(model)
    wrong = [
        n for n in sorted(own.keys() | given.keys()) if n not in own or n not in given or own[n].shape != given[n].shape
    ]
    if wrong:
        raise ValueError(
            f"The eyes in {path} must fit this model tensor by tensor; {len(wrong)} do not, the first is {wrong[0]} "
            f"({_shape(given, wrong[0])} in the file, {_shape(own, wrong[0])} in the model). Train eyes for this "
            "language model with `aegis-pretrain-mini --language ...`."
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(given[name])


def missing_eyes(path: Path) -> FileNotFoundError:
    """The error that says where eyes come from."""
    return FileNotFoundError(
        f"There are no trained eyes at {path}. Train them with `aegis-pretrain-mini --out FOLDER`, which writes "
        "FOLDER/mini_eyes.safetensors, and give that file as --eyes."
    )


def _copy(module: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    module.load_state_dict(weights, strict=True)


def _with_rows(embeddings: Tensor, count: int) -> Tensor:
    """Embeddings (V, D) and `count` more, each the mean of all."""
    return torch.cat([embeddings, embeddings.mean(dim=0, keepdim=True).expand(count, -1)])


def _shape(tensors: dict[str, Tensor], name: str) -> str:
    return " x ".join(map(str, tensors[name].shape)) if name in tensors else "absent"
