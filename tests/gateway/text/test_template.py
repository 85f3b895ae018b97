from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from twinline.gateway.text.template import ChatTemplate, NoChatTemplate, encode_prompt
from twinline.gateway.text.tokenizer import Tokenizer

R1_LIKE = """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(system='') %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {%- set ns.system = message['content'] %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}{{ ns.system }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '<｜User｜>' + message['content'] }}
    {%- elif message['role'] == 'assistant' and message['content'] is none %}
        {%- for tool in message['tool_calls'] %}
            {{- '<｜Assistant｜>' + tool['function']['name'] + '\\n```json\\n' }}
            {{- tool['function']['arguments'] + '\\n```' }}
        {%- endfor %}
    {%- elif message['role'] == 'assistant' %}
        {{- '<｜Assistant｜>' + message['content'].split('</think>')[-1] + eos_token }}
    {%- elif message['role'] == 'tool' %}
        {{- '<tool_output>' + message['content'] + '</tool_output>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}
"""

V31_LIKE = """\
{% if not thinking is defined %}
  {% set thinking = false %}
{% endif %}
{{ bos_token }}
{%- if tools is defined and tools is not none %}
  {%- for tool in tools %}
    {{- '## ' + tool.function.name + ': ' + tool.function.parameters | tojson + '\\n' }}
  {%- endfor %}
{%- endif %}
{%- for message in messages %}
  {%- if message.role == 'system' %}{% continue %}{% endif %}
  {%- if message.role == 'user' %}{{ '<｜User｜>' + message.content }}
  {%- else %}{% generation %}{{ '<｜Assistant｜></think>' + message.content | trim + eos_token }}{% endgeneration %}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<｜Assistant｜>' + ('<think>' if thinking else '</think>') }}
{%- endif %}
"""

TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "b": "<上海>", "a": [1, 2]}}}
]
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is 2+2?"}],
    [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": "  你好 <b>&</b> "},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\n 好 "},
        {"role": "user", "content": "再来 {{ 1 }} {% raw %}"},
    ],
]
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "上海"}'}}


def with_template(tiny_dir: Path, folder: Path, template: object) -> Path:
    shutil.copytree(tiny_dir, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "chat_template": template}), "utf-8")
    return folder


@pytest.fixture(params=["tiny", "r1", "v31"])
def folder(request: pytest.FixtureRequest, tiny_dir: Path, tmp_path: Path) -> Path:
    if request.param == "tiny":
        return tiny_dir
    return with_template(tiny_dir, tmp_path / "model", {"r1": R1_LIKE, "v31": V31_LIKE}[request.param])


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("options", [{}, {"add_generation_prompt": False}, {"thinking": True}, {"tools": TOOLS}])
def test_the_prompt_of_transformers(folder: Path, chat: list[dict[str, Any]], options: dict[str, Any]) -> None:
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    expected = theirs.apply_chat_template(chat, tokenize=False, **{"add_generation_prompt": True, **options})
    rendered = ChatTemplate.load(folder).render(chat, **options)
    assert rendered == expected
    ids = encode_prompt(Tokenizer.load(folder), rendered)
    assert ids == theirs(rendered, add_special_tokens=False)["input_ids"]
    assert ids[:2].count(theirs.bos_token_id) == 1


@pytest.mark.parametrize("last", ["The answer", "The answer\n", " is "])
def test_continuing_the_last_message_as_transformers_does(folder: Path, last: str) -> None:
    chat = [*CHATS[0], {"role": "assistant", "content": last}]
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    expected = theirs.apply_chat_template(chat, tokenize=False, continue_final_message=True)
    assert ChatTemplate.load(folder).render(chat, continue_final_message=True) == expected
    assert chat[-1]["content"] == last


def test_a_last_message_that_cannot_be_continued(tiny_dir: Path) -> None:
    template = ChatTemplate.load(tiny_dir)
    with pytest.raises(ValueError, match="needs a last message"):
        template.render([], continue_final_message=True)
    dropped = [*CHATS[0], {"role": "assistant", "content": "<think>hm</think>so"}]
    with pytest.raises(ValueError, match="alters the last message"):
        template.render(dropped, continue_final_message=True)


def test_tool_calls_without_content(tiny_dir: Path, tmp_path: Path) -> None:
    template = ChatTemplate.load(with_template(tiny_dir, tmp_path / "m", R1_LIKE))
    result = {"role": "tool", "content": [{"type": "text", "text": "晴"}]}
    rendered = template.render([*CHATS[0], {"role": "assistant", "tool_calls": [CALL]}, result])
    assert 'weather\n```json\n{"city": "上海"}\n```<tool_output>晴</tool_output>' in rendered


def test_content_parts_become_one_string(tiny_dir: Path) -> None:
    template = ChatTemplate.load(tiny_dir)
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "2+2?"}]
    whole = {"role": "user", "content": "What is\n2+2?"}
    assert template.render([{"role": "user", "content": parts}]) == template.render([whole])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([{"type": "image_url", "image_url": {"url": "x"}}], "type image_url"),
        (["text"], "type str"),
        ([{"type": "text"}], "must have a text"),
        (3, "not int"),
    ],
)
def test_other_content_is_refused(tiny_dir: Path, content: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ChatTemplate.load(tiny_dir).render([{"role": "user", "content": content}])
    with pytest.raises(ValueError, match="must be an object"):
        ChatTemplate.load(tiny_dir).render(["text"])  # type: ignore[list-item]


def test_the_templates_refusal_is_the_error(tiny_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"^role critic is not supported by tiny-r1$"):
        ChatTemplate.load(tiny_dir).render([{"role": "critic", "content": "x"}])


def test_messages_that_do_not_fit_are_a_value_error(tiny_dir: Path) -> None:
    with pytest.raises(ValueError, match="does not fit these messages"):
        ChatTemplate({"default": "{{ messages[0].content + 1 }}"}, {}).render(CHATS[0])


def test_the_sandbox_holds(tiny_dir: Path) -> None:
    for source in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"):
        with pytest.raises(ValueError, match="unsafe"):
            ChatTemplate({"default": source}, {}).render([])


def test_what_templates_may_call() -> None:
    source = "{{ strftime_now('%Y') }} {{ {'b': '<', 'a': '你'} | tojson }} {{ [1] | tojson(indent=1) }}"
    rendered = ChatTemplate({"default": source}, {}).render([])
    assert rendered == f'{datetime.now():%Y} {{"b": "<", "a": "你"}} [\n 1\n]'


def test_named_templates(tiny_dir: Path, tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    template = ChatTemplate.load(with_template(tiny_dir, tmp_path / "both", named))
    assert (template.render([]), template.render([], tools=TOOLS), template.render([], tools=[])) == (
        "plain",
        "tools",
        "plain",
    )
    only = ChatTemplate.load(with_template(tiny_dir, tmp_path / "one", named[:1]))
    assert only.render([], tools=TOOLS) == "plain"
    with pytest.raises(ValueError, match="only: tool_use"):
        ChatTemplate.load(with_template(tiny_dir, tmp_path / "tool", named[1:])).render([])


def test_the_jinja_file_goes_first(tiny_dir: Path, tmp_path: Path) -> None:
    model = with_template(tiny_dir, tmp_path / "m", "from the config")
    (model / "chat_template.jinja").write_text("from the file", "utf-8")
    assert ChatTemplate.load(model).render([]) == "from the file"


def test_a_model_without_template_points_to_completions(tiny_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(NoChatTemplate, match=r"chat needs one: use /v1/completions"):
        ChatTemplate.load(with_template(tiny_dir, tmp_path / "m", None))


def test_corrupt_templates(tiny_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not valid Jinja: line 2"):
        ChatTemplate.load(with_template(tiny_dir, tmp_path / "syntax", "a\n{% if %}"))
    with pytest.raises(ValueError, match="must be a string or a list"):
        ChatTemplate.load(with_template(tiny_dir, tmp_path / "shape", [{"name": "default"}]))


@pytest.mark.parametrize("source", ["{% for a in [] %}" * 25 + "{% endfor %}" * 25, "{{ " + "not " * 5000 + "a }}"])
def test_templates_that_nest_too_deeply(source: str) -> None:
    """The one for Python, to which Jinja translates it, the other for Jinja."""
    with pytest.raises(ValueError, match="cannot be compiled"):
        ChatTemplate({"default": source}, {})


def test_what_a_template_calls_may_fail_in_any_way() -> None:
    with pytest.raises(ValueError, match="does not fit these messages"):
        ChatTemplate({"default": "{{ cycler() }}"}, {}).render(CHATS[0])


def test_a_doubled_begin_token_is_refused(tiny: Tokenizer, tiny_dir: Path) -> None:
    chat = [{"role": "system", "content": "<｜begin▁of▁sentence｜>Be brief."}, *CHATS[0]]
    with pytest.raises(ValueError, match="begin▁of▁sentence｜> twice"):
        encode_prompt(tiny, ChatTemplate.load(tiny_dir).render(chat))


def test_trap_27_a_rendered_prompt_has_one_begin_token(
    tiny: Tokenizer, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The template writes it, and `add_bos_token` would have the tokenizer write another."""
    rendered = ChatTemplate.load(tiny_dir).render(CHATS[0])
    assert encode_prompt(tiny, rendered).count(tiny.bos_id) == 1
    assert tiny.bos_id in tiny.encode("x", special=True) and tiny.bos_id not in encode_prompt(tiny, "<｜User｜>x")
    encode = Tokenizer.encode
    adds = [tiny.bos_id]
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text, *, special: adds + encode(self, text, special=special))
    with pytest.raises(ValueError, match="twice"):
        encode_prompt(tiny, rendered)


def test_a_prompt_gets_no_begin_token_of_its_own(tiny: Tokenizer) -> None:
    assert tiny.bos_id not in encode_prompt(tiny, "<｜User｜>x")
