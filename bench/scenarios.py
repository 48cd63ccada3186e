"""What is measured: one line a scenario, with the work that it gives to the load generator."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.work import Work

KIB, MIB, GIB = 1024, 1024 * 1024, 1024 * 1024 * 1024
_FEW, _WIDE = 10, 10_000
IN_BUCKET = "s3"
"""The group of scenarios for servers whose uploads are in a bucket."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """group: what `--scenario` may name besides the scenario itself.

    latency: whose latency is shown. counts: "bytes", "uploads", "requests" or "connections", the units of the work.
    known: how many uploads are there before; asked: how many of these, chosen by chance, are used. needs: tus extensions
    without which a server is left out. volume: bytes enough that cold memory would be what is measured.
    """

    name: str
    group: str
    title: str
    work: Work
    quick: Work
    latency: str = "PATCH"
    counts: str = "bytes"
    known: int = 0
    asked: int = 0
    needs: tuple[str, ...] = ()
    volume: bool = True
    on_request: bool = False
    """Only when a flag asks for it."""
    beside: bool = False
    """Whether the server may use the load generator's processor too: for what servers do in several threads."""


def _transfer(length: int, chunk: int, connections: int = 1, *, checksum: bool = False) -> Work:
    return Work("transfer", length=length, chunk=chunk, connections=connections, checksum=checksum)


def _transfers() -> list[Scenario]:
    quick = _transfer(8 * MIB, 8 * MIB)
    return [
        Scenario(
            "large",
            "large",
            "One upload of 512 MiB by one PATCH",
            _transfer(512 * MIB, 512 * MIB),
            quick,
        ),
        Scenario(
            "large-4",
            "large",
            "4 uploads of 128 MiB at once, by one PATCH each",
            _transfer(128 * MIB, 128 * MIB, 4),
            replace(quick, connections=4),
        ),
        Scenario(
            "chunks-1m",
            "chunks",
            "8 uploads at once by PATCHes of 1 MiB",
            _transfer(64 * MIB, MIB, 8),
            _transfer(4 * MIB, MIB, 8),
        ),
        Scenario(
            "chunks-64k",
            "chunks",
            "8 uploads at once by PATCHes of 64 KiB",
            _transfer(32 * MIB, 64 * KIB, 8),
            _transfer(MIB, 64 * KIB, 8),
        ),
        Scenario(
            "checksum-1m",
            "checksum",
            "8 uploads at once by PATCHes of 1 MiB, each with its SHA-256; on all processors",
            _transfer(64 * MIB, MIB, 8, checksum=True),
            _transfer(2 * MIB, MIB, 8, checksum=True),
            needs=("checksum",),
            beside=True,
        ),
        Scenario(
            "checksum-64m",
            "checksum",
            "One upload by PATCHes of 64 MiB, each with its SHA-256; on all processors",
            _transfer(512 * MIB, 64 * MIB, checksum=True),
            _transfer(16 * MIB, 8 * MIB, checksum=True),
            needs=("checksum",),
            beside=True,
        ),
    ]


def _small() -> list[Scenario]:
    post_patch = Work("small", connections=32, length=16 * KIB, seconds=3.0)
    at_once = replace(post_patch, kind="small-at-once")
    return [
        Scenario(
            "small",
            "small",
            "Uploads of 16 KiB by POST and PATCH, 32 connections",
            post_patch,
            replace(post_patch, seconds=0.4),
            "upload",
            "uploads",
        ),
        Scenario(
            "small-at-once",
            "small",
            "Uploads of 16 KiB by one POST (creation-with-upload), 32 connections",
            at_once,
            replace(at_once, seconds=0.4),
            "POST",
            "uploads",
            needs=("creation-with-upload",),
        ),
    ]


def _slow() -> list[Scenario]:
    work = Work("slow", connections=1000, seconds=10.0)
    return [
        Scenario(
            "slow",
            "slow",
            "1,000 uploads at 1 KiB/s each, 10 seconds after the first 5",
            work,
            replace(work, connections=50, seconds=1.0),
            "",
            "connections",
            volume=False,
        )
    ]


def _many() -> list[Scenario]:
    found = []
    for count, short in ((10, "10"), (10_000, "10k"), (1_000_000, "1m")):
        heads = Work("heads", connections=8, seconds=2.0)
        patches = replace(heads, kind="patches", chunk=KIB)
        for work, method, name in ((heads, "HEAD", "head"), (patches, "PATCH", "patch")):
            what = "HEAD" if name == "head" else "PATCH of 1 KiB"
            # Asked for the same number, so that nothing else differs; and for more, which are never all in a processor's cache.
            for asked, suffix in ((_FEW, ""), (_WIDE, "-wide")):
                if asked <= count:
                    found.append(
                        Scenario(
                            f"many-{name}-{short}{suffix}",
                            "many",
                            f"{what} to {asked:,} of {count:,} known uploads, 8 connections",
                            work,
                            replace(work, seconds=0.4),
                            method,
                            "requests",
                            known=count,
                            asked=asked,
                            volume=False,
                            on_request=count > _WIDE,
                        )
                    )
    return found


def _downloads() -> list[Scenario]:
    whole = Work("download", length=GIB, requests=2)
    ranges = Work("download-ranges", connections=8, length=GIB, chunk=MIB, requests=2048)
    return [
        Scenario(
            "download",
            "download",
            "An upload of 1 GiB is read",
            whole,
            Work("download", length=16 * MIB, requests=2),
            "GET",
        ),
        Scenario(
            "download-range",
            "download",
            "Ranges of 1 MiB of an upload of 1 GiB, 8 connections",
            ranges,
            Work("download-ranges", connections=8, length=16 * MIB, chunk=MIB, requests=16),
            "GET",
        ),
    ]


def _in_buckets() -> list[Scenario]:
    """Some of the above, in a bucket."""
    found = [each for each in [*_transfers(), *_small()] if each.name in _ALSO_IN_BUCKETS]
    wide = Scenario(
        "large-8",
        "large",
        "8 uploads of 64 MiB at once, by one PATCH each",
        _transfer(64 * MIB, 64 * MIB, 8),
        _transfer(8 * MIB, 8 * MIB, 8),
    )
    return [
        replace(
            each,
            name=f"s3-{each.name}",
            group=IN_BUCKET,
            title=f"{each.title}, in a bucket",
            volume=False,
        )
        for each in [*found, wide]
    ]


_ALSO_IN_BUCKETS = {"large", "chunks-1m", "small", "small-at-once"}
SCENARIOS: list[Scenario] = [
    *_transfers(),
    *_small(),
    *_slow(),
    *_many(),
    *_downloads(),
    *_in_buckets(),
]
GROUPS: list[str] = list(dict.fromkeys(scenario.group for scenario in SCENARIOS))


def chosen(names: list[str], *, million: bool) -> list[Scenario]:
    """The scenarios of these names and groups; all if there is none. Raises ValueError for a name that is neither."""
    known = {scenario.name for scenario in SCENARIOS} | set(GROUPS)
    for name in names:
        if name not in known:
            raise ValueError(f"there is no scenario {name}; there are {', '.join(sorted(known))}")
    return [
        scenario
        for scenario in SCENARIOS
        if (not names or scenario.name in names or scenario.group in names)
        and (not scenario.on_request or million or scenario.name in names)
    ]
