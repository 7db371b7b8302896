// The instructions of chip.h for sm_80 and sm_90a. Names in brackets are those of the PTX manual.
#pragma once

#include <cooperative_groups.h>
#include <cuda.h>  // types only: the driver's one function is looked up at run time
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#define ON_DEVICE __device__ __forceinline__
#define KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define KERNEL_PARAMETER const __grid_constant__
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) char name[]
// A build for several chips compiles every kernel for each of them. Kernels that a chip cannot run are empty there.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FOR_SM90 1
#else
#define FOR_SM90 0
#endif
#if !defined(__CUDA_ARCH__) || !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FOR_SM80 1
#else
#define FOR_SM80 0
#endif

namespace timecycle::chip {

constexpr int kLargestShared = 232448;  // bytes of a block, on sm_90
using bfloat16 = __nv_bfloat16;
using float16 = __half;

ON_DEVICE int block() { return blockIdx.x; }
ON_DEVICE int64_t blocks() { return gridDim.x; }
// Volatile, so that the compiler does not keep values derived from them in registers through every loop.
ON_DEVICE int thread() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}
ON_DEVICE int lane() {
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

ON_DEVICE void note(Event) {}  // counted by the emulator
ON_DEVICE void sync_block() { __syncthreads(); }
ON_DEVICE void sync_warp() { __syncwarp(); }
ON_DEVICE bool any(bool value) { return __any_sync(0xffffffffu, value); }
template <class T>
ON_DEVICE T from_lane_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

ON_DEVICE int32_t bits_of(float x) { return __float_as_int(x); }
ON_DEVICE float number_of(int32_t bits) { return __int_as_float(bits); }
ON_DEVICE int count(uint32_t bits) { return __popc(bits); }
ON_DEVICE int lowest(uint32_t bits) { return __ffs(int32_t(bits)) - 1; }  // index of the lowest set bit
// Swaps the numbers if the second is larger. For max and min the compiler would emit two comparisons.
ON_DEVICE void put_in_order(int64_t& larger, int64_t& smaller) {
  asm("{\n.reg .pred p;\n.reg .b64 first;\nmov.b64 first, %0;\nsetp.gt.s64 p, %1, first;\n"
      "selp.b64 %0, %1, first, p;\nselp.b64 %1, first, %1, p;\n}"
      : "+l"(larger), "+l"(smaller));
}
// Shifts the sign bit of x into bits, from the right.
ON_DEVICE uint32_t with_sign(uint32_t bits, float x) { return __funnelshift_l(__float_as_uint(x), bits, 1); }

ON_DEVICE float power_of_two(float x) {  // [ex2.approx.ftz]: relative error 2^-22
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

ON_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// A moving pointer into shared memory.
struct Cursor {
  uint32_t address;

  Cursor() = default;
  ON_DEVICE explicit Cursor(const void* place) : address(shared_address(place)) {}
};

// If `wanted` is not 0, stores two numbers at the cursor and advances it by STEP bytes, without a branch.
template <int STEP>
ON_DEVICE void append_if(uint32_t wanted, Cursor& to, float first, float second) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %1, 0;\n@p st.shared.v2.f32 [%0], {%2, %3};\n@p add.u32 %0, %0, %4;\n}"
               : "+r"(to.address)
               : "r"(wanted), "f"(first), "f"(second), "n"(STEP)
               : "memory");
}

// A barrier in shared memory for threads and copies [mbarrier]. Its phase flips when all have arrived.
struct Barrier {
  uint64_t state;
};

ON_DEVICE void init(Barrier& barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}

// Between init and the first copy: makes the barriers visible to the copy engine.
ON_DEVICE void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async;" ::: "memory");
}

ON_DEVICE void arrive(Barrier& barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
}

// Arrives, and makes the phase wait for that many bytes of copies.
ON_DEVICE void arrive_and_expect(Barrier& barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes)
               : "memory");
}

// Waits until the phase of that parity is complete.
ON_DEVICE void wait(Barrier& barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra over;\nbra again;\nover:\n}" ::"r"(shared_address(&barrier)),
      "r"(parity)
      : "memory");
}

// A tensor [frames][rows][columns][channels] of 16-bit values that is copied in boxes [CUtensorMap]. In shared memory a
// box has 128 bytes per position, with the 128-byte swizzle of the tensor cores.
struct Boxes {
  CUtensorMap map;
};

inline cudaError_t make_boxes(Boxes& boxes, const void* base, bool is_bfloat16, const int64_t (&size)[4],
                              const int64_t (&stride)[3], int wide, int tall) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
  const char* const name = "cuTensorMapEncodeTiled";
#if CUDART_VERSION >= 12050
  cudaError_t error = cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result);
#else
  cudaError_t error = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &result);
#endif
  if (error != cudaSuccess) return error;
  if (result != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  const cuuint64_t sizes[4] = {cuuint64_t(size[0]), cuuint64_t(size[1]), cuuint64_t(size[2]), cuuint64_t(size[3])};
  const cuuint64_t strides[3] = {cuuint64_t(2 * stride[0]), cuuint64_t(2 * stride[1]), cuuint64_t(2 * stride[2])};
  const cuuint32_t box[4] = {64, cuuint32_t(wide), cuuint32_t(tall), 1}, each[4] = {1, 1, 1, 1};
  const CUresult made = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found)(
      &boxes.map, is_bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4,
      const_cast<void*>(base), sizes, strides, box, each, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return made == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// Copies a box from (channel, column, row, frame) on [cp.async.bulk.tensor]. Elements outside of the tensor arrive as
// zeros, and their bytes count for the barrier.
ON_DEVICE void copy_box(void* to, const Boxes& from, int channel, int column, int row, int frame, Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
      "[%6];" ::"r"(shared_address(to)),
      "l"(&from), "r"(channel), "r"(column), "r"(row), "r"(frame), "r"(shared_address(&barrier))
      : "memory");
}

template <int REGISTERS>
ON_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
ON_DEVICE void leave_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// Rows of 64 channels in shared memory as copy_box leaves them, for the tensor cores [matrix descriptor]: groups of
// eight rows 1024 bytes apart, 128-byte swizzle.
struct Operand {
  uint64_t descriptor;

  ON_DEVICE explicit Operand(const void* rows)
      : descriptor((shared_address(rows) >> 4 & 0x3fff) | uint64_t{1} << 16 | uint64_t{64} << 32 | uint64_t{1} << 62) {}
  ON_DEVICE Operand after(int bytes) const {
    Operand moved = *this;
    moved.descriptor += bytes >> 4;
    return moved;
  }
};

ON_DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
ON_DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until all but the last LEFT groups are complete; sums may be read when none is left.
template <int LEFT>
ON_DEVICE void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

// A compiler barrier for sums that asynchronous products write: reads of them are not moved before the wait.
ON_DEVICE void sums_are_known(float (&sums)[64]) {
#pragma unroll
  for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

#define FOUR(s, i) "+f"(s[i]), "+f"(s[i + 1]), "+f"(s[i + 2]), "+f"(s[i + 3])
#define SIXTEEN(s, i) FOUR(s, i), FOUR(s, i + 4), FOUR(s, i + 8), FOUR(s, i + 12)
#define WGMMA(type)                                                                                                    \
  asm volatile(                                                                                                        \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"                                                                     \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                                                     \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, "    \
      "%23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, " \
      "%45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "               \
      "%64, %65, p, 1, 1, 0, 0;\n}"                                                                                    \
      : SIXTEEN(sums, 0), SIXTEEN(sums, 16), SIXTEEN(sums, 32), SIXTEEN(sums, 48)                                      \
      : "l"(a.descriptor), "l"(b.descriptor), "r"(int(add)))

// sums = (add ? sums : 0) + a [64 x 16] b^T [128 x 16], by the four warps of a group [wgmma.mma_async]. Of the 64 x 128
// sums a lane has rows r = 16 * (warp % 4) + lane / 4 and r + 8, columns c = 8 j + 2 * (lane % 4) and c + 1: in order
// (r, c), (r, c + 1), (r + 8, c), (r + 8, c + 1) for j = 0 to 15.
template <class T>
ON_DEVICE void multiply(float (&sums)[64], Operand a, Operand b, bool add) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    WGMMA("bf16");
  } else {
    WGMMA("f16");
  }
}
#undef WGMMA
#undef SIXTEEN
#undef FOUR

// Copies 16 bytes to shared memory, zeros if not `present` [cp.async.cg].
ON_DEVICE void copy_16(void* to, const void* from, bool present) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(present ? 16 : 0)
               : "memory");
}
ON_DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT>
ON_DEVICE void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// Loads four 8 x 8 matrices of 16-bit values [ldmatrix]: lanes 8 i to 8 i + 7 have the addresses of the i-th one's
// rows, 16 bytes each; every lane gets two values of row lane / 4 of each.
ON_DEVICE void load_matrices(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

// sums [4] += a [16 x 16] b^T [8 x 16], by one warp, a and b as loaded by load_matrices [mma.m16n8k16]. A lane has the
// same rows and columns of the sums as for one j of the other multiply.
template <class T>
ON_DEVICE void multiply(float* sums, const uint32_t* a, const uint32_t* b) {
#define MMA(type)                                                                     \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                 \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])           \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (std::is_same_v<T, bfloat16>) {
    MMA("bf16");
  } else {
    MMA("f16");
  }
#undef MMA
}

// For all threads of a launch_together [cooperative groups].
ON_DEVICE void sync_grid() { cooperative_groups::this_grid().sync(); }
ON_DEVICE uint32_t least(uint32_t value) { return __reduce_min_sync(0xffffffffu, value); }  // of a warp's
ON_DEVICE uint32_t most(uint32_t value) { return __reduce_max_sync(0xffffffffu, value); }
ON_DEVICE void lower(uint32_t* number, uint32_t value) { atomicMin(number, value); }
ON_DEVICE void raise(uint32_t* number, uint32_t value) { atomicMax(number, value); }

// Whether the image that this device would run was compiled for Hopper, not from PTX for an older chip.
template <class... P>
bool is_for_hopper(void (*kernel)(P...)) {
  cudaFuncAttributes found;
  return cudaFuncGetAttributes(&found, reinterpret_cast<const void*>(kernel)) == cudaSuccess && found.ptxVersion >= 90;
}

template <class... P>
cudaError_t launch(void (*kernel)(P...), int64_t blocks, int threads, int shared, cudaStream_t stream,
                   P... parameters) {
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) return error;
  void* arguments[] = {&parameters...};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(unsigned(blocks)), dim3(unsigned(threads)),
                          arguments, shared, stream);
}

// Cooperative launch of the wanted number of blocks, at most as many as the device runs at the same time.
template <class P>
cudaError_t launch_together(void (*kernel)(P), int64_t wanted, int threads, cudaStream_t stream, P parameter) {
  int device, processors, each;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, 0);
  if (error != cudaSuccess) return error;
  const int64_t most = int64_t{processors} * each;
  void* arguments[] = {&parameter};
  return cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), unsigned(wanted < most ? wanted : most),
                                     threads, arguments, 0, stream);
}

}  // namespace timecycle::chip
