// Vectors of the host and the element types of a model, in GCC's vector extension: the compiler
// turns them into AVX-512, AVX2 or NEON, so no path but one (rows.h) names an instruction set.
#pragma once

#include <cstdint>
#include <cstring>

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

#if defined(__clang__)
#define BMT_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define BMT_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, Vector<int32_t, 4>{i, j, k, l})
#endif

// Rows of a 4 x 4 block become its columns.
inline void transpose(F4& a, F4& b, F4& c, F4& d) {
  F4 ab_lo = BMT_SHUFFLE(a, b, 0, 4, 1, 5), ab_hi = BMT_SHUFFLE(a, b, 2, 6, 3, 7);
  F4 cd_lo = BMT_SHUFFLE(c, d, 0, 4, 1, 5), cd_hi = BMT_SHUFFLE(c, d, 2, 6, 3, 7);
  a = BMT_SHUFFLE(ab_lo, cd_lo, 0, 1, 4, 5);
  b = BMT_SHUFFLE(ab_lo, cd_lo, 2, 3, 6, 7);
  c = BMT_SHUFFLE(ab_hi, cd_hi, 0, 1, 4, 5);
  d = BMT_SHUFFLE(ab_hi, cd_hi, 2, 3, 6, 7);
}

// bfloat16 as it lies in memory. `widen` and `narrow` are torch's conversions: exact, and to the
// nearest with ties to even (the hardware's own conversion flushes subnormals).
struct BFloat16 {
  uint16_t bits;
};

template <int N>
inline Vector<float, N> widen(const BFloat16* from) {
  auto wide = __builtin_convertvector(load<Vector<uint16_t, N>>(from), Vector<uint32_t, N>);
  return (Vector<float, N>)(wide << 16);
}

template <int N>
inline Vector<float, N> widen(const float* from) {
  return load<Vector<float, N>>(from);
}

template <int N>
inline void narrow(BFloat16* to, Vector<float, N> v) {
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
