// SPDX-License-Identifier: Apache-2.0
// What the operators on ids share: how a place of a map is used, and tensors as memory.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace deltarec {

// A row of a map's `uses`.
struct Use {
  int32_t count, score, seen;
};

template <typename T>
T* pointer(const at::Tensor& tensor, at::ScalarType type) {
  TORCH_CHECK(tensor.is_contiguous() && tensor.is_cpu() && tensor.scalar_type() == type,
              "expected contiguous ", type, " on CPU");
  return static_cast<T*>(tensor.data_ptr());
}

}  // namespace deltarec
