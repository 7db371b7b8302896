// The compiled kernels as Python functions; timecycle/ops declares the operators and checks their arguments.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/csrc/utils/pybind.h>

#include <tuple>

#include "tile_product.h"
#include "topk_affinity.h"
#include "topk_affinity_backward.h"

namespace {

using at::Tensor;

timecycle::TopkAffinity shape_of(const Tensor& query, const Tensor& bank, const Tensor& frames, int64_t k,
                                 double temperature, bool joint, bool all, bool ties, int64_t width,
                                 std::vector<int64_t> reach) {
  return {.targets = query.size(0),
          .queries = query.size(1),
          .channels = query.size(2),
          .frames = bank.size(0),
          .positions = bank.size(1),
          .slots = frames.size(1),
          .k = k,
          .scale = static_cast<float>(1.0 / temperature),
          .joint = joint,
          .all = all,
          .ties = ties,
          .width = width,
          .reach = std::move(reach)};
}

std::tuple<Tensor, Tensor, Tensor> topk_affinity(const Tensor& query, const Tensor& bank, const Tensor& frames,
                                                 const Tensor& copies, int64_t k, double temperature, bool joint,
                                                 bool all, bool ties, int64_t width, std::vector<int64_t> reach) {
  const timecycle::TopkAffinity shape =
      shape_of(query, bank, frames, k, temperature, joint, all, ties, width, std::move(reach));
  Tensor weights, indices;
  Tensor denominators =
      at::empty({shape.targets, shape.queries, all ? shape.groups() : 0}, query.options().dtype(at::kFloat));
  const auto allocate = [&](int64_t kept) {
    weights = at::empty({shape.targets, shape.queries, shape.groups() * kept}, denominators.options());
    indices = at::empty({shape.targets, shape.queries, shape.groups() * kept}, frames.options());
    return timecycle::TopkAffinityOut{weights.mutable_data_ptr<float>(), indices.mutable_data_ptr<int64_t>(),
                                      denominators.mutable_data_ptr<float>()};
  };
  const auto run = [&]<typename Feature>() {
    timecycle::topk_affinity_cpu<Feature>(shape, query.const_data_ptr<Feature>(), bank.const_data_ptr<Feature>(),
                                          frames.const_data_ptr<int64_t>(), copies.const_data_ptr<int64_t>(), allocate);
  };
  AT_DISPATCH_SWITCH(query.scalar_type(), "topk_affinity",
                     AT_DISPATCH_CASE(at::kFloat, [&] { run.operator()<scalar_t>(); })
                         AT_DISPATCH_CASE(at::kBFloat16, [&] { run.operator()<scalar_t>(); })
                             AT_DISPATCH_CASE(at::kHalf, [&] { run.operator()<scalar_t>(); }));
  return {weights, indices, denominators};
}

// Gradients of query and bank from `gradient`, that of the weights; the rest is what the forward took and gave.
std::tuple<Tensor, Tensor> topk_affinity_backward(const Tensor& gradient, const Tensor& weights, const Tensor& indices,
                                                  const Tensor& denominators, const Tensor& query, const Tensor& bank,
                                                  const Tensor& frames, const Tensor& copies, double temperature,
                                                  bool joint, bool all, int64_t width, std::vector<int64_t> reach) {
  const timecycle::TopkAffinity shape =
      shape_of(query, bank, frames, 1, temperature, joint, all, false, width, std::move(reach));
  Tensor d_query = at::empty_like(query), d_bank = at::empty_like(bank);
  const timecycle::TopkAffinityGradient in{.frames = frames.const_data_ptr<int64_t>(),
                                           .copies = copies.const_data_ptr<int64_t>(),
                                           .gradient = gradient.const_data_ptr<float>(),
                                           .weights = weights.const_data_ptr<float>(),
                                           .indices = indices.const_data_ptr<int64_t>(),
                                           .denominators = denominators.const_data_ptr<float>(),
                                           .kept = weights.size(2) / shape.groups()};
  const auto run = [&]<typename Feature>() {
    timecycle::topk_affinity_backward_cpu<Feature>(shape, in, query.const_data_ptr<Feature>(),
                                                   bank.const_data_ptr<Feature>(), d_query.mutable_data_ptr<Feature>(),
                                                   d_bank.mutable_data_ptr<Feature>());
  };
  AT_DISPATCH_SWITCH(query.scalar_type(), "topk_affinity_backward",
                     AT_DISPATCH_CASE(at::kFloat, [&] { run.operator()<scalar_t>(); })
                         AT_DISPATCH_CASE(at::kBFloat16, [&] { run.operator()<scalar_t>(); })
                             AT_DISPATCH_CASE(at::kHalf, [&] { run.operator()<scalar_t>(); }));
  return {d_query, d_bank};
}

// The time of every product of `topk_affinity` alone: queries [N, D] by keys [M, D], tile by tile, nothing written.
void tile_product(const Tensor& query, const Tensor& keys) {
  const auto run = [&]<typename Feature>() {
    timecycle::tile_product_cpu<Feature>(query.size(0), keys.size(0), query.size(1), query.const_data_ptr<Feature>(),
                                         keys.const_data_ptr<Feature>());
  };
  AT_DISPATCH_SWITCH(query.scalar_type(), "tile_product", AT_DISPATCH_CASE(at::kFloat, [&] {
                       run.operator()<scalar_t>();
                     }) AT_DISPATCH_CASE(at::kBFloat16, [&] { run.operator()<scalar_t>(); }));
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "timecycle's compiled kernels; all tensors contiguous, on the CPU";
  module.def("pairs", timecycle::PairPanel::can_run, "Whether this chip multiplies bfloat16 with this many channels");
  module.def("topk_affinity_backward", topk_affinity_backward, pybind11::call_guard<pybind11::gil_scoped_release>());
  module.def("tile_product", tile_product, pybind11::call_guard<pybind11::gil_scoped_release>());
  module.def("topk_affinity", topk_affinity, pybind11::call_guard<pybind11::gil_scoped_release>());
}
