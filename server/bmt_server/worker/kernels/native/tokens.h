// Several tokens of one mask: vectorized over the tokens, so that a zero's column and value are
// read once for all of them.
//
// x of up to 32 tokens is transposed to [K, lanes] in fp32; each zero adds value * x[col] to its
// row's accumulator [lanes]. The accumulators of a block's 64 rows stay in the L1 cache. Each zero
// carries its row (8 bits, expanded from the row ends), so no branch depends on the end of a row.
// If rows are long, one loop per row is cheaper.
#pragma once

#include "mask.h"
#include "vectors.h"

constexpr int MAX_LANES = 32;
// Average zeros per row from which one loop per row is faster; measured.
inline int long_row(int lanes) { return lanes < 16 ? 5 : 2; }

// to [k, lanes] = x of `lanes` tokens [K], in fp32. Lanes beyond the last token repeat it.
template <class T>
inline void transpose_x(const T* const* rows, int64_t stride, int64_t k, int lanes, float* to) {
  constexpr int TILE = 64;
  alignas(64) float tile[MAX_LANES][TILE + 4];
  int64_t k0 = 0;
#if defined(__AVX512F__)
  if (stride == 1 && lanes >= 16)
    for (; k0 + 16 <= k; k0 += 16)
      for (int t = 0; t < lanes; t += 16) {
        __m512 block[16];
        for (int i = 0; i < 16; i++) block[i] = (__m512)widen<16>(rows[t + i] + k0);
        transpose_16(block);
        for (int i = 0; i < 16; i++) store(to + (k0 + i) * lanes + t, block[i]);
      }
#endif
  for (; k0 < k; k0 += TILE) {
    int64_t n = std::min<int64_t>(TILE, k - k0), full = n & ~3;
    for (int t = 0; t < lanes; t++) widen_row(rows[t] + k0 * stride, stride, n, tile[t]);
    for (int t = 0; t < lanes; t += 4) {
      float* out = to + k0 * lanes + t;
      for (int64_t i = 0; i < full; i += 4, out += 4 * lanes) {
        F4 a = load<F4>(&tile[t][i]), b = load<F4>(&tile[t + 1][i]);
        F4 c = load<F4>(&tile[t + 2][i]), d = load<F4>(&tile[t + 3][i]);
        transpose(a, b, c, d);
        store(out, a), store(out + lanes, b), store(out + 2 * lanes, c), store(out + 3 * lanes, d);
      }
      for (int64_t i = full; i < n; i++, out += lanes)
        for (int j = 0; j < 4; j++) out[j] = tile[t + j][i];
    }
  }
}

// row[i], i < end[63]: the row of each zero of a block. Each row writes at least 16 entries, and
// the next row overwrites the excess; writes up to 16 entries past the end.
inline void expand_rows(const int32_t* end, uint8_t* row) {
  int start = 0;
  for (int i = 0; i < BLOCK; i++) {
    std::memset(row + start, i, 16);
    if (__builtin_expect(end[i] - start > 16, 0)) std::memset(row + start, i, end[i] - start);
    start = end[i];
  }
}

// sums [64, LANES] += value * x[col] over the zeros of a block.
template <int LANES, class T, class Col>
inline void block_sums_grouped(const LayerView<T, Col>& mask, int64_t block, bool long_rows,
                          const float* x, float* sums) {
  constexpr int W = LANES < WIDTH ? LANES : WIDTH, N = LANES / W;
  using V = Vector<float, W>;
  alignas(64) int32_t end[BLOCK];
  mask.ends(block, end);
  const int64_t start = mask.block_start[block];
  const Col* cols = mask.cols + start;
  const T* values = mask.values + start;
  const int n = end[BLOCK - 1];
  if (long_rows || n > CHUNK) {
    for (int i = 0, at = 0; i < BLOCK; i++) {
      V sum[N] = {};
      for (; at < end[i]; at++) {
        const float* column = x + (int64_t)cols[at] * LANES;
        const float value = widen_one(values[at]);
        for (int j = 0; j < N; j++) sum[j] += value * load<V>(column + j * W);
      }
      for (int j = 0; j < N; j++) store(sums + i * LANES + j * W, sum[j]);
    }
    return;
  }
  alignas(64) uint8_t row[CHUNK + 16];
  expand_rows(end, row);
  std::memset(sums, 0, BLOCK * LANES * sizeof *sums);
  for (int i = 0; i < n; i++) {
    const float* column = x + (int64_t)cols[i] * LANES;
    const float value = widen_one(values[i]);
    float* sum = sums + row[i] * LANES;
    for (int j = 0; j < N; j++)
      store(sum + j * W, load<V>(sum + j * W) + value * load<V>(column + j * W));
  }
}

// y of `tokens` tokens -= sums [64, lanes], in rows [0, rows) of a block.
template <class T>
inline void subtract_block(T* const* y, int64_t stride, int rows, int tokens, int lanes,
                           const float* sums) {
  int t = 0;
#if defined(__AVX512F__)
  if (stride == 1 && rows == BLOCK)
    for (; t + 16 <= tokens; t += 16)
      for (int i = 0; i < BLOCK; i += 16) {
        __m512 block[16];
        for (int j = 0; j < 16; j++) block[j] = load<__m512>(sums + (i + j) * lanes + t);
        transpose_16(block);
        for (int j = 0; j < 16; j++) {
          T* to = y[t + j] + i;
          narrow<16>(to, widen<16>(to) - (FW)block[j]);
        }
      }
#endif
  alignas(64) float tile[4][BLOCK];
  for (; t < tokens; t += 4) {
    for (int i = 0; i < BLOCK; i += 4) {
      const float* from = sums + i * lanes + t;
      F4 a = load<F4>(from), b = load<F4>(from + lanes);
      F4 c = load<F4>(from + 2 * lanes), d = load<F4>(from + 3 * lanes);
      transpose(a, b, c, d);
      store(&tile[0][i], a), store(&tile[1][i], b), store(&tile[2][i], c), store(&tile[3][i], d);
    }
    for (int j = 0; j < 4 && t + j < tokens; j++) subtract(y[t + j], stride, rows, tile[j]);
  }
}
