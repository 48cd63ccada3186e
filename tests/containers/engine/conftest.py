"""An engine, the images, and the fleet of the Compose file. `make containers` runs these tests; `make test` leaves them out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.engine import image, stand_ins
from tests.containers.engine.fleet import Fleet, is_possible
from tests.containers.engine.podman import Podman, missing

PLACE = "TEST_CONTAINERS"
"""The variable that names a directory for images and containers, which may be kept from one run to the next."""

collect_ignore_glob = [] if PLACE in os.environ else ["test_*.py"]


@pytest.fixture(scope="session")
def podman() -> Iterator[Podman]:
    """The engine, with base images."""
    assert is_possible(), "containers need root"
    assert not missing(), f"missing: {' '.join(missing())} (Debian: apt install)"
    made = Podman(Path(os.environ[PLACE]).resolve())
    stand_ins.make(made)
    yield made
    # Those that others have replaced, and those of a build that was interrupted.
    made.run("image", "prune", "--external", "--force")


@pytest.fixture(scope="session")
def our_image(podman: Podman) -> str:
    """The id of the image, built from this checkout."""
    return image.build(podman)


@pytest.fixture(scope="module")
def fleet(podman: Podman, our_image: str) -> Iterator[Fleet]:
    made = Fleet(podman)
    # Of a run that was interrupted.
    made.down()
    try:
        made.up()
        yield made
    except BaseException:
        print(made.logs(made.containers()))
        raise
    finally:
        made.down()
