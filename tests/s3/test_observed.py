"""What operators see of the object store: metrics, and log lines without anything that is secret."""

from __future__ import annotations

import re

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, HTTPClientError

from tests.s3.proxies import FAULTS, Fault, FaultProxy
from tests.s3.servers import ACCESS_KEY, BUCKET, SECRET_KEY
from tests.s3.test_server import BODY, Servers, proxy, servers  # noqa: F401 - fixtures
from tests.support.tus import Tus, id_of
from tusd_py.storage.s3.failures import meaning

PRESIGNED = (
    "https://key:password@store.example/bucket/key?X-Amz-Credential=AKIAEXAMPLE%2F20260101"
    "&X-Amz-Signature=deadbeef&X-Amz-Security-Token=FwoG"
)
SECRETS = ("password", "AKIAEXAMPLE", "deadbeef", "FwoG")


def scraped(tus: Tus) -> dict[str, float]:
    body = tus.request("GET", "/metrics", {}).body.decode()
    lines = (line.rpartition(" ") for line in body.splitlines() if line.startswith("tusd_s3"))
    return {name: float(value) for name, _, value in lines}


def test_metrics_tell_of_requests_repeats_and_bytes_in_memory(
    servers: Servers,  # noqa: F811
    proxy: FaultProxy,  # noqa: F811
) -> None:
    tus = Tus(servers("--s3-concurrent-part-uploads", "2"))
    path = tus.new(len(BODY))
    proxy.plan("UploadPart", "slow-down")
    assert tus.patch(path, 0, BODY).status == 204
    got = scraped(tus)
    assert got['tusd_s3_requests_total{operation="UploadPart",outcome="unavailable"}'] == 1
    assert got['tusd_s3_requests_total{operation="UploadPart",outcome="ok"}'] == 3
    assert got['tusd_s3_retries_total{operation="UploadPart"}'] == 1
    assert got['tusd_s3_request_duration_seconds_count{operation="UploadPart"}'] == 4
    assert got['tusd_s3_requests_in_flight{operation="UploadPart"}'] == 0
    assert got["tusd_s3_spool_bytes"] == 0
    assert got["tusd_s3_spool_limit_bytes"] == 256 * 1024 * 1024
    # A tail stays in memory for the next request.
    small = tus.new(10)
    assert tus.patch(small, 0, b"hello").status == 204
    assert scraped(tus)["tusd_s3_spool_bytes"] == 5


@pytest.mark.parametrize("fault", FAULTS)
def test_no_log_line_has_credentials_whatever_the_store_does(
    servers: Servers,  # noqa: F811
    proxy: FaultProxy,  # noqa: F811
    fault: Fault,
) -> None:
    server = servers("--log-level", "debug", "--s3-retry-time", "300ms")
    tus = Tus(server)
    path = tus.new(len(BODY))
    proxy.inject(seed=1, rate=1.0, kinds=[fault])
    with tus.begin_patch(path, 0, len(BODY), BODY) as patch:
        patch.response()
    proxy.inject(seed=1, rate=0.0)
    log = server.log()
    if fault != "twice":
        assert re.search(rf"{BUCKET}.*{id_of(path)}", log)
    for secret in (SECRET_KEY, ACCESS_KEY, "X-Amz-Signature", "AWS4-HMAC"):
        assert secret not in log


@pytest.mark.parametrize(
    "problem",
    [
        EndpointConnectionError(endpoint_url=PRESIGNED),
        HTTPClientError(error=OSError(f"Cannot connect to {PRESIGNED!r}")),
        ClientError({"Error": {"Code": "Strange", "Message": f"see <{PRESIGNED}>"}}, "GetObject"),
        ClientError(
            {
                "Error": {
                    "Code": "Odd",
                    "Message": "X-Amz-Signature=deadbeef&Credential=AKIAEXAMPLE",
                }
            },
            "GetObject",
        ),
    ],
)
def test_texts_of_the_sdk_and_of_stores_are_told_without_what_lets_in(
    problem: ClientError | EndpointConnectionError,
) -> None:
    text = str(meaning(problem, "get_object s3://bucket/key"))
    assert text.startswith("get_object s3://bucket/key: ")
    assert not re.search("|".join(SECRETS), text), text
