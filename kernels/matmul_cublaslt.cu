// Matrix products by the library.
#include "kernels/matmul_gpu.h"

namespace GPU_NAMESPACE {

bool library_matmul(const Product&, Stream) { return false; }

}  // namespace GPU_NAMESPACE
