// The kernels of gpu_wrappers_hopper.h.
#include "tests/gpu_wrappers_hopper.h"

#include "kernels/wgmma.h"

namespace GPU_NAMESPACE {
namespace {

using Word = uint32_t;

__global__ void use_mbarriers(Word* out, const Word* inp) {
    wait_for_previous();
    SHARED(uint64_t, barrier, [1]);
    SHARED(Word, words, [128]);
    if constexpr (kSm90a) {
        const int thread = static_cast<int>(threadIdx.x);
        if (thread == 0) {
            mbarrier_init(barrier, 128);
            fence_mbarrier_init();
        }
        __syncthreads();
        words[thread] = inp[thread];
        out[4 * thread] = mbarrier_test(barrier, 0) | mbarrier_test(barrier, 1) << 1;
        __syncthreads();
        if (thread % 2 == 0) mbarrier_arrive(barrier);
        __syncthreads();
        out[4 * thread + 1] = mbarrier_test(barrier, 0) | mbarrier_test(barrier, 1) << 1;
        __syncthreads();
        if (thread % 2 == 1) mbarrier_arrive(barrier);
        mbarrier_wait(barrier, 0);
        out[4 * thread + 2] = mbarrier_test(barrier, 0) | mbarrier_test(barrier, 1) << 1;
        out[4 * thread + 3] = words[127 - thread];
    } else {
        __trap();
    }
}

__global__ void use_named_barriers(Word* out, const Word* inp) {
    wait_for_previous();
    SHARED(Word, words, [64]);
    if constexpr (kSm90a) {
        const int thread = static_cast<int>(threadIdx.x), pair = thread / kWarp % 2;
        if (thread < 64) {
            words[thread] = inp[thread];
            named_barrier_arrive(1 + pair, 64);
        } else {
            named_barrier_sync(1 + pair, 64);
            out[thread - 64] = words[32 * pair + 31 - thread % kWarp];
        }
    } else {
        __trap();
    }
}

__global__ void __launch_bounds__(384, 1) move_registers(Word* out, const Word* inp) {
    wait_for_previous();
    if constexpr (kSm90a) {
        if (threadIdx.x < 128) {
            give_registers<40>();
        } else {
            take_registers<232>();
        }
        out[threadIdx.x] = inp[threadIdx.x] + 1;
    } else {
        __trap();
    }
}

// The second half of the words comes to where the first half went out from.
__global__ void copy_bytes(Word* out, const Word* inp) {
    wait_for_previous();
    SHARED(Pack<float>, there, [64]);
    SHARED(Pack<float>, back, [64]);
    SHARED(uint64_t, arrived, [1]);
    if constexpr (kSm90a) {
        const int thread = static_cast<int>(threadIdx.x);
        if (thread == 0) {
            mbarrier_init(arrived, 1);
            fence_mbarrier_init();
        }
        __syncthreads();
        for (int half = 0; half < 2; ++half) {
            if (thread == 0) {
                mbarrier_expect_bytes(arrived, 512);
                mbarrier_arrive_expect_bytes(arrived, 512);
                load_bytes(&there[0], inp + 256 * half, 512, arrived);
                load_bytes(&there[32], inp + 256 * half + 128, 512, arrived);
            }
            mbarrier_wait(arrived, half);
            for (int k = 0; k < 4; ++k) back[63 - thread][3 - k] = there[thread][k];
            fence_proxy_async();
            __syncthreads();
            if (thread == 0) {
                store_bytes(out + 256 * (1 - half), back, 1024);
                store_commit();
                store_wait_read<0>();
            }
            __syncthreads();
        }
        if (thread == 0) store_wait<0>();
    } else {
        __trap();
    }
}

struct Corner {
    int v[4];
};
template <int kRank>
__global__ void copy_box(Word* out, GRID_CONSTANT TensorMap map, GRID_CONSTANT TensorMap copy, Corner at) {
    wait_for_previous();
    DYN_SHARED(Word, box);
    SHARED(uint64_t, arrived, [1]);
    if constexpr (kSm90a) {
        int corner[kRank];
        for (int d = 0; d < kRank; ++d) corner[d] = at.v[d];
        if (threadIdx.x == 0) {
            prefetch_tensor_map(map);
            mbarrier_init(arrived, 1);
            fence_mbarrier_init();
            mbarrier_arrive_expect_bytes(arrived, 4 * kHopperBoxWords);
            load_box(box, map, corner, arrived);
        }
        __syncthreads();
        mbarrier_wait(arrived, 0);
        for (int i = static_cast<int>(threadIdx.x); i < kHopperBoxWords; i += kWarp) out[i] = box[i];
        if (threadIdx.x == 0) {
            store_box(copy, corner, box);
            store_commit();
            store_wait<0>();
        }
    } else {
        __trap();
    }
}

template <class T>
constexpr int kDepth = kPanelBytes / sizeof(T);
template <class A>
using OtherOperand = std::conditional_t<std::is_same_v<A, bf16>, bf16, e4m3>;
template <class A, int kN, Major kA, Major kB, bool kRegisters>
__global__ void __launch_bounds__(128)
    multiply_group(Word* out, const Word* inp, GRID_CONSTANT TensorMap map_a, GRID_CONSTANT TensorMap map_b) {
    using B = OtherOperand<A>;
    using TileA = WgmmaTile<kA, 64, kDepth<A>, A>;
    using TileB = WgmmaTile<kB, kN, kDepth<A>, B>;
    constexpr int kStep = 32 / sizeof(A), kSteps = kDepth<A> / kStep;
    wait_for_previous();
    DYN_SHARED(A, tile_a);
    SHARED(uint64_t, arrived, [1]);
    if constexpr (kSm90a) {
        B* const tile_b = reinterpret_cast<B*>(tile_a + TileA::kElements);
        const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
        if (thread == 0) {
            mbarrier_init(arrived, 1);
            fence_mbarrier_init();
            mbarrier_arrive_expect_bytes(arrived, sizeof(A) * (TileA::kElements + TileB::kElements));
            load_box(tile_a, map_a, {0, 0}, arrived);
            for (int panel = 0; panel < TileB::kPanels; ++panel)
                load_box(tile_b + panel * TileB::kPanelElements, map_b, {64 * panel, 0}, arrived);
        }
        __syncthreads();
        mbarrier_wait(arrived, 0);
        float d[kN / 2];
        UNROLL
        for (float& x : d) x = __uint_as_float(0x7fc00000);  // not a number: the first product sets
        Word a[kSteps][4];
        UNROLL
        for (int step = 0; step < kSteps && kRegisters; ++step) {
            UNROLL
            for (int i = 0; i < 4; ++i) {
                const int row = 16 * warp + lane / 4 + 8 * (i % 2),
                          k = 16 * step + 2 * (lane % 4) + 8 * (i / 2);
                a[step][i] = inp[(row * kDepth<A> + k) / 2];
            }
        }
        for (int turn = 0; turn < 2; ++turn) {
            wgmma_fence(d);
            UNROLL
            for (int step = 0; step < kSteps; ++step) {
                const uint64_t b = TileB::descriptor(tile_b, 0, kStep * step);
                if constexpr (kRegisters) {
                    pin_registers(a[step]);
                    wgmma_bf16<kB>(d, a[step], b, turn + step > 0);
                } else if constexpr (std::is_same_v<A, bf16>) {
                    wgmma_bf16<kA, kB>(d, TileA::descriptor(tile_a, 0, kStep * step), b, turn + step > 0);
                } else {
                    wgmma_fp8<A>(d, TileA::descriptor(tile_a, 0, kStep * step), b, turn + step > 0);
                }
            }
            wgmma_commit();
            wgmma_wait<0>(d);
        }
        UNROLL
        for (int i = 0; i < kN / 2; ++i) {
            const int row = 16 * warp + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
            out[row * kN + column] = __float_as_uint(d[i]);
        }
    } else {
        __trap();
    }
}

template <int kRank>
void run_box(Word* out, const Word* inp, int swizzle_bytes) {
    // Boxes hang over the begin of one dimension and the end of another.
    BoxedTensor tensor{.data = inp, .dtype = DType::f32, .rank = kRank, .swizzle_bytes = swizzle_bytes};
    const int64_t dims[3][4] = {{12, 20}, {12, 5, 4}, {12, 5, 2, 2}};
    const int boxes[3][4] = {{8, 8}, {8, 4, 2}, {8, 2, 2, 2}};
    Corner at = kRank == 2 ? Corner{{-4, 15}} : kRank == 3 ? Corner{{8, -1, 3}} : Corner{{4, 4, 1, -1}};
    for (int d = 0; d < kRank; ++d) {
        tensor.dims[d] = dims[kRank - 2][d];
        tensor.strides[d] = d == 0 ? 1 : tensor.strides[d - 1] * tensor.dims[d - 1];
        tensor.box[d] = boxes[kRank - 2][d];
    }
    if (swizzle_bytes > 0) {  // rows as long as the swizzle
        tensor.box[0] = swizzle_bytes / 4;
        tensor.box[1] = kHopperBoxWords / tensor.box[0];
        at = {{-4, 18}};
    }
    BoxedTensor copy = tensor;
    copy.data = out + kHopperBoxWords;
    launch(copy_box<kRank>, 1, kWarp, 4 * kHopperBoxWords, {}, out, tensor_map(tensor), tensor_map(copy), at);
}

template <class A, int kN, Major kA, Major kB, bool kRegisters>
void run_operands(Word* out, const Word* inp) {
    constexpr int kInner = kDepth<A>;
    const auto map = [](const Word* lines, Major major, int outer) {
        return tensor_map({.data = lines,
                           .dtype = sizeof(A) == 1 ? DType::u8 : DType::bf16,
                           .dims = {major == Major::k ? kInner : outer, major == Major::k ? outer : kInner},
                           .strides = {1, major == Major::k ? kInner : outer},
                           .box = {kInner, major == Major::k ? outer : kInner}});
    };
    launch(multiply_group<A, kN, kA, kB, kRegisters>, 1, 128, (64 + kN) * kPanelBytes, {}, out, inp,
           map(inp, kA, 64), map(inp + 64 * kPanelBytes / 4, kB, kN));
}
template <int kN, Major kA, Major kB, bool kRegisters>
void run_product(Word* out, const Word* inp) {
    run_operands<bf16, kN, kA, kB, kRegisters>(out, inp);
}

}  // namespace

void run_hopper_wrapper(HopperWrapper wrapper, Tensor out, Tensor inp) {
    Word* const to = reinterpret_cast<Word*>(out.as<int32_t>());
    const Word* const from = reinterpret_cast<const Word*>(inp.as<int32_t>());
    const auto start = [&](void (*kernel)(Word*, const Word*)) {
        launch(kernel, 1, hopper_shape(wrapper).threads, 0, {}, to, from);
    };
    constexpr Major k = Major::k, mn = Major::mn;
    switch (wrapper) {
        case HopperWrapper::mbarriers: return start(use_mbarriers);
        case HopperWrapper::named_barriers: return start(use_named_barriers);
        case HopperWrapper::registers: return start(move_registers);
        case HopperWrapper::bytes: return start(copy_bytes);
        case HopperWrapper::box_2d: return run_box<2>(to, from, 0);
        case HopperWrapper::box_3d: return run_box<3>(to, from, 0);
        case HopperWrapper::box_4d: return run_box<4>(to, from, 0);
        case HopperWrapper::box_swizzle_32: return run_box<2>(to, from, 32);
        case HopperWrapper::box_swizzle_64: return run_box<2>(to, from, 64);
        case HopperWrapper::box_swizzle_128: return run_box<2>(to, from, 128);
        case HopperWrapper::wgmma_64_k_k: return run_product<64, k, k, false>(to, from);
        case HopperWrapper::wgmma_128_k_mn: return run_product<128, k, mn, false>(to, from);
        case HopperWrapper::wgmma_192_mn_k: return run_product<192, mn, k, false>(to, from);
        case HopperWrapper::wgmma_256_mn_mn: return run_product<256, mn, mn, false>(to, from);
        case HopperWrapper::wgmma_256_k_k: return run_product<256, k, k, false>(to, from);
        case HopperWrapper::wgmma_64_registers_mn: return run_product<64, k, mn, true>(to, from);
        case HopperWrapper::wgmma_128_registers_k: return run_product<128, k, k, true>(to, from);
        case HopperWrapper::wgmma_192_registers_k: return run_product<192, k, k, true>(to, from);
        case HopperWrapper::wgmma_256_registers_mn: return run_product<256, k, mn, true>(to, from);
        case HopperWrapper::wgmma_e4m3: return run_operands<e4m3, 128, k, k, false>(to, from);
        case HopperWrapper::wgmma_e5m2: return run_operands<e5m2, 128, k, k, false>(to, from);
    }
}

}  // namespace GPU_NAMESPACE
