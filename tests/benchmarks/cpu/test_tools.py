"""What llama.cpp's benchmark prints, read; and the streams of its server."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.cpu.engines import llamaserver, serve

from benchmarks.cpu import tools

PRINTED = """\
load_backend: loaded
{"n_kv_max": 4352, "n_batch": 2048, "n_ubatch": 512, "flash_attn": -1, "is_pp_shared": 0, "n_gpu_layers": -1, \
"n_threads": 2, "n_threads_batch": 2, "pp": 128, "tg": 128, "pl": 8, "n_kv": 2048, "t_pp": 8.0, "speed_pp": 128.0, \
"t_tg": 24.0, "speed_tg": 42.666668, "t": 32.0, "speed": 64.0}

llama_perf_context_print:        load time =    2000.00 ms
"""


def test_a_row_becomes_figures() -> None:
    (row,) = tools.rows(PRINTED)
    assert tools.figures(row) == {"tokens_per_second": 42.666668, "end_to_end": 8 * 128 / 32, "first_token": 8.0}


def test_prefill_is_of_the_prompt_phase() -> None:
    (row,) = tools.rows(PRINTED)
    row |= {"pp": 512, "tg": 1, "pl": 1, "t_pp": 4.0}
    assert tools.figures(row) == {"tokens_per_second": 128.0, "first_token": 4.0}


def test_output_without_results_has_no_rows() -> None:
    assert tools.rows('error: failed to load\n{"other": 1}\n') == []


def test_the_command_asks_for_room_for_all_users() -> None:
    words = tools.command(Path("bench"), Path("m.gguf"), 2, users=32, prompt=128, new=128)
    at = dict(zip(words[1::2], words[2::2], strict=True))
    assert int(at["-c"]) >= 32 * 256
    assert (at["-npl"], at["-npp"], at["-ntg"], at["-t"]) == ("32", "128", "128", "2")


def test_llama_server_tokens_left_out_of_the_stream_are_counted_by_the_next_event() -> None:
    count = llamaserver._counter()
    events = [{"tokens_predicted": n, "content": "x"} for n in (1, 2, 4, 4)]
    assert [count(json.dumps(event).encode()) for event in events] == [1, 1, 2, 0]
    assert count(b'{"tokens_predicted": 5, "stop": true}') == 1


def test_our_servers_events_hold_their_ids() -> None:
    assert serve._tokens(b'{"choices": [{"index": 0, "text": "ab", "token_ids": [5, 6]}]}') == 2
    assert serve._tokens(b'{"choices": [], "usage": {"completion_tokens": 2}}') == 0
