"""aegis-assemble-mini: a vision-language model whose language model learned from text that nobody here wrote.

    pip install 'lerobot_policy_aegis_vla[mini]'
    aegis-assemble-mini --out outputs/mini_vlm
    aegis-anchor --backbone outputs/mini_vlm --out outputs/mini_anchor.safetensors

joins SmolLM2-135M-Instruct and the eyes that ship with this package into a transformers folder.
"""

import argparse
import os
from pathlib import Path

from aegis_backbones.language_model import load_language_model
from aegis_backbones.mini import EYES_FILE, build_model, build_processor, load_eyes, missing_eyes


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = _parse(arguments)
    try:
        assemble(options.out, language=options.language, eyes=options.eyes)
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f"aegis-assemble-mini: {error}") from error
    size = sum(file.stat().st_size for file in options.out.iterdir()) / 2**20
    print(f"{size:.0f} MiB -> {options.out}")


def assemble(out: Path, *, language: Path | None = None, eyes: Path | None = None) -> None:
    """Write language model and eyes as one transformers folder, in float32, whole or not at all.

    Float32 because the policy loads its backbone in float32 whatever the file's type, and what was trained and probed
    is then what is read. Rounded to bfloat16 the file would be half as large and SmolLM2 no worse: 34.41 against 34.43,
    the perplexity of the probe `prose`.

    Args:
        out: Folder to write; it must not hold anything yet.
        language: As `load_language_model`; None for the installed SmolLM2.
        eyes: As `save_eyes` wrote them; None for those that ship.

    Raises:
        FileExistsError: If `out` is not empty.
        FileNotFoundError: If there are no such eyes, or no such language model.
        ModuleNotFoundError: If the extra `mini` is needed and missing.
        ValueError: If the eyes fit another language model.
    """
    eyes = EYES_FILE if eyes is None else eyes
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"--out must be a new or empty folder; {out} is neither. Choose another.")
    if not eyes.is_file():  # before the language model, which takes half a minute
        raise missing_eyes(eyes)
    spoken = load_language_model(language)
    processor = build_processor(spoken.tokenizer)
    model = build_model(spoken, seed=0)
    load_eyes(model, eyes)
    part = out.with_name(f"{out.name}.part{os.getpid()}")
    model.save_pretrained(part)
    processor.save_pretrained(part)
    part.replace(out)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="aegis-assemble-mini", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to write")
    add("--language", type=Path, help="GGUF file or transformers folder (default: SmolLM2 of the extra `mini`)")
    add("--eyes", type=Path, help="tower and connector of aegis-pretrain-mini (default: those that ship)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
