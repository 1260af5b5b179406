"""Running the commands under bin/ as a user would."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def start(command, *flags, **options):
    """Starts bin/<command> and returns the `subprocess.Popen`."""
    return start_script(ROOT / "bin" / command, *flags, **options)


def start_script(path, *arguments, output=subprocess.PIPE, **options):
    """Starts a Python script and returns the `subprocess.Popen`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(path), *map(str, arguments)],
        stdout=output,
        stderr=output,
        text=True,
        env=environment,
        **options,
    )


def run(command, *flags, **options):
    """Runs bin/<command>; returns (exit status, standard output and error)."""
    process = start(command, *flags, **options)
    output, errors = process.communicate()
    return process.returncode, output, errors
