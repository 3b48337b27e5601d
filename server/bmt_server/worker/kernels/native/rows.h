// One token of a mask: vectorized over zeros and rows.
//
// Per block of 64 rows, the products x[col] * value of all zeros go to a small scratch, in order;
// then each row's products are summed. Neither part has a branch per row: at 0.2 % a row of 576
// columns has 0, 1, 2 or 3 zeros, which no branch predictor can predict, and a misprediction costs
// as much as a dozen zeros. Plain loads gather x: they were faster than the gather instruction.
//
// A row's sum depends only on the row's zeros and the mask's sparsity, so a token's result has the
// same bits in every batch.
#pragma once

#include "mask.h"
#include "vectors.h"

// Floats that may be read past the products; their values are ignored.
constexpr int PAD = 2 * WIDTH + 16;

// p[i] = x[cols[i]] * values[i], i < n. If at least seven zeros follow in the layer (`more`), the
// loop may multiply up to seven of them as well, which is cheaper than a remainder loop.
template <class T, class Col>
inline void products(const Col* cols, const T* values, int n, int64_t more, const float* x,
                     float* p) {
  int i = 0;
  const int full_end = more >= 7 ? n : n - 7;
  for (; i < full_end; i += 8) {
    const Col* c = cols + i;
    F4 low, high;
    widen_8(values + i, low, high);
    store(p + i, F4{x[c[0]], x[c[1]], x[c[2]], x[c[3]]} * low);
    store(p + i + 4, F4{x[c[4]], x[c[5]], x[c[6]], x[c[7]]} * high);
  }
  for (; i < n; i++) p[i] = x[cols[i]] * widen_one(values[i]);
}

// Lane masks: the window that starts at KEEP + 16 - count selects the lanes below count.
alignas(64) inline const int32_t KEEP[32] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                             -1, -1, -1, -1, -1, -1, -1, -1};

// Four partial sums of the first n of N floats at p, N = 4, 8 or 16.
template <int N>
inline F4 fold_first(const float* p, int n) {
  Vector<int32_t, N> bits = load<Vector<int32_t, N>>(p) & load<Vector<int32_t, N>>(KEEP + 16 - n);
  if constexpr (N == 4) {
    return (F4)bits;
  } else {
    float f[N];
    store(f, bits);
    if constexpr (N == 8) {
      return load<F4>(f) + load<F4>(f + 4);
    } else {
      return (load<F4>(f) + load<F4>(f + 4)) + (load<F4>(f + 8) + load<F4>(f + 12));
    }
  }
}

// Four partial sums of one row's n products, for any n.
template <int N>
inline F4 fold(const float* p, int n) {
  F4 sum = {0, 0, 0, 0};
  for (; n > N; n -= N, p += N) sum += fold_first<N>(p, N);
  return sum + fold_first<N>(p, n);
}

// d[i] = sum of row i's products, four rows at a time with N products of each; assumes that few
// rows have more than N.
template <int N>
inline void sum_rows(const int32_t* end, const float* p, float* d) {
  int start = 0;
  for (int i = 0; i < BLOCK; i += 4) {
    int from[4], count[4], most = 0;
    for (int j = 0; j < 4; j++) {
      from[j] = start;
      count[j] = end[i + j] - start;
      start = end[i + j];
      most = std::max(most, count[j]);
    }
    F4 s[4];
    if (__builtin_expect(most <= N, 1))
      for (int j = 0; j < 4; j++) s[j] = fold_first<N>(p + from[j], count[j]);
    else
      for (int j = 0; j < 4; j++) s[j] = fold<N>(p + from[j], count[j]);
    transpose(s[0], s[1], s[2], s[3]);
    store(d + i, (s[0] + s[1]) + (s[2] + s[3]));
  }
}

#if defined(__AVX512F__)
// The same for short rows: ROWS rows per register with 16 / ROWS lanes each. Their products span at
// most 32 floats, which fit two registers, so one permutation fetches the next product of each.
template <int ROWS>
inline void sum_short_rows(const int32_t* end, const float* p, float* d) {
  constexpr int LANES = 16 / ROWS;
  const __m512i step = _mm512_set1_epi32(LANES);
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i row = _mm512_srli_epi32(lane, LANES == 2 ? 1 : 0);
  const __m512i first = _mm512_and_si512(lane, _mm512_set1_epi32(LANES - 1));
  int start = 0;
  for (int i = 0; i < BLOCK; i += ROWS) {
    __mmask16 valid = (__mmask16)((1u << ROWS) - 1);
    __m512i stop = _mm512_sub_epi32(_mm512_maskz_loadu_epi32(valid, end + i),
                                    _mm512_set1_epi32(start));
    __m512i at = _mm512_alignr_epi32(stop, _mm512_setzero_si512(), 15);
    if constexpr (LANES > 1) {
      stop = _mm512_permutexvar_epi32(row, stop);
      at = _mm512_add_epi32(_mm512_permutexvar_epi32(row, at), first);
    }
    __m512 sum = _mm512_setzero_ps();
    __mmask16 live = _mm512_cmplt_epi32_mask(at, stop);
    if (__builtin_expect(end[i + ROWS - 1] - start <= 32, 1)) {
      const __m512 low = _mm512_loadu_ps(p + start), high = _mm512_loadu_ps(p + start + 16);
      auto next = [&] {
        sum = _mm512_add_ps(sum, _mm512_maskz_permutex2var_ps(live, low, at, high));
        at = _mm512_add_epi32(at, step);
        live = _mm512_cmplt_epi32_mask(at, stop);
      };
      // Unconditional iterations; more are rare, which the branch predictor learns.
      next(), next(), next(), next();
      if constexpr (LANES == 1) next(), next();
      while (__builtin_expect(live, 0)) next();
    } else {
      while (live) {
        sum = _mm512_add_ps(sum, _mm512_mask_i32gather_ps(_mm512_setzero_ps(), live, at,
                                                          p + start, 4));
        at = _mm512_add_epi32(at, step);
        live = _mm512_cmplt_epi32_mask(at, stop);
      }
    }
    if constexpr (LANES == 1) {
      _mm512_storeu_ps(d + i, sum);
    } else {
      sum = _mm512_add_ps(sum, _mm512_permute_ps(sum, 0xb1));
      _mm256_storeu_ps(d + i, _mm512_castps512_ps256(_mm512_maskz_compress_ps(0x5555, sum)));
    }
    start = end[i + ROWS - 1];
  }
}
#endif

// Variant of the row sum, by the mask's zeros per row in this layer; thresholds were measured.
enum class Variant { sixteen_rows, eight_rows, windows_of_4, windows_of_8, windows_of_16 };

inline Variant variant_for(int64_t zeros, int64_t rows) {
#if defined(__AVX512F__)
  if (zeros * 10 <= rows * 16) return Variant::sixteen_rows;
  if (zeros * 10 <= rows * 34) return Variant::eight_rows;
#else
  if (zeros * 10 <= rows * 16) return Variant::windows_of_4;
#endif
  return zeros <= rows * 5 ? Variant::windows_of_8 : Variant::windows_of_16;
}

// d[i] = sum of x[col] * value over the zeros of row i of `block`, i < 64.
template <class T, class Col>
inline void block_sums(const LayerView<T, Col>& mask, int64_t block, Variant variant,
                       const float* x, float* d) {
  alignas(64) int32_t end[BLOCK];
  alignas(64) float p[CHUNK + PAD];
  mask.ends(block, end);
  const int64_t start = mask.block_start[block];
  const Col* cols = mask.cols + start;
  const T* values = mask.values + start;
  const int n = end[BLOCK - 1];
  if (__builtin_expect(n > CHUNK, 0)) {
    // Rows with hundreds of zeros: the loop per row costs little.
    for (int i = 0, at = 0; i < BLOCK; i++) {
      F4 sum = {0, 0, 0, 0};
      while (at < end[i]) {
        int count = std::min(CHUNK, end[i] - at);
        products(cols + at, values + at, count, 0, x, p);
        sum += fold<16>(p, count);
        at += count;
      }
      d[i] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
    return;
  }
  products(cols, values, n, mask.zeros() - start - n, x, p);
  switch (variant) {
#if defined(__AVX512F__)
    case Variant::sixteen_rows: return sum_short_rows<16>(end, p, d);
    case Variant::eight_rows: return sum_short_rows<8>(end, p, d);
#endif
    case Variant::windows_of_4: return sum_rows<4>(end, p, d);
    case Variant::windows_of_8: return sum_rows<8>(end, p, d);
    default: return sum_rows<16>(end, p, d);
  }
}
