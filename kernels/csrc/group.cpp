// SPDX-License-Identifier: Apache-2.0
// Groups the ids of all tables by row: a stable radix sort of (row, position), then the runs. The
// highest digit cuts the items into buckets, which are then sorted apart, each in a core's cache.
#include "group.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <utility>
#include <vector>

#include "scratch.h"
#include "share.h"

namespace deltarec {
namespace {

constexpr int kDigit = 8;
constexpr int kBuckets = 1 << kDigit;

template <typename Key>
struct Item {
  Key row;
  int32_t position;
};

template <typename Key>
int digit(const Item<Key>& item, int shift) {
  return static_cast<int>(item.row >> shift) & (kBuckets - 1);
}

// Numbers the rows of all tables through, so that one sort serves every table, and cuts the items by
// their highest digit: every thread numbers, counts and then moves a stretch of its own, in order.
// Returns where each bucket starts; `invalid` is an id outside its table, or -1.
template <typename Key>
std::vector<int64_t> cut(const GroupArguments& a, Item<Key>* from, Item<Key>* to, int shift,
                         int64_t& invalid) {
  const int64_t count = a.num_ids;
  const int64_t threads = std::clamp<int64_t>(count / 8192, 1, at::get_num_threads());
  const int64_t stretch = (count + threads - 1) / threads;
  std::vector<int64_t> places(threads * kBuckets, 0), starts(kBuckets + 1, 0);
  const auto each_stretch = [&](auto&& visit) {
    at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
      for (int64_t t = first; t < last; ++t)
        visit(t * stretch, std::min(count, (t + 1) * stretch), places.data() + t * kBuckets);
    });
  };
  std::atomic<int64_t> wrong{-1};
  each_stretch([&](int64_t first, int64_t last, int64_t* place) {
    for (int64_t f = 0, i = first; i < last; ++f) {
      const Table& table = a.tables[a.features[f].table];
      for (; i < std::min(last, a.feature_ends[f]); ++i) {
        if (static_cast<uint64_t>(a.ids[i]) >= static_cast<uint64_t>(table.rows)) wrong = i;
        from[i] = {static_cast<Key>(table.first_row + a.ids[i]), static_cast<int32_t>(i)};
        ++place[digit(from[i], shift)];
      }
    }
  });
  invalid = wrong;
  int64_t total = 0;
  for (int bucket = 0; bucket < kBuckets; ++bucket) {
    starts[bucket] = total;
    for (int64_t t = 0; t < threads; ++t)
      total += std::exchange(places[t * kBuckets + bucket], total);
  }
  starts[kBuckets] = total;
  each_stretch([&](int64_t first, int64_t last, int64_t* place) {
    for (int64_t i = first; i < last; ++i) to[place[digit(from[i], shift)]++] = from[i];
  });
  return starts;
}

// Sorts one bucket, which mostly fits a core's cache, by the digits below `shift`; ends in `items`.
template <typename Key>
void sort_bucket(Item<Key>* items, Item<Key>* other, int64_t count, int shift) {
  if (count < 64) {
    std::stable_sort(items, items + count, [](const auto& a, const auto& b) { return a.row < b.row; });
    return;
  }
  Item<Key>*from = items, *to = other;
  for (int low = 0; low < shift; low += kDigit) {
    int64_t places[kBuckets] = {0};
    for (int64_t i = 0; i < count; ++i) ++places[digit(from[i], low)];
    int64_t total = 0;
    for (int64_t& place : places) total += std::exchange(place, total);
    for (int64_t i = 0; i < count; ++i) to[places[digit(from[i], low)]++] = from[i];
    std::swap(from, to);
  }
  if (from != items) std::copy(from, from + count, items);
}

template <typename Key>
int64_t group_by(const GroupArguments& a) {
  Item<Key>* items = scratch<Slot::kItems, Item<Key>>(a.num_ids);
  Item<Key>* other = scratch<Slot::kOtherItems, Item<Key>>(a.num_ids);
  int shift = 0;
  while ((a.num_rows - 1) >> shift >= kBuckets) ++shift;
  int64_t invalid;
  const std::vector<int64_t> starts = cut(a, other, items, shift, invalid);
  if (invalid >= 0) return -1 - invalid;
  // A row's ids are all in one bucket: first count each bucket's rows, then write them in place.
  std::vector<int64_t> distinct(kBuckets + 1, 0);
  share(starts.data(), kBuckets, 1, [&](int64_t first, int64_t last) {
    for (int64_t bucket = first; bucket < last; ++bucket) {
      Item<Key>* item = items + starts[bucket];
      const int64_t count = starts[bucket + 1] - starts[bucket];
      sort_bucket(item, other + starts[bucket], count, shift);
      for (int64_t i = 0; i < count; ++i)
        distinct[bucket + 1] += i == 0 || item[i].row != item[i - 1].row;
    }
  });
  std::partial_sum(distinct.begin(), distinct.end(), distinct.begin());
  share(starts.data(), kBuckets, 1, [&](int64_t first, int64_t last) {
    int64_t run = distinct[first];
    for (int64_t i = starts[first]; i < starts[last]; ++i) {
      a.order[i] = items[i].position;
      if (i == starts[first] || items[i].row != items[i - 1].row) {
        a.rows[run] = static_cast<int64_t>(items[i].row);
        a.runs[run++] = i;
      }
    }
  });
  a.runs[distinct[kBuckets]] = a.num_ids;
  return distinct[kBuckets];
}

}  // namespace

int64_t group(const GroupArguments& arguments) {
  return arguments.num_rows <= int64_t{1} << 32 ? group_by<uint32_t>(arguments)
                                                : group_by<uint64_t>(arguments);
}

}  // namespace deltarec
