"""Rollout videos on the page: the same first episodes of every arm, as many as fit a page that can be sent around."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from aegis_eval.results import Comparison, Row

FILMS = 4  # an arm: the first episodes, chosen by nobody
FILMS_OF_MANY = 2  # an arm, when there are many
MANY_ARMS = 6
BUDGET_BYTES = 16 * 2**20  # of all films together


@dataclass(frozen=True)
class Film:
    """One rollout."""

    path: Path
    succeeded: bool
    told: str


def chosen_films(comparison: Comparison, *, folder: Path) -> list[tuple[Row, list[Film]]]:
    """The films of each arm at the largest learning rate, first seed, first set; none of arms whose films are gone.

    Args:
        comparison: What was found.
        folder: What the video paths are relative to.
    """
    rows = [row for row in comparison.rows if row.lr == max(comparison.learning_rates)]
    count = FILMS if len(rows) <= MANY_ARMS else FILMS_OF_MANY
    chosen: list[tuple[Row, list[Film]]] = []
    spent = 0
    for row in rows:
        films = _films_of(row, folder, count)
        size = sum(film.path.stat().st_size for film in films)
        if films and spent + size <= BUDGET_BYTES:
            spent += size
            chosen.append((row, films))
    return chosen


def film_html(film: Film) -> str:
    """The film inside the page."""
    data = b64encode(film.path.read_bytes()).decode()
    verdict = '<span class="yes">success</span>' if film.succeeded else '<span class="no">failure</span>'
    return (
        '<div class="film"><video muted loop autoplay playsinline preload="auto" '
        f'src="data:video/mp4;base64,{data}"></video><span>{escape(film.told)}: </span>{verdict}</div>'
    )


def _films_of(row: Row, folder: Path, count: int) -> list[Film]:
    """Of the first seed and set, one of each task in turn."""
    run = row.runs[min(row.runs)]
    name = next(iter(run.videos), None)
    if name is None:
        return []
    tasks: Sequence[str] = list(run.videos[name])
    episodes = max((len(videos) for videos in run.videos[name].values()), default=0)
    found = []
    for episode in range(episodes):
        for task in tasks:
            videos, told = run.videos[name][task], run.instructions.get(name, {}).get(task, [])
            if episode < len(videos) and (folder / videos[episode]).is_file():
                text = f"“{told[episode]}”" if episode < len(told) else f"{task}, episode {episode}"
                found.append(Film(folder / videos[episode], run.successes[name][task][episode] == "1", text))
    return found[:count]
