// The threads that compute: a caller and its workers, and one way to share work among them.
//
// Owns the pool. Knows no kernel. The caller always takes part; a worker that sleeps is woken but never waited for, so a
// region ends when its tasks have ended. Workers spin while a caller says that more comes at once (`Live`), for a short
// while after a region otherwise, and then sleep.

#pragma once

#include <cstdint>

namespace twinline {

// How many threads compute, the caller included. Makes or ends workers; `pin` gives each worker a core of its own. Where the
// system gives no more, `threads` tells how many there are.
void set_threads(int count, bool pin);
int threads();

using Task = void (*)(void* context, int64_t index);

// Runs task(context, i) for every i below `count`, in any order, on all threads; returns when all have ended. Inside a task,
// or while another thread's region is open, it runs them in turn on the calling thread.
void share(int64_t count, Task task, void* context);

// The same for a lambda: parallel(n, [&](int64_t i) { ... }). One task, or one thread, costs nothing more than a loop.
template <typename Body>
inline void parallel(int64_t count, const Body& body) {
  if (count <= 1 || threads() == 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  share(count, [](void* context, int64_t i) { (*static_cast<const Body*>(context))(i); }, const_cast<Body*>(&body));
}

// While one exists the calling thread takes denormal numbers as 0, as workers always do: a denormal costs a hundred times a normal
// number and means nothing here, and a result must not depend on the thread that computed it.
class NoDenormals {
 public:
  NoDenormals();
  ~NoDenormals();

 private:
  uint64_t before_;
};

// Memory of the calling thread, 64-byte aligned, kept for its next use. It only grows, and what it held is then lost. A caller's
// work inside its own region is a task like any other: what a kernel prepares before the region lies under `kCall`, and what
// a task needs for itself under `kTask`.
enum Use { kCall, kTask };
void* scratch(Use use, int64_t bytes);

// While one exists, workers do not sleep between regions.
struct Live {
  Live();
  ~Live();
};

}  // namespace twinline
