"""Which of the expressions that demonstrations never use a backbone knows, and what comes of them in the episodes.

    python benchmarks/referring.py [--model nano] [--count 200] [--results results/nano] [--set never_shown]

First, the model is asked about the object that an expression means, in scenes in which it fits that object alone: for
its colour, or for its shape if the expression says the colour ("What shape is the red object?"). Three objects are on
the table, so that a guess among what is seen is right in about a third. Second, the episodes of one of a study's sets
are split by what is new in the sentence. Of `never_shown`, half have a new verb and name the object by colour and
shape, half a known verb and an expression about the scene; those of `attributes` say one of the two alone. All are
split by whether the object that is meant is the odd one out. Third, in how many scenes as demonstrations show them one
of the two words would do: what is not needed is not taught. Fourth, how often the right object is found by rules that
look at the scene and do not read: what a set's success is to be held against.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from measure import Table
from PIL import Image
from tqdm import tqdm

from aegis_envs import GYM_ID
from aegis_envs.episode import draw_episode
from aegis_envs.objects import NEVER_SHOWN_KINDS
from aegis_envs.scene import Placement, front_column
from aegis_envs.tasks import TASKS
from aegis_eval.beginnings import instructions
from aegis_eval.bootstrap import Design, difference_estimate, success_estimate
from aegis_eval.run_result import RunResult, read_result
from aegis_eval.scoring import ask_all
from aegis_eval.statistics import Rate
from aegis_eval.tables import percent
from aegis_policy.answering import load_vlm
from aegis_policy.vqa import VQASample

CAMERA = "front"
KNOWN = {"the red object": r"\bthe \w+ object\b", "the cylinder": r"\bthe (cube|ball|cylinder)\b"}
SCENE = {
    "the leftmost object": "the leftmost object",
    "the rightmost object": "the rightmost object",
    "the object that is not a cube": r"the object that is not a \w+",
}
FIRST_SEED = 500_000
NEW_VERB, ABOUT_SCENE = "a new verb", "about the scene"
BASELINE = "naive"
SCENES = 10_000
SHOWN: Any = {"objects": 3, "kinds": "shown", "phrasings": "shown"}
SETS: dict[str, Any] = {
    "shown": SHOWN,
    "never_shown": {"objects": 3, "kinds": "never_shown", "phrasings": "never_shown"},
    "combinations": {"objects": 3, "kinds": "never_shown", "phrasings": "shown"},
    "attributes": {"objects": 3, "kinds": "shown", "phrasings": "attributes"},
    "shapes": {"objects": 3, "kinds": "shown", "phrasings": "shapes"},
    "questions": {"objects": 3, "kinds": "all", "phrasings": "questions"},
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="checkpoint, transformers folder or hub id")
    parser.add_argument("--count", type=int, default=200, help="questions an expression")
    parser.add_argument("--results", type=Path, default=Path("results/nano"), help="of aegis-compare")
    parser.add_argument("--set", default="never_shown", help="of the study's rollouts")
    options = parser.parse_args(arguments)
    acted = episodes(options.results, options.set)  # refuses before anything is asked
    asked = knowledge(options.model, options.count)
    print(asked.markdown(), *(table.markdown() for table in acted), needed(), unread().markdown(), sep="\n\n")


def knowledge(model: str, wanted: int) -> Table:
    """What the model answers about the objects that the expressions mean."""
    samples = [
        *_questions("attributes", KNOWN, wanted=wanted),
        *_questions("never_shown", SCENE, wanted=wanted),
    ]
    rates = ask_all(load_vlm(model), samples).rates()
    title = f"Answers of {model}, {wanted} questions an expression, percent right with Wilson's interval."
    return Table(title, ("expression", "right"), [[name, _percent(rates[name])] for name in (*KNOWN, *SCENE)])


def episodes(folder: Path, name: str) -> list[Table]:
    """Success of every arm on one set of episodes, by what is new in the sentence and by looks."""
    results = [read_result(file) for file in sorted(folder.glob("*-seed*.json"))]
    if not results:
        raise SystemExit(f"--results is a folder of results of aegis-compare; {folder} holds none.")
    plan = results[0].settings["rollouts"]
    if name not in plan["sets"] or plan["sets"][name]["type"] != "aegis_tabletop":
        raise SystemExit(f"--set must be one of {', '.join(plan['sets'])}, of aegis_tabletop; received {name!r}.")
    runs: dict[tuple[str, float], dict[int, RunResult]] = defaultdict(dict)
    for run in results:
        runs[run.arm, run.lr][run.seed] = run
    seeds = range(plan["seed"], plan["seed"] + plan["episodes"])
    options = plan["sets"][name]
    told = {task: instructions(options, task, seeds=seeds) for task in results[0].successes[name]}
    words = {task: [_kind(sentence) for sentence in sentences] for task, sentences in told.items()}
    looks = {task: [_look(task, options, seed) for seed in seeds] for task in told}
    return [
        _split(runs, name, words, title=f"Success on the set {name} by what is new in the sentence."),
        _split(runs, name, looks, title=f"Success on the set {name} by whether the object meant stands out."),
    ]


def _split(
    runs: dict[tuple[str, float], dict[int, RunResult]], name: str, kinds: dict[str, list[str]], *, title: str
) -> Table:
    every = sorted({kind for of_task in kinds.values() for kind in of_task})
    rows = []
    for (arm, lr), by_seed in runs.items():
        row = [f"{arm}, {lr:g}"]
        for kind in every:
            found, scenes = _marks(by_seed, name, kinds, kind)
            naive, _ = _marks(runs.get((BASELINE, lr), {}), name, kinds, kind)
            row.append(percent(success_estimate(found, scenes)))
            row.append("–" if arm == BASELINE else percent(difference_estimate(found, naive, scenes), sign="+"))
        rows.append(row)
    header = ("arm", *(column for kind in every for column in (f"{kind} (%)", "over naive (points)")))
    return Table(title, header, rows)


def needed() -> str:
    """How often one of the two words would have done in what demonstrations show."""
    enough = {"colour": 0, "shape": 0}
    for seed in range(SCENES):
        episode = draw_episode(np.random.default_rng(seed), tuple(TASKS.values()), **SHOWN)
        target, *others = (placed.kind for placed in episode.layout.objects)
        for word in enough:
            enough[word] += all(getattr(other, word) != getattr(target, word) for other in others)
    shares = (f"{100 * number / SCENES:.0f} % by its {word}" for word, number in enough.items())
    return f"Of {SCENES:,} scenes as demonstrations show them, the object is known in {' and in '.join(shares)} alone."


def unread() -> Table:
    """How often each rule that looks and does not read finds the object that is meant."""
    rules = {"a combination that no demonstration shows": _novel, "the odd one out": _odd, "the leftmost": _leftmost}
    rows = []
    for name, options in SETS.items():
        found = dict.fromkeys(rules, 0.0)
        for seed in range(SCENES):
            objects = draw_episode(np.random.default_rng(seed), (TASKS["touch"],), **options).layout.objects
            for rule, prefers in rules.items():
                found[rule] += _share(prefers, objects)
        rows.append([name, *(f"{100 * share / SCENES:.0f}" for share in found.values())])
    title = f"Right object (%) without reading, of {SCENES:,} scenes a set; a draw among three is right in 33."
    return Table(title, ("set", *rules), rows)


def _share(prefers: Callable[[Placement, Sequence[Placement]], float], objects: Sequence[Placement]) -> float:
    """How often a rule takes the first object, the one that is meant: a draw among those that it likes best."""
    scores = [prefers(one, objects) for one in objects]
    return (scores[0] == max(scores)) / scores.count(max(scores))


def _look(task: str, options: dict[str, Any], seed: int) -> str:
    drawn = SHOWN | {name: value for name, value in options.items() if name in SHOWN}
    share = _share(_odd, draw_episode(np.random.default_rng(seed), (TASKS[task],), **drawn).layout.objects)
    return "it is the odd one out" if share == 1 else "it is as odd as another" if share else "another is odder"


def _novel(one: Placement, objects: Sequence[Placement]) -> float:
    return one.kind in NEVER_SHOWN_KINDS


def _odd(one: Placement, objects: Sequence[Placement]) -> float:
    return -sum((one.kind.colour == other.kind.colour) + (one.kind.shape == other.kind.shape) for other in objects)


def _leftmost(one: Placement, objects: Sequence[Placement]) -> float:
    return -front_column(one.x, one.y)


def _kind(sentence: str) -> str:
    if _expression(sentence, SCENE)[0]:
        return ABOUT_SCENE
    return _expression(sentence, KNOWN)[0] or NEW_VERB


def _marks(
    runs: dict[int, RunResult], name: str, kinds: dict[str, list[str]], kind: str
) -> tuple[dict[int, list[bool]], Design]:
    """Training seed -> success in episodes of that kind; the n-th episodes of all tasks begin from one scene."""
    kept = [(task, i) for task, of_task in kinds.items() for i, one in enumerate(of_task) if one == kind]
    marks = {seed: [run.successes[name][task][i] == "1" for task, i in kept] for seed, run in runs.items()}
    return marks, Design.of_episodes([i for _, i in kept])


def _questions(phrasings: str, expressions: dict[str, str], *, wanted: int) -> list[VQASample]:
    environment = gymnasium.make(GYM_ID, task="touch", kinds="all", phrasings=phrasings, cameras=(CAMERA,))
    samples: dict[str, list[VQASample]] = {name: [] for name in expressions}
    with tqdm(total=wanted * len(expressions), unit="question", desc=phrasings, disable=None) as progress:
        for seed in count(FIRST_SEED):
            if all(len(some) == wanted for some in samples.values()):
                break
            observation, _ = environment.reset(seed=seed)
            bare = environment.unwrapped
            name, expression = _expression(bare.task_description, expressions)
            if name is None or len(samples[name]) == wanted:
                continue
            target = bare.scene_objects()[0]
            says_colour = target.colour in expression
            question = f"What {'shape' if says_colour else 'colour'} is {expression}?"
            answer = target.shape if says_colour else target.colour
            image = Image.fromarray(observation["pixels"][CAMERA])
            samples[name].append(VQASample(images=(image,), question=question, answers=(answer,), family=name))
            progress.update()
    environment.close()
    return [sample for some in samples.values() for sample in some]


def _expression(sentence: str, expressions: dict[str, str]) -> tuple[str | None, str]:
    for name, pattern in expressions.items():
        if match := re.search(pattern, sentence):
            return name, match.group()
    return None, ""


def _percent(found: Rate) -> str:
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}] of {found.trials}"


if __name__ == "__main__":
    main()
