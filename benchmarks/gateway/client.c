/* client.c - load on an OpenAI endpoint, and a check of every token that comes back.
 *
 *   client load     N connections, each asks, waits for the whole answer, asks again: requests per second, latency
 *   client streams  S streams at once: the age of every token on arrival; tokens lost, doubled or out of order
 *
 * build: gcc -O2 -o client client.c
 * run:   client load --port 8000 --path /v1/chat/completions --body FILE --seconds 3 [--connections 64] [--pause-ms 0]
 *          [--expect 01234567] [--key sk-...]
 *        client streams --port 8000 --path ... --body FILE --times FILE --streams 1000 --tokens 100 --seconds 5
 *          [--ramp-ms 1000] [--ids 55,56,...] [--key sk-...]
 * The body is sent as it stands; for streams its max_tokens must be --tokens. --expect is a text that every answer must
 * hold. --ids lets `streams` read token ids where the text is empty. One line of JSON; times in microseconds.
 *
 * A token's age is the time from just before the upstream's send() to just after our recv() (wire.h). `streams` gives
 * up GRACE_SECONDS after the last stream should have ended; what then misses its end is unfinished, not lost. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "answer.h"
#include "wire.h"

#define GRACE_SECONDS 3

static struct {
  int port, connections, pause_ms, streams, tokens, ramp_ms;
  double seconds;
  const char *path, *key, *expect, *body_file;
  int ids[LETTERS], has_ids;
} config = {.port = 8000, .connections = 64, .seconds = 3, .ramp_ms = 1000, .path = "/v1/chat/completions",
            .key = "sk-benchmark"};

static int dial(void) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(config.port)};
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (connect(fd, (void *)&to, sizeof to) && errno != EINPROGRESS) fail("connect");
  return fd;
}

static buffer make_request(void) {
  buffer body = {0}, request = {0};
  int fd = open(config.body_file, O_RDONLY);
  if (fd < 0) fail(config.body_file);
  for (ssize_t n = 1; n > 0; body.have += n) {
    reserve(&body, 65536);
    if ((n = read(fd, body.data + body.have, 65536)) < 0) fail(config.body_file);
  }
  close(fd);
  reserve(&request, body.have + 1024);
  request.have = snprintf(request.data, 1024,
                          "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\n"
                          "Content-Type: application/json\r\nAccept: */*\r\nContent-Length: %zu\r\n\r\n",
                          config.path, config.port, config.key, body.have);
  append(&request, body.data, body.have);
  free(body.data);
  return request;
}

/* A request is small beside a socket's buffer: what does not go out in one piece is a broken connection. */
static int ask(int fd, const buffer *request) {
  return send(fd, request->data, request->have, MSG_NOSIGNAL) == (ssize_t)request->have;
}

static void watch(int poller, int how, int fd, uint32_t events, void *what) {
  struct epoll_event e = {.events = events, .data.ptr = what};
  if (epoll_ctl(poller, how, fd, &e)) fail("epoll");
}

/* Figures. */

typedef struct {
  float *at;
  long count, room;
} samples;

static void add(samples *s, double value) {
  if (s->count == s->room) {
    s->room = s->room ? s->room * 2 : 65536;
    if (!(s->at = realloc(s->at, s->room * sizeof *s->at))) fail("memory");
  }
  s->at[s->count++] = value;
}

static int by_size(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x > y) - (x < y);
}

static void print_percentiles(const char *name, samples *s) {
  static const struct {
    const char *name;
    double share;
  } points[] = {{"p50", .5}, {"p90", .9}, {"p99", .99}, {"p999", .999}, {"max", 1}};
  if (!s->count) return;
  qsort(s->at, s->count, sizeof *s->at, by_size);
  for (int i = 0; i < 5; i++)
    printf(",\"%s_%s\":%.1f", name, points[i].name, s->at[(long)(points[i].share * (s->count - 1) + .5)]);
}

/* load */

typedef struct {
  answer answer;
  int64_t asked;
} caller;

static void redial(int poller, caller *c, int *reconnects) {
  if (c->answer.fd) close(c->answer.fd), ++*reconnects;
  begin_answer(&c->answer);
  c->asked = 0;
  c->answer.fd = dial();
  watch(poller, EPOLL_CTL_ADD, c->answer.fd, EPOLLOUT, c);
}

static int load(void) {
  buffer request = make_request();
  samples latency = {0};
  long answered = 0, refused = 0, wrong = 0, broken = 0;
  int reconnects = 0, poller = epoll_create1(0);
  caller *callers = calloc(config.connections, sizeof *callers);
  struct epoll_event events[512];
  int64_t began = now_ns(), ends = began + config.seconds * 1e9;
  for (int i = 0; i < config.connections; i++) redial(poller, callers + i, &reconnects);
  while (now_ns() < ends) {
    int n = epoll_wait(poller, events, 512, 100);
    for (int i = 0; i < n; i++) {
      caller *c = events[i].data.ptr;
      answer *a = &c->answer;
      if (!c->asked && events[i].events & EPOLLOUT) { /* connected */
        watch(poller, EPOLL_CTL_MOD, a->fd, EPOLLIN, c);
        c->asked = now_ns();
        ask(a->fd, &request); /* a failure shows at the next event */
        continue;
      }
      ssize_t got = receive(a);
      if (got > 0) understand(a);
      if (!a->complete) {
        if (got < 0 || events[i].events & (EPOLLERR | EPOLLHUP)) {
          broken++;
          if (broken > 100000) refuse("nobody keeps a connection on this port");
          redial(poller, c, &reconnects);
        }
        continue;
      }
      add(&latency, (now_ns() - c->asked) / 1e3);
      answered++;
      if (a->status != 200) refused++;
      else if (config.expect && !memmem(a->body.data, a->body.have, config.expect, strlen(config.expect))) wrong++;
      if (config.pause_ms) usleep(config.pause_ms * 1000);
      if (a->closes) {
        redial(poller, c, &reconnects);
        continue;
      }
      begin_answer(a);
      c->asked = now_ns();
      ask(a->fd, &request);
    }
  }
  double seconds = (now_ns() - began) / 1e9;
  printf("{\"answered\":%ld,\"seconds\":%.3f,\"requests_per_s\":%.1f,\"not_200\":%ld,\"wrong\":%ld,\"broken\":%ld,"
         "\"reconnects\":%d",
         answered, seconds, (answered - refused - wrong) / seconds, refused, wrong, broken, reconnects);
  print_percentiles("latency", &latency);
  printf("}\n");
  return 0;
}

/* streams */

typedef struct {
  answer answer;
  int opened, asked, over, done, finished, slot, expected; /* expected: the number of the next token */
  int64_t early[SLOT_DIGITS];                              /* when the tokens came that spell the row's number */
} stream;

static struct {
  long tokens, lost, doubled, strange, errors;
  int done, over;
} counts;
static send_times *times;
static samples ages;
static uint8_t slot_taken[SLOTS];

static void take_letter(stream *s, int letter, int64_t now) {
  counts.tokens++;
  times->tokens_received = counts.tokens;
  if (s->expected < SLOT_DIGITS) {
    if (letter > 9) {
      counts.strange++;
      return;
    }
    s->slot = s->slot * 10 + letter;
    s->early[s->expected++] = now;
    if (s->expected < SLOT_DIGITS) return;
    if (s->slot >= SLOTS || slot_taken[s->slot]) counts.strange++, s->slot = -1;
    else slot_taken[s->slot] = 1;
    for (int n = 0; n < SLOT_DIGITS && s->slot >= 0; n++) add(&ages, (s->early[n] - times->sent[s->slot][n]) / 1e3);
    return;
  }
  int ahead = (letter - s->expected % LETTERS + LETTERS) % LETTERS;
  if (ahead > LETTERS / 2) { /* an older one: again, or late */
    counts.doubled++;
    return;
  }
  counts.lost += ahead;
  s->expected += ahead;
  if (s->slot >= 0 && s->expected < SLOT_TOKENS)
    add(&ages, (now - __atomic_load_n(&times->sent[s->slot][s->expected], __ATOMIC_ACQUIRE)) / 1e3);
  s->expected++;
}

static void take_text(stream *s, const char *text, const char *end, int64_t now) {
  for (; text < end && *text != '"'; text++) {
    const char *letter = strchr(ALPHABET, *text);
    if (letter) take_letter(s, letter - ALPHABET, now);
    else counts.strange++;
  }
}

static void take_ids(stream *s, const char *at, const char *end, int64_t now) {
  while (at < end && *at != ']') {
    char *next;
    int letter = 0, id = strtol(++at, &next, 10);
    if (next == at) break;
    while (letter < LETTERS && config.ids[letter] != id) letter++;
    if (letter < LETTERS) take_letter(s, letter, now);
    else counts.strange++;
    at = next;
  }
}

static void take_event(stream *s, const char *data, const char *end, int64_t now) {
  static const char *const fields[] = {"\"content\"", "\"reasoning_content\"", "\"text\""};
  const char *at;
  if (end - data >= 6 && !memcmp(data, "[DONE]", 6)) {
    s->done = 1;
    return;
  }
  if (memmem(data, end - data, "\"error\"", 7)) counts.errors++;
  if (config.has_ids && (at = json_field(data, end, "\"token_ids\"")) && *at == '[') take_ids(s, at, end, now);
  else
    for (int i = 0; i < 3; i++)
      if ((at = json_field(data, end, fields[i])) && *at == '"') take_text(s, at + 1, end, now);
  if ((at = json_field(data, end, "\"finish_reason\"")) && *at == '"') s->finished = 1;
}

static void end_stream(int poller, stream *s) {
  if (s->over) return;
  s->over = 1;
  counts.over++;
  times->streams_open--;
  epoll_ctl(poller, EPOLL_CTL_DEL, s->answer.fd, 0);
  close(s->answer.fd);
  if (s->answer.status != 200 || !s->done || !s->finished) {
    counts.errors++;
    return;
  }
  counts.done++;
  if (s->expected < config.tokens) counts.lost += config.tokens - s->expected;
  if (s->expected > config.tokens) counts.strange += s->expected - config.tokens;
}

static void hear(int poller, stream *s) {
  answer *a = &s->answer;
  ssize_t got = receive(a);
  int64_t now = now_ns();
  if (got > 0) understand(a);
  size_t at = 0;
  char *newline;
  while (a->status == 200 && at < a->body.have &&
         (newline = memchr(a->body.data + at, '\n', a->body.have - at))) {
    char *line = a->body.data + at;
    at = newline + 1 - a->body.data;
    if (newline - line > 6 && !memcmp(line, "data:", 5)) take_event(s, line + 5 + (line[5] == ' '), newline, now);
  }
  if (at) drop_front(&a->body, at);
  if (a->complete || got < 0) end_stream(poller, s);
}

static int run_streams(void) {
  buffer request = make_request();
  int poller = epoll_create1(0), opened = 0;
  stream *all = calloc(config.streams, sizeof *all);
  struct epoll_event events[512];
  int64_t began = now_ns(), ends = began + (config.ramp_ms / 1e3 + config.seconds + GRACE_SECONDS) * 1e9;
  times->streams_open = times->tokens_received = 0;
  while (counts.over < config.streams && now_ns() < ends) {
    int wanted = config.ramp_ms ? (now_ns() - began) / 1e6 * config.streams / config.ramp_ms : config.streams;
    for (; opened < config.streams && opened < wanted; opened++) {
      all[opened].answer.fd = dial();
      watch(poller, EPOLL_CTL_ADD, all[opened].answer.fd, EPOLLOUT, all + opened);
    }
    int n = epoll_wait(poller, events, 512, opened < config.streams ? 1 : 50);
    for (int i = 0; i < n; i++) {
      stream *s = events[i].data.ptr;
      if (!s->asked) {
        s->asked = 1;
        times->streams_open++;
        watch(poller, EPOLL_CTL_MOD, s->answer.fd, EPOLLIN, s);
        if (!ask(s->answer.fd, &request)) end_stream(poller, s);
      } else
        hear(poller, s);
    }
  }
  printf("{\"streams\":%d,\"seconds\":%.3f,\"tokens\":%ld,\"complete\":%d,\"unfinished\":%d,\"lost\":%ld,"
         "\"doubled\":%ld,\"strange\":%ld,\"errors\":%ld",
         config.streams, (now_ns() - began) / 1e9, counts.tokens, counts.done, config.streams - counts.over,
         counts.lost, counts.doubled, counts.strange, counts.errors);
  print_percentiles("age", &ages);
  printf("}\n");
  return 0;
}

int main(int count, char **words) {
  static const struct option options[] = {
      {"port", 1, 0, 'p'},    {"path", 1, 0, 'P'},     {"key", 1, 0, 'k'},     {"body", 1, 0, 'b'},
      {"expect", 1, 0, 'e'},  {"times", 1, 0, 't'},    {"ids", 1, 0, 'i'},     {"connections", 1, 0, 'c'},
      {"pause-ms", 1, 0, 'w'}, {"seconds", 1, 0, 's'}, {"streams", 1, 0, 'S'}, {"tokens", 1, 0, 'n'},
      {"ramp-ms", 1, 0, 'r'}, {0}};
  for (int o; (o = getopt_long(count, words, "", options, 0)) != -1;) switch (o) {
      case 'p': config.port = atoi(optarg); break;
      case 'P': config.path = optarg; break;
      case 'k': config.key = optarg; break;
      case 'b': config.body_file = optarg; break;
      case 'e': config.expect = optarg; break;
      case 't': times = map_send_times(optarg); break;
      case 'i': read_letter_ids(optarg, config.ids), config.has_ids = 1; break;
      case 'c': config.connections = atoi(optarg); break;
      case 'w': config.pause_ms = atoi(optarg); break;
      case 's': config.seconds = atof(optarg); break;
      case 'S': config.streams = atoi(optarg); break;
      case 'n': config.tokens = atoi(optarg); break;
      case 'r': config.ramp_ms = atoi(optarg); break;
      default: return 2;
    }
  signal(SIGPIPE, SIG_IGN);
  const char *mode = optind < count ? words[optind] : "";
  if (!config.body_file) refuse("client needs --body FILE");
  if (config.pause_ms && config.connections > 1) refuse("--pause-ms is for one connection: it stops the whole client");
  if (!strcmp(mode, "load")) return load();
  if (strcmp(mode, "streams")) refuse("client load ... or client streams ...");
  if (!times || config.streams < 1 || config.tokens < SLOT_DIGITS || config.tokens > SLOT_TOKENS)
    refuse("streams need --times FILE, --streams of 1 or more and --tokens of 6 to 1024");
  return run_streams();
}
