// 3x3 convolutions by Winograd's minimal filtering, F(6x6, 3x3): 64 products per 36 outputs instead of 324
// (Lavin & Gray, arXiv 1509.09308, 4.1-4.3, for the points 0, 1, -1, 2, -2, 1/2, -1/2, infinity).
// A thread takes a part of the picture at a time, small enough for its cache: the padded input with what comes
// before the convolution, windows, products, blocks with what comes after. Where a picture has too few parts,
// the threads share each step of one. Float32, channels last. Vectors are those of GCC and Clang.

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 14;  // floats of a vector; tiles of a product whose sums stay in registers
#elif defined(__AVX__)
constexpr int LANES = 8, ROWS = 6;
#else
constexpr int LANES = 4, ROWS = 6;
#endif
constexpr int PANEL = 2 * LANES;  // outputs computed together
constexpr int BLOCK = 32;         // input channels lying together
constexpr int TILE = 6, WINDOW = TILE + 2, PLACES = WINDOW * WINDOW;
constexpr int64_t SKEW = 16;  // floats between planes: without them all planes share a few lines of the cache
constexpr int AHEAD = 16;     // steps by which weights are fetched early

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

// The three transforms along one axis; `step` and `out` are distances between elements.
inline void window_axis(const Vec* d, int step, Vec* o, int out) {
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

inline void kernel_axis(const Vec* w, int step, Vec* o, int out) {
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

inline void block_axis(const Vec* m, int step, Vec* o, int out) {
  const Vec p = m[step] + m[2 * step], q = m[step] - m[2 * step], r = m[3 * step] + m[4 * step],
            s = m[3 * step] - m[4 * step], t = m[5 * step] + m[6 * step], u = m[5 * step] - m[6 * step];
  o[0] = m[0] + p + r + t;
  o[out] = q + 2.0f * s + 0.5f * u;
  o[2 * out] = p + 4.0f * r + 0.25f * t;
  o[3 * out] = q + 8.0f * s + 0.125f * u;
  o[4 * out] = p + 16.0f * r + 0.0625f * t;
  o[5 * out] = q + 32.0f * s + 0.03125f * u + m[7 * step];
}

// R tiles by PANEL outputs at one place: sums over all input channels, held in registers.
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

using Panel = void (*)(const float*, int64_t, int64_t, const float*, float*, int64_t);

template <int... N>
Panel of_tiles(int64_t count, std::integer_sequence<int, N...>) {
  static constexpr Panel sizes[] = {panel<N + 1>...};
  return sizes[count - 1];
}

int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

// A part of the output: its first row and column [px], its extent in tiles.
struct Part {
  int64_t top, left, down, across;
  int64_t tiles() const { return down * across; }
};

struct Room {
  float *stripe, *spread, *product;
};

struct Convolution {
  const float *x, *kernel, *bias, *residual, *scale, *shift;  // the last three may be null
  float* out;
  int64_t height, width, inputs, outputs;
  int64_t silu, relu, twice;

  int64_t down() const { return parts_of(height, TILE); }
  int64_t across() const { return parts_of(width, TILE); }
  // Narrow layers keep all they touch in the cache; wide ones read their weights less often.
  int64_t rows() const { return parts_of(down(), inputs <= 128 ? 4 : 7); }
  int64_t columns() const { return parts_of(across(), inputs <= 128 ? 7 : 8); }
  int64_t parts() const { return rows() * columns(); }
  bool shared() const { return parts() < 2 * at::get_num_threads(); }

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
  int64_t room_size() const { return stripe_size() + PLACES * (spread_plane() + product_plane()); }
  Room room(float* start) const {
    return {start, start + stripe_size(), start + stripe_size() + PLACES * spread_plane()};
  }

  void pixel(const float* from, float* to) const {
    if (!scale) {
      std::memcpy(to, from, inputs * sizeof(float));
      return;
    }
    for (int64_t c = 0; c < inputs; c += LANES) {
      const Vec v = load(from + c) * load(scale + c) + load(shift + c);
      store(to + c, silu ? v / (1.0f + exponential(-v)) : v);
    }
  }

  // Rows of the part's padded input: (TILE * down + 2, TILE * across + 2, inputs).
  void fill(const Part& part, const Room& room, int64_t begin, int64_t end) const {
    const int64_t wide = part.across * TILE + 2, factor = twice ? 2 : 1, line = width / factor;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t y = part.top - 1 + i;
      float* to = room.stripe + i * wide * inputs;
      for (int64_t j = 0; j < wide; ++j, to += inputs) {
        const int64_t z = part.left - 1 + j;
        if (y < 0 || y >= height || z < 0 || z >= width)
          std::memset(to, 0, inputs * sizeof(float));
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
        const float* from = room.stripe + i / part.across * TILE * row + i % part.across * TILE * inputs + c;
        float* to = room.spread + (c / BLOCK * part.tiles() + i) * BLOCK + c % BLOCK;
        Vec d[PLACES], t[PLACES], o[WINDOW];
        for (int y = 0; y < WINDOW; ++y)
          for (int z = 0; z < WINDOW; ++z) d[y * WINDOW + z] = load(from + y * row + z * inputs);
        for (int z = 0; z < WINDOW; ++z) window_axis(d + z, WINDOW, t + z, WINDOW);
        for (int y = 0; y < WINDOW; ++y) {
          window_axis(t + y * WINDOW, 1, o, 1);
          for (int z = 0; z < WINDOW; ++z) store(to + (y * WINDOW + z) * plane, o[z]);
        }
      }
  }

  // Places of (PLACES, tiles, outputs): each a product of (tiles, inputs) and (inputs, outputs).
  void products(const Part& part, const Room& room, int64_t begin, int64_t end) const {
    const int64_t tiles = part.tiles(), groups = parts_of(tiles, ROWS);
    for (int64_t place = begin; place < end; ++place) {
      const float *a = room.spread + place * spread_plane(), *b = kernel + place * inputs * outputs;
      float* m = room.product + place * product_plane();
      for (int64_t o = 0; o < outputs; o += PANEL)
        for (int64_t group = 0; group < groups; ++group) {
          const int64_t first = group * tiles / groups, count = (group + 1) * tiles / groups - first;
          of_tiles(count, std::make_integer_sequence<int, ROWS>())(
              a + first * BLOCK, inputs / BLOCK, tiles * BLOCK, b + o * inputs, m + first * outputs + o, outputs);
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
        for (int z = 0; z < WINDOW; ++z) block_axis(m + z, WINDOW, t + z, WINDOW);
        const Vec own = load(bias + c);
        for (int64_t y = 0; y < tall; ++y) {
          block_axis(t + y * WINDOW, 1, o, 1);
          for (int64_t z = 0; z < wide; ++z) {
            const int64_t at = ((top + y) * width + left + z) * outputs + c;
            Vec v = o[z] + own;
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
        using Step = void (Convolution::*)(const Part&, const Room&, int64_t, int64_t) const;
        const std::pair<Step, int64_t> steps[] = {{&Convolution::fill, one.down * TILE + 2},
                                                  {&Convolution::windows, one.tiles()},
                                                  {&Convolution::products, PLACES},
                                                  {&Convolution::blocks, one.tiles()}};
        for (const auto& [step, count] : steps)
          at::parallel_for(0, count, 1, [&](int64_t a, int64_t b) { (this->*step)(one, own, a, b); });
      }
      return;
    }
    at::parallel_for(0, parts(), 1, [&](int64_t begin, int64_t end) {
      const Room own = room(workspace + at::get_thread_num() * room_size());
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

}  // namespace

extern "C" {

int64_t osdface_places() { return PLACES; }

// Floats that osdface_convolve needs as workspace.
int64_t osdface_room(const Convolution* c) { return c->room_size() * (c->shared() ? 1 : at::get_num_threads()); }

void osdface_convolve(const Convolution* c, float* workspace) { c->run(workspace); }

// Sums and sums of squares of each channel over `cells` pixels at a time: (pixels, channels) to
// (pixels / cells rounded up, 2, channels).
void osdface_sums(const float* x, double* sums, int64_t pixels, int64_t channels, int64_t cells) {
  at::parallel_for(0, parts_of(pixels, cells), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t c = 0; c < channels; c += PANEL) {
        Vec sum[2] = {}, square[2] = {};
        for (int64_t p = i * cells; p < std::min(pixels, (i + 1) * cells); ++p)
          for (int half = 0; half < 2; ++half) {
            const Vec v = load(x + p * channels + c + half * LANES);
            sum[half] += v;
            square[half] += v * v;
          }
        double* to = sums + 2 * i * channels + c;
        for (int j = 0; j < PANEL; ++j) {
          to[j] = sum[j / LANES][j % LANES];
          to[channels + j] = square[j / LANES][j % LANES];
        }
      }
  });
}

// (9, inputs, outputs) to (PLACES, outputs / PANEL, inputs, PANEL).
void osdface_kernel(const float* taps, float* kernel, int64_t inputs, int64_t outputs) {
  at::parallel_for(0, inputs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c)
      for (int64_t o = 0; o < outputs; o += LANES) {
        Vec w[9], t[3 * WINDOW], k[WINDOW];
        for (int i = 0; i < 9; ++i) w[i] = load(taps + (i * inputs + c) * outputs + o);
        for (int z = 0; z < 3; ++z) kernel_axis(w + z, 3, t + z, 3);
        float* to = kernel + (o / PANEL * inputs + c) * PANEL + o % PANEL;
        for (int y = 0; y < WINDOW; ++y) {
          kernel_axis(t + 3 * y, 1, k, 1);
          for (int z = 0; z < WINDOW; ++z) store(to + (y * WINDOW + z) * inputs * outputs, k[z]);
        }
      }
  });
}
}
