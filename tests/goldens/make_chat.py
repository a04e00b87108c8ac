"""Makes chat.json: chats as transformers renders them; needs transformers >= 5 (and no torch).

    python tests/goldens/make_chat.py

The templates are ours, with what Qwen's have: a default system message, tools and calls as JSON, grouped tool
responses, whitespace control, namespaces that count, content as text or as a list of parts.
"""

import json
import pathlib

from transformers.utils.chat_template_utils import render_jinja_template

OUT = pathlib.Path(__file__).with_name("chat.json")

TOOLS = r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You draw and you write.' }}
    {%- endif %}
    {{- "\n\n# Tools\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou draw and you write.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or
           (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\n<tool_call>\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson(indent=2) }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' }}{{- message.content }}{{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- elif message.role != "system" %}
        {{- raise_exception("unknown role " + message.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""

VISION = r"""{% set pictures = namespace(count=0) %}{% for message in messages %}
{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You draw and you write.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}
  {% for part in message['content'] %}
    {% if part['type'] == 'image' or 'image' in part %}
      {% set pictures.count = pictures.count + 1 %}
{% if add_vision_id %}Picture {{ pictures.count }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>
    {%- elif part['text'] is defined and part['text'] == 'stop here' %}
      {%- break %}
    {%- elif 'text' in part %}
{{- part['text'] }}
    {%- endif %}
  {%- endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

MARKED = r"""{%- for message in messages -%}
{{ message.role | upper }}: {% if message.role == 'assistant' %}{% generation %}{{ message.content | trim }}
{% endgeneration %}{% else %}{{ message.content | trim }}
{% endif %}
{%- endfor -%}"""

TALK = [
    {"role": "user", "content": 'A red sun, <please> & "now" 赤'},
    {"role": "assistant", "content": "Here it is."},
    {"role": "user", "content": "  Now a moon \n"},
]
CALLS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Draw."},
    {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": "draw", "arguments": {"what": "<moon>", "size": [2, 3], "é": None}}},
        {"name": "wait", "arguments": {}},
    ]},
    {"role": "tool", "content": "done"},
    {"role": "tool", "content": "waited"},
    {"role": "assistant", "content": "Ready."},
]  # fmt: skip
PICTURES = [
    {"role": "user", "content": [
        {"type": "image", "image": "a.png"},
        {"type": "text", "text": "and"},
        {"type": "image", "image": "b.png"},
        {"type": "text", "text": " differ how?"},
    ]},
    {"role": "assistant", "content": [{"type": "text", "text": "In colour."}]},
    {"role": "user", "content": "Thanks"},
]  # fmt: skip
TOOL = {"type": "function", "function": {"name": "draw", "description": "Draws <it>", "parameters": {"b": 1, "a": 2}}}
CASES = [
    ("tools", TALK, {"add_generation_prompt": True}),
    ("tools", TALK, {}),
    ("tools", CALLS, {}),
    ("tools", CALLS, {"tools": [TOOL], "add_generation_prompt": True}),
    ("vision", TALK, {"add_generation_prompt": True}),
    ("vision", PICTURES, {"add_generation_prompt": True}),
    ("vision", PICTURES, {"add_vision_id": True}),
    ("marked", TALK, {}),
]


def main():
    templates = {"tools": TOOLS, "vision": VISION, "marked": MARKED}
    cases = []
    for name, messages, options in CASES:
        (text,), _ = render_jinja_template([messages], chat_template=templates[name], **options)
        cases.append({"template": name, "messages": messages, "options": options, "text": text})
    OUT.write_text(
        json.dumps({"templates": templates, "cases": cases}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
