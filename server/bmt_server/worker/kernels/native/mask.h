// Memory layout of a mask in one layer: `LayerMask` of resident_mask.py.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

constexpr int BLOCK = 64;  // rows
// Most products in the scratch. Few blocks have more zeros: 4096 are 1.5 % of 64 rows of 4,096
// columns. Bounds the scratch to 16 KiB, half of an L1 cache.
constexpr int CHUNK = 4096;

// One layer in the table that Python passes: addresses of the four arrays, and their widths.
struct LayerTable {
  int64_t block_start, row_end, cols, values;
  int64_t wide;  // bit 0: row_end is int32; bit 1: cols are int32
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

  // end[i], i < 64: end of row i's zeros within the block; rows beyond the last one are empty.
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
