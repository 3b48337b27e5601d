// Base weights at a mask's zeros: read them, delete them, put them back.
//
// Each place is a cache line of its own somewhere in the weight, so the time is that of memory
// latency, hidden by asking for the lines some zeros ahead.
#pragma once

#include "mask.h"

// Calls f(place in the weight, index of the zero) for the zeros of blocks [first, last).
// weight [R, K] with `stride` elements a row.
template <bool WRITE, class T, class Col, class F>
inline void each_place(const LayerView<T, Col>& mask, T* weight, int64_t stride, int64_t first,
                       int64_t last, F f) {
  constexpr int AHEAD = 32;
  T* coming[AHEAD];  // places asked for and not yet used
  int64_t done = mask.block_start[first], asked = done;
  for (int64_t block = first; block < last; block++) {
    alignas(64) int32_t end[BLOCK];
    mask.ends(block, end);
    const int64_t start = mask.block_start[block];
    for (int i = 0; i < mask.rows_of(block); i++) {
      T* row = weight + (block * BLOCK + i) * stride;
      for (; asked < start + end[i]; asked++) {
        if (asked - done == AHEAD) f(coming[done % AHEAD], done), done++;
        T* place = row + mask.cols[asked];
        __builtin_prefetch(place, WRITE);
        coming[asked % AHEAD] = place;
      }
    }
  }
  for (; done < asked; done++) f(coming[done % AHEAD], done);
}
