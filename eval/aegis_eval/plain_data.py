"""Plain data, as YAML gives it, checked on its way into dataclasses.

Every refusal is a ValueError that names the place, the rule and the value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any


def section[T](kind: type[T], content: Any, where: str) -> T:
    """A flat section as its dataclass; integers are checked to be integers."""
    given = dict(mapping(content, where))
    known: list[Any] = list(fields(kind))  # type: ignore[arg-type]
    refuse_unknown(given, [f.name for f in known], where)
    require(
        given,
        [f.name for f in known if f.default is MISSING and f.default_factory is MISSING],
        where,
    )
    for one in known:
        value = given.get(one.name)
        if one.type is int and one.name in given and (isinstance(value, bool) or not isinstance(value, int)):
            raise ValueError(f"{where}.{one.name} must be a whole number; received {value!r}.")
    return kind(**given)


def refuse_unknown(content: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Refuses keys that nobody reads; the message names those that are read."""
    unknown = sorted(str(key) for key in content if key not in known)
    if unknown:
        raise ValueError(f"Unknown in {where}: {', '.join(unknown)}. Known: {', '.join(known)}.")


def require(content: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Refuses a section without one of `names`."""
    absent = [name for name in names if name not in content]
    if absent:
        raise ValueError(f"Missing in {where}: {', '.join(absent)}.")


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """`value` if it is a mapping."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a mapping of names to values; received {value!r}.")
    return value


def items(value: Any, where: str) -> list[Any]:
    """`value` if it is a list of at least one."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{where} must be a list of at least one; received {value!r}.")
    return list(value)


def positive_numbers(value: Any, where: str) -> tuple[float, ...]:
    """Positive numbers; YAML 1.1 reads 1e-3 as text, which is meant as a number all the same."""
    try:
        numbers = tuple(float(one) for one in items(value, where))
    except (TypeError, ValueError):
        raise ValueError(f"{where} must be a list of positive numbers; received {value!r}.") from None
    if min(numbers) <= 0:
        raise ValueError(f"{where} must be positive; received {value!r}.")
    return numbers


def whole_numbers(value: Any, where: str) -> tuple[int, ...]:
    """A list of whole numbers."""
    seeds = items(value, where)
    if any(isinstance(seed, bool) or not isinstance(seed, int) for seed in seeds):
        raise ValueError(f"{where} must be a list of whole numbers; received {value!r}.")
    return tuple(seeds)


def refuse_twins(values: Sequence[float], where: str) -> None:
    """Refuses a value that is named twice."""
    if len(set(values)) != len(values):
        raise ValueError(f"{where} must not name a value twice; received {list(values)}.")
