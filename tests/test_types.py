"""What type checkers are told of the public names is what the code says."""

import ast
import inspect
import pathlib
import subprocess
import sys

import commands
import pytest

import keras_transfer

_STUB = pathlib.Path(keras_transfer.__file__).with_name("__init__.pyi")


def _told():
    """Returns {name: node} of the functions and classes in the stub."""
    tree = ast.parse(_STUB.read_text())
    return {
        node.name: node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }


def _methods(node):
    """Returns (path, function node) of a function or of a class's methods."""
    if isinstance(node, ast.FunctionDef):
        yield node.name, node
        return
    for each in node.body:
        is_property = getattr(each, "decorator_list", [])
        if isinstance(each, ast.FunctionDef) and not is_property:
            yield f"{node.name}.{each.name}", each


def _signature(node):
    """Returns {parameter: whether it has a default} of a function's node."""
    every = [*node.args.posonlyargs, *node.args.args]
    num_required = len(every) - len(node.args.defaults)
    told = {a.arg: i >= num_required for i, a in enumerate(every)}
    for rest in (node.args.vararg, node.args.kwarg):
        if rest:
            told[rest.arg] = False
    return told


def _default(text):
    return ... if text == "..." else ast.literal_eval(text)


@pytest.mark.parametrize("name", sorted(_told()))
def test_signatures_are_those_of_the_code(name):
    for path, node in _methods(_told()[name]):
        found = keras_transfer
        for part in path.split("."):
            found = getattr(found, part)
        parameters = inspect.signature(found).parameters
        assert _signature(node) == {
            n: p.default is not p.empty for n, p in parameters.items()
        }, path
        # Defaults, where they are told.
        for argument, value in zip(
            reversed(node.args.args), reversed(node.args.defaults), strict=False
        ):
            default = _default(ast.unparse(value))
            if default is not ...:
                assert parameters[argument.arg].default == default, path


def test_properties_and_methods_exist():
    for name, node in _told().items():
        for each in getattr(node, "body", []):
            if isinstance(each, ast.FunctionDef):
                assert hasattr(getattr(keras_transfer, name), each.name)


def test_every_public_name_is_told():
    told = set(_told()) | {"__version__", "figures", "UserError"}
    assert told == set(keras_transfer.__all__)


def _mypy(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "mypy", *arguments],
        capture_output=True,
        text=True,
        cwd=commands.ROOT,
    )


def test_wrong_types_are_found(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "wrong.py").write_text(
        "import keras_transfer as kt\n"
        "kt.interpolation('runs')\n"
        "kt.Models({}, epoch=[1])\n"
        "kt.averging\n"
        "kt.barrier_height([0], [0], True).lower()\n"
    )
    checked = _mypy("--cache-dir", tmp_path / "cache", tmp_path / "wrong.py")
    assert checked.returncode == 1
    for line in (2, 3, 4, 5):
        assert f"wrong.py:{line}: error" in checked.stdout, checked.stdout
