// SPDX-License-Identifier: Apache-2.0
// What the row kernels are told. Plain C++: the row kernels are compiled once per instruction set and
// must not instantiate anything that another translation unit could pick up.
#pragma once

#include <cstdint>

namespace deltarec {

// One row of the `tables` tensor; the same order as `tables.py`.
struct Table {
  int64_t rows;
  int64_t dim;
  int64_t block;           // columns that share a step; divides dim
  int64_t code_offset;     // bytes from the start of `codes`
  int64_t step_offset;     // elements from the start of `step` and of row-wise state
  int64_t element_offset;  // elements from the start of element-wise state
  int64_t first_row;       // rows of all tables before this one
  int64_t key;             // names the table to the random numbers
  int64_t row_offset;      // of this shard in the whole table
  int64_t column_offset;   // likewise
};

// One row of the `features` tensor.
struct Feature {
  int64_t table;
  int64_t column;  // first column in the pooled output
};

enum class Output { kFloat, kHalf, kBFloat16 };

struct LookupArguments {
  const uint8_t* codes;
  const float* step;
  const Table* tables;
  const Feature* features;
  const int64_t* ids;
  const int64_t* offsets;  // [features * batch + 1], or null: one vector per id
  const int64_t* feature_ends;  // [features], positions in ids where a feature ends
  const float* weights;    // [ids], or null
  void* output;
  int64_t num_features;
  int64_t num_ids;
  int64_t batch;
  int64_t columns;  // of the output
  bool mean;
  Output output_type;
  mutable int64_t invalid;  // the position of an id outside its table, or -1
};

enum class Optimizer { kNone, kSgd, kAdagrad, kRowwiseAdagrad, kAdam, kRowwiseAdam };

struct Rates {
  float learning_rate, eps, beta1, rest1, beta2, rest2, correction1, correction2;
};

enum class Phase { kWhole, kRows, kStep };

struct UpdateArguments {
  uint8_t* codes;
  float* step;
  float* moment1;
  float* moment2;
  float* step_moment1;
  float* step_moment2;
  const Table* tables;
  const float* gradient_scale;  // [tables]
  const int64_t* runs;    // [distinct + 1], where each row's occurrences start
  const int64_t* rows;    // [distinct]
  const int64_t* places;  // [ids], by row: where each occurrence's gradient starts in `gradient`
  const float* weights;   // [ids], by row, or null
  const float* gradient;
  float* updated;  // [distinct, width], written by kRows and read by kStep
  int64_t num_distinct;
  int64_t width;
  Optimizer optimizer;
  Rates rates;
  Optimizer step_optimizer;
  Rates step_rates;
  float step_factor;
  bool stochastic;
  uint64_t seed;
  uint32_t number;
  Phase phase;
};

struct FakeQuantiseArguments {
  const float* weight;  // [rows, dim]
  const float* step;    // [rows, dim / block]
  const float* gradient;
  float* output;       // [rows, dim]: the fake-quantised rows, or the gradient to the weight
  float* step_gradient;
  int64_t dim;
  int64_t block;
  int bits;
  float factor;
};

// The row kernels of one instruction set. `scratch` holds `scratch_floats(width)` floats.
struct RowKernels {
  const char* name;
  void (*lookup)(const LookupArguments&, int bits, int64_t first, int64_t last);
  void (*lookup_weights)(const LookupArguments&, int bits, const float* gradient, int64_t first,
                         int64_t last);
  void (*update)(const UpdateArguments&, int bits, int64_t first, int64_t last, float* scratch);
  void (*fake_quantise)(const FakeQuantiseArguments&, int64_t first, int64_t last);
  void (*fake_quantise_backward)(const FakeQuantiseArguments&, int64_t first, int64_t last);
};

constexpr int64_t scratch_floats(int64_t width) { return 3 * (width + 64); }

extern const RowKernels kBaseline;
#if defined(__x86_64__)
extern const RowKernels kAvx2;
#endif

}  // namespace deltarec
