// A mask in one layer as it lies in memory: `LayerMask` of resident.py.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

constexpr int BLOCK = 64;  // rows
// Zeros whose products are kept at once. A block seldom has more: 64 rows of 4,096 columns at
// 1.5 %. It bounds the scratch to 16 KiB, half of a first-level cache.
constexpr int CHUNK = 4096;

// One row of the table that Python passes: addresses of the four arrays, and how wide they are.
struct LayerTable {
  int64_t block_start, row_end, cols, values, wide;  // wide: bit 0 row_end, bit 1 cols
};

template <class T, class Col>
struct LayerView {
  const int32_t* block_start;
  const void* row_end;
  const Col* cols;
  const T* values;
  bool wide_rows;
  int64_t r;

  LayerView(const LayerTable& t, int64_t r)
      : block_start((const int32_t*)t.block_start),
        row_end((const void*)t.row_end),
        cols((const Col*)t.cols),
        values((const T*)t.values),
        wide_rows(t.wide & 1),
        r(r) {}

  int64_t blocks() const { return (r + BLOCK - 1) / BLOCK; }
  int64_t zeros() const { return block_start[blocks()]; }
  int rows_of(int64_t block) const { return (int)std::min<int64_t>(BLOCK, r - block * BLOCK); }

  // end[i], i < 64: where row i's zeros end within the block; rows that are not there are empty.
  void ends(int64_t block, int32_t* end) const {
    int rows = rows_of(block);
    if (wide_rows) {
      std::memcpy(end, (const int32_t*)row_end + block * BLOCK, rows * sizeof *end);
    } else {
      const uint16_t* from = (const uint16_t*)row_end + block * BLOCK;
      for (int i = 0; i < rows; i++) end[i] = from[i];
    }
    for (int i = rows; i < BLOCK; i++) end[i] = end[rows - 1];
  }
};
