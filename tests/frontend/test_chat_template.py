"""Chat templates, rendered as transformers renders them and stopped where it would not stop."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from pellucid.errors import BadRequest, ConfigError, ModelError
from pellucid.frontend.chat_template import MAX_TEMPLATE_CHARS, ChatTemplate
from pellucid.frontend.gguf_tokenizer import tokenizer_from_gguf
from pellucid.frontend.tokenizer import load_tokenizer
from pellucid.load.files import ModelFiles

from .vocabularies import byte_level

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML = (
    "{% for message in messages %}{% if loop.first and message.role != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# In the style of Llama 3.1: macros of whitespace control, slices, dates, tools as JSON.
LLAMA = """
{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|header|>system<|/header|>\\n\\nToday: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|header|>' + message['role'] + '<|/header|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("one tool call at a time") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- "}<|eot|>" }}
    {%- else %}
        {{- "<|header|>ipython<|/header|>\\n\\n" + message.content + "<|eot|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|header|>assistant<|/header|>\\n\\n' }}{%- endif %}
"""

ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

# In the style of Gemma: roles renamed, order enforced.
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Conversation roles must alternate') }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor -%}
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

# In the style of Qwen: namespaces, reversed slices, splits, tests, tools, thoughts left out.
QWEN = """
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n<tools>' }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(looking=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.looking and message.role == "user" and message.content is string %}
        {%- set ns.looking = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ content }}
    {%- for tool_call in message.tool_calls or [] %}
        {{- '\\n<tool_call>\\n{"name": "' ~ tool_call.function.name ~ '", "arguments": ' }}
        {{- tool_call.function.arguments | tojson }}
        {{- '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think></think>' }}
    {%- endif %}
{%- endif %}
"""

# In the style of Mistral: breaks, filters by attribute, blocks for training, a macro.
MISTRAL = """{% macro turn(text) %}[INST] {{ text }} [/INST]{% endmacro %}
{{- bos_token }}
{%- set system = messages | selectattr('role', 'equalto', 'system') %}
{%- set system = system | map(attribute='content') | join('\n') %}
{%- for message in messages | rejectattr('role', 'equalto', 'system') | list %}
    {%- if message.role == 'stop' %}{% break %}{% endif %}
    {%- if message.role == 'tool' %}{% continue %}{% endif %}
    {%- if message.role == 'user' %}
        {{- turn(system ~ '\n\n' ~ message.content if loop.last and system else message.content) }}
    {%- else %}
        {%- generation %}
        {{- ' ' + message.content|default('', true)|trim + eos_token }}
        {%- endgeneration %}
    {%- endif %}
{%- endfor %}"""

CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": " Short. "}, {"role": "user", "content": "  Hi\n"}],
    [
        {"role": "user", "content": "1 < 2 & \"quotes\" 'n' <b>"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\n**Größe** 🙂"},
        {"role": "user", "content": "{{ messages }} {% raw %} <|im_end|>"},
    ],
    [
        {"role": "user", "content": "What is the weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": {"city": "Köln", "days": [1, 2]}},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ],
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "It's <the> weather & more",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def reference(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
    """transformers' rendering; raises whatever the template raises."""
    rendered, _ = render_jinja_template([messages], chat_template=source, **SPECIAL, **options)
    return str(rendered[0])


def reference_or_refusal(
    source: str, messages: list[dict[str, Any]], **options: Any
) -> tuple[str, str | None]:
    """transformers' rendering, or what the template complains of."""
    try:
        return reference(source, messages, **options), None
    except Exception as error:
        return "", str(error)


class TestAgainstTransformers:
    @pytest.mark.parametrize("chat", CHATS, ids=["short", "system", "long", "tools"])
    @pytest.mark.parametrize("add_generation_prompt", [True, False])
    @pytest.mark.parametrize("tools", [None, TOOLS], ids=["", "with-tools"])
    @pytest.mark.parametrize(
        "source",
        [CHATML, LLAMA, ZEPHYR, GEMMA, QWEN, MISTRAL],
        ids=["chatml", "llama", "zephyr", "gemma", "qwen", "mistral"],
    )
    def test_rendering(
        self, source: str, chat: list[dict[str, Any]], add_generation_prompt: bool, tools: Any
    ) -> None:
        options = {"add_generation_prompt": add_generation_prompt, "tools": tools}
        template = ChatTemplate(source, SPECIAL)
        expected, refusal = reference_or_refusal(source, chat, **options)
        if refusal is None:
            assert template.render(chat, **options) == expected
        else:
            with pytest.raises(BadRequest) as caught:
                template.render(chat, **options)
            assert caught.value.param == "messages"
            assert refusal in caught.value.message

    @pytest.mark.parametrize("thinking", [True, False])
    def test_further_variables(self, thinking: bool) -> None:
        options = {"add_generation_prompt": True, "enable_thinking": thinking}
        expected = reference(QWEN, CHATS[0], **options)
        assert ChatTemplate(QWEN, SPECIAL).render(CHATS[0], **options) == expected
        assert expected.endswith("<think></think>") != thinking

    @pytest.mark.parametrize("source", [CHATML, QWEN, MISTRAL])
    def test_continuing_the_last_message(self, source: str) -> None:
        chat = [*CHATS[0], {"role": "assistant", "content": "Once upon a"}]
        expected = reference(source, chat, continue_final_message=True)
        prompt = ChatTemplate(source, SPECIAL).render(chat, False, continue_final_message=True)
        assert prompt == expected
        assert prompt.endswith("Once upon a")

    @pytest.mark.model
    def test_the_default_models_own(self, smollm2_path: Path) -> None:
        tokenizer = load_tokenizer(ModelFiles(kind="gguf", path=smollm2_path, name="smollm2"))
        assert tokenizer.chat_template is not None
        template = ChatTemplate.of(tokenizer)
        for chat in CHATS[:3]:
            assert template.render(chat) == reference(
                tokenizer.chat_template, chat, add_generation_prompt=True
            )
        prompt = template.render(CHATS[0])
        assert prompt.startswith("<|im_start|>system\n")
        assert tokenizer.decode(tokenizer.encode(prompt), skip_special_tokens=False) == prompt


class TestRender:
    def test_the_prompt_ends_with_the_text_to_continue(self) -> None:
        for content in ("It is", "", "a b ", "\n", "x" * 100):
            chat = [*CHATS[0], {"role": "assistant", "content": content}]
            prompt = ChatTemplate(CHATML, SPECIAL).render(chat, False, continue_final_message=True)
            assert prompt.endswith("<|im_start|>assistant\n" + content)

    def test_continuing_and_a_new_turn_exclude_each_other(self) -> None:
        with pytest.raises(BadRequest) as caught:
            ChatTemplate(CHATML, SPECIAL).render(CHATS[0], True, continue_final_message=True)
        assert caught.value.param == "continue_final_message"

    def test_what_cannot_be_continued(self) -> None:
        for source, chat in ((CHATML, CHATS[3][:2]), ("{{ messages[0].role }}", CHATS[0])):
            with pytest.raises(BadRequest) as caught:
                ChatTemplate(source, SPECIAL).render(chat, False, continue_final_message=True)
            assert caught.value.param == "continue_final_message"

    def test_text_parts_are_joined(self) -> None:
        parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
        template = ChatTemplate("{{ messages[0].content }}", {})
        assert template.render([{"role": "user", "content": parts}]) == "one\ntwo"

    def test_tool_arguments_may_be_json_text(self) -> None:
        call = {"function": {"name": "f", "arguments": '{"a": [1, "é"]}'}}
        source = "{{ messages[0].tool_calls[0].function.arguments.a | tojson }}"
        chat = [{"role": "assistant", "tool_calls": [call]}]
        assert ChatTemplate(source, {}).render(chat) == '[1, "é"]'
        assert call["function"]["arguments"] == '{"a": [1, "é"]}'

    def test_developer_is_system_unless_the_template_knows_better(self) -> None:
        chat = [{"role": "developer", "content": "x"}]
        source = "{{ messages[0].role }}"
        assert ChatTemplate(source, {}).render(chat) == "system"
        assert ChatTemplate(source + "{# developer #}", {}).render(chat) == "developer"
        assert chat[0]["role"] == "developer"

    def test_tools_have_a_template_of_their_own(self) -> None:
        template = ChatTemplate({"default": "plain", "tool_use": "tools"}, {})
        assert template.render(CHATS[0]) == "plain"
        assert template.render(CHATS[0], tools=TOOLS) == "tools"

    def test_the_date(self) -> None:
        year = ChatTemplate("{{ strftime_now('%Y') }}", {}).render(CHATS[0])
        assert year.isdigit()
        assert len(year) == 4

    def test_threads_share_a_template(self) -> None:
        template = ChatTemplate(QWEN, SPECIAL)
        expected = [template.render(chat) for chat in CHATS[:3]]
        results: list[list[str]] = []

        def work() -> None:
            for _ in range(20):
                results.append([template.render(chat) for chat in CHATS[:3]])

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [expected] * 80


class TestBadMessages:
    @pytest.mark.parametrize(
        ("messages", "named"),
        [
            ([], "at least one"),
            ("hi", "must be a list"),
            (["hi"], "messages[0] must be an object"),
            ([{"content": "x"}], "messages[0].role"),
            ([{"role": "<|im_end|>", "content": "x"}], "messages[0].role"),
            ([{"role": 1, "content": "x"}], "messages[0].role"),
            ([{"role": "user"}], "messages[0].content is missing"),
            ([{"role": "user", "content": 5}], "messages[0].content"),
            ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
            ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
            (
                [CHATS[0][0], {"role": "user", "content": [{"type": "image_url"}]}],
                "messages[1].content[0]: parts of type 'image_url'",
            ),
            ([{"role": "assistant", "tool_calls": 1}], "messages[0].tool_calls"),
            ([{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls[0]"),
            (
                [
                    {
                        "role": "assistant",
                        "tool_calls": [{"function": {"name": "f", "arguments": "{"}}],
                    }
                ],
                "messages[0].tool_calls[0].function.arguments",
            ),
        ],
    )
    def test_each_is_named(self, messages: Any, named: str) -> None:
        with pytest.raises(BadRequest) as caught:
            ChatTemplate(CHATML, SPECIAL).render(messages)
        assert named in caught.value.message
        assert caught.value.param == "messages"

    def test_tools(self) -> None:
        for tools in ("x", ["x"], 1):
            with pytest.raises(BadRequest) as caught:
                ChatTemplate(CHATML, SPECIAL).render(CHATS[0], tools=tools)  # type: ignore[arg-type]
            assert caught.value.param == "tools"

    def test_a_model_without_a_template_says_so(self) -> None:
        template = ChatTemplate.of(tokenizer_from_gguf(byte_level("gpt-2")))
        with pytest.raises(BadRequest, match="no chat template") as caught:
            template.render(CHATS[0])
        assert caught.value.param == "messages"


class TestTemplateFile:
    def test_it_replaces_the_models_own(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.jinja"
        path.write_text("{{ eos_token }}", encoding="utf-8")
        tokenizer = tokenizer_from_gguf(byte_level("gpt-2"))
        assert ChatTemplate.of(tokenizer, str(path)).render(CHATS[0]) == "<|im_end|>"

    def test_a_missing_file(self, tmp_path: Path) -> None:
        tokenizer = tokenizer_from_gguf(byte_level("gpt-2"))
        with pytest.raises(ConfigError) as caught:
            ChatTemplate.of(tokenizer, str(tmp_path / "none.jinja"))
        assert caught.value.param == "chat_template"

    @pytest.mark.parametrize(
        "source",
        [
            "{% if %}",
            "{{ x | no_such_filter }}",
            "{{ " + "(" * 3000 + ")" * 3000 + " }}",
            "{% for a in b %}" * 30 + "{% endfor %}" * 30,
            "x" * (MAX_TEMPLATE_CHARS + 1),
        ],
        ids=["syntax", "filter", "deep", "nested", "long"],
    )
    def test_bad_templates(self, source: str) -> None:
        with pytest.raises(ModelError, match="chat template"):
            ChatTemplate(source, {})
