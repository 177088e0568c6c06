"""Runs a Jinja template that nobody has vetted, within fixed limits of work, memory and time.

A chat template comes with a model or with a request: it is a program of a stranger. Jinja's sandbox
keeps it from our objects, but lets it loop for hours and build strings of gigabytes. So every
construct that repeats or builds something is metered here. The syntax tree is rewritten before it
is compiled: loops, `~`, slices, literals and plain template text pass through a meter; operators,
calls, filters and outputs have hooks. What is made is charged for as it would print, so that a
small value that holds itself many times over is seen for what it is.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_WORK = 1 << 27  # characters that one rendering may make, intermediate values included
MAX_SECONDS = 2.0  # of this thread's processor time
MAX_INT_BITS = 4096
MAX_INDENT = 1000
STEP = 64  # what a turn of a loop and a call cost, in characters
ELEMENT = 32  # what an element of a list or mapping costs

# Jinja's own, as they are. Not here: filters that pad or repeat, and those for HTML pages.
_FILTERS = (
    *("abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first"),
    *("float", "groupby", "int", "items", "last", "length", "list", "lower", "map", "max", "min"),
    *("reject", "rejectattr", "reverse", "safe", "select", "selectattr", "sort", "title", "trim"),
    *("truncate", "unique", "upper", "wordcount"),
)
# Methods whose result is as long as a number says, and one that leads out of metered types.
_UNMETERED_METHODS = frozenset(
    {"center", "encode", "expandtabs", "ljust", "rjust", "to_bytes", "translate", "zfill"}
)


class TemplateLimitError(Exception):
    """The template went beyond a limit; the message says which."""


class _Meter:
    def __init__(self) -> None:
        self._work = MAX_WORK
        self._deadline = time.thread_time() + MAX_SECONDS

    def spend(self, amount: int) -> None:
        self._work -= amount
        if self._work < 0:
            raise TemplateLimitError(f"it makes more than {MAX_WORK} characters")

    def step(self) -> None:
        self.spend(STEP)
        if time.thread_time() > self._deadline:
            raise TemplateLimitError(f"it takes more than {MAX_SECONDS:g} seconds")


_meter: ContextVar[_Meter] = ContextVar("meter")


@contextmanager
def metered() -> Iterator[None]:
    """Grant one rendering (or compilation) its budget."""
    token = _meter.set(_Meter())
    try:
        yield
    finally:
        _meter.reset(token)


def measured(value: Any, times: int = 1) -> Any:
    """Charge for `value` as it would print, `times` times; return it."""
    meter = _meter.get()
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            meter.spend(len(item) * times)
        elif isinstance(item, dict):
            meter.spend(len(item) * times * ELEMENT)
            pending += [*item, *item.values()]
        elif isinstance(item, (list, tuple, set, KeysView, ValuesView, ItemsView)):
            meter.spend(len(item) * times * ELEMENT)
            pending += item
    return value


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """The environment that templates on the hub are written for, plus the meter.

    Compile and render inside `with metered():`.
    """

    intercepted_binops = frozenset({"+", "*", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", GenerationBlock],
            finalize=jinja2.pass_context(lambda _context, value: measured(value)),
        )
        del self.globals["lipsum"]
        self.filters = {name: _measured_result(self.filters[name]) for name in _FILTERS} | {
            "format": lambda text, *args, **kw: _percent(str(text), kw or args),
            "indent": _indent,
            "join": jinja2.pass_environment(_join),
            "replace": _replace,
            "round": _round,
            "string": lambda value: str(measured(value)),
            "sum": jinja2.pass_environment(_sum),
            "tojson": _tojson,
            _EACH: _each,
            _CONCAT: lambda values: "".join(map(str, measured(values))),
            _MEASURED: measured,
        }

    def template(self, source: str) -> jinja2.Template:
        """Compile `source`. Raises TemplateSyntaxError, and what Python has against the result."""
        tree = _Rewrite().visit(self.parse(source))
        return self.from_string(tree)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        _meter.get().step()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str) and __obj.__name__ == "replace":
            return _replace(owner, *args)
        if isinstance(owner, str) and __obj.__name__ == "join":
            return _join(__self, args[0], owner)
        return measured(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            return _percent(left, right)
        if operator == "*":
            _check_product(left, right)
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * abs(right))
        return measured(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(value.__self__, _WIDE_BRACES)
        return wrapped

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, (str, int)) and attr in _UNMETERED_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)


class GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's text for training; here it is just a scope."""

    tags = {"generation"}  # noqa: RUF012 - declared so by the base class

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


# ---- the syntax tree

# No template can spell these names.
_EACH, _CONCAT, _MEASURED = "meter each", "meter concat", "meter value"


class _Rewrite(NodeTransformer):
    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = _filtered(_EACH, node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(_CONCAT, nodes.List(node.nodes, lineno=node.lineno))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(_MEASURED, node) if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(_MEASURED, node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(_MEASURED, node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(_MEASURED, node) if node.ctx == "load" else node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:  # noqa: N802
        # Jinja writes template data out directly; a constant goes through `finalize`.
        return nodes.Const(node.data, lineno=node.lineno)


def _filtered(name: str, node: nodes.Node) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _each(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _meter.get().step()
        yield item


# ---- operators and filters whose result can be much larger than what goes in


def _measured_result(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # keeps Jinja's marks for what it passes first
    def run(*args: Any, **kwargs: Any) -> Any:
        _meter.get().step()
        return measured(function(*args, **kwargs))

    return run


def _check_bits(bits: int) -> None:
    if bits > MAX_INT_BITS:
        raise TemplateLimitError(f"it makes a number of more than {MAX_INT_BITS} bits")


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    for value, count in ((left, right), (right, left)):
        if isinstance(value, (str, list, tuple)) and isinstance(count, int):
            measured([value], max(count, 0))


# Widths of four digits or more, and widths that come as arguments.
_WIDE_PERCENT = re.compile(r"%[^%a-zA-Z(]*(?:\d{4}|\*)|%\(.*(?:\d{4}|\*)", re.DOTALL)
_WIDE_BRACES = re.compile(r"{[^{}]*\d{4}|{[^{}]+{")


def _check_format(text: str, wide: re.Pattern[str]) -> None:
    if wide.search(text):
        raise TemplateLimitError("it formats with a width above 999")


def _percent(text: str, args: Any) -> str:
    _check_format(text.replace("%%", ""), _WIDE_PERCENT)
    result: str = measured(text % measured(args))
    return result


def _replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = str(text), str(old), str(new)
    limit = -1 if count is None else count
    found = text.count(old)
    measured(text)
    measured(new, found if limit < 0 else min(found, limit))
    replaced: str = text.replace(old, new, limit)
    return replaced


def _join(
    environment: jinja2.Environment, items: Iterable[Any], d: Any = "", attribute: Any = None
) -> str:
    if attribute is not None:
        items = map(jinja2.filters.make_attrgetter(environment, attribute), items)
    parts = list(items)
    measured([d], len(parts))
    return str(d).join(map(str, measured(parts)))


def _sum(
    environment: jinja2.Environment, items: Iterable[Any], attribute: Any = None, start: Any = 0
) -> Any:
    # Numbers only: lists would be copied once for each that is added.
    if attribute is not None:
        items = map(jinja2.filters.make_attrgetter(environment, attribute), items)
    return sum((item + 0 for item in items), start + 0)


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    if not -100 <= precision <= 100:
        raise TemplateLimitError("it rounds to more than 100 digits")
    rounded: float = jinja2.filters.do_round(value, precision, method)  # type: ignore[arg-type]
    return rounded


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = str(measured(text))
    _check_width(width)
    measured(" " * _width(width), text.count("\n") + 1)
    indented: str = jinja2.filters.do_indent(text, width, first, blank)
    return indented


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As chat templates expect it: without Jinja's escaping for HTML."""
    if indent is not None:
        _check_width(indent)
    result: str = measured(
        json.dumps(
            measured(value),
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )
    )
    return result


def _width(width: int | str) -> int:
    return len(width) if isinstance(width, str) else width


def _check_width(width: int | str) -> None:
    if _width(width) > MAX_INDENT:
        raise TemplateLimitError(f"it indents by more than {MAX_INDENT}")
