// Linear layers and convolutions as one product in half precision: rows of the input, or of windows of a
// picture, by the weights. Rows are taken a chunk at a time, by a thread each or, where there are few, by all
// threads together. Sums go over into float32 every few blocks.

#pragma once

#include <algorithm>
#include <cstring>

#include "product.h"

#ifdef OSDFACE_HALF

// A picture (height, width, inputs) to (down, across, outputs); a linear layer has one line of pixels.
struct Multiplication {
  const float* x;
  const Half* weights;  // (outputs / PANEL, side * side, inputs / 2, PANEL, 2)
  const float* bias;    // may be null
  float* out;
  int64_t height, width, inputs, down, across, outputs;
  int64_t side, stride, padding;  // of the window; padding above and on the left
  int64_t threads;

  static constexpr float SCALE = 1.0f / 16;  // of the input: up to a million stays finite
  // What one step takes of the rows and of their depth, so that it stays in the cache.
  static constexpr int64_t AT_ONCE = 1 << 19, DEEP = 2304;

  int64_t rows() const { return down * across; }
  int64_t depth() const { return side * side * inputs; }
  int64_t sections() const { return parts_of(depth(), DEEP); }
  int64_t chunks() const { return parts_of(rows() * depth() / sections(), AT_ONCE); }
  int64_t first(int64_t chunk) const { return chunk * rows() / chunks(); }
  int64_t count(int64_t chunk) const { return first(chunk + 1) - first(chunk); }
  bool shared() const { return chunks() < 2 * threads; }
  // A chunk lies as (depth / BLOCK, rows and one more, BLOCK); the one more keeps lines of the cache apart.
  int64_t line(int64_t chunk) const { return (count(chunk) + 1) * BLOCK; }
  int64_t chunk_size() const { return (parts_of(rows(), chunks()) + 1) * depth(); }
  int64_t room_size() const { return chunk_size() * (shared() ? 1 : threads); }

  // Some rows of a chunk, from its first one counted.
  void fill(int64_t chunk, Half* room, int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = first(chunk) + i;
      const int64_t top = row / across * stride - padding, left = row % across * stride - padding;
      Half* to = room + i * BLOCK;
      for (int64_t tap = 0; tap < side * side; ++tap) {
        const int64_t y = top + tap / side, z = left + tap % side;
        const float* from = x + (y * width + z) * inputs;
        const bool inside = y >= 0 && y < height && z >= 0 && z < width;
        for (int64_t c = 0; c < inputs; c += BLOCK, to += line(chunk))
          for (int64_t j = 0; j < BLOCK; j += LANES) store(to + j, inside ? load(from + c + j) * SCALE : Vec{});
      }
    }
  }

  // A chunk by PANEL outputs from `o` on, over a section of the depth.
  void product(int64_t chunk, const Half* a, int64_t section, int64_t o) const {
    const int64_t blocks = depth() / BLOCK;
    const int64_t from = section * blocks / sections(), to = (section + 1) * blocks / sections();
    const int64_t groups = parts_of(count(chunk), ROWS);
    const Half* b = weights + o * depth() + from * BLOCK * PANEL;
    a += from * line(chunk);
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t begin = group * count(chunk) / groups, end = (group + 1) * count(chunk) / groups;
      float sums[ROWS * PANEL];
      panel_of<Half>(end - begin)(a + begin * BLOCK, to - from, line(chunk), b, sums, PANEL);
      for (int64_t row = begin; row < end; ++row)
        for (int64_t c = 0; c < PANEL; c += LANES) {
          const int64_t at = (first(chunk) + row) * outputs + o + c;
          Vec v = load(sums + (row - begin) * PANEL + c) * (1 / SCALE);
          if (section) v += load(out + at);
          if (!section && bias) v += load(bias + o + c);
          store(out + at, v);
        }
    }
  }

  void products(int64_t chunk, const Half* a, int64_t begin, int64_t end) const {
    for (int64_t section = 0; section < sections(); ++section)
      for (int64_t panel = begin; panel < end; ++panel) product(chunk, a, section, panel * PANEL);
  }

  void run(Half* room) const {
    const int64_t panels = outputs / PANEL;
    if (shared()) {
      for (int64_t chunk = 0; chunk < chunks(); ++chunk) {
        parallel_for(threads, count(chunk), 8, [&](int64_t a, int64_t b, int64_t) { fill(chunk, room, a, b); });
        parallel_for(threads, panels, 1, [&](int64_t a, int64_t b, int64_t) { products(chunk, room, a, b); });
      }
      return;
    }
    parallel_for(threads, chunks(), 1, [&](int64_t begin, int64_t end, int64_t rank) {
      Half* own = room + rank * chunk_size();
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        fill(chunk, own, 0, count(chunk));
        products(chunk, own, 0, panels);
      }
    });
  }
};

#endif
