// Products of a few rows and PANEL columns, held in registers. Rows lie in blocks of BLOCK inputs, the blocks
// `step` apart.

#pragma once

#include <utility>

#include "threads.h"
#include "vectors.h"

constexpr int BLOCK = 32;     // inputs lying together
constexpr int AHEAD = 16;     // steps by which weights are fetched early
constexpr int64_t SKEW = 16;  // floats between planes: without them all planes share a few lines of the cache

// (R, inputs) by (inputs, PANEL) to (R, PANEL), rows of the result `line` apart.
template <int R>
void panel(const float* a, int64_t blocks, int64_t step, const float* b, float* m, int64_t line) {
  Vec sum[R][2] = {};
  for (int64_t k = 0; k < blocks; ++k, a += step)
#pragma GCC unroll 2
    for (int j = 0; j < BLOCK; ++j, b += PANEL) {
      const Vec b0 = load(b), b1 = load(b + LANES);
      for (int ahead = 0; ahead < PANEL; ahead += 16) __builtin_prefetch(b + AHEAD * PANEL + ahead);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Vec s = all(a[r * BLOCK + j]);
        sum[r][0] += s * b0;
        sum[r][1] += s * b1;
      }
    }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    store(m + r * line, sum[r][0]);
    store(m + r * line + LANES, sum[r][1]);
  }
}

#ifdef OSDFACE_HALF
constexpr int64_t EXACT = 4;  // blocks after which sums in half precision go into those in float32

// The same with b as (inputs / 2, PANEL, 2): a pair of inputs at once, its two sums in neighbouring lanes.
template <int R>
void panel(const Half* a, int64_t blocks, int64_t step, const Half* b, float* m, int64_t line) {
  for (int64_t done = 0; done < blocks; done += EXACT) {
    Wide sum[R][2] = {};
    const int64_t until = done + EXACT < blocks ? done + EXACT : blocks;
    for (int64_t k = done; k < until; ++k, a += step)
#pragma GCC unroll 2
      for (int j = 0; j < BLOCK; j += 2, b += 2 * PANEL) {
        const Wide b0 = load_wide(b), b1 = load_wide(b + PANEL);
        __builtin_prefetch(b + AHEAD * PANEL);
        __builtin_prefetch(b + AHEAD * PANEL + PANEL);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const Wide s = both(a + r * BLOCK + j);
          sum[r][0] += s * b0;
          sum[r][1] += s * b1;
        }
      }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      float* to = m + r * line;
      const Vec left = paired(sum[r][0]), right = paired(sum[r][1]);
      store(to, done ? load(to) + left : left);
      store(to + LANES, done ? load(to + LANES) + right : right);
    }
  }
}
#endif

template <class Value>
using Panel = void (*)(const Value*, int64_t, int64_t, const Value*, float*, int64_t);

template <class Value, int... N>
Panel<Value> of_rows(int64_t count, std::integer_sequence<int, N...>) {
  static constexpr Panel<Value> sizes[] = {panel<N + 1>...};
  return sizes[count - 1];
}

// The product for `count` rows, at most ROWS.
template <class Value>
Panel<Value> panel_of(int64_t count) {
  return of_rows<Value>(count, std::make_integer_sequence<int, ROWS>());
}
