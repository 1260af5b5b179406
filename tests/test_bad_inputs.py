"""What the commands do with a corpus of bad inputs; see bad_inputs.py."""

import collections
import json
import os
import subprocess
import sys

import bad_inputs
import bad_inputs_images
import commands
import pytest

# The short version: every so-manieth case of the corpus.
_EVERY = 61


def _run(directory, every):
    """Returns the records of bad_inputs.py, run in a fresh process."""
    script = bad_inputs.__file__
    environment = os.environ | {
        "PYTHONPATH": str(commands.ROOT),
        "CUDA_VISIBLE_DEVICES": "",
    }
    finished = subprocess.run(
        [sys.executable, script, str(directory), f"--every={every}"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert finished.returncode == 0, finished.stderr
    return [json.loads(line) for line in finished.stdout.splitlines()]


def _complaints(record):
    """Returns what is wrong with how a case ended, a list of str."""
    status, errors = record["status"], record["errors"]
    allowed = {"well": (0,), "sentence": (1,), "either": (0, 1)}
    found = []
    if status not in allowed[record["ends"]]:
        found.append(f"ended with {status}")
    if "Traceback" in errors:
        found.append("left a traceback")
    if record["memory"] > bad_inputs.MEMORY:
        found.append(f"took {record['memory'] / 2**30:.1f} GiB")
    if status == 1:
        sentence = errors.rpartition("\nError: ")[2].strip()
        if "\nError: " not in errors or not sentence:
            found.append("gave no sentence")
        elif record["says"] not in _told(sentence):
            found.append(f"did not say {record['says']!r}")
    if not _is_whole(record["output"], status):
        found.append(f"left {record['output']}")
    return found


def _told(sentence):
    """Returns a sentence without the bindings, which all stand at its end."""
    return sentence.partition(" --gin_bindings=")[0]


def _is_whole(output, status):
    """Returns whether what was left is a result if and only if it should."""
    training = {"config.gin", "model.json", "data.json", "metrics.csv"}
    begun = training | {"checkpoints/epoch-0000", "checkpoints/best.json"}
    if status:
        tables = [name for name in output if name.endswith((".csv", ".png"))]
        is_run = begun <= set(output)
        return is_run or not (tables or "config.gin" in output)
    exported = {"model.keras", "1/saved_model.pb"} <= set(output)
    trained = begun | {"checkpoints/epoch-0001"} <= set(output)
    analyzed = "config.gin" in output and any(
        name.endswith(".csv") for name in output
    )
    return exported or trained or analyzed


def _check(records):
    found = {
        f"{record['kind']}, {record['name']}": (
            _complaints(record),
            record["errors"][-1500:],
        )
        for record in records
        if _complaints(record)
    }
    text = "\n".join(f"{n}: {c}\n{e}" for n, (c, e) in found.items())
    assert not found, f"{len(found)} of {len(records)}:\n{text}"


def test_some_bad_inputs(tmp_path):
    records = _run(tmp_path, _EVERY)
    assert len(records) > 10
    assert {record["status"] for record in records} == {0, 1}
    _check(records)


@pytest.mark.long
def test_all_bad_inputs(tmp_path):
    records = _run(tmp_path, 1)
    _print_table(records)
    assert len(records) == len(bad_inputs.corpus()) >= 200
    _check(records)


def _print_table(records):
    counts = collections.Counter(
        (record["kind"], record["status"]) for record in records
    )
    kinds = list(dict.fromkeys(record["kind"] for record in records))
    print(f"\n{'kind':24} {'well':>6} {'sentence':>9} {'else':>6}")
    for kind in kinds:
        own = {s: n for (k, s), n in counts.items() if k == kind}
        other = sum(own.values()) - own.get(0, 0) - own.get(1, 0)
        print(f"{kind:24} {own.get(0, 0):6} {own.get(1, 0):9} {other:6}")
    most = max(record["memory"] for record in records) / 2**30
    seconds = sum(record["seconds"] for record in records)
    print(f"{len(records)} inputs, {seconds:.0f} s, at most {most:.2f} GiB")


_NOT_TOLD = "\nError: No. Received: --gin_file=d --gin_bindings='c.gin'"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({}, None),
        ({"status": 0}, "ended with 0"),
        ({"status": 139}, "ended with 139"),
        ({"errors": "Traceback (most recent call last)"}, "left a traceback"),
        ({"errors": "killed"}, "gave no sentence"),
        ({"says": "b.png"}, "did not say 'b.png'"),
        ({"says": "c.gin", "errors": _NOT_TOLD}, "did not say 'c.gin'"),
        ({"memory": 2**33}, "took 8.0 GiB"),
        ({"output": ["config.gin"]}, "left ['config.gin']"),
        ({"output": ["distance.csv"]}, "left ['distance.csv']"),
    ],
)
def test_every_kind_of_bad_end_is_noticed(changes, complaint):
    record = {
        "status": 1,
        "ends": "sentence",
        "says": "a.png",
        "errors": "\nError: 1 of 3 files cannot be decoded. Received: a.png.\n",
        "memory": 2**30,
        "output": ["tensorboard"],
    }
    found = _complaints(record | changes)
    assert (complaint in found) if complaint else not found


def test_names_are_unique_and_there_are_enough():
    names = [(case.kind, case.name) for case in bad_inputs.corpus()]
    assert len(names) >= 200
    repeated = [n for n, c in collections.Counter(names).items() if c > 1]
    assert not repeated


# As a user starts them: interpreter, imports and all.


def test_real_commands_with_bad_inputs(tmp_path):
    own = tmp_path / "case"
    own.mkdir()
    command, flags = bad_inputs_images.image_case("noise.png", b"noise").make(
        own
    )
    status, _, errors = commands.run(command, *flags)
    assert status == 1 and "Traceback" not in errors
    path = own / "images" / "train" / "class0" / "noise.png"
    assert f"Received: {path}" in errors
    assert not (own / "output").exists()
