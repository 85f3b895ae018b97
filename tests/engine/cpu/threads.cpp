// The pool of threads under load: several callers at once, of which one has the pool and the others work alone, regions
// within regions, and a pool that changes its size meanwhile. For ThreadSanitizer; see test_threads.py.

#include "threads.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

namespace {

using twinline::parallel;

void call(unsigned seed) {
  std::mt19937 random(seed);
  std::vector<long> data(200);
  for (int i = 0; i < 400; ++i) {
    const long count = 1 + long(random() % 200), base = long(random() % 1000);
    std::fill(data.begin(), data.end(), -1);
    auto body = [&](int64_t k) {
      long* own = static_cast<long*>(twinline::scratch(twinline::kTask, 64 + k % 7 * 512));
      *own = base + k;
      if (k % 37 == 5) parallel(3, [](int64_t) { twinline::scratch(twinline::kTask, 128); });
      data[size_t(k)] = base + k;
    };
    if (i % 50) {
      parallel(count, body);
    } else {
      const twinline::Live live;
      for (int again = 0; again < 3; ++again) parallel(count, body);
    }
    for (long k = 0; k < count; ++k)
      if (data[size_t(k)] != base + k) {
        std::printf("task %ld of %ld was not run\n", k, count);
        std::exit(2);
      }
    if (i % 97 == 0) std::this_thread::sleep_for(std::chrono::microseconds(300));  // workers fall asleep
  }
}

}  // namespace

int main() {
  for (int round = 0; round < 20; ++round) {
    twinline::set_threads(1 + round % 5, round % 2);
    std::vector<std::thread> others;
    for (int t = 0; t < 2; ++t) others.emplace_back(call, round * 10 + t);
    others.emplace_back([] {
      for (int i = 0; i < 30; ++i) {
        twinline::set_threads(1 + i % 4, false);
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    });
    call(unsigned(round * 10 + 9));
    for (auto& other : others) other.join();
  }
  twinline::set_threads(1, false);
}
