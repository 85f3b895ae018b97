/* What upstream.c and client.c agree on: the clock, the text of an answer, the table of send times; and a buffer.
 *
 * The text of an answer is known in advance, so that a client can tell a lost token from a doubled one. Token n of an
 * answer is the letter n modulo 62 of ALPHABET. A paced answer opens with the number of its row in the table of send
 * times, SLOT_DIGITS decimal digits, one token each; the letters go on behind them. The upstream writes into
 * `sent[row][n]` when it sent token n; a client finds there how old a token is that has just arrived. So an event
 * carries one token and no measuring ballast, in every dialect. */
#ifndef WIRE_H
#define WIRE_H
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define ALPHABET "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
#define LETTERS 62
#define SLOT_DIGITS 6
#define SLOTS 8192     /* paced answers before a row is used again */
#define SLOT_TOKENS 1024 /* tokens of one paced answer, at most */

/* A file in memory that both sides map. `streams_open` and `tokens_received` are the client's, for whoever measures the
 * gateway meanwhile. Times are nanoseconds of CLOCK_MONOTONIC. */
typedef struct {
  int64_t streams_open, tokens_received, unused[6];
  int64_t sent[SLOTS][SLOT_TOKENS];
} send_times;

typedef struct {
  char *data;
  size_t have, room;
} buffer;

static inline int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static inline void fail(const char *what) {
  perror(what);
  exit(1);
}

static inline void refuse(const char *why) {
  fprintf(stderr, "%s\n", why);
  exit(2);
}

static inline send_times *map_send_times(const char *path) {
  int fd = open(path, O_RDWR | O_CREAT, 0600);
  if (fd < 0 || ftruncate(fd, sizeof(send_times))) fail(path);
  void *at = mmap(0, sizeof(send_times), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) fail(path);
  close(fd);
  return at;
}

/* Room for `more` bytes and a closing zero, so that string functions stop at the end. */
static inline void reserve(buffer *b, size_t more) {
  if (b->have + more < b->room) return;
  b->room = (b->have + more + 1) * 2;
  b->data = realloc(b->data, b->room);
  if (!b->data) fail("memory");
}

static inline void append(buffer *b, const void *data, size_t size) {
  reserve(b, size);
  memcpy(b->data + b->have, data, size);
  b->have += size;
  b->data[b->have] = 0;
}

static inline void drop_front(buffer *b, size_t size) {
  b->have -= size;
  memmove(b->data, b->data + size, b->have);
  b->data[b->have] = 0;
}

/* The token ids of ALPHABET's letters in the model's vocabulary, from "55,56,..."; all of them must be there. */
static inline void read_letter_ids(const char *text, int ids[LETTERS]) {
  for (int n = 0; n < LETTERS; n++) {
    char *end;
    ids[n] = strtol(text, &end, 10);
    if (end == text || (*end && *end != ',')) refuse("--ids wants 62 numbers with commas between them");
    text = *end ? end + 1 : end;
  }
}

/* The value of a JSON field by its quoted name, spaces skipped; 0 where it is not. A search, not a parser: it serves
 * bodies whose strings are known not to hold the name. */
static inline const char *json_field(const char *from, const char *end, const char *quoted_name) {
  size_t size = strlen(quoted_name);
  const char *at = memmem(from, end - from, quoted_name, size);
  if (!at) return 0;
  for (at += size; at < end && (*at == ' ' || *at == ':');) at++;
  return at < end ? at : 0;
}
#endif
