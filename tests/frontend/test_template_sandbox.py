"""Templates that try to escape, to run for ever or to fill the memory; and some that may not."""

from __future__ import annotations

import resource

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from pellucid.errors import BadRequest, ModelError
from pellucid.frontend import template_sandbox
from pellucid.frontend.chat_template import ChatTemplate

CHAT = [{"role": "user", "content": "hello world " * 1000}]

GROW = "{%% set n = namespace(x='a') %%}{%% for i in range(100) %%}%s{%% endfor %%}"

WASTEFUL = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "output": "{% for a in range(99999) %}" + "x" * 9999 + "{% endfor %}",
    "captured": "{% set x %}{% for a in range(99999) %}" + "x" * 9999 + "{% endfor %}{% endset %}",
    "repeat": "{{ 'a' * 10**9 }}",
    "repeat-list": "{{ [1] * 10**9 }}",
    "repeat-left": "{{ 10**9 * 'a' }}",
    "power": "{{ 9 ** 99999999 }}",
    "product": GROW % "{% set n.x = (n.x | int + 2) * (n.x | int + 2) %}"
    + "{{ 2**4000 * 2**4000 }}",
    "double-plus": GROW % "{% set n.x = n.x + n.x %}",
    "double-tilde": GROW % "{% set n.x = n.x ~ n.x %}",
    "double-format": GROW % "{% set n.x = '%s%s' % (n.x, n.x) %}",
    "double-join": GROW % "{% set n.x = [n.x, n.x] | join %}",
    "double-method": GROW % "{% set n.x = ''.join([n.x, n.x]) %}",
    "double-replace": GROW % "{% set n.x = n.x.replace('a', 'aa') %}",
    "double-filter": GROW % "{% set n.x = n.x | replace('a', 'aa') %}",
    "sum-of-lists": GROW % "{% set n.x = [n.x] + [n.x] %}",
    "list-of-lists": GROW % "{% set n.x = [n.x, n.x] %}",
    "tuple-of-tuples": GROW % "{% set n.x = (n.x, n.x) %}",
    "dict-of-dicts": GROW % "{% set n.x = {'a': n.x, 'b': n.x} %}",
    "dict-calls": GROW % "{% set n.x = dict(a=n.x, b=n.x) %}",
    "slices": "{% for a in range(99999) %}{% for b in range(999) %}"
    "{% set x = messages[0].content[1:] %}{% endfor %}{% endfor %}",
    "replace": "{{ ('a' * 10**6).replace('a', 'a' * 10**6) }}",
    "replace-nothing": "{{ ('a' * 10**6).replace('', 'a' * 10**6) }}",
    "join": "{{ ('a' * 10**6).join(range(99999) | map('string')) }}",
    "width-percent": "{{ '%999999999d' % 1 }}",
    "width-percent-star": "{{ '%*d' % (999999999, 1) }}",
    "width-format": "{{ '{:999999999}'.format(1) }}",
    "width-format-nested": "{{ '{:{}}'.format(1, 999999999) }}",
    "width-format-map": "{{ '{a:999999999}'.format_map({'a': 1}) }}",
    "width-format-filter": "{{ '%999999999d' | format(1) }}",
    "width-percent-key": "{{ '%(a(b)c)999999999d' % {'a(b)c': 1} }}",
    "width-json": "{{ [1] | tojson(indent=999999999) }}",
    "width-indent": "{{ 'a\nb' | indent(999999999) }}",
    "round": "{{ 1.5 | round(999999999, 'ceil') }}",
    "range": "{{ range(10**9) | list }}",
    "default": "{{ range(99999) | map(attribute='x', default='a' * 9999) | join }}",
    "fromkeys": "{{ {}.fromkeys(range(99999), 'a' * 9999) }}",
    "sum": "{{ range(99999) | map(attribute='x', default=[1]) | sum(start=[]) }}",
    "macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "macro-tree": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "recursive-loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
}

FORBIDDEN = {
    "mro": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "attr": "{{ (''|attr('__class__')).x }}",
    "format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "change-messages": "{{ messages.append(1) }}",
    "change-message": "{{ messages[0].update(role='system') }}",
    "pad": "{{ 'a'.ljust(10**9) }}",
    "encode": "{{ 'a'.encode() * 10**9 }}",
    "bytes": "{{ (5).to_bytes(10**9, 'big') }}",
}


@pytest.mark.parametrize("source", WASTEFUL.values(), ids=WASTEFUL.keys())
def test_waste_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "MAX_WORK", 1 << 24)  # for the sake of the test's time
    monkeypatch.setattr(template_sandbox, "MAX_SECONDS", 0.2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadRequest) as caught:
        ChatTemplate(source, {}).render(CHAT)
    assert caught.value.param == "messages"
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 1 << 20  # KiB; most of these would take all the memory there is


@pytest.mark.parametrize("source", FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_nothing_beyond_the_messages_can_be_reached(source: str) -> None:
    with pytest.raises(ModelError, match="stopped"):
        ChatTemplate(source, {}).render(CHAT)


@pytest.mark.parametrize(
    "source", ["{% include 'x' %}", "{% import 'x' as y %}", "{% extends 'x' %}"]
)
def test_no_other_file_is_read(source: str) -> None:
    with pytest.raises(BadRequest, match="no loader"):
        ChatTemplate(source, {}).render(CHAT)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ loop.revindex }}{% endfor %}",
        "{% for a in [1, 2, 3] if a > 1 %}{{ loop.previtem }},{{ loop.nextitem }}{% endfor %}",
        "{% for a in missing %}x{% else %}none{% endfor %}",
        "{% for k, v in {'a': 1, 'b': [2, none]}.items() %}{{ k }}={{ v }};{% endfor %}",
        "{% for x in [[1, [2]], [3]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}",
        "{{ 'a' ~ 1 ~ none ~ missing ~ 2.5 }}{{ [1, 'x'] ~ (2,) ~ {'a': 'é'} }}",
        "{{ '%s-%d' % ('a', 3) }}{{ '{}:{:>4}'.format('b', 7) }}{{ '%05.1f' | format(2.25) }}",
        "{{ 'a-b-c'.replace('-', '+', 1) }}{{ 'a-b' | replace('-', '') }}{{ '-'.join('ab') }}",
        "{{ [1, 2, 3][::-1] }}{{ 'abc'[1:] }}{{ [1] + [2] }}{{ 'ab' * 3 }}{{ 3 * [0] }}{{ 2**9 }}",
        "{{ [3, 1, 2] | sort | join(',') }}{{ [1, 2] | sum }}{{ [{'a': 1}] | sum('a') }}",
        "{{ '%s, 26 Jul 2024, 100%% 2024' % 'a' }}{{ '{{x}} {}, 26 Jul 2024'.format(1) }}",
        "{{ 2.567 | round(1) }}{{ 7 | round }}{{ 'x\ny' | indent(2) }}{{ '<&>' | e }}",
        "{{ 5 | string + 'a' }}{{ none | string }}{{ ' x ' | trim | upper | length }}",
        "{{ {'b': 1, 'a': '<é>'} | tojson }}{{ [1, {'a': 2}] | tojson(indent=2) }}",
        "{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}",
        "{{ messages | map(attribute='role') | join }}{{ messages | map('length') | list }}",
        "{{ messages | groupby('role') | length }}{{ ['a', 'b'] | first }}{{ 'ab' | last }}",
        "{{ dict(a=1).a }}{{ namespace(b=2).b }}{% set c = cycler('x', 'y') %}{{ c.next() }}",
        "{% set x %}  block {{ 1 }}{% endset %}[{{ x }}]{% filter upper %}abc{% endfilter %}",
        "{% macro m(a, b='d') %}{{ a }}{{ b }}{{ caller() if caller }}{% endmacro %}"
        "{{ m(1) }}{% call m(2, b=3) %}in{% endcall %}",
        "{% generation %}{% set a = 1 %}{{ a }}{% endgeneration %}{{ a is defined }}",
        "{% if 'a' in 'abc' and 1 in [1] and 'k' in {'k': 0} %}yes{% endif %}\n  {# c #}\n  tail\n",
    ],
)
def test_the_meter_changes_nothing(source: str) -> None:
    expected, _ = render_jinja_template([CHAT], chat_template=source)
    assert ChatTemplate(source, {}).render(CHAT, add_generation_prompt=False) == expected[0]


def test_a_long_message_stays_within_the_limits() -> None:
    source = "{{ bos ~ '<' + messages[0].role + '>' + messages[0].content | trim + '</s>' + '\n' }}"
    text = "word " * 1_600_000
    assert len(ChatTemplate(source, {}).render([{"role": "user", "content": text}])) > 7_999_999


def test_long_chats_stay_within_the_limits() -> None:
    source = (
        "{% for m in messages %}{{ '<' + m.role + '>' }}{{ m.content | trim }}"
        "{% if loop.last %}!{% endif %}{% endfor %}"
    )
    chat = [{"role": "user", "content": "word " * 100}] * 10_000
    assert len(ChatTemplate(source, {}).render(chat)) == 10_000 * (6 + 499) + 1
