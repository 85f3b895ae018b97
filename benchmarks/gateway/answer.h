/* An answer over HTTP/1.1 as it arrives: its head, its body with either framing, and its end.
 *
 * Owns the socket's incoming bytes. Must not know what the body says. */
#ifndef ANSWER_H
#define ANSWER_H
#include <strings.h>
#include <sys/socket.h>

#include "wire.h"

typedef struct {
  int fd;
  buffer raw, body; /* what arrived and is not understood yet; what is understood of the body and not yet read */
  int status, chunked, closes, complete;
  long left; /* bytes of the body, or of the chunk at hand */
  enum { HEAD, BODY, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER, UNTIL_CLOSE } state;
} answer;

static void begin_answer(answer *a) {
  a->raw.have = a->body.have = 0;
  a->status = a->chunked = a->closes = a->complete = 0;
  a->left = 0;
  a->state = HEAD;
}

/* 1 when the head was whole. */
static int read_head(answer *a) {
  char *blank = memmem(a->raw.data, a->raw.have, "\r\n\r\n", 4);
  if (!blank) return 0;
  long length = -1;
  a->status = a->raw.have > 12 ? atoi(a->raw.data + 9) : 0;
  for (char *line = a->raw.data; line < blank;) {
    char *end = memmem(line, blank + 2 - line, "\r\n", 2);
    if (!strncasecmp(line, "content-length:", 15)) length = atol(line + 15);
    else if (!strncasecmp(line, "transfer-encoding:", 18)) a->chunked = 1;
    else if (!strncasecmp(line, "connection: close", 17)) a->closes = 1;
    line = end + 2;
  }
  a->left = length;
  a->state = a->chunked ? CHUNK_SIZE : length >= 0 ? BODY : UNTIL_CLOSE;
  drop_front(&a->raw, blank + 4 - a->raw.data);
  a->complete = a->state == BODY && !length;
  return 1;
}

/* Moves what it can from raw to body. */
static void understand(answer *a) {
  if (a->state == HEAD && !read_head(a)) return;
  size_t at = 0;
  while (at < a->raw.have && !a->complete) {
    size_t rest = a->raw.have - at, take = rest;
    char *data = a->raw.data + at, *end;
    switch (a->state) {
      case BODY:
      case CHUNK:
        if ((long)take > a->left) take = a->left;
        append(&a->body, data, take);
        a->left -= take;
        if (!a->left && a->state == BODY) a->complete = 1;
        else if (!a->left) a->state = CHUNK_END;
        break;
      case UNTIL_CLOSE: append(&a->body, data, take); break;
      default:
        end = memmem(data, rest, "\r\n", 2);
        if (!end) goto wait;
        take = end + 2 - data;
        if (a->state == CHUNK_END) a->state = CHUNK_SIZE;
        else if (a->state == TRAILER) a->complete = end == data;
        else if ((a->left = strtol(data, 0, 16)) > 0) a->state = CHUNK;
        else a->state = TRAILER;
    }
    at += take;
  }
wait:
  drop_front(&a->raw, at);
}

/* Bytes read, 0 when none are there yet, -1 when the connection ended. */
static ssize_t receive(answer *a) {
  ssize_t all = 0;
  for (;;) {
    reserve(&a->raw, 8192);
    size_t room = a->raw.room - a->raw.have - 1;
    ssize_t n = recv(a->fd, a->raw.data + a->raw.have, room, 0);
    if (n < 0 && errno == EAGAIN) return all;
    if (n <= 0) {
      if (a->state == UNTIL_CLOSE) a->complete = 1;
      return all ? all : -1;
    }
    a->raw.have += n;
    a->raw.data[a->raw.have] = 0;
    all += n;
    if ((size_t)n < room) return all;
  }
}
#endif
