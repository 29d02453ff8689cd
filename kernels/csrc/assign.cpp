// SPDX-License-Identifier: Apache-2.0
// Ids of any 64 bits to rows: see `assign/reference.py` for what is computed. Here for how: an index
// with open addressing finds an id's row, and a heap of all rows of a bucket finds the one to give
// away. Neither is state: both follow from the tensors of keys and uses, by `build_assignment`.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <string_view>
#include <tuple>
#include <vector>

#include "ids.h"
#include "scratch.h"
#include "splitmix.h"

namespace deltarec {
namespace {

using at::Tensor;

constexpr int64_t kAhead = 16;  // ids between asking for memory and needing it
constexpr int64_t kReady = 8;   // rows taken off a heap at a time
constexpr int64_t kSample = 256;
constexpr int64_t kHeadEntries = 2;

// What the heap orders a row by. It may be older than the row's use: touching a row leaves the heap
// alone, and as no row's order ever falls, an entry that comes up too early is put right then.
struct Entry {
  uint64_t order;
  int64_t row;
  Entry(uint64_t order, int64_t row) : order(order), row(row) {}
  Entry(const Use& use, int64_t row)
      : order((static_cast<uint64_t>(static_cast<uint32_t>(use.score) ^ 0x80000000) << 32) |
              static_cast<uint32_t>(use.seen)),
        row(row) {}
  bool operator<(const Entry& other) const {  // without branches, which nobody could foresee
    return (order < other.order) | ((order == other.order) & (row < other.row));
  }
};

// The id of a hash.
int64_t unmix(uint64_t x) {
  x = (x ^ (x >> 31) ^ (x >> 62)) * 0x319642B2D24D8EC3;
  x = (x ^ (x >> 27) ^ (x >> 54)) * 0x96DE1B173F119089;
  x = x ^ (x >> 30) ^ (x >> 60);
  return static_cast<int64_t>(x - 0x9E3779B97F4A7C15);
}

int64_t bucket_of(uint64_t hash, int64_t num_buckets) {
  return static_cast<int64_t>(((hash >> 32) * static_cast<uint64_t>(num_buckets)) >> 32);
}

const Entry kFirst{0, -1}, kLast{std::numeric_limits<uint64_t>::max(), 0};  // of all orders

// What stands before the entries of a heap.
struct HeapHead {
  int64_t size, unused;
  Entry limit;
};

// One bucket of a map. Its heap has the rows whose order is below a limit, so that it is small and
// stays in a core's cache; when it is empty, a look at all rows raises the limit.
class Bucket {
 public:
  Bucket(int64_t* keys, Use* uses, uint64_t* slots, Entry* heap, int64_t capacity, int64_t num_slots)
      : keys_(keys), uses_(uses), slots_(slots), head_(*reinterpret_cast<HeapHead*>(heap)),
        heap_(heap + kHeadEntries), capacity_(capacity),
        mask_(static_cast<uint32_t>(num_slots - 1)) {}

  void prefetch(uint64_t hash) const { __builtin_prefetch(&slots_[home(hash)]); }

  // The row that the index names, whose key is most likely the right one.
  void prefetch_row(uint64_t hash) const {
    for (uint32_t slot = home(hash); slots_[slot]; slot = (slot + 1) & mask_)
      if (same(slots_[slot], hash)) {
        __builtin_prefetch(&keys_[row_of(slots_[slot])]);
        __builtin_prefetch(&uses_[row_of(slots_[slot])], 1);
        return;
      }
  }

  int64_t find(uint64_t hash, int64_t id) const {
    for (uint32_t slot = home(hash); slots_[slot]; slot = (slot + 1) & mask_)
      if (same(slots_[slot], hash) && keys_[row_of(slots_[slot])] == id)
        return row_of(slots_[slot]);
    return -1;
  }

  void insert(uint64_t hash, int64_t row) {
    uint32_t slot = home(hash);
    while (slots_[slot]) slot = (slot + 1) & mask_;
    slots_[slot] = hash << 32 | static_cast<uint64_t>(row + 1);
  }

  // Takes a row out of the index; what was put behind it moves up.
  void remove(int64_t row) {
    uint32_t slot = home(mix(keys_[row]));
    while (row_of(slots_[slot]) != row) slot = (slot + 1) & mask_;
    for (uint32_t next = (slot + 1) & mask_; slots_[next]; next = (next + 1) & mask_) {
      const uint32_t wanted = home(slots_[next] >> 32);
      if (((next - wanted) & mask_) >= ((next - slot) & mask_)) {
        slots_[slot] = slots_[next];
        slot = next;
      }
    }
    slots_[slot] = 0;
  }

  // The row to give to a new id: of those that no id of this step has, the first by score, time and
  // number that is free or `may_evict`; -1 if there is none. It is out of the heap then, and others
  // may be too, until `settle`.
  template <typename MayEvict>
  int64_t obtain(int32_t step, const MayEvict& may_evict) {
    for (;;) {
      if (num_ready_ == 0 && !exhausted_) fetch(step, may_evict);
      if (num_ready_ == 0) return -1;
      const int64_t row = ready_[--num_ready_];
      if (!in_step(uses_[row], step)) return row;  // it may have got its id back meanwhile
    }
  }

  void settle() {
    for (const int64_t row : aside_)
      if (const Entry entry(uses_[row], row); entry < head_.limit) sift_up(head_.size++, entry);
    aside_.clear();
    num_ready_ = 0;
    exhausted_ = false;
  }

  void build() {
    std::fill(slots_, slots_ + mask_ + 1, 0);
    for (int64_t row = 0; row < capacity_; ++row)
      if (uses_[row].count > 0) insert(mix(keys_[row]), row);
    head_ = {0, 0, kFirst};
  }

  int64_t& key(int64_t row) { return keys_[row]; }
  Use& use(int64_t row) { return uses_[row]; }

 private:
  uint32_t home(uint64_t hash) const { return static_cast<uint32_t>(hash) & mask_; }
  // A slot is the low half of a hash, which spares looking at the key, and a row + 1; 0 is none.
  static int64_t row_of(uint64_t slot) { return static_cast<int64_t>(slot & 0xFFFFFFFF) - 1; }
  static bool same(uint64_t slot, uint64_t hash) {
    return static_cast<uint32_t>(slot >> 32) == static_cast<uint32_t>(hash);
  }

  static bool in_step(const Use& use, int32_t step) { return use.count > 0 && use.seen == step; }

  // Takes the next rows off the heap, several at a time: their memory is asked for before the first
  // is needed.
  template <typename MayEvict>
  void fetch(int32_t step, const MayEvict& may_evict) {
    if (head_.size == 0) refill(step);
    while (head_.size && num_ready_ < kReady) {
      const int64_t row = heap_[0].row;
      const Use& use = uses_[row];
      const Entry now(use, row);
      if (in_step(use, step)) {
        pop();
        aside_.push_back(row);
      } else if (now.order != heap_[0].order) {
        if (now < head_.limit)
          sift_down(0, now);
        else
          pop();
      } else if (use.count > 0 && !may_evict(use)) {
        exhausted_ = num_ready_ == 0;
        break;
      } else {
        pop();
        aside_.push_back(row);
        ready_[num_ready_++] = row;
        __builtin_prefetch(&keys_[row], 1);
      }
      if (head_.size) __builtin_prefetch(&uses_[heap_[0].row], 1);
      if (head_.size == 0 && num_ready_ == 0) refill(step);
    }
    std::reverse(ready_.begin(), ready_.begin() + num_ready_);
    for (int64_t i = 0; i < num_ready_; ++i)
      if (uses_[ready_[i]].count > 0) prefetch(mix(keys_[ready_[i]]));
  }

  // Raises the limit above an eighth of the rows that no id of this step has, by a sample of them,
  // and puts all rows below it into the heap, which is empty. Without such rows there is nothing to
  // give away in this step.
  void refill(int32_t step) {
    aside_.clear();  // rows of this step, all found again here
    std::vector<Entry> sample;
    const int64_t stride = std::max<int64_t>(1, capacity_ / kSample);
    for (int64_t row = 0; row < capacity_; row += stride)
      if (uses_[row].count >= 0 && !in_step(uses_[row], step)) sample.emplace_back(uses_[row], row);
    head_.limit = kLast;
    if (sample.size() >= 16) {
      std::nth_element(sample.begin(), sample.begin() + sample.size() / 8, sample.end());
      head_.limit = sample[sample.size() / 8];
    }
    bool any = false;
    for (int64_t row = 0; row < capacity_; ++row) {
      const Entry entry(uses_[row], row);
      if (uses_[row].count < 0 || !(entry < head_.limit)) continue;
      any = any || !in_step(uses_[row], step);
      heap_[head_.size++] = entry;
    }
    for (int64_t place = head_.size / 4; place >= 0; --place)
      if (place < head_.size) sift_down(place, heap_[place]);
    if (!any) {
      head_ = {0, 0, kFirst};
      exhausted_ = true;
    }
  }

  void pop() {
    if (--head_.size) sift_down(0, heap_[head_.size]);
  }

  void sift_down(int64_t place, Entry entry) {
    for (int64_t child; (child = 4 * place + 1) < head_.size; place = child) {
      if (child + 4 <= head_.size) {
        const int64_t left = child + (heap_[child + 1] < heap_[child]);
        const int64_t right = child + 2 + (heap_[child + 3] < heap_[child + 2]);
        child = heap_[right] < heap_[left] ? right : left;
      } else {
        for (int64_t other = child + 1; other < head_.size; ++other)
          if (heap_[other] < heap_[child]) child = other;
      }
      if (!(heap_[child] < entry)) break;
      heap_[place] = heap_[child];
    }
    heap_[place] = entry;
  }

  void sift_up(int64_t place, Entry entry) {
    while (place && entry < heap_[(place - 1) / 4]) {
      heap_[place] = heap_[(place - 1) / 4];
      place = (place - 1) / 4;
    }
    heap_[place] = entry;
  }

  int64_t* keys_;
  Use* uses_;
  uint64_t* slots_;
  HeapHead& head_;
  Entry* heap_;
  int64_t capacity_;
  uint32_t mask_;
  std::vector<int64_t> aside_;  // rows that are not in the heap
  std::array<int64_t, kReady> ready_;  // of these, those to give away, the last one first
  int64_t num_ready_ = 0;
  bool exhausted_ = false;  // whether this step can have no more rows
};

// The buckets of a map [keys, uses, index, heap] that are here.
std::vector<Bucket> buckets_of(at::TensorList map, int64_t count) {
  int64_t* keys = pointer<int64_t>(map[0], at::kLong);
  Use* uses = pointer<Use>(map[1], at::kInt);
  uint64_t* slots = pointer<uint64_t>(map[2], at::kLong);
  Entry* heap = pointer<Entry>(map[3], at::kLong);
  const int64_t capacity = map[0].numel() / count, num_slots = map[2].numel() / count;
  std::vector<Bucket> buckets;
  if (!capacity) return buckets;
  TORCH_CHECK(map[0].numel() == capacity * count && map[1].numel() == 3 * map[0].numel() &&
                  map[3].numel() == 2 * (map[0].numel() + kHeadEntries * count) && std::has_single_bit(
                      static_cast<uint64_t>(num_slots)) && num_slots > capacity,
              "map: wrong sizes");
  buckets.reserve(count);
  for (int64_t b = 0; b < count; ++b)
    buckets.emplace_back(keys + b * capacity, uses + b * capacity, slots + b * num_slots,
                         heap + b * (capacity + kHeadEntries), capacity, num_slots);
  return buckets;
}

// An id of this step without a row; 16 bytes, to be sorted.
struct Missing {
  uint64_t hash;
  int32_t position, count;
};

// By hash, stable: hashes are uniform, so a first cut by their top bits leaves little to do.
Missing* sorted_by_hash(const Missing* items, int64_t count) {
  const int bits = std::max(1, static_cast<int>(std::bit_width(static_cast<uint64_t>(count))) - 2);
  std::vector<int32_t> starts((int64_t{1} << bits) + 1, 0);
  for (int64_t i = 0; i < count; ++i) ++starts[(items[i].hash >> (64 - bits)) + 1];
  for (size_t i = 1; i < starts.size(); ++i) starts[i] += starts[i - 1];
  Missing* sorted = scratch<Slot::kSorted, Missing>(count);
  for (int64_t i = 0; i < count; ++i) sorted[starts[items[i].hash >> (64 - bits)]++] = items[i];
  for (int64_t i = 1; i < count; ++i) {
    const Missing item = sorted[i];
    int64_t place = i;
    for (; place && item.hash < sorted[place - 1].hash; --place) sorted[place] = sorted[place - 1];
    sorted[place] = item;
  }
  return sorted;
}

// Rows as they were before this call changed them: [entries, 5] of row, key and use.
class Log {
 public:
  explicit Log(int64_t most)
      : entries_(at::empty({most, 5}, at::kLong)), next_(entries_.data_ptr<int64_t>()) {}
  void add(int64_t row, int64_t key, const Use& use) {
    for (const int64_t value : {row, key, int64_t{use.count}, int64_t{use.score}, int64_t{use.seen}})
      *next_++ = value;
  }
  Tensor tensor() const { return entries_.narrow(0, 0, (next_ - entries_.data_ptr<int64_t>()) / 5); }

 private:
  Tensor entries_;
  int64_t* next_;
};

struct Summary {  // a row of `buckets`
  int64_t step, floor, used, promoted;
};

enum class Evict { kNone, kLru, kLfu, kTimed };

Evict evict_of(std::string_view name) {
  if (name == "none") return Evict::kNone;
  if (name == "lru") return Evict::kLru;
  if (name == "lfu") return Evict::kLfu;
  TORCH_CHECK(name == "timed", "evict: ", name);
  return Evict::kTimed;
}

int32_t clamped(int64_t value) {
  return static_cast<int32_t>(std::min<int64_t>(value, std::numeric_limits<int32_t>::max()));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> assign(
    at::TensorList main_map, at::TensorList candidate_map, const Tensor& summaries_in,
    int64_t first_bucket, int64_t num_buckets, const Tensor& ids_in, const Tensor& counts_in,
    std::string_view evict_name, int64_t horizon, bool ageing, int64_t admit_after) {
  const Evict evict = evict_of(evict_name);
  Summary* summaries = pointer<Summary>(summaries_in, at::kLong);
  const int64_t here = summaries_in.size(0), count = ids_in.numel();
  const int64_t capacity = main_map[0].numel() / here;
  const int64_t candidate_capacity = candidate_map[0].numel() / here;
  std::vector<Bucket> main = buckets_of(main_map, here);
  std::vector<Bucket> candidates = buckets_of(candidate_map, here);
  const int64_t* ids = pointer<const int64_t>(ids_in, at::kLong);
  const int64_t* counts = pointer<const int64_t>(counts_in, at::kLong);
  Tensor found = at::empty({count}, at::kLong);
  int64_t* rows = found.data_ptr<int64_t>();
  const int64_t step = summaries[0].step + 1;
  TORCH_CHECK(step < std::numeric_limits<int32_t>::max(), "step ", step, " is past 32 bits");
  for (int64_t b = 0; b < here; ++b) summaries[b].step = step;

  const auto expired = [&](const Use& use) {
    return evict == Evict::kTimed && use.seen + horizon < step;
  };
  const auto may_evict = [&](const Use& use) {
    return evict == Evict::kLru || evict == Evict::kLfu || expired(use);
  };
  const auto score = [&](int64_t floor, int64_t sightings) {
    if (evict == Evict::kLfu) return clamped(floor + sightings);
    return evict == Evict::kNone ? 0 : static_cast<int32_t>(step);
  };

  // First the ids that have rows: what this does to them does not depend on the order.
  Log log(count), candidate_log(admit_after > 1 ? count : 0);  // an id changes one row of each
  Tensor fresh = at::empty({count}, at::kLong);
  int64_t num_fresh = 0, num_missing = 0;
  Missing* unsorted = scratch<Slot::kMissing, Missing>(count);
  TORCH_CHECK(count <= std::numeric_limits<int32_t>::max(), count, " ids are too many for a step");
  uint64_t* hashes = scratch<Slot::kHashes, uint64_t>(count);
  std::transform(ids, ids + count, hashes, mix);
  const auto bucket = [&](uint64_t hash) {
    return bucket_of(hash, num_buckets) - first_bucket;
  };
  for (int64_t i = 0; i < count; ++i) {
    const int64_t b = bucket(hashes[i]);
    TORCH_CHECK_INDEX(b >= 0 && b < here, "id ", ids[i], " belongs to another rank");
  }
  for (int64_t ahead = 0; ahead < count + 2 * kAhead; ++ahead) {
    if (ahead < count) main[bucket(hashes[ahead])].prefetch(hashes[ahead]);
    if (const int64_t i = ahead - kAhead; i >= 0 && i < count)
      main[bucket(hashes[i])].prefetch_row(hashes[i]);
    const int64_t i = ahead - 2 * kAhead;
    if (i < 0) continue;
    const int64_t b = bucket(hashes[i]), row = main[b].find(hashes[i], ids[i]);
    if (row < 0 || expired(main[b].use(row))) {
      unsorted[num_missing++] = {hashes[i], static_cast<int32_t>(i), clamped(counts[i])};
      continue;
    }
    Use& use = main[b].use(row);
    rows[i] = b * capacity + row;
    if (use.seen != step) log.add(rows[i], ids[i], use);
    use.count = clamped(int64_t{use.count} + counts[i]);
    use.score = score(summaries[b].floor, use.count);
    use.seen = static_cast<int32_t>(step);
  }

  // Then the others, by hash, which puts them in order of buckets too.
  const Missing* missing = sorted_by_hash(unsorted, num_missing);
  const auto always = [](const Use&) { return true; };
  for (int64_t first = 0, last; first < num_missing; first = last) {
    if (const int64_t ahead = first + kAhead / 2; ahead < num_missing) {
      const uint64_t later = missing[ahead].hash, sooner = missing[first + kAhead / 4].hash;
      main[bucket(later)].prefetch(later);
      if (admit_after > 1) {
        candidates[bucket(later)].prefetch(later);
        candidates[bucket(sooner)].prefetch_row(sooner);
      }
    }
    const uint64_t hash = missing[first].hash;
    const int64_t id = unmix(hash);
    const int64_t b = bucket(hash);
    int64_t sightings = 0;
    for (last = first; last < num_missing && missing[last].hash == hash; ++last)
      sightings += missing[last].count;

    int64_t candidate = -1;
    if (admit_after > 1) {
      candidate = candidates[b].find(hash, id);
      if (candidate >= 0) sightings += candidates[b].use(candidate).count;
    }
    int64_t row = -1;
    if (sightings >= admit_after) {
      if (evict == Evict::kTimed) row = main[b].find(hash, id);  // expired, but not yet given away
      if (row < 0) {
        row = main[b].obtain(static_cast<int32_t>(step), may_evict);
        if (row >= 0 && main[b].use(row).count > 0) {
          main[b].remove(row);
          if (ageing) summaries[b].floor = std::max<int64_t>(summaries[b].floor, main[b].use(row).score);
          --summaries[b].used;
        }
        if (row >= 0) {
          log.add(b * capacity + row, main[b].key(row), main[b].use(row));
          main[b].key(row) = id;
          main[b].insert(hash, row);
          ++summaries[b].used;
        }
      } else {
        log.add(b * capacity + row, id, main[b].use(row));
      }
    }
    if (row >= 0) {
      main[b].use(row) = {clamped(sightings), score(summaries[b].floor, sightings),
                          static_cast<int32_t>(step)};
      ++summaries[b].promoted;
      fresh.data_ptr<int64_t>()[num_fresh++] = b * capacity + row;
      if (candidate >= 0) {  // its place is free, and is given away when its turn comes
        Use& use = candidates[b].use(candidate);
        candidate_log.add(b * candidate_capacity + candidate, id, use);
        candidates[b].remove(candidate);
        candidates[b].key(candidate) = 0;
        use.count = 0;
      }
    } else if (admit_after > 1) {
      if (candidate < 0) {
        candidate = candidates[b].obtain(static_cast<int32_t>(step), always);
        if (candidate >= 0) {
          Use& use = candidates[b].use(candidate);
          candidate_log.add(b * candidate_capacity + candidate, candidates[b].key(candidate), use);
          if (use.count > 0) candidates[b].remove(candidate);
          candidates[b].key(candidate) = id;
          candidates[b].insert(hash, candidate);
        }
      } else {
        candidate_log.add(b * candidate_capacity + candidate, id, candidates[b].use(candidate));
      }
      if (candidate >= 0)
        candidates[b].use(candidate) = {clamped(sightings), static_cast<int32_t>(step),
                                        static_cast<int32_t>(step)};
    }
    for (int64_t i = first; i < last; ++i)
      rows[missing[i].position] = row < 0 ? -1 : b * capacity + row;
    if (last == num_missing || bucket(missing[last].hash) != b) {
      main[b].settle();
      if (admit_after > 1) candidates[b].settle();
    }
  }
  return {found, fresh.narrow(0, 0, num_fresh), log.tensor(), candidate_log.tensor()};
}

Tensor find_assigned(at::TensorList map, const Tensor& summaries, int64_t first_bucket,
                     int64_t num_buckets, const Tensor& ids_in, int64_t horizon) {
  const int64_t here = summaries.size(0), capacity = map[0].numel() / here;
  const int64_t step = pointer<Summary>(summaries, at::kLong)[0].step;
  std::vector<Bucket> buckets = buckets_of(map, here);
  const int64_t* ids = pointer<const int64_t>(ids_in, at::kLong);
  Tensor found = at::empty_like(ids_in);
  int64_t* rows = found.data_ptr<int64_t>();
  for (int64_t i = 0; i < ids_in.numel(); ++i) {
    const uint64_t hash = mix(ids[i]);
    const int64_t b = bucket_of(hash, num_buckets) - first_bucket;
    TORCH_CHECK_INDEX(b >= 0 && b < here, "id ", ids[i], " belongs to another rank");
    const int64_t row = buckets[b].find(hash, ids[i]);
    const bool known = row >= 0 && (horizon < 0 || buckets[b].use(row).seen + horizon >= step);
    rows[i] = known ? b * capacity + row : -1;
  }
  return found;
}

void build_assignment(at::TensorList map, int64_t count) {
  for (Bucket& bucket : buckets_of(map, count)) bucket.build();
}

std::tuple<Tensor, Tensor, Tensor> deduplicate(const Tensor& ids_in) {
  const int64_t count = ids_in.numel();
  const int64_t* ids = pointer<const int64_t>(ids_in, at::kLong);
  Tensor distinct = at::empty({count}, at::kLong), inverse = at::empty({count}, at::kLong);
  Tensor counts = at::zeros({count}, at::kLong);
  int64_t *found = distinct.data_ptr<int64_t>(), *numbers = inverse.data_ptr<int64_t>();
  int64_t *sightings = counts.data_ptr<int64_t>(), size = 0;
  const uint64_t mask = std::bit_ceil(static_cast<uint64_t>(2 * count + 1)) - 1;
  std::vector<int64_t> slots(mask + 1, -1);
  for (int64_t i = 0; i < count; ++i) {
    uint64_t slot = mix(ids[i]) & mask;
    while (slots[slot] >= 0 && found[slots[slot]] != ids[i]) slot = (slot + 1) & mask;
    if (slots[slot] < 0) {
      found[size] = ids[i];
      slots[slot] = size++;
    }
    numbers[i] = slots[slot];
    ++sightings[slots[slot]];
  }
  return {distinct.narrow(0, 0, size).clone(), inverse, counts.narrow(0, 0, size).clone()};
}

}  // namespace

TORCH_LIBRARY_IMPL(deltarec, CPU, m) {
  m.impl("assign", assign);
  m.impl("find_assigned", find_assigned);
  m.impl("build_assignment", build_assignment);
  m.impl("deduplicate", deduplicate);
}

}  // namespace deltarec
