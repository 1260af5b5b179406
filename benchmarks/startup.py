"""Seconds from the command to the first training step.

    python benchmarks/startup.py

Runs bin/train on the shipped MNIST digits until its progress bar shows a step
taken, and the import of TensorFlow alone for comparison.
"""

import argparse
import fcntl
import os
import pathlib
import pty
import re
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time

ROOT = pathlib.Path(__file__).parents[1]
_STEP_TAKEN = re.compile(rb" [1-9][0-9]*/[0-9]+ \[")


def until_first_step(work_dir):
    """Returns the seconds until bin/train has taken a step."""
    command = [
        sys.executable,
        str(ROOT / "bin" / "train"),
        f"--gin_file={ROOT / 'gin' / 'p_mnist.gin'}",
        f"--work_dir={work_dir}",
    ]
    # Only a terminal, one of some width, is shown a progress bar.
    ours, theirs = pty.openpty()
    size = struct.pack("4H", 24, 80, 0, 0)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stderr=theirs, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    os.close(theirs)
    seen = b""
    while not _STEP_TAKEN.search(seen):
        try:
            seen += os.read(ours, 4096)
        except OSError:  # How Linux says that the other end is closed.
            sys.exit(seen.decode())
    seconds = time.perf_counter() - began
    process.kill()
    process.wait()
    os.close(ours)
    return seconds


def importing_tensorflow():
    """Returns the seconds a process takes that only imports TensorFlow."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", "import tensorflow"],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    first_steps, imports = [], []
    for repeat in range(options.repeats):
        imports.append(importing_tensorflow())
        with tempfile.TemporaryDirectory() as scratch:
            first_steps.append(until_first_step(f"{scratch}/{repeat}"))
    first_step, imported = map(statistics.median, (first_steps, imports))
    print(
        f"first step after {first_step:.1f} s, {first_step / imported:.2f} "
        f"times the import of TensorFlow ({imported:.1f} s)"
    )


if __name__ == "__main__":
    main()
