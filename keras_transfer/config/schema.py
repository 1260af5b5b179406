"""A configuration against what its parameters are declared to take.

The annotation of a parameter says what a gin file may bind it to:

    bool, int, float, str, dict, None   such a value
    tuple                               a list
    tuple[int, ...], tuple[float, float]    a list of these
    Literal["a", "b"]                   one of these
    Annotated[int, Range(least=1)]      what lies in a range, or in whatever
                                        else tells with `in` and has a str
    a typing.Protocol                   a reference to what takes arguments of
                                        the same names as its `__call__`, and
                                        makes the same as far as is declared

or, with |, one of several. Of other annotations nothing is known. Macros and
references with brackets are followed as far as they can be without a call.
"""

import dataclasses
import inspect
import math
import sys
import types
import typing

import gin


@dataclasses.dataclass(frozen=True)
class Range:
    """What a number must lie in: `least` <= number <= `most`, `above` < it."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf

    def __contains__(self, number):
        return self.least <= number <= self.most and number > self.above

    def __str__(self):
        if self.most < math.inf:
            return f"from {self.least} to {self.most}"
        if self.above > -math.inf:
            return f"above {self.above}"
        return f"of at least {self.least}"


class NotEmpty:
    """Holds whatever is not empty."""

    def __contains__(self, value):
        return bool(value)

    def __str__(self):
        return "(one or more)"


Natural = typing.Annotated[int, Range(least=0)]
Count = typing.Annotated[int, Range(least=1)]
Several = typing.Annotated[int, Range(least=2)]
# What NumPy takes.
Seed = typing.Annotated[int, Range(least=0, most=2**32 - 1)]
NotNegative = typing.Annotated[float, Range(least=0)]
Positive = typing.Annotated[float, Range(above=0)]
Split = typing.Literal["test", "train"]
Splits = typing.Annotated[tuple[Split, ...], NotEmpty()]

# Not infinite, not NaN, and no whole number beyond what a float can hold.
_LARGEST = sys.float_info.max
_WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a finite number",
    str: "text in quotes",
    dict: "a dictionary in braces",
    tuple: "a list",
    type(None): "None",
}


def check_configuration():
    """Checks all that is bound in gin.

    Raises:
        ValueError: if a value is not what its parameter is declared to take, a
            reference leads back to itself, or calling one lacks an argument.
    """
    # Gin has no public way to ask for all that is bound.
    bound = gin.config._CONFIG
    evaluated = [
        reference
        for reference in gin.config.iterate_references(bound)
        if reference.evaluate
    ]
    checked = set()
    for reference in evaluated:
        _check_no_loop(reference, (), checked)
    for (_, selector), values in bound.items():
        name = selector.rpartition(".")[2]
        check_values(gin.get_configurable(selector), values, name)
    for reference in evaluated:
        _check_complete(reference, ())


def check_values(function, values, name):
    """Checks values against the annotations of a function's parameters.

    Args:
        function: whose parameters they are.
        values: {parameter: value}.
        name: str, what to call the function.

    Raises:
        ValueError: if a value is not what its parameter is declared to take.
    """
    parameters = _parameters(function) or {}
    for key in filter(parameters.__contains__, values):
        kind, value = _kind(parameters[key]), _followed(values[key])
        if _is_known(kind) and not _is_a(value, kind):
            raise ValueError(
                f"{name}.{key} must be {_words(kind)}. Received: {value!r}"
            )


def _parameters(function):
    """Returns {name: parameter}, None of a built-in that does not tell."""
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None


def _kind(parameter):
    """Returns what a parameter is declared to take."""
    if parameter.annotation is not parameter.empty:
        return parameter.annotation
    # A float or bool tells what is meant; other defaults often stand beside
    # values of another type.
    kind = type(parameter.default)
    return kind if kind in (bool, float) else parameter.empty


def _is_known(kind):
    if _is_union(kind) or _is_list(kind):
        return all(map(_is_known, _parts(kind)))
    if _is_bounded(kind) or _is_choice(kind):
        return True
    return kind in _WORDS or _is_protocol(kind)


def _is_union(kind):
    # Which of both | makes depends on its sides.
    return typing.get_origin(kind) in (types.UnionType, typing.Union)


def _is_bounded(kind):
    return typing.get_origin(kind) is typing.Annotated


def _is_choice(kind):
    return typing.get_origin(kind) is typing.Literal


def _is_list(kind):
    """Returns whether a kind is tuple[...], rather than just tuple."""
    return typing.get_origin(kind) is tuple


def _parts(kind):
    """Returns the kinds in a union or in tuple[...]."""
    return [part for part in typing.get_args(kind) if part is not Ellipsis]


def _is_protocol(kind):
    return getattr(kind, "_is_protocol", False)


def _words(kind):
    parts = _parts(kind)
    if _is_union(kind):
        return " or ".join(map(_words, parts))
    if _is_choice(kind):
        return " or ".join(map(repr, parts))
    if _is_bounded(kind):
        return f"{_words(parts[0])} {parts[1]}"
    if _is_list(kind):
        count = "" if Ellipsis in typing.get_args(kind) else f" of {len(parts)}"
        return f"a list{count}, each {_words(parts[0])}"
    if not _is_protocol(kind):
        return _WORDS[kind]
    names = ", ".join(_called_with(kind)) or "no argument"
    made = _returned(kind.__call__)
    makes = f" and makes a {made.__name__}" if made else ""
    return f"a reference such as @name to what takes {names}{makes}"


def _is_a(value, kind):
    if _is_union(kind):
        return any(_is_a(value, part) for part in _parts(kind))
    value = _followed(value)
    if isinstance(value, gin.config.ConfigurableReference):
        if _is_protocol(kind):
            return not value.evaluate and _can_be_called(value, kind)
        return value.evaluate and _may_make(value, kind)
    if _is_protocol(kind):
        return False
    if _is_list(kind):
        return _is_list_of(value, kind)
    if _is_choice(kind):
        return value in _parts(kind)
    if _is_bounded(kind):
        bare, bounds = _parts(kind)
        return _is_a(value, bare) and value in bounds
    if kind is tuple:
        return isinstance(value, (list, tuple))
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, (int, float)) and abs(value) <= _LARGEST
    if kind is int:
        # What TensorFlow and NumPy count with.
        return isinstance(value, int) and abs(value) < 2**63
    return isinstance(value, kind)


def _may_make(reference, kind):
    """Returns whether calling a reference may give such a value."""
    made = _returned(reference.configurable.wrapped)
    if _is_choice(kind):
        kind = str
    while typing.get_origin(kind):
        kind = _parts(kind)[0] if _is_bounded(kind) else typing.get_origin(kind)
    return made is None or issubclass(made, kind)


def _is_list_of(value, kind):
    if not isinstance(value, (list, tuple)):
        return False
    elements = _parts(kind)
    if Ellipsis in typing.get_args(kind):
        elements *= len(value)
    return len(value) == len(elements) and all(map(_is_a, value, elements))


# References.


def _followed(value):
    """Returns what a macro stands for, and anything else as it is."""
    while (
        isinstance(value, gin.config.ConfigurableReference)
        and _is_macro(value)
        and "value" in _bindings(value)
    ):
        value = _bindings(value)["value"]
    return value


def _is_macro(reference):
    return reference.configurable.wrapped is gin.config.macro


def _bindings(reference):
    return gin.get_bindings(reference.scoped_selector, resolve_references=False)


def _check_no_loop(reference, path, checked):
    """Checks that evaluating a reference does not come back to it."""
    key = reference.config_key
    path = (*path, reference)
    if key in (earlier.config_key for earlier in path[:-1]):
        way = " = ".join(map(repr, path))
        raise ValueError(f"a reference leads back to itself: {way}")
    if key in checked:
        return
    checked.add(key)
    for inner in gin.config.iterate_references(_bindings(reference)):
        if inner.evaluate:
            _check_no_loop(inner, path, checked)


def _check_complete(reference, supplied):
    """Checks that a call that passes `supplied` has all its arguments."""
    parameters = _parameters(reference.configurable.wrapped) or {}
    known = {*supplied, *_bindings(reference)}
    for name, parameter in parameters.items():
        if (
            parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_KEYWORD, _POSITIONAL)
            and name not in known
        ):
            what = (
                f"{reference!r} is not defined; give it a value"
                if _is_macro(reference)
                else f"{reference!r} lacks an argument; bind "
                f"{reference.selector}.{name}"
            )
            raise ValueError(f"{what}.")


_POSITIONAL = inspect.Parameter.VAR_POSITIONAL


def _can_be_called(reference, protocol):
    """Returns whether a reference can be called as a protocol is.

    Raises:
        ValueError: if it can, save for an argument that nothing binds.
    """
    function = reference.configurable.wrapped
    parameters, supplied = _parameters(function), _called_with(protocol)
    if parameters is None:
        return True
    takes_any = any(
        p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()
    )
    if not takes_any and not set(supplied) <= set(parameters):
        return False
    expected, made = _returned(protocol.__call__), _returned(function)
    if expected and made and not issubclass(made, expected):
        return False
    _check_complete(reference, supplied)
    return True


def _called_with(protocol):
    """Returns the names of the arguments a protocol is called with."""
    return [n for n in _parameters(protocol.__call__) if n != "self"]


def _returned(function):
    """Returns the class of what a function makes, None if unknown."""
    if inspect.isclass(function):
        return function
    made = inspect.signature(function).return_annotation
    is_told = inspect.isclass(made) and made is not inspect.Signature.empty
    return made if is_told else None
