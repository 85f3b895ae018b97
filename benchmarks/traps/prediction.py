"""Traps 17 to 20: the layer past the last, which predicts the token after the next."""

from __future__ import annotations

from benchmarks.traps.trap import Mutation, Trap

LOADER, TABLES = "src/twinline/engine/models/loader.py", "src/twinline/engine/models/tables.py"
LAYER, MODEL = "src/twinline/engine/models/predictor.py", "src/twinline/engine/models/transformer.py"
SOURCE, CHAINS = "src/twinline/engine/prediction.py", "src/twinline/engine/chains.py"
GUESSES, LOOP = "src/twinline/engine/speculation.py", "src/twinline/engine/loop.py"
TESTS, TRAP = "tests/engine/test_traps_prediction.py::test_trap_", "tests/engine/test_traps.py::test_trap_"
JOINED = (f"{TESTS}18_embedding_first_then_hidden_and_nothing_at_position_0",)
WAITING = (f"{TESTS}18_nothing_at_position_0_when_it_catches_up",)
RECORDED = (f"{TESTS}19_recorded_guesses_go_on_from_the_same_states",)
NORMS = """"predictor.embedding_norm.weight": (_LAYER + "enorm.weight",),
    "predictor.hidden_norm.weight": (_LAYER + "hnorm.weight",),"""
PAST = 'return spec.family == "deepseek" and layer is not None and int(layer[1]) >= spec.layers'

TRAPS = (
    Trap(17, "the layer past the last is known by its number and never run as a layer",
         (f"{TRAP}17_prediction_layers_are_not_layers",), (
        Mutation("it counts as a layer", "src/twinline/facts/models.py", "        layers=layers,\n",
                 '        layers=layers + count(config, "num_nextn_predict_layers", 0, least=0),\n',
                 (f"{TRAP}17_prediction_layers_are_not_layers",)),
        Mutation("it is refused", LOADER, PAST, "return False", (f"{TRAP}17_prediction_layers_are_not_layers",)),
        Mutation("it is known by the configuration's field alone", LOADER, PAST,
                 "return spec.predictor_layers > 0 and layer is not None and int(layer[1]) >= spec.layers",
                 (f"{TRAP}17_prediction_layers_are_not_layers",)),
        Mutation("every family may have one", LOADER, PAST,
                 "return layer is not None and int(layer[1]) >= spec.layers",
                 ("tests/engine/test_traps_families.py::test_trap_17_only_deepseek_has_layers_past_the_last",)),
    )),
    Trap(18, "[enorm(embedding of the next token), hnorm(hidden)], unrounded, and nothing at position 0", JOINED, (
        Mutation("hidden first", LAYER, "of_embedding, of_hidden = self.join.data.chunk(2, -1)",
                 "of_hidden, of_embedding = self.join.data.chunk(2, -1)"),
        Mutation("enorm and hnorm exchanged", TABLES, NORMS,
                 '"predictor.embedding_norm.weight": (_LAYER + "hnorm.weight",),\n'
                 '    "predictor.hidden_norm.weight": (_LAYER + "enorm.weight",),'),
        Mutation("an embedding at position 0", LAYER,
                 "return torch.where(positions_N[:, None] == 0, torch.zeros_like(embedded_NX), embedded_NX)",
                 "return embedded_NX"),
        Mutation("a prompt's first row is not told apart", SOURCE,
                 "begins = any(w.start == 0 for w in batch.work)", "begins = False"),
        Mutation("the same, where the layer catches up", SOURCE, "torch.cat(trail.pending), begins=w.start == 0)",
                 "torch.cat(trail.pending), begins=False)", WAITING),
        Mutation("the embedding of the same token", SOURCE,
                 "(*w.request.tokens(w.start + 1, w.end + 1), *tokens[-1:])",
                 "(*w.request.tokens(w.start, w.end),)"),
        Mutation("the joint matrix in the layers' form", LAYER,
                 "self.of_hidden = self.ops.linear.pack(of_hidden.contiguous(), PLAIN)",
                 "self.of_hidden = self.ops.linear.pack(of_hidden.contiguous(), self.ops.facts.weights)",
                 (f"{TESTS}18_the_joint_matrix_is_never_rounded",)),
    )),
    Trap(19, "hidden states after the last norm, then the layer's own after shared_head.norm",
         (f"{TESTS}19_hidden_states_after_the_norm",), (
        Mutation("the model's states before its norm", SOURCE, "batch, ids_N, ran.hidden_NX, begins=begins)",
                 "batch, ids_N, ran.hidden_NX / self.runner.model.norm.weight, begins=begins)"),
        Mutation("the layer's own states before its norm", SOURCE,
                 "torch.stack([state_X for _, state_X, _ in asked]), begins=False)",
                 "torch.stack([state_X for _, state_X, _ in asked]) / runner.model.predictor.norm.weight, "
                 "begins=False)"),
        Mutation("the model's state again for later guesses", SOURCE,
                 "for (trail, _, most), state_X in zip(asked, out_DX.clone(), strict=True)]",
                 "for (trail, state_X, most), _ in zip(asked, out_DX.clone(), strict=True)]"),
        # Recorded steps are made of kernels alone: a division would not be recorded, and so not be seen.
        Mutation("the model's state again for later guesses (recorded)", CHAINS,
                 "model.predict(drawn[-1][1], state, at, one, self.cache)",
                 "model.predict(drawn[-1][1], model.ops.embedding(chosen, previous) if rows else previous, at, one, "
                 "self.cache)", RECORDED),
        Mutation("the model's states normed twice (recorded)", CHAINS,
                 "model.predict(ids, previous, positions, plan, self.cache)",
                 "model.predict(ids, model.norm(previous), positions, plan, self.cache)", RECORDED),
    )),
    Trap(20, "a guess is never believed: the text is the plain one, greedy or sampled",
         (f"{TESTS}20_a_guess_is_never_believed",), (
        Mutation("every guess holds", GUESSES, "while count < len(draft) and draft[count] == drawn[count]:",
                 "while count < len(draft):"),
        Mutation("one token too many holds", GUESSES, "    return count + 1\n",
                 "    return min(count + 2, len(drawn))\n"),
        Mutation("the guess itself is given out", LOOP, "tokens = result.tokens[at : at + count]\n",
                 "tokens = [*w.draft[:1], *result.tokens[at + 1 : at + count]] if w.draft else "
                 "result.tokens[at : at + count]\n"),
        Mutation("a guess is drawn with the noise of another place", GUESSES,
                 "    known = request.known + len(guessed)\n", "    known = request.known\n",
                 (f"{TESTS}20_a_guess_is_never_believed",)),
    )),
)  # fmt: skip
