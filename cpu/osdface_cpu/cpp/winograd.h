// 3x3 convolutions by Winograd's minimal filtering (Lavin & Gray, arXiv 1509.09308, 4.1-4.3).
// A thread takes a part of the picture at a time, small enough for its cache: the padded input with what comes
// before the convolution, windows, products, blocks with what comes after. Where a picture has too few parts,
// the threads share each step of one. Channels last.

#pragma once

#include <algorithm>
#include <cstring>

#include "product.h"

// F(6x6, 3x3) for the points 0, 1, -1, 2, -2, 1/2, -1/2, infinity: 64 products per 36 outputs instead of 324.
// Each function is a transform along one axis; `step` and `out` are distances between elements.
struct Six {
  using Value = float;
  static constexpr int TILE = 6;
  static constexpr float SCALE = 1.0f;  // of the input

  static void window(const Vec* d, int step, Vec* o, int out) {
    const Vec b = d[step], c = d[2 * step], e = d[3 * step], f = d[4 * step], g = d[5 * step], h = d[6 * step];
    o[0] = (d[0] - h) + 5.25f * (f - c);
    const Vec p = c + h - 4.25f * f, q = b + g - 4.25f * e;
    o[out] = p + q;
    o[2 * out] = p - q;
    const Vec s = h + 0.25f * c - 1.25f * f, t = 0.5f * b - 2.5f * e + 2.0f * g;
    o[3 * out] = s + t;
    o[4 * out] = s - t;
    const Vec u = h + 4.0f * c - 5.0f * f, v = 2.0f * b - 2.5f * e + 0.5f * g;
    o[5 * out] = u + v;
    o[6 * out] = u - v;
    o[7 * out] = (d[7 * step] - b) + 5.25f * (e - g);
  }

  static void kernel(const Vec* w, int step, Vec* o, int out) {
    const Vec a = w[0], b = w[step], c = w[2 * step];
    o[0] = a;
    o[out] = (a + b + c) * (-2.0f / 9);
    o[2 * out] = (a - b + c) * (-2.0f / 9);
    o[3 * out] = (a + 2.0f * b + 4.0f * c) * (1.0f / 90);
    o[4 * out] = (a - 2.0f * b + 4.0f * c) * (1.0f / 90);
    o[5 * out] = (4.0f * a + 2.0f * b + c) * (8.0f / 45);
    o[6 * out] = (4.0f * a - 2.0f * b + c) * (8.0f / 45);
    o[7 * out] = c;
  }

  static void block(const Vec* m, int step, Vec* o, int out) {
    const Vec p = m[step] + m[2 * step], q = m[step] - m[2 * step], r = m[3 * step] + m[4 * step],
              s = m[3 * step] - m[4 * step], t = m[5 * step] + m[6 * step], u = m[5 * step] - m[6 * step];
    o[0] = m[0] + p + r + t;
    o[out] = q + 2.0f * s + 0.5f * u;
    o[2 * out] = p + 4.0f * r + 0.25f * t;
    o[3 * out] = q + 8.0f * s + 0.125f * u;
    o[4 * out] = p + 16.0f * r + 0.0625f * t;
    o[5 * out] = q + 32.0f * s + 0.03125f * u + m[7 * step];
  }
};

#ifdef OSDFACE_HALF
// F(4x4, 3x3) in half precision for the points 0, 3/4, -3/4, 3/2, -3/2, infinity: 36 products per 16 outputs
// instead of 144. Near 1 on both sides, these points lose half as much to rounding as 1 and 2 do (Barabasz et
// al., arXiv 1803.10986, on the choice of points).
struct Four {
  using Value = Half;
  static constexpr int TILE = 4;
  static constexpr float SCALE = 1.0f / 64;  // windows enlarge by 32.4 at most: up to 129,000 stays finite

  static constexpr float A = 0.75f, B = 1.5f, AA = A * A, BB = B * B;

  static void window(const Vec* d, int step, Vec* o, int out) {
    const Vec b = d[step], c = d[2 * step], e = d[3 * step], f = d[4 * step], g = d[5 * step];
    o[0] = AA * BB * d[0] - (AA + BB) * c + f;
    const Vec p = f - BB * c, q = A * (e - BB * b);
    o[out] = p + q;
    o[2 * out] = p - q;
    const Vec s = f - AA * c, t = B * (e - AA * b);
    o[3 * out] = s + t;
    o[4 * out] = s - t;
    o[5 * out] = AA * BB * b - (AA + BB) * e + g;
  }

  static void kernel(const Vec* w, int step, Vec* o, int out) {
    const Vec a = w[0], b = w[step], c = w[2 * step];
    constexpr float NONE = 1 / (AA * BB), FIRST = 1 / (2 * AA * (AA - BB)), SECOND = 1 / (2 * BB * (BB - AA));
    o[0] = a * NONE;
    o[out] = (a + A * b + AA * c) * FIRST;
    o[2 * out] = (a - A * b + AA * c) * FIRST;
    o[3 * out] = (a + B * b + BB * c) * SECOND;
    o[4 * out] = (a - B * b + BB * c) * SECOND;
    o[5 * out] = c;
  }

  static void block(const Vec* m, int step, Vec* o, int out) {
    const Vec p = m[step] + m[2 * step], q = m[step] - m[2 * step], r = m[3 * step] + m[4 * step],
              s = m[3 * step] - m[4 * step];
    o[0] = m[0] + p + r;
    o[out] = A * q + B * s;
    o[2 * out] = AA * p + BB * r;
    o[3 * out] = A * AA * q + B * BB * s + m[5 * step];
  }
};
#endif

// A part of the output: its first row and column [px], its extent in tiles.
struct Part {
  int64_t top, left, down, across;
  int64_t tiles() const { return down * across; }
};

struct Convolution {
  const float* x;
  const void* kernel;
  const float *bias, *residual, *scale, *shift;  // the last three may be null
  float* out;
  int64_t height, width, inputs, outputs;
  int64_t silu, relu, twice, threads;
};

template <class Scheme>
struct Winograd : Convolution {
  using Value = typename Scheme::Value;
  static constexpr int TILE = Scheme::TILE, WINDOW = TILE + 2, PLACES = WINDOW * WINDOW;

  struct Room {
    Value *stripe, *spread;
    float* product;
  };

  int64_t down() const { return parts_of(height, TILE); }
  int64_t across() const { return parts_of(width, TILE); }
  // Narrow layers keep all they touch in the cache; wide ones read their weights less often.
  int64_t rows() const { return parts_of(down(), inputs <= 128 ? 4 : 7); }
  int64_t columns() const { return parts_of(across(), inputs <= 128 ? 7 : 8); }
  int64_t parts() const { return rows() * columns(); }
  bool shared() const { return parts() < 2 * threads; }

  Part largest() const { return {0, 0, parts_of(down(), rows()), parts_of(across(), columns())}; }
  Part part(int64_t index) const {
    const int64_t y = index / columns(), x = index % columns();
    const int64_t top = y * down() / rows(), left = x * across() / columns();
    return {top * TILE, left * TILE, (y + 1) * down() / rows() - top, (x + 1) * across() / columns() - left};
  }
  int64_t stripe_size() const {
    const Part most = largest();
    return (most.down * TILE + 2) * (most.across * TILE + 2) * inputs + SKEW;
  }
  int64_t spread_plane() const { return largest().tiles() * inputs + SKEW; }
  int64_t product_plane() const { return largest().tiles() * outputs + SKEW; }
  // Floats.
  int64_t values() const { return (stripe_size() + PLACES * spread_plane()) * sizeof(Value) / sizeof(float); }
  int64_t room_size() const { return values() + PLACES * product_plane(); }
  int64_t floats() const { return room_size() * (shared() ? 1 : threads); }
  Room room(float* start) const {
    Value* first = reinterpret_cast<Value*>(start);
    return {first, first + stripe_size(), start + values()};
  }

  void pixel(const float* from, Value* to) const {
    for (int64_t c = 0; c < inputs; c += LANES) {
      Vec v = load(from + c);
      if (scale) v = v * load(scale + c) + load(shift + c);
      store(to + c, (silu ? ::silu(v) : v) * Scheme::SCALE);
    }
  }

  // Rows of the part's padded input: (TILE * down + 2, TILE * across + 2, inputs).
  void fill(const Part& part, const Room& room, int64_t begin, int64_t end) const {
    const int64_t wide = part.across * TILE + 2, factor = twice ? 2 : 1, line = width / factor;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t y = part.top - 1 + i;
      Value* to = room.stripe + i * wide * inputs;
      for (int64_t j = 0; j < wide; ++j, to += inputs) {
        const int64_t z = part.left - 1 + j;
        if (y < 0 || y >= height || z < 0 || z >= width)
          std::memset(to, 0, inputs * sizeof(Value));
        else
          pixel(x + (y / factor * line + z / factor) * inputs, to);
      }
    }
  }

  // Tiles into (PLACES, inputs / BLOCK, tiles, BLOCK).
  void windows(const Part& part, const Room& room, int64_t begin, int64_t end) const {
    const int64_t row = (part.across * TILE + 2) * inputs, plane = spread_plane();
    for (int64_t i = begin; i < end; ++i)
      for (int64_t c = 0; c < inputs; c += LANES) {
        const Value* from = room.stripe + i / part.across * TILE * row + i % part.across * TILE * inputs + c;
        Value* to = room.spread + (c / BLOCK * part.tiles() + i) * BLOCK + c % BLOCK;
        Vec d[PLACES], t[PLACES], o[WINDOW];
        for (int y = 0; y < WINDOW; ++y)
          for (int z = 0; z < WINDOW; ++z) d[y * WINDOW + z] = load(from + y * row + z * inputs);
        for (int z = 0; z < WINDOW; ++z) Scheme::window(d + z, WINDOW, t + z, WINDOW);
        for (int y = 0; y < WINDOW; ++y) {
          Scheme::window(t + y * WINDOW, 1, o, 1);
          for (int z = 0; z < WINDOW; ++z) store(to + (y * WINDOW + z) * plane, o[z]);
        }
      }
  }

  // Places of (PLACES, tiles, outputs): each a product of (tiles, inputs) and (inputs, outputs).
  void products(const Part& part, const Room& room, int64_t begin, int64_t end) const {
    const int64_t tiles = part.tiles(), groups = parts_of(tiles, ROWS);
    for (int64_t place = begin; place < end; ++place) {
      const Value* a = room.spread + place * spread_plane();
      const Value* b = static_cast<const Value*>(kernel) + place * inputs * outputs;
      float* m = room.product + place * product_plane();
      for (int64_t o = 0; o < outputs; o += PANEL)
        for (int64_t group = 0; group < groups; ++group) {
          const int64_t first = group * tiles / groups, count = (group + 1) * tiles / groups - first;
          panel_of<Value>(count)(a + first * BLOCK, inputs / BLOCK, tiles * BLOCK, b + o * inputs,
                                 m + first * outputs + o, outputs);
        }
    }
  }

  // Tiles into the output.
  void blocks(const Part& part, const Room& room, int64_t begin, int64_t end) const {
    const int64_t plane = product_plane();
    for (int64_t i = begin; i < end; ++i) {
      const int64_t top = part.top + i / part.across * TILE, left = part.left + i % part.across * TILE;
      const int64_t tall = std::min<int64_t>(TILE, height - top), wide = std::min<int64_t>(TILE, width - left);
      for (int64_t c = 0; c < outputs; c += LANES) {
        Vec m[PLACES], t[TILE * WINDOW], o[TILE];
        for (int p = 0; p < PLACES; ++p) m[p] = load(room.product + p * plane + i * outputs + c);
        for (int z = 0; z < WINDOW; ++z) Scheme::block(m + z, WINDOW, t + z, WINDOW);
        const Vec own = load(bias + c);
        for (int64_t y = 0; y < tall; ++y) {
          Scheme::block(t + y * WINDOW, 1, o, 1);
          for (int64_t z = 0; z < wide; ++z) {
            const int64_t at = ((top + y) * width + left + z) * outputs + c;
            Vec v = o[z] * (1.0f / Scheme::SCALE) + own;
            if (residual) v += load(residual + at);
            store(out + at, relu ? (v > 0.0f ? v : Vec{}) : v);
          }
        }
      }
    }
  }

  void run(float* workspace) const {
    if (shared()) {
      const Room own = room(workspace);
      for (int64_t i = 0; i < parts(); ++i) {
        const Part one = part(i);
        using Step = void (Winograd::*)(const Part&, const Room&, int64_t, int64_t) const;
        const std::pair<Step, int64_t> steps[] = {{&Winograd::fill, one.down * TILE + 2},
                                                  {&Winograd::windows, one.tiles()},
                                                  {&Winograd::products, PLACES},
                                                  {&Winograd::blocks, one.tiles()}};
        for (const auto& [step, count] : steps)
          parallel_for(threads, count, 1, [&](int64_t a, int64_t b, int64_t) { (this->*step)(one, own, a, b); });
      }
      return;
    }
    parallel_for(threads, parts(), 1, [&](int64_t begin, int64_t end, int64_t rank) {
      const Room own = room(workspace + rank * room_size());
      for (int64_t i = begin; i < end; ++i) {
        const Part one = part(i);
        fill(one, own, 0, one.down * TILE + 2);
        windows(one, own, 0, one.tiles());
        products(one, own, 0, PLACES);
        blocks(one, own, 0, one.tiles());
      }
    });
  }
};
