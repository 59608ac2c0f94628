"""`aegis-ask`: questions to a checkpoint about an image, or about what the robot saw."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from rich.console import Console

from aegis_eval.checkpoints import find_checkpoint

PROMPT = "question> "


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns the exit status."""
    arguments = _parser().parse_intermixed_args(argv)  # questions before and after options
    console = Console(stderr=True)
    try:
        look = _look(arguments)
        checkpoint = find_checkpoint(arguments.checkpoint)
        images = look(_cameras_of(checkpoint))
        # Loads torch and transformers: not for --help or a mistake on the command line.
        from aegis_policy.answering import load_vlm
        from aegis_policy.vqa import VQASample

        with console.status(f"Loading {checkpoint}"), redirect_stdout(sys.stderr):  # answers alone on standard output
            vlm = load_vlm(str(checkpoint), device=arguments.device, adapters=arguments.adapters == "on")
        for question in arguments.question or _typed(sys.stdin):
            sample = VQASample(images=images, question=question, answers=(), family="asked")
            [answer] = vlm.answer([sample], max_new_tokens=arguments.max_new_tokens)
            print(f"{question}\n  {answer}" if arguments.question else answer, flush=True)
    except (ValueError, OSError) as error:
        console.print(f"aegis-ask: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _typed(lines: Iterable[str]) -> Iterator[str]:
    """Questions line by line, of a person or of a file."""
    prompt = sys.stdin.isatty()
    if prompt:
        print(PROMPT, end="", flush=True)
    for line in lines:
        if line.strip():
            yield line.strip()
        if prompt:
            print(PROMPT, end="", flush=True)


Look = Callable[[Sequence[str]], tuple[Image.Image, ...]]  # from the image features that a policy sees, in its order


def _look(arguments: argparse.Namespace) -> Look:
    """What the questions are about, in the order in which the prompt shows it.

    Raises:
        ValueError: If there is nothing to look at, or a file, a frame or a camera is none.
    """
    if bool(arguments.image) == (arguments.dataset is not None):
        raise ValueError("Give --image FILE (once for each camera), or --dataset FOLDER and --frame: one of the two.")
    if arguments.dataset is not None:
        return _frame(arguments.dataset, arguments.frame or 0, arguments.camera)
    if arguments.frame is not None or arguments.camera:
        raise ValueError("--frame and --camera choose from a --dataset; leave them out with --image.")
    pictures = tuple(_open(path) for path in arguments.image)
    return lambda seen: pictures


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path).convert("RGB")
    except (FileNotFoundError, IsADirectoryError, UnidentifiedImageError) as error:
        raise ValueError(f"--image must be a picture that PIL reads: {error}") from None


def _frame(folder: Path, index: int, cameras: Sequence[str]) -> Look:
    """A frame of a LeRobotDataset: of the cameras named, or else of those that the policy sees, in its order."""
    if not (folder / "meta" / "info.json").is_file():
        raise ValueError(f"--dataset must be the folder of a LeRobotDataset: {folder} has no meta/info.json.")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset(folder.name, root=folder)
    if not 0 <= index < len(dataset):
        raise ValueError(f"--frame must be 0 to {len(dataset) - 1}, the frames of {folder}: got {index}.")
    keys = [key for key in dataset.meta.camera_keys if key not in dataset.meta.depth_keys]
    held = {key.removeprefix("observation.images."): key for key in keys}
    strange = [camera for camera in cameras if camera not in held]
    if strange:
        raise ValueError(f"--camera must be one of {', '.join(held)}: got {', '.join(strange)}.")
    row, named = dataset[index], [held[camera] for camera in cameras]
    return lambda seen: tuple(_picture(row[key]) for key in named or [key for key in seen if key in keys] or keys)


def _picture(image: Any) -> Image.Image:
    """From (3, H, W) in [0, 1]."""
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


def _cameras_of(checkpoint: str | Path) -> list[str]:
    """Image features of a policy, in the order in which it sees them; empty for a plain model."""
    file = Path(checkpoint) / "config.json"
    features = json.loads(file.read_text()).get("input_features") if file.is_file() else None
    return [key for key, feature in (features or {}).items() if feature["type"] == "VISUAL"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aegis-ask",
        description="Ask a checkpoint about a picture, or about a frame of a dataset. Without a question on the "
        "command line, questions are read from standard input, a line each, until it ends (Ctrl-D).",
        epilog='Example: aegis-ask outputs/touch "how many objects are there?" --dataset=data/touch --frame=120',
    )
    parser.add_argument(
        "checkpoint",
        help="a training's output folder, a pretrained_model folder, a plain vision-language model, a hub id or 'nano'",
    )
    parser.add_argument("question", nargs="*", help="what to ask; may be several, each in quotes")
    parser.add_argument(
        "--image", type=Path, action="append", default=[], metavar="FILE", help="a picture; again for another camera"
    )
    parser.add_argument("--dataset", type=Path, metavar="FOLDER", help="a LeRobotDataset, in place of pictures")
    parser.add_argument("--frame", type=int, help="which of its frames (default: 0)")
    parser.add_argument(
        "--camera",
        action="append",
        default=[],
        help="which of its cameras; again for another one (default: those that the policy sees, as it sees them)",
    )
    parser.add_argument("--max-new-tokens", type=int, default=32, help="longest answer, in tokens (default: 32)")
    parser.add_argument(
        "--adapters",
        choices=("on", "off"),
        default="on",
        help="whether a checkpoint's adapters (--peft.*) are in force while it answers (default: on)",
    )
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
