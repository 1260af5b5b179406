"""Calling the commands: keras-transfer NAME, python -m keras_transfer NAME.

bin/NAME is the same as keras-transfer NAME.
"""

import difflib
import importlib
import os
import sys

from keras_transfer import app

_COMMANDS = {
    "train": "trains one model",
    "analyze": "runs analyses on finished runs",
    "export": "writes a trained model for use elsewhere",
    "reproduce": "trains all that a study needs, analyses it, writes a report",
    "compare": "holds two studies against each other",
    "init": "copies a configuration to the working directory, to edit",
    "pack": "writes a run or a study into one archive, to share it",
    "unpack": "checks such an archive and unpacks it",
}


def main():
    """Runs the command that the first argument names."""
    is_module = os.path.basename(sys.argv[0]) == "__main__.py"
    program = "python -m keras_transfer" if is_module else "keras-transfer"
    name, *rest = sys.argv[1:] or [""]
    if name in _COMMANDS:
        run(name, f"{program} ", rest)
    elif name in app.HELP:
        app.print_whole(_overview(program))
    elif name in app.VERSION:
        app.print_whole(app.versions())
    else:
        near = difflib.get_close_matches(name, _COMMANDS, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        wrong = f"Error: There is no command {name}.{hint}\n\n" if name else ""
        app.print_whole(wrong + _overview(program), sys.stderr)
        sys.exit(1)


def run(name, prefix="bin/", arguments=None):
    """Runs a command.

    Args:
        name: str, "train" or another.
        prefix: str, what stands before the name where a command is mentioned.
        arguments: list of str; None for those of this process.
    """
    command = importlib.import_module(f"keras_transfer.commands.{name}")
    app.set_prefix(prefix)
    if hasattr(command, "define_flags"):
        command.define_flags()
    app.run(command.main, command.__doc__, arguments)


def _overview(program):
    listed = "\n".join(f"  {n:<11}{text}" for n, text in _COMMANDS.items())
    return f"""\
What did transfer learning give me, and where in the network is it?

{program} COMMAND FLAGS:

{listed}

To begin with, 40 minutes on two CPU cores, without a download:

  {program} reproduce --gin_file=study_digits.gin --work_dir=study

{program} COMMAND --help tells how each is used."""
