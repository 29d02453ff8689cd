// SPDX-License-Identifier: Apache-2.0
// Hashes of numbers, and dropout by them: see `dropout/__init__.py`.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>
#include <vector>

#include "splitmix.h"

namespace deltarec {
namespace {

using at::Tensor;

constexpr int64_t kGrain = 1 << 14;  // numbers that are worth a thread

Tensor mix64(const Tensor& x_in) {
  TORCH_CHECK(x_in.scalar_type() == at::kLong, "mix64: expected int64, got ", x_in.scalar_type());
  const Tensor x = x_in.contiguous();
  Tensor output = at::empty_like(x);
  const int64_t* numbers = x.const_data_ptr<int64_t>();
  int64_t* hashes = output.data_ptr<int64_t>();
  at::parallel_for(0, x.numel(), kGrain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) hashes[i] = static_cast<int64_t>(mix(numbers[i]));
  });
  return output;
}

Tensor dropout(const Tensor& x_in, const Tensor& keys_in, int64_t layer, double p) {
  TORCH_CHECK(x_in.dim() > 0 && keys_in.dim() == 1 && keys_in.size(0) == x_in.size(0),
              "dropout: ", keys_in.sizes(), " keys for samples of ", x_in.sizes());
  const Tensor x = x_in.contiguous(), keys = keys_in.contiguous();
  Tensor output = at::empty_like(x);
  if (!x.numel()) return output;
  const int64_t width = x.numel() / x.size(0);
  const int64_t* own = keys.const_data_ptr<int64_t>();
  std::vector<int64_t> units(width);
  for (int64_t u = 0; u < width; ++u) units[u] = static_cast<int64_t>(mix((layer << 32) + u));
  // A multiple of 2^-53 is below p if its number is below this.
  const auto threshold = static_cast<uint64_t>(std::ceil(std::ldexp(p, 53)));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "dropout", [&] {
    const scalar_t* from = x.const_data_ptr<scalar_t>();
    scalar_t* to = output.data_ptr<scalar_t>();
    const auto kept = static_cast<at::opmath_type<scalar_t>>(1 - p);
    at::parallel_for(0, x.size(0), 1 + kGrain / width, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        for (int64_t u = 0; u < width; ++u) {
          const bool dropped = mix(own[i] ^ units[u]) >> 11 < threshold;
          const int64_t at = i * width + u;
          to[at] = dropped ? scalar_t(0) : static_cast<scalar_t>(from[at] / kept);
        }
    });
  });
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(deltarec, CPU, m) {
  m.impl("mix64", mix64);
  m.impl("dropout", dropout);
}

}  // namespace deltarec
