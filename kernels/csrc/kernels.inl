// SPDX-License-Identifier: Apache-2.0
// The row kernels, in an order of arithmetic that the reference and the Triton kernels share.
//
// This file is included once per instruction set, inside a namespace of its own. Its types are the
// generic vectors of GCC and Clang, so the same text is SSE2, AVX2 or NEON; the few intrinsics stand
// where the compiler's own choice was measured to be slow. Two rules keep the codes equal everywhere:
// no multiplication is contracted with an addition (-ffp-contract=off), and a sum over columns, whose
// order would follow the vector width, is taken in double precision and rounded once.

#include "vectors.inl"

// Random accesses are hidden by asking for rows this many ids ahead. On a Zen 3 core, rows of 64
// bytes in a table of 64 MB: without it the lookup took 2.3 times as long and the update 1.3 times,
// and 8, 16 and 32 were equal.
constexpr int64_t kAhead = 16;

inline int64_t row_bytes(int64_t dim, int bits) { return (dim * bits + 7) / 8; }

// Always inlined: GCC takes a function that only prefetches for one without effect, and drops its calls.
[[gnu::always_inline]] inline void prefetch(const void* address, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char*)address + at);
}

template <int Bits>
inline f32x8 dequantise(const uint8_t* codes, float step, int64_t count) {
  return __builtin_convertvector(load_codes<Bits>(codes, count), f32x8) * step;
}

// ---- lookup ----

// Sums `Vectors` times eight columns of the ids [first, last) in registers; of the last vector the
// table may have fewer. The sums of a loop that is not unrolled would be kept in memory.
template <int Bits, int Vectors, bool Whole>
void pool_columns(const LookupArguments& a, const Table& table, int64_t first, int64_t last,
                  int64_t end, int64_t column, int64_t width, float scale, int64_t out) {
  const int64_t stride = row_bytes(table.dim, Bits), blocks = table.dim / table.block;
  const uint8_t* codes = a.codes + table.code_offset + column / 8 * Bits;
  const float* step = a.step + table.step_offset + column / table.block;
  const int64_t* ids = a.ids;
  const float* weights = a.weights;
  const int64_t rest = Whole ? 8 : width - 8 * (Vectors - 1);
  f32x8 total[Vectors];
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v) total[v] = splat(0.0f);
  for (int64_t i = first; i < last; ++i) {
    if (i + kAhead < end) {
      const int64_t ahead = ids[i + kAhead];
      prefetch(codes + ahead * stride, Vectors * Bits);
      __builtin_prefetch(step + ahead * blocks);
    }
    const int64_t row = ids[i];
    const float factor = weights ? weights[i] * step[row * blocks] : step[row * blocks];
    const uint8_t* from = codes + row * stride;
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v)
      total[v] += dequantise<Bits>(from + v * Bits, factor, v + 1 < Vectors ? 8 : rest);
  }
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v)
    store_output(a.output_type, a.output, out + 8 * v, total[v] * scale,
                 v + 1 < Vectors ? 8 : rest);
}

// Whether all ids [first, last) are inside the table.
inline bool check(const LookupArguments& a, const Table& table, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    if ((uint64_t)a.ids[i] >= (uint64_t)table.rows) {
      __atomic_store_n(&a.invalid, i, __ATOMIC_RELAXED);
      return false;
    }
  }
  return true;
}

template <int Bits>
void pool(const LookupArguments& a, const Table& table, int64_t first, int64_t last, int64_t end,
          int64_t out) {
  if (!check(a, table, first, last)) return;
  const float scale = a.mean && last > first ? 1.0f / (float)(last - first) : 1.0f;
  for (int64_t block = 0; block < table.dim; block += table.block) {
    for (int64_t column = block; column < block + table.block; column += 64) {
      const int64_t rest = block + table.block - column;
      const int64_t width = rest < 64 ? rest : 64;
      switch ((width + 7) / 8) {
#define DELTAREC_CASE(N)                                                                          \
  case N:                                                                                         \
    if (width == 8 * N)                                                                           \
      pool_columns<Bits, N, true>(a, table, first, last, end, column, width, scale, out + column); \
    else                                                                                          \
      pool_columns<Bits, N, false>(a, table, first, last, end, column, width, scale, out + column); \
    break;
        DELTAREC_CASE(1)
        DELTAREC_CASE(2)
        DELTAREC_CASE(3)
        DELTAREC_CASE(4)
        DELTAREC_CASE(5)
        DELTAREC_CASE(6)
        DELTAREC_CASE(7)
        DELTAREC_CASE(8)
#undef DELTAREC_CASE
      }
    }
  }
}

template <int Bits>
void lookup_range(const LookupArguments& a, int64_t first, int64_t last) {
  if (a.offsets == nullptr) {
    int64_t feature = 0;
    for (int64_t i = first; i < last; ++i) {
      while (i >= a.feature_ends[feature]) ++feature;
      pool<Bits>(a, a.tables[a.features[feature].table], i, i + 1, a.feature_ends[feature],
                 i * a.columns);
    }
    return;
  }
  int64_t feature = first / a.batch, sample = first % a.batch;
  for (int64_t bag = first; bag < last; ++bag) {
    pool<Bits>(a, a.tables[a.features[feature].table], a.offsets[bag], a.offsets[bag + 1],
               a.feature_ends[feature], sample * a.columns + a.features[feature].column);
    if (++sample == a.batch) sample = 0, ++feature;
  }
}

void lookup(const LookupArguments& a, int bits, int64_t first, int64_t last) {
  if (bits == 8) lookup_range<8>(a, first, last);
  if (bits == 4) lookup_range<4>(a, first, last);
  if (bits == 2) lookup_range<2>(a, first, last);
}

// The gradient to the weight of an id: its row times the gradient of its bag.
template <int Bits>
void lookup_weights_range(const LookupArguments& a, const float* gradient, int64_t first,
                          int64_t last) {
  for (int64_t bag = first; bag < last; ++bag) {
    const Feature& feature = a.features[bag / a.batch];
    const Table& table = a.tables[feature.table];
    const float* from = gradient + (bag % a.batch) * a.columns + feature.column;
    const int64_t blocks = table.dim / table.block;
    if (!check(a, table, a.offsets[bag], a.offsets[bag + 1])) continue;
    for (int64_t i = a.offsets[bag]; i < a.offsets[bag + 1]; ++i) {
      const uint8_t* codes = a.codes + table.code_offset + a.ids[i] * row_bytes(table.dim, Bits);
      const float* step = a.step + table.step_offset + a.ids[i] * blocks;
      Products total;
      for (int64_t column = 0; column < table.dim; column += 8) {
        const int64_t count = table.dim - column;
        const f32x8 row =
            dequantise<Bits>(codes + column / 8 * Bits, step[column / table.block], count);
        total.add(row, load(from + column, count));
      }
      ((float*)a.output)[i] = (float)total.sum();
    }
  }
}

void lookup_weights(const LookupArguments& a, int bits, const float* gradient, int64_t first,
                    int64_t last) {
  if (bits == 8) lookup_weights_range<8>(a, gradient, first, last);
  if (bits == 4) lookup_weights_range<4>(a, gradient, first, last);
  if (bits == 2) lookup_weights_range<2>(a, gradient, first, last);
}

// ---- quantiser ----

inline f32x8 clip(f32x8 x, int bits) {
  const f32x8 low = splat(-(float)(1 << (bits - 1))), high = splat((float)((1 << (bits - 1)) - 1));
  x = x > low ? x : low;  // a NaN becomes the lowest code
  return x < high ? x : high;
}

inline f32x8 round_even(f32x8 x) {
  const f32x8 magic = splat(12582912.0f);  // 1.5 * 2^23: its last bit is worth one
  return (x + magic) - magic;
}

inline i32x8 inside(f32x8 s, int bits) {
  return (s > splat(-(float)(1 << (bits - 1)))) & (s < splat((float)((1 << (bits - 1)) - 1)));
}

// The fake quantiser's derivative to the step, by LSQ: a bound outside, round(s) - s inside.
inline f32x8 step_slope(f32x8 s, int bits) {
  const f32x8 clipped = clip(s, bits);
  return inside(s, bits) ? round_even(clipped) - clipped : clipped;
}

// ---- update ----

// Occurrences of a row are summed in blocks of this many, then the blocks: an order that a GPU can
// follow with a program per block, and that costs a CPU nothing.
constexpr int64_t kBlock = 256;

struct Row {
  const Table* table;
  uint8_t* codes;
  float* step;
  int64_t row_wise;  // offset of the row in row-wise state
  int64_t elements;  // offset of the row in element-wise state
};

// The functions of a row take its width as a template argument where it is a usual one: without that
// the update of 64 columns took 1.35 times as long. `Dim` 0 is any width, and any column block.
template <int Dim>
int64_t width_of(int64_t width) {
  return Dim ? Dim : width;
}

// Columns of a vector where `rest` are left; the usual widths are whole vectors.
template <int Dim>
int64_t lanes_of(int64_t rest) {
  return Dim ? 8 : rest;
}

template <int Dim>
inline Row locate(const UpdateArguments& a, const Table& table, int64_t row, int bits) {
  const int64_t local = row - table.first_row;
  const int64_t row_wise = table.step_offset + local * (Dim ? 1 : table.dim / table.block);
  return {&table, a.codes + table.code_offset + local * row_bytes(table.dim, bits),
          a.step + row_wise, row_wise, table.element_offset + local * table.dim};
}

[[gnu::always_inline]] inline void prefetch_row(const UpdateArguments& a, const Row& row, int bits) {
  prefetch(row.codes, row_bytes(row.table->dim, bits));
  __builtin_prefetch(row.step);
  if (a.step_moment1) __builtin_prefetch(a.step_moment1 + row.row_wise);
  if (a.step_moment2) __builtin_prefetch(a.step_moment2 + row.row_wise);
  if (a.phase == Phase::kStep) return;
  if (a.optimizer == Optimizer::kRowwiseAdagrad) __builtin_prefetch(a.moment1 + row.row_wise);
  if (a.optimizer == Optimizer::kRowwiseAdam) __builtin_prefetch(a.moment2 + row.row_wise);
  if (a.moment1 && a.optimizer != Optimizer::kRowwiseAdagrad)
    prefetch(a.moment1 + row.elements, 4 * row.table->dim);
  if (a.optimizer == Optimizer::kAdam) prefetch(a.moment2 + row.elements, 4 * row.table->dim);
}

// Sums the occurrences [first, last), up to 64 columns at a time in registers; `total` is padded with
// zeros to whole vectors.
template <int Dim>
void sum_occurrences(const UpdateArguments& a, int64_t first, int64_t last, int64_t width,
                     float* total) {
  constexpr int kVectors = Dim == 0 ? 1 : Dim < 64 ? Dim / 8 : 8;
  for (int64_t column = 0; column < width_of<Dim>(width); column += 8 * kVectors) {
    const int64_t count = lanes_of<Dim>(width - column);
    f32x8 sums[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[v] = splat(0.0f);
    for (int64_t at = first; at < last; ++at) {
      const float* from = a.gradient + a.places[at] + column;
      const float weight = a.weights ? a.weights[at] : 1.0f;
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const f32x8 part = load(from + 8 * v, count);
        sums[v] += a.weights ? part * weight : part;
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(total + column + 8 * v, sums[v]);
  }
}

// The sum of a row's occurrences; it may be the gradient itself where there is only one.
template <int Dim>
const float* sum_gradient(const UpdateArguments& a, int64_t run, int64_t width, float* total,
                          float* part) {
  const int64_t first = a.runs[run], last = a.runs[run + 1], end = a.runs[a.num_distinct];
  width = width_of<Dim>(width);
  for (int64_t at = first + kAhead; at < last + kAhead && at < end; ++at)
    prefetch(a.gradient + a.places[at], 4 * width);
  if (Dim && last == first + 1 && !a.weights) return a.gradient + a.places[first];
  sum_occurrences<Dim>(a, first, last < first + kBlock ? last : first + kBlock, width, total);
  for (int64_t block = first + kBlock; block < last; block += kBlock) {
    sum_occurrences<Dim>(a, block, last < block + kBlock ? last : block + kBlock, width, part);
    for (int64_t column = 0; column < width; column += 8)
      store(total + column, load(total + column) + load(part + column));
  }
  return total;
}

template <int Dim>
inline float mean_square(const float* gradient, int64_t width) {
  Products total;
  for (int64_t column = 0; column < width_of<Dim>(width); column += 8) {
    const f32x8 lanes = load(gradient + column, lanes_of<Dim>(width - column));
    total.add(lanes, lanes);
  }
  return (float)(total.sum() / (double)width_of<Dim>(width));
}

// One block of columns of one row: its weight after the optimiser's step.
template <int Bits, int Dim>
inline void optimise(const UpdateArguments& a, const Row& row, int64_t block, float step,
                     const float* gradient, const uint8_t* codes, float* weight) {
  const int64_t columns = width_of<Dim>(row.table->block), elements = row.elements + block * columns;
  const Rates& r = a.rates;
  float row_wise_root = 0.0f, row_wise_rate = 0.0f;
  if (a.optimizer == Optimizer::kRowwiseAdagrad) {
    float& state = a.moment1[row.row_wise + block];
    state = state + mean_square<Dim>(gradient, columns);
    row_wise_rate = r.learning_rate / (__builtin_sqrtf(state) + r.eps);
  } else if (a.optimizer == Optimizer::kRowwiseAdam) {
    float& state = a.moment2[row.row_wise + block];
    state = r.beta2 * state + r.rest2 * mean_square<Dim>(gradient, columns);
    row_wise_root = __builtin_sqrtf(state / r.correction2) + r.eps;
  }
  const auto each = [&](auto move) {
    for (int64_t column = 0; column < columns; column += 8) {
      const int64_t count = lanes_of<Dim>(columns - column);
      const f32x8 value = dequantise<Bits>(codes + column / 8 * Bits, step, count);
      store(weight + column, value - move(load(gradient + column, count), column, count), count);
    }
  };
  const auto momentum = [&](f32x8 g, int64_t column, int64_t count) {
    const f32x8 first = r.beta1 * load(a.moment1 + elements + column, count) + r.rest1 * g;
    store(a.moment1 + elements + column, first, count);
    return r.learning_rate * (first / r.correction1);
  };
  switch (a.optimizer) {
    case Optimizer::kNone:
      return each([](f32x8, int64_t, int64_t) { return splat(0.0f); });
    case Optimizer::kSgd:
      return each([&](f32x8 g, int64_t, int64_t) { return r.learning_rate * g; });
    case Optimizer::kRowwiseAdagrad:
      return each([&](f32x8 g, int64_t, int64_t) { return row_wise_rate * g; });
    case Optimizer::kAdagrad:
      return each([&](f32x8 g, int64_t column, int64_t count) {
        const f32x8 state = load(a.moment1 + elements + column, count) + g * g;
        store(a.moment1 + elements + column, state, count);
        return (r.learning_rate * g) / (square_root(state) + r.eps);
      });
    case Optimizer::kRowwiseAdam:
      return each([&](f32x8 g, int64_t column, int64_t count) {
        return momentum(g, column, count) / row_wise_root;
      });
    case Optimizer::kAdam:
      return each([&](f32x8 g, int64_t column, int64_t count) {
        const f32x8 second =
            r.beta2 * load(a.moment2 + elements + column, count) + r.rest2 * (g * g);
        store(a.moment2 + elements + column, second, count);
        return momentum(g, column, count) / (square_root(second / r.correction2) + r.eps);
      });
  }
}

// The step's own optimiser, on the LSQ gradient of one block; the step stays positive, also by a NaN.
template <int Dim>
float learn_step(const UpdateArguments& a, const Row& row, int64_t block, int bits, float step,
                 const float* gradient, const float* weight) {
  Products total;
  const int64_t columns = width_of<Dim>(row.table->block);
  for (int64_t column = 0; column < columns; column += 8) {
    const int64_t count = lanes_of<Dim>(columns - column);
    const f32x8 slope = step_slope(load(weight + column, count) / step, bits);
    total.add(load(gradient + column, count), slope);
  }
  const float scale = a.step_factor * a.gradient_scale[row.table - a.tables];
  const float g = scale * (float)total.sum();
  const Rates& r = a.step_rates;
  const int64_t at = row.row_wise + block;
  float move = r.learning_rate * g;
  if (a.step_optimizer == Optimizer::kAdagrad) {
    float& state = a.step_moment1[at];
    state = state + g * g;
    move = move / (__builtin_sqrtf(state) + r.eps);
  } else if (a.step_optimizer == Optimizer::kAdam) {
    float &first = a.step_moment1[at], &second = a.step_moment2[at];
    first = r.beta1 * first + r.rest1 * g;
    second = r.beta2 * second + r.rest2 * (g * g);
    move = (r.learning_rate * (first / r.correction1)) /
           (__builtin_sqrtf(second / r.correction2) + r.eps);
  }
  const float learned = step - move;
  return learned > 1e-8f ? learned : 1e-8f;
}

// Random numbers of as many rows as fill eight Philox calls, drawn ahead: a call gives eight columns.
struct Noise {
  uint16_t* halves;
  PhiloxKeys keys;
  int64_t first = 0, last = 0;  // rows held

  const uint16_t* row(const UpdateArguments& a, const Table& table, int64_t run, int64_t table_end) {
    const int64_t calls = (table.dim + 7) / 8;
    if (run < first || run >= last) {
      const int64_t many = calls < 8 ? 8 / calls : 1;
      first = run;
      last = run + many < table_end ? run + many : table_end;
      for (int64_t call = 0; call < (last - first) * calls; call += 8) fill(a, table, call, calls);
    }
    return halves + (run - first) * calls * 8;
  }

  void fill(const UpdateArguments& a, const Table& table, int64_t call, int64_t calls) const {
    u32x8 c0 = {0}, c1 = {0, 1, 2, 3, 4, 5, 6, 7};
    const uint32_t group = (uint32_t)(table.column_offset / 8 + call % calls);
    if (calls >= 8) {
      const uint64_t row = row_number(a, table, first);
      c0 += (uint32_t)row;
      c1 += (uint32_t)(row >> 32) << 16 | group;
    } else {
      for (int64_t i = 0; i < 8 && call + i < (last - first) * calls; ++i) {
        const uint64_t row = row_number(a, table, first + (call + i) / calls);
        c0[i] = (uint32_t)row;
        c1[i] = (uint32_t)(row >> 32) << 16 | (group + (uint32_t)((call + i) % calls));
      }
    }
    philox(c0, c1, a.number, (uint32_t)table.key, keys, (uint32_t*)(halves + call * 8));
  }

  static uint64_t row_number(const UpdateArguments& a, const Table& table, int64_t run) {
    return (uint64_t)(a.rows[run] - table.first_row + table.row_offset);
  }
};

template <int Bits, int Dim, bool Stochastic>
inline void quantise(int64_t columns, float step, const float* weight, const uint16_t* noise,
                     uint8_t* codes) {
  for (int64_t column = 0; column < width_of<Dim>(columns); column += 8) {
    const int64_t count = lanes_of<Dim>(columns - column);
    const f32x8 s = clip(load(weight + column, count) / step, Bits);
    i32x8 code;
    if constexpr (Stochastic) {
      u16x8 halves;
      __builtin_memcpy(&halves, noise + column, 16);
      const f32x8 uniform = __builtin_convertvector(widen(halves), f32x8) * 0x1p-16f + 0x1p-17f;
      code = floor(s + uniform);
    } else {
      code = to_integers(round_even(s));
    }
    store_codes<Bits>(codes + column / 8 * Bits, code, count);
  }
}

template <int Bits, int Dim>
void update_row(const UpdateArguments& a, const Row& row, int64_t run, Noise& noise,
                int64_t table_end, float* total, float* scratch) {
  const Table& table = *row.table;
  const int64_t dim = width_of<Dim>(table.dim), width = width_of<Dim>(table.block);
  const float* gradient = sum_gradient<Dim>(a, run, dim, total, scratch);
  float* weight = a.updated ? a.updated + run * a.width : scratch;
  const bool stochastic = a.stochastic && a.phase != Phase::kRows;
  const uint16_t* halves = stochastic ? noise.row(a, table, run, table_end) : nullptr;
  for (int64_t block = 0, column = 0; column < dim; ++block, column += width) {
    uint8_t* codes = row.codes + column / 8 * Bits;
    float step = row.step[block];
    if (a.phase != Phase::kStep) {
      optimise<Bits, Dim>(a, row, block, step, gradient + column, codes, weight + column);
    }
    if (a.phase != Phase::kRows && a.step_optimizer != Optimizer::kNone) {
      step = learn_step<Dim>(a, row, block, Bits, step, gradient + column, weight + column);
      row.step[block] = step;
    }
    if (stochastic)
      quantise<Bits, Dim, true>(width, step, weight + column, halves + column, codes);
    else
      quantise<Bits, Dim, false>(width, step, weight + column, nullptr, codes);
  }
}

template <int Bits, int Dim>
void update_runs(const UpdateArguments& a, const Table& table, int64_t first, int64_t last,
                 float* scratch) {
  const int64_t padded = scratch_floats(a.width) / 3;
  Noise noise{(uint16_t*)(scratch + 2 * padded), PhiloxKeys(a.seed)};
  for (int64_t run = first; run < last; ++run) {
    if (run + kAhead < last)
      prefetch_row(a, locate<Dim>(a, table, a.rows[run + kAhead], Bits), Bits);
    update_row<Bits, Dim>(a, locate<Dim>(a, table, a.rows[run], Bits), run, noise, last, scratch,
                          scratch + padded);
  }
}

// Table by table: the runs are in the order of the tables.
template <int Bits>
void update_range(const UpdateArguments& a, int64_t first, int64_t last, float* scratch) {
  for (const Table* table = a.tables; first < last; ++table) {
    int64_t end = first;
    while (end < last && a.rows[end] < table->first_row + table->rows) ++end;
    switch (table->block == table->dim ? table->dim : 0) {
      case 16:
        update_runs<Bits, 16>(a, *table, first, end, scratch);
        break;
      case 32:
        update_runs<Bits, 32>(a, *table, first, end, scratch);
        break;
      case 64:
        update_runs<Bits, 64>(a, *table, first, end, scratch);
        break;
      case 128:
        update_runs<Bits, 128>(a, *table, first, end, scratch);
        break;
      default:
        update_runs<Bits, 0>(a, *table, first, end, scratch);
    }
    first = end;
  }
}

void update(const UpdateArguments& a, int bits, int64_t first, int64_t last, float* scratch) {
  if (bits == 8) update_range<8>(a, first, last, scratch);
  if (bits == 4) update_range<4>(a, first, last, scratch);
  if (bits == 2) update_range<2>(a, first, last, scratch);
}

// ---- fake quantisation ----

void fake_quantise(const FakeQuantiseArguments& a, int64_t first, int64_t last) {
  for (int64_t at = first; at < last; ++at) {  // blocks of columns
    for (int64_t column = 0; column < a.block; column += 8) {
      const int64_t i = at * a.block + column, count = a.block - column;
      const f32x8 code = round_even(clip(load(a.weight + i, count) / a.step[at], a.bits));
      store(a.output + i, code * a.step[at], count);
    }
  }
}

void fake_quantise_backward(const FakeQuantiseArguments& a, int64_t first, int64_t last) {
  for (int64_t at = first; at < last; ++at) {
    Products total;
    for (int64_t column = 0; column < a.block; column += 8) {
      const int64_t i = at * a.block + column, count = a.block - column;
      const f32x8 s = load(a.weight + i, count) / a.step[at];
      const f32x8 g = load(a.gradient + i, count);
      total.add(g, step_slope(s, a.bits));
      store(a.output + i, inside(s, a.bits) ? g : splat(0.0f), count);
    }
    a.step_gradient[at] = a.factor * (float)total.sum();
  }
}
