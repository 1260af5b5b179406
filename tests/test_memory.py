import subprocess
import sys

import commands

# Takes and frees 64 MiB ten times; prints the pages the system handed out.
SCRIPT = """
import resource, sys
import numpy as np
from keras_transfer import memory

if sys.argv[1] == "keep":
    memory.keep_freed()
np.ones(2**23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(argument):
    finished = subprocess.run(
        [sys.executable, "-S", "-c", SCRIPT, argument],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join([str(commands.ROOT), *sys.path])},
    )
    return int(finished.stdout)


def test_freed_memory_is_not_handed_out_again():
    # 2**14 pages of 4 KiB at the most, each time, as glibc has it by default;
    # fewer where the system hands out larger pages.
    assert pages("default") > 100
    assert pages("keep") < 10
