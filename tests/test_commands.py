import fcntl
import json
import os
import pty
import random
import re
import signal
import struct
import subprocess
import sys
import termios
import time

import commands
import numpy as np
import pytest
import tensorflow as tf

from keras_transfer import progress
from keras_transfer.commands import reproduce
from keras_transfer.runs import Run

QUICK = [
    f"--gin_file={commands.ROOT}/gin/rit_digits.gin",
    "--gin_bindings=fixup_resnet.widths = (4, 8)",
    "--gin_bindings=load.num_train = 64",
    "--gin_bindings=train.epochs = 12",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("runs") / "whole"
    status, output, errors = commands.run(
        "train", *QUICK, f"--work_dir={work_dir}"
    )
    assert status == 0, errors
    assert "best test accuracy" in output
    assert f"tensorboard --logdir {work_dir}" in output
    # Nothing but a line per epoch: no banners, and bars are for terminals.
    lines = errors.splitlines()
    assert len(lines) == 12
    for i, line in enumerate(lines, 1):
        words = rf"whole: epoch {i}/12, test accuracy [01]\.\d{{4}}"
        assert re.fullmatch(words, line)
    return Run(work_dir)


@pytest.mark.long
def test_killed_at_random_and_rerun_is_the_same_run(tmp_path, finished):
    # The seed makes the moments repeatable as far as a clock can be.
    moments = random.Random(2020)
    work_dir = tmp_path / "killed"
    flags = [*QUICK, f"--work_dir={work_dir}"]
    for _ in range(2):
        process = commands.start("train", *flags)
        begun = len(Run(work_dir).epochs())
        while process.poll() is None and len(Run(work_dir).epochs()) <= begun:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        # Not finished before the kill, or the test shows nothing.
        assert Run(work_dir).epochs()[-1] < 12
    status, _, errors = commands.run("train", *flags)
    assert status == 0, errors
    whole = finished.load_model().get_weights()
    for a, b in zip(
        whole, Run(work_dir).load_model().get_weights(), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert (
        Run(work_dir).metrics_path.read_text()
        == finished.metrics_path.read_text()
    )


def test_config_of_a_run_repeats_it(tmp_path, finished):
    status, _, errors = commands.run(
        "train",
        f"--gin_file={finished.config_path}",
        f"--work_dir={tmp_path / 'again'}",
        cwd=tmp_path,
    )
    assert status == 0, errors
    again = Run(tmp_path / "again")
    assert again.metrics_path.read_text() == finished.metrics_path.read_text()
    assert again.config_path.read_text() == finished.config_path.read_text()


def test_another_configuration_in_the_same_directory_is_refused(finished):
    status, _, errors = commands.run(
        "train",
        *QUICK,
        "--gin_bindings=train.seed = 1",
        f"--work_dir={finished.path}",
    )
    assert status == 1
    assert "another configuration" in errors
    assert "there: train.seed = 0" in errors
    assert "now:   train.seed = 1" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--work_dir=x"], "No configuration was given"),
        pytest.param(
            ["--work_dir=x", "--gin_file=nowhere.gin"],
            "nowhere.gin",
            marks=pytest.mark.long,
        ),
        pytest.param(
            ["--work_dir=x", *QUICK, "--gin_bindings=train.x = 1"],
            "'x'",
            marks=pytest.mark.long,
        ),
        (["--work_dir=x", *QUICK, "--gin_bindings=train.seed 1"], "seed 1"),
        (["--work_dir=x", "--gin_bindings=a = 1", "b"], "Received: b"),
        (QUICK, "work_dir"),
    ],
)
def test_bad_commands_end_in_a_sentence(tmp_path, flags, message):
    status, _, errors = commands.run("train", *flags, cwd=tmp_path)
    assert status == 1
    assert message in errors
    assert "Traceback" not in errors
    assert not os.listdir(tmp_path)


_EXAMPLES = {
    "train": "{}train --gin_file=gin/p_mnist.gin --work_dir=runs/p_mnist",
    "analyze": "{}analyze --gin_file=gin/interpolation.gin --work_dir=",
    "export": "{}export --run=runs/pt_digits --epoch=best --output=exported",
    "reproduce": "{}reproduce --gin_file=gin/study_digits.gin --work_dir=",
}


def _call(*arguments, **options):
    """Runs python -m keras_transfer."""
    process = subprocess.run(
        [sys.executable, "-m", "keras_transfer", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(commands.ROOT)},
        **options,
    )
    return process.returncode, process.stdout, process.stderr


@pytest.mark.parametrize("command", _EXAMPLES)
def test_help(tmp_path, command):
    as_module = _call(command, "--help", cwd=tmp_path)
    in_bin = commands.run(command, "--help", cwd=tmp_path)
    for prefix, (status, output, errors) in (
        ("python -m keras_transfer ", as_module),
        ("bin/", in_bin),
    ):
        assert (status, errors) == (0, "")
        assert _EXAMPLES[command].format(f"    {prefix}") in output
        flags = re.findall(r"^  --(\w+)", output, re.MULTILINE)
        assert {"gin_file", "gin_bindings"} < set(flags) and len(flags) < 9
    assert max(map(len, in_bin[1].splitlines())) <= 80
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("command", _EXAMPLES)
def test_without_arguments_it_says_what_to_do(tmp_path, command):
    status, output, errors = commands.run(command, cwd=tmp_path)
    assert (status, output) == (1, "")
    what = "--run and --output are" if command == "export" else "--work_dir is"
    assert f"Error: {what} missing. For example:" in errors
    assert _EXAMPLES[command].format("bin/") in errors
    assert "None" not in errors and "--help tells more" in errors


def test_all_commands_are_listed():
    status, output, errors = _call("--help")
    assert (status, errors) == (0, "")
    for command in (*_EXAMPLES, "init", "pack", "unpack"):
        assert f"  {command} " in output
    assert _call()[::2] == (1, output)
    wrong = _call("tran", "--gin_file=x")
    assert wrong[::2] == (
        1,
        f"Error: There is no command tran. Did you mean train?\n\n{output}",
    )
    assert _call("--version") == _call("train", "--version")
    assert _call("--version")[1].startswith("keras_transfer ")


def test_configurations_are_copied(tmp_path):
    status, output, _ = _call("init", "shuffled", "pt_folder.gin", cwd=tmp_path)
    assert status == 0
    assert sorted(os.listdir(tmp_path)) == ["pt_folder.gin", "shuffled.gin"]
    copy = (tmp_path / "shuffled.gin").read_text()
    source = (commands.ROOT / "gin" / "shuffled.gin").read_text()
    command = (
        "python -m keras_transfer train --gin_file=gin/pt_real.gin "
        "--gin_file=shuffled.gin"
    )
    assert copy.startswith(f"# {command} ") and command in output
    assert copy.partition("\n#\n")[2] == source.partition("\n#\n")[2]
    before = copy + "# Mine.\n"
    (tmp_path / "shuffled.gin").write_text(before)
    status, _, errors = _call("init", "shuffled", cwd=tmp_path)
    assert status == 1 and "exists already" in errors
    assert (tmp_path / "shuffled.gin").read_text() == before
    status, _, errors = _call("init", "study_fodler", cwd=tmp_path)
    assert status == 1 and "Did you mean study_folder?" in errors
    assert "Traceback" not in errors


def test_a_run_is_packed_and_unpacked(tmp_path, finished):
    status, output, errors = _call(
        "pack", finished.path, "--license=CC0-1.0", cwd=tmp_path
    )
    assert (status, errors) == (0, "")
    assert output.startswith("whole.zip  SHA-256 ") and "of --data" in output
    command = output.partition("unpack it:  python -m keras_transfer ")[2]
    unpacking = command.splitlines()[0].split()
    status, output, errors = _call(*unpacking, "--output=theirs", cwd=tmp_path)
    assert (status, errors) == (0, "")
    assert "theirs/README.md says what it is" in output
    theirs = Run(tmp_path / "theirs")
    assert (
        theirs.metrics_path.read_bytes() == finished.metrics_path.read_bytes()
    )
    status, _, errors = _call(*unpacking[:2], cwd=tmp_path)
    assert status == 0 and (tmp_path / "whole" / "config.gin").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pack"], "One directory is packed at a time. Received: none."),
        (["pack", "a", "b"], "Received: a b. For example: python -m keras_"),
        (["pack", "a"], "a is neither the directory of a run nor of a study"),
        (["pack", "--gin_fil=x", "a"], "Unknown command line flag 'gin_fil'"),
        (["unpack"], "One archive is unpacked at a time. Received: none."),
        (["unpack", "a.zip"], "'a.zip': No such file or directory."),
        (["unpack", "a.zip", "--output="], "--output is empty"),
    ],
)
def test_wrong_packing_ends_in_a_sentence(tmp_path, arguments, words):
    status, output, errors = _call(*arguments, cwd=tmp_path)
    assert (status, output) == (1, "")
    assert words in errors and "Traceback" not in errors
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("command", ["init", "pack", "unpack"])
def test_help_of_commands_that_take_names(command):
    status, output, errors = _call(command, "--help")
    assert (status, errors) == (0, "")
    assert f"    python -m keras_transfer {command} " in output
    flags = re.findall(r"^  --(\w+)", output, re.MULTILINE)
    assert (
        flags
        == {
            "init": [],
            "pack": ["output", "license", "data", "verbosity"],
            "unpack": ["output", "sha256", "verbosity"],
        }[command]
    )


def test_on_a_terminal_there_are_bars(tmp_path):
    ours, theirs = pty.openpty()
    size = struct.pack("4H", 24, 80, 0, 0)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    process = commands.start(
        "train", *QUICK, f"--work_dir={tmp_path}/r", output=theirs
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # How Linux says that the other end is closed.
            piece = b""
        if not piece:
            break
        seen += piece
    os.close(ours)
    assert process.wait() == 0
    assert b"100%" in seen and b"\nr: epoch" not in seen
    assert seen.count(b"epoch 12/12") >= 1


class _Executor:
    """Jobs of which every other one fails."""

    is_full = False

    def __init__(self):
        self.running = {}

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.running = None

    def submit(self, job):
        self.running[job.name] = job

    def wait(self):
        name, job = self.running.popitem()
        job.path.mkdir(parents=True)
        state = "failed" if name.endswith("1") else "finished"
        record = {"state": state, "seconds": 2.34}
        (job.path / "task.json").write_text(json.dumps(record))
        return name


class _Job:
    def __init__(self, root, name):
        self.name, self.path = name, root / name


def test_a_line_per_finished_task(tmp_path, capsys):
    with reproduce._Telling(_Executor()) as executor:
        for name in ("runs/p0", "runs/p1", "runs/p2"):
            executor.submit(_Job(tmp_path, name))
            assert executor.running and not executor.is_full
            assert executor.wait() == name
            # What is told within a task is not shown.
            progress.tell("epoch 1/2")
    assert executor.running is None
    assert capsys.readouterr().err == (
        "runs/p0: finished in 2.3 s\nruns/p2: finished in 2.3 s\n"
    )


def test_exported_model_serves_without_this_package(tmp_path, finished):
    output = tmp_path / "exported"
    status, _, errors = commands.run(
        "export", f"--run={finished.path}", "--epoch=best", f"--output={output}"
    )
    assert status == 0, errors
    dataset = finished.load_data()
    images = dataset.test.raw_images(np.arange(50))
    np.save(tmp_path / "images.npy", images)
    # -I: isolated, so this package cannot be imported from here.
    script = (
        "import sys, numpy as np, tensorflow as tf\n"
        "model = tf.saved_model.load('exported/1')\n"
        "images = np.load('images.npy')\n"
        "serve = model.signatures['serving_default']\n"
        "out = serve(images=tf.constant(images))\n"
        "real = model.signatures['serving_float']\n"
        "floats = real(images=tf.constant(images / 255, tf.float32))\n"
        "assert 'keras_transfer' not in sys.modules\n"
        "np.savez('served.npz', logits=out['logits'],\n"
        "    probabilities=out['probabilities'], floats=floats['logits'])\n"
    )
    subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, check=True
    )
    served = np.load(tmp_path / "served.npz")
    batch = next(iter(dataset.eval_batches(batch_size=50)))[0]
    expected = finished.load_model("best")(batch).numpy()
    for name in ("logits", "floats"):
        np.testing.assert_allclose(served[name], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        served["probabilities"], tf.nn.softmax(expected), atol=1e-6
    )
    status, _, errors = commands.run(
        "export", f"--run={finished.path}", f"--output={output}"
    )
    assert status == 1 and "exists already" in errors
