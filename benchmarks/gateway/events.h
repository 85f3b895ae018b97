/* What an engine says: events, whole answers, its model and its counters; answers in three dialects.
 *
 * Owns the shapes. Must not know connections or time. */
#ifndef EVENTS_H
#define EVENTS_H
#include "wire.h"

enum dialect { TOKENS, CHAT, COMPLETION }; /* the line protocol; OpenAI's chat; OpenAI's text */

/* An event as one chunk: "data: ...\n\n" in HTTP's chunk framing. */
static inline void append_event(buffer *b, const char *json, int size) {
  char frame[16];
  append(b, frame, sprintf(frame, "%x\r\n", size + 8));
  append(b, "data: ", 6);
  append(b, json, size);
  append(b, "\n\n\r\n", 4);
}

#define CHAT_HEAD \
  "{\"id\":\"chatcmpl-0123456789abcdef0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1750000000," \
  "\"model\":\"%s\",\"choices\":["
#define TEXT_HEAD \
  "{\"id\":\"cmpl-0123456789abcdef0123456789abcdef\",\"object\":\"text_completion\",\"created\":1750000000," \
  "\"model\":\"%s\",\"choices\":["

/* The JSON of a token's event: the letter's text, or `id`. `prompt` are the prompt's ids as they were asked, or 0. */
static inline int event_json(char *to, enum dialect dialect, const char *model, int letter, int id, const char *prompt,
                             int size, int first, int last) {
  const char *finish = last ? "\"length\"" : "null";
  int n = sprintf(to, dialect == CHAT ? CHAT_HEAD : TEXT_HEAD, model);
  if (dialect == TOKENS)
    n += sprintf(to + n, "{\"index\":0,\"text\":\"\",%s%.*s%s\"token_ids\":[%d],\"logprobs\":null,",
                 prompt ? "\"prompt_token_ids\":" : "", prompt ? size : 0, prompt ? prompt : "", prompt ? "," : "",
                 id);
  else if (dialect == CHAT)
    n += sprintf(to + n, "{\"index\":0,\"delta\":{%s\"content\":\"%c\"},\"logprobs\":null,",
                 first ? "\"role\":\"assistant\"," : "", ALPHABET[letter]);
  else
    n += sprintf(to + n, "{\"index\":0,\"text\":\"%c\",\"logprobs\":null,", ALPHABET[letter]);
  return n + sprintf(to + n, "\"finish_reason\":%s,\"stop_reason\":null}]}", finish);
}

/* The JSON of the last event but one: no choice, the counts. */
static inline int usage_json(char *to, enum dialect dialect, const char *model, int prompt_tokens, int tokens) {
  int n = sprintf(to, dialect == CHAT ? CHAT_HEAD : TEXT_HEAD, model);
  return n + sprintf(to + n,
                     "],\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%d,"
                     "\"prompt_tokens_details\":{\"cached_tokens\":0}}}",
                     prompt_tokens, tokens, prompt_tokens + tokens);
}

/* A finished answer: the letters, then words up to about 0.6 KB in all. */
static inline int whole_json(char *to, enum dialect dialect, const char *model, int prompt_tokens, int tokens) {
  char letters[SLOT_TOKENS + 1];
  for (int n = 0; n < tokens; n++) letters[n] = ALPHABET[n % LETTERS];
  letters[tokens] = 0;
  return sprintf(
      to,
      "{\"id\":\"chatcmpl-0123456789abcdef0123456789abcdef\",\"object\":\"%s\",\"created\":1750000000,\"model\":\"%s\","
      "\"choices\":[{\"index\":0,%s%s: the quick brown fox jumps over the lazy dog, and then it does so again, and "
      "once more for good measure, so that the reply has a plausible length for a short answer.\"%s,\"logprobs\":null,"
      "\"finish_reason\":\"length\"}],\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%d,"
      "\"prompt_tokens_details\":null},\"system_fingerprint\":null}",
      dialect == CHAT ? "chat.completion" : "text_completion", model,
      dialect == CHAT ? "\"message\":{\"role\":\"assistant\",\"content\":\"" : "\"text\":\"", letters,
      dialect == CHAT ? ",\"refusal\":null}" : "", prompt_tokens, tokens, prompt_tokens + tokens);
}

static inline int metrics_text(char *to, const char *model, int running, long prompt_tokens, long tokens) {
  return sprintf(to,
                 "vllm:num_requests_running{model_name=\"%s\"} %d\nvllm:num_requests_waiting{model_name=\"%s\"} 0\n"
                 "vllm:kv_cache_usage_perc{model_name=\"%s\"} 0.0\nvllm:prompt_tokens_total{model_name=\"%s\"} %ld\n"
                 "vllm:generation_tokens_total{model_name=\"%s\"} %ld\n"
                 "vllm:iteration_tokens_total_count{model_name=\"%s\"} %ld\n",
                 model, running, model, model, model, prompt_tokens, model, tokens, model, tokens);
}

static inline int models_json(char *to, const char *model, int context) {
  return sprintf(to,
                 "{\"object\":\"list\",\"data\":[{\"id\":\"%s\",\"object\":\"model\",\"created\":1750000000,"
                 "\"owned_by\":\"upstream\",\"max_model_len\":%d}],\"status\":\"ok\",\"model_path\":\"%s\","
                 "\"served_model_name\":\"%s\",\"tokenizer_path\":\"%s\",\"is_generation\":true}",
                 model, context, model, model, model);
}
#endif
