// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/Parallel.h>

#include <cstdint>

namespace deltarec {

// Runs `work(first, last)` over [0, count) by shares of equal cost, where `starts` [count + 1] says
// how many ids come before each item: neither a long bag nor a hot row then leaves threads idle.
template <typename Work>
void share(const int64_t* starts, int64_t count, int64_t cost_of_item, const Work& work) {
  const int64_t total = starts[count] - starts[0] + count * cost_of_item;
  const auto item_at = [&](int64_t cost) {
    int64_t low = 0, high = count;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (starts[middle] - starts[0] + middle * cost_of_item < cost)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  };
  at::parallel_for(0, total, 2048, [&](int64_t first, int64_t last) {
    const int64_t begin = item_at(first), end = last == total ? count : item_at(last);
    if (begin < end) work(begin, end);
  });
}

}  // namespace deltarec
