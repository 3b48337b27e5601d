// Runs tasks of every variant on fixed pseudo-random inputs and prints y: in float32, or in bfloat16
// if there is an argument.
#include <cstdio>

#include "step.h"

static uint32_t state = 1;

static float random_value() {
  state = state * 1664525u + 1013904223u;
  return (float)(state >> 8) / (1 << 23) - 1;
}

template <class T>
static void run(int64_t r, int64_t k, int every, int tokens) {
  std::vector<int32_t> start;
  std::vector<uint16_t> end, cols;
  std::vector<T> values, x(tokens * k), y(tokens * r);
  for (int64_t i = 0; i < r; i++) {
    if (i % BLOCK == 0) start.push_back((int32_t)cols.size());
    for (int64_t j = 0; j < k; j++) {
      random_value();
      if ((state >> 8) % every == 0) {
        cols.push_back((uint16_t)j);
        values.push_back(narrow_one(random_value(), T{}));
      }
    }
    end.push_back((uint16_t)(cols.size() - start.back()));
  }
  start.push_back((int32_t)cols.size());
  for (T& v : x) v = narrow_one(random_value(), T{});
  for (T& v : y) v = narrow_one(random_value(), T{});
  LayerTable table{(int64_t)start.data(), (int64_t)end.data(), (int64_t)cols.data(),
                   (int64_t)values.data(), 0};
  std::vector<int64_t> of(tokens, 7);
  int64_t id = 7, address = (int64_t)&table;
  Plan plan;
  make_plan(of.data(), tokens, &id, &address, 1, plan);
  std::vector<Task> tasks;
  int threads = 1;
  Shape shape{r, k};
  split_work(plan, 0, shape, threads, tasks);
  Step<T> step{y.data(), x.data(), r, 1, k, 1};
  for (const Task& task : tasks) run_task<T, uint16_t>(task, nullptr, plan, shape, step);
  for (const T& v : y) std::printf("%.9g\n", widen_one(v));
}

template <class T>
static void run_all() {
  for (int every : {100, 40, 20, 10, 3})
    for (int tokens : {1, 4, 7, 13, 35}) {
      run<T>(150, 90, every, tokens);
      run<T>(64, 33, every, tokens);
    }
}

int main(int argc, char**) {
  if (argc > 1)
    run_all<BFloat16>();
  else
    run_all<float>();
}
