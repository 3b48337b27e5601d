// One step of one model: which tokens use which mask, and a layer's work shared out to threads.
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
  int64_t rows_needed = 0;      // x and y must have at least so many tokens
};

// Arrange a step. token_masks: adapter id of each of t tokens, 0 where the base answers;
// ids: the adapters among them, ascending; tables: each one's LayerTable, one entry a layer.
// Returns 0, or the first id that is not among `ids`; the plan is empty then.
inline int64_t arrange(const int64_t* token_masks, int64_t t, const int64_t* ids,
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

// Tokens of one mask from which on they are worked on together; measured, see docs/log.md.
constexpr int64_t TOGETHER = 4;

// Tokens [first, first + count) of the plan, all of one mask, in blocks [block, last) of rows.
struct Task {
  const LayerTable* table;
  int64_t first, count, block, last;
};

// The arrays of one layer's x and y: rows of tokens, `*_row` elements apart, columns `*_col`.
template <class T>
struct Step {
  T* y;
  const T* x;
  int64_t y_row, y_col, x_row, x_col;
};

// Memory of one thread that grows to what it needed once.
struct Scratch {
  std::unique_ptr<float[], decltype(&std::free)> memory{nullptr, &std::free};
  size_t size = 0;

  float* of(size_t floats) {
    if (floats > size) {
      size = (floats + 1023) & ~size_t(1023);
      memory.reset((float*)std::aligned_alloc(64, size * sizeof(float)));
      if (!memory) throw std::bad_alloc();
    }
    return memory.get();
  }
};

// Asks for the arrays of a coming task little by little: a step reads each mask's arrays once, so
// they come from memory, in pieces too short for the hardware to foresee.
class Ahead {
 public:
  explicit Ahead(int64_t turns) : turns_(turns) {}

  template <class T, class Col>
  void set(const LayerView<T, Col>& mask, const Task& task) {
    const int64_t first = mask.block_start[task.block], last = mask.block_start[task.last];
    if (last - first > CHUNK) return;  // long enough for the hardware
    add(mask.cols + first, mask.cols + last);
    add(mask.values + first, mask.values + last);
    const int width = mask.wide_rows ? 4 : 2;
    const char* ends = (const char*)mask.row_end;
    add(ends + task.block * BLOCK * width, ends + std::min(mask.r, task.last * BLOCK) * width);
  }

  void turn() {
    for (int i = 0; i < ranges_; i++)
      for (const char* until = at_[i] + share_[i]; at_[i] < until; at_[i] += 64)
        __builtin_prefetch(at_[i]);
  }

 private:
  void add(const void* begin, const void* end) {
    at_[ranges_] = (const char*)begin;
    share_[ranges_++] = ((const char*)end - (const char*)begin) / turns_ + 1;
  }

  const char* at_[3];
  int64_t share_[3];
  int ranges_ = 0;
  int64_t turns_;
};

// Asks for a block of one token's y, to be written.
template <class T>
inline void ask_for(const T* y) {
  for (int64_t i = 0; i < BLOCK; i += 64 / sizeof(T)) __builtin_prefetch(y + i, 1);
}

// One task: y -= x (W * P)^T for its tokens and rows.
template <class T, class Col>
inline void work(const Task& task, const Task* coming, const Plan& plan, const Shape& shape,
                 const Step<T>& step) {
  static thread_local Scratch scratch;
  const LayerView<T, Col> mask(*task.table, shape.r);
  const int64_t* tokens = plan.tokens.data() + task.first;
  Ahead ahead(task.last - task.block);
  if (coming) ahead.set(LayerView<T, Col>(*coming->table, shape.r), *coming);
  if (task.count == 1) {
    const Form form = form_of(mask.zeros(), shape.r);
    float* x = scratch.of(shape.k);
    widen_row(step.x + tokens[0] * step.x_row, step.x_col, shape.k, x);
    T* y = step.y + tokens[0] * step.y_row;
    alignas(64) float sums[BLOCK];
    // Of y too: another core wrote it, and a row of it is too short for the hardware to foresee.
    constexpr int64_t BLOCKS_AHEAD = 4;
    for (int64_t b = task.block; b < std::min(task.last, task.block + BLOCKS_AHEAD); b++)
      ask_for(y + b * BLOCK * step.y_col);
    for (int64_t b = task.block; b < task.last; b++) {
      ahead.turn();
      if (b + BLOCKS_AHEAD < task.last) ask_for(y + (b + BLOCKS_AHEAD) * BLOCK * step.y_col);
      block_sums(mask, b, form, x, sums);
      subtract(y + b * BLOCK * step.y_col, step.y_col, mask.rows_of(b), sums);
    }
    return;
  }
  const int lanes = task.count <= 4 ? 4 : task.count <= 8 ? 8 : task.count <= 16 ? 16 : 32;
  const bool long_rows = mask.zeros() >= shape.r * long_row(lanes);
  const T* x_of[MOST_LANES];
  T* y_of[MOST_LANES];
  for (int t = 0; t < lanes; t++)
    x_of[t] = step.x + tokens[std::min<int64_t>(t, task.count - 1)] * step.x_row;
  float* x = scratch.of(shape.k * lanes);
  transpose_x(x_of, step.x_col, shape.k, lanes, x);
  alignas(64) float sums[BLOCK * MOST_LANES];
  for (int64_t b = task.block; b < task.last; b++) {
    ahead.turn();
    if (b + 1 < task.last)
      for (int t = 0; t < (int)task.count; t++)
        ask_for(step.y + tokens[t] * step.y_row + (b + 1) * BLOCK * step.y_col);
    switch (lanes) {
      case 4: block_sums_of<4>(mask, b, long_rows, x, sums); break;
      case 8: block_sums_of<8>(mask, b, long_rows, x, sums); break;
      case 16: block_sums_of<16>(mask, b, long_rows, x, sums); break;
      default: block_sums_of<32>(mask, b, long_rows, x, sums);
    }
    for (int t = 0; t < (int)task.count; t++)
      y_of[t] = step.y + tokens[t] * step.y_row + b * BLOCK * step.y_col;
    subtract_block(y_of, step.y_col, mask.rows_of(b), (int)task.count, lanes, sums);
  }
}

// Work of one task in nanoseconds, roughly: what threads are shared out by. Of it, what each piece
// of its rows repeats: to lay out x.
inline double layout_cost(int64_t tokens, const Shape& shape) {
  return (tokens == 1 ? 0.1 : 0.2) * shape.k * tokens;
}

inline double cost(int64_t zeros, int64_t tokens, const Shape& shape) {
  const double rows = tokens == 1 ? 0.6 * zeros + 0.1 * shape.r * tokens
                                  : 1.2 * zeros + 0.2 * shape.r * tokens;
  return rows + layout_cost(tokens, shape);
}

// What one more thread must save to be worth waking, and the least piece of work, in ns.
constexpr double WAKE = 5000, PIECE = 2000;

// All of a layer's tasks for `threads` threads at most; lowers `threads` where work is little.
inline void share_out(const Plan& plan, int64_t layer, const Shape& shape, int& threads,
                      std::vector<Task>& tasks) {
  const int64_t blocks = (shape.r + BLOCK - 1) / BLOCK;
  double total = 0;
  tasks.clear();
  for (const Group& g : plan.groups) {
    const LayerTable* table = g.layers + layer;
    const int64_t zeros = ((const int32_t*)table->block_start)[blocks];
    if (!zeros) continue;
    const int64_t most = g.count < TOGETHER ? 1 : MOST_LANES;
    for (int64_t t = 0; t < g.count; t += most) {
      const int64_t count = std::min(most, g.count - t);
      tasks.push_back({table, g.first + t, count, 0, blocks});
      total += cost(zeros, count, shape);
    }
  }
  threads = (int)std::min<double>(threads, 1 + total / WAKE);
  if (threads == 1) return;
  // Pieces of a third of a thread's share, so that threads end together; but where a piece would
  // spend half of its time or more on laying out x, no more than there are threads for.
  const double piece = std::max(total / (3 * threads), PIECE);
  const size_t whole = tasks.size();
  for (size_t i = 0; i < whole; i++) {
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
