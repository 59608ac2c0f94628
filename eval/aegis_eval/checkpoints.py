"""From what a user types to the folder that holds the weights."""

from pathlib import Path

NANO = "nano"  # the embedded backbone, untouched


def find_checkpoint(given: str | Path) -> str | Path:
    """The folder with `config.json` that `given` means.

    Accepted: `"nano"`; a folder that holds a `config.json` (a checkpoint's `pretrained_model`, or a plain
    vision-language model); a checkpoint's folder; a training's output folder (its last checkpoint counts).

    Raises:
        FileNotFoundError: If there is no such folder, or no checkpoint in it.
    """
    if str(given) == NANO:
        return NANO
    folder = Path(given)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder {folder}. A checkpoint is a training's output folder, its "
            "checkpoints/<step>/pretrained_model, a folder with a vision-language model in transformers' "
            f"format, or {NANO!r} for the embedded backbone."
        )
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
