// The host's half of TMA: tensor maps (kernels/tma.h).
#include "kernels/tma.h"

#include "core/device.h"

namespace GPU_NAMESPACE {

bool runs_sm90a() {
    static const bool runs = device_info(kThisDevice).capability == 90;
    return runs;
}

#if defined(__CUDACC__)
namespace {

// The driver's function, found at run time: programs must start on machines without a driver.
decltype(&cuTensorMapEncodeTiled) encode_function() {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                               cudaEnableDefault, &found);
#else
    const cudaError_t error =
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
    CHECK(error == cudaSuccess && found == cudaDriverEntryPointSuccess && function != nullptr,
          cat({"the driver has no cuTensorMapEncodeTiled: ", cudaGetErrorString(error)}));
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

CUtensorMapDataType type_of(DType dtype) {
    return dtype == DType::bf16  ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
           : dtype == DType::f32 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                                 : CU_TENSOR_MAP_DATA_TYPE_UINT8;
}
CUtensorMapSwizzle swizzle_of(int bytes) {
    return bytes == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
           : bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
           : bytes == 32 ? CU_TENSOR_MAP_SWIZZLE_32B
                         : CU_TENSOR_MAP_SWIZZLE_NONE;
}

}  // namespace
#endif

TensorMap tensor_map(const BoxedTensor& tensor) {
    const int64_t bytes = dtype_bytes(tensor.dtype);
    CHECK(tensor.rank >= 2 && tensor.rank <= 4, cat({"rank ", tensor.rank}));
    CHECK(tensor.dtype == DType::bf16 || tensor.dtype == DType::f32 || tensor.dtype == DType::u8,
          dtype_name(tensor.dtype));
    TensorMap map = {};
#if defined(__CUDACC__)
    static const auto encode = encode_function();
    cuuint64_t dims[4], strides[4];
    cuuint32_t box[4], steps[4];
    for (int d = 0; d < tensor.rank; ++d) {
        dims[d] = static_cast<cuuint64_t>(tensor.dims[d]);
        if (d > 0) strides[d - 1] = static_cast<cuuint64_t>(tensor.strides[d] * bytes);
        box[d] = static_cast<cuuint32_t>(tensor.box[d]);
        steps[d] = 1;
    }
    // What lies outside is zeros. 256 bytes at a time into L2: neighbouring boxes want the rest soon.
    const CUresult result = encode(&map, type_of(tensor.dtype), static_cast<cuuint32_t>(tensor.rank),
                                   const_cast<void*>(tensor.data), dims, strides, box, steps,
                                   CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle_of(tensor.swizzle_bytes),
                                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    CHECK(result == CUDA_SUCCESS, cat({"cuTensorMapEncodeTiled gave ", static_cast<int>(result), " for dims ",
                                       tensor.dims[0], " x ", tensor.dims[1], ", stride ", tensor.strides[1],
                                       ", box ", tensor.box[0], " x ", tensor.box[1]}));
#else
    map.data = const_cast<void*>(tensor.data);
    map.rank = tensor.rank;
    map.element_bytes = static_cast<int>(bytes);
    for (int d = 0; d < tensor.rank; ++d) {
        map.dims[d] = tensor.dims[d];
        map.strides_bytes[d] = tensor.strides[d] * bytes;
        map.box[d] = tensor.box[d];
    }
    map.swizzle_bytes = tensor.swizzle_bytes;
#endif
    return map;
}

}  // namespace GPU_NAMESPACE
