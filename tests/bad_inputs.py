"""A corpus of inputs nobody should give, and what the commands do with them.

    python tests/bad_inputs.py DIRECTORY [--every N] [--kind WORDS]

Writes each input below DIRECTORY, puts it through the real command and prints
a line of JSON on how that ended. TensorFlow is imported once; every case is a
process of its own, forked from here before TensorFlow's runtime has started.
The inputs are in bad_inputs_<kind>.py.
"""

import argparse
import json
import os
import pathlib
import resource
import runpy
import shutil
import sys
import time
import traceback

import bad_inputs_analyses
import bad_inputs_configuration
import bad_inputs_data
import bad_inputs_images
import bad_inputs_runs
import bad_inputs_studies
from bad_inputs_case import ROOT, train

# No machine has less, and an image that needs more is named instead.
MEMORY = 3 * 2**30
_ADDRESS_SPACE = 16 * 2**30
_SECONDS = 120


def corpus():
    """Returns all cases, in a fixed order."""
    return [
        *bad_inputs_images.truncated_images(),
        *bad_inputs_images.odd_images(),
        *bad_inputs_images.corrupt_headers(),
        *bad_inputs_images.large_images(),
        *bad_inputs_data.chexpert_cases(),
        *bad_inputs_data.folder_cases(),
        *bad_inputs_configuration.config_cases(),
        *bad_inputs_configuration.value_cases(),
        *bad_inputs_runs.run_cases(),
        *bad_inputs_analyses.models_cases(),
        *bad_inputs_studies.study_cases(),
    ]


def _become(command, flags, directory):
    """Runs bin/<command> in this process, which ends with it."""
    limit = (_ADDRESS_SPACE, _ADDRESS_SPACE)
    resource.setrlimit(resource.RLIMIT_AS, limit)
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(directory / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    os.chdir(directory)
    sys.argv = [str(ROOT / "bin" / command), *flags]
    status = 70
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(child):
    """Returns (status, resources) of a child, killed if it takes too long."""
    end = time.monotonic() + _SECONDS
    while True:
        ended, status, used = os.wait4(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), used
        if time.monotonic() > end:
            os.kill(child, 9)
        time.sleep(0.02)


def _fork(command, flags, directory):
    began = time.monotonic()
    child = os.fork()
    if not child:
        _become(command, flags, directory)
    status, used = _wait(child)
    return {
        "status": status,
        "errors": (directory / "stderr").read_text(errors="replace"),
        "output": _listing(directory / "output"),
        "memory": used.ru_maxrss * 1024,
        "seconds": round(time.monotonic() - began, 2),
    }


def _listing(directory):
    if not directory.is_dir():
        return ["."] if directory.exists() else []
    return sorted(
        str(path.relative_to(directory)) for path in directory.rglob("*")
    )


def run_cases_of(cases, directory):
    """Yields (case, how it ended) one by one.

    Args:
        cases: list of `Case`.
        directory: `pathlib.Path` that holds a run, `trained`.
    """
    for i, case in enumerate(cases):
        own = directory / f"case{i:03d}"
        own.mkdir()
        command, flags = case.make(own)
        yield case, _fork(command, flags, own)
        shutil.rmtree(own, ignore_errors=True)


def _train_once(directory):
    own = directory / "made"
    own.mkdir()
    flags = train(own, "load.num_train = 8", config="rit_digits.gin")
    ended = _fork(*flags, own)
    if ended["status"]:
        raise RuntimeError(ended["errors"])
    (own / "output").rename(directory / "trained")
    # To compare with, and themselves never damaged.
    for name in ("other", "third"):
        shutil.copytree(directory / "trained", directory / name)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--kind", default="")
    arguments = parser.parse_args()
    # All that the commands import, so that no case waits for it.
    import matplotlib.figure  # noqa: F401
    import pandas  # noqa: F401
    import tqdm  # noqa: F401

    from keras_transfer import (  # noqa: F401
        analysis,
        app,
        export,
        study,
        training,
    )

    _train_once(arguments.directory)
    cases = [c for c in corpus() if arguments.kind in c.kind]
    cases = cases[:: arguments.every]
    for case, ended in run_cases_of(cases, arguments.directory):
        record = {
            "kind": case.kind,
            "name": case.name,
            "ends": case.ends,
            "says": case.says,
        }
        print(json.dumps(record | ended), flush=True)


if __name__ == "__main__":
    main()
