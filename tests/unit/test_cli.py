"""The command `tusd-py` as its user meets it: output, exit codes, help."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tusd_py import __version__
from tusd_py.cli import main
from tusd_py.cli.app import COMMANDS
from tusd_py.settings.model import Settings
from tusd_py.settings.reference import catalogue

ROOT = Path(__file__).parents[2]


def run_python(
    *arguments: str, cwd: Path = ROOT, **environ: str
) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("TUSD_")}
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=60,
        env={**inherited, "PYTHONPATH": paths, "COLUMNS": "100", **environ},
    )


def run(*arguments: str, cwd: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "tusd_py", *arguments, cwd=cwd, **environ)


def test_without_arguments_there_is_a_short_help() -> None:
    done = run()
    assert done.returncode == 0
    assert done.stderr == ""
    assert all(f"\n  {name}" in done.stdout for name in COMMANDS)
    assert len(done.stdout.splitlines()) < 29


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (("manual",), "man/man1/tusd-py.1"),
        (("completion", "bash"), "bash-completion/completions/tusd-py"),
        (("completion", "zsh"), "zsh/site-functions/_tusd-py"),
        (("completion", "fish"), "fish/vendor_completions.d/tusd-py.fish"),
    ],
)
def test_what_packages_bring_for_shells_is_fresh(words: tuple[str, ...], file: str) -> None:
    done = run(*words)
    assert done.stdout == (ROOT / "share" / file).read_text(), "run make share"
    assert done.returncode == 0


def test_the_version_is_told() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"tusd-py {__version__}\n")


def test_config_prints_every_setting_with_where_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / "tusd.toml").write_text('max_size = "10GB"\n', encoding="utf-8")
    done = run("config", "--config=tusd.toml", "--port", "90", cwd=tmp_path, TUSD_HOST="::")
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in done.stdout.splitlines()}
    assert list(rows) == list(Settings.model_fields)
    assert rows["host"] == ["::", "environment TUSD_HOST"]
    assert rows["port"] == ["90", "flag --port"]
    assert rows["max_size"] == ["10GB", f"file {tmp_path}/tusd.toml"]
    assert rows["network_timeout"] == ["1m", "default"]
    assert rows["upload_dir"] == [f"{tmp_path}/data", "default"]
    assert rows["dir_perms"] == ["0750", "default"]


def test_config_prints_json_for_programs() -> None:
    done = run("config", "--json", "--max-size=1MiB", "--behind-proxy=unix", "--disable-cors")
    values = json.loads(done.stdout)
    assert list(values) == list(Settings.model_fields)
    assert values["max_size"] == {"value": 1048576, "origin": "flag --max-size"}
    assert values["network_timeout"]["value"] == 60.0
    assert values["dir_perms"]["value"] == "0750"
    assert values["behind_proxy"]["value"] == ["unix"]
    assert values["disable_cors"]["value"] is True
    assert values["unix_sock"]["value"] is None


def test_config_prints_the_page_of_settings() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    # Wherever it is run, and whatever is set there.
    assert run("config", "--markdown", TUSD_PORT="7").stdout == page


def test_config_warns_of_what_it_ignores_beside_its_output() -> None:
    done = run("config", "--json", TUSD_PROT="1")
    assert done.returncode == 0
    assert json.loads(done.stdout)
    assert done.stderr == (
        "tusd-py config: warning: TUSD_PROT is not a setting and is ignored; "
        "did you mean TUSD_PORT?\n"
    )


@pytest.mark.parametrize("command", ["serve", "config"])
def test_a_wrong_value_is_named_in_one_line_with_exit_code_2(command: str) -> None:
    done = run(command, "--port", "80x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f'tusd-py {command}: --port "80x": give a whole number from 0 to 65535\n'
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["serv"], 'tusd-py: unknown command "serv"; did you mean serve?'),
        (["--versoin"], "tusd-py: unknown option --versoin; did you mean --version?"),
        (["help", "nothing"], 'tusd-py: unknown command "nothing"'),
        (["serve", "--prot=1"], "tusd-py serve: unknown option --prot; did you mean --port?"),
        (["config", "--json", "--markdown"], "tusd-py config: --json and --markdown exclude each"),
    ],
)
def test_a_mistake_in_the_arguments_is_told_with_exit_code_2(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(told)
    assert output.err.count("\n") == 1


@pytest.mark.parametrize(
    "words", ["uploads list", "events list", "sweep", "check-s3", "adopt --from tusd"]
)
def test_a_bucket_without_its_extra_is_told_in_one_line(words: str, tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['aiobotocore'] = None\n"
        "from tusd_py.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    places = ("--s3-bucket", "bucket", "--upload-dir", str(tmp_path))
    done = run_python("-c", program, *words.split(), *places)
    told = "--s3-bucket needs the Python package aiobotocore: pip install 'tusd-py[s3]'"
    command = words.partition(" ")[0]
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"tusd-py {command}: {told}\n")


@pytest.mark.parametrize("words", [("config",), ("serve", "--help"), ("--version",)])
def test_output_that_nobody_reads_to_its_end_is_no_error(words: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen(
        [sys.executable, "-m", "tusd_py", *words],
        stdout=writer,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if not key.startswith("TUSD_")},
    ) as process:
        os.close(writer)
        _, told = process.communicate(timeout=60)
    assert told == b""
    assert process.returncode == 141


def test_an_interrupted_command_ends_quietly(tmp_path: Path) -> None:
    fifo = tmp_path / "tusd.toml"
    os.mkfifo(fifo)
    process = subprocess.Popen(
        [sys.executable, "-m", "tusd_py", "config", "--config", str(fifo)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    with process:
        # Opens as soon as the command reads it. Closed then, as a signal between two system calls interrupts neither.
        with fifo.open("w"):
            process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == 130


def test_help_is_short_unless_all_is_asked_for() -> None:
    short, whole = run("serve", "--help").stdout, run("serve", "--help", "all").stdout
    flags = re.findall(r"^  (--[a-z-]+)", short, re.MULTILINE)
    assert 10 < len(flags) < 16
    assert {"--port", "--upload-dir", "--max-size", "--redis-url", "--config"} <= {*flags}
    more = len(re.findall(r"^  --", whole, re.MULTILINE)) - len(flags)
    assert short.endswith(f"There are {more} more: tusd-py serve --help all\n")
    assert len(whole.splitlines()) > 2 * len(short.splitlines())


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["upl"], ["plain,uploads"]),
        (["serve", "--max-s"], ["plain,--max-size"]),
        (["serve", "--durability", ""], ["plain,none", "plain,finish", "plain,chunk"]),
        (["config", "--upload-dir", "x"], ["dir,x"]),
        (["uploads", "s"], ["plain,show"]),
        (["adopt", "--from", "tusp"], ["plain,tuspyserver"]),
    ],
)
def test_the_shell_completes(
    typed: list[str],
    offered: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("_TUSD_PY_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", shlex.join(["tusd-py", *typed]))
    monkeypatch.setenv("COMP_CWORD", str(len(typed)))
    assert main([]) == 0
    assert capsys.readouterr().out.splitlines() == offered


def test_bash_loads_the_completion_that_the_documentation_shows() -> None:
    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    [line] = re.findall(r"^eval .*completion bash.*$", page, re.MULTILINE)
    program = f'tusd-py() {{ "{sys.executable}" -m tusd_py "$@"; }}; export -f tusd-py\n'
    script = f"{program}{line}\ncomplete -p tusd-py"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "-F _tusd_py_completion tusd-py" in done.stdout


def test_help_tells_every_setting_with_default_and_variable() -> None:
    done = run("serve", "--help", "all")
    assert (done.returncode, done.stderr) == (0, "")
    assert run("serve", "--help-all").stdout == done.stdout
    assert run("help", "serve", "all").stdout == done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    text = re.sub(r"\s+", " ", done.stdout)
    for setting in catalogue(Settings):
        assert f" {setting.flag} " in text
        assert setting.description in text
        assert f"{setting.environment}]" in text
        if setting.default not in ("", "false"):
            assert f"[default {setting.default}, {setting.environment}]" in text
    groups = re.findall(r"^([A-Z][A-Za-z ]+):$", done.stdout, re.MULTILINE)
    assert groups == [
        "Network",
        "Storage",
        "Limits",
        "Time",
        "Expiry",
        "Protocol",
        "CORS",
        "Duplicates",
        "Hooks",
        "Hooks over HTTP and as executables",
        "Tokens",
        "Redis",
        "Pages",
        "Operators",
        "Operation",
        "General",
    ]


@pytest.mark.parametrize("columns", [20, 40, 66, 80, 300])
def test_help_fits_the_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["help", "serve"]) == 0
    lines = capsys.readouterr().out.splitlines()
    # What has no space in it (a URL, a flag with its choices) cannot be broken.
    longest = max(
        len(line) for line in lines if len(line.split()) > 3 and max(map(len, line.split())) < 30
    )
    assert longest <= max(min(columns, 100), 50)


def test_help_breaks_no_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or names could be neither read nor searched."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["help", "serve", "all"]) == 0
    brackets = str.maketrans("", "", "[]")
    shown = capsys.readouterr().out.translate(brackets).split()
    for setting in catalogue(Settings):
        words = f"{setting.description} {setting.environment}"
        if setting.default not in ("", "false"):
            words += f" {setting.default},"
        assert set(words.translate(brackets).split()) <= set(shown), setting.flag


def test_help_is_given_even_if_the_rest_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--nonsense", "-h"]) == 0
    assert capsys.readouterr().out.startswith("Usage: tusd-py serve")


def test_what_a_command_does_not_need_is_not_imported() -> None:
    heavy = ("pydantic", "starlette", "uvicorn", "prometheus_client", "asyncio")
    code = (
        "import sys; from tusd_py.cli import main; main(sys.argv[1:]);"
        f"sys.exit(','.join(m for m in {heavy} if m in sys.modules))"
    )

    def imported(*arguments: str) -> str:
        return run_python("-c", code, *arguments).stderr.strip()

    assert imported("--version") == ""
    assert imported("help") == ""
    assert imported("serve", "--help") == "pydantic"
    assert imported("serve", "--port=x").endswith("pydantic")


def test_serve_gives_the_server_its_settings_and_returns_its_exit_code(tmp_path: Path) -> None:
    code = """
import sys, types

def run(settings, origins):
    print(settings.port, settings.upload_dir, origins["port"])
    return 7

server = types.ModuleType("tusd_py.process.server")
server.run = run
sys.modules["tusd_py.process.server"] = server
from tusd_py.cli import main
sys.exit(main(sys.argv[1:]))
"""
    arguments = ["serve", "--port=0", "--upload-dir", str(tmp_path)]
    done = run_python("-c", code, *arguments, TUSD_PROT="1")
    assert (done.returncode, done.stdout) == (7, f"0 {tmp_path} flag --port\n")
    assert re.fullmatch(
        r"\S+Z WARN  TUSD_PROT is not a setting and is ignored; .*\n", done.stderr
    ), done.stderr
