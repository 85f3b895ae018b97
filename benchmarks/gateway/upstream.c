/* upstream.c - a line that costs nothing: answers fast and on time, for measuring what stands in front of it.
 *
 * One thread, epoll, loopback, keep-alive; one process listens on many ports and plays as many lines. Two dialects:
 *   tokens  POST /v1/completions with "return_token_ids": the line protocol (docs/line-protocol.md), streamed
 *   text    any other POST: OpenAI's chat or text completions, streamed or as one JSON of about 0.6 KB
 * One token an event. An answer of at most --at-once tokens (by the request's max_tokens) is written whole in one
 * piece; a longer one is paced at --rate tokens a second, from a random moment within the first interval on, or with
 * --lockstep as engines do it: all answers of a port step together, one port after the other.
 *
 * build: gcc -O2 -o upstream upstream.c
 * run:   upstream --port 9100 --ports 16 --times FILE --ids 55,56,... [--model mock] [--rate 20] [--at-once 16]
 *        [--context 1024] [--lockstep]
 * GET /health, /metrics, /v1/models as the line protocol has them; GET /stats counts; any other GET is answered 200. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

#include "due.h"
#include "events.h"
#include "wire.h"

#define MOST_CONNECTIONS MOST_TIMED

enum kind { LISTENER, CONNECTION, TIMER };

typedef struct connection {
  timed timed; /* of a paced answer's next token; first, so that the heap's pointers are ours */
  enum kind kind;
  int fd, port; /* port: its number among ours, from 0 */
  buffer in, out, prompt; /* prompt: the ids of a paced request, until its first token goes out */
  size_t written;         /* of out */
  int closing, dead, waits_for_room;
  enum dialect dialect;
  int tokens, sent, slot, prompt_tokens; /* of a paced answer; tokens 0: none is under way */
  struct connection *next_dead;
} connection;

static struct {
  int port, ports, at_once, context, lockstep;
  double rate;
  const char *model;
  int ids[LETTERS];
} config = {.port = 9100, .ports = 1, .at_once = 16, .context = 1024, .rate = 20, .model = "mock"};

static int poller, timer;
static int64_t armed; /* when the timer fires; 0: not set */
static connection *dead;
static send_times *times;
static unsigned slots_used;
static unsigned long requests, streams, tokens_sent, prompt_tokens_seen;
static int running;
static buffer letter_events[3][LETTERS]; /* ready-made, chunk framing included */

static void arm(void) {
  int64_t due = heap_first() ? heap_first()->due : 0;
  if (due == armed) return;
  armed = due;
  struct itimerspec when = {.it_value = {due / 1000000000, due % 1000000000}};
  timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, 0);
}

/* Sending. */

/* Frees it after the batch of events at hand, in which it may stand once more. */
static void drop(connection *c) {
  if (c->dead) return;
  c->dead = 1;
  if (c->tokens) running--;
  heap_remove(&c->timed);
  close(c->fd);
  c->next_dead = dead;
  dead = c;
}

static void bury(void) {
  while (dead) {
    connection *c = dead;
    dead = c->next_dead;
    free(c->in.data);
    free(c->out.data);
    free(c->prompt.data);
    free(c);
  }
}

static void want(connection *c, int room) {
  if (c->waits_for_room == room) return;
  c->waits_for_room = room;
  struct epoll_event e = {.events = EPOLLIN | (room ? EPOLLOUT : 0), .data.ptr = c};
  epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
}

static void flush(connection *c) {
  while (c->written < c->out.have) {
    ssize_t n = send(c->fd, c->out.data + c->written, c->out.have - c->written, MSG_NOSIGNAL);
    if (n < 0) {
      if (errno == EAGAIN) want(c, 1);
      else drop(c);
      return;
    }
    c->written += n;
  }
  c->written = c->out.have = 0;
  want(c, 0);
  if (c->closing && !c->tokens) drop(c);
}

static void make_letter_events(void) {
  char json[1024];
  for (int dialect = 0; dialect < 3; dialect++)
    for (int n = 0; n < LETTERS; n++) {
      int size = event_json(json, dialect, config.model, n, config.ids[n], 0, 0, 0, 0);
      append_event(&letter_events[dialect][n], json, size);
    }
}

/* Token `n` of `tokens`, letter `letter`. */
static void append_token(connection *c, int n, int tokens, int letter, const char *prompt, int prompt_size) {
  tokens_sent++;
  if (n > 0 && n < tokens - 1) {
    append(&c->out, letter_events[c->dialect][letter].data, letter_events[c->dialect][letter].have);
    return;
  }
  char *json = malloc(1024 + prompt_size);
  int size = event_json(json, c->dialect, config.model, letter, config.ids[letter], prompt, prompt_size, n == 0,
                        n == tokens - 1);
  append_event(&c->out, json, size);
  free(json);
}

static void append_end(connection *c, int tokens) {
  char json[512];
  append_event(&c->out, json, usage_json(json, c->dialect, config.model, c->prompt_tokens, tokens));
  append_event(&c->out, "[DONE]", 6);
  append(&c->out, "0\r\n\r\n", 5);
}

static void reply(connection *c, const char *type, const char *body, int size) {
  char head[256];
  append(&c->out, head,
         sprintf(head, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", type, size));
  append(&c->out, body, size);
}

/* Answering. */

static void answer_get(connection *c) {
  char text[1024];
  const char *path = c->in.data + 4, *type = "application/json";
  int size;
  if (!strncmp(path, "/stats ", 7))
    size = sprintf(text, "{\"requests\":%lu,\"streams\":%lu,\"tokens\":%lu,\"prompt_tokens\":%lu,\"running\":%d}",
                   requests, streams, tokens_sent, prompt_tokens_seen, running);
  else if (!strncmp(path, "/health ", 8))
    size = sprintf(text, "{\"status\":\"ok\",\"steps\":%lu,\"tokens_generated\":%lu}", tokens_sent, tokens_sent);
  else if (!strncmp(path, "/metrics ", 9)) {
    type = "text/plain; version=0.0.4";
    size = metrics_text(text, config.model, running, prompt_tokens_seen, tokens_sent);
  } else /* also what the routers ask their workers for: /get_server_info and the like */
    size = models_json(text, config.model, config.context);
  reply(c, type, text, size);
}

static void answer_whole(connection *c, int tokens) {
  char text[4096];
  if (tokens > SLOT_TOKENS) tokens = SLOT_TOKENS;
  tokens_sent += tokens;
  reply(c, "application/json", text, whole_json(text, c->dialect, config.model, c->prompt_tokens, tokens));
}

static void begin_stream(connection *c, int tokens, const char *prompt, int prompt_size) {
  static const char head[] =
      "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n";
  streams++;
  append(&c->out, head, sizeof head - 1);
  if (tokens <= config.at_once) {
    for (int n = 0; n < tokens; n++) append_token(c, n, tokens, n % LETTERS, n ? 0 : prompt, n ? 0 : prompt_size);
    append_end(c, tokens);
    return;
  }
  c->tokens = tokens > SLOT_TOKENS ? SLOT_TOKENS : tokens;
  c->sent = 0;
  c->slot = slots_used++ % SLOTS;
  c->prompt.have = 0;
  if (prompt) append(&c->prompt, prompt, prompt_size);
  running++;
  int64_t now = now_ns(), period = 1e9 / config.rate;
  if (config.lockstep) {
    int64_t phase = period * c->port / config.ports;
    c->timed.due = (now - phase) / period * period + period + phase;
  } else
    c->timed.due = now + (int64_t)(drand48() * period);
  heap_add(&c->timed);
}

/* The next token of a paced answer. */
static void step(connection *c) {
  int64_t now = now_ns();
  int digit = 0, letter = c->sent % LETTERS;
  if (c->sent < SLOT_DIGITS) {
    digit = c->slot;
    for (int n = c->sent; n < SLOT_DIGITS - 1; n++) digit /= 10;
    letter = digit % 10;
  }
  const char *prompt = c->sent == 0 && c->prompt.have ? c->prompt.data : 0;
  append_token(c, c->sent, c->tokens, letter, prompt, c->prompt.have);
  __atomic_store_n(&times->sent[c->slot][c->sent], now, __ATOMIC_RELEASE);
  heap_remove(&c->timed);
  if (++c->sent == c->tokens) {
    append_end(c, c->tokens);
    c->tokens = 0;
    running--;
  } else {
    c->timed.due += 1e9 / config.rate;
    heap_add(&c->timed);
  }
  flush(c);
}

static void answer_post(connection *c, const char *body, const char *end) {
  const char *path = c->in.data + 5, *at;
  int completion = !strncmp(path, "/v1/completions ", 16);
  at = json_field(body, end, "\"stream\"");
  int stream = at && *at == 't';
  at = json_field(body, end, "\"return_token_ids\"");
  c->dialect = !completion ? CHAT : stream && at && *at == 't' ? TOKENS : COMPLETION;
  if ((at = json_field(body, end, "\"max_tokens\"")) == 0) at = json_field(body, end, "\"max_completion_tokens\"");
  int tokens = at ? atoi(at) : 8;
  if (tokens < 1) tokens = 1;
  const char *prompt = json_field(body, end, "\"prompt\"");
  int prompt_size = 0;
  c->prompt_tokens = 24;
  if (prompt && *prompt == '[') {
    const char *close = memchr(prompt, ']', end - prompt);
    prompt_size = close ? close + 1 - prompt : 0;
    c->prompt_tokens = 1;
    for (at = prompt; at < prompt + prompt_size; at++) c->prompt_tokens += *at == ',';
  } else
    prompt = 0;
  prompt_tokens_seen += c->prompt_tokens;
  if (stream) begin_stream(c, tokens, prompt, prompt_size);
  else answer_whole(c, tokens);
}

/* Answers every whole request that has arrived, one after the other. */
static void serve(connection *c) {
  while (!c->tokens && !c->dead && c->in.have) {
    char *blank = memmem(c->in.data, c->in.have, "\r\n\r\n", 4);
    if (!blank) break;
    size_t head = blank + 4 - c->in.data, body = 0, total;
    int chunked = 0;
    for (char *line = c->in.data; line < blank;) {
      char *end = memmem(line, blank + 2 - line, "\r\n", 2);
      if (!strncasecmp(line, "content-length:", 15)) body = strtoul(line + 15, 0, 10);
      else if (!strncasecmp(line, "transfer-encoding:", 18)) chunked = 1;
      else if (!strncasecmp(line, "connection: close", 17)) c->closing = 1;
      line = end + 2;
    }
    total = head + body;
    if (chunked) { /* no body of ours holds this sequence */
      char *last = memmem(blank + 2, c->in.have - (head - 2), "\r\n0\r\n\r\n", 7);
      if (!last) break;
      total = last + 7 - c->in.data;
      body = total - head;
    } else if (c->in.have < total)
      break;
    requests++;
    if (c->in.data[0] == 'G') answer_get(c);
    else answer_post(c, c->in.data + head, c->in.data + head + body);
    drop_front(&c->in, total);
  }
  if (!c->dead) flush(c);
}

/* The loop. */

static void receive(connection *c) {
  for (;;) {
    reserve(&c->in, 4096);
    size_t room = c->in.room - c->in.have - 1;
    ssize_t n = recv(c->fd, c->in.data + c->in.have, room, 0);
    if (n == 0 || (n < 0 && errno != EAGAIN)) {
      drop(c);
      return;
    }
    if (n < 0) break;
    c->in.have += n;
    c->in.data[c->in.have] = 0;
    if ((size_t)n < room) break;
  }
  serve(c);
}

static void welcome(connection *listener) {
  int fd, on = 1;
  while ((fd = accept4(listener->fd, 0, 0, SOCK_NONBLOCK)) >= 0) {
    if (fd >= MOST_CONNECTIONS) {
      close(fd);
      continue;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    connection *c = calloc(1, sizeof *c);
    c->kind = CONNECTION, c->fd = fd, c->port = listener->port;
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
  }
}

static void listen_on(int number) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(config.port + number)};
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(fd, (void *)&at, sizeof at) || listen(fd, 4096)) fail("listen");
  connection *listener = calloc(1, sizeof *listener);
  listener->kind = LISTENER, listener->fd = fd, listener->port = number;
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = listener};
  epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
}

static void step_all_due(void) {
  uint64_t fired;
  if (read(timer, &fired, sizeof fired) < 0) return;
  armed = 0;
  while (heap_first() && heap_first()->due <= now_ns()) {
    connection *c = (connection *)heap_first();
    step(c);
    if (!c->dead && !c->tokens) serve(c); /* a request that waited behind this answer */
  }
}

int main(int count, char **words) {
  static const struct option options[] = {
      {"port", 1, 0, 'p'},    {"ports", 1, 0, 'P'}, {"times", 1, 0, 't'}, {"ids", 1, 0, 'i'},      {"model", 1, 0, 'm'},
      {"rate", 1, 0, 'r'},    {"at-once", 1, 0, 'a'}, {"context", 1, 0, 'c'}, {"lockstep", 0, 0, 'l'}, {0}};
  for (int o; (o = getopt_long(count, words, "", options, 0)) != -1;) switch (o) {
      case 'p': config.port = atoi(optarg); break;
      case 'P': config.ports = atoi(optarg); break;
      case 't': times = map_send_times(optarg); break;
      case 'i': read_letter_ids(optarg, config.ids); break;
      case 'm': config.model = optarg; break;
      case 'r': config.rate = atof(optarg); break;
      case 'a': config.at_once = atoi(optarg); break;
      case 'c': config.context = atoi(optarg); break;
      case 'l': config.lockstep = 1; break;
      default: return 2;
    }
  if (!times || !config.ids[0]) refuse("upstream needs --times FILE and --ids 62,numbers,...");
  if (config.rate <= 0) refuse("--rate must be above 0 tokens a second");
  signal(SIGPIPE, SIG_IGN);
  make_letter_events();
  poller = epoll_create1(0);
  timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  static connection clock = {.kind = TIMER};
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = &clock}, events[512];
  epoll_ctl(poller, EPOLL_CTL_ADD, timer, &e);
  for (int n = 0; n < config.ports; n++) listen_on(n);
  for (;;) {
    int n = epoll_wait(poller, events, 512, -1);
    for (int i = 0; i < n; i++) {
      connection *c = events[i].data.ptr;
      if (c->kind == LISTENER) welcome(c);
      else if (c->kind == TIMER) step_all_due();
      else {
        if (!c->dead && events[i].events & EPOLLOUT) flush(c);
        if (!c->dead && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
      }
    }
    bury();
    arm();
  }
}
