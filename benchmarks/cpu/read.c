/* The machine's read bandwidth: every thread reads its part of a block several times; prints bytes per second of each pass,
   which goes through the part twice: as one stream and as four at once, and counts the faster. A Zen 3 reads four 1.1 to 1.4 times
   as fast as one.

       cc -O3 -march=native -pthread read.c -o read;  ./read THREADS MEBIBYTES PASSES

   Threads are pinned to the first processors that this process may use. The block asks for huge pages and is far larger
   than any cache. Sums of 64-bit words, eight independent ones a thread, so that loads are all that it waits for. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

typedef uint64_t lanes __attribute__((vector_size(64), aligned(64)));

static const lanes *block;
static size_t part; /* lanes of a thread */
static int threads, passes;
static pthread_barrier_t barrier;
static volatile uint64_t sink[256]; /* so that no sum is left out */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void pin(int number) {
    cpu_set_t allowed, one;
    sched_getaffinity(0, sizeof allowed, &allowed);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed) && number-- == 0) {
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            pthread_setaffinity_np(pthread_self(), sizeof one, &one);
            return;
        }
}

enum { RUN = 4112, WHOLE = 4 * RUN }; /* of a stream, 257 KiB; and what four of them read: no multiple of a page apart */

/* `streams` runs side by side, with eight sums in all, then what lies behind them. Known when this is compiled. */
static inline __attribute__((always_inline)) void read_as(const lanes *from, size_t part, const int streams, lanes *sums) {
    const int width = 8 / streams;
    for (size_t whole = 0; whole < part; whole += WHOLE, from += WHOLE)
        for (size_t at = 0; at < (size_t)(WHOLE / streams); at += (size_t)width)
            for (int lane = 0; lane < 8; lane++)
                sums[lane] += from[(size_t)(WHOLE / streams * (lane / width)) + at + (size_t)(lane % width)];
}

static void *reader(void *argument) {
    const int number = (int)(intptr_t)argument;
    const lanes *const from = block + part * (size_t)number;
    pin(number);
    for (int pass = 0; pass < 2 * passes; pass++) {
        lanes sums[8] = {{0}};
        pthread_barrier_wait(&barrier);
        pass % 2 ? read_as(from, part, 4, sums) : read_as(from, part, 1, sums);
        for (int lane = 0; lane < 8; lane++) sink[number] += sums[lane][0];
        pthread_barrier_wait(&barrier);
    }
    return NULL;
}

int main(int words, char **word) {
    if (words != 4 || (threads = atoi(word[1])) < 1 || threads > 256 || (passes = atoi(word[3])) < 1) {
        fprintf(stderr, "usage: read THREADS MEBIBYTES PASSES\n");
        return 2;
    }
    const size_t bytes = (size_t)atol(word[2]) << 20;
    part = bytes / sizeof(lanes) / (size_t)threads / WHOLE * WHOLE;
    if (part == 0) {
        fprintf(stderr, "read: at least 2 MiB for each thread\n");
        return 2;
    }
    void *const taken = mmap(NULL, bytes + (2 << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (taken == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    char *const aligned = (char *)(((uintptr_t)taken + (2 << 20) - 1) & ~(uintptr_t)((2 << 20) - 1));
    madvise(aligned, bytes, MADV_HUGEPAGE);
    for (size_t at = 0; at < bytes; at += 8) *(uint64_t *)(aligned + at) = at;
    block = (const lanes *)aligned;
    pthread_barrier_init(&barrier, NULL, (unsigned)threads + 1);
    pthread_t made[256];
    for (int number = 0; number < threads; number++)
        pthread_create(&made[number], NULL, reader, (void *)(intptr_t)number);
    const double whole = (double)(part * (size_t)threads * sizeof(lanes));
    double one = 0;
    for (int pass = 0; pass < 2 * passes; pass++) {
        const double began = now();
        pthread_barrier_wait(&barrier);
        pthread_barrier_wait(&barrier);
        const double speed = whole / (now() - began);
        if (pass % 2) printf("%.0f\n", speed > one ? speed : one);
        else one = speed;
    }
    for (int number = 0; number < threads; number++) pthread_join(made[number], NULL);
    return 0;
}
