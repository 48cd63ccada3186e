"""`tusd-py check-s3`: what it finds in each store, and in those whose rules a proxy has."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import aclosing

import pytest

from tests.s3 import proxies
from tests.s3.conftest import OpenStore
from tests.s3.contents import Contents
from tests.s3.proxies import Answer, Exchange, FaultProxy, RulesProxy
from tests.s3.servers import BUCKET, ENVIRONMENT, SECRET_KEY, S3Server
from tusd_py.storage.s3.layout import Layout
from tusd_py.storage.s3.trial import Trial


def command(endpoint: str, prefix: str) -> list[str]:
    return [
        *(sys.executable, "-m", "tusd_py", "check-s3"),
        *("--s3-bucket", BUCKET, "--s3-endpoint", endpoint),
        *("--s3-object-prefix", prefix, "--s3-info-prefix", prefix),
    ]


def check(endpoint: str, prefix: str, *flags: str, **env: str) -> tuple[int, str, str]:
    """Run the command; its exit code, standard output and standard error."""
    done = subprocess.run(
        [*command(endpoint, prefix), *flags],
        env={**os.environ, **ENVIRONMENT, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def findings(endpoint: str, prefix: str) -> tuple[int, dict[str, tuple[str, str]]]:
    code, out, err = check(endpoint, prefix, "--json")
    assert err == ""
    documents = [json.loads(line) for line in out.splitlines()]
    return code, {each["subject"]: (each["outcome"], each["text"]) for each in documents}


async def test_a_store_that_can_do_everything(s3_server: S3Server, prefix: str) -> None:
    code, found = findings(s3_server.endpoint, prefix)
    assert code == 0
    assert len(found) == 16
    assert {outcome for outcome, _ in found.values()} == {"ok"}
    code, table, _ = check(s3_server.endpoint, prefix)
    assert code == 0
    assert table.endswith("  ok        nothing is left of this check\n")


def no_aborts(_proxy: RulesProxy, exchange: Exchange) -> Answer | None:
    """A policy without `s3:AbortMultipartUpload`."""
    if exchange.operation == "AbortMultipartUpload":
        return proxies.error(403, "AccessDenied", "Access Denied")
    return None


def test_what_other_stores_refuse_is_said_with_the_setting(
    seaweedfs: S3Server, prefix: str
) -> None:
    rules = (proxies.equal_parts, proxies.thousand_parts, no_aborts)
    with RulesProxy(seaweedfs.address, *rules) as proxy:
        code, found = findings(proxy.endpoint, prefix)
    assert code == 1
    assert found["unequal parts"] == ("note", "are refused: set --s3-equal-parts")
    assert found["number of parts"] == ("note", "fewer than 10000: set --s3-max-parts 1000")
    outcome, text = found["abort a multipart upload"]
    assert outcome == "problem"
    assert text.startswith("the permission s3:AbortMultipartUpload is missing: ")


def test_removals_that_heed_no_condition_are_seen(seaweedfs: S3Server, prefix: str) -> None:
    with RulesProxy(seaweedfs.address, proxies.no_conditional_removals) as proxy:
        code, found = findings(proxy.endpoint, prefix)
    assert code == 0
    outcome, text = found["conditional removal"]
    assert outcome == "note"
    assert text.startswith("has no effect: ")


def test_a_list_that_lags_is_seen(seaweedfs: S3Server, prefix: str) -> None:
    with FaultProxy(seaweedfs.address) as proxy:
        proxy.lag = 1
        code, found = findings(proxy.endpoint, prefix)
    assert code == 0
    assert found["list parts"][0] == "note"


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "the secret key does not belong to the access key"),
        ({"AWS_ACCESS_KEY_ID": "wrong"}, "the access key is not known there"),
    ],
)
def test_credentials_that_are_wrong_end_it(
    seaweedfs: S3Server, prefix: str, env: dict[str, str], said: str
) -> None:
    code, out, err = check(seaweedfs.endpoint, prefix, **env)
    assert (code, out) == (2, "")
    assert said in err
    assert SECRET_KEY not in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("end", ["nobody reads on", "an interrupt"])
def test_it_leaves_nothing_if_it_is_ended(seaweedfs: S3Server, prefix: str, end: str) -> None:
    with subprocess.Popen(
        command(seaweedfs.endpoint, prefix),
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for _ in range(8):
            assert process.stdout.readline()
        if end == "an interrupt":
            process.send_signal(signal.SIGINT)
        process.stdout.close()
        process.wait(60)
        assert b"Traceback" not in process.stderr.read()
    contents = Contents(seaweedfs, prefix)
    assert (contents.keys(), contents.pending()) == (set(), set())


async def test_it_leaves_nothing_if_an_interrupt_comes_between_two_steps(
    seaweedfs: S3Server, open_store: OpenStore, prefix: str
) -> None:
    objects = await open_store(seaweedfs.endpoint)

    async def interrupted() -> None:
        async with aclosing(Trial(objects, Layout(prefix, prefix)).run()) as trial:
            for _ in range(8):
                await anext(trial)
            task.cancel()

    task = asyncio.create_task(interrupted())
    with pytest.raises(asyncio.CancelledError):
        await task
    contents = Contents(seaweedfs, prefix)
    assert (contents.keys(), contents.pending()) == (set(), set())
