// Attention in half precision, softmax(q k^T) v (Vaswani et al., arXiv 1706.03762, eq. 1): the scores of a few
// queries with all keys stay in the cache, so nothing is computed twice and no large map is written.

#pragma once

#include <algorithm>

#include "product.h"

#ifdef OSDFACE_HALF

// Rows of q (queries, heads * width), k and v (keys, heads * width) to out, like q. `scale` goes to the
// queries, so that large scores stay finite.
struct Attention {
  const float *q, *k, *v;
  float* out;
  int64_t heads, queries, keys, width, threads;
  float scale;

  static constexpr float SMALLER = 1.0f / 16;  // v, so that sums of many stay finite
  static constexpr float NEVER = -1e30f;       // the score of keys that fill up the last panel

  int64_t filled() const { return parts_of(keys, BLOCK) * BLOCK; }
  int64_t head_size() const { return filled() * width; }
  int64_t own_size() const { return ROWS * (width + filled()); }  // Half: queries, weights
  // Floats: both kinds of packed rows, then for each thread its queries, weights and scores.
  int64_t packed_size() const { return heads * head_size(); }
  int64_t thread_size() const { return own_size() / 2 + ROWS * filled(); }
  int64_t room_size() const { return packed_size() + threads * thread_size(); }

  // Keys of a head as (filled / PANEL, width / 2, PANEL, 2), values as (width / PANEL, filled / 2, PANEL, 2).
  void pack(int64_t head, int64_t key, Half* packed_k, Half* packed_v) const {
    const int64_t row = (key * heads + head) * width;
    for (int64_t c = 0; c < width; ++c) {
      const bool there = key < keys;
      packed_k[(key / PANEL * width + c / 2 * 2) * PANEL + key % PANEL * 2 + c % 2] = there ? k[row + c] : 0.0f;
      packed_v[(c / PANEL * filled() + key / 2 * 2) * PANEL + c % PANEL * 2 + key % 2] =
          there ? v[row + c] * SMALLER : 0.0f;
    }
  }

  // Scores of a query, in place of them its weights in half precision; returns one over their sum.
  float soften(float* scores, Half* weights, int64_t step) const {
    std::fill(scores + keys, scores + filled(), NEVER);
    Vec most = all(NEVER), sum = {};
    for (int64_t i = 0; i < filled(); i += LANES) {
      const Vec s = load(scores + i);
      most = s > most ? s : most;
    }
    float top = NEVER, total = 0;
    for (int i = 0; i < LANES; ++i) top = std::max(top, most[i]);
    for (int64_t i = 0; i < filled(); i += LANES) {
      const Vec weight = exponential(load(scores + i) - top);
      sum += weight;
      store(weights + i / BLOCK * step + i % BLOCK, weight);
    }
    for (int i = 0; i < LANES; ++i) total += sum[i];
    return 1.0f / total;
  }

  // Some queries, at most ROWS, of a head.
  void few(int64_t head, int64_t first, int64_t count, const Half* packed_k, const Half* packed_v, Half* own,
           float* scores) const {
    Half *rows = own, *weights = own + ROWS * width;
    const int64_t step = count * BLOCK;
    for (int64_t i = 0; i < count; ++i)
      for (int64_t c = 0; c < width; c += LANES)
        store(rows + c / BLOCK * step + i * BLOCK + c % BLOCK,
              load(q + ((first + i) * heads + head) * width + c) * scale);
    const Panel<Half> product = panel_of<Half>(count);
    for (int64_t key = 0; key < filled(); key += PANEL)
      product(rows, width / BLOCK, step, packed_k + key * width, scores + key, filled());
    float inverse[ROWS], sums[ROWS * PANEL];
    for (int64_t i = 0; i < count; ++i) inverse[i] = soften(scores + i * filled(), weights + i * BLOCK, step);
    for (int64_t c = 0; c < width; c += PANEL) {
      product(weights, filled() / BLOCK, step, packed_v + c * filled(), sums, PANEL);
      for (int64_t i = 0; i < count; ++i)
        for (int64_t j = 0; j < PANEL; j += LANES)
          store(out + ((first + i) * heads + head) * width + c + j,
                load(sums + i * PANEL + j) * (inverse[i] * (1 / SMALLER)));
    }
  }

  void run(float* room) const {
    Half *packed_k = reinterpret_cast<Half*>(room), *packed_v = packed_k + heads * head_size();
    parallel_for(threads, heads * filled(), 256, [&](int64_t begin, int64_t end, int64_t) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t head = i / filled();
        pack(head, i % filled(), packed_k + head * head_size(), packed_v + head * head_size());
      }
    });
    const int64_t groups = parts_of(queries, ROWS);
    parallel_for(threads, heads * groups, 1, [&](int64_t begin, int64_t end, int64_t rank) {
      float* scores = room + packed_size() + rank * thread_size();
      Half* own = reinterpret_cast<Half*>(scores + ROWS * filled());
      for (int64_t i = begin; i < end; ++i) {
        const int64_t head = i / groups, group = i % groups;
        const int64_t first = group * queries / groups, count = (group + 1) * queries / groups - first;
        few(head, first, count, packed_k + head * head_size(), packed_v + head * head_size(), own, scores);
      }
    });
  }
};

#endif
