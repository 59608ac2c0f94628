"""aegis-pretrain-nano: the embedded backbone from nothing.

    aegis-pretrain-nano --out outputs/nano

renders scenes (kept under OUT/scenes), trains in two stages and writes the transformers folder OUT/nano_vlm, the
very folder that ships as `aegis_policy/assets/nano_vlm`. Stage "look": the vision tower learns from per-patch
targets. Stage "answer": the whole model learns to answer, and which things a question is about and where they are.
Interrupted and started again it goes on where it was (OUT/checkpoint.pt).
"""

import argparse
import os
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from aegis_backbones.questions import FAMILIES
from aegis_backbones.scene_store import Scenes, load_scenes
from aegis_backbones.source import nano_scenes
from aegis_backbones.staged_trainer import STAGES
from aegis_backbones.trainer import Trainer
from aegis_policy.answering import load_vlm

LOOK_SHARE = 0.3  # of --minutes
LOOK_STEPS = 7500
ANSWER_STEPS = 3400
REPORT_EVERY = 100  # steps
CHECKPOINT_EVERY = 200  # steps
WATCHED_SCENES = 320  # validation scenes that are looked at while training
FINAL_QUESTIONS = 300 * 7
# Seeds of validation scenes that watch the training: other ones than those of the probes that users run.
WATCH_SEED = 1_000_001


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = _parse(arguments)
    console = Console()
    torch.set_num_threads(1)  # the trainer's own threads share out the batch
    os.environ.setdefault("MUJOCO_GL", "egl")
    started = time.monotonic()
    folder = Path(options.out)
    load = {"folder": folder / "scenes", "workers": options.workers}
    train = {"split": "train", "seed": options.seed, **load}
    scenes = {
        "look": load_scenes(count=options.crowded_scenes, crowded=True, **train),
        "answer": load_scenes(count=options.scenes, **train),
    }
    watched = load_scenes(split="validation", seed=WATCH_SEED, count=WATCHED_SCENES, **load)
    trainer = Trainer(scenes, seed=options.seed, workers=options.workers)
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
        console.print(f"going on from {checkpoint}: stage {trainer.stage}, step {trainer.step}")
    for stage in STAGES[STAGES.index(trainer.stage) :]:
        if stage != trainer.stage:
            trainer.start_stage(stage)
        _run_stage(trainer, options, watched, checkpoint, console)
    target = save_folder(trainer, folder / "nano_vlm")
    minutes = (time.monotonic() - started) / 60
    console.print(f"{minutes:.1f} minutes in this run; written to {target}. Asking it about held-out scenes:")
    torch.set_num_threads(options.workers)
    samples = nano_scenes(count=FINAL_QUESTIONS, seed=0, split="validation")
    answers = load_vlm(str(target)).answer(samples)
    for family in FAMILIES:
        right = [s.accepts(a) for s, a in zip(samples, answers, strict=True) if s.family == family]
        console.print(f"  {family:12} {sum(right):4} / {len(right)}  {sum(right) / len(right):.3f}")


def save_folder(trainer: Trainer, folder: Path) -> Path:
    """Write model and processor as a transformers folder."""
    trainer.model.save_pretrained(folder)
    trainer.processor.save_pretrained(folder)
    return folder


def _run_stage(
    trainer: Trainer, options: argparse.Namespace, watched: Scenes, checkpoint: Path, console: Console
) -> None:
    share = LOOK_SHARE if trainer.stage == "look" else 1 - LOOK_SHARE
    steps = options.look_steps if trainer.stage == "look" else options.steps

    def progress() -> float:
        return trainer.seconds / (60 * options.minutes * share) if options.minutes else trainer.step / steps

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(trainer.stage, total=1.0)
        while progress() < 1.0:
            began = time.monotonic()
            readings = trainer.train_step(progress())
            trainer.seconds += time.monotonic() - began
            bar.update(task, completed=progress())
            if trainer.step % REPORT_EVERY == 0:
                if trainer.step % (2 * REPORT_EVERY) == 0:
                    readings = {"loss": readings["loss"], **trainer.held_out(watched)}
                shown = " ".join(f"{k} {v:.3f}" for k, v in readings.items())
                console.print(f"{trainer.stage} {trainer.step} ({trainer.seconds / 60:.1f} min): {shown}")
            if trainer.step % CHECKPOINT_EVERY == 0:
                trainer.save(checkpoint)
    trainer.save(checkpoint)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="aegis-pretrain-nano", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", default="outputs/nano", help="folder of scenes, checkpoint and result")
    add("--steps", type=int, default=ANSWER_STEPS, help="steps of the answering stage")
    add("--look-steps", type=int, default=LOOK_STEPS, help="steps of the looking stage")
    add("--minutes", type=float, help="train for this long instead of a number of steps")
    add("--scenes", type=int, default=16_000, help="scenes of the answering stage")
    add("--crowded-scenes", type=int, default=14_000, help="scenes of the looking stage")
    add("--seed", type=int, default=0)
    add("--workers", type=int, default=os.cpu_count() or 1, help="threads, and processes while rendering")
    options = parser.parse_args(arguments)
    if options.minutes is not None and options.minutes <= 0:
        parser.error(f"--minutes must be positive, got {options.minutes}.")
    return options


if __name__ == "__main__":
    main()
