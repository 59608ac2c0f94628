"""aegis-pretrain-mini: the eyes of the mini backbone, trained in front of a frozen language model.

    aegis-pretrain-mini --out outputs/mini

renders scenes (kept under OUT/scenes; those of aegis-pretrain-nano are the same), trains in two stages and writes
OUT/mini_eyes.safetensors, the very file that ships as `aegis_backbones/assets/mini_eyes.safetensors`, and with it the
transformers folder OUT/mini_vlm. Stage "look": every image token learns what it shows. Stage "answer": through the
frozen language model, to answer. Interrupted and started again it goes on where it was (OUT/checkpoint.pt).
"""

import argparse
import os
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from aegis_backbones.assemble_mini import assemble
from aegis_backbones.language_model import load_language_model
from aegis_backbones.mini import save_eyes
from aegis_backbones.mini_trainer import MiniTrainer
from aegis_backbones.questions import FAMILIES
from aegis_backbones.scene_store import Scenes, load_scenes
from aegis_backbones.source import nano_scenes
from aegis_backbones.staged_trainer import STAGES
from aegis_policy.answering import load_vlm

LOOK_STEPS = 1500
ANSWER_STEPS = 3000
REPORT_EVERY = {"look": 100, "answer": 25}  # steps
CHECKPOINT_EVERY = {"look": 500, "answer": 25}  # steps
WATCHED_SCENES = 96  # validation scenes that are looked at while training
# Seed of the validation scenes that watch the training: another one than those of the probes that users run.
WATCH_SEED = 1_000_001


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = _parse(arguments)
    console = Console()
    torch.set_num_threads(1)  # the trainer's own threads share out the batch
    os.environ.setdefault("MUJOCO_GL", "egl")
    started = time.monotonic()
    folder = Path(options.out)
    target = folder / "mini_vlm"
    if target.exists():
        raise SystemExit(f"aegis-pretrain-mini: {target} is there already: this run is done. Choose another --out.")
    try:
        with console.status("Loading the language model"):
            language = load_language_model(options.language)
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f"aegis-pretrain-mini: {error}") from error
    load = {"folder": folder / "scenes", "workers": options.workers}
    scenes = load_scenes(split="train", seed=options.seed, count=options.scenes, **load)
    watched = load_scenes(split="validation", seed=WATCH_SEED, count=WATCHED_SCENES, **load)
    trainer = MiniTrainer(scenes, language=language, seed=options.seed, workers=options.workers)
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
        console.print(f"going on from {checkpoint}: stage {trainer.stage}, step {trainer.step}")
    for stage in STAGES[STAGES.index(trainer.stage) :]:
        if stage != trainer.stage:
            trainer.start_stage(stage)
        steps = options.look_steps if stage == "look" else options.steps
        _run_stage(trainer, steps, watched, checkpoint, console)
    eyes = folder / "mini_eyes.safetensors"
    save_eyes(trainer.model, eyes)
    assemble(target, language=options.language, eyes=eyes)
    minutes = (time.monotonic() - started) / 60
    console.print(f"{minutes:.1f} minutes in this run; written to {eyes} and {target}.")
    if options.questions:
        console.print("Asking it about held-out scenes:")
        torch.set_num_threads(options.workers)
        _ask(str(target), options.questions, console)


def _run_stage(trainer: MiniTrainer, steps: int, watched: Scenes, checkpoint: Path, console: Console) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    stage = trainer.stage
    with Progress(*columns, console=console, speed_estimate_period=300) as bar:
        task = bar.add_task(stage, total=steps, completed=trainer.step)
        while trainer.step < steps:
            began = time.monotonic()
            readings = trainer.train_step(trainer.step / steps)
            trainer.seconds += time.monotonic() - began
            bar.update(task, completed=trainer.step)
            if trainer.step % REPORT_EVERY[stage] == 0:
                if trainer.step % (8 * REPORT_EVERY[stage]) == 0:
                    readings = {f"held-out {name}": value for name, value in trainer.held_out(watched).items()}
                shown = " ".join(f"{k} {v:.3f}" for k, v in readings.items())
                console.print(f"{stage} {trainer.step} ({trainer.seconds / 60:.1f} min): {shown}", soft_wrap=True)
            if trainer.step % CHECKPOINT_EVERY[stage] == 0:
                trainer.save(checkpoint)
    trainer.save(checkpoint)


def _ask(folder: str, count: int, console: Console) -> None:
    """Answers as users get them, family by family."""
    samples = nano_scenes(count=count * len(FAMILIES), seed=0, split="validation")
    answers = load_vlm(folder).answer(samples)
    for family in FAMILIES:
        right = [s.accepts(a) for s, a in zip(samples, answers, strict=True) if s.family == family]
        console.print(f"  {family:12} {sum(right):4} / {len(right)}  {sum(right) / len(right):.3f}")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="aegis-pretrain-mini", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", default="outputs/mini", help="folder of scenes, checkpoint and result")
    add("--language", type=Path, help="GGUF file or transformers folder (default: SmolLM2 of the extra `mini`)")
    add("--steps", type=int, default=ANSWER_STEPS, help="steps of the answering stage")
    add("--look-steps", type=int, default=LOOK_STEPS, help="steps of the looking stage")
    add("--scenes", type=int, default=16_000, help="training scenes")
    add("--questions", type=int, default=100, help="questions a family that it is asked in the end")
    add("--seed", type=int, default=0)
    add("--workers", type=int, default=os.cpu_count() or 1, help="threads, and processes while rendering")
    options = parser.parse_args(arguments)
    for name in ("steps", "look_steps", "scenes", "workers"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}.")
    return options


if __name__ == "__main__":
    main()
