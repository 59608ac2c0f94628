"""One process at a time in a folder: two comparisons in one would overwrite each other."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder, which is made if need be, until the block ends.

    Raises:
        ValueError: If another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass  # not a POSIX system: no such lock
        except BlockingIOError:
            raise ValueError(
                f"Another comparison or demo is at work in {folder}: wait for it, or choose another --out."
            ) from None
        yield
