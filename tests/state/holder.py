"""A process that uses an embedded server: ``python -m tests.state.holder DIRECTORY GRACE``.

It says the server's URL on standard output, or what is wrong, and lets go of the server when its
standard input ends.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Self

from tests.support.server import environment
from tusd_py.redis.embedded.server import EmbeddedRedis, EmbeddedRedisError


class Holder:
    """Such a process, from outside."""

    def __init__(self, directory: Path, *, grace: float = 60.0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.state.holder", str(directory), str(grace)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            cwd=Path(__file__).parents[2],
        )

        self._said = ""

    def url(self) -> str:
        """Wait for the URL that it prints."""
        if not self._said:
            assert self.process.stdout is not None
            self._said = self.process.stdout.readline().decode().strip()
        return self._said

    def begin_to_stop(self) -> None:
        """Let it end in an orderly way; do not wait."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def stop(self) -> None:
        """Let it end in an orderly way."""
        self.begin_to_stop()
        assert self.process.wait(60) == 0

    def kill9(self) -> None:
        self.process.kill()
        self.process.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Closes what connects us, and waits.
        with self.process:
            self.process.kill()


def main() -> None:
    state = EmbeddedRedis(Path(sys.argv[1]), grace=float(sys.argv[2]))
    try:
        print(state.start(), flush=True)
    except EmbeddedRedisError as error:
        print(error, flush=True)
    sys.stdin.read()
    state.stop()


if __name__ == "__main__":
    main()
