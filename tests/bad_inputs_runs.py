"""Run directories that are foreign or damaged."""

import json
import shutil

import domains
import numpy as np
from bad_inputs_case import (
    ROOT,
    Case,
    emptied,
    encoded,
    file_instead,
    remove,
    train,
)
from written_runs import reseal

_RUN_FILES = ("config.gin", "model.json", "data.json", "metrics.csv")
_CHECKPOINT = "checkpoints/epoch-0001"
# The files of a checkpoint and the commands that read them.
_READERS = {
    "weights.safetensors": ("distance", "export_last", "pretrained"),
    "optimizer.safetensors": ("resume",),
}


def run_case(name, change, commands, says="", ends="sentence"):
    """Yields cases of a changed run directory, one a command.

    Args:
        name: str, of the case.
        change: function of the run's directory.
        commands: keys of `_RUN_COMMANDS`.
        says: as in `Case`.
        ends: as in `Case`.
    """
    for command in commands:

        def make(directory, command=command):
            run = directory / "run"
            shutil.copytree(directory.parent / "trained", run)
            change(run)
            # So that what reads the file itself has to say it.
            reseal(run)
            return _RUN_COMMANDS[command](directory, run)

        yield Case(f"run for {command}", name, make, ends, says)


def analysis(name, *bindings):
    def flags(directory, run):
        both = {"P-T": [str(run)], "RI-T": [str(directory.parent / "other")]}
        runs = f"Models.models = {both}"
        return "analyze", [
            f"--gin_file={ROOT}/gin/{name}.gin",
            *(f"--gin_bindings={b}" for b in (runs, *bindings)),
            f"--work_dir={directory / 'output'}",
        ]

    return flags


def _export(epoch):
    def flags(directory, run):
        return "export", [
            f"--run={run}",
            f"--epoch={epoch}",
            f"--output={directory / 'output'}",
        ]

    return flags


def _from_pretrained(directory, run):
    bindings = ["load.num_train = 8", f"train.pretrained = {str(run)!r}"]
    return train(directory, *bindings, config="pt_digits.gin")


def _resume(directory, run):
    run.rename(directory / "output")
    return train(directory, "load.num_train = 8", config="rit_digits.gin")


_RUN_COMMANDS = {
    "distance": analysis("distance"),
    "mistakes": analysis("mistakes"),
    "feature_reuse": analysis("feature_reuse"),
    "export": _export("best"),
    "export_last": _export("last"),
    "pretrained": _from_pretrained,
    "resume": _resume,
}


def run_cases():
    """Yields run directories that are foreign or damaged."""
    damages = {
        "absent": lambda p: p.unlink(),
        "emptied": lambda p: p.write_bytes(b""),
        "cut": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
        "a directory": _directory_in_place,
        "binary": lambda p: p.write_bytes(np.random.RandomState(0).bytes(2000)),
    }
    for damage, change in damages.items():
        for file in ("config.gin", "model.json", "data.json"):
            # What a command does not read need not be whole.
            ends = "either" if file == "config.gin" else "sentence"
            yield from run_case(
                f"{file} {damage}",
                lambda run, f=file, c=change: c(run / f),
                ("mistakes", "export"),
                "run",
                ends,
            )
        for file, commands in _READERS.items():
            yield from run_case(
                f"{file} {damage}",
                lambda run, f=file, c=change: c(run / _CHECKPOINT / f),
                commands,
                "epoch-0001",
                # Training goes back to the checkpoint before.
                "well" if commands == ("resume",) else "sentence",
            )
        yield from run_case(
            f"metrics.csv {damage}",
            lambda run, c=change: c(run / "metrics.csv"),
            ("feature_reuse",),
            "metrics.csv",
        )
        yield from run_case(
            f"best.json {damage}",
            lambda run, c=change: c(run / "checkpoints/best.json"),
            ("export",),
            "best.json",
        )
    yield from _json_cases()
    yield from _metrics_cases()
    yield from _foreign_runs()


def _directory_in_place(path):
    path.unlink()
    path.mkdir()


def _json_cases():
    texts = ("null", "3", "[]", "{}", '"x"', "true", "NaN", '{"a": 1}')
    files = {
        "model.json": "export",
        "data.json": "mistakes",
        "checkpoints/best.json": "export",
    }
    for file, command in files.items():
        for text in texts:
            yield from run_case(
                f"{file} is {text}",
                lambda run, f=file, t=text: (run / f).write_text(t),
                (command,),
                file.split("/")[-1],
            )
    yield from _changed_data()
    for key, value in (
        ("epoch", "x"),
        ("epoch", 99),
        ("epoch", None),
        ("epoch", -1),
        ("epoch", 1.5),
    ):
        yield from run_case(
            f"best.json: {key} is {value!r}",
            lambda run, k=key, v=value: _change_json(
                run / "checkpoints/best.json", k, v
            ),
            ("export",),
            "run",
        )


def _changed_data():
    for part, key, value in (
        ("arguments", "name", "nothing_known"),
        ("arguments", "no_such", 1),
        ("arguments", "num_train", "x"),
        ("info", "no_such", 1),
        ("info", "image_shape", 3),
        ("info", "class_names", None),
        ("info", "mean", ["x"]),
        ("info", "image_shape", [9, 9, 1]),
    ):

        def change(run, part=part, key=key, value=value):
            path = run / "data.json"
            content = json.loads(path.read_text())
            content[part][key] = value
            path.write_text(json.dumps(content))

        name = f"data.json: {part}.{key} is {value!r}"
        # Numbers that only an export needs are not looked at.
        ends = "either" if key == "mean" else "sentence"
        yield from run_case(name, change, ("mistakes",), ends=ends)


def _change_json(path, key, value):
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


def _metrics_cases():
    header = "epoch,step,split,loss,accuracy\n"
    for name, text in {
        "header only": header,
        "without header": "0,0,test,2.3,0.1\n",
        "accuracy a word": header + "0,0,test,2.3,high\n1,2,test,2.2,x\n",
        "accuracy NaN": header + "0,0,test,nan,nan\n1,2,test,nan,nan\n",
        "epoch a word": header + "first,0,test,2.3,0.1\n",
        "short row": header + "0,0\n",
        "long row": header + "0,0,test,2.3,0.1,7,8\n",
        "open quote": header + '0,0,"test,2.3,0.1\n',
        "other columns": "a,b\n1,2\n",
        "no test row": header + "1,2,train,2.3,0.1\n",
        "zeros": "\0" * 500,
    }.items():
        yield from run_case(
            f"metrics.csv {name}",
            lambda run, t=text: (run / "metrics.csv").write_text(t),
            ("feature_reuse",),
            # A run that diverged has NaN, and is no damage.
            "" if name == "accuracy NaN" else "metrics.csv",
            # Cells beyond the columns are left out.
            "either" if name == "long row" else "sentence",
        )


def _foreign_runs():
    commands = ("distance", "export_last", "pretrained")
    names = {
        "absent": shutil.rmtree,
        "an empty directory": emptied("."),
        "a file": file_instead("."),
        "photographs": _photographs,
    }
    for name, change in names.items():
        yield from run_case(name, change, commands, "run")
    for name, change in {
        "no checkpoints": remove("checkpoints"),
        "checkpoints a file": file_instead("checkpoints"),
        "no checkpoint": emptied("checkpoints"),
        "checkpoint emptied": emptied(_CHECKPOINT),
        "checkpoint a file": file_instead(_CHECKPOINT),
    }.items():
        yield from run_case(name, change, commands, "run")
    yield from run_case(
        "of another architecture", _other_model, commands, "run"
    )
    yield from run_case(
        "foreign files besides", _foreign_files, commands, ends="well"
    )


def _photographs(run):
    shutil.rmtree(run)
    run.mkdir()
    (run / "cat.png").write_bytes(encoded(domains.photograph(0, 9, 9)))


def _other_model(run):
    path = run / "model.json"
    text = path.read_text()
    changed = text.replace('"filters": 2', '"filters": 3')
    if changed == text:
        raise ValueError("model.json does not have what this case changes")
    path.write_text(changed)


def _foreign_files(run):
    (run / "notes.txt").write_text("mine")
    (run / "checkpoints/epoch-x").mkdir()
    (run / "checkpoints/epoch-2.zip").write_bytes(b"PK")
    (run / "tensorboard/desktop.ini").write_bytes(b"\xff\xfe")
