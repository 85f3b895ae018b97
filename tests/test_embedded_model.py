"""The embedded tiny-r1 is a Hugging Face folder that others load too, and the engine computes what they compute."""

from importlib.resources import files
from pathlib import Path

import pytest
import torch

from twinline.engine.build import Options, build
from twinline.engine.request import Request, SamplingParams
from twinline.gateway.text.template import ChatTemplate, encode_prompt
from twinline.gateway.text.tokenizer import Tokenizer

FOLDER = Path(str(files("twinline") / "models" / "tiny-r1"))
QUESTIONS = ["What is 123+989?", "9.8和9.11哪个大？", 'How many r are in "strawberry"?', "Hello!"]


@pytest.fixture(scope="module")
def theirs():
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(FOLDER)


def test_it_is_small_and_says_what_it_is():
    assert sum(f.stat().st_size for f in FOLDER.iterdir()) < 20e6
    assert "demonstration" in (FOLDER / "README.md").read_text("utf-8")


@pytest.mark.parametrize("question", QUESTIONS)
def test_transformers_renders_and_answers_the_same(theirs, question):
    model, tokenizer = theirs
    messages = [{"role": "user", "content": question}]
    ours = encode_prompt(Tokenizer.load(FOLDER), ChatTemplate.load(FOLDER).render(messages))
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert ours == tokenizer(rendered, add_special_tokens=False).input_ids
    engine = build(FOLDER, Options(device="cpu", dtype="float32", kv_tokens=2048), lambda outputs: None).engine
    params = SamplingParams(max_tokens=80, temperature=0, stop_token_ids=frozenset([1]), prompt_logprobs=0)
    request = Request("r", ours, params)
    engine.submit(request)
    while engine.scheduler.has_work:
        engine.step()
    with torch.inference_mode():
        logits = model(torch.tensor([ours + request.output])).logits[0]
    assert request.output == logits[len(ours) - 1 : -1].argmax(-1).tolist()
    for p, target in enumerate(ours[1:]):
        found = request.prompt_logprobs[p + 1]
        assert found is not None
        assert found.logprob == pytest.approx(logits[p].log_softmax(-1)[target].item(), abs=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_dtype_reasons_to_the_same_answer(dtype):
    tokenizer, outputs = Tokenizer.load(FOLDER), []
    engine = build(FOLDER, Options(device="cpu", dtype=dtype, kv_tokens=2048), outputs.extend).engine
    ids = encode_prompt(tokenizer, ChatTemplate.load(FOLDER).render([{"role": "user", "content": "What is 4821-977?"}]))
    engine.submit(Request("r", ids, SamplingParams(max_tokens=90, temperature=0, stop_token_ids=frozenset([1]))))
    while engine.scheduler.has_work:
        engine.step()
    assert tokenizer.decode([t for o in outputs for t in o.tokens]).endswith("</think>\n\n3844")
