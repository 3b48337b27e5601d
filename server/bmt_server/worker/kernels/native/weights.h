// Base weights at a mask's zeros: read, zero, restore.
//
// Each position is in a different cache line of the weight, so the time is memory latency, which
// prefetches some zeros ahead hide.
#pragma once

#include "mask.h"

// Call f(pointer into the weight, index of the zero) for the zeros of blocks [first, last).
// weight [R, K], `stride` elements per row.
template <bool WRITE, class T, class Col, class F>
inline void for_each_zero(const LayerView<T, Col>& mask, T* weight, int64_t stride, int64_t first,
                       int64_t last, F f) {
  constexpr int AHEAD = 32;
  T* pending[AHEAD];  // prefetched and not used yet
  int64_t done = mask.block_start[first], fetched = done;
  for (int64_t block = first; block < last; block++) {
    alignas(64) int32_t end[BLOCK];
    mask.ends(block, end);
    const int64_t start = mask.block_start[block];
    for (int i = 0; i < mask.rows_of(block); i++) {
      T* row = weight + (block * BLOCK + i) * stride;
      for (; fetched < start + end[i]; fetched++) {
        if (fetched - done == AHEAD) f(pending[done % AHEAD], done), done++;
        T* pointer = row + mask.cols[fetched];
        __builtin_prefetch(pointer, WRITE);
        pending[fetched % AHEAD] = pointer;
      }
    }
  }
  for (; done < fetched; done++) f(pending[done % AHEAD], done);
}
