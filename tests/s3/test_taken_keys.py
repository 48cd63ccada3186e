"""Objects of other programs at the key of an upload, where a hook chose the key: they are neither replaced nor removed."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack
from uuid import uuid4

import botocore.session
import pytest

from tests.s3.conftest import Opened, shared
from tests.s3.proxies import Answer, Exchange, FaultProxy, RulesProxy, error
from tests.s3.servers import ACCESS_KEY, BUCKET, ENVIRONMENT, REGION, SECRET_KEY
from tests.s3.test_store import finished, pieces
from tests.support.forked import ForkedServer
from tests.support.store import append, content_of
from tests.support.tus import Tus, id_of, metadata
from tests.support.waiting import wait_until
from tusd_py.locks.base import UNFENCED
from tusd_py.storage.base import ForeignObject, UploadInfo

LARGE = random.Random(4).randbytes(5 * 1024 * 1024 + 1000)
SMALL = LARGE[:1000]
THEIRS = b"not an upload's"
HOOK = """
from tusd_py import Changes, Placement

def pre_create(event):
    wanted = {key: value.decode() for key, value in event.upload.metadata.items()}
    return Changes(id=wanted.get("id"), placement=Placement(key=wanted["key"]) if "key" in wanted else None)
"""


class Bucket:
    """The keys below one prefix, as another program uses them."""

    def __init__(self) -> None:
        self.prefix = f"{uuid4().hex}/"
        session = botocore.session.Session()
        session.set_credentials(ACCESS_KEY, SECRET_KEY)
        endpoint = shared("seaweedfs").endpoint
        self._client = session.create_client("s3", endpoint_url=endpoint, region_name=REGION)

    def put(self, name: str) -> None:
        self._client.put_object(Bucket=BUCKET, Key=self.prefix + name, Body=THEIRS)

    def get(self, name: str) -> bytes:
        found = self._client.get_object(Bucket=BUCKET, Key=self.prefix + name)
        return bytes(found["Body"].read())

    def remove(self, name: str) -> None:
        self._client.delete_object(Bucket=BUCKET, Key=self.prefix + name)


@pytest.fixture(scope="module")
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture(scope="module")
def proxy() -> Iterator[FaultProxy]:
    with FaultProxy(shared("seaweedfs").address) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def tus(
    tmp_path_factory: pytest.TempPathFactory, proxy: FaultProxy, bucket: Bucket
) -> Iterator[Tus]:
    directory = tmp_path_factory.mktemp("taken")
    hook = directory / "hook.py"
    hook.write_text(HOOK)
    server = ForkedServer(
        directory / "server",
        *("--s3-bucket", BUCKET, "--s3-endpoint", proxy.endpoint, "--s3-part-size", "5MiB"),
        *("--s3-object-prefix", bucket.prefix, "--s3-info-prefix", bucket.prefix),
        *("--hook", str(hook)),
        env=ENVIRONMENT,
    )
    try:
        server.wait_until_up()
        yield server.client()
    finally:
        server.kill9()


def wanted(bucket: Bucket, chosen: str, name: str) -> dict[str, str]:
    """The header of a creation that makes the hook choose this key, or this id."""
    values = {"key": bucket.prefix + name} if chosen == "key" else {"id": name}
    return {"Upload-Metadata": metadata(**values)}


@pytest.mark.parametrize("chosen", ["key", "id"])
def test_an_object_that_is_there_refuses_the_creation(
    tus: Tus, bucket: Bucket, chosen: str
) -> None:
    name = f"before-{chosen}"
    bucket.put(name)
    refused = tus.create(3, headers=wanted(bucket, chosen, name))
    code = "ERR_PATH_EXISTS" if chosen == "key" else "ERR_UPLOAD_EXISTS"
    assert (refused.status, refused.code) == (409, code)
    assert bucket.get(name) == THEIRS
    bucket.remove(name)
    path = tus.new(3, headers=wanted(bucket, chosen, name))
    assert tus.patch(path, 0, b"abc").status == 204
    assert bucket.get(name) == b"abc"


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["object", "parts"])
@pytest.mark.parametrize("chosen", ["key", "id"])
def test_an_object_that_comes_meanwhile_stays_and_the_upload_waits_for_its_place(
    tus: Tus, bucket: Bucket, chosen: str, body: bytes
) -> None:
    name = f"meanwhile-{chosen}-{len(body)}"
    path = tus.new(len(body), headers=wanted(bucket, chosen, name))
    assert tus.patch(path, 0, body[:-10]).status == 204
    bucket.put(name)
    refused = tus.patch(path, len(body) - 10, body[-10:])
    assert (refused.status, refused.code) == (500, "ERR_INTERNAL_SERVER_ERROR")
    assert name not in refused.text
    server = tus.server
    wait_until(
        lambda: f"{name} is an object that this server did not store" in server.log(),
        "the log to name it",
    )
    assert bucket.get(name) == THEIRS
    bucket.remove(name)
    offset = tus.offset(path)
    assert offset >= len(body) - 10
    if offset < len(body):
        assert tus.patch(path, offset, body[offset:]).status == 204
    assert tus.get(path).body == body
    assert bucket.get(name) == body


@pytest.mark.parametrize("chosen", ["key", "id"])
def test_a_removal_leaves_what_is_not_the_uploads(tus: Tus, bucket: Bucket, chosen: str) -> None:
    name = f"removed-{chosen}"
    path = tus.new(len(SMALL), headers=wanted(bucket, chosen, name))
    assert tus.patch(path, 0, SMALL[:-1]).status == 204
    bucket.put(name)
    assert tus.delete(path).status == 204
    assert bucket.get(name) == THEIRS


def test_an_object_that_comes_at_the_last_moment_is_not_replaced(
    tus: Tus, bucket: Bucket, proxy: FaultProxy
) -> None:
    """After the server has looked: the store itself refuses."""
    name = "late"
    path = tus.new(len(LARGE), headers=wanted(bucket, "key", name))
    with proxy.hold("CompleteMultipartUpload", f"{name}$") as hold:
        statuses: list[int] = []
        patch = threading.Thread(
            target=lambda: statuses.append(tus.patch(path, 0, LARGE).status), daemon=True
        )
        patch.start()
        hold.wait()
        bucket.put(name)
        # The request is repeated, as it had no response.
        hold.release()
        patch.join(60)
    assert statuses == [500]
    assert bucket.get(name) == THEIRS
    bucket.remove(name)
    assert tus.offset(path) == len(LARGE)
    assert tus.get(path).body == LARGE


def test_keys_that_nobody_can_guess_cost_no_look(tus: Tus, proxy: FaultProxy) -> None:
    proxy.wait_for_first_sweep()
    path = tus.finished(LARGE)
    counts = proxy.requests_about(id_of(path))
    # After the completion, as its response proves little.
    assert counts["HeadObject"] == 1


def no_conditions(_proxy: RulesProxy, exchange: Exchange) -> Answer | None:
    """A store that knows no condition at completion."""
    conditional = {"If-None-Match", "If-Match"} & set(exchange.headers)
    if exchange.operation == "CompleteMultipartUpload" and conditional:
        return error(501, "NotImplemented", "A header you provided implies functionality")
    return None


async def test_a_store_without_conditions_at_completion_is_looked_at_before(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    async with AsyncExitStack() as stack:
        proxy = stack.enter_context(RulesProxy(shared("seaweedfs").address, no_conditions))
        store = Opened(stack, proxy.endpoint, bucket.prefix)()
        upload = await store.create(UploadInfo("without", len(LARGE), created_at=1.0))
        upload = await append(store, upload, *pieces(LARGE))
        bucket.put("without")
        with pytest.raises(ForeignObject):
            await store.sync(upload, fence=UNFENCED)
        assert bucket.get("without") == THEIRS
        assert not proxy.refused
        bucket.remove("without")
        upload = await finished(store, await store.load("without"))
        assert proxy.refused
        assert await content_of(store, upload) == LARGE
