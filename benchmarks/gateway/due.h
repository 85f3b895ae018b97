/* A heap of what is due, the earliest first. Whatever is to be in it begins with a `timed`. */
#ifndef DUE_H
#define DUE_H
#include <stdint.h>

#define MOST_TIMED 65536

typedef struct {
  int64_t due; /* not to be changed while it is in the heap */
  int at;      /* its place in the heap, from 1; 0: it is not there */
} timed;

static timed *heap[MOST_TIMED + 1];
static int heaped;

static inline void heap_put(int at, timed *t) {
  heap[at] = t;
  t->at = at;
}

static inline void heap_settle(int at) {
  timed *t = heap[at];
  for (; at > 1 && heap[at / 2]->due > t->due; at /= 2) heap_put(at, heap[at / 2]);
  for (;;) {
    int child = at * 2;
    if (child > heaped) break;
    if (child < heaped && heap[child + 1]->due < heap[child]->due) child++;
    if (heap[child]->due >= t->due) break;
    heap_put(at, heap[child]);
    at = child;
  }
  heap_put(at, t);
}

static inline void heap_add(timed *t) {
  heap_put(++heaped, t);
  heap_settle(heaped);
}

static inline void heap_remove(timed *t) {
  int at = t->at;
  if (!at) return;
  t->at = 0;
  timed *last = heap[heaped--];
  if (last == t) return;
  heap_put(at, last);
  heap_settle(at);
}

static inline timed *heap_first(void) { return heaped ? heap[1] : 0; }
#endif
