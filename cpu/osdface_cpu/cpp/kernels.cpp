// What Python calls. Float32 unless it says Half; channels last. Compiled once per instruction set.

#if defined(__x86_64__)
#include <cpuid.h>
#endif

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

#pragma GCC visibility push(default)
extern "C" {

// Which of the libraries this CPU runs: 0 SSE4.2 or another architecture, 1 AVX2, 2 AVX-512, 3 with its FP16.
int64_t osdface_level() {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi2"))
    return 0;
  for (bool has : {__builtin_cpu_supports("avx512f") != 0, __builtin_cpu_supports("avx512bw") != 0,
                   __builtin_cpu_supports("avx512cd") != 0, __builtin_cpu_supports("avx512dq") != 0,
                   __builtin_cpu_supports("avx512vl") != 0})
    if (!has) return 1;
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool known = __get_cpuid_count(7, 0, &a, &b, &c, &d);
  return known && (d >> 23 & 1) ? 3 : 2;  // AVX512-FP16 (Intel SDM 2A, CPUID)
#else
  return 0;
#endif
}

// Run loops through OpenMP's GOMP_parallel at that address; null for threads of their own.
void osdface_use_fork(Fork fork) { fork_team = fork ? fork : spawn; }

int64_t osdface_places() { return Winograd<Six>::PLACES; }

// Floats that osdface_convolve needs as workspace.
int64_t osdface_room(const Winograd<Six>* c) { return c->floats(); }

void osdface_convolve(const Winograd<Six>* c, float* workspace) { c->run(workspace); }

// Sums and sums of squares of each channel over `cells` pixels at a time: (pixels, channels) to
// (pixels / cells rounded up, 2, channels).
void osdface_sums(const float* x, double* sums, int64_t pixels, int64_t channels, int64_t cells,
                  int64_t threads) {
  parallel_for(threads, parts_of(pixels, cells), 1, [&](int64_t begin, int64_t end, int64_t) {
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
void osdface_kernel(const float* taps, float* kernel, int64_t inputs, int64_t outputs, int64_t threads) {
  parallel_for(threads, inputs, 1, [&](int64_t begin, int64_t end, int64_t) {
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
void osdface_half_kernel(const Half* taps, Half* kernel, int64_t inputs, int64_t outputs, int64_t threads) {
  const int64_t size = inputs * PANEL;
  parallel_for(threads, inputs * outputs / LANES, 64, [&](int64_t begin, int64_t end, int64_t) {
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
#pragma GCC visibility pop
