"""Chat templates in the manner of the published ones: what each family writes of calls, and asks of messages.

They are written for these tests. `LISTS_NONE` (DeepSeek): the template does not tell the model of its tools.
"""

R1 = """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(system='', tool=false) %}
{%- for m in messages %}
  {%- if m['role'] == 'system' %}{% set ns.system = ns.system + m['content'] %}{% endif %}
{%- endfor %}
{{- bos_token + ns.system }}
{%- for m in messages %}
  {%- if m['role'] == 'user' %}{% set ns.tool = false %}{{ '<｜User｜>' + m['content'] }}
  {%- elif m['role'] == 'assistant' and m['content'] is none %}
    {%- set ns.tool = false %}
    {{- '<｜Assistant｜><｜tool▁calls▁begin｜>' }}
    {%- for c in m['tool_calls'] %}
      {{- '' if loop.first else '\\n' }}
      {{- '<｜tool▁call▁begin｜>' + c['type'] + '<｜tool▁sep｜>' + c['function']['name'] + '\\n```json\\n' }}
      {{- c['function']['arguments'] + '\\n```<｜tool▁call▁end｜>' }}
    {%- endfor %}
    {{- '<｜tool▁calls▁end｜>' + eos_token }}
  {%- elif m['role'] == 'assistant' %}
    {{- ('' if ns.tool else '<｜Assistant｜>') + m['content'].split('</think>')[-1] + eos_token }}
    {%- set ns.tool = false %}
  {%- elif m['role'] == 'tool' %}
    {%- set ns.tool = true %}{{ '<｜tool▁output▁begin｜>' + m['content'] + '<｜tool▁output▁end｜>' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt and not ns.tool %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}
"""

V31 = """\
{% if not thinking is defined %}{% set thinking = false %}{% endif %}
{%- set ns = namespace(system='', user=false) %}
{%- for m in messages %}
  {%- if m['role'] == 'system' %}{% set ns.system = ns.system + m['content'] %}{% endif %}
{%- endfor %}
{{- bos_token + ns.system }}
{%- for m in messages %}
  {%- if m['role'] == 'user' %}{% set ns.user = true %}{{ '<｜User｜>' + m['content'] }}
  {%- elif m['role'] == 'assistant' and m['tool_calls'] is defined and m['tool_calls'] is not none %}
    {{- '<｜Assistant｜></think>' if ns.user }}{% set ns.user = false %}
    {{- (m['content'] or '') + '<｜tool▁calls▁begin｜>' }}
    {%- for c in m['tool_calls'] %}
      {{- '<｜tool▁call▁begin｜>' + c['function']['name'] + '<｜tool▁sep｜>' + c['function']['arguments'] }}
      {{- '<｜tool▁call▁end｜>' }}
    {%- endfor %}
    {{- '<｜tool▁calls▁end｜>' + eos_token }}
  {%- elif m['role'] == 'assistant' %}
    {{- '<｜Assistant｜></think>' if ns.user }}{% set ns.user = false %}{{ m['content'] + eos_token }}
  {%- elif m['role'] == 'tool' %}
    {%- set ns.user = false %}{{ '<｜tool▁output▁begin｜>' + m['content'] + '<｜tool▁output▁end｜>' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt and ns.user %}{{ '<｜Assistant｜>' + ('<think>' if thinking else '</think>') }}{% endif %}
"""

QWEN3 = """\
{%- if tools %}{{ '<|im_start|>system\\n<tools>' }}
  {%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}
  {{- '\\n</tools>\\n<tool_call>\\n{"name": <name>, "arguments": <object>}\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
  {%- if m.role == 'tool' %}
    {{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}
  {%- elif m.role == 'assistant' %}
    {%- set content = m.content %}
    {%- if '</think>' in m.content %}{% set content = m.content.split('</think>')[-1].lstrip('\\n') %}{% endif %}
    {{- '<|im_start|>assistant\\n' + content }}
    {%- for c in m.tool_calls or [] %}
      {{- '\\n' if content or not loop.first }}
      {{- '<tool_call>\\n{"name": "' + c.function.name + '", "arguments": ' }}
      {%- if c.function.arguments is string %}{{ c.function.arguments }}
      {%- else %}{{ c.function.arguments | tojson }}{% endif %}
      {{- '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
  {%- else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
  {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""

LLAMA3 = """\
{{- bos_token }}
{%- for tool in tools or [] %}{{ tool | tojson(indent=4) + '\\n\\n' }}{% endfor %}
{%- for m in messages %}
  {%- if 'tool_calls' in m %}
    {%- if m.tool_calls | length != 1 %}
      {{- raise_exception('This model only supports single tool-calls at once!') }}
    {%- endif %}
    {%- set c = m.tool_calls[0].function %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + c.name + '", "parameters": ' }}
    {{- c.arguments | tojson }}{{ '}<|eot_id|>' }}
  {%- else %}
    {{- '<|start_header_id|>' + ('ipython' if m.role == 'tool' else m.role) + '<|end_header_id|>\\n\\n' }}
    {{- m.content | trim + '<|eot_id|>' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""

CODER = """\
{%- set said = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | join %}
{%- if tools or said %}{{ '<|im_start|>system\\n' + said }}
  {%- for tool in tools or [] %}
    {%- set f = tool.function %}
    {{- '\\n<name>' + f.name + '</name>' }}
    {%- if f.description is defined %}{{ '<description>' ~ f.description ~ '</description>' }}{% endif %}
    {%- if f.parameters is mapping and f.parameters.properties is mapping %}
      {%- for key, field in f.parameters.properties | items %}
        {{- '\\n<parameter>' + key + ' ' + field | tojson + '</parameter>' }}
      {%- endfor %}
    {%- else %}{{ (f.parameters or {}) | tojson }}
    {%- endif %}
  {%- endfor %}
  {%- if tools %}{{ '\\n<tool_call>\\n<function=f>\\n<parameter=p>\\n1\\n</parameter>\\n</function>\\n</tool_call>' }}
  {%- endif %}
  {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages if m.role != 'system' %}
  {%- if m.role == 'tool' %}
    {{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}
  {%- elif m.tool_calls %}
    {{- '<|im_start|>assistant\\n' + ((m.content + '\\n\\n') if m.content else '') }}
    {%- for c in m.tool_calls %}
      {{- '' if loop.first else '\\n' }}{{ '<tool_call>\\n<function=' + c.function.name + '>\\n' }}
      {%- for key, value in c.function.arguments | items %}
        {{- '<parameter=' + key + '>\\n' }}
        {{- value | tojson if value is mapping or (value is sequence and value is not string) else value | string }}
        {{- '\\n</parameter>\\n' }}
      {%- endfor %}
      {{- '</function>\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
  {%- else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

GLM45 = """\
{{- '[gMASK]<sop>' }}
{%- if tools %}{{ '<|system|>' }}
  {%- for tool in tools %}{{ '\\n' + tool | tojson(ensure_ascii=False) }}{% endfor %}
  {{- '\\n<tool_call>name\\n<arg_key>key</arg_key>\\n<arg_value>value</arg_value>\\n</tool_call>' }}
{%- endif %}
{%- for m in messages %}
  {%- if m.role == 'tool' %}{{ '<|observation|>\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
  {%- elif m.role == 'assistant' %}
    {{- '<|assistant|>\\n<think></think>' }}{{ '\\n' ~ m.content if m.content != '' }}
    {%- for c in m.tool_calls or [] %}
      {{- '\\n<tool_call>' + c.function.name + '\\n' }}
      {%- for k, v in c.function.arguments.items() %}
        {{- '<arg_key>' + k + '</arg_key>\\n<arg_value>' }}
        {{- v if v is string else v | tojson(ensure_ascii=False) }}{{ '</arg_value>\\n' }}
      {%- endfor %}
      {{- '</tool_call>' }}
    {%- endfor %}
  {%- else %}{{ '<|' + m.role + '|>\\n' + m.content }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|assistant|>' + ('\\n<think></think>' if enable_thinking is defined and not enable_thinking else '') }}
{%- endif %}
"""

GLM4 = """\
{{- '[gMASK]<sop>' }}
{%- for tool in tools or [] %}
  {{- '<|system|>\\n' if loop.first else '' }}
  {{- '## ' + tool.function.name + '\\n' + tool.function | tojson(indent=4) + '\\n' }}
{%- endfor %}
{%- for m in messages %}
  {%- set said = m.content.split('</think>')[-1].strip() %}
  {%- if m.role == 'assistant' %}{{ '<|assistant|>' + (m.metadata or '') + '\\n' + said }}
  {%- elif m.role in ('system', 'user', 'observation') %}{{ '<|' + m.role + '|>\\n' + said }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
"""

V32 = """\
{%- set mark = '｜DSML｜' %}
{{- bos_token }}
{%- for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}
{%- for tool in tools or [] %}{{ '\\n' + tool.function | tojson }}{% endfor %}
{%- if tools %}{{ '\\n<' + mark + 'function_calls>\\n<' + mark + 'invoke name="NAME">' }}{% endif %}
{%- for m in messages if m.role != 'system' %}
  {%- if m.role == 'user' %}{{ '<｜User｜>' + m.content + '<｜Assistant｜></think>' }}
  {%- elif m.role == 'tool' %}
    {{- '\\n\\n<function_results>\\n<result>' + m.content + '</result>\\n</function_results>' }}
    {{- '\\n\\n</think>' if loop.last else '' }}
  {%- else %}
    {{- m.content or '' }}
    {%- if m.tool_calls %}{{ '\\n\\n<' + mark + 'function_calls>\\n' }}
      {%- for c in m.tool_calls %}
        {{- '<' + mark + 'invoke name="' + c.function.name + '">\\n' }}
        {%- for k, v in c.function.arguments | items %}
          {{- '<' + mark + 'parameter name="' + k + '" string="' + ('true' if v is string else 'false') + '">' }}
          {{- v if v is string else v | tojson }}{{ '</' + mark + 'parameter>\\n' }}
        {%- endfor %}
        {{- '</' + mark + 'invoke>\\n' }}
      {%- endfor %}
      {{- '</' + mark + 'function_calls>' }}
    {%- endif %}
    {{- eos_token }}
  {%- endif %}
{%- endfor %}
"""

V4 = """\
{%- set mark = '｜DSML｜' %}
{%- set thinks = thinking is defined and thinking %}
{{- bos_token }}
{%- for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}
{%- for tool in tools or [] %}{{ '\\n' + tool.function | tojson }}{% endfor %}
{%- if tools %}{{ '\\n<' + mark + 'tool_calls>\\n<' + mark + 'invoke name="NAME">' }}{% endif %}
{%- for m in messages if m.role != 'system' %}
  {%- if m.role == 'user' %}{{ '<｜User｜>' + m.content }}
  {%- elif m.role == 'tool' %}{{ '<｜User｜><tool_result>' + m.content + '</tool_result>' }}
  {%- else %}{{ '<｜Assistant｜>' }}
    {%- if thinks %}{{ '<think>' + (m.reasoning_content or '') }}{% endif %}
    {{- '</think>' + (m.content or '') }}
    {%- if m.tool_calls %}{{ '\\n\\n<' + mark + 'tool_calls>\\n' }}
      {%- for c in m.tool_calls %}
        {{- '<' + mark + 'invoke name="' + c.function.name + '">\\n' }}
        {%- for k, v in c.function.arguments | items %}
          {{- '<' + mark + 'parameter name="' + k + '" string="' + ('true' if v is string else 'false') + '">' }}
          {{- v if v is string else v | tojson }}{{ '</' + mark + 'parameter>\\n' }}
        {%- endfor %}
        {{- '' if c.function.arguments else '\\n' }}{{ '</' + mark + 'invoke>\\n' }}
      {%- endfor %}
      {{- '</' + mark + 'tool_calls>' }}
    {%- endif %}
    {{- eos_token }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜>' + ('<think>' if thinks else '</think>') }}{% endif %}
"""

ERNIE = """\
{%- if tools %}{{ '<|im_start|>system\\n<tool_list>' + tools | tojson + '</tool_list>' }}
  {{- '<tool_call>\\n{"name": name, "arguments": object}\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
  {%- if m.tool_calls %}
    {{- '<|im_start|>assistant\\n' + m.content }}
    {%- for c in m.tool_calls %}
      {{- '\\n' if not loop.first else '' }}{{ '<tool_call>\\n{"name": "' + c.function.name + '", "arguments": ' }}
      {{- c.function.arguments | tojson + '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
  {%- else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\\n' + ('<think>\\n' if messages[-1].role != 'tool' else '') }}
{%- endif %}
"""

TEMPLATES = {
    "r1": R1,
    "v31": V31,
    "qwen3": QWEN3,
    "llama3": LLAMA3,
    "coder": CODER,
    "glm45": GLM45,
    "glm4": GLM4,
    "v32": V32,
    "v4": V4,
    "ernie": ERNIE,
}
LISTS_NONE = {"r1", "v31"}
