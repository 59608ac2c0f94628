"""Whether Meta-World can run here, said before anything is made."""

from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

TOO_NEW_MUJOCO = "3.17"  # from there on metaworld 3.0 ends with "could not broadcast (11,) into (12,)" in its welds
INSTALL = "pip install 'lerobot_policy_aegis_vla[metaworld]' (in a clone: pip install -e '.[metaworld]')"


def require_metaworld() -> None:
    """Checks the installed packages.

    Raises:
        ImportError: If metaworld is missing, or MuJoCo is of a version with which it does not work.
    """
    check_versions(metaworld=_installed("metaworld"), mujoco=_installed("mujoco"))


def check_versions(*, metaworld: str | None, mujoco: str | None) -> None:
    """Checks versions, None for a package that is not installed; see `require_metaworld`."""
    if metaworld is None:
        raise ImportError(f"Meta-World's tasks need the package metaworld, which is not installed. {INSTALL}")
    if mujoco is None or Version(mujoco) >= Version(TOO_NEW_MUJOCO):
        raise ImportError(
            f"metaworld {metaworld} needs mujoco older than {TOO_NEW_MUJOCO}: its weld constraints have another size "
            f"from there on. Installed: mujoco {mujoco}. {INSTALL}, or pip install 'mujoco<{TOO_NEW_MUJOCO}'"
        )


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
