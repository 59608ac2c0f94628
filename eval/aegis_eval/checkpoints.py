"""From what a user types to the folder that holds the weights."""

from pathlib import Path

from httpx import HTTPError
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

# Of a repository on the hub: weights as safetensors, configurations, tokenizers.
FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
NOT_FILES = ["*training_state/*"]  # of lerobot-train's checkpoints: its optimizers
NANO = "nano"  # the embedded backbone, untouched


def find_checkpoint(given: str | Path) -> str | Path:
    """The folder with `config.json` that `given` means.

    Accepted: `"nano"`; a folder that holds a `config.json` (a checkpoint's `pretrained_model`, or a plain
    vision-language model); a checkpoint's folder; a training's output folder (its last checkpoint counts); the hub id
    of a policy or of a model, `owner/name` or `owner/name@revision`, which is fetched.

    Raises:
        FileNotFoundError: If there is no such folder or repository, or no checkpoint in it.
    """
    if str(given) == NANO:
        return NANO
    folder = Path(given)
    if not folder.is_dir():
        folder = _from_hub(str(given))
    checkpoints = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    numbered = sorted(p for p in checkpoints.iterdir() if p.is_dir() and p.name.isdigit())
    candidates = [folder, folder / "pretrained_model", checkpoints / "last" / "pretrained_model"]
    candidates += [p / "pretrained_model" for p in reversed(numbered)]
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            return candidate
    held = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    raise FileNotFoundError(
        f"{folder} holds no checkpoint: neither config.json, nor pretrained_model/, nor checkpoints/ with "
        f"one in it. It holds: {held}. If a training is under way there, its first checkpoint is yet to come."
    )


def _from_hub(given: str) -> Path:
    name, _, revision = given.partition("@")
    why = "and it is no hub id, owner/name"
    if name.count("/") == 1:
        try:
            return Path(
                snapshot_download(name, revision=revision or None, allow_patterns=FILES, ignore_patterns=NOT_FILES)
            )
        except (HFValidationError, HTTPError, OSError) as error:
            told = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            why = f"and the hub gives nothing for it ({told})"
    raise FileNotFoundError(
        f"There is no folder {given}, {why}. A checkpoint is a training's output folder, its "
        "checkpoints/<step>/pretrained_model, a folder or hub id with a policy or with a vision-language model in "
        f"transformers' format, or {NANO!r} for the embedded backbone."
    )
