import collections
import pathlib
import typing
from typing import Literal

import gin
import pytest

from keras_transfer import config
from keras_transfer.config import schema
from keras_transfer.errors import UserError


class Made:
    pass


class Makes(typing.Protocol):
    def __call__(self, size, seed) -> Made: ...


@gin.configurable(module="declared_test")
def declared_consumer(
    work_dir,
    flag: bool = True,
    count: int = 1,
    rate: float = 0.1,
    name: str | None = None,
    pair: tuple[float, float] = (0.0, 1.0),
    names: tuple[str, ...] = (),
    anything=None,
    factory: Makes | None = None,
    factories: tuple[Makes, ...] = (),
    table: dict | tuple = (),
    ratio=0.5,
    split: schema.Split | None = "test",
    seed: schema.Seed = 0,
    several: tuple[schema.Several, ...] = (),
    positive: schema.Positive = 1.0,
    splits: schema.Splits = ("test",),
    side: Literal[1, 3] | None = None,
    path: str | pathlib.Path | None = None,
    made: Made | str | None = None,
    pairs: tuple[tuple[float, float], ...] = (),
    unknown: collections.OrderedDict | typing.Callable = None,
    listed: list = None,
):
    return locals()


@gin.configurable(module="declared_test")
def declared_maker(size, seed, extra):
    return Made()


@gin.configurable(module="declared_test")
def declared_other(size, seed) -> str:
    return ""


@gin.configurable(module="declared_test")
class DeclaredMade(Made):
    def __init__(self, size, seed=0):
        pass


@gin.configurable(module="declared_test")
def declared_any(**options):
    return options


@pytest.fixture(autouse=True)
def nothing_bound():
    gin.clear_config()
    yield
    gin.clear_config()


def _parse(*bindings):
    gin.clear_config()
    config.parse([], bindings)


@pytest.mark.parametrize(
    "binding",
    [
        "flag = False",
        "count = 3",
        "rate = 3",
        "rate = 0.5",
        "name = None",
        "name = 'x'",
        "pair = [1, 2.0]",
        "names = []",
        "names = ('a', 'b')",
        "anything = 'x'",
        "anything = @declared_other",
        "factory = None",
        "factory = @DeclaredMade",
        "factory = @declared_any",
        "factories = [@DeclaredMade, @DeclaredMade]",
        "table = {'a': 1}",
        "table = [1]",
        "split = 'train'",
        "split = None",
        "seed = 0",
        "seed = @declared_any()",
        "several = [2, 3]",
        "positive = 1e-9",
        "splits = ['train']",
        "count = @declared_any()",
        "names = [@declared_any()]",
        "side = 3",
        "side = @declared_any()",
        "path = 'x'",
        "made = 'x'",
        "made = @declared_any()",
        "pairs = [[0, 1.5], (2, 3)]",
        "pairs = [[0, @declared_any()]]",
        "unknown = 3",
        "listed = 3",
        f"count = {2**63 - 1}",
    ],
)
def test_what_is_declared_passes(binding):
    _parse(f"declared_consumer.{binding}")


@pytest.mark.parametrize(
    ("binding", "words"),
    [
        ("flag = 1", "must be True or False. Received: 1"),
        ("count = True", "must be a whole number. Received: True"),
        ("count = 1.5", "must be a whole number. Received: 1.5"),
        ("count = @DeclaredMade()", "a whole number. Received: @DeclaredMade"),
        ("names = @DeclaredMade()", "must be a list, each text in quotes."),
        ("count = @DeclaredMade", "a whole number. Received: @DeclaredMade"),
        ("rate = 'x'", "must be a finite number. Received: 'x'"),
        (f"rate = {10**400}", "must be a finite number. Received: 1000"),
        (f"count = {2**63}", "must be a whole number. Received: 92233"),
        ("rate = 1e999", "must be a finite number. Received: inf"),
        ("ratio = 'x'", "must be a finite number. Received: 'x'"),
        ("name = 3", "must be text in quotes or None. Received: 3"),
        (
            "pair = [1]",
            "must be a list of 2, each a finite number. Received: [1]",
        ),
        ("split = 'valid'", "must be 'test' or 'train' or None. Received: 'v"),
        ("split = []", "must be 'test' or 'train' or None. Received: []"),
        ("split = @DeclaredMade()", "must be 'test' or 'train' or None."),
        ("seed = -1", "must be a whole number from 0 to 4294967295."),
        ("seed = 4294967296", "Received: 4294967296"),
        ("seed = 'x'", "must be a whole number from 0 to"),
        ("seed = @DeclaredMade()", "must be a whole number from 0 to"),
        ("several = [2, 1]", "each a whole number of at least 2."),
        ("splits = []", "each 'test' or 'train' (one or more). Received: []"),
        ("splits = ['x']", "each 'test' or 'train' (one or more)."),
        ("positive = 0", "must be a finite number above 0. Received: 0"),
        ("pair = [1, 'x']", "must be a list of 2, each a finite number."),
        ("names = 'abc'", "must be a list, each text in quotes."),
        ("names = ['a', 3]", "must be a list, each text in quotes."),
        ("table = 'x'", "must be a dictionary in braces or a list."),
        (
            "factory = 'DeclaredMade'",
            "must be a reference such as @name to what takes size, seed and "
            "makes a Made or None. Received: 'DeclaredMade'",
        ),
        ("factory = @declared_other", "makes a Made"),
        ("factory = @declared_consumer", "to what takes size, seed"),
        ("factory = @DeclaredMade()", "Received: @DeclaredMade()"),
        ("factories = [@DeclaredMade, 'x']", "must be a list, each"),
        ("factories = @DeclaredMade", "must be a list, each"),
        ("rate = True", "must be a finite number. Received: True"),
        ("count = '3'", "must be a whole number. Received: '3'"),
        ("count = 3.0", "must be a whole number. Received: 3.0"),
        ("side = 2", "must be 1 or 3 or None. Received: 2"),
        ("side = True", "must be 1 or 3 or None. Received: True"),
        ("side = 3.0", "must be 1 or 3 or None. Received: 3.0"),
        ("path = 3", "must be text in quotes or None. Received: 3"),
        (
            "made = 3",
            "must be a reference such as @name() to what makes a Made or text "
            "in quotes or None. Received: 3",
        ),
        ("made = @DeclaredMade", "Received: @DeclaredMade"),
        ("made = @declared_consumer", "Received: @declared_consumer"),
        ("pairs = [[0, 1], [2, 'x']]", "each a list of 2, each a finite num"),
        ("pairs = [[0, 1, 2]]", "each a list of 2, each a finite number."),
    ],
)
def test_what_is_not_declared_is_named(binding, words):
    with pytest.raises(UserError) as caught:
        _parse(f"declared_consumer.{binding}", "DeclaredMade.size = 1")
    parameter, words_found = binding.split(" ")[0], str(caught.value)
    assert f"declared_consumer.{parameter} must be" in words_found
    assert words in words_found


def test_arguments_may_be_bound_before_or_supplied():
    lacking = "@declared_maker lacks an argument; bind declared_maker.extra"
    binding = "declared_consumer.factory = @declared_maker"
    with pytest.raises(UserError, match=lacking):
        _parse(binding)
    _parse(binding, "declared_maker.extra = 1")


def test_arguments_may_be_bound_in_a_scope():
    binding = "declared_consumer.factory = @a/declared_maker"
    with pytest.raises(UserError, match="declared_maker.extra"):
        _parse(binding, "b/declared_maker.extra = 1")
    _parse(binding, "a/declared_maker.extra = 1")


def test_brackets_need_all_arguments():
    binding = "declared_consumer.anything = {'x': [@DeclaredMade()]}"
    with pytest.raises(UserError, match="bind DeclaredMade.size"):
        _parse(binding)
    _parse(binding, "DeclaredMade.size = 1")


def test_what_makes_a_class_or_one_below_it():
    _parse("declared_consumer.made = @DeclaredMade()", "DeclaredMade.size = 1")


def test_macros_are_followed():
    _parse("a = 3", "b = %a", "declared_consumer.count = %b")
    with pytest.raises(
        UserError, match="count must be a whole number. Received: 'x'"
    ):
        _parse("a = 'x'", "b = %a", "declared_consumer.count = %b")
    with pytest.raises(UserError, match="names must be a list"):
        _parse("a = 3", "declared_consumer.names = ['a', %a]")


def test_macro_without_a_value():
    with pytest.raises(UserError, match="%a is not defined"):
        _parse("declared_consumer.anything = [%a]")


@pytest.mark.parametrize(
    ("bindings", "way"),
    [
        (["a = %a"], "%a = %a"),
        (["a = [%b]", "b = {'x': (%a,)}"], "%b = %a = %b"),
        (["DeclaredMade.size = @DeclaredMade()"], "@DeclaredMade() = @Decl"),
    ],
)
def test_references_that_lead_back(bindings, way):
    with pytest.raises(UserError) as caught:
        _parse(*bindings)
    assert f"leads back to itself: {way}" in str(caught.value)


def test_the_same_reference_twice_is_no_loop():
    _parse("a = 1", "b = [%a, %a]", "declared_consumer.anything = [%b, %a]")


def test_values_of_a_function_without_a_signature():
    schema.check_values(dict.fromkeys, {"x": 1}, "fromkeys")


def test_arguments_of_a_call_from_python():
    def train(
        epochs: schema.Count = gin.REQUIRED,
        factory: Makes | None = None,
        ds: tuple[Made, ...] = (),
    ):
        schema.check_arguments(train, locals())

    train(3, lambda size, seed: Made(), [Made()])
    train()
    for arguments, words in (
        ((0,), "^train.epochs must be a whole number of at least 1. Rec.*: 0$"),
        ((True,), "train.epochs must be"),
        ((3, "x"), "train.factory must be a reference"),
        ((3, None, [3]), "train.ds must be a list, each a reference"),
    ):
        with pytest.raises(UserError, match=words):
            train(*arguments)
