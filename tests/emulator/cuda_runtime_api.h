// What the launch code says of CUDA's runtime, for the emulator.
#pragma once

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorInvalidKernelImage };
using cudaStream_t = void*;

inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidValue ? "invalid argument" : "no error";
}
