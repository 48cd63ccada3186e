"""The access policy with plain values: cases that the matrix of requests does not cover."""

from __future__ import annotations

import pytest

from tusd_py.auth.policy import AccessPolicy, Revoked
from tusd_py.auth.principal import ANYBODY, Action, Grant, Principal, Right
from tusd_py.protocol.errors import ProtocolError

ALICE = Principal("alice", frozenset((Right.CREATE, Right.READ, Right.DELETE)), issued_at=100.0)
HOLDER = Principal(grants={"u1": Grant("alice", 100.0)})


class Listed(Revoked):
    """A list of revocations."""

    def __init__(self, *uploads: str, **owners: float) -> None:
        self.uploads, self.owners = uploads, owners

    def owner_since(self, owner: str) -> float | None:
        return self.owners.get(owner)

    def has_upload(self, upload_id: str) -> bool:
        return upload_id in self.uploads


def status_of(
    principal: Principal, action: Action, owner: str = "alice", revoked: Revoked | None = None
) -> int:
    """The status of an action on u1; 200 if it is allowed."""
    try:
        AccessPolicy(revoked).check(principal, "u1", owner, action)
    except ProtocolError as problem:
        return problem.status
    return 200


@pytest.mark.parametrize("action", Action)
def test_nobody_is_asked_where_there_are_no_tokens(action: Action) -> None:
    assert status_of(ANYBODY, action, "") == 200


@pytest.mark.parametrize("action", Action)
def test_an_upload_of_nobodys_is_for_admins(action: Action) -> None:
    assert status_of(ALICE, action, "") == 404
    assert status_of(Principal(rights=ALICE.rights), action, "") == 404
    assert status_of(Principal("root", frozenset((Right.ADMIN,))), action, "") == 200


def test_the_token_of_an_id_that_was_given_out_again_opens_nothing() -> None:
    assert status_of(HOLDER, Action.APPEND, "alice") == 200
    assert status_of(HOLDER, Action.APPEND, "bob") == 404
    assert status_of(HOLDER, Action.DOWNLOAD, "bob") == 404


@pytest.mark.parametrize(("since", "status"), [(99.9, 200), (100.0, 401), (100.1, 401)])
def test_what_was_issued_until_a_revocation_is_void(since: float, status: int) -> None:
    for principal in (ALICE, HOLDER):
        assert status_of(principal, Action.APPEND, revoked=Listed(alice=since)) == status
        assert status_of(principal, Action.APPEND, revoked=Listed(bob=since)) == 200


def test_a_revoked_upload_can_still_be_looked_at_and_removed_by_its_owner() -> None:
    revoked = Listed("u1")
    allowed = {each for each in Action if status_of(ALICE, each, revoked=revoked) == 200}
    assert allowed == {Action.INSPECT, Action.DELETE, Action.DOWNLOAD, Action.REVOKE}
    assert {status_of(HOLDER, each, revoked=revoked) for each in Action} == {401}
    assert (
        status_of(Principal("r", frozenset((Right.ADMIN,))), Action.APPEND, revoked=revoked) == 200
    )


def test_tokens_of_parts_make_an_upload_of_their_owner() -> None:
    holder = Principal(
        grants={"a": Grant("alice", 1.0), "b": Grant("alice", 1.0), "c": Grant("bob", 1.0)}
    )
    assert AccessPolicy().creator(holder, ["a", "b", "a"]) == "alice"
    for parts in ([], ["a", "c"], ["a", "d"]):
        with pytest.raises(ProtocolError) as refused:
            AccessPolicy().creator(holder, parts)
        assert refused.value.status == 403
