#include "threads.h"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace twinline {
namespace {

constexpr int kSpins = 2000;  // about 50 us: longer than Python takes between two kernels

inline void rest() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr uint32_t kClosed = 0xffffffff;

thread_local bool inside = false;

class Pool {
 public:
  ~Pool() { resize(0, false); }

  void resize(int workers, bool pin) {
    std::lock_guard<std::mutex> mine(caller_);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      ending_.store(true);
      awake_.notify_all();
    }
    for (auto& worker : workers_) worker.join();
    workers_.clear();
    ending_.store(false);
    try {
      for (int i = 0; i < workers; ++i) {
        workers_.emplace_back([this] { work(); });
        if (pin) pin_to(workers_.back(), i + 1);
      }
    } catch (const std::system_error&) {
      // No thread more is to be had (a limit of processes or memory): those that there are compute.
    }
    size_.store(int(workers_.size()) + 1, std::memory_order_relaxed);
  }

  int size() const { return size_.load(std::memory_order_relaxed); }

  // False, and nothing done, if another caller's region is open.
  bool share(int64_t count, Task task, void* context) {
    std::unique_lock<std::mutex> mine(caller_, std::try_to_lock);
    if (!mine.owns_lock()) return false;
    // A ticket is (region, next index). Who takes one by exchange knows that its region is still open, and so that the task
    // and context read before are that region's: they change only while the ticket is closed.
    const uint64_t region = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
    ticket_.store(region << 32 | kClosed, std::memory_order_seq_cst);
    task_.store(task, std::memory_order_release);
    context_.store(context, std::memory_order_release);
    count_.store(count, std::memory_order_release);
    ended_.store(0, std::memory_order_relaxed);
    ticket_.store(region << 32, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      awake_.notify_all();
    }
    inside = true;
    take(uint32_t(region));
    inside = false;
    for (int spins = 0; ended_.load(std::memory_order_acquire) < count; ++spins)
      spins < kSpins ? rest() : std::this_thread::yield();
    return true;
  }

  std::atomic<int> live{0};

 private:
  void take(uint32_t region) {
    const Task task = task_.load(std::memory_order_acquire);
    void* const context = context_.load(std::memory_order_acquire);
    const int64_t count = count_.load(std::memory_order_acquire);
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while (uint32_t(ticket >> 32) == region && int64_t(uint32_t(ticket)) < count) {
      if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
      task(context, int64_t(uint32_t(ticket)));
      ended_.fetch_add(1, std::memory_order_acq_rel);
      ticket = ticket_.load(std::memory_order_acquire);
    }
  }

  void work() {
    inside = true;
    const NoDenormals none;
    uint32_t seen = uint32_t(ticket_.load(std::memory_order_acquire) >> 32);
    while (!ending_.load(std::memory_order_relaxed)) {
      for (int spins = 0; !news(seen) && !ending_.load(std::memory_order_relaxed); ++spins)
        spins < kSpins || live.load(std::memory_order_relaxed) > 0 ? rest() : sleep(seen);
      if (const uint32_t now = news(seen)) take(seen = now);
    }
  }

  // The region that has opened since `seen`, 0 if none has.
  uint32_t news(uint32_t seen) const {
    const uint64_t ticket = ticket_.load(std::memory_order_seq_cst);
    return uint32_t(ticket) != kClosed && uint32_t(ticket >> 32) != seen ? uint32_t(ticket >> 32) : 0;
  }

  void sleep(uint32_t seen) {
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    awake_.wait(lock, [&] { return news(seen) || ending_.load() || live.load() > 0; });
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
  }

  // To the `place`-th of the cores that this process may use, if there is one.
  static void pin_to(std::thread& worker, int place) {
#if defined(__linux__)
    cpu_set_t allowed, one;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &allowed) && place-- == 0) {
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        pthread_setaffinity_np(worker.native_handle(), sizeof one, &one);
        return;
      }
#endif
  }

 public:
  void wake() {
    std::lock_guard<std::mutex> lock(mutex_);
    awake_.notify_all();
  }

 private:
  std::vector<std::thread> workers_;
  std::atomic<int> size_{1};
  std::mutex caller_, mutex_;
  std::condition_variable awake_;
  std::atomic<int> sleepers_{0};
  std::atomic<bool> ending_{false};
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int64_t> ended_{0};
  std::atomic<Task> task_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<int64_t> count_{0};
};

// Never destroyed: workers may outlive static destruction when a process exits.
Pool& pool() {
  static Pool* const one = new Pool;
  return *one;
}

class Grown {
 public:
  ~Grown() { std::free(data_); }

  void* at_least(int64_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      size_ = (bytes + bytes / 4 + 4095) / 4096 * 4096;
      data_ = std::aligned_alloc(64, size_t(size_));
      if (data_ == nullptr) std::abort();
    }
    return data_;
  }

 private:
  void* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace

NoDenormals::NoDenormals() {
#if defined(__x86_64__)
  before_ = _mm_getcsr();
  _mm_setcsr(uint32_t(before_) | 0x8040);  // flush to zero, and denormals are zero
#elif defined(__aarch64__)
  asm volatile("mrs %0, fpcr" : "=r"(before_));
  asm volatile("msr fpcr, %0" ::"r"(before_ | uint64_t(1) << 24));
#endif
}

NoDenormals::~NoDenormals() {
#if defined(__x86_64__)
  _mm_setcsr(uint32_t(before_));
#elif defined(__aarch64__)
  asm volatile("msr fpcr, %0" ::"r"(before_));
#endif
}

void* scratch(Use use, int64_t bytes) {
  static thread_local Grown memory[2];
  return memory[use].at_least(bytes);
}

void set_threads(int count, bool pin) {
  if (count != threads()) pool().resize(count < 1 ? 0 : count - 1, pin);
}

int threads() { return pool().size(); }

void share(int64_t count, Task task, void* context) {
  if (!inside && pool().share(count, task, context)) return;
  for (int64_t i = 0; i < count; ++i) task(context, i);
}

Live::Live() {
  if (pool().live.fetch_add(1) == 0 && threads() > 1) pool().wake();
}

Live::~Live() { pool().live.fetch_sub(1); }

}  // namespace twinline
