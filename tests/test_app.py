"""What the commands share, in small commands of their own."""

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import commands
import pytest
import tensorflow as tf

import keras_transfer
from keras_transfer import app, environment
from keras_transfer.errors import UserError

_COMMAND = """
from keras_transfer import app, environment
import os, pathlib, sys
{prepare}
WORK_DIR = app.define_path("work_dir", "Where it works.")

def main():
    work_dir = pathlib.Path(WORK_DIR.value)
    (work_dir / "written").write_text("")
{main}

if __name__ == "__main__":
    app.run(main)
"""
# Keras takes seconds to import.
_QUICKLY = "environment.prepare_keras = lambda: None"


@pytest.fixture
def run(tmp_path):
    """Runs a command whose `main` has some lines; returns what came of it."""

    def start(main="pass", *flags, prepare=_QUICKLY, shell="", **environment):
        indented = "\n".join("    " + line for line in main.splitlines())
        script = tmp_path / "command.py"
        script.write_text(_COMMAND.format(prepare=prepare, main=indented))
        (tmp_path / "here").mkdir(exist_ok=True)
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        variables = os.environ | {
            "PYTHONPATH": str(commands.ROOT),
            "HOME": str(home),
        }
        finished = subprocess.run(
            ["bash", "-c", f'"$@" {shell}', "-", sys.executable, script]
            + list(flags or ["--work_dir=run"]),
            capture_output=True,
            text=True,
            cwd=tmp_path / "here",
            env={k: v for k, v in (variables | environment).items() if v},
        )
        return finished.returncode, finished.stdout, finished.stderr

    return start


def _check_sentence(result, words):
    status, _, errors = result
    assert status == 1
    assert f"\nError: {words}" in errors
    assert "Traceback" not in errors


# Paths.


@pytest.mark.parametrize("path", ["", " "])
def test_an_empty_path_is_refused(tmp_path, run, path):
    _check_sentence(run("", f"--work_dir={path}"), "--work_dir is empty")
    assert os.listdir(tmp_path / "here") == []


def test_a_home_directory_is_found(tmp_path, run):
    assert run("pass", "--work_dir=~/runs/x")[0] == 0
    assert (tmp_path / "home" / "runs" / "x" / "written").exists()
    assert os.listdir(tmp_path / "here") == []


def test_a_home_directory_that_is_not_known(tmp_path, run):
    words = "--work_dir begins with ~, and no such home directory is known."
    _check_sentence(run("", "--work_dir=~nobody_so_called/x"), words)
    no_home = "import pwd\npwd.getpwuid = lambda _: {}[0]\n" + _QUICKLY
    result = run("", "--work_dir=~/x", prepare=no_home, HOME="")
    _check_sentence(result, words)
    assert os.listdir(tmp_path / "here") == []


def test_gin_files_are_paths(tmp_path, run):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "a.gin").write_text("a = 'from home'")
    main = "import gin; app.parse_gin(); print(gin.config_str())"
    flags = ("--work_dir=run", "--gin_file=~/a.gin")
    assert "from home" in run(main, *flags)[1]


# Errors.


@pytest.mark.parametrize(
    ("main", "words"),
    [
        ("open('a/b')", "'a/b': No such file or directory. What was"),
        ("os.rename('a', 'b')", "'a' -> 'b': No such file or directory."),
        (
            "raise OSError(28, 'No space left on device')",
            "[Errno 28] No space left on device. What was",
        ),
        ("raise MemoryError", "There is not enough memory"),
        ("f = lambda: f(); f()", "Something is nested too deeply to be read"),
        ("sys.exit(3)", None),
    ],
)
def test_errors_of_the_machine_are_sentences(run, main, words):
    result = run(main)
    if words is None:
        assert result[0] == 3
    else:
        _check_sentence(result, words)


def test_faults_of_the_program_are_no_sentences(run):
    status, _, errors = run("1 / 0")
    assert status == 1
    assert "ZeroDivisionError" in errors and "Error: " not in errors.split()


def test_the_traceback_can_be_asked_for(run):
    result = run("open('a/b')", "--work_dir=run", "--verbosity=0")
    assert "Traceback" in result[2] and "Error: 'a/b'" in result[2]


def test_errors_of_tensorflow_are_sentences():
    error = tf.errors.ResourceExhaustedError(None, None, "OOM of [9]\nmore")
    assert app._sentence(error).startswith(
        "There is not enough memory or disk: OOM of [9] Make"
    )
    error = tf.errors.UnavailableError(None, None, "Socket closed")
    assert app._sentence(error) == "TensorFlow could not go on: Socket closed"
    assert app._sentence(UserError("No.")) == "No."
    assert app._sentence(ValueError("x")) == ""


@pytest.mark.parametrize("seconds", [0.1, 0.15, 0.2, 0.4, 0.8])
def test_interrupted_at_the_beginning(tmp_path, seconds):
    process = commands.start(
        "train",
        "--work_dir=x",
        cwd=tmp_path,
        # A shell has its jobs in the background ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode not in (0, 2)
    # Before anything of ours is imported, Python answers as it does.
    frames = [line for line in errors.splitlines() if 'File "' in line]
    assert not any("keras_transfer" in f or "absl" in f for f in frames)
    assert frames or "Error: Interrupted" in errors


# Flags.


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpshort"])
def test_help_shows_our_flags(run, flag):
    status, output, errors = run("1 / 0", "--work_dir=run", flag)
    assert (status, errors) == (0, "")
    flags = [s.strip() for s in output.splitlines() if s.startswith("  --")]
    assert flags == [
        "--gin_file=PATH",
        "--work_dir=PATH",
        "--gin_bindings=BINDINGS",
        "--verbosity=0",
    ]
    assert "Where it works." in output and "repeat this" not in output
    assert max(map(len, output.splitlines())) < 80


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--gin_fil=x", "Unknown command line flag 'gin_fil'. Did you mean: "),
        ("--gin_file=x", "--work_dir is missing."),
        ("--work_dir", "Missing value for flag --work_dir."),
    ],
)
def test_wrong_flags_are_sentences(tmp_path, run, flag, words):
    result = run("1 / 0", flag)
    _check_sentence(result, words)
    assert "None" not in result[2]
    assert os.listdir(tmp_path / "here") == []


def test_the_version(run):
    status, output, _ = run("1 / 0", "--version")
    assert status == 0
    assert output.startswith(f"keras_transfer {keras_transfer.__version__} (")
    assert f"tensorflow {tf.__version__}" in output


# What TensorFlow says at its beginning.

_HOLDS_BACK = """
import os, sys
from keras_transfer import environment
environment.prepare()
try:
    with environment._held_back() as reasons:
        os.write(2, b"banner\\n")
        {block}
except Exception as error:
    print(type(error).__name__, file=sys.stderr)
except KeyboardInterrupt:
    pass
os.write(2, b"after\\n")
"""


def _hold_back(block, **environment):
    script = _HOLDS_BACK.format(block=block)
    variables = {"PYTHONPATH": str(commands.ROOT)} | environment
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TF_")}
    finished = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=kept | variables,
    )
    return finished.returncode, finished.stderr.splitlines()


@pytest.mark.parametrize(
    ("block", "shown"),
    [
        ("pass", ["after"]),
        ("raise KeyboardInterrupt", ["after"]),
        ("1 / 0", ["banner", "ZeroDivisionError", "after"]),
        ("reasons.append('Why.')", ["banner", "Warning: Why.", "after"]),
    ],
)
def test_what_is_held_back(block, shown):
    assert _hold_back(block) == (0, shown)


def test_what_is_held_back_is_not_lost_with_the_process():
    assert _hold_back("os.abort()") == (-signal.SIGABRT, ["banner"])


def test_nothing_is_held_back_from_those_who_ask():
    shown = _hold_back("pass", TF_CPP_MIN_LOG_LEVEL="0")
    assert shown == (0, ["banner", "after"])


def test_a_disk_that_is_full_does_not_matter():
    script = _HOLDS_BACK.format(block="pass").replace(
        "environment.prepare()",
        "environment.prepare()\n"
        "def no_file(): raise OSError(28, 'No space left')\n"
        "environment.tempfile.TemporaryFile = no_file",
    )
    finished = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(commands.ROOT)},
    )
    assert finished.stderr == "banner\nafter\n"


@pytest.mark.parametrize("place", ["full", "absent"])
def test_without_room_for_temporary_files_there_is_a_sentence(
    tmp_path, monkeypatch, place
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    if place == "full":
        # A device that has no room for anything.
        monkeypatch.setattr(
            tempfile,
            "TemporaryFile",
            functools.partial(open, "/dev/full", "wb"),
        )
    with pytest.raises(UserError, match="tmp: No s.*set TMPDIR"):
        environment.check_temporary_files()


def test_banners_of_tensorflow_do_not_appear(run):
    main = "import tensorflow as tf; tf.config.list_logical_devices()"
    assert run(main, prepare="", TF_CPP_MIN_LOG_LEVEL="")[::2] == (0, "")


def test_tracing_again_is_no_warning(run):
    main = (
        "import tensorflow as tf\n"
        "@tf.function\n"
        "def f(x): return x\n"
        "for n in range(9): f(n)\n"
        "tf.get_logger().warning('Heard.')"
    )
    status, _, errors = run(main, prepare="")
    assert status == 0
    assert "Heard." in errors and "retracing" not in errors


# Standard streams.

_MUCH = "for i in range(9999): print('x' * 99)\n"
_DONE = "pathlib.Path('done').write_text('')"


@pytest.mark.parametrize(
    "shell",
    [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "| true", "2>&1 | head -1"],
)
def test_streams_that_nobody_reads(tmp_path, run, shell):
    main = (
        f"{_MUCH}"
        "print('err', file=sys.stderr)\n"
        "with open('file', 'w') as file:\n"
        "    assert file.fileno() > 2\n"
        f"os.write(2, b'from C'); {_DONE}"
    )
    flags = ("--work_dir=run",)
    status, _, errors = run(main, *flags, shell=f"{shell}; exit $?")
    assert status == 0 and "Error" not in errors
    assert (tmp_path / "here" / "done").exists()
    assert (tmp_path / "here" / "file").read_text() == ""


def test_a_full_standard_output_is_told_at_the_end(tmp_path, run):
    result = run(_MUCH + _DONE, shell="> /dev/full")
    words = "Standard output cannot be written: No space left on device."
    _check_sentence(result, words)
    assert (tmp_path / "here" / "done").exists()
    assert run(_MUCH + _DONE, shell="2> /dev/full")[0] == 0


def test_help_that_nobody_reads_to_its_end(run):
    _, output, errors = run("", "--help", shell="| head -1")
    assert output.count("\n") == 1 and errors == ""


def test_names_that_are_not_text(run):
    assert run(r"print('\udcff')")[1] == "\\udcff\n"


# Libraries.

_TOLD = """
import json, keras, matplotlib
matplotlib.use
print(json.dumps([keras.backend.backend(), keras.config.image_data_format(),
    keras.config.floatx(), keras.config.epsilon(),
    keras.config.dtype_policy().name, matplotlib.get_backend()]))
"""


@pytest.mark.parametrize(
    "backend", ["jax", pytest.param("nonsense", marks=pytest.mark.long)]
)
def test_what_the_environment_says_to_libraries(tmp_path, run, backend):
    settings = {
        "image_data_format": "channels_first",
        "floatx": "float64",
        "epsilon": 0.1,
        "backend": "torch",
    }
    (tmp_path / "keras.json").write_text(json.dumps(settings))
    status, output, errors = run(
        _TOLD,
        prepare="",
        KERAS_HOME=str(tmp_path),
        KERAS_BACKEND=backend,
        MPLBACKEND="module://matplotlib_inline.no_such_backend",
    )
    assert status == 0, errors
    told = json.loads(output)
    assert told[:3] == ["tensorflow", "channels_last", "float32"]
    assert told[3:] == [1e-7, "float32", "agg"]
    assert f"KERAS_BACKEND={backend} is not used" in errors


@pytest.mark.parametrize(
    "text", ["[]", '{"floatx": "float99"}', '{"image_data_format": 3}']
)
def test_a_keras_json_that_keras_refuses(tmp_path, run, text):
    (tmp_path / "keras.json").write_text(text)
    result = run("", prepare="", KERAS_HOME=str(tmp_path))
    _check_sentence(result, "Keras does not start (")
    assert f"{tmp_path}/keras.json" in result[2]
