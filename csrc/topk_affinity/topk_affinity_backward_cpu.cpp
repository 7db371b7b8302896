// What both ways of the gradient share: the kept keys, and where the frames of the bank stand.
#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>

#include "sizes.h"
#include "topk_affinity/topk_affinity_backward.h"

namespace timecycle {

KeptKeys::KeptKeys(const TopkAffinity& shape, const TopkAffinityGradient& in)
    : s_(shape),
      in_(in),
      means_(checked_product({shape.targets, shape.queries, shape.groups()})),
      filled_(shape.targets, 1.0f) {
  for (int64_t b = 0; b < s_.targets && !s_.joint; ++b) {
    const int64_t* context = s_.frames + b * s_.slots;
    filled_[b] =
        static_cast<float>(std::count_if(context, context + s_.slots, [](int64_t frame) { return frame >= 0; }));
  }
  at::parallel_for(0, static_cast<int64_t>(means_.size()), 4096, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      double sum = 0.0;
      for (int64_t i = row * in_.kept; i < (row + 1) * in_.kept; ++i)
        if (in_.indices[i] >= 0) sum += static_cast<double>(in_.weights[i]) * in_.gradient[i];
      means_[row] = static_cast<float>(sum * s_.softmax_scale);
    }
  });
}

std::vector<std::vector<Use>> uses_of(const TopkAffinity& shape) {
  std::vector<std::vector<Use>> uses(shape.bank_frames);
  for (int64_t b = 0; b < shape.targets; ++b)
    for (int64_t slot = 0; slot < shape.slots; ++slot)
      if (shape.frames[b * shape.slots + slot] >= 0) uses[shape.frames[b * shape.slots + slot]].push_back({b, slot});
  return uses;
}

template <typename Feature>
void topk_affinity_backward_cpu(const TopkAffinity& problem, const TopkAffinityGradient& in, Feature* d_query,
                                Feature* d_bank) {
  const KeptKeys kept(problem, in);
  const auto gradient = problem.softmax_over_all ? gradient_of_all<Feature> : gradient_of_kept<Feature>;
  gradient(problem, in, kept, static_cast<const Feature*>(problem.query), static_cast<const Feature*>(problem.bank),
           d_query, d_bank);
}

template void topk_affinity_backward_cpu(const TopkAffinity&, const TopkAffinityGradient&, float*, float*);
template void topk_affinity_backward_cpu(const TopkAffinity&, const TopkAffinityGradient&, c10::BFloat16*,
                                         c10::BFloat16*);
template void topk_affinity_backward_cpu(const TopkAffinity&, const TopkAffinityGradient&, c10::Half*, c10::Half*);

}  // namespace timecycle
