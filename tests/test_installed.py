"""The package as a wheel, in an environment and a directory of its own."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import commands
import pytest

_SOURCES = (
    *("keras_transfer", "gin", "bin"),
    *("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"),
)
_QUICK = """
fixup_resnet.widths = (4, 8)
load.num_train = 64
train.epochs = 2
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Builds the wheel from a copy: what is built lies beside the sources."""
    root = tmp_path_factory.mktemp("wheel")
    for name in _SOURCES:
        source = commands.ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, root / "copy" / name, ignore=ignored)
        else:
            shutil.copy(source, root / "copy")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", root]
        + ["--no-build-isolation", root / "copy"],
        check=True,
        capture_output=True,
    )
    (path,) = root.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def run(wheel, tmp_path_factory):
    """Installs the wheel; runs its commands, or Python, where they are told.

    The dependencies are those of this environment.
    """
    root = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(root, symlinks=True)
    python = root / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install"]
        + ["--no-deps", "--no-index", wheel],
        check=True,
        capture_output=True,
    )
    paths = {"base": str(root), "platbase": str(root)}
    site = pathlib.Path(sysconfig.get_path("purelib", "venv", vars=paths))
    others = "\n".join(p for p in sys.path if p.endswith("-packages"))
    (site / "dependencies.pth").write_text(others)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def start(cwd, program, *arguments):
        finished = subprocess.run(
            [root / "bin" / program, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=cwd,
            env=environment,
        )
        return finished.returncode, finished.stdout, finished.stderr

    return start


def test_the_wheel_holds_all_that_is_needed(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    needed = {
        str(path.relative_to(commands.ROOT))
        for path in (commands.ROOT / "keras_transfer").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert needed <= held
    shipped = {p.name for p in (commands.ROOT / "gin").glob("*.gin")}
    assert {f"keras_transfer/gin/{name}" for name in shipped} <= held
    # The only ones: the directory beside the package is their source.
    assert not (commands.ROOT / "keras_transfer" / "gin").exists()
    assert not any(name.startswith(("gin/", "tests/")) for name in held)


def test_what_is_run_is_what_was_installed(tmp_path, run):
    script = "import keras_transfer as k; print(k.__file__)"
    status, output, errors = run(tmp_path, "python", "-c", script)
    assert status == 0, errors
    assert str(commands.ROOT) not in output and "installed" in output


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("p_mnist.gin", marks=pytest.mark.long),
        pytest.param("gin/p_mnist.gin", marks=pytest.mark.long),
        "mine.gin",
    ],
)
def test_training_outside_the_clone(tmp_path, run, name):
    (tmp_path / "mine.gin").write_text("include 'p_mnist.gin'\n")
    (tmp_path / "quick.gin").write_text(_QUICK)
    status, output, errors = run(
        tmp_path,
        "keras-transfer",
        "train",
        f"--gin_file={name}",
        "--gin_file=quick.gin",
        "--work_dir=p",
    )
    assert status == 0, errors
    assert "keras-transfer export --run=p" in output
    # No banners, no bars, but a line per epoch.
    assert [e.partition(", test")[0] for e in errors.splitlines()] == [
        "p: epoch 1/2",
        "p: epoch 2/2",
    ]


def test_a_study_is_copied_and_edited(tmp_path, run):
    status, output, errors = run(
        tmp_path, "keras-transfer", "init", "study_digits"
    )
    assert (status, errors) == (0, "")
    command = "keras-transfer reproduce --gin_file=study_digits.gin"
    assert command in output
    path = tmp_path / "study_digits.gin"
    assert path.read_text().startswith(f"# {command} --work_dir=")
    shipped, edited = (f"Study.replications = {n}\n" for n in (8, 2))
    assert shipped in path.read_text()
    path.write_text(path.read_text().replace(shipped, edited))
    plan = run(
        tmp_path,
        "python",
        "-m",
        "keras_transfer",
        "reproduce",
        "--gin_file=study_digits.gin",
        "--work_dir=s",
        "--dry_run",
    )
    assert plan[0] == 0, plan[2]
    assert "All 2 replications are like this one." in plan[1]
    again = run(tmp_path, "keras-transfer", "init", "study_digits")
    assert again[0] == 1 and "exists already and is kept" in again[2]


def test_all_are_listed(tmp_path, run):
    status, output, _ = run(tmp_path, "keras-transfer", "init")
    assert status == 0
    for path in (commands.ROOT / "gin").glob("*.gin"):
        assert f"  {path.stem} " in output
    assert os.listdir(tmp_path) == []
