// SPDX-License-Identifier: Apache-2.0
// A step in the lives of ids, each after the other: see `identities/reference.py`.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>
#include <vector>

#include "ids.h"
#include "splitmix.h"

namespace deltarec {
namespace {

using at::Tensor;

constexpr int64_t kStateWidth = 8;
constexpr int32_t kNever = -2;

struct Mark {
  int32_t first, row;
};
struct Trace {
  float recent, loss, error, norm, retention;
};
struct Count {
  int64_t next, given, taken, reviewed;
};

template <typename T>
T* pointer(const Tensor& tensor, at::ScalarType type, int64_t columns) {
  TORCH_CHECK(tensor.dim() == 1 ? columns == 1 : tensor.size(-1) == columns,
              "identities: expected ", columns, " columns, got ", tensor.sizes());
  return deltarec::pointer<T>(tensor, type);
}

// The tensors of all ids here.
struct Lives {
  explicit Lives(at::TensorList tensors)
      : places(tensors[0].size(0)),
        buckets(tensors[3].size(0)),
        uses(pointer<const Use>(tensors[0], at::kInt, 3)),
        marks(pointer<Mark>(tensors[1], at::kInt, 2)),
        traces(pointer<Trace>(tensors[2], at::kFloat, 5)),
        counts(pointer<Count>(tensors[3], at::kLong, 4)),
        capacity(tensors[4].size(1)),
        queue(pointer<const int32_t>(tensors[4], at::kInt, capacity)),
        holders(pointer<const int32_t>(tensors[5], at::kInt, capacity)) {
    TORCH_CHECK(tensors[1].size(0) == places && tensors[2].size(0) == places &&
                    places % buckets == 0 && tensors[4].size(0) == buckets &&
                    tensors[5].sizes() == tensors[4].sizes(),
                "identities: the tensors do not belong together");
  }
  int64_t bucket(int64_t place) const { return place / (places / buckets); }

  // Takes the row of a place, which has one.
  void evict(int64_t place) {
    ++counts[bucket(place)].taken;
    marks[place].row = -1;
    traces[place].norm = 0;
  }

  const int64_t places, buckets;
  const Use* const uses;
  Mark* const marks;
  Trace* const traces;
  Count* const counts;
  const int64_t capacity;
  const int32_t* const queue;
  const int32_t* const holders;
};

// What places were before the first change of each.
class Log {
 public:
  Log(const Lives& lives, int64_t most)
      : lives_(lives),
        places_(at::empty({most}, at::kLong)),
        marks_(at::empty({most, 2}, at::kInt)),
        traces_(at::empty({most, 5}, at::kFloat)) {}

  void add(int64_t place) {
    places_.data_ptr<int64_t>()[size_] = place;
    static_cast<Mark*>(marks_.data_ptr())[size_] = lives_.marks[place];
    static_cast<Trace*>(traces_.data_ptr())[size_++] = lives_.traces[place];
  }
  std::tuple<Tensor, Tensor, Tensor> tensors() const {
    return {places_.narrow(0, 0, size_), marks_.narrow(0, 0, size_), traces_.narrow(0, 0, size_)};
  }

 private:
  const Lives& lives_;
  Tensor places_, marks_, traces_;
  int64_t size_ = 0;
};

const int64_t* places_of(const Tensor& tensor, const Lives& lives) {
  const int64_t* places = pointer<const int64_t>(tensor, at::kLong, 1);
  for (int64_t i = 0; i < tensor.numel(); ++i)
    TORCH_CHECK_INDEX(places[i] < lives.places, "identities: place ", places[i], " of ", lives.places);
  return places;
}

Tensor identity_states(at::TensorList tensors, const Tensor& places_in, int64_t step) {
  const Lives lives(tensors);
  const int64_t* places = places_of(places_in, lives);
  const int64_t size = places_in.numel();
  Tensor found = at::empty({size, kStateWidth}, at::kFloat);
  float* state = found.data_ptr<float>();
  for (int64_t i = 0; i < size; ++i, state += kStateWidth) {
    if (places[i] < 0) {
      std::fill(state, state + kStateWidth, 0.0f);
      continue;
    }
    const Use& use = lives.uses[places[i]];
    const Mark& mark = lives.marks[places[i]];
    const Trace& trace = lives.traces[places[i]];
    state[0] = std::log1p(static_cast<float>(use.count));
    state[1] = std::log1p(trace.recent);
    state[2] = std::log1p(static_cast<float>(step - use.seen));
    state[3] = std::log1p(static_cast<float>(step - mark.first));
    state[4] = trace.loss;
    state[5] = trace.error;
    state[6] = trace.norm;
    state[7] = mark.row >= 0;
  }
  return found;
}

// A dense layer of one input; weights [in, out]. Some outputs at a time stay in registers.
void dense(const float* input, int64_t ins, const float* weights, const float* bias, int64_t outs,
           float* output) {
  constexpr int64_t kBlock = 16;
  int64_t first = 0;
  for (; first + kBlock <= outs; first += kBlock) {
    float sums[kBlock];
    for (int64_t o = 0; o < kBlock; ++o) sums[o] = bias[first + o];
    for (int64_t i = 0; i < ins; ++i)
      for (int64_t o = 0; o < kBlock; ++o) sums[o] += input[i] * weights[i * outs + first + o];
    std::copy(sums, sums + kBlock, output + first);
  }
  for (; first < outs; ++first) {
    float sum = bias[first];
    for (int64_t i = 0; i < ins; ++i) sum += input[i] * weights[i * outs + first];
    output[first] = sum;
  }
}

void relu(float* values, int64_t size) {
  for (int64_t i = 0; i < size; ++i) values[i] = std::max(values[i], 0.0f);
}

// One id at a time, so that what is done with it does not depend on its company.
Tensor identity_actions(const Tensor& states_in, at::TensorList actor) {
  constexpr int64_t kSeen = kStateWidth - 1;  // the actor does not see who has a row
  TORCH_CHECK(actor.size() == 7, "identity_actions: ", actor.size(), " parameters instead of 7");
  const Tensor first = actor[1].t(), second = actor[3].t().contiguous();
  const Tensor head = actor[5].t().contiguous();
  const Tensor bias = at::addmv(actor[2], first.slice(0, kSeen).t(), actor[0]).contiguous();
  const Tensor inputs = first.slice(0, 0, kSeen).contiguous();
  const int64_t wide = inputs.size(1), narrow = second.size(1), outs = head.size(1);
  const Tensor second_bias = actor[4].contiguous(), head_bias = actor[6].contiguous();
  const int64_t size = states_in.size(0);
  const float* state = pointer<const float>(states_in, at::kFloat, kStateWidth);
  Tensor found = at::empty({size, outs}, at::kFloat);
  float* action = found.data_ptr<float>();
  std::vector<float> hidden(wide + narrow);
  for (int64_t i = 0; i < size; ++i, state += kStateWidth, action += outs) {
    float *one = hidden.data(), *two = one + wide;
    dense(state, kSeen, inputs.const_data_ptr<float>(), bias.const_data_ptr<float>(), wide, one);
    relu(one, wide);
    dense(one, wide, second.const_data_ptr<float>(), second_bias.const_data_ptr<float>(), narrow, two);
    relu(two, narrow);
    dense(two, narrow, head.const_data_ptr<float>(), head_bias.const_data_ptr<float>(), outs, action);
    const float most = *std::max_element(action, action + outs - 1);
    float sum = 0;
    for (int64_t k = 0; k < outs - 1; ++k) sum += action[k] = std::exp(action[k] - most);
    for (int64_t k = 0; k < outs - 1; ++k) action[k] /= sum;
    action[outs - 1] = 1 / (1 + std::exp(-action[outs - 1]));
  }
  return found;
}

void explore(const Tensor& actions_in, const Tensor& bits_in, double noise_in, bool retention) {
  const int64_t size = actions_in.size(0), outs = actions_in.size(1), shared = outs - 1;
  float* action = pointer<float>(actions_in, at::kFloat, outs);
  const int64_t* bits = pointer<const int64_t>(bits_in, at::kLong, 1);
  TORCH_CHECK(bits_in.numel() == size, "explore: ", bits_in.numel(), " numbers for ", size, " ids");
  const auto noise = static_cast<float>(noise_in), rest = static_cast<float>(1 - noise_in);
  for (int64_t i = 0; i < size; ++i, action += outs) {
    for (int64_t k = 0; k < shared; ++k) action[k] *= rest;
    action[((bits[i] >> 32) & 0xFFFF) * shared >> 16] += noise;
    if (!retention) continue;
    const float shift = static_cast<float>(bits[i] & 0xFFFF) / 32768 - 1;
    action[shared] = std::clamp(action[shared] + noise * shift, 0.0f, 1.0f);
  }
}

Tensor identity_answers(at::TensorList tensors, const Tensor& places_in, const Tensor& states_in,
                        const Tensor& actions_in) {
  const Lives lives(tensors);
  const int64_t* places = places_of(places_in, lives);
  const int64_t size = places_in.numel(), outs = actions_in.size(1), width = 1 + kStateWidth + outs;
  const float* state = pointer<const float>(states_in, at::kFloat, kStateWidth);
  const float* action = pointer<const float>(actions_in, at::kFloat, outs);
  TORCH_CHECK(states_in.size(0) == size && actions_in.size(0) == size, "identity_answers: ", size,
              " places, ", states_in.size(0), " states, ", actions_in.size(0), " actions");
  Tensor found = at::empty({size, width}, at::kFloat);
  float* answer = found.data_ptr<float>();
  for (int64_t i = 0; i < size; ++i, answer += width, state += kStateWidth, action += outs) {
    int32_t row = places[i] < 0 ? -1 : lives.marks[places[i]].row;
    if (row >= 0) row += static_cast<int32_t>(lives.bucket(places[i]) * lives.capacity);
    std::memcpy(answer, &row, sizeof row);
    std::copy(state, state + kStateWidth, answer + 1);
    std::copy(action, action + outs, answer + 1 + kStateWidth);
    answer[width - 1] *= state[kStateWidth - 1];
  }
  return found;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sight(
    at::TensorList tensors, const Tensor& ids_in, const Tensor& places_in, const Tensor& fresh_in,
    const Tensor& sightings_in, const Tensor& retention_in, int64_t step, int64_t admit_after,
    double promote_at) {
  Lives lives(tensors);
  const int64_t size = places_in.numel(), num_fresh = fresh_in.numel();
  const int64_t* ids = pointer<const int64_t>(ids_in, at::kLong, 1);
  const int64_t* places = places_of(places_in, lives);
  const int64_t* fresh = places_of(fresh_in, lives);
  const int64_t* sightings = pointer<const int64_t>(sightings_in, at::kLong, 1);
  const float* retention = pointer<const float>(retention_in, at::kFloat, 1);
  TORCH_CHECK(ids_in.numel() == size && sightings_in.numel() == size && retention_in.numel() == size,
              "sight: ", size, " places, ", ids_in.numel(), " ids, ", sightings_in.numel(),
              " sightings, ", retention_in.numel(), " retentions");

  Log log(lives, 2 * size);  // an id takes at most one other's row
  for (int64_t i = 0; i < size; ++i)
    if (places[i] >= 0) log.add(places[i]);
  for (int64_t i = 0; i < num_fresh; ++i) {
    if (lives.marks[fresh[i]].row >= 0) lives.evict(fresh[i]);
    lives.marks[fresh[i]].first = static_cast<int32_t>(step);
    lives.traces[fresh[i]] = {};
  }

  struct Wish {
    uint64_t hash;
    int64_t position;
    bool operator<(const Wish& other) const { return hash < other.hash; }
  };
  std::vector<Wish> wishes;
  for (int64_t i = 0; i < size; ++i) {
    if (places[i] < 0) continue;
    lives.traces[places[i]].recent += static_cast<float>(sightings[i]);
    if (lives.marks[places[i]].row < 0 && lives.uses[places[i]].count >= admit_after &&
        retention[i] >= static_cast<float>(promote_at))
      wishes.push_back({mix(ids[i]), i});
  }
  std::sort(wishes.begin(), wishes.end());

  Tensor promoted = at::empty({static_cast<int64_t>(wishes.size())}, at::kLong);
  int64_t num_promoted = 0;
  const int64_t places_each = lives.places / lives.buckets;
  for (const Wish& wish : wishes) {
    const int64_t place = places[wish.position], b = lives.bucket(place);
    Count& count = lives.counts[b];
    for (bool given = false; !given && count.next < lives.capacity; ++count.next) {
      const int64_t turn = b * lives.capacity + count.next;
      const int32_t row = lives.queue[turn];
      if (lives.holders[turn] == kNever) continue;
      if (lives.holders[turn] >= 0) {
        const int64_t holder = b * places_each + lives.holders[turn];
        if (lives.marks[holder].row == row) {
          if (lives.uses[holder].seen > count.reviewed) continue;
          log.add(holder);
          lives.evict(holder);
        }
      }
      lives.marks[place].row = row;
      lives.traces[place].retention = retention[wish.position];
      ++count.given;
      promoted.data_ptr<int64_t>()[num_promoted++] = wish.position;
      given = true;
    }
  }
  return std::tuple_cat(std::tuple(promoted.narrow(0, 0, num_promoted)), log.tensors());
}

}  // namespace

TORCH_LIBRARY_IMPL(deltarec, CPU, m) {
  m.impl("identity_states", identity_states);
  m.impl("identity_actions", identity_actions);
  m.impl("explore", explore);
  m.impl("sight", sight);
  m.impl("identity_answers", identity_answers);
}

}  // namespace deltarec
