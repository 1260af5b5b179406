"""Running the commands under bin/ as a user would."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
# One replication of the digits study: P, two P-Ts and two RI-Ts, nothing else.
SMALL_STUDY = [
    f"--gin_file={ROOT}/gin/study_digits.gin",
    "--gin_bindings=Study.targets = {'digits': {}}",
    "--gin_bindings=Study.replications = 1",
    "--gin_bindings=Study.block_sizes = []",
    "--gin_bindings=Study.pretrained_epochs = []",
    "--gin_bindings=Study.num_train = {}",
    "--gin_bindings=Study.analyses_of_one = []",
    "--gin_bindings=Study.analyses_of_three = []",
]


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
