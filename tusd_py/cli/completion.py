"""`tusd-py completion`: prints the script by which a shell completes commands, flags and their values."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from tusd_py.cli.options import one_word, subcommand
from tusd_py.cli.output import write_line

ABOUT = """\
Print the script by which a shell completes commands, flags and their values. Installed packages bring it along, in
share/bash-completion, share/zsh and share/fish; elsewhere, in a file that the shell reads at its start:

bash: eval "$(tusd-py completion bash)"

zsh: eval "$(tusd-py completion zsh)"

fish: tusd-py completion fish | source
"""


@subcommand("bash | zsh | fish", ABOUT, settings=None)
@click.argument("shell", type=one_word("bash", "zsh", "fish"), default="")
def command(shell: str) -> int:
    """Print the script and return the exit code."""
    found = get_completion_class(shell)
    if found is None:
        raise ValueError(f"no completion for {shell}")
    # Not `source`, which runs bash to find its version.
    made = found(click.Command("tusd-py"), {}, "tusd-py", "_TUSD_PY_COMPLETE")
    write_line((made.source_template % made.source_vars()).strip())
    return 0
