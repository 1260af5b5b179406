"""A configuration against what its parameters are declared to take.

The annotation of a parameter says what a gin file may bind it to:

    bool, int, float, str, dict, None   such a value
    tuple                               a list
    tuple[int, ...], tuple[float, float]    a list of these
    Literal["a", "b"]                   one of these
    Annotated[int, Ge(1)]               what pydantic checks, if `_BOUNDS` has
                                        words for it
    a typing.Protocol                   a reference to what takes arguments of
                                        the same names as its `__call__`, and
                                        makes the same as far as is declared
    another class                       a reference with brackets to what makes
                                        one

or, with |, one of several. Of other annotations nothing is known. Values are
checked by pydantic, strictly: True is not 1 and "3" is not 3. Macros and
references with brackets are followed as far as they can be without a call.
"""

import functools
import inspect
import os
import types
import typing

import annotated_types
import gin
import pydantic

from keras_transfer.errors import UserError

NotEmpty = functools.partial(annotated_types.MinLen, 1)
Natural = typing.Annotated[int, annotated_types.Ge(0)]
Count = typing.Annotated[int, annotated_types.Ge(1)]
Several = typing.Annotated[int, annotated_types.Ge(2)]
# What NumPy takes.
Seed = typing.Annotated[int, annotated_types.Interval(ge=0, le=2**32 - 1)]
NotNegative = typing.Annotated[float, annotated_types.Ge(0)]
Share = typing.Annotated[float, annotated_types.Interval(ge=0, le=1)]
Positive = typing.Annotated[float, annotated_types.Gt(0)]
Split = typing.Literal["test", "train"]
Splits = typing.Annotated[tuple[Split, ...], NotEmpty()]

_WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a finite number",
    str: "text in quotes",
    dict: "a dictionary in braces",
    tuple: "a list",
    type(None): "None",
}
_BOUNDS = {
    annotated_types.Ge: lambda b: f"of at least {b.ge}",
    annotated_types.Gt: lambda b: f"above {b.gt}",
    annotated_types.Interval: lambda b: f"from {b.ge} to {b.le}",
    annotated_types.MinLen: lambda b: "(one or more)",
}


class _LackingError(Exception):
    """No ValueError, of which pydantic makes one of its own."""


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
        if lacking := _lacking(reference, ()):
            raise ValueError(lacking)


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
        if value is gin.REQUIRED or not _is_known(kind):
            continue
        try:
            _adapter(kind).validate_python(value)
        except pydantic.ValidationError:
            raise ValueError(
                f"{name}.{key} must be {_words(kind)}. Received: {value!r}"
            ) from None
        except _LackingError as error:
            raise ValueError(str(error)) from None


def check_arguments(function, arguments):
    """Checks what a function was called with from Python, as gin's values are.

    Args:
        function: the one that is called.
        arguments: {parameter: value}; its `locals()` at the beginning.

    Raises:
        UserError: if a value is not what its parameter is declared to take.
    """
    try:
        check_values(function, arguments, function.__name__)
    except ValueError as error:
        raise UserError(str(error)) from error


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
    return kind if kind in (bool, float) else typing.Any


def _is_known(kind):
    if _is_union(kind) or _is_list(kind):
        return all(map(_is_known, _parts(kind)))
    if _is_bounded(kind):
        bare, bounds = _parts(kind)
        return _is_known(bare) and type(bounds) in _BOUNDS
    if _is_choice(kind) or kind in _WORDS:
        return True
    # Of a built-in class there is no telling what else would do.
    return inspect.isclass(kind) and kind.__module__ not in (
        "builtins",
        "typing",
    )


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


def _is_protocol(kind):
    return getattr(kind, "_is_protocol", False)


def _is_path(kind):
    return inspect.isclass(kind) and issubclass(kind, os.PathLike)


def _parts(kind):
    """Returns the kinds in a union or in tuple[...]."""
    return [part for part in typing.get_args(kind) if part is not Ellipsis]


def _words(kind):
    parts = _parts(kind)
    if _is_union(kind):
        # A path and its text are one to a gin file.
        return " or ".join(dict.fromkeys(map(_words, parts)))
    if _is_choice(kind):
        return " or ".join(map(repr, parts))
    if _is_bounded(kind):
        bare, bounds = parts
        return f"{_words(bare)} {_BOUNDS[type(bounds)](bounds)}"
    if _is_list(kind):
        count = "" if Ellipsis in typing.get_args(kind) else f" of {len(parts)}"
        return f"a list{count}, each {_words(parts[0])}"
    if _is_protocol(kind):
        names = ", ".join(_called_with(kind)) or "no argument"
        made = _returned(kind.__call__)
        makes = f" and makes a {made.__name__}" if made else ""
        return f"a reference such as @name to what takes {names}{makes}"
    if _is_path(kind):
        return _WORDS[str]
    if kind in _WORDS:
        return _WORDS[kind]
    return f"a reference such as @name() to what makes a {kind.__name__}"


# Values.


@functools.cache
def _adapter(kind):
    """Returns the `pydantic.TypeAdapter` of a known kind."""
    config = pydantic.ConfigDict(strict=True, arbitrary_types_allowed=True)
    return pydantic.TypeAdapter(_checked(kind), config=config)


def _checked(kind):
    """Returns a kind as pydantic is to check it."""
    if _is_union(kind):
        return typing.Union[tuple(map(_checked, _parts(kind)))]  # noqa: UP007
    if _is_protocol(kind):
        return typing.Annotated[typing.Any, _made_for(kind)]
    return typing.Annotated[_value(kind), _or_reference(kind)]


def _value(kind):
    """Returns how pydantic checks what is no reference."""
    if _is_bounded(kind):
        bare, bounds = _parts(kind)
        return typing.Annotated[_value(bare), bounds]
    if kind is tuple or _is_list(kind):
        parts = [
            part if part is Ellipsis else _checked(part)
            for part in typing.get_args(kind)
        ]
        bare = tuple[tuple(parts)] if parts else tuple
        return typing.Annotated[bare, pydantic.BeforeValidator(_as_tuple)]
    if _is_choice(kind):
        same = pydantic.BeforeValidator(_of_a_class_in(_parts(kind)))
        return typing.Annotated[kind, same]
    if kind is float:
        return pydantic.FiniteFloat
    if kind is int:
        # What TensorFlow and NumPy count with.
        within = annotated_types.Interval(gt=-(2**63), lt=2**63)
        return typing.Annotated[int, within]
    return str | os.PathLike if _is_path(kind) else kind


def _as_tuple(value):
    return tuple(value) if isinstance(value, list) else value


def _of_a_class_in(choices):
    classes = tuple(map(type, choices))

    def check(value):
        # True would pass for 1.
        if type(value) not in classes:
            raise ValueError
        return value

    return check


def _or_reference(kind):
    """Returns a validator that has a reference judged by what it makes."""

    def check(value, check_value):
        value = _followed(value)
        if not isinstance(value, gin.config.ConfigurableReference):
            return check_value(value)
        if not value.evaluate or not _may_make(value, kind):
            raise ValueError
        return value

    return pydantic.WrapValidator(check)


def _made_for(protocol):
    """Returns a validator of what is to be called as a protocol is."""

    def check(value):
        value = _followed(value)
        if isinstance(value, gin.config.ConfigurableReference):
            fits = not value.evaluate and _can_be_called(value, protocol)
        else:
            fits = callable(value)  # Passed from Python.
        if not fits:
            raise ValueError
        return value

    return pydantic.PlainValidator(check)


def _may_make(reference, kind):
    """Returns whether calling a reference may give such a value."""
    made = _returned(reference.configurable.wrapped)
    if _is_choice(kind):
        kind = str
    while typing.get_origin(kind):
        kind = _parts(kind)[0] if _is_bounded(kind) else typing.get_origin(kind)
    return made is None or issubclass(made, kind)


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


def _lacking(reference, supplied):
    """Returns what a call that passes `supplied` lacks, "" if nothing."""
    parameters = _parameters(reference.configurable.wrapped) or {}
    known = {*supplied, *_bindings(reference)}
    for name, parameter in parameters.items():
        if (
            parameter.default is not parameter.empty
            or parameter.kind in (parameter.VAR_KEYWORD, _POSITIONAL)
            or name in known
        ):
            continue
        if _is_macro(reference):
            return f"{reference!r} is not defined; give it a value."
        return (
            f"{reference!r} lacks an argument; bind "
            f"{reference.selector}.{name}."
        )
    return ""


_POSITIONAL = inspect.Parameter.VAR_POSITIONAL


def _can_be_called(reference, protocol):
    """Returns whether a reference can be called as a protocol is.

    Raises:
        _LackingError: if it can, save for an argument that nothing binds.
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
    if lacking := _lacking(reference, supplied):
        raise _LackingError(lacking)
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
