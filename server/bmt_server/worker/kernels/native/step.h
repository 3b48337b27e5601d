// One step of one model: the tokens of each mask, and the split of a layer's work into tasks.
#pragma once

#include <atomic>
#include <cmath>
#include <memory>
#include <vector>

#include "mask.h"
#include "rows.h"
#include "tokens.h"
#include "weights.h"

struct Shape {
  int64_t r, k;
};

// One mask and its tokens: tokens[first .. first + count) of the plan.
struct Group {
  const LayerTable* layers;
  int64_t first, count;
};

struct Plan {
  std::vector<Group> groups;
  std::vector<int64_t> tokens;  // indices into the step's tokens, grouped by mask
  int64_t rows_needed = 0;      // least number of tokens in x and y
};

// Plan a step. token_masks: adapter id of each of t tokens, 0 = base; ids: the adapters among them,
// ascending; tables: for each of them an array of LayerTable, one entry per layer. Returns 0, or
// the first id that is not in `ids`; the plan is empty then.
inline int64_t make_plan(const int64_t* token_masks, int64_t t, const int64_t* ids,
                         const int64_t* tables, int64_t count, Plan& plan) {
  plan = {};
  std::vector<Group> groups(count);
  std::vector<int64_t> group_of(t, -1);
  for (int64_t g = 0; g < count; g++) groups[g] = {(const LayerTable*)tables[g], 0, 0};
  int64_t total = 0, last_id = 0, last_group = -1;
  for (int64_t i = 0; i < t; i++) {
    if (!token_masks[i]) continue;
    if (token_masks[i] != last_id) {
      last_id = token_masks[i];
      last_group = std::lower_bound(ids, ids + count, last_id) - ids;
      if (last_group == count || ids[last_group] != last_id) return last_id;
    }
    group_of[i] = last_group;
    groups[last_group].count++;
    total++;
    plan.rows_needed = i + 1;
  }
  int64_t first = 0;
  for (Group& g : groups) g.first = first, first += g.count, g.count = 0;
  plan.tokens.resize(total);
  for (int64_t i = 0; i < t; i++) {
    if (group_of[i] < 0) continue;
    Group& g = groups[group_of[i]];
    plan.tokens[g.first + g.count++] = i;
  }
  plan.groups = std::move(groups);
  return 0;
}

// Least number of tokens of one mask that are processed as a group (tokens.h); measured.
constexpr int64_t GROUP_FROM = 4;

// Tokens [first, first + count) of the plan, all with one mask, in row blocks [block, last).
struct Task {
  const LayerTable* table;
  int64_t first, count, block, last;
};

// x and y of one layer. Strides in elements: `*_row` from token to token, `*_col` per column.
template <class T>
struct Step {
  T* y;
  const T* x;
  int64_t y_row, y_col, x_row, x_col;
};

// Buffer of one thread; grows to the largest size that was requested.
struct Scratch {
  std::unique_ptr<float[], decltype(&std::free)> memory{nullptr, &std::free};
  size_t size = 0;

  float* get(size_t floats) {
    if (floats > size) {
      size = (floats + 1023) & ~size_t(1023);
      memory.reset((float*)std::aligned_alloc(64, size * sizeof(float)));
      if (!memory) throw std::bad_alloc();
    }
    return memory.get();
  }
};

// Prefetches the arrays of a later task in small parts. A step reads each mask's arrays once, so
// they come from memory, in ranges too short for the hardware prefetcher.
class Prefetcher {
 public:
  explicit Prefetcher(int64_t parts) : parts_(parts) {}

  template <class T, class Col>
  void set(const LayerView<T, Col>& mask, const Task& task) {
    const int64_t first = mask.block_start[task.block], last = mask.block_start[task.last];
    if (last - first > CHUNK) return;  // long enough for the hardware prefetcher
    add(mask.cols + first, mask.cols + last);
    add(mask.values + first, mask.values + last);
    const int width = mask.wide_rows ? 4 : 2;
    const char* ends = (const char*)mask.row_end;
    add(ends + task.block * BLOCK * width, ends + std::min(mask.r, task.last * BLOCK) * width);
  }

  void advance() {
    for (int i = 0; i < ranges_; i++)
      for (const char* until = at_[i] + share_[i]; at_[i] < until; at_[i] += 64)
        __builtin_prefetch(at_[i]);
  }

 private:
  void add(const void* begin, const void* end) {
    at_[ranges_] = (const char*)begin;
    share_[ranges_++] = ((const char*)end - (const char*)begin) / parts_ + 1;
  }

  const char* at_[3];
  int64_t share_[3];
  int ranges_ = 0;
  int64_t parts_;
};

// Prefetch a block of one token's y for writing.
template <class T>
inline void prefetch_output(const T* y) {
  for (int64_t i = 0; i < BLOCK; i += 64 / sizeof(T)) __builtin_prefetch(y + i, 1);
}

// Run one task: y -= x (W ⊙ 1[P])^T for its tokens and rows, P the zeros of its mask.
template <class T, class Col>
inline void run_task(const Task& task, const Task* upcoming, const Plan& plan, const Shape& shape,
                     const Step<T>& step) {
  static thread_local Scratch scratch;
  const LayerView<T, Col> mask(*task.table, shape.r);
  const int64_t* tokens = plan.tokens.data() + task.first;
  Prefetcher prefetcher(task.last - task.block);
  if (upcoming) prefetcher.set(LayerView<T, Col>(*upcoming->table, shape.r), *upcoming);
  if (task.count == 1) {
    const Variant variant = variant_for(mask.zeros(), shape.r);
    float* x = scratch.get(shape.k);
    widen_row(step.x + tokens[0] * step.x_row, step.x_col, shape.k, x);
    T* y = step.y + tokens[0] * step.y_row;
    alignas(64) float sums[BLOCK];
    // y as well: another core wrote it, and its rows are too short for the hardware prefetcher.
    constexpr int64_t BLOCKS_AHEAD = 4;
    for (int64_t b = task.block; b < std::min(task.last, task.block + BLOCKS_AHEAD); b++)
      prefetch_output(y + b * BLOCK * step.y_col);
    for (int64_t b = task.block; b < task.last; b++) {
      prefetcher.advance();
      if (b + BLOCKS_AHEAD < task.last)
        prefetch_output(y + (b + BLOCKS_AHEAD) * BLOCK * step.y_col);
      block_sums(mask, b, variant, x, sums);
      subtract(y + b * BLOCK * step.y_col, step.y_col, mask.rows_of(b), sums);
    }
    return;
  }
  const int lanes = task.count <= 4 ? 4 : task.count <= 8 ? 8 : task.count <= 16 ? 16 : 32;
  const bool long_rows = mask.zeros() >= shape.r * long_row(lanes);
  const T* x_of[MAX_LANES];
  T* y_of[MAX_LANES];
  for (int t = 0; t < lanes; t++)
    x_of[t] = step.x + tokens[std::min<int64_t>(t, task.count - 1)] * step.x_row;
  float* x = scratch.get(shape.k * lanes);
  transpose_x(x_of, step.x_col, shape.k, lanes, x);
  alignas(64) float sums[BLOCK * MAX_LANES];
  for (int64_t b = task.block; b < task.last; b++) {
    prefetcher.advance();
    if (b + 1 < task.last)
      for (int t = 0; t < (int)task.count; t++)
        prefetch_output(step.y + tokens[t] * step.y_row + (b + 1) * BLOCK * step.y_col);
    switch (lanes) {
      case 4: block_sums_grouped<4>(mask, b, long_rows, x, sums); break;
      case 8: block_sums_grouped<8>(mask, b, long_rows, x, sums); break;
      case 16: block_sums_grouped<16>(mask, b, long_rows, x, sums); break;
      default: block_sums_grouped<32>(mask, b, long_rows, x, sums);
    }
    for (int t = 0; t < (int)task.count; t++)
      y_of[t] = step.y + tokens[t] * step.y_row + b * BLOCK * step.y_col;
    subtract_block(y_of, step.y_col, mask.rows_of(b), (int)task.count, lanes, sums);
  }
}

// Approximate cost of widening or transposing x, in nanoseconds. Each piece of a task repeats it.
inline double layout_cost(int64_t tokens, const Shape& shape) {
  return (tokens == 1 ? 0.1 : 0.2) * shape.k * tokens;
}

// Approximate cost of one task in nanoseconds, for the split into tasks.
inline double cost(int64_t zeros, int64_t tokens, const Shape& shape) {
  const double rows = tokens == 1 ? 0.6 * zeros + 0.1 * shape.r * tokens
                                  : 1.2 * zeros + 0.2 * shape.r * tokens;
  return rows + layout_cost(tokens, shape);
}

// Least work per additional thread, and least work per piece of a task, in nanoseconds.
constexpr double WAKE = 5000, PIECE = 2000;

// Split a layer's work into tasks for at most `threads` threads; lowers `threads` if the work is
// small.
inline void split_work(const Plan& plan, int64_t layer, const Shape& shape, int& threads,
                       std::vector<Task>& tasks) {
  const int64_t blocks = (shape.r + BLOCK - 1) / BLOCK;
  double total = 0;
  tasks.clear();
  for (const Group& g : plan.groups) {
    const LayerTable* table = g.layers + layer;
    const int64_t zeros = ((const int32_t*)table->block_start)[blocks];
    if (!zeros) continue;
    const int64_t most = g.count < GROUP_FROM ? 1 : MAX_LANES;
    for (int64_t t = 0; t < g.count; t += most) {
      const int64_t count = std::min(most, g.count - t);
      tasks.push_back({table, g.first + t, count, 0, blocks});
      total += cost(zeros, count, shape);
    }
  }
  threads = (int)std::min<double>(threads, 1 + total / WAKE);
  if (threads == 1) return;
  // Pieces of a third of a thread's share, so that threads finish together; if the layout of x
  // would take half of a piece's time or more, at most one piece per thread.
  const double piece = std::max(total / (3 * threads), PIECE);
  const size_t count = tasks.size();
  for (size_t i = 0; i < count; i++) {
    const Task task = tasks[i];
    const double work = cost(((const int32_t*)task.table->block_start)[blocks], task.count, shape);
    const double worth = std::max(piece, 2 * layout_cost(task.count, shape));
    const double share = std::min(std::ceil(threads * work / total), work / piece);
    const int64_t pieces = std::clamp<int64_t>((int64_t)std::max(share, work / worth), 1, blocks);
    tasks[i].last = blocks / pieces;
    for (int64_t p = 1; p < pieces; p++)
      tasks.push_back({task.table, task.first, task.count, blocks * p / pieces,
                       blocks * (p + 1) / pieces});
  }
}
