"""Kills a study again and again, and compares it with one left alone.

    python tests/kill_study.py DIRECTORY [--kills=50] [FLAGS OF bin/reproduce]

Runs a study in DIRECTORY/whole undisturbed, and the same study in
DIRECTORY/killed with SIGKILL at random moments: anywhere, while a checkpoint or
another file is being written, and while the claims and the report are. After
each kill it checks that nothing finished was lost or done again, and at the end
that both have the same claims, tables, metrics and weights. Prints a line for
each kill, then the counts. Without flags it takes one replication of the digits
study.
"""

import collections
import fnmatch
import json
import os
import pathlib
import random
import re
import signal
import sys
import time

import commands
import numpy as np

from keras_transfer.runs.checkpoints import read_arrays

# Where a kill can be aimed at.
MOMENTS = ("anywhere", "writing", "report")
_ASIDE = re.compile(r".*\.tmp")


def start(path, flags):
    """Starts the study; what it says goes to a file beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".log"), "a") as log:
        return commands.start(
            "reproduce", f"--work_dir={path}", *flags, output=log
        )


def finish(path, flags):
    """Runs the study to its end; returns the seconds it took."""
    began = time.monotonic()
    status = start(path, flags).wait()
    assert status == 0, path.with_suffix(".log").read_text()[-2000:]
    return time.monotonic() - began


def find(path, pattern):
    """Yields paths by their names, below one that changes meanwhile."""
    for folder, directories, files in os.walk(path):
        for name in fnmatch.filter((*directories, *files), pattern):
            yield pathlib.Path(folder, name)


def records(path):
    """Returns {task: what its task.json says}."""
    return {
        str(file.parent.relative_to(path)): json.loads(file.read_text())
        for file in sorted(find(path, "task.json"))
    }


def kept(path):
    """Returns what a kill must not cost, each a set.

    They are the completions of tasks, of each run all epochs up to its newest
    checkpoint (older ones may be removed by the run itself) and the computed
    points of analyses.
    """
    completions = {
        (name, record["completion"])
        for name, record in records(path).items()
        if "completion" in record
    }
    epochs = {
        (str(p.parent.parent.relative_to(path)), epoch)
        for p in find(path, "epoch-*")
        for epoch in range(int(p.name.partition("-")[2]) + 1)
    }
    points = {
        (str(file.relative_to(path)), line)
        for file in find(path, "*.jsonl")
        for line in file.read_text().splitlines()
        if line.endswith("}")
    }
    return completions, epochs, points


def working_on(path):
    """Returns the task in progress, "" if there is none."""
    begun = [n for n, r in records(path).items() if r["state"] == "begun"]
    return begun[0] if begun else ""


def is_writing(path):
    """Returns whether a file or checkpoint is being written aside."""
    place = path / working_on(path)
    return any(
        _ASIDE.fullmatch(entry.name)
        for folder in (place, place / "checkpoints")
        if folder.is_dir()
        for entry in os.scandir(folder)
    )


def is_reporting(path, number):
    """Returns whether all tasks are finished, so that the report comes."""
    states = [record["state"] for record in records(path).values()]
    return states.count("finished") == number


def kill(path, flags, moment, delay, number):
    """Starts the study and kills it; returns a dict about that.

    Args:
        path: directory of the study.
        flags: of bin/reproduce.
        moment: of `MOMENTS`.
        delay: float, seconds from when the moment may come.
        number: int, tasks of the study.

    Returns:
        {"moment", "task": what was in progress, "lost": what should be there
        and is not}; None if the study ended before the moment came.
    """
    before, clutter = kept(path), _asides(path)
    process = start(path, flags)

    def wait(condition):
        while not condition() and process.poll() is None:
            time.sleep(0.001 if moment == "writing" else 0.02)

    if moment == "report":
        wait(lambda: is_reporting(path, number))
    else:
        wait(lambda: working_on(path) and (path / ".lock").exists())
    end = time.monotonic() + delay
    wait(lambda: time.monotonic() > end)
    if moment == "writing":
        wait(lambda: is_writing(path) and _asides(path) - clutter)
    if process.poll() is not None:
        assert process.returncode == 0, path.with_suffix(".log").read_text()
        return None
    process.send_signal(signal.SIGKILL)
    process.wait()
    lost = [sorted(b - a)[:3] for b, a in zip(before, kept(path), strict=True)]
    task = working_on(path) or "claims and report"
    return {"moment": moment, "task": task, "lost": [x for x in lost if x]}


def _asides(path):
    return {str(p) for p in find(path, ".*.tmp")}


def differences(whole, killed):
    """Returns the results in which two studies differ, a list of str."""
    found = []
    for file in sorted(whole.rglob("*.csv")):
        other = killed / file.relative_to(whole)
        if not other.is_file() or other.read_bytes() != file.read_bytes():
            found.append(str(file.relative_to(whole)))
    for directory in sorted(whole.rglob("epoch-*")):
        other = killed / directory.relative_to(whole)
        if not same_arrays(directory, other):
            found.append(str(directory.relative_to(whole)))
    if not (killed / "report.html").is_file():
        found.append("report.html")
    return found


def same_arrays(first, second):
    """Returns whether two checkpoints hold the same weights and the rest."""
    names = {path.name for path in first.iterdir()}
    if not second.is_dir() or {p.name for p in second.iterdir()} != names:
        return False
    for name in names:
        one, other = read_arrays(first / name), read_arrays(second / name)
        if list(one) != list(other) or not all(
            np.array_equal(one[path], other[path]) for path in one
        ):
            return False
    return True


def run(directory, kills, flags, seed=0, at_report=0.1):
    """Compares a study that is killed with one that is not.

    Args:
        directory: `pathlib.Path`, made if need be.
        kills: int.
        flags: list of str, of bin/reproduce.
        seed: int, of the random moments.
        at_report: float, the share of kills aimed at the report.

    Returns:
        (kills, differences): list of what `kill` returns, and of what the two
        studies differ in.
    """
    whole, killed = directory / "whole", directory / "killed"
    rng = random.Random(seed)
    if not (whole / "report.html").is_file():
        print(f"whole: {finish(whole, flags):.0f} s", flush=True)
    done = records(whole)
    work = sum(record["seconds"] for record in done.values())
    number = len(done)
    last = round(kills * at_report)
    results = []
    while len(results) < kills:
        moment = ("anywhere", "writing")[rng.random() < 0.4]
        delay = rng.uniform(0, 2 * work / (kills - last))
        only_report = is_reporting(killed, number)
        if len(results) >= kills - last or only_report:
            # Starting takes most of it, if nothing else is left.
            moment, delay = "report", rng.uniform(0, 20 if only_report else 6)
        result = kill(killed, flags, moment, delay, number)
        if result is not None:
            results.append(result)
            print(len(results), json.dumps(result), flush=True)
    finish(killed, flags)
    return results, differences(whole, killed)


def main(directory, *flags):
    """Prints how a study stood being killed; returns the exit status."""
    kills = [f for f in flags if f.startswith("--kills=")]
    flags = [f for f in flags if f not in kills]
    if not any(f.startswith("--gin_file=") for f in flags):
        flags.append(f"--gin_file={commands.ROOT}/gin/study_digits.gin")
        flags.append("--gin_bindings=Study.replications = 1")
    number = int(kills[0].partition("=")[2]) if kills else 50
    began = time.monotonic()
    results, different = run(pathlib.Path(directory), number, flags)
    counts = collections.Counter(
        (r["moment"], r["task"].partition("/")[0]) for r in results
    )
    for (moment, kind), count in sorted(counts.items()):
        print(f"{count:3} kills, {moment:9} {kind}")
    lost = sum(bool(r["lost"]) for r in results)
    seconds = time.monotonic() - began
    print(
        f"{len(results)} kills in {seconds / 60:.1f} minutes; {lost} lost "
        f"something finished; {len(different)} results differ: {different}"
    )
    return bool(lost or different)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
