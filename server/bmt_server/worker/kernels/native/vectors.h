// Vector types of the host and element types of a model, in GCC's vector extension. The compiler
// maps them to AVX-512, AVX2 or NEON; only short rows (rows.h) and transposition have AVX-512 code.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int WIDTH = 16;  // floats of one register
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif

template <class T, int N>
struct VectorOf {
  typedef T type __attribute__((vector_size(sizeof(T) * N)));
};
template <class T, int N>
using Vector = typename VectorOf<T, N>::type;

using F4 = Vector<float, 4>;
using FW = Vector<float, WIDTH>;

template <class V>
inline V load(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class V>
inline void store(void* to, V v) {
  std::memcpy(to, &v, sizeof v);
}

// Lanes of two vectors by constant indices; those of b follow those of a.
#if defined(__clang__)
#define BMT_SHUFFLE(indices, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define BMT_SHUFFLE(indices, a, b, ...) __builtin_shuffle(a, b, indices{__VA_ARGS__})
#endif
using Indices4 = Vector<int32_t, 4>;
using Indices8 = Vector<int16_t, 8>;

// Transpose a 4 x 4 block in place.
inline void transpose(F4& a, F4& b, F4& c, F4& d) {
  F4 ab_lo = BMT_SHUFFLE(Indices4, a, b, 0, 4, 1, 5);
  F4 ab_hi = BMT_SHUFFLE(Indices4, a, b, 2, 6, 3, 7);
  F4 cd_lo = BMT_SHUFFLE(Indices4, c, d, 0, 4, 1, 5);
  F4 cd_hi = BMT_SHUFFLE(Indices4, c, d, 2, 6, 3, 7);
  a = BMT_SHUFFLE(Indices4, ab_lo, cd_lo, 0, 1, 4, 5);
  b = BMT_SHUFFLE(Indices4, ab_lo, cd_lo, 2, 3, 6, 7);
  c = BMT_SHUFFLE(Indices4, ab_hi, cd_hi, 0, 1, 4, 5);
  d = BMT_SHUFFLE(Indices4, ab_hi, cd_hi, 2, 3, 6, 7);
}

#if defined(__AVX512F__)
// Transpose a 16 x 16 block in place.
inline void transpose_16(__m512 (&r)[16]) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 4) {
    const __m512 ab_lo = _mm512_unpacklo_ps(r[i], r[i + 1]);
    const __m512 ab_hi = _mm512_unpackhi_ps(r[i], r[i + 1]);
    const __m512 cd_lo = _mm512_unpacklo_ps(r[i + 2], r[i + 3]);
    const __m512 cd_hi = _mm512_unpackhi_ps(r[i + 2], r[i + 3]);
    const auto pairs = [](__m512 a, __m512 b, bool high) {
      const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
      return _mm512_castpd_ps(high ? _mm512_unpackhi_pd(x, y) : _mm512_unpacklo_pd(x, y));
    };
    // t[i + j]: column j of each of the four quarters, rows i .. i + 3.
    t[i] = pairs(ab_lo, cd_lo, false), t[i + 1] = pairs(ab_lo, cd_lo, true);
    t[i + 2] = pairs(ab_hi, cd_hi, false), t[i + 3] = pairs(ab_hi, cd_hi, true);
  }
  for (int j = 0; j < 4; j++) {
    const __m512 a = _mm512_shuffle_f32x4(t[j], t[4 + j], 0x88);
    const __m512 b = _mm512_shuffle_f32x4(t[8 + j], t[12 + j], 0x88);
    const __m512 c = _mm512_shuffle_f32x4(t[j], t[4 + j], 0xdd);
    const __m512 d = _mm512_shuffle_f32x4(t[8 + j], t[12 + j], 0xdd);
    r[j] = _mm512_shuffle_f32x4(a, b, 0x88), r[8 + j] = _mm512_shuffle_f32x4(a, b, 0xdd);
    r[4 + j] = _mm512_shuffle_f32x4(c, d, 0x88), r[12 + j] = _mm512_shuffle_f32x4(c, d, 0xdd);
  }
}
#endif

// bfloat16 in memory. `widen` is exact; `narrow` rounds to nearest, ties to even, as torch does.
// The hardware conversion (AVX512_BF16) also flushes subnormals, as the matrix product before it
// does.
struct BFloat16 {
  uint16_t bits;
};

template <int N>
inline Vector<float, N> widen(const BFloat16* from) {
#if defined(__AVX512F__)
  // One instruction and a shift; GCC 12 compiles the conversion below to four.
  if constexpr (N == 16) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
    return (FW)_mm512_slli_epi32(wide, 16);
  }
#endif
  auto wide = __builtin_convertvector(load<Vector<uint16_t, N>>(from), Vector<uint32_t, N>);
  return (Vector<float, N>)(wide << 16);
}

template <int N>
inline Vector<float, N> widen(const float* from) {
  return load<Vector<float, N>>(from);
}

// Eight values as two vectors of four, one instruction each.
inline void widen_8(const BFloat16* from, F4& low, F4& high) {
  using V = Vector<uint16_t, 8>;
  V zero = {}, v = load<V>(from);
  V first = BMT_SHUFFLE(Indices8, zero, v, 0, 8, 1, 9, 2, 10, 3, 11);
  V second = BMT_SHUFFLE(Indices8, zero, v, 4, 12, 5, 13, 6, 14, 7, 15);
  low = (F4)first, high = (F4)second;
}

inline void widen_8(const float* from, F4& low, F4& high) {
  low = load<F4>(from), high = load<F4>(from + 4);
}

template <int N>
inline void narrow(BFloat16* to, Vector<float, N> v) {
#if defined(__AVX512BF16__)
  if constexpr (N == 16) return store(to, _mm512_cvtneps_pbh((__m512)v));
#endif
  auto bits = (Vector<uint32_t, N>)v;
  auto rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  auto nan = (Vector<uint32_t, N>)(v != v);
  rounded = (nan & 0x7fc0) | (~nan & rounded);
  store(to, __builtin_convertvector(rounded, Vector<uint16_t, N>));
}

template <int N>
inline void narrow(float* to, Vector<float, N> v) {
  store(to, v);
}

inline float widen_one(BFloat16 v) {
  uint32_t bits = (uint32_t)v.bits << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

inline float widen_one(float v) { return v; }

inline BFloat16 narrow_one(float v, BFloat16) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  if (v != v) return {0x7fc0};
  return {(uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

inline float narrow_one(float v, float) { return v; }

// to[i] = from[i * stride] in fp32, i < n.
template <class T>
inline void widen_row(const T* from, int64_t stride, int64_t n, float* to) {
  int64_t i = 0;
  if (stride == 1)
    for (; i + WIDTH <= n; i += WIDTH) store(to + i, widen<WIDTH>(from + i));
  for (; i < n; i++) to[i] = widen_one(from[i * stride]);
}

// y[i * stride] -= d[i], i < n, with one rounding.
template <class T>
inline void subtract(T* y, int64_t stride, int64_t n, const float* d) {
  int64_t i = 0;
  if (stride == 1)
    for (; i + WIDTH <= n; i += WIDTH)
      narrow<WIDTH>(y + i, widen<WIDTH>(y + i) - load<FW>(d + i));
  for (; i < n; i++) y[i * stride] = narrow_one(widen_one(y[i * stride]) - d[i], T{});
}
