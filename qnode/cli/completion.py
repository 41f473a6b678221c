"""`qnode completion`: what a shell needs to complete the commands, options and files of both programs."""

import click

SHELLS = ("bash", "zsh", "fish")
PROGRAMS = ("qnode", "qnodectl")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.argument("program", type=click.Choice(PROGRAMS), required=False)
def completion(shell: str, program: str | None) -> int:
    """Print what SHELL needs to complete qnode and qnodectl, or PROGRAM alone.

    For one user, in the shell's start file: `source <(qnode completion bash)`, the same with zsh (after
    compinit), `qnode completion fish | source`. For all users: a file for each PROGRAM in the shell's folder
    of completions.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    for name in PROGRAMS if program is None else (program,):
        # The shell runs the program with this variable set; the program then finds its command itself.
        click.echo(kind(click.Command(name), {}, name, f"_{name.upper()}_COMPLETE").source())
    return 0
