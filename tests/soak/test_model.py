"""The model finds what is wrong in histories that cannot be true, and nothing in those that can."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.soak import facts
from tests.soak.facts import Fact
from tests.soak.history import History, lines_about
from tests.soak.model import SETTLES_SECONDS, Model, Violation

UP, OTHER = "/files/a", "/files/b"
NAME = "film/100"


def created(upload: str = UP, asked: float = 0.0, **more: object) -> facts.Created:
    known: dict[str, object] = {"fingerprint": "", "length": 100, "client": 0, **more}
    return facts.Created(upload, asked=asked, **known)  # type: ignore[arg-type]


def named(upload: str = UP, asked: float = 0.0, **more: object) -> list[Fact]:
    return [
        facts.Asked(NAME),
        created(upload, asked, fingerprint=NAME, **more),
    ]


def sending(start: int = 0, end: int = 60, **more: bool) -> facts.Sending:
    return facts.Sending(UP, start, end, **more)


def finished() -> list[Fact]:
    return [sending(0, 100), facts.Acknowledged(UP, 100), facts.Finished(UP, 100)]


def removed() -> list[Fact]:
    return [facts.Removing(UP), facts.Removed(UP)]


def refused(state: facts.State = "pending", location: str = "") -> list[Fact]:
    return [facts.Asked(NAME), facts.Refused(NAME, 5.0, state, location)]


def announced(kind: str = "post-finish", upload_id: str = "a", event: str = "1") -> Fact:
    return facts.Announced(kind, upload_id, event)


def flushed() -> list[Fact]:
    return [facts.Fault("redis flushed"), facts.Fault("redis flushed", ends=True)]


def learn(history: list[Fact]) -> Model:
    """Each fact a second after the one before; the end is checked as well."""
    model = Model()
    for at, fact in enumerate(history):
        model.learn(fact, float(at))
    model.check_events()
    return model


WRONG: dict[str, tuple[str, list[Fact]]] = {
    "an offset goes back": (
        "50 after 60",
        [created(), sending(), facts.Acknowledged(UP, 60), facts.Offset(UP, 50)],
    ),
    "an offset of bytes that were never sent": (
        "61 after 0",
        [created(), sending(), facts.Offset(UP, 61)],
    ),
    "a part of a chunk with a checksum counts": (
        "30 after 0",
        [created(), sending(verified=True), facts.Offset(UP, 30)],
    ),
    "a corrupt chunk counts": (
        "60 after 0",
        [created(), sending(verified=True, corrupt=True), facts.Offset(UP, 60)],
    ),
    "a finished upload loses bytes with the disk": (
        "0 after 100",
        [
            created(),
            *finished(),
            facts.Fault("disk lost bytes"),
            facts.Fault("disk lost bytes", ends=True),
            facts.Offset(UP, 0),
        ],
    ),
    "bytes are lost a second time": (
        "0 after 60",
        [
            created(),
            facts.Fault("disk lost bytes"),
            facts.Fault("disk lost bytes", ends=True),
            sending(),
            facts.Acknowledged(UP, 60),
            facts.Offset(UP, 0),
        ],
    ),
    "complete with fewer bytes": (
        "finished with 60 bytes of 100",
        [created(), sending(), facts.Acknowledged(UP, 60), facts.Finished(UP, 60)],
    ),
    "other bytes": ("other bytes", [created(), *finished(), facts.Downloaded(UP, right=False)]),
    "an upload is lost": ("nobody has removed it", [created(), facts.Missing(UP, 404)]),
    "two uploads with one URL": ("two uploads", [created(), created()]),
    "an answer that makes no sense": (
        "418",
        [created(), facts.Odd(UP, "418")],
    ),
    "a duplicate is let in": ("let in", [*named(), *named(OTHER, 5.0)]),
    "a duplicate of a finished one is let in": (
        "let in",
        [*named(), *finished(), *named(OTHER, 9.0)],
    ),
    "what is no duplicate is refused": ("it is no duplicate", refused()),
    "what was removed refuses": ("was removed", [*named(), *removed(), *refused()]),
    "refused as complete": ("nothing is", [*named(), *refused("complete")]),
    "told to go on with another upload": (
        "told to go on",
        [created(OTHER), *named(), *refused("pending", OTHER)],
    ),
    "finished, and nobody is told": (
        "finished, and nobody was told",
        [created(), *finished()],
    ),
    "removed, and nobody is told": ("removed, and nobody was told", [created(), *removed()]),
    "an unfinished upload is announced": (
        "it is not finished",
        [created(), sending(), announced()],
    ),
    "a part is announced": (
        "it is not finished",
        [created(is_part=True), *finished(), announced()],
    ),
    "two finishes": (
        "two finishes",
        [created(), *finished(), announced(), announced(event="2")],
    ),
    "an upload that nobody sent is announced": (
        "nobody sent them",
        [announced(upload_id="stranger")],
    ),
    "a finished upload expires": (
        "finished, and expired",
        [created(), *finished(), announced(), announced("post-expire")],
    ),
}

RIGHT: dict[str, list[Fact]] = {
    "a whole life": [
        *named(),
        sending(),
        facts.Acknowledged(UP, 60),
        sending(60, 100, verified=True),
        facts.Offset(UP, 100),
        facts.Finished(UP, 100),
        facts.Downloaded(UP, right=True),
        *refused("complete"),
        *removed(),
        facts.Missing(UP, 410),
        *named(OTHER, 20.0),
        announced(),
        announced(),
        announced("post-terminate"),
    ],
    "bytes of an earlier request arrive during a later one": [
        created(),
        sending(0, 60),
        facts.Offset(UP, 10),
        sending(10, 100, verified=True),
        facts.Offset(UP, 33),
    ],
    "unfinished bytes are lost with the disk": [
        created(),
        sending(),
        facts.Acknowledged(UP, 60),
        facts.Fault("disk lost bytes"),
        facts.Fault("disk lost bytes", ends=True),
        facts.Offset(UP, 0),
    ],
    "duplicates are forgotten with Redis": [*named(), *flushed(), *named(OTHER, 9.0)],
    "a creation without an answer is in the way": [
        facts.Asked(NAME),
        facts.Unanswered(NAME, whole=False),
        *refused(),
    ],
    "twins": [facts.Asked(NAME), *refused(), created(fingerprint=NAME)],
    "removed while Redis is away": [
        *named(),
        facts.Fault("redis killed"),
        *removed(),
        facts.Fault("redis killed", ends=True),
        *refused(),
        announced("post-terminate"),
    ],
    "the refusal of a duplicate names an upload whose creation fails": [
        facts.Asked(NAME),
        facts.Unanswered(NAME, whole=False),
        *refused("pending", OTHER),
        created(OTHER, fingerprint=NAME, forced=True, by_refusal=True),
        facts.Missing(OTHER, 404),
    ],
    "a creation that was answered with an error gives its fingerprint back": [
        *named(failed=True),
        facts.Offset(UP, 0),
        *named(OTHER),
    ],
    "so may one whose answer nobody saw": [
        facts.Asked(NAME),
        facts.Unanswered(NAME, whole=False),
        *refused("pending", UP),
        created(fingerprint=NAME, forced=True, by_refusal=True),
        facts.Offset(UP, 0),
        *named(OTHER),
    ],
    "force": [*named(), *named(OTHER, 5.0, forced=True)],
    "a finish that nobody saw": [
        facts.Asked(NAME),
        facts.Unanswered(NAME, whole=True),
        announced(upload_id="unseen"),
    ],
}


@pytest.mark.parametrize(("text", "history"), [*WRONG.values()], ids=[*WRONG])
def test_what_cannot_be_is_found(text: str, history: list[Fact]) -> None:
    with pytest.raises(Violation, match=text):
        learn(history)


@pytest.mark.parametrize("history", [*RIGHT.values()], ids=[*RIGHT])
def test_what_can_be_is_let_pass(history: list[Fact]) -> None:
    learn(history)


@pytest.mark.parametrize("offset", [50, 100])
def test_whole_parts_of_a_verified_chunk_may_count_in_a_bucket(offset: int) -> None:
    model = Model(part=50)
    for fact in (created(), sending(0, 120, verified=True), facts.Offset(UP, offset)):
        model.learn(fact)


@pytest.mark.parametrize("offset", [49, 51, 150])
def test_nothing_else_of_it_counts_before_its_end(offset: int) -> None:
    model = Model(part=50)
    for fact in (created(), sending(0, 120, verified=True)):
        model.learn(fact)
    with pytest.raises(Violation):
        model.learn(facts.Offset(UP, offset))


def test_an_outage_excuses_refusals_for_a_while_only() -> None:
    model = Model()
    history = [facts.Fault("redis killed"), facts.Fault("redis killed", ends=True), *named()]
    for fact in history:
        model.learn(fact, 0.0)
    for fact in removed():
        model.learn(fact, SETTLES_SECONDS + 1)
    model.learn(facts.Asked(NAME), SETTLES_SECONDS + 2)
    with pytest.raises(Violation, match="was removed"):
        model.learn(refused()[1], SETTLES_SECONDS + 2)


def test_the_history_of_an_upload_can_be_read_back(tmp_path: Path) -> None:
    history = History(tmp_path, Model())
    notes: list[tuple[str, Fact]] = [
        ("client-1", named()[0]),
        ("client-1", named()[1]),
        ("client-2", created(OTHER)),
        ("faults", facts.Fault("kill server", "4711")),
        ("client-1", sending()),
        ("events", announced("post-create")),
    ]
    for source, fact in notes:
        history.note(source, fact)
    history.close()
    lines = [line.split(maxsplit=1) for line in lines_about(tmp_path, UP)]
    assert [source for source, _ in lines] == ["client-1", "client-1", "faults", "client-1"]
    again = [facts.from_document(json.loads(line)) for _, line in lines]
    assert again == [notes[number][1] for number in (0, 1, 3, 4)]
