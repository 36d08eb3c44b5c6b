# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters of a term against the signature of its class, before anything is loaded.

A value of the wrong kind would otherwise be found by the class, long after Ray has started, as a TypeError that names
no key. Annotations other than numbers, text, truth values, literals, lists and mappings of them are not checked.
"""

from __future__ import annotations

import inspect
import numbers
import os
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union

from verl_uae.errors import ConfigError

_PLAIN: Mapping[Any, tuple[Any, str]] = {
    float: (numbers.Real, "a number"),
    int: (numbers.Integral, "a whole number"),
    # Python code may well give a path.
    str: ((str, os.PathLike), "text"),
    bool: (bool, "true or false"),
    type(None): (type(None), "null"),
}


def check_arguments(term_class: type, params: Mapping[str, Any], key: str) -> None:
    """Refuse what a class cannot be made with.

    Args:
        term_class: the class.
        params: its keyword arguments.
        key: configuration key of ``params``, for errors.

    Raises:
        ConfigError: naming the argument that is unknown, missing, of the wrong kind or none of the values allowed.
    """
    signature = inspect.signature(term_class)
    try:
        signature.bind(**params)
    except TypeError as error:
        raise ConfigError(key, f"{error}; {term_class.__name__} takes {signature}") from error
    hints = _hints(term_class)
    for name, value in params.items():
        if name in hints and not fits(value, hints[name]):
            raise ConfigError(f"{key}.{name}", f"must be {wanted(hints[name])}, got {value!r}")


def fits(value: object, hint: Any) -> bool:
    """Whether a value of a configuration is what an annotation says; True where that is not known."""
    if hint in _PLAIN:
        # To Python, true is a whole number.
        return isinstance(value, _PLAIN[hint][0]) and (hint is bool or not isinstance(value, bool))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return any(value == allowed and type(value) is type(allowed) for allowed in arguments)
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in arguments)
    if _is_list(origin):
        return (
            isinstance(value, Sequence)
            and not isinstance(value, (str, bytes))
            and all(fits(item, arguments[0]) for item in value)
        )
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    return True


def wanted(hint: Any) -> str:
    """An annotation that :func:`fits` knows, in words."""
    if hint in _PLAIN:
        return _PLAIN[hint][1]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(wanted(option) for option in arguments)
    return f"a list, each {wanted(arguments[0])}" if _is_list(origin) else "a mapping"


def _is_list(origin: Any) -> bool:
    return inspect.isclass(origin) and issubclass(origin, Sequence)


def _hints(term_class: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(term_class.__init__)
    # A user's class may be annotated with names that exist for type checkers only.
    except (NameError, TypeError, AttributeError):
        return {}
