"""The tasks by name."""

from aegis_envs.tasks.lift import Lift
from aegis_envs.tasks.place import Place
from aegis_envs.tasks.push_to import PushTo
from aegis_envs.tasks.task import Task, Verdict
from aegis_envs.tasks.touch import Touch

TASKS: dict[str, Task] = {task.name: task for task in (Touch(), PushTo(), Lift(), Place())}

__all__ = ["TASKS", "Task", "Verdict", "parse_tasks"]


def parse_tasks(names: str) -> tuple[Task, ...]:
    """The tasks of a comma-separated list, or of `"all"`.

    Raises:
        ValueError: If a name is unknown or the list is empty.
    """
    wanted = list(TASKS) if names.strip() == "all" else [n.strip() for n in names.split(",") if n.strip()]
    unknown = [name for name in wanted if name not in TASKS]
    if unknown or not wanted:
        raise ValueError(
            f"task must be 'all', one of {', '.join(TASKS)}, or several of them separated by commas; got {names!r}."
        )
    return tuple(TASKS[name] for name in dict.fromkeys(wanted))
