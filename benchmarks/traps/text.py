"""Traps 27 to 31: prompts, reasoning, calls of tools, and where an answer ends."""

from __future__ import annotations

from benchmarks.traps.trap import Mutation, Trap

TEXT = "src/twinline/gateway/text/"
TEMPLATE, REASONING, CALL = f"{TEXT}template.py", f"{TEXT}reasoning.py", f"{TEXT}calls/deepseek_call.py"
FORMATS, CHAT = f"{TEXT}calls/formats.py", "src/twinline/gateway/chat.py"
ENCODED = "ids = tokenizer.encode(rendered, special=False)"
TAIL = "return rendered_prompt.rstrip().endswith(OPEN)"
NAME = 'name = None if found is None else found["name"] or self._kind'
SWITCH = ("tests/gateway/text/calls/test_history.py::test_trap_29_thinking_is_a_switch_of_the_template",)
DOOR = ("tests/gateway/test_tools.py::test_trap_29_a_request_turns_thinking_on_and_off",)
ENGINE = ("tests/engine/test_traps.py::test_trap_31_any_end_token_stops",)

TRAPS = (
    Trap(27, "a rendered prompt has the one begin token that its template writes",
         ("tests/gateway/text/test_template.py::test_trap_27_a_rendered_prompt_has_one_begin_token",), (
        Mutation("another begin token before it", TEMPLATE, ENCODED,
                 "ids = [*([] if tokenizer.bos_id is None else [tokenizer.bos_id]), "
                 "*tokenizer.encode(rendered, special=False)]"),
        Mutation("encoded as text that wants a begin token", TEMPLATE, ENCODED,
                 "ids = tokenizer.encode(rendered, special=True)"),
        Mutation("two begin tokens pass", TEMPLATE,
                 "if tokenizer.bos_id is not None and ids[:2] == [tokenizer.bos_id, tokenizer.bos_id]:",
                 "if False:"),
    )),
    Trap(28, "reasoning is open where the prompt's tail left it open",
         ("tests/gateway/text/test_reasoning.py::test_trap_28_reasoning_is_open_where_the_prompt_left_it_open",), (
        Mutation("closed until the output opens it", REASONING, TAIL, "return False"),
        Mutation("open for a model that reasons", REASONING, TAIL, "return True"),
        Mutation("open where the tag is anywhere in the prompt", REASONING, TAIL,
                 "return OPEN in rendered_prompt"),
        Mutation("the newline behind the tag closes it", REASONING, TAIL,
                 "return rendered_prompt.endswith(OPEN)"),
        Mutation("no tag at all: nothing is the answer", REASONING,
                 "self._at = _At.REASONING_START if self._opened else self._content()\n\n    def _content",
                 "self._at = _At.REASONING_START\n\n    def _content"),
    )),
    Trap(29, "thinking is a switch of the template", (*SWITCH, *DOOR), (
        Mutation("the template does not hear of it", TEMPLATE, "            **switches,\n", ""),
        Mutation("a request's switches are dropped", CHAT,
                 "**(switches(request) | (request.chat_template_kwargs or {})),",
                 "**switches(request),", DOOR),
        Mutation("reasoning_effort is dropped", CHAT,
                 "**(switches(request) | (request.chat_template_kwargs or {})),",
                 "**(request.chat_template_kwargs or {}),", DOOR),
        Mutation("the parser's state is the model's", REASONING, TAIL, "return True", SWITCH),
    )),
    Trap(30, "calls stand between special tokens, each family's in its own form",
         ("tests/gateway/test_tools.py::test_trap_30_calls_between_special_tokens_round_trip",), (
        Mutation("V3's word `function` is taken for the name", CALL, NAME,
                 "name = None if found is None else self._kind"),
        Mutation("V3.1's name is looked for behind the separator", CALL, NAME,
                 'name = None if found is None else found["name"]'),
        Mutation("the fence stays", CALL, r'(?:```(?:json)?\s*)?")', '")'),
        Mutation("what ends a call is the answer", FORMATS, "tails=(FENCE, CALL_END, CALLS_END),", "tails=(),"),
        Mutation("special tokens are not shown to the parser", CHAT,
                 "keep=served.text.call_marks if use.names else served.text.marks,",
                 "keep=served.text.marks,"),
        Mutation("V3.1 is told V3's form", FORMATS,
                 "(DEEPSEEK_V31, (CALLS_BEGIN, SEPARATOR), ()),", "(DEEPSEEK_V3, (CALLS_BEGIN, SEPARATOR), ()),"),
    )),
    Trap(31, "an answer ends with any of the end tokens",
         (*ENGINE, "tests/engine/test_traps_families.py::test_trap_31_glm_ends_by_any_of_three_tokens"), (
        Mutation("the first of the list", "src/twinline/facts/end_tokens.py", "return frozenset(ids)\n",
                 "return frozenset(ids[:1])\n",
                 (*ENGINE, "tests/engine/test_traps_families.py::test_trap_31_glm_ends_by_any_of_three_tokens",
                  "tests/gateway/text/test_tokenizer.py::test_trap_31_every_end_token_of_a_list",
                  "tests/lines/simulated/test_teacher.py::test_trap_31_every_end_token_of_a_list")),
        Mutation("config.json goes before generation_config.json", "src/twinline/engine/worker.py",
                 'for name in ("generation_config.json", "config.json"):',
                 'for name in ("config.json", "generation_config.json"):', ENGINE),
    )),
)  # fmt: skip
