"""Seconds from the command to the first training step.

    python benchmarks/startup.py

Runs bin/train on the shipped MNIST digits until its progress bar shows a step
taken, and the import of TensorFlow alone for comparison.
"""

import argparse
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
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
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    seen = b""
    while not _STEP_TAKEN.search(seen):
        piece = os.read(process.stderr.fileno(), 4096)
        if not piece:
            sys.exit(seen.decode())
        seen += piece
    seconds = time.perf_counter() - began
    process.kill()
    process.wait()
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
