"""What the teacher upstreams say: English, Chinese, emoji, code and JSON, each falling into tokens in its own way."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Mapping

from twinline.gateway.text.tokenizer import Tokenizer
from twinline.lines.simulated.teacher import Teacher

ENGLISH = (
    "Nothing travels faster than the speed of light, with the possible exception of bad news. ",
    "She opened the door; behind it there was another door, and it was painted exactly like the first.\n",
    "In 1854 the pump on Broad Street lost its handle, and the cholera lost its way. ",
    "“Well,” he said, “that’s that — isn’t it?” Nobody knew. The clock went on… ",
    "A stream that breaks must go on where it broke: not a letter less, not a letter more.\n\n",
    "   Three spaces begin this line, and two end it.  ",
)
CHINESE = (
    "两条线各走各的路，走到一处便是一条线。",
    "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。\n",
    "机器坏了可以换，话说了一半不能丢；丢了一个字，意思就变了。",
    "𠮷野家、龘、𡃁、㐂、𪚥：这些字有的占三个字节，有的占四个。\n\n",
    "价格 3.5 元／百万词元（折后 2.8 元），延迟不超过 200 毫秒。",
    "「これは日本語です。」と彼は言った。한국어도 조금 있습니다. ",
)
EMOJI = (
    "😀😃😄😁😆😅🤣😂🙂🙃🫠😉😊😇🥰😍🤩",
    "👨‍👩‍👧‍👦 👩🏽‍🚀 🧑🏿‍🤝‍🧑🏻 🏳️‍🌈 🏴󠁧󠁢󠁳󠁣󠁴󠁿 👍🏾 ✌🏼\n",
    "🇨🇳🇩🇪🇫🇷🇯🇵🇧🇷🇿🇦 flags, and ☔☕♟️⚡ old ones. ",
    "🚀→🌕 in 3️⃣, 2️⃣, 1️⃣ … 🎉🎊🥳\n\n",
    "ｅｍｏｊｉ🅰️🅱️🆎 x̄ = ∑ᵢxᵢ⁄n, e^{iπ}+1=0 ∎ ℵ₀ ⟨ψ|φ⟩ ",
    "t̷h̶i̵s̴ ̸h̷a̶s̵ ̴m̸a̷r̶k̵s̴ 🧿",
)
CODE = (
    '#include <stdio.h>\nint main(void) {\n\tputs("héllo, wörld\\n");\n\treturn 0;\n}\n',
    "SELECT line, SUM(tokens) FROM usage WHERE day >= '2025-01-01' GROUP BY line HAVING SUM(tokens) > 1e6;\n",
    '<p class="x">a &lt; b &amp;&amp; c &gt; d</p><!-- </think> is only a word here -->\n',
    "$ grep -rn 'data: \\[DONE\\]' src | awk -F: '{print $1}' | sort -u\n",
    *(part + "\n\n" for part in inspect.getsource(textwrap).split("\n\n")[8:20:2]),
)
OBJECTS = (
    {"id": 17, "name": 'Zoë "Z" O’Neil', "tags": ["ä", "\u2028", "\t", "\\"], "nested": {"a": [[], {}, None, True]}},
    [{"城市": "上海", "气温": -3.25, "天气": "☔"}, {"城市": "北京", "气温": 12, "天气": "🌤️"}],
    {"choices": [{"delta": {"content": "data: [DONE]\n\n"}, "finish_reason": "stop"}], "usage": None},
    {"data": "\r\n\r\n0\r\n\r\n", "error": {"message": "not an error", "code": None}},
)
JSON = (
    *(json.dumps(value, ensure_ascii=False) + "\n" for value in OBJECTS),
    *(json.dumps(value, indent=2) + ",\n" for value in OBJECTS),
)
CORPORA: Mapping[str, tuple[str, ...]] = {
    "english": ENGLISH, "chinese": CHINESE, "emoji": EMOJI, "code": CODE, "json": JSON,
}  # fmt: skip


def teachers(tokenizer: Tokenizer) -> dict[str, Teacher]:
    """A teacher for each corpus, in the vocabulary of `tokenizer`."""
    think, close = tokenizer.encode("<think>", special=False), tokenizer.encode("</think>\n\n", special=False)

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, special=False)

    # A word that is a tag to the vocabulary would end reasoning where the teacher does not mean it.
    return {
        name: Teacher(
            [ids(text) for text in texts if close[0] not in ids(text)], (), tokenizer.eos_ids, think[0], close, 6
        )
        for name, texts in CORPORA.items()
    }
