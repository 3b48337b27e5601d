// The torch op `bmt::masked_delta` on the CPU, and the C functions that kernel.py calls. The op's
// semantics are in masked_delta.py, the layout of a mask is in resident_mask.py.
//
// Uses torch's stable ABI: few headers, so it compiles in seconds. Uses torch's threads
// (`parallel_for`), whose number and binding vLLM sets. The worker's one thread calls all
// functions.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdlib>
#include <new>

#include "step.h"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

struct Model {
  ScalarType dtype;
  std::vector<Shape> layers;
  Plan plan;
  std::vector<Task> tasks;
};

// Indexed by handle: the model and the layer; no model if another kernel serves the handle.
struct Bound {
  Model* model = nullptr;
  int64_t layer = 0;
};
std::vector<Bound> bound;

template <class T>
void run(Model& model, int64_t layer, const Tensor& y, const Tensor& x) {
  const Shape& shape = model.layers[layer];
  const Step<T> step{(T*)y.mutable_data_ptr(), (const T*)x.const_data_ptr(), y.stride(0),
                     y.stride(1), x.stride(0), x.stride(1)};
  int threads = (int)torch::stable::get_num_threads();
  split_work(model.plan, layer, shape, threads, model.tasks);
  const std::vector<Task>& tasks = model.tasks;
  std::atomic<size_t> next{0};
  auto run_some = [&](int64_t, int64_t) {
    for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks.size();) {
      const Task* upcoming = i + threads < tasks.size() ? &tasks[i + threads] : nullptr;
      if (tasks[i].table->wide & 2)
        run_task<T, int32_t>(tasks[i], upcoming, model.plan, shape, step);
      else
        run_task<T, uint16_t>(tasks[i], upcoming, model.plan, shape, step);
    }
  };
  if (threads == 1)
    run_some(0, 1);
  else
    torch::stable::parallel_for(0, threads, 1, run_some);
}

void masked_delta(Tensor y, Tensor x, int64_t handle) {
  Model* model = handle < (int64_t)bound.size() ? bound[handle].model : nullptr;
  if (!model) {
    StableIValue stack[] = {torch::stable::detail::from(y), torch::stable::detail::from(x),
                            torch::stable::detail::from(handle)};
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher("bmt::masked_delta_elsewhere", "", stack, TORCH_ABI_VERSION));
    return;
  }
  if (model->plan.groups.empty()) return;
  const int64_t layer = bound[handle].layer;
  const Shape& shape = model->layers[layer];
  STD_TORCH_CHECK(y.dim() == 2 && x.dim() == 2 && y.size(0) == x.size(0),
                  "masked_delta: y and x must be [T, N] and [T, K] with the same T");
  STD_TORCH_CHECK(y.scalar_type() == model->dtype && x.scalar_type() == model->dtype,
                  "masked_delta: y and x must have the dtype of the model's gates");
  STD_TORCH_CHECK(y.size(1) >= shape.r && x.size(1) == shape.k, "masked_delta: y has ", y.size(1),
                  " columns and x ", x.size(1), "; the gate is [", shape.r, ", ", shape.k, "]");
  STD_TORCH_CHECK(x.size(0) >= model->plan.rows_needed, "masked_delta: x has ", x.size(0),
                  " tokens, and the step was planned for at least ", model->plan.rows_needed);
  if (model->dtype == ScalarType::BFloat16)
    run<BFloat16>(*model, layer, y, x);
  else
    run<float>(*model, layer, y, x);
}

// Call f(view of the mask's layer, weight) with the types of the model and the mask.
template <class F>
void typed(int64_t element, const LayerTable& table, int64_t r, int64_t weight, F f) {
  if (element == 2) {
    if (table.wide & 2)
      f(LayerView<BFloat16, int32_t>(table, r), (BFloat16*)weight);
    else
      f(LayerView<BFloat16, uint16_t>(table, r), (BFloat16*)weight);
  } else {
    if (table.wide & 2)
      f(LayerView<float, int32_t>(table, r), (float*)weight);
    else
      f(LayerView<float, uint16_t>(table, r), (float*)weight);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bmt, CPU, m) { m.impl("masked_delta", TORCH_BOX(&masked_delta)); }

extern "C" {

// shapes: R and K of each layer; element: 2 for bfloat16, 4 for float32. Null without memory.
void* bmt_model(int64_t element, int64_t layers, const int64_t* shapes) {
  auto* model = new (std::nothrow) Model;
  if (!model) return nullptr;
  model->dtype = element == 2 ? ScalarType::BFloat16 : ScalarType::Float;
  for (int64_t i = 0; i < layers; i++) model->layers.push_back({shapes[2 * i], shapes[2 * i + 1]});
  return model;
}

// Assign handles first .. first + layers - 1 to the model.
void bmt_bind(void* model, int64_t first) {
  auto* m = (Model*)model;
  if (bound.size() < first + m->layers.size()) bound.resize(first + m->layers.size());
  for (size_t i = 0; i < m->layers.size(); i++) bound[first + i] = {m, (int64_t)i};
}

void bmt_free(void* model) {
  for (Bound& b : bound)
    if (b.model == model) b.model = nullptr;
  delete (Model*)model;
}

// Return 0, or an adapter id of the step that is not in `ids`; the model is idle then.
int64_t bmt_plan(void* model, const int64_t* token_masks, int64_t t, const int64_t* ids,
                 const int64_t* tables, int64_t count) {
  return make_plan(token_masks, t, ids, tables, count, ((Model*)model)->plan);
}

void bmt_idle(void* model) { ((Model*)model)->plan = {}; }

// Read weight [R, K], `stride` elements per row, at the mask's zeros into its values.
void bmt_read_values(int64_t element, const LayerTable* table, int64_t r, int64_t weight,
                     int64_t stride) {
  typed(element, *table, r, weight, [&](auto mask, auto* w) {
    using Value = std::remove_const_t<std::remove_pointer_t<decltype(w)>>;
    auto* values = const_cast<Value*>(mask.values);
    for_each_zero<false>(mask, w, stride, 0, mask.blocks(),
                         [&](auto* weight, int64_t i) { values[i] = *weight; });
  });
}

// Turn weights under mask `old` into weights under mask `fresh`; null is the base. All arrays have
// one entry per layer: the masks' tables, and the weight's rows, address and row stride.
void bmt_switch(int64_t element, int64_t layers, const LayerTable* old, const LayerTable* fresh,
                const int64_t* rows, const int64_t* weights, const int64_t* strides) {
  // Both masks together in the same rows, so that pages that they share are walked once.
  constexpr int64_t PIECE_BLOCKS = 8, ZEROS_PER_THREAD = 16384;
  std::vector<std::pair<int64_t, int64_t>> pieces;
  int64_t zeros = 0;
  for (int64_t l = 0; l < layers; l++) {
    const int64_t blocks = (rows[l] + BLOCK - 1) / BLOCK;
    for (int64_t b = 0; b < blocks; b += PIECE_BLOCKS) pieces.push_back({l, b});
    for (const LayerTable* tables : {old, fresh})
      if (tables) zeros += ((const int32_t*)tables[l].block_start)[blocks];
  }
  std::atomic<size_t> next{0};
  auto run_some = [&](int64_t, int64_t) {
    for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < pieces.size();) {
      const auto [l, b] = pieces[i];
      if (old)
        typed(element, old[l], rows[l], weights[l], [&](auto mask, auto* w) {
          for_each_zero<true>(mask, w, strides[l], b, std::min(mask.blocks(), b + PIECE_BLOCKS),
                              [&](auto* weight, int64_t z) { *weight = mask.values[z]; });
        });
      if (fresh)
        typed(element, fresh[l], rows[l], weights[l], [&](auto mask, auto* w) {
          for_each_zero<true>(mask, w, strides[l], b, std::min(mask.blocks(), b + PIECE_BLOCKS),
                              [](auto* weight, int64_t) { *weight = {}; });
        });
    }
  };
  const int64_t most = torch::stable::get_num_threads();
  torch::stable::parallel_for(0, std::min(most, 1 + zeros / ZEROS_PER_THREAD), 1, run_some);
}
}
