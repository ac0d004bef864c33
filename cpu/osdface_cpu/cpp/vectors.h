// Vectors as wide as the CPU's registers, of float32 and of half precision. Those of GCC and Clang.

#pragma once

#include <cstdint>

#if defined(__AVX512FP16__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 14;  // floats of a vector; rows of a product whose sums stay in registers
#elif defined(__AVX__)
constexpr int LANES = 8, ROWS = 6;
#else
constexpr int LANES = 4, ROWS = 6;
#endif
constexpr int PANEL = 2 * LANES;  // outputs computed together

typedef float Vec __attribute__((vector_size(4 * LANES), may_alias));
typedef float Loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * LANES), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const Loose*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Loose*>(p) = v; }
inline Vec all(float value) { return value - Vec{}; }

inline Vec exponential(Vec x) {
  x = x < -87.0f ? all(-87.0f) : x;
  x = x > 88.0f ? all(88.0f) : x;
  const Vec shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the whole part moves to the last bits
  const Vec whole = shifted - 12582912.0f;
  const Vec r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Vec sum = r * (1.0f / 720) + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  const Ints power = (reinterpret_cast<const Ints&>(shifted) + 127) << 23;
  return sum * reinterpret_cast<const Vec&>(power);
}

inline Vec silu(Vec v) { return v / (1.0f + exponential(-v)); }

#if defined(__AVX512FP16__)
#define OSDFACE_HALF 1
typedef _Float16 Half;
typedef Half Wide __attribute__((vector_size(4 * LANES), may_alias));  // twice as many as a Vec's
typedef Half WideLoose __attribute__((vector_size(4 * LANES), aligned(2), may_alias));
typedef uint32_t Pairs __attribute__((vector_size(4 * LANES), may_alias));

// By name, because GCC 12 converts vectors one number at a time.
inline Vec load(const Half* p) { return _mm512_cvtxph_ps(_mm256_loadu_ph(p)); }
inline void store(Half* p, Vec v) { _mm256_storeu_ph(p, _mm512_cvtxps_ph(v)); }
inline Wide load_wide(const Half* p) { return *reinterpret_cast<const WideLoose*>(p); }

// Two neighbours in every pair of lanes.
inline Wide both(const Half* p) {
  uint32_t pair;
  __builtin_memcpy(&pair, p, sizeof(pair));
  return (Wide)(pair - Pairs{});
}

// The sums of the pairs of lanes.
inline Vec paired(Wide v) {
  const Pairs own = (Pairs)v, turned = own << 16 | own >> 16;
  return _mm512_cvtxph_ps((__m256h)_mm512_cvtepi32_epi16((__m512i)(v + (Wide)turned)));
}
#endif
