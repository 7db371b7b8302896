// The part of topk_affinity's gradient that runs through the softmax denominator, for normalise="all".
#pragma once

#include <cstdint>

#include "topk_affinity.h"

namespace timecycle {

// For every slot t of every target b, with p[n, m] = count * exp(logit[n, m] - denominators[b, n, group]):
//     d_query[b, n] -= sum over m of mean[b, n, group] p[n, m] key m
//     d_bank[f, m]  -= sum over n of mean[b, n, group] p[n, m] query n,   f = frames[b, t]
// denominators and mean [B, N, groups]; d_query [B, N, D] and d_bank [F, M, D] are added to, in float.
template <typename Feature>
void topk_affinity_backward_cpu(const TopkAffinity& shape, const Feature* query, const Feature* bank,
                                const int64_t* frames, const int64_t* copies, const float* denominators,
                                const float* mean, float* d_query, float* d_bank);

}  // namespace timecycle
