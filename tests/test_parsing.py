import contextlib
import re
import sys

import gin
import pytest

from keras_transfer import config
from keras_transfer.config import parsing
from keras_transfer.errors import UserError


@gin.configurable(module="parsing_test")
def parsed_consumer(value=None, other=None):
    return value, other


def _value():
    return gin.query_parameter("parsed_consumer.value")


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A working directory, apart from where configurations lie."""
    (tmp_path / "work").mkdir()
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path / "work"


def _write(path, text, encoding="utf-8"):
    path.write_text(text, encoding=encoding)
    return str(path)


# Where files are.


def test_an_include_is_beside_the_file_that_includes_it(tmp_path, work):
    mine = tmp_path / "mine"
    _write(work / "base.gin", "parsed_consumer.value = 'work'")
    _write(mine / "base.gin", "parsed_consumer.value = 'beside'")
    config.parse([_write(mine / "a.gin", "include 'base.gin'")], [])
    assert _value() == "beside"


def test_an_include_of_an_include_is_beside_that(tmp_path, work):
    deep = tmp_path / "mine" / "deep"
    deep.mkdir()
    _write(tmp_path / "mine" / "base.gin", "parsed_consumer.value = 'outer'")
    _write(deep / "base.gin", "parsed_consumer.value = 'inner'")
    _write(deep / "b.gin", "include 'base.gin'")
    for name in ("deep/b.gin", str(deep / "b.gin"), "../mine/deep/b.gin"):
        path = _write(tmp_path / "mine" / "a.gin", f"include '{name}'")
        gin.clear_config()
        config.parse([path], [])
        assert _value() == "inner"


def test_then_it_is_one_of_those_shipped(tmp_path, work, monkeypatch):
    shipped = tmp_path / "gin"
    shipped.mkdir()
    monkeypatch.setattr(parsing, "SHIPPED", shipped)
    _write(work / "base.gin", "parsed_consumer.value = 'work'")
    path = _write(tmp_path / "mine" / "a.gin", "include 'base.gin'")
    config.parse([path], [])
    assert _value() == "work"
    gin.clear_config()
    _write(shipped / "base.gin", "parsed_consumer.value = 'shipped'")
    config.parse([path], [])
    assert _value() == "shipped"
    gin.clear_config()
    # What the user names is the user's.
    config.parse(["base.gin"], ["parsed_consumer.other = 1"])
    assert _value() == "work"


def test_files_of_a_study_are_beside_it(tmp_path, work):
    _write(work / "p.gin", "parsed_consumer.value = 'work'")
    _write(tmp_path / "mine" / "p.gin", "parsed_consumer.value = 'beside'")
    study = _write(tmp_path / "mine" / "study.gin", "")
    config.parse([study], [])
    gin.clear_config()
    config.parse(["p.gin"], [], included=True)
    assert _value() == "beside"


def test_what_is_missing_is_named_with_where_it_was_looked_for(tmp_path, work):
    path = _write(tmp_path / "mine" / "a.gin", "\ninclude 'no.gin'")
    with pytest.raises(UserError) as caught:
        config.parse([path], [])
    text = str(caught.value)
    assert f"There is no file no.gin. Looked for: {tmp_path}/mine/no" in text
    assert "a.gin" in text and "line 2" in text


def test_files_that_include_each_other(tmp_path, work):
    a = _write(tmp_path / "mine" / "a.gin", "include 'b.gin'")
    _write(tmp_path / "mine" / "b.gin", "include '../mine/a.gin'")
    with pytest.raises(
        UserError, match="includes itself: .*a.gin includes .*b"
    ):
        config.parse([a], [])
    # Twice one after the other is no loop.
    gin.clear_config()
    _write(tmp_path / "mine" / "b.gin", "parsed_consumer.value = 1")
    config.parse([_write(work / "c.gin", "include '../mine/b.gin'\n" * 2)], [])
    assert _value() == 1


def test_a_byte_order_mark(tmp_path, work):
    text = "parsed_consumer.value = 'Füße'\n"
    path = _write(tmp_path / "mine" / "a.gin", text, "utf-8-sig")
    config.parse([path], [])
    assert _value() == "Füße"


def test_those_shipped_are_found_wherever_one_works(
    tmp_path, work, monkeypatch
):
    shipped = tmp_path / "gin"
    shipped.mkdir()
    monkeypatch.setattr(parsing, "SHIPPED", shipped)
    _write(shipped / "a.gin", "include 'gin/b.gin'")
    _write(shipped / "b.gin", "parsed_consumer.value = 'shipped'")
    for name in ("a.gin", "gin/a.gin"):
        gin.clear_config()
        config.parse([name], [])
        assert _value() == "shipped"
    # What a study that is shipped names lies beside it, then here.
    _write(work / "b.gin", "parsed_consumer.value = 'work'")
    gin.clear_config()
    config.parse(["b.gin"], [], included=True)
    assert _value() == "shipped"


# What was meant.


@pytest.mark.parametrize(
    ("binding", "meant"),
    [
        ("parsed_consumr.value = 1", "parsed_consumer"),
        ("Parsed_Consumer.value = 1", "parsed_consumer"),
        ("scope/parsing_test.parsed_consumr.value = 1", "parsed_consumer"),
        ("parsed_consumer.valeu = 1", "value"),
        ("parsed_consumer.value = @parsed_consumr()", "parsed_consumer"),
        ("parsed_consumr:\n  value = 1", "parsed_consumer"),
        ("wholly_strange.value = 1", None),
        ("parsed_consumer.wholly_strange = 1", None),
    ],
)
def test_the_nearest_name_is_suggested(work, binding, meant):
    with pytest.raises(UserError) as caught:
        config.parse([], [binding])
    hints = re.findall(r"'\. Did you mean (\w+)\?", str(caught.value))
    assert hints == [meant] * bool(meant)


def test_the_nearest_file_is_suggested(tmp_path, work):
    _write(tmp_path / "mine" / "portraits.gin", "")
    for name, meant in (
        ("p_mnits.gin", "p_mnist"),
        ("gin/study_diggits.gin", "study_digits"),
        (str(tmp_path / "mine" / "portrait.gin"), "portraits"),
        ("nothing_like_it.gin", None),
    ):
        with pytest.raises(UserError) as caught:
            config.parse([name], [])
        hint = f"Did you mean {meant}.gin?" if meant else "Looked for: "
        assert f"There is no file {name}. {hint}" in str(caught.value)


# Gin's own syntax.


def test_statements_of_every_kind(tmp_path, work):
    text = """
        import json
        a = 3
        parsed_consumer:
            value = %a
            other = [@scope/parsed_consumer, {'x': (1, -2.5)}]
        scope/parsed_consumer.value = 'in a scope'
        parsing_test.parsed_consumer.other = None
    """.replace("\n        ", "\n")
    config.parse([_write(tmp_path / "mine" / "a.gin", text)], ["a = 4"])
    assert parsed_consumer() == (4, None)
    with gin.config_scope("scope"):
        assert parsed_consumer() == ("in a scope", None)
    assert "import json" in gin.config_str()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\nno_such.value = 1", "matching 'no_such'.*a.gin.*line 2"),
        ("\nparsed_consumer.no = 1", "parameter named 'no'.*a.gin.*line 2"),
        ("\nno_such:\n  value = 1", "matching 'no_such'.*a.gin.*line 2"),
        ("\nimport no_such_module", "No module named 'no_such.*line 2"),
        ("\nparsed_consumer.value = ", "a.gin"),
    ],
)
def test_errors_tell_where(tmp_path, work, text, words):
    path = _write(tmp_path / "mine" / "a.gin", text)
    with pytest.raises(UserError) as caught:
        config.parse([path], [])
    found = str(caught.value).replace("\n", " ")
    assert re.search(words, found), found


# Modules.


@contextlib.contextmanager
def _module(folder, name, text):
    (folder / f"{name}.py").write_text(text)
    try:
        yield
    finally:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("place", ["mine", "work"])
def test_modules_beside_and_in_the_working_directory(tmp_path, work, place):
    name = f"parsing_test_{place}"
    text = (
        "import gin\n@gin.configurable(module='parsing_test_user')\n"
        f"def {name}(value=0):\n    return value\n"
    )
    path = _write(
        tmp_path / "mine" / "a.gin", f"import {name}\n{name}.value = 3"
    )
    with _module(tmp_path / place, name, text):
        config.parse([path], [])
        assert sys.modules[name].__dict__[name]() == 3
    # After all that is installed.
    added = str(tmp_path / place)
    assert sys.path.index(added) > max(
        i for i, p in enumerate(sys.path) if "site-packages" in p
    )


def test_a_module_beside_what_is_included(tmp_path, work):
    (tmp_path / "other").mkdir()
    _write(tmp_path / "other" / "b.gin", "import parsing_test_included")
    path = _write(tmp_path / "mine" / "a.gin", "include '../other/b.gin'")
    with _module(tmp_path / "other", "parsing_test_included", ""):
        config.parse([path], [])


@pytest.mark.parametrize("result", ["model.json", "task.json", "tensorboard"])
def test_a_directory_of_results_is_no_place_for_modules(tmp_path, work, result):
    mine = tmp_path / "mine"
    (mine / result).mkdir()
    path = _write(mine / "config.gin", "import parsing_test_strange")
    with (
        _module(mine, "parsing_test_strange", "raise SystemExit('executed')"),
        pytest.raises(UserError, match="No module named 'parsing_test_str"),
    ):
        config.parse([path], [])
    assert str(mine) not in sys.path


def test_a_module_that_fails_is_a_sentence(tmp_path, work):
    path = _write(tmp_path / "mine" / "a.gin", "import parsing_test_failing")
    words = (
        "import parsing_test_failing ended with NameError: name 'nobody' is "
        "not defined .*parsing_test_failing.py, line 2"
    )
    with (
        _module(tmp_path / "mine", "parsing_test_failing", "\nnobody\n"),
        pytest.raises(UserError, match=words),
    ):
        config.parse([path], [])


# Former names.


@pytest.fixture
def renamed(monkeypatch):
    names = {
        "Parsed.runs": "parsed_consumer.value",
        "Parsed.data_from": "parsed_consumer.other",
    }
    monkeypatch.setattr(parsing, "_FORMER_NAMES", names)


@pytest.mark.parametrize(
    "text",
    [
        "Parsed.runs = {'a': ['b']}",
        "Parsed:\n  runs = {'a': ['b']}\n",
        "keras_transfer.analysis.Parsed.runs = {'a': ['b']}",
    ],
)
def test_former_names_are_understood(tmp_path, work, renamed, text):
    path = _write(tmp_path / "mine" / "a.gin", text)
    config.parse([path], ["Parsed.data_from = 'c'"])
    assert parsed_consumer() == ({"a": ["b"]}, "c")
    assert "Parsed" not in gin.config_str()
    gin.clear_config()
    config.parse([], [text])
    assert _value() == {"a": ["b"]}


def test_former_names_in_a_scope(work, renamed):
    config.parse([], ["s/Parsed.runs = 1", "parsed_consumer.value = 2"])
    with gin.config_scope("s"):
        assert parsed_consumer() == (1, None)


@pytest.mark.parametrize("turn", [1, -1])
def test_both_names_are_a_sentence(work, renamed, turn):
    bindings = ["Parsed.runs = 1", "parsed_consumer.value = 2"]
    words = (
        "Parsed.runs is the former name of parsed_consumer.value, and both are "
        "bound. Leave one of them out."
    )
    with pytest.raises(UserError, match=words):
        config.parse([], bindings[::turn])
    # Of different parameters it is clear what is meant.
    gin.clear_config()
    config.parse([], ["Parsed.runs = 1", "parsed_consumer.other = 2"])
    assert parsed_consumer() == (1, 2)


def test_other_parameters_of_a_former_name(work, renamed):
    with pytest.raises(UserError, match="matching 'Parsed'"):
        config.parse([], ["Parsed.no_such = 1"])


def test_a_configurable_of_ones_own_by_a_former_name(work, monkeypatch):
    names = {"parsed_consumer.value": "parsed_consumer.other"}
    monkeypatch.setattr(parsing, "_FORMER_NAMES", names)
    config.parse([], ["parsed_consumer.value = 1"])
    assert parsed_consumer() == (1, None)


def test_the_former_names_of_this_package():
    from keras_transfer.analysis import models  # noqa: F401

    given = {"P-T": ["a"]}
    config.parse(
        [],
        [
            f"Subjects.runs = {given}",
            "Subjects.epoch = 3",
            "Subjects.data_from = 'b'",
            "dataset_surface.batch_size = 4",
            "dataset_suffixes.num_examples = 5",
        ],
    )
    assert gin.query_parameter("Models.models") == given
    assert gin.query_parameter("Models.epoch") == 3
    assert gin.query_parameter("Models.data") == "b"
    assert gin.query_parameter("examples_surface.batch_size") == 4
    assert gin.query_parameter("examples_modules.num_examples") == 5
    for former, present in parsing._FORMER_NAMES.items():
        gin.clear_config()
        gin.bind_parameter(present, None)
        selector = former.partition(".")[0]
        assert not parsing._is_configurable(selector)
