// What the engine `native` calls. Float32 unless it says Half; channels last.

#include "attend.h"
#include "multiply.h"
#include "winograd.h"

namespace {

// The nine weights of some neighbouring outputs to PLACES of them.
template <class Scheme>
void transform(const Vec (&w)[9], Vec (&k)[(Scheme::TILE + 2) * (Scheme::TILE + 2)]) {
  constexpr int WINDOW = Scheme::TILE + 2;
  Vec t[3 * WINDOW];
  for (int z = 0; z < 3; ++z) Scheme::kernel(w + z, 3, t + z, 3);
  for (int y = 0; y < WINDOW; ++y) Scheme::kernel(t + 3 * y, 1, k + y * WINDOW, 1);
}

}  // namespace

extern "C" {

// 1 where half precision is multiplied as such.
int64_t osdface_half() {
#ifdef OSDFACE_HALF
  return 1;
#else
  return 0;
#endif
}

int64_t osdface_places() { return Winograd<Six>::PLACES; }

// Floats that osdface_convolve needs as workspace.
int64_t osdface_room(const Winograd<Six>* c) { return c->floats(); }

void osdface_convolve(const Winograd<Six>* c, float* workspace) { c->run(workspace); }

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
        Vec w[9], k[Winograd<Six>::PLACES];
        for (int i = 0; i < 9; ++i) w[i] = load(taps + (i * inputs + c) * outputs + o);
        transform<Six>(w, k);
        float* to = kernel + (o / PANEL * inputs + c) * PANEL + o % PANEL;
        for (int i = 0; i < Winograd<Six>::PLACES; ++i) store(to + i * inputs * outputs, k[i]);
      }
  });
}

#ifdef OSDFACE_HALF
int64_t osdface_half_places() { return Winograd<Four>::PLACES; }

// Floats that osdface_half_convolve needs as workspace.
int64_t osdface_half_room(const Winograd<Four>* c) { return c->floats(); }

void osdface_half_convolve(const Winograd<Four>* c, float* workspace) { c->run(workspace); }

// Half: (outputs / PANEL, 9, inputs / 2, PANEL, 2) to (PLACES, outputs / PANEL, inputs / 2, PANEL, 2).
void osdface_half_kernel(const Half* taps, Half* kernel, int64_t inputs, int64_t outputs) {
  const int64_t size = inputs * PANEL;
  at::parallel_for(0, inputs * outputs / LANES, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * LANES; i < end * LANES; i += LANES) {
      Vec w[9], k[Winograd<Four>::PLACES];
      for (int tap = 0; tap < 9; ++tap) w[tap] = load(taps + (i / size * 9 + tap) * size + i % size);
      transform<Four>(w, k);
      for (int place = 0; place < Winograd<Four>::PLACES; ++place)
        store(kernel + place * inputs * outputs + i, k[place]);
    }
  });
}

// Half values that osdface_half_multiply needs as workspace.
int64_t osdface_half_multiply_room(const Multiplication* m) { return m->room_size(); }

void osdface_half_multiply(const Multiplication* m, Half* workspace) { m->run(workspace); }

// Floats that osdface_half_attend needs as workspace.
int64_t osdface_half_attend_room(const Attention* a) { return a->room_size(); }

void osdface_half_attend(const Attention* a, float* workspace) { a->run(workspace); }
#endif
}
