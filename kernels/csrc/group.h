// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "arguments.h"

namespace deltarec {

struct GroupArguments {
  const Table* tables;
  const Feature* features;
  const int64_t* feature_ends;  // [features], positions in ids
  const int64_t* ids;
  int64_t num_features;
  int64_t num_ids;
  int64_t num_rows;  // of all tables
  int32_t* order;    // [ids], positions by row, stable
  int64_t* runs;     // [distinct + 1], in `order`
  int64_t* rows;     // [distinct], numbered through all tables
};

// The number of distinct rows, or -1 - i where id i is outside its table.
int64_t group(const GroupArguments& arguments);

}  // namespace deltarec
