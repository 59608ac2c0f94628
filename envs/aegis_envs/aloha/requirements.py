"""Whether gym-aloha can run here, said before anything is made."""

from importlib.util import find_spec

INSTALL = (
    "pip install 'lerobot_policy_aegis_vla[aloha]' (in a clone: pip install -e '.[aloha]'), which takes mujoco back to "
    "3.8 as gym-aloha asks; docs/benchmarks.md says how to keep a newer one."
)


def require_aloha() -> None:
    """Checks the installed packages.

    Raises:
        ImportError: If gym-aloha or dm-control is missing.
    """
    refuse_missing([package for package in ("gym_aloha", "dm_control") if find_spec(package) is None])


def refuse_missing(packages: list[str]) -> None:
    """Raises an ImportError that says what to install, if there are any."""
    if packages:
        raise ImportError(f"Aloha's tasks need packages that are not installed: {', '.join(packages)}. {INSTALL}")
